"""From a command line and a YAML file to typed settings: each field of a dataclass is one option of the same name.

    @dataclass(kw_only=True)
    class LoopSettings:
        max_train_steps: int = option(1000, "steps of the optimizer", type=positive_int)

    @dataclass(kw_only=True)
    class Settings:                                  # what one script takes: parts, each a group in its --help
        loop: LoopSettings = part(max_train_steps=2000)

    settings = parse_settings(Settings, __doc__)     # settings.loop.max_train_steps

`transformers.HfArgumentParser` does much of this, but importing transformers takes 0.9 s, and `--help` is to answer within a
second; it also knows no groups, no YAML file under a command line, and no option that is left out of one script. This file
imports little more than the standard library.
"""

import argparse
import dataclasses
import difflib
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from ..arguments import check_output, positive_float
from ..console import allow_any_text, printable
from ..data.workers import worker_trouble
from ..extras import QUANTIZERS, leave_out
from .run_folder import release_folders


TRACEBACK = "VIDEOGPT_TRACEBACK"
T = TypeVar("T")


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 0 to 1")
    return number


def ema_decay(text: str) -> float:
    """The decay of an average of the weights, from 0 to below 1."""
    decay = share(text)
    if decay == 1:
        raise argparse.ArgumentTypeError(
            "an average of 1 stays the weights that training begins with: give less than 1"
        )
    return decay


def moment_decay(text: str) -> float:
    """The decay of an average of gradients, from 0 to below 1."""
    if share(text) == 1:
        raise argparse.ArgumentTypeError("an average of 1 takes in no gradient: give less than 1")
    return float(text)


def grad_norm(text: str) -> float:
    """The largest norm of a gradient: above 0, `inf` for any."""
    return float("inf") if text.strip().lower() == "inf" else positive_float(text)


def option(
    default: Any = dataclasses.MISSING,
    help: str | None = None,
    *,
    reads: Literal["file", "folder"] | None = None,
    **details,
) -> Any:
    """A field of settings that is an option.

    Args:
        default: without one, the option has to be given.
        help: what `--help` says.
        reads: it is a path, and this is what has to be there before a script begins.
        details: `type`, a function that reads the text, where the field's own type says too little; `metavar`.
    """
    return dataclasses.field(default=default, metadata={"help": help, "reads": reads, "details": details})


def part(without: Iterable[str] | Mapping[str, str] = (), **defaults) -> Any:
    """A field of a script's settings that is itself a dataclass of options.

    Args:
        without: options that have no effect in this script, which therefore does not take them: their names, or name → what
            to tell whoever gives one.
        defaults: other defaults than the dataclass has, by name; of an option that is left out, its value in this script.
    """
    reasons = without if isinstance(without, Mapping) else dict.fromkeys(without, "")
    return dataclasses.field(metadata={"without": dict(reasons), "defaults": defaults})


class SettingsParser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest option where one is given that it does not have.

    Attributes:
        without: options that other scripts have → why this one does not, or "".
        what: the script, in the words of an error.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.without: dict[str, str] = {}
        self.what = self.prog

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: error: {printable(message)}\n(--help lists the options)\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        parsed, rest = self.parse_known_args(args, namespace)
        unknown = [word.partition("=")[0] for word in rest if word.startswith("--")]
        if unknown:
            self.error(self.explain_absent(unknown[0].removeprefix("--")))
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed

    def explain_absent(self, name: str) -> str:
        """Why there is no option `name`, and which one is nearest to it."""
        options = [action.dest for action in self._actions]
        nearest = "".join(
            f" The nearest option is --{near}." for near in difflib.get_close_matches(name, options, n=1)
        )
        if name not in self.without:
            return f"there is no option --{name}.{nearest}"
        reason = self.without[name] or f"--{name} does not apply to {self.what}: leave it out"
        return f"{reason}.{nearest}"


def make_parser(doc: str) -> SettingsParser:
    """The parser of a script, with the first line of its docstring above the help."""
    return SettingsParser(description=doc.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)


