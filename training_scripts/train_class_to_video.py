"""Train Video-GPT to make videos of a class: from nothing, or on from a pipeline, whose transformer gets a class token.

    accelerate launch training_scripts/train_class_to_video.py --config training_scripts/configs/class_to_video.yaml \
        --instance_data_root UCF-101 --dataset_file ucfTrainTestlist/trainlist01.txt \
        --pretrained_model_name_or_path MODEL --output_dir ucf
    pipe(class_labels=["Basketball", "Fencing"])

A video's class is the folder that it lies in, the column `--label_column` of a table or a Hub dataset, or the kind of a
simulated scene. UCF-101's lists (trainlist01.txt, and classInd.txt beside it for the numbers) are read as they are.

All else is as in `train_videogpt.py`; `validation/` shows held-out videos beside new ones of their classes.
"""

from dataclasses import dataclass

from diffusers_videogpt.tasks.settings import NO_STREAM_OF_CLASSES, ClassSettings
from diffusers_videogpt.training.arguments import parse_settings, part, run_script
from diffusers_videogpt.training.settings import (
    NO_RESAMPLING,
    ObjectiveSettings,
    PipelineSettings,
    RolloutSettings,
    VideoSettings,
)


@dataclass(kw_only=True)
class Settings(PipelineSettings):
    """Of a pipeline's training, without a stream, and without given frames, as videos are made from their class alone."""

    condition: ClassSettings = part()
    videos: VideoSettings = part(without=NO_STREAM_OF_CLASSES)
    objective: ObjectiveSettings = part(without=NO_RESAMPLING)
    validation: RolloutSettings = part(without=["validation_given_frames"])


def main():
    settings = parse_settings(Settings, __doc__, what="class to video")
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from diffusers_videogpt.tasks.class_to_video import ClassToVideoTraining
    from diffusers_videogpt.training.feed import make_feed
    from diffusers_videogpt.training.objective import make_clip_drawer
    from diffusers_videogpt.training.recipe import record_run, run_training, start_run

    accelerator, pipe = start_run(settings.model, settings.sampling, run=settings.run, objective=settings.objective)
    feed = make_feed(accelerator, pipe.vae, draw_clips=make_clip_drawer(settings.objective), data=settings.data)
    training = ClassToVideoTraining(
        accelerator,
        pipe,
        feed=feed,
        classes=settings.condition,
        dataset_file=settings.videos.dataset_file,
        recipe=settings.recipe,
    )
    record = record_run(settings, "training_scripts/train_class_to_video.py")
    run_training(accelerator, training, feed=feed, run=settings.run, record=record)


if __name__ == "__main__":
    run_script(main)
