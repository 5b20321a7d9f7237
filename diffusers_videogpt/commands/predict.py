"""`videogpt predict`: continues a video, animates a picture or makes a video from nothing."""

import argparse
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import SAMPLE_VIDEO
from ..arguments import check_output, finite_float, number_of_frames, positive_int
from ..config_values import SOLVERS
from ..console import progress_options, say
from .loras import differences, follow_lora
from .models import SavedModel, check_loras, load_pipeline, look_at_model, note_on_training, refuse_missing
from .options import (
    add_command,
    add_device_argument,
    add_dtype_argument,
    add_frames_per_clip_argument,
    add_lora_argument,
    add_model_argument,
    add_output_argument,
    add_seed_argument,
    add_steps_argument,
    parse_rate,
    parse_source,
    rollout_options,
)
from .outputs import (
    check_scale,
    check_written_rate,
    enlarge,
    is_video_file,
    output_paths,
    scale_to_show,
)


SAMPLE_HISTORY = 8  # frames of the sample that are given; the rest is the truth
MOST_FRAMES = 240  # predicted where --num-frames does not say how many: a film's truth may have thousands
PICTURE_FPS = 12.0  # of an animated picture and of what is made from nothing, which have no rate of their own


@dataclass(frozen=True)
class Given:
    """What a prediction begins with: `frames` (F, H, W, 3) that are given, the `truth` that follows, if it is known."""

    frames: np.ndarray
    truth: np.ndarray
    fps: float
    start: float
    num_predicted: int
    about: list[str]  # lines to print


