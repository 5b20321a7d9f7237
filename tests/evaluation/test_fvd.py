import logging
from collections import Counter
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_autoencoder_of

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.evaluation.fvd import (
    ClipSettings,
    FolderClips,
    PredictedClips,
    cached_features,
    evaluate_fvd,
)
from diffusers_videogpt.metrics.i3d import I3D
from diffusers_videogpt.video_io import write_video
from diffusers_videogpt.worlds import simulate


SMALL = ClipSettings(clip_length=9, num_given=3, resolution=64)
CACHE_LOGGER = "diffusers_videogpt.evaluation.fvd"


@pytest.fixture(scope="module")
def narrow():
    torch.manual_seed(0)
    return I3D(num_logits=8, width=4).eval()


@pytest.fixture
def logged(caplog, monkeypatch):
    """What is logged; diffusers' loggers do not propagate by themselves."""
    logger = logging.getLogger(CACHE_LOGGER)
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("diffusers_videogpt"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger=CACHE_LOGGER):
        yield caplog


def write_scenes(folder, names, num_frames=10):
    for seed, name in enumerate(names):
        write_video(folder / name, simulate(seed=seed, num_frames=num_frames, size=64).frames, fps=12)
    return folder


# Sets


def test_a_folder_against_itself_and_another(tmp_path, narrow):
    real = write_scenes(tmp_path / "real", [f"{i}.mp4" for i in range(4)])
    other = write_scenes(tmp_path / "other", [f"{i}.mp4" for i in reversed(range(3))])
    reference = FolderClips(real, SMALL)
    same = evaluate_fvd(
        narrow, reference, made=FolderClips(real, SMALL, is_reference=False), cache_dir=tmp_path / "cache"
    )
    assert abs(same) < 1e-3
    few = ClipSettings(**{**vars(SMALL), "num_videos": 3})
    assert evaluate_fvd(
        narrow, FolderClips(real, few), made=FolderClips(other, few), cache_dir=tmp_path / "cache"
    ) > 10 * abs(same)
    with pytest.raises(ValueError, match="real has 4 usable videos, .*other 3"):
        evaluate_fvd(
            narrow, reference, made=FolderClips(other, SMALL, is_reference=False), cache_dir=tmp_path / "cache"
        )


def test_short_and_broken_videos(tmp_path):
    """Left out of the reference; refused, by name, in the set that is judged."""
    folder = write_scenes(tmp_path / "set", ["a.mp4", "b.mp4"])
    write_video(folder / "short.mp4", np.zeros((8, 64, 64, 3), np.uint8), fps=12)
    (folder / "broken.mp4").write_bytes(b"nothing")
    reference = FolderClips(folder, SMALL)
    assert len(reference) == 2 and set(reference.dropped) == {"short.mp4", "broken.mp4"}
    with pytest.raises(
        ValueError,
        match=r"(?s)set \(.*: 2 of 4 videos dropped.*broken\.mp4: unreadable.*short\.mp4: too short: 8 frames",
    ):
        FolderClips(folder, SMALL, is_reference=False)
    with pytest.raises(ValueError, match=r"(?s)set has 2 usable videos, 3 are to be compared.*short\.mp4"):
        FolderClips(folder, ClipSettings(**{**vars(SMALL), "num_videos": 3}))


def test_videos_are_drawn_by_class(tmp_path):
    frames = np.zeros((9, 64, 64, 3), np.uint8)
    for name in [f"many/{i}.mp4" for i in range(7)] + ["few/0.mp4", "few/1.mp4", "one/0.mp4"]:
        write_video(tmp_path / name, frames, fps=12)

    def draw(num_videos, **settings):
        clips = FolderClips(tmp_path, ClipSettings(9, 3, num_videos, 64, **settings))
        return [clips.table.id(index) for index in clips.indices]

    def classes(ids):
        return Counter(PurePosixPath(id).parent.name for id in ids)

    assert classes(draw(3, by_class=True)) == {"many": 1, "few": 1, "one": 1}
    assert classes(draw(6, by_class=True)) == {"many": 3, "few": 2, "one": 1}
    assert draw(4) == draw(4) and len({tuple(draw(4, seed=seed)) for seed in range(5)}) > 1
    with pytest.raises(ValueError, match="many: videos are drawn by class"):
        FolderClips(tmp_path / "many", ClipSettings(9, 3, 4, 64, by_class=True))


