"""A saved model as a command sees it: looked at by its JSON files first, loaded when all else is known to be right.

Looking at it imports neither PyTorch nor diffusers, so that a wrong folder, class or size is told at once.
"""

import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config_values import check_pipeline_config, check_whole_number
from ..extras import QUANTIZERS, importing_libraries, leave_out
from ..files import read_json
from ..registration import PACKAGE


# What the pipeline has where `model_index.json` says nothing.
DEFAULTS = {"frames_per_clip": 16, "max_context_frames": 80, "longest_side": 320}
# What a command reads of the network's configuration → the most that it can be, as in `config_values`.
NETWORK = {"patch_size": 64, "pos_embed_max_size": 4096, "num_classes": 10**6, "num_actions": 10**6}
NOTE = """note: this model was trained on {trained_on}, and on nothing else: whatever it is given, it goes on as that would.
For videos of another kind, name a model that knows them by --model, or train this one on some with
training_scripts/train_videogpt_lora.py and add what that makes by --lora."""


@dataclass(frozen=True)
class SavedModel:
    """What the JSON files of a saved pipeline say.

    Attributes:
        name: its folder, or id on the Hub.
        index: `model_index.json`.
        transformer, vae: their `config.json`; empty where there is none.
        settings: what the loaded pipeline has in the place of its own settings, and its scheduler's `solver`: as a LoRA was
            trained, or as was asked for.
    """

    name: str
    index: dict[str, Any]
    transformer: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def number(self, setting: str) -> int:
        """A setting of `DEFAULTS`.

        Raises:
            ValueError: it is no whole number of 1 or more, or too large.
        """
        value = self.index.get(setting, DEFAULTS[setting])
        self._check("model_index.json", setting, value=value, at_most=10**6)
        return value

    def _check(self, file: str, setting: str, *, value: Any, at_most: int) -> None:
        try:
            check_whole_number(setting, value, at_most=at_most)
        except ValueError as error:
            wanted = f"not a whole number in 1..{at_most}"
            raise ValueError(f"{self.name}: `{setting}` in {file} is {value!r}, {wanted}.") from error

    def check_settings(self) -> None:
        """Raises a `ValueError` for a setting of another kind than it should have."""
        for setting in DEFAULTS:
            self.number(setting)
        for setting, at_most in NETWORK.items():
            if self.transformer.get(setting) is not None:
                self._check("transformer/config.json", setting, value=self.transformer[setting], at_most=at_most)
        try:
            check_pipeline_config(self.index)
        except ValueError as error:
            raise ValueError(f"{self.name}: in model_index.json, {error}") from error

    @property
    def size_multiple(self) -> int:
        """Height and width of a frame are divisible by this: a patch in pixels."""
        blocks = self.vae.get("block_out_channels") or self.vae.get("encoder_block_out_channels")
        pixels_per_latent = 2 ** (len(blocks) - 1) if isinstance(blocks, list) else 8
        return pixels_per_latent * self.transformer.get("patch_size", 2)

    @property
    def largest_side(self) -> int:
        """The most pixels of a frame's height and width: the network knows so many places for patches in a row."""
        return self.transformer.get("pos_embed_max_size", 192) * self.size_multiple

    @property
    def is_quantized(self) -> bool:
        return "quantization_config" in self.transformer

    @property
    def needs_transformers(self) -> bool:
        """Whether a part of it is of another library than diffusers and this package, such as a text encoder."""
        parts = [part for part in self.index.values() if isinstance(part, list)]
        return self.is_quantized or any(part[:1] not in ([None], ["diffusers"], [PACKAGE]) for part in parts)

    @property
    def trained_on(self) -> str | None:
        return self.index.get("trained_on")

    def check_size(self, height: int | None, width: int | None) -> None:
        """Raises a `ValueError` that names the nearest sizes if a frame can't be cut into whole patches."""
        if (height is None) != (width is None):
            raise ValueError("--height and --width go together.")
        multiple = self.size_multiple
        for option, value in (("--height", height), ("--width", width)):
            if value is not None and value % multiple:
                nearest = sorted({max(value // multiple, 1) * multiple, (value // multiple + 1) * multiple})
                raise ValueError(
                    f"{option} must be divisible by {multiple}, got {value}: the nearest are "
                    f"{' and '.join(map(str, nearest))}."
                )
        self.check_fits(height or 0, width or 0)

    def check_fits(self, height: int, width: int) -> None:
        """Raises a `ValueError` if frames are larger than any that the network has places for."""
        if max(height, width) > self.largest_side:
            raise ValueError(
                f"Frames of {width} × {height} are too large for the model in {self.name}, whose frames have at most "
                f"{self.largest_side} pixels along each side: give a smaller --height and --width."
            )

    def read_class(self, text: str) -> int | str:
        """The class that `--class-label` names, by name or number.

        Raises:
            ValueError: the model was not trained on classes, or has no such class.
        """
        num_classes = self.transformer.get("num_classes")
        if num_classes is None:
            raise ValueError(f"--class-label: the model in {self.name} was not trained on classes.")
        names = self.index.get("id2label") or {}
        if text in names.values():
            return text
        if text.isdecimal() and len(text) < 10 and int(text) < num_classes:
            return int(text)
        near = difflib.get_close_matches(text, names.values(), n=3) or list(names.values())[:10]
        known = f"do you mean {', '.join(map(repr, near))}?" if near else f"they are numbers, 0 to {num_classes - 1}."
        raise ValueError(
            f"--class-label: Unknown class {text[:80]!r} among the {num_classes} classes of this model: {known}"
        )

    def check_text(self) -> None:
        """Raises a `ValueError` if the model was not trained on text."""
        if self.transformer.get("text_embed_dim") is None:
            raise ValueError(f"--prompt: the model in {self.name} was not trained on text.")


def look_at_model(name: str, wanted: str = "VideoGPTPipeline") -> SavedModel:
    """Reads the JSON files of a model; those of one on the Hub are fetched, which are small.

    Raises:
        ValueError: the folder holds something else than `wanted`, or nothing that is known, or a file of it is no JSON object.
        OSError: there is no such folder, and the Hub does not have it or could not be asked.
    """
    from ..saved_models import check_autoencoder_config, kind_of, refuse_other_kinds, refuse_unreachable

    refuse_unreachable(name)
    with told_of(f"the model in {name}"):
        files = ("model_index.json", "transformer/config.json", "vae/config.json")
        saved = SavedModel(name, *(_read_json(name, file) for file in files))
        refuse_other_kinds(name, wanted)
        if Path(name).is_dir() and kind_of(Path(name)) is None:
            raise ValueError(f"'{name}' holds no {wanted}: name the folder that its model_index.json is in.")
    saved.check_settings()
    check_autoencoder_config(saved.vae, where=f"{name}: vae/config.json")
    return saved


def _read_json(name: str, file: str) -> dict[str, Any]:
    path = Path(name, file)
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            path = Path(hf_hub_download(name, file))
        except EntryNotFoundError:
            return {}
    return read_json(path) if path.is_file() else {}


@contextmanager
def told_of(what: str) -> Iterator[None]:
    """What a damaged or strange file makes libraries raise, as a `ValueError` that begins with `what` was being read.

    Errors that are sentences of this package, or name a file themselves, pass as they are.
    """
    try:
        yield
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{what}: a file of it is no JSON text ({error}).") from error
    except RecursionError as error:
        raise ValueError(f"{what}: a file of it is nested too deeply to be meant.") from error
    except (ValueError, OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"{what} cannot be used, a file of it is damaged or has values of another kind than it should "
            f"({type(error).__name__}: {error})."
        ) from error


def check_loras(loras: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """Refuses what is no LoRA, before anything is loaded.

    Returns:
        What each was trained with, as `save_lora_weights` takes it; empty where it does not tell.

    Raises:
        OSError: one is no file or folder, and the Hub does not have it or could not be asked.
        ValueError: a file is not what it should be.
    """
    from safetensors import SafetensorError, safe_open

    from ..saved_models import LORA_WEIGHTS, OURS, is_of_other_tools, kind_of, read_trained_with, refuse_unreachable

    found = []
    for source, _ in loras:
        path, metadata = Path(source), None
        if path.is_dir() and kind_of(path) not in ("LoRA", None):
            raise ValueError(f"--lora: '{source}' is a {kind_of(path)}, not a LoRA.")
        is_here = path.exists()
        if not path.is_file():
            try:
                refuse_unreachable(source)
            except OSError as error:
                raise OSError(f"--lora: {error}") from error
            path = _lora_in(path) if path.is_dir() else _fetched_lora(source) or path
        if is_here and not (path.suffix == ".safetensors" and path.is_file()):
            raise ValueError(
                f"--lora: '{source}' is not a safetensors file, nor a folder with one (of several, the one that is named "
                f"{LORA_WEIGHTS}); pickles (.bin, .pt) are never loaded: they can run code."
            )
        if path.suffix == ".safetensors" and path.is_file():
            try:
                with safe_open(path, "numpy") as file:
                    metadata, keys = file.metadata(), list(file.keys())
            except SafetensorError as error:
                raise ValueError(f"--lora: '{path}' is not a safetensors file, or is cut off ({error}).") from error
            if not is_of_other_tools(keys) and not any(key.startswith(OURS) for key in keys):
                raise ValueError(f"--lora: {_no_keys(source, keys)}")
        with told_of(f"--lora: {source}"):
            try:
                found.append(read_trained_with(metadata))
            except json.JSONDecodeError:
                raise
            except ValueError as error:
                raise ValueError(f"--lora: {source}: {error}") from error
    return found


def _check_fit(saved: SavedModel, loras: list[tuple[str, float]]) -> None:
    """Raises a `ValueError` that names a LoRA that does not fit the network, before its weights are read; imports PyTorch."""
    import torch

    from ..lora_videogpt import check_lora_fits
    from ..transformer_videogpt import VideoGPTTransformerModel

    with told_of(f"the model in {saved.name}"), torch.device("meta"):
        config = {name: value for name, value in saved.transformer.items() if name != "quantization_config"}
        network = VideoGPTTransformerModel.from_config(config)
    for source, _ in loras:
        with told_of(f"--lora: {source}"):
            try:
                check_lora_fits(network, _source_of(source))
            except ValueError as error:
                raise ValueError(f"--lora: {source}: {error}") from error


def _no_keys(source: str, keys: list[str]) -> str:
    found = f"but for example {keys[0]}" if keys else "nothing that could be one"
    return f"'{source}' holds no LoRA of a Video-GPT transformer, {found}: name one that was trained on this model."


def _lora_in(folder: Path) -> Path:
    """The weights in a folder, under diffusers' name for them, or of any name if there is one file of them."""
    from ..saved_models import LORA_WEIGHTS

    files = list(folder.glob("*.safetensors"))
    return files[0] if len(files) == 1 else folder / LORA_WEIGHTS


def _fetched_lora(repo_id: str) -> Path | None:
    """The weights in a repository on the Hub, fetched into its cache if they are not there; `None` if they have another name
    than diffusers gives them."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    from ..saved_models import LORA_WEIGHTS

    try:
        return Path(hf_hub_download(repo_id, LORA_WEIGHTS))
    except EntryNotFoundError:
        return None


def _source_of(lora: str) -> str | Path:
    """Where `load_lora_weights` finds it."""
    return lora if Path(lora).exists() else _fetched_lora(lora) or lora


def usable_device(text: str | None) -> str:
    """The device that was asked for, else the best one here; imports PyTorch.

    Raises:
        ValueError: this machine does not have it.
    """
    import torch

    if text is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=text)
    except (AssertionError, ImportError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"--device: '{text}' cannot be used here ({reason}); cpu always can.") from error
    return text


def multiplies_in_bfloat16(device: str) -> bool:
    """Whether `device` has instructions for products of bfloat16: a CPU with AMX or AVX-512 BF16, a GPU from Ampere on."""
    import torch

    kind = torch.device(device).type
    if kind == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def dtypes_of(dtype: str, *, device: str, is_quantized: bool = False) -> dict:
    """What `--dtype` means, as `from_pretrained(dtype=)` takes it: a dtype for each part, or for all ("default").

    "auto" is bfloat16 for the transformer and the autoencoder where the device [`multiplies_in_bfloat16`] and the weights are
    not quantized, and float32 for all else.
    """
    import torch

    if dtype != "auto":
        return {"default": getattr(torch, dtype)}
    is_half = not is_quantized and multiplies_in_bfloat16(device)
    halves = ("transformer", "vae") if is_half else ()
    return {"default": torch.float32} | dict.fromkeys(halves, torch.bfloat16)


def load_pipeline(
    saved: SavedModel,
    *,
    device: str | None,
    dtype: str = "float32",
    loras: list[tuple[str, float]] = (),
    unused: tuple[str, ...] = (),
):
    """Loads the pipeline and its LoRAs.

    Args:
        saved: by [`look_at_model`], and with LoRAs by [`~loras.follow_lora`].
        device: as it was typed; by default the best one here.
        dtype: name of a dtype of PyTorch, for all parts, or "auto"; see [`dtypes_of`].
        loras: pairs of source and weight, all active together.
        unused: packages besides the quantizers that the command does not need; see [`leave_out`].

    Returns:
        [`VideoGPTPipeline`].

    Raises:
        ValueError: the device is not here, a file is damaged, or a LoRA does not fit.
    """
    leave_out(() if saved.is_quantized else (*QUANTIZERS, *unused))
    with importing_libraries():
        device = usable_device(device)
        from ..pipeline_videogpt import VideoGPTPipeline
        from ..scheduling_next_clip_flow_match import NextClipFlowMatchScheduler

    dtypes = dtypes_of(dtype, device=device, is_quantized=saved.is_quantized)
    if loras and saved.transformer:
        _check_fit(saved, loras)
    with told_of(f"the model in {saved.name}"):
        pipe = VideoGPTPipeline.from_pretrained(saved.name, dtype=dtypes).to(device)
    names = [f"lora_{index}" for index in range(len(loras))]
    for name, (source, _) in zip(names, loras, strict=True):
        with told_of(f"--lora: {source}"):
            pipe.load_lora_weights(_source_of(source), adapter_name=name)
            if name not in pipe.get_list_adapters().get(
                "transformer", ()
            ):  # of another name on the Hub: not looked into before
                raise ValueError(f"--lora: {_no_keys(source, [])}")
    if loras:
        pipe.set_adapters(names, [weight for _, weight in loras])
    settings = dict(saved.settings)
    solver = settings.pop("solver", None)
    pipe.register_to_config(**settings)
    if solver is not None:
        pipe.scheduler = NextClipFlowMatchScheduler.from_config(pipe.scheduler.config, solver=solver)
    return pipe


def note_on_training(saved: SavedModel, loras: list[tuple[str, float]]) -> str | None:
    """What a user should know whose video is of another kind than the model's; nothing if a LoRA may have taught it."""
    return None if saved.trained_on is None or loras else NOTE.format(trained_on=saved.trained_on)


def refuse_missing(path: Path | None, option: str) -> None:
    """Raises a `ValueError` if `path` is given and there is nothing."""
    if path is not None and not path.exists():
        raise ValueError(f"{option} {path}: there is no such file or folder.")
