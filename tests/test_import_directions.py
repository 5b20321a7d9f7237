"""Who may import whom: every file of the package stands on a floor, and imports only its own floor and those below.

Whoever reads the core needs to know nothing of training; whoever reads a metric, nothing of a model.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import diffusers_videogpt


PACKAGE = Path(diffusers_videogpt.__file__).parent

# From the ground up. What stands here is a file at the top of the package, or a folder with all that is in it.
FLOORS = {
    "ground": {
        "actions",
        "arguments",
        "clips",
        "conditions",
        "config_values",
        "console",
        "context_parallel",
        "diffusers_internals",
        "extras",
        "files",
        "film_strips",
        "hub",
        "kv_cache",
        "orientation",
        "pictures",
        "reference_names",
        "registration",
        "saved_models",
        "scheduling_next_clip_flow_match",
        "video_io",
        "weights",
    },
    "core": {
        "attention_videogpt",
        "convert_checkpoint",
        "frame_latents",
        "guidance_next_clip",
        "history",
        "lora_formats",
        "lora_videogpt",
        "modular_pipeline_videogpt",
        "pipeline_inputs",
        "pipeline_output",
        "pipeline_videogpt",
        "rollout",
        "stream",
        "tile_attention",
        "transformer_videogpt",
    },
    "worlds": {"worlds"},
    "metrics": {"metrics"},
    "data": {"data"},
    "training": {"training"},
    "tasks": {"tasks"},
    "evaluation": {"evaluation"},
    "public": {"__init__"},  # the names that the package offers
    "commands": {"commands"},
}
ORDER = list(FLOORS)
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
# Besides itself, a simulator and a metric need nothing but the ground.
ONLY_THE_GROUND = ("worlds", "metrics")
# A command answers before what it needs is imported.
MAY_IMPORT_LATE = "commands"


@dataclass(frozen=True)
class Import:
    """One file of the package imports another; both by their path in it, `metrics/i3d.py`."""

    importer: str
    imported: str
    line: int
    is_hidden: bool  # within a function, or for type checkers only

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def floor_of(path: str) -> str | None:
    return FLOOR_OF.get(path.split("/")[0].removesuffix(".py"))


def walk(node: ast.AST, *, is_hidden: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, and whether it is within a function or an `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        inside = (
            is_hidden
            or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        )
        yield child, inside
        yield from walk(child, is_hidden=inside)


def file_of(package: Path, parts: list[str]) -> str | None:
    """The file of a module, by its name's parts behind the package's; a folder's is its `__init__.py`."""
    for path in (Path(*parts).with_suffix(".py") if parts else None, Path(*parts, "__init__.py")):
        if path is not None and (package / path).is_file():
            return path.as_posix()
    return None


def name_of(function: ast.expr) -> str | None:
    """What is called, by its last name."""
    return getattr(function, "attr", None) or getattr(function, "id", None)


