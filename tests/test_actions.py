"""Models that are steered: actions as they are given, what they change, and what they never change."""

import numpy as np
import pytest
import torch
from peft import LoraConfig
from test_modular_pipeline_videogpt import make_modular

from diffusers_videogpt import NextClipGuidance, VideoGPTPipeline
from diffusers_videogpt.actions import (
    ActionSpace,
    add_actions,
    between_frames,
    join_actions,
    make_action_embed,
    scale_of,
)
from diffusers_videogpt.clips import make_clip_layout
from diffusers_videogpt.diffusers_internals import quiet_guiders
from diffusers_videogpt.kv_cache import VideoGPTKVCache


NUM_ACTIONS = 3
ALPHA = torch.tensor(0.3)
NAN = float("nan")
LEFT, RIGHT, JUMP = range(NUM_ACTIONS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def latents_of(num_frames, seed=0, batch_size=1):
    return torch.randn(batch_size, 4, num_frames, 4, 6, generator=seeded(seed))


def assert_same(first, second):
    torch.testing.assert_close(first, second, atol=2e-5, rtol=0)


def changed_frames(first, second):
    """Numbers of the frames (dimension 2) that differ."""
    return (first - second).abs().amax(dim=(0, 1, 3, 4)).gt(1e-4).nonzero()[:, 0].tolist()


def taught(transformer):
    """With actions that do something: they are zero in a new model."""
    for parameter in transformer.action_embed.parameters():
        torch.nn.init.normal_(parameter, std=2.0, generator=seeded(9))
    if isinstance(transformer.action_embed, torch.nn.Embedding):
        with torch.no_grad():
            transformer.action_embed.weight[0] = 0  # "no action", which no training changes
    return transformer.eval()


@pytest.fixture
def steered(make_tiny_transformer):
    return taught(make_tiny_transformer(num_actions=NUM_ACTIONS))


@pytest.fixture
def continuous(make_tiny_transformer):
    return taught(make_tiny_transformer(action_dim=2, action_mean=(10.0, 0.0), action_std=(2.0, 1.0)))


@pytest.fixture
def pipe(make_tiny_pipe, steered):
    pipe = make_tiny_pipe()
    pipe.register_modules(transformer=steered)
    return pipe


def predict(pipe, **kwargs):
    arguments = {"video_latents": latents_of(3, 1), "num_inference_steps": 2, "output_type": "latent"}
    arguments |= {"generator": seeded(), "guidance_scale": 1.5}
    return pipe(**(arguments | kwargs)).frames


def streamed(pipe, acts, **kwargs):
    """The clips of a stream that is told each of `acts` before its clip; of `None` it is told nothing."""
    arguments = {"video_latents": latents_of(3, 1), "num_inference_steps": 2, "output_type": "latent"}
    arguments |= {"generator": seeded(), "guidance_scale": 1.5, "num_frames": 2 * len(acts)}
    clips = []
    with pipe.stream(**(arguments | kwargs)) as stream:
        for act in acts:
            if act is not None:
                stream.act(act)
            clips.append(next(stream).frames)
    return torch.cat(clips, dim=2)


# The model


@torch.no_grad()
@pytest.mark.parametrize("config", [{"num_actions": 3}, {"action_dim": 2}], ids=str)
def test_a_new_model_with_actions_is_one_without(make_tiny_transformer, tiny_transformer, config, tmp_path):
    transformer = make_tiny_transformer(**config)
    without, with_actions = tiny_transformer.state_dict(), transformer.state_dict()
    assert "action_embed.weight" not in without
    assert {name.split(".")[0] for name in with_actions.keys() - without.keys()} == {"action_embed"}
    for name, tensor in without.items():
        assert torch.equal(with_actions[name], tensor), name
    actions = torch.tensor([[0, 1, 3]]) if "num_actions" in config else torch.tensor([[[NAN, NAN], [1, 2], [-3, 4]]])
    inputs = (latents_of(3), ALPHA, latents_of(3, 1))
    expected = tiny_transformer(*inputs).sample
    assert torch.equal(transformer(*inputs, actions=actions, clean_actions=actions).sample, expected)
    assert torch.equal(transformer(*inputs).sample, expected)

    taught(transformer).save_pretrained(tmp_path)
    loaded = type(transformer).from_pretrained(tmp_path)
    output = transformer(*inputs, actions=actions).sample
    assert torch.equal(loaded(*inputs, actions=actions).sample, output) and not torch.equal(output, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["steered", "continuous"])
def test_no_action_is_the_model_without_actions(request, tiny_transformer, kind):
    transformer = request.getfixturevalue(kind)
    space = ActionSpace.of(transformer.config)
    none = space.encode_frames([None] * 3, 3)
    inputs = (latents_of(3), ALPHA, latents_of(3, 1))
    expected = tiny_transformer(*inputs).sample
    assert torch.equal(transformer(*inputs, actions=none, clean_actions=none).sample, expected)
    some = space.encode_frames([None, LEFT if space.is_discrete else [12.0, 1.0], None], 3)
    assert not torch.allclose(transformer(*inputs, actions=some).sample, expected, atol=1e-3)
    assert not torch.allclose(transformer(*inputs, clean_actions=some).sample, expected, atol=1e-3)


def test_no_action_is_not_trained(steered):
    steered(latents_of(3), ALPHA, actions=torch.tensor([[0, 1, 3]])).sample.square().mean().backward()
    assert [bool(row.any()) for row in steered.action_embed.weight.grad] == [False, True, False, True]


@torch.no_grad()
@pytest.mark.parametrize("clips", [[1] * 5, [2, 2, 1], [1, 3, 1]], ids=str)
def test_an_action_changes_no_clip_before_it(steered, clips):
    """Under the mask of training. The frames of one clip are predicted together: there it reaches all of them."""
    layout = make_clip_layout(clips, (2, 3))
    noisy, clean = latents_of(5), latents_of(5 - clips[-1], 1)
    clip_of_frame = [clip for clip, length in enumerate(clips) for _ in range(length)]

    def denoise(actions):
        given = {"actions": actions, "clean_actions": actions[:, : clean.shape[2]]}
        return steered(noisy, ALPHA, clean, clip_layout=layout, **given).sample

    before = torch.tensor([[1, 2, 3, 1, 2]])
    for frame in range(5):
        after = before.clone()
        after[0, frame] = 0
        first = clip_of_frame.index(clip_of_frame[frame])
        assert changed_frames(denoise(before), denoise(after)) == list(range(first, 5))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["steered", "continuous"])
