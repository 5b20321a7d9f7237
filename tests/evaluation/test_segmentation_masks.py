"""Folders of masks scored and written, and simulated scenes with their baselines."""

import json

import numpy as np
import pytest
from diffusers import AutoencoderKL
from masked_videos import make_davis, make_youtube_vos
from PIL import Image

from diffusers_videogpt import BUNDLED_MODEL, NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.evaluation import segmentation_masks
from diffusers_videogpt.evaluation.segmentation_masks import (
    evaluate_segmentation,
    propagate_by_flow,
    score_folder,
    segment_videos,
)
from diffusers_videogpt.metrics.segmentation import summarize
from diffusers_videogpt.tasks.segmentation_data import read_mask, read_masked_videos, write_masks


class RepeatMarked(VideoGPTPipeline):
    """Answers with the first marked frame again and again."""

    def predict_clip(self, rollout, num_frames, **_):
        return rollout.history.latents[:, :, -1:].expand(-1, -1, num_frames, -1, -1)


@pytest.fixture
def pipe(make_tiny_transformer):
    vae = AutoencoderKL.from_pretrained(BUNDLED_MODEL, subfolder="vae")
    transformer = make_tiny_transformer(in_channels=vae.config.latent_channels)
    pipe = RepeatMarked(vae, transformer, NextClipFlowMatchScheduler(), frames_per_clip=4, longest_side=64)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def videos(tmp_path):
    return read_masked_videos(make_davis(tmp_path / "DAVIS", {"val": ["ant", "bee"]}), "val")


@pytest.fixture
def copies(tmp_path, videos):
    """The true masks as predicted ones."""
    for video in videos:
        names = [path.stem for path in video.frames]
        write_masks(tmp_path / "made" / video.name, video.read_masks(video.annotated), names=names)
    return tmp_path / "made"


def test_the_truth_scores_one(videos, copies):
    scores = summarize(score_folder(videos, copies))
    assert (scores.j_mean, scores.f_mean, scores.j_decay) == (1, 1, 0) and len(scores.objects) == 4
    # The first and the last frame need not be there.
    for name in ("00000", "00005"):
        (copies / "ant" / f"{name}.png").unlink()
    assert summarize(score_folder(videos, copies)).j_mean == 1
    # One object lost in one of the four frames that count.
    masks = videos[1].read_masks([2])
    write_masks(copies / "bee", np.where(masks == 2, 0, masks), names=["00002"])
    assert summarize(score_folder(videos, copies)).j_mean == pytest.approx(1 - 1 / 16)


def test_what_is_missing_or_wrong_is_named(videos, copies):
    (copies / "bee" / "00003.png").unlink()
    with pytest.raises(ValueError, match="bee lacks the masks of 1 frames: 00003.png"):
        score_folder(videos, copies)
    Image.new("P", (24, 16)).save(copies / "bee" / "00003.png")
    with pytest.raises(ValueError, match="00003.png is 24 × 16, the true mask 48 × 32"):
        score_folder(videos, copies)
    write_masks(copies / "bee", np.full((1, 32, 48), 7, np.uint8), names=["00003"])
    with pytest.raises(ValueError, match=r"bee.00003.png has the object 7, .* only objects up to \d: give each pixel"):
        score_folder(videos, copies)
    (copies / "bee").rename(copies / "other")
    with pytest.raises(ValueError, match="no masks of 1 of 2 videos: bee"):
        score_folder(videos, copies)


def test_a_model_writes_masks(pipe, videos, tmp_path):
    segment_videos(pipe, videos, folder=tmp_path / "out", num_inference_steps=1)
    for video in videos:
        truth = video.read_masks([0])[0]
        for path in video.frames:
            with Image.open(tmp_path / "out" / video.name / f"{path.stem}.png") as image:
                found = np.asarray(image)
            assert ((found == 1) & (truth == 1)).sum() / ((found == 1) | (truth == 1)).sum() > 0.7
    with pytest.raises(ValueError, match="ant: The video has 6 frames, a clip 9"):
        segment_videos(pipe, videos, folder=tmp_path / "out", frames_per_clip=9)


