"""The training objective of next clip diffusion (paper, eq. 4–6; numerically the reference's).

Shapes: B videos, C latent channels, N frames, H × W latent size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from ..clips import ClipLayout, draw_clip_lengths, equal_clip_lengths, make_clip_layout
from ..conditions import condition_lengths
from ..config_values import split_clips
from ..scheduling_next_clip_flow_match import mix_noise, sample_alphas, sample_retentions
from ..transformer_videogpt import VideoGPTTransformerModel
from .settings import ObjectiveSettings


def parse_clips(clips: str, max_clips: int | None = None) -> Callable[[int, torch.Generator | None], list[int]]:
    """How training samples are cut into clips, as a function of (number of frames, generator).

    Args:
        clips: "random": K ~ U{2..N} clips (paper, stages 2 to 4); "equal:n": n frames each (stage 1: "equal:1"; one clip:
            an n of all frames); "first:n": n given frames, then the rest as one clip (image animation: "first:1").
        max_clips: with "random", the largest K.

    Raises:
        ValueError: if `clips` has another form.
    """
    kind, size = split_clips(clips, max_clips)
    if kind == "random":
        return lambda num_frames, generator: draw_clip_lengths(num_frames, generator, max_clips=max_clips)
    if kind == "equal":
        return lambda num_frames, generator: equal_clip_lengths(num_frames, size)
    return lambda num_frames, generator: [size, num_frames - size] if size < num_frames else [num_frames]


def make_clip_drawer(objective: ObjectiveSettings) -> Callable[[int, torch.Generator | None], list[int]]:
    """[`parse_clips`] of a run's objective, with its share of samples that are cut into single frames."""
    draw_clips = parse_clips(objective.clips, objective.max_clips)
    if not objective.next_frame_share:
        return draw_clips

    def draw(num_frames: int, generator: torch.Generator | None) -> list[int]:
        if float(torch.rand((), generator=generator)) < objective.next_frame_share:
            return equal_clip_lengths(num_frames, 1)
        return draw_clips(num_frames, generator)

    return draw


# α of every frame of a video, from its clip lengths and a generator
AlphaDrawer = Callable[[Sequence[int], torch.Generator | None], torch.Tensor]


def make_alpha_drawer(objective: ObjectiveSettings) -> AlphaDrawer:
    """How the noise levels of a video's clips are drawn: one α in [0, 1] a clip, 1 is clean.

    The densities are diffusers' own: [`~diffusers.training_utils.compute_density_for_timestep_sampling`] draws a number u in
    [0, 1], which is taken as α. In diffusers' training examples, too, u = 0 is noise and u = 1 is clean.
    """
    if objective.weighting_scheme == "none":
        return sample_alphas

    def draw(clip_lengths: Sequence[int], generator: torch.Generator | None) -> torch.Tensor:
        alphas = compute_density_for_timestep_sampling(
            objective.weighting_scheme,
            len(clip_lengths),
            logit_mean=objective.logit_mean,
            logit_std=objective.logit_std,
            mode_scale=objective.mode_scale,
            generator=generator,
        )
        uniform, chosen = torch.rand(2, len(clip_lengths), generator=generator)
        alphas = torch.where(chosen < objective.uniform_share, uniform, alphas).clamp(0, 1)
        return alphas.repeat_interleave(torch.as_tensor(clip_lengths))

    return draw


def velocity_weights(alphas: torch.Tensor, maximum: float) -> torch.Tensor:
    """min(1 / (1 − α)², maximum): the squared error of x̂, times this, is that of the velocity (x̂ − ψ) / (1 − α)."""
    return compute_loss_weighting_for_sd3("sigma_sqrt", sigmas=1 - alphas).clamp(max=maximum)


