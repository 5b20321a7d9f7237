"""What training by next clip diffusion is, whatever is trained: its loss, its validation on held-out videos, its card."""

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from huggingface_hub import HfApi

from ..conditions import Conditions
from ..pipeline_videogpt import VideoGPTPipeline
from ..transformer_videogpt import VideoGPTTransformerModel
from .arguments import (
    add_data_arguments,
    add_flag,
    add_model_arguments,
    check_data_arguments,
    check_model_arguments,
    load_pipeline,
    positive_int,
    share,
)
from .checkpoints import find_checkpoint
from .feed import LatentFeed, MicroBatch, add_feed_arguments, check_feed_arguments
from .loop import TrainingLoop, add_loop_arguments, command_of, make_accelerator
from .model_card import format_results, push_to_hub, write_model_card
from .objective import next_clip_loss, parse_clips
from .validation import log_rollout, plot_curve, read_rollouts, validation_rollout


def add_recipe_arguments(parser: argparse.ArgumentParser, clips: str = "random") -> None:
    """Adds the arguments of [`NextClipTraining`]; `clips` is the default of `--clips`."""
    group = parser.add_argument_group("objective")
    group.add_argument(
        "--clips", default=clips, help="of a sample: random, equal:N (frames each), or first:N (given, then the rest)"
    )
    group.add_argument(
        "--max_clips", type=positive_int, help="with random: most clips of a sample; default: one a frame"
    )
    group.add_argument("--min_retention", type=share, default=0.9, help="least share of signal in a clean clip")

    group = parser.add_argument_group("validation")
    group.add_argument(
        "--validation_rollout_steps", type=positive_int, help="between two predictions of held-out videos"
    )
    group.add_argument("--num_validation_rollouts", type=positive_int, default=4, help="videos predicted")
    group.add_argument("--validation_given_frames", type=positive_int, help="shown of each; default: half of a sample")
    group.add_argument(
        "--validation_inference_steps", type=positive_int, default=25, help="denoising steps of a prediction"
    )

    add_hub_arguments(parser)


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of [`publish`]."""
    group = parser.add_argument_group("hub")
    add_flag(group, "--push_to_hub")
    group.add_argument("--hub_model_id", help="default: the name of --output_dir")
    add_flag(group, "--hub_private")


def check_recipe_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    try:
        parse_clips(args.clips, args.max_clips)
    except ValueError as error:
        parser.error(f"--clips: {error}")
    if args.clips == "random":
        if args.max_clips == 1:
            parser.error(
                "--max_clips 1: random clips are 2 at least; one clip a sample is --clips equal:N of all N frames"
            )
        if (args.min_num_frames or args.max_num_frames) < 2:
            parser.error(
                "--clips random cuts a sample into 2 clips at least: single frames are trained by --clips equal:1"
            )
    if args.validation_rollout_steps and args.validation_rollout_steps % args.validation_steps:
        parser.error(
            f"--validation_rollout_steps {args.validation_rollout_steps} must be a multiple of --validation_steps "
            f"{args.validation_steps}: predictions are made when the validation loss is"
        )
    given = args.validation_given_frames
    if given is not None and not 1 <= given < args.max_num_frames:
        parser.error(f"--validation_given_frames {given} must lie in 1..{args.max_num_frames - 1}")


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a script that trains the transformer of a pipeline, all of it."""
    add_model_arguments(parser)
    add_data_arguments(parser)
    add_feed_arguments(parser)
    add_recipe_arguments(parser)
    add_loop_arguments(parser)
    parser.add_argument("--output_dtype", choices=["float32", "bfloat16"], default="float32", help="of saved weights")


def check_pipeline_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    check_model_arguments(parser, args)
    check_data_arguments(parser, args)
    check_feed_arguments(parser, args)
    check_recipe_arguments(parser, args)


