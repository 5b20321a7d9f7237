"""The LoRA script as a user runs it: a folder of videos in, an adapter that the pipeline loads out."""

import csv
import json
import re
import shutil
import tarfile
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from run_scripts import make_videos, run_script
from safetensors import safe_open
from safetensors.torch import load_file
from script_data import losses

from diffusers_videogpt import VideoGPTTransformerModel
from diffusers_videogpt.training import recipe
from diffusers_videogpt.training.adapter import ATTENTION, MLP
from diffusers_videogpt.training.loop import TrainingLoop
from diffusers_videogpt.training.recipe import NextClipTraining
from diffusers_videogpt.video_io import read_video
from diffusers_videogpt.weights import hash_weights


BF16 = ("--base_dtype", "bfloat16", "--mixed_precision", "bf16")
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def arguments(base, short_run):
    options = ("--pretrained_model_name_or_path", base, "--rank", 4, "--learning_rate", 1e-2, "--windows_per_video", 2)
    return [*short_run, *options, "--train_batch_size", 1]


def train(output_dir, *args, **kwargs):
    return run_script("train_videogpt_lora.py", "--output_dir", output_dir, *args, **kwargs)


def animate(pipe):
    picture = Image.fromarray(np.full((32, 32, 3), 90, np.uint8))
    generator = torch.Generator().manual_seed(0)
    return pipe(image=picture, num_frames=2, num_inference_steps=2, generator=generator, output_type="pt").frames


def test_adapter_from_a_folder_of_videos(tmp_path, base, videos, arguments, monkeypatch):
    options = ["--validation_steps", 3, "--validation_rollout_steps", 6, "--num_validation_rollouts", 1]
    said = train(tmp_path, *arguments, *options, "--trained_on", "moving squares").stdout
    report = json.loads((tmp_path / "validation" / "report.json").read_text())
    assert report["num_predicted"] == 1 and report["error"].keys() == {"still", "base", "LoRA"}
    assert f"Loss of held-out videos: {report['loss']['base']:.4f} by the base" in said and "held_out.png" in said
    assert {"0.mp4", "0.png", "scores.json"} <= {p.name for p in (tmp_path / "validation" / "step-000006").iterdir()}
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "prediction.png").read_bytes() == (tmp_path / "validation" / "held_out.png").read_bytes()
    # The videos are of 8 frames a second.
    assert "fps=8)" in card and "Samples were 4 frames of 32 × 32 pixels at 8 frames a second" in card
    with safe_open(tmp_path / WEIGHTS, "numpy") as file:
        header = file.metadata()
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("4", "4")
    assert header["ss_base_model_version"] == base.name  # not where it lies
    network = VideoGPTTransformerModel.from_pretrained(base / "transformer")
    assert hash_weights(network).startswith(header["ss_new_sd_model_hash"])
    assert header["ss_dataset_name"] == videos.name and header["modelspec.usage_hint"] == "moving squares"
    age = datetime.now(UTC) - datetime.fromisoformat(header["modelspec.date"])
    assert timedelta(seconds=-1) <= age < timedelta(hours=1)
    known = json.loads(header["lora_adapter_metadata"])
    known = {
        name: known[f"trained_with.{name}"] for name in ("fps", "clips", "num_frames", "frames_per_clip", "height")
    }
    assert known == {"fps": 8.0, "clips": "first:1", "num_frames": 4, "frames_per_clip": 3, "height": 32}
    assert "load_lora_weights" in card and "- lora" in card and "prediction.png" in card
    # One frame is given, and the three others are one clip, as trained: not two as the base predicts them.
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("first.png")
    exec(
        re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1].replace(
            "num_frames", "num_inference_steps=1, num_frames", 1
        ),
        {},
    )
    assert "num_frames=3, frames_per_clip=3" in card and len(read_video("animation.mp4").frames) == 3
    assert not (tmp_path / "model_index.json").exists()  # the base is not copied
    pipe = DiffusionPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    before = animate(pipe)
    pipe.load_lora_weights(tmp_path)
    assert (animate(pipe) - before).abs().max() > 1e-4
    pipe.unload_lora_weights()
    torch.testing.assert_close(animate(pipe), before, atol=1e-5, rtol=0)


