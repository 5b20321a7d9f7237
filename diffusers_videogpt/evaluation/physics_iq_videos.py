"""The Physics-IQ benchmark as files: its folders, predictions for it by our pipeline, and the scores of a set of videos.

Everything that takes long is kept under `OUTPUT` and found again by the content of what it was made from, never by a name
or a date: a run that was killed goes on where it stopped, several may work on one folder, and nothing stale is used.

    OUTPUT/videos/{ID}_{perspective}_{scenario}.mp4   what a model predicted, for the benchmark's own scorer too
    OUTPUT/cache/predictions, scores, masks           {hash}.json, {hash}.json, {hash}.mp4
    OUTPUT/physics_iq.csv                             the metrics, in the columns of the benchmark's own scorer
"""

import csv
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..files import Store, hash_file, hash_of
from ..metrics.physics_iq import PERSPECTIVES, change_rate, motion_masks, read_frames, score_view, shrink, write_masks
from ..pipeline_videogpt import VideoGPTPipeline
from ..video_io import VideoReadError, probe_video, resize_and_crop, resize_to_cover, to_uint8_frames, write_video
from ..weights import hash_of_model


SECONDS_SHOWN, SECONDS_PREDICTED = 3, 5
FILMED_FPS = 30  # of the original videos, which other rates are made from


# Files


def measure(path: Path) -> tuple[int, int]:
    """Frames per second, and number of frames, of a video whose frames come evenly and at a whole rate.

    Raises:
        VideoReadError: they do not, or the file cannot be read.
    """
    times = probe_video(path).timestamps
    rate = (len(times) - 1) / times[-1] if len(times) > 1 else 0.0
    fps = round(rate)
    # 2 ms: more than a file's clock rounds to, less than 29.97 frames/s are off in 5 s.
    if fps < 1 or np.abs(times - np.arange(len(times)) / fps).max() > 0.002:
        raise VideoReadError(
            f"{path}: {len(times)} frames at {rate:.5g} frames/s. The benchmark takes a whole number of frames per second, "
            "evenly spaced (it comes with 8, 16, 24 and 30): write the video again at such a rate."
        )
    return fps, len(times)


def check_length(
    path: Path, fps: int, *, num_frames: int, seconds: float, advice: str, tolerance: float = 0.0
) -> None:
    """Raises a `VideoReadError` that says by how much a video is too short or too long."""
    excess = num_frames / fps - seconds
    if abs(excess) > tolerance:
        raise VideoReadError(
            f"{path}: lasts {num_frames / fps:.3f} s ({num_frames} frames at {fps} frames/s), {abs(excess):.3f} s too "
            f"{'long' if excess > 0 else 'short'} for {seconds:g} s; {advice}"
        )


# The benchmark


@dataclass(frozen=True)
class View:
    """One scenario (`"trimmed-….mp4"`) from one perspective; `ids` are those of take 1 and take 2."""

    scenario: str
    perspective: str
    ids: tuple[str, str]

    @property
    def name(self) -> str:
        """The official name of a generated video."""
        return f"{self.ids[0]}_{self.perspective}_{self.scenario}"


@dataclass(frozen=True)
class Footage:
    """The frames of one file at the rate at which everything is scored.

    Attributes:
        path: the file, with at least `num_source` frames at `source_fps` frames/s.
        num_frames, fps: what is made of them, unchanged if the rates agree.
        skip: so many frames of the file come before.
    """

    path: Path
    source_fps: int
    num_source: int
    fps: int
    num_frames: int
    skip: int = 0

    def frames(self) -> Iterator[np.ndarray]:
        """`uint8` BGR (H, W, 3), one after the other."""
        frames = read_frames(self.path, self.skip + self.num_source)
        for _ in range(self.skip):
            next(frames)
        if self.source_fps == self.fps:
            return frames
        return change_rate(frames, self.num_source, new_num_frames=self.num_frames)

    def content(self) -> list:
        return [hash_file(self.path), self.skip, self.num_source, self.num_frames]


