"""The training objective of next clip diffusion (paper, eq. 4–6; numerically the reference's).

Shapes: B videos, C latent channels, N frames, H × W latent size.
"""

from collections.abc import Sequence

import torch

from ..clips import make_clip_layout
from ..scheduling_next_clip_flow_match import mix_noise, sample_alphas, sample_retentions
from ..transformer_videogpt import VideoGPTTransformerModel


def next_clip_loss(
    transformer: VideoGPTTransformerModel,
    latents: torch.Tensor,
    clip_lengths: Sequence[Sequence[int]],
    generator: torch.Generator | None = None,
    min_retention: float = 0.9,
    patch_size: int = 2,
    **conditions: torch.Tensor,
) -> torch.Tensor:
    """Mean squared error of the predicted clean latents, over every frame of every noisy clip.

    Each clip k gets one noise weight α_k ~ U[0, 1]: ψ = α φ + (1 − α) ε. The clean copies of all clips but the last get
    slight noise, ρ ~ U[`min_retention`, 1] a frame. The first clip has no history and counts too: it is what trains the
    unconditional half of guidance.

    Args:
        transformer: the model, wrapped for data parallelism or not.
        latents: clean latents (B, C, N, H, W), already scaled.
        clip_lengths: for each video, the frames in its clips; each list sums to N.
        generator: a **CPU** generator, so that one seed gives one loss on every device.
        min_retention: the least share of signal in a clean frame; 1 leaves the clean clips without noise.
        patch_size: the model's, in latent pixels.
        conditions: `class_labels`, `encoder_hidden_states`, `encoder_attention_mask`, passed to the model.

    Returns:
        The loss, a scalar in fp32.

    Raises:
        ValueError: if the clips of a video do not sum to N.
    """
    num_frames = latents.shape[2]
    for lengths in clip_lengths:
        if sum(lengths) != num_frames:
            raise ValueError(f"Clips {list(lengths)} have {sum(lengths)} frames, the latents have {num_frames}.")

    alphas = torch.stack([sample_alphas(lengths, generator) for lengths in clip_lengths]).to(latents.device)  # (B, N)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy_latents = mix_noise(latents, alphas[:, None], noise)

    num_clean = num_frames - min(lengths[-1] for lengths in clip_lengths)
    clean_latents = latents[:, :, :num_clean]
    retentions = torch.stack([sample_retentions(num_clean, generator, min_retention) for _ in clip_lengths])
    clean_noise = torch.randn(clean_latents.shape, generator=generator).to(latents)
    clean_latents = mix_noise(clean_latents, retentions[:, None].to(latents.device), clean_noise)

    patch_grid = (latents.shape[3] // patch_size, latents.shape[4] // patch_size)
    layout = make_clip_layout(clip_lengths, patch_grid, device=latents.device)
    denoised = transformer(
        hidden_states=noisy_latents,
        timestep=alphas,
        clean_hidden_states=clean_latents if num_clean else None,
        clip_layout=layout,
        return_dict=False,
        **conditions,
    )[0]
    return torch.nn.functional.mse_loss(denoised.float(), latents.float())
