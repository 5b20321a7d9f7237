"""Videos in any form → pixels → latents, and back: the pipeline's side of the autoencoder.

Shapes: B videos, C latent channels, F frames, H × W pixels, h × w latent size.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils import logging

from .video_io import read_video, resize_and_crop, resize_to_cover, to_uint8_frames


logger = logging.get_logger(__name__)

VideoInput = str | Path | list[PIL.Image.Image] | np.ndarray | torch.Tensor

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

FRAMES_PER_VAE_CALL = 16


def get_vae_scale_factor(vae: AutoencoderKL | AutoencoderTiny | None) -> int:
    """Pixels along one side of a latent; without an autoencoder 8, as SDXL's has."""
    if vae is None:
        return 8
    channels = vae.config.get("encoder_block_out_channels") or vae.config.block_out_channels
    return 2 ** (len(channels) - 1)


def _warn_of_dropped_frames(num_frames: int, max_frames: int) -> None:
    if num_frames > max_frames:
        logger.warning(
            f"The history has more frames than the window of {max_frames} that the model looks back on: older ones are "
            "dropped. Raise `max_context_frames` to keep more."
        )


def _as_list_of_videos(video) -> list:
    """One video or several → a list of videos."""
    is_list_of_frames = isinstance(video, list | tuple) and (
        not video or isinstance(video[0], PIL.Image.Image) or getattr(video[0], "ndim", 4) == 3
    )
    is_several = (isinstance(video, list | tuple) and not is_list_of_frames) or getattr(video, "ndim", 4) == 5
    return list(video) if is_several else [video]


def _as_videos(image) -> list:
    """One picture or several → a list of videos of one frame."""
    several = isinstance(image, list | tuple) or getattr(image, "ndim", 3) == 4
    videos = []
    for picture in image if several else [image]:
        if isinstance(picture, str | Path):
            picture = read_video(picture, max_frames=1).frames[0]
        videos.append([picture])
    return videos


