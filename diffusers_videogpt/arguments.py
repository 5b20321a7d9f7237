"""Values as they are typed on a command line: numbers and folders, refused before any work begins."""

import argparse
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .config_values import MOST_DIGITS, MOST_FRAMES, MOST_STEPS


def whole_number(*, at_least: int, at_most: int = 10**9) -> Callable[[str], int]:
    """What reads a whole number in this range, for argparse's `type`: what is far larger is a slip, and would be told by
    whatever overflows first, when the work has begun."""

    def read(text: str) -> int:
        number = None
        if re.fullmatch(r"-?\d+", text):
            # A number of more digits than any limit has counts as infinite.
            number = int(text) if len(text) <= MOST_DIGITS else float("-inf" if text.startswith("-") else "inf")
        if number is None or number < at_least:
            raise argparse.ArgumentTypeError(f"'{_cut(text)}' is no whole number of {at_least} or more")
        if number > at_most:
            raise argparse.ArgumentTypeError(f"{_cut(text)} is too large: at most {at_most}")
        return int(number)

    return read


def _cut(text: str) -> str:
    return text if len(text) <= MOST_DIGITS else f"{text[:MOST_DIGITS]}…"


positive_int = whole_number(at_least=1)
natural_int = whole_number(at_least=0)
number_of_frames = whole_number(at_least=1, at_most=MOST_FRAMES)
number_of_steps = whole_number(at_least=1, at_most=MOST_STEPS)
set_seed_int = whole_number(at_least=0, at_most=2**32 - 1)  # what NumPy's, and so accelerate's `set_seed` takes
any_seed = whole_number(at_least=-(2**63), at_most=2**63 - 1)  # what PyTorch's generators take


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{_cut(text)}' is no number") from None


def positive_float(text: str) -> float:
    if not 0 < _number(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{_cut(text)} is not a number above 0")
    return float(text)


def natural_float(text: str) -> float:
    if not 0 <= _number(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{_cut(text)} is not a finite number of 0 or more")
    return float(text)


def finite_float(text: str) -> float:
    if not abs(_number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{_cut(text)} is not a finite number")
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
