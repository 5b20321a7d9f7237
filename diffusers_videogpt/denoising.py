"""The steps of one clip: noise becomes the next clip, guided.

In the order of work: [`predict_clean`] is the guidance, [`denoise_steps`] the loop over the steps. Both are plain functions:
the pipeline and the modular blocks run them.

Shapes: B videos, C latent channels, F frames, h × w latent size.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.schedulers import KarrasDiffusionSchedulers

from .diffusers_internals import guidance_pass_name, reset_block_caches
from .history import History
from .rollout import encode_history
from .scheduling_next_clip_flow_match import NextClipFlowMatchScheduler, denoised_to_model_output
from .transformer_videogpt import VideoGPTTransformerModel


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
        history: frames before it, and conditions; its caches are filled. Without frames, the clip is predicted alone.
        transformer: the network.
        guider: of this call, its state set to the step.
        actions: that lead to the frames of the clip, (B, F) or (B, F, D) of [`~actions.ActionSpace.encode`].
        attention_kwargs: of the transformer.

    Returns:
        (B, C, F, h, w) in fp32.
    """
    has_history = history.num_frames > 0
    past = history.latents.to(transformer.dtype) if has_history else None
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
            return transformer(latents.to(transformer.dtype), alpha, **model_inputs)[0].float()

    passes = guider.prepare_inputs(inputs)
    # A guider of diffusers may ask for the pass with negative conditions in a call that has none: then one pass is all.
    if any(one.conditions is None for one in passes):
        passes = passes[:1]
    names = [guidance_pass_name(one) for one in passes]
    # Some guiders change the model between the passes (skip a layer, for example): then they can't share one batch.
    changes_model = type(guider).prepare_models is not BaseGuidance.prepare_models
    if names == ["pred_cond", "pred_uncond"] and cache is not None and not history.conditions and not changes_model:
        # Both passes in one batch, so that the weights are read once. Its second half has no history.
        both_actions = None if actions is None else torch.cat([actions, actions])
        both = predict("both", torch.cat([latents, latents]), kv_cache=cache, actions=both_actions)
        passes[0].noise_pred, passes[1].noise_pred = both.chunk(2)
    else:
        for name, one in zip(names, passes, strict=True):
            if one.kv_cache is not None:  # it holds the history and the conditions
                model_inputs = {"kv_cache": one.kv_cache}
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
        transformer, scheduler: of the pipeline.
        guider: of this call.
        is_interrupted: asked before each step; `True` ends the clip there.
        actions: of the clip, as in [`predict_clean`].
        attention_kwargs: of the transformer.
        generator: of the noise that some schedulers add in a step.
        on_step_end: called as `on_step_end(timestep, latents)` after each step; returns the latents to go on with.

    Raises:
        ValueError: if the clip comes out with NaN or infinite values.
    """
    encode_history(history, transformer, attention_kwargs=attention_kwargs)
    if transformer.is_cache_enabled:  # diffusers' block caches compare steps of one clip, not of two
        reset_block_caches(transformer)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    step_kwargs = {"generator": generator} if takes_generator else {}
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
