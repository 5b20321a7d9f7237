"""Train a small 8x-down `AutoencoderKL` whose latents are made for diffusion, on simulated physics or on your videos.

    accelerate launch training_scripts/train_autoencoder.py --output_dir vae --max_train_steps 6000

What a model of the latents gets wrong looks like noise to the decoder, so it is trained on latents with noise of up to
--latent_noise standard deviations of each channel (l-DeTok, https://arxiv.org/abs/2507.15856). What it is unsure of comes out
weak, and left to itself an autoencoder tells colours by how strong a latent is; so the first three channels are taught the
mean colour of their patch. A penalty keeps the channels from telling the same; what is left of their correlation is whitened
into `quant_conv` and `post_quant_conv` at the end, which leaves what is decoded as it was and gives every channel mean 0 and
standard deviation 1.

Writes into --output_dir: the autoencoder (`config.json`, safetensors weights), `latents.json` (how good its latents are,
as `videogpt evaluate autoencoder` measures it), `train_log.csv`, and `checkpoint-N` folders, from the latest of which
`--resume_from_checkpoint latest` goes on.
"""

import csv
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from diffusers_videogpt.arguments import natural_float, natural_int, positive_int, set_seed_int, whole_number
from diffusers_videogpt.files import hash_json, read_json, write_json
from diffusers_videogpt.training.arguments import ema_decay, grad_norm, make_parser, run_script
from diffusers_videogpt.training.settings import SCHEDULES


channels = whole_number(at_least=1, at_most=10**5)


def parse_args():
    parser = make_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument(
        "--instance_data_root", type=Path, help="folder of videos to train on, instead of simulated scenes"
    )
    help_text = "scenes of five kinds, or of balls and boxes made to order, for text to video"
    parser.add_argument("--simulated_world", choices=["physics", "orders"], default="physics", help=help_text)
    parser.add_argument(
        "--resolution", type=positive_int, default=64, help="frames are made square, this many pixels a side"
    )
    parser.add_argument(
        "--pretrained_model_name_or_path",
        help="a saved AutoencoderKL to go on from; its sizes hold, not those below, but for --latent_channels: with another "
        "number of them the layers next to the latents are new",
    )
    parser.add_argument(
        "--decoder_only",
        action="store_true",
        help="leave the pretrained model's latents as they are, so that what was trained on them goes with the new decoder",
    )
    parser.add_argument("--block_out_channels", type=channels, nargs="+", default=[32, 32, 64, 64])
    parser.add_argument("--layers_per_block", type=whole_number(at_least=1, at_most=100), default=1)
    parser.add_argument("--latent_channels", type=positive_int, help="default: 4, or the pretrained model's")
    parser.add_argument("--norm_num_groups", type=channels, default=8)
    parser.add_argument(
        "--frames_per_video", type=positive_int, default=4, help="frames taken from a video each time it is drawn"
    )
    parser.add_argument("--train_batch_size", type=positive_int, default=4, help="videos a batch")
    parser.add_argument("--max_train_steps", type=positive_int, default=6000)
    parser.add_argument("--learning_rate", type=natural_float, default=1e-3)
    parser.add_argument("--lr_scheduler", choices=SCHEDULES, default="cosine")
    parser.add_argument("--lr_warmup_steps", type=natural_int, default=100)
    parser.add_argument("--max_grad_norm", type=grad_norm, default=1.0)
    parser.add_argument(
        "--mse_weight", type=natural_float, default=4.0, help="weight of the squared error; L1 has weight 1"
    )
    parser.add_argument(
        "--kl_weight", type=natural_float, default=1e-6, help="weight of the KL term, a mean over the latents"
    )
    parser.add_argument(
        "--latent_noise",
        type=natural_float,
        default=0.6,
        help="largest noise on the latents that are decoded, in standard deviations of each channel; uniform from 0 on",
    )
    parser.add_argument(
        "--correlation_weight",
        type=natural_float,
        default=1e-2,
        help="weight of the squared correlations of the channels, summed over all pairs in both orders",
    )
    parser.add_argument(
        "--colour_weight",
        type=natural_float,
        help="weight of the squared error of the first three channels as the mean colour of their patch, in units in which the "
        "three are uncorrelated and have variance 1; default: 2, or 0 with --decoder_only",
    )
    parser.add_argument(
        "--foreground_weight",
        type=natural_float,
        default=10.0,
        help="extra weight of pixels unlike the background, and of those beside them; 0 for none",
    )
    parser.add_argument("--ema_decay", type=ema_decay, default=0.999)
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default="no")
    parser.add_argument("--dataloader_num_workers", type=natural_int, default=0)
    parser.add_argument("--seed", type=set_seed_int, default=0)
    parser.add_argument("--checkpointing_steps", type=positive_int, default=1000)
    parser.add_argument("--resume_from_checkpoint", help="a checkpoint-N folder, or 'latest'")
    parser.add_argument(
        "--num_eval_videos", type=positive_int, default=64, help="unseen scenes; with a folder, its last videos"
    )
    args = parser.parse_args()

    if args.decoder_only and (args.pretrained_model_name_or_path is None or args.latent_channels is not None):
        parser.error(
            "--decoder_only keeps the latents of --pretrained_model_name_or_path: give it, and no --latent_channels"
        )
    if args.decoder_only and args.colour_weight:
        parser.error("--colour_weight has no effect with --decoder_only, which leaves the latents as they are")
    if args.colour_weight is None:
        args.colour_weight = 0.0 if args.decoder_only else 2.0
    if args.instance_data_root is not None and not args.instance_data_root.is_dir():
        parser.error(f"--instance_data_root {args.instance_data_root}: there is no such folder")
    odd = [width for width in args.block_out_channels if width % args.norm_num_groups]
    if odd and args.pretrained_model_name_or_path is None:
        parser.error(
            f"--block_out_channels {odd[0]} cannot be cut into --norm_num_groups {args.norm_num_groups} groups"
        )
    down = 2 ** (len(args.block_out_channels) - 1)
    if args.resolution % down:
        parser.error(f"--resolution {args.resolution} must be divisible by {down}, by which the autoencoder shrinks")
    return args


