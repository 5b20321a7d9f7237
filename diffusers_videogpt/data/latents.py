"""Frames → latents for training: encoded once, sampled at every step, and kept in a cache of safetensors files.

    moments = encode_moments(vae, frames)                              # (F, c, h, w), of uint8 (F, H, W, 3)
    latents = sample_latents(moments, vae.config, generator=generator) # (C, F, h, w), scaled: what the network sees

    key = make_cache_key(vae, sampling, seed=0)
    write_latent_cache("cache", table, vae=vae, key=key)
    cache = LatentCache("cache", key)
    moments = cache.read(index=0, draw=0)                              # the very bits that `encode_moments` gave

What is kept are the moments, the mean and log variance of every frame, because each step samples anew, as the
reference does. Shapes: B videos, F frames, D distinct frames, H × W pixels, h × w latents, C latent channels; c is 2C, or C
for an autoencoder without a posterior.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..actions import ActionSpace
from ..config_values import check_cache_index
from ..console import printable_name
from ..files import read_json, written_whole
from ..video_io import VideoReadError
from ..weights import hash_weights
from .sampling import Sampling
from .videos import DatasetRow, DroppedVideos, VideoTable
from .workers import check_shared_memory, until_timeout, worker_options


INDEX = "index.json"
_AGAIN = "copy it again, or run training_scripts/cache_latents.py again"
MAX_SHARD_SIZE = 512 * 2**20
HAS_ACTIONS = "actions.num_actions"  # is in the key of a cache that keeps actions, with `None` if they are continuous


# Encoding


def distinct_frames(frames: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """(N, H, W, 3) → the distinct frames (D, H, W, 3) in order of appearance, and the place of each of N among them."""
    places: dict[bytes, int] = {}
    first, order = [], []
    for index, frame in enumerate(frames):
        digest = hashlib.blake2b(np.ascontiguousarray(frame), digest_size=16).digest()
        if digest not in places:
            places[digest] = len(first)
            first.append(index)
        order.append(places[digest])
    return frames[first], order


@torch.no_grad()
def encode_moments(vae, frames: torch.Tensor | np.ndarray, *, batch_size: int = 16) -> torch.Tensor:
    """Pixels → what the VAE says about each frame, neither sampled nor scaled. Every distinct frame is encoded once.

    The moments of a frame do not depend on which other frames come with it, to the last bit: so a cache and training
    on pixels agree, as long as both use one device and `batch_size`.

    Args:
        vae: a diffusers autoencoder of images; it runs in its own precision, on its own device.
        frames: `uint8` (F, H, W, 3) or (B, F, H, W, 3), with H and W multiples of the VAE's factor.
        batch_size: frames a call of the VAE.

    Returns:
        fp32 (F, c, h, w) or (B, F, c, h, w), on the VAE's device.

    Raises:
        ValueError: if `frames` are of another kind, or the VAE gives NaN or infinity.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim not in (4, 5) or frames.shape[-1] != 3:
        raise ValueError(
            f"`frames` must be uint8 (F, H, W, 3) or (B, F, H, W, 3), got {frames.dtype} {frames.shape}: pass them as "
            "`read_video` gives them."
        )
    distinct, order = distinct_frames(frames.reshape(-1, *frames.shape[-3:]))
    moments = []
    for chunk in torch.from_numpy(distinct).split(batch_size):
        # Convolutions round differently when the number of frames differs: every call has `batch_size` of them.
        full = chunk[torch.arange(batch_size).clamp(max=len(chunk) - 1)].to(vae.device)
        pixels = full.permute(0, 3, 1, 2).float() / 127.5 - 1
        encoded = vae.encode(pixels.to(vae.dtype, memory_format=torch.channels_last))
        posterior = getattr(encoded, "latent_dist", None)
        encoded = encoded.latents if posterior is None else posterior.parameters
        moments.append(encoded[: len(chunk)].float())
    moments = torch.cat(moments)
    if not moments.isfinite().all():
        raise ValueError(
            f"The VAE gives NaN or infinity in {vae.dtype}: load it in float32 (`--vae_dtype float32`), or bfloat16."
        )
    return moments[order].unflatten(0, frames.shape[:-3]).contiguous()


