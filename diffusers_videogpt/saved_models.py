"""What a folder holds, for who named the wrong one, and whether the Hub has what is no folder."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from .config_values import check_pipeline_config, check_scheduler_config, check_trained_with, check_whole_number
from .files import read_json


HTTP_ERROR = HfHubHTTPError.__bases__[0]  # of httpx, whose name is not the same in all versions of huggingface_hub


# diffusers' LORA_WEIGHT_NAME_SAFE, whose file imports PyTorch: a wrong folder is to be told before that.
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"

# What the names of a LoRA's tensors begin with: in the plain form of several tools, kohya's, and diffusers' own.
PLAIN, KOHYA, OURS = "diffusion_model.", "lora_unet_", "transformer."

# Of the names in a LoRA's metadata: behind it and a dot are the settings of its training's samples.
TRAINED_WITH = "trained_with"

# Class or kind of what is in a folder → what to do with it, where something else was wanted.
HINTS = {
    "VideoGPTRetrievalPipeline": "`videogpt index`, `videogpt search` and `videogpt evaluate retrieval` take it",
    "VideoGPTForVideoClassification": "`videogpt evaluate probe` takes it",
    "VideoGPTPipeline": "`videogpt predict` takes it; training_scripts/ has what makes a classifier or a retriever of it",
    "LoRA": "name its base as the model, and this folder by `--lora` or `load_lora_weights`",
    "part of a pipeline": "name the folder above it",
    "checkpoint of the authors' code": "`videogpt convert` makes a pipeline of it",
    "run that has not ended": "train it to its end with --resume_from_checkpoint latest",
}


def _read_json(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def kind_of(folder: Path) -> str | None:
    """A key of `HINTS`, or the name of another class, or `None` if nothing there is known.

    Raises:
        ValueError: for a configuration that is no JSON object.
    """
    class_name = _read_json(folder / "model_index.json").get("_class_name")
    if class_name is not None:
        if not isinstance(class_name, str):
            raise ValueError(f"{folder / 'model_index.json'}: `_class_name` is no text, but {class_name!r}.")
        return class_name
    if (folder / LORA_WEIGHTS).is_file():
        return "LoRA"
    config = _read_json(folder / "config.json") | _read_json(folder / "scheduler_config.json")
    if isinstance(config.get("_class_name"), str) and config["_class_name"] in HINTS:
        return config["_class_name"]
    if (folder.parent / "model_index.json").is_file():
        return "part of a pipeline"
    if "num_hidden_layers" in config:  # a Phi3Config
        return "checkpoint of the authors' code"
    return "run that has not ended" if any(folder.glob("checkpoint-*")) else None


def is_of_other_tools(keys: Iterable[str]) -> bool:
    """Whether names of a LoRA's tensors are in a form that [`~lora_formats.convert_from_other_tools`] knows or refuses by
    name, and not diffusers' own."""
    return any(
        key.startswith((PLAIN, KOHYA, "base_model.model.", "lora_te"))
        or key.endswith((".lora_down.weight", ".lora_up.weight", ".alpha"))
        for key in keys
    )


