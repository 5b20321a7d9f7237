"""Batches from a stream: a dataset on the Hub, WebDataset shards or parquet files, read without a download.

    batches = StreamedBatches("user/videos", sampling, batch_size=4, seed=0, num_workers=2)
    for batch in batches:                                   # as those of `batches.make_loader`, without end
        state = batches.state_dict()                        # JSON; load_state_dict(state) goes on behind this batch

Samples wait in a pool until others of their size and length have come. The pool also shuffles them.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..extras import require
from ..files import hash_of
from ..video_io import VideoReadError
from .batches import collate
from .sampling import Sampling, seeded_generator
from .videos import DroppedVideos, check_usable, content_digest, undecoded, video_of
from .workers import check_shared_memory, until_timeout, worker_options


PURPOSE = "reading a dataset as a stream needs datasets and torchdata"
MIN_SEEN = 20  # videos a worker looks at before it judges the share of bad ones
MAX_AGE = 8  # pools read behind a sample before it stops waiting for others like it


class StreamedBatches:
    """The batches of one process, without end: a new pass over the stream begins where one ends.

    Each batch comes from the part of the stream that one worker of one process reads, so a run can only be resumed with
    the same numbers of them. Memory: each worker holds `pool_size` samples, as pixels.

    Args:
        name: a dataset on the Hub or a local folder, as `datasets.load_dataset` takes it.
        sampling: how samples are taken; one of every video and pass.
        batch_size: samples B of a batch.
        seed: of the order and the windows.
        rank, num_processes: this process; the shards are split among them, or the rows where there are too few shards.
        accumulation: micro-batches a step.
        num_workers: processes that read; at most the number of shards of a process.
        split, config_name: of the dataset.
        video_column, caption_column, label_column: of its columns. Of WebDataset shards it is the suffix, such as "mp4".
        pool_size: samples that wait.
        max_bad_fraction: a larger share of unusable videos stops the run.

    Attributes:
        dropped: the unusable videos so far.

    Raises:
        ValueError: there is no such column, there are fewer shards than workers, or they have too little shared memory; while it
            is read, too many videos are unusable, or a stream that goes on finds other content than it had.
    """

    def __init__(
        self,
        name: str | Path,
        sampling: Sampling,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        num_processes: int = 1,
        accumulation: int = 1,
        num_workers: int = 0,
        split: str = "train",
        config_name: str | None = None,
        video_column: str = "video",
        caption_column: str | None = None,
        label_column: str | None = None,
        pool_size: int = 32,
        max_bad_fraction: float = 0.5,
    ):
        datasets = require("datasets", PURPOSE, extra="train")
        split_by_node = require("datasets.distributed", PURPOSE, extra="train").split_dataset_by_node
        loaders = require("torchdata.stateful_dataloader", PURPOSE, extra="train")

        stream = undecoded(datasets.load_dataset(str(name), config_name, split=split, streaming=True), video_column)
        num_shards = (
            stream.num_shards // num_processes if stream.num_shards % num_processes == 0 else stream.num_shards
        )
        if num_workers > num_shards:
            raise ValueError(
                f"{name} has {stream.num_shards} shards for {num_processes} processes: use at most {num_shards} workers, "
                f"not {num_workers}."
            )
        stream = split_by_node(stream, rank=rank, world_size=num_processes)
        columns = {"video": video_column, "caption": caption_column, "label": label_column}
        samples = _SampleStream(
            stream,
            sampling,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            columns=columns,
            pool_size=pool_size,
            max_bad_fraction=max_bad_fraction,
        )
        # A generator of its own: else the seed of the workers would be drawn from that of the training.
        # The least that a batch can have: no video is known yet.
        height, width = sampling.height or 16, sampling.width or min(sampling.longest_side, 16)
        num_frames = sampling.min_num_frames or sampling.max_num_frames
        check_shared_memory(num_workers, batch_size * num_frames * height * width * 3)
        self.loader = loaders.StatefulDataLoader(
            samples, batch_size=None, **worker_options(num_workers), generator=torch.Generator()
        )
        self.run = {"num_processes": num_processes, "rank": rank, "num_workers": num_workers, "batch_size": batch_size}
        self.run |= {"accumulation": accumulation, "dataset": str(name), "split": split, "config_name": config_name}
        self.name, self.accumulation, self.num_batches = name, accumulation, 0
        self.iterator: Iterator[dict] | None = None
        self.dropped = DroppedVideos(max_bad_fraction=1.0)

    def __iter__(self) -> "StreamedBatches":
        return self

    def __next__(self) -> dict:
        """
        Raises:
            ValueError: too many videos are unusable, or there are none.
        """
        if self.iterator is None:
            self.iterator = until_timeout(self.loader)
        batch = next(self.iterator, None)
        if batch is None:
            raise ValueError(f"{self.name} holds no rows for process {self.run['rank']}.")
        self.dropped.num_seen += batch.pop("num_seen")
        for id, reason in batch.pop("broken"):
            self.dropped.add(id, reason)
        step, micro = divmod(self.num_batches, self.accumulation)
        self.num_batches += 1
        batch_size = self.run["batch_size"]
        first_slot = (micro * self.run["num_processes"] + self.run["rank"]) * batch_size
        return {**batch, "step": step, "slots": list(range(first_slot, first_slot + batch_size))}

    def state_dict(self) -> dict:
        """The place behind the last batch, as values that JSON can hold. Kept by each process for itself."""
        return {"run": self.run, "num_batches": self.num_batches, "loader": self.loader.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Goes on behind the last batch of the state; call it before the first batch is taken.

        Raises:
            ValueError: the state is of another number of processes or workers, or another batch size.
        """
        for field, value in self.run.items():
            if state["run"][field] != value:
                raise ValueError(
                    f"A stream goes on only as it was begun: {field} was {state['run'][field]} and is {value}."
                )
        self.num_batches = state["num_batches"]
        self.loader.load_state_dict(state["loader"])


