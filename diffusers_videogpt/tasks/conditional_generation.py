"""What class → video and text → video share: tokens for the condition, dropping it in training, and samples to look at."""

import json
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from ..data.videos import VideoRecord
from ..film_strips import write_film_strip
from ..pipeline_videogpt import VideoGPTPipeline
from ..training.feed import LatentFeed, PlannedBatches, records_of
from ..training.loop import TrainingLoop
from ..training.recipe import NextClipTraining
from ..training.validation import log_pictures
from ..transformer_videogpt import VideoGPTTransformerModel
from ..video_io import to_uint8_frames, write_video


def add_condition_tokens(transformer: VideoGPTTransformerModel, *, seed: int, **sizes: int) -> None:
    """Gives a transformer that has none an embedding of classes (`num_classes`) or a projection of text (`text_embed_dim`).

    New ones begin as in a new model, all else stays.

    Raises:
        ValueError: if the transformer has one of another size.
    """
    found = {name: transformer.config[name] for name in sizes}
    for name, size in sizes.items():
        if found[name] not in (None, size):
            raise ValueError(
                f"This model has `{name}`={found[name]}, the data and the text encoder ask for {size}: start from a model "
                "without, or use what it was trained with."
            )
    new = {name: size for name, size in sizes.items() if found[name] is None}
    if not new:
        return
    # Through JSON, since the config itself also tells which values are defaults, and these would stay.
    config = json.loads(transformer.to_json_string()) | new | {"num_layers": 1}
    donor = VideoGPTTransformerModel.from_config(config)
    donor.init_weights(torch.Generator().manual_seed(seed))
    for size, module in (("num_classes", "class_embed"), ("text_embed_dim", "text_projection")):
        if size in new:
            setattr(transformer, module, getattr(donor, module).to(transformer.device))
    transformer.register_to_config(**new)


def all_records(feed: LatentFeed) -> Sequence[VideoRecord]:
    """Of the videos to train on and those for validation; of a stream, only the latter."""
    datasets = [feed.source.dataset] if isinstance(feed.source, PlannedBatches) else []
    datasets += [feed.validation] if feed.validation is not None else []
    return [record for dataset in datasets for record in records_of(dataset)]


class ConditionalTraining(NextClipTraining):
    """Training on a condition beside the videos; the held-out ones are not continued but made anew from their condition.

    Args:
        dropout: share of the samples whose condition is replaced by "none".
        guidance_scale: guidance by the condition, kept in the pipeline; by default the pipeline's own.
        training: of [`~training.recipe.NextClipTraining`].
    """

    def __init__(
        self,
        accelerator: Accelerator,
        pipe: VideoGPTPipeline,
        *,
        dropout: float,
        guidance_scale: float | None = None,
        **training,
    ):
        super().__init__(accelerator, pipe, **training)
        self.dropout = dropout
        if guidance_scale is not None:
            pipe.register_to_config(condition_guidance_scale=guidance_scale)

    def objective_fields(self) -> dict:
        return super().objective_fields() | {"dropout": self.dropout}

    def is_dropped(self, generators: Sequence[torch.Generator], is_training: bool) -> list[bool]:
        """Which samples of a batch lose their condition."""
        return [is_training and float(torch.rand((), generator=g)) < self.dropout for g in generators]

    def asked(self, sample: dict) -> dict:
        """The pipeline's arguments for a video like this held-out one."""
        raise NotImplementedError

    def predict(self, loop: TrainingLoop, step: int) -> dict[str, float]:
        folder = self.folder / f"step-{step:06d}"
        self.pipe.transformer = self.accelerator.unwrap_model(loop.model)
        for index, sample in enumerate(self.feed.validation_samples(self.rollouts.num_validation_rollouts)):
            truth = sample["frames"]
            # All processes compute, since a sharded model does so only together; one writes.
            with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
                frames = self.pipe(
                    **self.asked(sample),
                    num_frames=len(truth),
                    height=truth.shape[1],
                    width=truth.shape[2],
                    num_inference_steps=self.rollouts.validation_inference_steps,
                    generator=torch.Generator().manual_seed(self.feed.sampling.seed + index),
                    output_type="np",
                ).frames[0]
            if self.accelerator.is_main_process:
                frames = to_uint8_frames(frames)
                write_video(folder / f"{index}.mp4", frames, fps=8)
                write_film_strip(folder / f"{index}.png", {"held out": truth, "made": frames}, num_given=0, fps=8)
        if folder.exists() and self.accelerator.is_main_process:
            log_pictures(self.accelerator, folder, step=step)
        return {}
