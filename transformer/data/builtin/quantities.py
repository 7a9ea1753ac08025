"""Spelled-out quantities, English to German: a generated translation corpus, without download.

    Everyone knows that he lost twenty-four euros in Vienna and two hundred and one US dollars in Rome.
    Jeder weiß, dass er in Wien vierundzwanzig Euro und in Rom zweihunderteins US-Dollar verloren hat.

The task is small but has what makes translation hard: German reverses tens and units ("vierundzwanzig"), puts the verb
second in a main clause and last in a subordinate one, inflects articles and ordinals, and puts day and place before the
quantity. The true translation of any sentence is known, so exact matches can be measured

* in `validation` and `test`: on sentences like those of `train`, each with a quantity above 100 that `train` lacks;
* in `longer`: on sentences with more quantities than any in `train`, every one longer than the longest of `train`, in
  even steps up to more than twice its length. Only length is new: every English word, every part of a German number
  word (`parts_of`) and, in a shorter form, every pattern of clauses and lists occurs in `train`.

The same constants, num2words and Babel give the same corpus on any machine. Figures are comparable only within one
fingerprint.
"""

import collections
import functools
import hashlib
import importlib.metadata
import itertools
import random
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transformer.data.builder import Dataset, at_once, digest_of_rows
from transformer.data.builtin import quantity_frames
from transformer.data.builtin import quantity_words as words
from transformer.data.builtin.quantity_frames import CONTRASTS, FRAMES, OPENERS, REPORTS, Frame

SIZES = {"train": 20_000, "validation": 500, "test": 600, "longer": 600}
SEED = 2017
# Most parts (see `measure`) and characters of a sentence of train, validation or test, in either language. The limit
# on characters keeps a few sentences of long words from being the longest in tokens.
MAX_PARTS = 18
MAX_CHARACTERS = 115
# `longer` is drawn evenly from these bands of length, in multiples of MAX_PARTS; the last is the limit.
LONGER_BANDS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5)
QUANTITIES = {"train": (1, 2), "validation": (1, 2), "test": (1, 2), "longer": (3, 5)}
# Numbers up to here are in every split; a hash of its digits puts each larger one into a single pool.
SHARED_UP_TO = 100
LARGEST = 999
POOLS = {"train": range(0, 7), "validation": range(7, 8), "test": range(8, 10), "longer": range(8, 10)}
# Largest number of some kinds; all others go up to LARGEST.
LIMITS = {"percent": 100, "chapter": 100}
_YEARS = (1900, 2099)


def allowed(number: int, split: str) -> bool:
    """Whether `number` may occur in `split`: up to 100 in all splits, above in exactly one of the pools. Whole hundreds
    belong to train, since a number word that ends there is a part that held-out splits must not introduce."""
    if number > SHARED_UP_TO and number % 100 == 0:
        return split == "train"
    return number <= SHARED_UP_TO or hashlib.sha256(str(number).encode()).digest()[0] % 10 in POOLS[split]


def measure(english: str, german: str) -> tuple[int, int]:
    """Lengths of a pair in parts: words, with English hyphens and German number words split."""
    german_parts = sum(len(words.parts_of(word)) for word in tokens(german))
    return len(english.replace("-", " ").split()), german_parts


def tokens(sentence: str) -> list[str]:
    """The words of a sentence without punctuation, its first letter in lower case."""
    found = re.findall(r"[\w'-]+", sentence)
    return [found[0][0].lower() + found[0][1:], *found[1:]]


@functools.cache
def _frames(count: int) -> list[Frame]:
    return [frame for frame in FRAMES if frame.takes(count)]


