"""What the training of tasks can be told beside [`~training.settings`], as dataclasses, one a task. Nothing heavy is imported."""

from dataclasses import dataclass
from typing import Literal

from ..arguments import positive_int
from ..training.arguments import option, part, share
from ..training.settings import NO_RESAMPLING, ObjectiveSettings, PipelineSettings, RolloutSettings


# What is told to whoever gives an option that a training on classes, or on captions, does not take.
NO_STREAM_OF_CLASSES = {
    "streaming": "all classes must be known before the first step, of a stream they are not: leave out --streaming"
}
NO_FOLDER_OF_CAPTIONS = {
    "validation_data_root": "a folder has no captions: leave out --validation_data_root, --num_validation_videos are kept "
    "instead"
}

Pooling = Literal["mean", "mean_std", "thirds"]  # the keys of `token_pooling.POOLINGS`


@dataclass(kw_only=True)
class GuidanceSettings:
    """Guidance by a condition."""

    condition_guidance_scale: float | None = option(
        None, "at inference: kept in the saved pipeline; default: the model's own"
    )


@dataclass(kw_only=True)
class ConditionedSettings(PipelineSettings):
    """Of a pipeline's training, without given frames, as videos are made from their condition alone."""

    objective: ObjectiveSettings = part(without=NO_RESAMPLING)
    validation: RolloutSettings = part(without=["validation_given_frames"])


@dataclass(kw_only=True)
class ClassSettings(GuidanceSettings):
    """Classes as the condition."""

    label_dropout: float = option(0.1, "share of samples without it, which guidance needs", type=share)


@dataclass(kw_only=True)
class TextSettings(GuidanceSettings):
    """Text as the condition."""

    caption_dropout: float = option(0.1, "share of samples without it, which guidance needs", type=share)
    pretrained_text_encoder_path: str | None = option(
        None, "a text encoder or a pipeline with one; default: the model's"
    )


@dataclass(kw_only=True)
class ClassifierSettings:
    """A classifier and how it is trained."""

    mode: Literal["probe", "finetune"] = option("probe", "a linear layer on frozen features, or all weights")
    layer: tuple[int, ...] | None = option(
        None,
        "whose tokens are pooled; negative from the end; default: two thirds. Of several, a probe takes the one that is "
        "best on the videos kept for validation",
    )
    pooling: Pooling = option("mean", "of the clean patch tokens")
    num_clips: int = option(1, "of a video, for a probe; spread evenly over it", type=positive_int)

    def __post_init__(self):
        if self.mode == "finetune" and self.layer is not None and len(self.layer) > 1:
            raise ValueError(f"--mode finetune trains one model: give one --layer, not {list(self.layer)}")


@dataclass(kw_only=True)
class RetrievalSettings:
    """A retriever and how it is trained."""

    pretrained_text_encoder_path: str | None = option(
        None, "a text encoder or a pipeline with one; default: the model's"
    )
    train_transformer: bool = option(
        False,
        "train the transformer too, on random clips; default: the projections alone, on features computed once",
    )
    layer: int | None = option(None, "whose tokens are pooled; negative from the end; default: two thirds")
    pooling: Pooling = option("mean", "of the clean patch tokens")
    num_clips: int = option(1, "of a video, spread evenly over it, in use", type=positive_int)
    projection_dim: int = option(256, "channels of the common space", type=positive_int)
