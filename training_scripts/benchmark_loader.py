"""Measure the training loader against a bare PyAV loop that decodes and resizes the same frames on the same cores.

    python training_scripts/benchmark_loader.py --instance_data_root videos --max_num_frames 16 --frame_interval 4

The bare loop opens each file, seeks to the key frame before the window, decodes, converts and resizes the frames of the
window, in as many processes as the loader has. Both take turns, `--rounds` times, and start their processes anew. Prints
JSON: frames a second of both and the ratio, by the clock and by the CPU time of all processes (which tells more on a
machine that does other things too), as median, smallest and largest; and how often a frame was decoded more than once
within a sample, which must be never.
"""

import json
import os
import resource
import statistics
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from diffusers_videogpt.arguments import check_output, positive_int
from diffusers_videogpt.training.arguments import add_options, make_parser, read_options, run_script, share
from diffusers_videogpt.training.settings import SamplingSettings


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--instance_data_root", type=Path, required=True, help="folder of videos")
    parser.add_argument(
        "--max_bad_fraction", type=share, default=0.5, help="a larger share of unusable videos ends it"
    )
    # Without `target_fps`, as the bare loop takes every Nth frame
    add_options(parser, SamplingSettings, without=["target_fps"], max_num_frames=16)
    parser.add_argument("--train_batch_size", type=positive_int, default=2)
    parser.add_argument("--dataloader_num_workers", type=positive_int, default=os.cpu_count())
    parser.add_argument("--steps", type=positive_int, default=32, help="batches of a round")
    parser.add_argument("--rounds", type=positive_int, default=5)
    parser.add_argument("--output_json", type=Path)
    args = parser.parse_args()
    if args.output_json is not None:
        check_output(args.output_json.parent, "--output_json")
    try:
        args.sampling = read_options(args, SamplingSettings)
    except ValueError as error:
        parser.error(str(error))
    return args


if __name__ == "__main__":
    ARGS = run_script(parse_args)  # before torch is imported, which takes seconds: wrong options are told at once

import av
import numpy as np
import torch

from diffusers_videogpt import video_io
from diffusers_videogpt.data.batches import BatchPlan, WindowDataset, make_loader
from diffusers_videogpt.data.sampling import Sampling, Window
from diffusers_videogpt.data.videos import VideoTable
from diffusers_videogpt.files import write_json
from diffusers_videogpt.training.loading import make_sampling


def bare_loop(work: tuple[Path, float, float, Window, Sampling]) -> int:
    """Reads one window as plainly as PyAV allows; returns the number of its frames."""
    path, origin, start, window, sampling = work
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        first = origin + start
        container.seek(int(first / stream.time_base), stream=stream)
        shown = (frame for frame in container.decode(stream) if frame.time >= first - 1e-4)
        for number, frame in enumerate(shown):
            if number % window.interval == 0:
                frames.append(sampling.resize(frame.to_ndarray(format="rgb24")))
                if len(frames) == window.num_frames:
                    break
    return len(np.stack(frames))


def count_decoded_twice(table: VideoTable, windows: list[tuple[int, Window]]) -> int:
    """How many frames left the decoder more than once while one sample was read, over all these samples."""
    decode, stamps, num_twice = video_io._decode, Counter(), 0

    def counted(path, container, *, stream):
        for frame in decode(path, container, stream=stream):
            stamps[frame.pts] += 1
            yield frame

    video_io._decode = counted
    for index, window in windows:
        stamps.clear()
        table.read(index, window)
        num_twice += sum(count > 1 for count in stamps.values())
    video_io._decode = decode
    return num_twice


def cpu_seconds() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def ratio(rates: list[float], others: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(rates, others, strict=True)]
    summary = {"median": statistics.median(ratios), "smallest": min(ratios), "largest": max(ratios)}
    return {name: round(value, 3) for name, value in summary.items()}


def main(args):
    torch.set_num_threads(1)

    sampling = make_sampling(args.sampling)
    table = VideoTable.from_folder(args.instance_data_root, sampling, max_bad_fraction=args.max_bad_fraction)
    print(table.dropped.summary(), flush=True)
    plan = BatchPlan(table, args.train_batch_size, seed=args.seed)
    dataset = WindowDataset(table, args.seed)
    rates = {name: [] for name in ("loader", "bare_loop", "loader_cpu", "bare_loop_cpu")}
    for number in range(args.rounds):
        steps = range(number * args.steps, (number + 1) * args.steps)
        windows = [
            (index, table.draw_window(index, draw, seed=args.seed)) for s in steps for index, draw in plan.step(s)
        ]
        num_frames = sum(window.num_frames for _, window in windows)

        def run_loader(first=steps.start) -> int:
            size = {"batch_size": args.train_batch_size, "num_workers": args.dataloader_num_workers}
            loader = make_loader(dataset, plan, start_step=first, num_steps=args.steps, **size)
            return sum(batch["frames"].shape[:2].numel() for batch in loader)

        def run_bare_loop(windows=windows) -> int:
            work = []
            for index, window in windows:
                info = table.infos[index]
                start = float(info.timestamps[window.start])
                work.append((table[index].source, info.origin, start, window, table.sampling))
            with ProcessPoolExecutor(args.dataloader_num_workers, mp_context=get_context("fork")) as processes:
                return sum(processes.map(bare_loop, work))

        runs = {"loader": run_loader, "bare_loop": run_bare_loop}
        # Each goes first in every other round, so that neither always finds the files in memory.
        for name in sorted(runs, reverse=number % 2 == 1):
            began, cpu_began = time.perf_counter(), cpu_seconds()
            count = runs[name]()
            seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu_began
            # A plain seek may land behind the start of a window at the very end of a file: the bare loop may lack a frame.
            if name == "loader" and count != num_frames:
                raise SystemExit(f"The loader read {count} frames instead of {num_frames}.")
            rates[name].append(count / seconds)
            rates[f"{name}_cpu"].append(count / cpu)
    report = {
        "videos": len(table),
        "workers": args.dataloader_num_workers,
        "cpu_count": os.cpu_count(),
        "frames_a_round": num_frames,
        "frames_a_second": {name: [round(rate, 1) for rate in rates[name]] for name in ("loader", "bare_loop")},
        "ratio": ratio(rates["loader"], rates["bare_loop"]),
        "ratio_by_cpu_time": ratio(rates["loader_cpu"], rates["bare_loop_cpu"]),
        "frames_decoded_twice": count_decoded_twice(table, windows),
    }
    print(json.dumps(report, indent=2))
    if args.output_json is not None:
        write_json(args.output_json, report)
    if report["frames_decoded_twice"]:
        raise SystemExit(f"{report['frames_decoded_twice']} frames were decoded more than once within a sample.")


if __name__ == "__main__":
    run_script(main, ARGS)
