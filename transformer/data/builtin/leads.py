"""Leads: from a passage of a docstring to its first sentence, to pretrain a summariser (`init_from`).

The first sentence is a summary's usual baseline ("lead"), and a model of a few thousand summaries does not learn to
copy it. Every sentence of 3 to 40 words of every docstring gives a pair: the docstring from there on, cut after
`MAX_CHARACTERS`, and that sentence. The splits are the packages of docstrings.py.
"""

import re
import sys
import unicodedata
from collections.abc import Iterator

from transformer.data.builder import Dataset, at_once, of_texts
from transformer.data.builtin import docstrings, summaries

MAX_CHARACTERS = 400
_WORDS = range(3, 41)
_END = re.compile(r"(?<=[.!?])\s")


def first_sentence(text: str) -> str:
    """The text up to the first full stop, question or exclamation mark before white space."""
    return _END.split(text.strip(), maxsplit=1)[0]


def pairs_of(docstring: str) -> Iterator[tuple[str, str]]:
    """(passage, its first sentence), for every sentence that is followed by another."""
    text = " ".join(docstring.split())
    starts = [0, *(match.end() for match in _END.finditer(text))]
    for start in starts[:-1]:
        passage = summaries.shortened(text[start:], MAX_CHARACTERS)
        sentence = first_sentence(passage)
        if len(sentence.split()) in _WORDS and len(sentence) < len(passage):
            yield passage, sentence


def splits(corpus: docstrings.Corpus) -> dict[str, list[dict[str, str]]]:
    """The pairs of a corpus of docstrings, without those of an earlier split and without repetitions."""
    seen: set[tuple[str, str]] = set()
    made: dict[str, list[dict[str, str]]] = {}
    for split, rows in corpus.splits.items():
        found: dict[tuple[str, str], tuple[str, str]] = {}
        for pair in (pair for row in rows for pair in pairs_of(row.text)):
            key = (unicodedata.normalize("NFC", pair[0]), unicodedata.normalize("NFC", pair[1]))
            if key not in seen:
                found.setdefault(key, pair)
        seen |= found.keys()
        made[split] = [{"body": passage, "summary": sentence} for passage, sentence in found.values()]
    return made


def dataset() -> Dataset:
    """Fields: body and summary."""
    made = at_once(docstrings.SPLITS, lambda: splits(docstrings.corpus()))
    code = (docstrings, summaries, sys.modules[__name__])
    return of_texts("leads", ("body", "summary"), made, code=code, versions=docstrings.versions())
