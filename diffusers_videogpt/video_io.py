"""File ↔ frames with their timestamps: reading by time, sizes for the model, writing videos and film strips.

Frames are `uint8` RGB arrays of shape (F, H, W, 3) everywhere in this file.
"""

import io
import itertools
import math
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from diffusers.utils import logging
from PIL import Image, ImageDraw, ImageFont, ImageOps


logger = logging.get_logger(__name__)

# (shown from, shown until, picture), in seconds since the first frame of the file.
ShownFrame = tuple[float, float, "av.VideoFrame | Image.Image"]


class VideoReadError(ValueError):
    """A file could not be read as the video that was asked for. The message names the path, what is wrong, what to do."""


@dataclass
class Video:
    """Frames of a file with the times at which they are shown.

    Attributes:
        frames: `uint8` array (F, H, W, 3), RGB, upright.
        timestamps: `float64` array (F,), seconds since the first frame of the file.
        fps: frames per second of `frames` (the mean where the rate varies); `None` for a still picture.
        path: the file.
    """

    frames: np.ndarray
    timestamps: np.ndarray
    fps: float | None
    path: Path | None


@dataclass(frozen=True)
class VideoInfo:
    """What [`probe_video`] finds out about a file without decoding it.

    Attributes:
        height, width: in pixels, upright.
        timestamps: `float64` array (F,), seconds since the first frame: those that [`read_video`] gives.
        origin: time of the first frame on the file's own clock, in seconds; `None` where the file has no clock.
    """

    height: int
    width: int
    timestamps: np.ndarray = field(repr=False, compare=False)
    origin: float | None = None

    @property
    def num_frames(self) -> int:
        return len(self.timestamps)


# Reading


