"""Latents and clips of the training batches, from a source that is known."""

import itertools
from argparse import Namespace

import pytest
import torch
from accelerate import Accelerator
from diffusers.configuration_utils import FrozenDict

from diffusers_videogpt.data.latents import sample_latents
from diffusers_videogpt.data.sampling import seeded_generator
from diffusers_videogpt.training.feed import LatentFeed
from diffusers_videogpt.training.objective import parse_clips
from diffusers_videogpt.training.settings import LatentSettings, SamplingSettings


MOMENTS = torch.randn(4, 9, 8, 2, 2, generator=torch.Generator().manual_seed(0))


class TwoSteps:
    """A source of the steps 7 and 8: the same 4 samples, in micro-batches of 2."""

    def batches(self, start_step, end_step):
        names = ["ids", "captions", "labels"]
        for step, slots in itertools.product((7, 8), ([0, 1], [2, 3])):
            yield {"moments": MOMENTS[slots], "step": step, "slots": slots} | dict.fromkeys(names, [None, None])


def make_feed(vae, clips, **latents):
    return LatentFeed(
        Accelerator(cpu=True),
        vae,
        draw_clips=parse_clips(clips),
        source=TwoSteps(),
        sampling=SamplingSettings(seed=3),
        latents=LatentSettings(**latents),
    )


@pytest.mark.parametrize("same_clips_in_step", [False, True])
def test_latents_and_clips_follow_seed_step_and_slot(same_clips_in_step):
    vae = Namespace(config={"latent_channels": 4, "scaling_factor": 0.5})
    feed = make_feed(vae, "random", same_clips_in_step=same_clips_in_step)
    batches = list(feed.micro_batches(7, 9))
    clips = [lengths for batch in batches for lengths in batch.clip_lengths]
    assert (clips[:4] == clips[:1] * 4) == same_clips_in_step and clips[:4] != clips[4:]
    for number, batch in enumerate(batches):
        for i, lengths, latents, noise in zip(
            range(2), batch.clip_lengths, batch.latents, batch.generators, strict=True
        ):
            step, slot = 7 + number // 2, 2 * (number % 2) + i
            generator = seeded_generator(3, step, slot)
            torch.testing.assert_close(latents, sample_latents(MOMENTS[slot], vae.config, generator))
            if not same_clips_in_step:
                assert lengths == parse_clips("random")(9, generator)
            # The noise goes on where they left the generator.
            assert torch.equal(torch.rand(3, generator=noise), torch.rand(3, generator=generator))


def test_the_posteriors_mean():
    """It is scaled as samples are, and nothing is drawn for it."""
    vae = Namespace(config=FrozenDict({"latent_channels": 4, "scaling_factor": 0.5}))
    feed = make_feed(vae, "equal:9", posterior="mean")
    batch = next(feed.micro_batches(7, 8))
    torch.testing.assert_close(batch.latents, 0.5 * MOMENTS[:2, :, :4].transpose(1, 2))
    untouched = torch.rand(3, generator=seeded_generator(3, 7, 0))
    assert torch.equal(torch.rand(3, generator=batch.generators[0]), untouched)
