"""Do generated videos show what was asked for? Classes by a classifier trained for it, texts by counting objects.

    python training_scripts/evaluate_conditions.py classes --model physics_classes --output classes
    python training_scripts/evaluate_conditions.py prompts --model physics_text --output prompts

`classes` trains a classifier on real videos that the model has not seen (simulated scenes, or a folder a class), asks it about
generated ones, and writes both, for `videogpt evaluate fvd --data classes/real --videos classes/made --num-given 0`.
`prompts` asks for simulated scenes by text, and reads colours, numbers and shapes of their objects.
"""

from dataclasses import asdict
from pathlib import Path

from diffusers_videogpt.arguments import check_output, finite_float, positive_int
from diffusers_videogpt.commands.models import refuse_missing, usable_device
from diffusers_videogpt.files import write_json
from diffusers_videogpt.training.arguments import make_parser, run_script


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=["classes", "prompts"])
    parser.add_argument("--model", required=True, help="folder or Hub id of a pipeline")
    parser.add_argument("--output", type=Path, required=True, help="folder of the videos, strips and `scores.json`")
    parser.add_argument("--videos_per_class", type=positive_int, default=20)
    parser.add_argument("--num_training_videos", type=positive_int, default=800, help="for the classifier")
    parser.add_argument("--data_root", type=Path, help="folder a class of real videos; default: simulated scenes")
    parser.add_argument("--num_prompts", type=positive_int, default=64, help="and as many of held-out combinations")
    parser.add_argument("--steps", type=positive_int, default=25, help="denoising steps")
    parser.add_argument("--condition_guidance_scale", type=finite_float, help="default: the model's own")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--device", help="default: a GPU if there is one")
    return parser.parse_args()


def main():
    args = parse_args()
    check_output(args.output)
    refuse_missing(args.data_root, "--data_root")
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from diffusers_videogpt import VideoGPTPipeline
    from diffusers_videogpt.evaluation import condition_following

    device = usable_device(args.device)
    pipe = VideoGPTPipeline.from_pretrained(args.model).to(device)
    pipe.set_progress_bar_config(disable=True)
    settings = {
        "num_inference_steps": args.steps,
        "condition_guidance_scale": args.condition_guidance_scale,
        "seed": args.seed,
        "folder": args.output,
    }
    if args.what == "classes":
        scores = condition_following.evaluate_classes(
            pipe,
            args.videos_per_class,
            num_training_videos=args.num_training_videos,
            data_root=args.data_root,
            **settings,
        )
        table, numbers = condition_following.format_classes(scores), asdict(scores)
    else:
        scores = condition_following.evaluate_prompts(pipe, args.num_prompts, **settings)
        table, numbers = condition_following.format_prompts(scores), {name: asdict(x) for name, x in scores.items()}
    write_json(args.output / "scores.json", numbers)
    print(table)


if __name__ == "__main__":
    run_script(main)
