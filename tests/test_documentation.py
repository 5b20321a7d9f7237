"""What is public is documented, and what the pages show exists: arguments, options, files, links, names."""

import argparse
import ast
import importlib
import inspect
import json
import re
import runpy
import shlex
import textwrap
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from run_scripts import SCRIPTS

import diffusers_videogpt
from diffusers_videogpt import modular_pipeline_videogpt
from diffusers_videogpt.actions import ActionSpace
from diffusers_videogpt.commands import main as cli
from diffusers_videogpt.data.sampling import Sampling, Window
from diffusers_videogpt.data.videos import VideoTable
from diffusers_videogpt.training.arguments import SettingsParser
from diffusers_videogpt.video_io import read_video


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffusers_videogpt"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", SCRIPTS / "README.md", *sorted(SCRIPTS.glob("results/*/README.md"))]
ALL_SCRIPTS = sorted(path.name for path in SCRIPTS.glob("*.py"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, kind: str) -> list[str]:
    return [match[2] for match in FENCED.finditer(page.read_text(encoding="utf-8")) if match[1] == kind]


PUBLIC = [getattr(diffusers_videogpt, name) for name in diffusers_videogpt.__all__]
CLASSES = [x for x in PUBLIC if inspect.isclass(x)]
FUNCTIONS = [x for x in PUBLIC if inspect.isfunction(x)]
# diffusers' own, whose meaning is the same in every class of it.
COMMON = {"self", "cls", "args", "kwargs", "return_dict"}


def documentation_of(function) -> str:
    """Its docstring, and those of the functions of the package that it points to: "see [`~frame_latents.encode_frames`]"."""
    text = inspect.getdoc(inspect.unwrap(function)) or ""
    for module, names in re.findall(r"\[`~(\w+)\.([\w.]+)`\]", text):
        target = (
            importlib.import_module(f"diffusers_videogpt.{module}") if (PACKAGE / f"{module}.py").exists() else None
        )
        for name in names.split(".") if target else ():
            target = getattr(target, name)
        text += "\n" + (inspect.getdoc(target) or "") if target else ""
    return text


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
        text = documentation_of(member)
        if "Pipeline.__call__`]" in text:  # says that its arguments are those
            continue
        missing[name] = undocumented(member, text) if text else "no docstring"
    assert not {name: x for name, x in missing.items() if x}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda x: x.__name__)
def test_every_argument_of_a_public_function_is_documented(function):
    assert undocumented(function, function.__doc__) == []


def commands(page: Path, program: str) -> list[list[str]]:
    """The words of every command of a page that runs `program`, in blocks and in the text."""
    text = page.read_text(encoding="utf-8")
    lines = [
        line
        for match in FENCED.finditer(text)
        if match[1] in ("", "bash")
        for line in match[2].replace("\\\n", " ").splitlines()
    ]
    lines += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", FENCED.sub("", text))]
    found = []
    for line in lines:
        line = re.sub(r"\s#.*", "", line)
        if re.search(rf"(^|[\s/]){re.escape(program)}(\s|$)", line):
            words = shlex.split(line.replace("…", ""))
            found += [words[index + 1 :] for index, word in enumerate(words) if word.split("/")[-1] == program]
    return found


def long_options(words: list[str]) -> list[str]:
    words = words[: next((i for i, word in enumerate(words) if word in ("&&", "|", ";", "videogpt")), len(words))]
    return [word.split("=")[0] for word in words if word.startswith("--") and not word.startswith("---")]


def test_the_commands_have_the_options_that_they_show():
    shown = 0
    for page in PAGES:
        for words in commands(page, "videogpt"):
            parser = cli.make_parser()
            for word in words:  # down to the command that is meant
                subparsers = [action for action in parser._actions if hasattr(action, "_name_parser_map")]
                if not subparsers or word not in subparsers[0].choices:
                    break
                parser = subparsers[0].choices[word]
            unknown = [option for option in long_options(words) if option not in parser._option_string_actions]
            assert not unknown, (name_of(page), words)
            shown += 1
    assert shown > 25


class Parsing(Exception):
    """Raised in the place of parsing: holds the parser."""


