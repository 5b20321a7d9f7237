"""The transformer by itself: size, saving, cache, conditions, what depends on what, errors, and diffusers' features."""

import inspect
import json
import math

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from peft import LoraConfig

from diffusers_videogpt.attention_videogpt import VideoGPTAttnProcessor, VideoGPTRotaryPosEmbed
from diffusers_videogpt.clips import CLEAN, NOISY, ClipLayout, make_clip_layout
from diffusers_videogpt.kv_cache import VideoGPTKVCache
from diffusers_videogpt.transformer_videogpt import PHI3_LONG_FACTOR, VideoGPTTransformerModel


ROWS, COLUMNS = 2, 3
TOKENS_PER_FRAME = ROWS * COLUMNS + 2
TIMESTEP = torch.tensor(0.3)


def latents(num_frames: int, seed: int = 0, batch_size: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, 4, num_frames, 2 * ROWS, 2 * COLUMNS, generator=generator)


def text_states(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, length, 6, generator=torch.Generator().manual_seed(seed))


def assert_same(output: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


def assert_different(output: torch.Tensor, other: torch.Tensor) -> None:
    assert (output - other).abs().max() > 1e-2


@pytest.fixture
def conditional_transformer(make_tiny_transformer):
    return make_tiny_transformer(num_classes=5, text_embed_dim=6)


# Size, initialisation, saving


def test_default_parameter_count():
    width, ffn_width, patch = 3072, 8192, 2 * 2 * 4
    layer = 4 * width * width + 3 * width * ffn_width + 2 * width
    patch_embed = patch * width + width
    timestep_mlp = 256 * width + width + width * width + width
    output = (width * 2 * width + 2 * width) + (width * patch + patch)
    hints = 3 * width
    expected = 32 * layer + width + 2 * patch_embed + 2 * timestep_mlp + hints + output

    with torch.device("meta"):
        model = VideoGPTTransformerModel()

    assert model.num_parameters() == expected
    assert 3.66e9 < expected < 3.67e9


def test_new_model_predicts_zero(make_tiny_transformer):
    model, again, other = make_tiny_transformer(), make_tiny_transformer(), make_tiny_transformer()
    model.init_weights(torch.Generator().manual_seed(1))
    again.init_weights(torch.Generator().manual_seed(1))
    other.init_weights(torch.Generator().manual_seed(2))

    assert torch.equal(model(latents(2), TIMESTEP, latents(1)).sample, torch.zeros_like(latents(2)))
    assert torch.equal(model.transformer_blocks[1].attn.to_q.weight, again.transformer_blocks[1].attn.to_q.weight)
    assert not torch.equal(model.transformer_blocks[1].attn.to_q.weight, other.transformer_blocks[1].attn.to_q.weight)
    assert model.time_embed.linear_2.weight.std().item() == pytest.approx(0.02, rel=0.1)
    xavier_bound = math.sqrt(6 / (32 + 32))
    assert model.transformer_blocks[0].attn.to_k.weight.abs().max().item() == pytest.approx(xavier_bound, rel=0.05)


@torch.no_grad()
def test_initialisation_follows_the_generator(conditional_transformer):
    states = []
    for seed in (1, 1, 2):
        conditional_transformer.init_weights(torch.Generator().manual_seed(seed))
        states.append({name: p.clone() for name, p in conditional_transformer.named_parameters() if p.ndim > 1})
    first, again, other = states
    drawn = [name for name, weight in first.items() if weight.any()]
    assert set(first) - set(drawn) == {"norm_out.linear.weight", "proj_out.weight"}
    for name in drawn:
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]), name


