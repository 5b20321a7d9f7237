"""Side by side with the authors' own code: the training step, a clip after a history, and the mask, by turns in one process.

    git clone https://github.com/zhuangshaobin/Video-GPT reference
    python training_scripts/benchmark_against_reference.py --reference reference --output against_reference.json

The checkout is imported as it is; nothing of it is copied. What it imports and does not need here (deepspeed, timm, torchvision)
is replaced by empty modules. Its decoder is a subclass of transformers' Phi3Model of 2024, whose layers took other arguments and
made their own rotary tables: the layers of the installed transformers are called in that way. Both models have the same weights,
with plain rotary positions, and their outputs are compared before anything is timed. Times are CPU seconds.
"""

import sys
import time
import types
from pathlib import Path

from diffusers_videogpt.arguments import positive_int
from diffusers_videogpt.training.arguments import make_parser, parse_with_output, run_script


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--reference", type=Path, required=True, help="a checkout of the authors' repository")
    parser.add_argument("--layers", type=positive_int, default=2)
    parser.add_argument("--heads", type=positive_int, default=4, help="of 96 channels each")
    parser.add_argument("--ffn_dim", type=positive_int, default=1024)
    parser.add_argument("--height", type=positive_int, default=128, help="pixels; a frame has (height / 16)² patches")
    parser.add_argument(
        "--clips", type=positive_int, nargs="+", default=[3, 1, 4, 2, 6], help="lengths, of a training step"
    )
    parser.add_argument("--autocast", action="store_true", help="the training step under bf16 autocast")
    parser.add_argument(
        "--history", type=positive_int, nargs="*", default=[16, 64], help="frames before a clip; none: no clips"
    )
    parser.add_argument("--clip_frames", type=positive_int, default=16)
    parser.add_argument("--steps", type=positive_int, default=10, help="denoising steps; the authors: 50")
    parser.add_argument("--rounds", type=positive_int, default=3)
    return parse_with_output(parser, "against_reference.json")


if __name__ == "__main__":
    ARGS = run_script(parse_args)  # before torch is imported, which takes seconds: wrong options are told at once

import torch
from diffusers import AutoencoderTiny
from transformers import Phi3Config

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline, VideoGPTTransformerModel, make_clip_layout
from diffusers_videogpt.clips import CLEAN, CONDITION, NOISY, TokenMeta, attends
from diffusers_videogpt.convert_checkpoint import convert_config, convert_state_dict
from diffusers_videogpt.evaluation.timing import show_speedup, speedup, take_turns, write_results
from diffusers_videogpt.scheduling_next_clip_flow_match import set_flow_timesteps


HINTS = (3, 4, 5)  # rows of <img>, </img>, <|diffusion|> in the token table of this benchmark


class LayerOf2024(torch.nn.Module):
    """A decoder layer of today's transformers under the arguments, and with the tuple, that the authors' loop knows."""

    def __init__(self, layer: torch.nn.Module, rotary_emb: torch.nn.Module):
        super().__init__()
        self.layer = layer
        self.tables = [rotary_emb]  # in a list, so that it is no part of the layer

    def forward(self, hidden_states, attention_mask=None, position_ids=None, **_cache):
        tables = self.tables[0](hidden_states, position_ids)
        output = self.layer(
            hidden_states, attention_mask=attention_mask, position_ids=position_ids, position_embeddings=tables
        )
        return (output if torch.is_tensor(output) else output[0],)


def import_reference(folder: Path) -> types.SimpleNamespace:
    """Their network and collator, from a checkout.

    Raises:
        SystemExit: if this is none.
    """
    if not (folder / "LVM" / "model.py").is_file():
        raise SystemExit(f"--reference {folder}: there is no LVM/model.py in it: clone the authors' repository.")
    absent = types.SimpleNamespace()
    for name, values in {
        "deepspeed": (),
        "timm": (),
        "timm.models": (),
        "timm.models.vision_transformer": ("PatchEmbed", "Attention", "Mlp"),
        "torchvision": ("transforms",),
    }.items():
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__dict__.update(dict.fromkeys(values, absent))
    for package in ("LVM", "OmniGen"):  # without their __init__, which imports all tasks
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(folder / package)]
    model = __import__("LVM.model", fromlist=["LVM"])
    processor = __import__("LVM.processor", fromlist=["LVMCollator"])
    model.hccl_info.world_size, model.hccl_info.rank = 1, 0  # one process
    return types.SimpleNamespace(model=model.LVM, collator=processor.LVMCollator())


