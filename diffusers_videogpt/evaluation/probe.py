"""How well a classifier of videos does, and what features are worth to a linear probe.

Shapes: V videos, N clips of each, D channels, K classes, C latent channels, F frames, h × w latent size.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.videos import FIRST_TRAINING_SEED, VideoTable
from ..extras import require
from ..files import plain_cell, write_json, written_whole
from ..metrics.classification import ClassificationScores, score_classes
from ..pipeline_videogpt import VideoGPTPipeline
from ..tasks.linear_probe import fit_linear_probe
from ..tasks.token_pooling import pool_clean_layers, pool_latents
from ..tasks.video_classification import VideoGPTForVideoClassification, load_classifier
from ..tasks.video_features import clip_latents, read_clips
from ..transformer_videogpt import VideoGPTTransformerModel
from ..worlds import SCENE_KINDS, simulate


figures = require("matplotlib.figure", "The plots need Matplotlib", extra="eval")

NUM_FRAMES = 16  # of a simulated scene
MOST_OBJECTS = 4


@torch.no_grad()
def evaluate_classifier(
    model: VideoGPTForVideoClassification, vae, *, table: VideoTable, num_clips: int = 3, num_workers: int = 0
) -> ClassificationScores:
    """Classifies the videos of a table, each by the mean probabilities of clips spread evenly over it.

    Raises:
        ValueError: a video has no class, or one that the model does not know.
    """
    labels = model.label_ids([record.label for record in table]).cpu()
    clips = read_clips(table, range(len(table)), vae=vae, num_clips=num_clips, num_workers=num_workers)
    indices, probabilities = [], []
    for index, latents in tqdm(clips, desc="Classifying", total=len(table), delay=5):
        indices.append(index)
        probabilities.append(model(latents).logits.softmax(dim=-1).mean(dim=0).cpu())
    return score_classes(torch.stack(probabilities), labels[indices], names=list(model.labels))


def score_saved_classifier(
    name: str | Path,
    data: Path,
    *,
    dataset_file: Path | None = None,
    label_column: str | None = None,
    num_clips: int = 3,
    num_workers: int = 0,
    device: str = "cpu",
) -> ClassificationScores:
    """Loads a classifier with its VAE, and asks it about the videos of a folder a class, or of a list or table of them.

    Raises:
        ValueError: as [`evaluate_classifier`], or there is no usable video.
    """
    model, vae = (part.to(device) for part in load_classifier(name))
    if dataset_file is None:
        table = VideoTable.from_folder(data, model.sampling)
    else:
        table = VideoTable.from_table(dataset_file, model.sampling, label_column=label_column, root=data)
    print(f"{len(table)} videos; {table.dropped.summary()}{table.dropped.first()}")
    return evaluate_classifier(model, vae, table=table, num_clips=num_clips, num_workers=num_workers)


def write_scores(scores: ClassificationScores, folder: str | Path) -> None:
    """Writes `scores.json`, and the confusion as `confusion.csv` and `confusion.png`: rows are the true classes."""
    folder = Path(folder)
    write_json(folder / "scores.json", asdict(scores))
    names = [plain_cell(name) for name in scores.names]
    with (
        written_whole(folder / "confusion.csv") as unfinished,
        unfinished.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["true class", *names])
        writer.writerows([name, *row] for name, row in zip(names, scores.confusion, strict=True))

    counts = np.array(scores.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.0, 0.5 + 0.17 * len(counts))
    figure = figures.Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    places, size = range(len(counts)), 9 if len(counts) <= 12 else 5
    axes.set_xticks(places, scores.names, rotation=90, fontsize=size)
    axes.set_yticks(places, scores.names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true")
    if len(counts) <= 12:
        for row, column in np.ndindex(counts.shape):
            colour = "black" if shares[row, column] > 0.5 else "white"
            axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, label="share of the true class")
    figure.savefig(folder / "confusion.png", dpi=150)


# What features are worth, on simulated scenes


@dataclass
class ProbeScores:
    """A linear probe on one kind of features.

    Attributes:
        features: whose they are.
        layer: `None` for features that have none.
        held_out, test: shares of scenes that it got right: those of the training scenes that its weight decay was chosen
            on, and the unseen ones.
        chosen: whether this is the layer that was best on the held-out scenes.
        scores: on the unseen scenes.
    """

    features: str
    layer: int | None
    held_out: float
    test: float
    chosen: bool
    scores: ClassificationScores


def simulate_scenes(
    vae, first_seed: int, *, num_scenes: int, size: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Latents (V, C, F, h, w) of scenes of consecutive seeds; and by question the number of the right answer."""
    latents, kinds, counts = [], [], []
    for seed in tqdm(range(first_seed, first_seed + num_scenes), desc="Scenes", delay=5):
        scene = simulate(seed=seed, num_frames=NUM_FRAMES, size=size)
        latents.append(clip_latents(vae, scene.frames[None])[0].cpu())
        kinds.append(SCENE_KINDS.index(scene.kind))
        counts.append(len(scene.objects) - 1)
    return torch.stack(latents), {"kind of scene": torch.tensor(kinds), "number of objects": torch.tensor(counts)}


