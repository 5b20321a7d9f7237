"""Where a prediction is written, and how large."""

from pathlib import Path

import numpy as np
import pytest

from diffusers_videogpt.commands import outputs
from diffusers_videogpt.files import VIDEO_SUFFIXES


def test_a_path_that_ends_as_a_video_is_a_file(tmp_path):
    assert outputs.output_paths(tmp_path / "out.mp4", "made") == (tmp_path / "out.mp4", tmp_path / "out_strip.png")
    assert (
        outputs.is_video_file(Path("OUT.GIF"))
        and not outputs.is_video_file(Path("run.v2"))
        and not outputs.is_video_file(Path("runs"))
    )
    with pytest.raises(ValueError, match="out.mkv: a video is written as .mp4, .webm, .gif; or name a folder"):
        outputs.is_video_file(Path("out.mkv"))
    others = {".mts", ".m2ts", ".3gp", ".h264", ".avif", ".TS", ".ogg", ".heic", ".png"}
    others |= set(VIDEO_SUFFIXES) - {".mp4", ".webm", ".gif"}
    for suffix in others:
        with pytest.raises(ValueError, match=f"z{suffix}: a video is written as .mp4"):
            outputs.output_paths(tmp_path / f"z{suffix}", "made")
    for name in (".mp4", ".MKV", ".gif"):
        with pytest.raises(ValueError, match=f"give the file a name before the '{name}'"):
            outputs.output_paths(tmp_path / name, "made")
    (tmp_path / "old.mp4").mkdir()  # as this command made it once
    assert outputs.output_paths(tmp_path / "old.mp4", "made")[0] == tmp_path / "old.mp4" / "made.mp4"


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "made.mp4").touch()
    (tmp_path / "made_2.png").touch()
    assert outputs.output_paths(tmp_path, "made") == (tmp_path / "made_3.mp4", tmp_path / "made_3.png")
    assert outputs.output_paths(tmp_path, "cat.v1")[0] == tmp_path / "cat.v1.mp4"


def test_a_named_file_alone_is_replaced(tmp_path):
    """Not the picture that happens to be called as its film strip would be; and a play, which saves again and again, adds."""
    out = tmp_path / "out.mp4"
    assert outputs.output_paths(out, "played", replaces=False) == (out, tmp_path / "out_strip.png")
    out.touch()
    (tmp_path / "out_strip.png").touch()
    assert outputs.output_paths(out, "made") == (out, tmp_path / "out_2_strip.png")
    assert outputs.output_paths(out, "played", replaces=False) == (
        tmp_path / "out_2.mp4",
        tmp_path / "out_2_strip.png",
    )
    assert outputs.output_paths(tmp_path, "played", replaces=False) == (
        tmp_path / "played.mp4",
        tmp_path / "played.png",
    )


def test_small_frames_are_enlarged_by_whole_factors():
    assert [outputs.scale_to_show(*size) for size in ((64, 64), (32, 48), (176, 320), (16, 300))] == [4, 5, 1, 1]
    frames = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    large = outputs.enlarge(frames, 3)
    assert large.shape == (1, 6, 12, 3)
    np.testing.assert_array_equal(large[:, 1::3, 2::3], frames)


def test_a_scale_that_no_video_can_have_is_refused():
    outputs.check_scale(128, 1, height=64, width=64)
    outputs.check_scale(1, 10**6, height=4096, width=4096)  # nothing is added to what the prediction itself needs
    with pytest.raises(ValueError, match="--scale 129 makes 1 frames of 8256 × 8256, .*: give --scale 128 or less"):
        outputs.check_scale(129, 1, height=64, width=64)
    frames = np.empty((24, 64, 64, 3), np.uint8)
    assert frames.nbytes * 120**2 <= 4 * 2**30 < frames.nbytes * 121**2
    outputs.check_scale(120, 24, height=64, width=64)
    with pytest.raises(ValueError, match="give --scale 120 or less"):
        outputs.check_scale(121, 24, height=64, width=64)


def test_a_rate_that_is_not_written_is_refused(tmp_path):
    outputs.check_written_rate(tmp_path / "a.gif", 50)
    outputs.check_written_rate(tmp_path / "a.mp4", 1000)
    for name, fps, message in (("a.GIF", 51, "at most 50 frames a second"), ("a.mp4", 1001, "at most 1000 frames")):
        with pytest.raises(ValueError, match=message):
            outputs.check_written_rate(tmp_path / name, fps)
