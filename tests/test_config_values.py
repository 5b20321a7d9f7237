"""Values of a configuration that nobody meant, in files that somebody else may have written: refused at once, by name."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_videogpt import VideoGPTPipeline, VideoGPTTransformerModel


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
INDEX, NETWORK, STEPS = "model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"


@pytest.fixture
def folder(make_tiny_pipe, tmp_path):
    make_tiny_pipe().save_pretrained(tmp_path)
    return tmp_path


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "file, values, message",
    [
        (NETWORK, {"num_layers": 10**9}, r"`num_layers` must be a whole number in 1\.\.1000, got 1000000000"),
        (NETWORK, {"num_layers": 2.5}, "`num_layers` must be a whole number"),
        (NETWORK, {"num_layers": -1}, "`num_layers` must be a whole number"),
        (NETWORK, {"num_attention_heads": 0}, "`num_attention_heads` must be a whole number"),
        (NETWORK, {"attention_head_dim": "16"}, "`attention_head_dim` must be a whole number in .*, got '16'"),
        (NETWORK, {"num_classes": 10**9}, "`num_classes` must be a whole number"),
        (NETWORK, {"pos_embed_max_size": 10**9}, "`pos_embed_max_size` must be a whole number"),
        (NETWORK, {"norm_eps": "x"}, "`norm_eps` must be a finite number above 0"),
        (NETWORK, {"rope_theta": None}, "`rope_theta` must be a finite number above 0"),
        (NETWORK, {"rope_long_factor": "abc"}, "`rope_long_factor` must be a list of numbers"),
        (STEPS, {"shift": float("nan"), "flow_shift": None}, "`shift` is nan"),
        (STEPS, {"solver": "rk4"}, "`solver` is 'rk4', but must be 'euler', 'multistep' or 'consistency'"),
        (
            STEPS,
            {"num_train_timesteps": 10**12},
            "`num_train_timesteps` must be a whole number in 1..1000000, got 1000000000000",
        ),
        (INDEX, {"frames_per_clip": "x"}, "`frames_per_clip` must be a whole number"),
        (INDEX, {"max_context_frames": -3}, "`max_context_frames` must be a whole number"),
        (INDEX, {"longest_side": 0}, "`longest_side` must be a whole number"),
        (INDEX, {"guidance_scale": [1]}, "`guidance_scale` must be a finite number"),
        (INDEX, {"trained_on": ["balls"]}, "`trained_on` must be text"),
        (INDEX, {"trained_with": {"solver": "rk4"}}, "`trained_with.solver` must be one of euler"),
        (INDEX, {"num_inference_steps": 10**9}, "`num_inference_steps` must be a whole number"),
        (INDEX, {"id2label": {"x": "a"}}, "`id2label` must map numbers to names"),
        (INDEX, {"id2label": ["a", "b", "c"]}, "`id2label` must map numbers to names"),
        (INDEX, {"transformer": 5}, "`transformer` must name a library and a class, got 5"),
        (INDEX, {"_class_name": ["VideoGPTPipeline"]}, "`_class_name` is no text"),
    ],
    ids=str,
)
def test_configurations(folder, file, values, message):
    change(folder / file, **values)
    if file != NETWORK:  # before weights are read
        (folder / WEIGHTS).unlink()
    start = time.monotonic()
    with pytest.raises(ValueError, match=message):
        VideoGPTPipeline.from_pretrained(folder)
    assert time.monotonic() - start < 30  # of the layers of such a network, none is made


@pytest.mark.parametrize("file", [INDEX, NETWORK, STEPS])
@pytest.mark.parametrize("content", [b"[1]", b"[" * 10**5, b'{"a": "\xff"}', b"{", b'"x"'], ids=lambda c: str(c[:9]))
def test_files_that_hold_no_json_object(folder, file, content):
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=file.split("/")[-1]):
        VideoGPTPipeline.from_pretrained(folder)


def test_missing_tensors_are_not_made_up(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors["norm.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack norm.weight, in whose place diffusers would put random numbers"):
        VideoGPTPipeline.from_pretrained(folder)
    (folder / WEIGHTS).write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="is no safetensors file or is damaged"):
        VideoGPTPipeline.from_pretrained(folder)


def test_what_is_complete_loads(folder):
    loaded = VideoGPTPipeline.from_pretrained(folder)
    assert all(torch.equal(x, loaded.transformer.state_dict()[n]) for n, x in load_file(folder / WEIGHTS).items())


def test_a_network_of_a_billion_layers_is_not_begun():
    with pytest.raises(ValueError, match="`num_layers` must be a whole number"):
        VideoGPTTransformerModel(num_layers=10**9)


@pytest.mark.parametrize("name", ["layers_per_block", "latent_channels"])
def test_an_autoencoder_of_a_billion_layers_is_not_begun(folder, name):
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: 10**9}))
    with pytest.raises(ValueError, match=f"vae.config.json: `{name}` must be a whole number in 1"):
        VideoGPTPipeline.from_pretrained(folder)
