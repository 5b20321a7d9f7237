"""LoRA on the pipeline: load, save, mix, fuse. Whether a LoRA fits is known before the transformer is touched.

Shapes: r is the rank of a layer's LoRA.
"""

import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn as nn
from diffusers.utils import is_peft_available
from safetensors import SafetensorError, safe_open

from .config_values import check_finite_number, check_whole_number
from .diffusers_internals import (
    LORA_ADAPTER_METADATA_KEY,
    LORA_WEIGHT_NAME_SAFE,
    LoraBaseMixin,
    fetch_lora_state_dict,
    unscale_lora_layers,
)
from .lora_formats import convert_from_other_tools, to_plain_form
from .saved_models import OURS, TRAINED_WITH, is_of_other_tools
from .transformer_videogpt import VideoGPTTransformerModel
from .weights import hashes_as_base, save_tensors


if is_peft_available():
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.hotswap import check_hotswap_configs_compatible
    from peft.utils.other import get_pattern_key
else:  # a command that was given no LoRA has left PEFT out: no module is a layer of it
    BaseTunerLayer = LoraLayer = ()


LORA_KEY = re.compile(r"transformer\.(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)")
# PEFT's other ways to begin change the base weights as well, which an adapter file does not hold.
INITS_ON_AN_UNCHANGED_BASE = (None, True, False, "gaussian", "orthogonal", "eva")
MAX_NAMED = 4  # in an error
# A LoRA's file tells the hash of its base's weights. Hashing takes about a second a gigabyte, so larger bases are not compared; nor
# are those in another dtype than fp32, whose rounded weights have another hash than those that it was trained on.
MOST_HASHED_BYTES = 2**28
logger = logging.getLogger(__name__)


def _some_of(names) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return "; ".join(names[:MAX_NAMED]) + more


def _safetensors_name(source: str | Path, subfolder: str | None, *, weight_name: str | None) -> str | None:
    """Which file of a folder to load; `None` where `source` is that file, or the Hub will be asked.

    Raises:
        ValueError: if it is no safetensors file, or can't be told from others.
    """
    folder = Path(source, subfolder or "")
    if weight_name is None and folder.is_dir():
        names = sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors")
        if LORA_WEIGHT_NAME_SAFE in names:
            return LORA_WEIGHT_NAME_SAFE
        if len(names) != 1:
            found = sorted(path.name for path in folder.iterdir())
            raise ValueError(
                f"'{folder}' has {len(names)} safetensors files, one was expected (pickles are never loaded: they can run "
                f"code): it holds {_some_of(found) or 'nothing'}. Name one by `weight_name`, or save the LoRA by "
                "`save_lora_weights`."
            )
        return names[0]
    file = Path(source) if Path(source).is_file() else weight_name
    if file is not None and Path(file).suffix != ".safetensors":
        raise ValueError(
            f"'{file}' is not a safetensors file, and pickles (.bin, .pt) are never loaded: they can run code. Save the "
            "LoRA by `save_lora_weights`."
        )
    return weight_name


