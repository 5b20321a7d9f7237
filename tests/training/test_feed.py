"""Latents and clips of the training batches, from a source that is known."""

import itertools
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from diffusers.configuration_utils import FrozenDict
from masked_videos import make_davis
from PIL import Image

from diffusers_videogpt.data.batches import WindowDataset
from diffusers_videogpt.data.latents import sample_latents
from diffusers_videogpt.data.sampling import Sampling, seeded_generator
from diffusers_videogpt.data.videos import VideoTable
from diffusers_videogpt.tasks.segmentation_data import SegmentationTable, SimulatedMasks, read_masked_videos
from diffusers_videogpt.training.feed import LatentFeed, content_fields
from diffusers_videogpt.training.objective import parse_clips
from diffusers_videogpt.training.settings import LatentSettings, SamplingSettings
from diffusers_videogpt.video_io import write_video


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
            torch.testing.assert_close(latents, sample_latents(MOMENTS[slot], vae.config, generator=generator))
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


def differing(table, other) -> set[str]:
    """Which fields of the content of two tables of the same names differ."""
    assert [record.id for record in table.records] == [record.id for record in other.records]
    fields = [content_fields(WindowDataset(one, 0)) for one in (table, other)]
    return {name for name in fields[0] if fields[0][name] != fields[1][name]}


def test_what_a_row_of_a_dataset_holds_counts(tmp_path):
    def table(grey: int) -> VideoTable:
        frames = np.full((4, 32, 32, 3), grey, np.uint8)
        rows = [write_video(tmp_path / "video.mp4", frames, fps=8).read_bytes()]
        shutil.rmtree(tmp_path / "rows", ignore_errors=True)
        (tmp_path / "rows").mkdir()
        Dataset.from_dict({"video": rows}).to_parquet(tmp_path / "rows" / "train.parquet")
        return VideoTable.from_dataset(tmp_path / "rows", Sampling(4, height=32, width=32))

    assert differing(table(10), table(10)) == set() and differing(table(10), table(200)) == {"content.sources"}


def test_masks_and_frames_of_segmentation_count(tmp_path):
    sampling = Sampling(4, height=32, width=48)
    root = make_davis(tmp_path / "DAVIS", {"train": ["ant", "bee"]})

    def table() -> SegmentationTable:
        return SegmentationTable.of(read_masked_videos(root), sampling)

    def touch(path: Path) -> None:
        with Image.open(path) as image:
            image.putpixel((0, 0), 1 if image.mode == "P" else (255, 255, 255))
            image.save(path)

    before = table()
    assert differing(before, table()) == set()
    for pattern in ("Annotations/**/*.png", "JPEGImages/**/*.*"):
        touch(next(path for path in sorted(root.glob(pattern)) if path.is_file()))
        assert differing(before, table()) == {"content.sources"}
        before = table()


def test_what_simulated_scenes_follow_from_counts():
    """Another size or length under the same names is other data."""
    sampling = Sampling(4, height=32, width=32)
    masks = [SegmentationTable.of([SimulatedMasks(7, 8, size)], sampling) for size in (32, 64)]
    scenes = [VideoTable.simulated(1, num_frames, sampling=sampling) for num_frames in (8, 9)]
    for one, other in (masks, scenes):
        assert differing(one, other) == {"content.sources"} and differing(one, one) == set()
