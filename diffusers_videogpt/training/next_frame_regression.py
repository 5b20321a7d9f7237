"""The baseline in the style of next-token prediction: the next frame by regression, without diffusion."""

import torch
from torch import nn

from .feed import MicroBatch
from .objective import AlphaDrawer, DenoisedClips
from .recipe import NextClipTraining


class NextFrameRegression(NextClipTraining):
    """The loss of next clip diffusion where every noise weight is that of pure noise, α = 0, and tells nothing."""

    def denoise(self, model: nn.Module, batch: MicroBatch, *, draw_alphas: AlphaDrawer) -> DenoisedClips:
        given = []

        def from_noise_alone(hidden_states: torch.Tensor, timestep: torch.Tensor, **inputs):
            noise = torch.stack([torch.randn(hidden_states.shape[1:], generator=g) for g in batch.generators])
            given.extend([noise.to(hidden_states), torch.zeros_like(timestep)])
            return model(hidden_states=given[0], timestep=given[1], **inputs)

        from_noise_alone.training = model.training
        clips = super().denoise(from_noise_alone, batch, draw_alphas=draw_alphas)
        return DenoisedClips(clips.predicted, clips.target, *given)

    def objective_fields(self) -> dict:
        return super().objective_fields() | {"objective": "next frame regression"}
