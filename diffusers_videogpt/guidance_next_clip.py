"""Guidance by history, class and text, and actions: which predictions of a clip are made, and what becomes of them.

With h the history, y what is asked for, n what guidance leads away from, a the clip's actions and c, d, e the three scales,
the guided clip is

    x̂ = x̂(y, a) + c (x̂(h, y, a) − x̂(y, a)) + (d − 1) (x̂(h, y, a) − x̂(h, n, a)) + (e − 1) (x̂(h, y, a) − x̂(h, y))

x̂(y, a) is the clip predicted without any history; x̂(h, y) that without actions of its own, after a history with its actions.
Without actions, they and the last term are left out. A scale of 1 leaves out its prediction. All of x̂ are of one noise level,
so this is the same as guiding the velocity.

Any guider of diffusers that takes two predictions, such as `AdaptiveProjectedGuidance`, can stand in the place of this one:
it then guides by the history, with x̂(h, y) as its conditional and x̂(y) as its unconditional prediction.
"""

import copy
import math
from numbers import Real

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from diffusers.modular_pipelines import BlockState

from .diffusers_internals import is_guider_enabled, quiet_guiders


class NextClipGuidance(BaseGuidance):
    """Guidance by history (scale c), by class and text (scale d) and by actions (scale e); the formula stands at the head of this file.

    ```py
    pipe.guider = NextClipGuidance(guidance_scale=3.0, condition_guidance_scale=4.0, stop=0.5)
    ```

    Args:
        guidance_scale (`float`, defaults to `3.0`): c, by history; 1 turns it off and saves a prediction a step.
        condition_guidance_scale (`float`, defaults to `4.0`): d, by class and text; 1 turns it off.
        start, stop (`float`, default to `0.0` and `1.0`): history guides only the steps from `start` on and before
            `stop`, both shares of all steps (Kynkäänniemi et al., arXiv 2404.07724).
        enabled (`bool`, defaults to `True`): `False` turns off all of it.
        action_guidance_scale (`float`, defaults to `1.0`): e, by the clip's actions; 1 turns it off. It needs a model that was
            trained with some of its actions left out.

    Raises:
        ValueError: if a scale is no finite number, or not 0 ≤ start ≤ stop ≤ 1.
    """

    # Conditioned on history and what is asked for; on what is asked for alone; on history and what is led away from;
    # on history and what is asked for, without actions.
    _input_predictions = ["pred_cond", "pred_uncond", "pred_negative", "pred_no_action"]

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 3.0,
        condition_guidance_scale: float = 4.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        action_guidance_scale: float = 1.0,
    ):
        check_scale("guidance_scale", guidance_scale)
        check_scale("condition_guidance_scale", condition_guidance_scale)
        check_scale("action_guidance_scale", action_guidance_scale)
        with quiet_guiders():
            super().__init__(start, stop, enabled)
        self.guidance_scale = guidance_scale
        self.condition_guidance_scale = condition_guidance_scale
        self.action_guidance_scale = action_guidance_scale
        self._wanted = ["pred_cond"]

    @property
    def is_conditional(self) -> bool:
        """Whether the prediction in work is the one by history and what is asked for."""
        return self._count_prepared == 1

    @property
    def num_conditions(self) -> int:
        """Predictions of the step that was prepared last."""
        return len(self._wanted)

    def prepare_inputs(self, data: dict[str, tuple]) -> list[BlockState]:
        """What the model is called with in this step, once for each prediction that is wanted.

        Args:
            data: for every input of the model four values: conditioned, without history, led away from, and without
                action. `conditions` is one of them, and has `None` where there is no such prediction.
        """
        uses = {
            "pred_cond": True,
            "pred_uncond": self._guides_by_history(),
            "pred_negative": self._guides_by_condition(),
            "pred_no_action": self._enabled and self.action_guidance_scale != 1.0,
        }
        self._wanted = [
            name
            for name, conditions in zip(self._input_predictions, data["conditions"], strict=True)
            if uses[name] and conditions is not None
        ]
        return [self._prepare_batch(data, self._input_predictions.index(name), name) for name in self._wanted]

    def forward(
        self,
        pred_cond: torch.Tensor,
        pred_uncond: torch.Tensor | None = None,
        pred_negative: torch.Tensor | None = None,
        pred_no_action: torch.Tensor | None = None,
    ) -> GuiderOutput:
        """The guided prediction, (B, C, F, h, w) as all arguments.

        Args:
            pred_cond: predicted with history and conditions.
            pred_uncond: predicted without the history.
            pred_negative: predicted with the history and the negative conditions.
            pred_no_action: predicted with the history and the conditions, without actions of its own.
        """
        pred = pred_cond
        if pred_uncond is not None:
            pred = pred_uncond + self.guidance_scale * (pred_cond - pred_uncond)
        if pred_negative is not None:
            pred = pred + (self.condition_guidance_scale - 1) * (pred_cond - pred_negative)
        if pred_no_action is not None:
            pred = pred + (self.action_guidance_scale - 1) * (pred_cond - pred_no_action)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def _guides_by_history(self) -> bool:
        start, stop = (share * self._num_inference_steps for share in (self._start, self._stop))
        return self._enabled and self.guidance_scale != 1.0 and start <= self._step < stop

    def _guides_by_condition(self) -> bool:
        return self._enabled and self.condition_guidance_scale != 1.0


