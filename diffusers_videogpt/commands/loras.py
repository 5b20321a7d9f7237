"""What LoRAs were trained with: a command does as the first of them was, where its options say nothing else, and tells what
differs from that."""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from .models import SavedModel


# What the loaded pipeline has by itself where no option says otherwise; see [`SavedModel.settings`].
OF_THE_PIPELINE = ("longest_side", "frames_per_clip", "num_inference_steps", "guidance_scale", "solver")
# Option → what a LoRA calls it.
COMPARED = {
    "fps": "fps",
    "frames_per_clip": "frames_per_clip",
    "frames_per_step": "frames_per_clip",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "solver": "solver",
}


def follow_lora(
    args: argparse.Namespace,
    saved: SavedModel,
    *,
    trained_with: list[dict[str, Any]],
    options: Iterable[str] = ("fps", "height", "width"),
) -> SavedModel:
    """The model as it is with its LoRAs: it predicts as the first one was trained.

    Args:
        args: of `options`, those that were not given are set.
        saved: the base.
        trained_with: of each LoRA, from [`~models.check_loras`].
        options: rate and size, as far as the command has them and the first LoRA tells them.

    Raises:
        ValueError: the model has no frames of the LoRA's size.
    """
    if not trained_with:
        return saved
    first = trained_with[0]
    has_size = first.get("height") is not None and first.get("width") is not None
    asks_for_size = getattr(args, "height", None) is not None or getattr(args, "width", None) is not None
    if not asks_for_size:
        _check_lora_size(args.lora[0][0], first, saved=saved, has_size=has_size)
    for option in options:
        is_size = option in ("height", "width")
        if getattr(args, option) is None and not (is_size and (asks_for_size or not has_size)):
            setattr(args, option, first.get(option))
    settings = {name: first[name] for name in OF_THE_PIPELINE if first.get(name) is not None}
    if has_size:  # where frames keep a shape of their own, this side is what can be as in training
        settings["longest_side"] = max(first["height"], first["width"])
    return replace(saved, index=saved.index | settings, settings=settings)


def _check_lora_size(source: str, known: dict[str, Any], *, saved: SavedModel, has_size: bool) -> None:
    try:
        if has_size:
            saved.check_size(known["height"], known["width"])
        elif (side := known.get("longest_side") or saved.size_multiple) < saved.size_multiple:
            raise ValueError(f"a longest side of {side} pixels is less than the {saved.size_multiple} of a patch.")
    except ValueError as error:
        raise ValueError(f"--lora: {source} was trained at a size that the model cannot have: {error}") from error


def differences(
    args: argparse.Namespace,
    saved: SavedModel,
    *,
    trained_with: list[dict[str, Any]],
    unread_rate: str | None = None,
) -> list[str]:
    """A line for each thing that a LoRA was trained with and that is otherwise now.

    Args:
        args: with `lora`, and the command's options in their final values; those that it lacks are the model's.
        saved: from [`follow_lora`].
        trained_with: of each LoRA, from [`~models.check_loras`].
        unread_rate: of a command that does not read videos at the rate of `--fps`: what it does, or what to do instead.
    """
    lines = []
    for (source, _), known in zip(args.lora, trained_with, strict=True):
        for option, name in COMPARED.items():
            learnt = known.get(name)
            if option == "fps" and unread_rate is not None:
                if learnt is not None:
                    lines.append(f"note: {source} was trained at {learnt:g} frames a second: {unread_rate}.")
                continue
            if option == "frames_per_step" and not hasattr(args, option):
                continue
            if option == "frames_per_clip" and hasattr(args, "frames_per_step"):
                continue
            if name == "frames_per_clip" and known.get("clips") == "random":  # it has seen clips of all lengths
                continue
            asked = getattr(args, option, None)
            asked = saved.index.get(name) if asked is None else asked
            if asked is not None and learnt is not None and asked != learnt:
                lines.append(_line(source, then=f"--{option.replace('_', '-')} {_short(learnt)}", now=_short(asked)))
        lines += _other_size(args, saved, source=source, known=known)
    return lines


def _other_size(args: argparse.Namespace, saved: SavedModel, *, source: str, known: dict[str, Any]) -> list[str]:
    height, width = getattr(args, "height", None), getattr(args, "width", None)
    sides = [known[name] for name in ("longest_side", "height", "width") if known.get(name) is not None]
    if height is None and sides and max(sides) != saved.number("longest_side"):
        return [
            _line(source, then=f"at most {max(sides)} pixels a side", now=f"at most {saved.number('longest_side')}")
        ]
    if height is not None and known.get("longest_side") not in (None, max(height, width)):
        return [_line(source, then=f"at most {known['longest_side']} pixels a side", now=f"{max(height, width)}")]
    if height is not None:
        pairs = [(name, known.get(name), now) for name, now in (("height", height), ("width", width))]
        return [
            _line(source, then=f"--{name} {then}", now=f"{now}")
            for name, then, now in pairs
            if then not in (None, now)
        ]
    return []


def _line(source: str, *, then: str, now: str) -> str:
    return f"note: {source} was trained with {then}, this is with {now}: it may do worse."


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"
