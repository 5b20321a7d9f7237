"""Film strips: which frames stand where, in borders that tell the given ones from those that follow."""

import itertools

import numpy as np
import pytest
from PIL import Image

from diffusers_videogpt.film_strips import write_film_strip


def frames_of_noise(count, height, width):
    """No two of them are alike."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def border_runs(strip, y):
    """The colours met along row `y`, each run of one border colour once."""
    names = {(44, 110, 203): "given", (226, 125, 32): "next"}
    met = [names.get(tuple(pixel)) for pixel in strip[y].tolist()]
    return [name for name, _ in itertools.groupby(met) if name]


def test_film_strip_marks_what_was_given(tmp_path):
    truth = frames_of_noise(24, 64, 64)
    path = write_film_strip(tmp_path / "new/strip.png", {"truth": truth, "predicted": truth[:20]}, num_given=8, fps=8)
    strip = np.asarray(Image.open(path))
    # Of columns 0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23 the first four were given. Frames are doubled to 128 x 128,
    # with a border of 3 and a gap of 5; the last row's lower border ends 16 pixels above the edge.
    step, bottom = 128 + 2 * 3 + 5, strip.shape[0] - 16 - 3
    assert border_runs(strip, bottom - step) == ["given"] * 4 + ["next"] * 8
    assert border_runs(strip, bottom) == ["given"] * 4 + ["next"] * 6
    left = int((strip[bottom] == (44, 110, 203)).all(axis=1).argmax()) + 3
    for column, index in ((0, 0), (1, 2), (9, 19)):
        for y, x in ((bottom - step, left + column * step), (bottom, left + column * step)):
            tile = strip[y - 128 : y, x : x + 128]
            np.testing.assert_array_equal(tile, truth[index].repeat(2, axis=0).repeat(2, axis=1))


def test_film_strip_of_every_shape(tmp_path):
    wide = np.zeros((5, 180, 320, 3), np.uint8)
    few = Image.open(write_film_strip(tmp_path / "few.png", {"predicted": wide}, num_given=0))
    many = Image.open(write_film_strip(tmp_path / "many.png", {"predicted": wide}, num_given=1, max_columns=3))
    assert many.width < few.width < 5 * 200 + 200
    with pytest.raises(ValueError, match="at least one row"):
        write_film_strip(tmp_path / "none.png", {}, num_given=0)
    with pytest.raises(ValueError, match="cannot write '.jpg'"):
        write_film_strip(tmp_path / "strip.jpg", {"predicted": wide}, num_given=0)


def test_strip_starts_at_its_first_frames_time(tmp_path):
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    at_zero, later = (
        write_film_strip(tmp_path / f"{s}.png", {"a": frames}, num_given=1, fps=4, start=s) for s in (0.0, 2.5)
    )
    assert later.read_bytes() != at_zero.read_bytes()
    moved = write_film_strip(tmp_path / "moved.png", {"a": frames}, num_given=1, fps=4, start=0.0)
    assert moved.read_bytes() == at_zero.read_bytes()
