"""What the page of `videogpt demo` does: check an upload, predict clip after clip for one visitor at a time, draw the result.

Frames are `uint8` RGB arrays of shape (F, H, W, 3).
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..console import printable_name
from ..film_strips import side_by_side, write_film_strip
from ..pictures import name_of, picture_size
from ..pipeline_videogpt import VideoGPTPipeline
from ..stream import VideoGPTStream
from ..video_io import (
    Video,
    VideoReadError,
    read_video,
    resize_and_crop,
    resize_to_cover,
    target_size,
    to_uint8_frames,
    video_header,
    write_video,
)
from .predict import PICTURE_FPS


PREVIEW_SIDE = 256
MAX_PREDICTED = 64
MAX_WALKED = 240  # frames that a walk shows; the oldest are dropped


@dataclass(frozen=True)
class Limits:
    """What the page accepts: the size of a file, the length of a video, the size of a picture or frame."""

    megabytes: int = 100
    seconds: float = 120.0
    megapixels: float = 50.0


@dataclass(frozen=True)
class Settings:
    """What the visitor chose, in the order of the page; `fps` 0 is the video's own."""

    num_given: int
    num_frames: int
    frames_per_clip: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    fps: float = 0.0


@dataclass(frozen=True)
class Walk:
    """What was shown so far, clip by clip: `frames`, of which the first `num_given` were given."""

    frames: np.ndarray
    num_given: int
    fps: float
    settings: Settings


# Uploads


def check_upload(path: str | Path, limits: Limits) -> tuple[int, int]:
    """Looks at a file without decoding it; (width, height) if it may be read.

    Raises:
        VideoReadError: it is none of the videos and pictures that [`~video_io.read_video`] takes.
        ValueError: it is empty, too large or too long. The message says so to a visitor.
    """
    path = Path(path)
    name = printable_name(path.name)
    if not path.is_file():
        raise ValueError(f"{name} is no longer here: uploads are kept for an hour. Upload it again.")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{name} is empty (0 bytes). Choose another file.")
    if size > limits.megabytes * 1e6:
        raise ValueError(f"{name} has {size / 1e6:.0f} MB, the limit is {limits.megabytes:g} MB. Cut or compress it.")
    with _named_for_visitors(path, limits):
        if (picture := picture_size(path)) is not None:
            (width, height, num_pictures), seconds = picture, 0.0
        else:
            (width, height, seconds), num_pictures = video_header(path), 1
    megapixels = num_pictures * width * height / 1e6
    if megapixels > limits.megapixels:
        raise ValueError(
            f"{name} has {megapixels:.0f} megapixels ({width} × {height}), the limit is {limits.megapixels:g}. "
            "Scale it down."
        )
    if seconds > limits.seconds:
        raise ValueError(f"{name} is {seconds:.0f} s long, the limit is {limits.seconds:g} s. Cut it.")
    return width, height


@contextmanager
def _named_for_visitors(path: Path, limits: Limits) -> Iterator[None]:
    """What the reader says of a file, without the folder that it was uploaded to."""
    try:
        yield
    except VideoReadError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise VideoReadError(
                f"{printable_name(path.name)}: this picture is far too large. Scale it down to {limits.megapixels:g} megapixels or less."
            ) from error
        raise VideoReadError(str(error).replace(name_of(path), printable_name(path.name))) from error


def read_upload(path: str | Path | None, pipe: VideoGPTPipeline, *, settings: Settings, limits: Limits) -> Video:
    """The first `num_given + num_frames` frames of a checked file, at the model's size.

    Raises:
        VideoReadError: as [`check_upload`], or no frame decodes.
        ValueError: as [`check_upload`], or there is no file, or its frames are too narrow.
    """
    if path is None:
        raise ValueError("There is no video yet: choose a file, or the sample.")
    width, height = check_upload(path, limits)
    sizes = {"longest_side": pipe.config.longest_side, "multiple": pipe.size_multiple}
    try:
        target_size(width, height, **sizes)
    except ValueError as error:
        raise ValueError(
            f"{printable_name(Path(path).name)}: frames of {width} × {height} are too small or too narrow for this model: scaled to at most "
            f"{pipe.config.longest_side} pixels, a side has less than {pipe.size_multiple}. Crop it closer to a square."
        ) from error
    with _named_for_visitors(Path(path), limits):
        return read_video(
            path,
            fps=settings.fps or None,
            max_frames=settings.num_given + settings.num_frames,
            transform=partial(resize_and_crop, **sizes),
        )


# Predicting


