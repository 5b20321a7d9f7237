"""Frame sizes and pixels against the authors' preparation, exactly.

The folder is `VIDEOGPT_GOLDEN`, by default `golden/` beside this file. The full pixel file is large, so the copy kept
here is one input (lossless) and the hash of its golden output; it takes every step: halving, bicubic, crop.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from diffusers_videogpt.video_io import resize_and_crop, resize_to_cover, target_size


HERE = Path(__file__).resolve().parent
GOLDEN = Path(os.environ.get("VIDEOGPT_GOLDEN", HERE / "golden"))
SHARED = Path(os.environ.get("VIDEOGPT_SHARED", HERE.parents[2] / "shared"))
OUTPUT_2_SHA256 = "38bcb0bff904cfd18816a85d16e45d14bf6fac9ca539038b69f072ab53772184"


def load_sizes():
    path = GOLDEN / "preprocess.json"
    if not path.is_file():
        pytest.skip(f"no preprocess.json in {GOLDEN}")
    return json.loads(path.read_text())


def test_sizes():
    golden = load_sizes()
    for before, after in golden["sizes_width_height_in_out"]:
        assert target_size(*before, longest_side=golden["longest_side"])[1] == tuple(after)


def test_pixels():
    path = next(
        (p for p in (GOLDEN / "preprocess.safetensors", SHARED / "golden/preprocess.safetensors") if p.is_file()), None
    )
    if path is None:
        pytest.skip("no preprocess.safetensors; test_pixels_of_the_kept_copy stands in")
    tensors = load_file(path)
    names = [name.removesuffix(".input") for name in tensors if name.endswith(".input")]
    assert names
    longest_side = load_sizes()["longest_side"]
    for name in names:
        output = resize_and_crop(tensors[f"{name}.input"], longest_side)
        np.testing.assert_array_equal(output, tensors[f"{name}.output"])


def test_pixels_of_the_kept_copy():
    frame = np.asarray(Image.open(HERE / "golden/preprocess.2.input.webp"))
    output = resize_and_crop(frame, 320)
    assert output.shape == (288, 320, 3)
    assert hashlib.sha256(output.tobytes()).hexdigest() == OUTPUT_2_SHA256
    # Several frames at once, and this size asked for outright, are the same computation.
    np.testing.assert_array_equal(resize_and_crop(np.stack([frame, frame]), 320), np.stack([output, output]))
    np.testing.assert_array_equal(resize_to_cover(frame, height=288, width=320), output)
