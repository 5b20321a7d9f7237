"""Train Video-GPT to make videos from text: from nothing, or on from a pipeline, whose transformer gets a projection of text.

    accelerate launch training_scripts/train_text_to_video.py --config training_scripts/configs/text_to_video.yaml \
        --dataset_file videos.jsonl --caption_column caption --pretrained_text_encoder_path stabilityai/stable-diffusion-2-1 \
        --pretrained_model_name_or_path MODEL --output_dir text
    pipe(prompt="two red balls fall")

Captions are a column of a CSV or JSONL table or of a Hub dataset (also streamed), or those of simulated scenes. The text
encoder is one of `transformers`, by itself or in a pipeline; it is frozen, saved with the pipeline, and each caption is
encoded once, into `texts/`. `--cached_latents` takes the captions from the cache, made with the same `--caption_column`.

All else is as in `train_videogpt.py`; `validation/` shows held-out videos beside new ones of their captions.
"""

from diffusers_videogpt.tasks.conditional_generation import add_condition_arguments
from diffusers_videogpt.tasks.text_to_video import TextToVideoTraining
from diffusers_videogpt.training.arguments import make_parser, parse_arguments
from diffusers_videogpt.training.feed import make_feed
from diffusers_videogpt.training.objective import parse_clips
from diffusers_videogpt.training.recipe import (
    add_pipeline_arguments,
    check_pipeline_arguments,
    start_run,
    train_pipeline,
)


def parse_args():
    parser = make_parser(__doc__)
    add_pipeline_arguments(parser)
    add_condition_arguments(parser, "--caption_dropout")
    parser.add_argument(
        "--pretrained_text_encoder_path", help="a text encoder or a pipeline with one; default: the model's"
    )
    args = parse_arguments(parser)
    check_pipeline_arguments(parser, args)
    if args.validation_data_root is not None:
        parser.error(
            "a folder has no captions: leave out --validation_data_root, --num_validation_videos are kept instead"
        )
    return args


def main():
    args = parse_args()
    accelerator, pipe = start_run(args)
    feed = make_feed(args, accelerator, pipe.vae, parse_clips(args.clips, args.max_clips))
    training = TextToVideoTraining(args, accelerator, pipe, feed)
    train_pipeline(args, accelerator, pipe, feed, training, "training_scripts/train_text_to_video.py")


if __name__ == "__main__":
    main()
