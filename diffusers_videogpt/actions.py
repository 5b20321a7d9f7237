"""What leads from frame to frame in a world that is steered: actions as users give them, as the transformer takes them, and
their embedding.

An action belongs to the frame that it leads to: entry i of a list of actions stands for what was done before frame i was seen.
It is added to the tokens of its frame, so a model with actions has the same tokens, positions and masks as one without.

    discrete, `num_actions`: users count 0 … `num_actions` − 1, and −1 or `None` is "no action"; the transformer takes them
        plus 1, with 0 for "no action"
    continuous, `action_dim`: D numbers, and NaN in all of them or `None` is "no action"; the transformer takes them less their
        mean and divided by their standard deviation, which its configuration holds

"No action" adds nothing: a frame without is computed as by a model without actions.

Shapes: B videos, F frames, D numbers of a continuous action.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn as nn


# What a user may give: nested lists with `None` in them, arrays, tensors
Actions = int | Sequence | np.ndarray | torch.Tensor

NO_ACTION = -1  # of discrete actions, as users and data have it


def make_action_embed(num_actions: int | None, action_dim: int | None, *, dim: int) -> nn.Module | None:
    """Actions → what is added to the tokens of their frames; zero in a new model. `None` for a model without actions."""
    if num_actions is None and action_dim is None:
        return None
    # The row of "no action" has no gradient (`padding_idx`) and so stays zero.
    embed = nn.Embedding(num_actions + 1, dim, padding_idx=0) if action_dim is None else nn.Linear(action_dim, dim)
    for parameter in embed.parameters():
        nn.init.zeros_(parameter)
    return embed


def add_actions(
    tokens: Sequence[torch.Tensor], actions: torch.Tensor | None, *, action_embed: nn.Module | None
) -> list[torch.Tensor]:
    """The tokens of F frames with the actions that led to them: each token has that of its frame.

    All of them, since a trained network hardly looks at what stands before the patches: there, the gradient of what tells actions
    apart was a tenth as large. Embeddings are scaled by √D, so that weights that begin as zero reach the size of a token at
    the rate of all others.

    Args:
        tokens: each (B, F n, D), frame after frame, n of each frame.
        actions: (B, F) or (B, F, A), as the transformer takes them; `None` for "no action".
        action_embed: of [`make_action_embed`].
    """
    if actions is None:
        return list(tokens)
    if actions.is_floating_point():
        is_known = ~actions.isnan().any(dim=-1, keepdim=True)
        embedded = action_embed(torch.where(is_known, actions, 0).to(tokens[0].dtype))
        embedded = torch.where(is_known, embedded, 0)
    else:
        embedded = action_embed(actions)
    embedded = math.sqrt(embedded.shape[-1]) * embedded
    num_frames = actions.shape[1]
    return [group + embedded.repeat_interleave(group.shape[1] // num_frames, dim=1) for group in tokens]


def check_encoded(name: str, actions: torch.Tensor | None, *, latents: torch.Tensor | None, config: Mapping) -> None:
    """Raises a `ValueError` if these are no actions of these latents (B, C, F, H, W), or the model takes none."""
    if actions is None:
        return
    space = ActionSpace.of(config)
    if space is None:
        raise ValueError(f"`{name}` was passed, but this model has `num_actions=None` and `action_dim=None`.")
    shape = [0, 0] if latents is None else [latents.shape[0], latents.shape[2]]
    shape += [] if space.is_discrete else [space.action_dim]
    if list(actions.shape) != shape or actions.is_floating_point() == space.is_discrete:
        raise ValueError(
            f"`{name}` must be {'whole' if space.is_discrete else 'floating point'} numbers of shape {shape}, one action a "
            f"frame of the latents, got {actions.dtype} {list(actions.shape)}."
        )


def join_actions(
    first: torch.Tensor | None, num_first: int, *, second: torch.Tensor | None, num_second: int
) -> torch.Tensor | None:
    """The actions of so many frames, then those of so many others; where only one part has some, the other gets "no action"."""
    if first is None and second is None:
        return None
    parts = [(first, num_first), (second, num_second)]
    like = first if second is None else second
    none = 0 if not like.is_floating_point() else torch.nan
    filled = [like.new_full((like.shape[0], n, *like.shape[2:]), none) if x is None else x for x, n in parts]
    return torch.cat(filled, dim=1)


@dataclass(frozen=True)
class ActionSpace:
    """Which actions there are: `num_actions` discrete ones, or `action_dim` numbers.

    Attributes:
        num_actions: how many; `None` for continuous actions.
        action_dim: D; `None` for discrete ones.
        mean, std: of each of the D numbers in training; `None` to take them as they are.
    """

    num_actions: int | None = None
    action_dim: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ActionSpace | None":
        """Of a transformer's configuration; `None` if it takes no actions."""
        num_actions, action_dim = config.get("num_actions"), config.get("action_dim")
        if num_actions is None and action_dim is None:
            return None
        return cls(num_actions, action_dim, config.get("action_mean"), config.get("action_std"))

    @property
    def is_discrete(self) -> bool:
        return self.action_dim is None

    def read(self, actions: Actions, name: str = "actions") -> np.ndarray:
        """What a user gives → int64 (…) with −1 for "no action", or float32 (…, D) with NaN for it.

        Args:
            actions: numbers in nested lists, an array or a tensor; `None` in the place of an action is "no action".
            name: of the argument or the file, for errors.

        Raises:
            ValueError: for what is no number, out of range, infinite, or NaN in a part of an action; says which one.
        """
        no_action = NO_ACTION if self.is_discrete else [float("nan")] * self.action_dim
        if isinstance(actions, torch.Tensor):
            actions = actions.detach().cpu().float() if actions.dtype == torch.bfloat16 else actions.detach().cpu()
        try:
            values = np.asarray(_without_none(actions, no_action))
        except ValueError as error:
            raise ValueError(
                f"{name}: the actions are lists of different lengths ({error}): give one a frame."
            ) from error
        return self._check_discrete(values, name) if self.is_discrete else self._check_continuous(values, name)

    def _check_discrete(self, values: np.ndarray, name: str) -> np.ndarray:
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(
                f"{name}: actions are whole numbers in 0..{self.num_actions - 1}, or -1 for none, got {_first(values)}."
            )
        wrong = np.argwhere((values < NO_ACTION) | (values >= self.num_actions))
        if len(wrong):  # of a single action there is one, without a place
            place = tuple(wrong[0].tolist())
            raise ValueError(
                f"{name}: action {values[place]}{_at(place)} is not in 0..{self.num_actions - 1}, nor -1 for none."
            )
        return values.astype(np.int64)

    def _check_continuous(self, values: np.ndarray, name: str) -> np.ndarray:
        is_number = np.issubdtype(values.dtype, np.number) and not np.issubdtype(values.dtype, np.complexfloating)
        if not is_number or values.ndim < 1 or values.shape[-1] != self.action_dim:
            raise ValueError(
                f"{name}: an action is {self.action_dim} numbers, got {values.dtype} of shape {list(values.shape)}."
            )
        values = values.astype(np.float32)
        is_nan = np.isnan(values)
        wrong = np.argwhere(np.isinf(values).any(-1) | (is_nan.any(-1) & ~is_nan.all(-1)))
        if len(wrong):  # of a single action there is one, without a place
            place = tuple(wrong[0].tolist())
            raise ValueError(
                f"{name}: action {values[place].tolist()}{_at(place)} has NaN or infinite values; "
                '"no action" is NaN in all of them, or None.'
            )
        return values

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """What [`read`] gives, as a tensor → as the transformer takes it: ids from 1 on, or normalised numbers."""
        if self.is_discrete:
            return values + 1
        if self.mean is None:
            return values
        return (values - values.new_tensor(self.mean)) / values.new_tensor(self.std)

    def encode_frames(
        self,
        actions: Actions,
        num_frames: int | None = None,
        *,
        name: str = "actions",
        is_held: bool = False,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """What a user gives for some frames → (b, F) or (b, F, D), as the transformer takes it; b is 1 where all videos share it.

        Args:
            actions: (F,) or (b, F), with D behind it if continuous.
            num_frames: F; `None` if any number will do.
            name: of the argument, for errors.
            is_held: whether a single action, or one a video, may stand for all F frames.
            device: where the tensor goes.

        Raises:
            ValueError: as [`read`], and for another number of actions.
        """
        values = self.read(actions, name)
        depth = values.ndim - (0 if self.is_discrete else 1)
        if is_held and depth == 0:
            values, depth = values[None], 1
        if depth == 1:
            values = values[None]
        suffix = "" if self.is_discrete else f", {self.action_dim}"
        if depth not in (1, 2) or not values.size:
            raise ValueError(
                f"{name} must be of shape (frames{suffix}) or (videos, frames{suffix}), got {list(values.shape)}."
            )
        if is_held and values.shape[1] == 1:
            values = values.repeat(num_frames, axis=1)
        if num_frames is not None and values.shape[1] != num_frames:
            raise ValueError(
                f"{name} has {values.shape[1]} actions for {num_frames} frames: give one a frame, the one that leads to it"
                + ("; or one for all, or one a video, of shape (videos, 1)." if is_held else ".")
            )
        return self.encode(torch.from_numpy(np.ascontiguousarray(values))).to(device)


def space_for(actions: Actions | None, config: Mapping[str, Any], *, name: str = "actions") -> ActionSpace | None:
    """The actions that a model takes. Raises a `ValueError` if there are some and it takes none."""
    space = ActionSpace.of(config)
    if actions is not None and space is None:
        raise ValueError(f"`{name}` were passed, but this model was not trained on actions: leave them out.")
    return space


def _without_none(actions: Any, no_action: Any) -> Any:
    if actions is None:
        return no_action
    if isinstance(actions, list | tuple):
        return [_without_none(action, no_action) for action in actions]
    return actions


def _first(values: np.ndarray) -> str:
    return f"{values.ravel()[0]!r} and others as {values.dtype}" if values.size else "none"


def _at(place: tuple[int, ...]) -> str:
    return f" at {', '.join(map(str, place))}" if place else ""


def scale_of(actions: Sequence[np.ndarray]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each of the D numbers over all actions (F, D); 1 where a number never changes.

    Raises:
        ValueError: if not one frame has an action.
    """
    values = np.concatenate([video.reshape(-1, video.shape[-1]) for video in actions]).astype(np.float64)
    values = values[~np.isnan(values).any(-1)]
    if not len(values):
        raise ValueError("No frame has an action: every one of them is NaN.")
    mean, std = values.mean(0), values.std(0)
    std = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def between_frames(actions: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The actions of a sample that shows some of a video's frames: what was done from one shown frame to the next.

    Of discrete actions the last one that is not "no action"; of continuous ones the mean of those that are not. The first
    frame shown gets what was done in as many frames before it as lie between it and the second one. A frame that is shown
    again has "no action".

    Args:
        actions: of every frame of the video, as [`ActionSpace.read`] gives them: (F,) or (F, D).
        indices: of the shown frames, in order.
    """
    step = int(indices[1] - indices[0]) if len(indices) > 1 else 1
    shown = np.full((len(indices), *actions.shape[1:]), NO_ACTION if actions.ndim == 1 else np.nan, actions.dtype)
    previous = int(indices[0]) - step
    for place, index in enumerate(indices.tolist()):
        passed = actions[max(previous + 1, 0) : index + 1]
        passed = passed[passed != NO_ACTION] if actions.ndim == 1 else passed[~np.isnan(passed).any(-1)]
        if len(passed):
            shown[place] = passed[-1] if actions.ndim == 1 else passed.mean(0)
        previous = index
    return shown
