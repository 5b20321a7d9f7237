"""The paper's findings, again: trains small models on simulated physics and writes tables in the form of its tables 4 and 5.

    python training_scripts/reproduce_findings.py --preset night --output_dir findings

Frames per clip at inference, guidance, frames in pretraining, noise on clean clips, amount of data, next clip against next
frame and against regression in the style of next-token prediction; each with several seeds, scored by Physics in a box.
Models are trained by train_videogpt.py, train_next_frame_regression.py and cache_latents.py, called as commands. The report
(`findings.md`, `findings.json`, a PNG a finding) is written after every seed, whatever comes out. May be stopped at any moment;
the same command goes on.

Presets: `night` for two CPU cores, `evening` for one of them (two hours), `gpu` for one GPU, `smoke` only shows that everything
runs.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from diffusers_videogpt import BUNDLED_MODEL
from diffusers_videogpt.arguments import check_output, positive_int
from diffusers_videogpt.files import Store, write_json
from diffusers_videogpt.training.arguments import make_parser, run_script


SCRIPTS = Path(__file__).parent


@dataclass(frozen=True)
class Preset:
    """How large everything is.

    Attributes:
        transformer: arguments of the network.
        num_frames: of a sample in pretraining, from few to many; the last is everybody's but where it is varied.
        frames_per_step: of a step, whatever the length of a sample: all trainings see as many frames.
        num_scenes, few_scenes: trained on, all or little data; `windows` samples of each.
        clips, guidance_scales: compared at inference; `frames_per_clip` and `guidance_scale` hold elsewhere.
        num_given, num_predicted, num_inference_steps, num_test_scenes: of the evaluation.
        options: further arguments of the training scripts.
    """

    transformer: dict
    num_steps: int = 2000
    learning_rate: float = 1e-3
    size: int = 64
    num_frames: tuple[int, ...] = (12, 16, 24)
    frames_per_step: int = 192
    num_scenes: int = 3000
    few_scenes: int = 59  # 16 are held out; of the others it is a seventieth, as in the paper
    scene_frames: int = 32
    windows: int = 2
    num_validation: int = 16
    clips: tuple[int, ...] = (1, 2, 4, 8, 16)
    guidance_scales: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
    frames_per_clip: int = 8
    guidance_scale: float = 1.5
    num_given: int = 8
    num_predicted: int = 16
    num_inference_steps: int = 10
    num_test_scenes: int = 64
    options: dict = field(default_factory=lambda: {"mixed_precision": "bf16", "ema_decay": 0.995})


def network(num_layers: int, num_heads: int, head_dim: int, ffn_dim: int) -> dict:
    return {
        "num_layers": num_layers,
        "num_attention_heads": num_heads,
        "attention_head_dim": head_dim,
        "ffn_dim": ffn_dim,
        "pos_embed_max_size": 16,
        "pos_embed_base_size": 64,
        "rope_long_factor": None,
    }


PRESETS = {
    "night": Preset(network(4, 3, 64, 512)),
    "evening": Preset(
        network(4, 2, 64, 352),
        num_steps=500,
        learning_rate=2e-3,
        frames_per_step=96,
        num_scenes=816,
        few_scenes=27,
        num_test_scenes=32,
        options={"mixed_precision": "bf16", "ema_decay": 0.98},
    ),
    "gpu": Preset(
        network(8, 6, 64, 1024),
        num_steps=20_000,
        frames_per_step=768,
        num_scenes=20_000,
        few_scenes=301,
        num_test_scenes=128,
    ),
    "smoke": Preset(
        network(1, 1, 16, 32),
        num_steps=6,
        size=32,
        num_frames=(4, 6, 8),
        frames_per_step=24,
        num_scenes=8,
        few_scenes=4,
        scene_frames=8,
        windows=1,
        num_validation=1,
        clips=(1, 4),
        guidance_scales=(1.0, 3.0),
        frames_per_clip=4,
        num_given=4,
        num_predicted=4,
        num_inference_steps=1,
        num_test_scenes=2,
        options={},
    ),
}


def parse_args(command_line: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="night")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_train_steps", type=positive_int, help="of each model, instead of the preset's")
    parser.add_argument("--pretrained_vae_path", default=str(Path(BUNDLED_MODEL) / "vae"), help="at the preset's size")
    parser.add_argument("--output_dir", type=Path, default=Path("findings"))
    args = parser.parse_args(command_line)
    check_output(args.output_dir, "--output_dir")
    return args


if __name__ == "__main__":
    ARGS = run_script(parse_args)  # before torch is imported, which takes seconds: wrong options are told at once

import numpy as np
import torch

from diffusers_videogpt import VideoGPTPipeline
from diffusers_videogpt.evaluation.world_prediction import repeat_last_frame


try:
    from matplotlib.figure import Figure

    from diffusers_videogpt.evaluation.physics_box import (
        RolloutSettings,
        make_scenes,
        predict_scenes,
        score_predictions,
    )
except ImportError as error:
    raise SystemExit(f'reproduce_findings.py: {error}; pip install ".[eval]" in the repository has all') from error


# What is trained


@dataclass(frozen=True)
class Training:
    num_frames: int
    num_scenes: int
    clips: str = "random"
    min_retention: float = 0.9
    script: str = "train_videogpt.py"


def trainings(preset: Preset) -> dict[str, Training]:
    base = Training(preset.num_frames[-1], preset.num_scenes)
    shorter = {f"{n} frames": replace(base, num_frames=n) for n in preset.num_frames[:-1]}
    return {
        "base": base,
        **shorter,
        "no noise": replace(base, min_retention=1.0),
        "little data": replace(base, num_scenes=preset.few_scenes),
        "next frame": replace(base, clips="equal:1"),
        "next token": replace(base, clips="equal:1", script="train_next_frame_regression.py"),
    }


def call_script(script: str, **arguments) -> None:
    """Calls a training script with `--name value`; `True` stands for a flag."""
    command = [sys.executable, str(SCRIPTS / script)]
    for name, value in arguments.items():
        command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    environment = os.environ | ({} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "1"})
    status = subprocess.run(command, env=environment).returncode
    if status:
        raise SystemExit(f"{script} ended with status {status}: what it said above tells why. What is done is kept.")


def sample_sizes(preset: Preset, training: Training) -> dict[str, int]:
    """What a sample is, for the script that encodes samples and the one that trains on them."""
    return {"max_num_frames": training.num_frames, "height": preset.size, "width": preset.size}


def make_latents(preset: Preset, training: Training, vae: str, folder: Path) -> Path:
    """The latents of a training, cached once for all that train on the same samples, whatever their seed."""
    cache = folder / "latents" / f"{training.num_scenes}-scenes-{training.num_frames}-frames"
    if not (cache / "index.json").is_file():
        call_script(
            "cache_latents.py",
            pretrained_vae_path=vae,
            num_simulated_scenes=training.num_scenes,
            frames_per_scene=preset.scene_frames,
            **sample_sizes(preset, training),
            windows_per_video=preset.windows,
            seed=0,
            output_dir=cache,
        )
    return cache


def train(preset: Preset, name: str, seed: int, vae: str, folder: Path) -> Path:
    """The trained pipeline's folder; a finished training is not repeated, one that was cut off goes on."""
    training, run = trainings(preset)[name], folder / "runs" / f"{name.replace(' ', '_')}-seed-{seed}"
    if (run / "README.md").is_file():  # the model card, which is written last
        return run
    config = folder / "transformer.json"
    write_json(config, preset.transformer)
    # The baseline of the next frame cuts every sample alike, so it has neither option.
    cuts_clips = training.script != "train_next_frame_regression.py"
    clips = {"clips": training.clips, "same_clips_in_step": True} if cuts_clips else {}
    resume = {"resume_from_checkpoint": "latest"} if list(run.glob("checkpoint-*")) else {}
    call_script(
        training.script,
        cached_latents=make_latents(preset, training, vae, folder),
        pretrained_vae_path=vae,
        transformer_config=config,
        **sample_sizes(preset, training),
        min_retention=training.min_retention,
        train_batch_size=preset.frames_per_step // training.num_frames,
        max_train_steps=preset.num_steps,
        optimizer="muon",
        learning_rate=preset.learning_rate,
        lr_scheduler="cosine",
        lr_warmup_steps=min(50, preset.num_steps - 1),
        adam_epsilon=1e-8,
        adam_weight_decay=0.05,
        num_validation_videos=preset.num_validation,
        validation_steps=500,
        checkpointing_steps=500,
        checkpoints_total_limit=1,
        seed=seed,
        output_dir=run,
        **clips,
        **preset.options,
        **resume,
    )
    return run


