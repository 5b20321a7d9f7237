"""The arguments of a call: whether they fit each other and the model, and the numbers that follow from them.

All of it looks at sizes and numbers alone, so that a mistake is found before anything is read or computed.

Shapes: B videos, C latent channels, F frames, h × w latent size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from .actions import Actions
from .clips import equal_clip_lengths
from .conditions import check_kind_of_labels, check_tensors
from .config_values import MOST_FRAMES
from .frame_latents import VideoInput, check_vae


OUTPUT_TYPES = ("pil", "np", "pt", "latent")
NUM_STEPS = 50  # denoising steps a clip, as in the paper, of a model that tells no number of its own


@dataclass(kw_only=True)
class CallInputs:
    """The arguments of [`VideoGPTPipeline.__call__`] that a call and a stream have in common, described there.

    `clip_lengths` is what `num_frames` and `frames_per_clip` come to; a stream without end has `num_frames=None`.
    """

    clip_lengths: Sequence[int]
    num_frames: int | None
    video: VideoInput | None
    image: VideoInput | None
    video_latents: torch.Tensor | None
    class_labels: int | str | Sequence[int | str] | torch.Tensor | None
    prompt: str | list[str] | None
    negative_prompt: str | list[str] | None
    prompt_embeds: torch.Tensor | None
    negative_prompt_embeds: torch.Tensor | None
    prompt_attention_mask: torch.Tensor | None
    negative_prompt_attention_mask: torch.Tensor | None
    height: int | None
    width: int | None
    fps: float | None
    max_context_frames: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    condition_guidance_scale: float | None
    guidance_interval: tuple[float, float] | None
    history_retention: float
    rolling_cache: bool | None
    generator: torch.Generator | list[torch.Generator] | None
    output_type: str
    attention_kwargs: dict[str, Any] | None
    use_kv_cache: bool = True
    num_videos_per_prompt: int = 1
    latents: torch.Tensor | None = None
    actions: Actions | None = None
    history_actions: Actions | None = None
    action_guidance_scale: float | None = None


def check_whole_numbers(**values: Any) -> None:
    """Raises a `ValueError` for the first value that is neither `None` nor a whole number, by its name."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise ValueError(f"`{name}` must be a whole number, got {value!r}.")


def check_given(
    video, image, *, video_latents: torch.Tensor | None, vae: AutoencoderKL | AutoencoderTiny | None
) -> None:
    """Raises a `ValueError` if more than one of them is given, latents are no tensor, or the VAE is needed and missing."""
    given = [n for n, v in (("video", video), ("image", image), ("video_latents", video_latents)) if v is not None]
    if len(given) > 1:
        raise ValueError(f"Pass only one of `video`, `image` and `video_latents`, got {' and '.join(given)}.")
    check_tensors(video_latents=video_latents)
    if given in (["video"], ["image"]):
        check_vae(vae)


