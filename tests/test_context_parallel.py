"""Context parallelism (Ulysses) and tensor parallelism: several processes compute what one does. Run as a script, a part of
these tests."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig, FirstBlockCacheConfig, ParallelConfig, TensorParallelConfig
from diffusers.hooks import tensor_parallel
from diffusers.models.attention_dispatch import attention_backend
from peft import LoraConfig
from run_scripts import TEST_FOLDERS, run_file
from tiny_models import tiny_transformer_of

from diffusers_videogpt import VideoGPTTransformerModel, attention_videogpt
from diffusers_videogpt.clips import PADDING, make_clip_layout
from diffusers_videogpt.context_parallel import check_context_parallel, share_tokens
from diffusers_videogpt.kv_cache import VideoGPTKVCache
from diffusers_videogpt.training.objective import next_clip_loss


HEADS = 4
ROWS, COLUMNS = 3, 3  # 9 patches, which no number of processes tested here but 3 divides
SAME_CLIPS, OWN_CLIPS = [[1, 2, 2]] * 2, [[2, 3], [1, 1, 3]]


# Which process has which tokens


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("conditions", [0, 3])
@pytest.mark.parametrize("streams", [{}, {"clean": slice(0)}, {"noisy": slice(0)}], ids=["both", "noisy", "clean"])
def test_shares(num_processes, conditions, streams):
    layout = make_clip_layout([1, 2, 2], (ROWS, COLUMNS), condition_lengths=conditions, **streams)
    shares = share_tokens(layout, num_processes)

    assert torch.equal(shares.order.flatten()[shares.places], torch.arange(layout.num_tokens))
    # Of every kind of token, each process has as many, padding included.
    kinds = torch.stack([layout.stream[0], layout.rank[0]])[:, shares.order]
    assert all(torch.equal(kinds[:, process], kinds[:, 0]) for process in range(num_processes))
    assert shares.order.shape[1] - layout.num_tokens / num_processes < 6 + layout.num_noisy_frames
    # The outputs are last, and of every frame.
    outputs = shares.of_outputs
    assert shares.num_outputs == layout.num_noisy_frames * -(-ROWS * COLUMNS // num_processes)
    assert outputs.order.shape == (num_processes, shares.num_outputs)
    assert torch.equal(outputs.order.flatten()[outputs.places], torch.arange(layout.num_outputs))
    assert (outputs.order >= 0).all()
    if layout.num_noisy_frames:
        frames = layout.frame[0, layout.first_output :][outputs.order].unflatten(1, (layout.num_noisy_frames, -1))
        first = layout.frame[0, layout.first_output]
        assert torch.equal(frames - first, torch.arange(layout.num_noisy_frames)[:, None].expand_as(frames))


# What is refused


def test_ring_attention_is_refused(tiny_transformer):
    with pytest.raises(NotImplementedError, match=r"no ring attention .* same mask.*\(ulysses_degree=2\)"):
        tiny_transformer.enable_parallelism(config=ContextParallelConfig(ring_degree=2))
    with pytest.raises(NotImplementedError, match=r"\(ulysses_degree=4\)"):
        config = ContextParallelConfig(ring_degree=2, ulysses_degree=2)
        tiny_transformer.enable_parallelism(config=ParallelConfig(context_parallel_config=config))


def test_ulysses_anything_is_refused(tiny_transformer):
    with pytest.raises(NotImplementedError, match="`ulysses_anything` is not needed"):
        tiny_transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, ulysses_anything=True))


def test_heads_that_are_not_divided_are_refused():
    with pytest.raises(ValueError, match=r"`ulysses_degree=5` does not divide the 12 .* one of 2, 3, 4, 6, 12\."):
        check_context_parallel(ContextParallelConfig(ulysses_degree=5), 12)
    check_context_parallel(ContextParallelConfig(ulysses_degree=12), 12)


def test_heads_of_the_model_are_checked_before_processes_are_needed(tiny_transformer):
    with pytest.raises(ValueError, match="`ulysses_degree=3` does not divide the 2 attention heads"):
        tiny_transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=3))
    with pytest.raises(RuntimeError, match="torch.distributed must be available and initialized"):
        tiny_transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))


def test_block_caches_are_refused(tiny_transformer):
    tiny_transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="FirstBlockCacheConfig keeps tokens of whole sequences"):
        tiny_transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))


def test_tensor_parallelism_is_refused_where_weights_can_not_be_shared_out(tiny_transformer):
    with pytest.raises(ValueError, match=r"`tp_degree` \(3\) must divide the number of attention heads \(2\)"):
        tiny_transformer.enable_parallelism(config=TensorParallelConfig(tp_degree=3))
    tiny_transformer.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"which are fused: call `unfuse_qkv_projections\(\)` before"):
        tiny_transformer.enable_parallelism(config=TensorParallelConfig(tp_degree=2))


def test_configuration_of_neither_kind_is_refused(tiny_transformer):
    with pytest.raises(NotImplementedError, match="pass one of them, got None"):
        tiny_transformer.enable_parallelism(config=ParallelConfig())


# What several processes compute


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_model(**config) -> VideoGPTTransformerModel:
    return tiny_transformer_of(num_attention_heads=HEADS, **config)


def conditional_inputs(with_mask: bool = True) -> dict[str, torch.Tensor]:
    inputs = {"class_labels": torch.tensor([1, 4]), "encoder_hidden_states": torch.randn(2, 4, 6, generator=seeded(3))}
    if with_mask:
        inputs["encoder_attention_mask"] = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    return inputs


def training_loss(clip_lengths, **inputs) -> Callable[[torch.nn.Module], torch.Tensor]:
    latents = torch.randn(2, 4, 5, 2 * ROWS, 2 * COLUMNS, generator=seeded(1))
    return lambda model: next_clip_loss(model, latents, clip_lengths=clip_lengths, generator=seeded(2), **inputs)


def loss_of_two_sizes(model: torch.nn.Module) -> torch.Tensor:
    """Frames of different sizes, lengths of history and numbers of conditions: all kinds of padding."""
    layout = make_clip_layout(OWN_CLIPS, [(ROWS, COLUMNS), (2, 3)], condition_lengths=(5, 3))
    assert layout.has_padding and (layout.stream == PADDING).any()
    noisy = torch.randn(2, 4, layout.num_noisy_frames, 2 * ROWS, 2 * COLUMNS, generator=seeded(1))
    clean = torch.randn(2, 4, layout.num_clean_frames, 2 * ROWS, 2 * COLUMNS, generator=seeded(2))
    alphas = torch.rand(2, layout.num_noisy_frames, generator=seeded(4))
    inputs = conditional_inputs(with_mask=False)
    error = model(noisy, alphas, clean, clip_layout=layout, return_dict=False, **inputs)[0].square()
    is_real = layout.noisy_patch_mask.repeat_interleave(2, -1).repeat_interleave(2, -2)[:, None]
    return error.where(is_real, 0).sum() / is_real.sum()


def with_lora(model: VideoGPTTransformerModel) -> None:
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "linear_out"], init_lora_weights=False))
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=seeded(index))


def with_actions(model: VideoGPTTransformerModel) -> None:
    """Zero in a new model."""
    for parameter in model.action_embed.parameters():
        torch.nn.init.normal_(parameter, generator=seeded(6))


CONDITIONS = {"num_classes": 5, "text_embed_dim": 6}
ACTIONS = {"num_actions": 3}, torch.tensor([[0, 1, 2, 3, 1], [3, 3, 0, 1, 2]])
CONTINUOUS = {"action_dim": 2}, torch.randn(2, 5, 2, generator=seeded(7))

# name: (configuration of the model, what is done to it, the loss, the least number of tokens for a sparse mask)
TRAINING_CASES = {
    "dense": ({}, None, training_loss(SAME_CLIPS), None),
    "own partitions": (CONDITIONS, None, training_loss(OWN_CLIPS, **conditional_inputs()), None),
    "tiles": (CONDITIONS, None, training_loss(OWN_CLIPS, **conditional_inputs()), 0),
    "two sizes": (CONDITIONS, None, loss_of_two_sizes, None),
    "two sizes, tiles": (CONDITIONS, None, loss_of_two_sizes, 0),
    "one layer": ({"num_layers": 1}, None, training_loss(SAME_CLIPS), None),
    "checkpointing": ({}, lambda model: model.enable_gradient_checkpointing(), training_loss(SAME_CLIPS), None),
    "fused": ({}, lambda model: model.fuse_qkv_projections(), training_loss(SAME_CLIPS), None),
    "lora": ({}, with_lora, training_loss(OWN_CLIPS), None),
    "actions": (ACTIONS[0], with_actions, training_loss(OWN_CLIPS, actions=ACTIONS[1]), None),
    "continuous actions": (CONTINUOUS[0], with_actions, training_loss(SAME_CLIPS, actions=CONTINUOUS[1]), 0),
}


def compare_training(degree: int, name: str) -> dict[str, float]:
    """The largest differences to one process of the loss and of a gradient, relative to its largest value."""
    config, prepare, loss_of, least_tokens = TRAINING_CASES[name]
    results = []
    default = attention_videogpt.MIN_SPARSE_TOKENS["cpu"]
    attention_videogpt.MIN_SPARSE_TOKENS["cpu"] = default if least_tokens is None else least_tokens
    for is_parallel in (False, True):
        model = make_model(**config).train()
        if prepare is not None:
            prepare(model)
        if is_parallel:
            model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=degree))
            wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        loss = loss_of(wrapped if is_parallel else model)
        loss.backward()
        # Projections that were fused, and what a case does not use, have none, or zeros.
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        results.append((loss.item(), gradients))
    attention_videogpt.MIN_SPARSE_TOKENS["cpu"] = default
    (expected_loss, expected), (loss, gradients) = results
    assert gradients.keys() == expected.keys()
    return {
        "loss": abs(loss - expected_loss),
        "gradients": max(
            (gradients[n] - g).abs().max().item() / max(g.abs().max().item(), 1) for n, g in expected.items()
        ),
        "num_gradients": len(gradients),
    }


ROLLOUT_CASES = {"plain": {}, "class and text": CONDITIONS}


@torch.no_grad()
def roll_out(model: VideoGPTTransformerModel, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Four clips after two frames, each guided in two steps against a pass without history, and a fifth in the pass that encodes
    the fourth; and the heads in the cache."""
    history = torch.randn(2, 4, 2, 2 * ROWS, 2 * COLUMNS, generator=seeded(5))
    cache = VideoGPTKVCache(len(model.transformer_blocks), 200, clip_tokens=60)
    model(clean_hidden_states=history, kv_cache=cache, **inputs)
    clips = []
    for clip, num_frames in enumerate([1, 2, 3, 2]):
        latents = torch.randn(2, 4, num_frames, 2 * ROWS, 2 * COLUMNS, generator=seeded(10 + clip))
        for alpha in (0.0, 0.5):
            both = model(torch.cat([latents, latents]), torch.tensor(alpha), kv_cache=cache).sample
            cond, uncond = both.chunk(2)
            latents = 0.5 * latents + 0.5 * (uncond + 1.5 * (cond - uncond))
        if clip == 2:
            cache.drop_oldest(2)
        clips.append(latents)
        if clip < 3:
            model(clean_hidden_states=latents, kv_cache=cache)
    clips.append(model(clips[1], torch.tensor(0.3), latents, kv_cache=cache).sample)
    return torch.cat(clips, dim=2), cache.layers[0].keys.shape[2]


