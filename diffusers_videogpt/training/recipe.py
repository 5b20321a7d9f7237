"""What training by next clip diffusion is, whatever is trained: its loss, its validation on held-out videos, its card."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, set_seed
from huggingface_hub import HfApi
from torch import nn

from ..actions import ActionSpace, make_action_embed, scale_of
from ..conditions import Conditions
from ..diffusers_internals import cast_as_loaded
from ..pipeline_videogpt import VideoGPTPipeline
from ..scheduling_next_clip_flow_match import sample_alphas
from ..transformer_videogpt import VideoGPTTransformerModel
from .arguments import plain_values
from .checkpoints import find_checkpoint
from .feed import ClipDrawer, LatentFeed, MicroBatch, actions_of, make_feed
from .loading import load_pipeline, settle_from_base
from .loop import TrainingLoop, check_heads, command_of, make_accelerator
from .model_card import format_results, push_to_hub, write_model_card
from .noise_levels import ErrorsByAlpha, format_errors
from .objective import AlphaDrawer, DenoisedClips, NoisyClips, make_alpha_drawer, make_clip_drawer, make_noisy_clips
from .resampled_history import resample_history
from .run_folder import hold_folder
from .settings import (
    ActionSettings,
    HubSettings,
    ModelSettings,
    ObjectiveSettings,
    PipelineSettings,
    RecipeSettings,
    RolloutSettings,
    RunSettings,
    SamplingSettings,
    TrainingSettings,
)
from .validation import log_rollout, plot_curve, read_rollouts, validation_rollout


class Training:
    """What is trained and how well it does, for [`run_training`]: what a script trains is a subclass.

    Attributes:
        model: the network; what requires gradients when the run begins is trained.
        trainable_only: whether checkpoints leave out the weights that are not trained.
        errors: what the loss counts beside, for the log.
        patience: of [`~loop.TrainingLoop`].
        trained_on: what the videos show, in a few words, where that is known; [`run_training`] sets it.
        dataset: the name of the videos, as [`RunRecord`] has it; [`run_training`] sets it.
        averaged_weights: the loop's, for a loss that needs the average of the weights; [`run_training`] sets it.
    """

    trained_on: str | None = None
    dataset: str | None = None
    averaged_weights: Callable[[], AbstractContextManager[None]]
    model: nn.Module
    trainable_only = False
    errors: ErrorsByAlpha | None = None
    patience = 0

    def settle_parameters(self) -> None:
        """Freezes what no step uses, before the run begins."""

    def run_fields(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: MicroBatch) -> torch.Tensor:
        """Of a micro-batch, a scalar; `model` is `self.model` as it was prepared for the devices."""
        raise NotImplementedError

    def validate(self, loop: TrainingLoop, step: int) -> dict[str, float]:
        """Numbers for the log, by name; called on all processes, without gradients."""
        raise NotImplementedError

    def report(self, loop: TrainingLoop) -> None:
        """Tells what came of the run, before it is saved; called on all processes, with the weights to keep in place."""

    def save(self, loop: TrainingLoop, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Saves what was trained, from its full weights, in the main process; returns what the card says of it, as
        [`~model_card.write_model_card`] takes it."""
        raise NotImplementedError


def option_of(space: ActionSpace) -> str:
    """The option by which these actions are asked for."""
    return f"--num_actions {space.num_actions}" if space.is_discrete else f"--action_dim {space.action_dim}"


def settle_actions(
    transformer: VideoGPTTransformerModel, actions: ActionSettings, *, feed: LatentFeed, is_adapter: bool = False
) -> None:
    """Gives a transformer that takes no actions a place for them, which begins as no change; continuous ones get the mean and
    standard deviation of the videos that are trained on.

    Args:
        feed: of the run.
        is_adapter: whether the transformer is frozen.

    Raises:
        ValueError: if the transformer takes other actions, or is frozen and takes none.
    """
    found = ActionSpace.of(transformer.config)
    if found is not None:
        if (found.num_actions, found.action_dim) != (actions.num_actions, actions.action_dim):
            raise ValueError(
                f"This model was trained with {option_of(found)}: give the same, or start from one without actions."
            )
        return
    if is_adapter:
        raise ValueError(
            "This base takes no actions, and an adapter has no place for them: train it with train_videogpt.py and --num_actions "
            "or --action_dim first."
        )
    sizes = {"num_actions": actions.num_actions, "action_dim": actions.action_dim}
    dim = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    transformer.action_embed = make_action_embed(**sizes, dim=dim).to(transformer.device)
    if actions.action_dim is not None:
        sizes["action_mean"], sizes["action_std"] = scale_of(actions_of(feed.source.dataset))
    transformer.register_to_config(**sizes)


