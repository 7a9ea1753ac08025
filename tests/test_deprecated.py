"""A deprecated call of ours is an error, and so fails the test that runs it (`filterwarnings` in pyproject.toml)."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CATEGORIES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def _function(module: str, body: str) -> Callable[..., Any]:
    """A function of a module of that name."""
    names: dict[str, Any] = {"__name__": module, "warnings": warnings}
    exec(f"def call(*arguments):\n    {body}", names)
    return names["call"]


@pytest.mark.parametrize("ours", ["transformer.training.step", "configs.gpt", "experiments.lab.plan", "tests.test_x"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("from jax.interpreters import pxla; pxla.thread_resources", "thread_resources"),
        ("from orbax.checkpoint import v1; v1.load_pytree('/nowhere')", "Use `load` instead"),
        ("import optax; optax.optimistic_adam(0.1)", "optimistic_adam"),
    ],
)
def test_what_the_libraries_take_away(ours: str, body: str, said: str) -> None:
    with pytest.raises(DeprecationWarning, match=said):
        _function(ours, body)()


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("library", ["jax._src.numpy", "flax.linen", "optax", "orbax.checkpoint._src"])
@pytest.mark.parametrize("level", [1, 2])
def test_every_kind_of_warning_wherever_it_points(category: type[Warning], library: str, level: int) -> None:
    """At the library's own line (level 1), or at ours (level 2)."""
    warn = _function(library, f"warnings.warn('soon gone', arguments[0], stacklevel={level})")
    ours = _function("transformer.model.layers", "arguments[0](arguments[1])")
    with pytest.raises(category, match="soon gone"):
        ours(warn, category)


def test_other_packages_may_warn() -> None:
    """What they call among themselves is not ours to mend."""
    warn = _function("tensorboardX.writer", "warnings.warn('soon gone', arguments[0], stacklevel=1)")
    with pytest.warns(DeprecationWarning, match="soon gone"):
        warn(DeprecationWarning)


def test_no_file_uses_the_first_interface_of_orbax() -> None:
    """Its deprecations are lines in a log, which no filter sees."""
    wrong = [
        str(path.relative_to(ROOT))
        for folder in ("transformer", "experiments", "configs")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(import orbax|from orbax)(?!\.checkpoint import v1\b)", path.read_text(), re.MULTILINE)
    ]
    assert wrong == []
