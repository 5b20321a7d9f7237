"""Training a classifier: a probe on frozen features, or the whole model on the videos."""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..data.videos import report_dropped
from ..diffusers_internals import cast_as_loaded
from ..files import write_json
from ..pipeline_videogpt import VideoGPTPipeline
from ..training.feed import LatentFeed, MicroBatch, split_off
from ..training.loading import load_video_table, make_sampling
from ..training.loop import TrainingLoop
from ..training.recipe import RunRecord, Training, copy_with, publish
from ..training.settings import DataSettings, HubSettings
from ..training.validation import plot_curve
from .class_to_video import class_names
from .conditional_generation import all_records
from .linear_probe import LinearProbe, fit_linear_probe
from .settings import ClassifierSettings
from .token_pooling import resolve_layer
from .video_classification import VideoGPTForVideoClassification, normalized
from .video_features import extract_layers


def save_classifier(model: VideoGPTForVideoClassification, vae, *, output_dir: Path) -> dict[str, Any]:
    """Saves the classifier, and in the folder `vae` the VAE that it needs; returns what the card says of it."""
    model.eval().to("cpu").save_pretrained(output_dir)
    vae.to("cpu").save_pretrained(output_dir / "vae")
    return {"transformer": model.transformer, "example": {}, "task": "classification"}


# The probe


def train_probe(
    accelerator: Accelerator,
    pipe: VideoGPTPipeline,
    *,
    classifier: ClassifierSettings,
    data: DataSettings,
    hub: HubSettings,
    record: RunRecord,
) -> None:
    """Features once, then a probe a layer; the best one on the held-out videos is saved as a classifier.

    Features are in `--output_dir/features`, in the numbers of `--mixed_precision`; `probe.json` tells what was tried.

    Raises:
        ValueError: a video has no class, there is but one, or too few are left to train on.
    """
    sampling, latents, batches, output_dir = data.sampling, data.latents, data.batches, data.output_dir
    with accelerator.main_process_first():
        table = load_video_table(data.videos, sampling)
    report_dropped(table.dropped, output_dir, is_main_process=accelerator.is_main_process)
    names = class_names([video.label for video in table], data.videos.dataset_file)
    # Too few videos are told before their features are computed.
    ids = [video.id for video in table]
    split_off(ids, latents.num_held_out(len(ids)), seed=sampling.seed)
    num_layers = pipe.transformer.config.num_layers
    layers = [resolve_layer(num_layers, layer) for layer in classifier.layer or [None]]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    cast_as_loaded(pipe.transformer, dtype).to(accelerator.device)
    found = extract_layers(
        pipe,
        table,
        layers=layers,
        num_clips=classifier.num_clips,
        cache_dir=output_dir / "features",
        pooling=classifier.pooling,
        batch_size=batches.train_batch_size,
        vae_batch_size=latents.vae_batch_size,
        num_workers=batches.dataloader_num_workers,
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        records = found[0].records
        labels = torch.tensor([names.index(video.label) for video in records])
        ids = [video.id for video in records]
        _, held_out = split_off(ids, latents.num_held_out(len(ids)), seed=sampling.seed)
        probes = [
            fit_linear_probe(normalized(of_layer.values), labels, num_classes=len(names), held_out=held_out)
            for of_layer in found
        ]
        best = max(range(len(layers)), key=lambda index: probes[index].held_out_accuracy)
        for layer, probe in zip(layers, probes, strict=True):
            print(f"layer {layer}: {100 * probe.held_out_accuracy:.1f} % of held-out videos")
        model = VideoGPTForVideoClassification.from_transformer(
            pipe.transformer, names, layer=layers[best], pooling=classifier.pooling, sampling=make_sampling(sampling)
        )
        put_probe(model, probes[best])
        tried = [
            {"layer": x, "weight_decay": p.weight_decay, "held_out": p.held_out_accuracy}
            for x, p in zip(layers, probes, strict=True)
        ]
        write_json(output_dir / "probe.json", {"chosen": layers[best], "layers": tried})
        share, layer = probes[best].held_out_accuracy, model.transformer.config.num_layers
        results = f"{100 * share:.1f} % of {len(held_out)} held-out videos, by which layer {layer} and the weight decay were chosen."
        card = save_classifier(model, pipe.vae, output_dir=output_dir)
        publish(output_dir, hub, record=record, results=results, **card)
    accelerator.end_training()


@torch.no_grad()
def put_probe(model: VideoGPTForVideoClassification, probe: LinearProbe) -> None:
    """A trained probe as the head of a model."""
    model.head.weight.copy_(probe.weight)
    model.head.bias.copy_(probe.bias)


# The whole model


class ClassifierTraining(Training):
    """Training of the transformer and the head together.

    Args:
        pipe: whose transformer and VAE the classifier takes.
        feed: of the run; a sample is one clip.
        classifier: what it is.
        data: of the run, from which `feed` was made; beside its `--dataset_file` there may be a `classInd.txt`.

    Raises:
        ValueError: a video has no class, or there is but one.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        pipe: VideoGPTPipeline,
        *,
        feed: LatentFeed,
        classifier: ClassifierSettings,
        data: DataSettings,
    ):
        self.accelerator, self.feed, self.vae, self.output_dir = accelerator, feed, pipe.vae, data.output_dir
        names = class_names([record.label for record in all_records(feed)], data.videos.dataset_file)
        layer = None if classifier.layer is None else classifier.layer[0]
        self.model = VideoGPTForVideoClassification.from_transformer(
            pipe.transformer, names, layer=layer, pooling=classifier.pooling, sampling=make_sampling(feed.sampling)
        )
        pipe.transformer = None  # its weights are copied

    def run_fields(self) -> dict[str, Any]:
        return {"classifier": json.loads(self.model.to_json_string())}

    def loss(self, model: nn.Module, batch: MicroBatch) -> torch.Tensor:
        return model(batch.latents, labels=self.model.label_ids(batch.labels)).loss

    def validate(self, loop: TrainingLoop, step: int) -> dict[str, float]:
        """Mean loss and accuracy of one clip of each held-out video."""
        losses, right = [], []
        for batch in self.feed.validation_batches():
            labels = self.model.label_ids(batch.labels)
            with self.accelerator.autocast():
                output = loop.model(batch.latents, labels=labels)
            losses += [output.loss.item()] * len(labels)
            right += (output.logits.argmax(dim=1) == labels).tolist()
        return {"loss": sum(losses) / len(losses), "top1": sum(right) / len(right)} if losses else {}

    def save(self, loop: TrainingLoop, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        model = copy_with(self.model, weights)
        card = save_classifier(model, self.vae, output_dir=self.output_dir)
        return card | {"curve": plot_curve(loop.log_path, self.output_dir / "validation" / "loss_curve.png")}