class _Writer:
    """Draws the sentences of one split, with one seeded generator."""

    def __init__(self, split: str):
        self.split = split
        self.rng = random.Random(SEED + list(SIZES).index(split))
        self.largest = 0  # largest number of the current sentence

    # -- numbers ---------------------------------------------------------------------------------------------------

    def number(self, largest: int = LARGEST, smallest: int = 1) -> int:
        """A number of the split: mixed magnitudes, a third of the larger ones round as in ordinary text."""
        while True:
            digits = self.rng.choices((1, 2, 3), (1, 2, 2))[0]
            number = self.rng.randrange(10 ** (digits - 1), 10**digits)
            if digits > 2 and self.rng.random() < 1 / 3:
                unit = 10 ** (digits - self.rng.choice((1, 2)))
                number -= number % unit
            if smallest <= number <= largest and allowed(number, self.split):
                self.largest = max(self.largest, number)
                return number

    def year(self) -> int:
        while True:
            number = self.rng.randint(*_YEARS)
            if allowed(number, self.split):
                self.largest = max(self.largest, number)
                return number

    # -- quantities: each a pair (English, German) ----------------------------------------------------------------

    def quantity(self, kind: str, count: int) -> tuple[str, str]:
        """`count` quantities of one kind as a list in both languages; `kind` is the name in a frame's slot."""
        kind, _, place = kind.partition("@")
        if kind in words.LABELS:
            return self._labelled(kind, count)
        if kind in words.RANKS:
            return self._ranked(kind, count)
        if kind == "goods":
            pairs = [noun.counted(self.number()) for noun in self.rng.sample(words.GOODS, count)]
        else:
            pairs = self._distinct(lambda: self._one(kind), count)
        if place:
            known = words.PLACES[place]
            # Days and months are in calendar order.
            chosen = [known[i] for i in sorted(self.rng.sample(range(len(known)), count))]
            pairs = [(f"{en} {where}", f"{wo} {de}") for (where, wo), (en, de) in zip(chosen, pairs, strict=True)]
        english, german = zip(*pairs, strict=True)
        return words.joined(list(english), list(german))

    @staticmethod
    def _distinct(draw: Callable[[], tuple[str, str]], count: int) -> list[tuple[str, str]]:
        drawn: dict[tuple[str, str], None] = {}
        while len(drawn) < count:
            drawn[draw()] = None
        return list(drawn)

    def _one(self, kind: str) -> tuple[str, str]:
        if kind == "date":
            english, german = self._date()
            return f"on {english}", f"am {german}"
        if kind == "food":
            return self._substance(kind)
        return self.rng.choice(words.UNITS[kind]).counted(self.number(LIMITS.get(kind, LARGEST)))

    def _date(self) -> tuple[str, str]:
        month = self.rng.randint(1, 12)
        # February has 28 days here, so that a date without a year is always valid.
        day = self.rng.randint(1, 28 if month == 2 else 30 if month in (4, 6, 9, 11) else 31)
        return words.date(day, month, self.year() if self.rng.random() < 0.4 else None)

    def _substance(self, kind: str) -> tuple[str, str]:
        form = self.rng.choice(("dry", "liquid"))
        english, german = self.rng.choice(words.SUBSTANCES[form])
        counted = self.rng.choice(words.UNITS[f"{kind} {form}"]).counted(self.number())
        return f"{counted[0]} of {english}", f"{counted[1]} {german}"

    def _labelled(self, kind: str, count: int) -> tuple[str, str]:
        one_en, several_en, one_de, several_de = words.LABELS[kind]
        pairs = self._distinct(lambda: words.cardinal(self.number(LIMITS.get(kind, LARGEST))), count)
        english, german = words.joined([en for en, _ in pairs], [de for _, de in pairs])
        label_en, label_de = (one_en, one_de) if count == 1 else (several_en, several_de)
        return f"{label_en} {english}", f"{label_de} {german}"

    def _ranked(self, kind: str, count: int) -> tuple[str, str]:
        noun_en, noun_de, gender = words.RANKS[kind]
        article, ending = words.DEFINITE[gender]
        pairs = self._distinct(lambda: words.ordinal(self.number(LIMITS.get(kind, LARGEST))), count)
        english, german = words.joined([f"the {en}" for en, _ in pairs], [f"{article} {de}{ending}" for _, de in pairs])
        return f"{english} {noun_en}", f"{german} {noun_de}"

    # -- clauses and sentences ------------------------------------------------------------------------------------

    def clause(self, frame: Frame, count: int) -> tuple[str, Frame, list[str]]:
        """`frame` with `count` quantities: its English, the frame, and the German of its slots."""
        counts = [1] * len(frame.slots)
        if frame.slots[-1].endswith("+"):
            counts[-1] = count - len(counts) + 1
        pairs = [self.quantity(slot.rstrip("+"), c) for slot, c in zip(frame.slots, counts, strict=True)]
        return frame.english([en for en, _ in pairs]), frame, [de for _, de in pairs]

    def sentence(self, count: int) -> tuple[str, str]:
        """A sentence with `count` quantities: one clause, perhaps with an introduction, or several, joined."""
        self.largest = 0
        # Each further clause is half as likely as the one before.
        clauses = self.rng.choices(range(1, count + 1), [2.0**-i for i in range(count)])[0]
        cuts = sorted(self.rng.sample(range(1, count), clauses - 1))
        sizes = [right - left for left, right in itertools.pairwise((0, *cuts, count))]
        chosen: list[Frame] = []
        for size in sizes:
            chosen.append(self.rng.choice([frame for frame in _frames(size) if frame not in chosen]))
        drawn = [self.clause(frame, size) for frame, size in zip(chosen, sizes, strict=True)]
        english = [en for en, _, _ in drawn]
        form = self.rng.random()
        _, frame, slots = drawn[0]
        if clauses == 1 and form < 0.3:
            opener_en, opener_de = self.rng.choice(OPENERS)
            pair = f"{opener_en}, {english[0]}", f"{opener_de} {frame.inverted(slots)}"
        elif clauses == 1 and form < 0.6:
            report_en, report_de = self.rng.choice(REPORTS)
            pair = f"{report_en} that {english[0]}", f"{report_de}, dass {frame.subordinate(slots)}"
        elif clauses == 2:
            word_en, word_de, subordinate = self.rng.choice(CONTRASTS)
            _, second, more = drawn[1]
            if subordinate == "first":  # the main clause then begins with its verb
                german = f"{word_de} {frame.subordinate(slots)}, {second.inverted(more)}"
                pair = f"{word_en} {english[0]}, {english[1]}", german
            else:
                last = second.subordinate(more) if subordinate == "second" else second.main(more)
                pair = f"{english[0]}, {word_en} {english[1]}", f"{frame.main(slots)}, {word_de} {last}"
        else:
            pair = words.joined(english, [frame.main(slots) for _, frame, slots in drawn])
        return _sentence_case(pair[0]), _sentence_case(pair[1])


