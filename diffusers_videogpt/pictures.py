"""Picture files and the animations that Pillow decodes → upright RGB frames, with what is transparent laid on a background.

Frames are `uint8` RGB arrays of shape (H, W, 3).
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .console import printable_name


PICTURE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")  # in Pillow's words
WHITE = (255, 255, 255)

Color = tuple[int, int, int]


class VideoReadError(ValueError):
    """A file could not be read as the video that was asked for. The message names the path, what is wrong, what to do."""


def name_of(source: Path | bytes) -> str:
    """How messages call a source."""
    return f"video of {len(source)} bytes" if isinstance(source, bytes) else printable_name(str(source))


def check_frame_size(source: Path | bytes, width: int, height: int) -> None:
    """Raises a [`VideoReadError`] for a frame of more pixels than Pillow's `Image.MAX_IMAGE_PIXELS`, 89 million: a damaged
    header can name any size, and the decoder would fill the memory with it."""
    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise VideoReadError(
            f"{name_of(source)}: a picture too large to be meant ({width} x {height} = {width * height} pixels); scale it down, "
            "or raise `PIL.Image.MAX_IMAGE_PIXELS`."
        )


# Colours


def check_background(background: Color) -> None:
    """Raises a `ValueError` unless it is three whole numbers from 0 to 255."""
    if len(background) != 3 or not all(isinstance(x, int | np.integer) and 0 <= x <= 255 for x in background):
        raise ValueError(f"background={background!r} must be three whole numbers from 0 to 255: red, green, blue.")


def lay_on_background(pixels: np.ndarray, background: Color = WHITE) -> np.ndarray:
    """`uint8` (…, 4), red, green, blue and opacity → (…, 3), what is seen in front of the background."""
    output = np.empty((*pixels.shape[:-1], 3), np.uint8)
    # Frame by frame or row by row, since the products need four times the memory.
    for row, opaque in zip(output, pixels, strict=True):
        opacity = opaque[..., 3:].astype(np.uint32)
        row[:] = (opaque[..., :3] * opacity + np.array(background, np.uint32) * (255 - opacity) + 127) // 255
    return output


def picture_to_rgb(picture: Image.Image, background: Color = WHITE) -> np.ndarray:
    """A PIL image of any mode → `uint8` (H, W, 3).

    Args:
        background: the colour behind what is transparent.

    Raises:
        ValueError: a mode whose white is unknown (32-bit integers, floating point).
    """
    if picture.mode.startswith("I;16"):
        grey = np.asarray(picture).astype(np.uint32)
        grey = ((grey * 255 + 32767) // 65535).astype(np.uint8)
        if isinstance(clear := picture.info.get("transparency"), int):  # the one level that is transparent
            opacity = np.where(np.asarray(picture) == clear, 0, 255).astype(np.uint8)
            return lay_on_background(np.stack([grey, grey, grey, opacity], axis=-1), background)
        return np.stack([grey, grey, grey], axis=-1)
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"A PIL image of mode {picture.mode!r} does not say which value is white; convert it to 'L', 'I;16' or 'RGB'."
        )
    if picture.has_transparency_data:
        return lay_on_background(np.asarray(picture.convert("RGBA")), background)
    return np.asarray(picture.convert("RGB"))


# Files


def picture_size(source: Path | bytes) -> tuple[int, int, int] | None:
    """(width, height, how many pictures stand in memory while one is read) by the header; `None` for a file that is none
    of the pictures of [`open_picture`].

    Raises:
        VideoReadError: it is damaged or far too large.
    """
    try:
        with _told_as_video_errors(source), _open(source) as image:
            # Pillow decodes all pictures of an animated WebP at once.
            return *image.size, getattr(image, "n_frames", 1) if image.format == "WEBP" else 1
    except Image.UnidentifiedImageError:
        return None


def open_picture(
    source: Path | bytes, background: Color
) -> tuple[float | None, Iterator[tuple[float, float, np.ndarray]]] | None:
    """A still picture, or an animated WebP or PNG, which FFmpeg does not decode or shows as a picture.

    Returns:
        frames per second (`None` for a still) and the frames, made as they are taken: (shown from, shown until, in seconds;
        (H, W, 3)). `None` for a file that is none of these pictures.

    Raises:
        VideoReadError: it is damaged or far too large.
    """
    durations = {0: math.inf}  # of each frame
    try:
        with _told_as_video_errors(source), _open(source) as image:
            check_frame_size(source, *image.size)
            # An animated PNG may begin with a picture for who does not know the format, which is not part of the film.
            first = 1 if image.info.get("default_image") else 0
            num_frames = getattr(image, "n_frames", 1)
            if num_frames > first + 1:
                durations = {}  # known once a frame is decoded; frames are not kept, so that a long film fits in memory
                for index in range(first, num_frames):
                    image.seek(index)
                    image.load()
                    durations[index] = (image.info["duration"] or 100) / 1000
    except Image.UnidentifiedImageError:
        return None
    rate = None if len(durations) == 1 else len(durations) / sum(durations.values())
    return rate, _frames(source, durations, background)


def _frames(
    source: Path | bytes, durations: dict[int, float], background: Color
) -> Iterator[tuple[float, float, np.ndarray]]:
    begin = 0.0
    with _told_as_video_errors(source), _open(source) as image:
        for index, duration in durations.items():
            image.seek(index)
            picture = ImageOps.exif_transpose(image)
            if picture.mode == "I":  # older versions of Pillow open grey PNG of 16 bits so
                picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
            yield begin, begin + duration, picture_to_rgb(picture, background)
            begin += duration


def _open(source: Path | bytes) -> Image.Image:
    """A picture, an animated WebP or PNG. A GIF only if it has one frame: FFmpeg reads the others."""
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=PICTURE_FORMATS)
    try:
        is_film = image.format == "GIF" and image.is_animated
    except (OSError, SyntaxError):  # cut behind the first frame
        is_film = True
    if is_film:
        image.close()
        raise Image.UnidentifiedImageError
    return image


@contextmanager
def _told_as_video_errors(source: Path | bytes) -> Iterator[None]:
    """What Pillow says of a picture, as a [`VideoReadError`]; but not that the file is none of its pictures."""
    try:
        yield
    except (Image.UnidentifiedImageError, VideoReadError):
        raise
    except Image.DecompressionBombError as error:
        raise VideoReadError(
            f"{name_of(source)}: a picture too large to be meant ({error}); scale it down, or raise "
            "`PIL.Image.MAX_IMAGE_PIXELS`."
        ) from error
    except (OSError, SyntaxError, EOFError) as error:
        raise VideoReadError(f"{name_of(source)}: a damaged picture ({error}); give another file.") from error
