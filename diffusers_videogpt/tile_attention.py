"""Exact attention under the hierarchical mask on a CPU, computing only what the mask lets through.

The mask comes cut into tiles ([`~clips.AttentionTiles`]), nearly all of which are full and need no mask. A row's tiles are
computed one after another and merged by their log-sum-exp. Nothing of size T × T is ever made.

Shapes: B samples, T tokens, N heads of K channels.
"""

import torch

from .clips import AttentionTiles, TokenMeta, attends


Ranges = list[tuple[int, int]]  # of tokens, [start, end)


def tile_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, tiles: AttentionTiles
) -> torch.Tensor:
    """softmax(Q Kᵀ / √K + mask) V for (B, T, N, K) tensors on a CPU, with gradients; the shape and dtype of `query`.

    Queries may be fewer than keys: the last tokens, where the tiles were made for those. Half-precision inputs are computed
    in fp32, where attention on a CPU is faster, its backward pass most of all.

    It is one operator to `torch.compile`, which does not look into the tiles: a new partition is no new graph.
    """
    return _tile_attention(query, key, value, tiles.plan, tiles.meta)[0]


def _read_plan(plan: torch.Tensor, meta: torch.Tensor):
    """(samples, query ranges, key ranges, boolean mask (B or 1, 1, queries, keys) or None) of every tile."""
    numbers, at = plan.tolist(), 0
    while at < len(numbers):
        sample, is_masked, num_queries, num_keys = numbers[at : at + 4]
        edges = numbers[at + 4 : at + 4 + 2 * (num_queries + num_keys)]
        at += 4 + len(edges)
        ranges = list(zip(edges[::2], edges[1::2], strict=True))
        queries, keys = ranges[:num_queries], ranges[num_queries:]
        samples = slice(None) if sample < 0 else slice(sample, sample + 1)
        mask = None
        if is_masked:
            tokens = meta.transpose(0, 1)[samples].transpose(1, 2)
            rows, columns = (TokenMeta(*_take(tokens, ranges).unbind(-1)) for ranges in (queries, keys))
            mask = attends(TokenMeta(*(m[:, :, None] for m in rows)), TokenMeta(*(m[:, None] for m in columns)))
            mask = mask[:, None]
        yield samples, queries, keys, mask


def _take(x: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """The tokens in `ranges` of (B, T, …)."""
    if len(ranges) == 1:
        return x[:, ranges[0][0] : ranges[0][1]]
    return torch.cat([x[:, start:end] for start, end in ranges], dim=1)


def _scatter(x: torch.Tensor, ranges: Ranges):
    """(tokens in x, tokens in the taken tensor), for each range."""
    taken = 0
    for start, end in ranges:
        yield x[:, start:end], slice(taken, taken + end - start)
        taken += end - start


@torch.library.custom_op("videogpt::tile_attention", mutates_args=(), device_types="cpu")
def _tile_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: torch.Tensor, meta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, T, N, K), and log-sum-exp (B, T, N) in at least fp32."""
    dtype, precision = query.dtype, torch.promote_types(query.dtype, torch.float32)
    query, key, value = (x.to(precision) for x in (query, key, value))
    output = torch.zeros(query.shape, dtype=precision)
    lse = torch.full(query.shape[:3], -torch.inf, dtype=precision)
    for samples, queries, keys, mask in _read_plan(plan, meta):
        q, k, v = _take(query[samples], queries), _take(key[samples], keys), _take(value[samples], keys)
        tile_output, tile_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=_additive(mask, q.dtype)
        )
        tile_output, tile_lse = tile_output.transpose(1, 2), tile_lse.transpose(1, 2)
        for (out, taken), (total, _) in zip(
            _scatter(output[samples], queries), _scatter(lse[samples], queries), strict=True
        ):
            merged = torch.logaddexp(total, tile_lse[:, taken])
            out.mul_((total - merged).exp_()[..., None])
            out.addcmul_(tile_output[:, taken], (tile_lse[:, taken] - merged).exp_()[..., None])
            total.copy_(merged)
    return output.to(dtype), lse


@torch.library.custom_op("videogpt::tile_attention_backward", mutates_args=(), device_types="cpu")
def _tile_attention_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    plan: torch.Tensor,
    meta: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each tile's share of the gradients: with the whole row's output and log-sum-exp, the shares add up."""
    dtype, precision = query.dtype, lse.dtype
    grad_output, query, key, value, output = (x.to(precision) for x in (grad_output, query, key, value, output))
    grads = [torch.zeros(x.shape, dtype=precision) for x in (query, key, value)]
    for samples, queries, keys, mask in _read_plan(plan, meta):
        by_query = [_take(x[samples], queries).transpose(1, 2) for x in (grad_output, query, output, lse)]
        by_key = [_take(x[samples], keys).transpose(1, 2) for x in (key, value)]
        grad, q, out, total = by_query
        shares = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, *by_key, out, total, 0.0, False, attn_mask=_additive(mask, q.dtype)
        )
        for whole, share, ranges in zip(grads, shares, (queries, keys, keys), strict=True):
            for x, taken in _scatter(whole[samples], ranges):
                x += share.transpose(1, 2)[:, taken]
    return tuple(grad.to(dtype) for grad in grads)


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if mask is None else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)


@_tile_attention.register_fake
def _(query, key, value, plan, meta):
    precision = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=precision)


@_tile_attention_backward.register_fake
def _(grad_output, query, key, value, output, lse, plan, meta):
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


def _setup_context(ctx, inputs, output):
    query, key, value, plan, meta = inputs
    ctx.save_for_backward(query, key, value, *output, plan, meta)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad_output, _):
    return *_tile_attention_backward(grad_output, *ctx.saved_tensors), None, None


_tile_attention.register_autograd(_backward, setup_context=_setup_context)
