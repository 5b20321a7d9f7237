"""A world that is steered, from a folder of videos with an action a frame to a pipeline that takes actions."""

import csv
import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from run_scripts import make_videos
from safetensors.torch import load_file

from diffusers_videogpt.video_io import read_video


STEPS = ["--max_train_steps", 4, "--validation_steps", 4, "--train_batch_size", 2, "--clips", "random"]
SHOWN = ["--validation_rollout_steps", 4, "--num_validation_rollouts", 1, "--validation_inference_steps", 1]


def press_keys(folder, num_frames=8):
    for index, video in enumerate(sorted(folder.glob("*.mp4"))):
        keys = np.random.default_rng(index).integers(-1, 3, num_frames)
        np.save(video.with_name(f"{video.stem}.actions.npy"), keys)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Seven videos with keys beside them."""
    return press_keys(make_videos(tmp_path_factory.mktemp("world"), 7))


def losses(folder):
    with (folder / "train_log.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def load(folder):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def predict(pipe, world, actions, **kwargs):
    video = read_video(next(iter(sorted(world.glob("*.mp4")))), max_frames=2).frames
    arguments = {"num_frames": 2, "num_inference_steps": 2, "output_type": "latent", "history_actions": [None, 1]}
    return pipe(video, actions=actions, generator=torch.Generator().manual_seed(0), **(arguments | kwargs)).frames


def test_from_a_folder_with_actions_to_a_world_that_is_steered(tmp_path, new_model, world, run_here, refusal_of):
    """Trained on pixels, on latents cached before by a script of its own, and resumed; then adapted by LoRA."""
    data = ["--instance_data_root", world, "--num_actions", 3]
    args = [*new_model, *STEPS, "--action_dropout", 0.3]
    pixels, cached, cache = tmp_path / "pixels", tmp_path / "cached", tmp_path / "cache"
    run_here("train_videogpt.py", *args, *data, *SHOWN, "--output_dir", pixels)
    vae = new_model[:2]
    size = ["--height", 32, "--width", 32, "--max_num_frames", 4]
    run_here("cache_latents.py", *vae, *data, *size, "--windows_per_video", 4, "--output_dir", cache)
    given = ["--cached_latents", cache, "--num_actions", 3, "--checkpointing_steps", 2]
    run_here("train_videogpt.py", *args, *given, "--output_dir", cached)
    assert losses(pixels) == pytest.approx(losses(cached), abs=1e-5)

    weights = load_file(pixels / "transformer" / "diffusion_pytorch_model.safetensors")
    table = weights["action_embed.weight"]
    assert table.shape[0] == 4 and not table[0].any() and table[1:].any()
    pipe = load(pixels)
    assert pipe.transformer.config.num_actions == 3
    left, right = (predict(pipe, world, [action] * 2) for action in (0, 1))
    assert (left - right).abs().max() > 0
    assert (pixels / "validation" / "step-000004" / "scores.json").exists()

    # Resumed, it ends where it would have; with another share of actions, it refuses.
    on = tmp_path / "on"
    on.mkdir()
    (cached / "checkpoint-2").rename(on / "checkpoint-2")
    resumed = [*new_model, *STEPS, *given, "--output_dir", on, "--resume_from_checkpoint", "latest"]
    said = refusal_of("train_videogpt.py", *resumed, "--action_dropout", 0.5)
    assert "action_dropout: 0.3 there, 0.5 now" in said
    run_here("train_videogpt.py", *resumed, "--action_dropout", 0.3)
    assert losses(on)[-1] == pytest.approx(losses(cached)[-1], abs=1e-6)

    # Distilled, it is steered in two steps, by full weights and by an adapter; behind a past that it made under the same actions.
    fast = [
        "--pretrained_model_name_or_path",
        pixels,
        "--instance_data_root",
        world,
        *size,
        "--clips",
        "random",
        *SHOWN,
    ]
    fast += ["--max_train_steps", 4, "--validation_steps", 4, "--train_batch_size", 2, "--grid_steps", 4]
    assert "give --num_actions 3" in refusal_of("train_distillation.py", *fast, "--output_dir", tmp_path / "wrong")
    fast += ["--num_actions", 3, "--resampled_history", 0.5]
    run_here("train_distillation.py", *fast, "--output_dir", tmp_path / "fast")
    run_here("train_distillation.py", *fast, "--student", "lora", "--output_dir", tmp_path / "fast_lora")
    student, adapted = load(tmp_path / "fast"), load(pixels)
    adapted.load_lora_weights(tmp_path / "fast_lora")
    for fast_pipe in (student, adapted):
        left, right = (predict(fast_pipe, world, [action] * 2, num_inference_steps=None) for action in (0, 1))
        assert (left - right).abs().max() > 0
    shown = json.loads((tmp_path / "fast" / "validation" / "step-000004" / "scores.json").read_text())["mse"]
    assert {"predicted", "1 step", "teacher, 1 steps"} <= set(shown)

    lora = ["--pretrained_model_name_or_path", pixels, "--instance_data_root", world, *size, "--max_train_steps", 1]
    lora += ["--num_validation_videos", 2, "--windows_per_video", 1]
    run_here("train_videogpt_lora.py", *lora, "--num_actions", 3, "--output_dir", tmp_path / "lora")
    pipe.load_lora_weights(tmp_path / "lora")
    assert predict(pipe, world, [0, 2]).shape[2] == 2
    said = refusal_of("train_videogpt_lora.py", *lora, "--num_actions", 2, "--output_dir", tmp_path / "wrong")
    assert "is not in 0..1" in said or "was trained with --num_actions 3" in said


def test_continuous_actions_are_normalised_by_those_of_the_videos(tmp_path, new_model, run_here):
    world = make_videos(tmp_path / "world", 5)
    rng = np.random.default_rng(0)
    rows = []
    for video in sorted(world.glob("*.mp4")):
        moves = rng.normal((100.0, -3.0), (5.0, 0.1), (8, 2)).round(4).tolist()
        rows.append({"video": video.name, "moves": [None, *moves[1:]]})
    (world / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--dataset_file", world / "videos.jsonl", "--action_dim", 2, "--action_column", "moves"]
    run_here("train_videogpt.py", *new_model, *STEPS, *data, "--output_dir", tmp_path / "out")
    pipe = load(tmp_path / "out")
    config = pipe.transformer.config
    assert config.action_mean == pytest.approx([100, -3], rel=0.05)
    assert config.action_std == pytest.approx([5, 0.1], rel=0.4)
    told = {"history_actions": [None, [100.0, -3.0]]}
    one, other = (predict(pipe, world, [[x, -3.0]] * 2, **told) for x in (95.0, 105.0))
    assert (one - other).abs().max() > 0


def test_what_does_not_go_together(tmp_path, new_model, world, videos, refusal_of):
    args = [*new_model, *STEPS, "--output_dir", tmp_path / "out"]
    root = ["--instance_data_root", world]
    for given, message in (
        ([*root, "--num_actions", 3, "--action_dim", 2], "give one of them"),
        ([*root, "--action_dropout", 0.5], "--action_dropout has an effect only with --num_actions or --action_dim"),
        ([*root, "--num_actions", 3, "--action_column", "keys"], "--action_column is of --dataset_file"),
        ([*root, "--num_actions", 2], "is not in 0..1, nor -1 for none"),
        (["--instance_data_root", videos, "--num_actions", 3], "has no actions: put them beside it"),
        (["--num_simulated_scenes", 8, "--num_actions", 3], "Simulated scenes follow physics alone"),
        (["--dataset_name", "x", "--streaming", "--num_actions", 3], "--streaming reads no actions"),
        ([*root, "--lerobot_root", world], "both say where the videos come from"),
    ):
        assert message in refusal_of("train_videogpt.py", *args, *given), message
