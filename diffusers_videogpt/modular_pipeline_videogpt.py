"""The pipeline as blocks of modular diffusers, to be taken out, put in another order, or joined by one's own.

    blocks = VideoGPTBlocks()
    pipe = blocks.init_pipeline(BUNDLED_MODEL)
    pipe.load_components()
    videos = pipe(video="given.mp4", num_frames=16, generator=generator, output="videos")

A block is one step of [`VideoGPTPipeline`]'s call, made of the same methods: the same seed gives the same video. What a block
takes is an argument of the call, or what an earlier block made; take that one out, and it becomes an argument.

A block of one's own goes in between. This one stands in the loop, where it makes the next clip look back on few frames:

    from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks
    from diffusers_videogpt import BUNDLED_MODEL, SAMPLE_VIDEO, VideoGPTBlocks


    class ShortMemory(ModularPipelineBlocks):
        inputs = [InputParam("history", required=True), InputParam("memory", default=4)]

        def __call__(self, components, block_state, k):
            block_state.history.replace(block_state.history.latents[:, :, -block_state.memory :])
            return components, block_state


    blocks = VideoGPTBlocks()  # conditions, encode_history, set_clips, prepare_history, rollout, decode
    blocks.sub_blocks["rollout"].sub_blocks.insert("short_memory", ShortMemory(), 4)
    pipe = blocks.init_pipeline(BUNDLED_MODEL)
    pipe.load_components()
    videos = pipe(video=SAMPLE_VIDEO, num_frames=16, memory=6, output="videos")

`ModularPipeline.from_pretrained(folder)` gives all blocks as they are; an edited order is not saved
(`blocks.init_pipeline(folder)` loads its parts). `pipe.doc` lists every argument.

Shapes: B videos, C latent channels, F frames, h × w latent size.
"""

