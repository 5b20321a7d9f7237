import gc
import inspect
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from tiny_models import tiny_autoencoder_of
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline, pipeline_videogpt
from diffusers_videogpt.history import History
from diffusers_videogpt.rollout import prepare_noise
from diffusers_videogpt.video_io import VideoReadError, read_video, write_video


@pytest.fixture
def vae():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    config = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 32}
    return AutoencoderKL(latent_channels=4, scaling_factor=0.5, **config, **blocks).eval()


@pytest.fixture
def pipe(tiny_transformer, vae):
    pipe = VideoGPTPipeline(
        vae, tiny_transformer, NextClipFlowMatchScheduler(), frames_per_clip=2, max_context_frames=5, longest_side=32
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def history():
    """3 frames of latents of 32 × 48 pixels."""
    return torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def video():
    """3 frames of 48 × 32 pixels."""
    return np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def predict(pipe, **kwargs):
    """Latents predicted with few steps."""
    arguments = {"num_inference_steps": 3, "guidance_scale": 2.0, "generator": seeded(), "output_type": "latent"}
    return pipe(**(arguments | kwargs)).frames


def record_histories(monkeypatch, measure) -> list:
    """Fills with what `measure` says of the history each time that its caches were brought up to date."""
    seen, encode = [], pipeline_videogpt.encode_history

    def record(history: History, transformer, **kwargs):
        new_frames = encode(history, transformer, **kwargs)
        seen.append(measure(history))
        return new_frames

    monkeypatch.setattr(pipeline_videogpt, "encode_history", record)
    return seen


# What comes out


def test_every_input_and_output_form(pipe, video, tmp_path):
    """The same video as array, tensor, PIL images and file gives the same frames in every output form; 48 × 32 is scaled to 32 × 16."""
    images = [PIL.Image.fromarray(frame) for frame in video]
    tensor = torch.from_numpy(video).permute(0, 3, 1, 2) / 255
    expected = predict(pipe, video=video, output_type="np")
    assert expected.shape == (1, 2, 16, 32, 3)
    for same in (images, tensor, tensor[None], [images], [video]):
        np.testing.assert_array_equal(predict(pipe, video=same, output_type="np"), expected)

    tensors = predict(pipe, video=video, output_type="pt")
    np.testing.assert_allclose(tensors.permute(0, 1, 3, 4, 2).numpy(), expected, atol=1e-6)
    (pictures,) = predict(pipe, video=video, output_type="pil")
    assert [picture.size for picture in pictures] == [(32, 16)] * 2
    latents = predict(pipe, video=video)
    np.testing.assert_array_equal(pipe.decode_latents(latents, "np"), expected)

    path = write_video(tmp_path / "video.mp4", video, fps=8)
    assert predict(pipe, video=path, output_type="np").shape == expected.shape
    assert predict(pipe, video=str(path), fps=4, output_type="np").shape == expected.shape


def test_image_is_a_video_of_one_frame(pipe, video, tmp_path):
    picture = PIL.Image.fromarray(video[0])
    expected = predict(pipe, video=video[:1])
    path = tmp_path / "picture.png"
    picture.save(path)
    for image in (picture, video[0], torch.from_numpy(video[0]).permute(2, 0, 1) / 255, path, str(path)):
        torch.testing.assert_close(predict(pipe, image=image), expected)
    assert predict(pipe, image=[picture, picture]).shape[0] == 2


def test_height_and_width_are_hit_exactly(pipe, video):
    assert predict(pipe, video=video, height=48, width=64).shape == (1, 4, 2, 6, 8)


def test_from_nothing(pipe):
    alone = predict(pipe, guidance_scale=None, num_frames=2)
    assert alone.shape == (1, 4, 2, 4, 4)
    assert predict(pipe, num_frames=4, num_videos_per_prompt=3, height=16, width=48).shape == (3, 4, 4, 2, 6)


def test_default_size_is_one_of_whole_patches(pipe):
    pipe.register_to_config(longest_side=40)
    assert predict(pipe, guidance_scale=None).shape == (1, 4, 2, 4, 4)


def test_numbers_of_numpy(pipe, history):
    expected = predict(pipe, video_latents=history, num_frames=3)
    torch.testing.assert_close(predict(pipe, video_latents=history, num_frames=np.int64(3)), expected)
    partition = predict(pipe, video_latents=history, chunk_partition=np.array([2, 1]))
    torch.testing.assert_close(partition, expected)


def test_history_changes_the_prediction(pipe, history):
    assert not torch.allclose(predict(pipe, video_latents=history), predict(pipe, video_latents=-history))


def test_same_seed_same_frames_and_new_noise_for_every_clip(pipe, history):
    first = predict(pipe, video_latents=history, num_frames=4)
    torch.testing.assert_close(first, predict(pipe, video_latents=history, num_frames=4), rtol=0, atol=0)
    assert not torch.equal(first, predict(pipe, video_latents=history, num_frames=4, generator=seeded(1)))
    # A clip of the same history from the generator's second draw differs from its first.
    generator = seeded()
    draws = [predict(pipe, video_latents=history, generator=generator) for _ in range(2)]
    assert not torch.equal(*draws)


def test_each_video_of_a_batch_is_as_if_alone(pipe, history):
    batch = torch.cat([history, -history])
    together = predict(pipe, video_latents=batch, num_frames=4, generator=[seeded(1), seeded(2)])
    for index in range(2):
        alone = predict(pipe, video_latents=batch[index : index + 1], num_frames=4, generator=seeded(index + 1))
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=0)
    assert predict(pipe, video_latents=batch, num_videos_per_prompt=2).shape[0] == 4


