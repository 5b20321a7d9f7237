"""The sets of animations: one object acts, the others stay, and what is held out is in no training set."""

import numpy as np
import pytest
from PIL import Image

from diffusers_videogpt.video_io import read_video
from diffusers_videogpt.worlds.motions import (
    BECOMES,
    FLATTENED,
    GROWTH,
    HELD_OUT_COLOURS,
    HELD_OUT_PLACES,
    MOTIONS,
    animate,
    field_of,
    motion_set,
    moved_objects,
    write_motion_set,
)
from diffusers_videogpt.worlds.picture import count_objects, find_objects, find_regions


def boxes_of(animation):
    """What the last frame shows beside the objects that stay."""
    return [
        region
        for region in find_regions(animation.frames[-1])
        if all(np.linalg.norm(np.array(region.centre) - position) > 1 for position in animation.positions[1:])
    ]


@pytest.mark.parametrize("motion", MOTIONS)
def test_one_object_acts_and_the_others_stay(motion):
    for held_out in (False, True):
        for animation in motion_set(motion, 12, held_out=held_out):
            assert animation.frames.shape == (24, 64, 64, 3) and 2 <= len(animation.objects) <= 4
            assert [item.shape for item in animation.objects] == ["box"] + ["ball"] * (len(animation.objects) - 1)
            assert sorted(find_objects(animation.frames[0])) == sorted(
                (item.colour, item.shape) for item in animation.objects
            )
            for frame in animation.frames:
                assert moved_objects(animation, frame) == []
            assert np.array_equal(animation.frames[-1], animation.frames[-2])  # all is at rest
            box, acted = animation.objects[0], boxes_of(animation)
            if motion == "fly_off":
                assert acted == []
                continue
            (region,) = acted
            x, y = animation.positions[0]
            assert region.centre[0] == pytest.approx(x, abs=1)
            if motion == "lie_down":
                assert region.colour == box.colour and region.centre[1] > max(y + 8, 55)
                assert region.width / region.height == pytest.approx(FLATTENED**2, rel=0.3)
                assert region.area == pytest.approx(4 * box.radius**2, rel=0.25)
            else:
                assert region.centre[1] == pytest.approx(y, abs=1)
                assert (region.colour, region.shape) == (BECOMES, "ball")
                assert region.area == pytest.approx(np.pi * (GROWTH * box.radius) ** 2, rel=0.15)


@pytest.mark.parametrize("motion", MOTIONS)
def test_what_is_held_out_is_in_no_training_set(motion):
    train = list(motion_set(motion, 80, num_frames=2))
    held_out = list(motion_set(motion, 64, held_out=True, num_frames=2))

    def has_new_colour(animation):
        return animation.objects[0].colour in HELD_OUT_COLOURS

    def is_in_new_place(animation):
        return field_of(animation.positions[0]) in HELD_OUT_PLACES

    assert not any(has_new_colour(x) or is_in_new_place(x) or x.novelty for x in train)
    assert [x.novelty for x in held_out] == ["colour", "place"] * 32
    assert all(has_new_colour(x) and not is_in_new_place(x) for x in held_out[::2])
    assert all(is_in_new_place(x) and not has_new_colour(x) for x in held_out[1::2])
    pictures = [x.frames[0].tobytes() for x in (*train, *held_out)]
    assert len(set(pictures)) == 144
    assert len({x.objects[0].colour for x in train}) == 4  # all that may be seen
    assert all(item.colour != BECOMES for x in (*train, *held_out) for item in x.objects)


def test_the_same_arguments_give_the_same_animation():
    first, again, other = animate("fly_off", 3), animate("fly_off", 3), animate("fly_off", 4)
    assert np.array_equal(first.frames, again.frames) and first.caption == again.caption
    assert not np.array_equal(first.frames, other.frames)
    large = animate("fly_off", 3, size=128, num_frames=8, fps=8)
    assert large.frames.shape == (8, 128, 128, 3) and moved_objects(large, large.frames[-1]) == []
    assert np.allclose(large.positions, 2 * first.positions)


def test_what_moved_is_told():
    animation = next(x for x in motion_set("fly_off", 20) if len(x.objects) == 3)
    frame, (x, y) = animation.frames[-1].copy(), animation.positions[2].round().astype(int)
    around = np.s_[max(y - 10, 0) : y + 10, max(x - 10, 0) : x + 10]
    background = np.median(frame.reshape(-1, 3), axis=0)
    without = frame.copy()
    without[around] = background
    assert 2 in moved_objects(animation, without)
    assert 2 in moved_objects(animation, np.roll(frame, 3, axis=0))
    assert moved_objects(animation, np.roll(frame, 1, axis=0)) == []
    recoloured = frame[..., ::-1].copy() if animation.objects[2].colour in ("red", "blue") else frame[..., [1, 0, 2]]
    if count_objects(recoloured) != count_objects(frame):
        assert moved_objects(animation, np.ascontiguousarray(recoloured)) != []


def test_a_set_is_a_folder_of_videos(tmp_path):
    folder = write_motion_set(tmp_path / "set", "transform", num_training=2, num_held_out=3, num_frames=4)
    assert sorted(path.name for path in (folder / "train").iterdir()) == ["000.mp4", "001.mp4"]
    assert sorted(path.name for path in (folder / "held_out").glob("*.png")) == ["000.png", "001.png", "002.png"]
    video, animation = (
        read_video(folder / "held_out" / "truth" / "001.mp4"),
        animate("transform", 1, held_out=True, num_frames=4),
    )
    assert abs(video.frames.astype(int) - animation.frames).mean() < 3
    assert video.frames.shape == animation.frames.shape
    assert np.array_equal(np.asarray(Image.open(folder / "held_out" / "001.png")), animation.frames[0])
    with pytest.raises(FileExistsError, match="is not empty"):
        write_motion_set(folder, "transform")


@pytest.mark.parametrize(
    "motion, options, message",
    [
        ("jump", {}, "Unknown `motion` 'jump': choose one of lie_down, fly_off, transform"),
        ("fly_off", {"seed": -1}, "`seed` must be at least 0"),
        ("fly_off", {"num_frames": 1}, "`num_frames` must be at least 2"),
        ("fly_off", {"size": 8}, "`size` must be at least 16"),
    ],
)
def test_bad_input(motion, options, message):
    with pytest.raises(ValueError, match=message):
        animate(motion, **({"seed": 0} | options))
