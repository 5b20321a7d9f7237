"""Ulysses context parallelism: N processes compute one batch together, each a share of its tokens.

Every layer but attention works on single tokens, so a process computes its own. Attention needs all tokens but works on single
heads: before it, the processes exchange tokens for heads; behind it, heads for tokens. So each has the whole sequence, in the
order of the layout and with the same mask as one process, for 1/N of the heads.

All groups of tokens (conditions; begin tokens, patches and end tokens of clean frames; hint tokens, time tokens and patches of
noisy frames) are cut into N shares, the noisy patches frame by frame: then each process has the same number of outputs of the
last layer, and these know their frame. Where N does not divide a group, its last token is repeated as padding, which attention
never sees and nobody reads.

Shapes: B samples, T tokens, S tokens in a share, N processes, H heads of K channels.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import ContextParallelConfig, ModelMixin, ParallelConfig

from .clips import ClipLayout
from .diffusers_internals import SeqAllToAllDim, apply_context_parallel, block_cache_config


@dataclass(frozen=True)
class TokenShares:
    """Which process computes which tokens of a layout.

    Attributes:
        order (`torch.Tensor` of int64, (N, S)): the token of the layout at each place of each share; noisy patches are last.
        places (`torch.Tensor` of int64, (T,)): where each token is in `order.flatten()`.
        num_outputs: noisy patches of a share, padding included.
        first_output: the layout's first noisy patch.
        group: the N processes; `None` to look at the shares without any.
    """

    order: torch.Tensor
    places: torch.Tensor
    num_outputs: int
    first_output: int
    group: torch.distributed.ProcessGroup | None = None

    @cached_property
    def of_outputs(self) -> "TokenShares":
        """The shares of the noisy patches alone, as if these were all tokens."""
        num_others = self.order.shape[1] - self.num_outputs
        places = self.places[self.first_output :]
        places = places - (places // self.order.shape[1] + 1) * num_others
        return TokenShares(self.order[:, num_others:] - self.first_output, places, self.num_outputs, 0, self.group)

    def heads_of_all_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, H, K) of this process's tokens → (B, T, H / N, K) of all tokens in the order of the layout."""
        return SeqAllToAllDim.apply(self.group, x, 2, 1).index_select(1, self.places)

    def tokens_of_all_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, H / N, K) of all tokens → (B, S, H, K) of this process's."""
        return SeqAllToAllDim.apply(self.group, x.index_select(1, self.order.flatten()), 1, 2)


def share_tokens(
    layout: ClipLayout, num_processes: int, *, group: torch.distributed.ProcessGroup | None = None
) -> TokenShares:
    """Cuts the tokens of a layout into equal shares.

    Args:
        layout: the tokens.
        num_processes: N.
        group: these processes.
    """
    device = layout.stream.device
    rows, columns = layout.padded_grid
    num_patches, clean, noisy = rows * columns, layout.num_clean_frames, layout.num_noisy_frames
    # (number of such groups, tokens in each), in the order of the layout
    groups = [(1, layout.num_condition_tokens), (1, clean), (1, clean * num_patches), (1, clean)]
    groups += [(1, noisy), (1, noisy), (noisy, num_patches)]

    lengths = [-(-size // num_processes) for _, size in groups]  # tokens of a group in each share
    share_length = sum(count * length for (count, _), length in zip(groups, lengths, strict=True))
    process = torch.arange(num_processes, device=device)[:, None, None]
    order, places, first_token, first_place = [], [], 0, 0
    for (count, size), length in zip(groups, lengths, strict=True):
        if count * size:
            group_index = torch.arange(count, device=device)[:, None]
            taken = (process * length + torch.arange(length, device=device)).clamp(max=size - 1)
            order.append((first_token + group_index * size + taken).flatten(1))
            token = torch.arange(size, device=device)
            place_in_share = first_place + group_index * length + token % length
            places.append((token // length * share_length + place_in_share).flatten())
        first_token, first_place = first_token + count * size, first_place + count * length
    return TokenShares(
        torch.cat(order, dim=1),
        torch.cat(places),
        num_outputs=noisy * lengths[-1],
        first_output=layout.first_output,
        group=group,
    )


def whole_frames(patches: torch.Tensor, num_patches: int, *, num_processes: int) -> torch.Tensor:
    """Gathered outputs of the noisy patches without the padding behind a frame's: (B F, ≥ P, C) → (B F, P, C).

    Every process has the whole loss, and its backward pass finds what its own tokens have to do with it. The sum of these over
    the processes is the gradient. Training in parallel takes their mean: so each is multiplied by their number.
    """
    if patches.requires_grad:
        patches.register_hook(lambda gradient: gradient * num_processes)
    return patches[:, :num_patches]


def check_context_parallel(config: Any, num_heads: int) -> None:
    """Refuses what this model can't compute in parallel.

    Raises:
        NotImplementedError: for ring attention, for `ulysses_anything` and for what is no configuration.
        ValueError: if the processes can't have the same number of heads.
    """
    if not isinstance(config, ContextParallelConfig):
        raise NotImplementedError(
            "Video-GPT computes in parallel by `ContextParallelConfig(ulysses_degree=N)` or `TensorParallelConfig(tp_degree=N)`: "
            f"pass one of them, got {config}."
        )
    if config.ring_degree > 1:
        raise NotImplementedError(
            f"Video-GPT has no ring attention (`ring_degree={config.ring_degree}`): diffusers' gives every chunk of keys the same "
            "mask, and the hierarchical mask differs from chunk to chunk. Use "
            f"ContextParallelConfig(ulysses_degree={config.ring_degree * config.ulysses_degree})."
        )
    if config.ulysses_anything:
        raise NotImplementedError(
            "`ulysses_anything` is not needed, and diffusers' has no backward pass: Video-GPT pads its groups of tokens itself. Use "
            f"ContextParallelConfig(ulysses_degree={config.ulysses_degree})."
        )
    if num_heads % config.ulysses_degree:
        raise ValueError(
            f"`ulysses_degree={config.ulysses_degree}` does not divide the {num_heads} attention heads, of which each process "
            f"computes as many: choose one of {', '.join(str(n) for n in range(2, num_heads + 1) if num_heads % n == 0)}."
        )


def enable_context_parallel(transformer: ModelMixin, config: ContextParallelConfig | ParallelConfig) -> None:
    """The part of a model's `enable_parallelism` that has the tokens shared out; errors as there."""
    context_config = getattr(config, "context_parallel_config", config)
    check_context_parallel(context_config, transformer.config.num_attention_heads)
    if transformer.is_cache_enabled:
        raise ValueError(
            f"{type(block_cache_config(transformer)).__name__} keeps tokens of whole sequences, and each process would have a "
            "share of them: call `disable_cache()` before `enable_parallelism`."
        )
    if transformer._parallel_config is not None:
        raise RuntimeError("`enable_parallelism` was called before: load the model again for another configuration.")
    transformer._resolve_parallel_config(config)
    # The rest that diffusers does is for processors that leave the exchange to its attention backends, which few can do.
    apply_context_parallel(transformer, context_config, transformer._cp_plan)


def check_tensor_parallel(transformer: ModelMixin) -> None:
    """Refuses a model whose projections are fused, of which diffusers' own checks do not know."""
    if any(block.attn.fused_projections for block in transformer.transformer_blocks):
        raise ValueError(
            "Tensor parallelism shares out to_q, to_k and to_v, which are fused: call `unfuse_qkv_projections()` before."
        )
