"""Videos to train on, whatever they come from: which are usable, and which frames of one a sample takes.

    sampling = Sampling(max_num_frames=48, frame_interval=(4, 12))
    table = VideoTable.from_folder("videos", sampling)
    window = table.draw_window(index=0, draw=0, seed=0)     # follows from (seed, video, draw) alone
    frames = table.read(0, window)                          # uint8 (48, h, w, 3)

Every video is looked at once, at the start, without decoding it ([`~video_io.probe_video`]). Frames are then read by
timestamp. What cannot be used is left out with its reason.
"""

import csv
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from tqdm.auto import tqdm

from ..actions import ActionSpace, between_frames
from ..console import printable, printable_name
from ..extras import require
from ..files import VIDEO_SUFFIXES, plain_cell
from ..pictures import name_of
from ..video_io import VideoInfo, VideoReadError, probe_video
from ..worlds import draw_order, plan_scene, simulate
from .actions import actions_beside, load_actions
from .lerobot import VideoSegment, read_episodes
from .sampling import Sampling, Window, seeded_generator
from .tables import read_table


NEEDS_DATASETS = "datasets of the Hub need the datasets package"
FIRST_TRAINING_SEED = 1_000_000  # simulated scenes 0..9999 are kept for evaluation


# What was left out


class DroppedVideos(dict[str, str]):
    """Videos left out: id → "kind: what is wrong".

    Args:
        max_bad_fraction: a larger share of `num_seen` stops the run.
        num_seen: how many videos were looked at.

    Attributes:
        passed_over: what else lay in the folder, by kind: other files by their suffix, folders that were not entered.
    """

    def __init__(self, max_bad_fraction: float = 0.5, num_seen: int = 0):
        super().__init__()
        self.max_bad_fraction, self.num_seen, self.path = max_bad_fraction, num_seen, None
        self.passed_over: Counter[str] = Counter()

    def summary(self) -> str:
        """For example `3 of 36 videos dropped (2 unreadable, 1 too short); besides 4 not looked at (3 .txt, 1 .exr)`."""
        kinds = Counter(reason.partition(":")[0] for reason in self.values()).most_common()
        listed = f" ({', '.join(f'{count} {kind}' for kind, count in kinds)})" if kinds else ""
        others = ", ".join(f"{count} {printable_name(kind)}" for kind, count in self.passed_over.most_common(8))
        besides = f"; besides {self.passed_over.total()} not looked at ({others})" if others else ""
        return f"{len(self)} of {self.num_seen} videos dropped{listed}{besides}"

    def first(self, count: int = 5) -> str:
        return "".join(f"\n  {printable_name(id)}: {reason}" for id, reason in list(self.items())[:count])

    def check(self, where: str | None = None) -> None:
        """
        Args:
            where (`str`, *optional*): the videos are from, for the error.

        Raises:
            ValueError: more than `max_bad_fraction` of the videos are in here; with the counts and the first reasons.
        """
        if len(self) > self.max_bad_fraction * self.num_seen:
            remedy = ", or raise `max_bad_fraction`" if self.max_bad_fraction else ""
            raise ValueError(
                f"{f'{where}: ' if where else ''}{self.summary()}, more than the share of {self.max_bad_fraction} that may be. "
                f"Look at these files, or ask for fewer frames (`max_num_frames`){remedy}.{self.first()}"
            )

    def add(self, id: str, reason: str) -> None:
        """Counts a video that turned out bad while it was read, and lists it in the file of [`report_dropped`]."""
        if id in self:
            return
        self[id] = reason
        if self.path is not None:
            with self.path.open("a", newline="", encoding="utf-8", errors="backslashreplace") as file:
                csv.writer(file).writerow(_csv_row(id, reason))
        self.check()


def _csv_row(id: str, reason: str) -> list[str]:
    return [plain_cell(part) for part in (id, *reason.split(": ", 1))]


