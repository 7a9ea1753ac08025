"""Experiments as files: found by name, checked, and turned into one configuration a variant."""

import argparse
import ast
import dataclasses
import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.lab.measures import describe, main_metrics
from transformer.config import Config, check_key, differences, load_file, override
from transformer.errors import UserError
from transformer.paths import expanded, local
from transformer.plugins import load_plugins

FOLDER = Path(__file__).parent.parent  # of the questions


def available() -> list[str]:
    """The experiments of this folder: its files with `variants()` or `cases()`."""
    form = re.compile(r"^def (variants|cases)\(", re.M)
    return sorted(path.stem for path in FOLDER.glob("*.py") if form.search(path.read_text("utf-8")))


def load(name: str) -> ModuleType:
    """The experiment of a name, or of a path that ends in .py, whose folder may hold its PLUGINS, which are imported.
    UserError: there is none."""
    if name.endswith(".py"):
        path = local(name, "the experiment")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise UserError(f"there is no experiment file {name!r}: choose one of {', '.join(available())}")
        module = importlib.util.module_from_spec(spec)
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a file of Python can raise anything
            reason = " ".join(str(error).split())
            raise UserError(f"{str(path)!r} cannot be run: {type(error).__name__}: {reason}") from error
    else:
        names = available()
        if name not in names:
            raise UserError(f"there is no experiment {name!r}: {nearest(name, names)}")
        module = importlib.import_module(f"experiments.{name}")
    parts: tuple[str, ...] = ("variants", "BASE", "REFERENCE", "PRIMARY", "MATTERS")
    if hasattr(module, "cases"):  # with seeds, or without
        parts = ("measure_case", *(("config", "PRIMARY", "MATTERS") if hasattr(module, "REFERENCE") else ("findings",)))
    missing = [part for part in parts if not hasattr(module, part)]
    if missing:
        raise UserError(f"experiment {name!r} has no {', '.join(missing)}: see experiments/README.md for the form")
    if hasattr(module, "MATTERS") and not module.MATTERS > 0:
        raise UserError(f"experiment {name!r} has MATTERS = {module.MATTERS!r}: name the smallest effect that matters")
    if not (module.__doc__ or "").strip():
        raise UserError(f"experiment {name!r} has no docstring: it states the question and the hypothesis")
    load_plugins(getattr(module, "PLUGINS", ()))
    return module


def with_plugins(module: ModuleType, base: Config) -> Config:
    """The base with the question's PLUGINS, all imported. UserError: one cannot be."""
    base = override(base, {"plugins": [*dict.fromkeys((*base.plugins, *getattr(module, "PLUGINS", ())))]})
    load_plugins(base.plugins)
    return base


# What a base has no use for: variants that differ in nothing else would be the same model.
ATTENTION_ONLY = {
    f"model.{key}"
    for key in ("attention", "positions", "num_heads", "num_kv_heads", "head_dim", "value_dim", "scale_attention",
                "attention_bias", "d_ff", "activation", "gated", "feed_forward_bias", "norm", "norm_type")
}  # fmt: skip
RECURRENT_ONLY = {"model.cell", "model.recurrent_attention"}
TEXT_ONLY = {"data.tokenizer", "data.vocab_size"}
NO_TEXT = ("image_classification", "speech_classification", "forecasting")
NO_OUTPUT_TABLE = (*NO_TEXT, "text_classification")


def lacking(config: Config) -> set[str]:
    """The keys that mean nothing to a config's model and task, of those that experiments vary."""
    without = set(ATTENTION_ONLY if config.model.family.startswith("recurrent") else RECURRENT_ONLY)
    if config.task in NO_TEXT:
        without |= TEXT_ONLY
    if config.task in NO_OUTPUT_TABLE:
        without |= {"model.tied"}
    if config.task == "forecasting":
        without |= {"label_smoothing"}
    return without


def nearest(name: str, names: Sequence[str]) -> str:
    """The end of a message about a name that is none of `names`."""
    near = difflib.get_close_matches(name, names, 1)
    return f"{f'did you mean {near[0]!r}? There are: ' if near else 'choose one of: '}{', '.join(names)}"


def build(module: ModuleType, base: Config) -> dict[str, Config]:
    """Variant -> its configuration.

    Raises:
        UserError: an unknown key, an impossible value, a key that this base has no use for, a name that is no folder's.
    """
    base = with_plugins(module, base)
    variants = module.variants(base)
    for name in variants:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise UserError(f"variant {name!r} cannot name a folder: use letters, digits, '-', '_', '+' and '.'")
    if module.REFERENCE not in variants:
        raise UserError(f"REFERENCE is {module.REFERENCE!r}, which is no variant: choose one of {', '.join(variants)}")
    configs = {name: override(base, changes) for name, changes in variants.items()}
    for name, config in configs.items():
        changed = set(differences(configs[module.REFERENCE], config))
        if changed and changed <= lacking(config):
            raise UserError(
                f"variant {name!r} differs in {', '.join(sorted(changed))}, which means nothing to a model of family "
                f"{config.model.family!r} for {config.task}: choose another --base"
            )
    return configs


@dataclasses.dataclass(frozen=True)
class Question:
    """What a sweep asks: its variants and their configs, what the base was made of, and what is judged."""

    base: Config
    origin: str
    settings: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    configs: dict[str, Config]
    reference: str
    primary: str
    matters: float
    metrics: list[str]


def asked(module: ModuleType, arguments: argparse.Namespace) -> Question:
    """The question of an experiment with variants, for the base of a command line.

    Raises:
        UserError: as of `build`; or the primary metric is none that this base measures.
    """
    origin = expanded(arguments.base or module.BASE, "--base")
    base = load_file(FOLDER.parent / origin if not Path(origin).exists() else origin)
    settings = dict(getattr(module, "SETTINGS", {}) if arguments.base is None else {})
    settings |= dict(parse_setting(text) for text in arguments.set)
    if arguments.steps is not None:
        settings["steps"] = arguments.steps
    base = override(with_plugins(module, base), settings)
    primary, matters = arguments.primary or module.PRIMARY, arguments.matters or module.MATTERS
    if (arguments.primary is None) != (arguments.matters is None):
        raise UserError(
            "--primary METRIC and --matters SIZE belong together: what is judged, and how much of it matters"
        )
    usual = main_metrics(base)
    metrics = getattr(module, "MAIN_METRICS", None) or usual
    own = [*metrics, *usual] if not hasattr(module, "measure") or arguments.primary else [*metrics, *usual, primary]
    if primary not in own or describe(primary).better == 0:
        raise UserError(
            f"{primary!r} cannot be judged on {origin!r}: name what is, and how much of it matters, such as "
            f"--primary {usual[0]} --matters {0.5 if describe(usual[0]).noise == 'hundred' else 0.01}"
        )
    return Question(
        base,
        origin,
        settings,
        module.variants(base),
        build(module, base),
        module.REFERENCE,
        primary,
        matters,
        list(metrics),
    )


def parse_setting(text: str) -> tuple[str, Any]:
    """'model.d_model=64' -> ("model.d_model", 64); what is no Python literal is a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set {text!r} has no value: write --set KEY=VALUE, such as --set model.d_model=64")
    return check_key(key), literal(value)


def literal(text: str) -> Any:
    """The value of a Python literal; of what is none, the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
