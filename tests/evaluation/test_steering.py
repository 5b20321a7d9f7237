"""The judgement of a steered model: a perfect one, one that ignores its actions, one that breaks others; and a policy."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from diffusers_videogpt.actions import ActionSpace
from diffusers_videogpt.evaluation.steering import (
    branch,
    evaluate_steering,
    format_steering,
    is_right_direction,
    plain_move,
)
from diffusers_videogpt.tasks.world_model import WorldModel
from diffusers_videogpt.worlds import steer


class Simulated:
    """In the place of a [`WorldModel`]: the simulator itself, whose actions are first changed by `mishear`."""

    num_history_frames, frames_per_step, action_space = 4, 1, ActionSpace(num_actions=5)

    def __init__(self, mishear=lambda action: action, spoil=lambda frames: frames):
        self.mishear, self.spoil = mishear, spoil

    def begin(self, video, actions, *, seed):
        return SimpleNamespace(frames=video[-4:], actions=list(actions), seed=seed)

    def advance(self, episodes, actions):
        after = []
        for episode, action in zip(episodes, actions, strict=True):
            told = [*episode.actions, self.mishear(max(action, 0))]
            frames = self.spoil(steer(episode.seed, told).frames[-4:].copy())
            after.append(SimpleNamespace(frames=frames, actions=told, seed=episode.seed))
        return after


def test_a_perfect_model():
    scores, moves = evaluate_steering(Simulated(), 6, num_steps=3)
    assert scores.num_moves == 30 == len(moves)
    assert scores.correlation > 0.99 and scores.right_share == 1 and scores.move_error < 0.7
    assert scores.lost_share == scores.others_lost == 0 and scores.others_error < 0.7
    branches = branch(Simulated(), 3, num_steps=3)
    for truth, predicted in zip(branches.truths, branches.predicted[:-1], strict=True):
        np.testing.assert_array_equal(truth.frames[-3:], predicted)
        np.testing.assert_array_equal(truth.frames[-7:-3], branches.given)
    assert (branches.predicted[1] != branches.predicted[2]).any()
    assert scores.others_error <= scores.others_error_without
    assert "| right direction | 100.0% |" in format_steering(scores)


def test_models_that_do_not_obey():
    deaf, _ = evaluate_steering(Simulated(lambda action: 0), 6, num_steps=3)
    assert abs(deaf.correlation) < 0.3 and deaf.right_share < 0.5
    swapped = {0: 0, 1: 2, 2: 1, 3: 4, 4: 3}
    turned, _ = evaluate_steering(Simulated(swapped.get), 6, num_steps=3)
    assert turned.correlation < -0.3 and turned.right_share < 0.5
    blank, moves = evaluate_steering(Simulated(spoil=np.zeros_like), 2, num_steps=1)
    assert blank.lost_share == blank.others_lost == 1 and blank.right_share == 0 and blank.correlation == 0
    plain = json.loads(json.dumps(plain_move(moves[1]), allow_nan=False))
    assert plain["predicted"] == [None, None] and plain["commanded"] == moves[1].commanded.tolist()
    assert plain["action"] == 1 and plain["is_right"] is False


def test_which_direction_is_right():
    cases = [
        ((9, 0), (8, 1), True),
        ((9, 0), (1, 0), False),  # hardly moved
        ((9, 0), (3, 4), False),  # rather down
        ((9, 0), (-8, 0), False),
        ((0, -9), (0, -5), True),
        ((0, 0), (1, 1), True),
        ((0, 0), (6, 0), False),
        ((2, 0), (0, 0), True),  # held up by a wall
        ((9, 0), (np.nan, np.nan), False),
    ]
    for commanded, predicted, right in cases:
        assert is_right_direction(np.array(commanded), np.array(predicted), full=9.0) is right, (commanded, predicted)


def test_a_random_model_is_judged(steered_pipe, make_tiny_pipe, make_tiny_transformer):
    world = WorldModel(steered_pipe, num_history_frames=3, num_inference_steps=1)
    scores, moves = evaluate_steering(world, 2, num_steps=2)
    assert scores.num_moves == 10 and np.isfinite(scores.correlation)
    pipe = make_tiny_pipe()
    pipe.register_modules(transformer=make_tiny_transformer(num_actions=3))
    with pytest.raises(ValueError, match="has 5 actions, this model has num_actions=3"):
        evaluate_steering(WorldModel(pipe, num_history_frames=3), 1)


def test_without_stable_baselines_it_says_what_to_install(monkeypatch):
    pytest.importorskip("gymnasium", reason='needs pip install ".[env]"')
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.delitem(sys.modules, "diffusers_videogpt.evaluation.steered_policies", raising=False)
    with pytest.raises(ImportError, match="pip install stable-baselines3"):
        __import__("diffusers_videogpt.evaluation.steered_policies")


def test_policies_of_simulator_and_model(steered_pipe):
    pytest.importorskip("gymnasium", reason='needs pip install ".[env]"')
    pytest.importorskip("stable_baselines3", reason="needs pip install stable-baselines3")
    from diffusers_videogpt.evaluation.steered_policies import compare_policies, format_policies

    world = {"model": steered_pipe, "num_history_frames": 3, "num_inference_steps": 1}
    scores = compare_policies(world, seeds=[0, 1], num_steps=256, num_scenes=3, horizon=6, num_envs=4, num_videos=6)
    assert len(scores["simulator"]) == len(scores["model"]) == len(scores["ratios"]) == 2
    assert "| random actions |" in format_policies(scores)
