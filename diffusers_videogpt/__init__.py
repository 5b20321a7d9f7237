"""Video-GPT (next clip diffusion) as native diffusers components.

Importing this package makes its public classes diffusers' own: `DiffusionPipeline.from_pretrained`, `AutoModel` and
scheduler swaps find them by name. It costs next to nothing: PyTorch, diffusers and the files of this package are
imported when a name of theirs is first used.
"""

import importlib
from pathlib import Path
from typing import Any

from .registration import BASE_CLASSES, register


__version__ = "0.1.0"

# Small models, of simulated physics and of a ball in it that obeys, and an unseen scene, which come with the package.
BUNDLED_MODEL = str(Path(__file__).parent / "assets" / "videogpt-physics")
BUNDLED_STEERED_MODEL = str(Path(__file__).parent / "assets" / "videogpt-physics-steered")
SAMPLE_VIDEO = str(Path(__file__).parent / "assets" / "sample.mp4")

# Public name → the file that it is in.
_FILES = {
    "ClipLayout": "clips",
    "NextClipFlowMatchScheduler": "scheduling_next_clip_flow_match",
    "NextClipGuidance": "guidance_next_clip",
    "VideoGPTAttnProcessor": "attention_videogpt",
    "VideoGPTBlocks": "modular_pipeline_videogpt",
    "VideoGPTForVideoClassification": "tasks.video_classification",
    "VideoGPTForVideoRetrieval": "tasks.video_retrieval",
    "VideoGPTKVCache": "kv_cache",
    "VideoGPTLayerCache": "kv_cache",
    "VideoGPTModularPipeline": "modular_pipeline_videogpt",
    "VideoGPTPipeline": "pipeline_videogpt",
    "VideoGPTPipelineOutput": "pipeline_output",
    "VideoGPTRetrievalPipeline": "tasks.video_retrieval",
    "VideoGPTStream": "stream",
    "VideoGPTTransformerModel": "transformer_videogpt",
    "draw_clip_lengths": "clips",
    "equal_clip_lengths": "clips",
    "make_clip_layout": "clips",
}

# The same of what diffusers is handed by `registration.py`, and nobody else asks for.
_HANDED_TO_DIFFUSERS = {"_map_single_file": "convert_checkpoint", "_map_single_file_config": "convert_checkpoint"}

__all__ = ["BUNDLED_MODEL", "BUNDLED_STEERED_MODEL", "SAMPLE_VIDEO", *_FILES]


def __getattr__(name: str) -> Any:
    """Looks a name up in its file, when it is first used."""
    file = _FILES.get(name) or _HANDED_TO_DIFFUSERS.get(name)
    if file is not None:
        module = importlib.import_module(f"{__name__}.{file}")
    elif name in BASE_CLASSES:
        module = importlib.import_module("diffusers")
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
