"""How well masks of objects agree with the true ones: J of the regions, F of the boundaries, as DAVIS 2017 defines them.

    scores = summarize({"bear": score_sequence(truth, predicted)})
    print(format_scores({"mine": scores}))

Shapes: F frames, O objects, H × W pixels. Masks are uint8 (F, H, W): 0 for the background, 1 … O for the objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..extras import require


BOUNDARY_TOLERANCE = 0.008  # of the diagonal
NUM_BINS = 4  # of a sequence, for decay
LEAST_FRAMES = 3  # since the first and the last do not count


def region_similarity(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """J: intersection over union of boolean masks (…, H, W), one number a frame; 1 where both are empty."""
    intersection = (truth & predicted).sum((-2, -1))
    union = (truth | predicted).sum((-2, -1))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one to the right, below, or below to the right; boolean (H, W).

    A neighbour outside of the picture is no difference: what is cut off by the picture's edge has no boundary there.
    """
    mask = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    here = mask[:-1, :-1]
    return (here != mask[:-1, 1:]) | (here != mask[1:, :-1]) | (here != mask[1:, 1:])


def boundary_radius(height: int, width: int) -> int:
    """How far apart two boundaries may be, in pixels, and still agree."""
    return int(np.ceil(BOUNDARY_TOLERANCE * np.linalg.norm((height, width))))


def boundary_similarity(truth: np.ndarray, predicted: np.ndarray) -> float:
    """F of one frame: harmonic mean of the shares of either boundary that lie near the other one.

    Near is within a disc of [`boundary_radius`]. Where one mask has no boundary and the other has, F is 0; where neither
    has, 1.

    Args:
        truth, predicted: boolean (H, W).

    Raises:
        ImportError: OpenCV is not installed.
    """
    cv2 = require("cv2", "The boundary measure needs OpenCV", extra="eval")
    radius = boundary_radius(*truth.shape)
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disc = (x**2 + y**2 <= radius**2).astype(np.uint8)
    edges = [boundary(mask) for mask in (predicted, truth)]
    if not edges[0].any() or not edges[1].any():
        return float(edges[0].any() == edges[1].any())
    near = [cv2.dilate(edge.astype(np.uint8), disc) > 0 for edge in edges]
    precision = edges[0][near[1]].sum() / edges[0].sum()
    recall = edges[1][near[0]].sum() / edges[1].sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


@dataclass(frozen=True)
class SequenceScores:
    """J and F of the objects of one video, each (O, F − 2): the first and the last frame do not count."""

    j: np.ndarray
    f: np.ndarray


def score_sequence(truth: np.ndarray, predicted: np.ndarray) -> SequenceScores:
    """Compares the masks of one video, object by object.

    The objects are those up to the largest number in the first true mask. The pixels that DAVIS leaves open (255) are
    background.

    Args:
        truth, predicted: uint8 (F, H, W).

    Raises:
        ValueError: shapes differ, fewer than 3 frames, no object in the first mask, or a predicted one that is not there.
    """
    j = region_scores(truth, predicted)
    f = np.empty_like(j)
    for index in range(len(j)):
        pairs = zip(truth[1:-1] == index + 1, predicted[1:-1] == index + 1, strict=True)
        f[index] = [boundary_similarity(a, b) for a, b in pairs]
    return SequenceScores(j, f)


def region_scores(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The J of [`score_sequence`] alone, (O, F − 2), which needs no OpenCV."""
    if truth.shape != predicted.shape or truth.ndim != 3:
        raise ValueError(
            f"True masks are (frames, height, width) {truth.shape}, predicted ones {predicted.shape}: they must agree."
        )
    if len(truth) < LEAST_FRAMES:
        raise ValueError(f"{len(truth)} frames leave none to score: the first and the last do not count.")
    num_objects = int(np.where(truth[0] == 255, 0, truth[0]).max())
    if num_objects == 0:
        raise ValueError(
            "The first true mask marks no object: its pixels are 0, or 255, which stands for 'left open'."
        )
    largest = int(predicted[1:-1].max())
    if largest > num_objects:
        raise ValueError(f"A predicted mask has the object {largest}, the first true mask only {num_objects} objects.")
    return np.stack([region_similarity(truth[1:-1] == n, predicted[1:-1] == n) for n in range(1, num_objects + 1)])


def statistics(per_frame: np.ndarray) -> tuple[float, float, float]:
    """Of one object's (F,): mean; recall, the share above 0.5; decay, the first quarter's mean less the last one's.

    Neighbouring quarters share a frame.
    """
    edges = np.round(np.linspace(1, len(per_frame), NUM_BINS + 1) + 1e-10).astype(int) - 1
    first, last = per_frame[edges[0] : edges[1] + 1], per_frame[edges[-2] : edges[-1] + 1]
    return float(per_frame.mean()), float((per_frame > 0.5).mean()), float(first.mean() - last.mean())


@dataclass(frozen=True)
class SegmentationScores:
    """Means over all objects of all videos.

    Attributes:
        j_mean, j_recall, j_decay, f_mean, f_recall, f_decay: see [`statistics`].
        objects: (mean J, mean F) of every object, as "video_1".
    """

    j_mean: float
    j_recall: float
    j_decay: float
    f_mean: float
    f_recall: float
    f_decay: float
    objects: dict[str, tuple[float, float]]

    @property
    def jf_mean(self) -> float:
        """J&F, by which DAVIS ranks."""
        return (self.j_mean + self.f_mean) / 2


def summarize(sequences: Mapping[str, SequenceScores]) -> SegmentationScores:
    """The figures of a set, by the names of its videos."""
    rows = {
        f"{name}_{index + 1}": (statistics(j), statistics(f))
        for name, scores in sequences.items()
        for index, (j, f) in enumerate(zip(scores.j, scores.f, strict=True))
    }
    means = np.mean(list(rows.values()), axis=0)  # (2, 3)
    return SegmentationScores(*means.flatten().tolist(), {name: (j[0], f[0]) for name, (j, f) in rows.items()})


def format_scores(results: Mapping[str, SegmentationScores]) -> str:
    """A table in Markdown, a row a way of segmenting."""
    lines = [
        "| | J&F | J mean | J recall | J decay | F mean | F recall | F decay | objects |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, s in results.items():
        numbers = (s.jf_mean, s.j_mean, s.j_recall, s.j_decay, s.f_mean, s.f_recall, s.f_decay)
        lines.append(f"| {name} | {' | '.join(f'{number:.3f}' for number in numbers)} | {len(s.objects)} |")
    return "\n".join(lines)
