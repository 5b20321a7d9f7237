"""`videogpt evaluate segmentation`: J and F of masks: a folder of them, or those that a model finds."""

import argparse
from pathlib import Path

from ...arguments import check_output, finite_float, positive_int
from ...console import say
from ..models import QUANTIZERS, leave_out, load_pipeline, look_at_model, refuse_missing
from ..options import add_command, add_device_argument, add_output_argument, add_seed_argument, rollout_options


def evaluate_segmentation(args: argparse.Namespace) -> None:
    """Follows objects from their masks in the first frame, or takes index PNGs made by any other model, and prints the
    region measure J and the boundary measure F, as DAVIS 2017 defines them."""
    refuse_missing(args.data, "--data")
    refuse_missing(args.masks, "--masks")
    check_output(args.output)
    pipe = None
    if args.model is not None:
        saved = look_at_model(args.model)
        saved.check_size(args.height, args.width)
        pipe = load_pipeline(saved, device=args.device)
        pipe.set_progress_bar_config(disable=True)
    leave_out(QUANTIZERS)
    from ...evaluation import segmentation_masks
    from ...metrics.segmentation import format_scores

    results = segmentation_masks.evaluate_segmentation(
        pipe,
        args.data,
        split=args.split,
        masks=args.masks,
        **rollout_options(args, pipe),
        height=args.height,
        width=args.width,
        num_simulated=args.simulated,
        num_frames=args.num_frames,
        seed=args.seed,
        folder=args.output,
    )
    if results:
        say(format_scores(results))
    else:
        say("Nothing to score: only first frames have true masks.")
    say(f"written to {args.output}")


def add_segmentation_benchmark(benchmarks) -> None:
    command = add_command(
        benchmarks, "segmentation", run=evaluate_segmentation, help="objects followed through videos, by J and F"
    )
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data", type=Path, help="folder with JPEGImages and Annotations, as DAVIS's or YouTube-VOS's"
    )
    source.add_argument(
        "--simulated", type=positive_int, metavar="N", help="N unseen simulated scenes, beside two baselines"
    )
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder or Hub id of a pipeline that was trained for it")
    source.add_argument("--masks", type=Path, help="instead of a model: a folder of its masks, VIDEO/FRAME.png")
    command.add_argument("--split", default="val", help="list of DAVIS's videos (default: %(default)s)")
    command.add_argument(
        "--num-frames", type=positive_int, default=24, help="of a simulated scene (default: %(default)s)"
    )
    command.add_argument("--frames-per-clip", type=positive_int, help="default: the model's own")
    command.add_argument("--guidance-scale", type=finite_float, default=1.0, help="history guidance (default: none)")
    command.add_argument("--steps", type=positive_int, default=8, help="denoising steps a clip (default: %(default)s)")
    command.add_argument(
        "--height", type=positive_int, help="with --width: the size to work at; default: the model's longest side"
    )
    command.add_argument("--width", type=positive_int)
    add_seed_argument(command, help="of the noise")
    add_device_argument(command)
    add_output_argument(
        command,
        "videogpt_segmentation",
        help="folder of the model's masks, or of pictures of simulated scenes, and of scores.json",
    )