def test_predictions_of_one_video_follow_each_other(pipe, history):
    batch = torch.cat([history, -history])
    generators = [seeded(index) for index in range(4)]
    together = predict(pipe, video_latents=batch, num_videos_per_prompt=2, generator=generators)
    for index in range(4):
        alone = predict(pipe, video_latents=batch[index // 2 : index // 2 + 1], generator=seeded(index))
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=0)


def test_several_predictions_of_one_video_each_from_its_generator(pipe, video):
    """The first encodes the video; a list that fits no number of predictions is refused."""
    together = predict(pipe, video=video, num_videos_per_prompt=2, generator=[seeded(0), seeded(1)])
    torch.testing.assert_close(together[:1], predict(pipe, video=video, generator=[seeded(0)]))
    assert not torch.allclose(together[:1], together[1:])
    for wrong in ([seeded()] * 3, [seeded()], []):
        with pytest.raises(ValueError, match=f"list of {len(wrong)}"):
            predict(pipe, video=[video, video], generator=wrong)


def test_guidance_is_a_combination_of_two_passes(pipe, history):
    """At one step from pure noise, guided x̂ = alone + c (with history − alone)."""
    noise = torch.randn(1, 4, 2, 4, 6, generator=seeded(3))
    one_step = {"latents": noise, "num_inference_steps": 1}
    with_history = predict(pipe, video_latents=history, guidance_scale=1.0, **one_step)
    alone = predict(pipe, guidance_scale=None, **one_step)
    guided = predict(pipe, video_latents=history, guidance_scale=2.5, **one_step)
    torch.testing.assert_close(guided, alone + 2.5 * (with_history - alone), atol=1e-4, rtol=0)


def test_unconditional_pass_is_only_the_clip(pipe, history):
    """And one pass with the other, where the history is cached."""
    shapes = []
    hook = pipe.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda module, args: shapes.append(args[0].shape[:2])
    )
    predict(pipe, video_latents=history, num_inference_steps=2)
    clip, past = 2 * (2 * 3 + 2), 3 * (2 * 3 + 2)
    assert shapes == [(1, past), (2, clip), (2, clip)]
    shapes.clear()
    predict(pipe, video_latents=history, num_inference_steps=2, use_kv_cache=False)
    assert shapes == [(1, past + clip), (1, clip)] * 2
    hook.remove()


# Clips, history and its window


@pytest.mark.parametrize("frames_per_clip, num_frames", [(2, 8), (3, 7), (1, 4)])
def test_cached_and_uncached_rollouts_agree_past_the_window(pipe, history, frames_per_clip, num_frames):
    arguments = {"video_latents": history, "num_frames": num_frames, "frames_per_clip": frames_per_clip}
    cached = predict(pipe, **arguments)
    assert history.shape[2] + num_frames > pipe.config.max_context_frames
    torch.testing.assert_close(cached, predict(pipe, use_kv_cache=False, **arguments), atol=1e-5, rtol=0)


def test_rollout_is_clip_after_clip_of_latents(pipe, history):
    """Four clips at once are the same as four calls, each given the latents that came out before, never decoded."""
    noise = torch.randn(1, 4, 8, 4, 6, generator=seeded(5))
    at_once = predict(pipe, video_latents=history, latents=noise, num_frames=8)
    latents = history
    for first in range(0, 8, 2):
        clip = predict(pipe, video_latents=latents[:, :, -5:], latents=noise[:, :, first : first + 2])
        latents = torch.cat([latents, clip], dim=2)
    torch.testing.assert_close(at_once, latents[:, :, 3:], atol=1e-5, rtol=0)


