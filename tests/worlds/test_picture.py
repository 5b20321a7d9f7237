import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from diffusers_videogpt.worlds import PALETTE, SCENE_KINDS, count_objects, simulate


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_counts_agree_with_the_truth(kind):
    right = []
    for seed in range(20):
        scene = simulate(kind, seed=seed)
        truth = Counter(item.colour for item in scene.objects)
        right += [count_objects(frame) == truth for frame in scene.frames]
    assert np.mean(right) > 0.98


def test_counts_at_another_size():
    for seed in range(5):
        scene = simulate("fall", seed=seed, size=160, num_frames=8)
        truth = Counter(item.colour for item in scene.objects)
        assert all(count_objects(frame) == truth for frame in scene.frames)


def test_count_sees_what_is_lost_added_or_recoloured():
    scene = simulate("bounce", seed=0)
    frame, item = scene.frames[0].copy(), scene.objects[0]
    before = count_objects(frame)
    background = np.median(frame.reshape(-1, 3), axis=0)
    x, y = scene.positions[0, 0].round().astype(int)
    around = np.s_[max(0, y - 9) : y + 9, max(0, x - 9) : x + 9]
    frame[around] = background
    assert count_objects(frame)[item.colour] == before[item.colour] - 1
    frame[around][5:12, 5:12] = PALETTE["yellow"]
    assert count_objects(frame)["yellow"] == before.get("yellow", 0) + 1


def test_min_area_sets_what_is_too_small_to_count():
    frame = np.zeros((64, 64, 3), dtype=np.uint8)
    frame[10:13, 10:13] = PALETTE["green"]
    assert count_objects(frame) == {}
    assert count_objects(frame, min_area=9) == {"green": 1}


@pytest.mark.parametrize(
    "frame", [np.zeros((64, 64, 3)), np.zeros((2, 64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)]
)
def test_count_wants_one_picture_in_bytes(frame):
    with pytest.raises(ValueError, match="`frame` must be uint8"):
        count_objects(frame)


def test_motion_below_a_pixel_shows():
    scene = simulate("bounce", seed=3, fps=240, num_frames=8)
    moved = np.linalg.norm(np.diff(scene.positions, axis=0), axis=-1).max()
    assert moved < 0.3
    assert not np.array_equal(scene.frames[0], scene.frames[-1])


def test_importing_the_package_loads_neither_library():
    code = "import sys, diffusers_videogpt.worlds; print([m for m in ('pymunk', 'pygame') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
