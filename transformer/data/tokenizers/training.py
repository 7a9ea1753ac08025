"""The tokenizer of a run: trained on its source, or read from files, pretrained ones as they are. It learns from the
training split only, and both languages of a pair share one vocabulary, since the model ties source, target and output
embedding."""

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from transformer.config import DataConfig
from transformer.data import tokenizers
from transformer.data.caching import Key, cache_root, cached
from transformer.data.sources.source import Source
from transformer.data.tokenizers import MASK, PRETRAINED, TOKENIZERS, Tokenizer, kind_class, pretrained, sample
from transformer.data.tokenizers.sample import texts_of
from transformer.errors import UserError

logger = logging.getLogger(__name__)


def code() -> tuple[ModuleType, ...]:
    """The code that determines the tokens of a text: every file of a kind of tokenizer, those of plugins included."""
    kinds = {kind.__module__ for kind in TOKENIZERS.values()}
    return (tokenizers, pretrained, *(sys.modules[name] for name in sorted(kinds)))


def load_or_train(
    source: Source, data: DataConfig, fields: Sequence[str] | None = None, extra: Sequence[str] = ()
) -> Tokenizer:
    """The tokenizer `data.tokenizer`, trained on the training split and cached, or read if it is a path (`is_path`): a
    .json file, written by `transformer.tokenize` or pretrained, or what else `read` takes.

    `fields` are the text fields to train on, by default those of `data.source` and `data.target` (a language model's
    source names none). `extra` are special tokens to reserve: MASK, `holes(n)`. UserError: a vocabulary too small, a
    field that the source does not have, no such kind of tokenizer.
    """
    if is_path(data.tokenizer):
        return _ready(data.tokenizer, extra)
    kind_class(data.tokenizer)
    if fields is None:
        fields = source.chosen_fields(data)
    names = tuple(dict.fromkeys(source.field(name) for name in fields))
    inputs = [source.fingerprint, names, data.tokenizer, data.vocab_size, list(extra)]
    key = Key(
        cache_root(data) / "tokenizers", inputs, (*code(), sample, sys.modules[__name__]), ("tokenizers", "regex")
    )

    def make(folder: Path) -> None:
        start = time.perf_counter()
        tokenizer = Tokenizer.train(texts_of(source, names), data.vocab_size, data.tokenizer, extra)
        tokenizer.save(folder / "tokenizer.json")
        seconds = time.perf_counter() - start
        logger.info("trained a tokenizer of %d pieces in %.1f s", tokenizer.vocab_size, seconds)

    return Tokenizer.load(cached(key, make) / "tokenizer.json")


def is_path(name: str) -> bool:
    """Whether `data.tokenizer` names a file or a folder, and no row of TOKENIZERS."""
    path = Path(name)
    return name not in TOKENIZERS and (path.suffix in (".json", ".txt") or len(path.parts) > 1 or path.exists())


def read(path: Path) -> Tokenizer:
    """The tokenizer in a file or a folder: a tokenizer.json, ours or pretrained, or BERT's vocab.txt. UserError: there
    is none."""
    if path.is_dir():
        names = [name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        if not names:
            raise UserError(
                f"{path} holds neither tokenizer.json nor vocab.txt: save its tokenizer as tokenizer.json, with the "
                "`tokenizers` library or save_pretrained of its fast tokenizer."
            )
        path = path / names[0]
    if path.suffix != ".txt":
        return Tokenizer.load(path)
    return Tokenizer.from_vocab_txt(path, **pretrained.bert_options(pretrained.read_settings(path.parent)))


def _ready(path: str, extra: Sequence[str]) -> Tokenizer:
    tokenizer = read(Path(path).expanduser())
    if missing := [name for name in extra if name not in tokenizer.specials]:
        if tokenizer.kind != PRETRAINED:
            way = "train it again with that piece (--mask, --holes)"
        elif missing[0] == MASK:
            way = "name its mask_token in tokenizer_config.json beside it"
        else:
            way = f"it ends before <extra_id_{len(tokenizer.hole_ids)}>, so lower data.max_len or data.corruption"
        raise UserError(f"data.tokenizer={path} has no {missing[0]}, which the task needs: {way}.")
    return tokenizer