@pytest.fixture
def parser_of(monkeypatch):
    """The parser of a script, as the script makes it; the script ends where it would read its arguments."""

    def stop(parser, *args):
        raise Parsing(parser)

    def parser_of(script: str) -> argparse.ArgumentParser:
        with monkeypatch.context() as patch, pytest.raises(Parsing) as parsing:
            patch.setattr("sys.argv", [script])
            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
            patch.setattr(SettingsParser, "parse_args", stop)
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        return parsing.value.args[0]

    return parser_of


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_the_scripts_have_the_options_that_are_shown(script, parser_of):
    known = parser_of(script)._option_string_actions
    assert {"-h", "--help"} < known.keys()  # and those of the script
    for page in PAGES:
        for words in commands(page, script):
            assert not set(long_options(words)) - known.keys(), (name_of(page), words)


def test_the_options_that_are_shown_are_found():
    """Each kind of place where pages show a script's options: a block, the text, a table, a text over two lines."""
    shown = {
        script: {option for page in PAGES for words in commands(page, script) for option in long_options(words)}
        for script in ALL_SCRIPTS
    }
    assert {"--instance_data_root", "--dataset_file"} < shown["train_class_to_video.py"]
    assert "--num_scenes" in shown["benchmark_steps.py"] and "--preset" in shown["reproduce_findings.py"]
    assert {"--cases", "--rounds"} < shown["benchmark_rollout.py"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_commands_name_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"\b((?:training_scripts|tests|diffusers_videogpt)/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), path


def test_the_page_of_the_scripts_names_every_script():
    named = re.findall(r"`([\w*]+\.py)`", (SCRIPTS / "README.md").read_text(encoding="utf-8"))
    assert not [script for script in ALL_SCRIPTS if not any(fnmatch(script, name) for name in named)]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_lead_somewhere(page):
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=[\"']([^\"']+)", text)
    for link in links:
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path) if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    assert len(links) > 10 or page != PAGES[0]


