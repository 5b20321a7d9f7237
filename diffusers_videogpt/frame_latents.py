"""Frames ↔ latents: videos in any form → the autoencoder's pixels → latents, and back.

Shapes: B videos, C latent channels, F frames, H × W pixels, h × w latent size.
"""

from collections.abc import Sequence
from functools import partial
from numbers import Integral
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import logging

from .config_values import check_positive_number
from .diffusers_internals import refuse_missing_tensors
from .files import read_json
from .saved_models import check_autoencoder_config, refuse_unreachable
from .video_io import read_video, resize_and_crop, resize_to_cover, to_uint8_frames


logger = logging.get_logger(__name__)

VideoInput = str | Path | list[PIL.Image.Image] | np.ndarray | torch.Tensor

FRAMES_PER_VAE_CALL = 8  # of 4, 8, 12 and 16 the fastest in a call on a CPU


def load_autoencoder(
    name: str | Path,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    **kwargs,
) -> AutoencoderKL | AutoencoderTiny:
    """Loads an autoencoder of diffusers, whole or not at all, in evaluation mode.

    Where a file lacks a tensor, diffusers' own `from_pretrained` warns and puts random numbers in its place, and a
    configuration with absurd sizes is built until the memory is full. Here both are errors; sizes are looked at first.

    Args:
        name: a folder, or an id on the Hub.
        subfolder: of it that the autoencoder lies in, such as `vae` in a pipeline's.
        revision, kwargs: of [`ModelMixin.from_pretrained`]: `dtype`, `variant`, `use_safetensors`.

    Raises:
        FileNotFoundError: the folder has no `config.json`.
        OSError: there is no such folder, and the Hub does not have it or could not be asked; or there are no weights.
        ValueError: it is no autoencoder of diffusers, a value of its configuration is none, or tensors are missing.
    """
    refuse_unreachable(name, revision=revision)
    if Path(name).is_dir():
        # With a subfolder, diffusers prefers the weights that lie beside it to those in it.
        name, subfolder = Path(name, subfolder or ""), None
        if not (name / "config.json").is_file():
            raise FileNotFoundError(
                f"'{name}' has no config.json: pass the folder of a saved autoencoder, such as `vae` in a pipeline's."
            )
        config = read_json(name / "config.json")
    else:
        config = AutoencoderKL.load_config(name, subfolder=subfolder, revision=revision)
    where = f"'{name}'" if subfolder is None else f"`{subfolder}` of '{name}'"
    class_name = config.get("_class_name")
    if not isinstance(class_name, str) or "Autoencoder" not in class_name or not hasattr(diffusers, class_name):
        raise ValueError(
            f"{where} holds {class_name or 'something else'}, not an autoencoder of diffusers: pass the folder of a saved "
            "AutoencoderKL or AutoencoderTiny."
        )
    check_autoencoder_config(config, where=f"The config.json of {where}")
    try:
        vae, info = getattr(diffusers, class_name).from_pretrained(
            name, subfolder=subfolder, revision=revision, output_loading_info=True, **kwargs
        )
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ZeroDivisionError) as error:
        # What the layers make of a configuration whose values do not go together.
        raise ValueError(
            f"{where} cannot be built or filled, a value of its config.json or a file of weights is wrong "
            f"({type(error).__name__}: {error}): copy all its files again."
        ) from error
    refuse_missing_tensors(info["missing_keys"], f"The weights in {where}")
    return vae


def get_vae_scale_factor(vae: AutoencoderKL | AutoencoderTiny | None) -> int:
    """Pixels along one side of a latent; without an autoencoder 8, as SDXL's has."""
    if vae is None:
        return 8
    channels = vae.config.get("encoder_block_out_channels") or vae.config.block_out_channels
    return 2 ** (len(channels) - 1)


def check_vae(vae: AutoencoderKL | AutoencoderTiny | None) -> None:
    """Raises a `ValueError` where there is none, though frames go in or out."""
    if vae is None:
        raise ValueError(
            "This pipeline has no VAE: load one and pass it as `vae=` to `from_pretrained` (a modular pipeline takes it "
            "by `update_components`), or use `video_latents` and `output_type='latent'`."
        )


def check_channels(vae: AutoencoderKL | AutoencoderTiny | None, transformer: ModelMixin | None) -> None:
    """Raises a `ValueError` if the latents of `vae` have other channels than `transformer` takes, where both are there."""
    if vae is None or transformer is None or vae.config.latent_channels == transformer.config.in_channels:
        return
    raise ValueError(
        f"The VAE's latents have {vae.config.latent_channels} channels, the transformer takes {transformer.config.in_channels}: "
        "load the VAE that the transformer was trained with, or train a new transformer on the latents of this one."
    )