def check_output_type(output_type: str, vae: AutoencoderKL | AutoencoderTiny | None) -> None:
    """Raises a `ValueError` for an unknown one, or if the VAE is needed and missing."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
    if output_type != "latent":
        check_vae(vae)


def check_rollout(
    clip_lengths: Sequence[int],
    *,
    video_latents: torch.Tensor | None,
    latents: torch.Tensor | None,
    has_history: bool,
    channels: int,
    guidance_scale: float | None,
    history_retention: float,
) -> None:
    """Raises a `ValueError` if these arguments of a call don't fit each other, or the transformer's C `channels`."""
    if guidance_scale not in (None, 1.0) and not has_history and len(clip_lengths) == 1:
        raise ValueError(
            f"`guidance_scale`={guidance_scale} guides by history, and a single clip made from nothing has none: "
            "leave it out, or pass `video`, `image` or `video_latents`."
        )
    if not isinstance(history_retention, Real) or not 0 <= history_retention <= 1:
        raise ValueError(f"`history_retention` is a share in [0, 1], got {history_retention}.")
    check_tensors(video_latents=video_latents, latents=latents)
    for name, value in (("video_latents", video_latents), ("latents", latents)):
        if value is None:
            continue
        if value.ndim != 5 or value.shape[1] != channels:
            raise ValueError(f"`{name}` must be (batch, {channels}, frames, height, width), got {list(value.shape)}.")
        if not torch.isfinite(value).all():
            raise ValueError(f"`{name}` has NaN or infinite values: look for the cause where it was made.")
    if latents is not None and latents.shape[2] != sum(clip_lengths):
        raise ValueError(
            f"`latents` is the noise of all {sum(clip_lengths)} predicted frames, got {latents.shape[2]} frames."
        )
    if latents is not None and video_latents is not None and latents.shape[3:] != video_latents.shape[3:]:
        raise ValueError(
            f"`latents` of {list(latents.shape)} and `video_latents` of {list(video_latents.shape)} must agree in "
            "height and width, the last two numbers."
        )


def clip_lengths_of(
    num_frames: int | None = None,
    chunk_partition: Sequence[int] | None = None,
    *,
    frames_per_clip: int | None = None,
    default_frames_per_clip: int,
) -> list[int]:
    """Frames in each clip to predict: `chunk_partition` itself, or `num_frames` in clips of `frames_per_clip`.

    Raises:
        ValueError: if `chunk_partition` has an empty clip, does not sum to `num_frames`, or comes with
            `frames_per_clip`; if a number is below 1, above `MOST_FRAMES`, or not whole.
    """
    check_whole_numbers(num_frames=num_frames, frames_per_clip=frames_per_clip)
    _refuse_endless(num_frames=num_frames, frames_per_clip=frames_per_clip)
    if chunk_partition is None:
        frames_per_clip = default_frames_per_clip if frames_per_clip is None else frames_per_clip
        return equal_clip_lengths(frames_per_clip if num_frames is None else num_frames, frames_per_clip)
    if isinstance(chunk_partition, str) or not isinstance(chunk_partition, Iterable):
        raise ValueError(f"`chunk_partition` must be a list of the frames of each clip, got {chunk_partition!r}.")
    clip_lengths = list(chunk_partition)
    for length in clip_lengths:
        check_whole_numbers(chunk_partition=length)
    _refuse_endless(chunk_partition=sum(clip_lengths))
    if frames_per_clip is not None:
        raise ValueError("Pass `chunk_partition` or `frames_per_clip`, not both: each says how long the clips are.")
    if not clip_lengths or min(clip_lengths) < 1 or (num_frames is not None and sum(clip_lengths) != num_frames):
        wanted = "" if num_frames is None else f"={num_frames}"
        raise ValueError(
            f"`chunk_partition` {clip_lengths} must hold clips of at least 1 frame that sum to `num_frames`{wanted}."
        )
    return clip_lengths


def num_steps_of(num_inference_steps: int | None, default: int | None) -> int:
    """Denoising steps a clip: as asked for, else the model's own, else the paper's."""
    own = NUM_STEPS if default is None else default
    return own if num_inference_steps is None else num_inference_steps


def _refuse_endless(**frames: int | None) -> None:
    for name, value in frames.items():
        if value is not None and value > MOST_FRAMES:
            raise ValueError(
                f"`{name}` asks for {value} frames, and a call keeps all of them until its end: at most {MOST_FRAMES}, a day of "
                "video. `pipe.stream()` hands clips out as they come and has no end."
            )


def count_asked(
    class_labels, prompt, *, prompt_embeds: torch.Tensor | None, actions: torch.Tensor | None = None
) -> int:
    """How many labels, prompts or rows of encoded actions were given, the most of them; 0 for none.

    Raises:
        ValueError: if several labels or prompts go with another number of rows of actions, which are several too; or if they
            are of no kind that labels and prompts have.
    """
    check_tensors(prompt_embeds=prompt_embeds)
    counts = [0]
    if class_labels is not None:
        check_kind_of_labels(class_labels)
        is_one = isinstance(class_labels, Integral | str) or getattr(class_labels, "ndim", 1) == 0
        counts.append(1 if is_one else len(class_labels))
    if prompt is not None:
        if not isinstance(prompt, str | list | tuple):
            raise ValueError(f"`prompt` must be a text or a list of at least one, got {prompt!r}.")
        counts.append(1 if isinstance(prompt, str) else len(prompt))
    if prompt_embeds is not None:
        counts.append(len(prompt_embeds))
    return largest_count(max(counts), actions)


def largest_count(num_conditions: int, actions: torch.Tensor | None) -> int:
    """The number of labels or prompts, 0 for none, or of rows of encoded actions: the larger of the two.

    Raises:
        ValueError: if both are several, and not the same number.
    """
    num_rows = 0 if actions is None else len(actions)
    if min(num_conditions, num_rows) > 1 and num_conditions != num_rows:
        raise ValueError(
            f"Actions of {num_rows} videos were given, and {num_conditions} labels or prompts: give one, or as many of both."
        )
    return max(num_conditions, num_rows)


def batch_size_of(
    num_given: int,
    num_asked: int,
    *,
    num_videos_per_prompt: int = 1,
    latents: torch.Tensor | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> int:
    """How many videos are predicted: one of each given video, label or prompt, times `num_videos_per_prompt`.

    Args:
        num_given: videos, images or latents in the history; 0 for none.
        num_asked: labels or prompts; 0 for none.
        num_videos_per_prompt: different videos for each.
        latents: the noise to begin with, which says how many where nothing else does.
        generator: one, or one a video.

    Raises:
        ValueError: if more than one is given of two of these, and not the same number.
    """
    check_whole_numbers(num_videos_per_prompt=num_videos_per_prompt)
    num_given, num_asked = max(num_given, 1), max(num_asked, 1)
    if 1 not in (num_given, num_asked) and num_given != num_asked:
        raise ValueError(
            f"{num_given} videos or images were given, and {num_asked} labels, prompts or lists of actions: give one, or as many "
            "of both."
        )
    if num_videos_per_prompt < 1:
        raise ValueError(f"`num_videos_per_prompt` must be at least 1, got {num_videos_per_prompt}.")
    batch_size = max(num_given, num_asked) * num_videos_per_prompt
    if latents is not None and latents.shape[0] != batch_size:
        if batch_size > 1:
            raise ValueError(f"`latents` is the noise of {latents.shape[0]} videos, {batch_size} are to be predicted.")
        batch_size = latents.shape[0]
    check_generator(generator, batch_size)
    return batch_size


def check_generator(generator: torch.Generator | list[torch.Generator] | None, batch_size: int) -> None:
    """Raises a `ValueError` if it is no generator, nor a list of one for each of B videos."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, list) or not all(isinstance(one, torch.Generator) for one in generator):
        raise ValueError(
            f"`generator` must be a `torch.Generator`, or a list of one for each predicted video, got {generator!r}."
        )
    if len(generator) != batch_size:
        raise ValueError(
            f"`generator` is a list of {len(generator)} for {batch_size} predicted videos: pass one generator, or a list of "
            "one for each video that is predicted."
        )