def sample_latents(
    moments: torch.Tensor, vae_config: Mapping[str, Any], *, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Moments of one video → latents as the network sees them: a posterior sample, shifted and scaled.

    Args:
        moments: (F, c, h, w) of [`encode_moments`] or of a [`LatentCache`].
        vae_config: `vae.config`.
        generator: a **CPU** generator, so that one seed gives one sample on every device.

    Returns:
        fp32 (C, F, h, w), where the moments are.
    """
    if moments.shape[1] == vae_config["latent_channels"]:
        latents = moments
    else:
        latents = DiagonalGaussianDistribution(moments).sample(generator)
    latents = (latents - (vae_config.get("shift_factor") or 0.0)) * vae_config["scaling_factor"]
    return latents.transpose(0, 1)


# The key of a cache


def make_cache_key(vae, sampling: Sampling, *, seed: int, actions: ActionSpace | None = None) -> dict[str, Any]:
    """What decides which latents a video has, as flat values that JSON can hold.

    Args:
        vae: its class, precision, config and weights (as SHA-256) go into the key.
        sampling: how windows are taken from the videos.
        seed: of the windows.
        actions: which ones are kept beside the latents, if any are.
    """
    key = {
        "seed": seed,
        **{f"sampling.{name}": value for name, value in asdict(sampling).items()},
        "vae.class": type(vae).__name__,
        "vae.dtype": str(vae.dtype).removeprefix("torch."),
        "vae.weights": hash_weights(vae),
        **{f"vae.{name}": value for name, value in vae.config.items() if not name.startswith("_")},
    }
    if actions is not None:
        key |= {HAS_ACTIONS: actions.num_actions, "actions.action_dim": actions.action_dim}
    return json.loads(json.dumps(key))  # tuples as lists, as they will be read back


TENSORS = ("moments", "windows", "actions")  # of a video; the last one only where there are actions


def _tensors_of(file, id: str, *, has_actions: bool) -> dict[str, torch.Tensor]:
    """What an open shard holds of a video, by the names of `TENSORS`."""
    return {name: file.get_tensor(f"{id}/{name}") for name in TENSORS if name != "actions" or has_actions}


def _tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """BLAKE2 of what a cache holds of a video."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (tensors[name] for name in TENSORS if name in tensors):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_key(folder: Path, found: dict[str, Any], *, expected: dict[str, Any]) -> None:
    changes = [
        f"{name} {found.get(name)!r} → {value!r}" for name, value in expected.items() if found.get(name) != value
    ]
    if changes:
        raise ValueError(
            f"The latent cache {folder} was made otherwise ({', '.join(changes)}): make one with these values in another "
            "folder, or use the values it was made with."
        )


# Writing


class _DistinctFrames(Dataset):
    """The distinct frames of each video's windows and, for each window, their order and actions; or why it is unusable."""

    def __init__(self, table: VideoTable, indices: Sequence[int], *, seed: int, num_windows: int):
        self.table, self.indices, self.seed, self.num_windows = table, indices, seed, num_windows

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict[str, np.ndarray] | str:
        index = self.indices[i]
        windows = [self.table.draw_window(index, draw, seed=self.seed) for draw in range(self.num_windows)]
        try:
            frames, order = distinct_frames(np.concatenate([self.table.read(index, window) for window in windows]))
        except VideoReadError as error:
            return f"unreadable: {error}"
        found = {"frames": frames, "windows": np.array(order, dtype=np.int32).reshape(self.num_windows, -1)}
        actions = [self.table.read_actions(index, window) for window in windows]
        return found if actions[0] is None else found | {"actions": np.stack(actions)}


def write_latent_cache(
    folder: str | Path,
    table: VideoTable,
    *,
    vae,
    key: dict[str, Any],
    num_windows: int = 1,
    batch_size: int = 16,
    max_shard_size: int = MAX_SHARD_SIZE,
    rank: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
) -> None:
    """Encodes the windows of all videos into `folder`: `latents-00000.safetensors`, …, and `index.json` at the end.

    May be stopped at any moment and called again: shards that are whole, by their content, are kept, and all that is
    missing or damaged, or whose videos have changed, is written. Each process writes its share of the shards; whichever finds all of them there
    writes the index, so they need not wait for each other, nor run at the same time.

    Args:
        table: a video that cannot be read is left out; its reason goes into `table.dropped` and the index.
        vae: encodes in its own precision, in which the moments are also kept.
        key: of [`make_cache_key`], made with the same VAE and the table's sampling; more may be added to it, for
            example where the videos come from.
        num_windows: windows kept of each video, those of draws 0, 1, ….
        batch_size: frames a call of the VAE; training on pixels agrees with a cache of the same number.
        max_shard_size: bytes of a file, unless a single video is larger; what is lost at most when a process is killed.
        rank, num_processes: which share of the shards is this process's.
        num_workers: processes that read videos meanwhile.

    Raises:
        ValueError: if `folder` holds a cache of another key (the message names what differs), or of videos that `table`
            does not have; if more than the share that `table.dropped` allows cannot be read.
        OSError: if a file cannot be written; the complete shards remain.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_to_shrink(folder, {record.id for record in table.records})
    key = key | {"num_windows": num_windows}
    shards = _plan_shards(table, vae, num_windows=num_windows, max_shard_size=max_shard_size)
    paths = [folder / f"latents-{number:05d}.safetensors" for number in range(len(shards))]
    described = [[_describe(table, index) for index in shard] for shard in shards]

    missing = [
        number
        for number in range(rank, len(shards), num_processes)
        if not _is_done(paths[number], key, videos=described[number], check_content=True)
    ]
    if missing:
        (folder / INDEX).unlink(missing_ok=True)
    indices = [index for number in missing for index in shards[number]]
    dataset = _DistinctFrames(table, indices, seed=key["seed"], num_windows=num_windows)
    if indices:
        sizes = [num_windows * table.length(i) * table.size(i)[0] * table.size(i)[1] * 3 for i in indices]
        check_shared_memory(num_workers, min(sizes))
    loader = until_timeout(DataLoader(dataset, batch_size=None, **worker_options(num_workers)))
    with tqdm(total=len(indices), desc="Encoding videos", unit="video", mininterval=5, disable=rank > 0) as progress:
        for number in missing:
            tensors, dropped, digests = {}, {}, {}
            for video in described[number]:
                read = next(loader)
                if isinstance(read, str):
                    dropped[video["id"]] = read
                    table.dropped.add(video["id"], read)
                else:
                    moments = encode_moments(vae, read.pop("frames"), batch_size=batch_size).to("cpu", vae.dtype)
                    kept = {"moments": moments, **read}
                    tensors |= {f"{video['id']}/{name}": tensor for name, tensor in kept.items()}
                    digests[video["id"]] = _tensors_digest(kept)
                progress.update()
            header = {"key": key, "videos": described[number], "dropped": dropped, "digests": digests}
            with _whole_file(paths[number]) as path:
                save_file(tensors, path, {"cache": json.dumps(header)})

    if all(_is_done(path, key, videos=videos) for path, videos in zip(paths, described, strict=True)):
        _write_index(folder, paths, key=key, all_dropped=table.dropped)


def _refuse_to_shrink(folder: Path, ids: set[str]) -> None:
    try:
        index = read_json(folder / INDEX)
        check_cache_index(index)
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ValueError(
            f"{folder / INDEX} is not the index of a latent cache ({error}): remove it, and run again."
        ) from error
    videos = index["videos"]
    lost = [video["id"] for video in videos if video["id"] not in ids]
    if lost:
        shown = lost if len(lost) <= 3 else [*lost[:3], "…"]
        raise ValueError(
            f"The latent cache {folder} holds {len(lost)} videos that are not among these {len(ids)} ({', '.join(shown)}), "
            "and they would be lost: make one in another folder, or remove this one first."
        )


def _describe(table: VideoTable, index: int) -> dict[str, Any]:
    height, width = table.size(index)
    record, info = table.records[index], table.infos[index]
    described = {
        "id": record.id,
        "caption": record.caption,
        "label": record.label,
        "length": table.length(index),
        "height": height,
        "width": width,
        # To notice a file that was replaced.
        "source_frames": info.num_frames,
        "source_bytes": record.source.stat().st_size if isinstance(record.source, Path) else None,
        "source_digest": record.digest,
    }
    if isinstance(record.source, DatasetRow):  # whose ids are but numbers, in every dataset
        described["source_dataset"] = record.source.dataset._fingerprint
    if record.actions is not None:
        described["source_actions"] = hashlib.blake2b(record.actions.tobytes(), digest_size=16).hexdigest()
    return described


def _plan_shards(table: VideoTable, vae, *, num_windows: int, max_shard_size: int) -> list[list[int]]:
    """Indices of the videos in each shard, in order, by the size they have if none of their frames are alike."""
    side = 64
    sample = encode_moments(vae, np.zeros((1, side, side, 3), np.uint8), batch_size=1)
    bytes_per_pixel = sample.numel() * vae.dtype.itemsize / side**2
    shards, size = [[]], 0.0
    for index in range(len(table)):
        height, width = table.size(index)
        added = num_windows * table.length(index) * height * width * bytes_per_pixel
        if shards[-1] and size + added > max_shard_size:
            shards.append([])
            size = 0.0
        shards[-1].append(index)
        size += added
    return shards


def _header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        try:
            header = json.loads(file.metadata()["cache"])
            return {name: header[name] for name in ("key", "videos", "dropped")} | {
                "digests": header.get("digests", {})
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is no shard of cached latents ({error!r}): remove it, and run again.") from error


def _is_done(path: Path, key: dict[str, Any], *, videos: list[dict[str, Any]], check_content: bool = False) -> bool:
    """Whether a shard is there, and is of these videos; with `check_content` also whether its bytes are those written.

    Raises:
        ValueError: if it is of another key.
    """
    try:
        header = _header(path)
        _check_key(path.parent, header["key"], expected=key)
        # What shards of earlier versions do not tell cannot differ.
        is_same = len(header["videos"]) == len(videos) and all(
            found == {name: video[name] for name in found}
            for found, video in zip(header["videos"], videos, strict=True)
        )
        if not is_same or not check_content:
            return is_same
        with safe_open(path, framework="pt") as file:
            return all(
                digest == _tensors_digest(_tensors_of(file, id, has_actions=HAS_ACTIONS in header["key"]))
                for id, digest in header.get("digests", {}).items()
            )
    except (FileNotFoundError, SafetensorError):  # not written yet, or cut by a copy
        return False


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to, and moves the file there: under its name it is always whole."""
    try:
        with written_whole(path) as unfinished:
            yield unfinished
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{path} could not be written ({error}): make room or choose another folder, and run again; what is complete "
            "is kept."
        ) from error


