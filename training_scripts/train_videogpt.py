"""Train Video-GPT by next clip diffusion, on a folder of videos or on simulated physics.

    accelerate launch training_scripts/train_videogpt.py --pretrained_vae_path vae \
        --transformer_config training_scripts/configs/bundled_transformer.json --num_simulated_scenes 8000 \
        --height 64 --width 64 --max_num_frames 24 --output_dir run

Writes into --output_dir: the trained pipeline, `train_log.csv`, the encoded videos in `latents.safetensors`, and
`checkpoint-N` folders, from which `--resume_from_checkpoint latest` goes on as if it had never stopped: what a step trains
on follows from the seed and the step alone.
"""

import argparse
import csv
import json
import math
import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from diffusers_videogpt import (
    NextClipFlowMatchScheduler,
    VideoGPTPipeline,
    VideoGPTTransformerModel,
    draw_clip_lengths,
)
from diffusers_videogpt.training.datasets import SimulatedScenes, VideoFolder, encode_videos
from diffusers_videogpt.training.objective import next_clip_loss


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--pretrained_model_name_or_path", help="a Video-GPT pipeline to start from")
    parser.add_argument("--pretrained_vae_path", help="a VAE, where there is no pipeline to start from")
    parser.add_argument(
        "--transformer_config", type=Path, help="JSON arguments of a transformer to train from nothing"
    )
    parser.add_argument("--vae_dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--instance_data_root", type=Path, help="folder of videos")
    parser.add_argument("--num_simulated_scenes", type=int, help="simulated scenes, instead of a folder of videos")
    parser.add_argument("--num_validation_videos", type=int, default=64, help="videos kept for the validation loss")
    parser.add_argument("--height", type=int, default=192)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--frame_interval", type=int, default=1, help="every how many source frames one is taken")
    parser.add_argument("--frames_per_video", type=int, help="frames encoded of each video; default: max_num_frames")
    parser.add_argument("--max_num_frames", type=int, default=24, help="frames of one training sample")
    parser.add_argument("--max_clips", type=int, help="most clips that a sample is cut into; default: one a frame")
    parser.add_argument("--min_retention", type=float, default=0.9, help="least share of signal in a clean clip")
    parser.add_argument("--frames_per_clip", type=int, default=8, help="of the saved pipeline")
    parser.add_argument("--guidance_scale", type=float, default=1.5, help="of the saved pipeline")
    parser.add_argument("--train_batch_size", type=int, default=16, help="videos a step and process")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--torch_compile", action="store_true", help="compile the transformer's blocks")
    parser.add_argument("--max_train_steps", type=int, default=1000)
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--lr_scheduler", default="constant_with_warmup", help="a diffusers schedule")
    parser.add_argument("--lr_warmup_steps", type=int, default=1000)
    parser.add_argument("--adam_beta1", type=float, default=0.9)
    parser.add_argument("--adam_beta2", type=float, default=0.95)
    parser.add_argument("--adam_weight_decay", type=float, default=0.1)
    parser.add_argument("--adam_epsilon", type=float, default=1e-5)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--ema_decay", type=float, default=0.999, help="0 for none")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    parser.add_argument("--dataloader_num_workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logging_steps", type=int, default=20)
    parser.add_argument("--validation_steps", type=int, default=500)
    parser.add_argument("--checkpointing_steps", type=int, default=500)
    parser.add_argument("--checkpoints_total_limit", type=int, default=2)
    parser.add_argument("--resume_from_checkpoint", help="a checkpoint-N folder, or 'latest'")
    args = parser.parse_args()
    if (args.instance_data_root is None) == (args.num_simulated_scenes is None):
        parser.error("give one of --instance_data_root and --num_simulated_scenes")
    if args.pretrained_model_name_or_path is None and not (args.pretrained_vae_path and args.transformer_config):
        parser.error("give --pretrained_model_name_or_path, or --pretrained_vae_path with --transformer_config")
    args.frames_per_video = args.frames_per_video or args.max_num_frames
    if args.frames_per_video < args.max_num_frames:
        parser.error("--frames_per_video must be at least --max_num_frames")
    return args


def load_pipeline(args) -> VideoGPTPipeline:
    """The pipeline to start from, or a new one around a VAE."""
    if args.pretrained_model_name_or_path is not None:
        return VideoGPTPipeline.from_pretrained(args.pretrained_model_name_or_path)
    transformer = VideoGPTTransformerModel(**json.loads(args.transformer_config.read_text()))
    transformer.init_weights(torch.Generator().manual_seed(args.seed))
    return VideoGPTPipeline(
        vae=AutoModel.from_pretrained(args.pretrained_vae_path, dtype=getattr(torch, args.vae_dtype)),
        transformer=transformer,
        scheduler=NextClipFlowMatchScheduler(),
        frames_per_clip=args.frames_per_clip,
        max_context_frames=max(args.max_num_frames - args.frames_per_clip, 1),
        longest_side=max(args.height, args.width),
        guidance_scale=args.guidance_scale,
    )


