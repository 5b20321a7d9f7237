"""What is settled before the first clip of a call or a stream, and that only one of them is at work.

Shapes: B videos, C latent channels, F frames, h × w latent size.
"""

import threading
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.guiders import BaseGuidance
from diffusers.modular_pipelines import BlockState
from diffusers.utils.torch_utils import is_compiled_module, randn_tensor

from .actions import Actions, ActionSpace, space_for
from .clips import TOKENS_AROUND_PATCHES
from .conditions import (
    ConditionEncoder,
    Conditions,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    class_numbers,
    condition_lengths,
    text_width,
)
from .frame_latents import check_channels, check_size, count_videos, encode_given
from .guidance_next_clip import condition_scale
from .history import History
from .kv_cache import VideoGPTKVCache
from .pipeline_inputs import (
    CallInputs,
    batch_size_of,
    check_given,
    check_output_type,
    check_rollout,
    count_asked,
    frame_size_of,
    window_of,
)
from .scheduling_next_clip_flow_match import mix_noise
from .transformer_videogpt import VideoGPTTransformerModel


@dataclass
class Rollout:
    """All that a call or a stream has settled before its first clip.

    Attributes:
        history: the given frames and the conditions; predicted clips are appended to it.
        batch_size: B.
        height, width: of a frame in pixels.
        num_inference_steps: denoising steps a clip.
        history_retention: share of signal, in [0, 1], that predicted frames keep in the history.
        generator: of all noise, one or one a video.
        output_type: "pil", "np", "pt" or "latent".
        actions: of all frames that a call predicts, (B, F) or (B, F, D) of [`~actions.ActionSpace.encode`]; `None` for "no
            action", and in a stream, which is told them clip by clip.
        action_space: which actions the model takes; `None` if it takes none.
        device: where actions go.
    """

    history: History
    batch_size: int
    height: int
    width: int
    num_inference_steps: int
    history_retention: float
    generator: torch.Generator | list[torch.Generator] | None
    output_type: str
    actions: torch.Tensor | None = None
    action_space: ActionSpace | None = None
    device: torch.device | None = None

    def remember(self, clip: torch.Tensor, actions: torch.Tensor | None = None) -> None:
        """Makes a predicted clip (B, C, F, h, w) part of the history: see the function [`remember`]."""
        how = {"retention": self.history_retention, "generator": self.generator}
        remember(self.history, clip, actions=actions, **how)

    def actions_of(self, first: int, num_frames: int) -> torch.Tensor | None:
        """The actions of the predicted frames from `first` on; `None` for "no action"."""
        return None if self.actions is None else self.actions[:, first : first + num_frames]

    def encode_actions(self, actions: Actions, num_frames: int | None, *, is_held: bool) -> torch.Tensor:
        """What a user gives for `num_frames` frames of the B videos → (B, F) or (B, F, D): see
        [`~actions.ActionSpace.encode_frames`].

        Raises:
            ValueError: if they are none of this model's, or of another number of videos.
        """
        if self.action_space is None:
            raise ValueError("This model was not trained on actions: it cannot be steered.")
        encoded = self.action_space.encode_frames(actions, num_frames, is_held=is_held, device=self.device)
        return repeat_actions(encoded, self.batch_size)