class Benchmark:
    """The benchmark's folders, as they are, at one frame rate.

    Videos of `fps` frames/s are taken from the folder `{fps}FPS` where there is one, else made from `30FPS`.

    Args:
        data: the folder `physics-IQ-benchmark`, or the one that it is in.
        fps: frames per second.
        descriptions: the benchmark's CSV, with columns `scenario` and `category`: only what it names is evaluated.
            Without it, everything in the folder is, and nothing has a category.

    Attributes:
        views: scenario by scenario, three each.
        categories: scenario → category.

    Raises:
        ValueError: a folder, a perspective or a take is missing.
    """

    def __init__(self, data: str | Path, fps: int, *, descriptions: str | Path | None = None):
        if fps < 1:
            raise ValueError(f"{fps} frames/s: the rate must be a whole number of at least 1.")
        root = Path(data) / "physics-IQ-benchmark"
        self.root = root if root.is_dir() else Path(data)
        self.fps = fps
        self.categories = {} if descriptions is None else read_categories(Path(descriptions))
        folder, folder_fps = self._folder("testing")
        name = re.compile(rf"(\d+)_testing-videos_{folder_fps}FPS_([^_]+)_take-([12])_([^_]+\.mp4)")
        ids = {}
        for match in filter(None, (name.fullmatch(path.name) for path in sorted(folder.glob("*.mp4")))):
            number, perspective, take, scenario = match.groups()
            ids.setdefault(scenario, {})[perspective, take] = number
        scenarios = list(self.categories or ids)
        if not scenarios:
            raise ValueError(
                f"{folder}: no video is named {{ID}}_testing-videos_{folder_fps}FPS_…; get the benchmark."
            )
        missing = [
            f"{scenario} has no {perspective} take {take}"
            for scenario in scenarios
            for perspective in PERSPECTIVES
            for take in "12"
            if (perspective, take) not in ids.get(scenario, {})
        ]
        if missing:
            raise ValueError(
                f"{folder}: {'; '.join(missing[:5])}{' …' if len(missing) > 5 else ''} ({len(missing)} of "
                f"{6 * len(scenarios)} videos missing). Every scenario needs 3 perspectives × 2 takes: get the rest, or give "
                "--descriptions without this scenario."
            )
        self.views = [
            View(scenario, perspective, (ids[scenario][perspective, "1"], ids[scenario][perspective, "2"]))
            for scenario in scenarios
            for perspective in PERSPECTIVES
        ]

    def _folder(self, kind: str) -> tuple[Path, int]:
        """The folder of split videos of a kind, and their frame rate."""
        # The benchmark's text and its code name them differently.
        names = [self.root / "split-videos" / name for name in (kind, f"{kind}-videos")]
        for fps in (self.fps, FILMED_FPS):
            for folder in names:
                if (folder / f"{fps}FPS").is_dir():
                    return folder / f"{fps}FPS", fps
        raise ValueError(
            f"{names[0]}: there is neither {self.fps}FPS, to be used as it is, nor {FILMED_FPS}FPS, to make it from. Give "
            "the folder physics-IQ-benchmark as --data, with the frame rate that you need."
        )

    def _video(self, view: View, take: int, *, kind: str) -> tuple[Path, int, int]:
        """A file of the benchmark with its frames per second and its number of frames."""
        folder, fps = self._folder(kind)
        path = folder / f"{view.ids[take - 1]}_{kind}-videos_{fps}FPS_{view.perspective}_take-{take}_{view.scenario}"
        found_fps, num_frames = measure(path)
        if found_fps != fps:
            raise VideoReadError(f"{path}: {found_fps} frames/s, but its folder and name say {fps}; get it again.")
        return path, fps, num_frames

    def shown(self, view: View) -> Footage:
        """The 3 s of take 1 before those to predict; one that is off by up to 0.1 s is taken, its last 3 s if longer."""
        path, fps, num_frames = self._video(view, 1, kind="conditioning")
        check_length(path, fps, num_frames=num_frames, seconds=SECONDS_SHOWN, advice="get it again.", tolerance=0.1)
        num_source = min(num_frames, SECONDS_SHOWN * fps)
        num_shown = num_source if fps == self.fps else SECONDS_SHOWN * self.fps
        return Footage(path, fps, num_source, self.fps, num_shown, skip=num_frames - num_source)

    def real(self, view: View, take: int) -> Footage:
        """The 5 s that really followed, the first 5 s if the file is longer."""
        path, fps, num_frames = self._video(view, take, kind="testing")
        num_source = SECONDS_PREDICTED * fps
        check_length(
            path, fps, num_frames=min(num_frames, num_source), seconds=SECONDS_PREDICTED, advice="get it again."
        )
        return Footage(path, fps, num_source, self.fps, SECONDS_PREDICTED * self.fps)


