"""The network gives the authors' numbers, whichever way attention is computed."""

import pytest
import torch
from golden_cases import CASES, golden_latents, golden_tensors, load_golden_model, training_batch

from diffusers_videogpt import VideoGPTKVCache, attention_videogpt


BACKENDS = ("native", "_native_math", "flex", "tiles")
TRAIN_CASES = range(len(CASES["train"]))
INFER_CASES = range(len(CASES["infer"]))


@pytest.fixture(scope="module")
def golden_model():
    return load_golden_model()


@pytest.fixture(params=BACKENDS)
def model(request, golden_model, monkeypatch):
    if request.param == "tiles":  # what a CPU does by itself where there are many tokens
        golden_model.reset_attention_backend()
        monkeypatch.setitem(attention_videogpt.MIN_SPARSE_TOKENS, "cpu", 0)
    else:
        golden_model.set_attention_backend(request.param)
    return golden_model


def assert_golden(output: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("case", TRAIN_CASES)
def test_training_batch(model, case):
    batch = training_batch(case)

    output = model(batch.noisy, batch.timestep, batch.clean, clip_layout=batch.layout).sample

    for sample, expected in zip(output, batch.outputs, strict=True):
        _, frames, height, width = expected.shape
        assert_golden(sample[:, :frames, :height, :width], expected)


@torch.no_grad()
@pytest.mark.parametrize("case", INFER_CASES)
def test_clip_after_its_history(model, case):
    noisy, clean = golden_latents(f"infer.{case}.noisy"), golden_latents(f"infer.{case}.clean")

    output = model(noisy, golden_tensors()[f"infer.{case}.timestep"], clean).sample

    assert_golden(output, golden_latents(f"infer.{case}.cond"))


@torch.no_grad()
@pytest.mark.parametrize("case", INFER_CASES)
def test_clip_alone(model, case):
    noisy = golden_latents(f"infer.{case}.noisy")

    output = model(noisy, golden_tensors()[f"infer.{case}.timestep"]).sample

    assert_golden(output, golden_latents(f"infer.{case}.uncond"))


def encode_history(model, case: int, frames_per_call: int | None) -> VideoGPTKVCache:
    clean = golden_latents(f"infer.{case}.clean")
    _, _, num_frames, height, width = clean.shape
    cache = VideoGPTKVCache(model.config.num_layers, num_frames * (height // 2 * (width // 2) + 2))
    for clip in clean.split(frames_per_call or num_frames, dim=2):
        model(clean_hidden_states=clip, kv_cache=cache)
    return cache


@torch.no_grad()
@pytest.mark.parametrize("frames_per_call", [None, 1, 2])
@pytest.mark.parametrize("case", INFER_CASES)
def test_clip_after_its_cached_history(model, case, frames_per_call):
    cache = encode_history(model, case, frames_per_call)
    noisy, timestep = golden_latents(f"infer.{case}.noisy"), golden_tensors()[f"infer.{case}.timestep"]

    for _ in range(2):  # reading leaves the cache as it was
        assert_golden(model(noisy, timestep, kv_cache=cache).sample, golden_latents(f"infer.{case}.cond"))


@torch.no_grad()
@pytest.mark.parametrize("are_most_cached", [False, True])
@pytest.mark.parametrize("case", INFER_CASES)
def test_clip_in_the_pass_that_caches_its_history(model, case, are_most_cached):
    clean, noisy = (golden_latents(f"infer.{case}.{name}") for name in ("clean", "noisy"))
    timestep, expected = golden_tensors()[f"infer.{case}.timestep"], golden_latents(f"infer.{case}.cond")
    _, _, num_frames, height, width = clean.shape
    cache = VideoGPTKVCache(model.config.num_layers, num_frames * (height // 2 * (width // 2) + 2))
    num_cached = num_frames - 1 if are_most_cached else 0
    if num_cached:
        model(clean_hidden_states=clean[:, :, :num_cached], kv_cache=cache)

    assert_golden(model(noisy, timestep, clean[:, :, num_cached:], kv_cache=cache).sample, expected)
    assert_golden(model(noisy, timestep, kv_cache=cache).sample, expected)


@torch.no_grad()
@pytest.mark.parametrize("case", INFER_CASES)
def test_backend_without_masks_reads_the_cache(golden_model, case):
    golden_model.set_attention_backend("native")
    cache = encode_history(golden_model, case, None)
    noisy, timestep = golden_latents(f"infer.{case}.noisy"), golden_tensors()[f"infer.{case}.timestep"]

    golden_model.set_attention_backend("_native_flash")
    output = golden_model(noisy, timestep, kv_cache=cache).sample

    assert_golden(output, golden_latents(f"infer.{case}.cond"))
