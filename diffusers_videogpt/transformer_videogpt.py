"""The whole Video-GPT network: a Phi-3-mini decoder over clean and noisy video latents.

Shapes: B samples, C latent channels, F frames, H × W latent size, P = (H / 2)(W / 2) patches in a frame, T tokens,
D hidden size, N heads of K channels, L condition tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from diffusers import (
    ContextParallelConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    ParallelConfig,
    TaylorSeerCacheConfig,
    TensorParallelConfig,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_dispatch import AttentionBackendName
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

from .actions import add_actions, check_encoded, make_action_embed
from .attention_videogpt import (
    PHI3_LONG_FACTOR,
    AttentionMask,
    VideoGPTAttention,
    VideoGPTRotaryPosEmbed,
    masks_for_attention,
    parts_of_clip,
    takes_attention_kwargs,
)
from .clips import ClipLayout, layout_after_history
from .config_values import check_network_config
from .context_parallel import (
    TokenShares,
    check_tensor_parallel,
    enable_context_parallel,
    share_tokens,
    whole_frames,
)
from .diffusers_internals import (
    ContextParallelInput,
    ContextParallelOutput,
    PackedColwiseParallel,
    ParallelOnCPUMixin,
    TransformerBlockMetadata,
    TransformerBlockRegistry,
    WholeWeightsMixin,
)
from .kv_cache import VideoGPTKVCache, VideoGPTLayerCache


# The caches of `enable_cache` that know by `cache_context` which of the passes of guidance they skip blocks of.
BLOCK_CACHES = (FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig)


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

    def __init__(self, dim: int, heads: int, *, head_dim: int, ffn_dim: int, eps: float):
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps=eps)
        self.attn = VideoGPTAttention(dim, heads, head_dim=head_dim)
        self.norm2 = nn.RMSNorm(dim, eps=eps)
        self.ff = VideoGPTFeedForward(dim, ffn_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: AttentionMask | tuple[AttentionMask | None, ...] | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        kv_cache: VideoGPTLayerCache | None = None,
        part_lengths: tuple[int, ...] | None = None,
        token_shares: TokenShares | None = None,
    ) -> torch.Tensor:
        attn_output = self.attn(
            self.norm1(hidden_states),
            attention_mask=attention_mask,
            rotary_emb=rotary_emb,
            kv_cache=kv_cache,
            part_lengths=part_lengths,
            token_shares=token_shares,
        )
        hidden_states = hidden_states + attn_output
        return hidden_states + self.ff(self.norm2(hidden_states))


class VideoGPTLastTransformerBlock(VideoGPTTransformerBlock):
    """The last layer: only its last tokens are read afterwards, so only these are computed; the others pass unchanged.

    A class of its own, so that `torch.compile` makes one graph for the blocks and one for this.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: AttentionMask | tuple[AttentionMask | None, ...] | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        kv_cache: VideoGPTLayerCache | None = None,
        part_lengths: tuple[int, ...] | None = None,
        token_shares: TokenShares | None = None,
        num_queries: int | None = None,
    ) -> torch.Tensor:
        """`attention_mask` and `part_lengths` are those of the last `num_queries` tokens; `None`: of all."""
        attn_output = self.attn(
            self.norm1(hidden_states),
            attention_mask=attention_mask,
            rotary_emb=rotary_emb,
            kv_cache=kv_cache,
            part_lengths=part_lengths,
            token_shares=token_shares,
            num_queries=num_queries,
        )
        if num_queries == 0:  # only keys and values were wanted, and are in the cache
            return hidden_states
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