@pytest.mark.parametrize("page", sorted({*PAGES, *SCRIPTS.rglob("*.md")}), ids=name_of)
def test_lines_are_short_enough_to_read(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not {number: len(line) for number, line in enumerate(lines, start=1) if len(line) >= 160}


def box_scores(file: str, name: str) -> dict:
    """What `evaluate physics-box` wrote of one way to predict, and its mean error over that of repeating."""
    results = json.loads((SCRIPTS / "results/physics_box" / file).read_text(encoding="utf-8"))["results"]
    return {**results[name], "ratio": np.mean(results[name]["mse"]) / np.mean(results["repeat the last frame"]["mse"])}


def test_the_readme_tells_the_bundled_models_last_measured_error():
    row = next(line for line in README.splitlines() if line.startswith("| Bundled model, error over repeating"))
    config = json.loads((Path(diffusers_videogpt.BUNDLED_MODEL) / "model_index.json").read_text(encoding="utf-8"))
    own = f"clips of {config['frames_per_clip']}"
    assert f"| {box_scores('scores.json', own)['ratio']:.2f} × |" in row


@pytest.mark.parametrize(
    ("row", "file", "name"),
    [
        ("clips of 8", "scores.json", "clips of 8"),
        ("clips of 4", "scores.json", "clips of 4"),
        ("clips of 1 (next frame)", "scores.json", "clips of 1"),
        ("clips of 1, one unguided step", "scores_next_frame.json", "clips of 1"),
    ],
)
def test_the_page_of_the_bundled_model_shows_its_scores(row, file, name):
    page = (SCRIPTS / "results/physics_box/README.md").read_text(encoding="utf-8").replace("**", "")
    cells = next(line for line in page.splitlines() if line.startswith(f"| {row} |")).strip("| ").split(" | ")
    scores = box_scores(file, name)
    assert cells[1:7] == [
        f"{scores['physics_iq']['score']:.1f}",
        f"{scores['ratio']:.2f} ×",
        *(f"{scores['mse'][frame - 1] * 1000:.2f}" for frame in (1, 4, 8, 16)),
    ]
    kept = " / ".join(f"{scores['objects_kept'][frame - 1]:.0%}".removesuffix("%") for frame in (4, 8, 16))
    assert cells[8] == f"{kept} %"


def test_the_readme_is_short_enough_to_be_read():
    assert len(README.encode()) < 15_000


def paths_of(tree: str) -> list[Path]:
    """What a drawing names, a file or folder a line: the first word, which stands deeper than the folder that it is in."""
    paths, folders = [], []  # folders: the depth of each and its path, down to the one that is drawn
    for line in tree.splitlines():
        entry = line.lstrip(" │├└─|`+-")
        if entry:
            depth = len(line) - len(entry)
            folders = [(at, path) for at, path in folders if at < depth]
            path = (folders[-1][1] if folders else ROOT) / entry.split()[0]
            folders.append((depth, path))
            paths.append(path)
    return paths


def test_a_tree_is_read():
    drawn = "diffusers_videogpt/\n├── data/      videos\n│   └── tables.py\n└── files.py\ntests/     all"
    paths = ("diffusers_videogpt", "diffusers_videogpt/data", "diffusers_videogpt/data/tables.py")
    assert paths_of(drawn) == [ROOT / path for path in (*paths, "diffusers_videogpt/files.py", "tests")]


def test_the_tree_names_every_file_and_folder():
    """Folders and files of the package, and the other folders; a folder counts with one line."""
    drawn = paths_of(README.partition("## The tree")[2].split("```")[1])
    assert not [str(path) for path in drawn if not path.exists()] and len(drawn) == len(set(drawn))
    named = {path.resolve() for path in drawn}
    inside = [path for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"]
    paths = [*inside, PACKAGE, SCRIPTS, SCRIPTS / "configs", SCRIPTS / "results", ROOT / "tests"]
    assert not sorted(path.name for path in paths if path not in named and not path.name.startswith("__"))


PYTHON = [(page, code) for page in PAGES for code in blocks(page, "python")]


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[f"{name_of(p)}: {c.splitlines()[0]}" for p, c in PYTHON])
def test_python_of_the_pages_imports_what_exists(page, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
        elif isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "diffusers_videogpt":
            assert hasattr(diffusers_videogpt, node.attr), ast.unparse(node)


def run_quickly(code: str) -> dict:
    """Runs an example with fewer denoising steps than it has; returns its variables."""
    names, quick = {}, code.replace("num_frames=16", "num_frames=16, num_inference_steps=2")
    assert quick != code
    exec(compile(quick, "an example", "exec"), names)
    return names


def test_the_first_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_quickly(blocks(PAGES[0], "python")[0])
    assert len(read_video(tmp_path / "next.mp4").frames) == 16
    assert f"# {names['given'].shape} uint8" in README and names["given"].dtype == np.uint8
    assert [frame.size for frame in names["frames"]] == [(64, 64)] * 16


def test_the_example_of_recording_runs(tmp_path, monkeypatch):
    """What it writes is what training reads."""

    class Env:
        def reset(self, seed):
            self.shade = seed
            return np.full((32, 32, 3), 128, dtype=np.uint8)

        def step(self, action):
            return np.full((32, 32, 3), 40 * int(action), dtype=np.uint8)

    (code,) = (x for x in blocks(SCRIPTS / "README.md", "python") if "np.save" in x)
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("range(100)", "range(2)"), "an example", "exec"), {"env": Env()})
    sampling = Sampling(max_num_frames=8, longest_side=32)
    table = VideoTable.from_folder("recorded", sampling, actions=ActionSpace(num_actions=5))
    assert [len(record.actions) for record in table] == [48, 48] and table[0].actions[0] == -1
    frames = table.read(0, Window(1, 1, 8)).mean(axis=(1, 2, 3))  # each frame is as bright as its action says
    np.testing.assert_allclose(frames, 40 * table.read_actions(0, Window(1, 1, 8)), atol=6)


def test_the_example_of_a_block_of_ones_own_runs():
    text = inspect.cleandoc(modular_pipeline_videogpt.__doc__) + "\n"
    (code,) = (x for x in re.findall(r"(?:^    .*\n|^\n)+", text, re.MULTILINE) if "class ShortMemory" in x)
    names = run_quickly(textwrap.dedent(code))
    assert len(names["videos"][0]) == 16
