"""The scorer against a plain twin written from the benchmark's definition, and against the reference's own numbers."""

import ast
import csv
import re
import shutil
import tracemalloc

import av
import cv2
import numpy as np
import pytest

from diffusers_videogpt.commands.main import main
from diffusers_videogpt.metrics.physics_iq import (
    COLUMNS,
    PERSPECTIVES,
    change_rate,
    format_score,
    motion_masks,
    read_frames,
    score_set,
    score_view,
    shrink,
    write_csv,
    write_masks,
)
from diffusers_videogpt.video_io import VideoReadError, read_video, write_video


# The twin: numpy, one array a video


def slow_blur(gray):
    weights = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])
    padded = np.pad(gray, 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    return ((windows * weights).sum((2, 3)) + 128) >> 8


def slow_box(mask, best, outside):
    """Largest or smallest of 5 × 5; what lies outside the picture never wins."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 2, constant_values=outside), (5, 5))
    return best(windows, axis=(2, 3))


def slow_masks(video):
    masks, average = [], None
    for frame in video.astype(np.int64):
        blue, green, red = frame[..., 0], frame[..., 1], frame[..., 2]
        gray = slow_blur((9798 * red + 19235 * green + 3735 * blue + 2**14) >> 15)
        average = gray.astype(np.float64) if average is None else 0.7 * average + 0.3 * gray
        mask = np.abs(gray - np.round(average.astype(np.float32)).astype(int)) > 10
        for best in (np.min, np.max, np.max, np.min):  # open: erode, dilate; close: dilate, erode
            mask = slow_box(mask, best, outside=best is np.min)
        masks.append(mask)
    return np.stack(masks)


def slow_shrink(video):
    """A quarter of the size, bilinear: the mean of the middle 2 × 2 of every 4 × 4 pixels."""
    video = video.astype(np.int64)
    return sum(video[:, i::4, j::4] for i in (1, 2) for j in (1, 2)) + 2 >> 2


def slow_iou(one, other):
    return (one & other).sum() / (one | other).sum() if (one | other).any() else 1.0


def slow_metrics(one, other, one_mask, other_mask):
    mean_one, mean_other = one_mask.mean(0), other_mask.mean(0)
    largest = np.maximum(mean_one, mean_other).sum()
    return {
        "mse": [((a / 255 - b / 255) ** 2).mean() for a, b in zip(one, other, strict=True)],
        "st": [slow_iou(a, b) for a, b in zip(one_mask, other_mask, strict=True)],
        "sp": slow_iou(one_mask.any(0), other_mask.any(0)),
        "ws": np.minimum(mean_one, mean_other).sum() / largest if largest else 1.0,
    }


def slow_score(views):
    """Views as (generated and take 1, take 1 and take 2) of `slow_metrics` → the score."""
    rounded = [
        [{k: np.round(v, 4) if k in ("mse", "st") else v for k, v in m.items()} for m in pair] for pair in views
    ]
    mean = {k: np.mean([np.mean(pair[0][k]) for pair in rounded]) for k in ("mse", "st", "sp", "ws")}
    norm = {k: round(np.mean([np.mean(pair[1][k]) for pair in rounded]), 5 if k == "sp" else 4) for k in mean}
    score = sum(mean[k] / norm[k] for k in ("st", "sp", "ws")) / 3 - (mean["mse"] - norm["mse"])
    return round(min(max(100 * score, 0), 100), 2)


def moving_square(seed, speed=3, num_frames=12, height=64, width=80):
    """A bright square over noise that stays: `uint8` (T, H, W, 3)."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 90, (1, height, width, 3), dtype=np.uint8), num_frames, axis=0)
    x, y = rng.integers(4, 20, 2)
    for index in range(num_frames):
        if index > 2:
            x = (x + speed) % (width - 16)
        frames[index, y : y + 16, x : x + 16] = (250, 140, 200)
    return frames


def masked(video):
    return shrink(motion_masks(iter(video)), width=video.shape[2] // 4, height=video.shape[1] // 4)


def test_masks_are_those_of_the_twin():
    noise = np.random.default_rng(0).integers(0, 256, (4, 30, 41, 3), dtype=np.uint8)
    smooth = np.cumsum(np.cumsum(noise.astype(np.int64), axis=1), axis=2).astype(np.uint8)
    for video in (moving_square(1), moving_square(2, speed=7), smooth):
        masks = np.stack([mask for _, mask in motion_masks(iter(video))])
        assert masks.dtype == np.uint8 and set(np.unique(masks)) == {0, 255} and not masks[0].any()
        np.testing.assert_array_equal(masks > 0, slow_masks(video))


def test_metrics_are_those_of_the_twin():
    take_1, take_2, generated = (moving_square(seed, speed) for seed, speed in ((0, 3), (0, 4), (0, 2)))
    scores = score_view(masked(take_1), masked(take_2), generated=masked(generated))
    assert tuple(scores) == COLUMNS
    small = [slow_shrink(video) for video in (take_1, take_2, generated)]
    masks = [slow_shrink(255 * slow_masks(video)) > 127 for video in (take_1, take_2, generated)]
    assert all(mask.any() for mask in masks)
    names = {"variance_mse": (0, 1, "mse"), "variance_spatiotemporal_iou": (0, 1, "st")}
    names |= {"variance_spatial": (0, 1, "sp"), "variance_weighted_spatial": (0, 1, "ws")}
    for index, take in enumerate(("v1", "v2")):
        names |= {f"{take}_mse": (index, 2, "mse"), f"spatiotemporal_iou_{take}": (index, 2, "st")}
        names |= {f"spatial_iou_{take}": (index, 2, "sp"), f"weighted_spatial_iou_{take}": (index, 2, "ws")}
    for name, (one, other, metric) in names.items():
        expected = slow_metrics(small[one], small[other], masks[one], masks[other])[metric]
        np.testing.assert_allclose(scores[name], expected, rtol=0, atol=1e-6, err_msg=name)


def test_score_is_that_of_the_twin():
    """Of two scenarios, each perspective another video, with a score that is neither 0 nor 100."""
    rows, views = [], []
    for scenario in range(2):
        row = {"scenario": f"trimmed-{scenario}.mp4"}
        for number, perspective in enumerate(PERSPECTIVES):
            seed = 3 * scenario + number
            videos = [moving_square(seed, speed) for speed in (3, 4, 5)]
            scores = score_view(masked(videos[0]), masked(videos[1]), generated=masked(videos[2]))
            row |= {f"{name}_{perspective}": value for name, value in scores.items()}
            take_1, take_2, generated = ((slow_shrink(v), slow_shrink(255 * slow_masks(v)) > 127) for v in videos)
            metrics = [slow_metrics(take_1[0], v, take_1[1], m) for v, m in (generated, take_2)]
            views.append(metrics)
        rows.append(row)
    result = score_set(rows)
    assert result.score == slow_score(views) and 20 < result.score < 95
    parts = [result.score_of(metrics) for metrics in result.by_scenario.values()]
    assert parts[0] != pytest.approx(parts[1]) and np.mean(parts) == pytest.approx(result.score, abs=0.006)


def test_a_generated_video_equal_to_a_take():
    take_1, take_2 = moving_square(0, 3), moving_square(0, 4)
    scores = score_view(masked(take_1), masked(take_2), generated=masked(take_1))
    assert scores["v1_mse"] == [0] * 12 and scores["spatiotemporal_iou_v1"] == [1] * 12
    assert scores["spatial_iou_v1"] == scores["weighted_spatial_iou_v1"] == 1
    assert scores["v2_mse"] == scores["variance_mse"] and scores["spatial_iou_v2"] == scores["variance_spatial"] < 1


def test_videos_without_motion_agree_fully():
    still = np.repeat(moving_square(0)[:1], 5, axis=0)
    scores = score_view(masked(still), masked(still), generated=masked(still))
    assert scores["spatiotemporal_iou_v1"] == [1] * 5 and scores["weighted_spatial_iou_v1"] == 1


def test_takes_that_never_move_together_are_refused():
    moving, still = moving_square(0), np.zeros_like(moving_square(0))
    scores = score_view(masked(moving), masked(still), generated=masked(moving))
    row = {f"{name}_{perspective}": value for name, value in scores.items() for perspective in PERSPECTIVES}
    with pytest.raises(ValueError, match="spatial IoU of take 1 with take 2 is 0 over all 1 scenarios"):
        score_set([{"scenario": "trimmed-still.mp4", **row}])


def scored(**columns):
    """The score of one scenario with the same numbers in all perspectives: 1, errors of 0, and `columns`."""
    row = {"scenario": "trimmed-still.mp4"}
    for column in COLUMNS:
        value = columns.get(column, 0.0 if "mse" in column else 1.0)
        if "mse" in column or "spatiotemporal" in column:  # of each frame
            value = value if isinstance(value, list) else [value] * 2
        row |= {f"{column}_{perspective}": value for perspective in PERSPECTIVES}
    return score_set([row])


def test_score_lies_between_0_and_100():
    assert scored().score == 100
    assert scored(variance_spatial=0.5).score == 100 and scored(v1_mse=1.5).score == 0


def test_numbers_of_frames_are_rounded_before_their_mean():
    assert scored(v1_mse=[0.00004, 0.00012]).metrics["mse"] == pytest.approx(0.00005, abs=1e-9)


def test_a_pixel_may_move_in_more_frames_than_a_byte_counts():
    frame, moved, still = np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), bool), np.zeros((1, 1), bool)
    often, once = [(frame, moved)] * 256, [(frame, moved)] + [(frame, still)] * 255
    assert score_view(often, once, generated=often)["weighted_spatial_iou_v2"] == 1 / 256


