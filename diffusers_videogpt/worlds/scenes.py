"""Worlds of balls and boxes: how each kind is set up, and the simulation that turns one into a `Scene`."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .picture import BACKGROUNDS, PALETTE, UNITS, draw_frames, draw_masks, load


STEPS_PER_SECOND = 240
MARGIN = 0.6  # objects collide this much outside their drawn outline, so touching ones stay apart in the picture
BALL, FIXED = 1, 2  # pymunk collision types: anything that moves, and walls or ramps


@dataclass(frozen=True)
class SceneObject:
    """One moving thing: `colour` (a key of `PALETTE`), `shape` ("ball" or "box"), `mass` (a ball 6 px in radius at
    64 x 64 has 1; the density is the same everywhere, so mass shows as size) and `radius` (half the side of a box) in
    pixels."""

    colour: str
    shape: str
    mass: float
    radius: float


@dataclass
class Scene:
    """A simulated video and everything that is known about it, for F frames and O objects.

    Attributes:
        frames: uint8 (F, H, W, 3).
        kind: one of `SCENE_KINDS`.
        caption: what happens, in words, for example "two red balls and one blue ball fall".
        fps: frames a second.
        objects: the O objects; their order is that of every array below.
        positions: float32 (F, O, 2), centres in pixels, x to the right and y down from the upper left corner.
        velocities: float32 (F, O, 2) in pixels a second.
        angles: float32 (F, O) in radians.
        collisions: (frame, i, j) for each contact that begins after frame - 1 and by `frame`; j is -1 for a wall or a
            ramp.
        energy: float32 (F,), kinetic and potential, in mass x pixel^2 / s^2.
        masks: uint8 (F, H, W), 0 for background and i + 1 for object i (made when first asked for).
    """

    frames: np.ndarray
    kind: str
    caption: str
    fps: float
    objects: tuple
    positions: np.ndarray
    velocities: np.ndarray
    angles: np.ndarray
    collisions: list
    energy: np.ndarray

    @cached_property
    def masks(self):
        return draw_masks(self.objects, self.positions, angles=self.angles, size=self.frames.shape[1])


@dataclass
class Setup:
    """The first instant of a world, in world units (UNITS to a side)."""

    event: tuple  # the verb for one object and for several
    gravity: float
    elasticity: float
    friction: float
    shapes: list = field(default_factory=list)
    radii: list = field(default_factory=list)
    positions: list = field(default_factory=list)
    velocities: list = field(default_factory=list)
    ramp: np.ndarray | None = None
    pivots: list = field(default_factory=list)

    def add(self, shape, radius, *, position, velocity=(0.0, 0.0)):
        self.shapes.append(shape)
        self.radii.append(float(radius))
        self.positions.append(np.array(position, dtype=np.float64))
        self.velocities.append(np.array(velocity, dtype=np.float64))

    def is_free(self, reach, position):
        return all(
            np.linalg.norm(other - position) > reach + reach_of(shape, radius) + 2 * MARGIN + 0.5
            for other, shape, radius in zip(self.positions, self.shapes, self.radii, strict=True)
        )


def reach_of(shape, radius):
    """How far an object reaches from its centre, whichever way it is turned."""
    return radius if shape == "ball" else np.sqrt(2) * radius


def direction(rng, speed):
    angle = rng.uniform(0, 2 * np.pi)
    return speed * np.array([np.cos(angle), np.sin(angle)])


def scatter(rng, setup, *, shapes, lowest, speeds):
    """Add objects at free places above `lowest`, each with a random velocity; 1 to 4 balls unless `shapes` are given."""
    shapes = shapes or ["ball"] * rng.integers(1, 5)
    for shape in shapes:
        radius = rng.uniform(4.0, 8.5 - 0.6 * len(shapes))
        if shape == "box":
            radius *= np.sqrt(np.pi / 4)  # as large a picture as the ball's
        reach = reach_of(shape, radius)
        edge = reach + MARGIN
        while True:
            position = rng.uniform(edge, (UNITS - edge, lowest - edge))
            if setup.is_free(reach, position):
                break
        setup.add(shape, radius, position=position, velocity=direction(rng, rng.uniform(*speeds)))
    return setup


def bounce(rng, shapes=None):
    setup = Setup(("bounces off the walls", "bounce off the walls"), gravity=0.0, elasticity=1.0, friction=0.0)
    return scatter(rng, setup, shapes=shapes, lowest=UNITS, speeds=(14.0, 36.0))


def fall(rng, shapes=None):
    setup = Setup(("falls", "fall"), gravity=45.0, elasticity=0.92, friction=0.2)
    return scatter(rng, setup, shapes=shapes, lowest=0.7 * UNITS, speeds=(0.0, 24.0))


def pendulum(rng):
    setup = Setup(("swings", "swing"), gravity=70.0, elasticity=0.95, friction=0.0)
    count = rng.integers(1, 4)
    spacing = UNITS / (count + 1)
    length = rng.uniform(26.0, 42.0)
    for index in range(count):
        for _ in range(100):
            radius = rng.uniform(4.0, 8.0 - count)
            own = length + rng.uniform(-6.0, 6.0)
            pivot = np.array([spacing * (index + 1), 2.0])
            swing = rng.choice([-1, 1]) * rng.uniform(0.3, 0.95)
            along = np.array([np.sin(swing), np.cos(swing)])
            position = pivot + own * along
            inside = abs(position[0] - UNITS / 2) < UNITS / 2 - radius - MARGIN
            if inside and setup.is_free(radius, position):
                break
        else:
            return pendulum(rng)  # those already hung leave no room for this one: hang them all anew
        across = np.array([along[1], -along[0]])
        setup.add("ball", radius, position=position, velocity=across * rng.uniform(-12.0, 12.0))
        setup.pivots.append(pivot)
    return setup


def ramp(rng):
    setup = Setup(("rolls down a ramp", "roll down a ramp"), gravity=75.0, elasticity=0.8, friction=0.8)
    width, height = rng.uniform(38.0, 58.0), rng.uniform(18.0, 30.0)
    along = np.array([width, height]) / np.hypot(width, height)
    normal = np.array([along[1], -along[0]])
    top = np.array([0.0, UNITS - height])
    reach = 0.0
    corners = np.array([top, [0.0, UNITS], [width, UNITS]])
    for _ in range(rng.integers(1, 4)):
        radius = rng.uniform(4.0, 6.5)
        # The first one starts clear of the wall, each next one clear of the last.
        reach += radius + MARGIN + (6.0 if reach == 0.0 else rng.uniform(0.5, 5.0))
        if reach > np.hypot(width, height) - radius:
            break  # the ramp is full
        position = top + reach * along + (radius + MARGIN) * normal
        setup.add("ball", radius, position=position, velocity=along * rng.uniform(2.0, 16.0))
        reach += radius + MARGIN
    if rng.random() < 0.5:
        corners[:, 0] = UNITS - corners[:, 0]
        for position, velocity in zip(setup.positions, setup.velocities, strict=True):
            position[0] = UNITS - position[0]
            velocity[0] = -velocity[0]
    setup.ramp = corners
    return setup


def stack(rng):
    setup = Setup(("topples", "topple"), gravity=70.0, elasticity=0.6, friction=0.6)
    side = rng.choice([-1, 1])
    middle = UNITS / 2 + side * rng.uniform(0.0, 8.0)
    floor = UNITS
    boxes = rng.integers(2, 4)
    thrown = rng.random() < 0.7
    for _ in range(boxes):
        radius = rng.uniform(4.0, 6.0)
        setup.add("box", radius, position=(middle, floor - radius - MARGIN))
        floor -= 2 * (radius + MARGIN)
        # Without a ball, each box stands so far out on the one below that the pile cannot hold.
        middle += side * (rng.uniform(0.45, 0.8) * radius * 2 if not thrown else rng.uniform(-0.6, 0.6))
    if thrown:
        radius = rng.uniform(4.5, 7.0)
        start = np.array([UNITS / 2 - side * (UNITS / 2 - radius - 1.0), rng.uniform(24.0, 44.0)])
        setup.add("ball", radius, position=start, velocity=(side * rng.uniform(28.0, 46.0), rng.uniform(-24.0, 4.0)))
    return setup


SETUPS = {"bounce": bounce, "fall": fall, "pendulum": pendulum, "ramp": ramp, "stack": stack}
SCENE_KINDS = tuple(SETUPS)
KINDS_TO_ORDER = ("bounce", "fall")  # whose objects can be asked for


def in_words(objects):
    numbers = ("one", "two", "three", "four")
    counts = Counter((item.colour, item.shape) for item in objects)
    plural = {"ball": "balls", "box": "boxes"}
    groups = [f"{numbers[n - 1]} {c} {s if n == 1 else plural[s]}" for (c, s), n in counts.items()]
    return " and ".join([", ".join(groups[:-1]), groups[-1]] if len(groups) > 1 else groups)


def describe(kind, setup, *, objects):
    if kind != "stack":
        return f"{in_words(objects)} {setup.event[len(objects) > 1]}"
    boxes = [item for item in objects if item.shape == "box"]
    balls = [item for item in objects if item.shape == "ball"]
    return (
        f"{in_words(balls)} flies at a stack of {in_words(boxes)}"
        if balls
        else f"a stack of {in_words(boxes)} topples"
    )


@dataclass(frozen=True)
class Plan:
    """A scene before anything moves: what it will be called, where everything is, and its background's RGB."""

    kind: str
    caption: str
    setup: Setup
    objects: tuple
    background: tuple


