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

from dataclasses import dataclass

from diffusers_videogpt.tasks.settings import NO_FOLDER_OF_CAPTIONS, RetrievalSettings
from diffusers_videogpt.training.arguments import parse_settings, part, run_script
from diffusers_videogpt.training.settings import LatentSettings, ModelSettings, TrainingSettings


@dataclass(kw_only=True)
class Settings(TrainingSettings):
    """Of any training, without what belongs to pipelines that predict."""

    model: ModelSettings = part(without=["frames_per_clip", "guidance_scale"])
    latents: LatentSettings = part(without=NO_FOLDER_OF_CAPTIONS | {"same_clips_in_step": ""})
    retrieval: RetrievalSettings = part()

    def __post_init__(self):
        given = {
            "posterior": self.latents.posterior != "sample",
            "cached_latents": self.latents.cached_latents,
            "windows_per_video": self.latents.windows_per_video,
            "streaming": self.videos.streaming,
        }
        for name, value in given.items():
            if value and not self.retrieval.train_transformer:
                raise ValueError(
                    f"--{name} needs --train_transformer: frozen features are computed once, of clips spread over each video"
                )
        super().__post_init__()


def main():
    settings = parse_settings(Settings, __doc__, what="retrieval")
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from diffusers_videogpt.tasks.retrieval_training import RetrievalTraining, make_retrieval_feed
    from diffusers_videogpt.training.recipe import record_run, run_training, start_run

    accelerator, pipe = start_run(settings.model, settings.sampling, run=settings.run)
    feed = make_retrieval_feed(accelerator, pipe, retrieval=settings.retrieval, data=settings.data)
    training = RetrievalTraining(accelerator, pipe, feed=feed, retrieval=settings.retrieval, data=settings.data)
    record = record_run(settings, "training_scripts/train_retrieval.py")
    run_training(accelerator, training, feed=feed, run=settings.run, record=record)


if __name__ == "__main__":
    run_script(main)
