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
import json

import torch
from accelerate.utils import set_seed

from diffusers_videogpt import VideoGPTTransformerModel
from diffusers_videogpt.training.arguments import (
    add_data_arguments,
    add_model_arguments,
    check_data_arguments,
    check_model_arguments,
    load_pipeline,
    parse_arguments,
)
from diffusers_videogpt.training.feed import add_feed_arguments, check_feed_arguments, make_feed
from diffusers_videogpt.training.loop import TrainingLoop, add_loop_arguments, make_accelerator
from diffusers_videogpt.training.objective import parse_clips
from diffusers_videogpt.training.recipe import NextClipTraining, add_recipe_arguments, check_recipe_arguments


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_model_arguments(parser)
    add_data_arguments(parser)
    add_feed_arguments(parser)
    add_recipe_arguments(parser)
    add_loop_arguments(parser)
    parser.add_argument("--output_dtype", choices=["float32", "bfloat16"], default="float32", help="of saved weights")
    args = parse_arguments(parser)
    check_model_arguments(parser, args)
    check_data_arguments(parser, args)
    check_feed_arguments(parser, args)
    check_recipe_arguments(parser, args)
    return args


def save(args, accelerator, pipe, loop: TrainingLoop, training: NextClipTraining) -> None:
    """Saves the trained pipeline with its card."""
    weights = loop.trained_state_dict()
    if not accelerator.is_main_process:
        return
    transformer = VideoGPTTransformerModel.from_config(pipe.transformer.config)
    transformer.load_state_dict(weights)
    if args.output_dtype != "float32":
        transformer.to(getattr(torch, args.output_dtype))
    pipe.transformer = transformer.eval()
    pipe.to("cpu").save_pretrained(args.output_dir)
    training.publish(loop, "training_scripts/train_videogpt.py")


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
    loop = TrainingLoop(
        args,
        accelerator,
        pipe.transformer,
        feed,
        training.loss,
        run={
            "transformer": json.loads(pipe.transformer.to_json_string()),
            **training.run_fields(),
            **feed.run_fields(),
        },
        validate=training.validate,
    )
    loop.run()
    save(args, accelerator, pipe, loop, training)
    accelerator.end_training()


if __name__ == "__main__":
    main()
