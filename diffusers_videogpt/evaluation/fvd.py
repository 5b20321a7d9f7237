"""Fréchet video distance of a folder of clips to another one, or to what a model makes of its clips.

    real = FolderClips("real", ClipSettings())
    made = FolderClips("made", ClipSettings(), is_reference=False)
    evaluate_fvd(load_i3d(), real, made=made)               # by [`metrics.frechet`]

A number is comparable only with one of the same setting: how many clips, of which length and rate, at which resolution, and
whether frames were cropped or squashed to a square. [`ClipSettings`] holds all of it.

Shapes: N clips, F frames, R × R pixels, D = 400 features.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm

from ..data.sampling import Sampling
from ..data.videos import VideoTable
from ..files import Store, hash_file, hash_json, hash_of
from ..metrics.frechet import batched, clip_features, frechet_distance
from ..metrics.i3d import FRAME_SIZE, MIN_FRAMES
from ..metrics.package_weights import cache_folder
from ..pipeline_videogpt import VideoGPTPipeline
from ..video_io import to_uint8_frames, write_video
from ..weights import hash_of_model, hash_tensors, save_tensors


logger = logging.get_logger(__name__)


# Features


def cached_features(path: Path, key: dict[str, Any], *, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The features in `path` if they were made with `key`; else computed, and kept there.

    Raises:
        ValueError: `path` is a file of another kind.
    """
    if path.is_file():
        try:
            with safe_open(path, framework="np") as file:
                found, features = json.loads(file.metadata()["features_of"]), file.get_tensor("features")
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path}: this is no file of features ({error}); delete it or name another cache."
            ) from error
        changes = [f"{n} {found.get(n)!r} → {value!r}" for n, value in key.items() if found.get(n) != value]
        if not changes:
            return features
        logger.warning(f"{path}: these features were made otherwise ({', '.join(changes)}); they are computed anew.")
    features = compute()
    save_tensors(path, {"features": torch.from_numpy(features)}, metadata={"features_of": json.dumps(key)})
    return features


# Clips


@dataclass(frozen=True)
class ClipSettings:
    """How clips are taken from videos, and what a model sees of them.

    Attributes:
        clip_length: frames F of a clip, at least 9.
        num_given: of these, how many a model is shown; the clip that is compared has them too.
        num_videos: how many are drawn from each set, one clip from each; `None`: all.
        resolution: side of the square that frames are brought to first, a multiple of 16; 224 leaves nothing more to do.
        resize: "crop" scales to cover the square and cuts its centre out, "squash" changes the aspect ratio; both bicubic
            with antialiasing.
        frame_interval: frames of a reference video from one to the next.
        by_class: of the reference, as many videos of each folder as of any other.
        seed: of which videos and which of their frames are taken.

    Raises:
        ValueError: a number out of range.
    """

    clip_length: int = 16
    num_given: int = 3
    num_videos: int | None = None
    resolution: int = FRAME_SIZE
    resize: str = "crop"
    frame_interval: int = 1
    by_class: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.clip_length < MIN_FRAMES:
            raise ValueError(f"clip_length={self.clip_length}: I3D takes {MIN_FRAMES} frames or more.")
        if self.num_videos is not None and self.num_videos < 2:
            raise ValueError(f"num_videos={self.num_videos}: a covariance needs 2 videos or more.")
        if self.resolution % 16:
            raise ValueError(f"resolution={self.resolution} is no multiple of 16.")
        if not 0 <= self.num_given < self.clip_length:
            raise ValueError(
                f"num_given={self.num_given} of clip_length={self.clip_length} leaves nothing to predict."
            )


# Where the papers are silent (resolution, crop or squash, rate of Kinetics-600) the defaults of `ClipSettings` stand.
PROTOCOLS = {
    # Video-GPT: 3 frames shown, 13 predicted; 500 videos, and 5000 in a later version of the paper.
    "kinetics600": {"clip_length": 16, "num_given": 3, "num_videos": 500},
    # FAR: class → video, 2,048 videos at 256 × 256 (and 10,000 at 128 × 128).
    "ucf101": {"clip_length": 16, "num_given": 0, "num_videos": 2048, "resolution": 256, "by_class": True},
}


class _Squashing(Sampling):
    def resize(self, frame: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).resize((self.width, self.height), Image.Resampling.BICUBIC))