def compare_rollout(degree: int, name: str) -> dict[str, float]:
    config = ROLLOUT_CASES[name]
    inputs = conditional_inputs(with_mask=False) if config else {}
    model = make_model(**config)
    expected, heads = roll_out(model, inputs)
    assert heads == HEADS
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=degree))
    latents, heads = roll_out(model, inputs)
    return {"latents": (latents - expected).abs().max().item(), "heads": heads}


def compare_memory(degree: int) -> float:
    """Bytes that a training step keeps for its backward pass, weights apart: this process's part of what one process keeps."""
    totals = []
    # All have the same dense mask, which this size is too small to hide.
    attention_videogpt.MIN_SPARSE_TOKENS["cpu"] = 0
    noisy, clean = (torch.randn(1, 4, n, 26, 26, generator=seeded(n)) for n in (6, 4))
    layout = make_clip_layout([2, 2, 2], (13, 13))
    for is_parallel in (False, True):
        model = make_model(num_layers=6, ffn_dim=176).train()
        if is_parallel:
            model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=degree))
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept = {}

        def keep(x, kept=kept):
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            output = model(noisy, torch.tensor(0.5), clean, clip_layout=layout).sample
        totals.append(sum(size for pointer, size in kept.items() if pointer not in weights))
        del output  # until here, no memory was used twice
    return totals[1] / totals[0]


