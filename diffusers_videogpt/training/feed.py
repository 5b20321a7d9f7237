"""What each step trains on: latents from videos or from a cache, with one generator a sample.

A sample's place in the global batch of a step is its slot. Its posterior sample, its clips and its noise come from a
generator seeded by (seed, step, slot), so a step is the same however its slots are spread over processes.

Shapes: B videos, C latent channels, N frames, h × w latent size.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import Dataset

from ..data.batches import BatchPlan, WindowDataset, collate, make_buckets, make_loader
from ..data.latents import (
    LatentCache,
    encode_moments,
    hash_weights,
    make_cache_key,
    sample_latents,
    write_latent_cache,
)
from ..data.sampling import seeded_generator
from ..data.streaming import StreamedBatches
from ..data.videos import DroppedVideos, VideoRecord, VideoTable, report_dropped
from ..files import hash_json
from .loading import action_space_of, load_video_table, make_sampling
from .settings import BatchSettings, DataSettings, LatentSettings, SamplingSettings


ClipDrawer = Callable[[int, torch.Generator], list[int]]


@dataclass
class MicroBatch:
    """What one process trains on at once.

    Attributes:
        latents: (B, C, N, h, w), scaled, fp32, on the device.
        generators: one a video, on the CPU; the noise is drawn from them.
        clip_lengths: the frames in each clip of each video.
        ids: names of the videos.
        captions, labels: of the videos, `None` where there are none.
        actions: that led to each frame, int64 (B, N) with −1 for "no action", or fp32 (B, N, D) with NaN for it, on the device;
            `None` in a run without actions.
    """

    latents: torch.Tensor
    generators: list[torch.Generator]
    clip_lengths: list[list[int]]
    ids: list[str]
    captions: list[str | None] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    actions: torch.Tensor | None = None


class CachedVideo(NamedTuple):
    """What a cache knows of a video beside its latents."""

    id: str
    caption: str | None
    label: str | None


class CachedWindows(Dataset):
    """Some videos of a cache as [`~batches.WindowDataset`] gives those of a table: by (video index, draw index).

    Args:
        cache: of latents, or anything with its methods.
        indices: of the videos in it.
        with_actions: whether the actions that it keeps are wanted.
    """

    def __init__(self, cache: LatentCache, indices: Sequence[int], *, with_actions: bool = False):
        self.cache, self.indices, self.with_actions = cache, list(indices), with_actions

    def __len__(self) -> int:
        return len(self.indices)

    def size(self, index: int) -> tuple[int, int]:
        return self.cache.size(self.indices[index])

    def length(self, index: int) -> int:
        return self.cache.length(self.indices[index])

    def __getitem__(self, item: tuple[int, int]) -> dict:
        index, draw = self.indices[item[0]], item[1]
        sample = {
            "moments": self.cache.read(index, draw),
            "id": self.cache.ids[index],
            "caption": self.cache.captions[index],
            "label": self.cache.labels[index],
        }
        return sample | {"actions": self.cache.read_actions(index, draw)} if self.with_actions else sample


def split_off(ids: Sequence[str], num_validation: int, *, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and indices kept for validation; which these are follows from (seed, id).

    Raises:
        ValueError: nothing is left to train on.
    """
    if len(ids) <= num_validation:
        raise ValueError(
            f"{len(ids)} usable videos, of which --num_validation_videos {num_validation} are kept for validation: add "
            "videos, lower it, or name other videos by --validation_data_root."
        )
    order = sorted(range(len(ids)), key=lambda index: hashlib.blake2b(f"{seed}/{ids[index]}".encode()).digest())
    return sorted(order[num_validation:]), sorted(order[:num_validation])


def share_of_samples(accelerator: Accelerator, batches: BatchSettings) -> dict[str, int]:
    """Which share of a step's samples is this process's, as `rank` and `num_processes` that have samples of their own.

    The processes of one group of context parallelism have the same samples, and draw the same noise.
    """
    group_size = batches.context_parallel_size
    return {
        "rank": accelerator.process_index // group_size,
        "num_processes": accelerator.num_processes // group_size,
    }


