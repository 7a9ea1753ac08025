"""Whether a workdir already holds this run, which keys may differ when it resumes, and the record of what changed.

config.json holds the current config. Where it differs from the previous one, changes.jsonl gets a line with the step,
both values of every key that differs and, where the schedule now gives another learning rate, both rates.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformer.config import Config, OptimizerConfig, check_key, differences, is_runtime, to_dict
from transformer.data.sources.source import SPLIT_ORDER, comparable
from transformer.data.tokenizers import Tokenizer
from transformer.data.tokenizers.training import is_path, read
from transformer.errors import UserError
from transformer.plugins import check_named
from transformer.runs import read_config
from transformer.training.events import append, replace

# Keys that --change allows: they leave the model, the batches and the shapes of the state as they are. Those of
# NEVER_EMPTY may not change from or to 0 (that adds or removes optimizer state) or "" (other initial parameters).
CHANGEABLE = ("init_from", *(f"optimizer.{field.name}" for field in dataclasses.fields(OptimizerConfig)))
NEVER_EMPTY = ("init_from", "optimizer.weight_decay", "optimizer.clip_norm", "optimizer.max_spike")
OF_FILES = ("files", "text")  # datasets whose data.source and data.target may be paths of files


def check(workdir: Path, config: Config, change: Sequence[str] = ()) -> Config | None:
    """The config of the run in the workdir; None where there is no run. Keys of `transformer.config.RUNTIME`, keys
    named by `change`, and paths of files whose content is compared may differ. UserErrors: another key differs, so that
    it is another run; `change` names a key that cannot be changed."""
    for key in change:
        if check_key(key) not in CHANGEABLE and not is_runtime(key):
            raise UserError(f"--change={key} is not possible in a run, only {', '.join(CHANGEABLE)}: train a new one")
    if not (workdir / "config.json").exists():
        return None
    old = read_config(workdir)
    check_named(old, config.plugins, workdir, train=True)
    changed = {
        key: pair
        for key, pair in differences(old, config).items()
        if not is_runtime(key) and not _only_moved(key, pair, old) and not _follows(key, pair)
    }
    possible = [key for key, pair in changed.items() if key in CHANGEABLE and (all(pair) or key not in NEVER_EMPTY)]
    if set(changed) - (set(possible) & set(change)):
        way = "choose another --workdir"
        if len(possible) == len(changed):
            way += f", or add --change={','.join(possible)} to change it on purpose"
        raise UserError(f"{str(workdir)!r} holds a run of another config ({_listed(changed)}): {way}")
    return old


def check_data(workdir: Path, config: Config, fingerprint: str) -> None:
    """UserError: the run in the workdir was trained on other data. Where an older version computed the fingerprint
    differently, a line says that they cannot be compared."""
    old = _written(workdir).get("fingerprint", fingerprint)
    if not comparable(old, fingerprint):
        said = f"whether {config.data.name!r} changed since {str(workdir)!r} was begun is not known: its fingerprint is"
        print(f"{said} of an older version", file=sys.stderr, flush=True)
    elif fingerprint != old:
        raise UserError(
            f"{str(workdir)!r} was trained on other data than {config.data.name!r} holds now (the fingerprints "
            "differ): bring back that data, or choose another --workdir"
        )


def tokenizer_of(workdir: Path, config: Config, make: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer that the run in the workdir was trained with; for a new run, the result of `make`. UserErrors: the
    tokenizer file has changed; the file that `data.tokenizer` names holds another one."""
    path, named = workdir / "tokenizer.json", Path(config.data.tokenizer)
    there = (workdir / "config.json").exists() and path.exists()
    own = Tokenizer.load(path) if there else make()
    # The file is hashed, because a later version of the library may serialise the same tokenizer differently.
    found = hashlib.sha256(path.read_bytes()).hexdigest() if there else own.fingerprint
    if found != _written(workdir).get("tokenizer", found):
        raise UserError(
            f"{str(workdir)!r} was trained with another tokenizer than {str(path) if there else 'its data'!r} gives "
            "now: bring that one back, or choose another --workdir"
        )
    ready = there and is_path(config.data.tokenizer) and named.exists() and not config.init_from
    if ready and read(named).fingerprint != own.fingerprint:
        raise UserError(
            f"data.tokenizer={config.data.tokenizer} holds another tokenizer than {str(workdir)!r} was trained with: "
            f"name {str(path)!r}, or choose another --workdir"
        )
    return own