def read_categories(path: Path) -> dict[str, str]:
    """The benchmark's descriptions CSV → scenario (`"trimmed-….mp4"`) → category, in the order of the file."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: no CSV in UTF-8 ({error}); give the benchmark's own CSV.") from error
    if not rows or not {"scenario", "category"} <= rows[0].keys():
        raise ValueError(f"{path}: no rows, or not the columns scenario and category; give the benchmark's own CSV.")
    return {row["scenario"].rpartition("_")[2]: row["category"] for row in rows}


def find_generated(folder: str | Path, view: View) -> Path:
    """The video for a view, by its ID: what follows the ID in its name is free, as in the benchmark."""
    found = sorted(Path(folder).glob(f"{view.ids[0]}_*.mp4"))
    if len(found) != 1:
        what = "no video" if not found else "more than one video: " + ", ".join(path.name for path in found)
        raise VideoReadError(f"{Path(folder) / view.name}: {what} with this ID; exactly one is needed for every view.")
    return found[0]


def rate_of_videos(folder: str | Path) -> int:
    """Frames per second of a folder of generated videos, by the first of them."""
    paths = sorted(Path(folder).glob("[0-9]*_*.mp4"))
    if not paths:
        raise ValueError(
            f"{folder}: no video is named {{ID}}_….mp4; give the folder with one for every view of take 1."
        )
    return measure(paths[0])[0]


def generated_footage(folder: str | Path, view: View, *, fps: int) -> Footage:
    path = find_generated(folder, view)
    source_fps, num_frames = measure(path)
    if source_fps != fps:
        raise VideoReadError(f"{path}: {source_fps} frames/s where the others have {fps}; write all at one rate.")
    advice = f"only the {SECONDS_PREDICTED} s that follow the {SECONDS_SHOWN} s shown are scored, all of them."
    check_length(path, fps, num_frames=num_frames, seconds=SECONDS_PREDICTED, advice=advice)
    return Footage(path, fps, num_frames, fps, num_frames)


# Predicting


@dataclass(frozen=True)
class PredictionSettings:
    """How the 5 s are predicted from the 3 s. Frame rate, size and seed are our choice; the rest is the paper's.

    Attributes:
        num_inference_steps: of each clip; the paper's and the authors' script's.
        guidance_scale: the paper's best, found there with 16 frames a clip. The authors' script uses 1.5 with 24.
        frames_per_clip: the paper's best of 1, 2, 4, 8, 16 and 32. The last clip has what is left over.
        max_context_frames: the window of the authors' script.
        height, width: `None` is the model's longest side, as in training: 320 × 176, which the scorer stretches to 16:9.
        seed: of the noise; every view has its own, whatever else is predicted.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 3.0
    frames_per_clip: int = 32
    max_context_frames: int = 80
    height: int | None = None
    width: int | None = None
    seed: int = 0


def predict_view(pipe: VideoGPTPipeline, shown: Footage, *, number: int, settings: PredictionSettings) -> np.ndarray:
    """The 5 s that follow: `uint8` RGB (T, H, W, 3). `number` chooses the noise."""
    if settings.height is None:
        resize = partial(resize_and_crop, longest_side=pipe.config.longest_side)
    else:
        resize = partial(resize_to_cover, height=settings.height, width=settings.width)
    given = np.stack([resize(frame[:, :, ::-1].copy()) for frame in shown.frames()])
    frames = pipe(
        video=given,
        height=given.shape[1],
        width=given.shape[2],
        num_frames=SECONDS_PREDICTED * shown.fps,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        frames_per_clip=settings.frames_per_clip,
        max_context_frames=settings.max_context_frames,
        generator=torch.Generator("cpu").manual_seed(10_000 * settings.seed + number),
        output_type="np",
    ).frames[0]
    return to_uint8_frames(frames)


def predict_views(
    pipe: VideoGPTPipeline, benchmark: Benchmark, *, views: Sequence[View], store: Store, settings: PredictionSettings
) -> None:
    """Writes the video of every view into `store.videos`, except those that are there from this model and these settings."""
    model = hash_of_model(pipe)
    for index, view in enumerate(views):
        shown = benchmark.shown(view)
        path = store.videos / view.name
        key = hash_of("prediction 1", model, asdict(settings), pipe.config.longest_side, view.ids[0], shown.content())
        if path.is_file() and store.load("predictions", key) == hash_file(path):
            continue
        began = time.perf_counter()
        frames = predict_view(pipe, shown, number=int(view.ids[0]), settings=settings)
        with store.writing(path) as unfinished:
            write_video(unfinished, frames, fps=benchmark.fps)
        store.save("predictions", key, value=hash_file(path))
        print(f"{index + 1}/{len(views)} {view.name} predicted in {time.perf_counter() - began:.1f} s", flush=True)


# Scoring


