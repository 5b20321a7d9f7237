"""An index of a folder of videos, which is searched by text.

    build_index("videos", "physics_retrieval", output="index")
    search_index("index", "two red balls fall", top=5)     # [Hit(path, score), …], the best first

    index/
        videos/         Arrow dataset: id, bytes, changed, embedding
        videos.faiss    FAISS index of the embeddings: inner products, exact
        index.json      the folder, the model and its hash; written last

Needs `pip install ".[search]"` in the repository.
"""

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ..data.videos import DroppedVideos, VideoTable
from ..extras import require
from ..files import hash_file, hash_json, path_inside, read_json, write_json
from ..training.feed import subset
from ..weights import hash_weights
from .video_retrieval import VideoGPTRetrievalPipeline


VIDEOS, VECTORS, NOTES = "videos", "videos.faiss", "index.json"
NOTED = {"folder", "model", "model_hash", "num_videos", "vectors"}
KIND = "videogpt video index 1"
SAVED_EVERY = 256  # new videos; what is lost at most when a process is killed


class Row(NamedTuple):
    """A video of an index: what tells that its file was replaced, and its unit vector."""

    bytes: int
    changed: int
    embedding: np.ndarray


@dataclass(frozen=True)
class Hit:
    """A video that was found.

    Attributes:
        path: of the video.
        score: cosine of its vector with the text's, in [−1, 1].
        is_current: whether the file is still the one that was indexed.
    """

    path: Path
    score: float
    is_current: bool


@dataclass(frozen=True)
class IndexReport:
    """What [`build_index`] did.

    Attributes:
        num_videos: in the index now.
        num_kept: of these, those that were in it already.
        dropped: the videos that were left out, and why.
    """

    num_videos: int
    num_kept: int
    dropped: DroppedVideos


def hash_model(pipe: VideoGPTRetrievalPipeline) -> str:
    """SHA-256 of all that decides which vectors videos and texts have."""
    parts = [hash_weights(part) for part in (pipe.vae, pipe.retriever, pipe.text_encoder)]
    parts += [pipe.tokenizer.get_vocab(), pipe.config.sampling, pipe.config.num_clips, pipe.retriever.config.pooling]
    return hash_json(parts)


def load_retriever(model: str, device: str = "cpu") -> VideoGPTRetrievalPipeline:
    return VideoGPTRetrievalPipeline.from_pretrained(model).to(device)


def build_index(folder: str | Path, model: str, *, output: str | Path, device: str = "cpu") -> IndexReport:
    """Indexes the videos in all folders below `folder`.

    Called again, it computes only the vectors of new and changed videos, and forgets those that are gone; a run that was
    killed goes on where it was.

    Args:
        folder: of videos.
        model: folder or Hub id of a [`VideoGPTRetrievalPipeline`].
        output: a new folder, or an index of this folder by this model.

    Raises:
        ValueError: there is no usable video in `folder`, or `output` is something else.
        ImportError: FAISS or `datasets` is not installed.
    """
    _require()
    folder, output = Path(folder).resolve(), Path(output)
    pipe = load_retriever(model, device)
    is_local = Path(model).exists()
    notes = {
        "kind": KIND,
        "folder": str(folder),
        "model": str(Path(model).resolve()) if is_local else model,
        "model_hash": hash_model(pipe),
    }
    table = VideoTable.from_folder(folder, pipe.sampling, max_bad_fraction=1.0)
    known = _known_rows(output, notes)
    files = {index: _state(folder / record.id) for index, record in enumerate(table)}
    rows = {table.id(i): known[table.id(i)] for i, state in files.items() if known.get(table.id(i), ())[:2] == state}
    num_kept = len(rows)
    missing = [index for index in files if table.id(index) not in rows]
    # Without new videos there is one part, of none: those that are gone are forgotten.
    parts = [missing[first : first + SAVED_EVERY] for first in range(0, len(missing), SAVED_EVERY)] or [[]]
    progress = tqdm(total=len(missing), desc="Indexing videos", delay=5)
    for part in parts:
        for place, embed in pipe.encode_table(subset(table, part)):
            rows[table.id(part[place])] = Row(*files[part[place]], embed.numpy())
            progress.update()
        if rows:
            _write(output, rows, notes=notes)
    if not rows:
        raise ValueError(f"No video of {folder} could be read: {table.dropped.summary()}.{table.dropped.first()}")
    return IndexReport(len(rows), num_kept, table.dropped)


