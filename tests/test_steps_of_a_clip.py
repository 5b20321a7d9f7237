"""The steps of a clip at full size, without a number computed: what the processor and the device say to each other."""

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTTransformerModel
from diffusers_videogpt.history import History
from diffusers_videogpt.kv_cache import VideoGPTKVCache
from diffusers_videogpt.pipeline_videogpt import denoise_steps
from diffusers_videogpt.scheduling_next_clip_flow_match import set_flow_timesteps


class HostTraffic(TorchDispatchMode):
    """Counts by step what makes the processor wait for the device: numbers read, and tensors copied from one to the other."""

    def __init__(self):
        super().__init__()
        self.reads, self.copies = [0], [0]

    def next_step(self):
        self.reads.append(0)
        self.copies.append(0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.reads[-1] += 1
            return True  # a tensor on "meta" has no number to read
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = {tensor.device for tensor in (*args, result) if torch.is_tensor(tensor)}
            self.copies[-1] += len(devices) > 1
        return result


@torch.no_grad()
@pytest.mark.parametrize("is_cached", [True, False], ids=["cached", "without a cache"])
def test_a_step_waits_for_nothing(is_cached):
    with torch.device("meta"):
        transformer = VideoGPTTransformerModel().to(torch.bfloat16)
    scheduler = NextClipFlowMatchScheduler()
    timesteps, alphas = set_flow_timesteps(scheduler, 4, device="meta")
    past, noise = (torch.empty(1, 4, num_frames, 28, 40, device="meta") for num_frames in (8, 4))
    cache = VideoGPTKVCache(transformer.config.num_layers, 8 * 14 * 20 + 1000) if is_cached else None
    history = History(max_frames=8, latents=past, kv_cache=cache)
    with HostTraffic() as traffic:

        def on_step_end(timestep, latents):
            traffic.next_step()
            return latents

        result = denoise_steps(
            noise,
            history,
            timesteps=timesteps,
            alphas=alphas,
            transformer=transformer,
            scheduler=scheduler,
            guider=ClassifierFreeGuidance(guidance_scale=3.0, use_original_formulation=True),
            is_interrupted=lambda: False,
            on_step_end=on_step_end,
        )
    assert result.shape == noise.shape
    assert traffic.reads == [0, 0, 0, 0, 1]  # the last: whether the whole clip is finite
    assert traffic.copies[1:] == [0, 0, 0, 0]