@contextmanager
def stopwatch(timings: dict[str, float], part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[part] = time.perf_counter() - began


@contextmanager
def naming_the_size(height: int, width: int, *, num_frames: int, device: str) -> Iterator[None]:
    """Where memory does not suffice, says for what, and what needs less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        is_full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if not is_full and "can't allocate memory" not in str(error):
            raise
        raise ValueError(
            f"{num_frames} frames of {width} × {height} need more memory than {device} has: give a smaller --height and "
            "--width, or fewer --frames-per-clip or --max-context-frames."
        ) from error


def read_conditions(args: argparse.Namespace, saved: SavedModel) -> dict[str, Any]:
    """What is asked for, as arguments of the pipeline.

    Raises:
        ValueError: the model was not trained on it, or there is no such class.
    """
    if args.negative_prompt is not None and args.prompt is None:
        raise ValueError("--negative-prompt needs --prompt, which may be ''.")
    if args.prompt is not None:
        saved.check_text()
    if args.condition_guidance_scale is not None and args.prompt is None and args.class_label is None:
        raise ValueError("--condition-guidance-scale needs --class-label or --prompt, which it is the guidance by.")
    return {
        "class_labels": None if args.class_label is None else saved.read_class(args.class_label),
        "prompt": args.prompt,
        "negative_prompt": args.negative_prompt,
        "condition_guidance_scale": args.condition_guidance_scale,
    }


def from_nothing(args: argparse.Namespace, saved: SavedModel) -> Given:
    multiple = saved.size_multiple
    side = max(saved.number("longest_side") // multiple, 1) * multiple
    frames = np.empty((0, args.height or side, args.width or side, 3), np.uint8)
    fps = args.fps or PICTURE_FPS
    num_frames = args.num_frames or args.frames_per_clip or saved.number("frames_per_clip")
    asked = " and ".join(repr(x) for x in (args.class_label, args.prompt) if x is not None)
    height, width = frames.shape[1:3]
    about = f"{asked}: {num_frames} frames to make from nothing, {width} × {height} at {fps:g} frames/s"
    return Given(frames, frames, fps, 0.0, num_frames, [about])


def frames_to_predict(config: Mapping[str, Any], num_given: int, *, clip_length: int) -> int:
    """How many frames follow where nobody says: to the length of what the pipeline was trained on, two clips at least."""
    return max(((config.get("trained_with") or {}).get("num_frames") or 0) - num_given, 2 * clip_length)


def read_given(args: argparse.Namespace, saved: SavedModel, *, source: Path, num_history: int | None) -> Given:
    """Reads the video at the model's size: the frames that fit into its window, and the truth behind them.

    Args:
        num_history: frames that are given, from the first on; by default the last that fit.

    Raises:
        ValueError: it can't be read, or is shorter than `num_history`.
    """
    from ..video_io import probe_video, read_video, resize_and_crop, resize_to_cover

    window = args.max_context_frames or saved.number("max_context_frames")
    sizes = []

    def resize(frame: np.ndarray) -> np.ndarray:
        sizes.append((frame.shape[1], frame.shape[0]))
        if args.height is None:
            return resize_and_crop(frame, longest_side=saved.number("longest_side"), multiple=saved.size_multiple)
        return resize_to_cover(frame, height=args.height, width=args.width)

    read = partial(read_video, source, fps=args.fps, transform=resize)
    if num_history is None:
        video = read(max_frames=window, from_end=True)
        num_history = len(video.frames)
    else:
        video = read(max_frames=num_history + (args.num_frames or MOST_FRAMES))
    if len(video.frames) < num_history:
        found = f"{source} has {len(video.frames)} frames{f' at --fps {args.fps:g}' if args.fps else ''}"
        if args.num_history_frames is None:  # they are the sample's, whose rate alone can have been asked for
            raise ValueError(
                f"{found}, and the first {num_history} are given: ask for a higher --fps, or for fewer by --num-history-frames."
            )
        raise ValueError(
            f"{found}, fewer than --num-history-frames {num_history}: give a longer video, or ask for fewer."
        )
    first = max(num_history - window, 0)
    frames, truth = video.frames[first:num_history], video.frames[num_history:]
    start, fps = video.timestamps[first], args.fps or video.fps or PICTURE_FPS
    clip_length = args.frames_per_clip or saved.number("frames_per_clip")
    num_frames = args.num_frames or len(truth) or frames_to_predict(saved.index, len(frames), clip_length=clip_length)
    height, width = frames.shape[1:3]
    which = f"only those from {start:.2f} s on: " if start > 0 else ""
    about = [
        f"{source}: {len(frames)} frames given ({which}the model looks back on {window} at most), {num_frames} to "
        f"predict, {width} × {height} at {fps:g} frames/s"
    ]
    if args.num_frames is None and len(truth) == MOST_FRAMES:
        about.append(f"without --num-frames, no more than {MOST_FRAMES} frames of what follows are predicted")
    if args.fps is not None and (times := probe_video(source).timestamps).size > 1:
        rate = (times.size - 1) / times[-1]
        if args.fps > 1.01 * rate:
            about.append(
                f"note: --fps {args.fps:g} is above the video's own {rate:.3g} frames/s: frames are given several times, as no "
                "video that the model knows has them."
            )
    if sizes[0] != (width, height):
        about.append(f"frames of {sizes[0][0]} × {sizes[0][1]} are scaled and cut to {width} × {height}")
    return Given(frames, truth, fps, start, num_frames, about)


def predict(args: argparse.Namespace) -> None:
    """Continues VIDEO, or the bundled sample, and writes an MP4 and a film strip. A model that was trained on classes
    or text also makes a video from nothing: give --class-label or --prompt, and no VIDEO."""
    source, num_history = args.video or args.image, args.num_history_frames
    is_from_nothing = source is None and (args.prompt is not None or args.class_label is not None)
    if is_from_nothing and num_history is not None:
        raise ValueError("--num-history-frames needs a video: without one, it is made from nothing.")
    is_sample = source is None and not is_from_nothing
    if is_sample:
        source = Path(SAMPLE_VIDEO)
        num_history = SAMPLE_HISTORY if num_history is None else num_history
    check_output(args.output.parent if is_video_file(args.output) else args.output)
    refuse_missing(source, "--image" if args.image else "video")
    if source is not None and args.output.is_file() and args.output.samefile(source):
        raise ValueError(
            f"--output {args.output} is the video that is given, which it would replace: name another file."
        )
    saved = look_at_model(args.model)
    saved.check_size(args.height, args.width)
    conditions = read_conditions(args, saved)
    trained_with = check_loras(args.lora)
    saved = follow_lora(args, saved, trained_with=trained_with)
    if args.solver is not None:
        saved = replace(saved, settings=saved.settings | {"solver": args.solver})
    if trained_with and args.num_frames is None and args.num_history_frames is None:
        first = trained_with[0]
        if str(first.get("clips", "")).startswith("first:"):  # it predicts one clip
            args.num_frames = first.get("frames_per_clip")
    saved.check_size(args.height, args.width)
    timings: dict[str, float] = {}
    if is_from_nothing:
        given = from_nothing(args, saved)
    else:
        with stopwatch(timings, "read the video"):
            given = read_given(args, saved, source=source, num_history=num_history)
    check_written_rate(args.output, given.fps)
    height, width = given.frames.shape[1:3]
    saved.check_fits(height, width)
    scale = args.scale or scale_to_show(height, width)
    check_scale(scale, len(given.frames) + given.num_predicted, height=height, width=width)
    say(*given.about, *differences(args, saved, trained_with=trained_with))
    if not is_sample and not is_from_nothing and (note := note_on_training(saved, args.lora)):
        say(note)

    with stopwatch(timings, "load the model"):
        unused = ("scipy",) if args.lora or saved.needs_transformers else ("scipy", "peft", "transformers")
        pipe = load_pipeline(saved, device=args.device, dtype=args.dtype, loras=args.lora, unused=unused)
        pipe.set_progress_bar_config(**progress_options())
    predicted = roll_out(args, pipe, given=given, conditions=conditions, timings=timings)
    with stopwatch(timings, "write"):
        paths = write(args, source, given=given, predicted=predicted, scale=scale, is_from_nothing=is_from_nothing)
    say(", ".join(f"{part} {seconds:.1f} s" for part, seconds in timings.items()), *paths)


def roll_out(
    args: argparse.Namespace, pipe, *, given: Given, conditions: dict, timings: dict[str, float]
) -> np.ndarray:
    """The predicted frames, `uint8` (F, H, W, 3)."""
    import torch

    from ..video_io import to_uint8_frames

    generator = torch.Generator("cpu").manual_seed(args.seed)
    height, width = given.frames.shape[1:3]
    window = args.max_context_frames or pipe.config.max_context_frames
    with naming_the_size(height, width, num_frames=len(given.frames) + given.num_predicted, device=str(pipe.device)):
        history = None
        if len(given.frames):
            with stopwatch(timings, "encode"):
                history = pipe.encode_given(
                    video=given.frames, height=height, width=width, max_context_frames=window, generator=generator
                )
        with stopwatch(timings, "predict"):
            latents = pipe(
                video_latents=history,
                num_frames=given.num_predicted,
                height=height,
                width=width,
                **rollout_options(args, pipe),
                max_context_frames=window,
                generator=generator,
                output_type="latent",
                **conditions,
            ).frames
        with stopwatch(timings, "decode"):
            return to_uint8_frames(pipe.decode_latents(latents, "np")[0])


def write(
    args: argparse.Namespace,
    source: Path | None,
    *,
    given: Given,
    predicted: np.ndarray,
    scale: int,
    is_from_nothing: bool,
) -> list[str]:
    """Writes the video, enlarged `scale` times, and the film strip; returns lines that say where."""
    from ..film_strips import write_film_strip
    from ..video_io import write_video

    label = "made" if is_from_nothing else "predicted"
    name = "made" if is_from_nothing else f"{source.stem}_prediction"
    video_path, strip_path = output_paths(args.output, name)
    replaced = " (in the place of the one that was there)" if video_path.exists() else ""
    height, width = predicted.shape[1:3]
    frames = np.concatenate([given.frames, predicted])
    write_video(video_path, enlarge(frames, scale), fps=given.fps)
    rows = {label: frames}
    if len(given.truth):
        rows = {"truth": np.concatenate([given.frames, given.truth]), **rows}
    write_film_strip(strip_path, rows, num_given=len(given.frames), fps=given.fps, start=given.start)
    size = f", enlarged {scale} times to {scale * width} × {scale * height}" if scale > 1 else ""
    return [f"video: {video_path}{size}{replaced}", f"film strip: {strip_path}"]


def add_predict_command(commands) -> None:
    command = add_command(
        commands,
        "predict",
        run=predict,
        help="continue a video, animate a picture, or make a video of a class or text",
    )
    source = command.add_mutually_exclusive_group()
    source.add_argument("video", nargs="?", type=parse_source, help="any video file; default: the bundled sample")
    source.add_argument("--image", type=parse_source, help="a picture to animate, instead of a video")
    add_model_argument(command)
    add_lora_argument(command)
    command.add_argument(
        "--num-history-frames", type=number_of_frames, help="give only the first N frames; the rest is shown as truth"
    )
    command.add_argument(
        "--num-frames",
        type=number_of_frames,
        help="frames to predict; default: as many as the truth has, or to the length that was trained on, or two clips; from nothing one clip",
    )
    add_frames_per_clip_argument(command)
    command.add_argument(
        "--max-context-frames", type=number_of_frames, help="the most frames looked back on; default: the model's own"
    )
    command.add_argument(
        "--guidance-scale", type=finite_float, help="history guidance, 1 for none; default: the model's own"
    )
    command.add_argument("--class-label", metavar="NAME_OR_NUMBER", help="of a model that was trained on classes")
    command.add_argument("--prompt", help="what the video shows, of a model that was trained on text")
    command.add_argument("--negative-prompt", help="what it should not show (default: the empty text)")
    command.add_argument(
        "--condition-guidance-scale",
        type=finite_float,
        help="guidance by class and text, 1 for none; default: the model's own",
    )
    add_steps_argument(command)
    command.add_argument("--solver", choices=SOLVERS, help="default: the model's own")
    command.add_argument(
        "--height",
        type=positive_int,
        help="in pixels, divisible by 16; default: the video's, scaled to the model's, or the model's longest side",
    )
    command.add_argument("--width", type=positive_int)
    command.add_argument(
        "--fps", type=parse_rate, help="frames a second to read and write at; default: the video's own, or 12"
    )
    add_seed_argument(command)
    add_device_argument(command)
    add_dtype_argument(command)
    command.add_argument(
        "--scale",
        type=positive_int,
        metavar="N",
        help="write each pixel as N x N; default: small frames up to 256 pixels; 1 for the raw size",
    )
    add_output_argument(command, "videogpt_output", help="folder, or a file that ends in .mp4, .webm or .gif")
