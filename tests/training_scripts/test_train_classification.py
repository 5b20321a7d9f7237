"""Classification as a user runs it: a folder a class in, a classifier that loads, is scored and used out."""

import csv
import json

import pytest
import torch
from run_scripts import run_script
from script_data import make_ucf

from diffusers_videogpt.commands.main import main
from diffusers_videogpt.tasks.linear_probe import fit_linear_probe
from diffusers_videogpt.tasks.token_pooling import pool_clean_tokens
from diffusers_videogpt.tasks.video_classification import classify_videos, load_classifier, normalized
from diffusers_videogpt.tasks.video_features import clip_latents, clips_of
from diffusers_videogpt.training.feed import split_off
from diffusers_videogpt.transformer_videogpt import VideoGPTTransformerModel


SCRIPT = "train_classification.py"


@pytest.fixture(scope="module")
def ucf(tmp_path_factory):
    """Two classes of four videos, with lists as UCF-101's."""
    return make_ucf(tmp_path_factory.mktemp("ucf"), 4)


@pytest.fixture(scope="module")
def arguments(ucf, new_features):
    return [*new_features, "--instance_data_root", ucf / "videos", "--dataset_file", ucf / "trainlist01.txt"]


def test_probe(tmp_path, ucf, arguments, capsys, refusal_of):
    """Two processes share the features; the head is the probe of its features; it is scored and used."""
    out = tmp_path / "probe"
    result = run_script(
        *(SCRIPT, "--output_dir", out, *arguments, "--layer", 1, -1, "--num_clips", 2, "--num_validation_videos", 3),
        num_processes=2,
    )
    assert "layer 2: " in result.stdout  # not by its number from the end
    assert "0 of 8 videos dropped" in result.stdout and "% of held-out videos" in result.stdout
    model, vae = load_classifier(out)
    tried = json.loads((out / "probe.json").read_text())
    assert [row["layer"] for row in tried["layers"]] == [1, 2]
    assert tried["chosen"] == model.transformer.config.num_layers
    card = (out / "README.md").read_text()
    assert (
        "% of 3 held-out videos" in card and f'load_classifier("{out}")' in card and "train_classification.py" in card
    )
    assert model.labels == {"Basketball": 0, "Archery": 1} and model.sampling.max_num_frames == 4

    names = (ucf / "trainlist01.txt").read_text().split()[::2]
    with torch.no_grad():
        features = [
            pool_clean_tokens(
                model.transformer,
                clip_latents(vae, clips_of(ucf / "videos" / name, model.sampling, num_clips=2)),
                layer=-1,
            )
            for name in names
        ]
    labels = torch.tensor([model.labels[name.split("/")[0]] for name in names])
    probe = fit_linear_probe(
        normalized(torch.stack(features)), labels, num_classes=2, held_out=split_off(names, 3, seed=0)[1]
    )
    torch.testing.assert_close(model.head.weight, probe.weight, atol=1e-2, rtol=1e-2)

    main(
        ["evaluate", "probe", "--model", str(out), "--data", str(ucf / "videos"), "--output", str(tmp_path / "scores")]
    )
    assert "top-1: " in capsys.readouterr().out and (tmp_path / "scores" / "confusion.png").exists()
    (best,) = classify_videos(model, vae, videos=ucf / "videos" / names[0], num_clips=2, top_k=1)
    assert best[0][0] in model.labels and 0.5 <= best[0][1] <= 1
    assert "already holds config.json" in refusal_of(SCRIPT, "--output_dir", out, *arguments, "--layer", 1)


def test_finetuning(tmp_path, arguments):
    """Under two processes, which wait for the gradient of every weight that may have one: all that the layer needs moves."""
    out = tmp_path / "whole"
    args = ["--mode", "finetune", "--layer", 1, "--max_train_steps", 6, "--validation_steps", 3]
    run_script(SCRIPT, "--output_dir", out, *arguments, *args, num_processes=2)
    model, _ = load_classifier(out)
    new = VideoGPTTransformerModel(**model.config.transformer_config)
    new.init_weights(torch.Generator().manual_seed(0))  # other blocks would be drawn after these
    moved = {
        name
        for name, value in new.state_dict().items()
        if not torch.equal(model.transformer.get_parameter(name), value)
    }
    used = {"clean_patch_embed.weight", "hint_embed.weight", "transformer_blocks.0.attn.to_v.weight"}
    assert used <= moved and "noisy_patch_embed.weight" not in moved
    assert model.head.weight.abs().max() > 1e-4
    assert "![Loss by step](loss_curve.png)" in (out / "README.md").read_text() and (out / "loss_curve.png").exists()
    with (out / "train_log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["loss"]) == pytest.approx(0.6931, abs=1e-3)  # a head of zeros holds two classes for alike
    assert rows[2]["validation_loss"] and rows[5]["loss"] != rows[0]["loss"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--mode", "finetune", "--layer", "1", "2"], "trains one model: give one --layer"),
        (["--num_validation_videos", "0"], "chooses its weight decay on videos kept"),
        (["--windows_per_video", "2"], "leave out --cached_latents and --windows_per_video"),
        (
            ["--mode", "probe", "--resume_from_checkpoint", "latest"],
            "--resume_from_checkpoint does not apply to --mode probe",
        ),
        (["--mode", "finetune", "--same_clips_in_step"], "--same_clips_in_step does not apply to classification"),
        (["--streaming"], "of a stream they are not"),
    ],
)
def test_wrong_arguments(refusal_of, args, message):
    given = ["--output_dir", "probe", "--pretrained_vae_path", "vae", "--num_simulated_scenes", 9]
    if "--streaming" in args:
        given[-2:] = ["--dataset_name", "videos"]
    assert message in refusal_of(SCRIPT, *given, *args)
