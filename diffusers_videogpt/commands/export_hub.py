"""`videogpt export-hub`: a folder to upload: a pipeline, LoRA, classifier, retriever or cached latents, with the page."""

import argparse
from pathlib import Path

from ..arguments import check_output
from ..console import say
from .models import refuse_missing, told_of
from .options import add_command


def export_hub(args: argparse.Namespace) -> None:
    """Makes a folder of what belongs on the Hub: weights, configs, a page, and what loading from there needs."""
    if args.push and args.repo_id is None:
        raise ValueError("--push needs --repo-id: where to.")
    refuse_missing(args.source, "SOURCE")
    check_output(args.output_dir, "OUTPUT_DIR")
    from ..hub import export_to_hub_folder, push_to_hub

    with told_of(f"SOURCE {args.source}"):
        folder = export_to_hub_folder(
            args.source,
            args.output_dir,
            repo_id=args.repo_id,
            license=args.license,
            base_model=args.base_model,
            video=args.video,
        )
    say(push_to_hub(folder, args.repo_id, private=args.private or None) if args.push else f"ready: {folder}")


def add_export_hub_command(commands) -> None:
    command = add_command(commands, "export-hub", run=export_hub, help="a folder to upload to the Hub, with its page")
    command.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        help="folder of a saved pipeline, LoRA, classifier, retriever, or cached latents",
    )
    command.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path, help="a new folder")
    command.add_argument("--repo-id", help="where it will be found, as user/name")
    command.add_argument("--license", help="of the weights, as the Hub abbreviates it")
    command.add_argument(
        "--base-model", help="id on the Hub of what it was trained from; a LoRA of a local base needs it"
    )
    command.add_argument("--video", type=Path, help="an MP4 that the model made, for its page")
    command.add_argument("--push", action="store_true", help="upload it to --repo-id too")
    command.add_argument("--private", action="store_true", help="if the repository is made now")
