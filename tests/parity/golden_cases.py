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
from diffusers_videogpt.convert_checkpoint import HINT_TOKENS, convert_config, convert_state_dict
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
    tensors = load_file(GOLDEN_DIR / "model.safetensors")
    hint_token_ids = [CASES["token_ids"][token] for token in HINT_TOKENS]
    model = VideoGPTTransformerModel(**convert_config(config, tensors))
    model.load_state_dict(convert_state_dict(tensors, model, hint_token_ids=hint_token_ids))
    return model.eval()
