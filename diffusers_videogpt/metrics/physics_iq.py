"""The Physics-IQ scorer: frames → motion masks → four metrics → score, table and CSV.

Numbers agree with the benchmark's own scorer (google-deepmind/physics-IQ-benchmark, commit e457754): to 1e-6 in every
metric, and in both digits of the score. OpenCV decodes, filters and resizes as it does there.

Shapes: T frames of 5 s, H × W pixels of a video, h × w = H // 4 × W // 4 pixels of take 1, at which all is compared.
Frames are `uint8` BGR (H, W, 3), OpenCV's order, and come one at a time, so that 4K videos need no more memory than a few.
"""

import csv
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..extras import require
from ..files import plain_cell
from ..video_io import VideoReadError, video_header


cv2 = require("cv2", "Physics-IQ needs OpenCV", extra="eval")

PERSPECTIVES = ("perspective-left", "perspective-center", "perspective-right")
METRICS = {  # name: label
    "mse": "MSE",
    "spatiotemporal_iou": "spatiotemporal IoU",
    "spatial_iou": "spatial IoU",
    "weighted_spatial_iou": "weighted spatial IoU",
}
COLUMNS = (  # of the CSV for each perspective; v1 and v2 are the takes that the generated video is compared with
    "v1_mse",
    "v2_mse",
    "variance_spatial",
    "variance_weighted_spatial",
    "variance_spatiotemporal_iou",
    "variance_mse",
    "spatiotemporal_iou_v1",
    "spatiotemporal_iou_v2",
    "spatial_iou_v1",
    "spatial_iou_v2",
    "weighted_spatial_iou_v1",
    "weighted_spatial_iou_v2",
)

# A frame and its mask, both at h × w: `uint8` (h, w, 3), and `bool` (h, w) or, decoded from a video, (h, w, 3).
MaskedFrame = tuple[np.ndarray, np.ndarray]


# Frames


def read_frames(path: str | Path, num_frames: int) -> Iterator[np.ndarray]:
    """Yields the first `num_frames` frames of a video as the benchmark's own scorer sees them.

    Raises:
        VideoReadError: fewer frames decode, or it is none of the containers that [`~video_io.read_video`] opens.
    """
    video_header(path)  # OpenCV has no list of what it may open: it would follow a playlist to other files
    # Every thread of the decoder holds a frame or more, 12 MB each at 4K.
    capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 2])
    try:
        for index in range(num_frames):
            decoded, frame = capture.read()
            if not decoded:
                raise VideoReadError(
                    f"{path}: {index} frames decode, {num_frames} are needed; the file is cut or damaged, get it again."
                )
            yield frame
    finally:
        capture.release()


def change_rate(frames: Iterable[np.ndarray], num_frames: int, *, new_num_frames: int) -> Iterator[np.ndarray]:
    """Yields `new_num_frames` frames spread evenly from the first to the last of `num_frames`, as the benchmark makes its
    videos of other rates: frame j is at j (N − 1) / (M − 1), between frames by linear weights, cut down to whole numbers.
    """
    frames = iter(frames)
    index, before = 0, next(frames)
    after = next(frames, before)
    for j in range(new_num_frames):
        position = j * (num_frames - 1) / (new_num_frames - 1)
        while index < int(position):
            index, before, after = index + 1, after, next(frames, after)
        share = position - index
        yield ((1 - share) * before.astype(np.float32) + share * after.astype(np.float32)).astype(np.uint8)


# Masks


