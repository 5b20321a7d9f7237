"""What the authors call the modules of their network, and what they are called here."""

SWAPPED = "final_layer.adaLN_modulation.1"

# The reference's modules and ours.
MODULES = {
    "x_embedder.proj": "noisy_patch_embed",
    "input_x_embedder.proj": "clean_patch_embed",
    "time_token.mlp.0": "time_token_embed.linear_1",
    "time_token.mlp.2": "time_token_embed.linear_2",
    "t_embedder.mlp.0": "time_embed.linear_1",
    "t_embedder.mlp.2": "time_embed.linear_2",
    SWAPPED: "norm_out.linear",  # shift, scale there; scale, shift here
    "final_layer.linear": "proj_out",
}
# Those of one decoder layer; where there are several of ours, the reference stacks their rows.
LAYER_MODULES = {
    "input_layernorm": ["norm1"],
    "self_attn.qkv_proj": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "self_attn.o_proj": ["attn.to_out.0"],
    "post_attention_layernorm": ["norm2"],
    "mlp.gate_up_proj": ["ff.linear_in"],
    "mlp.down_proj": ["ff.linear_out"],
}