class PlannedBatches:
    """Batches of videos that are all known: what a step trains on follows from its number.

    Args:
        accelerator: says which share of a step is this process's.
        dataset: [`~batches.WindowDataset`] or [`CachedWindows`].
        batches: how many samples a step has, and who reads them.
        seed: of the order of the videos.
        dropped: where videos that break while they are read are listed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        dataset: WindowDataset | CachedWindows,
        *,
        batches: BatchSettings,
        seed: int,
        dropped: DroppedVideos | None = None,
    ):
        self.dataset, self.dropped = dataset, dropped
        self.shares = {
            "batch_size": batches.train_batch_size,
            **share_of_samples(accelerator, batches),
            "accumulation": batches.gradient_accumulation_steps,
            "num_workers": batches.dataloader_num_workers,
        }
        samples_a_process = batches.train_batch_size * batches.gradient_accumulation_steps
        self.plan = BatchPlan(table_of(dataset), samples_a_process * self.shares["num_processes"], seed=seed)
        self.num_videos, self.samples_a_step = len(table_of(dataset)), self.plan.global_batch_size

    def run_fields(self) -> dict:
        """What a checkpoint must agree with: which videos, and what is in them."""
        digest = hashlib.sha256("\n".join(ids_of(self.dataset)).encode()).hexdigest()
        content = content_fields(self.dataset)
        return {"videos": digest[:16], "global_batch_size": self.plan.global_batch_size, **content}

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass

    def batches(self, start_step: int, end_step: int) -> Iterator[dict]:
        steps = {"start_step": start_step, "num_steps": end_step - start_step}
        return make_loader(self.dataset, self.plan, **steps, **self.shares, dropped=self.dropped)


class StreamSource:
    """Batches of a stream, which goes on where it stood: each process keeps its own place, those of one group the same."""

    def __init__(self, accelerator: Accelerator, stream: StreamedBatches):
        self.accelerator, self.stream = accelerator, stream
        self.group_size = accelerator.num_processes // stream.run["num_processes"]
        run = stream.run
        self.num_videos = None
        self.samples_a_step = run["batch_size"] * run["accumulation"] * run["num_processes"]

    def run_fields(self) -> dict:
        run = {name: value for name, value in self.stream.run.items() if name != "rank"}
        return {f"streaming.{name}": value for name, value in run.items()}

    def state_dict(self) -> dict:
        return {"places": gather_object([self.stream.state_dict()])[:: self.group_size]}

    def load_state_dict(self, state: dict) -> None:
        self.stream.load_state_dict(state["places"][self.stream.run["rank"]])

    def batches(self, start_step: int, end_step: int) -> Iterator[dict]:
        return iter(self.stream)


class LatentFeed:
    """The batches of a training run, and its held-out videos, as latents.

    Args:
        accelerator: on whose device the latents are wanted.
        vae: encodes videos, in its own precision, on its own device.
        draw_clips: cuts a sample into clips, from (number of frames, generator).
        source: [`PlannedBatches`] or [`StreamSource`].
        sampling: which frames a sample takes, and the seed of what is drawn.
        latents: how videos become latents.
        batch_size: held-out videos at once.
        validation: the held-out videos, if there are any.
        fps: frames a second of the samples, where it is known.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        vae,
        *,
        draw_clips: ClipDrawer,
        source: PlannedBatches | StreamSource,
        sampling: SamplingSettings,
        latents: LatentSettings,
        batch_size: int = 1,
        validation: WindowDataset | CachedWindows | None = None,
        fps: float | None = None,
    ):
        self.fps = fps
        self.accelerator, self.vae, self.draw_clips = accelerator, vae, draw_clips
        self.source, self.validation = source, validation
        self.sampling, self.latents, self.batch_size = sampling, latents, batch_size
        self._validation_batches: list[dict] | None = None

    @property
    def num_videos(self) -> int | None:
        """To train on; `None` of a stream."""
        return self.source.num_videos

    @property
    def samples_a_step(self) -> int:
        """That a step of the optimizer trains on, in all processes together."""
        return self.source.samples_a_step

    def run_fields(self) -> dict:
        """What a checkpoint must agree with."""
        sampling = json.loads(json.dumps(asdict(make_sampling(self.sampling))))
        fields = {"seed": self.sampling.seed, "sampling": sampling, "vae": self._vae_hash}
        if self.latents.posterior != "sample":  # checkpoints from before know no other
            fields["posterior"] = self.latents.posterior
        return fields | self.source.run_fields()

    @cached_property
    def _vae_hash(self) -> str:
        return hash_weights(self.vae)[:16]

    def micro_batches(self, start_step: int, end_step: int) -> Iterator[MicroBatch]:
        """This process's micro-batches of the steps from `start_step` (counted from 0) to before `end_step`, in order."""
        for batch in self.source.batches(start_step, end_step):
            generators = [seeded_generator(self.sampling.seed, batch["step"], slot) for slot in batch["slots"]]
            clip_generators = generators
            if self.latents.same_clips_in_step:
                clip_generators = [seeded_generator(self.sampling.seed, batch["step"], "clips") for _ in generators]
            yield self._micro_batch(batch, generators, clip_generators=clip_generators)

    def _micro_batch(
        self, batch: dict, generators: list[torch.Generator], *, clip_generators: list[torch.Generator]
    ) -> MicroBatch:
        moments = batch.get("moments")
        if moments is None:
            moments = self._encode(batch["frames"])
        moments = moments.to(self.accelerator.device)
        if self.latents.posterior == "mean":
            means = moments[:, :, : self.vae.config.latent_channels]
            latents = [sample_latents(mean, self.vae.config) for mean in means]
        else:
            latents = [
                sample_latents(m, self.vae.config, generator=g) for m, g in zip(moments, generators, strict=True)
            ]
        clip_lengths = [self.draw_clips(moments.shape[1], g) for g in clip_generators]
        actions = batch.get("actions")
        return MicroBatch(
            torch.stack(latents),
            generators,
            clip_lengths,
            batch["ids"],
            batch["captions"],
            batch["labels"],
            actions=None if actions is None else actions.to(self.accelerator.device),
        )

    def _encode(self, frames: torch.Tensor) -> torch.Tensor:
        return encode_moments(self.vae, frames, batch_size=self.latents.vae_batch_size)

    def validation_batches(self) -> Iterator[MicroBatch]:
        """The held-out videos, all of them on every process, with the same windows, clips and noise every time."""
        if self.validation is None:
            return
        if self._validation_batches is None:
            self._validation_batches = []
            for members in make_buckets(table_of(self.validation)).values():
                for first in range(0, len(members), self.batch_size):
                    chosen = members[first : first + self.batch_size]
                    batch = collate([self.validation[index, 0] for index in chosen])
                    if "moments" not in batch:  # encoded once, not at every validation
                        batch["moments"] = self._encode(batch.pop("frames")).cpu()
                    self._validation_batches.append(batch)
        for batch in self._validation_batches:
            generators = [seeded_generator(self.sampling.seed, "validation", id) for id in batch["ids"]]
            yield self._micro_batch(batch, generators, clip_generators=generators)

    def validation_samples(self, count: int) -> list[dict]:
        """Up to `count` held-out videos of full length: "frames", uint8 (F, h, w, 3), of a cache as its latents decode;
        "caption" and "label"; and "actions", an array (F,) or (F, D), or `None`."""
        if self.validation is None:
            return []
        table, samples = table_of(self.validation), []
        for index in range(len(table)):
            if table.length(index) == self.sampling.num_frames and len(samples) < count:
                sample = self.validation[index, 0]
                frames = sample["frames"].numpy() if "frames" in sample else self._decode(sample["moments"])
                actions = sample["actions"].numpy() if "actions" in sample else None
                told = {"caption": sample["caption"], "label": sample["label"], "actions": actions}
                samples.append({"frames": frames, **told})
        return samples

    @torch.no_grad()
    def _decode(self, moments: torch.Tensor) -> np.ndarray:
        means = moments[:, : self.vae.config.latent_channels].to(self.vae.device, self.vae.dtype)
        pixels = [self.vae.decode(mean[None]).sample for mean in means]
        pixels = (torch.cat(pixels).float().clamp(-1, 1) + 1) * 127.5
        return pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def table_of(dataset: WindowDataset | CachedWindows) -> VideoTable | CachedWindows:
    """What knows the videos' sizes and lengths."""
    return dataset.table if isinstance(dataset, WindowDataset) else dataset


