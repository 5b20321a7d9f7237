"""Fewer denoising steps: solvers, noise schedules and guidance on an interval, against 50 Euler steps.

    python training_scripts/benchmark_steps.py --output steps

"Renoised" is `solver="consistency"`: every step predicts the clip and puts it under fresh noise.

Continues unseen scenes of the simulated world by the bundled model, with the same noise every time, and scores each setting
at each number of steps: the error against the truth over that of repeating the last frame, the share of scenes that keep
their objects, and how far the first clip is from the one that 50 Euler steps make. Writes `steps.json`, a table
(`steps.md`) and a plot (`steps.png`).
"""

from pathlib import Path

from diffusers_videogpt import BUNDLED_MODEL
from diffusers_videogpt.arguments import check_output, positive_int
from diffusers_videogpt.training.arguments import make_parser, run_script


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=BUNDLED_MODEL)
    parser.add_argument("--num_scenes", type=positive_int, default=32)
    parser.add_argument("--steps", type=positive_int, nargs="+", default=[2, 4, 8, 16, 25, 50])
    parser.add_argument("--output", type=Path, default=Path("steps"), help="folder")
    args = parser.parse_args()
    check_output(args.output)
    return args


if __name__ == "__main__":
    ARGS = run_script(parse_args)  # before torch is imported, which takes seconds: wrong options are told at once

import numpy as np
import torch

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.evaluation.timing import write_results
from diffusers_videogpt.evaluation.world_prediction import repeat_last_frame, score
from diffusers_videogpt.worlds import simulate


try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise SystemExit('benchmark_steps.py needs Matplotlib: pip install ".[eval]" in the repository') from error


NUM_GIVEN, NUM_PREDICTED = 8, 16
FIRST_SEED = 10_000  # scenes that neither training nor the README's other table uses
SETTINGS = {
    "Euler": {},
    "multistep": {"solver": "multistep"},
    "Euler, shift 2": {"shift": 2.0},
    "renoised": {"solver": "consistency"},
    "renoised, shift 2": {"solver": "consistency", "shift": 2.0},
    "multistep, guided in the first half": {"solver": "multistep", "guidance_interval": (0.0, 0.5)},
    "multistep, guided in the last half": {"solver": "multistep", "guidance_interval": (0.5, 1.0)},
}


def predict(pipe, scenes, num_steps, solver="euler", shift=1.0, guidance_interval=(0.0, 1.0)):
    """uint8 (N, H, W, 3) a scene."""
    pipe.scheduler = NextClipFlowMatchScheduler(solver=solver, shift=shift)
    frames = pipe(
        video=[scene.frames[:NUM_GIVEN] for scene in scenes],
        num_frames=NUM_PREDICTED,
        num_inference_steps=num_steps,
        guidance_interval=guidance_interval,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames
    return (frames * 255).round().astype(np.uint8)


def main(args):
    pipe = VideoGPTPipeline.from_pretrained(args.model).to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    size, clip = pipe.config.longest_side, pipe.config.frames_per_clip
    seeds = range(FIRST_SEED, FIRST_SEED + args.num_scenes)
    scenes = [simulate(seed=seed, num_frames=NUM_GIVEN + NUM_PREDICTED, size=size) for seed in seeds]
    truths = [scene.frames[NUM_GIVEN:] for scene in scenes]
    repeat = score([repeat_last_frame(scene, NUM_GIVEN) for scene in scenes], truths).mse
    many_steps = predict(pipe, scenes, max(args.steps))[:, :clip] / 255

    results = {}
    for name, setting in SETTINGS.items():
        results[name] = {}
        for num_steps in args.steps:
            frames = predict(pipe, scenes, num_steps, **setting)
            scores = score(frames, truths)
            results[name][num_steps] = {
                "over_repeating": scores.mse / repeat,
                "objects_kept": scores.objects_kept,
                "rmse_to_many_steps": float(np.sqrt(np.square(frames[:, :clip] / 255 - many_steps).mean())),
            }
            print(f"{name}, {num_steps} steps:", *(f"{k} {v:.3f}" for k, v in results[name][num_steps].items()))

    args.output.mkdir(parents=True, exist_ok=True)
    write_results(args.output / "steps.json", results)
    labels = {
        "over_repeating": "error over repeating",
        "objects_kept": "objects kept",
        "rmse_to_many_steps": f"RMSE to {max(args.steps)} Euler steps",
    }
    figure = Figure(figsize=(13, 4.3), layout="constrained")
    axes = figure.subplots(1, len(labels))
    tables = []
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        header = f"| {label} | " + " | ".join(f"{n} steps" for n in args.steps) + " |"
        rows = [header, "|---" * (1 + len(args.steps)) + "|"]
        for name, by_steps in results.items():
            values = [by_steps[n][key] for n in args.steps]
            axis.plot(args.steps, values, marker="o", markersize=3, label=name)
            rows.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
        axis.set(xlabel="denoising steps a clip", ylabel=label, xscale="log")
        axis.set_xticks(args.steps, args.steps)
        axis.minorticks_off()
        tables.append("\n".join(rows))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(args.output / "steps.png", dpi=110)
    (args.output / "steps.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    print("\n\n".join(tables))


if __name__ == "__main__":
    run_script(main, ARGS)
