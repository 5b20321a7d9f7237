"""The benchmark as files, through the command: predict, score, go on after a kill, share the work, and refuse what is wrong."""

import re
import shutil
import signal
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from run_scripts import start_file

from diffusers_videogpt import BUNDLED_MODEL, VideoGPTPipeline
from diffusers_videogpt.commands.main import main, make_parser
from diffusers_videogpt.evaluation.physics_iq_videos import Benchmark, PredictionSettings
from diffusers_videogpt.metrics.physics_iq import PERSPECTIVES, change_rate, read_frames
from diffusers_videogpt.video_io import read_video, write_video


FPS = 4
HEIGHT, WIDTH = 48, 64


def moving_square(seed, speed, num_frames):
    """A bright square that moves over a ramp of gray: `uint8` (T, H, W, 3)."""
    frames = np.empty((num_frames, HEIGHT, WIDTH, 3), np.uint8)
    frames[:] = np.arange(WIDTH)[:, None]
    for index in range(num_frames):
        x = round(4 * seed + speed * index) % (WIDTH - 20)
        frames[index, 8 + 2 * seed : 28 + 2 * seed, x : x + 20] = (250, 180, 210)
    return frames


def make_benchmark(folder, scenarios=1, fps=FPS, conditioning=True):
    """The benchmark's folders in its naming, with `scenarios` × 3 perspectives × 2 takes."""
    split = folder / "physics-IQ-benchmark" / "split-videos"
    number, lines = 0, ["scenario,description,category,generated_video_name"]
    for take in (1, 2):
        for scenario in range(scenarios):
            for seed, perspective in enumerate(PERSPECTIVES):
                number += 1
                frames = moving_square(seed, (2.5 + scenario + 0.5 * take) * FPS / fps, 8 * fps)
                last = f"{perspective}_take-{take}_trimmed-scene-{scenario}.mp4"
                for kind, part in (("testing", frames[3 * fps :]), ("conditioning", frames[: 3 * fps])):
                    if kind == "testing" or (conditioning and take == 1):
                        path = split / kind / f"{fps}FPS" / f"{number:04d}_{kind}-videos_{fps}FPS_{last}"
                        write_video(path, part, fps=fps)
                lines.append(f"{number:04d}_{last},a square,{'Optics' if scenario else 'Solid Mechanics'},unused.mp4")
    (folder / "descriptions.csv").write_text("\n".join(lines) + "\n")
    return folder


def testing_video(data, number, fps=FPS):
    (path,) = data.rglob(f"{number:04d}_testing-videos_{fps}FPS_*.mp4")
    return path


testing_video.__test__ = False


def copy_take(data, videos, take, scenarios=1):
    """A folder of generated videos that equals a take."""
    videos.mkdir()
    for number in range(1, 3 * scenarios + 1):
        source = testing_video(data, number + 3 * scenarios * (take - 1))
        _, _, _, perspective, _, scenario = source.name.split("_")
        shutil.copy(source, videos / f"{number:04d}_{perspective}_{scenario}")
    return videos


def make_generated(data, videos, scenarios=1):
    """Squares that move at a speed of their own."""
    copy_take(data, videos, 1, scenarios)
    for seed, path in enumerate(sorted(videos.iterdir())):
        write_video(path, moving_square(seed % 3, 3.7, 5 * FPS), fps=FPS)
    return videos


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("data"))


def evaluate(data, output, *options, descriptions=True):
    arguments = ["evaluate", "physics-iq", "--data", str(data), "--output", str(output), *map(str, options)]
    main([*arguments, "--descriptions", str(data / "descriptions.csv")] if descriptions else arguments)


def last_score(capsys):
    out = capsys.readouterr().out
    return float(re.fullmatch(r"Physics-IQ score: (\d+\.\d\d)", out.splitlines()[-1])[1]), out


@pytest.mark.parametrize("take", [1, 2])
@pytest.mark.parametrize("mode", ["raw", "reference"])
def test_a_set_equal_to_a_take_scores_100(data, tmp_path, capsys, take, mode):
    videos = copy_take(data, tmp_path / "videos", take)
    evaluate(data, tmp_path / "out", "--videos", videos, "--mask-mode", mode)
    score, out = last_score(capsys)
    assert score == 100 and "3 views at 4 frames/s" in out and "| Solid Mechanics (1) |" in out


