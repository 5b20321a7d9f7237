"""Batches from WebDataset shards and parquet files that are made here, read as streams."""

import io
import itertools
import json
import shutil
import tarfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.data.streaming import StreamedBatches
from diffusers_videogpt.data.videos import report_dropped
from diffusers_videogpt.video_io import write_video


SAMPLING = Sampling(4, frame_interval=(1, 2))


def film(folder, number, width):
    """Its frames are of one grey, which tells its number."""
    frames = np.full((10, 32, width, 3), 4 * number, np.uint8)
    return write_video(folder / f"{number}.mp4", frames, fps=10, crf=1).read_bytes()


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """24 videos, every sixth of another size, and two that are none."""
    folder = tmp_path_factory.mktemp("films")
    data = [film(folder, number, 64 if number % 6 == 0 else 48) for number in range(24)]
    return data[:5] + [b"no video"] + data[5:20] + [b"none either"] + data[20:]


@pytest.fixture(scope="module")
def shards(films, tmp_path_factory):
    """Four tar files."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for number in range(shard, len(films), 4):
                for suffix, data in (("mp4", films[number]), ("txt", f"number {number}".encode())):
                    info = tarfile.TarInfo(f"clip{number:02d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def make(folder, column="mp4", **options):
    arguments = {"batch_size": 2, "video_column": column, "pool_size": 5, "seed": 1, **options}
    return StreamedBatches(folder, SAMPLING, **arguments)


def take(batches, count):
    return list(itertools.islice(batches, count))


def same(first, second):
    return len(first) == len(second) and all(
        a["frames"].equal(b["frames"])
        and all(a[name] == b[name] for name in ("ids", "windows", "captions", "step", "slots"))
        for a, b in zip(first, second, strict=True)
    )


def numbers(batches):
    return [round(frames.float().mean().item() / 4) for batch in batches for frames in batch["frames"]]


def test_batches_are_like_those_of_a_table(shards, tmp_path, capsys):
    batches = make(shards, accumulation=2, num_processes=2, rank=1, caption_column="txt")
    report_dropped(batches.dropped, tmp_path)
    first = take(batches, 40)
    assert [(b["step"], b["slots"]) for b in first[:3]] == [(0, [2, 3]), (0, [6, 7]), (1, [2, 3])]
    for batch in first:
        assert batch["frames"].shape in {(2, 4, 32, 48, 3), (2, 4, 32, 64, 3)}
        assert {"broken", "num_seen"}.isdisjoint(batch)
    # In a pass each process reads shards of its own.
    other = take(make(shards, num_processes=2, rank=0), 3)
    ids, other_ids = ({id for batch in part[:3] for id in batch["ids"]} for part in (first, other))
    assert len(ids) == len(other_ids) == 6 and ids.isdisjoint(other_ids)
    assert all(caption == f"number {int(id[-2:])}" for b in first for id, caption in zip(b["ids"], b["captions"], strict=True))  # fmt: skip
    assert {id[-6:] for id in batches.dropped} == {"clip05", "clip21"} and batches.dropped.num_seen >= 80
    assert 'clip21,unreadable,"video of 11 bytes' in (tmp_path / "dropped_videos.csv").read_text()


def test_a_pass_holds_every_video_once_and_passes_differ(shards):
    stream = numbers(take(make(shards), 48))
    counts = Counter(stream)
    assert set(counts) == set(range(24))
    # Four passes: what waits in the pool, or is repeated to fill a batch up, makes the difference.
    assert all(2 <= count <= 6 for count in counts.values())
    assert stream[:24] != stream[24:48] and stream != numbers(take(make(shards, seed=2), 48))


def test_windows_differ_between_passes(shards):
    windows = {}
    for batch in take(make(shards), 60):
        for id, window in zip(batch["ids"], batch["windows"], strict=True):
            windows.setdefault(id, []).append(window)
    assert all(len(set(found)) > 1 for found in windows.values())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_exact_at_every_batch(shards, num_workers):
    batches, straight, states = make(shards, num_workers=num_workers), [], []
    for batch in batches:
        straight.append(batch)
        states.append(json.dumps(batches.state_dict()))
        if len(straight) == 40:
            break
    for place in (0, 1, 6, 27) if num_workers else range(0, 36, 5):
        resumed = make(shards, num_workers=num_workers)
        resumed.load_state_dict(json.loads(states[place]))
        assert same(take(resumed, 4), straight[place + 1 : place + 5]), place


def test_a_state_of_another_stream_is_refused(shards, tmp_path):
    other = shutil.copytree(shards, tmp_path / "other")
    state = make(shards).state_dict()
    for change, message in (
        ({"num_processes": 2}, "num_processes was 1 and is 2"),
        ({"num_workers": 2}, "num_workers was 0 and is 2"),
        ({"batch_size": 4}, "batch_size was 2 and is 4"),
        ({"accumulation": 2}, "accumulation was 1 and is 2"),
        ({"name": other}, "dataset was .*shards.* and is .*other"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**{"folder": change.pop("name", shards)} | change).load_state_dict(state)
    with pytest.raises(ValueError, match="4 shards for 2 processes: use at most 2 workers, not 3"):
        make(shards, num_processes=2, num_workers=3)
    with pytest.raises(ValueError, match="no column 'video': give one of mp4, txt"):
        make(shards, column="video")


@pytest.mark.parametrize("changed", ["mp4", "txt"])
def test_other_content_under_the_same_names_is_refused(films, shards, tmp_path, changed):
    """Of what waited in the pool, which is read again, another video or another caption."""
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    options = {"caption_column": "txt", "pool_size": 30}
    batches = make(folder, **options)
    take(batches, 1)
    state = json.loads(json.dumps(batches.state_dict()))
    make(folder, **options).load_state_dict(state)
    for path in folder.iterdir():
        with tarfile.open(path) as tar:
            members = [(member, tar.extractfile(member).read()) for member in tar]
        with tarfile.open(path, "w") as tar:
            for member, data in members:
                if member.name.endswith(changed):  # as long as it was
                    data = {"mp4": films[-1], "txt": b"a horse..."}[changed][: len(data)].ljust(len(data), b"\0")
                tar.addfile(member, io.BytesIO(data))
    resumed = make(folder, **options)
    resumed.load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"clip\d\d is not what it was when the run was begun: another video, caption"
    ):
        take(resumed, 1)


def test_rare_shapes_do_not_wait_for_ever(shards):
    """Batches of 5 of a shape that one video in six has: filled up when it has waited too long."""
    batches = take(make(shards, batch_size=5, pool_size=5), 40)
    wide = [batch for batch in batches if batch["frames"].shape[3] == 64]
    assert wide and Counter(numbers(wide)).keys() <= {0, 6, 12, 18}


def test_parquet_with_two_workers(films, tmp_path):
    for shard in range(2):
        videos = [{"bytes": data, "path": f"{shard}/{i}.mp4"} for i, data in enumerate(films[shard::2])]
        pq.write_table(pa.table({"video": videos, "text": ["a"] * len(videos)}), tmp_path / f"{shard}.parquet")
    batches = make(tmp_path, column="video", num_workers=2)
    first = take(batches, 6)
    resumed = make(tmp_path, column="video", num_workers=2)
    resumed.load_state_dict(json.loads(json.dumps(batches.state_dict())))
    assert same(take(resumed, 6), take(batches, 6))
    assert first[0]["ids"][0].endswith(".mp4")


def test_a_stream_of_bad_videos_stops(tmp_path):
    videos = [{"bytes": b"no video", "path": None}] * 30
    pq.write_table(pa.table({"video": videos}), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=r"20 of 20 videos dropped \(20 unreadable\)"):
        take(make(tmp_path, column="video"), 1)
    pq.write_table(pa.table({"video": videos[:5]}), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="5 of 5 videos dropped"):
        take(make(tmp_path, column="video"), 1)
    with pytest.raises(ValueError, match="No usable video in a whole pass: 5 of 5"):
        take(make(tmp_path, column="video", max_bad_fraction=1.0), 1)
