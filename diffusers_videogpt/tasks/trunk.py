"""A transformer up to a layer, as the part of a model that reads clean frames: a classifier's, a retriever's."""

import json
from typing import Any

from ..transformer_videogpt import VideoGPTTransformerModel
from .token_pooling import resolve_layer


# What only noisy frames and the prediction need.
UNUSED_PARTS = ("noisy_patch_embed", "time_token_embed", "time_embed", "norm", "norm_out", "proj_out")


class VideoGPTTrunkMixin:
    """What diffusers asks of a model: for one whose attribute `transformer` is a trunk, with small parts behind it.

    Those of its parts that must stay in their own precision are to be added to `_skip_layerwise_casting_patterns`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = VideoGPTTransformerModel._no_split_modules
    _repeated_blocks = VideoGPTTransformerModel._repeated_blocks
    _skip_layerwise_casting_patterns = VideoGPTTransformerModel._skip_layerwise_casting_patterns


def make_trunk(config: dict[str, Any]) -> VideoGPTTransformerModel:
    """A transformer for clean frames only: the parts that these do not pass ask for no gradients.

    Data parallelism waits for the gradients of all parts that ask for some.

    Args:
        config: of [`trunk_config`].
    """
    trunk = VideoGPTTransformerModel(**config)
    for part in UNUSED_PARTS:
        getattr(trunk, part).requires_grad_(False)
    return trunk


def trunk_config(transformer: VideoGPTTransformerModel, layer: int | None = None) -> dict[str, Any]:
    """The arguments of a transformer like this one up to `layer`, without class and text tokens and actions.

    Args:
        layer: the last one used, from 1 on; negative counts from the end; default: two thirds of the layers.

    Raises:
        ValueError: there is no such layer.
    """
    layer = resolve_layer(transformer.config.num_layers, layer)
    if layer == 0:
        raise ValueError("`layer`=0 leaves no block of the transformer: choose one from 1 on.")
    config = {
        name: value for name, value in json.loads(transformer.to_json_string()).items() if not name.startswith("_")
    }
    without = ("num_classes", "text_embed_dim", "num_actions", "action_dim", "action_mean", "action_std")
    return config | dict.fromkeys(without) | {"num_layers": layer}


def trunk_width(config: dict[str, Any]) -> int:
    """D, the channels of its tokens."""
    return config["num_attention_heads"] * config["attention_head_dim"]


def copy_into_trunk(trunk: VideoGPTTransformerModel, transformer: VideoGPTTransformerModel) -> None:
    """Copies the weights of all that the trunk has."""
    wanted = trunk.state_dict()
    trunk.load_state_dict({name: value for name, value in transformer.state_dict().items() if name in wanted})
