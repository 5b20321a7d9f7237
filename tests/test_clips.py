"""Clips, their tokens, and the hierarchical mask, against a slow restatement with loops over tokens."""

import random
from typing import NamedTuple

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusers_videogpt.clips import (
    PADDING,
    ClipLayout,
    count_pairs,
    draw_clip_lengths,
    equal_clip_lengths,
    make_block_mask,
    make_clip_layout,
)


# The `clean` and `noisy` clips in each use of a layout.
TRAINING = (slice(None, -1), slice(None))
SAMPLING = (slice(None, -1), slice(-1, None))
ENCODING = (slice(None), slice(0))
SAMPLING_CACHED = (slice(0), slice(-1, None))
USES = (TRAINING, SAMPLING, ENCODING, SAMPLING_CACHED)
SEEDS = range(12)


class Token(NamedTuple):
    stream: str
    clip: int
    frame: int
    rank: int
    position: int


class Sample(NamedTuple):
    clip_lengths: list[int]
    grid: tuple[int, int]
    num_conditions: int


def sees(q: Token, k: Token) -> bool:
    """The table of the hierarchical mask, one pair of tokens at a time."""
    if q.stream == "padding" or k.stream == "padding":
        return q.stream == k.stream
    if k.stream == "condition":
        return True
    if q.stream == "condition":
        return False
    if q.stream == "clean" and k.stream == "clean":
        return k.frame < q.frame or (k.frame == q.frame and k.rank <= q.rank)
    if q.stream == "clean" and k.stream == "noisy":
        return False
    if q.stream == "noisy" and k.stream == "clean":
        return k.clip < q.clip
    return k.clip == q.clip and k.rank <= q.rank


def expected_tokens(sample: Sample, clean: slice, noisy: slice) -> list[Token]:
    """All tokens of a sample, clip by clip as the paper lines them up."""
    (rows, columns), num_clips = sample.grid, len(sample.clip_lengths)
    num_patches = rows * columns
    noisy_ranks = [0, 1] + [2] * num_patches  # hint, time, patches
    clean_ranks = [0] + [1] * num_patches + [2]  # begin, patches, end
    tokens = [Token("condition", 0, 0, 0, i - sample.num_conditions) for i in range(sample.num_conditions)]
    first_frame = 0
    for clip, length in enumerate(sample.clip_lengths):
        for stream, present, ranks in (("noisy", noisy, noisy_ranks), ("clean", clean, clean_ranks)):
            if clip in range(num_clips)[present]:
                for frame in range(first_frame, first_frame + length):
                    start = frame * (num_patches + 2)
                    tokens += [Token(stream, clip, frame, rank, start + i) for i, rank in enumerate(ranks)]
        first_frame += length
    return tokens


def tokens_of(layout: ClipLayout, sample: int) -> list[Token]:
    """The tokens of one sample of a layout, in memory's order."""
    names = ("padding", "condition", "clean", "noisy")
    columns = [x[sample].tolist() for x in (*layout.meta(), layout.position_ids)]
    return [Token(names[stream], *numbers) for stream, *numbers in zip(*columns, strict=True)]


def make_layout(samples: list[Sample], use: tuple[slice, slice]) -> ClipLayout:
    clip_lengths, grids, num_conditions = (list(column) for column in zip(*samples, strict=True))
    clean, noisy = use
    return make_clip_layout(clip_lengths, grids, clean=clean, noisy=noisy, condition_lengths=num_conditions)


def random_batch(seed: int) -> tuple[list[Sample], tuple[slice, slice]]:
    """One to three samples with clips, grids and conditions of their own, and a use."""
    rng = random.Random(seed)
    samples = [
        Sample(
            clip_lengths=[rng.randint(1, 3) for _ in range(rng.randint(1, 4))],
            grid=(rng.randint(1, 3), rng.randint(1, 3)),
            num_conditions=rng.randint(0, 3),
        )
        for _ in range(rng.randint(1, 3))
    ]
    return samples, USES[seed % len(USES)]


# Clip lengths


