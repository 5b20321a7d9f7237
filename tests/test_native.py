"""Every way in, each where neither was imported yet: what diffusers finds after `import diffusers_videogpt`, and before."""

import json

import pytest
from run_scripts import run_code

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline


@pytest.fixture
def saved(tmp_path, tiny_transformer):
    VideoGPTPipeline(None, tiny_transformer, NextClipFlowMatchScheduler()).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


PREDICT = (
    "; print(tuple(pipe(num_inference_steps=1, num_frames=2, height=32, width=32, output_type='latent').frames.shape))"
)
WAYS_IN = {
    "DiffusionPipeline": "from diffusers import DiffusionPipeline; pipe = DiffusionPipeline.from_pretrained(sys.argv[1])",
    "the class": "from diffusers_videogpt import VideoGPTPipeline; pipe = VideoGPTPipeline.from_pretrained(sys.argv[1])",
    "the class on diffusers": "import diffusers; pipe = diffusers.VideoGPTPipeline.from_pretrained(sys.argv[1])",
    "a component override": (
        "from diffusers import DiffusionPipeline, AutoModel; "
        "t = AutoModel.from_pretrained(sys.argv[1], subfolder='transformer'); "
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1], transformer=t); assert pipe.transformer is t"
    ),
    "AutoModel on the component": (
        "from diffusers import DiffusionPipeline, AutoModel; "
        "t = AutoModel.from_pretrained(sys.argv[1] + '/transformer'); "
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1], transformer=t)"
    ),
    "from_pipe": (
        "from diffusers import DiffusionPipeline, VideoGPTPipeline; "
        "first = DiffusionPipeline.from_pretrained(sys.argv[1]); pipe = VideoGPTPipeline.from_pipe(first); "
        "assert pipe.transformer is first.transformer and pipe.config.frames_per_clip == 16"
    ),
    "a scheduler swap": (
        "from diffusers import DiffusionPipeline, UniPCMultistepScheduler; "
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1]); "
        "pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)"
    ),
    "ModularPipeline": (
        "from types import SimpleNamespace; from diffusers import ModularPipeline; "
        "blocks = ModularPipeline.from_pretrained(sys.argv[1]); blocks.load_components(); "
        "pipe = lambda **arguments: SimpleNamespace(frames=blocks(**arguments, output='videos'))"
    ),
}


@pytest.mark.parametrize("way", WAYS_IN)
def test_way_in(way, saved):
    result = run_code(f"import sys; import diffusers_videogpt; {WAYS_IN[way]}{PREDICT}", saved)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("(1, 4, 2, 4, 4)")


def test_what_a_saved_pipeline_says(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "VideoGPTPipeline"
    assert index["transformer"] == ["diffusers_videogpt", "VideoGPTTransformerModel"]
    assert index["scheduler"] == ["diffusers_videogpt", "NextClipFlowMatchScheduler"]


def test_without_our_import_diffusers_refuses(saved):
    """As the README says: a repository can't make diffusers import a library."""
    result = run_code(
        "import sys; from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained(sys.argv[1])", saved
    )
    assert result.returncode != 0 and "VideoGPTPipeline" in result.stderr


def test_without_our_import_trusted_stubs_load(saved):
    """As the README says: a `pipeline.py` of one line in the repository, trusted by the user, does the import."""
    (saved / "pipeline.py").write_text("from diffusers_videogpt import VideoGPTPipeline as VideoGPTPipeline\n")
    code = (
        "import sys; from diffusers import DiffusionPipeline; "
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[1], trust_remote_code=True)"
    )
    result = run_code(code + PREDICT, saved)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("(1, 4, 2, 4, 4)")