def test_crop_or_squash(tmp_path):
    """White side bars: cropped away, or squashed into the square."""
    frames = np.zeros((9, 32, 128, 3), np.uint8)
    frames[:, :, :40] = frames[:, :, 88:] = 255
    write_video(tmp_path / "0.mp4", frames, fps=12)
    (cropped,), (squashed,) = (
        FolderClips(tmp_path, ClipSettings(9, 3, resolution=32, resize=resize)) for resize in ("crop", "squash")
    )
    assert cropped.shape == squashed.shape == (9, 32, 32, 3)
    assert cropped.max() < 60
    np.testing.assert_allclose(squashed[0, 16, [2, 16, 29]].mean(-1), [255, 0, 255], atol=20)


def test_only_the_reference_skips_frames(tmp_path):
    frames = np.stack([np.full((64, 64, 3), 10 * index, np.uint8) for index in range(17)])
    write_video(tmp_path / "0.mp4", frames, fps=12)
    settings = ClipSettings(9, 3, resolution=64, frame_interval=2)
    (real,), (made,) = FolderClips(tmp_path, settings), FolderClips(tmp_path, settings, is_reference=False)
    np.testing.assert_allclose(np.diff(real.mean((1, 2, 3))), 20, atol=4)
    np.testing.assert_allclose(np.diff(made.mean((1, 2, 3))), 10, atol=4)


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_length": 8},
        {"num_videos": 1},
        {"num_videos": -1},
        {"num_given": 16},
        {"num_given": -1},
        {"resolution": 100},
    ],
)
def test_settings_out_of_range(tmp_path, settings):
    write_scenes(tmp_path, ["0.mp4"])
    with pytest.raises(
        ValueError, match="=".join(map(str, *settings.items())) if "resolution" not in settings else "100"
    ):
        FolderClips(tmp_path, ClipSettings(**settings))


# The cache


def test_cache_is_used_and_its_changes_are_named(tmp_path, narrow, logged):
    folder = write_scenes(tmp_path / "real", ["0.mp4", "1.mp4"])
    cache = tmp_path / "cache"
    first = FolderClips(folder, SMALL).features(narrow, cache)
    (path,) = cache.rglob("real-*-9x64.safetensors")
    written = path.stat().st_mtime_ns
    again = FolderClips(folder, ClipSettings(**{**vars(SMALL), "num_given": 5})).features(narrow, cache)
    np.testing.assert_array_equal(first, again)
    assert path.stat().st_mtime_ns == written and not logged.records

    torch.manual_seed(1)
    FolderClips(folder, SMALL).features(I3D(num_logits=8, width=4), cache)
    assert (
        "computed anew" in logged.text
        and "network" in logged.text
        and "videos" not in logged.text.split("otherwise")[1]
    )
    logged.clear()
    FolderClips(folder, ClipSettings(**{**vars(SMALL), "seed": 1, "resize": "squash"})).features(narrow, cache)
    assert "seed 0 → 1" in logged.text and "resize 'crop' → 'squash'" in logged.text
    FolderClips(folder, SMALL).features(narrow, cache)
    logged.clear()
    write_video(folder / "1.mp4", simulate(seed=5, num_frames=10, size=64).frames, fps=12)
    changed = FolderClips(folder, SMALL).features(narrow, cache)
    assert "videos '" in logged.text and "network" not in logged.text
    np.testing.assert_array_equal(changed[0], first[0])
    assert np.abs(changed[1] - first[1]).max() > 0


@pytest.mark.parametrize("content", [b"", b"nothing of ours", None])
def test_another_kind_of_file_is_not_overwritten(tmp_path, content):
    path = tmp_path / "features.safetensors"
    if content is None:
        save_file({"features": torch.zeros(2, 2)}, path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"features\.safetensors: this is no file of features"):
        cached_features(path, {"seed": 0}, compute=lambda: np.zeros((2, 2), np.float32))
    assert path.read_bytes() == before


