"""Whether generated videos show what was asked for: classes, by a classifier of its own, and objects, by counting them.

Shapes: N videos, F frames, H × W pixels, K classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from ..data.sampling import Sampling
from ..data.videos import VideoTable
from ..files import path_inside
from ..film_strips import write_film_strip
from ..pipeline_videogpt import VideoGPTPipeline
from ..video_io import to_uint8_frames, write_video
from ..worlds.orders import Order, draw_order, read_objects


FIRST_CLASSIFIER_SEED = 5000  # scenes that no generator is trained on, and none is compared with


def generate(
    pipe: VideoGPTPipeline,
    count: int,
    *,
    num_inference_steps: int,
    condition_guidance_scale: float | None,
    seed: int,
    batch_size: int = 16,
    **asked: Sequence,
) -> list[np.ndarray]:
    """`count` videos of one clip, each uint8 (F, H, W, 3); `asked` are lists of so many labels or prompts, by argument."""
    side, videos = pipe.config.longest_side, []
    for first in tqdm(range(0, count, batch_size), desc="Making videos", delay=5):
        last = min(first + batch_size, count)
        frames = pipe(
            **{name: values[first:last] for name, values in asked.items()},
            height=side,
            width=side,
            num_inference_steps=num_inference_steps,
            condition_guidance_scale=condition_guidance_scale,
            num_videos_per_prompt=1 if asked else last - first,
            generator=[torch.Generator().manual_seed(seed + index) for index in range(first, last)],
            output_type="np",
        ).frames
        videos += [to_uint8_frames(video) for video in frames]
    return videos


def through_autoencoder(pipe: VideoGPTPipeline, frames: np.ndarray) -> np.ndarray:
    """A real video as the autoencoder gives it back: no model of its latents can look better."""
    height, width = frames.shape[1:3]
    generator = torch.Generator().manual_seed(0)
    latents = pipe.encode_given(
        video=frames, height=height, width=width, max_context_frames=len(frames), generator=generator
    )
    return to_uint8_frames(pipe.decode_latents(latents, "np")[0])


# Classes


class ClipClassifier(nn.Module):
    """Four 3-D convolutions and a mean over what is left: uint8 (N, F, H, W, 3) → logits (N, K)."""

    def __init__(self, num_classes: int, width: int = 16):
        super().__init__()
        channels = (3, width, 2 * width, 4 * width, 4 * width)
        layers = []
        for index, (c_in, c_out) in enumerate(zip(channels, channels[1:], strict=False)):
            stride = (1 if index == 0 else 2, 2, 2)
            layers += [nn.Conv3d(c_in, c_out, 3, stride, padding=1), nn.GroupNorm(4, c_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1], num_classes)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        pixels = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return self.head(self.layers(pixels).mean(dim=(2, 3, 4)))


def train_classifier(
    videos: np.ndarray,
    labels: Sequence[int],
    *,
    num_classes: int,
    num_epochs: int = 6,
    batch_size: int = 16,
    seed: int = 0,
) -> ClipClassifier:
    """Trains a classifier on uint8 (N, F, H, W, 3), mirrored at random, on the CPU."""
    torch.manual_seed(seed)
    model, frames, labels = ClipClassifier(num_classes), torch.from_numpy(videos), torch.tensor(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    num_steps = num_epochs * -(-len(frames) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=num_steps)
    for _ in tqdm(range(num_epochs), desc="Training the classifier", delay=5):
        for rows in torch.randperm(len(frames)).split(batch_size):
            batch = frames[rows]
            if torch.rand(()) < 0.5:
                batch = batch.flip(3)
            F.cross_entropy(model(batch), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


@torch.no_grad()
def classify(model: ClipClassifier, videos: Sequence[np.ndarray], *, batch_size: int = 32) -> list[int]:
    frames = torch.from_numpy(np.stack(videos))
    return [int(x) for batch in frames.split(batch_size) for x in model(batch).argmax(dim=1)]


@dataclass
class ClassScores:
    """How videos of each class are recognised.

    Attributes:
        names: of the K classes.
        real: share of unseen real videos, behind the autoencoder, that the classifier gets right: what it is worth.
        made: share of generated videos that it recognises as the class that was asked for.
        confusion: (K, K) counts of generated videos, asked for by recognised as.
        without: counts of what it takes videos for that were made without a label.
    """

    names: list[str]
    real: float
    made: float
    confusion: list[list[int]]
    without: list[int]


def evaluate_classes(
    pipe: VideoGPTPipeline,
    videos_per_class: int = 20,
    *,
    num_training_videos: int = 800,
    data_root: str | Path | None = None,
    num_inference_steps: int = 25,
    condition_guidance_scale: float | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
) -> ClassScores:
    """Trains a classifier on real videos of the model's classes, and asks it about generated ones.

    Args:
        pipe: makes videos of a class, in one clip, of the size that it makes by itself.
        videos_per_class: made of each class, and as many in all without a label.
        num_training_videos: for the classifier; real videos behind these tell what it is worth.
        data_root: folder a class of real videos; by default simulated scenes that the model has not seen.
        folder: gets the MP4s `made/CLASS/…`, `real/CLASS/…` (the same number of unseen ones) and `without_label/…`,
            to be compared by `videogpt evaluate fvd`, and a film strip a class.

    Raises:
        ValueError: if the model has no named classes, or one whose name leads out of `folder`, or there are too few real
            videos.
    """
    names = list(pipe.labels)
    if not names:
        raise ValueError("This pipeline names no classes: train one by training_scripts/train_class_to_video.py.")
    for name in names if folder is not None else ():
        path_inside(folder, name)  # a name is a folder in it
    num_frames, side = pipe.config.frames_per_clip, pipe.config.longest_side
    sampling = Sampling(num_frames, height=side, width=side)
    num_made = videos_per_class * len(names)
    if data_root is None:
        table = VideoTable.simulated(
            num_training_videos + num_made, num_frames, sampling=sampling, first_seed=FIRST_CLASSIFIER_SEED
        )
    else:
        table = VideoTable.from_folder(data_root, sampling)
    if len(table) < num_training_videos + len(names):
        raise ValueError(
            f"{len(table)} real videos are too few for {num_training_videos} to train the classifier on and others to test "
            "it: give more, or lower the number to train on."
        )
    order = np.random.default_rng(seed).permutation(len(table))[: num_training_videos + num_made]
    originals = [table.read(index, table.draw_window(index, 0, seed=seed)) for index in order]
    videos = [through_autoencoder(pipe, video) for video in tqdm(originals, desc="Autoencoder", delay=5)]
    labels = [pipe.labels[table[index].label] for index in order]
    classifier = train_classifier(
        np.stack(videos[:num_training_videos]), labels[:num_training_videos], num_classes=len(names), seed=seed
    )
    unseen, truth = videos[num_training_videos:], labels[num_training_videos:]

    asked = [label for label in range(len(names)) for _ in range(videos_per_class)]
    steps = {"num_inference_steps": num_inference_steps}
    made = generate(
        pipe, num_made, **steps, condition_guidance_scale=condition_guidance_scale, seed=seed, class_labels=asked
    )
    without = generate(pipe, num_made, **steps, condition_guidance_scale=None, seed=seed)
    found = classify(classifier, made)
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (asked, found), 1)
    if folder is not None:
        _write_videos(Path(folder) / "made", made, labels=[names[label] for label in asked])
        _write_videos(Path(folder) / "real", originals[num_training_videos:], labels=[names[label] for label in truth])
        _write_videos(Path(folder) / "without_label", without, labels=["all"] * num_made)
        strips = {name: made[label * videos_per_class] for label, name in enumerate(names)}
        write_film_strip(Path(folder) / "classes.png", strips, num_given=0)
    return ClassScores(
        names=names,
        real=float(np.mean(np.array(classify(classifier, unseen)) == truth)),
        made=float(np.trace(confusion) / confusion.sum()),
        confusion=confusion.tolist(),
        without=np.bincount(classify(classifier, without), minlength=len(names)).tolist(),
    )


def _write_videos(folder: Path, videos: Sequence[np.ndarray], *, labels: Sequence[str]) -> None:
    for index, (video, label) in enumerate(zip(videos, labels, strict=True)):
        write_video(path_inside(folder, label) / f"{index:04d}.mp4", video, fps=12, crf=1)


def format_classes(scores: ClassScores) -> str:
    """A table in Markdown: asked for by recognised as, in per cent."""
    lines = [
        "| asked for | " + " | ".join(scores.names) + " |",
        "|---" * (1 + len(scores.names)) + "|",
    ]
    for name, row in (*zip(scores.names, scores.confusion, strict=True), ("no label", scores.without)):
        lines.append(f"| {name} | " + " | ".join(f"{100 * count / sum(row):.0f} %" for count in row) + " |")
    lines += [
        "",
        f"Recognised: {100 * scores.made:.1f} % of generated videos, {100 * scores.real:.1f} % of real ones.",
    ]
    return "\n".join(lines)


# Text


@dataclass
class PromptScores:
    """Shares of videos that show what the text says, as most of their frames show it.

    Attributes:
        count: of the videos.
        colours: all colours that are named and no other.
        numbers: as many objects of each colour as are named.
        shapes: balls where balls are named, boxes where boxes are.
        everything: all three.
    """

    count: int
    colours: float
    numbers: float
    shapes: float
    everything: float


def score_objects(orders: Sequence[Order], videos: Sequence[np.ndarray]) -> PromptScores:
    """What videos, uint8 (F, H, W, 3), show of their orders."""
    right = []
    for order, video in zip(orders, videos, strict=True):
        asked, shown = Counter(order.objects), read_objects(video)
        by_colour = [Counter(colour for colour, _ in objects.elements()) for objects in (asked, shown)]
        right.append(
            (
                by_colour[0].keys() == by_colour[1].keys(),
                by_colour[0] == by_colour[1],
                asked.keys() == shown.keys(),
                asked == shown,
            )
        )
    return PromptScores(len(orders), *np.mean(right, axis=0).tolist())


def evaluate_prompts(
    pipe: VideoGPTPipeline,
    num_prompts: int = 64,
    *,
    num_inference_steps: int = 25,
    condition_guidance_scale: float | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
) -> dict[str, PromptScores]:
    """Asks for simulated scenes by text, and reads from the generated videos what is in them.

    Args:
        pipe: makes videos from text, in one clip, of the size that it makes by itself.
        num_prompts: of combinations that training may have shown, and as many of combinations that it has not.
        folder: gets the MP4s and a film strip of the first of each.

    Returns:
        Scores by name; those of real scenes of the same prompts behind the autoencoder are what the reading is worth.
    """
    side, num_frames, results = pipe.config.longest_side, pipe.config.frames_per_clip, {}
    for number, name in enumerate(("combinations seen in training", "combinations held out")):
        orders = [draw_order(index, held_out=number == 1) for index in range(num_prompts)]
        scenes = [order.simulate(index, num_frames, size=side) for index, order in enumerate(orders)]
        real = [through_autoencoder(pipe, scene.frames) for scene in scenes]
        prompts = [order.caption for order in orders]
        videos = generate(
            pipe,
            num_prompts,
            num_inference_steps=num_inference_steps,
            condition_guidance_scale=condition_guidance_scale,
            seed=seed + number * num_prompts,
            prompt=prompts,
        )
        results[name] = score_objects(orders, videos)
        results[f"{name}, real scenes"] = score_objects(orders, real)
        if folder is not None:
            part = Path(folder) / ("held_out" if number else "seen")
            _write_videos(part, videos, labels=[order.kind for order in orders])
            (part / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
            write_film_strip(part / "prompts.png", dict(zip(prompts[:6], videos[:6], strict=True)), num_given=0)
    return results


def format_prompts(results: dict[str, PromptScores]) -> str:
    """The results as a Markdown table."""
    lines = ["| | videos | everything | colours | numbers | shapes |", "|---|---|---|---|---|---|"]
    for name, s in results.items():
        shares = " | ".join(f"{100 * share:.0f} %" for share in (s.everything, s.colours, s.numbers, s.shapes))
        lines.append(f"| {name} | {s.count} | {shares} |")
    return "\n".join(lines)
