"""A pipeline that knows its own few steps and needs no guidance is fast by itself, in whichever way it is called."""

import argparse

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchLCMScheduler, ModularPipeline

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.commands.loras import differences, follow_lora
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.commands.models import load_pipeline, look_at_model
from diffusers_videogpt.commands.options import STEPS, rollout_options, steps_of
from diffusers_videogpt.scheduling_next_clip_flow_match import mix_noise
from diffusers_videogpt.video_io import write_video


HISTORY = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def distilled(make_tiny_pipe):
    pipe = make_tiny_pipe(num_inference_steps=2, guidance_scale=1.0)
    pipe.scheduler = NextClipFlowMatchScheduler(solver="consistency")
    return pipe


def predict(pipe, **kwargs):
    arguments = {"video_latents": HISTORY, "num_frames": 6, "generator": seeded(), "output_type": "latent"}
    return pipe(**(arguments | kwargs)).frames


def by_hand(pipe, num_steps=2):
    """Clips of two frames by the formula, the whole history computed at every step."""
    generator, latents = seeded(), HISTORY
    for _ in range(3):
        clip = torch.randn(1, 4, 2, 4, 6, generator=generator)
        past = latents[:, :, -pipe.config.max_context_frames :]
        for step in range(num_steps):
            alpha = torch.tensor(step / num_steps)
            with torch.no_grad():
                end = pipe.transformer(clip, alpha, clean_hidden_states=past).sample
            clip = mix_noise(end, (step + 1) / num_steps, noise=torch.randn(end.shape, generator=generator))
        latents = torch.cat([latents, clip], dim=2)
    return latents[:, :, HISTORY.shape[2] :]


def test_two_steps_without_guidance_wherever_it_is_called(distilled, tmp_path):
    expected = by_hand(distilled)
    passes = []
    hook = distilled.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append((args or [None])[0] is not None), with_kwargs=True
    )
    torch.testing.assert_close(predict(distilled), expected, atol=1e-5, rtol=0)
    hook.remove()
    assert sum(passes) == 3 * 2 and distilled.num_timesteps == 6  # a pass a step: no second one without history

    with distilled.stream(video_latents=HISTORY, num_frames=6, generator=seeded(), output_type="latent") as stream:
        streamed = torch.cat([clip.frames for clip in stream], dim=2)
    assert torch.equal(streamed, predict(distilled))

    distilled.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(predict(loaded), predict(distilled))
    blocks = ModularPipeline.from_pretrained(str(tmp_path))
    blocks.load_components()
    made = blocks(video_latents=HISTORY, num_frames=6, generator=seeded(), output_type="latent", output="videos")
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    assert blocks.num_timesteps == 6


def test_asked_for_otherwise(distilled):
    torch.testing.assert_close(predict(distilled, num_inference_steps=4), by_hand(distilled, 4), atol=1e-5, rtol=0)
    assert not torch.allclose(predict(distilled, guidance_scale=3.0), predict(distilled))


def test_diffusers_scheduler_makes_the_same_video(distilled):
    expected = predict(distilled)
    distilled.scheduler = FlowMatchLCMScheduler.from_config(distilled.scheduler.config)
    torch.testing.assert_close(predict(distilled), expected, atol=1e-5, rtol=0)


def test_other_pipelines_keep_their_fifty_steps_and_commands_their_25(make_tiny_pipe):
    pipe = make_tiny_pipe(guidance_scale=1.0)
    pipe(num_frames=1, output_type="latent", height=16, width=16)
    assert pipe.num_timesteps == 50 and steps_of(None, pipe) == STEPS == 25 and steps_of(3, pipe) == 3
    pipe.register_to_config(num_inference_steps=2)
    assert steps_of(None, pipe) == 2


@pytest.mark.parametrize("value", [0, 2.5, True, "2"])
def test_number_of_steps_in_a_config_that_is_none(make_tiny_pipe, value):
    with pytest.raises(ValueError, match="`num_inference_steps` must be a whole number"):
        make_tiny_pipe(num_inference_steps=value)


