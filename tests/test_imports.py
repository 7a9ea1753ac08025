"""Arrows go one way only: who may import whom, read from the syntax tree of every module of `transformer/`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "transformer"

# Room -> what it may import of transformer, itself aside; every room may read config and raise errors. A module of
# transformer/ itself that is not listed is a verb, and may import everything but configs, experiments and notebooks.
MAY_IMPORT = {
    "errors": (),
    "config": (),
    "platforms": (),
    "model": ("platforms",),
    "data": (),
    "training": ("platforms",),
    "decoding": (),
    "analysis": ("model",),
    # The loss of a task is a pure function of training/losses.py; all else of training/ is for the verbs.
    "tasks": ("model", "data", "training.losses"),
    "evaluation": ("tasks", "data", "generate", "evaluate"),
}
NEVER = ("configs", "experiments", "notebooks", "tests")
# TFDS datasets are read without TensorFlow; PyTorch is only ever compared with, in tests.
NOT_DEPENDENCIES = ("tensorflow", "torch")


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


def forbidden(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """The imports of `module` that go against the arrows."""
    names = sorted(set(imported(source, module, is_package=is_package)))
    wrong = [name for name in names if name.split(".")[0] in NEVER]
    room = module.removeprefix("transformer").strip(".").split(".")[0]
    if room in MAY_IMPORT:
        allowed = [f"transformer.{name}" for name in (room, "config", "errors", *MAY_IMPORT[room])]
        wrong += [
            name
            for name in names
            if _within(name, "transformer") and not any(_within(name, target) for target in allowed)
        ]
    return wrong


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


@pytest.mark.parametrize("module", MODULES)
def test_arrows_go_one_way(module: str) -> None:
    path = MODULES[module]
    wrong = forbidden(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    assert not wrong, f"{module} must not import {', '.join(wrong)}"


@pytest.mark.parametrize("path", [*MODULES.values(), *sorted((ROOT / "experiments").rglob("*.py"))], ids=str)
def test_no_other_framework(path: Path) -> None:
    names = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"), "none.none")}
    # Of the `bench` extra, and left out where it is not installed.
    compared = {"torch"} if path.name in ("attention_cost.py", "decoding_cost.py") else set()
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
    ],
)
def test_a_right_arrow_passes(module: str, source: str) -> None:
    assert not forbidden(source, module)
