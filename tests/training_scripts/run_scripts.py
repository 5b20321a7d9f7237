"""Running scripts as a user does, on videos made for them, without starting an interpreter for each."""

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from diffusers_videogpt.video_io import write_video


SCRIPTS = Path(__file__).parents[2] / "training_scripts"
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
FSDP2_ON_CPU = str(Path(__file__).with_name("fsdp2_on_cpu.py"))
WARM_PROCESS = str(Path(__file__).with_name("warm_process.py"))
TEST_FOLDERS = (Path(__file__).parents[1], Path(__file__).parent)  # that a file of tests imports from
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


def script_environment(**variables) -> dict[str, str]:
    return os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"} | variables


class WarmProcess:
    """A process of `warm_process.py` that has imported `what`, in the environment that it was started in."""

    def __init__(self, what: str = "everything"):
        self.environment = comparable(script_environment())
        # What it prints beside its answers, an error above all, is the tests' own.
        self.process = subprocess.Popen(
            [sys.executable, WARM_PROCESS, what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=script_environment(),
        )

    def start(
        self, command: list[str], *, num_processes: int = 1, path: tuple = (), variables: dict[str, str] | None = None
    ) -> "Started":
        """Starts a command of Python: a file and its arguments, in one fork or several. One command at a time."""
        folder = tempfile.TemporaryDirectory()
        request = {
            "script": command[1],
            "arguments": command[2:],
            "folder": os.getcwd(),
            "path": [str(entry) for entry in path],
            "output": folder.name,
            "seconds": SECONDS,
            "variables": variables or {},
            "num_processes": num_processes,
            "port": free_port() if num_processes > 1 else None,
        }
        self.process.stdin.write(f"{json.dumps(request)}\n")
        self.process.stdin.flush()
        return Started(command, num_processes, self.process.stdout, folder)

    def run(self, command: list[str], **kwargs) -> subprocess.CompletedProcess:
        """What a command prints, run to its end as [`start`] starts it: of several processes, one after the other."""
        with self.start(command, **kwargs) as started:
            return started.result()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Started:
    """A command that a warm process runs. What leaves the `with` before the command's end kills it."""

    def __init__(self, command: list[str], num_processes: int, answers, folder: tempfile.TemporaryDirectory):
        self.command, self.num_processes, self.answers, self.folder = command, num_processes, answers, folder
        self.exit_code = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.exit_code is None:
            self.kill()
        self.folder.cleanup()

    @property
    def processes(self) -> list[psutil.Process]:
        """Its forks, by rank; waits until they are there."""
        paths = [Path(self.folder.name, f"pid-{rank}") for rank in range(self.num_processes)]
        while not all(path.exists() for path in paths):
            time.sleep(0.01)
        return [psutil.Process(int(path.read_text())) for path in paths]

    def has_ended(self) -> bool:
        return self.exit_code is not None or bool(select.select([self.answers], [], [], 0)[0])

    def wait_for(self, path: Path) -> None:
        """Waits until the command has written the file or made the folder."""
        end = time.monotonic() + SECONDS
        while not path.exists():
            assert not self.has_ended(), self.result()
            assert time.monotonic() < end, f"{path} did not appear"
            time.sleep(0.02)

    def kill(self) -> None:
        """Kills its processes and theirs, as a machine that goes off."""
        if not self.has_ended():
            for process in self.processes:
                for victim in (*process.children(recursive=True), process):
                    victim.kill()
        self.result()

    def result(self) -> subprocess.CompletedProcess:
        """Waits for its end. The exit code is minus the number of a signal that ended it."""
        if self.exit_code is None:
            answer = self.answers.readline()
            assert answer, "the warm process has ended"
            self.exit_code = int(answer)
        stdout, stderr = (
            "".join(Path(self.folder.name, f"{name}-{rank}").read_text() for rank in range(self.num_processes))
            for name in ("stdout", "stderr")
        )
        return subprocess.CompletedProcess(self.command, self.exit_code, stdout, stderr)


class ReallyStarted(Started):
    """The same of a command that runs as a user starts it, in interpreters of its own, which takes seconds."""

    def __init__(self, command: list[str]):
        self.command, self.exit_code, self.folder = command, None, tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=script_environment()
        )

    @property
    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid)]

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def result(self) -> subprocess.CompletedProcess:
        if self.exit_code is None:
            self.printed = self.process.communicate(timeout=SECONDS)
            self.exit_code = self.process.returncode
        return subprocess.CompletedProcess(self.command, self.exit_code, *self.printed)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def comparable(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}


