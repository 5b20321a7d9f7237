"""What a model in training predicts of held-out videos: as numbers, as pictures, and in the tracker.

Shapes: F given frames, N predicted frames, H × W pixels.
"""

import csv
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from ..files import write_json
from ..film_strips import side_by_side, write_film_strip
from ..metrics.rollout_scores import RolloutScores, mse_by_frame, psnr_of
from ..pipeline_videogpt import VideoGPTPipeline
from ..video_io import to_uint8_frames, write_video


def predict_continuation(
    pipe: VideoGPTPipeline,
    video: np.ndarray,
    *,
    num_given: int,
    num_inference_steps: int,
    generator: torch.Generator,
    frames_per_clip: int | None = None,
    guidance_scale: float | None = None,
    actions: np.ndarray | None = None,
) -> np.ndarray:
    """What follows the first frames of a video, uint8 (N, H, W, 3).

    Args:
        video: uint8 (F + N, H, W, 3).
        num_given: F.
        num_inference_steps, generator, frames_per_clip, guidance_scale: as in the pipeline's call.
        actions: what led to all F + N frames, as in the pipeline's call.
    """
    predicted = pipe(
        video=video[:num_given],
        num_frames=len(video) - num_given,
        height=video.shape[1],
        width=video.shape[2],
        frames_per_clip=frames_per_clip,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        history_actions=None if actions is None else actions[:num_given],
        actions=None if actions is None else actions[num_given:],
        generator=generator,
        output_type="np",
    ).frames[0]
    return to_uint8_frames(predicted)


def validation_rollout(
    pipe: VideoGPTPipeline,
    videos: Iterable[np.ndarray],
    *,
    num_given: int,
    num_inference_steps: int,
    fps: float,
    frames_per_clip: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    measures: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] | None = None,
    beside: Mapping[str, Sequence[np.ndarray]] | None = None,
    actions: Iterable[np.ndarray] | None = None,
) -> RolloutScores:
    """Continues each video after its first frames and compares with what really followed.

    Draws from generators of its own, so the training's random numbers are the same with and without it. Under FSDP every
    process must call it, and only one gives a `folder`.

    Args:
        videos: each uint8 (F + N, H, W, 3), H and W divisible by 16, taken one after the other. Sizes may differ, lengths
            may not.
        num_given: F.
        num_inference_steps, frames_per_clip, guidance_scale: as in the pipeline's call.
        fps: of the written videos.
        seed: video i is predicted with `seed` + i.
        folder: gets `i.mp4` (left the truth, right the given frames and the prediction; the bar above is blue while frames
            are given, orange after that) and `i.png` (a film strip) for every video, and at the end `scores.json`.
            Without it nothing is written.
        actions: what led to the frames of each video, (F + N,) or (F + N, D), as the pipeline's call takes them.
        measures: further ways to compare frames with the truth: two of uint8 (N, H, W, 3) → (N,).
        beside: name → what others predict of each of the videos, uint8 (N, H, W, 3): shown and scored beside it.

    Raises:
        ValueError: if there is no video, or lengths differ, or nothing is left to predict.
    """
    was_training = pipe.transformer.training
    pipe.transformer.eval()
    compare = {"mse": mse_by_frame, **(measures or {})}
    by_frame = {name: {"predicted": [], "repeat": [], "autoencoder": []} for name in compare}
    num_frames = None
    told = itertools.repeat(None) if actions is None else iter(actions)
    for index, video in enumerate(videos):
        done = next(told)
        num_frames = num_frames or len(video)
        num_predicted = num_frames - num_given
        if len(video) != num_frames:
            raise ValueError(
                f"Validation videos must be equally long, got {num_frames} and {len(video)} frames: cut them alike."
            )
        if num_given < 1 or num_predicted < 1:
            raise ValueError(
                f"`num_given`={num_given} of {num_frames} frames leaves {num_predicted} to predict: give 1 to {num_frames - 1}."
            )
        given, truth = video[:num_given], video[num_given:]
        generator = torch.Generator().manual_seed(seed + index)
        size = {"height": video.shape[1], "width": video.shape[2]}
        predicted = predict_continuation(
            pipe,
            video,
            num_given=num_given,
            num_inference_steps=num_inference_steps,
            actions=done,
            generator=generator,
            frames_per_clip=frames_per_clip,
            guidance_scale=guidance_scale,
        )
        others = {name: frames[index] for name, frames in (beside or {}).items()}
        latents = pipe.encode_given(video=truth, max_context_frames=num_predicted, generator=generator, **size)
        decoded = to_uint8_frames(pipe.decode_latents(latents, "np")[0])
        for name, function in compare.items():
            by_frame[name]["predicted"].append(function(predicted, truth))
            by_frame[name]["repeat"].append(function(np.broadcast_to(given[-1:], truth.shape), truth))
            by_frame[name]["autoencoder"].append(function(decoded, truth))
            for other, frames in others.items():
                by_frame[name].setdefault(other, []).append(function(frames, truth))
        if folder is not None:
            shown = {"truth": video} | {
                name: np.concatenate([given, frames]) for name, frames in ({"predicted": predicted} | others).items()
            }
            write_video(Path(folder) / f"{index}.mp4", side_by_side(shown, num_given=num_given), fps=fps)
            write_film_strip(Path(folder) / f"{index}.png", shown, num_given=num_given, fps=fps)
    pipe.transformer.train(was_training)
    if num_frames is None:
        raise ValueError("There is no video to predict: give one at least.")

    means = {
        name: {key: np.mean(rows, axis=0).tolist() for key, rows in values.items()}
        for name, values in by_frame.items()
    }
    psnr = {key: np.mean(psnr_of(np.stack(rows)), axis=0).tolist() for key, rows in by_frame["mse"].items()}
    scores = RolloutScores(mse=means.pop("mse"), psnr=psnr, measures=means)
    if folder is not None:
        write_json(Path(folder) / "scores.json", asdict(scores), indent=2)
    return scores


