"""How well videos are classified: top-1, top-5 and the confusion of classes.

Shapes: V videos, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class ClassificationScores:
    """How a classifier does on V videos.

    Attributes:
        names: of the K classes.
        top1, top5: shares of videos whose class is the most probable one, is among the five most probable.
        confusion: (K, K) counts, true class by predicted class.
    """

    names: list[str]
    top1: float
    top5: float
    confusion: list[list[int]]


def score_classes(probabilities: torch.Tensor, labels: torch.Tensor, *, names: Sequence[str]) -> ClassificationScores:
    """Scores (V, K) probabilities against (V,) true numbers."""
    ranked = probabilities.argsort(dim=1, descending=True, stable=True)
    hits = ranked == labels[:, None]
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (labels.numpy(), ranked[:, 0].numpy()), 1)
    top1, top5 = (hits[:, :k].any(dim=1).double().mean().item() for k in (1, 5))
    return ClassificationScores(list(names), top1, top5, confusion.tolist())
