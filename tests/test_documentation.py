"""What is public is documented, and what the README shows exists: arguments, options, files, links, names."""

import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest
from run_scripts import SCRIPTS

import diffusers_videogpt
from diffusers_videogpt.commands import main as cli
from diffusers_videogpt.video_io import read_video


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [(match[1], match[2]) for match in re.finditer(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)]
PUBLIC = [getattr(diffusers_videogpt, name) for name in diffusers_videogpt.__all__]
CLASSES = [x for x in PUBLIC if inspect.isclass(x)]
FUNCTIONS = [x for x in PUBLIC if inspect.isfunction(x)]
# diffusers' own, whose meaning is the same in every class of it.
COMMON = {"self", "cls", "args", "kwargs", "return_dict"}


def undocumented(function, text: str) -> list[str]:
    names = set(inspect.signature(inspect.unwrap(function)).parameters) - COMMON
    return sorted(name for name in names if not re.search(rf"\b{name}\b", text))


@pytest.mark.parametrize("public_class", CLASSES, ids=lambda x: x.__name__)
def test_every_argument_of_a_public_class_is_documented(public_class):
    text = inspect.cleandoc(public_class.__doc__)
    missing = {}
    if "__init__" in vars(public_class):
        missing["__init__"] = undocumented(public_class.__init__, text)
    for name, member in vars(public_class).items():
        if isinstance(member, (classmethod, staticmethod)):
            member = member.__func__
        if isinstance(member, property):
            member = member.fget
        if not inspect.isfunction(member) or (name.startswith("_") and name != "__call__"):
            continue
        text = inspect.getdoc(inspect.unwrap(member)) or ""
        if "Pipeline.__call__`]" in text:  # says that its arguments are those
            continue
        missing[name] = undocumented(member, text) if text else "no docstring"
    assert not {name: x for name, x in missing.items() if x}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda x: x.__name__)
def test_every_argument_of_a_public_function_is_documented(function):
    assert undocumented(function, function.__doc__) == []


def commands(program: str) -> list[list[str]]:
    """The words of every command of the README that runs `program`, in blocks and in the text."""
    lines = [line for kind, block in BLOCKS if kind != "python" for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", README)
    found = []
    for line in lines:
        line = re.sub(r"\s#.*", "", line)
        if re.search(rf"(^|[\s/]){re.escape(program)}(\s|$)", line):
            words = shlex.split(line.replace("…", ""))
            found += [words[index + 1 :] for index, word in enumerate(words) if word.split("/")[-1] == program]
    return found


def long_options(words: list[str]) -> list[str]:
    words = words[: next((i for i, word in enumerate(words) if word in ("&&", "|", ";")), len(words))]
    return [word.split("=")[0] for word in words if word.startswith("--") and not word.startswith("---")]


def test_the_commands_of_the_readme_have_the_options_that_they_show():
    shown = 0
    for words in commands("videogpt"):
        parser = cli.make_parser()
        for word in words:  # down to the command that is meant
            subparsers = [action for action in parser._actions if hasattr(action, "_name_parser_map")]
            if not subparsers or word not in subparsers[0].choices:
                break
            parser = subparsers[0].choices[word]
        unknown = [option for option in long_options(words) if option not in parser._option_string_actions]
        assert not unknown, words
        shown += 1
    assert shown > 15


@pytest.mark.parametrize("script", sorted(x.name for x in SCRIPTS.glob("*.py")))
def test_the_scripts_of_the_readme_have_the_options_that_they_show(script):
    sources = [SCRIPTS / script, *(ROOT / "diffusers_videogpt").rglob("*.py")]
    known = set(re.findall(r"--[\w-]+", "".join(path.read_text(encoding="utf-8") for path in sources)))
    for words in commands(script):
        assert not set(long_options(words)) - known, words
        for word in words:
            if word.startswith("training_scripts/"):
                assert (ROOT / word).exists(), words


def test_links_lead_somewhere():
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    assert len(links) > 10
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("https://"):
            assert (ROOT / link).exists(), link


def test_the_tree_names_every_module():
    """Files of the package and the scripts, in the README's picture of the tree."""
    shown = set(re.findall(r"[\w/]+\.py", README))
    shown = {name.split("/")[-1] for name in shown}
    files = [*(ROOT / "diffusers_videogpt").rglob("*.py"), *SCRIPTS.glob("*.py")]
    assert not sorted(x.name for x in files if x.name not in shown | {"__init__.py"})


@pytest.mark.parametrize(
    "code", [block for kind, block in BLOCKS if kind == "python"], ids=lambda x: x.splitlines()[0]
)
def test_python_of_the_readme_imports_what_exists(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = __import__(node.module, fromlist=[name.name for name in node.names])
            assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


def run_quickly(code: str) -> dict:
    """Runs an example with fewer denoising steps than it has; returns its variables."""
    names, quick = {}, code.replace("num_frames=16", "num_frames=16, num_inference_steps=2")
    assert quick != code
    exec(compile(quick, "README.md", "exec"), names)
    return names


def test_the_first_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_quickly(next(block for kind, block in BLOCKS if kind == "python"))
    assert len(read_video(tmp_path / "next.mp4").frames) == 16


def test_the_modular_example_runs():
    code = next(block for kind, block in BLOCKS if kind == "python" and "ModularPipelineBlocks" in block)
    assert len(run_quickly(code)["videos"][0]) == 16