def plan_scene(kind=None, seed=0, *, size=64, perturbation=0.0, objects=None):
    """The `Plan` of the scene that `simulate` makes of these arguments; needs neither pymunk nor pygame."""
    if kind is not None and kind not in SETUPS:
        raise ValueError(f"Unknown scene `kind` {kind!r}: choose one of {', '.join(SCENE_KINDS)}, or None.")
    if objects is not None and kind not in KINDS_TO_ORDER:
        raise ValueError(f"`objects` can be asked for in scenes of kind {' or '.join(KINDS_TO_ORDER)}, not {kind!r}.")
    for colour, shape in objects or ():
        if colour not in PALETTE or shape not in ("ball", "box"):
            raise ValueError(
                f"`objects` are (colour, shape): {', '.join(PALETTE)}; ball or box; got {colour!r}, {shape!r}."
            )
    rng = np.random.default_rng(seed)
    drawn = SCENE_KINDS[rng.integers(len(SCENE_KINDS))]
    kind = kind or drawn
    setup = SETUPS[kind](rng) if objects is None else SETUPS[kind](rng, [shape for _, shape in objects])
    count = len(setup.shapes)
    colours = rng.choice(list(PALETTE), size=count)
    if objects is not None:
        colours = [colour for colour, _ in objects]
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    if perturbation:
        noise = np.random.default_rng((seed, 1)).normal(size=(2, count, 2)) * perturbation
        for index in range(count):
            setup.positions[index] += noise[0, index] * setup.radii[index]
            setup.velocities[index] += noise[1, index] * 30.0
    scene_objects = tuple(
        SceneObject(
            str(colour),
            shape,
            mass=(radius / 6.0) ** 2 * (1.0 if shape == "ball" else 4 / np.pi),
            radius=radius * size / UNITS,
        )
        for colour, shape, radius in zip(colours, setup.shapes, setup.radii, strict=True)
    )
    return Plan(kind, describe(kind, setup, objects=scene_objects), setup, scene_objects, background)