# What is measured


class Point(NamedTuple):
    """A training, and how its model predicts."""

    training: str
    frames_per_clip: int
    guidance_scale: float


class Finding(NamedTuple):
    """One table: rows by label, the paper's Physics-IQ score of each row where it gives one, and what the paper claims:
    that the row `better` scores higher than each of the rows `worse`."""

    title: str
    points: dict[str, Point]
    paper: dict[str, float]
    better: str
    worse: tuple[str, ...]


def findings(preset: Preset) -> dict[str, Finding]:
    clip, guidance = preset.frames_per_clip, preset.guidance_scale
    *fewer, most = preset.num_frames
    base, longest = Point("base", clip, guidance), str(preset.clips[-1])
    few, many = (str(number - preset.num_validation) for number in (preset.few_scenes, preset.num_scenes))
    ways = {
        "next clip": base,
        "next clip, one frame a clip at inference": Point("base", 1, guidance),
        "next frame": Point("next frame", 1, guidance),
        "next-token style": Point("next token", 1, 1.0),
    }
    return {
        "clips": Finding(
            "Frames per clip at inference",
            {str(n): Point("base", n, guidance) for n in preset.clips},
            {"1": 0.00, "2": 6.34, "4": 17.42, "8": 28.54, "16": 32.72, "32": 33.09},
            longest,
            tuple(str(n) for n in preset.clips[:-1]),
        ),
        "guidance": Finding(
            "Guidance scale",
            {f"{c:g}": Point("base", clip, c) for c in preset.guidance_scales},
            {"1": 25.09, "1.5": 31.96, "2": 32.22, "2.5": 32.65, "3": 32.72, "3.5": 31.88},
            "3",
            tuple(f"{c:g}" for c in preset.guidance_scales if c != 3),
        ),
        "frames": Finding(
            "Frames in pretraining (the paper's 16, 48 and 80 in the places of ours)",
            {str(n): Point(f"{n} frames", clip, guidance) for n in fewer} | {str(most): base},
            dict(zip(map(str, preset.num_frames), (22.06, 33.09, 34.94), strict=True)),
            str(most),
            tuple(map(str, fewer)),
        ),
        "noise": Finding(
            "Noise on clean clips",
            {"no": Point("no noise", clip, guidance), "yes": base},
            {"no": 32.54, "yes": 33.09},
            "yes",
            ("no",),
        ),
        "data": Finding(
            "Amount of data: scenes trained on (the paper's 1 M and 70 M videos in the places of ours)",
            {few: Point("little data", clip, guidance), many: base},
            {few: 23.16, many: 33.09},
            many,
            (few,),
        ),
        "next_clip": Finding(
            "What is predicted",
            ways,
            {"next clip": 33.09, "next-token style": 21.59},
            "next clip",
            ("next frame", "next-token style"),
        ),
    }


