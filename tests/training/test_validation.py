import csv

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.training.validation import (
    RolloutScores,
    log_rollout,
    plot_curve,
    read_rollouts,
    validation_rollout,
)
from diffusers_videogpt.video_io import read_video


@pytest.fixture
def pipe(tiny_vae, tiny_transformer):
    pipe = VideoGPTPipeline(tiny_vae, tiny_transformer, NextClipFlowMatchScheduler(), frames_per_clip=2)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def square_moving(height, width, num_frames=7):
    """A bright square that moves right by 2 pixels a frame."""
    video = np.full((num_frames, height, width, 3), 40, np.uint8)
    for index in range(num_frames):
        video[index, 4:12, 2 * index + 2 : 2 * index + 10] = (230, 180, 60)
    return video


VIDEOS = [square_moving(32, 32), square_moving(16, 48)]
SETTINGS = {"num_given": 3, "num_inference_steps": 2, "fps": 8, "guidance_scale": 1.0}


def test_scores_are_those_of_a_direct_call(pipe):
    scores = validation_rollout(pipe, VIDEOS, seed=5, **SETTINGS)
    errors = []
    for index, video in enumerate(VIDEOS):
        frames = pipe(
            video=video[:3],
            num_frames=4,
            height=video.shape[1],
            width=video.shape[2],
            num_inference_steps=2,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(5 + index),
            output_type="np",
        ).frames[0]
        errors.append([np.square(frame - truth / 255).mean() for frame, truth in zip(frames, video[3:], strict=True)])
    # What is scored is rounded to 8 bits.
    np.testing.assert_allclose(scores.mse["predicted"], np.mean(errors, axis=0), rtol=2e-3)
    np.testing.assert_allclose(scores.psnr["predicted"], np.mean(-10 * np.log10(errors), axis=0), atol=2e-2)

    repeated = [[np.square((video[2] / 255) - (frame / 255)).mean() for frame in video[3:]] for video in VIDEOS]
    np.testing.assert_allclose(scores.mse["repeat"], np.mean(repeated, axis=0))
    assert scores.mse["repeat"][0] < scores.mse["repeat"][-1]
    assert scores.ratio_to_repeat == pytest.approx(np.mean(errors) / np.mean(repeated), rel=2e-3)
    assert scores.horizons == [1, 2, 4]


def test_autoencoder_scores(pipe):
    scores = validation_rollout(pipe, VIDEOS[:1], **SETTINGS)
    truth = VIDEOS[0][3:]
    decoded = pipe.decode_latents(pipe.encode_frames(pipe.prepare_frames(truth, 32, 32)), "np")[0]
    expected = np.square(decoded - truth / 255).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(scores.mse["autoencoder"], expected, rtol=2e-3)


def test_still_video_has_finite_scores(pipe):
    still = np.repeat(VIDEOS[0][:1], 5, axis=0)
    scores = validation_rollout(pipe, [still], **SETTINGS)
    assert scores.mse["repeat"] == [0, 0] and scores.psnr["repeat"] == [100, 100]
    assert np.isfinite(scores.ratio_to_repeat) and scores.ratio_to_repeat > 1


def test_further_measures_see_what_the_errors_see(pipe, tmp_path):
    def mean_difference(frames, truth):
        assert frames.shape == truth.shape and frames.dtype == truth.dtype == np.uint8
        return (truth.mean((1, 2, 3)) - frames.mean((1, 2, 3))).astype(float)

    scores = validation_rollout(pipe, VIDEOS, measures={"difference": mean_difference}, folder=tmp_path, **SETTINGS)
    expected = np.mean([video[3:].mean((1, 2, 3)) - video[2].mean() for video in VIDEOS], axis=0)
    np.testing.assert_allclose(scores.measures["difference"]["repeat"], expected)
    assert {key: len(values) for key, values in scores.measures["difference"].items()} == dict.fromkeys(scores.mse, 4)
    assert RolloutScores.load(tmp_path / "scores.json") == scores


