"""FlexAttention keeps its compiled kernel, and a clip after a cache copies nothing of the history."""

import functools

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_videogpt import VideoGPTKVCache, attention_videogpt, make_clip_layout
from diffusers_videogpt.attention_videogpt import block_attention
from diffusers_videogpt.training.objective import next_clip_loss


GRID = (8, 8)
TOKENS_PER_FRAME = GRID[0] * GRID[1] + 2


def latents(num_frames: int, batch_size: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, 4, num_frames, 2 * GRID[0], 2 * GRID[1], generator=generator)


# FlexAttention


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """As on a GPU, with graphs that are counted and run as they are; gives the counter and the calls outside of any."""
    torch.compiler.reset()
    counter, dense_calls, flex = CompileCounter(), [], attention_videogpt.flex_attention

    def watched(*args, **kwargs):
        if not torch.compiler.is_compiling():
            dense_calls.append(args[0].shape)
        return flex(*args, **kwargs)

    monkeypatch.setattr(attention_videogpt, "BLOCK_MASK_DEVICES", ("cpu",))
    monkeypatch.setattr(attention_videogpt, "TILE_DEVICES", ())
    monkeypatch.setitem(attention_videogpt.MIN_SPARSE_TOKENS, "cpu", 0)
    monkeypatch.setattr(attention_videogpt, "flex_attention", watched)
    dispatch = attention_videogpt.dispatch_attention_fn
    monkeypatch.setattr(
        attention_videogpt,
        "dispatch_attention_fn",
        lambda *args, **kwargs: dense_calls.append(args[0].shape) or dispatch(*args, **kwargs),
    )
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    # The kernel that a CPU lacks is that of the backward pass; what is counted here has one.
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *_: None)
    attention_videogpt._compiled_flex_attention.cache_clear()
    yield counter, dense_calls
    attention_videogpt._compiled_flex_attention.cache_clear()
    torch.compiler.reset()


def test_few_graphs_in_a_mixed_run(tiny_transformer, flex_on_cpu):
    """Batches of one and two, partitions of their own, validation, the last batch, another dtype: 8 graphs, none dense."""
    counter, dense_calls = flex_on_cpu
    generator = torch.Generator().manual_seed(0)

    def loss_of(clip_lengths):
        return next_clip_loss(
            tiny_transformer, latents(4, len(clip_lengths)), clip_lengths=clip_lengths, generator=generator
        )

    partitions = ([[2, 2], [1, 3]], [[1, 2, 1], [4]])
    for clip_lengths in partitions:
        loss_of(clip_lengths).backward()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # validation, which wants blocks uncompiled
            loss_of(clip_lengths[:1])
            loss_of(clip_lengths)
    loss_of([[2, 2]]).backward()  # the last batch is smaller
    with torch.no_grad():
        tiny_transformer(latents(2, 2), torch.tensor(0.3), latents(3, 2))  # a prediction: one layout for both videos
    with torch.autocast("cpu", torch.bfloat16):
        for clip_lengths in partitions:
            loss_of(clip_lengths).backward()
    assert not dense_calls
    assert 0 < counter.frame_count <= 8


def test_too_many_graphs_are_an_error(flex_on_cpu):
    """Never all T × T scores in silence."""
    _, dense_calls = flex_on_cpu
    mask = make_clip_layout([1, 2], GRID).block_mask
    num_tokens = mask.shape[-1]
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1):
        block_attention(*torch.randn(3, 1, num_tokens, 2, 16), block_mask=mask)
        with pytest.raises(FailOnRecompileLimitHit):
            block_attention(*torch.randn(3, 1, num_tokens, 2, 16).double(), block_mask=mask)
    assert not dense_calls


def test_options_of_the_kernel_reach_flex_attention(tiny_transformer, flex_on_cpu, monkeypatch):
    """As numbers, not as sizes of a graph that any number fits; without options there are none."""
    seen, counter = [], flex_on_cpu[0]

    def look(graph, inputs):
        for node in graph.graph.nodes:
            if node.target is torch.ops.higher_order.flex_attention:
                seen.append(next(x for x in node.args if isinstance(x, dict)))
        return counter(graph, inputs)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile.func, backend=look))
    options = {"BLOCK_M": 32, "USE_TMA": False}
    clean, noisy, alpha = latents(3), latents(2), torch.tensor(0.3)

    def predict(cached=False, **how):
        seen.clear()
        if cached:
            kv_cache = VideoGPTKVCache(tiny_transformer.config.num_layers, 3 * TOKENS_PER_FRAME)
            tiny_transformer(clean_hidden_states=clean, kv_cache=kv_cache, **how)
            return kv_cache.layers[-1].keys
        return tiny_transformer(noisy, alpha, clean, **how).sample

    for cached in (False, True):
        with torch.no_grad():
            plain = predict(cached)
            assert seen and not any("BLOCK_M" in found for found in seen)
            tuned = predict(cached, attention_kwargs={"kernel_options": options})
            assert seen and all({name: found[name] for name in options} == options for found in seen)
            assert all(type(found["BLOCK_M"]) is int for found in seen)
            torch.compiler.reset()
            attention_videogpt._compiled_flex_attention.cache_clear()
        torch.testing.assert_close(tuned, plain)
    assert not flex_on_cpu[1]


