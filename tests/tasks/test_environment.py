"""The environments: what Gymnasium asks of them, many in one batch against one alone, rewards, horizons, starts."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch


gymnasium = pytest.importorskip("gymnasium", reason='needs pip install ".[env]"')

from gymnasium.utils.env_checker import check_env  # noqa: E402

from diffusers_videogpt.actions import ActionSpace  # noqa: E402
from diffusers_videogpt.data.sampling import Sampling, seeded_generator  # noqa: E402
from diffusers_videogpt.tasks.environment import (  # noqa: E402
    ClassifierReward,
    VideoGPTEnv,
    VideoGPTVectorEnv,
    space_of_actions,
)
from diffusers_videogpt.tasks.steered_world import SteeredWorld  # noqa: E402
from diffusers_videogpt.tasks.video_classification import VideoGPTForVideoClassification  # noqa: E402
from diffusers_videogpt.tasks.world_model import WorldModel  # noqa: E402
from diffusers_videogpt.video_io import write_video  # noqa: E402


NUM_ACTIONS = 5
WORLD = {"num_history_frames": 3, "num_inference_steps": 2}


def noise(num_frames, seed=0, side=32):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, side, side, 3), dtype=np.uint8)


VIDEOS = [(noise(6, 1), np.array([0, 1, 2, 3, 4, 0])), (noise(4, 2), np.array([1, 1, 2, 2]))]


@pytest.fixture
def pipe(steered_pipe):
    return steered_pipe


@pytest.fixture
def saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def brightness(frames, action):
    return float(frames[-1].mean() / 255 + action), bool(frames[-1].mean() < 1)


def bright_over_three(frames, action):
    """Over at the third frame that follows the start, for every second start."""
    return float(action), bool(frames[0, 0, 0, 0] % 2)


# What Gymnasium asks


@pytest.mark.parametrize("render_mode", [None, "rgb_array", "human"])
def test_the_model_passes_gymnasiums_check_without_a_warning(saved, render_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(
            "diffusers_videogpt:VideoGPT-v0",
            model=str(saved),
            videos=VIDEOS,
            reward=brightness,
            render_mode=render_mode,
            **WORLD,
        )
        check_env(env.unwrapped)
        env.close()


def test_the_simulator_passes_gymnasiums_check_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("diffusers_videogpt:SteeredWorld-v0", num_history_frames=2)
        check_env(env.unwrapped)
        env.close()


def test_model_and_simulator_have_the_same_spaces(pipe):
    model = VideoGPTEnv(pipe, VIDEOS, **WORLD)
    simulator = SteeredWorld(size=32)
    assert model.observation_space == simulator.observation_space
    assert model.action_space == simulator.action_space


def test_continuous_actions_are_a_box():
    assert space_of_actions(ActionSpace(action_dim=2)) == gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    box = space_of_actions(ActionSpace(action_dim=2, mean=(10.0, 0.0), std=(2.0, 1.0)))
    np.testing.assert_array_equal(box.low, [4, -3])
    np.testing.assert_array_equal(box.high, [16, 3])


def test_a_user_needs_to_import_nothing():
    code = (
        "import gymnasium; env = gymnasium.make('diffusers_videogpt:SteeredWorld-v0'); print(env.unwrapped);"
        "import sys; print('torch' in sys.modules)"  # a simulator needs none
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "SteeredWorld" in result.stdout and result.stdout.endswith("False\n")


# One alone, many in one batch


def with_actions_beside(folder, name, frames, actions):
    write_video(folder / f"{name}.mp4", frames, fps=12)
    np.save(folder / f"{name}.actions.npy", actions)


def rollouts(env, actions, **reset):
    """Observations of a reset and of steps; rewards, terminations and truncations of the steps."""
    first = env.reset(**reset)[0]
    observations, *judged = zip(*(env.step(action)[:4] for action in actions), strict=True)
    return [np.stack(values) for values in ([first, *observations], *judged)]


def test_many_in_one_batch_are_what_each_is_alone(pipe):
    """Also where their episodes end at different times, and with several frames a step."""
    actions = np.random.default_rng(0).integers(0, NUM_ACTIONS, (7, 3))
    for world in (WORLD, WORLD | {"frames_per_step": 2, "guidance_scale": 1.5}):
        arguments = {"videos": VIDEOS, "reward": bright_over_three, "horizon": 3, **world}
        many = VideoGPTVectorEnv(pipe, num_envs=3, **arguments)
        together = rollouts(many, actions, seed=7)
        latents = [episode.latents for episode in many.episodes]
        for index in range(3):
            alone = VideoGPTEnv(pipe, **arguments)
            sync = gymnasium.vector.SyncVectorEnv([lambda env=alone: env])
            apart = rollouts(sync, actions[:, index : index + 1], seed=7 + index)
            torch.testing.assert_close(latents[index], alone.episode.latents, atol=1e-5, rtol=0)
            np.testing.assert_allclose(together[0][:, index].astype(int), apart[0][:, 0].astype(int), atol=1)
            np.testing.assert_allclose(together[1][:, index], apart[1][:, 0], atol=1e-5)
            for part in (2, 3):
                np.testing.assert_array_equal(together[part][:, index], apart[part][:, 0])
        assert together[2].any() and together[3].any()


def test_the_next_episode_may_begin_at_once(pipe):
    """As stable-baselines3 wants it; and as Gymnasium's own vector form of single ones does."""
    arguments = {"videos": VIDEOS, "reward": bright_over_three, "horizon": 3, **WORLD}
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    many = VideoGPTVectorEnv(pipe, num_envs=2, autoreset_mode=mode, **arguments)
    single = [VideoGPTEnv(pipe, **arguments) for _ in range(2)]
    apart = gymnasium.vector.SyncVectorEnv([lambda env=env: env for env in single], autoreset_mode=mode)
    assert many.metadata["autoreset_mode"] is mode
    np.testing.assert_array_equal(many.reset(seed=7)[0], apart.reset(seed=7)[0])
    ended = 0
    for actions in np.random.default_rng(0).integers(0, NUM_ACTIONS, (7, 2)):
        ours, theirs = many.step(actions), apart.step(actions)
        np.testing.assert_allclose(ours[0].astype(int), theirs[0].astype(int), atol=1)
        np.testing.assert_array_equal(ours[2], theirs[2])
        np.testing.assert_array_equal(ours[3], theirs[3])
        np.testing.assert_array_equal(ours[4].get("_final_obs", []), theirs[4].get("_final_obs", []))
        for index in np.flatnonzero(ours[2] | ours[3]):
            ended += 1
            last, same = (one[4]["final_obs"][index].astype(int) for one in (ours, theirs))
            np.testing.assert_allclose(last, same, atol=1)
    assert ended > 2
    with pytest.raises(ValueError, match="NEXT_STEP or SAME_STEP"):
        VideoGPTVectorEnv(pipe, VIDEOS, autoreset_mode="Disabled")


