"""Scenes made to order, so that a text can say everything about their objects: "two red balls and one blue box fall".

Some combinations of number, colour and shape are in no order unless it is asked for them: what a model does with these, it
has not learned by heart.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from .picture import PALETTE, find_objects
from .scenes import KINDS_TO_ORDER, Scene, plan_scene, simulate


SHAPES = ("ball", "box")
MAX_NUMBER, MAX_OBJECTS = 3, 4  # of a group, of a scene


@dataclass(frozen=True)
class Group:
    """Objects alike: `number` (1 to 3) of one `colour` (a key of `PALETTE`) and one `shape` ("ball" or "box")."""

    number: int
    colour: str
    shape: str


# Every colour once, every number twice, every shape three times.
HELD_OUT = frozenset(Group(1 + i % MAX_NUMBER, colour, SHAPES[i % 2]) for i, colour in enumerate(PALETTE))


@dataclass(frozen=True)
class Order:
    """What a scene is to show: one or two groups of different colours, and "bounce" or "fall"."""

    kind: str
    groups: tuple[Group, ...]

    @property
    def objects(self) -> list[tuple[str, str]]:
        """(colour, shape) of every object."""
        return [(group.colour, group.shape) for group in self.groups for _ in range(group.number)]

    @property
    def caption(self) -> str:
        return plan_scene(self.kind, objects=self.objects).caption

    @property
    def is_held_out(self) -> bool:
        return any(group in HELD_OUT for group in self.groups)

    def simulate(self, seed: int, num_frames: int = 24, *, size: int = 64) -> Scene:
        """A scene as ordered; places, sizes, speeds and background follow from the seed."""
        return simulate(self.kind, seed, num_frames=num_frames, size=size, objects=self.objects)


def draw_order(seed: int, held_out: bool = False) -> Order:
    """An order that follows from the seed: with a held-out combination or without."""
    rng = np.random.default_rng((seed, 2))
    while True:
        colours = rng.permutation(list(PALETTE))[: rng.integers(1, 3)]
        groups = tuple(
            Group(int(rng.integers(1, MAX_NUMBER + 1)), str(colour), str(rng.choice(SHAPES))) for colour in colours
        )
        order = Order(str(rng.choice(KINDS_TO_ORDER)), groups)
        if order.is_held_out == held_out and len(order.objects) <= MAX_OBJECTS:
            return order


def read_objects(frames: np.ndarray) -> Counter:
    """What a video shows, as most of its frames show it: (colour, shape) → how many.

    Args:
        frames: uint8 (F, H, W, 3).
    """
    readings = Counter(frozenset(Counter(find_objects(frame)).items()) for frame in frames)
    return Counter(dict(readings.most_common(1)[0][0]))
