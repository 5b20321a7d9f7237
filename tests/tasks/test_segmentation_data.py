"""DAVIS's and YouTube-VOS's folders as they are, masks in DAVIS's format, and samples whose frames and masks agree."""

import json

import numpy as np
import pytest
import torch
from masked_videos import make_davis, make_youtube_vos
from PIL import ExifTags, Image

from diffusers_videogpt.data.sampling import Sampling
from diffusers_videogpt.tasks.segmentation_data import (
    SegmentationTable,
    SimulatedMasks,
    draw_marking,
    index_colours,
    read_mask,
    read_masked_videos,
    write_masks,
)
from diffusers_videogpt.tasks.video_object_segmentation import BACKGROUND, COLOURS
from diffusers_videogpt.video_io import VideoReadError


SAMPLING = Sampling(4, height=32, width=32)


@pytest.fixture
def davis(tmp_path):
    return make_davis(tmp_path / "DAVIS", {"train": ["ant", "bee"], "val": ["cow"]})


def test_index_colours():
    """Those of Pascal VOC: black, dark red, dark green, …, and cream for 255."""
    colours = index_colours()
    assert colours[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[[8, 9, 255]].tolist() == [[64, 0, 0], [192, 0, 0], [224, 224, 192]]


def test_masks_are_written_as_davis_has_them(tmp_path):
    masks = np.random.default_rng(0).integers(0, 5, (2, 7, 9), dtype=np.uint8)
    write_masks(tmp_path / "bear", masks, names=["00000", "00001"])
    with Image.open(tmp_path / "bear" / "00001.png") as image:
        assert image.mode == "P" and image.size == (9, 7)
        assert image.getpalette()[: 3 * 4] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    np.testing.assert_array_equal(read_mask(tmp_path / "bear" / "00001.png"), masks[1])
    Image.new("RGB", (4, 4)).save(tmp_path / "colours.png")
    with pytest.raises(ValueError, match="colours.png is a picture of mode RGB, not a mask"):
        read_mask(tmp_path / "colours.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(VideoReadError, match="broken.png does not decode"):
        read_mask(tmp_path / "broken.png")


def test_davis(davis):
    assert [video.name for video in read_masked_videos(davis, "val")] == ["cow"]
    (davis / "ImageSets" / "2017" / "val.txt").write_text("cow\n", encoding="utf-8-sig")
    assert [video.name for video in read_masked_videos(davis, "val")] == ["cow"]
    videos = read_masked_videos(davis)
    assert [video.name for video in videos] == ["ant", "bee"] and videos[0].annotated == list(range(6))
    frames, masks = videos[0].read([1, 3])
    assert frames.shape == (2, 32, 48, 3) and masks.shape == (2, 32, 48)
    # JPEG changes colours a little: the object is where the picture is bright.
    assert frames[masks == 1].min() > 150 > 100 > frames[masks == 0].max()


def test_youtube_vos(tmp_path):
    videos = read_masked_videos(make_youtube_vos(tmp_path, ["v1", "v2"]))
    assert [video.name for video in videos] == ["v1", "v2"]
    assert len(videos[0].frames) == 6 and videos[0].annotated == [0, 2, 4]
    assert videos[0].info().num_frames == 3
    np.testing.assert_array_equal(videos[0].read([0, 1, 2])[1], videos[0].read_masks([0, 2, 4]))


def test_what_is_missing_is_named(davis, tmp_path):
    with pytest.raises(ValueError, match="JPEGImages is no folder"):
        read_masked_videos(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no split 'test' .* choose one of train, val"):
        read_masked_videos(davis, "test")
    (davis / "Annotations" / "480p" / "bee" / "00003.png").unlink()
    with pytest.raises(ValueError, match="'bee' has masks of some frames only: .*bee.00003.png is missing"):
        read_masked_videos(davis)
    (davis / "Annotations" / "480p" / "bee" / "00000.png").unlink()
    with pytest.raises(ValueError, match="'bee' has no mask of its first frame: .*bee.00000.png is missing"):
        read_masked_videos(davis)
    (davis / "ImageSets" / "2017" / "train.txt").write_text("ant\nyak\n")
    with pytest.raises(ValueError, match="'yak' has no frames"):
        read_masked_videos(davis)


@pytest.mark.parametrize("name", ["../ant", "/ant", "ant/../../bee"])
def test_a_list_names_no_folder_outside(davis, tmp_path, name):
    """Masks that a model finds are written under these names."""
    (davis / "ImageSets" / "2017" / "train.txt").write_text(f"ant\n{name}\n")
    with pytest.raises(ValueError, match=f"name '{name}' leads out of the folder"):
        read_masked_videos(davis)
    root = make_youtube_vos(tmp_path / "youtube", ["v1"])
    (root / "meta.json").write_text(json.dumps({"videos": {name: {}}}))
    with pytest.raises(ValueError, match=f"name '{name}' leads out of the folder"):
        read_masked_videos(root)


def test_masks_of_another_size(davis):
    Image.new("P", (16, 16)).save(davis / "Annotations" / "480p" / "ant" / "00002.png")
    video = read_masked_videos(davis)[0]
    with pytest.raises(ValueError, match=r"00002.png is 16 × 16, its frame 48 × 32"):
        video.read(range(6))


def test_frames_are_read_as_every_other_picture(davis):
    """Grey of 16 bits, transparency, and turning by EXIF; masks are as they are stored."""
    frames = davis / "JPEGImages" / "480p" / "ant"
    for path in frames.glob("*.jpg"):
        path.unlink()
    for t in range(6):
        grey = np.full((32, 48), 257 * 40 * t, np.uint16)
        Image.fromarray(grey).save(frames / f"{t:05d}.png")
    video = read_masked_videos(davis)[0]
    np.testing.assert_array_equal(video.read_frames(range(6))[:, 0, 0, 0], [0, 40, 80, 120, 160, 200])
    Image.new("RGBA", (48, 32), (0, 0, 255, 0)).save(frames / "00001.png")
    assert (video.read_frames([1]) == 255).all()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for t in range(6):
        Image.new("RGB", (32, 48), "red").save(frames / f"{t:05d}.png", exif=exif)
    turned, masks = video.read(range(6))
    assert turned.shape[1:3] == masks.shape[1:] == (32, 48) == (video.info().height, video.info().width)
    (frames / "00003.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    with pytest.raises(VideoReadError, match="00003.png: no picture that can be read"):
        video.read_frames([3])


def test_short_videos_are_left_out(davis):
    with pytest.raises(
        ValueError, match=r"2 of 2 videos dropped[\s\S]*ant: too short: 6 frames with masks, a clip has 7"
    ):
        SegmentationTable.of(read_masked_videos(davis), Sampling(7, height=32, width=32))


def test_a_sample_is_one_window_of_frames_and_masks(davis):
    """N frames, the first marked, all marked; the bright objects of the frames are the coloured ones of the marks."""
    table = SegmentationTable.of(read_masked_videos(davis), SAMPLING)
    assert len(table) == 2 and table.size(0) == (32, 32) and table.length(0) == 9
    starts, colours = set(), set()
    for draw in range(12):
        window = table.draw_window(0, draw, seed=0)
        assert window.num_frames == 4
        sample = table.read(0, window)
        assert sample.shape == (9, 32, 32, 3)
        np.testing.assert_array_equal(sample, table.read(0, window))
        frames, first, marked = np.split(sample, [4, 5])
        np.testing.assert_array_equal(first[0], marked[0])
        is_marked = (marked != BACKGROUND).any(-1)
        assert (frames.min(-1) > 120)[is_marked].mean() > 0.95 and is_marked.any((1, 2)).all()
        shown = {tuple(c) for c in np.unique(marked[is_marked], axis=0)}
        assert shown <= {tuple(c) for c in COLOURS}
        starts.add(window.start)
        colours |= shown
    assert starts == {0, 1, 2} and len(colours) > 3
    assert table.subset([1]).id(0) == "bee"


def test_marking_of_a_training_sample():
    mask = np.arange(10, dtype=np.uint8)[None]
    counts = []
    for seed in range(200):
        marking = draw_marking(mask[:, :4], torch.Generator().manual_seed(seed))
        assert set(marking.objects) <= {1, 2, 3} and len(set(marking.colours)) == len(marking.objects)
        counts.append(len(marking.objects))
    assert 0.75 < np.mean(np.array(counts) == 3) < 0.92 and min(counts) == 1  # 3/4, and a third of the rest
    assert len(draw_marking(mask, torch.Generator().manual_seed(1)).objects) == len(COLOURS)
    assert draw_marking(0 * mask, torch.Generator()).objects == ()


def test_simulated_scenes():
    """Objects are where their colours are, also where one hides another."""
    table = SegmentationTable.of([SimulatedMasks(seed, 10, 64) for seed in range(4)], Sampling(4, height=64, width=64))
    window = table.draw_window(1, 0, seed=0)
    frames, masks = table.read_clip(1, window)
    assert frames.shape == (4, 64, 64, 3) and masks.shape == (4, 64, 64)
    for frame, mask in zip(frames, masks, strict=True):
        for index in set(np.unique(mask)) - {0}:
            inside = frame[mask == index].astype(int)
            assert (np.abs(inside - np.median(inside, axis=0)).max(-1) < 60).mean() > 0.7
    assert len(list(table.clips(3, seed=0))) == 3


def test_windows_without_objects_are_not_shown(davis):
    for path in (davis / "Annotations" / "480p" / "ant").glob("*.png"):
        write_masks(path.parent, np.zeros((1, 32, 48), np.uint8), names=[path.stem])
    table = SegmentationTable.of(read_masked_videos(davis), SAMPLING)
    assert len(list(table.clips(2, seed=0))) == 1


def test_meta_names_the_videos(tmp_path):
    root = make_youtube_vos(tmp_path, ["v1", "v2"])
    (root / "meta.json").write_text(json.dumps({"videos": {"v2": {}}}))
    assert [video.name for video in read_masked_videos(root)] == ["v2"]
    for damaged in ("{", '{"a": 1}', "[]"):
        (root / "meta.json").write_text(damaged)
        with pytest.raises(ValueError, match="meta.json does not list videos"):
            read_masked_videos(root)
