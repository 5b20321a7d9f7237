"""Prints how far the package is from the authors' numbers: `python tests/parity/report.py` (folder: VIDEOGPT_GOLDEN)."""

import torch
from golden_cases import CASES, golden_latents, golden_tensors, load_golden_model, training_batch

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTKVCache, VideoGPTPipeline


def difference(ours: torch.Tensor, name: str) -> float:
    return (ours - golden_latents(name)).abs().max().item()


def training(model) -> float:
    worst = 0.0
    for index in range(len(CASES["train"])):
        batch = training_batch(index)
        sample = model(batch.noisy, batch.timestep, batch.clean, clip_layout=batch.layout).sample
        for ours, theirs in zip(sample, batch.outputs, strict=True):
            frames, height, width = theirs.shape[1:]
            worst = max(worst, (ours[:, :frames, :height, :width] - theirs).abs().max().item())
    return worst


def inference(model, cached: bool) -> float:
    worst = 0.0
    for index in range(len(CASES["infer"])):
        noisy, clean = golden_latents(f"infer.{index}.noisy"), golden_latents(f"infer.{index}.clean")
        alpha = golden_tensors()[f"infer.{index}.timestep"]
        if cached:
            cache = VideoGPTKVCache(model.config.num_layers, 10_000)
            model(clean_hidden_states=clean, kv_cache=cache)
            conditional = model(noisy, alpha, kv_cache=cache).sample
        else:
            conditional = model(noisy, alpha, clean).sample
        worst = max(worst, difference(conditional, f"infer.{index}.cond"))
        worst = max(worst, difference(model(noisy, alpha).sample, f"infer.{index}.uncond"))
    return worst


def sampling(model, use_kv_cache: bool) -> float:
    worst = 0.0
    for index, case in enumerate(CASES["sample"]):
        pipe = VideoGPTPipeline(None, model, NextClipFlowMatchScheduler(shift=case["time_shift"]))
        pipe.set_progress_bar_config(disable=True)
        clip = pipe(
            video_latents=golden_latents(f"sample.{index}.clean"),
            latents=golden_latents(f"sample.{index}.noise"),
            chunk_partition=[case["generated"]],
            num_inference_steps=case["num_inference_steps"],
            guidance_scale=case["guidance_scale"],
            use_kv_cache=use_kv_cache,
            output_type="latent",
        ).frames
        worst = max(worst, difference(clip, f"sample.{index}.output"))
    return worst


@torch.no_grad()
def main():
    print("| path | training | one prediction | whole guided loop |\n|---|---|---|---|")
    for backend in ("native", "_native_math", "flex"):
        model = load_golden_model()
        model.set_attention_backend(backend)
        for cached in (False, True):
            train = "" if cached else f"{training(model):.1e}"
            name = f"`{backend}`, history {'cached' if cached else 'recomputed'}"
            print(f"| {name} | {train} | {inference(model, cached):.1e} | {sampling(model, cached):.1e} |")


if __name__ == "__main__":
    main()
