"""Each core file imports only files above it on the road from a video file to a video file; the core knows nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffusers_videogpt


PACKAGE = Path(diffusers_videogpt.__file__).parent
ROAD = [
    "video_io",
    "clips",
    "kv_cache",
    "diffusers_internals",
    "tile_attention",
    "attention_videogpt",
    "transformer_videogpt",
    "scheduling_next_clip_flow_match",
    "conditions",
    "pipeline_output",
    "frame_coding",
    "history",
    "lora_videogpt",
    "saved_models",
    "pipeline_videogpt",
    "command_arguments",
    "modular_pipeline_videogpt",
    "convert_checkpoint",
    "hub",
]


def imported_siblings(path: Path) -> set[str]:
    """First names of the package's own modules that a file imports, relatively or by name."""
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_type_checkers = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    tree.body = [node for node in tree.body if node not in for_type_checkers]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusers_videogpt"):
            names |= set(node.module.split(".")[1:2])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("diffusers_videogpt.")}
    return names


@pytest.mark.parametrize("name", ROAD)
def test_core_file_imports_only_files_above_it(name):
    assert imported_siblings(PACKAGE / f"{name}.py") <= set(ROAD[: ROAD.index(name)])


def test_importing_the_package_needs_no_extra():
    code = (
        "import sys, diffusers_videogpt; "
        "print([m for m in ('pymunk', 'pygame', 'datasets', 'diffusers_videogpt.worlds', "
        "'diffusers_videogpt.training') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