def build(setup, objects):
    """Make the pymunk space of a setup. Returns the space, its bodies in order, and the list that contacts go to."""
    pymunk = load("pymunk")
    space = pymunk.Space()
    space.gravity = (0.0, setup.gravity)
    space.iterations = 20
    space.collision_slop = 0.01
    space.collision_bias = 0.5**60  # halves any overlap in one step at 60 a second; the default leaves it visible

    thickness, far = 10.0, UNITS + 10.0
    fixed = [
        pymunk.Segment(space.static_body, start, end, thickness)
        for start, end in (
            ((-10, -10), (far, -10)),
            ((far, -10), (far, far)),
            ((far, far), (-10, far)),
            ((-10, far), (-10, -10)),
        )
    ]
    if setup.ramp is not None:
        fixed.append(pymunk.Poly(space.static_body, setup.ramp.tolist()))
    for shape in fixed:
        shape.elasticity, shape.friction, shape.collision_type = 1.0, setup.friction, FIXED
    space.add(*fixed)

    bodies, index_of = [], {}
    for index, (item, radius) in enumerate(zip(objects, setup.radii, strict=True)):
        outer = radius + MARGIN
        if item.shape == "ball":
            body = pymunk.Body(item.mass, pymunk.moment_for_circle(item.mass, 0, outer))
            shape = pymunk.Circle(body, outer)
        else:
            body = pymunk.Body(item.mass, pymunk.moment_for_box(item.mass, (2 * outer, 2 * outer)))
            shape = pymunk.Poly.create_box(body, (2 * outer, 2 * outer))
        body.position, body.velocity = tuple(setup.positions[index]), tuple(setup.velocities[index])
        shape.elasticity, shape.friction, shape.collision_type = setup.elasticity, setup.friction, BALL
        space.add(body, shape)
        index_of[shape] = index
        bodies.append(body)
    for body, pivot in zip(bodies, setup.pivots, strict=False):
        space.add(pymunk.PinJoint(space.static_body, body, tuple(pivot), (0, 0)))

    contacts = []

    def note(arbiter, space, data):
        contacts.append(tuple(sorted((index_of.get(shape, -1) for shape in arbiter.shapes), reverse=True)))

    space.on_collision(BALL, BALL, begin=note)
    space.on_collision(BALL, FIXED, begin=note)
    return space, bodies, contacts


