"""The folder of a run: one run at a time writes into it, and none leaves it behind empty."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout


LOCK = ".lock"


@dataclass(frozen=True)
class _HeldFolder:
    path: Path
    lock: FileLock
    is_new: bool


_held: list[_HeldFolder] = []


def hold_folder(folder: Path) -> None:
    """Makes a folder, if there is none, and keeps other runs out of it until [`release_folders`]. For the main process.

    The operating system lets go of the lock when the process ends, however it ends.

    Raises:
        SystemExit: another run writes into it.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise SystemExit(
            f"{folder} is in use by another run: wait until it ends, or choose another --output_dir. Nothing was changed."
        ) from None
    _held.append(_HeldFolder(folder, lock, is_new))


def release_folders() -> None:
    """Lets go of every folder that this process holds, and removes those that it made and left empty."""
    while _held:
        held = _held.pop()
        with suppress(OSError):
            (held.path / LOCK).unlink(missing_ok=True)
        held.lock.release()
        if held.is_new:
            with suppress(OSError):  # it holds something
                held.path.rmdir()
