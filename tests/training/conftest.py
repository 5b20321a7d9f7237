import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny


@pytest.fixture
def tiny_vae() -> AutoencoderTiny:
    """Eight channels wide, with fixed random weights."""
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    return vae.eval()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def malicious_pickle() -> Callable[[Path], bytes]:
    """Makes a pickle that, wherever it is read, makes the file that it was given."""
    return lambda marker: pickle.dumps(Malicious(marker))
