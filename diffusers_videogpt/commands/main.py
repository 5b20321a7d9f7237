"""`videogpt predict | demo | convert | export-hub | index | search | evaluate`: the package from the command line."""

import argparse
import re
import signal
import sys
import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import BUNDLED_MODEL, SAMPLE_VIDEO, __version__
from ..arguments import add_device_argument, check_output, positive_float, positive_int
from ..convert_checkpoint import convert_reference_checkpoint, convert_to_reference_checkpoint
from ..film_strips import write_film_strip
from ..pipeline_videogpt import VideoGPTPipeline
from ..scheduling_next_clip_flow_match import NextClipFlowMatchScheduler
from ..video_io import read_video, resize_and_crop, resize_to_cover, write_video
from .lora import add_lora_argument, load_loras


SAMPLE_HISTORY = 8  # frames of the sample that are given; the rest is the truth
PICTURE_FPS = 12.0  # of an animated picture and of what is made from nothing, which have no rate of their own

# Where an argument has another name in Python than on the command line.
OPTIONS = {"num_inference_steps": "--steps", "class_labels": "--class-label"}


@contextmanager
def stopwatch(timings: dict[str, float], part: str):
    began = time.perf_counter()
    yield
    timings[part] = time.perf_counter() - began


@contextmanager
def naming_the_size(height: int, width: int, num_frames: int, device: str) -> Iterator[None]:
    """Where memory does not suffice, says for what, and what needs less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        is_full = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not is_full:
            raise
        raise ValueError(
            f"{num_frames} frames of {width} × {height} need more memory than {device} has: give a smaller --height and "
            "--width, or fewer --frames-per-clip or --max-context-frames."
        ) from error


def parse_source(text: str) -> Path:
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text):
        raise argparse.ArgumentTypeError(f"URLs are not read: download {text} first, and give the file")
    return Path(text)


def get_conditions(args: argparse.Namespace, pipe: VideoGPTPipeline) -> dict[str, Any]:
    """What is asked for, as arguments of the pipeline.

    Raises:
        ValueError: the model was not trained on it, or there is no such class.
    """
    if args.negative_prompt is not None and args.prompt is None:
        raise ValueError("--negative-prompt needs --prompt, which may be ''.")
    for option, value, size, what in (
        ("--class-label", args.class_label, "num_classes", "classes"),
        ("--prompt", args.prompt, "text_embed_dim", "text"),
    ):
        if value is not None and pipe.transformer.config[size] is None:
            raise ValueError(f"{option}: the model in {args.model} was not trained on {what}.")
    label = args.class_label
    if label is not None:
        label = int(label) if label.isdecimal() and label not in pipe.labels else label
        pipe.get_label_ids(label)  # refuses what the model does not know
    return {
        "class_labels": label,
        "prompt": args.prompt,
        "negative_prompt": args.negative_prompt,
        "condition_guidance_scale": args.condition_guidance_scale,
    }


def predict(args: argparse.Namespace) -> None:
    """Continues a video, animates a picture or makes a video from nothing, and writes an MP4 and a film strip."""
    if (args.height is None) != (args.width is None):
        raise ValueError("--height and --width go together.")
    source, num_history = args.video or args.image, args.num_history_frames
    from_nothing = source is None and (args.prompt is not None or args.class_label is not None)
    if from_nothing and num_history is not None:
        raise ValueError("--num-history-frames needs a video: without one, it is made from nothing.")
    if source is None and not from_nothing:
        source = SAMPLE_VIDEO
        num_history = SAMPLE_HISTORY if num_history is None else num_history
    check_output(args.output)
    timings: dict[str, float] = {}

    with stopwatch(timings, "load the model"):
        pipe = VideoGPTPipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(args.device)
        load_loras(pipe, args.lora)
        if args.solver is not None:
            pipe.scheduler = NextClipFlowMatchScheduler.from_config(pipe.scheduler.config, solver=args.solver)
        pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    conditions = get_conditions(args, pipe)
    pipe.check_size(args.height, args.width)
    window = args.max_context_frames or pipe.config.max_context_frames
    frames_per_clip = args.frames_per_clip or pipe.config.frames_per_clip

    if from_nothing:
        height, width = pipe.frame_size(None, args.height, args.width)
        given = truth = np.empty((0, height, width, 3), np.uint8)
        fps, start, num_frames = args.fps or PICTURE_FPS, 0.0, args.num_frames or frames_per_clip
        asked = " and ".join(repr(x) for x in (args.class_label, args.prompt) if x is not None)
        print(f"{asked}: {num_frames} frames to make from nothing, {width} × {height} at {fps:g} frames/s")
    else:
        sizes = []

        def resize(frame: np.ndarray) -> np.ndarray:
            sizes.append((frame.shape[1], frame.shape[0]))
            if args.height is None:
                return resize_and_crop(frame, longest_side=pipe.config.longest_side)
            return resize_to_cover(frame, height=args.height, width=args.width)

        with stopwatch(timings, "read the video"):
            read = partial(read_video, source, fps=args.fps, transform=resize)
            if num_history is None:
                video = read(max_frames=window, from_end=True)
                num_history = len(video.frames)
            else:
                video = read(max_frames=None if args.num_frames is None else num_history + args.num_frames)
            if len(video.frames) < num_history:
                raise ValueError(
                    f"{source} has {len(video.frames)} frames{f' at --fps {args.fps:g}' if args.fps else ''}, fewer than "
                    f"--num-history-frames {num_history}: give a longer video, or ask for fewer."
                )
        first = max(num_history - window, 0)
        given, truth = video.frames[first:num_history], video.frames[num_history:]
        start, num_frames = video.timestamps[first], args.num_frames or len(truth) or 2 * frames_per_clip
        fps = args.fps or video.fps or PICTURE_FPS
        height, width = given.shape[1:3]
        which = f"only those from {start:.2f} s on: " if start > 0 else ""
        print(
            f"{source}: {len(given)} frames given ({which}the model looks back on {window} at most), {num_frames} to "
            f"predict, {width} × {height} at {fps:g} frames/s"
        )
        if sizes[0] != (width, height):
            print(f"frames of {sizes[0][0]} × {sizes[0][1]} are scaled and cut to {width} × {height}")

    generator = torch.Generator("cpu").manual_seed(args.seed)
    with naming_the_size(height, width, len(given) + num_frames, args.device):
        history = None
        if len(given):
            with stopwatch(timings, "encode"):
                history = pipe.encode_given(
                    video=given, height=height, width=width, max_context_frames=window, generator=generator
                )
        with stopwatch(timings, "predict"):
            latents = pipe(
                video_latents=history,
                num_frames=num_frames,
                height=height,
                width=width,
                num_inference_steps=args.steps,
                guidance_scale=args.guidance_scale,
                frames_per_clip=args.frames_per_clip,
                max_context_frames=window,
                generator=generator,
                output_type="latent",
                **conditions,
            ).frames
        with stopwatch(timings, "decode"):
            predicted = (pipe.decode_latents(latents, "np")[0] * 255).round().astype("uint8")
    with stopwatch(timings, "write"):
        name = "made" if from_nothing else f"{Path(source).stem}_prediction"
        video_path = write_video(args.output / f"{name}.mp4", [*given, *predicted], fps=fps)
        rows = {"made" if from_nothing else "predicted": [*given, *predicted]}
        if len(truth):
            rows = {"truth": [*given, *truth], **rows}
        strip_path = write_film_strip(args.output / f"{name}.png", rows, num_given=len(given), fps=fps, start=start)

    print(", ".join(f"{part} {seconds:.1f} s" for part, seconds in timings.items()))
    print(f"video: {video_path}\nfilm strip: {strip_path}")


def convert(args: argparse.Namespace) -> None:
    """The authors' checkpoint → a pipeline, or back."""
    check_output(args.output_dir, "OUTPUT_DIR")
    if args.back:
        summary = convert_to_reference_checkpoint(args.input_dir, args.output_dir)
    else:
        summary = convert_reference_checkpoint(args.input_dir, args.output_dir, vae=args.vae)
    for key, value in summary.items():
        print(f"{key}: {value}")


