"""The parts of causal consistency distillation against their formulas, computed clip by clip."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers.training_utils import EMAModel
from peft import LoraConfig

from diffusers_videogpt import NextClipFlowMatchScheduler
from diffusers_videogpt.clips import make_clip_layout, make_guidance_layout
from diffusers_videogpt.training import distillation
from diffusers_videogpt.training.adapter import base_alone
from diffusers_videogpt.training.feed import MicroBatch
from diffusers_videogpt.training.loop import TrainingLoop
from diffusers_videogpt.training.noise_levels import ErrorsByAlpha
from diffusers_videogpt.training.objective import make_noisy_clips
from diffusers_videogpt.training.settings import (
    ActionSettings,
    BaseModelSettings,
    DistillationSettings,
    ObjectiveSettings,
)


LATENTS = torch.randn(2, 4, 6, 4, 6, generator=torch.Generator().manual_seed(0))
CLIPS = [[2, 1, 3], [1, 5]]
GUIDANCE = 1.7


def generators():
    return [torch.Generator().manual_seed(10 + seed) for seed in range(len(LATENTS))]


def on_grid(alphas):
    """α of every frame of each clip, as `make_noisy_clips` draws them."""
    return lambda lengths, generator: torch.tensor(alphas[: len(lengths)]).repeat_interleave(torch.tensor(lengths))


def noisy_clips(alphas=(0.25, 0.0, 0.75), **how):
    return make_noisy_clips(LATENTS, clip_lengths=CLIPS, generator=generators(), draw_alphas=on_grid(alphas), **how)


def clip_by_clip(transformer, clips, noisy, alphas, scale):
    """Guided predictions of each clip in two calls of its own."""
    ends = torch.empty_like(noisy)
    for b, lengths in enumerate(CLIPS):
        for k, length in enumerate(lengths):
            start = sum(lengths[:k])
            frames = slice(start, start + length)
            clip, alpha = noisy[b : b + 1, :, frames], alphas[b, start]
            led, led_past = {}, {}
            if "actions" in clips.conditions:
                led = {"actions": clips.conditions["actions"][b : b + 1, frames]}
                led_past = {"clean_actions": clips.conditions["clean_actions"][b : b + 1, :start] if start else None}
            with torch.no_grad():
                alone = transformer(clip, alpha, **led).sample
                past = clips.clean[b : b + 1, :, :start] if start else None
                with_history = transformer(clip, alpha, clean_hidden_states=past, **led, **led_past).sample
            ends[b, :, frames] = (alone + scale * (with_history - alone))[0]
    return ends


def test_both_predictions_of_guidance_in_one_pass(tiny_transformer):
    clips = noisy_clips()
    expected = clip_by_clip(tiny_transformer, clips, clips.noisy, clips.alphas, GUIDANCE)
    for scale, wanted in (
        (GUIDANCE, expected),
        (1.0, clip_by_clip(tiny_transformer, clips, clips.noisy, clips.alphas, 1.0)),
    ):
        with torch.no_grad():
            made = distillation.guided_prediction(
                tiny_transformer, clips, clip_lengths=CLIPS, guidance_scale=scale, patch_size=2
            )
        torch.testing.assert_close(made, wanted, atol=2e-5, rtol=0)


def test_both_predictions_are_under_the_actions_of_their_clip(make_tiny_transformer):
    steered = make_tiny_transformer(num_actions=3)
    with torch.no_grad():
        steered.action_embed.weight.normal_(generator=torch.Generator().manual_seed(0))
    actions = torch.randint(4, (2, 6), generator=torch.Generator().manual_seed(1))
    clips = noisy_clips(actions=actions)
    how = {"clip_lengths": CLIPS, "guidance_scale": GUIDANCE, "patch_size": 2}
    with torch.no_grad():
        made = distillation.guided_prediction(steered, clips, **how)
        without = distillation.guided_prediction(steered, noisy_clips(), **how)
    expected = clip_by_clip(steered, clips, clips.noisy, clips.alphas, GUIDANCE)
    torch.testing.assert_close(made, expected, atol=2e-5, rtol=0)
    assert (made - without).abs().max() > 0.05


def test_guidance_layout_is_trainings_and_each_clip_once_more():
    layout, training = make_guidance_layout(CLIPS, (2, 3)), make_clip_layout(CLIPS, (2, 3))
    num_noisy = 2 * 6 * (2 * 3 + 2)
    num_clean = layout.num_tokens - num_noisy
    assert layout.num_noisy_frames == 12 and layout.num_clean_frames == training.num_clean_frames
    # In each group of a rank the frames of the second round stand behind those of the first.
    first = torch.cat([torch.arange(6), 12 + torch.arange(6), 24 + torch.arange(36)]) + num_clean
    second = torch.cat([6 + torch.arange(6), 18 + torch.arange(6), 60 + torch.arange(36)]) + num_clean
    as_training = torch.cat([torch.arange(num_clean), first])
    mask, expected = layout.dense_mask[:, 0], training.dense_mask[:, 0]
    assert torch.equal(mask[:, as_training][:, :, as_training], expected)
    noisy = torch.arange(num_clean, training.num_tokens)
    assert torch.equal(mask[:, second][:, :, second], expected[:, noisy][:, :, noisy])
    others = torch.cat([as_training, second])
    assert not mask[:, second][:, :, as_training].any() and not mask[:, as_training][:, :, second].any()
    assert sorted(others.tolist()) == list(range(layout.num_tokens))
    assert torch.equal(layout.position_ids[:, second], layout.position_ids[:, first])


def distillation_of(student, teacher, **settings):
    """The training of a student whose average is a third model, without a run around it."""
    training = distillation.PipelineDistillation.__new__(distillation.PipelineDistillation)
    training.distillation = DistillationSettings(grid_steps=4, guidance_scale=GUIDANCE, **settings)
    training.guidance_scale, training.patch_size = GUIDANCE, 2
    scheduler = NextClipFlowMatchScheduler()
    scheduler.set_timesteps(4)
    training.grid = scheduler.alphas
    training._teacher = teacher
    training.accelerator = SimpleNamespace(unwrap_model=lambda model: model)
    training.errors = ErrorsByAlpha()
    training.objective = ObjectiveSettings(clips="random")
    training.feed = training.actions = None
    loop = TrainingLoop.__new__(TrainingLoop)
    loop.model, loop.ema = student, EMAModel(student.parameters(), decay=0.99)
    training.averaged_weights = loop.averaged_weights
    return training, loop.ema


def changed(model, seed):
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return other


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_target_is_one_step_of_the_teacher_and_the_average_from_there(tiny_transformer, precision):
    student, average = changed(tiny_transformer, 1), changed(tiny_transformer, 2)
    training, ema = distillation_of(student, tiny_transformer)
    ema.shadow_params = [parameter.detach().clone() for parameter in average.parameters()]
    before = [parameter.detach().clone() for parameter in student.parameters()]
    clips = noisy_clips()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        # What autocast has cast of the student must not be taken for the average's, nor the other way round.
        expected_prediction = clips.denoised_by(student).predicted
        target = training.target(student, clips, clip_lengths=CLIPS)
        prediction = clips.denoised_by(student).predicted
    assert torch.equal(prediction, expected_prediction)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), ema.shadow_params, strict=True))

    end = clip_by_clip(tiny_transformer, clips, clips.noisy, clips.alphas, GUIDANCE)
    shape = (slice(None), None, slice(None), None, None)
    alphas, next_alphas = clips.alphas, clips.alphas + 0.25
    further = clips.noisy + 0.25 * (end - clips.noisy) / (1 - alphas[shape])
    expected = clip_by_clip(average, clips, further, next_alphas, 1.0)
    at_the_end = next_alphas[shape].expand_as(expected) == 1
    expected[at_the_end] = further[at_the_end]
    assert at_the_end.any() and not at_the_end.all() and not target.requires_grad
    tolerance = 3e-5 if precision == torch.float32 else 0.1
    torch.testing.assert_close(target, expected, atol=tolerance, rtol=0)
    wrong = clip_by_clip(student, clips, further, next_alphas, 1.0)
    assert (wrong - expected)[~at_the_end].abs().mean() > 5 * (target - expected)[~at_the_end].abs().mean()


def test_loss_trains_the_student_alone(tiny_transformer):
    student = changed(tiny_transformer, 1)
    training, ema = distillation_of(student, tiny_transformer, consistency_loss="l2")
    batch = MicroBatch(LATENTS, generators(), CLIPS, ["a", "b"])
    loss = training.loss(student, batch)
    loss.backward()
    assert all(parameter.grad is not None for name, parameter in student.named_parameters() if "blocks" in name)
    assert all(parameter.grad is None for parameter in tiny_transformer.parameters())
    clips = make_noisy_clips(LATENTS, clip_lengths=CLIPS, generator=generators(), draw_alphas=training.draw_alphas)
    assert set(clips.alphas.unique().tolist()) <= {0.0, 0.25, 0.5, 0.75}
    expected = (
        (clips.denoised_by(student).predicted - training.target(student, clips, clip_lengths=CLIPS)).square().mean()
    )
    torch.testing.assert_close(loss, expected)


def test_losses_by_formula():
    target = torch.zeros(1, 2, 2, 3, 3)
    predicted = target + torch.tensor([0.3, 0.004])[:, None, None]
    torch.testing.assert_close(
        distillation.consistency_loss(predicted, target, kind="l2"), torch.tensor((0.09 + 0.000016) / 2)
    )
    huber = [(e**2 + 0.01**2) ** 0.5 - 0.01 for e in (0.3, 0.004)]
    torch.testing.assert_close(distillation.consistency_loss(predicted, target), torch.tensor(sum(huber) / 2))


def test_points_of_the_grid_are_drawn_as_often_one_a_clip(tiny_transformer):
    training, _ = distillation_of(tiny_transformer, tiny_transformer)
    alphas = training.draw_alphas([3] * 4000, torch.Generator().manual_seed(0)).view(4000, 3)
    assert (alphas == alphas[:, :1]).all()
    counts = torch.stack([(alphas[:, 0] == point).sum() for point in training.grid])
    assert counts[-1] == 0 and (counts[:-1] > 900).all()


def test_the_base_without_its_adapter_and_what_is_trained_stays_so(tiny_transformer):
    clip, alpha = LATENTS[:1], torch.tensor(0.5)
    expected = tiny_transformer(clip, alpha).sample
    tiny_transformer.requires_grad_(False)
    tiny_transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "ff.linear_in"], init_lora_weights=False))
    frozen = next(p for name, p in tiny_transformer.named_parameters() if "lora_A" in name)
    frozen.requires_grad_(False)  # as what no step uses
    marks = [p.requires_grad for p in tiny_transformer.parameters()]
    adapted = tiny_transformer(clip, alpha).sample
    with base_alone(tiny_transformer):
        assert torch.equal(tiny_transformer(clip, alpha).sample, expected)
        assert [p.requires_grad for p in tiny_transformer.parameters()] == marks
    assert [p.requires_grad for p in tiny_transformer.parameters()] == marks
    assert torch.equal(tiny_transformer(clip, alpha).sample, adapted) and not torch.allclose(adapted, expected)


@pytest.mark.parametrize(
    ("config", "actions", "said"),
    [
        ({"num_actions": 5}, {}, "which the student would forget: give --num_actions 5"),
        ({"action_dim": 2}, {}, "which the student would forget: give --action_dim 2"),
        ({}, {"num_actions": 5}, "takes no actions, so none can be distilled"),
    ],
)
def test_teacher_and_videos_have_actions_or_neither(tmp_path, make_tiny_transformer, config, actions, said):
    make_tiny_transformer(**config).save_config(tmp_path / "transformer")
    base = BaseModelSettings(pretrained_model_name_or_path=str(tmp_path))
    with pytest.raises(ValueError, match=said):
        distillation.check_actions(base, ActionSettings(**actions))
    distillation.check_actions(base, ActionSettings(**config))