def test_save_and_load(conditional_transformer, tmp_path):
    conditional_transformer.save_pretrained(tmp_path)
    loaded = VideoGPTTransformerModel.from_pretrained(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    for name in inspect.signature(VideoGPTTransformerModel.__init__).parameters.keys() - {"self"}:
        saved = conditional_transformer.config[name]
        assert loaded.config[name] == (list(saved) if isinstance(saved, tuple) else saved)
    args = (latents(2), TIMESTEP, latents(3, 1))
    conditions = {"class_labels": torch.tensor([3]), "encoder_hidden_states": text_states(2)}
    assert torch.equal(loaded(*args, **conditions).sample, conditional_transformer(*args, **conditions).sample)


# Rotary embedding


def make_rope(long_factor, max_position_embeddings, original_max_position_embeddings, head_dim=96, theta=10000.0):
    return VideoGPTRotaryPosEmbed(
        head_dim,
        theta,
        long_factor=long_factor,
        max_position_embeddings=max_position_embeddings,
        original_max_position_embeddings=original_max_position_embeddings,
    )


def test_rope_scaling_of_the_published_model():
    rope = make_rope(PHI3_LONG_FACTOR, 131072, 4096)

    assert rope.attention_scaling == pytest.approx(1.1902, abs=1e-4)
    assert rope.attention_scaling == pytest.approx(math.sqrt(1 + math.log(131072 / 4096) / math.log(4096)))
    assert make_rope(None, 131072, 4096).attention_scaling == 1.0
    assert make_rope(PHI3_LONG_FACTOR, 4096, 4096).attention_scaling == 1.0


def test_rope_factors_of_the_published_model(shared_dir):
    published = json.loads((shared_dir / "spec" / "phi3_rope.json").read_text())
    assert list(PHI3_LONG_FACTOR) == published["long_factor"]


def test_rope_angles():
    factors = (1.0, 2.0, 5.0)
    cos, sin = make_rope(factors, 64, 16, head_dim=6, theta=100.0)(torch.tensor([[0, 3, -2]]))

    scale = math.sqrt(1 + math.log(4) / math.log(16))
    for i, position in enumerate([0, 3, -2]):
        for channel in range(6):
            frequency = 1 / (factors[channel % 3] * 100.0 ** (channel % 3 / 3))
            assert cos[0, i, 0, channel].item() == pytest.approx(scale * math.cos(position * frequency), abs=1e-5)
            assert sin[0, i, 0, channel].item() == pytest.approx(scale * math.sin(position * frequency), abs=1e-5)


# What depends on what


@torch.no_grad()
def test_forms_of_the_timestep(tiny_transformer):
    z, history = latents(3, batch_size=2), latents(2, 1, batch_size=2)
    output = tiny_transformer(z, TIMESTEP, history).sample

    assert torch.equal(tiny_transformer(z, TIMESTEP.expand(2), history).sample, output)
    assert torch.equal(tiny_transformer(z, TIMESTEP.expand(2, 3), history).sample, output)
    assert torch.equal(tiny_transformer(z, TIMESTEP, history, return_dict=False)[0], output)
    assert_different(tiny_transformer(z, torch.tensor([0.3, 0.9]), history).sample[1], output[1])


@torch.no_grad()
def test_noisy_clip_sees_earlier_clean_clips_only(tiny_transformer):
    clip_lengths = [1, 2, 2]
    layout = make_clip_layout(clip_lengths, (ROWS, COLUMNS))
    noisy, clean, timestep = latents(5, 1), latents(3, 2), torch.rand(1, 5)
    clips_of_noisy, clips_of_clean = noisy.split(clip_lengths, dim=2), clean.split(clip_lengths[:-1], dim=2)
    output = tiny_transformer(noisy, timestep, clean, clip_layout=layout).sample.split(clip_lengths, dim=2)

    def output_with_changed(changed: int, stream: str):
        parts = {"noisy": list(clips_of_noisy), "clean": list(clips_of_clean)}
        parts[stream][changed] = parts[stream][changed] + 1
        new_noisy, new_clean = torch.cat(parts["noisy"], dim=2), torch.cat(parts["clean"], dim=2)
        return tiny_transformer(new_noisy, timestep, new_clean, clip_layout=layout).sample.split(clip_lengths, dim=2)

    for changed in range(3):
        for clip, new_output in enumerate(output_with_changed(changed, "noisy")):
            (assert_different if clip == changed else assert_same)(new_output, output[clip])
    for changed in range(2):
        for clip, new_output in enumerate(output_with_changed(changed, "clean")):
            (assert_different if clip > changed else assert_same)(new_output, output[clip])


@torch.no_grad()
def test_frames_of_a_noisy_clip_see_each_other(tiny_transformer):
    z = latents(3)
    output = tiny_transformer(z, TIMESTEP).sample
    for changed in range(3):
        new_z = z.clone()
        new_z[:, :, changed] += 1
        new_output = tiny_transformer(new_z, TIMESTEP).sample
        for frame in range(3):
            assert_different(new_output[:, :, frame], output[:, :, frame])


@torch.no_grad()
@pytest.mark.parametrize("backend", ["native", "flex"])
def test_one_layout_for_a_whole_batch(tiny_transformer, backend):
    tiny_transformer.set_attention_backend(backend)
    noisy, clean = latents(3, 1, batch_size=2), latents(1, 2, batch_size=2)
    layout = make_clip_layout([1, 2], (ROWS, COLUMNS))

    together = tiny_transformer(noisy, TIMESTEP, clean, clip_layout=layout).sample

    for b in range(2):
        alone = tiny_transformer(noisy[b : b + 1], TIMESTEP, clean[b : b + 1], clip_layout=layout).sample
        assert_same(together[b : b + 1], alone)


@torch.no_grad()
def test_clip_alone_without_mask_is_the_clip_under_its_mask(tiny_transformer):
    """Without a layout a lone clip starts at position 0 and is computed rank by rank; with one, under the dense mask."""
    layout = make_clip_layout([2], (ROWS, COLUMNS))
    z = latents(2)
    by_rank, masked = tiny_transformer(z, TIMESTEP).sample, tiny_transformer(z, TIMESTEP, clip_layout=layout).sample
    torch.testing.assert_close(by_rank, masked, atol=1e-5, rtol=0)


def test_loss_reaches_every_parameter(conditional_transformer):
    layout = make_clip_layout([1, 2], (ROWS, COLUMNS), condition_lengths=3)
    conditions = {"class_labels": torch.tensor([1]), "encoder_hidden_states": text_states(2)}
    output = conditional_transformer(latents(3), TIMESTEP, latents(1, 1), clip_layout=layout, **conditions).sample
    (output - latents(3, 2)).square().mean().backward()

    for name, parameter in conditional_transformer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# Cache


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[5], [1, 1, 1, 1, 1], [2, 3], [3, 1, 1]])
@pytest.mark.parametrize("backend", ["native", "flex"])
def test_cached_history(tiny_transformer, chunks, backend):
    tiny_transformer.set_attention_backend(backend)
    history, z = latents(5, 1, batch_size=2), latents(2, batch_size=2)
    cache = VideoGPTKVCache(2, 5 * TOKENS_PER_FRAME)
    for chunk in history.split(chunks, dim=2):
        assert tiny_transformer(clean_hidden_states=chunk, kv_cache=cache).sample is None

    assert (cache.num_frames, cache.num_tokens) == (5, 5 * TOKENS_PER_FRAME)
    expected = tiny_transformer(z, TIMESTEP, history).sample
    assert_same(tiny_transformer(z, TIMESTEP, kv_cache=cache).sample, expected)


