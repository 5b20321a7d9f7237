"""Object segmentation as a user runs it: a folder like DAVIS's in, a pipeline that follows objects out, and its score."""

import json

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from masked_videos import make_davis, make_masked_video
from PIL import Image
from run_scripts import run_script
from safetensors.torch import load_file
from script_data import losses
from torch.testing import assert_close

from diffusers_videogpt.commands.main import main
from diffusers_videogpt.tasks.video_object_segmentation import segment_video


SCRIPT = "train_segmentation.py"


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    splits = {"train": ["ant", "bee", "cow", "dog", "elk", "fox"], "val": ["gnu", "hen"]}
    return make_davis(tmp_path_factory.mktemp("data") / "DAVIS", splits)


@pytest.fixture(scope="module")
def arguments(tiny_parts, davis):
    return [
        *("--pretrained_vae_path", tiny_parts / "vae", "--transformer_config", tiny_parts / "transformer.json"),
        *("--instance_data_root", davis, "--height", 32, "--width", 48, "--max_num_frames", 4),
        *("--learning_rate", 1e-3, "--lr_warmup_steps", 2, "--num_validation_videos", 2, "--logging_steps", 1),
        *("--max_train_steps", 4, "--validation_steps", 4),
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, arguments):
    """A run of one process on cached latents, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "one"
    more = ["--validation_rollout_steps", 4, "--num_validation_rollouts", 1, "--windows_per_video", 2]
    result = run_script(SCRIPT, "--output_dir", folder, *arguments, "--train_batch_size", 2, *more)
    return folder, result.stdout


def test_what_a_run_leaves(trained):
    folder, printed = trained
    assert "0 of 6 videos dropped" in printed and "step 4: J 0." in printed
    numbers = json.loads((folder / "validation" / "step-000004" / "segmentation.json").read_text())
    assert len(numbers["videos"]) == 1 and 0 <= numbers["J"] <= 1
    assert (folder / "validation" / "step-000004" / "0.png").exists()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "follows objects" in card and "segment_video(pipe" in card and "prediction.png" in card
    config = json.loads((folder / "model_index.json").read_text())
    assert config["_class_name"] == "VideoGPTPipeline" and config["guidance_scale"] == 1.0
    assert (config["frames_per_clip"], config["max_context_frames"], config["longest_side"]) == (4, 5, 48)


def test_two_processes_on_frames_train_as_one_on_cached_latents(trained, tmp_path, arguments):
    run_script(SCRIPT, "--output_dir", tmp_path, *arguments, "--train_batch_size", 1, num_processes=2)
    assert losses(trained[0]) == pytest.approx(losses(tmp_path), abs=1e-5)
    weights = [load_file(f / "transformer" / "diffusion_pytorch_model.safetensors") for f in (trained[0], tmp_path)]
    assert_close(*weights, atol=1e-4, rtol=0)


def test_the_pipeline_segments(trained):
    pipe = DiffusionPipeline.from_pretrained(trained[0])
    pipe.set_progress_bar_config(disable=True)
    frames, masks = make_masked_video(9, num_frames=7)
    found = segment_video(pipe, frames, first_mask=masks[0], num_inference_steps=1)
    assert found.shape == masks.shape and set(np.unique(found)) <= {0, 1, 2}
    np.testing.assert_array_equal(found[0], masks[0])


def test_the_score_from_the_command_line(trained, davis, tmp_path, capsys):
    """A model's masks are scored as the folder that it wrote."""
    common = ["evaluate", "segmentation", "--data", str(davis)]
    made, again = tmp_path / "made", tmp_path / "again"
    main([*common, "--model", str(trained[0]), "--steps", "1", "--output", str(made)])
    first = capsys.readouterr().out
    with Image.open(made / "hen" / "00003.png") as image:
        assert image.mode == "P" and image.size == (48, 32)
    main([*common, "--masks", str(made), "--output", str(again)])
    second = capsys.readouterr().out
    row = lambda out: next(line for line in out.splitlines() if line.startswith(("| model", "| masks"))).split("|")  # noqa: E731
    assert row(first)[2:] == row(second)[2:] and row(first)[-2].strip() == "4"
    assert json.loads((again / "scores.json").read_text())["masks"]["objects"].keys() == {
        *("gnu_1", "gnu_2", "hen_1", "hen_2"),
    }
    with pytest.raises(SystemExit, match=r"no masks of 6 of 6 videos: ant, bee, cow, dog, elk, …"):
        main([*common, "--masks", str(made), "--split", "train", "--output", str(again)])


@pytest.mark.parametrize(
    "argument, message",
    [
        (("--clips", "equal:4"), "--clips does not apply to segmentation"),
        (("--max_num_frames", 2), "clips of 2 frames: they have the marked first one"),
    ],
)
def test_what_does_not_belong_here(arguments, argument, message, refusal_of):
    given = ("--output_dir", "run", *arguments, *argument)
    assert message in refusal_of(SCRIPT, *given)
