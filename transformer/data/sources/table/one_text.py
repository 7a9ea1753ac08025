"""Text files as one long text, prepared as a store in constant memory."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from transformer.config import DataConfig
from transformer.data import store as store_module
from transformer.data.caching import Key, cache_root, cached
from transformer.data.sources import files
from transformer.data.sources.files import is_json, refuse_json, text_of
from transformer.data.sources.source import Source
from transformer.data.sources.stored import from_store
from transformer.data.sources.table import splits
from transformer.data.sources.table.splits import Rule, cut, parse
from transformer.data.store import TEXT, Store, StoreWriter
from transformer.errors import UserError

logger = logging.getLogger(__name__)

FEWEST = 20  # characters
SHARES = "sizes:90%/10%"


def one_text(data: DataConfig, paths: Sequence[Path]) -> Source:
    """The text of these files, one after another, split by its characters. UserErrors: it is too short, a file cannot
    be read, or `data.split` gives no percent."""
    rule = parse(data.split or SHARES, False)
    if rule.kind != "percent":
        raise UserError(f"data.split={data.split!r} is not possible for one text: write percent, as {SHARES!r}.")
    stats = [(str(path), path.stat()) for path in paths]
    inputs = [[(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats], rule]
    code = (store_module, files, splits, sys.modules[__name__])
    key = Key(cache_root(data) / "prepared" / data.name, inputs, code)
    store = Store(cached(key, lambda folder: _write(folder, paths, rule)))
    parts = {"test": ("validation", None)} if len(rule.shares) == 2 else {}
    source = from_store(data.name, store, aliases={data.target: "text"} if data.target != "text" else {}, parts=parts)
    return source


def _write(folder: Path, paths: Sequence[Path], rule: Rule) -> None:
    for path in paths:
        refuse_json(path)
        if is_json(next(_pieces([path]), "").partition("\n")[0]):
            logger.warning("%s begins with a JSON object, and is read as it stands", path)
    size = sum(path.stat().st_size for path in paths)

    def progress(said: str) -> "tqdm[Any]":
        return tqdm(total=size, desc=said, unit="B", unit_scale=True, disable=None, leave=False)

    with progress("counting characters") as bar:
        total = sum(map(len, _pieces(paths, bar.update)))
    if total < FEWEST:
        raise UserError(f"{paths[0]} has only {total} characters: give a longer text.")
    counts, place = rule.counts(total), 0
    writer = StoreWriter(folder, {"text": TEXT}, rule.splits)
    with progress("reading text") as bar:
        for piece in _pieces(paths, bar.update):
            for split, start, stop in cut(counts, place, len(piece)):
                writer.extend(split, "text", piece[start:stop].encode())
            place += len(piece)
    for split in rule.splits:
        writer.close_value(split, "text")
    writer.close()


def _pieces(paths: Sequence[Path], told: Callable[[int], Any] | None = None) -> Iterator[str]:
    for path in paths:
        yield from text_of(path, told)
