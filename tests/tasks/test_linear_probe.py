"""Softmax regression: at its optimum, whatever the features' scale; the weight decay that does best on held-out videos."""

import pytest
import torch
import torch.nn.functional as F

from diffusers_videogpt.tasks.linear_probe import fit_linear_probe


@pytest.fixture
def data():
    """120 videos of two clips: three classes, told apart by two of 40 features of different scales."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    features = torch.randn(120, 2, 40, generator=generator)
    features[..., 0] += 2.0 * labels[:, None]
    features[..., 1] -= 2.0 * (labels == 1)[:, None]
    return features * torch.logspace(-3, 3, 40) + 5, labels


def test_is_the_optimum(data):
    """The gradient of the loss on standardised features is zero."""
    features, labels = data
    probe = fit_linear_probe(features, labels, num_classes=3, held_out=range(0, 120, 4), weight_decays=[0.01])
    flat, repeated = features.flatten(0, 1).double(), labels.repeat_interleave(2)
    mean, std = flat.mean(0), flat.std(0)
    weight = (probe.weight.double() * std).requires_grad_()
    bias = (probe.bias.double() + probe.weight.double() @ mean).requires_grad_()
    loss = F.cross_entropy(F.linear((flat - mean) / std, weight, bias), repeated) + 0.005 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4


def test_weight_decay_is_chosen_on_held_out_videos(data):
    features, labels = data
    held_out = range(0, 120, 4)
    probe = fit_linear_probe(features, labels, num_classes=3, held_out=held_out, weight_decays=[10.0, 0.03, 1e-6])
    assert probe.weight_decay == 0.03 and probe.held_out_accuracy > 0.7
    again = fit_linear_probe(features, labels, num_classes=3, held_out=held_out, weight_decays=[10.0, 0.03, 1e-6])
    assert torch.equal(again.weight, probe.weight)

    probabilities = probe.probabilities(features)
    clips = F.linear(features[7], probe.weight, probe.bias).softmax(-1)
    torch.testing.assert_close(probabilities[7], clips.mean(0), atol=1e-3, rtol=0)


def test_bad_labels_and_splits(data):
    features, labels = data
    with pytest.raises(ValueError, match=r"need a label each in 0\.\.1, got 120 in 0\.\.2"):
        fit_linear_probe(features, labels, num_classes=2, held_out=[0])
    with pytest.raises(ValueError, match="0 of 120 videos are held out"):
        fit_linear_probe(features, labels, num_classes=3, held_out=[])