@torch.no_grad()
def compare_block_mask(degree: int) -> float:
    """FlexAttention, without gradients: it has no backward pass on a CPU."""
    loss_of, model = training_loss(OWN_CLIPS), make_model()
    with attention_backend("flex"):
        expected = loss_of(model)
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=degree))
        return abs(loss_of(model) - expected).item()


def compare_loaded(degree: int, folder: Path) -> float:
    """A model that is loaded for several processes, as any of diffusers."""
    loss_of, model = training_loss(SAME_CLIPS), make_model()
    if dist.get_rank() == 0:
        model.save_pretrained(folder / "model")
    dist.barrier()
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=degree))
    loaded = VideoGPTTransformerModel.from_pretrained(folder / "model", parallel_config=config)
    return abs(loss_of(loaded) - loss_of(model)).item()


def compare_tensor_parallel(degree: int, folder: Path) -> dict[str, float]:
    """Loss and gradients, the cached rollout, what each process holds, and a model that is loaded a share a process."""
    config, _, loss_of, _ = TRAINING_CASES["own partitions"]
    expected = make_model(**config).train()
    model = make_model(**config).train()
    model.enable_parallelism(config=TensorParallelConfig(tp_degree=degree))
    expected_loss, loss = loss_of(expected), loss_of(model)
    expected_loss.backward()
    loss.backward()
    gradients = {n: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for n, p in model.named_parameters()}
    for name, gradient in gradients.items():
        if name.endswith("linear_in.weight"):  # of each process the gate's rows, then the values'
            gradients[name] = gradient.unflatten(0, (degree, 2, -1)).transpose(0, 1).flatten(0, 2)
    expected_gradients = {n: p.grad for n, p in expected.named_parameters()}

    inputs = conditional_inputs(with_mask=False)
    expected_latents, _ = roll_out(expected.eval(), inputs)
    latents, heads = roll_out(model.eval(), inputs)
    config = ParallelConfig(tensor_parallel_config=TensorParallelConfig(tp_degree=degree))
    if dist.get_rank() == 0:
        expected.save_pretrained(folder / "tensor")
    dist.barrier()
    loaded = VideoGPTTransformerModel.from_pretrained(folder / "tensor", parallel_config=config)
    layer = loaded.transformer_blocks[0]
    return {
        "loss": (loss - expected_loss).abs().item(),
        "gradients": max(
            (gradients[n] - g).abs().max().item() / max(g.abs().max().item(), 1)
            for n, g in expected_gradients.items()
            if g is not None
        ),
        "latents": (latents - expected_latents).abs().max().item(),
        "heads": heads,
        "loaded": (loss_of(loaded) - expected_loss).abs().item(),
        "shares": [
            weight.to_local().numel() / weight.numel()
            for weight in (layer.attn.to_q.weight, layer.ff.linear_in.weight)
        ],
        "features": (model.encode_clean(latents, [2])[0] - expected.encode_clean(latents, [2])[0]).abs().max().item(),
        "fusing": refused(model.fuse_qkv_projections),
        "again": refused(lambda: model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=degree))),
    }


