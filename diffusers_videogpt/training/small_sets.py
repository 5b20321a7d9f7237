"""Settings whose defaults are made for a small set of videos: what is not given follows from the set and from the model."""

import math
from dataclasses import dataclass
from typing import Literal

from ..arguments import finite_float, natural_float, natural_int, positive_float, positive_int
from .arguments import option, share
from .settings import LoopSettings, ObjectiveSettings, OptimizerSettings, RolloutSettings


@dataclass(kw_only=True)
class SmallSetObjectiveSettings(ObjectiveSettings):
    """What an adapter learns from: mostly heavy noise, where a motion is decided. What it shows, the base can draw already."""

    weighting_scheme: Literal["none", "logit_normal", "mode"] = option(
        "logit_normal", "which noise levels α are drawn: none for uniform ones, as the paper; 1 is clean"
    )
    logit_mean: float | None = option(
        None, "of logit_normal: above 0 for less noise; default: -1.6", type=finite_float
    )
    logit_std: float | None = option(None, "of logit_normal; default: 1.2", type=positive_float)
    uniform_share: float | None = option(
        None,
        "share of the clips whose level is uniform whatever the scheme; default: 0.2 with logit_normal",
        type=share,
    )
    loss_weighting: Literal["none", "velocity"] = option(
        "velocity", "of a frame's error: none as the paper, or 1/(1-α)², which makes it that of the velocity"
    )

    def __post_init__(self):
        is_logit_normal = self.weighting_scheme == "logit_normal"
        for name, value in {"logit_mean": -1.6, "logit_std": 1.2, "uniform_share": 0.2}.items():
            if getattr(self, name) is None:
                setattr(self, name, value if is_logit_normal else getattr(ObjectiveSettings, name))
        super().__post_init__()


@dataclass(kw_only=True)
class SmallSetLoopSettings(LoopSettings):
    """Of a run on a small set of videos: it goes on as long as it helps with those that were held out."""

    max_train_steps: int | None = option(
        None,
        "at most; default: as many as show each video 30 times, 500 at least, and of a stream 2000",
        type=positive_int,
    )
    validation_steps: int | None = option(
        None, "between two validation losses; default: a twentieth of max_train_steps", type=positive_int
    )
    patience: int = option(
        5,
        "validations in a row without a lower loss of held-out videos, after which the run ends; the adapter with the lowest is "
        "saved; 0 for none: it goes to max_train_steps and saves the last",
        type=natural_int,
    )

    def settle(self, num_videos: int | None, samples_a_step: int, *, rollouts: RolloutSettings) -> None:
        """Sets what was not given by the number of videos to train on, which of a stream is not known."""
        if self.max_train_steps is None:
            passes = 2000 if num_videos is None else math.ceil(30 * num_videos / samples_a_step)
            self.max_train_steps = max(passes, 500)
        if self.validation_steps is None:
            # Predictions are made when the validation loss is.
            self.validation_steps = rollouts.validation_rollout_steps or max(self.max_train_steps // 20, 1)


@dataclass(kw_only=True)
class AdapterOptimizerSettings(OptimizerSettings):
    """The optimizer of an adapter."""

    learning_rate: float | None = option(
        None, "default: 5e-4 for a model 2000 wide, and more for narrower ones", type=natural_float
    )

    def settle(self, width: int) -> None:
        """Sets a rate that was not given by the width of the model.

        The best rate of a LoRA hardly depends on its rank, as its α grows with that, and falls with the width: Schulman et al.,
        "LoRA Without Regret" (2025), fit 5e-4 · (2000 / width)^0.78 to the Llama models.
        """
        if self.learning_rate is None:
            self.learning_rate = 5e-4 * (2000 / width) ** 0.78