@pytest.mark.parametrize("num_frames", [2, 3, 8, 80])
def test_drawn_lengths_are_a_partition(num_frames):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        lengths = draw_clip_lengths(num_frames, generator)
        assert sum(lengths) == num_frames
        assert min(lengths) >= 1
        assert 2 <= len(lengths) <= num_frames


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_number_of_clips_and_place_of_cuts_are_uniform():
    num_frames, num_draws = 8, 3000
    generator = torch.Generator().manual_seed(0)
    of_number, of_cut = [0] * (num_frames + 1), [0] * num_frames
    for _ in range(num_draws):
        lengths = draw_clip_lengths(num_frames, generator)
        of_number[len(lengths)] += 1
        for clip in range(1, len(lengths)):
            of_cut[sum(lengths[:clip])] += 1

    assert min(of_number[2:]) > 0
    # 6 degrees of freedom each; 22.5 is exceeded once in a thousand seeds. Cuts of one draw exclude each other, which
    # only makes their counts more even.
    assert chi_square(of_number[2:]) < 22.5
    assert chi_square(of_cut[1:]) < 22.5


def test_drawing_follows_the_generator():
    first, again, other = (
        [draw_clip_lengths(20, generator) for _ in range(5)]
        for generator in (torch.Generator().manual_seed(seed) for seed in (1, 1, 2))
    )
    assert first == again != other


def test_at_most_so_many_clips_are_drawn():
    generator = torch.Generator().manual_seed(0)
    assert {len(draw_clip_lengths(9, generator, max_clips=3)) for _ in range(50)} == {2, 3}
    assert {len(draw_clip_lengths(3, generator, max_clips=8)) for _ in range(50)} == {2, 3}


