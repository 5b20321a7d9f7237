"""Training a retriever: two projections on frozen features, or the transformer with them.

Shapes: B videos or texts, N clips of a video, W width of the video feature, E width of the text feature.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from accelerate import Accelerator

from ..conditions import encode_text
from ..data.videos import report_dropped
from ..metrics.retrieval import score_both_ways
from ..pipeline_videogpt import VideoGPTPipeline
from ..training.arguments import add_flag, load_video_table, make_sampling, positive_int, refuse_options
from ..training.feed import CachedWindows, LatentFeed, MicroBatch, PlannedBatches, make_feed, split_off
from ..training.loop import TrainingLoop, train_model
from ..training.recipe import publish
from ..training.validation import plot_curve
from ..weights import hash_weights
from .conditional_generation import all_records
from .text_to_video import cache_texts, check_captions, load_text_encoder
from .token_pooling import POOLINGS
from .video_features import VideoFeatures, extract_features
from .video_retrieval import (
    VideoGPTForVideoRetrieval,
    VideoGPTRetrievalPipeline,
    contrastive_loss,
    pool_text,
    text_feature_dim,
)


def add_retrieval_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("retrieval")
    group.add_argument(
        "--pretrained_text_encoder_path", help="a text encoder or a pipeline with one; default: the model's"
    )
    add_flag(
        group,
        "--train_transformer",
        help="train the transformer too, on random clips; default: the projections alone, on features computed once",
    )
    group.add_argument("--layer", type=int, help="whose tokens are pooled; negative from the end; default: two thirds")
    group.add_argument("--pooling", choices=list(POOLINGS), default="mean", help="of the clean patch tokens")
    group.add_argument("--num_clips", type=positive_int, default=1, help="of a video, spread evenly over it, in use")
    group.add_argument("--projection_dim", type=positive_int, default=256, help="channels of the common space")


def check_retrieval_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for name in ("cached_latents", "windows_per_video", "streaming"):
        if getattr(args, name) and not args.train_transformer:
            parser.error(
                f"--{name} needs --train_transformer: frozen features are computed once, of clips spread over each video"
            )
    if args.validation_data_root is not None:
        parser.error(
            "a folder has no captions: leave out --validation_data_root, --num_validation_videos are kept instead"
        )
    refuse_options(parser, args, ("frames_per_clip", "guidance_scale", "same_clips_in_step"), "retrieval")


class FeatureCache:
    """Features of videos where [`~training.feed.CachedWindows`] expects latents: each clip is one window.

    Attributes:
        values: (V, N, W).
        ids, captions, labels: of the V videos.
    """

    def __init__(self, features: VideoFeatures):
        self.values = features.values
        self.ids = [record.id for record in features.records]
        self.captions = [record.caption for record in features.records]
        self.labels = [record.label for record in features.records]

    def size(self, index: int) -> tuple[int, int]:
        return 1, 1

    def length(self, index: int) -> int:
        return 1

    def read(self, index: int, draw: int) -> torch.Tensor:
        return self.values[index, draw % self.values.shape[1]]


class FeatureFeed(LatentFeed):
    """Batches of features: (B, W, 1, 1, 1), so to say the latents of one frame of one pixel."""

    def _micro_batch(self, batch: dict, generators: list, clip_generators: list) -> MicroBatch:
        features = batch["moments"].to(self.accelerator.device)[:, :, None, None, None]
        clip_lengths = [[1]] * len(features)
        return MicroBatch(features, generators, clip_lengths, batch["ids"], batch["captions"], batch["labels"])


def make_retrieval_feed(args: argparse.Namespace, accelerator: Accelerator, pipe: VideoGPTPipeline) -> LatentFeed:
    """Latents of random clips with `--train_transformer`, else features, which are kept in `--output_dir/features`.

    Raises:
        ValueError: no usable videos, or too few.
    """

    def one_clip(num_frames: int, generator: torch.Generator) -> list[int]:
        return [num_frames]

    if args.train_transformer:
        return make_feed(args, accelerator, pipe.vae, one_clip)
    with accelerator.main_process_first():
        table = load_video_table(args)
    report_dropped(table.dropped, args.output_dir, accelerator.is_main_process)
    # Too few videos are told before their features are computed.
    split_off([record.id for record in table.records], args.num_validation_videos, args.seed)
    pipe.transformer.to(accelerator.device)
    features = extract_features(
        pipe,
        table,
        args.layer,
        args.num_clips,
        cache_dir=args.output_dir / "features",
        pooling=args.pooling,
        vae_batch_size=args.vae_batch_size,
        num_workers=args.dataloader_num_workers,
        accelerator=accelerator,
    )
    cache = FeatureCache(features)
    kept, held_out = split_off(cache.ids, args.num_validation_videos, args.seed)
    source = PlannedBatches(args, accelerator, CachedWindows(cache, kept), table.dropped)
    validation = CachedWindows(cache, held_out) if held_out else None
    return FeatureFeed(args, accelerator, pipe.vae, one_clip, source, validation)


class RetrievalTraining:
    """Loss and validation of a run, in the form that [`~training.loop.TrainingLoop`] takes.

    The wrong answers of a video are the texts of all other videos of its micro-batch, over all processes.

    Attributes:
        model: the retriever that is trained.

    Raises:
        ValueError: there is no text encoder, a video has no caption, or no other is in its batch.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator, pipe: VideoGPTPipeline, feed: LatentFeed):
        self.args, self.accelerator, self.feed = args, accelerator, feed
        if args.train_batch_size * accelerator.num_processes < 2:
            raise ValueError("A video needs others beside it to be told from: raise --train_batch_size to 2 at least.")
        self.text_encoder, self.tokenizer = pipe.text_encoder, pipe.tokenizer
        if args.pretrained_text_encoder_path is not None:
            self.text_encoder, self.tokenizer = load_text_encoder(args.pretrained_text_encoder_path)
        if self.text_encoder is None:
            raise ValueError("There is no text encoder: name one by --pretrained_text_encoder_path.")
        self.text_encoder.to(accelerator.device)
        torch.manual_seed(args.seed)  # the projections are the same on every process
        self.model = VideoGPTForVideoRetrieval.from_transformer(
            pipe.transformer, text_feature_dim(self.text_encoder), args.layer, args.projection_dim, args.pooling
        )
        if not args.train_transformer:
            self.model.transformer.requires_grad_(False)

        records = all_records(feed)
        check_captions([record.caption for record in records], [record.id for record in records])
        self.known = {caption: row for row, caption in enumerate(sorted({record.caption for record in records}))}
        if args.streaming:
            return
        with accelerator.main_process_first():
            read = cache_texts(args.output_dir / "texts", list(self.known), self.text_encoder, self.tokenizer)
        captions = list(self.known)
        parts = [read(captions[first : first + 64]) for first in range(0, len(captions), 64)]
        device = accelerator.device
        self.features = torch.cat(
            [pool_text(self.text_encoder, states.to(device), mask.to(device)) for states, mask in parts]
        )

    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        """(B, E): encoded now if they are of a stream, else before the first step."""
        if self.args.streaming:
            return pool_text(self.text_encoder, *encode_text(self.text_encoder, self.tokenizer, captions))
        return self.features[[self.known[caption] for caption in captions]]

    def run_fields(self) -> dict:
        """What a checkpoint must agree with."""
        return {
            "retriever": json.loads(self.model.to_json_string()),
            "train_transformer": self.args.train_transformer,
            "num_clips": self.args.num_clips,
            "text_encoder": hash_weights(self.text_encoder)[:16],
        }

    def embed(self, model, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        check_captions(batch.captions, batch.ids)
        videos = {"latents": batch.latents}
        if not self.args.train_transformer:
            videos = {"video_features": batch.latents.flatten(1)}
        return model(**videos, text_features=self.text_features(batch.captions))

    def loss(self, model, batch: MicroBatch) -> torch.Tensor:
        return contrastive_loss(*self.embed(model, batch), captions=batch.captions)

    def validate(self, loop: TrainingLoop, step: int) -> dict[str, float]:
        """The loss over all held-out videos as one batch, and how well their texts find them."""
        videos, texts, captions, logit_scale = [], [], [], None
        for batch in self.feed.validation_batches():
            with self.accelerator.autocast():
                video_embeds, text_embeds, logit_scale = self.embed(loop.model, batch)
            videos.append(video_embeds)
            texts.append(text_embeds)
            captions += batch.captions
        if not captions:
            return {}
        videos, texts = torch.cat(videos), torch.cat(texts)
        distinct = sorted(set(captions))
        rows = [captions.index(text) for text in distinct]
        scores = score_both_ways(videos.cpu().numpy(), texts[rows].cpu().numpy(), captions=captions, texts=distinct)[
            "text → video"
        ]
        return {
            "loss": contrastive_loss(videos, texts, logit_scale, captions=captions).item(),
            "recall_at_1": scores.recall[1],
            "median_rank": scores.median_rank,
        }


def train_retrieval(
    args: argparse.Namespace, accelerator: Accelerator, pipe: VideoGPTPipeline, feed: LatentFeed
) -> None:
    """Trains a retriever on the blocks of the pipeline's transformer, and saves all that using it takes."""
    training = RetrievalTraining(args, accelerator, pipe, feed)
    pipe.transformer = None  # its weights are copied
    retriever = train_model(args, accelerator, feed, training, trainable_only=True)
    if retriever is not None:
        parts = (pipe.vae, retriever, training.text_encoder, training.tokenizer)
        trained = VideoGPTRetrievalPipeline(*parts, asdict(make_sampling(args)), args.num_clips)
        trained.to("cpu").save_pretrained(args.output_dir)
        curve = plot_curve(args.output_dir / "train_log.csv", args.output_dir / "validation" / "loss_curve.png")
        script, example = "training_scripts/train_retrieval.py", {"caption": next(iter(training.known))}
        publish(args, script, transformer=retriever.transformer, example=example, curve=curve, task="retrieval")
    accelerator.end_training()
