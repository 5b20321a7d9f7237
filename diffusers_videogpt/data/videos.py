"""Videos to train on, whatever they come from: which are usable, and which frames of one a sample takes.

    sampling = Sampling(max_num_frames=48, frame_interval=(4, 12))
    table = VideoTable.from_folder("videos", sampling)
    window = table.draw_window(index=0, draw=0, seed=0)     # follows from (seed, video, draw) alone
    frames = table.read(0, window)                          # uint8 (48, h, w, 3)

Every video is looked at once, at the start, without decoding it ([`~video_io.probe_video`]). Frames are then read by
timestamp. What cannot be used is left out with its reason.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..video_io import VideoInfo, VideoReadError, probe_video
from .sampling import Sampling, Window, seeded_generator


VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif")
FIRST_TRAINING_SEED = 1_000_000  # simulated scenes 0..9999 are kept for evaluation


# What was left out


class DroppedVideos(dict[str, str]):
    """Videos left out: id → "kind: what is wrong".

    Args:
        max_bad_fraction: a larger share of `num_seen` stops the run.
        num_seen: how many videos were looked at.
    """

    def __init__(self, max_bad_fraction: float = 0.5, num_seen: int = 0):
        super().__init__()
        self.max_bad_fraction, self.num_seen, self.path = max_bad_fraction, num_seen, None

    def summary(self) -> str:
        """For example `3 of 36 videos dropped (2 unreadable, 1 too short)`."""
        kinds = Counter(reason.partition(":")[0] for reason in self.values()).most_common()
        listed = f" ({', '.join(f'{count} {kind}' for kind, count in kinds)})" if kinds else ""
        return f"{len(self)} of {self.num_seen} videos dropped{listed}"

    def first(self, count: int = 5) -> str:
        return "".join(f"\n  {id}: {reason}" for id, reason in list(self.items())[:count])

    def check(self, where: str | None = None) -> None:
        """
        Args:
            where (`str`, *optional*): the videos are from, for the error.

        Raises:
            ValueError: more than `max_bad_fraction` of the videos are in here; with the counts and the first reasons.
        """
        if len(self) > self.max_bad_fraction * self.num_seen:
            remedy = ", or raise max_bad_fraction" if self.max_bad_fraction else ""
            raise ValueError(
                f"{f'{where}: ' if where else ''}{self.summary()}, more than the share of {self.max_bad_fraction} that may be. Look at these "
                f"files, or ask for fewer frames{remedy}.{self.first()}"
            )

    def add(self, id: str, reason: str) -> None:
        """Counts a video that turned out bad while it was read, and lists it in the file of [`report_dropped`]."""
        if id in self:
            return
        self[id] = reason
        if self.path is not None:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([id, *reason.split(": ", 1)])
        self.check()


def report_dropped(dropped: DroppedVideos, output_dir: str | Path, is_main_process: bool = True) -> Path:
    """Prints what was left out and writes `dropped_videos.csv` (id, kind, reason), which later finds are added to.

    Call it on every process; only the main one prints and writes the list as it stands.
    """
    dropped.path = Path(output_dir) / "dropped_videos.csv"
    if is_main_process:
        dropped.path.parent.mkdir(parents=True, exist_ok=True)
        with dropped.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "kind", "reason"])
            writer.writerows([id, *reason.split(": ", 1)] for id, reason in dropped.items())
        print(f"{dropped.summary()}; listed in {dropped.path}{dropped.first()}", flush=True)
    return dropped.path


# Sources


@dataclass(frozen=True)
class DatasetRow:
    """A video in a row of a `datasets.Dataset`."""

    dataset: Any
    row: int
    column: str

    def open(self) -> Path | bytes:
        return video_of(self.dataset[self.row][self.column])


@dataclass(frozen=True)
class SimulatedScene:
    """A scene of [`~worlds.simulate`], or in the world "orders" one of [`~worlds.draw_order`]."""

    seed: int
    num_frames: int
    size: int
    world: str = "physics"

    def frames(self) -> np.ndarray:
        # worlds needs packages that only those who simulate install.
        from ..worlds import draw_order, simulate

        if self.world == "orders":
            return draw_order(self.seed).simulate(self.seed, self.num_frames, size=self.size).frames
        return simulate(seed=self.seed, num_frames=self.num_frames, size=self.size).frames

    def describe(self) -> dict[str, str]:
        """Its caption, and its kind as label."""
        from ..worlds import draw_order, plan_scene

        scene = draw_order(self.seed) if self.world == "orders" else plan_scene(seed=self.seed)
        return {"caption": scene.caption, "label": scene.kind}


@dataclass(frozen=True)
class VideoRecord:
    """A video and what is known of it without opening it. `id` is unique in its table and stable."""

    id: str
    source: Path | DatasetRow | SimulatedScene
    caption: str | None = None
    label: str | None = None


def video_of(value) -> Path | bytes:
    """A cell of a video column as something to read: a path, bytes, or `datasets`' {"path": …, "bytes": …} of both."""
    if isinstance(value, dict):
        value = value["bytes"] or value["path"]
    if isinstance(value, bytes):
        return value
    if value is None:
        raise VideoReadError("there is no video in this row")
    if "://" in value:
        import fsspec

        try:
            with fsspec.open(value, "rb") as file:
                return file.read()
        except OSError as error:
            raise VideoReadError(f"{value}: {error}") from error
    return Path(value)


