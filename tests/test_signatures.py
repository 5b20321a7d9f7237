"""Which functions take more than two values by position: those whose signature somebody else fixes, and no others.

`f(a, b, c, d)` does not say what is what, and two values in the wrong order go unnoticed. So from the third argument on, all
are given by name.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffusers_videogpt


PACKAGE = Path(diffusers_videogpt.__file__).parent
MOST = 2
Function = ast.FunctionDef | ast.AsyncFunctionDef

# By their arguments.
SIGNATURES = {
    ("query", "key", "value"): "what attention is of",
    ("components", "block_state", "k"): "how diffusers' loops call their modular blocks",
    ("scope", "receive", "send"): "how ASGI servers call an application",
}
# By their names: what calls them, or whom they stand in for, takes them so.
SCHEDULER, LORAS, PIPELINE = "NextClipFlowMatchScheduler", "VideoGPTLoraLoaderMixin", "VideoGPTPipeline"
NAMES = {
    f"{SCHEDULER}.step": "diffusers' schedulers",
    f"{SCHEDULER}.scale_noise": "diffusers' schedulers",
    f"{SCHEDULER}.add_noise": "diffusers' schedulers",
    "set_flow_timesteps": "as `set_timesteps` of diffusers' schedulers, and users call it so",
    f"{LORAS}.lora_state_dict": "diffusers' loaders of LoRAs",
    f"{LORAS}.load_lora_weights": "diffusers' loaders of LoRAs",
    f"{LORAS}.load_lora_into_transformer": "diffusers' loaders of LoRAs",
    f"{LORAS}.save_lora_weights": "diffusers' loaders of LoRAs",
    f"{LORAS}.fuse_lora": "diffusers' loaders of LoRAs",
    "WholeWeightsMixin._load_pretrained_model": "diffusers' models",
    f"{PIPELINE}.prepare_frames": "users call it so",
    "ClipPredictor.prepare_frames": "the pipeline's",
    "convert_reference_checkpoint": "users call it so",
    "convert_to_reference_checkpoint": "users call it so",
    "_AfterImport.find_spec": "Python's finders of modules",
    "PositionsVecEnv.set_attr": "vectorised environments of Stable-Baselines3",
}


def named(tree: ast.AST, outer: str = "") -> Iterator[tuple[str, Function]]:
    """All functions of a file, also those within others; a method's name has its class before it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield outer + node.name, node
        yield from named(node, f"{node.name}." if isinstance(node, ast.ClassDef) else "")


def positional(function: Function) -> tuple[str, ...]:
    names = tuple(x.arg for x in function.args.posonlyargs + function.args.args)
    return names[1:] if names[:1] in (("self",), ("cls",)) else names


def handed_over(tree: ast.AST) -> set[str]:
    """Names of functions that are given away as values, `f` or `self.f`: whoever gets one calls it as he does.

    Not what is only bound to some of its arguments, by `partial`; nor a name that is a variable's somewhere in the file.
    """
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {node.func for node in calls}
    called |= {node.args[0] for node in calls if ast.unparse(node.func).split(".")[-1] == "partial" and node.args}
    variables, values = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            variables.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            variables.add(node.id)
        elif isinstance(node, ast.Name) and node not in called:
            values.add(node.id)
        elif isinstance(node, ast.Attribute) and node not in called and ast.unparse(node.value) == "self":
            values.add(node.attr)
    return values - variables


def is_fixed_elsewhere(name: str, function: Function) -> bool:
    decorators = " ".join(map(ast.unparse, function.decorator_list))
    return (
        name in NAMES
        or positional(function) in SIGNATURES
        # Users, hooks and gradient checkpointing call it so, of models as of guiders.
        or name.endswith(".forward")
        # The parts and settings that are saved, in diffusers' order.
        or (
            name.endswith(".__init__")
            and ("register_to_config" in decorators or "register_modules" in ast.unparse(function))
        )
        # Operators of torch take no keywords when autograd calls them.
        or any(word in decorators for word in ("custom_op", "register_fake"))
    )


def too_many(source: str) -> dict[str, tuple[str, ...]]:
    """Name → positional arguments of the functions that take too many."""
    tree = ast.parse(source)
    given_away = handed_over(tree)
    return {
        name: positional(function)
        for name, function in named(tree)
        if len(positional(function)) > MOST
        and not is_fixed_elsewhere(name, function)
        and function.name not in given_away
    }


SOURCES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def test_from_the_third_argument_on_by_name():
    assert len(SOURCES) > 100
    assert {path: found for path, source in SOURCES.items() if (found := too_many(source))} == {}


def test_every_exception_is_needed():
    functions = [item for source in SOURCES.values() for item in named(ast.parse(source))]
    long = [(name, positional(function)) for name, function in functions if len(positional(function)) > MOST]
    assert NAMES.keys() - {name for name, _ in long} == set()
    assert SIGNATURES.keys() - {names for _, names in long} == set()


@pytest.mark.parametrize(
    "source, found",
    {
        "def f(a, b, c): ...": ["f"],
        "def f(a, /, b, c=1): ...": ["f"],
        "async def f(a, b, c, *, d): ...": ["f"],
        "def f(a, b, *, c, d): ...": [],
        "def f(a, b, *rest, **others): ...": [],
        "class A:\n    def f(self, a, b, c): ...": ["A.f"],
        "class A:\n    def f(self, a, b): ...": [],
        "def f(a):\n    def g(a, b, c): ...\n    g(a, a, a)": ["g"],
        "def f(query, key, value): ...": [],
        "def f(query, key, value, mask): ...": ["f"],
        "def f(a, b, c): ...\nmap(f, [1])": [],
        "def f(a, b, c): ...\nmap(f, [1])\nf(1, 2, 3)": [],
        "def f(a, b, c): ...\nf(1, 2, 3)": ["f"],
        "def f(a, b, c): ...\nfunctools.partial(f, 1, 2)": ["f"],
        "def f(a, b, c): ...\nfor f in [1]: print(f)": ["f"],
        "class A(Module):\n    def forward(self, a, b, c): ...": [],
        "class A:\n    @register_to_config\n    def __init__(self, a, b, c): ...": [],
        "class A:\n    def __init__(self, a, b, c): ...": ["A.__init__"],
        "class A:\n    def step(self, a, b, c): ...": ["A.step"],
    }.items(),
)
def test_what_counts(source, found):
    assert list(too_many(source)) == found