def test_chunk_partition(pipe, history):
    noise = torch.randn(1, 4, 4, 4, 6, generator=seeded(5))
    uneven = predict(pipe, video_latents=history, latents=noise, chunk_partition=[1, 3])
    assert uneven.shape[2] == 4
    assert not torch.allclose(uneven, predict(pipe, video_latents=history, latents=noise, num_frames=4))
    torch.testing.assert_close(
        uneven[:, :, :1], predict(pipe, video_latents=history, latents=noise[:, :, :1], num_frames=1)
    )
    with pytest.raises(ValueError, match="sum to `num_frames`=5"):
        predict(pipe, video_latents=history, chunk_partition=[1, 3], num_frames=5)
    with pytest.raises(ValueError, match="not both"):
        predict(pipe, video_latents=history, chunk_partition=[1, 3], frames_per_clip=2)


def test_history_longer_than_the_window_drops_the_oldest_and_says_so(pipe, caplog):
    latents = torch.randn(1, 4, 9, 4, 6, generator=seeded())
    logging.getLogger("diffusers_videogpt").propagate = True
    with caplog.at_level(logging.WARNING):
        result = predict(pipe, video_latents=latents)
    assert "more frames than the window of 5" in caplog.text and "older ones are dropped" in caplog.text
    torch.testing.assert_close(result, predict(pipe, video_latents=latents[:, :, -5:]))
    wider = predict(pipe, video_latents=latents, max_context_frames=9)
    assert not torch.allclose(result, wider)


def test_of_a_long_file_only_the_last_frames_are_held(pipe, tmp_path, monkeypatch, caplog):
    film = np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), dtype=np.uint8)
    path = write_video(tmp_path / "film.mp4", film, fps=8, crf=1)
    held = []

    def read(*args, **kwargs):
        clip = read_video(*args, **kwargs)
        held.append(len(clip.frames))
        return clip

    monkeypatch.setattr("diffusers_videogpt.frame_latents.read_video", read)
    logging.getLogger("diffusers_videogpt").propagate = True
    with caplog.at_level(logging.WARNING):
        result = predict(pipe, video=path)
    assert held == [6] and "more frames than the window of 5" in caplog.text  # one more tells that there are more
    torch.testing.assert_close(result, predict(pipe, video=read_video(path).frames[-5:]))


def test_guidance_on_an_interval(pipe, history):
    """Of 4 steps, the second and third are guided: the twin changes the scale by hand."""
    arguments = {"video_latents": history, "num_inference_steps": 4, "guidance_scale": 2.0}
    output = predict(pipe, guidance_interval=(0.25, 0.75), **arguments)

    def change_scale(pipe, step, timestep, tensors):
        pipe._guidance_scale = 2.0 if step in (0, 1) else 1.0  # of the step after this one
        return tensors

    seen = []
    pipe.transformer.register_forward_hook(lambda *_: seen.append(pipe._guidance_scale))
    arguments["guidance_scale"] = 1.0
    torch.testing.assert_close(predict(pipe, callback_on_step_end=change_scale, **arguments), output)
    assert seen == [1.0, 2.0, 2.0, 1.0]  # one pass a step, the first with the history
    assert not torch.allclose(output, predict(pipe, **arguments))


@pytest.mark.parametrize("interval", [(0.5, 0.5), (-0.1, 1), (0, 1.5)])
def test_bad_guidance_interval(pipe, history, interval):
    with pytest.raises(ValueError, match="guidance_interval"):
        predict(pipe, video_latents=history, guidance_interval=interval)


def test_noise_on_the_history(pipe, history):
    clean = predict(pipe, video_latents=history, num_frames=4)
    noisy = predict(pipe, video_latents=history, num_frames=4, history_retention=0.8)
    torch.testing.assert_close(clean[:, :, :2], noisy[:, :, :2])
    assert not torch.allclose(clean[:, :, 2:], noisy[:, :, 2:])


