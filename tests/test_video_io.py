"""Reading by timestamp, sizes, writing: on files made here, whose pictures carry their own index in binary."""

import itertools
import multiprocessing
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_videogpt import pictures, video_io
from diffusers_videogpt.video_io import (
    VideoReadError,
    probe_video,
    read_video,
    target_size,
    to_uint8_frames,
    write_video,
)


HEIGHT, WIDTH = 48, 96


def numbered_frame(index, height=HEIGHT, width=WIDTH):
    """Eight vertical bars, white where the bit of `index` is set: survives any lossy codec."""
    bits = [255 * (index >> bit & 1) for bit in range(8)]
    row = np.repeat(bits, -(-width // 8))[:width].astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def numbers(frames):
    """The index that each frame carries."""
    bar = -(-frames.shape[2] // 8)
    bars = [frames[:, 6:-6, bit * bar + 4 : (bit + 1) * bar - 4].mean(axis=(1, 2, 3)) > 127 for bit in range(8)]
    return sum(bars[bit].astype(int) << bit for bit in range(8)).tolist()


def encode(path, ticks, time_base=Fraction(1, 30), codec="libx264", **container_options):
    """Writes numbered frame i at `ticks[i]`, with B-frames and a key frame every 15 where the codec has them."""
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=Fraction(30), options={"g": "15", "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = time_base
        for index, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(numbered_frame(index), format="rgb24")
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source, path, shift, **container_options):
    """Copies the packets of `source` with every timestamp moved by `shift` seconds."""
    options = {"avoid_negative_ts": "disabled", **container_options}
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        template = old.streams.video[0]
        stream = new.add_stream_from_template(template)
        ticks = round(shift / template.time_base)
        for packet in old.demux(template):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, stream
                new.mux(packet)
    return path


def on_screen(stamps, times):
    """The slow, obvious twin of resampling: the last frame stamped at or before each time."""
    return [max(i for i, stamp in enumerate(stamps) if stamp <= time) for time in times]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """60 frames at 30 per second, index in front so that a cut file still opens."""
    return encode(tmp_path_factory.mktemp("plain") / "plain.mp4", range(60), movflags="faststart")


# Reading by time


@pytest.mark.parametrize(
    "suffix, codec", [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx")]
)
def test_every_frame_in_order(tmp_path, suffix, codec):
    video = read_video(encode(tmp_path / f"film.{suffix}", range(40), codec=codec))
    assert video.frames.shape == (40, HEIGHT, WIDTH, 3) and video.frames.dtype == np.uint8
    assert numbers(video.frames) == list(range(40))
    np.testing.assert_allclose(video.timestamps, np.arange(40) / 30, atol=1e-3)
    assert video.fps == 30


@pytest.mark.parametrize("fps", [5, 7, 12.5, 24, 25, 30, 50, 60])
def test_resampling_shows_the_frame_on_screen(plain, fps):
    video = read_video(plain, fps=fps)
    times = [Fraction(k) / Fraction(fps) for k in range(int(2 * fps))]
    assert numbers(video.frames) == on_screen([Fraction(i, 30) for i in range(60)], times)
    np.testing.assert_allclose(video.timestamps, np.array(times, float), atol=1e-9)
    assert video.fps == fps


@pytest.mark.parametrize("first", [0, 1, 2])
def test_rounded_timestamps_do_not_shift_frames(tmp_path, first):
    # Matroska rounds to milliseconds: 30 per second becomes 33, 67, 100, …, with any of these as the first.
    path = encode(tmp_path / "film.mkv", range(first, first + 60))
    for fps, step in ((30, 1), (15, 2), (10, 3)):
        assert numbers(read_video(path, fps=fps).frames) == list(range(0, 60, step))
    for k in range(0, 60, 7):
        assert numbers(read_video(path, start=k / 30, max_frames=1).frames) == [k]


@pytest.mark.parametrize("suffix, codec", [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx")])
def test_variable_frame_rate(tmp_path, suffix, codec):
    ticks = list(itertools.accumulate([0] + [1, 3, 2, 5, 1, 1, 8, 2] * 5))
    path = encode(tmp_path / f"film.{suffix}", ticks, time_base=Fraction(1, 50), codec=codec)
    stamps = [Fraction(tick, 50) for tick in ticks]
    video = read_video(path)
    assert numbers(video.frames) == list(range(41))
    np.testing.assert_allclose(video.timestamps, np.array(stamps, float), atol=1e-3)
    assert video.fps == pytest.approx(40 / float(stamps[-1]), rel=1e-3)
    for fps in (10, 25, 50):
        resampled = read_video(path, fps=fps, max_frames=int(stamps[-1] * fps))
        assert numbers(resampled.frames) == on_screen(stamps, [Fraction(k, fps) for k in range(len(resampled.frames))])


@pytest.mark.parametrize("interval", [1, 3, 4, 12])
def test_frame_interval(plain, interval):
    video = read_video(plain, frame_interval=interval, start=0.5)
    assert numbers(video.frames) == list(range(15, 60, interval))
    assert video.fps == pytest.approx(30 / interval)


@pytest.mark.parametrize("suffix, codec", [("mp4", "libx264"), ("ts", "libx264"), ("webm", "libvpx"), ("gif", "gif")])
def test_start_seeks_to_the_same_frames(tmp_path, suffix, codec):
    path = tmp_path / f"film.{suffix}"
    if codec == "gif":
        write_video(path, [numbered_frame(i) for i in range(60)], fps=20)
    else:
        encode(path, range(60), codec=codec)
    whole = read_video(path)
    for first in (1, 14, 15, 31, 59):
        # Between the time of this frame and the next: this one is on screen.
        start = whole.timestamps[first] + 0.01
        part = read_video(path, start=start)
        np.testing.assert_array_equal(part.frames, whole.frames[first:])
        np.testing.assert_array_equal(part.timestamps, whole.timestamps[first:])
        assert numbers(read_video(path, start=start, fps=10, max_frames=1).frames) == [first]
    with pytest.raises(VideoReadError, match="0 frames could be read from 100 s"):
        read_video(path, start=100)


def test_edit_list_hides_the_first_frames(tmp_path, plain):
    path = remux(plain, tmp_path / "edited.mp4", shift=Fraction(-7, 30))
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 60
    video = read_video(path)
    assert numbers(video.frames) == list(range(7, 60))
    np.testing.assert_allclose(video.timestamps, np.arange(53) / 30, atol=1e-4)
    assert numbers(read_video(path, start=1.0).frames) == list(range(37, 60))


@pytest.mark.parametrize("suffix, shift", [("mp4", 3), ("ts", 5), ("ts", Fraction(-1, 3)), ("mkv", Fraction(-1, 3))])
def test_time_counts_from_the_first_frame(tmp_path, plain, suffix, shift):
    path = remux(plain, tmp_path / f"shifted.{suffix}", Fraction(shift))
    video = read_video(path)
    assert numbers(video.frames) == list(range(60))
    np.testing.assert_allclose(video.timestamps, np.arange(60) / 30, atol=2e-3)
    assert numbers(read_video(path, fps=15, start=0.2).frames) == list(range(6, 60, 2))


def test_a_frame_replaced_at_its_own_time_is_never_seen(tmp_path):
    # Matroska's milliseconds put three frames at 100.
    path = encode(tmp_path / "film.mkv", [0, 1000, 1002, 1004, 2000], time_base=Fraction(1, 10_000), codec="libvpx")
    video = read_video(path)
    assert numbers(video.frames) == [0, 3, 4]
    np.testing.assert_allclose(video.timestamps, [0, 0.1, 0.2])


def test_a_stream_without_timestamps(tmp_path):
    path = encode(tmp_path / "raw.h264", range(40))
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).pts is None
    video = read_video(path)
    assert numbers(video.frames) == list(range(40))
    np.testing.assert_allclose(video.timestamps, np.arange(40) / 30, atol=1e-6)
    assert video.fps == pytest.approx(30)
    assert numbers(read_video(path, fps=10, start=0.5).frames) == [15, 18, 21, 24, 27, 30, 33, 36, 39]


@pytest.mark.parametrize("lie", [7, 100_000])
def test_a_lying_frame_count(tmp_path, lie):
    path = encode(tmp_path / "film.avi", range(40), codec="mpeg4")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, lie)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, lie)
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == lie
    assert numbers(read_video(path).frames) == list(range(40))


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_rotation_metadata(tmp_path, quarter_turns):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :32] = (255, 0, 0)
    path = write_video(tmp_path / "film.mp4", np.stack([picture] * 5), fps=10)
    # The display matrix of the track header: clockwise by `quarter_turns`.
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    data = bytearray(path.read_bytes())
    matrix = (cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, *matrix)
    path.write_bytes(data)
    expected = np.rot90(picture, k=-quarter_turns)
    frames = read_video(path).frames
    assert frames.shape == (5, *expected.shape)
    assert np.abs(frames[0].astype(int) - expected).mean() < 3


def test_gif_and_webp(tmp_path):
    frames = [Image.fromarray(numbered_frame(i)) for i in range(1, 13)]
    durations = [50, 100, 250] * 4
    for name in ("film.gif", "film.webp"):
        path = tmp_path / name
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations)
        video = read_video(path)
        assert numbers(video.frames) == list(range(1, 13))
        np.testing.assert_allclose(video.timestamps, np.cumsum([0, *durations[:-1]]) / 1000, atol=1e-9)
        stamps = [Fraction(stamp, 1000) for stamp in itertools.accumulate([0, *durations[:-1]])]
        expected = on_screen(stamps, [Fraction(k, 10) for k in range(16)])
        assert numbers(read_video(path, fps=10).frames) == [1 + index for index in expected]


def test_frames_of_webp_are_made_when_they_are_taken(tmp_path, monkeypatch):
    """A long film in a small file must not fill the memory."""
    made, upright = [], pictures.upright
    monkeypatch.setattr(pictures, "upright", lambda image: made.append(image.tell()) or upright(image))
    frames = [Image.fromarray(numbered_frame(i)) for i in range(40)]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:], duration=50)
    assert numbers(read_video(tmp_path / "film.webp", max_frames=3).frames) == [0, 1, 2]
    assert made == [0, 1, 2]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_picture_is_a_video_of_one_frame(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(numbered_frame(37)).save(path)
    video = read_video(path, fps=8, start=1.0)
    assert numbers(video.frames) == [37] and video.fps is None and video.timestamps.tolist() == [0.0]
    with pytest.raises(VideoReadError, match="1 frames could be read .* 8 are needed"):
        read_video(path, min_frames=8)


def test_first_or_last_frames_without_the_others(plain):
    converted = []

    def transform(frame):
        converted.append(numbers(frame[None])[0])
        return frame[::2, ::2]

    assert read_video(plain, max_frames=3, transform=transform).frames.shape == (3, HEIGHT // 2, WIDTH // 2, 3)
    assert converted == [0, 1, 2]
    converted.clear()
    video = read_video(plain, max_frames=3, from_end=True, frame_interval=4, transform=transform)
    # Only these were ever turned into arrays.
    assert converted == [48, 52, 56]
    np.testing.assert_allclose(video.timestamps, [48 / 30, 52 / 30, 56 / 30])
    assert video.fps == 7.5


# Looking without decoding


def make_film(kind, folder, plain):
    path = folder / "film.mp4"
    if kind == "variable":
        return encode(path, list(itertools.accumulate([0] + [1, 3, 2, 5, 1, 1, 8, 2] * 5)), time_base=Fraction(1, 50))
    if kind == "edit list":
        return remux(plain, path, Fraction(-7, 30))
    if kind in ("late", "negative"):
        return remux(plain, path.with_suffix(".mkv"), Fraction(3) if kind == "late" else Fraction(-1, 3))
    if kind == "replaced":
        return encode(path.with_suffix(".mkv"), [0, 1000, 1002, 1004], time_base=Fraction(1, 10_000), codec="libvpx")
    if kind == "truncated":
        path.write_bytes(plain.read_bytes()[: plain.stat().st_size * 7 // 10])
        return path
    if kind == "broadcast":
        data = remux(plain, path.with_suffix(".ts"), Fraction(0)).read_bytes()
        path.write_bytes(data[len(data) * 3 // 10 // 188 * 188 :])
        return path
    if kind == "glued":
        path.write_bytes(remux(plain, path.with_suffix(".ts"), Fraction(0)).read_bytes() * 2)
        return path
    if kind == "hidden":
        source = encode(folder / "shown.webm", range(40), codec="libvpx")
        with av.open(str(source)) as old, av.open(str(folder / "film.webm"), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                data = bytearray(packet)
                if packet.pts in (333, 867):
                    data[0] &= ~16  # its bit "show this frame"
                copy = av.Packet(bytes(data))
                copy.pts, copy.dts, copy.is_keyframe, copy.stream = packet.pts, packet.dts, packet.is_keyframe, stream
                if packet.size:
                    new.mux(copy)
        return folder / "film.webm"
    if kind in ("avi", "h264"):
        return encode(folder / f"film.{kind}", range(40), codec="mpeg4" if kind == "avi" else "libx264")
    return write_video(folder / f"film.{kind}", [numbered_frame(i) for i in range(30)], fps=10)


KINDS = ["variable", "edit list", "late", "negative", "replaced", "truncated", "broadcast", "glued", "hidden"]


@pytest.mark.parametrize("kind", [*KINDS, "avi", "h264", "mp4", "webm", "gif"])
def test_probing_finds_the_timestamps_of_decoding(tmp_path, plain, kind):
    path = make_film(kind, tmp_path, plain)
    video, info = read_video(path), probe_video(path)
    assert (info.height, info.width) == video.frames.shape[1:3]
    np.testing.assert_allclose(info.timestamps, video.timestamps, rtol=0, atol=1e-9)
    # With the origin known, reading from anywhere gives the same frames.
    for index in (1, info.num_frames // 2, info.num_frames - 1):
        part = read_video(path, start=info.timestamps[index], origin=info.origin)
        np.testing.assert_array_equal(part.frames, video.frames[index:])


def test_probing_decodes_one_frame(plain, monkeypatch):
    decoded = []
    decode = video_io._decode
    monkeypatch.setattr(video_io, "_decode", lambda *x, **y: (decoded.append(f.pts) or f for f in decode(*x, **y)))
    info = probe_video(plain)
    assert len(decoded) == 1
    decoded.clear()
    read_video(plain, start=info.timestamps[20], origin=info.origin, max_frames=5)
    assert len(decoded) == len(set(decoded)) <= 12


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp"])
def test_bytes_are_read_like_the_file(tmp_path, suffix):
    path = tmp_path / f"film.{suffix}"
    if suffix == "webp":
        frames = [Image.fromarray(numbered_frame(i)) for i in range(40)]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    else:
        write_video(path, [numbered_frame(i) for i in range(40)], fps=10)
    whole, info = read_video(path), probe_video(path.read_bytes())
    np.testing.assert_array_equal(read_video(path.read_bytes()).frames, whole.frames)
    part = read_video(path.read_bytes(), start=info.timestamps[9], origin=info.origin)
    np.testing.assert_array_equal(part.frames, whole.frames[9:])
    for data in (b"", b"no video at all", path.read_bytes()[:40]):
        with pytest.raises(VideoReadError, match=f"video of {len(data)} bytes: "):
            probe_video(data)


# Files that are not what was asked for


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_truncated_file_gives_the_frames_before_the_cut(tmp_path, plain, suffix):
    source = plain if suffix == "mp4" else remux(plain, tmp_path / f"whole.{suffix}", Fraction(0))
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(source.read_bytes()[: source.stat().st_size * 7 // 10])
    found = numbers(read_video(path).frames)
    assert 10 < len(found) < 60
    # The very last pictures may have lost a neighbour (B-frames are stored out of order).
    assert found[:-4] == list(range(len(found) - 4)) and found == sorted(set(found))
    with pytest.raises(VideoReadError, match=rf"cut.{suffix}: {len(found)} frames could be read .* 60 are needed"):
        read_video(path, min_frames=60)


def test_half_a_picture_is_no_frame(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), np.uint8)
    path = remux(write_video(tmp_path / "a.mp4", noise, fps=10), tmp_path / "b.mp4", Fraction(0), movflags="faststart")
    whole = read_video(path).frames
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[1:]:
        cut = tmp_path / "cut.mp4"
        cut.write_bytes(path.read_bytes()[: packet.pos + packet.size // 2])
        frames = read_video(cut).frames
        np.testing.assert_array_equal(frames, whole[: len(frames)])


def test_a_stream_cut_out_of_a_broadcast(tmp_path, plain):
    data = remux(plain, tmp_path / "whole.ts", Fraction(0)).read_bytes()
    path = tmp_path / "late.ts"
    path.write_bytes(data[len(data) * 3 // 10 // 188 * 188 :])
    found = numbers(read_video(path).frames)
    # It begins at the first whole key frame; there is one every 15 frames.
    assert found[0] in (15, 30) and found == list(range(found[0], 60))


def test_a_picture_lost_at_the_start_of_a_broadcast(tmp_path, plain):
    data = remux(plain, tmp_path / "whole.ts", Fraction(0)).read_bytes()
    path = tmp_path / "hole.ts"
    # Leave out one transport packet after the other, until it is one that the first picture needs.
    for place in range(0, 188 * 20, 188):
        path.write_bytes(data[:place] + data[place + 188 :])
        with av.open(str(path)) as container:
            if next(container.demux(video=0)).is_corrupt:
                break
    assert numbers(read_video(path).frames) == list(range(15, 60))


def test_streams_glued_together(tmp_path, plain):
    """Timestamps jump back to zero, and the picture changes its size, in the middle of the file."""
    first = remux(plain, tmp_path / "first.ts", Fraction(0))
    frames = [numbered_frame(100 + i, 2 * HEIGHT, 2 * WIDTH) for i in range(20)]
    second = remux(write_video(tmp_path / "second.mp4", frames, fps=30), tmp_path / "second.ts", Fraction(0))
    path = tmp_path / "glued.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    video = read_video(path)
    assert video.frames.shape[1:3] == (HEIGHT, WIDTH)
    assert numbers(video.frames) == [*range(60), *range(100, 120)]
    np.testing.assert_allclose(video.timestamps, np.arange(80) / 30, atol=1e-3)


def test_damage_in_the_middle_ends_the_video(tmp_path, plain):
    data = bytearray(plain.read_bytes())
    place = len(data) * 7 // 10
    data[place : place + 300] = bytes(300)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    found = numbers(read_video(path).frames)
    assert 10 < len(found) < 45 and found == list(range(len(found)))


def test_damage_that_the_decoder_paints_over_ends_the_video(tmp_path, plain):
    """A few bytes changed inside a picture: it is decoded, from its neighbours, and so are those that refer to it."""
    with av.open(str(plain)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    found = set()
    for place, size in packets[20:40]:
        data = bytearray(plain.read_bytes())
        for i in range(place + size // 3, place + size // 3 + min(size, 30)):
            data[i] = (data[i] * 7 + 13) % 256
        path = tmp_path / "damaged.mp4"
        path.write_bytes(data)
        with av.open(str(path)) as container:
            try:
                painted = [i for i, frame in enumerate(container.decode(video=0)) if frame.is_corrupt]
            except av.error.FFmpegError:
                continue  # the other test's case
        if painted:
            frames = read_video(path).frames
            assert len(frames) == painted[0]
            found.add(len(frames))
    assert found


def test_damage_at_the_start_is_passed_over(tmp_path, plain):
    with av.open(str(plain)) as container:
        first = next(container.demux(video=0))
        place, size = first.pos, first.size
    data = bytearray(plain.read_bytes())
    data[place : place + size] = bytes(size)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    # Nothing up to the next key frame can be right.
    assert numbers(read_video(path).frames) == list(range(15, 60))


def make_no_video(path, kind):
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("This is not a video.\n" * 100)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(10_000))
    elif kind == "bomb":
        Image.new("RGB", (1, 1)).save(path)
        header = bytearray(path.read_bytes())
        header[18:26] = struct.pack("<ii", 20_000, 20_000)
        path.write_bytes(header)
    elif kind == "cut before its index":
        encode(path, range(30))
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "damaged picture":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path, format="png")
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "sound":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    elif kind == "zero frames":
        encode(path, range(30))
        with av.open(str(path)) as old:
            start = next(packet.pos for packet in old.demux(video=0))
        # Same header, no picture data behind it.
        path.write_bytes(path.read_bytes()[:start])


@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("gone.mp4", "missing", "no such file; give the path"),
        ("folder.mp4", "directory", "not a file; give the path"),
        ("empty.mp4", "empty", "no video that FFmpeg can open"),
        ("text.mp4", "text", "no video that FFmpeg can open"),
        ("text.txt", "text", "no video that FFmpeg can open"),
        ("text.gif", "text", "no video that FFmpeg can open"),
        ("noise.mp4", "noise", "no video that FFmpeg can open"),
        ("cut.mp4", "cut before its index", "no video that FFmpeg can open .*cut before its index"),
        ("picture.png", "damaged picture", "a damaged picture"),
        ("picture.bmp", "bomb", "a picture too large to be meant .*400000000 pixels"),
        ("sound.mp4", "sound", "no video in this file"),
        ("zero.mkv", "zero frames", "holds no frame that decodes"),
    ],
)
def test_what_is_no_video_is_named(tmp_path, name, kind, message):
    path = tmp_path / name
    make_no_video(path, kind)
    with pytest.raises(VideoReadError, match=message) as error:
        read_video(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "arguments", [{"fps": 0}, {"start": -1}, {"max_frames": 0}, {"min_frames": 0}, {"frame_interval": 0}]
)
def test_numbers_out_of_range(plain, arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        read_video(plain, **arguments)


def test_one_rate_only(plain):
    with pytest.raises(ValueError, match="fps=8 and frame_interval=4 both set a rate"):
        read_video(plain, fps=8, frame_interval=4)


# Frames in memory


def test_every_form_of_frames_is_the_same_video(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), np.uint8)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    forms = {
        "array": frames,
        "floats": frames.astype(np.float32) / 255,
        "list of arrays": list(frames),
        "list of PIL": [Image.fromarray(frame) for frame in frames],
        "uint8 tensor": tensor,
        "float tensor": tensor.float() / 255,
        "list of tensors": list(tensor.float() / 255),
    }
    for form in forms.values():
        np.testing.assert_array_equal(to_uint8_frames(form), frames)
    np.testing.assert_array_equal(to_uint8_frames(Image.fromarray(frames[0])), frames[:1])
    path = write_video(tmp_path / "film.mp4", frames[:, :, :4], fps=5)
    np.testing.assert_array_equal(to_uint8_frames(path), read_video(path).frames)


NAN = np.full((2, 4, 4, 3), np.nan)


@pytest.mark.parametrize(
    "video, message",
    [
        ([], "no frames"),
        (np.zeros((0, 4, 4, 3), np.uint8), "empty"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 6))], r"differ in shape: \[\(4, 4, 3\), \(6, 4, 3\)\]"),
        (np.zeros((4, 4, 3), np.uint8), "frames, height, width, 3"),
        (torch.zeros(2, 4, 4, 3), "3, height, width"),
        (torch.zeros(1, 2, 3, 4, 4), "3, height, width"),
        (np.zeros((2, 4, 4, 3), np.int64), "int64"),
        (NAN, r"\[nan, nan\].*NaN"),
        (torch.full((2, 3, 4, 4), -1.0), r"\[-1.0, -1.0\]"),
        (None, r"not \(\)"),
    ],
)
def test_bad_frames_are_named(video, message):
    with pytest.raises(ValueError, match=message):
        to_uint8_frames(video)


# Sizes


@pytest.mark.parametrize("longest_side, multiple", [(320, 16), (128, 16), (100, 8), (64, 32)])
def test_target_size_properties(longest_side, multiple):
    generator = np.random.default_rng(0)
    for width, height in generator.integers(64, 2000, (200, 2)).tolist():
        if max(width, height) > 2 * min(width, height):
            continue
        resized, cropped = target_size(width, height, longest_side=longest_side, multiple=multiple)
        assert max(resized) == min(longest_side, max(width, height))
        assert all(0 <= r - c < multiple and c % multiple == 0 for r, c in zip(resized, cropped, strict=True))
        assert target_size(height, width, longest_side=longest_side, multiple=multiple) == (
            resized[::-1],
            cropped[::-1],
        )


def test_too_thin_a_frame_is_an_error():
    with pytest.raises(ValueError, match="1000 x 20 becomes 320 x 6 .* less than 16"):
        video_io.resize_and_crop(np.zeros((20, 1000, 3), np.uint8))


@pytest.mark.parametrize("size", [(48, 64), (300, 200), (1080, 1920), (33, 1000)])
@pytest.mark.parametrize("target", [(64, 64), (176, 320), (320, 176)])
def test_resize_to_cover_keeps_the_centre(size, target):
    # A white cross through the centre of a grey field: it must stay there, nothing may be stretched away.
    frame = np.full((*size, 3), 90, np.uint8)
    y, x = size[0] // 2, size[1] // 2
    arm = max(2, min(size) // 8)
    frame[y - arm : y + arm, x - arm : x + arm] = 255
    output = video_io.resize_to_cover(frame, height=target[0], width=target[1])
    assert output.shape == (*target, 3)
    rows, columns = np.nonzero(output[..., 0] > 170)
    scale = max(target[0] / size[0], target[1] / size[1])
    np.testing.assert_allclose([rows.mean(), columns.mean()], np.array(target) / 2, atol=1 + scale)
    np.testing.assert_allclose(np.ptp(rows) + 1, np.ptp(columns) + 1, atol=1 + scale)


# Writing


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
@pytest.mark.parametrize("count, fps", [(40, 8), (80, 16), (150, 30), (60, 30000 / 1001), (1, 8), (7, 12.5)])
def test_written_videos_last_exactly(tmp_path, suffix, count, fps):
    path = write_video(tmp_path / f"film.{suffix}", [numbered_frame(i) for i in range(count)], fps=fps)
    with av.open(str(path)) as container:
        # FFmpeg counts in microseconds; WebM itself rounds the last frame's start and length to milliseconds.
        assert container.duration == pytest.approx(count / fps * 1e6, abs=1 if suffix == "mp4" else 1500)
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.name == {"mp4": "h264", "webm": "vp9"}[suffix]
    video = read_video(path)
    assert numbers(video.frames) == list(range(count))
    assert video.fps == pytest.approx(fps, rel=1e-3)


def test_gif_keeps_time(tmp_path):
    # 30 per second does not fit a GIF's hundredths; the errors must not add up.
    video = read_video(write_video(tmp_path / "film.gif", [numbered_frame(i) for i in range(60)], fps=30))
    assert numbers(video.frames) == list(range(60))
    np.testing.assert_allclose(video.timestamps, np.arange(60) / 30, atol=0.0051)
    with pytest.raises(ValueError, match="at most 50 frames per second, not 60"):
        write_video(tmp_path / "fast.gif", [numbered_frame(1)], fps=60)


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_colours_survive(tmp_path, suffix):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (30, 200, 120), (128, 128, 128), (255, 255, 255)]
    frame = np.repeat(np.array(colours, np.uint8)[None], 32, axis=0).repeat(32, axis=1)
    frames = read_video(write_video(tmp_path / f"film.{suffix}", np.stack([frame] * 3), fps=5)).frames
    np.testing.assert_allclose(frames[0, 16, 16::32].astype(int), colours, atol=4)


def test_odd_sizes_are_padded_by_their_edge(tmp_path):
    frames = np.stack([numbered_frame(i, height=47, width=95) for i in range(5)])
    read = read_video(write_video(tmp_path / "film.mp4", frames, fps=5, crf=1)).frames
    assert read.shape == (5, 48, 96, 3)
    np.testing.assert_allclose(read[:, :47, :95].astype(int), frames, atol=12)
    np.testing.assert_allclose(read[:, 47].astype(int), read[:, 46], atol=12)


def test_writing_makes_folders_and_leaves_no_debris(tmp_path):
    path = tmp_path / "new" / "folder" / "film.webm"
    frames = [numbered_frame(i) for i in range(3)]
    assert write_video(str(path), frames, fps=5) == path
    before = path.read_bytes()
    with pytest.raises(av.error.FFmpegError):
        write_video(path, frames, fps=5, crf=1000)
    assert path.read_bytes() == before
    taken = path.with_name("film.mp4")
    taken.mkdir()
    with pytest.raises(OSError, match="film.mp4"):
        write_video(taken, frames, fps=5)
    assert sorted(path.parent.iterdir()) == [taken, path]


def test_crf_sets_the_quality(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    sizes = [write_video(tmp_path / f"{crf}.mp4", noise, fps=5, crf=crf).stat().st_size for crf in (5, 20, 40)]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * 1.5 * sizes[2]


@pytest.mark.parametrize(
    "name, fps, message", [("film.avi", 8, r"'.avi'.*\.mp4, \.webm, \.gif"), ("a.mp4", 0, "fps=0")]
)
def test_what_cannot_be_written_is_named(tmp_path, name, fps, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, [numbered_frame(0)], fps=fps)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_reads_and_writes_after_its_parent_has(tmp_path):
    """As a loader's worker does. Colours are turned by threads of FFmpeg, which a fork does not have."""
    path = write_video(tmp_path / "parent.mp4", np.zeros((2, 480, 640, 3), np.uint8), fps=8)
    with av.open(str(path)) as container:  # somebody else's reading
        next(container.decode(video=0)).to_ndarray(format="rgb24")
    read_video(path)

    def read_and_write():
        write_video(tmp_path / "fork.mp4", read_video(path).frames, fps=8)

    fork = multiprocessing.get_context("fork").Process(target=read_and_write)
    fork.start()
    fork.join(30)
    ended = fork.exitcode
    fork.kill()
    fork.join()
    assert ended == 0 and len(read_video(tmp_path / "fork.mp4").frames) == 2


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_the_same_frames_come_out_the_same(tmp_path, suffix):
    """Wherever they lie in memory: a run that goes on in another process writes what one that was not stopped writes."""
    rng = np.random.default_rng(0)
    squares = 200 * rng.integers(0, 2, (20, 6, 8, 3)) + 2 * np.arange(20)[:, None, None, None]
    frames = squares.astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    seen, held = set(), []
    for number in range(12):
        held.append(np.empty(int(rng.integers(1, 200_000)), np.uint8))  # moves what is allocated next
        path = write_video(tmp_path / f"{number}{suffix}", frames, fps=4)
        seen.add(read_video(path).frames.tobytes())
    assert len(seen) == 1
