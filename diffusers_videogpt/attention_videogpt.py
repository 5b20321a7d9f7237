"""Attention of Video-GPT: rotary positions, the hierarchical mask in the form that suits the device, and one layer of it.

| where | form of the mask | computed by |
|---|---|---|
| few tokens, or a backend chosen by name | boolean tensor (B, 1, T, T) | diffusers' attention dispatch |
| many tokens on a CPU | [`~clips.AttentionTiles`] | [`~tile_attention.tile_attention`] |
| many tokens on a GPU, or the backend "flex" | `BlockMask` | FlexAttention |

Shapes: B samples, T tokens, Q of them queries, N heads of K channels.
"""

import logging
import math
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.utils import apply_lora_scale
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .clips import AttentionTiles, ClipLayout
from .config_values import check_finite_number
from .context_parallel import TokenShares
from .diffusers_internals import active_attention_backend
from .kv_cache import VideoGPTLayerCache
from .tile_attention import tile_attention


logger = logging.getLogger(__name__)


# Options of FlexAttention's kernel as (name, type, text): to a compiler numbers are sizes, which a graph may leave open, and
# the kernel needs them as they are; words it does not change.
KernelOptions = tuple[tuple[str, str, str], ...]
READERS = {"int": int, "float": float, "bool": lambda text: text == "True", "str": str}


def options_as_words(kernel_options: dict[str, int | float | bool | str]) -> KernelOptions:
    return tuple((name, type(value).__name__, str(value)) for name, value in sorted(kernel_options.items()))


def _options_of(words: KernelOptions) -> dict[str, Any] | None:
    return {name: READERS[kind](text) for name, kind, text in words} or None


class TunedBlockMask(NamedTuple):
    """A mask for FlexAttention, with the options that its kernel was asked to have."""

    block_mask: BlockMask
    kernel_options: KernelOptions


AttentionMask = torch.Tensor | BlockMask | TunedBlockMask | AttentionTiles

# The backends that apply a mask of any pattern; the others drop it or reduce it to a mask over keys.
MASKED_BACKENDS = (
    AttentionBackendName.NATIVE,
    AttentionBackendName._NATIVE_EFFICIENT,
    AttentionBackendName._NATIVE_MATH,
    AttentionBackendName.FLEX,
)

# From so many tokens on, the mask is computed sparsely unless a backend was set: by tiles on a CPU, by FlexAttention on a GPU.
# Below, one dense call is faster.
MIN_SPARSE_TOKENS = {"cpu": 640, "cuda": 2048}

TILE_DEVICES = ("cpu",)
BLOCK_MASK_DEVICES = ("cuda",)  # where FlexAttention has a compiled kernel for both passes


