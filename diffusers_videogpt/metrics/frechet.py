"""Fréchet video distance (Unterthiner et al., "Towards Accurate Generative Models of Video", 2018) of two sets of clips.

    i3d = load_i3d()
    frechet_distance(clip_features(i3d, real), clip_features(i3d, made))

Shapes: N clips, F frames, H × W pixels, D = 400 features.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import logging
from tqdm.auto import tqdm

from .i3d import FRAME_SIZE


logger = logging.get_logger(__name__)


# The distance


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """|μ − ν|² + tr Σ + tr T − 2 tr (Σ T)^½ of the means and unbiased covariances of two sets of features, in float64.

    With Σ = AᵀA and T = BᵀB, where A and B are the centred features over √(N − 1), tr (Σ T)^½ is the sum of the singular
    values of A Bᵀ: no root of a matrix is taken, so fewer clips than features do no harm to the accuracy.

    Args:
        x, y: (N, D) and (M, D).

    Raises:
        ValueError: shapes that do not fit, fewer than 2 rows, NaN or infinity.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"Two sets of features are (N, D) and (M, D), not {x.shape} and {y.shape}.")
    fewest, needed = min(len(x), len(y)), x.shape[1] + 1
    if fewest < 2:
        raise ValueError(f"A covariance needs 2 videos, and to be of full rank {needed}; got {fewest}: give more.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("The features have NaN or infinite values: look for the cause in the network and the frames.")
    if fewest < needed:
        logger.warning(
            f"{fewest} videos are too few for a covariance of {needed - 1} features: at least {needed} are needed. The "
            "distance is too large, and comparable only with that of as many videos."
        )
    (mean_x, trace_x, factor_x), (mean_y, trace_y, factor_y) = _moments(x), _moments(y)
    trace_of_root = np.linalg.svd(factor_x @ factor_y.T, compute_uv=False).sum()
    distance = np.square(mean_x - mean_y).sum() + trace_x + trace_y - 2 * trace_of_root
    return float(max(distance, 0.0))  # rounding may go below


def _moments(x: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Mean, trace of the covariance, and a factor R of it with RᵀR = Σ, at most (D, D)."""
    mean = x.mean(axis=0)
    centred = (x - mean) / np.sqrt(len(x) - 1)
    return mean, np.square(centred).sum(), np.linalg.qr(centred, mode="r")


# Features


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one of what is left."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


@torch.no_grad()
def clip_features(i3d: torch.nn.Module, clips: Iterable[np.ndarray], *, batch_size: int = 8) -> np.ndarray:
    """Clips → features, fp32 (N, D).

    Frames are brought to 224 × 224 bilinearly, pixel centres aligned, without antialiasing.

    Args:
        i3d: [`~metrics.i3d.I3D`], which computes on its device.
        clips: each uint8 (F, H, W, 3), all of one length and size.
    """
    device = next(i3d.parameters()).device
    features = []
    # The distance is defined in fp32; TF32, which convolutions use by default, keeps 10 bits of it.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for batch in batched(tqdm(clips, desc="Features", unit="clip", delay=5), batch_size):
            frames = torch.from_numpy(np.stack(batch)).to(device).permute(0, 4, 1, 2, 3).float()
            if frames.shape[3:] != (FRAME_SIZE, FRAME_SIZE):
                size = (frames.shape[2], FRAME_SIZE, FRAME_SIZE)
                frames = F.interpolate(frames, size, mode="trilinear", align_corners=False)
            features.append(i3d(frames / 127.5 - 1).float().cpu())
    return torch.cat(features).numpy()
