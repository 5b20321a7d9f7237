"""A folder as the Hub needs it, with its page: a pipeline that loads from there, a LoRA, classifier, retriever or cached latents.

    export_to_hub_folder("run", "for_the_hub", repo_id="me/bouncing", license="apache-2.0", video="prediction.mp4")
    push_to_hub("for_the_hub", "me/bouncing")

A pipeline gets two things that `save_pretrained` does not write. `pipeline.py` imports this package for whoever trusts the
repository: `DiffusionPipeline.from_pretrained(repo, custom_pipeline="pipeline", trust_remote_code=True)`. And its parts
are named as diffusers' own in `model_index.json`, which they are once this package is imported, by that file or by the
user: diffusers looks for the library of each part before it runs `pipeline.py`.
"""

import json
import os
import re
import shutil
import struct
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from .config_values import check_trained_with
from .files import path_inside, read_json, write_json, write_safetensors_header
from .saved_models import LORA_WEIGHTS, read_trained_with


PIPELINE, LORA, LATENTS = "model_index.json", LORA_WEIGHTS, "index.json"  # what each has in its folder
CLASSIFIER = "config.json"  # and the autoencoder in the folder `vae`
# In the text of a page: what is loaded, where training began and on what, and absolute paths, but not those of URLs.
LOADED = re.compile(r"""\b(from_pretrained|load_lora_weights|load_classifier)\((["'])(.+?)\2""")
ORIGIN = re.compile(r"(started from|trained on) `([^`]+)`")
ABSOLUTE = re.compile(r"(?<![\w/:.~-])~?/(?:[\w.@+-]+/)*([\w.@+-]+)/?")

CARD, VIDEO = "README.md", "prediction.mp4"
BESIDE_THE_CARD = ("LICENSE", VIDEO, "prediction.png", "loss_curve.png", "train_log.csv")
OF_A_COMPONENT = (".json", ".safetensors", ".txt", ".model", ".jinja")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

STUB = '''"""Imports Video-GPT for who trusts this repository: install the package `diffusers_videogpt` first."""

from diffusers_videogpt import {name} as {name}
'''

PLAYED_FPS = 12  # in the examples, where the rate of the training videos is not known

# How each is used, in Python; `{model}` is a repository or a folder. Cards of training show them too.
PREDICTION_EXAMPLE = """```python
import diffusers_videogpt
from diffusers import DiffusionPipeline
from diffusers_videogpt.video_io import write_video

pipe = DiffusionPipeline.from_pretrained("{model}")
frames = pipe({input}, num_frames={num_frames}).frames[0]
write_video("next.mp4", frames, fps={fps:g})
```"""

LORA_EXAMPLE = """```python
import diffusers_videogpt
from diffusers import DiffusionPipeline
from diffusers_videogpt.video_io import write_video

pipe = DiffusionPipeline.from_pretrained("{base}")
pipe.load_lora_weights("{model}")
frames = pipe(image="first.png").frames[0]
write_video("animation.mp4", frames, fps={fps:g})
```"""

CLASSIFICATION_EXAMPLE = """```python
from diffusers_videogpt.tasks.video_classification import classify_videos, load_classifier

model, vae = load_classifier("{model}")
print(classify_videos(model, vae, videos="video.mp4"))  # pairs of class and probability, the mean over three clips
```"""

RETRIEVAL_EXAMPLE = """```python
import diffusers_videogpt
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{model}")
print(pipe([{caption!r}], ["one.mp4", "another.mp4"]))  # how well each text fits each video: cosines (texts, videos)
```"""

PAPER = "Video-GPT (next clip diffusion, [arXiv 2505.12489](https://arxiv.org/abs/2505.12489))"
INSTALL = "## How to use it\n\nInstall the package `diffusers_videogpt` (`pip install .` in its repository), then"
WITHOUT_IMPORT = """`from_pretrained("{model}", custom_pipeline="pipeline", trust_remote_code=True)` does it without the first import, by running
`pipeline.py` of this repository."""

# Pages of what brings none from its training, by the class in its configuration; and what the Hub calls its task.
TASKS = {"VideoGPTPipeline": "image-to-video", "VideoGPTForVideoClassification": "video-classification"}
IN_THE_INDEX = {"VideoGPTPipeline": ("frames_per_clip", "max_context_frames", "longest_side")}  # what its page tells
TEXTS = {
    "VideoGPTPipeline": f"""# {{name}}

A {PAPER} that continues videos and animates pictures clip after clip: {{num_frames}} frames at a time, looking back on
{{max_context_frames}}, {{longest_side}} pixels along the longest side.

{INSTALL}

{PREDICTION_EXAMPLE}

{WITHOUT_IMPORT}
""",
    "VideoGPTRetrievalPipeline": f"""# {{name}}

Finds videos by text and texts by video, on the features of a {PAPER}.

{INSTALL}

{RETRIEVAL_EXAMPLE}

{WITHOUT_IMPORT}
""",
    "VideoGPTForVideoClassification": f"""# {{name}}

Tells {{num_classes}} classes of videos, on the features of a {PAPER}.

{INSTALL}

{CLASSIFICATION_EXAMPLE}
""",
}