if __name__ == "__main__":
    ARGS = run_script(parse_args)  # before torch is imported, which takes seconds: wrong options are told at once

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset

from diffusers_videogpt.data.videos import content_digest
from diffusers_videogpt.data.workers import check_shared_memory, until_timeout, worker_options
from diffusers_videogpt.evaluation.autoencoder import (
    add_latent_noise,
    colour_units,
    correlation_penalty,
    encode_videos,
    failed_gates,
    format_report,
    judge_latents,
    latent_statistics,
)
from diffusers_videogpt.frame_latents import get_vae_scale_factor, load_autoencoder
from diffusers_videogpt.training.checkpoints import refuse_existing, refuse_other_run
from diffusers_videogpt.training.loop import hold_process_group
from diffusers_videogpt.training.run_folder import hold_folder
from diffusers_videogpt.weights import hash_weights


FIRST_TRAINING_SEED = 1_000_000  # evaluation scenes have the seeds 0..9999
VIDEO_SUFFIXES = (".mp4", ".webm", ".avi", ".mov", ".mkv", ".gif")
LOG_EVERY = 20
LOG_COLUMNS = ["step", "loss", "l1", "mse", "kl", "correlation", "colour", "learning_rate"]
NUM_COLOUR_SAMPLES = 64  # training samples by whose colours the units of --colour_weight are told
EMA = "ema.pt"
RUN = "run.json"  # in a checkpoint: what a run that goes on from it must agree with
# Of the options; the rest may differ, or is told by the autoencoder, the videos and the number of samples a step.
MUST_AGREE = ("resolution", "decoder_only", "frames_per_video", "learning_rate", "mse_weight", "kl_weight")
MUST_AGREE += ("latent_noise", "correlation_weight", "foreground_weight", "ema_decay", "seed")
REPORT = "latents.json"
LEAST_LOG_VARIANCE = -30.0  # at which `DiagonalGaussianDistribution` clamps


