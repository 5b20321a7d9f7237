"""`videogpt evaluate autoencoder`: judges an autoencoder's latents for diffusion."""

import argparse
from dataclasses import asdict
from pathlib import Path

from ... import BUNDLED_MODEL
from ...arguments import check_output, positive_float, positive_int
from ...console import say
from ..models import QUANTIZERS, leave_out, refuse_missing, told_of, usable_device
from ..options import add_command, add_device_argument, add_seed_argument


def evaluate_autoencoder(args: argparse.Namespace) -> None:
    """Encodes and decodes unseen simulated scenes, or your videos: share of posterior noise, eigenvalues of the
    channels' correlation, and the reconstruction of clean and of noised latents; in the simulated world also how many
    frames keep all their objects."""
    refuse_missing(args.data, "--data")
    if args.output is not None:
        check_output(args.output.parent)
        if args.output.is_dir():
            raise ValueError(f"--output {args.output} is a folder: name a JSON file.")
    from ...saved_models import refuse_unreachable

    if args.vae is not None:
        refuse_unreachable(args.vae)
    leave_out(QUANTIZERS)
    device = usable_device(args.device)
    from ...evaluation.autoencoder import failed_gates, format_report, judge_latents
    from ...files import write_json
    from ...frame_latents import load_autoencoder

    read_objects = None
    if args.data is None:
        from ...worlds import count_objects as read_objects
        from ...worlds import simulate

        videos = [
            simulate(seed=seed, num_frames=args.num_frames, size=args.resolution).frames
            for seed in range(args.num_videos)
        ]
    else:
        from ...data.sampling import Sampling
        from ...data.videos import VideoTable

        sampling = Sampling(args.num_frames, min_num_frames=1, height=args.resolution, width=args.resolution)
        table = VideoTable.from_folder(args.data, sampling, max_bad_fraction=1.0)
        say(f"{len(table)} videos; {table.dropped.summary()}{table.dropped.first()}")
        count = min(len(table), args.num_videos)
        videos = [table.read(index, table.draw_window(index, 0, seed=args.seed)) for index in range(count)]
    source, subfolder = (BUNDLED_MODEL, "vae") if args.vae is None else (args.vae, args.subfolder)
    with told_of(f"the autoencoder in {source}"):
        vae = load_autoencoder(source, subfolder=subfolder).to(device)
    report = judge_latents(vae, videos, noise_levels=args.noise_levels, read_objects=read_objects, seed=args.seed)
    say(format_report(report), "", *(failed_gates(report) or ["All gates are passed."]))
    if args.output is not None:
        write_json(args.output, asdict(report))


def add_autoencoder_benchmark(benchmarks) -> None:
    command = add_command(
        benchmarks, "autoencoder", run=evaluate_autoencoder, help="how good an autoencoder's latents are for diffusion"
    )
    command.add_argument("--vae", help="folder or Hub id of an autoencoder; default: the bundled model's")
    command.add_argument("--subfolder", help="of --vae that the autoencoder lies in, such as vae in a pipeline's")
    command.add_argument("--data", type=Path, help="folder of videos, cropped square; default: simulated scenes")
    command.add_argument(
        "--num-videos", type=positive_int, default=64, help="videos or scenes, at most (default: %(default)s)"
    )
    command.add_argument("--num-frames", type=positive_int, default=24, help="of each, at most (default: %(default)s)")
    command.add_argument(
        "--resolution", type=positive_int, default=64, help="side of a frame in pixels (default: %(default)s)"
    )
    command.add_argument(
        "--noise-levels",
        type=positive_float,
        nargs="+",
        default=[0.1, 0.2, 0.3],
        help="noise on the latents, in standard deviations of each channel (default: 0.1 0.2 0.3)",
    )
    add_seed_argument(command, help="of the noise, and of which frames of a video")
    add_device_argument(command)
    command.add_argument("--output", type=Path, help="a JSON file for the report")
