"""Picture files and the animations that Pillow decodes → upright RGB frames, with what is transparent laid on a background.

Frames are `uint8` RGB arrays of shape (H, W, 3).
"""

import io
import logging
import math
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, features

from .config_values import MAX_GAP
from .console import printable_name
from .orientation import orientation_of, upright


logger = logging.getLogger(__name__)

PICTURE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")  # in Pillow's words; and AVIF, where this Pillow has it
WHITE = (255, 255, 255)
# FFmpeg's filters from HDR to SDR: to linear light, tone mapped, to BT.709.
TO_SDR = (
    "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable,zscale=t=bt709:m=bt709:r=tv,format=yuv420p"
)
HDR = {16: "PQ (HDR10, Dolby Vision)", 18: "HLG"}  # by the number of the transfer function

Color = tuple[int, int, int]


class VideoReadError(ValueError):
    """A file could not be read as the video that was asked for. The message names the path, what is wrong, what to do."""


def name_of(source: Path | bytes) -> str:
    """How messages call a source."""
    return f"video of {len(source)} bytes" if isinstance(source, bytes) else printable_name(str(source))


def check_frame_size(source: Path | bytes, *, width: int, height: int) -> None:
    """Raises a [`VideoReadError`] for a frame of more pixels than Pillow's `Image.MAX_IMAGE_PIXELS`, 89 million: a damaged
    header can name any size, and the decoder would fill the memory with it."""
    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise VideoReadError(
            f"{name_of(source)}: a picture too large to be meant ({width} x {height} = {width * height} pixels); scale it down, "
            "or raise `PIL.Image.MAX_IMAGE_PIXELS`."
        )


