"""Where `videogpt predict` and `play` write, how large and at which rate: what can't be written is told before the work, and
nothing that is there is overwritten unless it was named."""

import math
from pathlib import Path

import numpy as np


WRITTEN = (".mp4", ".webm", ".gif")
OTHER_MEDIA = (".mov", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".ogv", ".webp", ".apng")
OTHER_MEDIA += (".png", ".jpg", ".jpeg", ".bmp")
SHOWN_SIDE = 256  # small frames are enlarged up to so many pixels
MOST_ENLARGED_SIDE = 8192  # pixels; players show no larger videos, and H.264 has no level for them
MOST_ENLARGED_BYTES = 4 * 2**30  # of all frames, which stand in memory while they are written


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


def check_scale(scale: int, num_frames: int, height: int, width: int) -> None:
    """Refuses to enlarge frames beyond what a video can show, or a memory hold.

    Args:
        scale: each pixel becomes so many, squared; 1 is always right.
        num_frames, height, width: of the video before.

    Raises:
        ValueError: names the largest scale that is right.
    """
    by_side = MOST_ENLARGED_SIDE // max(height, width)
    by_memory = math.isqrt(MOST_ENLARGED_BYTES // (3 * num_frames * height * width))
    largest = max(min(by_side, by_memory), 1)
    if scale > largest:
        raise ValueError(
            f"--scale {scale} makes {num_frames} frames of {scale * width} × {scale * height}, too large to be written: give "
            f"--scale {largest}{' or less' if largest > 1 else ''}."
        )


def check_written_rate(output: Path, fps: float) -> None:
    """Raises a `ValueError` for frames a second that no video has, or above 50 where `output` names a GIF."""
    from ..video_io import check_rate

    check_rate(fps)
    if output.suffix.lower() == ".gif" and fps > 50:
        raise ValueError(f"--output {output}: a GIF shows at most 50 frames a second: give --fps, or name an .mp4.")


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """Frames (F, H, W, 3) → (F, scale · H, scale · W, 3): each pixel becomes a square."""
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)
