"""Train the baseline in the style of next-token prediction: the next frame by regression, without diffusion.

    python training_scripts/train_next_frame_regression.py --num_simulated_scenes 4000 --pretrained_vae_path VAE_DIR \
        --transformer_config training_scripts/configs/bundled_transformer.json --height 64 --width 64 --output_dir tokens

Network, data, budget and the noise on the history are those of train_videogpt.py. Two things differ: every frame is a clip of
its own, predicted from the true frames before it; and its noisy tokens hold pure noise (α = 0) at every step. They tell
nothing of the frame, so the mean squared error is least for the mean of all that may follow, as a next token is predicted
from the tokens before it at once. One denoising step of one frame without guidance is this prediction: call the pipeline with
`frames_per_clip=1, guidance_scale=1, num_inference_steps=1`.
"""

from dataclasses import dataclass

from diffusers_videogpt.training.arguments import parse_settings, part, run_script
from diffusers_videogpt.training.settings import (
    LatentSettings,
    ModelSettings,
    ObjectiveSettings,
    PipelineSettings,
)


@dataclass(kw_only=True)
class Settings(PipelineSettings):
    """Of a pipeline's training where every frame is a clip."""

    model: ModelSettings = part(frames_per_clip=1, guidance_scale=1.0)
    latents: LatentSettings = part(without=["same_clips_in_step"])
    objective: ObjectiveSettings = part(
        clips="equal:1",
        without={
            "clips": "the baseline predicts frame after frame, leave --clips out",
            # Its noise is always all noise.
            **dict.fromkeys(
                ["max_clips", "next_frame_share", "weighting_scheme", "logit_mean", "logit_std", "mode_scale"], ""
            ),
            **dict.fromkeys(["uniform_share", "loss_weighting", "max_loss_weight"], ""),
            **dict.fromkeys(["resampled_history", "resampled_steps"], ""),
        },
    )


def main():
    settings = parse_settings(Settings, __doc__, what="the baseline, which predicts frame after frame")
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from diffusers_videogpt.training.next_frame_regression import NextFrameRegression
    from diffusers_videogpt.training.recipe import train_pipeline

    train_pipeline(NextFrameRegression, settings, script="training_scripts/train_next_frame_regression.py")


if __name__ == "__main__":
    run_script(main)
