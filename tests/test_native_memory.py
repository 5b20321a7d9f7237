"""What diffusers offers where memory is short: everywhere the frames are those of the plain pipeline."""

import accelerate
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from text_encoders import WIDTH, make_text_encoder, make_tokenizer

from diffusers_videogpt import (
    BUNDLED_MODEL,
    SAMPLE_VIDEO,
    NextClipFlowMatchScheduler,
    VideoGPTPipeline,
    VideoGPTTransformerModel,
)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def predict(pipe, **arguments) -> np.ndarray:
    """Two clips, the second from a history that holds the first: (1, 4, 32, 32, 3)."""
    video = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    defaults = {"num_frames": 4, "num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
    return pipe(video=video, generator=torch.Generator().manual_seed(0), **(defaults | arguments)).frames


@pytest.fixture
def expected(make_tiny_pipe):
    return predict(make_tiny_pipe())


def assert_close(frames, expected) -> None:
    np.testing.assert_allclose(frames, expected, atol=1e-4)


# Offload


@pytest.mark.parametrize("device", DEVICES)
def test_model_offload(make_tiny_pipe, expected, device):
    pipe = make_tiny_pipe()
    pipe.enable_model_cpu_offload(device=device)
    for _ in range(2):
        assert_close(predict(pipe), expected)
    with pipe.stream(num_frames=4, num_inference_steps=2, height=32, width=32) as stream:  # decodes between clips
        assert len(list(stream)) == 2
    assert pipe.transformer.device.type == pipe.vae.device.type == "cpu"


@pytest.mark.parametrize("device", DEVICES)
def test_sequential_offload(make_tiny_pipe, expected, device):
    pipe = make_tiny_pipe()
    if device == "cuda":
        pipe.enable_sequential_cpu_offload(device=device)
    else:  # its hooks; the method itself wants a device with a number
        for model in (pipe.transformer, pipe.vae):
            accelerate.cpu_offload(model, torch.device(device))
    for _ in range(2):
        assert_close(predict(pipe), expected)
    assert {parameter.device.type for parameter in pipe.transformer.parameters()} == {"meta"}


@pytest.mark.parametrize("device", DEVICES)
def test_sequential_offload_with_a_text_encoder(make_tiny_transformer, device):
    pipe = VideoGPTPipeline(
        None,
        make_tiny_transformer(text_embed_dim=WIDTH),
        NextClipFlowMatchScheduler(),
        text_encoder=make_text_encoder(),
        tokenizer=make_tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    arguments = {"prompt": "one red ball falls", "num_inference_steps": 1, "num_frames": 2, "height": 32, "width": 32}

    def predict_latents():
        return pipe(generator=torch.Generator().manual_seed(0), output_type="latent", **arguments).frames.cpu()

    expected = predict_latents()
    if device == "cuda":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        for model in (pipe.transformer, pipe.text_encoder):
            accelerate.cpu_offload(model, torch.device(device))
    torch.testing.assert_close(predict_latents(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "offload", [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}]
)
def test_group_offload(make_tiny_pipe, expected, device, offload):
    pipe = make_tiny_pipe()
    pipe.enable_group_offload(onload_device=device, use_stream=device == "cuda", **offload)
    assert_close(predict(pipe), expected)
    assert next(pipe.transformer.parameters()).device.type == "cpu"


def test_group_offload_to_disk(make_tiny_pipe, expected, tmp_path):
    pipe = make_tiny_pipe()
    pipe.transformer.enable_group_offload(
        "cpu", offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
    )
    assert len(list(tmp_path.glob("*.safetensors"))) >= 2
    assert_close(predict(pipe), expected)


@pytest.mark.parametrize("device_map", ["cpu", "balanced"])
def test_device_map_of_the_pipeline(make_tiny_pipe, expected, tmp_path, device_map):
    make_tiny_pipe().save_pretrained(tmp_path)
    pipe = VideoGPTPipeline.from_pretrained(tmp_path, device_map=device_map)
    assert_close(predict(pipe), expected)


def test_device_map_of_the_transformer(make_tiny_pipe, expected, tmp_path):
    pipe = make_tiny_pipe()
    pipe.transformer.save_pretrained(tmp_path)
    device_map = dict.fromkeys((name for name, _ in pipe.transformer.named_children()), "cpu")
    del device_map["transformer_blocks"]
    device_map |= {"transformer_blocks.0": "cpu", "transformer_blocks.1": "disk"}
    pipe.transformer = VideoGPTTransformerModel.from_pretrained(
        tmp_path, device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert pipe.transformer.transformer_blocks[1].ff.linear_in.weight.device.type == "meta"
    assert_close(predict(pipe), expected)


@pytest.mark.gpu
def test_device_map_auto_splits_the_transformer(make_tiny_pipe, expected, tmp_path):
    pipe = make_tiny_pipe()
    size = pipe.transformer.get_memory_footprint()
    pipe.transformer.save_pretrained(tmp_path)
    pipe.transformer = VideoGPTTransformerModel.from_pretrained(
        tmp_path, device_map="auto", max_memory={0: int(0.7 * size), "cpu": 2 * size}
    )
    assert set(pipe.transformer.hf_device_map.values()) == {0, "cpu"}
    pipe.vae.to("cuda")
    assert_close(predict(pipe), expected)


def test_text_encoder_goes_before_the_transformer_comes(make_tiny_transformer, tmp_path):
    """Prompts are encoded by a pipeline that has loaded nothing else."""
    transformer = make_tiny_transformer(text_embed_dim=WIDTH)
    parts = {"text_encoder": make_text_encoder(), "tokenizer": make_tokenizer()}
    VideoGPTPipeline(None, transformer, NextClipFlowMatchScheduler(), **parts).save_pretrained(tmp_path)
    texts = VideoGPTPipeline.from_pretrained(tmp_path, transformer=None)
    embeds, mask, negative_embeds, negative_mask = texts.encode_prompt("a red ball falls", "a box")
    encoded = {"prompt_embeds": embeds, "prompt_attention_mask": mask}
    encoded |= {"negative_prompt_embeds": negative_embeds, "negative_prompt_attention_mask": negative_mask}

    outputs = []
    for arguments in (
        {"pipe": VideoGPTPipeline.from_pretrained(tmp_path), "prompt": "a red ball falls", "negative_prompt": "a box"},
        {"pipe": VideoGPTPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None), **encoded},
    ):
        pipe = arguments.pop("pipe")
        pipe.set_progress_bar_config(disable=True)
        sizes = {"num_frames": 2, "frames_per_clip": 2, "height": 32, "width": 32, "num_inference_steps": 2}
        generator = torch.Generator().manual_seed(0)
        outputs.append(pipe(generator=generator, output_type="latent", **sizes, **arguments).frames)
    torch.testing.assert_close(*outputs)


# Smaller weights, smaller pieces


def test_layerwise_casting(make_tiny_pipe):
    pipe = make_tiny_pipe().to(torch.bfloat16)
    expected = predict(pipe)
    full = pipe.transformer.get_memory_footprint()
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert pipe.transformer.get_memory_footprint() < 0.85 * full  # tiny: half of it is not in the blocks
    assert np.abs(predict(pipe) - expected).mean() < 0.05


def test_vae_slicing(make_tiny_pipe):
    pipe = make_tiny_pipe()
    latents = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, calls = pipe.decode_latents(latents, "np"), []
    pipe.vae.decoder.register_forward_hook(lambda module, args, output: calls.append(args[0].shape))
    pipe.vae.enable_slicing()
    assert_close(pipe.decode_latents(latents, "np"), expected)
    assert calls == [(1, 4, 8, 8)] * 3


def test_vae_tiling(make_tiny_pipe):
    """Tiles are decoded apart and their seams blended: of a trained autoencoder the frames are nearly the same."""
    pipe = make_tiny_pipe()
    pipe.vae = AutoencoderKL.from_pretrained(BUNDLED_MODEL, subfolder="vae")
    pixels = pipe.prepare_frames(SAMPLE_VIDEO, 128, 128)[:, :3]
    latents = pipe.encode_frames(pixels, torch.Generator().manual_seed(0))
    expected, calls = pipe.decode_latents(latents, "pt"), []
    pipe.vae.decoder.register_forward_hook(lambda module, args, output: calls.append(args[0].shape))
    pipe.vae.enable_tiling()
    tiled = pipe.decode_latents(latents, "pt")
    assert len(calls) > 1 and max(shape[-1] for shape in calls) == 8  # latent pixels of a tile, of 16
    truth = (pixels + 1) / 2
    assert (tiled - truth).abs().mean() < 1.2 * (expected - truth).abs().mean() < 0.1


# What the 3.8 B model needs, counted from shapes


@pytest.fixture(scope="module")
def published_model():
    with torch.device("meta"):
        return VideoGPTTransformerModel()


def cache_bytes(frames: int, height: int, width: int) -> int:
    """bf16 keys and values of so many frames."""
    return 2 * 2 * 32 * 3072 * frames * (height * width // 256 + 2)


def test_bytes_of_nf4(published_model):
    """4 bits a weight of the linear layers and an fp32 scale for 64 of them, bf16 elsewhere: under 8 GB with 32 frames."""
    linear = sum(m.weight.numel() for m in published_model.modules() if isinstance(m, torch.nn.Linear))
    weights = linear * (0.5 + 4 / 64) + 2 * (published_model.num_parameters() - linear)
    assert 2.0e9 < weights < 2.2e9
    assert weights + cache_bytes(32, 320, 176) < 5e9


def test_bytes_of_group_offload(published_model):
    """Two blocks at once (one is computed, the next is on its way) and what lies outside blocks: under 4 GB with 32 frames."""
    block = sum(parameter.numel() for parameter in published_model.transformer_blocks[0].parameters())
    outside = published_model.num_parameters() - 32 * block
    weights = 2 * (2 * block + outside)
    assert 0.5e9 < weights < 0.6e9
    assert weights + cache_bytes(32, 320, 176) < 4e9
