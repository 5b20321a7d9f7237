"""Videos with masks of their objects: DAVIS's and YouTube-VOS's folders, simulated scenes, and training samples of them.

    videos = read_masked_videos("DAVIS", "train")
    table = SegmentationTable.of(videos, Sampling(max_num_frames=48))
    sample = table.read(0, table.draw_window(0, draw=0, seed=0))    # uint8 (97, h, w, 3)

Shapes: F frames of a video, N frames of a clip, H × W pixels, h × w after scaling. Masks are uint8: 0 for the background,
255 for pixels that are left open (they count as background), any other number for an object.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, UnidentifiedImageError

from ..data.batches import WindowDataset
from ..data.latents import LatentCache, make_cache_key
from ..data.sampling import Sampling, Window, seeded_generator
from ..data.tables import read_text
from ..data.videos import FIRST_TRAINING_SEED, DroppedVideos, VideoRecord, VideoTable, report_dropped
from ..files import hash_file, hash_json, path_inside, read_json
from ..orientation import upright
from ..pictures import opened_picture, read_picture, upright_size
from ..training.feed import CachedWindows, LatentFeed, PlannedBatches, split_off, write_run_cache
from ..training.loading import make_sampling
from ..training.settings import DataSettings, SamplingSettings, VideoSettings
from ..video_io import VideoInfo, VideoReadError
from ..worlds import simulate
from .video_object_segmentation import (
    BACKGROUND,
    COLOURS,
    Marking,
    draw_segmentation_clips,
    object_ids,
    resize_frames,
    resize_masks,
)


# Share of the training samples that mark only some of their objects: what is not marked in the first frame is to stay so.
PARTLY_MARKED = 0.25
LAYOUT = ("JPEGImages", "Annotations")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")


# Masks as files


def index_colours() -> np.ndarray:
    """The colours of DAVIS's and Pascal VOC's index PNGs, uint8 (256, 3).

    Bits 0, 3, 6 of an index are the highest bits of red, bits 1, 4, 7 those of green, bits 2, 5 those of blue.
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> channel & 1) << 7 - bit).astype(np.uint8)
        index >>= 3
    return colours


def write_masks(folder: str | Path, masks: np.ndarray, *, names: Sequence[str]) -> Path:
    """Writes uint8 (F, H, W) as index PNGs, `name.png` each, as DAVIS has them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    palette = index_colours().flatten().tolist()
    for mask, name in zip(masks, names, strict=True):
        image = Image.fromarray(mask)
        image.putpalette(palette)
        image.save(folder / f"{name}.png")
    return folder


def read_mask(path: Path) -> np.ndarray:
    """An index PNG (or a grey one, whose values are the ids), uint8 (H, W).

    Raises:
        VideoReadError: the file does not decode.
        ValueError: it is a picture in colours, not of ids.
    """
    try:
        with opened_picture(path) as image:
            mode, ids = image.mode, np.asarray(upright(image))
    except UnidentifiedImageError as error:
        raise VideoReadError(f"{path} does not decode ({error}): copy it again.") from error
    if mode not in ("P", "L"):
        raise ValueError(f"{path} is a picture of mode {mode}, not a mask: give PNGs of indices, mode P.")
    return ids


# Videos


@dataclass(frozen=True)
class MaskedVideo:
    """A video as a folder of frames, with the masks that there are.

    Attributes:
        name: of its folder.
        frames: paths of the F frames, in order.
        masks: frame name → path; of YouTube-VOS, not every frame has one.
    """

    name: str
    frames: tuple[Path, ...]
    masks: dict[str, Path]

    @property
    def annotated(self) -> list[int]:
        """Indices of the frames that have a mask."""
        return [index for index, path in enumerate(self.frames) if path.stem in self.masks]

    def read_frames(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 (…, H, W, 3), upright and on white. Raises a `ValueError` if the frames differ in size."""
        frames = [read_picture(self.frames[index]) for index in indices]
        for index, frame in zip(indices, frames, strict=True):
            if frame.shape != frames[0].shape:
                raise ValueError(
                    f"{self.frames[index]} is {_size(frame)}, {self.frames[indices[0]]} is {_size(frames[0])}: the frames "
                    "of one video must agree in size."
                )
        return np.stack(frames)

    def read_masks(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 (…, H, W). Raises a `ValueError` if one is of another size than its frame."""
        masks = []
        for index in indices:
            path = self.masks[self.frames[index].stem]
            mask = read_mask(path)
            height, width = upright_size(self.frames[index])
            if mask.shape != (height, width):
                raise ValueError(
                    f"The mask {path} is {_size(mask)}, its frame {width} × {height}: take the masks that belong to these "
                    "frames, or resize them by nearest neighbour."
                )
            masks.append(mask)
        return np.stack(masks)

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Frames and masks of some of the annotated frames, counted among these."""
        annotated = self.annotated
        indices = [annotated[index] for index in indices]
        return self.read_frames(indices), self.read_masks(indices)

    def digest(self) -> str:
        """Of the content of the annotated frames and of their masks."""
        paths = [self.frames[index] for index in self.annotated]
        return hash_json([[path.name, hash_file(path), hash_file(self.masks[path.stem])] for path in paths])

    def info(self) -> VideoInfo:
        """Of the annotated frames."""
        return VideoInfo(*upright_size(self.frames[0]), np.arange(len(self.annotated), dtype=np.float64))


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} × {picture.shape[0]}"


