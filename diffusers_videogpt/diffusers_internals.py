"""Every name of diffusers that is not documented for users and that this package relies on.

diffusers may rename or move them in any release. They are gathered here so that such a release is mended in one file.
All were checked against diffusers 0.42.1. `tests/test_diffusers_internals.py` uses each of them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn as nn
from diffusers import DiffusionPipeline
from diffusers.guiders import BaseGuidance
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE, LoraBaseMixin, _fetch_state_dict
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.modular_pipelines import BlockState, ModularPipeline
from diffusers.utils.peft_utils import unscale_lora_layers


__all__ = [
    "LORA_WEIGHT_NAME_SAFE",
    "LoraBaseMixin",
    "TransformerBlockMetadata",
    "TransformerBlockRegistry",
    "active_attention_backend",
    "block_cache_config",
    "execution_device",
    "fetch_lora_state_dict",
    "guidance_pass_name",
    "has_model_hooks",
    "is_guider_enabled",
    "quiet_guiders",
    "reset_block_caches",
    "unscale_lora_layers",
]

fetch_lora_state_dict = _fetch_state_dict


def active_attention_backend() -> AttentionBackendName:
    """The attention backend of models that have none of their own: by `attention_backend(...)` or the environment."""
    return _AttentionBackendRegistry.get_active_backend()[0]


def execution_device(pipe: DiffusionPipeline | ModularPipeline):
    """The `torch.device` that a pipeline computes on, also where its models wait on the CPU to be moved there."""
    return pipe._execution_device


def has_model_hooks(pipe: DiffusionPipeline) -> bool:
    """Whether `enable_model_cpu_offload` moves the models of a pipeline to the device one at a time."""
    return bool(getattr(pipe, "_all_hooks", None))


def block_cache_config(model: nn.Module) -> Any:
    """The configuration that `enable_cache` was called with; only where `is_cache_enabled`."""
    return model._cache_config


def reset_block_caches(model: nn.Module) -> None:
    """Forgets what the caches of `enable_cache` have kept of earlier steps."""
    model._reset_stateful_cache()


def guidance_pass_name(prepared: BlockState) -> str:
    """Which prediction a guider wants of an element of what its `prepare_inputs` returned, for example "pred_uncond"."""
    return getattr(prepared, BaseGuidance._identifier_key)


def is_guider_enabled(guider: BaseGuidance) -> bool:
    """`False` after `guider.disable()`, which the configuration does not tell."""
    return guider._enabled


@contextmanager
def quiet_guiders() -> Iterator[None]:
    """While guiders are made, diffusers does not warn that they are experimental: a pipeline makes one for each call."""
    logger = logging.getLogger("diffusers.guiders.guider_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
