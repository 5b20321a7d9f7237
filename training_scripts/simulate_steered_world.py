"""Write videos of the simulated world in which a ball obeys actions, each with its actions beside it.

    python training_scripts/simulate_steered_world.py --output_dir steered_videos --num_videos 3064

`scene_1000000.mp4` and `scene_1000000.actions.npy` and so on: an ordinary folder of videos with actions, for
`train_videogpt.py --instance_data_root steered_videos --num_actions 5` and for `VideoGPTEnv`.
"""

from pathlib import Path

from diffusers_videogpt.arguments import check_output, natural_int, positive_int
from diffusers_videogpt.training.arguments import make_parser, run_script
from diffusers_videogpt.worlds.steered import write_steered_videos


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_videos", type=positive_int, default=3064)
    parser.add_argument("--num_frames", type=positive_int, default=40, help="of each")
    parser.add_argument("--first_seed", type=natural_int, default=1_000_000, help="0 to 9999 are kept for evaluation")
    return parser.parse_args()


def main():
    args = parse_args()
    check_output(args.output_dir, "--output_dir")
    paths = write_steered_videos(
        args.output_dir, args.num_videos, num_frames=args.num_frames, first_seed=args.first_seed
    )
    print(f"{len(paths)} videos in {args.output_dir}")


if __name__ == "__main__":
    run_script(main)
