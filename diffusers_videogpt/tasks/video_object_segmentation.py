"""Video object segmentation (paper, §4.3): the video and its first frame with the objects marked → all frames marked.

    ids = segment_video(pipe, frames, first_mask=mask)     # uint8 (F, H, W), the numbers of `mask`

A marked frame is a picture of plain coloured objects on a dark background, so it is encoded as any other. The video's N
frames and the first one marked are one clean clip, the N marked frames the clip that is predicted.

Shapes: B videos, F frames, N frames of a clip, O objects, C latent channels, H × W pixels, h × w latent size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from ..files import write_json
from ..film_strips import write_film_strip
from ..frame_latents import check_size
from ..metrics.segmentation import region_scores
from ..pipeline_videogpt import VideoGPTPipeline
from ..training.loop import TrainingLoop
from ..training.recipe import NextClipTraining
from ..training.validation import log_pictures
from ..video_io import target_size, to_uint8_frames


# Far apart in RGB, and what the bundled autoencoder was trained on: the colours and a background of the simulated world.
COLOURS = np.array(
    [(230, 50, 50), (50, 200, 70), (60, 100, 240), (240, 210, 50), (220, 70, 220), (60, 210, 220)], dtype=np.uint8
)
BACKGROUND = np.array((18, 20, 26), dtype=np.uint8)


# Marking


@dataclass(frozen=True)
class Marking:
    """Which objects are marked, and the colour of each.

    Attributes:
        objects: their ids, 1 … 255, as many as there are colours or fewer.
        colours: for each, its index in `COLOURS`; by default 0, 1, 2, ….
    """

    objects: tuple[int, ...]
    colours: tuple[int, ...] = tuple(range(len(COLOURS)))

    def draw(self, masks: np.ndarray) -> np.ndarray:
        """Ids, uint8 (…, H, W) → marked pictures, uint8 (…, H, W, 3). Objects without a colour stay dark."""
        table = np.tile(BACKGROUND, (256, 1))
        for object_id, colour in zip(self.objects, self.colours, strict=False):
            table[object_id] = COLOURS[colour]
        return table[masks]

    def read(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Marked pictures, uint8 (…, H, W, 3) → ids of the nearest colours, uint8 (…, H, W), and the squared distances."""
        colours = COLOURS[list(self.colours[: len(self.objects)])]
        candidates = np.concatenate([BACKGROUND[None], colours]).astype(np.int32)
        # One colour at a time: all distances of a long video at once would not fit into memory.
        ids, least = np.zeros(frames.shape[:-1], np.uint8), None
        for object_id, colour in zip((0, *self.objects), candidates, strict=True):
            distance = np.square(frames - colour).sum(-1)
            if least is None:
                least = distance
                continue
            ids[distance < least] = object_id
            least = np.minimum(least, distance)
        return ids, least


def object_ids(mask: np.ndarray) -> list[int]:
    """The objects of a mask, in order; 255 is no object: DAVIS leaves such pixels open."""
    return [int(x) for x in np.unique(mask) if x not in (0, 255)]


def make_markings(objects: Sequence[int]) -> list[Marking]:
    """Markings for any number of objects: groups of as many as there are colours, to be segmented apart."""
    return [Marking(tuple(objects[i : i + len(COLOURS)])) for i in range(0, len(objects), len(COLOURS))]


def merge_markings(markings: Sequence[Marking], pictures: Sequence[np.ndarray]) -> np.ndarray:
    """What the groups' pictures, each uint8 (…, H, W, 3), say together: ids, uint8 (…, H, W).

    Where more than one group claims a pixel, it goes to the one whose colour is nearer to its object's.
    """
    ids, least = np.zeros(pictures[0].shape[:-1], np.uint8), np.full(pictures[0].shape[:-1], np.iinfo(np.int32).max)
    for marking, picture in zip(markings, pictures, strict=True):
        found, distance = marking.read(picture)
        wins = (found > 0) & (distance < least)
        ids[wins], least[wins] = found[wins], distance[wins]
    return ids


# Sizes: frames are stretched, not cropped, since every pixel of the video needs an id.


