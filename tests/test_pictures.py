"""Pictures of every mode, transparency, mirroring, and files that are no video: right, or refused by name."""

import gc
import io
import logging
import os
import shutil
import struct
import threading
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from odd_videos import take_decoder_away, write_titled_in_latin_1
from PIL import ExifTags, Image, features

from diffusers_videogpt import pictures
from diffusers_videogpt.film_strips import GIVEN, NEXT, side_by_side
from diffusers_videogpt.pictures import (
    PICTURE_FORMATS,
    lay_on_background,
    picture_to_rgb,
    read_picture,
    upright_size,
)
from diffusers_videogpt.video_io import (
    MAX_GAP,
    VideoReadError,
    probe_video,
    read_video,
    resize_to_cover,
    target_size,
    to_uint8_frames,
    write_video,
)


GREEN = (0, 200, 0)
NEEDS_AVIF = pytest.mark.skipif(
    "avif" not in features.modules or not features.check("avif"), reason="this Pillow does not write AVIF"
)


def sprite(num_frames=3, height=32, width=48):
    """Opaque red on the left, half transparent in the middle, on the right a hidden blue under full transparency."""
    pixels = np.zeros((num_frames, height, width, 4), np.uint8)
    pixels[..., : width // 3, :] = (255, 0, 0, 255)
    pixels[..., width // 3 : 2 * width // 3, :] = (255, 0, 0, 128)
    pixels[..., 2 * width // 3 :, :] = (0, 0, 255, 0)
    return pixels


def write_sprite(path):
    """The sprite in a format that keeps opacity; a GIF has full transparency alone."""
    pixels = sprite()
    if path.suffix in (".webm", ".mov", ".mkv"):
        codec, pix_fmt = {".webm": ("libvpx-vp9", "yuva420p"), ".mov": ("qtrle", "argb"), ".mkv": ("ffv1", "bgra")}[
            path.suffix
        ]
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 48, 32, pix_fmt
            if path.suffix == ".webm":
                stream.metadata["alpha_mode"] = "1"
            for index, picture in enumerate(pixels):
                frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pix_fmt)
                frame.pts, frame.time_base = index, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    else:
        # Not all alike, or it would be a still.
        pixels[np.arange(3), 0, np.arange(3)] = (255, 255, 0, 255)
        first, *rest = [Image.fromarray(picture) for picture in pixels]
        lossless = {"lossless": True, "exact": True} if path.suffix == ".webp" else {}
        cleared = {"disposal": 2} if path.suffix == ".gif" else {}
        kept = {"quality": 100, "subsampling": "4:4:4"} if path.suffix == ".avif" else {}
        first.save(path, save_all=True, append_images=rest, duration=100, **cleared, **lossless, **kept)
    return path


@pytest.mark.parametrize(
    "suffix", ["png", "webp", "gif", "webm", "mov", "mkv", pytest.param("avif", marks=NEEDS_AVIF)]
)
def test_transparent_videos_show_the_background(tmp_path, suffix):
    path = write_sprite(tmp_path / f"film.{suffix}")
    for options, background in (({}, (255, 255, 255)), ({"background": GREEN}, GREEN)):
        video = read_video(path, **options)
        assert len(video.frames) == 3
        for frame in video.frames:
            np.testing.assert_allclose(frame[20, 8].astype(int), (255, 0, 0), atol=6)
            np.testing.assert_allclose(frame[20, 44].astype(int), background, atol=6)
            if suffix != "gif":
                mixed = (np.array((255, 0, 0)) * 128 + np.array(background) * 127) / 255
                np.testing.assert_allclose(frame[20, 24].astype(int), mixed, atol=6)


def test_transparent_pictures_arrays_and_tensors_show_the_background(tmp_path):
    pixels = sprite(1)
    expected = lay_on_background(pixels, GREEN)
    assert expected[0, 0, 0].tolist() == [255, 0, 0] and expected[0, 0, -1].tolist() == list(GREEN)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    path = tmp_path / "still.png"
    Image.fromarray(pixels[0]).save(path)
    for form in (Image.fromarray(pixels[0]), [Image.fromarray(pixels[0])], pixels, tensor, tensor.float() / 255, path):
        np.testing.assert_array_equal(to_uint8_frames(form, background=GREEN), expected)
        assert to_uint8_frames(form)[0, 0, -1].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match=r"background=\(0, 300, 0\) must be three whole numbers"):
        to_uint8_frames(pixels, background=(0, 300, 0))


@NEEDS_AVIF
def test_transparent_avif_where_pillow_does_not_read_it(tmp_path, monkeypatch):
    """FFmpeg would show the colour that is hidden."""
    film, still, opaque = write_sprite(tmp_path / "film.avif"), tmp_path / "still.avif", tmp_path / "opaque.avif"
    pixels = Image.fromarray(sprite(1)[0])
    pixels.save(still)
    pixels.convert("RGB").save(opaque)
    assert read_video(still).frames[0, 20, 44].tolist() == [255, 255, 255] and read_video(still).fps is None
    monkeypatch.setattr(pictures, "_formats", lambda: PICTURE_FORMATS)
    for path in (film, still):
        for read in (read_video, probe_video):
            with pytest.raises(VideoReadError, match=f"{path.name}: an AVIF or HEIC made of 2 pictures"):
                read(path)
    assert read_video(opaque).frames.shape == (1, 32, 48, 3) and read_video(opaque).fps is None


@NEEDS_AVIF
def test_damaged_avif_is_refused(tmp_path):
    data = write_sprite(tmp_path / "film.avif").read_bytes()
    for name in {data[i : i + 4] for i in range(len(data) - 4) if data[i : i + 4].isalpha()}:  # of boxes, mostly
        with suppress(VideoReadError):
            read_video(data.replace(name, b"XXXX"))
    with pytest.raises(VideoReadError, match="a damaged picture .division by zero."):
        clock = data.index(b"mdhd") + 24  # ticks a second
        read_video(data[:clock] + bytes(4) + data[clock + 4 :])
    with pytest.raises(VideoReadError):
        read_video(data[: len(data) // 2])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_and_its_size_are_upright(tmp_path, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn clockwise
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(np.repeat(np.array([[0, 200]], np.uint8), 8, axis=0).repeat(16, axis=1)).save(path, exif=exif)
    for turned in (read_picture(path), read_video(path).frames[0]):
        assert turned.shape == (32, 8, 3) and turned[4].max() < 10 and turned[28].min() > 190
    assert upright_size(path) == (32, 8)
    (tmp_path / "notes.txt").write_text("no picture")
    for read in (read_picture, upright_size):
        with pytest.raises(VideoReadError, match="notes.txt: no picture that can be read; give one of BMP"):
            read(tmp_path / "notes.txt")


def test_turning_that_is_no_number(tmp_path):
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (32, 8)).save(file, "JPEG", exif=exif)
    as_number, as_text = (struct.pack(">HHI", ExifTags.Base.Orientation, kind, 1) for kind in (3, 2))
    assert upright_size(file.getvalue()) == (32, 8) and as_number in file.getvalue()
    data = file.getvalue().replace(as_number, as_text)
    assert upright_size(data) == read_picture(data).shape[:2] == (8, 32)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_modes_with_opacity(mode):
    """Black, of which half is seen."""
    picture = Image.new("P" if mode == "PA" else "RGB" if mode.startswith("RGB") else "L", (2, 2))
    picture.putalpha(128)
    if mode in ("La", "RGBa"):
        picture = picture.convert(mode)
    assert picture.mode == mode and picture_to_rgb(picture, GREEN)[0, 0].tolist() == [0, round(200 * 127 / 255), 0]


@pytest.mark.parametrize("mode", ["P", "LA"])
def test_modes_with_transparency(mode):
    picture = Image.fromarray(np.zeros((4, 4), np.uint8))
    if mode == "P":
        picture = picture.convert("P")
        picture.info["transparency"] = picture.getpixel((0, 0))
    else:
        picture = Image.merge("LA", (picture, picture))
    assert (picture_to_rgb(picture, GREEN) == GREEN).all()


def test_grey_of_16_bits_keeps_its_levels(tmp_path):
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16)
    picture = Image.fromarray(np.tile(levels, (16, 1)))
    picture.save(tmp_path / "grey.png")
    for frames in (read_video(tmp_path / "grey.png").frames, to_uint8_frames(picture)):
        np.testing.assert_array_equal(frames[0, 0, :, 0], np.arange(256))
    with pytest.raises(ValueError, match="mode 'F' does not say which value is white"):
        to_uint8_frames(Image.fromarray(np.zeros((4, 4), np.float32)))


@pytest.mark.parametrize(
    "matrix, upright",
    [
        ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
        ((1, 0, 0, -1), lambda x: x[::-1]),
        ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda x: x.transpose(1, 0, 2)[::-1, ::-1]),
    ],
)
def test_mirrored_display_matrices(tmp_path, matrix, upright):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :32] = (255, 0, 0)
    path = write_video(tmp_path / "film.mp4", np.stack([picture] * 3), fps=10)
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 if value > 0 else -(-value << 16) for value in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frames, expected = read_video(path).frames, upright(picture)
    assert frames.shape[1:] == expected.shape == (probe_video(path).height, probe_video(path).width, 3)
    assert np.abs(frames[0].astype(int) - expected).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_frames_that_carry_exif(tmp_path, orientation):
    """As cameras write them into Motion JPEG; PyAV has no name for this kind of side data."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, :16] = 255
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(picture).save(file, "JPEG", exif=exif)
    with av.open(str(tmp_path / "film.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuvj420p"
        container.start_encoding()
        for index in range(3):
            packet = av.Packet(file.getvalue())
            packet.pts = packet.dts = index
            packet.time_base, packet.stream = Fraction(1, 10), stream
            container.mux(packet)
    video, expected = read_video(tmp_path / "film.avi"), read_picture(file.getvalue())
    assert video.frames.shape == (3, *expected.shape)
    assert np.abs(video.frames[2].astype(int) - expected).mean() < 2


def test_colours_that_ffmpeg_can_not_turn_into_rgb(tmp_path):
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace = 8  # YCgCo
        frame = av.VideoFrame(64, 48, "yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoReadError, match=r"film.mkv: FFmpeg can't turn its colours \(yuv420p\) into RGB"):
        read_video(path)


def test_the_cover_of_an_audio_recording_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(audio.encode(frame))
        container.mux(audio.encode())
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(cover.encode())
    for read in (read_video, probe_video):
        with pytest.raises(VideoReadError, match="only the cover of an audio recording"):
            read(path)


@NEEDS_AVIF
def test_stills_have_no_rate(tmp_path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "still.avif")
    video = read_video(tmp_path / "still.avif", fps=8)
    assert video.fps is None and len(video.frames) == 1


@pytest.mark.parametrize("transfer, kind", [(16, "PQ"), (18, "HLG")])
def test_hdr_is_said(tmp_path, monkeypatch, transfer, kind):
    path = tmp_path / "hdr.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        stream.codec_context.color_trc = transfer
        frame = av.VideoFrame(64, 48, "yuv420p10le")
        frame.pts, frame.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    said = []
    monkeypatch.setattr(logging.getLogger("diffusers_videogpt.pictures"), "warning", said.append)
    read_video(path)
    read_video(path)
    assert len(said) == 1 and f"hdr.mkv: an HDR video in {kind}" in said[0] and "ffmpeg -i HDR -vf zscale" in said[0]


@NEEDS_AVIF
def test_hdr_is_said_of_a_picture(tmp_path, monkeypatch):
    path = tmp_path / "hdr.avif"
    Image.new("RGB", (64, 48), "red").save(path)
    said = []
    monkeypatch.setattr(logging.getLogger("diffusers_videogpt.pictures"), "warning", said.append)
    read_video(path)
    assert not said
    data = bytearray(path.read_bytes())
    data[data.index(b"colrnclx") + 11] = 16
    path.write_bytes(data)
    read_video(path)
    assert len(said) == 1 and "hdr.avif: an HDR video in PQ" in said[0]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_metadata_in_latin_1_and_codecs_without_decoder(tmp_path, suffix):
    path = write_titled_in_latin_1(tmp_path / f"film.{suffix}")
    assert len(read_video(path).frames) == probe_video(path).num_frames == 4
    take_decoder_away(path)
    for read in (read_video, probe_video):
        with pytest.raises(VideoReadError, match=f"film.{suffix}: this FFmpeg has no decoder"):
            read(path)


PLAYLISTS = {
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    b"a=rtpmap:96 H264/90000\n",
    "ffconcat": b"ffconcat version 1.0\nfile sibling.mp4\n",
    "m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsibling.mp4\n#EXT-X-ENDLIST\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_playlists_are_not_followed(tmp_path, monkeypatch, kind):
    write_video(tmp_path / "sibling.mp4", np.zeros((3, 32, 32, 3), np.uint8), fps=5)
    path = tmp_path / f"list.{kind}"
    path.write_bytes(PLAYLISTS[kind])
    monkeypatch.chdir(tmp_path)
    begin = os.times().elapsed
    for source in (path, PLAYLISTS[kind], Path(shutil.copy(path, tmp_path / "list.mp4"))):
        for read in (read_video, probe_video):
            with pytest.raises(VideoReadError, match="no video that FFmpeg can open"):
                read(source)
    assert os.times().elapsed - begin < 5


def write_ticks(path, ticks, rate=10):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for tick in ticks:
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_gap_of_a_year_is_damage(tmp_path):
    path = write_ticks(tmp_path / "gap.mkv", [0, 1, 2, 365 * 86400 * 10])
    for read in (probe_video, read_video, lambda path: read_video(path, fps=8, max_frames=4, from_end=True)):
        with pytest.raises(VideoReadError, match=r"the frame at 0.2 s would be shown until 3.1536e\+07 s"):
            read(path)
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / "gap.png", save_all=True, append_images=[second], duration=[100, 7_200_000])
    for read in (probe_video, lambda path: read_video(path, fps=1000)):
        with pytest.raises(VideoReadError, match="gap.png: the frame at 0.1 s would be shown until 7200.1 s"):
            read(tmp_path / "gap.png")
    slow = read_video(write_ticks(tmp_path / "slow.mkv", [0, round(MAX_GAP * 10)]))
    assert len(slow.frames) == 2 and slow.fps == pytest.approx(1 / MAX_GAP)
    # And this rate can be written.
    write_video(tmp_path / "again.mp4", slow.frames, fps=slow.fps)


@pytest.mark.parametrize("fps", [1e9, 0, -1, float("nan"), float("inf"), 1e-9])
def test_rates_that_no_video_has(tmp_path, fps):
    path = write_video(tmp_path / "film.mp4", np.zeros((3, 32, 32, 3), np.uint8), fps=5)
    for call in (
        lambda: read_video(path, fps=fps),
        lambda: write_video(path, np.zeros((1, 32, 32, 3), np.uint8), fps=fps),
    ):
        with pytest.raises(ValueError, match=f"fps={fps} must be at most 1000"):
            call()


def test_rates_that_are_no_number(tmp_path):
    path = write_video(tmp_path / "film.mp4", np.zeros((3, 32, 32, 3), np.uint8), fps=5)
    with pytest.raises(ValueError, match="fps='12' must be a number"):
        read_video(path, fps="12")
    with pytest.raises(ValueError, match="fps=None must be a number"):
        write_video(path, np.zeros((1, 32, 32, 3), np.uint8), fps=None)


@pytest.mark.parametrize("start", [float("nan"), float("inf"), -1])
def test_starts_that_are_no_time(tmp_path, start):
    path = write_video(tmp_path / "film.mp4", np.zeros((3, 32, 32, 3), np.uint8), fps=5)
    with pytest.raises(ValueError, match=f"start={start} must be"):
        read_video(path, start=start)
    with pytest.raises(VideoReadError, match="0 frames could be read"):
        read_video(path, start=1e300)


def test_sizes_of_nothing():
    with pytest.raises(ValueError, match="longest_side=0 must be at least 16"):
        target_size(64, 48, longest_side=0)
    with pytest.raises(ValueError, match="height=0 and width=16 must be at least 1"):
        resize_to_cover(np.zeros((32, 32, 3), np.uint8), height=0, width=16)


def test_repeated_frames_are_made_once(tmp_path):
    """Above the source's rate memory and work follow the frames of the source."""
    path = write_video(tmp_path / "film.mp4", np.zeros((5, 32, 32, 3), np.uint8), fps=5)
    made = []
    video = read_video(path, fps=1000, transform=lambda frame: made.append(1) or frame[:1, :1])
    assert len(video.frames) == 1000 and len(made) == 5


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_frames_of_a_size_beyond_all_are_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "film.mp4", np.zeros((3, 64, 64, 3), np.uint8), fps=5)
    Image.new("RGB", (64, 64)).save(tmp_path / "still.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    for source in (path, tmp_path / "still.png"):
        with pytest.raises(VideoReadError, match="a picture too large to be meant .*64 x 64 = 4096 pixels"):
            read_video(source)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads by Linux' /proc")
def test_reading_leaves_no_decoder_behind(tmp_path):
    """A decoder that waits for the garbage collector fills the memory; and in a loader worker, a copy of this process in
    which its threads do not run, collecting it would wait for ever."""
    path = write_video(
        tmp_path / "film.mp4", np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8), fps=5
    )
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/task"))
        read_video(path)
        read_video(path, start=1.0, max_frames=2)
        info = probe_video(path)
        read_video(path, start=info.timestamps[3], origin=info.origin, max_frames=1)
        assert len(os.listdir("/proc/self/task")) == before and threading.active_count() >= 1
    finally:
        gc.enable()


