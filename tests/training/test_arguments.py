"""Settings: what a YAML file sets and the command line takes back, what is refused, and the pipeline that they name."""

import io
import re
import runpy
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from diffusers.optimization import SchedulerType

from diffusers_videogpt import BUNDLED_MODEL
from diffusers_videogpt.tasks.settings import Pooling
from diffusers_videogpt.tasks.token_pooling import POOLINGS
from diffusers_videogpt.training.arguments import (
    TRACEBACK,
    option,
    parse_settings,
    part,
    plain_values,
    run_script,
    unused_quantizers,
)
from diffusers_videogpt.training.loading import load_pipeline
from diffusers_videogpt.training.settings import (
    SCHEDULES,
    LatentSettings,
    LoopSettings,
    ModelSettings,
    ObjectiveSettings,
    PipelineSettings,
    SamplingSettings,
    SteeredPipelineSettings,
    VideoSettings,
)


SCRIPTS = Path(__file__).parents[2] / "training_scripts"
DATA = ("--instance_data_root", "videos", "--pretrained_vae_path", "vae", "--output_dir", "out")


def parse(*args, settings=PipelineSettings, what=None):
    return parse_settings(settings, "Trains.", command_line=[str(arg) for arg in args], what=what)


def refusal(capsys, *args, **how) -> str:
    with pytest.raises(SystemExit) as refused:
        parse(*args, **how)
    assert refused.value.code == 2
    return capsys.readouterr().err


