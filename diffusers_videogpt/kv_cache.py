"""The keys and values that a rollout keeps of its history, so that no denoising step computes them again.

Shapes: B samples, T tokens, N heads of K channels.
"""

import torch


class VideoGPTLayerCache:
    """One layer's part of a [`VideoGPTKVCache`]: memory for (B, `max_tokens`, N, K) keys and values."""

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def append(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes (B, T, N, K) `key` and `value` behind what is committed; returns all of it as views.

        Raises:
            ValueError: if more than `max_tokens` would be held, or B changes.
        """
        end = self.num_tokens + key.shape[1]
        if end > self.max_tokens:
            raise ValueError(
                f"The cache holds {self.num_tokens} of at most {self.max_tokens} tokens, {key.shape[1]} more do not fit: "
                "make it with a larger `max_tokens`, or `reset` it and encode a shorter history."
            )
        if self.keys is None:
            self.keys = key.new_empty(key.shape[0], self.max_tokens, *key.shape[2:])
            self.values = torch.empty_like(self.keys)
        if self.keys.shape[0] != key.shape[0]:
            raise ValueError(f"The cache was made for {self.keys.shape[0]} samples, got {key.shape[0]}: make another.")
        self.keys[:, self.num_tokens : end] = key
        self.values[:, self.num_tokens : end] = value
        return self.keys[:, :end], self.values[:, :end]

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The (B, `num_tokens`, N, K) keys and values, as views."""
        if not self.num_tokens:
            raise ValueError("The `kv_cache` is empty: encode `clean_hidden_states` into it first, or pass no cache.")
        return self.keys[:, : self.num_tokens], self.values[:, : self.num_tokens]


class VideoGPTKVCache:
    """Keys and values of the condition tokens and the clean history, one [`VideoGPTLayerCache`] a layer.

    Clean tokens never see noisy ones, so what they contribute to attention is the same at every denoising step: it is
    computed once, and later clips are appended. The memory is taken once, for `max_tokens`.

    Args:
        num_layers: number of transformer blocks.
        max_tokens: the most tokens that will ever be held.
    """

    def __init__(self, num_layers: int, max_tokens: int):
        self.num_frames = 0
        self.num_dropped_frames = 0
        self._frame_of_token = torch.empty(0, dtype=torch.long)  # −1 for condition tokens
        self.layers = [VideoGPTLayerCache(max_tokens) for _ in range(num_layers)]

    @property
    def num_tokens(self) -> int:
        """Tokens that every layer holds."""
        return self.layers[0].num_tokens

    @property
    def batch_size(self) -> int | None:
        """Samples that it was made for; `None` until something is appended."""
        keys = self.layers[0].keys
        return None if keys is None else keys.shape[0]

    @property
    def next_frame(self) -> int:
        """Index of the next frame, from which its positions follow: dropped frames count."""
        return self.num_dropped_frames + self.num_frames

    def commit(self, num_condition_tokens: int, num_frames: int, *, num_patches: int) -> None:
        """Counts in what every layer has appended: `num_condition_tokens`, then `num_frames` of `num_patches` by rank."""
        frames = torch.arange(self.next_frame, self.next_frame + num_frames)
        conditions = torch.full((num_condition_tokens,), -1)
        self._frame_of_token = torch.cat(
            [self._frame_of_token, conditions, frames, frames.repeat_interleave(num_patches), frames]
        )
        self._set_num_tokens(len(self._frame_of_token))
        self.num_frames += num_frames

    def drop_oldest(self, num_frames: int) -> None:
        """Forgets the `num_frames` oldest frames and moves up the rest, which keeps what it has computed from them."""
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