def make_models(reference, layers: int, heads: int, ffn_dim: int):
    """Their model and ours, with the same random weights."""
    config = Phi3Config(
        vocab_size=8,
        hidden_size=96 * heads,
        intermediate_size=ffn_dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        pad_token_id=0,
        max_position_embeddings=131072,
        original_max_position_embeddings=131072,
    )
    config._attn_implementation = "sdpa"
    config.output_attentions = config.output_hidden_states = False
    torch.manual_seed(0)
    theirs = reference.model(config)
    torch.nn.init.normal_(theirs.final_layer.linear.weight, std=0.02)
    torch.nn.init.normal_(theirs.final_layer.adaLN_modulation[-1].weight, std=0.02)
    tensors = theirs.state_dict()
    ours = VideoGPTTransformerModel(**convert_config(config.to_dict(), tensors))
    ours.load_state_dict(convert_state_dict(tensors, ours, hint_token_ids=HINTS))
    decoder = theirs.llm
    decoder.layers = torch.nn.ModuleList([LayerOf2024(layer, decoder.rotary_emb) for layer in decoder.layers])
    decoder.gradient_checkpointing = False
    return theirs, ours


class TheirSequence:
    """The inputs of `frame_block_forward`: frames of clean and noisy clips one after another, each P + 2 tokens.

    Args:
        samples: of each sample its frames, (stream, clip, frame) in their order. Shorter ones are padded in front.
        num_patches: P.
    """

    def __init__(self, samples: list[list[tuple[int, int, int]]], num_patches: int):
        frame_length = num_patches + 2
        length = max(map(len, samples)) * frame_length
        self.ids = torch.zeros(len(samples), length, dtype=torch.long)
        self.positions = torch.zeros(len(samples), length, dtype=torch.long)
        self.clean, self.noisy, self.times = {}, {}, {}
        masks = []
        for index, frames in enumerate(samples):
            places = {CLEAN: self.clean.setdefault(index, []), NOISY: self.noisy.setdefault(index, [])}
            times, tokens = self.times.setdefault(index, []), []
            first = padding = length - len(frames) * frame_length
            for stream, clip, frame in frames:
                ranks = [0, *[1] * num_patches, 2] if stream == CLEAN else [0, 1, *[2] * num_patches]
                tokens += [(stream, clip, frame, rank) for rank in ranks]
                start = first + (1 if stream == CLEAN else 2)
                places[stream].append((start, start + num_patches))
                self.ids[index, first] = HINTS[0] if stream == CLEAN else HINTS[2]
                if stream == CLEAN:
                    self.ids[index, first + frame_length - 1] = HINTS[1]
                else:
                    times.append(first + 1)
                self.positions[index, first : first + frame_length] = torch.arange(frame_length) + frame * frame_length
                first += frame_length
            meta = torch.tensor([(CONDITION, 0, 0, 0)] * padding + tokens).T
            seen = attends(TokenMeta(*meta[:, :, None]), TokenMeta(*meta[:, None]))
            seen[padding:, :padding] = False
            masks.append(seen)
        self.mask = torch.stack(masks)

    def run(self, theirs, noisy: list[torch.Tensor], alphas: torch.Tensor, clean: list[torch.Tensor], mask=None):
        """Their predictions, a list of (1, C, h, w), one a noisy frame."""
        return theirs.frame_block_forward(
            noisy,
            alphas,
            self.ids,
            clean,
            self.clean,
            (self.mask if mask is None else mask).to(torch.float32),
            self.positions,
            self.noisy,
            self.times,
            return_past_key_values=False,
        )


def frames_of(latents: torch.Tensor) -> list[torch.Tensor]:
    """(1, C, F, h, w) → F of (1, C, h, w)"""
    return list(latents.unbind(2))


def training_order(clip_lengths: list[int]) -> list[tuple[int, int, int]]:
    """NS(1), CL(1), NS(2), …, NS(K)"""
    order, first = [], 0
    for clip, length in enumerate(clip_lengths):
        for stream in (NOISY, CLEAN) if clip < len(clip_lengths) - 1 else (NOISY,):
            order += [(stream, clip, first + i) for i in range(length)]
        first += length
    return order