@torch.no_grad()
@pytest.mark.parametrize("num_frames_each", [[5], [2, 3], [3, 1, 1]])
@pytest.mark.parametrize("backend", ["native", "flex"])
def test_new_frames_and_the_clip_behind_them_in_one_pass(conditional_transformer, num_frames_each, backend):
    """The slow twin encodes in a pass of its own. The noisy clip leaves nothing in the cache."""
    conditional_transformer.set_attention_backend(backend)
    conditions = {"class_labels": torch.tensor([1, 0]), "encoder_hidden_states": text_states(2).expand(2, -1, -1)}
    history = latents(5, 1, batch_size=2)
    joined, twin = (VideoGPTKVCache(2, 3 + 5 * TOKENS_PER_FRAME) for _ in range(2))
    for number, frames in enumerate(history.split(num_frames_each, dim=2)):
        z, inputs = latents(2, 2 + number, batch_size=2), conditions if number == 0 else {}
        conditional_transformer(clean_hidden_states=frames, kv_cache=twin, **inputs)
        expected = conditional_transformer(z, TIMESTEP, kv_cache=twin).sample
        assert_same(conditional_transformer(z, TIMESTEP, frames, kv_cache=joined, **inputs).sample, expected)
        assert (joined.num_frames, joined.num_tokens) == (twin.num_frames, twin.num_tokens)
    assert_same(conditional_transformer(z, TIMESTEP, kv_cache=joined).sample, expected)
    assert_same(conditional_transformer(z, TIMESTEP, history, **conditions).sample, expected)


