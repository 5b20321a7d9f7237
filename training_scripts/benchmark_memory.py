"""Memory of training the published 3.8 B model, whole or by LoRA, counted exactly, without a GPU and without the memory.

    python training_scripts/benchmark_memory.py --output memory.json

Weights, gradients, optimizer state and average are counted from the parameters; activations by running the network's
forward pass on tensors that have a shape and a dtype but no data, under bf16 autocast, and adding up every tensor that is
kept for the backward pass, once each. What an allocator wastes, the working memory of single kernels, and the VAE come on
top. A LoRA's frozen base is counted in bf16, or in NF4: half a byte a weight and a float32 a block of 64, for every linear
layer (a layer's weights in bf16 while it works come on top). Distillation adds the teacher, frozen, whose passes keep nothing for a
backward pass: to a whole student a second copy in bf16, to a LoRA nothing, as its teacher is its base. On a GPU with enough
memory, `--measure` also runs a step and reports the peak.

With `--adapter_of PIPELINE` nothing of this is done: `train_videogpt_lora.py` with its defaults is counted in the same way on that
pipeline, which fits into this machine's memory, and two of its steps are run while PyTorch writes down every allocation, to see
whether the count can be trusted.

At last the memory of a GPU among 8 and 64 under FSDP2, as `configs/stage3.yaml` and `stage4.yaml` train and as those for 8 and 64
GPUs do: its share of weights, gradients, optimizer state and average; two blocks' weights gathered in bf16; and the activations
that one process of a group of `--context_parallel_size` keeps, counted as above, with checkpointing those of one block besides.
"""

import itertools

from diffusers_videogpt.arguments import positive_int
from diffusers_videogpt.training.arguments import make_parser, parse_with_output, run_script


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--frames", type=positive_int, nargs="+", default=[16, 48, 80])
    parser.add_argument("--measure", action="store_true", help="run the steps too (needs a GPU)")
    parser.add_argument(
        "--adapter_of", metavar="PIPELINE", help="only count and measure a LoRA of this small pipeline"
    )
    return parse_with_output(parser, "memory.json")


if __name__ == "__main__":
    ARGS = run_script(parse_args)  # before torch is imported, which takes seconds: wrong options are told at once

import torch
from diffusers import ContextParallelConfig
from peft import LoraConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from diffusers_videogpt import VideoGPTPipeline, VideoGPTTransformerModel, draw_clip_lengths, make_clip_layout
from diffusers_videogpt.evaluation.timing import write_results
from diffusers_videogpt.training.adapter import ATTENTION, MLP, add_adapter
from diffusers_videogpt.training.objective import next_clip_loss
from diffusers_videogpt.training.settings import AdapterSettings


ADAPTER_BATCH = 4  # samples of a step of train_videogpt_lora.py
SIZES = ((176, 320), (256, 256))  # height, width in pixels
GIB = 2**30