class FolderClips:
    """One clip of each of the drawn videos of a folder: iterate for uint8 (F, R, R, 3).

    Args:
        folder: videos, in it or in folders below it.
        settings: one seed, name and setting give the same clip, whatever else lies in the folder.
        is_reference: of the reference set, videos that cannot be used are left out (see `dropped`). Of the other set every
            one must be usable, and its frames are taken as they follow each other.

    Raises:
        ValueError: no such folder, too few videos, videos that cannot be used, with their names and what is wrong.
    """

    def __init__(self, folder: str | Path, settings: ClipSettings, *, is_reference: bool = True):
        self.folder, self.settings = Path(folder), settings
        sampling = {"crop": Sampling, "squash": _Squashing}[settings.resize]
        interval = settings.frame_interval if is_reference else 1
        self.table = VideoTable.from_folder(
            folder,
            sampling(
                settings.clip_length,
                frame_interval=(interval, interval),
                height=settings.resolution,
                width=settings.resolution,
            ),
            max_bad_fraction=1.0 if is_reference else 0.0,
        )
        if len(self.table) < (settings.num_videos or 0):
            raise ValueError(
                f"{folder} has {len(self.table)} usable videos, {settings.num_videos} are to be compared: give more, or ask "
                f"for fewer. {self.dropped.summary()}.{self.dropped.first()}"
            )
        self.indices = self._draw(settings.by_class and is_reference)

    def _draw(self, by_class: bool) -> list[int]:
        def rank(index: int) -> bytes:
            return hashlib.blake2b(f"{self.settings.seed}/{self.table.id(index)}".encode()).digest()

        shuffled = sorted(range(len(self.table)), key=rank)
        if by_class:
            taken, rounds = Counter(), {}
            for index in shuffled:
                folder = PurePosixPath(self.table.id(index)).parent
                rounds[index] = taken[folder]
                taken[folder] += 1
            if len(taken) < 2:
                raise ValueError(
                    f"{self.folder}: videos are drawn by class, which needs a folder for each class in it."
                )
            shuffled.sort(key=rounds.get)
        return sorted(shuffled[: self.settings.num_videos])

    @property
    def dropped(self):
        """Videos that cannot be used: name → reason."""
        return self.table.dropped

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> np.ndarray:
        index = self.indices[position]
        return self.table.read(index, self.table.draw_window(index, 0, seed=self.settings.seed))

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[position] for position in range(len(self)))

    def label(self, position: int) -> str:
        """Name of the folder that a clip's video lies in."""
        return PurePosixPath(self.table.id(self.indices[position])).parent.name

    def content(self, position: int) -> tuple[str, str]:
        """Name, and hash of the bytes, of a clip's video."""
        index = self.indices[position]
        return self.table.id(index), hash_file(Path(self.table[index].source))

    def features(
        self, i3d: torch.nn.Module, cache_dir: str | Path | None = None, *, batch_size: int = 8
    ) -> np.ndarray:
        """Its features, fp32 (N, D), from the cache where the same files gave them under the same settings before.

        The cache is keyed by the videos' bytes and the network's weights; it may be deleted at any time.

        Raises:
            ValueError: as [`cached_features`].
        """
        settings = asdict(self.settings)
        del settings["num_given"]  # does not change the real clips
        videos = [self.content(position) for position in range(len(self))]
        key = {
            **settings,
            "network": hash_tensors(i3d.state_dict()),
            "videos": hash_json(videos),
        }
        place = hash_json(str(self.folder.resolve()))[:8]
        name = (
            f"{self.folder.resolve().name}-{place}-{self.settings.clip_length}x{self.settings.resolution}.safetensors"
        )
        path = cache_folder("fvd", cache_dir) / name
        return cached_features(path, key, compute=lambda: clip_features(i3d, self, batch_size=batch_size))


