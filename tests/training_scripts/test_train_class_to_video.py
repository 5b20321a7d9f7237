"""Class → video as a user runs it: a folder a class in, a pipeline that makes videos of a class out."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from run_scripts import run_script
from safetensors.torch import load_file
from script_data import losses, make_ucf


@pytest.fixture(scope="module")
def ucf(tmp_path_factory):
    """Two classes of three videos; UCF-101's list has all but one."""
    root = make_ucf(tmp_path_factory.mktemp("ucf"), 3)
    lines = (root / "trainlist01.txt").read_text().splitlines(keepends=True)
    (root / "trainlist01.txt").write_text("".join(lines[:-1]))
    return root


def train(output_dir, *args, **kwargs):
    return run_script("train_class_to_video.py", "--output_dir", output_dir, *args, **kwargs)


def test_from_ucf101_to_videos_of_a_class(tmp_path, new_model, ucf, refusal_of):
    """One clip a sample, whose clean patches no step sees; two processes train as one; the result is loaded and used."""
    args = [*new_model, "--instance_data_root", ucf / "videos", "--dataset_file", ucf / "trainlist01.txt"]
    args += ["--clips", "equal:4", "--max_train_steps", 4, "--validation_steps", 4, "--label_dropout", 0.3]
    args += ["--condition_guidance_scale", 2.5, "--validation_inference_steps", 2, "--num_validation_rollouts", 1]
    one, two = tmp_path / "one", tmp_path / "two"
    result = train(one, *args, "--train_batch_size", 2, "--validation_rollout_steps", 4)
    assert "2 classes: Basketball, Archery" in result.stdout and "0 of 5 videos dropped" in result.stdout
    train(two, *args, "--checkpointing_steps", 2, num_processes=2)
    assert losses(one) == pytest.approx(losses(two), abs=1e-5)
    weights = [load_file(f / "transformer" / "diffusion_pytorch_model.safetensors") for f in (one, two)]
    torch.testing.assert_close(*weights, atol=1e-4, rtol=0)

    assert {"0.mp4", "0.png"} <= {p.name for p in (one / "validation" / "step-000004").iterdir()}
    card = (one / "README.md").read_text(encoding="utf-8")
    assert "pipe(class_labels=['Basketball']" in card and "prediction.png" in card
    assert json.loads((one / "model_index.json").read_text())["id2label"] == {"0": "Basketball", "1": "Archery"}
    pipe = DiffusionPipeline.from_pretrained(one)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.labels == {"Basketball": 0, "Archery": 1} and pipe.config.condition_guidance_scale == 2.5
    arguments = {"num_inference_steps": 2, "num_frames": 4, "output_type": "pt"}
    first, second = (
        pipe(class_labels=name, generator=torch.Generator().manual_seed(0), **arguments).frames
        for name in ("Basketball", "Archery")
    )
    assert first.shape == (1, 4, 3, 32, 32) and (first - second).abs().max() > 1e-5

    rest = ["--instance_data_root", ucf / "videos", "--clips", "equal:4", "--max_train_steps", 1, "--logging_steps", 1]
    size = ["--height", 32, "--width", 32, "--max_num_frames", 4, "--num_validation_videos", 2]
    (ucf / "videos" / "Archery").rename(ucf / "videos" / "Diving")
    given = ["--output_dir", tmp_path / "on", "--pretrained_model_name_or_path", one, *size, *rest]
    said = refusal_of("train_class_to_video.py", *given)
    assert "has the classes Basketball, Archery, not Diving" in said
