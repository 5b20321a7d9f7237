"""A window that shows frames, by pygame-ce. Where there is no screen, SDL draws into memory and nothing is seen."""

import numpy as np

from ..extras import require


SHOWN_SIDE = 512  # pixels of the longest side of a window
METADATA = {"render_modes": ["human", "rgb_array"], "render_fps": 12}  # of environments, as Gymnasium has it
NO_SCREEN = ("dummy", "offscreen")  # SDL's drivers that show nothing


class Window:
    """Shows frames one after another; opens with the first.

    Args:
        title: of the window.

    Attributes:
        is_closed: whether the user has closed it.

    Raises:
        ImportError: pygame-ce is not installed.
    """

    def __init__(self, title: str):
        self.title, self.is_closed = title, False
        self._screen = None
        self._pygame = require("pygame", "A window needs pygame-ce", extra="env")

    @property
    def has_screen(self) -> bool:
        """Whether there is a screen to show anything on; opens the window's half of pygame."""
        self._pygame.display.init()
        return self._pygame.display.get_driver() not in NO_SCREEN

    def show(self, frame: np.ndarray) -> None:
        """Shows a frame, uint8 (H, W, 3), enlarged by a whole factor; what was typed meanwhile is kept for `keys`."""
        pygame = self._pygame
        height, width = frame.shape[:2]
        scale = max(SHOWN_SIDE // max(height, width), 1)
        if self._screen is None:
            pygame.display.init()
            self._screen = pygame.display.set_mode((width * scale, height * scale))
            pygame.display.set_caption(self.title)
        picture = pygame.image.frombuffer(np.ascontiguousarray(frame).tobytes(), (width, height), "RGB")
        self._screen.blit(pygame.transform.scale_by(picture, scale), (0, 0))
        pygame.display.flip()
        pygame.event.pump()

    def keys(self) -> tuple[list[str], set[str]]:
        """Names of the keys that were pressed since the last call, in order, and of those that are down now; pygame's names,
        "left" or "r". Notices that the window was closed."""
        pygame = self._pygame
        events = pygame.event.get()
        self.is_closed = self.is_closed or any(event.type == pygame.QUIT for event in events)
        pressed = [pygame.key.name(event.key) for event in events if event.type == pygame.KEYDOWN]
        state = pygame.key.get_pressed()
        names = ("left", "right", "up", "down", *"0123456789")
        return pressed, {name for name in names if state[pygame.key.key_code(name)]}

    def close(self) -> None:
        """Closes it; closing again does nothing."""
        if self._screen is not None:
            self._screen = None
            self._pygame.display.quit()


def window_for(render_mode: str | None, title: str) -> Window | None:
    """The window of an environment that shows itself; `None` for the modes that need none.

    Raises:
        ValueError: environments have no such mode.
        ImportError: a window is asked for, and pygame-ce is not installed.
    """
    if render_mode is not None and render_mode not in METADATA["render_modes"]:
        raise ValueError(f"render_mode={render_mode!r} must be one of {', '.join(METADATA['render_modes'])}, or None.")
    return Window(title) if render_mode == "human" else None