def test_attention_kwargs(tiny_transformer, caplog):
    noisy, alpha = latents(1), torch.tensor(0.3)
    with torch.no_grad():
        plain = tiny_transformer(noisy, alpha).sample
        asked = {"ip_scale": 2, "kernel_options": {"BLOCK_M": 32}, "scale": 0.5}
        torch.testing.assert_close(tiny_transformer(noisy, alpha, attention_kwargs=asked).sample, plain)
    assert (
        "attention_kwargs ['ip_scale'] are not expected by VideoGPTAttnProcessor and will be ignored." in caplog.text
    )
    assert list(asked) == ["ip_scale", "kernel_options", "scale"]  # as it was
    for wrong in (
        {"scale": float("nan")},
        {"scale": "big"},
        {"kernel_options": 3},
        {"kernel_options": {"BLOCK_M": [1]}},
    ):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` of `attention_kwargs` must"):
            tiny_transformer(noisy, alpha, attention_kwargs=wrong)


# A clip after a cache


class Copies(TorchDispatchMode):
    """Bytes of concatenated tensors that are at least as long as a history."""

    def __init__(self, num_tokens: int):
        super().__init__()
        self.num_tokens, self.num_bytes = num_tokens, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.cat.default and any(size >= self.num_tokens for size in result.shape[1:3]):
            self.num_bytes += result.nbytes
        return result


@torch.no_grad()
@pytest.mark.parametrize("num_samples", [1, 2], ids=["one pass", "both passes of guidance"])
def test_no_history_is_concatenated(tiny_transformer, num_samples):
    cache = VideoGPTKVCache(2, 6 * TOKENS_PER_FRAME)
    tiny_transformer(clean_hidden_states=latents(6), kv_cache=cache)
    tiny_transformer(latents(1, num_samples), torch.tensor(0.1), kv_cache=cache)  # makes room for the clip
    memory = [layer.keys.data_ptr() for layer in cache.layers]
    with Copies(6 * TOKENS_PER_FRAME) as copies:
        for timestep in (0.3, 0.6):
            tiny_transformer(latents(1, num_samples), torch.tensor(timestep), kv_cache=cache)
    assert copies.num_bytes == 0
    assert memory == [layer.keys.data_ptr() for layer in cache.layers]


@torch.no_grad()
def test_room_for_the_clip_is_there_from_the_start(tiny_transformer):
    """And a longer clip than foreseen makes more."""
    cache = VideoGPTKVCache(2, 2 * TOKENS_PER_FRAME, clip_tokens=TOKENS_PER_FRAME)
    tiny_transformer(clean_hidden_states=latents(2), kv_cache=cache)
    sizes = [cache.layers[0].keys.shape[1]]
    for num_frames in (1, 3, 1):
        tiny_transformer(latents(num_frames), torch.tensor(0.3), kv_cache=cache)
        sizes.append(cache.layers[0].keys.shape[1])
    assert sizes == [TOKENS_PER_FRAME * n for n in (3, 3, 5, 5)]
    with pytest.raises(ValueError, match="do not fit"):  # the clip's room is none for clean frames
        tiny_transformer(clean_hidden_states=latents(1), kv_cache=cache)


@torch.no_grad()
def test_a_clip_leaves_no_trace_in_the_cache(tiny_transformer):
    """Longer and shorter clips, before and after more history, are predicted as from a cache that held no clip."""
    cache, other = (VideoGPTKVCache(2, 6 * TOKENS_PER_FRAME) for _ in range(2))
    for history in latents(6).split([2, 3, 1], dim=2):
        for num_frames in (1, 4, 2):
            if cache.num_tokens:
                tiny_transformer(latents(num_frames, seed=1), torch.tensor(0.3), kv_cache=cache)
        for filled in (cache, other):
            tiny_transformer(clean_hidden_states=history, kv_cache=filled)
    outputs = [tiny_transformer(latents(3), torch.tensor(0.3), kv_cache=filled).sample for filled in (cache, other)]
    assert torch.equal(*outputs)
    for layer, other_layer in zip(cache.layers, other.layers, strict=True):
        assert torch.equal(layer.keys[:, : cache.num_tokens], other_layer.keys[:, : cache.num_tokens])


@torch.no_grad()
@pytest.mark.parametrize("num_history", [0, 3])
@pytest.mark.parametrize("num_samples", [1, 2])
def test_special_tokens_together_are_special_tokens_rank_by_rank(
    tiny_transformer, monkeypatch, num_history, num_samples
):
    cache = None
    if num_history:
        cache = VideoGPTKVCache(2, num_history * TOKENS_PER_FRAME)
        tiny_transformer(clean_hidden_states=latents(num_history), kv_cache=cache)
    arguments = {"hidden_states": latents(2, num_samples, seed=1), "timestep": torch.tensor(0.3), "kv_cache": cache}
    calls, attend = [], attention_videogpt.dispatch_attention_fn
    monkeypatch.setattr(
        attention_videogpt, "dispatch_attention_fn", lambda *x, **y: calls.append(y["attn_mask"]) or attend(*x, **y)
    )
    together = tiny_transformer(**arguments).sample
    num_together = len(calls)
    tiny_transformer.set_attention_backend("_native_flash")  # takes no mask
    by_rank = tiny_transformer(**arguments).sample
    torch.testing.assert_close(together, by_rank, atol=1e-5, rtol=0)
    groups = 1 if num_samples == 1 or not num_history else 2
    assert num_together == groups * (2 + 1)  # first layer: special tokens, patches; last layer: patches
    assert len(calls) - num_together == groups * (3 + 1)


@pytest.mark.parametrize(("autocast", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_rotary_tables_are_rounded_once_a_pass(tiny_transformer, monkeypatch, autocast, dtype):
    seen, rotate = [], attention_videogpt.apply_rotary_emb
    monkeypatch.setattr(
        attention_videogpt,
        "apply_rotary_emb",
        lambda x, tables: seen.append((x.dtype, *(table.dtype for table in tables))) or rotate(x, tables),
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tiny_transformer(latents(2), torch.tensor(0.3), latents(1))
    assert seen == [(dtype, dtype, dtype)] * 2 * tiny_transformer.config.num_layers