@torch.no_grad()
def test_both_passes_of_guidance_at_once(tiny_transformer):
    history, z = latents(3, 1, batch_size=2), latents(2, batch_size=4)
    cache = VideoGPTKVCache(2, 3 * TOKENS_PER_FRAME)
    tiny_transformer(clean_hidden_states=history, kv_cache=cache)
    with_history, alone = tiny_transformer(z, TIMESTEP, kv_cache=cache).sample.chunk(2)
    assert_same(with_history, tiny_transformer(z[:2], TIMESTEP, history).sample)
    assert_same(alone, tiny_transformer(z[2:], TIMESTEP).sample)
    for samples in (1, 3):
        with pytest.raises(ValueError, match=f"holds 2 samples, the latents are of {samples}: pass as many, or"):
            tiny_transformer(z[:samples], TIMESTEP, kv_cache=cache)
    with pytest.raises(ValueError, match="holds 2 samples, the latents are of 4: pass as many"):
        tiny_transformer(z, TIMESTEP, latents(1, batch_size=4), kv_cache=cache)


@torch.no_grad()
def test_cache_is_used_again_after_reset(tiny_transformer):
    cache = VideoGPTKVCache(2, 3 * TOKENS_PER_FRAME)
    tiny_transformer(clean_hidden_states=latents(3, 1), kv_cache=cache)
    cache.reset()
    tiny_transformer(clean_hidden_states=latents(2, 2), kv_cache=cache)

    expected = tiny_transformer(latents(1), TIMESTEP, latents(2, 2)).sample
    assert_same(tiny_transformer(latents(1), TIMESTEP, kv_cache=cache).sample, expected)


@torch.no_grad()
def test_full_cache_says_so_and_keeps_what_it_holds(tiny_transformer):
    cache = VideoGPTKVCache(2, 3 * TOKENS_PER_FRAME)
    tiny_transformer(clean_hidden_states=latents(2, 1), kv_cache=cache)
    for clip in ({}, {"hidden_states": latents(1), "timestep": TIMESTEP}):
        with pytest.raises(
            ValueError, match="holds 16 of at most 24 tokens, 16 more do not fit: make it with a larger"
        ):
            tiny_transformer(clean_hidden_states=latents(2, 2), kv_cache=cache, **clip)

    expected = tiny_transformer(latents(1), TIMESTEP, latents(2, 1)).sample
    assert_same(tiny_transformer(latents(1), TIMESTEP, kv_cache=cache).sample, expected)


# Conditions


@torch.no_grad()
def test_conditions_change_the_output(conditional_transformer):
    outputs = [
        conditional_transformer(latents(2), TIMESTEP, latents(1, 1), **conditions).sample
        for conditions in (
            {},
            {"class_labels": torch.tensor([1])},
            {"class_labels": torch.tensor([5])},  # "no label"
            {"encoder_hidden_states": text_states(2)},
            {"encoder_hidden_states": text_states(2, seed=1)},
            {"class_labels": torch.tensor([1]), "encoder_hidden_states": text_states(2)},
        )
    ]
    for i, output in enumerate(outputs):
        for other in outputs[:i]:
            assert (output - other).abs().max() > 1e-3


@torch.no_grad()
def test_conditions_see_only_each_other(conditional_transformer):
    seen = []
    conditional_transformer.transformer_blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    for seed, text in ((0, text_states(2)), (1, text_states(2)), (0, text_states(2, seed=1))):
        conditional_transformer(
            latents(2, seed),
            TIMESTEP,
            latents(1, seed + 2),
            class_labels=torch.tensor([1]),
            encoder_hidden_states=text,
        )
    tokens, with_other_latents, with_other_text = seen

    assert_same(with_other_latents[:, :3], tokens[:, :3])
    assert ((with_other_latents - tokens)[:, 3:].abs().amax(-1) > 1e-3).any()
    changed = (with_other_text - tokens).abs().amax(-1) > 1e-4
    assert changed.all()  # the class token and every clip token see the text


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[3], [1, 2]])
def test_cached_conditions(conditional_transformer, chunks):
    """Conditions stand in front of the first clean frames: they are passed once, with the first encoded clip."""
    conditions = {"class_labels": torch.tensor([1]), "encoder_hidden_states": text_states(2)}
    history, z = latents(3, 1), latents(2)
    cache = VideoGPTKVCache(2, 3 + 3 * TOKENS_PER_FRAME)
    for i, chunk in enumerate(history.split(chunks, dim=2)):
        conditional_transformer(clean_hidden_states=chunk, kv_cache=cache, **(conditions if i == 0 else {}))

    expected = conditional_transformer(z, TIMESTEP, history, **conditions).sample
    assert_same(conditional_transformer(z, TIMESTEP, kv_cache=cache).sample, expected)


