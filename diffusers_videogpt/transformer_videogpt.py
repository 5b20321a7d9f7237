"""The whole Video-GPT network: a Phi-3-mini decoder over clean and noisy video latents.

Shapes: B samples, C latent channels, F frames, H × W latent size, P = (H / 2)(W / 2) patches in a frame, T tokens,
D hidden size, N heads of K channels, L condition tokens.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn as nn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import (
    PixArtAlphaTextProjection,
    TimestepEmbedding,
    Timesteps,
    get_1d_sincos_pos_embed_from_grid,
)
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNormContinuous
from diffusers.utils import apply_lora_scale
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .clips import ClipLayout, make_clip_layout
from .kv_cache import VideoGPTKVCache, VideoGPTLayerCache
from .tile_attention import AttentionTiles, tile_attention


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

# The backends that apply a mask of any pattern; the others drop it or reduce it to a mask over keys.
MASKED_BACKENDS = (
    AttentionBackendName.NATIVE,
    AttentionBackendName._NATIVE_EFFICIENT,
    AttentionBackendName._NATIVE_MATH,
    AttentionBackendName.FLEX,
)

# From here on, the mask is computed sparsely unless a backend was set: by tiles on a CPU, by FlexAttention on a GPU. Below,
# one dense call is faster.
MIN_SPARSE_TOKENS = 2048

# The same under bf16 autocast on a CPU, where tiles are computed in fp32 and a dense call in bf16, which is slower there.
MIN_SPARSE_TOKENS_IN_CPU_AUTOCAST = 512

# Uncompiled, as diffusers calls it, FlexAttention makes all T × T scores.
compiled_flex_attention = torch.compile(flex_attention)


def apply_rotary_emb(x: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates the halves of each head: x cos + (−x₂, x₁) sin, for x (B, T, N, K) and cos, sin (B, T, 1, K)."""
    cos, sin = (table.to(x.dtype) for table in rotary_emb)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class VideoGPTAttnProcessor:
    """Self-attention under the hierarchical mask, through diffusers' attention dispatch.

    Three forms, by what is passed: all tokens at once under `attention_mask` (a tensor, a `BlockMask`, or
    [`~tile_attention.AttentionTiles`]); clean tokens appended to `kv_cache`, under the mask among themselves; or one noisy
    clip alone, after what `kv_cache` holds. The last needs no mask: tokens lie by rank, and each rank sees the history and
    a prefix of the clip, so any backend computes it. Samples beyond those of the cache have no history. With `num_queries`,
    only the last so many tokens are queries, to which mask and `rank_lengths` then belong; keys and values are those of all.
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "VideoGPTAttention",
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | BlockMask | AttentionTiles | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        kv_cache: VideoGPTLayerCache | None = None,
        rank_lengths: tuple[int, ...] | None = None,
        num_queries: int | None = None,
    ) -> torch.Tensor:
        """The outputs of the queries, (B, Q, D).

        Args:
            attn: the module whose projections are used.
            hidden_states: (B, T, D), all tokens that are new, in the order of the layout.
            attention_mask: who sees whom, True where seen: boolean (B, 1, Q, T), or one of the sparse forms of it.
            rotary_emb: cosines and sines of the tokens' positions, each (B, T, 1, K) for heads of width K.
            kv_cache: of this layer; read, and appended to unless `rank_lengths` is given.
            rank_lengths: number of tokens of each rank of a noisy clip: what it sees ends with its own rank.
            num_queries: Q, the last so many tokens; default: all T.
        """
        first_query = 0 if num_queries is None else hidden_states.shape[1] - num_queries
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
            query = query[:, first_query:]
        else:
            query = attn.to_q(hidden_states[:, first_query:])
            key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))
        query = apply_rotary_emb(query, [table[:, first_query:] for table in rotary_emb])
        key = apply_rotary_emb(key, rotary_emb)

        if rank_lengths is None:
            if kv_cache is not None:
                key, value = kv_cache.append(key, value)
            hidden_states = self._dispatch(query, key, value, attention_mask) if num_queries != 0 else query
        elif kv_cache is None:
            hidden_states = self._attend_by_rank(query, key, value, rank_lengths)
        else:
            past_key, past_value = kv_cache.read()
            num_with_past = past_key.shape[0]
            (query, alone_query), (key, alone_key), (value, alone_value) = (
                (x[:num_with_past], x[num_with_past:]) for x in (query, key, value)
            )
            key, value = torch.cat([past_key, key], dim=1), torch.cat([past_value, value], dim=1)
            hidden_states = self._attend_by_rank(query, key, value, rank_lengths)
            if alone_query.shape[0]:
                alone = self._attend_by_rank(alone_query, alone_key, alone_value, rank_lengths)
                hidden_states = torch.cat([hidden_states, alone])

        hidden_states = hidden_states.flatten(2).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](hidden_states))

    def _attend_by_rank(self, query, key, value, rank_lengths):
        outputs, num_visible = [], key.shape[1] - query.shape[1]
        for rank_query in query.split(rank_lengths, dim=1):
            num_visible += rank_query.shape[1]
            outputs.append(self._dispatch(rank_query, key[:, :num_visible], value[:, :num_visible], None))
        return torch.cat(outputs, dim=1)

    def _dispatch(self, query, key, value, attention_mask):
        if isinstance(attention_mask, AttentionTiles):
            return tile_attention(query, key, value, attention_mask)
        if isinstance(attention_mask, BlockMask) and query.device.type == "cuda":
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
            return compiled_flex_attention(query, key, value, block_mask=attention_mask).transpose(1, 2)
        return dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )


class VideoGPTAttention(nn.Module, AttentionModuleMixin):
    """The projections of one attention layer; the computation is its processor's."""

    _default_processor_cls = VideoGPTAttnProcessor
    _available_processors = [VideoGPTAttnProcessor]

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.use_bias = False
        inner_dim = heads * head_dim
        self.to_q = nn.Linear(dim, inner_dim, bias=False)
        self.to_k = nn.Linear(dim, inner_dim, bias=False)
        self.to_v = nn.Linear(dim, inner_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, dim, bias=False), nn.Dropout(dropout)])
        self.set_processor(self._default_processor_cls())

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.processor(self, hidden_states, **kwargs)