def test_rolling_cache(pipe, history):
    """The same until the window is full; then nearly the same, and without encoding frames again."""
    encoded = []

    def count(_module, _args, inputs):
        encoded.append(0 if inputs.get("clean_hidden_states") is None else inputs["clean_hidden_states"].shape[2])

    pipe.transformer.register_forward_pre_hook(count, with_kwargs=True)
    outputs = {}
    for rolling, num_encoded in ((False, 3 + 2 + 5 + 5 + 5), (True, 3 + 2 + 2 + 2 + 2)):
        encoded.clear()
        outputs[rolling] = predict(pipe, video_latents=history, num_frames=10, rolling_cache=rolling)
        assert sum(encoded) == num_encoded
    torch.testing.assert_close(outputs[True][:, :, :4], outputs[False][:, :, :4])  # the window of 5 fills with clip 2
    assert not torch.allclose(outputs[True], outputs[False])
    with pipe.stream(video_latents=history, num_frames=10, num_inference_steps=3, guidance_scale=2.0, rolling_cache=True,
                     generator=seeded(), output_type="latent") as stream:  # fmt: skip
        clips = [clip.frames for clip in stream]
    torch.testing.assert_close(torch.cat(clips, dim=2), outputs[True])


def test_rolling_cache_is_filled_anew_before_its_positions_are_far(pipe, history, monkeypatch):
    """Filled anew for every clip it is the window computed anew; else positions stay within the bound and one window."""
    arguments = {"video_latents": history, "num_frames": 20}
    expected = predict(pipe, **arguments)
    monkeypatch.setattr("diffusers_videogpt.history.MAX_PAST_FRAMES", 0)
    torch.testing.assert_close(predict(pipe, rolling_cache=True, **arguments), expected)

    monkeypatch.setattr("diffusers_videogpt.history.MAX_PAST_FRAMES", 8)
    positions = record_histories(monkeypatch, lambda history: history.kv_cache.next_frame)
    predict(pipe, rolling_cache=True, **arguments)
    assert positions[::3] == [3, 5, 7, 9, 5, 7, 9, 5, 7, 9]  # of each clip's first step


def test_cache_memory_does_not_grow_with_the_video(pipe, history, monkeypatch):
    sizes = record_histories(monkeypatch, lambda history: sum(x.keys.numel() for x in history.kv_cache.layers))
    predict(pipe, video_latents=history, num_frames=12, num_inference_steps=1)
    assert len(sizes) == 6 and len(set(sizes)) == 1


@pytest.mark.parametrize("use_kv_cache", [True, False])
def test_no_step_waits_for_the_device(pipe, history, use_kv_cache):
    class Reads(TorchDispatchMode):
        """Counts what would make the host wait: values of tensors, and shapes that depend on values."""

        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    counts = []
    for num_inference_steps in (2, 5):
        with Reads() as reads:
            predict(pipe, video_latents=history, num_inference_steps=num_inference_steps, use_kv_cache=use_kv_cache)
        counts.append(reads.count)
    assert counts[0] == counts[1]


def test_compiled_blocks_are_few_graphs(pipe, history):
    arguments = {"video_latents": history[:, :, :2], "num_frames": 12, "num_inference_steps": 4}
    expected = predict(pipe, **arguments)
    counter = CompileCounter()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=counter)
    torch.testing.assert_close(predict(pipe, **arguments), expected, atol=1e-5, rtol=0)
    # A block and the last block; once more each when the history's length turns out to vary.
    assert counter.frame_count == 4
    predict(pipe, video_latents=history[:, :, :1], num_frames=8, generator=seeded(1))
    assert counter.frame_count == 4


# Schedulers


