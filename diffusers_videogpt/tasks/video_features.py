"""Features of videos, computed once and kept: for probes, retrieval, and whatever else needs a vector a clip.

    features = extract_features(pipe, table, layer=5, num_clips=3, cache_dir="features")
    features.values                                        # fp32 (V, 3, D)
    [record.label for record in features.records]          # of the V videos

Shapes: V videos, N clips of each, C latent channels, F frames, H × W pixels, h × w latents, D channels.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.latents import encode_moments, make_cache_key, sample_latents
from ..data.sampling import Sampling, Window
from ..data.videos import DatasetRow, VideoRecord, VideoTable, check_usable
from ..data.workers import check_shared_memory, until_timeout, worker_options
from ..files import hash_file, hash_json
from ..pipeline_videogpt import VideoGPTPipeline
from ..video_io import VideoInfo, VideoReadError
from ..weights import hash_weights, save_tensors
from .token_pooling import pool_clean_layers, resolve_layer


VIDEOS_PER_FILE = 256  # of a cache; what is lost at most when a process is killed


@dataclass
class VideoFeatures:
    """Features of the videos of a table, without those that could not be read.

    Attributes:
        values: fp32 (V, N, D), on the CPU.
        records: the V videos.
    """

    values: torch.Tensor
    records: list[VideoRecord]


def sampling_config(sampling: Sampling) -> dict[str, Any]:
    """The fields of a sampling as a model's configuration keeps them, which is JSON."""
    return json.loads(json.dumps(asdict(sampling)))


def sampling_of(config: dict[str, Any]) -> Sampling:
    """The sampling of [`sampling_config`]."""
    return Sampling(**{name: tuple(value) if isinstance(value, list) else value for name, value in config.items()})


def spread_windows(sampling: Sampling, info: VideoInfo, *, num_clips: int) -> list[Window]:
    """`num_clips` windows evenly over a video: each in the middle of its part, frames at the middle interval."""
    return [
        sampling.window_at(info, interval_share=0.5, start_share=(index + 0.5) / num_clips)
        for index in range(num_clips)
    ]


def clips_of(video: str | Path | np.ndarray, sampling: Sampling, *, num_clips: int) -> np.ndarray:
    """Clips of one video, a path or uint8 (F, H, W, 3) → uint8 (N, F, h, w, 3).

    Raises:
        ValueError: the video cannot be read, or is shorter than a clip.
    """
    if isinstance(video, str | Path):
        info, reason = check_usable(Path(video), sampling)
        if info is None:
            raise ValueError(f"{video} is {reason}.")
        windows = spread_windows(sampling, info, num_clips=num_clips)
        return np.stack([sampling.read(Path(video), info, window=window) for window in windows])
    info = VideoInfo(*video.shape[1:3], np.arange(len(video)) / (sampling.fps or 1.0))
    if not sampling.length(info):
        least = sampling.min_num_frames or sampling.max_num_frames
        raise ValueError(f"A video of {len(video)} frames is too short: clips are of {least} frames.")
    windows = spread_windows(sampling, info, num_clips=num_clips)
    clips = [video[sampling.frame_indices(info, window)] for window in windows]
    return np.stack([np.stack([sampling.resize(frame) for frame in clip]) for clip in clips])


class _ClipsOfVideos(Dataset):
    """uint8 (N, F, H, W, 3) of each video, or why there are none."""

    def __init__(self, table: VideoTable, indices: Sequence[int], *, num_clips: int):
        self.table, self.indices, self.num_clips = table, indices, num_clips

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> np.ndarray | str:
        table, index = self.table, self.indices[i]
        try:
            windows = spread_windows(table.sampling, table.infos[index], num_clips=self.num_clips)
            return np.stack([table.read(index, window) for window in windows])
        except VideoReadError as error:
            return f"breaks while read: {error}"


def clip_latents(vae, clips: np.ndarray, *, vae_batch_size: int = 16) -> torch.Tensor:
    """Clips, uint8 (N, F, H, W, 3) → their scaled latents (N, C, F, h, w), of the posterior's mean: always the same."""
    moments = encode_moments(vae, clips, batch_size=vae_batch_size)[:, :, : vae.config.latent_channels]
    return torch.stack([sample_latents(means, vae.config) for means in moments])


def read_clips(
    table: VideoTable,
    indices: Sequence[int],
    *,
    vae,
    num_clips: int = 1,
    vae_batch_size: int = 16,
    num_workers: int = 0,
) -> Iterator[tuple[int, torch.Tensor]]:
    """(index, latents (N, C, F, h, w)) of the videos that can be read; the others go into `table.dropped`.

    Raises:
        ValueError: too many videos cannot be read, or workers have too little shared memory.
        RuntimeError: workers give no video for ten minutes.
    """
    sizes = [num_clips * table.length(i) * table.size(i)[0] * table.size(i)[1] * 3 for i in indices]
    check_shared_memory(num_workers, min(sizes, default=0))
    dataset = _ClipsOfVideos(table, indices, num_clips=num_clips)
    loader = DataLoader(dataset, batch_size=None, **worker_options(num_workers))
    for index, clips in zip(indices, until_timeout(loader), strict=True):
        if isinstance(clips, str):
            table.dropped.add(table.id(index), clips)
        else:
            yield index, clip_latents(vae, clips, vae_batch_size=vae_batch_size)


