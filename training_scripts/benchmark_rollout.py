"""Denoising one clip with guidance: cached history over recomputing all of it at every step.

    python training_scripts/benchmark_rollout.py --output rollout.json

"recompute" does what the authors' code does (spec of their sampler): at every step one batch of two sequences, the clip
after its history and the clip alone padded to the same length, under a dense mask. "cached" is `VideoGPTPipeline`; with
--dtype float32 also with its transformer in bfloat16. All denoise the same noise, and their results are compared before they
take turns. At last a long rollout is made, and its last clips are compared with its tenth and those after it, in time and
memory.
"""

import copy
import statistics
import time

from diffusers_videogpt.arguments import finite_float, natural_int, positive_int
from diffusers_videogpt.training.arguments import make_parser, parse_with_output, run_script


def parse_case(text: str) -> tuple[int, int]:
    """ "64:16" → 64 frames of history, a clip of 16."""
    num_history, num_frames = text.split(":")
    return int(num_history), int(num_frames)


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--layers", type=positive_int, default=2)
    parser.add_argument("--heads", type=positive_int, default=4, help="of 96 channels each")
    parser.add_argument("--ffn_dim", type=positive_int, default=1024)
    parser.add_argument("--height", type=positive_int, default=128, help="pixels; a frame has (height / 16)² patches")
    parser.add_argument("--steps", type=positive_int, default=50)
    parser.add_argument("--guidance_scale", type=finite_float, default=3.0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--cases", type=parse_case, nargs="+", default=[(16, 16), (64, 16), (16, 1)], metavar="HISTORY:CLIP"
    )
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--long_frames", type=natural_int, default=1000, help="of the long rollout; 0 for none")
    return parse_with_output(parser, "rollout.json")


if __name__ == "__main__":
    ARGS = run_script(parse_args)  # before torch is imported, which takes seconds: wrong options are told at once

import psutil
import torch
from diffusers import AutoencoderTiny

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline, VideoGPTTransformerModel, make_clip_layout
from diffusers_videogpt.diffusers_internals import cast_as_loaded
from diffusers_videogpt.evaluation.timing import show_speedup, speedup, take_turns, write_results
from diffusers_videogpt.scheduling_next_clip_flow_match import set_flow_timesteps