import inspect
import os

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import FrozenDict
from diffusers.guiders import BaseGuidance
from diffusers.modular_pipelines import (
    BlockState,
    ComponentSpec,
    ConfigSpec,
    InputParam,
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.video_processor import VideoProcessor
from transformers import AutoTokenizer, CLIPTextModel

from .attention_videogpt import usable_attention_kwargs
from .conditions import Conditions, class_numbers
from .diffusers_internals import execution_device
from .frame_latents import check_channels, check_size, decode_latents, encode_given, get_vae_scale_factor
from .guidance_next_clip import NextClipGuidance, check_interval, check_scale, guider_for_call
from .history import History
from .lora_videogpt import VideoGPTLoraLoaderMixin, refuse_lora_layers
from .pipeline_inputs import (
    batch_size_of,
    check_given,
    check_output_type,
    check_rollout,
    clip_lengths_of,
    frame_size_of,
    largest_count,
    num_steps_of,
    window_of,
)
from .pipeline_videogpt import VideoGPTPipeline, denoise_steps
from .rollout import (
    OneCallAtATime,
    encode_asked,
    encode_call_actions,
    encode_history_actions,
    make_condition_encoder,
    prepare_history,
    prepare_noise,
    remember,
    repeat_actions,
)
from .scheduling_next_clip_flow_match import NextClipFlowMatchScheduler, check_num_inference_steps, set_flow_timesteps
from .transformer_videogpt import VideoGPTTransformerModel


MODEL_NAME = "videogpt"

# Types and defaults are those of the pipeline's call and of its config.
CALL = inspect.signature(VideoGPTPipeline.__call__).parameters
CONFIG = inspect.signature(VideoGPTPipeline.__init__).parameters
COMPONENTS = {
    "text_encoder": CLIPTextModel,
    "tokenizer": AutoTokenizer,
    "vae": AutoencoderKL,
    "transformer": VideoGPTTransformerModel,
    "scheduler": NextClipFlowMatchScheduler,
    "guider": NextClipGuidance,
}

ARGUMENTS = {
    "video": "The history: a path, PIL images, an array, a tensor, or a list of several videos.",
    "image": "A history of one frame.",
    "video_latents": "The history as latents (B, C, F, h, w).",
    "class_labels": "Names or numbers of classes.",
    "prompt": "What the video shows.",
    "negative_prompt": "What guidance leads away from.",
    "prompt_embeds": "Encoded prompts (B, L, E) in place of `prompt`.",
    "negative_prompt_embeds": "Encoded prompts (B, L, E) in place of `negative_prompt`.",
    "prompt_attention_mask": "Real tokens of `prompt_embeds` (B, L).",
    "negative_prompt_attention_mask": "Real tokens of `negative_prompt_embeds` (B, L).",
    "actions": "What leads to each predicted frame, for a model that was trained on actions.",
    "history_actions": "What led to each given frame.",
    "num_frames": "Frames to predict; one clip by default.",
    "frames_per_clip": "Frames predicted in parallel.",
    "chunk_partition": "Frames in each clip, in place of `frames_per_clip`.",
    "height": "Height in pixels.",
    "width": "Width in pixels.",
    "fps": "Frames a second to read a video file at.",
    "max_context_frames": "The most frames of history looked back on.",
    "use_kv_cache": "Compute the history once a clip, not once a step.",
    "rolling_cache": "Forget the oldest frames instead of computing a full window anew; as the model was saved by default.",
    "num_videos_per_prompt": "Different videos for each history, label or prompt.",
    "latents": "The noise of all predicted frames (B, C, F, h, w).",
    "generator": "Makes the result reproducible; one, or one a video.",
    "num_inference_steps": "Denoising steps a clip; the model's own by default.",
    "guidance_scale": "History guidance; 1 turns it off.",
    "condition_guidance_scale": "Guidance by class and prompt; 1 turns it off.",
    "action_guidance_scale": "Guidance by actions; 1, the default, is none.",
    "guidance_interval": "The steps with history guidance, as shares of all.",
    "attention_kwargs": '`{"scale": s}` multiplies the weights of the active LoRAs; `{"kernel_options": {...}}` are FlexAttention\'s.',
    "history_retention": "Share of signal in predicted frames when they become history.",
    "output_type": "pil, np, pt or latent.",
}
# What blocks hand on to each other. Names differ from the arguments: a state can be run again with other arguments.
MADE = {
    "conditions": (Conditions, "What is asked for, for the transformer."),
    "negative_conditions": (Conditions, "What guidance leads away from."),
    "history_latents": (torch.Tensor, "The clean frames that were given (B, C, F, h, w); none if nothing was."),
    "clip_lengths": (list[int], "Frames in each clip."),
    "frame_actions": (torch.Tensor, "What leads to the predicted frames (B, F) or (B, F, D), for the transformer."),
    "clip_actions": (torch.Tensor, "What leads to the frames of the clip in work, for the transformer."),
    "history": (History, "The frames that the next clip is predicted from, and their caches."),
    "batch_size": (int, "B."),
    "frame_size": (tuple[int, int], "Height and width of a frame in pixels."),
    "clip": (torch.Tensor, "The clip in work (B, C, F, h, w): noise, then its clean latents."),
    "timesteps": (torch.Tensor, "The clip's steps (T,), as the scheduler takes them."),
    "alphas": (torch.Tensor, "The clip's steps (T,), as the transformer takes them."),
    "predicted_latents": (torch.Tensor, "All predicted frames (B, C, F, h, w)."),
    "videos": (list, "The predicted frames, as `output_type` says."),
}


def _arguments(*names: str) -> list[InputParam]:
    return [InputParam(n, CALL[n].annotation, default=CALL[n].default, description=ARGUMENTS[n]) for n in names]


def _made_before(*names: str, required: bool = True) -> list[InputParam]:
    return [InputParam(n, MADE[n][0], required=required, description=MADE[n][1]) for n in names]


def _made(*names: str) -> list[OutputParam]:
    return [OutputParam(name, *MADE[name]) for name in names]


class VideoGPTStep(ModularPipelineBlocks):
    """A block that is described by its docstring, and names what it uses of the pipeline's components and config."""

    model_name = MODEL_NAME
    uses_components: tuple[str, ...] = ()
    uses_configs: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        return inspect.getdoc(self)

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec(name, COMPONENTS[name]) for name in self.uses_components]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return [ConfigSpec(name, CONFIG[name].default) for name in self.uses_configs]