def check_size(height: int | None, width: int | None, *, multiple: int) -> None:
    """Raises a `ValueError` that names the nearest possible sizes if a frame can't be cut into patches of `multiple` pixels."""
    for name, value in (("height", height), ("width", width)):
        if value is not None and not isinstance(value, Integral):
            raise ValueError(f"`{name}` must be a whole number, got {value!r}.")
        if value is not None and (value % multiple or value < multiple):
            nearest = sorted({max(value // multiple, 1) * multiple, (value // multiple + 1) * multiple})
            raise ValueError(
                f"`{name}` must be divisible by {multiple}, got {value}: the nearest are {' and '.join(map(str, nearest))}."
            )


def count_videos(video: VideoInput | Sequence[VideoInput] | None, image: VideoInput | None = None) -> int:
    """How many videos or pictures were given, in any form that [`prepare_frames`] takes; 0 for none."""
    if video is not None:
        return len(_as_list_of_videos(video))
    return 0 if image is None else len(_as_list_of_pictures(image))


def prepare_frames(
    video: VideoInput | Sequence[VideoInput] | None = None,
    image: VideoInput | None = None,
    *,
    longest_side: int,
    multiple: int,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
) -> torch.Tensor:
    """Videos or pictures in any form → the pixels that the autoencoder takes, (B, F, 3, H, W) in [−1, 1] on the CPU.

    Args:
        video: a path, PIL images, an array (F, H, W, 3) or a tensor (F, 3, H, W), `uint8` or in [0, 1]; or a list, or a
            5-dimensional array or tensor, of several.
        image: in its place, one picture or several, each a video of one frame.
        longest_side: scaled down to this many pixels, keeping the aspect ratio, where no size is given.
        multiple: height and width are divisible by this.
        height, width: scale and crop to this size.
        fps: frames a second to read a path at; by default all of its frames.
        max_frames: keep only so many of the last frames, with a warning if there are more.

    Raises:
        ValueError: if the videos of a batch differ in size or length, or frames are empty or not in range.
        VideoReadError: if a path can't be read.
    """
    if fps is not None:
        check_positive_number("fps", fps)
    if height is None and width is None:
        resize = partial(resize_and_crop, longest_side=longest_side, multiple=multiple)
    elif height is None or width is None:
        raise ValueError(f"Pass both `height` and `width`, or neither; got {height} and {width}.")
    else:
        check_size(height, width, multiple=multiple)
        resize = partial(resize_to_cover, height=height, width=width)
    videos = []
    for item in _pictures_as_videos(image) if video is None else _as_list_of_videos(video):
        if isinstance(item, str | Path):
            # One more than are kept tells of the others; all of a long film would fill the memory.
            limits = {} if max_frames is None else {"max_frames": max_frames + 1, "from_end": True}
            frames = read_video(item, fps=fps, transform=resize, **limits).frames
        else:
            frames = to_uint8_frames(item)
        if max_frames is not None:
            _warn_of_dropped_frames(len(frames), max_frames)
            frames = frames[-max_frames:]
        if not isinstance(item, str | Path):
            frames = resize(frames)
        videos.append(frames)
    shapes = sorted({frames.shape for frames in videos})
    if len(shapes) > 1:
        raise ValueError(
            f"The videos of one batch must agree in frames and size, got (frames, height, width, 3) of {shapes}: cut "
            "them alike, or call the pipeline for each."
        )
    return torch.from_numpy(np.stack(videos)).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def _warn_of_dropped_frames(num_frames: int, max_frames: int) -> None:
    """Says so if a history is longer than the window that the model looks back on."""
    if num_frames > max_frames:
        logger.warning(
            f"The history has more frames than the window of {max_frames} that the model looks back on: older ones are "
            "dropped. Raise `max_context_frames` to keep more."
        )


@torch.no_grad()
def encode_frames(
    vae: AutoencoderKL | AutoencoderTiny | None,
    frames: torch.Tensor,
    *,
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """(B, F, 3, H, W) pixels in [−1, 1] → (B, C, F, h, w) scaled latents in fp32, a posterior sample as in the reference.

    Args:
        vae: the autoencoder.
        frames: of [`prepare_frames`].
        generator: of the posterior sample; one, or one a video, or several for each video: the first of these is used.
        device: where the autoencoder computes; by default where it is.

    Raises:
        ValueError: if there is no autoencoder, it overflows, or a list of generators fits no number of predictions.
    """
    check_vae(vae)
    batch_size = frames.shape[0]
    if isinstance(generator, list):
        if len(generator) % batch_size or not generator:
            raise ValueError(
                f"`generator` is a list of {len(generator)} for {batch_size} given videos: pass one, or one for each video "
                "that is predicted."
            )
        # Several videos are predicted from each given one: the first of their generators encodes it.
        generators = generator[:: len(generator) // batch_size]
        latents = [
            encode_frames(vae, row[None], generator=one, device=device)
            for row, one in zip(frames, generators, strict=True)
        ]
        return torch.cat(latents)
    latents = []
    for pixels in frames.flatten(0, 1).split(FRAMES_PER_VAE_CALL):
        # Channels last in memory, here and in `decode_latents`: the order in which convolutions compute fastest.
        pixels = pixels.to(vae.device if device is None else device, vae.dtype, memory_format=torch.channels_last)
        encoded = vae.encode(pixels)
        if hasattr(encoded, "latent_dist"):
            # In fp32, as all noise: in half precision a seed draws other numbers from one version of PyTorch to the next.
            posterior = DiagonalGaussianDistribution(encoded.latent_dist.parameters.float())
            latents.append(posterior.sample(generator))
        else:
            latents.append(encoded.latents)
    latents = torch.cat(latents).float() - (vae.config.get("shift_factor") or 0.0)
    latents = latents * vae.config.scaling_factor
    _check_finite(latents, vae)
    return latents.unflatten(0, (batch_size, -1)).transpose(1, 2)


def encode_given(
    video: VideoInput | Sequence[VideoInput] | None = None,
    image: VideoInput | None = None,
    *,
    video_latents: torch.Tensor | None = None,
    vae: AutoencoderKL | AutoencoderTiny | None,
    window: int,
    longest_side: int,
    multiple: int,
    device: torch.device,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> torch.Tensor | None:
    """What was given, in whichever form, as clean latents (B, C, F, h, w) in fp32: the last `window` frames, with a warning
    if there are more. `None` if nothing was given. For the other arguments see [`prepare_frames`] and [`encode_frames`]."""
    if video_latents is not None:
        _warn_of_dropped_frames(video_latents.shape[2], window)
        return video_latents[:, :, -window:].to(device, torch.float32)
    if video is None and image is None:
        return None
    frames = prepare_frames(
        video,
        image,
        longest_side=longest_side,
        multiple=multiple,
        height=height,
        width=width,
        fps=fps,
        max_frames=window,
    )
    return encode_frames(vae, frames, generator=generator, device=device)


@torch.no_grad()
def decode_latents(vae: AutoencoderKL | AutoencoderTiny | None, latents: torch.Tensor) -> torch.Tensor:
    """(B, C, F, h, w) latents → (B, 3, F, H, W) pixels in about [−1, 1], in fp32.

    Raises:
        ValueError: if there is no autoencoder, or it overflows.
    """
    check_vae(vae)
    batch_size = latents.shape[0]
    latents = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    frames = [
        vae.decode(chunk.to(vae.dtype, memory_format=torch.channels_last), return_dict=False)[0].float()
        for chunk in latents.transpose(1, 2).flatten(0, 1).split(FRAMES_PER_VAE_CALL)
    ]
    frames = torch.cat(frames)
    _check_finite(frames, vae)
    return frames.unflatten(0, (batch_size, -1)).transpose(1, 2)


def _check_finite(result: torch.Tensor, vae: AutoencoderKL | AutoencoderTiny) -> None:
    if not torch.isfinite(result).all():
        raise ValueError(
            f"The VAE in {vae.dtype} gives NaN or infinite values. In float16 SDXL's overflows: load it in float32, "
            "by `dtype={'vae': torch.float32, 'default': torch.float16}` of `from_pretrained`, or call `pipe.vae.float()`."
        )


def _as_list_of_videos(video) -> list:
    """One video or several → a list of videos."""
    is_list_of_frames = isinstance(video, list | tuple) and (
        not video or isinstance(video[0], PIL.Image.Image) or getattr(video[0], "ndim", 4) == 3
    )
    is_several = (isinstance(video, list | tuple) and not is_list_of_frames) or getattr(video, "ndim", 4) == 5
    return list(video) if is_several else [video]


def _as_list_of_pictures(image) -> list:
    """One picture or several → a list of pictures."""
    is_several = isinstance(image, list | tuple) or getattr(image, "ndim", 3) == 4
    return list(image) if is_several else [image]


def _pictures_as_videos(image) -> list:
    """One picture or several → a list of videos of one frame."""
    videos = []
    for picture in _as_list_of_pictures(image):
        if isinstance(picture, str | Path):
            picture = read_video(picture, max_frames=1).frames[0]
        videos.append([picture])
    return videos
