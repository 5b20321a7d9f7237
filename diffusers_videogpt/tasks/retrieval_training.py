"""Training a retriever: two projections on frozen features, or the transformer with them.

Shapes: B videos or texts, N clips of a video, W width of the video feature, E width of the text feature.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator

from ..conditions import encode_text
from ..data.videos import report_dropped
from ..files import hash_json
from ..metrics.retrieval import score_both_ways
from ..pipeline_videogpt import VideoGPTPipeline
from ..training.feed import (
    CachedWindows,
    LatentFeed,
    MicroBatch,
    PlannedBatches,
    StreamSource,
    make_feed,
    split_off,
)
from ..training.loading import load_video_table, make_sampling
from ..training.loop import TrainingLoop
from ..training.recipe import Training, copy_with
from ..training.settings import DataSettings
from ..training.validation import plot_curve
from ..weights import hash_weights
from .conditional_generation import all_records
from .settings import RetrievalSettings
from .text_to_video import cache_texts, check_captions, load_text_encoder
from .video_features import VideoFeatures, extract_features
from .video_retrieval import (
    VideoGPTForVideoRetrieval,
    VideoGPTRetrievalPipeline,
    contrastive_loss,
    pool_text,
    text_feature_dim,
)


class FeatureCache:
    """Features of videos where [`~training.feed.CachedWindows`] expects latents: each clip is one window.

    Attributes:
        values: (V, N, W).
        ids, captions, labels, digests: of the V videos.
    """

    def __init__(self, features: VideoFeatures):
        self.values, self.digests = features.values, [record.digest for record in features.records]
        self.ids = [record.id for record in features.records]
        self.captions = [record.caption for record in features.records]
        self.labels = [record.label for record in features.records]

    def size(self, index: int) -> tuple[int, int]:
        return 1, 1

    def length(self, index: int) -> int:
        return 1

    def content_hash(self, indices: Sequence[int]) -> str:
        """Of the contents of these videos: with the models and the sampling, which a run tells by themselves, features follow
        from them. Of the features' own numbers the last digits differ from one machine to another."""
        return hash_json([[self.ids[index], self.digests[index]] for index in indices])

    def read(self, index: int, draw: int) -> torch.Tensor:
        return self.values[index, draw % self.values.shape[1]]


class FeatureFeed(LatentFeed):
    """Batches of features: (B, W, 1, 1, 1), so to say the latents of one frame of one pixel."""

    def _micro_batch(self, batch: dict, generators: list, *, clip_generators: list) -> MicroBatch:
        features = batch["moments"].to(self.accelerator.device)[:, :, None, None, None]
        clip_lengths = [[1]] * len(features)
        return MicroBatch(features, generators, clip_lengths, batch["ids"], batch["captions"], batch["labels"])


def make_retrieval_feed(
    accelerator: Accelerator,
    pipe: VideoGPTPipeline,
    *,
    retrieval: RetrievalSettings,
    data: DataSettings,
) -> LatentFeed:
    """Latents of random clips with `--train_transformer`, else features, which are kept in `output_dir/features`.

    Raises:
        ValueError: no usable videos, or too few.
    """

    def one_clip(num_frames: int, generator: torch.Generator) -> list[int]:
        return [num_frames]

    if retrieval.train_transformer:
        return make_feed(accelerator, pipe.vae, draw_clips=one_clip, data=data)
    sampling, latents, batches = data.sampling, data.latents, data.batches
    with accelerator.main_process_first():
        table = load_video_table(data.videos, sampling)
    report_dropped(table.dropped, data.output_dir, is_main_process=accelerator.is_main_process)
    # Too few videos are told before their features are computed.
    split_off([record.id for record in table.records], latents.num_held_out(len(table)), seed=sampling.seed)
    pipe.transformer.to(accelerator.device)
    features = extract_features(
        pipe,
        table,
        layer=retrieval.layer,
        num_clips=retrieval.num_clips,
        cache_dir=data.output_dir / "features",
        pooling=retrieval.pooling,
        vae_batch_size=latents.vae_batch_size,
        num_workers=batches.dataloader_num_workers,
        accelerator=accelerator,
    )
    cache = FeatureCache(features)
    kept, held_out = split_off(cache.ids, latents.num_held_out(len(cache.ids)), seed=sampling.seed)
    windows = CachedWindows(cache, kept)
    return FeatureFeed(
        accelerator,
        pipe.vae,
        draw_clips=one_clip,
        source=PlannedBatches(accelerator, windows, batches=batches, seed=sampling.seed, dropped=table.dropped),
        sampling=sampling,
        latents=latents,
        batch_size=batches.train_batch_size,
        validation=CachedWindows(cache, held_out) if held_out else None,
    )


