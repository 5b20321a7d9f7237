"""Loader workers whose shared memory is too small, or that give nothing."""

import ast
import os
import shutil
import signal
import time
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from diffusers_videogpt.data import workers
from diffusers_videogpt.data.batches import BatchPlan, WindowDataset, make_loader
from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.data.videos import VideoTable
from diffusers_videogpt.pictures import VideoReadError
from diffusers_videogpt.tasks.video_features import read_clips
from diffusers_videogpt.training.arguments import run_script


@pytest.fixture
def small_memory(monkeypatch, tmp_path):
    """A folder of 64 KB in the place of /dev/shm."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(65536, 0, 65536))


def test_too_little_shared_memory_is_told_at_the_start(small_memory):
    table = VideoTable.simulated(8, 8, sampling=Sampling(8, height=64, width=64))
    dataset, plan = WindowDataset(table, seed=0), BatchPlan(table, 4, seed=0)
    options = {"num_steps": 2, "batch_size": 4}
    with pytest.raises(
        ValueError, match="0.0655 MB free.*2 loader workers.*0.393 MB each.*--shm-size=8g.*num_workers 0"
    ):
        next(make_loader(dataset, plan, num_workers=2, **options))
    assert next(make_loader(dataset, plan, **options))["frames"].shape == (4, 8, 64, 64, 3)


def test_reading_clips_for_features_does_so_too(small_memory, tmp_path):
    table = VideoTable.simulated(2, 8, sampling=Sampling(4, height=64, width=64))
    with pytest.raises(ValueError, match="1 loader workers.*0.0983 MB each"):
        next(read_clips(table, [0, 1], vae=None, num_clips=2, num_workers=1))


def test_every_loader_waits_with_an_end():
    """Whoever makes one takes its workers from `worker_options`, its batches by `until_timeout`, and looks at the memory."""
    root, found = Path(__file__).parents[2], 0
    for path in [*root.glob("diffusers_videogpt/**/*.py"), *root.glob("training_scripts/*.py")]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = [ast.unparse(call.func).rpartition(".")[2] for call in calls]
        for call, name in zip(calls, names, strict=True):
            if name.endswith("DataLoader"):
                found += 1
                unpacked = [ast.unparse(word.value) for word in call.keywords if word.arg is None]
                assert any(value.startswith("worker_options(") for value in unpacked), f"{path}:{call.lineno}"
                assert {"until_timeout", "check_shared_memory"} <= set(names), path
    assert found >= 5


class Stuck(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        time.sleep(60 * index)
        return torch.zeros(1)


def test_workers_that_give_nothing_are_told_with_the_cure(monkeypatch):
    monkeypatch.setattr(workers, "TIMEOUT", 2.0)
    batches = workers.until_timeout(DataLoader(Stuck(), **workers.worker_options(1)))
    assert next(batches).shape == (1, 1)
    with pytest.raises(TimeoutError, match="gave no batch for 2 s.*--shm-size=8g"):
        next(batches)


class Failing(Dataset):
    def __init__(self, fail):
        self.fail = fail

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.zeros(1) if index == 0 else self.fail()


@pytest.fixture
def quick_look(monkeypatch):
    """PyTorch looks every 5 s whether a worker that gives nothing is still alive."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)


def killed_by(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def damaged():
    try:
        int("a ValueError: b")
    except ValueError as error:
        raise VideoReadError("a.mp4: is damaged;\nleave it out.") from error


@pytest.mark.parametrize(
    "fail, kind, words",
    [
        (partial(killed_by, signal.SIGBUS), OSError, "shared memory is full .*--shm-size=8g"),
        (partial(killed_by, signal.SIGKILL), OSError, "was killed from outside.*--dataloader_num_workers"),
        (damaged, VideoReadError, r"^a.mp4: is damaged;\nleave it out.$"),
        (partial(open, "/nowhere"), FileNotFoundError, r"^\[Errno 2\] No such file or directory: '/nowhere'$"),
    ],
)
@pytest.mark.usefixtures("quick_look")
def test_what_a_user_can_mend_is_one_line_from_a_worker_too(fail, kind, words):
    def main():
        list(workers.until_timeout(DataLoader(Failing(fail), batch_size=None, **workers.worker_options(1))))

    with pytest.raises(kind, match=words):
        main()
    with pytest.raises(SystemExit) as refused:
        run_script(main)
    assert "Traceback" not in refused.value.code and refused.value.code.count("\n") == 1


@pytest.mark.usefixtures("quick_look")
def test_a_worker_that_is_killed_in_the_middle_of_a_step_is_one_line():
    def main():
        loader = iter(
            DataLoader(Failing(partial(killed_by, signal.SIGBUS)), batch_size=None, **workers.worker_options(1))
        )
        next(loader)
        time.sleep(30)  # the signal of the worker's end interrupts it

    with pytest.raises(SystemExit, match="shared memory is full"):
        run_script(main)


def test_a_bug_in_a_worker_shows_its_traceback():
    def main():
        list(workers.until_timeout(DataLoader(Failing(lambda: 1 / 0), batch_size=None, **workers.worker_options(1))))

    with pytest.raises(ZeroDivisionError, match="Original Traceback"):
        run_script(main)


def test_a_loader_that_ends_or_fails_does_so_as_before():
    assert list(workers.until_timeout([1, 2])) == [1, 2]

    def failing():
        yield 1
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        list(workers.until_timeout(failing()))
