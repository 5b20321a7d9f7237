"""Does a model of the steered world obey its actions, and is it good enough to learn in?

    python training_scripts/evaluate_steering.py moves --output steering
    python training_scripts/evaluate_steering.py policy --output steering
    python training_scripts/evaluate_steering.py speed --output steering

`moves` compares commanded with predicted displacement over unseen scenes and five actions, and what becomes of the other balls;
`moves.png` shows one scene.
`policy` trains small policies by stable-baselines3 (`pip install stable-baselines3`), in the simulator and in the model alone, and
judges both in the simulator. `speed` counts steps a second of `VideoGPTEnv`.
"""

from dataclasses import asdict
from pathlib import Path

from diffusers_videogpt import BUNDLED_STEERED_MODEL
from diffusers_videogpt.arguments import check_output, finite_float, natural_int, positive_int
from diffusers_videogpt.commands.models import usable_device
from diffusers_videogpt.files import write_json
from diffusers_videogpt.training.arguments import make_parser, run_script


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=["moves", "policy", "speed"])
    parser.add_argument("--model", default=BUNDLED_STEERED_MODEL, help="folder or Hub id; default: the bundled one")
    parser.add_argument("--output", type=Path, required=True, help="folder of the figures as JSON")
    parser.add_argument("--num_scenes", type=positive_int, help="unseen; default: 64 of moves, 100 of policy")
    parser.add_argument(
        "--num_steps", type=positive_int, help="of a move (4), of a policy's training (20000), of speed (100)"
    )
    parser.add_argument("--shown_scene", type=natural_int, default=66, help="of moves.png (66)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the policies")
    parser.add_argument("--num_envs", type=positive_int, default=8, help="that a policy is trained in at once")
    parser.add_argument("--horizon", type=positive_int, default=32, help="steps of an episode")
    parser.add_argument("--steps", type=positive_int, help="denoising steps; default: the model's own, or 8")
    parser.add_argument("--num_history_frames", type=positive_int, default=8)
    parser.add_argument("--frames_per_step", type=positive_int, default=1)
    parser.add_argument("--guidance_scale", type=finite_float, default=1.0)
    parser.add_argument("--action_guidance_scale", type=finite_float, default=1.0)
    parser.add_argument("--device", help="default: a GPU if there is one")
    return parser.parse_args()


def main():
    args = parse_args()
    check_output(args.output)
    device = usable_device(args.device)
    world = {
        "model": args.model,
        "num_history_frames": args.num_history_frames,
        "frames_per_step": args.frames_per_step,
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "action_guidance_scale": args.action_guidance_scale,
        "device": device,
    }
    named = Path(args.model).name if args.model == BUNDLED_STEERED_MODEL else args.model  # not where the package lies
    record = {"what": args.what, "world": world | {"model": named}}
    # Imported only now: torch takes seconds, and wrong options are told at once. Each of the three needs other libraries.
    if args.what == "moves":
        from diffusers_videogpt.evaluation.steering import draw_moves, evaluate_steering, format_steering, plain_move
        from diffusers_videogpt.tasks.world_model import WorldModel

        model, how = WorldModel(**world), {"num_steps": args.num_steps or 4}
        scores, moves = evaluate_steering(model, args.num_scenes or 64, **how)
        draw_moves(args.output / "moves.png", model, scene=args.shown_scene, **how)
        record["world"]["num_inference_steps"] = model.num_inference_steps
        record |= {"scores": asdict(scores), "moves": [plain_move(move) for move in moves]}
        table = format_steering(scores)
    elif args.what == "speed":
        from diffusers_videogpt.evaluation.steered_speed import measure_speed

        record["scores"] = measure_speed(world, args.num_steps or 100)
        table = ", ".join(f"{name} {value:.4g}" for name, value in record["scores"].items())
    else:
        from diffusers_videogpt.evaluation.steered_policies import compare_policies, format_policies

        scores = compare_policies(
            world,
            seeds=args.seeds,
            num_steps=args.num_steps or 20_000,
            num_scenes=args.num_scenes or 100,
            horizon=args.horizon,
            num_envs=args.num_envs,
        )
        record |= {
            "seeds": args.seeds,
            "scores": scores | {n: plain(scores[n]) for n in ("simulator", "model", "random")},
        }
        table = format_policies(scores)
    write_json(args.output / f"{args.what}.json", record)
    print(table)


def plain(scores):
    """Scores, or a list of them, as JSON has them."""
    return [asdict(one) for one in scores] if isinstance(scores, list) else asdict(scores)


if __name__ == "__main__":
    run_script(main)
