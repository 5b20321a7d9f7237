"""Attention by tiles against its slow twin, one dense call under the mask."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_videogpt import attention_videogpt
from diffusers_videogpt.clips import PADDING, draw_clip_lengths, make_attention_tiles, make_clip_layout
from diffusers_videogpt.tile_attention import tile_attention
from diffusers_videogpt.training.objective import next_clip_loss


LAYOUTS = {
    "one for all samples": {"clip_lengths": [2, 3, 1], "patch_grid": (2, 2)},
    "clips of their own": {"clip_lengths": [[1, 3, 2], [2, 1, 3]], "patch_grid": (2, 3)},
    "padded frames and conditions": {
        "clip_lengths": [[1, 3], [2, 2], [4]],
        "patch_grid": [(2, 3), (3, 2), (1, 1)],
        "condition_lengths": [2, 0, 1],
    },
    "history only": {"clip_lengths": [3, 2], "patch_grid": (2, 2), "clean": slice(None), "noisy": slice(0)},
    "one clip after history": {"clip_lengths": [3, 2], "patch_grid": (2, 2), "noisy": slice(-1, None)},
    "clip alone with a condition": {"clip_lengths": [3], "patch_grid": (2, 2), "condition_lengths": 1},
}


def dense_attention(query, key, value, mask):
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def random_inputs(layout, batch_size=None, dtype=torch.float32):
    shape = (batch_size or layout.batch_size, layout.num_tokens, 2, 16)
    generator = torch.Generator().manual_seed(0)
    *inputs, grad = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(4))
    padding = (layout.stream == PADDING)[:, :, None, None]
    return [x.requires_grad_() for x in inputs], grad.masked_fill(padding, 0), padding


@pytest.mark.parametrize("tile_size", [1, 16, 1000])
@pytest.mark.parametrize("name", LAYOUTS)
def test_output_and_gradients(name, tile_size):
    layout = make_clip_layout(**LAYOUTS[name])
    inputs, grad, padding = random_inputs(layout)
    output = tile_attention(*inputs, tiles=make_attention_tiles(layout, tile_size))
    expected = dense_attention(*inputs, layout.dense_mask)
    torch.testing.assert_close(output, expected.masked_fill(padding, 0), atol=1e-5, rtol=0)
    grads, expected_grads = (torch.autograd.grad(o, inputs, grad) for o in (output, expected))
    torch.testing.assert_close(grads, expected_grads, atol=1e-5, rtol=0)


def test_gradients_by_finite_differences():
    layout = make_clip_layout([2, 1], (1, 2))
    inputs, _, _ = random_inputs(layout, dtype=torch.float64)
    tiles = make_attention_tiles(layout, 4)
    assert torch.autograd.gradcheck(lambda *x: tile_attention(*x, tiles=tiles), inputs, atol=1e-7, fast_mode=True)


def test_one_layout_serves_a_batch():
    layout = make_clip_layout([2, 1], (2, 2))
    inputs, _, _ = random_inputs(layout, batch_size=3)
    output = tile_attention(*inputs, tiles=make_attention_tiles(layout))
    torch.testing.assert_close(output, dense_attention(*inputs, layout.dense_mask), atol=1e-5, rtol=0)


def test_bfloat16_is_as_near_as_dense_bfloat16():
    layout = make_clip_layout([4, 4, 4], (4, 4))
    exact_inputs, _, _ = random_inputs(layout)
    exact = dense_attention(*exact_inputs, layout.dense_mask)
    inputs = [x.bfloat16() for x in exact_inputs]
    dense_error = (dense_attention(*inputs, layout.dense_mask) - exact).abs().mean()
    tile_error = (tile_attention(*inputs, tiles=make_attention_tiles(layout)) - exact).abs().mean()
    assert tile_error < 1.1 * dense_error


def test_bfloat16_gradients_are_as_near_as_those_of_dense_bfloat16():
    """Of many tiles that add to one key."""
    layout = make_clip_layout([1] * 24, (2, 2))
    exact_inputs, grad, _ = random_inputs(layout)
    exact = torch.autograd.grad(dense_attention(*exact_inputs, layout.dense_mask), exact_inputs, grad)
    inputs = [x.detach().bfloat16().requires_grad_() for x in exact_inputs]
    outputs = (
        dense_attention(*inputs, layout.dense_mask),
        tile_attention(*inputs, tiles=make_attention_tiles(layout, 1)),
    )
    for of_dense, of_tiles, expected in zip(
        *(torch.autograd.grad(output, inputs, grad.bfloat16()) for output in outputs), exact, strict=True
    ):
        assert of_tiles.dtype == torch.bfloat16
        assert (of_tiles - expected).norm() < 1.2 * (of_dense - expected).norm()


def test_half_precision_is_computed_in_fp32():
    """And rounded once, at the end: forward and backward."""
    layout = make_clip_layout([4, 3, 2], (2, 3))
    inputs, grad, _ = random_inputs(layout)
    halves, tiles = [x.detach().bfloat16().requires_grad_() for x in inputs], make_attention_tiles(layout)
    floats = [x.detach().float().requires_grad_() for x in halves]
    output, expected = tile_attention(*halves, tiles=tiles), tile_attention(*floats, tiles=tiles)
    assert torch.equal(output, expected.bfloat16())
    grads = torch.autograd.grad(output, halves, grad.bfloat16())
    expected_grads = torch.autograd.grad(expected, floats, grad.bfloat16().float())
    for x, y in zip(grads, expected_grads, strict=True):
        assert (x - y).norm() < 0.01 * y.norm()  # the backward pass reads the output, which was rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_compiler_is_told_is_what_comes_out(dtype):
    """Shapes and dtypes of the operators' fakes."""
    layout = make_clip_layout([1, 2], (1, 2))
    inputs, grad, _ = random_inputs(layout, dtype=dtype)
    inputs, tiles = [x.detach() for x in inputs], make_attention_tiles(layout)
    operators = torch.ops.videogpt
    forward = [*inputs, tiles.plan, tiles.masks]
    backward = [grad, *inputs, *operators.tile_attention(*forward), tiles.plan, tiles.masks]
    for operator, arguments in ((operators.tile_attention, forward), (operators.tile_attention_backward, backward)):
        real = operator(*arguments)
        with FakeTensorMode() as mode:
            fake = operator(*(mode.from_tensor(x) for x in arguments))
        assert [(x.shape, x.dtype) for x in fake] == [(x.shape, x.dtype) for x in real]


