"""Video-GPT (next clip diffusion) as native diffusers components.

Importing this package makes its public classes diffusers' own: `DiffusionPipeline.from_pretrained`, `AutoModel` and
scheduler swaps find them by name.
"""

from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.guiders import BaseGuidance
from diffusers.modular_pipelines.modular_pipeline import MODULAR_PIPELINE_MAPPING
from diffusers.pipelines import pipeline_loading_utils
from transformers.utils import import_utils

from .attention_videogpt import VideoGPTAttnProcessor
from .clips import ClipLayout, draw_clip_lengths, equal_clip_lengths, make_clip_layout
from .convert_checkpoint import register_single_file
from .guidance_next_clip import NextClipGuidance
from .kv_cache import VideoGPTKVCache, VideoGPTLayerCache
from .modular_pipeline_videogpt import VideoGPTBlocks, VideoGPTModularPipeline
from .pipeline_output import VideoGPTPipelineOutput
from .pipeline_videogpt import VideoGPTPipeline
from .scheduling_next_clip_flow_match import NextClipFlowMatchScheduler
from .stream import VideoGPTStream
from .tasks.video_classification import VideoGPTForVideoClassification
from .tasks.video_retrieval import VideoGPTForVideoRetrieval, VideoGPTRetrievalPipeline
from .transformer_videogpt import VideoGPTTransformerModel


__version__ = "0.1.0"

# A small model of simulated physics and an unseen scene of it, which come with the package.
BUNDLED_MODEL = str(Path(__file__).parent / "assets" / "videogpt-physics")
SAMPLE_VIDEO = str(Path(__file__).parent / "assets" / "sample.mp4")

__all__ = [
    "BUNDLED_MODEL",
    "SAMPLE_VIDEO",
    "ClipLayout",
    "NextClipFlowMatchScheduler",
    "NextClipGuidance",
    "VideoGPTAttnProcessor",
    "VideoGPTBlocks",
    "VideoGPTForVideoClassification",
    "VideoGPTForVideoRetrieval",
    "VideoGPTKVCache",
    "VideoGPTLayerCache",
    "VideoGPTModularPipeline",
    "VideoGPTPipeline",
    "VideoGPTPipelineOutput",
    "VideoGPTRetrievalPipeline",
    "VideoGPTStream",
    "VideoGPTTransformerModel",
    "draw_clip_lengths",
    "equal_clip_lengths",
    "make_clip_layout",
]


def _register() -> None:
    """Lets diffusers load, save and name these classes as its own.

    diffusers finds a pipeline class by its name on the `diffusers` module, and a component by the library that
    `model_index.json` names. That library is this package: whatever file a class lives in, saved checkpoints read
    `["diffusers_videogpt", "VideoGPTTransformerModel"]`, and the base classes are looked up here too, hence their import.
    """
    for public_class in (
        VideoGPTPipeline,
        VideoGPTTransformerModel,
        NextClipFlowMatchScheduler,
        NextClipGuidance,
        VideoGPTForVideoClassification,
        VideoGPTForVideoRetrieval,
        VideoGPTRetrievalPipeline,
        VideoGPTBlocks,
        VideoGPTModularPipeline,
    ):
        setattr(diffusers, public_class.__name__, public_class)
    base_classes = {
        base.__name__: ["save_pretrained", "from_pretrained"]
        for base in (ModelMixin, SchedulerMixin, BaseGuidance, DiffusionPipeline)
    }
    pipeline_loading_utils.LOADABLE_CLASSES[__name__] = base_classes
    # Blocks know their modular pipeline by the model's name, and so does the folder of a standard pipeline.
    MODULAR_PIPELINE_MAPPING[VideoGPTBlocks.model_name] = lambda config_dict=None: VideoGPTModularPipeline.__name__
    # The pipelines that this imports name image processors of which transformers warns that torchvision is missing.
    level = import_utils.logger.level
    import_utils.logger.setLevel("ERROR")
    try:
        from diffusers.pipelines import auto_pipeline
    finally:
        import_utils.logger.setLevel(level)
    auto_pipeline.AUTO_VIDEO2VIDEO_PIPELINES_MAPPING[VideoGPTBlocks.model_name] = VideoGPTPipeline
    register_single_file()


_register()