def warm_process(what: str = "everything") -> WarmProcess:
    """The one of this process of tests. Started anew where the environment has changed since, as imports read it."""
    warm = _warm.get(what)
    if warm is not None and warm.environment != comparable(script_environment()):
        warm.close()
        warm = None
    if warm is None:
        warm = _warm[what] = WarmProcess(what)
    return warm


_warm: dict[str, WarmProcess] = {}


def run_file(
    file: str | Path,
    *args,
    launcher=(),
    check=True,
    is_real=False,
    num_processes: int = 1,
    path: tuple = (),
    **variables: str,
) -> subprocess.CompletedProcess:
    """Runs a file of Python to its end: in a fork of a process that has imported what it needs, or as a user starts it.

    Args:
        launcher: what stands before the file, with an interpreter of its own, which takes seconds; so does `is_real`.
        num_processes: forks of one process group, with the variables that `torch.distributed.run` gives its own.
        path: further folders to import from.
        variables: of the environment; a fork gets them after its imports.
    """
    command = [sys.executable, *launcher, *map(str, (file, *args))]
    if launcher or is_real or not hasattr(os, "fork"):
        if num_processes > 1:
            command[1:1] = [*TWO_PROCESSES[:-1], str(num_processes)]
        environment = script_environment(**variables)
        if path:
            environment["PYTHONPATH"] = os.pathsep.join([*map(str, path), environment.get("PYTHONPATH", "")])
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS)
    else:
        result = warm_process().run(command, num_processes=num_processes, path=path, variables=variables)
    assert not check or result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    return result


def run_script(script: str, *args, **kwargs) -> subprocess.CompletedProcess:
    """Runs a training script to its end, as [`run_file`]."""
    return run_file(SCRIPTS / script, *args, **kwargs)


def start_file(file: str | Path, *args, num_processes: int = 1) -> Started:
    """Starts a file of Python that a test will end, in forks of a process that has imported what it needs."""
    return warm_process().start([sys.executable, *map(str, (file, *args))], num_processes=num_processes)


def start_script(script: str, *args, num_processes: int = 1, is_real: bool = False) -> Started:
    """Starts a training script that a test will end, as [`start_file`], or as a user starts it."""
    if is_real:
        launcher = TWO_PROCESSES[:-1] + (str(num_processes),) if num_processes > 1 else ()
        return ReallyStarted([sys.executable, *launcher, *map(str, (SCRIPTS / script, *args))])
    return start_file(SCRIPTS / script, *args, num_processes=num_processes)


def run_script_under_fsdp2(script: str, *args, num_processes: int = 2, **kwargs) -> subprocess.CompletedProcess:
    """Runs a training script in processes that share its parameters out, as [`run_file`]."""
    return run_file(FSDP2_ON_CPU, SCRIPTS / script, *args, num_processes=num_processes, **kwargs)


def run_code(code: str, *args, process: WarmProcess | None = None) -> subprocess.CompletedProcess:
    """Runs code that is the first to import diffusers or this package: in a fork of a process that has imported neither, but
    the libraries below them, which take most of the time. `process` is one of another environment."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "code.py")
        file.write_text(code)
        command = [sys.executable, str(file), *map(str, args)]
        if hasattr(os, "fork"):
            return (process or warm_process("libraries")).run(command)
        return subprocess.run(command, capture_output=True, text=True, env=script_environment())
