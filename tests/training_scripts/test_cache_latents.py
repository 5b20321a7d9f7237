import csv

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from run_scripts import run_script
from tiny_models import tiny_autoencoder_of

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.data.latents import LatentCache, encode_moments, make_cache_key
from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.data.videos import VideoTable
from diffusers_videogpt.video_io import write_video


SAMPLING = Sampling(max_num_frames=4, frame_interval=(1, 2), longest_side=32)
OPTIONS = {
    "max_num_frames": 4,
    "longest_side": 32,
    "windows_per_video": 2,
    "max_shard_size": "3KB",  # a video of the folder
    "vae_batch_size": 4,
    "dataloader_num_workers": 0,
}


def cache_latents(output_dir, *more, num_processes=1, **options):
    arguments = [f"--{name}={value}" for name, value in (OPTIONS | options).items()]
    arguments = ["--output_dir", output_dir, "--frame_interval", 1, 2, *arguments, *more]
    return run_script("cache_latents.py", *arguments, num_processes=num_processes, check=False)


@pytest.fixture(scope="module")
def vae_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    tiny_autoencoder_of().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five good videos, one too short and one that is none."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        frames = np.random.default_rng(number).integers(0, 256, (3 if number == 5 else 10, 32, 32, 3), dtype=np.uint8)
        write_video(root / f"{number}.mp4", frames, fps=8)
    (root / "none.mp4").write_bytes(b"no video at all")
    return root


def test_two_processes_encode_a_folder(tmp_path, folder, vae_dir):
    done = cache_latents(tmp_path, num_processes=2, instance_data_root=folder, pretrained_vae_path=vae_dir)
    assert done.returncode == 0, done.stderr
    assert "2 of 7 videos dropped" in done.stdout and "5 videos encoded, 2 windows each" in done.stdout
    with (tmp_path / "dropped_videos.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["5.mp4", "none.mp4"]

    vae = AutoencoderTiny.from_pretrained(vae_dir)
    cache = LatentCache(tmp_path, make_cache_key(vae, SAMPLING, seed=0))
    assert len(list(tmp_path.glob("latents-*.safetensors"))) == 5  # so both processes had some
    table = VideoTable.from_folder(folder, SAMPLING)
    torch.set_num_threads(1)
    for index in range(5):
        for draw in range(2):
            frames = table.read(index, table.draw_window(index, draw, seed=0))
            assert torch.equal(cache.read(index, draw), encode_moments(vae, frames, batch_size=4))

    with pytest.raises(ValueError, match=r"made otherwise \(instance_data_root '.*videos\d+' → 'elsewhere'\)"):
        LatentCache(tmp_path, {"instance_data_root": "elsewhere"})


def test_simulated_scenes_through_the_vae_of_a_pipeline(tmp_path, tiny_transformer):
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=16)
    VideoGPTPipeline(vae, tiny_transformer, NextClipFlowMatchScheduler()).save_pretrained(tmp_path / "pipe")
    options = {"num_simulated_scenes": 2, "pretrained_model_name_or_path": tmp_path / "pipe", "vae_dtype": "bfloat16"}
    done = cache_latents(tmp_path / "cache", frames_per_scene=10, **options)
    assert done.returncode == 0, done.stderr
    assert "0 of 2 videos dropped" in done.stdout and "2 videos encoded" in done.stdout
    cache = LatentCache(tmp_path / "cache", {"vae.dtype": "bfloat16", "vae.class": "AutoencoderKL"})
    assert cache.read(1, 0).shape == (4, 8, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset_name=videos", "--streaming"], "leave out --streaming"),
        (
            ["--num_simulated_scenes=2", "--windows_per_video=0"],
            "--windows_per_video: '0' is no whole number of 1 or more",
        ),
        (["--num_simulated_scenes=2", "--vae_batch_size=0"], "--vae_batch_size: '0' is no whole number of 1 or more"),
        ([], "give videos: --instance_data_root"),
        # These belong to training; a cache is the same whatever they are.
        (["--num_simulated_scenes=2", "--guidance_scale=2"], "there is no option --guidance_scale"),
        (["--num_simulated_scenes=2", "--transformer_config=x.json"], "there is no option --transformer_config"),
        (["--num_simulated_scenes=2", "--frames_per_clip=4"], "The nearest option is --frames_per_scene"),
        (["--num_simulated_scenes=2", "--pretrained_phi3_path=phi"], "The nearest option is --pretrained_vae_path"),
    ],
)
def test_arguments_that_cannot_be(refusal_of, arguments, message):
    assert message in refusal_of("cache_latents.py", "--pretrained_vae_path=vae", "--output_dir=cache", *arguments)
