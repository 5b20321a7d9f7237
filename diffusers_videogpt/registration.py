"""Makes diffusers know this package's classes, and Gymnasium its environments, without importing them, or any of ours, before
they are used.

diffusers finds a pipeline class by its name on the `diffusers` module, and a part of a pipeline by the library that
`model_index.json` names. That library is this package: whatever file a class lives in, saved checkpoints read
`["diffusers_videogpt", "VideoGPTTransformerModel"]`. So each of diffusers' tables gets a row of ours: at once if
diffusers is there already, else right after Python has run the file of diffusers that holds the table. The tables are those of
diffusers 0.42.1, the version that `diffusers_internals.py` was checked against. Gymnasium has such a table too; since its version 1.0 it
looks for no entry points of installed packages.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


PACKAGE = __name__.rpartition(".")[0]
MODEL_NAME = "videogpt"  # of the modular blocks, and of the pipeline in diffusers' table of tasks

# What is found by its name on the `diffusers` module.
REGISTERED = (
    "NextClipFlowMatchScheduler",
    "NextClipGuidance",
    "VideoGPTBlocks",
    "VideoGPTForVideoClassification",
    "VideoGPTForVideoRetrieval",
    "VideoGPTModularPipeline",
    "VideoGPTPipeline",
    "VideoGPTRetrievalPipeline",
    "VideoGPTTransformerModel",
)
# diffusers asks the library of a part, which is this package, for the classes that know how to save and load it.
BASE_CLASSES = ("ModelMixin", "SchedulerMixin", "BaseGuidance", "DiffusionPipeline")


def register() -> None:
    """Adds the rows: now where diffusers' file has run, else as soon as it does."""
    waiting = {name: add_row for name, add_row in ROWS.items() if name not in sys.modules}
    # First of all: a row may import one of our files, and with it those of diffusers that are waited for.
    sys.meta_path.insert(0, _AfterImport(waiting))
    for name in [name for name in ROWS if name not in waiting]:
        ROWS[name](sys.modules[name])


class _AfterImport:
    """A finder of modules that finds as Python does, and calls `waiting[name](module)` once the module's file has run."""

    def __init__(self, waiting: dict[str, Callable[[ModuleType], None]]):
        self.waiting = waiting

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name not in self.waiting:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                add_row = self.waiting.pop(name, None)
                if add_row is not None:
                    add_row(sys.modules[name])  # not `module`: diffusers puts another one in its place

            spec.loader.exec_module = exec_module
        return spec


def _of_package(name: str) -> Any:
    return getattr(sys.modules[PACKAGE], name)


def _on_diffusers(module: ModuleType) -> None:
    """Names on the `diffusers` module itself, each looked up when it is first asked for."""

    def look_up(name: str) -> Any:
        if name not in REGISTERED:
            raise AttributeError(f"module 'diffusers' has no attribute '{name}'")
        setattr(module, name, _of_package(name))
        return getattr(module, name)

    # Python calls it for what the module does not have (PEP 562), before diffusers' own way to look names up.
    module.__getattr__ = look_up


def _in_loadable_classes(module: ModuleType) -> None:
    module.LOADABLE_CLASSES[PACKAGE] = {name: ["save_pretrained", "from_pretrained"] for name in BASE_CLASSES}


def _in_modular_pipelines(module: ModuleType) -> None:
    """Blocks know their modular pipeline by the model's name, and so does the folder of a standard pipeline."""
    module.MODULAR_PIPELINE_MAPPING[MODEL_NAME] = lambda config_dict=None: "VideoGPTModularPipeline"


def _in_auto_pipelines(module: ModuleType) -> None:
    module.AUTO_VIDEO2VIDEO_PIPELINES_MAPPING[MODEL_NAME] = _of_package("VideoGPTPipeline")


def _in_single_files(module: ModuleType) -> None:
    """`VideoGPTTransformerModel.from_single_file`, for the authors' file and for one of ours.

        VideoGPTTransformerModel.from_single_file(
            "Video-GPT/model.safetensors", original_config="Video-GPT/config.json", tokenizer="Video-GPT"
        )
        VideoGPTTransformerModel.from_single_file("ours.safetensors", config="folder_with_config_json")

    diffusers hands the mapping a state dict without its path, so the authors' file needs `tokenizer`: the folder of the
    tokenizer's files, which tell the rows of the hint tokens. `config` or `original_config` must be given: without,
    diffusers guesses the model from the file and takes it for another. For shards, use
    [`convert_reference_checkpoint`].
    """

    # diffusers looks at the names of a mapping's arguments to tell which of the user's it takes.
    def map_checkpoint(checkpoint: dict, config: dict, tokenizer: str | Path | None = None) -> dict:
        return _of_package("_map_single_file")(checkpoint, config, tokenizer=tokenizer)

    def map_config(original_config: dict, checkpoint: dict) -> dict:
        return _of_package("_map_single_file_config")(original_config, checkpoint)

    module.SINGLE_FILE_LOADABLE_CLASSES["VideoGPTTransformerModel"] = {
        "checkpoint_mapping_fn": map_checkpoint,
        "config_mapping_fn": map_config,
        "default_subfolder": "transformer",
    }


def _in_environments(module: ModuleType) -> None:
    """Gymnasium's table of environments, for `gymnasium.make("diffusers_videogpt:VideoGPT-v0")`."""
    environment = f"{PACKAGE}.tasks.environment"
    module.register(
        "VideoGPT-v0",
        entry_point=f"{environment}:VideoGPTEnv",
        vector_entry_point=f"{environment}:VideoGPTVectorEnv",
    )
    module.register("SteeredWorld-v0", entry_point=f"{PACKAGE}.tasks.steered_world:SteeredWorld")


ROWS = {
    "diffusers": _on_diffusers,
    "diffusers.pipelines.pipeline_loading_utils": _in_loadable_classes,
    "diffusers.modular_pipelines.modular_pipeline": _in_modular_pipelines,
    "diffusers.pipelines.auto_pipeline": _in_auto_pipelines,
    "diffusers.loaders.single_file_model": _in_single_files,
    "gymnasium.envs.registration": _in_environments,
}
