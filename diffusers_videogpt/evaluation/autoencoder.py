"""An autoencoder's latents, judged for diffusion: what a model that denoises them has to fight with.

    report = judge_latents(vae, videos, read_objects=count_objects)    # videos: uint8 (F, H, W, 3) each
    print(format_report(report))
    print(failed_gates(report))                                        # [] if the latents are fit

Five things decide it. Posterior noise is variance that no model can predict. A small eigenvalue of the channels' correlation
is a direction with hardly any variance, in which little noise destroys what it tells. The reconstruction is the best that
any model of the latents can do; the reconstruction of noised latents tells how exact a model has to be
(l-DeTok, https://arxiv.org/abs/2507.15856, trains for it). And where other hues hardly move the latents, a model that is
unsure of a place, and so predicts a weaker latent there, predicts another colour.

Shapes: N frames, F frames of a video, C latent channels, H × W pixels, h × w latents. Noise is always in units of each
channel's own standard deviation, so that no scale of the latents makes them look more robust.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from ..data.latents import encode_moments


NOISE_LEVELS = (0.1, 0.2, 0.3)
# The gates: with a smallest eigenvalue of 0.01 and objects lost from every fourth frame at a noise of 0.3, predicted videos
# lose them too.
LEAST_EIGENVALUE = 0.5
LEAST_KEPT = {0.0: 0.99, 0.3: 0.98}  # share of frames with all their objects, by level of noise
# Other hues move the latents at least as far as the pixels. At a fifth of that, predicted objects change their colours.
LEAST_HUE_RATIO = 1.0
FRAMES_LATER = 16  # as a measure of what moves
FRAMES_PER_CALL = 16


# Of latents, in training and here


def channel_correlation(latents: torch.Tensor) -> torch.Tensor:
    """Correlation of the channels over frames and places, (N, C, h, w) → (C, C); differentiable.

    A channel that is constant correlates with none.
    """
    values = latents.transpose(0, 1).flatten(1)
    values = values - values.mean(dim=1, keepdim=True)
    values = values / values.square().mean(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
    return values @ values.T / values.shape[1]


def correlation_penalty(latents: torch.Tensor) -> torch.Tensor:
    """Sum of the squared correlations of every channel with every other one, (N, C, h, w) → ().

    It is 0 for uncorrelated channels and C (C − 1) for channels that all tell the same.
    """
    correlation = channel_correlation(latents)
    return (correlation - torch.diag(correlation.diag())).square().sum()


def add_latent_noise(latents: torch.Tensor, level: torch.Tensor | float, *, noise: torch.Tensor) -> torch.Tensor:
    """z + level · std · noise, with the standard deviation of each channel over all N frames and places.

    The gradient passes through the standard deviation: scaling a channel scales its noise, and so gains nothing.

    Args:
        latents: (N, C, h, w).
        level: a number, or one a frame as (N, 1, 1, 1), in standard deviations.
        noise: standard normal, of the latents' shape.
    """
    return latents + level * latents.std(dim=(0, 2, 3), keepdim=True) * noise


class ColourUnits(torch.nn.Module):
    """Mean colours of patches in units in which red, green and blue are uncorrelated and have mean 0 and variance 1.

    In RGB most of the variance is brightness, which all colours share. Of the squared distance between an object and none,
    blue and cyan in simulated scenes are a fifth apart in RGB, and half of it in these units.

    Args:
        mean: (3,) of RGB in [−1, 1].
        whitener: (3, 3), symmetric; of all such matrices the one that changes the colours least.
    """

    def __init__(self, mean: torch.Tensor, whitener: torch.Tensor):
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("whitener", whitener, persistent=False)

    def forward(self, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(N, 3, H, W) pixels in [−1, 1] → (N, 3, h, w) for `size` = (h, w)."""
        colours = torch.nn.functional.adaptive_avg_pool2d(pixels, size)
        return torch.einsum("ij,njhw->nihw", self.whitener, colours - self.mean[:, None, None])


