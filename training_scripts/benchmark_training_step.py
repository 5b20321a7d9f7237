"""A whole training step: what the mask lets through, over a dense mask in every layer.

    python training_scripts/benchmark_training_step.py --output training_step.json

"dense" does what the authors' code does: every layer computes all tokens, under one additive mask of (T, T). The other is
the model as it is: on a CPU by tiles, on a GPU by FlexAttention with a block mask, and the last layer only where it is read.
Losses and gradients of both are compared before they take turns. Samples are of the paper's training stages: random clips,
of 48 frames in stage 3 and of 80 in stage 4; on a CPU fewer of them, of the same form.
"""

from functools import partial

from diffusers_videogpt.arguments import positive_int
from diffusers_videogpt.training.arguments import make_parser, parse_with_output, run_script


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument(
        "--num_frames", type=positive_int, nargs="+", default=[16], help="of a sample; the paper: 48 and 80"
    )
    parser.add_argument("--num_layouts", type=positive_int, default=3, help="random partitions into clips")
    parser.add_argument("--layers", type=positive_int, default=4)
    parser.add_argument("--heads", type=positive_int, default=4, help="of 96 channels each")
    parser.add_argument("--ffn_dim", type=positive_int, default=1024)
    parser.add_argument("--height", type=positive_int, default=256, help="pixels; a frame has (height / 16)² patches")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights, and of autocast"
    )
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--rounds", type=positive_int, default=3)
    return parse_with_output(parser, "training_step.json")


if __name__ == "__main__":
    ARGS = run_script(parse_args)  # before torch is imported, which takes seconds: wrong options are told at once

import torch

from diffusers_videogpt import VideoGPTTransformerModel, draw_clip_lengths, make_clip_layout
from diffusers_videogpt.diffusers_internals import cast_as_loaded
from diffusers_videogpt.evaluation.timing import show_speedup, speedup, take_turns, write_results
from diffusers_videogpt.training.objective import next_clip_loss


class DenseEverywhere:
    """While it is entered, every block of a transformer computes all tokens under one additive mask."""

    def __init__(self, transformer, layout):
        self.blocks = transformer.transformer_blocks
        dtype = next(transformer.parameters()).dtype
        self.mask = torch.zeros(layout.dense_mask.shape, device=layout.stream.device, dtype=dtype)
        self.mask.masked_fill_(~layout.dense_mask, -torch.inf)

    def __enter__(self):
        def with_dense_mask(_block, args):
            tokens, _mask, rotary_emb, *others = args
            # The last block is also told, at the end, how many tokens are read of it; here it computes all.
            return tokens, self.mask, rotary_emb, *others[:3], *(tokens.shape[1] for _ in others[3:])

        self.hooks = [block.register_forward_pre_hook(with_dense_mask) for block in self.blocks]

    def __exit__(self, *exc_info):
        for hook in self.hooks:
            hook.remove()


def step(transformer, latents, clips, seed=0):
    """Forward and backward pass of the loss; returns the loss and the gradients."""
    transformer.zero_grad()
    generator, dtype = torch.Generator().manual_seed(seed), transformer.dtype
    with torch.autocast(latents.device.type, dtype, enabled=dtype != torch.float32):
        loss = next_clip_loss(transformer, latents, clip_lengths=[clips], generator=generator)
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in transformer.parameters() if parameter.grad is not None]


def dense_step(transformer, layout, latents, clips):
    with DenseEverywhere(transformer, layout):
        return step(transformer, latents, clips)


def main(args):
    device = "cuda" if torch.cuda.is_available() else "cpu"

    generator = torch.Generator().manual_seed(0)
    transformer = VideoGPTTransformerModel(
        num_layers=args.layers,
        num_attention_heads=args.heads,
        ffn_dim=args.ffn_dim,
    )
    transformer.init_weights(generator)
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.02, generator=generator)
    transformer = cast_as_loaded(transformer, getattr(torch, args.dtype)).to(device).train()
    if args.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if device == "cuda":
        transformer.set_attention_backend("flex")

    results = []
    for num_frames in args.num_frames:
        for seed in range(args.num_layouts):
            clips = draw_clip_lengths(num_frames, torch.Generator().manual_seed(seed))
            layout = make_clip_layout(clips, (args.height // 16, args.height // 16), device=device)
            latents = torch.randn(1, 4, num_frames, args.height // 8, args.height // 8, generator=generator).to(device)
            variants = {
                "dense": partial(dense_step, transformer, layout, latents, clips),
                "masked": partial(step, transformer, latents, clips),
            }
            (dense_loss, dense_grads), (loss, grads) = (
                (loss, [grad.clone() for grad in grads]) for loss, grads in (run() for run in variants.values())
            )
            difference = max((a - b).abs().max().item() for a, b in zip(dense_grads, grads, strict=True))
            difference = max(difference, (dense_loss - loss).abs().item())
            assert difference < (1e-5 if args.dtype == "float32" and device == "cpu" else 0.1), difference
            result = speedup(take_turns(variants, args.rounds, num_warmups=0), slow="dense", fast="masked")
            result |= {"clips": clips, "tokens": layout.num_tokens, "largest_difference": difference}
            results.append(result)
            name = f"{num_frames} frames in {len(clips)} clips, {layout.num_tokens} tokens"
            print(show_speedup(name, result), f"difference {difference:.1e}", flush=True)
    write_results(args.output, results)


if __name__ == "__main__":
    run_script(main, ARGS)
