import copy
import pickle

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

from diffusers_videogpt.config_values import SOLVERS
from diffusers_videogpt.scheduling_next_clip_flow_match import (
    NextClipFlowMatchScheduler,
    NextClipFlowMatchSchedulerOutput,
    denoised_to_model_output,
    mix_noise,
    sample_alphas,
    sample_retentions,
    set_flow_timesteps,
)


MEAN, STD = 0.7, 1.0  # of the Gaussian data that stands for clean latents in the closed-form problem
DIFFUSERS_SCHEDULERS = [FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, DPMSolverMultistepScheduler]


def perfect_model(sample, alpha):
    """E[φ | ψ] where φ ~ N(MEAN, STD²): what a perfectly trained model answers."""
    gain = alpha * STD**2 / (alpha**2 * STD**2 + (1 - alpha) ** 2)
    return MEAN + gain * (sample - alpha * MEAN)


def noise_like(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def denoise(scheduler, num_inference_steps, noise):
    latents = noise
    for timestep, alpha in zip(*set_flow_timesteps(scheduler, num_inference_steps), strict=True):
        denoised = perfect_model(latents, alpha)
        model_output = denoised_to_model_output(scheduler, denoised, sample=latents, alpha=alpha)
        latents = scheduler.step(model_output, timestep, latents, return_dict=False)[0]
    return latents


def error(scheduler, num_inference_steps):
    """Root mean square distance from the exact solution: the flow takes N(0, 1) to N(MEAN, STD²) as z → MEAN + STD z."""
    noise = noise_like(4, 4, 2, 16, 16).double()
    exact = MEAN + STD * noise
    return (denoise(scheduler, num_inference_steps, noise) - exact).square().mean().sqrt().item()


# --- the time grid


@pytest.mark.parametrize("shift", [1, 1.0, 1.1, 3.0])
@pytest.mark.parametrize("num_inference_steps", [1, 2, 7, 50])
def test_grid_follows_the_formula(shift, num_inference_steps):
    scheduler = NextClipFlowMatchScheduler(shift=shift)
    scheduler.set_timesteps(num_inference_steps)
    linear = [i / num_inference_steps for i in range(num_inference_steps + 1)]
    expected = torch.tensor([t / (t + shift * (1 - t)) for t in linear])
    torch.testing.assert_close(scheduler.alphas, expected, atol=2e-7, rtol=0)
    torch.testing.assert_close(scheduler.sigmas, 1 - expected, atol=2e-7, rtol=0)
    assert scheduler.sigmas[0] == 1 and scheduler.sigmas[-1] == 0
    torch.testing.assert_close(scheduler.timesteps, 1000 * (1 - expected[:-1]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_custom_sigmas_are_shifted_as_in_diffusers_and_timesteps_are_not(shift):
    ours = NextClipFlowMatchScheduler(shift=shift)
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours.set_timesteps(sigmas=[1.0, 0.6, 0.1])
    theirs.set_timesteps(sigmas=[1.0, 0.6, 0.1])
    torch.testing.assert_close(ours.sigmas, theirs.sigmas)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps)
    ours.set_timesteps(timesteps=[900.0, 250.0])
    torch.testing.assert_close(ours.timesteps, torch.tensor([900.0, 250.0]))
    torch.testing.assert_close(ours.alphas, torch.tensor([0.1, 0.75, 1.0]))


def test_new_scheduler_holds_the_training_grid_of_diffusers():
    ours, theirs = NextClipFlowMatchScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, atol=1e-3, rtol=0)
    assert len(ours) == len(theirs) == 1000


def test_times_stay_on_the_cpu_under_another_default_device():
    scheduler = NextClipFlowMatchScheduler()
    with torch.device("meta"):
        scheduler.set_timesteps(4)
    assert scheduler.alphas.device.type == scheduler.sigmas.device.type == "cpu"


# --- the step


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_reference_loop_bit_for_bit(shift):
    noise = noise_like(2, 4, 3, 4, 6)
    t = torch.linspace(0, 1, 11)
    t = t / (t + shift - shift * t)
    z = noise
    for i in range(10):
        z = z + (t[i + 1] - t[i]) * ((perfect_model(z, t[i]) - z) / (1 - t[i]))
    assert torch.equal(denoise(NextClipFlowMatchScheduler(shift=shift), 10, noise), z)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_inference_steps", [1, 4, 50])
def test_euler_agrees_with_flow_match_euler(shift, num_inference_steps):
    noise = noise_like(2, 4, 3, 4, 6)
    ours = denoise(NextClipFlowMatchScheduler(shift=shift), num_inference_steps, noise)
    theirs = denoise(FlowMatchEulerDiscreteScheduler(shift=shift), num_inference_steps, noise)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_last_euler_step_ends_on_the_prediction():
    scheduler = NextClipFlowMatchScheduler()
    scheduler.set_timesteps(1)
    noise, denoised = noise_like(2, 3, 5, 4, 4)
    out = scheduler.step(denoised, scheduler.timesteps[0], noise)
    assert isinstance(out, NextClipFlowMatchSchedulerOutput)
    torch.testing.assert_close(out.prev_sample, denoised, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_order_of_convergence(shift):
    def ratio(solver):
        scheduler = NextClipFlowMatchScheduler(shift=shift, solver=solver)
        return error(scheduler, 80) / error(scheduler, 160)

    assert 1.9 < ratio("euler") < 2.1
    assert 3.7 < ratio("multistep") < 4.5


@pytest.mark.parametrize("num_inference_steps", [20, 40])
def test_multistep_beats_euler_and_dpm_solver_2m_on_the_same_sigmas(num_inference_steps):
    class SameSigmas(DPMSolverMultistepScheduler):  # diffusers' own takes no sigmas from outside
        def set_timesteps(self, *args, **kwargs):
            super().set_timesteps(*args, **kwargs)
            self.sigmas = torch.linspace(1, 0, num_inference_steps + 1)

    multistep = error(NextClipFlowMatchScheduler(solver="multistep"), num_inference_steps)
    dpm = SameSigmas(use_flow_sigmas=True, prediction_type="sample", solver_order=2, solver_type="midpoint")
    assert multistep < 0.7 * error(dpm, num_inference_steps)
    assert multistep < 0.06 * error(NextClipFlowMatchScheduler(), num_inference_steps)


def test_multistep_integrates_a_linear_velocity_exactly_over_uneven_steps():
    scheduler = NextClipFlowMatchScheduler(solver="multistep")
    scheduler.set_timesteps(timesteps=[1000.0, 900.0, 500.0])  # α = 0, 0.1, 0.5, and then 1
    start = noise_like(4, 6)
    for timestep, alpha, next_alpha in zip(scheduler.timesteps, [0.0, 0.1, 0.5], [0.1, 0.5, 1.0], strict=True):
        sample = start + alpha**2  # the solution of dz/dα = 2 α
        denoised = sample + (1 - alpha) * 2 * alpha
        out = scheduler.step(denoised, timestep, sample).prev_sample
        if alpha > 0:  # the first step has no past
            torch.testing.assert_close(out, start + next_alpha**2, atol=1e-6, rtol=0)


def test_multistep_forgets_the_last_clip():
    scheduler = NextClipFlowMatchScheduler(solver="multistep")
    noise = noise_like(2, 4, 3, 4, 6)
    first = denoise(scheduler, 5, noise)
    denoise(scheduler, 3, 2 * noise)
    assert torch.equal(denoise(scheduler, 5, noise), first)


def test_multistep_starting_inside_the_schedule_takes_an_euler_step_first():
    noise, denoised = noise_like(2, 3, 5, 4, 4)
    out = {}
    for solver in ("euler", "multistep"):
        scheduler = NextClipFlowMatchScheduler(solver=solver)
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(2)
        out[solver] = scheduler.step(denoised, scheduler.timesteps[2], noise).prev_sample
        assert scheduler.begin_index == 2 and scheduler.step_index == 3
    assert torch.equal(out["euler"], out["multistep"])
    torch.testing.assert_close(out["euler"], 0.5 * noise + 0.5 * denoised)


@pytest.mark.parametrize("solver", SOLVERS)
def test_half_precision_steps_in_fp32(solver):
    noise, denoised = noise_like(2, 3, 5, 4, 4).bfloat16()
    full, half = NextClipFlowMatchScheduler(solver=solver), NextClipFlowMatchScheduler(solver=solver)
    full.set_timesteps(4)
    half.set_timesteps(4)
    for timestep in full.timesteps[:2]:
        generators = (torch.Generator().manual_seed(1) for _ in range(2))
        expected = full.step(denoised.float(), timestep, noise.float(), generator=next(generators)).prev_sample
        actual = half.step(denoised, timestep, noise, generator=next(generators)).prev_sample
        assert actual.dtype == torch.bfloat16
        assert torch.equal(actual, expected.bfloat16())


@pytest.mark.parametrize("solver", SOLVERS)
def test_step_gives_the_dtype_of_the_models_output(solver):
    scheduler = NextClipFlowMatchScheduler(solver=solver)
    scheduler.set_timesteps(2)
    step = scheduler.step(torch.ones(2, dtype=torch.bfloat16), scheduler.timesteps[0], torch.zeros(2))
    assert step.prev_sample.dtype == torch.bfloat16


@pytest.mark.parametrize("solver", SOLVERS)
def test_loop_never_waits_for_the_device(solver):
    # A meta tensor has no values: reading one on the host, which on a GPU would stall the loop, raises.
    scheduler = NextClipFlowMatchScheduler(solver=solver)
    latents = torch.empty(2, 4, 3, 4, 6, device="meta")
    timesteps, alphas = set_flow_timesteps(scheduler, 4, "meta")
    assert timesteps.device == alphas.device == latents.device
    for timestep in timesteps:
        latents = scheduler.step(latents, timestep, latents).prev_sample
    assert latents.device.type == "meta" and scheduler.step_index == 4


# --- the steps of a distilled model


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_consistency_step_is_its_formula(shift):
    scheduler = NextClipFlowMatchScheduler(solver="consistency", shift=shift)
    latents, *predictions = noise_like(5, 2, 4, 3, 4, 4)
    scheduler.set_timesteps(4)
    generator, twin = (torch.Generator().manual_seed(3) for _ in range(2))
    times = torch.arange(1, 5) / 4
    for timestep, predicted, time in zip(scheduler.timesteps, predictions, times, strict=True):
        latents = scheduler.step(predicted, timestep, latents, generator=generator).prev_sample
        alpha = time / (time + shift - shift * time)
        fresh = torch.randn(predicted.shape, generator=twin)
        torch.testing.assert_close(latents, alpha * predicted + (1 - alpha) * fresh)
    assert torch.equal(latents, predictions[-1])  # at the end of the path there is no noise


def test_consistency_noise_of_a_sample_follows_its_own_generator():
    scheduler = NextClipFlowMatchScheduler(solver="consistency")
    sample, predicted = noise_like(2, 3, 4, 2, 4, 4)
    generators = lambda: [torch.Generator().manual_seed(seed) for seed in (7, 8, 9)]  # noqa: E731
    scheduler.set_timesteps(2)
    together = scheduler.step(predicted, scheduler.timesteps[0], sample, generator=generators()).prev_sample
    scheduler.set_timesteps(2)
    alone = scheduler.step(predicted[1:2], scheduler.timesteps[0], sample[1:2], generator=generators()[1]).prev_sample
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_inference_steps", [1, 2, 4])
def test_consistency_steps_are_those_of_diffusers_lcm_scheduler(num_inference_steps, shift):
    """Draw for draw: the generator stands where it stands with the other one, also for the next clip."""
    ours = NextClipFlowMatchScheduler(solver="consistency", shift=shift)
    theirs = FlowMatchLCMScheduler.from_config(ours.config)
    ends, draws = [], []
    for scheduler in (ours, theirs):
        latents, generator = noise_like(2, 4, 3, 4, 6), torch.Generator().manual_seed(3)
        for timestep, alpha in zip(*set_flow_timesteps(scheduler, num_inference_steps), strict=True):
            output = denoised_to_model_output(scheduler, perfect_model(latents, alpha), sample=latents, alpha=alpha)
            latents = scheduler.step(output, timestep, latents, generator=generator, return_dict=False)[0]
        ends.append(latents)
        draws.append(torch.randn(3, generator=generator))
    torch.testing.assert_close(*ends, atol=1e-5, rtol=0)
    assert torch.equal(*draws)


# --- diffusers' schedulers in our loop


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("scheduler_class", DIFFUSERS_SCHEDULERS)
def test_diffusers_schedulers_made_from_our_config_solve_the_same_problem(scheduler_class, shift):
    scheduler = scheduler_class.from_config(NextClipFlowMatchScheduler(shift=shift).config)
    euler = error(NextClipFlowMatchScheduler(shift=shift), 50)
    bound = 1.001 * euler if scheduler_class is FlowMatchEulerDiscreteScheduler else 0.25 * euler
    assert error(scheduler, 50) < bound


@pytest.mark.parametrize("scheduler_class", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
def test_sample_and_flow_prediction_agree(scheduler_class):
    noise = noise_like(2, 4, 3, 4, 6)
    from_sample = denoise(scheduler_class(use_flow_sigmas=True, prediction_type="sample"), 10, noise)
    from_flow = denoise(scheduler_class(use_flow_sigmas=True, prediction_type="flow_prediction"), 10, noise)
    torch.testing.assert_close(from_sample, from_flow, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_has_the_times_of_the_others(shift):
    """Not its own, whose last step is corrected at σ = 0.001: that multiplies errors. Its settings stay as they were."""
    heun = FlowMatchHeunDiscreteScheduler(shift=shift)
    bounds = heun.sigma_max, heun.sigma_min
    ours = NextClipFlowMatchScheduler(shift=shift)
    for num_inference_steps in (1, 2, 10):
        _, alphas = set_flow_timesteps(heun, num_inference_steps)
        _, expected = set_flow_timesteps(ours, num_inference_steps)
        torch.testing.assert_close(alphas[[0, *range(1, len(alphas), 2)]], expected, atol=1e-6, rtol=0)
    assert (heun.sigma_max, heun.sigma_min) == bounds


def test_heun_evaluates_the_model_where_its_sigmas_are():
    heun = FlowMatchHeunDiscreteScheduler.from_config(NextClipFlowMatchScheduler().config)
    timesteps, alphas = set_flow_timesteps(heun, 10)
    assert len(timesteps) == len(alphas) == 19
    assert error(heun, 40) < 0.05 * error(NextClipFlowMatchScheduler(), 40)


@pytest.mark.parametrize("scheduler_class", [NextClipFlowMatchScheduler, *DIFFUSERS_SCHEDULERS])
def test_alphas_are_one_minus_sigma_and_indices_are_set(scheduler_class):
    scheduler = scheduler_class.from_config(NextClipFlowMatchScheduler(shift=3.0).config)
    timesteps, alphas = set_flow_timesteps(scheduler, 50, "cpu")
    torch.testing.assert_close(alphas, 1 - scheduler.sigmas[:-1], atol=1e-7, rtol=0)
    assert alphas.dtype == torch.float32 and timesteps.shape == alphas.shape == (50,)
    assert scheduler.begin_index == 0
    torch.testing.assert_close(
        alphas, NextClipFlowMatchScheduler(shift=3.0)._shifted(torch.arange(50) / 50), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize(
    "scheduler, reason",
    [
        (DPMSolverMultistepScheduler(), "`use_flow_sigmas` is False, not True and `prediction_type` is 'epsilon'"),
        (DPMSolverMultistepScheduler(prediction_type="sample"), "matching: `use_flow_sigmas` is False, not True. Use"),
        (UniPCMultistepScheduler(use_flow_sigmas=True), "matching: `prediction_type` is 'epsilon', not 'sample'"),
    ],
)
def test_scheduler_without_flow_matching_is_refused_with_the_way_out(scheduler, reason):
    with pytest.raises(ValueError, match=reason) as refusal:
        set_flow_timesteps(scheduler, 4)
    assert f"{type(scheduler).__name__}.from_config(scheduler.config, use_flow_sigmas=True" in str(refusal.value)
    fixed = DPMSolverMultistepScheduler.from_config(
        scheduler.config, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    assert error(fixed, 50) < 0.25 * error(NextClipFlowMatchScheduler(), 50)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(),
        EulerDiscreteScheduler(),
        DDIMScheduler.from_config(NextClipFlowMatchScheduler().config),  # carries our keys, but cannot act on them
    ],
)
def test_scheduler_that_no_setting_makes_fit_is_told_so(scheduler):
    with pytest.raises(ValueError, match=f"{type(scheduler).__name__} is not made for flow matching") as refusal:
        set_flow_timesteps(scheduler, 4)
    assert "prediction_type" not in str(refusal.value)
    fixed = DPMSolverMultistepScheduler.from_config(NextClipFlowMatchScheduler().config)
    assert error(fixed, 50) < 0.25 * error(NextClipFlowMatchScheduler(), 50)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("DPMSolverMultistepInverseScheduler", "it leads from a picture back to its noise"),
        ("HeliosScheduler", "its steps are in stages"),
        ("HeliosDMDScheduler", "its steps are in stages"),
    ],
)
def test_schedulers_for_other_ways_than_from_noise_to_a_clip_are_refused(name, reason):
    kind = getattr(diffusers, name)
    for scheduler in (kind(), kind.from_config(NextClipFlowMatchScheduler().config)):
        with pytest.raises(ValueError, match=f"{name} is not made for one way from noise to a clip: {reason}"):
            set_flow_timesteps(scheduler, 4)


@pytest.mark.parametrize("num_steps", [0, 2.5, True, 10**12])
def test_numbers_of_steps_that_no_clip_can_have_are_refused(num_steps):
    with pytest.raises(ValueError, match="`num_inference_steps` is .* at least 1, at most 1000000, and whole"):
        set_flow_timesteps(NextClipFlowMatchScheduler(), num_steps)
    with pytest.raises(ValueError, match="`num_inference_steps` is "):
        set_flow_timesteps(FlowMatchEulerDiscreteScheduler(), num_steps)


@pytest.mark.parametrize("option", ["use_dynamic_shifting", "invert_sigmas"])
def test_options_that_our_times_do_not_have_are_refused(option):
    scheduler = FlowMatchEulerDiscreteScheduler(**{option: True})
    with pytest.raises(ValueError, match=f"from_config\\(scheduler.config, {option}=False\\)"):
        set_flow_timesteps(scheduler, 4)


# --- configs


@pytest.mark.parametrize("scheduler_class", DIFFUSERS_SCHEDULERS)
def test_config_goes_to_diffusers_and_back(scheduler_class):
    ours = NextClipFlowMatchScheduler(num_train_timesteps=500, shift=3.0, solver="multistep")
    theirs = scheduler_class.from_config(ours.config)
    assert theirs.config.num_train_timesteps == 500
    if scheduler_class is FlowMatchEulerDiscreteScheduler:
        assert theirs.shift == 3.0
    else:
        assert (theirs.config.flow_shift, theirs.config.use_flow_sigmas) == (3.0, True)
        assert (theirs.config.prediction_type, theirs.config.solver_order) == ("sample", 2)
    back = NextClipFlowMatchScheduler.from_config(theirs.config)
    assert (back.config.num_train_timesteps, back.config.shift, back.config.solver) == (500, 3.0, "multistep")


@pytest.mark.parametrize(
    "theirs",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
    ],
)
def test_config_comes_from_diffusers(theirs, tmp_path):
    noise = noise_like(2, 4, 3, 4, 6)
    expected = denoise(NextClipFlowMatchScheduler(shift=3.0), 5, noise)
    theirs.save_pretrained(tmp_path)
    for ours in (
        NextClipFlowMatchScheduler.from_config(theirs.config),
        NextClipFlowMatchScheduler.from_pretrained(tmp_path),
    ):
        assert (ours.config.shift, ours.config.flow_shift, ours.config.prediction_type) == (3.0, 3.0, "sample")
        assert torch.equal(denoise(ours, 5, noise), expected)


def test_config_of_a_scheduler_without_flow_matching_becomes_one_with_it():
    theirs = DPMSolverMultistepScheduler(use_flow_sigmas=False, prediction_type="epsilon")
    ours = NextClipFlowMatchScheduler.from_config(theirs.config)
    assert ours.config.use_flow_sigmas and ours.config.prediction_type == "sample"
    assert error(UniPCMultistepScheduler.from_config(ours.config), 50) < error(ours, 50)


def test_two_shifts_that_disagree_are_not_guessed():
    swapped = UniPCMultistepScheduler.from_config(NextClipFlowMatchScheduler(shift=3.0).config, flow_shift=5.0)
    with pytest.raises(ValueError, match="shift.*=3.0 and .flow_shift.=5.0"):
        NextClipFlowMatchScheduler.from_config(swapped.config)
    assert NextClipFlowMatchScheduler.from_config(swapped.config, shift=5.0).config.flow_shift == 5.0


def test_new_shift_reaches_the_next_scheduler():
    config = NextClipFlowMatchScheduler.from_config(NextClipFlowMatchScheduler(shift=3.0).config, shift=5.0).config
    assert (config.shift, config.flow_shift) == (5.0, 5.0)
    assert UniPCMultistepScheduler.from_config(config).config.flow_shift == 5.0


def test_save_and_load(tmp_path):
    scheduler = NextClipFlowMatchScheduler(shift=3.0, solver="multistep")
    scheduler.save_pretrained(tmp_path)
    loaded = NextClipFlowMatchScheduler.from_pretrained(tmp_path)
    saved_config = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    assert dict(loaded.config) == saved_config
    noise = noise_like(2, 4, 3, 4, 6)
    assert torch.equal(denoise(loaded, 5, noise), denoise(scheduler, 5, noise))


@pytest.mark.parametrize("config", [{}, {"shift": 3.0}, {"num_train_timesteps": 500, "shift": 1.0}])
def test_compatible_schedulers_keep_the_config(config, monkeypatch):
    monkeypatch.setattr(diffusers, "NextClipFlowMatchScheduler", NextClipFlowMatchScheduler, raising=False)
    scheduler = NextClipFlowMatchScheduler(**config)
    assert {c.__name__ for c in scheduler.compatibles} == {
        "NextClipFlowMatchScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "UniPCMultistepScheduler",
        "DPMSolverMultistepScheduler",
    }
    for compatible in scheduler.compatibles:
        back = NextClipFlowMatchScheduler.from_config(compatible.from_config(scheduler.config).config)
        expected = {**scheduler.config, "_use_default_values": sorted(scheduler.config["_use_default_values"])}
        actual = {k: v for k, v in back.config.items() if k in expected}
        actual["_use_default_values"] = sorted(actual["_use_default_values"])
        assert actual == expected


def test_scheduler_interface_of_diffusers():
    scheduler = NextClipFlowMatchScheduler()
    sample, noise = noise_like(2, 4, 3, 8, 8)
    assert scheduler.init_noise_sigma == 1.0 and scheduler.order == 1
    assert scheduler.scale_model_input(sample, 0.0) is sample
    scheduler.set_timesteps(10)
    assert scheduler.step_index is None and scheduler.begin_index is None
    assert scheduler.index_for_timestep(scheduler.timesteps[5]) == 5
    timestep = scheduler.timesteps[5][None]
    assert torch.equal(scheduler.add_noise(sample, noise, timestep), scheduler.scale_noise(sample, timestep, noise))
    scheduler.step(sample, scheduler.timesteps[5], noise)
    assert scheduler.step_index == 6
    for twin in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert torch.equal(
            twin.step(sample, twin.timesteps[6], noise, return_dict=False)[0],
            copy.deepcopy(scheduler).step(sample, scheduler.timesteps[6], noise).prev_sample,
        )


# --- training noise


def test_scale_noise_of_points_between_the_timesteps_and_of_each_frame():
    scheduler = NextClipFlowMatchScheduler()
    sample, noise = noise_like(2, 2, 3, 4, 4, 4)
    alphas = torch.tensor([[0.123, 0.5, 1.0], [0.0, 0.777, 0.25]])
    noisy = scheduler.scale_noise(sample, (1 - alphas) * 1000, noise)
    for b in range(2):
        for f in range(3):
            a = alphas[b, f].item()
            torch.testing.assert_close(noisy[b, f], a * sample[b, f] + (1 - a) * noise[b, f], atol=1e-6, rtol=0)
    torch.testing.assert_close(noisy, mix_noise(sample, alphas, noise=noise), atol=1e-6, rtol=0)
    channels_first = scheduler.scale_noise(sample.transpose(1, 2), (1 - alphas[:, None]) * 1000, noise.transpose(1, 2))
    torch.testing.assert_close(channels_first, noisy.transpose(1, 2))


def test_scale_noise_agrees_with_flow_match_euler_on_its_grid():
    ours, theirs = NextClipFlowMatchScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    sample, noise = noise_like(2, 8, 4, 4, 4)
    timesteps = theirs.timesteps[::130]
    torch.testing.assert_close(
        ours.scale_noise(sample, timesteps, noise), theirs.scale_noise(sample, timesteps, noise)
    )
    assert torch.equal(ours.scale_noise(sample, 1000, noise), noise)
    assert torch.equal(ours.scale_noise(sample, 0, noise), sample)


def test_mix_noise_computes_in_fp32():
    sample, noise = noise_like(2, 3, 4, 8, 8).bfloat16()
    retention = torch.tensor([0.951, 0.999, 0.9001])
    mixed = mix_noise(sample, retention, noise=noise)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, mix_noise(sample.float(), retention, noise=noise.float()).bfloat16())


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 4, 4, 4, 1)])
def test_noise_levels_that_do_not_fit_are_refused(shape):
    sample = torch.zeros(2, 3, 4, 4, 4)
    with pytest.raises(ValueError, match="do not fit the leading dimensions"):
        mix_noise(sample, torch.ones(shape), noise=sample)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"`noise` has shape \(4, 4\)"):
        NextClipFlowMatchScheduler().scale_noise(torch.zeros(3, 4, 4), 500, torch.zeros(4, 4))