def subset(table: VideoTable, indices: Sequence[int]) -> VideoTable:
    records, infos = ([values[index] for index in indices] for values in (table.records, table.infos))
    return VideoTable(records, infos, sampling=table.sampling, dropped=table.dropped)


def ids_of(dataset: WindowDataset | CachedWindows) -> list[str]:
    return [record.id for record in records_of(dataset)]


def content_fields(dataset: WindowDataset | CachedWindows) -> dict[str, str]:
    """Hashes of what a run learns from, beside the names of the videos: captions, labels, and the content of files, of rows of
    a dataset, of masks and simulated scenes, or of what a cache holds."""
    records = records_of(dataset)
    content = {"captions": [x.caption for x in records], "labels": [x.label for x in records]}
    if isinstance(dataset, WindowDataset):
        content["sources"] = [x.digest for x in records]
        if any(x.actions is not None for x in records):
            content["actions"] = [hashlib.sha256(x.actions.tobytes()).hexdigest() for x in records]
    else:
        content["cached"] = dataset.cache.content_hash(dataset.indices)
    return {f"content.{name}": hash_json(values)[:16] for name, values in content.items()}


def records_of(dataset: WindowDataset | CachedWindows) -> list[VideoRecord] | list[CachedVideo]:
    """What is known of each video: `id`, `caption`, `label`."""
    if isinstance(dataset, WindowDataset):
        return dataset.table.records
    cache = dataset.cache
    return [CachedVideo(cache.ids[index], cache.captions[index], cache.labels[index]) for index in dataset.indices]