class VideoGPTConditionsStep(VideoGPTStep):
    """Classes and prompts → what the transformer sees of them."""

    uses_components = ("text_encoder", "tokenizer", "transformer", "guider")
    uses_configs = ("guidance_scale", "condition_guidance_scale", "id2label")

    @property
    def inputs(self) -> list[InputParam]:
        embeds = ("prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")
        return _arguments("class_labels", "prompt", "negative_prompt", *embeds, "condition_guidance_scale")

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return _made("conditions", "negative_conditions")

    def __call__(self, components: "VideoGPTModularPipeline", state: PipelineState):
        block_state = self.get_block_state(state)
        condition_encoder = make_condition_encoder(
            components.transformer,
            components.text_encoder,
            tokenizer=components.tokenizer,
            id2label=components.config.id2label,
            device=execution_device(components),
        )
        block_state.conditions, block_state.negative_conditions = encode_asked(
            block_state,
            guider=components.guider_for_call(condition_guidance_scale=block_state.condition_guidance_scale),
            condition_encoder=condition_encoder,
        )
        self.set_block_state(state, block_state)
        return components, state


class VideoGPTEncodeHistoryStep(VideoGPTStep):
    """A video, a picture or latents, whichever was given → the latents of the last frames that the window holds."""

    uses_components = ("vae",)
    uses_configs = ("longest_side", "max_context_frames")

    @property
    def inputs(self) -> list[InputParam]:
        given = ("video", "image", "video_latents")
        return _arguments(*given, "height", "width", "fps", "max_context_frames", "generator")

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return _made("history_latents")

    def __call__(self, components: "VideoGPTModularPipeline", state: PipelineState):
        block_state = self.get_block_state(state)
        check_given(block_state.video, block_state.image, video_latents=block_state.video_latents, vae=components.vae)
        check_channels(components.vae, getattr(components, "transformer", None))
        block_state.history_latents = encode_given(
            block_state.video,
            block_state.image,
            video_latents=block_state.video_latents,
            vae=components.vae,
            window=window_of(block_state.max_context_frames, components.config.max_context_frames),
            longest_side=components.config.longest_side,
            multiple=components.size_multiple,
            height=block_state.height,
            width=block_state.width,
            fps=block_state.fps,
            generator=block_state.generator,
            device=execution_device(components),
        )
        self.set_block_state(state, block_state)
        return components, state


class VideoGPTSetClipsStep(VideoGPTStep):
    """How many frames each clip has."""

    uses_configs = ("frames_per_clip",)

    @property
    def inputs(self) -> list[InputParam]:
        return _arguments("num_frames", "frames_per_clip", "chunk_partition")

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return _made("clip_lengths")

    def __call__(self, components: "VideoGPTModularPipeline", state: PipelineState):
        block_state = self.get_block_state(state)
        block_state.clip_lengths = clip_lengths_of(
            block_state.num_frames,
            block_state.chunk_partition,
            frames_per_clip=block_state.frames_per_clip,
            default_frames_per_clip=components.config.frames_per_clip,
        )
        self.set_block_state(state, block_state)
        return components, state


