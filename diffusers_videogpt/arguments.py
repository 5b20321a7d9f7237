"""Values as they are typed on a command line: numbers and folders, refused before any work begins."""

import argparse
import tempfile
from contextlib import suppress
from pathlib import Path


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of 1 or more")
    return int(text)


def natural_int(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of 0 or more")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from None


def positive_float(text: str) -> float:
    if not 0 < _number(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return float(text)


def finite_float(text: str) -> float:
    if not abs(_number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return float(text)


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
