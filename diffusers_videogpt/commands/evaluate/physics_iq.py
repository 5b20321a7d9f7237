"""`videogpt evaluate physics-iq`: scores a model, or videos made by any other, on the Physics-IQ benchmark."""

import argparse
from pathlib import Path

from ...arguments import check_output, finite_float, positive_int, whole_number
from ...console import progress_options, say
from ..models import QUANTIZERS, leave_out, load_pipeline, look_at_model, refuse_missing
from ..options import add_command, add_device_argument, add_dtype_argument, add_output_argument, rollout_options


MOST_SEED = 9 * 10**14  # the noise of a video follows from 10,000 times it, in 64 bits


def parse_shard(text: str) -> tuple[int, int]:
    """ "0/4" → (0, 4)."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not I/N with I from 0 to N - 1, as in 0/4 for the first of four"
        )
    return int(index), int(count)


def evaluate_physics_iq(args: argparse.Namespace) -> None:
    """Predicts the last 5 s of every video of the Physics-IQ benchmark from its first 3 s, or takes videos made by any
    other model, and scores them as the benchmark's own scorer does. A run that was killed goes on where it stopped,
    with the same command."""
    refuse_missing(args.data, "--data")
    for option in ("videos", "descriptions", "masks"):
        refuse_missing(getattr(args, option), f"--{option}")
    if (args.height is None) != (args.width is None):
        raise ValueError("--height and --width go together.")
    check_output(args.output)
    if args.model is not None:
        saved = look_at_model(args.model)
        saved.check_size(args.height, args.width)
    leave_out(QUANTIZERS)
    from ...evaluation.physics_iq_videos import (
        Benchmark,
        PredictionSettings,
        predict_views,
        rate_of_videos,
        rows_by_scenario,
        score_views,
    )
    from ...files import Store
    from ...metrics.physics_iq import format_score, score_set, write_csv

    fps = args.fps if args.videos is None else rate_of_videos(args.videos)
    benchmark = Benchmark(args.data, fps, descriptions=args.descriptions)
    shard, num_shards = args.shard
    views = benchmark.views[shard::num_shards]
    say(f"{len(benchmark.views)} views at {fps} frames/s (all of Physics-IQ is 198), {len(views)} to do here")

    store, videos = Store(args.output), args.videos
    if videos is None:
        pipe = load_pipeline(saved, device=args.device, dtype=args.dtype)
        pipe.set_progress_bar_config(**progress_options())
        settings = PredictionSettings(
            **rollout_options(args, pipe),
            max_context_frames=args.max_context_frames,
            height=args.height,
            width=args.width,
            seed=args.seed,
        )
        predict_views(pipe, benchmark, views=views, store=store, settings=settings)
        videos = store.videos
    scores = score_views(benchmark, videos, views=views, store=store, mask_mode=args.mask_mode, masks=args.masks)
    if num_shards > 1:
        say(f"shard {shard}/{num_shards} is done; when all are, the same command without --shard gives the score")
        return
    rows = rows_by_scenario(views, scores)
    result = score_set(rows)
    csv_path = args.output / "physics_iq.csv"
    with store.writing(csv_path) as unfinished:
        write_csv(unfinished, rows)
    say(format_score(result, benchmark.categories))
    say(f"videos: {videos}\nmetrics: {csv_path}\nPhysics-IQ score: {result.score:.2f}")


def add_physics_iq_benchmark(benchmarks) -> None:
    command = add_command(benchmarks, "physics-iq", run=evaluate_physics_iq, help="the Physics-IQ benchmark")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder or Hub id of a pipeline")
    source.add_argument(
        "--videos", type=Path, help="instead of a model: a folder of its videos of 5 s, {ID}_{view}_{scenario}.mp4"
    )
    command.add_argument(
        "--data", type=Path, required=True, help="the folder physics-IQ-benchmark, or the one that it is in"
    )
    add_output_argument(command, "videogpt_physics_iq")
    command.add_argument(
        "--descriptions", type=Path, help="the benchmark's CSV: which scenarios there are, and their categories"
    )
    command.add_argument(
        "--mask-mode",
        choices=["reference", "raw"],
        default="reference",
        help="motion masks after lossy video, as the benchmark's scorer has them, or as computed (default: %(default)s)",
    )
    command.add_argument(
        "--masks",
        type=Path,
        help="ready masks: a folder with folders real and generated; default: the real ones of the benchmark, where it "
        "has them, and own ones",
    )
    command.add_argument(
        "--shard",
        type=parse_shard,
        default=(0, 1),
        metavar="I/N",
        help="do only every Nth view, from the Ith on (counted from 0): N processes share the work and the output folder",
    )
    command.add_argument(
        "--fps",
        type=positive_int,
        default=8,
        help="of the prediction (default: %(default)s; the paper is silent: at 8 the 3 s + 5 s are 64 frames, which fit into "
        "the window of 80, and their spacing is about the closest that the model was trained with)",
    )
    command.add_argument(
        "--steps", type=positive_int, default=50, help="denoising steps a clip (default: %(default)s, the paper's)"
    )
    command.add_argument(
        "--guidance-scale",
        type=finite_float,
        default=3.0,
        help="history guidance (default: %(default)s, the paper's best)",
    )
    command.add_argument(
        "--frames-per-clip",
        type=positive_int,
        default=32,
        help="frames predicted in parallel (default: %(default)s, the paper's best)",
    )
    command.add_argument(
        "--max-context-frames",
        type=positive_int,
        default=80,
        help="frames looked back on (default: %(default)s, of the authors' script)",
    )
    command.add_argument(
        "--height",
        type=positive_int,
        help="with --width: the size to predict at; default: the model's longest side, as in training (320 x 176, which the "
        "scorer stretches to 16:9; 256 x 144 is exactly that)",
    )
    command.add_argument("--width", type=positive_int)
    command.add_argument(
        "--seed",
        type=whole_number(at_least=-MOST_SEED, at_most=MOST_SEED),
        default=0,
        help="of the noise (default: %(default)s; the paper is silent)",
    )
    add_device_argument(command)
    add_dtype_argument(command, default="float32")