def test_cached_history_is_the_whole_sequence(request, kind):
    transformer = request.getfixturevalue(kind)
    space = ActionSpace.of(transformer.config)
    some = [0, 2, None, 1, 2, 0] if space.is_discrete else [[9.0, 1.0], [12.0, 0.0], None, [8.0, 1.0], [7, 2], [0, 0]]
    actions, clean, noisy = space.encode_frames(some, 6), latents_of(4, 1), latents_of(2)
    expected = transformer(noisy, ALPHA, clean, actions=actions[:, 4:], clean_actions=actions[:, :4]).sample
    cache = VideoGPTKVCache(2, 100)
    for frames in (slice(0, 1), slice(1, 4)):
        transformer(clean_hidden_states=clean[:, :, frames], clean_actions=actions[:, frames], kv_cache=cache)
    assert_same(transformer(noisy, ALPHA, kv_cache=cache, actions=actions[:, 4:]).sample, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["steered", "continuous"])
def test_compiled_and_exported(request, kind):
    transformer = request.getfixturevalue(kind)
    space = ActionSpace.of(transformer.config)
    actions = space.encode_frames([0, None] if space.is_discrete else [[9.0, 1.0], None], 2)
    inputs = {"hidden_states": latents_of(2), "timestep": ALPHA[None], "clean_hidden_states": latents_of(2, 1)}
    inputs |= {"actions": actions, "clean_actions": actions.flip(1)}
    expected = transformer(**inputs).sample
    torch.compiler.reset()
    compiled = torch.compile(transformer, fullgraph=True, backend="eager")
    assert_same(compiled(**inputs).sample, expected)
    torch.compiler.reset()
    exported = torch.export.export(transformer, args=(), kwargs=inputs).module()
    assert_same(exported(**inputs).sample, expected)


