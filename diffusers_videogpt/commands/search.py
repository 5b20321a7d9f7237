"""`videogpt search`: prints the videos of an index that fit a text best."""

import argparse
from pathlib import Path

from ..arguments import positive_int
from ..console import say
from .models import QUANTIZERS, leave_out, refuse_missing, told_of, usable_device
from .options import add_command, add_device_argument


def search(args: argparse.Namespace) -> None:
    refuse_missing(args.index, "INDEX")
    leave_out(QUANTIZERS)
    device = usable_device(args.device)
    from ..tasks.video_index import search_index

    with told_of(f"INDEX {args.index}"):
        hits = search_index(args.index, args.text, top=args.top, model=args.model, device=device)
    for hit in hits:
        note = "" if hit.is_current else "  (changed since: run `videogpt index` again)"
        say(f"{hit.score:6.3f}  {hit.path}{note}")


def add_search_command(commands) -> None:
    command = add_command(commands, "search", run=search, help="find videos by what they show, in an index")
    command.add_argument("index", metavar="INDEX", type=Path, help="that `videogpt index` made")
    command.add_argument("text", metavar="TEXT", help='what the videos show, as in "two red balls fall"')
    command.add_argument("--top", type=positive_int, default=5, help="videos listed (default: %(default)s)")
    command.add_argument("--model", help="where the index's model is now, if it was moved")
    add_device_argument(command)
