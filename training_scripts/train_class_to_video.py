"""Train Video-GPT to make videos of a class: from nothing, or on from a pipeline, whose transformer gets a class token.

    accelerate launch training_scripts/train_class_to_video.py --config training_scripts/configs/class_to_video.yaml \
        --instance_data_root UCF-101 --dataset_file ucfTrainTestlist/trainlist01.txt \
        --pretrained_model_name_or_path MODEL --output_dir ucf
    pipe(class_labels=["Basketball", "Fencing"])

A video's class is the folder that it lies in, the column `--label_column` of a table or a Hub dataset, or the kind of a
simulated scene. UCF-101's lists (trainlist01.txt, and classInd.txt beside it for the numbers) are read as they are.

All else is as in `train_videogpt.py`; `validation/` shows held-out videos beside new ones of their classes.
"""

from diffusers_videogpt.tasks.class_to_video import ClassToVideoTraining
from diffusers_videogpt.tasks.conditional_generation import add_condition_arguments
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
    add_condition_arguments(parser, "--label_dropout")
    args = parse_arguments(parser)
    check_pipeline_arguments(parser, args)
    if args.streaming:
        parser.error(
            "all classes must be known before the first step, of a stream they are not: leave out --streaming"
        )
    return args


def main():
    args = parse_args()
    accelerator, pipe = start_run(args)
    feed = make_feed(args, accelerator, pipe.vae, parse_clips(args.clips, args.max_clips))
    training = ClassToVideoTraining(args, accelerator, pipe, feed)
    train_pipeline(args, accelerator, pipe, feed, training, "training_scripts/train_class_to_video.py")


if __name__ == "__main__":
    main()
