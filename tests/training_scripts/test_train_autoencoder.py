import argparse
import csv
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from diffusers_videogpt.video_io import write_video


SCRIPT = Path(__file__).parents[2] / "training_scripts" / "train_autoencoder.py"
TOY = {
    "resolution": 16,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "frames_per_video": 2,
    "train_batch_size": 2,
    "lr_warmup_steps": 2,
    "checkpointing_steps": 10,
    "num_eval_videos": 2,
}


def arguments(**options):
    return ["--block_out_channels", "8", "8", *(f"--{name}={value}" for name, value in (TOY | options).items())]


def train(output_dir, *more, **options):
    return subprocess.run(
        [sys.executable, SCRIPT, "--output_dir", output_dir, *arguments(**options), *more],
        capture_output=True,
        text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("vae")
    done = train(output_dir, max_train_steps=20)
    assert done.returncode == 0, done.stderr
    return output_dir, done.stdout


def test_result_is_an_autoencoder_with_a_measured_scale(trained):
    output_dir, printed = trained
    vae = AutoencoderKL.from_pretrained(output_dir)
    assert (output_dir / "diffusion_pytorch_model.safetensors").is_file()
    pixels = torch.zeros(1, 3, 16, 16)
    latents = vae.encode(pixels).latent_dist.mean
    assert latents.shape == (1, 4, 8, 8) and vae.decode(latents).sample.shape == pixels.shape
    assert vae.config.shift_factor is None
    assert f"scaling_factor {vae.config.scaling_factor:.4f}" in printed
    assert "2 unseen videos: PSNR" in printed and "objects counted right" in printed


def test_scaling_factor_makes_unseen_latents_unit_wide(trained):
    from diffusers_videogpt.worlds import simulate

    vae = AutoencoderKL.from_pretrained(trained[0])
    frames = np.concatenate([simulate(seed=seed, size=16).frames for seed in range(2)])
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1.0, rel=1e-3)


def test_loss_goes_down_and_is_logged(trained):
    with (trained[0] / "train_log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 20]
    assert float(rows[1]["loss"]) < 0.8 * float(rows[0]["loss"])


def test_resuming_ends_where_an_unbroken_run_ends(trained, tmp_path):
    output_dir, _ = trained
    (tmp_path / "checkpoint-10").symlink_to(output_dir / "checkpoint-10")
    (tmp_path / "train_log.csv").write_text((output_dir / "train_log.csv").read_text())
    done = train(tmp_path, "--resume_from_checkpoint", "latest", max_train_steps=20, checkpointing_steps=100)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stdout
    unbroken = AutoencoderKL.from_pretrained(output_dir).state_dict()
    resumed = AutoencoderKL.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert (tmp_path / "train_log.csv").read_text() == (output_dir / "train_log.csv").read_text()


def test_trains_on_a_folder_of_videos(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (6, 32, 48, 3), dtype=np.uint8)
    for name in ("a", "b"):
        write_video(tmp_path / "videos" / f"{name}.mp4", frames, fps=8)
    output_dir = tmp_path / "vae"
    done = train(output_dir, instance_data_root=tmp_path / "videos", num_eval_videos=1, max_train_steps=2)
    assert done.returncode == 0, done.stderr
    assert "1 unseen videos: PSNR" in done.stdout and "objects counted" not in done.stdout
    assert AutoencoderKL.from_pretrained(output_dir).config.sample_size == 16


def test_too_few_videos_and_odd_sizes_are_errors(tmp_path, refusal_of):
    for args, message in (
        (arguments(instance_data_root=tmp_path), "holds 0 videos"),
        (arguments(resolution=17), "--resolution 17 must be divisible by 2"),
        ([*arguments(), "--resume_from_checkpoint", "latest"], "no complete checkpoint-N folder"),
        ([*arguments(), "--ema_decay", "1"], "give less than 1"),
    ):
        given = ["--output_dir", tmp_path, *args]
        assert message in refusal_of(SCRIPT.name, *given)


def test_what_is_there_is_not_replaced(trained, refusal_of):
    output_dir, _ = trained
    weights = (output_dir / "diffusion_pytorch_model.safetensors").read_bytes()
    said = refusal_of(SCRIPT.name, "--output_dir", output_dir, *arguments(max_train_steps=1))
    assert "already holds checkpoint-10, checkpoint-20, config.json" in said
    assert (output_dir / "diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_the_latest_checkpoint_is_whole(tmp_path):
    for name in ("checkpoint-8", "checkpoint-10", "checkpoint-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ema.pt").touch()
    (tmp_path / "checkpoint-12").mkdir()
    (tmp_path / "checkpoint-12" / "ema.pt.partial").touch()
    find_checkpoint = runpy.run_path(str(SCRIPT))["find_checkpoint"]
    args = argparse.Namespace(output_dir=tmp_path, resume_from_checkpoint="latest")
    assert find_checkpoint(args) == tmp_path / "checkpoint-10"