class NextClipTraining:
    """Loss and validation of a run, in the form that [`~loop.TrainingLoop`] takes.

    What is trained on beside videos (classes, text) is a subclass with `conditions` of its own.

    Args:
        args: of [`add_recipe_arguments`] and the loop's.
        pipe: whose transformer is trained, and which predicts the held-out videos.
        feed: of the run.
    """

    task = "prediction"  # what the model card says, see `model_card.TASKS`
    caption: str | None = None  # its example of a text
    condition: str | None = None  # the part of the transformer that embeds what is trained on beside videos

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, pipe: VideoGPTPipeline, feed: LatentFeed):
        self.args, self.accelerator, self.pipe, self.feed = args, accelerator, pipe, feed
        self.patch_size = pipe.transformer.config.patch_size
        self.folder = args.output_dir / "validation"
        self.predicted: set[int] = set()  # steps whose predictions in the folder are of this run

    def run_fields(self) -> dict:
        """What a checkpoint must agree with."""
        return {
            name: getattr(self.args, name) for name in ("clips", "max_clips", "min_retention", "same_clips_in_step")
        }

    def conditions(self, batch: MicroBatch, is_training: bool) -> Conditions:
        """What the videos of a batch are conditioned on; `is_training` is false in validation, where nothing is dropped."""
        return {}

    def loss(self, transformer, batch: MicroBatch) -> torch.Tensor:
        return next_clip_loss(
            transformer,
            batch.latents,
            batch.clip_lengths,
            batch.generators,
            self.args.min_retention,
            self.patch_size,
            **self.conditions(batch, transformer.training),
        )

    def validate(self, loop: TrainingLoop, step: int) -> dict[str, float]:
        """The loss on held-out videos, with the same clips and noise every time; at times, predictions of some."""
        losses = []  # one a video: batches may be of different sizes
        for batch in self.feed.validation_batches():
            with self.accelerator.autocast():
                losses += [self.loss(loop.model, batch).item()] * len(batch.ids)
        numbers = {"loss": sum(losses) / len(losses)} if losses else {}
        every = self.args.validation_rollout_steps
        if every and (step % every == 0 or step == self.args.max_train_steps):
            numbers |= self.predict(loop, step)
            self.predicted.add(step)
        return numbers

    def predict(self, loop: TrainingLoop, step: int) -> dict[str, float]:
        args = self.args
        # All processes predict, since a sharded model computes only together; one writes.
        folder = self.folder / f"step-{step:06d}" if self.accelerator.is_main_process else None
        self.pipe.transformer = self.accelerator.unwrap_model(loop.model)
        videos = [sample["frames"] for sample in self.feed.validation_samples(args.num_validation_rollouts)]
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

    def publish(self, loop: TrainingLoop, script: str, is_adapter: bool = False) -> None:
        """Writes the card beside what was saved in `--output_dir`, and puts both on the Hub if asked to."""

        # An earlier run may have left others in the folder.
        def is_ours(step: int) -> bool:
            return step <= loop.first_step or step in self.predicted

        rollouts = {step: scores for step, scores in read_rollouts(self.folder).items() if is_ours(step)}
        strips = sorted(self.folder.glob("step-*/0.png"))
        strips = [path for path in strips if is_ours(int(path.parent.name.removeprefix("step-")))]
        publish(
            self.args,
            script,
            transformer=self.pipe.transformer,
            example={
                "num_frames": self.pipe.config.frames_per_clip,
                "frames_per_clip": self.pipe.config.frames_per_clip,
                "label": next(iter(self.pipe.labels), 0),
                "caption": self.caption,
            },
            results=format_results(rollouts[max(rollouts)]) if rollouts else None,
            strip=strips[-1] if strips else None,
            curve=plot_curve(loop.log_path, self.folder / "loss_curve.png", rollouts),
            is_adapter=is_adapter,
            task=self.task,
        )


