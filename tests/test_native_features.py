"""Attention backends, fused projections and block caches on the pipeline: the same frames, or an error that says why not."""

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.models.attention_dispatch import attention_backend


NUM_STEPS = 4


def predict(pipe, num_given: int = 3, **arguments) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(1, 4, num_given, 4, 6, generator=generator) if num_given else None
    guidance = {"guidance_scale": 2.0} if num_given else {}
    defaults = {"video_latents": given, "num_frames": 4, "num_inference_steps": NUM_STEPS, "output_type": "latent"}
    return pipe(generator=generator, **(defaults | guidance | arguments)).frames


def assert_close(output, expected, atol=1e-4) -> None:
    torch.testing.assert_close(output, expected, atol=atol, rtol=0)


# Attention


@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
@pytest.mark.parametrize("use_kv_cache", [True, False])
def test_backends_that_take_the_mask(make_tiny_pipe, backend, use_kv_cache):
    pipe = make_tiny_pipe()
    expected = predict(pipe, use_kv_cache=use_kv_cache)
    with attention_backend(backend):
        assert_close(predict(pipe, use_kv_cache=use_kv_cache), expected)
    pipe.transformer.set_attention_backend(backend)
    assert_close(predict(pipe, use_kv_cache=use_kv_cache), expected)
    pipe.transformer.reset_attention_backend()
    assert {p._attention_backend for p in pipe.transformer.attn_processors.values()} == {None}


@pytest.mark.parametrize("backend", ["_native_flash", pytest.param("_native_cudnn", marks=pytest.mark.gpu)])
def test_backends_without_a_mask(make_tiny_pipe, backend):
    """They compute a clip without history; encoding a history says what to choose instead."""
    pipe = make_tiny_pipe()
    if backend == "_native_cudnn":
        pipe.to("cuda", torch.bfloat16)
    expected = predict(pipe, num_given=0, num_frames=2, height=32, width=48)
    pipe.transformer.set_attention_backend(backend)
    atol = 1e-4 if backend == "_native_flash" else 0.1
    assert_close(predict(pipe, num_given=0, num_frames=2, height=32, width=48), expected, atol)
    with pytest.raises(ValueError, match=f"'{backend}' can't apply the hierarchical mask. Choose one of 'native'"):
        predict(pipe)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["native", "_native_efficient", "flex"])
def test_backends_on_a_gpu(make_tiny_pipe, backend):
    pipe = make_tiny_pipe()
    expected = predict(pipe)
    pipe.to("cuda")
    pipe.transformer.set_attention_backend(backend)
    assert_close(predict(pipe).cpu(), expected, atol=1e-2)


def test_projections_are_fused_and_taken_apart_again(make_tiny_pipe):
    pipe = make_tiny_pipe()
    expected = predict(pipe)
    names = set(pipe.transformer.state_dict())
    pipe.transformer.fuse_qkv_projections()
    assert_close(predict(pipe), expected)
    pipe.transformer.unfuse_qkv_projections()
    assert set(pipe.transformer.state_dict()) == names
    assert_close(predict(pipe), expected)


# Block caches


@pytest.mark.parametrize("use_kv_cache", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        MagCacheConfig(
            num_inference_steps=NUM_STEPS, threshold=1e9, mag_ratios=[1.0] * NUM_STEPS, retention_ratio=0.0
        ),
        TaylorSeerCacheConfig(cache_interval=NUM_STEPS, disable_cache_before_step=1, max_order=1),
    ],
    ids=["mag", "taylorseer"],
)
def test_block_caches_know_the_passes_and_clips_apart(make_tiny_pipe, config, use_kv_cache):
    """With history and without, and each clip, is computed at its first step; later steps are skipped or extrapolated."""
    pipe, calls = make_tiny_pipe(), []
    expected = predict(pipe, use_kv_cache=use_kv_cache)
    pipe.transformer.transformer_blocks[1].attn.to_q.register_forward_hook(lambda *_: calls.append(1))
    pipe.transformer.enable_cache(config)
    output = predict(pipe, use_kv_cache=use_kv_cache)
    assert output.isfinite().all() and not torch.allclose(output, expected, atol=1e-3)
    # With a cache both passes of guidance are one; where a history is encoded apart, the last block has no queries.
    num_passes = 2 * (1 if use_kv_cache else 2)
    assert num_passes <= len(calls) < num_passes * NUM_STEPS
    assert torch.equal(predict(pipe, use_kv_cache=use_kv_cache), output)  # nothing stays from one call to the next
    pipe.transformer.disable_cache()
    assert_close(predict(pipe, use_kv_cache=use_kv_cache), expected)


@pytest.mark.parametrize(
    "config",
    [
        PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500),
        FasterCacheConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500),
        SeaCacheConfig(),
    ],
    ids=["pyramid", "faster", "sea"],
)
def test_caches_that_would_mix_the_passes_are_refused(make_tiny_pipe, config):
    """Where they are enabled; the model then goes on without."""
    pipe = make_tiny_pipe()
    expected = predict(pipe)
    with pytest.raises(
        ValueError,
        match=f"{type(config).__name__} would mix the passes .* one of FirstBlockCacheConfig, MagCacheConfig",
    ):
        pipe.transformer.enable_cache(config)
    assert not pipe.transformer.is_cache_enabled
    assert torch.equal(predict(pipe), expected)


def test_first_block_cache(make_tiny_pipe):
    """At a threshold no step passes it changes nothing, also over clips of other lengths; at a high one it skips work."""
    pipe, arguments = make_tiny_pipe(), {"chunk_partition": [2, 1, 3], "num_frames": 6}
    expected = predict(pipe, **arguments)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
    torch.testing.assert_close(predict(pipe, **arguments), expected)
    pipe.transformer.disable_cache()
    calls = []
    pipe.transformer.transformer_blocks[1].ff.register_forward_hook(lambda *_: calls.append(1))
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    assert predict(pipe, **arguments).isfinite().all()
    # Each clip computes the first of its steps; of its history nothing is read of the last block but keys and values.
    assert len(calls) == 3
