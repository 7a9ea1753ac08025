"""Arrows go one way only: who may import whom, and no circle, read from the syntax tree of every module. And what a
command has imported when it begins, and when it has run."""

import ast
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Room -> what it may import of transformer, itself aside; every room may read config and raise errors. The longest name
# that fits a module is its room, and what is allowed is a room or a part of one. A module of transformer/ itself that
# is not listed is a verb: it may import every room, and no other verb.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": (),
    "paths": (),
    "checks": (),
    "config": ("paths", "checks"),
    "plugins": (),
    "platforms": (),
    "model": ("platforms",),
    "data": (),
    # Machines: data sheets and programs know neither models nor training; only what compiles a step does.
    "accelerators": (),
    "accelerators.compiling": ("accelerators", "tasks", "training"),
    "accelerators.report": ("accelerators",),
    "training": ("platforms", "accelerators.sheets"),
    "data.caching": (),
    "data.sorting": (),
    "data.store": (),
    "data.builder": ("data.caching", "data.sorting"),
    "data.tokenizers": ("data.caching", "data.store", "data.sources"),
    "data.sources": ("data.caching", "data.preparing", "data.store", "data.builder", "data.builtin"),
    "data.builtin": ("data.builder",),
    "data.preparing": ("data.caching",),
    "data.batches": ("data.caching", "data.preparing", "data.store", "data.sources", "data.tokenizers"),
    "decoding": (),
    "analysis": ("model",),
    # The loss of a task is a pure function of training/losses.py; all else of training/ is for those that run it.
    "tasks": ("model", "data", "training.losses"),
    # What uses a task with its parameters in memory, and knows no disk.
    "writing": ("tasks", "model", "decoding", "analysis.alignment", "training.sharding"),
    "predicting": ("writing", "tasks", "data", "paths", "training.sharding"),
    "evaluation": ("writing", "tasks", "data", "training.sharding", "training.step"),
    "reading": ("writing", "tasks", "model", "data.tokenizers", "analysis.attention"),
    "runs": (
        "paths",
        "plugins",
        "evaluation",
        "predicting",
        "writing",
        "reading",
        "tasks",
        "model",
        "data",
        "training",
        "analysis",
    ),
    "beginning": ("runs", "tasks", "model", "data.tokenizers", "training.sharding", "plugins"),
    "": ("runs",),
    "command_line": ("runs", "paths", "plugins", "data.caching"),
}
VERBS = ("train", "evaluate", "generate", "predict", "describe", "heads", "convert", "tokenize")
NEVER = ("configs", "experiments", "notebooks", "tests")
# Groups of modules that import each other in a circle, and have to be parted: none may be added.
CIRCLES: tuple[frozenset[str], ...] = ()
# TFDS datasets are read without TensorFlow; PyTorch is only ever compared with, in tests.
NOT_DEPENDENCIES = ("tensorflow", "torch")
# Packages that no command needs, even where they are installed; those that only runs need, which are trained or read;
# those that no command needs before its flags are read, so that a mistake on the command line is told at once.
NEVER_NEEDED = (*NOT_DEPENDENCIES, "transformers", "matplotlib", "pandas", "scipy", "sklearn", "IPython", "pytest")
OF_RUNS = ("orbax", "optax", "tensorboardX")
OF_MODELS = ("jax", "flax", "tensorflow_datasets", "tokenizers", "PIL")


