"""Tables that list videos, read as rows: CSV, JSON lines, JSON, and lists as UCF-101's splits are."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path


TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")


def read_table(path: Path) -> list[dict]:
    """The rows of a table by its suffix, in lower or upper case; text as [`read_text`] decodes it.

    `.csv` and `.tsv` have a header. `.jsonl` and `.ndjson` have an object a line, as `.json` may, if it isn't one list of
    objects. A line of `.txt` is CLASS/VIDEO and maybe a number, as in UCF-101's splits; it gives "video" and "label".

    Raises:
        ValueError: another suffix or encoding, or a line that is none of these; with its number.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".json": _read_json, ".txt": _read_split}
    readers |= {".jsonl": _read_json_lines, ".ndjson": _read_json_lines}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: a table of videos ends in {', '.join(TABLE_SUFFIXES)}; save it as one of these.")
    return list(readers[path.suffix.lower()](path, read_text(path)))


def read_text(path: Path) -> str:
    """The text of a table, in UTF-8, or in UTF-16 or UTF-32 with or without their mark.

    Raises:
        ValueError: it is in another encoding; with the line where that shows.
    """
    data = path.read_bytes()
    encoding = json.detect_encoding(
        data
    )  # by the mark, or by which of the first four bytes are 0, of a table in any format
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        rest = error.object  # in UTF-8 without the mark
        line = rest[: error.start].decode(error.encoding, "ignore").count("\n") + 1
        name = "UTF-8" if encoding.startswith("utf-8") else encoding[:6].upper()
        raise ValueError(
            f"{path}: line {line} is not {name} (byte 0x{rest[error.start]:02x}); save the table as UTF-8. Tables from Windows "
            "are often in cp1252."
        ) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with something in them, by number. Only a line feed ends one: `str.splitlines` would also cut at characters
    that a caption may hold, such as U+2028 or U+0085."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _read_csv(path: Path, text: str) -> Iterator[dict]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restkey="(no header)")
    try:
        while reader.fieldnames is not None and not any(name.strip() for name in reader.fieldnames):
            reader.fieldnames = None  # a blank line; the header is the first one with something in it
        yield from reader
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} is no CSV ({error}).") from error


def _read_json_lines(path: Path, text: str) -> Iterator[dict]:
    for number, line in _lines(text):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is no JSON ({error}); give one object a line.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is {row!r}, not an object with a column of videos.")
        yield row


def _read_json(path: Path, text: str) -> Iterator[dict]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return _read_json_lines(path, text)  # whose error names the line
    rows = rows if isinstance(rows, list) else [rows]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {number} is {row!r}, not an object with a column of videos.")
    return iter(rows)


def _read_split(path: Path, text: str) -> Iterator[dict]:
    for number, line in _lines(text):
        # Names of classes and videos may hold spaces; the number of the class follows behind the last one.
        name = re.sub(r"\s+\d+$", "", line.strip())
        if "/" not in name:
            raise ValueError(f"{path}: line {number} is {line.strip()!r}, not CLASS/VIDEO.")
        yield {"video": name, "label": name.split("/")[0]}
