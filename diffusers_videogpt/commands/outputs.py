"""Where `videogpt predict` writes, and how large: nothing that is there is overwritten unless it was named."""

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


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """Frames (F, H, W, 3) → (F, scale · H, scale · W, 3): each pixel becomes a square."""
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)
