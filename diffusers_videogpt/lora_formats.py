"""LoRA files of other tools ↔ diffusers' form, where the mapping is exact; where it is not, refused by name.

What is read:
    diffusion_model.LAYER.lora_A.weight             the plain form (ComfyUI, musubi-tuner's `convert_lora.py --target other`)
    diffusion_model.LAYER.lora_down.weight, .alpha  the same in kohya's words
    lora_unet_LAYER_WITH_UNDERSCORES.lora_down.weight, .lora_up.weight, .alpha
                                                    kohya's sd-scripts and musubi-tuner

LAYER is a module of ours ("transformer_blocks.0.attn.to_q") or of the authors' network ("llm.layers.0.self_attn.qkv_proj").
In the manner of diffusers' `lora_conversion_utils.py`; but α goes into the metadata instead of the factors, where it would be
rounded: the tensors stay as they are.

Shapes: r is the rank of a layer's LoRA.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from .reference_names import LAYER_MODULES, MODULES, SWAPPED
from .saved_models import KOHYA, OURS, PLAIN


PARTS = {
    "lora_A.weight": "lora_A.weight",
    "lora_B.weight": "lora_B.weight",
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "alpha": "alpha",
}
# What a key may hold → why it is not converted.
REFUSED = {
    r"(lora_te\d*_|text_encoder)": "it is a text encoder's, and the network has none that a LoRA could adapt",
    r"base_model\.model\.": "PEFT's own files keep α beside them, in adapter_config.json: load them by PEFT, and save the LoRA by "
    "`save_lora_weights`",
    r"(hada_|lokr_|oft_|\.lora_mid\b|\.diff\b|\.diff_b\b|glora)": "it is of another kind of adapter than LoRA, no product of two "
    "factors",
    r"(dora_scale|lora_magnitude_vector)": "tools differ in the axis that DoRA's norm is taken over: merge it into its base there",
    r"lora_bias|lora_B\.bias|lora_up\.bias": "it trains a bias, which the factors can't hold",
}
LAYER = re.compile(r"(transformer_blocks|llm\.layers)\.(\d+)\.(.+)")
FLAT_LAYER = re.compile(r"(transformer_blocks|llm_layers)_(\d+)_(.+)")
MAX_NAMED = 4  # in an error

OUR_MODULES = [*MODULES.values(), "text_projection.linear_1", "text_projection.linear_2"]
OUR_LAYER_MODULES = [name for names in LAYER_MODULES.values() for name in names]


def _flat(names) -> dict[str, str]:
    """By what kohya calls them, who puts underscores for dots."""
    return {name.replace(".", "_"): name for name in names}


FLAT_MODULES = _flat([*MODULES, *OUR_MODULES])
STEMS = _flat(["transformer_blocks", "llm.layers"])
FLAT_LAYER_MODULES = {"transformer_blocks": _flat(OUR_LAYER_MODULES), "llm_layers": _flat(LAYER_MODULES)}


def convert_from_other_tools(
    state_dict: Mapping[str, torch.Tensor], metadata: dict[str, Any] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """A LoRA of another tool in diffusers' form.

    Args:
        state_dict: its tensors. Factors are (r, in) and (out, r), or of a convolution; α is one number, without which it is r.
        metadata: diffusers' own in its file, if there are any.

    Returns:
        `{"transformer.LAYER.lora_A.weight": tensor, ...}`, and the metadata with every layer's rank and α.

    Raises:
        ValueError: names the keys that have no exact counterpart, and why.
    """
    layers: dict[str, dict[str, torch.Tensor]] = {}
    problems = []
    for key, tensor in state_dict.items():
        try:
            name, part = _parse(key)
            for layer, piece in _to_ours(name, part, tensor=tensor):
                if part in layers.setdefault(layer, {}):
                    raise ValueError("another key holds the same")
                layers[layer][part] = piece
        except ValueError as error:
            problems.append(f"{key}: {error}")
    for layer, parts in layers.items():
        if missing := {"lora_A.weight", "lora_B.weight"} - parts.keys():
            problems.append(f"{layer} lacks {', '.join(sorted(missing))}")
    if problems:
        more = f" and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise ValueError(
            f"This LoRA of another tool can't be converted exactly: {'; '.join(problems[:MAX_NAMED])}{more}. Nothing was loaded."
        )
    alphas = {name: parts.pop("alpha").item() for name, parts in layers.items() if "alpha" in parts}
    if alphas:
        if f"{OURS}lora_alpha" in (metadata or {}):
            raise ValueError("This LoRA tells its α twice, as tensors and in its metadata: leave out one of them.")
        ranks = {name: parts["lora_A.weight"].shape[0] for name, parts in layers.items()}
        metadata = (metadata or {}) | _scale_metadata(ranks, ranks | alphas)
    return {f"{OURS}{name}.{part}": x for name, parts in layers.items() for part, x in parts.items()}, metadata


def _scale_metadata(ranks: dict[str, int], alphas: dict[str, float]) -> dict[str, Any]:
    """What PEFT's configuration says of them: the most common of each, and the others by their layer."""
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        f"{OURS}r": rank,
        f"{OURS}lora_alpha": alpha,
        f"{OURS}rank_pattern": {f"^{name}": r for name, r in ranks.items() if r != rank},
        f"{OURS}alpha_pattern": {f"^{name}": a for name, a in alphas.items() if a != alpha},
    }


