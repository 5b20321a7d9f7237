"""Quantized by diffusers' own configs: near the model in bf16, smaller, and the same after saving and loading."""

import pytest
import torch
from diffusers import BitsAndBytesConfig, TorchAoConfig
from diffusers.quantizers import PipelineQuantizationConfig

from diffusers_videogpt import (
    BUNDLED_MODEL,
    SAMPLE_VIDEO,
    NextClipFlowMatchScheduler,
    VideoGPTPipeline,
    VideoGPTTransformerModel,
)


def torchao_config(name: str) -> TorchAoConfig:
    quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    return TorchAoConfig(getattr(quantization, name)())


QUANTIZATIONS = {
    # name: (config, largest error of the prediction against bf16, relative)
    "int8 weights": (lambda: torchao_config("Int8WeightOnlyConfig"), 0.015),
    "fp8 weights": (lambda: torchao_config("Float8WeightOnlyConfig"), 0.04),
    "bitsandbytes 8 bit": (lambda: BitsAndBytesConfig(load_in_8bit=True), 0.05),
    "NF4": (
        lambda: BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        ),
        0.3,
    ),
}
WAYS = [
    pytest.param(name, marks=pytest.mark.gpu if name in ("bitsandbytes 8 bit", "NF4") else ())
    for name in QUANTIZATIONS
]


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    """Of sixteen frames of the sample video, by the bundled model's autoencoder."""
    pipe = VideoGPTPipeline.from_pretrained(BUNDLED_MODEL)
    return pipe.encode_given(video=SAMPLE_VIDEO, max_context_frames=16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def predict(latents):
    """A transformer's prediction of the sample video's last eight frames, half noise, on the device where the transformer is."""

    @torch.no_grad()
    def predict(model) -> torch.Tensor:
        clean, clip = latents.split(8, dim=2)
        noisy = (clip + torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))) / 2
        noisy, clean = (x.to(model.device, torch.bfloat16) for x in (noisy, clean))
        return model(noisy, torch.tensor(0.5, device=model.device), clean).sample.float().cpu()

    return predict


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    return ((output - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", WAYS)
def test_quantized_transformer(name, predict, tmp_path):
    make_config, tolerance = QUANTIZATIONS[name]
    arguments = {"subfolder": "transformer", "dtype": torch.bfloat16}
    model = VideoGPTTransformerModel.from_pretrained(BUNDLED_MODEL, **arguments)
    expected, full_size = predict(model), model.get_memory_footprint()
    quantized = VideoGPTTransformerModel.from_pretrained(BUNDLED_MODEL, quantization_config=make_config(), **arguments)
    output = predict(quantized)
    assert 0 < relative_error(output, expected) < tolerance

    quantized.save_pretrained(tmp_path)
    weights = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert weights < 0.6 * full_size
    loaded = VideoGPTTransformerModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(predict(loaded), output, atol=1e-6, rtol=0)


def test_quantized_pipeline(latents):
    """By diffusers' config for whole pipelines; it predicts, with a cached history, what the pipeline in bf16 does.

    By Euler steps, as other models than the bundled one take them.
    """
    config = PipelineQuantizationConfig(quant_mapping={"transformer": torchao_config("Int8WeightOnlyConfig")})
    frames = []
    for arguments in ({}, {"quantization_config": config}):
        pipe = VideoGPTPipeline.from_pretrained(BUNDLED_MODEL, dtype={"transformer": torch.bfloat16}, **arguments)
        pipe.scheduler = NextClipFlowMatchScheduler()
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        arguments = {"num_frames": 8, "num_inference_steps": 3, "output_type": "latent"}
        frames.append(pipe(video_latents=latents[:, :, :8], generator=generator, **arguments).frames)
    assert 0 < relative_error(frames[1], frames[0]) < 0.03
