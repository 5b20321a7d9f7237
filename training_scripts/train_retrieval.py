"""Train videos and texts into one space, where a text finds its videos: projections on a pipeline's frozen features.

    accelerate launch training_scripts/train_retrieval.py --config training_scripts/configs/retrieval.yaml \
        --dataset_file videos.jsonl --pretrained_model_name_or_path MODEL --output_dir retrieval
    videogpt evaluate retrieval --model retrieval --dataset-file test.jsonl --caption-column caption
    videogpt index my_videos --model retrieval --output my_index
    videogpt search my_index "two red balls fall"

The features of evenly spread clips are computed once and kept in `OUTPUT_DIR/features`; `--train_transformer` trains the
transformer too, on random clips. A video is told from the other videos of its micro-batch on all processes: large batches
make the task harder, accumulated ones do not. Videos of one caption are not told from each other.

Captions are a column of a CSV or JSONL table or of a Hub dataset, or those of simulated scenes. The text encoder is one of
`transformers`, by itself or in a pipeline; it is frozen and saved beside the retriever: the output folder is a
`VideoGPTRetrievalPipeline`.
"""

from diffusers_videogpt.tasks.retrieval_training import (
    add_retrieval_arguments,
    check_retrieval_arguments,
    make_retrieval_feed,
    train_retrieval,
)
from diffusers_videogpt.training.arguments import (
    add_data_arguments,
    add_model_arguments,
    check_data_arguments,
    check_model_arguments,
    make_parser,
    parse_arguments,
)
from diffusers_videogpt.training.feed import add_feed_arguments, check_feed_arguments
from diffusers_videogpt.training.loop import add_loop_arguments
from diffusers_videogpt.training.recipe import add_hub_arguments, start_run


def parse_args():
    parser = make_parser(__doc__)
    add_model_arguments(parser)
    add_data_arguments(parser)
    add_feed_arguments(parser)
    add_retrieval_arguments(parser)
    add_loop_arguments(parser)
    add_hub_arguments(parser)
    args = parse_arguments(parser)
    check_model_arguments(parser, args)
    check_data_arguments(parser, args)
    check_feed_arguments(parser, args)
    check_retrieval_arguments(parser, args)
    return args


def main():
    args = parse_args()
    accelerator, pipe = start_run(args)
    train_retrieval(args, accelerator, pipe, make_retrieval_feed(args, accelerator, pipe))


if __name__ == "__main__":
    main()
