"""Physics in a box: a benchmark on simulated scenes, where the truth behind the pixels is known exactly.

Every scene has two takes, the second from a slightly changed start: how much they differ is what physics leaves open, as in
Physics-IQ, whose metrics and score are taken over. The simulator tells the rest: where each object should be, when objects
collide, how much energy they have. Objects are found in predicted pixels by colour and followed from the last given frame on.

Shapes: F given frames, N predicted frames, O objects, H × H pixels. Horizons count from 1, the first predicted frame.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from ..extras import require
from ..files import Store, hash_bytes, hash_of
from ..metrics.physics_iq import PERSPECTIVES, motion_masks, score_set, score_view, shrink
from ..metrics.rollout_scores import mse_by_frame, psnr_of
from ..pipeline_videogpt import VideoGPTPipeline
from ..scheduling_next_clip_flow_match import mix_noise
from ..video_io import to_uint8_frames
from ..weights import hash_of_model
from ..worlds import PALETTE, Scene, plan_scene, simulate
from ..worlds.picture import MATCH, UNITS
from .world_prediction import keep_velocity, repeat_last_frame


ndimage = require("scipy.ndimage", "Physics in a box needs SciPy", extra="eval")
optimize = require("scipy.optimize", "Physics in a box needs SciPy", extra="eval")

PERTURBATION = 0.05  # of the second take: IoUs of the takes come out somewhat above those of Physics-IQ's real ones
# Of everything in pixels, at 64 × 64; in proportion at other sizes.
LEAST_AREA = 16  # of a region that counts as an object; the smallest object covers about 40
LONGEST_STEP = 8.0  # from frame to frame; what jumps further is another object (real ones move by up to 5)
SEEN_CHANGE = 2.0  # of velocity, in pixels a frame: such a change in a prediction is a collision (gravity: up to 1)
CLEAR_CHANGE = 2.5  # such a collision of the simulator must be seen
# Elsewhere much of the energy is in spin, which centres do not show.
KINDS_WITHOUT_SPIN = ("bounce", "fall", "pendulum")
ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8)  # of one denoising
NUM_STEPS = 25  # denoising steps a clip of a model that tells no number of its own
ENLARGED = 4  # times, before motion masks are made: their filters are 5 pixels wide, as are small objects here


@dataclass(frozen=True)
class BoxScene:
    """Two takes of one scene, each a `Scene` of F + N frames; the first is the truth and has its first F frames given."""

    seed: int
    take_1: Scene
    take_2: Scene
    num_given: int
    gravity: float  # pixels / s²

    @property
    def given(self) -> np.ndarray:
        return self.take_1.frames[: self.num_given]

    @property
    def truth(self) -> np.ndarray:
        return self.take_1.frames[self.num_given :]

    @cached_property
    def takes_with_masks(self) -> list[list]:
        """What follows the given frames in each take, with its motion masks."""
        return [list(_with_masks(take.frames[self.num_given :])) for take in (self.take_1, self.take_2)]


def make_scenes(
    num_scenes: int,
    num_given: int = 8,
    *,
    num_predicted: int = 16,
    size: int = 64,
    first_seed: int = 0,
    perturbation: float = PERTURBATION,
) -> list[BoxScene]:
    """Scenes of consecutive seeds; 0 … 9999 are kept from training. `perturbation` is that of [`worlds.simulate`].

    Raises:
        ValueError: there are too few frames, or no scene whose energy can be told from the outside.
    """
    if num_scenes < 1 or num_given < 2 or num_predicted < 4:
        raise ValueError(
            f"Physics in a box needs at least 1 scene, 2 given and 4 predicted frames, got {num_scenes}, {num_given} and "
            f"{num_predicted}."
        )
    scenes = []
    for seed in range(first_seed, first_seed + num_scenes):
        takes = [
            simulate(seed=seed, num_frames=num_given + num_predicted, size=size, perturbation=noise)
            for noise in (0.0, perturbation)
        ]
        gravity = plan_scene(seed=seed, size=size).setup.gravity * size / UNITS
        scenes.append(BoxScene(seed, *takes, num_given, gravity))
    if not any(scene.take_1.kind in KINDS_WITHOUT_SPIN for scene in scenes):
        raise ValueError(
            f"None of the {num_scenes} scenes from seed {first_seed} on is of a kind whose energy shows "
            f"({', '.join(KINDS_WITHOUT_SPIN)}): take more scenes."
        )
    return scenes


# From pixels to objects


def locate_objects(frame: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The objects of one picture: (colour of `PALETTE`, centre (x, y) in pixels) of each connected region of one colour.

    Regions are connected over sides alone: two boxes of one colour that touch at a corner stay two.

    Args:
        frame: uint8 (H, H, 3).
    """
    least_area = LEAST_AREA * (len(frame) / UNITS) ** 2
    found = []
    for name, colour in PALETTE.items():
        labels, count = ndimage.label((np.abs(frame.astype(np.int16) - colour) <= MATCH).all(axis=-1))
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        for label in range(1, count + 1):
            if areas[label] >= least_area:
                rows, columns = np.nonzero(labels == label)
                found.append((name, np.array([columns.mean() + 0.5, rows.mean() + 0.5])))
    return found


