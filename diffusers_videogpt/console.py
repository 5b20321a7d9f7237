"""What is printed for a user: any text on any console, names that can't harm a terminal, progress also in a log."""

import sys
import unicodedata
from typing import Any


SECONDS_BETWEEN_LINES = 10
TURNS_WRITING = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u200e", "\u200f"}


def allow_any_text() -> None:
    """Lets stdout and stderr write out what their console has no letters for, `\\u732b` for a cat, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """`text` with what steers a terminal, or turns the direction of writing, written out: `\\x1b` for an escape.

    Names of files, classes and videos come from elsewhere: printed raw, one could clear the screen or retitle the window.
    Line breaks and tabs stay.
    """
    return "".join(
        ascii(x)[1:-1] if x not in "\n\t" and (unicodedata.category(x) == "Cc" or x in TURNS_WRITING) else x
        for x in text
    )


def say(*lines: object) -> None:
    """Prints lines to stdout, by [`printable`]."""
    for line in lines:
        print(printable(str(line)), flush=True)


class _Lines:
    """A file for tqdm that prints each state of its bar as a line to stderr."""

    def __init__(self):
        self.last = ""

    def write(self, text: str) -> None:
        if (text := text.strip()) and text != self.last:  # at its end the bar is drawn once more
            self.last = text
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


def progress_options() -> dict[str, Any]:
    """Arguments of tqdm and `set_progress_bar_config`: a bar on a terminal; else, as in a log, a line every ten seconds."""
    if sys.stderr.isatty():
        return {}
    return {
        "file": _Lines(),
        "delay": SECONDS_BETWEEN_LINES,  # what is done sooner says nothing
        "mininterval": SECONDS_BETWEEN_LINES,
        "bar_format": "step {n_fmt} of {total_fmt}, after {elapsed}, about {remaining} to go",
    }