@torch.no_grad()
def compare_features(
    pipe: VideoGPTPipeline,
    num_training: int = 600,
    *,
    num_test: int = 300,
    layers: Sequence[int] | None = None,
    pooling: str = "mean",
    seed: int = 0,
    batch_size: int = 16,
) -> dict[str, list[ProbeScores]]:
    """Linear probes on the model's features, those of the same model with random weights, and of the latents alone.

    What each is asked: of which kind a simulated scene of 16 frames is, and how many objects it has. All features are
    pooled alike. The weight decay of each probe, and of several layers the best one, are chosen on a quarter of the
    training scenes. The test scenes have the seeds 0 …, which no training shows; those of training are others.

    Args:
        layers: reported; default: every one.
        pooling: see [`~tasks.token_pooling.pool_clean_tokens`].
        seed: of the random weights.

    Returns:
        By question the scores of all features.
    """
    size = pipe.config.longest_side
    training, training_answers = simulate_scenes(pipe.vae, FIRST_TRAINING_SEED, num_scenes=num_training, size=size)
    test, test_answers = simulate_scenes(pipe.vae, 0, num_scenes=num_test, size=size)
    untrained = VideoGPTTransformerModel.from_config(json.loads(pipe.transformer.to_json_string()))
    untrained.init_weights(torch.Generator().manual_seed(seed))
    untrained.to(pipe.transformer.device).eval()
    layers = list(range(1, pipe.transformer.config.num_layers + 1)) if layers is None else list(layers)

    def of_model(transformer: VideoGPTTransformerModel) -> Callable[[torch.Tensor], list[torch.Tensor]]:
        return lambda latents: pool_clean_layers(transformer, latents, layers=layers, pooling=pooling)

    sources = {
        "this model": (layers, of_model(pipe.transformer)),
        "random weights": (layers, of_model(untrained)),
        "latents, mean over frames and pixels": ([None], lambda latents: [pool_latents(latents, pooling)]),
        "latents, mean over frames": ([None], lambda latents: [pool_latents(latents, pooling, keep_pixels=True)]),
    }
    results = {question: [] for question in training_answers}
    held_out = range(0, num_training, 4)
    for name, (its_layers, features) in sources.items():
        of_training, of_test = (
            [
                torch.cat(parts)
                for parts in zip(
                    *(features(x) for x in tqdm(scenes.split(batch_size), desc=name, delay=5)), strict=True
                )
            ]
            for scenes in (training, test)
        )
        for question, answers in training_answers.items():
            names = list(SCENE_KINDS) if question == "kind of scene" else [str(n + 1) for n in range(MOST_OBJECTS)]
            found = []
            for layer, x, y in zip(its_layers, of_training, of_test, strict=True):
                probe = fit_linear_probe(x[:, None].cpu(), answers, num_classes=len(names), held_out=held_out)
                found_classes = probe.probabilities(y[:, None].cpu())
                scores = score_classes(found_classes, test_answers[question], names=names)
                found.append(ProbeScores(name, layer, probe.held_out_accuracy, scores.top1, False, scores))
            max(found, key=lambda x: x.held_out).chosen = True
            results[question] += found
    return results


def format_features(results: dict[str, list[ProbeScores]]) -> str:
    """A table in Markdown: shares of unseen scenes, those of held-out training scenes in brackets."""
    lines = ["| features | layer | " + " | ".join(results) + " |", "|---" * (2 + len(results)) + "|"]
    for of_features in zip(*results.values(), strict=True):
        cells = []
        for probe in of_features:
            cell = f"{100 * probe.test:.1f} % ({100 * probe.held_out:.1f} %)"
            cells.append(f"**{cell}**" if probe.chosen else cell)
        layer = "" if of_features[0].layer is None else of_features[0].layer
        lines.append(f"| {of_features[0].features} | {layer} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_features(results: dict[str, list[ProbeScores]], folder: str | Path) -> None:
    """Writes `features.json`, and by question a folder with the scores of the model's best layer."""
    folder = Path(folder)
    numbers = {question: [asdict(probe) for probe in probes] for question, probes in results.items()}
    for question, probes in results.items():
        best = next(probe for probe in probes if probe.features == "this model" and probe.chosen)
        write_scores(best.scores, folder / question.replace(" ", "_"))
    write_json(folder / "features.json", numbers)
