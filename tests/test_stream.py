"""Streams: what they leave behind. What they predict is tested beside the pipeline's call."""

import subprocess
import sys
from pathlib import Path

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline


LEFT_OPEN = """
import sys, torch
from diffusers_videogpt import VideoGPTPipeline
pipe = VideoGPTPipeline.from_pretrained(sys.argv[1], vae=None)
stream = pipe.stream(video_latents=torch.zeros(1, 4, 2, 4, 4), num_inference_steps=2, output_type="latent")
print(next(stream).frames.shape)
"""


def test_a_stream_that_a_program_leaves_open_ends_with_it_in_silence(tmp_path, tiny_transformer):
    VideoGPTPipeline(None, tiny_transformer, NextClipFlowMatchScheduler(), frames_per_clip=2).save_pretrained(tmp_path)
    command = [sys.executable, "-c", LEFT_OPEN, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=120)
    assert (result.returncode, result.stdout) == (0, "torch.Size([1, 4, 2, 4, 4])\n"), result.stderr
    assert "Exception ignored" not in result.stderr and "Traceback" not in result.stderr, result.stderr