def claim(
    workdir: Path, config: Config, data: dict[str, Any], old: Config | None, step: int, rates: tuple[float, float]
) -> str | None:
    """Writes config.json, data.json and what changed since `old` (the result of `check`); returns a message to show.
    `rates`: the learning rates of update `step` by the old and by the new schedule. UserError: writing fails."""
    changed = differences(old, config) if old else {}
    moved = {"learning_rate": rates} if rates[0] != rates[1] else {}
    try:
        if changed:
            line = json.dumps({"step": step, "changed": changed} | moved)
            append(workdir / "changes.jsonl", f"{line}\n".encode())
        written = _written(workdir)
        now = data.get("shapes", [])
        reordered = bool(now) and _shapes(written.get("shapes", now)) != _shapes(now)
        data = data | written  # values recorded at the start of the run are kept
        for name, content in (("data.json", json.dumps(data)), ("config.json", json.dumps(to_dict(config), indent=2))):
            replace(workdir / name, f"{content}\n".encode())
    except OSError as error:
        raise UserError(f"cannot write to --workdir={str(workdir)!r}: {error.strerror}") from error
    said = []
    if reordered:
        said.append(
            f"an earlier version formed other batches of these examples: from step {step} on they come in another order"
        )
    told = {key: pair for key, pair in changed.items() if not is_runtime(key) or (key == "steps" and moved)}
    if told and moved:
        way = "up" if rates[1] > rates[0] else "down"
        said.append(
            f"{_listed(told)}: the learning rate at step {step} goes {way} from {rates[0]:.4g} to {rates[1]:.4g}"
        )
    elif told:
        said.append(f"{_listed(told)}, from step {step} on")
    return "; ".join(said) or None


def _shapes(shapes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Shapes of batches, each (rows, width of each side); a width that all sides share is written once, as an earlier
    version did."""
    return sorted((rows, *(dict.fromkeys(widths) if len(set(widths)) == 1 else widths)) for rows, *widths in shapes)


def _only_moved(key: str, pair: tuple[Any, Any], old: Config) -> bool:
    """Whether both values are paths of files whose content is compared by the fingerprint of the data or the
    tokenizer."""
    if key == "data.tokenizer":
        return all(map(is_path, pair)) and Path(pair[1]).exists()
    if key in ("data.files", "data.mix"):
        part = _split if key == "data.files" else _weight
        return all(pair) and list(map(part, pair[0])) == list(map(part, pair[1]))
    return key in ("data.source", "data.target") and old.data.name in OF_FILES and all(pair)


def _weight(entry: str) -> str:
    return entry.rpartition("=")[2]


def _split(entry: str) -> str:
    return entry.partition("=")[0] if entry.partition("=")[0] in SPLIT_ORDER else ""


def _follows(key: str, pair: tuple[Any, Any]) -> bool:
    """Whether a key is left to the data, whose fingerprint is compared: the number of classes."""
    return key == "model.num_classes" and not pair[1]


def _written(workdir: Path) -> dict[str, Any]:
    """The content of data.json of the run in the workdir; empty where there is no run."""
    path = workdir / "data.json"
    return json.loads(path.read_text()) if path.exists() and (workdir / "config.json").exists() else {}


def _listed(changed: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{key} was {old!r} and is now {new!r}" for key, (old, new) in changed.items())