def refused(act: Callable[[], None]) -> str:
    with pytest.raises((ValueError, NotImplementedError, RuntimeError)) as error:
        act()
    return str(error.value)


def in_several_processes(path: Path) -> None:
    dist.init_process_group("gloo")
    # diffusers knows tensor parallelism on accelerators alone, although nothing in it needs one.
    tensor_parallel._SUPPORTED_TP_DEVICES += ("cpu",)
    degree = dist.get_world_size()
    results = {
        "training": {name: compare_training(degree, name) for name in TRAINING_CASES},
        "rollout": {name: compare_rollout(degree, name) for name in ROLLOUT_CASES},
        "block mask": compare_block_mask(degree),
        "memory": compare_memory(degree),
        "loaded": compare_loaded(degree, path),
        "tensor": compare_tensor_parallel(degree, path),
    }
    model = make_model()
    config = ContextParallelConfig(ulysses_degree=degree)
    model.enable_parallelism(config=config)
    latents = torch.zeros(1, 4, 2, 4, 4)
    results["refused"] = {
        "again": refused(lambda: model.enable_parallelism(config=config)),
        "enable_cache": refused(lambda: model.enable_cache(FirstBlockCacheConfig(threshold=0.1))),
        "encode_clean": refused(lambda: model.encode_clean(latents, [1])),
    }
    every = [None] * degree
    dist.all_gather_object(every, results)
    if dist.get_rank() == 0:
        (path / "results.json").write_text(json.dumps(every))
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def results_of_ranks(request, tmp_path_factory) -> list[dict]:
    """What each of 2 processes found, and each of 4."""
    folder = tmp_path_factory.mktemp("context_parallel")
    run_file(__file__, folder, num_processes=request.param, path=TEST_FOLDERS)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", TRAINING_CASES)