LORA_TEXT = f"""# {{name}}

A LoRA for [{{base}}](https://huggingface.co/{{base}}), a {PAPER}.

{INSTALL}

{LORA_EXAMPLE}
"""

LATENTS_TEXT = """# {name}

{num_videos} videos as an autoencoder's latents, {num_windows} windows of each, for training Video-GPT: the mean and log variance of every
frame. `key` in `index.json` says of which autoencoder and how the windows were taken.

`train_videogpt.py --cached_latents FOLDER` trains on a download of it.
"""


def export_to_hub_folder(
    source: str | Path,
    output_dir: str | Path,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    video: str | Path | None = None,
) -> Path:
    """Makes a folder to upload, of what belongs on the Hub and nothing else: no checkpoints, caches, logs or pickles.

    Weights are linked, not copied, where the file system can. A `README.md` in `source` is kept, with folders of this
    machine replaced by `repo_id`, `base_model` or their last part; what the Hub sorts by is added to it.

    Args:
        source: folder of a saved pipeline, a LoRA, a classifier, a retriever, or a finished cache of latents.
        output_dir: a new or empty folder.
        repo_id: where it will be found, for the example on the page; by default the folder's name.
        license: of the weights, as the Hub abbreviates it.
        base_model: id on the Hub of what it was trained from; a LoRA needs it whose `README.md`, if it has one, names
            a folder of this machine.
        video: an MP4 that the model made, shown on its page.

    Returns:
        `output_dir`.

    Raises:
        FileNotFoundError: if `source` holds none of them, or `video` does not exist.
        FileExistsError: if there is something in `output_dir`.
        ValueError: if weights are pickled, a pipeline is not of this package, `video` is no MP4, or a LoRA's base is not
            known, or what it was trained with is no such thing.
    """
    source, output_dir = Path(source), Path(output_dir)
    kind = _kind_of(source)
    files = _files_to_publish(source, kind)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"'{output_dir}' is not an empty folder: choose another, or remove it first.")
    if video is not None and not Path(video).is_file():
        raise FileNotFoundError(f"'{video}', which was to be shown on the page, does not exist.")
    if video is not None and Path(video).suffix.lower() != ".mp4":
        raise ValueError(f"`video` must be an MP4, which browsers play, got '{video}'.")
    if kind == LORA and base_model is None:
        _refuse_local_base(source)

    output_dir.mkdir(parents=True, exist_ok=True)
    for file in files:
        (output_dir / file).parent.mkdir(exist_ok=True)
        if kind == LATENTS and file.suffix == ".safetensors":
            _copy_shard(source / file, output_dir / file)
        else:
            _link(source / file, output_dir / file)
    if video is not None:
        (output_dir / VIDEO).unlink(missing_ok=True)
        shutil.copyfile(video, output_dir / VIDEO)

    facts: dict[str, Any] = {"base": base_model, "input": 'video="given.mp4"', "caption": "two red balls fall"}
    if kind == PIPELINE:
        index = _as_diffusers_own(read_json(source / PIPELINE))
        lacking = [name for name in IN_THE_INDEX.get(index["_class_name"], ()) if name not in index]
        if lacking:
            raise ValueError(f"'{source / PIPELINE}' does not say {', '.join(lacking)}: save the pipeline again.")
        facts |= index | {"num_frames": index.get("frames_per_clip")}
        write_json(output_dir / PIPELINE, index, indent=2)
        (output_dir / "pipeline.py").write_text(STUB.format(name=index["_class_name"]), encoding="utf-8")
    elif kind == CLASSIFIER:
        config = read_json(source / CLASSIFIER)
        if not isinstance(config.get("id2label"), dict):
            raise ValueError(f"'{source / CLASSIFIER}' has no classes (`id2label`): save the classifier again.")
        facts |= config | {"num_classes": len(config["id2label"])}
    elif kind == LATENTS:
        index = _without_local_paths(read_json(source / LATENTS))
        for shard in index["shards"]:
            shard["bytes"] = (output_dir / shard["file"]).stat().st_size
        write_json(output_dir / LATENTS, index, indent=2)
        facts |= {"num_videos": len(index["videos"]), "num_windows": index["key"]["num_windows"]}
    elif kind == LORA:
        try:
            with safe_open(source / LORA, "numpy") as file:
                facts["trained_with"] = read_trained_with(file.metadata())
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"'{source / LORA}' is no LoRA that can be read ({error}): save it again.") from error
    trained_with = facts.get("trained_with") or {}
    check_trained_with(trained_with)
    facts["fps"] = trained_with.get("fps") or PLAYED_FPS
    repo = repo_id or output_dir.resolve().name
    _write_card(
        source, output_dir, kind=kind, facts=facts | {"model": repo, "name": repo.split("/")[-1]}, license=license
    )
    return output_dir


