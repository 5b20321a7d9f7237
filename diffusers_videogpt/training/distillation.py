"""Causal consistency distillation: fifty guided steps become one or two (Song et al., arXiv 2303.01469; guided as in LCM, 2310.04378).

From noise to a clip leads one path, which the teacher walks in small steps. The student f learns to name its end from any point
on it, so that one step is enough. With the grid 0 = α_0 < … < α_N = 1, a clip φ and its history as in training:

    ψ   = α_n φ + (1 − α_n) ε,  n ~ U{0, …, N − 1}, one a clip
    x̂   = x̂_alone + c (x̂_history − x̂_alone)                      the teacher's guided prediction
    ψ′  = ψ + (α_{n+1} − α_n) (x̂ − ψ) / (1 − α_n)                  one Euler step of the teacher
    loss = d(f(ψ, α_n), f⁻(ψ′, α_{n+1})),  f⁻(ψ, 1) = ψ            f⁻ has the average weights of f, and no gradient

The student begins as the teacher. Guidance is learnt with the rest: a step of the student is one pass, without a second one.

Shapes: B videos, C latent channels, N frames, H × W latent size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..actions import ActionSpace
from ..clips import make_guidance_layout
from ..pipeline_videogpt import VideoGPTPipeline
from ..scheduling_next_clip_flow_match import NextClipFlowMatchScheduler
from ..transformer_videogpt import VideoGPTTransformerModel
from .adapter import AdapterTraining, base_alone
from .feed import MicroBatch
from .loop import TrainingLoop, reshard
from .objective import NoisyClips
from .recipe import NextClipTraining, option_of
from .settings import ActionSettings, BaseModelSettings, DistillationSettings
from .validation import predict_continuation


SHOWN_STEPS = (1, 2, 4)  # of the student, in validation


def load_student(model: BaseModelSettings) -> VideoGPTTransformerModel:
    """A second copy of the base's transformer, whose weights are trained: in fp32."""
    return VideoGPTTransformerModel.from_pretrained(
        model.pretrained_model_name_or_path, subfolder="transformer", revision=model.revision, variant=model.variant
    ).float()


def check_actions(model: BaseModelSettings, actions: ActionSettings) -> None:
    """Asks the base's configuration whether it fits the videos, before anything is loaded.

    Raises:
        ValueError: it takes actions and the videos have none, or the other way round.
    """
    where = {"subfolder": "transformer", "revision": model.revision}
    space = ActionSpace.of(VideoGPTTransformerModel.load_config(model.pretrained_model_name_or_path, **where))
    if space is None and actions.are_given:
        raise ValueError(
            "The teacher takes no actions, so none can be distilled: leave out --num_actions and --action_dim."
        )
    if space is not None and not actions.are_given:
        raise ValueError(
            f"The teacher takes actions, which the student would forget: give {option_of(space)}, and videos that have them."
        )


def consistency_loss(
    predicted: torch.Tensor, target: torch.Tensor, *, kind: str = "pseudo_huber", huber_c: float = 0.01
) -> torch.Tensor:
    """How far two predictions of the same clean latents (B, C, N, H, W) are apart: a mean over all frames, in fp32.

    With e² the mean squared difference of a frame, "l2" is e² and "pseudo_huber" is sqrt(e² + c²) − c (Song and Dhariwal,
    arXiv 2310.14189), which a few frames that are far off pull less.
    """
    squared = (predicted.float() - target.float()).square().mean(dim=(1, 3, 4))
    if kind == "l2":
        return squared.mean()
    return ((squared + huber_c**2).sqrt() - huber_c).mean()


