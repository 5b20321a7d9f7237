"""A video as clips: their lengths, the layout of their tokens, and the hierarchical mask as one predicate.

Shapes: B samples, T tokens, F frames, P patch tokens in a frame (P = rows · columns of the patch grid).

Tokens lie in memory by stream, then by rank, then by frame:

    condition | clean: F begin tokens, F · P patches, F end tokens | noisy: F hint tokens, F time tokens, F · P patches

so that the patches, nearly all of the tokens, lie side by side, and the mask is a few large rectangles. The metadata of a
token say what it is (stream, clip, frame, rank), its position id says where it stands for RoPE. Neither depends on the
order in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from numbers import Integral
from typing import NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask


PADDING, CONDITION, CLEAN, NOISY = range(4)
TOKENS_AROUND_PATCHES = 2  # clean frame: begin, end; noisy frame: hint, time


def equal_clip_lengths(num_frames: int, frames_per_clip: int) -> list[int]:
    """Cuts `num_frames` into clips of `frames_per_clip` frames; the last one keeps the remainder.

    ```py
    >>> equal_clip_lengths(10, 4)
    [4, 4, 2]
    ```
    """
    if num_frames < 1 or frames_per_clip < 1:
        raise ValueError(
            f"`num_frames` and `frames_per_clip` must be at least 1, got {num_frames} and {frames_per_clip}."
        )
    whole, remainder = divmod(num_frames, frames_per_clip)
    return [frames_per_clip] * whole + ([remainder] if remainder else [])


def draw_clip_lengths(
    num_frames: int, generator: torch.Generator | None = None, *, max_clips: int | None = None
) -> list[int]:
    """Draws a random partition for training: K ~ U{2..N} clips, K − 1 distinct cuts among the N − 1 gaps (paper, §4.1).

    Args:
        num_frames: N, the number of frames of the video, at least 2.
        generator: a CPU generator; the default one of torch if `None`.
        max_clips: the largest K drawn, at least 2; N as in the paper if `None`. Fewer clips are longer ones.

    Returns:
        K lengths, each at least 1, whose sum is N.

    Raises:
        ValueError: if there are fewer than 2 frames, or `max_clips` is below 2.
    """
    if num_frames < 2:
        raise ValueError(f"A random partition needs at least 2 frames, got `num_frames`={num_frames}.")
    if max_clips is not None and max_clips < 2:
        raise ValueError(f"A random partition has at least 2 clips, got `max_clips`={max_clips}.")
    num_clips = int(torch.randint(2, min(num_frames, max_clips or num_frames) + 1, (), generator=generator))
    cuts = torch.randperm(num_frames - 1, generator=generator)[: num_clips - 1].sort().values + 1
    edges = [0, *cuts.tolist(), num_frames]
    return [end - start for start, end in zip(edges, edges[1:], strict=False)]


class TokenMeta(NamedTuple):
    """What tokens are: integer tensors of one broadcastable shape."""

    stream: torch.Tensor  # PADDING, CONDITION, CLEAN or NOISY
    clip: torch.Tensor  # index of the clip in its video
    frame: torch.Tensor  # index of the frame in its video
    rank: torch.Tensor  # clean: begin 0, patches 1, end 2; noisy: hint 0, time 1, patches 2


def attends(q: TokenMeta, k: TokenMeta) -> torch.Tensor:
    """The hierarchical mask (paper, §3.3; reference behaviour): whether token `q` attends to token `k`.

    A clean token sees the clean frames before its own and, in its own, the ranks up to its own. A noisy token sees the
    clean clips before its own and, in all frames of its own noisy clip, the ranks up to its own. Condition tokens see
    only each other and are seen by every token. Padding sees, and is seen by, only padding.

    Every other form of the mask (dense, block-sparse) is this function evaluated somewhere.
    """
    earlier_rank = k.rank <= q.rank
    clean_to_clean = (k.frame < q.frame) | ((k.frame == q.frame) & earlier_rank)
    noisy_to_clean = k.clip < q.clip
    noisy_to_noisy = (k.clip == q.clip) & earlier_rank
    return (
        ((k.stream == CONDITION) & (q.stream != PADDING))
        | ((k.stream == CLEAN) & (((q.stream == CLEAN) & clean_to_clean) | ((q.stream == NOISY) & noisy_to_clean)))
        | ((k.stream == NOISY) & (q.stream == NOISY) & noisy_to_noisy)
        | ((k.stream == PADDING) & (q.stream == PADDING))
    )


def count_pairs(layout: "ClipLayout", *, first_query: int = 0) -> int:
    """How many pairs of real tokens the mask lets through, over all samples; no (T, T) tensor is made.

    Tokens of one kind (stream, clip, frame, rank) see the same tokens: so the mask is evaluated once for each pair of kinds.

    Args:
        layout: the tokens.
        first_query: only tokens from here on look at others.
    """
    num_pairs = 0
    for meta in layout.meta_on_cpu.unbind(1):  # (4, T) of a sample
        stream, clip, frame, rank = meta.long()  # int16 each: together one number
        _, kind_of_token = (((stream << 16) + clip << 16) + frame << 16).add(rank).unique(return_inverse=True)
        kinds = meta.new_empty(4, int(kind_of_token.max()) + 1)
        kinds[:, kind_of_token] = meta
        num_keys, num_queries = (
            torch.bincount(kind_of_token[first:], minlength=kinds.shape[1]) for first in (0, first_query)
        )
        visible = attends(TokenMeta(*kinds[:, :, None]), TokenMeta(*kinds[:, None])) & (kinds[0] != PADDING)
        num_pairs += int(num_queries @ (visible * num_keys).sum(1))
    return num_pairs


@dataclass(frozen=True)
class ClipLayout:
    """The tokens of a batch: metadata, positions, and the masks made from them.

    Attributes:
        stream, rank (`torch.Tensor` of int8, (B, T)), clip, frame (`torch.Tensor` of int16, (B, T)): see [`TokenMeta`].
        position_ids (`torch.Tensor` of int64, (B, T)): positions for RoPE. Frame i of a video, clean or noisy, covers
            i (P + 2) … (i + 1)(P + 2) − 1; condition tokens count down to −1 in front of it.
        patch_grids: rows and columns of patches, one pair a sample; the batch is padded to the largest of each.
        num_condition_tokens, num_clean_frames, num_noisy_frames: what the batch holds, padding included.
        has_padding: whether some of it is padding.
    """

    stream: torch.Tensor
    clip: torch.Tensor
    frame: torch.Tensor
    rank: torch.Tensor
    position_ids: torch.Tensor
    patch_grids: tuple[tuple[int, int], ...]
    num_condition_tokens: int
    num_clean_frames: int
    num_noisy_frames: int
    has_padding: bool

    @property
    def batch_size(self) -> int:
        """Samples B."""
        return self.stream.shape[0]

    @property
    def num_tokens(self) -> int:
        """Tokens T of a sample, padding included."""
        return self.stream.shape[1]

    @property
    def padded_grid(self) -> tuple[int, int]:
        """Rows and columns of patches that every frame of the batch has, padding included."""
        return max(rows for rows, _ in self.patch_grids), max(columns for _, columns in self.patch_grids)

    @property
    def noisy_patch_mask(self) -> torch.Tensor:
        """Boolean (B, F, rows, columns): the noisy patches that are real, not padding."""
        patch_stream = self.stream[:, self.first_output :]
        return (patch_stream == NOISY).view(self.batch_size, self.num_noisy_frames, *self.padded_grid)

    @property
    def first_output(self) -> int:
        """Where the noisy patches begin: they are the last tokens, and all that is read of the network's output."""
        rows, columns = self.padded_grid
        return self.num_tokens - self.num_noisy_frames * rows * columns

    @property
    def num_outputs(self) -> int:
        """Noisy patches, padding included."""
        return self.num_tokens - self.first_output

    @property
    def has_one_clip(self) -> bool:
        """Whether all tokens are of one clip; taken to be so while a graph is traced, when their values are not known."""
        return torch.compiler.is_compiling() or bool((self.clip == self.clip[:, :1]).all())

    @cached_property
    def without_noisy_frames(self) -> "ClipLayout":
        """The layout of the conditions and clean frames alone, which stand before the noisy frames and see none of them."""
        num_noisy = self.num_noisy_frames * TOKENS_AROUND_PATCHES + self.num_outputs
        kept = {
            name: getattr(self, name)[:, : self.num_tokens - num_noisy] for name in ("stream", "clip", "frame", "rank")
        }
        position_ids = self.position_ids[:, : self.num_tokens - num_noisy]
        return self if not num_noisy else replace(self, **kept, position_ids=position_ids, num_noisy_frames=0)

    def check_inputs(self, passed: tuple[int, int, int, tuple[int, int]], batch_size: int) -> None:
        """
        Args:
            passed: condition tokens, clean frames, noisy frames and grid of patches (rows, columns) of what goes with the layout.
            batch_size: its samples.

        Raises:
            ValueError: this is the layout of something else.
        """
        described = (self.num_condition_tokens, self.num_clean_frames, self.num_noisy_frames, self.padded_grid)
        if described != passed or self.batch_size not in (1, batch_size):
            raise ValueError(
                "`clip_layout` describes other inputs: (condition tokens, clean frames, noisy frames, patch grid) are "
                f"{described} for {self.batch_size} samples in it, {passed} for {batch_size} in what was passed."
            )

    def to(self, device: torch.device | str) -> "ClipLayout":
        """The same layout on `device`; its masks are made anew there."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = ClipLayout(**{k: v.to(device) if torch.is_tensor(v) else v for k, v in values.items()})
        if not torch.compiler.is_compiling():
            moved.__dict__["meta_on_cpu"] = self.meta_on_cpu  # where `cached_property` looks for it
        return moved

    @property
    def dense_mask(self) -> torch.Tensor:
        """The mask as a boolean tensor (B, 1, T, T), `True` where the row's token attends to the column's."""
        meta = self.meta()
        return attends(TokenMeta(*(m[:, :, None] for m in meta)), TokenMeta(*(m[:, None, :] for m in meta)))[:, None]

    @cached_property
    def block_mask(self) -> BlockMask:
        """The mask for FlexAttention, made without a (T, T) tensor; see [`make_block_mask`]."""
        return make_block_mask(self)

    @cached_property
    def attention_tiles(self) -> "AttentionTiles":
        """The mask for attention on a CPU, made without a (T, T) tensor; see [`make_attention_tiles`]."""
        return make_attention_tiles(self)

    @cached_property
    def output_block_mask(self) -> BlockMask:
        """The rows of `block_mask` from `first_output` on, for the last layer."""
        return make_block_mask(self, first_query=self.first_output)

    @cached_property
    def output_attention_tiles(self) -> "AttentionTiles":
        """The rows of `attention_tiles` from `first_output` on, for the last layer."""
        return make_attention_tiles(self, first_query=self.first_output)

    def meta(self) -> TokenMeta:
        """The metadata of all tokens, each (B, T)."""
        return TokenMeta(self.stream, self.clip, self.frame, self.rank)

    @cached_property
    def meta_on_cpu(self) -> torch.Tensor:
        """The same as one int16 tensor (4, B, T) on the CPU, where sparse masks are made without waiting for a GPU."""
        return torch.stack([m.to("cpu", torch.int16) for m in self.meta()])


# `torch.export` takes a layout as an input of the network.
torch.export.register_dataclass(ClipLayout, serialized_type_name="diffusers_videogpt.ClipLayout")


def make_clip_layout(
    clip_lengths: Sequence[int] | Sequence[Sequence[int]],
    patch_grid: tuple[int, int] | Sequence[tuple[int, int]],
    *,
    clean: slice = slice(None, -1),
    noisy: slice = slice(None),
    condition_lengths: int | Sequence[int] = 0,
    device: torch.device | str = "cpu",
) -> ClipLayout:
    """Lays out the tokens of a batch of videos cut into clips.

    `clean` and `noisy` choose the clips that are present in each stream, so one function serves every use:

    | use | `clean` | `noisy` |
    |---|---|---|
    | training: NS(1), CL(1), …, NS(K) | all but the last | all |
    | sampling clip k + 1 after its history | all but the last | the last: `slice(-1, None)` |
    | encoding a history into a cache | all: `slice(None)` | none: `slice(0)` |
    | sampling with the history cached | none: `slice(0)` | the last |

    Args:
        clip_lengths: frames in each clip of the video, in order; one list for all samples, or one list a sample.
        patch_grid: rows and columns of patches in a frame, for all samples or one pair a sample. Smaller samples lie in
            the top-left corner of the padded frame.
        condition_lengths: number of class and text tokens in front, one number for all samples or one a sample.
        device: where the tensors are made.

    Returns:
        [`ClipLayout`] of B samples; B is the length of whichever argument is given per sample, else 1.

    Raises:
        ValueError: if a clip has no frame, or the per-sample arguments disagree in length.
    """
    if not len(clip_lengths):
        raise ValueError("`clip_lengths` is empty: a video has at least one clip.")
    per_sample_clips = [clip_lengths] if isinstance(clip_lengths[0], Integral) else list(clip_lengths)
    per_sample_grids = [patch_grid] if isinstance(patch_grid[0], int) else list(patch_grid)
    per_sample_conditions = [condition_lengths] if isinstance(condition_lengths, int) else list(condition_lengths)
    batch_size = max(len(per_sample_clips), len(per_sample_grids), len(per_sample_conditions))
    arguments = {
        "clip_lengths": per_sample_clips,
        "patch_grid": per_sample_grids,
        "condition_lengths": per_sample_conditions,
    }
    for name, values in arguments.items():
        if len(values) == 1:
            values *= batch_size
        elif len(values) != batch_size:
            raise ValueError(f"`{name}` is given for {len(values)} samples, other arguments for {batch_size}.")
    for lengths in per_sample_clips:
        if not len(lengths) or min(lengths) < 1:
            raise ValueError(f"Every clip needs at least one frame, got `clip_lengths`={list(lengths)}.")

    clips = [torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)]) for lengths in per_sample_clips]
    clean_frames = [_frames_of(c, clean) for c in per_sample_clips]
    noisy_frames = [_frames_of(c, noisy) for c in per_sample_clips]
    num_conditions = max(per_sample_conditions)
    num_clean, num_noisy = max(map(len, clean_frames)), max(map(len, noisy_frames))
    padded_grid = tuple(max(sizes) for sizes in zip(*per_sample_grids, strict=True))
    per_sample_sizes = [
        (condition, len(clean), len(noisy), *grid)
        for condition, clean, noisy, grid in zip(
            per_sample_conditions, clean_frames, noisy_frames, per_sample_grids, strict=True
        )
    ]

    samples = []
    for b in range(batch_size):
        condition = _condition_tokens(per_sample_conditions[b], num_conditions)
        places = {"clip_of_frame": clips[b], "grid": per_sample_grids[b], "padded_grid": padded_grid}
        clean_tokens = _frame_tokens(CLEAN, clean_frames[b], num_frames=num_clean, ranks=(0, 2, 1), **places)
        noisy_tokens = _frame_tokens(NOISY, noisy_frames[b], num_frames=num_noisy, ranks=(0, 1, 2), **places)
        samples.append(torch.cat([condition, clean_tokens, noisy_tokens], dim=1))
    tokens = torch.stack(samples, dim=1)
    stream, clip, frame, rank, position_ids = tokens
    layout = ClipLayout(
        stream=stream.to(torch.int8),
        clip=clip.to(torch.int16),
        frame=frame.to(torch.int16),
        rank=rank.to(torch.int8),
        position_ids=position_ids,
        patch_grids=tuple(tuple(grid) for grid in per_sample_grids),
        num_condition_tokens=num_conditions,
        num_clean_frames=num_clean,
        num_noisy_frames=num_noisy,
        # From the sizes, not from the tokens, whose values are not known while `torch.export` traces.
        has_padding=any(sizes != per_sample_sizes[0] for sizes in per_sample_sizes),
    )
    return layout if torch.device(device).type == "cpu" else layout.to(device)


def make_guidance_layout(
    clip_lengths: Sequence[Sequence[int]], patch_grid: tuple[int, int], *, device: torch.device | str = "cpu"
) -> ClipLayout:
    """Training's layout with every noisy clip a second time, alone: both predictions of guidance for all clips in one pass.

    The noisy stream has 2 N frames: those of a video of N, which see the clean clips before them, and the same once more, each
    clip seeing itself only. Nothing is padded for it, as a second batch of clips without a past would be.

    Args:
        clip_lengths: frames in each clip, one list a sample; all sum to N.
        patch_grid: rows and columns of patches in a frame.
        device: where the tensors are made.
    """
    once = make_clip_layout(clip_lengths, patch_grid)
    twice = make_clip_layout([[*lengths, *lengths] for lengths in clip_lengths], patch_grid, clean=slice(0))
    num_clips = torch.tensor([len(lengths) for lengths in clip_lengths])[:, None]
    is_alone = twice.clip >= num_clips
    # No clean clip has a number below 0, so these see none. What RoPE tells does not change when a whole clip moves.
    alone = {
        "clip": torch.where(is_alone, num_clips - 1 - twice.clip, twice.clip).to(torch.int16),
        "frame": torch.where(is_alone, twice.frame - once.num_noisy_frames, twice.frame).to(torch.int16),
        "position_ids": twice.position_ids - is_alone * (twice.num_tokens // 2),
    }
    num_clean = once.num_tokens - twice.num_tokens // 2
    tokens = {
        name: torch.cat([getattr(once, name)[:, :num_clean], alone.get(name, getattr(twice, name))], dim=1)
        for name in ("stream", "clip", "frame", "rank", "position_ids")
    }
    layout = replace(once, **tokens, num_noisy_frames=twice.num_noisy_frames)
    return layout if torch.device(device).type == "cpu" else layout.to(device)


def layout_after_history(
    num_past_frames: int,
    num_clean_frames: int,
    *,
    num_noisy_frames: int,
    patch_grid: tuple[int, int],
    condition_lengths: int | tuple[int, ...] = 0,
    num_with_past: int = 1,
    num_alone: int = 0,
    device: torch.device | str = "cpu",
) -> ClipLayout:
    """The layout of a prediction: frames that are cached as one clip, then clean frames as one, then noisy frames as one.

    All steps of a clip ask for the same one or two layouts, so the last few are kept and given again.

    Args:
        num_past_frames: frames that a cache holds; they only shift the positions.
        num_clean_frames, num_noisy_frames: the frames that are laid out.
        patch_grid: rows and columns of patches in a frame.
        condition_lengths: number of class and text tokens in front, one number for all samples or one a sample.
        num_with_past, num_alone: with `num_alone`, a batch for both passes of guidance: the noisy frames after what is
            cached in `num_with_past` samples, then the same frames with nothing before them in `num_alone` samples.
        device: where the tensors are made.
    """
    rest = {
        "num_noisy": num_noisy_frames,
        "patch_grid": patch_grid,
        "condition_lengths": condition_lengths,
        "num_with_past": num_with_past,
        "num_alone": num_alone,
        "device": device,
    }
    if torch.compiler.is_compiling():  # what is traced into a graph must not stay behind in the kept layouts
        return _make_layout_after_history(num_past_frames, num_clean_frames, **rest)
    rest["in_inference_mode"] = torch.is_inference_mode_enabled()
    return _kept_layout_after_history(num_past_frames, num_clean_frames, **rest)


@lru_cache(maxsize=4)
def _kept_layout_after_history(num_past: int, num_clean: int, *, in_inference_mode: bool, **rest) -> ClipLayout:
    """`in_inference_mode` keeps two kinds apart: a backward pass can't save tensors that were made in inference mode."""
    return _make_layout_after_history(num_past, num_clean, **rest)