def names_imported(node: ast.AST, *, importer: str, package_name: str) -> list[tuple[list[str], list[str]]]:
    """What an import names of the package: (parts of the module, names taken from it) each."""
    here = [package_name, *Path(importer).parent.parts]
    if isinstance(node, ast.Import):
        found = [(alias.name.split("."), []) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = here[: len(here) + 1 - node.level] if node.level else []
        found = [(base + (node.module.split(".") if node.module else []), [alias.name for alias in node.names])]
    elif isinstance(node, ast.Call) and name_of(node.func) in ("import_module", "__import__"):
        names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        found = [((here if name.startswith(".") else []) + name.lstrip(".").split("."), []) for name in names]
    else:
        found = []
    return [(parts[1:], names) for parts, names in found if parts[0] == package_name]


def read_imports(package: Path) -> tuple[list[str], list[Import], list[str]]:
    """The files of a package, who imports whom, and the places where anything at all is imported late."""
    files, imports, late = [], [], []
    for path in sorted(package.rglob("*.py")):
        importer = path.relative_to(package).as_posix()
        files.append(importer)
        for node, is_hidden in walk(ast.parse(path.read_text(encoding="utf-8"))):
            if is_hidden and isinstance(node, ast.Import | ast.ImportFrom):
                late.append(f"{importer}:{node.lineno} hides an import: {ast.unparse(node)}")
            for parts, names in names_imported(node, importer=importer, package_name=package.name):
                # `from .x import y` means the file y of the folder x, or a name in the file x.
                targets = {file_of(package, [*parts, name]) or file_of(package, parts) for name in names}
                for imported in sorted(filter(None, targets or {file_of(package, parts)})):
                    imports.append(Import(importer, imported, node.lineno, is_hidden))
    return files, imports, late


def circles(imports: list[Import]) -> list[str]:
    """Every file that can be reached from itself, and by which way."""
    arrows: dict[str, set[str]] = {}
    for x in imports:
        arrows.setdefault(x.importer, set()).add(x.imported)
    found = []
    for start in sorted(arrows):
        ways = {start: [start]}
        queue = [start]
        for here in queue:
            for there in sorted(arrows.get(here, ())):
                if there == start:
                    found.append(" → ".join([*ways[here], start]))
                    queue.clear()
                    break
                if there not in ways:
                    ways[there] = [*ways[here], there]
                    queue.append(there)
    return found


def faults(package: Path) -> list[str]:
    """All that is against the floors, in words."""
    files, imports, late = read_imports(package)
    found = [f"{path} stands on no floor: give it one in FLOORS" for path in files if floor_of(path) is None]
    for x in imports:
        below, above = floor_of(x.importer), floor_of(x.imported)
        if below is None or above is None:
            continue
        if ORDER.index(above) > ORDER.index(below):
            found.append(f"{x}: upwards, from {below} to {above}")
        elif below in ONLY_THE_GROUND and above not in (below, "ground"):
            found.append(f"{x}: {below} needs nothing but the ground, not {above}")
    found += [f"a circle: {way}" for way in circles(imports)]
    return found + [place for place in late if not place.startswith(f"{MAY_IMPORT_LATE}/")]


def test_every_file_stands_on_a_floor_and_imports_nothing_above_it():
    assert faults(PACKAGE) == []


def test_every_name_on_a_floor_is_a_file_or_a_folder():
    assert [
        name for name in FLOOR_OF if not (PACKAGE / f"{name}.py").is_file() and not (PACKAGE / name).is_dir()
    ] == []


def test_the_tree_is_read():
    """Neither a file nor an import escapes: as many files as there are, and arrows of each kind."""
    files, imports, _ = read_imports(PACKAGE)
    assert len(files) == len(list(PACKAGE.rglob("*.py"))) > 50
    arrows = {(x.importer, x.imported) for x in imports}
    assert ("pipeline_videogpt.py", "transformer_videogpt.py") in arrows  # from .file import name
    assert ("metrics/i3d.py", "metrics/package_weights.py") in arrows  # within a folder
    assert ("evaluation/segmentation_masks.py", "worlds/__init__.py") in arrows  # from ..folder import name


# File | what stands in it (`/` is a new line) | what is wrong with that.
UNSOUND = """
clips.py | from .pipeline_videogpt import x | clips.py:1 imports pipeline_videogpt.py: upwards
clips.py | from . import pipeline_videogpt | imports pipeline_videogpt.py: upwards
clips.py | import package.pipeline_videogpt as x | imports pipeline_videogpt.py: upwards
clips.py | from package.training import loop | imports training/loop.py: upwards
clips.py | from package import training | imports training/__init__.py: upwards
clips.py | import package | imports __init__.py: upwards
clips.py | from importlib import import_module/import_module('.training.loop', __package__) | training/loop.py: upwards
clips.py | try:/ from .training.loop import x/except ImportError:/ x = None | training/loop.py: upwards
training/loop.py | from ..commands import main | imports commands/main.py: upwards
training/loop.py | from .. import commands | imports commands/__init__.py: upwards
training/loop.py | if True:/ from ..tasks.probe import x | imports tasks/probe.py: upwards
training/loop.py | def f():/ from ..clips import x | training/loop.py:2 hides an import
training/loop.py | f = lambda: __import__('package.tasks.probe') | imports tasks/probe.py: upwards
metrics/ranks.py | from ..pipeline_videogpt import x | metrics needs nothing but the ground, not core
worlds/scenes.py | from ..metrics.ranks import x | upwards, from worlds to metrics
worlds/scenes.py | from ..pipeline_videogpt import x | worlds needs nothing but the ground, not core
tasks/probe.py | class A:/ def f(self):/  import torch | tasks/probe.py:3 hides an import
tasks/probe.py | if TYPE_CHECKING:/ from ..clips import x | tasks/probe.py:2 hides an import
tasks/probe.py | if typing.TYPE_CHECKING:/ import torch | tasks/probe.py:2 hides an import
tasks/probe.py | from .other import x | a circle: tasks/other.py → tasks/probe.py → tasks/other.py
tasks/other.py | from . import other | a circle: tasks/other.py → tasks/other.py
new.py | x = 1 | new.py stands on no floor
room/new.py | x = 1 | room/new.py stands on no floor
room/deep/new.py | x = 1 | room/deep/new.py stands on no floor
"""


@pytest.mark.parametrize("unsound", UNSOUND.strip().splitlines())
def test_each_kind_of_fault_is_found(tmp_path, unsound):
    path, text, fault = unsound.split(" | ")
    package = tmp_path / "package"
    sound = {
        "__init__.py": "from .pipeline_videogpt import x",
        "clips.py": "import torch",
        "pipeline_videogpt.py": "from .clips import x",
        "metrics/ranks.py": "from ..clips import x",
        "worlds/scenes.py": "import numpy",
        "training/__init__.py": "",
        "training/loop.py": "from .. import pipeline_videogpt\nfrom ..metrics import ranks",
        "tasks/probe.py": "from ..training.loop import x",
        "tasks/other.py": "from .probe import x",
        "commands/__init__.py": "",
        "commands/main.py": "from .. import x\n\ndef main():\n    from ..tasks.probe import x\n    import torch",
    }
    for name, content in sound.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    assert faults(package) == []
    (package / path).parent.mkdir(parents=True, exist_ok=True)
    (package / path).write_text(text.replace("/", "\n"))
    assert any(fault in found for found in faults(package)), faults(package)


def test_importing_the_package_needs_no_extra():
    code = (
        "import sys, diffusers_videogpt; "
        "print([m for m in ('pymunk', 'pygame', 'datasets', 'cv2', 'matplotlib', 'diffusers_videogpt.worlds', "
        "'diffusers_videogpt.training', 'diffusers_videogpt.evaluation') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
