import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.training.datasets import FIRST_TRAINING_SEED, SimulatedScenes, VideoFolder, encode_videos
from diffusers_videogpt.video_io import write_video
from diffusers_videogpt.worlds import simulate


@pytest.fixture
def pipe(tiny_transformer):
    torch.manual_seed(0)
    return VideoGPTPipeline(AutoencoderTiny().eval(), tiny_transformer, NextClipFlowMatchScheduler(), longest_side=32)


def write(path, num_frames, size=(48, 32)):
    frames = np.random.default_rng(num_frames).integers(0, 256, (num_frames, size[1], size[0], 3), dtype=np.uint8)
    return write_video(path, frames, fps=8)


def test_simulated_scenes_begin_behind_those_for_evaluation():
    scenes = SimulatedScenes(3, num_frames=4, size=32)
    assert len(scenes) == 3
    np.testing.assert_array_equal(scenes[2], simulate(seed=FIRST_TRAINING_SEED + 2, num_frames=4, size=32).frames)


def test_folder_takes_what_is_usable_and_says_what_is_not(tmp_path):
    write(tmp_path / "b.mp4", 6)
    write(tmp_path / "deeper" / "a.mp4", 8)
    write(tmp_path / "short.mp4", 2)
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    (tmp_path / "notes.txt").write_text("ignored")
    videos = VideoFolder(tmp_path, num_frames=5, height=32, width=16)
    assert [path.name for path in videos.paths] == ["b.mp4", "a.mp4"]
    assert sorted(path.name for path in videos.skipped) == ["broken.mp4", "short.mp4"]
    assert videos[0].shape == (5, 32, 16, 3)
    assert len(VideoFolder(tmp_path, num_frames=4, height=32, width=16, frame_interval=2)) == 1


def test_folder_without_usable_videos(tmp_path):
    write(tmp_path / "short.mp4", 2)
    with pytest.raises(ValueError, match="No usable video in .* 1 files .* 5 frames"):
        VideoFolder(tmp_path, num_frames=5, height=32, width=16)


def test_latents_are_encoded_once_and_kept(tmp_path, pipe):
    videos = [simulate(seed=s, num_frames=3, size=32).frames for s in range(2)]
    path = tmp_path / "latents.safetensors"
    latents = encode_videos(videos, pipe, path, {"videos": 2, "height": 32})
    assert latents.shape == (2, 4, 3, 4, 4) and latents.dtype == torch.float16
    torch.testing.assert_close(latents[1:].float(), pipe.encode_given(video=videos[1]), atol=1e-2, rtol=1e-2)

    pipe.vae = None  # would fail if anything were encoded again
    assert torch.equal(encode_videos(videos, pipe, path, {"videos": 2, "height": 32}), latents)
    with pytest.raises(ValueError, match="height 32 → 64"):
        encode_videos(videos, pipe, path, {"videos": 2, "height": 64})
    assert [p.name for p in tmp_path.iterdir()] == ["latents.safetensors"]