# A model


@pytest.fixture
def pipe(tiny_transformer):
    pipe = VideoGPTPipeline(tiny_autoencoder_of(), tiny_transformer, NextClipFlowMatchScheduler(), frames_per_clip=6)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_predicted_clips_begin_as_the_real_ones(tmp_path, pipe):
    folder = write_scenes(tmp_path / "real", ["0.mp4", "1.mp4", "2.mp4"])
    real = FolderClips(folder, SMALL)
    made = PredictedClips(pipe, real, output=tmp_path / "made", num_inference_steps=1)
    predicted = made.predict([0, 1, 2])
    for clip, prediction in zip(real, predicted, strict=True):
        assert prediction.shape == clip.shape and prediction.dtype == np.uint8
        np.testing.assert_array_equal(prediction[:3], clip[:3])
        assert (prediction[3:] != clip[3:]).any()
    for position in range(3):
        assert np.abs(predicted[position].astype(int) - made.predict([position])[0]).max() <= 1
    from_nothing = FolderClips(folder, ClipSettings(9, 0, resolution=64))
    made = PredictedClips(pipe, from_nothing, output=tmp_path / "made", num_inference_steps=1)
    assert [clip.shape for clip in made.predict([0, 2])] == [(9, 64, 64, 3)] * 2


def test_a_killed_run_goes_on(tmp_path, pipe, narrow, monkeypatch):
    real = FolderClips(write_scenes(tmp_path / "real", [f"{index}.mp4" for index in range(4)]), SMALL)
    asked, predict = [], PredictedClips.predict

    def watched(self, positions):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.extend(positions)
        return predict(self, positions)

    monkeypatch.setattr(PredictedClips, "predict", watched)
    whole = PredictedClips(pipe, real, output=tmp_path / "whole", num_inference_steps=1).features(narrow, batch_size=4)
    asked.clear()
    stopped = PredictedClips(pipe, real, output=tmp_path / "stopped", num_inference_steps=1)
    with pytest.raises(KeyboardInterrupt):
        stopped.features(narrow, batch_size=1)
    assert asked == [0, 1, 2] and len(list((tmp_path / "stopped" / "videos").glob("*.mp4"))) == 3
    asked.clear()
    np.testing.assert_allclose(stopped.features(narrow, batch_size=2), whole, atol=2e-2)
    assert asked == [3]
    asked.clear()
    PredictedClips(pipe, real, output=tmp_path / "stopped", seed=1, num_inference_steps=1).features(
        narrow, batch_size=2
    )
    assert asked == [0, 1, 2, 3]  # other noise: nothing of the other run is used


def test_videos_are_asked_for_by_class(tmp_path, make_tiny_transformer):
    folder = write_scenes(tmp_path / "real", ["jump/0.mp4", "jump/1.mp4", "run/0.mp4"])
    pipe = VideoGPTPipeline(
        tiny_autoencoder_of(),
        make_tiny_transformer(num_classes=2),
        NextClipFlowMatchScheduler(),
        id2label={0: "run", 1: "jump"},
    )
    pipe.set_progress_bar_config(disable=True)
    settings = ClipSettings(9, 0, num_videos=2, resolution=64, by_class=True)
    made = PredictedClips(pipe, FolderClips(folder, settings), output=tmp_path / "made", num_inference_steps=2)
    together = made.predict([0, 1])
    # One class at a time, by its number, is the same video.
    for position, label in enumerate([1, 0]):
        generator = torch.Generator().manual_seed(position)
        size = {"num_frames": 9, "height": 64, "width": 64, "num_inference_steps": 2}
        frames = pipe(class_labels=[label], **size, generator=generator, output_type="np").frames[0]
        assert np.abs(together[position] / 255 - frames).max() < 2 / 255
    assert np.abs(together[0].astype(int) - together[1]).max() > 2

    other = FolderClips(write_scenes(tmp_path / "other", ["jump/0.mp4", "swim/0.mp4"]), settings)
    with pytest.raises(ValueError, match=r"not of \['swim'\], which are folders of .*other"):
        PredictedClips(pipe, other, output=tmp_path / "made")
