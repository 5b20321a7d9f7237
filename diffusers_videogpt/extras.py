"""The packages that only some uses need, which come with an extra: imported, or a sentence that says how to get them."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType


# What diffusers and peft import wherever it is installed, and who uses no quantized model has no use for.
QUANTIZERS = ("bitsandbytes", "torchao")


def require(module: str, purpose: str, *, extra: str) -> ModuleType:
    """The module `module`, for example `require("cv2", "Physics-IQ needs OpenCV", extra="eval")`.

    Raises:
        ImportError: it is not installed. The message begins with `purpose` and names the extra of this package.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f'{purpose}: pip install ".[{extra}]" in the repository') from error


def leave_out(packages: tuple[str, ...]) -> None:
    """Makes `packages` look as if they were not installed, if diffusers has not been imported yet.

    diffusers and peft import them wherever they are, which takes seconds and prints warnings of theirs.
    """
    if "diffusers" not in sys.modules:
        for name in packages:
            sys.modules.setdefault(name, None)


@contextmanager
def importing_libraries() -> Iterator[None]:
    """Without garbage collection, which looks through everything that an import has made again and again and finds nothing to
    throw away: of the 7 s of CPU that PyTorch, diffusers and transformers take to be imported, 1 s. What is imported stays for
    good, so that later collections pass it over too. Nothing changes where diffusers has been imported before.
    """
    if "diffusers" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
