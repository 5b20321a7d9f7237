"""Playing in a world model by hand: what is done step by step, what was seen, and back to an earlier frame.

```python
player = Player(world, world.begin("start.mp4", seed=0), names=("stay", "left", "right", "up", "down"))
player.act(2)
player.rewind()
write_video("played.mp4", player.frames, fps=12)
```
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from ..actions import NO_ACTION
from .action_names import check_names
from .world_model import Episode, WorldModel


ARROWS = ("left", "right", "up", "down")  # names of keys, and of the actions that they do
MOST_STEPS_BACK = 1000


class Player:
    """What one player sees and does.

    Args:
        world: the model.
        episode: where the play begins.
        names: of the actions, in the order of their numbers; without one, keys are digits alone.

    Raises:
        ValueError: the model's actions are continuous, or it has another number than names.
    """

    def __init__(self, world: WorldModel, episode: Episode, *, names: Sequence[str] = ()):
        check_names(names, world.action_space.num_actions)
        self.world, self.names = world, tuple(names)
        self.num_given = len(episode.frames)
        self._episodes = deque([episode], maxlen=MOST_STEPS_BACK + 1)  # the last is where the play is
        self._frames = list(episode.frames)
        self.actions: list[int] = []

    @property
    def frames(self) -> np.ndarray:
        """All that was seen, uint8 (F, H, W, 3): the given frames and one after another."""
        return np.stack(self._frames)

    @property
    def num_steps(self) -> int:
        """How many actions led here."""
        return len(self.actions)

    def act(self, action: int) -> np.ndarray:
        """Does something; what it leads to, uint8 (`frames_per_step`, H, W, 3).

        Raises:
            ValueError: there is no such action.
        """
        (episode,) = self.world.advance([self._episodes[-1]], [action])
        new = np.concatenate([self._episodes[-1].frames, episode.frames])[-self.world.frames_per_step :]
        self._episodes.append(episode)
        self._frames += list(new)
        self.actions.append(action)
        return new

    def rewind(self, num_steps: int = 1) -> None:
        """Goes back so many steps, at most to the beginning or `MOST_STEPS_BACK`; doing the same again leads to the same."""
        for _ in range(min(num_steps, len(self._episodes) - 1)):
            self._episodes.pop()
            self.actions.pop()
            del self._frames[-self.world.frames_per_step :]

    def action_of_keys(self, keys: set[str]) -> int:
        """The action of the keys that are down, by pygame's names: an arrow does what has its name, a digit the action of its
        number. With none of them, what is called "stay", or else "no action", −1."""
        for key in sorted(keys):
            if key in ARROWS and key in self.names:
                return self.names.index(key)
            if key.isdecimal() and int(key) < self.world.action_space.num_actions:
                return int(key)
        return self.names.index("stay") if "stay" in self.names else NO_ACTION