def settings_of(preset: Preset, point: Point, seed: int) -> RolloutSettings:
    """With as much history as, together with a clip, training has seen. Regression is one step of denoising."""
    training = trainings(preset)[point.training]
    return RolloutSettings(
        1 if training.script == "train_next_frame_regression.py" else preset.num_inference_steps,
        point.frames_per_clip,
        point.guidance_scale,
        max(training.num_frames - point.frames_per_clip, 1),
        seed,
    )


MEASURES = {  # of a point: label
    "score": "Physics-IQ score in a box",
    "over_repeating": "MSE over repeating",
    "trajectory_error": "trajectory error, pixels",
    "objects_kept": "objects kept at the end, %",
    "collisions_f1": "collisions' F1, %",
}


def measure(pipe: VideoGPTPipeline, settings: RolloutSettings, scenes: list, store: Store) -> dict[str, float]:
    scores = score_predictions(predict_scenes(pipe, scenes, settings=settings, store=store), scenes)
    still = [repeat_last_frame(scene.take_1, scene.num_given) for scene in scenes]
    repeated = np.mean([np.square(f / 255 - s.truth / 255).mean() for f, s in zip(still, scenes, strict=True)])
    return {
        "score": scores.physics_iq["score"],
        "over_repeating": float(np.mean(scores.mse) / repeated),
        "trajectory_error": float(np.mean(scores.trajectory_error)),
        "objects_kept": 100 * scores.objects_kept[-1],
        "collisions_f1": 100 * scores.collisions["f1"],
    }


def evaluate(preset: Preset, name: str, seed: int, run: Path, scenes: list, folder: Path) -> dict[Point, dict]:
    """The measures of all points of one trained model; those measured before are read."""
    points = {point for finding in findings(preset).values() for point in finding.points.values()}
    results, pipe = {}, None
    for point in sorted(point for point in points if point.training == name):
        path = run / f"scores-clips-of-{point.frames_per_clip}-guidance-{point.guidance_scale:g}.json"
        if not path.is_file():
            if pipe is None:
                device = "cuda" if torch.cuda.is_available() else "cpu"
                pipe = VideoGPTPipeline.from_pretrained(run).to(device)
                pipe.set_progress_bar_config(disable=True)
            scores = measure(pipe, settings_of(preset, point, seed), scenes, Store(folder / "box"))
            write_json(path, scores, indent=None)
        results[point] = json.loads(path.read_text(encoding="utf-8"))
    return results


# What is reported


