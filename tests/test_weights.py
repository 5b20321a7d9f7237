"""Tensors are written whole; a hash tells models apart by every bit of them, and stays what caches know them by."""

import hashlib

import pytest
import torch
from safetensors import SafetensorError, safe_open
from tiny_models import tiny_autoencoder_of

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline, weights
from diffusers_videogpt.weights import hash_of_model, hash_tensors, hash_weights, save_tensors


def test_tensors_and_their_metadata(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    save_tensors(path, {"x": torch.arange(3.0)}, metadata={"of": "a test"})
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"of": "a test"} and file.get_tensor("x").tolist() == [0, 1, 2]
    assert [x.name for x in path.parent.iterdir()] == ["a.safetensors"]


def test_a_full_disk_is_an_error_of_the_system(tmp_path, monkeypatch):
    def fail(tensors, path, metadata):
        raise SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(OSError, match=r"a\.safetensors could not be written .*No space left"):
        save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_hashes_by_their_definition():
    """Caches and checkpoints on users' disks hold these numbers: they must not change."""
    model = torch.nn.Linear(2, 3).requires_grad_(False)
    parts = [model.bias.numpy().tobytes(), model.weight.numpy().tobytes()]
    expected = hashlib.sha256(b"bias (3,)" + parts[0] + b"weight (3, 2)" + parts[1]).hexdigest()
    assert hash_weights(model) == expected
    expected = hashlib.sha256(b"bias torch.float32 (3,)" + parts[0] + b"weight torch.float32 (3, 2)" + parts[1])
    assert hash_tensors(model.state_dict()) == expected.hexdigest()


def test_a_hash_follows_names_types_shapes_and_values():
    x = torch.arange(6.0).reshape(2, 3)
    changed = [{"x": x}, {"y": x}, {"x": x.T}, {"x": x.reshape(3, 2)}, {"x": x + 1e-7}, {"x": x.bfloat16()}]
    assert len({hash_tensors(tensors) for tensors in changed}) == len(changed)
    assert hash_tensors({"x": x.T.contiguous()}) == hash_tensors({"x": x.T})  # however it lies in memory


def test_models_are_told_apart(tiny_transformer):
    pipe = VideoGPTPipeline(tiny_autoencoder_of(), tiny_transformer, NextClipFlowMatchScheduler())
    hashes = [hash_of_model(pipe), hash_of_model(pipe)]
    tiny_transformer.proj_out.bias.data[0] += 1e-6
    hashes.append(hash_of_model(pipe))
    pipe.scheduler = NextClipFlowMatchScheduler(shift=2.0)
    hashes.append(hash_of_model(pipe))
    hashes.append(hash_of_model(pipe.to(torch.bfloat16)))
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4
