"""Train Video-GPT to segment objects: from nothing, or on from a pipeline. The first frame's masks are followed through the video.

    accelerate launch training_scripts/train_segmentation.py --config training_scripts/configs/segmentation.yaml \
        --instance_data_root DAVIS --pretrained_model_name_or_path MODEL --output_dir segmentation
    ids = segment_video(pipe, frames, first_mask)

`--instance_data_root` is a folder as DAVIS's (its list `--dataset_split`) or YouTube-VOS's; `--num_simulated_scenes` takes
simulated scenes, whose masks are exact. A sample is `--max_num_frames` frames, stretched to the size, and as many marked ones.

All else is as in `train_videogpt.py`; `validation/` shows held-out videos with true and predicted masks.
"""

from diffusers_videogpt.tasks.segmentation_data import make_segmentation_feed
from diffusers_videogpt.tasks.video_object_segmentation import VideoObjectSegmentationTraining
from diffusers_videogpt.training.arguments import make_parser, parse_arguments, refuse_options
from diffusers_videogpt.training.recipe import (
    add_pipeline_arguments,
    check_pipeline_arguments,
    start_run,
    train_pipeline,
)


# Of the other scripts: what is trained on here are pictures and masks in folders, in two clips.
NOT_HERE = [
    *("dataset_file", "dataset_name", "dataset_config_name", "video_column", "caption_column", "label_column"),
    *("streaming", "simulated_world", "target_fps", "cached_latents", "same_clips_in_step", "validation_data_root"),
    *("clips", "max_clips", "validation_given_frames"),
]


def parse_args():
    parser = make_parser(__doc__)
    add_pipeline_arguments(parser)
    # The given frames leave little to choose, so there is nothing to guide away from, and few steps are enough.
    parser.set_defaults(guidance_scale=1.0, validation_inference_steps=8)
    args = parse_arguments(parser)
    refuse_options(parser, args, NOT_HERE, "segmentation")
    check_pipeline_arguments(parser, args)
    least = args.min_num_frames or args.max_num_frames
    if least < 3:
        parser.error(f"clips of {least} frames: they have the marked first one and at least 2 others")
    args.frames_per_clip = args.frames_per_clip or args.max_num_frames
    return args


def main():
    args = parse_args()
    accelerator, pipe = start_run(args)
    feed = make_segmentation_feed(args, accelerator, pipe.vae)
    training = VideoObjectSegmentationTraining(args, accelerator, pipe, feed)
    train_pipeline(args, accelerator, pipe, feed, training, "training_scripts/train_segmentation.py")


if __name__ == "__main__":
    main()
