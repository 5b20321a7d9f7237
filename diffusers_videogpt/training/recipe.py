"""What training by next clip diffusion is, whatever is trained: its loss, and its validation on held-out videos."""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator

from ..pipeline_videogpt import VideoGPTPipeline
from .feed import LatentFeed, MicroBatch
from .loop import TrainingLoop
from .objective import next_clip_loss, parse_clips
from .validation import RolloutScores, log_rollout, plot_curve, read_rollouts, validation_rollout


def add_recipe_arguments(parser: argparse.ArgumentParser, clips: str = "random") -> None:
    """Adds the arguments of [`NextClipTraining`]; `clips` is the default of `--clips`."""
    group = parser.add_argument_group("objective")
    group.add_argument(
        "--clips", default=clips, help="of a sample: random, equal:N (frames each), or first:N (given, then the rest)"
    )
    group.add_argument("--max_clips", type=int, help="with random: most clips of a sample; default: one a frame")
    group.add_argument("--min_retention", type=float, default=0.9, help="least share of signal in a clean clip")

    group = parser.add_argument_group("validation")
    group.add_argument("--validation_rollout_steps", type=int, help="between two predictions of held-out videos")
    group.add_argument("--num_validation_rollouts", type=int, default=4, help="videos predicted")
    group.add_argument("--validation_given_frames", type=int, help="shown of each; default: half of a sample")
    group.add_argument("--validation_inference_steps", type=int, default=25, help="denoising steps of a prediction")


def check_recipe_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    try:
        parse_clips(args.clips, args.max_clips)
    except ValueError as error:
        parser.error(f"--clips: {error}")
    given = args.validation_given_frames
    if given is not None and not 1 <= given < args.max_num_frames:
        parser.error(f"--validation_given_frames {given} must lie in 1..{args.max_num_frames - 1}")


class NextClipTraining:
    """Loss and validation of a run, in the form that [`~loop.TrainingLoop`] takes.

    Args:
        args: of [`add_recipe_arguments`] and the loop's.
        pipe: whose transformer is trained, and which predicts the held-out videos.
        feed: of the run.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, pipe: VideoGPTPipeline, feed: LatentFeed):
        self.args, self.accelerator, self.pipe, self.feed = args, accelerator, pipe, feed
        self.patch_size = pipe.transformer.config.patch_size
        self.folder = args.output_dir / "validation"

    def run_fields(self) -> dict:
        """What a checkpoint must agree with."""
        return {
            name: getattr(self.args, name) for name in ("clips", "max_clips", "min_retention", "same_clips_in_step")
        }

    def loss(self, transformer, batch: MicroBatch) -> torch.Tensor:
        return next_clip_loss(
            transformer,
            batch.latents,
            batch.clip_lengths,
            batch.generators,
            self.args.min_retention,
            self.patch_size,
        )

    def validate(self, loop: TrainingLoop, step: int) -> dict[str, float]:
        """The loss on held-out videos, with the same clips and noise every time; at times, predictions of some."""
        losses = []
        for batch in self.feed.validation_batches():
            with self.accelerator.autocast():
                losses.append(self.loss(loop.model, batch).detach())
        numbers = {"loss": torch.stack(losses).mean().item()} if losses else {}
        every = self.args.validation_rollout_steps
        if every and (step % every == 0 or step == self.args.max_train_steps):
            numbers |= self.predict(loop, step)
        return numbers

    def predict(self, loop: TrainingLoop, step: int) -> dict[str, float]:
        args = self.args
        # All processes predict, since a sharded model computes only together; one writes.
        folder = self.folder / f"step-{step:06d}" if self.accelerator.is_main_process else None
        self.pipe.transformer = self.accelerator.unwrap_model(loop.model)
        videos = self.feed.validation_videos(args.num_validation_rollouts)
        if not videos:
            return {}
        # Compiling the cached pass for a few predictions would take longer than they do.
        with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
            scores = validation_rollout(
                self.pipe,
                videos,
                num_given=args.validation_given_frames or max(args.max_num_frames // 2, 1),
                num_inference_steps=args.validation_inference_steps,
                fps=8,
                seed=args.seed,
                folder=folder,
            )
        if folder is not None:
            log_rollout(self.accelerator, scores, folder, step)
        return {"ratio_to_repeat": scores.ratio_to_repeat}

    def last_rollout(self) -> tuple[RolloutScores | None, Path | None]:
        """Scores of the last prediction and its first film strip, if there was one."""
        rollouts = read_rollouts(self.folder)
        if not rollouts:
            return None, None
        last = max(rollouts)
        return rollouts[last], self.folder / f"step-{last:06d}" / "0.png"

    def plot_curve(self, loop: TrainingLoop) -> Path | None:
        self.folder.mkdir(exist_ok=True)
        return plot_curve(loop.log_path, self.folder / "loss_curve.png", read_rollouts(self.folder))


def plain(args: argparse.Namespace) -> dict:
    """The arguments as plain values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
