import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from diffusers_videogpt import BUNDLED_MODEL, VideoGPTPipeline
from diffusers_videogpt.evaluation.physics_box import (
    BoxScores,
    RolloutSettings,
    colour_drift_of,
    denoise_true_clips,
    energy_of,
    find_collisions,
    hold_lost_objects,
    locate_objects,
    make_scenes,
    pass_through_autoencoder,
    predict_scenes,
    score_predictions,
    score_without_model,
    sharpness_of,
    track_objects,
    true_collisions,
)
from diffusers_videogpt.evaluation.physics_box_report import (
    evaluate_models,
    format_scores,
    plot_scores,
    where_not_ahead,
)
from diffusers_videogpt.files import Store, hash_of
from diffusers_videogpt.video_io import to_uint8_frames


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(10, first_seed=6)  # of four kinds, three with one object


@pytest.fixture(scope="module")
def results(scenes):
    return score_without_model(scenes)


def paint_over(frames, scene, index):
    """The frames without object `index`, which is not near another one."""
    frames = frames.copy()
    for frame, centre in zip(
        frames, scene.take_1.positions[scene.num_given :, index].round().astype(int), strict=True
    ):
        reach = int(scene.take_1.objects[index].radius) + 3
        rows, columns = (slice(max(place - reach, 0), place + reach) for place in (centre[1], centre[0]))
        frame[rows, columns] = (18, 20, 26)
    return frames


def test_measured_on_the_truth_the_truth_is_nearly_perfect(results):
    truth = results["truth"]
    assert truth.mse == [0] * 16 and truth.psnr == [100] * 16
    assert 0 < max(truth.trajectory_error) < 0.6
    assert truth.objects_kept == [1] * 16
    assert max(truth.energy_drift) < 0.1
    assert truth.collisions["clear"] > 10 and truth.collisions["f1"] > 0.9
    assert truth.physics_iq["score"] == 100 and truth.physics_iq["spatial_iou"] == 1


def test_the_second_take_shows_what_physics_leaves_open(results):
    take, truth = results["second take"], results["truth"]
    assert take.physics_iq["score"] == pytest.approx(100, abs=0.02)  # by definition, but for rounded normalisers
    assert take.physics_iq["spatial_iou"] == pytest.approx(take.physics_iq["take_2_spatial_iou"], abs=1e-5) != 1
    assert take.trajectory_error[0] < take.trajectory_error[-1]
    assert take.objects_kept == [1] * 16 and 0.4 < take.collisions["f1"] < truth.collisions["f1"]


def test_baselines(results):
    repeat, moving = results["repeat the last frame"], results["constant velocity"]
    assert repeat.objects_kept == [1] * 16 and moving.objects_kept[-1] < 1
    assert moving.trajectory_error[0] < 0.6 < repeat.trajectory_error[0] < 8 < repeat.trajectory_error[-1]
    assert repeat.physics_iq["score"] < 10 < moving.physics_iq["score"] < 90
    assert max(repeat.collisions["recall"], moving.collisions["recall"]) < 0.2


def test_objects_are_located_at_any_size():
    for size in (64, 128):
        scene = make_scenes(1, size=size, first_seed=16)[0].take_1
        found = sorted(locate_objects(scene.frames[5]), key=lambda item: (item[0], *item[1]))
        true = sorted(
            ((item.colour, position) for item, position in zip(scene.objects, scene.positions[5], strict=True)),
            key=lambda item: (item[0], *item[1]),
        )
        assert [name for name, _ in found] == [name for name, _ in true]
        for (_, centre), (_, position) in zip(found, true, strict=True):
            assert np.linalg.norm(centre - position) < 0.7 * size / 64


def test_a_lost_object_is_held_where_it_was_last_seen(scenes):
    scene = next(scene for scene in scenes if len(scene.take_1.objects) == 1)
    frames = scene.truth.copy()
    frames[5:9] = paint_over(frames, scene, 0)[5:9]
    tracks, complete = track_objects(frames, scene)
    lost = np.isin(np.arange(16), range(5, 9))
    np.testing.assert_array_equal(np.isnan(tracks[:, 0, 0]), lost)
    np.testing.assert_array_equal(complete, ~lost)
    held = hold_lost_objects(tracks, scene)
    np.testing.assert_array_equal(held[5:9, 0], held[[4] * 4, 0])
    np.testing.assert_array_equal(held[~lost], tracks[~lost])
    nothing = hold_lost_objects(track_objects(np.zeros_like(frames), scene)[0], scene)
    np.testing.assert_array_equal(nothing, scene.take_1.positions[[7] * 16])


