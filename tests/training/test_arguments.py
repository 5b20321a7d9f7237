"""Arguments: what a YAML file sets and the command line takes back, and the pipeline that they name."""

import argparse
from types import SimpleNamespace

import pytest

from diffusers_videogpt.training.arguments import (
    add_data_arguments,
    add_model_arguments,
    load_pipeline,
    parse_arguments,
)
from diffusers_videogpt.training.feed import add_feed_arguments, num_held_out


def parse(*args):
    parser = argparse.ArgumentParser()
    for add in (add_model_arguments, add_data_arguments, add_feed_arguments):
        add(parser)
    return parse_arguments(parser, [str(arg) for arg in args])


def test_the_command_line_turns_off_what_a_file_turned_on(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("same_clips_in_step: true\nstreaming: false\n")
    assert parse("--config", file).same_clips_in_step and not parse("--config", file).streaming
    assert not parse("--config", file, "--no-same_clips_in_step").same_clips_in_step
    assert parse("--config", file, "--streaming").streaming


def test_a_pipeline_keeps_its_settings_and_its_window_grows(tmp_path, make_tiny_pipe):
    make_tiny_pipe(guidance_scale=1.5, condition_guidance_scale=2.5, max_context_frames=5).save_pretrained(tmp_path)

    def load(*args):
        pipe = load_pipeline(parse("--pretrained_model_name_or_path", tmp_path, *args))
        names = ("frames_per_clip", "guidance_scale", "condition_guidance_scale", "max_context_frames", "longest_side")
        return [pipe.config[name] for name in names]

    assert load("--max_num_frames", 4, "--longest_side", 48) == [2, 1.5, 2.5, 5, 48]
    assert load("--max_num_frames", 16, "--height", 32, "--width", 64) == [2, 1.5, 2.5, 14, 64]
    assert load("--frames_per_clip", 4, "--guidance_scale", 1, "--max_num_frames", 16) == [4, 1.0, 2.5, 12, 320]


@pytest.mark.parametrize("num_videos, kept", [(4, 0), (5, 1), (24, 4), (39, 7), (40, 8), (1000, 8)])
def test_of_a_small_set_a_fifth_is_kept_for_validation(num_videos, kept):
    args = SimpleNamespace(num_validation_videos=None, validation_data_root=None)
    assert num_held_out(args, num_videos) == kept
    assert num_held_out(SimpleNamespace(num_validation_videos=3, validation_data_root=None), num_videos) == 3
    assert num_held_out(SimpleNamespace(num_validation_videos=3, validation_data_root="others"), num_videos) == 0