def track_objects(frames: np.ndarray, scene: BoxScene) -> tuple[np.ndarray, np.ndarray]:
    """Follows every object through predicted frames, from its true place in the last given one.

    In each frame the regions of a colour go to the objects of that colour so that the squared ways from where they were
    last seen are least in sum.

    Args:
        frames: uint8 (N, H, H, 3).

    Returns:
        the centres, (N, O, 2) in pixels, NaN where an object is not found; and (N,), whether the objects in the picture are
        those of the scene, by colour and number.
    """
    colours = [item.colour for item in scene.take_1.objects]
    longest_step = LONGEST_STEP * frames.shape[1] / UNITS
    tracks = np.full((len(frames), len(colours), 2), np.nan)
    complete = np.zeros(len(frames), dtype=bool)
    last = scene.take_1.positions[scene.num_given - 1].astype(np.float64)
    unseen = np.zeros(len(colours), dtype=int)
    for time, frame in enumerate(frames):
        located = locate_objects(frame)
        complete[time] = Counter(colour for colour, _ in located) == Counter(colours)
        unseen += 1
        for colour in dict.fromkeys(colours):
            members = [index for index, own in enumerate(colours) if own == colour]
            centres = [centre for found, centre in located if found == colour]
            ways = np.array([[np.linalg.norm(last[index] - centre) for centre in centres] for index in members])
            for row, column in zip(*optimize.linear_sum_assignment(ways**2), strict=True):
                index = members[row]
                if ways[row, column] <= longest_step * unseen[index]:
                    tracks[time, index] = last[index] = centres[column]
                    unseen[index] = 0
    return tracks, complete


def hold_lost_objects(tracks: np.ndarray, scene: BoxScene) -> np.ndarray:
    """Tracks without gaps: a lost object stays where it was last seen."""
    held, last = tracks.copy(), scene.take_1.positions[scene.num_given - 1]
    for centres in held:
        centres[:] = np.where(np.isnan(centres), last, centres)
        last = centres
    return held


# What a simulator can tell


def energy_of(tracks: np.ndarray, scene: BoxScene) -> np.ndarray:
    """Kinetic and potential energy, (N,) in mass × pixel² / s², from how far objects moved since the frame before."""
    take = scene.take_1
    places = np.concatenate([take.positions[scene.num_given - 1][None], tracks])
    velocities = np.diff(places, axis=0) * take.fps
    heights = take.frames.shape[1] - (places[1:, :, 1] + places[:-1, :, 1]) / 2
    masses = np.array([item.mass for item in take.objects])
    return (masses * (0.5 * np.square(velocities).sum(axis=-1) + scene.gravity * heights)).sum(axis=-1)


def find_collisions(tracks: np.ndarray, scene: BoxScene) -> set[tuple[int, int]]:
    """(frame, object) of each sudden change of velocity; frames count from the start of the scene, the last one is left out.

    The change at a frame is that from the step before the last to the step after: wherever between two frames a collision
    is, all of it lies within.
    """
    given = scene.take_1.positions[: scene.num_given]
    places = np.concatenate([given, tracks])
    steps = np.diff(places, axis=0)
    changes = np.zeros(places.shape[:2])
    changes[2:-1] = np.nan_to_num(np.linalg.norm(steps[2:] - steps[:-2], axis=-1))  # a lost object does not collide
    around = ndimage.maximum_filter1d(changes, size=3, axis=0, mode="nearest")
    seen = (changes == around) & (changes >= SEEN_CHANGE * scene.take_1.frames.shape[1] / UNITS)
    return {(int(time), int(index)) for time, index in np.argwhere(seen) if time >= scene.num_given}