def _make_layout_after_history(
    num_past, num_clean, *, num_noisy, patch_grid, condition_lengths, num_with_past, num_alone, device
) -> ClipLayout:
    if num_alone:
        clip_lengths = [[num_past, num_noisy]] * num_with_past + [[num_noisy]] * num_alone
        return make_clip_layout(clip_lengths, patch_grid, clean=slice(0), noisy=slice(-1, None), device=device)
    clip_lengths = [n for n in (num_past, num_clean, num_noisy) if n]
    first_clean, first_noisy = int(num_past > 0), len(clip_lengths) - int(num_noisy > 0)
    return make_clip_layout(
        clip_lengths,
        patch_grid,
        clean=slice(first_clean, first_noisy),
        noisy=slice(first_noisy, None),
        condition_lengths=condition_lengths,
        device=device,
    )


def _frames_of(clip_lengths: Sequence[int], clips: slice) -> range:
    """Indices of the frames in the chosen clips, which are consecutive."""
    first, last, _ = clips.indices(len(clip_lengths))
    return range(sum(clip_lengths[:first]), sum(clip_lengths[: max(first, last)]))


def _condition_tokens(length: int, padded_length: int) -> torch.Tensor:
    """(5, padded_length) rows of stream, clip, frame, rank, position."""
    tokens = torch.zeros(5, padded_length, dtype=torch.long)
    tokens[0, :length] = CONDITION
    tokens[4, :length] = torch.arange(-length, 0)
    return tokens


