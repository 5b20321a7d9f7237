import numpy as np
import pytest

from diffusers_videogpt.actions import ActionSpace
from diffusers_videogpt.data.sampling import Sampling, Window
from diffusers_videogpt.data.videos import VideoTable
from diffusers_videogpt.worlds import ACTIONS, PALETTE, SteeredSimulation, reach_target, read_positions, steer
from diffusers_videogpt.worlds.steered import (
    DIRECTIONS,
    STEERED,
    TARGET,
    TOUCHING,
    draw_actions,
    gap_to_target,
    write_steered_videos,
)


SEEDS = range(12)
STAY, LEFT, RIGHT, UP, DOWN = range(len(ACTIONS))


def test_a_seed_gives_the_same_scene_again():
    first, again, other = steer(3, 12), steer(3, 12), steer(4, 12)
    for name in ("frames", "actions", "positions", "is_touching"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    assert first.objects == again.objects
    assert not np.array_equal(first.frames, other.frames)
    assert first.frames.shape == (12, 64, 64, 3) and first.frames.dtype == np.uint8
    assert first.positions.shape == (12, len(first.objects), 2) and first.actions.shape == (12,)


def test_the_steered_ball_moves_three_pixels_a_frame_where_it_is_told_to():
    for action, direction in enumerate(DIRECTIONS):
        moved = []
        for seed in SEEDS:
            path = steer(seed, [STAY, action]).positions[:, STEERED]
            room = (path[0] + 3 * direction > 6).all() and (path[0] + 3 * direction < 58).all()
            if room:
                moved.append(path[1] - path[0])
        assert len(moved) > len(SEEDS) // 2
        np.testing.assert_allclose(np.median(moved, axis=0), 3 * direction, atol=1e-3)


def test_walls_and_the_target_stop_the_steered_ball():
    edge = 5.6  # its radius, and the margin at which things collide
    for action, axis, wall in ((LEFT, 0, edge), (RIGHT, 0, 64 - edge), (UP, 1, edge), (DOWN, 1, 64 - edge)):
        ends = [steer(seed, [action] * 24) for seed in SEEDS]
        at_wall = [abs(scene.positions[-1, STEERED, axis] - wall) < 0.4 for scene in ends]
        assert all(there or scene.is_touching[-1] for there, scene in zip(at_wall, ends, strict=True))
        assert any(at_wall)


def test_actions_change_nothing_before_them():
    base = steer(5, [RIGHT] * 8)
    for frame in range(8):
        actions = [RIGHT] * 8
        actions[frame] = UP
        other = steer(5, actions)
        assert np.array_equal(base.frames[:frame], other.frames[:frame])
        assert not np.array_equal(base.frames[frame], other.frames[frame])


def test_the_others_follow_physics():
    """Their paths are the same whatever is steered, until the steered ball meets them; and nothing leaves the picture."""
    for seed in SEEDS:
        scenes = [steer(seed, [action] * 16) for action in (STAY, LEFT)]
        radii = np.array([item.radius for item in scenes[0].objects])
        paths = [scene.positions for scene in scenes]
        near = [np.linalg.norm(path[:, 2:] - path[:, :1], axis=-1) < 5 + radii[2:] + 5 for path in paths]
        first = np.argmax(np.append(np.any(near, axis=(0, 2)), True))
        np.testing.assert_array_equal(paths[0][:first, 2:], paths[1][:first, 2:])
        for path in paths:
            assert (np.minimum(path, 64 - path) - radii[:, None]).min() > -0.05
            assert (path[:, TARGET] == path[0, TARGET]).all()


@pytest.mark.parametrize(("is_restless", "push"), [(False, 0.3), (True, 0.6)])
def test_nothing_overlaps_and_nothing_gets_ever_faster(is_restless, push):
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        held = np.repeat(rng.integers(5, size=60), rng.integers(1, 9, size=60))
        scene = steer(seed, rng.integers(5, size=60) if is_restless else held[:60])
        radii = [item.radius for item in scene.objects]
        for ball in range(2, len(radii)):
            apart = np.linalg.norm(scene.positions[:, ball] - scene.positions[:, STEERED], axis=-1)
            assert apart.min() > radii[ball] + radii[STEERED]
        # A push counts until the next step of the simulation, which takes it back to the fastest; who turns at once pushes twice.
        assert np.linalg.norm(np.diff(scene.positions[:, 2:], axis=0), axis=-1).max() <= 40 / 12 + push


def test_only_the_two_have_their_colours():
    for seed in SEEDS:
        colours = [item.colour for item in steer(seed, 1).objects]
        assert colours[:2] == ["yellow", "green"] and not {"yellow", "green"} & set(colours[2:])
        assert 1 <= len(colours[2:]) <= 3 and set(colours) <= set(PALETTE)


def test_positions_are_read_from_pixels():
    for seed in SEEDS:
        for size in (64, 96):
            scene = steer(seed, 20, size=size)
            for frame, positions in zip(scene.frames, scene.positions, strict=True):
                np.testing.assert_allclose(read_positions(frame), positions[:2], atol=0.8)
    assert np.isnan(read_positions(np.zeros((64, 64, 3), np.uint8))).all()


def test_size_and_rate_show_the_same_world():
    small, large = steer(4, [RIGHT] * 10), steer(4, [RIGHT] * 10, size=128)
    np.testing.assert_allclose(large.positions, 2 * small.positions, rtol=1e-5)
    fast = steer(4, [RIGHT] * 20, fps=24)
    np.testing.assert_array_equal(fast.frames[1::2], small.frames)


def test_reaching_the_target_is_rewarded_once_and_ends():
    """Who goes straight to it gets the way, in sides of the picture, and 1: the same from pixels as in truth."""
    reached = 0
    for seed in SEEDS:
        simulation = SteeredSimulation(seed)
        frames = [simulation.step(STAY)]
        start, total, is_done = gap_to_target(simulation.positions[:2], 64), 0.0, False
        while not is_done and len(frames) < 40:
            dx, dy = simulation.positions[TARGET] - simulation.positions[STEERED]
            action = (RIGHT if dx > 0 else LEFT) if abs(dx) > abs(dy) else (DOWN if dy > 0 else UP)
            frames.append(simulation.step(action))
            reward, is_done = reach_target(np.stack(frames[-2:]), action)
            total += reward
        reached += is_done
        if is_done:
            assert total == pytest.approx(1 + (start - gap_to_target(simulation.positions[:2], 64)) / 64, abs=0.03)
            assert gap_to_target(simulation.positions[:2], 64) < TOUCHING + 0.7  # as exactly as pixels tell
    assert reached >= 0.8 * len(SEEDS)
    blank = np.zeros((2, 64, 64, 3), np.uint8)
    assert reach_target(blank, STAY) == (0.0, False)


def test_drawn_actions_are_held_and_all_of_them_come():
    videos = [draw_actions(np.random.default_rng(seed), 200) for seed in range(60)]
    assert np.bincount(np.concatenate(videos), minlength=5).min() > 0.15 * 12_000
    changed = np.array([np.mean(np.diff(actions) != 0) for actions in videos])
    # A new action is another one in four of five cases; nervous, restless and calm videos, about a third of each.
    shares = [np.mean((low < changed) & (changed < high)) for low, high in ((0.7, 0.9), (0.45, 0.65), (0.1, 0.28))]
    assert min(shares) > 0.2 and sum(shares) == 1


def test_a_folder_of_videos_is_read_as_any_with_actions(tmp_path):
    paths = write_steered_videos(tmp_path / "videos", 2, num_frames=9, first_seed=5)
    assert [path.name for path in paths] == ["scene_5.mp4", "scene_6.mp4"]
    sampling = Sampling(max_num_frames=9, height=64, width=64)
    table = VideoTable.from_folder(tmp_path / "videos", sampling, actions=ActionSpace(num_actions=len(ACTIONS)))
    for index, seed in enumerate((5, 6)):
        scene, window = steer(seed, 9), Window(0, 1, 9)
        np.testing.assert_array_equal(table.read_actions(index, window), scene.actions)
        frames = table.read(index, window)
        assert frames.shape == scene.frames.shape
        error = frames.astype(int) - scene.frames
        assert np.sqrt((error**2).mean()) < 3 and np.abs(error).max() < 40
        for frame, positions in zip(frames, scene.positions, strict=True):
            np.testing.assert_allclose(read_positions(frame), positions[:2], atol=0.8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((-1, 3), "`seed`"),
        ((0, []), "at least one"),
        ((0, [5]), r"0\.\.4 \(stay, left"),
        ((0, [-1]), r"got -1"),
        ((0, 0), "at least one"),
    ],
)
def test_what_can_not_be_steered_is_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        steer(*arguments)
    with pytest.raises(ValueError, match="`fps`"):
        steer(0, 3, fps=0)
