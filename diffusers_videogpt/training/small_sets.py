"""Settings whose defaults are made for a small set of videos: what is not given follows from the set and from the model."""

import math
from dataclasses import dataclass

from ..arguments import natural_float, natural_int, positive_int
from .arguments import option
from .settings import LoopSettings, OptimizerSettings, RolloutSettings


@dataclass(kw_only=True)
class SmallSetLoopSettings(LoopSettings):
    """Of a run on a small set of videos: it goes on as long as it helps with those that were held out."""

    max_train_steps: int | None = option(
        None,
        "at most; default: as many as show each video 100 times, 500 at least, and of a stream 2000",
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
            passes = 2000 if num_videos is None else math.ceil(100 * num_videos / samples_a_step)
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
