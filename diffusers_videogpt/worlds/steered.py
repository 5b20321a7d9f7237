"""A world that can be steered: one ball obeys five actions, the others follow physics.

```python
from diffusers_videogpt.worlds import steer

scene = steer(seed=7, actions=[2] * 6 + [3] * 6)  # six frames to the right, six up; scene.frames is uint8 (12, 64, 64, 3)
```

The steered ball is yellow and the target, a box that stays where it is, is green; nothing else has these colours. They are
two of the six that the bundled autoencoder knows: it draws any other colour as the nearest of the six. In open space the steered ball
moves 3 pixels a frame (at 64 x 64 and 12 frames a second); walls and the target stop it, balls in its way are pushed aside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config_values import check_whole_number
from ..video_io import write_video
from .picture import BACKGROUNDS, MATCH, PALETTE, UNITS, draw_frames, load
from .scenes import MARGIN, STEPS_PER_SECOND, SceneObject, Setup, build, scatter


ACTIONS = ("stay", "left", "right", "up", "down")
DIRECTIONS = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)], dtype=np.float64)  # x to the right, y down
SPEED = 36.0  # of the steered ball, in world units a second: 3 a frame at 12 frames a second
STEERED, TARGET = 0, 1  # their places among the objects of a scene
STEERED_COLOUR, TARGET_COLOUR = "yellow", "green"
STEERED_RADIUS, TARGET_RADIUS = 5.0, 4.5
# What a ball that is hit feels. A heavier one would press a ball that is caught between it and a wall into the wall.
STEERED_MASS = 1.0
LEAST_START = 14.0  # between the outlines of the steered ball and the target at the start
FASTEST = 40.0  # of the other balls: each push of the steered ball would make them faster, without end
# Frames that `draw_actions` stays with one action, at most, one of these a video. While an action is held, it tells nothing that the
# frames before do not tell: of holds of 1 to 8 alone, in which one frame in six has a new action, a model learnt to ignore them.
LONGEST_HOLDS = (1, 2, 8)
# Between outlines. Touching ones are drawn 2 * MARGIN apart, and a centre is read from pixels to about half of one.
TOUCHING = 2 * MARGIN + 1.0
CRF = 8  # of MP4, nearly without loss
LEAST_AREA = 16.0  # an object of which a 64 x 64 picture shows fewer pixels is not seen


@dataclass
class SteeredScene:
    """A steered video and the truth about it, for F frames and O objects: the steered ball, the target, other balls.

    Attributes:
        frames: uint8 (F, H, W, 3).
        actions: int64 (F,), indices of `ACTIONS`; entry i led to frame i.
        positions: float32 (F, O, 2), centres in pixels, x to the right and y down.
        is_touching: bool (F,), whether the steered ball touches the target.
        objects: the O objects.
        fps: frames a second.
    """

    frames: np.ndarray
    actions: np.ndarray
    positions: np.ndarray
    is_touching: np.ndarray
    objects: tuple[SceneObject, ...]
    fps: float


@dataclass
class SteeredSimulation:
    """One scene, a frame at a time. The same seed and actions give the same scene, bit for bit.

    Args:
        seed: non-negative; places, sizes, velocities, colours and background follow from it.
        size: height and width in pixels; the world is the same at every size.
        fps: frames a second; the world is the same at every rate.

    Attributes:
        objects: the steered ball, the target, then one to three other balls.
        num_frames: how often `step` was called.

    Raises:
        ValueError: a number is out of its range.
        ImportError: pymunk or pygame-ce is not installed.
    """

    seed: int
    size: int = 64
    fps: float = 12
    objects: tuple[SceneObject, ...] = field(init=False)
    num_frames: int = field(init=False, default=0)

    def __post_init__(self):
        if self.seed < 0 or self.size < 16:
            raise ValueError(f"`seed` must be at least 0 and `size` 16, got {self.seed} and {self.size}.")
        if not 1 <= self.fps <= STEPS_PER_SECOND:
            raise ValueError(f"`fps` must be in 1..{STEPS_PER_SECOND}, got {self.fps}.")
        rng = np.random.default_rng((self.seed, 3))  # not the numbers that other worlds draw from this seed
        setup = draw_setup(rng)
        others = [name for name in PALETTE if name not in (STEERED_COLOUR, TARGET_COLOUR)]
        colours = [STEERED_COLOUR, TARGET_COLOUR, *rng.choice(others, size=len(setup.shapes) - 2)]
        masses = [STEERED_MASS, 1.0, *((radius / 6.0) ** 2 for radius in setup.radii[2:])]
        self.objects = tuple(
            SceneObject(str(colour), shape, mass=mass, radius=radius * self.size / UNITS)
            for colour, shape, mass, radius in zip(colours, setup.shapes, masses, setup.radii, strict=True)
        )
        self._background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        self._space, self._bodies, _ = build(setup, self.objects)
        self._velocity = DIRECTIONS[0]
        self._num_steps = 0
        pymunk = load("pymunk")
        steered, target, *balls = self._bodies
        target.body_type = pymunk.Body.KINEMATIC  # nothing moves it
        steered.velocity_func = self._obey
        steered.moment = float("inf")
        for ball in balls:
            ball.velocity_func = _move_no_faster

    def _obey(self, body, gravity, damping, dt):
        """The steered ball has the velocity that it was told, whatever hit it, and stops at walls without a bounce."""
        edge = STEERED_RADIUS + MARGIN
        here = np.array(body.position)
        body.velocity = tuple((np.clip(here + self._velocity * dt, edge, UNITS - edge) - here) / dt)

    def step(self, action: int) -> np.ndarray:
        """Simulates one frame's time under an action and draws what is then there, uint8 (H, W, 3).

        Raises:
            ValueError: `action` is no index of `ACTIONS`.
        """
        if not 0 <= action < len(ACTIONS):
            raise ValueError(f"`action` must be in 0..{len(ACTIONS) - 1} ({', '.join(ACTIONS)}), got {action}.")
        self._velocity = SPEED * DIRECTIONS[action]
        self.num_frames += 1
        # Counted from the start: exact on average for any rate.
        due = round(self.num_frames * STEPS_PER_SECOND / self.fps)
        # A step of pymunk moves what has a velocity before it asks for new ones: the first is to go by this action too.
        self._obey(self._bodies[STEERED], None, None, 1 / STEPS_PER_SECOND)
        for _ in range(due - self._num_steps):
            self._space.step(1 / STEPS_PER_SECOND)
        self._num_steps = due
        angles = np.array([[body.angle for body in self._bodies]])
        return draw_frames(
            self.objects, self.positions[None], angles=angles, size=self.size, background=self._background
        )[0]

    @property
    def positions(self) -> np.ndarray:
        """Centres of the objects in pixels, (O, 2)."""
        return np.array([body.position for body in self._bodies]) * (self.size / UNITS)

    @property
    def is_touching(self) -> bool:
        """Whether the steered ball touches the target."""
        return bool(gap_to_target(self.positions[:2], self.size) <= TOUCHING)


def draw_setup(rng: np.random.Generator) -> Setup:
    """The first instant: the steered ball, the target away from it, then one to three balls at free places."""
    setup = Setup(("is steered", "are steered"), gravity=0.0, elasticity=1.0, friction=0.0)
    edge = STEERED_RADIUS + MARGIN
    while True:
        steered, target = rng.uniform(edge, UNITS - edge, size=(2, 2))
        if gap_to_target(np.stack([steered, target]), UNITS) >= LEAST_START:
            break
    setup.add("ball", STEERED_RADIUS, position=steered)
    setup.add("box", TARGET_RADIUS, position=target)
    return scatter(rng, setup, shapes=["ball"] * rng.integers(1, 4), lowest=UNITS, speeds=(14.0, 36.0))


def _move_no_faster(body, gravity, damping, dt):
    load("pymunk").Body.update_velocity(body, gravity, damping, dt)
    if body.velocity.length > FASTEST:
        body.velocity = body.velocity.scale_to_length(FASTEST)


def gap_to_target(positions: np.ndarray, size: float) -> float:
    """How far the outlines of the steered ball and the target are apart, in world units (64 to a side).

    Args:
        positions: (2, 2), centres of the two in pixels.
        size: side of the picture in pixels.
    """
    away = np.abs(positions[STEERED] - positions[TARGET]) * (UNITS / size) - TARGET_RADIUS
    return float(np.linalg.norm(np.maximum(away, 0)) - STEERED_RADIUS)


def draw_actions(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Actions int64 (F,) of someone who plays around, nervously or calmly: each is held for one frame to the longest of
    `LONGEST_HOLDS` that was drawn for the video."""
    actions, longest = [], rng.choice(LONGEST_HOLDS)
    while len(actions) < num_frames:
        actions += [rng.integers(len(ACTIONS))] * rng.integers(1, longest + 1)
    return np.array(actions[:num_frames], dtype=np.int64)


