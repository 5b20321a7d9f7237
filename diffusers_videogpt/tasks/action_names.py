"""Actions by their names and numbers, as they are typed. Imports nothing heavy: what is mistyped is told at once."""

import re
from collections.abc import Sequence


LONGEST_HOLD = 10_000  # steps of one action in a text of actions: more is a slip


def check_names(names: Sequence[str], num_actions: int | None) -> None:
    """Raises a `ValueError` if these can't be the names of a model's actions, or it has none that can be played."""
    if num_actions is None:
        raise ValueError("Only discrete actions can be played by keys, and this model has none.")
    if names and (len(names) != num_actions or len(set(names)) < len(names)):
        raise ValueError(f"The names of {num_actions} actions must be as many, all different, got {', '.join(names)}.")


def read_actions(text: str, names: Sequence[str], *, num_actions: int) -> list[int]:
    """ "right*8 up*4 2" → the numbers of actions, one a step.

    Args:
        text: names or numbers of actions, each with how many steps it is held, parted by spaces.
        names: in the order of their numbers.
        num_actions: how many there are.

    Raises:
        ValueError: names the part that is no action.
    """
    actions = []
    for part in text.split():
        match = re.fullmatch(r"([^*]+)(?:\*(\d+))?", part)
        name, count = (match[1], int(match[2] or 1)) if match else (part, 0)
        if name in names:
            number = names.index(name)
        else:
            number = int(name) if name.isdecimal() and int(name) < num_actions else None
        if number is None or not 1 <= count <= LONGEST_HOLD:
            known = f"{', '.join(names)} or " if names else ""
            raise ValueError(
                f"{part!r} is no action: give {known}a number in 0..{num_actions - 1}, held for N steps as in "
                f"'{names[-1] if names else 0}*8'."
            )
        actions += [number] * count
    if not actions:
        raise ValueError("There is no action in it: give some, as in 'right*8 up*4'.")
    return actions
