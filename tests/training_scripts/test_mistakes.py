"""What a user can get wrong in any script is one line that says what, and a hint: no traceback, and nothing left behind."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from run_scripts import SCRIPTS

from diffusers_videogpt import BUNDLED_MODEL


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_every_script_is_run_by_run_script(path):
    source = path.read_text(encoding="utf-8")
    is_read_first = "ARGS = run_script(parse_args)" in source  # before its imports
    last = "run_script(main, ARGS)" if is_read_first else "run_script(main)"
    assert source.endswith(f'if __name__ == "__main__":\n    {last}\n')
    assert re.search(r"^from diffusers_videogpt\.training\.arguments import .*\brun_script\b", source, re.MULTILINE)


MISTAKES = [
    ("evaluate_conditions.py classes --model ./nowhere --output OUT", "'./nowhere' is no folder here"),
    (
        "evaluate_conditions.py classes --model X --output OUT --data_root ./nowhere",
        "--data_root nowhere: there is no",
    ),
    ("evaluate_conditions.py classes --model X --output FILE/x", "--output FILE/x cannot be written"),
    ("evaluate_conditions.py classes --model X --output OUT --device warp", "--device: 'warp' cannot be used here"),
    ("evaluate_conditions.py classes --model X --output OUT --videos_per_class -1", "'-1' is no whole number of 1"),
    ("evaluate_motions.py scores --model X --lora fly_off=./nowhere --output OUT", "--lora: './nowhere' is no folder"),
    ("evaluate_steering.py moves --model ./nowhere --output OUT", "'./nowhere' is no folder here"),
    ("evaluate_steering.py speed --model ./nowhere --output OUT --num_steps 0", "'0' is no whole number of 1 or more"),
    ("simulate_steered_world.py --output_dir FILE/x", "--output_dir FILE/x cannot be written"),
    ("simulate_steered_world.py --output_dir OUT --num_videos -1", "'-1' is no whole number of 1 or more"),
    ("simulate_steered_world.py --output_dir OUT --first_seed -1", "'-1' is no whole number of 0 or more"),
    ("make_motions.py --output_dir FILE/x", "--output_dir FILE/x cannot be written"),
    ("benchmark_steps.py --model ./nowhere --output OUT", "'./nowhere' is no folder here"),
    ("benchmark_distilled.py --student ./nowhere --output OUT/distilled.json", "'./nowhere' is no folder here"),
    ("benchmark_memory.py --adapter_of ./nowhere --output OUT/memory.json", "'./nowhere' is no folder here"),
    ("benchmark_loader.py --instance_data_root ./nowhere --max_num_frames 4", "nowhere"),
    ("benchmark_attention.py --output FILE/x/attention.json", "--output FILE/x cannot be written"),
    ("benchmark_rollout.py --output FILE/x/rollout.json", "--output FILE/x cannot be written"),
    ("benchmark_rollout.py --rounds 0", "'0' is no whole number of 1 or more"),
    ("benchmark_training_step.py --output FILE/x/step.json", "--output FILE/x cannot be written"),
    (
        "benchmark_against_commit.py --checkout ./nowhere",
        "there is no diffusers_videogpt/transformer_videogpt.py in it",
    ),
    (
        "benchmark_against_commit.py --checkout . --history 4 --clip_frames 4",
        "--history must be longer than --clip_frames",
    ),
    ("benchmark_against_reference.py --reference ./nowhere", "there is no LVM/model.py in it"),
    ("reproduce_findings.py --output_dir FILE/x", "--output_dir FILE/x cannot be written"),
]


@pytest.mark.parametrize(("command", "told"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_line(command, told, tmp_path, run_here, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    with pytest.raises(SystemExit) as ended:
        run_here(*command.split())
    said = capsys.readouterr().err + ("" if isinstance(ended.value.code, int) else ended.value.code)
    lines = [line for line in said.splitlines() if line.strip()]
    assert told in said and len(lines) <= 2 and ended.value.code not in (0, None), said
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_names_that_the_console_has_no_letters_for_are_printed_all_the_same(tmp_path, run_here, monkeypatch):
    """As on a Windows console: what follows the line that names the folder is still done."""
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdout", console)
    run_here("simulate_steered_world.py", "--output_dir", "猫", "--num_videos", 1, "--num_frames", 2)
    console.flush()
    assert console.buffer.getvalue().decode("cp1252").strip() == r"1 videos in \u732b"
    assert len([*(tmp_path / "猫").iterdir()]) == 2


@pytest.mark.parametrize("script", ["train_videogpt.py", "cache_latents.py"])
def test_an_autoencoder_of_absurd_size_is_refused_and_leaves_nothing(script, tmp_path, videos, run_here):
    vae = shutil.copytree(Path(BUNDLED_MODEL) / "vae", tmp_path / "vae")
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | {"layers_per_block": 10**9}))
    data = ("--instance_data_root", videos, "--height", 32, "--width", 32, "--max_num_frames", 4)
    with pytest.raises(SystemExit, match="vae': `layers_per_block` must be a whole number in 1..100, got 1000000000"):
        run_here(script, "--output_dir", tmp_path / "out", "--pretrained_vae_path", vae, *data)
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]


def test_an_argument_that_the_transformer_does_not_have(tmp_path, tiny_parts, videos, run_here):
    (tmp_path / "cfg.json").write_text('{"num_layer": 3}')
    given = ("--pretrained_vae_path", tiny_parts / "vae", "--transformer_config", tmp_path / "cfg.json")
    with pytest.raises(SystemExit, match="cfg.json: the transformer has no argument 'num_layer'; the nearest is"):
        run_here("train_videogpt.py", "--output_dir", tmp_path / "out", "--instance_data_root", videos, *given)
    assert [path.name for path in tmp_path.iterdir()] == ["cfg.json"]


@pytest.mark.parametrize("script", ["train_videogpt.py", "train_videogpt_lora.py", "train_distillation.py"])
def test_an_autoencoder_of_other_channels_is_refused_before_videos_are_encoded(
    script, tmp_path, tiny_parts, videos, run_here
):
    """The bundled model takes latents of eight channels."""
    given = ("--pretrained_model_name_or_path", BUNDLED_MODEL, "--pretrained_vae_path", tiny_parts / "vae")
    with pytest.raises(SystemExit, match="The VAE's latents have 4 channels, the transformer takes 8"):
        run_here(script, "--output_dir", tmp_path / "out", "--instance_data_root", videos, *given)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".pt")]