@dataclass(frozen=True)
class SimulatedMasks:
    """A scene of [`~worlds.simulate`] with its exact masks. Objects that are drawn later hide earlier ones, in both."""

    seed: int
    num_frames: int
    size: int

    @property
    def name(self) -> str:
        return f"scene {self.seed}"

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        scene = simulate(seed=self.seed, num_frames=self.num_frames, size=self.size)
        return scene.frames[indices], scene.masks[indices]

    def digest(self) -> str:
        """Of what the scene follows from."""
        return hash_json(repr(self))

    def info(self) -> VideoInfo:
        return VideoInfo(self.size, self.size, np.arange(self.num_frames, dtype=np.float64))


def read_masked_videos(root: str | Path, split: str = "train") -> list[MaskedVideo]:
    """The videos of a folder in the layout of DAVIS or YouTube-VOS.

    Frames are `JPEGImages/480p/VIDEO/*.jpg`, masks `Annotations/480p/VIDEO/*.png`; in both without `480p`, where there is no
    such folder. The videos are those of `ImageSets/2017/{split}.txt`; else those of `meta.json`, whose masks may be
    sparse; else all that have masks.

    Raises:
        ValueError: a folder, a split, a video, or the mask of a first frame is missing; it is named.
    """
    root = Path(root)
    folders = [root / name / "480p" if (root / name / "480p").is_dir() else root / name for name in LAYOUT]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder: give the one that holds {' and '.join(LAYOUT)}.")
    frames_root, masks_root = folders
    lists, meta = root / "ImageSets" / "2017", root / "meta.json"
    if lists.is_dir():
        path = lists / f"{split}.txt"
        if not path.exists():
            known = ", ".join(sorted(x.stem for x in lists.glob("*.txt")))
            raise ValueError(f"There is no split '{split}' in {lists}: choose one of {known}.")
        names = read_text(path).split()
    elif meta.exists():
        try:
            names = sorted(read_json(meta)["videos"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{meta} does not list videos as YouTube-VOS's does ({error!r}): copy it again."
            ) from error
    else:
        names = sorted(path.name for path in masks_root.iterdir() if path.is_dir())
    videos = []
    for name in names:
        # The names are from a file, and masks that a model finds are written under them.
        frames_folder, masks_folder = path_inside(frames_root, name), path_inside(masks_root, name)
        frames = tuple(sorted(path for path in frames_folder.glob("*") if path.suffix.lower() in FRAME_SUFFIXES))
        masks = {path.stem: path for path in sorted(masks_folder.glob("*.png"))}
        if not frames:
            raise ValueError(f"The video '{name}' has no frames in {frames_folder}.")
        first = frames[0].stem
        if not masks or (first not in masks and not meta.exists()):
            raise ValueError(
                f"The video '{name}' has no mask of its first frame: {masks_folder / first}.png is missing."
            )
        without = [path.stem for path in frames if path.stem not in masks]
        if len(masks) > 1 and without and lists.is_dir():
            raise ValueError(
                f"The video '{name}' has masks of some frames only: {masks_folder / without[0]}.png is missing "
                f"({len(without)} in all). Copy them again."
            )
        videos.append(MaskedVideo(name, frames, masks))
    if not videos:
        raise ValueError(f"There is no video in {frames_root}.")
    return videos


# Training samples


def draw_marking(mask: np.ndarray, generator: torch.Generator) -> Marking:
    """A training sample's marking: colours drawn for the objects of its first mask, sometimes for some of them only."""
    objects = object_ids(mask)
    count = min(len(objects), len(COLOURS))
    if count > 1 and float(torch.rand((), generator=generator)) < PARTLY_MARKED:
        count = int(torch.randint(1, count + 1, (), generator=generator))
    order = torch.randperm(len(objects), generator=generator)[:count].tolist()
    colours = torch.randperm(len(COLOURS), generator=generator)[:count].tolist()
    return Marking(tuple(objects[index] for index in order), tuple(colours))


class SegmentationTable(VideoTable):
    """Videos with masks, as a table whose samples are the 2 N + 1 frames of a training sample.

    These are N frames, the first of them marked, and the N frames marked: all of one window. Only frames with a mask are
    taken. Made by [`of`].
    """

    @classmethod
    def of(
        cls, videos: Sequence[MaskedVideo | SimulatedMasks], sampling: Sampling, *, max_bad_fraction: float = 0.5
    ) -> "SegmentationTable":
        """The usable ones of some videos.

        Raises:
            ValueError: more than the share `max_bad_fraction` of them are too short, too small or unreadable, or all.
        """
        table = cls([], [], sampling=sampling, dropped=DroppedVideos(max_bad_fraction, len(videos)))
        for video in videos:
            reason = ""
            try:
                info = video.info()
                sampling.size(info)
            except VideoReadError as error:
                reason = f"unreadable: {error}"
            except ValueError as error:
                reason = f"too small: {error}"
            if not reason and not sampling.length(info):
                least = sampling.min_num_frames or sampling.max_num_frames
                reason = f"too short: {info.num_frames} frames with masks, a clip has {least}"
            if reason:
                table.dropped[video.name] = reason
            else:
                table.records.append(VideoRecord(video.name, video, digest=video.digest()))
                table.infos.append(info)
        table.dropped.check()
        if not table.records:
            raise ValueError(f"No usable video: {table.dropped.summary()}.{table.dropped.first()}")
        return table

    def subset(self, indices: Sequence[int]) -> "SegmentationTable":
        records, infos = ([values[index] for index in indices] for values in (self.records, self.infos))
        return SegmentationTable(records, infos, sampling=self.sampling, dropped=self.dropped)

    def length(self, index: int) -> int:
        """Frames of a sample, 2 N + 1."""
        return 2 * super().length(index) + 1

    def read_clip(self, index: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """The window's frames, uint8 (N, h, w, 3), and their masks, (N, h, w)."""
        frames, masks = self.records[index].source.read(self.frame_indices(index, window))
        height, width = self.size(index)
        return resize_frames(frames, height=height, width=width), resize_masks(masks, height=height, width=width)

    def read(self, index: int, window: Window) -> np.ndarray:
        """A sample, uint8 (2 N + 1, h, w, 3). Its colours follow from the video and the window."""
        frames, masks = self.read_clip(index, window)
        generator = seeded_generator(self.id(index), window.start, window.interval, "marking")
        marked = draw_marking(masks[0], generator).draw(masks)
        return np.concatenate([frames, marked[:1], marked])

    def clips(self, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The first `count` videos that show an object, a window of each, as [`read_clip`] has them."""
        clips = (self.read_clip(index, self.draw_window(index, 0, seed=seed)) for index in range(len(self)))
        return islice((clip for clip in clips if object_ids(clip[1][0])), count)


def load_segmentation_table(videos: VideoSettings, sampling: SamplingSettings) -> SegmentationTable:
    """The videos with masks that the settings name: a folder's, or simulated scenes."""
    if videos.num_simulated_scenes is None:
        found = read_masked_videos(videos.instance_data_root, videos.dataset_split)
    else:
        num_frames = videos.frames_per_scene or sampling.num_frames
        found = [
            SimulatedMasks(FIRST_TRAINING_SEED + index, num_frames, sampling.longest_pixels)
            for index in range(videos.num_simulated_scenes)
        ]
    return SegmentationTable.of(found, make_sampling(sampling), max_bad_fraction=videos.max_bad_fraction)


def make_segmentation_feed(accelerator: Accelerator, vae, *, data: DataSettings) -> LatentFeed:
    """The feed of a training run; some of the videos are kept for validation.

    With `--windows_per_video` the samples are encoded before the first step, into `output_dir/latents`.
    """
    sampling, latents, batches = data.sampling, data.latents, data.batches
    with accelerator.main_process_first():
        table = load_segmentation_table(data.videos, sampling)
    report_dropped(table.dropped, data.output_dir, is_main_process=accelerator.is_main_process)
    ids = [record.id for record in table.records]
    kept, held_out = split_off(ids, latents.num_held_out(len(ids)), seed=sampling.seed)
    table, held_out = table.subset(kept), table.subset(held_out)
    train = WindowDataset(table, sampling.seed)
    if latents.windows_per_video is not None:
        key = make_cache_key(vae, make_sampling(sampling), seed=sampling.seed)
        key |= {"colours": COLOURS.tolist(), "background": BACKGROUND.tolist(), "partly_marked": PARTLY_MARKED}
        cache = LatentCache(write_run_cache(accelerator, vae, table=table, key=key, data=data), key)
        train = CachedWindows(cache, range(len(cache)))
    return LatentFeed(
        accelerator,
        vae,
        draw_clips=draw_segmentation_clips,
        source=PlannedBatches(accelerator, train, batches=batches, seed=sampling.seed, dropped=table.dropped),
        sampling=sampling,
        latents=latents,
        batch_size=batches.train_batch_size,
        validation=WindowDataset(held_out, sampling.seed) if len(held_out) else None,
    )
