"""Two ways to continue a simulated scene that need no model, and the error of their pixels; more is in [`physics_box`].

Shapes: F given frames, N predicted frames, H × W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..extras import require
from ..metrics.rollout_scores import mse_by_frame
from ..worlds import Scene, count_objects


ndimage = require("scipy.ndimage", "The baselines on simulated scenes need SciPy", extra="eval")


@dataclass
class PredictionScores:
    """What one way of predicting scores on a set of scenes.

    Attributes:
        mse: mean squared error of pixels in [0, 1], over all predicted frames of all scenes.
        mse_by_horizon: the same for each of the N predicted frames.
        objects_kept: share of scenes whose last frame has, for every colour, the right number of objects.
    """

    mse: float
    mse_by_horizon: list[float]
    objects_kept: float


def repeat_last_frame(scene: Scene, num_given: int) -> np.ndarray:
    """The last given frame again and again: uint8 (N, H, W, 3)."""
    return np.repeat(scene.frames[num_given - 1 : num_given], len(scene.frames) - num_given, axis=0)


def keep_velocity(scene: Scene, num_given: int) -> np.ndarray:
    """Every object goes on by its last displacement: uint8 (N, H, W, 3).

    The baseline is told by the simulator which pixels belong to which object and how far each moved between the last two
    given frames. Pixels are moved by that, between pixels by bilinear weights, over a background of the most common
    colour of the frame or, where that is known, of what an object did not cover before.
    """
    last, mask = scene.frames[num_given - 1].astype(np.float32), scene.masks[num_given - 1]
    background = _background(scene, num_given)
    displacements = scene.positions[num_given - 1] - scene.positions[num_given - 2]
    frames = []
    for step in range(1, len(scene.frames) - num_given + 1):
        frame = background.copy()
        for index, displacement in enumerate(displacements):
            # The mask is one pixel too tight for the blended outline.
            covered = _dilate(mask == index + 1)[..., None]
            alpha = _shift(covered.astype(np.float32), step * displacement)
            pixels = _shift(last * covered, step * displacement)
            frame = frame * (1 - alpha) + pixels
        frames.append(frame)
    return np.stack(frames).round().clip(0, 255).astype(np.uint8)


def _background(scene: Scene, num_given: int) -> np.ndarray:
    """(H, W, 3): each pixel as it was in the last given frame in which no object covered it."""
    colours, counts = np.unique(scene.frames[num_given - 1].reshape(-1, 3), axis=0, return_counts=True)
    background = np.broadcast_to(colours[counts.argmax()], scene.frames.shape[1:]).astype(np.float32)
    for frame, mask in zip(scene.frames[:num_given], scene.masks[:num_given], strict=True):
        background = np.where(_dilate(mask > 0)[..., None], background, frame)
    return background


def _dilate(mask: np.ndarray) -> np.ndarray:
    """Boolean (H, W), grown by one pixel to all sides and corners."""
    return ndimage.binary_dilation(mask, structure=np.ones((3, 3), bool))


def _shift(image: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """(H, W, C) moved by (x, y) pixels, bilinear; what comes in from outside is 0."""
    whole = np.floor(displacement).astype(int)
    (wx, wy), (height, width) = displacement - whole, image.shape[:2]
    shifted = np.zeros_like(image)
    for dy, weight_y in ((0, 1 - wy), (1, wy)):
        for dx, weight_x in ((0, 1 - wx), (1, wx)):
            x, y = whole[0] + dx, whole[1] + dy
            to_rows, from_rows = (
                slice(max(y, 0), max(height + min(y, 0), 0)),
                slice(max(-y, 0), max(height - max(y, 0), 0)),
            )
            to_columns = slice(max(x, 0), max(width + min(x, 0), 0))
            from_columns = slice(max(-x, 0), max(width - max(x, 0), 0))
            shifted[to_rows, to_columns] += weight_x * weight_y * image[from_rows, from_columns]
    return shifted


def score(predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> PredictionScores:
    """Scores predicted against true frames, each uint8 (N, H, W, 3), one pair a scene."""
    errors = np.stack([mse_by_frame(p, t) for p, t in zip(predictions, truths, strict=True)])
    kept = [count_objects(p[-1]) == count_objects(t[-1]) for p, t in zip(predictions, truths, strict=True)]
    return PredictionScores(float(errors.mean()), errors.mean(axis=0).tolist(), float(np.mean(kept)))