@torch.no_grad()
def test_padded_texts_of_a_batch(conditional_transformer):
    text = torch.cat([text_states(3), text_states(3, seed=1)])
    text[1, 1:] = 100.0
    z, history = latents(2, batch_size=2), latents(1, 1, batch_size=2)
    output = conditional_transformer(
        z,
        TIMESTEP,
        history,
        class_labels=torch.tensor([0, 1]),
        encoder_hidden_states=text,
        encoder_attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]]),
    ).sample

    for b, length in enumerate([3, 1]):
        alone = conditional_transformer(
            z[b : b + 1],
            TIMESTEP,
            history[b : b + 1],
            class_labels=torch.tensor([b]),
            encoder_hidden_states=text[b : b + 1, :length],
        ).sample
        assert_same(output[b : b + 1], alone)


@torch.no_grad()
def test_text_padded_to_a_fixed_length(conditional_transformer):
    """As tokenizers do with `padding="max_length"`: no sample of the batch is as long as the padded text."""
    text = text_states(4)
    padded = conditional_transformer(
        latents(2),
        TIMESTEP,
        latents(1, 1),
        encoder_hidden_states=text,
        encoder_attention_mask=torch.tensor([[True, True, False, False]]),
    ).sample

    alone = conditional_transformer(latents(2), TIMESTEP, latents(1, 1), encoder_hidden_states=text[:, :2]).sample
    assert_same(padded, alone)


# Bad input


@torch.no_grad()
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Pass noisy latents as `hidden_states`, or `clean_hidden_states` with a `kv_cache`"),
        ({"clean_hidden_states": latents(1)}, "`clean_hidden_states` with a `kv_cache`"),
        ({"hidden_states": latents(1)}, "`hidden_states` needs its `timestep`"),
        (
            {"hidden_states": latents(1), "timestep": TIMESTEP, "clean_hidden_states": latents(1)[..., :4]},
            r"\[1, 4, 1, 4, 6\] and `clean_hidden_states` \[1, 4, 1, 4, 4\] must agree in all but the number of frames",
        ),
        (
            {"hidden_states": latents(1), "timestep": TIMESTEP, "clean_hidden_states": latents(1, batch_size=2)},
            "must agree in all but the number of frames",
        ),
        (
            {"hidden_states": latents(1)[..., :5], "timestep": TIMESTEP},
            r"height and width divisible by 2, got \[1, 4, 1, 4, 5\]",
        ),
        (
            {"hidden_states": latents(1)[:, :3], "timestep": TIMESTEP},
            r"Latents must be \(batch, 4, frames, height, width\).*got \[1, 3, 1, 4, 6\]",
        ),
        ({"hidden_states": latents(1)[0], "timestep": TIMESTEP}, r"Latents must be .*got \[4, 1, 4, 6\]"),
        (
            {"hidden_states": torch.zeros(1, 4, 1, 4, 34), "timestep": TIMESTEP},
            "2 × 17 patches is larger than the position table of 16 × 16: use a height and width of at most 32",
        ),
        (
            {"hidden_states": latents(1), "timestep": TIMESTEP, "class_labels": torch.tensor([1])},
            "`class_labels` was passed, but this model was configured with `num_classes=None`",
        ),
        (
            {"hidden_states": latents(1), "timestep": TIMESTEP, "encoder_hidden_states": text_states(2)},
            "`encoder_hidden_states` was passed, but this model has `text_embed_dim=None`",
        ),
        (
            {
                "clean_hidden_states": latents(2, batch_size=2),
                "clip_layout": make_clip_layout([[2], [1]], (ROWS, COLUMNS), clean=slice(None), noisy=slice(0)),
                "kv_cache": VideoGPTKVCache(2, 99),
            },
            "A `kv_cache` holds samples of one size: run samples of different sizes one by one",
        ),
    ],
)
def test_bad_input(tiny_transformer, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_transformer(**arguments)


@torch.no_grad()
@pytest.mark.parametrize(
    "layout",
    [
        make_clip_layout([2, 2], (ROWS, COLUMNS), noisy=slice(-1, None)),  # too few clean frames
        make_clip_layout([3, 1], (ROWS, COLUMNS), noisy=slice(-1, None)),  # too few noisy frames
        make_clip_layout([3, 2], (COLUMNS, ROWS), noisy=slice(-1, None)),  # another grid of as many patches
        make_clip_layout([3, 2], (ROWS, COLUMNS), noisy=slice(-1, None), condition_lengths=1),
        make_clip_layout([[3, 2]] * 2, (ROWS, COLUMNS), noisy=slice(-1, None)),
    ],
)
def test_layout_of_other_latents(tiny_transformer, layout):
    with pytest.raises(ValueError, match="`clip_layout`"):
        tiny_transformer(latents(2), TIMESTEP, latents(3, 1), clip_layout=layout)


@torch.no_grad()
def test_empty_cache(tiny_transformer):
    with pytest.raises(ValueError, match="kv_cache"):
        tiny_transformer(latents(1), TIMESTEP, kv_cache=VideoGPTKVCache(2, 99))


@torch.no_grad()
def test_conditions_after_the_start_of_a_cache(conditional_transformer):
    cache = VideoGPTKVCache(2, 99)
    conditional_transformer(clean_hidden_states=latents(1), kv_cache=cache, class_labels=torch.tensor([1]))

    with pytest.raises(ValueError, match="kv_cache"):
        conditional_transformer(clean_hidden_states=latents(1), kv_cache=cache, class_labels=torch.tensor([1]))
    with pytest.raises(ValueError, match="kv_cache"):
        conditional_transformer(latents(1), TIMESTEP, kv_cache=cache, class_labels=torch.tensor([1]))


def test_wrong_number_of_rope_factors(make_tiny_transformer):
    with pytest.raises(ValueError, match="`rope_long_factor` needs one number for each of the 8 frequencies.*got 3"):
        make_tiny_transformer(rope_long_factor=(1.0, 2.0, 3.0))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["_native_flash", "_native_cudnn"])