def actions_of(dataset: WindowDataset | CachedWindows) -> list[np.ndarray]:
    """The actions of each video; of a cache, those of its windows."""
    if isinstance(dataset, WindowDataset):
        return [record.actions for record in dataset.table.records]
    draws = range(dataset.cache.num_windows)
    return [dataset.cache.read_actions(index, draw).numpy() for index in dataset.indices for draw in draws]


def write_run_cache(accelerator: Accelerator, vae, *, table: VideoTable, key: dict, data: DataSettings) -> Path:
    """Encodes `--windows_per_video` samples of each video of a table into `output_dir/latents`, all processes together; what
    is there already, of the same `key`, is kept. Returns the folder, complete."""
    folder = data.output_dir / "latents"
    write_latent_cache(
        folder,
        table,
        vae=vae,
        key=key,
        num_windows=data.latents.windows_per_video,
        batch_size=data.latents.vae_batch_size,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        num_workers=data.batches.dataloader_num_workers,
    )
    accelerator.wait_for_everyone()
    return folder


def cache_latents(accelerator: Accelerator, vae, *, data: DataSettings) -> tuple[Path, float | None]:
    """Encodes `--windows_per_video` samples of all videos into `output_dir/latents`; what is there already is kept.

    Returns:
        The folder, and the frames a second of the samples, where it is known.
    """
    sampling, latents = data.sampling, data.latents
    with accelerator.main_process_first():
        table = load_video_table(data.videos, sampling, actions=data.actions)
    report_dropped(table.dropped, data.output_dir, is_main_process=accelerator.is_main_process)
    # Too few videos are told before they are encoded.
    split_off([record.id for record in table.records], latents.num_held_out(len(table)), seed=sampling.seed)
    space = action_space_of(data.actions)
    key = make_cache_key(vae, make_sampling(sampling), seed=sampling.seed, actions=space)
    return write_run_cache(accelerator, vae, table=table, key=key, data=data), table.frame_rate


