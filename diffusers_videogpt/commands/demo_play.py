"""Playing on the page of `videogpt demo`: one step after another by the key that is down, until paused.

Frames are `uint8` RGB arrays of shape (F, H, W, 3).
"""

import base64
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..tasks.playing import ARROWS, Player
from ..tasks.world_model import WorldModel
from ..video_io import write_video
from ..worlds import ACTIONS
from .demo_rollout import PREVIEW_SIDE, Rollouts
from .outputs import enlarge


FPS = 12.0  # steps a second, at most
MAX_PLAYED = 720  # steps until the model is free for the next visitor: a minute at full speed
SIGNS = {"left": "←", "right": "→", "up": "↑", "down": "↓"}
# A key clicks the button of its action, and the idle one when it is let go. Keys that are typed into a field stay there.
LISTEN = """() => {
    const buttons = %s, idle = "%s", down = [];
    const click = (id) => { const b = document.getElementById(id); if (b && b.offsetParent) b.click(); return b && b.offsetParent; };
    const isTyped = (event) => event.target.matches("input:not([type=range]), textarea, [contenteditable=true]");
    document.addEventListener("keydown", (event) => {
        const id = buttons[event.key];
        if (!id || isTyped(event) || event.ctrlKey || event.metaKey || event.altKey) return;
        if (event.repeat ? document.getElementById(id)?.offsetParent : click(id)) event.preventDefault();
        if (!event.repeat) down.push(event.key);
    });
    document.addEventListener("keyup", (event) => {
        const at = down.indexOf(event.key);
        if (at < 0) return;
        down.splice(at, 1);
        click(down.length ? buttons[down[down.length - 1]] : idle);
    });
}"""


@dataclass
class Play:
    """One visitor's play.

    Attributes:
        player: what was done and seen.
        held: the action that goes on until another comes.
        pressed: actions since the last step, so that none is lost that was let go at once.
        is_running: whether steps go on.
    """

    player: Player
    held: int
    pressed: list[int] = field(default_factory=list)
    is_running: bool = False


class Plays:
    """The plays of all visitors, of whom one has the model at a time: the page lets one event in.

    Args:
        rollouts: the model behind the page, whose stream ends where a play goes on.
    """

    def __init__(self, rollouts: Rollouts):
        self._rollouts = rollouts
        self._plays: dict[str, Play] = {}
        self._lock = threading.Lock()  # a key comes while a step is in work
        num_actions = rollouts.pipe.transformer.config.num_actions
        self.num_actions = num_actions
        self.names = ACTIONS if num_actions == len(ACTIONS) else ()

    def begin(self, visitor: str, frames: np.ndarray, *, seed: int, num_inference_steps: int | None = None) -> Play:
        """A play that goes on from given frames."""
        pipe = self._rollouts.pipe
        length = min(len(frames), pipe.config.max_context_frames)
        world = WorldModel(pipe, num_history_frames=length, num_inference_steps=num_inference_steps)
        self._rollouts.close()
        player = Player(world, world.begin(frames, seed=seed), names=self.names)
        self._plays[visitor] = play = Play(player, held=player.action_of_keys(set()))
        return play

    def hold(self, visitor: str, action: int) -> None:
        """From the next step on, this is done."""
        if (play := self._plays.get(visitor)) is not None:
            with self._lock:
                play.pressed += [action] if action != play.held else []
                play.held = action

    def pause(self, visitor: str) -> None:
        """No step follows the one in work."""
        if (play := self._plays.get(visitor)) is not None:
            play.is_running = False

    def leave(self, visitor: str) -> None:
        """Forgets a visitor."""
        self.pause(visitor)
        self._plays.pop(visitor, None)

    def of(self, visitor: str) -> Play:
        """The visitor's play. Raises a `ValueError` if there is none."""
        if visitor not in self._plays:
            raise ValueError("There is no play yet: press Start over.")
        return self._plays[visitor]

    def run(self, visitor: str, at: int | None = None) -> Iterator[Play]:
        """Step after step by what is held, at most `MAX_PLAYED`, until paused; the play after each.

        Args:
            visitor: whose play.
            at: how many steps to go on from; those behind are dropped. Default: all.
        """
        play = self.of(visitor)
        if at is not None:
            play.player.rewind(play.player.num_steps - at)
        self._rollouts.close()
        play.is_running = True
        for _ in range(MAX_PLAYED):
            began = time.perf_counter()
            with self._lock:
                action = play.pressed.pop(0) if play.pressed else play.held
            play.player.act(action)
            yield play
            if not play.is_running:
                break
            time.sleep(max(1 / FPS - (time.perf_counter() - began), 0.0))
        play.is_running = False


def show_frame(player: Player, number: int | None = None) -> str:
    """The frame after `number` steps, the last one by default, as HTML that needs no file."""
    number = player.num_steps if number is None else min(number, player.num_steps)
    frame = player.frames[player.num_given - 1 + number]
    png = io.BytesIO()
    Image.fromarray(frame).save(png, "PNG")
    data = base64.b64encode(png.getvalue()).decode()
    action = player.actions[number - 1] if number else -1
    return (
        f'<img class="played" alt="frame {number}" data-step="{number}" data-action="{action}" '
        f'src="data:image/png;base64,{data}">'
    )


def save_play(player: Player, folder: str | Path) -> str:
    """Writes what was seen as a video, enlarged; its path."""
    frames = player.frames
    scale = max(PREVIEW_SIDE // max(frames.shape[1:3]), 1)
    return str(write_video(Path(folder, "played.mp4"), enlarge(frames, scale), fps=FPS))


def buttons_of(plays: Plays) -> list[tuple[str, str, int]]:
    """Label, id and action of each button, the idle one first."""
    idle = plays.names.index("stay") if "stay" in plays.names else -1
    names = plays.names or [str(number) for number in range(plays.num_actions)]
    rest = [(SIGNS.get(name, name), f"act_{number}", number) for number, name in enumerate(names) if number != idle]
    return [("stay", "act_idle", idle), *rest]


def keys_of(plays: Plays) -> dict[str, str]:
    """The browser's name of a key → the id of the button that it clicks."""
    keys = {str(number): f"act_{number}" for _, _, number in buttons_of(plays) if 0 <= number <= 9}
    arrows = {f"Arrow{name.title()}": f"act_{plays.names.index(name)}" for name in ARROWS if name in plays.names}
    idle = {str(number): "act_idle" for _, button, number in buttons_of(plays) if button == "act_idle" and number >= 0}
    return keys | arrows | idle
