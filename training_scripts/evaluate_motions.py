"""Has an adapter learnt its motion, and do two of them mix? On held-out first frames of the sets of `make_motions.py`.

    python training_scripts/evaluate_motions.py scores --model MODEL --lora lie_down=lie_down --lora fly_off=fly_off \
        --lora transform=transform --output motions_scores
    python training_scripts/evaluate_motions.py mix --model MODEL --lora lie_down=lie_down --lora transform=transform \
        --output motions_mix

`scores` trains a classifier on animations that are in no set, and asks it about 64 held-out first frames of each motion, animated by
the base, by the adapter (NAME=SOURCE, NAME one of the motions), not at all, and as they truly go on; with `--all_weights`, also by a
model that was trained whole. It also reads whether the other objects stayed, and compares errors. `mix` animates one held-out
picture with two adapters at several weights, at half scale, fused, and after they were unloaded.
"""

from dataclasses import asdict
from pathlib import Path

from diffusers_videogpt.arguments import check_output, finite_float, positive_int
from diffusers_videogpt.commands.models import check_loras, usable_device
from diffusers_videogpt.files import write_json
from diffusers_videogpt.training.arguments import make_parser, run_script
from diffusers_videogpt.worlds.motions import MOTIONS, animate


def named_lora(text: str) -> tuple[str, str]:
    """ "fly_off=folder" → ("fly_off", "folder")"""
    name, _, source = text.partition("=")
    if name not in MOTIONS or not source:
        raise ValueError(text)
    return name, source


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=["scores", "mix"])
    parser.add_argument("--model", required=True, help="folder or Hub id of the adapters' base")
    parser.add_argument(
        "--lora",
        type=named_lora,
        action="append",
        required=True,
        metavar="MOTION=SOURCE",
        help=f"an adapter and its motion: {', '.join(MOTIONS)}; once a motion",
    )
    parser.add_argument(
        "--all_weights",
        type=named_lora,
        action="append",
        default=[],
        metavar="MOTION=MODEL",
        help="a folder that train_videogpt.py wrote, to be scored beside the adapter of its motion",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures and `scores.json`")
    parser.add_argument("--num_animations", type=positive_int, default=64, help="held-out first frames of a motion")
    parser.add_argument("--videos_per_class", type=positive_int, default=100, help="for the classifier")
    parser.add_argument(
        "--num_frames", type=positive_int, default=24, help="of an animation, the given one among them"
    )
    parser.add_argument("--steps", type=positive_int, help="denoising steps a clip; default: the model's own, or 25")
    parser.add_argument("--guidance_scale", type=finite_float, help="history guidance; default: the model's own")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, and of the picture that is mixed on")
    parser.add_argument("--device", help="default: a GPU if there is one")
    args = parser.parse_args()
    names = [name for name, _ in args.lora]
    if len(set(names)) < len(names) or (args.what == "mix" and len(names) != 2):
        parser.error("--lora: give one adapter a motion, and two of them to mix")
    if not dict(args.all_weights).keys() <= set(names):
        parser.error("--all_weights: for each motion give its adapter too, by --lora")
    return args


def main():
    args = parse_args()
    check_output(args.output)
    check_loras([(source, 1.0) for _, source in args.lora])
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from diffusers_videogpt import VideoGPTPipeline
    from diffusers_videogpt.commands.options import steps_of
    from diffusers_videogpt.evaluation.motions import (
        evaluate_motion,
        format_motion_scores,
        mix_adapters,
        train_motion_classifier,
    )
    from diffusers_videogpt.film_strips import write_film_strip

    device = usable_device(args.device)

    def load(source: str) -> VideoGPTPipeline:
        pipe = VideoGPTPipeline.from_pretrained(source).to(device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    pipe, whole = load(args.model), {motion: load(source) for motion, source in args.all_weights}
    settings = {"num_frames": args.num_frames, "num_inference_steps": steps_of(args.steps, pipe)}
    settings |= {"guidance_scale": args.guidance_scale, "seed": args.seed}
    if args.what == "mix":
        (motion, _), _ = args.lora
        picture = animate(motion, args.seed, held_out=True, num_frames=2, size=pipe.config.longest_side).frames[0]
        videos, differences = mix_adapters(pipe, dict(args.lora), frame=picture, **settings)
        fps = (pipe.config.trained_with or {}).get("fps")
        print(write_film_strip(args.output / "mix.png", videos, num_given=1, fps=fps))
        write_json(args.output / "differences.json", differences)
        print(*(f"{name}: {value:g} of 255 at most" for name, value in differences.items()), sep="\n")
        return
    classifier, worth = train_motion_classifier(
        pipe, videos_per_class=args.videos_per_class, num_frames=args.num_frames, seed=args.seed
    )
    print(f"The classifier recognises {worth:.1%} of unseen videos.")
    numbers = {"classifier": worth}
    for motion, source in args.lora:
        scores = evaluate_motion(
            pipe,
            source,
            motion=motion,
            all_weights=whole.get(motion),
            classifier=classifier,
            num_animations=args.num_animations,
            folder=args.output,
            **settings,
        )
        numbers[motion] = {novelty: {way: asdict(x) for way, x in ways.items()} for novelty, ways in scores.items()}
        write_json(args.output / "scores.json", numbers)  # after each, as they take minutes
        print(f"{motion}\n{format_motion_scores(scores)}", flush=True)


if __name__ == "__main__":
    run_script(main)