def colour_units(pixels: torch.Tensor, patch_size: int) -> ColourUnits:
    """The units by which the mean colours of these frames' patches, (N, 3, H, W) in [−1, 1], are white.

    A colour that never changes, as in grey videos, stays small instead of being blown up.
    """
    colours = torch.nn.functional.avg_pool2d(pixels.double(), patch_size).transpose(0, 1).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(colours, correction=0))
    values = values.clamp_min(max(1e-4 * values.max().item(), 1e-12))
    return ColourUnits(colours.mean(dim=1).float(), (vectors @ torch.diag(values**-0.5) @ vectors.T).float())


# The report


@dataclass(frozen=True)
class LatentStatistics:
    """Of the C channels over all frames and places.

    Attributes:
        mean: (C,) of the posterior's mean.
        covariance: (C, C) of the posterior's mean.
        noise: (C,), the posterior's variance, averaged; 0 for an autoencoder without a posterior.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    noise: torch.Tensor

    @property
    def posterior_noise(self) -> torch.Tensor:
        """(C,), share of a channel's variance that is noise of the posterior, from 0 to 1."""
        return self.noise / (self.covariance.diag() + self.noise).clamp_min(torch.finfo(self.noise.dtype).tiny)

    @property
    def std(self) -> torch.Tensor:
        return self.covariance.diag().sqrt()

    @property
    def eigenvalues(self) -> list[float]:
        """Of the channels' correlation, from the smallest; their mean is 1."""
        std = self.std.clamp_min(torch.finfo(self.covariance.dtype).tiny)
        return torch.linalg.eigvalsh(self.covariance / std[:, None] / std).tolist()


@dataclass(frozen=True)
class LatentReport:
    """What [`judge_latents`] found.

    Attributes:
        num_frames: frames judged.
        latent_shape: (C, h, w).
        channel_mean, channel_std: of the posterior's mean, by channel.
        posterior_noise: share of each channel's variance that is noise of the posterior.
        eigenvalues: of the channels' correlation, from the smallest; their mean is 1.
        noise_levels: 0 and those asked for, in standard deviations of each channel.
        mse: of pixels in [0, 1] after noise of each level.
        mse_later: between a frame and the one 16 frames later, as a measure of what moves.
        objects_kept: share of frames that show the same objects after noise of each level; `None` where nobody can tell.
        hue_distance: how far the latents move when all hues of a frame are turned by 60°, over how far they move in 16 frames:
            squared distances, in standard deviations of each channel. `None` for still videos.
        hue_distance_of_pixels: the same of the pixels.
    """

    num_frames: int
    latent_shape: tuple[int, int, int]
    channel_mean: list[float]
    channel_std: list[float]
    posterior_noise: list[float]
    eigenvalues: list[float]
    noise_levels: list[float]
    mse: list[float]
    mse_later: float
    objects_kept: list[float] | None
    hue_distance: float | None
    hue_distance_of_pixels: float | None

    @property
    def hue_ratio(self) -> float | None:
        """Below 1 colours lie closer together in the latents than in the pixels. `None` for videos that are grey or still."""
        return None if self.hue_distance is None else _over(self.hue_distance, self.hue_distance_of_pixels)


def turn_hues(frames: np.ndarray) -> np.ndarray:
    """Frames (…, 3), uint8, with every hue turned by 60°, for example red to magenta; lightness and saturation (HSL) stay."""
    values = frames.astype(np.int16)
    opposite = values.max(axis=-1, keepdims=True) + values.min(axis=-1, keepdims=True) - values  # turned by 180°
    return np.roll(opposite, 1, axis=-1).astype(np.uint8)  # and by −120°


