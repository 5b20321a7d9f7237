"""An output folder in which a run that was killed finds what it had done, by the content of what that was made from."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline


class Store:
    """The output folder. A file appears in it under its name only when it is complete."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.videos = self.root / "videos"

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Yields a name to write to, and moves it to `path` at the end."""
        unfinished = self.root / "cache" / "unfinished" / f"{uuid.uuid4().hex}{path.suffix}"
        for folder in (unfinished.parent, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def cached(self, kind: str, key: str, suffix: str = ".json") -> Path:
        return self.root / "cache" / kind / f"{key}{suffix}"

    def load(self, kind: str, key: str):
        """What [`Store.save`] kept under `key`, or `None`."""
        path = self.cached(kind, key)
        return json.loads(path.read_text()) if path.is_file() else None

    def save(self, kind: str, key: str, value) -> None:
        with self.writing(self.cached(kind, key)) as unfinished:
            unfinished.write_text(json.dumps(value))


def hash_of(*parts) -> str:
    """Anything that JSON takes → 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            sha256.update(chunk)
    return sha256.hexdigest()


def hash_of_model(pipe: DiffusionPipeline) -> str:
    """Of every weight and of the scheduler's configuration."""
    digest = hashlib.sha256(json.dumps(dict(pipe.scheduler.config), sort_keys=True, default=str).encode())
    for part, component in sorted(pipe.components.items()):
        state_dict = component.state_dict() if isinstance(component, torch.nn.Module) else {}
        for name, tensor in sorted(state_dict.items()):
            digest.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
