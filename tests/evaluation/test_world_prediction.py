import numpy as np
import pytest

from diffusers_videogpt.evaluation.world_prediction import _dilate, keep_velocity, repeat_last_frame, score
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


def test_masks_grow_by_one_pixel_to_all_sides():
    mask = np.zeros((6, 7), bool)
    mask[2, 3] = mask[0, 6] = mask[5, 0] = True
    padded = np.pad(mask, 1)
    expected = np.logical_or.reduce([padded[i : i + 6, j : j + 7] for i in range(3) for j in range(3)])
    np.testing.assert_array_equal(_dilate(mask), expected)


def test_resting_objects_stay_where_they_are(scenes):
    still = scenes[0]
    still = type(still)(**{**vars(still), "positions": np.repeat(still.positions[3:4], 10, axis=0)})
    still.frames = np.repeat(still.frames[3:4], 10, axis=0)
    np.testing.assert_allclose(keep_velocity(still, 4), still.frames[4:], atol=1)
