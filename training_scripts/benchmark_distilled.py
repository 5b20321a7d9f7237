"""How fast a distilled model plays: frames a second of a call and of a stream, beside its teacher's.

    python training_scripts/benchmark_distilled.py --student fast --guidance_scale 1.5 --output distilled.json

Both models are loaded as the commands load them (in bfloat16 where the device multiplies in it) and continue the
bundled sample video; decoding is included. All take turns; a ratio is of one round. "First clip" is the time from the request
of a stream to the frames of its first clip.
"""

import argparse
import statistics
import time

from diffusers_videogpt import BUNDLED_MODEL, SAMPLE_VIDEO
from diffusers_videogpt.arguments import finite_float, positive_int
from diffusers_videogpt.commands.models import load_pipeline, look_at_model
from diffusers_videogpt.training.arguments import make_parser, parse_with_output, run_script


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--teacher", default=BUNDLED_MODEL, help="a model's folder or Hub id")
    parser.add_argument("--student", required=True, help="what train_distillation.py made of all weights")
    parser.add_argument(
        "--teacher_steps", type=positive_int, nargs="+", default=[25, 5], help="the ratio is to the first"
    )
    parser.add_argument("--student_steps", type=positive_int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--guidance_scale", type=finite_float, help="of the teacher; default: its own")
    parser.add_argument("--frames_per_clip", type=positive_int, help="of both; default: as each was saved")
    parser.add_argument("--num_given", type=positive_int, default=8, help="frames of the sample video that are given")
    parser.add_argument("--num_frames", type=positive_int, default=96, help="that are predicted in each turn")
    parser.add_argument(
        "--rolling_cache",
        action=argparse.BooleanOptionalAction,
        help="of both: the window is not encoded anew when it slides; default: as each was saved",
    )
    parser.add_argument("--device", help="by default the best one here")
    parser.add_argument("--rounds", type=positive_int, default=3)
    args = parse_with_output(parser, "distilled.json")
    args.models = {"teacher": look_at_model(args.teacher), "student": look_at_model(args.student)}
    return args


if __name__ == "__main__":
    ARGS = run_script(parse_args)  # before torch is imported, which takes seconds: wrong options are told at once

import torch

from diffusers_videogpt.evaluation.timing import show_speedup, speedup, take_turns, write_results
from diffusers_videogpt.video_io import read_video


def main(args):
    given = read_video(SAMPLE_VIDEO).frames[: args.num_given]
    first_clips = {}
    same = {"num_frames": args.num_frames, "output_type": "np", "rolling_cache": args.rolling_cache}
    same["frames_per_clip"] = args.frames_per_clip
    guidance = {"teacher": args.guidance_scale, "student": None}

    def call(pipe, how):
        pipe(given, generator=torch.Generator().manual_seed(0), **same, **how)

    def stream(pipe, how, name):
        began, seconds = time.perf_counter(), None
        for _ in pipe.stream(given, generator=torch.Generator().manual_seed(0), **same, **how):
            if seconds is None:
                seconds = time.perf_counter() - began
        first_clips.setdefault(name, []).append(seconds)

    variants = {}
    for which, steps in (("teacher", args.teacher_steps), ("student", args.student_steps)):
        pipe = load_pipeline(args.models[which], device=args.device, dtype="auto")
        pipe.set_progress_bar_config(disable=True)
        for num_steps in steps:
            how = {"num_inference_steps": num_steps, "guidance_scale": guidance[which]}
            name = f"{which}, {num_steps} steps"
            variants[f"{name}, call"] = lambda pipe=pipe, how=how: call(pipe, how)
            variants[f"{name}, stream"] = lambda pipe=pipe, how=how, name=name: stream(pipe, how, name)
    seconds = take_turns(variants, args.rounds)

    results = {}
    for name, times in seconds.items():
        label, way = name.rsplit(", ", 1)
        result = speedup(seconds, slow=f"teacher, {args.teacher_steps[0]} steps, {way}", fast=name)
        result["frames_per_second"] = args.num_frames / statistics.median(times)
        if way == "stream":
            result["first_clip_seconds"] = statistics.median(first_clips[label][1:])  # the first turn is the warm-up
        results[name] = result
        first = f", first clip after {result['first_clip_seconds']:.2f} s" if way == "stream" else ""
        print(show_speedup(name, result), f"{result['frames_per_second']:.1f} frames/s{first}", flush=True)
    write_results(args.output, results)


if __name__ == "__main__":
    run_script(main, ARGS)
