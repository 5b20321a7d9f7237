"""`videogpt predict | convert | evaluate`: the package from the command line."""

import argparse
import json
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from . import BUNDLED_MODEL, SAMPLE_VIDEO
from .convert_checkpoint import convert_reference_checkpoint, convert_to_reference_checkpoint
from .pipeline_videogpt import VideoGPTPipeline
from .video_io import read_video, resize_and_crop, resize_to_cover, write_film_strip, write_video


SAMPLE_HISTORY = 8  # frames of the sample that are given; the rest is the truth
PICTURE_FPS = 12.0  # of an animated picture, which has no rate of its own


@contextmanager
def stopwatch(timings: dict[str, float], part: str):
    began = time.perf_counter()
    yield
    timings[part] = time.perf_counter() - began


def parse_lora(text: str) -> tuple[str, float]:
    """ "DIR:0.8" → ("DIR", 0.8), "DIR" → ("DIR", 1.0)."""
    source, _, weight = text.rpartition(":")
    try:
        return (source, float(weight)) if source else (text, 1.0)
    except ValueError:
        return text, 1.0


def load_loras(pipe: VideoGPTPipeline, loras: list[tuple[str, float]]) -> None:
    """Loads all of them and makes them active together."""
    names = [f"lora_{index}" for index in range(len(loras))]
    for name, (source, _) in zip(names, loras, strict=True):
        pipe.load_lora_weights(source, adapter_name=name)
    if loras:
        pipe.set_adapters(names, [weight for _, weight in loras])


def predict(args: argparse.Namespace) -> None:
    """Continues a video (or animates a picture), and writes an MP4 and a film strip."""
    if (args.height is None) != (args.width is None):
        raise ValueError("--height and --width go together.")
    source, num_history = args.video or args.image, args.num_history_frames
    if source is None:
        source = SAMPLE_VIDEO
        num_history = SAMPLE_HISTORY if num_history is None else num_history
    timings: dict[str, float] = {}

    with stopwatch(timings, "load the model"):
        pipe = VideoGPTPipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(args.device)
        load_loras(pipe, args.lora)
        pipe.set_progress_bar_config(disable=not sys.stderr.isatty())

    with stopwatch(timings, "read the video"):
        resize = partial(resize_and_crop, longest_side=pipe.config.longest_side)
        if args.height is not None:
            pipe.check_size(args.height, args.width)
            resize = partial(resize_to_cover, height=args.height, width=args.width)
        window = pipe.config.max_context_frames
        if num_history is None:
            video = read_video(source, fps=args.fps, max_frames=window, from_end=True, transform=resize)
            num_history = len(video.frames)
        else:
            num_read = None if args.num_frames is None else num_history + args.num_frames
            video = read_video(source, fps=args.fps, max_frames=num_read, min_frames=num_history, transform=resize)
        given, truth = video.frames[:num_history][-window:], video.frames[num_history:]
        num_frames = args.num_frames or len(truth) or 2 * pipe.config.frames_per_clip
        fps = args.fps or video.fps or PICTURE_FPS
    height, width = given.shape[1:3]
    print(
        f"{source}: {len(given)} frames given (the model looks back on {window} at most), {num_frames} to predict, "
        f"{width} × {height} at {fps:g} frames/s"
    )

    generator = torch.Generator("cpu").manual_seed(args.seed)
    with stopwatch(timings, "encode"):
        history = pipe.encode_given(video=given, height=height, width=width, generator=generator)
    with stopwatch(timings, "predict"):
        latents = pipe(
            video_latents=history,
            num_frames=num_frames,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            frames_per_clip=args.frames_per_clip,
            generator=generator,
            output_type="latent",
        ).frames
    with stopwatch(timings, "decode"):
        predicted = (pipe.decode_latents(latents, "np")[0] * 255).round().astype("uint8")
    with stopwatch(timings, "write"):
        stem = args.output / Path(source).stem
        video_path = write_video(stem.with_name(stem.name + "_prediction.mp4"), [*given, *predicted], fps=fps)
        rows = {"predicted": [*given, *predicted]}
        if len(truth):
            rows = {"truth": [*given, *truth], **rows}
        strip_path = write_film_strip(
            stem.with_name(stem.name + "_prediction.png"), rows, num_given=len(given), fps=fps
        )

    print(", ".join(f"{part} {seconds:.1f} s" for part, seconds in timings.items()))
    print(f"video: {video_path}\nfilm strip: {strip_path}")


def convert(args: argparse.Namespace) -> None:
    """The authors' checkpoint → a pipeline, or back."""
    if args.back:
        summary = convert_to_reference_checkpoint(args.input_dir, args.output_dir)
    else:
        summary = convert_reference_checkpoint(args.input_dir, args.output_dir, vae=args.vae)
    for key, value in summary.items():
        print(f"{key}: {value}")


def evaluate_world(args: argparse.Namespace) -> None:
    """Scores a model on unseen scenes of the simulated world, beside baselines."""
    from .evaluation.world_prediction import evaluate_world_prediction, format_table

    pipe = VideoGPTPipeline.from_pretrained(args.model).to(args.device)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    results = evaluate_world_prediction(
        pipe,
        num_scenes=args.num_scenes,
        frames_per_clip=args.frames_per_clip,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
    )
    print(format_table(results))
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({name: asdict(scores) for name, scores in results.items()}, indent=1))


