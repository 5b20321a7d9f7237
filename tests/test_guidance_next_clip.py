"""Guidance as a component: ours, those of diffusers in its place, saved and loaded, never changed by a call."""

import json
import logging

import pytest
import torch
from diffusers import AdaptiveProjectedGuidance, ClassifierFreeGuidance, DiffusionPipeline, SkipLayerGuidance
from diffusers.hooks import LayerSkipConfig
from test_modular_pipeline_videogpt import HISTORY, make_modular, predict

from diffusers_videogpt import NextClipGuidance, VideoGPTModularPipeline


ROLLOUT = {"video_latents": HISTORY, "num_frames": 4, "num_inference_steps": 4}


def use(pipe, guider):
    if isinstance(pipe, VideoGPTModularPipeline):
        pipe.update_components(guider=guider)
    else:
        pipe.guider = guider


@pytest.fixture(params=["standard", "modular"])
def pipe(make_tiny_pipe, request):
    standard = make_tiny_pipe()
    return standard if request.param == "standard" else make_modular(standard)


def test_formula():
    guider = NextClipGuidance(guidance_scale=2.5, condition_guidance_scale=4.0)
    asked, alone, negative = (torch.randn(1, 4, 2, 4, 4) for _ in range(3))
    expected = alone + 2.5 * (asked - alone) + 3.0 * (asked - negative)
    assert torch.equal(guider.forward(asked, alone, negative)[0], expected)


def test_a_guider_says_what_arguments_say(pipe):
    expected = predict(pipe, guidance_scale=2.0, guidance_interval=(0.25, 0.75), **ROLLOUT)
    assert not torch.equal(predict(pipe, guidance_scale=2.0, **ROLLOUT), expected)
    use(pipe, NextClipGuidance(guidance_scale=2.0, start=0.25, stop=0.75))
    assert torch.equal(predict(pipe, **ROLLOUT), expected)
    use(pipe, NextClipGuidance(guidance_scale=7.0))
    assert torch.equal(predict(pipe, guidance_scale=2.0, guidance_interval=(0.25, 0.75), **ROLLOUT), expected)


def test_guiders_of_diffusers_guide_by_history(pipe):
    ours = predict(pipe, guidance_scale=2.0, **ROLLOUT)
    use(pipe, ClassifierFreeGuidance(guidance_scale=2.0))
    torch.testing.assert_close(predict(pipe, **ROLLOUT), ours)
    torch.testing.assert_close(predict(pipe, use_kv_cache=False, **ROLLOUT), ours, atol=1e-5, rtol=0)
    use(pipe, AdaptiveProjectedGuidance(guidance_scale=2.0, eta=0.0, adaptive_projected_guidance_momentum=-0.5))
    projected = predict(pipe, **ROLLOUT)
    assert projected.isfinite().all() and not torch.allclose(projected, ours)
    assert torch.equal(predict(pipe, **ROLLOUT), projected)  # its momentum is of one call
    use(pipe, ClassifierFreeGuidance(guidance_scale=1.0))
    torch.testing.assert_close(predict(pipe, guidance_scale=2.0, **ROLLOUT), ours)


def test_without_history_there_is_nothing_to_guide_by(pipe):
    expected = predict(pipe, num_frames=2)
    use(pipe, ClassifierFreeGuidance(guidance_scale=5.0))
    assert torch.equal(predict(pipe, num_frames=2), expected)


def test_a_disabled_guider_stays_so(pipe):
    expected = predict(pipe, guidance_scale=1.0, **ROLLOUT)
    guider = NextClipGuidance(guidance_scale=3.0)
    guider.disable()
    use(pipe, guider)
    assert torch.equal(predict(pipe, **ROLLOUT), expected)
    assert torch.equal(predict(pipe, guidance_scale=4.0, **ROLLOUT), expected)


def test_a_guider_that_changes_the_model_from_pass_to_pass(make_tiny_pipe):
    pipe = make_tiny_pipe()
    ours = predict(pipe, guidance_scale=2.0, **ROLLOUT)
    skip = LayerSkipConfig(indices=[0], fqn="transformer_blocks")
    options = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0, "skip_layer_config": skip}
    pipe.guider = SkipLayerGuidance(guidance_scale=2.0, skip_layer_guidance_scale=0.0, **options)
    torch.testing.assert_close(predict(pipe, **ROLLOUT), ours, atol=1e-5, rtol=0)
    pipe.guider = SkipLayerGuidance(guidance_scale=2.0, skip_layer_guidance_scale=2.0, **options)
    assert not torch.allclose(predict(pipe, **ROLLOUT), ours, atol=1e-3)


