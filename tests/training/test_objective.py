import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from diffusers_videogpt.clips import make_clip_layout
from diffusers_videogpt.scheduling_next_clip_flow_match import sample_alphas
from diffusers_videogpt.training.noise_levels import ErrorsByAlpha, format_errors
from diffusers_videogpt.training.objective import (
    DenoisedClips,
    denoise_clips,
    make_alpha_drawer,
    make_clip_drawer,
    next_clip_loss,
    parse_clips,
    velocity_weights,
)
from diffusers_videogpt.training.settings import ObjectiveSettings
from diffusers_videogpt.training.small_sets import SmallSetObjectiveSettings


LATENTS = torch.randn(2, 4, 5, 4, 6, generator=torch.Generator().manual_seed(0))
CLIPS = [[2, 1, 2], [1, 4]]


class Recorder(torch.nn.Module):
    """Stands where the transformer stands; answers with `answer(noisy latents)` and keeps what it was given."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, **inputs):
        self.inputs = inputs
        return (self.answer(inputs["hidden_states"]),)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_share_of_the_samples_is_cut_into_single_frames():
    draw = make_clip_drawer(ObjectiveSettings(clips="random", max_clips=3, next_frame_share=0.25))
    generator = seeded(0)
    drawn = [draw(8, generator) for _ in range(400)]
    assert 70 < drawn.count([1] * 8) < 130 and all(len(x) in (2, 3, 8) for x in drawn)
    assert all(sum(x) == 8 for x in drawn)
    with pytest.raises(ValueError, match="next_frame_share"):
        ObjectiveSettings(clips="equal:4", next_frame_share=0.25)


def test_loss_is_the_mean_error_of_all_frames(tiny_transformer):
    assert next_clip_loss(Recorder(lambda noisy: LATENTS), LATENTS, clip_lengths=CLIPS, generator=seeded()) == 0
    ones = next_clip_loss(Recorder(lambda noisy: LATENTS + 1), LATENTS, clip_lengths=CLIPS, generator=seeded())
    torch.testing.assert_close(ones, torch.tensor(1.0))

    def wrong_in_first_frame(noisy):
        answer = LATENTS.clone()
        answer[:, :, 0] += 1
        return answer

    first = next_clip_loss(Recorder(wrong_in_first_frame), LATENTS, clip_lengths=CLIPS, generator=seeded())
    torch.testing.assert_close(first, torch.tensor(1 / 5))


def test_every_clip_has_one_noise_level_and_the_formula_holds():
    recorder = Recorder(lambda noisy: noisy)
    next_clip_loss(recorder, LATENTS, clip_lengths=CLIPS, generator=seeded())
    alphas, noisy = recorder.inputs["timestep"], recorder.inputs["hidden_states"]
    assert alphas.shape == (2, 5) and (alphas >= 0).all() and (alphas < 1).all()
    for row, lengths in zip(alphas, CLIPS, strict=True):
        clips = row.split(lengths)
        assert all((clip == clip[0]).all() for clip in clips) and len({float(c[0]) for c in clips}) == len(clips)
    alphas = alphas[:, None, :, None, None]
    noise = (noisy - alphas * LATENTS) / (1 - alphas)
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


@pytest.mark.parametrize("one_a_video", [True, False])
def test_noise_is_that_of_a_twin_that_makes_one_video_after_the_other(one_a_video):
    generators, twins = (
        [seeded(1), seeded(2)] if one_a_video else [generator] * 2 for generator in (seeded(), seeded())
    )
    recorder = Recorder(lambda noisy: noisy)
    next_clip_loss(
        recorder,
        LATENTS,
        clip_lengths=CLIPS,
        generator=generators if one_a_video else generators[0],
        min_retention=0.8,
    )
    made = (recorder.inputs[name] for name in ("timestep", "hidden_states", "clean_hidden_states"))
    for video, lengths, twin, alphas, noisy, clean in zip(LATENTS, CLIPS, twins, *made, strict=True):
        alpha = torch.rand(len(lengths), generator=twin).repeat_interleave(torch.tensor(lengths))
        torch.testing.assert_close(alphas, alpha)
        alpha = alpha[:, None, None]
        torch.testing.assert_close(noisy, alpha * video + (1 - alpha) * torch.randn(video.shape, generator=twin))
        kept = 0.8 + 0.2 * torch.rand(5, generator=twin)[:, None, None]
        expected = kept * video + (1 - kept) * torch.randn(video.shape, generator=twin)
        torch.testing.assert_close(clean, expected[:, :3])


def test_clean_frames_are_slightly_noisy_and_leave_out_the_last_clip():
    recorder = Recorder(lambda noisy: noisy)
    next_clip_loss(recorder, LATENTS, clip_lengths=CLIPS, generator=seeded())
    clean, layout = recorder.inputs["clean_hidden_states"], recorder.inputs["clip_layout"]
    assert clean.shape[2] == 3  # the first video needs 3 clean frames, the second 1 and padding
    expected = make_clip_layout(CLIPS, (2, 3))
    assert all(torch.equal(a, b) for a, b in zip(layout.meta(), expected.meta(), strict=True))
    error = (clean - LATENTS[:, :, :3]).abs().mean()
    assert 0 < error < 0.2
    next_clip_loss(recorder, LATENTS, clip_lengths=CLIPS, generator=seeded(), min_retention=1.0)
    torch.testing.assert_close(recorder.inputs["clean_hidden_states"], LATENTS[:, :, :3])


def test_one_clip_has_no_clean_frames(tiny_transformer):
    loss = next_clip_loss(tiny_transformer, LATENTS, clip_lengths=[[5], [5]], generator=seeded())
    assert loss.isfinite()


def test_same_seed_same_loss(tiny_transformer):
    losses = [
        next_clip_loss(tiny_transformer, LATENTS, clip_lengths=CLIPS, generator=seeded(s)).item() for s in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_training_learns(make_tiny_transformer):
    """A few steps on one video bring the loss well below that of a new model, which predicts zeros."""
    model = make_tiny_transformer()
    model.init_weights(seeded())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss = next_clip_loss(model, LATENTS, clip_lengths=CLIPS, generator=seeded(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_clips_that_do_not_sum_to_the_frames(tiny_transformer):
    with pytest.raises(ValueError, match=r"\[2, 2\] have 4 frames, the latents have 5"):
        next_clip_loss(tiny_transformer, LATENTS, clip_lengths=[[2, 2], [5]])


def test_generators_are_one_or_one_a_video():
    with pytest.raises(ValueError, match="3 generators for 2 videos: give one, or one a video"):
        next_clip_loss(
            Recorder(lambda noisy: noisy), LATENTS, clip_lengths=CLIPS, generator=[seeded(s) for s in range(3)]
        )


@pytest.mark.parametrize("patch_size", [1, 2])
def test_layout_is_of_the_models_patches(make_tiny_transformer, patch_size):
    recorder = Recorder(lambda noisy: noisy)
    next_clip_loss(recorder, LATENTS, clip_lengths=CLIPS, generator=seeded(), patch_size=patch_size)
    assert recorder.inputs["clip_layout"].patch_grids == ((4 // patch_size, 6 // patch_size),) * 2
    model = make_tiny_transformer(patch_size=patch_size)
    assert next_clip_loss(model, LATENTS, clip_lengths=CLIPS, generator=seeded(), patch_size=patch_size).isfinite()


def test_how_samples_are_cut_into_clips():
    generator = seeded()
    assert [parse_clips("equal:4")(n, generator) for n in (10, 4, 3)] == [[4, 4, 2], [4], [3]]
    assert [parse_clips("first:2")(n, generator) for n in (10, 3, 2, 1)] == [[2, 8], [2, 1], [2], [1]]
    assert {len(parse_clips("random", 3)(9, generator)) for _ in range(50)} == {2, 3}
    first, again = ([parse_clips("random")(20, g) for _ in range(3)] for g in (seeded(1), seeded(1)))
    assert first == again
    for clips in ("first:0", "equal:-1", "first", "halves:2", "random:2"):
        with pytest.raises(ValueError, match="Clips are 'random'"):
            parse_clips(clips)
    with pytest.raises(ValueError, match=r"clips \(3\) belongs to clips='random', got 'equal:4'"):
        parse_clips("equal:4", 3)


# The dials


def test_noise_levels_are_diffusers_densities():
    uniform = make_alpha_drawer(ObjectiveSettings())
    assert uniform is sample_alphas
    as_diffusers = compute_density_for_timestep_sampling("none", 3, generator=seeded())
    assert torch.equal(uniform([1, 1, 1], seeded()), as_diffusers)  # the paper's are diffusers' "none", to the bit
    draw = make_alpha_drawer(ObjectiveSettings(weighting_scheme="logit_normal", logit_mean=1.0, logit_std=0.5))
    twin = seeded(4)
    expected = torch.sigmoid(torch.normal(1.0, 0.5, (2,), generator=twin))
    torch.testing.assert_close(draw([2, 3], seeded(4)), expected.repeat_interleave(torch.tensor([2, 3])))
    # Above 0 is cleaner: α is the share of signal.
    many = [draw([1] * 2000, seeded(seed)).mean() for seed in range(2)]
    assert all(0.7 < mean < 0.76 for mean in many)


@pytest.mark.parametrize("scheme", ["logit_normal", "mode"])
def test_a_mixture_keeps_a_share_of_uniform_levels(scheme):
    numbers = {"logit_mean": 3.0, "logit_std": 0.1} if scheme == "logit_normal" else {"mode_scale": 1.7}
    shares = []
    for share in (0.0, 0.25, 1.0):
        draw = make_alpha_drawer(ObjectiveSettings(weighting_scheme=scheme, uniform_share=share, **numbers))
        alphas = draw([1] * 4000, seeded(1))
        assert (alphas >= 0).all() and (alphas <= 1).all()
        shares.append(float((alphas < 0.1).float().mean()))
    # A tenth of uniform levels is below 0.1, of the others hardly any.
    assert shares[0] < 0.07 and shares[0] < shares[1] < shares[2]
    assert shares[2] == pytest.approx(0.1, abs=0.02)


def test_velocity_weights_and_their_cap():
    alphas = torch.tensor([0.0, 0.5, 0.8, 1.0])
    torch.testing.assert_close(velocity_weights(alphas, 25.0), torch.tensor([1.0, 4.0, 25.0, 25.0]))
    torch.testing.assert_close(velocity_weights(alphas, 3.0), torch.tensor([1.0, 3.0, 3.0, 3.0]))
    target = torch.zeros(1, 2, 4, 3, 3)
    clips = DenoisedClips(target + torch.tensor([1.0, 2.0, 1.0, 0.0])[:, None, None], target, target, alphas[None])
    torch.testing.assert_close(clips.loss(), torch.tensor((1 + 4 + 1) / 4))
    torch.testing.assert_close(clips.loss(max_weight=25.0), torch.tensor((1 * 1 + 4 * 4 + 25 * 1) / 4))


def test_errors_are_told_by_noise_level():
    errors = ErrorsByAlpha()
    alphas = torch.tensor([[0.05, 0.45, 0.55, 1.0]])
    target = torch.zeros(1, 2, 4, 3, 3)
    by_frame = lambda values: target + torch.tensor(values)[:, None, None]  # noqa: E731
    errors.add(DenoisedClips(by_frame([1.0, 1.0, 2.0, 3.0]), target, by_frame([2.0, 1.0, 1.0, 0.0]), alphas))
    errors.add(DenoisedClips(by_frame([3.0, 0.0, 0.0, 3.0]), target, by_frame([2.0, 0.0, 0.0, 3.0]), alphas))
    numbers = errors.describe(errors.take())
    assert numbers == pytest.approx(
        {
            "loss_at_0.0": 5.0,
            "velocity_error_at_0.0": 10 / 8,
            "loss_at_0.4": 5 / 4,
            "velocity_error_at_0.4": 5 / 2,
            "loss_at_0.8": 9.0,
            "velocity_error_at_0.8": 18 / 9,
        }
    )
    table = format_errors(numbers)
    assert "0.0 – 0.2 | 0.4 – 0.6 | 0.8 – 1.0" in table and "| 1.25 | 2.5 | 2 |" in table
    assert errors.describe(errors.take()) == {} and format_errors({}) == ""


def test_the_input_is_what_the_model_was_given():
    """A model that gives its input back has the velocity error of the input."""
    clips = denoise_clips(Recorder(lambda noisy: noisy), LATENTS, clip_lengths=CLIPS, generator=seeded())
    errors = ErrorsByAlpha()
    errors.add(clips)
    numbers = errors.describe(errors.take())
    ratios = [value for name, value in numbers.items() if name.startswith("velocity")]
    assert ratios and all(ratio == pytest.approx(1.0) for ratio in ratios)


def test_only_some_clips_are_noisy():
    recorder = Recorder(lambda noisy: noisy)
    clips = denoise_clips(recorder, LATENTS, clip_lengths=[[2, 3]] * 2, generator=seeded(), noisy=slice(-1, None))
    assert torch.equal(clips.target, LATENTS[:, :, 2:]) and clips.alphas.shape == (2, 3)
    assert recorder.inputs["clean_hidden_states"].shape[2] == 2
    with pytest.raises(ValueError, match="all videos of a batch are cut alike"):
        denoise_clips(recorder, LATENTS, clip_lengths=CLIPS, noisy=slice(-1, None))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"logit_mean": 1.0}, "--logit_mean has an effect only with --weighting_scheme logit_normal"),
        ({"weighting_scheme": "logit_normal", "mode_scale": 1.0}, "only with --weighting_scheme mode"),
        ({"uniform_share": 0.5}, "only with another --weighting_scheme than none"),
        ({"max_loss_weight": 5.0}, "only with --loss_weighting velocity"),
        ({"weighting_scheme": "logit_normal", "logit_std": 0.0}, "a spread is above 0"),
        ({"weighting_scheme": "mode", "mode_scale": 3.0}, "must lie in -1..1.75"),
    ],
)
def test_dials_without_effect_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveSettings(**given)


def test_the_papers_objective_adds_nothing_to_what_a_checkpoint_agrees_with():
    assert ObjectiveSettings().noise_fields() == {}
    mixed = ObjectiveSettings(weighting_scheme="mode", uniform_share=0.5, loss_weighting="velocity")
    assert mixed.noise_fields().keys() == {
        *("weighting_scheme", "uniform_share", "mode_scale", "loss_weighting", "max_loss_weight"),
    }


def test_an_adapter_learns_from_heavy_noise_unless_asked_otherwise():
    heavy = {"weighting_scheme": "logit_normal", "uniform_share": 0.2, "logit_mean": -1.6, "logit_std": 1.2}
    weighted = {"loss_weighting": "velocity", "max_loss_weight": 25.0}
    assert SmallSetObjectiveSettings().noise_fields() == heavy | weighted
    assert SmallSetObjectiveSettings(logit_mean=0.0).noise_fields() == heavy | weighted | {"logit_mean": 0.0}
    assert SmallSetObjectiveSettings(weighting_scheme="none", loss_weighting="none").noise_fields() == {}
    assert SmallSetObjectiveSettings(weighting_scheme="mode").noise_fields()["uniform_share"] == 0
    with pytest.raises(ValueError, match="--logit_mean has an effect only with --weighting_scheme logit_normal"):
        SmallSetObjectiveSettings(weighting_scheme="none", logit_mean=-1.0)
