"""The baseline in the style of next-token prediction: the next frame by regression, without diffusion."""

import torch
from torch import nn

from .feed import MicroBatch
from .objective import next_clip_loss
from .recipe import NextClipTraining


class NextFrameRegression(NextClipTraining):
    """The loss of next clip diffusion where every noise weight is that of pure noise, α = 0, and tells nothing."""

    def loss(self, model: nn.Module, batch: MicroBatch) -> torch.Tensor:
        def from_noise_alone(hidden_states: torch.Tensor, timestep: torch.Tensor, **inputs):
            noise = torch.stack([torch.randn(hidden_states.shape[1:], generator=g) for g in batch.generators])
            return model(hidden_states=noise.to(hidden_states), timestep=torch.zeros_like(timestep), **inputs)

        return next_clip_loss(
            from_noise_alone,
            batch.latents,
            clip_lengths=batch.clip_lengths,
            generator=batch.generators,
            min_retention=self.objective.min_retention,
            patch_size=self.patch_size,
        )

    def objective_fields(self) -> dict:
        return super().objective_fields() | {"objective": "next frame regression"}