def resize_frames(frames: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """uint8 (F, H, W, 3) → (F, height, width, 3), bicubic."""
    return _resize(frames, height=height, width=width, method=Image.Resampling.BICUBIC)


def resize_masks(masks: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """uint8 (F, H, W) → (F, height, width), nearest."""
    return _resize(masks, height=height, width=width, method=Image.Resampling.NEAREST)


def _resize(pictures: np.ndarray, *, height: int, width: int, method: Image.Resampling) -> np.ndarray:
    if pictures.shape[1:3] == (height, width):
        return pictures
    return np.stack([np.asarray(Image.fromarray(picture).resize((width, height), method)) for picture in pictures])


# Inference


@torch.no_grad()
def segment_video(
    pipe: VideoGPTPipeline,
    frames,
    *,
    first_mask: np.ndarray,
    frames_per_clip: int | None = None,
    num_inference_steps: int = 8,
    guidance_scale: float = 1.0,
    height: int | None = None,
    width: int | None = None,
    generator: torch.Generator | None = None,
) -> np.ndarray:
    """Follows the objects of the first frame through a video of any length, a clip at a time.

    A clip begins with the last frame of the one before, whose objects, as they were found, are marked for it; the last
    clip begins earlier, where needed, to end with the video. An object that is lost at the end of a clip, or too small at
    the model's size, is not found again. More objects than there are colours are segmented in groups, side by side in one
    batch, see [`merge_markings`].

    Args:
        pipe: a pipeline that was trained for it (`training_scripts/train_segmentation.py`).
        frames: F of them, anything that [`~video_io.to_uint8_frames`] takes.
        first_mask: uint8 (H, W), 0 for the background, any other number but 255 for an object.
        frames_per_clip: N; by default the model's own.
        num_inference_steps: denoising steps a clip.
        guidance_scale: history guidance; 1 is none.
        height, width: the size to work at, multiples of 16; by default the model's longest side, the aspect ratio kept as
            far as multiples go.
        generator: of the noise.

    Returns:
        uint8 (F, H, W): the ids of `first_mask`. The first frame is `first_mask` itself.

    Raises:
        ValueError: the mask is of another size or kind or marks nothing, or the video is shorter than a clip.
    """
    frames, first_mask = to_uint8_frames(frames), np.asarray(first_mask)
    if first_mask.dtype != np.uint8 or first_mask.shape != frames.shape[1:3]:
        raise ValueError(
            f"`first_mask` must be uint8 {frames.shape[1:3]} as the frames, got {first_mask.dtype} {first_mask.shape}: "
            "resize it by nearest neighbour, one number an object."
        )
    objects = object_ids(first_mask)
    if not objects:
        raise ValueError("`first_mask` marks no object: give each a number from 1 to 254.")
    clip = pipe.config.frames_per_clip if frames_per_clip is None else frames_per_clip
    if clip < 2:
        raise ValueError(f"`frames_per_clip`={clip}: a clip has the marked frame and at least one more.")
    if len(frames) < clip:
        raise ValueError(
            f"The video has {len(frames)} frames, a clip {clip}: pass a lower `frames_per_clip`, or a longer video."
        )
    if (height is None) != (width is None):
        raise ValueError(f"Pass both `height` and `width`, or neither; got {height} and {width}.")
    if height is None:
        width, height = target_size(frames.shape[2], frames.shape[1], longest_side=pipe.config.longest_side)[1]
    check_size(height, width, multiple=pipe.size_multiple)

    video = _encode(pipe, resize_frames(frames, height=height, width=width)[None], generator=generator)
    ids = np.zeros((len(frames), height, width), np.uint8)
    ids[0] = resize_masks(first_mask[None], height=height, width=width)[0]
    last_start, num_known = len(frames) - clip, 1
    for start in [*range(0, last_start, clip - 1), last_start]:
        # What is carried over are ids, drawn anew in pure colours, not a picture with its faults.
        markings = make_markings(object_ids(ids[start]))
        if not markings:
            break
        marked = _encode(
            pipe, np.stack([marking.draw(ids[start : start + 1]) for marking in markings]), generator=generator
        )
        window = video[:, :, start : start + clip].expand(len(markings), -1, -1, -1, -1)
        pictures = pipe(
            video_latents=torch.cat([window, marked], dim=2),
            num_frames=clip,
            frames_per_clip=clip,
            max_context_frames=clip + 1,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generator,
            output_type="np",
        ).frames
        found = merge_markings(markings, [to_uint8_frames(picture) for picture in pictures])
        ids[num_known : start + clip] = found[num_known - start :]
        num_known = start + clip
    masks = resize_masks(ids, height=frames.shape[1], width=frames.shape[2]).copy()
    masks[0] = np.where(first_mask == 255, 0, first_mask)
    return masks


def _encode(pipe: VideoGPTPipeline, frames: np.ndarray, *, generator: torch.Generator | None) -> torch.Tensor:
    """uint8 (B, F, H, W, 3) → (B, C, F, h, w)."""
    return pipe.encode_frames(torch.from_numpy(frames).permute(0, 1, 4, 2, 3).float() / 127.5 - 1, generator)


# Training


def draw_segmentation_clips(num_frames: int, generator: torch.Generator | None = None) -> list[int]:
    """The clips of a training sample of 2 N + 1 frames: the video and the first frame marked, then all of them marked."""
    return [num_frames - num_frames // 2, num_frames // 2]


class VideoObjectSegmentationTraining(NextClipTraining):
    """Training on samples of a [`~segmentation_data.SegmentationTable`]; held-out videos are segmented and scored by J.

    Of the two clips of a sample, the video with its first frame marked is given, and the marked frames are predicted.
    """

    task = "segmentation"
    noisy = slice(-1, None)

    def __init__(self, accelerator: Accelerator, pipe: VideoGPTPipeline, **training):
        super().__init__(accelerator, pipe, **training)
        sampling = self.feed.sampling
        pipe.register_to_config(max_context_frames=sampling.num_frames + 1, longest_side=sampling.longest_pixels)

    def objective_fields(self) -> dict:
        return {"min_retention": self.objective.min_retention, **self.objective.noise_fields()}

    def predict(self, loop: TrainingLoop, step: int) -> dict[str, float]:
        """J of held-out clips, also in `segmentation.json`, and a film strip of each."""
        if self.feed.validation is None:
            return {}
        folder = self.folder / f"step-{step:06d}"
        self.pipe.transformer = self.accelerator.unwrap_model(loop.model)
        scores, seed = [], self.feed.sampling.seed
        clips = self.feed.validation.table.clips(self.rollouts.num_validation_rollouts, seed)
        for index, (frames, masks) in enumerate(clips):
            # All processes compute, since a sharded model does so only together; one writes.
            with self.accelerator.autocast(), torch.compiler.set_stance("force_eager"):
                found = segment_video(
                    self.pipe,
                    frames,
                    first_mask=masks[0],
                    frames_per_clip=len(frames),
                    num_inference_steps=self.rollouts.validation_inference_steps,
                    height=frames.shape[1],
                    width=frames.shape[2],
                    generator=torch.Generator().manual_seed(seed + index),
                )
            objects = object_ids(masks[0])
            truth, found = (_renumbered(x, objects) for x in (masks, found))
            scores.append(float(region_scores(truth, found).mean()))
            if self.accelerator.is_main_process:
                marking = Marking(tuple(range(1, len(COLOURS) + 1)))
                rows = {"video": frames, "truth": marking.draw(truth), "predicted": marking.draw(found)}
                write_film_strip(folder / f"{index}.png", rows, num_given=1)
        if not scores:
            return {}
        if self.accelerator.is_main_process:
            numbers = {"J": float(np.mean(scores)), "videos": scores}
            write_json(folder / "segmentation.json", numbers)
            log_pictures(self.accelerator, folder, step=step)
        self.accelerator.print(f"step {step}: J {np.mean(scores):.3f} on {len(scores)} held-out clips")
        return {"J": float(np.mean(scores))}


def _renumbered(masks: np.ndarray, objects: Sequence[int]) -> np.ndarray:
    """Masks whose `objects` are 1, 2, … without gaps, and nothing else."""
    numbers = np.zeros(256, np.uint8)
    numbers[list(objects)] = np.arange(1, len(objects) + 1)
    return numbers[masks]
