"""Training attention under the hierarchical mask: what the mask lets through, over dense attention.

    python training_scripts/benchmark_attention.py --output attention.json

For layouts of the paper's training stages, outputs and gradients are compared first; then forward and backward passes take
turns. On a CPU tiles are timed, on a GPU FlexAttention with a block mask. Prints how many times faster they are than
dense attention under a boolean mask, and how long their mask takes to make.
"""

import time
from functools import partial

from diffusers_videogpt.arguments import positive_int
from diffusers_videogpt.training.arguments import make_parser, parse_with_output, run_script


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--num_frames", type=positive_int, default=16, help="of a sample; the paper trains with 48 and 80"
    )
    parser.add_argument("--num_layouts", type=positive_int, default=3, help="random partitions into clips")
    parser.add_argument("--max_clips", type=positive_int, help="of a partition; by default any number")
    parser.add_argument("--height", type=positive_int, default=256, help="pixels; a frame has (height / 16)² patches")
    parser.add_argument("--batch_size", type=positive_int, default=1, help="samples of one partition")
    parser.add_argument("--heads", type=positive_int, default=4)
    parser.add_argument("--head_dim", type=positive_int, default=96)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=positive_int, default=5)
    return parse_with_output(parser, "attention.json")


if __name__ == "__main__":
    ARGS = run_script(parse_args)  # before torch is imported, which takes seconds: wrong options are told at once

import torch

from diffusers_videogpt.attention_videogpt import block_attention
from diffusers_videogpt.clips import draw_clip_lengths, make_clip_layout
from diffusers_videogpt.evaluation.timing import show_speedup, speedup, take_turns, write_results
from diffusers_videogpt.tile_attention import tile_attention


def dense_attention(query, key, value, *, attn_mask):
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask).transpose(1, 2)


def forward_and_backward(attend, inputs, *, grad):
    attend(*inputs).backward(grad)


def main(args):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype)

    results = []
    for seed in range(args.num_layouts):
        clips = draw_clip_lengths(args.num_frames, torch.Generator().manual_seed(seed), max_clips=args.max_clips)
        layout = make_clip_layout(clips, (args.height // 16, args.height // 16), device=device)
        began = time.perf_counter()
        if device == "cuda":
            sparse = partial(block_attention, block_mask=layout.block_mask)
        else:
            sparse = partial(tile_attention, tiles=layout.attention_tiles)
        mask_seconds = time.perf_counter() - began
        dense_mask = layout.dense_mask
        shape = (args.batch_size, layout.num_tokens, args.heads, args.head_dim)
        inputs = [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3)]
        grad = torch.randn(shape, device=device, dtype=dtype)

        variants = {"dense": partial(dense_attention, attn_mask=dense_mask), "sparse": sparse}
        outputs = {name: attend(*inputs) for name, attend in variants.items()}
        grads = {name: torch.autograd.grad(output, inputs, grad) for name, output in outputs.items()}
        pairs = [(outputs["dense"], outputs["sparse"]), *zip(grads["dense"], grads["sparse"], strict=True)]
        difference = max((a - b).abs().max().item() for a, b in pairs)
        assert difference < (1e-5 if args.dtype == "float32" and device == "cpu" else 0.1), difference

        seconds = take_turns(
            {name: partial(forward_and_backward, attend, inputs, grad=grad) for name, attend in variants.items()},
            args.rounds,
        )
        result = speedup(seconds, slow="dense", fast="sparse") | {
            "clips": clips,
            "tokens": layout.num_tokens,
            "attended": dense_mask.float().mean().item(),
            "largest_difference": difference,
            "mask_seconds": mask_seconds,
        }
        results.append(result)
        print(
            show_speedup(f"{len(clips)} clips, {layout.num_tokens} tokens, {result['attended']:.2f} attended", result),
            f"difference {difference:.1e}, mask made in {1e3 * mask_seconds:.0f} ms",
        )
    write_results(args.output, results)


if __name__ == "__main__":
    run_script(main, ARGS)