def push_to_hub(folder: str | Path, repo_id: str, *, token: str | None = None, private: bool | None = None) -> str:
    """Uploads a folder that [`export_to_hub_folder`] made; a cache of latents becomes a dataset.

    Args:
        folder: all of it is uploaded.
        repo_id: made if it does not exist; a name without a user goes to the token's owner.
        token: by default the one that `hf auth login` stored.
        private: of a repository that is made.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: if `folder` was not exported.
    """
    folder = Path(folder)
    kind = _kind_of(folder)
    if not (folder / CARD).is_file() or (kind == PIPELINE and not (folder / "pipeline.py").is_file()):
        raise FileNotFoundError(
            f"'{folder}' is not ready for the Hub: make a folder that is with `videogpt export-hub {folder} OUTPUT_DIR`."
        )
    api = HfApi(token=token)
    repo_type = "dataset" if kind == LATENTS else "model"
    repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
    return api.upload_folder(
        repo_id=repo_id, repo_type=repo_type, folder_path=folder, commit_message="Upload by diffusers-videogpt"
    )


def _kind_of(folder: Path) -> str:
    for marker in (LORA, PIPELINE, LATENTS):
        if (folder / marker).is_file():
            return marker
    class_name = read_json(folder / CLASSIFIER).get("_class_name") if (folder / CLASSIFIER).is_file() else None
    if isinstance(class_name, str) and class_name in TEXTS:
        return CLASSIFIER
    raise FileNotFoundError(
        f"'{folder}' is no saved pipeline or retriever (they would have a {PIPELINE}), LoRA ({LORA}), classifier "
        f"({CLASSIFIER} of a VideoGPTForVideoClassification) or finished cache of latents ({LATENTS})."
    )


def _files_to_publish(folder: Path, kind: str) -> list[Path]:
    """Relative paths, without the card and the index, which are written anew."""
    files = [folder / name for name in BESIDE_THE_CARD if (folder / name).is_file()]
    if kind == LORA:
        files.append(folder / LORA)
    elif kind == LATENTS:
        shards = _checked_latents(folder)["shards"]
        files += [path_inside(folder, shard["file"]) for shard in shards]
    elif kind == CLASSIFIER:
        files += [
            folder / CLASSIFIER,
            *sorted(folder.glob("diffusion_pytorch_model*")),
            *_files_of_component(folder / "vae"),
        ]
    else:
        index = read_json(folder / PIPELINE)
        class_name = index.get("_class_name")
        if not isinstance(class_name, str) or class_name not in TEXTS:
            raise ValueError(
                f"'{folder}' holds a {class_name}, which is not of this package: its own `push_to_hub` uploads it."
            )
        for name in (
            name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None
        ):
            files += _files_of_component(folder / name)
    return [file.relative_to(folder) for file in files]


def _checked_latents(folder: Path) -> dict[str, Any]:
    """The index of cached latents. Raises a `ValueError` if it lacks something that is read of it here."""
    index = read_json(folder / LATENTS)
    shards, key = index.get("shards"), index.get("key")
    is_complete = (
        isinstance(shards, list)
        and all(isinstance(shard, dict) and isinstance(shard.get("file"), str) for shard in shards)
        and isinstance(key, dict)
        and "num_windows" in key
        and isinstance(index.get("videos"), list | dict)
    )
    if not is_complete:
        raise ValueError(
            f"'{folder / LATENTS}' is no finished index of cached latents (shards with a file each, videos, and a key with "
            "num_windows): let `cache_latents.py` finish it."
        )
    missing = [shard["file"] for shard in shards if not path_inside(folder, shard["file"]).is_file()]
    if missing:
        raise FileNotFoundError(
            f"'{folder}' lacks {missing[0]}, which {LATENTS} lists: let `cache_latents.py` finish it."
        )
    return index


def _files_of_component(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"'{folder.parent}' has no folder {folder.name}, which its configuration names: save it again."
        )
    present = sorted(folder.iterdir())
    suffixes = {path.suffix for path in present}
    if suffixes & set(PICKLES) and ".safetensors" not in suffixes:
        raise ValueError(
            f"The weights in '{folder}' are pickled, which can run code where they are loaded: save the pipeline again by "
            "`save_pretrained`, which writes safetensors."
        )
    return [path for path in present if path.suffix in OF_A_COMPONENT]


