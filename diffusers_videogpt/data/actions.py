"""The actions of a video's frames, as files and tables have them.

Entry i is what led to frame i, so there are as many as frames; the first one, to which nothing led, is mostly "no action".
Beside a video `clip.mp4` they are in one of

    clip.actions.npy    discrete: whole numbers (F,); continuous: (F, D)
    clip.actions.csv    a line a frame, with one number, or D; a first line of names is passed over

or in a column of the table that lists the videos: a list in JSON, or the path of such a file. Discrete actions count from 0, and
"no action" is −1; of continuous ones it is NaN in all D numbers.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..actions import ActionSpace
from .tables import read_text


SUFFIXES = (".actions.npy", ".actions.csv")


def actions_beside(video: Path) -> Path | None:
    """The file of a video's actions; `None` if there is none."""
    paths = [video.with_name(video.stem + suffix) for suffix in SUFFIXES]
    return next((path for path in paths if path.is_file()), None)


def load_actions(
    found: Any, num_frames: int, *, space: ActionSpace, name: str, root: Path | None = None
) -> np.ndarray:
    """What a source has in the place of a video's actions → int64 (F,) or float32 (F, D), as [`ActionSpace.read`].

    Args:
        found: the path of a file, JSON text, or the values themselves.
        num_frames: F, frames of the video.
        space: the actions there are.
        name: of the video, for errors.
        root: what a path is relative to.

    Raises:
        ValueError: there are none, they are not one a frame, or not of this `space`; with the name of the video.
    """
    if found is None or (isinstance(found, str) and not found.strip()):
        raise ValueError(
            f"{name} has no actions: put them beside it as {' or '.join(f'{Path(name).stem}{x}' for x in SUFFIXES)}, or into a "
            "column of its table (--action_column)."
        )
    if isinstance(found, str) and found.lstrip().startswith("["):
        try:
            found = json.loads(found)
        except ValueError as error:
            raise ValueError(f"{name}: its actions are no list in JSON ({error}).") from error
    if isinstance(found, str | Path):
        path = Path(found) if root is None else root / found
        found, name = _read_file(path, space), f"{name} ({path.name})"
    values = space.read(found, name)
    if space.is_discrete and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != (1 if space.is_discrete else 2) or len(values) != num_frames:
        raise ValueError(
            f"{name}: {num_frames} frames have actions of shape {list(values.shape)}: give one a frame, the one that led to it; "
            f"of the first frame, to which none led, {'-1' if space.is_discrete else 'NaN'}."
        )
    return values


def _read_file(path: Path, space: ActionSpace) -> np.ndarray | list:
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix.lower() == ".csv":
            return _read_csv(path, space)
    except OSError as error:
        raise ValueError(f"{path}: the actions cannot be read ({error.strerror or error}).") from error
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: the actions cannot be read ({error}).") from error
    raise ValueError(f"{path}: actions are in a file that ends in .npy or .csv; save them as one of these.")


def _read_csv(path: Path, space: ActionSpace) -> list:
    number = int if space.is_discrete else float
    rows, has_names = [], False
    for line, cells in enumerate(csv.reader(io.StringIO(read_text(path), newline="")), start=1):
        if not any(cell.strip() for cell in cells):
            continue
        try:
            rows.append([number(cell) for cell in cells])
        except ValueError:
            if rows or has_names:
                kind = "whole numbers" if space.is_discrete else "numbers"
                raise ValueError(f"line {line} is {','.join(cells)!r}, not {kind}") from None
            has_names = True
    return rows