class VideoGPTFeedForward(nn.Module):
    """Gated SiLU MLP; `linear_in` holds the gate's rows, then the values'."""

    def __init__(self, dim: int, inner_dim: int):
        super().__init__()
        self.linear_in = nn.Linear(dim, 2 * inner_dim, bias=False)
        self.linear_out = nn.Linear(inner_dim, dim, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, hidden_states = self.linear_in(hidden_states).chunk(2, dim=-1)
        return self.linear_out(nn.functional.silu(gate) * hidden_states)


class VideoGPTTransformerBlock(nn.Module):
    """One layer of Phi-3's decoder: attention and MLP, each behind an RMSNorm and added to its input."""

    def __init__(self, dim: int, heads: int, head_dim: int, ffn_dim: int, eps: float):
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=eps)
        self.attn = VideoGPTAttention(dim, heads, head_dim)
        self.norm2 = nn.RMSNorm(dim, eps=eps)
        self.ff = VideoGPTFeedForward(dim, ffn_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | BlockMask | AttentionTiles | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        kv_cache: VideoGPTLayerCache | None = None,
        rank_lengths: tuple[int, ...] | None = None,
    ) -> torch.Tensor:
        attn_output = self.attn(
            self.norm1(hidden_states),
            attention_mask=attention_mask,
            rotary_emb=rotary_emb,
            kv_cache=kv_cache,
            rank_lengths=rank_lengths,
        )
        hidden_states = hidden_states + attn_output
        return hidden_states + self.ff(self.norm2(hidden_states))