@pytest.mark.parametrize(
    ("num_frames", "frames_per_clip", "expected"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 16, [3]), (3, 1, [1, 1, 1])],
)
def test_equal_lengths(num_frames, frames_per_clip, expected):
    assert equal_clip_lengths(num_frames, frames_per_clip) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: draw_clip_lengths(1), "at least 2 frames, got `num_frames`=1"),
        (lambda: draw_clip_lengths(9, max_clips=1), "at least 2 clips, got `max_clips`=1"),
        (lambda: equal_clip_lengths(0, 4), "`num_frames` and `frames_per_clip` must be at least 1, got 0 and 4"),
        (lambda: equal_clip_lengths(4, 0), "must be at least 1, got 4 and 0"),
        (lambda: make_clip_layout([], (2, 3)), "`clip_lengths` is empty"),
        (lambda: make_clip_layout([[1], []], (2, 3)), r"at least one frame, got `clip_lengths`=\[\]"),
        (lambda: make_clip_layout([2, 0], (2, 3)), r"at least one frame, got `clip_lengths`=\[2, 0\]"),
        (
            lambda: make_clip_layout([[1], [1], [1]], [(2, 3), (2, 2)]),
            "`patch_grid` is given for 2 samples, other arguments for 3",
        ),
        (
            lambda: make_clip_layout([[1], [1]], (2, 3), condition_lengths=[1, 2, 3]),
            "`clip_lengths` is given for 2 samples, other arguments for 3",
        ),
    ],
)
def test_bad_lengths(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Tokens


@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_and_positions(seed):
    samples, use = random_batch(seed)
    layout = make_layout(samples, use)

    padded = [[token for token in tokens_of(layout, b) if token.stream == "padding"] for b in range(len(samples))]
    for b, sample in enumerate(samples):
        real = [token for token in tokens_of(layout, b) if token.stream != "padding"]
        assert sorted(real) == sorted(expected_tokens(sample, *use))
    assert layout.has_padding == any(padded)
    assert layout.batch_size == len(samples)


def test_order_in_memory():
    layout = make_clip_layout([1, 2], (1, 2), clean=slice(-1), noisy=slice(1, None), condition_lengths=2)

    # P = 2: conditions | begin, patches, end of frame 0 | hints, times, patches of frames 1 and 2
    assert layout.position_ids.tolist() == [[-2, -1] + [0, 1, 2, 3] + [4, 8, 5, 9, 6, 7, 10, 11]]
    assert layout.rank.tolist() == [[0, 0] + [0, 1, 1, 2] + [0, 0, 1, 1, 2, 2, 2, 2]]
    assert layout.frame.tolist() == [[0, 0] + [0, 0, 0, 0] + [1, 2, 1, 2, 1, 1, 2, 2]]


def test_noisy_frame_shares_the_positions_of_its_clean_copy():
    tokens = tokens_of(make_clip_layout([2, 1, 1], (2, 3)), 0)

    for frame in range(3):
        clean, noisy = (
            sorted(token.position for token in tokens if (token.stream, token.frame) == (stream, frame))
            for stream in ("clean", "noisy")
        )
        assert clean == noisy == list(range(frame * 8, frame * 8 + 8))


def test_noisy_patch_mask():
    layout = make_clip_layout([[1, 1], [1]], [(1, 3), (2, 2)])

    assert layout.padded_grid == (2, 3)
    wide, tall, absent = [[True] * 3, [False] * 3], [[True, True, False]] * 2, [[False] * 3] * 2
    assert layout.noisy_patch_mask.tolist() == [[wide, wide], [tall, absent]]


def test_one_argument_for_all_samples():
    layout = make_clip_layout([2, 1], (1, 2), condition_lengths=[1, 0])
    alone = make_clip_layout([2, 1], (1, 2), condition_lengths=1)

    assert layout.patch_grids == ((1, 2), (1, 2))
    assert tokens_of(layout, 0) == tokens_of(alone, 0)


@pytest.mark.parametrize("differing", [{"clip_lengths": [[2, 1], [1, 2]]}, {"condition_lengths": [2, 0]}])
def test_what_differs_between_samples_is_padded(differing):
    layout = make_clip_layout(**({"clip_lengths": [1, 2], "patch_grid": (2, 2)} | differing))
    assert layout.has_padding


def test_more_clips_and_frames_than_a_byte_counts():
    layout = make_clip_layout([1] * 300, (1, 1))
    assert layout.clip.max() == layout.frame.max() == 299


def test_layout_is_made_where_it_is_asked_for():
    layout = make_clip_layout([1, 2], (1, 2), device="meta")
    assert {x.device.type for x in (*layout.meta(), layout.position_ids)} == {"meta"}


def test_layout_moves_between_devices():
    layout = make_clip_layout([1, 1], (2, 3))
    moved = layout.to("meta")

    assert {x.device.type for x in (*moved.meta(), moved.position_ids)} == {"meta"}
    assert moved.dense_mask.shape == layout.dense_mask.shape
    assert (moved.padded_grid, moved.num_clean_frames, moved.num_noisy_frames) == ((2, 3), 1, 2)


# The mask


@pytest.mark.parametrize("seed", SEEDS)
def test_dense_mask(seed):
    layout = make_layout(*random_batch(seed))

    for b in range(layout.batch_size):
        tokens = tokens_of(layout, b)
        assert layout.dense_mask[b, 0].tolist() == [[sees(q, k) for k in tokens] for q in tokens]


def test_dense_mask_has_every_kind_of_pair():
    """The loops above would prove little if a kind of pair never came up."""
    pairs = set()
    for seed in SEEDS:
        layout = make_layout(*random_batch(seed))
        for b in range(layout.batch_size):
            streams = {token.stream for token in tokens_of(layout, b)}
            pairs |= {(q, k) for q in streams for k in streams}
    assert len(pairs) == 16


@pytest.mark.parametrize("seed", SEEDS)
def test_padding_and_real_tokens_do_not_see_each_other(seed):
    layout = make_layout(*random_batch(seed))
    is_padding = layout.stream == PADDING

    mask = layout.dense_mask[:, 0]
    assert not mask[is_padding[:, :, None] & ~is_padding[:, None, :]].any()
    assert not mask[~is_padding[:, :, None] & is_padding[:, None, :]].any()
    assert mask.any(-1).all()  # a row that sees nothing would be NaN


def assert_block_mask_is(block_mask: BlockMask, layout: ClipLayout, first_query: int = 0) -> None:
    num_keys, (block_size, _) = layout.num_tokens, block_mask.BLOCK_SIZE
    batch_size, dense_mask = layout.batch_size, layout.dense_mask[:, :, first_query:]
    sizes = (batch_size, 1, num_keys - first_query, num_keys)
    slow = create_block_mask(block_mask.mask_mod, *sizes, device="cpu", BLOCK_SIZE=block_size)

    assert torch.equal(create_mask(block_mask.mask_mod, *sizes, device="cpu"), dense_mask)
    assert torch.equal(block_mask.to_dense(), slow.to_dense())
    starts = range(0, num_keys, block_size)
    for b in range(batch_size):
        for row, q in enumerate(range(0, num_keys - first_query, block_size)):
            full = block_mask.full_kv_indices[b, 0, row, : block_mask.full_kv_num_blocks[b, 0, row]].tolist()
            partial = block_mask.kv_indices[b, 0, row, : block_mask.kv_num_blocks[b, 0, row]].tolist()
            assert not set(full) & set(partial)
            for column, k in enumerate(starts):
                block = dense_mask[b, 0, q : q + block_size, k : k + block_size]
                assert (column in full) == bool(block.all() and block.shape[1] == block_size)


@pytest.mark.parametrize("seed", SEEDS)
def test_block_mask_of_small_blocks(seed):
    layout = make_layout(*random_batch(seed))
    assert_block_mask_is(make_block_mask(layout, block_size=8), layout)
    if layout.num_noisy_frames:
        assert_block_mask_is(make_block_mask(layout, 8, first_query=layout.first_output), layout, layout.first_output)


def test_block_mask_of_default_blocks():
    layout = make_clip_layout([[1, 2, 2], [4]], [(8, 10), (6, 12)], condition_lengths=[3, 0])
    assert layout.block_mask.full_kv_num_blocks.sum() > 0
    assert_block_mask_is(layout.block_mask, layout)
    assert_block_mask_is(layout.output_block_mask, layout, layout.first_output)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(output) if torch.is_tensor(leaf)]
        self.numel = max([self.numel, *(tensor.numel() for tensor in tensors)])
        return output


