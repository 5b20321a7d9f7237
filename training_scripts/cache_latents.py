"""Encode videos once, for any number of training runs.

    accelerate launch training_scripts/cache_latents.py --pretrained_model_name_or_path video-gpt \
        --instance_data_root videos --max_num_frames 48 --frame_interval 4 12 --windows_per_video 4 --output_dir latents

Writes the VAE's mean and variance of every frame into --output_dir, as safetensors shards and an `index.json`, for
`train_videogpt.py --cached_latents`. May be stopped at any moment; the same command goes on. Several processes share the
shards. Videos that cannot be used are listed in `dropped_videos.csv`.
"""

import argparse
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import convert_file_size_to_int

from diffusers_videogpt.data.latents import LatentCache, make_cache_key, write_latent_cache
from diffusers_videogpt.data.videos import report_dropped
from diffusers_videogpt.training.arguments import (
    add_data_arguments,
    add_model_arguments,
    check_data_arguments,
    check_model_arguments,
    load_vae,
    load_video_table,
    make_parser,
    make_sampling,
    parse_arguments,
)


def parse_args(command_line: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_model_arguments(parser)
    add_data_arguments(parser)
    group = parser.add_argument_group("cache")
    group.add_argument("--output_dir", type=Path, required=True)
    group.add_argument("--windows_per_video", type=int, default=1, help="training draws among so many of each video")
    group.add_argument("--vae_batch_size", type=int, default=16, help="frames encoded at once")
    group.add_argument("--max_shard_size", default="512MB", help="of a file; a killed process loses at most so much")
    group.add_argument("--dataloader_num_workers", type=int, default=2, help="processes that read videos, each")
    args = parse_arguments(parser, command_line)
    check_model_arguments(parser, args)
    check_data_arguments(parser, args)
    if args.streaming:
        parser.error("a cache is made from videos that can be read again in any order: leave out --streaming")
    if args.windows_per_video < 1 or args.vae_batch_size < 1:
        parser.error("--windows_per_video and --vae_batch_size must be at least 1")
    return args


def describe_source(args: argparse.Namespace) -> dict[str, str | None]:
    """Where the videos come from, as fields of the cache's key."""
    paths = {name: getattr(args, name) for name in ("instance_data_root", "dataset_file")}
    source = {name: None if path is None else str(path.resolve()) for name, path in paths.items()}
    return source | {name: getattr(args, name) for name in ("dataset_name", "dataset_config_name", "dataset_split")}


def main():
    args = parse_args()
    accelerator = Accelerator()
    table = load_video_table(args)
    if accelerator.is_main_process:
        report_dropped(table.dropped, args.output_dir)
    vae = load_vae(args).to(accelerator.device)
    key = make_cache_key(vae, make_sampling(args), seed=args.seed) | describe_source(args)
    write_latent_cache(
        args.output_dir,
        table,
        vae,
        key,
        num_windows=args.windows_per_video,
        batch_size=args.vae_batch_size,
        max_shard_size=convert_file_size_to_int(args.max_shard_size),
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        num_workers=args.dataloader_num_workers,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        cache = LatentCache(args.output_dir, key)
        for id, reason in cache.dropped.items():  # those that this process has not listed yet
            table.dropped.add(id, reason)
        print(f"{len(cache)} videos encoded, {cache.num_windows} windows each, in {args.output_dir}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
