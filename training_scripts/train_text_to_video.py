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

from dataclasses import dataclass

from diffusers_videogpt.tasks.settings import NO_FOLDER_OF_CAPTIONS, ConditionedSettings, TextSettings
from diffusers_videogpt.training.arguments import parse_settings, part, run_script
from diffusers_videogpt.training.settings import LatentSettings


@dataclass(kw_only=True)
class Settings(ConditionedSettings):
    """Of a training on captions, which a folder for validation has not."""

    condition: TextSettings = part()
    latents: LatentSettings = part(without=NO_FOLDER_OF_CAPTIONS)


def main():
    settings = parse_settings(Settings, __doc__, what="text to video")
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from diffusers_videogpt.tasks.text_to_video import TextToVideoTraining
    from diffusers_videogpt.training.recipe import train_pipeline

    train_pipeline(
        TextToVideoTraining, settings, script="training_scripts/train_text_to_video.py", text=settings.condition
    )


if __name__ == "__main__":
    run_script(main)
