"""Clip after clip: given frames become history, noise becomes the next clip, which becomes history.

Shapes: B videos, C latent channels, F frames, H × W pixels, h × w latent size.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor

from .clips import TOKENS_AROUND_PATCHES, equal_clip_lengths
from .history import History, VideoGPTStream
from .lora_videogpt import VideoGPTLoraLoaderMixin
from .pipeline_output import VideoGPTPipelineOutput
from .scheduling_next_clip_flow_match import (
    NextClipFlowMatchScheduler,
    denoised_to_model_output,
    mix_noise,
    set_flow_timesteps,
)
from .transformer_videogpt import VideoGPTKVCache, VideoGPTTransformerModel
from .video_io import read_video, resize_and_crop, resize_to_cover, to_uint8_frames


logger = logging.get_logger(__name__)

VideoInput = str | Path | list[PIL.Image.Image] | np.ndarray | torch.Tensor

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
FRAMES_PER_VAE_CALL = 16


def _warn_of_dropped_frames(num_frames: int, max_frames: int) -> None:
    if num_frames > max_frames:
        logger.warning(
            f"The history has {num_frames} frames, more than the window of {max_frames} that the model looks back on: the "
            f"oldest {num_frames - max_frames} are dropped. Raise `max_context_frames` to keep more."
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


class VideoGPTPipeline(VideoGPTLoraLoaderMixin, DiffusionPipeline):
    """Continues a video, animates a picture, or makes a video from nothing, clip after clip.

    Args:
        vae ([`AutoencoderKL`] or [`AutoencoderTiny`]): frames ↔ latents, one frame at a time. The published weights use
            SDXL's. May be `None` where only latents go in and out.
        transformer ([`VideoGPTTransformerModel`]): predicts clean latents.
        scheduler ([`NextClipFlowMatchScheduler`], or a scheduler of diffusers set up for flow matching): the steps from
            noise to a clip.
        frames_per_clip (`int`, defaults to `16`): frames predicted in parallel, unless the call says otherwise.
        max_context_frames (`int`, defaults to `80`): the most frames of history that the model looks back on.
        longest_side (`int`, defaults to `320`): frames are scaled down to this, unless the call gives a size.
        guidance_scale (`float`, defaults to `3.0`): history guidance, unless the call says otherwise. The paper's best
            with 16 frames a clip; the authors' script uses 1.5 with 24.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny | None,
        transformer: VideoGPTTransformerModel,
        scheduler: NextClipFlowMatchScheduler | KarrasDiffusionSchedulers,
        frames_per_clip: int = 16,
        max_context_frames: int = 80,
        longest_side: int = 320,
        guidance_scale: float = 3.0,
    ):
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, scheduler=scheduler)
        self.register_to_config(
            frames_per_clip=frames_per_clip,
            max_context_frames=max_context_frames,
            longest_side=longest_side,
            guidance_scale=guidance_scale,
        )
        self.vae_scale_factor = 8
        if vae is not None:
            channels = vae.config.get("encoder_block_out_channels") or vae.config.block_out_channels
            self.vae_scale_factor = 2 ** (len(channels) - 1)
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)

    def _set_call_state(self, guidance_scale: float | None, attention_kwargs: dict[str, Any] | None) -> None:
        if (attention_kwargs or {}).get("scale") == 0:  # diffusers would set the weights of all LoRAs to 1 afterwards
            raise ValueError("`attention_kwargs={'scale': 0}` can't be undone: call `disable_lora()` instead.")
        self._guidance_scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        self._attention_kwargs = attention_kwargs
        self._interrupt = False

    @property
    def guidance_scale(self) -> float:
        """History guidance of the running or the last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the running or the last call has a second pass without history."""
        return self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the running or the last call, over all clips."""
        return self._num_timesteps

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        return self._attention_kwargs

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to end the call after the clip's current step."""
        return self._interrupt

    def check_inputs(
        self,
        video: VideoInput | None,
        image: VideoInput | None,
        video_latents: torch.Tensor | None,
        height: int | None,
        width: int | None,
        clip_lengths: Sequence[int],
        guidance_scale: float | None,
        history_retention: float,
        latents: torch.Tensor | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raises a `ValueError` that says what is wrong with the arguments of a call, before anything is computed."""
        given = [n for n, v in (("video", video), ("image", image), ("video_latents", video_latents)) if v is not None]
        if len(given) > 1:
            raise ValueError(f"Pass only one of `video`, `image` and `video_latents`, got {' and '.join(given)}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
        if self.vae is None and (given in (["video"], ["image"]) or output_type != "latent"):
            raise ValueError(
                "This pipeline has no VAE: load one and pass it as `vae=` to `from_pretrained`, or use `video_latents` "
                "and `output_type='latent'`."
            )
        self.check_size(height, width)
        if guidance_scale is not None and guidance_scale != 1.0 and not given and len(clip_lengths) == 1:
            raise ValueError(
                f"`guidance_scale`={guidance_scale} guides by history, and a single clip made from nothing has none: "
                "leave it out, or pass `video`, `image` or `video_latents`."
            )
        if not 0 <= history_retention <= 1:
            raise ValueError(f"`history_retention` is a share in [0, 1], got {history_retention}.")
        channels = self.transformer.config.in_channels
        for name, value in (("video_latents", video_latents), ("latents", latents)):
            if value is None:
                continue
            if value.ndim != 5 or value.shape[1] != channels:
                raise ValueError(
                    f"`{name}` must be (batch, {channels}, frames, height, width), got {list(value.shape)}."
                )
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
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may name {self._callback_tensor_inputs}, got {unknown}."
            )

    def check_size(self, height: int | None, width: int | None) -> None:
        """Raises a `ValueError` that names the nearest possible sizes if a frame can't be cut into whole patches."""
        multiple = self.vae_scale_factor * self.transformer.config.patch_size
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
            multiple = self.vae_scale_factor * self.transformer.config.patch_size
            resize = partial(resize_and_crop, longest_side=self.config.longest_side, multiple=multiple)
        elif height is None or width is None:
            raise ValueError(f"Pass both `height` and `width`, or neither; got {height} and {width}.")
        else:
            self.check_size(height, width)
            resize = partial(resize_to_cover, height=height, width=width)
        videos = []
        for item in _as_list_of_videos(video):
            if isinstance(item, str | Path):
                frames = read_video(item, fps=fps, transform=resize).frames
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
        batch_size = frames.shape[0]
        if isinstance(generator, list):
            rows = [self.encode_frames(row[None], g) for row, g in zip(frames, generator, strict=True)]
            return torch.cat(rows)
        latents = []
        for pixels in frames.flatten(0, 1).split(FRAMES_PER_VAE_CALL):
            encoded = self.vae.encode(pixels.to(self._execution_device, self.vae.dtype))
            posterior = getattr(encoded, "latent_dist", None)
            latents.append(encoded.latents if posterior is None else posterior.sample(generator))
        latents = torch.cat(latents).float() - (self.vae.config.get("shift_factor") or 0.0)
        latents = latents * self.vae.config.scaling_factor
        return latents.unflatten(0, (batch_size, -1)).transpose(1, 2)

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor, output_type: str = "pil"):
        """(B, C, F, h, w) latents → frames, as described at [`VideoGPTPipelineOutput`]."""
        if output_type == "latent":
            return latents
        batch_size = latents.shape[0]
        latents = latents / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0.0)
        frames = [
            self.vae.decode(chunk.to(self.vae.dtype), return_dict=False)[0].float()
            for chunk in latents.transpose(1, 2).flatten(0, 1).split(FRAMES_PER_VAE_CALL)
        ]
        video = torch.cat(frames).unflatten(0, (batch_size, -1)).transpose(1, 2)
        return self.video_processor.postprocess_video(video, output_type=output_type)

    def prepare_clip_lengths(
        self,
        num_frames: int | None = None,
        frames_per_clip: int | None = None,
        chunk_partition: Sequence[int] | None = None,
    ) -> list[int]:
        """Frames in each clip to predict: `chunk_partition` itself, or `num_frames` in clips of `frames_per_clip`.

        Raises:
            ValueError: if `chunk_partition` has an empty clip, does not sum to `num_frames`, or comes with
                `frames_per_clip`; if a number is below 1.
        """
        if chunk_partition is None:
            frames_per_clip = self.config.frames_per_clip if frames_per_clip is None else frames_per_clip
            return equal_clip_lengths(frames_per_clip if num_frames is None else num_frames, frames_per_clip)
        clip_lengths = list(chunk_partition)
        if frames_per_clip is not None:
            raise ValueError(
                "Pass `chunk_partition` or `frames_per_clip`, not both: each says how long the clips are."
            )
        if not clip_lengths or min(clip_lengths) < 1 or (num_frames is not None and sum(clip_lengths) != num_frames):
            raise ValueError(
                f"`chunk_partition` {clip_lengths} must hold clips of at least 1 frame that sum to `num_frames`"
                f"{'' if num_frames is None else f'={num_frames}'}."
            )
        return clip_lengths

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
            return height or self.config.longest_side, width or self.config.longest_side
        size = latents.shape[3] * self.vae_scale_factor, latents.shape[4] * self.vae_scale_factor
        if (height or size[0], width or size[1]) != size:
            raise ValueError(f"The latents are of frames of {size[0]} × {size[1]}, not of {height} × {width}.")
        return size

    def prepare_history(
        self,
        given: torch.Tensor | None,
        height: int,
        width: int,
        num_frames: int | None,
        max_context_frames: int | None = None,
        use_kv_cache: bool = True,
    ) -> History:
        """The history before the first clip, with room in its cache for all that it will ever hold.

        Args:
            given: (B, C, F, h, w) clean latents, if there are any.
            height, width: pixels of a frame.
            num_frames: how many will be predicted; `None` for without end.
            max_context_frames: length of the window.
            use_kv_cache: whether to keep keys and values.
        """
        window = self.config.max_context_frames if max_context_frames is None else max_context_frames
        history = History(window)
        if use_kv_cache:
            pixels_per_patch = (self.vae_scale_factor * self.transformer.config.patch_size) ** 2
            tokens_per_frame = height * width // pixels_per_patch + TOKENS_AROUND_PATCHES
            if num_frames is not None:
                window = min(window, num_frames + (0 if given is None else given.shape[2]))
            history.kv_cache = VideoGPTKVCache(self.transformer.config.num_layers, window * tokens_per_frame)
        if given is not None:
            history.append(given)
        return history

    def prepare_latents(
        self,
        batch_size: int,
        num_frames: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Fresh noise for one clip, (B, C, F, h, w) in fp32, from a frame of `height` × `width` pixels."""
        shape = (batch_size, self.transformer.config.in_channels, num_frames)
        shape += (height // self.vae_scale_factor, width // self.vae_scale_factor)
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)

    @torch.no_grad()
    def encode_history(self, history: History) -> None:
        """Puts the keys and values of the frames that the cache of `history` lacks into it."""
        if history.kv_cache is None or history.latents is None:
            return
        latents = history.latents[:, :, history.kv_cache.num_frames :]
        if latents.shape[2]:
            # Compiled blocks run as they are here: one call a clip, of any length, is not worth a graph.
            with self.transformer.cache_context("history"), torch.compiler.set_stance("force_eager"):
                self.transformer(
                    clean_hidden_states=latents.to(self.transformer.dtype),
                    kv_cache=history.kv_cache,
                    attention_kwargs=self._attention_kwargs,
                )

    def predict_clean(self, latents: torch.Tensor, alpha: torch.Tensor, history: History) -> torch.Tensor:
        """One guided prediction of the clean clip from the noisy one.

        x̂ = x̂_clip + c (x̂_history − x̂_clip): the second pass is the clip alone, with no history and never padded to its
        length. At one noise level this is the same as guiding the velocity.

        Args:
            latents: noisy clip (B, C, F, h, w).
            alpha: its share of signal, a scalar in [0, 1).
            history: frames before it; without any, the clip is predicted alone.

        Returns:
            (B, C, F, h, w) in fp32.
        """
        model_input = latents.to(self.transformer.dtype)
        arguments = {"attention_kwargs": self._attention_kwargs, "return_dict": False}
        past = {}
        if history.num_frames and history.kv_cache is not None:
            past = {"kv_cache": history.kv_cache}
        elif history.num_frames:
            past = {"clean_hidden_states": history.latents.to(self.transformer.dtype)}
        with self.transformer.cache_context("cond"):
            denoised = self.transformer(model_input, alpha, **past, **arguments)[0].float()
        if past and self.do_classifier_free_guidance:
            with self.transformer.cache_context("uncond"):
                denoised_alone = self.transformer(model_input, alpha, **arguments)[0].float()
            denoised = denoised_alone + self._guidance_scale * (denoised - denoised_alone)
        return denoised

    @torch.no_grad()
    def denoise_clip(
        self,
        latents: torch.Tensor,
        history: History,
        num_inference_steps: int,
        on_step_end: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Noise (B, C, F, h, w) → the clean latents of one clip, by the scheduler's steps.

        `on_step_end(timestep, latents)` is called after each step and returns the latents to go on with.

        Raises:
            ValueError: if the clip comes out with NaN or infinite values.
        """
        self.encode_history(history)
        if self.transformer.is_cache_enabled:  # diffusers' block caches compare steps of one clip, not of two
            self.transformer._reset_stateful_cache()
        timesteps, alphas = set_flow_timesteps(self.scheduler, num_inference_steps, device=latents.device)
        for timestep, alpha in zip(timesteps, alphas, strict=True):
            if self.interrupt:
                break
            denoised = self.predict_clean(latents, alpha, history)
            model_output = denoised_to_model_output(self.scheduler, denoised, latents, alpha)
            latents = self.scheduler.step(model_output, timestep, latents, return_dict=False)[0]
            if on_step_end is not None:
                latents = on_step_end(timestep, latents)
        if not torch.isfinite(latents).all():
            raise ValueError(
                "The predicted clip has NaN or infinite values. In float16, load the transformer in bfloat16 or float32; "
                "else look for them in its weights and in the history."
            )
        return latents

    def remember(
        self,
        history: History,
        latents: torch.Tensor,
        retention: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> None:
        """Makes a predicted clip (B, C, F, h, w) part of the history, as latents: nothing is decoded and encoded again.

        With `retention` ρ below 1 it enters as ρ φ + (1 − ρ) ε, the noise that clean clips have in training.
        """
        if retention < 1:
            noise = randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
            latents = mix_noise(latents, retention, noise)
        history.append(latents)

    @torch.no_grad()
    def __call__(
        self,
        video: VideoInput | None = None,
        image: VideoInput | None = None,
        video_latents: torch.Tensor | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        frames_per_clip: int | None = None,
        chunk_partition: Sequence[int] | None = None,
        max_context_frames: int | None = None,
        history_retention: float = 1.0,
        use_kv_cache: bool = True,
        fps: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[int, int, dict], None]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> VideoGPTPipelineOutput | tuple:
        """Predicts the frames that follow.

        Args:
            video: the history: a path, PIL images, an array (F, H, W, 3) or a tensor (F, 3, H, W), `uint8` or in [0, 1];
                or a list of several, all of one length and size.
            image: a history of one frame, in the same forms.
            video_latents (`torch.Tensor` of shape (B, C, F, h, w)): the history as latents, for example an earlier output.
                With none of these three, the video is made from nothing.
            num_frames (`int`, *optional*): frames to predict; one clip by default.
            height, width (`int`, *optional*): size in pixels, divisible by 16. By default that of the history, its longest
                side scaled down to the pipeline's `longest_side`; without history, `longest_side` squared.
            num_inference_steps (`int`, defaults to `50`): denoising steps a clip.
            guidance_scale (`float`, *optional*): history guidance c; 1 turns it off and halves the work. The pipeline's
                own by default.
            frames_per_clip (`int`, *optional*): frames predicted in parallel; the pipeline's own by default.
            chunk_partition (`Sequence[int]`, *optional*): frames in each predicted clip, in place of `frames_per_clip`.
            max_context_frames (`int`, *optional*): the most frames of history looked back on; the pipeline's own by
                default. A longer history drops its oldest frames.
            history_retention (`float`, defaults to `1.0`): share of signal in predicted frames when they become history.
            use_kv_cache (`bool`, defaults to `True`): compute the history once a clip, not once a step. Same result.
            fps (`float`, *optional*): frames a second to read a `video` path at; every frame by default.
            num_videos_per_prompt (`int`, defaults to `1`): different continuations of each history.
            generator: makes the result reproducible; one, or one a video. Every clip draws fresh noise from it.
            latents (`torch.Tensor` of shape (B, C, `num_frames`, h, w), *optional*): the noise to begin with.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, defaults to `True`): whether to return an output object or a tuple.
            attention_kwargs (`dict`, *optional*): `{"scale": s}` multiplies the weights of the active LoRAs, unless they
                are fused; s is not 0.
            callback_on_step_end: called as `callback(pipe, step, timestep, {"latents": ...})` after every step, steps
                counted over all clips; may return changed latents.
            callback_on_step_end_tensor_inputs: what it is handed: `["latents"]`, those of the clip in work.

        Returns:
            [`VideoGPTPipelineOutput`]: the predicted frames alone.

        Raises:
            ValueError: for arguments that don't fit each other, see [`~VideoGPTPipeline.check_inputs`].
            VideoReadError: if `video` is a path that can't be read.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # 1. Clips to predict
        clip_lengths = self.prepare_clip_lengths(num_frames, frames_per_clip, chunk_partition)
        num_frames = sum(clip_lengths)

        # 2. Check inputs
        self.check_inputs(
            video,
            image,
            video_latents,
            height,
            width,
            clip_lengths,
            guidance_scale,
            history_retention,
            latents,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self._set_call_state(guidance_scale, attention_kwargs)
        self._num_timesteps = num_inference_steps * len(clip_lengths)

        # 3. Encode the given frames: they are the history
        given = self.encode_given(video, image, video_latents, height, width, fps, max_context_frames, generator)
        height, width = self.frame_size(given if latents is None else latents, height, width)
        if given is not None:
            given = given.repeat_interleave(num_videos_per_prompt, dim=0)
        batch_size = next((x.shape[0] for x in (given, latents) if x is not None), num_videos_per_prompt)
        history = self.prepare_history(given, height, width, num_frames, max_context_frames, use_kv_cache)

        # 4. Clip after clip: denoise it, then remember it
        clips = []
        step_numbers = itertools.count()
        with self.progress_bar(total=self._num_timesteps) as progress_bar:

            def on_step_end(timestep: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
                if callback_on_step_end is not None:
                    tensors = {"latents": clip} if "latents" in callback_on_step_end_tensor_inputs else {}
                    clip = callback_on_step_end(self, next(step_numbers), timestep, tensors).pop("latents", clip)
                progress_bar.update()
                return clip

            for clip_length in clip_lengths:
                if latents is None:
                    clip = self.prepare_latents(batch_size, clip_length, height, width, generator)
                else:
                    first = sum(c.shape[2] for c in clips)
                    clip = latents[:, :, first : first + clip_length].to(self._execution_device, torch.float32)
                clip = self.denoise_clip(clip, history, num_inference_steps, on_step_end)
                clips.append(clip)
                if self.interrupt:
                    break
                if len(clips) < len(clip_lengths):
                    self.remember(history, clip, history_retention, generator)

        # 5. Decode
        frames = self.decode_latents(torch.cat(clips, dim=2), output_type)
        self.maybe_free_model_hooks()
        return VideoGPTPipelineOutput(frames=frames) if return_dict else (frames,)

    @torch.no_grad()
    def stream(
        self,
        video: VideoInput | None = None,
        image: VideoInput | None = None,
        video_latents: torch.Tensor | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        frames_per_clip: int | None = None,
        max_context_frames: int | None = None,
        history_retention: float = 1.0,
        fps: float | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        attention_kwargs: dict[str, Any] | None = None,
    ) -> VideoGPTStream:
        """Predicts clip after clip, each handed out as soon as it is there, while the next one is computed.

        The arguments are those of a call, except that `num_frames=None` goes on without end. Time and memory of a clip
        do not grow with the length of the video. See [`VideoGPTStream`] for giving it real frames on the way.
        """
        frames_per_clip = self.config.frames_per_clip if frames_per_clip is None else frames_per_clip
        endless = num_frames is None
        clip_lengths = self.prepare_clip_lengths(2 * frames_per_clip if endless else num_frames, frames_per_clip)
        self.check_inputs(
            video,
            image,
            video_latents,
            height,
            width,
            clip_lengths,
            guidance_scale,
            history_retention,
            None,
            output_type,
            self._callback_tensor_inputs,
        )
        self._set_call_state(guidance_scale, attention_kwargs)
        given = self.encode_given(video, image, video_latents, height, width, fps, max_context_frames, generator)
        height, width = self.frame_size(given, height, width)
        history = self.prepare_history(given, height, width, num_frames, max_context_frames)
        batch_size = 1 if given is None else given.shape[0]

        def predict_next(clip_length: int) -> torch.Tensor:
            noise = self.prepare_latents(batch_size, clip_length, height, width, generator)
            return self.denoise_clip(noise, history, num_inference_steps)

        return VideoGPTStream(
            self,
            history,
            predict_next,
            itertools.repeat(frames_per_clip) if endless else iter(clip_lengths),
            frame_size=(height, width),
            history_retention=history_retention,
            generator=generator,
            output_type=output_type,
        )
