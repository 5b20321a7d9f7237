"""Files that are whole or not there, their hashes, JSON, and an output folder in which a killed run finds what it had done.

    with written_whole(folder / "scores.csv") as path:      # appears as scores.csv when the block ends without an error
        write_csv(path, rows)
    write_json(folder / "scores.json", scores)              # whole, too
    scores = read_json(folder / "scores.json")

Nothing here needs torch; tensors are in [`weights`].
"""

import hashlib
import json
import os
import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


# What a file is taken for a video by, where a folder is looked through
VIDEO_SUFFIXES = (
    *(".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif"),
    *(".wmv", ".flv", ".ogv", ".3gp", ".mts", ".m2ts"),
)


# Whole files


@contextmanager
def written_whole(path: str | Path, *, unfinished_in: str | Path | None = None) -> Iterator[Path]:
    """Yields a name to write to, and moves what is there to `path` at the end: under its name a file is always whole.

    The bytes are on the disk before the file gets its name, so this holds after a power cut, too. On an error, whatever
    was at `path` before is still there. Missing folders are made.

    Args:
        path: of the finished file.
        unfinished_in: folder, on the same file system, that the file stands in until then; by default its own. Choose
            another one where `path`'s folder is read by others meanwhile, who would find the unfinished file. Its name
            ends as that of `path` does, for writers that look at the suffix.

    Raises:
        OSError: it cannot be written or moved.
    """
    path = Path(path)
    folder = path.parent if unfinished_in is None else Path(unfinished_in)
    for needed in (folder, path.parent):
        needed.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{path.stem}.{uuid.uuid4().hex[:8]}.partial{path.suffix}"
    try:
        yield unfinished
        wait_for_disk(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def wait_for_disk(path: Path) -> None:
    """Returns when the bytes of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def path_inside(folder: str | Path, name: str) -> Path:
    """`folder` / `name`, for names that come from a file somebody else may have made.

    Raises:
        ValueError: `name` leads out of the folder (`../x`, `/x`), or is empty.
    """
    path = Path(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(
            f"The name {name!r} leads out of the folder {folder}: give names without '..' and leading '/'."
        )
    return Path(folder) / path


# JSON


def read_json(path: str | Path, *, kind: type = dict) -> Any:
    """The content of a JSON file whose outermost value is of `kind`: an object (`dict`), unless a `list` is asked for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON in UTF-8, or an outermost value of another kind.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or nested more deeply than Python can follow
        raise ValueError(f"{path}: no JSON can be read here ({error}); copy or write the file again.") from error
    if not isinstance(content, kind):
        wanted = {dict: "an object", list: "a list"}[kind]
        raise ValueError(f"{path}: this JSON is a {type(content).__name__}, not {wanted}; is it the right file?")
    return content


def write_json(path: str | Path, content: Any, *, indent: int | None = 1, sort_keys: bool = False) -> None:
    """Writes JSON in UTF-8, whole or not at all; the folder is made.

    Raises:
        TypeError: `content` holds what JSON cannot.
        OSError: as [`written_whole`].
    """
    text = json.dumps(content, indent=indent, sort_keys=sort_keys)
    with written_whole(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


# CSV


def plain_cell(value: Any) -> Any:
    """A cell for a CSV file, never a formula: text that a spreadsheet would compute gets a `'` in front, which it does not
    show."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


# Hashes


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_bytes(content: bytes) -> str:
    """SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def hash_json(content: Any) -> str:
    """SHA-256 of anything that JSON takes, 64 hexadecimal digits; the order of an object's keys does not count.

    What JSON does not take counts as `str` has it.
    """
    return hash_bytes(json.dumps(content, sort_keys=True, default=str).encode())


# The header of a safetensors file: its length in 8 bytes, JSON, spaces up to a multiple of 8. The tensors' bytes follow.


def write_safetensors_header(file: BinaryIO, header: Mapping[str, Any]) -> None:
    """For files whose tensors are copied one after the other; the library's own writer takes all of them at once.

    Args:
        file: open for writing, at its start.
        header: tensor name → dtype, shape and `data_offsets`, and `__metadata__`.
    """
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    file.write(struct.pack("<Q", len(content)) + content)


# An output folder


class Store:
    """An output folder in which a run that was killed finds what it had done, by the content of what that was made from.

    A file appears in it under its name only when it is complete; several runs may work on one folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.videos = self.root / "videos"

    def writing(self, path: Path):
        """As [`written_whole`]. Others read the folders of finished files, so the unfinished one is not there."""
        return written_whole(path, unfinished_in=self.root / "cache" / "unfinished")

    def cached(self, kind: str, key: str, *, suffix: str = ".json") -> Path:
        return self.root / "cache" / kind / f"{key}{suffix}"

    def load(self, kind: str, key: str) -> Any:
        """What [`Store.save`] kept under `key`, or `None`."""
        path = self.cached(kind, key)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def save(self, kind: str, key: str, *, value: Any) -> None:
        with self.writing(self.cached(kind, key)) as unfinished:
            unfinished.write_text(json.dumps(value), encoding="utf-8")


def hash_of(*parts: Any) -> str:
    """A key for a [`Store`]: the first 32 digits of [`hash_json`]."""
    return hash_json(parts)[:32]
