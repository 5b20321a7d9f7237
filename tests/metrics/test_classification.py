"""Top-1, top-5 and confusion, counted by hand."""

import pytest
import torch

from diffusers_videogpt.metrics.classification import score_classes


def test_scores_by_hand(tmp_path):
    names = [f"class {number}" for number in range(7)]
    probabilities = torch.tensor(
        [
            [0.4, 0.3, 0.1, 0.1, 0.05, 0.03, 0.02],  # right
            [0.3, 0.4, 0.1, 0.1, 0.05, 0.03, 0.02],  # 0 comes second
            [0.4, 0.3, 0.1, 0.1, 0.05, 0.03, 0.02],  # 6 comes last
        ]
    )
    scores = score_classes(probabilities, torch.tensor([0, 0, 6]), names=names)
    assert (scores.top1, scores.top5) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert scores.confusion[0] == [1, 1, 0, 0, 0, 0, 0] and scores.confusion[6][0] == 1
    assert sum(map(sum, scores.confusion)) == 3
