"""Text → video as a user runs it: videos with captions in, a pipeline that takes prompts out."""

import pytest
import torch
from diffusers import DiffusionPipeline
from run_scripts import run_script
from script_data import losses, save_text_encoder, write_captions


CAPTIONS = [
    "one red ball falls",
    "two blue boxes fall",
    "a box",
    "two red balls and one blue box bounce off the walls",
]


@pytest.fixture(scope="module")
def captions(tmp_path_factory, videos):
    return write_captions(tmp_path_factory.mktemp("captions"), videos, CAPTIONS, column="text")


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp("text_encoder"))


def train(output_dir, *args, **kwargs):
    return run_script("train_text_to_video.py", "--output_dir", output_dir, *args, **kwargs)


def test_from_captions_to_videos_of_a_prompt(tmp_path, new_model, videos, captions, text_encoder):
    """From cached latents or from videos, in one process or two, the training is the same; the result is loaded and used."""
    args = [*new_model, "--instance_data_root", videos, "--dataset_file", captions, "--caption_column", "text"]
    args += ["--pretrained_text_encoder_path", text_encoder, "--clips", "first:1", "--max_train_steps", 4]
    args += ["--caption_dropout", 0.3, "--validation_steps", 4, "--num_validation_rollouts", 1]
    one, two = tmp_path / "one", tmp_path / "two"
    train(
        *(one, *args, "--train_batch_size", 2, "--windows_per_video", 4),
        *("--validation_rollout_steps", 4, "--validation_inference_steps", 2),
    )
    train(two, *args, num_processes=2)
    assert losses(one) == pytest.approx(losses(two), abs=1e-5)
    assert len(list((two / "texts").glob("*.arrow"))) == 1
    assert {"0.mp4", "0.png"} <= {p.name for p in (one / "validation" / "step-000004").iterdir()}
    card = (one / "README.md").read_text(encoding="utf-8")
    assert "pipe(prompt='a box'" in card and "text-to-video" in card

    pipe = DiffusionPipeline.from_pretrained(one)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 2, "num_frames": 4, "output_type": "pt"}
    frames = [
        pipe(prompt=prompt, generator=torch.Generator().manual_seed(0), **arguments).frames for prompt in CAPTIONS[:2]
    ]
    assert frames[0].shape == (1, 4, 3, 32, 32) and (frames[0] - frames[1]).abs().max() > 1e-5


def test_rows_without_captions(tmp_path, new_model, videos, text_encoder, refusal_of):
    args = [*new_model, "--instance_data_root", videos, "--pretrained_text_encoder_path", text_encoder]
    said = refusal_of("train_text_to_video.py", "--output_dir", tmp_path, *args)
    assert "7 of 7 videos have no caption (32x32-0.mp4" in said
    said = refusal_of("train_text_to_video.py", "--output_dir", tmp_path, *args, "--validation_data_root", videos)
    assert "a folder has no captions" in said
