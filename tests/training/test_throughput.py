"""The FLOPs that the log's MFU counts, against those that PyTorch counts while it computes."""

import pytest
import torch
from accelerate import Accelerator
from tiny_models import tiny_transformer_of
from torch.utils.flop_counter import FlopCounterMode

from diffusers_videogpt import make_clip_layout
from diffusers_videogpt.training.feed import MicroBatch
from diffusers_videogpt.training.objective import next_clip_loss
from diffusers_videogpt.training.throughput import Throughput


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def train_on(throughput, model, clip_lengths) -> None:
    latents = torch.randn(len(clip_lengths), 4, sum(clip_lengths[0]), 4, 6)
    throughput.count(MicroBatch(latents, [], clip_lengths, []))
    next_clip_loss(model, latents, clip_lengths=clip_lengths).backward()


def test_attention_is_counted_from_the_pairs_of_the_mask(accelerator):
    model = tiny_transformer_of(num_layers=3).train()
    throughput = Throughput(accelerator, model)
    clip_lengths = [[1, 2, 2], [3, 2]]
    train_on(throughput, model, clip_lengths)

    mask = make_clip_layout(clip_lengths, (2, 3))
    pairs = mask.dense_mask[:, 0] & (mask.stream != 0)[:, :, None]
    num_pairs = 2 * pairs.sum() + pairs[:, mask.first_output :].sum()
    width = model.config.num_attention_heads * model.config.attention_head_dim
    assert throughput.pairs == num_pairs
    blocks = sum(p.numel() for p in model.transformer_blocks.parameters())
    assert throughput.flops == 6 * blocks * throughput.tokens + 12 * width * num_pairs


def test_flops_of_attention_without_anything_hidden_are_those_that_pytorch_counts(accelerator):
    """One clip of one frame: its patches see all. Forward and backward pass of one product of them, by PyTorch."""
    model = tiny_transformer_of(num_layers=1)
    throughput = Throughput(accelerator, model)
    heads, channels = model.config.num_attention_heads, model.config.attention_head_dim
    query, key, value = (torch.randn(1, heads, 7, channels, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        (query @ key.transpose(-1, -2)).softmax(-1).matmul(value).sum().backward()
    assert counter.get_total_flops() == throughput.flops_per_pair * 7 * 7


def test_mfu_is_of_a_process_and_leaves_validation_out(accelerator):
    model = tiny_transformer_of().train()
    throughput, of_a_group = Throughput(accelerator, model), Throughput(accelerator, model, group_size=2)
    assert "mfu" not in throughput.read()
    throughput.peak = of_a_group.peak = 1e9
    for counter in (throughput, of_a_group):
        counter.read()
    latents = torch.randn(1, 4, 3, 4, 4)
    for counter in (throughput, of_a_group):
        counter.count(MicroBatch(latents, [], [[1, 2]], []))
    next_clip_loss(model, latents, clip_lengths=[[1, 2]])
    flops = throughput.flops
    assert of_a_group.flops == flops // 2 and throughput.pairs
    with torch.no_grad():
        next_clip_loss(model.eval(), latents, clip_lengths=[[1, 2]])
    assert throughput.flops == flops
    numbers = throughput.read()
    assert numbers["mfu"] / numbers["tokens_per_second"] == pytest.approx(flops / 1e9 / (4 * 6), rel=1e-6)
    assert throughput.flops == 0