class Rollouts:
    """The model behind the page. It has one stream of clips at a time, of the visitor who began it last.

    The page lets one event in at a time; the lock is for a thread whose visitor has left, or pressed cancel.
    """

    def __init__(self, pipe: VideoGPTPipeline):
        self.pipe = pipe
        self._owner: tuple[str, str] | None = None
        self._stream: VideoGPTStream | None = None
        self._lock = threading.Lock()

    def begin(self, owner: tuple[str, str], frames: np.ndarray, *, settings: Settings, num_frames: int | None) -> None:
        """Ends the stream before, and begins one that continues `frames`; without `num_frames` it has no end."""
        self.interrupt(self._owner)
        with self._lock:
            self._end()
            self._stream = self.pipe.stream(
                video=frames[-self.pipe.config.max_context_frames :],
                num_frames=num_frames,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                frames_per_clip=settings.frames_per_clip,
                generator=torch.Generator("cpu").manual_seed(settings.seed),
                output_type="np",
            )
            self._owner = owner

    def next_clip(self, owner: tuple[str, str]) -> np.ndarray | None:
        """The next clip of the owner's stream; `None` at its end, when it was interrupted, or another has begun one."""
        with self._lock:
            clip = next(self._stream, None) if self._owner == owner else None
        if clip is None or self._owner != owner:
            return None
        return to_uint8_frames(clip.frames[0])

    def interrupt(self, owner: tuple[str, str] | None) -> None:
        """Gives up the stream, if it is of this owner: the clip in work, which is noise then, is not handed out."""
        if self._owner == owner:
            self._owner = None
            self.pipe._interrupt = True

    def _end(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._owner = self._stream = None

    def close(self) -> None:
        """Ends the stream, whoever has it."""
        self.interrupt(self._owner)
        with self._lock:
            self._end()

    def clips(self, owner: tuple[str, str], given: np.ndarray, *, settings: Settings) -> Iterator[np.ndarray]:
        """Yields all predicted frames so far, after every clip."""
        self.begin(owner, given, settings=settings, num_frames=settings.num_frames)
        predicted = given[:0]
        while (clip := self.next_clip(owner)) is not None:
            predicted = np.concatenate([predicted, clip])
            yield predicted

    def walk_on(self, owner: tuple[str, str], walk: Walk, *, own_frame: np.ndarray | None = None) -> Walk:
        """One clip more; with `own_frame` (H, W, 3), after that in the place of the last frame shown."""
        frames = walk.frames
        if own_frame is not None:
            own_frame = resize_to_cover(own_frame, height=frames.shape[1], width=frames.shape[2])
            frames = np.concatenate([frames[:-1], own_frame[None]])
        if self._owner != owner:  # at the start, or another visitor had the model meanwhile
            self.begin(owner, frames, settings=walk.settings, num_frames=None)
        elif own_frame is not None:
            with self._lock:
                self._stream.observe(frames[-walk.settings.frames_per_clip :])
        clip = self.next_clip(owner)
        if clip is None:
            raise ValueError("Another visitor has begun a prediction. Press the button again.")
        frames = np.concatenate([frames, clip])
        num_dropped = max(len(frames) - MAX_WALKED, 0)
        return replace(walk, frames=frames[num_dropped:], num_given=max(walk.num_given - num_dropped, 0))


# Showing


def psnr_by_clip(
    predicted: np.ndarray, truth: np.ndarray, *, last_given: np.ndarray, frames_per_clip: int
) -> list[tuple[float, float]]:
    """Peak signal-to-noise ratio in dB of each clip that has a truth: of the prediction, and of repeating the last frame."""

    def psnr(frames, truth):
        return -10 * np.log10(max(np.square(frames / 255 - truth / 255).mean(), 1e-10))

    length = min(len(predicted), len(truth))
    parts = [slice(first, min(first + frames_per_clip, length)) for first in range(0, length, frames_per_clip)]
    return [(psnr(predicted[part], truth[part]), psnr(last_given, truth[part])) for part in parts]


def format_psnr(scores: list[tuple[float, float]]) -> str:
    if not scores:
        return ""
    rows = [f"| clip {index} | {ours:.1f} dB | {repeat:.1f} dB |" for index, (ours, repeat) in enumerate(scores, 1)]
    header = "| PSNR against the truth | prediction | repeating the last given frame |\n|---|---|---|\n"
    return header + "\n".join(rows)


def write_views(
    folder: str | Path, name: str, *, video: Video, num_given: int, predicted: np.ndarray
) -> tuple[str, str | None, str | None]:
    """Paths of a film strip, a looping comparison with the truth, and the prediction to keep; the first alone if there
    is none yet."""
    fps = video.fps or PICTURE_FPS
    rows = {"prediction": np.concatenate([video.frames[:num_given], predicted])}
    if len(video.frames) > num_given:
        rows = {"truth": video.frames, **rows}
    strip = write_film_strip(Path(folder, "strip.png"), rows, num_given=num_given, fps=fps, max_columns=8)
    if not len(predicted):
        return str(strip), None, None
    kept = write_video(Path(folder, f"{name}_prediction.mp4"), rows["prediction"], fps=fps)
    rows = {label: frames[: num_given + len(predicted)] for label, frames in rows.items()}
    comparison = write_video(
        Path(folder, "comparison.mp4"),
        side_by_side(rows, num_given=num_given, preview_side=PREVIEW_SIDE, gap=8),
        fps=fps,
    )
    return str(strip), str(comparison), str(kept)
