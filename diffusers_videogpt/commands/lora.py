"""`--lora SOURCE[:WEIGHT]`, as every command that loads a pipeline takes it."""

import argparse
from pathlib import Path

from ..pipeline_videogpt import VideoGPTPipeline
from ..saved_models import refuse_unreachable


def parse_lora(text: str) -> tuple[str, float]:
    """ "DIR:0.8" → ("DIR", 0.8), "DIR" → ("DIR", 1.0)."""
    source, _, weight = text.rpartition(":")
    try:
        return (source, float(weight)) if source else (text, 1.0)
    except ValueError:
        return text, 1.0


def add_lora_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--lora",
        action="append",
        default=[],
        type=parse_lora,
        metavar="SOURCE[:WEIGHT]",
        help="folder, file or Hub id of a LoRA and its weight (default: 1); give it several times to mix them",
    )


def load_loras(pipe: VideoGPTPipeline, loras: list[tuple[str, float]]) -> None:
    """Loads all of them and makes them active together.

    Raises:
        OSError: one is no file or folder, and the Hub does not have it or could not be asked.
        ValueError: one does not fit the model, or is none.
    """
    names = [f"lora_{index}" for index in range(len(loras))]
    for name, (source, _) in zip(names, loras, strict=True):
        if not Path(source).is_file():
            try:
                refuse_unreachable(source)
            except OSError as error:
                raise OSError(f"--lora: {error}") from error
        pipe.load_lora_weights(source, adapter_name=name)
    if loras:
        pipe.set_adapters(names, [weight for _, weight in loras])