def test_sample_alphas_are_one_a_clip_and_uniform():
    lengths = [1, 5, 2] * 2000
    alphas = sample_alphas(lengths, torch.Generator().manual_seed(1))
    clips = alphas.split(lengths)
    assert alphas.shape == (16000,) and all((clip == clip[0]).all() for clip in clips)
    levels = torch.stack([clip[0] for clip in clips])
    assert levels.unique().numel() > 5900
    counts = torch.histc(levels, bins=10, min=0, max=1)
    assert counts.sum() == 6000 and counts.min() > 500 and counts.max() < 700
    assert torch.equal(sample_alphas(lengths, torch.Generator().manual_seed(1)), alphas)


def test_sample_retentions_are_uniform_above_the_minimum():
    retentions = sample_retentions(6000, torch.Generator().manual_seed(1))
    counts = torch.histc(retentions, bins=10, min=0.9, max=1)
    assert counts.sum() == 6000 and counts.min() > 500 and counts.max() < 700


# --- bad input


@pytest.mark.parametrize(
    "kwargs, message", [({"shift": 0.0}, "`shift` is 0.0"), ({"solver": "rk4"}, "`solver` is 'rk4'")]
)
def test_bad_options_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        NextClipFlowMatchScheduler(**kwargs)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({}, "but got none"),
        ({"num_inference_steps": 2, "sigmas": [1.0, 0.5]}, "got num_inference_steps and sigmas"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0, but must be at least 1"),
        ({"sigmas": []}, "`sigmas` must be"),
        ({"sigmas": [0.5, 1.0]}, "`sigmas` must be"),
        ({"sigmas": [1.0, 0.0]}, "`sigmas` must be"),
        ({"timesteps": [1001.0, 500.0]}, r"`timesteps` must be .* in \(0, 1000\]"),
    ],
)
def test_bad_timesteps_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        NextClipFlowMatchScheduler().set_timesteps(**kwargs)


