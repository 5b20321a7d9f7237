"""A model that was trained on actions as an environment of Gymnasium, alone or many in one batch.

```python
import gymnasium

env = gymnasium.make("diffusers_videogpt:VideoGPT-v0", model="steered", videos="steered_videos", reward=reach_target)
observation, info = env.reset(seed=0)
observation, reward, is_terminated, is_truncated, info = env.step(env.action_space.sample())
envs = gymnasium.make_vec("diffusers_videogpt:VideoGPT-v0", num_envs=8, model="steered", videos="steered_videos")
```

An observation is the last frame, uint8 (H, W, 3). Needs `pip install ".[env]"` in the repository.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..actions import Actions, ActionSpace
from ..data.actions import actions_beside, load_actions
from ..files import VIDEO_SUFFIXES
from ..frame_latents import VideoInput
from ..pipeline_videogpt import VideoGPTPipeline
from ..video_io import read_video, to_uint8_frames
from .video_classification import VideoGPTForVideoClassification, classify_videos
from .window import METADATA, window_for
from .world_model import Episode, WorldModel


try:
    import gymnasium
    from gymnasium.utils import seeding
    from gymnasium.vector import AutoresetMode
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise ImportError('Environments need Gymnasium: pip install ".[env]" in the repository') from error

# Frames uint8 (F, H, W, 3), the last of which an action led to, and that action → reward, and whether the episode is over.
Reward = Callable[[np.ndarray, Any], tuple[float, bool]]
# Frames of a video, or its file; or a pair of it and of the actions that led to its frames.
StartVideo = VideoInput | tuple[VideoInput, Actions]


def no_reward(frames: np.ndarray, action: Any) -> tuple[float, bool]:
    """Of a world without a task: 0, and never over."""
    return 0.0, False


class ClassifierReward:
    """Reward and termination by a trained head: what a video classifier sees in the last frames.

    Train one with `training_scripts/train_classification.py`, on clips of the kinds of moments that count.

    Args:
        model, vae: of [`~video_classification.load_classifier`]. A clip of it is at most as many frames as an episode
            looks back on, and one more.
        rewards: class → what a frame of it is worth. The reward is their mean, weighted by the classes' probabilities.
        ends: classes that end an episode where one of them is the most probable.

    Raises:
        ValueError: the model has no such class.
    """

    def __init__(
        self,
        model: VideoGPTForVideoClassification,
        vae,
        *,
        rewards: Mapping[str, float],
        ends: Collection[str] = (),
    ):
        model.label_ids([*rewards, *ends])
        self._model, self._vae, self._rewards, self._ends = model, vae, dict(rewards), set(ends)

    def __call__(self, frames: np.ndarray, action: Any) -> tuple[float, bool]:
        """As [`Reward`]."""
        num_frames = self._model.sampling.max_num_frames
        names = list(self._model.labels)
        ((first, *others),) = classify_videos(
            self._model, self._vae, videos=frames[-num_frames:], num_clips=1, top_k=len(names)
        )
        reward = sum(self._rewards.get(name, 0.0) * probability for name, probability in (first, *others))
        return float(reward), first[0] in self._ends


def space_of_actions(space: ActionSpace) -> gymnasium.Space:
    """The actions of a model as a space. Continuous ones reach three standard deviations to either side of what was trained."""
    if space.is_discrete:
        return gymnasium.spaces.Discrete(space.num_actions)
    if space.mean is None:
        return gymnasium.spaces.Box(-1.0, 1.0, (space.action_dim,), np.float32)
    mean, std = np.array(space.mean, dtype=np.float32), np.array(space.std, dtype=np.float32)
    return gymnasium.spaces.Box(mean - 3 * std, mean + 3 * std, dtype=np.float32)


class _Episodes:
    """What the environment and its vector form have in common: how an episode begins, goes on and is judged."""

    def __init__(
        self,
        model: str | Path | VideoGPTPipeline,
        videos: str | Path | Sequence[StartVideo],
        *,
        reward: Reward | None,
        horizon: int,
        **world,
    ):
        if horizon < 1:
            raise ValueError(f"horizon={horizon} must be at least 1 step.")
        self.videos = find_videos(videos)
        self.world = WorldModel(model, **world)
        self.reward, self.horizon = reward or no_reward, horizon
        first = self.world.begin(*read_start(self.videos[0], self.world.action_space), seed=0)
        self.height, self.width = first.frames.shape[1:3]
        self.observation_space = gymnasium.spaces.Box(0, 255, (self.height, self.width, 3), np.uint8)
        self.action_space = space_of_actions(self.world.action_space)

    def begin(self, rng: np.random.Generator, options: dict[str, Any] | None) -> Episode:
        """The start of an episode: after the video of `options`, or after a piece of one of ours that `rng` chooses."""
        options = options or {}
        video, actions = options.get("video"), options.get("actions")
        size = {"height": self.height, "width": self.width}
        if video is None:
            if actions is not None:
                raise ValueError('`options["actions"]` are of a video: pass `options["video"]` with them.')
            video, actions = read_start(self.videos[rng.integers(len(self.videos))], self.world.action_space)
            last = int(rng.integers(min(self.world.num_history_frames, len(video)), len(video) + 1))
            video, actions = video[:last], None if actions is None else actions[:last]
        return self.world.begin(video, actions, seed=int(rng.integers(2**62)), **size)

    def step(self, episodes: Sequence[Episode], actions: Sequence[Any]) -> list[tuple[Episode, float, bool, bool]]:
        """Episodes one step on: each with its reward, and whether it is terminated or truncated."""
        count, judged = self.world.frames_per_step, []
        for before, after, action in zip(episodes, self.world.advance(episodes, actions), actions, strict=True):
            frames = np.concatenate([before.frames, after.frames[-count:]])
            reward, is_over = 0.0, False
            for last in range(len(frames) - count + 1, len(frames) + 1):
                value, is_over = self.reward(frames[:last], action)
                reward += value
                if is_over:
                    break
            judged.append((after, float(reward), bool(is_over), after.num_steps >= self.horizon))
        return judged


class VideoGPTEnv(gymnasium.Env):
    """An environment in which a model predicts what an action leads to.

    Args:
        model: a [`VideoGPTPipeline`] whose transformer was trained on actions, or its folder or Hub id.
        videos: what episodes begin with: a folder of videos, with their actions where they have some beside them; or a
            sequence of videos, or of pairs of a video and its actions. All get the size of the first.
        reward: a function of the frames seen, uint8 (F, H, W, 3), and the action that led to the last one. It returns the
            reward and whether the episode is over; with several frames a step, it is asked for each and the rewards are
            added up. [`ClassifierReward`] is one by a trained head. Default: 0, and never over.
        horizon: steps after which an episode is truncated.
        render_mode: "rgb_array", "human" (a window) or `None`.
        world: arguments of [`~world_model.WorldModel`]: `num_history_frames`, `frames_per_step`, `num_inference_steps`,
            `guidance_scale`, `action_guidance_scale`, `device`.

    Raises:
        ValueError: the model was not trained on actions, there is no video, or it is shorter than `num_history_frames`.
    """

    metadata = METADATA

    def __init__(
        self,
        model: str | Path | VideoGPTPipeline,
        videos: str | Path | Sequence[StartVideo],
        *,
        reward: Reward | None = None,
        horizon: int = 32,
        render_mode: str | None = None,
        **world,
    ):
        self._window = window_for(render_mode, "Video-GPT")
        self._episodes = _Episodes(model, videos, reward=reward, horizon=horizon, **world)
        self.observation_space = self._episodes.observation_space
        self.action_space = self._episodes.action_space
        self.render_mode = render_mode
        self.episode: Episode | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode.

        Args:
            seed: which start and which noise all that follows has.
            options: `{"video": …, "actions": …}`: the frames that it begins with, and the actions that led to them.
        """
        super().reset(seed=seed)
        self.episode = self._episodes.begin(self.np_random, options)
        self._show()
        return self.episode.frames[-1].copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """What an action leads to: observation, reward, whether the episode is terminated or truncated, and nothing more.

        Raises:
            RuntimeError: no episode has begun.
            ValueError: the action is not in the space.
        """
        if self.episode is None:
            raise RuntimeError("No episode has begun: call `reset` first.")
        ((self.episode, reward, is_terminated, is_truncated),) = self._episodes.step([self.episode], [action])
        self._show()
        return self.episode.frames[-1].copy(), reward, is_terminated, is_truncated, {}

    def render(self) -> np.ndarray | None:
        """The last frame; `None` for a window, which shows it anyway.

        Raises:
            RuntimeError: no episode has begun.
        """
        if self.episode is None:
            raise RuntimeError("No episode has begun: call `reset` first.")
        return self.episode.frames[-1].copy() if self.render_mode == "rgb_array" else None

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(self.episode.frames[-1])

    def close(self) -> None:
        """Closes the window."""
        if self._window is not None:
            self._window.close()