def read_rollouts(validation_folder: str | Path) -> dict[int, RolloutScores]:
    """Step → scores, in order, of the complete rollouts in the folders `step-<number>` of a folder."""
    paths = Path(validation_folder).glob("step-*/scores.json")
    return dict(sorted((int(path.parent.name.removeprefix("step-")), RolloutScores.load(path)) for path in paths))


def log_rollout(
    accelerator: Accelerator, scores: RolloutScores, *, folder: str | Path, step: int, prefix: str = "validation"
) -> None:
    """Sends a rollout to the trackers: errors at some horizons, the strips, and the videos where a tracker shows them.

    Scalars `<prefix>/mse_h1`, `<prefix>/psnr_h1`, … and `<prefix>/ratio_to_repeat` go to any tracker of accelerate. Strips
    go to TensorBoard, Trackio and Weights & Biases, videos to the last two.

    Args:
        folder: where [`validation_rollout`] wrote.
    """
    scalars = {f"{prefix}/ratio_to_repeat": scores.ratio_to_repeat}
    for horizon in scores.horizons:
        scalars[f"{prefix}/mse_h{horizon}"] = scores.mse["predicted"][horizon - 1]
        scalars[f"{prefix}/psnr_h{horizon}"] = scores.psnr["predicted"][horizon - 1]
    accelerator.log(scalars, step=step)
    log_pictures(accelerator, folder, step=step, prefix=prefix)


def log_pictures(accelerator: Accelerator, folder: str | Path, *, step: int, prefix: str = "validation") -> None:
    """Sends the strips of a folder, `0.png`, …, and its videos, `0.mp4`, …, to the trackers that show them."""
    strips, videos = sorted(Path(folder).glob("*.png")), sorted(Path(folder).glob("*.mp4"))
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            for strip in strips:
                pixels = np.asarray(Image.open(strip))[None]
                tracker.log_images({f"{prefix}/strip_{strip.stem}": pixels}, step=step, dataformats="NHWC")
        elif tracker.name in ("trackio", "wandb"):
            media = importlib.import_module(tracker.name)  # both have `Image` and `Video`, made from a path
            values = {f"{prefix}/strip_{strip.stem}": media.Image(str(strip)) for strip in strips}
            values |= {f"{prefix}/video_{video.stem}": media.Video(str(video)) for video in videos}
            tracker.log(values, step=step)


def plot_curve(
    log_csv: str | Path, path: str | Path, *, rollouts: dict[int, RolloutScores] | None = None
) -> Path | None:
    """Draws the loss, the validation loss and, if there are rollouts, their error over repeating the last frame.

    Args:
        log_csv: has columns `step`, `loss` and `validation_loss`, which is empty where it was not computed.
        path: a `.png` file; its folder is made.
        rollouts: from [`read_rollouts`].

    Returns:
        `path`, or `None` where matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    figure_module = importlib.import_module("matplotlib.figure")
    with Path(log_csv).open(newline="") as file:
        rows = list(csv.DictReader(file))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure = figure_module.Figure(figsize=(10 if rollouts else 5.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 2 if rollouts else 1, squeeze=False)[0]
    for name, style in (
        ("loss", {"linewidth": 0.8, "alpha": 0.7}),
        ("validation_loss", {"marker": "o", "markersize": 3}),
    ):
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        axes[0].plot(*zip(*points, strict=True), label=name.replace("_", " "), **style)
    axes[0].set(xlabel="step", ylabel="loss", yscale="log")
    axes[0].legend()
    if rollouts:
        axes[1].plot(
            list(rollouts), [scores.ratio_to_repeat for scores in rollouts.values()], marker="o", markersize=3
        )
        axes[1].axhline(1, color="gray", linestyle="--", linewidth=0.8)
        axes[1].set(xlabel="step", ylabel="MSE over repeating the last frame", ylim=(0, None))
    figure.savefig(path, dpi=120)
    return Path(path)
