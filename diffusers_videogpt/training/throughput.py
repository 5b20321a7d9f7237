"""How fast training goes: frames, tokens, waiting, and the share of the card's peak."""

import time
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from ..clips import count_pairs
from .feed import MicroBatch


# Dense bf16 peak of cards, in FLOP/s (vendors' data sheets, without sparsity), by a part of the device's name.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 5090": 210e12,
}


class Throughput:
    """Counts what a process trains on, and the time it takes.

    FLOPs are those of the matrix products of a forward and a backward pass: 6 a parameter of the blocks and token; and of
    attention, in each layer, 12 a channel and pair of tokens of which one sees the other (forward 2 for the score and 2 for
    the sum, backward twice that; in the last layer only the outputs look). What the mask hides is not counted, nor what
    gradient checkpointing computes again, nor attention in models of other tasks, which encode frames without a layout of
    clips.

    Args:
        accelerator: of the run.
        model: the network, not wrapped. A hook sees the layouts that it is called with in training.
        group_size: processes that compute a batch together.
    """

    def __init__(self, accelerator: Accelerator, model: torch.nn.Module, *, group_size: int = 1):
        self.accelerator, self.group_size = accelerator, group_size
        transformer = getattr(model, "transformer", model)  # models of some tasks hold one
        config = transformer.config
        self.patch_size = config.patch_size
        self.num_layers = config.num_layers
        self.flops_per_pair = 12 * config.num_attention_heads * config.attention_head_dim
        transformer.register_forward_pre_hook(self._count_pairs, with_kwargs=True)
        self.flops_per_token = 6 * sum(p.numel() for p in transformer.transformer_blocks.parameters())
        self.peak = None
        if accelerator.device.type == "cuda":
            name = torch.cuda.get_device_name(accelerator.device)
            self.peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
        self._restart()

    def _restart(self) -> None:
        self.began, self.waited = time.perf_counter(), 0.0
        self.frames = self.tokens = self.pairs = 0  # pairs: of all layers

    @contextmanager
    def waiting(self):
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def count(self, batch: MicroBatch) -> None:
        num_videos, _, num_frames, height, width = batch.latents.shape
        tokens_per_frame = height * width // self.patch_size**2 + 2
        num_clean = num_frames - min(lengths[-1] for lengths in batch.clip_lengths)
        self.frames += num_videos * num_frames
        self.tokens += num_videos * (num_frames + num_clean) * tokens_per_frame

    def _count_pairs(self, transformer: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        layout = kwargs.get("clip_layout")
        if transformer.training and layout is not None:
            repeats = kwargs["hidden_states"].shape[0] // layout.batch_size
            pairs = (self.num_layers - 1) * count_pairs(layout) + count_pairs(layout, first_query=layout.first_output)
            self.pairs += repeats * pairs

    @property
    def flops(self) -> int:
        """Of this process since the last reading: its share of what its group computes."""
        return (self.tokens * self.flops_per_token + self.pairs * self.flops_per_pair) // self.group_size

    def read(self) -> dict[str, float]:
        """Since the last reading, over all processes (taken as equal): frames and tokens a second, the share of the time
        that waited for data, and MFU where the card's peak is known."""
        seconds = time.perf_counter() - self.began
        groups = self.accelerator.num_processes // self.group_size
        numbers = {
            "frames_per_second": self.frames * groups / seconds,
            "tokens_per_second": self.tokens * groups / seconds,
            "data_share": self.waited / seconds,
        }
        if self.peak is not None:
            numbers["mfu"] = self.flops / seconds / self.peak
        self._restart()
        return numbers
