"""File ↔ frames with their timestamps: reading by time, sizes for the model, writing videos.

Frames are `uint8` RGB arrays of shape (F, H, W, 3) everywhere in this file.
"""

import io
import itertools
import logging
import math
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image

from .config_values import MAX_FPS, MAX_GAP
from .orientation import display_turn, upright
from .pictures import (
    WHITE,
    Color,
    VideoReadError,
    check_background,
    check_frame_size,
    lay_on_background,
    name_of,
    open_picture,
    picture_to_rgb,
    too_long,
    warn_of_hdr,
)


logger = logging.getLogger(__name__)

# Containers that hold their own frames, and raw streams, in FFmpeg's words. It knows others that name further files or
# addresses (playlists, session descriptions), which it would open; these are never read.
CONTAINERS = (
    *("mov", "matroska", "webm", "avi", "gif", "mpegts", "mpeg", "ogg", "flv", "asf", "mxf", "dv"),
    *("h264", "hevc", "m4v", "mpegvideo", "ivf", "obu", "av1", "yuv4mpegpipe"),
)
READABLE = "MP4, MOV, WebM, MKV, AVI, GIF, PNG, JPEG, BMP or WebP"
HEIF = ("avif", "avis", "heic", "heix", "hevc", "hevx", "mif1", "msf1")  # brands of HEIC and AVIF
# Titles that are not UTF-8 are no reason to refuse a video. From PyAV 19 on they never are, and it takes no such argument.
FOREIGN_TITLES = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}

