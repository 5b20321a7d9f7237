"""The authors' numbers (`golden/README.md` says what they are), for every test that compares with them.

The folder is `VIDEOGPT_GOLDEN`, by default the one beside this file. Nothing here knows more than the form of its files,
so any folder of that form can be tested.
"""

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from diffusers_videogpt.clips import ClipLayout, make_clip_layout
from diffusers_videogpt.transformer_videogpt import VideoGPTTransformerModel


GOLDEN_DIR = Path(os.environ.get("VIDEOGPT_GOLDEN", Path(__file__).with_name("golden")))
CASES = json.loads((GOLDEN_DIR / "cases.json").read_text())


@functools.cache
def golden_tensors() -> dict[str, torch.Tensor]:
    """Everything in `cases.safetensors`, by name."""
    return load_file(GOLDEN_DIR / "cases.safetensors")


def golden_latents(name: str) -> torch.Tensor:
    """The frames of tensor `name`, (F, C, H, W) in the file, as latents (1, C, F, H, W)."""
    return golden_tensors()[name].transpose(0, 1)[None]


class TrainingBatch(NamedTuple):
    layout: ClipLayout
    noisy: torch.Tensor  # (B, C, F, H, W), zero where padded
    clean: torch.Tensor | None  # (B, C, F', H, W); None if no sample has a clean clip
    timestep: torch.Tensor  # (B, F)
    outputs: list[torch.Tensor]  # per sample, (C, F, H, W) of its own size


def training_batch(index: int) -> TrainingBatch:
    """Case `index` of `train` as the padded batch that our model takes, with the authors' outputs."""
    case, tensors = CASES["train"][index], golden_tensors()
    patch_grids = [(h // 2, w // 2) for h, w in zip(case["latent_height"], case["latent_width"], strict=True)]
    layout = make_clip_layout(case["clips"], patch_grids)
    rows, columns = layout.padded_grid

    def padded(name: str, num_frames: int) -> torch.Tensor:
        batch = torch.zeros(layout.batch_size, 4, num_frames, 2 * rows, 2 * columns)
        for b, clips in enumerate(case["clips"]):
            if name == "noisy" or len(clips) > 1:
                latents = golden_latents(f"train.{index}.{b}.{name}")[0]
                _, frames, height, width = latents.shape
                batch[b, :, :frames, :height, :width] = latents
        return batch

    timesteps = [tensors[f"train.{index}.{b}.timestep"] for b in range(layout.batch_size)]
    return TrainingBatch(
        layout=layout,
        noisy=padded("noisy", layout.num_noisy_frames),
        clean=padded("clean", layout.num_clean_frames) if layout.num_clean_frames else None,
        timestep=torch.nn.utils.rnn.pad_sequence(timesteps, batch_first=True),
        outputs=[golden_latents(f"train.{index}.{b}.output")[0] for b in range(layout.batch_size)],
    )


def load_golden_model() -> VideoGPTTransformerModel:
    """The authors' tiny checkpoint as our model, in fp32 and evaluation mode; a new one at every call."""
    config = json.loads((GOLDEN_DIR / "config.json").read_text())
    rope_scaling = config["rope_scaling"]
    model = VideoGPTTransformerModel(
        num_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        attention_head_dim=config["hidden_size"] // config["num_attention_heads"],
        ffn_dim=config["intermediate_size"],
        norm_eps=config["rms_norm_eps"],
        pos_embed_max_size=CASES["pos_embed_max_size"],
        rope_theta=config["rope_theta"],
        rope_long_factor=None if rope_scaling is None else rope_scaling["long_factor"],
        max_position_embeddings=config["max_position_embeddings"],
        original_max_position_embeddings=config["original_max_position_embeddings"],
    )
    model.load_state_dict(_our_state_dict(load_file(GOLDEN_DIR / "model.safetensors")))
    return model.eval()


def _our_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {
        "input_x_embedder.proj": "clean_patch_embed",
        "x_embedder.proj": "noisy_patch_embed",
        "time_token.mlp.0": "time_token_embed.linear_1",
        "time_token.mlp.2": "time_token_embed.linear_2",
        "t_embedder.mlp.0": "time_embed.linear_1",
        "t_embedder.mlp.2": "time_embed.linear_2",
        "final_layer.linear": "proj_out",
        "llm.layers": "transformer_blocks",
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
        "self_attn.o_proj": "attn.to_out.0",
        "mlp.gate_up_proj": "ff.linear_in",
        "mlp.down_proj": "ff.linear_out",
        "llm.norm": "norm",
    }
    hint_ids = [CASES["token_ids"][token] for token in ("<img>", "</img>", "<|diffusion|>")]
    ours = {}
    for name, tensor in state_dict.items():
        for theirs, replacement in names.items():
            name = name.replace(theirs, replacement)
        if name == "pos_embed":
            continue
        elif name == "llm.embed_tokens.weight":
            ours["hint_embed.weight"] = tensor[hint_ids]
        elif "adaLN_modulation" in name:
            shift, scale = tensor.chunk(2)
            ours[name.replace("final_layer.adaLN_modulation.1", "norm_out.linear")] = torch.cat([scale, shift])
        elif "qkv_proj" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                ours[name.replace("self_attn.qkv_proj", f"attn.to_{letter}")] = part
        else:
            ours[name] = tensor
    return ours