def leave_out_actions(
    actions: torch.Tensor,
    clip_lengths: Sequence[Sequence[int]],
    *,
    generators: Sequence[torch.Generator],
    dropout: float,
) -> torch.Tensor:
    """Actions (B, N) or (B, N, D) as the model takes them, with those of a share of the clips replaced by "no action".

    Whole clips lose theirs, as they do in the pass of guidance by action; the clips before them keep their own.
    """
    is_out = [
        (torch.rand(len(lengths), generator=generator) < dropout).repeat_interleave(torch.as_tensor(lengths))
        for lengths, generator in zip(clip_lengths, generators, strict=True)
    ]
    is_out = torch.stack(is_out).to(actions.device).view(*actions.shape[:2], *[1] * (actions.ndim - 2))
    return actions.masked_fill(is_out, torch.nan if actions.is_floating_point() else 0)


def copy_with(model: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """A model of the same configuration with other weights, in evaluation: what was trained may be wrapped or sharded."""
    copy = type(model).from_config(json.loads(model.to_json_string()))
    copy.load_state_dict(weights)
    return copy.eval()


class NextClipTraining(Training):
    """Training of the transformer of a pipeline by next clip diffusion, all of it.

    What is trained on beside videos (classes, text) is a subclass with `conditions` of its own.

    Args:
        pipe: whose transformer is trained, and which predicts the held-out videos.
        feed: of the run.
        recipe: the loss, the predictions of held-out videos, and how the pipeline is saved.
        actions: of the videos, if the model is to be steered: the transformer gets a place for them unless it has one.
    """

    task = "prediction"  # what the model card says, see `model_card.TASKS`
    caption: str | None = None  # its example of a text
    condition: str | None = None  # the part of the transformer that embeds what is trained on beside videos
    noisy = slice(None)  # which clips are predicted
    is_adapter = False

    def __init__(
        self,
        accelerator: Accelerator,
        pipe: VideoGPTPipeline,
        *,
        feed: LatentFeed,
        recipe: RecipeSettings,
        actions: ActionSettings | None = None,
    ):
        self.accelerator, self.pipe, self.feed = accelerator, pipe, feed
        self.actions = actions if actions is not None and actions.are_given else None
        if self.actions is not None:
            settle_actions(pipe.transformer, self.actions, feed=feed, is_adapter=self.is_adapter)
        self.objective, self.rollouts, self.settings = recipe.objective, recipe.rollouts, recipe.loop
        self.output_dtype = recipe.output_dtype
        self.patch_size = pipe.transformer.config.patch_size
        self.folder = self.settings.output_dir / "validation"
        self.predicted: set[int] = set()  # steps whose predictions in the folder are of this run
        self.errors = ErrorsByAlpha()
        self.validation_errors: dict[str, float] = {}  # by α, at the last validation
        if self.objective.resampled_history and accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError(
                "--resampled_history does not work with FSDP2, whose processes have to call the model equally often, and clips "
                "differ in number: use DDP (configs/accelerate/ddp.yaml), or leave it out."
            )

    @property
    def model(self) -> VideoGPTTransformerModel:
        return self.pipe.transformer

    def settle_parameters(self) -> None:
        settle_unused_parameters(
            self.accelerator,
            self.model,
            draw_clips=self.feed.draw_clips,
            sampling=self.feed.sampling,
            condition=self.condition,
            has_actions=self.actions is not None,
        )

    def model_fields(self) -> dict[str, Any]:
        """Of [`run_fields`], those that tell what is trained."""
        return {"transformer": json.loads(self.model.to_json_string())}

    def objective_fields(self) -> dict[str, Any]:
        """Of [`run_fields`], those that tell by which loss."""
        return {
            "clips": self.objective.clips,
            "max_clips": self.objective.max_clips,
            "min_retention": self.objective.min_retention,
            "same_clips_in_step": self.feed.latents.same_clips_in_step,
            **self.objective.noise_fields(),
        } | self._further_fields()

    def _further_fields(self) -> dict[str, Any]:
        """What checkpoints from before know nothing of: told only where it is used."""
        fields = {}
        if self.objective.next_frame_share:
            fields["next_frame_share"] = self.objective.next_frame_share
        if self.actions is not None:
            fields["action_dropout"] = self.actions.action_dropout
        return fields

    def run_fields(self) -> dict[str, Any]:
        return self.model_fields() | self.objective_fields()

    def conditions(self, batch: MicroBatch, is_training: bool) -> Conditions:
        """What the videos of a batch are conditioned on; `is_training` is false in validation, where nothing is dropped."""
        actions = self.encode_actions(batch)
        if actions is None:
            return {}
        if is_training:
            actions = leave_out_actions(
                actions, batch.clip_lengths, generators=batch.generators, dropout=self.actions.action_dropout
            )
        return {"actions": actions}

    def encode_actions(self, batch: MicroBatch) -> torch.Tensor | None:
        """The actions of a batch, (B, N) or (B, N, D), as the model takes them; `None` in a run without."""
        return None if self.actions is None else ActionSpace.of(self.pipe.transformer.config).encode(batch.actions)

    def make_noisy(self, model: nn.Module, batch: MicroBatch, *, draw_alphas: AlphaDrawer) -> NoisyClips:
        """The clips of a batch, made noisy; in training, of some videos behind a past that the model itself has made."""
        history = None
        if model.training and self.objective.resampled_history:
            history = resample_history(
                self.accelerator.unwrap_model(model),
                batch.latents,
                clip_lengths=batch.clip_lengths,
                generators=batch.generators,
                share=self.objective.resampled_history,
                num_steps=self.objective.resampled_steps,
                actions=self.encode_actions(batch),  # all of them: a play knows what was done
            )
        return make_noisy_clips(
            batch.latents,
            clip_lengths=batch.clip_lengths,
            generator=batch.generators,
            noisy=self.noisy,
            min_retention=self.objective.min_retention,
            draw_alphas=draw_alphas,
            patch_size=self.patch_size,
            history=history,
            **self.conditions(batch, model.training),
        )

    def denoise(self, model: nn.Module, batch: MicroBatch, *, draw_alphas: AlphaDrawer) -> DenoisedClips:
        """The clips of a batch, made noisy and denoised by the model."""
        return self.make_noisy(model, batch, draw_alphas=draw_alphas).denoised_by(model)

    def loss(self, model: nn.Module, batch: MicroBatch) -> torch.Tensor:
        clips = self.denoise(model, batch, draw_alphas=make_alpha_drawer(self.objective))
        self.errors.add(clips)
        return clips.loss(self.objective.max_loss_weight if self.objective.loss_weighting == "velocity" else None)

    def validate(self, loop: TrainingLoop, step: int) -> dict[str, float]:
        """The loss on held-out videos, with the same clips and noise every time; at times, predictions of some.

        It is the paper's, of uniform noise levels without weights, whatever is trained with: so runs can be compared.
        """
        losses, errors = self.held_out_losses(loop.model)
        self.validation_errors = errors.describe(errors.take())
        numbers = {"loss": sum(losses) / len(losses), **self.validation_errors} if losses else {}
        every = self.rollouts.validation_rollout_steps
        if every and (step % every == 0 or step == self.settings.max_train_steps):
            numbers |= self.predict(loop, step)
            self.predicted.add(step)
        return numbers

    def held_out_losses(self, model: nn.Module) -> tuple[list[float], ErrorsByAlpha]:
        """Of the held-out videos, one loss a video, as batches may be of different sizes; and the errors by noise level."""
        losses, errors = [], ErrorsByAlpha()
        for batch in self.feed.validation_batches():
            with self.accelerator.autocast():
                clips = self.denoise(model, batch, draw_alphas=sample_alphas)
                losses += [clips.loss().item()] * len(batch.ids)
            errors.add(clips)
        return losses, errors

    def prediction_settings(self) -> dict[str, Any]:
        """How held-out videos are predicted, as [`~validation.predict_continuation`] takes it."""
        sampling = self.feed.sampling
        return {
            "num_given": self.rollouts.validation_given_frames or max(sampling.num_frames // 2, 1),
            "num_inference_steps": self.rollouts.validation_inference_steps,
            "seed": sampling.seed,
        }

    def predict(self, loop: TrainingLoop, step: int) -> dict[str, float]:
        """Predicts held-out videos, writes what came out, and returns how good it is."""
        videos, actions = self.held_out_videos()
        return self.roll_out(loop, step, videos=videos, actions=actions)

    def held_out_videos(self) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """Those that are predicted, uint8 (F, H, W, 3), and in a run with actions what led to their frames."""
        samples = self.feed.validation_samples(self.rollouts.num_validation_rollouts)
        videos = [sample["frames"] for sample in samples]
        return videos, None if self.actions is None else [sample["actions"] for sample in samples]

    def roll_out(self, loop: TrainingLoop, step: int, *, videos: list[np.ndarray], **how) -> dict[str, float]:
        """[`predict`] of these videos; `how` is as [`~validation.validation_rollout`] takes it."""
        if not videos:
            return {}
        # All processes predict, since a sharded model computes only together; one writes.
        folder = self.folder / f"step-{step:06d}" if self.accelerator.is_main_process else None
        self.pipe.transformer = self.accelerator.unwrap_model(loop.model)
        # Compiling the cached pass for a few predictions would take longer than they do.
        with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
            scores = validation_rollout(self.pipe, videos, fps=8, folder=folder, **(self.prediction_settings() | how))
        if folder is not None:
            log_rollout(self.accelerator, scores, folder=folder, step=step)
        return {"ratio_to_repeat": scores.ratio_to_repeat} | {
            f"ratio_to_repeat_{name.replace(', ', '_').replace(' ', '_')}": scores.ratio_of(name)
            for name in how.get("beside", {})
        }

    def trained_with(self) -> dict[str, Any]:
        """Samples and clips, for who trains the model further or predicts with it."""
        return {
            "fps": self.feed.fps,
            "num_frames": self.feed.sampling.num_frames,
            "clips": self.objective.clips,
            "max_clips": self.objective.max_clips,
        }

    def save(self, loop: TrainingLoop, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        transformer = copy_with(self.model, weights)
        if self.output_dtype != "float32":
            cast_as_loaded(transformer, getattr(torch, self.output_dtype))
        self.pipe.transformer = transformer
        self.pipe.register_to_config(trained_on=self.trained_on, trained_with=self.trained_with())
        self.pipe.to("cpu").save_pretrained(self.settings.output_dir)
        return self.card(loop)

    def card(self, loop: TrainingLoop) -> dict[str, Any]:
        """What the card says, as [`~model_card.write_model_card`] takes it."""

        # An earlier run may have left others in the folder.
        def is_ours(step: int) -> bool:
            return step <= loop.first_step or step in self.predicted

        rollouts = {step: scores for step, scores in read_rollouts(self.folder).items() if is_ours(step)}
        strips = sorted(self.folder.glob("step-*/0.png"))
        strips = [path for path in strips if is_ours(int(path.parent.name.removeprefix("step-")))]
        return {
            "transformer": self.pipe.transformer,
            "example": {
                "num_frames": self.pipe.config.frames_per_clip,
                "frames_per_clip": self.pipe.config.frames_per_clip,
                "label": next(iter(self.pipe.labels), 0),
                "caption": self.caption,
            },
            "results": format_results(rollouts[max(rollouts)]) if rollouts else None,
            "noise_levels": format_errors(self.validation_errors),
            "strip": strips[-1] if strips else None,
            "curve": plot_curve(loop.log_path, self.folder / "loss_curve.png", rollouts=rollouts),
            "is_adapter": self.is_adapter,
            "trained_with": self.trained_with(),
            "task": self.task,
        }


@dataclass(frozen=True)
class RunRecord:
    """What a run is, for its card, its log and its trackers.

    Attributes:
        script: that trains.
        options: of the run, plain values by name.
        base_model, dataset: what it starts from and learns from: ids on the Hub, paths or other words.
        trained_on: what the videos show, in a few words, where that is known.
    """

    script: str
    options: dict[str, Any]
    base_model: str | None
    dataset: str | None
    trained_on: str | None = None


def record_run(settings: TrainingSettings, script: str) -> RunRecord:
    return RunRecord(
        script,
        plain_values(settings),
        settings.model.pretrained_model_name_or_path,
        settings.videos.name,
        settings.videos.description,
    )


def publish(output_dir: Path, hub: HubSettings, *, record: RunRecord, **card) -> None:
    """Writes the card beside what a run saved in `output_dir`, and puts both on the Hub if asked to.

    Args:
        card: what [`~model_card.write_model_card`] cannot know from `record`.
    """
    repo_id = hub_repository(output_dir, hub)
    write_model_card(
        output_dir,
        recipe=record.options,
        command=command_of(record.script),
        repo_id=repo_id if hub.push_to_hub else None,
        base_model=record.base_model,
        dataset=record.dataset,
        trained_on=record.trained_on,
        **card,
    )
    print(f"saved in {output_dir}")
    if hub.push_to_hub:
        print(push_to_hub(output_dir, repo_id, private=hub.hub_private))


def hub_repository(output_dir: Path, hub: HubSettings) -> str:
    return hub.hub_model_id or output_dir.resolve().name


def start_processes(run: RunSettings, *, seed: int) -> Accelerator:
    """The processes of a run, seeded, and its folder. What lies there and would be replaced, or a repository that cannot
    be written, is told now, not when training has ended."""
    loop, hub = run.loop, run.hub
    accelerator = make_accelerator(loop, batches=run.batches, optimizer=run.optimizer)
    find_checkpoint(loop.output_dir, loop.resume_from_checkpoint)
    if hub.push_to_hub and accelerator.is_main_process:
        repo_id = hub_repository(loop.output_dir, hub)
        HfApi().create_repo(repo_id, private=hub.hub_private, exist_ok=True)
    set_seed(seed)
    if accelerator.is_main_process:
        hold_folder(loop.output_dir)
    return accelerator


def start_run(
    model: ModelSettings,
    sampling: SamplingSettings,
    *,
    run: RunSettings,
    objective: ObjectiveSettings | None = None,
    rollouts: RolloutSettings | None = None,
) -> tuple[Accelerator, VideoGPTPipeline]:
    """What every run begins with: its processes, its folder, and the pipeline to train.

    Size, frame rate, length and, of an `objective`, clips that were not given become those of the pipeline to start from.
    """
    accelerator = start_processes(run, seed=sampling.seed)
    settle_from_base(sampling, model, objective=objective, rollouts=rollouts)
    pipe = load_pipeline(model, sampling)
    check_heads(pipe.transformer, run.batches.context_parallel_size)
    pipe.vae.to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    return accelerator, pipe


def settle_unused_parameters(
    accelerator: Accelerator,
    transformer: VideoGPTTransformerModel,
    *,
    draw_clips: ClipDrawer,
    sampling: SamplingSettings,
    condition: str | None = None,
    has_actions: bool = False,
) -> None:
    """Data parallelism waits for the gradient of every trained parameter. Those that no step uses are frozen; only where
    some steps use them and others do not, it has to look for them at every step.

    Args:
        condition: of [`NextClipTraining`].
        has_actions: whether steps train on actions.
    """
    used = (condition, "action_embed" if has_actions else None)
    for name in ("class_embed", "text_projection", "action_embed"):
        if name not in used and getattr(transformer, name) is not None:
            getattr(transformer, name).requires_grad_(False)
    lengths = range(sampling.least_num_frames, sampling.num_frames + 1)
    num_clips = {len(draw_clips(length, torch.Generator())) for length in lengths}
    clean = transformer.clean_patch_embed  # samples of one clip have no clean frames
    if num_clips == {1}:
        clean.requires_grad_(False)
    elif 1 in num_clips and any(parameter.requires_grad for parameter in clean.parameters()):
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)


def run_training(
    accelerator: Accelerator,
    training: Training,
    *,
    feed: LatentFeed,
    run: RunSettings,
    record: RunRecord,
) -> None:
    """Trains to the end, saves what was trained with its card, and publishes it if asked to.

    Pipelines, adapters and heads all go this way; what differs is in `training`.
    """
    training.trained_on, training.dataset = record.trained_on, record.dataset
    training.settle_parameters()
    trainer = TrainingLoop(
        accelerator,
        training.model,
        feed=feed,
        loss=training.loss,
        settings=run.loop,
        optimizer=run.optimizer,
        run=training.run_fields() | feed.run_fields(),
        validate=training.validate,
        batches=run.batches,
        trainable_only=training.trainable_only,
        options=record.options,
        errors=training.errors,
        patience=training.patience,
    )
    training.averaged_weights = trainer.averaged_weights
    trainer.run()
    weights = trainer.trained_state_dict()
    training.report(trainer)
    if accelerator.is_main_process:
        publish(run.loop.output_dir, run.hub, record=record, **training.save(trainer, weights))
    accelerator.end_training()


def train_pipeline(
    make_training: Callable[..., NextClipTraining], settings: PipelineSettings, *, script: str, **learned
) -> None:
    """A script that trains a pipeline's transformer, from its start to its end.

    Args:
        make_training: the class of what is trained.
        script: its path, for the card.
        learned: what is learned beside videos, as `make_training` takes it.
    """
    accelerator, pipe = start_run(
        settings.model,
        settings.sampling,
        run=settings.run,
        objective=settings.objective,
        rollouts=settings.validation,
    )
    feed = make_feed(accelerator, pipe.vae, draw_clips=make_clip_drawer(settings.objective), data=settings.data)
    training = make_training(accelerator, pipe, feed=feed, recipe=settings.recipe, **learned)
    run_training(accelerator, training, feed=feed, run=settings.run, record=record_run(settings, script))
