"""A script in the warm process ends as one in an interpreter of its own does."""

import json
import signal
import time
from pathlib import Path

import pytest
import run_scripts
from run_scripts import run_code, run_script


SCRIPT = """
import atexit, json, os, random, signal, sys, threading, time
import numpy as np
import torch

def last(): print("the end", flush=True)
atexit.register(last)
print(json.dumps([__name__, sys.argv[1:], sys.path[0], os.getcwd(), sys.stdin.read(), torch.get_num_threads()]))
print(json.dumps([random.random(), np.random.random(), torch.rand(1).item()]))
os.environ["LEFT_BY_A_SCRIPT"] = torch.left_by_a_script = "yes"
torch.manual_seed(7)
def late():
    time.sleep(0.05)
    print("a thread")
threading.Thread(target=late).start()
print("to stderr", file=sys.stderr)
how = sys.argv[1]
if how == "code": sys.exit(3)
if how == "text": sys.exit("what was wrong")
if how == "error": raise ValueError("what was wrong")
if how == "killed": sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(run_scripts, "SCRIPTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    return "script.py"


def test_as_in_an_interpreter_of_its_own(script, tmp_path):
    warm, real = (run_script(script, "well", 1.5, is_real=is_real) for is_real in (False, True))
    lines, expected = warm.stdout.splitlines(), real.stdout.splitlines()
    assert lines[0] == expected[0]
    assert json.loads(lines[0]) == ["__main__", ["well", "1.5"], str(tmp_path), str(tmp_path), "", 1]
    assert lines[2:] == expected[2:] == ["a thread", "the end"]
    assert "to stderr\n" in warm.stderr and "to stderr\n" in real.stderr


@pytest.mark.parametrize(
    ("how", "code", "last"),
    [
        ("code", 3, "to stderr"),
        ("text", 1, "what was wrong"),
        ("error", 1, "ValueError: what was wrong"),
        ("killed", -signal.SIGKILL, "to stderr"),
    ],
)
def test_every_end(script, how, code, last):
    result = run_script(script, how, check=False)
    assert result.returncode == code and result.stderr.splitlines()[-1] == last
    assert result.stdout.splitlines()[2:] == ([] if how == "killed" else ["a thread", "the end"])
    assert ('script.py", line' in result.stderr) == (how == "error")
    with pytest.raises(AssertionError, match=last):
        run_script(script, how)


def test_nothing_is_left_to_the_next_script_and_no_random_number_is_drawn_twice(script):
    first, second = (run_script(script, "well").stdout.splitlines() for _ in range(2))
    assert first[0] == second[0]
    assert not set(json.loads(first[1])) & set(json.loads(second[1]))
    look = "import os, torch; print('LEFT_BY_A_SCRIPT' in os.environ, hasattr(torch, 'left_by_a_script'))"
    Path(script).write_text(look)
    assert run_script(script).stdout == "False False\n"


def test_a_script_that_does_not_end_is_ended(script, monkeypatch):
    monkeypatch.setattr(run_scripts, "SECONDS", 1)
    Path(script).write_text("import time; time.sleep(60)")
    assert run_script(script, check=False).returncode == -signal.SIGALRM


GROUP = """
import sys, time
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank = dist.get_rank()
if sys.argv[1:] == ["fails"]:
    if rank == 1:
        sys.exit(3)
    time.sleep(60)
total = torch.tensor(10 ** rank)
dist.all_reduce(total)
print(rank, total.item(), file=sys.stderr if rank == 2 else sys.stdout)
dist.destroy_process_group()
"""


def test_several_processes_are_one_group(script):
    Path(script).write_text(GROUP)
    result = run_script(script, num_processes=3)
    assert result.stdout == "0 111\n1 111\n" and "2 111\n" in result.stderr


def test_where_one_of_several_processes_fails_the_others_are_ended(script):
    Path(script).write_text(GROUP)
    begin = time.monotonic()
    assert run_script(script, "fails", num_processes=2, check=False).returncode == 3
    assert time.monotonic() - begin < 50  # the other would have slept for longer


def test_code_is_the_first_to_import_diffusers_and_this_package():
    look = "import sys; print([name in sys.modules for name in sys.argv[1:]])"
    assert run_code(look, "transformers", "diffusers", "diffusers_videogpt").stdout == "[True, False, False]\n"


def test_another_environment_is_another_process(tmp_path, monkeypatch):
    """Imports read variables, so that a fork of a process that has imported would come too late."""
    (tmp_path / "no_imports.py").write_text("import sys\nfor line in sys.stdin: pass")
    monkeypatch.setattr(run_scripts, "WARM_PROCESS", str(tmp_path / "no_imports.py"))
    monkeypatch.setattr(run_scripts, "_warm", {})
    first = run_scripts.warm_process()
    assert run_scripts.warm_process() is first
    monkeypatch.setenv("OF_ONE_TEST", "set")
    second = run_scripts.warm_process()
    assert second is not first and first.process.poll() == 0
    second.close()
    assert second.process.returncode == 0
