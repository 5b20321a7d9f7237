"""Tensors as safetensors files that are whole or not there, and as hashes that tell one model from another."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import save_file

from .files import written_whole


def save_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file that appears under its name only when it is complete.

    Raises:
        OSError: it cannot be written, for example as the disk is full.
    """
    with written_whole(path) as unfinished:
        try:
            save_file(dict(tensors), unfinished, None if metadata is None else dict(metadata))
        except SafetensorError as error:  # which is what the library makes of an error of the system
            raise OSError(f"{path} could not be written ({error}).") from error


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    named = ((f"{name} {tensor.dtype} {tuple(tensor.shape)}", tensor) for name, tensor in sorted(tensors.items()))
    return _hash(named)


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights, their names and shapes. Caches, checkpoints and indices know their model by it."""
    state_dict = model.state_dict()
    return _hash((f"{name} {tuple(tensor.shape)}", tensor) for name, tensor in sorted(state_dict.items()))


def hashes_as_base(model: torch.nn.Module) -> Iterator[str]:
    """[`hash_weights`] of a model in fp32 without its LoRAs: as it is, then rounded to bfloat16, as a LoRA's base may have been."""
    base = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }
    for dtype in (torch.float32, torch.bfloat16):
        yield _hash((f"{name} {tuple(tensor.shape)}", tensor.to(dtype)) for name, tensor in sorted(base.items()))


def hash_of_model(pipe: DiffusionPipeline) -> str:
    """SHA-256 of every weight of a pipeline and of its scheduler's configuration."""
    named = (
        (f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}", tensor)
        for part, component in sorted(pipe.components.items())
        if isinstance(component, torch.nn.Module)
        for name, tensor in sorted(component.state_dict().items())
    )
    return _hash(named, start=json.dumps(dict(pipe.scheduler.config), sort_keys=True, default=str))


def _hash(named: Iterable[tuple[str, torch.Tensor]], *, start: str = "") -> str:
    digest = hashlib.sha256(start.encode())
    for name, tensor in named:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