def test_one_call_of_the_model_predicts_for_all(pipe, monkeypatch):
    many = VideoGPTVectorEnv(pipe, VIDEOS, num_envs=4, **WORLD)
    many.reset(seed=0)
    batches, forward = [], pipe.transformer.forward
    monkeypatch.setattr(
        pipe.transformer, "forward", lambda x=None, *rest, **k: batches.append(x) or forward(x, *rest, **k)
    )
    many.step(np.array([0, 1, 2, 3]))
    assert len(batches) == WORLD["num_inference_steps"]  # the first step with the history
    assert all(len(x) == 4 for x in batches if x is not None)
    assert many.observation_space.contains(many._observations())


def test_gymnasium_makes_the_vector_form(pipe):
    envs = gymnasium.make_vec("diffusers_videogpt:VideoGPT-v0", num_envs=2, model=pipe, videos=VIDEOS, **WORLD)
    assert isinstance(envs, VideoGPTVectorEnv) and envs.num_envs == 2
    observations, _ = envs.reset(seed=0)
    assert observations.shape == (2, 32, 32, 3) and observations.dtype == np.uint8
    assert envs.step(envs.action_space.sample())[1].dtype == np.float64


# Episodes


def test_actions_matter_from_their_frame_on(pipe):
    world = WorldModel(pipe, **WORLD)
    start = world.begin(*VIDEOS[0], seed=3)
    left, right = (world.advance([start], [action])[0] for action in (1, 2))
    np.testing.assert_array_equal(left.frames[:-1], right.frames[:-1])
    assert np.abs(left.frames[-1].astype(int) - right.frames[-1]).max() > 2
    assert left.actions.tolist() == [4, 0, 1] and left.num_steps == 1 and start.num_steps == 0
    # What led to the frames that were given is known, too.
    other = world.begin(VIDEOS[0][0], np.array([0, 1, 2, 3, 4, 4]), seed=3)
    assert np.abs(world.advance([other], [1])[0].frames[-1].astype(int) - left.frames[-1]).max() > 0


def test_an_episode_is_the_pipelines_rollout(pipe):
    world = WorldModel(pipe, num_history_frames=3, frames_per_step=2, num_inference_steps=2, guidance_scale=1.5)
    start = world.begin(*VIDEOS[0], seed=3)
    (after,) = world.advance([start], [2])
    latents = pipe(
        video_latents=start.latents[None],
        history_actions=[[3, 4, 0]],
        actions=[2, 2],
        num_frames=2,
        frames_per_clip=2,
        max_context_frames=3,
        num_inference_steps=2,
        guidance_scale=1.5,
        generator=seeded_generator(3, 0),
        output_type="latent",
    ).frames
    torch.testing.assert_close(after.latents[:, -2:], latents[0], atol=1e-5, rtol=0)


