"""Clips handed out as soon as they are predicted, one ahead: what makes a rollout live."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import torch

from .diffusers_internals import has_model_hooks
from .frame_latents import VideoInput
from .pipeline_output import VideoGPTPipelineOutput
from .rollout import OneCallAtATime, Rollout


class ClipPredictor(Protocol):
    """What a stream needs of the pipeline that it predicts with."""

    one_call: OneCallAtATime
    _interrupt: bool  # set to `True`, it ends the clip in work after its current step

    def predict_clip(self, rollout: Rollout, num_frames: int) -> torch.Tensor: ...

    def prepare_frames(self, video: VideoInput, height: int, width: int) -> torch.Tensor: ...

    def encode_frames(self, frames: torch.Tensor, generator: Any) -> torch.Tensor: ...

    def decode_latents(self, latents: torch.Tensor, output_type: str) -> Any: ...

    def maybe_free_model_hooks(self) -> None: ...


class VideoGPTStream:
    """Iterates over predicted clips; made by [`VideoGPTPipeline.stream`].

    One clip ahead is computed in a thread of its own, so the pipeline is busy until the stream ends or is closed.

    Args:
        pipe: the pipeline that made it, which has begun a call; the stream ends that call.
        rollout: what it has prepared.
        clip_lengths: of the clips to come; the stream ends with them.

    ```py
    with pipe.stream(video="given.mp4", frames_per_clip=4) as stream:
        for clip in stream:
            play(clip.frames)
            stream.observe(camera.read(4))  # optional: what really happened
    ```
    """

    def __init__(self, pipe: ClipPredictor, rollout: Rollout, *, clip_lengths: Iterator[int]):
        self._is_closed = False
        self._pipe, self._rollout, self._clip_lengths = pipe, rollout, clip_lengths
        generator = rollout.generator
        self._generators = generator if isinstance(generator, list) else [] if generator is None else [generator]
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="videogpt-stream")
        self._future: Future | None = None  # of the clip in work; `None` when the stream has ended
        self._latents_before_clip = rollout.history.latents  # what `observe` goes back to
        self._begin_next()

    def _begin_next(self, clip: torch.Tensor | None = None) -> None:
        """Remembers the clip that was just finished and begins the one after it."""
        self._clip_length = next(self._clip_lengths, None)
        if self._clip_length is None:
            self._future = None
            return
        self._random_states = [generator.get_state() for generator in self._generators]
        if clip is not None:
            self._rollout.remember(clip)
        self._submit()

    def _submit(self) -> None:
        self._pipe._interrupt = False
        self._future = self._worker.submit(self._pipe.predict_clip, self._rollout, self._clip_length)

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
        self._latents_before_clip = self._rollout.history.latents
        if has_model_hooks(self._pipe):  # they move one model at a time: decode before the next clip begins
            frames = self._pipe.decode_latents(clip, self._rollout.output_type)
            self._begin_next(clip)
        else:
            self._begin_next(clip)
            frames = self._pipe.decode_latents(clip, self._rollout.output_type)
        if self._future is None:  # the last clip is out: the pipeline is free again
            self.close()
        return VideoGPTPipelineOutput(frames=frames)

    def __enter__(self) -> "VideoGPTStream":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def __del__(self):
        self.close()  # a stream that was left without a word

    def observe(self, video: VideoInput) -> None:
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
        rollout, batch_size = self._rollout, self._rollout.batch_size
        frames = self._pipe.prepare_frames(video, rollout.height, rollout.width)
        if len(frames) not in (1, batch_size):
            raise ValueError(f"{len(frames)} videos observed, {batch_size} are predicted: give one, or as many.")
        self._stop_work()
        for generator, state in zip(self._generators, self._random_states, strict=True):
            generator.set_state(state)
        rollout.history.replace(self._latents_before_clip)
        observed = self._pipe.encode_frames(frames, rollout.generator)
        rollout.history.append(observed.repeat_interleave(batch_size // len(observed), dim=0))
        self._latents_before_clip = rollout.history.latents
        self._submit()

    def close(self) -> None:
        """Stops the work and ends the stream; the pipeline is free again."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._future is not None:
            self._stop_work()
            self._future = None
        self._worker.shutdown()
        self._pipe.maybe_free_model_hooks()
        self._pipe.one_call.end()
