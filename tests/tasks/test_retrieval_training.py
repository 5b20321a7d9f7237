"""What of retrieval's training does not go together."""

import argparse
from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from diffusers_videogpt.tasks.retrieval_training import (
    RetrievalTraining,
    add_retrieval_arguments,
    check_retrieval_arguments,
)
from diffusers_videogpt.training.arguments import add_data_arguments, add_model_arguments
from diffusers_videogpt.training.feed import add_feed_arguments


@pytest.mark.parametrize(
    "line, error",
    [
        ("--windows_per_video 2", "--windows_per_video needs --train_transformer"),
        ("--cached_latents there", "--cached_latents needs --train_transformer"),
        ("--streaming", "--streaming needs --train_transformer"),
        ("--validation_data_root there", "a folder has no captions"),
        ("--num_clips 0", "'0' is no whole number of 1 or more"),
        ("--guidance_scale 2", "--guidance_scale does not apply to retrieval"),
        ("--windows_per_video 2 --train_transformer", None),
    ],
)
def test_arguments(line, error, capsys):
    parser = argparse.ArgumentParser()
    for add in (add_model_arguments, add_data_arguments, add_feed_arguments, add_retrieval_arguments):
        add(parser)
    if error is None:
        check_retrieval_arguments(parser, parser.parse_args(line.split()))
        return
    with pytest.raises(SystemExit):
        check_retrieval_arguments(parser, parser.parse_args(line.split()))
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("size, error", [(1, "raise --train_batch_size to 2"), (2, "There is no text encoder")])
def test_videos_need_others_and_a_text_encoder(size, error):
    args = SimpleNamespace(train_batch_size=size, pretrained_text_encoder_path=None)
    pipe = SimpleNamespace(text_encoder=None, tokenizer=None)
    with pytest.raises(ValueError, match=error):
        RetrievalTraining(args, Accelerator(cpu=True), pipe, feed=None)