class VideoGPTTransformerModel(
    WholeWeightsMixin,
    ParallelOnCPUMixin,
    ModelMixin,
    ConfigMixin,
    PeftAdapterMixin,
    FromOriginalModelMixin,
    CacheMixin,
    AttentionMixin,
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
        num_actions (`int`, *optional*): discrete actions that lead from frame to frame, or
        action_dim (`int`, *optional*): numbers of a continuous one; see [`~actions`]. No actions if both are `None`.
        action_mean, action_std (`tuple[float]`, *optional*): of each of the `action_dim` numbers in training. The network
            takes normalised actions; [`~actions.ActionSpace`] makes them so.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["VideoGPTTransformerBlock", "VideoGPTLastTransformerBlock"]
    _repeated_blocks = ["VideoGPTTransformerBlock", "VideoGPTLastTransformerBlock"]
    _skip_layerwise_casting_patterns = ["embed", "time", "norm", "text_projection"]
    _keep_in_fp32_modules = ["time_token_embed", "time_embed"]
    # Hooks that move arguments between devices leave the cache alone: it lives where the blocks wrote it.
    _skip_keys = ["kv_cache"]
    # Tokens and positions come in the order of `TokenShares`, of which every process takes its row; the output layer's patches
    # are put together again frame by frame. In between, attention exchanges tokens for heads.
    _cp_plan = {
        "rope": {table: ContextParallelInput(split_dim=1, expected_dims=4, split_output=True) for table in (0, 1)},
        "transformer_blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
    # Each process has some of the heads and of the MLP's inner channels, of the gate's rows as of the values'.
    _tp_plan = {
        "transformer_blocks.*.attn.to_q": "colwise",
        "transformer_blocks.*.attn.to_k": "colwise",
        "transformer_blocks.*.attn.to_v": "colwise",
        "transformer_blocks.*.attn.to_out.0": "rowwise",
        "transformer_blocks.*.ff.linear_in": PackedColwiseParallel([1, 1]),
        "transformer_blocks.*.ff.linear_out": "rowwise",
    }

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
        num_actions: int | None = None,
        action_dim: int | None = None,
        action_mean: tuple[float, ...] | None = None,
        action_std: tuple[float, ...] | None = None,
    ):
        super().__init__()
        check_network_config(self.config)
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
        self.action_embed = make_action_embed(num_actions, action_dim, dim=dim)

        # 4. Decoder
        self.rope = VideoGPTRotaryPosEmbed(
            attention_head_dim,
            rope_theta,
            long_factor=rope_long_factor,
            max_position_embeddings=max_position_embeddings,
            original_max_position_embeddings=original_max_position_embeddings,
        )
        block_classes = [VideoGPTTransformerBlock] * (num_layers - 1) + [VideoGPTLastTransformerBlock]
        sizes = {"head_dim": attention_head_dim, "ffn_dim": ffn_dim, "eps": norm_eps}
        self.transformer_blocks = nn.ModuleList([block(dim, num_attention_heads, **sizes) for block in block_classes])
        self.norm = nn.RMSNorm(dim, eps=norm_eps)

        # 5. Output
        self.norm_out = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(dim, patch_size * patch_size * in_channels)

        self.gradient_checkpointing = False

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialises for training from nothing, as the reference does.

        Xavier-uniform linears and patch embeddings with zero biases, N(0, 0.02) for hints, conditions and the timestep
        MLPs, zeros for the output layer and for actions.

        Args:
            generator: what the numbers are drawn from; default: torch's own.
        """
        for name, module in self.named_modules():
            if name.startswith(("norm_out.linear", "proj_out", "action_embed")):
                nn.init.zeros_(module.weight)
            elif isinstance(module, nn.Embedding) or (
                name.startswith(("time_token_embed.", "time_embed.")) and isinstance(module, nn.Linear)
            ):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1), generator=generator)
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def enable_parallelism(self, *, config: ContextParallelConfig | TensorParallelConfig | ParallelConfig) -> None:
        """From now on N processes compute a batch together: each a share of the tokens and of the heads (context parallelism,
        Ulysses), or each with a share of the blocks' weights (tensor parallelism).

        All processes call the model with the same inputs, noise included, and get the whole prediction. A `kv_cache` that is
        filled from now on holds 1/N of the heads. In training with context parallelism, the mean over the processes of the
        gradients, as DDP and FSDP take it, is the gradient of one process; with tensor parallelism each has its own weights'.

        Args:
            config: `ContextParallelConfig(ulysses_degree=N)` or `TensorParallelConfig(tp_degree=N)`, after
                `torch.distributed.init_process_group`.

        Raises:
            NotImplementedError: for ring attention, `ulysses_anything` and a configuration of neither kind.
            RuntimeError: if it was called before, or the processes are not connected.
            ValueError: if N does not divide the heads; with context parallelism, if `enable_cache` skips blocks; with tensor
                parallelism, for fused projections, LoRAs, quantized weights, and on CPUs, which diffusers leaves out.
        """
        if isinstance(config, TensorParallelConfig) or getattr(config, "tensor_parallel_config", None) is not None:
            check_tensor_parallel(self)
            super().enable_parallelism(config=config)
        else:
            enable_context_parallel(self, config)

    def enable_cache(self, config: FirstBlockCacheConfig | MagCacheConfig | TaylorSeerCacheConfig) -> None:
        """Skips blocks at some denoising steps.

        Args:
            config: of one of diffusers' caches that keep the passes of guidance apart.

        Raises:
            ValueError: for caches that would mix the passes with history and without (FasterCache, Pyramid Attention Broadcast)
                or need what the passes do not have (SeaCache, TextKVCache); and in context parallelism.
        """
        if self._context_parallel_config is not None:
            what = f"{type(config).__name__} keeps tokens of whole sequences; in context parallelism each process has a share"
            raise ValueError(f"{what} of them: load the model again for a cache, without `enable_parallelism`.")
        if not isinstance(config, BLOCK_CACHES):
            raise ValueError(
                f"{type(config).__name__} would mix the passes with history and without, or needs what they do not have. "
                f"Enable one of {', '.join(c.__name__ for c in BLOCK_CACHES)}."
            )
        super().enable_cache(config)

    def fuse_qkv_projections(self) -> None:
        """One matrix product in place of three in every attention layer.

        Raises:
            ValueError: in tensor parallelism; while LoRAs are loaded, whose part in the three would be lost.
        """
        if self._parallel_config is not None and self._context_parallel_config is None:
            raise ValueError(
                "Fusing would join what tensor parallelism has shared out: load the model again, without it."
            )
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

    @takes_attention_kwargs
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
        actions: torch.Tensor | None = None,
        clean_actions: torch.Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor | None]:
        """Predicts the clean latents of the noisy frames.

        Without `kv_cache`, all tokens are computed together. With it, `clean_hidden_states` are encoded, behind the
        conditions, into the cache, and `hidden_states` have all that it then holds as their history; either may be left out.
        With twice the cache's samples and no clean frames, the second half is predicted without history or conditions: both
        passes of guidance at once.

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
            attention_kwargs (`dict`, *optional*): `scale` multiplies the LoRA layers' output, `kernel_options` are those of
                FlexAttention, where that computes: many tokens on CUDA, without a cache before them.
            return_dict (`bool`, defaults to `True`): whether to return an output object or a tuple.
            actions, clean_actions (`torch.Tensor` of shape (B, F) or (B, F, `action_dim`), *optional*): what led to each
                noisy and to each clean frame, of [`~actions.ActionSpace.encode`]; `None` is "no action" everywhere.

        Returns:
            `sample` of shape (B, C, F, H, W), `None` where only a cache was filled. Padded pixels are not meaningful.

        Raises:
            ValueError: if latents, layout and conditions do not belong together.
        """
        self._check_inputs(hidden_states, timestep, clean_hidden_states=clean_hidden_states, kv_cache=kv_cache)
        check_encoded("actions", actions, latents=hidden_states, config=self.config)
        check_encoded("clean_actions", clean_actions, latents=clean_hidden_states, config=self.config)
        conditions = self._embed_conditions(class_labels, encoder_hidden_states)
        if conditions is not None and kv_cache is not None and (clean_hidden_states is None or kv_cache.num_tokens):
            raise ValueError(
                "Conditions are encoded into a `kv_cache` once, with the first clean frames: don't pass them again."
            )
        is_clip_alone = all(x is None for x in (clean_hidden_states, clip_layout, conditions, kv_cache))
        if clip_layout is None:
            clip_layout, conditions = self._default_layout(
                hidden_states, clean_hidden_states, conditions=conditions, mask=encoder_attention_mask, cache=kv_cache
            )
        elif kv_cache is not None and hidden_states is not None and not clip_layout.has_one_clip:
            raise ValueError("After a `kv_cache`, one noisy clip is predicted at a time: `clip_layout` has several.")
        self._check_layout(clip_layout, hidden_states, clean_hidden_states=clean_hidden_states, conditions=conditions)
        if kv_cache is not None and clip_layout.has_padding:
            raise ValueError("A `kv_cache` holds samples of one size: run samples of different sizes one by one.")

        clean = {"clean_hidden_states": clean_hidden_states, "clean_actions": clean_actions}
        how = {"actions": actions, **clean, "conditions": conditions, "clip_layout": clip_layout}
        how["kernel_options"] = (attention_kwargs or {}).get("kernel_options")
        if kv_cache is not None or is_clip_alone:
            sample = self._predict_by_part(hidden_states, timestep, **how, kv_cache=kv_cache)
        else:
            sample = self._predict_under_mask(hidden_states, timestep, **how)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _predict_under_mask(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        *,
        actions: torch.Tensor | None,
        clean_hidden_states: torch.Tensor | None,
        clean_actions: torch.Tensor | None,
        conditions: torch.Tensor | None,
        clip_layout: ClipLayout,
        kernel_options: dict[str, Any] | None,
    ) -> torch.Tensor:
        """Noisy clips with everything before them, all tokens at once: in training, and where no history is cached."""
        pos_embed = self._padded_pos_embed(clip_layout)
        tokens = [] if conditions is None else [conditions]
        if clean_hidden_states is not None:
            tokens += self._embed_clean_frames(clean_hidden_states, pos_embed, actions=clean_actions)
        time_proj = self._embed_timestep(timestep, hidden_states)
        tokens += self._embed_noisy_frames(hidden_states, time_proj, pos_embed=pos_embed, actions=actions)
        mask, output_mask = masks_for_attention(clip_layout, self._own_backend, kernel_options=kernel_options)
        tokens, rotary_emb, shares = self._prepare_tokens(tokens, clip_layout)

        for block in self.transformer_blocks[:-1]:
            tokens = self._run_block(block, tokens, mask, rotary_emb, None, None, shares)
        last, num_outputs = self.transformer_blocks[-1], (shares or clip_layout).num_outputs
        tokens = self._run_block(last, tokens, output_mask, rotary_emb, None, None, shares, num_outputs)

        return self._project_out(tokens[:, -num_outputs:], time_proj, hidden_states=hidden_states)

    def _predict_by_part(
        self,
        hidden_states: torch.Tensor | None,
        timestep: torch.Tensor | None,
        *,
        actions: torch.Tensor | None,
        clean_hidden_states: torch.Tensor | None,
        clean_actions: torch.Tensor | None,
        conditions: torch.Tensor | None,
        clip_layout: ClipLayout,
        kernel_options: dict[str, Any] | None,
        kv_cache: VideoGPTKVCache | None,
    ) -> torch.Tensor | None:
        """Clean frames, behind the conditions, into a cache: every layer writes their keys and values; then one noisy clip after
        all that the cache holds; or both in one pass. Without a cache, the clip alone."""
        pos_embed, num_before = self._padded_pos_embed(clip_layout), 0 if kv_cache is None else kv_cache.num_tokens
        groups, lengths, masks = [], (), ()
        if clean_hidden_states is not None:
            groups = [] if conditions is None else [conditions]
            groups += self._embed_clean_frames(clean_hidden_states, pos_embed, actions=clean_actions)
            how = {"num_cached": num_before, "kernel_options": kernel_options}
            clean_mask, _ = masks_for_attention(clip_layout.without_noisy_frames, self._own_backend, **how)
            lengths, masks = (sum(group.shape[1] for group in groups),), (clean_mask,)
            kv_cache.layers[0].check_room(lengths[0])
        # Of the last layer, clean tokens need keys and values alone: without a clip it is asked for 0 queries.
        last_lengths, last_masks = None, None
        if hidden_states is not None:
            time_proj, num_patches = self._embed_timestep(timestep, hidden_states), clip_layout.num_outputs
            groups += self._embed_noisy_frames(hidden_states, time_proj, pos_embed=pos_embed, actions=actions)
            where = {"num_before": num_before + sum(lengths), "backend": self._own_backend, "device": groups[0].device}
            clip_lengths, clip_masks = parts_of_clip(hidden_states.shape[2], num_patches, **where)
            lengths, masks = lengths + clip_lengths, masks + clip_masks
            last_lengths, last_masks = (num_patches,), (None,)
        tokens, rotary_emb, shares = self._prepare_tokens(groups, clip_layout)
        num_outputs = (shares or clip_layout).num_outputs

        layer_caches = [None] * len(self.transformer_blocks) if kv_cache is None else kv_cache.layers
        for block, layer_cache in zip(self.transformer_blocks[:-1], layer_caches[:-1], strict=True):
            tokens = self._run_block(block, tokens, masks, rotary_emb, layer_cache, lengths, shares)
        last, how = self.transformer_blocks[-1], (last_lengths, shares, num_outputs)
        tokens = self._run_block(last, tokens, last_masks, rotary_emb, layer_caches[-1], *how)

        if clean_hidden_states is not None:
            (rows, columns), num_clean = clip_layout.padded_grid, clip_layout.num_clean_frames
            kv_cache.commit(clip_layout.num_condition_tokens, num_clean, num_patches=rows * columns)
        if hidden_states is not None:
            return self._project_out(tokens[:, -num_outputs:], time_proj, hidden_states=hidden_states)

    def encode_clean(self, clean_hidden_states: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """What the clean frames of a video are after some of the blocks: features for other tasks.

        The frames are one history, without conditions. Blocks behind the last one asked for are not computed.

        Args:
            clean_hidden_states (`torch.Tensor` of shape (B, C, F, H, W)): clean latents.
            layers: numbers of blocks passed, in 0..`num_layers`; 0 gives the patch embeddings.

        Returns:
            For each of `layers` the patch tokens (B, F, P, D), as the next block would read them.

        Raises:
            NotImplementedError: in context parallelism, where no process has all tokens of a layer.
        """
        if self._context_parallel_config is not None:
            raise NotImplementedError(
                "`encode_clean` hands out all tokens of a layer, and in context parallelism no process has them: load the model "
                "again for features, without `enable_parallelism`."
            )
        self._check_latents(clean_hidden_states)
        num_frames = clean_hidden_states.shape[2]
        clip_layout, _ = self._default_layout(None, clean_hidden_states)
        tokens = self._embed_clean_frames(clean_hidden_states, self._padded_pos_embed(clip_layout))
        mask, _ = masks_for_attention(clip_layout, self._own_backend)
        tokens, rotary_emb, _ = self._prepare_tokens(tokens, clip_layout)

        states = {0: tokens}
        for num_passed, block in enumerate(self.transformer_blocks[: max(layers)], start=1):
            tokens = self._run_block(block, tokens, mask, rotary_emb)
            if num_passed in layers:
                states[num_passed] = tokens
        return [states[layer][:, num_frames:-num_frames].unflatten(1, (num_frames, -1)) for layer in layers]

    def _run_block(self, block: VideoGPTTransformerBlock, *block_args) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *block_args)
        return block(*block_args)

    def _check_inputs(self, hidden_states, timestep, *, clean_hidden_states, kv_cache) -> None:
        if hidden_states is None and (clean_hidden_states is None or kv_cache is None):
            raise ValueError(
                "Pass noisy latents as `hidden_states`, or `clean_hidden_states` with a `kv_cache` to encode them into."
            )
        if hidden_states is not None and timestep is None:
            raise ValueError("`hidden_states` needs its `timestep`: α in [0, 1], 1 is clean.")
        if hidden_states is not None and clean_hidden_states is not None:
            noisy_shape, clean_shape = list(hidden_states.shape), list(clean_hidden_states.shape)
            if noisy_shape[:2] + noisy_shape[3:] != clean_shape[:2] + clean_shape[3:]:
                raise ValueError(
                    f"`hidden_states` {noisy_shape} and `clean_hidden_states` {clean_shape} must agree in all but the "
                    "number of frames (dimension 2)."
                )
        latents = hidden_states if hidden_states is not None else clean_hidden_states
        num_cached = None if kv_cache is None else kv_cache.batch_size
        allowed = (
            (num_cached,) if clean_hidden_states is not None or num_cached is None else (num_cached, 2 * num_cached)
        )
        if num_cached is not None and latents.shape[0] not in allowed:
            raise ValueError(
                f"The `kv_cache` holds {num_cached} samples, the latents are of {latents.shape[0]}: pass as many, or of noisy "
                "latents twice as many."
            )
        if clean_hidden_states is None and kv_cache is not None and not kv_cache.num_tokens:
            raise ValueError("The `kv_cache` is empty: encode `clean_hidden_states` into it first, or pass no cache.")
        self._check_latents(latents)

    def _check_latents(self, latents: torch.Tensor) -> None:
        size, channels = self.config.patch_size, self.config.in_channels
        if latents.ndim != 5 or latents.shape[1] != channels or latents.shape[3] % size or latents.shape[4] % size:
            raise ValueError(
                f"Latents must be (batch, {channels}, frames, height, width) with height and width divisible by {size}, "
                f"got {list(latents.shape)}."
            )

    def _check_layout(self, layout, hidden_states, *, clean_hidden_states, conditions) -> None:
        latents = clean_hidden_states if hidden_states is None else hidden_states
        num_conditions = 0 if conditions is None else conditions.shape[1]
        num_clean, num_noisy = (0 if x is None else x.shape[2] for x in (clean_hidden_states, hidden_states))
        layout.check_inputs((num_conditions, num_clean, num_noisy, self._patch_grid(latents)), latents.shape[0])

    def _default_layout(
        self, hidden_states, clean_hidden_states, *, conditions=None, mask=None, cache=None
    ) -> tuple[ClipLayout, torch.Tensor | None]:
        """What is cached, then the clean frames as one clip, then the noisy frames as one; and the conditions, cut to the
        longest text of the batch, whose real tokens `mask` marks."""
        latents = clean_hidden_states if hidden_states is None else hidden_states
        num_clean, num_noisy = (0 if x is None else x.shape[2] for x in (clean_hidden_states, hidden_states))
        condition_lengths = 0 if conditions is None else conditions.shape[1]
        if mask is not None:
            num_padding = (~mask.bool()).sum(1)
            condition_lengths = tuple((condition_lengths - num_padding).tolist())
            conditions = conditions[:, : max(condition_lengths)]
        samples = {}
        if cache is not None and clean_hidden_states is None:
            num_with_past = cache.batch_size
            samples = {"num_with_past": num_with_past, "num_alone": latents.shape[0] - num_with_past}
        layout = layout_after_history(
            0 if cache is None else cache.next_frame,
            num_clean,
            num_noisy_frames=num_noisy,
            patch_grid=self._patch_grid(latents),
            condition_lengths=condition_lengths,
            device=latents.device,
            **samples,
        )
        return layout, conditions

    def _patch_grid(self, latents: torch.Tensor) -> tuple[int, int]:
        return latents.shape[3] // self.config.patch_size, latents.shape[4] // self.config.patch_size

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

    def _embed_clean_frames(
        self, latents: torch.Tensor, pos_embed: torch.Tensor, *, actions: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """With the actions, by rank: begin tokens (B, F, D), patches (B, F P, D), end tokens (B, F, D)."""
        begin, end = self.hint_embed(torch.arange(2, device=latents.device))
        patches = self._embed_patches(self.clean_patch_embed, latents, pos_embed=pos_embed.to(begin.dtype))
        frame_shape = (latents.shape[0], latents.shape[2], -1)
        tokens = [begin.expand(frame_shape), patches, end.expand(frame_shape)]
        return add_actions(tokens, actions, action_embed=self.action_embed)

    def _embed_noisy_frames(
        self, latents: torch.Tensor, time_proj: torch.Tensor, *, pos_embed: torch.Tensor, actions: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """With the actions, by rank: hint tokens (B, F, D), time tokens (B, F, D), patches (B, F P, D)."""
        hint = self.hint_embed(torch.arange(2, 3, device=latents.device))
        patches = self._embed_patches(self.noisy_patch_embed, latents, pos_embed=pos_embed.to(hint.dtype))
        frame_shape = (latents.shape[0], latents.shape[2])
        time_tokens = self.time_token_embed(time_proj.to(self.time_token_embed.linear_1.weight.dtype))
        time_tokens = time_tokens.to(hint.dtype).unflatten(0, frame_shape)
        tokens = [hint.expand(*frame_shape, -1), time_tokens, patches]
        return add_actions(tokens, actions, action_embed=self.action_embed)

    def _embed_timestep(self, timestep: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Sinusoids (B F, 256) of the frames' α."""
        timestep = timestep if timestep.ndim == 2 else timestep.reshape(-1, 1)
        return self.time_proj(timestep.expand(hidden_states.shape[0], hidden_states.shape[2]).flatten())

    def _embed_patches(self, embed: nn.Conv2d, latents: torch.Tensor, *, pos_embed: torch.Tensor) -> torch.Tensor:
        """(B, C, F, H, W) latents → (B, F P, D) tokens with their place in the frame."""
        patches = embed(latents.transpose(1, 2).flatten(0, 1))  # (B F, D, rows, columns)
        patches = patches.permute(0, 2, 3, 1).unflatten(0, (latents.shape[0], -1))  # (B, F, rows, columns, D)
        return (patches + pos_embed[:, None]).flatten(1, 3)

    def _project_out(
        self, patches: torch.Tensor, time_proj: torch.Tensor, *, hidden_states: torch.Tensor
    ) -> torch.Tensor:
        """(B, F P, D) tokens of the noisy patches → the predicted latents, of the shape of `hidden_states`."""
        batch_size, channels, num_frames = hidden_states.shape[:3]
        size = self.config.patch_size
        time_emb = self.time_embed(time_proj.to(self.time_embed.linear_1.weight.dtype)).to(patches.dtype)
        patches = self.norm(patches).unflatten(1, (num_frames, -1)).flatten(0, 1)  # (B F, P, D)
        patches = self.proj_out(self.norm_out(patches, time_emb))
        if self._context_parallel_config is not None:
            rows, columns = self._patch_grid(hidden_states)
            patches = whole_frames(patches, rows * columns, num_processes=self._context_parallel_config.ulysses_degree)
        patches = patches.view(batch_size, num_frames, *self._patch_grid(hidden_states), size, size, channels)
        return patches.permute(0, 6, 1, 2, 4, 3, 5).reshape(hidden_states.shape)

    def _padded_pos_embed(self, layout: ClipLayout) -> torch.Tensor:
        """(B or 1, rows, columns, D) position tables, each sample's own in the top-left corner of the padded grid."""
        grids = layout.patch_grids
        if all(grid == grids[0] for grid in grids):
            return self.pos_embed(*grids[0])[None]
        rows, columns = layout.padded_grid
        tables = [self.pos_embed(*grid) for grid in layout.patch_grids]
        pad = nn.functional.pad
        return torch.stack([pad(t, (0, 0, 0, columns - t.shape[1], 0, rows - t.shape[0])) for t in tables])

    @property
    def _own_backend(self) -> AttentionBackendName | None:
        """What `set_attention_backend` chose; a processor that is not ours may have none."""
        return getattr(self.transformer_blocks[0].attn.processor, "_attention_backend", None)

    def _prepare_tokens(
        self, groups: list[torch.Tensor], layout: ClipLayout
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], TokenShares | None]:
        """The tokens as the first block takes them, (B, T, D), their rotary tables and, in context parallelism, the shares.

        The groups stand one after another, in the dtype of the last group: under autocast they differ.
        The tables are in the dtype of queries and keys, rounded once for all layers.
        """
        tokens = torch.cat([group.to(groups[-1].dtype) for group in groups], dim=1)
        device = tokens.device.type
        in_autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # not on "meta"
        dtype = torch.get_autocast_dtype(device) if in_autocast else tokens.dtype
        if self._context_parallel_config is None:
            return tokens, self.rope(layout.position_ids, dtype), None
        mesh = self._context_parallel_config._ulysses_mesh
        shares = share_tokens(layout, mesh.size(), group=mesh.get_group())
        order = shares.order.flatten()  # the hooks of `_cp_plan` take a row of it
        return tokens[:, order], self.rope(layout.position_ids[:, order], dtype), shares
