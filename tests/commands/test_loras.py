"""Commands do as a LoRA was trained, or say what differs."""

import argparse
import json
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusers_videogpt import BUNDLED_MODEL, VideoGPTPipeline
from diffusers_videogpt.commands.loras import differences, follow_lora
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.commands.models import look_at_model
from diffusers_videogpt.video_io import read_video, write_video


def arguments(*sources, **given):
    options = ("fps", "frames_per_clip", "height", "width", "steps", "guidance_scale", "solver")
    return argparse.Namespace(lora=[(source, 1.0) for source in sources], **dict.fromkeys(options) | given)


def told(args, *trained_with, **how):
    saved = follow_lora(args, look_at_model(BUNDLED_MODEL), trained_with=list(trained_with))
    return differences(args, saved, trained_with=list(trained_with), **how)


def test_another_size_is_told():
    """The bundled model is of 64 pixels."""
    small, large, fixed = {"longest_side": 64}, {"longest_side": 320}, {"height": 32, "width": 48}
    asked = {"height": 320, "width": 320}
    note = "note: a was trained with at most 64 pixels a side, this is with 320: it may do worse."
    assert told(arguments("a", **asked), small) == [note]
    assert told(arguments("a", "b", **asked), large, small) == [note.replace(" a ", " b ", 1)]
    assert told(arguments("a", "b"), small, large) == [
        "note: b was trained with at most 320 pixels a side, this is with at most 64: it may do worse."
    ]
    assert told(arguments("a", "b"), fixed, {"longest_side": 64}) == [
        "note: b was trained with at most 64 pixels a side, this is with 48: it may do worse."
    ]
    assert told(arguments("a", "b"), small, fixed) == [
        "note: b was trained with at most 48 pixels a side, this is with at most 64: it may do worse."
    ]
    assert told(arguments("a", height=32, width=64), fixed) == [
        "note: a was trained with --width 48, this is with 64: it may do worse."
    ]
    same = {"height": 64, "width": 32}
    assert told(arguments("a"), small) == told(arguments("a"), fixed) == told(arguments("a"), large) == []
    assert told(arguments("a", **same), small) == told(arguments("a"), {}) == []


def test_what_the_second_one_was_trained_with_is_told():
    first = {"fps": 8, "frames_per_clip": 4, "num_inference_steps": 2}
    second = {"fps": 12, "frames_per_clip": 8, "num_inference_steps": 4, "clips": "equal:8"}
    lines = told(arguments("a", "b"), first, second)
    assert [line.split("with ", 1)[1].split(":")[0] for line in lines] == [
        "--fps 12, this is with 8",
        "--frames-per-clip 8, this is with 4",
        "--steps 4, this is with 2",
    ]
    assert all(line.startswith("note: b was trained with ") for line in lines)
    assert not [line for line in told(arguments("a", "b"), first, second | {"clips": "random"}) if "clip" in line]
    rate = "videos have their own"
    assert told(arguments("a"), {"fps": 8}, unread_rate=rate) == [f"note: a was trained at 8 frames a second: {rate}."]


def save_lora(folder, transformer, **trained_with):
    """One that changes nothing, of the first layer's values."""
    size = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    layer = "transformer_blocks.0.attn.to_v"
    layers = {f"{layer}.lora_A.weight": torch.zeros(2, size), f"{layer}.lora_B.weight": torch.zeros(size, 2)}
    VideoGPTPipeline.save_lora_weights(folder, layers, trained_with=trained_with)
    return str(folder)


@pytest.fixture(scope="module")
def bundled():
    return VideoGPTPipeline.from_pretrained(BUNDLED_MODEL).transformer


def write_lora(path, *, rank=2, size=256, **metadata):
    """One that the bundled model, of width 256, can take, whose metadata is not looked at when it is saved."""
    layer = "transformer.transformer_blocks.0.attn.to_v"
    layers = {f"{layer}.lora_A.weight": torch.zeros(rank, size), f"{layer}.lora_B.weight": torch.zeros(256, rank)}
    save_file(layers, path, metadata={"lora_adapter_metadata": json.dumps(metadata)})
    return str(path)


@pytest.mark.parametrize(
    "known, message",
    [
        ({"solver": "rk4"}, "trained_with.solver` must be one of euler, multistep, consistency, got 'rk4'"),
        ({"solver": 3}, "trained_with.solver` must be text, got 3"),
        ({"num_inference_steps": 0}, "num_inference_steps` must be a whole number"),
        ({"guidance_scale": float("nan")}, "guidance_scale` must be a finite number, got nan"),
        ({"frames_per_clip": 1.5}, "frames_per_clip` must be a whole number"),
        ({"fps": -1}, "fps` must be a finite number above 0"),
        ({"fps": 1e9}, "fps` must be at most 1000 frames a second"),
        (
            {"clips": "nonsense"},
            "clips`: Clips are 'random', 'equal:N' or 'first:N' with N at least 1, got 'nonsense'",
        ),
        ({"clips": "first:0"}, "with N at least 1, got 'first:0'"),
        ({"clips": f"first:{'9' * 5000}"}, "with N at least 1, got 'first:9999"),
        ({"height": 63, "width": 64}, "was trained at a size that the model cannot have: .* divisible by 16, got 63"),
        ({"height": 10**5, "width": 10**5}, "was trained at a size that the model cannot have: .* too large"),
        ({"longest_side": 3}, "was trained at a size that the model cannot have: .* 3 pixels is less than the 16"),
    ],
    ids=str,
)
def test_nonsense_that_a_lora_was_trained_with_is_told_before_a_model_is_loaded(tmp_path, monkeypatch, known, message):
    def load(*args, **kwargs):
        raise AssertionError("the base was loaded")

    monkeypatch.setattr("diffusers_videogpt.commands.predict.load_pipeline", load)
    lora = write_lora(
        tmp_path / "lora.safetensors", **{f"trained_with.{name}": value for name, value in known.items()}
    )
    with pytest.raises(SystemExit, match=f"videogpt predict: --lora: {re.escape(lora)}.*{message}"):
        main(["predict", "--lora", lora, "--output", str(tmp_path / "out")])