def test_other_sizes_are_stretched():
    """320 × 176 against 4K / 4, and an odd size: bilinear between pixel centres, to one level of rounding."""
    rng = np.random.default_rng(0)
    for height, width, new_height, new_width in ((176, 320, 54, 96), (31, 45, 16, 20)):
        frame = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        ((small, mask),) = shrink([(frame, frame[..., 0])], width=new_width, height=new_height)
        expected = frame.astype(float)
        for axis, (size, new_size) in enumerate(((height, new_height), (width, new_width))):
            position = ((np.arange(new_size) + 0.5) * size / new_size - 0.5).clip(0, size - 1)
            below = np.minimum(position.astype(int), size - 2)
            share = (position - below).reshape(-1, *[1] * (2 - axis))
            expected = expected.take(below, axis) * (1 - share) + expected.take(below + 1, axis) * share
        np.testing.assert_allclose(small, expected, atol=1.01)
        certain = np.abs(expected[..., 0] - 127.5) > 1.5
        np.testing.assert_array_equal(mask[certain], (expected[..., 0] > 127)[certain])


def test_change_of_rate():
    """Evenly from the first to the last frame, linear between two, cut down to whole numbers; up as well as down."""
    frames = np.random.default_rng(0).integers(0, 256, (31, 4, 6, 3), dtype=np.uint8)
    for count in (5, 8, 31, 40):
        positions = np.arange(count) * 30 / (count - 1)
        below = positions.astype(int)
        above = np.minimum(below + 1, 30)
        share = (positions - below)[:, None, None, None]
        expected = ((1 - share) * frames[below] + share * frames[above]).astype(np.float32)
        changed = np.stack(list(change_rate(iter(frames), 31, new_num_frames=count)))
        assert changed.dtype == np.uint8
        np.testing.assert_allclose(changed, np.floor(expected + 1e-4), atol=0)
    np.testing.assert_array_equal(list(change_rate(iter(frames), 31, new_num_frames=31)), frames)


