"""What tests of several scripts read and write: videos with classes or captions, models to start from, the log of a run."""

import csv
import json
from pathlib import Path

import torch
from diffusers import AutoModel
from run_scripts import TINY, make_videos
from text_encoders import make_text_encoder, make_tokenizer

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline, VideoGPTTransformerModel


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


def save_base(folder: Path, vae: Path, **config) -> Path:
    """A pipeline to train further, whose clips have two frames. What it predicts is not all zeros, as a new model's would be."""
    transformer = VideoGPTTransformerModel(**TINY)
    generator = torch.Generator().manual_seed(0)
    transformer.init_weights(generator)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.2, generator=generator)
    pipe = VideoGPTPipeline(
        vae=AutoModel.from_pretrained(str(vae)),
        transformer=transformer,
        scheduler=NextClipFlowMatchScheduler(),
        frames_per_clip=2,
        longest_side=32,
        **config,
    )
    pipe.save_pretrained(folder)
    return folder


def losses(folder: Path) -> list[float]:
    """Those that a run has logged."""
    with (folder / "train_log.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]
