"""Who names the wrong folder is told what it holds, and what takes that."""

import json
from dataclasses import asdict

import pytest
import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler
from fake_hub import hub  # noqa: F401
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from text_encoders import WIDTH, make_text_encoder, make_tokenizer

from diffusers_videogpt import (
    VideoGPTForVideoClassification,
    VideoGPTForVideoRetrieval,
    VideoGPTPipeline,
    VideoGPTRetrievalPipeline,
    VideoGPTTransformerModel,
)
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.tasks.text_to_video import load_text_encoder
from diffusers_videogpt.tasks.video_classification import load_classifier
from diffusers_videogpt.tasks.video_index import load_retriever


@pytest.fixture
def folders(make_tiny_pipe, tmp_path):
    """One folder of each kind."""
    pipe = make_tiny_pipe()
    pipe.save_pretrained(tmp_path / "pipeline")
    torch.manual_seed(0)
    VideoGPTForVideoClassification.from_transformer(pipe.transformer, ["run", "jump"], layer=1).save_pretrained(
        tmp_path / "classifier"
    )
    pipe.vae.save_pretrained(tmp_path / "classifier" / "vae")
    retriever = VideoGPTForVideoRetrieval.from_transformer(pipe.transformer, WIDTH, layer=1, projection_dim=8)
    parts = (pipe.vae, retriever, make_text_encoder(), make_tokenizer())
    sampling = asdict(Sampling(4, frame_interval=(1, 2), height=32, width=32))
    VideoGPTRetrievalPipeline(*parts, sampling).save_pretrained(tmp_path / "retriever")
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipe.transformer)
    VideoGPTPipeline.save_lora_weights(
        tmp_path / "lora", layers, transformer_lora_adapter_metadata=pipe.transformer.peft_config["default"].to_dict()
    )
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "rms_norm_eps": 1e-5}))
    (tmp_path / "unfinished" / "checkpoint-10").mkdir(parents=True)
    return tmp_path


LOADERS = {
    "pipeline": VideoGPTPipeline.from_pretrained,
    "retriever": VideoGPTRetrievalPipeline.from_pretrained,
    "classifier": load_classifier,
}


@pytest.mark.parametrize("wanted", LOADERS)
def test_right_and_wrong_folders(folders, wanted):
    LOADERS[wanted](folders / wanted)
    for wrong, message in {
        "pipeline": "is a VideoGPTPipeline, not a .*`videogpt predict` takes it",
        "pipeline/transformer": "is a part of a pipeline, .*: name the folder above it",
        "pipeline/scheduler": "is a part of a pipeline",
        "retriever": "is a VideoGPTRetrievalPipeline, .*`videogpt index`",
        "classifier": "is a VideoGPTForVideoClassification, .*`videogpt evaluate probe` takes it",
        "lora": "is a LoRA, .*name its base as the model",
        "reference": "is a checkpoint of the authors' code, .*`videogpt convert` makes a pipeline of it",
        "unfinished": "is a run that has not ended, .*--resume_from_checkpoint latest",
    }.items():
        if wrong != wanted:
            with pytest.raises(ValueError, match=message):
                LOADERS[wanted](str(folders / wrong))


def test_what_is_not_known_is_left_to_diffusers(folders):
    """An empty folder, a model inside a folder, and a class of a user's own."""
    (folders / "empty").mkdir()
    with pytest.raises(OSError, match="no file named model_index.json"):
        VideoGPTPipeline.from_pretrained(folders / "empty")
    transformer = VideoGPTTransformerModel.from_pretrained(folders / "pipeline", subfolder="transformer")
    assert transformer.config.num_layers == 2
    VideoGPTForVideoClassification.from_pretrained(folders, subfolder="classifier")

    class MyPipeline(VideoGPTPipeline):
        pass

    MyPipeline.from_pretrained(folders / "pipeline").save_pretrained(folders / "mine")
    assert isinstance(VideoGPTPipeline.from_pretrained(folders / "mine"), VideoGPTPipeline)
    assert type(DiffusionPipeline.from_pretrained(folders / "pipeline")) is VideoGPTPipeline


def test_a_scheduler_of_more_times_than_a_memory_holds_is_refused_before_it_is_built(make_tiny_pipe, tmp_path):
    pipe = make_tiny_pipe()
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": 10**12}))
    with pytest.raises(ValueError, match="scheduler_config.json: `num_train_timesteps` must be .* 1..1000000, got 10"):
        VideoGPTPipeline.from_pretrained(tmp_path / "model")


def test_on_the_command_line(folders, tmp_path):
    with pytest.raises(SystemExit, match="videogpt predict: .*retriever' is a VideoGPTRetrievalPipeline"):
        main(["predict", "--model", str(folders / "retriever"), "--output", str(tmp_path / "out")])


@pytest.mark.parametrize("load", [*LOADERS.values(), load_retriever, load_text_encoder])
def test_what_is_no_folder_is_said_at_once(load, tmp_path):
    """Before any loader of diffusers or transformers retries; each test process is offline."""
    (tmp_path / "file").write_text("")
    for name, message in {
        "me/nope": "'me/nope' is no folder here, and the Hub could not be asked",
        str(tmp_path / "nope"): "nope' is no folder here, and cannot be an id on the Hub",
        "./nope": "'./nope' is no folder here",
        str(tmp_path / "file"): "file' is a file: name the folder",
    }.items():
        with pytest.raises(OSError, match=message):
            load(name)


def test_the_hub_does_not_have_it(hub):  # noqa: F811
    with pytest.raises(OSError, match="'me/toy' is no folder here, and the Hub has none of this name"):
        VideoGPTPipeline.from_pretrained("me/toy")


def test_a_text_encoder_may_be_a_folder():
    with pytest.raises(OSError, match="No text encoder: 'me/nope' .* A folder of one on this machine does as well"):
        load_text_encoder("me/nope")
