"""What is answered before PyTorch is imported: every `--help`, and every mistake that names and files tell."""

import json
import subprocess
import sys

import pytest

from diffusers_videogpt import BUNDLED_MODEL
from diffusers_videogpt.commands.main import make_parser


# Runs commands one after another in a fresh interpreter; prints how each ended, and whether PyTorch was imported by then.
RUN = """
import contextlib, io, json, sys
from diffusers_videogpt.commands.main import main
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
            end = None
        except SystemExit as error:
            end = error.code
    print(json.dumps([end, out.getvalue(), err.getvalue(), "torch" in sys.modules or "diffusers" in sys.modules]))
"""


def run(commands, folder):
    result = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)], capture_output=True, text=True, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def every_command(parser, words=()):
    yield list(words)
    for action in parser._actions:
        if hasattr(action, "_name_parser_map"):
            for name, command in action.choices.items():
                yield from every_command(command, (*words, name))


def test_every_help_is_there_without_pytorch(tmp_path):
    commands = [[*words, "--help"] for words in every_command(make_parser())]
    assert ["predict", "--help"] in commands and ["evaluate", "fvd", "--help"] in commands and len(commands) > 14
    for words, (end, out, _, heavy) in zip(commands, run(commands, tmp_path), strict=True):
        assert end == 0 and not heavy, words
        assert out.startswith(f"usage: {' '.join(['videogpt', *words[:-1]])}"), words
        assert words in (["--help"], ["evaluate", "--help"]) or "--verbose" in out, words


