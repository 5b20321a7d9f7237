"""How fast a model of the steered world answers as an environment: steps a second of one [`VideoGPTEnv`], on this machine."""

import time
from typing import Any

import numpy as np
import torch

from ..tasks.environment import VideoGPTEnv
from ..worlds import ACTIONS, reach_target, steer


def measure_speed(world: dict[str, Any], num_steps: int) -> dict[str, float]:
    """Steps a second of one environment; of a step the median and the time that one in a hundred exceeds, in milliseconds.

    Args:
        world: arguments of [`~diffusers_videogpt.tasks.environment.VideoGPTEnv`], `num_history_frames` among them.
        num_steps: that are timed, after three that are not.
    """
    scene = steer(0, world["num_history_frames"])
    env = VideoGPTEnv(videos=[(scene.frames, scene.actions)], reward=reach_target, horizon=num_steps + 5, **world)
    env.reset(seed=0)
    for _ in range(3):
        env.step(0)
    seconds = []
    for number in range(num_steps):
        began = time.perf_counter()
        env.step(number % len(ACTIONS))
        seconds.append(time.perf_counter() - began)
    return {
        "steps_per_second": num_steps / sum(seconds),
        "median_ms": 1000 * float(np.median(seconds)),
        "p99_ms": 1000 * float(np.quantile(seconds, 0.99)),
        "num_threads": torch.get_num_threads(),
    }
