"""Marks and back, and videos of any length in clips: with models whose answer is known in place of a trained one."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from diffusers_videogpt import BUNDLED_MODEL, NextClipFlowMatchScheduler, VideoGPTPipeline
from diffusers_videogpt.metrics.segmentation import region_similarity
from diffusers_videogpt.tasks.video_object_segmentation import (
    BACKGROUND,
    COLOURS,
    Marking,
    VideoObjectSegmentationTraining,
    draw_segmentation_clips,
    make_markings,
    merge_markings,
    object_ids,
    resize_frames,
    resize_masks,
    segment_video,
)
from diffusers_videogpt.training.objective import next_clip_loss


CLIP = 4


class CopyVideo(VideoGPTPipeline):
    """Answers with the frames of the video itself: right for a video that is marked already."""

    def predict_clip(self, rollout, num_frames, **_):
        assert rollout.history.num_frames == num_frames + 1
        return rollout.history.latents[:, :, :-1]


class RepeatMarked(VideoGPTPipeline):
    """Answers with the first marked frame again and again."""

    def predict_clip(self, rollout, num_frames, **_):
        return rollout.history.latents[:, :, -1:].expand(-1, -1, num_frames, -1, -1)


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKL.from_pretrained(BUNDLED_MODEL, subfolder="vae")


@pytest.fixture
def make_pipe(vae, make_tiny_transformer):
    def make(kind=VideoGPTPipeline):
        transformer = make_tiny_transformer(in_channels=vae.config.latent_channels)
        pipe = kind(vae, transformer, NextClipFlowMatchScheduler(), frames_per_clip=CLIP, longest_side=64)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def moving_discs(num_frames, num_objects=2, side=64):
    """Ids 3, 8, 13, …: discs of 14 pixels in rows, that move to the right by 2."""
    masks = np.zeros((num_frames, side, side), np.uint8)
    y, x = np.ogrid[:side, :side]
    for t, mask in enumerate(masks):
        for index in range(num_objects):
            row, column = divmod(index, 2)
            mask[np.hypot(y - 8 - 16 * row, x - 8 - 30 * column - 2 * t) < 7] = 3 + 5 * index
    return masks


def test_marks_and_back():
    masks = np.array([[[0, 7, 7], [2, 2, 255]]], np.uint8)
    assert object_ids(masks) == [2, 7]
    marking = Marking((7, 2), (4, 0))
    frames = marking.draw(masks)
    assert frames.dtype == np.uint8 and frames.shape == (1, 2, 3, 3)
    assert frames[0, 0].tolist() == [BACKGROUND.tolist(), COLOURS[4].tolist(), COLOURS[4].tolist()]
    assert frames[0, 1].tolist() == [COLOURS[0].tolist(), COLOURS[0].tolist(), BACKGROUND.tolist()]
    noisy = (frames.astype(int) + np.random.default_rng(0).integers(-25, 26, frames.shape)).clip(0, 255)
    ids, distance = marking.read(noisy.astype(np.uint8))
    np.testing.assert_array_equal(ids, np.where(masks == 255, 0, masks))
    assert distance.shape == ids.shape and 0 < distance.max() <= 3 * 25**2
    # A colour that no object has been given is read as the nearest that one has.
    assert Marking((7,), (4,)).read(COLOURS[None, None, 4])[0].tolist() == [[7]]
    assert (Marking((7,), (4,)).draw(masks)[masks == 2] == BACKGROUND).all()


def test_more_objects_than_colours():
    count = 2 * len(COLOURS) + 1
    markings = make_markings(range(1, count + 1))
    assert [len(marking.objects) for marking in markings] == [len(COLOURS), len(COLOURS), 1]
    masks = np.arange(count + 1, dtype=np.uint8).reshape(1, 2, -1)
    pictures = [marking.draw(masks) for marking in markings]
    np.testing.assert_array_equal(merge_markings(markings, pictures), masks)
    # Two groups claim one pixel: the colour that is nearer to its object's wins, in any order.
    first, second = COLOURS[0][None].copy(), COLOURS[1][None].copy()
    first[0, 0] -= 20
    groups = [Marking((4,), (0,)), Marking((9,), (1,))]
    assert merge_markings(groups, [first, second]).tolist() == [9]
    assert merge_markings(groups[::-1], [second, first]).tolist() == [9]


def test_sizes():
    masks = moving_discs(2)
    assert resize_masks(masks, height=64, width=64) is masks
    small = resize_masks(masks, height=32, width=48)
    assert small.shape == (2, 32, 48) and set(np.unique(small)) == set(np.unique(masks))
    assert resize_frames(Marking((3, 8)).draw(masks), height=32, width=48).shape == (2, 32, 48, 3)


@pytest.mark.parametrize("num_frames", [CLIP, CLIP + 1, 3 * CLIP])
def test_every_clip_sees_its_own_frames(make_pipe, num_frames):
    """The video is marked already, so a model that copies it is right; a clip of frames one too early would have J 0.7."""
    masks = moving_discs(num_frames)
    found = segment_video(
        make_pipe(CopyVideo), Marking((3, 8)).draw(masks), first_mask=masks[0], num_inference_steps=1
    )
    assert found.dtype == np.uint8 and found.shape == masks.shape
    np.testing.assert_array_equal(found[0], masks[0])
    for index in (3, 8):
        assert region_similarity(masks == index, found == index).min() > 0.8


def test_objects_in_groups_and_at_another_size(make_pipe):
    """Seven objects need two groups; 100 × 80 pixels become 64 × 48 and come back."""
    masks = resize_masks(moving_discs(6, num_objects=7), height=80, width=100)
    frames = np.zeros((*masks.shape, 3), np.uint8)
    first = masks[0].copy()
    first[0] = 255  # left open
    found = segment_video(make_pipe(RepeatMarked), frames, first_mask=first, num_inference_steps=1)
    np.testing.assert_array_equal(found[0], masks[0])
    assert found.shape == masks.shape and object_ids(found[-1]) == object_ids(masks[0])
    assert len(object_ids(masks[0])) == 7
    for index in object_ids(masks[0]):
        assert region_similarity(masks[:1] == index, found[1:] == index).min() > 0.5


def test_what_is_known_of_a_clip_stays(make_pipe):
    """The second clip begins two frames before the end of the first, and says otherwise of them."""
    answers = iter((RepeatMarked, CopyVideo))

    class OneAfterTheOther(VideoGPTPipeline):
        def predict_clip(self, *args, **kwargs):
            return next(answers).predict_clip(self, *args, **kwargs)

    masks = moving_discs(CLIP + 2)
    found = segment_video(
        make_pipe(OneAfterTheOther), Marking((3, 8)).draw(masks), first_mask=masks[0], num_inference_steps=1
    )
    expected = np.concatenate([masks[:1].repeat(CLIP, axis=0), masks[CLIP:]])
    for index in (3, 8):
        assert region_similarity(expected == index, found == index).min() > 0.8


def test_lost_objects_stay_lost(make_pipe):
    masks = moving_discs(3 * CLIP)
    found = segment_video(make_pipe(CopyVideo), Marking(()).draw(masks), first_mask=masks[0], num_inference_steps=1)
    assert found[0].any() and not found[1:].any()


def test_the_model_is_asked_as_told(make_pipe):
    asked = []

    class Asked(RepeatMarked):
        def __call__(self, **arguments):
            asked.append(arguments)
            return super().__call__(**arguments)

    masks = moving_discs(CLIP + 1)
    settings = {"num_inference_steps": 3, "guidance_scale": 1.5, "generator": torch.Generator().manual_seed(0)}
    segment_video(make_pipe(Asked), Marking((3, 8)).draw(masks), first_mask=masks[0], **settings)
    expected = {"num_frames": CLIP, "frames_per_clip": CLIP, "max_context_frames": CLIP + 1} | settings
    assert [{name: arguments.get(name) for name in expected} for arguments in asked] == [expected] * 2


def test_with_a_network(make_pipe):
    """An untrained one: its answer depends on the seed, and names no object that was not given."""
    masks = moving_discs(6)
    frames, pipe = Marking((3, 8)).draw(masks), make_pipe()
    first, again, other = (
        segment_video(
            pipe, frames, first_mask=masks[0], num_inference_steps=2, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and set(np.unique(first)) <= {0, 3, 8}


def test_bad_input(make_pipe):
    pipe, masks = make_pipe(RepeatMarked), moving_discs(CLIP)
    frames = np.zeros((CLIP, 64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=r"uint8 \(64, 64\) as the frames, got uint8 \(32, 64\)"):
        segment_video(pipe, frames, first_mask=masks[0, :32])
    with pytest.raises(ValueError, match="marks no object"):
        segment_video(pipe, frames, first_mask=0 * masks[0])
    with pytest.raises(ValueError, match="has 3 frames, a clip 4: pass a lower `frames_per_clip`"):
        segment_video(pipe, frames[:3], first_mask=masks[0])
    with pytest.raises(ValueError, match="both `height` and `width`"):
        segment_video(pipe, frames, first_mask=masks[0], height=64)
    with pytest.raises(ValueError, match="divisible by 16, got 60"):
        segment_video(pipe, frames, first_mask=masks[0], height=60, width=64)


def test_loss_is_that_of_the_marked_clip(make_tiny_transformer):
    """Against the transformer's own default layout, sample by sample, with the draws in the order of their definition."""
    model = make_tiny_transformer()
    latents = torch.randn(2, 4, 2 * CLIP + 1, 8, 8, generator=torch.Generator().manual_seed(3))
    assert draw_segmentation_clips(2 * CLIP + 1) == [CLIP + 1, CLIP]
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    loss = next_clip_loss(
        model,
        latents,
        clip_lengths=[draw_segmentation_clips(2 * CLIP + 1)] * 2,
        generator=generators,
        noisy=VideoObjectSegmentationTraining.noisy,
        min_retention=0.8,
    )
    expected = []
    for sample, seed in zip(latents, (5, 6), strict=True):
        clean, marked = sample[:, : CLIP + 1], sample[:, CLIP + 1 :]
        g = torch.Generator().manual_seed(seed)
        alpha = torch.rand(1, generator=g)
        noisy = alpha * marked + (1 - alpha) * torch.randn(marked.shape, generator=g)
        kept = 0.8 + 0.2 * torch.rand(CLIP + 1, generator=g)[None, :, None, None]
        clean = kept * clean + (1 - kept) * torch.randn(clean.shape, generator=g)
        predicted = model(noisy[None], alpha, clean_hidden_states=clean[None]).sample[0]
        expected.append((predicted - marked).square().mean())
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.clean_patch_embed.parameters())
