"""Write three small sets of animations in the bundled model's world: an object lies down, flies off, turns into another.

    python training_scripts/make_motions.py --output_dir motions
    accelerate launch training_scripts/train_videogpt_lora.py --pretrained_model_name_or_path MODEL \
        --instance_data_root motions/lie_down/train --output_dir lie_down

Of each set: `train/`, 80 videos of 24 frames at 64 x 64 pixels, for any training script; `held_out/`, 64 first frames with colours or
places that the training set lacks, and `held_out/truth/`, what follows.
"""

from pathlib import Path

from diffusers_videogpt.arguments import check_output, natural_int, positive_int
from diffusers_videogpt.training.arguments import make_parser, run_script
from diffusers_videogpt.worlds.motions import MOTIONS, write_motion_set


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="gets a folder a motion")
    parser.add_argument("--motions", nargs="+", choices=list(MOTIONS), default=list(MOTIONS))
    parser.add_argument("--num_videos", type=positive_int, default=80, help="of a set, to train on")
    parser.add_argument("--num_held_out", type=natural_int, default=64, help="first frames of a set, and their truth")
    parser.add_argument("--num_frames", type=positive_int, default=24)
    parser.add_argument("--size", type=positive_int, default=64, help="of the square pictures, in pixels")
    args = parser.parse_args()
    check_output(args.output_dir, "--output_dir")
    for motion in args.motions:
        folder = write_motion_set(
            args.output_dir / motion,
            motion,
            num_training=args.num_videos,
            num_held_out=args.num_held_out,
            num_frames=args.num_frames,
            size=args.size,
        )
        print(f"{folder}: {args.num_videos} videos to train on, {args.num_held_out} held-out first frames")


if __name__ == "__main__":
    run_script(main)