@torch.no_grad()
def extract_layers(
    pipe: VideoGPTPipeline,
    table: VideoTable,
    *,
    layers: Sequence[int | None],
    num_clips: int = 1,
    cache_dir: str | Path,
    pooling: str = "mean",
    batch_size: int = 8,
    vae_batch_size: int = 16,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
) -> list[VideoFeatures]:
    """[`extract_features`] of several layers in one pass, kept together."""
    transformer = pipe.transformer.eval()
    layers = [resolve_layer(transformer.config.num_layers, layer) for layer in layers]
    rank, num_processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    made_of = {
        **make_cache_key(pipe.vae, table.sampling, seed=0),
        "transformer.weights": hash_weights(transformer),
        "transformer.dtype": str(transformer.dtype),
        "transformer": json.loads(transformer.to_json_string()),
        "layers": layers,
        "pooling": pooling,
        "num_clips": num_clips,
        "videos": [_describe(table, index) for index in range(len(table))],
    }
    folder = Path(cache_dir) / hash_json(made_of)[:16]
    parts = [part.tolist() for part in torch.arange(len(table)).split(VIDEOS_PER_FILE)]
    paths = [folder / f"features-{number:05d}.safetensors" for number in range(len(parts))]
    for number in tqdm(range(rank, len(parts), num_processes), desc="Features", delay=5, disable=rank > 0):
        if paths[number].exists():
            continue
        clips = read_clips(
            table,
            parts[number],
            vae=pipe.vae,
            num_clips=num_clips,
            vae_batch_size=vae_batch_size,
            num_workers=num_workers,
        )
        indices, values = [], []
        for members, latents in _batches(clips, batch_size):
            of_layers = pool_clean_layers(transformer, latents.flatten(0, 1), layers=layers, pooling=pooling)
            pooled = torch.stack(of_layers)
            values.append(pooled.unflatten(1, (-1, num_clips)).cpu())  # (layers, B, N, D)
            indices += members
        tensors = {"indices": torch.tensor(indices), "values": torch.cat(values, dim=1)} if values else {}
        dropped = {id: table.dropped[id] for id in map(table.id, parts[number]) if id in table.dropped}
        save_tensors(paths[number], tensors, metadata={"dropped": json.dumps(dropped)})
    if accelerator is not None:
        accelerator.wait_for_everyone()

    indices, values = [], []
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for id, reason in json.loads(file.metadata()["dropped"]).items():
                table.dropped.add(id, reason)
            if file.keys():
                indices += file.get_tensor("indices").tolist()
                values.append(file.get_tensor("values"))
    records = [table[index] for index in indices]
    return [VideoFeatures(of_layer, records) for of_layer in torch.cat(values, dim=1)]


def extract_features(
    pipe: VideoGPTPipeline, table: VideoTable, *, layer: int | None = None, num_clips: int = 1, **settings
) -> VideoFeatures:
    """[`~token_pooling.pool_clean_tokens`] of several clips of each video, from files where these are there already.

    A folder of `cache_dir` holds one set of features; its name follows from the weights, the layer, the pooling, the
    sampling and the videos (id, frames, size, content). A run that was killed goes on where it was. Adapters count by
    their weights, not by their scale: fuse what is not at scale 1.

    Args:
        pipe: its VAE and its transformer, on their devices, in their precisions.
        table: the videos, whose `sampling` says what a clip is; the clips of a video are spread evenly over it.
        layer: as [`~token_pooling.pool_clean_tokens`] takes it.
        num_clips: of each video.
        settings: `cache_dir`, which is needed; `pooling`; `batch_size` (8), videos of one size at once in the
            transformer; `vae_batch_size` (16), frames at once in the VAE; `num_workers` (0) that read videos;
            `accelerator`: with several processes, each computes its share and reads the others'.

    Raises:
        ValueError: there is no such layer or pooling, or too many videos cannot be read.
    """
    return extract_layers(pipe, table, layers=[layer], num_clips=num_clips, **settings)[0]


def _describe(table: VideoTable, index: int) -> list:
    """What tells a video from another that might come in its place."""
    record, info = table[index], table.infos[index]
    source = record.source
    if isinstance(source, Path):
        content = hash_file(source)
    else:
        content = source.dataset._fingerprint if isinstance(source, DatasetRow) else asdict(source)
    return [record.id, info.num_frames, info.width, info.height, content]


def _batches(clips: Iterator[tuple[int, torch.Tensor]], batch_size: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Neighbours of one shape together: (indices, latents (B, N, C, F, h, w))."""
    members: list[tuple[int, torch.Tensor]] = []
    for index, latents in clips:
        if members and (len(members) == batch_size or members[0][1].shape != latents.shape):
            yield [i for i, _ in members], torch.stack([x for _, x in members])
            members = []
        members.append((index, latents))
    if members:
        yield [i for i, _ in members], torch.stack([x for _, x in members])