def load_latents(args, pipe: VideoGPTPipeline, accelerator: Accelerator) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents to train on, and to validate on, each (videos, C, F, h, w)."""
    if args.instance_data_root is not None:
        videos = VideoFolder(
            args.instance_data_root, args.frames_per_video, args.height, args.width, args.frame_interval
        )
        for path, reason in videos.skipped.items():
            accelerator.print(f"left out {path}: {reason}")
        source = str(args.instance_data_root)
    else:
        num_scenes = args.num_simulated_scenes + args.num_validation_videos
        videos = SimulatedScenes(num_scenes, args.frames_per_video, args.height)
        source = "simulated scenes"
    description = {
        "source": source,
        "videos": len(videos),
        "frames": args.frames_per_video,
        "frame_interval": args.frame_interval,
        "height": args.height,
        "width": args.width,
        "vae_scaling_factor": pipe.vae.config.scaling_factor,
    }
    if len(videos) <= args.num_validation_videos:
        raise SystemExit(
            f"{len(videos)} usable videos, of which --num_validation_videos {args.num_validation_videos} are kept for "
            "validation: add videos or lower it."
        )
    path = args.output_dir / "latents.safetensors"
    with accelerator.main_process_first():
        pipe.vae.to(accelerator.device)
        latents = encode_videos(videos, pipe, path, description, args.seed, args.dataloader_num_workers)
    split = len(latents) - args.num_validation_videos
    return latents[:split], latents[split:]


def draw_batch(latents: torch.Tensor, args, step: int, rank: int):
    """What one process trains on at one step: latents (B, C, N, h, w), the clips, and the generator for their noise.

    All of it follows from the seed, the step and the rank, so a resumed run continues exactly. Within an epoch of
    the batches of all processes, no video is drawn twice.
    """
    generator = torch.Generator().manual_seed((args.seed * 1_000_003 + step) * 1_009 + rank)
    num_processes, batch_size = args.num_processes, args.train_batch_size
    batches_per_epoch = max(len(latents) // (batch_size * num_processes), 1)
    epoch, batch = divmod(step, batches_per_epoch)
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(args.seed * 7_919 + epoch))
    first = (batch * num_processes + rank) * batch_size
    windows = []
    for index in order[torch.arange(first, first + batch_size) % len(latents)].tolist():
        start = int(torch.randint(latents.shape[2] - args.max_num_frames + 1, (), generator=generator))
        windows.append(latents[index, :, start : start + args.max_num_frames])
    # One partition for the batch: no sample is padded to the clean frames of another.
    clip_lengths = [draw_clip_lengths(args.max_num_frames, generator, args.max_clips)] * len(windows)
    return torch.stack(windows).float(), clip_lengths, generator


@torch.no_grad()
def validation_loss(transformer, latents: torch.Tensor, args, accelerator: Accelerator) -> float:
    """The loss on the kept videos, with the same clips and noise every time."""
    losses = []
    for first in range(0, len(latents), args.train_batch_size):
        generator = torch.Generator().manual_seed(first)
        windows = latents[first : first + args.train_batch_size, :, : args.max_num_frames].float()
        clip_lengths = [draw_clip_lengths(args.max_num_frames, generator, args.max_clips)] * len(windows)
        with accelerator.autocast():
            loss = next_clip_loss(
                transformer, windows.to(accelerator.device), clip_lengths, generator, args.min_retention
            )
        losses.append(loss.item())
    return sum(losses) / len(losses)


def find_checkpoint(args) -> Path | None:
    if args.resume_from_checkpoint is None:
        return None
    if args.resume_from_checkpoint != "latest":
        return Path(args.resume_from_checkpoint)
    checkpoints = saved_checkpoints(args)
    return checkpoints[-1] if checkpoints else None


def saved_checkpoints(args) -> list[Path]:
    """Complete checkpoints, oldest first: `step.json` is written last."""
    found = [path.parent for path in args.output_dir.glob("checkpoint-*/step.json")]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def save_checkpoint(args, accelerator: Accelerator, step: int) -> None:
    folder = args.output_dir / f"checkpoint-{step}"
    accelerator.save_state(folder)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (folder / "step.json").write_text(json.dumps({"step": step}))
        for old in saved_checkpoints(args)[: -args.checkpoints_total_limit]:
            shutil.rmtree(old)


def make_optimizers(transformer: VideoGPTTransformerModel, args) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices of the blocks and AdamW for the rest."""
    matrices = []
    if args.optimizer == "muon":
        matrices = [p for p in transformer.transformer_blocks.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in transformer.parameters() if id(p) not in taken]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim >= 2]},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
        fused=True,
    )
    if not matrices:
        return [adamw]
    # Its steps are scaled to the size of AdamW's, so both share the learning rate and the decay.
    muon = torch.optim.Muon(
        matrices, lr=args.learning_rate, weight_decay=args.adam_weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adamw]