def find_masks(benchmark: Benchmark, masks: str | Path | None, *, kind: str, view: View, take: int) -> Path | None:
    """The ready mask video of a `"real"` or `"generated"` video; `None` where there is no folder of them."""
    fps = benchmark.fps
    folders = [] if masks is None else [Path(masks) / kind / f"{fps}FPS", Path(masks) / kind]
    if kind == "real":
        folders.append(benchmark.root / "video-masks" / "real" / f"{fps}FPS")
    folder = next(filter(Path.is_dir, folders), None)
    if folder is None:
        return None
    path = folder / f"{view.ids[take - 1]}_video-masks_{fps}FPS_{view.perspective}_take-{take}_{view.scenario}"
    if not path.is_file():
        raise VideoReadError(
            f"{path}: there is no such mask; complete the folder, or remove it whole, and its masks are made."
        )
    found_fps, num_masks = measure(path)
    if found_fps != fps:
        raise VideoReadError(f"{path}: masks at {found_fps} frames/s for videos at {fps}; make them again.")
    num_needed = SECONDS_PREDICTED * fps
    check_length(
        path, fps, num_frames=min(num_masks, num_needed), seconds=SECONDS_PREDICTED, advice="make the mask again."
    )
    return path


def _masks_like_reference(footage: Footage, store: Store) -> Path:
    path = store.cached("masks", hash_of("mask 1", footage.content(), footage.fps), suffix=".mp4")
    if not path.is_file():
        with store.writing(path) as unfinished:
            write_masks(unfinished, footage.frames(), fps=footage.fps)
    return path


def score_views(
    benchmark: Benchmark,
    videos: str | Path,
    *,
    views: Sequence[View],
    store: Store,
    mask_mode: str = "reference",
    masks: str | Path | None = None,
) -> list[dict[str, float | list[float]]]:
    """Scores generated videos against both takes, view by view; what was scored before is not scored again.

    Args:
        videos: a folder with one video of exactly 5 s for every view, at the benchmark's frame rate.
        mask_mode: `"reference"` for masks that went through lossy video, as the benchmark's own scorer has them; `"raw"`
            for masks as they are computed.
        masks: ready masks: a folder with folders `real` and `generated` of mask videos in the benchmark's naming. For
            what it lacks, and without it, the real videos' masks are those that come with the benchmark; where those
            are missing too, and for generated videos, masks are made.

    Returns:
        One [`score_view`] for each view.

    Raises:
        ValueError: `masks` in raw mode, or without any folder of masks.
        VideoReadError: a video is missing, can't be read, or has another rate or length.
    """
    if masks is not None and mask_mode == "raw":
        raise ValueError(f"Ready masks ({masks}) are the reference's; leave them out, or use --mask-mode reference.")
    if masks is not None and not any((Path(masks) / kind).is_dir() for kind in ("real", "generated")):
        raise ValueError(f"{masks}: there is no folder real or generated of mask videos in it.")
    fps = benchmark.fps
    # All of them before the first: a missing video is said at once, not after hours.
    generated = [generated_footage(videos, view, fps=fps) for view in views]
    scores = []
    for index, view in enumerate(views):
        footage = [benchmark.real(view, 1), benchmark.real(view, 2), generated[index]]
        mask_paths = [None] * 3
        if mask_mode == "reference":
            kinds = (("real", 1), ("real", 2), ("generated", 1))
            mask_paths = [find_masks(benchmark, masks, kind=kind, view=view, take=take) for kind, take in kinds]
        contents = [video.content() for video in footage]
        mask_contents = [path and hash_file(path) for path in mask_paths]
        key = hash_of("score 1", mask_mode, fps, contents, mask_contents)
        score = store.load("scores", key)
        if score is None:
            first = probe_video(footage[0].path)
            streams = [
                shrink(
                    _with_masks(video, path, mask_mode=mask_mode, store=store),
                    width=first.width // 4,
                    height=first.height // 4,
                )
                for video, path in zip(footage, mask_paths, strict=True)
            ]
            score = score_view(*streams[:2], generated=streams[2])
            store.save("scores", key, value=score)
            print(f"{index + 1}/{len(views)} {view.name} scored", flush=True)
        scores.append(score)
    return scores


def _with_masks(
    footage: Footage, mask_path: Path | None, *, mask_mode: str, store: Store
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if mask_mode == "raw":
        return motion_masks(footage.frames())
    mask_path = mask_path or _masks_like_reference(footage, store)
    return zip(footage.frames(), read_frames(mask_path, footage.num_frames), strict=True)


def rows_by_scenario(views: Sequence[View], scores: Sequence[dict]) -> list[dict]:
    """The scores of all views → the rows that [`score_set`] and [`write_csv`] take."""
    rows = {}
    for view, score in zip(views, scores, strict=True):
        row = rows.setdefault(view.scenario, {"scenario": view.scenario})
        row |= {f"{column}_{view.perspective}": value for column, value in score.items()}
    return list(rows.values())
