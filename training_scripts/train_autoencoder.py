"""Train a small 8x-down `AutoencoderKL`, the autoencoder of the bundled model, on simulated physics or on your videos.

    accelerate launch training_scripts/train_autoencoder.py --output_dir vae --max_train_steps 6000

Writes into --output_dir: the autoencoder (`config.json` with a measured `scaling_factor`, safetensors weights),
`train_log.csv`, and `checkpoint-N` folders, from the latest of which `--resume_from_checkpoint latest` goes on.
"""

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset

from diffusers_videogpt.arguments import positive_int
from diffusers_videogpt.training.arguments import make_parser
from diffusers_videogpt.training.checkpoints import refuse_existing
from diffusers_videogpt.training.loop import hold_process_group
from diffusers_videogpt.training.settings import SCHEDULES, ema_decay


FIRST_TRAINING_SEED = 1_000_000  # evaluation scenes have the seeds 0..9999
VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mov", ".mkv", ".gif")
LOG_EVERY = 20
EMA = "ema.pt"


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--instance_data_root", type=Path, help="folder of videos to train on, instead of simulated scenes"
    )
    parser.add_argument(
        "--simulated_world",
        choices=["physics", "orders"],
        default="physics",
        help="scenes of five kinds, or of balls and boxes made to order, for text to video",
    )
    parser.add_argument("--resolution", type=int, default=64, help="frames are made square, this many pixels a side")
    parser.add_argument(
        "--pretrained_model_name_or_path", help="a saved AutoencoderKL to go on from; its sizes hold, not those below"
    )
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=[32, 32, 64, 64])
    parser.add_argument("--layers_per_block", type=int, default=1)
    parser.add_argument("--latent_channels", type=int, default=4)
    parser.add_argument("--norm_num_groups", type=int, default=8)
    parser.add_argument(
        "--frames_per_video", type=positive_int, default=4, help="frames taken from a video each time it is drawn"
    )
    parser.add_argument("--train_batch_size", type=positive_int, default=4, help="videos a batch")
    parser.add_argument("--max_train_steps", type=positive_int, default=6000)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--lr_scheduler", choices=SCHEDULES, default="cosine")
    parser.add_argument("--lr_warmup_steps", type=int, default=100)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--mse_weight", type=float, default=4.0, help="weight of the squared error; L1 has weight 1")
    parser.add_argument("--kl_weight", type=float, default=1e-4, help="weight of the KL term, a mean over the latents")
    parser.add_argument(
        "--foreground_weight",
        type=float,
        default=10.0,
        help="extra weight of pixels unlike the background; 0 for none",
    )
    parser.add_argument("--ema_decay", type=ema_decay, default=0.999)
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    parser.add_argument("--dataloader_num_workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpointing_steps", type=positive_int, default=1000)
    parser.add_argument("--resume_from_checkpoint", help="a checkpoint-N folder, or 'latest'")
    parser.add_argument(
        "--num_eval_videos", type=positive_int, default=64, help="unseen scenes; with a folder, its last videos"
    )
    args = parser.parse_args()

    down = 2 ** (len(args.block_out_channels) - 1)
    if args.resolution % down:
        parser.error(f"--resolution {args.resolution} must be divisible by {down}, by which the autoencoder shrinks")
    return args


class SimulatedVideos(Dataset):
    """Scenes of consecutive seeds, as uint8 (F, H, W, 3)."""

    def __init__(self, world, first_seed, length, resolution):
        self.world, self.first_seed, self.length, self.resolution = world, first_seed, length, resolution

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        from diffusers_videogpt.worlds import draw_order, simulate

        seed = self.first_seed + index
        if self.world == "orders":
            return draw_order(seed).simulate(seed, size=self.resolution).frames
        return simulate(seed=seed, size=self.resolution).frames


