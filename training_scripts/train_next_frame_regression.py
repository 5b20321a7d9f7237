"""Train the baseline in the style of next-token prediction: the next frame by regression, without diffusion.

    python training_scripts/train_next_frame_regression.py --num_simulated_scenes 4000 --pretrained_vae_path VAE_DIR \
        --transformer_config training_scripts/configs/bundled_transformer.json --height 64 --width 64 --output_dir tokens

Network, data, budget and the noise on the history are those of train_videogpt.py. Two things differ: every frame is a clip of
its own, predicted from the true frames before it; and its noisy tokens hold pure noise (α = 0) at every step. They tell
nothing of the frame, so the mean squared error is least for the mean of all that may follow, as a next token is predicted
from the tokens before it at once. One denoising step of one frame without guidance is this prediction: call the pipeline with
`frames_per_clip=1, guidance_scale=1, num_inference_steps=1`.
"""

import torch

from diffusers_videogpt.training.arguments import make_parser, parse_arguments
from diffusers_videogpt.training.feed import MicroBatch, make_feed
from diffusers_videogpt.training.objective import next_clip_loss, parse_clips
from diffusers_videogpt.training.recipe import (
    NextClipTraining,
    add_pipeline_arguments,
    check_pipeline_arguments,
    start_run,
    train_pipeline,
)


class NextFrameRegression(NextClipTraining):
    """The loss of next clip diffusion where every noise weight is that of pure noise."""

    def loss(self, transformer, batch: MicroBatch) -> torch.Tensor:
        def from_noise_alone(hidden_states: torch.Tensor, timestep: torch.Tensor, **inputs):
            noise = torch.stack([torch.randn(hidden_states.shape[1:], generator=g) for g in batch.generators])
            return transformer(hidden_states=noise.to(hidden_states), timestep=torch.zeros_like(timestep), **inputs)

        return next_clip_loss(
            from_noise_alone,
            batch.latents,
            batch.clip_lengths,
            batch.generators,
            self.args.min_retention,
            self.patch_size,
        )

    def run_fields(self) -> dict:
        return super().run_fields() | {"objective": "next frame regression"}


def parse_args():
    parser = make_parser(__doc__)
    add_pipeline_arguments(parser)
    parser.set_defaults(clips="equal:1", frames_per_clip=1, guidance_scale=1.0)
    args = parse_arguments(parser)
    check_pipeline_arguments(parser, args)
    if args.clips != "equal:1":
        parser.error(f"--clips {args.clips}: the baseline predicts frame after frame, leave --clips out")
    return args


def main():
    args = parse_args()
    accelerator, pipe = start_run(args)
    feed = make_feed(args, accelerator, pipe.vae, parse_clips(args.clips, args.max_clips))
    training = NextFrameRegression(args, accelerator, pipe, feed)
    train_pipeline(args, accelerator, pipe, feed, training, "training_scripts/train_next_frame_regression.py")


if __name__ == "__main__":
    main()