def true_collisions(scene: BoxScene) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """All (frame, object) at which the simulator had a contact begin; and those of them that are clear to see."""
    take = scene.take_1
    every = {(time, index) for time, *pair in take.collisions for index in pair if index >= 0}
    least = CLEAR_CHANGE * take.fps * take.frames.shape[1] / UNITS
    clear = {
        (time, index)
        for time, index in every
        if scene.num_given <= time < len(take.frames) - 1
        and np.linalg.norm(take.velocities[time, index] - take.velocities[time - 1, index]) >= least
    }
    return every, clear


def _has_near(collision: tuple[int, int], others: set[tuple[int, int]]) -> bool:
    time, index = collision
    return any((near, index) in others for near in (time - 1, time, time + 1))


# Scores


@dataclass(frozen=True)
class BoxScores:
    """What one way of predicting scores on a set of scenes. Lists have a number for each horizon.

    Attributes:
        mse: mean squared error of pixels in [0, 1].
        psnr: in dB, at most 100, of each scene and then averaged.
        trajectory_error: distance of objects from their true places in pixels; a lost object stays where it was last seen.
        objects_kept: share of scenes with just the true objects in the picture, by colour and number.
        energy_drift: |E / E_true − 1| of kinetic and potential energy, median over the scenes of `KINDS_WITHOUT_SPIN`.
        collisions: `precision` is the share of sudden changes of velocity at which the simulator has a collision of that
            object, one frame more or less; `recall` the share of the simulator's clear collisions at which there is such a
            change; `f1`; and both numbers, `seen` and `clear`.
        physics_iq: Physics-IQ's `score`, its metrics against the first take and, as `take_2_…`, those of the second.
        sharpness: of [`sharpness_of`], over that of the true frame: below 1 is blurred, above 1 has edges that are not there.
        colour_drift: of [`colour_drift_of`], in 8-bit levels.
        one_denoising: of [`denoise_true_clips`]; empty for what is no model.
    """

    mse: list[float]
    psnr: list[float]
    trajectory_error: list[float]
    objects_kept: list[float]
    energy_drift: list[float]
    collisions: dict[str, float]
    physics_iq: dict[str, float]
    sharpness: list[float]
    colour_drift: list[float]
    one_denoising: dict[str, list[float]] = field(default_factory=dict)


