"""A process that has imported what the scripts import, and runs each script in a fork of itself.

Importing PyTorch, diffusers and transformers takes most of the time of a script at toy size, and here it is done once.
`run_scripts.run_script` starts this process and writes a JSON object a line to its standard input: `script` (a path),
`arguments`, `folder` (to work in), `stdout` and `stderr` (files to write), and `seconds` (after which the script is killed).
A line of standard output tells how each script ended: its exit code, or minus the number of the signal that ended it. The
process ends with its input.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys
import threading
from pathlib import Path

import accelerate  # noqa: F401
import diffusers
import numpy as np
import peft  # noqa: F401
import torch
import transformers

import diffusers_videogpt


def import_all() -> None:
    for name in diffusers_videogpt.__all__:
        getattr(diffusers_videogpt, name)
    for folder in ("data", "training", "tasks", "metrics", "evaluation", "worlds"):
        for module in pkgutil.iter_modules([str(Path(diffusers_videogpt.__file__).with_name(folder))]):
            importlib.import_module(f"diffusers_videogpt.{folder}.{module.name}")
    # diffusers and transformers import a class when it is first asked for.
    for library, names in {
        diffusers: ("AutoencoderTiny", "AutoencoderKL", "AutoModel", "DiffusionPipeline"),
        transformers: ("CLIPTextModel", "CLIPTokenizer", "AutoTokenizer", "Phi3ForCausalLM"),
    }.items():
        for name in names:
            getattr(library, name)
    importlib.import_module("torch.utils.data")
    importlib.import_module("torch._dynamo")  # by the optimizers


def next_request() -> dict | None:
    """Forks for every request, and returns it in the fork alone; `None` at the end of the requests."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def become(request: dict) -> None:
    """What a new interpreter would find: files, folder, arguments, path, and random numbers that no other run has."""
    signal.alarm(request["seconds"])  # ends it then
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    files = ((os.devnull, os.O_RDONLY), (request["stdout"], write), (request["stderr"], write))
    for number, (path, flags) in enumerate(files):
        file = os.open(path, flags, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    sys.argv = [request["script"], *request["arguments"]]
    sys.path[0] = str(Path(request["script"]).parent)
    # From the system's randomness, as in a new process; Python's own generator is seeded anew by the fork.
    np.random.seed()  # noqa: NPY002
    torch.seed()


def run_to_the_end(script: str) -> None:
    """Runs it and ends as Python does, except that what was imported is not taken down, which takes a second or more."""
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # waits for the threads that are no daemons, as the end of Python does before all else
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    import_all()
    # A fork has none of the threads of its parent, and waits for ever where one of them held a lock.
    assert len(os.listdir("/proc/self/task")) == 1, "an import started a thread"
    assert not torch.cuda.is_initialized()
    gc.collect()
    gc.freeze()  # shared by all forks
    request = next_request()
    if request is not None:
        become(request)
        run_to_the_end(request["script"])
