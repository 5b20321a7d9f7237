"""The whole guided denoising loop against the authors' numbers (`sample.*`), by every scheduler and history path."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from golden_cases import CASES, golden_latents, load_golden_model

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline


@pytest.mark.parametrize("use_kv_cache", [True, False])
@pytest.mark.parametrize("scheduler_class", [NextClipFlowMatchScheduler, FlowMatchEulerDiscreteScheduler])
@pytest.mark.parametrize("index", range(len(CASES["sample"])))
def test_guided_euler_loop(index, scheduler_class, use_kv_cache):
    case = CASES["sample"][index]
    pipe = VideoGPTPipeline(
        vae=None, transformer=load_golden_model(), scheduler=scheduler_class(shift=case["time_shift"])
    )
    clip = pipe(
        video_latents=golden_latents(f"sample.{index}.clean"),
        latents=golden_latents(f"sample.{index}.noise"),
        num_frames=case["generated"],
        frames_per_clip=case["generated"],
        num_inference_steps=case["num_inference_steps"],
        guidance_scale=case["guidance_scale"],
        use_kv_cache=use_kv_cache,
        output_type="latent",
    ).frames
    torch.testing.assert_close(clip, golden_latents(f"sample.{index}.output"), atol=1e-5, rtol=0)
