"""The keys and values that a rollout keeps of its history, so that no denoising step computes them again.

Shapes: B samples, T tokens, N heads of K channels.
"""

import torch


class VideoGPTLayerCache:
    """One layer's part of a [`VideoGPTKVCache`]: memory for (B, `max_tokens`, N, K) keys and values, and room for a clip.

    New keys and values are written behind the committed tokens. The next write replaces them, unless
    [`VideoGPTKVCache.commit`] has added them to the committed ones.

    Args:
        max_tokens: the most tokens of history that will be held.
        clip_tokens: room behind them for one noisy clip.
    """

    def __init__(self, max_tokens: int, clip_tokens: int = 0):
        self.max_tokens, self.clip_tokens = max_tokens, clip_tokens
        self.num_tokens = 0
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    @property
    def batch_size(self) -> int | None:
        """Samples that it was made for; `None` until something is written."""
        return None if self.keys is None else self.keys.shape[0]

    def check_room(self, num_tokens: int) -> None:
        """Raises a `ValueError` if `num_tokens` more clean tokens would not fit."""
        if self.num_tokens + num_tokens > self.max_tokens:
            raise ValueError(
                f"The cache holds {self.num_tokens} of at most {self.max_tokens} tokens, {num_tokens} more do not fit: "
                "make it with a larger `max_tokens`, or `reset` it and encode a shorter history."
            )

    def place(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes (B, T, N, K) `key` and `value` of clean tokens, of a noisy clip, or of both; returns views of everything up to
        their end.

        The history is not copied, except when a clip does not fit behind it: then larger memory is taken, once.
        """
        if self.keys is None:
            self.keys = key.new_empty(key.shape[0], self.max_tokens + self.clip_tokens, *key.shape[2:])
            self.values = torch.empty_like(self.keys)
        if self.num_tokens + key.shape[1] > self.keys.shape[1]:
            self.keys, self.values = (
                self._enlarged(x, self.max_tokens + key.shape[1]) for x in (self.keys, self.values)
            )
        end = self.num_tokens + key.shape[1]
        self.keys[:, self.num_tokens : end] = key
        self.values[:, self.num_tokens : end] = value
        return self.keys[:, :end], self.values[:, :end]

    def _enlarged(self, memory: torch.Tensor, max_tokens: int) -> torch.Tensor:
        larger = memory.new_empty(memory.shape[0], max_tokens, *memory.shape[2:])
        larger[:, : self.num_tokens] = memory[:, : self.num_tokens]
        return larger


class VideoGPTKVCache:
    """Keys and values of the condition tokens and the clean history, one [`VideoGPTLayerCache`] a layer.

    Clean tokens never see noisy ones, so what they contribute to attention is the same at every denoising step: it is
    computed once, and later clips are appended. A noisy clip is placed behind them, so that attention reads both in one piece
    and no step copies the history. The memory is taken once; only a clip longer than foreseen takes it anew.

    Args:
        num_layers: number of transformer blocks.
        max_tokens: the most condition and clean tokens that will ever be held.
        clip_tokens: room for one noisy clip behind the `max_tokens`.
    """

    def __init__(self, num_layers: int, max_tokens: int, *, clip_tokens: int = 0):
        self.num_frames = 0
        self.num_dropped_frames = 0
        self._frame_of_token = torch.empty(0, dtype=torch.long)  # −1 for condition tokens
        self.layers = [VideoGPTLayerCache(max_tokens, clip_tokens) for _ in range(num_layers)]

    @property
    def num_tokens(self) -> int:
        """Tokens that every layer holds."""
        return self.layers[0].num_tokens

    @property
    def batch_size(self) -> int | None:
        """Samples that it was made for; `None` until something is appended."""
        return self.layers[0].batch_size

    @property
    def next_frame(self) -> int:
        """Index of the next frame, from which its positions follow: dropped frames count."""
        return self.num_dropped_frames + self.num_frames

    def commit(self, num_condition_tokens: int, num_frames: int, *, num_patches: int) -> None:
        """Adds what every layer has appended to the committed tokens.

        Args:
            num_condition_tokens: how many of the new tokens stand for conditions; they come first.
            num_frames: clean frames behind them: their begin tokens, then their patches, then their end tokens.
            num_patches: patches in a frame.
        """
        frames = torch.arange(self.next_frame, self.next_frame + num_frames)
        conditions = torch.full((num_condition_tokens,), -1)
        self._frame_of_token = torch.cat(
            [self._frame_of_token, conditions, frames, frames.repeat_interleave(num_patches), frames]
        )
        self._set_num_tokens(len(self._frame_of_token))
        self.num_frames += num_frames

    def drop_oldest(self, num_frames: int) -> None:
        """Forgets the `num_frames` oldest frames and moves the others to the front.

        The keys and values of the others stay as they are, although they were computed while those frames were seen."""
        self.num_dropped_frames += num_frames
        self.num_frames -= num_frames
        kept = ((self._frame_of_token < 0) | (self._frame_of_token >= self.num_dropped_frames)).nonzero()[:, 0]
        for layer in self.layers:
            for memory in (layer.keys, layer.values):
                memory[:, : len(kept)] = memory[:, kept.to(memory.device)]
        self._frame_of_token = self._frame_of_token[kept]
        self._set_num_tokens(len(kept))

    def reset(self) -> None:
        """Forgets what it holds, keeps the memory."""
        self._frame_of_token = self._frame_of_token[:0]
        self._set_num_tokens(0)
        self.num_frames = self.num_dropped_frames = 0

    def _set_num_tokens(self, num_tokens: int) -> None:
        for layer in self.layers:
            layer.num_tokens = num_tokens
