"""Where `videogpt predict` and `play` write, how large and at which rate: what can't be written is told before the work, and
nothing that is there is overwritten unless it was named."""

import math
from pathlib import Path

import numpy as np

from ..files import VIDEO_SUFFIXES


WRITTEN = (".mp4", ".webm", ".gif")
# What else a video or a picture ends in: such a path is no folder. (`.ts`, `.mts` and so on are in VIDEO_SUFFIXES.)
OTHER_MEDIA = (
    *(".3g2", ".asf", ".av1", ".divx", ".dv", ".f4v", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf", ".m2v"),
    *(
        ".mjpeg",
        ".mjpg",
        ".mpe",
        ".mpv",
        ".mxf",
        ".obu",
        ".ogg",
        ".ogm",
        ".qt",
        ".rm",
        ".rmvb",
        ".vob",
        ".y4m",
        ".yuv",
    ),
    *(".apng", ".avif", ".bmp", ".heic", ".heif", ".jpeg", ".jpg", ".jxl", ".png", ".tif", ".tiff", ".webp"),
)
NOT_WRITTEN = tuple(suffix for suffix in (*VIDEO_SUFFIXES, *OTHER_MEDIA) if suffix not in WRITTEN)
SHOWN_SIDE = 256  # small frames are enlarged up to so many pixels
MOST_ENLARGED_SIDE = 8192  # pixels; players show no larger videos, and H.264 has no level for them
MOST_ENLARGED_BYTES = 4 * 2**30  # of all frames, which stand in memory while they are written


def is_video_file(output: Path) -> bool:
    """Whether `--output` names a file: it ends as a video does, and is no folder.

    Raises:
        ValueError: it ends as a kind of file that is not written, or is such an end alone.
    """
    if output.is_dir():
        return False
    if output.name.lower() in (*WRITTEN, *NOT_WRITTEN):
        raise ValueError(f"--output {output}: give the file a name before the '{output.name}'; or name a folder.")
    suffix = output.suffix.lower()
    if suffix in NOT_WRITTEN:
        raise ValueError(f"--output {output}: a video is written as {', '.join(WRITTEN)}; or name a folder.")
    return suffix in WRITTEN


def output_paths(output: Path, name: str, *, replaces: bool = True) -> tuple[Path, Path]:
    """The video and the film strip: the file that `output` names, or new ones in that folder, `name`, `name_2`, …

    Args:
        replaces: the named file may be there, and be replaced; its film strip, which nobody named, is new. Else it is left
            alone, too, and `out_2.mp4` is given.
    """
    if is_named := is_video_file(output):
        folder, name, suffix, of_strip = output.parent, output.stem, output.suffix, "_strip.png"
    else:
        folder, suffix, of_strip = output, ".mp4", ".png"
    number = 1
    while True:
        stem = name if number == 1 else f"{name}_{number}"
        strip = folder / f"{stem}{of_strip}"
        video = output if is_named and replaces else folder / f"{stem}{suffix}"
        if not strip.exists() and (is_named and replaces or not video.exists()):
            return video, strip
        number += 1


def scale_to_show(height: int, width: int) -> int:
    """The whole factor by which small frames are enlarged."""
    return max(SHOWN_SIDE // max(height, width), 1)


def check_scale(scale: int, num_frames: int, *, height: int, width: int) -> None:
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
