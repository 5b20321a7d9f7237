"""Small videos with masks in the folders of DAVIS and YouTube-VOS: bright squares that move on noise."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from diffusers_videogpt.tasks.segmentation_data import write_masks


def make_masked_video(seed: int, num_frames: int = 6, height: int = 32, width: int = 48, num_objects: int = 2):
    """Frames (F, H, W, 3) and masks (F, H, W)."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 60, (num_frames, height, width, 3), dtype=np.uint8)
    masks = np.zeros((num_frames, height, width), np.uint8)
    for t in range(num_frames):
        for index in range(num_objects):
            top, left = 4 + 16 * index, 2 + (4 * index + 3 * seed) % 8 + 3 * t
            masks[t, top : top + 8, left : left + 10] = index + 1
            frames[t, top : top + 8, left : left + 10] = 250 - 30 * index
    return frames, masks


def _write(frames_folder: Path, masks_folder: Path, seed: int, mask_interval: int) -> None:
    frames, masks = make_masked_video(seed)
    names = [f"{5 * t:05d}" if mask_interval > 1 else f"{t:05d}" for t in range(len(frames))]
    frames_folder.mkdir(parents=True)
    for frame, name in zip(frames, names, strict=True):
        Image.fromarray(frame).save(frames_folder / f"{name}.jpg", quality=98, subsampling=0)
    write_masks(masks_folder, masks[::mask_interval], names=names[::mask_interval])


def make_davis(root: Path, splits: dict[str, list[str]]) -> Path:
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    for split, names in splits.items():
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    for seed, name in enumerate(name for names in splits.values() for name in names):
        _write(root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name, seed, 1)
    return root


def make_youtube_vos(root: Path, names: list[str]) -> Path:
    """Every second frame has a mask."""
    for seed, name in enumerate(names):
        _write(root / "JPEGImages" / name, root / "Annotations" / name, seed, 2)
    (root / "meta.json").write_text(json.dumps({"videos": {name: {"objects": {}} for name in names}}))
    return root
