"""Does a model of the steered world obey, and do the others go on as they should? Judged by where objects are in the pixels.

For each unseen scene the simulator goes on under each of the five actions, and the model predicts the same from the same
frames. `commanded` is how far the steered ball moves in the simulator, walls and the target included.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..actions import NO_ACTION
from ..film_strips import write_film_strip
from ..tasks.world_model import WorldModel
from ..worlds import ACTIONS, begin_scene, steer
from ..worlds.picture import UNITS
from ..worlds.steered import SPEED, STEERED, STEERED_COLOUR, SteeredScene, find_colour


@dataclass(frozen=True)
class Move:
    """What one action led to in one scene; distances in pixels at 64 x 64.

    Attributes:
        scene, action: numbers.
        commanded: (2,), how far the steered ball moved in the simulator.
        predicted: (2,), how far in the model; NaN if it is not seen.
        is_right: see [`is_right_direction`].
        errors: of each other ball that is alone in its colour, how far its centre is from the truth; NaN if it is not seen.
        errors_without: the same where the model is told "no action".
    """

    scene: int
    action: int
    commanded: np.ndarray
    predicted: np.ndarray
    is_right: bool
    errors: np.ndarray
    errors_without: np.ndarray


@dataclass(frozen=True)
class SteeringScores:
    """What a report says of all moves.

    Attributes:
        num_moves: scenes times actions.
        correlation: Pearson's, of commanded and predicted displacements, both axes together.
        right_share: moves in the right direction.
        move_error: mean distance in pixels between commanded and predicted.
        lost_share: moves after which the steered ball was not seen; they count as wrong, and 0 is taken for their displacement.
        others_error, others_error_without: mean error in pixels of the other balls that were seen, with and without actions.
        others_lost, others_lost_without: share of them that were not seen.
    """

    num_moves: int
    correlation: float
    right_share: float
    move_error: float
    lost_share: float
    others_error: float
    others_error_without: float
    others_lost: float
    others_lost_without: float


def is_right_direction(commanded: np.ndarray, predicted: np.ndarray, *, full: float) -> bool:
    """Whether a predicted displacement is that which was commanded: where the simulator moved at least half of `full`, its
    larger part has the axis and sign of the commanded one, and is at least a quarter of `full`; where it moved less, it is
    less than half of `full`, too."""
    if np.isnan(predicted).any():
        return False
    if np.abs(commanded).max() < full / 2:
        return bool(np.abs(predicted).max() < full / 2)
    axis = int(np.abs(commanded).argmax())
    along = predicted[axis] * np.sign(commanded[axis])
    return bool(along >= full / 4 and along >= np.abs(predicted).max() - 1e-6)


@dataclass(frozen=True)
class Branches:
    """One scene that goes on in several ways.

    Attributes:
        given: uint8 (F, H, W, 3), the frames that the model was given.
        truths: what the simulator makes of each action; the given frames are among its frames.
        predicted: uint8 (N, H, W, 3) of each action, and last of "no action".
    """

    given: np.ndarray
    truths: list[SteeredScene]
    predicted: list[np.ndarray]


def branch(world: WorldModel, scene: int, *, num_steps: int) -> Branches:
    """A scene under each of the five actions and "no action", predicted in one batch, and simulated.

    Args:
        world: the model.
        scene: number of the scene.
        num_steps: that each action is held for.
    """
    num_frames = num_steps * world.frames_per_step
    _, frames, before = begin_scene(scene, world.num_history_frames)
    truths = [steer(scene, before + [action] * num_frames) for action in range(len(ACTIONS))]
    start = world.begin(frames, before, seed=scene)
    episodes, shown = [start] * (len(ACTIONS) + 1), []
    for _ in range(num_steps):
        episodes = world.advance(episodes, [*range(len(ACTIONS)), NO_ACTION])
        shown.append([episode.frames[-world.frames_per_step :] for episode in episodes])
    return Branches(start.frames, truths, [np.concatenate(steps) for steps in zip(*shown, strict=True)])


def draw_moves(path: str | Path, world: WorldModel, *, scene: int, num_steps: int) -> Path:
    """A film strip of one scene under each action but "stay", the model below the simulator; see [`branch`]."""
    branches, rows = branch(world, scene, num_steps=num_steps), {}
    for action, truth, predicted in zip(ACTIONS[1:], branches.truths[1:], branches.predicted[1:], strict=False):
        num_shown = len(branches.given) + len(predicted)
        rows[f"{action}, simulator"] = truth.frames[-num_shown:]
        rows[f"{action}, model"] = np.concatenate([branches.given, predicted])
    return write_film_strip(path, rows, num_given=len(branches.given), fps=branches.truths[0].fps)


def steer_scene(world: WorldModel, scene: int, *, num_steps: int) -> list[Move]:
    """The five moves of one scene, of [`branch`]."""
    branches = branch(world, scene, num_steps=num_steps)
    truths, num_frames = branches.truths, len(branches.predicted[0])
    *shown, without = [frames[-1] for frames in branches.predicted]
    seen_before = find_centre(branches.given[-1], STEERED_COLOUR)
    full = SPEED / truths[0].fps * num_frames
    colours = [item.colour for item in truths[0].objects]
    alone = [index for index in range(2, len(colours)) if colours.count(colours[index]) == 1]
    moves = []
    for action, (truth, frame) in enumerate(zip(truths, shown, strict=True)):
        commanded = truth.positions[-1, STEERED] - truth.positions[-1 - num_frames, STEERED]
        predicted = find_centre(frame, STEERED_COLOUR) - seen_before
        errors, errors_without = (
            np.array(
                [np.linalg.norm(find_centre(one, colours[index]) - truth.positions[-1, index]) for index in alone]
            )
            for one in (frame, without)
        )
        is_right = is_right_direction(commanded, predicted, full=full)
        moves.append(Move(scene, action, commanded, predicted, is_right, errors, errors_without))
    return moves


def find_centre(frame: np.ndarray, colour: str) -> np.ndarray:
    """The centre of what has a colour in a frame of any size, in pixels at 64 x 64; NaN if it is not seen."""
    return find_colour(frame, colour) * (UNITS / frame.shape[0])


def summarize(moves: list[Move]) -> SteeringScores:
    """All moves in a few numbers."""
    commanded = np.stack([move.commanded for move in moves])
    predicted = np.stack([move.predicted for move in moves])
    lost = np.isnan(predicted).any(axis=1)
    filled = np.where(lost[:, None], 0.0, predicted)
    errors = np.concatenate([move.errors for move in moves])
    without = np.concatenate([move.errors_without for move in moves])
    varies = commanded.std() > 0 and filled.std() > 0
    return SteeringScores(
        num_moves=len(moves),
        correlation=float(np.corrcoef(commanded.ravel(), filled.ravel())[0, 1]) if varies else 0.0,
        right_share=float(np.mean([move.is_right for move in moves])),
        move_error=float(np.linalg.norm(commanded - filled, axis=1).mean()),
        lost_share=float(lost.mean()),
        others_error=mean_of_seen(errors),
        others_error_without=mean_of_seen(without),
        others_lost=share_unseen(errors),
        others_lost_without=share_unseen(without),
    )


def mean_of_seen(errors: np.ndarray) -> float:
    seen = errors[~np.isnan(errors)]
    return float(seen.mean()) if seen.size else float("nan")


def share_unseen(errors: np.ndarray) -> float:
    return float(np.isnan(errors).mean()) if errors.size else 0.0


def evaluate_steering(
    world: WorldModel, num_scenes: int = 64, *, num_steps: int = 4, first_scene: int = 0
) -> tuple[SteeringScores, list[Move]]:
    """Commanded against predicted displacement over scenes times actions.

    Args:
        world: a model of the steered world, of five actions.
        num_scenes: how many.
        num_steps: that each action is held for.
        first_scene: number of the first one; 0..9999 are none that a model is trained on.

    Raises:
        ValueError: the model has not five actions.
    """
    if world.action_space.num_actions != len(ACTIONS):
        raise ValueError(
            f"The steered world has {len(ACTIONS)} actions, this model has num_actions={world.action_space.num_actions}."
        )
    moves = []
    for scene in range(first_scene, first_scene + num_scenes):
        moves += steer_scene(world, scene, num_steps=num_steps)
    return summarize(moves), moves


def plain_move(move: Move) -> dict[str, Any]:
    """A move as JSON has it: arrays as lists, with `None` for NaN."""
    return {
        name: [None if np.isnan(x) else float(x) for x in value] if isinstance(value, np.ndarray) else value
        for name, value in asdict(move).items()
    }


def format_steering(scores: SteeringScores) -> str:
    """As a table in Markdown."""
    rows = [
        ("correlation of commanded and predicted displacement", f"{scores.correlation:.3f}"),
        ("right direction", f"{scores.right_share:.1%}"),
        ("mean error of the displacement", f"{scores.move_error:.2f} px"),
        ("steered ball not seen", f"{scores.lost_share:.1%}"),
        ("other balls, mean error with actions", f"{scores.others_error:.2f} px"),
        ("other balls, mean error without", f"{scores.others_error_without:.2f} px"),
        ("other balls not seen, with actions", f"{scores.others_lost:.1%}"),
        ("other balls not seen, without", f"{scores.others_lost_without:.1%}"),
    ]
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([f"| {scores.num_moves} moves | |", "|---|---|", *lines])
