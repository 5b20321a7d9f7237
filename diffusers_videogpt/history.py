"""What a rollout remembers: the window of clean frames, and what the transformer keeps of them.

Shapes: B videos, C latent channels, F frames, h × w latent size.
"""

from dataclasses import dataclass, field

import torch

from .actions import join_actions
from .kv_cache import VideoGPTKVCache


# Positions in a rolling cache only grow, and their angles lose precision: behind so many frames it is filled anew.
MAX_PAST_FRAMES = 1000


@dataclass
class History:
    """The clean frames that the next clip is predicted from: the last `max_frames` of all that were appended.

    Attributes:
        max_frames: length of the window.
        latents: (B, C, F, h, w); `None` while there are none.
        actions: that led to these frames, (B, F) or (B, F, D) of [`~actions.ActionSpace.encode`]; `None` for "no action".
        kv_cache: what the transformer keeps of them, brought up to date by [`~rollout.encode_history`]; `None`
            to compute the whole history anew at every step.
        rolling: whether the caches only forget the frames that leave the window, instead of being filled anew. What the
            others have computed from those frames then stays: nearly the same prediction, in less time.
        conditions: what is asked for in front of these frames, as arguments of the transformer; it is in the cache too.
        negative_conditions: what guidance leads away from; `None` without that guidance.
        negative_kv_cache: as `kv_cache`, of the frames behind `negative_conditions`.
    """

    max_frames: int
    latents: torch.Tensor | None = None
    kv_cache: VideoGPTKVCache | None = None
    rolling: bool = False
    conditions: dict[str, torch.Tensor] = field(default_factory=dict)
    negative_conditions: dict[str, torch.Tensor] | None = None
    negative_kv_cache: VideoGPTKVCache | None = None
    actions: torch.Tensor | None = None

    @property
    def num_frames(self) -> int:
        """F; 0 while there are none."""
        return 0 if self.latents is None else self.latents.shape[2]

    @property
    def _num_past_frames(self) -> int:
        return max((c.next_frame for c in (self.kv_cache, self.negative_kv_cache) if c is not None), default=0)

    def new_frames(self, dtype: torch.dtype, *, is_negative: bool = False) -> dict[str, torch.Tensor | None]:
        """The frames that `kv_cache` (or `negative_kv_cache`) lacks, and the conditions if it has none yet, as arguments of the
        transformer; none if it lacks none, or there is no such cache."""
        kv_cache, conditions = self.kv_cache, self.conditions
        if is_negative:
            kv_cache, conditions = self.negative_kv_cache, self.negative_conditions
        if kv_cache is None or kv_cache.num_frames == self.num_frames:
            return {}
        first = kv_cache.num_frames
        frames = {"clean_hidden_states": self.latents[:, :, first:].to(dtype)}
        frames["clean_actions"] = None if self.actions is None else self.actions[:, first:]
        return frames if kv_cache.num_tokens else frames | conditions

    def append(self, latents: torch.Tensor, actions: torch.Tensor | None = None) -> None:
        """Adds (B, C, F, h, w) frames, and the actions that led to them, behind the last; the oldest that no longer fit are
        dropped."""
        actions = join_actions(self.actions, self.num_frames, second=actions, num_second=latents.shape[2])
        latents = latents if self.latents is None else torch.cat([self.latents, latents], dim=2)
        num_dropped = max(latents.shape[2] - self.max_frames, 0)
        actions = None if actions is None else actions[:, num_dropped:]
        if num_dropped and (not self.rolling or self._num_past_frames > MAX_PAST_FRAMES):
            self.replace(latents[:, :, num_dropped:], actions)
            return
        self.latents, self.actions = latents[:, :, num_dropped:], actions
        for cache in (self.kv_cache, self.negative_kv_cache):
            if cache is not None and min(num_dropped, cache.num_frames):
                cache.drop_oldest(min(num_dropped, cache.num_frames))

    def replace(self, latents: torch.Tensor | None, actions: torch.Tensor | None = None) -> None:
        """Makes `latents`, to which `actions` led, the whole history, in the place of what it was. The caches are emptied:
        every later frame was computed from the frames that stood before it."""
        self.latents, self.actions = latents, actions
        for cache in (self.kv_cache, self.negative_kv_cache):
            if cache is not None:
                cache.reset()
