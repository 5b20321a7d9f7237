"""The past as the model predicts it: the cached path against a twin that computes every clip anew, one video after another."""

import pytest
import torch

from diffusers_videogpt.training.objective import make_noisy_clips
from diffusers_videogpt.training.resampled_history import resample_history
from diffusers_videogpt.training.settings import ObjectiveSettings


LATENTS = torch.randn(4, 4, 6, 4, 6, generator=torch.Generator().manual_seed(0))
CLIPS = [[2, 1, 3], [1, 5], [2, 1, 3], [6]]


def generators():
    return [torch.Generator().manual_seed(10 + seed) for seed in range(len(LATENTS))]


def resample(transformer, share=1.0, **how):
    how = {"clip_lengths": CLIPS, "generators": generators()} | how
    return resample_history(transformer, LATENTS, share=share, **how)


def slow_twin(transformer, video, lengths, generator, num_steps, actions=None):
    """One video, clip after clip, everything computed anew by formula."""
    torch.rand((), generator=generator)
    alphas = torch.sigmoid(torch.randn(len(lengths), generator=generator))
    noise = torch.randn(video.shape, generator=generator)
    past = None
    for k, length in enumerate(lengths[:-1]):
        start = sum(lengths[:k])
        frames = slice(start, start + length)
        alpha = alphas[k]
        led = {}
        if actions is not None:
            led = {"actions": actions[None, frames], "clean_actions": actions[None, :start] if start else None}
        clip = (alpha * video[:, frames] + (1 - alpha) * noise[:, frames])[None]
        for step in range(num_steps):
            next_alpha = alpha + (1 - alpha) / (num_steps - step)
            with torch.no_grad():
                end = transformer(clip, alpha, clean_hidden_states=past, **led).sample
            clip = clip + (next_alpha - alpha) * (end - clip) / (1 - alpha)
            alpha = next_alpha
        past = clip if past is None else torch.cat([past, clip], dim=2)
    rest = video[None, :, sum(lengths[:-1]) :]
    return rest if past is None else torch.cat([past, rest], dim=2)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_each_clip_is_made_behind_those_that_were_made_before_it(tiny_transformer, num_steps):
    made = resample(tiny_transformer.train(), num_steps=num_steps)
    for video, lengths, generator, result in zip(LATENTS, CLIPS, generators(), made, strict=True):
        expected = slow_twin(tiny_transformer, video, lengths, generator, num_steps)[0]
        torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)
        assert torch.equal(result[:, -lengths[-1] :], video[:, -lengths[-1] :])
    assert (made[0] - LATENTS[0]).abs().max() > 0.1 and not made.requires_grad


def test_each_clip_is_made_under_its_own_actions_and_those_before_it(make_tiny_transformer):
    steered = make_tiny_transformer(num_actions=3)
    with torch.no_grad():
        steered.action_embed.weight.normal_(generator=torch.Generator().manual_seed(0))
    actions = torch.randint(4, LATENTS.shape[:1] + LATENTS.shape[2:3], generator=torch.Generator().manual_seed(1))
    made = resample(steered, actions=actions)
    for video, lengths, generator, led, result in zip(LATENTS, CLIPS, generators(), actions, made, strict=True):
        expected = slow_twin(steered, video, lengths, generator, 1, led)[0]
        torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)
    assert (made - resample(steered)).abs().max() > 0.05


def test_a_share_of_the_videos_whatever_else_is_in_the_batch(tiny_transformer):
    draws = [float(torch.rand((), generator=generator)) for generator in generators()]
    share = sorted(draws[:3])[1]  # one of the three that have a past
    made = resample(tiny_transformer, share)
    changed = [not torch.equal(result, video) for result, video in zip(made, LATENTS, strict=True)]
    assert changed == [draw < share and len(lengths) > 1 for draw, lengths in zip(draws, CLIPS, strict=True)]
    assert sum(changed) == 1
    # What follows from a generator does not depend on whether its video was chosen.
    used, others = generators(), generators()
    resample(tiny_transformer, 0.0, generators=used)
    resample(tiny_transformer, 1.0, generators=others)
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(used, others, strict=True))


def test_the_past_is_the_models_and_the_targets_stay_true(tiny_transformer):
    past = resample(tiny_transformer)
    lengths = CLIPS[:1] * 4
    how = {"clip_lengths": lengths, "min_retention": 1.0}
    clips = make_noisy_clips(LATENTS, generator=generators(), history=past, **how)
    true = make_noisy_clips(LATENTS, generator=generators(), **how)
    assert torch.equal(clips.clean, past[:, :, :3]) and torch.equal(true.clean, LATENTS[:, :, :3])
    assert torch.equal(clips.target, LATENTS) and torch.equal(clips.noisy, true.noisy)


def test_gradients_are_those_of_a_step_on_the_same_past(tiny_transformer):
    """Under autocast too, which keeps weights that it has cast: those of a pass without gradients have none."""

    def gradients(past):
        tiny_transformer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if past is None:
                past = resample(tiny_transformer)
            clips = make_noisy_clips(LATENTS, clip_lengths=CLIPS, generator=generators(), history=past)
            loss = clips.denoised_by(tiny_transformer).loss()
        loss.backward()
        return [p.grad for p in tiny_transformer.parameters() if p.grad is not None]

    with torch.autocast("cpu", torch.bfloat16):
        past = resample(tiny_transformer)
    expected, actual = gradients(past), gradients(None)
    assert len(actual) == len(expected) > 10
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_steps_without_a_resampled_history_are_refused():
    with pytest.raises(ValueError, match="--resampled_steps has an effect only with --resampled_history"):
        ObjectiveSettings(resampled_steps=2)
    assert ObjectiveSettings(resampled_history=0.5).noise_fields() == {"resampled_history": 0.5, "resampled_steps": 1}