def undecoded(dataset, video_column: str):
    """The dataset with its videos as files. Raises a `ValueError` that names the columns if there is no such one."""
    import datasets

    if video_column not in dataset.features:
        raise ValueError(f"There is no column '{video_column}': give one of {', '.join(dataset.features)}.")
    if isinstance(dataset.features[video_column], datasets.Video):
        return dataset.cast_column(video_column, datasets.Video(decode=False))
    return dataset


def check_usable(source: Path | bytes, sampling: Sampling) -> tuple[VideoInfo | None, str]:
    """What is known of a video after a look at it, or `None` and the reason why it cannot be used."""
    try:
        info = probe_video(source)
    except VideoReadError as error:
        return None, f"unreadable: {error}"
    try:
        sampling.size(info)
    except ValueError as error:
        return None, f"too small: {error}"
    if not sampling.length(info):
        rate = f"at {sampling.fps:g} fps" if sampling.fps else f"at an interval of {sampling.frame_interval[0]}"
        least = sampling.min_num_frames or sampling.max_num_frames
        seconds = info.timestamps[-1]
        return None, f"too short: {info.num_frames} frames in {seconds:g} s, {least} are needed {rate}"
    return info, ""


class VideoTable(Sequence[VideoRecord]):
    """The usable videos of a source. Made by the `from_…` methods, which look at every video once.

    Attributes:
        records, infos: of the usable videos, in the order of the source.
        sampling: how samples are taken.
        dropped: the others, with reasons.
    """

    def __init__(self, records: list[VideoRecord], infos: list[VideoInfo], sampling: Sampling, dropped: DroppedVideos):
        self.records, self.infos, self.sampling, self.dropped = records, infos, sampling, dropped

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> VideoRecord:
        return self.records[index]

    def id(self, index: int) -> str:
        return self.records[index].id

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels after scaling, multiples of 16."""
        return self.sampling.size(self.infos[index])

    def length(self, index: int) -> int:
        """Frames of its windows."""
        return self.sampling.length(self.infos[index])

    def draw_window(self, index: int, draw: int, seed: int) -> Window:
        """The `draw`-th window of a video; it follows from (seed, id, draw) alone."""
        return self.sampling.draw(self.infos[index], seeded_generator(seed, self.id(index), draw))

    def frame_indices(self, index: int, window: Window) -> np.ndarray:
        """The numbers of the source's frames that the window shows."""
        return self.sampling.frame_indices(self.infos[index], window)

    def read(self, index: int, window: Window) -> np.ndarray:
        """`uint8` (F, h, w, 3). Raises [`~video_io.VideoReadError`] where the video is damaged in this window."""
        source, info = self.records[index].source, self.infos[index]
        if isinstance(source, SimulatedScene):
            return np.stack([self.sampling.resize(f) for f in source.frames()[self.frame_indices(index, window)]])
        return self.sampling.read(source.open() if isinstance(source, DatasetRow) else source, info, window)

    @classmethod
    def _look_at(
        cls, records: Iterable[VideoRecord], sampling: Sampling, max_bad_fraction: float, where: str
    ) -> "VideoTable":
        records = list(records)

        def look(record: VideoRecord) -> tuple[VideoInfo | None, str]:
            try:
                source = record.source.open() if isinstance(record.source, DatasetRow) else record.source
            except VideoReadError as error:
                return None, f"unreadable: {error}"
            return check_usable(source, sampling)

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            looks = tqdm(threads.map(look, records), desc="Looking at videos", total=len(records), delay=5)
            table = cls([], [], sampling, DroppedVideos(max_bad_fraction, len(records)))
            for record, (info, reason) in zip(records, looks, strict=True):
                if info is None:
                    table.dropped[record.id] = reason
                else:
                    table.records.append(record)
                    table.infos.append(info)
        table.dropped.check(where)
        if not table.records:
            raise ValueError(f"No usable video in {where}: {table.dropped.summary()}.{table.dropped.first()}")
        return table

    @classmethod
    def from_folder(cls, root: str | Path, sampling: Sampling, max_bad_fraction: float = 0.5) -> "VideoTable":
        """The videos in all folders below `root`, found by their suffix; ids are paths relative to it.

        The label of a video is the folder of `root` that it lies in, if any.

        Raises:
            ValueError: no such folder, no usable video in it, or too many that are not.
        """
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"{root} is no folder: give one with videos in it.")
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
        names = (path.relative_to(root) for path in paths)
        records = (
            VideoRecord(name.as_posix(), root / name, label=name.parts[0] if len(name.parts) > 1 else None)
            for name in names
        )
        return cls._look_at(records, sampling, max_bad_fraction, f"{root} ({', '.join(VIDEO_SUFFIXES)})")

    @classmethod
    def from_table(
        cls,
        path: str | Path,
        sampling: Sampling,
        video_column: str = "video",
        caption_column: str | None = None,
        label_column: str | None = None,
        root: str | Path | None = None,
        max_bad_fraction: float = 0.5,
    ) -> "VideoTable":
        """The videos of a CSV table with a header, of a JSONL file (`.jsonl`) with an object a line, or of a list as
        UCF-101's splits are (`.txt`): a line is a path, CLASS/VIDEO, and maybe a number; the folder is the label.

        Args:
            path: the table.
            video_column: column of paths, relative to `root`. They are the ids; with " (row 7)" where one comes again.
            caption_column, label_column: columns kept in the records.
            root: default: the folder of the table.

        Raises:
            ValueError: a line that is no JSON object, a missing column, no usable video, or too many that are not.
        """
        path = Path(path)
        rows = {".jsonl": _read_jsonl, ".txt": _read_split}.get(path.suffix, _read_csv)(path)
        if path.suffix == ".txt":
            video_column, label_column = "video", "label"
        root = path.parent if root is None else Path(root)
        records, seen = [], set()
        for number, row in enumerate(rows, start=1):
            for column in filter(None, (video_column, caption_column, label_column)):
                if column not in row:
                    raise ValueError(f"{path}: row {number} has no column '{column}', only {', '.join(row)}.")
            name = str(row[video_column])
            id = f"{name} (row {number})" if name in seen else name
            seen.add(name)
            caption, label = (_text_of(row.get(column)) for column in (caption_column, label_column))
            records.append(VideoRecord(id, root / name, caption, label))
        return cls._look_at(records, sampling, max_bad_fraction, str(path))

    @classmethod
    def from_dataset(
        cls,
        name: str | Path,
        sampling: Sampling,
        split: str = "train",
        video_column: str = "video",
        caption_column: str | None = None,
        label_column: str | None = None,
        config_name: str | None = None,
        max_bad_fraction: float = 0.5,
    ) -> "VideoTable":
        """The videos of a dataset on the Hub or in a folder, downloaded whole by `datasets.load_dataset`.

        Ids are "split/row". The column holds videos, their bytes, or paths.

        Raises:
            ValueError: no such column, no usable video, or too many that are not.
        """
        from datasets import ClassLabel, load_dataset

        dataset = undecoded(load_dataset(str(name), config_name, split=split), video_column)
        for name_of_column in filter(None, (caption_column, label_column)):
            if name_of_column not in dataset.features:
                raise ValueError(f"There is no column '{name_of_column}': give one of {', '.join(dataset.features)}.")

        def column(name: str | None) -> Callable[[int], str | None]:
            if name is None:
                return lambda row: None
            feature, values = dataset.features[name], dataset[name]
            if isinstance(feature, ClassLabel):
                values = [None if value is None else feature.int2str(value) for value in values]
            return [_text_of(value) for value in values].__getitem__

        caption, label = column(caption_column), column(label_column)
        records = (
            VideoRecord(f"{split}/{row}", DatasetRow(dataset, row, video_column), caption(row), label(row))
            for row in range(len(dataset))
        )
        return cls._look_at(records, sampling, max_bad_fraction, str(name))

    @classmethod
    def simulated(
        cls,
        num_scenes: int,
        num_frames: int,
        sampling: Sampling,
        first_seed: int = FIRST_TRAINING_SEED,
        world: str = "physics",
    ) -> "VideoTable":
        """Simulated scenes of consecutive seeds, drawn square at the size of the sampling; see [`SimulatedScene`].

        Raises:
            ValueError: `num_frames` are too few for the sampling.
        """
        size = sampling.longest_side if sampling.height is None else max(sampling.height, sampling.width)
        info = VideoInfo(size, size, np.arange(num_frames) / 12)
        if not sampling.length(info):
            raise ValueError(f"Scenes of {num_frames} frames are too short for {sampling}.")
        scenes = [SimulatedScene(first_seed + index, num_frames, size, world) for index in range(num_scenes)]
        name = "order" if world == "orders" else "scene"
        records = [VideoRecord(f"{name} {scene.seed}", scene, **scene.describe()) for scene in scenes]
        return cls(records, [info] * num_scenes, sampling, DroppedVideos(num_seen=num_scenes))


def _text_of(value) -> str | None:
    return None if value is None else str(value)


def _read_split(path: Path) -> Iterable[dict]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if words and "/" not in words[0]:
            raise ValueError(f"{path}: line {number} is {line!r}, not CLASS/VIDEO.")
        if words:
            yield {"video": words[0], "label": words[0].split("/")[0]}


def _read_csv(path: Path) -> Iterable[dict]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        yield from csv.DictReader(file)


def _read_jsonl(path: Path) -> Iterable[dict]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is no JSON ({error}); give one object a line.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is {row!r}, not an object with a column of videos.")
        yield row