def test_a_call_does_not_change_the_component(make_tiny_pipe):
    pipe = make_tiny_pipe()
    pipe.guider = NextClipGuidance(guidance_scale=2.0)
    before = (dict(pipe.guider.__dict__), dict(pipe.guider.config))
    predict(pipe, guidance_scale=3.0, **ROLLOUT)
    predict(pipe, **ROLLOUT)
    assert (pipe.guider.__dict__, dict(pipe.guider.config)) == before


def test_calls_do_not_warn_of_guiders(make_tiny_pipe, caplog):
    logging.getLogger("diffusers").propagate = True
    predict(make_tiny_pipe(), **ROLLOUT)
    assert "experimental" not in caplog.text


def test_saved_and_loaded(make_tiny_pipe, tmp_path):
    pipe = make_tiny_pipe()
    expected = predict(pipe, guidance_scale=2.0, **ROLLOUT)
    pipe.guider = NextClipGuidance(guidance_scale=2.0)
    pipe.save_pretrained(tmp_path / "ours")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "ours")
    assert type(loaded.guider) is NextClipGuidance
    assert torch.equal(predict(loaded, **ROLLOUT), expected)
    pipe.guider = ClassifierFreeGuidance(guidance_scale=2.0)
    pipe.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(predict(DiffusionPipeline.from_pretrained(tmp_path / "theirs"), **ROLLOUT), expected)


def test_a_pipeline_saved_before_there_were_guiders(make_tiny_pipe, tmp_path):
    pipe = make_tiny_pipe(guidance_scale=2.5)
    expected = predict(pipe, guidance_scale=2.5, **ROLLOUT)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index.pop("guider") == [None, None]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert loaded.guider is None and torch.equal(predict(loaded, **ROLLOUT), expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"guidance_scale": float("nan")}, "`guidance_scale` must be a finite number, got nan"),
        ({"guidance_scale": "3"}, "`guidance_scale` must be a finite number, got '3'"),
        ({"condition_guidance_scale": float("inf")}, "`condition_guidance_scale` must be a finite number"),
        ({"guidance_interval": 0.5}, "`guidance_interval`=0.5 must be"),
        ({"guidance_interval": (0, "1")}, "guidance_interval"),
    ],
)
def test_bad_arguments(make_tiny_pipe, arguments, message):
    pipe = make_tiny_pipe()
    pipe.transformer.register_forward_hook(lambda *_: pytest.fail("computed"))
    for one in (pipe, make_modular(pipe)):
        with pytest.raises(ValueError, match=message):
            predict(one, video_latents=HISTORY, **arguments)


def test_options_that_a_guider_does_not_have(make_tiny_pipe):
    pipe = make_tiny_pipe()
    pipe.guider = ClassifierFreeGuidance(guidance_scale=2.0)
    with pytest.raises(
        ValueError, match="`condition_guidance_scale` was passed, but .* ClassifierFreeGuidance, has no"
    ):
        predict(pipe, condition_guidance_scale=3.0, **ROLLOUT)
    assert predict(pipe, condition_guidance_scale=1.0, **ROLLOUT).isfinite().all()


def test_a_guider_by_history_alone_does_not_leave_out_classes_unsaid(make_tiny_pipe, make_tiny_transformer):
    pipe = make_tiny_pipe()
    pipe.register_modules(transformer=make_tiny_transformer(num_classes=2))
    pipe.guider = ClassifierFreeGuidance(guidance_scale=2.0)
    with pytest.raises(ValueError, match="guides by history alone, not by classes"):
        predict(pipe, class_labels=1, **ROLLOUT)
    expected = predict(pipe, class_labels=1, condition_guidance_scale=1, **ROLLOUT)
    pipe.guider = None
    ours = predict(pipe, class_labels=1, guidance_scale=2.0, condition_guidance_scale=1, **ROLLOUT)
    torch.testing.assert_close(expected, ours)
