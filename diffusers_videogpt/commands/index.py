"""`videogpt index`: makes a folder of videos searchable by text, or adds what is new in it."""

import argparse
from pathlib import Path

from ..arguments import check_output
from ..console import say
from .models import QUANTIZERS, leave_out, look_at_model, refuse_missing, told_of, usable_device
from .options import add_command, add_device_argument, add_output_argument


def index(args: argparse.Namespace) -> None:
    """Computes a vector of each video of FOLDER, also in folders below it. Called again, it adds what is new."""
    refuse_missing(args.folder, "FOLDER")
    check_output(args.output)
    look_at_model(args.model, "VideoGPTRetrievalPipeline")
    leave_out(QUANTIZERS)
    device = usable_device(args.device)
    from ..tasks.video_index import build_index

    with told_of(f"the model in {args.model} or the index in {args.output}"):
        report = build_index(args.folder, args.model, output=args.output, device=device)
    left_out = f"{report.dropped.summary()}{report.dropped.first(20)}"
    say(f"{report.num_videos} videos in {args.output}, {report.num_kept} of them from before; {left_out}")


def add_index_command(commands) -> None:
    command = add_command(commands, "index", run=index, help="make a folder of videos searchable by text")
    command.add_argument("folder", metavar="FOLDER", type=Path)
    command.add_argument("--model", required=True, help="folder or Hub id of a retriever, of train_retrieval.py")
    add_output_argument(command, "videogpt_index", help="a new folder, or the index so far")
    add_device_argument(command)
