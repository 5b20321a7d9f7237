"""What tests of several scripts read and write: videos with classes or captions, text encoders, the log of a run."""

import csv
import json
from pathlib import Path

from run_scripts import make_videos
from text_encoders import make_text_encoder, make_tokenizer


def make_ucf(root: Path, num_videos: int) -> Path:
    """Two classes of `num_videos` videos each, with lists as UCF-101's: `trainlist01.txt` names all of them."""
    lines = []
    for seed, name in enumerate(("Basketball", "Archery")):
        make_videos(root / "videos" / name, num_videos, seed=seed)
        lines += [f"{name}/{path.name} {seed + 1}" for path in sorted((root / "videos" / name).iterdir())]
    (root / "classInd.txt").write_text("1 Basketball\n2 Archery\n")
    (root / "trainlist01.txt").write_text("\n".join(lines) + "\n")
    return root


def write_captions(folder: Path, videos: Path, captions: list[str], *, column: str) -> Path:
    """A table of the videos of a folder, whose captions are these by turns."""
    path = folder / "videos.jsonl"
    rows = [{"video": p.name, column: captions[i % len(captions)]} for i, p in enumerate(sorted(videos.iterdir()))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_text_encoder(folder: Path, *kind: str) -> Path:
    make_text_encoder(*kind).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def losses(folder: Path) -> list[float]:
    """Those that a run has logged."""
    with (folder / "train_log.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]
