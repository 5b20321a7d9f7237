"""Running a training script as a user does, on videos made for it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from diffusers_videogpt.video_io import write_video


SCRIPTS = Path(__file__).parents[2] / "training_scripts"
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
FSDP2_ON_CPU = str(Path(__file__).with_name("fsdp2_on_cpu.py"))
WARM_PROCESS = str(Path(__file__).with_name("warm_process.py"))
SECONDS = 300  # that a script may take
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


class WarmProcess:
    """A process of `warm_process.py`, of the environment that it was started in."""

    def __init__(self):
        self.environment = comparable(script_environment())
        # What it prints beside its answers, an error above all, is the tests' own.
        self.process = subprocess.Popen(
            [sys.executable, WARM_PROCESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=script_environment(),
        )

    def run(self, command: list[str]) -> subprocess.CompletedProcess:
        with tempfile.TemporaryDirectory() as folder:
            stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
            request = {
                "script": command[1],
                "arguments": command[2:],
                "folder": os.getcwd(),
                "stdout": str(stdout),
                "stderr": str(stderr),
                "seconds": SECONDS,
            }
            self.process.stdin.write(f"{json.dumps(request)}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
            assert answer, "the warm process has ended"
            return subprocess.CompletedProcess(command, int(answer), stdout.read_text(), stderr.read_text())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def comparable(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}


def warm_process() -> WarmProcess:
    """The one of this process of tests. Started anew where the environment has changed since, as imports read it."""
    global _warm
    if _warm is not None and _warm.environment != comparable(script_environment()):
        _warm.close()
        _warm = None
    if _warm is None:
        _warm = WarmProcess()
    return _warm


_warm: WarmProcess | None = None


def run_script(script: str, *args, launcher=(), check=True, is_real=False) -> subprocess.CompletedProcess:
    """Runs a training script to its end: in a fork of a process that has imported what it needs, or as a user starts it.

    `is_real`, and any `launcher`, start an interpreter of its own, which takes seconds.
    """
    command = script_command(script, *args, launcher=launcher)
    if launcher or is_real or not hasattr(os, "fork"):
        result = subprocess.run(command, capture_output=True, text=True, env=script_environment(), timeout=SECONDS)
    else:
        result = warm_process().run(command)
    assert not check or result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    return result