def test_objects_that_come_later(pipe, tmp_path):
    """Of YouTube-VOS: object 2 has its first mask in the frame 2 of 6, and is followed from there, but not scored."""
    root = make_youtube_vos(tmp_path / "vos", ["v1"])
    video = read_masked_videos(root)[0]
    truth = video.read_masks(video.annotated)
    truth[0][truth[0] == 2] = 0
    write_masks(root / "Annotations" / "v1", truth, names=[video.frames[index].stem for index in video.annotated])
    results = evaluate_segmentation(pipe, root, folder=tmp_path / "out", num_inference_steps=1)
    assert list(results["model"].objects) == ["v1_1"]
    shown = []
    for path in video.frames:
        with Image.open(tmp_path / "out" / "v1" / f"{path.stem}.png") as image:
            shown.append(set(np.unique(np.asarray(image))) - {0})
    assert shown == [{1}, {1}, {1, 2}, {1, 2}, {1, 2}, {1, 2}]
    # As in the benchmarks' tests: only first masks are there, the model's are written all the same.
    for index in video.annotated[1:]:
        video.masks[video.frames[index].stem].unlink()
    assert evaluate_segmentation(pipe, root, folder=tmp_path / "test", num_inference_steps=1) == {}
    assert len(list((tmp_path / "test" / "v1").glob("*.png"))) == 6


def test_objects_are_followed_once_and_later_ones_give_way(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(
        segmentation_masks,
        "segment_video",
        lambda pipe, frames, *, first_mask, **_: first_mask[None].repeat(len(frames), 0),
    )
    root = make_youtube_vos(tmp_path / "vos", ["v1"])
    video = read_masked_videos(root)[0]
    given, expected = np.zeros((3, 32, 48), np.uint8), np.zeros((6, 32, 48), np.uint8)
    given[0, :, :20] = 1
    given[1, :8], given[1, 8:, 10:40] = 1, 2  # object 2 comes, in part where 1 was
    given[2] = 2
    expected[:, :, :20], expected[2:, 8:, 20:40] = 1, 2
    write_masks(root / "Annotations" / "v1", given, names=[video.frames[index].stem for index in video.annotated])
    segment_videos(pipe, [video], folder=tmp_path / "out")
    for path, mask in zip(video.frames, expected, strict=True):
        np.testing.assert_array_equal(read_mask(tmp_path / "out" / "v1" / f"{path.stem}.png"), mask)


def test_each_video_has_its_seed_and_the_settings(pipe, videos, tmp_path, monkeypatch):
    asked = []

    def record(pipe, frames, *, first_mask, generator=None, **settings):
        asked.append((generator.initial_seed(), settings["num_inference_steps"]))
        return first_mask[None].repeat(len(frames), axis=0)

    monkeypatch.setattr(segmentation_masks, "segment_video", record)
    settings = {"seed": 5, "num_inference_steps": 3}
    evaluate_segmentation(pipe, tmp_path / "DAVIS", folder=tmp_path / "out", **settings)
    evaluate_segmentation(pipe, None, num_simulated=2, num_frames=4, folder=tmp_path / "scenes", **settings)
    assert asked == [(5, 3), (6, 3)] * 2


def test_simulated_scenes(pipe, tmp_path):
    results = evaluate_segmentation(pipe, None, num_simulated=3, num_frames=8, folder=tmp_path, num_inference_steps=1)
    scores = {name: result.j_mean for name, result in results.items()}
    assert scores["autoencoder alone"] > 0.9 > scores["repeating the first mask"]
    # This model repeats the first mask, too, but from behind the autoencoder.
    assert scores["model"] == pytest.approx(scores["repeating the first mask"], abs=0.1)
    assert json.loads((tmp_path / "scores.json").read_text()).keys() == results.keys()
    assert {f"{index}.png" for index in range(3)} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="segmented by a model: give one"):
        evaluate_segmentation(None, None, num_simulated=3, folder=tmp_path)


def test_optical_flow_follows_a_textured_square():
    """By one pixel a frame to the right and down; what does not move stays."""
    rng = np.random.default_rng(0)
    background, patch = (rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (64, 24))
    frames, masks = np.repeat(background[None], 5, axis=0), np.zeros((5, 64, 64), np.uint8)
    for t in range(5):
        frames[t, 20 + t : 44 + t, 12 + t : 36 + t] = patch
        masks[t, 20 + t : 44 + t, 12 + t : 36 + t] = 3
    followed = propagate_by_flow(frames, masks[0])
    np.testing.assert_array_equal(followed[0], masks[0])
    overlap = [
        ((a == 3) & (b == 3)).sum() / ((a == 3) | (b == 3)).sum()
        for a, b in ((followed[-1], masks[-1]), (masks[0], masks[-1]))
    ]
    assert overlap[0] > overlap[1] + 0.1
    still = np.repeat(frames[:1], 3, axis=0)
    np.testing.assert_array_equal(propagate_by_flow(still, masks[0]), masks[:1].repeat(3, axis=0))
