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

from dataclasses import dataclass

from diffusers_videogpt.tasks.settings import NO_STREAM_OF_CLASSES, ClassifierSettings
from diffusers_videogpt.training.arguments import parse_settings, part, run_script
from diffusers_videogpt.training.settings import LatentSettings, ModelSettings, TrainingSettings, VideoSettings


@dataclass(kw_only=True)
class Settings(TrainingSettings):
    """Of any training, without what belongs to pipelines that predict: the result is none, and a sample is one clip."""

    model: ModelSettings = part(without=["frames_per_clip", "guidance_scale"])
    videos: VideoSettings = part(without=NO_STREAM_OF_CLASSES)
    latents: LatentSettings = part(without=["same_clips_in_step"])
    classifier: ClassifierSettings = part()

    def __post_init__(self):
        super().__post_init__()
        if self.classifier.mode == "finetune":
            return
        latents, loop = self.latents, self.loop
        if latents.cached_latents is not None or latents.windows_per_video is not None:
            raise ValueError(
                "--mode probe takes its clips evenly from the videos: leave out --cached_latents and --windows_per_video"
            )
        if latents.num_validation_videos == 0:
            raise ValueError(
                "--mode probe chooses its weight decay on videos kept for validation: --num_validation_videos is 0"
            )
        # The numbers of an optimizer may be given, as one YAML file serves both modes; these would be missed.
        missed = {
            "posterior": latents.posterior != "sample",
            "validation_data_root": latents.validation_data_root,
            "resume_from_checkpoint": loop.resume_from_checkpoint,
            "ema_decay": self.optimizer.ema_decay,
            "torch_compile": loop.torch_compile,
            "report_to": loop.report_to,
        }
        for name, value in missed.items():
            if value:
                raise ValueError(f"--{name} does not apply to --mode probe: leave it out")


def main():
    settings = parse_settings(Settings, __doc__, what="classification")
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from diffusers_videogpt.tasks.classification_training import ClassifierTraining, train_probe
    from diffusers_videogpt.training.feed import make_feed
    from diffusers_videogpt.training.recipe import record_run, run_training, start_run

    accelerator, pipe = start_run(settings.model, settings.sampling, run=settings.run)
    record = record_run(settings, "training_scripts/train_classification.py")
    if settings.classifier.mode == "probe":
        train_probe(
            accelerator, pipe, classifier=settings.classifier, data=settings.data, hub=settings.hub, record=record
        )
        return
    feed = make_feed(accelerator, pipe.vae, draw_clips=lambda num_frames, generator: [num_frames], data=settings.data)
    training = ClassifierTraining(accelerator, pipe, feed=feed, classifier=settings.classifier, data=settings.data)
    run_training(accelerator, training, feed=feed, run=settings.run, record=record)


if __name__ == "__main__":
    run_script(main)
