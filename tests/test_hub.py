"""What is published, and that it loads from there: by who imported the package, and by who trusts the repository."""

import json
import re
from dataclasses import asdict

import pytest
import torch
from fake_hub import hub  # noqa: F401
from huggingface_hub import DatasetCard, ModelCard
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from run_scripts import WarmProcess, make_videos, run_code
from safetensors import safe_open
from safetensors.torch import save_file
from text_encoders import WIDTH, make_text_encoder, make_tokenizer
from tiny_models import tiny_autoencoder_of

from diffusers_videogpt import (
    NextClipFlowMatchScheduler,
    VideoGPTForVideoClassification,
    VideoGPTForVideoRetrieval,
    VideoGPTPipeline,
    VideoGPTRetrievalPipeline,
)
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.hub import export_to_hub_folder, push_to_hub
from diffusers_videogpt.video_io import write_video


@pytest.fixture
def run_folder(tmp_path, tiny_transformer):
    """A saved pipeline, and what training leaves beside it."""
    folder = tmp_path / "bouncing"
    VideoGPTPipeline(
        tiny_autoencoder_of(), tiny_transformer, NextClipFlowMatchScheduler(), frames_per_clip=2
    ).save_pretrained(folder)
    for extra in ("checkpoint-10/model.safetensors", "logs/events.out", "transformer/optimizer.pt", "notes.txt"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_text("stays here")
    return folder


@pytest.fixture
def lora_folder(tmp_path, tiny_transformer):
    tiny_transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = get_peft_model_state_dict(tiny_transformer)
    VideoGPTPipeline.save_lora_weights(
        tmp_path / "lora", layers, transformer_lora_adapter_metadata=tiny_transformer.peft_config["default"].to_dict()
    )
    return tmp_path / "lora"


@pytest.fixture
def latents_folder(tmp_path):
    """As `cache_latents.py` leaves it: an index, and a shard that repeats the index's key."""
    folder = tmp_path / "latents"
    folder.mkdir()
    key = {"seed": 0, "num_windows": 2, "instance_data_root": "/home/someone/private/videos", "dataset_file": None}
    videos = [{"id": "a.mp4", "shard": 0}]
    metadata = {"cache": json.dumps({"key": key, "videos": videos, "dropped": {}})}
    save_file({"a.mp4/moments": torch.arange(12.0).half()}, folder / "latents-00000.safetensors", metadata)
    size = (folder / "latents-00000.safetensors").stat().st_size
    index = {"key": key, "shards": [{"file": "latents-00000.safetensors", "bytes": size}], "videos": videos}
    (folder / "index.json").write_text(json.dumps(index | {"dropped": {}}))
    return folder


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# A pipeline


def test_exported_pipeline(run_folder, tmp_path):
    video = write_video(tmp_path / "made.mp4", torch.zeros(2, 16, 16, 3, dtype=torch.uint8).numpy(), fps=4)
    folder = export_to_hub_folder(run_folder, tmp_path / "out", repo_id="me/toy", license="mit", video=video)

    assert names(folder) == {
        "README.md",
        "model_index.json",
        "pipeline.py",
        "prediction.mp4",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "diffusers" and data["pipeline_tag"] == "image-to-video"
    assert data["license"] == "mit" and {"video-gpt", "diffusers"} <= set(data["tags"])
    assert data["widget"] == [{"text": "what the model predicts", "output": {"url": "prediction.mp4"}}]
    assert (
        'from_pretrained("me/toy")' in card.text and "2 frames at a time" in card.text and "<Gallery />" in card.text
    )
    index = json.loads((folder / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "VideoGPTTransformerModel"]
    assert json.loads((run_folder / "model_index.json").read_text())["transformer"][0] == "diffusers_videogpt"
    assert (folder / "transformer" / "config.json").samefile(run_folder / "transformer" / "config.json")  # linked


def test_card_of_training_is_kept_and_completed(run_folder, tmp_path):
    (run_folder / "README.md").write_text("---\ntags:\n- mine\npipeline_tag: text-to-video\n---\n\n# As trained\n")
    card = ModelCard.load(export_to_hub_folder(run_folder, tmp_path / "out", base_model="me/base") / "README.md")
    data = card.data.to_dict()
    assert card.text.strip() == "# As trained"
    assert {"mine", "video-gpt"} <= set(data["tags"]) and data["pipeline_tag"] == "text-to-video"
    assert data["library_name"] == "diffusers" and data["base_model"] == "me/base" and "widget" not in data


PAGE_OF_TRAINING = """# toy

A model: trained on `/home/someone/videos/balls`, started from `diffusers_videogpt/assets/videogpt-physics`. See
[the paper](https://arxiv.org/abs/2505.12489) and/or `a/b`.

```python
pipe = DiffusionPipeline.from_pretrained("{loaded}")
{then}
```

```bash
train.py --output_dir /tmp/someone/toy --data=~/private/clips
```
"""


@pytest.mark.parametrize("kind", ["pipeline", "classifier", "LoRA"])
def test_card_of_training_names_no_folder_of_this_machine(kind, run_folder, lora_folder, tmp_path):
    source, loaded, then = run_folder, str(run_folder), ""
    if kind == "classifier":
        then = f'model, vae = load_classifier("{run_folder}")'
    if kind == "LoRA":
        source, loaded = lora_folder, "diffusers_videogpt/assets/videogpt-physics"
        then = f'pipe.load_lora_weights("{lora_folder}")'
    (source / "README.md").write_text(PAGE_OF_TRAINING.format(loaded=loaded, then=then))
    if kind == "LoRA":
        with pytest.raises(ValueError, match="names its base as 'diffusers_videogpt/.*: say by `base_model` which"):
            export_to_hub_folder(source, tmp_path / "out", repo_id="me/toy")
    folder = export_to_hub_folder(source, tmp_path / "out", repo_id="me/toy", base_model="me/base")
    text = ModelCard.load(folder / "README.md").text
    assert not re.search(r"someone|private|assets|/tmp", text) and str(tmp_path) not in text
    assert "trained on `balls`, started from `me/base`" in text
    assert "(https://arxiv.org/abs/2505.12489) and/or `a/b`" in text and "--output_dir toy --data=clips" in text
    assert f'from_pretrained("{"me/base" if kind == "LoRA" else "me/toy"}")' in text
    assert then == "" or re.search(r'load_(lora_weights|classifier)\("me/toy"\)', text)


def test_help_names_all_kinds(capsys):
    with pytest.raises(SystemExit):
        main(["export-hub", "--help"])
    assert "pipeline, LoRA, classifier, retriever, or cached latents" in " ".join(capsys.readouterr().out.split())


IMPORTED = """
import sys, diffusers_videogpt
from diffusers import AutoModel, DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
assert type(diffusers_videogpt.VideoGPTPipeline.from_pretrained(sys.argv[1])) is type(pipe)
assert type(AutoModel.from_pretrained(sys.argv[1], subfolder="transformer")) is type(pipe.transformer)
"""
TRUSTED = """
import sys
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline="pipeline", trust_remote_code=True)
"""
# What the environment's variable sets where the Hub's library is imported, which it is already.
OFFLINE = "import huggingface_hub.constants; huggingface_hub.constants.HF_HUB_OFFLINE = True\n"
PREDICT = "print(pipe(num_inference_steps=1, num_frames=2, height=32, width=32).frames[0][0].size)"


def test_repository_on_the_hub(hub, run_folder, tmp_path, monkeypatch):  # noqa: F811
    """Loads for who imported the package, without trust and, once downloaded, offline; and for who trusts it."""
    folder = export_to_hub_folder(run_folder, tmp_path / "out", repo_id="me/toy")
    address = push_to_hub(folder, "toy", token="right", private=True)
    assert address.startswith(hub.endpoint) and hub.repository["visibility"] == "private"
    assert set(hub.files) == names(folder)

    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    # Read when the Hub's library is imported.
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    process = WarmProcess("libraries")
    results = [run_code(way + PREDICT, "me/toy", process=process) for way in (TRUSTED, IMPORTED, OFFLINE + IMPORTED)]
    process.close()
    for result in results:
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip().endswith("(32, 32)")


# A classifier, a retriever


def run_example(folder, monkeypatch, tmp_path):
    """The Python of a page, in a folder with its videos."""
    made = sorted(make_videos(tmp_path / "videos", 3, num_frames=9).iterdir())
    for path, name in zip(made, ("video.mp4", "one.mp4", "another.mp4"), strict=True):
        path.rename(path.with_name(name))
    monkeypatch.chdir(tmp_path / "videos")
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)[1]
    exec(code, {})


SAMPLING = Sampling(4, frame_interval=(1, 2), height=32, width=32)


def test_classifier(make_tiny_pipe, hub, tmp_path, monkeypatch, capsys):  # noqa: F811
    pipe = make_tiny_pipe()
    source = tmp_path / "classifier"
    names_of_classes = ["run", "jump", "swim"]
    VideoGPTForVideoClassification.from_transformer(
        pipe.transformer, names_of_classes, layer=1, sampling=SAMPLING
    ).save_pretrained(source)
    pipe.vae.save_pretrained(source / "vae")
    for extra in ("probe.json", "features/features.safetensors", "checkpoint-10/model.safetensors"):
        (source / extra).parent.mkdir(exist_ok=True)
        (source / extra).write_text("{}")

    folder = export_to_hub_folder(source, tmp_path / "out", repo_id=str(tmp_path / "out"))
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "video-classification" and "Tells 3 classes" in card.text
    push_to_hub(folder, "me/toy", token="right")
    weights = "diffusion_pytorch_model.safetensors"
    assert set(hub.files) == {"README.md", "config.json", weights, "vae/config.json", f"vae/{weights}"}
    run_example(folder, monkeypatch, tmp_path)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names_of_classes)


def test_retriever(make_tiny_pipe, tmp_path, monkeypatch, capsys):
    """Loads by its own class, also for who only trusts the repository."""
    pipe = make_tiny_pipe()
    retriever = VideoGPTForVideoRetrieval.from_transformer(pipe.transformer, WIDTH, layer=1, projection_dim=8)
    parts = (pipe.vae, retriever, make_text_encoder(), make_tokenizer())
    VideoGPTRetrievalPipeline(*parts, asdict(SAMPLING)).save_pretrained(tmp_path / "retriever")

    folder = export_to_hub_folder(tmp_path / "retriever", tmp_path / "out", repo_id=str(tmp_path / "out"))
    assert "import VideoGPTRetrievalPipeline as VideoGPTRetrievalPipeline" in (folder / "pipeline.py").read_text()
    run_example(folder, monkeypatch, tmp_path)
    assert "tensor([[" in capsys.readouterr().out
    trusted = TRUSTED + "print(type(pipe).__name__, tuple(pipe.encode_texts('a box').shape))"
    result = run_code(trusted, folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[-2] == "VideoGPTRetrievalPipeline (1, 8)"


# A LoRA, latents


def test_examples_play_at_the_rate_of_the_training(run_folder, lora_folder, tmp_path, tiny_transformer):
    """12 frames a second where it is not known."""

    def page(source, name):
        return (export_to_hub_folder(source, tmp_path / name, base_model="me/base") / "README.md").read_text()

    assert "fps=12)" in page(run_folder, "untold") and "fps=12)" in page(lora_folder, "untold LoRA")
    index = json.loads((run_folder / "model_index.json").read_text())
    (run_folder / "model_index.json").write_text(json.dumps(index | {"trained_with": {"fps": 7.5}}))
    layers = get_peft_model_state_dict(tiny_transformer)
    VideoGPTPipeline.save_lora_weights(lora_folder, layers, trained_with={"fps": 25.0})
    assert "fps=7.5)" in page(run_folder, "told") and "fps=25)" in page(lora_folder, "told LoRA")


def test_lora(lora_folder, hub, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="which model the LoRA is for, by `base_model`"):
        export_to_hub_folder(lora_folder, tmp_path / "out")
    folder = export_to_hub_folder(lora_folder, tmp_path / "out", repo_id="me/toy", base_model="me/base")
    push_to_hub(folder, "me/toy", token="right")
    assert set(hub.files) == {"README.md", "pytorch_lora_weights.safetensors"}
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.base_model == "me/base" and "lora" in card.data.tags and "me/toy" in card.text


def test_latents_become_a_dataset_that_tells_no_paths(latents_folder, hub, tmp_path):  # noqa: F811
    folder = export_to_hub_folder(latents_folder, tmp_path / "out", repo_id="me/toy")
    push_to_hub(folder, "me/toy", token="right")
    assert hub.repository["type"] == "dataset"
    assert set(hub.files) == {"README.md", "index.json", "latents-00000.safetensors"}
    assert not any(b"someone" in content for content in hub.files.values())
    index = json.loads(hub.files["index.json"])
    assert index["key"]["instance_data_root"] == "videos" and index["key"]["dataset_file"] is None
    assert index["shards"][0]["bytes"] == len(hub.files["latents-00000.safetensors"])
    with safe_open(folder / "latents-00000.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("a.mp4/moments"), torch.arange(12.0).half())
    assert "1 videos" in DatasetCard.load(folder / "README.md").text


# Refusals and the command line


def test_what_is_refused(run_folder, lora_folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no saved pipeline or retriever .*LoRA .*classifier .*cache of latents"
    ):
        export_to_hub_folder(tmp_path, tmp_path / "out")
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        export_to_hub_folder(run_folder, lora_folder)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "model_index.json").write_text(
        json.dumps({"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]})
    )
    with pytest.raises(ValueError, match="holds a WanPipeline, which is not of this package"):
        export_to_hub_folder(foreign, tmp_path / "out")
    with pytest.raises(ValueError, match="must be an MP4"):
        export_to_hub_folder(run_folder, tmp_path / "out", video=run_folder / "notes.txt")
    with pytest.raises(FileNotFoundError, match="gone.mp4"):
        export_to_hub_folder(run_folder, tmp_path / "out", video="gone.mp4")
    with pytest.raises(FileNotFoundError, match="is not ready for the Hub"):
        push_to_hub(run_folder, "me/toy", token="right")
    weights = run_folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="are pickled"):
        export_to_hub_folder(run_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_line(run_folder, hub, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", "right")
    out = tmp_path / "out"
    main(["export-hub", str(run_folder), str(out), "--repo-id", "me/toy", "--license", "mit", "--push"])
    assert f"{hub.endpoint}/me/toy/commit" in capsys.readouterr().out
    assert set(hub.files) == names(out)
    with pytest.raises(SystemExit, match="videogpt export-hub: .* is not an empty folder"):
        main(["export-hub", str(run_folder), str(out)])
    with pytest.raises(SystemExit, match="--push needs --repo-id"):
        main(["export-hub", str(run_folder), str(tmp_path / "other"), "--push"])


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("model_index.json", "[1]", "this JSON is a list"),
        ("model_index.json", "{", "no JSON can be read"),
        ("model_index.json", "{}", "holds a None"),
        ("model_index.json", '{"_class_name": ["VideoGPTPipeline"]}', "which is not of this package"),
        ("model_index.json", '{"_class_name": "VideoGPTPipeline", "vae": ["diffusers", "X"]}', "has no folder vae"),
        ("model_index.json", '{"_class_name": "VideoGPTPipeline", "vae": []}', "does not say frames_per_clip"),
        ("index.json", "{}", "no finished index of cached latents"),
        ("index.json", '{"shards": [{"file": "a"}], "key": {"num_windows": 1}, "videos": []}', "lacks a"),
        ("index.json", '{"shards": [{"file": "../a"}], "key": {"num_windows": 1}, "videos": []}', "leads out of"),
        ("config.json", '{"_class_name": "VideoGPTForVideoClassification"}', "has no folder vae"),
        ("config.json", "[]", "this JSON is a list"),
    ],
)
def test_damaged_configurations_are_named(tmp_path, file, content, message):
    source = tmp_path / "source"
    source.mkdir()
    (source / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export_to_hub_folder(source, tmp_path / "out")
