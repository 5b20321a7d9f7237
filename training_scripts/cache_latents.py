"""Encode videos once, for any number of training runs.

    accelerate launch training_scripts/cache_latents.py --pretrained_model_name_or_path video-gpt \
        --instance_data_root videos --max_num_frames 48 --frame_interval 4 12 --windows_per_video 4 --output_dir latents

Writes the VAE's mean and variance of every frame into --output_dir, as safetensors shards and an `index.json`, for
`train_videogpt.py --cached_latents`. May be stopped at any moment; the same command goes on. Several processes share the
shards. Videos that cannot be used are listed in `dropped_videos.csv`.
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_videogpt.arguments import natural_int, positive_int
from diffusers_videogpt.training.arguments import option, parse_settings, part, run_script
from diffusers_videogpt.training.settings import ActionSettings, AutoencoderSettings, SamplingSettings, VideoSettings


@dataclass(kw_only=True)
class CacheSettings:
    """What is written, and how."""

    output_dir: Path = option()
    windows_per_video: int = option(1, "training draws among so many of each video", type=positive_int)
    vae_batch_size: int = option(16, "frames encoded at once", type=positive_int)
    max_shard_size: str = option("512MB", "of a file; a killed process loses at most so much")
    dataloader_num_workers: int = option(2, "processes that read videos, each", type=natural_int)


@dataclass(kw_only=True)
class Settings:
    """Of an autoencoder, videos and the samples that are taken of them."""

    model: AutoencoderSettings = part()
    videos: VideoSettings = part(
        without={
            "streaming": "a cache is made from videos that can be read again in any order: leave out --streaming",
            "trained_on": "a cache does not tell what its videos show: give --trained_on to the training",
        }
    )
    actions: ActionSettings = part(
        without={"action_dropout": "a cache keeps all actions: give --action_dropout to the training"}
    )
    sampling: SamplingSettings = part()
    cache: CacheSettings = part()

    def __post_init__(self):
        self.videos.require_source()
        self.actions.check_videos(self.videos)


def describe_source(videos: VideoSettings) -> dict[str, str | None]:
    """Where the videos come from, as fields of the cache's key."""
    paths = {"instance_data_root": videos.instance_data_root, "dataset_file": videos.dataset_file}
    if videos.lerobot_root is not None:  # caches from before know nothing of it
        paths["lerobot_root"] = videos.lerobot_root
    source = {name: None if path is None else str(path.resolve()) for name, path in paths.items()}
    return source | {name: getattr(videos, name) for name in ("dataset_name", "dataset_config_name", "dataset_split")}


def main():
    settings = parse_settings(Settings, __doc__, what="a cache of latents")
    # Imported only now: torch takes seconds, and wrong options are told at once.
    from accelerate import Accelerator
    from accelerate.utils import convert_file_size_to_int

    from diffusers_videogpt.data.latents import LatentCache, make_cache_key, write_latent_cache
    from diffusers_videogpt.data.videos import report_dropped
    from diffusers_videogpt.training.loading import (
        action_space_of,
        load_vae,
        load_video_table,
        make_sampling,
        settle_from_base,
    )
    from diffusers_videogpt.training.run_folder import hold_folder

    sampling, cache = settings.sampling, settings.cache
    try:
        max_shard_size = convert_file_size_to_int(cache.max_shard_size)
    except ValueError as error:
        raise ValueError(
            f"--max_shard_size {cache.max_shard_size!r}: give a number and a unit, such as 512MB"
        ) from error
    accelerator = Accelerator()
    if accelerator.is_main_process:
        hold_folder(cache.output_dir)
    settle_from_base(sampling, settings.model)
    vae = load_vae(settings.model).to(accelerator.device)
    actions = settings.actions if settings.actions.are_given else None
    table = load_video_table(settings.videos, sampling, actions=actions)
    if accelerator.is_main_process:
        report_dropped(table.dropped, cache.output_dir)
    space = action_space_of(actions)
    key = make_cache_key(vae, make_sampling(sampling), seed=sampling.seed, actions=space)
    key |= describe_source(settings.videos)
    write_latent_cache(
        cache.output_dir,
        table,
        vae=vae,
        key=key,
        num_windows=cache.windows_per_video,
        batch_size=cache.vae_batch_size,
        max_shard_size=max_shard_size,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        num_workers=cache.dataloader_num_workers,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        written = LatentCache(cache.output_dir, key)
        for id, reason in written.dropped.items():  # those that this process has not listed yet
            table.dropped.add(id, reason)
        print(f"{len(written)} videos encoded, {written.num_windows} windows each, in {cache.output_dir}")
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main)
