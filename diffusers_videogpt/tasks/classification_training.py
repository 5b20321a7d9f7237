"""Training a classifier: a probe on frozen features, or the whole model on the videos."""

import argparse
import json

import torch
from accelerate import Accelerator

from ..data.videos import report_dropped
from ..pipeline_videogpt import VideoGPTPipeline
from ..training.arguments import load_video_table, make_sampling, positive_int, refuse_options
from ..training.feed import LatentFeed, MicroBatch, split_off
from ..training.loop import TrainingLoop, train_model
from ..training.recipe import publish
from ..training.validation import plot_curve
from .class_to_video import class_names
from .conditional_generation import all_records
from .linear_probe import LinearProbe, fit_linear_probe
from .token_pooling import POOLINGS, resolve_layer
from .video_classification import VideoGPTForVideoClassification, normalized
from .video_features import extract_layers


# Of the other scripts: the result is no pipeline, and a sample is one clip.
NOT_HERE = ("frames_per_clip", "guidance_scale", "same_clips_in_step")
# The numbers of an optimizer may be given, as one YAML file serves both modes; these would be missed.
NOT_FOR_A_PROBE = ("validation_data_root", "resume_from_checkpoint", "ema_decay", "torch_compile", "report_to")


def add_classification_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("classifier")
    group.add_argument(
        "--mode",
        choices=["probe", "finetune"],
        default="probe",
        help="a linear layer on frozen features, or all weights",
    )
    group.add_argument(
        "--layer",
        type=int,
        nargs="+",
        help="whose tokens are pooled; negative from the end; default: two thirds. Of several, a probe takes the one that is "
        "best on the videos kept for validation",
    )
    group.add_argument("--pooling", choices=list(POOLINGS), default="mean", help="of the clean patch tokens")
    group.add_argument(
        "--num_clips", type=positive_int, default=1, help="of a video, for a probe; spread evenly over it"
    )


def check_classification_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.mode == "finetune" and args.layer is not None and len(args.layer) > 1:
        parser.error(f"--mode finetune trains one model: give one --layer, not {args.layer}")
    if args.mode == "probe" and (args.cached_latents is not None or args.windows_per_video is not None):
        parser.error(
            "--mode probe takes its clips evenly from the videos: leave out --cached_latents and --windows_per_video"
        )
    if args.mode == "probe" and args.num_validation_videos < 1:
        parser.error(
            "--mode probe chooses its weight decay on videos kept for validation: --num_validation_videos is 0"
        )
    refuse_options(parser, args, NOT_HERE, "classification")
    if args.mode == "probe":
        refuse_options(parser, args, NOT_FOR_A_PROBE, "--mode probe")
    if args.streaming:
        parser.error(
            "all classes must be known before the first step, of a stream they are not: leave out --streaming"
        )


def save_classifier(args: argparse.Namespace, model: VideoGPTForVideoClassification, vae, **card) -> None:
    """The classifier in `--output_dir`, the VAE that it needs in its folder `vae`, and its card."""
    model.eval().to("cpu").save_pretrained(args.output_dir)
    vae.to("cpu").save_pretrained(args.output_dir / "vae")
    script = "training_scripts/train_classification.py"
    publish(args, script, transformer=model.transformer, example={}, task="classification", **card)


# The probe


def train_probe(args: argparse.Namespace, accelerator: Accelerator, pipe: VideoGPTPipeline) -> None:
    """Features once, then a probe a layer; the best one on the held-out videos is saved as a classifier.

    Features are in `--output_dir/features`, in the numbers of `--mixed_precision`; `probe.json` tells what was tried.

    Raises:
        ValueError: a video has no class, there is but one, or too few are left to train on.
    """
    with accelerator.main_process_first():
        table = load_video_table(args)
    report_dropped(table.dropped, args.output_dir, is_main_process=accelerator.is_main_process)
    names = class_names([record.label for record in table], args.dataset_file)
    # Too few videos are told before their features are computed.
    split_off([record.id for record in table], args.num_validation_videos, args.seed)
    num_layers = pipe.transformer.config.num_layers
    layers = [resolve_layer(num_layers, layer) for layer in args.layer or [None]]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    # diffusers' own `to` warns of parts to keep in fp32, of which there are none.
    torch.nn.Module.to(pipe.transformer, accelerator.device, dtype)
    found = extract_layers(
        pipe,
        table,
        layers,
        args.num_clips,
        cache_dir=args.output_dir / "features",
        pooling=args.pooling,
        batch_size=args.train_batch_size,
        vae_batch_size=args.vae_batch_size,
        num_workers=args.dataloader_num_workers,
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        records = found[0].records
        labels = torch.tensor([names.index(record.label) for record in records])
        _, held_out = split_off([record.id for record in records], args.num_validation_videos, args.seed)
        probes = [fit_linear_probe(normalized(of_layer.values), labels, len(names), held_out) for of_layer in found]
        best = max(range(len(layers)), key=lambda index: probes[index].held_out_accuracy)
        for layer, probe in zip(layers, probes, strict=True):
            print(f"layer {layer}: {100 * probe.held_out_accuracy:.1f} % of held-out videos")
        model = VideoGPTForVideoClassification.from_transformer(
            pipe.transformer, names, layers[best], args.pooling, make_sampling(args)
        )
        put_probe(model, probes[best])
        tried = [
            {"layer": x, "weight_decay": p.weight_decay, "held_out": p.held_out_accuracy}
            for x, p in zip(layers, probes, strict=True)
        ]
        (args.output_dir / "probe.json").write_text(json.dumps({"chosen": layers[best], "layers": tried}, indent=1))
        share, layer = probes[best].held_out_accuracy, model.transformer.config.num_layers
        results = f"{100 * share:.1f} % of {len(held_out)} held-out videos, by which layer {layer} and the weight decay were chosen."
        save_classifier(args, model, pipe.vae, results=results)
    accelerator.end_training()


@torch.no_grad()
def put_probe(model: VideoGPTForVideoClassification, probe: LinearProbe) -> None:
    """A trained probe as the head of a model."""
    model.head.weight.copy_(probe.weight)
    model.head.bias.copy_(probe.bias)


# The whole model


class ClassifierTraining:
    """Loss and validation of a run, in the form that [`~training.loop.TrainingLoop`] takes.

    Raises:
        ValueError: a video has no class, or there is but one.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, pipe: VideoGPTPipeline, feed: LatentFeed):
        self.accelerator, self.feed = accelerator, feed
        names = class_names([record.label for record in all_records(feed)], args.dataset_file)
        layer = None if args.layer is None else args.layer[0]
        self.model = VideoGPTForVideoClassification.from_transformer(
            pipe.transformer, names, layer, args.pooling, make_sampling(args)
        )

    def run_fields(self) -> dict:
        """What a checkpoint must agree with."""
        return {"classifier": json.loads(self.model.to_json_string())}

    def loss(self, model, batch: MicroBatch) -> torch.Tensor:
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


def train_classifier(
    args: argparse.Namespace, accelerator: Accelerator, pipe: VideoGPTPipeline, feed: LatentFeed
) -> None:
    """Trains the transformer and the head, and saves the classifier."""
    training = ClassifierTraining(args, accelerator, pipe, feed)
    pipe.transformer = None  # its weights are copied
    model = train_model(args, accelerator, feed, training)
    if model is not None:
        curve = plot_curve(args.output_dir / "train_log.csv", args.output_dir / "validation" / "loss_curve.png")
        save_classifier(args, model, pipe.vae, curve=curve)
    accelerator.end_training()