def test_tiles_leave_out_what_the_mask_does():
    layout = make_clip_layout(draw_clip_lengths(16, torch.Generator().manual_seed(1)), (16, 16))
    numbers, computed = make_attention_tiles(layout).plan.tolist(), 0
    while numbers:
        _, _, num_queries, num_keys = numbers[:4]
        edges, numbers = numbers[4 : 4 + 2 * (num_queries + num_keys)], numbers[4 + 2 * (num_queries + num_keys) :]
        lengths = [end - start for start, end in zip(edges[::2], edges[1::2], strict=True)]
        computed += sum(lengths[:num_queries]) * sum(lengths[num_queries:])
    assert computed < 1.05 * layout.dense_mask.sum()


class LargestTensor(TorchDispatchMode):
    """Watches the sizes of all results."""

    num_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if torch.is_tensor(x):
                self.num_elements = max(self.num_elements, x.numel())
        return result


def test_mask_of_a_long_video_is_small():
    with LargestTensor() as largest:
        layout = make_clip_layout([8] * 9, (16, 16))
        tiles = make_attention_tiles(layout)
    num_tokens = layout.num_tokens
    assert num_tokens > 35_000
    assert largest.num_elements < num_tokens**2 / 4
    assert sum(x.numel() * x.itemsize for x in (tiles.plan, tiles.masks)) < 2 * 2**20