def evaluate_videos(args: argparse.Namespace) -> None:
    """Scores a model on videos of a folder: some frames given, the rest predicted, errors beside those of repeating."""
    from .training.model_card import format_scores
    from .training.sampling import Sampling
    from .training.validation import validation_rollout
    from .training.videos import VideoTable

    pipe = VideoGPTPipeline.from_pretrained(args.model).to(args.device)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    sampling = Sampling(
        args.num_given + args.num_frames,
        frame_interval=(args.frame_interval, args.frame_interval),
        longest_side=pipe.config.longest_side,
        height=args.height,
        width=args.width,
    )
    table = VideoTable.from_folder(args.data, sampling, max_bad_fraction=1.0)
    print(f"{len(table)} videos; {table.dropped.summary()}{table.dropped.first()}")
    videos = [
        table.read(index, table.draw_window(index, draw, args.seed))
        for index in range(len(table))
        for draw in range(args.windows_per_video)
    ]
    scores = validation_rollout(
        pipe,
        videos,
        num_given=args.num_given,
        num_inference_steps=args.steps,
        fps=args.fps,
        frames_per_clip=args.frames_per_clip,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
        folder=args.output,
    )
    print(format_scores(scores))
    print(
        f"{scores.ratio_to_repeat:.2f} x the error of repeating the last given frame; videos and strips in {args.output}"
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="videogpt", description="Video-GPT: what happens next in a video.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser(
        "predict",
        help="continue a video, or animate a picture",
        description="Continues VIDEO, or the bundled sample, and writes an MP4 and a film strip.",
    )
    command.set_defaults(run=predict)
    source = command.add_mutually_exclusive_group()
    source.add_argument("video", nargs="?", type=Path, help="any video file; default: the bundled sample")
    source.add_argument("--image", type=Path, help="a picture to animate, instead of a video")
    command.add_argument(
        "--model", default=BUNDLED_MODEL, help="folder or Hub id of a pipeline; default: the bundled one"
    )
    command.add_argument(
        "--lora",
        action="append",
        default=[],
        type=parse_lora,
        metavar="SOURCE[:WEIGHT]",
        help="folder, file or Hub id of a LoRA and its weight (default: 1); give it several times to mix them",
    )
    command.add_argument(
        "--num-history-frames", type=int, help="give only the first N frames; the rest is shown as truth"
    )
    command.add_argument(
        "--num-frames", type=int, help="frames to predict; default: as many as the truth has, or two clips"
    )
    command.add_argument("--frames-per-clip", type=int, help="frames predicted in parallel; default: the model's own")
    command.add_argument("--guidance-scale", type=float, help="history guidance, 1 for none; default: the model's own")
    command.add_argument("--steps", type=int, default=25, help="denoising steps a clip (default: %(default)s)")
    command.add_argument(
        "--height", type=int, help="in pixels, divisible by 16; default: the video's, scaled to the model's"
    )
    command.add_argument("--width", type=int)
    command.add_argument("--fps", type=float, help="frames a second to read and write at; default: the video's own")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    command.add_argument("--output", type=Path, default=Path("videogpt_output"), help="folder (default: %(default)s)")

    command = commands.add_parser(
        "convert",
        help="the authors' checkpoint to a pipeline, or back",
        description="Converts the authors' checkpoint folder to a pipeline that from_pretrained loads, bit-exactly.",
    )
    command.set_defaults(run=convert)
    command.add_argument("input_dir", type=Path, help="the authors' folder; with --back, a converted pipeline")
    command.add_argument("output_dir", type=Path, help="a new folder")
    command.add_argument("--vae", type=Path, help="folder of the VAE to put into the pipeline")
    command.add_argument("--back", action="store_true", help="from a converted pipeline to the authors' format")

    command = commands.add_parser("evaluate", help="score a model")
    benchmarks = command.add_subparsers(dest="benchmark", required=True)
    command = benchmarks.add_parser(
        "world",
        help="unseen scenes of the simulated world",
        description="Continues unseen simulated scenes (8 frames given, 16 predicted) and prints errors beside baselines.",
    )
    command.set_defaults(run=evaluate_world)
    command.add_argument(
        "--model", default=BUNDLED_MODEL, help="folder or Hub id of a pipeline; default: the bundled one"
    )
    command.add_argument("--num-scenes", type=int, default=64)
    command.add_argument("--frames-per-clip", type=int, nargs="+", default=[8, 1], help="clip lengths to compare")
    command.add_argument("--guidance-scale", type=float, help="history guidance; default: the model's own")
    command.add_argument("--steps", type=int, default=25, help="denoising steps a clip (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the noise")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--output", type=Path, help="a JSON file for the full results")

    command = benchmarks.add_parser(
        "videos",
        help="the videos of a folder",
        description="Continues windows of your videos and prints errors by horizon beside those of repeating the last frame.",
    )
    command.set_defaults(run=evaluate_videos)
    command.add_argument("--data", type=Path, required=True, help="folder of videos")
    command.add_argument(
        "--model", default=BUNDLED_MODEL, help="folder or Hub id of a pipeline; default: the bundled one"
    )
    command.add_argument("--num-given", type=int, default=8, help="frames shown (default: %(default)s)")
    command.add_argument("--num-frames", type=int, default=8, help="frames predicted (default: %(default)s)")
    command.add_argument("--frame-interval", type=int, default=1, help="source frames from one to the next")
    command.add_argument("--windows-per-video", type=int, default=1)
    command.add_argument("--height", type=int, help="with --width: a fixed size; default: the model's longest side")
    command.add_argument("--width", type=int)
    command.add_argument("--frames-per-clip", type=int, help="frames predicted in parallel; default: the model's own")
    command.add_argument("--guidance-scale", type=float, help="history guidance; default: the model's own")
    command.add_argument("--steps", type=int, default=25, help="denoising steps a clip (default: %(default)s)")
    command.add_argument("--fps", type=float, default=8, help="of the written videos (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the windows and the noise")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument(
        "--output", type=Path, default=Path("videogpt_evaluation"), help="folder (default: %(default)s)"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"videogpt {args.command}: {error}")
