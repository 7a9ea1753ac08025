"""Experiments as files: found by name, checked, and turned into one configuration a variant."""

import ast
import difflib
import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from transformer.config import Config, UserError, check_key, override

FOLDER = Path(__file__).parent


def available() -> list[str]:
    """The experiments of this folder: its files with `variants()` or `cases()`."""
    form = re.compile(r"^def (variants|cases)\(", re.M)
    return sorted(path.stem for path in FOLDER.glob("*.py") if form.search(path.read_text("utf-8")))


def load(name: str) -> ModuleType:
    """The experiment of a name, or of a path that ends in .py. UserError: there is none."""
    if name.endswith(".py"):
        path = Path(name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise UserError(f"there is no experiment file {name!r}: choose one of {', '.join(available())}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        names = available()
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}? There are: " if near else "choose one of: "
            raise UserError(f"there is no experiment {name!r}: {hint}{', '.join(names)}")
        module = importlib.import_module(f"experiments.{name}")
    parts = ("cases", "measure_case", "findings") if hasattr(module, "cases") else ("variants", "BASE", "REFERENCE")
    missing = [part for part in parts if not hasattr(module, part)]
    if missing:
        raise UserError(f"experiment {name!r} has no {', '.join(missing)}: see experiments/README.md for the form")
    if not (module.__doc__ or "").strip():
        raise UserError(f"experiment {name!r} has no docstring: it states the question and the hypothesis")
    return module


def build(module: ModuleType, base: Config) -> dict[str, Config]:
    """Variant -> its configuration. UserError: an unknown key, an impossible value, a name that is no folder's."""
    variants = module.variants(base)
    for name in variants:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(f"variant {name!r} cannot name a folder: use letters, digits, '-', '_', '+' and '.'")
    if module.REFERENCE not in variants:
        raise UserError(f"REFERENCE is {module.REFERENCE!r}, which is no variant: choose one of {', '.join(variants)}")
    return {name: override(base, changes) for name, changes in variants.items()}


def parse_setting(text: str) -> tuple[str, Any]:
    """'model.d_model=64' -> ("model.d_model", 64); what is no Python literal is a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text!r} has no value: write --set KEY=VALUE, such as --set model.d_model=64")
    check_key(key)
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
