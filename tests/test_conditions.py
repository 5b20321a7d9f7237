"""Classes and texts: what the pipeline makes of them, and guidance by them, against separate passes of the transformer."""

import logging

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from text_encoders import MAX_TOKENS, WIDTH, make_text_encoder, make_tokenizer

from diffusers_videogpt import NextClipFlowMatchScheduler, VideoGPTPipeline, rollout
from diffusers_videogpt.conditions import encode_text


NAMES = {0: "bounce", 1: "fall"}  # two of them: a list of two strings would look like a component in model_index.json
SHORT, LONG = "one red ball falls", "two blue boxes and one red ball fall"


def make_pipe(transformer, **components) -> VideoGPTPipeline:
    pipe = VideoGPTPipeline(
        None,
        transformer,
        NextClipFlowMatchScheduler(),
        **{"frames_per_clip": 2, "max_context_frames": 5, "longest_side": 32, "id2label": NAMES} | components,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def transformer(make_tiny_transformer):
    return make_tiny_transformer(num_classes=2, text_embed_dim=WIDTH)


@pytest.fixture
def pipe(transformer):
    """Of classes and text."""
    return make_pipe(transformer, text_encoder=make_text_encoder(), tokenizer=make_tokenizer())


@pytest.fixture
def history():
    return torch.randn(1, 4, 3, 4, 6, generator=seeded(1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def predict(pipe, **kwargs):
    arguments = {"num_inference_steps": 2, "generator": seeded(), "output_type": "latent", "height": 32, "width": 32}
    if "video_latents" in kwargs:
        arguments |= {"height": None, "width": None}
    return pipe(**(arguments | kwargs)).frames


def assert_same(first, second):
    torch.testing.assert_close(first, second, atol=2e-5, rtol=0)


# Guidance


@torch.no_grad()
def slow_twin(transformer, noise, history, asked, unasked, c, d, num_steps):
    """One clip by Euler steps; every pass of its own, the history and the conditions in full each time."""
    latents, times = noise, torch.linspace(0, 1, num_steps + 1)
    for time, next_time in zip(times, times[1:], strict=False):

        def clean(history, conditions, z=latents, time=time):
            return transformer(z, time, clean_hidden_states=history, **conditions).sample

        best = clean(history, asked)
        prediction = best + (d - 1) * (best - clean(history, unasked))
        if history is not None:
            prediction = prediction + (c - 1) * (best - clean(None, asked))
        latents = latents + (next_time - time) * (prediction - latents) / (1 - time)
    return latents


@pytest.mark.parametrize("use_kv_cache", [True, False])
@pytest.mark.parametrize("has_history", [True, False])
@pytest.mark.parametrize("kinds", ["class", "text", "both"])
def test_guidance_is_separate_passes(pipe, transformer, history, kinds, has_history, use_kv_cache):
    noise = torch.randn(1, 4, 2, 4, 6, generator=seeded(3))
    arguments, asked, unasked = {}, {}, {}
    if kinds != "text":
        arguments["class_labels"] = "fall"
        asked["class_labels"], unasked["class_labels"] = torch.tensor([1]), torch.tensor([2])
    else:
        asked["class_labels"] = unasked["class_labels"] = torch.tensor([2])
    texts = ["", ""] if kinds == "class" else [LONG, "a box"]
    if kinds != "class":
        arguments |= {"prompt": LONG, "negative_prompt": "a box"}
    for conditions, text in zip((asked, unasked), texts, strict=True):
        conditions["encoder_hidden_states"] = encode_text(pipe.text_encoder, pipe.tokenizer, texts=[text])[0]
    if has_history:
        arguments |= {"video_latents": history, "guidance_scale": 1.7}
    frames = predict(
        pipe,
        latents=noise,
        condition_guidance_scale=2.5,
        use_kv_cache=use_kv_cache,
        **{"height": None, "width": None} | arguments,
    )
    past = history if has_history else None
    assert_same(frames, slow_twin(transformer, noise, past, asked, unasked, 1.7, 2.5, num_steps=2))


@pytest.mark.parametrize(
    "scales, num_passes", [((1.0, 1.0), 1), ((2.0, 1.0), 2), ((1.0, 2.0), 2), ((2.0, 2.0), 3)], ids=str
)
def test_a_scale_of_one_saves_its_pass(pipe, transformer, history, scales, num_passes):
    calls = []
    transformer.proj_out.register_forward_hook(lambda *_: calls.append(1))
    arguments = {"video_latents": history, "guidance_scale": scales[0], "condition_guidance_scale": scales[1]}
    predict(pipe, prompt=SHORT, num_inference_steps=3, **arguments)
    assert len(calls) == 3 * num_passes


def test_both_guidances_change_the_result(pipe, history):
    base = {"video_latents": history, "prompt": LONG, "guidance_scale": 1.5, "condition_guidance_scale": 1.5}
    results = [
        predict(pipe, **base | change) for change in ({}, {"guidance_scale": 3.0}, {"condition_guidance_scale": 3.0})
    ]
    assert not any(torch.allclose(results[0], other, atol=1e-3) for other in results[1:])


# What is asked for


def test_classes_by_name_and_by_number(pipe):
    expected = predict(pipe, class_labels=["bounce", "fall"])
    for same in ([0, 1], torch.tensor([0, 1]), (0, "fall"), np.array([0, 1])):
        assert_same(predict(pipe, class_labels=same), expected)
    assert_same(predict(pipe, class_labels="bounce", generator=seeded()), predict(pipe, class_labels=0))
    assert not torch.allclose(expected[0], predict(pipe, class_labels=["fall", "fall"])[0], atol=1e-3)


def test_nothing_asked_for_is_no_label_and_the_empty_text(pipe, transformer, history):
    """As in training where they were dropped; there is nothing to guide by."""
    seen = []
    transformer.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    predict(pipe, num_inference_steps=1)
    (conditions,) = seen
    assert conditions["class_labels"].tolist() == [2]
    torch.testing.assert_close(
        conditions["encoder_hidden_states"], encode_text(pipe.text_encoder, pipe.tokenizer, texts=[""])[0]
    )


@pytest.mark.parametrize("kind", ["clip", "bert", "t5"])
def test_prompt_embeds_are_the_prompt(transformer, kind, history):
    pipe = make_pipe(transformer, text_encoder=make_text_encoder(kind), tokenizer=make_tokenizer())
    expected = predict(pipe, prompt=[SHORT, LONG], negative_prompt="a box", num_frames=4)
    embeds, mask, negative_embeds, negative_mask = pipe.encode_prompt([SHORT, LONG], "a box")
    assert embeds.shape[0] == negative_embeds.shape[0] == 2 and mask.sum(1).tolist() == [6, 10]
    names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    encoded = dict(zip(names, (embeds, mask, negative_embeds, negative_mask), strict=True))
    alone = make_pipe(transformer)  # needs no text encoder
    torch.testing.assert_close(predict(alone, num_frames=4, **encoded), expected, rtol=0, atol=0)
    assert not torch.allclose(predict(pipe, prompt=[LONG, SHORT], negative_prompt="a box", num_frames=4), expected)


def test_each_prompt_of_a_batch_is_as_if_alone(pipe, history):
    """Texts of different lengths, over more clips than the window holds."""
    arguments = {"video_latents": history, "num_frames": 6, "guidance_scale": 1.5, "condition_guidance_scale": 2.0}
    together = predict(pipe, prompt=[SHORT, LONG], generator=[seeded(1), seeded(2)], **arguments)
    for index, prompt in enumerate((SHORT, LONG)):
        alone = predict(pipe, prompt=prompt, generator=seeded(index + 1), **arguments)
        assert_same(together[index : index + 1], alone)


def test_one_for_all(pipe, history):
    """One image or label goes with several prompts, and each several times."""
    generators = [seeded(seed) for seed in range(4)]
    arguments = {
        "video_latents": history,
        "class_labels": 1,
        "num_videos_per_prompt": 2,
        "condition_guidance_scale": 2.0,
    }
    frames = predict(pipe, prompt=[SHORT, LONG], generator=generators, **arguments)
    assert frames.shape[0] == 4
    expected = predict(
        pipe, video_latents=history, class_labels=1, prompt=LONG, generator=seeded(3), condition_guidance_scale=2.0
    )
    assert_same(frames[3:], expected)


def test_cache_past_the_window(pipe, history):
    arguments = {"video_latents": history, "num_frames": 8, "prompt": LONG, "class_labels": "fall"}
    arguments |= {"guidance_scale": 1.5, "condition_guidance_scale": 2.0}
    assert history.shape[2] + 8 > pipe.config.max_context_frames
    assert_same(predict(pipe, **arguments), predict(pipe, use_kv_cache=False, **arguments))


def test_rolling_cache_keeps_the_conditions(pipe):
    """Also where a clip fills the window, so that all cached frames go."""
    arguments = {"video_latents": torch.randn(1, 4, 4, 4, 6, generator=seeded(1)), "prompt": LONG, "class_labels": 1}
    arguments |= {"num_frames": 8, "frames_per_clip": 4, "max_context_frames": 4}
    assert_same(predict(pipe, rolling_cache=True, **arguments)[:, :, :4], predict(pipe, **arguments)[:, :, :4])


def test_a_text_padded_to_a_fixed_length_is_cached_too(pipe, history, monkeypatch):
    embeds, mask = encode_text(pipe.text_encoder, pipe.tokenizer, texts=[SHORT])
    padded = torch.cat([embeds, torch.ones(1, 3, WIDTH)], dim=1)
    histories, prepare = [], rollout.prepare_history

    def record(*args, **kwargs):
        histories.append(prepare(*args, **kwargs))
        return histories[-1]

    monkeypatch.setattr(rollout, "prepare_history", record)
    arguments = {"video_latents": history, "condition_guidance_scale": 2.0}
    expected = predict(pipe, prompt_embeds=embeds, **arguments)
    padded_mask = torch.cat([mask, torch.zeros(1, 3, dtype=torch.bool)], dim=1)
    assert_same(predict(pipe, prompt_embeds=padded, prompt_attention_mask=padded_mask, **arguments), expected)
    assert [history.kv_cache is not None for history in histories] == [True, True]


def test_stream_is_the_call(pipe, history):
    arguments = {"video_latents": history, "num_inference_steps": 2, "output_type": "latent", "num_frames": 6}
    arguments |= {"prompt": LONG, "class_labels": "fall", "guidance_scale": 1.5, "condition_guidance_scale": 2.0}
    expected = pipe(generator=seeded(), **arguments).frames
    with pipe.stream(generator=seeded(), **arguments) as stream:
        assert_same(torch.cat([clip.frames for clip in stream], dim=2), expected)


def test_block_caches_know_the_passes_apart(pipe, transformer, history):
    arguments = {"video_latents": history, "num_frames": 4, "prompt": LONG, "class_labels": "fall"}
    arguments |= {"guidance_scale": 1.5, "condition_guidance_scale": 2.0, "num_inference_steps": 3}
    expected = predict(pipe, **arguments)
    transformer.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
    assert_same(predict(pipe, **arguments), expected)


def test_save_and_load(pipe, tmp_path, caplog):
    expected = predict(pipe, prompt=SHORT, class_labels="fall")
    pipe.save_pretrained(tmp_path)
    logging.getLogger("diffusers").propagate = True
    loaded = VideoGPTPipeline.from_pretrained(tmp_path)
    assert "Expected types" not in caplog.text
    loaded.set_progress_bar_config(disable=True)
    assert loaded.labels == {"bounce": 0, "fall": 1} and type(loaded.text_encoder).__name__ == "CLIPTextModel"
    assert_same(predict(loaded, prompt=SHORT, class_labels="fall"), expected)
    without = VideoGPTPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    with pytest.raises(ValueError, match="has no text encoder"):
        predict(without, prompt=SHORT)


# Bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"class_labels": "fal"}, "Unknown class 'fal' among the 2 classes of this model: do you mean 'fall'"),
        ({"class_labels": [0, 2]}, r"numbers in 0\.\.1 or names, got 2"),
        ({"class_labels": -1}, "got -1"),
        ({"class_labels": [0.5]}, "got 0.5"),
        ({"class_labels": []}, "`class_labels` is empty"),
        ({"prompt": []}, "`prompt` must be a text or a list of at least one"),
        ({"prompt": [SHORT, None]}, "`prompt` must be a text"),
        ({"prompt": SHORT, "prompt_embeds": torch.zeros(1, 2, WIDTH)}, "`prompt` or `prompt_embeds`, not both"),
        ({"prompt_embeds": torch.zeros(1, 2, 5)}, rf"\(batch, tokens, {WIDTH}\), got \[1, 2, 5\]"),
        (
            {"prompt_embeds": torch.zeros(1, 2, WIDTH), "prompt_attention_mask": torch.tensor([[0, 1]])},
            "real tokens first",
        ),
        ({"negative_prompt": "a box"}, "needs a `prompt`"),
        ({"prompt": SHORT, "negative_prompt": ["a", "a box"]}, "2 negative prompts for 1 prompts"),
        ({"prompt": [SHORT] * 3, "class_labels": [0, 1]}, "Labels and prompts differ in number"),
        ({"prompt": [SHORT] * 3, "video_latents": torch.zeros(2, 4, 1, 4, 4)}, "2 videos or images were given, and 3"),
        ({"prompt": [SHORT] * 3, "latents": torch.zeros(2, 4, 2, 4, 4)}, "noise of 2 videos, 3 are to be predicted"),
    ],
)
def test_bad_arguments(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        predict(pipe, **{"condition_guidance_scale": 2.0} | arguments)


def test_models_that_were_not_trained_on_it(tiny_transformer):
    pipe = make_pipe(tiny_transformer, text_encoder=make_text_encoder(), tokenizer=make_tokenizer())
    with pytest.raises(ValueError, match="not trained on classes"):
        predict(pipe, class_labels=0)
    with pytest.raises(ValueError, match="not trained on text"):
        predict(pipe, prompt=SHORT)
    assert predict(pipe).shape == (1, 4, 2, 4, 4)


def test_text_encoder_of_another_width(make_tiny_transformer):
    transformer = make_tiny_transformer(text_embed_dim=WIDTH + 4)
    pipe = make_pipe(transformer, text_encoder=make_text_encoder(), tokenizer=make_tokenizer())
    with pytest.raises(ValueError, match=f"takes text of width {WIDTH + 4}, CLIPTextModel gives {WIDTH}"):
        predict(pipe, prompt=SHORT)


def test_class_names_that_the_pipeline_does_not_have(transformer):
    pipe = make_pipe(transformer, id2label=None, text_encoder=make_text_encoder(), tokenizer=make_tokenizer())
    assert predict(pipe, class_labels=1).shape[0] == 1
    assert_same(predict(pipe, class_labels=np.int64(1)), predict(pipe, class_labels=1))
    with pytest.raises(ValueError, match="knows no names"):
        predict(pipe, class_labels="fall")


def test_long_prompt_is_cut_and_says_so(pipe, caplog):
    logging.getLogger("diffusers_videogpt").propagate = True
    words = ["one", "red", "ball", "and", "two", "blue", "boxes", "and", "a", "green", "box", "fall"]
    room = MAX_TOKENS - 2
    with caplog.at_level(logging.WARNING):
        frames = predict(pipe, prompt=" ".join(words))
    assert f"A text has {len(words)} tokens, the text encoder takes {room}" in caplog.text
    assert f"cut off: '{' '.join(words[room:])}'" in caplog.text
    caplog.clear()
    assert_same(predict(pipe, prompt=" ".join(words[:room])), frames)
    assert not caplog.text