def test_diffusers_euler_agrees(pipe, history):
    ours = predict(pipe, video_latents=history, num_frames=4)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    torch.testing.assert_close(predict(pipe, video_latents=history, num_frames=4), ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scheduler_class", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
def test_multistep_schedulers_come_near_the_exact_solution(pipe, history, scheduler_class):
    noise = torch.randn(1, 4, 2, 4, 6, generator=seeded(5))
    arguments = {"video_latents": history, "latents": noise, "guidance_scale": 1.0}
    exact = predict(pipe, num_inference_steps=400, **arguments)
    euler_error = (predict(pipe, num_inference_steps=30, **arguments) - exact).abs().mean()
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    error = (predict(pipe, num_inference_steps=30, **arguments) - exact).abs().mean()
    assert error < euler_error


def test_heun_comes_nearer_than_euler(pipe, history):
    noise = torch.randn(1, 4, 2, 4, 6, generator=seeded(5))
    arguments = {"video_latents": history, "latents": noise}
    exact = predict(pipe, num_inference_steps=400, **arguments)
    euler_error = (predict(pipe, num_inference_steps=20, **arguments) - exact).abs().mean()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    error = (predict(pipe, num_inference_steps=20, **arguments) - exact).abs().mean()
    assert pipe.num_timesteps == 39 and error < 0.8 * euler_error


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchLCMScheduler(),
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", algorithm_type="sde-dpmsolver++"
        ),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_noise_of_the_steps_comes_from_the_generator(pipe, history, scheduler):
    pipe.scheduler = scheduler
    noise = torch.randn(1, 4, 2, 4, 6, generator=seeded(2))
    first, again, other = (predict(pipe, video_latents=history, latents=noise, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    with pipe.stream(video_latents=history, num_frames=2, num_inference_steps=3, guidance_scale=2.0, generator=seeded(),
                     output_type="latent") as stream:  # fmt: skip
        assert torch.equal(next(stream).frames, predict(pipe, video_latents=history))


def test_steps_of_two_calls_each_are_counted(pipe, history):
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    steps = []
    predict(pipe, video_latents=history, callback_on_step_end=lambda pipe, step, *_: steps.append(step))
    assert len(steps) == pipe.num_timesteps == 5


def test_scheduler_that_is_not_for_flow_matching(pipe, history):
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="DDIMScheduler"):
        predict(pipe, video_latents=history)


# Callbacks, saving


def test_callback_counts_all_steps_and_may_change_the_latents(pipe, history):
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 5 else tensors

    result = predict(pipe, video_latents=history, num_frames=4, callback_on_step_end=callback)
    assert steps == list(range(6)) and pipe.num_timesteps == 6
    assert result[:, :, :2].any() and not result[:, :, 2:].any()


def test_callback_that_returns_nothing_changes_nothing(pipe, history):
    expected = predict(pipe, video_latents=history)
    assert torch.equal(predict(pipe, video_latents=history, callback_on_step_end=lambda *_: None), expected)


def test_interrupt_ends_the_call(pipe, history):
    def callback(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return tensors

    assert predict(pipe, video_latents=history, num_frames=8, callback_on_step_end=callback).shape[2] == 2
    assert predict(pipe, video_latents=history, num_frames=8).shape[2] == 8


def test_components_are_not_changed_by_a_call(pipe, video):
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    config = json.dumps(dict(pipe.scheduler.config), default=str)
    predict(pipe, video=video)
    assert all(torch.equal(before[name], value) for name, value in pipe.transformer.state_dict().items())
    assert json.dumps(dict(pipe.scheduler.config), default=str) == config and not pipe.transformer.training


def test_save_and_load(pipe, history, tmp_path):
    expected = predict(pipe, video_latents=history)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers_videogpt", "VideoGPTTransformerModel"]
    assert index["scheduler"] == ["diffusers_videogpt", "NextClipFlowMatchScheduler"]
    assert index["frames_per_clip"] == 2 and index["max_context_frames"] == 5
    loaded = VideoGPTPipeline.from_pretrained(tmp_path)
    torch.testing.assert_close(predict(loaded, video_latents=history), expected)


def test_tiny_autoencoder_fits_too(pipe, video):
    pipe = VideoGPTPipeline(
        tiny_autoencoder_of(), pipe.transformer, pipe.scheduler, frames_per_clip=2, longest_side=32
    )
    assert predict(pipe, video=video, output_type="np").shape == (1, 2, 16, 32, 3)


def test_bfloat16(pipe, video):
    exact = predict(pipe, video=video)
    pipe.to(torch.bfloat16)
    torch.testing.assert_close(predict(pipe, video=video), exact, atol=0.1, rtol=0.1)  # the noise of its posterior too


def test_noise_is_in_fp32_whatever_the_model_and_the_given_noise_are_in(pipe):
    noise = torch.randn(1, 4, 2, 4, 6, generator=seeded())
    pipe.to(torch.bfloat16)
    place = {"shape": noise.shape, "device": noise.device}
    assert torch.equal(prepare_noise(generator=seeded(), **place), noise)
    given = prepare_noise(latents=noise.bfloat16(), **place)
    assert given.dtype == torch.float32 and torch.equal(given, noise.bfloat16().float())


# Streaming


def test_stream_is_the_call(pipe, history):
    arguments = {"video_latents": history, "num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "latent"}
    expected = pipe(num_frames=7, generator=seeded(), **arguments).frames
    with pipe.stream(num_frames=7, generator=seeded(), **arguments) as stream:
        clips = [clip.frames for clip in stream]
    assert [clip.shape[2] for clip in clips] == [2, 2, 2, 1]
    torch.testing.assert_close(torch.cat(clips, dim=2), expected, atol=1e-5, rtol=0)


def test_stream_is_the_call_in_all_that_is_asked(pipe, video, tmp_path):
    path = write_video(tmp_path / "video.mp4", video, fps=8)
    arguments = {"num_frames": 6, "fps": 4, "max_context_frames": 3, "guidance_interval": (0.0, 0.5)}
    arguments |= {"num_inference_steps": 3, "guidance_scale": 2.0, "history_retention": 0.8, "output_type": "latent"}

    def streamed(**changed):
        with pipe.stream(video=path, generator=seeded(), **(arguments | changed)) as stream:
            return torch.cat([clip.frames for clip in stream], dim=2)

    expected = pipe(video=path, generator=seeded(), **arguments).frames
    torch.testing.assert_close(streamed(), expected, atol=1e-5, rtol=0)
    for changed in ({"fps": None}, {"guidance_interval": (0.0, 1.0)}, {"history_retention": 1.0}):
        assert not torch.allclose(streamed(**changed), expected)


def test_stream_with_a_generator_a_video(pipe, video):
    arguments = {"video": [video, video], "num_frames": 6, "num_inference_steps": 2, "output_type": "latent"}
    expected = pipe(generator=[seeded(1), seeded(2)], **arguments).frames
    with pipe.stream(generator=[seeded(1), seeded(2)], **arguments) as stream:
        torch.testing.assert_close(torch.cat([clip.frames for clip in stream], dim=2), expected)


def test_stream_of_several_videos_observes_one_for_all_or_as_many(pipe, video):
    arguments = {"video": [video, video], "num_frames": 6, "num_inference_steps": 2, "output_type": "latent"}

    def rollout(seen=None):
        with pipe.stream(generator=seeded(), **arguments) as stream:
            clips = [next(stream).frames]
            if seen is not None and len(seen) == 3:
                with pytest.raises(ValueError, match="3 videos observed, 2 are predicted"):
                    stream.observe(seen)
            elif seen is not None:
                stream.observe(seen)
            return torch.cat(clips + [clip.frames for clip in stream], dim=2)

    assert torch.equal(rollout([video] * 3), rollout())  # refused, it changes nothing
    pipe.vae = tiny_autoencoder_of()  # no random posterior: the same frames are the same latents
    torch.testing.assert_close(rollout([video]), rollout([video, video]))
    assert not torch.allclose(rollout([video]), rollout())


def test_stream_without_end_can_be_closed(pipe, history):
    with pipe.stream(video_latents=history, num_inference_steps=2, generator=seeded()) as stream:
        lengths = [len(next(stream).frames[0]) for _ in range(5)]
    assert lengths == [2] * 5
    with pytest.raises(StopIteration):
        next(stream)


def test_stream_takes_real_frames(pipe, video):
    """After observing, the next clip is what a call predicts from the given and the observed frames."""
    seen = np.random.default_rng(1).integers(0, 256, (2, 16, 32, 3), dtype=np.uint8)
    arguments = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "latent"}
    pipe.vae = tiny_autoencoder_of()  # no random posterior: the same frames are the same latents
    with pipe.stream(video=video, generator=seeded(), **arguments) as stream:
        first = next(stream).frames
        stream.observe(seen)
        second = next(stream).frames

    generator = seeded()
    given = pipe.encode_given(video=video)
    torch.testing.assert_close(predict(pipe, video_latents=given, generator=generator, **arguments), first)
    observed = torch.cat([given, pipe.encode_given(video=seen)], dim=2)
    expected = predict(pipe, video_latents=observed, generator=generator, **arguments)
    torch.testing.assert_close(second, expected, atol=1e-5, rtol=0)


def test_stream_raises_what_went_wrong_in_the_worker(pipe, history):
    pipe.transformer.proj_out.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"), pipe.stream(video_latents=history, num_inference_steps=1) as stream:
        next(stream)


# Bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"video_latents": torch.zeros(1, 4, 1, 4, 4), "image": PIL.Image.new("RGB", (32, 32))}, "only one of"),
        ({"output_type": "gif"}, "pil, np, pt, latent, got 'gif'"),
        ({"height": 40, "width": 32}, "`height` must be divisible by 16, got 40: the nearest are 32 and 48"),
        ({"video": np.zeros((1, 32, 32, 3), np.uint8), "height": 32}, "both `height` and `width`"),
        ({"guidance_scale": 3.0}, "guides by history"),
        ({"num_frames": 0}, "at least 1"),
        ({"frames_per_clip": 0}, "at least 1"),
        ({"max_context_frames": 0}, "`max_context_frames` must be at least 1"),
        ({"history_retention": 1.5}, "share in"),
        ({"video_latents": torch.zeros(1, 3, 2, 4, 4)}, r"\(batch, 4, frames, height, width\)"),
        ({"video_latents": torch.full((1, 4, 2, 4, 4), float("nan"))}, "`video_latents` has NaN"),
        ({"latents": torch.zeros(1, 4, 3, 4, 4), "guidance_scale": None}, "all 2 predicted frames, got 3"),
        ({"latents": torch.zeros(1, 4, 2, 4, 4), "video_latents": torch.zeros(1, 4, 2, 4, 6)}, "must agree"),
        ({"video_latents": torch.zeros(1, 4, 2, 4, 4), "height": 64, "width": 64}, "frames of 32 × 32"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callback_on_step_end_tensor_inputs"),
        ({"video": []}, "no frames"),
        ({"video": np.full((2, 32, 32, 3), np.nan, np.float32)}, "NaN"),
        ({"video": [np.zeros((2, 32, 32, 3), np.uint8), np.zeros((3, 32, 32, 3), np.uint8)]}, "one batch must agree"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 2.0}, "`num_inference_steps` is 2.0"),
        ({"num_frames": 4.0}, "`num_frames` must be a whole number, got 4.0"),
        ({"num_frames": "4"}, "`num_frames` must be a whole number, got '4'"),
        ({"frames_per_clip": 2.0}, "`frames_per_clip` must be a whole number, got 2.0"),
        (
            {"num_frames": 10**9},
            r"`num_frames` asks for 1000000000 frames, and .* at most 1000000, .*`pipe.stream\(\)`",
        ),
        ({"frames_per_clip": 10**9}, "`frames_per_clip` asks for 1000000000 frames"),
        ({"chunk_partition": [1, 10**9]}, "`chunk_partition` asks for 1000000001 frames"),
        ({"chunk_partition": [1.0, 1]}, "`chunk_partition` must be a whole number, got 1.0"),
        ({"chunk_partition": 5}, "`chunk_partition` must be a list of the frames of each clip, got 5"),
        ({"chunk_partition": "22"}, "`chunk_partition` must be a list of the frames of each clip, got '22'"),
        ({"class_labels": 1.5}, "`class_labels` must be numbers or names of classes, one or a list, got 1.5"),
        ({"prompt": 5}, "`prompt` must be a text or a list of at least one, got 5"),
        ({"prompt_embeds": 5}, "`prompt_embeds` must be a `torch.Tensor`, got int"),
        ({"video_latents": np.zeros((1, 4, 2, 4, 4))}, "`video_latents` must be a `torch.Tensor`, got ndarray"),
        ({"latents": [0.0]}, "`latents` must be a `torch.Tensor`, got list"),
        (
            {"attention_kwargs": {"scale": float("nan")}},
            "`scale` of `attention_kwargs` must be a finite number, got nan",
        ),
        (
            {"num_inference_steps": 10**12},
            "`num_inference_steps` is 1000000000000, but must be at least 1, at most 1000000",
        ),
        ({"max_context_frames": 3.5}, "`max_context_frames` must be a whole number, got 3.5"),
        ({"num_videos_per_prompt": 1.5}, "`num_videos_per_prompt` must be a whole number, got 1.5"),
        ({"height": 32.0, "width": 32}, "`height` must be a whole number, got 32.0"),
        ({"fps": float("nan"), "video": np.zeros((1, 32, 32, 3), np.uint8)}, "`fps` must be a finite number above 0"),
        ({"history_retention": float("nan")}, "share in"),
        ({"generator": [seeded(), seeded()]}, "`generator` is a list of 2 for 1 predicted videos"),
        ({"generator": []}, "`generator` is a list of 0 for 1 predicted videos"),
        ({"generator": [seeded()], "num_videos_per_prompt": 2}, "`generator` is a list of 1 for 2 predicted videos"),
        ({"generator": [0]}, "`generator` must be a `torch.Generator`, or a list"),
        ({"generator": 0}, "`generator` must be a `torch.Generator`, or a list"),
        ({"num_videos_per_prompt": 0}, "`num_videos_per_prompt` must be at least 1, got 0"),
        (
            {"video": np.zeros((2, 32, 48, 3), np.uint8), "latents": torch.zeros(1, 4, 2, 4, 4)},
            "frames of 16 × 32, not of 32 × 32",
        ),
    ],
)
def test_bad_arguments(pipe, arguments, message):
    defaults = {"guidance_scale": None, "num_inference_steps": 1}
    pipe.transformer.register_forward_hook(lambda *_: pytest.fail("computed"))
    with pytest.raises(ValueError, match=message):
        predict(pipe, **(defaults | arguments))