def motion_masks(frames: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields every frame with its motion mask, `uint8` (H, W) of 0 and 255: pixels far from their running average.

    g = gray, blurred by 5 × 5; a ← 0.7 a + 0.3 g from a = g of frame 0; mask = |g − round(a)| > 10, opened and closed
    with a 5 × 5 box. That of frame 0 is empty.
    """
    box = np.ones((5, 5), np.uint8)
    average = None
    for frame in frames:
        gray = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (5, 5), 0)
        if average is None:
            average = gray.astype(np.float64)
        else:
            cv2.accumulateWeighted(gray, average, 0.3)
        difference = cv2.absdiff(gray, cv2.convertScaleAbs(average))
        mask = cv2.threshold(difference, 10, 255, cv2.THRESH_BINARY)[1]
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, box)
        yield frame, cv2.morphologyEx(mask, cv2.MORPH_CLOSE, box)


def write_masks(path: str | Path, frames: Iterable[np.ndarray], *, fps: int) -> None:
    """Writes the motion masks of frames as the benchmark stores them: MPEG-4 video, which loses a little."""
    writer = None
    for _, mask in motion_masks(frames):
        mask = mask[: mask.shape[0] // 2 * 2, : mask.shape[1] // 2 * 2]  # 4:2:0 stores even sizes only
        if writer is None:
            size = mask.shape[::-1]
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size, isColor=False)
            if not writer.isOpened():
                raise OSError(f"{path}: OpenCV cannot write MPEG-4 video there.")
        writer.write(mask)
    writer.release()


def shrink(
    frames_and_masks: Iterable[tuple[np.ndarray, np.ndarray]], *, width: int, height: int
) -> Iterator[MaskedFrame]:
    """Frames and masks of any size → `width` × `height`, bilinear without antialiasing; masks become `bool`."""
    for frame, mask in frames_and_masks:
        yield cv2.resize(frame, (width, height)), cv2.resize(mask, (width, height)) > 127


# Metrics


def score_view(
    take_1: Iterable[MaskedFrame], take_2: Iterable[MaskedFrame], *, generated: Iterable[MaskedFrame]
) -> dict[str, float | list[float]]:
    """Compares the two takes of one view and the generated video with each other, frame by frame.

    Args:
        take_1, take_2, generated: T frames each with their masks, all of one size.

    Returns:
        The `COLUMNS` of the CSV: lists of T numbers for MSE (pixels in [0, 1]) and spatiotemporal IoU, else a number.
        An IoU of two empty masks is 1.
    """
    videos = {"v1": take_1, "v2": take_2, "generated": generated}
    pairs = {"v1": ("v1", "generated"), "v2": ("v2", "generated"), "variance": ("v1", "v2")}
    squared_errors = {pair: [] for pair in pairs}
    ious = {pair: [] for pair in pairs}
    moved = dict.fromkeys(videos, 0)  # per pixel, in how many frames
    for masked_frames in zip(*videos.values(), strict=True):
        # float32 as in the benchmark: the fourth decimal decides, and these numbers are rounded to it.
        pixels = {
            name: (frame / 255).astype(np.float32) for name, (frame, _) in zip(videos, masked_frames, strict=True)
        }
        masks = {name: mask for name, (_, mask) in zip(videos, masked_frames, strict=True)}
        moved = {name: moved[name] + mask.astype(np.uint16) for name, mask in masks.items()}
        for pair, (one, other) in pairs.items():
            squared_errors[pair].append(float(np.mean((pixels[one] - pixels[other]) ** 2)))
            ious[pair].append(_iou(masks[one], masks[other]))
    spatial = {pair: _iou(moved[one] > 0, moved[other] > 0) for pair, (one, other) in pairs.items()}
    weighted = {pair: _iou(moved[one], moved[other]) for pair, (one, other) in pairs.items()}
    scores = {
        "variance_spatial": spatial["variance"],
        "variance_weighted_spatial": weighted["variance"],
        "variance_spatiotemporal_iou": ious["variance"],
        "variance_mse": squared_errors["variance"],
    }
    for take in ("v1", "v2"):
        scores |= {
            f"{take}_mse": squared_errors[take],
            f"spatiotemporal_iou_{take}": ious[take],
            f"spatial_iou_{take}": spatial[take],
            f"weighted_spatial_iou_{take}": weighted[take],
        }
    return {column: scores[column] for column in COLUMNS}


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    """Σ min / Σ max, which for masks is their intersection over their union."""
    union = int(np.maximum(one, other).sum())
    return int(np.minimum(one, other).sum()) / union if union else 1.0


# Score


@dataclass(frozen=True)
class PhysicsIQScore:
    """What a set of generated videos scores.

    Attributes:
        score: in [0, 100], two decimals.
        metrics: the four `METRICS`, generated against take 1, averaged over the set.
        normalisers: the same metrics of take 1 against take 2: how much of a video physics leaves open.
        by_scenario: scenario → its four metrics.
    """

    score: float
    metrics: dict[str, float]
    normalisers: dict[str, float]
    by_scenario: dict[str, dict[str, float]]

    def score_of(self, metrics: dict[str, float]) -> float:
        """The score of a part of the set, by the normalisers of the whole and not clipped: parts average to the whole."""
        shares = [metrics[name] / self.normalisers[name] for name in METRICS if name != "mse"]
        return 100 * (np.mean(shares) - (metrics["mse"] - self.normalisers["mse"]))


def score_set(rows: list[dict]) -> PhysicsIQScore:
    """S = 100 [(ST / vST + SP / vSP + WS / vWS) / 3 − (MSE − vMSE)], clipped to [0, 100].

    Numbers per frame are rounded to 4 decimals before they are averaged; the normaliser vSP is rounded to 5, the others
    to 4, as in the benchmark.

    Args:
        rows: for each scenario its name under `"scenario"`, and each of `COLUMNS` with `_` and each of `PERSPECTIVES`
            behind it.

    Raises:
        ValueError: take 1 and take 2 never move at the same place and time, so that there is nothing to divide by.
    """
    by_scenario = {
        row["scenario"]: {
            "mse": _mean(row, "v1_mse"),
            "spatiotemporal_iou": _mean(row, "spatiotemporal_iou_v1"),
            "spatial_iou": _mean(row, "spatial_iou_v1"),
            "weighted_spatial_iou": _mean(row, "weighted_spatial_iou_v1"),
        }
        for row in rows
    }
    metrics = {name: float(np.mean([scenario[name] for scenario in by_scenario.values()])) for name in METRICS}
    normalisers = {
        "mse": np.round(np.mean([_mean(row, "variance_mse") for row in rows]), 4),
        "spatiotemporal_iou": np.round(np.mean([_mean(row, "variance_spatiotemporal_iou") for row in rows]), 4),
        "spatial_iou": np.round(np.mean([_mean(row, "variance_spatial") for row in rows]), 5),
        "weighted_spatial_iou": np.round(np.mean([_mean(row, "variance_weighted_spatial") for row in rows]), 4),
    }
    normalisers = {name: float(value) for name, value in normalisers.items()}
    for name, value in normalisers.items():
        if name != "mse" and value == 0:
            raise ValueError(
                f"The {METRICS[name]} of take 1 with take 2 is 0 over all {len(rows)} scenarios, and the score divides by "
                "it: check that the two takes show the same event, and that their masks are theirs."
            )
    unclipped = PhysicsIQScore(0.0, metrics, normalisers, by_scenario)
    score = float(np.round(np.clip(unclipped.score_of(metrics), 0, 100), 2))
    return PhysicsIQScore(score, metrics, normalisers, by_scenario)


def _mean(row: dict, column: str) -> float:
    """Over perspectives and, where there is a number for each, frames."""
    values = [row[f"{column}_{perspective}"] for perspective in PERSPECTIVES]
    if isinstance(values[0], list):
        values = [round(value, 4) for value in itertools.chain.from_iterable(values)]
    return float(np.mean(values))


# Table and CSV


def format_score(result: PhysicsIQScore, categories: dict[str, str]) -> str:
    """The four metrics beside their normalisers, then a table by category and scenario, in Markdown.

    Args:
        categories: scenario → category; may be empty.
    """
    lines = ["| | generated and take 1 | take 1 and take 2 |", "|---|---|---|"]
    for name, label in METRICS.items():
        digits = 5 if name == "spatial_iou" else 4
        lines.append(f"| {label} | {result.metrics[name]:.4f} | {result.normalisers[name]:.{digits}f} |")

    groups = {}
    for category in sorted(set(categories.values())):
        members = [s for s in result.by_scenario if categories.get(s) == category]
        if members:
            groups[f"{category} ({len(members)})"] = members
    groups |= {scenario.removesuffix(".mp4"): [scenario] for scenario in result.by_scenario}
    lines += ["", f"| | {' | '.join(METRICS.values())} | score, unclipped |", "|---" * (len(METRICS) + 2) + "|"]
    for group, members in groups.items():
        metrics = {name: np.mean([result.by_scenario[s][name] for s in members]) for name in METRICS}
        numbers = " | ".join(f"{value:.4f}" for value in metrics.values())
        lines.append(f"| {group} | {numbers} | {result.score_of(metrics):.2f} |")
    return "\n".join(lines)


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """Writes the rows of [`score_set`] with the columns and order of the benchmark's own CSV, which its scorer reads."""
    fields = ["scenario", *(f"{column}_{perspective}" for perspective in PERSPECTIVES for column in COLUMNS)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows({name: plain_cell(value) for name, value in row.items()} for row in rows)
