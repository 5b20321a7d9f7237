"""An earlier commit of this package beside this one: one streamed frame after a long history, or a training step.

    git worktree add ../earlier COMMIT
    python training_scripts/benchmark_against_commit.py --checkout ../earlier --case stream

Each has a process of its own, with the same weights and inputs; their results are compared before they take turns. "stream"
is one guided clip after a history, by default one frame after 79; "step" is forward and backward of eight samples of 24 frames
under three partitions into clips, by bf16 autocast and compiled blocks.
"""

import inspect
import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from diffusers_videogpt.arguments import positive_int
from diffusers_videogpt.training.arguments import make_parser, parse_with_output, run_script


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--checkout", type=Path, required=True, help="a folder with an earlier commit of this package")
    parser.add_argument("--case", choices=["stream", "step"], default="stream")
    parser.add_argument("--layers", type=positive_int, default=8)
    parser.add_argument("--heads", type=positive_int, default=4)
    parser.add_argument("--head_dim", type=positive_int, default=64)
    parser.add_argument("--ffn_dim", type=positive_int, default=704)
    parser.add_argument("--height", type=positive_int, default=64, help="pixels; a frame has (height / 16)² patches")
    parser.add_argument("--history", type=positive_int, default=79, help="frames before a streamed clip")
    parser.add_argument("--clip_frames", type=positive_int, default=1, help="of a streamed clip")
    parser.add_argument("--steps", type=positive_int, default=10, help="denoising steps of a streamed clip")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of this package's transformer in a stream; auto: as its commands take it. The earlier commit's is float32",
    )
    parser.add_argument("--rounds", type=positive_int, default=5)
    args = parse_with_output(parser, "against_commit.json")
    if args.history <= args.clip_frames:
        parser.error("--history must be longer than --clip_frames: the clip before belongs to it")
    if not (args.checkout / "diffusers_videogpt" / "transformer_videogpt.py").is_file():
        raise SystemExit(f"--checkout {args.checkout}: there is no diffusers_videogpt/transformer_videogpt.py in it.")
    return args


if __name__ == "__main__":
    ARGS = run_script(parse_args)  # before torch is imported, which takes seconds: wrong options are told at once

import torch

from diffusers_videogpt.commands.models import multiplies_in_bfloat16
from diffusers_videogpt.evaluation.timing import show_speedup, speedup, write_results


def serve(case, layers, heads, head_dim, ffn_dim, height, history, clip_frames, steps, dtype):
    """What a process does: for every line that it is sent it runs once, and writes its seconds and its result.

    It knows only what both commits have, and is handed over as text.
    """
    import json
    import sys
    import time

    import torch
    from diffusers import AutoencoderTiny

    from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline, VideoGPTTransformerModel
    from diffusers_videogpt.training.objective import next_clip_loss

    generator = torch.Generator().manual_seed(0)
    net = VideoGPTTransformerModel(
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        ffn_dim=ffn_dim,
        pos_embed_max_size=64,
        pos_embed_base_size=64,
        rope_long_factor=None,
    )
    for name, parameter in sorted(net.named_parameters()):
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    if dtype != "float32":
        from diffusers_videogpt.diffusers_internals import cast_as_loaded  # only this commit is asked for it

        net = cast_as_loaded(net, getattr(torch, dtype))
    size = height // 8

    def stream():
        """Two clips: the second is timed, when all code has run once."""
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        )
        pipe = VideoGPTPipeline(vae=vae, transformer=net.eval(), scheduler=NextClipFlowMatchScheduler())
        pipe.set_progress_bar_config(disable=True)
        given = torch.randn(1, 4, history - clip_frames, size, size, generator=torch.Generator().manual_seed(1))
        while True:
            clips = pipe.stream(
                video_latents=given,
                num_frames=2 * clip_frames,
                frames_per_clip=clip_frames,
                max_context_frames=history + clip_frames,
                num_inference_steps=steps,
                guidance_scale=2.0,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            )
            with torch.no_grad():
                next(clips)
                began = time.perf_counter()
                clip = next(clips)
            seconds = time.perf_counter() - began
            yield seconds, getattr(clip, "frames", clip).float().flatten().tolist()

    def step():
        net.train().compile_repeated_blocks()
        latents = torch.randn(8, 4, 24, size, size, generator=generator)
        while True:
            losses, began = [], time.perf_counter()
            for clips in ([9, 6, 4, 5], [12, 12], [6, 6, 6, 6]):
                generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
                with torch.autocast("cpu", torch.bfloat16):
                    loss = next_clip_loss(net, latents, clip_lengths=[clips] * 8, generator=generators)
                loss.backward()
                losses.append(loss.item())
                net.zero_grad()
            yield time.perf_counter() - began, losses

    turns = {"stream": stream, "step": step}[case]()
    for _ in sys.stdin:
        print("turn", json.dumps(next(turns)), flush=True)


class Turns:
    """A process that serves one of the two commits; each call lets it run once."""

    def __init__(self, checkout: Path, call: dict):
        self.checkout = checkout
        source = f"{inspect.getsource(serve)}\nserve(**{call!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=checkout,  # where `-c` imports from first
            env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.wait()

    def __call__(self) -> tuple[float, torch.Tensor]:
        """(seconds, what it computed)"""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; so does what it writes
        for line in self.process.stdout:
            if line.startswith("turn "):
                seconds, result = json.loads(line.removeprefix("turn "))
                return seconds, torch.tensor(result)
        raise SystemExit(f"The code in {self.checkout} failed (--checkout, or this commit): its error stands above.")


def main(args):
    dtype = args.dtype
    if dtype == "auto":
        dtype = "bfloat16" if multiplies_in_bfloat16("cpu") else "float32"
    if args.case == "step":
        dtype = "float32"  # of the weights; both run under autocast
    names = ("case", "layers", "heads", "head_dim", "ffn_dim", "height", "history", "clip_frames", "steps")
    sizes = {name: getattr(args, name) for name in names}
    with ExitStack() as stack:
        checkouts = {"earlier": (args.checkout, "float32"), "now": (Path(__file__).parents[1], dtype)}
        variants = {
            name: stack.enter_context(Turns(checkout, sizes | {"dtype": its_dtype}))
            for name, (checkout, its_dtype) in checkouts.items()
        }
        results = {name: turn()[1] for name, turn in variants.items()}  # the first turn of each is not timed
        difference = (results["earlier"] - results["now"]).abs().max().item()
        assert difference < (1e-3 if (args.case, dtype) == ("stream", "float32") else 0.1), difference
        seconds = {name: [] for name in variants}
        for _ in range(args.rounds):
            for name, turn in variants.items():
                seconds[name].append(turn()[0])
    result = speedup(seconds, slow="earlier", fast="now") | {"largest_difference": difference}
    result |= {f"seconds_{name}": statistics.median(values) for name, values in seconds.items()}
    name = "step" if args.case == "step" else f"stream in {dtype} over float32" if dtype != "float32" else "stream"
    print(show_speedup(name, result), f"difference {difference:.1e}")
    write_results(args.output, {args.case: result})


if __name__ == "__main__":
    run_script(main, ARGS)
