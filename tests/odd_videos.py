"""Videos such as strangers have: a title that is not UTF-8, a codec that FFmpeg has no decoder for."""

from pathlib import Path

import av
import numpy as np


def write_titled_in_latin_1(path: Path) -> Path:
    """Four black frames of 48 x 32 in an .mp4, .mkv or .avi whose title is Latin-1."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Cafe XX"
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return _rename(path, b"Cafe XX", "Café XX".encode("latin-1"))


def take_decoder_away(path: Path) -> Path:
    """Renames the codec in a file of [`write_titled_in_latin_1`]."""
    tag = {".mp4": b"avc1", ".mkv": b"V_MPEG4/ISO/AVC", ".avi": b"FMP4"}[path.suffix]
    return _rename(path, tag, b"V_" + b"Q" * (len(tag) - 2))


def _rename(path: Path, old: bytes, new: bytes) -> Path:
    path.write_bytes(path.read_bytes().replace(old, new))
    return path
