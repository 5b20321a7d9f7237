"""Every form in which diffusers writes and reads weights."""

import json

import pytest
import torch
from diffusers import AutoModel

from diffusers_videogpt import VideoGPTPipeline, VideoGPTTransformerModel


@torch.no_grad()
def predict(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy, clean = (torch.randn(1, 4, n, 4, 6, generator=generator, dtype=torch.float32) for n in (2, 3))
    return model(noisy.to(model.dtype), torch.tensor(0.3), clean.to(model.dtype)).sample


@pytest.mark.parametrize("variant", [None, "bf16"])
def test_shards_and_variants(tiny_transformer, tmp_path, variant):
    tiny_transformer.save_pretrained(tmp_path, max_shard_size="100KB", variant=variant)
    suffix = f".{variant}" if variant else ""
    index = json.loads((tmp_path / f"diffusion_pytorch_model.safetensors.index{suffix}.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 1 and shards == {path.name for path in tmp_path.glob("*.safetensors")}
    loaded = AutoModel.from_pretrained(str(tmp_path), variant=variant)
    assert torch.equal(predict(loaded), predict(tiny_transformer))
    if variant:
        with pytest.raises(OSError, match="diffusion_pytorch_model.bin"):
            VideoGPTTransformerModel.from_pretrained(tmp_path)


def test_variant_of_a_pipeline(make_tiny_pipe, tmp_path):
    pipe = make_tiny_pipe().to(torch.bfloat16)
    pipe.save_pretrained(tmp_path, variant="bf16")
    with pytest.raises(ValueError, match="variant=fp16"):
        VideoGPTPipeline.from_pretrained(tmp_path, variant="fp16")
    loaded = VideoGPTPipeline.from_pretrained(tmp_path, variant="bf16", dtype=torch.bfloat16)
    loaded.transformer.to(torch.bfloat16)  # the time embedders too, as they were in `pipe`
    assert torch.equal(predict(loaded.transformer), predict(pipe.transformer))


def test_a_dtype_for_each_component(make_tiny_pipe, tmp_path):
    """A half-precision transformer beside a full-precision autoencoder, and the other way round."""
    make_tiny_pipe().save_pretrained(tmp_path)
    for dtypes in ({"transformer": torch.bfloat16, "vae": torch.float32}, {"vae": torch.bfloat16}):
        pipe = VideoGPTPipeline.from_pretrained(tmp_path, dtype=dtypes)
        assert pipe.transformer.dtype == dtypes.get("transformer", torch.float32) and pipe.vae.dtype == dtypes["vae"]
        pipe.set_progress_bar_config(disable=True)
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
        frames = pipe(image=image, num_frames=4, num_inference_steps=2, guidance_scale=2.0, output_type="pt").frames
        assert frames.shape == (1, 4, 3, 32, 32) and frames.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_come_back_with_time_in_float32(tiny_transformer, tmp_path, dtype):
    """What embeds the time is loaded in float32, in which α has all its digits; `to` casts it too."""
    tiny_transformer.to(dtype).save_pretrained(tmp_path)
    loaded = VideoGPTTransformerModel.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.dtype == dtype
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == (torch.float32 if name.startswith(("time_embed", "time_token_embed")) else dtype)
    close, exact = predict(loaded), predict(tiny_transformer.float())
    assert close.dtype == dtype and (close - exact).abs().max() < 0.05 * exact.abs().max()
    assert torch.equal(predict(loaded.to(dtype)), predict(tiny_transformer.to(dtype)))


def test_a_failed_load_leaves_pytorchs_default_dtype_as_it_was(tiny_transformer, tmp_path):
    """diffusers sets it to the weights' dtype while it makes the model."""
    tiny_transformer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_layers": -1}))
    with pytest.raises(ValueError, match="num_layers"):
        VideoGPTTransformerModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32
