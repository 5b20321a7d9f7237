"""From the state of a world to pixels, and from pixels back to a count of coloured objects."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..extras import require


# Saturated and far apart in RGB, so that a pixel mixed half and half from two of them (or from one and the background)
# lies outside MATCH of every one.
PALETTE = {
    "red": (230, 50, 50),
    "green": (50, 200, 70),
    "blue": (60, 100, 240),
    "yellow": (240, 210, 50),
    "magenta": (220, 70, 220),
    "cyan": (60, 210, 220),
}
BACKGROUNDS = ((18, 20, 26), (28, 26, 34), (22, 32, 32))
FIXED_COLOUR = (110, 112, 118)  # ramps and the rods of pendulums
MATCH = 60  # largest difference, a channel, at which a pixel still counts as a palette colour
# Fourth moment of the distance from the centre over the square of the second: 4/3 for a disc, 7/5 for a square.
LEAST_SPREAD_OF_BOX = 1.36
SUPERSAMPLING = 4
UNITS = 64.0  # the world is UNITS x UNITS whatever the size of the picture


def load(module):
    """Import one of the two libraries of the `worlds` extra, or say how to get it. No display is opened: surfaces need none.

    Raises:
        ImportError: the library is not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    return require(module, f"diffusers_videogpt.worlds needs {module}, which is not installed", extra="worlds")


def box_corners(centre, angle, *, half_side):
    """The four corners, (4, 2), of a square turned by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    corners = half_side * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    return centre + corners @ np.array([[c, s], [-s, c]])


def draw_frames(objects, positions, *, angles, size, background, ramp=None, pivots=()):
    """Draw every frame of a world, anti-aliased.

    Args:
        objects: sequence of O `SceneObject`.
        positions: (F, O, 2), centres in pixels, x to the right and y down.
        angles: (F, O) in radians.
        size: side of the square picture in pixels.
        background: RGB in 0..255.
        ramp: (3, 2) corners of a fixed triangle in pixels, or None.
        pivots: (O, 2) in pixels, where the rods of pendulums hang; empty for none.

    Returns:
        uint8 (F, size, size, 3).
    """
    pygame = load("pygame")
    scale = SUPERSAMPLING
    # A pixel index i covers [i, i + 1) on the fine surface, so its centre is half a fine pixel further.
    fine = positions * scale - 0.5
    canvas = pygame.Surface((size * scale, size * scale), depth=24)
    backdrop = canvas.copy()
    backdrop.fill(background)
    if ramp is not None:
        pygame.draw.polygon(backdrop, FIXED_COLOUR, ramp * scale - 0.5)
    rod_width = max(1, round(scale * size / UNITS))

    frames = np.empty((len(positions), size, size, 3), dtype=np.uint8)
    for frame, centres, turned in zip(frames, fine, angles, strict=True):
        canvas.blit(backdrop, (0, 0))
        for pivot, centre in zip(pivots, centres, strict=False):
            pygame.draw.line(canvas, FIXED_COLOUR, pivot * scale - 0.5, centre, rod_width)
        for item, centre, angle in zip(objects, centres, turned, strict=True):
            if item.shape == "ball":
                pygame.draw.circle(canvas, PALETTE[item.colour], centre, item.radius * scale)
            else:
                corners = box_corners(centre, angle, half_side=item.radius * scale)
                pygame.draw.polygon(canvas, PALETTE[item.colour], corners)
        small = pygame.transform.smoothscale(canvas, (size, size))
        frame[:] = pygame.surfarray.pixels3d(small).swapaxes(0, 1)
    return frames


def draw_masks(objects, positions, *, angles, size):
    """Instance ids, uint8 (F, size, size): i + 1 where the pixel's centre is inside object i, 0 elsewhere."""
    y, x = np.mgrid[:size, :size] + 0.5
    masks = np.zeros((len(positions), size, size), dtype=np.uint8)
    for index, item in enumerate(objects):
        dx = x - positions[:, index, 0, None, None]
        dy = y - positions[:, index, 1, None, None]
        if item.shape == "ball":
            inside = dx**2 + dy**2 <= item.radius**2
        else:
            c, s = (f(angles[:, index, None, None]) for f in (np.cos, np.sin))
            inside = np.maximum(abs(c * dx + s * dy), abs(c * dy - s * dx)) <= item.radius
        masks[inside] = index + 1
    return masks


