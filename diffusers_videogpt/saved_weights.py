"""Whether the weights of a saved model are complete: diffusers fills what is missing with random numbers."""

from pathlib import Path

from accelerate import init_empty_weights
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open

from .files import read_json


MAX_NAMED = 4  # in an error


def refuse_missing_tensors(folder: str | Path, model_class: type[ModelMixin]) -> None:
    """Raises if a folder of a saved model lacks tensors. Only the headers of its files are read.

    Weights in other files than safetensors are left to diffusers to judge.

    Args:
        folder: with `config.json` and `diffusion_pytorch_model*.safetensors`.
        model_class: that it is to be loaded as.

    Raises:
        ValueError: names missing tensors; or a file is damaged, or the configuration impossible.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    if not paths or not (folder / "config.json").is_file():
        return
    config = read_json(folder / "config.json")
    with init_empty_weights():
        expected = set(model_class.from_config(config).state_dict())
    found = set()
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                found |= set(file.keys())
        except SafetensorError as error:
            raise ValueError(f"'{path}' is no safetensors file or is damaged ({error}): copy it again.") from error
    missing = sorted(expected - found)
    if missing:
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        raise ValueError(
            f"The weights in '{folder}' lack {', '.join(missing[:MAX_NAMED])}{more}, in whose place diffusers would put "
            "random numbers: copy all files of the model again, with its own config.json."
        )