def make_feed(
    accelerator: Accelerator,
    vae,
    *,
    draw_clips: ClipDrawer,
    data: DataSettings,
) -> LatentFeed:
    """The feed that the settings name: from cached latents, from videos, or from a stream of them.

    Of videos that are all known, some are kept for validation, unless there are others for it.

    Raises:
        ValueError: no usable videos, too few, or a cache that was made otherwise; with what to do.
    """
    videos, sampling, latents, batches = data.videos, data.sampling, data.latents, data.batches
    seed, frames = sampling.seed, make_sampling(sampling)
    feed = partial(
        LatentFeed,
        accelerator,
        vae,
        draw_clips=draw_clips,
        sampling=sampling,
        latents=latents,
        batch_size=batches.train_batch_size,
    )
    validation = None
    if latents.validation_data_root is not None:
        others = VideoTable.from_folder(latents.validation_data_root, frames, actions=action_space_of(data.actions))
        validation = WindowDataset(others, seed)
    if videos.streaming:
        stream = StreamedBatches(
            videos.dataset_name,
            frames,
            split=videos.dataset_split,
            config_name=videos.dataset_config_name,
            **videos.columns,
            max_bad_fraction=videos.max_bad_fraction,
            batch_size=batches.train_batch_size,
            seed=seed,
            **share_of_samples(accelerator, batches),
            accumulation=batches.gradient_accumulation_steps,
            num_workers=batches.dataloader_num_workers,
        )
        report_dropped(stream.dropped, data.output_dir, is_main_process=accelerator.is_main_process)
        return feed(source=StreamSource(accelerator, stream), validation=validation, fps=frames.fps)

    dropped, cached, fps = None, latents.cached_latents, frames.fps
    if cached is None and latents.windows_per_video is not None:
        cached, fps = cache_latents(accelerator, vae, data=data)
    if cached is not None:
        expected = make_cache_key(vae, frames, seed=seed, actions=action_space_of(data.actions))
        del expected["seed"]  # trainings of several seeds may share the windows that one seed drew
        cache = LatentCache(cached, expected)
        ids = cache.ids
        kept, held_out = split_off(ids, latents.num_held_out(len(ids)), seed=seed)
        with_actions = data.actions is not None
        train, held_out = (CachedWindows(cache, chosen, with_actions=with_actions) for chosen in (kept, held_out))
    else:
        with accelerator.main_process_first():
            table = load_video_table(videos, sampling, actions=data.actions)
        dropped, fps = table.dropped, table.frame_rate
        report_dropped(dropped, data.output_dir, is_main_process=accelerator.is_main_process)
        ids = [record.id for record in table.records]
        kept, held_out = split_off(ids, latents.num_held_out(len(ids)), seed=seed)
        train, held_out = (WindowDataset(subset(table, indices), seed) for indices in (kept, held_out))
    source = PlannedBatches(accelerator, train, batches=batches, seed=seed, dropped=dropped)
    plan = source.plan
    if len(plan.buckets) > 1 and plan.fill_fraction > 0.1:
        accelerator.print(
            f"{100 * plan.fill_fraction:.0f} % of an epoch are further windows of rare videos: each of {len(plan.buckets)} sizes "
            f"and lengths fills whole steps of {plan.global_batch_size} samples by itself. One size for all (--height, --width) or "
            "a smaller batch lessens it."
        )
    return feed(source=source, validation=held_out if len(kept) < len(ids) else validation, fps=fps)