def _frame_tokens(
    stream: int,
    frames: range,
    *,
    num_frames: int,
    ranks: tuple[int, int, int],
    clip_of_frame: torch.Tensor,
    grid: tuple[int, int],
    padded_grid: tuple[int, int],
) -> torch.Tensor:
    """(5, num_frames · (P + 2)) rows of stream, clip, frame, rank, position of one stream of one sample.

    `ranks` are those of the first special token, the second special token and the patches. In memory the clean end token
    comes after the patches, the noisy time token before them: in both streams that is the order of ranks.
    """
    (rows, columns), (padded_rows, padded_columns) = grid, padded_grid
    frame_length = rows * columns + TOKENS_AROUND_PATCHES
    first_rank, second_rank, patch_rank = ranks

    # One frame: offset in its positions, or −1 for padding.
    patch_offset = torch.full((padded_rows, padded_columns), -1)
    patch_offset[:rows, :columns] = patch_rank + torch.arange(rows * columns).view(rows, columns)
    second_offset = frame_length - 1 if second_rank == 2 else 1
    by_rank = {first_rank: torch.tensor([0]), second_rank: torch.tensor([second_offset])}
    by_rank[patch_rank] = patch_offset.flatten()

    groups = []
    for rank in sorted(by_rank):
        offset = by_rank[rank].repeat(num_frames, 1)  # (num_frames, tokens of this rank)
        frame = torch.arange(num_frames)[:, None].expand_as(offset) + frames.start
        real = (offset >= 0) & (frame < frames.stop)
        clip = clip_of_frame[frame.clamp(max=len(clip_of_frame) - 1)]
        position = frame * frame_length + offset
        values = (torch.full_like(offset, stream), clip, frame, torch.full_like(offset, rank), position)
        groups.append(torch.stack([torch.where(real, value, 0).flatten() for value in values]))
    return torch.cat(groups, dim=1)


