"""The steps of a clip at full size, without a number computed: what the processor and the device say to each other."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.guiders import ClassifierFreeGuidance
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTTransformerModel
from diffusers_videogpt.guidance_next_clip import NextClipGuidance
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


@torch.no_grad()
@pytest.mark.parametrize("way", ["joined", "compiled blocks", "compiled model", "block cache", "guided", "no cache"])
def test_new_frames_are_encoded_in_the_first_step(tiny_transformer, way):
    """One pass a step, and the same clips as where the frames need a pass of their own, or are never encoded."""

    def predict(model, cache, guider):
        """Two clips after two frames, and the clean and noisy frames of every pass."""
        passes = []
        hook = model.register_forward_pre_hook(
            lambda _module, args, kwargs: passes.append((kwargs.get("clean_hidden_states"), len(args) // 2)),
            with_kwargs=True,
        )
        history = History(max_frames=8, latents=torch.randn(1, 4, 2, 4, 6, generator=seeded(0)), kv_cache=cache)
        for number, num_frames in enumerate((2, 3)):
            timesteps, alphas = set_flow_timesteps(scheduler, 3, device="cpu")
            clip = denoise_steps(
                torch.randn(1, 4, num_frames, 4, 6, generator=seeded(1 + number)),
                history,
                timesteps=timesteps,
                alphas=alphas,
                transformer=model,
                scheduler=scheduler,
                guider=guider,
                is_interrupted=lambda: False,
            )
            history.append(clip)
        hook.remove()
        return history.latents, [(0 if clean is None else clean.shape[2], is_noisy) for clean, is_noisy in passes]

    def seeded(seed):
        return torch.Generator().manual_seed(seed)

    scheduler, unguided = NextClipFlowMatchScheduler(), NextClipGuidance(guidance_scale=1.0)
    guider = NextClipGuidance(guidance_scale=1.0 if way != "guided" else 1.0 + 1e-6)
    expected, _ = predict(tiny_transformer, None, unguided)
    cache = None if way == "no cache" else VideoGPTKVCache(2, 200)
    model = tiny_transformer
    if way == "compiled blocks":
        model.compile_repeated_blocks(backend="eager")
    elif way == "compiled model":
        model = torch.compile(model, backend="eager")
    elif way == "block cache":
        model.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
    latents, passes = predict(model, cache, guider)
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)
    apart = [(2, 0), (0, 1), (0, 1), (0, 1)]
    assert passes == {
        "joined": [(2, 1), (0, 1), (0, 1)] * 2,
        "no cache": [(2, 1), (2, 1), (2, 1), (4, 1), (4, 1), (4, 1)],
    }.get(way, apart * 2)
