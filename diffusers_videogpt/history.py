"""What a rollout remembers: the window of clean frames, and the stream that predicts from it clip after clip.

Shapes: B videos, C latent channels, F frames, h × w latent size.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .conditions import Conditions
from .pipeline_output import VideoGPTPipelineOutput
from .transformer_videogpt import VideoGPTKVCache


if TYPE_CHECKING:
    from .pipeline_videogpt import VideoGPTPipeline


# Positions in a rolling cache only grow, and their angles lose precision: behind so many frames it is filled anew.
MAX_PAST_FRAMES = 1000


@dataclass
class History:
    """The clean frames that the next clip is predicted from: the last `max_frames` of all that were appended.

    Attributes:
        max_frames: length of the window.
        latents: (B, C, F, h, w); `None` while there are none.
        kv_cache: what the transformer keeps of them, brought up to date by [`VideoGPTPipeline.encode_history`]; `None`
            to compute the whole history anew at every step.
        rolling: whether the caches only forget the frames that leave the window, instead of being filled anew. What the
            others have computed from those frames then stays: nearly the same prediction, in less time.
        conditions: what is asked for in front of these frames; it is in the cache too.
        negative_conditions: what guidance leads away from; `None` without that guidance.
        negative_kv_cache: as `kv_cache`, of the frames behind `negative_conditions`.
    """

    max_frames: int
    latents: torch.Tensor | None = None
    kv_cache: VideoGPTKVCache | None = None
    rolling: bool = False
    conditions: Conditions = field(default_factory=dict)
    negative_conditions: Conditions | None = None
    negative_kv_cache: VideoGPTKVCache | None = None

    @property
    def num_frames(self) -> int:
        return 0 if self.latents is None else self.latents.shape[2]

    @property
    def _num_past_frames(self) -> int:
        return max((c.next_frame for c in (self.kv_cache, self.negative_kv_cache) if c is not None), default=0)

    def append(self, latents: torch.Tensor) -> None:
        """Adds (B, C, F, h, w) frames behind the last; the oldest that no longer fit are dropped."""
        latents = latents if self.latents is None else torch.cat([self.latents, latents], dim=2)
        num_dropped = max(latents.shape[2] - self.max_frames, 0)
        if num_dropped and (not self.rolling or self._num_past_frames > MAX_PAST_FRAMES):
            self.rewind(latents[:, :, num_dropped:])
            return
        self.latents = latents[:, :, num_dropped:]
        for cache in (self.kv_cache, self.negative_kv_cache):
            if cache is not None and min(num_dropped, cache.num_frames):
                cache.drop_oldest(min(num_dropped, cache.num_frames))

    def rewind(self, latents: torch.Tensor | None) -> None:
        """Makes `latents` the whole history. All later frames were computed from those before: the cache is void."""
        self.latents = latents
        for cache in (self.kv_cache, self.negative_kv_cache):
            if cache is not None:
                cache.reset()


class VideoGPTStream:
    """Iterates over predicted clips; made by [`VideoGPTPipeline.stream`].

    One clip ahead is computed in a thread of its own, so the pipeline is busy until the stream ends or is closed.

    Args:
        pipe: the pipeline that made it.
        history: the given frames.
        predict_next: number of frames → the next clip's latents (B, C, F, h, w).
        clip_lengths: of the clips to come; the stream ends with them.
        frame_size: height and width in pixels.
        history_retention: share of signal, in (0, 1], that predicted frames keep in the history.
        generator: of the noise, one or one a video; given back to where it was when a clip is thrown away.
        output_type: "pil", "np", "pt" or "latent".
        batch_size: videos predicted side by side.

    ```py
    with pipe.stream(video="given.mp4", frames_per_clip=4) as stream:
        for clip in stream:
            play(clip.frames)
            stream.observe(camera.read(4))  # optional: what really happened
    ```
    """

    def __init__(
        self,
        pipe: "VideoGPTPipeline",
        history: History,
        predict_next: Callable[[int], torch.Tensor],
        clip_lengths: Iterator[int],
        frame_size: tuple[int, int],
        history_retention: float,
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
        batch_size: int,
    ):
        self._pipe, self._history, self._predict_next = pipe, history, predict_next
        self._clip_lengths, self._frame_size, self._retention = clip_lengths, frame_size, history_retention
        self._generator, self._output_type, self._batch_size = generator, output_type, batch_size
        self._generators = generator if isinstance(generator, list) else [] if generator is None else [generator]
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="videogpt-stream")
        self._latents_before_clip = history.latents  # what `observe` goes back to
        self._begin_next()

    def _begin_next(self, clip: torch.Tensor | None = None) -> None:
        """Remembers the clip that was just finished and begins the one after it."""
        self._clip_length = next(self._clip_lengths, None)
        if self._clip_length is None:
            self._future = None
            return
        self._random_states = [generator.get_state() for generator in self._generators]
        if clip is not None:
            self._pipe.remember(self._history, clip, self._retention, self._generator)
        self._submit()

    def _submit(self) -> None:
        self._pipe._interrupt = False
        self._future = self._worker.submit(self._predict_next, self._clip_length)

    def _stop_work(self) -> None:
        self._pipe._interrupt = True
        wait([self._future])

    def __iter__(self) -> "VideoGPTStream":
        return self

    def __next__(self) -> VideoGPTPipelineOutput:
        if self._future is None:
            self.close()
            raise StopIteration
        clip = self._future.result()
        self._latents_before_clip = self._history.latents
        if getattr(
            self._pipe, "_all_hooks", None
        ):  # model offload moves one model at a time: decode before the next clip begins
            frames = self._pipe.decode_latents(clip, self._output_type)
            self._begin_next(clip)
        else:
            self._begin_next(clip)
            frames = self._pipe.decode_latents(clip, self._output_type)
        return VideoGPTPipelineOutput(frames=frames)

    def __enter__(self) -> "VideoGPTStream":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def observe(self, video) -> None:
        """Puts real frames into the history, in the place of the clip that was predicted last.

        Called again before the next clip, it adds the frames behind those. What was being computed is given up and begun
        again from the corrected history, with the same noise.

        Args:
            video: at least one frame, in any form that a call takes, of the size of the predicted ones.

        Raises:
            ValueError: if the frames can't be used, or the stream has ended.
        """
        if self._future is None:
            raise ValueError("The stream has ended: nothing would be predicted from these frames.")
        frames = self._pipe.prepare_frames(video, *self._frame_size)
        if len(frames) not in (1, self._batch_size):
            raise ValueError(f"{len(frames)} videos observed, {self._batch_size} are predicted: give one, or as many.")
        self._stop_work()
        for generator, state in zip(self._generators, self._random_states, strict=True):
            generator.set_state(state)
        self._history.rewind(self._latents_before_clip)
        observed = self._pipe.encode_frames(frames, self._generator)
        self._history.append(observed.repeat_interleave(self._batch_size // len(observed), dim=0))
        self._latents_before_clip = self._history.latents
        self._submit()

    def close(self) -> None:
        """Stops the work and ends the stream; the pipeline is free again."""
        if self._future is not None:
            self._stop_work()
            self._future = None
        self._worker.shutdown()
        self._pipe.maybe_free_model_hooks()
