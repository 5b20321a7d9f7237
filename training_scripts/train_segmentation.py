"""Train Video-GPT to segment objects: from nothing, or on from a pipeline. The first frame's masks are followed through the video.

    accelerate launch training_scripts/train_segmentation.py --config training_scripts/configs/segmentation.yaml \
        --instance_data_root DAVIS --pretrained_model_name_or_path MODEL --output_dir segmentation
    ids = segment_video(pipe, frames, first_mask=first_mask)

`--instance_data_root` is a folder as DAVIS's (its list `--dataset_split`) or YouTube-VOS's; `--num_simulated_scenes` takes
simulated scenes, whose masks are exact. A sample is `--max_num_frames` frames, stretched to the size, and as many marked ones.

All else is as in `train_videogpt.py`; `validation/` shows held-out videos with true and predicted masks.
"""

from dataclasses import dataclass

from diffusers_videogpt.training.arguments import parse_settings, part, run_script
from diffusers_videogpt.training.settings import (
    NO_RESAMPLING,
    LatentSettings,
    ModelSettings,
    ObjectiveSettings,
    PipelineSettings,
    RolloutSettings,
    SamplingSettings,
    VideoSettings,
)


@dataclass(kw_only=True)
class Settings(PipelineSettings):
    """Of a pipeline's training on pictures and masks in folders, whose samples are two clips."""

    # The given frames leave little to choose, so there is nothing to guide away from, and few steps are enough.
    model: ModelSettings = part(guidance_scale=1.0)
    videos: VideoSettings = part(
        without=[
            *("dataset_file", "dataset_name", "dataset_config_name", "video_column", "caption_column"),
            *("label_column", "streaming", "simulated_world", "lerobot_root", "lerobot_camera"),
        ]
    )
    sampling: SamplingSettings = part(without=["target_fps"], max_num_frames=48, frame_interval=(1,))
    latents: LatentSettings = part(without=["cached_latents", "same_clips_in_step", "validation_data_root"])
    objective: ObjectiveSettings = part(
        without=NO_RESAMPLING | dict.fromkeys(["clips", "max_clips", "next_frame_share"], ""), clips="random"
    )
    validation: RolloutSettings = part(without=["validation_given_frames"], validation_inference_steps=8)

    def __post_init__(self):
        if self.sampling.least_num_frames < 3:
            raise ValueError(
                f"clips of {self.sampling.least_num_frames} frames: they have the marked first one and at least 2 others"
            )
        super().__post_init__()
        if self.model.frames_per_clip is None:
            self.model.frames_per_clip = self.sampling.num_frames


def main():
    settings = parse_settings(Settings, __doc__, what="segmentation")
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from diffusers_videogpt.tasks.segmentation_data import make_segmentation_feed
    from diffusers_videogpt.tasks.video_object_segmentation import VideoObjectSegmentationTraining
    from diffusers_videogpt.training.recipe import record_run, run_training, start_run

    accelerator, pipe = start_run(settings.model, settings.sampling, run=settings.run)
    feed = make_segmentation_feed(accelerator, pipe.vae, data=settings.data)
    training = VideoObjectSegmentationTraining(accelerator, pipe, feed=feed, recipe=settings.recipe)
    record = record_run(settings, "training_scripts/train_segmentation.py")
    run_training(accelerator, training, feed=feed, run=settings.run, record=record)


if __name__ == "__main__":
    run_script(main)