MISTAKES = {
    "no such video": (["predict", "nowhere.mp4"], "video nowhere.mp4: there is no such file"),
    "no video": (["predict", "notes.mp4"], "notes.mp4"),
    "a short video": (["predict", "--num-history-frames", "99"], "24 frames, fewer than --num-history-frames 99"),
    "few of the sample": (
        ["predict", "--fps", "3"],
        "6 frames at --fps 3, and the first 8 are given: ask for a higher",
    ),
    "no such picture": (["predict", "--image", "nowhere.png"], "--image nowhere.png: there is no such file"),
    "a class": (["predict", "--class-label", "cat"], "was not trained on classes"),
    "another class": (["predict", "--model", "of_classes", "--class-label", "jmp"], "do you mean 'jump'?"),
    "a class by number": (["predict", "--model", "of_classes", "--class-label", "2"], "Unknown class '2' among the 2"),
    "a text": (["predict", "--prompt", "a cat"], "was not trained on text"),
    "a size": (["predict", "--height", "40", "--width", "64"], "--height must be divisible by 16, got 40"),
    "half a size": (["predict", "--height", "64"], "--height and --width go together"),
    "no such model": (["predict", "--model", "./nowhere"], "'./nowhere' is no folder here"),
    "a part of a model": (["predict", "--model", f"{BUNDLED_MODEL}/vae"], "is a part of a pipeline"),
    "a damaged model": (["predict", "--model", "damaged"], "damaged/model_index.json: no JSON can be read here"),
    "a list for a model": (
        ["predict", "--model", "list"],
        "list/model_index.json: this JSON is a list, not an object",
    ),
    "a bottomless model": (
        ["predict", "--model", "deep"],
        "deep/model_index.json: no JSON can be read here (maximum recursion",
    ),
    "settings of another kind": (["predict", "--model", "strange"], "`longest_side` in model_index.json is 'wide'"),
    "no such LoRA": (["predict", "--lora", "./nowhere:0.5"], "--lora: './nowhere' is no folder here"),
    "no LoRA": (["predict", "--lora", "notes.safetensors"], "is not a safetensors file"),
    "a folder of nothing for a LoRA": (
        ["predict", "--lora", "empty:0.5"],
        "--lora: 'empty' is not a safetensors file, nor",
    ),
    "a pickle for a LoRA": (["predict", "--lora", "pickled"], "pickles (.bin, .pt) are never loaded"),
    "a text for a LoRA": (
        ["predict", "--lora", "notes.mp4"],
        "--lora: 'notes.mp4' is not a safetensors file, nor a folder",
    ),
    "a folder of nothing": (
        ["predict", "--model", "empty"],
        "'empty' holds no VideoGPTPipeline: name the folder that",
    ),
    "the folder of nothing that no name is": (["predict", "--model", ""], "'' holds no VideoGPTPipeline"),
    "the video itself": (
        ["predict", "scene.gif", "--output", "./scene.gif"],
        "--output scene.gif is the video that is given, which it would replace",
    ),
    "guidance by nothing": (
        ["predict", "--condition-guidance-scale", "2"],
        "--condition-guidance-scale needs --class-label or --prompt",
    ),
    "a model for a LoRA": (["predict", "--lora", BUNDLED_MODEL], "is a VideoGPTPipeline, not a LoRA"),
    "an output": (["predict", "--output", "notes.mp4/out"], "notes.mp4/out cannot be written"),
    "a GIF too fast": (["predict", "--fps", "90", "--output", "a.gif"], "a GIF shows at most 50 frames a second"),
    "a class of more digits than there are": (
        ["predict", "--model", "of_classes", "--class-label", "9" * 5000],
        "among the 2 classes",
    ),
    "a word for the number of classes": (
        ["predict", "--model", "many_classes", "--class-label", "1"],
        "many_classes: `num_classes` in transformer/config.json is 'ten', not a whole number",
    ),
    "patches of nothing": (["predict", "--model", "no_patches"], "config.json is 0, not a whole number in 1..64"),
    "numbers for names": (["predict", "--model", "numbered"], "`id2label` must map numbers to names, got '0': 7"),
    "guidance by a word": (
        ["predict", "--model", "guided"],
        "guided: in model_index.json, --guidance-scale must be a finite",
    ),
    "a rate that no video has": (
        ["predict", "--model", "hasty"],
        "`trained_with.fps` must be at most 1000 frames a second",
    ),
    "an autoencoder without end": (
        ["predict", "--model", "endless"],
        "endless: vae/config.json: `layers_per_block` must be a whole number in 1..100, got 1000000000",
    ),
    "a size beyond the model's": (
        ["predict", "--height", "16000000", "--width", "16000000"],
        "whose frames have at most 256 pixels along each side: give a smaller --height",
    ),
    "a scale beyond a video's": (["predict", "--scale", "100000"], "too large to be written: give --scale 120"),
    "a scale beyond the memory": (
        ["predict", "--num-frames", "1000000", "--scale", "2"],
        "1000008 frames of 128 × 128, too large to be written: give --scale 1.",
    ),
    "a rate to play in a GIF": (
        ["play", "--fps", "90", "--output", "a.gif"],
        "--output a.gif: a GIF shows at most 50 frames a second",
    ),
    **{
        f"{command[0]} {option} {value[:20]}": ([*command, option, value], f"argument {option}: ")
        for command, options in {
            ("predict",): (
                "--num-frames",
                "--num-history-frames",
                "--max-context-frames",
                "--frames-per-clip",
                "--steps",
            ),
            ("predict", "--image", "a.png"): ("--scale", "--height", "--seed", "--fps"),
            ("predict", "--class-label", "a"): ("--fps",),
            ("play",): ("--fps", "--seed", "--steps", "--frames-per-step", "--num-history-frames"),
            ("evaluate", "videos", "--data", "."): ("--fps", "--seed", "--num-given", "--num-frames", "--steps"),
        }.items()
        for option in options
        for value in ("5000" if option == "--fps" else "1" + "0" * 20, "9" * 5000)
    },
    "an option": (["predict", "--chess", "1"], None),
    "a device": (["predict", "--device", "tpu"], None),
    "no checkpoint": (["convert", "nowhere", "out"], "INPUT_DIR nowhere: there is no such"),
    "nothing to export": (["export-hub", "nowhere", "out"], "SOURCE nowhere: there is no such"),
    "no videos to index": (["index", "nowhere", "--model", "m"], "FOLDER nowhere: there is no such"),
    "no retriever": (["index", ".", "--model", BUNDLED_MODEL], "is a VideoGPTPipeline, not a VideoGPTRetrieval"),
    "no index": (["search", "nowhere", "a ball"], "INDEX nowhere: there is no such"),
    "no page's model": (["demo", "--model", "./nowhere"], "'./nowhere' is no folder here"),
    "no page's port": (["demo", "--port", "99999"], None),
    "a compared model": (["evaluate", "physics-box", "--compare", "a=./nowhere"], "'./nowhere' is no folder here"),
    "no videos": (["evaluate", "videos", "--data", "nowhere"], "--data nowhere: there is no such"),
    "no real videos": (["evaluate", "fvd", "--data", "nowhere"], "--data nowhere: there is no such"),
    "no benchmark": (["evaluate", "physics-iq", "--model", "m", "--data", "nowhere"], "--data nowhere"),
    "no masks": (["evaluate", "segmentation", "--simulated", "1", "--masks", "nowhere"], "--masks nowhere"),
    "no table": (
        ["evaluate", "retrieval", "--model", "m", "--dataset-file", "nowhere.csv"],
        "--dataset-file nowhere.csv",
    ),
    "no autoencoder": (["evaluate", "autoencoder", "--vae", "./nowhere"], "'./nowhere' is no folder here"),
    "no classifier": (["evaluate", "probe", "--model", BUNDLED_MODEL, "--data", "."], "is a VideoGPTPipeline, not a"),
}


