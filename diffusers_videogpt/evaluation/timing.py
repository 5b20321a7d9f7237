"""Timing of variants by turns in one process, as ratios with their spread."""

import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from ..files import write_json


def take_turns(
    variants: dict[str, Callable[[], object]],
    num_rounds: int = 7,
    *,
    num_warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds that each variant took, by turns: what slows the machine for a while slows all of them.

    Args:
        variants: name → what to time; on a GPU the time is until its work is done.
        num_rounds: times that every variant is run.
        num_warmups: runs of each before, not counted.
        clock: `time.process_time` counts the process's CPU seconds instead, whatever else the machine does.
    """
    for run in list(variants.values()) * num_warmups:
        run()
    seconds = {name: [] for name in variants}
    for _ in range(num_rounds):
        for name, run in variants.items():
            _synchronize()
            began = clock()
            run()
            _synchronize()
            seconds[name].append(clock() - began)
    return seconds


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def speedup(seconds: dict[str, list[float]], *, slow: str, fast: str) -> dict[str, float]:
    """How many times faster `fast` is than `slow`, round by round: median, least and largest ratio."""
    ratios = [s / f for s, f in zip(seconds[slow], seconds[fast], strict=True)]
    return {"ratio": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}


def show_speedup(name: str, result: dict[str, float]) -> str:
    return f"{name}: {result['ratio']:.2f} x ({result['least']:.2f} to {result['largest']:.2f})"


def write_results(path: str | Path, results: dict) -> None:
    """Writes results as JSON with the machine, the versions and the date."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    about = {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    write_json(path, {"about": about, "results": results})