@dataclass
class DenoisedClips:
    """What a transformer made of noisy clips.

    Attributes:
        predicted, target, noisy: the transformer's estimate x̂, the clean latents φ that it should find, and the noisy latents
            ψ that it was given; each (B, C, N, H, W), the frames of the noisy clips.
        alphas: (B, N), the share of signal in `noisy`.
    """

    predicted: torch.Tensor
    target: torch.Tensor
    noisy: torch.Tensor
    alphas: torch.Tensor

    def loss(self, max_weight: float | None = None) -> torch.Tensor:
        """Mean squared error over all frames, in fp32; with `max_weight` each weighted by [`velocity_weights`]."""
        if max_weight is None:
            return torch.nn.functional.mse_loss(self.predicted.float(), self.target.float())
        errors = (self.predicted.float() - self.target.float()).square().mean(dim=(1, 3, 4))
        return (velocity_weights(self.alphas, max_weight) * errors).mean()

    @torch.no_grad()
    def frame_errors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean squared error of every frame, (B, N), of the prediction and of the noisy input as it is."""
        return tuple(
            (latents.float() - self.target.float()).square().mean(dim=(1, 3, 4))
            for latents in (self.predicted, self.noisy)
        )


@dataclass
class NoisyClips:
    """What a transformer is given in training.

    Attributes:
        target, noisy, alphas: as of [`DenoisedClips`].
        clean: (B, C, N', H, W), the clean copies of all clips but the last; `None` where there are none.
        layout: of their tokens.
        conditions: of the videos, as the transformer takes them.
    """

    target: torch.Tensor
    noisy: torch.Tensor
    alphas: torch.Tensor
    clean: torch.Tensor | None
    layout: ClipLayout
    conditions: dict[str, torch.Tensor]

    def denoised_by(self, transformer: VideoGPTTransformerModel) -> DenoisedClips:
        """What the transformer, wrapped for data parallelism or not, makes of them."""
        denoised = transformer(
            hidden_states=self.noisy,
            timestep=self.alphas,
            clean_hidden_states=self.clean,
            clip_layout=self.layout,
            return_dict=False,
            **self.conditions,
        )[0]
        return DenoisedClips(denoised, self.target, self.noisy, self.alphas)


def make_noisy_clips(
    latents: torch.Tensor,
    *,
    clip_lengths: Sequence[Sequence[int]],
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    noisy: slice = slice(None),
    min_retention: float = 0.9,
    draw_alphas: AlphaDrawer = sample_alphas,
    patch_size: int = 2,
    history: torch.Tensor | None = None,
    actions: torch.Tensor | None = None,
    **conditions: torch.Tensor,
) -> NoisyClips:
    """Makes noisy clips of clean latents as training does.

    Each noisy clip k gets one noise weight α_k ~ U[0, 1]: ψ = α φ + (1 − α) ε. The clean copies of all clips but the last
    get slight noise, ρ ~ U[`min_retention`, 1] a frame. Where the first clip is noisy, it has no history and counts too:
    it is what trains the unconditional half of guidance.

    Args:
        latents: clean latents (B, C, N, H, W), already scaled.
        clip_lengths: for each video, the frames in its clips; each list sums to N.
        generator: a **CPU** generator, so that one seed gives one loss on every device; or one a video, so that the
            loss of a video does not depend on which others share its batch.
        noisy: which clips are noisy, as [`~clips.make_clip_layout`] takes it: all, or fewer where the others are given
            and not to be predicted; then the videos are all cut alike.
        min_retention: the least share of signal in a clean frame; 1 leaves the clean clips without noise.
        draw_alphas: draws the noise weights, uniform by default; see [`make_alpha_drawer`].
        patch_size: the model's, in latent pixels.
        history: what the clean copies are made of instead of `latents`, of the same shape: the past as a model predicts it,
            see [`~resampled_history.resample_history`]. The targets stay those of `latents`.
        actions: that led to each frame, (B, N) or (B, N, D), as the model takes them: the noisy and the clean copy of a frame
            have the same.
        conditions: `class_labels`, `encoder_hidden_states`, `encoder_attention_mask`, as the model takes them; text is
            padded to the longest of the batch.

    Raises:
        ValueError: if the clips of a video do not sum to N, generators are given for another number of videos, or only
            some clips are noisy and the videos are cut differently.
    """
    batch_size, _, num_frames = latents.shape[:3]
    for lengths in clip_lengths:
        if sum(lengths) != num_frames:
            raise ValueError(f"Clips {list(lengths)} have {sum(lengths)} frames, the latents have {num_frames}.")
    generators = list(generator) if isinstance(generator, Sequence) else [generator] * batch_size
    if len(generators) != batch_size:
        raise ValueError(f"{len(generators)} generators for {batch_size} videos: give one, or one a video.")
    noisy_lengths = [list(lengths)[noisy] for lengths in clip_lengths]
    all_noisy = all(len(lengths) == len(some) for lengths, some in zip(clip_lengths, noisy_lengths, strict=True))
    if not all_noisy and any(list(lengths) != list(clip_lengths[0]) for lengths in clip_lengths):
        raise ValueError("Where only some clips are noisy, all videos of a batch are cut alike: group them by clips.")

    num_clean = num_frames - min(lengths[-1] for lengths in clip_lengths)
    # Which frames have a clean copy differs from video to video, unless all are cut alike; but what is drawn for a video
    # must not depend on the others, so noise is drawn for all its frames.
    num_drawn = num_frames if all_noisy else num_clean
    first, last, _ = noisy.indices(len(clip_lengths[0]))
    predicted = slice(None) if all_noisy else slice(sum(clip_lengths[0][:first]), sum(clip_lengths[0][:last]))
    target = latents[:, :, predicted]
    draws = [
        (
            draw_alphas(lengths, g),
            torch.randn(target.shape[1:], generator=g),
            sample_retentions(num_drawn, g, minimum=min_retention),
            torch.randn(latents[:, :, :num_drawn].shape[1:], generator=g),
        )
        for lengths, g in zip(noisy_lengths, generators, strict=True)
    ]
    alphas, noise, retentions, clean_noise = (torch.stack(x).to(latents.device) for x in zip(*draws, strict=True))
    noisy_latents = mix_noise(target, alphas[:, None], noise=noise.to(latents))
    past = latents if history is None else history
    clean_latents = mix_noise(past[:, :, :num_drawn], retentions[:, None], noise=clean_noise.to(latents))
    clean_latents = clean_latents[:, :, :num_clean]

    patch_grid = (latents.shape[3] // patch_size, latents.shape[4] // patch_size)
    layout = make_clip_layout(
        clip_lengths,
        patch_grid,
        noisy=noisy,
        condition_lengths=condition_lengths(conditions),
        device=latents.device,
    )
    if actions is not None:
        conditions["actions"] = actions[:, predicted]
        conditions["clean_actions"] = actions[:, :num_clean] if num_clean else None
    return NoisyClips(target, noisy_latents, alphas, clean_latents if num_clean else None, layout, conditions)


def denoise_clips(transformer: VideoGPTTransformerModel, latents: torch.Tensor, **how) -> DenoisedClips:
    """Makes noisy clips of clean latents as training does, and lets the transformer denoise them.

    Args and errors as of [`make_noisy_clips`].
    """
    return make_noisy_clips(latents, **how).denoised_by(transformer)


def next_clip_loss(transformer: VideoGPTTransformerModel, latents: torch.Tensor, **how) -> torch.Tensor:
    """Mean squared error of the predicted clean latents, over every frame of every noisy clip: a scalar in fp32.

    Args and errors as of [`make_noisy_clips`].
    """
    return denoise_clips(transformer, latents, **how).loss()
