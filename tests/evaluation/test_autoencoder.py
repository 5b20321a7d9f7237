import argparse
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from diffusers_videogpt.commands.main import main
from diffusers_videogpt.evaluation.autoencoder import (
    LatentReport,
    add_latent_noise,
    channel_correlation,
    colour_units,
    correlation_penalty,
    failed_gates,
    format_report,
    judge_latents,
    latent_statistics,
    turn_hues,
)
from diffusers_videogpt.video_io import write_video


# Orthogonal patterns over four places.
PATTERNS = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])


def latents_of(mixing):
    """Channels (1, C, 2, 2) that mix three uncorrelated patterns of standard deviation 1."""
    return (torch.tensor(mixing) @ PATTERNS).reshape(1, -1, 2, 2)


class PixelAutoencoder(torch.nn.Module):
    """Latents are the pixels themselves, each channel scaled; the posterior's noise has a set standard deviation."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, scale=(1.0, 1.0, 1.0), posterior_std=1e-6):
        super().__init__()
        self.scale = torch.tensor(scale)[:, None, None]
        self.log_variance = 2 * float(np.log(posterior_std))
        self.config = argparse.Namespace(latent_channels=3)

    def encode(self, pixels):
        moments = torch.cat([pixels * self.scale, torch.full_like(pixels, self.log_variance)], dim=1)
        return argparse.Namespace(latent_dist=argparse.Namespace(parameters=moments))

    def decode(self, latents):
        return argparse.Namespace(sample=latents / self.scale)


def noise_videos(count=2, frames=20, size=16):
    return [np.random.default_rng(i).integers(64, 192, (frames, size, size, 3), dtype=np.uint8) for i in range(count)]


# Correlation and noise


def test_correlation_of_known_mixtures():
    correlation = channel_correlation(5 + 3 * latents_of([[1.0, 0, 0], [0.6, 0.8, 0], [-2, 0, 0]]))
    expected = torch.tensor([[1, 0.6, -1], [0.6, 1, -0.6], [-1, -0.6, 1]])
    assert torch.allclose(correlation, expected, atol=1e-6)


def test_penalty_is_zero_for_uncorrelated_channels_and_counts_the_others():
    assert correlation_penalty(latents_of([[2.0, 0, 0], [0, 0.1, 0], [0, 0, 7]])).item() == pytest.approx(0, abs=1e-10)
    assert correlation_penalty(latents_of([[1.0, 0, 0], [-3, 0, 0], [2, 0, 0]])).item() == pytest.approx(6)
    # One pair with correlation 0.6, in both orders.
    assert correlation_penalty(latents_of([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])).item() == pytest.approx(0.72)


def test_a_constant_channel_costs_nothing_and_has_a_finite_gradient():
    latents = latents_of([[1.0, 0, 0], [0, 0, 0], [1, 1, 0]]).requires_grad_()
    penalty = correlation_penalty(latents)
    penalty.backward()
    assert penalty.item() == pytest.approx(2 * 0.5, rel=1e-5) and latents.grad.isfinite().all()


def test_penalty_drives_channels_apart():
    torch.manual_seed(0)
    source = torch.randn(8, 3, 4, 4)
    mixing = torch.nn.Parameter(torch.ones(3, 3) + 0.1 * torch.randn(3, 3))
    optimizer = torch.optim.SGD([mixing], lr=0.1)
    for _ in range(200):
        loss = correlation_penalty(torch.einsum("ij,njhw->nihw", mixing, source))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


def test_noise_is_in_units_of_each_channels_std_whatever_the_scale():
    torch.manual_seed(0)
    latents = torch.randn(64, 2, 8, 8).cumsum(dim=1)
    noise, scale = torch.randn(64, 2, 8, 8), torch.tensor([100.0, 0.01])[:, None, None]
    added = add_latent_noise(latents, 0.5, noise=noise) - latents
    assert torch.allclose(added.std(dim=(0, 2, 3)), 0.5 * latents.std(dim=(0, 2, 3)), rtol=0.05)
    assert torch.allclose(
        add_latent_noise(scale * latents, 0.5, noise=noise),
        scale * add_latent_noise(latents, 0.5, noise=noise),
        rtol=1e-4,
    )
    each = torch.linspace(0, 1, 64)[:, None, None, None]
    assert torch.equal(add_latent_noise(latents, each, noise=noise)[0], latents[0])


def test_scaling_a_channel_gains_nothing():
    """Whoever decodes the noised latents after undoing the scale has the same error: its gradient is zero."""
    torch.manual_seed(0)
    latents, noise, scale = torch.randn(4, 2, 4, 4), torch.randn(4, 2, 4, 4), torch.tensor(3.0, requires_grad=True)
    decoded = add_latent_noise(scale * latents, 0.5, noise=noise) / scale
    (decoded - latents).square().mean().backward()
    assert scale.grad.item() == pytest.approx(0, abs=1e-6)


# The report


# Colours


def test_units_of_colour_are_white_on_what_they_were_made_of():
    mixed = torch.einsum("ij,njhw->nihw", torch.tensor([[0.3, 0.1, 0.0], [0.2, 0.3, 0.1], [0.1, 0.1, 0.1]]), noise(6))
    units = colour_units(mixed, 2)
    told = units(mixed, (4, 4)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(told.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cov(told, correction=0), torch.eye(3), atol=1e-4, rtol=0)
    # The mean of a patch, in the units: patch (1, 2) of frame 3.
    mean = mixed[3, :, 2:4, 4:6].mean(dim=(1, 2))
    expected = units.whitener @ (mean - units.mean)
    torch.testing.assert_close(units(mixed, (4, 4))[3, :, 1, 2], expected)


def test_grey_frames_have_no_colour_that_is_blown_up():
    grey = noise(4)[:, :1].expand(-1, 3, -1, -1)
    told = colour_units(grey, 2)(grey, (4, 4))
    assert told.isfinite().all() and told.abs().max() < 10
    constant = torch.zeros(2, 3, 8, 8)
    assert not colour_units(constant, 2)(constant, (4, 4)).any()


def noise(count):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_hues_turn_by_sixty_degrees():
    colours = np.array([[200, 40, 40], [200, 40, 200], [40, 40, 200], [40, 200, 200], [40, 200, 40], [200, 200, 40]])
    frames = colours.astype(np.uint8)[None]
    np.testing.assert_array_equal(turn_hues(frames), np.roll(frames, -1, axis=1))  # red to magenta, magenta to blue, …
    for value in (0, 77, 255):
        grey = np.full((2, 2, 3), value, dtype=np.uint8)
        np.testing.assert_array_equal(turn_hues(grey), grey)


def test_colours_that_lie_closer_in_the_latents_are_found():
    """Latents that are pixels have the ratio 1; those that tell the sum of the colours alone see no other hue."""
    videos = noise_videos()
    same = judge_latents(PixelAutoencoder(), videos, noise_levels=())
    assert same.hue_ratio == pytest.approx(1, abs=0.05) and same.hue_distance_of_pixels == pytest.approx(0.5, rel=0.6)
    assert judge_latents(PixelAutoencoder((9.0, 1.0, 0.2)), videos, noise_levels=()).hue_ratio == pytest.approx(
        same.hue_ratio, abs=0.05
    )
    grey = [video[..., :1].repeat(3, axis=-1) for video in videos]
    report = judge_latents(PixelAutoencoder(), grey, noise_levels=())
    assert report.hue_distance == report.hue_distance_of_pixels == 0 and not failed_gates_of_colour(report)
    still = judge_latents(PixelAutoencoder(), [video[:1].repeat(4, axis=0) for video in videos], noise_levels=())
    assert still.hue_ratio is None and not failed_gates_of_colour(still) and "Hues" not in format_report(still)
    assert "NaN" not in json.dumps(asdict(still))
    # A channel without variance tells nothing of hues, and spoils nothing.
    without_blue = judge_latents(PixelAutoencoder((1.0, 1.0, 0.0)), videos, noise_levels=())
    assert 0 < without_blue.hue_ratio < same.hue_ratio + 0.05


def failed_gates_of_colour(report):
    return [text for text in failed_gates(report) if "hues" in text]


def test_statistics_of_a_posterior():
    mean = latents_of([[2.0, 0, 0], [0.6, 0.8, 0]])
    log_variance = torch.tensor([0.0, -30.0])[None, :, None, None].expand_as(mean)
    statistics = latent_statistics(torch.cat([mean + 1, log_variance], dim=1), 2)
    assert torch.allclose(statistics.mean, torch.ones(2).double())
    assert torch.allclose(statistics.covariance, torch.tensor([[4, 1.2], [1.2, 1]]).double())
    assert statistics.posterior_noise.tolist() == pytest.approx([1 / 5, 0], abs=1e-6)
    assert statistics.eigenvalues == pytest.approx([0.4, 1.6])
    assert latent_statistics(mean, 2).posterior_noise.tolist() == [0, 0]


def test_report_of_an_autoencoder_that_is_known():
    """Latents that are pixels: noise of s standard deviations is an error of s² variances, whatever their scale."""
    videos = noise_videos()
    variance = np.concatenate(videos).reshape(-1, 3).astype(float).var(axis=0).mean() / 255**2
    report = judge_latents(PixelAutoencoder(), videos, noise_levels=(0.1, 0.2))
    assert report.num_frames == 40 and report.latent_shape == (3, 16, 16)
    assert report.noise_levels == [0, 0.1, 0.2] and report.objects_kept is None
    assert report.mse[0] == 0
    assert report.mse[1:] == pytest.approx([variance / 100, variance / 25], rel=0.05)
    assert report.mse_later == pytest.approx(2 * variance, rel=0.05)
    assert report.eigenvalues == pytest.approx([1, 1, 1], abs=0.1)

    scaled = judge_latents(PixelAutoencoder((10.0, 1.0, 0.1), posterior_std=0.5), videos, noise_levels=(0.1, 0.2))
    assert scaled.mse == pytest.approx(report.mse, rel=0.02)
    assert scaled.eigenvalues == pytest.approx(report.eigenvalues)
    assert scaled.channel_std == pytest.approx((np.array([10, 1, 0.1]) * report.channel_std).tolist())
    std = np.array(scaled.channel_std)
    assert scaled.posterior_noise == pytest.approx((0.25 / (0.25 + std**2)).tolist(), rel=1e-5)


def test_noise_follows_from_the_seed():
    videos = noise_videos(1, 4)
    first, again, other = (judge_latents(PixelAutoencoder(), videos, seed=seed).mse for seed in (0, 0, 1))
    assert first == again and first[1:] != other[1:]


def test_objects_are_compared_frame_by_frame():
    frames = np.full((4, 8, 8, 3), 100, dtype=np.uint8)
    frames[:, :, ::2] = 50

    class LosesTheLastFrame(PixelAutoencoder):
        def decode(self, latents):
            decoded = latents.clone()
            decoded[-1] = 1
            return argparse.Namespace(sample=decoded)

    report = judge_latents(
        LosesTheLastFrame(), [frames], noise_levels=(), read_objects=lambda frame: frame.max() > 200
    )
    assert report.objects_kept == [0.75]


def test_without_a_video_there_is_nothing_to_judge():
    with pytest.raises(ValueError, match="no video"):
        judge_latents(PixelAutoencoder(), [])


def test_an_autoencoder_without_a_posterior_has_no_noise():
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 2}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    report = judge_latents(AutoencoderTiny(**sizes, **blocks), noise_videos(1, 2, 16))
    assert report.posterior_noise == [0, 0] and report.latent_shape == (2, 8, 8)


def report_with(eigenvalue=0.6, kept=(0.995, 0.99, 0.985, 0.981), hue_distance=0.3):
    return LatentReport(
        num_frames=1,
        latent_shape=(2, 8, 8),
        channel_mean=[0.0, 0.5],
        channel_std=[1.0, 2.0],
        posterior_noise=[0.0, 0.25],
        eigenvalues=[eigenvalue, 2 - eigenvalue],
        noise_levels=[0, 0.1, 0.2, 0.3],
        mse=[1e-4, 2e-4, 3e-4, 4e-4],
        mse_later=2e-2,
        objects_kept=None if kept is None else list(kept),
        hue_distance=hue_distance,
        hue_distance_of_pixels=0.3,
    )


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (report_with(), []),
        (report_with(kept=None), []),
        (report_with(kept=(0.99, 0, 0, 0.98)), []),  # the levels between have no gate of their own
        (report_with(hue_distance=0.15), ["other hues move the latents 0.50 times as far as the pixels, below 1"]),
        (report_with(hue_distance=None), []),
        (report_with(eigenvalue=0.49), ["eigenvalue of the channels' correlation 0.490, below 0.5"]),
        (
            report_with(kept=(0.98, 0.98, 0.98, 0.97)),
            ["noise 0 in 98.00 %", "noise 0.3 in 97.00 % of frames, below 98"],
        ),
    ],
)
def test_gates(report, said):
    failed = failed_gates(report)
    assert len(failed) == len(said) and all(part in text for part, text in zip(said, failed, strict=True))


def test_report_in_words():
    text = format_report(report_with())
    assert "1 frames, latents 2 × 8 × 8; eigenvalues of the channels' correlation 0.600, 1.400" in text
    assert "Hues turned by 60° move the latents 0.300 times as far as 16 frames do, the pixels 0.300 times." in text
    assert "| 1 | 0.500 | 2.000 | 25.00 |" in text and "| 0.3 | 0.400 | 33.98 | 98.10 |" in text
    assert "| 0.3 | 0.400 | 33.98 | – |" in format_report(report_with(kept=None))


# The command


def run_command(*options):
    main(["evaluate", "autoencoder", *map(str, options)])


def test_command_on_simulated_scenes(tmp_path, capsys):
    run_command(
        "--num-videos", 2, "--num-frames", 2, "--noise-levels", 0.3, "--output", tmp_path / "to" / "latents.json"
    )
    said = capsys.readouterr().out
    assert "4 frames, latents " in said and "| 0.3 |" in said
    report = json.loads((tmp_path / "to" / "latents.json").read_text())
    assert report["noise_levels"] == [0, 0.3] and len(report["objects_kept"]) == 2


def test_command_on_a_folder_of_videos(tmp_path, capsys):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2, **blocks)
    vae.save_pretrained(tmp_path / "model" / "vae")
    for name, length in (("a", 3), ("b", 9)):
        frames = np.random.default_rng(0).integers(0, 255, (length, 32, 48, 3), dtype=np.uint8)
        write_video(tmp_path / "videos" / f"{name}.mp4", frames, fps=8)
    where = ["--vae", tmp_path / "model", "--subfolder", "vae", "--data", tmp_path / "videos"]
    run_command(*where, "--num-frames", 4, "--resolution", 32)
    said = capsys.readouterr().out
    assert "2 videos; 0 of 2 videos dropped" in said and "7 frames, latents 2 × 16 × 16" in said and "| – |" in said


def test_command_needs_a_file_for_its_output(tmp_path):
    with pytest.raises(SystemExit, match="is a folder: name a JSON file"):
        run_command("--output", tmp_path)
