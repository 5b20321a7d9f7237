"""A saved model as commands see it: its settings from JSON files alone, and damage told in one line."""

import gc
import inspect
import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from diffusers_videogpt import BUNDLED_MODEL, VideoGPTPipeline
from diffusers_videogpt.commands import models
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.extras import importing_libraries
from diffusers_videogpt.saved_models import LORA_WEIGHTS
from diffusers_videogpt.video_io import read_video


def test_settings_are_those_of_the_pipeline(make_tiny_pipe, tmp_path):
    make_tiny_pipe(longest_side=48).save_pretrained(tmp_path / "tiny")
    for name in (BUNDLED_MODEL, str(tmp_path / "tiny")):
        saved, pipe = models.look_at_model(name), VideoGPTPipeline.from_pretrained(name)
        assert saved.size_multiple == pipe.vae_scale_factor * pipe.transformer.config.patch_size
        assert {key: saved.number(key) for key in models.DEFAULTS} == {
            key: pipe.config[key] for key in models.DEFAULTS
        }
        assert saved.trained_on == pipe.config.trained_on
    parameters = inspect.signature(VideoGPTPipeline.__init__).parameters
    assert {key: parameters[key].default for key in models.DEFAULTS} == models.DEFAULTS
    assert LORA_WEIGHTS == LORA_WEIGHT_NAME_SAFE


@pytest.fixture
def picture(tmp_path):
    PIL.Image.new("RGB", (64, 64), "teal").save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


def test_a_strangers_video_is_told_what_the_model_knows(make_tiny_pipe, tmp_path, picture, capsys):
    common = ["--num-frames", "1", "--steps", "1", "--output", str(tmp_path / "out")]
    main(["predict", picture, *common])
    out = capsys.readouterr().out
    assert out.count("note: this model was trained on simulated balls") == 1 and "--model" in out and "--lora" in out
    make_tiny_pipe().save_pretrained(tmp_path / "tiny")  # does not say what it was trained on
    main(["predict", picture, "--model", str(tmp_path / "tiny"), *common])
    assert "note:" not in capsys.readouterr().out
    make_tiny_pipe(trained_on="cats").save_pretrained(tmp_path / "tiny")
    main(["predict", picture, "--model", str(tmp_path / "tiny"), *common])
    assert "trained on cats, and on nothing else" in capsys.readouterr().out


def weights_of(folder: Path) -> Path:
    return folder / "transformer" / "diffusion_pytorch_model.safetensors"


def cut(folder):
    weights_of(folder).write_bytes(weights_of(folder).read_bytes()[:5000])


def lose_a_tensor(folder):
    data = bytearray(weights_of(folder).read_bytes())
    at = data.index(b'"norm.weight"')
    data[at : at + 13] = b'"morn.weight"'
    weights_of(folder).write_bytes(data)