class VideoGPTPrepareHistoryStep(VideoGPTStep):
    """Checks what belongs together, and makes the [`History`] before the first clip."""

    uses_components = ("transformer",)
    uses_configs = ("longest_side", "max_context_frames", "rolling_cache")

    @property
    def inputs(self) -> list[InputParam]:
        cache = ("max_context_frames", "use_kv_cache", "rolling_cache")
        checked = ("guidance_scale", "history_retention")
        return (
            _made_before("clip_lengths")
            + _made_before("history_latents", "conditions", "negative_conditions", required=False)
            + _arguments("height", "width", *cache, "num_videos_per_prompt", "latents", "generator", *checked)
            + _arguments("actions", "history_actions")
        )

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return _made("history", "batch_size", "frame_size", "frame_actions")

    def __call__(self, components: "VideoGPTModularPipeline", state: PipelineState):
        block_state = self.get_block_state(state)
        is_rolling = block_state.rolling_cache
        sizes = {"vae_scale_factor": components.vae_scale_factor, "multiple": components.size_multiple}
        check_size(block_state.height, block_state.width, multiple=components.size_multiple)
        check_channels(getattr(components, "vae", None), components.transformer)
        check_rollout(
            block_state.clip_lengths,
            video_latents=block_state.history_latents,
            latents=block_state.latents,
            has_history=block_state.history_latents is not None,
            channels=components.transformer.config.in_channels,
            guidance_scale=block_state.guidance_scale,
            history_retention=block_state.history_retention,
        )
        # As they may come from the caller: on the right device, no more than the window.
        window = window_of(block_state.max_context_frames, components.config.max_context_frames)
        given = encode_given(
            video_latents=block_state.history_latents,
            vae=None,
            window=window,
            longest_side=components.config.longest_side,
            multiple=components.size_multiple,
            device=execution_device(components),
        )
        sizes["longest_side"] = components.config.longest_side
        sized = given if block_state.latents is None else block_state.latents
        height, width = frame_size_of(sized, height=block_state.height, width=block_state.width, **sizes)
        frame_size_of(given, height=height, width=width, **sizes)  # noise and history are of one size
        block_state.frame_size = (height, width)
        num_frames, transformer = sum(block_state.clip_lengths), components.transformer
        actions = encode_call_actions(block_state, transformer=transformer, num_frames=num_frames)
        num_conditions = max((len(value) for value in (block_state.conditions or {}).values()), default=0)
        num_asked = largest_count(num_conditions, actions)
        block_state.batch_size = batch_size_of(
            0 if given is None else len(given),
            num_asked,
            num_videos_per_prompt=block_state.num_videos_per_prompt,
            latents=block_state.latents,
            generator=block_state.generator,
        )
        block_state.history = prepare_history(
            given,
            transformer=transformer,
            window=window,
            batch_size=block_state.batch_size,
            frame_size=block_state.frame_size,
            vae_scale_factor=components.vae_scale_factor,
            num_frames=num_frames,
            longest_clip=max(block_state.clip_lengths),
            conditions=block_state.conditions,
            negative_conditions=block_state.negative_conditions,
            use_kv_cache=block_state.use_kv_cache,
            rolling_cache=components.config.rolling_cache if is_rolling is None else is_rolling,
            history_actions=encode_history_actions(
                block_state.history_actions, given, transformer=transformer, window=window
            ),
        )
        actions = None if actions is None else actions.to(execution_device(components))
        block_state.frame_actions = repeat_actions(actions, block_state.batch_size)
        self.set_block_state(state, block_state)
        return components, state


