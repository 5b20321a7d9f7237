"""`videogpt play`: a list of actions without a window, and keys in one."""

import re
from pathlib import Path

import numpy as np
import pytest

from diffusers_videogpt import BUNDLED_MODEL, BUNDLED_STEERED_MODEL
from diffusers_videogpt.commands.main import main
from diffusers_videogpt.commands.options import parse_model
from diffusers_videogpt.tasks.window import Window
from diffusers_videogpt.video_io import read_video, write_video
from diffusers_videogpt.worlds import steer
from diffusers_videogpt.worlds.steered import read_positions


QUICK = ["--steps", "2", "--num-history-frames", "3"]


@pytest.fixture
def model(steered_pipe, tmp_path):
    steered_pipe.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_list_of_actions_makes_a_video(model, tmp_path, capsys):
    main(["play", "--model", model, "--actions", "right*3 up", "--output", str(tmp_path / "out"), *QUICK])
    said = capsys.readouterr().out
    assert re.search(r"4 steps in [\d.]+ s", said) and "played.mp4" in said
    frames = read_video(tmp_path / "out" / "played.mp4").frames
    assert frames.shape == (3 + 4, 256, 256, 3) and (tmp_path / "out" / "played.png").is_file()
    start = steer(0, 3, size=32).frames
    assert np.abs(frames[:3, ::8, ::8].astype(int) - start).mean() < 12  # as closely as a video keeps noise


def test_a_video_of_ones_own_is_played_from_its_end(model, tmp_path):
    frames = np.stack([np.full((32, 32, 3), 20 * i, np.uint8) for i in range(6)])
    path = write_video(tmp_path / "mine.mp4", frames, fps=12)
    made = tmp_path / "made.mp4"
    command = ["play", str(path), "--model", model, "--actions", "2", "--frames-per-step", "2", "--output", str(made)]
    main([*command, *QUICK])
    shown = read_video(made).frames
    assert len(shown) == 3 + 2
    np.testing.assert_allclose(shown[:3].mean((1, 2, 3)), [60, 80, 100], atol=3)


def test_the_same_actions_make_the_same_video_and_others_another(model, tmp_path):
    made = []
    for number, actions in enumerate(("left*2", "left*2", "down*2")):
        path = tmp_path / f"{number}.mp4"
        main(["play", "--model", model, "--actions", actions, "--output", str(path), *QUICK])
        made.append(read_video(path).frames)
    np.testing.assert_array_equal(made[0], made[1])
    assert np.abs(made[0][3:].astype(int) - made[2][3:]).max() > 5


def test_keys_in_a_window(model, tmp_path, monkeypatch, capsys):
    """Right twice, back once, saved, down, and closed: what was seen is in the video."""
    typed = iter(
        [
            ([], {"right"}),
            ([], {"right"}),
            (["r"], set()),
            (["s"], set()),
            (["down"], set()),  # pressed and let go between two steps
            (["escape"], set()),
        ]
    )
    shown, acted = [], []
    monkeypatch.setattr(Window, "has_screen", True)
    monkeypatch.setattr(Window, "keys", lambda self: next(typed))
    monkeypatch.setattr(Window, "show", lambda self, frame: shown.append(frame))
    from diffusers_videogpt.tasks.playing import Player

    act = Player.act
    monkeypatch.setattr(Player, "act", lambda self, action: acted.append(action) or act(self, action))
    main(["play", "--model", model, "--output", str(tmp_path / "out"), "--fps", "200", *QUICK])
    assert acted == [2, 2, 0, 4]
    assert len(shown) == 1 + 5
    np.testing.assert_array_equal(shown[3], shown[1])  # back
    assert len(read_video(tmp_path / "out" / "played.mp4").frames) == 3 + 1  # saved on the way
    assert len(read_video(tmp_path / "out" / "played_2.mp4").frames) == 3 + 3
    assert "arrow keys" in capsys.readouterr().out


def test_a_play_keeps_what_is_there(model, tmp_path, capsys):
    made = tmp_path / "made.mp4"
    made.write_text("mine")
    command = ["play", "--model", model, "--actions", "up", "--output", str(made), *QUICK]
    main(command)
    main(command)
    assert made.read_text() == "mine" and "made_3.mp4" in capsys.readouterr().out
    assert len(read_video(tmp_path / "made_2.mp4").frames) == len(read_video(tmp_path / "made_3.mp4").frames) == 3 + 1


def test_the_window_itself():
    """On SDL's driver without a screen, as the tests have it."""
    window = Window("test")
    assert not window.has_screen
    frame = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    window.show(frame)
    import pygame

    seen = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
    assert seen.shape == (320, 480, 3)
    np.testing.assert_array_equal(seen[5::10, 5::10], frame)
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_LEFT))
    assert window.keys() == (["left"], set()) and not window.is_closed
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    window.keys()
    assert window.is_closed
    window.close()
    window.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no screen for a window"),
        (["--actions", "jump"], "'jump' is no action"),
        (["--names", "a,b"], "names of 5 actions"),
        (["nothing.mp4", "--actions", "left"], "there is no such file"),
    ],
)
def test_what_can_not_be_played_is_said_before_anything_is_loaded(model, arguments, said, monkeypatch):
    monkeypatch.setattr("diffusers_videogpt.commands.play.load_pipeline", None)
    with pytest.raises(SystemExit, match=said):
        main(["play", "--model", model, *arguments])


def test_a_model_without_actions_is_refused():
    with pytest.raises(SystemExit, match="was not trained on discrete actions"):
        main(["play", "--model", BUNDLED_MODEL, "--actions", "left"])


def test_the_bundled_ball_obeys(tmp_path):
    """Scene 66 has its ball away from the walls; commanded are 3 pixels a frame of 64 x 64."""
    path = tmp_path / "played.mp4"
    main(["play", "--scene", "66", "--actions", "right*4 up*4 left*4", "--output", str(path)])
    frames = read_video(path).frames
    places = [read_positions(frames[index])[0] * 64 / 256 for index in (7, 11, 15, 19)]
    np.testing.assert_allclose(np.diff(places, axis=0), [(12, 0), (0, -12), (-12, 0)], atol=3)


def test_a_bundled_model_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path(BUNDLED_STEERED_MODEL).name
    assert parse_model(name) == BUNDLED_STEERED_MODEL and parse_model("someone/model") == "someone/model"
    (tmp_path / name).mkdir()  # a folder of one's own comes first
    assert parse_model(name) == name
