"""A wheel built from the tree predicts in an empty folder, with the checkout gone."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package installed from its wheel into a folder; what it was built from is deleted."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(".git", "build", "*.egg-info", "tests"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "checkout")]
    subprocess.run(build, check=True, capture_output=True, text=True)
    shutil.rmtree(folder / "checkout")
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True, capture_output=True
    )
    return folder / "site"


def test_predict_from_the_wheel(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    where = [sys.executable, "-c", "import diffusers_videogpt; print(diffusers_videogpt.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip().startswith(str(installed))

    command = [str(installed / "bin" / "videogpt"), "predict", "--steps", "2"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert sorted(p.name for p in (tmp_path / "videogpt_output").iterdir()) == [
        "sample_prediction.mp4",
        "sample_prediction.png",
    ]


def test_the_source_archive_builds_and_holds_no_tests(tmp_path):
    """setuptools would add tests/test_*.py, without what these import."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".git", "build", "*.egg-info", "results"))
    subprocess.run(
        [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)],
        cwd=checkout,
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert not [name for name in names if name.startswith("tests")]
    assert {"setup.py", "README.md", "LICENSE", "diffusers_videogpt/assets/sample.mp4"} <= names
    assert "diffusers_videogpt/commands/evaluate/fvd.py" in names


def requirements(text: str) -> list[str]:
    """`install_requires` of setup.py."""
    keywords = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.keyword)]
    return ast.literal_eval(next(node.value for node in keywords if node.arg == "install_requires"))


def test_a_users_newer_packages_stay():
    """No upper bound: it would replace what others of the user's projects need, as a PyTorch of 2 GB."""
    required = requirements((ROOT / "setup.py").read_text(encoding="utf-8"))
    assert "torch>=2.9" in required
    assert not [line for line in required if "<" in line or "==" in line or "!=" in line]
