import builtins
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from diffusers_videogpt.worlds import PALETTE, SCENE_KINDS, simulate


SEEDS = range(6)


def every_scene(**kwargs):
    return [simulate(kind, seed=seed, **kwargs) for kind in SCENE_KINDS for seed in SEEDS]


def edge_distance(scene):
    """Smallest distance in pixels between an object's outline and the picture's edge; negative is outside."""
    size = scene.frames.shape[1]
    distances = []
    for index, item in enumerate(scene.objects):
        reach = np.full(len(scene.frames), item.radius)
        if item.shape == "box":
            angle = scene.angles[:, index]
            reach = item.radius * (abs(np.cos(angle)) + abs(np.sin(angle)))
        position = scene.positions[:, index]
        distances.append((np.minimum(position, size - position).min(-1) - reach).min())
    return min(distances)


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_a_seed_gives_the_same_scene_again(kind):
    first, again, other = simulate(kind, seed=3), simulate(kind, seed=3), simulate(kind, seed=4)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.positions, again.positions)
    assert (first.caption, first.collisions, first.objects) == (again.caption, again.collisions, again.objects)
    assert not np.array_equal(first.frames, other.frames)


def test_shapes_and_types():
    scene = simulate("bounce", seed=1, num_frames=7, size=48, fps=8)
    count = len(scene.objects)
    assert scene.frames.shape == (7, 48, 48, 3) and scene.frames.dtype == np.uint8
    assert scene.masks.shape == (7, 48, 48) and scene.masks.dtype == np.uint8
    for name, shape in {
        "positions": (7, count, 2),
        "velocities": (7, count, 2),
        "angles": (7, count),
        "energy": (7,),
    }.items():
        array = getattr(scene, name)
        assert array.shape == shape and array.dtype == np.float32, name
    assert scene.fps == 8


def test_the_seed_draws_every_kind():
    drawn = Counter(simulate(seed=seed, num_frames=1).kind for seed in range(60))
    assert set(drawn) == set(SCENE_KINDS)
    kind = simulate(seed=5).kind
    assert np.array_equal(simulate(seed=5).frames, simulate(kind, seed=5).frames)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", [179, 804, 2782, 2822, 5556])
def test_pendulums_that_leave_no_room_are_hung_anew(seed):
    # With these seeds the first pendulums of the first try leave no place for the last.
    assert len(simulate("pendulum", seed=seed, num_frames=1).objects) >= 1


def test_nothing_leaves_the_picture():
    for scene in every_scene(num_frames=60):
        assert edge_distance(scene) > -0.05, (scene.kind, scene.caption)


def test_scenes_move_and_are_still_moving_after_24_frames():
    scenes = every_scene()
    for scene in scenes:
        assert not np.array_equal(scene.frames[8], scene.frames[-1]), scene.kind
    last_speeds = [np.linalg.norm(scene.velocities[-1], axis=-1).max() / scene.fps for scene in scenes]
    assert np.mean(np.array(last_speeds) > 0.3) > 0.8


def test_velocity_is_the_change_of_position():
    scene = simulate("bounce", seed=2, fps=240, num_frames=100)
    hit = {(frame, index) for frame, *pair in scene.collisions for index in pair}
    moved = np.diff(scene.positions, axis=0) * 240
    free = [(f, o) for f in range(1, 99) for o in range(len(scene.objects)) if not {(f, o), (f + 1, o)} & hit]
    rows, columns = np.transpose(free)
    np.testing.assert_allclose(moved[rows, columns], scene.velocities[rows, columns], atol=0.05)


def test_masks_cover_the_pixels_of_each_object():
    for scene in every_scene():
        background = np.median(scene.frames[0].reshape(-1, 3), axis=0)
        for index, item in enumerate(scene.objects):
            inside = scene.masks == index + 1
            area = np.pi * item.radius**2 if item.shape == "ball" else 4 * item.radius**2
            assert inside.sum((1, 2)).mean() == pytest.approx(area, rel=0.12)  # a box at rest is whole pixels wide
            difference = abs(scene.frames[inside].astype(float) - PALETTE[item.colour]).max(-1)
            # Pixels at the rim are mixed with what lies behind.
            assert np.mean(difference < 20) > 0.65, (scene.kind, item)
        if scene.kind in ("bounce", "fall", "stack"):
            far = abs(scene.frames[scene.masks == 0].astype(float) - background).max(-1)
            assert np.mean(far < 5) > 0.95