def make_block_mask(layout: ClipLayout, block_size: int = 128, *, first_query: int = 0) -> BlockMask:
    """The hierarchical mask as FlexAttention's `BlockMask`, made on the CPU and without ever making a (T, T) tensor.

    Neighbouring tokens with equal metadata form a run (a special token of one frame, or all its patches), so the
    predicate needs to be evaluated only between the R runs. With W (T / block_size, R) the number of tokens that a block
    has of a run, W A Wᵀ counts the attended pairs in each pair of blocks: none, some (partial block) or all (full block).

    Args:
        layout: the tokens.
        block_size: tokens along each side of a block.
        first_query: the tokens from here on are the rows of the mask.

    Returns:
        `BlockMask` of (B, 1, T − first_query, T) that any head may use.
    """
    meta, device = layout.meta_on_cpu, layout.stream.device
    num_tokens = layout.num_tokens
    starts_run = torch.ones(num_tokens, dtype=torch.bool)
    starts_run[1:] = (meta[:, :, 1:] != meta[:, :, :-1]).any(dim=(0, 1))
    run_of_token = starts_run.cumsum(0) - 1
    run_meta = meta[:, :, starts_run]  # (4, B, R)

    allowed = attends(TokenMeta(*run_meta[:, :, :, None]), TokenMeta(*run_meta[:, :, None, :])).float()  # (B, R, R)
    keys = _tokens_in_blocks(run_of_token, run_meta.shape[-1], block_size=block_size)
    queries = _tokens_in_blocks(run_of_token[first_query:], run_meta.shape[-1], block_size=block_size)
    attended = queries @ allowed @ keys.T  # (B, query blocks, key blocks), exact below 2^24
    num_keys = keys.sum(1)
    full = attended == queries.sum(1)[:, None] * num_keys
    # The kernel masks keys past the end only in partial blocks.
    full &= (num_keys == block_size)[None, None, :]
    partial = (attended > 0) & ~full

    # Only tensors change from layout to layout: a compiled kernel fits all partitions into clips.
    # Whole copies, not views: the compiler also looks at the size of the tensor behind a view and at the strides of a copy that
    # kept them, and would make one kernel for all rows and another for the rows of the outputs.
    keys_meta, whole = meta.to(device), torch.contiguous_format
    key_stream, key_clip, key_frame, key_rank = (x.clone(memory_format=whole) for x in keys_meta)
    query_stream, query_clip, query_frame, query_rank = (
        x.clone(memory_format=whole) for x in keys_meta[:, :, first_query:]
    )
    is_per_sample = layout.batch_size > 1  # the layout of one sample serves a whole batch

    def mask_mod(b, h, q, k):
        b = b * is_per_sample
        return attends(
            TokenMeta(query_stream[b, q], query_clip[b, q], query_frame[b, q], query_rank[b, q]),
            TokenMeta(key_stream[b, k], key_clip[b, k], key_frame[b, k], key_rank[b, k]),
        )

    return BlockMask.from_kv_blocks(
        *(x.to(device) for x in (*_ordered_blocks(partial), *_ordered_blocks(full))),
        BLOCK_SIZE=block_size,
        mask_mod=mask_mod,
        seq_lengths=(num_tokens - first_query, num_tokens),
    )