class FolderVideos(Dataset):
    """Video files, cropped to their middle square and resized, as uint8 (F, H, W, 3)."""

    def __init__(self, paths, resolution):
        self.paths, self.resolution = paths, resolution

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        from diffusers_videogpt.video_io import read_video

        frames = torch.from_numpy(read_video(self.paths[index]).frames).permute(0, 3, 1, 2)
        side = min(frames.shape[-2:])
        top, left = ((n - side) // 2 for n in frames.shape[-2:])
        frames = frames[..., top : top + side, left : left + side].float()
        frames = F.interpolate(frames, size=self.resolution, mode="bilinear", antialias=True)
        return frames.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


class RandomFrames(Dataset):
    """Item i is `count` random frames of video i (round and round) as (count, 3, H, W) in -1..1, the same each time."""

    def __init__(self, videos, length, count, seed):
        self.videos, self.length, self.count, self.seed = videos, length, count, seed

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        frames = self.videos[index % len(self.videos)]
        rng = np.random.default_rng((self.seed, index))
        return to_model(frames[rng.integers(len(frames), size=self.count)])


def to_model(frames):
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def open_videos(args):
    """The videos to train on and those kept for evaluation."""
    if args.instance_data_root is None:
        length = args.max_train_steps * args.train_batch_size
        # Runs with different seeds see different scenes.
        first = FIRST_TRAINING_SEED * (1 + args.seed)
        return (
            SimulatedVideos(args.simulated_world, first, length, args.resolution),
            SimulatedVideos(args.simulated_world, 0, args.num_eval_videos, args.resolution),
        )
    paths = sorted(p for p in args.instance_data_root.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    if len(paths) <= args.num_eval_videos:
        raise SystemExit(
            f"--instance_data_root {args.instance_data_root} holds {len(paths)} videos ({', '.join(VIDEO_SUFFIXES)}), "
            f"of which --num_eval_videos {args.num_eval_videos} are kept for evaluation: add videos or lower it."
        )
    split = len(paths) - args.num_eval_videos
    return FolderVideos(paths[:split], args.resolution), FolderVideos(paths[split:], args.resolution)


def make_autoencoder(args):
    if args.pretrained_model_name_or_path:
        return AutoencoderKL.from_pretrained(args.pretrained_model_name_or_path)
    levels = len(args.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(args.block_out_channels),
        layers_per_block=args.layers_per_block,
        latent_channels=args.latent_channels,
        norm_num_groups=args.norm_num_groups,
        sample_size=args.resolution,
        mid_block_add_attention=False,
    )


class ReconstructionObjective(torch.nn.Module):
    """L1 + mse_weight x squared error + kl_weight x KL, both errors weighed towards pixels unlike the frame's median.

    A module, so that distributed data parallel and torch.compile see the whole of it.
    """

    def __init__(self, vae, mse_weight, kl_weight, foreground_weight):
        super().__init__()
        self.vae, self.mse_weight, self.kl_weight = vae, mse_weight, kl_weight
        self.foreground_weight = foreground_weight

    def forward(self, pixels):
        posterior = self.vae.encode(pixels).latent_dist
        error = self.vae.decode(posterior.sample()).sample.float() - pixels
        median = pixels.flatten(2).median(dim=-1).values[..., None, None]
        weight = 1 + self.foreground_weight * (pixels - median).abs().mean(dim=1, keepdim=True)
        weight = weight / weight.mean()
        l1, mse = (weight * error.abs()).mean(), (weight * error.square()).mean()
        # diffusers sums the KL over a sample's latents; a mean keeps its weight independent of their number.
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        return l1 + self.mse_weight * mse + self.kl_weight * kl, l1, mse, kl


@torch.no_grad()
def evaluate(vae, videos, simulated):
    """Reconstruct every frame of `videos` from the mean of its latents.

    Returns a dict: latent_mean (of each channel), latent_std (around it, over all channels), mse and psnr (pixels in
    0..1), mse_later (between each frame and the one 16 frames later) and, for simulated scenes, objects_kept (fraction
    of frames that show as many objects of each colour and shape as before).
    """
    latents, errors, later, kept = [], [], [], []
    for index in range(len(videos)):
        frames = videos[index]
        pixels = to_model(frames)
        mean = vae.encode(pixels).latent_dist.mean
        decoded = ((vae.decode(mean).sample.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        latents.append(mean)
        errors.append(np.square(decoded / 255.0 - frames / 255.0).mean())
        ahead = min(16, len(frames) - 1)
        later.append(np.square(frames[ahead:] / 255.0 - frames[: len(frames) - ahead] / 255.0).mean())
        if simulated:
            from diffusers_videogpt.worlds import find_objects

            kept += [sorted(find_objects(a)) == sorted(find_objects(b)) for a, b in zip(frames, decoded, strict=True)]
    mse = float(np.mean(errors))
    latents = torch.cat(latents)
    latent_mean = latents.mean(dim=(0, 2, 3))
    result = {
        "latent_mean": latent_mean,
        "latent_std": (latents - latent_mean[:, None, None]).std().item(),
        "mse": mse,
        "psnr": -10 * math.log10(mse),
        "mse_later": float(np.mean(later)),
    }
    if simulated:
        result["objects_kept"] = float(np.mean(kept))
    return result


@torch.no_grad()
def centre_latents(vae, mean):
    """Move the channels' means to zero, as a diffusion model wants them, without a change in what is decoded."""
    vae.quant_conv.bias[: len(mean)] -= mean
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean


def find_checkpoint(args):
    """The checkpoint to go on from, or None for a new run, which replaces nothing."""
    if args.resume_from_checkpoint is None:
        refuse_existing(args.output_dir)
        return None
    if args.resume_from_checkpoint != "latest":
        checkpoint = Path(args.resume_from_checkpoint)
        if checkpoint.resolve().parent != args.output_dir.resolve():
            refuse_existing(args.output_dir)
        return checkpoint
    # The average of the weights is written last: without it, a checkpoint was cut short.
    found = [path for path in args.output_dir.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
    found = [path for path in found if (path / EMA).is_file()]
    if not found:
        raise SystemExit(f"--resume_from_checkpoint latest: no complete checkpoint-N folder in {args.output_dir}")
    return max(found, key=lambda path: int(path.name.partition("-")[2]))


def main():
    args = parse_args()
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    hold_process_group()
    set_seed(args.seed)
    checkpoint = find_checkpoint(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)

    vae = make_autoencoder(args).to(memory_format=torch.channels_last)
    ema = EMAModel(vae.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    # accelerate steps the schedule once a process, so it is made that many times as long.
    scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    train_videos, eval_videos = open_videos(args)
    clips = RandomFrames(
        train_videos,
        args.max_train_steps * args.train_batch_size * accelerator.num_processes,
        args.frames_per_video,
        args.seed,
    )
    # In order: simulated scenes are independent, and a step then means the same scenes in every run.
    # Its own generator, or starting the loader would draw from the stream that a checkpoint has just restored.
    loader = DataLoader(
        clips, batch_size=args.train_batch_size, num_workers=args.dataloader_num_workers, generator=torch.Generator()
    )
    objective = ReconstructionObjective(vae, args.mse_weight, args.kl_weight, args.foreground_weight)
    objective, optimizer, loader, scheduler = accelerator.prepare(objective, optimizer, loader, scheduler)
    ema.to(accelerator.device)

    step = 0
    if checkpoint is not None:
        accelerator.load_state(checkpoint)
        # Kept by hand: what is registered with accelerate is unpickled without weights_only.
        ema.load_state_dict(torch.load(checkpoint / EMA, map_location="cpu", weights_only=True))
        ema.to(accelerator.device)
        step = int(checkpoint.name.split("-")[1])
        loader = accelerator.skip_first_batches(loader, step)
        accelerator.print(f"resumed from {checkpoint}")

    log_path = args.output_dir / "train_log.csv"
    rows = []
    if step:
        with log_path.open() as file:
            rows = list(csv.reader(file))[1:]
        rows = [row for row in rows if int(row[0]) <= step]

    objective.train()
    for batch in loader:
        pixels = batch.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with accelerator.autocast():
            loss, l1, mse, kl = objective(pixels)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(vae.parameters(), args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        ema.step(vae.parameters())
        step += 1
        if accelerator.is_main_process and (step % LOG_EVERY == 0 or step == 1):
            values = [f"{value.item():.6f}" for value in (loss, l1, mse, kl)]
            rows.append([step, *values, f"{scheduler.get_last_lr()[0]:.2e}"])
            with log_path.open("w", newline="") as file:
                csv.writer(file).writerows([["step", "loss", "l1", "mse", "kl", "learning_rate"], *rows])
            print(f"step {step}/{args.max_train_steps} loss {values[0]} l1 {values[1]} mse {values[2]}", flush=True)
        if step % args.checkpointing_steps == 0:
            checkpoint = args.output_dir / f"checkpoint-{step}"
            accelerator.save_state(checkpoint)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                partial = checkpoint / f"{EMA}.partial"
                torch.save(ema.state_dict(), partial)
                partial.rename(checkpoint / EMA)
                # The one before is kept in case this one was cut short.
                shutil.rmtree(
                    args.output_dir / f"checkpoint-{step - 2 * args.checkpointing_steps}", ignore_errors=True
                )

    if accelerator.is_main_process:
        ema.copy_to(vae.parameters())
        vae = vae.to("cpu").float().eval()
        result = evaluate(vae, eval_videos, simulated=args.instance_data_root is None)
        centre_latents(vae, result["latent_mean"])
        vae.register_to_config(scaling_factor=1 / result["latent_std"])
        vae.save_pretrained(args.output_dir)
        print(
            f"{len(eval_videos)} unseen videos: PSNR {result['psnr']:.2f} dB, MSE {result['mse']:.3e}, "
            f"which is {100 * result['mse'] / result['mse_later']:.2f} % of the MSE 16 frames later"
        )
        if "objects_kept" in result:
            print(f"objects counted right, by colour and shape, in {100 * result['objects_kept']:.2f} % of frames")
        print(f"scaling_factor {1 / result['latent_std']:.4f}, saved in {args.output_dir}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
