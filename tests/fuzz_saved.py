"""Mutated configurations, checkpoints, adapters and manifests: each is loaded, or refused in one line that names what is wrong.

    python tests/fuzz_saved.py --num 300

makes that many from small saved ones and prints what became of them. A fault is an error of another kind than a program can
tell its user in a sentence (`ValueError`, `OSError`), an empty one, or one that takes more than 10 s.
"""

import copy
import json
import shutil
import signal
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from fuzzing import Fault, damage, parse_args, report, run_fuzzer

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline, VideoGPTTransformerModel
from diffusers_videogpt.commands.models import load_pipeline, look_at_model
from diffusers_videogpt.data.latents import LatentCache, make_cache_key, write_latent_cache
from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.data.videos import VideoTable
from diffusers_videogpt.files import hash_file
from diffusers_videogpt.hub import export_to_hub_folder
from diffusers_videogpt.training.checkpoints import RunParts, load_checkpoint, save_checkpoint
from diffusers_videogpt.training.loop import TrainingLoop  # noqa: F401  (what is loaded once takes no case's time)


MAX_SECONDS = 10
STRANGE = [None, True, -1, 0, 2.5, 10**9, 10**30, "", "word", "../../x", [], [1], {}, {"a": [1]}, [[[]]], float("nan")]
TINY = {
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "ffn_dim": 32,
    "pos_embed_max_size": 16,
    "rope_long_factor": None,
}


def make_pipeline() -> VideoGPTPipeline:
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=16)
    known = {"trained_on": "noise", "trained_with": {"fps": 8.0, "clips": "random", "num_frames": 4}}
    return VideoGPTPipeline(
        vae, VideoGPTTransformerModel(**TINY), NextClipFlowMatchScheduler(), id2label={0: "a"}, **known
    )