@pytest.mark.parametrize("clip_lengths", [[1] * 80, [16] * 5])
def test_block_mask_of_a_full_window_is_small(clip_lengths):
    """80 frames of 320 × 176 pixels: 220 patches each."""
    layout = make_clip_layout(clip_lengths, (11, 20))
    assert layout.num_tokens > 30_000

    with LargestTensor() as largest:
        block_mask = layout.block_mask

    assert largest.numel < layout.num_tokens**2 / 500
    captured = [cell.cell_contents for cell in block_mask.mask_mod.__closure__]
    tensors = [t for t in (*layout.meta(), *block_mask.as_tuple(), *captured) if torch.is_tensor(t)]
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors
    }  # several are views of one
    assert sum(storages.values()) <= 2 * 2**20


# The mask in the network


def test_padded_batch_gives_each_sample_what_it_gives_alone(make_tiny_transformer):
    model = make_tiny_transformer(text_embed_dim=6)
    samples = [Sample([1, 2, 1], (2, 3), 3), Sample([2, 1], (3, 2), 0), Sample([1], (1, 1), 1)]
    generator = torch.Generator().manual_seed(0)
    # Padding holds loud nonsense, as nothing real may notice it.
    noisy, clean, text = (
        100 * torch.randn(*shape, generator=generator) for shape in ((3, 4, 4, 6, 6), (3, 4, 3, 6, 6), (3, 3, 6))
    )
    timestep = torch.rand(3, 4, generator=generator)
    alone = []
    for b, (clip_lengths, (rows, columns), num_conditions) in enumerate(samples):
        num_noisy, num_clean = sum(clip_lengths), sum(clip_lengths[:-1])
        height, width = 2 * rows, 2 * columns
        own_noisy, own_clean, own_text = (
            torch.randn(1, *shape, generator=generator)
            for shape in ((4, num_noisy, height, width), (4, num_clean, height, width), (num_conditions, 6))
        )
        noisy[b, :, :num_noisy, :height, :width] = own_noisy
        clean[b, :, :num_clean, :height, :width] = own_clean
        text[b, :num_conditions] = own_text
        with torch.no_grad():
            output = model(
                own_noisy,
                timestep[b : b + 1, :num_noisy],
                own_clean if num_clean else None,
                clip_layout=make_clip_layout([clip_lengths], (rows, columns), condition_lengths=num_conditions),
                encoder_hidden_states=own_text if num_conditions else None,
            )
        alone.append(output.sample[0])

    layout = make_layout(samples, TRAINING)
    noisy.requires_grad_()
    together = model(noisy, timestep, clean, clip_layout=layout, encoder_hidden_states=text).sample

    for output, expected in zip(together, alone, strict=True):
        _, frames, height, width = expected.shape
        torch.testing.assert_close(output[:, :frames, :height, :width], expected, atol=1e-5, rtol=0)
    real = layout.noisy_patch_mask.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)[:, None]
    together.masked_select(real).square().sum().backward()
    gradient = noisy.grad.abs().amax(1, keepdim=True)
    assert (gradient[real] > 0).all()
    assert (gradient[~real] == 0).all()


@pytest.mark.parametrize("clean, noisy", USES)
def test_pairs_that_the_mask_lets_through(clean, noisy):
    streams = {"clean": clean, "noisy": noisy}
    for layout in (
        make_clip_layout([1, 3, 2], (2, 3), **streams),
        make_clip_layout([[2, 1, 3], [1, 1]], [(2, 3), (3, 1)], condition_lengths=(4, 2), **streams),
    ):
        is_real = layout.stream != PADDING
        pairs = layout.dense_mask[:, 0] & is_real[:, :, None]
        assert count_pairs(layout) == pairs.sum()
        assert count_pairs(layout, first_query=layout.first_output) == pairs[:, layout.first_output :].sum()
