import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import AutoencoderTiny
from tiny_models import tiny_autoencoder_of


@pytest.fixture
def tiny_vae() -> AutoencoderTiny:
    """Eight channels wide, with fixed random weights."""
    return tiny_autoencoder_of()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def malicious_pickle() -> Callable[[Path], bytes]:
    """Makes a pickle that, wherever it is read, makes the file that it was given."""
    return lambda marker: pickle.dumps(Malicious(marker))
