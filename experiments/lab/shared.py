"""Runs that sweeps share: what one has trained, another does not train again.

A run is known by its key: its config, the code that trains and measures it, and how it is measured. The results of the
sweeps beside a workdir are looked at before a run is trained. The worker then compares the data's fingerprint, as it
would have opened the data anyway.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import transformer
from experiments.lab.questions import load
from experiments.lab.results import outcome
from transformer.config import Config, flatten, from_stored, is_runtime
from transformer.errors import UserError

Run = Any  # a `single.Run`, which takes what is shared here

RESULTS = ("*/runs/*/seed*/result.json", "*/tuning/*/*/seed*/result.json")
LIBRARIES = ("jax", "flax", "optax", "numpy", "tokenizers")  # whose versions count as code
LAB = ("budgets", "case_runs", "measures", "recall", "single")  # what trains or measures here
NOTE = "This run was trained as {place}, beside this sweep's folder: its checkpoints are there.\n"


def identity(config: Config) -> str:
    """What a config trains: all keys but those of how it is run, as JSON; the steps and the seed count."""
    kept = {key: value for key, value in flatten(config).items() if key == "steps" or not is_runtime(key)}
    if (named := Path(config.data.tokenizer)).suffix == ".json" and named.is_file():
        kept["data.tokenizer"] = hashlib.sha256(named.read_bytes()).hexdigest()
    return json.dumps(kept, sort_keys=True)


@functools.cache
def code() -> str:
    """A digest of all code that trains and measures, and of its libraries' versions. Comments and formatting do not
    count."""
    package, lab = Path(transformer.__file__).parent, Path(__file__).parent
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    return _digest([*sorted(package.rglob("*.py")), *(lab / f"{name}.py" for name in LAB)], *versions)


@functools.cache
def _own(experiment: str, plugins: tuple[str, ...], trial: bool) -> str:
    """A digest of what a question adds to the code: its own training or measurement, and its plugins."""
    module = load(experiment)
    own = any(hasattr(module, name) for name in ("train", "restore", "measure_case", *(() if trial else ("measure",))))
    specs = [importlib.util.find_spec(name) for name in plugins]
    files = [Path(spec.origin) for spec in specs if spec and spec.origin] + [Path(str(module.__file__))] * own
    for spec in specs:  # a plugin that is a package
        files += [p for folder in (spec and spec.submodule_search_locations) or () for p in Path(folder).rglob("*.py")]
    return _digest(sorted(set(files)))


def _digest(files: Iterable[Path], *more: str) -> str:
    digest = hashlib.sha256()
    for part in (*(ast.dump(ast.parse(path.read_bytes())) for path in files), *more):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def key(run: Run) -> str:
    """By what a run is known. Trials of a tuning are measured otherwise than whole runs."""
    own = _own(run.experiment, run.config.plugins, run.trial)
    parts = (identity(run.config), code(), own, str(run.trial), run.arguments)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def offered(runs: Sequence[Run], workdir: Path) -> list[Run]:
    """The runs, each with the folders of its `candidates`: runs of other sweeps with its key, where it has not begun.

    A line says where one was trained by other code only. Runs that begin from another's parameters are not shared, as
    those are no part of the key.
    """
    open_ = [run for run in runs if not run.config.init_from and not (run.folder / "config.json").exists()]
    places: dict[str, list[Path]] = {}
    foreign: dict[str, Path] = {}
    workdir = workdir.resolve()
    paths = [path for form in RESULTS for path in sorted(workdir.parent.glob(form))] if open_ else []
    for path in paths:
        result = None if workdir in path.parents else outcome(path.parent)[0]
        if result is None:
            continue
        if result.get("code") == code():
            places.setdefault(result["key"], []).append(path.parent)
            continue
        try:
            foreign.setdefault(identity(from_stored(result["config"])), path.parent)
        except UserError:  # a config of another version
            continue
    keys = {run.folder: key(run) for run in open_}
    trained = {run.folder: foreign.get(identity(run.config)) for run in open_ if keys[run.folder] not in places}
    if other := [folder for folder in trained.values() if folder]:
        more = f" and {len(other) - 1} more runs were" if len(other) > 1 else " was"
        _say(f"{place(other[0])}{more} trained by other code, so it is trained again")
    return [dataclasses.replace(run, candidates=tuple(places.get(keys.get(run.folder, ""), ()))) for run in runs]


@functools.cache
def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def place(folder: Path) -> str:
    """A run's folder as <sweep>/<variant>/seed<k>, or <sweep>/tuning/<variant>/<value>/seed<k>."""
    parts = folder.parts
    return "/".join(parts[-5:] if parts[-4] == "tuning" else (parts[-4], *parts[-2:]))


def take(run: Run) -> dict[str, Any] | None:
    """Copies the result of the first candidate that was trained on the same data; None: there is none."""
    for folder in run.candidates:
        found, _ = outcome(folder)
        if found is None or found["key"] != key(run) or found["fingerprint"] != fingerprint(run):
            continue
        for name in ("config.json", "data.json"):
            if (folder / name).exists():
                shutil.copyfile(folder / name, run.folder / name)
        origin = found.get("shared_from") or place(folder)
        (run.folder / "shared_from.txt").write_text(NOTE.format(place=origin), encoding="utf-8")
        own = {"variant": run.variant, "difference": run.difference, "shared_from": origin}
        return found | own
    return None


def fingerprint(run: Run) -> str | None:
    """Of the data as they are now; None of a question that trains by itself."""
    if any(hasattr(load(run.experiment), name) for name in ("train", "measure_case")):
        return None
    from transformer.data.sources import load_source

    return load_source(run.config.data).fingerprint
