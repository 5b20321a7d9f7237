"""The training script as a user runs it, at toy size, to its output."""

import csv
import hashlib
import json
import re
import shutil
import signal
import tarfile

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoModel, DiffusionPipeline
from fake_hub import hub  # noqa: F401
from filelock import FileLock
from run_scripts import (
    SCRIPTS,
    TWO_PROCESSES,
    make_videos,
    run_script,
    run_script_under_fsdp2,
    start_script,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Phi3Config, Phi3ForCausalLM

from diffusers_videogpt import VideoGPTPipeline
from diffusers_videogpt.training.feed import split_off


def train(output_dir, *args, **kwargs):
    return run_script("train_videogpt.py", "--output_dir", output_dir, *args, **kwargs)


def read_log(folder, columns=("step", "loss", "validation_loss")):
    with (folder / "train_log.csv").open(newline="") as file:
        return [tuple(row[c] for c in columns) for row in csv.DictReader(file)]


def losses(folder):
    return [float(loss) for (loss,) in read_log(folder, ("loss",))]


def file_hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("num_processes", [1, 2], ids=["one process", "two processes"])
def test_killed_run_goes_on_exactly(tmp_path, new_model, videos, num_processes):
    batch = 2 // num_processes
    args = [*new_model, "--instance_data_root", videos, "--train_batch_size", batch, "--max_train_steps", 24]
    args += ["--checkpointing_steps", 12, "--validation_steps", 6, "--ema_decay", 0.9, "--dataloader_num_workers", 2]
    args += ["--logging_steps", 5]  # a checkpoint falls between two rows of the log
    train(tmp_path / "straight", *args, num_processes=num_processes)

    killed = tmp_path / "killed"
    how = {"num_processes": num_processes, "is_real": num_processes == 2}  # one kill of a real launch is enough
    with start_script("train_videogpt.py", "--output_dir", killed, *args, **how) as run:
        run.wait_for(killed / "checkpoint-12" / "manifest.json")
        run.kill()
    assert not (killed / "model_index.json").exists()

    result = train(killed, *args, "--resume_from_checkpoint", "latest", num_processes=num_processes)
    assert "resumed from" in result.stdout
    columns = ("step", "loss", "validation_loss", "loss_at_0.4", "velocity_error_at_0.8", "validation_loss_at_0.2")
    assert read_log(killed, columns) == read_log(tmp_path / "straight", columns)
    assert [int(row[0]) for row in read_log(killed)][:4] == [5, 6, 10, 12]
    expected = file_hashes(tmp_path / "straight" / "checkpoint-24")
    assert {"model.safetensors", "optimizer-0.safetensors", "ema.safetensors"} <= set(expected)
    assert file_hashes(killed / "checkpoint-24") == expected
    first, second = (
        load_file(f / "transformer" / "diffusion_pytorch_model.safetensors") for f in (killed, tmp_path / "straight")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(tmp_path, new_model, videos, strategy):
    args = [*new_model, "--instance_data_root", videos, "--max_train_steps", 10, "--train_batch_size", 2]
    args += ["--ema_decay", 0.9, "--validation_steps", 5]
    train(tmp_path / "one", *args, "--gradient_accumulation_steps", 2)
    if strategy == "ddp":
        result = train(tmp_path / "two", *args, launcher=TWO_PROCESSES)
    else:
        result = run_script_under_fsdp2("train_videogpt.py", "--output_dir", tmp_path / "two", *args)
    assert ("FSDP2 on the CPU" in result.stdout) == (strategy == "fsdp2")
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert len(one) == 10
    for row, other in zip(one, two, strict=True):
        assert [float(x) for x in row if x] == pytest.approx([float(x) for x in other if x], abs=1e-5)
    weights = [load_file(tmp_path / n / "transformer" / "diffusion_pytorch_model.safetensors") for n in ("one", "two")]
    torch.testing.assert_close(*weights, atol=1e-4, rtol=0)


def test_sigterm_saves_and_exits(tmp_path, new_model, videos):
    args = [*new_model, "--instance_data_root", videos, "--max_train_steps", 12, "--checkpointing_steps", 100]
    train(tmp_path / "straight", *args)
    stopped = tmp_path / "stopped"
    long = [*args[:-3], 100_000, "--checkpointing_steps", 100_000, "--lr_scheduler", "constant"]
    with start_script("train_videogpt.py", "--output_dir", stopped, *long, is_real=True) as run:
        run.wait_for(stopped / "train_log.csv")
        run.processes[0].send_signal(signal.SIGTERM)
        result = run.result()
    assert result.returncode == 143 and "stopped at step" in result.stdout
    (checkpoint,) = stopped.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    long[long.index(100_000)] = step + 2
    train(stopped, *long, "--resume_from_checkpoint", "latest")
    assert [int(row[0]) for row in read_log(stopped)] == list(range(1, step + 3))


def test_sigterm_to_one_of_two_processes_stops_both(tmp_path, new_model, videos):
    args = [*new_model, "--instance_data_root", videos, "--max_train_steps", 100_000, "--lr_scheduler", "constant"]
    with start_script("train_videogpt.py", "--output_dir", tmp_path, *args, num_processes=2) as run:
        run.wait_for(tmp_path / "train_log.csv")
        run.processes[1].send_signal(signal.SIGTERM)
        result = run.result()
    assert result.returncode == 143 and "stopped at step" in result.stdout
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert (checkpoint / "manifest.json").exists()


def test_bad_videos_among_good_ones(tmp_path, new_model, videos, refusal_of):
    folder = make_videos(tmp_path / "videos", 5)
    good = (folder / "32x32-0.mp4").read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video")
    (folder / "truncated.mp4").write_bytes(good[: len(good) // 3])
    make_videos(folder, 1, num_frames=2, height=48)
    result = train(tmp_path / "run", *new_model, "--instance_data_root", folder, "--max_train_steps", 3)
    assert "4 of 9 videos dropped" in result.stdout
    with (tmp_path / "run" / "dropped_videos.csv").open(newline="") as file:
        dropped = {row["id"]: row["kind"] for row in csv.DictReader(file)}
    assert set(dropped) == {"empty.mp4", "text.mp4", "truncated.mp4", "48x32-0.mp4"}
    assert dropped["48x32-0.mp4"] == "too short"

    strict = [
        "--output_dir",
        tmp_path / "strict",
        *new_model,
        "--instance_data_root",
        folder,
        "--max_bad_fraction",
        0.2,
    ]
    said = refusal_of("train_videogpt.py", *strict)
    assert "4 of 9 videos dropped" in said


@pytest.fixture(scope="module")
def cache(tmp_path_factory, new_model, videos):
    folder = tmp_path_factory.mktemp("cache") / "latents"
    sizes = new_model[: new_model.index("--learning_rate")]
    sizes = [a for a in sizes if a != "--transformer_config" and not str(a).endswith("transformer.json")]
    run_script(
        "cache_latents.py", "--output_dir", folder, *sizes, "--instance_data_root", videos, "--windows_per_video", 8
    )
    return folder


def test_cached_latents_train_as_videos_do(tmp_path, new_model, videos, cache):
    args = [*new_model, "--max_train_steps", 6, "--train_batch_size", 2, "--validation_steps", 3]
    train(tmp_path / "pixels", *args, "--instance_data_root", videos)
    train(tmp_path / "cached", *args, "--cached_latents", cache)
    assert read_log(tmp_path / "pixels") == read_log(tmp_path / "cached")


def test_loss_that_is_not_finite_stops_all_processes(tmp_path, new_model, cache):
    poisoned = tmp_path / "poisoned"
    poisoned.mkdir()
    for path in cache.iterdir():
        (poisoned / path.name).write_bytes(path.read_bytes())
    index = json.loads((poisoned / "index.json").read_text())
    shard = poisoned / index["shards"][0]["file"]
    tensors = load_file(shard)
    ids = [video["id"] for video in index["videos"]]
    video = ids[split_off(ids, num_validation=1, seed=0)[0][3]]
    tensors[f"{video}/moments"].fill_(float("nan"))
    with safe_open(shard, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, shard, metadata)
    for about in index["videos"]:  # as if it had been encoded so: what a cache does not vouch for is refused
        about.pop("digest", None)
    (poisoned / "index.json").write_text(json.dumps(index))
    args = [*new_model, "--cached_latents", poisoned, "--max_train_steps", 50, "--checkpointing_steps", 1]
    args += ["--num_validation_videos", 1, "--validation_steps", 1000]
    result = train(tmp_path / "run", *args, num_processes=2, check=False)
    assert result.returncode != 0
    (step,) = set(re.findall(r"The loss is not finite at step (\d+)", result.stderr))
    assert re.search(rf"Its videos: process \d: {re.escape(video)}\.", result.stderr)  # one process's, not both
    checkpoints = list((tmp_path / "run").glob("checkpoint-*"))
    assert [c.name for c in checkpoints if c.name.endswith(f"-{step}")] == []
    for checkpoint in checkpoints:
        assert all(x.isfinite().all() for x in load_file(checkpoint / "model.safetensors").values())


def test_checkpoint_of_another_run_is_refused(tmp_path, tiny_parts, new_model, videos, refusal_of):
    args = [*new_model, "--instance_data_root", videos, "--max_train_steps", 2, "--checkpointing_steps", 2]
    train(tmp_path, *args)
    vae = AutoModel.from_pretrained(str(tiny_parts / "vae"))
    with torch.no_grad():
        next(vae.parameters()).add_(1e-3)
    vae.save_pretrained(tmp_path / "vae")
    for changed, messages in (
        (["--pretrained_vae_path", tmp_path / "vae"], [": vae: "]),
        (["--learning_rate", 1e-5], ["learning_rate: 0.001 there, 1e-05 now"]),
        (["--train_batch_size", 2], ["global_batch_size"]),
        (["--clips", "equal:2"], ["clips", "equal:2"]),
    ):
        given = ["--output_dir", tmp_path, *args, "--resume_from_checkpoint", "latest", *changed]
        said = refusal_of("train_videogpt.py", *given)
        assert all(message in said for message in messages)


def test_other_data_under_the_same_names_is_refused(tmp_path, new_model, videos, run_here, refusal_of):
    """Captions and files count by their content; a checkpoint from before, which knows none of it, still goes on."""
    shutil.copytree(videos, tmp_path / "videos")
    table, run = tmp_path / "table.csv", tmp_path / "run"
    rows = [f"{path.name},a square\n" for path in sorted(videos.iterdir())]
    table.write_text("video,caption\n" + "".join(rows))
    args = ["--output_dir", run, *new_model, "--instance_data_root", tmp_path / "videos", "--dataset_file", table]
    args += ["--caption_column", "caption", "--max_train_steps", 2, "--checkpointing_steps", 1]
    run_here("train_videogpt.py", *args)
    resume = [*args, "--resume_from_checkpoint", "latest"]
    table.write_text("video,caption\n" + "".join(rows).replace("a square", "a circle"))
    assert "content.captions" in refusal_of("train_videogpt.py", *resume)
    table.write_text("video,caption\n" + "".join(rows))
    other = tmp_path / "videos" / sorted(videos.iterdir())[1].name
    make_videos(tmp_path / "others", 7, seed=9)
    for path in (tmp_path / "others").iterdir():
        shutil.copyfile(path, tmp_path / "videos" / path.name)
    said = refusal_of("train_videogpt.py", *resume)
    assert "content.sources" in said and "content.captions" not in said and other.exists()
    for name in ("checkpoint-1", "checkpoint-2"):
        state = json.loads((run / name / "state.json").read_text())
        for key in [key for key in state["state"]["run"] if key.startswith("content.")]:
            del state["state"]["run"][key]
        del state["state"]["error_sums"]
        text = json.dumps(state, sort_keys=True)
        (run / name / "state.json").write_text(text)
        manifest = json.loads((run / name / "manifest.json").read_text())
        facts = {"size": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        manifest["files"]["state.json"] = facts
        (run / name / "manifest.json").write_text(json.dumps(manifest))
    run_here("train_videogpt.py", *resume, "--max_train_steps", 3)
    assert len(losses(run)) == 3


def test_one_run_at_a_time_in_a_folder_and_none_is_left_empty(tmp_path, new_model, videos, refusal_of, run_here):
    lock = FileLock(tmp_path / ".lock")
    args = [*new_model, "--instance_data_root", videos, "--max_train_steps", 1]
    with lock:
        said = refusal_of("train_videogpt.py", "--output_dir", tmp_path, *args)
        assert "is in use by another run" in said and not list(tmp_path.glob("*.csv"))
    said = refusal_of(
        "train_videogpt.py", "--output_dir", tmp_path / "run", *args[:-4], "--instance_data_root", "nowhere"
    )
    assert said.startswith("train_videogpt.py: nowhere is no folder") and not (tmp_path / "run").exists()
    run_here("train_videogpt.py", "--output_dir", tmp_path / "run", *args)
    assert not (tmp_path / "run" / ".lock").exists()


def test_two_processes_of_two_runs_in_one_folder(tmp_path, new_model, videos, refusal_of, run_here):
    """The second is refused, and changes nothing; when the first is killed, its folder is free."""
    args = ["--output_dir", tmp_path / "run", *new_model, "--instance_data_root", videos, "--checkpointing_steps", 2]
    with start_script("train_videogpt.py", *args, "--max_train_steps", 100_000) as first:
        first.wait_for(tmp_path / "run" / "checkpoint-2")
        resume = ["--resume_from_checkpoint", "latest", "--max_train_steps", 100_000]
        said = refusal_of("train_videogpt.py", *args, *resume)
        assert "is in use by another run" in said and "Nothing was changed" in said
        assert not first.has_ended() and list(tmp_path.glob("run/checkpoint-*"))
    steps = max(int(path.name.rpartition("-")[2]) for path in tmp_path.glob("run/checkpoint-*")) + 2
    run_here("train_videogpt.py", *args, "--resume_from_checkpoint", "latest", "--max_train_steps", steps)
    assert len(losses(tmp_path / "run")) == steps


def test_resume_with_another_number_of_processes(tmp_path, new_model, videos):
    args = [*new_model, "--instance_data_root", videos, "--max_train_steps", 6, "--checkpointing_steps", 3]
    train(tmp_path / "straight", *args, "--train_batch_size", 2)
    other = tmp_path / "other"
    train(other, *args[:-3], 3, "--checkpointing_steps", 3, "--train_batch_size", 1, num_processes=2)
    train(other, *args, "--train_batch_size", 2, "--resume_from_checkpoint", "latest")
    assert losses(other) == pytest.approx(losses(tmp_path / "straight"), abs=1e-5)


def test_four_stages_and_image_animation_one_after_another(tmp_path, new_model, videos):
    small = {"max_train_steps": 2, "lr_warmup_steps": 1, "max_num_frames": 4, "gradient_checkpointing": True}
    start = new_model
    for stage in ("stage1", "stage2", "stage3", "stage4", "image_animation"):
        recipe = yaml.safe_load((SCRIPTS / "configs" / f"{stage}.yaml").read_text(encoding="utf-8"))
        recipe |= small | {"mixed_precision": "no", "dataloader_num_workers": 0}
        recipe["frame_interval"] = [1, 2] if isinstance(recipe["frame_interval"], list) else 1
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(recipe))
        output = tmp_path / stage
        rest = ["--instance_data_root", videos, "--height", 32, "--width", 32, "--num_validation_videos", 2]
        train(
            output,
            "--config",
            tmp_path / f"{stage}.yaml",
            *(start if stage == "stage1" else ["--pretrained_model_name_or_path", start]),
            *rest,
            "--logging_steps",
            1,
        )
        if stage != "stage1":
            before = load_file(start / "transformer" / "diffusion_pytorch_model.safetensors")
            after = load_file(output / "transformer" / "diffusion_pytorch_model.safetensors")
            moved = max((after[name] - before[name]).abs().max().item() for name in after)
            assert 0 < moved < 0.01  # it went on from the stage before
        start = output
    pipe = DiffusionPipeline.from_pretrained(start)
    assert isinstance(pipe, VideoGPTPipeline)
    frames = pipe(
        image=np.zeros((1, 32, 32, 3), np.uint8), num_frames=3, num_inference_steps=1, output_type="np"
    ).frames
    assert frames.shape == (1, 3, 32, 32, 3)


def test_streamed_run_goes_on_exactly(tmp_path, new_model, videos):
    shards = tmp_path / "shards"
    shards.mkdir()
    files = sorted(videos.iterdir())
    for shard in range(2):
        with tarfile.open(shards / f"{shard}.tar", "w") as tar:
            for path in files[shard::2]:
                tar.add(path, arcname=path.name)
    args = [*new_model, "--dataset_name", shards, "--streaming", "--video_column", "mp4", "--max_train_steps", 8]
    args += ["--checkpointing_steps", 4, "--dataloader_num_workers", 2, "--validation_data_root", videos]
    run = tmp_path / "run"
    train(run, *args)
    straight, expected = read_log(run), file_hashes(run / "checkpoint-8")
    shutil.rmtree(run / "checkpoint-8")  # as if it had been stopped before
    result = train(run, *args, "--resume_from_checkpoint", "latest")
    assert "resumed from" in result.stdout
    assert read_log(run) == straight and file_hashes(run / "checkpoint-8") == expected
    shutil.rmtree(run / "checkpoint-8")
    result = train(run, *args, "--resume_from_checkpoint", "latest", "--dataloader_num_workers", 1, check=False)
    assert result.returncode != 0 and "streaming.num_workers" in result.stderr


def test_start_from_phi3(tmp_path, new_model, videos):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    phi3 = Phi3ForCausalLM(Phi3Config(**sizes, vocab_size=40, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    phi3.save_pretrained(tmp_path / "phi3")
    start = [*new_model, "--pretrained_phi3_path", tmp_path / "phi3", "--instance_data_root", videos]
    train(tmp_path / "run", *start, "--max_train_steps", 1, "--learning_rate", 1e-8)
    weights = load_file(tmp_path / "run" / "transformer" / "diffusion_pytorch_model.safetensors")
    mine, theirs = weights["transformer_blocks.1.ff.linear_out.weight"], phi3.model.layers[1].mlp.down_proj.weight
    torch.testing.assert_close(mine, theirs.detach(), atol=1e-6, rtol=0)


def test_output_of_a_run(tmp_path, new_model, videos):
    args = [*new_model, "--instance_data_root", videos, "--max_train_steps", 4, "--validation_steps", 2]
    args += ["--validation_rollout_steps", 2, "--num_validation_rollouts", 1, "--validation_inference_steps", 2]
    args += ["--report_to", "tensorboard", "--output_dtype", "bfloat16", "--optimizer", "muon", "--torch_compile"]
    result = train(tmp_path, *args)
    assert "the first step compiles the blocks" in result.stdout
    assert "should be kept in float32" not in result.stdout + result.stderr
    for step in (2, 4):
        names = {p.name for p in (tmp_path / "validation" / f"step-{step:06d}").iterdir()}
        assert {"0.mp4", "0.png", "scores.json"} <= names
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "library_name: diffusers" in card and "prediction.png" in card and "--optimizer muon" in card
    assert "| velocity error over that of the input | " in card
    assert (tmp_path / "prediction.png").stat().st_size > 500
    assert list(tmp_path.rglob("events.out.tfevents*"))
    weights = load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    loaded = DiffusionPipeline.from_pretrained(tmp_path, dtype={"transformer": torch.bfloat16})
    assert loaded.config.frames_per_clip == 2
    # What the file holds is what is computed with: only the time embedders are in fp32.
    assert {name: x.dtype for name, x in weights.items()} == {
        name: x.dtype for name, x in loaded.transformer.state_dict().items()
    }
    assert {name.partition(".")[0] for name, x in weights.items() if x.dtype != torch.bfloat16} == {
        "time_token_embed",
        "time_embed",
    }


def test_what_a_model_was_trained_on_and_with_is_kept(tmp_path, new_model, videos, run_here):
    """And taken by the run that starts from it, but for what it shows: that is another's from then on."""
    scenes = ["--num_simulated_scenes", 6, "--max_train_steps", 1]
    run_here("train_videogpt.py", "--output_dir", tmp_path / "scenes", *new_model, *scenes)
    index = json.loads((tmp_path / "scenes" / "model_index.json").read_text())
    assert index["trained_on"] == "simulated balls, boxes and pendulums"
    assert index["trained_with"] == {"fps": 12.0, "num_frames": 4, "clips": "random", "max_clips": None}
    card = (tmp_path / "scenes" / "README.md").read_text(encoding="utf-8")
    assert "trained on simulated balls, boxes and pendulums, started from random weights" in card and "fps=12)" in card
    args = ["--pretrained_model_name_or_path", tmp_path / "scenes", "--instance_data_root", videos, *new_model[4:]]
    args += ["--max_train_steps", 1, "--clips", "equal:2"]
    for name, given, shown in (("told", ["--trained_on", "squares"], "squares"), ("untold", [], None)):
        run_here("train_videogpt.py", "--output_dir", tmp_path / name, *args, *given)
        index = json.loads((tmp_path / name / "model_index.json").read_text())
        assert index.get("trained_on") == shown and index["trained_with"]["fps"] == 12.0
        assert index["trained_with"]["clips"] == "equal:2"


def test_yaml_file_and_command_line(tmp_path, new_model, videos):
    (tmp_path / "recipe.yaml").write_text("max_train_steps: 3\nclips: equal:2\nframe_interval: [1, 2]\n")
    args = [*new_model, "--instance_data_root", videos, "--config", tmp_path / "recipe.yaml"]
    train(tmp_path / "run", *args, "--max_train_steps", 2)
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    "text, message",
    [
        ("max_steps: 3", "there is no argument 'max_steps'"),
        ("max_train_steps: many", "'many' is no whole number of 1 or more"),
        ("streaming: 3", "'streaming' is true or false"),
        ("clips: [", "--config"),
        ("- clips", "it holds list, not names of arguments"),
    ],
)
def test_bad_yaml(tmp_path, text, message, refusal_of):
    (tmp_path / "recipe.yaml").write_text(text)
    arguments = ("--output_dir", tmp_path / "run", "--config", tmp_path / "recipe.yaml")
    assert message in refusal_of("train_videogpt.py", *arguments)


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "give videos: --instance_data_root"),
        (["--instance_data_root", ".", "--clips", "some"], "Clips are 'random', 'equal:N' or 'first:N'"),
        (["--num_simulated_scenes", 3, "--frame_interval", 4, 2], "--frame_interval takes one number or a range"),
        (["--instance_data_root", ".", "--num_simulated_scenes", 4], "both say where the videos come from"),
        (["--cached_latents", ".", "--windows_per_video", 2], "leave out --windows_per_video"),
        (["--cached_latents", ".", "--instance_data_root", "."], "leave out --instance_data_root"),
        (["--instance_data_root", ".", "--max_clips", 1], "random clips are 2 at least"),
        (["--instance_data_root", ".", "--max_num_frames", 1], "single frames are trained by --clips equal:1"),
        (
            ["--instance_data_root", ".", "--validation_steps", 2, "--validation_rollout_steps", 3],
            "must be a multiple",
        ),
        (["--instance_data_root", ".", "--logging_steps", 0], "'0' is no whole number of 1 or more"),
        (["--instance_data_root", ".", "--min_retention", 5], "'5' is no number from 0 to 1"),
        (["--instance_data_root", ".", "--ema_decay", 1], "give less than 1"),
        (["--instance_data_root", ".", "--lr_scheduler", "piecewise_constant"], "invalid choice"),
        (["--instance_data_root", ".", "--height", 40], "--height 40 --width 32: both must be multiples of 16"),
    ],
)
def test_bad_arguments(tmp_path, new_model, args, message, refusal_of):
    arguments = ("--output_dir", tmp_path, *new_model, *args)
    assert message in refusal_of("train_videogpt.py", *arguments)


@pytest.mark.parametrize("same_clips", [True, False])
def test_resampled_history_trains_two_processes_as_one_and_resumes(tmp_path, new_model, videos, same_clips):
    args = [*new_model, "--instance_data_root", videos, "--resampled_history", 0.5, "--resampled_steps", 2]
    args += ["--same_clips_in_step"] * same_clips + ["--checkpointing_steps", 3]
    train(tmp_path / "one", *args, "--max_train_steps", 6, "--train_batch_size", 2)
    if same_clips:
        train(tmp_path / "plain", *new_model, "--instance_data_root", videos, "--max_train_steps", 6)
        assert losses(tmp_path / "plain") != losses(tmp_path / "one")
        shutil.rmtree(tmp_path / "one" / "checkpoint-6")
        (tmp_path / "one" / "model_index.json").unlink()
        before = losses(tmp_path / "one")
        go_on = [*args, "--max_train_steps", 6, "--train_batch_size", 2, "--resume_from_checkpoint", "latest"]
        train(tmp_path / "one", *go_on)
        assert losses(tmp_path / "one") == before
        return
    train(tmp_path / "two", *args, "--max_train_steps", 6, num_processes=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def test_resampled_history_under_fsdp2_is_refused(tmp_path, new_model, videos):
    args = [*new_model, "--instance_data_root", videos, "--max_train_steps", 1, "--resampled_history", 0.5]
    result = run_script_under_fsdp2("train_videogpt.py", "--output_dir", tmp_path, *args, check=False)
    assert result.returncode and "--resampled_history does not work with FSDP2" in result.stderr + result.stdout


def test_what_is_there_is_not_replaced(tmp_path, new_model, videos, run_here, refusal_of):
    args = ["--output_dir", tmp_path, *new_model, "--instance_data_root", videos, "--max_train_steps", 2]
    rollouts = ["--validation_steps", 1, "--validation_rollout_steps", 1, "--validation_inference_steps", 1]
    run_here("train_videogpt.py", *args, *rollouts, "--num_validation_rollouts", 1)
    assert "## How good it is" in (tmp_path / "README.md").read_text()
    before = file_hashes(tmp_path / "transformer")
    for resume in ([], ["--resume_from_checkpoint", "latest"]):
        assert "already holds model_index.json" in refusal_of("train_videogpt.py", *args, *resume)
    assert file_hashes(tmp_path / "transformer") == before
    # Predictions of a run that was cut off say nothing of the next one.
    (tmp_path / "model_index.json").unlink()
    run_here("train_videogpt.py", *args, "--seed", 1)
    card = (tmp_path / "README.md").read_text()
    assert "## How good it is" not in card and "prediction.png" not in card


def test_log_of_a_run_that_goes_on_elsewhere(tmp_path, new_model, videos, run_here):
    """A graphics card logs more columns than a CPU."""
    args = ["--output_dir", tmp_path, *new_model, "--instance_data_root", videos, "--checkpointing_steps", 1]
    run_here("train_videogpt.py", *args, "--max_train_steps", 1)
    log = tmp_path / "train_log.csv"
    header, row = log.read_text().splitlines()
    log.write_text(f"{header},mfu\n{row},0.4\n")
    # With a shorter schedule than it was begun with, which is allowed
    run_here("train_videogpt.py", *args, "--max_train_steps", 2, "--resume_from_checkpoint", "checkpoint-1")
    assert read_log(tmp_path, ("step", "mfu")) == [("1", "0.4"), ("2", "")]
    assert not list(tmp_path.glob("*.partial"))


def test_hub_that_refuses_is_told_before_training(tmp_path, new_model, videos, hub, refusal_of, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", "wrong")
    args = ["--output_dir", tmp_path / "toy", *new_model, "--instance_data_root", videos, "--push_to_hub"]
    assert "401" in refusal_of("train_videogpt.py", *args, "--hub_model_id", "me/toy")
    assert not (tmp_path / "toy").exists()


def test_two_processes_on_samples_of_one_clip_and_of_more(tmp_path, new_model):
    """Clean patches are in some steps and not in others; what fills up the steps of the rare lengths is told."""
    make_videos(tmp_path / "videos" / "long", 3, num_frames=6)
    make_videos(tmp_path / "videos" / "short", 3, num_frames=4)
    args = [*new_model, "--instance_data_root", tmp_path / "videos", "--num_validation_videos", 1]
    args += ["--max_num_frames", 6, "--min_num_frames", 4, "--clips", "first:4", "--max_train_steps", 6]
    result = train(tmp_path / "run", *args, num_processes=2)
    assert len(losses(tmp_path / "run")) == 6
    assert "% of an epoch are further windows of rare videos: each of 2 sizes and lengths" in result.stdout


def test_model_that_is_something_else(tmp_path, videos, refusal_of):
    (tmp_path / "first" / "checkpoint-2").mkdir(parents=True)
    given = ["--output_dir", tmp_path, "--instance_data_root", videos, "--max_num_frames", 4]
    said = refusal_of("train_videogpt.py", *given, "--pretrained_model_name_or_path", tmp_path / "first")
    assert "is a run that has not ended, not a VideoGPTPipeline" in said


@pytest.mark.parametrize(
    "args, message",
    [
        (["--instance_data_root", "nowhere"], "nowhere is no folder"),
        (["--num_simulated_scenes", 3, "--num_validation_videos", 3], "3 usable videos, of which"),
        (
            ["--num_simulated_scenes", 3, "--num_validation_videos", 3, "--windows_per_video", 1],
            "3 usable videos, of which",
        ),
    ],
)
def test_bad_sources(tmp_path, new_model, args, message, refusal_of):
    assert message in refusal_of("train_videogpt.py", "--output_dir", tmp_path, *new_model, *args)
    assert not list(tmp_path.rglob("*.safetensors"))  # nothing was encoded before
