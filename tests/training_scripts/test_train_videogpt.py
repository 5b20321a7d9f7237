"""The training script as a user runs it, at toy size, to its output."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from diffusers_videogpt import VideoGPTPipeline
from diffusers_videogpt.video_io import write_video


SCRIPT = Path(__file__).parents[2] / "training_scripts" / "train_videogpt.py"
TINY = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "rope_long_factor": None}


def train(output_dir, *args, launcher=(), check=True):
    command = [sys.executable, *launcher, str(SCRIPT), "--output_dir", str(output_dir), *map(str, args)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not check or result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def basics(tmp_path_factory):
    """Arguments that every run needs: an autoencoder, a transformer's configuration, small sizes."""
    folder = tmp_path_factory.mktemp("basics")
    torch.manual_seed(0)
    AutoencoderTiny(scaling_factor=1.0).save_pretrained(folder / "vae")
    (folder / "transformer.json").write_text(json.dumps(TINY))
    sizes = ["--height", 32, "--width", 32, "--max_num_frames", 4, "--frames_per_clip", 2, "--train_batch_size", 2]
    start = ["--pretrained_vae_path", folder / "vae", "--transformer_config", folder / "transformer.json"]
    return [*start, *sizes, "--num_validation_videos", 2, "--logging_steps", 1, "--lr_warmup_steps", 2]


def weights(folder):
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def test_straight_and_resumed_runs_end_alike(tmp_path, basics):
    data = ["--num_simulated_scenes", 6, "--max_train_steps", 6, "--checkpointing_steps", 2, "--validation_steps", 3]
    train(tmp_path / "straight", *basics, *data)
    with (tmp_path / "straight" / "train_log.csv").open() as file:
        log = list(csv.DictReader(file))
    assert [int(row["step"]) for row in log] == [1, 2, 3, 4, 5, 6]
    assert [bool(row["validation_loss"]) for row in log] == [False, False, True, False, False, True]
    assert sorted(p.name for p in (tmp_path / "straight").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]

    # A copy that stopped after step 4 goes on to the same end.
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    for name in ("latents.safetensors", "train_log.csv", "checkpoint-4"):
        (tmp_path / "straight" / name).rename(stopped / name)
    train(stopped, *basics, *data, "--resume_from_checkpoint", "latest")
    straight, resumed = weights(tmp_path / "straight"), weights(stopped)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    with (stopped / "train_log.csv").open() as file:
        assert [row["loss"] for row in csv.DictReader(file)] == [row["loss"] for row in log]

    # What was trained is a pipeline, and a pipeline can be trained on.
    pipe = VideoGPTPipeline.from_pretrained(stopped)
    frames = pipe(video=np.zeros((2, 32, 32, 3), np.uint8), num_inference_steps=1, output_type="np").frames
    assert frames.shape == (1, 2, 32, 32, 3)
    assert pipe.config.frames_per_clip == 2 and pipe.config.max_context_frames == 2


def test_folder_of_videos_in_two_processes(tmp_path, basics):
    rng = np.random.default_rng(0)
    for index in range(6):
        write_video(tmp_path / "videos" / f"{index}.mp4", rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8), fps=8)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"nothing")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    data = ["--instance_data_root", tmp_path / "videos", "--max_train_steps", 2, "--gradient_checkpointing"]
    result = train(tmp_path / "run", *basics, *data, launcher=launcher)
    assert "left out" in result.stdout and "broken.mp4" in result.stdout
    assert VideoGPTPipeline.from_pretrained(tmp_path / "run").transformer.config.num_layers == 1


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "--instance_data_root and --num_simulated_scenes"),
        (["--num_simulated_scenes", 4, "--frames_per_video", 2], "--frames_per_video must be at least"),
        (["--instance_data_root", "nowhere"], "No usable video in nowhere"),
    ],
)
def test_bad_arguments(tmp_path, basics, args, message):
    result = train(tmp_path, *basics, *args, check=False)
    assert result.returncode != 0 and message in result.stderr