def test_backend_that_drops_the_mask_is_refused(tiny_transformer, backend):
    for processor in tiny_transformer.attn_processors.values():
        processor._attention_backend = AttentionBackendName(backend)
    with pytest.raises(ValueError, match=f"'{backend}' can't apply the hierarchical mask. Choose one of 'native'"):
        tiny_transformer(latents(2), TIMESTEP, latents(1))


# diffusers' features


def test_class_flags_name_what_the_model_has(tiny_transformer):
    blocks = {type(module).__name__ for module in tiny_transformer.modules()}
    assert set(tiny_transformer._no_split_modules) <= blocks
    assert set(tiny_transformer._repeated_blocks) <= blocks


def test_gradient_checkpointing(tiny_transformer):
    layout = make_clip_layout([1, 2], (ROWS, COLUMNS))
    gradients, num_block_calls = [], [0, 0]
    tiny_transformer.train()
    for run in range(2):
        if run == 1:
            tiny_transformer.enable_gradient_checkpointing()

        def count(module, args, run=run):
            num_block_calls[run] += 1

        hook = tiny_transformer.transformer_blocks[0].register_forward_pre_hook(count)
        tiny_transformer.zero_grad()
        output = tiny_transformer(latents(3), TIMESTEP, latents(1, 1), clip_layout=layout).sample
        (output - latents(3, 2)).square().mean().backward()
        hook.remove()
        gradients.append({name: parameter.grad.clone() for name, parameter in tiny_transformer.named_parameters()})

    assert num_block_calls == [1, 2]  # computed again for the backward pass
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-7, rtol=1e-5)


@torch.no_grad()
def test_fused_projections(tiny_transformer):
    output = tiny_transformer(latents(2), TIMESTEP, latents(1, 1)).sample
    tiny_transformer.fuse_qkv_projections()
    tiny_transformer.transformer_blocks[0].attn.to_q.weight.zero_()  # no longer read
    assert_same(tiny_transformer(latents(2), TIMESTEP, latents(1, 1)).sample, output)


@torch.no_grad()
def test_attention_processor_can_be_replaced(tiny_transformer):
    class NoAttention(VideoGPTAttnProcessor):
        def __call__(self, attn, hidden_states, **kwargs):
            return torch.zeros_like(hidden_states)

    assert list(tiny_transformer.attn_processors) == [f"transformer_blocks.{i}.attn.processor" for i in range(2)]
    tiny_transformer.set_attn_processor(NoAttention())
    output = tiny_transformer(latents(2), TIMESTEP, latents(1, 1)).sample
    assert torch.equal(output, tiny_transformer(latents(2), TIMESTEP, latents(1, 2)).sample)


