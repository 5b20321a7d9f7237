"""Datasets of LeRobot, formats v2 and v3, as they lie in a folder: one camera's videos, the actions, and the tasks.

    meta/info.json                      frames a second, features, where files lie
    data/…/*.parquet                    a row a frame: episode_index, frame_index, action, …
    videos/…/*.mp4                      v2: one an episode; v3: several episodes in one, by meta/episodes/…/*.parquet

There, the action in row t is what was done when frame t was seen: it leads to frame t + 1. Here an action stands at the frame that
it leads to, so they are moved by one: the first frame has none, and the last row's leads to no frame. The formats are described at
https://huggingface.co/docs/lerobot/lerobot-dataset-v3.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np

from ..config_values import check_finite_number, check_positive_number, check_whole_number
from ..extras import require
from ..files import path_inside, read_json
from ..video_io import VideoInfo, VideoReadError
from .tables import read_table


PURPOSE = "datasets of LeRobot need the datasets package"
FORMATS = ("v2.", "v3.")
INFO = Path("meta", "info.json")
# What `video_path` may name, in each of the formats.
PLACEHOLDERS = {
    "v2.": ("episode_chunk", "video_key", "episode_index"),
    "v3.": ("video_key", "chunk_index", "file_index"),
}


@dataclass(frozen=True)
class VideoSegment:
    """An episode in a file that holds several.

    Attributes:
        path: the file.
        start: when the episode begins, in seconds since the first frame of the file.
        num_frames: F.
        fps: frames a second.
    """

    path: Path
    start: float
    num_frames: int
    fps: float

    def within(self, info: VideoInfo) -> VideoInfo:
        """What is known of the episode, on the clock of the file, from what is known of the file.

        Raises:
            VideoReadError: the file has not these frames.
        """
        first = int(np.abs(info.timestamps - self.start).argmin())
        stamps = info.timestamps[first : first + self.num_frames]
        if abs(stamps[0] - self.start) > 0.5 / self.fps or len(stamps) < self.num_frames:
            raise VideoReadError(
                f"{self.path.name}: an episode of {self.num_frames} frames from {self.start:g} s on is not in it, "
                f"which shows {info.num_frames} frames until {info.timestamps[-1]:g} s: copy the dataset again."
            )
        return replace(info, timestamps=stamps)


@dataclass(frozen=True)
class Episode:
    """An episode of a dataset.

    Attributes:
        index: its number.
        source: its video.
        task: what it shows, in words, where the dataset says so.
        actions: that led to each of its frames, (F,) or (F, D), with `None` for the first; `None` if they were not asked for.
    """

    index: int
    source: Path | VideoSegment
    task: str | None
    actions: list | None


def read_episodes(
    root: Path, *, camera: str | None = None, action_column: str | None = None, action_size: int | None = None
) -> list[Episode]:
    """The episodes of a dataset, in order.

    Args:
        root: its folder.
        camera: the feature whose videos are wanted; may be left out if there is but one.
        action_column: the feature that holds the actions; `None` to leave them out.
        action_size: numbers of an action; `None` for discrete ones.

    Raises:
        ValueError: this is no such dataset, it has no such feature (says which ones there are), or one of its files has a value
            that is none.
    """
    info = _read_info(root)
    features, fps = info["features"], float(info["fps"])
    cameras = [name for name, feature in features.items() if feature.get("dtype") == "video"]
    if camera is None and len(cameras) == 1:
        (camera,) = cameras
    if camera not in cameras:
        wanted = "has several cameras" if camera is None else f"has no camera '{camera}'"
        raise ValueError(
            f"{root} {wanted}: give --lerobot_camera, one of {', '.join(cameras) or 'none: it has no videos'}."
        )
    if action_column is not None and action_column not in features:
        raise ValueError(
            f"{root} has no column '{action_column}': give --action_column, one of {', '.join(features)}."
        )

    columns = ["episode_index", "frame_index"] + ([action_column] if action_column is not None else [])
    rows = _read_parquet(sorted((root / "data").rglob("*.parquet")), columns, where=root / "data")
    by_episode: dict[int, list[tuple[int, Any]]] = {}
    for name in columns[:2]:
        for value in rows[name]:
            check_whole_number(f"{root / 'data'}: {name}", value, at_least=0, at_most=10**12)
    moves = rows[action_column] if action_column is not None else [None] * len(rows["episode_index"])
    for episode, frame, move in zip(rows["episode_index"], rows["frame_index"], moves, strict=True):
        by_episode.setdefault(episode, []).append((frame, move))

    places = _places(root, info, camera=camera)
    episodes = []
    for index, frames in sorted(by_episode.items()):
        if index not in places:
            raise ValueError(f"{root}: data/ has episode {index}, meta/ has not: copy the dataset again.")
        frames.sort(key=lambda row: row[0])
        source, task = places[index]
        if isinstance(source, tuple):
            source = VideoSegment(*source, num_frames=len(frames), fps=fps)
        actions = None
        if action_column is not None:
            done = [_of_size(move, action_size) for _, move in frames]
            actions = [None, *done[:-1]]
        episodes.append(Episode(index, source, task, actions))
    return episodes


def _of_size(move: Any, action_size: int | None) -> Any:
    """Single numbers may stand alone or in a list of one."""
    is_list = isinstance(move, list)
    if action_size is None:
        return move[0] if is_list and len(move) == 1 else move
    return move if is_list else [move]


def _read_info(root: Path) -> dict[str, Any]:
    try:
        info = read_json(root / INFO)
    except FileNotFoundError:
        raise ValueError(f"{root} is no LeRobot dataset: it has no meta/info.json.") from None
    version = str(info.get("codebase_version"))
    if not version.startswith(FORMATS):
        raise ValueError(f"{root} is a LeRobot dataset of format {version}: convert it to v2.1 or v3.0 with LeRobot.")
    missing = [name for name in ("features", "fps", "video_path") if not info.get(name)]
    if missing:
        raise ValueError(f"{root / INFO} has no {', '.join(missing)}: it is of no dataset with videos.")
    try:
        _check_info(info, version[:3])
    except ValueError as error:
        raise ValueError(f"{root / INFO}: {error}") from error
    return info


def _check_info(info: dict[str, Any], version: str) -> None:
    """Raises a `ValueError` that names the value, if one is of another kind than it should be."""
    features = info["features"]
    if not isinstance(features, dict):
        raise ValueError(f"`features` must map names to objects, got {features!r:.80}.")
    for name, feature in features.items():
        if not isinstance(feature, dict):
            raise ValueError(f"`features`: '{name}' must be an object with a `dtype`, got {feature!r:.80}.")
    check_positive_number("fps", info["fps"])
    check_whole_number("chunks_size", info.get("chunks_size", 1000), at_most=10**9)
    template, known = info["video_path"], PLACEHOLDERS[version]
    if not isinstance(template, str):
        raise ValueError(f"`video_path` must be text, got {template!r:.80}.")
    try:
        placeholders = [field for field in Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise ValueError(f"`video_path` {template!r:.80} cannot be filled in ({error}).") from error
    for _, name, width, conversion in placeholders:
        if name not in known:
            raise ValueError(
                f"`video_path` {template!r:.80} has the placeholder '{name}', and only {', '.join(known)} can be filled in."
            )
        # A number is filled up with zeros, to a width that the name of a file may have.
        if conversion or not re.fullmatch("" if name == "video_key" else r"(\d{0,2}d)?", width):
            raise ValueError(f"`video_path` {template!r:.80} wants '{name}' in a form that no file's name has.")


def _video_path(root: Path, info: dict[str, Any], **values: int | str) -> Path:
    """Where `video_path` says that a video lies, inside the dataset.

    Raises:
        ValueError: it leads out of the dataset's folder.
    """
    try:
        return path_inside(root, info["video_path"].format(**values))
    except ValueError as error:
        raise ValueError(f"{root / INFO}: `video_path` leads out of the dataset ({error})") from error


def _read_parquet(paths: list[Path], columns: list[str] | None, *, where: Path) -> dict[str, list]:
    """The columns of all files, one after the other; all columns for `None`."""
    if not paths:
        raise ValueError(f"{where} has no parquet files: copy the dataset again.")
    datasets = require("datasets", PURPOSE, extra="train")
    problems = require("datasets.exceptions", PURPOSE, extra="train").DatasetsError
    tables = []
    for path in paths:
        try:
            tables.append(datasets.Dataset.from_parquet(str(path), columns=columns, keep_in_memory=True))
        except (problems, ValueError) as error:
            wanted = "" if columns is None else f", or has none of its columns {', '.join(columns)}"
            reason = error if error.__cause__ is None else error.__cause__
            raise ValueError(f"{path} is no whole parquet file{wanted} ({reason}): copy it again.") from error
    table = datasets.concatenate_datasets(tables)
    return {name: list(table[name]) for name in table.column_names}


def _places(
    root: Path, info: dict[str, Any], *, camera: str
) -> dict[int, tuple[Path | tuple[Path, float], str | None]]:
    """Episode → its file, with the time where it begins if the file holds several, and its task."""

    def task_of(tasks: Any) -> str | None:
        return ", ".join(map(str, tasks)) if isinstance(tasks, list | tuple) and tasks else None

    if str(info["codebase_version"]).startswith("v2."):
        places = {}
        table = root / "meta" / "episodes.jsonl"
        for episode in read_table(table):
            index = episode.get("episode_index")
            check_whole_number(f"{table}: episode_index", index, at_least=0, at_most=10**9)
            chunk = index // info.get("chunks_size", 1000)
            path = _video_path(root, info, episode_chunk=chunk, video_key=camera, episode_index=index)
            places[index] = (path, task_of(episode.get("tasks")))
        return places
    folder = root / "meta" / "episodes"
    names = ["episode_index", "tasks"]
    names += [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    rows = _read_parquet(sorted(folder.rglob("*.parquet")), names, where=folder)
    places = {}
    for index, tasks, chunk, file, start in zip(*(rows[name] for name in names), strict=True):
        for name, value in zip((names[0], *names[2:4]), (index, chunk, file), strict=True):
            check_whole_number(f"{folder}: {name}", value, at_least=0, at_most=10**9)
        check_finite_number(f"{folder}: {names[4]}", start)
        path = _video_path(root, info, video_key=camera, chunk_index=chunk, file_index=file)
        places[index] = ((path, float(start)), task_of(tasks))
    return places
