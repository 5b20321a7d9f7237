"""Truncated and bit-flipped videos through the readers: every one is read, or refused as a `VideoReadError`.

    python tests/fuzz_videos.py --num 1000

makes that many from small videos of eight containers and prints what became of them, the slowest and the most memory. A
file is a fault if a reader raises anything else, takes more than 5 s, or the process grows by more than 1 GB.
"""

import resource
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import av
import numpy as np
from fuzzing import Fault, damage, parse_args, report, run_fuzzer
from PIL import Image

from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.data.videos import check_usable
from diffusers_videogpt.video_io import VideoReadError, read_video, resize_to_cover, write_video


CODECS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4", "ts": "libx264"}
CONTAINERS = (*CODECS, "gif", "webp", "png")
MAX_SECONDS, MAX_BYTES = 5.0, 10**9


def make_seeds(folder: Path) -> dict[str, bytes]:
    """A small video of each container."""
    frames = np.random.default_rng(0).integers(0, 256, (12, 3, 4, 3), np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    for suffix in CONTAINERS:
        path = folder / f"seed.{suffix}"
        if suffix == "gif":
            write_video(path, frames, fps=10)
        elif suffix in ("webp", "png"):
            first, *rest = [Image.fromarray(frame) for frame in frames]
            first.save(path, save_all=True, append_images=rest, duration=100)
        else:
            with av.open(str(path), "w") as container:
                stream = container.add_stream(CODECS[suffix], rate=10)
                stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
                for pixels in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                container.mux(stream.encode())
    return {suffix: (folder / f"seed.{suffix}").read_bytes() for suffix in CONTAINERS}


def scan(path: Path) -> None:
    """What a training does with a file: looks at it, and reads a window of it."""
    sampling = Sampling(4, min_num_frames=1, fps=8.0, height=32, width=32)
    info, reason = check_usable(path, sampling)
    if info is None:
        raise VideoReadError(reason)
    sampling.read(path, info, window=sampling.window_at(info, interval_share=0.5, start_share=0.5))


RESIZE = partial(resize_to_cover, height=64, width=64)
READERS = {
    "read_video": read_video,
    "read_video of bytes": lambda path: read_video(path.read_bytes()),
    "predict": lambda path: read_video(path, fps=24, max_frames=16, from_end=True, transform=RESIZE),
    "predict --num-history-frames": lambda path: read_video(path, fps=24, max_frames=40, transform=RESIZE),
    "training scan": scan,
}


def fuzz(num: int, folder: Path, seed: int = 0) -> tuple[Counter[str], list[Fault], float, int]:
    """Counts of what was read and what refused, the faults, the longest time and the growth in bytes."""
    seeds, generator = make_seeds(folder), np.random.default_rng(seed)
    for read in READERS.values():  # what is loaded once is no growth
        for suffix in seeds:
            read(folder / f"seed.{suffix}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts, faults, longest, growth = Counter(), [], 0.0, 0
    for number in range(num):
        suffix = CONTAINERS[number % len(CONTAINERS)]
        path = folder / f"{number}.{suffix}"
        path.write_bytes(damage(seeds[suffix], generator))
        is_sound = True
        for reader, read in READERS.items():
            begin = time.process_time(), time.perf_counter()
            try:
                read(path)
                outcome = "read"
            except VideoReadError:
                outcome = "refused"
            except Exception as error:  # anything else is a fault to be listed
                outcome = "fault"
                faults.append(Fault(path.name, reader, f"{type(error).__name__}: {error}"))
            # On a machine that is busy with other things, the time of this process is the fairer one.
            seconds = min(time.process_time() - begin[0], time.perf_counter() - begin[1])
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            if seconds > MAX_SECONDS:
                outcome = "fault"
                faults.append(Fault(path.name, reader, f"{seconds:.1f} s"))
            if grown > MAX_BYTES > growth:
                outcome = "fault"
                faults.append(Fault(path.name, reader, f"{grown / 1e9:.1f} GB"))
            longest, growth = max(longest, seconds), max(growth, grown)
            counts[f"{reader}: {outcome}"] += 1
            is_sound = is_sound and outcome != "fault"
        if is_sound:
            path.unlink()
    return counts, faults, longest, growth


def main() -> int:
    args = parse_args(__doc__, num=1000, what="damaged videos")
    counts, faults, longest, growth = run_fuzzer(fuzz, args)
    measured = f"the longest {longest:.2f} s, grown by {growth / 1e6:.0f} MB"
    return report(counts, faults, f"{args.num} files, {len(faults)} faults; {measured}")


if __name__ == "__main__":
    sys.exit(main())