def kept_bytes(transformer, layout, height: int, width: int, *, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes of what one sample's forward pass keeps for its backward pass, parameters left out; autocast to `dtype`."""
    parameters = {p.untyped_storage()._cdata for p in transformer.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage  # held, so that its address is not used again
        return tensor

    def latents(num_frames):
        return torch.zeros(1, transformer.config.in_channels, num_frames, height // 8, width // 8)

    autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        transformer(
            latents(layout.num_noisy_frames),
            torch.zeros(1, layout.num_noisy_frames),
            latents(layout.num_clean_frames),
            clip_layout=layout,
        )
    return sum(storage.nbytes() for storage in kept.values())


def count_activations(transformer, layouts) -> dict[str, dict[str, int]]:
    activations = {}
    for (height, width, num_frames), layout in layouts.items():
        row = {}
        for name in ("without checkpointing", "with checkpointing"):
            if name.startswith("with "):
                transformer.enable_gradient_checkpointing()
            else:
                transformer.disable_gradient_checkpointing()
            row[name] = kept_bytes(transformer.train(), layout, height, width)
        activations[f"{height} x {width}, {num_frames} frames"] = row
        print(
            f"  activations of one sample, {height} x {width}, {num_frames} frames, {layout.num_tokens} tokens: "
            + ", ".join(f"{size / GIB:.1f} GiB {name}" for name, size in row.items()),
            flush=True,
        )
    return activations


def with_adapter(rank: int, target_modules: list[str]) -> VideoGPTTransformerModel:
    """The frozen model in bf16, and a LoRA in fp32."""
    with torch.device("meta"):
        transformer = VideoGPTTransformerModel()
        transformer.requires_grad_(False)
        transformer.add_adapter(LoraConfig(r=rank, target_modules=target_modules))
    for module in transformer.modules():  # a tensor without data can't be moved in place
        for name, buffer in module._buffers.items():
            module._buffers[name] = torch.empty_like(buffer, device="cpu")
        for name, parameter in module._parameters.items():
            if parameter is not None:
                dtype = torch.float32 if parameter.requires_grad else torch.bfloat16
                on_cpu = torch.empty_like(parameter, device="cpu", dtype=dtype)
                module._parameters[name] = torch.nn.Parameter(on_cpu, requires_grad=parameter.requires_grad)
    return transformer


def count_trained(transformer) -> int:
    return sum(p.numel() for p in transformer.parameters() if p.requires_grad)


def count_lora(layouts, num_parameters: int) -> dict:
    """A LoRA of rank 16 on the attention layers, the first frame given and the rest one clip."""
    transformer = with_adapter(16, ATTENTION)
    adapted = [m for m in transformer.modules() if isinstance(m, torch.nn.Linear)]
    num_linear = sum(m.weight.numel() for m in adapted if not m.weight.requires_grad)
    num_trained = count_trained(transformer)
    state = {
        "base, bf16": 2 * num_parameters,
        "base, NF4": num_linear // 2 + num_linear // 64 * 4 + 2 * (num_parameters - num_linear),
        "adapter, its gradients and AdamW": 16 * num_trained,
        "adapter, its gradients and 8-bit AdamW": 10 * num_trained,
    }
    print(f"LoRA, {num_trained / num_parameters:.2%} of the parameters:")
    print(*(f"  {name}: {size / GIB:.2f} GiB" for name, size in state.items()), sep="\n")
    return {"trained_parameters": num_trained, "state": state, "activations": count_activations(transformer, layouts)}


def count_distillation(layouts, num_parameters: int) -> dict:
    """Teacher, student and average of a whole student, and of the LoRA of `configs/distill_lora.yaml`. Only the student's pass keeps
    activations: those of a whole one are those of training."""
    transformer = with_adapter(64, ATTENTION + MLP)
    num_adapter = count_trained(transformer)
    counted = {
        "whole student": {
            "teacher, bf16": 2 * num_parameters,
            "student, fp32": 4 * num_parameters,
            "its gradients": 4 * num_parameters,
            "AdamW": 8 * num_parameters,
            "AdamW, 8 bit": 2 * num_parameters,
            "average": 4 * num_parameters,
        },
        "LoRA": {
            "base, bf16, which is the teacher": 2 * num_parameters,
            "adapter, its gradients and AdamW": 16 * num_adapter,
            "its average": 4 * num_adapter,
        },
    }
    for name, parts in counted.items():
        print(f"Distillation, {name}:", *(f"  {part}: {size / GIB:.2f} GiB" for part, size in parts.items()), sep="\n")
    return counted | {"activations of the LoRA": count_activations(transformer, layouts)}


def count_in_groups(layout, height: int, width: int, group_size: int) -> dict[str, int]:
    """What one of `group_size` processes keeps of the activations of a sample that they compute together."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        transformer = VideoGPTTransformerModel().train()
    if group_size > 1:
        # Processes that exchange nothing: shapes are all that is counted.
        torch.distributed.init_process_group("fake", rank=0, world_size=group_size, store=FakeStore())
        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=group_size))
    with fake:
        whole = kept_bytes(transformer, layout, height, width)
        transformer.enable_gradient_checkpointing()
        kept = kept_bytes(transformer, layout, height, width)
    if group_size > 1:
        torch.distributed.destroy_process_group()
    return {"without": whole, "with": kept + whole // transformer.config.num_layers}


def count_gpus(state: dict[str, int], layouts, num_layers: int = 32) -> dict[str, dict[str, int]]:
    """Bytes on a GPU of 8 and of 64, for a sample of each layout that one process computes, or a group of them."""
    rows = {}
    blocks = 2 * state["weights, fp32"] // 2 // num_layers  # two blocks in bf16
    shared = sum(state[name] for name in ("weights, fp32", "gradients, fp32", "AdamW", "average (EMA)"))
    print("A GPU under FSDP2:")
    for (height, width, num_frames), layout in layouts.items():
        for group_size in (1, 4, 8):
            activations = count_in_groups(layout, height, width, group_size)
            for checkpointing, size in activations.items():
                for num_gpus in (8, 64):
                    name = f"{height} x {width}, {num_frames} frames, {num_gpus} GPUs, --context_parallel_size {group_size}, "
                    name += f"{checkpointing} checkpointing"
                    rows[name] = {"share": shared // num_gpus, "gathered blocks": blocks, "activations": size}
                    parts = ", ".join(f"{part} {size / GIB:.1f}" for part, size in rows[name].items())
                    print(f"  {name}: {sum(rows[name].values()) / GIB:.1f} GiB ({parts})", flush=True)
    return rows


def check_adapter(name: str) -> dict[str, int]:
    """Bytes that training an adapter of a pipeline takes, as the script's defaults train it, in fp32: counted, and the peak of two
    steps."""
    pipe = VideoGPTPipeline.from_pretrained(name, vae=None)
    transformer = pipe.transformer.float().requires_grad_(False)
    num_frames, side = (pipe.config.trained_with or {}).get("num_frames") or 48, pipe.config.longest_side
    layout = make_clip_layout([1, num_frames - 1], (side // 16, side // 16))
    add_adapter(transformer, AdapterSettings(rank=32, train_mlp=True), seed=0)
    transformer.train()
    adapter = [p for p in transformer.parameters() if p.requires_grad]
    sizes = {"base": sum(4 * p.numel() for p in transformer.parameters() if not p.requires_grad)}
    sizes["adapter, gradients, AdamW and average"] = sum(20 * p.numel() for p in adapter)
    sizes["activations"] = ADAPTER_BATCH * kept_bytes(transformer, layout, side, side, dtype=torch.float32)

    optimizer = torch.optim.AdamW(adapter)
    average = [p.detach().clone() for p in adapter]
    latents = torch.randn(ADAPTER_BATCH, transformer.config.in_channels, num_frames, side // 8, side // 8)
    held = sum(tensor.nbytes for tensor in (*transformer.state_dict().values(), *average, latents))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        for _ in range(2):
            next_clip_loss(transformer, latents, clip_lengths=[[1, num_frames - 1]] * ADAPTER_BATCH).backward()
            optimizer.step()
            optimizer.zero_grad()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    peak = held + max(itertools.accumulate(event.nbytes() for event in events))
    counted = sum(sizes.values())
    print(f"{name}: {counted / 2**20:.1f} MiB counted, {peak / 2**20:.1f} MiB at the peak ({peak / counted - 1:+.1%})")
    print(*(f"  {part}: {size / 2**20:.1f} MiB" for part, size in sizes.items()), sep="\n")
    return sizes | {"counted": counted, "peak": peak}


def measured_peak(transformer, num_frames: int, height: int, width: int) -> int:
    """Peak bytes on the GPU of one step of AdamW."""
    optimizer = torch.optim.AdamW(transformer.parameters())
    clips = draw_clip_lengths(num_frames, torch.Generator().manual_seed(0))
    latents = torch.randn(1, 4, num_frames, height // 8, width // 8, device="cuda")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            loss = next_clip_loss(transformer, latents, clip_lengths=[clips])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated()


def main(args):
    if args.adapter_of is not None:
        write_results(args.output, check_adapter(args.adapter_of))
        return

    layouts, lora_layouts = {}, {}
    for height, width in SIZES:
        for num_frames in args.frames:
            clips = draw_clip_lengths(num_frames, torch.Generator().manual_seed(0))
            layouts[height, width, num_frames] = make_clip_layout(clips, (height // 16, width // 16))
        lora_layouts[height, width, 48] = make_clip_layout([1, 47], (height // 16, width // 16))
    for layout in (*layouts.values(), *lora_layouts.values()):  # made here, where numbers can be read
        assert layout.attention_tiles.plan.numel() and layout.output_attention_tiles.plan.numel()
    with FakeTensorMode(allow_non_fake_inputs=True):
        transformer = VideoGPTTransformerModel()
        num_parameters = sum(p.numel() for p in transformer.parameters())
        state = {
            "weights, fp32": 4 * num_parameters,
            "gradients, fp32": 4 * num_parameters,
            "AdamW": 8 * num_parameters,
            "AdamW, 8 bit": 2 * num_parameters,
            "average (EMA)": 4 * num_parameters,
        }
        print("Whole model:", *(f"  {name}: {size / GIB:.1f} GiB" for name, size in state.items()), sep="\n")
        activations = count_activations(transformer, layouts)
        results = {"parameters": num_parameters, "state": state, "activations": activations}
        results["lora"] = count_lora(lora_layouts, num_parameters)
        with_48_frames = {size: layout for size, layout in layouts.items() if size[2] == 48}
        results["distillation"] = count_distillation(with_48_frames, num_parameters)
    one_size = {key: layout for key, layout in layouts.items() if key[:2] == SIZES[0] and key[2] >= 48}
    results["a GPU under FSDP2"] = count_gpus(state, one_size)
    if args.measure:
        transformer = VideoGPTTransformerModel().cuda().train()
        transformer.set_attention_backend("flex")
        transformer.enable_gradient_checkpointing()
        results["measured"] = {
            f"{height} x {width}, {num_frames} frames": measured_peak(transformer, num_frames, height, width)
            for height, width in SIZES
            for num_frames in args.frames
        }
        print(*(f"peak, {name}: {size / GIB:.1f} GiB" for name, size in results["measured"].items()), sep="\n")
    write_results(args.output, results)


if __name__ == "__main__":
    run_script(main, ARGS)
