"""Summaries of docstrings: from the body of a docstring to its first paragraph, for summarisation without download.

The docstrings and the splits are those of docstrings.py. A docstring gives a pair if its summary is a sentence (not a
signature or a heading) of 3 to 40 words, and its body has at least `MIN_WORDS` words besides markup and code examples.
Both are without line breaks. A body longer than `MAX_CHARACTERS`, a fifth of them, is cut after the last whole word:
what a function does comes first, its parameters and references last.
"""

import re
import sys
import unicodedata
from collections.abc import Iterable

from transformer.data.builder import Dataset, at_once, of_texts
from transformer.data.builtin import docstrings

MIN_WORDS = 15
MAX_CHARACTERS = 1000
_SUMMARY_WORDS = range(3, 41)
# Lines of doctests, directives, field lists, and rules under a heading or around a table.
_MARKUP = re.compile(r"\s*(>>>|\.\.\.|\.\. |:[a-z]+|@|[-=~^*#+|]{3})")
_SIGNATURE = re.compile(r"[\w.]+\(|[-=~^*#+|]{3}")


def pair_of(docstring: str) -> tuple[str, str] | None:
    """(body, summary) of a docstring; None if it does not give a pair."""
    first, _, rest = docstring.partition("\n\n")
    summary = " ".join(first.split())
    prose = " ".join(line for line in rest.splitlines() if not _MARKUP.match(line))
    if len(_words(prose)) < MIN_WORDS or len(_words(summary)) not in _SUMMARY_WORDS or _SIGNATURE.match(summary):
        return None
    return shortened(" ".join(rest.split())), summary


def shortened(text: str, most: int = MAX_CHARACTERS) -> str:
    """The whole words that fit into `most` characters; a longer first word is cut."""
    if len(text) <= most:
        return text
    end = text.rfind(" ", 0, most + 1)
    return text[: end if end > 0 else most]


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]{2,}", text)


def splits(corpus: docstrings.Corpus) -> dict[str, list[dict[str, str]]]:
    """The pairs of a corpus of docstrings, without those of an earlier split and without repetitions."""
    seen: set[tuple[str, str]] = set()
    return {split: list(_unseen((row.text for row in rows), seen)) for split, rows in corpus.splits.items()}


def _unseen(texts: Iterable[str], seen: set[tuple[str, str]]) -> Iterable[dict[str, str]]:
    for text in texts:
        pair = pair_of(text)
        key = pair and (unicodedata.normalize("NFC", pair[0]), unicodedata.normalize("NFC", pair[1]))
        if pair and key and key not in seen:
            seen.add(key)
            yield {"body": pair[0], "summary": pair[1]}


def dataset() -> Dataset:
    """Fields: body and summary."""
    made = at_once(docstrings.SPLITS, lambda: splits(docstrings.corpus()))
    code = (docstrings, sys.modules[__name__])
    return of_texts("summaries", ("body", "summary"), made, code=code, versions=docstrings.versions())
