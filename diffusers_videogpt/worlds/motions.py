"""Small sets of animations in the world of the scenes: of several objects one acts, and the others stay as they were.

    animation = animate("lie_down", seed=7)             # animation.frames is uint8 (24, 64, 64, 3)
    write_motion_set("motions/lie_down", "lie_down")    # 80 videos to train on, and 64 held-out first frames with their truth

Among the balls of a first frame there is one box, larger than they are, which acts: so a picture tells who will. It lies down
(sinks to the ground and flattens), flies off (through the upper edge) or is transformed (into a larger ball of one colour).
Nothing in the training set shows a box of a held-out colour, nor one in a held-out place; every held-out first frame has one of
both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..video_io import write_video
from .picture import BACKGROUNDS, PALETTE, UNITS, Region, draw_shapes, find_regions
from .scenes import SceneObject, in_words


MOTIONS = {"lie_down": "lies down", "fly_off": "flies off", "transform": "turns into a ball"}
BECOMES = "cyan"  # what is transformed; no other object has this colour there
COLOURS = tuple(name for name in PALETTE if name != BECOMES)
HELD_OUT_COLOURS = ("magenta",)
# Of 3 x 3 fields of the picture, by column and row, in which no box of a training set begins.
HELD_OUT_PLACES = ((1, 1), (2, 0))
LAST_BALLS = 3  # most of them beside the box
# Half sides and radii, in units of the world. The box is the largest object, so that the bundled model's autoencoder, which
# rounds its corners, still tells it from the balls.
BOX_SIZES, BALL_SIZES = (7.0, 8.5), (4.0, 5.5)
FLATTENED = 2.0  # how much wider, and lower, a box is that lies
GROWTH = 1.6  # of what is transformed, in its radius
CORNERS = 48  # of the outline that stands for a ball
GAP = 1.5  # least distance of two objects, and of an object from the edge, in units of the world
LOWEST_TO_FALL = 44.0  # where the box may begin that lies down, so that all of them are seen to fall
MOVING = 0.7  # share of the frames after which all is at rest
QUALITY = 4  # of H.264: small pictures with hard edges suffer from more compression
STILL = 1.5  # pixels at 64 x 64 that an object may be read beside where it stood, and still count as unmoved


@dataclass(frozen=True)
class Animation:
    """A video in which one object acts, and what is known about it: F frames, O objects, the box the first of them.

    Attributes:
        frames: uint8 (F, H, W, 3).
        motion: a key of `MOTIONS`.
        caption: for example "a green box lies down beside one red ball and one blue ball".
        fps: frames a second.
        objects: as the first frame shows them; `mass` as in scenes.
        positions: float32 (O, 2), their centres in the first frame, in pixels.
        novelty: "colour" or "place", what no training set shows of the box; `None` in a training set.
    """

    frames: np.ndarray
    motion: str
    caption: str
    fps: float
    objects: tuple[SceneObject, ...]
    positions: np.ndarray
    novelty: str | None


def animate(
    motion: str, seed: int, *, held_out: bool = False, num_frames: int = 24, size: int = 64, fps: float = 12
) -> Animation:
    """One animation; everything about it follows from the arguments.

    Args:
        motion: a key of `MOTIONS`.
        seed: non-negative int.
        held_out: the box has a colour (even seeds) or a place (odd seeds) that no training set shows.
        num_frames: F, at least 2.
        size: height and width in pixels.
        fps: frames a second that the videos are to be shown at; the frames are the same at every rate.

    Raises:
        ValueError: the motion is unknown, or a number is out of its range.
        ImportError: pygame-ce is not installed.
    """
    if motion not in MOTIONS:
        raise ValueError(f"Unknown `motion` {motion!r}: choose one of {', '.join(MOTIONS)}.")
    for name, value, least in (("seed", seed, 0), ("num_frames", num_frames, 2), ("size", size, 16)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    novelty = ("colour", "place")[seed % 2] if held_out else None
    rng = np.random.default_rng((seed, 3, list(MOTIONS).index(motion), held_out))
    colour = (
        rng.choice(HELD_OUT_COLOURS) if novelty == "colour" else _draw_from(rng, COLOURS, without=HELD_OUT_COLOURS)
    )
    while True:
        radii, positions = _draw_places(rng)
        in_new_place = field_of(positions[0]) in HELD_OUT_PLACES
        if in_new_place == (novelty == "place") and _has_room(motion, radii, positions=positions):
            break
    colours = [str(colour), *(str(name) for name in rng.choice(COLOURS, size=len(radii) - 1))]
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    scale, shapes = size / UNITS, []
    for frame in range(num_frames):
        done = min(frame / (MOVING * (num_frames - 1)), 1.0)
        outlines = [
            (position + radius * _outline(2.0), PALETTE[name])
            for position, radius, name in zip(positions[1:], radii[1:], colours[1:], strict=True)
        ]
        outlines.append(_acted(motion, done, radius=radii[0], position=positions[0], colour=colours[0]))
        shapes.append([(corners * scale, rgb) for corners, rgb in outlines])
    objects = tuple(
        SceneObject(
            name, shape, mass=(radius / 6.0) ** 2 * (1.0 if shape == "ball" else 4 / np.pi), radius=radius * scale
        )
        for name, shape, radius in zip(colours, ["box"] + ["ball"] * (len(radii) - 1), radii, strict=True)
    )
    return Animation(
        frames=draw_shapes(shapes, size=size, background=background),
        motion=motion,
        caption=f"a {colours[0]} box {MOTIONS[motion]} beside {in_words(objects[1:])}",
        fps=fps,
        objects=objects,
        positions=(positions * scale).astype(np.float32),
        novelty=novelty,
    )


def field_of(position) -> tuple[int, int]:
    """Column and row of a place (x, y), in units of the world, among 3 x 3 fields."""
    column, row = (int(min(value * 3 // UNITS, 2)) for value in position)
    return column, row


def _draw_from(rng, names, *, without) -> str:
    return rng.choice([name for name in names if name not in without])


def _draw_places(rng) -> tuple[np.ndarray, np.ndarray]:
    """Half sides and radii (O,) and centres (O, 2) of a box and one to three balls."""
    count = 1 + rng.integers(1, LAST_BALLS + 1)
    radii = np.array([rng.uniform(*BOX_SIZES), *rng.uniform(*BALL_SIZES, size=count - 1)])
    reach = radii * np.where(np.arange(count) == 0, np.sqrt(2), 1.0) + GAP
    return radii, rng.uniform(reach[:, None], UNITS - reach[:, None], size=(count, 2))


def _has_room(motion: str, radii: np.ndarray, *, positions: np.ndarray) -> bool:
    """Whether no object touches another, at the beginning and wherever the box comes to."""
    reach = radii * np.where(np.arange(len(radii)) == 0, np.sqrt(2), 1.0)
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    least = reach[:, None] + reach + GAP
    if (distances < least)[~np.eye(len(radii), dtype=bool)].any():
        return False
    box, balls = positions[0], positions[1:]
    if motion == "transform":
        grown = GROWTH * radii[0] + GAP
        inside = (grown <= box).all() and (box <= UNITS - grown).all()
        return inside and (distances[0, 1:] >= grown + radii[1:]).all()
    # What a falling or rising box sweeps over is a column.
    half = (FLATTENED if motion == "lie_down" else 1.0) * radii[0] + GAP
    if not half <= box[0] <= UNITS - half or (motion == "lie_down" and box[1] > LOWEST_TO_FALL):
        return False
    beside = abs(balls[:, 0] - box[0]) >= half + radii[1:]
    passed = balls[:, 1] + radii[1:] < box[1] if motion == "lie_down" else balls[:, 1] - radii[1:] > box[1]
    return bool((beside | passed).all())


def _acted(motion: str, done: float, *, radius: float, position: np.ndarray, colour: str) -> tuple[np.ndarray, tuple]:
    """The outline and colour of the box after a share `done` of its motion."""
    eased = done * done * (3 - 2 * done)
    roundness, stretch, rgb = np.inf, np.array([1.0, 1.0]), np.array(PALETTE[colour], dtype=float)
    x, y = position
    if motion == "lie_down":
        flat = FLATTENED**eased
        stretch = np.array([flat, 1 / flat])
        y = y + eased * (UNITS - GAP - radius / FLATTENED - y)
    elif motion == "fly_off":
        y = y - done * done * (y + 2 * radius)
    else:
        roundness = 2.0 if eased == 1.0 else 2.0 / eased if eased else np.inf
        stretch = stretch * GROWTH**eased
        rgb = rgb + eased * (np.array(PALETTE[BECOMES]) - rgb)
    return np.array([x, y]) + radius * stretch * _outline(roundness), tuple(int(value) for value in rgb.round())


def _outline(roundness: float) -> np.ndarray:
    """(48, 2): the curve |x|^p + |y|^p = 1, a circle for p = 2 and a square without an end of p."""
    angles = (
        2 * np.pi * (np.arange(CORNERS) + 0.5) / CORNERS
        if roundness == 2.0
        else np.pi * np.arange(CORNERS) / (CORNERS / 2)
    )
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    size = (
        abs(points).max(axis=1) if np.isinf(roundness) else (abs(points) ** roundness).sum(axis=1) ** (1 / roundness)
    )
    return points / size[:, None]


# Sets, and what a video shows


def motion_set(
    motion: str, count: int, *, held_out: bool = False, first_seed: int = 0, **options
) -> Iterator[Animation]:
    """`count` animations of one motion, one after the other; `options` are those of [`animate`]."""
    for seed in range(first_seed, first_seed + count):
        yield animate(motion, seed, held_out=held_out, **options)


def write_motion_set(
    folder: str | Path, motion: str, *, num_training: int = 80, num_held_out: int = 64, **options
) -> Path:
    """Writes a set as a folder of videos that any training command takes, and its held-out animations beside it.

    Args:
        folder: a new folder; gets `train/000.mp4`, …, and `held_out/000.png`, … (the first frames) with
            `held_out/truth/000.mp4`, ….
        motion: a key of `MOTIONS`.
        options: of [`animate`].

    Returns:
        `folder`.

    Raises:
        FileExistsError: there is something in `folder`.
        ValueError: as of [`animate`].
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"'{folder}' is not empty: name a new folder for the set.")
    for index, animation in enumerate(motion_set(motion, num_training, **options)):
        write_video(folder / "train" / f"{index:03d}.mp4", animation.frames, fps=animation.fps, crf=QUALITY)
    for index, animation in enumerate(motion_set(motion, num_held_out, held_out=True, **options)):
        write_video(
            folder / "held_out" / "truth" / f"{index:03d}.mp4", animation.frames, fps=animation.fps, crf=QUALITY
        )
        Image.fromarray(animation.frames[0]).save(folder / "held_out" / f"{index:03d}.png")
    return folder


def moved_objects(animation: Animation, frame: np.ndarray) -> list[int]:
    """Which of the other objects are not in a predicted frame as they were: neither near, in colour, nor in size.

    Args:
        animation: tells where they stand.
        frame: uint8 (H, W, 3).

    Returns:
        Their indices, of 1 … O - 1; empty where all stayed as they were.
    """
    regions = find_regions(frame)
    scale = frame.shape[0] / UNITS
    return [
        index
        for index, (item, position) in enumerate(zip(animation.objects, animation.positions, strict=True))
        if index and not any(_is_as_before(region, item, position=position, scale=scale) for region in regions)
    ]


def _is_as_before(region: Region, item: SceneObject, *, position: np.ndarray, scale: float) -> bool:
    near = np.linalg.norm(np.array(region.centre) - position) <= STILL * scale
    # A pixel at the edge is read as the object's or not: the outline may be a pixel off on either side.
    least, most = (np.pi * max(item.radius + change * scale, 0) ** 2 for change in (-1.2, 1.2))
    return near and region.colour == item.colour and least <= region.area <= most
