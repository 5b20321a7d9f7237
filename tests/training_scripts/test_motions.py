"""The scripts that make small sets of animations and judge adapters of them."""

import pytest

from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.data.videos import VideoTable


def test_a_set_is_what_a_training_script_takes(tmp_path, run_here, capsys):
    given = [
        "--output_dir",
        tmp_path,
        "--motions",
        "fly_off",
        "--num_videos",
        2,
        "--num_held_out",
        1,
        "--num_frames",
        4,
    ]
    run_here("make_motions.py", *given)
    assert "fly_off: 2 videos to train on, 1 held-out first frames" in capsys.readouterr().out
    table = VideoTable.from_folder(tmp_path / "fly_off" / "train", Sampling(4, height=64, width=64))
    assert len(table) == 2 and table.frame_rate == 12 and not table.dropped
    with pytest.raises(SystemExit, match="is not empty: name a new folder"):
        run_here("make_motions.py", *given)


@pytest.mark.parametrize(
    "options, message",
    [
        (["mix", "--lora", "fly_off=a"], "two of them to mix"),
        (["scores", "--lora", "fly_off=a", "--lora", "fly_off=b"], "one adapter a motion"),
        (["scores", "--lora", "fly_off=a", "--all_weights", "transform=b"], "--all_weights: for each motion give"),
        (["scores", "--lora", "jump=a"], "invalid named_lora value: 'jump=a'"),
        (["scores", "--lora", "fly_off"], "invalid named_lora value: 'fly_off'"),
    ],
)
def test_bad_options_are_told_at_once(tmp_path, run_here, capsys, options, message):
    with pytest.raises(SystemExit):
        run_here("evaluate_motions.py", *options, "--model", "nowhere", "--output", tmp_path)
    assert message in capsys.readouterr().err
