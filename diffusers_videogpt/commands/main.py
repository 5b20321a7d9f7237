"""`videogpt predict | play | demo | convert | export-hub | index | search | evaluate`: the package from the command line."""

import re
import sys
from collections.abc import Container

from .. import __version__
from ..console import allow_any_text, printable
from .convert import add_convert_command
from .demo import add_demo_command
from .evaluate import add_evaluate_command
from .export_hub import add_export_hub_command
from .index import add_index_command
from .options import CommandParser
from .play import add_play_command
from .predict import add_predict_command
from .search import add_search_command


# Where an argument has another name in Python than on the command line.
OPTIONS = {"num_inference_steps": "--steps", "class_labels": "--class-label"}
MAX_LENGTH = 800  # characters of an error message: some libraries list every tensor of a file


def make_parser() -> CommandParser:
    parser = CommandParser(prog="videogpt", description="Video-GPT: what happens next in a video.")
    parser.add_argument("--version", action="version", version=f"videogpt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    add_predict_command(commands)
    add_play_command(commands)
    add_convert_command(commands)
    add_export_hub_command(commands)
    add_index_command(commands)
    add_search_command(commands)
    add_demo_command(commands)
    add_evaluate_command(commands)
    return parser


def with_options(message: str, known: Container[str]) -> str:
    """A message that names arguments as Python does, `num_frames` or num_frames=0, with the command's options instead."""

    def option(match: re.Match) -> str:
        name = match[1] or match[2]
        if name in OPTIONS:
            return OPTIONS[name]
        # VIDEO is an option of one command and the first word of another.
        return f"--{name.replace('_', '-')}" if name in known and name != "video" else match[0]

    return re.sub(r"`(\w+)`|\b([a-z_]+)(?==[\d-])", option, message)


def one_line(error: Exception, known: Container[str]) -> str:
    """What is printed of an error: a sentence for what a user or a file can be guilty of, else that it may be a bug."""
    message = printable(" ".join(with_options(str(error), known).split()))
    if len(message) > MAX_LENGTH:
        message = f"{message[:MAX_LENGTH]} …"
    if isinstance(error, ValueError | OSError | ImportError | MemoryError) and message:
        return message
    return (
        f"{type(error).__name__}: {message} (this may be a bug of the program, or a file that is damaged; --verbose shows "
        "where it arose)"
    )


def main(argv: list[str] | None = None) -> None:
    """Runs one command. An error is one line on stderr, or with `--verbose` Python's traceback; the status is 1 then."""
    allow_any_text()
    args, unknown = make_parser().parse_known_args(argv)
    if unknown:
        args.parser.refuse_unknown(unknown)
    try:
        args.run(args)
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell reports a command that Ctrl+C ended
    except Exception as error:
        if args.verbose:
            raise
        sys.exit(f"videogpt {args.command}: {one_line(error, vars(args))}")


if __name__ == "__main__":
    main()
