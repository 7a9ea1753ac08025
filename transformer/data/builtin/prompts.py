"""Lines for a character language model to complete: sums, and numbers in English and German words.

    37+48=85
    twenty-four -> vierundzwanzig

The prompt of a line ends with "=" or "-> "; the rest is the answer. A hash decides what is held out:

* of the sums: pairs of operands, in either order, so that no sum of `test` occurs in training. The data hold all pairs
  of operands up to 99, and one in `ONE_IN` of those up to 999 whose sum is at most 999, each in one order;
* of the number words: numbers from 101 to 999 that are no whole hundreds, so that all their parts occur in `train`.
"""

import functools
import sys
from typing import Any

from transformer.data.builder import Dataset, at_once, of_texts, share
from transformer.data.builtin import quantities
from transformer.data.builtin import quantity_words as words

SPLITS = ("train", "validation", "test")
LARGEST = 999  # operand, sum and number
ALL_UP_TO = 99
ONE_IN = 12
SHARED_UP_TO = 100  # number words up to here are all in train
# Shares of `validation` and `test`; larger for numbers, not all of which may be held out, to get a tenth of all.
SUMS_HELD_OUT = (0.05, 0.10)
NUMBERS_HELD_OUT = (0.056, 0.112)


def split_of(shares: tuple[float, float], *key: object) -> str:
    """The split given by a hash of the key."""
    validation, test = shares
    number = share(*key)
    return "validation" if number < validation else "test" if number < validation + test else "train"


def _sums() -> list[tuple[str, str, str]]:
    """(split, prompt, answer) of every sum."""
    found = []
    for a in range(LARGEST + 1):
        for b in range(a, LARGEST + 1 - a):
            if b <= ALL_UP_TO or share("kept", a, b) < 1 / ONE_IN:
                first, second = (a, b) if share("order", a, b) < 0.5 else (b, a)
                found.append((split_of(SUMS_HELD_OUT, "sum", a, b), f"{first}+{second}=", str(a + b)))
    return found


def _numbers() -> list[tuple[str, str, str]]:
    found = []
    for n in range(LARGEST + 1):
        english, german = words.cardinal(n)
        shared = n <= SHARED_UP_TO or n % 100 == 0
        split = "train" if shared else split_of(NUMBERS_HELD_OUT, "number", n)
        found.append((split, f"{english} -> ", german))
    return found


@functools.cache
def splits() -> dict[str, list[dict[str, Any]]]:
    """The splits: lists of {"text", "prompt", "answer"}."""
    made: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for split, prompt, answer in [*_sums(), *_numbers()]:
        made[split].append({"text": prompt + answer, "prompt": prompt, "answer": answer})
    return made


def dataset() -> Dataset:
    """Fields: text (the whole line), prompt and answer."""
    code = (sys.modules[__name__], words)
    fields = ("text", "prompt", "answer")
    return of_texts("prompts", fields, at_once(SPLITS, splits), code=code, versions=quantities.versions())