def export_hub(args: argparse.Namespace) -> None:
    """A folder to upload: a pipeline, LoRA, classifier, retriever or cached latents, with the page."""
    from ..hub import export_to_hub_folder, push_to_hub

    if args.push and args.repo_id is None:
        raise ValueError("--push needs --repo-id: where to.")
    check_output(args.output_dir, "OUTPUT_DIR")
    folder = export_to_hub_folder(
        args.source,
        args.output_dir,
        repo_id=args.repo_id,
        license=args.license,
        base_model=args.base_model,
        video=args.video,
    )
    print(push_to_hub(folder, args.repo_id, private=args.private or None) if args.push else f"ready: {folder}")


def index(args: argparse.Namespace) -> None:
    """Makes a folder of videos searchable by text, or adds what is new in it."""
    from ..tasks.video_index import build_index

    check_output(args.output)
    report = build_index(args.folder, args.model, args.output, args.device)
    left_out = f"{report.dropped.summary()}{report.dropped.first(20)}"
    print(f"{report.num_videos} videos in {args.output}, {report.num_kept} of them from before; {left_out}")


def search(args: argparse.Namespace) -> None:
    """Prints the videos of an index that fit a text best."""
    from ..tasks.video_index import search_index

    for hit in search_index(args.index, args.text, args.top, args.model, args.device):
        note = "" if hit.is_current else "  (changed since: run `videogpt index` again)"
        print(f"{hit.score:6.3f}  {hit.path}{note}")


