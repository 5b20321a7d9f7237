"""What is answered before PyTorch is imported: every `--help`, of `videogpt` and of the training scripts, and every mistake that
names and files tell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_videogpt import BUNDLED_MODEL
from diffusers_videogpt.commands.main import make_parser


SCRIPTS = Path(__file__).parents[2] / "training_scripts"
# Runs commands, each a program and its arguments, one after another in a fresh interpreter; prints how each ended, and what of
# the libraries that are slow to import was imported by then. A program is `videogpt` or the path of a script.
RUN = """
import contextlib, io, json, runpy, sys
def run(program, *arguments):
    if program == "videogpt":
        from diffusers_videogpt.commands.main import main
        main(arguments)
    else:
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(*command)
            end = None
        except SystemExit as error:
            end = error.code
    slow = {"torch", "diffusers", "transformers", "accelerate", "numpy"} & sys.modules.keys()
    print(json.dumps([end, out.getvalue(), err.getvalue(), sorted(slow)]))
"""
# Their arguments name motions and sizes of a simulated world, which is drawn by NumPy: it takes a tenth of a second.
WITH_NUMPY = {"evaluate_motions.py", "make_motions.py", "simulate_steered_world.py"}


def run(commands, folder):
    result = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)], capture_output=True, text=True, cwd=folder, timeout=120
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
    commands = [["videogpt", *words] for words in every_command(make_parser())]
    assert ["videogpt", "predict"] in commands and ["videogpt", "evaluate", "fvd"] in commands and len(commands) > 14
    ends = run([[*words, "--help"] for words in commands], tmp_path)
    for words, (end, out, _, slow) in zip(commands, ends, strict=True):
        assert end == 0 and set(slow) <= {"numpy"}, (words, slow)
        assert out.startswith(f"usage: {' '.join(words)}"), words
        assert words in (["videogpt"], ["videogpt", "evaluate"]) or "--verbose" in out, words


def test_every_script_knows_its_options_without_pytorch(tmp_path):
    # Those with NumPy come last: what one has imported is there for all that follow.
    scripts = sorted(SCRIPTS.glob("*.py"), key=lambda script: (script.name in WITH_NUMPY, script.name))
    assert scripts
    for word, code in (("--help", 0), ("--zzz", 2)):
        ends = run([[str(script), word] for script in scripts], tmp_path)
        for script, (end, out, err, slow) in zip(scripts, ends, strict=True):
            assert end == code, (script.name, err)
            assert not slow or (slow == ["numpy"] and script.name in WITH_NUMPY), (script.name, slow)
            if word == "--help":
                assert out.startswith(f"usage: {script.name} "), script.name
            else:  # or that an option is missing which has to be given
                assert err.startswith(f"{script.name}: error: ") and len(err.splitlines()) == 2, err
    assert not list(tmp_path.iterdir())


MISTAKES = {
    "no such video": ("predict nowhere.mp4", "video nowhere.mp4: there is no such file"),
    "no video": ("predict notes.mp4", "notes.mp4"),
    "a short video": ("predict --num-history-frames 99", "24 frames, fewer than --num-history-frames 99"),
    "few of the sample": (
        "predict --fps 3",
        "6 frames at --fps 3, and the first 8 are given: ask for a higher",
    ),
    "no such picture": ("predict --image nowhere.png", "--image nowhere.png: there is no such file"),
    "a class": ("predict --class-label cat", "was not trained on classes"),
    "another class": ("predict --model of_classes --class-label jmp", "do you mean 'jump'?"),
    "a class by number": ("predict --model of_classes --class-label 2", "Unknown class '2' among the 2"),
    "a text": (["predict", "--prompt", "a cat"], "was not trained on text"),
    "a size": ("predict --height 40 --width 64", "--height must be divisible by 16, got 40"),
    "half a size": ("predict --height 64", "--height and --width go together"),
    "no such model": ("predict --model ./nowhere", "'./nowhere' is no folder here"),
    "a part of a model": (["predict", "--model", f"{BUNDLED_MODEL}/vae"], "is a part of a pipeline"),
    "a damaged model": ("predict --model damaged", "damaged/model_index.json: no JSON can be read here"),
    "a list for a model": (
        "predict --model list",
        "list/model_index.json: this JSON is a list, not an object",
    ),
    "a bottomless model": (
        "predict --model deep",
        "deep/model_index.json: no JSON can be read here (maximum recursion",
    ),
    "settings of another kind": ("predict --model strange", "`longest_side` in model_index.json is 'wide'"),
    "no such LoRA": ("predict --lora ./nowhere:0.5", "--lora: './nowhere' is no folder here"),
    "no LoRA": ("predict --lora notes.safetensors", "is not a safetensors file"),
    "a folder of nothing for a LoRA": (
        "predict --lora empty:0.5",
        "--lora: 'empty' is not a safetensors file, nor",
    ),
    "a pickle for a LoRA": ("predict --lora pickled", "pickles (.bin, .pt) are never loaded"),
    "a text for a LoRA": (
        "predict --lora notes.mp4",
        "--lora: 'notes.mp4' is not a safetensors file, nor a folder",
    ),
    "a folder of nothing": (
        "predict --model empty",
        "'empty' holds no VideoGPTPipeline: name the folder that",
    ),
    "the folder of nothing that no name is": (["predict", "--model", ""], "'' holds no VideoGPTPipeline"),
    "the video itself": (
        "predict scene.gif --output ./scene.gif",
        "--output scene.gif is the video that is given, which it would replace",
    ),
    "guidance by nothing": (
        "predict --condition-guidance-scale 2",
        "--condition-guidance-scale needs --class-label or --prompt",
    ),
    "a model for a LoRA": (["predict", "--lora", BUNDLED_MODEL], "is a VideoGPTPipeline, not a LoRA"),
    "an output": ("predict --output notes.mp4/out", "notes.mp4/out cannot be written"),
    "a GIF too fast": ("predict --fps 90 --output a.gif", "a GIF shows at most 50 frames a second"),
    "a class of more digits than there are": (
        ["predict", "--model", "of_classes", "--class-label", "9" * 5000],
        "among the 2 classes",
    ),
    "a word for the number of classes": (
        "predict --model many_classes --class-label 1",
        "many_classes: `num_classes` in transformer/config.json is 'ten', not a whole number",
    ),
    "patches of nothing": ("predict --model no_patches", "config.json is 0, not a whole number in 1..64"),
    "numbers for names": ("predict --model numbered", "`id2label` must map numbers to names, got '0': 7"),
    "guidance by a word": (
        "predict --model guided",
        "guided: in model_index.json, --guidance-scale must be a finite",
    ),
    "a rate that no video has": (
        "predict --model hasty",
        "`trained_with.fps` must be at most 1000 frames a second",
    ),
    "an autoencoder without end": (
        "predict --model endless",
        "endless: vae/config.json: `layers_per_block` must be a whole number in 1..100, got 1000000000",
    ),
    "a size beyond the model's": (
        "predict --height 16000000 --width 16000000",
        "whose frames have at most 256 pixels along each side: give a smaller --height",
    ),
    "a scale beyond a video's": ("predict --scale 100000", "too large to be written: give --scale 120"),
    "a scale beyond the memory": (
        "predict --num-frames 1000000 --scale 2",
        "1000008 frames of 128 × 128, too large to be written: give --scale 1.",
    ),
    "a rate to play in a GIF": (
        "play --fps 90 --output a.gif",
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
    "an option": ("predict --chess 1", None),
    "a device": ("predict --device tpu", None),
    "no checkpoint": ("convert nowhere out", "INPUT_DIR nowhere: there is no such"),
    "nothing to export": ("export-hub nowhere out", "SOURCE nowhere: there is no such"),
    "no videos to index": ("index nowhere --model m", "FOLDER nowhere: there is no such"),
    "no retriever": (["index", ".", "--model", BUNDLED_MODEL], "is a VideoGPTPipeline, not a VideoGPTRetrieval"),
    "no index": (["search", "nowhere", "a ball"], "INDEX nowhere: there is no such"),
    "no page's model": ("demo --model ./nowhere", "'./nowhere' is no folder here"),
    "no page's port": ("demo --port 99999", None),
    "a compared model": ("evaluate physics-box --compare a=./nowhere", "'./nowhere' is no folder here"),
    "no videos": ("evaluate videos --data nowhere", "--data nowhere: there is no such"),
    "no real videos": ("evaluate fvd --data nowhere", "--data nowhere: there is no such"),
    "no benchmark": ("evaluate physics-iq --model m --data nowhere", "--data nowhere"),
    "no masks": ("evaluate segmentation --simulated 1 --masks nowhere", "--masks nowhere"),
    "no table": (
        "evaluate retrieval --model m --dataset-file nowhere.csv",
        "--dataset-file nowhere.csv",
    ),
    "no autoencoder": ("evaluate autoencoder --vae ./nowhere", "'./nowhere' is no folder here"),
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
    given = [words.split() if isinstance(words, str) else words for words, _ in MISTAKES.values()]
    ends = run([["videogpt", *words] for words in given], folder)
    for (what, (_, message)), words, (end, out, err, slow) in zip(MISTAKES.items(), given, ends, strict=True):
        assert set(slow) <= {"numpy"} and out == "", (what, slow)
        if message is None or message.startswith("argument"):  # by the parser
            assert end == 2 and err.startswith(f"videogpt {words[0]}") and (message or "") in err, what
            assert len(err) < 400, what
        else:
            assert end.startswith(f"videogpt {words[0]}: ") and message in end and "\n" not in end, (what, end)
    assert sorted(folder.rglob("*")) == before  # nothing is left behind


MISTAKES_OF_SCRIPTS = [
    (
        "benchmark_against_reference.py --reference . --rounds 0",
        "argument --rounds: '0' is no whole number of 1 or more",
    ),
    ("benchmark_attention.py --output notes.mp4/x/a.json", "--output notes.mp4/x cannot be written"),
    ("benchmark_loader.py --instance_data_root . --height 40 --width 32", "both must be multiples of 16"),
    (
        "benchmark_loader.py --instance_data_root . --output_json notes.mp4/x",
        "--output_json notes.mp4 cannot be written",
    ),
    ("benchmark_memory.py --output notes.mp4/x/a.json", "--output notes.mp4/x cannot be written"),
    ("benchmark_rollout.py --cases 16", "argument --cases: invalid parse_case value: '16'"),
    ("benchmark_steps.py --output notes.mp4/x", "--output notes.mp4/x cannot be written"),
    ("benchmark_training_step.py --runds 1", "there is no option --runds. The nearest option is --rounds."),
    ("evaluate_conditions.py classes --model m --output out --data_root nowhere", "--data_root nowhere: there is no"),
    ("evaluate_motions.py scores --model m --output out --lora fly_off=./nowhere", "--lora: './nowhere' is no folder"),
    ("evaluate_steering.py moves --model m --output notes.mp4/x", "--output notes.mp4/x cannot be written"),
    ("reproduce_findings.py --preset nigth", "argument --preset: invalid choice: 'nigth'"),
    ("reproduce_findings.py --output_dir notes.mp4/x", "--output_dir notes.mp4/x cannot be written"),
    ("train_autoencoder.py --output_dir out --resolution 17", "--resolution 17 must be divisible by 8"),
    ("train_autoencoder.py --output_dir out --lr_scheduler cosin", "argument --lr_scheduler: invalid choice: 'cosin'"),
]


def test_mistakes_in_scripts_are_told_without_pytorch(folder):
    before = sorted(folder.rglob("*"))
    commands = [command.split() for command, _ in MISTAKES_OF_SCRIPTS]
    ends = run([[str(SCRIPTS / script), *words] for script, *words in commands], folder)
    for (command, message), (end, out, err, slow) in zip(MISTAKES_OF_SCRIPTS, ends, strict=True):
        told = end if isinstance(end, str) else err
        assert end and message in told and len(told.splitlines()) == 2, (command, end, err)
        assert set(slow) <= {"numpy"} and out == "", (command, slow)
    assert sorted(folder.rglob("*")) == before
