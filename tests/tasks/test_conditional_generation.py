"""Tokens for conditions in a model that had none, and the loss under conditions against each sample alone."""

import pytest
import torch

from diffusers_videogpt.tasks.conditional_generation import ConditionalTraining, add_condition_tokens
from diffusers_videogpt.training.objective import next_clip_loss
from diffusers_videogpt.training.settings import LoopSettings, ObjectiveSettings, RecipeSettings, RolloutSettings
from diffusers_videogpt.transformer_videogpt import VideoGPTTransformerModel


WIDTH = 12


def test_new_tokens_leave_all_else_as_it_was(tiny_transformer, tmp_path):
    before = {name: value.clone() for name, value in tiny_transformer.state_dict().items()}
    add_condition_tokens(tiny_transformer, seed=0, num_classes=3, text_embed_dim=WIDTH)
    state = tiny_transformer.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert {name.split(".")[0] for name in state.keys() - before.keys()} == {"class_embed", "text_projection"}
    assert tiny_transformer.class_embed.weight.shape == (4, 32)
    assert tiny_transformer.text_projection.linear_1.weight.std() > 0

    tiny_transformer.save_pretrained(tmp_path)
    loaded = VideoGPTTransformerModel.from_pretrained(tmp_path)
    assert loaded.config.num_classes == 3 and loaded.config.text_embed_dim == WIDTH
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())

    add_condition_tokens(tiny_transformer, seed=1, num_classes=3)  # it has them
    assert torch.equal(tiny_transformer.class_embed.weight, state["class_embed.weight"])
    with pytest.raises(ValueError, match="`num_classes`=3, the data and the text encoder ask for 5"):
        add_condition_tokens(tiny_transformer, seed=0, num_classes=5)


def test_a_pipeline_keeps_its_guidance_unless_another_is_given(make_tiny_pipe, tmp_path):
    for given, kept in ((None, 2.5), (1.5, 1.5)):
        pipe = make_tiny_pipe(condition_guidance_scale=2.5)
        loop = LoopSettings(output_dir=tmp_path)
        recipe = RecipeSettings(objective=ObjectiveSettings(), rollouts=RolloutSettings(), loop=loop)
        ConditionalTraining(None, pipe, feed=None, recipe=recipe, dropout=0.1, guidance_scale=given)
        assert pipe.config.condition_guidance_scale == kept


def test_loss_of_a_batch_is_that_of_its_samples(make_tiny_transformer):
    """Texts of different lengths, padded; each sample's noise is its own."""
    transformer = make_tiny_transformer(num_classes=3, text_embed_dim=WIDTH)
    latents = torch.randn(2, 4, 5, 4, 6, generator=torch.Generator().manual_seed(1))
    states = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    labels, clips = torch.tensor([0, 2]), [[2, 3], [1, 4]]

    def loss(rows, **conditions):
        generators = [torch.Generator().manual_seed(row) for row in rows]
        cut = {"clip_lengths": [clips[row] for row in rows], "generator": generators}
        return next_clip_loss(transformer, latents[rows], **cut, **conditions)

    together = loss([0, 1], class_labels=labels, encoder_hidden_states=states, encoder_attention_mask=mask)
    alone = [
        loss([row], class_labels=labels[row : row + 1], encoder_hidden_states=states[row : row + 1, :length])
        for row, length in ((0, 2), (1, 4))
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean(), atol=1e-5, rtol=0)
    other = loss([0, 1], class_labels=labels.flip(0), encoder_hidden_states=states, encoder_attention_mask=mask)
    assert abs(together - other) > 1e-4