def test_frames_are_read_like_anywhere_else_and_in_full(tmp_path):
    """Colours come out as written (BT.709, tagged so), so a model sees and hands in the same pixels as the scorer."""
    path = write_video(tmp_path / "video.mp4", moving_square(0, num_frames=6), fps=8, crf=1)
    flat = np.full((6, 32, 32, 3), (30, 200, 90), np.uint8)
    write_video(tmp_path / "flat.mp4", flat, fps=8, crf=1)
    for frame in read_frames(tmp_path / "flat.mp4", 6):
        np.testing.assert_allclose(frame[:, :, ::-1], flat[0], atol=3)
    assert len(list(read_frames(path, 4))) == 4
    with pytest.raises(VideoReadError, match=r"video\.mp4: 6 frames decode, 7 are needed"):
        list(read_frames(path, 7))
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {path.name}\n")
    assert cv2.VideoCapture(str(playlist), cv2.CAP_FFMPEG).read()[0]  # left alone, OpenCV follows it
    with pytest.raises(VideoReadError, match="list.mp4: no video that FFmpeg can open"):
        list(read_frames(playlist, 4))


def test_masks_as_the_reference_stores_them(tmp_path):
    """Through lossy video few pixels change side, at odd sizes too."""
    video = moving_square(0, height=65, width=81)
    write_masks(tmp_path / "masks.mp4", iter(video), fps=8)
    stored = np.stack(list(read_frames(tmp_path / "masks.mp4", len(video))))[..., 0]
    raw = np.stack([mask for _, mask in motion_masks(iter(video))])[:, :64, :80]
    assert raw.any() and stored.shape == raw.shape
    assert ((stored > 127) != (raw > 127)).mean() < 0.005
    with pytest.raises(OSError, match="cannot write MPEG-4 video"):
        write_masks(tmp_path / "missing" / "masks.mp4", iter(video), fps=8)