class VideoGPTVectorEnv(gymnasium.vector.VectorEnv):
    """Many of [`VideoGPTEnv`], whose steps are predicted in one batch; each gives what it would give alone.

    The arguments are those of [`VideoGPTEnv`], and:

    Args:
        num_envs: how many.
        autoreset_mode: when the next episode begins: `NEXT_STEP`, with the step after the end, whose action is not asked for;
            or `SAME_STEP`, at once, with the last observation in `infos["final_obs"]`.
    """

    metadata = METADATA | {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        model: str | Path | VideoGPTPipeline,
        videos: str | Path | Sequence[StartVideo],
        *,
        num_envs: int = 1,
        reward: Reward | None = None,
        horizon: int = 32,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **world,
    ):
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        if self.autoreset_mode is AutoresetMode.DISABLED:
            raise ValueError("autoreset_mode must be NEXT_STEP or SAME_STEP: episodes begin by themselves.")
        self.metadata = METADATA | {"autoreset_mode": self.autoreset_mode}
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode={render_mode!r} must be 'rgb_array' or None: many have no window.")
        self._episodes = _Episodes(model, videos, reward=reward, horizon=horizon, **world)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = self._episodes.observation_space
        self.single_action_space = self._episodes.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.episodes: list[Episode] = []
        self._rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        self._has_ended = np.zeros(num_envs, dtype=bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode in each.

        Args:
            seed: one each; or that of the first, and those of the others count on from it.
            options: as in [`VideoGPTEnv.reset`], for all.

        Raises:
            ValueError: not as many seeds as environments.
        """
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)] if not is_several(seed) else seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds were given for {self.num_envs} environments: give one each.")
        for index, one in enumerate(seeds):
            if one is not None:
                self._rngs[index] = seeding.np_random(one)[0]
        self.episodes = [self._episodes.begin(rng, options) for rng in self._rngs]
        self._has_ended[:] = False
        return self._observations(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """What each one's action leads to: (E, …) observations, rewards, terminations, truncations, and `infos`.

        Raises:
            RuntimeError: no episode has begun.
            ValueError: an action is not in the space.
        """
        if not self.episodes:
            raise RuntimeError("No episode has begun: call `reset` first.")
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminations, truncations = np.zeros((2, self.num_envs), dtype=bool)
        for index in np.flatnonzero(self._has_ended):
            self.episodes[index] = self._episodes.begin(self._rngs[index], None)
        going = np.flatnonzero(~self._has_ended)
        if going.size:
            results = self._episodes.step([self.episodes[i] for i in going], [actions[i] for i in going])
            for index, result in zip(going, results, strict=True):
                self.episodes[index], rewards[index], terminations[index], truncations[index] = result
        has_ended, infos = terminations | truncations, {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            for index in np.flatnonzero(has_ended):
                last = self.episodes[index].frames[-1]
                infos = self._add_info(infos, {"final_obs": last, "final_info": {}}, index)
                self.episodes[index] = self._episodes.begin(self._rngs[index], None)
        else:
            self._has_ended = has_ended
        return self._observations(), rewards, terminations, truncations, infos

    def _observations(self) -> np.ndarray:
        return np.stack([episode.frames[-1] for episode in self.episodes])

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The last frame of each; `None` without a render mode."""
        return tuple(self._observations()) if self.render_mode == "rgb_array" else None


def is_several(seed: Any) -> bool:
    """Whether these are seeds, not a seed."""
    return seed is not None and not isinstance(seed, int | np.integer)


def find_videos(videos: str | Path | Sequence[StartVideo]) -> list[StartVideo]:
    """The videos that episodes may begin with.

    Raises:
        ValueError: there is none.
    """
    if isinstance(videos, str | Path):
        path = Path(videos)
        if not path.exists():
            raise ValueError(f"videos={str(videos)!r}: there is no such file or folder.")
        found = [path] if path.is_file() else sorted(x for x in path.rglob("*") if x.suffix.lower() in VIDEO_SUFFIXES)
    else:
        found = list(videos)
    if not found:
        raise ValueError(f"videos={str(videos)!r} holds no video: an episode needs frames to begin with.")
    return found


def read_start(source: StartVideo, space: ActionSpace) -> tuple[np.ndarray, Actions | None]:
    """The frames of a video, uint8 (F, H, W, 3), and the actions that led to them; `None` if it has none, neither with it nor in
    a file beside it (see [`~data.actions`]).

    Raises:
        ValueError: the actions in that file are not one a frame, or not of this `space`.
    """
    video, actions = source if isinstance(source, tuple) else (source, None)
    if not isinstance(video, str | Path):
        return to_uint8_frames(video), actions
    frames, beside = read_video(video).frames, actions_beside(Path(video))
    if actions is None and beside is not None:
        actions = load_actions(beside, len(frames), space=space, name=str(video))
    return frames, actions
