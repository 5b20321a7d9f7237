"""The distillation script as a user runs it: a pipeline in, a fast one or a fast LoRA out."""

import json
import re
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from run_scripts import run_script, run_script_under_fsdp2
from safetensors.torch import load_file
from script_data import losses, save_base

from diffusers_videogpt import NextClipFlowMatchScheduler


WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_parts):
    return save_base(tmp_path_factory.mktemp("teacher"), tiny_parts / "vae", guidance_scale=1.5)


@pytest.fixture(scope="module")
def arguments(teacher, short_run):
    return [*short_run, "--pretrained_model_name_or_path", teacher, "--learning_rate", 1e-3, "--grid_steps", 8]


def train(output_dir, *args, **kwargs):
    return run_script("train_distillation.py", "--output_dir", output_dir, *args, **kwargs)


def load(folder):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def predict(pipe, **kwargs):
    generator = torch.Generator().manual_seed(0)
    return pipe(num_frames=4, height=32, width=32, generator=generator, output_type="latent", **kwargs).frames


def test_a_pipeline_that_is_fast_by_itself(tmp_path, teacher, arguments):
    options = ["--validation_steps", 3, "--validation_rollout_steps", 3, "--num_validation_rollouts", 1]
    train(tmp_path, *arguments, *options, "--validation_inference_steps", 3)
    pipe = load(tmp_path)
    predict(pipe)
    assert pipe.num_timesteps == 2 * 2 and pipe.guidance_scale == 1.0  # two clips of two steps
    assert pipe.scheduler.config.solver == "consistency"
    before = load(teacher).transformer.state_dict()
    assert any(not torch.equal(x, before[name]) for name, x in pipe.transformer.state_dict().items())
    folder = tmp_path / "validation" / "step-000006"
    scores = json.loads((folder / "scores.json").read_text())
    shown = {"predicted", "repeat", "autoencoder", "teacher, 3 steps", "1 step", "4 steps"}
    assert set(scores["mse"]) == shown and {"0.mp4", "0.png"} <= {path.name for path in folder.iterdir()}
    first = json.loads((folder.parent / "step-000003" / "scores.json").read_text())
    assert first["mse"]["teacher, 3 steps"] == scores["mse"]["teacher, 3 steps"]
    assert first["mse"]["4 steps"] != scores["mse"]["4 steps"]
    expected = load(teacher)(video=None, num_frames=1, num_inference_steps=1, height=32, width=32, output_type="np")
    assert expected.frames.shape == (1, 1, 32, 32, 3)
    assert "train_distillation.py" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("student", ["full", "lora"])
def test_resumed_run_ends_alike(tmp_path, arguments, refusal_of, student):
    args = [*arguments, "--student", student, "--resampled_history", 0.5]
    train(tmp_path, *args)
    weights = tmp_path / (WEIGHTS if student == "lora" else "transformer/diffusion_pytorch_model.safetensors")
    log, expected = losses(tmp_path), load_file(weights)
    shutil.rmtree(tmp_path / "checkpoint-6")
    (tmp_path / "model_index.json").unlink(missing_ok=True)
    train(tmp_path, *args, "--resume_from_checkpoint", "latest")
    assert losses(tmp_path) == log and len(log) == 6
    resumed = load_file(weights)
    assert resumed.keys() == expected.keys() and all(torch.equal(x, expected[name]) for name, x in resumed.items())
    (tmp_path / "model_index.json").unlink(missing_ok=True)
    given = ["--output_dir", tmp_path, *args, "--resume_from_checkpoint", "latest", "--guidance_scale", 2]
    assert "distillation.guidance_scale: 1.5 there, 2.0 now" in refusal_of("train_distillation.py", *given)


def test_a_lora_that_makes_its_base_fast(tmp_path, teacher, arguments, run_here):
    lora = ["--student", "lora", "--rank", 4, "--train_mlp", "--learning_rate", 1e-2]
    train(tmp_path, *arguments, *lora, "--validation_steps", 6, "--validation_rollout_steps", 6)
    assert all("lora_" in name for name in load_file(tmp_path / "checkpoint-6" / "model.safetensors"))
    pipe = load(teacher)
    pipe.scheduler = NextClipFlowMatchScheduler.from_config(pipe.scheduler.config, solver="consistency")
    fast = {"num_inference_steps": 2, "guidance_scale": 1.0}
    before = predict(pipe, **fast)
    pipe.load_lora_weights(tmp_path)
    assert (predict(pipe, **fast) - before).abs().max() > 1e-4
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1]
    assert 'solver="consistency"' in example and "num_inference_steps=2, guidance_scale=1.0" in example


@pytest.mark.parametrize("student, strategy", [("full", "ddp"), ("full", "fsdp2"), ("lora", "ddp")])
def test_two_processes_train_as_one(tmp_path, arguments, student, strategy):
    args = [*arguments, "--student", student, "--max_train_steps", 3]
    train(tmp_path / "one", *args, "--train_batch_size", 2)
    if strategy == "ddp":
        train(tmp_path / "two", *args, num_processes=2)
    else:
        result = run_script_under_fsdp2("train_distillation.py", "--output_dir", tmp_path / "two", *args)
        assert "FSDP2 on the CPU" in result.stdout
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), abs=1e-5)


def test_from_simulated_scenes(tmp_path, arguments, run_here):
    args = [*arguments[2:], "--num_simulated_scenes", 4, "--num_validation_videos", 1]
    run_here("train_distillation.py", "--output_dir", tmp_path, *args, "--max_train_steps", 2)
    assert len(losses(tmp_path)) == 2


@pytest.mark.parametrize(
    "args, message",
    [
        (["--rank", 8], "--rank has an effect only with --student lora"),
        (["--student", "lora", "--output_dtype", "bfloat16"], "with --student lora an adapter is saved"),
        (["--student", "lora", "--push_to_hub"], "the page of a LoRA names its base on the Hub"),
        (["--consistency_loss", "l2", "--huber_c", 0.1], "only with --consistency_loss pseudo_huber"),
        (["--grid_steps", 1], "give 2 or more"),
        (["--weighting_scheme", "mode"], "noise levels are those of --grid_steps"),
        (["--resampled_steps", 2], "the student makes it in one step"),
        (["--guidance_scale", "nan"], "--guidance_scale"),
    ],
)
def test_bad_arguments(tmp_path, arguments, args, message, refusal_of):
    assert message in refusal_of("train_distillation.py", "--output_dir", tmp_path, *arguments, *args)