class Distillation(NextClipTraining):
    """Distillation of a pipeline's transformer; who the teacher is, is told by a subclass.

    Args:
        distillation: the path, the guidance and the loss.
        training: of the other class, by name.
    """

    def __init__(
        self, accelerator: Accelerator, pipe: VideoGPTPipeline, *, distillation: DistillationSettings, **training
    ):
        super().__init__(accelerator, pipe, **training)
        self.distillation = distillation
        self.guidance_scale = distillation.guidance_scale
        if self.guidance_scale is None:
            self.guidance_scale = pipe.config.guidance_scale
        self.teacher_scheduler = pipe.scheduler
        pipe.scheduler = NextClipFlowMatchScheduler.from_config(pipe.scheduler.config, solver="consistency")
        pipe.register_to_config(num_inference_steps=distillation.num_inference_steps, guidance_scale=1.0)
        pipe.scheduler.set_timesteps(distillation.grid_steps)
        self.grid = pipe.scheduler.alphas  # (N + 1,), with the shift of the pipeline
        self._teacher_videos: list[np.ndarray] | None = None

    def teacher(self) -> Any:
        """A context in which the teacher can be called, and which gives it."""
        raise NotImplementedError

    def objective_fields(self) -> dict[str, Any]:
        fields = {
            "guidance_scale": self.guidance_scale,
            "grid": [round(alpha, 6) for alpha in self.grid.tolist()],
            "loss": self.distillation.consistency_loss,
        }
        if self.distillation.consistency_loss == "pseudo_huber":
            fields["huber_c"] = self.distillation.huber_c
        return super().objective_fields() | {f"distillation.{name}": value for name, value in fields.items()}

    def draw_alphas(self, clip_lengths: Sequence[int], generator: torch.Generator | None) -> torch.Tensor:
        """α of every frame: one point of the grid a clip, all but its end."""
        points = torch.randint(len(self.grid) - 1, (len(clip_lengths),), generator=generator)
        return self.grid[points].repeat_interleave(torch.as_tensor(clip_lengths))

    def loss(self, model: nn.Module, batch: MicroBatch) -> torch.Tensor:
        clips = self.make_noisy(model, batch, draw_alphas=self.draw_alphas)
        target = self.target(model, clips, clip_lengths=batch.clip_lengths)
        denoised = clips.denoised_by(model)
        self.errors.add(denoised)
        how = self.distillation
        return consistency_loss(denoised.predicted, target, kind=how.consistency_loss, huber_c=how.huber_c)

    @torch.no_grad()
    def target(self, model: nn.Module, clips: NoisyClips, *, clip_lengths: Sequence[Sequence[int]]) -> torch.Tensor:
        """Where the path of each noisy clip ends: what the average of the student says one step of the teacher further."""
        grid = self.grid.to(clips.alphas.device)
        next_alphas = grid[torch.searchsorted(grid, clips.alphas) + 1]
        with self.teacher() as teacher:
            end = guided_prediction(
                teacher,
                clips,
                clip_lengths=clip_lengths,
                guidance_scale=self.guidance_scale,
                patch_size=self.patch_size,
            )
        # PyTorch 2.9 keeps what autocast made of weights without gradients for the passes of other weights, and of gradients.
        torch.clear_autocast_cache()
        share = ((next_alphas - clips.alphas) / (1 - clips.alphas))[:, None, :, None, None]
        further = clips.noisy + share * (end - clips.noisy)
        with self.averaged_weights():
            moved = NoisyClips(
                clips.target, further, next_alphas, clips.clean, layout=clips.layout, conditions=clips.conditions
            )
            named = moved.denoised_by(self.accelerator.unwrap_model(model)).predicted.float()
        torch.clear_autocast_cache()
        return torch.where(next_alphas[:, None, :, None, None] == 1, further, named)

    def predict(self, loop: TrainingLoop, step: int) -> dict[str, float]:
        """As [`~recipe.NextClipTraining.predict`], with several numbers of steps of the student, beside the teacher."""
        rollouts, own = self.rollouts, self.distillation.num_inference_steps
        how = self.prediction_settings()
        videos, actions = self.held_out_videos()
        how["actions"] = actions
        with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
            if self._teacher_videos is None:  # the same at every validation
                self._teacher_videos = self._predict_as_teacher(videos, **how)
            self.pipe.transformer = self.accelerator.unwrap_model(loop.model)
            beside = {f"teacher, {rollouts.validation_inference_steps} steps": self._teacher_videos}
            for num_steps in sorted({*SHOWN_STEPS} - {own}, reverse=True):
                how["num_inference_steps"] = num_steps
                name = "1 step" if num_steps == 1 else f"{num_steps} steps"
                beside[name] = self._predict_all(videos, **how)
        return self.roll_out(loop, step, videos=videos, actions=actions, num_inference_steps=own, beside=beside)

    def _predict_as_teacher(self, videos: list[np.ndarray], **how) -> list[np.ndarray]:
        student, scheduler = self.pipe.transformer, self.pipe.scheduler
        with self.teacher() as teacher:
            self.pipe.transformer, self.pipe.scheduler = teacher, self.teacher_scheduler
            try:
                return self._predict_all(videos, guidance_scale=self.guidance_scale, **how)
            finally:
                self.pipe.transformer, self.pipe.scheduler = student, scheduler

    def _predict_all(
        self, videos: list[np.ndarray], *, seed: int, actions: list[np.ndarray] | None, **how
    ) -> list[np.ndarray]:
        seeds = range(seed, seed + len(videos))  # as of `validation_rollout`
        return [
            predict_continuation(self.pipe, video, generator=torch.Generator().manual_seed(seed), actions=done, **how)
            for seed, video, done in zip(seeds, videos, actions or [None] * len(videos), strict=True)
        ]