@pytest.mark.parametrize("scheduler_class", [NextClipFlowMatchScheduler, FlowMatchEulerDiscreteScheduler])
def test_no_steps_are_refused_for_every_scheduler(scheduler_class):
    with pytest.raises(ValueError, match="`num_inference_steps` is 0"):
        set_flow_timesteps(scheduler_class(), 0)


def test_step_before_set_timesteps_is_refused():
    scheduler = NextClipFlowMatchScheduler()
    with pytest.raises(ValueError, match="call `scheduler.set_timesteps"):
        scheduler.step(torch.zeros(1, 4), scheduler.timesteps[0], torch.zeros(1, 4))


def test_step_after_the_last_is_refused():
    scheduler = NextClipFlowMatchScheduler()
    scheduler.set_timesteps(1)
    scheduler.step(torch.zeros(1, 4), scheduler.timesteps[0], torch.zeros(1, 4))
    with pytest.raises(ValueError, match="all 1 steps are done"):
        scheduler.step(torch.zeros(1, 4), scheduler.timesteps[0], torch.zeros(1, 4))


def test_step_at_an_index_instead_of_a_timestep_is_refused():
    scheduler = NextClipFlowMatchScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="`timestep` 0 is not in the schedule"):
        scheduler.step(torch.zeros(1, 4), 0, torch.zeros(1, 4))


def test_step_of_different_shapes_is_refused():
    scheduler = NextClipFlowMatchScheduler()
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"`model_output` has shape \(1, 4\) but `sample` has \(2, 4\)"):
        scheduler.step(torch.zeros(1, 4), scheduler.timesteps[0], torch.zeros(2, 4))


def test_a_path_is_no_config():
    with pytest.raises(ValueError, match="got the path 'folder': use `from_pretrained`"):
        NextClipFlowMatchScheduler.from_config("folder")


@pytest.mark.parametrize(
    "setting",
    [
        {"shift": "3"},
        {"shift": float("nan")},
        {"shift": 0},
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": 2.5},
    ],
    ids=str,
)
def test_a_config_of_wrong_values_is_refused_by_name(setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}` is "):
        NextClipFlowMatchScheduler(**setting)


@pytest.mark.parametrize("num_inference_steps", [0, 2.0, "4", True])
def test_steps_are_a_whole_number(num_inference_steps):
    with pytest.raises(ValueError, match="`num_inference_steps` is"):
        set_flow_timesteps(NextClipFlowMatchScheduler(), num_inference_steps)
