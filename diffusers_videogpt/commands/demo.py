"""`videogpt demo`: serves a page to try a model on, until Ctrl+C."""

import argparse
import importlib.util
import signal
import threading
from contextlib import suppress

from ..arguments import positive_float, positive_int
from ..console import say
from .loras import differences, follow_lora
from .models import check_loras, load_pipeline, look_at_model, note_on_training
from .options import add_command, add_device_argument, add_dtype_argument, add_lora_argument, add_model_argument


def port_number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"'{text}' is no port: a whole number from 1 to 65535")
    return int(text)


def demo(args: argparse.Namespace) -> None:
    """Serves a page on this machine: upload a video or picture, watch what is predicted. Needs Gradio: pip install
    ".[demo]" in the repository."""
    if importlib.util.find_spec("gradio") is None:
        raise ImportError('The page needs Gradio: pip install ".[demo]" in the repository')
    saved = look_at_model(args.model)
    trained_with = check_loras(args.lora)
    saved = follow_lora(args, saved, trained_with=trained_with, options=())
    say(*differences(args, saved, trained_with=trained_with, unread_rate="on the page, choose it under Read fps"))
    pipe = load_pipeline(saved, device=args.device, dtype=args.dtype, loras=args.lora)
    pipe.set_progress_bar_config(disable=True)
    from .demo_page import running_page
    from .demo_rollout import Limits

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl+C: visitors' files are deleted
    limits = Limits(args.max_upload_mb, args.max_seconds)
    with running_page(
        pipe,
        limits,
        host=args.host,
        port=args.port,
        names=args.name,
        note=note_on_training(saved, args.lora),
    ) as url:
        say(f"open {url} in a browser; Ctrl+C ends it")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def add_demo_command(commands) -> None:
    command = add_command(commands, "demo", run=demo, help="a page in the browser to try it")
    add_model_argument(command)
    add_lora_argument(command)
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="whom to listen to (default: %(default)s, this machine alone; 0.0.0.0 is everyone who can reach it)",
    )
    command.add_argument("--port", type=port_number, help="default: the first free one from 7860")
    command.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOSTNAME",
        help="a name under which browsers reach the page, besides localhost, addresses in numbers and this machine's own "
        "name; others are refused. Give it several times for more",
    )
    command.add_argument("--max-upload-mb", type=positive_int, default=100, help="of a file (default: %(default)s)")
    command.add_argument("--max-seconds", type=positive_float, default=120, help="of a video (default: %(default)s)")
    add_device_argument(command)
    add_dtype_argument(command)