def test_a_stream_says_what_it_lacks_of_a_call():
    call, stream = (
        inspect.signature(method).parameters for method in (VideoGPTPipeline.__call__, VideoGPTPipeline.stream)
    )
    said = re.search(r"It lacks (.*?)\n\n", inspect.getdoc(VideoGPTPipeline.stream), re.DOTALL)[1]
    assert set(re.findall(r"`(\w+)`", said)) == call.keys() - stream.keys() and not stream.keys() - call.keys()
    assert all(call[name].default == stream[name].default for name in stream)


def test_paths_that_are_no_videos(pipe, tmp_path):
    with pytest.raises(VideoReadError, match="no such file"):
        predict(pipe, video=tmp_path / "missing.mp4")
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(VideoReadError, match="text.mp4"):
        predict(pipe, video=text)


def test_pipeline_without_vae(pipe, video, history):
    pipe = VideoGPTPipeline(None, pipe.transformer, pipe.scheduler, frames_per_clip=2)
    assert predict(pipe, video_latents=history).shape == (1, 4, 2, 4, 6)
    for arguments in ({"video": video}, {"video_latents": history, "output_type": "pil"}):
        with pytest.raises(ValueError, match="has no VAE"):
            predict(pipe, **arguments)


def test_a_vae_of_other_channels_is_refused_before_anything_is_computed(pipe, video, monkeypatch):
    other = AutoencoderKL(latent_channels=8, block_out_channels=(8,), norm_num_groups=4)
    refused = "The VAE's latents have 8 channels, the transformer takes 4"
    with pytest.raises(ValueError, match=refused):
        VideoGPTPipeline(other, pipe.transformer, pipe.scheduler)
    pipe.vae = other  # later, past the constructor
    for part, work in ((other, "encode"), (pipe.transformer, "forward")):
        monkeypatch.setattr(part, work, lambda *_, **__: pytest.fail("computed"))
    for given in ({"video": video}, {"height": 16, "width": 16}):
        with pytest.raises(ValueError, match=refused):
            predict(pipe, num_frames=2, output_type="np", **given)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_vae_that_overflows_is_reported(pipe, video, part):
    getattr(pipe.vae, part).conv_out.bias.data.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"The VAE in torch.float32 gives NaN or infinite .* `pipe.vae.float\(\)`"):
        predict(pipe, video=video, output_type="pil")


