"""Which frames of a video a training sample takes, and at which size.

Everything here follows from its arguments: the same seed, video and draw give the same frames, wherever they are read.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..video_io import (
    VideoInfo,
    VideoReadError,
    check_rate,
    read_video,
    resize_and_crop,
    resize_to_cover,
    target_size,
)


def seeded_generator(*numbers: int | str) -> torch.Generator:
    """A CPU generator whose stream is set by the numbers alone, for example (seed, epoch)."""
    digest = hashlib.blake2b("/".join(map(str, numbers)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class Window:
    """Which frames of a video one sample takes.

    Attributes:
        start: number of the first one among the source's frames.
        interval: source frames from one to the next; 0 where the sampling has a target rate.
        num_frames: how many.
    """

    start: int
    interval: int
    num_frames: int


@dataclass(frozen=True)
class Sampling:
    """How samples are taken from videos (paper, tables 9–12; the reference draws the same).

    Attributes:
        max_num_frames: frames N of a sample.
        min_num_frames: shorter videos give samples of fewer frames, down to this; `None`: they are left out.
        frame_interval: smallest and largest number of source frames from one frame to the next; drawn uniformly, within
            what fits into the video.
        fps: frames a second of a sample, instead of an interval.
        longest_side: frames are scaled down to this and cropped to multiples of 16, as [`~video_io.resize_and_crop`].
        height, width: or scaled to cover this size and cropped to it, as [`~video_io.resize_to_cover`].

    Raises:
        ValueError: a number out of range, `fps` together with an interval, or one of height and width alone.
    """

    max_num_frames: int
    min_num_frames: int | None = None
    frame_interval: tuple[int, int] = (1, 1)
    fps: float | None = None
    longest_side: int = 320
    height: int | None = None
    width: int | None = None

    def __post_init__(self):
        low, high = self.frame_interval
        if not 1 <= (self.min_num_frames or self.max_num_frames) <= self.max_num_frames:
            raise ValueError(
                f"min_num_frames={self.min_num_frames} must lie in 1..max_num_frames={self.max_num_frames}."
            )
        if not 1 <= low <= high:
            raise ValueError(f"frame_interval={self.frame_interval} must be a range from 1 on, such as (4, 12).")
        if self.fps is not None:
            check_rate(self.fps)
            if (low, high) != (1, 1):
                raise ValueError(f"fps={self.fps} must come without frame_interval={self.frame_interval}.")
        if self.longest_side < 16:
            raise ValueError(f"longest_side={self.longest_side} must be at least 16 pixels.")
        sides = [16 if side is None else side for side in (self.height, self.width)]
        if (self.height is None) != (self.width is None) or any(side < 16 or side % 16 for side in sides):
            raise ValueError(f"Give height={self.height} and width={self.width} together, as multiples of 16.")

    def size(self, info: VideoInfo) -> tuple[int, int]:
        """(height, width) of a video's frames after scaling; a `ValueError` if it is too thin."""
        if self.height is not None:
            return self.height, self.width
        return target_size(info.width, info.height, longest_side=self.longest_side)[1][::-1]

    def resize(self, frame: np.ndarray) -> np.ndarray:
        """`uint8` (H, W, 3) → (h, w, 3)."""
        if self.height is not None:
            return resize_to_cover(frame, height=self.height, width=self.width)
        return resize_and_crop(frame, self.longest_side)

    def length(self, info: VideoInfo) -> int:
        """How many frames a sample of this video has: one of at most ten lengths, or 0 if the video is too short."""
        if self.fps is None:
            available = (info.num_frames - 1) // self.frame_interval[0] + 1
        else:
            # The last frame is held to be shown for an instant: its duration is only a guess of most files.
            available = int(info.timestamps[-1] * self.fps + 1e-6) + 1
        if available >= self.max_num_frames:
            return self.max_num_frames
        least = self.min_num_frames or self.max_num_frames
        if available < least:
            return 0
        step = -(-(self.max_num_frames - least) // 9)
        return least + (available - least) // step * step

    def draw(self, info: VideoInfo, generator: torch.Generator) -> Window:
        """A window of a usable video: its interval uniform among those that fit, then its start."""
        interval_share, start_share = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        return self.window_at(info, interval_share=interval_share, start_share=start_share)

    def window_at(self, info: VideoInfo, *, interval_share: float, start_share: float) -> Window:
        """The window at these places, each in [0, 1), among the intervals and then the starts that fit."""
        num_frames = self.length(info)
        if self.fps is not None:
            room = info.timestamps[-1] - (num_frames - 1) / self.fps
            num_starts = int(np.searchsorted(info.timestamps, room + 1e-6, side="right"))
            return Window(int(start_share * num_starts), 0, num_frames)
        low, high = self.frame_interval
        if num_frames > 1:
            high = min(high, (info.num_frames - 1) // (num_frames - 1))
        interval = low + int(interval_share * (high - low + 1))
        num_starts = info.num_frames - (num_frames - 1) * interval
        return Window(int(start_share * num_starts), interval, num_frames)

    def frame_indices(self, info: VideoInfo, window: Window) -> np.ndarray:
        """The numbers of the source's frames that a window shows; with `fps` one may come more than once."""
        steps = np.arange(window.num_frames)
        if self.fps is None:
            return window.start + window.interval * steps
        times = info.timestamps[window.start] + steps / self.fps
        return np.searchsorted(info.timestamps, times + 1e-6, side="right") - 1

    def read(self, source: Path | bytes, info: VideoInfo, *, window: Window) -> np.ndarray:
        """The frames of a window, `uint8` (F, h, w, 3), each decoded once.

        Raises:
            VideoReadError: the frames do not decode, or not at the times that the packets promised.
        """
        video = read_video(
            source,
            start=float(info.timestamps[window.start]),
            origin=info.origin,
            fps=self.fps,
            frame_interval=window.interval or 1,
            max_frames=window.num_frames,
            min_frames=window.num_frames,
            transform=self.resize,
        )
        if self.fps is None:
            expected = info.timestamps[self.frame_indices(info, window)]
            wrong = np.flatnonzero(np.abs(video.timestamps - expected) > 1e-3)
            if wrong.size:
                raise VideoReadError(
                    f"frame {wrong[0]} of the sample from {expected[0]:g} s on was shown at "
                    f"{video.timestamps[wrong[0]]:g} s, not at {expected[wrong[0]]:g} s as its packet says: the video "
                    "is damaged there; mend it by encoding it anew, or leave it out."
                )
        return video.frames
