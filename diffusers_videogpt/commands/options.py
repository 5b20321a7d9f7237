"""What commands share on the command line: their parser, and the options that mean the same in all of them.

Nothing here imports PyTorch, so that `--help` and a mistake are answered at once.
"""

import argparse
import difflib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import BUNDLED_MODEL, BUNDLED_STEERED_MODEL
from ..arguments import any_seed, finite_float, number_of_frames, number_of_steps, positive_float
from ..console import printable


# Denoising steps a clip of `predict`, of the page and of most benchmarks, with a model that tells no number of its own
STEPS = 25
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "npu", "xla")


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where the options are listed, instead of listing them first."""

    def error(self, message: str) -> None:
        # An argument's own text may hold what steers a terminal, as a name that the shell completed.
        self.exit(2, f"{self.prog}: {printable(message)}\n{self.prog} --help lists what it takes.\n")

    def refuse_unknown(self, words: list[str]) -> None:
        """Ends with an error for options that the command does not have, naming the nearest that it has."""
        options = [word.split("=")[0] for word in words if word.startswith("-")]
        if not options:
            self.error(f"unexpected: {' '.join(words)}")
        near = difflib.get_close_matches(options[0], self._option_string_actions, n=1)
        self.error(f"there is no option {options[0]}{f', do you mean {near[0]}?' if near else ''}")


def add_command(commands, name: str, *, run: Callable[[argparse.Namespace], None], help: str) -> CommandParser:
    """Adds the parser of one command to `commands`, of which `run` is called with what was parsed.

    `help` is its line in the list of commands; the docstring of `run` is what its own `--help` begins with.
    """
    command = commands.add_parser(name, help=help, description=run.__doc__)
    command.set_defaults(run=run, parser=command)
    command.add_argument("--verbose", action="store_true", help="show where in the program an error arose")
    return command


def parse_source(text: str) -> Path:
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text):
        raise argparse.ArgumentTypeError(f"URLs are not read: download {text} first, and give the file")
    return Path(text)


def parse_device(text: str) -> str:
    """Refuses what can't be a device; whether this machine has it is found out when PyTorch is there."""
    kind, _, number = text.partition(":")
    if kind not in DEVICES or (":" in text and not number.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: cpu, cuda, cuda:1 or mps, as PyTorch says")
    return text


def parse_lora(text: str) -> tuple[str, float]:
    """ "DIR:0.8" → ("DIR", 0.8), "DIR" → ("DIR", 1.0); refuses a weight that is not finite."""
    source, _, number = text.rpartition(":")
    try:
        weight = float(number) if source else None
    except ValueError:
        weight = None
    if weight is None:
        return text, 1.0
    if not math.isfinite(weight):
        raise argparse.ArgumentTypeError(f"{text!r}: the weight of a LoRA must be a finite number, got {number}")
    return source, weight


def parse_rate(text: str) -> float:
    """Frames a second, within what videos are read and written at."""
    rate = positive_float(text)
    from ..video_io import check_rate

    try:
        check_rate(rate)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return rate


def parse_model(text: str) -> str:
    """A folder or Hub id as it is; the name of a bundled model, unless a folder here has it, as that model's folder."""
    is_bundled = text in {Path(model).name for model in (BUNDLED_MODEL, BUNDLED_STEERED_MODEL)}
    return str(Path(BUNDLED_MODEL).parent / text) if is_bundled and not Path(text).exists() else text


def add_model_argument(command, *, help: str = "folder or Hub id of a pipeline", default: str = BUNDLED_MODEL) -> None:
    """`--model`, of a command or of a group of its options; `help` says what it is, the default is added."""
    told = f"{help}; default: the bundled {Path(default).name}"
    command.add_argument("--model", type=parse_model, default=default, help=told)


def add_lora_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--lora",
        action="append",
        default=[],
        type=parse_lora,
        metavar="SOURCE[:WEIGHT]",
        help="folder, file or Hub id of a LoRA and its weight (default: 1); give it several times to mix them",
    )


def add_device_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", type=parse_device, help="cpu, cuda, cuda:1, mps (default: cuda where there is one, else cpu)"
    )


def add_dtype_argument(command: argparse.ArgumentParser, *, default: str = "auto") -> None:
    told = "auto: transformer and autoencoder in bfloat16 where the processor multiplies in it, all else in float32"
    choices = ["auto", "float32", "bfloat16", "float16"]
    command.add_argument("--dtype", choices=choices, default=default, help=f"{told} (default: %(default)s)")


def add_frames_per_clip_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--frames-per-clip", type=number_of_frames, help="frames predicted in parallel; default: the model's own"
    )


def add_guidance_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("--guidance-scale", type=finite_float, help="history guidance; default: the model's own")


def add_steps_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--steps",
        type=number_of_steps,
        help=f"denoising steps a clip; default: the model's own, where it tells one, or {STEPS}",
    )


def steps_of(asked: int | None, pipe) -> int:
    """Denoising steps a clip: those of `--steps`, else the pipeline's own, else `STEPS`."""
    return asked or pipe.config.num_inference_steps or STEPS


def rollout_options(args: argparse.Namespace, pipe) -> dict[str, Any]:
    """`--steps`, `--guidance-scale` and `--frames-per-clip`, as arguments of the pipeline."""
    return {
        "num_inference_steps": steps_of(args.steps, pipe),
        "guidance_scale": args.guidance_scale,
        "frames_per_clip": args.frames_per_clip,
    }


def add_seed_argument(command: argparse.ArgumentParser, *, help: str | None = None) -> None:
    command.add_argument("--seed", type=any_seed, default=0, help=help)


def add_output_argument(command: argparse.ArgumentParser, default: str, *, help: str = "folder") -> None:
    """`--output`, a path; `help` says what it is, the default is added."""
    command.add_argument("--output", type=Path, default=Path(default), help=f"{help} (default: %(default)s)")
