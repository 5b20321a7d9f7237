"""The sampling schedule against the one of the authors' code, bit for bit."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_videogpt.scheduling_next_clip_flow_match import NextClipFlowMatchScheduler, set_flow_timesteps


GOLDEN = Path(os.environ.get("VIDEOGPT_GOLDEN", Path(__file__).parent / "golden"))
CASES = json.loads((GOLDEN / "cases.json").read_text())["sample"]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_schedule_is_the_reference_schedule(case):
    expected = load_file(GOLDEN / "cases.safetensors")[f"sample.{case}.sigmas"]  # the reference's sigma is our α
    scheduler = NextClipFlowMatchScheduler(shift=CASES[case]["time_shift"])
    _, alphas = set_flow_timesteps(scheduler, CASES[case]["num_inference_steps"])
    assert torch.equal(scheduler.alphas, expected)
    assert torch.equal(alphas, expected[:-1])
    torch.testing.assert_close(scheduler.sigmas, 1 - expected, atol=2e-7, rtol=0)
