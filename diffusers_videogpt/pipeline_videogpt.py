"""Clip after clip: given frames become history, noise becomes the next clip, which becomes history.

Shapes: B videos, C latent channels, F frames, H × W pixels, h × w latent size.
"""

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    FirstBlockCacheConfig,
    MagCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .clips import TOKENS_AROUND_PATCHES, equal_clip_lengths
from .conditions import Conditions, VideoGPTConditionMixin, condition_lengths
from .frame_coding import VideoGPTFrameMixin, VideoInput, get_vae_scale_factor
from .history import History, VideoGPTStream
from .lora_videogpt import VideoGPTLoraLoaderMixin
from .pipeline_output import VideoGPTPipelineOutput
from .saved_models import VideoGPTLoadingMixin
from .scheduling_next_clip_flow_match import (
    NextClipFlowMatchScheduler,
    denoised_to_model_output,
    mix_noise,
    set_flow_timesteps,
)
from .transformer_videogpt import VideoGPTKVCache, VideoGPTTransformerModel


# diffusers' caches that know the passes of a step apart: encoding the history, predicting with it and without it.
STEP_CACHES = (FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig)


class VideoGPTRolloutMixin:
    """From history and noise to the next clip, which becomes history: what the pipeline's call and the modular blocks share.

    `transformer`, `scheduler` and `config` are the pipeline's.
    """

    def _set_call_state(
        self,
        guidance_scale: float | None,
        condition_guidance_scale: float | None,
        guidance_interval: tuple[float, float],
        attention_kwargs: dict[str, Any] | None,
    ) -> None:
        start, stop = guidance_interval
        if not 0 <= start < stop <= 1:
            raise ValueError(
                f"`guidance_interval`={guidance_interval} must be (start, stop) with 0 ≤ start < stop ≤ 1, as shares of the "
                "denoising steps; to guide in none of them, pass `guidance_scale=1`."
            )
        self._guidance_interval = guidance_interval
        if self.transformer.is_cache_enabled and not isinstance(self.transformer._cache_config, STEP_CACHES):
            raise ValueError(
                f"{type(self.transformer._cache_config).__name__} would mix the passes with history and without. Call "
                f"`transformer.disable_cache()` and enable one of {', '.join(c.__name__ for c in STEP_CACHES)}."
            )
        if (attention_kwargs or {}).get("scale") == 0:
            # diffusers divides by the scale afterwards, and after a 0 sets the weights of all LoRAs to 1.
            attention_kwargs = attention_kwargs | {"scale": 1e-30}
        self._guidance_scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        self._condition_guidance_scale = condition_guidance_scale
        if condition_guidance_scale is None:
            self._condition_guidance_scale = self.config.condition_guidance_scale
        self._attention_kwargs = attention_kwargs

    @property
    def guidance_scale(self) -> float:
        """History guidance of the running or the last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the running or the last call has a second pass without history."""
        return self._guidance_scale != 1.0

    @property
    def condition_guidance_scale(self) -> float:
        """Guidance by class and text of the running or the last call."""
        return self._condition_guidance_scale

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

    def check_rollout(
        self,
        clip_lengths: Sequence[int],
        video_latents: torch.Tensor | None,
        latents: torch.Tensor | None,
        has_history: bool,
        guidance_scale: float | None,
        history_retention: float,
    ) -> None:
        """Raises a `ValueError` if these arguments of a call don't fit the model or each other."""
        if guidance_scale not in (None, 1.0) and not has_history and len(clip_lengths) == 1:
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

    def prepare_history(
        self,
        given: torch.Tensor | None,
        height: int,
        width: int,
        num_frames: int | None,
        max_context_frames: int | None = None,
        use_kv_cache: bool = True,
        conditions: Conditions | None = None,
        negative_conditions: Conditions | None = None,
        batch_size: int = 1,
        rolling_cache: bool = False,
    ) -> History:
        """The history before the first clip, with room in its cache for all that it will ever hold.

        Args:
            given: (b, C, F, h, w) clean latents, if there are any.
            height, width: pixels of a frame.
            num_frames: how many will be predicted; `None` for without end.
            max_context_frames: length of the window.
            use_kv_cache: whether to keep keys and values.
            conditions, negative_conditions: of [`encode_conditions`], if anything is asked for.
            batch_size: B videos are predicted: all these are repeated to so many.
            rolling_cache: see [`History`].
        """
        window = self.config.max_context_frames if max_context_frames is None else max_context_frames

        def repeat(values: torch.Tensor) -> torch.Tensor:
            return values.repeat_interleave(batch_size // values.shape[0], dim=0)

        conditions = {name: repeat(value) for name, value in (conditions or {}).items()}
        history = History(window, rolling=rolling_cache, conditions=conditions)
        if negative_conditions is not None:
            history.negative_conditions = {name: repeat(value) for name, value in negative_conditions.items()}
        pixels_per_patch = (self.vae_scale_factor * self.transformer.config.patch_size) ** 2
        tokens_per_frame = height * width // pixels_per_patch + TOKENS_AROUND_PATCHES
        if num_frames is not None:
            window = min(window, num_frames + (0 if given is None else given.shape[2]))

        def make_cache(conditions: Conditions | None) -> VideoGPTKVCache | None:
            # A cache holds samples of one length, so texts of different lengths have none.
            if not use_kv_cache or conditions is None or "encoder_attention_mask" in conditions:
                return None
            num_tokens = window * tokens_per_frame + condition_lengths(conditions)
            return VideoGPTKVCache(self.transformer.config.num_layers, num_tokens)

        history.kv_cache = make_cache(history.conditions)
        history.negative_kv_cache = make_cache(history.negative_conditions)
        if given is not None:
            history.append(repeat(given))
        return history

    def prepare_latents(
        self,
        batch_size: int,
        num_frames: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Noise for one clip, (B, C, F, h, w) in fp32, of frames of `height` × `width` pixels: `latents` if given."""
        if latents is not None:
            return latents.to(self._execution_device, torch.float32)
        shape = (batch_size, self.transformer.config.in_channels, num_frames)
        shape += (height // self.vae_scale_factor, width // self.vae_scale_factor)
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)

    @torch.no_grad()
    def encode_history(self, history: History) -> None:
        """Puts the keys and values of the frames that the caches of `history` lack into them, behind the conditions."""
        passes = (
            ("history", history.kv_cache, history.conditions),
            ("negative history", history.negative_kv_cache, history.negative_conditions),
        )
        for name, kv_cache, conditions in passes:
            if kv_cache is None or history.num_frames == kv_cache.num_frames:
                continue
            # Compiled blocks run as they are here: one call a clip, of any length, is not worth a graph.
            with self.transformer.cache_context(name), torch.compiler.set_stance("force_eager"):
                self.transformer(
                    clean_hidden_states=history.latents[:, :, kv_cache.num_frames :].to(self.transformer.dtype),
                    kv_cache=kv_cache,
                    attention_kwargs=self._attention_kwargs,
                    **({} if kv_cache.num_tokens else conditions),
                )

    def predict_clean(
        self, latents: torch.Tensor, alpha: torch.Tensor, history: History, guide_by_history: bool = True
    ) -> torch.Tensor:
        """One guided prediction of the clean clip from the noisy one.

        With h the history, y what is asked for, n what is to be led away from and c, d the two scales:

            x̂ = x̂(y) + c (x̂(h, y) − x̂(y)) + (d − 1) (x̂(h, y) − x̂(h, n))

        so a scale of 1 takes its pass away. x̂(y) is the clip with no history, never padded to its length. At one noise
        level this is the same as guiding the velocity.

        Args:
            latents: noisy clip (B, C, F, h, w).
            alpha: its share of signal, a scalar in [0, 1).
            history: frames before it, and conditions; without any, the clip is predicted alone.
            guide_by_history: `False` leaves out the pass without history, as c = 1 does.

        Returns:
            (B, C, F, h, w) in fp32.
        """
        dtype = self.transformer.dtype
        has_history = history.num_frames > 0

        def denoise(
            name: str, conditions: Conditions, kv_cache: VideoGPTKVCache | None, with_history: bool, latents=latents
        ):
            inputs = dict(conditions)
            if with_history and kv_cache is not None:
                inputs = {"kv_cache": kv_cache}
            elif with_history:
                inputs["clean_hidden_states"] = history.latents.to(dtype)
            inputs |= {"attention_kwargs": self._attention_kwargs, "return_dict": False}
            with self.transformer.cache_context(name):
                return self.transformer(latents.to(dtype), alpha, **inputs)[0].float()

        guide_by_history = has_history and guide_by_history and self.do_classifier_free_guidance
        if guide_by_history and history.kv_cache is not None and not history.conditions:
            # One pass of twice the samples reads the weights once.
            asked, alone = denoise("both", {}, history.kv_cache, True, torch.cat([latents, latents])).chunk(2)
        else:
            asked = denoise("cond", history.conditions, history.kv_cache, has_history)
            alone = denoise("uncond", history.conditions, None, False) if guide_by_history else None
        guided = asked if alone is None else alone + self._guidance_scale * (asked - alone)
        if history.negative_conditions is not None:
            unasked = denoise("negative", history.negative_conditions, history.negative_kv_cache, has_history)
            guided = guided + (self._condition_guidance_scale - 1) * (asked - unasked)
        return guided

    @torch.no_grad()
    def denoise_clip(
        self,
        latents: torch.Tensor,
        history: History,
        num_inference_steps: int,
        on_step_end: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Noise (B, C, F, h, w) → the clean latents of one clip, by the scheduler's steps.

        `on_step_end(timestep, latents)` is called after each step and returns the latents to go on with.

        Raises:
            ValueError: if the clip comes out with NaN or infinite values.
        """
        timesteps, alphas = set_flow_timesteps(self.scheduler, num_inference_steps, device=latents.device)
        return self.run_steps(latents, history, timesteps, alphas, on_step_end, generator)

    def run_steps(
        self,
        latents: torch.Tensor,
        history: History,
        timesteps: torch.Tensor,
        alphas: torch.Tensor,
        on_step_end: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """[`denoise_clip`] by the (T,) `timesteps` and `alphas` that [`~scheduling_next_clip_flow_match.set_flow_timesteps`] gave."""
        self.encode_history(history)
        if self.transformer.is_cache_enabled:  # diffusers' block caches compare steps of one clip, not of two
            self.transformer._reset_stateful_cache()
        start, stop = (share * len(timesteps) for share in self._guidance_interval)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters  # to add noise of its own
        step_kwargs = {"generator": generator} if takes_generator else {}
        for step, (timestep, alpha) in enumerate(zip(timesteps, alphas, strict=True)):
            if self.interrupt:
                break
            denoised = self.predict_clean(latents, alpha, history, guide_by_history=start <= step < stop)
            model_output = denoised_to_model_output(self.scheduler, denoised, latents, alpha)
            latents = self.scheduler.step(model_output, timestep, latents, **step_kwargs, return_dict=False)[0]
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


class VideoGPTPipeline(
    VideoGPTRolloutMixin,
    VideoGPTFrameMixin,
    VideoGPTConditionMixin,
    VideoGPTLoraLoaderMixin,
    VideoGPTLoadingMixin,
    DiffusionPipeline,
):
    """Continues a video, animates a picture, or makes a video from nothing, of a class or from a text, clip after clip.

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
        condition_guidance_scale (`float`, defaults to `4.0`): guidance by class and text, unless the call says otherwise.
        id2label (`dict`, *optional*): number → name of the classes that the model was trained on; as JSON has it, the
            numbers may be strings.
        text_encoder (`PreTrainedModel`, *optional*): an encoder of `transformers`, for a model that was trained on text:
            for example `CLIPTextModel`, as in the paper, or `BertModel`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the text encoder.
        trained_on (`str`, *optional*): what the training videos show, in a few words, for who gives the model others.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer"]
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
        condition_guidance_scale: float = 4.0,
        id2label: dict | None = None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        trained_on: str | None = None,
    ):
        super().__init__()
        self.register_modules(
            vae=vae, transformer=transformer, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )
        self.register_to_config(
            frames_per_clip=frames_per_clip,
            max_context_frames=max_context_frames,
            longest_side=longest_side,
            guidance_scale=guidance_scale,
            condition_guidance_scale=condition_guidance_scale,
            id2label=id2label,
            trained_on=trained_on,
        )
        self.vae_scale_factor = get_vae_scale_factor(vae)
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)

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
        """Raises a `ValueError` that says what is wrong with the arguments of a call, before anything is computed.

        They are those of [`~VideoGPTPipeline.__call__`]; `clip_lengths` is what `num_frames` and `frames_per_clip` come to.
        """
        self.check_given(video, image, video_latents)
        self.check_output_type(output_type)
        self.check_size(height, width)
        has_history = any(given is not None for given in (video, image, video_latents))
        self.check_rollout(clip_lengths, video_latents, latents, has_history, guidance_scale, history_retention)
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may name {self._callback_tensor_inputs}, got {unknown}."
            )

    @torch.no_grad()
    def __call__(
        self,
        video: VideoInput | None = None,
        image: VideoInput | None = None,
        video_latents: torch.Tensor | None = None,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        condition_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        frames_per_clip: int | None = None,
        chunk_partition: Sequence[int] | None = None,
        max_context_frames: int | None = None,
        history_retention: float = 1.0,
        use_kv_cache: bool = True,
        rolling_cache: bool = False,
        fps: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
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
            class_labels (*optional*): what kind of video: the names or numbers of classes that the model was trained on, one
                a video or one for all.
            prompt (`str` or `list[str]`, *optional*): what the video shows, in words; one a video or one for all.
            negative_prompt (`str` or `list[str]`, *optional*): what guidance leads away from; the empty text by default.
            num_frames (`int`, *optional*): frames to predict; one clip by default.
            height, width (`int`, *optional*): size in pixels, divisible by 16. By default that of the history, its longest
                side scaled down to the pipeline's `longest_side`; without history, `longest_side` squared.
            num_inference_steps (`int`, defaults to `50`): denoising steps a clip.
            guidance_scale (`float`, *optional*): history guidance; 1 turns it off and halves the work. The pipeline's own
                by default.
            condition_guidance_scale (`float`, *optional*): guidance by class and prompt; 1 turns it off. The pipeline's own
                by default. How the two go together is said at [`~VideoGPTPipeline.predict_clean`].
            guidance_interval (`tuple[float, float]`, defaults to `(0.0, 1.0)`): the steps with history guidance, as shares of
                all; the others save a pass (Kynkäänniemi et al., arXiv 2404.07724).
            frames_per_clip (`int`, *optional*): frames predicted in parallel; the pipeline's own by default.
            chunk_partition (`Sequence[int]`, *optional*): frames in each predicted clip, in place of `frames_per_clip`.
            max_context_frames (`int`, *optional*): the most frames of history looked back on; the pipeline's own by
                default. A longer history drops its oldest frames.
            history_retention (`float`, defaults to `1.0`): share of signal in predicted frames when they become history.
            use_kv_cache (`bool`, defaults to `True`): compute the history once a clip, not once a step. Same result. Has no
                effect where the prompts of a batch differ in length.
            rolling_cache (`bool`, defaults to `False`): when the window is full, forget its oldest frames instead of computing
                the window anew. Faster for short clips; not the same result, since later frames remember the forgotten ones. Behind
                1,000 frames it is filled anew all the same, before its positions grow too large.
            fps (`float`, *optional*): frames a second to read a `video` path at; every frame by default.
            num_videos_per_prompt (`int`, defaults to `1`): different videos for each history, label or prompt.
            generator: makes the result reproducible; one, or one a video. Every clip draws fresh noise from it.
            latents (`torch.Tensor` of shape (B, C, `num_frames`, h, w), *optional*): the noise to begin with.
            prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask (*optional*): what
                [`~VideoGPTPipeline.encode_prompt`] makes of prompts, in their place.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, defaults to `True`): whether to return an output object or a tuple.
            attention_kwargs (`dict`, *optional*): `{"scale": s}` multiplies the weights of the active LoRAs, unless they
                are fused.
            callback_on_step_end: called as `callback(pipe, step, timestep, {"latents": ...})` after every step, steps
                counted over all clips; may return changed latents.
            callback_on_step_end_tensor_inputs: what it is handed: `["latents"]`, those of the clip in work.

        Returns:
            [`VideoGPTPipelineOutput`]: the predicted frames alone.

        Raises:
            ValueError: for arguments that don't fit each other, see [`~VideoGPTPipeline.check_inputs`] and
                [`~VideoGPTPipeline.encode_conditions`].
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
        self._interrupt = False
        self._set_call_state(guidance_scale, condition_guidance_scale, guidance_interval, attention_kwargs)
        timesteps, _ = set_flow_timesteps(self.scheduler, num_inference_steps)  # Heun has two model calls a step
        self._num_timesteps = len(timesteps) * len(clip_lengths)

        # 3. Encode what is asked for
        conditions, negative_conditions = self.encode_conditions(
            class_labels,
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
            guidance_scale=self._condition_guidance_scale,
        )

        # 4. Encode the given frames: they are the history
        given = self.encode_given(video, image, video_latents, height, width, fps, max_context_frames, generator)
        height, width = self.frame_size(given if latents is None else latents, height, width)
        self.frame_size(given, height, width)  # both of one size
        batch_size = self.prepare_batch_size(given, conditions, latents, num_videos_per_prompt)
        history = self.prepare_history(
            given,
            height,
            width,
            num_frames,
            max_context_frames,
            use_kv_cache,
            conditions,
            negative_conditions,
            batch_size,
            rolling_cache,
        )

        # 5. Clip after clip: denoise it, then remember it
        clips = []
        step_numbers = itertools.count()
        with self.progress_bar(total=self._num_timesteps) as progress_bar:

            def on_step_end(timestep: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
                if callback_on_step_end is not None:
                    tensors = {"latents": clip} if "latents" in callback_on_step_end_tensor_inputs else {}
                    changed = callback_on_step_end(self, next(step_numbers), timestep, tensors) or {}
                    clip = changed.get("latents", clip)
                progress_bar.update()
                return clip

            for clip_length in clip_lengths:
                first = sum(c.shape[2] for c in clips)
                noise = None if latents is None else latents[:, :, first : first + clip_length]
                clip = self.prepare_latents(batch_size, clip_length, height, width, generator, noise)
                clip = self.denoise_clip(clip, history, num_inference_steps, on_step_end, generator)
                clips.append(clip)
                if self.interrupt:
                    break
                if len(clips) < len(clip_lengths):
                    self.remember(history, clip, history_retention, generator)

        # 6. Decode
        frames = self.decode_latents(torch.cat(clips, dim=2), output_type)
        self.maybe_free_model_hooks()
        return VideoGPTPipelineOutput(frames=frames) if return_dict else (frames,)

    @torch.no_grad()
    def stream(
        self,
        video: VideoInput | None = None,
        image: VideoInput | None = None,
        video_latents: torch.Tensor | None = None,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        condition_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        frames_per_clip: int | None = None,
        max_context_frames: int | None = None,
        history_retention: float = 1.0,
        rolling_cache: bool = False,
        fps: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "pil",
        attention_kwargs: dict[str, Any] | None = None,
    ) -> VideoGPTStream:
        """Predicts clip after clip, each handed out as soon as it is there, while the next one is computed.

        The arguments are those of [`~VideoGPTPipeline.__call__`], except that `num_frames=None` goes on without end. Time and memory of a clip
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
        self._interrupt = False
        self._set_call_state(guidance_scale, condition_guidance_scale, guidance_interval, attention_kwargs)
        conditions, negative_conditions = self.encode_conditions(
            class_labels,
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_attention_mask,
            negative_prompt_attention_mask,
            guidance_scale=self._condition_guidance_scale,
        )
        given = self.encode_given(video, image, video_latents, height, width, fps, max_context_frames, generator)
        height, width = self.frame_size(given, height, width)
        batch_size = self.prepare_batch_size(given, conditions)
        history = self.prepare_history(
            given,
            height,
            width,
            num_frames,
            max_context_frames,
            True,
            conditions,
            negative_conditions,
            batch_size,
            rolling_cache,
        )

        def predict_next(clip_length: int) -> torch.Tensor:
            noise = self.prepare_latents(batch_size, clip_length, height, width, generator)
            return self.denoise_clip(noise, history, num_inference_steps, generator=generator)

        return VideoGPTStream(
            self,
            history,
            predict_next,
            itertools.repeat(frames_per_clip) if endless else iter(clip_lengths),
            frame_size=(height, width),
            history_retention=history_retention,
            generator=generator,
            output_type=output_type,
            batch_size=batch_size,
        )
