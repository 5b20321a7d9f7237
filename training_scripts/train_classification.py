"""Train a classifier of videos on Video-GPT's features: a linear probe, or the whole model.

    accelerate launch training_scripts/train_classification.py --config training_scripts/configs/classification.yaml \
        --instance_data_root UCF-101 --dataset_file ucfTrainTestlist/trainlist01.txt \
        --pretrained_model_name_or_path MODEL --output_dir ucf_probe
    videogpt evaluate probe --model ucf_probe --data UCF-101 --dataset-file ucfTrainTestlist/testlist01.txt

`--mode probe` computes the features of evenly spread clips of every video once, keeps them in `OUTPUT_DIR/features`, and
trains a linear layer on them; its weight decay, and of several `--layer` the best one, are chosen on
`--num_validation_videos` videos kept from it, before it is trained on all. `--mode finetune` trains all weights that the
layer needs, on random clips, as `train_videogpt.py` does.

A video's class is the folder that it lies in, the column `--label_column` of a table or a Hub dataset, or the kind of a
simulated scene. UCF-101's lists are read as they are. The output folder is a `VideoGPTForVideoClassification`, with the VAE.
"""

from diffusers_videogpt.tasks.classification_training import (
    add_classification_arguments,
    check_classification_arguments,
    train_classifier,
    train_probe,
)
from diffusers_videogpt.training.arguments import (
    add_data_arguments,
    add_model_arguments,
    check_data_arguments,
    check_model_arguments,
    make_parser,
    parse_arguments,
)
from diffusers_videogpt.training.feed import add_feed_arguments, make_feed
from diffusers_videogpt.training.loop import add_loop_arguments
from diffusers_videogpt.training.recipe import add_hub_arguments, start_run


def parse_args():
    parser = make_parser(__doc__)
    add_model_arguments(parser)
    add_data_arguments(parser)
    add_feed_arguments(parser)
    add_classification_arguments(parser)
    add_loop_arguments(parser)
    add_hub_arguments(parser)
    args = parse_arguments(parser)
    check_model_arguments(parser, args)
    check_data_arguments(parser, args)
    check_classification_arguments(parser, args)
    return args


def main():
    args = parse_args()
    accelerator, pipe = start_run(args)
    if args.mode == "probe":
        train_probe(args, accelerator, pipe)
    else:
        feed = make_feed(args, accelerator, pipe.vae, lambda num_frames, generator: [num_frames])
        train_classifier(args, accelerator, pipe, feed)


if __name__ == "__main__":
    main()
