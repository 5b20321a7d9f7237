"""Values as they are typed on a command line: numbers, devices and folders, refused before any work begins."""

import argparse
import tempfile
from contextlib import suppress
from pathlib import Path

import torch


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
