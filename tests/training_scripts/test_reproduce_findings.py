"""The findings at toy size: a base model, the baseline by regression and what is reported of them; and the loss of the latter."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from run_scripts import SCRIPTS, run_file

from diffusers_videogpt.training.feed import MicroBatch
from diffusers_videogpt.training.next_frame_regression import NextFrameRegression
from diffusers_videogpt.training.noise_levels import ErrorsByAlpha
from diffusers_videogpt.training.settings import ObjectiveSettings


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load_script("reproduce_findings")


@pytest.fixture(scope="module")
def preset(script):
    return script.PRESETS["smoke"]


def made_up(script, preset, **scores_of_trainings) -> dict:
    """A seed's results in which every point of a training has one score, 10 where it is not given."""
    points = {point for finding in script.findings(preset).values() for point in finding.points.values()}
    measures = dict.fromkeys(script.MEASURES, 1.0)
    return {p: measures | {"score": scores_of_trainings.get(p.training.replace(" ", "_"), 10.0)} for p in points}


def test_trainings_differ_in_one_thing_and_see_as_many_frames(script):
    for preset in script.PRESETS.values():
        base, *others = script.trainings(preset).values()
        for other in others:
            changed = {name for name, value in vars(other).items() if value != getattr(base, name)}
            assert len(changed) == 1 or changed == {"clips", "script"}
            assert preset.frames_per_step % other.num_frames == 0
        points = [p for finding in script.findings(preset).values() for p in finding.points.values()]
        assert {p.training for p in points} == set(script.trainings(preset))
        assert preset.num_given + preset.num_predicted <= preset.num_frames[-1]


def test_tables_give_mean_and_spread_and_say_who_agrees(script, preset, tmp_path):
    seeds = {
        0: made_up(script, preset, next_frame=8.0, next_token=14.0, no_noise=9.0),
        1: made_up(script, preset, next_frame=7.0, next_token=12.0, no_noise=12.0),
    }
    text = script.report(preset, seeds, tmp_path)
    assert "| next frame | – | 7.50 ± 0.71 |" in text
    assert "next clip over next frame: 2.50 ± 0.71 points, higher in 2 of 2 seeds: agrees with the paper." in text
    assert "-3.00 ± 1.41 points, higher in 0 of 2 seeds: disagrees with the paper." in text
    assert "yes over no: -0.50 ± 2.12 points, higher in 1 of 2 seeds: undecided." in text
    assert "| no | 32.54 |" in text and (tmp_path / "findings.md").read_text() == text
    numbers = json.loads((tmp_path / "findings.json").read_text())["findings"]
    assert numbers["noise"]["rows"]["no"]["1"]["score"] == 12.0
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in numbers)


def test_regression_sees_nothing_of_the_frame_it_predicts(make_tiny_transformer):
    """Its noisy tokens are pure noise at α = 0, and its target is the frame: the loss is plain mean squared error."""
    transformer = make_tiny_transformer().eval()
    calls = []

    def note(module, args, kwargs, output):
        calls.append((kwargs["hidden_states"], kwargs["timestep"], output[0]))

    transformer.register_forward_hook(note, with_kwargs=True)
    training = NextFrameRegression.__new__(NextFrameRegression)
    training.objective, training.patch_size = ObjectiveSettings(min_retention=0.9), 2
    training.errors, training.actions = ErrorsByAlpha(), None

    def loss(latents):
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        with torch.no_grad():
            return training.loss(transformer, MicroBatch(latents, generators, [[1] * 3] * 2, ["a", "b"]))

    torch.manual_seed(0)
    latents = torch.randn(2, 4, 3, 4, 4)
    first, second = loss(latents), loss(2 * latents)
    (noise, timestep, predicted), (other_noise, _, _) = calls
    assert (timestep == 0).all() and torch.equal(noise, other_noise) and 0.7 < noise.std() < 1.3
    torch.testing.assert_close(first, (predicted - latents).square().mean())
    assert second > 2 * first


@pytest.fixture(scope="module")
def toy(script, preset, tmp_path_factory):
    """The base model and, of another seed, the baseline, trained by the scripts themselves, measured and measured again."""
    folder, patch = tmp_path_factory.mktemp("findings"), pytest.MonkeyPatch()
    patch.setenv("ACCELERATE_USE_CPU", "1")
    patch.setenv("OMP_NUM_THREADS", "1")
    # The scripts run in forks of a process that has imported what they need.
    start = SimpleNamespace(run=lambda command, **_: run_file(*command[1:]))
    patch.setattr(script, "subprocess", start)
    vae = str(Path(script.BUNDLED_MODEL) / "vae")
    scenes = script.make_scenes(
        preset.num_test_scenes, preset.num_given, num_predicted=preset.num_predicted, size=preset.size
    )

    def both():
        results = {}
        for seed, name in enumerate(("base", "next token")):
            run = script.train(preset, name, seed, vae, folder)
            results |= script.evaluate(preset, name, seed, run, scenes, folder)
        return results

    results = both()
    patch.delattr(script, "call_script")  # what is done is not done again
    patch.delattr(script, "measure")
    again = both()
    patch.undo()
    return folder, results, again


def test_models_are_trained_by_the_scripts_and_measured_once(toy, script, preset):
    folder, results, again = toy
    assert results == again and len(results) == 5
    assert all(set(scores) == set(script.MEASURES) for scores in results.values())
    assert os.listdir(folder / "latents") == ["8-scenes-8-frames"]
    card = (folder / "runs" / "next_token-seed-1" / "README.md").read_text()
    assert "train_next_frame_regression.py" in card and "equal:1" in card


def test_settings_follow_the_training(script, preset):
    base = script.settings_of(preset, script.Point("base", 4, 1.5), seed=3)
    assert (base.max_context_frames, base.frames_per_clip, base.guidance_scale, base.seed) == (4, 4, 1.5, 3)
    assert script.settings_of(preset, script.Point("4 frames", 4, 1.5), 0).max_context_frames == 1
    assert script.settings_of(preset, script.Point("next token", 1, 1.0), 0).num_inference_steps == 1
    night = script.PRESETS["night"]
    assert script.settings_of(night, script.Point("base", 1, 3.0), 0) == script.RolloutSettings(10, 1, 3.0, 23, 0)


def test_a_folder_of_another_preset_is_refused(script, tmp_path):
    (tmp_path / "preset.json").write_text("{}")
    with pytest.raises(SystemExit, match="choose another --output_dir"):
        script.main(script.parse_args(["--preset", "smoke", "--output_dir", str(tmp_path)]))
