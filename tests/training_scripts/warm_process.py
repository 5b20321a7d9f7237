"""A process that has imported what the scripts import, and runs each script in a fork of itself.

Importing PyTorch, diffusers and transformers takes most of the time of a script at toy size, and here it is done once.
The argument says what is imported: `everything`, or the `libraries` below diffusers and this package, but neither of these.

`run_scripts.WarmProcess` starts this process and writes a JSON object a line to its standard input: `script` (a path),
`arguments`, `folder` (to work in), `path` (further folders to import from), `output` (a folder for the files `stdout-RANK`,
`stderr-RANK` and `pid-RANK`, which holds the number of the fork), `seconds` (after which the script is killed), `variables` (of the environment), `num_processes` (as many
forks run the script together) and `port` (where these find each other). A line of standard output tells how the script
ended: its exit code, or minus the number of the signal that ended it. The process ends with its input.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import torch


def import_libraries() -> None:
    """What diffusers imports when its pipelines and models are asked for. What comes with an extra may not be there."""
    for name in (
        "accelerate",
        "transformers",
        "peft",
        "scipy.stats",
        "bitsandbytes",
        "torch._dynamo",
        "torch.distributed.tensor",
        "torch.distributed.fsdp",
        "torch.nn.attention.flex_attention",
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for name in ("PreTrainedModel", "CLIPTextModel", "CLIPImageProcessor", "AutoTokenizer"):
        getattr(sys.modules["transformers"], name)
    assert not {"diffusers", "diffusers_videogpt"} & sys.modules.keys()


def import_everything() -> None:
    import_libraries()
    diffusers, transformers, diffusers_videogpt = map(
        importlib.import_module, ("diffusers", "transformers", "diffusers_videogpt")
    )
    for name in diffusers_videogpt.__all__:
        getattr(diffusers_videogpt, name)
    for folder in ("data", "training", "tasks", "metrics", "evaluation", "worlds"):
        for module in pkgutil.iter_modules([str(Path(diffusers_videogpt.__file__).with_name(folder))]):
            # One may need a library that is not installed; a test that needs it too says so itself.
            with contextlib.suppress(ImportError):
                importlib.import_module(f"diffusers_videogpt.{folder}.{module.name}")
    # diffusers and transformers import a class when it is first asked for.
    for library, names in {
        diffusers: ("AutoencoderTiny", "AutoencoderKL", "AutoModel", "DiffusionPipeline"),
        transformers: ("CLIPTextModel", "CLIPTokenizer", "AutoTokenizer", "Phi3ForCausalLM"),
    }.items():
        for name in names:
            getattr(library, name)
    importlib.import_module("torch.utils.data")
    warm_figures()


def warm_figures() -> None:
    """A run draws its loss: matplotlib reads fonts and parses the labels of a logarithmic axis once."""
    with contextlib.suppress(ImportError):
        figure = importlib.import_module("matplotlib.figure").Figure()
        figure.subplots().set(yscale="log", xlabel="step", ylabel="loss")
        figure.savefig(io.BytesIO(), dpi=120)


def next_request() -> dict | None:
    """Forks for every request, and returns it in the forks alone, with their `rank`; `None` at the end of the requests."""
    for line in sys.stdin:
        request, children = json.loads(line), []
        for rank in range(request["num_processes"]):
            child = os.fork()
            if child == 0:
                return request | {"rank": rank}
            children.append(child)
            write_whole(Path(request["output"], f"pid-{rank}"), str(child))
        print(wait_for_all(children), flush=True)
    return None


def write_whole(path: Path, text: str) -> None:
    """Who finds the file finds all of it."""
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(text)
    unfinished.rename(path)


def wait_for_all(children: list[int]) -> int:
    """The exit code of the first that failed, or 0. Where one has failed the others, which would wait for it, are ended."""
    first = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        code = os.waitstatus_to_exitcode(status)
        if code and not first:
            first = code
            for other in children:
                os.kill(other, signal.SIGTERM)
    return first


def process_group(rank: int, num_processes: int, port: int) -> dict[str, str]:
    """The variables by which `torch.distributed.run` tells a process of one machine its place."""
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK", "ROLE_RANK"), str(rank))
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"), str(num_processes))
    return ranks | sizes | {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def become(request: dict) -> None:
    """What a new interpreter would find: files, folder, arguments, path, and random numbers that no other run has."""
    signal.alarm(request["seconds"])  # ends it then
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    outputs = [(f"{request['output']}/{name}-{request['rank']}", write) for name in ("stdout", "stderr")]
    files = ((os.devnull, os.O_RDONLY), *outputs)
    for number, (path, flags) in enumerate(files):
        file = os.open(path, flags, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ |= request["variables"]
    if request["num_processes"] > 1:
        os.environ |= process_group(request["rank"], request["num_processes"], request["port"])
    sys.argv = [request["script"], *request["arguments"]]
    sys.path[0] = str(Path(request["script"]).parent)
    sys.path += request["path"]
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
    {"everything": import_everything, "libraries": import_libraries}[sys.argv[1]]()
    # A fork has none of the threads of its parent, and waits for ever where one of them held a lock.
    assert len(os.listdir("/proc/self/task")) == 1, "an import started a thread"
    assert not torch.cuda.is_initialized()
    gc.collect()
    gc.freeze()  # shared by all forks
    request = next_request()
    if request is not None:
        become(request)
        run_to_the_end(request["script"])