def test_a_model_is_saved_with_a_rolling_cache(make_tiny_pipe, tmp_path):
    """In call, stream and blocks, unless they are asked for otherwise; the window of 5 slides before the third clip."""
    pipe = make_tiny_pipe(num_inference_steps=2, guidance_scale=1.0)
    anew, rolling = predict(pipe), predict(pipe, rolling_cache=True)
    assert not torch.allclose(anew, rolling)
    pipe.register_to_config(rolling_cache=True)
    pipe.save_pretrained(tmp_path)
    loaded, asked = DiffusionPipeline.from_pretrained(tmp_path), {"video_latents": HISTORY, "num_frames": 6}
    assert torch.equal(predict(loaded), rolling) and torch.equal(predict(loaded, rolling_cache=False), anew)
    with loaded.stream(**asked, generator=seeded(), output_type="latent") as stream:
        assert torch.equal(torch.cat([clip.frames for clip in stream], dim=2), rolling)
    blocks = ModularPipeline.from_pretrained(str(tmp_path))
    blocks.load_components()
    for said, expected in (({}, rolling), ({"rolling_cache": False}, anew)):
        made = blocks(**asked, **said, generator=seeded(), output_type="latent", output="videos")
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="`rolling_cache` must be true or false, got 1"):
        make_tiny_pipe(rolling_cache=1)


def test_command_line_takes_the_steps_and_guidance_of_the_model(distilled, tmp_path, monkeypatch):
    distilled.save_pretrained(tmp_path / "model")
    video = write_video(tmp_path / "video.mp4", np.zeros((4, 32, 32, 3), np.uint8), fps=8)
    steps, predict_clip = [], VideoGPTPipeline.predict_clip

    def watched(pipe, rollout, *args, **kwargs):
        steps.append((rollout.num_inference_steps, pipe.guidance_scale, pipe.scheduler.config.solver))
        return predict_clip(pipe, rollout, *args, **kwargs)

    monkeypatch.setattr(VideoGPTPipeline, "predict_clip", watched)
    words = ["predict", str(video), "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    main([*words, "--num-frames", "2"])
    main([*words, "--num-frames", "2", "--steps", "3", "--guidance-scale", "2", "--solver", "euler"])
    assert steps == [(2, 1.0, "consistency"), (3, 2.0, "euler")]


def test_a_distilled_lora_is_sampled_as_it_was_trained(make_tiny_pipe, tmp_path):
    """Unless the options say otherwise, which is told; a model that is not distilled samples by its own settings."""
    make_tiny_pipe().save_pretrained(tmp_path / "base")
    base = look_at_model(str(tmp_path / "base"))
    words = ("fps", "frames_per_clip", "height", "width", "steps", "guidance_scale", "solver")
    nothing = dict.fromkeys(words)
    known = {"num_inference_steps": 2, "guidance_scale": 1.0, "solver": "consistency", "clips": "random"}
    args = argparse.Namespace(lora=[("fast", 1.0)], **nothing)
    saved = follow_lora(args, base, trained_with=[known])
    assert differences(args, saved, trained_with=[known]) == []
    pipe = load_pipeline(saved, device="cpu")
    inputs = rollout_options(args, pipe)
    assert inputs["num_inference_steps"] == 2 and inputs["guidance_scale"] is None
    assert (pipe.config.guidance_scale, pipe.scheduler.config.solver) == (1.0, "consistency")

    args = argparse.Namespace(lora=[("fast", 1.0)], **nothing | {"steps": 5, "guidance_scale": 1.5, "solver": "euler"})
    saved = follow_lora(args, base, trained_with=[known])
    assert rollout_options(args, pipe)["num_inference_steps"] == 5
    told = differences(args, saved, trained_with=[known])
    assert [line.split("with ", 1)[1].split(":")[0] for line in told] == [
        "--steps 2, this is with 5",
        "--guidance-scale 1, this is with 1.5",
        "--solver consistency, this is with euler",
    ]
    assert follow_lora(args, base, trained_with=[]) is base
