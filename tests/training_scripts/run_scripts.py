"""Running a training script as a user does, on videos made for it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from diffusers_videogpt.video_io import write_video


SCRIPTS = Path(__file__).parents[2] / "training_scripts"
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
FSDP2_ON_CPU = str(Path(__file__).with_name("fsdp2_on_cpu.py"))
TINY = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 32,
    "pos_embed_max_size": 16,
    "rope_long_factor": None,
}


def make_videos(folder: Path, num_videos: int, num_frames: int = 8, height: int = 32, width: int = 32, seed: int = 0):
    """Moving squares on noise, so that no two frames are alike."""
    rng = np.random.default_rng(seed)
    for index in range(num_videos):
        frames = rng.integers(0, 120, (num_frames, height, width, 3), dtype=np.uint8)
        for t, frame in enumerate(frames):
            left = (3 * t + 5 * index) % (width - 8)
            frame[8:16, left : left + 8] = (200, 40 * index % 256, 90)
        write_video(folder / f"{height}x{width}-{index}.mp4", frames, fps=8)
    return folder


def script_command(script: str, *args, launcher=()) -> list[str]:
    return [sys.executable, *launcher, str(SCRIPTS / script), *map(str, args)]


def script_environment(**variables) -> dict[str, str]:
    return os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"} | variables


def run_script(script: str, *args, launcher=(), check=True, environment=None) -> subprocess.CompletedProcess:
    """Runs a training script to its end."""
    result = subprocess.run(
        script_command(script, *args, launcher=launcher),
        capture_output=True,
        text=True,
        env=script_environment(**(environment or {})),
        timeout=300,
    )
    assert not check or result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    return result
