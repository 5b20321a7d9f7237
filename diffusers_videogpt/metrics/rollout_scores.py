"""What a prediction of a video scores, frame by frame: squared error and PSNR, beside two predictions that need no network.

Shapes: N predicted frames, H × W pixels.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..files import read_json


LEAST_MSE = 1e-10  # 100 dB: keeps the PSNR of equal frames, and the ratio to a baseline without error, finite


def mse_by_frame(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean squared error of pixels in [0, 1]: twice uint8 (N, H, W, 3) → (N,)."""
    return np.square(frames / 255 - truth / 255).mean(axis=(1, 2, 3))


def psnr_of(mse: np.ndarray) -> np.ndarray:
    """Mean squared errors of pixels in [0, 1] → peak signal-to-noise ratios in dB, at most 100."""
    return -10 * np.log10(np.maximum(mse, LEAST_MSE))


@dataclass(frozen=True)
class RolloutScores:
    """Errors of frames 1 … N after the given ones, means over videos.

    Attributes:
        mse: mean squared error of pixels in [0, 1] at each horizon, of `"predicted"` and whatever was predicted beside it, of `"repeat"` (the last given frame
            again and again) and of `"autoencoder"` (the true frames encoded and decoded: no model of these latents can
            do better).
        psnr: the same as peak signal-to-noise ratio in dB, at most 100, taken for each video and frame and then averaged.
        measures: the same in each further measure that was asked for, by its name.
    """

    mse: dict[str, list[float]]
    psnr: dict[str, list[float]]
    measures: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @property
    def ratio_to_repeat(self) -> float:
        """Error of the prediction over that of repeating the last frame, over all horizons: useful below 1."""
        return self.ratio_of("predicted")

    def ratio_of(self, name: str) -> float:
        """[`ratio_to_repeat`] of one of the predictions in `mse`."""
        return float(np.mean(self.mse[name]) / max(np.mean(self.mse["repeat"]), LEAST_MSE))

    @property
    def horizons(self) -> list[int]:
        """The horizons worth showing: 1, 2, 4, … and N."""
        num_predicted = len(self.mse["predicted"])
        return sorted({2**i for i in range(num_predicted.bit_length())} | {num_predicted})

    @classmethod
    def load(cls, path: str | Path) -> "RolloutScores":
        """Reads a `scores.json` that a rollout in training wrote.

        Raises:
            ValueError: it holds something else.
        """
        try:
            return cls(**read_json(path))
        except TypeError as error:
            raise ValueError(f"{path}: these are not the scores of a rollout ({error}).") from error
