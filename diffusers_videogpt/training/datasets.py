"""Videos to train on: files of a folder, or simulated scenes; every frame encoded once."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..pipeline_videogpt import VideoGPTPipeline
from ..video_io import VideoReadError, read_video, resize_to_cover


VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif")
FIRST_TRAINING_SEED = 1_000_000  # scenes 0..9999 are kept for evaluation


class SimulatedScenes(Dataset):
    """Scenes of the simulated world, of consecutive seeds, as uint8 (F, H, W, 3).

    Args:
        num_videos: how many.
        num_frames: frames of each.
        size: height and width in pixels.
        first_seed: seed of the first.
    """

    def __init__(self, num_videos: int, num_frames: int, size: int = 64, first_seed: int = FIRST_TRAINING_SEED):
        self.num_videos, self.num_frames, self.size, self.first_seed = num_videos, num_frames, size, first_seed

    def __len__(self) -> int:
        return self.num_videos

    def __getitem__(self, index: int) -> np.ndarray:
        from ..worlds import simulate

        return simulate(seed=self.first_seed + index, num_frames=self.num_frames, size=self.size).frames


class VideoFolder(Dataset):
    """The videos below a folder, the first `num_frames` of each, as uint8 (F, height, width, 3).

    Args:
        root: the folder; videos are found by their suffix, in all folders below it.
        num_frames: frames of each; shorter videos are left out and listed in `skipped`.
        height, width: every frame is scaled to cover this size and cropped to its centre.
        frame_interval: every how many source frames one is taken.

    Raises:
        ValueError: if there is no usable video in the folder.
    """

    def __init__(self, root: str | Path, num_frames: int, height: int, width: int, frame_interval: int = 1):
        self.num_frames, self.frame_interval = num_frames, frame_interval
        self.resize = partial(resize_to_cover, height=height, width=width)
        self.paths, self.skipped = [], {}
        for path in sorted(p for p in Path(root).rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES):
            try:
                self._read(path)
            except VideoReadError as error:
                self.skipped[path] = str(error)
            else:
                self.paths.append(path)
        if not self.paths:
            reasons = "".join(f"\n  {reason}" for reason in list(self.skipped.values())[:5])
            raise ValueError(
                f"No usable video in {root}: {len(self.skipped)} files end in {', '.join(VIDEO_SUFFIXES)}, and none has "
                f"{num_frames} frames at an interval of {frame_interval}.{reasons}"
            )

    def _read(self, path: Path) -> np.ndarray:
        video = read_video(
            path,
            frame_interval=self.frame_interval,
            max_frames=self.num_frames,
            min_frames=self.num_frames,
            transform=self.resize,
        )
        return video.frames

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._read(self.paths[index])


def encode_videos(
    videos: Sequence[np.ndarray] | Dataset,
    pipe: VideoGPTPipeline,
    path: Path,
    description: dict[str, str | int | float],
    seed: int = 0,
    num_workers: int = 0,
) -> torch.Tensor:
    """Encodes every frame once and keeps the latents in the file `path`; a later call reads them from there.

    Args:
        videos: uint8 (F, H, W, 3) each, all of one shape.
        pipe: its VAE encodes, in its own precision.
        path: a safetensors file, written whole or not at all.
        description: what the latents were made from; kept in the file.
        seed: of the posterior samples.
        num_workers: processes that read or simulate videos meanwhile.

    Returns:
        Latents (videos, C, F, h, w) in float16, on the CPU.

    Raises:
        ValueError: if `path` holds latents of another description; the message names what differs.
    """
    description = {key: str(value) for key, value in description.items()}
    if path.exists():
        with safe_open(path, framework="pt") as file:
            found = json.loads(file.metadata()["description"])
            differing = [key for key in description | found if description.get(key) != found.get(key)]
            if differing:
                changes = ", ".join(f"{key} {found.get(key)} → {description.get(key)}" for key in differing)
                raise ValueError(f"{path} holds latents made otherwise ({changes}): delete it or use another folder.")
            return file.get_tensor("latents")
    generator = torch.Generator(pipe._execution_device).manual_seed(seed)
    loader = DataLoader(videos, batch_size=None, num_workers=num_workers, collate_fn=np.asarray)
    latents = [
        pipe.encode_frames(pipe.prepare_frames(frames, *frames.shape[1:3]), generator).cpu().half()
        for frames in tqdm(loader, desc="Encoding videos", mininterval=10)
    ]
    latents = torch.cat(latents).contiguous()
    unfinished = path.with_suffix(".partial")
    save_file({"latents": latents}, unfinished, metadata={"description": json.dumps(description)})
    unfinished.rename(path)
    return latents
