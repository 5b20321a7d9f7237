import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.evaluation.world_prediction import (
    evaluate_world_prediction,
    format_table,
    keep_velocity,
    repeat_last_frame,
    score,
)
from diffusers_videogpt.worlds import simulate


@pytest.fixture(scope="module")
def scenes():
    return [simulate("bounce", seed=seed, num_frames=10) for seed in range(6)]


def mse(frames, truth):
    return np.square(frames / 255 - truth / 255).mean()


def test_scores_of_the_truth_and_of_repeating(scenes):
    truths = [scene.frames[4:] for scene in scenes]
    perfect = score(truths, truths)
    assert perfect.mse == 0 and perfect.objects_kept == 1 and perfect.mse_by_horizon == [0] * 6
    repeated = score([repeat_last_frame(scene, 4) for scene in scenes], truths)
    assert repeated.mse_by_horizon[0] < repeated.mse_by_horizon[-1]
    np.testing.assert_allclose(repeated.mse, np.mean(repeated.mse_by_horizon))
    expected = np.mean([mse(scene.frames[3], scene.frames[9]) for scene in scenes])
    np.testing.assert_allclose(repeated.mse_by_horizon[-1], expected)
    empty = score([np.zeros_like(truth) for truth in truths], truths)
    assert empty.objects_kept == 0


def test_constant_velocity_is_right_while_nothing_collides(scenes):
    """Until the first collision the baseline is far better than repeating; it knows exactly where things go."""
    free = [s for s in scenes if min((c[0] for c in s.collisions), default=10) > 6]
    assert free
    for scene in free:
        moved, repeated = keep_velocity(scene, 4), repeat_last_frame(scene, 4)
        assert moved.dtype == np.uint8 and moved.shape == scene.frames[4:].shape
        assert mse(moved[:3], scene.frames[4:7]) < 0.1 * mse(repeated[:3], scene.frames[4:7])


def test_resting_objects_stay_where_they_are(scenes):
    still = scenes[0]
    still = type(still)(**{**vars(still), "positions": np.repeat(still.positions[3:4], 10, axis=0)})
    still.frames = np.repeat(still.frames[3:4], 10, axis=0)
    np.testing.assert_allclose(keep_velocity(still, 4), still.frames[4:], atol=1)


def test_table_of_a_model(tiny_transformer):
    torch.manual_seed(0)
    vae = AutoencoderTiny().eval()
    pipe = VideoGPTPipeline(vae, tiny_transformer, NextClipFlowMatchScheduler(), longest_side=64)
    pipe.set_progress_bar_config(disable=True)
    results = evaluate_world_prediction(
        pipe, num_scenes=2, num_given=3, num_predicted=4, frames_per_clip=(4, 2), num_inference_steps=1
    )
    assert list(results) == [
        "repeat the last frame",
        "constant velocity",
        "clips of 4",
        "clips of 2",
        "autoencoder alone",
    ]
    table = format_table(results).splitlines()
    assert len(table) == 2 + 5 and len({line.count("|") for line in table}) == 1
    assert "| repeat the last frame |" in table[2] and " 1.00 × " in table[2]
