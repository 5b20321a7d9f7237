"""The linear probe: softmax regression on frozen features, its weight decay chosen on videos kept from training.

Shapes: V videos, N clips of each, D channels, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


@dataclass
class LinearProbe:
    """One linear layer on features as they are: what they were standardised by is part of its weights.

    Attributes:
        weight, bias: fp32 (K, D) and (K,).
        weight_decay: the one chosen.
        held_out_accuracy: share of the held-out videos that it got right when it was trained without them.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    weight_decay: float
    held_out_accuracy: float

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """(V, N, D) → (V, K), the mean over the clips."""
        return F.linear(features, self.weight, self.bias).softmax(dim=-1).mean(dim=1)


def fit_linear_probe(
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_classes: int,
    held_out: Sequence[int],
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
) -> LinearProbe:
    """Trains a probe, every clip a sample, by full-batch L-BFGS; the same data always give the same probe.

    It is trained once for each weight decay without the held-out videos, and then, with the one that did best on them
    (the largest of several), on all videos.

    Args:
        features: fp32 (V, N, D).
        labels: int64 (V,), in [0, K).
        num_classes: K.
        held_out: indices of some of the V videos.
        weight_decays: of the weights on standardised features, λ in cross-entropy + λ/2 ‖W‖².

    Raises:
        ValueError: a label is out of range, or no video is left to train on.
    """
    if len(labels) != len(features) or not ((labels >= 0) & (labels < num_classes)).all():
        raise ValueError(
            f"{len(features)} videos need a label each in 0..{num_classes - 1}, got {len(labels)} in "
            f"{int(labels.min())}..{int(labels.max())}."
        )
    is_held_out = torch.zeros(len(features), dtype=torch.bool)
    is_held_out[list(held_out)] = True
    if is_held_out.all() or not is_held_out.any():
        raise ValueError(
            f"{int(is_held_out.sum())} of {len(features)} videos are held out: some must be, but not all."
        )
    best_decay, best_accuracy, best_solution, solution = None, -1.0, None, None
    for weight_decay in sorted(weight_decays, reverse=True):
        weight, bias, solution = _fit(
            features[~is_held_out],
            labels[~is_held_out],
            num_classes=num_classes,
            weight_decay=weight_decay,
            start=solution,
        )
        probe = LinearProbe(weight, bias, weight_decay, 0.0)
        found = probe.probabilities(features[is_held_out]).argmax(dim=1)
        accuracy = (found == labels[is_held_out]).double().mean().item()
        if accuracy > best_accuracy:
            best_decay, best_accuracy, best_solution = weight_decay, accuracy, solution
    weight, bias, _ = _fit(features, labels, num_classes=num_classes, weight_decay=best_decay, start=best_solution)
    return LinearProbe(weight, bias, best_decay, best_accuracy)


def _fit(features, labels, *, num_classes, weight_decay, start):
    """Weight and bias for features as they are, and (K, D + 1) those for standardised ones, to start from."""
    num_clips = features.shape[1]
    features, labels = features.flatten(0, 1).double(), labels.repeat_interleave(num_clips)
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-8)
    standardised = (features - mean) / std
    if start is None:
        start = features.new_zeros(num_classes, features.shape[1] + 1)
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=200, tolerance_grad=1e-6, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        loss = F.cross_entropy(F.linear(standardised, weight, bias), labels)
        loss = loss + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    solution = parameters.detach()
    weight = solution[:, :-1] / std
    return weight.float(), (solution[:, -1] - weight @ mean).float(), solution