def draw_shapes(shapes: Sequence[Sequence[tuple[np.ndarray, tuple]]], *, size: int, background: tuple) -> np.ndarray:
    """Draw every frame from outlines, anti-aliased as the objects of [`draw_frames`] are.

    Args:
        shapes: F frames of (corners (K, 2) in pixels, RGB in 0..255); later ones cover earlier ones.
        size: side of the square picture in pixels.
        background: RGB in 0..255.

    Returns:
        uint8 (F, size, size, 3).
    """
    pygame = load("pygame")
    canvas = pygame.Surface((size * SUPERSAMPLING, size * SUPERSAMPLING), depth=24)
    frames = np.empty((len(shapes), size, size, 3), dtype=np.uint8)
    for frame, outlines in zip(frames, shapes, strict=True):
        canvas.fill(background)
        for corners, colour in outlines:
            pygame.draw.polygon(canvas, colour, corners * SUPERSAMPLING - 0.5)
        frame[:] = pygame.surfarray.pixels3d(pygame.transform.smoothscale(canvas, (size, size))).swapaxes(0, 1)
    return frames


@dataclass(frozen=True)
class Region:
    """A connected region of one palette colour in a picture.

    Attributes:
        colour: a key of `PALETTE`.
        shape: "ball" or "box", by how far it reaches into corners.
        centre: (x, y) in pixels, x to the right and y down.
        area: in pixels.
        width, height: what a box of these standard deviations along x and y would measure, in pixels.
    """

    colour: str
    shape: str
    centre: tuple[float, float]
    area: int
    width: float
    height: float


def find_regions(frame, min_area=None) -> list[Region]:
    """The objects of one picture, as connected regions of one palette colour each.

    Objects are drawn a little smaller than they collide, so two of one colour that touch stay two regions.

    Args:
        frame: uint8 (H, W, 3), drawn by `simulate` or predicted by a model.
        min_area: smaller regions, in pixels, are not counted. Default: 16 at 64 x 64, in proportion at other sizes
            (the smallest object covers about 40).

    Raises:
        ValueError: `frame` is not uint8 (H, W, 3).
    """
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(
            f"`frame` must be uint8 of shape (H, W, 3), got {frame.dtype} {frame.shape}; "
            "count one frame at a time, and scale pixels to 0..255 first."
        )
    pygame = load("pygame")
    height, width = frame.shape[:2]
    if min_area is None:
        min_area = 16 * height * width / UNITS**2
    picture = pygame.image.frombuffer(frame.tobytes(), (width, height), "RGB")
    found = []
    for name, colour in PALETTE.items():
        matching = pygame.mask.from_threshold(picture, colour, (MATCH, MATCH, MATCH, 255))
        for region in matching.connected_components(max(1, round(min_area))):
            pixels = np.argwhere(pygame.surfarray.array3d(region.to_surface())[..., 0])
            centre = pixels.mean(axis=0)
            square = np.square(pixels - centre).sum(axis=1)
            is_box = (square**2).mean() / square.mean() ** 2 > LEAST_SPREAD_OF_BOX
            sides = np.sqrt(12) * pixels.std(axis=0)
            found.append(
                Region(
                    name,
                    "box" if is_box else "ball",
                    centre=tuple((centre + 0.5).tolist()),
                    area=len(pixels),
                    width=float(sides[0]),
                    height=float(sides[1]),
                )
            )
    return found


def find_objects(frame, min_area=None):
    """The objects of one picture; the arguments and errors are those of `find_regions`.

    Returns:
        a list of (colour, shape): names of `PALETTE`; "ball" or "box", by how far a region reaches into corners.
    """
    return [(region.colour, region.shape) for region in find_regions(frame, min_area)]


def count_objects(frame, min_area=None):
    """Count the objects of each palette colour in one picture; the arguments and errors are those of `find_regions`.

    Returns:
        dict from colour name to count, only for the colours that are present.
    """
    return dict(Counter(colour for colour, _ in find_objects(frame, min_area)))