def compare_training(theirs, ours, collator, clip_lengths, size, rounds, clock, autocast):
    grid, num_frames, num_clean = (size // 2, size // 2), sum(clip_lengths), sum(clip_lengths[:-1])
    noisy, target, clean = (torch.randn(1, 4, n, size, size) for n in (num_frames, num_frames, num_clean))
    alphas = torch.rand(1, num_frames)
    num_patches = grid[0] * grid[1]
    sequence = TheirSequence([training_order(clip_lengths)], num_patches)

    def their_mask():
        whole = torch.ones(1, sequence.mask.shape[1], dtype=torch.long)
        return collator.create_mask_frame_block_training(whole, [num_patches + 2], {0: clip_lengths})

    def our_mask():
        layout = make_clip_layout(clip_lengths, grid)
        assert layout.attention_tiles.plan.numel() and layout.output_attention_tiles.plan.numel()

    assert torch.equal(their_mask(), sequence.mask), "the masks differ"

    def their_step():
        theirs.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            predicted = sequence.run(theirs, frames_of(noisy), alphas[0], frames_of(clean), their_mask())
        loss = torch.stack([(p - t).square().mean() for p, t in zip(predicted, frames_of(target), strict=True)]).mean()
        loss.backward()
        return loss.item()

    def our_step():
        ours.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            layout = make_clip_layout(clip_lengths, grid)
            predicted = ours(noisy, alphas, clean, clip_layout=layout).sample
        loss = (predicted - target).square().mean()
        loss.backward()
        return loss.item()

    with torch.no_grad():
        predicted = torch.stack(sequence.run(theirs, frames_of(noisy), alphas[0], frames_of(clean)), dim=2)
        layout = make_clip_layout(clip_lengths, grid)
        difference = (predicted - ours(noisy, alphas, clean, clip_layout=layout).sample).abs().max().item()
    assert difference < 1e-3, difference
    losses = their_step(), our_step()
    assert abs(losses[0] - losses[1]) < (1e-2 if autocast else 1e-4) * losses[0], losses
    results = {}
    for name, slow, fast in (
        (f"training step{' in bf16' if autocast else ''}", their_step, our_step),
        ("mask", their_mask, our_mask),
    ):
        seconds = take_turns({"theirs": slow, "ours": fast}, rounds, num_warmups=1, clock=clock)
        results[name] = speedup(seconds, slow="theirs", fast="ours") | {"largest_difference": difference}
        results[name]["tokens"] = sequence.mask.shape[1]
        print(show_speedup(f"{name}, {sequence.mask.shape[1]} tokens", results[name]), f"difference {difference:.1e}")
    return results


@torch.no_grad()
def compare_clip(theirs, ours, num_history, num_frames, size, steps, rounds, clock, guidance_scale=3.0):
    history, noise = torch.randn(1, 4, num_history, size, size), torch.randn(1, 4, num_frames, size, size)
    clip = [(NOISY, 1, num_history + i) for i in range(num_frames)]
    alone = [(NOISY, 1, i) for i in range(num_frames)]
    sequence = TheirSequence([[(CLEAN, 0, i) for i in range(num_history)] + clip, alone], (size // 2) ** 2)
    scheduler = NextClipFlowMatchScheduler()
    pipe = VideoGPTPipeline(vae=AutoencoderTiny(), transformer=ours, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)

    def their_clip():
        latents = noise
        timesteps, alphas = set_flow_timesteps(scheduler, steps, device="cpu")
        for timestep, alpha in zip(timesteps, alphas, strict=True):
            both = frames_of(latents) * 2
            predicted = sequence.run(theirs, both, alpha.expand(len(both)), frames_of(history))
            cond, uncond = torch.stack(predicted, dim=2).chunk(2, dim=2)
            latents = scheduler.step(uncond + guidance_scale * (cond - uncond), timestep, latents).prev_sample
        return latents

    def our_clip():
        return pipe(
            video_latents=history,
            latents=noise,
            num_frames=num_frames,
            frames_per_clip=num_frames,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="latent",
        ).frames

    difference = (their_clip() - our_clip()).abs().max().item()
    assert difference < 1e-3, difference
    seconds = take_turns({"theirs": their_clip, "ours": our_clip}, rounds, num_warmups=0, clock=clock)
    result = speedup(seconds, slow="theirs", fast="ours") | {"largest_difference": difference}
    print(
        show_speedup(f"clip of {num_frames} after {num_history}, {steps} steps", result),
        f"difference {difference:.1e}",
    )
    return result


def main(args):
    reference = import_reference(args.reference)
    theirs, ours = make_models(reference, args.layers, args.heads, args.ffn_dim)
    size = args.height // 8
    how = {"size": size, "rounds": args.rounds, "clock": time.process_time}
    results = compare_training(
        theirs.train(), ours.train(), reference.collator, args.clips, autocast=args.autocast, **how
    )
    for num_history in args.history:
        name = f"clip of {args.clip_frames} after {num_history}"
        models = (theirs.eval(), ours.eval())
        results[name] = compare_clip(*models, num_history, args.clip_frames, steps=args.steps, **how)
    write_results(args.output, results)


if __name__ == "__main__":
    run_script(main, ARGS)
