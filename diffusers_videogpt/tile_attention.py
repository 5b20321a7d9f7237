"""Exact attention under the hierarchical mask on a CPU, computing only what the mask lets through.

The mask comes cut into tiles ([`~clips.AttentionTiles`]), nearly all of which are full and need no mask. A row's tiles are
computed one after another and merged by their log-sum-exp. Nothing of size T × T is ever made.

Shapes: B samples, T tokens, N heads of K channels.
"""

from itertools import groupby

import torch

from .clips import AttentionTiles


Ranges = list[tuple[int, int]]  # of tokens, [start, end)


def tile_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, tiles: AttentionTiles
) -> torch.Tensor:
    """softmax(Q Kᵀ / √K + mask) V for (B, T, N, K) tensors on a CPU, with gradients; the shape and dtype of `query`.

    Queries may be fewer than keys: the last tokens, where the tiles were made for those. Half-precision inputs are computed
    in fp32, where attention on a CPU is faster, its backward pass most of all.

    It is one operator to `torch.compile`, which does not look into the tiles: a new partition is no new graph.
    """
    return _tile_attention(query, key, value, tiles.plan, tiles.masks)[0]


def _rows_of_tiles(plan: torch.Tensor, masks: torch.Tensor, *, dtype: torch.dtype):
    """For each row: (samples, query ranges), and its tiles: (key ranges, additive mask (queries, keys) or `None`)."""

    def read():
        numbers, at = plan.tolist(), 0
        while at < len(numbers):
            sample, mask_start, num_queries, num_keys = numbers[at : at + 4]
            edges = numbers[at + 4 : at + 4 + 2 * (num_queries + num_keys)]
            at += 4 + len(edges)
            ranges = list(zip(edges[::2], edges[1::2], strict=True))
            queries, keys, mask = ranges[:num_queries], ranges[num_queries:], None
            if mask_start >= 0:
                shape = [sum(end - start for start, end in side) for side in (queries, keys)]
                sees = masks[mask_start : mask_start + shape[0] * shape[1]].view(shape)
                mask = torch.zeros(shape, dtype=dtype).masked_fill_(~sees, -torch.inf)
            yield (sample, queries), keys, mask

    for (sample, queries), tiles in groupby(read(), key=lambda tile: tile[0]):
        samples = slice(None) if sample < 0 else slice(sample, sample + 1)
        yield samples, queries, [tile[1:] for tile in tiles]


def _take(x: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """The tokens in `ranges` of (B, T, N, K), as (B, N, T, K); or of (B, T, N), as (B, N, T)."""
    parts = [x[:, start:end] for start, end in ranges]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).transpose(1, 2)


def _put(target: torch.Tensor, ranges: Ranges, *, taken: torch.Tensor, write=torch.Tensor.copy_) -> None:
    """Back to where [`_take`] took it."""
    for (start, end), part in zip(ranges, taken.split([end - start for start, end in ranges], dim=2), strict=True):
        write(target[:, start:end], part.transpose(1, 2))


@torch.library.custom_op("videogpt::tile_attention", mutates_args=(), device_types="cpu")
def _tile_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: torch.Tensor, masks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, T, N, K), and log-sum-exp (B, T, N) in at least fp32."""
    dtype, precision = query.dtype, torch.promote_types(query.dtype, torch.float32)
    query, key, value = (x.to(precision) for x in (query, key, value))
    output = torch.zeros(query.shape, dtype=precision)
    lse = torch.full(query.shape[:3], -torch.inf, dtype=precision)
    for samples, queries, tiles in _rows_of_tiles(plan, masks, dtype=precision):
        q, row = _take(query[samples], queries), None
        for keys, mask in tiles:
            tile = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, _take(key[samples], keys), _take(value[samples], keys), attn_mask=mask
            )
            row = tile if row is None else _merged(row, tile)
        _put(output[samples], queries, taken=row[0])
        _put(lse[samples], queries, taken=row[1])
    return output.to(dtype), lse


def _merged(first, second):
    """Attention to the keys of both tiles, from (output, log-sum-exp) of each."""
    lse = torch.logaddexp(first[1], second[1])
    shares = [(x[1] - lse).exp_()[..., None] for x in (first, second)]
    return (first[0] * shares[0]).addcmul_(second[0], shares[1]), lse


@torch.library.custom_op("videogpt::tile_attention_backward", mutates_args=(), device_types="cpu")
def _tile_attention_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    plan: torch.Tensor,
    masks: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each tile's share of the gradients: with the whole row's output and log-sum-exp, the shares add up."""
    dtype, precision = query.dtype, lse.dtype
    grad_output, query, key, value, output = (x.to(precision) for x in (grad_output, query, key, value, output))
    grads = [torch.zeros(x.shape, dtype=precision) for x in (query, key, value)]
    for samples, queries, tiles in _rows_of_tiles(plan, masks, dtype=precision):
        grad, q, out, total = (_take(x[samples], queries) for x in (grad_output, query, output, lse))
        for keys, mask in tiles:
            k, v = (_take(x[samples], keys) for x in (key, value))
            shares = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, q, k, v, out, total, 0.0, False, attn_mask=mask
            )
            for whole, ranges, share in zip(grads, (queries, keys, keys), shares, strict=True):
                _put(whole[samples], ranges, taken=share, write=torch.Tensor.add_)
    return tuple(grad.to(dtype) for grad in grads)


@_tile_attention.register_fake
def _(query, key, value, plan, masks):
    precision = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=precision)


@_tile_attention_backward.register_fake
def _(grad_output, query, key, value, output, lse, plan, masks):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _setup_context(ctx, inputs, output):
    query, key, value, plan, masks = inputs
    ctx.save_for_backward(query, key, value, *output, plan, masks)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad_output, _):
    return *_tile_attention_backward(grad_output, *ctx.saved_tensors), None, None


_tile_attention.register_autograd(_backward, setup_context=_setup_context)