def guided_prediction(
    teacher: nn.Module,
    clips: NoisyClips,
    *,
    clip_lengths: Sequence[Sequence[int]],
    guidance_scale: float,
    patch_size: int,
) -> torch.Tensor:
    """x̂_alone + c (x̂_history − x̂_alone) of all noisy clips (B, C, N, H, W) in fp32, in one pass of the teacher."""
    if guidance_scale == 1:
        return clips.denoised_by(teacher).predicted.float()
    patch_grid = (clips.noisy.shape[3] // patch_size, clips.noisy.shape[4] // patch_size)
    conditions = dict(clips.conditions)
    if "actions" in conditions:
        conditions["actions"] = torch.cat([conditions["actions"]] * 2, dim=1)
    both = NoisyClips(
        clips.target,
        torch.cat([clips.noisy, clips.noisy], dim=2),
        torch.cat([clips.alphas, clips.alphas], dim=1),
        clips.clean,
        layout=make_guidance_layout(clip_lengths, patch_grid, device=clips.noisy.device),
        conditions=conditions,
    )
    with_history, alone = both.denoised_by(teacher).predicted.float().chunk(2, dim=2)
    return alone + guidance_scale * (with_history - alone)


class PipelineDistillation(Distillation):
    """Distillation of all weights: the teacher is a frozen copy of what the student begins as.

    Args:
        teacher: in evaluation, its weights frozen.
        base_hash: of the teacher's weights.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        pipe: VideoGPTPipeline,
        *,
        teacher: VideoGPTTransformerModel,
        base_hash: str,
        **training,
    ):
        super().__init__(accelerator, pipe, **training)
        self._teacher = teacher.to(accelerator.device)
        self.base_hash = base_hash
        if self.settings.torch_compile:
            self._teacher.compile_repeated_blocks()

    @contextmanager
    def teacher(self) -> Iterator[VideoGPTTransformerModel]:
        yield self._teacher

    def model_fields(self) -> dict[str, Any]:
        return super().model_fields() | {"distillation.teacher": self.base_hash}


class AdapterDistillation(Distillation, AdapterTraining):
    """Distillation into a LoRA: the teacher is the base without it, so there is one copy of the base's weights."""

    @contextmanager
    def teacher(self) -> Iterator[nn.Module]:
        with base_alone(self.model):
            yield self.model
        reshard(self.model)

    def report(self, loop: TrainingLoop) -> None:
        """Nothing beside the validation: there the student is compared with its teacher, at its own number of steps."""

    def trained_with(self) -> dict[str, Any]:
        sampled = {"num_inference_steps": self.distillation.num_inference_steps, "guidance_scale": 1.0}
        return super().trained_with() | sampled | {"solver": self.pipe.scheduler.config.solver}