class SimulatedVideos(Dataset):
    """A scene of each seed, as uint8 (F, H, W, 3)."""

    def __init__(self, world, seeds, resolution):
        self.world, self.seeds, self.resolution = world, seeds, resolution

    def __len__(self):
        return len(self.seeds)

    def __getitem__(self, index):
        from diffusers_videogpt.worlds import draw_order, simulate

        seed = self.seeds[index]
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
            SimulatedVideos(args.simulated_world, range(first, first + length), args.resolution),
            SimulatedVideos(args.simulated_world, range(args.num_eval_videos), args.resolution),
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
        vae = load_autoencoder(args.pretrained_model_name_or_path)
        if not isinstance(vae, AutoencoderKL) or not (vae.config.use_quant_conv and vae.config.use_post_quant_conv):
            raise SystemExit(
                f"{args.pretrained_model_name_or_path} has no quant_conv and post_quant_conv, in which correlated channels are "
                "whitened: start from an autoencoder that has both, or from none."
            )
        if args.latent_channels in (None, vae.config.latent_channels):
            return vae
        resized = AutoencoderKL.from_config(vae.config, latent_channels=args.latent_channels)
        new, given = resized.state_dict(), vae.state_dict()
        resized.load_state_dict({name: given[name] if given[name].shape == w.shape else w for name, w in new.items()})
        return resized
    levels = len(args.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(args.block_out_channels),
        layers_per_block=args.layers_per_block,
        latent_channels=args.latent_channels or 4,
        norm_num_groups=args.norm_num_groups,
        sample_size=args.resolution,
        mid_block_add_attention=False,
    )


def run_fields(args, vae, videos, *, num_processes):
    """What a checkpoint must agree with, as [`~diffusers_videogpt.training.checkpoints.refuse_other_run`] takes it.

    Args:
        vae: as training begins with it.
        videos: to train on.
    """
    fields = {name: getattr(args, name) for name in MUST_AGREE}
    fields |= {"global_batch_size": args.train_batch_size * num_processes, "base": args.pretrained_model_name_or_path}
    if args.colour_weight:  # checkpoints from before it know no such field
        fields["colour_weight"] = args.colour_weight
    fields["autoencoder"] = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    fields["videos"] = f"simulated {args.simulated_world}"
    if args.pretrained_model_name_or_path is not None:
        fields["content.base"] = hash_weights(vae)[:16]
    if args.instance_data_root is not None:
        fields["videos"] = str(args.instance_data_root)
        fields["content.videos"] = hash_json([content_digest(path) for path in videos.paths])[:16]
    return fields