def test_nan_weights_are_reported(pipe, history):
    pipe.transformer.proj_out.bias.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="predicted clip has NaN"):
        predict(pipe, video_latents=history)


# One call at a time


def test_a_second_call_is_told_that_the_pipeline_is_busy(pipe, history):
    """From another thread, from a callback, while a stream is open; afterwards it is free, also after an error."""
    expected, errors = predict(pipe, video_latents=history), []

    def from_a_callback(*_):
        for start in (predict, lambda pipe, **arguments: pipe.stream(**arguments)):
            with ThreadPoolExecutor() as threads, pytest.raises(RuntimeError, match="busy") as error:
                threads.submit(start, pipe, video_latents=history).result()
            errors.append(error)

    assert torch.equal(predict(pipe, video_latents=history, callback_on_step_end=from_a_callback), expected)
    assert len(errors) == 2 * 3
    with pipe.stream(video_latents=history, num_inference_steps=1) as stream:
        for start in (pipe, pipe.stream):
            with pytest.raises(RuntimeError, match="busy"):
                start(video_latents=history)
        assert len(next(stream).frames[0]) == 2
    with pytest.raises(ValueError, match="num_inference_steps"):
        pipe.stream(video_latents=history, num_inference_steps=0)
    with pytest.raises(ValueError, match="num_inference_steps"):
        predict(pipe, num_inference_steps=0)
    assert torch.equal(predict(pipe, video_latents=history), expected)


def test_a_stream_that_nobody_holds_frees_the_pipeline(pipe, history):
    expected = predict(pipe, video_latents=history)
    for _ in pipe.stream(video_latents=history, num_inference_steps=1):
        break
    gc.collect()
    assert torch.equal(predict(pipe, video_latents=history), expected)