def steer(seed: int, actions: Sequence[int] | int, *, size: int = 64, fps: float = 12) -> SteeredScene:
    """Simulates one scene under given actions.

    Args:
        seed: non-negative; the scene follows from it. 0..9999 are kept for evaluation.
        actions: (F,) indices of `ACTIONS`, one for each frame; or a number of frames, whose actions follow from the seed.
        size: height and width in pixels.
        fps: frames a second.

    Raises:
        ValueError: no frame is asked for, an action is unknown, or a number is out of its range.
        ImportError: pymunk or pygame-ce is not installed.
    """
    simulation = SteeredSimulation(seed, size, fps)
    if isinstance(actions, int):
        actions = draw_actions(np.random.default_rng((seed, 4)), actions)
    if len(actions) == 0:
        raise ValueError("`actions` must have at least one entry: each makes a frame.")
    frames, positions, touching = [], [], []
    for action in actions:
        frames.append(simulation.step(int(action)))
        positions.append(simulation.positions)
        touching.append(simulation.is_touching)
    return SteeredScene(
        frames=np.stack(frames),
        actions=np.asarray(actions, dtype=np.int64),
        positions=np.array(positions, dtype=np.float32),
        is_touching=np.array(touching),
        objects=simulation.objects,
        fps=fps,
    )


