"""The tokenizer of a run: trained on its source, or loaded from a file. It learns from the training split only, and
both languages of a pair share one vocabulary, since the model ties source, target and output embedding."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from transformer.config import DataConfig
from transformer.data import tokenizers
from transformer.data.caching import Key, cache_root, cached
from transformer.data.sources.source import Source
from transformer.data.tokenizers import SPECIALS, TOKENIZERS, Tokenizer, kind_class
from transformer.errors import UserError

logger = logging.getLogger(__name__)

# For larger corpora, an evenly spaced sample is as good.
MAX_TRAINING_EXAMPLES = 1_000_000


def code() -> tuple[ModuleType, ...]:
    """The code that determines the tokens of a text: every file of a kind of tokenizer, those of plugins included."""
    return (tokenizers, *(sys.modules[name] for name in sorted({kind.__module__ for kind in TOKENIZERS.values()})))


def load_or_train(
    source: Source, data: DataConfig, fields: Sequence[str] | None = None, extra: Sequence[str] = ()
) -> Tokenizer:
    """The tokenizer `data.tokenizer`, trained on the training split and cached, or loaded if it is the path of a .json
    file (written by `transformer.tokenize`).

    `fields` are the text fields to train on, by default those of `data.source` and `data.target` (a language model's
    source names none). `extra` are special tokens to reserve: MASK, `holes(n)`. UserError: a vocabulary too small, a
    field that the source does not have, no such kind of tokenizer.
    """
    if data.tokenizer.endswith(".json"):
        return _ready(data.tokenizer, extra)
    kind_class(data.tokenizer)
    if fields is None:
        fields = source.chosen_fields(data)
    names = tuple(dict.fromkeys(source.field(name) for name in fields))
    inputs = [source.fingerprint, names, data.tokenizer, data.vocab_size, list(extra)]
    key = Key(cache_root(data) / "tokenizers", inputs, (*code(), sys.modules[__name__]), ("tokenizers", "regex"))

    def make(folder: Path) -> None:
        start = time.perf_counter()
        tokenizer = Tokenizer.train(_texts(source, names), data.vocab_size, data.tokenizer, extra)
        tokenizer.save(folder / "tokenizer.json")
        seconds = time.perf_counter() - start
        logger.info("trained a tokenizer of %d pieces in %.1f s", tokenizer.vocab_size, seconds)

    return Tokenizer.load(cached(key, make) / "tokenizer.json")


def _ready(path: str, extra: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer.load(Path(path).expanduser())
    if [tokenizer.specials[name] for name in SPECIALS] != [Tokenizer.pad_id, Tokenizer.bos_id, Tokenizer.eos_id]:
        raise UserError(
            f"data.tokenizer={path} has the ids of a pretrained model: train one with transformer.tokenize."
        )
    missing = [name for name in extra if name not in tokenizer.specials]
    if missing:
        raise UserError(
            f"data.tokenizer={path} has no {missing[0]}, which the task needs: train it again with that piece "
            "(--mask, --holes)."
        )
    return tokenizer


def _texts(source: Source, fields: Sequence[str]) -> Iterator[str]:
    examples = source.split("train")
    stride = -(-len(examples) // MAX_TRAINING_EXAMPLES)
    for index in range(0, len(examples), max(stride, 1)):
        example = examples[index]
        for field in fields:
            yield example[field]
