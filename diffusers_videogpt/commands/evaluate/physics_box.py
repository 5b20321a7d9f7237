"""`videogpt evaluate physics-box`: scores models on simulated physics, beside the truth and baselines."""

import argparse

from ...arguments import check_output, positive_int
from ...console import say
from ..models import QUANTIZERS, dtypes_of, leave_out, look_at_model, usable_device
from ..options import (
    add_command,
    add_device_argument,
    add_dtype_argument,
    add_guidance_argument,
    add_model_argument,
    add_output_argument,
    add_seed_argument,
    add_steps_argument,
)


def parse_compared(text: str) -> tuple[str, str, int | None]:
    """ "next frame=DIR@1" → ("next frame", "DIR", 1), "NAME=DIR" → ("NAME", "DIR", None)."""
    name, _, source = text.partition("=")
    source, has_steps, steps = source.partition("@")
    if not name or not source or (has_steps and not (steps.isdecimal() and int(steps))):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MODEL or NAME=MODEL@STEPS, as in tokens=run@1")
    return name, source, int(steps) if steps else None


def evaluate_physics_box(args: argparse.Namespace) -> None:
    """Continues unseen simulated scenes and compares with the truth: pixels, trajectories, objects, collisions,
    energy, and the metrics of Physics-IQ. A run that was killed goes on where it stopped, with the same command."""
    check_output(args.output)
    for model in (args.model, *(source for _, source, _ in args.compare)):
        look_at_model(model)
    leave_out(QUANTIZERS)
    device = usable_device(args.device)
    from ...evaluation.physics_box import RolloutSettings
    from ...evaluation.physics_box_report import evaluate_models, format_scores, where_not_ahead

    results = evaluate_models(
        args.model,
        args.output,
        device=device,
        dtypes=dtypes_of(args.dtype, device=device),
        settings=RolloutSettings(args.steps, guidance_scale=args.guidance_scale, seed=args.seed),
        frames_per_clip=args.frames_per_clip,
        compare=args.compare,
        num_scenes=args.num_scenes,
        num_given=args.num_given,
        num_predicted=args.num_frames,
    )
    say(format_scores(results))
    say("", *(where_not_ahead(results, name) for name in results if name.startswith("clips of")))
    say(f"scores and plot: {args.output}")


def add_physics_box_benchmark(benchmarks) -> None:
    help_text = "physics in a box: unseen simulated scenes, where the truth is known exactly"
    command = add_command(benchmarks, "physics-box", run=evaluate_physics_box, help=help_text)
    add_model_argument(command)
    command.add_argument(
        "--compare",
        action="append",
        default=[],
        type=parse_compared,
        metavar="NAME=MODEL[@STEPS]",
        help="another model, with clip length and guidance of its own; give it several times for more",
    )
    command.add_argument("--num-scenes", type=positive_int, default=64, help="(default: %(default)s)")
    command.add_argument("--num-given", type=positive_int, default=8, help="frames shown (default: %(default)s)")
    command.add_argument("--num-frames", type=positive_int, default=16, help="frames predicted (default: %(default)s)")
    command.add_argument(
        "--frames-per-clip", type=positive_int, nargs="+", help="clip lengths to compare; default: the model's own"
    )
    add_guidance_argument(command)
    add_steps_argument(command)
    add_seed_argument(command, help="of the noise")
    add_device_argument(command)
    add_dtype_argument(command, default="float32")
    add_output_argument(command, "videogpt_physics_box")