def main():
    args = parse_args()
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision, gradient_accumulation_steps=args.gradient_accumulation_steps
    )
    set_seed(args.seed)
    args.num_processes = accelerator.num_processes
    args.output_dir.mkdir(parents=True, exist_ok=True)

    pipe = load_pipeline(args)
    train_latents, validation_latents = load_latents(args, pipe, accelerator)
    transformer = pipe.transformer.train()
    if args.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if args.torch_compile:
        transformer.compile_repeated_blocks()

    optimizers = make_optimizers(transformer, args)
    # accelerate steps the schedule once a process, so it is made that many times as long.
    schedulers = [
        get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
            num_training_steps=args.max_train_steps * accelerator.num_processes,
        )
        for optimizer in optimizers
    ]
    ema = None
    if args.ema_decay:
        ema = EMAModel(transformer.parameters(), decay=args.ema_decay)
        ema.to(accelerator.device)
        accelerator.register_for_checkpointing(ema)
    transformer = accelerator.prepare(transformer)
    optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]
    schedulers = [accelerator.prepare(scheduler) for scheduler in schedulers]

    step, log = 0, []
    log_path = args.output_dir / "train_log.csv"
    checkpoint = find_checkpoint(args)
    if checkpoint is not None:
        accelerator.load_state(checkpoint)
        step = json.loads((checkpoint / "step.json").read_text())["step"]
        with log_path.open(newline="") as file:
            log = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        accelerator.print(f"resumed from {checkpoint}")

    def weights_in_use():
        """EMA weights for validation, given back afterwards."""
        ema.store(transformer.parameters())
        ema.copy_to(transformer.parameters())

    progress = tqdm(total=args.max_train_steps, initial=step, disable=not accelerator.is_main_process, mininterval=10)
    losses, began, began_step = [], time.perf_counter(), step
    while step < args.max_train_steps:
        for micro_step in range(args.gradient_accumulation_steps):
            latents, clip_lengths, generator = draw_batch(
                train_latents, args, step * args.gradient_accumulation_steps + micro_step, accelerator.process_index
            )
            with accelerator.accumulate(transformer):
                with accelerator.autocast():
                    loss = next_clip_loss(
                        transformer, latents.to(accelerator.device), clip_lengths, generator, args.min_retention
                    )
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(transformer.parameters(), args.max_grad_norm)
                for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
            losses.append(loss.detach())
        if ema is not None:
            ema.step(transformer.parameters())
        step += 1
        progress.update()

        if step % args.logging_steps == 0 or step == args.max_train_steps:
            mean_loss = accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
            if not math.isfinite(mean_loss):
                raise SystemExit(f"The loss is {mean_loss} at step {step}; the last checkpoint is from before.")
            seconds = (time.perf_counter() - began) / (step - began_step)
            row = {
                "step": step,
                "loss": f"{mean_loss:.6f}",
                "validation_loss": "",
                "seconds_per_step": f"{seconds:.3f}",
            }
            if step % args.validation_steps == 0 or step == args.max_train_steps:
                if ema is not None:
                    weights_in_use()
                row["validation_loss"] = f"{validation_loss(transformer, validation_latents, args, accelerator):.6f}"
                if ema is not None:
                    ema.restore(transformer.parameters())
            log.append(row)
            if accelerator.is_main_process:
                with log_path.open("w", newline="") as file:
                    writer = csv.DictWriter(file, fieldnames=list(row))
                    writer.writeheader()
                    writer.writerows(log)
                progress.set_postfix(loss=row["loss"], lr=schedulers[0].get_last_lr()[0])
            losses, began, began_step = [], time.perf_counter(), step
        if step % args.checkpointing_steps == 0:
            save_checkpoint(args, accelerator, step)

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if ema is not None:
            ema.copy_to(transformer.parameters())
        pipe.transformer = accelerator.unwrap_model(transformer).eval()
        pipe.save_pretrained(args.output_dir)
        print(f"saved the pipeline in {args.output_dir}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
