"""Starting from Phi-3: its decoder's weights in a new transformer, as the paper's pretraining starts (reference code)."""

from pathlib import Path

import torch

from ..convert_checkpoint import (
    REFERENCE_WEIGHTS,
    _check_shapes,
    _decoder_config,
    _key_map,
    _listed,
    _read_json,
    _to_reference,
    _WeightFiles,
)
from ..transformer_videogpt import VideoGPTTransformerModel


SAFETENSORS_WEIGHTS = {name: index for name, index in REFERENCE_WEIGHTS.items() if name.endswith(".safetensors")}
LANGUAGE_TENSORS = {"model.embed_tokens.weight", "lm_head.weight"}  # which videos have no use for


@torch.no_grad()
def load_phi3_decoder(transformer: VideoGPTTransformerModel, path: str | Path) -> None:
    """Fills the blocks and the final norm of `transformer` with those of Phi-3, and the noisy patch embedding with zeros.

    Everything else stays as [`~VideoGPTTransformerModel.init_weights`] left it. The weights take the dtype and device of
    `transformer`; they are read one tensor at a time.

        transformer = VideoGPTTransformerModel()  # Phi-3-mini-128k's decoder by default
        transformer.init_weights()
        load_phi3_decoder(transformer, "Phi-3-mini-128k-instruct")

    Args:
        path: folder of a `transformers` Phi3ForCausalLM: config.json, and safetensors in one file or in shards.

    Raises:
        FileNotFoundError: if the config, the weights or a shard is missing. Pickled weights are not read.
        ValueError: if the decoder is another one than that of `transformer`, its rotary embedding included, or a tensor
            is missing, unknown or of another shape. Then nothing was loaded.
    """
    path = Path(path)
    if not any(path.glob("model*.safetensors")):
        raise FileNotFoundError(
            f"'{path}' has no {' or '.join(SAFETENSORS_WEIGHTS)}: pass the folder of a Phi3ForCausalLM. Pickled weights "
            "are not read: where you trust them, load and save the model once with transformers."
        )
    _check_config(transformer, path)

    # 1. What there is, and whether it fits
    weights, ours = _WeightFiles(path, SAFETENSORS_WEIGHTS), transformer.state_dict()
    parts_of = {
        theirs.replace("llm.", "model.", 1): parts
        for theirs, parts in _key_map(transformer.config.num_layers).items()
        if theirs.startswith("llm.")
    }
    found = set(weights.tensors) - LANGUAGE_TENSORS
    for problem, names in (("lacks", parts_of.keys() - found), ("has unknown", found - parts_of.keys())):
        if names:
            raise ValueError(
                f"'{path}' is no Phi3ForCausalLM with the layers of its config.json: it {problem} {_listed(names)}."
            )
    shapes = {name: tensor.to("meta") for name, tensor in ours.items()}
    _check_shapes(
        weights.tensors,
        {theirs: _to_reference(theirs, parts, read=shapes.get) for theirs, parts in parts_of.items()},
        where=f"'{path}'",
    )

    # 2. Loading
    for theirs, parts in parts_of.items():
        for name, rows in zip(parts, weights.read(theirs).chunk(len(parts)), strict=True):
            ours[name].copy_(rows)
    torch.nn.init.zeros_(transformer.noisy_patch_embed.weight)
    torch.nn.init.zeros_(transformer.noisy_patch_embed.bias)


def _check_config(transformer: VideoGPTTransformerModel, path: Path) -> None:
    try:
        phi3_config = _decoder_config(_read_json(path / "config.json"))
    except ValueError as error:
        raise ValueError(f"'{path}' holds no Phi-3 whose decoder is Video-GPT's: {error}") from error
    if phi3_config["rope_long_factor"] is None and transformer.config.rope_long_factor is None:
        # Plain rotary embeddings do not depend on them.
        del phi3_config["max_position_embeddings"], phi3_config["original_max_position_embeddings"]
    for key, theirs in phi3_config.items():
        mine = transformer.config[key]
        mine = list(mine) if isinstance(mine, tuple) else mine
        if mine != theirs:
            raise ValueError(
                f"The decoder of '{path}' is another one than the transformer's: `{key}` is {theirs} there, {mine} here. "
                "Make the transformer with the same, or take another Phi-3."
            )