@torch.no_grad()
def test_with_lora_in_bfloat16_and_with_cast_weights(steered):
    inputs = {"hidden_states": latents_of(2), "timestep": ALPHA, "clean_hidden_states": latents_of(2, 1)}
    inputs |= {"actions": torch.tensor([[1, 0]]), "clean_actions": torch.tensor([[2, 3]])}
    expected = steered(**inputs).sample
    steered.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))  # begins as no change
    assert_same(steered(**inputs).sample, expected)
    half = {name: x.to(torch.bfloat16) if x.is_floating_point() else x for name, x in inputs.items()}
    output = steered.to(torch.bfloat16)(**half).sample
    assert output.dtype == torch.bfloat16 and (output - expected).abs().max() < 0.2 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize(
    "actions, message",
    [
        ({"actions": torch.tensor([[1, 2, 3]])}, r"`actions` must be whole numbers of shape \[1, 2\]"),
        ({"actions": torch.tensor([[1.0, 2.0]])}, "must be whole numbers"),
        ({"clean_actions": torch.tensor([[1, 2]])}, r"`clean_actions` must be whole numbers of shape \[0, 0\]"),
    ],
)
def test_actions_of_other_latents(steered, actions, message):
    with pytest.raises(ValueError, match=message):
        steered(latents_of(2), ALPHA, **actions)


@torch.no_grad()
def test_actions_for_a_model_without(tiny_transformer):
    with pytest.raises(ValueError, match="this model has `num_actions=None` and `action_dim=None`"):
        tiny_transformer(latents_of(2), ALPHA, actions=torch.tensor([[1, 2]]))


# The pipeline


def test_call_stream_and_blocks_are_one(pipe):
    actions = [LEFT, None, JUMP, RIGHT, RIGHT, LEFT]
    arguments = {"history_actions": [None, LEFT, LEFT], "num_frames": 6}
    expected = predict(pipe, actions=actions, **arguments)
    acts = [actions[:2], actions[2:4], actions[4:]]
    assert_same(streamed(pipe, acts, history_actions=arguments["history_actions"]), expected)
    assert_same(predict(pipe, actions=actions, use_kv_cache=False, **arguments), expected)
    arguments |= {"video_latents": latents_of(3, 1), "num_inference_steps": 2, "output_type": "latent"}
    arguments |= {"generator": seeded(), "guidance_scale": 1.5, "actions": actions, "output": "videos"}
    assert_same(make_modular(pipe)(**arguments), expected)
    for other in ({"actions": [LEFT] * 6}, {"actions": actions, "history_actions": None}):
        assert not torch.allclose(predict(pipe, **arguments_of(arguments, other)), expected, atol=1e-3)


def arguments_of(arguments, other):
    known = ("history_actions", "num_frames")
    return {name: arguments[name] for name in known} | other


@pytest.mark.parametrize("rolling_cache", [False, True])
@pytest.mark.parametrize("frames_per_clip", [1, 2])
def test_an_action_changes_no_frame_before_its_clip(pipe, frames_per_clip, rolling_cache):
    """In a call, past the window of 5 frames; with clips of one frame, no frame before its own."""
    arguments = {"num_frames": 6, "frames_per_clip": frames_per_clip, "rolling_cache": rolling_cache}
    actions = [LEFT, RIGHT, JUMP, LEFT, RIGHT, JUMP]
    expected = predict(pipe, actions=actions, **arguments)
    for frame in (0, 3, 5):
        other = actions[:frame] + [None] + actions[frame + 1 :]
        first = frame // frames_per_clip * frames_per_clip
        changed = changed_frames(predict(pipe, actions=other, **arguments), expected)
        assert changed[0] == first and set(range(first, first + frames_per_clip)) <= set(changed)


def test_an_action_changes_no_clip_before_it_in_a_stream(pipe):
    expected = streamed(pipe, [LEFT, RIGHT, JUMP])
    assert changed_frames(streamed(pipe, [LEFT, RIGHT, None]), expected) == [4, 5]
    assert changed_frames(streamed(pipe, [LEFT, LEFT, JUMP]), expected) == [2, 3, 4, 5]


def test_no_action_is_said_in_many_ways(pipe, make_tiny_pipe):
    expected = predict(make_tiny_pipe(), num_frames=4)  # the same weights without actions
    for actions in (None, [None] * 4, [-1] * 4, np.full((1, 4), -1), torch.full((4,), -1)):
        assert_same(predict(pipe, actions=actions, num_frames=4), expected)
    assert_same(streamed(pipe, [None, -1]), expected)


