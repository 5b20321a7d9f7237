"""What commands have in common: `--lora`, numbers and devices as they are typed, and the folder for the output."""

import argparse
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from .pipeline_videogpt import VideoGPTPipeline
from .saved_models import refuse_unreachable


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of 1 or more")
    return int(text)


def natural_int(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of 0 or more")
    return int(text)


def positive_float(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return float(text)


def parse_device(text: str) -> str:
    """Refuses what PyTorch does not know or this machine does not have, before anything is loaded."""
    try:
        if torch.device(text).type == "meta":  # shapes without numbers
            raise RuntimeError
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no device: cpu, cuda, cuda:1 or mps, as PyTorch says") from None
    try:
        torch.empty(1, device=text)
    except (AssertionError, ImportError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here ({reason}); cpu always can") from None
    return text


def add_device_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device",
        type=parse_device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, mps (default here: %(default)s)",
    )


def check_output(folder: Path, option: str = "--output") -> None:
    """Refuses a folder that cannot be written, before the work that would be lost. Leaves nothing behind.

    Raises:
        ValueError: says why.
    """
    made = []
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{option} {folder} cannot be written ({error.strerror}): name another folder.") from error
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def parse_lora(text: str) -> tuple[str, float]:
    """ "DIR:0.8" → ("DIR", 0.8), "DIR" → ("DIR", 1.0)."""
    source, _, weight = text.rpartition(":")
    try:
        return (source, float(weight)) if source else (text, 1.0)
    except ValueError:
        return text, 1.0


def add_lora_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--lora",
        action="append",
        default=[],
        type=parse_lora,
        metavar="SOURCE[:WEIGHT]",
        help="folder, file or Hub id of a LoRA and its weight (default: 1); give it several times to mix them",
    )


def load_loras(pipe: VideoGPTPipeline, loras: list[tuple[str, float]]) -> None:
    """Loads all of them and makes them active together.

    Raises:
        OSError: one is no file or folder, and the Hub does not have it or could not be asked.
        ValueError: one does not fit the model, or is none.
    """
    names = [f"lora_{index}" for index in range(len(loras))]
    for name, (source, _) in zip(names, loras, strict=True):
        if not Path(source).is_file():
            try:
                refuse_unreachable(source)
            except OSError as error:
                raise OSError(f"--lora: {error}") from error
        pipe.load_lora_weights(source, adapter_name=name)
    if loras:
        pipe.set_adapters(names, [weight for _, weight in loras])