def test_resumed_run_ends_alike(tmp_path, arguments, refusal_of):
    train(tmp_path, *arguments)
    weights, log = load_file(tmp_path / WEIGHTS), losses(tmp_path)
    names = set(load_file(tmp_path / "checkpoint-6" / "model.safetensors"))
    assert names and all("lora_" in name for name in names)  # the base is in no checkpoint
    shutil.rmtree(tmp_path / "checkpoint-6")
    train(tmp_path, *arguments, "--resume_from_checkpoint", "latest")
    assert losses(tmp_path) == log
    resumed = load_file(tmp_path / WEIGHTS)
    assert resumed.keys() == weights.keys() and all(torch.equal(resumed[name], weights[name]) for name in weights)

    given = ["--output_dir", tmp_path, *arguments, "--resume_from_checkpoint", "latest", "--rank", 8]
    assert "adapter.r: 4 there, 8 now" in refusal_of("train_videogpt_lora.py", *given)
    assert all(torch.equal(value, weights[name]) for name, value in load_file(tmp_path / WEIGHTS).items())


def test_the_base_is_known_by_its_weights_not_by_where_it_lies(tmp_path, base, arguments, run_here, refusal_of):
    run_here("train_videogpt_lora.py", "--output_dir", tmp_path / "run", *arguments, "--max_train_steps", 3)
    elsewhere = tmp_path / "base"
    shutil.copytree(base, elsewhere)
    given = ["--output_dir", tmp_path / "run", *arguments, "--pretrained_model_name_or_path", elsewhere]
    given += ["--resume_from_checkpoint", "latest"]
    run_here("train_videogpt_lora.py", *given, "--max_train_steps", 4)
    assert len(losses(tmp_path / "run")) == 4
    network = VideoGPTTransformerModel.from_pretrained(elsewhere / "transformer")
    with torch.no_grad():
        network.proj_out.bias.add_(1)
    network.save_pretrained(elsewhere / "transformer")
    said = refusal_of("train_videogpt_lora.py", *given, "--max_train_steps", 5)
    assert "content.base: " in said and "; base: " not in said


def test_a_run_ends_when_the_held_out_loss_has_stopped_falling(tmp_path, base, arguments, run_here, capsys):
    """A rate that is far too high helps nobody: of all steps the first was the least bad, and it is what is saved."""
    options = [
        "--learning_rate",
        30,
        "--max_train_steps",
        50,
        "--validation_steps",
        1,
        "--patience",
        3,
        "--ema_decay",
        0,
    ]
    run_here("train_videogpt_lora.py", "--output_dir", tmp_path, *arguments, *options)
    report = json.loads((tmp_path / "validation" / "report.json").read_text())
    with (tmp_path / "train_log.csv").open(newline="") as file:
        by_step = {int(row["step"]): float(row["validation_loss"]) for row in csv.DictReader(file)}
    kept = min(by_step, key=by_step.get)
    assert report["kept_step"] == kept and report["last_step"] == kept + 3 == max(by_step) < 50
    assert report["loss"]["LoRA"] == pytest.approx(by_step[kept], rel=1e-5)
    saved, best = load_file(tmp_path / WEIGHTS), load_file(tmp_path / f"checkpoint-{kept}" / "model.safetensors")
    assert {name.removeprefix("transformer.") for name in saved} == {name.replace(".default", "") for name in best}
    assert all(torch.equal(saved[f"transformer.{name.replace('.default', '')}"], x) for name, x in best.items())
    said = capsys.readouterr().out
    assert f"lowest at step {kept}, whose weights" in said
    assert ("learnt nothing that carries" in said) == (report["loss"]["LoRA"] >= report["loss"]["base"])


def test_steps_and_rate_follow_from_the_set_and_the_model(tmp_path, base, videos, run_here, monkeypatch):
    begun = []
    monkeypatch.setattr(TrainingLoop, "run", lambda loop: begun.append(loop))
    monkeypatch.setattr(NextClipTraining, "card", lambda training, loop: {})
    monkeypatch.setattr(recipe, "publish", lambda *args, **options: None)
    args = ["--pretrained_model_name_or_path", base, "--instance_data_root", videos, "--max_num_frames", 4]
    run_here("train_videogpt_lora.py", *args, "--windows_per_video", 1, "--output_dir", tmp_path / "run")
    (loop,) = begun
    assert loop.settings.max_train_steps == 500 and loop.settings.validation_steps == 25 and loop.patience == 5
    assert loop.feed.samples_a_step == 4 and loop.ema.decay == 0.95
    assert loop.schedulers[0].base_lrs[0] == pytest.approx(5e-4 * (2000 / 32) ** 0.78)
    assert loop.schedulers[0].lr_lambdas[0](260) == pytest.approx(0.5)  # of 20 … 500, falling to 0
    trained = {name for name, p in loop.model.named_parameters() if p.requires_grad}
    layers = {name.split(".lora")[0].split(".", 2)[2] for name in trained}
    assert layers == {*MLP, *(f"attn.{name}" for name in ATTENTION)}
    assert all(p.shape[0] == 32 for name, p in loop.model.named_parameters() if "lora_A" in name)


