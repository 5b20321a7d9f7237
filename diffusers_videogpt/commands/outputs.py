"""Where `videogpt predict` writes, and how large: nothing that is there is overwritten unless it was named."""

from pathlib import Path

import numpy as np


WRITTEN = (".mp4", ".webm", ".gif")
OTHER_MEDIA = (".mov", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".webp", ".apng")
OTHER_MEDIA += (".png", ".jpg", ".jpeg", ".bmp")
SHOWN_SIDE = 256  # small frames are enlarged up to so many pixels


def is_video_file(output: Path) -> bool:
    """Whether `--output` names a file: it ends as a video does, and is no folder.

    Raises:
        ValueError: it ends as a kind of file that is not written.
    """
    suffix = output.suffix.lower()
    if output.is_dir() or suffix not in (*WRITTEN, *OTHER_MEDIA):
        return False
    if suffix in OTHER_MEDIA:
        raise ValueError(f"--output {output}: a video is written as {', '.join(WRITTEN)}; or name a folder.")
    return True


def output_paths(output: Path, name: str) -> tuple[Path, Path]:
    """The video and the film strip: the file that `output` names, or new ones in that folder, `name`, `name_2`, …"""
    if is_video_file(output):
        return output, output.with_name(f"{output.stem}_strip.png")
    number = 1
    while True:
        stem = output / (name if number == 1 else f"{name}_{number}")
        paths = stem.with_name(f"{stem.name}.mp4"), stem.with_name(f"{stem.name}.png")
        if not any(path.exists() for path in paths):
            return paths
        number += 1


def scale_to_show(height: int, width: int) -> int:
    """The whole factor by which small frames are enlarged."""
    return max(SHOWN_SIDE // max(height, width), 1)


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """Frames (F, H, W, 3) → (F, scale · H, scale · W, 3): each pixel becomes a square."""
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)
