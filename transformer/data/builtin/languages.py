"""Language identification: names of places, languages, scripts, currencies, units, months and days from Babel's CLDR.

A hash of the CLDR key (such as the territory CH) decides the split of its names in all languages: a model cannot know
"Schweiz" because it has seen "Suisse". A name that two languages share, ignoring case, is left out in both; a name that
a language has for two keys counts for the first, in the order of the splits. The languages use 17 scripts; some are
identified by the script alone, but not the Latin, Cyrillic and Arabic ones.
"""

import functools
import importlib.metadata
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from babel import Locale

from transformer.data.builder import Dataset, at_once, of_texts, share

LANGUAGES = (
    "ar bg bn cs de el en es fa fi fr he hi hu hy id it ja ka ko nl pl pt ro ru sv ta th tr uk vi zh".split()
)  # sorted: the class of a language is its index
# Cumulative shares of the keys.
SPLITS = {"train": 0.8, "validation": 0.9, "test": 1.0}


def split_of(key: str) -> str:
    """The split of a key, such as "territory CH"."""
    return next(split for split, end in SPLITS.items() if share(key) < end)


def names(language: str) -> Iterator[tuple[str, str]]:
    """(key, name) of everything that CLDR names in a language."""
    locale = Locale(language)
    for kind in ("territories", "languages", "scripts", "variants", "currencies"):
        for code, name in sorted(getattr(locale, kind).items()):
            yield f"{kind} {code}", str(name)
    for code, widths in sorted(locale._data["unit_display_names"].items()):
        if isinstance(name := widths.get("long"), str):
            yield f"units {code}", name
    for kind in ("months", "days"):
        for context in ("stand-alone", "format"):
            forms: Any = getattr(locale, kind)[context]["wide"]
            for number, name in sorted(forms.items()):
                yield f"{kind} {number}", str(name)


@functools.cache
def splits() -> dict[str, list[dict[str, Any]]]:
    """The splits: lists of {"text", "label"}."""
    named = {language: list(names(language)) for language in LANGUAGES}
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for language, pairs in named.items():
        for _, name in pairs:
            owners[name.casefold()].add(language)
    made: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for split, rows in made.items():
        for label, language in enumerate(LANGUAGES):
            for key, name in named[language]:
                folded = name.casefold()
                if split_of(key) == split and len(owners[folded]) == 1 and folded not in seen:
                    seen.add(folded)
                    rows.append({"text": name, "label": label})
    return made


def dataset() -> Dataset:
    """Field: text; the classes are codes of languages, such as "de"."""
    made, versions = at_once(SPLITS, splits), {"babel": importlib.metadata.version("babel")}
    return of_texts("languages", ("text",), made, LANGUAGES, code=(sys.modules[__name__],), versions=versions)
