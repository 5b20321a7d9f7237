"""Each name of diffusers that is not documented for users does what this package relies on."""

import logging
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import ClassifierFreeGuidance, DiffusionPipeline, FirstBlockCacheConfig
from diffusers.hooks import apply_group_offloading
from safetensors.torch import load_file, save_file

from diffusers_videogpt import VideoGPTPipeline, VideoGPTTransformerModel, diffusers_internals
from diffusers_videogpt.transformer_videogpt import VideoGPTTransformerBlock


def test_every_name_is_there():
    for name in diffusers_internals.__all__:
        assert hasattr(diffusers_internals, name)
    assert diffusers_internals.active_attention_backend().value == "native"
    metadata = diffusers_internals.TransformerBlockRegistry.get(VideoGPTTransformerBlock)
    assert isinstance(metadata, diffusers_internals.TransformerBlockMetadata)
    assert diffusers_internals.LORA_WEIGHT_NAME_SAFE == "pytorch_lora_weights.safetensors"


def test_every_name_is_used():
    package = Path(diffusers_internals.__file__).parent
    code = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "diffusers_internals.py")
    assert [name for name in diffusers_internals.__all__ if not re.search(rf"\b{name}\b", code)] == []


def test_pipeline(make_tiny_pipe):
    pipe = make_tiny_pipe()
    assert diffusers_internals.execution_device(pipe) == torch.device("cpu")
    assert not diffusers_internals.has_model_hooks(pipe)
    config = FirstBlockCacheConfig(threshold=0.1)
    pipe.transformer.enable_cache(config)
    assert diffusers_internals.block_cache_config(pipe.transformer) is config
    diffusers_internals.reset_block_caches(pipe.transformer)


def test_the_device_is_diffusers_where_something_moves_the_models(make_tiny_pipe):
    device = diffusers_internals.execution_device
    pipe = make_tiny_pipe()
    with pipe.transformer.cache_context("cond"):  # which leaves a registry of hooks behind, an empty one
        pass
    with mock.patch.object(DiffusionPipeline, "_execution_device", property(lambda self: 1 / 0)):
        assert device(pipe) == torch.device("cpu")  # nothing does: it is not asked
    meta = torch.device("meta")
    for model in (pipe.vae, pipe.transformer):
        add_hook_to_module(model, AlignDevicesHook(execution_device=meta))
    assert device(pipe) == pipe._execution_device == meta
    pipe = make_tiny_pipe()
    apply_group_offloading(pipe.transformer, onload_device=torch.device("cpu"), offload_type="leaf_level")
    with mock.patch.object(DiffusionPipeline, "_execution_device", meta):
        assert device(pipe) == meta  # it is asked
    assert device(VideoGPTPipeline(vae=pipe.vae, transformer=None, scheduler=pipe.scheduler)) == torch.device("cpu")


def test_guiders(caplog):
    logging.getLogger("diffusers").propagate = True
    with diffusers_internals.quiet_guiders():
        guider = ClassifierFreeGuidance(guidance_scale=2.0)
    assert "experimental" not in caplog.text
    guider.set_state(step=0, num_inference_steps=2, timestep=torch.tensor(1.0))
    names = [diffusers_internals.guidance_pass_name(one) for one in guider.prepare_inputs({"x": (1, 2)})]
    assert names == ["pred_cond", "pred_uncond"]
    assert diffusers_internals.is_guider_enabled(guider)
    guider.disable()
    assert not diffusers_internals.is_guider_enabled(guider)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_is_cast_as_it_would_be_loaded(tiny_transformer, tmp_path, caplog, dtype):
    tiny_transformer.save_pretrained(tmp_path)
    loaded = VideoGPTTransformerModel.from_pretrained(tmp_path, dtype=dtype)
    logging.getLogger("diffusers").propagate = True
    cast = diffusers_internals.cast_as_loaded(tiny_transformer, dtype)
    assert cast is tiny_transformer and cast.dtype == loaded.dtype == dtype and not caplog.text
    weights, expected = cast.state_dict(), loaded.state_dict()
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name
    assert weights["time_embed.linear_1.weight"].dtype == torch.float32
    assert {name: x.dtype for name, x in cast.named_buffers()} == {name: x.dtype for name, x in loaded.named_buffers()}
    cast.state_dict()["proj_out.weight"].zero_()
    assert not dict(cast.named_parameters())["proj_out.weight"].any()  # in place, of the very parameters


def lose_a_tensor(folder: Path, name: str) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path)


@pytest.mark.parametrize("pipeline", [DiffusionPipeline, VideoGPTPipeline])
def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(make_tiny_pipe, tmp_path, pipeline):
    make_tiny_pipe().save_pretrained(tmp_path)
    pipeline.from_pretrained(tmp_path, low_cpu_mem_usage=True)
    lose_a_tensor(tmp_path / "transformer", "norm.weight")
    with pytest.raises(ValueError, match=r"The weights in '.*transformer' lack norm.weight, .* copy all files"):
        pipeline.from_pretrained(tmp_path, low_cpu_mem_usage=True)
    with pytest.raises(ValueError, match="lack norm.weight"):
        VideoGPTTransformerModel.from_pretrained(tmp_path / "transformer", low_cpu_mem_usage=True)
    # The other way of loading, which fills them, diffusers refuses for every model that keeps modules in fp32.
    for load, folder in ((pipeline, tmp_path), (VideoGPTTransformerModel, tmp_path / "transformer")):
        with pytest.raises(ValueError, match="`low_cpu_mem_usage` cannot be False"):
            load.from_pretrained(folder, low_cpu_mem_usage=False)


@pytest.mark.parametrize(
    "pipeline, options",
    [(DiffusionPipeline, {}), (VideoGPTPipeline, {}), (VideoGPTPipeline, {"low_cpu_mem_usage": False})],
)
def test_an_autoencoder_that_lacks_a_tensor_is_named(make_tiny_pipe, tmp_path, pipeline, options):
    make_tiny_pipe().save_pretrained(tmp_path)
    if options:  # which the transformer is not loaded with
        options = options | {"transformer": make_tiny_pipe().transformer}
    pipeline.from_pretrained(tmp_path, **options)
    lose_a_tensor(tmp_path / "vae", "decoder.conv_out.weight")
    with pytest.raises(ValueError, match="weights of the pipeline's `vae` lack decoder.conv_out.weight"):
        pipeline.from_pretrained(tmp_path, **options)
    # One's own in its place is as good.
    pipeline.from_pretrained(tmp_path, vae=make_tiny_pipe().vae, **options)