def usable_attention_kwargs(attention_kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
    """The entries of `attention_kwargs` that act here; of others there is a warning, as in diffusers' own attention.

    A LoRA `scale` of 0 is made tiny: diffusers divides by it after each forward pass, and after a 0 sets the weights of all
    LoRAs to 1.

    Raises:
        ValueError: `scale` is no finite number, or `kernel_options` no dictionary of plain values.
    """
    if attention_kwargs is None:
        return None
    unused = [name for name in attention_kwargs if name not in ("scale", "kernel_options")]
    if unused:
        logger.warning(
            f"attention_kwargs {unused} are not expected by {VideoGPTAttnProcessor.__name__} and will be ignored."
        )
    usable = {name: value for name, value in attention_kwargs.items() if name not in unused}
    if "scale" in usable:
        check_finite_number("scale` of `attention_kwargs", usable["scale"])
        usable["scale"] = usable["scale"] or 1e-30
    options = usable.get("kernel_options")
    is_plain = isinstance(options, dict) and all(type(x).__name__ in READERS for x in options.values())
    if options is not None and not is_plain:
        raise ValueError(
            f"`kernel_options` of `attention_kwargs` must map names to numbers or words, got {options!r}."
        )
    return usable


def takes_attention_kwargs(forward: Callable) -> Callable:
    """Lets a model's `forward` have diffusers' `attention_kwargs`, checked by [`usable_attention_kwargs`]: `scale` multiplies
    the LoRAs while it runs, the rest reaches it."""
    scaled = apply_lora_scale("attention_kwargs")(forward)

    @wraps(forward)
    def checked(self, *args, **kwargs):
        if kwargs.get("attention_kwargs") is not None:
            kwargs["attention_kwargs"] = usable_attention_kwargs(kwargs["attention_kwargs"])
        return scaled(self, *args, **kwargs)

    return checked


def masks_for_attention(
    layout: ClipLayout,
    backend: AttentionBackendName | None = None,
    *,
    num_cached: int = 0,
    kernel_options: dict[str, Any] | None = None,
) -> tuple[AttentionMask, AttentionMask]:
    """The hierarchical mask in the form that the attention backend takes: all rows, and those of the outputs alone.

    Args:
        layout: the tokens.
        backend: as `set_attention_backend` chose it; `None`: the one that diffusers has active.
        num_cached: number of tokens in a cache before these; every one of these attends to all of them.
        kernel_options: of FlexAttention, where it is what computes; others have none.

    Raises:
        ValueError: if the backend can't apply a mask of any pattern.
    """
    masks = _masks_for_attention(layout, backend, num_cached=num_cached)
    if kernel_options and isinstance(masks[0], BlockMask):
        words = options_as_words(kernel_options)
        return TunedBlockMask(masks[0], words), TunedBlockMask(masks[1], words)
    return masks


def _masks_for_attention(
    layout: ClipLayout, backend: AttentionBackendName | None, *, num_cached: int
) -> tuple[AttentionMask, AttentionMask]:
    device = layout.stream.device.type
    if backend is None:
        backend = active_attention_backend()
        is_long = layout.num_tokens >= MIN_SPARSE_TOKENS.get(device, math.inf)
        if backend == AttentionBackendName.NATIVE and is_long and not num_cached:
            if device in TILE_DEVICES:
                return layout.attention_tiles, layout.output_attention_tiles
            if device in BLOCK_MASK_DEVICES:
                return layout.block_mask, layout.output_block_mask
    if backend not in MASKED_BACKENDS:
        raise ValueError(
            f"Attention backend '{backend.value}' can't apply the hierarchical mask. Choose one of "
            f"{', '.join(repr(b.value) for b in MASKED_BACKENDS)} by `set_attention_backend`."
        )
    if backend == AttentionBackendName.FLEX and not num_cached:
        return layout.block_mask, layout.output_block_mask
    mask = layout.dense_mask
    if num_cached:
        mask = torch.cat([mask.new_ones(*mask.shape[:3], num_cached), mask], dim=-1)
    return mask, mask[:, :, layout.first_output :]


def parts_of_clip(
    num_frames: int,
    num_patches: int,
    *,
    num_before: int,
    backend: AttentionBackendName | None = None,
    device: torch.device,
) -> tuple[tuple[int, ...], tuple[torch.Tensor | None, ...]]:
    """How the tokens of a noisy clip are attended: lengths of its parts, and the masks of these.

    Hint and time tokens are a part under a boolean mask (1, 1, 2 F, before + 2 F): all see what comes before and the hints, only
    time tokens see time tokens. For a backend that takes no such mask each is a part of its own. The patches see all.

    Args:
        num_frames: F, of the clip.
        num_patches: of the whole clip.
        num_before: tokens that stand before the clip and are seen by all of it.
        backend: as `set_attention_backend` chose it; `None`: the one that diffusers has active.
        device: of the mask.
    """
    backend = active_attention_backend() if backend is None else backend
    if backend not in MASKED_BACKENDS or backend == AttentionBackendName.FLEX:
        return (num_frames, num_frames, num_patches), (None, None, None)
    mask = torch.ones(1, 1, 2 * num_frames, num_before + 2 * num_frames, dtype=torch.bool, device=device)
    mask[:, :, :num_frames, num_before + num_frames :] = False
    return (2 * num_frames, num_patches), (mask, None)


@cache
def _compiled_flex_attention(with_grad: bool, num_samples: str, *, num_masks: str, options: KernelOptions):
    """FlexAttention, compiled for calls of one kind.

    torch allows each function a few graphs and then runs it as it is, which for FlexAttention means all T × T scores.
    So each kind of call has a function of its own, whose sizes are all symbols, and `fullgraph=True` makes it an error
    if the graphs are still too many.
    """

    def attend(query, key, value, *, block_mask):
        return flex_attention(query, key, value, block_mask=block_mask, kernel_options=_options_of(options))

    # torch counts the graphs of each code object: a copy of it, under another name, has a count of its own.
    name = f"flex_attention_{with_grad}_{num_samples}_{num_masks}_{options}"
    attend.__code__ = attend.__code__.replace(co_name=name)
    return torch.compile(attend, dynamic=True, fullgraph=True)


def block_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    block_mask: BlockMask,
    kernel_options: KernelOptions = (),
) -> torch.Tensor:
    """Attention by FlexAttention's compiled kernel for (B, T, N, K) tensors, never by the dense form that it has besides.

    It is not asked for through diffusers' dispatch, which would not keep it compiled, and takes no `kernel_options`.

    Raises:
        torch._dynamo.exc.FailOnRecompileLimitHit: if there were too many kinds of inputs for the compiler.
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    if torch.compiler.is_compiling():  # the graph that is being traced contains it
        output = flex_attention(query, key, value, block_mask=block_mask, kernel_options=_options_of(kernel_options))
        return output.transpose(1, 2)
    num_samples, num_masks = ("one" if n == 1 else "several" for n in (query.shape[0], block_mask.shape[0]))
    attend = _compiled_flex_attention(
        torch.is_grad_enabled(), num_samples, num_masks=num_masks, options=kernel_options
    )
    # Compiled even where the caller turned compilation off ("force_eager"): uncompiled, it would make all T × T scores.
    # "Duck shapes" give equal sizes one symbol: then as many queries as keys would need a graph of their own.
    with torch.compiler.set_stance("default"), torch.fx.experimental._config.patch(use_duck_shape=False):
        return attend(query, key, value, block_mask=block_mask).transpose(1, 2)


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: AttentionMask | None = None,
    backend: AttentionBackendName | None = None,
) -> torch.Tensor:
    """softmax(Q Kᵀ / √K + mask) V for (B, T, N, K) tensors; the shape of `query`.

    Args:
        query: may have fewer tokens than `key` and `value`.
        mask: as [`masks_for_attention`] gives it; `None`: every query sees every key.
        backend: of the attention processor, for diffusers' dispatch.
    """
    if isinstance(mask, AttentionTiles):
        return tile_attention(query, key, value, tiles=mask)
    mask, kernel_options = mask if isinstance(mask, TunedBlockMask) else (mask, ())
    if isinstance(mask, BlockMask) and query.device.type in BLOCK_MASK_DEVICES:
        return block_attention(query, key, value, block_mask=mask, kernel_options=kernel_options)
    return dispatch_attention_fn(query, key, value, attn_mask=mask, backend=backend)


# Phi-3-mini-128k's published long factors. The reference always rotates by these, however short the video.
PHI3_LONG_FACTOR = (
    (1.0299999713897705, 1.0499999523162842, 1.0499999523162842, 1.0799999237060547, 1.2299998998641968)
    + (1.2299998998641968, 1.2999999523162842, 1.4499999284744263, 1.5999999046325684, 1.6499998569488525)
    + (1.8999998569488525, 2.859999895095825, 3.68999981880188, 5.419999599456787, 5.489999771118164)
    + (5.489999771118164, 9.09000015258789, 11.579999923706055, 15.65999984741211, 15.769999504089355)
    + (15.789999961853027, 18.360000610351562, 21.989999771118164, 23.079999923706055, 30.009998321533203)
    + (32.35000228881836, 32.590003967285156, 35.56000518798828, 39.95000457763672, 53.840003967285156)
    + (56.20000457763672, 57.95000457763672, 59.29000473022461, 59.77000427246094, 59.920005798339844)
    + (61.190006256103516, 61.96000671386719, 62.50000762939453, 63.3700065612793, 63.48000717163086)
    + (63.48000717163086, 63.66000747680664, 63.850006103515625, 64.08000946044922, 64.760009765625)
    + (64.80001068115234, 64.81001281738281, 64.81001281738281)
)


class VideoGPTRotaryPosEmbed(nn.Module):
    """cos and sin of Phi-3's rotary embedding at given positions.

    Args:
        head_dim: K, even.
        theta: base of the frequencies.
        long_factor: K / 2 divisors of the frequencies ("longrope"), or `None` for plain RoPE.
        max_position_embeddings, original_max_position_embeddings: the ratio of these sets the factor on cos and sin,
            sqrt(1 + ln(ratio) / ln(original)), applied with `long_factor` only.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        *,
        long_factor: tuple[float, ...] | None,
        max_position_embeddings: int,
        original_max_position_embeddings: int,
    ):
        super().__init__()
        factors = torch.ones(head_dim // 2) if long_factor is None else torch.tensor(long_factor, dtype=torch.float32)
        if factors.shape != (head_dim // 2,):
            raise ValueError(
                f"`rope_long_factor` needs one number for each of the {head_dim // 2} frequencies of a head, "
                f"got {len(factors)}."
            )
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        self.register_buffer("inv_freq", 1.0 / (factors * theta**exponents), persistent=False)
        ratio = max_position_embeddings / original_max_position_embeddings
        self.attention_scaling = 1.0
        if long_factor is not None and ratio > 1:
            self.attention_scaling = math.sqrt(1 + math.log(ratio) / math.log(original_max_position_embeddings))

    def _apply(self, fn, recurse=True):
        # Angles of thousands of radians need fp32: a change of dtype moves the frequencies but does not round them.
        inv_freq = self.inv_freq
        super()._apply(fn, recurse)
        self.inv_freq = inv_freq.to(self.inv_freq.device)
        return self

    def forward(
        self, position_ids: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) integer positions → cos and sin, each (B, T, 1, K), computed in fp32, also under autocast, which changes no
        such operation, and rounded to `dtype`."""
        angles = position_ids[:, :, None].float() * self.inv_freq
        angles = torch.cat([angles, angles], dim=-1)[:, :, None]
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(dtype), sin.to(dtype)


def apply_rotary_emb(x: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates the halves of each head: x cos + (−x₂, x₁) sin, for x (B, T, N, K) and cos, sin (B, T, 1, K)."""
    cos, sin = (table.to(x.dtype) for table in rotary_emb)  # they have that dtype already, unless layers are quantized
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class VideoGPTAttnProcessor:
    """Self-attention of Video-GPT, in two forms: all tokens under the hierarchical mask; or clean tokens that are new in a cache,
    one noisy clip after all that it holds, or both, part by part.

    A part sees all up to its own last token, under a mask of its own. The clean tokens are one, under their mask. Of the noisy
    clip the patches, which are nearly all of it, need no mask: they see the history and the whole clip. Hint and time tokens
    are few, and are one part under a small mask; or a part for each rank, which any backend computes.
    """

    _attention_backend = None

    def __call__(
        self,
        attn: "VideoGPTAttention",
        hidden_states: torch.Tensor,
        *,
        attention_mask: AttentionMask | tuple[AttentionMask | None, ...] | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        kv_cache: VideoGPTLayerCache | None = None,
        part_lengths: tuple[int, ...] | None = None,
        num_queries: int | None = None,
        token_shares: TokenShares | None = None,
    ) -> torch.Tensor:
        """The outputs of the queries, (B, Q, D).

        With `token_shares`, `hidden_states`, `rotary_emb`, `num_queries` and the output are of this process's share of the
        tokens; the mask, `part_lengths` and the tokens in the cache are of the whole sequence, for this process's heads.

        Args:
            attn: the module whose projections are used.
            hidden_states: (B, T, D), all tokens that are new, in the order of the layout.
            attention_mask: which of the T keys, and of those in the cache before them, each of the Q queries sees: one of
                the forms that [`masks_for_attention`] gives. With `part_lengths` one for each part, or `None` for a part
                that sees all keys up to its own last.
            rotary_emb: cosines and sines of the tokens' positions, each (B, T, 1, K) for heads of width K.
            kv_cache: of this layer; new tokens are placed behind what it holds. Samples beyond its own have no history.
            part_lengths: number of queries of each part.
            num_queries: Q, only the last so many tokens are queries; default: all T.
            token_shares: which tokens each process has in context parallelism.
        """
        first_query = 0 if num_queries is None else hidden_states.shape[1] - num_queries
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
            query = query[:, first_query:]
        else:
            query = attn.to_q(hidden_states[:, first_query:]) if num_queries != 0 else None
            key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in (key, value))
        key = apply_rotary_emb(key, rotary_emb)
        if token_shares is not None:
            key, value = token_shares.heads_of_all_tokens(key), token_shares.heads_of_all_tokens(value)
        if num_queries == 0:  # only the keys and values are wanted, for the cache
            kv_cache.place(key, value)
            return hidden_states[:, :0]
        query = query.unflatten(-1, (-1, attn.head_dim))
        query = apply_rotary_emb(query, [table[:, first_query:] for table in rotary_emb])
        if token_shares is not None:
            query_shares = token_shares if num_queries is None else token_shares.of_outputs
            query = query_shares.heads_of_all_tokens(query)

        parts = {"part_lengths": part_lengths, "masks": attention_mask}
        if part_lengths is None:
            hidden_states = self._attend(query, key, value, attention_mask=attention_mask)
        elif kv_cache is None:
            hidden_states = self._attend_by_part(query, key, value, **parts)
        else:
            hidden_states = self._attend_after_history(query, key, value, **parts, kv_cache=kv_cache)

        if token_shares is not None:
            hidden_states = query_shares.tokens_of_all_heads(hidden_states)
        hidden_states = hidden_states.flatten(2).to(query.dtype)
        return attn.to_out[0](hidden_states)

    def _attend_after_history(self, query, key, value, *, part_lengths, masks, kv_cache):
        """Tokens behind a cache: the first samples of the batch have the history that it holds, the others have none."""
        num_with_past, num_past = kv_cache.batch_size or len(key), kv_cache.num_tokens
        past_and_key, past_and_value = kv_cache.place(key[:num_with_past], value[:num_with_past])
        output = self._attend_by_part(
            query[:num_with_past], past_and_key, past_and_value, part_lengths=part_lengths, masks=masks
        )
        if query.shape[0] == num_with_past:
            return output
        alone_masks = [None if mask is None else mask[..., num_past:] for mask in masks]
        alone = (x[num_with_past:] for x in (query, key, value))
        output_alone = self._attend_by_part(*alone, part_lengths=part_lengths, masks=alone_masks)
        return torch.cat([output, output_alone])

    def _attend_by_part(self, query, key, value, *, part_lengths, masks):
        """The queries are the last tokens, which are the last keys; those of each part see the keys up to theirs."""
        outputs, num_visible = [], key.shape[1] - query.shape[1]
        for part_query, mask in zip(query.split(part_lengths, dim=1), masks, strict=True):
            num_visible += part_query.shape[1]
            outputs.append(self._attend(part_query, key[:, :num_visible], value[:, :num_visible], attention_mask=mask))
        return torch.cat(outputs, dim=1)

    def _attend(self, query, key, value, *, attention_mask):
        return masked_attention(query, key, value, mask=attention_mask, backend=self._attention_backend)


class VideoGPTAttention(nn.Module, AttentionModuleMixin):
    """The projections of one attention layer; the computation is its processor's."""

    _default_processor_cls = VideoGPTAttnProcessor
    _available_processors = [VideoGPTAttnProcessor]

    def __init__(self, dim: int, heads: int, *, head_dim: int):
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.use_bias = False
        inner_dim = heads * head_dim
        self.to_q = nn.Linear(dim, inner_dim, bias=False)
        self.to_k = nn.Linear(dim, inner_dim, bias=False)
        self.to_v = nn.Linear(dim, inner_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, dim, bias=False)])  # its name in diffusers is "to_out.0"
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.processor(self, hidden_states, **kwargs)
