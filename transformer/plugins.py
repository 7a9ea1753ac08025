"""Own models without a fork: modules that add rows to the registries when they are imported.

A config names them, `plugins=("my_module",)`. A module may add a row to any table of the project (POSITIONS, FAMILIES,
TASKS, SOURCES, TOKENIZERS, SCHEDULES, ...), and its rows may read keys of their own: a row that is given a part of the
config finds them in that part's `extra`, as `config.extra["my_key"]`. Encodings and families are given `model`, sources
`data`, tasks the whole config; so the keys are called `model.extra.my_key`, `data.extra.my_key` and `extra.my_key`.

A plugin is code. It is imported where a person names it: in the config of a training, with --plugins, or with
`load_run(..., plugins=...)`. A stored run that names one imports nothing by itself.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path

from transformer.config import Config
from transformer.errors import UserError


def load_plugins(names: Sequence[str]) -> None:
    """Imports the modules. UserError: one cannot be imported."""
    if isinstance(names, str):
        raise UserError(f"plugins={names!r} is a text, not a tuple of names: write ({names!r},)")
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(
                f"plugin {name!r} is no name of a module: write my_module for my_module.py, and ('a', 'b') for two"
            )
        try:
            importlib.import_module(name)
        except UserError:
            raise
        except Exception as error:  # a module can raise anything
            missing = isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}.")
            way = "put its folder on PYTHONPATH" if missing else "mend it"
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"plugin {name!r} cannot be imported ({reason}): {way}") from error


def check_named(config: Config, named: Sequence[str], workdir: str | Path, train: bool = False) -> None:
    """UserError: the config of the run in `workdir` names a plugin that its user has not named. The sentence says where
    to name it, which is elsewhere for those who `train`."""
    if missing := [name for name in config.plugins if name not in named]:
        way = f"--plugins={','.join(config.plugins)} (or load_run(..., plugins={config.plugins}))"
        raise UserError(
            f"{str(workdir)!r} names the plugin {' and '.join(map(repr, missing))}, which opening a run does not "
            f"import by itself: add {'it to `plugins` of the config' if train else way}"
        )