def _tokens_in_blocks(run_of_token: torch.Tensor, num_runs: int, *, block_size: int) -> torch.Tensor:
    """(T,) run of each token → (blocks, R) how many tokens of each run a block has."""
    block_of_token = torch.arange(len(run_of_token)) // block_size
    counts = torch.zeros(-(-len(run_of_token) // block_size), num_runs)
    return counts.index_put_((block_of_token, run_of_token), counts.new_ones(()), accumulate=True)


def _ordered_blocks(present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Boolean (B, blocks, blocks) → for each row of blocks, how many are present and their indices first."""
    counts = present.sum(-1, dtype=torch.int32)
    indices = present.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts[:, None], indices[:, None]


@dataclass(frozen=True)
class AttentionTiles:
    """The hierarchical mask of a batch as tiles, rectangles of tokens that attend and tokens that they attend to.

    A run of clean frames against all the frames before it, and a noisy clip against its history, are full rectangles, so
    they need no mask; what remains, the frames of a run against themselves and noisy clips of few tokens, is small.

    Attributes:
        plan (`torch.Tensor` of int32, on the CPU): the tiles one after another, each as: sample (−1 for all), where in
            `masks` its mask starts (−1: it has none), number of query ranges, number of key ranges, and the ranges' starts
            and ends. Tiles of the same queries follow each other.
        masks (boolean `torch.Tensor`, on the CPU): the masks one after another, row by row; equal ones are there once.
    """

    plan: torch.Tensor
    masks: torch.Tensor


def make_attention_tiles(layout: ClipLayout, tile_size: int = 512, *, first_query: int = 0) -> AttentionTiles:
    """Cuts the mask of `layout` into tiles.

    Args:
        layout: the tokens; padding is in no tile, and its rows come out as zero.
        tile_size: clean frames are taken together until they have this many tokens. Larger tiles are fewer calls and
            more masked pairs.
        first_query: 0, or `layout.first_output`: the tokens from here on are the queries, counted from 0.
    """
    meta = layout.meta_on_cpu
    same_for_all = bool((meta == meta[:, :1]).all())
    plan, masks = [], {}  # the masks by what they hold: (where it starts, the mask)
    num_pairs = 0
    for sample in range(1 if same_for_all else layout.batch_size):
        tokens = meta[:, sample]
        for queries, keys, is_masked in _tiles(TokenMeta(*tokens), tile_size, first_query=first_query):
            mask_start = -1
            if is_masked:
                mask = _mask_of_tile(tokens, queries, keys=keys)
                mask_start, known = masks.setdefault(mask.numpy().tobytes(), (num_pairs, mask))
                num_pairs += len(mask) if known is mask else 0
            queries = [(start - first_query, end - first_query) for start, end in queries]
            plan += [-1 if same_for_all else sample, mask_start, len(queries), len(keys)]
            plan += [edge for token_range in queries + keys for edge in token_range]
    masks = [mask for _, mask in masks.values()] or [torch.zeros(0, dtype=torch.bool)]
    tiles = AttentionTiles(torch.tensor(plan, dtype=torch.int32), torch.cat(masks))
    for x in (tiles.plan, tiles.masks):  # their lengths vary: a compiler need not find that out, and makes one graph
        torch._dynamo.maybe_mark_dynamic(x, 0)
    return tiles


def _mask_of_tile(
    tokens: torch.Tensor, queries: list[tuple[int, int]], *, keys: list[tuple[int, int]]
) -> torch.Tensor:
    """Boolean (pairs,), row by row, for the metadata (4, T) of one sample's tokens."""
    rows, columns = (torch.cat([tokens[:, start:end] for start, end in side], dim=1) for side in (queries, keys))
    return attends(TokenMeta(*rows[:, :, None]), TokenMeta(*columns[:, None])).flatten()


# Noisy clips that have so few queries together are one masked tile: a call costs more than the pairs that it could leave out.
_FEW_QUERIES = 128


def _tiles(meta: TokenMeta, tile_size: int, *, first_query: int):
    """(query ranges, key ranges, is masked) of every tile of one sample; each pair that attends is in exactly one."""
    condition, clean, noisy = (meta.stream == stream for stream in (CONDITION, CLEAN, NOISY))
    if first_query == 0:
        if condition.any():
            yield _ranges(condition), _ranges(condition), False
        frames = meta.frame[clean].unique().tolist()
        tokens_per_frame = int(clean.sum()) // max(len(frames), 1)
        frames_per_tile = max(tile_size // max(tokens_per_frame, 1), 1)
        for first in range(0, len(frames), frames_per_tile):
            start, last = frames[first], frames[min(first + frames_per_tile, len(frames)) - 1]
            here = _ranges(clean & (meta.frame >= start) & (meta.frame <= last))
            past = condition | (clean & (meta.frame < start))
            if past.any():
                yield here, _ranges(past), False
            yield here, here, True

    is_query = torch.arange(len(noisy)) >= first_query
    for clips in _groups_of_few(*meta.clip[noisy & is_query].unique(return_counts=True)):
        here = noisy & torch.isin(meta.clip, clips)
        seen = here | condition | (clean & (meta.clip < clips.max()))
        queries = here & is_query
        patches = queries & (meta.rank == meta.rank[here].max())  # they see all that their clip may see
        special = queries & ~patches
        if len(clips) > 1 or (special.any() and queries.sum() <= _FEW_QUERIES):
            yield _ranges(queries), _ranges(seen), True
            continue
        if special.any():
            yield _ranges(special), _ranges(seen & ~patches), True
        yield _ranges(patches), _ranges(seen), False


def _groups_of_few(clips: torch.Tensor, num_queries: torch.Tensor) -> Iterator[torch.Tensor]:
    """The clips in order, taken together as long as their queries are few."""
    first, total = 0, 0
    for i, number in enumerate(num_queries.tolist()):
        if i > first and total + number > _FEW_QUERIES:
            yield clips[first:i]
            first, total = i, 0
        total += number
    if first < len(clips):
        yield clips[first:]


def _ranges(selected: torch.Tensor) -> list[tuple[int, int]]:
    """The runs of `True` in a boolean (T,): [start, end)."""
    edges = torch.diff(selected.int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero()[:, 0].tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
