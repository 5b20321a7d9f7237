"""Is what a policy learns in a model of the steered world good for the world itself? By stable-baselines3's PPO.

A policy sees where the ball and the target are, read from the pixels of a frame, and chooses among five actions. One is trained
in the simulator and one in the model, with the same settings and as many steps; both are judged in the simulator.
Needs `pip install stable-baselines3` beside the extra `env`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ..tasks.environment import VideoGPTVectorEnv
from ..tasks.steered_world import SteeredWorld
from ..worlds import ACTIONS, begin_scene, reach_target, read_positions


try:
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ImportError("Policies are trained by stable-baselines3: pip install stable-baselines3") from error

NUM_ENVS = 8  # advanced at once
POLICY = {"n_steps": 64, "batch_size": 64, "n_epochs": 10, "learning_rate": 1e-3, "gamma": 0.95, "ent_coef": 0.01}


@dataclass(frozen=True)
class PolicyScores:
    """Of one policy, in the simulator.

    Attributes:
        mean_return: over all scenes.
        reached_share: scenes in which the target was touched.
    """

    mean_return: float
    reached_share: float


class Positions:
    """What a policy sees of a frame: (4,) in [0, 1], the ball's x and y and the target's; what is not seen stays where it was."""

    space = gymnasium.spaces.Box(0.0, 1.0, (4,), np.float32)

    def __init__(self):
        self.last = np.full(4, 0.5, dtype=np.float32)

    def read(self, frame: np.ndarray) -> np.ndarray:
        found = read_positions(frame).reshape(4) / frame.shape[0]
        self.last = np.where(np.isnan(found), self.last, found).astype(np.float32)
        return self.last.copy()


class PositionsVecEnv(VecEnv):
    """A vector environment of Gymnasium whose episodes begin anew at once, as stable-baselines3 has them, with [`Positions`].

    Args:
        envs: with `AutoresetMode.SAME_STEP`.
        seed: of the first one.
    """

    def __init__(self, envs: gymnasium.vector.VectorEnv, *, seed: int):
        self._envs, self._seed = envs, seed
        self._readers = [Positions() for _ in range(envs.num_envs)]
        super().__init__(envs.num_envs, Positions.space, envs.single_action_space)

    def _read(self, frames: np.ndarray) -> np.ndarray:
        return np.stack([reader.read(frame) for reader, frame in zip(self._readers, frames, strict=True)])

    def reset(self) -> np.ndarray:
        return self._read(self._envs.reset(seed=self._seed)[0])

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        frames, rewards, terminated, truncated, found = self._envs.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        done = terminated | truncated
        for index in np.flatnonzero(done):
            infos[index] = {
                "terminal_observation": self._readers[index].read(found["final_obs"][index]),
                "TimeLimit.truncated": bool(truncated[index] and not terminated[index]),
            }
            self._readers[index] = Positions()
        return self._read(frames), rewards.astype(np.float32), done, infos

    def close(self) -> None:
        self._envs.close()

    def get_attr(self, attr_name: str, indices=None) -> list[Any]:
        return [getattr(self._envs, attr_name, None)] * len(self._indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices=None) -> None:
        setattr(self._envs, attr_name, value)

    def env_method(self, method_name: str, *args, indices=None, **kwargs) -> list[Any]:
        return [getattr(self._envs, method_name)(*args, **kwargs)] * len(self._indices(indices))

    def env_is_wrapped(self, wrapper_class, indices=None) -> list[bool]:
        return [False] * len(self._indices(indices))

    def _indices(self, indices) -> Sequence[int]:
        return range(self.num_envs) if indices is None else np.atleast_1d(indices)


def simulator_envs(num_envs: int = NUM_ENVS, **steered) -> SyncVectorEnv:
    """Several [`SteeredWorld`] of these arguments."""
    return SyncVectorEnv([lambda: SteeredWorld(**steered)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def start_videos(
    num_videos: int, *, num_frames: int, first_scene: int = 2_000_000
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames and actions of scenes that episodes in a model begin with; none of them ends at the target."""
    videos = []
    for scene in range(first_scene, first_scene + num_videos):
        _, frames, actions = begin_scene(scene, num_frames)
        videos.append((frames[-num_frames:], np.array(actions[-num_frames:])))
    return videos