def report_dropped(dropped: DroppedVideos, output_dir: str | Path, *, is_main_process: bool = True) -> Path:
    """Prints what was left out and writes `dropped_videos.csv` (id, kind, reason), which later finds are added to.

    Call it on every process; only the main one prints and writes the list as it stands.
    """
    dropped.path = Path(output_dir) / "dropped_videos.csv"
    if is_main_process:
        dropped.path.parent.mkdir(parents=True, exist_ok=True)
        # Half a character, which a name in JSON can hold, has no bytes in UTF-8.
        with dropped.path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "kind", "reason"])
            writer.writerows(_csv_row(id, reason) for id, reason in dropped.items())
        # A console may have no sign for a letter of a foreign name, which must not end the run.
        encoding = sys.stdout.encoding or "utf-8"
        said = printable(f"{dropped.summary()}; listed in {dropped.path}{dropped.first()}")
        print(said.encode(encoding, "backslashreplace").decode(encoding), flush=True)
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
        if self.world == "orders":
            return draw_order(self.seed).simulate(self.seed, self.num_frames, size=self.size).frames
        return simulate(seed=self.seed, num_frames=self.num_frames, size=self.size).frames

    def describe(self) -> dict[str, str]:
        """Its caption, and its kind as label."""
        scene = draw_order(self.seed) if self.world == "orders" else plan_scene(seed=self.seed)
        return {"caption": scene.caption, "label": scene.kind}


@dataclass(frozen=True)
class VideoRecord:
    """A video and what is known of it.

    Attributes:
        id: unique in its table, and stable.
        source: where its frames come from; `None` for a row that names no video.
        caption, label: what the source says of it.
        digest: of the content of the file, [`content_digest`], once it was looked at.
        actions: that led to each of its frames, as the source has them; once it was looked at, int64 (F,) or float32 (F, D) of
            [`~actions.ActionSpace.read`]. `None` where the model is not to be steered.
    """

    id: str
    source: Path | DatasetRow | SimulatedScene | VideoSegment | None
    caption: str | None = None
    label: str | None = None
    digest: str | None = None
    actions: Any = None


