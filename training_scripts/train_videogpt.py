"""Train Video-GPT by next clip diffusion: from nothing, from Phi-3's decoder, or on from a checkpoint.

    accelerate launch training_scripts/train_videogpt.py --config training_scripts/configs/stage3.yaml \
        --pretrained_model_name_or_path stage2 --instance_data_root videos --output_dir stage3

Videos come from a folder, a CSV or JSONL table, a Hub dataset (also streamed), simulated physics, or latents cached before
by `cache_latents.py`. Every argument can stand in a YAML file (`--config`).

Writes into --output_dir: the trained pipeline with a model card, `train_log.csv`, `dropped_videos.csv`, `validation/` with
predictions of held-out videos, and `checkpoint-N` folders, from which `--resume_from_checkpoint latest` goes on as if the
run had never stopped.
"""

import argparse

from accelerate.utils import set_seed

from diffusers_videogpt.training.arguments import load_pipeline, parse_arguments
from diffusers_videogpt.training.feed import make_feed
from diffusers_videogpt.training.loop import make_accelerator
from diffusers_videogpt.training.objective import parse_clips
from diffusers_videogpt.training.recipe import (
    NextClipTraining,
    add_pipeline_arguments,
    check_pipeline_arguments,
    train_pipeline,
)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_pipeline_arguments(parser)
    args = parse_arguments(parser)
    check_pipeline_arguments(parser, args)
    return args


def main():
    args = parse_args()
    accelerator = make_accelerator(args)
    set_seed(args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)

    pipe = load_pipeline(args)
    pipe.vae.to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    feed = make_feed(args, accelerator, pipe.vae, parse_clips(args.clips, args.max_clips))
    training = NextClipTraining(args, accelerator, pipe, feed)
    train_pipeline(args, accelerator, pipe, feed, training, "training_scripts/train_videogpt.py")


if __name__ == "__main__":
    main()