def model_envs(
    world_arguments: dict[str, Any], *, num_envs: int = NUM_ENVS, num_videos: int = 512, horizon: int
) -> VideoGPTVectorEnv:
    """Several [`VideoGPTEnv`] in one batch, with the task of the steered world, on starts that are simulated now.

    Args:
        world_arguments: of [`~tasks.world_model.WorldModel`], `model` among them.
        num_envs: how many.
        num_videos: starts to draw from.
        horizon: steps of an episode.
    """
    arguments = dict(world_arguments)
    num_frames = arguments.get("num_history_frames", 8)
    return VideoGPTVectorEnv(
        arguments.pop("model"),
        start_videos(num_videos, num_frames=num_frames),
        num_envs=num_envs,
        reward=reach_target,
        horizon=horizon,
        autoreset_mode=AutoresetMode.SAME_STEP,
        **arguments,
    )


def train_policy(envs: gymnasium.vector.VectorEnv, num_steps: int, *, seed: int) -> PPO:
    """A policy by PPO after so many steps of all environments together; the same seed gives the same."""
    policy = PPO("MlpPolicy", PositionsVecEnv(envs, seed=1000 * seed), seed=seed, device="cpu", **POLICY)
    return policy.learn(num_steps)


def judge_policy(policy: PPO | None, num_scenes: int = 100, *, seed: int = 0, **steered) -> PolicyScores:
    """A policy in the simulator, on scenes 0, 1, … that no model is trained on; without a policy, random actions.

    Args:
        policy: chooses its most probable action.
        num_scenes: how many.
        seed: of random actions.
        steered: arguments of [`SteeredWorld`].
    """
    env, rng = SteeredWorld(**steered), np.random.default_rng(seed)
    returns, reached = [], []
    for scene in range(num_scenes):
        frame, _ = env.reset(options={"scene": scene})
        reader, total, is_over = Positions(), 0.0, False
        while not is_over:
            seen = reader.read(frame)
            action = rng.integers(len(ACTIONS)) if policy is None else policy.predict(seen, deterministic=True)[0]
            frame, reward, touched, is_truncated, _ = env.step(int(action))
            total, is_over = total + reward, touched or is_truncated
        returns.append(total)
        reached.append(touched)
    return PolicyScores(float(np.mean(returns)), float(np.mean(reached)))


def compare_policies(
    world_arguments: dict[str, Any],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    num_steps: int = 20_000,
    num_scenes: int = 100,
    horizon: int = 32,
    num_envs: int = NUM_ENVS,
    num_videos: int = 512,
) -> dict[str, Any]:
    """Policies of each seed, trained in the simulator and in the model, both judged in the simulator.

    Args:
        world_arguments: of [`~tasks.world_model.WorldModel`], `model` among them.
        seeds: of the policies.
        num_steps: of training, of each.
        num_scenes: of the judgement.
        horizon: steps of an episode.
        num_envs: that are advanced at once.
        num_videos: starts in the model.

    Returns:
        `simulator` and `model`, the [`PolicyScores`] of each seed; `random`, of random actions; `ratio`, the mean return of the
        model's over that of the simulator's, and `ratios`, seed by seed.
    """
    steered = {
        "horizon": horizon,
        "num_history_frames": world_arguments.get("num_history_frames", 8),
        "frames_per_step": world_arguments.get("frames_per_step", 1),
    }
    envs = {
        "simulator": simulator_envs(num_envs, **steered),
        "model": model_envs(world_arguments, num_envs=num_envs, num_videos=num_videos, horizon=horizon),
    }
    scores: dict[str, Any] = {
        name: [judge_policy(train_policy(one, num_steps, seed=seed), num_scenes, **steered) for seed in seeds]
        for name, one in envs.items()
    }
    returns = {name: np.array([one.mean_return for one in scores[name]]) for name in envs}
    scores["random"] = judge_policy(None, num_scenes, **steered)
    scores["ratio"] = float(returns["model"].mean() / returns["simulator"].mean())
    scores["ratios"] = (returns["model"] / returns["simulator"]).tolist()
    return scores


def format_policies(scores: dict[str, Any]) -> str:
    """As a table in Markdown, with the smallest and largest of the seeds."""
    lines = ["| trained in | mean return | target reached |", "|---|---|---|"]
    for name in ("simulator", "model"):
        returns = [one.mean_return for one in scores[name]]
        reached = [one.reached_share for one in scores[name]]
        lines.append(
            f"| {name} | {np.mean(returns):.3f} ({min(returns):.3f} to {max(returns):.3f}) | "
            f"{np.mean(reached):.0%} ({min(reached):.0%} to {max(reached):.0%}) |"
        )
    random = scores["random"]
    lines.append(f"| random actions | {random.mean_return:.3f} | {random.reached_share:.0%} |")
    ratios = scores["ratios"]
    lines.append(
        f"\nReturn of the model's over the simulator's: {scores['ratio']:.1%} ({min(ratios):.1%} to {max(ratios):.1%})."
    )
    return "\n".join(lines)