def content_digest(source: Path | bytes | SimulatedScene | VideoSegment) -> str:
    """BLAKE2 of the bytes of a file, or of what a scene follows from: another content under the same name differs."""
    if isinstance(source, Path):
        return _file_digest(source)
    if isinstance(source, VideoSegment):
        digest = _look_once(_file_digest, source.path)
        data = json.dumps([digest, source.start, source.num_frames, source.fps]).encode()
    else:
        data = source if isinstance(source, bytes) else repr(source).encode()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _look_once(look: Callable[[Path], Any], path: Path) -> Any:
    """`look(path)`, computed once for all episodes of a file, unless that has changed."""
    stat = path.stat()
    return _looked(look, path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _looked(look: Callable[[Path], Any], path: Path, *changes: int) -> Any:
    return look(path)


def video_of(value) -> Path | bytes:
    """A cell of a video column as something to read: a path, bytes, or `datasets`' {"path": …, "bytes": …} of both.

    Raises:
        VideoReadError: there is nothing in it, or an address that cannot be read.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        raise VideoReadError("there is no video in this row")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise VideoReadError(f"there is no video in this row, but {type(value).__name__}")
    if "://" in value:
        try:
            with fsspec.open(value, "rb") as file:
                return file.read()
        # A `ValueError`: an unknown protocol; an `ImportError`: the package for it is missing.
        except (OSError, ValueError, ImportError) as error:
            raise VideoReadError(f"{printable_name(value)}: {error}") from error
    return Path(value)


def undecoded(dataset, video_column: str):
    """The dataset with its videos as files. Raises a `ValueError` that names the columns if there is no such one."""
    datasets = require("datasets", NEEDS_DATASETS, extra="train")
    if video_column not in dataset.features:
        raise ValueError(f"There is no column '{video_column}': give one of {', '.join(dataset.features)}.")
    if isinstance(dataset.features[video_column], datasets.Video):
        return dataset.cast_column(video_column, datasets.Video(decode=False))
    return dataset


def probe_source(source: Path | bytes | VideoSegment) -> VideoInfo:
    """[`~video_io.probe_video`], also of an episode in a longer file."""
    if isinstance(source, VideoSegment):
        info = source.within(_look_once(probe_video, source.path))
        return replace(info, timestamps=info.timestamps - info.timestamps[0])
    return probe_video(source)


def check_usable(source: Path | bytes | VideoSegment, sampling: Sampling) -> tuple[VideoInfo | None, str]:
    """What is known of a video after a look at it, or `None` and the reason why it cannot be used."""
    try:
        info = probe_source(source)
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

    def __init__(
        self, records: list[VideoRecord], infos: list[VideoInfo], *, sampling: Sampling, dropped: DroppedVideos
    ):
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

    @property
    def frame_rate(self) -> float | None:
        """Frames a second of the samples: as asked for, or the median of the videos' at the mean interval; `None` of pictures."""
        if self.sampling.fps is not None:
            return self.sampling.fps
        rates = [(info.num_frames - 1) / info.timestamps[-1] for info in self.infos if info.num_frames > 1]
        return round(2 * float(np.median(rates)) / sum(self.sampling.frame_interval), 3) if rates else None

    def content_hash(self) -> str:
        """Of the videos' contents, captions and labels, in order: what a training must find unchanged to go on."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(json.dumps([record.id, record.digest, record.caption, record.label]).encode())
            if record.actions is not None:
                digest.update(record.actions.tobytes())
        return digest.hexdigest()

    def draw_window(self, index: int, draw: int, *, seed: int) -> Window:
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
        if isinstance(source, VideoSegment):
            info = source.within(_look_once(probe_video, source.path))
            return self.sampling.read(source.path, info, window=window)
        return self.sampling.read(source.open() if isinstance(source, DatasetRow) else source, info, window=window)

    def read_actions(self, index: int, window: Window) -> np.ndarray | None:
        """The actions that led from frame to frame of a window, (F,) or (F, D); `None` of a video without actions.

        Where frames are left out between two that are shown, see [`~actions.between_frames`].
        """
        actions = self.records[index].actions
        return None if actions is None else between_frames(actions, self.frame_indices(index, window))

    @classmethod
    def _look_at(
        cls,
        records: Iterable[VideoRecord],
        sampling: Sampling,
        *,
        max_bad_fraction: float,
        where: str,
        passed_over: Counter[str] | None = None,
        actions: ActionSpace | None = None,
        root: Path | None = None,
    ) -> "VideoTable":
        """With `actions`, each record has those of its video, or a path to them relative to `root`; or they lie beside it.

        Raises:
            ValueError: too many videos are unusable, or the actions of one that is usable are not as they should be.
        """
        records = list(records)

        def actions_of(record: VideoRecord, info: VideoInfo) -> np.ndarray | None:
            if actions is None:
                return None
            found = record.actions
            if found is None and isinstance(record.source, Path):
                found = actions_beside(record.source)
            where = None if isinstance(found, Path) else root
            return load_actions(found, info.num_frames, space=actions, name=record.id, root=where)

        def look(record: VideoRecord) -> tuple[VideoInfo | None, str]:
            """What is known of it, and its digest; or `None` and the reason why it cannot be used."""
            if record.source is None:
                return None, "unreadable: the row names no video"
            try:
                source = record.source.open() if isinstance(record.source, DatasetRow) else record.source
                info, reason = check_usable(source, sampling)
                return (None, reason) if info is None else (info, content_digest(source))
            except VideoReadError as error:
                return None, f"unreadable: {error}"
            except OSError as error:
                path = source.path if isinstance(source, VideoSegment) else source
                return None, f"unreadable: {name_of(path)}: {error.strerror}"

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            looks = tqdm(threads.map(look, records), desc="Looking at videos", total=len(records), delay=5)
            table = cls([], [], sampling=sampling, dropped=DroppedVideos(max_bad_fraction, len(records)))
            table.dropped.passed_over.update(passed_over or {})
            for record, (info, found) in zip(records, looks, strict=True):
                if info is None:
                    table.dropped[record.id] = found
                else:
                    table.records.append(replace(record, digest=found, actions=actions_of(record, info)))
                    table.infos.append(info)
        table.dropped.check(where)
        if not table.records:
            raise ValueError(f"No usable video in {where}: {table.dropped.summary()}.{table.dropped.first()}")
        return table

    @classmethod
    def from_folder(
        cls,
        root: str | Path,
        sampling: Sampling,
        *,
        max_bad_fraction: float = 0.5,
        actions: ActionSpace | None = None,
    ) -> "VideoTable":
        """The videos in all folders below `root`, found by their suffix; ids are paths relative to it.

        Linked folders are entered, except those that lead back into `root` or above it. A file with several names, by links, is
        one video. What else lies there is counted in `dropped.passed_over`. The label of a video is the folder of `root` that it lies in, if any.

        Args:
            root, sampling, max_bad_fraction: as in the other methods.
            actions: which there are; every video has them beside it, see [`~data.actions`]. `None` to read none.

        Raises:
            ValueError: no such folder, no usable video in it, or too many that are not; or wrong actions.
        """
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"{root} is no folder: give one with videos in it.")
        names, passed_over = _find_videos(root)
        records = (
            VideoRecord(
                _text_of_path(name), root / name, label=_text_of_path(name.parts[0]) if name.parent.name else None
            )
            for name in names
        )
        where = f"{root} ({', '.join(VIDEO_SUFFIXES)})"
        looking = {"max_bad_fraction": max_bad_fraction, "where": where, "passed_over": passed_over}
        return cls._look_at(records, sampling, **looking, actions=actions)

    @classmethod
    def from_table(
        cls,
        path: str | Path,
        sampling: Sampling,
        *,
        video_column: str = "video",
        caption_column: str | None = None,
        label_column: str | None = None,
        root: str | Path | None = None,
        max_bad_fraction: float = 0.5,
        actions: ActionSpace | None = None,
        action_column: str | None = None,
    ) -> "VideoTable":
        """The videos of a table, [`~tables.read_table`]: CSV with a header, JSON lines, JSON, or a list as UCF-101's splits
        are (`.txt`), whose folders are the labels.

        Args:
            path: the table.
            video_column: column of paths, relative to `root`. They are the ids; with " (row 7)" where one comes again.
            caption_column, label_column: columns kept in the records.
            root: default: the folder of the table.
            actions: which there are; `None` to read none.
            action_column: a list of them a row, or the path of a file; by default they lie beside the videos.

        Raises:
            ValueError: what [`~tables.read_table`] refuses, a missing column, no usable video, or too many that are not; or
                wrong actions.
        """
        path = Path(path)
        rows = read_table(path)
        if path.suffix.lower() == ".txt":
            video_column, label_column = "video", "label"
        root = path.parent if root is None else Path(root)
        records, seen = [], set()
        for number, row in enumerate(rows, start=1):
            for column in filter(None, (video_column, caption_column, label_column, action_column)):
                if column not in row:
                    raise ValueError(f"{path}: row {number} has no column '{column}', only {', '.join(row)}.")
            caption, label = (_text_of(row.get(column)) for column in (caption_column, label_column))
            if row[video_column] in (None, ""):
                records.append(VideoRecord(f"row {number}", None, caption, label))
                continue
            name = str(row[video_column])
            id = _text_of(f"{name} (row {number})" if name in seen else name)
            seen.add(name)
            told = None if action_column is None else row[action_column]
            records.append(VideoRecord(id, root / name, caption, label, actions=told))
        looking = {"max_bad_fraction": max_bad_fraction, "where": str(path)}
        return cls._look_at(records, sampling, **looking, actions=actions, root=root)

    @classmethod
    def from_dataset(
        cls,
        name: str | Path,
        sampling: Sampling,
        *,
        split: str = "train",
        video_column: str = "video",
        caption_column: str | None = None,
        label_column: str | None = None,
        config_name: str | None = None,
        max_bad_fraction: float = 0.5,
        actions: ActionSpace | None = None,
        action_column: str | None = None,
    ) -> "VideoTable":
        """The videos of a dataset on the Hub or in a folder, downloaded whole by `datasets.load_dataset`.

        Ids are "split/row". The column holds videos, their bytes, or paths; with `actions`, `action_column` a list of them.

        Raises:
            ValueError: no such column, no usable video, or too many that are not; or wrong actions.
        """
        datasets = require("datasets", NEEDS_DATASETS, extra="train")
        dataset = undecoded(datasets.load_dataset(str(name), config_name, split=split), video_column)
        for name_of_column in filter(None, (caption_column, label_column, action_column)):
            if name_of_column not in dataset.features:
                raise ValueError(f"There is no column '{name_of_column}': give one of {', '.join(dataset.features)}.")

        def column(name: str | None) -> Callable[[int], str | None]:
            if name is None:
                return lambda row: None
            feature, values = dataset.features[name], dataset[name]
            if isinstance(feature, datasets.ClassLabel):
                values = [None if value is None else feature.int2str(value) for value in values]
            return [_text_of(value) for value in values].__getitem__

        caption, label = column(caption_column), column(label_column)
        told = [None] * len(dataset) if action_column is None else list(dataset[action_column])
        records = (
            VideoRecord(
                f"{split}/{row}", DatasetRow(dataset, row, video_column), caption(row), label(row), actions=told[row]
            )
            for row in range(len(dataset))
        )
        looking = {"max_bad_fraction": max_bad_fraction, "where": str(name)}
        return cls._look_at(records, sampling, **looking, actions=actions)

    @classmethod
    def from_lerobot(
        cls,
        root: str | Path,
        sampling: Sampling,
        *,
        camera: str | None = None,
        max_bad_fraction: float = 0.5,
        actions: ActionSpace | None = None,
        action_column: str = "action",
    ) -> "VideoTable":
        """The episodes of a LeRobot dataset in a folder, as [`~data.lerobot`] reads it; their captions are their tasks.

        Args:
            camera: the feature whose videos are taken; may be left out if there is but one.
            actions: which there are; `None` to read none.
            action_column: the feature that holds them.

        Raises:
            ValueError: no such dataset, camera or column, no usable video, or too many that are not; or wrong actions.
        """
        episodes = read_episodes(
            Path(root),
            camera=camera,
            action_column=None if actions is None else action_column,
            action_size=None if actions is None else actions.action_dim,
        )
        records = (VideoRecord(f"episode {x.index}", x.source, x.task, actions=x.actions) for x in episodes)
        return cls._look_at(records, sampling, max_bad_fraction=max_bad_fraction, where=str(root), actions=actions)

    @classmethod
    def simulated(
        cls,
        num_scenes: int,
        num_frames: int,
        *,
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
        records = [
            VideoRecord(f"{name} {scene.seed}", scene, **scene.describe(), digest=content_digest(scene))
            for scene in scenes
        ]
        return cls(records, [info] * num_scenes, sampling=sampling, dropped=DroppedVideos(num_seen=num_scenes))


def _text_of(value) -> str | None:
    """As text that every file and hash can take: half a character, as JSON can name one, is spelled out."""
    return None if value is None else str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _text_of_path(path: str | Path) -> str:
    """A path as text that every file and hash can take: bytes of a name that are not UTF-8 are spelled out."""
    return os.fsencode(Path(path).as_posix()).decode("utf-8", "backslashreplace")


def _find_videos(root: Path) -> tuple[list[Path], Counter[str]]:
    """Paths below `root`, relative to it, of what is a video by its suffix, each file once; and how many files and folders of
    which kind were passed over."""
    real_root = Path(os.path.realpath(root))
    paths, passed_over, entered = [], Counter(), set()

    def count_closed(error: OSError) -> None:
        passed_over[f"folders that cannot be opened ({error.strerror})"] += 1

    for folder, folders, files in os.walk(root, onerror=count_closed, followlinks=True):
        for name in sorted(folders):
            path = Path(folder, name)
            target, is_link = Path(os.path.realpath(path)), path.is_symlink()
            if is_link and (target.is_relative_to(real_root) or real_root.is_relative_to(target)) or target in entered:
                passed_over["linked folders that lead back" if is_link else "folders entered by another link"] += 1
                folders.remove(name)
            entered.add(target)
        folders.sort()
        for name in files:
            path = Path(folder, name)
            if path.suffix.lower() in VIDEO_SUFFIXES:
                paths.append(path.relative_to(root))
            else:
                passed_over[path.suffix.lower() or "without a suffix"] += 1

    # One file under two names would be trained on and held out. Of these it keeps the one that is no link.
    once = {}
    for path in sorted(paths, key=lambda path: (Path(os.path.realpath(root / path)) != real_root / path, path)):
        once.setdefault(_identity(root / path), path)
    if len(once) < len(paths):
        passed_over["second names of a video"] = len(paths) - len(once)
    return sorted(once.values()), passed_over


def _identity(path: Path) -> tuple[int, int] | str:
    """The same for all links to a file, soft and hard."""
    try:
        stat = path.stat()
    except OSError:  # a link that leads nowhere, say; the look at the video tells of it
        return str(path)
    return stat.st_dev, stat.st_ino