def _parse(key: str) -> tuple[str, str]:
    """The module that a key is of, by our name or the authors', and which part of its LoRA it is.

    Raises:
        ValueError: says why there is none.
    """
    for pattern, reason in REFUSED.items():
        if re.search(pattern, key):
            raise ValueError(reason)
    part = next((part for part in PARTS if key.endswith(f".{part}")), None)
    if part is None:
        raise ValueError(f"it ends in none of {', '.join(PARTS)}")
    prefix = next((prefix for prefix in (PLAIN, KOHYA, OURS) if key.startswith(prefix)), None)
    if prefix is None:
        raise ValueError(f"it begins with none of {PLAIN}, {KOHYA}, {OURS}")
    name = key.removeprefix(prefix).removesuffix(f".{part}")
    if prefix == KOHYA:
        name = _unflatten(name)
    return name, PARTS[part]


def _unflatten(name: str) -> str:
    """ "transformer_blocks_0_attn_to_out_0" → "transformer_blocks.0.attn.to_out.0" """
    layer = FLAT_LAYER.fullmatch(name)
    known = FLAT_MODULES if layer is None else FLAT_LAYER_MODULES[layer[1]]
    found = known.get(name if layer is None else layer[3])
    if found is None:
        raise ValueError("Video-GPT has no such layer")
    return found if layer is None else f"{STEMS[layer[1]]}.{layer[2]}.{found}"


def _to_ours(name: str, part: str, *, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The layers of ours that a part is of, and what each has of it.

    Raises:
        ValueError: there is no such layer, or the tensor can't be its part.
    """
    if part == "alpha" and (tensor.numel() != 1 or not tensor.isfinite().all()):
        raise ValueError(f"α is one finite number, not {tensor.flatten()[:3].tolist()} of shape {tuple(tensor.shape)}")
    if part != "alpha" and tensor.ndim < 2:
        raise ValueError(f"a factor has two dimensions at least, not {tensor.ndim}")
    layer = LAYER.fullmatch(name)
    if layer is None:
        # A name that is not known here is told by whoever knows the model.
        piece = _swap_halves(tensor) if name == SWAPPED and part == "lora_B.weight" else tensor
        return [(MODULES.get(name, name), piece)]
    stem, index, module = layer.groups()
    if stem == "transformer_blocks":
        return [(name, tensor)]
    if module not in LAYER_MODULES:
        raise ValueError("Video-GPT has no such layer")
    ours = [f"transformer_blocks.{index}.{module}" for module in LAYER_MODULES[module]]
    if part != "lora_B.weight":
        return [(layer, tensor.clone()) for layer in ours]  # what all of them share
    if tensor.shape[0] % len(ours):
        raise ValueError(f"{tensor.shape[0]} rows can't be those of {len(ours)} layers")
    return [(layer, rows.contiguous()) for layer, rows in zip(ours, tensor.chunk(len(ours)), strict=True)]


def _swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.shape[0] % 2:
        raise ValueError(f"{tensor.shape[0]} rows can't be a shift and a scale")
    return torch.cat([*reversed(tensor.chunk(2))])


def to_plain_form(
    layers: Mapping[str, Mapping[str, torch.Tensor]], scales: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """A LoRA in the plain form, which other tools read: `diffusion_model.LAYER.lora_A.weight`, `.lora_B.weight` and `.alpha`.

    Args:
        layers: layer → part → tensor.
        scales: layer → what the product of its factors is multiplied by; α is that times r, and left out where it is r.

    Raises:
        ValueError: names a part that this form has no place for.
    """
    plain = {}
    for name, parts in layers.items():
        if foreign := parts.keys() - {"lora_A.weight", "lora_B.weight"}:
            raise ValueError(
                f"The plain form has no place for {name}.{min(foreign)} (DoRA): merge it into its base instead, by `fuse_lora`."
            )
        plain |= {f"{PLAIN}{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        if scales[name] != 1:
            plain[f"{PLAIN}{name}.alpha"] = torch.tensor(scales[name] * parts["lora_A.weight"].shape[0])
    return plain
