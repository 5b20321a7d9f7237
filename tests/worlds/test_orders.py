from collections import Counter

import numpy as np
import pytest

from diffusers_videogpt.worlds import PALETTE, Group, Order, draw_order, find_objects, plan_scene, simulate
from diffusers_videogpt.worlds.orders import HELD_OUT, read_objects


@pytest.mark.parametrize("held_out", [False, True])
def test_scenes_show_what_was_ordered(held_out):
    """By the simulator's own account, by the words, and by the picture."""
    right = []
    for seed in range(30):
        order = draw_order(seed, held_out)
        scene = order.simulate(seed, num_frames=12)
        assert [(item.colour, item.shape) for item in scene.objects] == order.objects
        assert scene.caption == order.caption and scene.kind == order.kind
        right += [Counter(find_objects(frame)) == Counter(order.objects) for frame in scene.frames]
        assert read_objects(scene.frames) == Counter(order.objects)
    assert np.mean(right) > 0.95


def test_held_out_combinations_are_kept_apart():
    seen = [draw_order(seed) for seed in range(300)]
    held_out = [draw_order(seed, held_out=True) for seed in range(60)]
    assert not any(group in HELD_OUT for order in seen for group in order.groups)
    assert {group for order in held_out for group in order.groups} >= HELD_OUT
    # What is new is only how they go together.
    for name in ("number", "colour", "shape"):
        values = {getattr(group, name) for group in HELD_OUT}
        assert values == {getattr(group, name) for order in seen for group in order.groups}
    assert {group.colour for group in HELD_OUT} == set(PALETTE)


def test_captions():
    order = Order("fall", (Group(2, "red", "ball"), Group(1, "blue", "box")))
    assert order.caption == "two red balls and one blue box fall"
    assert Order("bounce", (Group(1, "cyan", "box"),)).caption == "one cyan box bounces off the walls"
    assert plan_scene(seed=3).caption == simulate(seed=3, num_frames=1).caption


def test_what_most_frames_show():
    order = Order("bounce", (Group(2, "green", "ball"),))
    frames = order.simulate(0, num_frames=5).frames.copy()
    frames[:2] = 0
    assert read_objects(frames) == {("green", "ball"): 2}


def test_bad_orders():
    with pytest.raises(ValueError, match="of kind bounce or fall, not 'ramp'"):
        simulate("ramp", objects=[("red", "ball")])
    with pytest.raises(ValueError, match="got 'pink', 'ball'"):
        simulate("fall", objects=[("pink", "ball")])
