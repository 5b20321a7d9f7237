"""Videos compared in a picture: film strips, and videos side by side.

Blue marks the frames that a model was given, orange those that follow.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .video_io import to_uint8_frames, written_whole


GIVEN, NEXT = (44, 110, 203), (226, 125, 32)
INK = (40, 40, 40)
ENDED = 235  # the grey of a video that is over while others go on


def write_film_strip(
    path: str | Path,
    rows: dict[str, object],
    *,
    num_given: int,
    fps: float | None = None,
    max_columns: int = 12,
    start: float = 0.0,
) -> Path:
    """Writes a PNG that compares videos frame by frame: one labelled row each, one column a point in time.

    Every row starts at the same frame; a shorter row ends earlier.

    Args:
        path: ends in `.png`; missing folders are made.
        rows: label → frames (anything that [`~video_io.to_uint8_frames`] takes), for example
            `{"truth": …, "predicted": …}`.
        num_given: how many of the first frames were given.
        fps: write seconds above the columns; without it, frame numbers.
        max_columns: of longer videos so many columns are shown, evenly spread, the first and the last among them.
        start: seconds at the first frame.

    Raises:
        ValueError: no rows, bad frames, or a path that does not end in `.png`.
    """
    if not rows:
        raise ValueError("A film strip needs at least one row, as in {'predicted': frames}.")
    rows = {label: to_uint8_frames(frames) for label, frames in rows.items()}
    total = max(len(frames) for frames in rows.values())
    columns = np.linspace(0, total - 1, min(max_columns, total)).round().astype(int)

    height, width = next(iter(rows.values())).shape[1:3]
    # Small pictures grow by whole pixels, which keeps them sharp; large ones shrink to a readable size.
    scale = max(1, 128 // max(height, width)) if max(height, width) <= 160 else 160 / max(height, width)
    tile = (round(width * scale), round(height * scale))
    method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS

    font, small = ImageFont.load_default(size=20), ImageFont.load_default(size=16)
    border, gap, margin = 3, 5, 16
    step = (tile[0] + 2 * border + gap, tile[1] + 2 * border + gap)
    left = margin + round(max(font.getlength(label) for label in rows)) + 14
    top = margin + 54
    canvas = Image.new(
        "RGB", (left + step[0] * len(columns) - gap + margin, top + step[1] * len(rows) - gap + margin), "white"
    )
    draw = ImageDraw.Draw(canvas)

    shown_given = int((columns < num_given).sum())
    for name, color, begin, end in (("given", GIVEN, 0, shown_given), ("next", NEXT, shown_given, len(columns))):
        if begin < end:
            x0, x1 = left + begin * step[0], left + end * step[0] - gap - 1
            draw.rectangle((x0, margin, x1, margin + 26), fill=color)
            draw.text(((x0 + x1) / 2, margin + 13), name, fill="white", font=font, anchor="mm")
    for column, index in enumerate(columns):
        x = left + column * step[0]
        time = f"{index + 1}" if fps is None else f"{start + index / fps:.2f} s"
        draw.text((x + step[0] / 2 - gap / 2, margin + 40), time, fill=INK, font=small, anchor="mm")
        for row, frames in enumerate(rows.values()):
            if index < len(frames):
                y = top + row * step[1]
                color = GIVEN if index < num_given else NEXT
                draw.rectangle((x, y, x + tile[0] + 2 * border - 1, y + tile[1] + 2 * border - 1), fill=color)
                canvas.paste(Image.fromarray(frames[index]).resize(tile, method), (x + border, y + border))
    for row, label in enumerate(rows):
        draw.text((margin, top + row * step[1] + step[1] / 2), label, fill=INK, font=font, anchor="lm")

    with written_whole(path, (".png",)) as unfinished:
        canvas.save(unfinished)
    return Path(path)


def side_by_side(
    videos: dict[str, np.ndarray], *, num_given: int, preview_side: int | None = None, gap: int = 4
) -> np.ndarray:
    """Videos beside each other under a bar that is blue over given frames and orange over those that follow.

    Args:
        videos: label → `uint8` frames (F, H, W, 3), of one height; a shorter video goes on in grey.
        num_given: how many of the first frames were given.
        preview_side: enlarge small videos by a whole factor, to at most so many pixels on the longer side, and write their
            labels into the bar, which is then 28 pixels high. Without it the pixels stay as they are and the bar, 6 pixels
            high, has no labels, for which small frames have no room.
        gap: white pixels between two videos.

    Returns:
        `uint8` (F, bar + H, widths and gaps, 3), F of the longest.
    """
    length = max(len(frames) for frames in videos.values())
    bar_height = 6 if preview_side is None else 28
    columns = []
    for label, frames in videos.items():
        scale = 1 if preview_side is None else max(preview_side // max(frames.shape[1:3]), 1)
        frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
        frames = np.pad(frames, ((0, length - len(frames)), (0, 0), (0, 0), (0, 0)), constant_values=ENDED)
        bars = np.empty((length, bar_height, frames.shape[2], 3), np.uint8)
        for part, color, note in (
            (slice(num_given), GIVEN, f"{label}: given"),
            (slice(num_given, None), NEXT, label),
        ):
            bar = Image.new("RGB", (frames.shape[2], bar_height), color)
            if preview_side is not None:
                font = ImageFont.load_default(size=16)
                middle = (frames.shape[2] / 2, bar_height / 2)
                ImageDraw.Draw(bar).text(middle, note, fill="white", font=font, anchor="mm")
            bars[part] = np.asarray(bar)
        between = np.full((length, bar_height + frames.shape[1], gap, 3), 255, np.uint8)
        columns += [np.concatenate([bars, frames], axis=1), between]
    return np.concatenate(columns[:-1], axis=2)
