"""The authors' checkpoint ↔ ours, tensor by tensor.

    convert_reference_checkpoint("Video-GPT", "video-gpt-diffusers", vae="sdxl-vae")    # a pipeline for from_pretrained
    convert_to_reference_checkpoint("video-gpt-diffusers", "Video-GPT-again")           # and back, bit for bit

Everything is checked on names and shapes first; only then is anything written, one tensor in memory at a time.
"""

import math
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME, logging
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open

from .config_values import check_positive_number, check_whole_number
from .files import read_json, write_json, write_safetensors_header
from .frame_latents import load_autoencoder
from .pipeline_videogpt import VideoGPTPipeline
from .reference_names import LAYER_MODULES, MODULES, SWAPPED
from .scheduling_next_clip_flow_match import NextClipFlowMatchScheduler
from .transformer_videogpt import VideoGPTTransformerModel


HINT_TOKENS = ("<img>", "</img>", "<|diffusion|>")  # the rows of `hint_embed`
TOKEN_TABLE = "llm.embed_tokens.weight"
POS_EMBED = "pos_embed"

TOKENIZER_FILES = (
    "tokenizer.json",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
ROPE_KEYS = {"type", "rope_type", "rope_theta", "partial_rotary_factor", "short_factor", "long_factor"}
ROPE_KEYS |= {"original_max_position_embeddings"}
# Of the reference's config.json, with the most that a network can have.
WHOLE_NUMBERS = {
    "hidden_size": 10**6,
    "num_attention_heads": 1024,
    "num_hidden_layers": 1000,
    "intermediate_size": 10**6,
}
WHOLE_NUMBERS |= {"max_position_embeddings": 10**9, "original_max_position_embeddings": 10**9}

# Weight files, and the index that lists them where they are shards. The first pattern that a folder has counts.
REFERENCE_WEIGHTS = {
    "model.safetensors": None,
    "model-*.safetensors": "model.safetensors.index.json",
    "pytorch_model*.bin": "pytorch_model.bin.index.json",
}
DIFFUSERS_WEIGHTS = {
    SAFETENSORS_WEIGHTS_NAME: None,
    "diffusion_pytorch_model-*.safetensors": SAFE_WEIGHTS_INDEX_NAME,
}
SAFETENSORS_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

Read = Callable[[str], torch.Tensor]

# Beside the converted model, what our network has no use for but the way back needs.
KEPT_FOLDER = "reference"
KEPT_TENSORS = "token_table.safetensors"


def convert_reference_checkpoint(
    reference_dir: str | Path,
    output_dir: str | Path,
    vae: str | Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "2GB",
) -> dict[str, Any]:
    """The authors' checkpoint as a saved `VideoGPTPipeline`.

    Writes `model_index.json`, `transformer/`, `scheduler/`, with `vae` also `vae/`, and `reference/`: the config, the
    tokenizer and the token table, for [`convert_to_reference_checkpoint`]. Without a VAE, load the pipeline with
    `VideoGPTPipeline.from_pretrained(output_dir, vae=AutoencoderKL.from_pretrained(...))`.

    Args:
        reference_dir: folder with `model.safetensors`, its shards `model-*.safetensors`, or `pytorch_model*.bin`; a
            Phi3Config as `config.json`; and the tokenizer's files.
        output_dir: a new or empty folder.
        vae: folder of a saved diffusers autoencoder with safetensors weights. The published model uses SDXL's.
        dtype: of the weights written; by default each tensor keeps its own.
        max_shard_size: of the transformer's files, in bytes or as "2GB".

    Returns:
        `output_dir`, `num_parameters`, `num_parameters_kept` (what was put aside, in words), `files` (the transformer's weight
        files), `hint_token_ids`, `vae` (name of its class, or `None`), and without a VAE `no_vae` (what that means, and how
        to add one).

    Raises:
        FileNotFoundError: if the weights, the config, the tokenizer, or a shard is missing.
        FileExistsError: if `output_dir` is not empty.
        ValueError: if a tensor is missing, unknown, or of another shape; if a file is damaged or holds more than
            tensors; if the network of the config is not Video-GPT's; if a hint token is not in the tokenizer.
    """
    reference_dir, output_dir = Path(reference_dir), Path(output_dir)
    _check_output(output_dir)
    if not reference_dir.is_dir():
        raise FileNotFoundError(
            f"The reference checkpoint '{reference_dir}' is not a folder: download the authors' repository "
            "(GrayShine/Video-GPT) and pass the folder it is in."
        )

    # 1. What there is, and whether it is what it should be
    weights = _WeightFiles(reference_dir, REFERENCE_WEIGHTS)
    token_ids = find_hint_token_ids(reference_dir)
    config = convert_config(_read_json(reference_dir / "config.json"), weights.tensors)
    with init_empty_weights():
        transformer = VideoGPTTransformerModel(**config)
    table_is_computed = _check_reference(
        weights.tensors, weights.read, transformer=transformer, hint_token_ids=token_ids
    )
    vae_model = None if vae is None else _load_fitting_vae(Path(vae), transformer.config.in_channels)
    pipeline = VideoGPTPipeline(vae_model, transformer, NextClipFlowMatchScheduler())

    # 2. What will be written, as tensors without data
    sources = _sources(transformer.config.num_layers)

    def cast(tensor):
        return tensor if dtype is None else tensor.to(dtype)

    def ours(name, read):
        return cast(_to_ours(sources[name], read, hint_token_ids=token_ids))

    state_dict = {name: ours(name, weights.tensors.get) for name in sources}
    kept = {name: cast(weights.tensors[name]) for name in (TOKEN_TABLE, POS_EMBED)}
    if table_is_computed:
        del kept[POS_EMBED]

    # 3. Writing
    with _filled_at_once(output_dir) as folder:
        transformer.save_config(folder / "transformer")
        files = _write_shards(
            folder / "transformer",
            state_dict,
            read=lambda name: ours(name, weights.read),
            max_shard_size=max_shard_size,
        )
        pipeline.scheduler.save_pretrained(folder / "scheduler")
        if vae_model is not None:
            vae_model.save_pretrained(folder / "vae")
        pipeline.save_config(folder)  # model_index.json
        _copy_config_and_tokenizer(reference_dir, folder / KEPT_FOLDER)
        _write_safetensors(folder / KEPT_FOLDER / KEPT_TENSORS, kept, read=lambda name: cast(weights.read(name)))
    num_rows, width = weights.tensors[TOKEN_TABLE].shape
    num_unread = (num_rows - len(token_ids)) * width
    add_vae = {}
    if vae_model is None:
        add_vae["no_vae"] = (
            "the pipeline takes and gives latents alone. For pictures and videos convert again with the folder of the VAE that the "
            "model was trained with (SDXL's for the published one), or load with `vae=AutoencoderKL.from_pretrained(FOLDER)`."
        )
    return {
        "output_dir": output_dir,
        "num_parameters": sum(tensor.numel() for tensor in state_dict.values()),
        "num_parameters_kept": f"{num_unread} more, the {num_rows - len(token_ids)} rows of the authors' token table that the "
        f"network does not read, are in {KEPT_FOLDER}/{KEPT_TENSORS} for the way back",
        "files": files,
        "hint_token_ids": dict(zip(HINT_TOKENS, token_ids, strict=True)),
        "vae": None if vae_model is None else type(vae_model).__name__,
        **add_vae,
    }


def convert_to_reference_checkpoint(
    pipeline_dir: str | Path, output_dir: str | Path, kept_dir: str | Path | None = None
) -> dict[str, Any]:
    """A converted pipeline as the authors' checkpoint: `model.safetensors`, `config.json`, and the tokenizer's files.

    What was converted without `dtype` comes back bit for bit, whatever files the weights were in. What was fine-tuned
    in between comes back too, hint tokens included.

    Args:
        pipeline_dir: a saved pipeline; only its `transformer/` is read.
        output_dir: a new or empty folder.
        kept_dir: the `reference/` folder that [`convert_reference_checkpoint`] wrote; by default the one in
            `pipeline_dir`. Pass it for a fine-tuned pipeline, as `save_pretrained` does not copy it.

    Returns:
        `output_dir`, `num_parameters` (the fixed position table not counted), `num_parameters_kept` (which of them were put
        aside, in words) and `files`.

    Raises:
        FileNotFoundError: if the weights or what was kept of the reference is missing.
        FileExistsError: if `output_dir` is not empty.
        ValueError: if a tensor is missing, has another shape, or has no place in the authors' network (class labels,
            text projection); if what was kept belongs to another network.
    """
    pipeline_dir, output_dir = Path(pipeline_dir), Path(output_dir)
    kept_dir = pipeline_dir / KEPT_FOLDER if kept_dir is None else Path(kept_dir)
    _check_output(output_dir)
    if not (kept_dir / KEPT_TENSORS).is_file():
        raise FileNotFoundError(
            f"'{kept_dir}' has no {KEPT_TENSORS}. The way back needs the token table, config and tokenizer that "
            f"`videogpt convert` puts into the `{KEPT_FOLDER}` folder of a converted pipeline: put that folder there, or name it in Python by `kept_dir`."
        )

    # 1. What there is, and whether it belongs together
    transformer_dir = pipeline_dir / "transformer"
    weights = _WeightFiles(transformer_dir, DIFFUSERS_WEIGHTS)
    kept = _WeightFiles(kept_dir, {KEPT_TENSORS: None})
    token_ids = find_hint_token_ids(kept_dir)
    with init_empty_weights():
        transformer = VideoGPTTransformerModel.from_config(VideoGPTTransformerModel.load_config(transformer_dir))
    config = transformer.config
    for key, value in _decoder_config(_read_json(kept_dir / "config.json")).items():
        if config[key] != value:
            raise ValueError(
                f"'{kept_dir}' was kept of another network than '{transformer_dir}' ({key}: {value} there, {config[key]} "
                f"here): pass the `{KEPT_FOLDER}` folder that was written when this model was converted."
            )
    _check_names(weights.tensors, transformer.state_dict(), where=f"'{transformer_dir}'")
    _check_shapes(weights.tensors, transformer.state_dict(), where=f"'{transformer_dir}'")
    no_place = set(weights.tensors) - set(_sources(config.num_layers))
    if no_place:
        raise ValueError(f"The authors' network has no place for {_listed(no_place)}: this model can't go back.")

    # 2. What will be written, as tensors without data
    key_map = _key_map(config.num_layers)
    hint_embed = weights.tensors["hint_embed.weight"]
    size = config.pos_embed_max_size
    state_dict = {name: _to_reference(name, key_map[name], read=weights.tensors.get) for name in key_map}
    state_dict[TOKEN_TABLE] = kept.tensors[TOKEN_TABLE].to(hint_embed.dtype)
    computed_shape = torch.empty(1, size * size, hint_embed.shape[1], dtype=hint_embed.dtype, device="meta")
    state_dict[POS_EMBED] = kept.tensors.get(POS_EMBED, computed_shape)

    def theirs(name):
        if name == TOKEN_TABLE:
            table = kept.read(name).to(hint_embed.dtype, copy=True)
            table[list(token_ids)] = weights.read("hint_embed.weight")
            return table
        if name == POS_EMBED:
            return kept.read(name) if name in kept.tensors else transformer.pos_embed(size, size).to(hint_embed.dtype)
        return _to_reference(name, key_map[name], read=weights.read)

    num_rows, width = kept.tensors[TOKEN_TABLE].shape
    num_unread = (num_rows - len(token_ids)) * width

    # 3. Writing
    with _filled_at_once(output_dir) as folder:
        _copy_config_and_tokenizer(kept_dir, folder)
        _write_safetensors(folder / "model.safetensors", state_dict, read=theirs)
    return {
        "output_dir": output_dir,
        "num_parameters": sum(tensor.numel() for name, tensor in state_dict.items() if name != POS_EMBED),
        "num_parameters_kept": f"{num_unread} of them are the {num_rows - len(token_ids)} rows of the token table that the "
        f"network does not read, from {KEPT_TENSORS}",
        "files": ["model.safetensors"],
    }


def _map_single_file_config(original_config: dict, checkpoint: dict) -> dict[str, Any]:
    if not any(name.startswith("llm.") for name in checkpoint):
        raise ValueError(
            "`original_config` goes with the authors' checkpoint, and this file has none of its keys (`llm.…`): pass "
            "`config`, the folder of a VideoGPTTransformerModel's config.json."
        )
    return convert_config(original_config, checkpoint)


def _map_single_file(
    checkpoint: dict, config: dict, *, tokenizer: str | Path | None = None
) -> dict[str, torch.Tensor]:
    with init_empty_weights():
        transformer = VideoGPTTransformerModel.from_config(config)
    if any(name.startswith("transformer_blocks.") for name in checkpoint):
        _check_names(checkpoint, transformer.state_dict(), where="The file")
    if tokenizer is None:
        raise ValueError(
            "The authors' checkpoint needs its tokenizer to find the hint tokens: pass `tokenizer`, the folder of "
            "tokenizer.json, to `from_single_file`, or convert the checkpoint once with `videogpt convert`."
        )
    return convert_state_dict(checkpoint, transformer, hint_token_ids=find_hint_token_ids(tokenizer))


def convert_state_dict(
    state_dict: Mapping[str, torch.Tensor], transformer: VideoGPTTransformerModel, *, hint_token_ids: Sequence[int]
) -> dict[str, torch.Tensor]:
    """The authors' state dict as that of `transformer`.

    Args:
        state_dict: the authors' tensors, all of them.
        transformer: a model made from [`convert_config`], on the CPU; tells names and shapes.
        hint_token_ids: rows of `<img>`, `</img>`, `<|diffusion|>` in the token table, from [`find_hint_token_ids`].

    Raises:
        ValueError: if a tensor is missing, unknown, or of another shape, or the position table is not ours.
    """
    _check_reference(state_dict, state_dict.get, transformer=transformer, hint_token_ids=hint_token_ids)
    sources = _sources(transformer.config.num_layers)
    return {name: _to_ours(sources[name], state_dict.get, hint_token_ids=hint_token_ids) for name in sources}


def convert_config(phi3_config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The authors' Phi3Config as arguments of `VideoGPTTransformerModel`.

    Args:
        phi3_config: content of their `config.json`, of old or new transformers.
        tensors: the authors' tensors, of which shapes are read: patches and position table are not in the config.

    Raises:
        ValueError: if a key is missing, a tensor is missing or unknown, or the config asks for what this network is not:
            grouped key-value heads, another activation, partial or other scaled rotary embeddings.
    """
    config = _decoder_config(phi3_config)
    _check_names(tensors, {*_key_map(config["num_layers"]), TOKEN_TABLE, POS_EMBED}, where="The reference checkpoint")
    patch_shape, table_shape = tensors["x_embedder.proj.weight"].shape, tensors[POS_EMBED].shape
    if len(patch_shape) != 4 or len(table_shape) != 3 or math.isqrt(table_shape[1]) ** 2 != table_shape[1]:
        raise ValueError(
            "The reference checkpoint should have an `x_embedder.proj.weight` of (width, channels, patch, patch) and a "
            f"`pos_embed` of (1, side², width), not {list(patch_shape)} and {list(table_shape)}."
        )
    return {
        "in_channels": patch_shape[1],
        "patch_size": patch_shape[2],
        "pos_embed_max_size": math.isqrt(table_shape[1]),
        **config,
    }


def _decoder_config(phi3_config: Mapping[str, Any]) -> dict[str, Any]:
    """What a Phi3Config says of the network. Rotary settings are at its top, in `rope_scaling` or `rope_parameters`."""
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(phi3_config.get(key) or {}, Mapping):
            raise ValueError(f"`{key}` of the reference's config.json must be an object, got {phi3_config[key]!r}.")
    rope = {**(phi3_config.get("rope_scaling") or {}), **(phi3_config.get("rope_parameters") or {})}
    settings = {key: value for key, value in {**rope, **phi3_config}.items() if value is not None}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "longrope", "su"):
        raise ValueError(f"Rotary scaling of type '{rope_type}' is not supported: only 'longrope' ('su') or none.")
    if set(rope) - ROPE_KEYS:
        raise ValueError(f"Rotary scaling has settings that are not supported: {_listed(set(rope) - ROPE_KEYS)}.")

    needed = {"hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"}
    if rope_type != "default":
        needed |= {"long_factor", "max_position_embeddings"}
    if needed - set(settings):
        raise ValueError(f"The reference's config.json lacks {_listed(needed - set(settings))}: is it a Phi3Config?")
    for key, largest in WHOLE_NUMBERS.items():
        if key in settings:
            check_whole_number(key, settings[key], at_most=largest)
    for key in ("rms_norm_eps", "rope_theta"):
        if key in settings and not isinstance(settings[key], str):
            check_positive_number(key, settings[key])
    if rope_type != "default" and not isinstance(settings["long_factor"], list | tuple):
        raise ValueError(
            f"`long_factor` of the reference's config.json must be a list, got {settings['long_factor']!r}."
        )
    head_dim = settings["hidden_size"] // settings["num_attention_heads"]
    fixed = {
        "model_type": "phi3",
        "hidden_act": "silu",
        "num_key_value_heads": settings["num_attention_heads"],
        "head_dim": head_dim,
        "partial_rotary_factor": 1.0,
    }
    for key, value in fixed.items():
        if settings.get(key, value) != value:
            raise ValueError(
                f"The reference's config.json says `{key}`: {settings[key]!r}, but this network has {value!r}: it is "
                "not a Video-GPT checkpoint that can be converted."
            )
    # Where nothing is said, Phi3Config's own defaults. YAML readers, diffusers' among them, take 1e-05 for a string.
    return {
        "num_layers": settings["num_hidden_layers"],
        "num_attention_heads": settings["num_attention_heads"],
        "attention_head_dim": head_dim,
        "ffn_dim": settings["intermediate_size"],
        "norm_eps": float(settings.get("rms_norm_eps", 1e-5)),
        "rope_theta": float(settings.get("rope_theta", 10000.0)),
        "rope_long_factor": None if rope_type == "default" else [float(x) for x in settings["long_factor"]],
        "max_position_embeddings": settings.get("max_position_embeddings", 4096),
        "original_max_position_embeddings": settings.get("original_max_position_embeddings", 4096),
    }


def find_hint_token_ids(tokenizer_dir: str | Path) -> tuple[int, int, int]:
    """Ids of `<img>`, `</img>` and `<|diffusion|>`, from the tokenizer's files.

    Args:
        tokenizer_dir: folder of `tokenizer.json`, `added_tokens.json` or `tokenizer_config.json`.

    Raises:
        FileNotFoundError: if there is none of the files.
        ValueError: if a token is in none of them, or the files disagree.
    """
    tokenizer_dir = Path(tokenizer_dir)
    paths = [tokenizer_dir / name for name in TOKENIZER_FILES[:3]]
    looked_at = [path.name for path in paths if path.is_file()]
    if not looked_at:
        raise FileNotFoundError(
            f"'{tokenizer_dir}' has no tokenizer ({', '.join(TOKENIZER_FILES[:3])}), which tells the rows of the hint "
            "tokens: put the authors' tokenizer files there."
        )
    tokenizer_json, added_tokens, tokenizer_config = (_read_json(p) if p.is_file() else {} for p in paths)
    known = [(token["content"], token["id"]) for token in tokenizer_json.get("added_tokens", [])]
    known += added_tokens.items()
    known += [(token["content"], int(i)) for i, token in tokenizer_config.get("added_tokens_decoder", {}).items()]

    token_ids = []
    for hint_token in HINT_TOKENS:
        found = {token_id for token, token_id in known if token == hint_token}
        if len(found) != 1:
            problem = f"{sorted(found)}, which disagree" if found else "no such token"
            raise ValueError(
                f"The hint token {hint_token} has one id in the authors' tokenizer, but {', '.join(looked_at)} in "
                f"'{tokenizer_dir}' have {problem}: put the authors' tokenizer files there."
            )
        token_ids.append(found.pop())
    return tuple(token_ids)


def _key_map(num_layers: int) -> dict[str, list[str]]:
    """Every tensor of the reference that is learned, but the token table → ours that its rows are, from the top."""
    key_map = {f"{theirs}.{kind}": [f"{MODULES[theirs]}.{kind}"] for theirs in MODULES for kind in ("weight", "bias")}
    for i in range(num_layers):
        for theirs, ours in LAYER_MODULES.items():
            key_map[f"llm.layers.{i}.{theirs}.weight"] = [f"transformer_blocks.{i}.{name}.weight" for name in ours]
    key_map["llm.norm.weight"] = ["norm.weight"]
    return key_map


def _sources(num_layers: int) -> dict[str, tuple[str, int, int]]:
    """Every tensor of ours → the reference's tensor that has its rows, which of how many parts they are."""
    sources = {"hint_embed.weight": (TOKEN_TABLE, 0, 1)}
    for theirs, parts in _key_map(num_layers).items():
        sources |= {ours: (theirs, index, len(parts)) for index, ours in enumerate(parts)}
    return sources


def _to_ours(source: tuple[str, int, int], read: Read, *, hint_token_ids: Sequence[int]) -> torch.Tensor:
    theirs, index, num_parts = source
    if theirs == TOKEN_TABLE:
        return read(theirs)[list(hint_token_ids)]
    if theirs.startswith(SWAPPED):
        return _swap_halves(read(theirs))
    return read(theirs).chunk(num_parts)[index]


def _to_reference(name: str, parts: Sequence[str], *, read: Read) -> torch.Tensor:
    rows = torch.cat([read(ours) for ours in parts])
    return _swap_halves(rows) if name.startswith(SWAPPED) else rows


def _swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def _check_reference(
    tensors: Mapping[str, torch.Tensor],
    read: Read,
    *,
    transformer: VideoGPTTransformerModel,
    hint_token_ids: Sequence[int],
) -> bool:
    """Raises where the authors' tensors don't fit `transformer`.

    Returns whether `pos_embed` is bit for bit what ours computes; it may differ by 1e-6, or the rounding of its dtype.
    """
    where = "The reference checkpoint"
    key_map, ours = _key_map(transformer.config.num_layers), transformer.state_dict()
    _check_names(tensors, {*key_map, TOKEN_TABLE, POS_EMBED}, where=where)
    expected = {name: _to_reference(name, key_map[name], read=ours.get) for name in key_map}
    size, width = transformer.config.pos_embed_max_size, ours["hint_embed.weight"].shape[1]
    expected[POS_EMBED] = torch.empty(1, size * size, width, device="meta")
    num_rows = tensors[TOKEN_TABLE].shape[0]
    expected[TOKEN_TABLE] = torch.empty(num_rows, width, device="meta")
    _check_shapes(tensors, expected, where=where)
    if max(hint_token_ids) >= num_rows:
        raise ValueError(
            f"The token table has {num_rows} rows, too few for the hint tokens' ids {list(hint_token_ids)}: the tokenizer "
            "is not the checkpoint's."
        )

    given = read(POS_EMBED).unflatten(1, (size, size))[0]
    computed = transformer.pos_embed(size, size)
    tolerance = max(1e-6, torch.finfo(given.dtype).eps)
    for given_row, computed_row in zip(given, computed, strict=True):  # by row: the published table has 113 M numbers
        difference = (given_row.float() - computed_row).abs().max()
        if not difference <= tolerance:
            raise ValueError(
                f"The reference checkpoint's `pos_embed` differs by {difference:.3g} from the computed sin-cos table of "
                f"{size} × {size} patches at base size {transformer.config.pos_embed_base_size}: it belongs to another network."
            )
    same_dtype = given.dtype == tensors[TOKEN_TABLE].dtype
    return same_dtype and all(torch.equal(a, b.to(a.dtype)) for a, b in zip(given, computed, strict=True))


def _check_names(found: Iterable[str], expected: Iterable[str], *, where: str) -> None:
    missing, unknown = set(expected) - set(found), set(found) - set(expected)
    if missing or unknown:
        problems = [f"lacks {_listed(missing)}"] if missing else []
        problems += [f"has unknown {_listed(unknown)}"] if unknown else []
        raise ValueError(
            f"{where} does not hold Video-GPT's tensors: it {' and '.join(problems)}. Check that all its files are there "
            "and that its config.json is its own."
        )


def _check_shapes(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, where: str) -> None:
    wrong = [
        f"{name} {list(found[name].shape)} (should be {list(tensor.shape)})"
        for name, tensor in expected.items()
        if found[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"{where} has tensors of other shapes than its config.json says: {_listed(wrong)}.")


def _listed(names: Iterable[str], at_most: int = 12) -> str:
    names = sorted(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


class _WeightFiles:
    """The tensors of a folder by name: `tensors` tells shapes and dtypes (on meta), `read` gives one.

    A file is mapped for one tensor at a time, so that the memory goes back with the tensor.
    """

    def __init__(self, folder: Path, patterns: Mapping[str, str | None]):
        pattern = next((pattern for pattern in patterns if any(folder.glob(pattern))), None)
        if pattern is None:
            raise FileNotFoundError(f"'{folder}' has no weights: none of {', '.join(patterns)}.")
        paths, index_name = sorted(folder.glob(pattern)), patterns[pattern]
        if index_name is not None and (folder / index_name).is_file():
            listed = set(_read_json(folder / index_name)["weight_map"].values())
            missing = listed - {path.name for path in paths}
            if missing:
                raise FileNotFoundError(f"'{folder}' lacks {_listed(missing)}, which {index_name} lists.")

        self.tensors: dict[str, torch.Tensor] = {}
        self._paths: dict[str, Path] = {}
        for path in paths:
            for name, tensor in _map_tensors(path).items():
                if name in self._paths:
                    raise ValueError(f"{name} is in both '{self._paths[name]}' and '{path}': remove one of the files.")
                self._paths[name] = path
                self.tensors[name] = tensor.to("meta")

    def read(self, name: str) -> torch.Tensor:
        return _map_tensors(self._paths[name])[name]


def _map_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, mapped: a page of it is read when it is used. A pickle of anything else is refused."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"'{path}' is no safetensors file or is damaged ({error}): download it again.") from error
    else:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"'{path}' was refused, and nothing in it was executed: only a zip file written by `torch.save` with "
                "nothing but tensors in it is read. If it is damaged, download it again; if it is not a state dict, "
                "save its state dict as safetensors where you trust it."
            ) from error
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        held = f"a {type(tensors).__name__}" if not isinstance(tensors, dict) else "keys that are no names"
        raise ValueError(
            f"'{path}' is not a state dict, names with a tensor each: it holds {held}. Is it the right file?"
        )
    wrong = [
        name
        for name, tensor in tensors.items()
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in SAFETENSORS_DTYPES
    ]
    if wrong:
        raise ValueError(
            f"'{path}' is not a state dict: {_listed(wrong)} is no floating point tensor of 16 to 64 bits."
        )
    return tensors


def _write_shards(
    folder: Path, tensors: Mapping[str, torch.Tensor], *, read: Read, max_shard_size: int | str
) -> list[str]:
    """Writes `tensors` into the files that `save_pretrained` would write, and returns their names."""
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern="diffusion_pytorch_model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for filename, names in split.filename_to_tensors.items():
        _write_safetensors(folder / filename, {name: tensors[name] for name in names}, read=read)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / SAFE_WEIGHTS_INDEX_NAME, index, indent=2, sort_keys=True)
    return list(split.filename_to_tensors)


def _write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], *, read: Read) -> None:
    """Writes a safetensors file of what `read` gives for each name of `tensors`, holding one of them at a time.

    The library's writer takes all tensors at once. The file is 8 bytes for the header's length, the header as JSON, and
    the data, widest dtype first so that every tensor is aligned.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        dtype = SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    with open(path, "wb") as file:
        write_safetensors_header(file, header)
        for name in logging.tqdm(names, desc=path.name, unit="tensor"):
            file.write(read(name).contiguous().flatten().view(torch.uint8).numpy())


def _check_output(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"'{folder}' is not an empty folder: choose another to write to, or remove it first.")


@contextmanager
def _filled_at_once(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move into `folder` when all are written; on an error nothing is left of it."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Inside, not beside it: `folder` may be a file system of its own, and files move at once only within one.
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as scratch:
            yield Path(scratch)
            for path in Path(scratch).iterdir():
                path.rename(folder / path.name)
    except BaseException:
        if is_new:
            shutil.rmtree(folder)
        raise


def _load_fitting_vae(folder: Path, latent_channels: int) -> torch.nn.Module:
    _read_json(folder / "config.json")  # a folder without one is no id on the Hub here
    vae = load_autoencoder(folder, use_safetensors=True)
    if vae.config.latent_channels != latent_channels:
        raise ValueError(
            f"The VAE '{folder}' has {vae.config.latent_channels} latent channels, the transformer {latent_channels}: "
            "pass the VAE that it was trained with."
        )
    return vae


def _copy_config_and_tokenizer(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in ("config.json", *TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"'{path.parent}' has no {path.name}.")
    return read_json(path)
