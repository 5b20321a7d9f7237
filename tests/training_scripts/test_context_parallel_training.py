"""`--context_parallel_size`: processes in groups, beside DDP and FSDP2, train as one process does."""

import csv
import shutil

import pytest
import torch
from run_scripts import run_script, run_script_under_fsdp2
from safetensors.torch import load_file


# Steps of four samples each, with validation losses, predictions and averaged weights on the way
STEPS = ["--max_train_steps", 6, "--checkpointing_steps", 3, "--ema_decay", 0.9, "--validation_steps", 2]
STEPS += ["--validation_rollout_steps", 4, "--validation_inference_steps", 2, "--num_validation_rollouts", 1]
COLUMNS = ("step", "loss", "validation_loss", "loss_at_0.4", "validation_loss_at_0.2")
ONE_PROCESS = ["--train_batch_size", 2, "--gradient_accumulation_steps", 2]


def train(output_dir, *args, **kwargs):
    return run_script("train_videogpt.py", "--output_dir", output_dir, *args, **kwargs)


def read_log(folder):
    with (folder / "train_log.csv").open(newline="") as file:
        return [[float(row[name]) if row[name] else None for name in COLUMNS] for row in csv.DictReader(file)]


def check_same_run(folder, expected):
    """Its losses to 1e-5, and where it arrived."""
    log, expected_log = read_log(folder), read_log(expected)
    assert len(log) == len(expected_log) == 6
    for row, other in zip(log, expected_log, strict=True):
        assert row == pytest.approx(other, abs=1e-5)
    weights, ema = (
        [load_file(path / "checkpoint-6" / name) for path in (folder, expected)]
        for name in ("model.safetensors", "ema.safetensors")
    )
    torch.testing.assert_close(*weights, atol=1e-4, rtol=0)
    torch.testing.assert_close(*ema, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def steps(new_model, videos) -> list:
    return [*new_model, "--instance_data_root", videos, *STEPS]


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("one") / "run"
    train(folder, *steps, *ONE_PROCESS)
    return folder


def test_two_groups_of_two_under_fsdp2_train_as_one_process(tmp_path, steps, of_one_process):
    groups = ["--context_parallel_size", 2]
    args = ["--output_dir", tmp_path / "four", *steps, "--train_batch_size", 2, *groups]
    result = run_script_under_fsdp2("train_videogpt.py", *args, num_processes=4)
    assert "FSDP2 on the CPU" in result.stdout
    check_same_run(tmp_path / "four", of_one_process)
    assert (tmp_path / "four" / "validation" / "step-000004" / "scores.json").exists()

    # From its third step on: one group of two processes under DDP, and one process
    for name, args, number in (("two", [*groups, *ONE_PROCESS], 2), ("one", ONE_PROCESS, 1)):
        shutil.copytree(tmp_path / "four" / "checkpoint-3", tmp_path / name / "checkpoint-3")
        shutil.copy(tmp_path / "four" / "train_log.csv", tmp_path / name)
        result = train(tmp_path / name, *steps, *args, "--resume_from_checkpoint", "latest", num_processes=number)
        assert "resumed from" in result.stdout
        check_same_run(tmp_path / name, of_one_process)


def test_what_can_not_form_groups_is_refused(tmp_path, steps, refusal_of):
    said = refusal_of("train_videogpt.py", "--output_dir", tmp_path, *steps, "--context_parallel_size", 2)
    assert (
        "--context_parallel_size 2 does not divide the 1 process(es) of this run into groups: launch a multiple"
        in said
    )
    said = refusal_of("train_retrieval.py", "--output_dir", tmp_path, "--context_parallel_size", 2)
    assert "--context_parallel_size is for scripts that train by next clip diffusion" in said
