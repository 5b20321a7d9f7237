"""Object segmentation scored: a folder of masks, a model on DAVIS or YouTube-VOS, a model on simulated scenes.

    segment_videos(pipe, videos, folder="masks")                      # index PNGs, a folder a video
    scores = summarize(score_folder(videos, "masks"))

Shapes: F frames, H × W pixels.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..extras import require
from ..files import write_json
from ..film_strips import write_film_strip
from ..metrics.segmentation import (
    LEAST_FRAMES,
    SegmentationScores,
    SequenceScores,
    score_sequence,
    summarize,
)
from ..pipeline_videogpt import VideoGPTPipeline
from ..tasks.segmentation_data import MaskedVideo, read_mask, read_masked_videos, write_masks
from ..tasks.video_object_segmentation import (
    COLOURS,
    Marking,
    make_markings,
    merge_markings,
    object_ids,
    segment_video,
)
from ..video_io import to_uint8_frames
from ..worlds import simulate


NUM_STRIPS = 8  # simulated scenes shown as pictures


# Folders


def segment_videos(
    pipe: VideoGPTPipeline, videos: Sequence[MaskedVideo], *, folder: str | Path, seed: int = 0, **settings
) -> None:
    """Writes the masks that the model finds as `VIDEO/FRAME.png`, of the size of the frames.

    Objects are followed from the first mask. Of a video that has masks for some frames only, those that come later are
    followed from the first mask that shows them, and give way to those before.

    Args:
        settings: further arguments of [`~video_object_segmentation.segment_video`].

    Raises:
        ValueError: as `segment_video`, or if a mask is of another size than its frame; the video is named.
    """
    for number, video in enumerate(tqdm(videos, desc="Segmenting", delay=5)):
        generator = torch.Generator().manual_seed(seed + number)
        try:
            masks = _segment(pipe, video, generator=generator, **settings)
        except ValueError as error:
            raise ValueError(f"{video.name}: {error}") from error
        write_masks(Path(folder) / video.name, masks, names=[path.stem for path in video.frames])


def _segment(
    pipe: VideoGPTPipeline,
    video: MaskedVideo,
    *,
    generator: torch.Generator,
    frames_per_clip: int | None = None,
    **settings,
) -> np.ndarray:
    frames = video.read_frames(range(len(video.frames)))
    starts = video.annotated
    if len(starts) == len(frames):
        starts = starts[:1]
    clip, masks, seen = frames_per_clip or pipe.config.frames_per_clip, np.zeros(frames.shape[:3], np.uint8), set()
    for start in starts:
        given = video.read_masks([start])[0]
        new = set(object_ids(given)) - seen
        seen |= new
        if not new:
            continue
        given = np.where(np.isin(given, list(new)), given, 0)
        rest, found = frames[start:], given[None]
        if start == 0 or len(rest) > 1:
            length = clip if start == 0 else min(clip, len(rest))
            found = segment_video(
                pipe, rest, first_mask=given, frames_per_clip=length, generator=generator, **settings
            )
        masks[start:] = np.where(masks[start:] == 0, found, masks[start:])
    return masks


def score_folder(videos: Sequence[MaskedVideo], folder: str | Path) -> dict[str, SequenceScores]:
    """Scores index PNGs `VIDEO/FRAME.png` on the frames that have true masks, but for the first and the last.

    As in DAVIS, the objects are those of the first mask; those that come later in YouTube-VOS do not count.

    Raises:
        ValueError: videos or frames are missing, or masks are of another size; they are named.
    """
    folder, scores = Path(folder), {}
    missing = [video.name for video in videos if not (folder / video.name).is_dir()]
    if missing:
        raise ValueError(f"{folder} has no masks of {len(missing)} of {len(videos)} videos: {_some(missing)}.")
    for video in videos:
        annotated = video.annotated
        paths = [folder / video.name / f"{video.frames[index].stem}.png" for index in annotated]
        missing = [path.name for path in paths[1:-1] if not path.exists()]
        if missing:
            raise ValueError(f"{folder / video.name} lacks the masks of {len(missing)} frames: {_some(missing)}.")
        truth = video.read_masks(annotated)
        predicted = np.zeros_like(truth)
        for index, path in enumerate(paths[1:-1], start=1):
            mask = read_mask(path)
            if mask.shape != truth.shape[1:]:
                raise ValueError(
                    f"{path} is {mask.shape[1]} × {mask.shape[0]}, the true mask {truth.shape[2]} × {truth.shape[1]}: "
                    "resize it by nearest neighbour."
                )
            predicted[index] = mask
        num_objects = max(object_ids(truth[0]), default=0)
        later = [number for number in object_ids(truth) if number > num_objects]
        predicted[np.isin(predicted, later)] = 0
        for index, path in enumerate(paths[1:-1], start=1):
            if predicted[index].max() > num_objects:
                raise ValueError(
                    f"{path} has the object {predicted[index].max()}, the first true mask only objects up to "
                    f"{num_objects}: give each pixel the number of its object there, and 0 to the background."
                )
        try:
            scores[video.name] = score_sequence(truth, predicted)
        except ValueError as error:
            raise ValueError(f"{video.name}: {error}") from error
    return scores


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


# Simulated scenes


def propagate_by_flow(frames: np.ndarray, first_mask: np.ndarray) -> np.ndarray:
    """Each pixel takes its id from where it was one frame before, by Farnebäck's optical flow: uint8 (F, H, W).

    Raises:
        ImportError: OpenCV is not installed.
    """
    cv2 = require("cv2", "Optical flow needs OpenCV", extra="eval")
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    y, x = np.mgrid[: first_mask.shape[0], : first_mask.shape[1]].astype(np.float32)
    masks = [first_mask]
    for before, now in zip(grey, grey[1:], strict=False):
        flow = cv2.calcOpticalFlowFarneback(now, before, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        masks.append(cv2.remap(masks[-1], x + flow[..., 0], y + flow[..., 1], cv2.INTER_NEAREST))
    return np.stack(masks)


def through_autoencoder(pipe: VideoGPTPipeline, masks: np.ndarray) -> np.ndarray:
    """True masks marked, encoded, decoded and read again: no model of these latents can do better."""
    markings = make_markings(object_ids(masks[0]))
    pixels = np.stack([marking.draw(masks) for marking in markings])
    latents = pipe.encode_frames(
        torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).float() / 127.5 - 1, torch.Generator().manual_seed(0)
    )
    return merge_markings(markings, [to_uint8_frames(x) for x in pipe.decode_latents(latents, "np")])


def evaluate_simulated(
    pipe: VideoGPTPipeline,
    num_scenes: int = 64,
    *,
    num_frames: int = 24,
    seed: int = 0,
    folder: str | Path | None = None,
    **settings,
) -> dict[str, SegmentationScores]:
    """Scores the model and two baselines that need none on unseen scenes, whose masks are exact.

    Scenes have the seeds 0 … `num_scenes` − 1, which are kept from training.

    Args:
        folder: gets film strips of the first scenes, and `scores.json`.
        settings: further arguments of [`~video_object_segmentation.segment_video`].

    Returns:
        Scores by the way of segmenting; "autoencoder alone" is [`through_autoencoder`].
    """
    ways: dict[str, dict[str, SequenceScores]] = {}
    for scene_seed in tqdm(range(num_scenes), desc="Segmenting", delay=5):
        scene = simulate(seed=scene_seed, num_frames=num_frames, size=pipe.config.longest_side)
        first = scene.masks[0]
        generator = torch.Generator().manual_seed(seed + scene_seed)
        found = {
            "model": segment_video(pipe, scene.frames, first_mask=first, generator=generator, **settings),
            "repeating the first mask": np.repeat(first[None], num_frames, axis=0),
            "optical flow": propagate_by_flow(scene.frames, first),
            "autoencoder alone": through_autoencoder(pipe, scene.masks),
        }
        for name, masks in found.items():
            ways.setdefault(name, {})[f"scene {scene_seed}"] = score_sequence(scene.masks, masks)
        if folder is not None and scene_seed < NUM_STRIPS:
            marking = Marking(tuple(range(1, len(COLOURS) + 1)))
            rows = {"truth": scene.masks, "model": found["model"], "optical flow": found["optical flow"]}
            strips = {"video": scene.frames} | {name: marking.draw(masks) for name, masks in rows.items()}
            write_film_strip(Path(folder) / f"{scene_seed}.png", strips, num_given=1)
    results = {name: summarize(scores) for name, scores in ways.items()}
    if folder is not None:
        write_scores(Path(folder) / "scores.json", results)
    return results


# Both


def evaluate_segmentation(
    pipe: VideoGPTPipeline | None,
    data: str | Path | None,
    *,
    split: str = "val",
    masks: str | Path | None = None,
    num_simulated: int | None = None,
    num_frames: int = 24,
    seed: int = 0,
    folder: str | Path,
    **settings,
) -> dict[str, SegmentationScores]:
    """Scores `masks` or those of `pipe` on the videos of `data`, or `pipe` on simulated scenes, into `folder`/scores.json.

    Returns:
        Scores by name; none where only first frames have masks, as in DAVIS's and YouTube-VOS's tests: then the model's
        masks are in `folder` all the same.

    Raises:
        ValueError: simulated scenes without a model, or as [`score_folder`] and [`segment_videos`].
    """
    folder = Path(folder)
    if num_simulated is not None:
        if pipe is None:
            raise ValueError("Simulated scenes are segmented by a model: give one, or the data that the masks are of.")
        return evaluate_simulated(pipe, num_simulated, num_frames=num_frames, seed=seed, folder=folder, **settings)
    videos = read_masked_videos(data, split)
    if pipe is not None:
        segment_videos(pipe, videos, folder=folder, seed=seed, **settings)
        if all(len(video.annotated) < LEAST_FRAMES for video in videos):
            return {}
    results = {"masks" if pipe is None else "model": summarize(score_folder(videos, masks or folder))}
    write_scores(folder / "scores.json", results)
    return results


def write_scores(path: str | Path, results: dict[str, SegmentationScores]) -> None:
    """All figures, object by object, as JSON."""
    write_json(path, {name: asdict(x) for name, x in results.items()})