class VideoGPTLastTransformerBlock(VideoGPTTransformerBlock):
    """The last layer: it computes what is read afterwards, the last tokens, and hands on the others as they are.

    A class of its own, so that `torch.compile` makes one graph for the blocks and one for this.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | BlockMask | AttentionTiles | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        kv_cache: VideoGPTLayerCache | None = None,
        rank_lengths: tuple[int, ...] | None = None,
        num_queries: int | None = None,
    ) -> torch.Tensor:
        """`attention_mask` and `rank_lengths` are those of the last `num_queries` tokens; `None`: of all."""
        attn_output = self.attn(
            self.norm1(hidden_states),
            attention_mask=attention_mask,
            rotary_emb=rotary_emb,
            kv_cache=kv_cache,
            rank_lengths=rank_lengths,
            num_queries=num_queries,
        )
        first_query = hidden_states.shape[1] - attn_output.shape[1]  # a processor may give all tokens
        outputs = hidden_states[:, first_query:] + attn_output
        outputs = outputs + self.ff(self.norm2(outputs))
        return torch.cat([hidden_states[:, :first_query], outputs], dim=1)


# For the caches of diffusers that skip blocks (`enable_cache`).
for _block in (VideoGPTTransformerBlock, VideoGPTLastTransformerBlock):
    TransformerBlockRegistry.register(
        model_class=_block,
        metadata=TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=None),
    )


class VideoGPTRotaryPosEmbed(nn.Module):
    """cos and sin of Phi-3's rotary embedding, in fp32, at given positions.

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

    def forward(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) integer positions → cos and sin, each (B, T, 1, K)."""
        with torch.autocast(position_ids.device.type, enabled=False):
            angles = position_ids[:, :, None].float() * self.inv_freq
            angles = torch.cat([angles, angles], dim=-1)[:, :, None]
            return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


def _clip_after_history(
    num_past: int,
    num_clean: int,
    num_noisy: int,
    patch_grid: tuple[int, int],
    condition_lengths: int | tuple[int, ...],
    device: torch.device,
    num_with_past: int | None = None,
    num_alone: int = 0,
) -> ClipLayout:
    """What is cached as one clip, then the clean frames as one, then the noisy frames as one.

    With `num_alone`, as many samples are the noisy frames with nothing before them, behind `num_with_past` others.
    """
    if num_alone:
        clip_lengths = [[num_past, num_noisy]] * num_with_past + [[num_noisy]] * num_alone
        return make_clip_layout(clip_lengths, patch_grid, clean=slice(0), noisy=slice(-1, None), device=device)
    clip_lengths = [n for n in (num_past, num_clean, num_noisy) if n]
    first_clean, first_noisy = int(num_past > 0), len(clip_lengths) - int(num_noisy > 0)
    return make_clip_layout(
        clip_lengths,
        patch_grid,
        clean=slice(first_clean, first_noisy),
        noisy=slice(first_noisy, None),
        condition_lengths=condition_lengths,
        device=device,
    )


@lru_cache(maxsize=4)  # the steps of a clip ask for the same one or two
def _kept_layout(in_inference_mode: bool, *arguments) -> ClipLayout:
    return _clip_after_history(*arguments)


def _lay_out(*arguments) -> ClipLayout:
    """[`_clip_after_history`], kept between calls: what inference mode makes is apart, as no backward pass takes it."""
    if torch.compiler.is_compiling():  # nothing of a graph that is traced may stay behind
        return _clip_after_history(*arguments)
    return _kept_layout(torch.is_inference_mode_enabled(), *arguments)


class VideoGPTTransformerModel(
    ModelMixin, ConfigMixin, PeftAdapterMixin, FromOriginalModelMixin, CacheMixin, AttentionMixin
):
    """Video-GPT (next clip diffusion): predicts the clean latents of noisy clips from the clean clips before them.

    The defaults are the published 3.8 B model, [GrayShine/Video-GPT](https://huggingface.co/GrayShine/Video-GPT).

    Args:
        in_channels (`int`, defaults to `4`): channels of the latents, in and out.
        patch_size (`int`, defaults to `2`): side of a square patch, in latent pixels.
        num_layers (`int`, defaults to `32`): number of blocks.
        num_attention_heads (`int`, defaults to `32`): heads of each attention layer.
        attention_head_dim (`int`, defaults to `96`): channels of each head; D is heads times this.
        ffn_dim (`int`, defaults to `8192`): inner width of the gated MLP.
        norm_eps (`float`, defaults to `1e-5`): ε of the RMSNorms.
        pos_embed_max_size (`int`, defaults to `192`): side, in patches, of the grid whose centre crop places a frame.
        pos_embed_base_size (`int`, defaults to `64`): coordinates run over [0, `pos_embed_base_size`) on that grid.
        rope_theta (`float`, defaults to `10000.0`): base of the rotary frequencies.
        rope_long_factor (`tuple[float]`, *optional*): Phi-3's "longrope" divisors, one for each of the
            `attention_head_dim` / 2 frequencies; `None` is plain RoPE.
        max_position_embeddings (`int`, defaults to `131072`), original_max_position_embeddings (`int`, defaults to
            `4096`): with `rope_long_factor`, set the scale of cos and sin.
        num_classes (`int`, *optional*): size of the class label table; the row after the last label stands for "no
            label" (dropped in training, unconditional in guidance). No table if `None`.
        text_embed_dim (`int`, *optional*): width of the text encoder's states. No text projection if `None`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["VideoGPTTransformerBlock", "VideoGPTLastTransformerBlock"]
    _repeated_blocks = ["VideoGPTTransformerBlock", "VideoGPTLastTransformerBlock"]
    _skip_layerwise_casting_patterns = ["patch_embed", "hint_embed", "time", "norm", "class_embed", "text_projection"]
    # Hooks that move arguments between devices leave the cache alone: it lives where the blocks wrote it.
    _skip_keys = ["kv_cache"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        patch_size: int = 2,
        num_layers: int = 32,
        num_attention_heads: int = 32,
        attention_head_dim: int = 96,
        ffn_dim: int = 8192,
        norm_eps: float = 1e-5,
        pos_embed_max_size: int = 192,
        pos_embed_base_size: int = 64,
        rope_theta: float = 10000.0,
        rope_long_factor: tuple[float, ...] | None = PHI3_LONG_FACTOR,
        max_position_embeddings: int = 131072,
        original_max_position_embeddings: int = 4096,
        num_classes: int | None = None,
        text_embed_dim: int | None = None,
    ):
        super().__init__()
        dim = num_attention_heads * attention_head_dim

        # 1. Patches and the learned tokens around them
        self.noisy_patch_embed = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.clean_patch_embed = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.hint_embed = nn.Embedding(3, dim)  # <img>, </img>, <|diffusion|>
        grid = torch.arange(pos_embed_max_size, dtype=torch.float32) / (pos_embed_max_size / pos_embed_base_size)
        axis_table = get_1d_sincos_pos_embed_from_grid(dim // 2, grid, dtype=torch.float64).float()
        self.register_buffer("pos_embed_axis", axis_table, persistent=False)

        # 2. Time: as a token of each noisy frame, and for the output layer
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_token_embed = TimestepEmbedding(256, dim)
        self.time_embed = TimestepEmbedding(256, dim)

        # 3. Conditions
        self.class_embed = nn.Embedding(num_classes + 1, dim) if num_classes is not None else None
        self.text_projection = PixArtAlphaTextProjection(text_embed_dim, dim) if text_embed_dim is not None else None

        # 4. Decoder
        self.rope = VideoGPTRotaryPosEmbed(
            attention_head_dim,
            rope_theta,
            rope_long_factor,
            max_position_embeddings,
            original_max_position_embeddings,
        )
        block_classes = [VideoGPTTransformerBlock] * (num_layers - 1) + [VideoGPTLastTransformerBlock]
        self.transformer_blocks = nn.ModuleList(
            [block(dim, num_attention_heads, attention_head_dim, ffn_dim, norm_eps) for block in block_classes]
        )
        self.norm = nn.RMSNorm(dim, eps=norm_eps)

        # 5. Output
        self.norm_out = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(dim, patch_size * patch_size * in_channels)

        self.gradient_checkpointing = False

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialises for training from nothing, as the reference does.

        Xavier-uniform linears and patch embeddings with zero biases, N(0, 0.02) for hints, conditions and the timestep
        MLPs, zeros for the output layer.

        Args:
            generator: what the numbers are drawn from; default: torch's own.
        """
        for name, module in self.named_modules():
            if name.startswith(("norm_out.", "proj_out")) and isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight)
            elif isinstance(module, nn.Embedding) or (
                name.startswith(("time_token_embed.", "time_embed.")) and isinstance(module, nn.Linear)
            ):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1), generator=generator)
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def enable_parallelism(self, **kwargs) -> None:
        """Refuses: diffusers' context parallelism splits the tokens between devices in one order for all layers, while the
        hierarchical mask, and the attention that needs no mask, are laid out over all of them.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "Video-GPT has no context parallelism: diffusers' ring and Ulysses attention do not take the hierarchical mask. "
            "For long sequences use gradient checkpointing and FSDP2 (training_scripts/configs/accelerate/fsdp2.yaml)."
        )

    def fuse_qkv_projections(self) -> None:
        """One matrix product in place of three in every attention layer.

        Raises:
            ValueError: while LoRAs are loaded, whose part in the three would be lost.
        """
        if getattr(self, "_hf_peft_config_loaded", False):
            raise ValueError(
                "Fusing would drop what the LoRAs add to to_q, to_k and to_v: call `fuse_lora()` and `unload_lora_weights()` of "
                "the pipeline first, to keep it in the weights, or `unload_lora_weights()` alone."
            )
        super().fuse_qkv_projections()

    def pos_embed(self, rows: int, columns: int) -> torch.Tensor:
        """The fixed 2-D sin-cos table of one frame, (`rows`, `columns`, D): the centre crop of the full grid.

        The first half of the channels tells the column, the second the row, each as [sin, cos].

        Raises:
            ValueError: if the frame is larger than the grid.
        """
        size = self.config.pos_embed_max_size
        if max(rows, columns) > size:
            raise ValueError(
                f"A frame of {rows} × {columns} patches is larger than the position table of {size} × {size}: use a "
                f"height and width of at most {size * self.config.patch_size} latent pixels."
            )
        top, left = (size - rows) // 2, (size - columns) // 2
        by_column = self.pos_embed_axis[None, left : left + columns].expand(rows, -1, -1)
        by_row = self.pos_embed_axis[top : top + rows, None].expand(-1, columns, -1)
        return torch.cat([by_column, by_row], dim=-1)

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        clean_hidden_states: torch.Tensor | None = None,
        clip_layout: ClipLayout | None = None,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        kv_cache: VideoGPTKVCache | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor | None]:
        """Predicts the clean latents of the noisy frames.

        Without `kv_cache`, all tokens are computed together. With it, a call that has `clean_hidden_states` (and no
        `hidden_states`) encodes them, behind the conditions, into the cache and predicts nothing; a call that has
        `hidden_states` reads the cache as its history. With twice the cache's samples, the second half is predicted
        without history or conditions: both passes of guidance at once.

        Args:
            hidden_states (`torch.Tensor` of shape (B, C, F, H, W)): noisy latents.
            timestep (`torch.Tensor` of shape (), (B,) or (B, F)): α in [0, 1], the share of signal in each noisy
                frame: 1 is clean, 0 is pure noise. Not multiplied by 1000.
            clean_hidden_states (`torch.Tensor` of shape (B, C, F', H, W), *optional*): clean latents: the history, or
                in training the clean copies of all clips but the last.
            clip_layout (`ClipLayout`, *optional*): what the tokens are, from [`~clips.make_clip_layout`]. By default the
                noisy frames are one clip, after the clean frames.
            class_labels (`torch.Tensor` of shape (B,), *optional*): integers in [0, `num_classes`]; `num_classes` is "no
                label".
            encoder_hidden_states (`torch.Tensor` of shape (B, L, `text_embed_dim`), *optional*): states of a text
                encoder, real tokens first.
            encoder_attention_mask (`torch.Tensor` of shape (B, L), *optional*): `True` at real text tokens.
            kv_cache (`VideoGPTKVCache`, *optional*): keys and values of conditions and history.
            attention_kwargs (`dict`, *optional*): `scale` multiplies the LoRA layers' output.
            return_dict (`bool`, defaults to `True`): whether to return an output object or a tuple.

        Returns:
            `sample` of shape (B, C, F, H, W), `None` where only a cache was filled. Padded pixels are not meaningful.

        Raises:
            ValueError: if latents, layout and conditions do not belong together.
        """
        reads_cache = kv_cache is not None and hidden_states is not None
        is_one_clip = clip_layout is None and clean_hidden_states is None
        self._check_inputs(hidden_states, timestep, clean_hidden_states, kv_cache)
        conditions = self._embed_conditions(class_labels, encoder_hidden_states)
        latents, size = clean_hidden_states if hidden_states is None else hidden_states, self.config.patch_size
        patch_grid = (latents.shape[3] // size, latents.shape[4] // size)
        num_clean, num_noisy = (0 if x is None else x.shape[2] for x in (clean_hidden_states, hidden_states))
        if clip_layout is None:
            num_conditions = 0 if conditions is None else conditions.shape[1]
            if encoder_attention_mask is not None:
                num_padding = (~encoder_attention_mask.bool()).sum(1)
                num_conditions = tuple((num_conditions - num_padding).tolist())
                conditions = conditions[:, : max(num_conditions)]
            num_past = 0 if kv_cache is None else kv_cache.next_frame
            samples = ()
            if reads_cache and kv_cache.num_tokens:
                samples = (kv_cache.batch_size, latents.shape[0] - kv_cache.batch_size)
            clip_layout = _lay_out(
                num_past, num_clean, num_noisy, patch_grid, num_conditions, latents.device, *samples
            )
        elif reads_cache and not torch.compiler.is_compiling() and (clip_layout.clip != clip_layout.clip[:, :1]).any():
            raise ValueError("After a `kv_cache`, one noisy clip is predicted at a time: `clip_layout` has several.")
        inputs = (0 if conditions is None else conditions.shape[1], num_clean, num_noisy, patch_grid)
        self._check_layout(clip_layout, latents.shape[0], inputs)
        if conditions is not None and kv_cache is not None and (reads_cache or kv_cache.num_tokens):
            raise ValueError(
                "Conditions are encoded into a `kv_cache` once, with the first clean frames: don't pass them again."
            )
        if kv_cache is not None and clip_layout.has_padding:
            raise ValueError("A `kv_cache` holds samples of one size: run samples of different sizes one by one.")

        # 1. Tokens: conditions, clean frames by rank, noisy frames by rank
        pos_embed = self._padded_pos_embed(clip_layout)
        begin, end, hint = self.hint_embed(torch.arange(3, device=clip_layout.stream.device))
        tokens = [] if conditions is None else [conditions]
        if clean_hidden_states is not None:
            tokens += self._embed_clean_frames(clean_hidden_states, pos_embed, begin, end)
            patches = tokens[-2]
        if hidden_states is not None:
            batch_size, channels = hidden_states.shape[:2]
            patches = self._embed_patches(self.noisy_patch_embed, hidden_states, pos_embed)
            timestep = timestep if timestep.ndim == 2 else timestep.reshape(-1, 1)
            timestep = timestep.expand(batch_size, num_noisy).flatten()
            time_proj = self.time_proj(timestep).to(patches.dtype)
            time_tokens = self.time_token_embed(time_proj).unflatten(0, (batch_size, num_noisy))
            tokens += [hint.expand(batch_size, num_noisy, -1), time_tokens, patches]
        tokens = torch.cat([token.to(patches.dtype) for token in tokens], dim=1)

        # 2. Decoder. After the last block only the noisy patches are read, so it computes nothing else.
        num_outputs = 0 if hidden_states is None else patches.shape[1]
        masks, rank_lengths, last_rank_lengths = (None, None), None, None
        if reads_cache or (is_one_clip and conditions is None):
            rank_lengths, last_rank_lengths = (num_noisy, num_noisy, num_outputs), (num_outputs,)
        else:
            masks = self._attention_masks(clip_layout, kv_cache, num_outputs)
        rotary_emb = self.rope(clip_layout.position_ids)
        for i, block in enumerate(self.transformer_blocks):
            layer_cache = None if kv_cache is None else kv_cache.layers[i]
            block_args = (tokens, masks[0], rotary_emb, layer_cache, rank_lengths)
            if i == len(self.transformer_blocks) - 1:
                block_args = (tokens, masks[1], rotary_emb, layer_cache, last_rank_lengths, num_outputs)
            tokens = self._run_block(block, *block_args)

        if hidden_states is None:
            kv_cache.commit(inputs[0], num_clean, patch_grid[0] * patch_grid[1])
            return Transformer2DModelOutput(sample=None) if return_dict else (None,)

        # 3. Output: only the noisy patches are read
        patches = self.norm(tokens[:, -num_outputs:])
        patches = patches.unflatten(1, (num_noisy, -1)).flatten(0, 1)  # (B F, P, D)
        patches = self.proj_out(self.norm_out(patches, self.time_embed(time_proj)))
        patches = patches.view(batch_size, num_noisy, *patch_grid, size, size, channels)
        sample = patches.permute(0, 6, 1, 2, 4, 3, 5).reshape(hidden_states.shape)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def encode_clean(self, clean_hidden_states: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """What the clean frames of a video are after some of the blocks: features for other tasks.

        The frames are one history, without conditions. Blocks behind the last one asked for are not computed.

        Args:
            clean_hidden_states (`torch.Tensor` of shape (B, C, F, H, W)): clean latents.
            layers: numbers of blocks passed, in 0..`num_layers`; 0 gives the patch embeddings.

        Returns:
            For each of `layers` the patch tokens (B, F, P, D), as the next block would read them.
        """
        self._check_latents(clean_hidden_states)
        num_frames, size = clean_hidden_states.shape[2], self.config.patch_size
        patch_grid = (clean_hidden_states.shape[3] // size, clean_hidden_states.shape[4] // size)
        layout = _lay_out(0, num_frames, 0, patch_grid, 0, clean_hidden_states.device)
        begin, end, _ = self.hint_embed(torch.arange(3, device=layout.stream.device))
        frames = self._embed_clean_frames(clean_hidden_states, self._padded_pos_embed(layout), begin, end)
        tokens = torch.cat([token.to(frames[1].dtype) for token in frames], dim=1)
        mask, rotary_emb = self._attention_masks(layout, None, 0)[0], self.rope(layout.position_ids)
        states = {0: tokens}
        for passed, block in enumerate(self.transformer_blocks[: max(layers)], start=1):
            tokens = self._run_block(block, tokens, mask, rotary_emb)
            if passed in layers:
                states[passed] = tokens
        return [states[layer][:, num_frames:-num_frames].unflatten(1, (num_frames, -1)) for layer in layers]

    def _run_block(self, block: VideoGPTTransformerBlock, *block_args) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *block_args)
        return block(*block_args)

    def _check_inputs(self, hidden_states, timestep, clean_hidden_states, kv_cache) -> None:
        if hidden_states is None and (clean_hidden_states is None or kv_cache is None):
            raise ValueError(
                "Pass noisy latents as `hidden_states`, or `clean_hidden_states` with a `kv_cache` to encode them into."
            )
        if hidden_states is not None and timestep is None:
            raise ValueError("`hidden_states` needs its `timestep`: α in [0, 1], 1 is clean.")
        if hidden_states is not None and clean_hidden_states is not None:
            if kv_cache is not None:
                raise ValueError(
                    "With a `kv_cache`, encode `clean_hidden_states` in a call of its own, before this one."
                )
            noisy_shape, clean_shape = list(hidden_states.shape), list(clean_hidden_states.shape)
            if noisy_shape[:2] + noisy_shape[3:] != clean_shape[:2] + clean_shape[3:]:
                raise ValueError(
                    f"`hidden_states` {noisy_shape} and `clean_hidden_states` {clean_shape} must agree in all but the "
                    "number of frames (dimension 2)."
                )
        latents = hidden_states if hidden_states is not None else clean_hidden_states
        num_cached = None if kv_cache is None else kv_cache.batch_size
        if num_cached is not None and latents.shape[0] not in (
            num_cached,
            num_cached * (1 if hidden_states is None else 2),
        ):
            raise ValueError(
                f"The `kv_cache` holds {num_cached} samples, the latents are of {latents.shape[0]}: pass as many, or of noisy "
                "latents twice as many."
            )
        self._check_latents(latents)

    def _check_latents(self, latents: torch.Tensor) -> None:
        size, channels = self.config.patch_size, self.config.in_channels
        if latents.ndim != 5 or latents.shape[1] != channels or latents.shape[3] % size or latents.shape[4] % size:
            raise ValueError(
                f"Latents must be (batch, {channels}, frames, height, width) with height and width divisible by {size}, "
                f"got {list(latents.shape)}."
            )

    def _check_layout(self, layout: ClipLayout, batch_size: int, inputs: tuple) -> None:
        described = (layout.num_condition_tokens, layout.num_clean_frames, layout.num_noisy_frames, layout.padded_grid)
        if described != inputs or layout.batch_size not in (1, batch_size):
            raise ValueError(
                "`clip_layout` describes other inputs: (condition tokens, clean frames, noisy frames, patch grid) are "
                f"{described} for {layout.batch_size} samples in it, {inputs} for {batch_size} in what was passed."
            )

    def _embed_conditions(self, class_labels, encoder_hidden_states) -> torch.Tensor | None:
        """Class token, then text tokens: (B, L, D)."""
        if class_labels is not None and self.class_embed is None:
            raise ValueError("`class_labels` was passed, but this model was configured with `num_classes=None`.")
        if encoder_hidden_states is not None and self.text_projection is None:
            raise ValueError("`encoder_hidden_states` was passed, but this model has `text_embed_dim=None`.")
        conditions = [] if class_labels is None else [self.class_embed(class_labels[:, None])]
        if encoder_hidden_states is not None:
            conditions.append(self.text_projection(encoder_hidden_states))
        return torch.cat(conditions, dim=1) if conditions else None

    def _embed_clean_frames(self, latents, pos_embed, begin, end) -> list[torch.Tensor]:
        """Begin tokens (B, F, D), patches (B, F P, D) and end tokens (B, F, D)."""
        patches = self._embed_patches(self.clean_patch_embed, latents, pos_embed)
        frame_shape = (latents.shape[0], latents.shape[2], -1)
        return [begin.expand(frame_shape), patches, end.expand(frame_shape)]

    def _embed_patches(self, patch_embed: nn.Conv2d, latents: torch.Tensor, pos_embed: torch.Tensor) -> torch.Tensor:
        """(B, C, F, H, W) latents → (B, F P, D) tokens with their place in the frame."""
        batch_size = latents.shape[0]
        patches = patch_embed(latents.transpose(1, 2).flatten(0, 1))  # (B F, D, rows, columns)
        patches = patches.permute(0, 2, 3, 1).unflatten(0, (batch_size, -1))  # (B, F, rows, columns, D)
        # In the weights' dtype: loaded in bf16, the table is still fp32; under autocast the residual stream stays fp32.
        return (patches + pos_embed[:, None].to(patch_embed.weight.dtype)).flatten(1, 3)

    def _padded_pos_embed(self, layout: ClipLayout) -> torch.Tensor:
        """(B or 1, rows, columns, D) position tables, each sample's own in the top-left corner of the padded grid."""
        grids = layout.patch_grids
        if all(grid == grids[0] for grid in grids):
            return self.pos_embed(*grids[0])[None]
        rows, columns = layout.padded_grid
        tables = [self.pos_embed(*grid) for grid in layout.patch_grids]
        pad = nn.functional.pad
        return torch.stack([pad(t, (0, 0, 0, columns - t.shape[1], 0, rows - t.shape[0])) for t in tables])

    def _attention_masks(
        self, layout: ClipLayout, kv_cache: VideoGPTKVCache | None, num_outputs: int
    ) -> tuple[torch.Tensor | BlockMask | AttentionTiles, torch.Tensor | BlockMask | AttentionTiles]:
        """The hierarchical mask in the form that the attention backend takes: all rows, and those of the outputs alone."""
        num_cached = 0 if kv_cache is None else kv_cache.num_tokens
        backend = getattr(self.transformer_blocks[0].attn.processor, "_attention_backend", None)
        if backend is None:
            backend, _ = _AttentionBackendRegistry.get_active_backend()
            in_cpu_autocast = layout.stream.device.type == "cpu" and torch.is_autocast_enabled("cpu")
            least = MIN_SPARSE_TOKENS_IN_CPU_AUTOCAST if in_cpu_autocast else MIN_SPARSE_TOKENS
            if backend == AttentionBackendName.NATIVE and layout.num_tokens >= least and not num_cached:
                if layout.stream.device.type == "cpu":
                    return layout.attention_tiles, layout.output_attention_tiles
                if layout.stream.device.type == "cuda":
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
        return mask, mask[:, :, layout.num_tokens - num_outputs :]