class _SampleStream(IterableDataset):
    """The batches of one worker.

    Its state says where the stream stood before the oldest sample of the pool, and which samples the pool holds, by
    their numbers in the order of reading. To resume, these are read again, and must have the content that they had.
    """

    def __init__(
        self,
        stream,
        sampling: Sampling,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        columns: dict[str, str | None],
        pool_size: int,
        max_bad_fraction: float,
    ):
        self.stream, self.sampling, self.batch_size, self.seed, self.rank = stream, sampling, batch_size, seed, rank
        self.columns, self.pool_size, self.max_bad_fraction = columns, max(pool_size, batch_size), max_bad_fraction
        self.state = {"epoch": 0, "stream": None, "number": 0, "next": 0, "pool": [], "num_batches": 0, "content": []}

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state: dict) -> None:
        self.state = state

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        seeds = (self.seed, self.rank, worker.id if worker else 0)
        begun, num_batches = self.state, self.state["num_batches"]
        # (where the stream stood before it, the sample), in the order of reading.
        pool: list[tuple[dict, dict]] = []
        # Empty in the states of runs from before.
        contents = dict(zip(begun["pool"], begun.get("content", ()), strict=False))
        dropped, broken, num_seen, num_usable = DroppedVideos(self.max_bad_fraction), [], 0, begun["next"]
        for place, row in self._rows(begun):
            number = place["number"]
            if row is None:
                dropped.check()
                if num_usable == 0:
                    raise ValueError(f"No usable video in a whole pass: {dropped.summary()}.{dropped.first()}")
                num_usable = 0
                continue
            is_new = number >= begun["next"]
            if not is_new and number not in begun["pool"]:
                continue
            name = self._name(row, seeds, number=number)
            content = self._content(row)
            if contents.get(number, content) != content:
                raise ValueError(
                    f"{name} is not what it was when the run was begun: another video, caption or label is in its place. A "
                    "stream goes on only over the same data; begin anew in another folder."
                )
            sample, reason = self._sample(row, seeded_generator(*seeds, number))
            num_seen += is_new
            dropped.num_seen += is_new
            if sample is None:
                broken.append((name, reason))
                dropped[name] = reason
                if dropped.num_seen >= MIN_SEEN:
                    dropped.check()
                continue
            num_usable += 1
            pool.append((place, {**sample, "id": name, "content": content}))
            # One sample always stays, which tells where to begin again.
            if not is_new or len(pool) <= self.pool_size:
                continue
            batch = self._take_batch(pool, seeded_generator(*seeds, "batch", num_batches))
            num_batches += 1
            self.state = {
                **pool[0][0],
                "next": number + 1,
                "pool": [place["number"] for place, _ in pool],
                "num_batches": num_batches,
                "content": [sample["content"] for _, sample in pool],
            }
            yield {**collate(batch), "broken": broken, "num_seen": num_seen}
            broken, num_seen = [], 0

    def _rows(self, begun: dict) -> Iterator[tuple[dict, dict | None]]:
        """Each row with the place before it; `None` behind the last row of a pass."""
        # A dataset of this worker: the workers would share the epoch of one that was made before them.
        names = [
            *filter(None, self.columns.values()),
            *(n for n in ("__key__", "__url__") if n in self.stream.features),
        ]
        stream = self.stream.select_columns(list(dict.fromkeys(names)))
        number, state = begun["number"], begun["stream"]
        for epoch in itertools.count(begun["epoch"]):
            # Any epoch but 0 also shuffles the shards.
            stream.set_epoch(1 + 1000 * self.seed + epoch)
            if state is not None:
                stream.load_state_dict(state)
            first = begun["number"] if epoch == begun["epoch"] else number
            for row in stream:
                yield {"epoch": epoch, "stream": state, "number": number}, row
                number, state = number + 1, stream.state_dict()
            if number == first and state is None:
                return
            state = None
            yield {"epoch": epoch, "stream": None, "number": number}, None

    def _sample(self, row: dict, generator: torch.Generator) -> tuple[dict | None, str]:
        try:
            video = video_of(row[self.columns["video"]])
        except VideoReadError as error:
            return None, f"unreadable: {error}"
        info, reason = check_usable(video, self.sampling)
        if info is None:
            return None, reason
        window = self.sampling.draw(info, generator)
        try:
            frames = self.sampling.read(video, info, window=window)
        except VideoReadError as error:
            return None, f"breaks while read: {error}"
        sample = {"frames": torch.from_numpy(frames), "window": window}
        for name in ("caption", "label"):
            column = self.columns[name]
            sample[name] = None if column is None or row[column] is None else str(row[column])
        return sample, ""

    def _content(self, row: dict) -> str:
        """A hash of a row: of its video's bytes, its caption and its label; of a video that can't be had none of the first."""
        try:
            video = content_digest(video_of(row[self.columns["video"]]))
        except (VideoReadError, OSError):
            video = None
        return hash_of(video, *(row[self.columns[name]] for name in ("caption", "label") if self.columns[name]))

    def _name(self, row: dict, seeds: tuple[int, ...], *, number: int) -> str:
        if "__key__" in row:
            return f"{row['__url__']}/{row['__key__']}"
        video = row[self.columns["video"]]
        path = video["path"] if isinstance(video, dict) else video
        if isinstance(path, str):
            return path
        return f"row {number} of process {self.rank}, worker {seeds[-1]}"

    def _take_batch(self, pool: list[tuple[dict, dict]], generator: torch.Generator) -> list[dict]:
        """Takes a batch out of the pool: of a random sample's shape among those with enough others; else, or where the
        oldest sample has waited too long, as many as there are, some of them repeated."""
        shapes: dict[tuple, list[tuple[dict, dict]]] = {}
        for entry in pool:
            shapes.setdefault(entry[1]["frames"].shape, []).append(entry)
        complete = [entry for same in shapes.values() if len(same) >= self.batch_size for entry in same]
        age = pool[-1][0]["number"] - pool[0][0]["number"]
        if age > MAX_AGE * self.pool_size:
            same = shapes[pool[0][1]["frames"].shape][: self.batch_size]
        elif complete:
            pick = torch.randint(len(complete), (), generator=generator)
            same = shapes[complete[pick][1]["frames"].shape]
            same = [same[i] for i in torch.randperm(len(same), generator=generator)[: self.batch_size]]
        else:
            same = max(shapes.values(), key=len)
        taken = {place["number"] for place, _ in same}
        pool[:] = [entry for entry in pool if entry[0]["number"] not in taken]
        return [same[i % len(same)][1] for i in range(self.batch_size)]