class VideoGPTFrameMixin:
    """Frames in and out of the pipeline: `vae`, `vae_scale_factor`, `video_processor` and `config` are the pipeline's."""

    @property
    def size_multiple(self) -> int:
        """Height and width are divisible by this: a patch in pixels."""
        return self.vae_scale_factor * self.transformer.config.patch_size

    def check_given(
        self, video: VideoInput | None, image: VideoInput | None, video_latents: torch.Tensor | None
    ) -> None:
        """Raises a `ValueError` if more than one of them is given, or the VAE is needed and missing."""
        given = [n for n, v in (("video", video), ("image", image), ("video_latents", video_latents)) if v is not None]
        if len(given) > 1:
            raise ValueError(f"Pass only one of `video`, `image` and `video_latents`, got {' and '.join(given)}.")
        self._check_vae(is_needed=given in (["video"], ["image"]))

    def check_output_type(self, output_type: str) -> None:
        """Raises a `ValueError` for an unknown one, or if the VAE is needed and missing."""
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
        self._check_vae(is_needed=output_type != "latent")

    def _check_vae(self, is_needed: bool) -> None:
        if is_needed and self.vae is None:
            raise ValueError(
                "This pipeline has no VAE: load one and pass it as `vae=` to `from_pretrained` (a modular pipeline takes it "
                "by `update_components`), or use `video_latents` and `output_type='latent'`."
            )

    def _check_vae_result(self, result: torch.Tensor) -> None:
        if not torch.isfinite(result).all():
            raise ValueError(
                f"The VAE in {self.vae.dtype} gives NaN or infinite values. In float16 SDXL's overflows: load it in float32, "
                "by `dtype={'vae': torch.float32, 'default': torch.float16}` of `from_pretrained`, or call `pipe.vae.float()`."
            )

    def check_size(self, height: int | None, width: int | None) -> None:
        """Raises a `ValueError` that names the nearest possible sizes if a frame can't be cut into whole patches."""
        multiple = self.size_multiple
        for name, value in (("height", height), ("width", width)):
            if value is not None and (value % multiple or value < multiple):
                nearest = sorted({max(value // multiple, 1) * multiple, (value // multiple + 1) * multiple})
                raise ValueError(
                    f"`{name}` must be divisible by {multiple}, got {value}: the nearest are "
                    f"{' and '.join(map(str, nearest))}."
                )

    def prepare_frames(
        self,
        video: VideoInput | Sequence[VideoInput],
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
    ) -> torch.Tensor:
        """Video in any form → the pixels that the VAE takes, (B, F, 3, H, W) in [−1, 1] on the CPU.

        Args:
            video: a path, PIL images, an array (F, H, W, 3) or a tensor (F, 3, H, W), `uint8` or in [0, 1]; or a list,
                or a 5-dimensional array or tensor, of several.
            height, width: scale and crop to this size; by default to `longest_side`, keeping the aspect ratio.
            fps: frames a second to read a path at; by default all of its frames.
            max_frames: keep only so many of the last frames, with a warning if there are more.

        Raises:
            ValueError: if the videos of a batch differ in size or length, or frames are empty or not in range.
            VideoReadError: if a path can't be read.
        """
        if height is None and width is None:
            resize = partial(resize_and_crop, longest_side=self.config.longest_side, multiple=self.size_multiple)
        elif height is None or width is None:
            raise ValueError(f"Pass both `height` and `width`, or neither; got {height} and {width}.")
        else:
            self.check_size(height, width)
            resize = partial(resize_to_cover, height=height, width=width)
        videos = []
        for item in _as_list_of_videos(video):
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

    @torch.no_grad()
    def encode_frames(
        self, frames: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> torch.Tensor:
        """(B, F, 3, H, W) pixels in [−1, 1] → (B, C, F, h, w) scaled latents, a posterior sample as in the reference."""
        self._check_vae(is_needed=True)
        batch_size = frames.shape[0]
        if isinstance(generator, list):
            if len(generator) % batch_size or not generator:
                raise ValueError(
                    f"`generator` is a list of {len(generator)} for {batch_size} given videos: pass one, or one for each video "
                    "that is predicted."
                )
            # Several videos are predicted from each given one: the first of their generators encodes it.
            generators = generator[:: len(generator) // batch_size]
            return torch.cat([self.encode_frames(row[None], g) for row, g in zip(frames, generators, strict=True)])
        latents = []
        for pixels in frames.flatten(0, 1).split(FRAMES_PER_VAE_CALL):
            encoded = self.vae.encode(pixels.to(self._execution_device, self.vae.dtype))
            posterior = getattr(encoded, "latent_dist", None)
            latents.append(encoded.latents if posterior is None else posterior.sample(generator))
        latents = torch.cat(latents).float() - (self.vae.config.get("shift_factor") or 0.0)
        latents = latents * self.vae.config.scaling_factor
        self._check_vae_result(latents)
        return latents.unflatten(0, (batch_size, -1)).transpose(1, 2)

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor, output_type: str = "pil"):
        """(B, C, F, h, w) latents → frames, as described at [`VideoGPTPipelineOutput`]."""
        if output_type == "latent":
            return latents
        self._check_vae(is_needed=True)
        batch_size = latents.shape[0]
        latents = latents / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0.0)
        frames = [
            self.vae.decode(chunk.to(self.vae.dtype), return_dict=False)[0].float()
            for chunk in latents.transpose(1, 2).flatten(0, 1).split(FRAMES_PER_VAE_CALL)
        ]
        frames = torch.cat(frames)
        self._check_vae_result(frames)
        video = frames.unflatten(0, (batch_size, -1)).transpose(1, 2)
        return self.video_processor.postprocess_video(video, output_type=output_type)

    def encode_given(
        self,
        video: VideoInput | None = None,
        image: VideoInput | None = None,
        video_latents: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        max_context_frames: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor | None:
        """What was given, in whichever form, as clean latents (B, C, F, h, w) in fp32: the last frames that the window
        holds. `None` if nothing was given."""
        window = self.config.max_context_frames if max_context_frames is None else max_context_frames
        if window < 1:
            raise ValueError(f"`max_context_frames` must be at least 1, got {window}.")
        if video_latents is not None:
            _warn_of_dropped_frames(video_latents.shape[2], window)
            return video_latents[:, :, -window:].to(self._execution_device, torch.float32)
        if video is None and image is None:
            return None
        frames = self.prepare_frames(_as_videos(image) if video is None else video, height, width, fps, window)
        return self.encode_frames(frames, generator)

    def frame_size(
        self, latents: torch.Tensor | None, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """Height and width in pixels of what is predicted: those of `latents`, else those asked for or the default.

        Raises:
            ValueError: if latents were given of another size than the one asked for.
        """
        if latents is None:
            default = max(self.config.longest_side // self.size_multiple, 1) * self.size_multiple
            return height or default, width or default
        size = latents.shape[3] * self.vae_scale_factor, latents.shape[4] * self.vae_scale_factor
        if (height or size[0], width or size[1]) != size:
            raise ValueError(f"The latents are of frames of {size[0]} × {size[1]}, not of {height} × {width}.")
        return size