def test_continuous_actions(make_tiny_pipe, continuous):
    pipe = make_tiny_pipe()
    pipe.register_modules(transformer=continuous)
    actions = [[10.0, 1.0], None, [12.0, 0.0], [NAN, NAN]]
    expected = predict(pipe, actions=actions, num_frames=4)
    assert_same(streamed(pipe, [actions[:2], actions[2:]]), expected)
    assert_same(
        streamed(pipe, [[10.0, 1.0], None]), predict(pipe, actions=[[10.0, 1.0]] * 2 + [None] * 2, num_frames=4)
    )
    assert not torch.allclose(predict(pipe, num_frames=4), expected, atol=1e-3)
    # The mean of training is normalised to zeros, which is not "no action".
    encoded = ActionSpace.of(continuous.config).encode_frames([[10.0, 0.0], [14.0, 1.0]], 2)
    assert encoded.tolist() == [[[0.0, 0.0], [2.0, 1.0]]]
    assert not torch.allclose(predict(pipe, actions=[[10.0, 0.0]] * 2), predict(pipe), atol=1e-3)


def test_several_futures_of_one_video(pipe):
    generators = [seeded(1), seeded(2)]
    together = predict(pipe, actions=[[LEFT] * 4, [JUMP] * 4], num_frames=4, generator=generators)
    assert together.shape[0] == 2
    for row, (action, seed) in enumerate(((LEFT, 1), (JUMP, 2))):
        assert_same(together[row : row + 1], predict(pipe, actions=[action] * 4, num_frames=4, generator=seeded(seed)))
    same = predict(pipe, actions=[LEFT] * 2, num_videos_per_prompt=2, generator=[seeded(1), seeded(1)])
    assert_same(same[:1], same[1:])


def test_a_stream_of_several_videos_is_told_one_action_for_all_or_one_each(pipe):
    two = {"video_latents": latents_of(3, 1, batch_size=2), "num_frames": 2}
    expected = predict(pipe, actions=[[LEFT] * 2, [JUMP] * 2], **two)
    assert_same(streamed(pipe, [[[LEFT], [JUMP]]], **two), expected)
    assert_same(streamed(pipe, [np.array([[LEFT, LEFT], [JUMP, JUMP]])], **two), expected)
    assert_same(streamed(pipe, [JUMP], **two)[1:], expected[1:])


def test_acting_again_replaces_what_was_said(pipe):
    arguments = {"video_latents": latents_of(3, 1), "num_inference_steps": 2, "output_type": "latent"}
    arguments |= {"generator": seeded(), "guidance_scale": 1.5, "num_frames": 4, "history_retention": 0.8}
    clips = []
    with pipe.stream(**arguments) as stream:
        for wrong, right in ((JUMP, LEFT), (LEFT, RIGHT)):
            stream.act(wrong)
            stream.act(right)
            clips.append(next(stream).frames)
    expected = predict(pipe, actions=[LEFT, LEFT, RIGHT, RIGHT], num_frames=4, history_retention=0.8)
    assert_same(torch.cat(clips, dim=2), expected)


@pytest.mark.parametrize("acts_first", [True, False])
def test_observed_frames_keep_the_actions_that_led_to_them(pipe, acts_first):
    """By default those told for the clip in whose place they come, whether the next one is begun or not."""
    video = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    arguments = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 1.5}

    def after_observing(**actions):
        with pipe.stream(video=video[:3], generator=seeded(), **arguments) as stream:
            stream.act([LEFT, JUMP])
            next(stream)
            if acts_first:
                stream.act(RIGHT)
            stream.observe(video[3:4], **{name: value[:1] for name, value in actions.items()})
            stream.observe(video[4:], **{name: value[1:] for name, value in actions.items()})
            if not acts_first:
                stream.act(RIGHT)
            return next(stream).frames

    kept = after_observing()
    assert_same(after_observing(actions=[LEFT, JUMP]), kept)
    assert not torch.allclose(after_observing(actions=[LEFT, None]), kept, atol=1e-3)


def test_a_long_history_keeps_the_actions_of_its_last_frames(pipe):
    video, actions = latents_of(8, 1), [JUMP, LEFT, RIGHT, JUMP, LEFT, None, RIGHT, JUMP]  # the window is of 5
    expected = predict(pipe, video_latents=video[:, :, 3:], history_actions=actions[3:])
    assert_same(predict(pipe, video_latents=video, history_actions=actions), expected)
    assert not torch.allclose(predict(pipe, video_latents=video), expected, atol=1e-3)