def add_options(group, settings: type, *, without: Iterable[str] = (), **defaults) -> None:
    """Adds the fields of a dataclass to a parser or a group of one; `without` and `defaults` as in [`part`]."""
    hints = typing.get_type_hints(settings)
    unknown = {*without, *defaults} - {field.name for field in dataclasses.fields(settings)}
    if unknown:
        raise TypeError(f"{settings.__name__} has no field {', '.join(sorted(unknown))}.")
    for field in dataclasses.fields(settings):
        if field.name not in without:
            _add_option(group, field, hint=hints[field.name], default=defaults.get(field.name, field.default))


def _add_option(group, field: dataclasses.Field, *, hint: Any, default: Any) -> None:
    options = dict(field.metadata["details"]) | {"help": field.metadata["help"]}
    options |= {"required": True} if default is dataclasses.MISSING else {"default": default}
    if typing.get_origin(hint) in (types.UnionType, typing.Union):  # `str | None`, `Literal[…] | None`
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
    if hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(hint) is Literal:
        options["choices"] = list(typing.get_args(hint))
    elif typing.get_origin(hint) is tuple:
        options |= {"nargs": "+", "type": typing.get_args(hint)[0]} | field.metadata["details"]
    else:
        options.setdefault("type", hint)
    group.add_argument(f"--{field.name}", **options)


def read_options(args: argparse.Namespace, settings: type[T], **fixed) -> T:
    """The dataclass whose fields [`add_options`] added; those that it left out are as in `fixed` or keep their defaults."""
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(settings) if field.name in args}
    values |= fixed
    return settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def parse_settings(
    settings: type[T], doc: str, *, command_line: list[str] | None = None, what: str | None = None
) -> T:
    """Reads a script's settings; `--config FILE.yaml` sets them by the options' names, and the command line wins.

    A wrong name, a value of the wrong type, one outside the choices, or settings that do not go together (their dataclass
    raises a `ValueError`) end the program with one line that says what was wrong.

    Args:
        settings: a dataclass; its fields are dataclasses, made by [`part`], or options.
        doc: the script's docstring.
        command_line: by default the program's, and what it names to be read must be there.
        what: what the script trains, in errors; by default the name of the script.

    Raises:
        OSError: a file or folder to be read is not there.
    """
    parser = make_parser(doc)
    parser.what = what or parser.prog
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(hints[field.name]):
            without, defaults = field.metadata["without"], field.metadata["defaults"]
            add_options(parser.add_argument_group(field.name), hints[field.name], without=without, **defaults)
            parser.without |= without
        else:
            _add_option(parser, field, hint=hints[field.name], default=field.default)
    args = _parse_with_file(parser, sys.argv[1:] if command_line is None else command_line)
    try:
        values = {}
        for field in dataclasses.fields(settings):
            if dataclasses.is_dataclass(hints[field.name]):
                without, defaults = field.metadata["without"], field.metadata["defaults"]
                fixed = {name: value for name, value in defaults.items() if name in without}
                values[field.name] = read_options(args, hints[field.name], **fixed)
            else:
                values[field.name] = getattr(args, field.name)
        read = settings(**values)
    except ValueError as error:
        parser.error(str(error))
    if command_line is None:
        refuse_missing_paths(read)
    leave_out(unused_quantizers(plain_values(read)))
    return read


def refuse_missing_paths(settings) -> None:
    """Raises an `OSError` that names the first option whose file or folder, which is to be read, is not there."""
    for field in dataclasses.fields(settings):
        value, reads = getattr(settings, field.name), field.metadata.get("reads")
        if dataclasses.is_dataclass(value):
            refuse_missing_paths(value)
        elif value is not None and reads == "folder" and not value.is_dir():
            raise NotADirectoryError(f"{value} is no folder: give one that is there by --{field.name}")
        elif value is not None and reads == "file" and not value.is_file():
            raise FileNotFoundError(f"{value} is no file: give one that is there by --{field.name}")