@torch.no_grad()
def recompute_clip(pipe, noise, history, num_inference_steps, guidance_scale):
    """The slow twin: nothing is kept from one step to the next."""
    transformer, scheduler = pipe.transformer, NextClipFlowMatchScheduler.from_config(pipe.scheduler.config)
    num_history, num_frames = history.shape[2], noise.shape[2]
    grid = (noise.shape[3] // 2, noise.shape[4] // 2)
    layout = make_clip_layout(
        [[num_history, num_frames], [num_frames]], grid, noisy=slice(-1, None), device=noise.device
    )
    timesteps, alphas = set_flow_timesteps(scheduler, num_inference_steps, device=noise.device)
    latents, both_histories = noise, history.expand(2, -1, -1, -1, -1)
    for timestep, alpha in zip(timesteps, alphas, strict=True):
        both = latents.expand(2, -1, -1, -1, -1).to(transformer.dtype)
        denoised = transformer(both, alpha, both_histories.to(transformer.dtype), clip_layout=layout).sample
        with_history, alone = denoised.float().split(1)
        latents = scheduler.step(alone + guidance_scale * (with_history - alone), timestep, latents).prev_sample
    return latents


@torch.no_grad()
def cached_clip(pipe, noise, history, num_inference_steps, guidance_scale):
    return pipe(
        video_latents=history,
        latents=noise,
        num_frames=noise.shape[2],
        frames_per_clip=noise.shape[2],
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        output_type="latent",
    ).frames


def long_rollout(pipe, num_frames, height, frames_per_clip=4, window=16, num_compared=20):
    """(time, memory) of the last clips over those from the tenth on: medians, as ratios."""
    history = torch.randn(1, 4, window, height // 8, height // 8, generator=torch.Generator().manual_seed(0))
    seconds, memory = [], []
    stream = pipe.stream(
        video_latents=history,
        num_frames=num_frames,
        frames_per_clip=frames_per_clip,
        max_context_frames=window,
        num_inference_steps=2,
        output_type="latent",
    )
    with stream:
        began = time.perf_counter()
        for _ in stream:
            seconds.append(time.perf_counter() - began)
            on_gpu = torch.cuda.is_available()
            memory.append(torch.cuda.memory_allocated() if on_gpu else psutil.Process().memory_info().rss)
            began = time.perf_counter()
    if len(seconds) < 9 + 2 * num_compared:
        raise SystemExit(
            f"--long_frames {num_frames}: at least {frames_per_clip * (9 + 2 * num_compared)} are needed."
        )
    return [
        statistics.median(x[-num_compared:]) / statistics.median(x[9 : 9 + num_compared]) for x in (seconds, memory)
    ]


def main(args):
    device = "cuda" if torch.cuda.is_available() else "cpu"

    transformer = VideoGPTTransformerModel(
        num_layers=args.layers,
        num_attention_heads=args.heads,
        ffn_dim=args.ffn_dim,
    )
    generator = torch.Generator().manual_seed(0)
    transformer.init_weights(generator)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.02, generator=generator)
    transformer = cast_as_loaded(transformer, getattr(torch, args.dtype)).to(device).eval()
    transformer.set_attention_backend("native")
    pipe = VideoGPTPipeline(vae=AutoencoderTiny(), transformer=transformer, scheduler=NextClipFlowMatchScheduler()).to(
        device
    )
    pipe.set_progress_bar_config(disable=True)
    in_bfloat16 = VideoGPTPipeline(
        **pipe.components | {"transformer": cast_as_loaded(copy.deepcopy(transformer), torch.bfloat16)}
    )
    in_bfloat16.set_progress_bar_config(disable=True)
    how = (args.steps, args.guidance_scale)

    size = args.height // 8
    results, cached = {}, {}
    for num_history, num_frames in args.cases:
        history = torch.randn(1, 4, num_history, size, size, generator=generator).to(device)
        noise = torch.randn(1, 4, num_frames, size, size, generator=generator).to(device)
        few = (pipe, noise, history, 3, args.guidance_scale)
        difference = (recompute_clip(*few) - cached_clip(*few)).abs().max().item()
        assert difference < (1e-4 if args.dtype == "float32" else 0.5), difference
        halved = {}
        if args.dtype == "float32":
            half_difference = (cached_clip(in_bfloat16, *few[1:]) - cached_clip(*few)).abs().max().item()
            assert half_difference < 0.5, half_difference
            halved = {"bfloat16": lambda call=(noise, history): cached_clip(in_bfloat16, *call, *how)}
        call = (pipe, noise, history, *how)
        cached[num_history, num_frames] = lambda call=call: cached_clip(*call)
        seconds = take_turns(
            {"recompute": lambda call=call: recompute_clip(*call), "cached": cached[num_history, num_frames]} | halved,
            args.rounds,
            num_warmups=0,
        )
        name = f"{num_history} frames of history, clip of {num_frames}"
        results[name] = speedup(seconds, slow="recompute", fast="cached") | {"largest_difference": difference}
        print(show_speedup(name, results[name]), f"difference {difference:.1e}", flush=True)
        if halved:
            name = f"{name}, cached, bfloat16 over float32"
            results[name] = speedup(seconds, slow="cached", fast="bfloat16") | {"largest_difference": half_difference}
            print(show_speedup(name, results[name]), f"difference {half_difference:.1e}", flush=True)

    if {(16, 16), (64, 16)} <= cached.keys():
        seconds = take_turns({"16": cached[16, 16], "64": cached[64, 16]}, args.rounds)
        results["64 frames of history over 16"] = speedup(seconds, slow="64", fast="16")
        print("time of a clip:", show_speedup("64 frames of history over 16", results["64 frames of history over 16"]))
    if args.long_frames:
        times, memory = long_rollout(pipe, args.long_frames, args.height)
        results[f"last clips of {args.long_frames} frames over the tenth"] = {"time": times, "memory": memory}
        print(f"last clips of {args.long_frames} frames over the tenth: time {times:.2f} x, memory {memory:.2f} x")
    write_results(args.output, results)


if __name__ == "__main__":
    run_script(main, ARGS)