def test_energy_is_kept_where_collisions_are_elastic():
    for seed in range(12):
        scene = simulate("bounce", seed=seed, num_frames=48)
        np.testing.assert_allclose(scene.energy, scene.energy[0], rtol=0.02)


def test_energy_never_grows_where_it_can_be_lost():
    for kind in ("fall", "stack", "ramp"):
        for seed in SEEDS:
            energy = simulate(kind, seed=seed).energy
            assert energy.max() < energy[0] * 1.02, (kind, seed)


def test_potential_energy_falls_with_height():
    scene = simulate("fall", seed=0, num_frames=2)
    up = np.argmin(scene.positions[0, :, 1])
    assert scene.energy[0] > scene.objects[up].mass * (64 - scene.positions[0, up, 1])


def test_collisions_are_where_objects_meet():
    pairs = 0
    for seed in range(10):
        scene = simulate("bounce", seed=seed, num_frames=48)
        radii = [item.radius for item in scene.objects]
        for frame, i, j in scene.collisions:
            near = slice(max(frame - 1, 0), frame + 1)
            step = np.linalg.norm(scene.velocities[near], axis=-1).max() / scene.fps
            here = scene.positions[near, i]
            if j == -1:
                gap = np.minimum(here, 64 - here).min() - radii[i]
            else:
                pairs += 1
                gap = np.linalg.norm(here - scene.positions[near, j], axis=-1).min() - radii[i] - radii[j]
            # Contact lies between two frames, so either frame may be up to both objects' motion away from it.
            assert gap < 2 * step + 1.5
        turned = (np.sign(scene.velocities[1:]) != np.sign(scene.velocities[:-1])).any((1, 2)).nonzero()[0] + 1
        assert set(turned) <= {frame for frame, _, _ in scene.collisions}
    assert pairs > 5


def test_two_takes_differ_a_little_and_only_when_asked():
    plain, same = simulate("fall", seed=9), simulate("fall", seed=9, perturbation=0.0)
    take = simulate("fall", seed=9, perturbation=0.02)
    assert np.array_equal(plain.frames, same.frames)
    assert (plain.caption, plain.objects) == (take.caption, take.objects)
    moved = abs(plain.positions - take.positions)
    assert 0 < moved[0].max() < 0.5
    assert moved[-1].max() > moved[0].max()


def test_size_and_rate_show_the_same_world():
    small, large = simulate("ramp", seed=4), simulate("ramp", seed=4, size=128)
    np.testing.assert_allclose(large.positions, 2 * small.positions, rtol=1e-5)
    np.testing.assert_allclose(large.energy, 4 * small.energy, rtol=1e-5)
    fast = simulate("ramp", seed=4, fps=24, num_frames=47)
    assert np.array_equal(fast.frames[::2], small.frames)


def test_mass_follows_size():
    for scene in every_scene(num_frames=1):
        for item in scene.objects:
            area = np.pi * item.radius**2 if item.shape == "ball" else 4 * item.radius**2
            assert item.mass == pytest.approx(area / (np.pi * 36))


def test_captions_name_the_objects():
    scene = simulate("bounce", seed=0)
    assert [asdict(item)["colour"] for item in scene.objects].count("red") == 2
    assert scene.caption == "two red balls and one cyan ball bounce off the walls"
    assert "stack of" in simulate("stack", seed=0).caption


def test_unknown_kind_names_the_valid_ones():
    with pytest.raises(ValueError, match="rain") as error:
        simulate("rain")
    assert all(kind in str(error.value) for kind in SCENE_KINDS)


@pytest.mark.parametrize(
    "argument", [{"seed": -1}, {"num_frames": 0}, {"size": 8}, {"fps": 0}, {"fps": 1000}, {"perturbation": -0.1}]
)
def test_numbers_out_of_range_are_named(argument):
    with pytest.raises(ValueError, match=f"`{next(iter(argument))}`"):
        simulate(**argument)


@pytest.mark.parametrize("library", ["pymunk", "pygame"])
def test_a_missing_library_says_what_to_install(library, monkeypatch):
    def missing(name):
        if name == library:
            raise ImportError(name)
        return builtins.__import__(name)

    monkeypatch.setattr("diffusers_videogpt.extras.import_module", missing)
    with pytest.raises(ImportError, match=rf'{library}.*pip install "\.\[worlds\]"'):
        simulate()