@torch.no_grad()
def test_guidance_by_action_is_one_more_pass(pipe, steered):
    history, noise = latents_of(3, 1), latents_of(2, 3)
    past, told = torch.tensor([[1, 0, 2]]), torch.tensor([[3, 1]])
    frames = predict(
        pipe,
        history_actions=past - 1,
        actions=told - 1,
        action_guidance_scale=2.5,
        guidance_scale=1.7,
        latents=noise,
    )
    latents, times = noise, torch.linspace(0, 1, 3)
    for time, next_time in zip(times, times[1:], strict=False):
        best, without = (
            steered(latents, time, history, actions=actions, clean_actions=past).sample for actions in (told, None)
        )
        alone = steered(latents, time, actions=told).sample
        prediction = best + 0.7 * (best - alone) + 1.5 * (best - without)
        latents = latents + (next_time - time) * (prediction - latents) / (1 - time)
    assert_same(frames, latents)
    with quiet_guiders():
        pipe.register_modules(guider=NextClipGuidance(guidance_scale=1.7, action_guidance_scale=2.5))
    told = {"history_actions": past - 1, "actions": told - 1}
    assert_same(predict(pipe, latents=noise, guidance_scale=None, **told), frames)


def test_guidance_by_action_costs_nothing_where_there_is_none(pipe, steered):
    calls = []
    steered.proj_out.register_forward_hook(lambda *_: calls.append(1))
    for actions, scale, num_passes in (([LEFT] * 2, 2.0, 2), ([LEFT] * 2, 1.0, 1), (None, 2.0, 1)):
        calls.clear()
        predict(pipe, actions=actions, action_guidance_scale=scale, guidance_scale=1.0)
        assert len(calls) == 2 * num_passes


def test_save_and_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = VideoGPTPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.transformer.config.num_actions == NUM_ACTIONS
    assert_same(predict(loaded, actions=[LEFT, JUMP]), predict(pipe, actions=[LEFT, JUMP]))


# Bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"actions": [0, 1, 2]}, "actions has 3 actions for 2 frames: give one a frame"),
        ({"actions": [0, 3]}, r"actions: action 3 at 1 is not in 0\.\.2, nor -1 for none"),
        ({"actions": [[0, 1], [1, -2]]}, "action -2 at 1, 1"),
        ({"actions": [0.0, 1.0]}, "actions are whole numbers"),
        ({"actions": [True, False]}, "actions are whole numbers"),
        ({"actions": ["left", "left"]}, "actions are whole numbers"),
        ({"actions": 1}, r"must be of shape \(frames\) or \(videos, frames\), got \[\]"),
        ({"actions": []}, "actions are whole numbers"),
        ({"actions": [[0, 1], [1]]}, "lists of different lengths"),
        (
            {"actions": [[0, 1]] * 3, "video_latents": latents_of(3, batch_size=2)},
            "2 videos or images were given, and 3",
        ),
        ({"history_actions": [0, 1]}, "history_actions has 2 actions for 3 frames"),
        ({"history_actions": [0, 1, 0, 1]}, "history_actions has 4 actions for 3 frames"),
        (
            {"history_actions": [0], "video_latents": None, "guidance_scale": None},
            "`history_actions` are of given frames",
        ),
        ({"actions": [0, 1], "action_guidance_scale": NAN}, "`action_guidance_scale` must be a finite number"),
    ],
)
def test_bad_arguments(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        predict(pipe, **arguments)


@pytest.mark.parametrize(
    "actions, message",
    [
        ([1.0], "an action is 2 numbers"),
        ([[1.0, NAN], [0.0, 0.0]], r"action \[1\.0, nan\] at 0 has NaN or infinite values"),
        ([[1.0, 0.0], [0.0, float("inf")]], "at 1 has NaN or infinite values"),
        ([[1.0, 0.0]] * 3, "3 actions for 2 frames"),
        ([["a", "b"]] * 2, "an action is 2 numbers"),
    ],
)
def test_bad_continuous_actions(continuous, actions, message):
    with pytest.raises(ValueError, match=message):
        ActionSpace.of(continuous.config).encode_frames(actions, 2)


def test_a_stream_says_what_it_cannot_be_told(pipe, make_tiny_pipe):
    arguments = {"video_latents": latents_of(3, 1), "num_inference_steps": 1, "output_type": "latent"}
    with pipe.stream(num_frames=2, **arguments) as stream:
        for actions, message in (
            ([0, 1, 2], "3 actions for 2 frames"),
            ([[0], [1]], "Actions of 2 videos"),
            (9, "action 9"),
        ):
            with pytest.raises(ValueError, match=message):
                stream.act(actions)
        next(stream)
        with pytest.raises(ValueError, match="The stream has ended"):
            stream.act(0)
    with (
        make_tiny_pipe().stream(num_frames=2, **arguments) as stream,
        pytest.raises(ValueError, match="cannot be steered"),
    ):
        stream.act(0)


def test_models_that_take_no_actions(make_tiny_pipe):
    for name in ("actions", "history_actions"):
        with pytest.raises(ValueError, match=f"`{name}` were passed, but this model was not trained on actions"):
            predict(make_tiny_pipe(), **{name: [0, 1]})


@pytest.mark.parametrize(
    "config, message",
    [
        ({"num_actions": 2, "action_dim": 2}, "give one of them"),
        ({"num_actions": 0}, "`num_actions` must be a whole number"),
        ({"action_dim": 2, "action_mean": [0.0, 1.0]}, "`action_std` must be a list of `action_dim`=2 numbers"),
        ({"action_dim": 2, "action_mean": [0.0], "action_std": [1.0]}, "`action_mean` must be a list"),
        ({"action_dim": 1, "action_mean": [0.0], "action_std": [0.0]}, "`action_std` must be a finite number above 0"),
        ({"num_actions": 2, "action_mean": [0.0], "action_std": [1.0]}, "`action_mean` must be a list"),
    ],
)
def test_bad_configurations(make_tiny_transformer, config, message):
    with pytest.raises(ValueError, match=message):
        make_tiny_transformer(**config)


# Numbers


def test_between_frames():
    actions = np.array([-1, 0, 1, -1, 2, -1, -1])
    assert between_frames(actions, np.array([0, 2, 4])).tolist() == [-1, 1, 2]
    assert between_frames(actions, np.array([2, 3, 4])).tolist() == [1, -1, 2]
    assert between_frames(actions, np.array([3, 6])).tolist() == [1, 2]  # what is done between, and before the first
    assert between_frames(actions, np.array([2, 2, 6])).tolist() == [-1, -1, 2]  # shown twice: nothing is between
    assert between_frames(actions, np.array([4])).tolist() == [2]
    moves = np.array([[1.0, 0], [NAN, NAN], [3, 2], [5, 4]], dtype=np.float32)
    assert between_frames(moves, np.array([1, 3])).tolist() == [[1.0, 0.0], [4.0, 3.0]]
    assert np.isnan(between_frames(moves, np.array([1, 2]))[0]).all()


def test_scale():
    mean, std = scale_of([np.array([[1.0, 7.0], [NAN, NAN]]), np.array([[3.0, 7.0]])])
    assert mean == (2.0, 7.0) and std == (1.0, 1.0)  # what never changes is not divided by nothing
    with pytest.raises(ValueError, match="No frame has an action"):
        scale_of([np.full((2, 1), NAN)])


def test_join():
    some = torch.tensor([[1, 2]])
    assert join_actions(None, 1, second=some, num_second=2).tolist() == [[0, 1, 2]]
    assert join_actions(some, 2, second=None, num_second=2).tolist() == [[1, 2, 0, 0]]
    assert join_actions(None, 1, second=None, num_second=2) is None
    assert join_actions(None, 1, second=torch.ones(1, 1, 2), num_second=1).isnan().tolist() == [
        [[True, True], [False, False]]
    ]


def test_each_token_of_a_frame_has_its_action():
    """Scaled by the root of the hidden size: weights of 1 / 8 add 1 to tokens of 64 numbers."""
    hints, patches = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0)).split([3, 6], dim=1)
    discrete = make_action_embed(2, None, dim=64)
    continuous = make_action_embed(None, 2, dim=64)
    with torch.no_grad():
        discrete.weight[2], continuous.weight[:, 1] = 0.125, 0.125
    expected = [hints + torch.tensor([0.0, 1, 0])[:, None], patches + torch.tensor([0.0, 0, 1, 1, 0, 0])[:, None]]
    known = add_actions([hints, patches], torch.tensor([[0, 2, 1]]), action_embed=discrete)
    torch.testing.assert_close(known, expected)
    told = torch.tensor([[[5.0, 0.0], [3.0, 1.0], [torch.nan, torch.nan]]])
    torch.testing.assert_close(add_actions([hints, patches], told, action_embed=continuous), expected)
