"""What of retrieval's training does not go together."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from diffusers_videogpt.data.videos import VideoRecord
from diffusers_videogpt.tasks.retrieval_training import FeatureCache, RetrievalTraining
from diffusers_videogpt.tasks.settings import RetrievalSettings
from diffusers_videogpt.tasks.video_features import VideoFeatures
from diffusers_videogpt.training.arguments import parse_settings
from diffusers_videogpt.training.feed import CachedWindows, content_fields
from diffusers_videogpt.training.settings import BatchSettings


SCRIPT = Path(__file__).parents[2] / "training_scripts" / "train_retrieval.py"


@pytest.mark.parametrize(
    "line, error",
    [
        ("--dataset_name x --windows_per_video 2", "--windows_per_video needs --train_transformer"),
        ("--cached_latents there", "--cached_latents needs --train_transformer"),
        ("--dataset_name x --streaming", "--streaming needs --train_transformer"),
        ("--dataset_name x --validation_data_root there", "a folder has no captions"),
        ("--dataset_name x --num_clips 0", "'0' is no whole number of 1 or more"),
        ("--dataset_name x --guidance_scale 2", "--guidance_scale does not apply to retrieval"),
        ("--dataset_name x --windows_per_video 2 --train_transformer", None),
    ],
)
def test_arguments(line, error, capsys):
    script = runpy.run_path(str(SCRIPT))

    def parse():
        given = ["--output_dir", "out", "--pretrained_vae_path", "vae", *line.split()]
        return parse_settings(script["Settings"], script["__doc__"], command_line=given, what="retrieval")

    if error is None:
        assert parse().latents.windows_per_video == 2
        return
    with pytest.raises(SystemExit):
        parse()
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("size, error", [(1, "raise --train_batch_size to 2"), (2, "There is no text encoder")])
def test_videos_need_others_and_a_text_encoder(size, error):
    pipe = SimpleNamespace(text_encoder=None, tokenizer=None, vae=None)
    data = SimpleNamespace(batches=BatchSettings(train_batch_size=size), output_dir=Path("out"))
    with pytest.raises(ValueError, match=error):
        RetrievalTraining(Accelerator(cpu=True), pipe, feed=None, retrieval=RetrievalSettings(), data=data)


def test_features_are_known_by_the_videos_that_they_are_of():
    def fields(indices=(0, 1), **changes):
        records = [VideoRecord(name, Path(name), "a ball", "balls", digest=f"digest of {name}") for name in "ab"]
        records[1] = replace(records[1], **changes)
        return content_fields(CachedWindows(FeatureCache(VideoFeatures(torch.zeros(2, 1, 4), records)), indices))

    assert fields() == fields()
    assert fields()["content.cached"] != fields(digest="another")["content.cached"] != fields([0])["content.cached"]
    assert fields(caption="a box")["content.cached"] == fields()["content.cached"]  # which has a field of its own
    assert fields(caption="a box") != fields()
