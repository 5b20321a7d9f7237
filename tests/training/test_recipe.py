"""Which parameters are trained where a step may leave some out, as data parallelism has to know; and actions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusers_videogpt.data.batches import WindowDataset
from diffusers_videogpt.training.objective import parse_clips
from diffusers_videogpt.training.recipe import leave_out_actions, settle_actions, settle_unused_parameters
from diffusers_videogpt.training.settings import ActionSettings, SamplingSettings


@pytest.mark.parametrize(
    "clips, min_num_frames, is_frozen, is_looked_for",
    [
        ("random", 4, False, False),
        ("equal:8", None, True, False),
        ("first:4", None, False, False),
        ("first:4", 4, False, True),
        ("first:4", 5, False, False),
    ],
)
def test_clean_patches(make_tiny_transformer, clips, min_num_frames, is_frozen, is_looked_for):
    accelerator = SimpleNamespace(ddp_handler=None)
    sampling = SamplingSettings(max_num_frames=8, min_num_frames=min_num_frames)
    transformer = make_tiny_transformer()
    settle_unused_parameters(accelerator, transformer, draw_clips=parse_clips(clips), sampling=sampling)
    frozen = {name.split(".")[0] for name, p in transformer.named_parameters() if not p.requires_grad}
    assert frozen == ({"clean_patch_embed"} if is_frozen else set())
    assert (accelerator.ddp_handler is not None) == is_looked_for
    assert not is_looked_for or accelerator.ddp_handler.find_unused_parameters


@pytest.mark.parametrize("condition", [None, "class_embed", "text_projection"])
def test_conditions_that_are_not_trained(make_tiny_transformer, condition):
    transformer = make_tiny_transformer(num_classes=2, text_embed_dim=8)
    how = {"draw_clips": parse_clips("random"), "sampling": SamplingSettings(max_num_frames=8)}
    settle_unused_parameters(SimpleNamespace(ddp_handler=None), transformer, condition=condition, **how)
    frozen = {name.split(".")[0] for name, p in transformer.named_parameters() if not p.requires_grad}
    assert frozen == {"class_embed", "text_projection"} - {condition}


# Actions


def test_actions_that_are_not_trained(make_tiny_transformer):
    transformer = make_tiny_transformer(num_actions=2)
    how = {"draw_clips": parse_clips("random"), "sampling": SamplingSettings(max_num_frames=8)}
    for has_actions in (True, False):
        settle_unused_parameters(SimpleNamespace(ddp_handler=None), transformer, has_actions=has_actions, **how)
        assert transformer.action_embed.weight.requires_grad == has_actions


def test_whole_clips_lose_their_actions():
    """As many of them as asked for, and none of an action of another clip."""
    clip_lengths = [[1, 2, 3], [4, 2]] * 200
    generators = [torch.Generator().manual_seed(seed) for seed in range(400)]
    actions = torch.arange(1, 7).expand(400, 6)
    left = leave_out_actions(actions, clip_lengths, generators=generators, dropout=0.3)
    kept = [clip for row, lengths in zip(left, clip_lengths, strict=True) for clip in row.split(lengths)]
    assert {tuple(clip.tolist()) for clip in kept} == {
        *((0,) * length for length in (1, 2, 3, 4)),
        *((1,), (2, 3), (4, 5, 6), (1, 2, 3, 4), (5, 6)),
    }
    assert sum(not clip.any() for clip in kept) / len(kept) == pytest.approx(0.3, abs=0.05)
    again = [torch.Generator().manual_seed(seed) for seed in range(2)]
    moves = leave_out_actions(actions[:2, :, None] * 1.0, clip_lengths[:2], generators=again, dropout=0.3)
    assert torch.equal(moves[..., 0].nan_to_num(0).long(), left[:2])


def feed_of(*actions):
    records = [SimpleNamespace(actions=np.array(values, dtype=np.float32)) for values in actions]
    dataset = WindowDataset.__new__(WindowDataset)
    dataset.table = SimpleNamespace(records=records)
    return SimpleNamespace(source=SimpleNamespace(dataset=dataset))


def test_a_place_for_actions(tiny_transformer, make_tiny_transformer):
    before = dict(tiny_transformer.state_dict())
    settle_actions(tiny_transformer, ActionSettings(action_dim=1), feed=feed_of([[1.0], [np.nan]], [[5.0]]))
    config = tiny_transformer.config
    assert config.action_dim == 1 and config.action_mean == (3.0,) and config.action_std == (2.0,)
    after = tiny_transformer.state_dict()
    assert not after.pop("action_embed.weight").any() and not after.pop("action_embed.bias").any()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) and len(after) == len(before)

    settle_actions(tiny_transformer, ActionSettings(action_dim=1), feed=feed_of([[9.0]]))  # it has one
    assert tiny_transformer.config.action_mean == (3.0,)
    with pytest.raises(ValueError, match="was trained with --action_dim 1: give the same"):
        settle_actions(tiny_transformer, ActionSettings(num_actions=1), feed=feed_of())
    with pytest.raises(ValueError, match="an adapter has no place for them"):
        settle_actions(make_tiny_transformer(), ActionSettings(num_actions=1), feed=feed_of(), is_adapter=True)
