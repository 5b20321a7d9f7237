"""Loader workers and the shared memory through which they hand over batches.

Where it is too small (64 MB is Docker's default), a worker fails in a thread whose error nobody sees, and the training would
wait for ever: so its size is checked before the workers start, and a wait has an end.
"""

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
    """The batches of a loader made with [`worker_options`]; if none comes in time, the error says what helps."""
    batches = iter(batches)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            raise RuntimeError(
                f"The loader workers gave no batch for {TIMEOUT:g} s. Shared memory that is full is the usual cause "
                f"({SHARED_MEMORY}): {CURE}."
            ) from error
        yield batch
