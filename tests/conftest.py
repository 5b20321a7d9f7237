"""What all tests share: no network, no window, one attention backend, and a tiny transformer."""

import gc
import os
from pathlib import Path


# Read when these libraries are first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SDL_VIDEODRIVER"] = "dummy"
os.environ["SDL_AUDIODRIVER"] = "dummy"
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from diffusers import AutoencoderKL  # noqa: E402
from diffusers.models.attention_dispatch import attention_backend  # noqa: E402
from tiny_models import tiny_transformer_of  # noqa: E402

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline  # noqa: E402
from diffusers_videogpt.transformer_videogpt import VideoGPTTransformerModel  # noqa: E402


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of several workers, one that has no tests left takes some from another: the long files stand at the end."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_finish():
    """What was imported stays: looking through it for garbage again and again takes a twelfth of the time of the tests."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _native_attention():
    """`set_attention_backend` also changes a default of the whole process: put it back after every test."""
    with attention_backend("native"):
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The project's shared files: `VIDEOGPT_SHARED`, or `shared` beside the repository; the test is skipped without."""
    path = Path(os.environ.get("VIDEOGPT_SHARED", Path(__file__).parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip("needs the shared folder: set VIDEOGPT_SHARED to its path")
    return path


@pytest.fixture
def make_tiny_transformer():
    """[`tiny_transformer_of`]"""
    return tiny_transformer_of


@pytest.fixture
def tiny_transformer(make_tiny_transformer) -> VideoGPTTransformerModel:
    return make_tiny_transformer()


@pytest.fixture
def make_tiny_pipe(make_tiny_transformer):
    """Makes a pipeline of that transformer and an autoencoder 8 channels wide: clips of 2 frames, a window of 5."""

    def make(**config) -> VideoGPTPipeline:
        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        sizes = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": 32}
        vae = AutoencoderKL(latent_channels=4, scaling_factor=0.5, **sizes, **blocks).eval()
        config = {"frames_per_clip": 2, "max_context_frames": 5, "longest_side": 32} | config
        pipe = VideoGPTPipeline(vae, make_tiny_transformer(), NextClipFlowMatchScheduler(), **config)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def steered_pipe(make_tiny_pipe, make_tiny_transformer) -> VideoGPTPipeline:
    """That pipeline with a random transformer of five actions, which do something."""
    pipe = make_tiny_pipe()
    transformer = make_tiny_transformer(num_actions=5)
    torch.nn.init.normal_(transformer.action_embed.weight[1:], std=2.0, generator=torch.Generator().manual_seed(9))
    pipe.register_modules(transformer=transformer)
    return pipe