def remember(
    history: History,
    clip: torch.Tensor,
    *,
    actions: torch.Tensor | None = None,
    retention: float = 1.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> None:
    """Makes a predicted clip (B, C, F, h, w), and the actions that led to its frames, part of the history, as latents:
    nothing is decoded and encoded again.

    With `retention` ρ below 1 it enters as ρ φ + (1 − ρ) ε, the noise that clean clips have in training.
    """
    if retention < 1:
        noise = randn_tensor(clip.shape, generator=generator, device=clip.device, dtype=clip.dtype)
        clip = mix_noise(clip, retention, noise=noise)
    history.append(clip, actions)


def repeat_actions(actions: torch.Tensor | None, batch_size: int) -> torch.Tensor | None:
    """(b, F) or (b, F, D) → as many for each of b videos as make up B.

    Raises:
        ValueError: if B is no multiple of b.
    """
    if actions is None:
        return None
    if batch_size % len(actions):
        raise ValueError(
            f"Actions of {len(actions)} videos were given, {batch_size} are predicted: give one, or as many."
        )
    return actions.repeat_interleave(batch_size // len(actions), dim=0)


def encode_call_actions(
    asked: CallInputs | BlockState, *, transformer: VideoGPTTransformerModel, num_frames: int | None
) -> torch.Tensor | None:
    """The actions that a call gives for the frames it predicts, (b, F) or (b, F, D); `None` if it gives none.

    Args:
        asked: has the call's `actions`.
        transformer: which takes them.
        num_frames: F.

    Raises:
        ValueError: if they are none of this model's, or not one a frame.
    """
    space = space_for(asked.actions, transformer.config)
    return None if asked.actions is None else space.encode_frames(asked.actions, num_frames)


def encode_history_actions(
    history_actions: Actions | None, given: torch.Tensor | None, *, transformer: VideoGPTTransformerModel, window: int
) -> torch.Tensor | None:
    """The actions that a call gives for its given frames, (b, F) or (b, F, D), as many as are looked back on.

    Args:
        history_actions: argument of the call.
        given: the latents of these frames (b, C, F, h, w).
        transformer: which takes them.
        window: the most frames that are looked back on; where as many were given, there may have been more.

    Raises:
        ValueError: if they are none of this model's, or not one a frame.
    """
    space = space_for(history_actions, transformer.config, name="history_actions")
    if history_actions is None:
        return None
    if given is None:
        raise ValueError("`history_actions` are of given frames: pass `video`, `image` or `video_latents` with them.")
    num_frames = given.shape[2]
    how = {"name": "history_actions", "device": given.device}
    if num_frames != window:
        return space.encode_frames(history_actions, num_frames, **how)
    # There may have been more frames, of which the last are looked back on.
    encoded = space.encode_frames(history_actions, None, **how)
    if encoded.shape[1] > window:
        return encoded[:, -window:]
    return space.encode_frames(history_actions, num_frames, **how)


@torch.no_grad()
def encode_history(
    history: History,
    transformer: VideoGPTTransformerModel,
    *,
    attention_kwargs: dict[str, Any] | None = None,
    may_join: bool = False,
) -> dict[str, torch.Tensor | None]:
    """Puts the keys and values of the frames that the caches of `history` lack into them, behind the conditions.

    With `may_join` the next pass is a single one behind `history.kv_cache`, which can do this on its way: then nothing is
    computed here, and what that pass has to be called with is returned. Not so where a compiler would make another graph for
    it, nor where a cache of diffusers compares the blocks' outputs of one pass with those of the next.
    """
    parts = (transformer, transformer.transformer_blocks[0])
    is_compiled = any(is_compiled_module(part) or part._compiled_call_impl is not None for part in parts)
    if may_join and history.kv_cache is not None and not is_compiled and not transformer.is_cache_enabled:
        return history.new_frames(transformer.dtype)
    for name, kv_cache in (("history", history.kv_cache), ("negative history", history.negative_kv_cache)):
        new_frames = history.new_frames(transformer.dtype, is_negative=name != "history")
        if new_frames:
            # Compiled blocks run as they are here: one call a clip, of any length, is not worth a graph.
            with transformer.cache_context(name), torch.compiler.set_stance("force_eager"):
                transformer(**new_frames, kv_cache=kv_cache, attention_kwargs=attention_kwargs)
    return {}


class OneCallAtATime:
    """Refuses a second call of a pipeline while the first one, or a stream, still works with its parts.

    The scheduler counts the steps of one loop and the caches hold one clip: two calls at once would spoil each other's.
    """

    _lock = threading.Lock()  # of the class, so that pipelines can be copied

    def __init__(self):
        self._is_busy = False

    def begin(self) -> None:
        """Raises a `RuntimeError` if a call or a stream is at work."""
        with self._lock:
            if self._is_busy:
                raise RuntimeError(
                    "This pipeline is busy: another call or a stream of it has not ended. Wait for it, close the stream, "
                    "or load a second pipeline, whose scheduler and caches are its own."
                )
            self._is_busy = True

    def end(self) -> None:
        """Lets the next call begin."""
        self._is_busy = False

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *exc_info) -> None:
        self.end()


def make_condition_encoder(
    transformer: VideoGPTTransformerModel | None,
    text_encoder: PreTrainedModel | None,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    id2label: dict | None,
    device: torch.device,
) -> ConditionEncoder:
    """What makes the transformer's arguments of classes and prompts. Without a transformer, in a pipeline that is loaded for
    its text encoder alone, it is that encoder which says how wide its texts are."""
    if transformer is None:
        num_classes, width, dtype = None, text_width(text_encoder), text_encoder.dtype
    else:
        num_classes, width = transformer.config.num_classes, transformer.config.text_embed_dim
        dtype = transformer.dtype
    return ConditionEncoder(
        num_classes=num_classes,
        text_embed_dim=width,
        labels=class_numbers(id2label),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
    )


def encode_asked(
    asked: CallInputs | BlockState, *, guider: BaseGuidance, condition_encoder: ConditionEncoder
) -> tuple[Conditions, Conditions | None]:
    """What a call asks for, and what guidance leads away from: see [`~conditions.ConditionEncoder.encode_conditions`].

    Args:
        asked: has the call's arguments on classes, prompts and their guidance, by their names.
        guider: of this call.
        condition_encoder: for classes and prompts.
    """
    is_asked = any(value is not None for value in (asked.class_labels, asked.prompt, asked.prompt_embeds))
    return condition_encoder.encode_conditions(
        asked.class_labels,
        asked.prompt,
        guidance_scale=condition_scale(guider, asked.condition_guidance_scale, is_asked=is_asked),
        negative_prompt=asked.negative_prompt,
        prompt_embeds=asked.prompt_embeds,
        negative_prompt_embeds=asked.negative_prompt_embeds,
        prompt_attention_mask=asked.prompt_attention_mask,
        negative_prompt_attention_mask=asked.negative_prompt_attention_mask,
    )


def prepare_history(
    given: torch.Tensor | None,
    *,
    transformer: VideoGPTTransformerModel,
    window: int,
    batch_size: int,
    frame_size: tuple[int, int],
    vae_scale_factor: int,
    num_frames: int | None,
    longest_clip: int,
    conditions: Conditions | None = None,
    negative_conditions: Conditions | None = None,
    use_kv_cache: bool = True,
    rolling_cache: bool = False,
    history_actions: torch.Tensor | None = None,
) -> History:
    """The history before the first clip, with room in its caches for all that they will ever hold.

    Args:
        given: (b, C, F, h, w) clean latents, if there are any.
        transformer: the network that will fill the caches.
        window: the most frames that are looked back on.
        batch_size: B videos are predicted: `given` and the conditions are repeated to so many.
        frame_size: height and width in pixels.
        vae_scale_factor: pixels along one side of a latent.
        num_frames: how many will be predicted; `None` for without end.
        longest_clip: the most frames that are predicted at once.
        conditions, negative_conditions: of [`~conditions.ConditionEncoder.encode_conditions`], if anything is asked for.
        use_kv_cache: whether to keep keys and values.
        rolling_cache: see [`History`].
        history_actions: that led to the frames of `given`, of [`encode_history_actions`].
    """

    def repeat(values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(batch_size // values.shape[0], dim=0)

    conditions = {name: repeat(value) for name, value in (conditions or {}).items()}
    history = History(window, rolling=rolling_cache, conditions=conditions)
    if negative_conditions is not None:
        history.negative_conditions = {name: repeat(value) for name, value in negative_conditions.items()}
    height, width = frame_size
    pixels_per_patch = (vae_scale_factor * transformer.config.patch_size) ** 2
    tokens_per_frame = height * width // pixels_per_patch + TOKENS_AROUND_PATCHES
    if num_frames is not None:
        num_all = num_frames + (0 if given is None else given.shape[2])
        window = min(window, num_all)
        longest_clip = min(longest_clip, num_all - window)  # a clip of the last frames is itself among all

    def make_cache(conditions: Conditions | None) -> VideoGPTKVCache | None:
        # A cache holds samples of one length, so texts of different lengths have none.
        if not use_kv_cache or conditions is None or "encoder_attention_mask" in conditions:
            return None
        num_tokens = window * tokens_per_frame + condition_lengths(conditions)
        clip_tokens = longest_clip * tokens_per_frame
        return VideoGPTKVCache(transformer.config.num_layers, num_tokens, clip_tokens=clip_tokens)

    history.kv_cache = make_cache(history.conditions)
    history.negative_kv_cache = make_cache(history.negative_conditions)
    if given is not None:
        history.append(repeat(given), repeat_actions(history_actions, batch_size))
    return history


def prepare_noise(
    shape: tuple[int, int, int, int, int],
    *,
    device: torch.device,
    generator: torch.Generator | list[torch.Generator] | None = None,
    latents: torch.Tensor | None = None,
) -> torch.Tensor:
    """The noise that a clip begins with, of `shape` (B, C, F, h, w) in fp32: `latents` if given, else drawn."""
    if latents is not None:
        return latents.to(device, torch.float32)
    return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)


@torch.no_grad()
def prepare_rollout(
    inputs: CallInputs,
    *,
    guider: BaseGuidance,
    transformer: VideoGPTTransformerModel,
    vae: AutoencoderKL | AutoencoderTiny | None,
    condition_encoder: ConditionEncoder,
    vae_scale_factor: int,
    longest_side: int,
    max_context_frames: int,
    device: torch.device,
) -> Rollout:
    """What a call and a stream have in common: their arguments are checked, what is given and asked for is encoded.

    Args:
        inputs: arguments of the call.
        guider: of this call.
        transformer, vae: of the pipeline.
        condition_encoder: for classes and prompts.
        vae_scale_factor: pixels along one side of a latent.
        longest_side, max_context_frames: of the pipeline's configuration.
        device: of the pipeline.

    Raises:
        ValueError: for arguments that don't fit each other or the model.
        VideoReadError: for a path that can't be read.
    """
    # 1. Check inputs
    multiple = vae_scale_factor * transformer.config.patch_size
    check_given(inputs.video, inputs.image, video_latents=inputs.video_latents, vae=vae)
    check_output_type(inputs.output_type, vae)
    check_size(inputs.height, inputs.width, multiple=multiple)
    check_channels(vae, transformer)
    check_rollout(
        inputs.clip_lengths,
        video_latents=inputs.video_latents,
        latents=inputs.latents,
        has_history=any(given is not None for given in (inputs.video, inputs.image, inputs.video_latents)),
        channels=transformer.config.in_channels,
        guidance_scale=inputs.guidance_scale,
        history_retention=inputs.history_retention,
    )
    window = window_of(inputs.max_context_frames, max_context_frames)
    actions = encode_call_actions(inputs, transformer=transformer, num_frames=inputs.num_frames)
    num_given = count_videos(inputs.video, inputs.image)
    batch_size = batch_size_of(
        num_given if inputs.video_latents is None else len(inputs.video_latents),
        count_asked(inputs.class_labels, inputs.prompt, prompt_embeds=inputs.prompt_embeds, actions=actions),
        num_videos_per_prompt=inputs.num_videos_per_prompt,
        latents=inputs.latents,
        generator=inputs.generator,
    )

    # 2. Encode what is asked for
    conditions, negative_conditions = encode_asked(inputs, guider=guider, condition_encoder=condition_encoder)

    # 3. Encode the given frames: they are the history
    given = encode_given(
        inputs.video,
        inputs.image,
        video_latents=inputs.video_latents,
        vae=vae,
        window=window,
        longest_side=longest_side,
        multiple=multiple,
        height=inputs.height,
        width=inputs.width,
        fps=inputs.fps,
        generator=inputs.generator,
        device=device,
    )
    sizes = {"longest_side": longest_side, "vae_scale_factor": vae_scale_factor, "multiple": multiple}
    sized = given if inputs.latents is None else inputs.latents
    height, width = frame_size_of(sized, height=inputs.height, width=inputs.width, **sizes)
    frame_size_of(given, height=height, width=width, **sizes)  # noise and history are of one size
    history_actions = encode_history_actions(inputs.history_actions, given, transformer=transformer, window=window)
    history = prepare_history(
        given,
        transformer=transformer,
        window=window,
        batch_size=batch_size,
        frame_size=(height, width),
        vae_scale_factor=vae_scale_factor,
        num_frames=inputs.num_frames,
        longest_clip=max(inputs.clip_lengths),
        conditions=conditions,
        negative_conditions=negative_conditions,
        use_kv_cache=inputs.use_kv_cache,
        rolling_cache=inputs.rolling_cache,
        history_actions=history_actions,
    )
    return Rollout(
        history=history,
        batch_size=batch_size,
        height=height,
        width=width,
        num_inference_steps=inputs.num_inference_steps,
        history_retention=inputs.history_retention,
        generator=inputs.generator,
        output_type=inputs.output_type,
        actions=repeat_actions(None if actions is None else actions.to(device), batch_size),
        action_space=ActionSpace.of(transformer.config),
        device=device,
    )