def read_trained_with(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """What a LoRA was trained with, as `save_lora_weights` takes it; empty where it does not tell.

    Args:
        metadata: of its safetensors file.

    Raises:
        ValueError: it is no JSON object, or has values of another kind.
    """
    settings = json.loads((metadata or {}).get("lora_adapter_metadata", "{}"))
    if not isinstance(settings, dict):
        raise ValueError(f"its metadata is {type(settings).__name__}, not an object: save it again.")
    prefix = f"{TRAINED_WITH}."
    trained_with = {name.removeprefix(prefix): x for name, x in settings.items() if name.startswith(prefix)}
    check_trained_with(trained_with)
    return trained_with


def refuse_other_kinds(name: str | Path, wanted: str) -> None:
    """Refuses a folder of this machine that holds something else than what is to be loaded from it.

    A folder in which nothing is known, and what is no folder, such as an id on the Hub, are left to diffusers to judge.

    Args:
        name: a folder, or an id on the Hub.
        wanted: a class in `HINTS`.

    Raises:
        ValueError: says what the folder holds, and what takes that.
    """
    found = kind_of(Path(name)) if Path(name).is_dir() else None
    if found in HINTS and found != wanted:
        raise ValueError(f"'{name}' is a {found}, not a {wanted}: {HINTS[found]}.")


def refuse_unreachable(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> None:
    """Refuses what is neither a folder nor in the Hub's cache nor on the Hub, before loaders try for half a minute.

    Args:
        name: a folder, or an id on the Hub.
        revision, token, cache_dir: as in `from_pretrained`.

    Raises:
        OSError: says that it is no folder, and what came of asking the Hub.
    """
    if Path(name).is_dir():
        return
    if Path(name).is_file():
        raise OSError(f"'{name}' is a file: name the folder that it is in, or an id on the Hub.")
    try:
        validate_repo_id(str(name))
    except HFValidationError as error:
        raise OSError(f"'{name}' is no folder here, and cannot be an id on the Hub.") from error
    cache = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir)
    if (cache / f"models--{str(name).replace('/', '--')}").is_dir():
        return
    try:
        HfApi(token=token).model_info(str(name), revision=revision)
    except RepositoryNotFoundError as error:
        raise OSError(f"'{name}' is no folder here, and the Hub has none of this name that you may see.") from error
    except (HTTP_ERROR, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise OSError(f"'{name}' is no folder here, and the Hub could not be asked ({reason}).") from error


def refuse_what_is_not(
    wanted: str,
    name: str | Path,
    *,
    local_files_only: bool | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    **_kwargs,
) -> None:
    """Says what is wrong with what `from_pretrained` is to load, before diffusers tries.

    Args:
        wanted: a class in `HINTS`.
        name: a folder, or an id on the Hub.
        local_files_only, subfolder, revision, token, cache_dir: as in `from_pretrained`, whose other arguments don't matter.

    Raises:
        ValueError: says what the folder holds, and what takes that.
        OSError: there is no such folder, and the Hub does not have it or could not be asked.
    """
    if not local_files_only:
        refuse_unreachable(name, revision=revision, token=token, cache_dir=cache_dir)
    if subfolder is None:
        refuse_other_kinds(name, wanted)
        refuse_damaged_files(Path(name))


def refuse_damaged_files(folder: Path) -> None:
    """Raises a `ValueError` for a saved pipeline whose parts are not named, whose configurations are no JSON objects or have
    values that nobody can mean, or whose weights are cut off. Of these only the headers are read."""
    index = _read_json(folder / "model_index.json")
    for name, value in index.items():
        if name in ("vae", "transformer", "scheduler", "text_encoder", "tokenizer", "guider"):
            is_pair = isinstance(value, list) and len(value) == 2
            if not is_pair or not all(part is None or isinstance(part, str) for part in value):
                raise ValueError(
                    f"{folder / 'model_index.json'}: `{name}` must name a library and a class, got {value!r}: copy the "
                    "file again."
                )
    if index.get("_class_name") == "VideoGPTPipeline":
        try:
            check_pipeline_config(index)
        except ValueError as error:
            raise ValueError(f"{folder / 'model_index.json'}: {error}") from error
    for name in ("vae/config.json", "transformer/config.json", "scheduler/scheduler_config.json"):
        _read_json(folder / name)
    _check_scheduler(folder)
    check_autoencoder_config(_read_json(folder / "vae" / "config.json"), where=folder / "vae" / "config.json")
    for path in sorted(folder.glob("*/diffusion_pytorch_model*.safetensors")):
        try:
            with safe_open(path, "numpy"):
                pass
        except SafetensorError as error:
            raise ValueError(f"'{path}' is no safetensors file or is damaged ({error}): copy it again.") from error


def _check_scheduler(folder: Path) -> None:
    """Raises a `ValueError` if the scheduler's settings are those of another class than the pipeline names, of which diffusers
    would take none without a word, or make it fill the memory."""
    named = _read_json(folder / "model_index.json").get("scheduler")
    path = folder / "scheduler" / "scheduler_config.json"
    found = _read_json(path).get("_class_name")
    if named and found is not None and found != named[1]:
        raise ValueError(
            f"{path} is of {found!r}, and model_index.json names {named[1]} as the scheduler: copy both files from the same "
            "model, or set another scheduler in Python and save the pipeline."
        )
    try:
        if named and named[1] == "NextClipFlowMatchScheduler":
            check_scheduler_config(_read_json(path))
        num_timesteps = _read_json(path).get("num_train_timesteps")
        if num_timesteps is not None:  # diffusers' schedulers make a table of them, however many
            check_whole_number("num_train_timesteps", num_timesteps)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# Of diffusers' autoencoders: numbers, or lists of them, that say how much is built → the most that any could mean.
SIZES = {"layers_per_block": 100, "num_encoder_blocks": 100, "num_decoder_blocks": 100, "norm_num_groups": 10**4}
SIZES |= {"block_out_channels": 10**5, "encoder_block_out_channels": 10**5, "decoder_block_out_channels": 10**5}
SIZES |= {"in_channels": 10**5, "out_channels": 10**5, "latent_channels": 10**5}


def check_autoencoder_config(config: Mapping[str, Any], *, where: str | Path) -> None:
    """Raises a `ValueError` that begins with `where` for a size that diffusers would begin to build until the memory is full."""
    for name in SIZES.keys() & config.keys():
        values = config[name] if isinstance(config[name], list) else [config[name]]
        for value in values:
            try:
                check_whole_number(name, value, at_most=SIZES[name])
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error


class VideoGPTLoadingMixin:
    """`from_pretrained` of models and pipelines of other tasks, with the checks of [`refuse_what_is_not`]."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """Loads as diffusers does, and says so where a folder holds something else.

        Args:
            pretrained_model_name_or_path: a folder, or an id on the Hub.
            kwargs: of [`DiffusionPipeline.from_pretrained`] or [`ModelMixin.from_pretrained`].

        Raises:
            ValueError: says what the folder holds, and what takes that.
            OSError: there is no such folder, and the Hub does not have it or could not be asked.
        """
        wanted = next(c.__name__ for c in cls.__mro__ if c.__name__ in HINTS)
        refuse_what_is_not(wanted, pretrained_model_name_or_path, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
