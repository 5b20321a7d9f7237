"""Playing by hand: what was seen, back to an earlier frame, keys, actions as a text."""

import re

import numpy as np
import pytest

from diffusers_videogpt.tasks.action_names import check_names, read_actions
from diffusers_videogpt.tasks.playing import Player
from diffusers_videogpt.tasks.world_model import WorldModel


NAMES = ("stay", "left", "right", "up", "down")


def noise(num_frames):
    return np.random.default_rng(0).integers(0, 256, (num_frames, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def make_player(steered_pipe):
    def make(**world):
        model = WorldModel(steered_pipe, **{"num_history_frames": 3, "num_inference_steps": 2} | world)
        return Player(model, model.begin(noise(4), seed=1), names=NAMES)

    return make


def test_what_was_seen_is_kept(make_player):
    for count in (1, 2, 4):  # also more frames a step than are looked back on
        player = make_player(frames_per_step=count)
        first, second = player.act(1), player.act(2)
        assert len(first) == len(second) == count
        np.testing.assert_array_equal(player.frames, np.concatenate([noise(4)[1:], first, second]))
        assert player.actions == [1, 2] and player.num_steps == 2 and player.num_given == 3


def test_back_to_an_earlier_frame(make_player):
    player = make_player()
    steps = [player.act(action) for action in (1, 2, 3)]
    player.rewind(2)
    np.testing.assert_array_equal(player.frames[3:], steps[0])
    np.testing.assert_array_equal(player.act(2), steps[1])  # the same again
    other = player.act(4)
    assert np.abs(other.astype(int) - steps[2]).max() > 0
    player.rewind(99)
    assert player.num_steps == 0 and len(player.frames) == 3


def test_keys(make_player):
    player = make_player()
    assert [player.action_of_keys({key}) for key in ("left", "right", "up", "down")] == [1, 2, 3, 4]
    assert player.action_of_keys({"3"}) == 3
    assert player.action_of_keys(set()) == player.action_of_keys({"7", "x"}) == 0
    nameless = Player(player.world, player.world.begin(noise(3), seed=0))
    assert nameless.action_of_keys({"left"}) == -1 and nameless.action_of_keys({"2"}) == 2
    nameless.act(-1)  # "no action" is one, too


def test_actions_as_a_text():
    assert read_actions("right*3 up 0*2", NAMES, num_actions=5) == [2, 2, 2, 3, 0, 0]
    assert read_actions("1*2", (), num_actions=3) == [1, 1]
    for text, said in {
        "jump*2": "'jump*2' is no action: give stay, left, right, up, down or a number in 0..4",
        "right*0": "'right*0' is no action",
        "right*99999999": "'right*99999999' is no action",
        "right*": "'right*' is no action",
        "right*-2": "'right*-2' is no action",
        "5": "'5' is no action",
        "  ": "There is no action in it",
    }.items():
        with pytest.raises(ValueError, match=re.escape(said)):
            read_actions(text, NAMES, num_actions=5)


def test_names_that_do_not_fit():
    for names, number, said in (
        (NAMES[:4], 5, "The names of 5 actions must be as many"),
        (("a", "a"), 2, "all different"),
        ((), None, "Only discrete actions"),
    ):
        with pytest.raises(ValueError, match=said):
            check_names(names, number)
