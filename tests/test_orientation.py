"""Pictures and frames as they are to be seen: all eight orientations of EXIF, wherever they are told."""

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from diffusers_videogpt.pictures import read_picture, upright_size
from diffusers_videogpt.tasks.segmentation_data import read_mask
from diffusers_videogpt.video_io import probe_video, read_video, to_uint8_frames


XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{}"/></rdf:RDF></x:xmpmeta>'
)


def picture_of(index: int) -> Image.Image:
    """64 × 48 pixels in blocks, without a symmetry."""
    blocks = np.random.default_rng(index).integers(0, 255, (3, 4, 3), np.uint8)
    return Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1))


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def assert_alike(frames, expected) -> None:
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < 3  # JPEG is not exact; a wrong turn makes some 80


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"lossless": True, "xmp": XMP}),
        ("PNG", {"save_all": True, "duration": 100}),
        ("WEBP", {"lossless": True, "save_all": True, "duration": 100}),
    ],
)
def test_pictures_and_animations_are_upright_from_a_file_and_from_pillow(tmp_path, kind, options, orientation):
    path, options = tmp_path / f"turned.{kind.lower()}", dict(options)
    told = {"xmp": options["xmp"].format(orientation).encode()} if "xmp" in options else {"exif": exif_of(orientation)}
    if "save_all" in options:
        options["append_images"] = [picture_of(1), picture_of(2)]
    picture_of(0).save(path, kind, **options | told)
    expected, opened = [], []
    for index in range(3 if "save_all" in options else 1):
        with Image.open(path) as image:
            image.seek(index)
            opened.append(image.copy())
            expected.append(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
    expected = np.stack(expected)
    assert_alike(read_video(path).frames, expected)
    assert_alike(to_uint8_frames(opened), expected)
    assert_alike(read_picture(path), expected[0])
    assert upright_size(path) == expected.shape[1:3] == (probe_video(path).height, probe_video(path).width)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_as_its_frame_is(tmp_path, orientation):
    mask = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    mask.save(tmp_path / "mask.png", exif=exif_of(orientation))
    with Image.open(tmp_path / "mask.png") as image:
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), np.asarray(ImageOps.exif_transpose(image)))


def test_damaged_exif_does_not_stop_a_picture():
    """`PIL.ImageOps.exif_transpose` fails of both: of the first, since it writes the EXIF anew."""
    exif, file = exif_of(6), io.BytesIO()
    exif[ExifTags.Base.XResolution] = 1.5
    picture_of(0).save(file, "JPEG", exif=exif)
    tag = ExifTags.Base.XResolution.to_bytes(2) + b"\x00"
    damaged = file.getvalue().replace(tag + b"\x05", tag + b"\x02")  # the fraction is called a text
    assert damaged != file.getvalue()
    assert upright_size(damaged) == read_picture(damaged).shape[:2] == (64, 48)
    no_exif = picture_of(0)
    no_exif.info["exif"] = b"garbage"
    assert to_uint8_frames(no_exif).shape == (1, 48, 64, 3)
    for picture in (Image.open(io.BytesIO(damaged)), no_exif.copy()):
        with pytest.raises((TypeError, SyntaxError, struct.error)):
            ImageOps.exif_transpose(picture)