def read_video(
    path: str | Path | bytes,
    *,
    start: float = 0.0,
    origin: float | None = None,
    fps: float | None = None,
    frame_interval: int = 1,
    max_frames: int | None = None,
    min_frames: int = 1,
    from_end: bool = False,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Video:
    """Reads a video (anything FFmpeg decodes, GIF, animated WebP and PNG too) or a picture (one frame) by timestamp.

    Only the timestamps of decoded frames are believed, never a frame count, a duration or an index: variable frame
    rate, edit lists and a late or negative first timestamp come out right. Rotation metadata is applied; pixels are
    taken as stored, without stretching by a sample aspect ratio. Reading ends at the first damaged packet, since what
    follows is built on it.

    Args:
        path: the file, or the bytes of one.
        start: seconds since the first frame; reading begins with the frame that is on screen then.
        origin: that of the file's [`VideoInfo`], where it is known: the first frame is then not decoded to find it.
        fps: resample: frame k is the one on screen at `start + k / fps`, and `timestamps` are these times. Frames are
            repeated or left out as needed. Without it every source frame is read.
        frame_interval: without `fps`, every how many source frames one is taken (the paper trains with 4 to 12).
        max_frames: at most so many frames. Decoding stops there, or, with `from_end`, the last ones are kept without
            the rest in memory.
        min_frames: fewer than this is an error.
        from_end: keep the last `max_frames` rather than the first.
        transform: applied to every kept frame, (H, W, 3) to (H', W', 3), as it is decoded, so that a long film never
            stands in memory at full size; for example `functools.partial(resize_and_crop, longest_side=320)`.

    Raises:
        VideoReadError: there is no such file, it is no video, no frame decodes, or fewer than `min_frames` do.
        ValueError: `fps` together with `frame_interval`, or a number out of range.
    """
    if fps is not None and frame_interval != 1:
        raise ValueError(f"fps={fps} and frame_interval={frame_interval} both set a rate; give one of them.")
    if start < 0 or (fps is not None and fps <= 0):
        raise ValueError(f"start={start} must be at least 0, and fps={fps} above 0.")
    if frame_interval < 1 or min_frames < 1 or (max_frames is not None and max_frames < 1):
        raise ValueError(
            f"frame_interval={frame_interval}, min_frames={min_frames} and max_frames={max_frames} must be at least 1."
        )
    path = _check_source(path)

    rate, slack, shown = _open_picture(path) or _open_video(path, start, origin)
    with closing(shown):
        visible = itertools.dropwhile(lambda frame: frame[1] <= start + slack, shown)
        if fps is not None and rate is not None:
            picked = _resample(visible, start, fps, slack)
        else:
            picked = ((time, frame) for time, _, frame in itertools.islice(visible, 0, None, frame_interval))
        if from_end:
            picked = deque(picked, maxlen=max_frames)
        timestamps, frames = [], []
        size = None
        for time, frame in itertools.islice(picked, max_frames):
            size = size or (frame.width, frame.height)
            pixels = _to_rgb(frame, size)
            frames.append(pixels if transform is None else transform(pixels))
            timestamps.append(time)

    if len(frames) < min_frames:
        raise VideoReadError(
            f"{_name(path)}: {len(frames)} frames could be read from {start:g} s on, {min_frames} are needed. The video is "
            "shorter than that, or cut or damaged behind them; give a longer one or ask for fewer frames."
        )
    if fps is None and rate is not None:
        fps = rate / frame_interval
        span = timestamps[-1] - timestamps[0]
        # Within the rounding of the timestamps the header's rate is the exact one (30, not 29.99).
        if abs(span - (len(frames) - 1) / fps) > slack:
            fps = (len(frames) - 1) / span
    fps = fps if rate is not None else None
    return Video(np.stack(frames), np.array(timestamps), fps, None if isinstance(path, bytes) else path)


def probe_video(path: str | Path | bytes) -> VideoInfo:
    """The size of a video and the times of its frames, from its packets: only the first frame is decoded.

    Packets that are never shown (hidden by an edit list, before the first frame that decodes, behind a cut) do not count.
    Where packets carry no order of time (raw streams, old AVI, streams glued together) the video is decoded once.
    Damage inside a packet shows only when it is decoded.

    Args:
        path: the file, or the bytes of one.

    Raises:
        VideoReadError: as [`read_video`].
    """
    path = _check_source(path)
    if _open_picture(path) is None:
        container, stream = _open_container(path)
        with container:
            first = next(_decode(container, stream), None)
            if first is None:
                raise _no_frame(path)
            size = (first.height, first.width) if first.rotation % 180 == 0 else (first.width, first.height)
            tick = float(stream.time_base)
        stamps = _packet_stamps(path)
        if stamps is not None and first.pts in stamps:
            stamps = np.unique([stamp for stamp in stamps if stamp >= first.pts])
            return VideoInfo(*size, stamps * tick - first.pts * tick, first.pts * tick)
    sizes = []

    def transform(frame):
        sizes.append(frame.shape[:2])
        return frame[:1, :1]

    video = read_video(path, transform=transform)
    return VideoInfo(*sizes[0], video.timestamps)


def _packet_stamps(path: Path | bytes) -> list[int] | None:
    """When the packets are shown, in ticks; `None` where they do not tell."""
    stamps, previous = [], -math.inf
    container, stream = _open_container(path)
    with container:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                return stamps
            if packet is None or (packet.is_corrupt and stamps):
                return stamps
            # VP8 has frames that are never shown; a bit of their first byte says so.
            hidden = stream.codec_context.name == "vp8" and packet.size and not bytes(packet)[0] & 16
            if not packet.size or packet.is_discard or hidden:
                continue
            if packet.pts is None or (packet.dts is not None and packet.dts < previous):
                return None
            previous = previous if packet.dts is None else packet.dts
            stamps.append(packet.pts)


def _check_source(path: str | Path | bytes) -> Path | bytes:
    if isinstance(path, bytes):
        return path
    path = Path(path)
    if not path.is_file():
        raise VideoReadError(f"{path}: {'not a file' if path.exists() else 'no such file'}; give the path of a video.")
    return path


def _name(path: Path | bytes) -> str:
    return f"video of {len(path)} bytes" if isinstance(path, bytes) else str(path)


def _no_frame(path: Path | bytes) -> VideoReadError:
    return VideoReadError(f"{_name(path)}: the video track holds no frame that decodes; the file is empty or damaged.")


def _resample(shown: Iterator[ShownFrame], start: float, fps: float, slack: float):
    k = 0
    for _, end, frame in shown:
        while start + k / fps < end - slack:
            yield start + k / fps, frame
            k += 1


@contextmanager
def _told_as_video_errors(path: Path | bytes) -> Iterator[None]:
    """What Pillow says of a picture, as a [`VideoReadError`]; but not that the file is none of its pictures."""
    try:
        yield
    except Image.UnidentifiedImageError:
        raise
    except Image.DecompressionBombError as error:
        raise VideoReadError(
            f"{_name(path)}: a picture too large to be meant ({error}); scale it down, or raise `PIL.Image.MAX_IMAGE_PIXELS`."
        ) from error
    except (OSError, SyntaxError) as error:
        raise VideoReadError(f"{_name(path)}: a damaged picture ({error}); give another file.") from error


def _open_image(path: Path | bytes) -> Image.Image:
    """A picture, an animated WebP or PNG. A GIF only if it has one frame: FFmpeg reads the others."""
    file = io.BytesIO(path) if isinstance(path, bytes) else path
    image = Image.open(file, formats=("BMP", "GIF", "JPEG", "PNG", "WEBP"))
    try:
        is_film = image.format == "GIF" and image.is_animated
    except (OSError, SyntaxError):  # cut behind the first frame
        is_film = True
    if is_film:
        image.close()
        raise Image.UnidentifiedImageError
    return image


def _open_picture(path: Path | bytes) -> tuple[float | None, float, Iterator[ShownFrame]] | None:
    """Pictures, animated WebP and PNG, which FFmpeg does not decode or shows as a picture; `None` for any other file."""
    durations = {0: math.inf}  # of each frame
    try:
        with _told_as_video_errors(path), _open_image(path) as image:
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
    return rate, 1e-6, _picture_frames(path, durations)


def _picture_frames(path: Path | bytes, durations: dict[int, float]) -> Iterator[ShownFrame]:
    begin = 0.0
    with _told_as_video_errors(path), _open_image(path) as image:
        for index, duration in durations.items():
            image.seek(index)
            yield begin, begin + duration, ImageOps.exif_transpose(image).convert("RGB")
            begin += duration


def _open_container(path: Path | bytes):
    try:
        container = av.open(io.BytesIO(path) if isinstance(path, bytes) else os.path.abspath(path))
    except (av.error.FFmpegError, OSError) as error:
        raise VideoReadError(
            f"{_name(path)}: no video that FFmpeg can open ({error.strerror}). It may be another kind of file, or a download "
            "that was cut before its index; give a whole video file."
        ) from error
    stream = container.streams.best("video")
    # FFmpeg draws text files as terminal screens ("tty"); nobody means that.
    if stream is None or container.format.name == "tty":
        container.close()
        raise VideoReadError(f"{_name(path)}: there is no video in this file; give one with a video track.")
    stream.thread_type = "AUTO"
    return container, stream


def _open_video(
    path: Path | bytes, start: float, origin: float | None = None
) -> tuple[float, float, Iterator[ShownFrame]]:
    """Rate in the header, how far the file's clock may be off (seconds), frames from a key frame at or before `start`."""
    container, stream = _open_container(path)
    frames = _decode(container, stream)
    first = None
    tick = float(stream.time_base)
    if start == 0 or origin is None:
        first = next(frames, None)
        if first is None:
            container.close()
            raise _no_frame(path)
        origin = None if first.pts is None else first.pts * tick
    # Raw streams carry no timestamps and at most a guess at the rate; FFmpeg's own default for them is 25.
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    interval = 1 / float(stream.guessed_rate or rate)
    # A timestamp is rounded to the file's tick, and so is the first one, from which time is counted.
    slack = min(tick, 1 / (8 * rate))
    if start > 0 and origin is not None:
        # Believed only where it lands on a key frame at or before the start; else the file is decoded from its start.
        first = None
        try:
            target = int((origin + start) / tick)
            container.seek(target, stream=stream)
            packet = next(container.demux(stream))
            if packet.dts is not None and packet.pts is not None and packet.pts > target:
                # The index goes by the times of decoding, and led to a key frame shown later: take the one before.
                target = packet.dts - 1
                container.seek(target, stream=stream)
                packet = next(container.demux(stream))
            if packet.is_keyframe:
                container.seek(target, stream=stream)
                frames = _decode(container, stream)
                first = next(frames, None)
        except av.error.FFmpegError:
            pass
        if first is None or first.pts is None or first.pts * tick - origin > start:
            container.close()
            return _open_video(path, 0.0)
    frames = itertools.chain([first], frames)

    def shown():
        with container:
            held = None
            for frame in frames:
                time = None if frame.pts is None else frame.pts * tick - (origin or 0.0)
                if held is not None and (time is None or time < held[0]):
                    time = held[0] + interval
                # A frame replaced at the very time of its own is never on screen.
                if held is not None and held[0] < time:
                    yield held[0], time, held[2]
                time = time or 0.0
                held = time, time + ((frame.duration or 0) * tick or interval), frame
            yield held

    return rate, slack, shown()


def _decode(container, stream) -> Iterator[av.VideoFrame]:
    """Frames in display order up to the first damage; damage before the first frame is passed over, since a stream
    cut out of a broadcast begins with it."""
    decoder, packets = stream.codec_context, container.demux(stream)
    started = False
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            packet = None
        damaged = packet is not None and packet.is_corrupt
        drained = packet is None or damaged
        try:
            # `None` makes the decoder hand out the frames that it still holds.
            frames = decoder.decode(None if drained else packet)
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            frames, damaged = [], True
        for frame in frames:
            if frame.is_corrupt and started:  # decoded all the same, its damage painted over
                damaged = True
                break
            started = True
            yield frame
        if damaged and started:
            logger.warning(f"{container.name}: damaged; only the frames before the damage are used.")
            return
        if packet is None:
            return
        if drained:
            decoder.flush_buffers()


def _to_rgb(frame: "av.VideoFrame | Image.Image", size: tuple[int, int]) -> np.ndarray:
    if isinstance(frame, Image.Image):
        return np.asarray(frame)
    # Streams may change their size on the way; everything comes in the size of the first frame.
    pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    return np.ascontiguousarray(np.rot90(pixels, k=round(frame.rotation / 90)))


def to_uint8_frames(video) -> np.ndarray:
    """Frames in any of diffusers' forms → `uint8` array (F, H, W, 3).

    Args:
        video: a path; one PIL image or a list of them; an array (F, H, W, 3) or a list of (H, W, 3); a tensor
            (F, 3, H, W) or a list of (3, H, W). Arrays and tensors are `uint8`, or floating point in [0, 1].

    Raises:
        ValueError: no frames, frames of different sizes, another shape or type, NaN, values outside [0, 1].
        VideoReadError: the path cannot be read.
    """
    if isinstance(video, str | Path):
        return read_video(video).frames
    if isinstance(video, Image.Image):
        video = [video]
    if isinstance(video, list | tuple):
        frames = [np.asarray(f.convert("RGB")) if isinstance(f, Image.Image) else f for f in video]
        frames = [f if isinstance(f, torch.Tensor) else np.asarray(f) for f in frames]
        if not frames:
            raise ValueError("The video has no frames; give at least one.")
        shapes = sorted({tuple(frame.shape) for frame in frames})
        if len(shapes) > 1:
            raise ValueError(f"The frames of one video differ in shape: {shapes}; resize them to one size first.")
        video = torch.stack(frames) if isinstance(frames[0], torch.Tensor) else np.stack(frames)
    if isinstance(video, torch.Tensor):
        if video.ndim != 4 or video.shape[1] != 3:
            raise ValueError(
                f"A video tensor is (frames, 3, height, width), not {tuple(video.shape)}; permute or index it."
            )
        video = video.detach().cpu().permute(0, 2, 3, 1)
        video = (video.float() if video.is_floating_point() else video).numpy()
    video = np.asarray(video)
    if video.ndim != 4 or video.shape[3] != 3:
        raise ValueError(f"A video array is (frames, height, width, 3), not {video.shape}; transpose or index it.")
    if video.size == 0:
        raise ValueError(f"The video is empty: its shape is {video.shape}; give at least one frame.")
    if video.dtype == np.uint8:
        return video
    if not np.issubdtype(video.dtype, np.floating):
        raise ValueError(f"Frames of type {video.dtype} are ambiguous; give uint8, or floating point in [0, 1].")
    low, high = float(video.min()), float(video.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"Frames in floating point must lie in [0, 1], these are in [{low}, {high}]; for [-1, 1] use x / 2 + 0.5, "
            "and look for the cause where there is NaN."
        )
    return (video * 255).round().astype(np.uint8)


# Sizes


def target_size(
    width: int, height: int, longest_side: int = 320, multiple: int = 16
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of a frame after scaling, and after the centre crop, as the published weights were trained.

    Frames are only ever made smaller. Sizes are rounded after scaling, then cut down to `multiple`.

    Raises:
        ValueError: a side would be shorter than `multiple`.
    """
    resized = (width, height)
    while min(resized) >= 2 * longest_side:
        resized = (resized[0] // 2, resized[1] // 2)
    if max(resized) > longest_side:
        scale = longest_side / max(resized)
        resized = (round(resized[0] * scale), round(resized[1] * scale))
    cropped = (resized[0] // multiple * multiple, resized[1] // multiple * multiple)
    if min(cropped) == 0:
        remedy = ", or a longer `longest_side`" if min(width, height) >= multiple else ""
        raise ValueError(
            f"A frame of {width} x {height} becomes {resized[0]} x {resized[1]} at a longest side of {longest_side}: "
            f"less than {multiple} pixels. Give `height` and `width`{remedy}."
        )
    return resized, cropped


def resize_and_crop(frames: np.ndarray, longest_side: int = 320, multiple: int = 16) -> np.ndarray:
    """Scales frames so that the longest side is at most `longest_side`, then crops the centre to multiples.

    The preparation that the published weights were trained with, to the last bit: box halving while the shorter side
    is at least twice `longest_side`, then bicubic, sizes by [`target_size`].

    Args:
        frames: `uint8` (H, W, 3) or (F, H, W, 3).

    Returns:
        `uint8` with the same number of dimensions.
    """
    resized, cropped = target_size(frames.shape[-2], frames.shape[-3], longest_side, multiple)
    return _resize_and_crop(frames, longest_side, resized, cropped)


def resize_to_cover(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scales frames, up or down, to just cover `height` x `width`, then crops the centre to exactly that size.

    Args:
        frames: `uint8` (H, W, 3) or (F, H, W, 3).

    Returns:
        `uint8` (height, width, 3) or (F, height, width, 3).
    """
    size = (frames.shape[-2], frames.shape[-3])
    longest_side = max(height, width)
    while min(size) >= 2 * longest_side:
        size = (size[0] // 2, size[1] // 2)
    scale = max(width / size[0], height / size[1])
    resized = (max(width, round(size[0] * scale)), max(height, round(size[1] * scale)))
    return _resize_and_crop(frames, longest_side, resized, (width, height))


def _resize_and_crop(frames, longest_side, resized, cropped) -> np.ndarray:
    left, top = (resized[0] - cropped[0]) // 2, (resized[1] - cropped[1]) // 2
    outputs = []
    for frame in frames.reshape(-1, *frames.shape[-3:]):
        image = Image.fromarray(frame)
        while min(image.size) >= 2 * longest_side:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        if image.size != resized:
            image = image.resize(resized, Image.Resampling.BICUBIC)
        outputs.append(np.asarray(image)[top : top + cropped[1], left : left + cropped[0]])
    return np.stack(outputs).reshape(*frames.shape[:-3], cropped[1], cropped[0], 3)


# Writing


@contextmanager
def _atomic(path: str | Path, suffixes: tuple[str, ...]):
    """Yields a name beside `path` to write to, and moves it there at the end: `path` is whole or is not there."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: cannot write '{path.suffix}' files; use one of {', '.join(suffixes)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix.lower()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_video(path: str | Path, frames, fps: float, crf: int = 18) -> Path:
    """Writes a video that browsers play: `.mp4` (H.264), `.webm` (VP9) or `.gif`, by the suffix.

    An MP4 lasts F / fps seconds exactly, a WebM to 1/1000 s, a GIF to 1/100 s (whose equal neighbours become one).
    Both video codecs store 4:2:0, so an odd width or height is padded by repeating the last column or row. Colours are
    BT.709 and tagged so. The file appears under its name only when complete; missing folders are made.

    Args:
        frames: anything that [`to_uint8_frames`] takes.
        fps: frames per second; `30000 / 1001` is kept exactly. At most 50 for a GIF, which browsers slow down above.
        crf: quality of `.mp4` (0 to 51) and `.webm` (0 to 63); smaller is better and larger in bytes.

    Raises:
        ValueError: another suffix, `fps` out of range, or bad frames.
    """
    frames = to_uint8_frames(frames)
    if not 0 < fps < math.inf:
        raise ValueError(f"fps={fps} must be a positive number of frames per second.")
    with _atomic(path, (".mp4", ".webm", ".gif")) as unfinished:
        if unfinished.suffix == ".gif":
            if fps > 50:
                raise ValueError(
                    f"{path}: a GIF shows at most 50 frames per second, not {fps:g}; use .mp4 or a lower fps."
                )
            ends = [round(100 * i / fps) * 10 for i in range(len(frames) + 1)]
            durations = [end - begin for begin, end in itertools.pairwise(ends)]
            first, *rest = [Image.fromarray(frame) for frame in frames]
            first.save(unfinished, save_all=True, append_images=rest, duration=durations, loop=0)
        else:
            _encode(unfinished, frames, Fraction(fps).limit_denominator(1001), crf)
    return Path(path)


def _encode(path: Path, frames: np.ndarray, rate: Fraction, crf: int) -> None:
    codec, options = {
        ".mp4": ("libx264", {"crf": str(crf)}),
        ".webm": ("libvpx-vp9", {"crf": str(crf), "b:v": "0", "deadline": "good", "cpu-used": "4"}),
    }[path.suffix]
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        # 1 means BT.709 in all three, and limited range in the last.
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# Film strip

_GIVEN, _NEXT, _INK = (44, 110, 203), (226, 125, 32), (40, 40, 40)


def write_film_strip(
    path: str | Path,
    rows: dict[str, object],
    num_given: int,
    fps: float | None = None,
    max_columns: int = 12,
    start: float = 0.0,
) -> Path:
    """Writes a PNG that compares videos frame by frame: one labelled row each, one column a point in time.

    Every row starts at the same frame; a shorter row ends earlier. Blue marks the frames that the model was given,
    orange those that follow.

    Args:
        rows: label → frames (anything that [`to_uint8_frames`] takes), for example `{"truth": …, "predicted": …}`.
        num_given: how many of the first frames were given.
        fps: write seconds above the columns; without it, frame numbers.
        max_columns: of longer videos so many columns are shown, evenly spread, the first and the last among them.
        start: seconds at the first frame.

    Raises:
        ValueError: no rows, bad frames, or a path that does not end in `.png`.
    """
    if not rows:
        raise ValueError("A film strip needs at least one row, as in {'predicted': frames}.")
    rows = {label: to_uint8_frames(frames) for label, frames in rows.items()}
    total = max(len(frames) for frames in rows.values())
    columns = np.linspace(0, total - 1, min(max_columns, total)).round().astype(int)

    height, width = next(iter(rows.values())).shape[1:3]
    # Small pictures grow by whole pixels, which keeps them sharp; large ones shrink to a readable size.
    scale = max(1, 128 // max(height, width)) if max(height, width) <= 160 else 160 / max(height, width)
    tile = (round(width * scale), round(height * scale))
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS

    font, small = ImageFont.load_default(size=20), ImageFont.load_default(size=16)
    border, gap, margin = 3, 5, 16
    step = (tile[0] + 2 * border + gap, tile[1] + 2 * border + gap)
    left = margin + round(max(font.getlength(label) for label in rows)) + 14
    top = margin + 54
    canvas = Image.new(
        "RGB", (left + step[0] * len(columns) - gap + margin, top + step[1] * len(rows) - gap + margin), "white"
    )
    draw = ImageDraw.Draw(canvas)

    shown_given = int((columns < num_given).sum())
    for name, color, begin, end in (("given", _GIVEN, 0, shown_given), ("next", _NEXT, shown_given, len(columns))):
        if begin < end:
            x0, x1 = left + begin * step[0], left + end * step[0] - gap - 1
            draw.rectangle((x0, margin, x1, margin + 26), fill=color)
            draw.text(((x0 + x1) / 2, margin + 13), name, fill="white", font=font, anchor="mm")
    for column, index in enumerate(columns):
        x = left + column * step[0]
        time = f"{index + 1}" if fps is None else f"{start + index / fps:.2f} s"
        draw.text((x + step[0] / 2 - gap / 2, margin + 40), time, fill=_INK, font=small, anchor="mm")
        for row, frames in enumerate(rows.values()):
            if index < len(frames):
                y = top + row * step[1]
                color = _GIVEN if index < num_given else _NEXT
                draw.rectangle((x, y, x + tile[0] + 2 * border - 1, y + tile[1] + 2 * border - 1), fill=color)
                canvas.paste(Image.fromarray(frames[index]).resize(tile, method), (x + border, y + border))
    for row, label in enumerate(rows):
        draw.text((margin, top + row * step[1] + step[1] / 2), label, fill=_INK, font=font, anchor="lm")

    with _atomic(path, (".png",)) as unfinished:
        canvas.save(unfinished)
    return Path(path)
