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

from diffusers_videogpt.tasks.settings import NO_STREAM_OF_CLASSES, ClassSettings, ConditionedSettings
from diffusers_videogpt.training.arguments import parse_settings, part, run_script
from diffusers_videogpt.training.settings import VideoSettings


@dataclass(kw_only=True)
class Settings(ConditionedSettings):
    """Of a training on classes, without a stream."""

    condition: ClassSettings = part()
    videos: VideoSettings = part(without=NO_STREAM_OF_CLASSES)


def main():
    settings = parse_settings(Settings, __doc__, what="class to video")
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from diffusers_videogpt.tasks.class_to_video import ClassToVideoTraining
    from diffusers_videogpt.training.recipe import train_pipeline

    train_pipeline(
        ClassToVideoTraining,
        settings,
        script="training_scripts/train_class_to_video.py",
        classes=settings.condition,
        dataset_file=settings.videos.dataset_file,
    )


if __name__ == "__main__":
    run_script(main)