def _as_diffusers_own(index: dict[str, Any]) -> dict[str, Any]:
    package = __name__.split(".")[0]
    return {
        name: ["diffusers", *value[1:]] if isinstance(value, list) and value and value[0] == package else value
        for name, value in index.items()
    }


def _without_local_paths(index: dict[str, Any]) -> dict[str, Any]:
    """The key tells where the videos lay on this machine: only the folder's name is anyone's business."""
    key = index["key"]
    paths = {
        name: Path(key[name]).name for name in ("instance_data_root", "dataset_file", "lerobot_root") if key.get(name)
    }
    return index | {"key": key | paths}


def _copy_shard(source: Path, target: Path) -> None:
    """Copies a safetensors file of latents, whose metadata repeats the index's key."""
    with source.open("rb") as old, target.open("wb") as new:
        try:
            (length,) = struct.unpack("<Q", old.read(8))
            if length > source.stat().st_size:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(old.read(length))
            metadata = header["__metadata__"]
            metadata["cache"] = json.dumps(_without_local_paths(json.loads(metadata["cache"])))
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"'{source}' is no shard of cached latents, or is damaged ({error}): run `cache_latents.py` again."
            ) from error
        write_safetensors_header(new, header)
        shutil.copyfileobj(old, new)


def _is_local(name: str) -> bool:
    """Whether a name on a page is a folder of this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return Path(name).exists()


def _refuse_local_base(lora: Path) -> None:
    """Raises a `ValueError` if the page of a LoRA, written by training or still to be written, cannot name its base."""
    if not (lora / CARD).is_file():
        raise ValueError("Say which model the LoRA is for, by `base_model`: its page names it.")
    for function, _, name in LOADED.findall(ModelCard.load(lora / CARD).text):
        if function == "from_pretrained" and _is_local(name):
            raise ValueError(
                f"The page of the LoRA names its base as '{name}', a folder of this machine: say by `base_model` which model "
                "on the Hub it is."
            )


def _without_local_names(text: str, source: Path, *, kind: str, repo: str, base: str | None) -> str:
    """The text of a page, where what was a folder here is the model's id, that of its base, or a folder's last part."""

    def loaded(match: re.Match) -> str:
        function, quote, name = match.groups()
        is_base = kind == LORA and function == "from_pretrained"
        if _is_local(name) or Path(name).name == source.resolve().name:
            name = (base or name) if is_base else repo
        return f"{function}({quote}{name}{quote}"

    def origin(match: re.Match) -> str:
        words, name = match.groups()
        if words == "started from" and base is not None:
            name = base
        return f"{words} `{Path(name).name if _is_local(name) else name}`"

    return ABSOLUTE.sub(r"\1", ORIGIN.sub(origin, LOADED.sub(loaded, text)))


def _write_card(source: Path, output_dir: Path, *, kind: str, facts: dict[str, Any], license: str | None) -> None:
    card_class = DatasetCard if kind == LATENTS else ModelCard
    class_name = facts.get("_class_name", "VideoGPTPipeline")  # a LoRA is of that one, and latents are for it
    if (source / CARD).is_file():
        card = card_class.load(source / CARD)
        card.text = _without_local_names(card.text, source, kind=kind, repo=facts["model"], base=facts["base"])
    else:
        data = DatasetCardData() if kind == LATENTS else ModelCardData(pipeline_tag=TASKS.get(class_name))
        text = {LORA: LORA_TEXT, LATENTS: LATENTS_TEXT}.get(kind) or TEXTS[class_name]
        text = text.format(**facts)
        if (output_dir / VIDEO).is_file():
            text = text.replace("\n\n", "\n\n<Gallery />\n\n", 1)
        card = card_class(f"---\n{data.to_yaml()}\n---\n\n{text}")
    tags = ["video-gpt", "next-clip-diffusion"]
    if class_name == "VideoGPTPipeline":
        tags.append("video-prediction")
    if kind == LATENTS:
        tags.append("latents")
    else:
        tags += ["diffusers", "lora"] if kind == LORA else ["diffusers"]
        card.data.library_name = "diffusers"
        if facts["base"] is not None:
            card.data.base_model = facts["base"]
        if (output_dir / VIDEO).is_file():
            card.data.widget = [{"text": "what the model predicts", "output": {"url": VIDEO}}]
    card.data["tags"] = sorted({*(card.data.get("tags") or []), *tags})
    if license is not None:
        card.data.license = license
    card.save(output_dir / CARD)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
