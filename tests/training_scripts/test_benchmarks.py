"""The benchmark scripts at toy size: they compare the variants before they time them, and write what they measured."""

import json
import shutil
from pathlib import Path

import pytest
from run_scripts import make_videos, run_script

import diffusers_videogpt
from diffusers_videogpt import BUNDLED_MODEL


SMALL = ("--layers", 2, "--heads", 1, "--ffn_dim", 64)
HALF = ("--dtype", "bfloat16")


@pytest.mark.parametrize(
    ("script", "options", "num_ratios"),
    [
        ("benchmark_attention.py", ("--num_frames", 3, "--num_layouts", 2, "--heads", 1, "--head_dim", 32), 2),
        ("benchmark_training_step.py", (*SMALL, "--num_frames", 9, 10, "--height", 192, "--num_layouts", 1), 2),
        ("benchmark_training_step.py", (*SMALL, *HALF, "--num_frames", 3, "--height", 64, "--num_layouts", 1), 1),
        ("benchmark_rollout.py", (*SMALL, *HALF, "--height", 32, "--steps", 2, "--long_frames", 0), 4),
        ("benchmark_rollout.py", (*SMALL, "--height", 32, "--steps", 2, "--long_frames", 200), 7),
    ],
)
def test_ratios(tmp_path, script, options, num_ratios):
    out = run_script(script, *options, "--rounds", 1, "--output", tmp_path / "results.json").stdout
    written = json.loads((tmp_path / "results.json").read_text())
    results = written["results"]
    ratios = [r for r in (results.values() if isinstance(results, dict) else results) if "ratio" in r]
    assert len(ratios) == num_ratios and all(r["least"] <= r["ratio"] <= r["largest"] for r in ratios)
    assert all(f"{r['ratio']:.2f} x" in out for r in ratios)
    assert {"device", "torch", "date"} <= written["about"].keys()


def test_fewer_steps(tmp_path):
    out = run_script("benchmark_steps.py", "--num_scenes", 2, "--steps", 1, 2, "--output", tmp_path).stdout
    results = json.loads((tmp_path / "steps.json").read_text())["results"]
    assert results["Euler"]["2"]["rmse_to_many_steps"] == 0 < results["Euler"]["1"]["rmse_to_many_steps"]
    assert results["multistep"]["2"] != results["Euler"]["2"]
    assert (tmp_path / "steps.md").read_text() in out
    assert (tmp_path / "steps.png").stat().st_size > 10_000


@pytest.mark.parametrize("more", [(), ("--rolling_cache", "--guidance_scale", 1.5, "--frames_per_clip", 8)])
def test_how_fast_a_distilled_model_plays(tmp_path, more):
    options = ("--teacher_steps", 2, "--student_steps", 1, "--num_frames", 16, "--rounds", 1, *more)
    out = run_script(
        "benchmark_distilled.py", "--student", BUNDLED_MODEL, *options, "--output", tmp_path / "distilled.json"
    ).stdout
    results = json.loads((tmp_path / "distilled.json").read_text())["results"]
    assert len(results) == 4 and results["teacher, 2 steps, stream"]["ratio"] == 1
    for name, result in results.items():
        assert f"{name}: {result['ratio']:.2f} x" in out and f"{result['frames_per_second']:.1f} frames/s" in out
        clip_at_most = 16 / result["frames_per_second"]
        assert name.endswith("call") or 0 < result["first_clip_seconds"] < clip_at_most


def test_loader(tmp_path):
    videos = make_videos(tmp_path / "videos", 2, num_frames=12)
    options = ("--instance_data_root", videos, "--max_num_frames", 4, "--steps", 4, "--rounds", 1)
    run_script("benchmark_loader.py", *options, "--output_json", tmp_path / "loader.json")
    assert json.loads((tmp_path / "loader.json").read_text())["frames_decoded_twice"] == 0


def test_the_count_of_an_adapters_memory_is_what_its_steps_take(tmp_path):
    out = run_script("benchmark_memory.py", "--adapter_of", BUNDLED_MODEL, "--output", tmp_path / "memory.json").stdout
    sizes = json.loads((tmp_path / "memory.json").read_text())["results"]
    assert sizes["counted"] == sum(size for part, size in sizes.items() if part not in ("counted", "peak"))
    assert sizes["peak"] == pytest.approx(sizes["counted"], rel=0.15)
    assert f"{sizes['peak'] / 2**20:.1f} MiB at the peak" in out


@pytest.mark.parametrize("case", ["stream", "step"])
def test_against_an_earlier_commit(tmp_path, case):
    """The same code in another folder computes the same; and it is that folder's code which runs."""
    earlier = tmp_path / "earlier" / "diffusers_videogpt"
    shutil.copytree(Path(diffusers_videogpt.__file__).parent, earlier, ignore=shutil.ignore_patterns("assets"))
    options = (*SMALL, "--case", case, "--checkout", earlier.parent, "--steps", 2, "--rounds", 1, "--dtype", "float32")
    command = ("benchmark_against_commit.py", *options, "--output", tmp_path / "results.json")
    out = run_script(*command).stdout
    result = json.loads((tmp_path / "results.json").read_text())["results"][case]
    assert result["largest_difference"] == 0 < result["ratio"] and f"{result['ratio']:.2f} x" in out
    if case == "step":
        return
    broken = earlier / "transformer_videogpt.py"
    broken.write_text(f"raise SystemError('the earlier one')\n{broken.read_text()}")
    failed = run_script(*command, check=False)
    assert failed.returncode and "SystemError: the earlier one" in failed.stderr
    assert "--checkout" in failed.stderr.splitlines()[-1]


def test_folder_without_the_authors_code_is_refused(tmp_path):
    result = run_script("benchmark_against_reference.py", "--reference", tmp_path, check=False)
    assert result.returncode and "there is no LVM/model.py in it: clone the authors' repository" in result.stderr