def imported(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Dotted names that the source of `module` imports, at whatever depth of the code, relative ones made absolute.

    `from a import b` gives `a.b`, whether b is a module or a name in one.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parent = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield from (f"{parent}.{alias.name}" for alias in node.names)


def _within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def room_of(module: str) -> str:
    """The row of MAY_IMPORT that holds for a module of transformer, or the name of a verb."""
    name = module.removeprefix("transformer").strip(".")
    return max((room for room in MAY_IMPORT if room and _within(name, room)), key=len, default=name)


def forbidden(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """The imports of `module` that go against the arrows."""
    names = sorted(set(imported(source, module, is_package=is_package)))
    wrong = [name for name in names if name.split(".")[0] in NEVER]
    room = room_of(module)
    ours = [name for name in names if _within(name, "transformer")]
    if room in MAY_IMPORT:
        rooms = (room, "config", "errors", *MAY_IMPORT[room])
        allowed = [f"transformer.{name}" for name in rooms if name]
        return wrong + [name for name in ours if not any(_within(name, target) for target in allowed)]
    others = [f"transformer.{verb}" for verb in VERBS if verb != room]
    return wrong + [name for name in ours if any(_within(name, verb) for verb in others)]


def _modules(folder: str) -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules("transformer")
EXPERIMENTS = _modules("experiments")


def graph(sources: Mapping[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Module -> the modules that it imports, at whatever depth of the code; `sources`: module -> its text, and whether
    it is a package. A package counts where a name is imported that its own __init__ defines, not on the way to a module
    in it."""

    def defining(name: str) -> str:
        while name and name not in sources:
            name = name.rpartition(".")[0]
        return name

    return {
        module: {defining(name) for name in imported(text, module, is_package=package)} & sources.keys() - {module}
        for module, (text, package) in sources.items()
    }


def circles(edges: Mapping[str, set[str]]) -> list[frozenset[str]]:
    """The largest groups of modules in which each reaches every other."""

    def reached(start: str) -> set[str]:
        seen, ahead = set[str](), [start]
        while ahead:
            new = edges[ahead.pop()] - seen
            seen |= new
            ahead += new
        return seen

    reach = {module: reached(module) for module in edges}
    groups = {frozenset(other for other in reach[module] if module in reach[other]) for module in edges}
    return sorted(groups - {frozenset()}, key=sorted)


@pytest.mark.parametrize("module", MODULES)
def test_arrows_go_one_way(module: str) -> None:
    path = MODULES[module]
    wrong = forbidden(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    assert not wrong, f"{module} must not import {', '.join(wrong)}"


def test_no_circle() -> None:
    texts = {
        module: (path.read_text(encoding="utf-8"), path.name == "__init__.py")
        for module, path in (MODULES | EXPERIMENTS).items()
    }
    found = [sorted(group) for group in circles(graph(texts)) if not any(group <= known for known in CIRCLES)]
    assert not found, "these import each other: give what both need to a module of its own"


def test_a_circle_is_seen() -> None:
    """In a function, under TYPE_CHECKING, by a relative name, through a third module; a package on the way is none."""
    sources = {
        "p": ("from p.sub import leaf\nname = 1", True),
        "p.a": ("def f():\n    from p import b", False),
        "p.b": ("if TYPE_CHECKING:\n    from . import c", False),
        "p.c": ("import p.a as other", False),
        "p.sub": ("", True),
        "p.sub.leaf": ("from p.sub import other\nfrom p import a", False),
        "p.sub.other": ("import json", False),
    }
    assert graph(sources)["p.sub.leaf"] == {"p.sub.other", "p.a"}
    assert circles(graph(sources)) == [frozenset({"p.a", "p.b", "p.c"})]
    sources["p.sub.other"] = ("from p import name", False)
    assert frozenset({"p", "p.sub.leaf", "p.sub.other"}) in circles(graph(sources))


@pytest.mark.parametrize(
    ("argv", "never", "recorded"),
    [
        pytest.param([], NEVER_NEEDED + OF_RUNS + OF_MODELS, 332, id="all verbs, imported"),
        pytest.param(["describe", "--help"], NEVER_NEEDED + OF_RUNS + OF_MODELS, 328, id="describe --help"),
        pytest.param(
            ["describe", "--config=configs/quantities.py"],
            (*NEVER_NEEDED, *OF_RUNS, "babel", "num2words"),
            1292,
            id="describe",
        ),
    ],
)
def test_what_a_command_imports(argv: list[str], never: tuple[str, ...], recorded: int) -> None:
    """Named packages, and the number of modules, those of Python's library included: 5 % above the number that JAX 0.10
    and Python 3.11 gave is allowed. A command that needs more has a new number, with the reason in the commit."""
    code = f"""
        import atexit, json, runpy, sys
        atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
        argv = {argv!r}
        if argv:
            sys.argv = argv
            runpy.run_module(f"transformer.{{argv[0]}}", run_name="__main__", alter_sys=True)
        for verb in () if argv else {VERBS!r}:
            __import__(f"transformer.{{verb}}")
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == ("--help" in argv), ended.stderr  # absl's exit code of a help
    modules = json.loads(ended.stderr.splitlines()[-1])
    assert not {name.split(".")[0] for name in modules} & set(never)
    assert len(modules) <= 1.05 * recorded


@pytest.mark.parametrize("path", [*MODULES.values(), *EXPERIMENTS.values()], ids=str)
def test_no_other_framework(path: Path) -> None:
    names = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"), "none.none")}
    # Of the `bench` extra, and left out where it is not installed.
    compared = {"torch"} if path.name in ("attention_cost.py", "decoding_cost.py", "torch_loop.py") else set()
    assert not names & set(NOT_DEPENDENCIES) - compared


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("transformer.model.layers", "from transformer.data.batches import base", "transformer.data.batches.base"),
        ("transformer.model.layers", "from transformer import data", "transformer.data"),
        (
            "transformer.model.layers",
            "from ..data.batches.base import batches",
            "transformer.data.batches.base.batches",
        ),
        ("transformer.model.layers", "from .. import tasks", "transformer.tasks"),
        ("transformer.data.sources", "import transformer.model.masks", "transformer.model.masks"),
        (
            "transformer.training.loop",
            "def f():\n    from transformer.model import families",
            "transformer.model.families",
        ),
        ("transformer.decoding.beam", "import transformer.model.cache as kv", "transformer.model.cache"),
        ("transformer.analysis.maps", "import transformer.training.loop", "transformer.training.loop"),
        ("transformer.tasks", "from transformer.training import loop", "transformer.training.loop"),
        ("transformer.config", "import transformer.tasks", "transformer.tasks"),
        ("transformer.train", "from configs import quantities", "configs.quantities"),
        ("transformer.train", "from transformer.generate import main", "transformer.generate.main"),
        ("transformer.runs", "from transformer import train", "transformer.train"),
        ("transformer.evaluation.splits", "from transformer.runs import load_run", "transformer.runs.load_run"),
        ("transformer.writing.lines", "if T:\n    from transformer.runs import Run", "transformer.runs.Run"),
        ("transformer.data.sources.images", "import transformer.data.batches.base", "transformer.data.batches.base"),
        ("transformer.data.tokenizers", "import transformer.data.builtin", "transformer.data.builtin"),
    ],
)
def test_a_wrong_arrow_is_seen(module: str, source: str, wrong: str) -> None:
    assert wrong in forbidden(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("transformer.model.layers", "from transformer.errors import UserError\nfrom .attention import attend"),
        ("transformer.model.layers", "from transformer import config\nfrom transformer.model import cache"),
        ("transformer.analysis.maps", "from transformer.model import families"),
        ("transformer.tasks", "from transformer.training import losses\nfrom transformer.data import pipeline"),
        ("transformer.tasks", "from transformer.training.losses import cross_entropy"),
        ("transformer.train", "from transformer import tasks\nfrom transformer.training import loop"),
        ("transformer.evaluate", "from transformer import command_line\nfrom transformer.runs import load_run"),
        ("transformer.evaluation.splits", "from transformer.writing import lines\nfrom transformer import tasks"),
        ("transformer.data.sources.text_files", "from transformer.data.builder import of_records"),
    ],
)
def test_a_right_arrow_passes(module: str, source: str) -> None:
    assert not forbidden(source, module)