@torch.no_grad()
def test_attention_processor_that_knows_nothing_of_ours(tiny_transformer):
    class Plain:
        def __call__(self, attn, hidden_states, **kwargs):
            return VideoGPTAttnProcessor()(attn, hidden_states, **kwargs)

    expected = tiny_transformer(latents(2), TIMESTEP, latents(1, 1)).sample
    tiny_transformer.set_attn_processor(Plain())
    assert torch.equal(tiny_transformer(latents(2), TIMESTEP, latents(1, 1)).sample, expected)


def test_training_after_inference_mode_at_the_same_sizes(tiny_transformer):
    """From 2,048 tokens on, what the mask is made of is kept between calls, and a backward pass saves it."""
    noisy, clean = torch.randn(1, 4, 4, 32, 32), torch.randn(1, 4, 8, 32, 32)
    with torch.inference_mode():
        tiny_transformer(noisy, TIMESTEP, clean)
    tiny_transformer(noisy, TIMESTEP, clean).sample.mean().backward()
    assert tiny_transformer.proj_out.weight.grad.any()


@torch.no_grad()
def test_several_noisy_clips_after_a_cache_are_refused(tiny_transformer):
    cache = VideoGPTKVCache(2, 100)
    tiny_transformer(clean_hidden_states=latents(2), kv_cache=cache)
    layout = make_clip_layout([2, 1, 1], (2, 3), clean=slice(0), noisy=slice(1, None))
    with pytest.raises(ValueError, match="one noisy clip is predicted at a time"):
        tiny_transformer(latents(2), TIMESTEP, kv_cache=cache, clip_layout=layout)


@torch.no_grad()
def test_bfloat16(tiny_transformer, tmp_path):
    expected = tiny_transformer(latents(2), TIMESTEP, latents(3, 1)).sample
    inv_freq = tiny_transformer.rope.inv_freq.clone()
    tiny_transformer.save_pretrained(tmp_path)
    loaded = VideoGPTTransformerModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)

    for model in (tiny_transformer.to(torch.bfloat16), loaded):
        assert torch.equal(model.rope.inv_freq, inv_freq)
        cache = VideoGPTKVCache(2, 3 * TOKENS_PER_FRAME)
        history, z = latents(3, 1).bfloat16(), latents(2).bfloat16()
        output = model(z, TIMESTEP, history).sample
        model(clean_hidden_states=history, kv_cache=cache)
        for sample in (output, model(z, TIMESTEP, kv_cache=cache).sample):
            assert sample.dtype == torch.bfloat16
            assert (sample.float() - expected).abs().max() < 0.1 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("num_conditions", [0, 2])
def test_rolling_cache(conditional_transformer, monkeypatch, num_conditions):
    """The twin computes all frames under a mask that hides those that were dropped at the time."""
    conditions = {"encoder_hidden_states": text_states(num_conditions)} if num_conditions else {}
    history, noisy = latents(5), latents(2, 1)
    cache = VideoGPTKVCache(2, num_conditions + 4 * TOKENS_PER_FRAME)
    conditional_transformer(clean_hidden_states=history[:, :, :2], kv_cache=cache, **conditions)
    conditional_transformer(clean_hidden_states=history[:, :, 2:4], kv_cache=cache)
    cache.drop_oldest(1)
    conditional_transformer(clean_hidden_states=history[:, :, 4:], kv_cache=cache)
    cache.drop_oldest(2)
    output = conditional_transformer(noisy, TIMESTEP, kv_cache=cache).sample

    layout = make_clip_layout([5, 2], (ROWS, COLUMNS), noisy=slice(-1, None), condition_lengths=num_conditions)
    is_clean, is_noisy = layout.stream[0] == CLEAN, layout.stream[0] == NOISY
    frame, mask = layout.frame[0], layout.dense_mask.clone()
    is_last_clean = is_clean & (frame == 4)
    mask[0, 0] &= ~(is_last_clean[:, None] & is_clean & (frame < 1))
    mask[0, 0] &= ~(is_noisy[:, None] & is_clean & (frame < 3))
    with monkeypatch.context() as patch:
        patch.setattr(ClipLayout, "dense_mask", mask)
        expected = conditional_transformer(noisy, TIMESTEP, history, clip_layout=layout, **conditions).sample
    assert_same(output, expected)
    assert (cache.num_frames, cache.num_tokens) == (2, num_conditions + 2 * TOKENS_PER_FRAME)
    cache.reset()
    conditional_transformer(clean_hidden_states=history[:, :, :3], kv_cache=cache, **conditions)
    again = conditional_transformer(noisy, TIMESTEP, kv_cache=cache).sample
    assert_same(again, conditional_transformer(noisy, TIMESTEP, history[:, :, :3], **conditions).sample)


