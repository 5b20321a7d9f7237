"""Values of a configuration, which may come from a file that somebody else wrote: of the right type and within reason.

What is far out of range is refused before memory is taken for it.
"""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, get_args


MOST_FRAMES = 10**6  # of one call, a day of video, which keeps all of them until its end
MOST_STEPS = 10**6  # denoising steps of a clip
MOST_DIGITS = 30  # Python reads no number of thousands of digits
MAX_FPS = 1000.0  # of a video
MAX_GAP = 3600.0  # seconds that one frame may be shown: a longer time comes from damaged timestamps
Solver = Literal["euler", "multistep", "consistency"]  # of `NextClipFlowMatchScheduler`
SOLVERS = get_args(Solver)


def check_whole_number(name: str, value: Any, *, at_least: int = 1, at_most: int = 10**6) -> None:
    """Raises a `ValueError` that names the value if it is no whole number in the range."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not at_least <= value <= at_most:
        raise ValueError(f"`{name}` must be a whole number in {at_least}..{at_most}, got {_shown(value)}.")


def check_positive_number(name: str, value: Any) -> None:
    """Raises a `ValueError` that names the value if it is no finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be a finite number above 0, got {_shown(value)}.")


def check_finite_number(name: str, value: Any) -> None:
    """Raises a `ValueError` that names the value if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, got {_shown(value)}.")


def check_pipeline_config(config: Mapping[str, Any]) -> None:
    """Raises a `ValueError` that names the first setting of `VideoGPTPipeline` that is none; those that are not there are not
    looked for."""
    for name in ("frames_per_clip", "max_context_frames", "longest_side"):
        if name in config:
            check_whole_number(name, config[name])
    if config.get("num_inference_steps") is not None:
        check_whole_number("num_inference_steps", config["num_inference_steps"], at_most=MOST_STEPS)
    for name in ("guidance_scale", "condition_guidance_scale"):
        if name in config:
            check_finite_number(name, config[name])
    if not isinstance(config.get("rolling_cache", False), bool):
        raise ValueError(f"`rolling_cache` must be true or false, got {_shown(config['rolling_cache'])}.")
    check_label_names(config.get("id2label"))
    check_trained_with(config.get("trained_with"))
    if not isinstance(config.get("trained_on"), str | None):
        raise ValueError(f"`trained_on` must be text, got {_shown(config['trained_on'])}.")


def check_trained_with(trained_with: Any) -> None:
    """Raises a `ValueError` if what a model was trained with is neither `None` nor a mapping of what a training can have."""
    if trained_with is None:
        return
    _check_mapping(trained_with, "`trained_with` must map settings to values")
    sizes = ("num_frames", "max_clips", "frames_per_clip", "longest_side", "height", "width", "num_inference_steps")
    for name in sizes:
        if trained_with.get(name) is not None:
            check_whole_number(f"trained_with.{name}", trained_with[name])
    if trained_with.get("guidance_scale") is not None:
        check_finite_number("trained_with.guidance_scale", trained_with["guidance_scale"])
    fps, clips, solver = (trained_with.get(name) for name in ("fps", "clips", "solver"))
    if fps is not None:
        check_positive_number("trained_with.fps", fps)
        if not 1 / MAX_GAP <= fps <= MAX_FPS:
            raise ValueError(
                f"`trained_with.fps` must be at most {MAX_FPS:g} frames a second, and at least one in {MAX_GAP:g} s, got {fps}."
            )
    for name in ("clips", "trained_on", "solver"):
        if not isinstance(trained_with.get(name), str | None):
            raise ValueError(f"`trained_with.{name}` must be text, got {_shown(trained_with[name])}.")
    if clips is not None:
        try:
            split_clips(clips)
        except ValueError as error:
            raise ValueError(f"`trained_with.clips`: {error}") from error
    if solver is not None and solver not in SOLVERS:
        raise ValueError(f"`trained_with.solver` must be one of {', '.join(SOLVERS)}, got {_shown(solver)}.")


def split_clips(clips: str, max_clips: int | None = None) -> tuple[str, int | None]:
    """The kind of `--clips` and its number: "random" → ("random", None), "equal:8" → ("equal", 8).

    Raises:
        ValueError: if `clips` has another form, or `max_clips` is given for a kind that is not random.
    """
    kind, _, number = clips.partition(":")
    if clips == "random":
        return clips, None
    if kind not in ("equal", "first") or not number.isdecimal() or len(number) > MOST_DIGITS or int(number) < 1:
        raise ValueError(f"Clips are 'random', 'equal:N' or 'first:N' with N at least 1, got {_shown(clips)}.")
    if max_clips is not None:
        raise ValueError(f"A largest number of clips ({max_clips}) belongs to clips='random', got '{clips}'.")
    return kind, int(number)


def check_scheduler_config(config: Mapping[str, Any]) -> None:
    """Raises a `ValueError` that names the first setting of `NextClipFlowMatchScheduler` that is none."""
    shift, solver = config.get("shift", 1.0), config.get("solver", SOLVERS[0])
    if not isinstance(shift, Real) or not 0 < shift < math.inf:
        raise ValueError(
            f"`shift` is {_shown(shift)}, but must be a positive number; 1.0 leaves the times as they are."
        )
    if solver not in SOLVERS:
        raise ValueError(f"`solver` is {_shown(solver)}, but must be 'euler', 'multistep' or 'consistency'.")


def check_label_names(id2label: Any) -> None:
    """Raises a `ValueError` if this is neither `None` nor a mapping of whole numbers, or their digits, to names."""
    if id2label is not None:
        must = "`id2label` must map numbers to names"
        _check_mapping(id2label, must)
        for number, name in id2label.items():
            if not str(number).isdecimal() or not isinstance(name, str):
                raise ValueError(f"{must}, got {_shown(number)}: {_shown(name)}.")


def _check_mapping(value: Any, must: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{must}, got {_shown(value)}.")


def check_cache_index(index: Any) -> None:
    """Raises a `ValueError` that says what is wrong if this is not the `index.json` of a finished cache of latents."""
    kinds = {"key": Mapping, "shards": list, "dropped": Mapping, "videos": list}
    for name, kind in kinds.items():
        if not isinstance(index, Mapping) or not isinstance(index.get(name), kind):
            raise ValueError(f"it has no `{name}`, or one of another kind")
    check_whole_number("key.num_windows", index["key"].get("num_windows"))
    for shard in index["shards"]:
        if not isinstance(shard, Mapping) or not isinstance(shard.get("file"), str):
            raise ValueError(f"a shard has no file: {_shown(shard)}")
        check_whole_number(f"bytes of {_shown(shard['file'])}", shard.get("bytes"), at_most=2**63)
    for video in index["videos"]:
        if not isinstance(video, Mapping) or not isinstance(video.get("id"), str):
            raise ValueError(f"a video has no id: {_shown(video)}")
        for name in ("length", "height", "width"):
            check_whole_number(f"{name} of {_shown(video['id'])}", video.get(name))
        check_whole_number(
            f"shard of {_shown(video['id'])}", video.get("shard"), at_least=0, at_most=len(index["shards"]) - 1
        )
        for name in ("caption", "label", "digest"):
            if not isinstance(video.get(name), str | None):
                raise ValueError(f"{name} of {_shown(video['id'])} is no text, but {_shown(video[name])}")


def check_network_config(config: Mapping[str, Any]) -> None:
    """Raises a `ValueError` that names the first argument of `VideoGPTTransformerModel` that no network can have."""
    largest = {"num_layers": 1000, "num_attention_heads": 1024, "attention_head_dim": 4096, "patch_size": 64}
    largest |= {"in_channels": 4096, "pos_embed_max_size": 4096, "pos_embed_base_size": 4096}
    for name in (*largest, "ffn_dim"):
        check_whole_number(name, config[name], at_most=largest.get(name, 10**6))
    for name in ("max_position_embeddings", "original_max_position_embeddings"):
        check_whole_number(name, config[name], at_most=10**9)
    for name in ("num_classes", "text_embed_dim", "num_actions", "action_dim"):
        if config[name] is not None:
            check_whole_number(name, config[name])
    _check_action_space(config)
    for name in ("norm_eps", "rope_theta"):
        check_positive_number(name, config[name])
    factors = config["rope_long_factor"]
    if factors is not None and not isinstance(factors, list | tuple):
        raise ValueError(f"`rope_long_factor` must be a list of numbers or null, got {_shown(factors)}.")
    for factor in factors or ():
        check_positive_number("rope_long_factor", factor)


def _check_action_space(config: Mapping[str, Any]) -> None:
    """Raises a `ValueError` if a network has both kinds of actions, or a scale that does not belong to its actions."""
    if config["num_actions"] is not None and config["action_dim"] is not None:
        raise ValueError(
            "`num_actions` is for discrete actions and `action_dim` for continuous ones: give one of them."
        )
    if config["action_mean"] is None and config["action_std"] is None:
        return
    for name in ("action_mean", "action_std"):
        if not isinstance(config[name], list | tuple) or len(config[name]) != config["action_dim"]:
            raise ValueError(
                f"`{name}` must be a list of `action_dim`={config['action_dim']} numbers, given with the other of mean and "
                f"standard deviation, got {_shown(config[name])}."
            )
    for mean, std in zip(config["action_mean"], config["action_std"], strict=True):
        check_finite_number("action_mean", mean)
        check_positive_number("action_std", std)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