def spread(values: list[float], digits: int = 2) -> str:
    """ "mean ± standard deviation" over seeds."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def verdict(finding: Finding, seeds: dict[int, dict[Point, dict]]) -> str:
    """By how much the score agrees with what the paper claims, and in how many seeds: in all, in none, or undecided."""
    parts = []
    for worse in finding.worse:
        better, other = finding.points[finding.better], finding.points[worse]
        gains = [scores[better]["score"] - scores[other]["score"] for scores in seeds.values()]
        agreeing = sum(gain > 0 for gain in gains)
        word = "agrees with the paper" if min(gains) > 0 else "undecided"
        if max(gains) < 0:
            word = "disagrees with the paper"
        parts.append(
            f"{finding.better} over {worse}: {spread(gains)} points, higher in {agreeing} of {len(gains)} seeds: {word}."
        )
    return "\n".join(f"- {part}" for part in parts)


def format_finding(finding: Finding, seeds: dict[int, dict[Point, dict]]) -> str:
    lines = [
        f"## {finding.title}",
        "",
        "| | paper, Physics-IQ | " + " | ".join(MEASURES.values()) + " |",
        "|---" * (2 + len(MEASURES)) + "|",
    ]
    for label, point in finding.points.items():
        paper = f"{finding.paper[label]:.2f}" if label in finding.paper else "–"
        values = [spread([scores[point][name] for scores in seeds.values()]) for name in MEASURES]
        lines.append(f"| {label} | {paper} | {' | '.join(values)} |")
    return "\n".join([*lines, "", verdict(finding, seeds)])


def plot_finding(finding: Finding, seeds: dict[int, dict[Point, dict]], path: Path) -> None:
    """Three measures over the rows: the mean of the seeds, each seed as a cross; the paper's score beside ours."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    places = np.arange(len(finding.points))
    for axis, name in zip(figure.subplots(1, 3), ("score", "over_repeating", "trajectory_error"), strict=True):
        values = np.array([[scores[point][name] for scores in seeds.values()] for point in finding.points.values()])
        axis.plot(places, values.mean(axis=1), marker="o", label="ours, mean")
        axis.plot(places, values, "x", color="0.4", markersize=4)
        if name == "score":
            known = [(x, finding.paper[label]) for x, label in enumerate(finding.points) if label in finding.paper]
            axis.plot(*zip(*known, strict=True), "s--", color="tab:orange", label="paper, Physics-IQ")
            axis.legend(fontsize="small")
        names = [label.replace(", ", ",\n").replace(" at inference", "") for label in finding.points]
        axis.set_xticks(places, names, fontsize="small")
        axis.set_ylabel(MEASURES[name])
    figure.suptitle(finding.title)
    figure.savefig(path, dpi=110)


def report(preset: Preset, seeds: dict[int, dict[Point, dict]], folder: Path) -> str:
    texts, numbers = [], {}
    for name, finding in findings(preset).items():
        texts.append(format_finding(finding, seeds))
        plot_finding(finding, seeds, folder / f"{name}.png")
        rows = {
            label: {seed: scores[point] for seed, scores in seeds.items()} for label, point in finding.points.items()
        }
        numbers[name] = {"title": finding.title, "paper": finding.paper, "rows": rows}
    head = (
        f"# The findings, again\n\n{len(seeds)} seeds ({', '.join(map(str, seeds))}), {preset.num_steps} steps each, "
        f"{preset.num_test_scenes} test scenes, {preset.num_given} frames given and {preset.num_predicted} predicted in "
        f"{preset.num_inference_steps} steps.\nMean ± standard deviation over seeds. Scores are those of Physics in a box, "
        "which are not comparable with Physics-IQ's in value;\nonly their order is."
    )
    text = "\n\n".join([head, *texts]) + "\n"
    (folder / "findings.md").write_text(text, encoding="utf-8")
    write_json(folder / "findings.json", {"preset": asdict(preset), "findings": numbers})
    return text


def main(args: argparse.Namespace) -> None:
    preset, folder = PRESETS[args.preset], args.output_dir
    if args.max_train_steps is not None:
        preset = replace(preset, num_steps=args.max_train_steps)
    folder.mkdir(parents=True, exist_ok=True)
    kept, is_what = folder / "preset.json", json.loads(json.dumps(asdict(preset) | {"vae": args.pretrained_vae_path}))
    if kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) != is_what:
        sys.exit(f"{folder} holds runs with other numbers ({kept}): choose another --output_dir.")
    write_json(kept, is_what)

    scenes = make_scenes(
        preset.num_test_scenes, preset.num_given, num_predicted=preset.num_predicted, size=preset.size
    )
    seeds = {}
    for seed in args.seeds:
        results = {}
        for name in trainings(preset):
            run = train(preset, name, seed, args.pretrained_vae_path, folder)
            results |= evaluate(preset, name, seed, run, scenes, folder)
        seeds[seed] = results
        text = report(preset, seeds, folder)  # after every seed: a night may be too short
    print(text)


if __name__ == "__main__":
    run_script(main, ARGS)