def test_memory_does_not_grow_with_length():
    """Frames are made, masked, shrunk and compared one at a time: what a 4K video needs is a few frames."""
    frame = np.zeros((540, 960, 3), np.uint8)

    def peak(num_frames):
        take_1, take_2, generated = (masked_stream(frame, num_frames) for _ in range(3))
        tracemalloc.start()
        score_view(take_1, take_2, generated=generated)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def masked_stream(frame, num_frames):
        return shrink(motion_masks(frame.copy() for _ in range(num_frames)), width=240, height=135)

    few = peak(4)
    assert few > frame.nbytes and peak(16) < few + frame.nbytes / 2


def rows_of(path):
    """A CSV of the benchmark's form → rows as `score_set` takes them."""
    with open(path, newline="") as file:
        return [
            {k: v if k == "scenario" else ast.literal_eval(v) for k, v in row.items()} for row in csv.DictReader(file)
        ]


def test_csv_and_table(tmp_path):
    rows = []
    for number in range(2):
        take_1, take_2, generated = (masked(moving_square(number, speed)) for speed in (3, 4, 5))
        scores = score_view(take_1, take_2, generated=generated)
        row = {f"{name}_{perspective}": value for perspective in PERSPECTIVES for name, value in scores.items()}
        rows.append({"scenario": f"trimmed-{number}.mp4", **row})
    write_csv(tmp_path / "physics_iq.csv", rows)
    assert rows_of(tmp_path / "physics_iq.csv") == rows
    result = score_set(rows)
    table = format_score(result, {"trimmed-0.mp4": "Optics", "trimmed-1.mp4": "Magnetism", "trimmed-9.mp4": "Other"})
    lines = [line.split(" | ") for line in table.splitlines()]
    assert [line[0] for line in lines[9:]] == ["| Magnetism (1)", "| Optics (1)", "| trimmed-0", "| trimmed-1"]
    assert lines[9][1:] == lines[12][1:] and lines[10][1:] == lines[11][1:] and lines[9][1:] != lines[10][1:]
    assert f"| spatial IoU | {result.metrics['spatial_iou']:.4f} | {result.normalisers['spatial_iou']:.5f} |" in table