class RetrievalTraining(Training):
    """Training of two projections, or of the transformer with them.

    The wrong answers of a video are the texts of all other videos of its micro-batch, over all processes.

    Args:
        pipe: whose transformer and VAE the retriever takes.
        feed: of the run, from [`make_retrieval_feed`].
        retrieval: what it is.
        data: of the run, from which `feed` was made.

    Attributes:
        model: the retriever that is trained.

    Raises:
        ValueError: there is no text encoder, a video has no caption, or no other is in its batch.
    """

    trainable_only = True

    def __init__(
        self,
        accelerator: Accelerator,
        pipe: VideoGPTPipeline,
        *,
        feed: LatentFeed,
        retrieval: RetrievalSettings,
        data: DataSettings,
    ):
        self.accelerator, self.feed, self.vae, self.output_dir = accelerator, feed, pipe.vae, data.output_dir
        self.retrieval = retrieval
        if data.batches.train_batch_size * accelerator.num_processes < 2:
            raise ValueError("A video needs others beside it to be told from: raise --train_batch_size to 2 at least.")
        self.text_encoder, self.tokenizer = pipe.text_encoder, pipe.tokenizer
        if retrieval.pretrained_text_encoder_path is not None:
            self.text_encoder, self.tokenizer = load_text_encoder(retrieval.pretrained_text_encoder_path)
        if self.text_encoder is None:
            raise ValueError("There is no text encoder: name one by --pretrained_text_encoder_path.")
        self.text_encoder.to(accelerator.device)
        torch.manual_seed(feed.sampling.seed)  # the projections are the same on every process
        self.model = VideoGPTForVideoRetrieval.from_transformer(
            pipe.transformer,
            text_feature_dim(self.text_encoder),
            layer=retrieval.layer,
            projection_dim=retrieval.projection_dim,
            pooling=retrieval.pooling,
        )
        pipe.transformer = None  # its weights are copied
        if not retrieval.train_transformer:
            self.model.transformer.requires_grad_(False)

        records = all_records(feed)
        check_captions([record.caption for record in records], [record.id for record in records])
        self.known = {caption: row for row, caption in enumerate(sorted({record.caption for record in records}))}
        if isinstance(feed.source, StreamSource):
            return
        with accelerator.main_process_first():
            read = cache_texts(
                data.output_dir / "texts", list(self.known), text_encoder=self.text_encoder, tokenizer=self.tokenizer
            )
        captions = list(self.known)
        parts = [read(captions[first : first + 64]) for first in range(0, len(captions), 64)]
        device = accelerator.device
        self.features = torch.cat(
            [pool_text(self.text_encoder, states.to(device), mask=mask.to(device)) for states, mask in parts]
        )

    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        """(B, E): encoded now if they are of a stream, else before the first step."""
        if isinstance(self.feed.source, StreamSource):
            states, mask = encode_text(self.text_encoder, self.tokenizer, texts=captions)
            return pool_text(self.text_encoder, states, mask=mask)
        return self.features[[self.known[caption] for caption in captions]]

    def run_fields(self) -> dict[str, Any]:
        fields = {
            "retriever": json.loads(self.model.to_json_string()),
            "train_transformer": self.retrieval.train_transformer,
            "num_clips": self.retrieval.num_clips,
            "text_encoder": hash_weights(self.text_encoder)[:16],
        }
        if not self.retrieval.train_transformer:  # frozen, so checkpoints leave it out
            fields["content.transformer"] = hash_weights(self.model.transformer)[:16]
        return fields

    def embed(self, model, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        check_captions(batch.captions, batch.ids)
        videos = {"latents": batch.latents}
        if not self.retrieval.train_transformer:
            videos = {"video_features": batch.latents.flatten(1)}
        return model(**videos, text_features=self.text_features(batch.captions))

    def loss(self, model, batch: MicroBatch) -> torch.Tensor:
        videos, texts, logit_scale = self.embed(model, batch)
        return contrastive_loss(videos, texts, logit_scale=logit_scale, captions=batch.captions)

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
            "loss": contrastive_loss(videos, texts, logit_scale=logit_scale, captions=captions).item(),
            "recall_at_1": scores.recall[1],
            "median_rank": scores.median_rank,
        }

    def save(self, loop: TrainingLoop, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Saves the retriever with all that using it takes."""
        retriever = copy_with(self.model, weights)
        parts = (self.vae, retriever, self.text_encoder, self.tokenizer)
        trained = VideoGPTRetrievalPipeline(
            *parts, asdict(make_sampling(self.feed.sampling)), self.retrieval.num_clips
        )
        trained.to("cpu").save_pretrained(self.output_dir)
        return {
            "transformer": retriever.transformer,
            "example": {"caption": next(iter(self.known))},
            "curve": plot_curve(loop.log_path, self.output_dir / "validation" / "loss_curve.png"),
            "task": "retrieval",
        }