class VideoGPTPrepareClipStep(VideoGPTStep):
    """In the loop: the noise that clip `k` begins with, fresh or from `latents`, and the actions that lead to its frames."""

    uses_components = ("transformer",)

    @property
    def inputs(self) -> list[InputParam]:
        made = _made_before("clip_lengths", "batch_size", "frame_size") + _made_before("frame_actions", required=False)
        return made + _arguments("generator", "latents")

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return _made("clip", "clip_actions")

    def __call__(self, components: "VideoGPTModularPipeline", block_state: BlockState, k: int):
        first, length = sum(block_state.clip_lengths[:k]), block_state.clip_lengths[k]
        noise = None if block_state.latents is None else block_state.latents[:, :, first : first + length]
        actions = block_state.frame_actions
        block_state.clip_actions = None if actions is None else actions[:, first : first + length]
        latent_size = [size // components.vae_scale_factor for size in block_state.frame_size]
        block_state.clip = prepare_noise(
            (block_state.batch_size, components.transformer.config.in_channels, length, *latent_size),
            device=execution_device(components),
            generator=block_state.generator,
            latents=noise,
        )
        return components, block_state


class VideoGPTSetTimestepsStep(VideoGPTStep):
    """In the loop: a new round of the scheduler, which forgets the last clip."""

    uses_components = ("scheduler",)
    uses_configs = ("num_inference_steps",)

    @property
    def inputs(self) -> list[InputParam]:
        return _arguments("num_inference_steps")

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return _made("timesteps", "alphas")

    def __call__(self, components: "VideoGPTModularPipeline", block_state: BlockState, k: int):
        num_steps = num_steps_of(block_state.num_inference_steps, components.config.num_inference_steps)
        block_state.timesteps, block_state.alphas = set_flow_timesteps(
            components.scheduler, num_steps, device=execution_device(components)
        )
        return components, block_state


class VideoGPTDenoiseClipStep(VideoGPTStep):
    """In the loop: noise → the clean latents of a clip, with guidance by history, class and text."""

    uses_components = ("transformer", "scheduler", "guider")
    uses_configs = ("guidance_scale", "condition_guidance_scale")

    @property
    def inputs(self) -> list[InputParam]:
        guidance = ("guidance_scale", "condition_guidance_scale", "guidance_interval", "action_guidance_scale")
        made = _made_before("clip", "history", "timesteps", "alphas") + _made_before("clip_actions", required=False)
        return made + _arguments(*guidance, "attention_kwargs", "generator")

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return _made("clip")

    def __call__(self, components: "VideoGPTModularPipeline", block_state: BlockState, k: int):
        def on_step_end(timestep: torch.Tensor, clip: torch.Tensor) -> torch.Tensor:
            block_state.progress_bar.update()
            return clip

        guider = components.guider_for_call(
            guidance_scale=block_state.guidance_scale,
            condition_guidance_scale=block_state.condition_guidance_scale,
            guidance_interval=block_state.guidance_interval,
            action_guidance_scale=block_state.action_guidance_scale,
        )
        block_state.clip = denoise_steps(
            block_state.clip,
            block_state.history,
            guider=guider,
            timesteps=block_state.timesteps,
            alphas=block_state.alphas,
            transformer=components.transformer,
            scheduler=components.scheduler,
            is_interrupted=lambda: components.interrupt,
            actions=block_state.clip_actions,
            attention_kwargs=usable_attention_kwargs(block_state.attention_kwargs),
            generator=block_state.generator,
            on_step_end=on_step_end,
        )
        return components, block_state


class VideoGPTAppendHistoryStep(VideoGPTStep):
    """In the loop: the clip becomes history, if another one follows."""

    @property
    def inputs(self) -> list[InputParam]:
        made = _made_before("clip", "history", "clip_lengths") + _made_before("clip_actions", required=False)
        return made + _arguments("history_retention", "generator")

    def __call__(self, components: "VideoGPTModularPipeline", block_state: BlockState, k: int):
        if k + 1 < len(block_state.clip_lengths):
            remember(
                block_state.history,
                block_state.clip,
                actions=block_state.clip_actions,
                retention=block_state.history_retention,
                generator=block_state.generator,
            )
        return components, block_state


class VideoGPTRolloutStep(LoopSequentialPipelineBlocks):
    """Clip after clip. Its blocks are called as `block(components, block_state, k)` for clip `k`.

    A block of one's own may change `block_state.history` (by [`History.replace`] and [`History.append`]), `block_state.clip`,
    or an argument, such as `block_state.guidance_scale`, for this clip and those after it.
    """

    model_name = MODEL_NAME
    description = "Predicts clip after clip."
    block_classes = [
        VideoGPTPrepareClipStep,
        VideoGPTSetTimestepsStep,
        VideoGPTDenoiseClipStep,
        VideoGPTAppendHistoryStep,
    ]
    block_names = ["prepare_clip", "set_timesteps", "denoise_clip", "append_history"]

    @property
    def loop_inputs(self) -> list[InputParam]:
        return _made_before("clip_lengths") + _arguments("num_inference_steps")

    @property
    def loop_intermediate_outputs(self) -> list[OutputParam]:
        return _made("predicted_latents")

    def __call__(self, components: "VideoGPTModularPipeline", state: PipelineState):
        block_state = self.get_block_state(state)
        num_clips, clips = len(block_state.clip_lengths), []
        num_steps = num_steps_of(block_state.num_inference_steps, components.config.num_inference_steps)
        timesteps, _ = set_flow_timesteps(components.scheduler, num_steps)
        components._num_timesteps = len(timesteps) * num_clips
        components._interrupt = False
        with self.progress_bar(total=components.num_timesteps) as block_state.progress_bar:
            for k in range(num_clips):
                components, block_state = self.loop_step(components, block_state, k=k)
                clips.append(block_state.clip)
                if components.interrupt:
                    break
        block_state.predicted_latents = torch.cat(clips, dim=2)
        self.set_block_state(state, block_state)
        # The state goes to the caller; the caches can be larger than the model.
        state.set("history", None)
        return components, state


class VideoGPTDecodeStep(VideoGPTStep):
    """Latents → frames."""

    uses_components = ("vae",)

    @property
    def expected_components(self) -> list[ComponentSpec]:
        config = FrozenDict({"vae_scale_factor": get_vae_scale_factor(None)})
        processor = ComponentSpec(
            "video_processor", VideoProcessor, config=config, default_creation_method="from_config"
        )
        return [*super().expected_components, processor]

    @property
    def inputs(self) -> list[InputParam]:
        return _made_before("predicted_latents") + _arguments("output_type")

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return _made("videos")

    def __call__(self, components: "VideoGPTModularPipeline", state: PipelineState):
        block_state = self.get_block_state(state)
        check_output_type(block_state.output_type, components.vae)
        latents = block_state.predicted_latents.to(execution_device(components))
        block_state.videos = latents
        if block_state.output_type != "latent":
            block_state.videos = components.video_processor.postprocess_video(
                decode_latents(components.vae, latents), output_type=block_state.output_type
            )
        self.set_block_state(state, block_state)
        return components, state


class VideoGPTBlocks(SequentialPipelineBlocks):
    """All of it: conditions and history are encoded, clip after clip is predicted, the frames are decoded."""

    model_name = MODEL_NAME
    description = "Continues a video, animates a picture, or makes a video from nothing, clip after clip."
    block_classes = [
        VideoGPTConditionsStep,
        VideoGPTEncodeHistoryStep,
        VideoGPTSetClipsStep,
        VideoGPTPrepareHistoryStep,
        VideoGPTRolloutStep,
        VideoGPTDecodeStep,
    ]
    block_names = ["conditions", "encode_history", "set_clips", "prepare_history", "rollout", "decode"]


class VideoGPTModularPipeline(ModularPipeline, VideoGPTLoraLoaderMixin):
    """Runs [`VideoGPTBlocks`], or blocks made of them, with the arguments of [`VideoGPTPipeline`] and its LoRA methods.

    Loads from its own folders and from those of the standard pipeline. A pipeline of some of the blocks has only the
    components that these need.

    Args:
        blocks: what it runs; default: [`VideoGPTBlocks`].
        pretrained_model_name_or_path: folder or Hub id whose components `load_components` loads.
        kwargs: as of diffusers' `ModularPipeline`.
    """

    default_blocks_name = "VideoGPTBlocks"

    def __init__(
        self,
        blocks: ModularPipelineBlocks | None = None,
        pretrained_model_name_or_path: str | os.PathLike | None = None,
        **kwargs,
    ):
        folder = pretrained_model_name_or_path
        super().__init__(blocks, None if folder is None else os.fspath(folder), **kwargs)
        for name, spec in self._component_specs.items():
            if spec.type_hint is None:  # the folder says that it has none: nothing to load
                spec.pretrained_model_name_or_path = None
                self.register_to_config(**{name: (None, None, self._component_spec_to_dict(spec))})
        # Of the running or the last call
        self.one_call = OneCallAtATime()
        self._interrupt = False
        self._num_timesteps = 0

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Saves the pipeline, as everywhere in diffusers.

        Args:
            save_directory: folder to write into.

        Raises:
            ValueError: while LoRAs are loaded: what diffusers would write comes back with random weights in their layers.
        """
        refuse_lora_layers(self.components.get("transformer"))
        super().save_pretrained(os.fspath(save_directory), **kwargs)

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the running or the last call, over all clips."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` to end the call after the clip's current step."""
        return self._interrupt

    @property
    def labels(self) -> dict[str, int]:
        """Class names → their numbers; empty if the pipeline knows no names."""
        return class_numbers(self.config.id2label)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels along one side of a latent; 8 while no VAE is loaded."""
        return get_vae_scale_factor(self.components.get("vae"))

    @property
    def size_multiple(self) -> int:
        """Height and width are divisible by this; 2 latents a patch, as in all published models, without a transformer."""
        transformer = self.components.get("transformer")
        return self.vae_scale_factor * (2 if transformer is None else transformer.config.patch_size)

    def guider_for_call(
        self,
        *,
        guidance_scale: float | None = None,
        condition_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        action_guidance_scale: float | None = None,
    ) -> BaseGuidance:
        """A copy of the component `guider`, or the default, with these changes: see [`~guidance_next_clip.guider_for_call`]."""
        return guider_for_call(
            self.components.get("guider"),
            default_guidance_scale=self.config.guidance_scale,
            default_condition_guidance_scale=self.config.condition_guidance_scale,
            guidance_scale=guidance_scale,
            condition_guidance_scale=condition_guidance_scale,
            guidance_interval=guidance_interval,
            action_guidance_scale=action_guidance_scale,
        )

    def __call__(self, state: PipelineState | None = None, output: str | list[str] | None = None, **kwargs):
        """Runs the blocks.

        Args:
            state: of an earlier call, whose values are taken where `kwargs` have none; it is not changed.
            output: what to return of the state, for example `"videos"` or `["videos", "predicted_latents"]`; all by default.
            kwargs: the arguments of the blocks: `pipe.blocks.inputs`, described in `pipe.doc`.

        Raises:
            ValueError: as the standard pipeline; or if the model is not loaded.
            RuntimeError: if another call of this pipeline has not ended.
        """
        missing = [name for name in ("transformer", "scheduler") if name in self.null_component_names]
        if missing:
            raise ValueError(
                f"This pipeline has no {' and no '.join(missing)} yet: call `load_components()`, or `update_components`."
            )
        asked = {name: CALL[name].default for name in self._blocks.input_names if name in CALL}
        asked |= {} if state is None else {name: x for name, x in state.values.items() if name in asked}
        asked |= {name: x for name, x in kwargs.items() if name in asked}
        # Blocks look at these when much or all is computed.
        if "output_type" in asked:
            check_output_type(asked["output_type"], self.components.get("vae"))
        for name in ("guidance_scale", "condition_guidance_scale", "action_guidance_scale"):
            if asked.get(name) is not None:
                check_scale(name, asked[name])
        if asked.get("guidance_interval") is not None:
            check_interval(asked["guidance_interval"])
        if asked.get("attention_kwargs") is not None:
            kwargs["attention_kwargs"] = usable_attention_kwargs(asked["attention_kwargs"])
        if asked.get("num_inference_steps") is not None:
            check_num_inference_steps(asked["num_inference_steps"])
        with self.one_call:
            return super().__call__(state, output, **kwargs)