def begin_scene(seed: int, num_frames: int, *, size: int = 64) -> tuple[SteeredSimulation, np.ndarray, list[int]]:
    """The start of an episode: a scene under drawn actions, which goes on until the ball does not touch the target.

    Args:
        seed: the scene and the actions follow from it.
        num_frames: that are simulated at least.
        size: height and width in pixels.

    Returns:
        simulation: that goes on from here.
        frames: uint8 (F, H, W, 3), all that were simulated.
        actions: what led to each of them.
    """
    simulation, rng = SteeredSimulation(seed, size), np.random.default_rng((seed, 5))
    frames, actions = [], []
    while not frames or simulation.is_touching:
        drawn = draw_actions(rng, num_frames).tolist()
        actions += drawn
        frames += [simulation.step(action) for action in drawn]
    return simulation, np.stack(frames), actions


def write_steered_videos(
    folder: str | Path, num_videos: int, *, num_frames: int = 40, first_seed: int = 1_000_000
) -> list[Path]:
    """Writes scenes as anyone's videos with actions are: `scene_1000000.mp4`, and beside it `scene_1000000.actions.npy`, int64 (F,).

    MP4 keeps colours at half the size, so the frames of 64 x 64 are enlarged to 128 x 128, each pixel to a square; read at 64 x 64
    again, they are nearly what they were.

    Args:
        folder: is made if it is not there.
        num_videos: how many.
        num_frames: of each, at 12 a second.
        first_seed: of the first one's scene; those of the others count on from it.

    Returns:
        the videos.

    Raises:
        ValueError: a number is out of its range.
        ImportError: pymunk or pygame-ce is not installed.
    """
    check_whole_number("num_videos", num_videos, at_most=10**9)
    check_whole_number("first_seed", first_seed, at_least=0, at_most=2**63)
    paths = []
    for seed in range(first_seed, first_seed + num_videos):
        scene, path = steer(seed, num_frames), Path(folder, f"scene_{seed}.mp4")
        # The actions first: a video that is there has them, also where this is cut off.
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path.with_suffix(".actions.npy"), scene.actions)
        paths.append(write_video(path, scene.frames.repeat(2, axis=1).repeat(2, axis=2), fps=scene.fps, crf=CRF))
    return paths


# From pixels


def find_colour(frame: np.ndarray, colour: str) -> np.ndarray:
    """The centre (x, y), in pixels, of what has a colour of `PALETTE` in a frame uint8 (H, W, 3); NaN if it is not seen."""
    matching = (np.abs(frame.astype(np.int16) - PALETTE[colour]) <= MATCH).all(axis=-1)
    if matching.sum() < LEAST_AREA * matching.size / UNITS**2:
        return np.full(2, np.nan, dtype=np.float32)
    return (np.argwhere(matching).mean(axis=0)[::-1] + 0.5).astype(np.float32)


def read_positions(frame: np.ndarray) -> np.ndarray:
    """Where a frame, simulated or predicted, shows the steered ball and the target: float32 (2, 2) in pixels, NaN for what
    it does not show."""
    return np.stack([find_colour(frame, STEERED_COLOUR), find_colour(frame, TARGET_COLOUR)])


def reach_target(frames: np.ndarray, action: int) -> tuple[float, bool]:
    """The task of this world: touch the target. Judged by pixels, so it is the same in the simulator and in a model.

    Args:
        frames: uint8 (F, H, W, 3), F >= 2: the last one is what the action led to.
        action: not asked: only what it led to counts.

    Returns:
        reward: by how much nearer the ball came, in sides of the picture, and 1 for touching; 0 if either is not seen.
        is_over: whether the target was touched, which ends the episode.
    """
    before, after = (gap_to_target(read_positions(frame), frame.shape[0]) for frame in frames[-2:])
    if np.isnan(before) or np.isnan(after):
        return 0.0, False
    touches = after <= TOUCHING
    return float((before - after) / UNITS + touches), bool(touches)
