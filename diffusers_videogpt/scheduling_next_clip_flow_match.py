"""Noise in, noise out: the noise of training, the timesteps of sampling, the step, and what makes diffusers' schedulers fit.

Conventions (Video-GPT, arXiv 2505.12489; numerically the authors' code):

    α  the model's time in [0, 1]: **1 is clean, 0 is pure noise**; it enters the model as it is
    σ  = 1 − α, what diffusers' flow-match schedulers call sigma; their timestep is σ · num_train_timesteps
    ψ  = α φ + (1 − α) ε, a noisy latent of the clean latent φ and the noise ε ~ N(0, I)
    x̂  the model's output: its estimate of φ (diffusers' `prediction_type="sample"`)
    v  = dψ/dα = φ − ε = (x̂ − ψ) / (1 − α); diffusers' flow-match velocity points the other way, ε − φ = −v

At fixed ψ and α, v is affine in x̂, so guidance on x̂ is guidance on v: v_u + c (v_c − v_u) comes from x̂_u + c (x̂_c − x̂_u).

A denoising loop that takes this scheduler as well as diffusers' own:

    timesteps, alphas = set_flow_timesteps(scheduler, num_inference_steps, device)
    for timestep, alpha in zip(timesteps, alphas):
        denoised = model(latents, alpha)
        model_output = denoised_to_model_output(scheduler, denoised, sample=latents, alpha=alpha)
        latents = scheduler.step(model_output, timestep, latents, return_dict=False)[0]
"""

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from .config_values import MOST_STEPS, Solver, check_scheduler_config


MAX_TRAIN_TIMESTEPS = 10**6  # a bound, because so many numbers are in memory until timesteps are set

# Made for flow matching and nothing else: they take the velocity, without an option that says so.
_VELOCITY_SCHEDULERS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler)


def mix_noise(sample: torch.Tensor, retention: float | torch.Tensor, *, noise: torch.Tensor) -> torch.Tensor:
    """`retention · sample + (1 − retention) · noise`, in fp32 or better, returned in the dtype of `sample`.

    One formula, two uses: with `retention` = α it makes the noisy clip ψ of the objective; with ρ near 1
    (`sample_retentions`) it makes the slightly noisy history that training shows the model and that sampling may use.

    Args:
        sample: clean latents, any shape.
        retention: in [0, 1], 1 keeps the sample. A number, or a tensor that is broadcast along the **leading**
            dimensions of `sample`: `(B,)` one a sample, `(B, F)` one a frame where `sample` is `(B, F, C, H, W)`,
            `(B, 1, F)` where it is `(B, C, F, H, W)`.
        noise: N(0, I) of the shape of `sample`.

    Raises:
        ValueError: if `noise` has another shape than `sample`, or `retention` does not fit its leading dimensions.
    """
    if noise.shape != sample.shape:
        raise ValueError(
            f"`noise` has shape {tuple(noise.shape)} but `sample` has {tuple(sample.shape)}: draw one value of noise "
            "for every value of the sample."
        )
    retention = torch.as_tensor(retention, dtype=torch.float32, device=sample.device)
    lead = sample.shape[: retention.ndim]
    if retention.ndim > sample.ndim or any(
        size not in (1, wanted) for size, wanted in zip(retention.shape, lead, strict=True)
    ):
        raise ValueError(
            f"noise levels of shape {tuple(retention.shape)} do not fit the leading dimensions of a sample of shape "
            f"{tuple(sample.shape)}: give one number, one a sample, or one a frame, with 1 for dimensions between."
        )
    retention = retention.reshape(retention.shape + (1,) * (sample.ndim - retention.ndim))
    dtype = torch.promote_types(sample.dtype, torch.float32)
    return (retention * sample.to(dtype) + (1 - retention) * noise.to(dtype)).to(sample.dtype)


def sample_alphas(clip_lengths: Sequence[int], generator: torch.Generator | None = None) -> torch.Tensor:
    """The noise levels of one training video: α_k ~ U[0, 1) for every clip, the same for all frames of the clip.

    Args:
        clip_lengths: frames of each clip, `[n_1, …, n_K]`.
        generator: source of randomness; the result lies on its device (CPU without one).

    Returns:
        α of every frame, fp32, shape `(n_1 + … + n_K,)`.
    """
    device = generator.device if generator is not None else None
    alphas = torch.rand(len(clip_lengths), generator=generator, device=device)
    return alphas.repeat_interleave(torch.as_tensor(clip_lengths, device=device))


