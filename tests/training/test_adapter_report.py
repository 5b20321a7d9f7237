"""What a training of an adapter says of itself: true whether it helped or not."""

import numpy as np
import pytest
from PIL import Image

from diffusers_videogpt.training.adapter_report import AdapterReport, held_out_errors, write_comparison


REPORT = {
    "rank": 32,
    "trained_parameters": 1234567,
    "num_videos": 72,
    "learning_rate": 2.5e-3,
    "last_step": 700,
    "kept_step": 450,
    "loss": {"base": 0.7, "LoRA": 0.2},
    "num_predicted": 4,
    "error": {"still": 0.02, "base": 0.04, "LoRA": 0.01},
}


def test_of_an_adapter_that_helps():
    text = AdapterReport(**REPORT).text
    assert "rank 32 with 1,234,567 parameters learnt from 72 videos at a rate of 2.5e-03" in text
    assert "0.7000 by the base, 0.2000 by the adapter of step 450, which is kept (the run ended at 700)" in text
    assert "Error of 4 held-out predictions: 0.50 × that of a still picture, 0.25 × the base's." in text
    assert "nearer to the truth" not in text and "learnt nothing" not in text


@pytest.mark.parametrize(
    "changes, expected, absent",
    [
        (
            {"error": {"still": 0.01, "base": 0.04, "LoRA": 0.015}},
            "A still picture is nearer to the truth",
            "learnt nothing",
        ),
        ({"loss": {"base": 0.2, "LoRA": 0.2}}, "learnt nothing that carries", "nearer to the truth"),
        ({"loss": {}, "error": {}}, "No video was held out", "Error of"),
        ({"num_videos": None, "error": {}, "num_predicted": 0}, "from a stream of videos", "Error of"),
    ],
)
def test_of_one_that_does_not(changes, expected, absent):
    text = AdapterReport(**(REPORT | changes)).text
    assert expected in text and absent not in text


def test_errors_and_picture(tmp_path):
    videos = [np.full((3, 16, 16, 3), 100, np.uint8) for _ in range(2)]
    for video in videos:
        video[1:] = 151
    predictions = {"base": [np.full((2, 16, 16, 3), 49, np.uint8)] * 2, "LoRA": [video[1:] for video in videos]}
    errors = held_out_errors(videos, predictions, num_given=1)
    assert errors == pytest.approx({"still": 0.04, "base": 0.16, "LoRA": 0.0})
    assert held_out_errors([], {"base": [], "LoRA": []}, num_given=1) == {}
    path = write_comparison(tmp_path / "held_out.png", videos, predictions=predictions, num_given=1, fps=8)
    picture = np.asarray(Image.open(path))
    # Rows from the top: still, base, LoRA, truth, twice; in the middle of the last frame of each.
    rows = np.linspace(70, picture.shape[0] - 11, 9)[:-1] + 67
    assert [int(picture[round(y), -80, 0]) for y in rows] == [100, 49, 151, 151] * 2