def test_names_do_not_steer_a_terminal(tmp_path):
    with pytest.raises(VideoReadError) as error:
        read_video(tmp_path / "a\x1b[2J.mp4")
    assert "\x1b" not in str(error.value)


def test_videos_side_by_side_as_they_are():
    truth = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    beside = side_by_side({"truth": truth, "predicted": truth[:3]}, num_given=1)
    assert beside.shape == (4, 6 + 8, 8 + 4 + 8, 3)
    np.testing.assert_array_equal(beside[:, 6:, :8], truth)
    assert tuple(beside[0, 0, 0]) == GIVEN and tuple(beside[1, 0, -1]) == NEXT
    assert (beside[3, 6:, 12:] == 235).all()


def test_a_picture_is_turned_upright(tmp_path):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    Image.fromarray(picture).save(tmp_path / "picture.png", exif=exif)
    np.testing.assert_array_equal(read_video(tmp_path / "picture.png").frames[0], np.rot90(picture, k=-1))


@pytest.mark.parametrize("default_image", [False, True])
def test_animated_png(tmp_path, default_image):
    """Its own times; a picture for who does not know the format is not part of it."""
    shown = [Image.new("RGB", (32, 16), (60 * index, 0, 0)) for index in range(4)]
    path = tmp_path / "film.png"
    if default_image:
        first = Image.new("RGB", (32, 16), "white")
        first.save(path, save_all=True, append_images=shown, duration=[50, 100, 50, 200], default_image=True)
    else:
        shown[0].save(path, save_all=True, append_images=shown[1:], duration=[50, 100, 50, 200])
    video = read_video(path)
    assert [frame[0, 0, 0] for frame in video.frames] == [0, 60, 120, 180]
    np.testing.assert_allclose(video.timestamps, [0, 0.05, 0.15, 0.2])
    assert video.fps == pytest.approx(15)
    assert probe_video(path).num_frames == 4


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_one_frame_is_a_picture(tmp_path, suffix):
    path = tmp_path / f"still{suffix}"
    Image.new("RGB", (32, 16), (200, 0, 0)).save(path, save_all=True)
    video = read_video(path)
    assert video.fps is None and video.frames.shape == (1, 16, 32, 3) and abs(int(video.frames[0, 0, 0, 0]) - 200) < 4