def sharpness_of(frames: np.ndarray) -> np.ndarray:
    """Mean squared difference of neighbouring pixels, to the right and below: uint8 (N, H, W, 3) → (N,)."""
    pixels = frames / 255
    return sum(np.square(np.diff(pixels, axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2))


def colour_drift_of(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How far colours are off, wherever they are in the picture: twice uint8 (N, H, W, 3) → (N,), in 8-bit levels.

    It is the Wasserstein distance of the pixels' values in each channel: the mean difference once both are sorted. An object
    in the wrong place costs nothing, one of another colour or a darker ground does.
    """
    sorted_values = (np.sort(video.reshape(len(video), -1, 3).astype(np.float64), axis=1) for video in (frames, truth))
    return np.abs(np.subtract(*sorted_values)).mean(axis=(1, 2))


def score_predictions(predictions: Sequence[np.ndarray], scenes: Sequence[BoxScene]) -> BoxScores:
    """Scores predicted frames, uint8 (N, H, H, 3) a scene."""
    errors, distances, complete, drifts, sharpness, colours = [], [], [], [], [], []
    seen = right = clear = found = 0
    for frames, scene in zip(predictions, scenes, strict=True):
        errors.append(mse_by_frame(frames, scene.truth))
        sharpness.append(sharpness_of(frames) / sharpness_of(scene.truth))
        colours.append(colour_drift_of(frames, scene.truth))
        tracks, all_there = track_objects(frames, scene)
        complete.append(all_there)
        held = hold_lost_objects(tracks, scene)
        distances.append(np.linalg.norm(held - scene.take_1.positions[scene.num_given :], axis=-1))
        if scene.take_1.kind in KINDS_WITHOUT_SPIN:
            true_energy = scene.take_1.energy[scene.num_given :]
            drifts.append(np.abs(energy_of(held, scene) / true_energy - 1))
        mine = find_collisions(tracks, scene)
        every, to_be_seen = true_collisions(scene)
        seen, right = seen + len(mine), right + sum(_has_near(collision, every) for collision in mine)
        clear, found = clear + len(to_be_seen), found + sum(_has_near(collision, mine) for collision in to_be_seen)
    precision, recall = right / max(seen, 1), found / max(clear, 1)
    f1 = 2 * precision * recall / (precision + recall) if right and found else 0.0
    return BoxScores(
        mse=np.mean(errors, axis=0).tolist(),
        psnr=np.mean(psnr_of(np.stack(errors)), axis=0).tolist(),
        trajectory_error=np.concatenate(distances, axis=1).mean(axis=1).tolist(),
        objects_kept=np.mean(complete, axis=0).tolist(),
        energy_drift=np.median(drifts, axis=0).tolist(),
        collisions={"precision": precision, "recall": recall, "f1": f1, "seen": seen, "clear": clear},
        physics_iq=physics_iq_of(predictions, scenes),
        sharpness=np.mean(sharpness, axis=0).tolist(),
        colour_drift=np.mean(colours, axis=0).tolist(),
    )


def physics_iq_of(predictions: Sequence[np.ndarray], scenes: Sequence[BoxScene]) -> dict[str, float]:
    """The score of Physics-IQ, and the metrics of the predictions and of the second takes against the first ones."""
    rows = []
    for frames, scene in zip(predictions, scenes, strict=True):
        view = score_view(*scene.takes_with_masks, generated=_with_masks(frames))
        # One perspective, where the benchmark has three.
        columns = {f"{name}_{perspective}": value for name, value in view.items() for perspective in PERSPECTIVES}
        rows.append({"scenario": str(scene.seed), **columns})
    result = score_set(rows)
    takes = {f"take_2_{name}": value for name, value in result.normalisers.items()}
    return {"score": result.score, **result.metrics, **takes}


def _with_masks(frames: np.ndarray):
    """Frames, uint8 (N, H, H, 3) RGB → BGR frames with their motion masks, as [`physics_iq.score_view`] takes them."""
    enlarged = frames[..., ::-1].repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
    return shrink(motion_masks(enlarged), width=frames.shape[2], height=frames.shape[1])


# Predictions


@dataclass(frozen=True)
class RolloutSettings:
    """As in the pipeline's call; `None` is the pipeline's own, or `NUM_STEPS` where it tells no number of steps. Scene s is
    predicted from the noise of (`seed`, s)."""

    num_inference_steps: int | None = None
    frames_per_clip: int | None = None
    guidance_scale: float | None = None
    max_context_frames: int | None = None
    seed: int = 0


def predict_scenes(
    pipe: VideoGPTPipeline,
    scenes: Sequence[BoxScene],
    *,
    settings: RolloutSettings,
    store: Store,
    batch_size: int = 16,
) -> list[np.ndarray]:
    """What the model predicts of each scene, uint8 (N, H, H, 3).

    Every prediction is a file under `store`, found again by the content of model, scene and settings. A batch of which one
    is missing is predicted anew, so that a run that was killed and goes on gives the same bits.
    """
    call = {name: value for name, value in asdict(settings).items() if name != "seed"}
    call = {name: pipe.config[name] if value is None else value for name, value in call.items()}
    call["num_inference_steps"] = call["num_inference_steps"] or NUM_STEPS
    model, predictions = hash_of_model(pipe), []
    for first in range(0, len(scenes), batch_size):
        batch = scenes[first : first + batch_size]
        num_frames = len(batch[0].truth)
        paths = []
        for scene in batch:
            given = hash_bytes(scene.given.tobytes())
            key = hash_of(model, call, num_frames, settings.seed, scene.seed, given, len(batch))
            paths.append(store.cached("predictions", key, suffix=".npy"))
        if not all(path.is_file() for path in paths):
            frames = pipe(
                video=[scene.given for scene in batch],
                num_frames=num_frames,
                generator=_generators(batch, settings.seed),
                output_type="np",
                **call,
            ).frames
            for path, video in zip(paths, map(to_uint8_frames, frames), strict=True):
                with store.writing(path) as unfinished:
                    np.save(unfinished, video)
        predictions += [np.load(path) for path in paths]
    return predictions


@torch.no_grad()
def denoise_true_clips(
    pipe: VideoGPTPipeline,
    scenes: Sequence[BoxScene],
    *,
    num_frames: int,
    alphas: Sequence[float] = ALPHAS,
    seed: int = 0,
    batch_size: int = 16,
) -> dict[str, list[float]]:
    """At which noise level objects are lost: the true frames that follow are mixed with noise to α φ + (1 − α) ε, and denoised
    once, after the given frames and without guidance.

    Args:
        num_frames: of the clip, at most N.
        alphas: shares of signal in [0, 1).
        seed: of the noise, as in [`RolloutSettings`].

    Returns:
        For each of `alphas` the share of predicted frames with as many objects as the truth (`number_kept`), and of those
        with just its objects, by colour and number (`objects_kept`).
    """
    transformer, found = pipe.transformer, []
    conditions, _ = pipe.condition_encoder.encode_conditions()
    for first in range(0, len(scenes), batch_size):
        batch = scenes[first : first + batch_size]
        num_given, generators = batch[0].num_given, _generators(batch, seed)
        frames = [scene.take_1.frames[: num_given + num_frames] for scene in batch]
        latents = pipe.encode_given(video=frames, max_context_frames=num_given + num_frames, generator=generators)
        given, clip = latents.split((num_given, num_frames), dim=2)
        noise = randn_tensor(clip.shape, generator=generators, device=clip.device, dtype=clip.dtype)
        inputs = {name: value.repeat_interleave(len(batch), dim=0) for name, value in conditions.items()}
        inputs["clean_hidden_states"] = given.to(transformer.dtype)
        for alpha in alphas:
            noisy = mix_noise(clip, alpha, noise=noise).to(transformer.dtype)
            denoised = transformer(noisy, torch.tensor(alpha, device=clip.device), return_dict=False, **inputs)[0]
            found.append(_objects_there(pipe.decode_latents(denoised.float(), "np"), batch))
    shares = np.array([np.concatenate(found[index :: len(alphas)]).mean(axis=(0, 1)) for index in range(len(alphas))])
    return {"number_kept": shares[:, 0].tolist(), "objects_kept": shares[:, 1].tolist()}


def _objects_there(videos: np.ndarray, scenes: Sequence[BoxScene]) -> np.ndarray:
    """(B, N, H, H, 3) in [0, 1] → (B, N, 2): whether a frame has as many objects as the truth; and just those, by colour."""
    there = []
    for video, scene in zip(map(to_uint8_frames, videos), scenes, strict=True):
        true = Counter(item.colour for item in scene.take_1.objects)
        seen = [Counter(colour for colour, _ in locate_objects(frame)) for frame in video]
        there.append([(found.total() == true.total(), found == true) for found in seen])
    return np.array(there)


def _generators(scenes: Sequence[BoxScene], seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(int(hash_of(seed, scene.seed)[:12], 16)) for scene in scenes]


def pass_through_autoencoder(pipe: VideoGPTPipeline, scenes: Sequence[BoxScene]) -> list[np.ndarray]:
    """The true frames encoded and decoded: no model of these latents can do better."""
    videos = []
    for scene, generator in zip(scenes, _generators(scenes, 0), strict=True):
        latents = pipe.encode_given(video=scene.truth, max_context_frames=len(scene.truth), generator=generator)
        videos.append(to_uint8_frames(pipe.decode_latents(latents, "np")[0]))
    return videos


def score_without_model(scenes: Sequence[BoxScene]) -> dict[str, BoxScores]:
    """The truth itself, which shows the error of measuring; the second take, which shows what physics leaves open; and
    the two baselines."""
    take_1 = [(scene.take_1, scene.num_given) for scene in scenes]
    videos = {
        "truth": [scene.truth for scene in scenes],
        "second take": [scene.take_2.frames[scene.num_given :] for scene in scenes],
        "repeat the last frame": [repeat_last_frame(*given) for given in take_1],
        "constant velocity": [keep_velocity(*given) for given in take_1],
    }
    return {name: score_predictions(predictions, scenes) for name, predictions in videos.items()}


BASELINES = ("repeat the last frame", "constant velocity")