def test_training_is_not_touched(pipe):
    pipe.transformer.train()
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    random_state = torch.get_rng_state()
    first = validation_rollout(pipe, VIDEOS, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert pipe.transformer.training
    assert all(torch.equal(before[name], value) for name, value in pipe.transformer.state_dict().items())
    assert validation_rollout(pipe, VIDEOS, **SETTINGS) == first
    assert validation_rollout(pipe, VIDEOS, seed=1, **SETTINGS) != first


def test_files(pipe, tmp_path):
    folder = tmp_path / "step-000500"
    scores = validation_rollout(pipe, VIDEOS, folder=folder, **SETTINGS)
    assert sorted(path.name for path in folder.iterdir()) == ["0.mp4", "0.png", "1.mp4", "1.png", "scores.json"]
    assert RolloutScores.load(folder / "scores.json") == scores
    assert read_rollouts(tmp_path) == {500: scores}

    written = read_video(folder / "1.mp4").frames.astype(int)
    assert written.shape == (7, 16 + 6, 48 + 4 + 48, 3)
    truth, given = written[:, 6:, :48], written[:3, 6:, 52:]
    # H.264 in 4:2:0 blurs the colours at edges.
    assert np.abs(truth - VIDEOS[1]).mean() < 12 and np.abs(given - VIDEOS[1][:3]).mean() < 12
    blue_over_red = written[:, 2, 20, 2] - written[:, 2, 20, 0]
    assert (blue_over_red[:3] > 50).all() and (blue_over_red[3:] < -50).all()


def test_unfinished_rollouts_are_not_read(pipe, tmp_path):
    scores = validation_rollout(pipe, VIDEOS[:1], folder=tmp_path / "step-000900", **SETTINGS)
    validation_rollout(pipe, VIDEOS[:1], folder=tmp_path / "step-001000", **SETTINGS)
    validation_rollout(pipe, VIDEOS[:1], folder=tmp_path / "step-000050", **SETTINGS)
    (tmp_path / "step-001000" / "scores.json").unlink()
    rollouts = read_rollouts(tmp_path)
    assert list(rollouts) == [50, 900] and rollouts[900] == scores


@pytest.mark.parametrize(
    "videos, num_given, message",
    [
        ([], 3, "There is no video"),
        ([VIDEOS[0], VIDEOS[1][:6]], 3, "got 7 and 6 frames"),
        (VIDEOS, 7, "leaves 0 to predict: give 1 to 6"),
        (VIDEOS, 0, "`num_given`=0"),
        ([VIDEOS[0][:, :24]], 3, "`height` must be divisible by 16, got 24"),
    ],
)
def test_bad_videos(pipe, videos, num_given, message):
    with pytest.raises(ValueError, match=message):
        validation_rollout(pipe, videos, **SETTINGS | {"num_given": num_given})


def test_tensorboard(pipe, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    scores = validation_rollout(pipe, VIDEOS, folder=tmp_path / "step-000007", **SETTINGS)
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("logs")
    log_rollout(accelerator, scores, folder=tmp_path / "step-000007", step=7)
    accelerator.end_training()

    events = event_accumulator.EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    names = [f"validation/{error}_h{horizon}" for error in ("mse", "psnr") for horizon in (1, 2, 4)]
    assert set(events.Tags()["scalars"]) == {"validation/ratio_to_repeat", *names}
    (event,) = events.Scalars("validation/mse_h4")
    assert event.step == 7 and event.value == pytest.approx(scores.mse["predicted"][3])
    assert events.Tags()["images"] == ["validation/strip_0", "validation/strip_1"]
    (image,) = events.Images("validation/strip_1")
    assert (image.width, image.height) == Image.open(tmp_path / "step-000007" / "1.png").size


def test_wandb(pipe, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    scores = validation_rollout(pipe, VIDEOS, folder=tmp_path / "rollout", **SETTINGS)
    accelerator = Accelerator(cpu=True, log_with="wandb")
    accelerator.init_trackers("videogpt-test")
    log_rollout(accelerator, scores, folder=tmp_path / "rollout", step=7, prefix="others")
    accelerator.end_training()
    (run,) = tmp_path.glob("wandb/offline-run-*")
    media = sorted(path.name[:7] + path.suffix for path in run.glob("files/media/*/others/*"))
    assert media == ["strip_0.png", "strip_1.png", "video_0.mp4", "video_1.mp4"]


def test_trackio(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    scores = validation_rollout(pipe, VIDEOS, folder=tmp_path / "rollout", **SETTINGS)
    accelerator = Accelerator(cpu=True, log_with="trackio")
    accelerator.init_trackers("videogpt-test")
    log_rollout(accelerator, scores, folder=tmp_path / "rollout", step=7)
    accelerator.end_training()
    logged = {}
    for row in storage.get_logs("videogpt-test", storage.get_runs("videogpt-test")[0]):
        assert row["step"] == 7
        logged |= row
    assert logged["validation/mse_h1"] == pytest.approx(scores.mse["predicted"][0])
    assert logged["validation/video_1"]["_type"] == "trackio.video"
    assert logged["validation/strip_0"]["_type"] == "trackio.image"
    media = [path.suffix for path in (tmp_path / "trackio" / "media").rglob("*.*")]
    assert sorted(media) == [".mp4", ".mp4", ".png", ".png"]


@pytest.fixture
def log_csv(tmp_path):
    path = tmp_path / "train_log.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "validation_loss", "seconds_per_step"])
        for step in range(20, 401, 20):
            writer.writerow([step, 1 / step**0.5, "" if step % 100 else 1.1 / step**0.5, 0.5])
    return path


def scores_with(predicted, repeat):
    mse = {"predicted": predicted, "repeat": repeat, "autoencoder": [0.001] * len(predicted)}
    return RolloutScores(mse=mse, psnr={name: (-10 * np.log10(row)).tolist() for name, row in mse.items()})


def test_curve(log_csv, tmp_path):
    pytest.importorskip("matplotlib")
    rollouts = {step: scores_with([20 / step, 40 / step], [0.1, 0.2]) for step in (100, 200, 300, 400)}
    path = plot_curve(log_csv, tmp_path / "curve.png", rollouts=rollouts)
    both = np.asarray(Image.open(path))
    alone = np.asarray(Image.open(plot_curve(log_csv, tmp_path / "alone.png")))
    assert both.shape[1] > 1.5 * alone.shape[1]
    blue_over_red = alone[..., 2].astype(int) - alone[..., 0]
    assert (blue_over_red > 60).sum() > 100 and (blue_over_red < -60).sum() > 100  # loss and validation loss


def test_curve_without_matplotlib(log_csv, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert plot_curve(log_csv, tmp_path / "curve.png") is None
    assert not (tmp_path / "curve.png").exists()