def setting(file, **changes):
    def change(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


DAMAGE = {
    "cut weights": cut,
    "a tensor by another name": lose_a_tensor,
    "a word for a number": setting("transformer/config.json", num_layers="eight"),
    "a list for a number": setting("transformer/config.json", attention_head_dim=[64]),
    "another width": setting("transformer/config.json", ffn_dim=96),
    "nothing for a number": setting("vae/config.json", latent_channels=None),
    "a class of nobody's": setting("model_index.json", transformer=["diffusers_videogpt", "Nothing"]),
    "a part that is no pair": setting("model_index.json", transformer="big"),
    "a library that is none": setting("model_index.json", vae=["os", "system"]),
    "a scheduler of another class": lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text(
        '{"_class_name": "EulerDiscreteScheduler"}'
    ),
    "names that are a list": setting("model_index.json", id2label=[1, 2]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line(make_tiny_pipe, tmp_path, picture, damage):
    make_tiny_pipe().save_pretrained(tmp_path / "tiny")
    DAMAGE[damage](tmp_path / "tiny")
    words = ["predict", picture, "--model", str(tmp_path / "tiny"), "--num-frames", "1", "--steps", "1"]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--output", str(tmp_path / "out")])
    assert caught.value.code.startswith("videogpt predict: ") and "\n" not in caught.value.code
    assert "may be a bug" not in caught.value.code and len(caught.value.code) < 1000
    assert not (tmp_path / "out").exists()


def test_a_bug_shows_where_it_is_if_asked(monkeypatch, tmp_path):
    def broken(*_):
        return {}["missing"]

    monkeypatch.setattr("diffusers_videogpt.commands.predict.read_conditions", broken)
    words = ["predict", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="^videogpt predict: KeyError: 'missing' .*a bug.*--verbose shows where"):
        main(words)
    with pytest.raises(KeyError):
        main([*words, "--verbose"])


def test_names_in_errors_do_not_steer_the_terminal(tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(tmp_path / "\x1b]0;owned\x07.mp4")])
    assert "\x1b" not in caught.value.code and "\\x1b]0;owned\\x07.mp4" in caught.value.code


def test_quantizers_are_left_out_only_before_diffusers_is_imported(monkeypatch):
    before = dict(sys.modules)
    models.leave_out(("no_package_at_all",))
    assert sys.modules == before  # diffusers is here: too late to matter
    monkeypatch.delitem(sys.modules, "diffusers")
    models.leave_out(("no_package_at_all", "torch"))
    assert sys.modules.pop("no_package_at_all") is None and sys.modules["torch"] is before["torch"]


@pytest.mark.parametrize("part", [["transformers", "CLIPTextModel"], ["os", "system"], []])
def test_a_part_of_another_library_is_told_by_the_index(part):
    index = {"vae": ["diffusers", "AutoencoderKL"], "text_encoder": [None, None], "trained_on": "balls"}
    index["transformer"] = ["diffusers_videogpt", "VideoGPTTransformerModel"]
    assert not models.SavedModel("m", index).needs_transformers
    assert models.SavedModel("m", index | {"text_encoder": part}).needs_transformers
    assert models.SavedModel("m", index, {"quantization_config": {}}).needs_transformers


def test_no_garbage_is_collected_only_while_diffusers_is_imported(monkeypatch):
    with importing_libraries():
        assert gc.isenabled()  # diffusers is here: nothing more to import
    monkeypatch.delitem(sys.modules, "diffusers")
    with pytest.raises(ZeroDivisionError), importing_libraries():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()


def test_a_quantized_model_is_told_by_its_config():
    assert models.SavedModel("m", {}, {"quantization_config": {}}).is_quantized
    assert not models.SavedModel("m", {}).is_quantized


@pytest.mark.parametrize("instruction", ["_is_amx_tile_supported", "_is_avx512_bf16_supported", None])
def test_auto_is_bfloat16_for_transformer_and_autoencoder_where_the_processor_multiplies_in_it(
    monkeypatch, instruction
):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == instruction)
    saved = models.look_at_model(str(BUNDLED_MODEL))
    pipe = models.load_pipeline(saved, device="cpu", dtype="auto")
    assert pipe.transformer.dtype == pipe.vae.dtype == (torch.bfloat16 if instruction else torch.float32)
    assert pipe.transformer.time_embed.linear_1.weight.dtype == torch.float32
    assert models.dtypes_of("auto", device="cpu", is_quantized=True) == {"default": torch.float32}


def test_the_sample_is_predicted_in_bfloat16_nearly_as_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    videos = {}
    for dtype in ("float32", "auto"):
        main(["predict", "--dtype", dtype, "--num-frames", "8", "--output", str(tmp_path / f"{dtype}.mp4")])
        videos[dtype] = read_video(tmp_path / f"{dtype}.mp4").frames.astype(np.int16)
    difference = np.abs(videos["auto"] - videos["float32"])
    assert difference.max() > 0 and difference.mean() < 0.5, difference.mean()
