"""The steered world of the simulator as an environment of Gymnasium, beside the one that a model of it makes.

```python
import gymnasium

env = gymnasium.make("diffusers_videogpt:SteeredWorld-v0")
observation, info = env.reset(seed=0)
```

Observations, actions, reward and horizon are those of `VideoGPTEnv` with a model of this world: a policy runs in both. Needs
`pip install ".[env]"` in the repository.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..worlds import ACTIONS, SteeredSimulation, begin_scene, reach_target
from .window import METADATA, window_for


try:
    import gymnasium
except ImportError as error:
    raise ImportError('Environments need Gymnasium: pip install ".[env]" in the repository') from error

FIRST_SCENE, LAST_SCENE = 1_000_000, 2**31  # of those that `reset` draws; lower ones are kept for evaluation


class SteeredWorld(gymnasium.Env):
    """One ball obeys five actions among others that follow physics, and is to touch the target.

    Args:
        size: height and width in pixels.
        reward: as of [`~environment.VideoGPTEnv`]; default: [`~worlds.steered.reach_target`].
        horizon: steps after which an episode is truncated.
        num_history_frames: frames that were simulated under random actions before an episode begins.
        frames_per_step: frames that one action leads to.
        render_mode: "rgb_array", "human" (a window) or `None`.

    Raises:
        ValueError: a number is out of its range, or there is no such mode.
        ImportError: pymunk or pygame-ce is not installed.
    """

    metadata = METADATA

    def __init__(
        self,
        *,
        size: int = 64,
        reward: Callable[[np.ndarray, int], tuple[float, bool]] = reach_target,
        horizon: int = 32,
        num_history_frames: int = 8,
        frames_per_step: int = 1,
        render_mode: str | None = None,
    ):
        self._window = window_for(render_mode, "Steered world")
        for name, value in (
            ("horizon", horizon),
            ("num_history_frames", num_history_frames),
            ("frames_per_step", frames_per_step),
        ):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self.size, self.reward, self.horizon, self.render_mode = size, reward, horizon, render_mode
        self.num_history_frames, self.frames_per_step = num_history_frames, frames_per_step
        self._simulation: SteeredSimulation | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode.

        Args:
            seed: which scenes this and all later episodes have.
            options: `{"scene": …}`: the number of the scene instead.

        Returns:
            observation: the first frame that an action can change from.
            info: `scene`; `video` and `actions`, what was before, for `VideoGPTEnv.reset(options=…)`; `positions` (2, 2) of the
                steered ball and the target in pixels.
        """
        super().reset(seed=seed)
        scene = (options or {}).get("scene")
        if scene is None:
            scene = int(self.np_random.integers(FIRST_SCENE, LAST_SCENE))
        length = self.num_history_frames
        self._simulation, frames, actions = begin_scene(scene, length, size=self.size)
        self._frames, self._num_steps = frames[-length:], 0
        self._show()
        info = {"scene": scene, "video": self._frames.copy(), "actions": np.array(actions[-length:])}
        return self._frames[-1].copy(), info | self._positions()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """What an action leads to: observation, reward, whether the episode is terminated or truncated, and `positions`.

        Raises:
            RuntimeError: no episode has begun.
            ValueError: `action` is not in the space.
        """
        if self._simulation is None:
            raise RuntimeError("No episode has begun: call `reset` first.")
        total, is_over = 0.0, False
        for _ in range(self.frames_per_step):
            frame = self._simulation.step(int(action))
            frames = np.concatenate([self._frames, frame[None]])
            self._frames = frames[-self.num_history_frames :]
            if not is_over:
                value, is_over = self.reward(frames, int(action))
                total += value
        self._num_steps += 1
        self._show()
        is_truncated = self._num_steps >= self.horizon
        return self._frames[-1].copy(), float(total), bool(is_over), is_truncated, self._positions()

    def _positions(self) -> dict[str, np.ndarray]:
        return {"positions": self._simulation.positions[:2].astype(np.float32)}

    def render(self) -> np.ndarray | None:
        """The last frame; `None` for a window, which shows it anyway.

        Raises:
            RuntimeError: no episode has begun.
        """
        if self._simulation is None:
            raise RuntimeError("No episode has begun: call `reset` first.")
        return self._frames[-1].copy() if self.render_mode == "rgb_array" else None

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(self._frames[-1])

    def close(self) -> None:
        """Closes the window."""
        if self._window is not None:
            self._window.close()
