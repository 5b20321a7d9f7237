"""What the Hub shows of a trained model, and the way there."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData

from .. import hub
from ..hub import (
    CLASSIFICATION_EXAMPLE,
    LORA_EXAMPLE,
    PAPER,
    PLAYED_FPS,
    PREDICTION_EXAMPLE,
    RETRIEVAL_EXAMPLE,
    export_to_hub_folder,
)
from .settings import hub_id
from .validation import RolloutScores


PREDICTION, CURVE, LOG = "prediction.png", "loss_curve.png", "train_log.csv"

SEGMENTATION_EXAMPLE = """```python
from diffusers import DiffusionPipeline
from diffusers_videogpt.tasks.segmentation_data import read_mask
from diffusers_videogpt.tasks.video_object_segmentation import segment_video
from diffusers_videogpt.video_io import read_video

pipe = DiffusionPipeline.from_pretrained("{model}")
ids = segment_video(pipe, read_video("video.mp4").frames, first_mask=read_mask("first.png"))  # uint8 (F, H, W)
```"""

# As it was trained, which the base's own number of frames is not.
TRAINED_LORA_EXAMPLE = LORA_EXAMPLE.replace(
    'image="first.png"', 'image="first.png", num_frames={num_frames}, frames_per_clip={frames_per_clip}'
)

# A distilled adapter makes its base fast, which has to be told how to take its steps.
FAST_LORA_EXAMPLE = TRAINED_LORA_EXAMPLE.replace(
    "frames = pipe(",
    'pipe.scheduler = diffusers_videogpt.NextClipFlowMatchScheduler.from_config(pipe.scheduler.config, solver="{solver}")\n'
    "frames = pipe(",
).replace(").frames", ", num_inference_steps={num_inference_steps}, guidance_scale={guidance_scale}).frames")


@dataclass(frozen=True)
class Task:
    """What a model was trained for, in the words of its card."""

    pipeline_tag: str | None  # the Hub has none for videos of a class
    does: str
    strip: str = ""
    input: str = ""
    example: str = PREDICTION_EXAMPLE


TASKS = {
    "prediction": Task(
        "image-to-video",
        "continues videos clip after clip",
        "The frames of a held-out video, and what the model predicts after the given ones",
        'video="given.mp4"',
    ),
    "class": Task(
        None,
        "makes videos of a class",
        "A held-out video, and what the model makes of its class",
        "class_labels=[{label!r}]",
    ),
    "text": Task(
        "text-to-video",
        "makes videos from text",
        "A held-out video, and what the model makes of its caption",
        "prompt={caption!r}",
    ),
    "segmentation": Task(
        "image-segmentation",
        "follows objects through a video, from their masks in its first frame",
        "A held-out video, the true masks of its objects, and the masks that the model finds from the first ones",
        example=SEGMENTATION_EXAMPLE,
    ),
    "classification": Task(
        "video-classification",
        "tells classes of videos, by a linear layer on its pooled features",
        example=CLASSIFICATION_EXAMPLE,
    ),
    "retrieval": Task(
        None,
        "finds videos by text and texts by video, by projections of its pooled features and of a text encoder's",
        example=RETRIEVAL_EXAMPLE,
    ),
}


def write_model_card(
    folder: str | Path,
    *,
    transformer: torch.nn.Module,
    example: dict[str, object],
    recipe: dict[str, object],
    command: str,
    repo_id: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
    results: str | None = None,
    noise_levels: str = "",
    strip: str | Path | None = None,
    curve: str | Path | None = None,
    is_adapter: bool = False,
    task: str = "prediction",
    trained_on: str | None = None,
    trained_with: dict[str, object] | None = None,
) -> Path:
    """Writes `README.md` beside a saved model: a picture, how good it is, how to use it, how it was trained.

    Args:
        folder: where the model was saved. `strip` is copied there as `prediction.png`, `curve` as `loss_curve.png`.
        transformer: whose parameters are counted.
        example: what the example of the task speaks of: `num_frames` to predict, a `label`, a `caption`; of an adapter
            also `frames_per_clip`.
        recipe: the arguments of the training script, plain values; those that are `None` are left out. Published, like
            `command`: neither may hold a token.
        command: the command that trained the model.
        repo_id: where the model will be found, for the example; by default the folder.
        base_model, dataset: id on the Hub, which is linked; or a path or other words, which are only written down.
        license: of the weights, as the Hub abbreviates it.
        results: a paragraph on how good it is.
        noise_levels: a table of how well held-out latents are denoised, from [`~noise_levels.format_errors`].
        strip: film strip of a rollout.
        curve: what [`plot_curve`] drew.
        is_adapter: the folder holds LoRA weights for `base_model`, not a pipeline.
        task: one of `TASKS`.
        trained_on: what the training videos show, in a few words.
        trained_with: of its samples `fps`, `num_frames`, `clips`, and the size: `height` and `width`, or `longest_side`; of a
            distilled adapter also `num_inference_steps`, `guidance_scale` and `solver`.

    Returns:
        The path of the card.
    """
    folder, words = Path(folder), TASKS[task]
    name = (repo_id or folder.resolve().name).split("/")[-1]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=words.pipeline_tag,
        tags=["diffusers", "video-gpt", "next-clip-diffusion"]
        + ["video-prediction"] * (task == "prediction")
        + ["lora"] * is_adapter,
        license=license,
        base_model=hub_id(base_model),
        datasets=hub_id(dataset),
    )
    start = base_model or recipe.get("pretrained_phi3_path")
    origin = f"started from `{start}`" if start else "started from random weights"
    material = f"trained on {trained_on}" if trained_on else f"trained on `{dataset}`" if dataset else "trained"
    trained_with = trained_with or {}
    is_fast = is_adapter and "solver" in trained_with
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"A {'LoRA for ' * is_adapter}{PAPER} that {words.does}: {_count(transformer, is_adapter)}, {material}, {origin}.",
    ]
    if strip is not None:
        shutil.copyfile(strip, folder / PREDICTION)
        parts.append(f"![{words.strip}]({PREDICTION})")
    if results is not None:
        parts += ["## How good it is", results]
    if noise_levels:
        parts += ["## One denoising of held-out latents, by noise level", noise_levels]
    used = example | {"base": base_model, "model": repo_id or folder, "input": words.input.format(**example)}
    used["fps"] = trained_with.get("fps") or PLAYED_FPS
    example = FAST_LORA_EXAMPLE if is_fast else TRAINED_LORA_EXAMPLE if is_adapter else words.example
    parts += ["## How to use it", example.format(**trained_with | used)]
    parts += ["## How it was trained", f"```bash\n{command}\n```"]
    if samples := _describe_samples(trained_with):
        parts.append(samples)
    if curve is not None:
        shutil.copyfile(curve, folder / CURVE)
        parts.append(f"![Loss by step]({CURVE})")
    plain = json.loads(json.dumps({key: value for key, value in recipe.items() if value is not None}, default=str))
    parts.append(f"```yaml\n{yaml.safe_dump(plain, sort_keys=False)}```")
    path = folder / "README.md"
    ModelCard("\n\n".join(parts) + "\n").save(path)
    return path


def _count(model: torch.nn.Module, is_adapter: bool) -> str:
    """Parameters in words, those of an adapter and of what it adapts separately."""
    sizes = [(parameter.numel(), "lora_" in name) for name, parameter in model.named_parameters()]
    own = _in_words(sum(size for size, is_of_adapter in sizes if is_of_adapter == is_adapter))
    if not is_adapter:
        return f"{own} in the transformer"
    return f"{own}, beside {_in_words(sum(size for size, is_of_adapter in sizes if not is_of_adapter))} of its base"


def _in_words(number: int) -> str:
    unit, divisor = ("billion", 1e9) if number >= 1e9 else ("million", 1e6)
    return f"{number / divisor:.3g} {unit} parameters"


def _describe_samples(trained_with: dict[str, object]) -> str:
    """Size, frame rate and clips of the training samples, as far as they are known."""
    if trained_with.get("num_frames") is None:
        return ""
    size = f" of up to {trained_with['longest_side']} pixels a side" if trained_with.get("longest_side") else ""
    if trained_with.get("height"):
        size = f" of {trained_with['width']} × {trained_with['height']} pixels"
    rate = f" at {trained_with['fps']:g} frames a second" if trained_with.get("fps") else ""
    clips = f", cut into clips `{trained_with['clips']}`" if trained_with.get("clips") else ""
    return f"Samples were {trained_with['num_frames']} frames{size}{rate}{clips}."


def format_results(scores: RolloutScores) -> str:
    """What a card says of the last rollout."""
    return (
        "Held-out videos, mean squared error of pixels in [0, 1] × 1000 (PSNR in dB) of the frames after the given ones; over "
        f"all of them {scores.ratio_to_repeat:.2f} × the error of repeating the last given frame.\n\n{format_scores(scores)}"
    )


def format_scores(scores: RolloutScores) -> str:
    """A table in Markdown: MSE × 1000 (PSNR in dB) by horizon, of the prediction and its baselines."""
    names = {"predicted": "this model", "repeat": "repeating the last frame", "autoencoder": "the autoencoder alone"}
    lines = [
        "| MSE × 1000 (PSNR, dB) | " + " | ".join(f"frame {horizon}" for horizon in scores.horizons) + " |",
        "|---" * (1 + len(scores.horizons)) + "|",
    ]
    for key, label in names.items():
        cells = [f"{1000 * scores.mse[key][h - 1]:.2f} ({scores.psnr[key][h - 1]:.1f})" for h in scores.horizons]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def push_to_hub(folder: str | Path, repo_id: str, *, token: str | None = None, private: bool | None = None) -> str:
    """Uploads what [`~hub.export_to_hub_folder`] takes of a run: the model with its card, no checkpoint or cache.

    The other arguments and what is returned are those of [`~hub.push_to_hub`].

    Args:
        folder: of the pipeline, adapter or classifier.

    Raises:
        FileNotFoundError: if there is none of these in `folder`.
    """
    with tempfile.TemporaryDirectory() as exported:
        export_to_hub_folder(folder, exported, repo_id=repo_id)
        return hub.push_to_hub(exported, repo_id, token=token, private=private)
