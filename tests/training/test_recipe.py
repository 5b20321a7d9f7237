"""Which parameters are trained where a step may leave some out, as data parallelism has to know."""

from types import SimpleNamespace

import pytest

from diffusers_videogpt.training.objective import parse_clips
from diffusers_videogpt.training.recipe import settle_unused_parameters
from diffusers_videogpt.training.settings import SamplingSettings


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
