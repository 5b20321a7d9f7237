"""`videogpt predict | demo | convert | export-hub | index | search | evaluate`: the package from the command line."""

import argparse
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch

from . import BUNDLED_MODEL, SAMPLE_VIDEO
from .convert_checkpoint import convert_reference_checkpoint, convert_to_reference_checkpoint
from .lora_arguments import add_lora_argument, load_loras
from .pipeline_videogpt import VideoGPTPipeline
from .video_io import read_video, resize_and_crop, resize_to_cover, write_film_strip, write_video


SAMPLE_HISTORY = 8  # frames of the sample that are given; the rest is the truth
PICTURE_FPS = 12.0  # of an animated picture, which has no rate of its own


@contextmanager
def stopwatch(timings: dict[str, float], part: str):
    began = time.perf_counter()
    yield
    timings[part] = time.perf_counter() - began


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


def export_hub(args: argparse.Namespace) -> None:
    """A folder to upload: a pipeline, LoRA, classifier, retriever or cached latents, with the page."""
    from .hub import export_to_hub_folder, push_to_hub

    if args.push and args.repo_id is None:
        raise ValueError("--push needs --repo-id: where to.")
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
    from .tasks.video_index import build_index

    report = build_index(args.folder, args.model, args.output, args.device)
    left_out = f"{report.dropped.summary()}{report.dropped.first(20)}"
    print(f"{report.num_videos} videos in {args.output}, {report.num_kept} of them from before; {left_out}")


def search(args: argparse.Namespace) -> None:
    """Prints the videos of an index that fit a text best."""
    from .tasks.video_index import search_index

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


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    from .evaluation.commands import add_benchmarks

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
    add_lora_argument(command)
    command.add_argument(
        "--num-history-frames", type=_positive, help="give only the first N frames; the rest is shown as truth"
    )
    command.add_argument(
        "--num-frames", type=_positive, help="frames to predict; default: as many as the truth has, or two clips"
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

    command = commands.add_parser(
        "export-hub",
        help="a folder to upload to the Hub, with its page",
        description="Makes a folder of what belongs on the Hub: weights, configs, a page, and what loading from there needs.",
    )
    command.set_defaults(run=export_hub)
    command.add_argument("source", type=Path, help="folder of a saved pipeline, a LoRA, or cached latents")
    command.add_argument("output_dir", type=Path, help="a new folder")
    command.add_argument("--repo-id", help="where it will be found, as user/name")
    command.add_argument("--license", help="of the weights, as the Hub abbreviates it")
    command.add_argument("--base-model", help="id on the Hub of what it was trained from; a LoRA needs it")
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
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")

    command = commands.add_parser("search", help="find videos by what they show, in an index")
    command.set_defaults(run=search)
    command.add_argument("index", type=Path, help="that `videogpt index` made")
    command.add_argument("text", help='what the videos show, as in "two red balls fall"')
    command.add_argument("--top", type=int, default=5, help="videos listed (default: %(default)s)")
    command.add_argument("--model", help="where the index's model is now, if it was moved")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")

    command = commands.add_parser(
        "demo",
        help="a page in the browser to try it",
        description='Serves a page on this machine: upload a video or picture, watch what is predicted. Needs Gradio: pip install "diffusers-videogpt[demo]".',
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
    command.add_argument("--max-upload-mb", type=int, default=100, help="of a file (default: %(default)s)")
    command.add_argument("--max-seconds", type=float, default=120, help="of a video (default: %(default)s)")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")

    command = commands.add_parser("evaluate", help="score a model")
    add_benchmarks(command.add_subparsers(dest="benchmark", required=True))
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"videogpt {args.command}: {error}")
