"""Clips handed out as soon as they are predicted, one ahead: what makes a rollout live."""

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import torch

from .actions import Actions, join_actions
from .diffusers_internals import has_model_hooks
from .frame_latents import VideoInput
from .pipeline_output import VideoGPTPipelineOutput
from .rollout import OneCallAtATime, Rollout


class ClipPredictor(Protocol):
    """What a stream needs of the pipeline that it predicts with."""

    one_call: OneCallAtATime
    _interrupt: bool  # set to `True`, it ends the clip in work after its current step

    def predict_clip(
        self, rollout: Rollout, num_frames: int, *, actions: torch.Tensor | None = None
    ) -> torch.Tensor: ...

    def prepare_frames(self, video: VideoInput, height: int, width: int) -> torch.Tensor: ...

    def encode_frames(self, frames: torch.Tensor, generator: Any) -> torch.Tensor: ...

    def decode_latents(self, latents: torch.Tensor, output_type: str) -> Any: ...

    def maybe_free_model_hooks(self) -> None: ...


class VideoGPTStream:
    """Iterates over predicted clips; made by [`VideoGPTPipeline.stream`].

    One clip ahead is computed in a thread of its own, so the pipeline is busy until the stream ends or is closed. A model
    that takes actions waits to be told one, by [`act`], or to be asked for the clip, which then has "no action".

    Args:
        pipe: the pipeline that made it, which has begun a call; the stream ends that call.
        rollout: what it has prepared.
        clip_lengths: of the clips to come; the stream ends with them.

    ```py
    with pipe.stream(video="given.mp4", frames_per_clip=4) as stream:
        for clip in stream:
            play(clip.frames)
            stream.observe(camera.read(4))  # optional: what really happened

    with pipe.stream(video="given.mp4", frames_per_clip=1) as stream:  # a model that takes actions
        for key in keyboard:
            stream.act(key)
            play(next(stream).frames)
    ```
    """

    def __init__(self, pipe: ClipPredictor, rollout: Rollout, *, clip_lengths: Iterator[int]):
        self._is_closed = False
        self._pipe, self._rollout, self._clip_lengths = pipe, rollout, clip_lengths
        generator = rollout.generator
        self._generators = generator if isinstance(generator, list) else [] if generator is None else [generator]
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="videogpt-stream")
        # Of the clip in work; `None` before it is begun, and when the stream has ended.
        self._future: Future | None = None
        self._actions: torch.Tensor | None = None  # of the clip in work, or to come
        self._actions_done: torch.Tensor | None = None  # of the last clip, less those of frames observed in its place
        self._keep_history()
        self._begin_next()

    def _keep_history(self) -> None:
        """The history without the last clip is what `observe` goes back to."""
        history = self._rollout.history
        self._history_before_clip = (history.latents, history.actions)

    def _begin_next(self, clip: torch.Tensor | None = None) -> None:
        """Remembers the clip that was just finished and begins the one after it, unless that waits for its action."""
        self._future = None
        self._clip_length = next(self._clip_lengths, None)
        if self._clip_length is None:
            return
        self._random_states = self._states()
        if clip is not None:
            self._rollout.remember(clip, self._actions)
        self._actions_done, self._actions = self._actions, None
        if self._rollout.action_space is None:
            self._submit()

    def _states(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _set_states(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)

    def _submit(self) -> None:
        self._pipe._interrupt = False
        self._states_before_noise = self._states()
        self._future = self._worker.submit(
            self._pipe.predict_clip, self._rollout, self._clip_length, actions=self._actions
        )

    def _stop_work(self) -> None:
        if self._future is not None:
            self._pipe._interrupt = True
            wait([self._future])

    def __iter__(self) -> "VideoGPTStream":
        return self

    def __next__(self) -> VideoGPTPipelineOutput:
        if self._is_closed or self._clip_length is None:
            self.close()
            raise StopIteration
        if self._future is None:
            self._submit()
        clip = self._future.result()
        self._keep_history()
        if has_model_hooks(self._pipe):  # they move one model at a time: decode before the next clip begins
            frames = self._pipe.decode_latents(clip, self._rollout.output_type)
            self._begin_next(clip)
        else:
            self._begin_next(clip)
            frames = self._pipe.decode_latents(clip, self._rollout.output_type)
        if self._clip_length is None:  # the last clip is out: the pipeline is free again
            self.close()
        return VideoGPTPipelineOutput(frames=frames)

    def __enter__(self) -> "VideoGPTStream":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def __del__(self):
        if not sys.is_finalizing():  # when Python ends, what the pipeline needs to be freed is gone
            self.close()  # a stream that was left without a word

    def act(self, actions: Actions) -> None:
        """What is done before the next clip: it leads to its frames, and the clip is begun.

        Called again before the clip is taken, it replaces what was said before; the clip is begun again with the same noise.

        Args:
            actions: one for all frames of the clip, or a sequence of one a frame. Of several videos they are the same for
                all, or of shape (B, 1) or (B, F), with D numbers in the place of each if they are continuous.

        Raises:
            ValueError: if they are none of this model's, of another number of frames or videos, or the stream has ended.
        """
        if self._is_closed or self._clip_length is None:
            raise ValueError("The stream has ended: no clip follows that could be steered.")
        actions = self._rollout.encode_actions(actions, self._clip_length, is_held=True)
        if self._future is not None:
            self._stop_work()
            self._set_states(self._states_before_noise)
        self._actions = actions
        self._submit()

    def observe(self, video: VideoInput, actions: Actions | None = None) -> None:
        """Puts real frames into the history, in the place of the clip that was predicted last.

        Called again before the next clip, it adds the frames behind those. What was being computed is given up and begun
        again from the corrected history, with the same noise and actions.

        Args:
            video: at least one frame, in any form that a call takes, of the size of the predicted ones.
            actions: what led to these frames, one each. By default what was told by [`act`] for the frames in whose place
                they come, and "no action" behind those.

        Raises:
            ValueError: if the frames or actions can't be used, or the stream has ended.
        """
        if self._is_closed or self._clip_length is None:
            raise ValueError("The stream has ended: nothing would be predicted from these frames.")
        rollout, batch_size = self._rollout, self._rollout.batch_size
        frames = self._pipe.prepare_frames(video, rollout.height, rollout.width)
        if len(frames) not in (1, batch_size):
            raise ValueError(f"{len(frames)} videos observed, {batch_size} are predicted: give one, or as many.")
        num_frames = frames.shape[1]
        if actions is not None:
            actions = rollout.encode_actions(actions, num_frames, is_held=False)
        elif self._actions_done is not None:
            actions = self._actions_done[:, :num_frames]
            actions = join_actions(actions, actions.shape[1], second=None, num_second=num_frames - actions.shape[1])
        is_begun = self._future is not None
        self._stop_work()
        self._set_states(self._random_states)
        rollout.history.replace(*self._history_before_clip)
        observed = self._pipe.encode_frames(frames, rollout.generator)
        rollout.history.append(observed.repeat_interleave(batch_size // len(observed), dim=0), actions)
        self._keep_history()
        if self._actions_done is not None:
            self._actions_done = self._actions_done[:, num_frames:]
        if is_begun:
            self._submit()

    def close(self) -> None:
        """Stops the work and ends the stream; the pipeline is free again."""
        if self._is_closed:
            return
        self._is_closed = True
        self._stop_work()
        self._future = None
        self._worker.shutdown()
        self._pipe.maybe_free_model_hooks()
        self._pipe.one_call.end()