def _write_index(folder: Path, paths: list[Path], *, key: dict[str, Any], all_dropped: DroppedVideos) -> None:
    headers = [_header(path) for path in paths]
    dropped = {id: reason for header in headers for id, reason in header["dropped"].items()}
    for id, reason in dropped.items():  # other processes' too
        all_dropped.add(id, reason)
    videos = [
        video | {"shard": number, "digest": header.get("digests", {}).get(video["id"])}
        for number, header in enumerate(headers)
        for video in header["videos"]
        if video["id"] not in dropped
    ]
    # Shards behind the last are of an earlier, longer list of videos; partial ones of killed processes.
    for path in folder.glob("latents-[0-9]*.safetensors*"):
        if path not in paths:
            path.unlink(missing_ok=True)
    index = {
        "key": key,
        "shards": [{"file": path.name, "bytes": path.stat().st_size} for path in paths],
        "dropped": dropped,
        "videos": videos,
    }
    with _whole_file(folder / INDEX) as path:
        path.write_text(json.dumps(index, indent=1), encoding="utf-8")


# Reading


class LatentCache:
    """The moments in a finished cache, video by video.

    Files are opened when first needed and mapped, not loaded. A cache can be handed to data-loader workers.

    Args:
        folder: what [`write_latent_cache`] wrote.
        expected: what the cache must have been made with, of [`make_cache_key`]; what is not in it is not checked.

    Attributes:
        ids: names of the videos, in the order of the table that they were encoded from.
        captions, labels: of the videos, `None` where there are none.
        dropped: id → reason, of the videos that could not be read.
        num_windows: windows of each video.
        has_actions: whether the actions that led to the frames are kept too.

    Raises:
        FileNotFoundError: if there is no finished cache in `folder`.
        ValueError: if it was made otherwise (the message names what differs), a file was cut since, or the index is none.
    """

    def __init__(self, folder: str | Path, expected: dict[str, Any]):
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.folder} holds no finished latent cache: there is no {INDEX}, which is written last. Run "
                "training_scripts/cache_latents.py, which goes on where it was stopped."
            ) from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.folder / INDEX} is no JSON ({error}): {_AGAIN}.") from error
        try:
            check_cache_index(index)
        except ValueError as error:
            raise ValueError(
                f"{self.folder / INDEX} is not the index of a latent cache ({error}): {_AGAIN}."
            ) from error
        _check_key(self.folder, index["key"], expected=expected)
        for shard in index["shards"]:
            path = self.folder / shard["file"]
            if path.parent != self.folder or path.name in ("", ".."):
                raise ValueError(
                    f"{self.folder / INDEX} names a file outside of its folder ({printable_name(shard['file'])}), which no cache that was "
                    "made here does: it is not to be trusted."
                )
            size = path.stat().st_size if path.exists() else 0
            if size != shard["bytes"]:
                raise ValueError(f"{path} has {size} bytes instead of {shard['bytes']}: {_AGAIN}.")
        self.num_windows = index["key"]["num_windows"]
        self.dropped = index["dropped"]
        self._videos = index["videos"]
        self._paths = [self.folder / shard["file"] for shard in index["shards"]]
        self._files, self._checked = {}, set()
        self.has_actions = HAS_ACTIONS in index["key"]
        self.ids = [video["id"] for video in self._videos]
        self.captions = [video.get("caption") for video in self._videos]
        self.labels = [video.get("label") for video in self._videos]

    def __getstate__(self):
        return self.__dict__ | {"_files": {}}  # an open file cannot be sent to another process

    def __len__(self) -> int:
        return len(self._videos)

    def content_hash(self, indices: Sequence[int] | None = None) -> str:
        """Of the latents, captions and labels of these videos, or of all: what a training must find unchanged to go on."""
        digest = hashlib.sha256()
        for index in range(len(self)) if indices is None else indices:
            video = self._videos[index]
            digest.update(json.dumps([video.get(name) for name in ("id", "digest", "caption", "label")]).encode())
        return digest.hexdigest()

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) in pixels of a video's frames."""
        return self._videos[index]["height"], self._videos[index]["width"]

    def length(self, index: int) -> int:
        """Frames of a video's windows."""
        return self._videos[index]["length"]

    def read(self, index: int, draw: int) -> torch.Tensor:
        """Moments of the window that a draw uses, fp32 (F, c, h, w), for [`sample_latents`].

        The first `num_windows` draws are those of training on pixels; later ones use the same windows again.

        Raises:
            ValueError: the file was changed since it was written. Every video is checked when it is first read.
        """
        tensors = self._tensors(index)
        return tensors["moments"][tensors["windows"][draw % self.num_windows]].float()

    def read_actions(self, index: int, draw: int) -> torch.Tensor:
        """The actions that led to the frames of the same window, int64 (F,) or fp32 (F, D), where the cache has them.

        Raises:
            ValueError: as [`read`].
        """
        return self._tensors(index)["actions"][draw % self.num_windows]

    def _tensors(self, index: int) -> dict[str, torch.Tensor]:
        id, shard, digest = self.ids[index], self._videos[index]["shard"], self._videos[index].get("digest")
        try:
            if shard not in self._files:
                self._files[shard] = safe_open(self._paths[shard], framework="pt")
            tensors = _tensors_of(self._files[shard], id, has_actions=self.has_actions)
        except SafetensorError as error:
            raise ValueError(f"{self._paths[shard]} is damaged ({error}): {_AGAIN}.") from error
        if digest is not None and index not in self._checked:
            if _tensors_digest(tensors) != digest:
                raise ValueError(
                    f"{self._paths[shard]}: the latents of {printable_name(id)} are not those that were written: {_AGAIN}."
                )
            self._checked.add(index)
        return tensors