def test_a_history_that_is_read_once_is_read_without_a_cache(pipe, monkeypatch):
    start = WorldModel(pipe, num_history_frames=3, num_inference_steps=1).begin(*VIDEOS[0], seed=3)
    ways = []
    forward = pipe.transformer.forward
    monkeypatch.setattr(
        pipe.transformer, "forward", lambda *a, **k: ways.append(k.get("kv_cache") is not None) or forward(*a, **k)
    )
    for guidance_scale, num_steps, expected in ((1.0, 1, [False]), (2.0, 1, [True] * 2), (1.0, 2, [True] * 2)):
        ways.clear()
        world = WorldModel(pipe, num_history_frames=3, num_inference_steps=num_steps, guidance_scale=guidance_scale)
        (after,) = world.advance([start], [2])
        assert ways == expected
    # With a cache and without it comes to the same.
    quick = WorldModel(pipe, num_history_frames=3, num_inference_steps=1)
    slow = WorldModel(pipe, num_history_frames=3, num_inference_steps=1)
    slow._settings["use_kv_cache"] = True
    (one,), (other,) = quick.advance([start], [2]), slow.advance([start], [2])
    torch.testing.assert_close(one.latents, other.latents, atol=1e-5, rtol=0)
    assert not one.latents.is_inference()  # a network may learn from it


def test_an_episode_goes_on_from_the_end_of_the_video_that_is_named(pipe):
    env = VideoGPTEnv(pipe, VIDEOS, **WORLD)
    given = noise(7, 5)
    first, _ = env.reset(seed=0, options={"video": given, "actions": [1] * 7})
    np.testing.assert_array_equal(first, given[-1])
    np.testing.assert_array_equal(env.episode.frames, given[-3:])
    assert env.episode.actions.tolist() == [1, 1, 1]
    env.reset(seed=0, options={"video": noise(3, 5, side=64)})  # of another size
    assert env.episode.frames.shape == (3, 32, 32, 3) and env.episode.actions.tolist() == [-1, -1, -1]


def test_starts_are_drawn_from_all_videos_and_places(pipe):
    env = VideoGPTEnv(pipe, VIDEOS, **WORLD)
    possible = [frames[last - 1] for frames, _ in VIDEOS for last in range(3, len(frames) + 1)]
    seen = [env.reset(seed=0 if i == 0 else None)[0] for i in range(40)]
    for frame in possible:
        assert any(np.array_equal(frame, one) for one in seen)
    for index, one in enumerate(seen):
        assert any(np.array_equal(frame, one) for frame in possible), index


def test_a_folder_of_videos_with_their_actions(pipe, tmp_path):
    for name, (frames, actions) in zip("ab", VIDEOS, strict=True):
        with_actions_beside(tmp_path, name, frames, actions)
    env = VideoGPTEnv(pipe, tmp_path, **WORLD)
    seen = set()
    for number in range(30):
        env.reset(seed=number)
        seen.add(tuple(env.episode.actions.tolist()))
    assert seen == {(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 0), (1, 1, 2), (1, 2, 2)}
    np.save(tmp_path / "a.actions.npy", [1, 2])
    with pytest.raises(ValueError, match="6 frames have actions of shape"):
        VideoGPTEnv(pipe, tmp_path, **WORLD)


def test_rewards_horizon_and_end(pipe):
    env = VideoGPTEnv(pipe, VIDEOS, reward=lambda frames, action: (action + len(frames), len(frames) == 5), **WORLD)
    env.reset(seed=0)
    assert env.step(2)[1:4] == (2.0 + 4, False, False)
    env = VideoGPTEnv(pipe, VIDEOS, frames_per_step=3, horizon=2, reward=env._episodes.reward, **WORLD)
    env.reset(seed=0)
    assert env.step(2)[1:4] == (2.0 + 4 + 2 + 5, True, False)  # the frame behind the end is not asked for
    env = VideoGPTEnv(pipe, VIDEOS, horizon=2, **WORLD)
    env.reset(seed=0)
    assert [env.step(0)[1:4] for _ in range(2)] == [(0.0, False, False), (0.0, False, True)]