def test_the_command_line_turns_off_what_a_file_turned_on(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("same_clips_in_step: true\ntorch_compile: false\n")
    given = [*DATA, "--config", file]
    assert parse(*given).latents.same_clips_in_step and not parse(*given).loop.torch_compile
    assert not parse(*given, "--no-same_clips_in_step").latents.same_clips_in_step
    assert parse(*given, "--torch_compile").loop.torch_compile


@dataclass(kw_only=True)
class Small:
    sampling: SamplingSettings = part(without=["target_fps"], max_num_frames=7)
    videos: VideoSettings = part(without={"streaming": "a stream has no end"})
    loop: LoopSettings = part()
    strength: float = option(0.5, "of it")


def test_a_part_has_its_scripts_defaults_and_leaves_out_options(capsys):
    settings = parse("--output_dir", "out", "--frame_interval", 2, 4, settings=Small)
    assert settings.sampling == SamplingSettings(max_num_frames=7, frame_interval=(2, 4)) and settings.strength == 0.5
    assert parse("--output_dir", "out", "--max_num_frames", 3, settings=Small).sampling.max_num_frames == 3
    given = ["--output_dir", "out"]
    said = refusal(capsys, *given, "--target_fps", 3, settings=Small, what="small things")
    assert "--target_fps does not apply to small things: leave it out." in said
    assert "a stream has no end." in refusal(capsys, *given, "--streaming", settings=Small)
    assert "there is no option --strenght. The nearest option is --strength." in refusal(
        capsys, *given, "--strenght=1", settings=Small
    )
    assert "no option --zzz.\n" in refusal(capsys, *given, "--zzz", settings=Small)
    said = refusal(capsys, *given, "--height", 32, settings=Small)
    assert "give --height and --width together" in said and len(said.splitlines()) == 2
    recorded = plain_values(settings)
    assert recorded["output_dir"] == "out" and recorded["frame_interval"] == [2, 4]
    assert "target_fps" not in recorded and recorded["strength"] == 0.5


def test_a_file_with_an_option_of_another_script(tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    for text, message in (
        ("target_fps: 3", "there is no argument 'target_fps' (--target_fps does not apply"),
        ("max_num_frame: 3", "there is no argument 'max_num_frame' (there is no option --max_num_frame. The nearest"),
    ):
        file.write_text(text)
        assert message in refusal(capsys, "--output_dir", "out", "--config", file, settings=Small)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 5000, "it is nested too deeply to be meant"),
        ("seed: 2026-13-45", "month must be in 1..12"),
        ("config: other.yaml", "a file of options cannot name another one"),
        ("seed: -1", "argument --seed: '-1' is no whole number of 0 or more"),
        ("max_train_steps: {a: 1}", "argument --max_train_steps: '{'a': 1}' is no whole number"),
    ],
    ids=lambda text: text[:20],
)
def test_a_file_that_nobody_meant(tmp_path, capsys, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    said = refusal(capsys, *DATA, "--config", tmp_path / "recipe.yaml")
    assert message in said and len(said.splitlines()) == 2


def test_a_text_of_a_file_may_begin_as_an_option_does(tmp_path):
    (tmp_path / "recipe.yaml").write_text("trained_on: --balls and -2 boxes\n")
    assert parse(*DATA, "--config", tmp_path / "recipe.yaml").videos.trained_on == "--balls and -2 boxes"


IMPOSSIBLE = {
    "--learning_rate=nan": "nan is not a finite number of 0 or more",
    "--learning_rate=-1": "-1 is not a finite number of 0 or more",
    "--adam_beta1=1": "an average of 1 takes in no gradient",
    "--adam_beta2=2": "'2' is no number from 0 to 1",
    "--adam_epsilon=0": "0 is not a number above 0",
    "--adam_weight_decay=inf": "inf is not a finite number of 0 or more",
    "--max_grad_norm=nan": "nan is not a number above 0",
    "--logit_std=0": "0 is not a number above 0",
    "--logit_mean=nan": "nan is not a finite number",
    "--guidance_scale=nan": "nan is not a finite number",
    "--seed=4294967296": "4294967296 is too large: at most 4294967295",
    "--target_fps=5000": "--target_fps 5000 must be at most 1000",
    "--target_fps=nan": "nan is not a number above 0",
    "--longest_side=7": "--longest_side 7 is too small",
    "--min_num_frames=49": "--min_num_frames 49 is above --max_num_frames 48",
}


@pytest.mark.parametrize("option", IMPOSSIBLE)
def test_numbers_that_no_run_can_have(capsys, option):
    said = refusal(capsys, *DATA, "--max_num_frames", 48, option)
    assert IMPOSSIBLE[option] in said and option.split("=")[0] in said and len(said.splitlines()) == 2


def test_gradients_may_be_left_as_they_are():
    assert parse(*DATA, "--max_grad_norm", "inf").optimizer.max_grad_norm == float("inf")


def test_as_many_given_frames_as_samples_have_leave_nothing_to_predict():
    objective = ObjectiveSettings(clips="first:8")
    objective.check_sampling(SamplingSettings(max_num_frames=9))
    with pytest.raises(ValueError, match="--clips first:8 gives 8 frames, and samples have at most 8: none is left"):
        objective.check_sampling(SamplingSettings(max_num_frames=8))


@pytest.mark.parametrize("option, kind", [("instance_data_root", "folder"), ("dataset_file", "file")])
def test_what_is_to_be_read_is_there_before_a_script_begins(monkeypatch, tmp_path, option, kind):
    words = ["--pretrained_vae_path", "vae", "--output_dir", "out", f"--{option}", str(tmp_path / "nowhere")]
    monkeypatch.setattr("sys.argv", ["train.py", *words])
    with pytest.raises(SystemExit, match=f"train.py: .*nowhere is no {kind}: give one that is there by --{option}"):
        run_script(lambda: parse_settings(PipelineSettings, "Trains."))
    assert parse(*words).videos  # a recipe can be read where its data are not


def test_what_was_typed_does_not_steer_a_terminal(tmp_path, capsys):
    (tmp_path / "file.yaml").write_text('"max_\\e[2J": 3\n')
    for wrong in (["--max_train_steps", "\x1b[2J"], ["\x1b[2J"], ["--\x1b[2J"], ["--config", tmp_path / "\x1b[2J"]):
        said = refusal(capsys, *DATA, *wrong)
        assert "\x1b" not in said and r"\x1b[2J" in said
    said = refusal(capsys, *DATA, "--config", tmp_path / "file.yaml")
    assert "\x1b" not in said and r"there is no argument 'max_\x1b[2J'" in said


def settings_of(script: Path):
    """The settings that a script composes."""
    names = runpy.run_path(str(script))
    return names["__doc__"], names.get("Settings", SteeredPipelineSettings)


@pytest.mark.parametrize("config", sorted(path.name for path in (SCRIPTS / "configs").glob("*.yaml")))
def test_every_recipe_is_read_by_its_script(config, monkeypatch):
    """Every value of it reaches the settings."""
    scripts = {"class": "class_to_video", "classification": "classification", "probe": "classification"}
    scripts |= {
        "retrieval": "retrieval",
        "segmentation": "segmentation",
        "text": "text_to_video",
        "lora": "videogpt_lora",
    }
    scripts |= {"classes": "class_to_video", "distill": "distillation"}
    monkeypatch.chdir(SCRIPTS.parent)
    path = SCRIPTS / "configs" / config
    words = [] if config == "physics_without_classes.yaml" else path.stem.split("_")
    words = ["distill"] if "distill" in words else words  # into an adapter, too
    (script,) = {scripts[word] for word in words if word in scripts} or {"videogpt"}
    doc, settings = settings_of(SCRIPTS / f"train_{script}.py")
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    more = ["--output_dir", "out"]
    if not given.keys() & {"pretrained_model_name_or_path", "pretrained_vae_path"}:
        more += ["--pretrained_model_name_or_path", "base"]
    if not given.keys() & {"instance_data_root", "num_simulated_scenes", "cached_latents"}:
        more += ["--instance_data_root", "videos"]
    read = plain_values(parse_settings(settings, doc, command_line=["--config", str(path), *more]))
    for name, value in given.items():
        assert read[name] == ([value] if name in ("frame_interval", "layer") and isinstance(value, int) else value), (
            name
        )


@pytest.mark.parametrize("num_gpus", [8, 64])
@pytest.mark.parametrize("stage", ["stage3", "stage4"])
def test_recipes_for_fewer_gpus_are_the_papers(stage, num_gpus):
    """They differ in how a step of 320 samples is computed, in nothing else."""
    paper, recipe = (
        yaml.safe_load((SCRIPTS / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in (stage, f"{stage}_{num_gpus}_gpus")
    )
    num_groups = num_gpus // recipe.pop("context_parallel_size")
    assert num_groups * recipe["train_batch_size"] * recipe.pop("gradient_accumulation_steps") == 320
    assert recipe == paper | {"gradient_checkpointing": False}
    name = "fsdp2" if num_gpus == 8 else "fsdp2_64_gpus"
    launched = yaml.safe_load((SCRIPTS / "configs" / "accelerate" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert launched["num_processes"] == num_gpus


def test_a_script_is_silent_about_packages_that_it_does_not_use(tmp_path):
    """torchao and bitsandbytes, which diffusers imports wherever they are: they warn of themselves."""
    base = {"pretrained_model_name_or_path": BUNDLED_MODEL}
    assert unused_quantizers(base) == ("bitsandbytes", "torchao")
    assert (
        unused_quantizers(base | {"use_8bit_adam": True}) == unused_quantizers(base | {"quantize_base": "nf4"}) == ()
    )
    assert unused_quantizers({"pretrained_model_name_or_path": "on/the_hub"}) == ()
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"quantization_config": {}}')
    assert unused_quantizers({"pretrained_model_name_or_path": str(tmp_path)}) == ()
    code = (
        "import sys\n"
        "from diffusers_videogpt.training.arguments import parse_settings\n"
        "from diffusers_videogpt.training.settings import PipelineSettings\n"
        "parse_settings(PipelineSettings, 'Trains.')\n"
        "import diffusers_videogpt.training.adapter, diffusers_videogpt.training.feed\n"
        "print([name for name in ('bitsandbytes', 'torchao') if sys.modules.get(name)])"
    )
    given = ["--pretrained_model_name_or_path", BUNDLED_MODEL, "--instance_data_root", ".", "--output_dir", tmp_path]
    done = subprocess.run([sys.executable, "-c", code, *map(str, given)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert not re.search("torchao|bitsandbytes|kernels|pytree", done.stderr), done.stderr


def test_choices_are_those_that_there_are():
    assert [*SCHEDULES, "piecewise_constant"] == [x.value for x in SchedulerType]
    assert list(typing.get_args(Pooling)) == list(POOLINGS)


def test_a_pipeline_keeps_its_settings_and_its_window_grows(tmp_path, make_tiny_pipe):
    make_tiny_pipe(guidance_scale=1.5, condition_guidance_scale=2.5, max_context_frames=5).save_pretrained(tmp_path)

    def load(*args):
        base = ("--pretrained_model_name_or_path", tmp_path, "--instance_data_root", "videos", "--output_dir", "out")
        settings = parse(*base, *args)
        pipe = load_pipeline(settings.model, settings.sampling)
        names = ("frames_per_clip", "guidance_scale", "condition_guidance_scale", "max_context_frames", "longest_side")
        return [pipe.config[name] for name in names]

    assert load("--max_num_frames", 4, "--longest_side", 48) == [2, 1.5, 2.5, 5, 48]
    assert load("--max_num_frames", 16, "--height", 32, "--width", 64) == [2, 1.5, 2.5, 14, 64]
    assert load("--frames_per_clip", 4, "--guidance_scale", 1, "--max_num_frames", 16) == [4, 1.0, 2.5, 12, 320]


def test_settings_are_refused_in_python_as_on_the_command_line():
    with pytest.raises(ValueError, match="both must be multiples of 16"):
        SamplingSettings(height=40, width=32)
    with pytest.raises(ValueError, match="give --pretrained_model_name_or_path, or --pretrained_vae_path"):
        ModelSettings()


@pytest.mark.parametrize("num_videos, kept", [(4, 0), (5, 1), (24, 4), (39, 7), (40, 8), (1000, 8)])
def test_of_a_small_set_a_fifth_is_kept_for_validation(num_videos, kept):
    assert LatentSettings(num_validation_videos=None).num_held_out(num_videos) == kept
    assert LatentSettings(num_validation_videos=3).num_held_out(num_videos) == 3
    others = LatentSettings(num_validation_videos=3, validation_data_root=Path("others"))
    assert others.num_held_out(num_videos) == 0


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, ImportError])
def test_what_a_user_can_mend_is_one_line(kind, monkeypatch):
    def main():
        raise kind("the folder\n  \x1b[2Jvideos is not there")

    with pytest.raises(SystemExit, match=r": the folder \\x1b\[2Jvideos is not there\n\(VIDEOGPT_TRACEBACK=1 shows"):
        run_script(main)
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(kind):
        run_script(main)


def test_what_a_part_of_a_script_takes_and_returns_is_handed_on():
    assert run_script(divmod, 7, 2) == (3, 1)


def test_a_bug_shows_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)


def test_a_run_goes_on_behind_a_name_that_the_console_cannot_print(monkeypatch):
    console, done = io.TextIOWrapper(io.BytesIO(), encoding="cp1252"), []
    monkeypatch.setattr("sys.stdout", console)

    def main():
        print("saved in 猫")
        done.append("published")

    run_script(main)
    console.flush()
    assert done == ["published"] and console.buffer.getvalue().strip() == rb"saved in \u732b"