def test_what_is_too_far_away_is_another_object(scenes):
    scene = next(scene for scene in scenes if len(scene.take_1.objects) == 1)
    frames = np.zeros_like(scene.truth)
    x, y = scene.take_1.positions[7, 0]
    far = np.array([(x + 32) % 56, (y + 32) % 56]).astype(int)
    colour = locate_objects(scene.truth[0])[0][0]
    frames[0, far[1] : far[1] + 7, far[0] : far[0] + 7] = scene.truth[0][int(y), int(x)]
    assert [name for name, _ in locate_objects(frames[0])] == [colour]
    assert np.isnan(track_objects(frames, scene)[0]).all()


def test_collisions_are_sudden_changes_of_true_tracks():
    """From exact positions every clear collision of the simulator is found, and nothing where there is none."""
    num_clear = num_found = 0
    for scene in make_scenes(40):
        mine = find_collisions(scene.take_1.positions[8:], scene)
        every, clear = true_collisions(scene)
        assert all(any((time + d, index) in every for d in (-1, 0, 1)) for time, index in mine)
        num_clear += len(clear)
        num_found += sum(any((time + d, index) in mine for d in (-1, 0, 1)) for time, index in clear)
    assert num_clear > 40 and num_found > 0.9 * num_clear


def test_collisions_at_the_wrong_time_do_not_count(scenes):
    """The truth three frames late: collisions are as many, but three frames off."""
    late = [np.concatenate([scene.take_1.frames[5:8], scene.truth[:-3]]) for scene in scenes]
    collisions = score_predictions(late, scenes).collisions
    assert collisions["seen"] > 5 and collisions["precision"] < 0.7 and collisions["recall"] < 0.5


def test_what_a_rollout_loses_in_sharpness_and_colour(scenes, results):
    truth = results["truth"]
    assert truth.sharpness == [1] * 16 and truth.colour_drift == [0] * 16
    assert max(results["constant velocity"].colour_drift) > 0
    for frames in (scene.truth for scene in scenes):
        blurred = ndimage.uniform_filter(frames, size=(1, 5, 5, 1))
        assert (sharpness_of(blurred) < 0.5 * sharpness_of(frames)).all()
        assert (
            colour_drift_of(np.roll(frames, 7, axis=2), frames) == 0
        ).all()  # in the wrong place, of the right colour
        tinted = frames.astype(int) + [20, 0, 0]
        np.testing.assert_allclose(colour_drift_of(tinted, frames), 20 / 3)
    # By hand: neighbours to the right differ by 1 in half of the pairs, those below nowhere.
    stripes = np.zeros((1, 2, 3, 3), np.uint8)
    stripes[:, :, 2] = 255
    np.testing.assert_allclose(sharpness_of(stripes), [0.5])


def test_energy_of_true_tracks_is_the_simulators(scenes):
    kinds = set()
    for scene in scenes:
        if scene.take_1.kind in ("bounce", "fall", "pendulum"):
            kinds.add(scene.take_1.kind)
            ratio = energy_of(scene.take_1.positions[8:], scene) / scene.take_1.energy[8:]
            assert abs(np.median(ratio) - 1) < 0.03
            still = energy_of(scene.take_1.positions[[7] * 16], scene)
            assert (still == 0).all() if scene.gravity == 0 else (still > 0).all()
    assert len(kinds) >= 2


