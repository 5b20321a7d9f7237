"""Training on the past as it will be: the clean clips as the model itself predicts them (Resampling Forcing, arXiv 2512.15702).

In training the past is true, in a rollout it is the model's own, with its errors; they add up, because no one taught the model
to correct them. Here a true clip is made noisy and denoised again by the model, behind a past that was made in the same way,
so that errors are passed on from clip to clip as in a rollout. Nothing is learnt from making it, and the targets stay true.

Shapes: B videos, C latent channels, N frames, H × W latent size.
"""

from collections.abc import Sequence

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from ..clips import TOKENS_AROUND_PATCHES
from ..history import History
from ..kv_cache import VideoGPTKVCache
from ..rollout import encode_history
from ..scheduling_next_clip_flow_match import mix_noise
from ..transformer_videogpt import VideoGPTTransformerModel


@torch.no_grad()
def resample_history(
    transformer: VideoGPTTransformerModel,
    latents: torch.Tensor,
    *,
    clip_lengths: Sequence[Sequence[int]],
    generators: Sequence[torch.Generator],
    share: float,
    num_steps: int = 1,
    actions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Of a share of the videos, the clips as the model makes them: each from its noisy self, behind those before it.

    A clip φ_k begins at ψ = α_k φ_k + (1 − α_k) ε with α_k logit-normal, sigmoid(N(0, 1)): near 1 the model changes little, near
    0 it invents. With one step the clip is x̂(ψ, α_k); with two, an Euler step goes half of the way to 1 first. Keys and values
    of the past are kept, so a video costs about as much as a forward pass over it.

    Args:
        transformer: the model itself, not wrapped for data parallelism: videos that are not chosen call it less often.
        latents: (B, C, N, H, W), clean and scaled.
        clip_lengths: for each video, the frames in its clips.
        generators: one a video, on the CPU; each draws the same number of values, whether its video is chosen or not.
        share: of the videos that are chosen, in [0, 1].
        num_steps: 1 or 2.
        actions: that led to each frame, (B, N) or (B, N, D), as the transformer takes them.

    Returns:
        (B, C, N, H, W); the last clip of each video, of which there is no clean copy, and videos that were not chosen are as in
        `latents`.
    """
    chosen: dict[tuple[int, ...], list[int]] = {}  # videos that are cut alike share a cache
    draws = []
    for index, (lengths, generator) in enumerate(zip(clip_lengths, generators, strict=True)):
        if float(torch.rand((), generator=generator)) < share and len(lengths) > 1:
            chosen.setdefault(tuple(lengths), []).append(index)
        alphas = compute_density_for_timestep_sampling(
            "logit_normal", len(lengths), logit_mean=0.0, logit_std=1.0, generator=generator
        )
        draws.append((alphas, torch.randn(latents.shape[1:], generator=generator)))
    resampled = latents.clone()
    # Compiled blocks run as they are here: the past is of another length in every step, and each would be another graph.
    with torch.compiler.set_stance("force_eager"):
        for lengths, members in chosen.items():
            alphas, noise = (torch.stack([draws[index][part] for index in members]).to(latents) for part in (0, 1))
            past = _predict_past(
                transformer,
                latents[members],
                lengths=lengths,
                alphas=alphas,
                noise=noise,
                num_steps=num_steps,
                actions=None if actions is None else actions[members],
            )
            resampled[members, :, : past.shape[2]] = past.to(resampled.dtype)
    # PyTorch 2.9 keeps what autocast made of the weights here, without gradients, for the pass that is to have some.
    torch.clear_autocast_cache()
    return resampled


def _predict_past(
    transformer: VideoGPTTransformerModel,
    latents: torch.Tensor,
    *,
    lengths: Sequence[int],
    alphas: torch.Tensor,
    noise: torch.Tensor,
    num_steps: int,
    actions: torch.Tensor | None,
) -> torch.Tensor:
    """All clips but the last of videos that are cut alike; `alphas` is (B, clips)."""
    num_past = sum(lengths[:-1])
    tokens_per_frame = latents.shape[3] * latents.shape[4] // transformer.config.patch_size**2 + TOKENS_AROUND_PATCHES
    kv_cache = VideoGPTKVCache(
        transformer.config.num_layers, num_past * tokens_per_frame, clip_tokens=max(lengths[:-1]) * tokens_per_frame
    )
    history = History(num_past, kv_cache=kv_cache)
    for k, length in enumerate(lengths[:-1]):
        frames = slice(history.num_frames, history.num_frames + length)
        encode_history(history, transformer)
        alpha = alphas[:, k]
        led = None if actions is None else actions[:, frames]
        # What of the past is looked at, and what leads to this clip.
        given = {"kv_cache": kv_cache if history.num_frames else None, "actions": led}
        clip = mix_noise(latents[:, :, frames], alpha, noise=noise[:, :, frames])
        for steps_left in range(num_steps, 0, -1):
            end = transformer(clip, alpha, return_dict=False, **given)[0].float()
            # To (1 + α) / 2, half of the way along the velocity (x̂ − ψ) / (1 − α), is half of the way to x̂.
            clip, alpha = (end, alpha) if steps_left == 1 else ((clip + end) / 2, (1 + alpha) / 2)
        history.append(clip, led)
    return history.latents
