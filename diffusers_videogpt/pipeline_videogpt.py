"""Clip after clip: given frames become history, noise becomes the next clip, which becomes history.

In the order of work: [`VideoGPTPipeline.__call__`] is the loop over the clips, [`denoise_steps`] the loop over the steps of a
clip, [`predict_clean`] the guidance of a step. The last two are plain functions, which the modular blocks run too.

Shapes: B videos, C latent channels, F frames, H × W pixels, h × w latent size.
"""

import inspect
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.video_processor import VideoProcessor

from .actions import Actions
from .attention_videogpt import usable_attention_kwargs
from .conditions import ConditionEncoder, PreTrainedModel, PreTrainedTokenizerBase, class_numbers
from .config_values import check_pipeline_config
from .diffusers_internals import (
    execution_device,
    guidance_pass_name,
    refuse_incomplete_vae,
    refuse_unread_tensors,
    reset_block_caches,
)
from .frame_latents import (
    VideoInput,
    check_channels,
    decode_latents,
    encode_frames,
    encode_given,
    get_vae_scale_factor,
    prepare_frames,
)
from .guidance_next_clip import guider_for_call
from .history import History
from .lora_videogpt import VideoGPTLoraLoaderMixin, refuse_lora_layers
from .pipeline_inputs import CallInputs, clip_lengths_of, num_steps_of, window_of
from .pipeline_output import VideoGPTPipelineOutput
from .rollout import OneCallAtATime, Rollout, encode_history, make_condition_encoder, prepare_noise, prepare_rollout
from .saved_models import refuse_what_is_not
from .scheduling_next_clip_flow_match import NextClipFlowMatchScheduler, denoised_to_model_output, set_flow_timesteps
from .stream import VideoGPTStream
from .transformer_videogpt import VideoGPTTransformerModel


StepCallback = Callable[[int, int, dict], None] | PipelineCallback | MultiPipelineCallbacks