def _sentence_case(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _band(lengths: tuple[int, int]) -> int | None:
    """The index of a pair's band in LONGER_BANDS; None if it is too short or too long."""
    low, high = min(lengths) / MAX_PARTS, max(lengths) / MAX_PARTS
    if low <= LONGER_BANDS[0] or high > LONGER_BANDS[-1]:
        return None
    return next(i for i, (_, end) in enumerate(itertools.pairwise(LONGER_BANDS)) if low <= end)


def generate(sizes: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Splits of these sizes, train first: lists of {"en", "de", "quantities"}, in a random but fixed order."""
    splits: dict[str, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    known: set[str] = set()  # the words and number parts of train
    for split, size in sizes.items():
        writer, low_high = _Writer(split), QUANTITIES[split]
        quota = -(-size // (len(LONGER_BANDS) - 1))  # of each band, rounded up
        bands: collections.Counter[int] = collections.Counter()
        examples: list[dict[str, Any]] = []
        while len(examples) < size:
            count = writer.rng.randint(*low_high)
            english, german = writer.sentence(count)
            lengths = measure(english, german)
            band = _band(lengths)
            if split == "longer":
                if band is None or bands[band] == quota:
                    continue
            elif max(lengths) > MAX_PARTS or max(len(english), len(german)) > MAX_CHARACTERS:
                continue
            material = vocabulary(english, german)
            if english in seen or (split != "train" and (writer.largest <= SHARED_UP_TO or not material <= known)):
                continue
            if split == "train":
                known |= material
            if band is not None:
                bands[band] += 1
            seen.add(english)
            examples.append({"en": english, "de": german, "quantities": count})
        splits[split] = examples
    return splits


@functools.cache
def corpus() -> dict[str, list[dict[str, Any]]]:
    """The splits of the default sizes (about ten seconds, once per process)."""
    return generate(SIZES)


def vocabulary(english: str, german: str) -> set[str]:
    """The elements of a pair: "en:" and every English word, "de:" and every German word or part of a number word."""
    return {f"en:{word}" for word in tokens(english)} | {
        f"de:{part}" for word in tokens(german) for part in words.parts_of(word)
    }


def versions() -> dict[str, str]:
    """The installed libraries that the corpus is made with."""
    return {name: importlib.metadata.version(name) for name in ("babel", "num2words")}


def dataset() -> Dataset:
    """Fields: en, de, and `quantities`, their number in a sentence."""
    made = at_once(SIZES, corpus)
    features = {"en": tfds.features.Text(), "de": tfds.features.Text(), "quantities": np.int32}
    code = (sys.modules[__name__], words, quantity_frames)
    digest = functools.partial(digest_of_rows, made)
    return Dataset("quantities", features, made, digest, code=code, versions=versions(), shuffled=True)
