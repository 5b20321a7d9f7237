"""Batches of windows: which videos a step trains on, and the loader that reads them.

    plan = BatchPlan(table, global_batch_size=8, seed=0)
    for batch in make_loader(WindowDataset(table, seed=0), plan, num_steps=1000, batch_size=8, num_workers=2):
        batch["frames"]                                     # uint8 (B, F, h, w, 3)

Videos of one size and length form a bucket, and a batch comes from one bucket: nothing is ever padded. The plan has no
state: what a step trains on follows from the seed and the step, so a run goes on at any step.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..video_io import VideoReadError
from .sampling import seeded_generator
from .videos import DroppedVideos, VideoTable
from .workers import check_shared_memory, until_timeout, worker_options


MAX_REPLACEMENTS = 32  # videos tried in place of one that does not decode


def make_buckets(table: VideoTable) -> dict[tuple[int, int, int], list[int]]:
    """(height, width, frames) → the videos whose samples have this shape."""
    buckets: dict[tuple[int, int, int], list[int]] = {}
    for index in range(len(table)):
        buckets.setdefault((*table.size(index), table.length(index)), []).append(index)
    return buckets


class BatchPlan:
    """Which windows each step trains on.

    In an epoch every video is drawn at least once. A bucket whose number of videos is no multiple of the batch is filled
    up with further windows of its own videos, of all in turn over the epochs; `fill_fraction` is their share. The draws
    of a video count 0, 1, 2, … over the whole run, so none of its windows comes twice.

    Args:
        table: a [`~videos.VideoTable`], or anything with its `size` and `length`.
        global_batch_size: samples G of a step, over all processes and micro-batches.
        seed: of the order.
    """

    def __init__(self, table: VideoTable, global_batch_size: int, *, seed: int):
        self.global_batch_size, self.seed = global_batch_size, seed
        self.buckets = [
            np.array(members)[_permutation(len(members), seed, "bucket", number)]
            for number, members in enumerate(make_buckets(table).values())
        ]
        num_batches = [-(-len(members) // global_batch_size) for members in self.buckets]
        self.num_steps_per_epoch = sum(num_batches)
        self.fill_fraction = 1 - len(table) / (self.num_steps_per_epoch * global_batch_size)
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)

    def epoch_of(self, step: int) -> int:
        return step // self.num_steps_per_epoch

    def step(self, step: int) -> list[tuple[int, int]]:
        """(video index, draw index) of the G samples of a step, counted from 0."""
        epoch, place = divmod(step, self.num_steps_per_epoch)
        return [(int(index), int(draw)) for index, draw in self._epoch(epoch)[place]]

    def _plan_epoch(self, epoch: int) -> np.ndarray:
        """(steps, G, 2)"""
        batches = []
        for number, members in enumerate(self.buckets):
            count = len(members)
            total = -(-count // self.global_batch_size) * self.global_batch_size
            rounds, num_extra = divmod(total, count)
            # The bucket's videos take turns to fill up: in this epoch those from place epoch * num_extra on. A video's
            # draws go on where its turns so far, full rounds and extra ones, have come to.
            extra_before = epoch * num_extra
            places = np.arange(count)
            draws = epoch * rounds + (extra_before - places + count - 1) // count
            order = [_permutation(count, self.seed, epoch, number, turn) for turn in range(rounds)]
            turns = [np.full(count, turn) for turn in range(rounds)]
            order.append((extra_before + np.arange(num_extra)) % count)
            turns.append(np.full(num_extra, rounds))
            order, turns = np.concatenate(order), np.concatenate(turns)
            windows = np.stack([members[order], draws[order] + turns], axis=-1)
            batches.append(windows.reshape(-1, self.global_batch_size, 2))
        batches = np.concatenate(batches)
        return batches[_permutation(len(batches), self.seed, epoch, "batches")]


def _permutation(count: int, *seeds: int | str) -> np.ndarray:
    return torch.randperm(count, generator=seeded_generator(*seeds)).numpy()


class WindowDataset(Dataset):
    """Windows of a table by (video index, draw index), as `{"frames": uint8 (F, h, w, 3), "id", "window", …}`; with "actions",
    (F,) or (F, D), where the table has them.

    A video that does not decode is replaced by the next one of its bucket, always the same, and named under "broken".

    Args:
        table: a [`~videos.VideoTable`], or anything with its methods.
        seed: of the windows.
    """

    def __init__(self, table: VideoTable, seed: int):
        self.table, self.seed = table, seed
        self.following = {}
        for members in make_buckets(table).values():
            self.following |= dict(zip(members, members[1:] + members[:1], strict=True))

    def __getitem__(self, item: tuple[int, int]) -> dict:
        """
        Raises:
            VideoReadError: neither this video nor those that could replace it decode.
        """
        wanted, draw = item
        index, broken = wanted, []
        while len(broken) < MAX_REPLACEMENTS and (index != wanted or not broken):
            record, window = self.table[index], self.table.draw_window(index, draw, seed=self.seed)
            try:
                frames = self.table.read(index, window)
            except VideoReadError as error:
                broken.append((record.id, f"breaks while read: {error}"))
                index = self.following[index]
                continue
            sample = {
                "frames": torch.from_numpy(frames),
                "id": record.id,
                "window": window,
                "caption": record.caption,
                "label": record.label,
                "broken": broken,
            }
            actions = self.table.read_actions(index, window)
            return sample if actions is None else sample | {"actions": torch.from_numpy(actions)}
        reasons = "".join(f"\n  {id}: {reason}" for id, reason in broken[:5])
        raise VideoReadError(f"{len(broken)} videos of one size, one after the other, do not decode:{reasons}")


def collate(samples: Sequence[dict]) -> dict:
    """Tensors are stacked under their name, other values listed under its plural; all that is "broken" in one list."""
    batch = {"broken": [found for sample in samples for found in sample.get("broken", ())]}
    for name, value in samples[0].items():
        if isinstance(value, torch.Tensor):
            batch[name] = torch.stack([sample[name] for sample in samples])
        elif name != "broken":
            batch[f"{name}s"] = [sample[name] for sample in samples]
    return batch


def make_loader(
    dataset: Dataset,
    plan: BatchPlan,
    *,
    num_steps: int,
    batch_size: int,
    start_step: int = 0,
    rank: int = 0,
    num_processes: int = 1,
    accumulation: int = 1,
    num_workers: int = 0,
    dropped: DroppedVideos | None = None,
) -> Iterator[dict]:
    """The batches of one process, in order of step and micro-batch.

    Each is what [`collate`] makes of the dataset's samples, with "step" and "slots": the places of its samples in the
    global batch, (micro * num_processes + rank) * batch_size + i.

    Args:
        dataset: takes (video index, draw index), as [`WindowDataset`].
        num_steps, start_step: steps `start_step` to `start_step + num_steps - 1`.
        batch_size: samples B of a micro-batch and process.
        accumulation: micro-batches a step.
        num_workers: processes that read; the batches are the same with any number.
        dropped: where videos that broke are listed; a larger share of them than it allows is its error.

    Raises:
        ValueError: the plan is for another number of samples a step, or workers have too little shared memory.
        RuntimeError: workers give no batch for ten minutes.
    """
    expected = batch_size * num_processes * accumulation
    if plan.global_batch_size != expected:
        raise ValueError(
            f"The plan is for {plan.global_batch_size} samples a step, but {batch_size} x {num_processes} processes x "
            f"{accumulation} micro-batches are {expected}."
        )
    places = [
        (step, [(micro * num_processes + rank) * batch_size + i for i in range(batch_size)])
        for step in range(start_step, start_step + num_steps)
        for micro in range(accumulation)
    ]
    if num_workers and places:
        check_shared_memory(num_workers, batch_size * _sample_bytes(dataset, plan.step(start_step)[0]))
    loader = DataLoader(
        dataset,
        batch_sampler=([plan.step(step)[slot] for slot in slots] for step, slots in places),
        **worker_options(num_workers),
        collate_fn=collate,
        # Else the seed of the workers would be drawn from the generator of the training.
        generator=torch.Generator(),
    )
    return _with_places(loader, places, dropped=dropped)


def _sample_bytes(dataset: Dataset, item: tuple[int, int]) -> int:
    """Bytes of the tensors of a sample. No video is decoded for it: a decoder's threads would not survive in the workers,
    which are copies of this process."""
    if isinstance(dataset, WindowDataset):
        height, width = dataset.table.size(item[0])
        return dataset.table.length(item[0]) * height * width * 3
    return sum(value.nbytes for value in dataset[item].values() if isinstance(value, torch.Tensor))


def _with_places(loader: DataLoader, places: list[tuple[int, list[int]]], *, dropped: DroppedVideos | None):
    for batch, (step, slots) in zip(until_timeout(loader), places, strict=True):
        for id, reason in batch.pop("broken"):
            if dropped is not None:
                dropped.add(id, reason)
        yield {**batch, "step": step, "slots": slots}
