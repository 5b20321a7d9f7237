"""An autoencoder is loaded whole or not at all, whoever loads it."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_videogpt import BUNDLED_MODEL
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.data.latents import encode_moments
from diffusers_videogpt.frame_latents import decode_latents, encode_frames, load_autoencoder
from diffusers_videogpt.tasks.video_classification import load_classifier
from diffusers_videogpt.training.loading import load_vae
from diffusers_videogpt.training.settings import AutoencoderSettings


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def saved(tmp_path) -> Path:
    """A copy of the bundled pipeline."""
    return Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "model"))


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["encoder.conv_on.weight"] = tensors.pop("encoder.conv_in.weight")
    save_file(tensors, folder / WEIGHTS)


def set_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


DAMAGES = {
    "lack encoder.conv_in.weight, in whose place": lose_a_tensor,
    r"`layers_per_block` must be a whole number in 1\.\.100, got 1000000000": partial(
        set_config, layers_per_block=10**9
    ),
    "`block_out_channels` must be a whole number in 1..100000, got 'x'": partial(set_config, block_out_channels="x"),
    "a value of its config.json .* is wrong": partial(set_config, up_block_types=["UpDecoderBlock2D"] * 5),
    "holds UNet2DModel, not an autoencoder": partial(set_config, _class_name="UNet2DModel"),
    r"holds \['AutoencoderKL'\], not an autoencoder": partial(set_config, _class_name=["AutoencoderKL"]),
}


@pytest.mark.parametrize("told", DAMAGES)
def test_whoever_loads_an_autoencoder_refuses_a_damaged_one(told, saved, tmp_path):
    DAMAGES[told](saved / "vae")
    loaders = {
        "itself": lambda: load_autoencoder(saved / "vae"),
        "of a pipeline": lambda: load_autoencoder(str(saved), subfolder="vae"),
        "of a run's pipeline": lambda: load_vae(AutoencoderSettings(pretrained_model_name_or_path=str(saved))),
        "a run's own": lambda: load_vae(AutoencoderSettings(pretrained_vae_path=str(saved / "vae"))),
    }
    for loader in loaders.values():
        with pytest.raises(ValueError, match=told):
            loader()
    command = ["evaluate", "autoencoder", "--vae", str(saved), "--subfolder", "vae", "--num-videos", "1"]
    with pytest.raises(SystemExit, match=told):
        main([*command, "--num-frames", "1", "--output", str(tmp_path / "report.json")])
    assert not (tmp_path / "report.json").exists()


def test_the_autoencoder_of_a_classifier_is_whole_too(saved, monkeypatch):
    """It lies in the folder `vae` of a model whose own weights lie beside it, which diffusers would read instead."""
    lose_a_tensor(saved / "vae")
    monkeypatch.setattr("diffusers_videogpt.tasks.video_classification.VideoGPTForVideoClassification", _Loaded)
    with pytest.raises(ValueError, match="lack encoder.conv_in.weight"):
        load_classifier(saved)


class _Loaded:
    from_pretrained = staticmethod(lambda name: name)


def test_an_autoencoder_is_loaded_as_diffusers_does(saved):
    shutil.copyfile(saved / "transformer" / WEIGHTS, saved / WEIGHTS)  # weights beside the subfolder
    vae = load_autoencoder(str(saved), subfolder="vae", dtype=torch.bfloat16)
    expected = load_file(saved / "vae" / WEIGHTS)
    assert not vae.training and vae.dtype == torch.bfloat16
    assert vae.state_dict().keys() == expected.keys()
    assert all(torch.equal(x, expected[name].bfloat16()) for name, x in vae.state_dict().items())


def test_what_is_no_autoencoder(saved, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no config.json: pass the folder of a saved autoencoder, such as `vae`"
    ):
        load_autoencoder(saved)
    with pytest.raises(ValueError, match="holds VideoGPTTransformerModel, not an autoencoder"):
        load_autoencoder(saved / "transformer")
    with pytest.raises(OSError, match="nowhere' is no folder here"):
        load_autoencoder(tmp_path / "nowhere")
    (saved / "vae" / "config.json").write_text("[")
    with pytest.raises(ValueError, match="no JSON can be read here"):
        load_autoencoder(saved, subfolder="vae")


def test_the_order_in_memory_changes_the_speed_alone(monkeypatch):
    """Channels last is what convolutions get; the result is that of a picture after a picture."""
    vae = load_autoencoder(BUNDLED_MODEL, subfolder="vae")
    frames = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = frames.permute(0, 3, 1, 2).contiguous() / 127.5 - 1
    posterior = vae.encode(pixels).latent_dist
    expected = posterior.sample(torch.Generator().manual_seed(1)) * vae.config.scaling_factor
    decoded = vae.decode(expected / vae.config.scaling_factor).sample

    def watch(name):
        plain = getattr(vae, name)

        def checked(batch, *args, **kwargs):
            assert batch.is_contiguous(memory_format=torch.channels_last)
            return plain(batch, *args, **kwargs)

        monkeypatch.setattr(vae, name, checked)

    watch("encode")
    watch("decode")
    torch.testing.assert_close(encode_moments(vae, frames.numpy()), posterior.parameters, atol=1e-5, rtol=1e-5)
    latents = encode_frames(vae, pixels[None], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(latents[0].transpose(0, 1), expected, atol=1e-5, rtol=1e-5)
    again = decode_latents(vae, expected.transpose(0, 1)[None])
    torch.testing.assert_close(again[0].transpose(0, 1), decoded, atol=1e-5, rtol=1e-5)
