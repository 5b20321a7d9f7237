"""Loader workers and the shared memory through which they hand over batches.

Where it is too small (64 MB is Docker's default), a worker fails in a thread whose error nobody sees, and the training would
wait for ever: so its size is checked before the workers start, and a wait has an end. PyTorch tells of all that happens to a
worker by a `RuntimeError`, as of a bug; what a user can mend is told here in a sentence.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path


SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 2  # batches that a worker reads ahead, PyTorch's default
TIMEOUT = 600.0  # seconds without a batch
CURE = "give the container more (`docker run --shm-size=8g`, or `--ipc=host`), or read without workers (--dataloader_num_workers 0)"


def check_shared_memory(num_workers: int, batch_bytes: int) -> None:
    """Raises a `ValueError` if the shared memory has no room for the batches that workers read ahead.

    Args:
        num_workers: processes that read; with 0 nothing is shared.
        batch_bytes: of a batch, at least.
    """
    if num_workers == 0 or not SHARED_MEMORY.is_dir():
        return
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, num_workers * PREFETCH * batch_bytes
    if free < needed:
        raise ValueError(
            f"{SHARED_MEMORY} has {free / 1e6:.3g} MB free, and {num_workers} loader workers that read ahead {PREFETCH} "
            f"batches of {batch_bytes / 1e6:.3g} MB each need {needed / 1e6:.3g} MB: {CURE}, or use fewer of them."
        )


def worker_options(num_workers: int) -> dict[str, float | int]:
    """The options of a PyTorch loader that set its workers."""
    return {"num_workers": num_workers, "timeout": TIMEOUT if num_workers else 0}


def until_timeout(batches: Iterable) -> Iterator:
    """The batches of a loader made with [`worker_options`]; if none comes in time, the error says what helps.

    Raises:
        OSError: what [`worker_trouble`] knows: a `TimeoutError` if no batch came in time.
        ValueError, OSError, ImportError: a worker raised it; its own words, without the traceback that PyTorch puts into them.
    """
    batches = iter(batches)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            trouble = worker_trouble(error)
            if trouble is None:
                raise
            raise trouble from error
        except (ValueError, OSError, ImportError) as error:
            words = _words_in_worker(error)
            if words is None:
                raise
            raise type(error)(words) from error
        yield batch


def worker_trouble(error: RuntimeError) -> OSError | None:
    """What a user can mend where PyTorch's `error` tells of a loader's workers, as a sentence with the cure; else `None`.

    That a worker was killed is raised wherever the main process is just then, in the middle of a step, too.
    """
    text = f"{error} {error.__cause__}"  # of a worker that "exited unexpectedly", the cause names the signal
    if "DataLoader timed out" in text:
        return TimeoutError(
            f"The loader workers gave no batch for {TIMEOUT:g} s. Shared memory that is full is the usual cause "
            f"({SHARED_MEMORY}): {CURE}."
        )
    if re.search(r"DataLoader worker \(pid \d+\) is killed by signal: Bus error", text):
        return OSError(f"A loader worker was stopped because shared memory is full ({SHARED_MEMORY}): {CURE}.")
    if re.search(r"DataLoader worker \(pid \d+\) is killed by signal: Killed", text):
        return OSError(
            "A loader worker was killed from outside, as the system does where memory is full: give the machine or container "
            "more, or read with fewer workers (--dataloader_num_workers), smaller batches or smaller frames."
        )
    if "Too many open files. Communication with the workers" in text:
        return OSError(
            "The loader workers have too many files open: allow more (`ulimit -n 65536` in the shell that starts this), or read "
            "without workers (--dataloader_num_workers 0)."
        )
    return None


def _words_in_worker(error: Exception) -> str | None:
    """What a worker's error said there; `None` for one of the main process.

    PyTorch raises one of the same class, whose text is "Caught … in DataLoader worker process 0." and the worker's traceback.
    """
    if not re.match(r"Caught \w+ in DataLoader worker process", str(error)):
        return None
    found = re.split(rf"^(?:\w+\.)*{type(error).__name__}: ", str(error), flags=re.MULTILINE)
    return found[-1].strip() if len(found) > 1 else None
