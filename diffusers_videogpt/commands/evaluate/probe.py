"""`videogpt evaluate probe`: scores a classifier of videos; or compares what linear probes read from features of simulated scenes."""

import argparse
from pathlib import Path

from ... import BUNDLED_MODEL
from ...arguments import check_output, positive_int
from ...console import say
from ..models import QUANTIZERS, leave_out, load_pipeline, look_at_model, refuse_missing, usable_device
from ..options import add_command, add_device_argument, add_output_argument, add_seed_argument


def evaluate_probe(args: argparse.Namespace) -> None:
    """Scores a classifier that train_classification.py made on videos with known classes: top-1, top-5 and the
    confusion matrix. With --simulated, compares linear probes on a model's features of simulated scenes with those on
    a model of random weights and on the latents."""
    if not args.simulated and (args.model is None or args.data is None):
        raise ValueError("give --model and --data, or --simulated.")
    refuse_missing(args.data, "--data")
    refuse_missing(args.dataset_file, "--dataset-file")
    check_output(args.output)
    wanted = "VideoGPTPipeline" if args.simulated else "VideoGPTForVideoClassification"
    saved = look_at_model(args.model or BUNDLED_MODEL, wanted)
    leave_out(QUANTIZERS)
    device = usable_device(args.device)
    from ...evaluation import probe

    args.output.mkdir(parents=True, exist_ok=True)
    if args.simulated:
        pipe = load_pipeline(saved, device=device)
        results = probe.compare_features(
            pipe,
            args.num_training_scenes,
            num_test=args.num_scenes,
            layers=args.layers,
            pooling=args.pooling,
            seed=args.seed,
        )
        probe.write_features(results, args.output)
        say(probe.format_features(results))
    else:
        scores = probe.score_saved_classifier(
            args.model,
            args.data,
            dataset_file=args.dataset_file,
            label_column=args.label_column,
            device=device,
            num_clips=args.num_clips,
            num_workers=args.workers,
        )
        probe.write_scores(scores, args.output)
        say(f"top-1: {100 * scores.top1:.2f} %\ntop-5: {100 * scores.top5:.2f} %")
    say(f"written to {args.output}")


def add_probe_benchmark(benchmarks) -> None:
    command = add_command(
        benchmarks, "probe", run=evaluate_probe, help="a classifier of videos, or what its features are worth"
    )
    command.add_argument(
        "--model", help="folder of a classifier; with --simulated of a pipeline (default: the bundled)"
    )
    command.add_argument("--data", type=Path, help="folder a class of videos, or that the paths of a list start from")
    command.add_argument("--dataset-file", type=Path, help="UCF-101's testlist01.txt, or a CSV or JSONL table")
    command.add_argument("--label-column", help="of the table")
    command.add_argument(
        "--num-clips", type=positive_int, default=3, help="of a video, averaged (default: %(default)s)"
    )
    command.add_argument("--workers", type=int, default=0, help="processes that read videos (default: %(default)s)")
    command.add_argument("--simulated", action="store_true", help="compare features on simulated scenes")
    command.add_argument("--num-training-scenes", type=positive_int, default=600, help="(default: %(default)s)")
    command.add_argument(
        "--num-scenes", type=positive_int, default=300, help="to test on, unseen (default: %(default)s)"
    )
    command.add_argument("--layers", type=int, nargs="+", help="default: all")
    command.add_argument("--pooling", default="mean", help="mean, mean_std or thirds (default: %(default)s)")
    add_seed_argument(command, help="of the random weights")
    add_device_argument(command)
    add_output_argument(command, "videogpt_probe")
