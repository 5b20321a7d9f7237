"""Every name of diffusers that is not documented for users and that this package relies on.

diffusers may rename or move them in any release. They are gathered here so that such a release is mended in one file.
All were checked against diffusers 0.42.1, the tables of `registration.py` too. `tests/test_diffusers_internals.py` uses each
of them, so that the suite, run on another version, tells which one has gone.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn as nn
from diffusers import ContextParallelConfig, DiffusionPipeline, ModelMixin, ParallelConfig, TensorParallelConfig
from diffusers.guiders import BaseGuidance
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.hooks.tensor_parallel import PackedColwiseParallel
from diffusers.loaders.lora_base import (
    LORA_ADAPTER_METADATA_KEY,
    LORA_WEIGHT_NAME_SAFE,
    LoraBaseMixin,
    _fetch_state_dict,
)
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention_dispatch import AttentionBackendName, SeqAllToAllDim, _AttentionBackendRegistry
from diffusers.modular_pipelines import BlockState, ModularPipeline
from diffusers.utils.peft_utils import unscale_lora_layers
from torch.distributed.device_mesh import init_device_mesh


__all__ = [
    "ContextParallelInput",
    "ContextParallelOutput",
    "LORA_ADAPTER_METADATA_KEY",
    "LORA_WEIGHT_NAME_SAFE",
    "LoraBaseMixin",
    "PackedColwiseParallel",
    "ParallelOnCPUMixin",
    "SeqAllToAllDim",
    "TransformerBlockMetadata",
    "TransformerBlockRegistry",
    "WholeWeightsMixin",
    "active_attention_backend",
    "apply_context_parallel",
    "block_cache_config",
    "cast_as_loaded",
    "execution_device",
    "fetch_lora_state_dict",
    "guidance_pass_name",
    "has_model_hooks",
    "is_guider_enabled",
    "quiet_guiders",
    "refuse_incomplete_vae",
    "refuse_missing_tensors",
    "refuse_unread_tensors",
    "reset_block_caches",
    "unscale_lora_layers",
]

fetch_lora_state_dict = _fetch_state_dict

MAX_NAMED = 4  # in an error


class WholeWeightsMixin:
    """A `ModelMixin` that is only loaded from weights that have all its tensors.

    Where one is missing, diffusers warns and goes on: with random numbers, or with a tensor that has no memory. This is
    the step that every way of loading takes, also as a part of `DiffusionPipeline.from_pretrained`.

    Where loading fails, PyTorch's default dtype is what it was: diffusers sets it to the weights' and does not set it back.
    """

    @classmethod
    def from_pretrained(cls, *args, **kw):
        default = torch.get_default_dtype()
        try:
            return super().from_pretrained(*args, **kw)
        finally:
            torch.set_default_dtype(default)

    @classmethod
    def _load_pretrained_model(
        cls, model, state_dict, resolved_model_file, pretrained_model_name_or_path, *args, **kw
    ):
        loaded = super()._load_pretrained_model(
            model, state_dict, resolved_model_file, pretrained_model_name_or_path, *args, **kw
        )
        refuse_missing_tensors(loaded[1], f"The weights in '{pretrained_model_name_or_path}'")
        return loaded


class ParallelOnCPUMixin:
    """A `ModelMixin` whose parallelism also runs on CPUs.

    diffusers finds the device of a process by dividing by the number of accelerators, of which there are none.
    """

    @property
    def _context_parallel_config(self) -> ContextParallelConfig | None:
        return None if self._parallel_config is None else self._parallel_config.context_parallel_config

    def _resolve_parallel_config(self, config):
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if torch.accelerator.is_available() or not is_distributed:
            return super()._resolve_parallel_config(config)
        if not isinstance(config, ParallelConfig):
            is_tensor = isinstance(config, TensorParallelConfig)
            kind = "tensor_parallel_config" if is_tensor else "context_parallel_config"
            config = ParallelConfig(**{kind: config})
        context, tensor = config.context_parallel_config, config.tensor_parallel_config
        shape, names = (
            ((tensor.tp_degree,), ("tp",)) if context is None else (context.mesh_shape, context.mesh_dim_names)
        )
        mesh = (context or tensor).mesh or init_device_mesh("cpu", shape, mesh_dim_names=names)
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        config.setup(rank, world_size, torch.device("cpu"), mesh=mesh)
        self._parallel_config = config
        return config


def cast_as_loaded(model: ModelMixin, dtype: torch.dtype) -> ModelMixin:
    """Makes a model what `from_pretrained(dtype=dtype)` gives of the same weights, in place: all floating point weights in
    `dtype`, those of the modules that the class keeps in fp32 in fp32.

    `model.to(dtype)` casts these too. Where the weights were in half precision before, fp32 does not bring back their digits.
    """
    kept = set(model._keep_in_fp32_modules or ())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if kept & {*name.split(".")} else dtype)
    return model


def refuse_unread_tensors(models: Mapping[str, Any]) -> None:
    """Raises a `ValueError` for a model of diffusers' own of whose tensors some were not in the file that it was loaded from.

    `from_pretrained` leaves them without memory (on the device "meta"). So are tensors that a hook will bring from the disk
    or the CPU when they are needed: models with hooks are passed over.

    Args:
        models: part of a pipeline → its model; what is no model is passed over.
    """
    for name, model in models.items():
        if isinstance(model, nn.Module) and not any(hasattr(module, "_hf_hook") for module in model.modules()):
            unread = [tensor for tensor, values in model.state_dict().items() if values.is_meta]
            refuse_missing_tensors(unread, f"The weights of the pipeline's `{name}`")


# Of `from_pretrained`: which files are read.
WHICH_FILES = ("revision", "variant", "use_safetensors", "cache_dir", "token", "local_files_only", "proxies")


def refuse_incomplete_vae(name: str | Path, *, low_cpu_mem_usage: bool = True, **kwargs) -> None:
    """Raises a `ValueError` if the file of a pipeline's VAE lacks tensors, where `low_cpu_mem_usage=False` would make diffusers
    fill them with random numbers, which nobody could tell afterwards: for this, the VAE is loaded once more.

    Without that option such tensors have no memory, which [`refuse_unread_tensors`] finds. `DiffusionPipeline.from_pretrained`
    with it hands the pipeline a VAE that is filled already: there they are not found.

    Args:
        name: of the saved pipeline.
        low_cpu_mem_usage, kwargs: of [`DiffusionPipeline.from_pretrained`].
    """
    if low_cpu_mem_usage or "vae" in kwargs:
        return
    files = {name: kwargs[name] for name in WHICH_FILES if name in kwargs}
    index = DiffusionPipeline.load_config(
        name, **{k: x for k, x in files.items() if k not in ("variant", "use_safetensors")}
    )
    library, class_name = index.get("vae", (None, None))
    if library == "diffusers":
        autoencoder = getattr(diffusers, class_name)
        loaded = autoencoder.from_pretrained(name, subfolder="vae", output_loading_info=True, **files)
        refuse_missing_tensors(loaded[1]["missing_keys"], "The weights of the pipeline's `vae`")


def refuse_missing_tensors(tensors: Iterable[str], where: str) -> None:
    """Raises a `ValueError` that begins with `where` and names the first of `tensors`, if there are any: a model's tensors that
    its file lacks, `missing_keys` in diffusers' loading info."""
    names = sorted(tensors)
    if names:
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        raise ValueError(
            f"{where} lack {', '.join(names[:MAX_NAMED])}{more}, in whose place diffusers would put random numbers: copy all "
            "files of the model again, with its own config.json."
        )


def active_attention_backend() -> AttentionBackendName:
    """The attention backend of models that have none of their own: by `attention_backend(...)` or the environment."""
    return _AttentionBackendRegistry.get_active_backend()[0]


def execution_device(pipe: DiffusionPipeline | ModularPipeline):
    """The `torch.device` that a pipeline computes on, also where its models wait on the CPU to be moved there.

    Where nothing moves the transformer, it is the transformer's. diffusers, which looks at all models, is asked only where
    something does: its answer takes 3 ms, as long as a layer of a small model."""
    transformer = getattr(pipe, "transformer", None)
    if transformer is None or any(_has_hook(module) for module in transformer.modules()):
        return pipe._execution_device
    return next(transformer.parameters()).device


def _has_hook(module: nn.Module) -> bool:
    """Whether accelerate or diffusers does something around a module's forward, as offloading does."""
    attributes = module.__dict__
    return "_hf_hook" in attributes or ("_diffusers_hook" in attributes and bool(module._diffusers_hook.hooks))


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
    """While guiders are made, diffusers does not warn that they are experimental: a pipeline makes one for each call.

    The logger is disabled instead of getting another level: a new level empties what all loggers have cached."""
    logger = logging.getLogger("diffusers.guiders.guider_utils")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was_disabled
