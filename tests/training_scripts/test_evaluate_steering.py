"""The steered world end to end: videos of the simulator, the configuration as it is for a few steps, and the judgement."""

import json

import pytest
from run_scripts import SCRIPTS

from diffusers_videogpt import BUNDLED_MODEL
from diffusers_videogpt.video_io import read_video


CONFIG = SCRIPTS / "configs" / "physics_steered.yaml"
SHORT = {
    "max_train_steps": 2,
    "train_batch_size": 2,
    "max_num_frames": 4,
    "num_validation_videos": 1,
    "num_validation_rollouts": 1,
    "validation_inference_steps": 1,
    "validation_steps": 2,
    "validation_rollout_steps": 2,
    "lr_warmup_steps": 1,
}


def test_from_the_simulator_to_figures(tmp_path, run_here, monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)  # the configuration names the bundled model from here
    pytest.importorskip("gymnasium", reason='needs pip install ".[env]"')
    videos, model, output = tmp_path / "videos", tmp_path / "model", tmp_path / "figures"
    run_here("simulate_steered_world.py", "--output_dir", videos, "--num_videos", 5, "--num_frames", 6)
    assert len(read_video(videos / "scene_1000004.mp4").frames) == 6

    options = [word for name, value in SHORT.items() for word in (f"--{name}", value)]
    latents = tmp_path / "latents"
    made = ["--instance_data_root", videos, "--num_actions", 5, "--height", 64, "--width", 64, "--max_num_frames", 4]
    made += ["--pretrained_model_name_or_path", BUNDLED_MODEL, "--output_dir", latents]
    run_here("cache_latents.py", *made)
    trained = ["--cached_latents", latents, "--output_dir", model]
    run_here("train_videogpt.py", "--config", CONFIG, *options, *trained)
    config = json.loads((model / "transformer" / "config.json").read_text())
    assert config["num_actions"] == 5

    world = ["--model", model, "--output", output, "--steps", 1, "--num_history_frames", 3, "--device", "cpu"]
    run_here("evaluate_steering.py", "moves", *world, "--num_scenes", 1, "--num_steps", 1)
    moves = json.loads((output / "moves.json").read_text())
    assert moves["scores"]["num_moves"] == len(moves["moves"]) == 5
    assert moves["world"]["num_inference_steps"] == 1 and (output / "moves.png").is_file()
    run_here("evaluate_steering.py", "speed", *world, "--num_steps", 2)
    assert json.loads((output / "speed.json").read_text())["scores"]["steps_per_second"] > 0