def _split_by_layer(state_dict: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """{"transformer.LAYER.PART": tensor} → {LAYER: {PART: tensor}}.

    Raises:
        ValueError: for keys of anything else, by name.
    """
    foreign = [key for key in state_dict if LORA_KEY.fullmatch(key) is None]
    if foreign or not state_dict:
        raise ValueError(
            f"This is no LoRA of a Video-GPT transformer: {_some_of(foreign) or 'it is empty'}. Its keys would read like "
            "'transformer.transformer_blocks.0.attn.to_q.lora_A.weight'."
        )
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state_dict.items():
        name, part = LORA_KEY.fullmatch(key).groups()
        layers.setdefault(name, {})[part] = tensor
    return layers


def _lora_shapes(layer: nn.Linear | nn.Conv2d, rank: int) -> dict[str, tuple[int, ...]]:
    if isinstance(layer, nn.Linear):
        size_in, size_out = (layer.in_features,), (layer.out_features,)
        magnitude = size_out
    else:
        size_in, size_out = (layer.in_channels, *layer.kernel_size), (layer.out_channels, 1, 1)
        magnitude = (1, *size_out)
    return {
        "lora_A.weight": (rank, *size_in),
        "lora_B.weight": (size_out[0], rank, *size_out[1:]),
        "lora_magnitude_vector": magnitude,
    }


def _check_fit(transformer: VideoGPTTransformerModel, layers: dict[str, dict[str, torch.Tensor]]) -> None:
    """Raises a `ValueError` that names the layers and shapes of a LoRA that were not made for this transformer."""
    modules = dict(transformer.named_modules())
    expected_parts = {"lora_A.weight", "lora_B.weight"}.union(*layers.values())
    problems = []
    for name, parts in layers.items():
        layer = modules.get(name)
        layer = layer.base_layer if isinstance(layer, BaseTunerLayer) else layer
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            problems.append(f"{name}: this model has no such {'layer' if layer is None else 'linear layer'}")
            continue
        if expected_parts - parts.keys():
            problems.append(f"{name} lacks {', '.join(sorted(expected_parts - parts.keys()))}")
            continue
        shape_a = parts["lora_A.weight"].shape
        expected_shapes = _lora_shapes(layer, rank=max(*shape_a[:1], 1) if shape_a else 1)
        for part, tensor in parts.items():
            if tensor.shape != expected_shapes[part]:
                problems.append(f"{name}.{part} is {tuple(tensor.shape)}, not {expected_shapes[part]}")
            elif not tensor.is_floating_point():
                problems.append(f"{name}.{part} holds {tensor.dtype}, no floating point numbers")
            elif not tensor.isfinite().all():
                problems.append(f"{name}.{part} has NaN or infinite values")
    if problems:
        raise ValueError(f"This LoRA does not fit the transformer, which is left as it was: {_some_of(problems)}.")
    if any(getattr(module, "fused_projections", False) for module in modules.values()):
        raise ValueError(
            "Call `transformer.unfuse_qkv_projections()` first: a LoRA on to_q, to_k, to_v has no effect."
        )


def _make_config(layers: dict[str, dict[str, torch.Tensor]], metadata: dict[str, Any] | None) -> dict[str, Any]:
    """The arguments of PEFT's `LoraConfig`: from the tensors what they tell, from the metadata how they are scaled."""
    ranks = {name: parts["lora_A.weight"].shape[0] for name, parts in layers.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    rank_pattern = {f"^{name}": r for name, r in ranks.items() if r != rank}
    config = {
        "r": rank,
        "rank_pattern": rank_pattern,
        # Without metadata, as everywhere in diffusers: α is the rank, the product of the factors is added as it is.
        "lora_alpha": rank,
        "alpha_pattern": dict(rank_pattern),
        "target_modules": list(layers),
        "use_dora": any("lora_magnitude_vector" in parts for parts in layers.values()),
    }
    if metadata is None:
        return config
    metadata = LoraConfig().to_dict() | metadata
    _check_metadata(metadata)
    if metadata["init_lora_weights"] not in INITS_ON_AN_UNCHANGED_BASE:
        raise ValueError(
            f"This LoRA began with `init_lora_weights={metadata['init_lora_weights']!r}`, which changed the base weights "
            "too: it fits no other base. Let PEFT convert it to a plain LoRA when saving."
        )
    declared = metadata["rank_pattern"]
    differing = [
        f"{name} is of rank {r}"
        for name, r in ranks.items()
        if r != declared.get(get_pattern_key(declared, name), metadata["r"])
    ]
    if differing:
        raise ValueError(
            f"The LoRA's metadata says rank {metadata['r']}, its tensors differ, so α / rank is not known: "
            f"{_some_of(differing)}."
        )
    return config | {name: metadata[name] for name in ("lora_alpha", "alpha_pattern", "use_rslora")}


def _config_and_training(
    layers: dict[str, dict[str, torch.Tensor]], metadata: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a file's metadata, what [`_make_config`] makes of PEFT's, and the rest, which tells of the training's samples."""
    known = {key: x for key, x in (metadata or {}).items() if key.startswith(f"{TRAINED_WITH}.")}
    of_peft = {key.removeprefix("transformer."): x for key, x in (metadata or {}).items() if key not in known}
    return _make_config(layers, of_peft or None), known


def _scales(layers: dict[str, dict[str, torch.Tensor]], config: dict[str, Any]) -> dict[str, float]:
    """Layer → what PEFT multiplies the product of its factors by: α over the rank, or over its root (rsLoRA)."""
    scales, patterns = {}, config["alpha_pattern"]
    for name, parts in layers.items():
        rank = parts["lora_A.weight"].shape[0]
        alpha = patterns.get(get_pattern_key(patterns, name), config["lora_alpha"])
        scales[name] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return scales


def _file_header(metadata: dict[str, Any], header: Mapping[str, str] | None) -> dict[str, str]:
    """What diffusers writes at the head of a LoRA's file, and `header` besides."""
    known = {LORA_ADAPTER_METADATA_KEY: json.dumps(metadata, indent=2, sort_keys=True, default=sorted)}
    return {**(header or {}), "format": "pt"} | (known if metadata else {})


def _texts_of(
    source: str | Path | dict[str, torch.Tensor],
    subfolder: str | None = None,
    *,
    weight_name: str | None = None,
    **_kwargs,
) -> dict[str, str]:
    """The texts at the head of a LoRA's file on this machine, but diffusers' own."""
    if isinstance(source, dict):
        return {}
    path = Path(source)
    if path.is_dir():
        path = Path(path, subfolder or "", _safetensors_name(path, subfolder, weight_name=weight_name) or "")
    if not path.is_file():
        return {}
    with safe_open(path, "numpy") as file:
        return {k: text for k, text in (file.metadata() or {}).items() if k != LORA_ADAPTER_METADATA_KEY}


def _warn_of_another_base(
    transformer: VideoGPTTransformerModel, texts: Mapping[str, str], *, source: str | Path
) -> None:
    """Warns if a LoRA's file says that it was trained on other weights than these, as far as that can be told in a moment.

    Only files that training of this package has made are looked at: what other tools write in this place is a file's hash.
    """
    known = texts.get("ss_new_sd_model_hash")
    if known is None or texts.get("modelspec.architecture") != "video-gpt/lora":
        return
    weights = [weight for name, weight in transformer.named_parameters() if ".lora_" not in name]
    num_bytes = sum(weight.nbytes for weight in weights)
    is_plain = all(weight.dtype == torch.float32 and not weight.is_meta for weight in weights)
    if (
        not is_plain
        or num_bytes > MOST_HASHED_BYTES
        or any(found.startswith(known) for found in hashes_as_base(transformer))
    ):
        return
    base = texts.get("ss_base_model_version") or "another model"
    logger.warning(
        f"The LoRA '{source}' was trained on '{base}', whose weights (hash {known}) are not those of this transformer: it may do "
        f"little good here. Load '{base}' as it was then and add the LoRA to that, or train it again on this model."
    )


def _check_metadata(metadata: dict[str, Any]) -> None:
    """Raises a `ValueError` that names a value of another type than PEFT writes, in what is read of a LoRA's metadata."""
    check_whole_number("r", metadata["r"])
    check_finite_number("lora_alpha", metadata["lora_alpha"])
    if not isinstance(metadata["use_rslora"], bool):
        raise ValueError(f"`use_rslora` in the LoRA's metadata must be true or false, got {metadata['use_rslora']!r}.")
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(metadata[name], dict):
            raise ValueError(
                f"`{name}` in the LoRA's metadata must map layers to numbers, got {metadata[name]!r}: save it again."
            )
        for layer, value in metadata[name].items():
            check_finite_number(f"{name} of {layer}", value)
            try:
                re.compile(layer)
            except re.error as error:
                raise ValueError(f"`{name}` in the LoRA's metadata names '{layer}', no pattern ({error}).") from error


def _check_hotswap(
    transformer: VideoGPTTransformerModel,
    layers: dict[str, dict[str, torch.Tensor]],
    *,
    config: dict[str, Any],
    adapter_name: str | None,
) -> None:
    """Raises a `ValueError` where PEFT could not put this LoRA in the place of the loaded one, or would do it wrongly."""
    configs = getattr(transformer, "peft_config", {})
    if adapter_name not in configs:
        raise ValueError(f"`hotswap` replaces a loaded LoRA, and none is named {adapter_name!r}: {list(configs)} are.")
    loaded = {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, LoraLayer) and adapter_name in module.lora_A
    }
    problems = [f"{name} is not in the new one" for name in loaded if name not in layers]
    for name, parts in layers.items():
        if name not in loaded:
            problems.append(f"{name} is not in the loaded one")
            continue
        rank, room = parts["lora_A.weight"].shape[0], loaded[name].lora_A[adapter_name].weight.shape[0]
        is_padded = isinstance(loaded[name].scaling[adapter_name], torch.Tensor)  # by `enable_lora_hotswap`
        if rank > room or (rank < room and not is_padded):
            problems.append(f"{name} is of rank {rank}, {'at most ' if is_padded else ''}{room} is loaded")
    if config["use_dora"] or config["rank_pattern"] or config["alpha_pattern"]:
        problems.append("PEFT swaps only weights of one rank and one α, without DoRA")
    # PEFT clears whatever has this name anywhere in its key.
    cleared = [
        other for other in configs for name in loaded if other != adapter_name and adapter_name in f"{name}.{other}"
    ]
    if cleared:
        problems.append(f"PEFT would clear {cleared[0]!r} too, as its keys contain {adapter_name!r}: delete it first")
    if problems:
        raise ValueError(
            f"This LoRA can't take the place of {adapter_name!r}, which is left as it was: {_some_of(problems)}. Load it "
            "under a name of its own, or call `enable_lora_hotswap(target_rank=...)` before the first one is loaded."
        )
    check_hotswap_configs_compatible(configs[adapter_name], LoraConfig(**config))


def check_lora_fits(transformer: VideoGPTTransformerModel, source: str | Path) -> None:
    """Raises the `ValueError` of [`~VideoGPTLoraLoaderMixin.load_lora_weights`] for a LoRA that does not fit. Of the transformer
    only the layers' shapes are looked at: it may be one without memory, so that weights are read only for a LoRA that fits.

    Args:
        source: a safetensors file, a folder with one, or a Hub id.
    """
    state_dict, metadata = VideoGPTLoraLoaderMixin.lora_state_dict(source, return_lora_metadata=True)
    layers = _split_by_layer(state_dict)
    _check_fit(transformer, layers)
    _config_and_training(layers, metadata)


def refuse_lora_layers(transformer: VideoGPTTransformerModel | None) -> None:
    """Raises a `ValueError` while LoRAs are loaded, for a pipeline that is to be saved whole."""
    if transformer is not None and any(isinstance(module, BaseTunerLayer) for module in transformer.modules()):
        raise ValueError(
            "The transformer has LoRA layers, which don't belong into a full pipeline. Call `unload_lora_weights()` "
            "to save it without them; `fuse_lora()`, then `unload_lora_weights()`, to save it merged."
        )


class VideoGPTLoraLoaderMixin(LoraBaseMixin):
    """LoRA on [`VideoGPTPipeline`], by PEFT, with diffusers' methods.

    `set_adapters`, `enable_lora`, `disable_lora`, `get_list_adapters`, `unload_lora_weights` and `enable_lora_hotswap`
    are as in every pipeline of diffusers. While LoRAs are fused, what would not reach the model is refused.

    ```py
    pipe.load_lora_weights("folder", adapter_name="fly")
    pipe.load_lora_weights("user/repository", adapter_name="lie-down")
    pipe.set_adapters(["fly", "lie-down"], [0.7, 0.5])
    frames = pipe(image="cat.png", num_frames=48, attention_kwargs={"scale": 0.9}).frames[0]

    pipe.fuse_lora()  # to keep the mixture as a pipeline of its own
    pipe.unload_lora_weights()
    pipe.save_pretrained("merged")
    ```
    """

    _lora_loadable_modules = ["transformer"]
    transformer_name = "transformer"
    _fused_scale = 1.0

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, torch.Tensor],
        weight_name: str | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool | None = None,
        force_download: bool = False,
        proxies: dict[str, str] | None = None,
        return_lora_metadata: bool = False,
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        """Reads a LoRA without loading it into anything; one of another tool comes in diffusers' form.

        The key names of kohya's sd-scripts and musubi-tuner (`lora_unet_…`), and the plain ones (`diffusion_model.…`, as
        ComfyUI reads them) are converted, of this network's modules or of the authors', with their `.alpha`.

        Args:
            pretrained_model_name_or_path_or_dict: a safetensors file, a folder with one, a Hub id, or the tensors.
            weight_name (`str`, *optional*): the file in the folder or repository; needed for a cached repository offline.
            subfolder, revision, token, cache_dir, local_files_only, force_download, proxies: as in `from_pretrained`.
            return_lora_metadata (`bool`, defaults to `False`): whether to return the `LoraConfig` saved with it too.

        Returns:
            `{"transformer.LAYER.lora_A.weight": tensor, ...}`; with `return_lora_metadata`, a tuple of that and
            `{"transformer.r": 16, ...}`, the latter `None` where there is none.

        Raises:
            ValueError: if there is no such file, it is not a safetensors file, or another tool's that can't be converted
                exactly (the message names the keys).
        """
        source = pretrained_model_name_or_path_or_dict
        if not isinstance(source, dict):
            weight_name = _safetensors_name(source, subfolder, weight_name=weight_name)
        try:
            state_dict, metadata = fetch_lora_state_dict(
                source if isinstance(source, dict) else str(source),
                weight_name=weight_name,
                use_safetensors=True,
                local_files_only=local_files_only,
                cache_dir=cache_dir,
                force_download=force_download,
                proxies=proxies,
                token=token,
                revision=revision,
                subfolder=subfolder,
                user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
                allow_pickle=False,
            )
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            file = Path(source, subfolder or "", weight_name or "")
            raise ValueError(f"No LoRA could be read from '{file}', as a path or from the Hub: {error}") from error
        if metadata is not None and not isinstance(metadata, dict):
            raise ValueError(
                f"The metadata of the LoRA '{source}' is a {type(metadata).__name__}, not an object: save it again by "
                "`save_lora_weights`."
            )
        if is_of_other_tools(state_dict):
            state_dict, metadata = convert_from_other_tools(state_dict, metadata)
        return (state_dict, metadata) if return_lora_metadata else state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **kwargs,
    ) -> None:
        """Loads a LoRA and makes it the active one; [`set_adapters`] mixes several.

        As in every pipeline of diffusers, a file with no keys of this model is logged as a warning, and nothing is loaded. So is one that was trained on other weights than these, where its file
        tells their hash; it is loaded. (Of files on this machine, and of transformers in fp32 of up to 256 MB.)

        Args:
            pretrained_model_name_or_path_or_dict: a safetensors file, a folder with one, a Hub id, or the tensors, which
                have no metadata: their α is the rank.
            adapter_name (`str`, *optional*): its name from here on; `default_0` and so on by default.
            hotswap (`bool`, defaults to `False`): put it in the place of the loaded LoRA `adapter_name`, of the same
                layers and rank, at weight 1: nothing is compiled anew. For lower ranks, call `enable_lora_hotswap` first.
            low_cpu_mem_usage (`bool`, defaults to `True`): make the new layers without memory of their own first.
            kwargs: of [`~VideoGPTLoraLoaderMixin.lora_state_dict`].

        Raises:
            ValueError: if it can't be read or does not fit (other layers, another width, NaN); the model is as before.
        """
        self._refuse_while_fused("load_lora_weights")
        state_dict, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
        )
        self.load_lora_into_transformer(
            state_dict,
            self.transformer,
            adapter_name=adapter_name,
            hotswap=hotswap,
            low_cpu_mem_usage=low_cpu_mem_usage,
            metadata=metadata,
            _pipeline=self,
        )
        source = pretrained_model_name_or_path_or_dict
        _warn_of_another_base(self.transformer, _texts_of(source, **kwargs), source=source)

    @classmethod
    def load_lora_into_transformer(
        cls,
        state_dict: dict[str, torch.Tensor],
        transformer: VideoGPTTransformerModel,
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        metadata: dict[str, Any] | None = None,
        _pipeline=None,
    ) -> None:
        """Loads what [`~VideoGPTLoraLoaderMixin.lora_state_dict`] returned, once it is known to fit.

        Tensors that are a LoRA's, and of other models alone, are not loaded, which diffusers logs as a warning.
        """
        if adapter_name is not None and "." in adapter_name:
            raise ValueError(
                f"`adapter_name` becomes part of module names and can't have a dot, got {adapter_name!r}."
            )
        if all("lora" in key and not key.startswith(OURS) for key in state_dict):
            # A LoRA of other models alone: as in every pipeline of diffusers, that is logged, and nothing is loaded.
            transformer.load_lora_adapter(state_dict, prefix=cls.transformer_name)
            return
        layers = _split_by_layer(state_dict)
        _check_fit(transformer, layers)
        config, _ = _config_and_training(layers, metadata)
        if hotswap:
            _check_hotswap(transformer, layers, config=config, adapter_name=adapter_name)
        transformer.load_lora_adapter(
            {key.removeprefix(OURS): tensor for key, tensor in state_dict.items()},
            prefix=None,
            adapter_name=adapter_name,
            metadata=config,
            hotswap=hotswap,
            low_cpu_mem_usage=low_cpu_mem_usage,
            _pipeline=_pipeline,
        )

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        transformer_lora_layers: dict[str, torch.Tensor],
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: dict[str, Any] | None = None,
        trained_with: dict[str, Any] | None = None,
        header: Mapping[str, str] | None = None,
    ) -> None:
        """Writes a LoRA as safetensors, with the configuration that its scale depends on.

        ```py
        layers = get_peft_model_state_dict(transformer, adapter_name="default")
        metadata = transformer.peft_config["default"].to_dict()
        VideoGPTPipeline.save_lora_weights("folder", layers, transformer_lora_adapter_metadata=metadata)
        ```

        Args:
            save_directory: a folder, made if need be.
            transformer_lora_layers: `{"LAYER.lora_A.weight": tensor, ...}` from PEFT.
            is_main_process (`bool`, defaults to `True`): `False` writes nothing, for the other processes of a training.
            weight_name (`str`, defaults to `"pytorch_lora_weights.safetensors"`): the file.
            save_function (`Callable`, *optional*): writes the tensors to a path, instead of safetensors; no metadata then.
            safe_serialization (`bool`, defaults to `True`): must be `True`, pickles are not written.
            transformer_lora_adapter_metadata (`dict`, *optional*): `LoraConfig.to_dict()`. Without it α counts as the rank.
            trained_with (`dict`, *optional*): size, `fps`, `num_frames` and form of `clips` of its samples, plain values;
                `videogpt predict` predicts so.
            header (`Mapping`, *optional*): texts for the head of the file, which other tools show: base, data, date.

        Raises:
            ValueError: if there are no layers, `save_directory` is a file, or a pickle was asked for.
        """
        if not transformer_lora_layers:
            raise ValueError(
                "`transformer_lora_layers` is empty: pass PEFT's `get_peft_model_state_dict(transformer)`."
            )
        if Path(save_directory).is_file():
            raise ValueError(f"`save_directory` '{save_directory}' is a file: pass a folder.")
        weight_name = weight_name or LORA_WEIGHT_NAME_SAFE
        if not weight_name.endswith(".safetensors") or not safe_serialization:
            raise ValueError(
                f"LoRAs are saved as safetensors alone: `weight_name` must end in .safetensors, got {weight_name!r}, and "
                f"`safe_serialization` must be `True`, got {safe_serialization}."
            )
        if not is_main_process:
            return
        state_dict = {f"{cls.transformer_name}.{name}": tensor for name, tensor in transformer_lora_layers.items()}
        metadata = {f"{cls.transformer_name}.{k}": x for k, x in (transformer_lora_adapter_metadata or {}).items()}
        metadata |= {f"{TRAINED_WITH}.{k}": x for k, x in (trained_with or {}).items() if x is not None}
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        path = Path(save_directory, weight_name)
        if save_function is not None:
            save_function(state_dict, path.as_posix())
        else:
            save_tensors(path, state_dict, metadata=_file_header(metadata, header))

    @classmethod
    def export_lora_weights(
        cls,
        source: str | Path | dict[str, torch.Tensor],
        path: str | os.PathLike,
        *,
        form: Literal["plain", "diffusers"] = "plain",
        **kwargs,
    ) -> None:
        """Writes a LoRA in the plain form that other tools read: keys `diffusion_model.LAYER.lora_A.weight`, and `.alpha` where
        it is not the rank. [`load_lora_weights`] reads it as the same LoRA, tensor for tensor.

        Args:
            source: as [`~VideoGPTLoraLoaderMixin.lora_state_dict`] reads it.
            path: a `.safetensors` file; missing folders are made.
            form (`"plain"` or `"diffusers"`, defaults to `"plain"`): the latter is the way back, keys `transformer.LAYER.…`.
            kwargs: of [`~VideoGPTLoraLoaderMixin.lora_state_dict`].

        Raises:
            ValueError: if it can't be read, or the plain form has no place for it (DoRA); nothing is written.
        """
        if Path(path).suffix != ".safetensors":
            raise ValueError(f"LoRAs are saved as safetensors alone: `path` must end in .safetensors, got '{path}'.")
        state_dict, metadata = cls.lora_state_dict(source, return_lora_metadata=True, **kwargs)
        layers = _split_by_layer(state_dict)
        config, known = _config_and_training(layers, metadata)
        if form == "plain":
            state_dict, metadata = to_plain_form(layers, _scales(layers, config)), known
        save_tensors(path, state_dict, metadata=_file_header(metadata or {}, _texts_of(source, **kwargs)))

    @property
    def fused_loras(self) -> set[str]:
        """Names of the LoRAs that are fused at this moment."""
        layers = [module for module in self.transformer.modules() if isinstance(module, BaseTunerLayer)]
        return {name for layer in layers for name in layer.merged_adapters}

    @property
    def num_fused_loras(self) -> int:
        return len(self.fused_loras)

    def _refuse_while_fused(self, method: str) -> None:
        # PEFT computes with the fused weights alone, and takes out of them what the weights of the moment say.
        if self.fused_loras:
            raise ValueError(
                f"`{method}` would not reach the model while {sorted(self.fused_loras)} are fused: call `unfuse_lora` "
                "first, or `unload_lora_weights` to keep them in the weights for good."
            )

    def fuse_lora(
        self,
        components: list[str] | tuple[str, ...] = ("transformer",),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:
        """Adds the active LoRAs, at their weights, to the transformer's own weights: they cost nothing from then on.

        Args:
            components: `["transformer"]`, the only one there is.
            lora_scale (`float`, defaults to `1.0`): multiplies them all.
            safe_fusing (`bool`, defaults to `False`): check the sums for NaN before any is kept.
            adapter_names (`list[str]`, *optional*): these LoRAs, which become the active ones.

        Raises:
            ValueError: if some are fused already, none is active, or one of `adapter_names` is not loaded.
        """
        self._refuse_while_fused("fuse_lora")
        names = self.get_active_adapters() if adapter_names is None else adapter_names
        loaded = self.get_list_adapters().get("transformer", [])
        layers = [module for module in self.transformer.modules() if isinstance(module, BaseTunerLayer)]
        if any(layer.disable_adapters for layer in layers):
            raise ValueError("LoRAs are switched off, PEFT would take them out again: call `enable_lora` first.")
        if not names or not set(names) <= set(loaded):
            raise ValueError(
                f"`fuse_lora` was to fuse {list(names)}, but {loaded} are loaded: choose among them by `set_adapters` or "
                "`adapter_names`."
            )
        if adapter_names is not None:
            self.transformer.set_adapter(names)
        super().fuse_lora(list(components), lora_scale=lora_scale, safe_fusing=safe_fusing)
        self._fused_scale = lora_scale

    def unfuse_lora(self, components: list[str] | tuple[str, ...] = ("transformer",)) -> None:
        """Takes the fused LoRAs out of the weights again; they stay loaded, at their weights.

        What fusing rounded away does not come back: about 1e-5 in the output in fp32, but 1e-1 in bf16, where loading the
        pipeline anew is the way back.
        """
        if self.fused_loras:
            super().unfuse_lora(list(components))
            unscale_lora_layers(self.transformer, self._fused_scale)

    def set_adapters(self, adapter_names: list[str] | str, adapter_weights: float | list[float] | None = None) -> None:
        """Makes these LoRAs the active ones, at these weights, 1 by default.

        Raises:
            ValueError: if one is not loaded, or LoRAs are fused.
        """
        self._refuse_while_fused("set_adapters")
        super().set_adapters(adapter_names, adapter_weights)

    def disable_lora(self) -> None:
        """Switches all LoRAs off, until `enable_lora`.

        Raises:
            ValueError: if LoRAs are fused: PEFT would take them out of the weights, without what `fuse_lora` scaled them by.
        """
        self._refuse_while_fused("disable_lora")
        super().disable_lora()

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Removes these LoRAs from memory.

        Raises:
            ValueError: if LoRAs are fused.
        """
        self._refuse_while_fused("delete_adapters")
        super().delete_adapters(adapter_names)
