"""Train Video-GPT by next clip diffusion: from nothing, from Phi-3's decoder, or on from a checkpoint.

    accelerate launch training_scripts/train_videogpt.py --config training_scripts/configs/stage3.yaml \
        --pretrained_model_name_or_path stage2 --instance_data_root videos --output_dir stage3

Videos come from a folder, a CSV or JSONL table, a Hub dataset (also streamed), simulated physics, or latents cached before
by `cache_latents.py`. Every argument can stand in a YAML file (`--config`).

With --num_actions or --action_dim the videos have an action a frame, by which the model can be steered: in a file beside each
(`clip.actions.npy`), in a column of the table, or in a LeRobot dataset.

Writes into --output_dir: the trained pipeline with a model card, `train_log.csv`, `dropped_videos.csv`, `validation/` with
predictions of held-out videos, and `checkpoint-N` folders, from which `--resume_from_checkpoint latest` goes on as if the
run had never stopped.
"""

from diffusers_videogpt.training.arguments import parse_settings, run_script
from diffusers_videogpt.training.settings import SteeredPipelineSettings


def main():
    settings = parse_settings(SteeredPipelineSettings, __doc__)
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from diffusers_videogpt.training.recipe import NextClipTraining, train_pipeline

    how = {"script": "training_scripts/train_videogpt.py", "actions": settings.actions}
    train_pipeline(NextClipTraining, settings, **how)


if __name__ == "__main__":
    run_script(main)