def latent_statistics(moments: torch.Tensor, latent_channels: int) -> LatentStatistics:
    """Statistics in float64 of what [`~data.latents.encode_moments`] gives.

    Args:
        moments: (N, 2C, h, w), means and log variances; or (N, C, h, w) of an autoencoder without a posterior.
        latent_channels: C.
    """
    moments = moments.double()
    latents, noise = moments, torch.zeros(latent_channels, dtype=torch.float64, device=moments.device)
    if moments.shape[1] != latent_channels:
        posterior = DiagonalGaussianDistribution(moments)
        latents, noise = posterior.mean, posterior.var.mean(dim=(0, 2, 3))
    values = latents.transpose(0, 1).flatten(1)
    covariance = torch.cov(values, correction=0)
    return LatentStatistics(values.mean(dim=1), covariance, noise)


def encode_videos(vae, videos: Iterable[np.ndarray]) -> torch.Tensor:
    """What the autoencoder says of every frame of videos of one size, uint8 (F, H, W, 3) each: fp32 (N, c, h, w)."""
    return torch.cat([encode_moments(vae, frames, batch_size=FRAMES_PER_CALL) for frames in videos])


@torch.no_grad()
def _decode(vae, latents: torch.Tensor) -> np.ndarray:
    """(F, C, h, w) → uint8 (F, H, W, 3)."""
    decoded = [vae.decode(chunk.to(vae.dtype)).sample.float() for chunk in latents.split(FRAMES_PER_CALL)]
    pixels = ((torch.cat(decoded).clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def judge_latents(
    vae,
    videos: Sequence[np.ndarray],
    *,
    noise_levels: Sequence[float] = NOISE_LEVELS,
    read_objects: Callable[[np.ndarray], Any] | None = None,
    seed: int = 0,
) -> LatentReport:
    """Encodes videos, and decodes the means of their latents as they are and with noise added.

    Args:
        vae: a diffusers autoencoder of images; it runs in its own precision, on its own device.
        videos: uint8 (F, H, W, 3) each, all of one size; a sequence that makes them when they are asked for is asked twice.
        noise_levels: in standard deviations of each channel over all videos.
        read_objects: what there is in a frame, uint8 (H, W, 3), to be compared, such as [`worlds.count_objects`].
        seed: of the noise.

    Raises:
        ValueError: there is no video, or as [`~data.latents.encode_moments`].
    """
    if not len(videos):
        raise ValueError("There is no video to judge the autoencoder on.")
    channels = vae.config.latent_channels
    moments = encode_videos(vae, (videos[index] for index in range(len(videos))))
    statistics = latent_statistics(moments, channels)
    latents = moments[:, :channels]
    std = statistics.std.to(latents)[:, None, None]
    unit = std.clamp_min(torch.finfo(std.dtype).tiny)  # a channel that is constant does not move
    levels = [0.0, *noise_levels]
    generator = torch.Generator().manual_seed(seed)
    errors, kept, first = [], [], 0
    later, turned, latents_later, latents_turned = [], [], [], []  # how far pixels and latents move
    for index in range(len(videos)):
        frames = videos[index]
        clean = latents[first : first + len(frames)]
        first += len(frames)
        ahead = min(FRAMES_LATER, len(frames) - 1)
        later.append(_mse(frames[ahead:], frames[: len(frames) - ahead]).mean())
        latents_later.append(((clean[ahead:] - clean[: len(clean) - ahead]) / unit).square().mean().item())
        other_hues = turn_hues(frames)
        turned.append(_mse(other_hues, frames).mean())
        other = encode_moments(vae, other_hues, batch_size=FRAMES_PER_CALL)[:, :channels]
        latents_turned.append(((other - clean) / unit).square().mean().item())
        truth = read_objects and [read_objects(frame) for frame in frames]
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        decoded = [_decode(vae, clean + level * std * noise) for level in levels]
        errors.append([_mse(frames, made) for made in decoded])
        if read_objects:
            kept.append(
                [
                    [read_objects(frame) == objects for frame, objects in zip(made, truth, strict=True)]
                    for made in decoded
                ]
            )
    return LatentReport(
        num_frames=len(latents),
        latent_shape=tuple(latents.shape[1:]),
        channel_mean=statistics.mean.tolist(),
        channel_std=statistics.std.tolist(),
        posterior_noise=statistics.posterior_noise.tolist(),
        eigenvalues=statistics.eigenvalues,
        noise_levels=levels,
        mse=np.concatenate(errors, axis=1).mean(axis=1).tolist(),
        mse_later=float(np.mean(later)),
        objects_kept=np.concatenate(kept, axis=1).mean(axis=1).tolist() if read_objects else None,
        hue_distance=_over(float(np.mean(latents_turned)), float(np.mean(latents_later))),
        hue_distance_of_pixels=_over(float(np.mean(turned)), float(np.mean(later))),
    )


def _over(value: float, unit: float | None) -> float | None:
    return value / unit if unit else None


def _mse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of pixels in [0, 1], uint8 (F, H, W, 3) both → (F,)."""
    return np.square(a / 255.0 - b / 255.0).mean(axis=(1, 2, 3))


def failed_gates(report: LatentReport) -> list[str]:
    """What keeps these latents from being good for diffusion, in words; empty if nothing does.

    Objects count at the levels of noise that were measured, in worlds where they can be told.
    """
    failed = []
    if report.eigenvalues[0] < LEAST_EIGENVALUE:
        failed.append(
            f"smallest eigenvalue of the channels' correlation {report.eigenvalues[0]:.3f}, below {LEAST_EIGENVALUE}"
        )
    if report.hue_ratio is not None and report.hue_ratio < LEAST_HUE_RATIO:
        failed.append(
            f"other hues move the latents {report.hue_ratio:.2f} times as far as the pixels, below {LEAST_HUE_RATIO:g}"
        )
    for level, kept in zip(report.noise_levels, report.objects_kept or [], strict=False):
        if kept < LEAST_KEPT.get(level, 0.0):
            failed.append(
                f"objects kept at noise {level:g} in {100 * kept:.2f} % of frames, below {100 * LEAST_KEPT[level]:.0f} %"
            )
    return failed


def _hues_in_words(report: LatentReport) -> list[str]:
    if report.hue_distance is None or report.hue_distance_of_pixels is None:  # nothing moves
        return []
    latents, pixels = f"{report.hue_distance:.3f}", f"{report.hue_distance_of_pixels:.3f}"
    words = f"Hues turned by 60° move the latents {latents} times as far as {FRAMES_LATER} frames do, the pixels {pixels} times."
    return [words, ""]


def format_report(report: LatentReport) -> str:
    """The report as two Markdown tables, channels and levels of noise, with a line before each."""
    shape = " × ".join(map(str, report.latent_shape))
    lines = [
        f"{report.num_frames} frames, latents {shape}; eigenvalues of the channels' correlation "
        f"{', '.join(f'{value:.3f}' for value in report.eigenvalues)}",
        "",
        "| channel | mean | std | posterior noise, % of variance |",
        "|---|---|---|---|",
    ]
    for index, (mean, std, noise) in enumerate(
        zip(report.channel_mean, report.channel_std, report.posterior_noise, strict=True)
    ):
        lines.append(f"| {index} | {mean:.3f} | {std:.3f} | {100 * noise:.2f} |")
    lines += [
        "",
        *_hues_in_words(report),
        f"Reconstruction; the MSE between a frame and that {FRAMES_LATER} frames later is {1e3 * report.mse_later:.2f} × 10⁻³:",
        "",
        "| noise, standard deviations | MSE × 1000 | PSNR, dB | objects kept, % of frames |",
        "|---|---|---|---|",
    ]
    kept = report.objects_kept or [None] * len(report.mse)
    for level, mse, share in zip(report.noise_levels, report.mse, kept, strict=True):
        psnr = -10 * np.log10(max(mse, 1e-10))
        lines.append(
            f"| {level:g} | {1e3 * mse:.3f} | {psnr:.2f} | {'–' if share is None else f'{100 * share:.2f}'} |"
        )
    return "\n".join(lines)