@pytest.fixture
def folder(tmp_path):
    """Files and models that something is wrong with."""
    (tmp_path / "notes.mp4").write_text("This is no video.")
    (tmp_path / "notes.safetensors").write_text("These are no weights.")
    (tmp_path / "scene.gif").write_text("This is no video either.")
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_model.bin").write_text("These are no weights.")
    index = {"_class_name": "VideoGPTPipeline"}
    indices = {
        "of_classes": json.dumps(index | {"id2label": {"0": "run", "1": "jump"}}),
        "damaged": '{"_class_name": ',
        "list": "[]",
        "deep": "[" * 100_000,
        "strange": json.dumps(index | {"longest_side": "wide"}),
        "many_classes": json.dumps(index),
        "no_patches": json.dumps(index),
        "numbered": json.dumps(index | {"id2label": {"0": 7}}),
        "guided": json.dumps(index | {"guidance_scale": "much"}),
        "hasty": json.dumps(index | {"trained_with": {"fps": 5000.0}}),
        "endless": json.dumps(index),
    }
    for name, text in indices.items():
        (tmp_path / name / "transformer").mkdir(parents=True)
        (tmp_path / name / "model_index.json").write_text(text)
    networks = {
        "of_classes": {"num_classes": 2},
        "many_classes": {"num_classes": "ten"},
        "no_patches": {"patch_size": 0},
    }
    for name, network in networks.items():
        (tmp_path / name / "transformer" / "config.json").write_text(json.dumps(network))
    (tmp_path / "endless" / "vae").mkdir()
    (tmp_path / "endless" / "vae" / "config.json").write_text(json.dumps({"layers_per_block": 10**9}))
    return tmp_path


def test_mistakes_are_told_without_pytorch(folder):
    before = sorted(folder.rglob("*"))
    commands = [arguments for arguments, _ in MISTAKES.values()]
    for (what, (words, message)), (end, out, err, heavy) in zip(MISTAKES.items(), run(commands, folder), strict=True):
        assert not heavy and out == "", what
        if message is None or message.startswith("argument"):  # by the parser
            assert end == 2 and err.startswith(f"videogpt {words[0]}") and (message or "") in err, what
            assert len(err) < 400, what
        else:
            assert end.startswith(f"videogpt {words[0]}: ") and message in end and "\n" not in end, (what, end)
    assert sorted(folder.rglob("*")) == before  # nothing is left behind