# The reference's numbers


@pytest.fixture(scope="module")
def mini(shared_dir):
    return shared_dir / "physics_iq" / "mini"


def test_score_from_the_metrics_of_the_reference(mini):
    rows = rows_of(mini / "ref_metrics.csv")
    result = score_set(rows)
    assert result.score == 79.49
    normalisers = result.normalisers
    assert sum(normalisers.values()) - 2 * normalisers["mse"] == pytest.approx(2.6228, abs=1e-4)


def test_columns_are_those_of_the_reference(mini, tmp_path):
    write_csv(tmp_path / "again.csv", rows_of(mini / "ref_metrics.csv"))
    header = (tmp_path / "again.csv").read_text().splitlines()[0]
    assert header == (mini / "ref_metrics.csv").read_text().splitlines()[0]
    assert rows_of(tmp_path / "again.csv") == rows_of(mini / "ref_metrics.csv")


def test_stored_masks_are_those_of_the_reference(mini, tmp_path):
    for video in sorted((mini / "gen_model").glob("000[1-3]*.mp4")):
        write_masks(tmp_path / "masks.mp4", read_frames(video, 40), fps=8)
        (reference,) = (mini / "ref_masks" / "generated").glob(f"{video.name[:4]}_*.mp4")
        for ours, theirs in zip(read_frames(tmp_path / "masks.mp4", 40), read_frames(reference, 40), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def evaluate(mini, output, *options):
    arguments = ["--data", str(mini), "--descriptions", str(mini / "descriptions.csv"), "--output", str(output)]
    main(["evaluate", "physics-iq", *arguments, *map(str, options)])


def last_score(capsys):
    return float(re.fullmatch(r"Physics-IQ score: (\d+\.\d\d)", capsys.readouterr().out.splitlines()[-1])[1])


@pytest.mark.parametrize(
    "options, difference", [(["--masks", "ref_masks"], 0), ([], 0), (["--mask-mode", "raw"], 0.3)]
)
def test_score_of_the_reference(mini, tmp_path, capsys, monkeypatch, options, difference):
    """From its masks and from masks made like its own exactly; in every metric to 1e-6."""
    monkeypatch.chdir(mini)
    evaluate(mini, tmp_path, "--videos", "gen_model", *options)
    assert abs(last_score(capsys) - 79.49) <= difference
    if difference == 0:
        for ours, reference in zip(rows_of(tmp_path / "physics_iq.csv"), rows_of("ref_metrics.csv"), strict=True):
            assert ours.pop("scenario") == reference.pop("scenario")
            for name in reference:
                np.testing.assert_allclose(ours[name], reference[name], rtol=0, atol=1e-6, err_msg=name)


def test_takes_and_frozen_frames_of_the_reference(mini, tmp_path, capsys):
    data = mini / "physics-IQ-benchmark" / "split-videos" / "testing" / "8FPS"
    for take, score in ((1, 100), (2, 100), ("frozen", 32.13)):
        videos = tmp_path / str(take)
        videos.mkdir()
        for generated in sorted((mini / "gen_model").iterdir()):
            number = int(generated.name[:4]) + (12 if take == 2 else 0)
            (source,) = data.glob(f"{number:04d}_*")
            if take == "frozen":
                write_lossless(videos / generated.name, np.repeat(read_video(source, max_frames=1).frames, 40, axis=0))
            else:
                shutil.copy(source, videos / generated.name)
        evaluate(mini, tmp_path / "out", "--videos", videos)
        assert last_score(capsys) == score


def write_lossless(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=8, options={"crf": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
