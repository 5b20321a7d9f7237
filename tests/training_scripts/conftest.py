"""What the scripts' tests start from: tiny models and videos."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from run_scripts import SCRIPTS, TINY, make_videos
from script_data import save_base
from tiny_models import tiny_autoencoder_of


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory) -> Path:
    """A folder with `vae` and `transformer.json`."""
    folder = tmp_path_factory.mktemp("parts")
    vae = tiny_autoencoder_of()
    with torch.no_grad():
        latents = vae.encode(torch.rand(4, 3, 32, 32) * 2 - 1).latents
    vae.register_to_config(scaling_factor=1 / float(latents.std()))  # so that there is something to learn
    vae.save_pretrained(folder / "vae")
    (folder / "transformer.json").write_text(json.dumps(TINY))
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory, tiny_parts) -> Path:
    """A pipeline to start from."""
    return save_base(tmp_path_factory.mktemp("base"), tiny_parts / "vae")


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), 7)


@pytest.fixture(scope="session")
def short_run(videos) -> list:
    """Arguments for six steps on small samples, from a pipeline that is named beside them."""
    return [
        *("--instance_data_root", videos, "--height", 32, "--width", 32, "--max_num_frames", 4),
        *("--num_validation_videos", 2, "--lr_warmup_steps", 1, "--logging_steps", 1),
        *("--max_train_steps", 6, "--checkpointing_steps", 3),
    ]


@pytest.fixture(scope="session")
def new_features(tiny_parts) -> list:
    """Arguments for a new tiny model, small samples and few words."""
    return [
        *("--pretrained_vae_path", tiny_parts / "vae", "--transformer_config", tiny_parts / "transformer.json"),
        *("--height", 32, "--width", 32, "--max_num_frames", 4),
        *("--learning_rate", 1e-3, "--lr_warmup_steps", 2, "--num_validation_videos", 2, "--logging_steps", 1),
    ]


@pytest.fixture(scope="session")
def new_model(new_features) -> list:
    """The same where a pipeline is saved, of clips of two frames."""
    return [*new_features, "--frames_per_clip", 2]


@pytest.fixture
def run_here(monkeypatch):
    """Runs a script in the test's own process, since one of its own starts slowly."""

    def run(script: str, *args) -> None:
        monkeypatch.setattr("sys.argv", [script, *map(str, args)])
        monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
        try:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()

    return run


@pytest.fixture
def refusal_of(run_here, capsys):
    """Says how a script ends, which is by an error."""

    def run(script: str, *args) -> str:
        with pytest.raises((SystemExit, OSError, ValueError)) as refused:
            run_here(script, *args)
        assert getattr(refused.value, "code", 1) not in (0, None)
        return f"{capsys.readouterr().err}{refused.value}"

    return run