def make_run() -> RunParts:
    """What a checkpoint is of."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return RunParts(Accelerator(cpu=True), model, [optimizer], [scheduler])


def make_seeds(folder: Path) -> None:
    """A saved pipeline, an adapter, a checkpoint and a cache of latents, each in a folder of its own."""
    pipe = make_pipeline()
    pipe.save_pretrained(folder / "pipeline")
    generator = torch.Generator().manual_seed(0)
    shapes = {"lora_A.weight": (4, 32), "lora_B.weight": (32, 4)}
    name = "transformer_blocks.0.attn.to_q"
    layers = {f"{name}.{part}": torch.randn(shape, generator=generator) for part, shape in shapes.items()}
    metadata = {"r": 4, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {name: 2}, "use_rslora": False}
    VideoGPTPipeline.save_lora_weights(
        folder / "adapter",
        layers,
        transformer_lora_adapter_metadata=metadata,
        trained_with={"fps": 8.0, "clips": "random"},
    )
    run = {"seed": 0, "sampling": {"fps": None, "frame_interval": [1, 1]}, "content.sources": "0"}
    saved = save_checkpoint(folder, 1, parts=make_run(), state={"step": 1, "losses": [1.0], "run": run, "feed": {}})
    saved.rename(folder / "checkpoint")
    table = VideoTable.simulated(2, 4, sampling=Sampling(4, height=16, width=16))
    vae = pipe.vae
    write_latent_cache(folder / "cache", table, vae=vae, key=make_cache_key(vae, table.sampling, seed=0))


def load_model(folder: Path) -> None:
    load_pipeline(look_at_model(str(folder)), device="cpu")


def load_adapter(folder: Path, pipe: VideoGPTPipeline) -> None:
    pipe.load_lora_weights(folder)
    pipe.unload_lora_weights()


def load_run(folder: Path) -> None:
    expected = json.loads((folder.parent / "checkpoint" / "state.json").read_text())["state"]["run"]
    load_checkpoint(folder, make_run(), expected=expected)


def load_cache(folder: Path) -> None:
    cache = LatentCache(folder, {})
    for index in range(len(cache)):
        cache.size(index), cache.length(index), cache.read(index, 0)


def export(folder: Path) -> None:
    out = folder.with_name("exported")
    shutil.rmtree(out, ignore_errors=True)
    export_to_hub_folder(folder, out, base_model="someone/base")


def mutate(value: Any, generator: np.random.Generator) -> Any:
    """JSON with one value, somewhere in it, strange, missing, or under another name."""
    value = copy.deepcopy(value)
    spot, steps = value, []
    while isinstance(spot, dict | list) and spot and (not steps or generator.integers(3)):
        key = (
            list(spot)[generator.integers(len(spot))] if isinstance(spot, dict) else int(generator.integers(len(spot)))
        )
        steps.append((spot, key))
        spot = spot[key]
    if not steps:
        return STRANGE[generator.integers(len(STRANGE))]
    parent, key = steps[-1]
    kind = generator.integers(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent["other"] = parent.pop(key)
    else:
        parent[key] = STRANGE[generator.integers(len(STRANGE))]
    return value


def mutate_file(path: Path, generator: np.random.Generator) -> None:
    """Bytes turned or cut, or, most of the time, JSON mutated: the file's own, or that of a safetensors file's header."""
    data = path.read_bytes()
    if generator.integers(4) == 0:
        path.write_bytes(damage(data, generator))
    elif path.suffix == ".json":
        path.write_text(json.dumps(mutate(json.loads(data), generator)))
    else:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        metadata = header.get("__metadata__", {})
        nested = [name for name, text in metadata.items() if text.startswith("{")]
        if nested and generator.integers(2):
            metadata[nested[0]] = json.dumps(mutate(json.loads(metadata[nested[0]]), generator))
        else:
            header = mutate(header, generator)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def vouch(folder: Path, name: str) -> None:
    """The manifest of a checkpoint names the file as it is now: as if its writer had been somebody else."""
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / name
    manifest["files"][name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


# What is mutated → the files of it, and who reads them.
FILES = {
    "pipeline": (
        *("model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"),
        "transformer/diffusion_pytorch_model.safetensors",
    ),
    "adapter": ("pytorch_lora_weights.safetensors",),
    "checkpoint": ("manifest.json", "state.json", "model.safetensors", "optimizer-0.safetensors"),
    "cache": ("index.json", "latents-00000.safetensors"),
}


def readers(pipe: VideoGPTPipeline) -> dict[str, tuple[Callable[[Path], None], ...]]:
    return {
        "pipeline": (load_model, export),
        "adapter": (lambda folder: load_adapter(folder, pipe), export),
        "checkpoint": (load_run,),
        "cache": (load_cache, export),
    }


def too_long(*_):
    raise TimeoutError


def fuzz(num: int, folder: Path, seed: int = 0) -> tuple[Counter[str], list[Fault]]:
    """Counts of what was loaded and what refused, and the faults."""
    make_seeds(folder)
    generator, read_by = np.random.default_rng(seed), readers(make_pipeline())
    counts, faults, kinds = Counter(), [], list(FILES)
    before = signal.signal(signal.SIGALRM, too_long)
    for number in range(num):
        kind = kinds[number % len(kinds)]
        name = FILES[kind][generator.integers(len(FILES[kind]))]
        case = folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(folder / kind, case)
        mutate_file(case / name, generator)
        if kind == "checkpoint" and name != "manifest.json":
            vouch(case, name)
        is_sound = True
        for read in read_by[kind]:
            signal.alarm(MAX_SECONDS)
            try:
                read(case)
                outcome = "loaded"
            except (ValueError, OSError) as error:
                outcome = "refused" if str(error) and not isinstance(error, TimeoutError) else "fault"
                what = f"{type(error).__name__}: {error}"
            except Exception as error:  # anything else is a fault to be listed
                outcome, what = "fault", f"{type(error).__name__}: {error}"
            finally:
                signal.alarm(0)
            counts[f"{kind}: {outcome}"] += 1
            if outcome == "fault":
                is_sound = False
                faults.append(Fault(f"{number}/{name}", getattr(read, "__name__", kind), what))
        if not is_sound:
            shutil.copytree(case, folder / str(number))
    signal.signal(signal.SIGALRM, before)
    return counts, faults


def main() -> int:
    args = parse_args(__doc__, num=300, what="mutated folders")
    warnings.simplefilter("ignore")
    counts, faults = run_fuzzer(fuzz, args)
    return report(counts, faults, f"{args.num} folders, {len(faults)} faults")


if __name__ == "__main__":
    sys.exit(main())