def test_model_takes_tiles_where_there_are_many_tokens(tiny_transformer, monkeypatch):
    latents = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    losses, grads, asked = {}, {}, []
    monkeypatch.setattr(
        attention_videogpt, "tile_attention", lambda *x, **y: asked.append(1) or tile_attention(*x, **y)
    )
    for name, least in (("dense", 10_000), ("tiles", 0)):
        monkeypatch.setitem(attention_videogpt.MIN_SPARSE_TOKENS, "cpu", least)
        tiny_transformer.zero_grad()
        loss = next_clip_loss(
            tiny_transformer, latents, clip_lengths=[[1, 3], [2, 2]], generator=torch.Generator().manual_seed(0)
        )
        loss.backward()
        losses[name] = loss.item()
        grads[name] = {n: p.grad.clone() for n, p in tiny_transformer.named_parameters() if p.grad is not None}
    assert len(asked) == tiny_transformer.config.num_layers
    assert losses["tiles"] == pytest.approx(losses["dense"], abs=1e-6)
    torch.testing.assert_close(grads["tiles"], grads["dense"], atol=1e-5, rtol=0)

    tiny_transformer.set_attention_backend("native")  # the twin, by name
    next_clip_loss(
        tiny_transformer, latents, clip_lengths=[[1, 3], [2, 2]], generator=torch.Generator().manual_seed(0)
    )
    assert len(asked) == tiny_transformer.config.num_layers


def test_the_bundled_recipe_takes_tiles_unless_a_backend_was_set(tiny_transformer, monkeypatch):
    """24 frames of 64 × 64 pixels in a few clips have 640 to 850 tokens."""
    latents, losses = torch.randn(1, 4, 24, 8, 8, generator=torch.Generator().manual_seed(0)), {}
    for name in ("fp32", "autocast", "fp32, dense", "autocast, dense"):
        asked = []
        monkeypatch.setattr(
            attention_videogpt, "tile_attention", lambda *x, log=asked, **y: log.append(1) or tile_attention(*x, **y)
        )
        if name.endswith("dense"):
            tiny_transformer.set_attention_backend("native")
        with torch.autocast("cpu", torch.bfloat16, enabled=name.startswith("autocast")):
            loss = next_clip_loss(
                tiny_transformer, latents, clip_lengths=[[6, 10, 8]], generator=torch.Generator().manual_seed(0)
            )
        losses[name] = loss.item()
        assert len(asked) == (tiny_transformer.config.num_layers if "dense" not in name else 0)
    assert losses["fp32, dense"] == pytest.approx(losses["fp32"], rel=1e-6)
    assert losses["autocast"] == pytest.approx(losses["fp32"], rel=2e-4)
    assert losses["autocast, dense"] == pytest.approx(losses["fp32"], rel=2e-4)


