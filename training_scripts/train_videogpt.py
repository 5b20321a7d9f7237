"""Train Video-GPT by next clip diffusion: from nothing, from Phi-3's decoder, or on from a checkpoint.

    accelerate launch training_scripts/train_videogpt.py --config training_scripts/configs/stage3.yaml \
        --pretrained_model_name_or_path stage2 --instance_data_root videos --output_dir stage3

Videos come from a folder, a CSV or JSONL table, a Hub dataset (also streamed), simulated physics, or latents cached before
by `cache_latents.py`. Every argument can stand in a YAML file (`--config`).

Writes into --output_dir: the trained pipeline with a model card, `train_log.csv`, `dropped_videos.csv`, `validation/` with
predictions of held-out videos, and `checkpoint-N` folders, from which `--resume_from_checkpoint latest` goes on as if the
run had never stopped.
"""

from diffusers_videogpt.training.arguments import make_parser, parse_arguments
from diffusers_videogpt.training.feed import make_feed
from diffusers_videogpt.training.objective import parse_clips
from diffusers_videogpt.training.recipe import (
    NextClipTraining,
    add_pipeline_arguments,
    check_pipeline_arguments,
    start_run,
    train_pipeline,
)


def parse_args():
    parser = make_parser(__doc__)
    add_pipeline_arguments(parser)
    args = parse_arguments(parser)
    check_pipeline_arguments(parser, args)
    return args


def main():
    args = parse_args()
    accelerator, pipe = start_run(args)
    feed = make_feed(args, accelerator, pipe.vae, parse_clips(args.clips, args.max_clips))
    training = NextClipTraining(args, accelerator, pipe, feed)
    train_pipeline(args, accelerator, pipe, feed, training, "training_scripts/train_videogpt.py")


if __name__ == "__main__":
    main()