def test_predictions_are_kept_and_found_again(make_tiny_pipe, tmp_path):
    pipe = make_tiny_pipe()
    scenes, store = make_scenes(3, num_given=4, num_predicted=4, size=32), Store(tmp_path)
    settings = RolloutSettings(num_inference_steps=1)
    first = predict_scenes(pipe, scenes, settings=settings, store=store, batch_size=2)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(files) == 3 and first[0].shape == (4, 32, 32, 3) and first[0].dtype == np.uint8
    assert len({video.tobytes() for video in first}) == 3

    again = predict_scenes(pipe, scenes, settings=settings, store=store, batch_size=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == files
    min(files).unlink()  # as after a kill
    after_a_kill = predict_scenes(pipe, scenes, settings=settings, store=store, batch_size=2)
    for videos in (again, after_a_kill):
        assert all(np.array_equal(one, other) for one, other in zip(first, videos, strict=True))
    for change in ({"seed": 1}, {"frames_per_clip": 1}, {"guidance_scale": 1.0}):
        other = predict_scenes(pipe, scenes, settings=replace(settings, **change), store=store)
        assert not np.array_equal(other[0], first[0])
    through = [pass_through_autoencoder(pipe, scenes) for _ in range(2)]
    np.testing.assert_array_equal(*through)


def test_one_denoising_of_true_clips(scenes):
    """From noise alone it is the pipeline's own prediction in one step; with hardly any noise nothing is lost."""
    pipe = VideoGPTPipeline.from_pretrained(BUNDLED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    found = denoise_true_clips(pipe, scenes[:3], num_frames=4, alphas=(0.0, 0.98), seed=2, batch_size=2)
    assert {name: len(shares) for name, shares in found.items()} == {"number_kept": 2, "objects_kept": 2}
    assert found["number_kept"][1] == found["objects_kept"][1] == 1

    counts = []
    for batch in (scenes[:2], scenes[2:3]):
        generators = [torch.Generator().manual_seed(int(hash_of(2, scene.seed)[:12], 16)) for scene in batch]
        given = [scene.take_1.frames[:12] for scene in batch]
        latents = pipe.encode_given(video=given, max_context_frames=12, generator=generators)
        noise = [torch.randn(1, *latents.shape[1:2], 4, 8, 8, generator=generator) for generator in generators]
        videos = pipe(
            video_latents=latents[:, :, :8],
            latents=torch.cat(noise),
            num_frames=4,
            num_inference_steps=1,
            guidance_scale=1.0,
            output_type="np",
        ).frames
        for scene, frames in zip(batch, map(to_uint8_frames, videos), strict=True):
            true = sorted(item.colour for item in scene.take_1.objects)
            seen = [sorted(colour for colour, _ in locate_objects(frame)) for frame in frames]
            counts += [(len(colours) == len(true), colours == true) for colours in seen]
    np.testing.assert_allclose([found["number_kept"][0], found["objects_kept"][0]], np.mean(counts, axis=0))


def test_models_of_two_sizes_are_not_compared(make_tiny_pipe, tmp_path):
    for name, side in (("one", 32), ("other", 64)):
        make_tiny_pipe(longest_side=side).save_pretrained(tmp_path / name)
    run = {"num_scenes": 1, "num_given": 4, "num_predicted": 4}
    for name, message in (("other", "of 64 pixels, .*one of 32"), ("truth", "Two ways of predicting .* 'truth'")):
        with pytest.raises(ValueError, match=message):
            evaluate_models(
                tmp_path / "one",
                tmp_path / "out",
                settings=RolloutSettings(1),
                compare=[(name, str(tmp_path / "other"), None)],
                **run,
            )


def test_models_are_scored_in_the_dtypes_that_were_asked_for(tmp_path):
    """The second run finds the first one's predictions in its folder and does not take them."""
    scores, run = {}, {"num_scenes": 3, "num_given": 4, "num_predicted": 4, "frames_per_clip": [4]}
    for name, dtypes in (("single", None), ("half", {"default": torch.float32, "transformer": torch.bfloat16})):
        scores[name] = evaluate_models(BUNDLED_MODEL, tmp_path, settings=RolloutSettings(1), dtypes=dtypes, **run)
    assert scores["half"]["autoencoder alone"] == scores["single"]["autoencoder alone"]
    half, single = (scores[name]["clips of 4"].mse for name in ("half", "single"))
    assert half != single
    np.testing.assert_allclose(half, single, rtol=0.05)
    about = json.loads((tmp_path / "scores.json").read_text())["about"]
    assert about["dtypes"] == {"default": "float32", "transformer": "bfloat16"}


def test_report(results, tmp_path):
    tables = format_scores(results)
    assert tables.count("| truth |") == 8 and "| repeat the last frame | 100 | 100 |" in tables
    plot_scores(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 20_000
    shares = {"number_kept": [0.5] * 5, "objects_kept": [0.25] * 5}
    with_model = results | {"model": replace(results["truth"], one_denoising=shares)}
    assert "(by number alone)" not in tables
    assert "(by number alone), % | α = 0.0 | α = 0.2 |" in format_scores(with_model)
    assert "| model | 25 (50) | 25 (50) |" in format_scores(with_model)
    assert "; not in objects kept at 1–16" in where_not_ahead(results, "truth")  # repeating keeps all, too


def test_where_a_model_is_not_ahead_is_named():
    def scores(number, score=1.0):
        drift = {"sharpness": [1.0] * 4, "colour_drift": [0.0] * 4}
        return BoxScores(*([number] * 4 for _ in range(5)), {"f1": score}, {"score": score}, **drift)

    results = {"repeat the last frame": scores(2.0), "constant velocity": scores(3.0)}
    results["model"] = replace(
        scores(1.0, 2.0), psnr=[4.0] * 4, objects_kept=[4.0, 3.0, 3.5, 2.0], mse=[1.0, 1.0, 1.0, 2.5]
    )
    words = where_not_ahead(results, "model")
    assert (
        words
        == "model: better than both baselines in 19 of 22 comparisons; not in MSE × 1000 at 4, objects kept at 2, 4"
    )


@pytest.mark.parametrize("numbers", [{"num_scenes": 0}, {"num_given": 1}, {"num_predicted": 2}])
def test_too_few_scenes_or_frames(numbers):
    with pytest.raises(ValueError, match="at least 1 scene, 2 given and 4 predicted"):
        make_scenes(**({"num_scenes": 1} | numbers))


def test_scenes_without_energy_to_see():
    with pytest.raises(ValueError, match="1 scenes from seed 0 .*take more scenes"):
        make_scenes(1)  # a stack