def publish(args: argparse.Namespace, script: str, **card) -> None:
    """Writes the card beside what a run saved in `--output_dir`, and puts both on the Hub if asked to.

    Args:
        args: of the run, with those of [`add_hub_arguments`].
        script: that trained, for its command.
        card: what [`~model_card.write_model_card`] cannot know from `args`.
    """
    repo_id = hub_repository(args)
    write_model_card(
        args.output_dir,
        recipe={name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        command=command_of(script),
        repo_id=repo_id if args.push_to_hub else None,
        base_model=args.pretrained_model_name_or_path,
        dataset=args.dataset_name or (str(args.instance_data_root) if args.instance_data_root else None),
        **card,
    )
    print(f"saved in {args.output_dir}")
    if args.push_to_hub:
        print(push_to_hub(args.output_dir, repo_id, private=args.hub_private))


def hub_repository(args: argparse.Namespace) -> str:
    return args.hub_model_id or args.output_dir.resolve().name


def start_processes(args: argparse.Namespace) -> Accelerator:
    """The processes of a run, seeded, and its folder. What lies there and would be replaced, or a repository that cannot
    be written, is told now, not when training has ended."""
    accelerator = make_accelerator(args)
    find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    if args.push_to_hub and accelerator.is_main_process:
        HfApi().create_repo(hub_repository(args), private=args.hub_private, exist_ok=True)
    set_seed(args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    return accelerator


def start_run(args: argparse.Namespace) -> tuple[Accelerator, VideoGPTPipeline]:
    """What every run begins with: its processes, its folder, and the pipeline to train."""
    accelerator = start_processes(args)
    pipe = load_pipeline(args)
    pipe.vae.to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    return accelerator, pipe


def settle_unused_parameters(
    args: argparse.Namespace,
    accelerator: Accelerator,
    transformer: VideoGPTTransformerModel,
    feed: LatentFeed,
    condition: str | None = None,
) -> None:
    """Data parallelism waits for the gradient of every trained parameter. Those that no step uses are frozen; only where
    some steps use them and others do not, it has to look for them at every step.

    Args:
        condition: of [`NextClipTraining`].
    """
    for name in ("class_embed", "text_projection"):
        if name != condition and getattr(transformer, name) is not None:
            getattr(transformer, name).requires_grad_(False)
    lengths = range(args.min_num_frames or args.max_num_frames, args.max_num_frames + 1)
    num_clips = {len(feed.draw_clips(length, torch.Generator())) for length in lengths}
    clean = transformer.clean_patch_embed  # samples of one clip have no clean frames
    if num_clips == {1}:
        clean.requires_grad_(False)
    elif 1 in num_clips and any(parameter.requires_grad for parameter in clean.parameters()):
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)


def train_pipeline(
    args: argparse.Namespace,
    accelerator: Accelerator,
    pipe: VideoGPTPipeline,
    feed: LatentFeed,
    training: NextClipTraining,
    script: str,
) -> None:
    """Trains the transformer of `pipe`, all of it, and saves the pipeline with its card; `script` is named in the card."""
    settle_unused_parameters(args, accelerator, pipe.transformer, feed, training.condition)
    loop = TrainingLoop(
        args,
        accelerator,
        pipe.transformer,
        feed,
        training.loss,
        run={
            "transformer": json.loads(pipe.transformer.to_json_string()),
            **training.run_fields(),
            **feed.run_fields(),
        },
        validate=training.validate,
    )
    loop.run()
    weights = loop.trained_state_dict()
    if accelerator.is_main_process:
        transformer = VideoGPTTransformerModel.from_config(json.loads(pipe.transformer.to_json_string()))
        transformer.load_state_dict(weights)
        if args.output_dtype != "float32":
            # diffusers' own `to` warns of parts to keep in fp32, of which there are none.
            torch.nn.Module.to(transformer, getattr(torch, args.output_dtype))
        pipe.transformer = transformer.eval()
        pipe.to("cpu").save_pretrained(args.output_dir)
        training.publish(loop, script)
    accelerator.end_training()
