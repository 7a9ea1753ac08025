"""Examples longer than `data.max_len`: how many there are, and what `data.too_long` does with them.

* "drop" leaves them out, "cut" keeps their first tokens (and EOS), "chunk" makes several examples of them, "refuse" is
  an error. Each is the same in training, in its validation and in `transformer.evaluate`: texts that are left out are
  not written either, and inputs that are cut are cut where text is generated, too.
* "" is what each kind of batches does of itself: "drop" for pairs, "cut" for texts with classes, "chunk" for language
  models, masked or not, and span corruption, "refuse" for recordings. It differs from naming that rule for pairs only:
  training and its validation leave out long pairs, while `transformer.evaluate` reads them whole, as a figure on a test
  set is expected to be one of all its examples.

A cut text keeps its class; a pair or a recording cannot be cut into chunks, as only the whole has the other side.
"""

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import numpy as np

from transformer.config import DataConfig
from transformer.errors import UserError

DONE = {"drop": "left out", "cut": "cut there", "chunk": "cut into chunks", "refuse": "refused", "keep": "read whole"}


class TooLong(NamedTuple):
    """The lengths of the examples of a split, special tokens included, against the limit."""

    rule: str  # what is done: a key of DONE
    longer: int  # examples longer than the limit
    of: int  # all examples
    longest: int
    limit: int  # data.max_len
    noun: str  # what the examples are
    unit: str  # what lengths count

    def __str__(self) -> str:
        most = f"the longest has {self.longest:,} {self.unit}"
        if not self.longer:
            return f"none of {self.of:,} {self.noun} is longer than data.max_len={self.limit} ({most})"
        return (
            f"{self.longer:,} of {self.of:,} {self.noun} are longer than data.max_len={self.limit} ({most}): "
            f"{DONE[self.rule]}"
        )


def decide(lengths: np.ndarray, data: DataConfig, rules: Sequence[str], noun: str, unit: str = "tokens") -> TooLong:
    """What is done with examples of these lengths [n]: `data.too_long`, or where it is empty the first of `rules`.

    UserErrors: the rule is not one of `rules`, those that are possible; it is "refuse", and an example is too long.
    """
    rule = data.too_long or rules[0]
    if rule not in rules:
        raise UserError(
            f"data.too_long={rule!r} is not possible for {noun}: choose {' or '.join(map(repr, rules))}, or leave it "
            f"out for {rules[0]!r}."
        )
    longer, longest = lengths > data.max_len, int(lengths.max(initial=0))
    found = TooLong(rule, int(longer.sum()), len(lengths), longest, data.max_len, noun, unit)
    if rule == "refuse" and found.longer:
        refuse(found, int(lengths.argmax()), rules)
    return found


def refuse(found: TooLong, number: int, rules: Sequence[str]) -> NoReturn:
    """UserError: some are longer, and example `number` is the longest. `rules`: those that are possible."""
    raise UserError(
        f"{found.longer:,} of {found.of:,} {found.noun} are longer than data.max_len={found.limit}; number "
        f"{number + 1} has {found.longest:,} {found.unit}: raise it, and data.buckets with it, or set data.too_long to "
        f"{' or '.join(repr(rule) for rule in rules if rule != 'refuse')}."
    )


def refuse_rule(data: DataConfig, what: str) -> None:
    """UserError: `data.too_long` is set, for examples that all have one size."""
    if data.too_long:
        raise UserError(f"data.too_long={data.too_long!r} says nothing of {what}, all of one size: leave it out.")
