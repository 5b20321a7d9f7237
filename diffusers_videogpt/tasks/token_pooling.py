"""Features of clips: a layer's tokens of clean frames, or the latents themselves, as one vector a clip.

Shapes: B clips, C latent channels, F frames, h × w latent size, P patches in a frame, D channels.
"""

from collections.abc import Callable, Sequence

import torch

from ..transformer_videogpt import VideoGPTTransformerModel


def resolve_layer(num_layers: int, layer: int | None = None) -> int:
    """How many of `num_layers` blocks are passed: `None` is two thirds of them, −1 all, −2 all but one.

    Raises:
        ValueError: there are not so many.
    """
    if layer is None:
        return round(num_layers * 2 / 3)
    if not -num_layers - 1 <= layer <= num_layers:
        raise ValueError(
            f"`layer`={layer} of a model with {num_layers} layers: choose one of {-num_layers - 1}..{num_layers}."
        )
    return layer % (num_layers + 1)


def _mean(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.mean(dim=(1, 2))


def _mean_std(tokens: torch.Tensor) -> torch.Tensor:
    return torch.cat([_mean(tokens), tokens.flatten(1, 2).std(dim=1)], dim=-1)


def _thirds(tokens: torch.Tensor) -> torch.Tensor:
    return torch.cat([_mean(third) for third in tokens.tensor_split(3, dim=1)], dim=-1)


# (B, F, P, D) → (B, D or a multiple of it)
POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"mean": _mean, "mean_std": _mean_std, "thirds": _thirds}


def pooled_size(dim: int, pooling: str) -> int:
    """Channels of what becomes of tokens of `dim` channels. Raises a `ValueError` for a pooling that there is not."""
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling` is one of {', '.join(POOLINGS)}, got {pooling!r}.")
    return POOLINGS[pooling](torch.zeros(1, 3, 1, dim)).shape[-1]


def pool_clean_layers(
    transformer: VideoGPTTransformerModel, latents: torch.Tensor, *, layers: Sequence[int], pooling: str = "mean"
) -> list[torch.Tensor]:
    """[`pool_clean_tokens`] of several layers at once, which costs what the last of them costs."""
    pooled_size(1, pooling)  # raises if there is none
    layers = [resolve_layer(transformer.config.num_layers, layer) for layer in layers]
    states = transformer.encode_clean(latents.to(transformer.device, transformer.dtype), layers)
    return [POOLINGS[pooling](tokens.float()) for tokens in states]


def pool_clean_tokens(
    transformer: VideoGPTTransformerModel, latents: torch.Tensor, *, layer: int | None = None, pooling: str = "mean"
) -> torch.Tensor:
    """Clips → features: the patch tokens of the clean frames behind a layer, averaged (paper, §4.3).

    The frames of a clip are one history, without noise and conditions. Gradients reach the transformer.

    Args:
        transformer: any, also with LoRA; what lies behind `layer` is not computed.
        latents: (B, C, F, h, w), scaled.
        layer: blocks passed, 0 for the patch embeddings; negative counts from the end; default: two thirds.
        pooling: "mean" over all patches; "mean_std", the standard deviation beside it; "thirds", the means of the first,
            middle and last frames.

    Returns:
        fp32 (B, D), 2 D channels for "mean_std", 3 D for "thirds".

    Raises:
        ValueError: there is no such layer or pooling, or the latents are not of this model.
    """
    return pool_clean_layers(transformer, latents, layers=[layer], pooling=pooling)[0]


def pool_latents(latents: torch.Tensor, pooling: str = "mean", *, keep_pixels: bool = False) -> torch.Tensor:
    """The latents themselves as features, pooled as tokens are: what features of a model are compared with.

    Args:
        latents: (B, C, F, h, w).
        pooling: see [`pool_clean_tokens`].
        keep_pixels: pool over the frames only: each pixel of the latents is channels of its own.

    Returns:
        fp32 (B, C), or (B, C h w) if pixels are kept; a multiple of it for some poolings.
    """
    tokens = latents.float().permute(0, 2, 3, 4, 1)  # (B, F, h, w, C)
    tokens = tokens.flatten(2)[:, :, None] if keep_pixels else tokens.flatten(2, 3)
    return POOLINGS[pooling](tokens)
