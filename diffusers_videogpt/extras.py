"""The packages that only some uses need, which come with an extra: imported, or a sentence that says how to get them."""

from importlib import import_module
from types import ModuleType


def require(module: str, purpose: str, *, extra: str) -> ModuleType:
    """The module `module`, for example `require("cv2", "Physics-IQ needs OpenCV", extra="eval")`.

    Raises:
        ImportError: it is not installed. The message begins with `purpose` and names the extra of this package.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f'{purpose}: pip install ".[{extra}]" in the repository') from error