def search_index(
    index: str | Path, text: str, *, top: int = 5, model: str | None = None, device: str = "cpu"
) -> list[Hit]:
    """The videos that fit a text best.

    Args:
        index: folder of [`build_index`].
        text: what they show.
        top: how many; all if there are fewer.
        model: where the index's model is now, if it was moved.

    Raises:
        ValueError: the text is empty, `index` is none or is damaged, or its model is not the one that made it.
        ImportError: FAISS or `datasets` is not installed.
    """
    _require()
    index = Path(index)
    if top < 1:
        raise ValueError(f"`top`={top} must be at least 1.")
    notes = _read_notes(index)
    pipe = load_retriever(model or notes["model"], device)
    if hash_model(pipe) != notes["model_hash"]:
        raise ValueError(
            f"{index} was made by another model than {model or notes['model']} is now: make the index again, or name the "
            "model that made it."
        )
    dataset = _load(index, notes)
    query = pipe.encode_texts(text)[0].numpy()
    scores, rows = dataset.get_nearest_examples("embedding", query, min(top, len(dataset)))
    hits = []
    for score, id, size, changed in zip(scores, rows["id"], rows["bytes"], rows["changed"], strict=True):
        path = path_inside(notes["folder"], id)
        hits.append(Hit(path, float(score), path.exists() and _state(path) == (size, changed)))
    return hits


def _require() -> None:
    missing = [name for name in ("faiss", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'An index needs {" and ".join(missing)}: pip install ".[search]" in the repository (FAISS is faiss-cpu).'
        )


def _state(path: Path) -> tuple[int, int]:
    """Bytes and time of change, in ns: what tells that a file was replaced."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _read_notes(index: Path) -> dict:
    try:
        notes = read_json(index / NOTES)
    except (OSError, ValueError):
        notes = None
    is_ours = notes is not None and notes.get("kind") == KIND and not NOTED - notes.keys()
    if not is_ours or not all(isinstance(notes[name], str) for name in ("model", "model_hash", "folder", "vectors")):
        raise ValueError(f"{index} is no index of videos: make one by `videogpt index FOLDER --model DIR`.")
    return notes


def _known_rows(output: Path, notes: dict) -> dict[str, Row]:
    """What an index in `output` already has, by id.

    Raises:
        ValueError: if there is something else, or an index of another model or folder.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return {}
    found = _read_notes(output)
    for name, what in (("model_hash", "by another model"), ("folder", "of another folder")):
        if found[name] != notes[name]:
            raise ValueError(
                f"{output} is an index {what} ({found['folder']}, {found['model']}): choose another --output, or remove it."
            )
    found = _load(output, found).with_format("numpy")[:]
    states = zip(found["bytes"].tolist(), found["changed"].tolist(), found["embedding"], strict=True)
    return {str(id): Row(*state) for id, state in zip(found["id"], states, strict=True)}


def _load(index: Path, notes: dict):
    """The dataset with its FAISS index. Raises a `ValueError` if files are missing or do not belong together."""
    path = index / VECTORS
    if not path.exists() or hash_file(path) != notes["vectors"]:
        raise ValueError(f"{path} is not the file that belongs to this index: make the index again.")
    dataset = require("datasets", "An index needs datasets", extra="search").load_from_disk(str(index / VIDEOS))
    dataset.load_faiss_index("embedding", str(path))
    return dataset


def _write(output: Path, rows: dict[str, Row], *, notes: dict) -> None:
    """The whole index, beside `output` first and then in its place: it is never half there."""
    datasets, faiss = (require(name, f"An index needs {name}", extra="search") for name in ("datasets", "faiss"))
    columns = {
        name: datasets.Value(kind) for name, kind in (("id", "string"), ("bytes", "int64"), ("changed", "int64"))
    }
    features = datasets.Features(columns | {"embedding": datasets.List(datasets.Value("float32"))})
    new, old = (output.with_name(f"{output.name}.{name}") for name in ("partial", "old"))
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    ids = sorted(rows)
    values = {name: [getattr(rows[id], name) for id in ids] for name in Row._fields}
    dataset = datasets.Dataset.from_dict({"id": ids, **values}, features=features)
    dataset.save_to_disk(str(new / VIDEOS))
    dataset.add_faiss_index("embedding", metric_type=faiss.METRIC_INNER_PRODUCT)
    dataset.save_faiss_index("embedding", str(new / VECTORS))
    notes = notes | {"num_videos": len(rows), "vectors": hash_file(new / VECTORS)}
    write_json(new / NOTES, notes)
    if output.exists():
        os.replace(output, old)
    os.replace(new, output)
    shutil.rmtree(old, ignore_errors=True)