class PredictedClips:
    """What a model makes of the clips of a folder: their first `num_given` frames and those that it predicts.

    Where as many videos of each class are drawn (`by_class`), it is asked for the class of each; the names of the folders
    are its labels. Clip i is predicted with `seed` + i, whatever the batch.

    Args:
        pipe: predicts on its device.
        clips: the reference.
        output: folder that gets the clips as MP4s, `videos/00000.mp4` and so on, and their features below `cache`: a run that was
            killed goes on with the next clip. Both are keyed by all that they depend on.
        call: further arguments of the pipeline's call.

    Raises:
        ValueError: a class that the model does not know.
    """

    def __init__(self, pipe: VideoGPTPipeline, clips: FolderClips, *, output: str | Path, seed: int = 0, **call):
        self.pipe, self.clips, self.store, self.seed, self.call = pipe, clips, Store(output), seed, call
        if clips.settings.by_class:
            unknown = {clips.label(position) for position in range(len(clips))} - set(pipe.labels)
            if unknown:
                raise ValueError(
                    f"The model makes videos of {list(pipe.labels)}, not of {sorted(unknown)}, which are folders of "
                    f"{clips.folder}: name the folders as it names its classes, or make the videos yourself and give --videos."
                )

    def __len__(self) -> int:
        return len(self.clips)

    def predict(self, positions: Sequence[int]) -> list[np.ndarray]:
        """The clips at these positions, each uint8 (F, R, R, 3), predicted together."""
        settings = self.clips.settings
        given = [self.clips[position][: settings.num_given] for position in positions]
        asked = {}
        if settings.by_class:
            asked["class_labels"] = [self.clips.label(position) for position in positions]
        if settings.num_given:
            asked["video"] = given
        predicted = self.pipe(
            **asked or {"num_videos_per_prompt": len(positions)},
            num_frames=settings.clip_length - settings.num_given,
            height=settings.resolution,
            width=settings.resolution,
            generator=[torch.Generator().manual_seed(self.seed + position) for position in positions],
            output_type="np",
            **self.call,
        ).frames
        return [np.concatenate([x, to_uint8_frames(frames)]) for x, frames in zip(given, predicted, strict=True)]

    def features(self, i3d: torch.nn.Module, batch_size: int = 8) -> np.ndarray:
        """Features of all clips, fp32 (N, D); those in the folder are not predicted again."""
        clips, store = self.clips, self.store
        of_all = (
            hash_of_model(self.pipe),
            hash_tensors(i3d.state_dict()),
            asdict(clips.settings),
            self.seed,
            self.call,
        )
        keys = [hash_of("fvd 1", *of_all, position, clips.content(position)) for position in range(len(clips))]
        missing = [position for position, key in enumerate(keys) if store.load("features", key) is None]
        if len(missing) < len(keys):
            logger.warning(f"{store.root}: {len(keys) - len(missing)} of {len(keys)} clips were predicted before.")
        with tqdm(
            total=len(keys), initial=len(keys) - len(missing), desc="Predicted", unit="clip", delay=5
        ) as progress:
            for positions in batched(missing, batch_size):
                made = self.predict(positions)
                for position, clip, features in zip(
                    positions, made, clip_features(i3d, made, batch_size=batch_size), strict=True
                ):
                    write_video(store.videos / f"{position:05d}.mp4", clip, fps=8, crf=10)
                    store.save("features", keys[position], value=features.tolist())
                progress.update(len(positions))
        return np.array([store.load("features", key) for key in keys], dtype=np.float32)


def evaluate_fvd(
    i3d: torch.nn.Module,
    reference: FolderClips,
    *,
    made: FolderClips | PredictedClips,
    cache_dir: str | Path | None = None,
    batch_size: int = 8,
) -> float:
    """FVD between the clips of a folder and as many made ones, from another folder or predicted by a model.

    Args:
        cache_dir: where the reference's features are kept.

    Raises:
        ValueError: folders with different numbers of videos; and as the functions that this is made of.
    """
    if len(reference) < 2:
        raise ValueError(
            f"{reference.folder} has {len(reference)} usable videos, a covariance needs 2 or more: give more. "
            f"{reference.dropped.summary()}.{reference.dropped.first()}"
        )
    if len(made) != len(reference):
        raise ValueError(
            f"The sets differ in size: {reference.folder} has {len(reference)} usable videos, {made.folder} {len(made)}. Compare "
            f"{min(len(reference), len(made))} of each, or complete the smaller set."
        )
    real = reference.features(i3d, cache_dir, batch_size=batch_size)
    if isinstance(made, PredictedClips):
        return frechet_distance(real, made.features(i3d, batch_size))
    return frechet_distance(real, clip_features(i3d, made, batch_size=batch_size))