def test_another_set_scores_less_and_no_motion_far_less(data, tmp_path, capsys):
    evaluate(data, tmp_path / "out", "--videos", make_generated(data, tmp_path / "videos"))
    moving, _ = last_score(capsys)
    frozen = copy_take(data, tmp_path / "frozen", 1)
    for path in frozen.iterdir():
        first = read_video(path, max_frames=1).frames
        write_video(path, np.repeat(first, 5 * FPS, axis=0), fps=FPS)
    # Into the same folder: nothing of the other set is taken for this one's. Descriptions are optional.
    evaluate(data / "physics-IQ-benchmark", tmp_path / "out", "--videos", frozen, descriptions=False)
    still, out = last_score(capsys)
    assert 0 < still < moving / 2 < 50 and "Mechanics" not in out


def test_scores_are_kept_by_content(data, tmp_path, capsys):
    videos = make_generated(data, tmp_path / "videos")
    evaluate(data, tmp_path / "out", "--videos", videos)
    score, out = last_score(capsys)
    assert out.count(" scored") == 3
    csv_file = (tmp_path / "out" / "physics_iq.csv").read_bytes()

    changed = sorted(videos.iterdir())[1]
    before = changed.read_bytes()
    write_video(changed, moving_square(1, 9, 5 * FPS), fps=FPS)
    evaluate(data, tmp_path / "out", "--videos", videos)
    other_score, out = last_score(capsys)
    assert other_score != score and re.findall(r"(\d{4})_.* scored", out) == ["0002"]

    changed.write_bytes(before)
    for name in videos.iterdir():  # what a file is called after its ID does not matter
        name.rename(videos / f"{name.name[:4]}_mine.mp4")
    evaluate(data, tmp_path / "out", "--videos", videos)
    again, out = last_score(capsys)
    assert again == score and " scored" not in out
    assert (tmp_path / "out" / "physics_iq.csv").read_bytes() == csv_file


def test_shards_give_the_score_of_one_process(tmp_path, capsys):
    data = make_benchmark(tmp_path / "data", scenarios=2)
    videos = make_generated(data, tmp_path / "videos", scenarios=2)
    evaluate(data, tmp_path / "whole", "--videos", videos)
    score, _ = last_score(capsys)
    done = []
    for shard in ("1/4", "0/4", "3/4", "2/4"):
        evaluate(data, tmp_path / "shards", "--videos", videos, "--shard", shard)
        out = capsys.readouterr().out
        done += re.findall(r"(\d{4})_.* scored", out)
        assert f"shard {shard} is done" in out and "score:" not in out
    assert sorted(done) == [f"{number:04d}" for number in range(1, 7)]
    evaluate(data, tmp_path / "shards", "--videos", videos)
    merged, out = last_score(capsys)
    assert merged == score and " scored" not in out
    results = [(tmp_path / folder / "physics_iq.csv").read_bytes() for folder in ("whole", "shards")]
    assert results[0] == results[1]


# Predicting


