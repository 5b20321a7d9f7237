"""The whole network as one graph: compiled, with gradients, for any frame size, exported, and compiled ahead of time."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._inductor.package import load_package

from diffusers_videogpt import VideoGPTKVCache, make_clip_layout


def inputs(num_clean: int, height: int = 4, width: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    arguments = {"hidden_states": torch.randn(1, 4, 2, height, width, generator=generator)}
    if num_clean:
        arguments["clean_hidden_states"] = torch.randn(1, 4, num_clean, height, width, generator=generator)
    return arguments | {"timestep": torch.tensor([0.3])}


def assert_close(output, expected) -> None:
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("num_clean", [0, 3], ids=["alone", "with history"])
def test_one_graph_forward_and_backward(tiny_transformer, num_clean):
    arguments, gradients = inputs(num_clean), []
    compiled = torch.compile(tiny_transformer, fullgraph=True, backend="aot_eager")
    for model in (tiny_transformer, compiled, compiled):
        tiny_transformer.zero_grad()
        with torch._dynamo.config.patch(error_on_recompile=True):
            model(**arguments).sample.square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in tiny_transformer.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            assert_close(other[name], gradient)


@torch.no_grad()
def test_one_graph_after_a_cached_history(tiny_transformer):
    arguments, cache = inputs(3), VideoGPTKVCache(2, 100)
    tiny_transformer(clean_hidden_states=arguments.pop("clean_hidden_states"), kv_cache=cache)
    expected = tiny_transformer(**arguments, kv_cache=cache).sample
    compiled = torch.compile(tiny_transformer, fullgraph=True, backend="eager")
    assert_close(compiled(**arguments, kv_cache=cache).sample, expected)


@torch.no_grad()
def test_one_graph_for_all_frame_sizes(tiny_transformer):
    compiled = torch.compile(tiny_transformer, fullgraph=True, dynamic=True, backend="eager")
    # Without duck shapes: a height and a width that are equal by chance are not taken to be the same number.
    one_graph = torch._dynamo.config.patch(error_on_recompile=True)
    for size in ((4, 4), (4, 8), (8, 4)):
        with one_graph, torch.fx.experimental._config.patch(use_duck_shape=False):
            output = compiled(**inputs(3, *size)).sample
        assert_close(output, tiny_transformer(**inputs(3, *size)).sample)


@pytest.mark.parametrize("num_clean", [0, 3], ids=["alone", "with history"])
def test_export(tiny_transformer, num_clean):
    """With gradients; and tracing leaves nothing behind: the model itself goes on computing."""
    arguments = inputs(num_clean)
    exported = torch.export.export(tiny_transformer, args=(), kwargs=arguments).module()
    expected = tiny_transformer(**arguments).sample
    assert type(expected) is torch.Tensor
    output = exported(**arguments).sample
    assert_close(output, expected)
    output.square().mean().backward()
    expected.square().mean().backward()
    weights = dict(exported.named_parameters())
    for name, parameter in tiny_transformer.named_parameters():
        if parameter.grad is not None and weights[name] is not parameter:
            assert_close(weights[name].grad, parameter.grad)


@torch.no_grad()
def test_export_with_a_layout(tiny_transformer):
    layout = make_clip_layout([3, 2], (2, 3), noisy=slice(-1, None))
    arguments = inputs(3) | {"clip_layout": layout}
    exported = torch.export.export(tiny_transformer, args=(), kwargs=arguments).module()
    assert_close(exported(**arguments).sample, tiny_transformer(**arguments).sample)


@torch.no_grad()
def test_ahead_of_time_package(make_tiny_transformer, tmp_path):
    model, arguments = make_tiny_transformer(num_layers=1), inputs(3)
    exported = torch.export.export(model, args=(), kwargs=arguments)
    package = torch._inductor.aoti_compile_and_package(
        exported,
        package_path=str(tmp_path / "model.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},  # it is compiled sooner
    )
    assert_close(load_package(package, run_single_threaded=True)(**arguments).sample, model(**arguments).sample)


@torch.no_grad()
@pytest.mark.parametrize("num_clean", [0, 3], ids=["alone", "with history"])
def test_repeated_blocks_are_one_graph(make_tiny_transformer, num_clean):
    """And the last block, which computes less, is another."""
    transformer = make_tiny_transformer(num_layers=4)
    arguments = inputs(num_clean)
    expected = transformer(**arguments).sample
    counter = CompileCounter()
    transformer.compile_repeated_blocks(fullgraph=True, backend=counter)
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(2):
            assert_close(transformer(**arguments).sample, expected)
    assert counter.frame_count == 2