class VideoGPTPipeline(DiffusionPipeline, VideoGPTLoraLoaderMixin):
    """Continues a video, animates a picture, or makes a video from nothing, of a class or from a text, clip after clip.

    Args:
        vae ([`AutoencoderKL`] or [`AutoencoderTiny`]): frames ↔ latents, one frame at a time. The published weights use
            SDXL's. May be `None` where only latents go in and out.
        transformer ([`VideoGPTTransformerModel`]): predicts clean latents.
        scheduler ([`NextClipFlowMatchScheduler`], or a flow-matching one of diffusers): the steps from noise to a clip.
        frames_per_clip (`int`, defaults to `16`): frames predicted in parallel, unless the call says otherwise.
        max_context_frames (`int`, defaults to `80`): the most frames of history that the model looks back on.
        longest_side (`int`, defaults to `320`): frames are scaled down to this, unless the call gives a size.
        num_inference_steps (`int`, *optional*): denoising steps a clip, unless the call says otherwise; 50 by default.
        guidance_scale (`float`, defaults to `3.0`): history guidance, unless the call or a `guider` says otherwise. The
            paper's best with 16 frames a clip; the authors' script uses 1.5 with 24. A distilled model has 1: none.
        condition_guidance_scale (`float`, defaults to `4.0`): the same by class and text.
        rolling_cache (`bool`, defaults to `False`): a full window only forgets its oldest frames, unless the call says otherwise.
        id2label (`dict`, *optional*): number, or as in JSON its string → name of a class that the model was trained on.
        text_encoder (`PreTrainedModel`, *optional*): an encoder of `transformers`, for a model that was trained on text:
            for example `CLIPTextModel`, as in the paper, or `BertModel`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): of the text encoder.
        trained_on (`str`, *optional*): what the training videos show, in a few words. `videogpt predict` and the page say it
            to users who give the model their own videos.
        trained_with (`dict`, *optional*): `fps`, `num_frames` and form of `clips` of the training samples. Training that
            starts from this pipeline takes `fps` and `clips` from here unless told otherwise.
        guider ([`NextClipGuidance`], or a guider of diffusers, *optional*): how the predictions with history and without
            become one; by default a [`NextClipGuidance`] of the two scales above. A call works with a copy of it.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["vae", "text_encoder", "tokenizer", "guider"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny | None,
        transformer: VideoGPTTransformerModel,
        scheduler: NextClipFlowMatchScheduler | KarrasDiffusionSchedulers,
        *,
        frames_per_clip: int = 16,
        max_context_frames: int = 80,
        longest_side: int = 320,
        num_inference_steps: int | None = None,
        guidance_scale: float = 3.0,
        condition_guidance_scale: float = 4.0,
        rolling_cache: bool = False,
        id2label: dict | None = None,
        text_encoder: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        guider: BaseGuidance | None = None,
        trained_on: str | None = None,
        trained_with: dict[str, Any] | None = None,
    ):
        super().__init__()
        refuse_unread_tensors({"vae": vae, "text_encoder": text_encoder})
        check_channels(vae, transformer)
        self.register_modules(
            vae=vae,
            transformer=transformer,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            guider=guider,
        )
        self.register_to_config(
            frames_per_clip=frames_per_clip,
            max_context_frames=max_context_frames,
            longest_side=longest_side,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            condition_guidance_scale=condition_guidance_scale,
            rolling_cache=rolling_cache,
            id2label=id2label,
            trained_on=trained_on,
            trained_with=trained_with,
        )
        check_pipeline_config(self.config)
        self.vae_scale_factor = get_vae_scale_factor(vae)
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)
        self.one_call = OneCallAtATime()
        self._interrupt = False
        self._num_timesteps = 0
        self._attention_kwargs: dict[str, Any] | None = None
        self._guider: BaseGuidance | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> "VideoGPTPipeline":
        """Loads as diffusers does, and says so where a folder holds something else, or where a VAE's file lacks tensors, which
        diffusers fills with random numbers with `low_cpu_mem_usage=False` (it refuses that option unless `transformer` is passed).

        Args:
            pretrained_model_name_or_path: a folder, or an id on the Hub.
            kwargs: of [`DiffusionPipeline.from_pretrained`].

        Raises:
            ValueError: says what the folder holds, and what takes that; or names what is missing or wrong in it.
            OSError: there is no such folder, and the Hub does not have it or could not be asked.
        """
        refuse_what_is_not("VideoGPTPipeline", pretrained_model_name_or_path, **kwargs)
        refuse_incomplete_vae(pretrained_model_name_or_path, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Saves the pipeline, as everywhere in diffusers.

        Args:
            save_directory: folder to write into.

        Raises:
            ValueError: while LoRAs are loaded: what diffusers would write comes back with random weights in their layers.
        """
        refuse_lora_layers(self.transformer)
        # diffusers does not write down a component that was set where there was none.
        parts = {name: getattr(self, name) for name in self._optional_components}
        self.register_modules(**{name: part for name, part in parts.items() if part is not None})
        super().save_pretrained(str(save_directory), **kwargs)

    @property
    def guidance_scale(self) -> float:
        """History guidance of the running or the last call."""
        return self._guider.guidance_scale

    @property
    def _guidance_scale(self) -> float:
        """The same, under the name by which callbacks of diffusers set it for the steps that follow."""
        return self._guider.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, guidance_scale: float) -> None:
        self._guider.guidance_scale = guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the running or the last call has a second prediction without history."""
        return self.guidance_scale != 1.0

    @property
    def condition_guidance_scale(self) -> float:
        """Guidance by class and text of the running or the last call."""
        return self._guider.condition_guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the running or the last call, over all clips."""
        return self._num_timesteps

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """Those of the current call."""
        return self._attention_kwargs

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to end the call after the clip's current step."""
        return self._interrupt

    # Frames and latents

    @property
    def size_multiple(self) -> int:
        """Height and width are divisible by this: a patch in pixels."""
        return self.vae_scale_factor * self.transformer.config.patch_size

    def prepare_frames(
        self,
        video: VideoInput | Sequence[VideoInput],
        height: int | None = None,
        width: int | None = None,
        *,
        fps: float | None = None,
        max_frames: int | None = None,
    ) -> torch.Tensor:
        """Video in any form → the pixels that the VAE takes, (B, F, 3, H, W) in [−1, 1] on the CPU: see
        [`~frame_latents.prepare_frames`]. Without `height` and `width`, the longest side is the pipeline's `longest_side`.

        Args:
            video: a path, PIL images, an array, a tensor, or a list of several.
            height, width: pixels, multiples of `size_multiple`.
            fps: frames of a file that are read per second; default: all.
            max_frames: how many of the last frames are kept; default: all.
        """
        sizes = {"longest_side": self.config.longest_side, "multiple": self.size_multiple}
        return prepare_frames(video, height=height, width=width, fps=fps, max_frames=max_frames, **sizes)

    def encode_frames(
        self, frames: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> torch.Tensor:
        """(B, F, 3, H, W) pixels in [−1, 1] → (B, C, F, h, w) scaled latents: see [`~frame_latents.encode_frames`]."""
        return encode_frames(self.vae, frames, generator=generator, device=execution_device(self))

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor, output_type: str = "pil"):
        """(B, C, F, h, w) latents → frames in the form of `output_type`, as described at [`VideoGPTPipelineOutput`]."""
        if output_type == "latent":
            return latents
        return self.video_processor.postprocess_video(decode_latents(self.vae, latents), output_type=output_type)

    def encode_given(
        self,
        video: VideoInput | None = None,
        image: VideoInput | None = None,
        *,
        video_latents: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: float | None = None,
        max_context_frames: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor | None:
        """What was given, in whichever form, as clean latents (B, C, F, h, w) in fp32: the last frames that the window
        holds. `None` if nothing was given. The arguments are those of [`~VideoGPTPipeline.__call__`]."""
        return encode_given(
            video,
            image,
            video_latents=video_latents,
            vae=self.vae,
            window=window_of(max_context_frames, self.config.max_context_frames),
            longest_side=self.config.longest_side,
            multiple=self.size_multiple,
            height=height,
            width=width,
            fps=fps,
            generator=generator,
            device=execution_device(self),
        )

    # Classes and prompts

    @property
    def labels(self) -> dict[str, int]:
        """Class names → their numbers; empty if the pipeline knows no names."""
        return class_numbers(self.config.id2label)

    @property
    def condition_encoder(self) -> ConditionEncoder:
        """Turns classes and prompts into arguments of the transformer, with the text encoder and tokenizer set now."""
        return make_condition_encoder(
            self.transformer,
            self.text_encoder,
            tokenizer=self.tokenizer,
            id2label=self.config.id2label,
            device=execution_device(self),
        )

    def get_label_ids(self, class_labels: int | str | Sequence[int | str] | torch.Tensor) -> list[int]:
        """`class_labels`, by name or number, one or several → numbers.

        Raises:
            ValueError: if there are none, or for a name or number that the model does not know.
        """
        return self.condition_encoder.get_label_ids(class_labels)

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Prompts → what the transformer sees of them; hand it to any number of calls as `prompt_embeds`.

        The arguments, results and errors are those of [`~conditions.ConditionEncoder.encode_prompt`].
        """
        return self.condition_encoder.encode_prompt(prompt, negative_prompt, **kwargs)

    # A call

    def begin_rollout(self, inputs: CallInputs) -> Rollout:
        """Everything before the first clip, the same for a call and a stream. `inputs` are their arguments."""
        inputs.num_inference_steps = num_steps_of(inputs.num_inference_steps, self.config.num_inference_steps)
        inputs.rolling_cache = self.config.rolling_cache if inputs.rolling_cache is None else inputs.rolling_cache
        timesteps, _ = set_flow_timesteps(self.scheduler, inputs.num_inference_steps)
        attention_kwargs = usable_attention_kwargs(inputs.attention_kwargs)
        guider = guider_for_call(
            self.guider,
            default_guidance_scale=self.config.guidance_scale,
            default_condition_guidance_scale=self.config.condition_guidance_scale,
            guidance_scale=inputs.guidance_scale,
            condition_guidance_scale=inputs.condition_guidance_scale,
            guidance_interval=inputs.guidance_interval,
            action_guidance_scale=inputs.action_guidance_scale,
        )
        rollout = prepare_rollout(
            inputs,
            guider=guider,
            transformer=self.transformer,
            vae=self.vae,
            condition_encoder=self.condition_encoder,
            vae_scale_factor=self.vae_scale_factor,
            longest_side=self.config.longest_side,
            max_context_frames=self.config.max_context_frames,
            device=execution_device(self),
        )
        self._interrupt = False
        self._num_timesteps = len(timesteps) * len(inputs.clip_lengths)
        self._attention_kwargs = attention_kwargs
        self._guider = guider
        return rollout

    def predict_clip(
        self,
        rollout: Rollout,
        num_frames: int,
        *,
        noise: torch.Tensor | None = None,
        actions: torch.Tensor | None = None,
        on_step_end: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The next clip of a `rollout`, (B, C, `num_frames`, h, w): from `noise` if given, else from its generator.

        `actions` led to its frames, (B, F) or (B, F, D) of [`~rollout.Rollout.encode_actions`]; `None` is "no action".
        `on_step_end(timestep, latents)` is called after each step and returns the latents to go on with."""
        latent_size = (rollout.height // self.vae_scale_factor, rollout.width // self.vae_scale_factor)
        generator = rollout.generator
        latents = prepare_noise(
            (rollout.batch_size, self.transformer.config.in_channels, num_frames, *latent_size),
            device=rollout.device,
            generator=generator,
            latents=noise,
        )
        timesteps, alphas = set_flow_timesteps(self.scheduler, rollout.num_inference_steps, device=latents.device)
        return denoise_steps(
            latents,
            rollout.history,
            timesteps=timesteps,
            alphas=alphas,
            transformer=self.transformer,
            scheduler=self.scheduler,
            guider=self._guider,
            is_interrupted=lambda: self._interrupt,
            actions=actions,
            attention_kwargs=self._attention_kwargs,
            generator=generator,
            on_step_end=on_step_end,
        )

    @torch.no_grad()
    def __call__(
        self,
        video: VideoInput | None = None,
        image: VideoInput | None = None,
        *,
        video_latents: torch.Tensor | None = None,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        actions: Actions | None = None,
        history_actions: Actions | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        condition_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        action_guidance_scale: float | None = None,
        frames_per_clip: int | None = None,
        chunk_partition: Sequence[int] | None = None,
        max_context_frames: int | None = None,
        history_retention: float = 1.0,
        use_kv_cache: bool = True,
        rolling_cache: bool | None = None,
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
        callback_on_step_end: StepCallback | None = None,
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
            actions (*optional*): what leads to each frame that is predicted, for a model that was trained on actions: numbers
                of discrete actions, (`num_frames`,) or (B, `num_frames`), or continuous ones, each with D numbers in its
                place; -1, NaN or `None` is "no action". The frames of a clip are predicted together and see each other's
                actions; no earlier clip does.
            history_actions (*optional*): the same of the given frames.
            num_frames (`int`, *optional*): frames to predict; one clip by default. Where no default is named, it is the pipeline's.
            height, width (`int`, *optional*): size in pixels, divisible by 16. By default that of the history, its longest
                side scaled down to the pipeline's `longest_side`; without history, `longest_side` squared.
            num_inference_steps (`int`, *optional*): denoising steps a clip; the pipeline's own by default.
            guidance_scale (`float`, *optional*): history guidance; 1 turns it off and halves the work.
            condition_guidance_scale (`float`, *optional*): the same by class and prompt; see [`~guidance_next_clip`].
            guidance_interval (`tuple[float, float]`, *optional*): the steps with history guidance, as shares of all; the others
                save a pass (Kynkäänniemi et al., arXiv 2404.07724). All steps by default.
            action_guidance_scale (`float`, *optional*): guidance by the actions; off by default, which is 1.
            frames_per_clip (`int`, *optional*): frames predicted in parallel; the pipeline's own by default.
            chunk_partition (`Sequence[int]`, *optional*): frames in each predicted clip, in place of `frames_per_clip`.
            max_context_frames (`int`, *optional*): the most frames of history looked back on; the oldest are dropped.
            history_retention (`float`, defaults to `1.0`): share of signal in predicted frames when they become history.
            use_kv_cache (`bool`, defaults to `True`): compute the history once a clip, not once a step. Same result. Has no
                effect where the prompts of a batch differ in length.
            rolling_cache (`bool`, *optional*): when the window is full, forget its oldest frames instead of computing the window
                anew; as the pipeline was saved by default. Faster for short clips; not the same result, since later frames remember
                the forgotten ones. Behind 1,000 frames it is filled anew all the same, before its positions grow too large.
            fps (`float`, *optional*): frames a second to read a `video` path at; every frame by default.
            num_videos_per_prompt (`int`, defaults to `1`): different videos for each history, label or prompt.
            generator: makes the result reproducible; one, or one a video. Every clip draws fresh noise from it.
            latents (`torch.Tensor` of shape (B, C, `num_frames`, h, w), *optional*): the noise to begin with.
            prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask (*optional*): what
                [`~VideoGPTPipeline.encode_prompt`] makes of prompts, in their place.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, defaults to `True`): whether to return an output object or a tuple.
            attention_kwargs (`dict`, *optional*): `{"scale": s}` multiplies the weights of the active LoRAs, unless they
                are fused; `{"kernel_options": {...}}` are those of FlexAttention, which computes many tokens on CUDA.
            callback_on_step_end: called as `callback(pipe, step, timestep, {"latents": ...})` after every step, steps
                counted over all clips; may return changed latents.
            callback_on_step_end_tensor_inputs: what it is handed: `["latents"]`, those of the clip in work.

        Returns:
            [`VideoGPTPipelineOutput`]: the predicted frames alone.

        Raises:
            ValueError: for arguments that don't fit each other or the model.
            RuntimeError: if another call or a stream of this pipeline has not ended.
            VideoReadError: if `video` is a path that can't be read.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            known = self._callback_tensor_inputs
            raise ValueError(f"`callback_on_step_end_tensor_inputs` may name {known}, got {unknown}.")
        clip_lengths = clip_lengths_of(
            num_frames,
            chunk_partition,
            frames_per_clip=frames_per_clip,
            default_frames_per_clip=self.config.frames_per_clip,
        )
        inputs = CallInputs(
            clip_lengths=clip_lengths, num_frames=sum(clip_lengths), video=video, image=image,
            video_latents=video_latents, class_labels=class_labels, prompt=prompt, negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds, negative_prompt_embeds=negative_prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_attention_mask=negative_prompt_attention_mask, height=height, width=width, fps=fps,
            max_context_frames=max_context_frames, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, condition_guidance_scale=condition_guidance_scale,
            guidance_interval=guidance_interval, history_retention=history_retention, rolling_cache=rolling_cache,
            generator=generator, output_type=output_type, attention_kwargs=attention_kwargs,
            use_kv_cache=use_kv_cache, num_videos_per_prompt=num_videos_per_prompt, latents=latents,
            actions=actions, history_actions=history_actions, action_guidance_scale=action_guidance_scale,
        )  # fmt: skip

        with self.one_call:
            # 1. Check inputs, encode what is given and asked for
            rollout = self.begin_rollout(inputs)

            # 2. Clip after clip: denoise it, then remember it
            clips, step_numbers = [], itertools.count()
            with self.progress_bar(total=self._num_timesteps) as progress_bar:

                def on_step_end(timestep: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
                    if callback_on_step_end is not None:
                        tensors = {"latents": clip} if "latents" in callback_on_step_end_tensor_inputs else {}
                        changed = callback_on_step_end(self, next(step_numbers), timestep, tensors) or {}
                        clip = changed.get("latents", clip)
                    progress_bar.update()
                    return clip

                for clip_length in clip_lengths:
                    first = sum(clip.shape[2] for clip in clips)
                    noise = None if latents is None else latents[:, :, first : first + clip_length]
                    taken = rollout.actions_of(first, clip_length)
                    clip = self.predict_clip(rollout, clip_length, noise=noise, actions=taken, on_step_end=on_step_end)
                    clips.append(clip)
                    if self.interrupt:
                        break
                    if len(clips) < len(clip_lengths):
                        rollout.remember(clip, taken)

            # 3. Decode
            frames = self.decode_latents(torch.cat(clips, dim=2), output_type)
            self.maybe_free_model_hooks()
        return VideoGPTPipelineOutput(frames=frames) if return_dict else (frames,)

    @torch.no_grad()
    def stream(
        self,
        video: VideoInput | None = None,
        image: VideoInput | None = None,
        *,
        video_latents: torch.Tensor | None = None,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        history_actions: Actions | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        condition_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        action_guidance_scale: float | None = None,
        frames_per_clip: int | None = None,
        max_context_frames: int | None = None,
        history_retention: float = 1.0,
        rolling_cache: bool | None = None,
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

        The arguments are those of [`~VideoGPTPipeline.__call__`], and `num_frames=None` goes on without end. It lacks `actions`,
        which are told clip by clip; `chunk_partition`, `latents` and `num_videos_per_prompt`, which are of a known length and
        number; `use_kv_cache`, as the history is always kept so; and `callback_on_step_end`,
        `callback_on_step_end_tensor_inputs` and `return_dict`: each clip is handed out as an object.

        Time and memory of a clip do not grow with the length of the video. See [`VideoGPTStream`] for giving it actions and
        real frames.
        """
        is_endless = num_frames is None
        clip_length = self.config.frames_per_clip if frames_per_clip is None else frames_per_clip
        clip_lengths = clip_lengths_of(
            2 * clip_length if is_endless else num_frames,
            frames_per_clip=frames_per_clip,
            default_frames_per_clip=self.config.frames_per_clip,
        )
        inputs = CallInputs(
            clip_lengths=clip_lengths, num_frames=num_frames, video=video, image=image, video_latents=video_latents,
            class_labels=class_labels, prompt=prompt, negative_prompt=negative_prompt, prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds, prompt_attention_mask=prompt_attention_mask,
            negative_prompt_attention_mask=negative_prompt_attention_mask, height=height, width=width, fps=fps,
            max_context_frames=max_context_frames, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, condition_guidance_scale=condition_guidance_scale,
            guidance_interval=guidance_interval, history_retention=history_retention, rolling_cache=rolling_cache,
            generator=generator, output_type=output_type, attention_kwargs=attention_kwargs,
            history_actions=history_actions, action_guidance_scale=action_guidance_scale,
        )  # fmt: skip
        self.one_call.begin()
        try:
            rollout = self.begin_rollout(inputs)
        except BaseException:
            self.one_call.end()
            raise
        lengths = itertools.repeat(clip_length) if is_endless else iter(clip_lengths)
        return VideoGPTStream(self, rollout, clip_lengths=lengths)


@torch.no_grad()
def denoise_steps(
    latents: torch.Tensor,
    history: History,
    *,
    timesteps: torch.Tensor,
    alphas: torch.Tensor,
    transformer: VideoGPTTransformerModel,
    scheduler: NextClipFlowMatchScheduler | KarrasDiffusionSchedulers,
    guider: BaseGuidance,
    is_interrupted: Callable[[], bool],
    actions: torch.Tensor | None = None,
    attention_kwargs: dict[str, Any] | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step_end: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Noise → the clean latents of one clip, step by step.

    Args:
        latents: noise (B, C, F, h, w).
        history: what came before; its caches are brought up to date.
        timesteps, alphas: (T,), of [`~scheduling_next_clip_flow_match.set_flow_timesteps`], which has set up `scheduler`.
        transformer, scheduler, guider: of the pipeline, the last as set up for the call.
        is_interrupted: asked before each step; `True` ends the clip there.
        actions: of the clip, as in [`predict_clean`].
        attention_kwargs: of the transformer.
        generator: of the noise that some schedulers add in a step.
        on_step_end: called as `on_step_end(timestep, latents)` after each step; returns the latents to go on with.

    Raises:
        ValueError: if the clip comes out with NaN or infinite values.
    """
    if transformer.is_cache_enabled:  # diffusers' block caches compare steps of one clip, not of two
        reset_block_caches(transformer)
    step_kwargs = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for step, (timestep, alpha) in enumerate(zip(timesteps, alphas, strict=True)):
        if is_interrupted():
            break
        guider.set_state(step=step, num_inference_steps=len(timesteps), timestep=timestep)
        denoised = predict_clean(
            latents,
            alpha,
            history=history,
            transformer=transformer,
            guider=guider,
            actions=actions,
            attention_kwargs=attention_kwargs,
        )
        model_output = denoised_to_model_output(scheduler, denoised, sample=latents, alpha=alpha)
        latents = scheduler.step(model_output, timestep, latents, **step_kwargs, return_dict=False)[0]
        if on_step_end is not None:
            latents = on_step_end(timestep, latents)
    if not torch.isfinite(latents).all():
        raise ValueError(
            "The predicted clip has NaN or infinite values. In float16, load the transformer in bfloat16 or float32; "
            "else look for them in its weights and in the history."
        )
    return latents


def predict_clean(
    latents: torch.Tensor,
    alpha: torch.Tensor,
    *,
    history: History,
    transformer: VideoGPTTransformerModel,
    guider: BaseGuidance,
    actions: torch.Tensor | None = None,
    attention_kwargs: dict[str, Any] | None = None,
) -> torch.Tensor:
    """One guided prediction of the clean clip from the noisy one.

    `guider` chooses among four predictions, and combines what it chose: conditioned (after the history, with what is asked
    for), without history (the clip alone, never padded to the history's length), led away from (after the history,
    with the negative conditions), and without action (after the history and its actions). [`~guidance_next_clip.NextClipGuidance`] has the formula.

    Args:
        latents: noisy clip (B, C, F, h, w).
        alpha: its share of signal, a scalar in [0, 1).
        history: frames before it, and conditions; its caches are brought up to date. Without frames, the clip is predicted alone.
        transformer, guider: as in [`denoise_steps`]; the guider's state is set to the step.
        actions: that lead to the frames of the clip, (B, F) or (B, F, D) of [`~actions.ActionSpace.encode`].
        attention_kwargs: of the transformer.

    Returns:
        (B, C, F, h, w) in fp32.
    """
    has_history, dtype = history.num_frames > 0, transformer.dtype
    past = history.latents.to(dtype) if has_history else None
    cache, negative_cache = (history.kv_cache, history.negative_kv_cache) if has_history else (None, None)
    inputs = {
        "conditions": (
            history.conditions,
            history.conditions if has_history else None,
            history.negative_conditions,
            None if actions is None else history.conditions,
        ),
        "past": (past, None, past, past),
        "kv_cache": (cache, None, negative_cache, cache),
        "actions": (actions, actions, actions, None),
    }

    def predict(name: str, latents: torch.Tensor, **model_inputs) -> torch.Tensor:
        model_inputs |= {"attention_kwargs": attention_kwargs, "return_dict": False}
        with transformer.cache_context(name):
            return transformer(latents.to(dtype), alpha, **model_inputs)[0].float()

    passes = guider.prepare_inputs(inputs)
    # A guider of diffusers may ask for the pass with negative conditions in a call that has none: then one pass is all.
    if any(one.conditions is None for one in passes):
        passes = passes[:1]
    names = [guidance_pass_name(one) for one in passes]
    # Some guiders change the model between the passes (skip a layer, for example): then they can't share one batch.
    changes_model = type(guider).prepare_models is not BaseGuidance.prepare_models
    is_one_pass = names == ["pred_cond"] and not changes_model
    new_frames = encode_history(history, transformer, attention_kwargs=attention_kwargs, may_join=is_one_pass)
    if names == ["pred_cond", "pred_uncond"] and cache is not None and not history.conditions and not changes_model:
        # Both passes in one batch, so that the weights are read once. Its second half has no history.
        both_actions = None if actions is None else torch.cat([actions, actions])
        both = predict("both", torch.cat([latents, latents]), kv_cache=cache, actions=both_actions)
        passes[0].noise_pred, passes[1].noise_pred = both.chunk(2)
    else:
        for name, one in zip(names, passes, strict=True):
            if one.kv_cache is not None:  # it holds the history and the conditions
                model_inputs = {"kv_cache": one.kv_cache, **new_frames}
            else:
                model_inputs = dict(one.conditions)
                if one.past is not None:
                    model_inputs |= {"clean_hidden_states": one.past, "clean_actions": history.actions}
            guider.prepare_models(transformer)
            one.noise_pred = predict(name, latents, actions=one.actions, **model_inputs)
            guider.cleanup_models(transformer)
    if len(passes) != guider.num_conditions:
        return passes[0].noise_pred
    return guider(passes)[0]