def demo(args: argparse.Namespace) -> None:
    """Serves a page to try a model on, until Ctrl+C."""
    from .demo import running_page
    from .demo_rollout import Limits

    pipe = VideoGPTPipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(args.device)
    load_loras(pipe, args.lora)
    pipe.set_progress_bar_config(disable=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as by Ctrl+C: visitors' files are deleted
    with running_page(pipe, Limits(args.max_upload_mb, args.max_seconds), args.host, args.port) as url:
        print(f"open {url} in a browser; Ctrl+C ends it", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def make_parser() -> argparse.ArgumentParser:
    from .evaluate import add_benchmarks

    parser = argparse.ArgumentParser(prog="videogpt", description="Video-GPT: what happens next in a video.")
    parser.add_argument("--version", action="version", version=f"videogpt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser(
        "predict",
        help="continue a video, animate a picture, or make a video of a class or text",
        description="Continues VIDEO, or the bundled sample, and writes an MP4 and a film strip. A model that was trained on "
        "classes or text also makes a video from nothing: give --class-label or --prompt, and no VIDEO.",
    )
    command.set_defaults(run=predict)
    source = command.add_mutually_exclusive_group()
    source.add_argument("video", nargs="?", type=parse_source, help="any video file; default: the bundled sample")
    source.add_argument("--image", type=parse_source, help="a picture to animate, instead of a video")
    command.add_argument(
        "--model", default=BUNDLED_MODEL, help="folder or Hub id of a pipeline; default: the bundled one"
    )
    add_lora_argument(command)
    command.add_argument(
        "--num-history-frames", type=positive_int, help="give only the first N frames; the rest is shown as truth"
    )
    command.add_argument(
        "--num-frames",
        type=positive_int,
        help="frames to predict; default: as many as the truth has, or two clips, or from nothing one",
    )
    command.add_argument(
        "--frames-per-clip", type=positive_int, help="frames predicted in parallel; default: the model's own"
    )
    command.add_argument(
        "--max-context-frames", type=positive_int, help="the most frames looked back on; default: the model's own"
    )
    command.add_argument("--guidance-scale", type=float, help="history guidance, 1 for none; default: the model's own")
    command.add_argument("--class-label", metavar="NAME_OR_NUMBER", help="of a model that was trained on classes")
    command.add_argument("--prompt", help="what the video shows, of a model that was trained on text")
    command.add_argument("--negative-prompt", help="what it should not show (default: the empty text)")
    command.add_argument(
        "--condition-guidance-scale",
        type=float,
        help="guidance by class and text, 1 for none; default: the model's own",
    )
    command.add_argument(
        "--steps", type=positive_int, default=25, help="denoising steps a clip (default: %(default)s)"
    )
    command.add_argument("--solver", choices=["euler", "multistep"], help="default: the model's own")
    command.add_argument(
        "--height",
        type=positive_int,
        help="in pixels, divisible by 16; default: the video's, scaled to the model's, or the model's longest side",
    )
    command.add_argument("--width", type=positive_int)
    command.add_argument(
        "--fps", type=positive_float, help="frames a second to read and write at; default: the video's own, or 12"
    )
    command.add_argument("--seed", type=int, default=0)
    add_device_argument(command)
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

    command = commands.add_parser(
        "export-hub",
        help="a folder to upload to the Hub, with its page",
        description="Makes a folder of what belongs on the Hub: weights, configs, a page, and what loading from there needs.",
    )
    command.set_defaults(run=export_hub)
    command.add_argument(
        "source", type=Path, help="folder of a saved pipeline, LoRA, classifier, retriever, or cached latents"
    )
    command.add_argument("output_dir", type=Path, help="a new folder")
    command.add_argument("--repo-id", help="where it will be found, as user/name")
    command.add_argument("--license", help="of the weights, as the Hub abbreviates it")
    command.add_argument(
        "--base-model", help="id on the Hub of what it was trained from; a LoRA of a local base needs it"
    )
    command.add_argument("--video", type=Path, help="an MP4 that the model made, for its page")
    command.add_argument("--push", action="store_true", help="upload it to --repo-id too")
    command.add_argument("--private", action="store_true", help="if the repository is made now")

    command = commands.add_parser(
        "index",
        help="make a folder of videos searchable by text",
        description="Computes a vector of each video of FOLDER, also in folders below it. Called again, it adds what is new.",
    )
    command.set_defaults(run=index)
    command.add_argument("folder", type=Path)
    command.add_argument("--model", required=True, help="folder or Hub id of a retriever, of train_retrieval.py")
    command.add_argument(
        "--output",
        type=Path,
        default=Path("videogpt_index"),
        help="a new folder, or the index so far (default: %(default)s)",
    )
    add_device_argument(command)

    command = commands.add_parser("search", help="find videos by what they show, in an index")
    command.set_defaults(run=search)
    command.add_argument("index", type=Path, help="that `videogpt index` made")
    command.add_argument("text", help='what the videos show, as in "two red balls fall"')
    command.add_argument("--top", type=positive_int, default=5, help="videos listed (default: %(default)s)")
    command.add_argument("--model", help="where the index's model is now, if it was moved")
    add_device_argument(command)

    command = commands.add_parser(
        "demo",
        help="a page in the browser to try it",
        description='Serves a page on this machine: upload a video or picture, watch what is predicted. Needs Gradio: pip install ".[demo]" in the repository.',
    )
    command.set_defaults(run=demo)
    command.add_argument(
        "--model", default=BUNDLED_MODEL, help="folder or Hub id of a pipeline; default: the bundled one"
    )
    add_lora_argument(command)
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="whom to listen to (default: %(default)s, this machine alone; 0.0.0.0 is everyone who can reach it)",
    )
    command.add_argument("--port", type=int, help="default: the first free one from 7860")
    command.add_argument("--max-upload-mb", type=positive_int, default=100, help="of a file (default: %(default)s)")
    command.add_argument("--max-seconds", type=positive_float, default=120, help="of a video (default: %(default)s)")
    add_device_argument(command)
    command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")

    command = commands.add_parser("evaluate", help="score a model")
    add_benchmarks(command.add_subparsers(dest="benchmark", required=True))
    return parser


def with_options(message: str, known: Container[str]) -> str:
    """A message that names arguments as Python does, `num_frames` or num_frames=0, with the command's options instead."""

    def option(match: re.Match) -> str:
        name = match[1] or match[2]
        if name in OPTIONS:
            return OPTIONS[name]
        # VIDEO is an option of one command and the first word of another.
        return f"--{name.replace('_', '-')}" if name in known and name != "video" else match[0]

    return re.sub(r"`(\w+)`|\b([a-z_]+)(?==[\d-])", option, message)


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"videogpt {args.command}: {with_options(str(error), vars(args))}")


if __name__ == "__main__":
    main()