def test_block_mask_compiles_into_few_graphs_for_all_partitions():
    """All rows and those of the outputs: one graph each of the first shape and one of any shape."""
    counter = CompileCounter()
    attend = torch.compile(flex_attention, backend=counter, fullgraph=True)
    for clips in ([1, 1, 4], [3, 3], [1, 2, 1, 2], [2, 2, 2], [1, 5]):
        layout = make_clip_layout(clips, (2, 2))
        query, key, value = (x.detach().transpose(1, 2) for x in random_inputs(layout, batch_size=2)[0])
        for block_mask, first in ((layout.block_mask, 0), (layout.output_block_mask, layout.first_output)):
            output = attend(query[:, :, first:], key, value, block_mask=block_mask)
            expected = torch.nn.functional.scaled_dot_product_attention(
                query[:, :, first:], key, value, attn_mask=layout.dense_mask[:, :, first:]
            )
            torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    assert counter.frame_count == 4


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_takes_a_block_mask_on_a_gpu_where_there_are_many_tokens(make_tiny_transformer, monkeypatch, dtype):
    """Like the twin that is asked for dense attention; in bf16 as near to it in fp32 as the twin."""
    calls = []
    compiled = attention_videogpt.block_attention
    monkeypatch.setattr(attention_videogpt, "block_attention", lambda *x, **y: calls.append(1) or compiled(*x, **y))
    monkeypatch.setitem(attention_videogpt.MIN_SPARSE_TOKENS, "cpu", 0)
    latents = torch.randn(2, 4, 4, 16, 16, generator=torch.Generator().manual_seed(0)).cuda()
    model, grads = make_tiny_transformer(attention_head_dim=96, rope_long_factor=None).cuda(), {}
    for name, backend, precision in (
        ("exact", "native", torch.float32),
        ("dense", "native", dtype),
        ("sparse", None, dtype),
    ):
        model.set_attention_backend(backend) if backend else model.reset_attention_backend()
        model.zero_grad()
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            generator = torch.Generator().manual_seed(0)
            next_clip_loss(model, latents, clip_lengths=[[1, 3], [2, 2]], generator=generator).backward()
        grads[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert len(calls) == model.config.num_layers
    errors = {name: (grads[name] - grads["exact"]).norm() / grads["exact"].norm() for name in ("dense", "sparse")}
    assert errors["sparse"] <= max(2 * errors["dense"], 1e-5)


def test_compiles_into_one_graph_for_all_partitions():
    counter = CompileCounter()

    @torch.compile(backend=counter, fullgraph=True)
    def attention(query, key, value, tiles):
        return tile_attention(2 * query, key, value, tiles=tiles)

    for clips in ([1, 1, 4], [3, 3], [1, 2, 1, 2], [2, 2, 2], [1, 5]):
        layout = make_clip_layout(clips, (2, 2), clean=slice(None))
        inputs, grad, _ = random_inputs(layout)
        attention(*inputs, make_attention_tiles(layout)).backward(grad)
        expected = dense_attention(2 * inputs[0], *inputs[1:], layout.dense_mask)
        torch.testing.assert_close(attention(*inputs, tiles=make_attention_tiles(layout)), expected, atol=1e-5, rtol=0)
    assert counter.frame_count <= 2  # at most once more, when the length of the plan turns out to vary


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "history only"])
def test_rows_of_the_output(name):
    layout = make_clip_layout(**LAYOUTS[name])
    (query, key, value), grad, padding = random_inputs(layout)
    query, grad, padding = (x[:, layout.first_output :] for x in (query.detach(), grad, padding))
    inputs = (query.requires_grad_(), key, value)
    output = tile_attention(*inputs, tiles=layout.output_attention_tiles)
    expected = dense_attention(*inputs, layout.dense_mask[:, :, layout.first_output :])
    torch.testing.assert_close(output, expected.masked_fill(padding, 0), atol=1e-5, rtol=0)
    grads, expected_grads = (torch.autograd.grad(o, inputs, grad) for o in (output, expected))
    torch.testing.assert_close(grads, expected_grads, atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_output", [False, True])
@pytest.mark.parametrize("clips", [[1, 3, 2], [1] * 6, [8, 1, 1, 8]])
def test_every_attending_pair_is_in_one_tile(clips, is_output):
    layout = make_clip_layout(clips, (2, 3), condition_lengths=2)
    pairs = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.int)
    first_query = layout.first_output if is_output else 0
    tiles = make_attention_tiles(layout, 16, first_query=first_query)
    numbers = tiles.plan.tolist()
    while numbers:
        _, mask_start, num_queries, num_keys = numbers[:4]
        edges, numbers = numbers[4 : 4 + 2 * (num_queries + num_keys)], numbers[4 + 2 * (num_queries + num_keys) :]
        ranges = [torch.arange(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True)]
        queries, keys = torch.cat(ranges[:num_queries]), torch.cat(ranges[num_queries:])
        mask = 1
        if mask_start >= 0:
            mask = tiles.masks[mask_start : mask_start + len(queries) * len(keys)].view(len(queries), len(keys)).int()
        pairs[first_query + queries[:, None], keys] += mask
    assert torch.equal(pairs[first_query:], layout.dense_mask[0, 0, first_query:].int())