def check_scale(name: str, value: float) -> None:
    """Raises a `ValueError` if a scale of guidance is no finite number."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {value!r}; 1 turns that guidance off.")


def guider_for_call(
    guider: BaseGuidance | None,
    *,
    default_guidance_scale: float,
    default_condition_guidance_scale: float,
    guidance_scale: float | None = None,
    condition_guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    action_guidance_scale: float | None = None,
) -> BaseGuidance:
    """The guider of one call: a copy, since guiders count steps, and a component is never changed by a call.

    Args:
        guider: the pipeline's component; `None` for a [`NextClipGuidance`] of the default scales.
        default_guidance_scale, default_condition_guidance_scale: of the pipeline's configuration.
        guidance_scale, condition_guidance_scale, guidance_interval, action_guidance_scale: arguments of the call, in place
            of what `guider` says; the interval is (start, stop).

    Raises:
        ValueError: if a value is not possible, or `guider` has no such option.
    """
    changes = {}
    for name, value in (
        ("guidance_scale", guidance_scale),
        ("condition_guidance_scale", condition_guidance_scale),
        ("action_guidance_scale", action_guidance_scale),
    ):
        if value is not None:
            check_scale(name, value)
            changes[name] = value
    if guidance_interval is not None:
        start, stop = check_interval(guidance_interval)
        changes |= {"start": start, "stop": stop}
    if guider is None:
        defaults = {
            "guidance_scale": default_guidance_scale,
            "condition_guidance_scale": default_condition_guidance_scale,
        }
        return NextClipGuidance(**(defaults | changes))
    if not changes:
        return copy.deepcopy(guider)
    for name in changes:
        is_off = name in ("condition_guidance_scale", "action_guidance_scale") and changes[name] == 1.0
        if name not in guider.config and not is_off:
            raise ValueError(
                f"`{name}` was passed, but the pipeline's guider, {type(guider).__name__}, has no such option: set "
                f"`pipe.guider` to one with the values you want, or to `NextClipGuidance()`, and leave `{name}` out."
            )
    with quiet_guiders():
        changed = guider.new(**{name: value for name, value in changes.items() if name in guider.config})
    if not is_guider_enabled(guider):
        changed.disable()
    return changed


def condition_scale(guider: BaseGuidance, condition_guidance_scale: float | None, *, is_asked: bool) -> float:
    """The scale of guidance by class and text with this guider; 1 for none.

    Args:
        guider: of this call.
        condition_guidance_scale: the argument of the call.
        is_asked: whether there is a class or a text.

    Raises:
        ValueError: if there is, and the guider guides by history alone, unless the call says that this is meant.
    """
    if isinstance(guider, NextClipGuidance):
        return guider.condition_guidance_scale if is_guider_enabled(guider) else 1.0
    if is_asked and condition_guidance_scale != 1.0:
        raise ValueError(
            f"The pipeline's guider, {type(guider).__name__}, guides by history alone, not by classes and prompts: set "
            "`pipe.guider = NextClipGuidance(...)` for both, or pass `condition_guidance_scale=1` to do without."
        )
    return 1.0


def check_interval(guidance_interval: tuple[float, float]) -> tuple[float, float]:
    """`guidance_interval` as (start, stop); raises a `ValueError` if it is none in [0, 1]."""
    is_pair = isinstance(guidance_interval, tuple | list) and len(guidance_interval) == 2
    if is_pair and all(isinstance(share, Real) for share in guidance_interval):
        start, stop = guidance_interval
        if 0 <= start < stop <= 1:
            return start, stop
    raise ValueError(
        f"`guidance_interval`={guidance_interval} must be (start, stop) with 0 ≤ start < stop ≤ 1, as shares of the "
        "denoising steps; to guide in none of them, pass `guidance_scale=1`."
    )