def test_loss_and_every_gradient_are_those_of_one_process(results_of_ranks, name):
    for results in results_of_ranks:
        differences = results["training"][name]
        assert differences["loss"] < 1e-5 and differences["gradients"] < 1e-5
        assert differences["num_gradients"] > 5


@pytest.mark.parametrize("name", ROLLOUT_CASES)
def test_cached_rollout_is_that_of_one_process(results_of_ranks, name):
    for results in results_of_ranks:
        assert results["rollout"][name]["latents"] < 1e-5
        assert results["rollout"][name]["heads"] == HEADS // len(results_of_ranks)


def test_block_mask(results_of_ranks):
    assert all(results["block mask"] < 1e-5 for results in results_of_ranks)


def test_each_process_keeps_its_share_for_the_backward_pass(results_of_ranks):
    assert all(results["memory"] < 1.2 / len(results_of_ranks) for results in results_of_ranks)


def test_from_pretrained(results_of_ranks):
    assert all(results["loaded"] < 1e-5 for results in results_of_ranks)


def test_tensor_parallelism(results_of_ranks):
    num_processes = len(results_of_ranks)
    for results in results_of_ranks:
        tensor = results["tensor"]
        assert tensor["loss"] < 1e-5 and tensor["gradients"] < 1e-5
        assert tensor["latents"] < 1e-5 and tensor["loaded"] < 1e-5 and tensor["features"] < 1e-5
        assert tensor["heads"] == HEADS // num_processes
        assert tensor["shares"] == [1 / num_processes] * 2
        assert "would join what tensor parallelism has shared out" in tensor["fusing"]
        assert "was called before" in tensor["again"]


def test_what_a_parallel_model_refuses(results_of_ranks):
    for results in results_of_ranks:
        assert "was called before" in results["refused"]["again"]
        assert "in context parallelism each process has a share" in results["refused"]["enable_cache"]
        assert "no process has them" in results["refused"]["encode_clean"]


if __name__ == "__main__":
    in_several_processes(Path(sys.argv[1]))
