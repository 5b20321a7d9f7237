"""Which videos are usable, why others are not, and which frames a sample takes: on files made here."""

import codecs
import csv
import io
import json
import math
import os
import struct
from dataclasses import asdict, replace
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusers_videogpt.data.sampling import Sampling, Window, seeded_generator
from diffusers_videogpt.data.tables import read_table
from diffusers_videogpt.data.videos import FIRST_TRAINING_SEED, VideoTable, report_dropped, video_of
from diffusers_videogpt.training.arguments import run_script
from diffusers_videogpt.video_io import VideoInfo, VideoReadError, read_video, resize_and_crop, write_video
from diffusers_videogpt.worlds import draw_order, simulate


def numbered(count, height=32, width=48):
    """Grey pictures that tell their number: 3 levels apart, which survives the codec."""
    return [np.full((height, width, 3), 3 * index, np.uint8) for index in range(count)]


def numbers(frames):
    return np.round(frames.mean(axis=(1, 2, 3)) / 3).astype(int).tolist()


def write(path, count, height=32, width=48, fps=10):
    return write_video(path, numbered(count, height, width), fps=fps, crf=1)


def write_variable(path, ticks):
    """Frame i is shown at `ticks[i]` / 50 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=50, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 50)
        for tick, pixels in zip(ticks, numbered(len(ticks)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 50)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shifted(source, path, seconds):
    """The packets of a file, moved in time; moved to before zero, an MP4 hides them by an edit list."""
    with av.open(str(source)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        ticks = round(seconds / old.streams.video[0].time_base)
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, stream
                new.mux(packet)
    return path


@pytest.fixture
def folder(tmp_path):
    """Good videos of several kinds among bad ones."""
    root = tmp_path / "videos"
    write(root / "b.mp4", 30)
    write(root / "deeper" / "a.webm", 12)
    write_variable(root / "variable.mp4", [0, 1, 4, 6, 11, 12, 13, 21, 23, 24, 30, 31])
    turned = bytearray(write(root / "turned.mp4", 12).read_bytes())
    struct.pack_into(">9i", turned, turned.index(b"tkhd") + 44, 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    (root / "turned.mp4").write_bytes(turned)
    shifted(root / "b.mp4", root / "edited.mp4", Fraction(-7, 10))
    with av.open(str(root / "lying.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for pixels in numbered(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    lying = bytearray((root / "lying.avi").read_bytes())
    struct.pack_into("<I", lying, lying.index(b"avih") + 8 + 16, 1000)
    struct.pack_into("<I", lying, lying.index(b"strh") + 8 + 32, 1000)
    (root / "lying.avi").write_bytes(lying)
    (root / "truncated.mp4").write_bytes((root / "b.mp4").read_bytes()[:-200])
    (root / "text.mp4").write_text("no video at all")
    (root / "empty.mp4").write_bytes(b"")
    with av.open(str(root / "frameless.mp4"), "w") as container:
        container.add_stream("libx264", rate=10)
        container.streams.video[0].width, container.streams.video[0].height = 48, 32
        container.start_encoding()
    write(root / "thin.mp4", 12, height=8)
    (root / "notes.txt").write_text("not looked at")
    return root


GOOD = ["b.mp4", "deeper/a.webm", "edited.mp4", "turned.mp4", "variable.mp4"]
BAD = {
    "empty.mp4": "unreadable",
    "frameless.mp4": "unreadable",
    "lying.avi": "too short",
    "text.mp4": "unreadable",
    "thin.mp4": "too small",
    "truncated.mp4": "unreadable",
}


def test_a_folder_of_good_and_bad_videos(folder, tmp_path, capsys):
    table = VideoTable.from_folder(folder, Sampling(max_num_frames=10), max_bad_fraction=0.6)
    assert [record.id for record in table] == GOOD
    assert {id: reason.partition(":")[0] for id, reason in table.dropped.items()} == BAD
    assert [info.num_frames for info in table.infos] == [30, 12, 23, 12, 12]
    assert [table.size(i) for i in range(5)] == [(32, 48)] * 3 + [(48, 32), (32, 48)]
    for index in range(5):
        frames = table.read(index, table.draw_window(index, 0, seed=0))
        assert frames.shape == (10, *table.size(index), 3) and frames.dtype == np.uint8

    path = report_dropped(table.dropped, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "6 of 11 videos dropped (4 unreadable, 1 too short, 1 too small)" in printed and str(path) in printed
    table.dropped.max_bad_fraction = 1.0
    table.dropped.add("b.mp4", "breaks while read: at frame 3: damaged")
    table.dropped.add("b.mp4", "breaks while read: counted once")
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "kind", "reason"] and [row[:2] for row in rows[1:7]] == [list(x) for x in BAD.items()]
    assert "6 frames in 0.5 s, 10 are needed at an interval of 1" in rows[3][2]
    assert rows[7:] == [["b.mp4", "breaks while read", "at frame 3: damaged"]]


def test_too_many_bad_videos_stop_the_run(folder):
    with pytest.raises(
        ValueError,
        match=r"6 of 11 .*4 unreadable.*more than the share of 0.5.*fewer frames \(`max_num_frames`\).*\n  empty.mp4: unreadable",
    ):
        VideoTable.from_folder(folder, Sampling(max_num_frames=10))
    with pytest.raises(ValueError, match="No usable video in .*: 11 of 11 videos dropped .*7 too short|6 too short"):
        VideoTable.from_folder(folder, Sampling(max_num_frames=100), max_bad_fraction=1.0)
    with pytest.raises(ValueError, match="nowhere is no folder"):
        VideoTable.from_folder(folder / "nowhere", Sampling(max_num_frames=10))


def test_videos_that_break_later_stop_the_run_too(folder):
    table = VideoTable.from_folder(folder, Sampling(max_num_frames=10), max_bad_fraction=0.6)
    with pytest.raises(ValueError, match="7 of 11 videos dropped .*1 breaks while read"):
        table.dropped.add("b.mp4", "breaks while read: damaged")


def test_windows_show_the_frames_that_they_name(folder):
    for sampling in (Sampling(6, frame_interval=(1, 3)), Sampling(3, fps=7.0), Sampling(4, fps=40.0)):
        table = VideoTable.from_folder(folder, sampling, max_bad_fraction=0.6)
        for index, record in enumerate(table):
            whole = numbers(read_video(record.source).frames)
            for draw in range(4):
                window = table.draw_window(index, draw, seed=1)
                expected = [whole[i] for i in table.frame_indices(index, window)]
                assert numbers(table.read(index, window)) == expected, (record.id, window)


def test_frame_rate_picks_what_is_on_screen():
    info = VideoInfo(32, 48, np.array([0, 1, 4, 6, 11, 12, 13, 21, 23, 24, 30, 31]) / 50)
    sampling = Sampling(3, fps=10.0)
    # At 0.08 s, 0.18 s and 0.28 s: shown since 0.08, 0.12 and 0.26 s.
    assert sampling.frame_indices(info, Window(2, 0, 3)).tolist() == [2, 3, 6]
    starts = {sampling.draw(info, seeded_generator(k)).start for k in range(200)}
    # A window of 0.2 s fits up to the frame at 0.42 s, which is followed for 0.2 s by others.
    assert starts == set(range(8))


def test_frames_at_the_rate_of_the_file_are_the_frames():
    """However the times of frames are rounded: (n / 30) · 30 is less than n for some n."""
    for rate in (30.0, 24.0, 29.97, 12.5):
        info = VideoInfo(32, 48, np.arange(200) / rate)
        for start in range(150):
            indices = Sampling(50, fps=rate).frame_indices(info, Window(start, 0, 50))
            np.testing.assert_array_equal(indices, np.arange(start, start + 50))
        lengths = [Sampling(n, fps=rate).length(VideoInfo(32, 48, np.arange(n) / rate)) for n in range(1, 200)]
        assert lengths == list(range(1, 200))


def test_seeds_stay_what_they_were():
    """Of all 63 bits: other seeds would change runs and caches that are there."""
    seeds = [seeded_generator(*numbers).initial_seed() for numbers in ((0,), (0, 1), ("a", 3))]
    assert seeds == [4246866556266386882, 7359998640416684799, 7362822962553270300]


def test_windows_are_drawn_as_the_paper_says():
    info = VideoInfo(32, 48, np.arange(21) / 10)
    sampling = Sampling(6, frame_interval=(2, 12))
    windows = [sampling.draw(info, seeded_generator(0, draw)) for draw in range(3000)]
    # 6 frames fit into 21 at an interval of up to 4, though 12 are allowed.
    counts = np.bincount([window.interval for window in windows])
    assert counts[:2].sum() == 0 and len(counts) == 5
    np.testing.assert_allclose(counts[2:], 1000, atol=100)
    for interval, num_starts in ((2, 11), (3, 6), (4, 1)):
        starts = np.bincount([window.start for window in windows if window.interval == interval])
        assert len(starts) == num_starts and starts.min() > 0.6 * starts.mean()
    assert all(window.num_frames == 6 for window in windows)


def test_a_window_follows_from_seed_video_and_draw(folder):
    sampling = Sampling(5, frame_interval=(1, 2))
    table = VideoTable.from_folder(folder, sampling, max_bad_fraction=0.6)
    windows = [table.draw_window(0, draw, seed=0) for draw in range(8)]
    (folder / "text.mp4").unlink()
    write(folder / "0.mp4", 20)
    larger = VideoTable.from_folder(folder, sampling, max_bad_fraction=0.6)
    assert larger[1].id == "b.mp4" and [larger.draw_window(1, draw, seed=0) for draw in range(8)] == windows
    assert [table.draw_window(0, draw, seed=1) for draw in range(8)] != windows
    assert len(set(windows)) > 4


def test_shorter_videos_give_samples_of_few_lengths():
    def length(num_frames, **options):
        return Sampling(48, **options).length(VideoInfo(32, 32, np.arange(num_frames) / 30))

    assert [length(n) for n in (47, 48, 200)] == [0, 48, 48]
    lengths = [length(n, min_num_frames=8) for n in range(1, 60)]
    assert lengths[:7] == [0] * 7 and lengths[47:] == [48] * 12 and lengths == sorted(lengths)
    assert len(set(lengths)) <= 11 and all(
        n - 5 < used <= n for n, used in zip(range(8, 48), lengths[7:47], strict=True)
    )
    # Fewer frames fit at a larger interval or a lower rate.
    assert length(60, min_num_frames=8, frame_interval=(4, 12)) == 13
    assert length(60, min_num_frames=8, fps=10.0) == 18
    assert length(48, fps=30.0) == 48
    assert Sampling(1, frame_interval=(4, 12)).draw(VideoInfo(32, 32, np.zeros(1)), seeded_generator(0)).start == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"min_num_frames": 9}, "min_num_frames=9 must lie in 1..max_num_frames=8"),
        ({"frame_interval": (4, 2)}, r"frame_interval=\(4, 2\)"),
        ({"fps": 0.0}, "fps=0.0"),
        ({"fps": 8.0, "frame_interval": (2, 2)}, "fps=8.0 .* without frame_interval"),
        ({"height": 64}, "height=64 and width=None together"),
        ({"height": 64, "width": 50}, "width=50 .* multiples of 16"),
    ],
)
def test_a_sampling_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(8, **options)


def test_sizes(folder):
    sampling = Sampling(4, longest_side=32)
    table = VideoTable.from_folder(folder, sampling, max_bad_fraction=0.6)
    assert table.size(0) == (16, 32)
    video = read_video(table[0].source, max_frames=4)
    np.testing.assert_array_equal(table.read(0, Window(0, 1, 4)), resize_and_crop(video.frames, 32))
    fixed = VideoTable.from_folder(folder, replace(sampling, height=64, width=80), max_bad_fraction=0.6)
    assert fixed.size(0) == (64, 80) and fixed.read(0, Window(0, 1, 4)).shape == (4, 64, 80, 3)
    # A cache of latents is keyed by these fields.
    assert json.loads(json.dumps(asdict(sampling)))["longest_side"] == 32


def test_damage_inside_a_window_is_an_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), np.uint8)
    path = write_video(tmp_path / "a.mp4", noise, fps=10, crf=30)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for packet in packets[20:24]:
        data[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
    path.write_bytes(data)
    table = VideoTable.from_folder(tmp_path, Sampling(8))
    # Packets tell nothing of the damage; the frames before it are good.
    assert table.infos[0].num_frames == 40
    assert table.read(0, Window(0, 1, 8)).shape == (8, 32, 48, 3)
    with pytest.raises(VideoReadError, match=r"a\.mp4|damaged there"):
        table.read(0, Window(18, 1, 8))


def test_frames_at_other_times_than_promised_are_an_error(tmp_path):
    path = write(tmp_path / "a.mp4", 20)
    info = VideoTable.from_folder(tmp_path, Sampling(8)).infos[0]
    lying = replace(info, timestamps=np.array([*np.arange(10), *np.arange(10, 20) + 0.5]) / 10)
    with pytest.raises(VideoReadError, match="frame 5 of the sample from 0.5 s on was shown at 1 s, not at 1.05 s"):
        Sampling(8).read(path, lying, window=Window(5, 1, 8))


# Other sources


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_tables(tmp_path, suffix):
    for name in ("a", "b"):
        write(tmp_path / "films" / f"{name}.mp4", 8)
    rows = [{"file": f"{name}.mp4", "text": f"ä {name}, b", "kind": k} for k, name in enumerate(("b", "a", "b", "c"))]
    path = tmp_path / f"table.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, fieldnames=rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    arguments = {"video_column": "file", "root": tmp_path / "films"}
    table = VideoTable.from_table(path, Sampling(8), caption_column="text", label_column="kind", **arguments)
    assert [record.id for record in table] == ["b.mp4", "a.mp4", "b.mp4 (row 3)"]
    assert [(record.caption, record.label) for record in table][1:] == [("ä a, b", "1"), ("ä b, b", "2")]
    assert list(table.dropped) == ["c.mp4"] and "no such file" in table.dropped["c.mp4"]
    with pytest.raises(ValueError, match=r"row 1 has no column 'prompt', only file, text, kind"):
        VideoTable.from_table(path, Sampling(8), caption_column="prompt", **arguments)


def test_a_broken_table(tmp_path):
    path = tmp_path / "table.jsonl"
    for text, message in (('{"video": "a.mp4"}\n{"video":', "line 2 is no JSON"), ("3", "line 1 is 3, not an object")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            VideoTable.from_table(path, Sampling(8))


def test_a_dataset_of_parquet_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    films = [write(tmp_path / f"{count}.mp4", count).read_bytes() for count in (8, 9)] + [b"no video"]
    (tmp_path / "data").mkdir()
    videos = [{"bytes": film, "path": None} for film in films]
    pq.write_table(pa.table({"clip": videos, "text": ["a", "b", "c"]}), tmp_path / "data" / "train.parquet")
    table = VideoTable.from_dataset(tmp_path / "data", Sampling(8), video_column="clip", caption_column="text")
    assert [(record.id, record.caption) for record in table] == [("train/0", "a"), ("train/1", "b")]
    assert table.dropped["train/2"].startswith("unreadable: video of 8 bytes: no video")
    assert numbers(table.read(1, Window(1, 1, 8))) == list(range(1, 9))
    with pytest.raises(ValueError, match="There is no column 'video': give one of clip, text"):
        VideoTable.from_dataset(tmp_path / "data", Sampling(8))


def test_labels_are_folders_or_as_a_split_lists_them(tmp_path):
    """A folder a class; lists of UCF-101 as they are, with numbers for training and without for testing."""
    for name in ("Archery/v_1.mp4", "Archery/deeper/v_2.mp4", "Diving/v_3.mp4", "v_4.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, 8)
    sampling = Sampling(8, height=32, width=48)
    table = VideoTable.from_folder(tmp_path, sampling)
    assert {record.id: record.label for record in table} == {
        "Archery/deeper/v_2.mp4": "Archery",
        "Archery/v_1.mp4": "Archery",
        "Diving/v_3.mp4": "Diving",
        "v_4.mp4": None,
    }
    (tmp_path / "trainlist01.txt").write_text("Archery/v_1.mp4 1\nDiving/v_3.mp4 2\n")
    (tmp_path / "testlist01.txt").write_text("Diving/v_3.mp4\n")
    table = VideoTable.from_table(tmp_path / "trainlist01.txt", sampling)
    assert [(record.id, record.label) for record in table] == [
        ("Archery/v_1.mp4", "Archery"),
        ("Diving/v_3.mp4", "Diving"),
    ]
    assert [record.label for record in VideoTable.from_table(tmp_path / "testlist01.txt", sampling)] == ["Diving"]
    (tmp_path / "wrong.txt").write_text("Archery/v_1.mp4 1\nv_4.mp4 2\n")
    with pytest.raises(ValueError, match="line 2 is 'v_4.mp4 2', not CLASS/VIDEO"):
        VideoTable.from_table(tmp_path / "wrong.txt", sampling)


def test_class_labels_and_missing_captions_of_a_dataset(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = str(write(tmp_path / "video.mp4", 8))
    features = {"video": datasets.Value("string"), "kind": datasets.ClassLabel(names=["run", "jump"])}
    features |= {"text": datasets.Value("string")}
    rows = {"video": [path, path], "kind": [1, 0], "text": ["it jumps", None]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(
        tmp_path / "data" / "train.parquet"
    )
    table = VideoTable.from_dataset(
        tmp_path / "data", Sampling(8, height=32, width=48), caption_column="text", label_column="kind"
    )
    assert [(record.label, record.caption) for record in table] == [("jump", "it jumps"), ("run", None)]
    with pytest.raises(ValueError, match="no column 'words': give one of video, kind, text"):
        VideoTable.from_dataset(tmp_path / "data", Sampling(8), caption_column="words")


def test_simulated_scenes_are_captioned():
    sampling = Sampling(4, height=32, width=32)
    for world in ("physics", "orders"):
        table = VideoTable.simulated(3, 4, sampling=sampling, world=world)
        for index, record in enumerate(table):
            order = draw_order(FIRST_TRAINING_SEED + index)
            scene = order.simulate(FIRST_TRAINING_SEED + index, 4, size=32)
            if world == "physics":
                scene = simulate(seed=FIRST_TRAINING_SEED + index, num_frames=4, size=32)
            assert (record.caption, record.label) == (scene.caption, scene.kind)
            assert np.array_equal(table.read(index, Window(0, 1, 4)), scene.frames)


def test_simulated_scenes_begin_behind_those_for_evaluation():
    table = VideoTable.simulated(3, 9, sampling=Sampling(4, frame_interval=(2, 2), height=32, width=32))
    assert len(table) == 3 and table.size(2) == (32, 32)
    window = table.draw_window(2, 0, seed=0)
    scene = simulate(seed=FIRST_TRAINING_SEED + 2, num_frames=9, size=32).frames
    np.testing.assert_array_equal(table.read(2, window), scene[window.start :: 2][:4])
    with pytest.raises(ValueError, match="Scenes of 6 frames are too short"):
        VideoTable.simulated(3, 6, sampling=Sampling(4, frame_interval=(2, 2)))


def test_real_videos(shared_dir):
    """Every file of the folder: its packets tell the times at which its frames are shown, and windows hold them."""
    table = VideoTable.from_folder(shared_dir / "data" / "clips", Sampling(8, frame_interval=(1, 4), longest_side=64))
    assert not table.dropped and len(table) > 30
    for index in range(6, len(table), 9):
        window = table.draw_window(index, 0, seed=0)
        frames = table.read(index, window)
        whole = read_video(table[index].source, transform=table.sampling.resize)
        assert math.isclose(whole.timestamps[-1], table.infos[index].timestamps[-1], abs_tol=1e-9)
        np.testing.assert_array_equal(frames, whole.frames[table.frame_indices(index, window)])


# What tables and folders may hold


TWO_ROWS = [{"video": "a.mp4", "caption": "first line\u2028second\u0085third"}, {"video": "b.mp4", "caption": "ok"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in TWO_ROWS)
CSV = "video,caption\na.mp4,first line\u2028second\u0085third\nb.mp4,ok\n"
TABLES = {
    "separators.jsonl": LINES.encode(),
    "blank.jsonl": f"{LINES}\n\n".encode(),
    "windows.jsonl": LINES.replace("\n", "\r\n").encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "utf16.jsonl": LINES.encode("utf-16"),
    "utf16_big.jsonl": LINES.encode("utf-16-be"),
    "utf16_little.json": json.dumps(TWO_ROWS).encode("utf-16-le"),
    "utf16_little.csv": CSV.encode("utf-16-le"),
    "utf32.jsonl": LINES.encode("utf-32"),
    "utf32_big.csv": CSV.encode("utf-32-be"),
    "utf32_mark.csv": codecs.BOM_UTF32_BE + CSV.encode("utf-32-be"),
    "UPPER.JSONL": LINES.encode(),
    "lines.ndjson": LINES.encode(),
    "lines.json": LINES.encode(),
    "list.json": json.dumps(TWO_ROWS).encode(),
    "table.csv": CSV.encode(),
    "table.CSV": CSV.replace("\n", "\r\n").encode("utf-16"),
    "leading.csv": f"\n \r\n,\n{CSV}".encode(),
    "leading_mark.csv": f"\n{CSV}".encode("utf-8-sig"),
    "table.tsv": "video\tcaption\na.mp4\tfirst line\u2028second\u0085third\nb.mp4\tok\n".encode("utf-8-sig"),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_the_same(tmp_path, name):
    (tmp_path / name).write_bytes(TABLES[name])
    assert read_table(tmp_path / name) == TWO_ROWS


@pytest.mark.parametrize(
    "name, data, message",
    [
        (
            "table.csv",
            b"video,caption\na.mp4,caf\xe9\n",
            r"line 2 is not UTF-8 \(byte 0xe9\); save the table as UTF-8.*cp1252",
        ),
        ("table.jsonl", b'{"video": "caf\xe9"}', "line 1 is not UTF-8"),
        ("table.csv", b"\xef\xbb\xbfvideo\ncaf\xe9", r"line 2 is not UTF-8 \(byte 0xe9\)"),
        (
            "table.csv",
            "video\nਗ\na".encode("utf-16-le") + b"\x00",
            "line 3 is not UTF-16",
        ),  # ਗ holds the byte of a line feed
        ("table.csv", "video\na".encode("utf-32") + b"\x00", "line 2 is not UTF-32"),
        ("table.jsonl", b'{"video": "a"}\n\n' + b"[" * 100_000, "line 3 is no JSON"),
        ("table.json", b'[{"video": "a"}, 3]', "row 2 is 3, not an object"),
        ("table.xlsx", b"PK", "a table of videos ends in .csv, .tsv"),
        ("table.csv", b'video\n"' + b"a" * 200_000, "line 1 is no CSV"),
    ],
)
def test_tables_that_are_none(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name)


def test_a_header_does_not_steer_the_terminal_of_a_script(tmp_path):
    (tmp_path / "table.csv").write_text("file\x1b[2J\na.mp4\n")
    with pytest.raises(SystemExit) as said:
        run_script(lambda: VideoTable.from_table(tmp_path / "table.csv", Sampling(8)))
    assert "\x1b" not in str(said.value) and r"no column 'video', only file\x1b[2J" in str(said.value)

    def refuse(code):
        raise SystemExit(code)

    for code, expected in (("run\x1b[2J is there", r"run\x1b[2J is there"), (3, 3)):
        with pytest.raises(SystemExit) as said:
            run_script(lambda code=code: refuse(code))
        assert said.value.code == expected


def test_names_with_spaces_in_lists(tmp_path):
    (tmp_path / "list.txt").write_text("Apply Eye Makeup/v 1.avi 12\nDiving/v_2.avi\n\n")
    assert read_table(tmp_path / "list.txt") == [
        {"video": "Apply Eye Makeup/v 1.avi", "label": "Apply Eye Makeup"},
        {"video": "Diving/v_2.avi", "label": "Diving"},
    ]


def test_a_row_without_a_video_is_one_dropped_video(tmp_path):
    write(tmp_path / "a.mp4", 8)
    (tmp_path / "table.csv").write_text("caption,video\nx,a.mp4\ny\nz,\n")
    table = VideoTable.from_table(tmp_path / "table.csv", Sampling(8), max_bad_fraction=0.9)
    assert len(table) == 1 and list(table.dropped) == ["row 2", "row 3"]
    for cell in (None, 3.0, {"path": None}, "nothing://a.mp4"):
        with pytest.raises(VideoReadError):
            video_of(cell)


def test_linked_folders_and_other_files_are_counted(tmp_path):
    root, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    write(root / "a.mp4", 8)
    write(elsewhere / "deeper" / "b.mp4", 8)
    for name in ("notes.txt", "more.TXT", "README"):
        (root / name).write_text("no video")
    (root / "linked").symlink_to(elsewhere, target_is_directory=True)
    (root / "again").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "loop").symlink_to(elsewhere, target_is_directory=True)
    (root / "up").symlink_to(tmp_path, target_is_directory=True)
    (root / "self").symlink_to(root, target_is_directory=True)
    table = VideoTable.from_folder(root, Sampling(8))
    assert [record.id for record in table] == ["a.mp4", "again/deeper/b.mp4"]
    counts = {".txt": 2, "without a suffix": 1, "linked folders that lead back": 4}
    assert table.dropped.passed_over == counts
    assert (
        "0 of 2 videos dropped; besides 7 not looked at (4 linked folders that lead back, 2 .txt"
        in table.dropped.summary()
    )


def test_a_file_with_several_names_is_one_video(tmp_path):
    """Else it would be trained on and held out."""
    root, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    write(root / "own" / "b.mp4", 8)
    write(elsewhere / "sub" / "deeper" / "c.mp4", 8)
    write(elsewhere / "d.mp4", 8)
    for name, target in (("l1", elsewhere), ("l2", elsewhere / "sub"), ("l3", elsewhere / "sub" / "deeper")):
        (root / name).symlink_to(target, target_is_directory=True)
    (root / "a.mp4").symlink_to(root / "own" / "b.mp4")
    (root / "e.mp4").symlink_to(elsewhere / "d.mp4")
    os.link(root / "own" / "b.mp4", root / "own" / "c.mp4")
    (root / "nowhere.mp4").symlink_to(tmp_path / "missing.mp4")
    (root / "nothing.mp4").symlink_to(tmp_path / "missing.mp4")
    table = VideoTable.from_folder(root, Sampling(8))
    assert sorted(os.path.realpath(record.source) for record in table) == [
        str(elsewhere / "d.mp4"),
        str(elsewhere / "sub" / "deeper" / "c.mp4"),
        str(root / "own" / "b.mp4"),
    ]
    assert [record.id for record in table] == ["e.mp4", "l3/c.mp4", "own/b.mp4"]
    assert list(table.dropped) == ["nothing.mp4", "nowhere.mp4"]
    assert table.dropped.passed_over == {"folders entered by another link": 2, "second names of a video": 3}


def test_a_name_with_half_a_character_is_one_dropped_video(tmp_path, capsys):
    write(tmp_path / "a.mp4", 8)
    rows = [
        r'{"video": "\ud800.mp4", "caption": "", "label": ""}',
        r'{"video": "a.mp4", "caption": "x\udfff", "label": "\ud800"}',
    ]
    (tmp_path / "table.jsonl").write_text("\n".join(rows))
    table = VideoTable.from_table(
        tmp_path / "table.jsonl", Sampling(8), caption_column="caption", label_column="label", max_bad_fraction=0.5
    )
    path = report_dropped(table.dropped, tmp_path / "run")
    assert r"\ud800.mp4" in capsys.readouterr().out and r"\ud800.mp4" in path.read_text(encoding="utf-8")
    assert list(table.dropped) == [r"\ud800.mp4"] and table[0].caption == r"x\udfff" and table[0].label == r"\ud800"
    table.dropped.max_bad_fraction = 1
    table.dropped.add("\ud801", "unreadable: \ud802")
    assert r"\ud801,unreadable,\ud802" in path.read_text(encoding="utf-8")


def test_names_of_any_bytes_are_ids(tmp_path, capsys):
    write(tmp_path / "a.mp4", 8)
    data = (tmp_path / "a.mp4").read_bytes()
    with open(os.fsencode(tmp_path) + b"/caf\xe9.mp4", "wb") as file:
        file.write(data)
    (tmp_path / "=1+1 \x1b[2J.mp4").write_text("no video")
    table = VideoTable.from_folder(tmp_path, Sampling(8))
    assert [record.id for record in table] == ["a.mp4", "caf\\xe9.mp4"]
    assert table.read(1, table.draw_window(1, 0, seed=0)).shape == (8, 32, 48, 3)
    path = report_dropped(table.dropped, tmp_path / "run")
    assert "\x1b" not in capsys.readouterr().out
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1][0] == "'=1+1 \x1b[2J.mp4"


def test_a_console_without_the_letters_of_a_name(tmp_path, monkeypatch):
    (tmp_path / "видео.mp4").write_text("no video")
    write(tmp_path / "a.mp4", 8)
    table = VideoTable.from_folder(tmp_path, Sampling(8))
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", console)
    report_dropped(table.dropped, tmp_path / "run")
    assert rb"\u0432" in console.buffer.getvalue()


def test_content_counts(tmp_path):
    """Other bytes under the same name, of the same length too, another caption, another label."""

    def content():
        return VideoTable.from_table(
            tmp_path / "table.csv", Sampling(8), caption_column="text", label_column="kind"
        ).content_hash()

    write(tmp_path / "a.mp4", 8)
    hashes = []
    for text in ("video,text,kind\na.mp4,x,1\n", "video,text,kind\na.mp4,y,1\n", "video,text,kind\na.mp4,x,2\n"):
        (tmp_path / "table.csv").write_text(text)
        hashes.append(content())
        assert hashes[-1] == content()
    (tmp_path / "table.csv").write_text("video,text,kind\na.mp4,x,1\n")
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    data[-5] ^= 1
    (tmp_path / "a.mp4").write_bytes(data)
    hashes.append(content())
    assert len(set(hashes)) == 4
    scenes = [
        VideoTable.simulated(2, 8, sampling=Sampling(8, height=32, width=32), first_seed=seed) for seed in (0, 0, 1)
    ]
    assert scenes[0].content_hash() == scenes[1].content_hash() != scenes[2].content_hash()


def test_metadata_in_latin_1_is_no_reason_to_stop(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Cafe XX"
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for pixels in numbered(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes().replace(b"Cafe XX", b"Caf\xe9 XX")
    path.write_bytes(data)
    (tmp_path / "b.mp4").write_bytes(data.replace(b"avc1", b"QQQQ"))
    table = VideoTable.from_folder(tmp_path, Sampling(8))
    assert len(table) == 1 and "no decoder" in table.dropped["b.mp4"]


@pytest.mark.parametrize("options", [{"longest_side": 0}, {"height": 0, "width": 0}, {"fps": 1e9}, {"fps": math.nan}])
def test_samplings_out_of_range(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"{name}={options[name]}"):
        Sampling(8, **options)