def simulate(kind=None, seed=0, *, num_frames=24, size=64, fps=12, perturbation=0.0, objects=None):
    """Simulate one scene. The same arguments give the same scene, bit for bit, with the same pymunk and pygame.

    Args:
        kind: one of `SCENE_KINDS`; None draws one from the seed.
        seed: non-negative int; everything about the scene follows from it. Of the bundled model, 0..9999 are kept for
            evaluation and training starts at 1 000 000.
        num_frames: F >= 1.
        size: height and width in pixels; the world is the same at every size.
        fps: frames a second; the world is the same at every rate.
        perturbation: standard deviation of noise on the first instant, for a second take of the same scene: positions
            move by this many radii, velocities change by this many times 30 px/s (at 64 x 64). Drawn from a stream of
            its own, so nothing else about the scene changes.
        objects: (colour, shape) of every object, colours of `PALETTE`, shapes "ball" and "box", 1 to 4 of them; for the
            kinds "bounce" and "fall". Default: drawn from the seed.

    Returns:
        `Scene`.

    Raises:
        ValueError: the kind is unknown, or a number is out of its range.
        ImportError: pymunk or pygame-ce is not installed.
    """
    for name, value, least in (("seed", seed, 0), ("num_frames", num_frames, 1), ("size", size, 16)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    if not 1 <= fps <= STEPS_PER_SECOND:
        raise ValueError(f"`fps` must be in 1..{STEPS_PER_SECOND}, got {fps}.")
    if perturbation < 0:
        raise ValueError(f"`perturbation` is a standard deviation and must be at least 0, got {perturbation}.")

    scale = size / UNITS
    plan = plan_scene(kind, seed, size=size, perturbation=perturbation, objects=objects)
    setup, objects = plan.setup, plan.objects
    space, bodies, contacts = build(setup, objects)

    states, collisions, elapsed = [], [], 0
    for frame in range(num_frames):
        # Counting steps from the start keeps any rate exact on average, also one that 240 is no multiple of.
        due = round(frame * STEPS_PER_SECOND / fps)
        for _ in range(due - elapsed):
            space.step(1 / STEPS_PER_SECOND)
        elapsed = due
        collisions += [(frame, i, j) for i, j in contacts]
        contacts.clear()
        states.append([(*b.position, *b.velocity, b.angle, b.angular_velocity, b.moment) for b in bodies])

    states = np.array(states)
    positions, velocities, angles = states[..., :2] * scale, states[..., 2:4] * scale, states[..., 4]
    mass = np.array([item.mass for item in objects])
    height = (UNITS - states[..., 1]) * setup.gravity
    spin = states[..., 6] * states[..., 5] ** 2
    energy = (mass * (0.5 * (states[..., 2:4] ** 2).sum(-1) + height) + 0.5 * spin).sum(-1) * scale**2
    return Scene(
        frames=draw_frames(
            objects,
            positions,
            angles=angles,
            size=size,
            background=plan.background,
            ramp=None if setup.ramp is None else setup.ramp * scale,
            pivots=[pivot * scale for pivot in setup.pivots],
        ),
        kind=plan.kind,
        caption=plan.caption,
        fps=fps,
        objects=objects,
        positions=positions.astype(np.float32),
        velocities=velocities.astype(np.float32),
        angles=angles.astype(np.float32),
        collisions=collisions,
        energy=energy.astype(np.float32),
    )