class ReconstructionObjective(torch.nn.Module):
    """L1 + mse_weight x squared error + kl_weight x KL + correlation_weight x penalty + colour_weight x error of the mean colours,
    of latents with noise.

    Both errors are weighed towards pixels unlike the frame's median and those beside them: the dark line between two objects
    that touch is what tells that they are two. The noise of each frame is uniform in [0, latent_noise] standard deviations
    of each channel. The mean colours of the patches are told by the first three channels' mean: see
    [`~diffusers_videogpt.evaluation.autoencoder.colour_units`].

    A module, so that distributed data parallel and torch.compile see the whole of it.
    """

    def __init__(
        self,
        vae,
        mse_weight,
        kl_weight,
        *,
        foreground_weight,
        latent_noise,
        correlation_weight,
        colour_weight=0.0,
        colours=None,
    ):
        super().__init__()
        self.colour_weight, self.colours = colour_weight, colours
        self.vae, self.mse_weight, self.kl_weight = vae, mse_weight, kl_weight
        self.foreground_weight = foreground_weight
        self.latent_noise, self.correlation_weight = latent_noise, correlation_weight

    def forward(self, pixels):
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.sample()
        level = self.latent_noise * torch.rand(len(pixels), 1, 1, 1, device=pixels.device)
        noised = add_latent_noise(latents, level, noise=torch.randn_like(latents))
        error = self.vae.decode(noised).sample.float() - pixels
        median = pixels.flatten(2).median(dim=-1).values[..., None, None]
        unlike = F.max_pool2d((pixels - median).abs().mean(dim=1, keepdim=True), 3, stride=1, padding=1)
        weight = 1 + self.foreground_weight * unlike
        weight = weight / weight.mean()
        l1, mse = (weight * error.abs()).mean(), (weight * error.square()).mean()
        # diffusers sums the KL over a sample's latents; a mean keeps its weight independent of their number.
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        penalty = correlation_penalty(posterior.mean.float())
        loss = l1 + self.mse_weight * mse + self.kl_weight * kl + self.correlation_weight * penalty
        colour = torch.zeros_like(loss)
        if self.colour_weight:
            told = posterior.mean[:, :3].float()
            colour = F.mse_loss(told, self.colours(pixels, told.shape[-2:]))
            loss = loss + self.colour_weight * colour
        return loss, l1, mse, kl, penalty, colour


@torch.no_grad()
def whiten_latents(vae, statistics):
    """Give the channels mean 0, standard deviation 1 and no correlation, without a change in what is decoded.

    z' = W (z − mean) with W = covariance^(-1/2), of all such matrices the one that changes the channels least, goes into
    `quant_conv`; z = W⁻¹ z' + mean into `post_quant_conv`. In the config nothing is left to scale or shift.
    The posterior's noise, mixed by W, would no longer be independent from channel to channel, as the class has it, and no
    model of the latents can make use of it: it is taken away, down to the smallest variance that diffusers knows.

    Args:
        statistics: [`~diffusers_videogpt.evaluation.autoencoder.LatentStatistics`] of what the autoencoder encodes.
    """
    values, vectors = torch.linalg.eigh(statistics.covariance.cpu())
    values = values.clamp_min(1e-6 * values.max())  # a direction without variance is left small
    whiten, colour = (vectors @ torch.diag(values**power) @ vectors.T for power in (-0.5, 0.5))
    mean, channels = statistics.mean.cpu(), len(values)

    convolution = vae.quant_conv
    weight, bias = convolution.weight.double(), convolution.bias.double()
    weight[:channels] = torch.einsum("ij,jkhw->ikhw", whiten, weight[:channels])
    bias[:channels] = whiten @ (bias[:channels] - mean)
    weight[channels:], bias[channels:] = 0, LEAST_LOG_VARIANCE
    convolution.weight.copy_(weight)
    convolution.bias.copy_(bias)

    convolution = vae.post_quant_conv
    weight, bias = convolution.weight.double(), convolution.bias.double()
    bias += weight[:, :, 0, 0] @ mean
    convolution.weight.copy_(torch.einsum("ijhw,jk->ikhw", weight, colour))
    convolution.bias.copy_(bias)
    vae.register_to_config(scaling_factor=1.0, shift_factor=None, latents_mean=None, latents_std=None)


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


def report_and_save(vae, videos, output_dir, *, simulated, whiten):
    """Whiten the latents if asked to, judge them on unseen videos and save the autoencoder with what was found."""
    read_objects = None
    if simulated:
        from diffusers_videogpt.worlds import count_objects as read_objects
    moments = encode_videos(vae, (videos[index] for index in range(len(videos))))
    statistics = latent_statistics(moments, vae.config.latent_channels)
    if whiten:
        whiten_latents(vae, statistics)
    # Whitening makes every eigenvalue 1 but cannot undo that a direction was hardly used: those of training count.
    report = replace(judge_latents(vae, videos, read_objects=read_objects), eigenvalues=statistics.eigenvalues)
    vae.save_pretrained(output_dir)
    write_json(output_dir / REPORT, asdict(report))
    print(
        f"{len(videos)} unseen videos{', eigenvalues before the channels were whitened' if whiten else ''}:\n\n{format_report(report)}\n"
    )
    print("\n".join(failed_gates(report)) or "All gates are passed.")
    print(f"saved in {output_dir}")


