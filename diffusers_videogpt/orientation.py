"""How pictures and frames are turned upright, where the file says that they are stored otherwise: by EXIF or XMP, or a video by
its display matrix. Both know eight ways: turned by quarters, and mirrored or not.
"""

import re
from fractions import Fraction

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from PIL import ExifTags, Image


# Orientation in EXIF → what turns the picture upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(picture: Image.Image) -> int:
    """1 to 8, as in EXIF; 1, upright, where it tells of none or where its EXIF is damaged."""
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except OSError:  # a PNG is decoded for it, since it may tell of turning at its end: the picture itself is cut off
        raise
    except Exception:  # Pillow raises errors of many kinds of EXIF that is damaged
        return 1
    return orientation if orientation in TURNS else 1


def upright(picture: Image.Image) -> Image.Image:
    """A PIL image as it is to be seen; the same one if nothing is to be done.

    `PIL.ImageOps.exif_transpose` also writes the EXIF anew without the orientation, and fails where that is damaged.
    """
    picture.load()
    turn = TURNS.get(orientation_of(picture))
    return picture if turn is None else picture.transpose(turn)


def display_turn(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How the display matrix turns a stored frame upright: rows and columns change places; then it is mirrored along x;
    along y. FFmpeg's `rotation` alone does not tell of mirroring."""
    data = _display_matrix(frame)
    if data is None:
        return False, False, False
    # x' = a x + c y, y' = b x + d y
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32).tolist()
    is_turned = abs(b) > abs(a)
    return (True, c < 0, b < 0) if is_turned else (False, a < 0, d < 0)


def _display_matrix(frame: av.VideoFrame) -> SideDataContainer | None:
    # PyAV gives none of a frame's side data where it has no name for one kind, such as EXIF: these are taken out, by the
    # number that it complains of.
    for _ in range(8):
        try:
            # Not `frame.side_data`, which keeps the frame and its decoder in a circle of references.
            return SideDataContainer(frame).get(SideDataType.DISPLAYMATRIX)
        except ValueError as error:
            unnamed = re.match(r"\d+", str(error))
            if unnamed is None:
                raise
            frame = _without_side_data(frame, int(unnamed[0]))
    return None


def _without_side_data(frame: av.VideoFrame, number: int) -> av.VideoFrame:
    """The frame without its side data of one kind, by FFmpeg's number of it."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 25)
    )
    remove, sink = graph.add("sidedata", f"mode=delete:type={number}"), graph.add("buffersink")
    source.link_to(remove)
    remove.link_to(sink)
    graph.configure()
    graph.push(frame)
    return graph.pull()
