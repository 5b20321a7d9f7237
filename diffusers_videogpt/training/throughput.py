"""How fast training goes: frames, tokens, waiting, and the share of the card's peak."""

import time
from contextlib import contextmanager

import torch
from accelerate import Accelerator

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

    FLOPs are those of the matrix products of a forward and a backward pass (6 a parameter of the blocks and token);
    attention is left out, and so is what gradient checkpointing computes again, so MFU is a lower bound.
    """

    def __init__(self, accelerator: Accelerator, model: torch.nn.Module):
        self.accelerator = accelerator
        transformer = getattr(model, "transformer", model)  # models of some tasks hold one
        self.patch_size = transformer.config.patch_size
        self.flops_per_token = 6 * sum(p.numel() for p in transformer.transformer_blocks.parameters())
        self.peak = None
        if accelerator.device.type == "cuda":
            name = torch.cuda.get_device_name(accelerator.device)
            self.peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
        self._restart()

    def _restart(self) -> None:
        self.began, self.waited, self.frames, self.tokens, self.steps = time.perf_counter(), 0.0, 0, 0, 0

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

    def read(self) -> dict[str, float]:
        """Since the last reading, over all processes (taken as equal): frames and tokens a second, the share of the time
        that waited for data, and MFU where the card's peak is known."""
        seconds = time.perf_counter() - self.began
        processes = self.accelerator.num_processes
        numbers = {
            "frames_per_second": self.frames * processes / seconds,
            "tokens_per_second": self.tokens * processes / seconds,
            "data_share": self.waited / seconds,
        }
        if self.peak is not None:
            numbers["mfu"] = self.tokens * self.flops_per_token / seconds / self.peak
        self._restart()
        return numbers
