import re

import numpy as np
import pytest
import yaml
from fake_hub import hub  # noqa: F401
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.training.model_card import format_results, push_to_hub, write_model_card
from diffusers_videogpt.training.validation import RolloutScores
from diffusers_videogpt.video_io import read_video, write_video


RECIPE = {"learning_rate": 3e-4, "lr_scheduler": "constant", "frame_interval": (1, 4), "fps": None, "seed": 0}
COMMAND = "accelerate launch training_scripts/train_videogpt.py --instance_data_root videos"
SCORES = RolloutScores(
    mse={"predicted": [0.001, 0.002, 0.003], "repeat": [0.004, 0.008, 0.012], "autoencoder": [0.0005] * 3},
    psnr={"predicted": [30.0, 27.0, 25.2], "repeat": [24.0, 21.0, 19.2], "autoencoder": [33.0] * 3},
)


@pytest.fixture
def pipe(tiny_vae, tiny_transformer):
    return VideoGPTPipeline(
        tiny_vae, tiny_transformer, NextClipFlowMatchScheduler(), frames_per_clip=2, longest_side=32
    )


@pytest.fixture
def run(pipe, tmp_path):
    """The folder of a finished run: pipeline, card, and all else that training leaves."""
    folder = tmp_path / "bouncing"
    pipe.save_pretrained(folder)
    rollout = folder / "validation" / "step-000010"
    rollout.mkdir(parents=True)
    for name, color in (("0.png", "red"), ("curve.png", "blue")):
        Image.new("RGB", (20, 10), color).save(rollout / name)
    write_model_card(
        folder,
        transformer=pipe.transformer,
        example={"num_frames": 2},
        recipe=RECIPE,
        command=COMMAND,
        dataset="someone/clips",
        license="apache-2.0",
        results=format_results(SCORES),
        strip=rollout / "0.png",
        curve=rollout / "curve.png",
    )
    for extra in (
        "checkpoint-10/model.safetensors",
        "checkpoint-10/state.json",
        "checkpoint-20.partial/model.safetensors",
        "latents/latents-00000.safetensors",
        "logs/events.out",
        "dropped_videos.csv",
        "transformer/optimizer.pt",
    ):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_text("stays here")
    (folder / "train_log.csv").write_text("step,loss\n1,0.5\n")
    return folder


def code_block(card: str, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", card, flags=re.DOTALL)[1]


def test_card_for_the_hub(run):
    card = ModelCard.load(run / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "diffusers" and data["pipeline_tag"] == "image-to-video"
    assert data["license"] == "apache-2.0" and "video-gpt" in data["tags"]
    assert data["datasets"] == "someone/clips" and "base_model" not in data


def test_card_for_a_reader(run, pipe):
    card = (run / "README.md").read_text()
    assert card.count("\n# ") == 1 and "\n# bouncing\n" in card
    millions = sum(parameter.numel() for parameter in pipe.transformer.parameters()) / 1e6
    assert f"{millions:.3g} million parameters" in card
    assert code_block(card, "bash").strip() == COMMAND
    assert yaml.safe_load(code_block(card, "yaml")) == {
        "learning_rate": 3e-4,
        "lr_scheduler": "constant",
        "frame_interval": [1, 4],
        "seed": 0,
    }
    assert "0.25 × the error of repeating" in card
    assert (
        "| MSE × 1000 (PSNR, dB) | frame 1 | frame 2 | frame 3 |\n|---|---|---|---|\n| this model | 1.00 (30.0) | 2.00 (27.0) |"
        in card
    )
    assert "| repeating the last frame | 4.00 (24.0) |" in card and "| the autoencoder alone | 0.50 (33.0) |" in card
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", card)
    assert pictures == ["prediction.png", "loss_curve.png"]
    colors = [Image.open(run / picture).getpixel((0, 0)) for picture in pictures]
    assert colors == [(255, 0, 0), (0, 0, 255)]


def test_example_in_the_card_runs(run, tmp_path, monkeypatch):
    code = code_block((run / "README.md").read_text(), "python")
    assert len(code.splitlines()) <= 8
    monkeypatch.chdir(tmp_path)
    video = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    write_video("given.mp4", video, fps=8)
    exec(code, {})
    assert read_video("next.mp4").frames.shape == (2, 32, 32, 3)


def test_what_was_started_from(pipe, tmp_path, monkeypatch):
    """A model on the Hub is linked; a folder is named, but a link would lead nowhere. Nothing else is demanded."""
    local = tmp_path / "run" / "stage1"
    local.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for base_model, linked in (
        ("someone/stage1", "someone/stage1"),
        (str(local), None),
        ("run/stage1", None),
        (None, None),
    ):
        path = write_model_card(
            tmp_path,
            transformer=pipe.transformer,
            example={"num_frames": 2},
            recipe={},
            command="train",
            base_model=base_model,
            dataset="my videos",
        )
        card = ModelCard.load(path)
        assert card.data.to_dict().get("base_model") == linked
        assert "datasets" not in card.data.to_dict() and "trained on `my videos`" in card.text
        assert f"started from `{base_model}`" in card.text if base_model else "from random weights" in card.text
    recipe = {"pretrained_phi3_path": "microsoft/Phi-3-mini-128k-instruct"}
    path = write_model_card(
        tmp_path, transformer=pipe.transformer, example={"num_frames": 2}, recipe=recipe, command=COMMAND
    )
    assert "started from `microsoft/Phi-3-mini-128k-instruct`" in path.read_text()
    assert "prediction.png" not in card.text and not (tmp_path / "prediction.png").exists()


def test_id_on_the_hub(pipe, tmp_path):
    facts = {"transformer": pipe.transformer, "example": {"num_frames": 2}, "recipe": {}, "command": "train"}
    card = write_model_card(tmp_path, **facts, repo_id="me/toy").read_text()
    assert "\n# toy\n" in card and 'from_pretrained("me/toy")' in card


# Upload


def test_only_the_pipeline_and_its_card_are_uploaded(hub, run):  # noqa: F811
    address = push_to_hub(run, "toy", token="right", private=True)
    assert address == f"{hub.endpoint}/me/toy/commit/{'1' * 40}"
    assert hub.repository["name"] == "toy" and hub.repository["visibility"] == "private"
    assert set(hub.files) == {
        "README.md",
        "loss_curve.png",
        "model_index.json",
        "pipeline.py",
        "prediction.png",
        "scheduler/scheduler_config.json",
        "train_log.csv",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    made_anew = {"README.md", "model_index.json", "pipeline.py"}
    assert all((run / name).read_bytes() == hub.files[name] for name in hub.files.keys() - made_anew)


def test_uploaded_files_are_a_pipeline(hub, run, tmp_path):  # noqa: F811
    push_to_hub(run, "me/toy", token="right")
    for name, content in hub.files.items():
        path = tmp_path / "downloaded" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    loaded = VideoGPTPipeline.from_pretrained(tmp_path / "downloaded")
    assert loaded.config.frames_per_clip == 2


def test_wrong_token(hub, run):  # noqa: F811
    with pytest.raises(HfHubHTTPError, match="401"):
        push_to_hub(run, "me/toy", token="wrong")
    assert hub.files is None


def test_folder_without_a_pipeline(tmp_path):
    with pytest.raises(FileNotFoundError, match="no saved pipeline"):
        push_to_hub(tmp_path, "me/toy", token="right")