def frame_size_of(
    latents: torch.Tensor | None,
    *,
    height: int | None,
    width: int | None,
    longest_side: int,
    vae_scale_factor: int,
    multiple: int,
) -> tuple[int, int]:
    """Height and width in pixels of what is predicted: those of `latents`, else those asked for, else the default.

    Args:
        latents: history or noise (B, C, F, h, w).
        height, width: asked for.
        longest_side: the default of both, made divisible by `multiple`.
        vae_scale_factor: pixels along one side of a latent.
        multiple: pixels along one side of a patch.

    Raises:
        ValueError: if latents were given of another size than the one asked for.
    """
    if latents is None:
        default = max(longest_side // multiple, 1) * multiple
        return height or default, width or default
    size = latents.shape[3] * vae_scale_factor, latents.shape[4] * vae_scale_factor
    if (height or size[0], width or size[1]) != size:
        raise ValueError(f"The latents are of frames of {size[0]} × {size[1]}, not of {height} × {width}.")
    return size


def window_of(max_context_frames: int | None, default: int) -> int:
    """The most frames of history that are looked back on.

    Raises:
        ValueError: if it is not a whole number of at least 1.
    """
    check_whole_numbers(max_context_frames=max_context_frames)
    window = default if max_context_frames is None else max_context_frames
    if window < 1:
        raise ValueError(f"`max_context_frames` must be at least 1, got {window}.")
    return window
