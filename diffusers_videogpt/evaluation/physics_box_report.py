"""A run of [`physics_box`] from models to files: scores, tables, plot."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from ..extras import require
from ..files import Store, write_json
from ..pipeline_videogpt import VideoGPTPipeline
from .physics_box import (
    ALPHAS,
    BASELINES,
    NUM_STEPS,
    BoxScores,
    RolloutSettings,
    denoise_true_clips,
    make_scenes,
    pass_through_autoencoder,
    predict_scenes,
    score_predictions,
    score_without_model,
)


figures = require("matplotlib.figure", "The plots need Matplotlib", extra="eval")

# Field of `BoxScores` → (label, factor it is shown with, format, whether more is better).
BY_HORIZON = {
    "mse": ("MSE × 1000", 1000, ".2f", False),
    "psnr": ("PSNR, dB", 1, ".1f", True),
    "trajectory_error": ("trajectory error, pixels", 1, ".2f", False),
    "objects_kept": ("objects kept, %", 100, ".0f", True),
    "energy_drift": ("energy drift, %", 100, ".0f", False),
}
# The same of what a long rollout loses. Repeating the last frame loses none of it, so nothing is ahead of that.
DRIFT_BY_HORIZON = {
    "sharpness": ("sharpness over the truth's", 1, ".2f", True),
    "colour_drift": ("colour drift, levels of 255", 1, ".2f", False),
}
REFERENCES = ("truth", "second take", "autoencoder alone")


def evaluate_models(
    model: str | Path,
    folder: str | Path,
    *,
    settings: RolloutSettings,
    frames_per_clip: Sequence[int] | None = None,
    compare: Sequence[tuple[str, str, int | None]] = (),
    num_scenes: int = 64,
    num_given: int = 8,
    num_predicted: int = 16,
    device: str | torch.device = "cpu",
    dtypes: dict[str, torch.dtype] | None = None,
) -> dict[str, BoxScores]:
    """Scores a model at several clip lengths, and others, on scenes of the model's size; writes all of it into `folder`.

    Args:
        frames_per_clip: clip lengths of the model; by default its own.
        compare: (name, folder or Hub id, denoising steps or `None`) of other models, each with its own clip length and
            guidance; `None` is their own number of steps, where they tell one, else that of `settings`.
        dtypes: of the models' parts, as `from_pretrained(dtype=)` takes them; by default float32.

    Returns:
        way of predicting → scores: the truth, the second take, the baselines, the autoencoder alone, the models.

    Raises:
        ValueError: two ways have one name, or a model is of another size than the first.
    """
    pipe = _load(model, device, dtypes=dtypes)
    size = pipe.config.longest_side
    clip_lengths = frames_per_clip or [pipe.config.frames_per_clip]
    asked_steps = settings.num_inference_steps
    settings = replace(settings, num_inference_steps=asked_steps or pipe.config.num_inference_steps or NUM_STEPS)
    runs = {f"clips of {length}": (pipe, replace(settings, frames_per_clip=length)) for length in clip_lengths}
    for name, source, num_steps in compare:
        other = _load(source, device, dtypes=dtypes)
        if name in (*REFERENCES, *BASELINES, *runs):
            raise ValueError(f"Two ways of predicting are called '{name}': choose another name.")
        if other.config.longest_side != size:
            raise ValueError(
                f"'{name}' predicts frames of {other.config.longest_side} pixels, {model} of {size}: compare models of one "
                "size."
            )
        num_steps = num_steps or other.config.num_inference_steps or asked_steps
        runs[name] = other, RolloutSettings(num_steps, seed=settings.seed)

    scenes, store = make_scenes(num_scenes, num_given, num_predicted=num_predicted, size=size), Store(folder)
    results = score_without_model(scenes)
    results["autoencoder alone"] = score_predictions(pass_through_autoencoder(pipe, scenes), scenes)
    for name, (run_pipe, run_settings) in runs.items():
        predictions = predict_scenes(run_pipe, scenes, settings=run_settings, store=store)
        clip_length = min(run_settings.frames_per_clip or run_pipe.config.frames_per_clip, num_predicted)
        denoised = denoise_true_clips(run_pipe, scenes, num_frames=clip_length, seed=settings.seed)
        results[name] = replace(score_predictions(predictions, scenes), one_denoising=denoised)
    about = {"model": str(model), "compare": compare, "num_scenes": num_scenes, "num_given": num_given}
    about["dtypes"] = {part: str(dtype).removeprefix("torch.") for part, dtype in (dtypes or {}).items()}
    write_report(results, folder, about=about | asdict(settings))
    return results


def _load(
    source: str | Path, device: str | torch.device, *, dtypes: dict[str, torch.dtype] | None
) -> VideoGPTPipeline:
    pipe = VideoGPTPipeline.from_pretrained(source, dtype=dtypes).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


HORIZONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def format_scores(results: dict[str, BoxScores], horizons: Sequence[int] = HORIZONS) -> str:
    """The results as Markdown: a table over all horizons, then one of each measure by horizon.

    Args:
        results: way of predicting → its scores, the baselines among them.
    """
    repeated = np.mean(results["repeat the last frame"].mse)
    lines = [
        "| | Physics-IQ score | spatiotemporal IoU | spatial IoU | weighted spatial IoU | MSE × 1000 | over repeating | "
        "collisions: precision | recall | F1 |",
        "|---" * 10 + "|",
    ]
    for name, scores in results.items():
        iq, collisions, mse = scores.physics_iq, scores.collisions, np.mean(scores.mse)
        lines.append(
            f"| {name} | {iq['score']:.2f} | {iq['spatiotemporal_iou']:.3f} | {iq['spatial_iou']:.3f} | "
            f"{iq['weighted_spatial_iou']:.3f} | {1000 * mse:.2f} | {mse / repeated:.2f} × | "
            f"{collisions['precision']:.2f} | {collisions['recall']:.2f} | {collisions['f1']:.2f} |"
        )
    shown = [h for h in horizons if h <= len(next(iter(results.values())).mse)]
    for field, (label, factor, digits, _) in (BY_HORIZON | DRIFT_BY_HORIZON).items():
        lines += [
            "",
            f"| {label} | " + " | ".join(f"frame {h}" for h in shown) + " |",
            "|---" * (1 + len(shown)) + "|",
        ]
        for name, scores in results.items():
            values = [factor * getattr(scores, field)[h - 1] for h in shown]
            lines.append(f"| {name} | " + " | ".join(f"{value:{digits}}" for value in values) + " |")
    denoised = {name: scores.one_denoising for name, scores in results.items() if scores.one_denoising}
    if denoised:
        columns = " | ".join(f"α = {alpha}" for alpha in ALPHAS)
        lines += ["", f"| objects kept by one denoising of the true clip (by number alone), % | {columns} |"]
        lines.append("|---" * (1 + len(ALPHAS)) + "|")
    for name, shares in denoised.items():
        pairs = zip(shares["objects_kept"], shares["number_kept"], strict=True)
        lines.append(
            f"| {name} | " + " | ".join(f"{100 * own:.0f} ({100 * count:.0f})" for own, count in pairs) + " |"
        )
    return "\n".join(lines)


def where_not_ahead(results: dict[str, BoxScores], name: str) -> str:
    """In words: at which horizons, in which measure, `name` is not better than both baselines."""
    places, behind, total = [], 0, 0
    for field, (label, _, _, more_is_better) in BY_HORIZON.items():
        sign = 1 if more_is_better else -1
        values = {key: sign * np.array(getattr(results[key], field)) for key in (name, *BASELINES)}
        ahead = values[name] > np.maximum(*(values[key] for key in BASELINES))
        missed = np.flatnonzero(~ahead) + 1
        behind, total = behind + len(missed), total + len(ahead)
        if len(missed):
            places.append(f"{label.split(',')[0]} at {_as_ranges(missed)}")
    for label, score in (
        ("Physics-IQ score", lambda key: results[key].physics_iq["score"]),
        ("collisions' F1", lambda key: results[key].collisions["f1"]),
    ):
        total += 1
        if score(name) <= max(map(score, BASELINES)):
            behind += 1
            places.append(label)
    found = f"{name}: better than both baselines in {total - behind} of {total} comparisons"
    return f"{found}; not in {', '.join(places)}" if places else found


def _as_ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] → "1–3, 7"."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def plot_scores(results: dict[str, BoxScores], path: str | Path) -> None:
    """A PNG: every measure by horizon; Physics-IQ's score and collisions as bars."""
    figure = figures.Figure(figsize=(18, 7.5), layout="constrained")
    *axes, bars = figure.subplots(2, 4).ravel()
    models = [name for name in results if name not in (*REFERENCES, *BASELINES)]
    styles = {"truth": ("black", ":"), "second take": ("0.45", ":"), "autoencoder alone": ("0.45", "-")}
    styles |= dict(zip(BASELINES, (("0.7", "--"), ("tab:brown", "--")), strict=True))
    styles |= {name: (f"C{index}", "-") for index, name in enumerate(models)}
    for axis, (field, (label, factor, _, _)) in zip(axes, (BY_HORIZON | DRIFT_BY_HORIZON).items(), strict=True):
        for name, scores in results.items():
            colour, line = styles[name]
            values = factor * np.array(getattr(scores, field))
            axis.plot(np.arange(1, len(values) + 1), values, color=colour, linestyle=line, label=name)
        axis.set(xlabel="predicted frame", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if field == "psnr":  # of the truth itself it is 100
            axis.set_ylim(None, 1.1 * max(max(s.psnr) for name, s in results.items() if name != "truth"))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(results))
    rows = np.arange(len(results))[::-1]
    bars.barh(rows + 0.2, [s.physics_iq["score"] for s in results.values()], 0.38, label="Physics-IQ score")
    bars.barh(rows - 0.2, [100 * s.collisions["f1"] for s in results.values()], 0.38, label="collisions' F1, %")
    bars.set_yticks(rows, list(results))
    bars.set_xlim(0, 100)
    bars.legend(fontsize="small", loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    figure.savefig(path, dpi=110)


def write_report(results: dict[str, BoxScores], folder: str | Path, *, about: dict) -> None:
    """Writes `scores.json`, `scores.md` and `scores.png` into `folder`.

    Args:
        about: what the run was, kept in the JSON file.
    """
    folder = Path(folder)
    numbers = {name: asdict(scores) for name, scores in results.items()}
    write_json(folder / "scores.json", {"about": about, "results": numbers})
    (folder / "scores.md").write_text(format_scores(results) + "\n", encoding="utf-8")
    plot_scores(results, folder / "scores.png")