def too_long(path: Path | bytes, *, begin: float, end: float) -> VideoReadError:
    return VideoReadError(
        f"{name_of(path)}: the frame at {begin:g} s would be shown until {end:g} s, longer than {MAX_GAP:g} s: the timestamps "
        "are damaged; mend the video by encoding it anew, or leave it out."
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


@lru_cache(maxsize=1024)  # once a file, not at every sample of a training
def warn_of_hdr(name: str, transfer: int) -> None:
    """Says of a file in HDR, by the number of its transfer function, that its colours are read without tone mapping."""
    if transfer in HDR:
        logger.warning(
            f"{name}: an HDR video in {HDR[transfer]}, read without tone mapping: its colours come out pale. Make an SDR video "
            f"of it first: ffmpeg -i HDR -vf {TO_SDR} SDR.mp4"
        )


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
    if picture.mode == "La":  # multiplied by the opacity; Pillow takes it to RGBA on this way alone
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        return lay_on_background(np.asarray(picture.convert("RGBA")), background)
    return np.asarray(picture.convert("RGB"))


# Files


def _no_picture(source: Path | bytes) -> VideoReadError:
    return VideoReadError(f"{name_of(source)}: no picture that can be read; give one of {', '.join(_formats())}.")


def picture_size(source: Path | bytes) -> tuple[int, int, int] | None:
    """(width, height, how many pictures stand in memory while one is read) by the header, before the picture is turned
    upright; `None` for a file that is none of the pictures of [`open_picture`].

    Raises:
        VideoReadError: it is damaged or far too large.
    """
    try:
        with opened_picture(source) as image:
            # Pillow decodes all pictures of an animated WebP at once.
            return *image.size, getattr(image, "n_frames", 1) if image.format == "WEBP" else 1
    except Image.UnidentifiedImageError:
        return None


def read_picture(source: Path | bytes, background: Color = WHITE) -> np.ndarray:
    """A picture, or the first of an animation: `uint8` (H, W, 3), upright.

    Raises:
        VideoReadError: it is none of the pictures of [`open_picture`], damaged or far too large.
    """
    opened = open_picture(source, background)
    if opened is None:
        raise _no_picture(source)
    with closing(opened[1]) as frames:
        return next(frames)[2]


def upright_size(source: Path | bytes) -> tuple[int, int]:
    """(height, width) of what [`read_picture`] gives. A PNG is decoded for it, since it may tell of turning at its end."""
    try:
        with opened_picture(source) as image:
            return image.size if orientation_of(image) >= 5 else image.size[::-1]
    except Image.UnidentifiedImageError as error:
        raise _no_picture(source) from error


def open_picture(
    source: Path | bytes, background: Color
) -> tuple[float | None, Iterator[tuple[float, float, np.ndarray]]] | None:
    """A still picture, or an animated WebP, PNG or AVIF: FFmpeg does not decode them, shows them as a picture, or passes over
    their opacity.

    Returns:
        frames per second (`None` for a still) and the frames, made as they are taken: (shown from, shown until, in seconds;
        (H, W, 3)). `None` for a file that is none of these pictures.

    Raises:
        VideoReadError: it is damaged or far too large, or a frame is shown for longer than [`MAX_GAP`].
    """
    durations = {0: math.inf}  # of each frame
    try:
        with opened_picture(source) as image:
            check_frame_size(source, width=image.width, height=image.height)
            # An animated PNG may begin with a picture for who does not know the format, which is not part of the film.
            first = 1 if image.info.get("default_image") else 0
            num_frames = getattr(image, "n_frames", 1)
            if num_frames > first + 1:
                durations = {}  # known once a frame is decoded; frames are not kept, so that a long film fits in memory
                for index in range(first, num_frames):
                    image.seek(index)
                    image.load()
                    durations[index] = (image.info["duration"] or 100) / 1000
                    if durations[index] > MAX_GAP:
                        end = sum(durations.values())
                        raise too_long(source, begin=end - durations[index], end=end)
    except Image.UnidentifiedImageError:
        return None
    rate = None if len(durations) == 1 else len(durations) / sum(durations.values())
    return rate, _frames(source, durations, background=background)


def _frames(
    source: Path | bytes, durations: dict[int, float], *, background: Color
) -> Iterator[tuple[float, float, np.ndarray]]:
    begin = 0.0
    with opened_picture(source) as image:
        for index, duration in durations.items():
            image.seek(index)
            picture = upright(image)
            if picture.mode == "I":  # older versions of Pillow open grey PNG of 16 bits so
                picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
            yield begin, begin + duration, picture_to_rgb(picture, background)
            begin += duration


@cache
def _formats() -> tuple[str, ...]:
    has_avif = "avif" in features.modules and features.check("avif")  # since Pillow 11.3
    return (*PICTURE_FORMATS, "AVIF") if has_avif else PICTURE_FORMATS


def _open(source: Path | bytes) -> Image.Image:
    """A picture, an animated WebP, PNG or AVIF. A GIF only if it has one frame: FFmpeg reads the others."""
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())
    try:
        is_film = image.format == "GIF" and image.is_animated
    except (OSError, SyntaxError):  # cut behind the first frame
        is_film = True
    if is_film:
        image.close()
        raise Image.UnidentifiedImageError
    if image.format == "AVIF":
        image.fp.seek(0)
        # Its colours: numbers of the primaries and of the transfer function, 2 bytes each.
        colours = re.search(rb"colrnclx..(..)", image.fp.read(1 << 16), re.DOTALL)
        if colours is not None:
            warn_of_hdr(name_of(source), int.from_bytes(colours[1]))
    return image


@contextmanager
def opened_picture(source: Path | bytes) -> Iterator[Image.Image]:
    """A picture of [`open_picture`] as Pillow has it, of an animation with its first frame.

    Raises:
        VideoReadError: it is damaged or far too large, found out now or while it is open.
        PIL.UnidentifiedImageError: it is none of these pictures.
    """
    try:
        with _open(source) as image:
            yield image
    except (Image.UnidentifiedImageError, VideoReadError):
        raise
    except Image.DecompressionBombError as error:
        raise VideoReadError(
            f"{name_of(source)}: a picture too large to be meant ({error}); scale it down, or raise "
            "`PIL.Image.MAX_IMAGE_PIXELS`."
        ) from error
    # The last three are raised of some damages of an AVIF.
    except (OSError, SyntaxError, EOFError, RuntimeError, ValueError, ArithmeticError) as error:
        raise VideoReadError(f"{name_of(source)}: a damaged picture ({error}); give another file.") from error