def unused_quantizers(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Packages that a run does not need, which diffusers would import with warnings of theirs: none if the run quantizes, or
    starts from a model that is quantized, or from one on the Hub, of which that is not known.

    Args:
        values: of all options, by name.
    """
    if values.get("use_8bit_adam") or values.get("quantize_base"):
        return ()
    for name, value in values.items():
        if name.startswith("pretrained_") and value is not None:
            configs = [
                path for path in (Path(value, "config.json"), *Path(value).glob("*/config.json")) if path.is_file()
            ]
            if not configs or any("quantization_config" in path.read_text(errors="replace") for path in configs):
                return ()
    return QUANTIZERS


def _parse_with_file(parser: SettingsParser, command_line: list[str]) -> argparse.Namespace:
    parser.add_argument("--config", type=Path, help="YAML file of options by their names; the command line wins")
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--config", type=Path)
    config = known.parse_known_args(command_line)[0].config
    if config is None:
        return parser.parse_args(command_line)
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: no UTF-8, or a date that there is not
        parser.error(f"--config {config}: {' '.join(str(error).split())}")
    except RecursionError:
        parser.error(f"--config {config}: it is nested too deeply to be meant")
    if not isinstance(values, dict):
        parser.error(f"--config {config}: it holds {type(values).__name__}, not names of arguments with values")
    actions = {action.dest: action for action in parser._actions}
    from_file = []
    for name, value in values.items():
        if name == "config":
            parser.error(f"--config {config}: a file of options cannot name another one")
        if name not in actions or name == "help":
            parser.error(f"--config {config}: there is no argument '{name}' ({parser.explain_absent(str(name))})")
        if isinstance(actions[name], argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                parser.error(f"--config {config}: '{name}' is true or false, got {value!r}")
            from_file.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            # With "=", a text that begins with "-" is not taken for an option.
            from_file += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    # Placed before the command line, they go through the same checks and are overridden by it.
    return parser.parse_args([*from_file, *command_line])


def parse_with_output(parser: argparse.ArgumentParser, default: str) -> argparse.Namespace:
    """The command line of a script whose figures go into one JSON file: `--output`, `default` unless it is given.

    Raises:
        ValueError, OSError: the file can't be written, as [`~arguments.check_output`] says.
    """
    parser.add_argument("--output", type=Path, default=Path(default))
    args = parser.parse_args()
    check_output(args.output.parent)
    return args


def run_script(main: Callable[..., T], *args: Any) -> T:
    """Runs a script, or its first part, the reading of its arguments: returns what `main(*args)` returns.

    What a user can mend (a missing folder, too few videos, files that don't fit, a package that is not installed, workers
    without memory) is one line, not a traceback; what the run held is let go of however it ends. Names that the console has no
    letters for are printed all the same.

    Raises:
        SystemExit: with the message of an `OSError`, a `ValueError` or an `ImportError`, or of [`worker_trouble`], unless the
            environment has `VIDEOGPT_TRACEBACK`.
    """
    allow_any_text()
    try:
        return main(*args)
    except SystemExit as refusal:  # a sentence of the run itself, or a status
        if isinstance(refusal.code, str):
            raise SystemExit(printable(refusal.code)) from None
        raise
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        told = worker_trouble(error) if isinstance(error, RuntimeError) else error
        if told is None or os.environ.get(TRACEBACK):
            raise
        message = printable(" ".join(str(told).split()))
        raise SystemExit(f"{Path(sys.argv[0]).name}: {message}\n({TRACEBACK}=1 shows where it was raised)") from None
    finally:
        release_folders()


def plain_values(settings) -> dict[str, Any]:
    """All options of a script's settings with their values, by name, as JSON and trackers can hold them."""
    values = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            without = field.metadata.get("without", {})
            values |= {name: x for name, x in plain_values(value).items() if name not in without}
        else:
            value = list(value) if isinstance(value, tuple) else value
            values[field.name] = str(value) if isinstance(value, Path) else value
    return values