QUICK = ["--model", BUNDLED_MODEL, "--steps", "1", "--fps", str(FPS), "--frames-per-clip", "8"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def distance(one, other):
    """Between two videos, in 8-bit levels."""
    return np.abs(read_video(one).frames.astype(int) - read_video(other).frames).mean()


def test_predict_after_a_kill(data, tmp_path, capsys):
    """Killed once the first video is there, the same command goes on behind it, to what an unbroken run makes."""
    evaluate(data, tmp_path / "whole", *QUICK)
    whole, _ = last_score(capsys)

    videos = tmp_path / "killed" / "videos"
    command = ["evaluate", "physics-iq", "--data", data, "--output", tmp_path / "killed", *QUICK]
    (tmp_path / "main.py").write_text("from diffusers_videogpt.commands.main import main; main()")
    with start_file(tmp_path / "main.py", *command) as run:
        # The note that it is whole, written after the video.
        while not any((tmp_path / "killed" / "cache" / "predictions").glob("*.json")):
            assert not run.has_ended(), run.result()
            time.sleep(0.01)
        run.kill()
        assert run.exit_code == -signal.SIGKILL
    kept = contents(videos)
    assert 1 <= len(kept) < 3

    (videos / "0003_perspective-right_trimmed-scene-0.mp4").write_bytes(b"half a video")
    evaluate(data, tmp_path / "killed", *QUICK)
    score, out = last_score(capsys)
    assert len(re.findall(" predicted in ", out)) == 3 - len(kept)
    assert kept.items() <= contents(videos).items() and score == pytest.approx(whole, abs=0.2)
    assert sorted(contents(videos)) == [
        f"{number + 1:04d}_{perspective}_trimmed-scene-0.mp4" for number, perspective in enumerate(PERSPECTIVES)
    ]
    for path in videos.iterdir():
        # Sums in another order may tip a rounding.
        assert distance(path, tmp_path / "whole" / "videos" / path.name) < 0.1
        with av.open(str(path)) as container:
            assert container.duration == 5_000_000 and sum(1 for _ in container.decode(video=0)) == 5 * FPS
            assert container.streams.video[0].average_rate == FPS

    # Other settings, another prediction; the earlier ones are not taken for these.
    evaluate(data, tmp_path / "killed", *QUICK, "--seed", "1")
    assert len(re.findall(" predicted in ", capsys.readouterr().out)) == 3
    assert not set(contents(videos).values()) & set(contents(tmp_path / "whole" / "videos").values())
    assert min(distance(path, tmp_path / "whole" / "videos" / path.name) for path in videos.iterdir()) > 5


def test_prediction_goes_on_from_what_was_shown(data, tmp_path):
    """Each view is continued from its own 3 s with its own noise: the pipeline called by hand gives the same frames."""
    evaluate(data, tmp_path / "out", *QUICK, "--seed", "2", "--height", "32", "--width", "48", "--shard", "1/3")
    (path,) = (tmp_path / "out" / "videos").iterdir()
    assert path.name == "0002_perspective-center_trimmed-scene-0.mp4"
    pipe = VideoGPTPipeline.from_pretrained(BUNDLED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    (given,) = data.rglob("0002_conditioning-videos*")
    size = {"height": 32, "width": 48, "num_frames": 5 * FPS, "frames_per_clip": 8, "max_context_frames": 80}
    noise = torch.Generator().manual_seed(20_002)
    settings = {"num_inference_steps": 1, "guidance_scale": 3.0, "output_type": "np", "generator": noise}
    expected = pipe(video=str(given), **size, **settings).frames[0]
    written = read_video(path).frames
    assert written.shape == (5 * FPS, 32, 48, 3)
    np.testing.assert_allclose(written.mean(axis=(1, 2)), 255 * expected.mean(axis=(1, 2)), atol=2)
    assert np.abs(written - 255 * expected).mean() < 6  # lossy video


def test_defaults_of_the_command_are_those_of_the_settings():
    args = make_parser().parse_args(["evaluate", "physics-iq", "--model", "m", "--data", "d"])
    settings = PredictionSettings()
    assert (args.steps, args.guidance_scale, args.frames_per_clip) == (50, 3.0, 32)
    assert settings.num_inference_steps == args.steps and settings.guidance_scale == args.guidance_scale
    assert settings.frames_per_clip == args.frames_per_clip and settings.seed == args.seed
    assert settings.max_context_frames == args.max_context_frames == 80 and settings.height is args.height is None


def test_other_rates_are_made_from_the_filmed_one(tmp_path, capsys):
    """With only 30 frames/s there, everything is done at 4: what is shown, what is scored, and its masks."""
    data = make_benchmark(tmp_path / "data", fps=30)
    benchmark = Benchmark(data, FPS)
    shown = np.stack(list(benchmark.shown(benchmark.views[0]).frames()))
    assert shown.shape == (3 * FPS, HEIGHT, WIDTH, 3)
    real = np.stack(list(benchmark.real(benchmark.views[0], 1).frames()))
    expected = list(change_rate(read_frames(testing_video(data, 1, fps=30), 150), 150, new_num_frames=5 * FPS))
    np.testing.assert_array_equal(real, expected)
    videos = tmp_path / "videos"
    for number, perspective in enumerate(PERSPECTIVES):
        frames = np.stack(list(benchmark.real(benchmark.views[number], 1).frames()))[..., ::-1]
        write_video(videos / f"{number + 1:04d}_{perspective}_trimmed-scene-0.mp4", frames, fps=FPS, crf=1)
    evaluate(data, tmp_path / "out", "--videos", videos)
    assert last_score(capsys)[0] > 95


def test_masks_of_the_benchmark_are_used(data, tmp_path, capsys):
    """Ready masks take the place of made ones: real ones from the benchmark's folder, or both from `--masks`."""
    videos = copy_take(data, tmp_path / "videos", 1)
    evaluate(data, tmp_path / "made", "--videos", videos)
    made = (tmp_path / "made" / "physics_iq.csv").read_text()
    corner = np.zeros((5 * FPS, HEIGHT, WIDTH, 3), np.uint8)
    corner[2:, :24, :32] = 255
    own = tmp_path / "own"
    shutil.copytree(data, own)
    for number in range(1, 7):
        name = testing_video(data, number).name.replace("testing-videos", "video-masks")
        write_video(own / "physics-IQ-benchmark" / "video-masks" / "real" / f"{FPS}FPS" / name, corner, fps=FPS)
        write_video(tmp_path / "masks" / "real" / name, corner, fps=FPS)
        if number <= 3:
            write_video(tmp_path / "masks" / "generated" / name, corner, fps=FPS)
    evaluate(own, tmp_path / "own_out", "--videos", videos)
    assert last_score(capsys)[0] < 60 and (tmp_path / "own_out" / "physics_iq.csv").read_text() != made
    evaluate(data, tmp_path / "out", "--videos", videos, "--masks", tmp_path / "masks")
    assert last_score(capsys)[0] == 100
    assert not (tmp_path / "out" / "cache" / "masks").exists()


# Bad input


def rewrite(path, num_frames=5 * FPS, fps=FPS):
    write_video(path, moving_square(0, 3, num_frames), fps=fps)


def first_video(root, data):
    return root / "videos" / "0001_perspective-left_trimmed-scene-0.mp4"


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "missing take": (
        lambda r, d: testing_video(d, 5).unlink(),
        [],
        r"4FPS: trimmed-scene-0.mp4 has no perspective-center take 2 \(1 of 6",
    ),
    "missing perspective": (
        lambda r, d: [testing_video(d, number).unlink() for number in (3, 6)],
        [],
        "trimmed-scene-0.mp4 has no perspective-right take 1; .* perspective-right take 2 .*get the rest",
    ),
    "missing scenario": (
        lambda r, d: (d / "descriptions.csv").write_text(
            "scenario,category\n0001_perspective-left_take-1_trimmed-x.mp4,A\n"
        ),
        [],
        r"trimmed-x.mp4 has no .* \(6 of 6",
    ),
    "no benchmark": (lambda r, d: shutil.rmtree(d / "physics-IQ-benchmark"), [], "neither 4FPS.* nor 30FPS.*--data"),
    "other files": (
        lambda r, d: ([testing_video(d, n).unlink() for n in range(1, 7)], (d / "descriptions.csv").write_text("x\n")),
        [],
        "descriptions.csv: no rows, or not the columns scenario and category",
    ),
    "descriptions that are no text": (
        lambda r, d: (d / "descriptions.csv").write_bytes(b"\xff\xfe\x00scenario"),
        [],
        "descriptions.csv: no CSV in UTF-8",
    ),
    "no descriptions": (lambda r, d: (d / "descriptions.csv").unlink(), [], "descriptions.csv: there is no such file"),
    "rate in the name": (
        lambda r, d: rewrite(testing_video(d, 4), fps=8),
        [],
        "0004_testing.*: 8 frames/s, but its folder and name say 4",
    ),
    "short take": (
        lambda r, d: rewrite(testing_video(d, 4), 18),
        [],
        r"0004_testing.*: lasts 4.500 s \(18 frames at 4 frames/s\), 0.500 s too short for 5 s",
    ),
    "damaged take": (lambda r, d: cut_in_half(testing_video(d, 2)), [], "0002_testing.*no video that FFmpeg can open"),
    "no folder of videos": (lambda r, d: shutil.rmtree(r / "videos"), [], "--videos videos: there is no such"),
    "no videos": (
        lambda r, d: [path.unlink() for path in (r / "videos").iterdir()],
        [],
        "videos: no video is named",
    ),
    "missing video": (
        lambda r, d: first_video(r, d).with_name("0003_perspective-right_trimmed-scene-0.mp4").unlink(),
        [],
        "0003_.*: no video with this ID",
    ),
    "two videos": (
        lambda r, d: rewrite(first_video(r, d).with_name("0002_again.mp4")),
        [],
        "0002_.*: more than one video: 0002_again.mp4, ",
    ),
    "short video": (lambda r, d: rewrite(first_video(r, d), 19), [], r"0001_.*: lasts 4.750 s .*0.250 s too short"),
    "long video": (
        lambda r, d: rewrite(first_video(r, d), 8 * FPS),
        [],
        r"0001_.*: lasts 8.000 s .*3.000 s too long.*only the 5 s that follow the 3 s shown",
    ),
    "another rate": (
        lambda r, d: rewrite(first_video(r, d).with_name("0003_perspective-right_trimmed-scene-0.mp4"), 40, 8),
        [],
        "0003_.*: 8 frames/s where the others have 4",
    ),
    "odd rate": (
        lambda r, d: rewrite(first_video(r, d), 150, 30000 / 1001),
        [],
        r"0001_.*: 150 frames at 29.97 frames/s.*whole number",
    ),
    "still": (lambda r, d: rewrite(first_video(r, d), 1), [], "0001_.*: 1 frames at 0 frames/s.*whole number"),
    "unreadable video": (
        lambda r, d: first_video(r, d).write_bytes(b"nothing"),
        [],
        "0001_.*no video that FFmpeg can open",
    ),
    "masks in raw mode": (
        lambda r, d: (r / "masks").mkdir(),
        ["--masks", "masks", "--mask-mode", "raw"],
        "masks.*leave them out",
    ),
    "no folder of masks": (lambda r, d: None, ["--masks", "masks"], "--masks masks: there is no such"),
    "no masks": (
        lambda r, d: (r / "masks").mkdir(),
        ["--masks", "masks"],
        "masks: there is no folder real or generated",
    ),
    "missing mask": (
        lambda r, d: (r / "masks" / "real").mkdir(parents=True),
        ["--masks", "masks"],
        "masks/real/0001_video-masks_4FPS_.*there is no such mask; complete the folder",
    ),
    "short mask": (
        lambda r, d: rewrite(
            r / "masks" / "generated" / "0001_video-masks_4FPS_perspective-left_take-1_trimmed-scene-0.mp4", 10
        ),
        ["--masks", "masks"],
        "generated/0001_video-masks.*2.500 s too short",
    ),
    "mask of another rate": (
        lambda r, d: rewrite(
            r / "masks" / "generated" / "0001_video-masks_4FPS_perspective-left_take-1_trimmed-scene-0.mp4", 40, 8
        ),
        ["--masks", "masks"],
        "generated/0001_video-masks.*masks at 8 frames/s for videos at 4",
    ),
    "half a size": (lambda r, d: None, ["--height", "32"], "--height and --width go together"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_the_file_and_what_to_do(case, tmp_path, monkeypatch):
    spoil, options, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    data = make_benchmark(tmp_path / "data", conditioning=False)
    copy_take(data, tmp_path / "videos", 1)
    spoil(tmp_path, data)
    with pytest.raises(SystemExit) as exit_info:
        evaluate(data, Path("out"), "--videos", "videos", *options)
    assert str(exit_info.value).startswith("videogpt evaluate: ") and re.search(message, str(exit_info.value))
    assert not (tmp_path / "out" / "physics_iq.csv").exists()


@pytest.mark.parametrize(
    "num_frames, message",
    [
        (8, r"0001_conditioning.*: lasts 2.000 s .*1.000 s too short for 3 s"),
        (32, "5.000 s too long"),
        (None, "neither"),
    ],
)
def test_bad_conditioning_is_found_before_a_prediction(tmp_path, num_frames, message):
    data = make_benchmark(tmp_path, conditioning=num_frames is not None)
    if num_frames is not None:
        (path,) = data.rglob("0001_conditioning*")
        rewrite(path, num_frames)
    with pytest.raises(SystemExit, match=message):
        evaluate(data, tmp_path / "out", *QUICK)
    assert not (tmp_path / "out" / "videos").exists()


def test_conditioning_that_is_a_frame_off_is_taken(tmp_path):
    """Up to 0.1 s at the filmed 30 frames/s: of more, the last 3 s; of less, all."""
    data = make_benchmark(tmp_path, fps=30)
    (path,) = data.rglob("0001_conditioning*")
    frames = read_video(path).frames
    benchmark = Benchmark(data, 30)
    write_video(path, np.concatenate([frames[:2], frames]), fps=30)
    longer = list(benchmark.shown(benchmark.views[0]).frames())
    np.testing.assert_array_equal(longer, np.stack(list(read_frames(path, 92)))[2:])
    write_video(path, frames[1:], fps=30)
    assert len(list(benchmark.shown(benchmark.views[0]).frames())) == 89
    benchmark = Benchmark(data, 8)
    assert len(list(benchmark.shown(benchmark.views[0]).frames())) == 24


def test_arguments_that_do_not_go_together(capsys):
    for arguments in ([], ["--model", "m", "--videos", "v"], ["--model", "m", "--shard", "2/2"]):
        with pytest.raises(SystemExit):
            main(["evaluate", "physics-iq", "--data", "d", *arguments])
    assert "'2/2' is not I/N" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", "physics-iq", "--data", "d", "--model", "m", "--fps", "0"])
    assert "argument --fps: '0' is no whole number of 1 or more" in capsys.readouterr().err