def main(args):
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    hold_process_group()
    set_seed(args.seed)
    checkpoint = find_checkpoint(args)
    if accelerator.is_main_process:
        hold_folder(args.output_dir)

    vae = make_autoencoder(args).to(memory_format=torch.channels_last)
    if args.colour_weight and vae.config.latent_channels < 4:
        raise SystemExit(
            f"--colour_weight takes three latent channels, of which there are {vae.config.latent_channels}: "
            "pass --latent_channels of 4 or more, or --colour_weight 0."
        )
    train_videos, eval_videos = open_videos(args)
    run = run_fields(args, vae, train_videos, num_processes=accelerator.num_processes)
    if checkpoint is not None:
        if (checkpoint / RUN).is_file():
            refuse_other_run(checkpoint, read_json(checkpoint / RUN), expected=run)
        else:
            accelerator.print(f"{checkpoint} does not tell of what run it is: give the options and videos that it had")
    frame_bytes = 3 * args.resolution**2 * 4  # fp32
    check_shared_memory(args.dataloader_num_workers, args.train_batch_size * args.frames_per_video * frame_bytes)
    if args.decoder_only:
        vae.requires_grad_(False)
        for part in (vae.post_quant_conv, vae.decoder):
            part.requires_grad_(True)
    ema = EMAModel(vae.parameters(), decay=args.ema_decay, use_ema_warmup=True, power=0.75)
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    # accelerate steps the schedule once a process, so it is made that many times as long.
    scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
    )
    clips = RandomFrames(
        train_videos,
        args.max_train_steps * args.train_batch_size * accelerator.num_processes,
        args.frames_per_video,
        args.seed,
    )
    # In order: simulated scenes are independent, and a step then means the same scenes in every run.
    # Its own generator, or starting the loader would draw from the stream that a checkpoint has just restored.
    loader = DataLoader(
        clips,
        batch_size=args.train_batch_size,
        **worker_options(args.dataloader_num_workers),
        generator=torch.Generator(),
    )
    colours = None
    if args.colour_weight:
        samples = [clips[index] for index in range(min(NUM_COLOUR_SAMPLES, len(train_videos)))]
        colours = colour_units(torch.cat(samples), get_vae_scale_factor(vae))
    objective = ReconstructionObjective(
        vae,
        args.mse_weight,
        args.kl_weight,
        foreground_weight=args.foreground_weight,
        latent_noise=args.latent_noise,
        correlation_weight=args.correlation_weight,
        colour_weight=args.colour_weight,
        colours=colours,
    )
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
    for batch in until_timeout(loader):
        pixels = batch.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with accelerator.autocast():
            loss, l1, mse, kl, penalty, colour = objective(pixels)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        ema.step(vae.parameters())
        step += 1
        if accelerator.is_main_process and (step % LOG_EVERY == 0 or step == 1):
            values = [f"{value.item():.6f}" for value in (loss, l1, mse, kl, penalty, colour)]
            rows.append([step, *values, f"{scheduler.get_last_lr()[0]:.2e}"])
            with log_path.open("w", newline="") as file:
                csv.writer(file).writerows([LOG_COLUMNS, *rows])
            print(f"step {step}/{args.max_train_steps} loss {values[0]} l1 {values[1]} mse {values[2]}", flush=True)
        if step % args.checkpointing_steps == 0:
            checkpoint = args.output_dir / f"checkpoint-{step}"
            accelerator.save_state(checkpoint)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_json(checkpoint / RUN, run)
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
        simulated = args.instance_data_root is None
        report_and_save(vae, eval_videos, args.output_dir, simulated=simulated, whiten=not args.decoder_only)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main, ARGS)