@torch.no_grad()
def test_the_last_layer_computes_only_what_is_read(tiny_transformer):
    rows = []
    for block in tiny_transformer.transformer_blocks:
        for module in (block.attn.to_q, block.ff.linear_in):
            module.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[1]))
    num_patches, cache = 2 * ROWS * COLUMNS, VideoGPTKVCache(2, 4 * TOKENS_PER_FRAME)
    calls = (
        ({"hidden_states": latents(2), "clean_hidden_states": latents(3)}, 5 * TOKENS_PER_FRAME, num_patches),
        ({"clean_hidden_states": latents(3), "kv_cache": cache}, 3 * TOKENS_PER_FRAME, 0),
        ({"hidden_states": latents(2), "kv_cache": cache}, 2 * TOKENS_PER_FRAME, num_patches),
        (
            {"hidden_states": latents(2), "clean_hidden_states": latents(1), "kv_cache": cache},
            3 * TOKENS_PER_FRAME,
            num_patches,
        ),
        ({"hidden_states": latents(2)}, 2 * TOKENS_PER_FRAME, num_patches),
    )
    for inputs, num_tokens, num_read in calls:
        rows.clear()
        tiny_transformer(timestep=TIMESTEP, **inputs)
        assert rows == [num_tokens, num_tokens, *[num_read, num_read] * (num_read > 0)]


def test_autocast(tiny_transformer):
    args = (latents(2), TIMESTEP, latents(1, 1))
    expected = tiny_transformer(*args).sample.detach()
    with torch.autocast("cpu", torch.bfloat16):
        output = tiny_transformer(*args).sample
    output.float().square().mean().backward()

    assert (output.float() - expected).abs().max() < 0.1 * expected.abs().max()
    assert not torch.equal(output.float(), expected)  # something was computed in bfloat16
    assert all(parameter.grad.isfinite().all() for parameter in tiny_transformer.parameters())


@torch.no_grad()
def test_residual_stream_stays_in_fp32_under_autocast(tiny_transformer):
    dtypes = []
    for block in tiny_transformer.transformer_blocks:
        block.register_forward_pre_hook(lambda _module, args: dtypes.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        tiny_transformer(latents(2), TIMESTEP, latents(1, 1))
    assert dtypes == [torch.float32] * 2


@torch.no_grad()
def test_layerwise_casting(tiny_transformer):
    expected = tiny_transformer(latents(2), TIMESTEP, latents(1, 1)).sample
    tiny_transformer.to(torch.bfloat16)
    tiny_transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    output = tiny_transformer(latents(2).bfloat16(), TIMESTEP, latents(1, 1).bfloat16()).sample

    dtypes = {name: parameter.dtype for name, parameter in tiny_transformer.named_parameters()}
    in_fp8 = {name for name, dtype in dtypes.items() if dtype == torch.float8_e4m3fn}
    assert in_fp8 == {name for name in dtypes if ".attn." in name or ".ff." in name}
    assert (output.float() - expected).abs().max() < 0.3 * expected.abs().max()


def test_lora(tiny_transformer):
    args = (latents(2), TIMESTEP, latents(1, 1))
    with torch.no_grad():
        expected = tiny_transformer(*args).sample
    tiny_transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    trainable = {name: p for name, p in tiny_transformer.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 4 * 2  # layers, projections, factors
    assert all("lora_" in name for name in trainable)
    assert torch.equal(tiny_transformer(*args).sample, expected)

    optimizer = torch.optim.Adam(trainable.values(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = (tiny_transformer(*args).sample - latents(2, 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]

    with torch.no_grad():
        assert_different(tiny_transformer(*args).sample, expected)
        assert_same(tiny_transformer(*args, attention_kwargs={"scale": 0.0}).sample, expected)
        tiny_transformer.disable_adapters()
        assert torch.equal(tiny_transformer(*args).sample, expected)