# (shown from, shown until, picture), in seconds since the first frame of the file.
ShownFrame = tuple[float, float, "av.VideoFrame | np.ndarray"]


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
    background: Color = WHITE,
) -> Video:
    """Reads a video (of [`CONTAINERS`], animated WebP, PNG and AVIF too) or a picture (one frame) by timestamp.

    Only the timestamps of decoded frames are believed, never a frame count, a duration or an index: variable frame
    rate, edit lists and a late or negative first timestamp come out right. Rotation and mirroring by metadata are
    applied; pixels are taken as stored, without stretching by a sample aspect ratio. What is transparent shows
    `background`. Colours of HDR videos (PQ, HLG) are taken as stored, with a warning. Reading ends at the first damaged
    packet, since what follows is built on it.

    Args:
        path: the file, or the bytes of one.
        start: seconds since the first frame; reading begins with the frame that is on screen then.
        origin: that of the file's [`VideoInfo`], where it is known: the first frame is then not decoded to find it.
        fps: resample: frame k is the one on screen at `start + k / fps`, and `timestamps` are these times. Frames are
            repeated or left out as needed; of one that is repeated, `transform` is asked once. At most [`MAX_FPS`].
            Without it every source frame is read.
        frame_interval: without `fps`, every how many source frames one is taken (the paper trains with 4 to 12).
        max_frames: at most so many frames. Decoding stops there, or, with `from_end`, the last ones are kept without
            the rest in memory.
        min_frames: fewer than this is an error.
        from_end: keep the last `max_frames` rather than the first.
        transform: applied to every kept frame, (H, W, 3) to (H', W', 3), as it is decoded, so that a long film never
            stands in memory at full size; for example `functools.partial(resize_and_crop, longest_side=320)`.
        background: red, green and blue, 0 to 255, behind what is transparent; white as in most viewers.

    Raises:
        VideoReadError: there is no such file, it is no video, no frame decodes, or fewer than `min_frames` do; a frame is
            far too large, or is shown for longer than [`MAX_GAP`].
        ValueError: `fps` together with `frame_interval`, or a number out of range.
    """
    if fps is not None and frame_interval != 1:
        raise ValueError(f"fps={fps} and frame_interval={frame_interval} both set a rate; give one of them.")
    if not 0 <= start < math.inf:
        raise ValueError(f"start={start} must be a number of seconds, at least 0.")
    if fps is not None:
        check_rate(fps)
    check_background(background)
    if frame_interval < 1 or min_frames < 1 or (max_frames is not None and max_frames < 1):
        raise ValueError(
            f"frame_interval={frame_interval}, min_frames={min_frames} and max_frames={max_frames} must be at least 1."
        )
    path = _check_source(path)

    picture = open_picture(path, background)
    rate, slack, shown = _open_video(path, start, origin=origin) if picture is None else (picture[0], 1e-6, picture[1])
    with closing(shown):
        visible = itertools.dropwhile(lambda frame: frame[1] <= start + slack, shown)
        if fps is not None and rate is not None:
            picked = _resample(visible, start, fps=fps, slack=slack)
        else:
            picked = ((time, frame) for time, _, frame in itertools.islice(visible, 0, None, frame_interval))
        if from_end:
            picked = deque(picked, maxlen=max_frames)
        timestamps, frames = [], []
        size = before = None
        reformatter = VideoReformatter()
        for time, frame in itertools.islice(picked, max_frames):
            if frame is not before:
                if isinstance(frame, np.ndarray):
                    pixels = frame
                else:
                    size = size or (frame.width, frame.height)
                    pixels = _to_rgb(path, frame, size=size, background=background, reformatter=reformatter)
                pixels = pixels if transform is None else transform(pixels)
                before = frame
            frames.append(pixels)
            timestamps.append(time)

    if len(frames) < min_frames:
        raise VideoReadError(
            f"{name_of(path)}: {len(frames)} frames could be read from {start:g} s on, {min_frames} are needed. The video is "
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
    if open_picture(path, WHITE) is None:
        container, stream = _open_container(path)
        with container:
            first = next(_decode(path, container, stream=stream), None)
            if first is None:
                raise _no_frame(path)
            is_turned, *_ = display_turn(first)
            size = (first.width, first.height) if is_turned else (first.height, first.width)
            tick = float(stream.time_base)
        stamps = _packet_stamps(path)
        if stamps is not None and first.pts in stamps:
            stamps = np.unique([stamp for stamp in stamps if stamp >= first.pts])
            times = stamps * tick - first.pts * tick
            for gap in np.flatnonzero(np.diff(times) > MAX_GAP):
                raise too_long(path, begin=times[gap], end=times[gap + 1])
            return VideoInfo(*size, times, first.pts * tick)
    sizes = []

    def transform(frame):
        sizes.append(frame.shape[:2])
        return frame[:1, :1]

    video = read_video(path, transform=transform)
    return VideoInfo(*sizes[0], video.timestamps)


def video_header(path: str | Path | bytes) -> tuple[int, int, float]:
    """(width, height, seconds) of a video, as its header says, without looking at a frame. A header may lie: this is for
    limits that are to hold before anything is decoded; [`probe_video`] finds out what is true.

    Raises:
        VideoReadError: there is no such file, or no video in it that can be decoded.
    """
    container, stream = _open_container(_check_source(path))
    with container:
        return stream.codec_context.width, stream.codec_context.height, (container.duration or 0) / av.time_base


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
        problem = "not a file" if path.exists() else "no such file"
        raise VideoReadError(f"{name_of(path)}: {problem}; give the path of a video.")
    return path


def _no_frame(path: Path | bytes) -> VideoReadError:
    return VideoReadError(
        f"{name_of(path)}: the video track holds no frame that decodes; the file is empty or damaged."
    )


def check_rate(fps: float) -> None:
    """Raises a `ValueError` for frames per second that no video has: from one in [`MAX_GAP`] seconds to [`MAX_FPS`]."""
    if not isinstance(fps, Real):
        raise ValueError(f"fps={fps!r} must be a number of frames per second.")
    if not 1 / MAX_GAP <= fps <= MAX_FPS:
        raise ValueError(
            f"fps={fps} must be at most {MAX_FPS:g} frames per second, and at least one in {MAX_GAP:g} s."
        )


def _resample(shown: Iterator[ShownFrame], start: float, *, fps: float, slack: float):
    k = 0
    for _, end, frame in shown:
        while start + k / fps < end - slack:
            yield start + k / fps, frame
            k += 1


def _open_container(path: Path | bytes):
    options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    try:
        container = av.open(
            io.BytesIO(path) if isinstance(path, bytes) else os.path.abspath(path),
            container_options=options,
            **FOREIGN_TITLES,
        )
    except (av.error.FFmpegError, OSError) as error:
        raise VideoReadError(
            f"{name_of(path)}: no video that FFmpeg can open ({error.strerror}). It may be another kind of file, or a download "
            f"that was cut before its index; give a whole {READABLE}."
        ) from error
    try:
        stream = _video_stream(path, container)
        check_frame_size(path, width=stream.codec_context.width, height=stream.codec_context.height)
    except VideoReadError:
        container.close()
        raise
    stream.thread_type = "AUTO"
    return container, stream


def _video_stream(path: Path | bytes, container):
    """The track that a player would show; the cover of an audio recording is none."""
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not streams:
        remedy = "only the cover of an audio recording; " if container.streams.video else ""
        raise VideoReadError(f"{name_of(path)}: there is no video in this file; {remedy}give one with a video track.")
    streams = [stream for stream in streams if stream.codec_context is not None and stream.time_base]
    if not streams:
        raise VideoReadError(
            f"{name_of(path)}: this FFmpeg has no decoder for the video track; encode it anew, as H.264 for example."
        )
    best = container.streams.best("video")
    best = best if best in streams else streams[0]
    # FFmpeg shows one of the pictures that a file of these kinds is made of, and knows nothing of the others.
    parts = [x for x in streams if (x.width, x.height, x.time_base) == (best.width, best.height, best.time_base)]
    if container.metadata.get("major_brand") in HEIF and len(parts) > 1:
        raise VideoReadError(
            f"{name_of(path)}: an AVIF or HEIC made of {len(parts)} pictures, tiles or one that says what is transparent, which "
            "can't be put together here; save it as PNG or JPEG. (Pillow 11.3 and later reads such an AVIF.)"
        )
    return best


def _decoder(stream):
    """The stream's own decoder; of a WebM with transparency, libvpx, since FFmpeg's own passes over it."""
    if stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1":
        name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
        if name in av.codecs_available:
            return av.CodecContext.create(name, "r")
    return stream.codec_context


def _rates(container, stream) -> tuple[float | None, float]:
    """Frames per second as the header says, and as FFmpeg guesses from the first frames; of a still picture `None`."""
    average, guessed = (
        float(rate) if rate is not None and rate > 0 else None for rate in (stream.average_rate, stream.guessed_rate)
    )
    # Raw streams carry no timestamps and at most a guess at the rate; FFmpeg's own default for them is 25.
    rate = average or guessed or 25.0
    is_still = container.metadata.get("major_brand") in HEIF and stream.frames <= 1
    return None if is_still else rate, guessed or rate


def _open_video(
    path: Path | bytes, start: float, *, origin: float | None = None
) -> tuple[float | None, float, Iterator[ShownFrame]]:
    """Rate in the header, how far the file's clock may be off (seconds), frames from a key frame at or before `start`."""
    container, stream = _open_container(path)
    frames = _decode(path, container, stream=stream)
    first = None
    tick = float(stream.time_base)
    if start == 0 or origin is None:
        first = next(frames, None)
        if first is None:
            container.close()
            raise _no_frame(path)
        origin = None if first.pts is None else first.pts * tick
    rate, guessed = _rates(container, stream)
    interval = 1 / guessed
    # A timestamp is rounded to the file's tick, and so is the first one, from which time is counted.
    slack = min(tick, 1 / (8 * (rate or guessed)))
    if start > 0 and origin is not None:
        # Believed only where it lands on a key frame at or before the start; else the file is decoded from its start.
        first = None
        # An `OverflowError`: a start that no file's clock reaches.
        with suppress(av.error.FFmpegError, OverflowError):
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
                frames = _decode(path, container, stream=stream)
                first = next(frames, None)
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
                    if time - held[0] > MAX_GAP:
                        raise too_long(path, begin=held[0], end=time)
                    yield held[0], time, held[2]
                time = time or 0.0
                held = time, time + min((frame.duration or 0) * tick or interval, MAX_GAP), frame
            yield held

    return rate, slack, shown()


def _decode(path: Path | bytes, container, *, stream) -> Iterator[av.VideoFrame]:
    """Frames in display order up to the first damage; damage before the first frame is passed over, since a stream
    cut out of a broadcast begins with it."""
    decoder, packets = _decoder(stream), container.demux(stream)
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
            if not started:
                warn_of_hdr(name_of(path), frame.color_trc)
            started = True
            yield frame
        if damaged and started:
            logger.warning(f"{name_of(path)}: damaged; only the frames before the damage are used.")
            return
        if packet is None:
            return
        if drained:
            decoder.flush_buffers()


def _to_rgb(
    path: Path | bytes,
    frame: av.VideoFrame,
    *,
    size: tuple[int, int],
    background: Color,
    reformatter: VideoReformatter,
) -> np.ndarray:
    has_opacity = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    # Streams may change their size on the way; everything comes in the size of the first frame.
    try:
        # By a reformatter of this reading alone: that of a thread, which PyAV 19 takes by default, keeps threads of its own, for
        # which a fork of the process (a loader's worker) would wait for ever.
        pixels = reformatter.reformat(
            frame, width=size[0], height=size[1], format="rgba" if has_opacity else "rgb24", threads=1
        ).to_ndarray()
    except av.error.FFmpegError as error:
        raise VideoReadError(
            f"{name_of(path)}: FFmpeg can't turn its colours ({frame.format.name}) into RGB ({error.strerror}); the video is "
            "damaged, or in colours that are rarely used: encode it anew, as H.264 for example."
        ) from error
    if has_opacity:
        pixels = lay_on_background(pixels, background)
    is_turned, mirror_x, mirror_y = display_turn(frame)
    if is_turned:
        pixels = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(pixels[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1])


def to_uint8_frames(video, background: Color = WHITE) -> np.ndarray:
    """Frames in any of diffusers' forms → `uint8` array (F, H, W, 3).

    Args:
        video: a path; one PIL image or a list of them, turned upright by their EXIF; an array (F, H, W, 3) or a list of
            (H, W, 3); a tensor (F, 3, H, W) or a list of (3, H, W). Arrays and tensors are `uint8`, or floating point in
            [0, 1], which is scaled by 255 and rounded (half to even). A fourth channel is opacity.
        background: red, green and blue, 0 to 255, behind what is transparent.

    Raises:
        ValueError: no frames, frames of different sizes, another shape or type, NaN, values outside [0, 1].
        VideoReadError: the path cannot be read.
    """
    check_background(background)
    if isinstance(video, str | Path):
        return read_video(video, background=background).frames
    if isinstance(video, Image.Image):
        video = [video]
    if isinstance(video, list | tuple):
        frames = [picture_to_rgb(upright(f), background) if isinstance(f, Image.Image) else f for f in video]
        if not frames:
            raise ValueError("The video has no frames; give at least one.")
        has_tensors = _is_tensor(frames[0])
        frames = [_to_array(frame) for frame in frames]
        shapes = sorted({frame.shape for frame in frames})
        if len(shapes) > 1:
            raise ValueError(f"The frames of one video differ in shape: {shapes}; resize them to one size first.")
        video = np.stack(frames)
    else:
        has_tensors = _is_tensor(video)
        video = _to_array(video)
    if has_tensors:
        # With opacity, but 3 pixels wide: rather an array's order.
        if video.ndim != 4 or video.shape[1] not in (3, 4) or video.shape[1::2] == (4, 3):
            raise ValueError(f"A video tensor is (frames, 3, height, width), not {video.shape}; permute or index it.")
        video = video.transpose(0, 2, 3, 1)
    if video.ndim != 4 or video.shape[3] not in (3, 4) or video.shape[1::2] == (3, 4):
        raise ValueError(f"A video array is (frames, height, width, 3), not {video.shape}; transpose or index it.")
    if video.size == 0:
        raise ValueError(f"The video is empty: its shape is {video.shape}; give at least one frame.")
    if video.dtype != np.uint8:
        video = _floats_to_uint8(video)
    return video if video.shape[3] == 3 else lay_on_background(video, background)


def _is_tensor(frames) -> bool:
    return hasattr(frames, "detach")  # so that this file does not import PyTorch, and a wrong path is refused at once


def _to_array(frames) -> np.ndarray:
    if not _is_tensor(frames):
        return np.asarray(frames)
    frames = frames.detach().cpu()
    return (frames.float() if frames.is_floating_point() else frames).numpy()


def _floats_to_uint8(video: np.ndarray) -> np.ndarray:
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
    width: int, height: int, *, longest_side: int = 320, multiple: int = 16
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of a frame after scaling, and after the centre crop, as the published weights were trained.

    Frames are only ever made smaller. Sizes are rounded after scaling, then cut down to `multiple`.

    Raises:
        ValueError: `longest_side` is less than `multiple`, or a side would be.
    """
    if multiple < 1 or longest_side < multiple:
        raise ValueError(
            f"longest_side={longest_side} must be at least {max(multiple, 1)} pixels, a multiple of the model."
        )
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


def resize_and_crop(frames: np.ndarray, longest_side: int = 320, *, multiple: int = 16) -> np.ndarray:
    """Scales frames so that the longest side is at most `longest_side`, then crops the centre to multiples.

    The preparation that the published weights were trained with, to the last bit: box halving while the shorter side
    is at least twice `longest_side`, then bicubic, sizes by [`target_size`].

    Args:
        frames: `uint8` (H, W, 3) or (F, H, W, 3).

    Returns:
        `uint8` with the same number of dimensions.
    """
    resized, cropped = target_size(frames.shape[-2], frames.shape[-3], longest_side=longest_side, multiple=multiple)
    return _resize_and_crop(frames, longest_side, resized=resized, cropped=cropped)


def resize_to_cover(frames: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Scales frames, up or down, to just cover `height` x `width`, then crops the centre to exactly that size.

    Args:
        frames: `uint8` (H, W, 3) or (F, H, W, 3).

    Returns:
        `uint8` (height, width, 3) or (F, height, width, 3).

    Raises:
        ValueError: `height` or `width` is not at least 1.
    """
    if min(height, width) < 1:
        raise ValueError(f"height={height} and width={width} must be at least 1 pixel.")
    size = (frames.shape[-2], frames.shape[-3])
    longest_side = max(height, width)
    while min(size) >= 2 * longest_side:
        size = (size[0] // 2, size[1] // 2)
    scale = max(width / size[0], height / size[1])
    resized = (max(width, round(size[0] * scale)), max(height, round(size[1] * scale)))
    return _resize_and_crop(frames, longest_side, resized=resized, cropped=(width, height))


def _resize_and_crop(frames, longest_side, *, resized, cropped) -> np.ndarray:
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
def written_whole(path: str | Path, suffixes: tuple[str, ...]):
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


def write_video(path: str | Path, frames, *, fps: float, crf: int = 18) -> Path:
    """Writes a video that browsers play: `.mp4` (H.264), `.webm` (VP9) or `.gif`, by the suffix.

    An MP4 lasts F / fps seconds exactly, a WebM to 1/1000 s, a GIF to 1/100 s (whose equal neighbours become one).
    Both video codecs store 4:2:0, so an odd width or height is padded by repeating the last column or row. Colours are
    BT.709 and tagged so. The file appears under its name only when complete; missing folders are made.

    Args:
        frames: anything that [`to_uint8_frames`] takes.
        fps: frames per second, at most [`MAX_FPS`]; `30000 / 1001` is kept exactly. At most 50 for a GIF, which browsers
            slow down above.
        crf: quality of `.mp4` (0 to 51) and `.webm` (0 to 63); smaller is better and larger in bytes.

    Raises:
        ValueError: another suffix, `fps` out of range, or bad frames.
    """
    frames = to_uint8_frames(frames)
    check_rate(fps)
    with written_whole(path, (".mp4", ".webm", ".gif")) as unfinished:
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
            # The fraction nearest to a rate below 1 may be 0; that nearest to its inverse is not.
            rate = (
                Fraction(fps).limit_denominator(1001) if fps >= 1 else 1 / (1 / Fraction(fps)).limit_denominator(1001)
            )
            _encode(unfinished, frames, rate=rate, crf=crf)
    return Path(path)


def _encode(path: Path, frames: np.ndarray, *, rate: Fraction, crf: int) -> None:
    codec, options = {
        # "cpu-independent": else the same frames come out differently from run to run, by a few tenths of an 8-bit level.
        ".mp4": ("libx264", {"crf": str(crf), "x264-params": "cpu-independent=1"}),
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
        colours = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
        reformatter = VideoReformatter()  # its own, as in `_to_rgb`
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame = reformatter.reformat(frame, format="yuv420p", **colours)
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
