"""What the pipeline returns."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput


@dataclass
class VideoGPTPipelineOutput(BaseOutput):
    """The predicted frames, without those that were given.

    Args:
        frames (`list[list[PIL.Image.Image]]`, `np.ndarray` or `torch.Tensor`): for `output_type="pil"` one list of F
            images a video; `"np"` (B, F, H, W, 3) and `"pt"` (B, F, 3, H, W) in [0, 1]; `"latent"` (B, C, F, h, w) as the
            transformer sees them, ready to be passed on as `video_latents`.
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor
