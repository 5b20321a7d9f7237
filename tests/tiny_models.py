"""The models that most tests use, also for those that run as a script of their own."""

import torch
from diffusers import AutoencoderTiny

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.transformer_videogpt import VideoGPTTransformerModel


def tiny_transformer_of(**config) -> VideoGPTTransformerModel:
    """A transformer of 2 layers and width 32 with fixed random weights that reach the output."""
    tiny = {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "ffn_dim": 48,
        "pos_embed_max_size": 16,
        "rope_long_factor": (1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0),
    }
    model = VideoGPTTransformerModel(**{**tiny, **config})
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    # Zero in a new model, which would hide everything before them.
    for parameter in (*model.norm_out.parameters(), *model.proj_out.parameters()):
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def tiny_autoencoder_of(**config) -> AutoencoderTiny:
    """An autoencoder without a posterior, 8 × smaller latents, 8 channels wide, with fixed random weights. (Left at its own
    64 channels, it took most of the time of the tests that train.)"""
    torch.manual_seed(0)
    channels = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    blocks = {"num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}
    return AutoencoderTiny(**channels, **blocks, **config).eval()


def pipe_without_vae(transformer: VideoGPTTransformerModel) -> VideoGPTPipeline:
    """A pipeline from latents to latents, without a progress bar."""
    pipe = VideoGPTPipeline(None, transformer, NextClipFlowMatchScheduler(), frames_per_clip=2, longest_side=32)
    pipe.set_progress_bar_config(disable=True)
    return pipe
