"""diffusers knows this package's classes whichever of the two is imported first, and importing this package is cheap."""

import inspect
import subprocess
import sys

import pytest
from diffusers.models.modeling_utils import ModelMixin
from run_scripts import run_code

import diffusers_videogpt
from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline, registration
from diffusers_videogpt.modular_pipeline_videogpt import VideoGPTBlocks


# Every table that has a row of ours is looked into; nothing here names one of our files.
USE_ALL = """
import sys
from diffusers import AutoModel, DiffusionPipeline, ModularPipeline, UniPCMultistepScheduler
from diffusers.pipelines.auto_pipeline import _get_model
folder = sys.argv[1]
pipe = DiffusionPipeline.from_pretrained(folder)
pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
again = type(pipe.transformer).from_single_file(
    folder + "/transformer/diffusion_pytorch_model.safetensors", config=folder + "/transformer"
)
assert type(again) is type(pipe.transformer) is type(AutoModel.from_pretrained(folder, subfolder="transformer"))
assert _get_model("VideoGPTPipeline") == "videogpt"
blocks = ModularPipeline.from_pretrained(folder)
blocks.load_components()
pipe.save_pretrained(folder + "/again")
print(type(pipe).__name__, type(blocks).__name__)
"""
ORDERS = {
    "ours first": "import diffusers_videogpt, sys; assert 'diffusers' not in sys.modules",
    "diffusers first": "from diffusers import DiffusionPipeline; import diffusers_videogpt",
    "diffusers whole first": (
        "import diffusers.pipelines.auto_pipeline, diffusers.modular_pipelines; import diffusers_videogpt"
    ),
    "a file of ours imports diffusers": "import diffusers_videogpt.modular_pipeline_videogpt",
    "the converter is the first": "import diffusers_videogpt.convert_checkpoint",
}


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_imports(order, tmp_path, tiny_transformer):
    VideoGPTPipeline(None, tiny_transformer, NextClipFlowMatchScheduler()).save_pretrained(tmp_path / "saved")
    result = run_code(f"{ORDERS[order]}\n{USE_ALL}", tmp_path / "saved")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "VideoGPTPipeline VideoGPTModularPipeline"


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, diffusers_videogpt; assert 'VideoGPTPipeline' in dir(diffusers_videogpt); "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'diffusers', 'transformers', 'numpy', 'av'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_found_in_its_file():
    for name in diffusers_videogpt.__all__:
        value = getattr(diffusers_videogpt, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ == f"diffusers_videogpt.{diffusers_videogpt._FILES[name]}", name
    assert set(registration.REGISTERED) <= set(diffusers_videogpt.__all__)
    assert diffusers_videogpt.ModelMixin is ModelMixin
    assert VideoGPTBlocks.model_name == registration.MODEL_NAME
    with pytest.raises(AttributeError, match="module 'diffusers_videogpt' has no attribute 'VideoGPTNothing'"):
        _ = diffusers_videogpt.VideoGPTNothing


def test_a_module_of_diffusers_that_is_missing_is_told_as_ever():
    """The finder only watches: what can't be found or has no such name is Python's and diffusers' own error."""
    code = """
import importlib.util, sys
import diffusers_videogpt
assert importlib.util.find_spec("diffusers_of_another_world") is None
import diffusers
try:
    diffusers.NoSuchPipeline
except AttributeError as error:
    print(error)
"""
    result = run_code(code)
    assert result.stdout.strip() == "module diffusers has no attribute NoSuchPipeline", result.stderr
