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
