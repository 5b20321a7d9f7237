"""Class → video (paper, §4.3): one token of the class before the clips."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from ..conditions import Conditions
from ..data.tables import read_text
from ..pipeline_videogpt import VideoGPTPipeline
from ..training.feed import MicroBatch
from .conditional_generation import ConditionalTraining, add_condition_tokens, all_records
from .settings import ClassSettings


def class_names(labels: Sequence[str | None], dataset_file: Path | None = None) -> list[str]:
    """The classes in the order of their numbers: as `classInd.txt` beside UCF-101's split has them, else by name.

    Raises:
        ValueError: if a video has no class, or one that `classInd.txt` does not name.
    """
    if None in labels:
        raise ValueError(
            f"{list(labels).count(None)} of {len(labels)} videos have no class: put each into a folder of its class, or name "
            "the column of a table by --label_column."
        )
    index = None if dataset_file is None else dataset_file.with_name("classInd.txt")
    if index is None or dataset_file.suffix != ".txt" or not index.exists():
        return sorted(set(labels))
    rows = {}
    for line in filter(None, map(str.strip, read_text(index).split("\n"))):
        row = re.fullmatch(r"(\d+)\s+(.+)", line)  # a name may hold spaces
        if row is None:
            raise ValueError(f"{index}: {line!r} is not the number of a class and its name.")
        rows[int(row[1])] = row[2]
    names = [name for _, name in sorted(rows.items())]
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise ValueError(
            f"{index} does not name {', '.join(unknown[:5])}: take the list that belongs to these videos."
        )
    return names


class ClassToVideoTraining(ConditionalTraining):
    """Gives the pipeline the classes of the videos, unless it has some, and trains on them.

    Args:
        classes: as the condition.
        dataset_file: the table that the videos are of; `classInd.txt` may be beside it.

    Raises:
        ValueError: if a video has no class or one that the model does not know, or there is but one.
    """

    task = "class"
    condition = "class_embed"

    def __init__(
        self,
        accelerator: Accelerator,
        pipe: VideoGPTPipeline,
        *,
        classes: ClassSettings,
        dataset_file: Path | None = None,
        **training,
    ):
        scale = classes.condition_guidance_scale
        super().__init__(accelerator, pipe, dropout=classes.label_dropout, guidance_scale=scale, **training)
        labels = [record.label for record in all_records(self.feed)]
        names = class_names(labels, dataset_file)
        if not pipe.labels:
            pipe.register_to_config(id2label=dict(enumerate(names)))
        unknown = sorted(set(labels) - set(pipe.labels))
        if unknown:
            raise ValueError(f"This model has the classes {', '.join(pipe.labels)}, not {', '.join(unknown[:5])}.")
        if len(pipe.labels) < 2:
            raise ValueError(f"All videos are of class '{names[0]}': there is nothing to tell apart.")
        add_condition_tokens(pipe.transformer, seed=self.feed.sampling.seed, num_classes=len(pipe.labels))
        accelerator.print(f"{len(pipe.labels)} classes: {', '.join(list(pipe.labels)[:20])}")

    def conditions(self, batch: MicroBatch, is_training: bool) -> Conditions:
        dropped = self.is_dropped(batch.generators, is_training)
        no_label = self.pipe.transformer.config.num_classes
        labels = [no_label if drop else self.pipe.labels[x] for x, drop in zip(batch.labels, dropped, strict=True)]
        return {"class_labels": torch.tensor(labels, device=batch.latents.device)}

    def asked(self, sample: dict) -> dict:
        return {"class_labels": sample["label"]}