def test_another_size_is_asked_for_than_the_model_can_have_from_the_lora():
    args, trained_with = arguments("a", height=32, width=32), [{"height": 63, "width": 9}]
    assert follow_lora(args, look_at_model(BUNDLED_MODEL), trained_with=trained_with)


@pytest.mark.parametrize(
    "details, message",
    [
        ({"size": 8}, r"does not fit the transformer.*lora_A.weight is \(2, 8\), not \(2, 256\)"),
        ({"transformer.r": 7}, "metadata says rank 7, its tensors differ"),
        ({"transformer.lora_alpha": "x"}, "`lora_alpha` must be a finite number, got 'x'"),
        ({"rank": 0}, "does not fit"),
    ],
    ids=str,
)
def test_a_lora_that_does_not_fit_is_told_before_weights_are_read(tmp_path, monkeypatch, details, message):
    def load(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(VideoGPTPipeline, "from_pretrained", load)
    lora = write_lora(tmp_path / "lora.safetensors", **details)
    with pytest.raises(SystemExit, match=f"--lora: {re.escape(lora)}: .*{message}"):
        main(["predict", "--lora", lora, "--output", str(tmp_path / "out")])


def test_the_page_begins_as_the_lora_was_trained(bundled, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio")
    shown = {}

    @contextmanager
    def page(pipe, *_, **__):
        shown.update(pipe.config, solver=pipe.scheduler.config.solver)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("diffusers_videogpt.commands.demo_page.running_page", page)
    known = {"fps": 8.0, "height": 32, "width": 48, "frames_per_clip": 4, "num_inference_steps": 2}
    lora = save_lora(tmp_path / "lora", bundled, solver="consistency", guidance_scale=1.0, **known)
    with pytest.raises(SystemExit):
        main(["demo", "--lora", lora])
    said = capsys.readouterr().out
    assert f"note: {lora} was trained at 8 frames a second: on the page, choose it under Read fps.\n" == said
    expected = {"longest_side": 48, "frames_per_clip": 4, "num_inference_steps": 2, "guidance_scale": 1.0}
    assert shown | expected | {"solver": "consistency"} == shown


def test_videos_are_evaluated_as_the_lora_was_trained(bundled, tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "videos" / "0.mp4", frames, fps=8)
    lora = save_lora(tmp_path / "lora", bundled, fps=8.0, longest_side=32)
    words = ["evaluate", "videos", "--data", str(tmp_path / "videos"), "--num-given", "2", "--num-frames", "2"]
    main([*words, "--lora", lora, "--steps", "1", "--output", str(tmp_path / "out")])
    assert "was trained at 8 frames a second: videos are read at their own rate" in capsys.readouterr().out
    height = read_video(tmp_path / "out" / "0.mp4").frames.shape[1]
    main([*words, "--steps", "1", "--output", str(tmp_path / "whole")])
    assert read_video(tmp_path / "whole" / "0.mp4").frames.shape[1] == height + 32


@pytest.mark.parametrize("begins", ["with a scene", "with a video"])
def test_a_play_is_as_the_lora_was_trained(steered_pipe, tmp_path, monkeypatch, capsys, begins):
    monkeypatch.setattr("diffusers_videogpt.commands.play.scale_to_show", lambda height, width: 1)
    steered_pipe.save_pretrained(tmp_path / "model")
    known = {"fps": 6.0, "longest_side": 16, "num_inference_steps": 3, "clips": "equal:2", "frames_per_clip": 2}
    lora = save_lora(tmp_path / "lora", steered_pipe.transformer, **known)
    made = tmp_path / "made.mp4"
    words = ["play", "--model", str(tmp_path / "model"), "--lora", lora, "--actions", "left", "--output", str(made)]
    if begins == "with a video":
        words[1:1] = [str(write_video(tmp_path / "mine.mp4", np.zeros((4, 32, 32, 3), np.uint8), fps=12))]
    main([*words, "--num-history-frames", "3"])
    said = capsys.readouterr().out
    assert f"note: {lora} was trained with --frames-per-step 2, this is with 1: it may do worse.\n" in said
    assert said.count("note:") == 1
    video = read_video(made)
    assert video.fps == pytest.approx(6) and video.frames.shape == (4, 16, 16, 3)
    main([*words, "--num-history-frames", "3", "--fps", "9", "--steps", "1"])
    said = capsys.readouterr().out
    assert "--fps 6, this is with 9" in said and "--steps 3, this is with 1" in said
