"""`videogpt evaluate retrieval`: scores a retriever on videos with captions, or on simulated scenes."""

import argparse
from dataclasses import asdict
from pathlib import Path

from ...arguments import check_output, positive_int
from ...console import say
from ...files import write_json
from ..models import QUANTIZERS, leave_out, look_at_model, refuse_missing, told_of, usable_device
from ..options import add_command, add_device_argument


def evaluate_retrieval(args: argparse.Namespace) -> None:
    """Scores a retriever that train_retrieval.py made: R@1, R@5, R@10 and the median rank, both ways. Ties count
    against the model. A caption of several videos is asked once, and all of these are right."""
    if args.output is not None:
        check_output(args.output.parent)
        if args.output.is_dir():
            raise ValueError(f"--output {args.output} is a folder: name a JSON file.")
    refuse_missing(args.dataset_file, "--dataset-file")
    refuse_missing(args.data, "--data")
    look_at_model(args.model, "VideoGPTRetrievalPipeline")
    leave_out(QUANTIZERS)
    device = usable_device(args.device)
    from ...evaluation import retrieval
    from ...metrics.retrieval import format_retrieval
    from ...tasks.video_retrieval import VideoGPTRetrievalPipeline

    with told_of(f"the model in {args.model}"):
        pipe = VideoGPTRetrievalPipeline.from_pretrained(args.model).to(device)
    table = retrieval.captioned_videos(
        pipe.sampling,
        args.dataset_file,
        data=args.data,
        caption_column=args.caption_column,
        simulated=args.simulated,
        world=args.simulated_world,
    )
    scores = retrieval.evaluate_retrieval(pipe, table)
    say(f"{table.dropped.summary()}{table.dropped.first()}\n\n{format_retrieval(scores)}")
    if args.output is not None:
        write_json(args.output, {name: asdict(way) for name, way in scores.items()})


def add_retrieval_benchmark(benchmarks) -> None:
    help_text = "how well texts find their videos, and videos their texts"
    command = add_command(benchmarks, "retrieval", run=evaluate_retrieval, help=help_text)
    command.add_argument("--model", required=True, help="folder or Hub id of a retriever")
    command.add_argument("--dataset-file", type=Path, help="CSV or JSONL table with a column `video` of paths")
    command.add_argument("--caption-column", default="caption", help="of the table (default: %(default)s)")
    command.add_argument("--data", type=Path, help="folder that the table's paths start from; default: its own")
    command.add_argument(
        "--simulated", type=positive_int, metavar="N", help="instead: N unseen scenes, each with its own caption"
    )
    command.add_argument("--simulated-world", choices=["physics", "orders"], default="physics")
    add_device_argument(command)
    command.add_argument("--output", type=Path, help="a JSON file for the scores")