def sample_retentions(
    num_frames: int, generator: torch.Generator | None = None, *, minimum: float = 0.9
) -> torch.Tensor:
    """How much of each clean frame is kept in training: ρ ~ U[minimum, 1) per frame, for `mix_noise`.

    The paper (eq. 6) measures +0.5 Physics-IQ from this noise on the history; the reference draws ρ from [0.9, 1].

    Returns:
        ρ of every frame, fp32, shape `(num_frames,)`, on the device of `generator` (CPU without one).
    """
    device = generator.device if generator is not None else None
    return minimum + (1 - minimum) * torch.rand(num_frames, generator=generator, device=device)


@dataclass
class NextClipFlowMatchSchedulerOutput(BaseOutput):
    """What `NextClipFlowMatchScheduler.step` returns.

    Args:
        prev_sample (`torch.Tensor`): the latents at the next, less noisy time; the shape of the step's `sample`.
    """

    prev_sample: torch.Tensor


class NextClipFlowMatchScheduler(SchedulerMixin, ConfigMixin):
    """Flow matching for a model that predicts the clean clip, with the authors' time grid and Euler step.

    `set_timesteps(T)` makes T + 1 times from noise to clean, linear and then shifted towards noise:

        t_i = i / T,   α_i = t_i / (t_i + s − s t_i),   σ_i = 1 − α_i = s (1 − t_i) / (1 + (s − 1) (1 − t_i))

    which is the `shift` of diffusers' flow-match schedulers. Afterwards

    - `alphas` `(T + 1,)`, fp32 on the CPU: bit for bit the reference's schedule, 0 … 1;
    - `sigmas` `(T + 1,)`, fp32 on the CPU: σ, 1 … 0;
    - `timesteps` `(T,)`, fp32 on the device asked for: σ_i · num_train_timesteps, what `step` and `scale_noise` take.
      Rounded to fp32 at that scale it names a step; the model's time is read from `alphas`.

    One step goes from α_i to α_{i+1}, with h_i = α_{i+1} − α_i and the velocity v_i = (x̂_i − z_i) / (1 − α_i):

        z_{i+1} = z_i + h_i u_i

    - `solver="euler"`: u_i = v_i, the reference's step. The last one ends on x̂ itself.
    - `solver="multistep"`: u_i = v_i + h_i / (2 h_{i−1}) (v_i − v_{i−1}), Adams-Bashforth for uneven steps: second order
      for the same one model call a step; the first step is an Euler step. It extrapolates v in α, which is finite from
      end to end. DPM-Solver++(2M) extrapolates x̂ in ln(α / σ), is of first order in the two steps next to pure noise
      and in the last one, and has the larger error for it (tested).
    - `solver="consistency"`: z_{i+1} = α_{i+1} x̂_i + (1 − α_{i+1}) ε′, the predicted clip under fresh noise ε′ from the
      caller's generator (Song et al., arXiv 2303.01469). A model that was distilled to name the end of the path from anywhere
      on it (`training_scripts/train_distillation.py`) needs one or two such steps and no guidance. Any other model can take
      them too, guided: every step sees noise as in training, so that it can mend what those before it did wrong, where an
      Euler step keeps its errors. Samples differ less from each other: it suits worlds whose future is nearly certain, as the
      bundled model's. It is what `FlowMatchLCMScheduler` does, draw for draw: ε′ is drawn in the last step too, where its
      share is 0.

    `step` takes the clean-sample prediction x̂. The config says so (`prediction_type="sample"`) and carries, besides
    `shift`, the names under which diffusers' multistep solvers read the same facts (`use_flow_sigmas`, `flow_shift`), so
    that `UniPCMultistepScheduler.from_config(scheduler.config)`, the same of `DPMSolverMultistepScheduler` and of
    `FlowMatchEulerDiscreteScheduler` are ready to use, with the same shift. The first two take x̂ too, the last one takes
    the velocity: `denoised_to_model_output` knows.

    Args:
        num_train_timesteps: what timestep pure noise has; a unit only, the model never sees it.
        shift: s > 0; above 1 spends more steps on noisy times. 1 is no shift.
        solver: `"euler"`, `"multistep"` or `"consistency"`.

    Raises:
        ValueError: if `shift` is not positive or `solver` is unknown.

    Example:

        scheduler = NextClipFlowMatchScheduler.from_config(pipe.scheduler.config, solver="multistep", shift=3.0)
    """

    _compatibles = [
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "UniPCMultistepScheduler",
        "DPMSolverMultistepScheduler",
    ]
    order = 1  # model calls a step, as diffusers' progress bars count them; not the order of the solver

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        solver: Solver = "euler",
    ):
        check_scheduler_config({"shift": shift, "solver": solver})
        if not isinstance(num_train_timesteps, Integral) or not 1 <= num_train_timesteps <= MAX_TRAIN_TIMESTEPS:
            raise ValueError(
                f"`num_train_timesteps` is {num_train_timesteps!r}, but must be a whole number in 1..{MAX_TRAIN_TIMESTEPS}."
            )
        # For other classes' `from_config`. Not arguments, because they can only have these values here; registered by
        # hand, because `from_config` does not hand on arguments that were left at their default.
        self.register_to_config(prediction_type="sample", use_flow_sigmas=True, flow_shift=shift)

        # Until `set_timesteps`, the whole training grid, as diffusers' training scripts expect of a new scheduler.
        self._set_grid(self._shifted(torch.linspace(0, 1, num_train_timesteps + 1, device="cpu")), device=None)
        self.num_inference_steps = None
        self.init_noise_sigma = 1.0

    @classmethod
    def from_config(cls, config: dict[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs):
        """A scheduler from the config of this class or of one of diffusers' flow-match schedulers.

        As `ConfigMixin.from_config`; `flow_shift`, the name of diffusers' multistep solvers, is read as `shift`. How
        another scheduler wanted the model's output (`prediction_type`) does not matter here and is not taken over.
        `return_unused_kwargs` returns what is no setting too.

        Raises:
            ValueError: if `shift` and `flow_shift` contradict each other and no `shift` is passed to decide, or a path was
                passed in the place of a config.
        """
        if isinstance(config, str | os.PathLike):
            raise ValueError(
                f"`from_config` takes a config, got the path '{config}': use `from_pretrained` for a folder."
            )
        if config is not None:
            config = {k: v for k, v in config.items() if k not in ("prediction_type", "use_flow_sigmas")}
            flow_shift = config.pop("flow_shift", None)
            if "shift" not in kwargs and flow_shift not in (None, config.get("shift", 1.0)):
                if "shift" in config:
                    raise ValueError(
                        f"the config has `shift`={config['shift']} and `flow_shift`={flow_shift}, one of them left over "
                        "from another scheduler: say which one to use, `from_config(config, shift=...)`."
                    )
                config["shift"] = flow_shift
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @property
    def step_index(self) -> int | None:
        """Index of the next step; `None` before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, where `set_begin_index` gave one."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0):
        """Says at which index of `timesteps` the loop starts, so that the first `step` need not look its timestep up on the
        device.

        Args:
            begin_index: from 0 on.
        """
        self._begin_index = begin_index

    def _shifted(self, times: torch.Tensor) -> torch.Tensor:
        # The reference's order of operations: in fp32, t + s − s t is not always 1, not even where s is.
        shift = self.config.shift
        return times / (times + shift - shift * times)

    def _set_grid(self, alphas: torch.Tensor, device: str | torch.device | None):
        # Kept on the CPU: a step reads scalars from them without waiting for the device.
        self.alphas = alphas
        self.sigmas = torch.cat([1 - alphas[:-1], alphas.new_zeros(1)])
        self.timesteps = (self.sigmas[:-1] * self.config.num_train_timesteps).to(device)
        self._step_index = None
        self._begin_index = None
        self._previous_velocity = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
    ):
        """Set the times of the next loop and forget the last one. Give exactly one of the three ways.

        Args:
            num_inference_steps: T ≥ 1 steps on the reference's grid.
            device: where `timesteps` lies.
            sigmas: T values of σ, falling, in (0, 1], **before** the shift, which is then applied (as in
                `FlowMatchEulerDiscreteScheduler`); the final 0 is added.
            timesteps: T values of σ · num_train_timesteps, falling; they are used as they are, without a shift.

        Raises:
            ValueError: if not exactly one way is given, T < 1, or the values do not fall within their range.
        """
        given = {"num_inference_steps": num_inference_steps, "sigmas": sigmas, "timesteps": timesteps}
        given = [name for name, value in given.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                "`set_timesteps` takes exactly one of `num_inference_steps`, `sigmas` and `timesteps`, but got "
                f"{' and '.join(given) or 'none'}."
            )
        if num_inference_steps is not None:
            check_num_inference_steps(num_inference_steps)
            alphas = self._shifted(torch.linspace(0, 1, num_inference_steps + 1, device="cpu"))
        elif sigmas is not None:
            alphas = self._shifted(_rising_times(sigmas, 1.0, name="sigmas"))
        else:
            alphas = _rising_times(timesteps, self.config.num_train_timesteps, name="timesteps")
        self._set_grid(alphas, device)
        self.num_inference_steps = len(alphas) - 1

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None
    ) -> int:
        """Index of `timestep` in `schedule_timesteps` (the scheduler's own by default).

        Raises:
            ValueError: if it is not one of them.
        """
        if schedule_timesteps is None:
            schedule_timesteps = self.timesteps
        indices = (schedule_timesteps == timestep).nonzero()
        if len(indices) == 0:
            raise ValueError(
                f"`timestep` {timestep} is not in the schedule: pass an element of `scheduler.timesteps`, not its index."
            )
        return indices[0].item()

    def _init_step_index(self, timestep: float | torch.Tensor):
        if self.begin_index is not None:
            self._step_index = self.begin_index
            return
        if isinstance(timestep, torch.Tensor):
            timestep = timestep.to(self.timesteps.device)
        self._step_index = self.index_for_timestep(timestep)

    def scale_model_input(self, sample: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """`sample` itself: a flow-match model takes its input unscaled. Part of diffusers' scheduler interface."""
        return sample

    def scale_noise(self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The noisy latents ψ = (1 − σ) φ + σ ε with σ = timestep / num_train_timesteps.

        Any timestep will do, on the grid or between, so that training draws its noise levels freely:

            noisy = scheduler.scale_noise(latents, (1 - alphas) * scheduler.config.num_train_timesteps, noise)

        which is `mix_noise(latents, alphas, noise=noise)` up to fp32 rounding.

        Args:
            sample: clean latents φ, any shape.
            timestep: in [0, num_train_timesteps], where 0 is clean; a number or a tensor, broadcast along the leading
                dimensions of `sample` as in `mix_noise`.
            noise: ε of the shape of `sample`.

        Raises:
            ValueError: if the shapes do not fit.
        """
        sigma = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device) / self.config.num_train_timesteps
        return mix_noise(sample, 1 - sigma, noise=noise)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """[`~NextClipFlowMatchScheduler.scale_noise`] under the name and with the argument order of diffusers' older
        schedulers.

        Args:
            original_samples: the clean clips, (B, …).
            noise: of the same shape.
            timesteps: (B,) or one, of `timesteps`.
        """
        return self.scale_noise(original_samples, timesteps, noise)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        *,
        return_dict: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> NextClipFlowMatchSchedulerOutput | tuple[torch.Tensor]:
        """One step towards the clean clip (formulas above), in fp32 or better.

        Args:
            model_output: the clean-sample prediction x̂, any shape, guidance already applied.
            timestep: the element of `timesteps` that the model was called at. Only looked up in the first step, and
                not at all after `set_begin_index`: steps go in order.
            sample: z_i, of the same shape.
            return_dict: `False` returns a tuple.
            generator: of the noise of `solver="consistency"`, one or one a sample; the other solvers draw none.

        Returns:
            `NextClipFlowMatchSchedulerOutput` with z_{i+1} in the dtype of `model_output`.

        Raises:
            ValueError: before `set_timesteps`, after the last step, if the shapes differ, or at an unknown timestep.
        """
        if self.num_inference_steps is None:
            raise ValueError(
                "no timesteps are set: call `scheduler.set_timesteps(num_inference_steps)` before `step`."
            )
        if model_output.shape != sample.shape:
            raise ValueError(
                f"`model_output` has shape {tuple(model_output.shape)} but `sample` has {tuple(sample.shape)}: the "
                "model's clean prediction and the noisy latents must be of the same frames."
            )
        if self._step_index is None:
            self._init_step_index(timestep)
        i = self._step_index
        if i >= self.num_inference_steps:
            raise ValueError(
                f"all {self.num_inference_steps} steps are done: call `scheduler.set_timesteps(...)` for the next clip."
            )

        dtype = torch.promote_types(sample.dtype, torch.float32)
        alpha, next_alpha = self.alphas[i], self.alphas[i + 1]
        if self.config.solver == "consistency":
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=dtype)
            prev_sample = next_alpha * model_output.to(dtype) + (1 - next_alpha) * noise
        else:
            velocity = (model_output.to(dtype) - sample.to(dtype)) / (1 - alpha)
            direction = velocity
            if self.config.solver == "multistep":
                if self._previous_velocity is not None:
                    ratio = (next_alpha - alpha) / (alpha - self.alphas[i - 1])
                    direction = velocity + 0.5 * ratio * (velocity - self._previous_velocity)
                self._previous_velocity = velocity
            prev_sample = sample.to(dtype) + (next_alpha - alpha) * direction
        prev_sample = prev_sample.to(model_output.dtype)
        self._step_index += 1

        if not return_dict:
            return (prev_sample,)
        return NextClipFlowMatchSchedulerOutput(prev_sample=prev_sample)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def check_num_inference_steps(num_inference_steps: int):
    """Raises a `ValueError` if it is no whole number of 1 or more, or one of more steps than a clip can have."""
    is_whole = isinstance(num_inference_steps, Integral) and not isinstance(num_inference_steps, bool)
    if not is_whole or not 1 <= num_inference_steps <= MOST_STEPS:
        raise ValueError(
            f"`num_inference_steps` is {num_inference_steps!r}, but must be at least 1, at most {MOST_STEPS}, and whole."
        )


def _rising_times(values: Sequence[float], noise_value: float, *, name: str) -> torch.Tensor:
    """Values that fall from `noise_value` towards 0 as fp32 times `(T + 1,)` that rise to 1."""
    times = 1 - torch.as_tensor(values, dtype=torch.float64, device="cpu") / noise_value
    times = torch.cat([times, times.new_ones(1)]).float()
    if times.ndim != 1 or len(times) < 2 or times[0] < 0 or not (times[1:] > times[:-1]).all():
        raise ValueError(f"`{name}` must be at least one value, falling, in (0, {noise_value:g}], but are {values}.")
    return times


def set_flow_timesteps(
    scheduler: SchedulerMixin, num_inference_steps: int, device: str | torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Set up this or one of diffusers' schedulers for one loop from pure noise; the one place where α = 1 − σ.

    Every scheduler applies the shift of its own config to the same linear times, where it takes sigmas from outside
    (`FlowMatchEulerDiscreteScheduler`, `UniPCMultistepScheduler`) and in `FlowMatchHeunDiscreteScheduler`, which calls the
    model twice a step; `DPMSolverMultistepScheduler` does not and keeps its own grid, which begins at σ = 0.999 before
    the shift. α comes from the sigmas, because the timesteps of diffusers' multistep solvers are rounded to integers.

    Returns:
        `timesteps` to hand to `scheduler.step`, and `alphas` in [0, 1) to hand to the model at the same step (fp32);
        both of shape `(T,)` on `device`. T is `num_inference_steps` for schedulers with one model call a step.

    Raises:
        ValueError: if the scheduler is not set up for flow matching or uses an option that needs more than the number
            of steps, or `num_inference_steps` < 1.
    """
    _check_flow_matching(scheduler)
    check_num_inference_steps(num_inference_steps)
    if isinstance(scheduler, NextClipFlowMatchScheduler):
        scheduler.set_timesteps(num_inference_steps, device=device)
        alphas = scheduler.alphas[:-1]  # 1 − σ, without its rounding
    else:
        if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
            scheduler.set_timesteps(sigmas=np.linspace(1, 0, num_inference_steps + 1)[:-1], device=device)
        elif isinstance(scheduler, FlowMatchHeunDiscreteScheduler):
            _set_heun_timesteps(scheduler, num_inference_steps, device=device)
        else:
            scheduler.set_timesteps(num_inference_steps, device=device)
        alphas = 1 - scheduler.sigmas[:-1]
    scheduler.set_begin_index(0)
    return scheduler.timesteps, alphas.to(device)


def _set_heun_timesteps(
    scheduler: FlowMatchHeunDiscreteScheduler, num_inference_steps: int, *, device: str | torch.device | None
) -> None:
    """Puts Heun's method on the linear times 1, …, 1 / T of the other schedulers, before their shift.

    Its own grid ends at σ = 0.001. There the velocity is (ψ − x̂) / 0.001, so that an error in ψ counts a thousandfold; times
    the length of a step, 1 / 50, it comes out 20 times as large. On this grid the factor is below 1. The scheduler would
    also apply its shift twice; here it is applied once, as in the others.
    """
    bounds = scheduler.sigma_max, scheduler.sigma_min
    scheduler.sigma_max, scheduler.sigma_min = 1.0, 1 / num_inference_steps
    try:
        scheduler.set_timesteps(num_inference_steps, device=device)
    finally:
        scheduler.sigma_max, scheduler.sigma_min = bounds


def denoised_to_model_output(
    scheduler: SchedulerMixin, denoised: torch.Tensor, *, sample: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """The model's clean prediction in the form that `scheduler.step` takes.

    That is x̂ itself where the scheduler's `prediction_type` is `"sample"` (this one, and diffusers' multistep solvers
    made from its config), else diffusers' flow velocity ε − φ = (ψ − x̂) / (1 − α).

    Args:
        scheduler: one that `set_flow_timesteps` set up.
        denoised: x̂, any shape.
        sample: ψ, the model's noisy input, of the same shape.
        alpha: the element of `set_flow_timesteps`' alphas at this step, below 1.
    """
    # Their config may carry the `prediction_type` of the scheduler they were made from; it means nothing to them.
    if isinstance(scheduler, _VELOCITY_SCHEDULERS) or scheduler.config.prediction_type == "flow_prediction":
        return (sample - denoised) / (1 - alpha)
    return denoised


def _has_option(scheduler: SchedulerMixin, name: str) -> bool:
    return name in inspect.signature(type(scheduler).__init__).parameters


def _refuse_other_ways(scheduler: SchedulerMixin):
    """Raises a `ValueError` for a scheduler of flow matching that is not for one loop from noise to a clip."""
    reason = None
    if not hasattr(scheduler, "set_begin_index"):
        reason = "it leads from a picture back to its noise"
    elif "stage_index" in inspect.signature(scheduler.set_timesteps).parameters:
        reason = "its steps are in stages, each of another resolution"
    if reason is not None:
        raise ValueError(
            f"{type(scheduler).__name__} is not made for one way from noise to a clip: {reason}. Use "
            "`NextClipFlowMatchScheduler()`, `FlowMatchEulerDiscreteScheduler()`, or for example "
            "`DPMSolverMultistepScheduler.from_config(NextClipFlowMatchScheduler().config)`."
        )


def _check_flow_matching(scheduler: SchedulerMixin):
    name = type(scheduler).__name__
    config = scheduler.config
    if _has_option(scheduler, "use_flow_sigmas"):
        _refuse_other_ways(scheduler)
        wrong = [] if config.use_flow_sigmas else [f"`use_flow_sigmas` is {config.use_flow_sigmas}, not True"]
        if config.prediction_type not in ("sample", "flow_prediction"):
            wrong.append(f"`prediction_type` is {config.prediction_type!r}, not 'sample' or 'flow_prediction'")
        if wrong:
            raise ValueError(
                f"{name} is not set up for flow matching: {' and '.join(wrong)}. Use `{name}.from_config(scheduler.config, "
                "use_flow_sigmas=True, prediction_type='flow_prediction')`, or `NextClipFlowMatchScheduler()`."
            )
    elif not isinstance(scheduler, (NextClipFlowMatchScheduler, *_VELOCITY_SCHEDULERS)):
        raise ValueError(
            f"{name} is not made for flow matching: it has no `use_flow_sigmas`, so no setting makes its noise levels those of "
            "Video-GPT. Use `NextClipFlowMatchScheduler()`, `FlowMatchEulerDiscreteScheduler()`, or for example "
            "`DPMSolverMultistepScheduler.from_config(NextClipFlowMatchScheduler().config)`."
        )
    for option in ("use_dynamic_shifting", "invert_sigmas"):
        if _has_option(scheduler, option) and config[option]:
            raise ValueError(
                f"{name} has `{option}=True`, which Video-GPT's times do not have: use "
                f"`{name}.from_config(scheduler.config, {option}=False)`, with the shift you want."
            )
