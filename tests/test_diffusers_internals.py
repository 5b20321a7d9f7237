"""Each name of diffusers that is not documented for users does what this package relies on."""

import logging

import torch
from diffusers import ClassifierFreeGuidance, FirstBlockCacheConfig

from diffusers_videogpt import VideoGPTTransformerModel, diffusers_internals
from diffusers_videogpt.transformer_videogpt import VideoGPTTransformerBlock


def test_every_name_is_there():
    for name in diffusers_internals.__all__:
        assert hasattr(diffusers_internals, name)
    assert diffusers_internals.active_attention_backend().value == "native"
    metadata = diffusers_internals.TransformerBlockRegistry.get(VideoGPTTransformerBlock)
    assert isinstance(metadata, diffusers_internals.TransformerBlockMetadata)
    assert diffusers_internals.LORA_WEIGHT_NAME_SAFE == "pytorch_lora_weights.safetensors"
    assert VideoGPTTransformerModel.__name__ in diffusers_internals.SINGLE_FILE_LOADABLE_CLASSES


def test_pipeline(make_tiny_pipe):
    pipe = make_tiny_pipe()
    assert diffusers_internals.execution_device(pipe) == torch.device("cpu")
    assert not diffusers_internals.has_model_hooks(pipe)
    config = FirstBlockCacheConfig(threshold=0.1)
    pipe.transformer.enable_cache(config)
    assert diffusers_internals.block_cache_config(pipe.transformer) is config
    diffusers_internals.reset_block_caches(pipe.transformer)


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
