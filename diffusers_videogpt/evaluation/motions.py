"""Whether an adapter has learnt a motion: on held-out first frames, beside the base and a still picture; and adapters mixed.

Shapes: F given frames (one), N predicted frames, H × W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..film_strips import write_film_strip
from ..metrics.rollout_scores import mse_by_frame
from ..pipeline_videogpt import VideoGPTPipeline
from ..training.validation import predict_continuation
from ..worlds.motions import COLOURS, MOTIONS, Animation, motion_set, moved_objects
from ..worlds.scenes import KINDS_TO_ORDER, simulate
from .condition_following import ClipClassifier, classify, through_autoencoder, train_classifier


CLASSES = [*MOTIONS, "other"]
FIRST_CLASSIFIER_SEED = 10_000  # of animations that are in no set
FIRST_SCENE_SEED = 6000  # of scenes that no model is trained on


@dataclass(frozen=True)
class MotionScores:
    """How one way of animating the held-out first frames does.

    Attributes:
        recognised: share of videos that the classifier takes for the motion.
        others_unchanged: share whose last frame shows every other object as it was.
        error: mean squared error of pixels in [0, 1], over all predicted frames.
    """

    recognised: float
    others_unchanged: float
    error: float


def other_videos(count: int, *, num_frames: int, size: int) -> list[np.ndarray]:
    """Videos that show none of the motions: still pictures of their first frames, and boxes and balls that bounce and fall.

    These have all colours of the motions' objects, so that no colour gives a motion away.
    """
    videos = []
    for index in range(count):
        if index % 2:
            motion = list(MOTIONS)[index // 2 % len(MOTIONS)]
            which = {"held_out": index // 6 % 2 == 1, "first_seed": FIRST_CLASSIFIER_SEED + index}
            (animation,) = motion_set(motion, 1, num_frames=2, size=size, **which)
            videos.append(np.repeat(animation.frames[:1], num_frames, axis=0))
        else:
            rng = np.random.default_rng((FIRST_SCENE_SEED, index))
            shapes = [("ball", "box")[index // 4 % 2], "ball", "ball"][: 1 + index // 2 % 3]
            objects = [(str(rng.choice(COLOURS)), shape) for shape in shapes]
            kind = KINDS_TO_ORDER[index // 2 % len(KINDS_TO_ORDER)]
            scene = simulate(kind, FIRST_SCENE_SEED + index, num_frames=num_frames, size=size, objects=objects)
            videos.append(scene.frames)
    return videos


def train_motion_classifier(
    pipe: VideoGPTPipeline, *, videos_per_class: int = 100, num_frames: int = 24, num_epochs: int = 12, seed: int = 0
) -> tuple[ClipClassifier, float]:
    """A classifier of the three motions and what is none of them, trained on videos that are in no set, as the autoencoder
    shows them.

    Returns:
        The classifier, and the share of further such videos that it gets right: what its word is worth.
    """
    size = pipe.config.longest_side
    num_unseen = max(videos_per_class // 5, 1)
    total = videos_per_class + num_unseen
    options = {"num_frames": num_frames, "size": size}
    rows: list[list[np.ndarray]] = []
    for motion in MOTIONS:
        halves = [
            list(motion_set(motion, -(-total // 2), held_out=held_out, first_seed=FIRST_CLASSIFIER_SEED, **options))
            for held_out in (False, True)
        ]
        rows.append([x.frames for pair in zip(*halves, strict=True) for x in pair][:total])
    rows.append(other_videos(total, **options))
    rows = [[through_autoencoder(pipe, video) for video in row] for row in tqdm(rows, desc="Autoencoder", delay=5)]
    seen = [video for row in rows for video in row[:videos_per_class]]
    labels = np.repeat(np.arange(len(CLASSES)), videos_per_class).tolist()
    model = train_classifier(np.stack(seen), labels, num_classes=len(CLASSES), num_epochs=num_epochs, seed=seed)
    unseen = [video for row in rows for video in row[videos_per_class:]]
    truth = np.repeat(np.arange(len(CLASSES)), num_unseen)
    return model, float(np.mean(np.array(classify(model, unseen)) == truth))


def animate_all(
    pipe: VideoGPTPipeline,
    animations: Sequence[Animation],
    *,
    num_inference_steps: int,
    seed: int = 0,
    frames_per_clip: int | None = None,
    guidance_scale: float | None = None,
) -> list[np.ndarray]:
    """What a pipeline makes of the first frame of each: uint8 (1 + N, H, W, 3), the given frame in front."""
    videos = []
    for index, animation in enumerate(tqdm(animations, desc="Animating", delay=5)):
        made = predict_continuation(
            pipe,
            animation.frames,
            num_given=1,
            num_inference_steps=num_inference_steps,
            frames_per_clip=frames_per_clip,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(seed + index),
        )
        videos.append(np.concatenate([animation.frames[:1], made]))
    return videos


def score_motion(
    animations: Sequence[Animation], videos: Sequence[np.ndarray], *, classifier: ClipClassifier
) -> MotionScores:
    """Scores videos against the animations whose first frames they began with, one each, of one motion."""
    found = classify(classifier, videos)
    return MotionScores(
        recognised=float(np.mean([CLASSES[x] == a.motion for x, a in zip(found, animations, strict=True)])),
        others_unchanged=float(
            np.mean([not moved_objects(a, v[-1]) for a, v in zip(animations, videos, strict=True)])
        ),
        error=float(
            np.mean([mse_by_frame(v[1:], a.frames[1:]).mean() for a, v in zip(animations, videos, strict=True)])
        ),
    )


def format_motion_scores(scores: dict[str, dict[str, MotionScores]]) -> str:
    """A Markdown table of rows "all", "colour" and "place" (what is new to the training set), each way of animating a line."""
    lines = ["| held-out first frames | | recognised | others unchanged | MSE × 1000 | over still | over base |"]
    lines.append("|---|---|---|---|---|---|---|")
    for novelty, ways in scores.items():
        for way, x in ways.items():
            over = [f"{x.error / ways[name].error:.2f} ×" if ways[name].error else "–" for name in ("still", "base")]
            lines.append(
                f"| {novelty} | {way} | {x.recognised:.0%} | {x.others_unchanged:.0%} | {1000 * x.error:.2f} | {over[0]} | "
                f"{over[1]} |"
            )
    return "\n".join(lines)


def evaluate_motion(
    pipe: VideoGPTPipeline,
    lora: str | Path,
    *,
    motion: str,
    classifier: ClipClassifier,
    all_weights: VideoGPTPipeline | None = None,
    folder: str | Path | None = None,
    num_animations: int = 64,
    num_frames: int = 24,
    num_inference_steps: int = 25,
    guidance_scale: float | None = None,
    seed: int = 0,
) -> dict[str, dict[str, MotionScores]]:
    """Animates held-out first frames by the base, by its adapter, not at all, and as they truly go on (as the autoencoder shows it).

    The base predicts in clips of its own length, the adapter all in one, as it was trained. The pipeline is as before afterwards.

    Args:
        lora: as `load_lora_weights` takes it.
        all_weights: a pipeline that was trained whole on the same set, to be scored beside; it predicts in clips of its own length.
        folder: gets `MOTION.png`, a strip of the first two of each novelty.

    Returns:
        "all", "colour" and "place" → "still", "base", "LoRA", "all weights" where such are given, and "truth".
    """
    size = pipe.config.longest_side
    animations = list(motion_set(motion, num_animations, held_out=True, num_frames=num_frames, size=size))
    settings = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "seed": seed}
    videos = {"still": [np.repeat(x.frames[:1], num_frames, axis=0) for x in animations]}
    videos["base"] = animate_all(pipe, animations, **settings)
    pipe.load_lora_weights(lora, adapter_name=motion)
    try:
        videos["LoRA"] = animate_all(pipe, animations, frames_per_clip=num_frames - 1, **settings)
    finally:
        pipe.unload_lora_weights()
    if all_weights is not None:
        videos["all weights"] = animate_all(all_weights, animations, **settings)
    videos["truth"] = [through_autoencoder(pipe, x.frames) for x in animations]
    scores = {}
    for novelty in ("all", "colour", "place"):
        chosen = [index for index, x in enumerate(animations) if novelty in ("all", x.novelty)]
        if chosen:
            scores[novelty] = {
                way: score_motion([animations[i] for i in chosen], [made[i] for i in chosen], classifier=classifier)
                for way, made in videos.items()
            }
    if folder is not None:
        rows = {
            f"{index + 1} {way}": made[index]
            for index in range(min(4, len(animations)))
            for way, made in videos.items()
        }
        write_film_strip(Path(folder) / f"{motion}.png", rows, num_given=1, fps=animations[0].fps)
    return scores


# Mixing


MIXTURES = ((1.0, 0.0), (0.7, 0.3), (0.5, 0.5), (0.3, 0.7), (0.0, 1.0), (1.0, 1.0))


def mix_adapters(
    pipe: VideoGPTPipeline,
    loras: dict[str, str | Path],
    *,
    frame: np.ndarray,
    num_frames: int = 24,
    num_inference_steps: int = 25,
    guidance_scale: float | None = None,
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """One picture animated by two adapters at once: at several weights, at half scale, fused, and after they were unloaded.

    Args:
        loras: two names → as `load_lora_weights` takes them.
        frame: uint8 (H, W, 3).

    Returns:
        Label → uint8 (1 + N, H, W, 3); and the largest differences of pixels, of 255: "fused" from the same mixture that is not,
        "unloaded" from the base, which is to be 0.

    Raises:
        ValueError: there are not two adapters, or one does not fit.
    """
    if len(loras) != 2:
        raise ValueError(f"Two adapters are mixed, got {len(loras)}: {', '.join(loras) or 'none'}.")

    def animated(**options) -> np.ndarray:
        made = pipe(
            video=frame[None],
            num_frames=num_frames - 1,
            frames_per_clip=num_frames - 1,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            height=frame.shape[0],
            width=frame.shape[1],
            output_type="np",
            **options,
        ).frames[0]
        return np.concatenate([frame[None], (made * 255).round().astype(np.uint8)])

    names, videos = list(loras), {"base": animated()}

    def load_both() -> None:
        for name, source in loras.items():
            pipe.load_lora_weights(source, adapter_name=name)

    load_both()
    for weights in MIXTURES:
        pipe.set_adapters(names, list(weights))
        videos[" + ".join(f"{weight:g} {name}" for weight, name in zip(weights, names, strict=True) if weight)] = (
            animated()
        )
    both = list(videos)[-1]
    videos["both, scale 0.5"] = animated(attention_kwargs={"scale": 0.5})
    pipe.unload_lora_weights()
    videos["unloaded"] = animated()
    load_both()  # fused last, as taking an adapter off the base's own weights rounds them
    pipe.set_adapters(names)
    pipe.fuse_lora()
    videos["both, fused"] = animated()
    pipe.unfuse_lora()
    pipe.unload_lora_weights()

    def difference(first: str, second: str) -> float:
        return float(abs(videos[first].astype(int) - videos[second]).max())

    return videos, {"fused": difference("both, fused", both), "unloaded": difference("unloaded", "base")}