def test_a_trained_head_rewards_and_ends(pipe, make_tiny_transformer):
    sampling = Sampling(max_num_frames=2, longest_side=32)
    head = VideoGPTForVideoClassification.from_transformer(
        make_tiny_transformer(), ["far", "near"], layer=1, sampling=sampling
    )
    with torch.no_grad():
        head.head.bias.copy_(torch.tensor([0.0, np.log(3.0)]))  # three quarters "near", whatever is seen
    reward = ClassifierReward(head, pipe.vae, rewards={"near": 1.0, "far": -1.0}, ends=["near"])
    env = VideoGPTEnv(pipe, VIDEOS, reward=reward, **WORLD)
    env.reset(seed=0)
    _, value, is_over, _, _ = env.step(0)
    assert value == pytest.approx(0.75 - 0.25, abs=1e-5) and is_over
    with pytest.raises(ValueError, match="not nearest"):
        ClassifierReward(head, pipe.vae, rewards={"nearest": 1.0})


def test_render(pipe):
    env = VideoGPTEnv(pipe, VIDEOS, render_mode="rgb_array", **WORLD)
    with pytest.raises(RuntimeError, match="reset"):
        env.render()
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), observation)
    many = VideoGPTVectorEnv(pipe, VIDEOS, num_envs=2, render_mode="rgb_array", **WORLD)
    observations, _ = many.reset(seed=0)
    np.testing.assert_array_equal(np.stack(many.render()), observations)


# What is refused


def test_what_can_not_be_a_world_is_refused(pipe, make_tiny_pipe, tmp_path):
    make_tiny_pipe().save_pretrained(tmp_path / "plain")
    (tmp_path / "empty").mkdir()
    cases = {
        "plain was not trained on actions": lambda: VideoGPTEnv(tmp_path / "plain", VIDEOS),
        "this model was not trained on actions": lambda: VideoGPTEnv(make_tiny_pipe(), VIDEOS),
        "num_history_frames=6 must be in 1..5": lambda: VideoGPTEnv(pipe, VIDEOS, num_history_frames=6),
        "frames_per_step=0": lambda: VideoGPTEnv(pipe, VIDEOS, frames_per_step=0, num_history_frames=3),
        "horizon=0": lambda: VideoGPTEnv(pipe, VIDEOS, horizon=0),
        "has 2 frames, an episode begins with 3": lambda: VideoGPTEnv(pipe, [noise(2)], **WORLD),
        "holds no video": lambda: VideoGPTEnv(pipe, tmp_path / "empty"),
        "there is no such file": lambda: VideoGPTEnv(pipe, tmp_path / "nothing"),
        "4 frames and 3 actions": lambda: VideoGPTEnv(pipe, [(noise(4), [1, 2, 3])], **WORLD),
        "render_mode='ansi'": lambda: VideoGPTEnv(pipe, VIDEOS, render_mode="ansi"),
        "many have no window": lambda: VideoGPTVectorEnv(pipe, VIDEOS, render_mode="human"),
    }
    for said, make in cases.items():
        with pytest.raises(ValueError, match=said):
            make()
    env = VideoGPTEnv(pipe, VIDEOS, **WORLD)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action 5.* not in 0\.\.4"):
        env.step(5)
    with pytest.raises(ValueError, match="pass `options"):
        env.reset(options={"actions": [1, 2, 3]})
    many = VideoGPTVectorEnv(pipe, VIDEOS, num_envs=2, **WORLD)
    with pytest.raises(RuntimeError, match="reset"):
        many.step(np.zeros(2, int))
    with pytest.raises(ValueError, match="1 seeds were given for 2"):
        many.reset(seed=[3])


# The simulator's


def test_the_simulator_as_an_environment():
    env = SteeredWorld(num_history_frames=4, horizon=3)
    first, info = env.reset(seed=1)
    again, info_again = SteeredWorld(num_history_frames=4).reset(seed=1)
    np.testing.assert_array_equal(first, again)
    assert info["scene"] == info_again["scene"] >= 1_000_000
    np.testing.assert_array_equal(info["video"][-1], first)
    assert info["video"].shape == (4, 64, 64, 3) and info["actions"].shape == (4,)
    steps = [env.step(2) for _ in range(3)]
    assert [step[3] for step in steps] == [False, False, True]
    assert steps[0][4]["positions"].shape == (2, 2)
    _, info = env.reset(options={"scene": 5})
    assert info["scene"] == 5
    with pytest.raises(ValueError, match="`action`"):
        env.step(5)


def test_several_frames_a_step_are_as_many_steps():
    one, three = SteeredWorld(), SteeredWorld(frames_per_step=3)
    for env in (one, three):
        env.reset(options={"scene": 3})
    singles = [one.step(3) for _ in range(3)]
    together = three.step(3)
    np.testing.assert_array_equal(singles[-1][0], together[0])
    assert together[1] == pytest.approx(sum(step[1] for step in singles))