@pytest.mark.parametrize(
    "options",
    [
        ["--use_dora"],
        ["--no-train_mlp", "--use_rslora", "--train_patch_embeddings", "--lora_dropout", 0.1, *BF16],
        ["--use_8bit_adam", "--gradient_checkpointing"],
        pytest.param(["--quantize_base", "nf4", "--use_8bit_adam", *BF16], marks=pytest.mark.gpu),
    ],
    ids=["dora", "rslora", "8-bit AdamW", "qlora"],
)
def test_kinds_of_adapters(tmp_path, base, arguments, options):
    train(tmp_path, *arguments, *options, "--max_train_steps", 3)
    assert all(np.isfinite(losses(tmp_path)))
    adapter = load_file(tmp_path / WEIGHTS)
    assert any("ff.linear_in" in name for name in adapter) == ("--no-train_mlp" not in options)
    assert any("patch_embed" in name for name in adapter) == ("--train_patch_embeddings" in options)
    pipe = DiffusionPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    before = animate(pipe)
    pipe.load_lora_weights(tmp_path)
    assert (animate(pipe) - before).abs().max() > 1e-6


def test_two_processes_train_as_one(tmp_path, arguments):
    train(tmp_path / "one", *arguments, "--train_batch_size", 2)
    train(tmp_path / "two", *arguments, num_processes=2)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), abs=1e-5)


def test_one_clip_a_stream_and_the_window(tmp_path, base, videos, run_here, monkeypatch):
    """Of a stream nothing is encoded before; clean patches are not trained where no sample has any; what is predicted in
    validation has the clips and the window of training."""
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        for path in sorted(videos.iterdir()):
            tar.add(path, arcname=path.name)
    begun = []
    monkeypatch.setattr(TrainingLoop, "run", lambda loop: begun.append(loop))
    monkeypatch.setattr(NextClipTraining, "card", lambda training, loop: begun.append(training.pipe.config) or {})
    monkeypatch.setattr(recipe, "publish", lambda *args, **options: None)
    args = ["--pretrained_model_name_or_path", base, "--height", 32, "--width", 32, "--max_num_frames", 8]
    args += ["--dataset_name", tmp_path / "shards", "--video_column", "mp4", "--streaming"]
    args += ["--clips", "equal:8", "--train_patch_embeddings", "--output_dir", tmp_path / "run"]
    run_here("train_videogpt_lora.py", *args)
    loop, config = begun
    assert config.frames_per_clip == 8 and not (tmp_path / "run" / "latents").exists()
    trained = {name.split(".")[0] for name, p in loop.model.named_parameters() if p.requires_grad}
    assert "noisy_patch_embed" in trained and "clean_patch_embed" not in trained


def test_bad_input(tmp_path, base, arguments, refusal_of):
    one_frame = make_videos(tmp_path / "short", 2, num_frames=1)
    picture = tmp_path / "pictures"
    picture.mkdir()
    Image.new("RGB", (32, 32)).save(picture / "cat.png")
    captions = tmp_path / "captions.csv"
    captions.write_text("caption\na cat\n")
    cases = [
        (["--push_to_hub"], "the page of a LoRA names its base on the Hub"),
        (["--base_dtype", "bfloat16"], "needs --mixed_precision bf16"),
        (["--instance_data_root", one_frame], "too short"),
        (["--instance_data_root", picture], "No usable video"),
        (["--dataset_file", captions], "has no column 'video'"),
        (["--pretrained_model_name_or_path", base / "transformer"], "is a part of a pipeline"),
    ]
    for args, message in cases:
        given = ["--output_dir", tmp_path / "run", *arguments, *args]
        assert message in refusal_of("train_videogpt_lora.py", *given)
