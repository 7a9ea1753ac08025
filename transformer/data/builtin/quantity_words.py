"""Numbers, units, currencies and dates as words, in English and German.

num2words spells the numbers; the names of units, currencies, months and weekdays, the order of a date and the
punctuation of a list come from Babel's CLDR data. The German grammar that neither has is written here: the gender of a
unit ("ein Kilogramm", "eine Meile"), the accusative that nearly every sentence of the corpus needs ("einen Meter"), and
the endings of ordinals ("am vierundzwanzigsten März").
"""

import dataclasses
import functools
import re

from babel import Locale
from babel.lists import format_list
from babel.numbers import get_currency_name
from babel.units import format_unit
from num2words import num2words

_EN, _DE = Locale("en"), Locale("de")
# Indefinite article in the accusative; only the masculine differs from the nominative.
ARTICLE = {"m": "einen", "f": "eine", "n": "ein"}
# Definite article in the accusative, and the ending that an ordinal takes after it.
DEFINITE = {"m": ("den", "n"), "f": ("die", ""), "n": ("das", "")}

# The atoms of German number words. "sech" and "sieb" are the stems in "sechzehn" and "siebzehn".
_ATOMS = (
    "null eins eine einen ein zwei drei vier fünf sechs sech sieben sieb acht neun zehn elf zwölf zwanzig dreißig "
    "vierzig fünfzig sechzig siebzig achtzig neunzig hundert tausend und ersten erste dritten dritte achten achte "
    "sten ste ten te"
).split()
_ATOM = "|".join(sorted(_ATOMS, key=len, reverse=True))
_NUMBER_WORD = re.compile(f"(?:{_ATOM})+")


@functools.cache
def parts_of(german_word: str) -> tuple[str, ...]:
    """The parts of a German number word; any other word is its own only part.

    >>> parts_of("vierundzwanzigsten")
    ('vier', 'und', 'zwanzig', 'sten')
    >>> parts_of("Meile")
    ('Meile',)
    """
    if not _NUMBER_WORD.fullmatch(german_word):
        return (german_word,)
    # Taking the longest atom first is always right: no atom ends with the beginning of one that may follow it.
    return tuple(re.findall(_ATOM, german_word))


@dataclasses.dataclass(frozen=True)
class Noun:
    """What is counted: its forms in English and in German, and its German gender (m, f or n)."""

    en_one: str
    en_other: str
    de_one: str  # accusative
    de_other: str
    gender: str

    def counted(self, n: int) -> tuple[str, str]:
        """`n` of it in words: English, and German in the accusative ("einen Meter", "zwei Meter")."""
        if n == 1:
            return f"one {self.en_one}", f"{ARTICLE[self.gender]} {self.de_one}"
        return f"{cardinal(n)[0]} {self.en_other}", f"{cardinal(n)[1]} {self.de_other}"


def _without_inner_s(german: str) -> str:
    # num2words spells 201,000 "zweihunderteinstausend"; before "tausend" the word is "ein".
    return german.replace("einstausend", "eintausend")


@functools.cache
def cardinal(n: int) -> tuple[str, str]:
    """`n` in English and German, standing alone: ("one", "eins"). No comma after English thousands."""
    return num2words(n, lang="en").replace(",", ""), _without_inner_s(num2words(n, lang="de"))


@functools.cache
def ordinal(n: int) -> tuple[str, str]:
    """The ordinal of `n` in English and German, the German one as after "die": ("fourth", "vierte")."""
    english = num2words(n, lang="en", to="ordinal").replace(",", "")
    return english, _without_inner_s(num2words(n, lang="de", to="ordinal"))


@functools.cache
def year(n: int) -> tuple[str, str]:
    """A year from 1100 to 2099 as it is read: ("nineteen eighty-seven", "neunzehnhundertsiebenundachtzig")."""
    return num2words(n, lang="en", to="year"), num2words(n, lang="de", to="year")


@functools.cache
def date(day: int, month: int, of_year: int | None) -> tuple[str, str]:
    """A date in words, in the order of CLDR's long format, the German day in the dative as after "am" and "vom"."""
    texts = []
    for index, language in enumerate(("en", "de")):
        locale = (_EN, _DE)[index]
        pattern = locale.date_formats["long"].pattern if of_year else locale.datetime_skeletons["MMMMd"].pattern
        words: dict[str, str] = {
            "MMMM": locale.months["format"]["wide"][month],
            "y": year(of_year)[index] if of_year else "",
        }
        words["d" if language == "en" else "d."] = ordinal(day)[index] + ("" if language == "en" else "n")
        texts.append("".join(words.get(field, field) for field in re.split(r"(MMMM|y|d\.?)", pattern)))
    return texts[0], texts[1]


def joined(english: list[str], german: list[str]) -> tuple[str, str]:
    """Both lists as CLDR writes them: ("a, b, and c", "a, b und c")."""
    return format_list(english, locale=_EN), format_list(german, locale=_DE)


def _unit(name: str, gender: str) -> Noun:
    def form(count: int, locale: str) -> str:
        return format_unit(count, name, "long", locale=locale).replace("\N{NO-BREAK SPACE}", " ").split(" ", 1)[1]

    return Noun(form(1, "en"), form(2, "en"), form(1, "de"), form(2, "de"), gender)


def _currency(code: str, gender: str) -> Noun:
    def german(count: int) -> str:
        *adjectives, noun = get_currency_name(code, count, locale="de").split()
        # CLDR capitalises the adjective because its names stand alone; "Schweizer" is capital and never inflected.
        adjectives = [word if word == "Schweizer" else word.lower() for word in adjectives]
        if gender == "m" and count == 1:
            adjectives = [re.sub("er$", "en", word) if word.islower() else word for word in adjectives]
        return " ".join([*adjectives, noun])

    english = [get_currency_name(code, count, locale="en") for count in (1, 2)]
    return Noun(english[0], english[1], german(1), german(2), gender)


# CLDR's names of units with their German gender, by what they measure.
_UNIT_TABLE = {
    "distance": "length-kilometer m, length-meter m, length-mile f",
    "weight": "mass-tonne f, mass-kilogram n, mass-pound n",
    "mass": "mass-tonne f, mass-kilogram n, mass-gram n, mass-milligram n, mass-pound n, mass-ounce f",
    "time": "duration-hour f, duration-minute f, duration-second f",
    "percent": "concentr-percent n",
    # Measures of what a kitchen uses, dry and liquid.
    "food dry": "mass-kilogram n, mass-gram n, mass-milligram n, mass-pound n, mass-ounce f",
    "food liquid": "volume-liter m, volume-milliliter m, volume-tablespoon m, volume-teaspoon m, volume-cup f",
}
UNITS: dict[str, tuple[Noun, ...]] = {
    kind: tuple(_unit(*row.split()) for row in rows.split(", ")) for kind, rows in _UNIT_TABLE.items()
}
UNITS["money"] = tuple(
    _currency(*row.split()) for row in ("EUR m, USD m, CHF m, GBP n, JPY m, SEK f, CZK f, CAD m").split(", ")
)

GOODS = tuple(
    Noun(*row.split())
    for row in (
        "apple apples Apfel Äpfel m, egg eggs Ei Eier n, book books Buch Bücher n, chair chairs Stuhl Stühle m, "
        "table tables Tisch Tische m, bottle bottles Flasche Flaschen f, lamp lamps Lampe Lampen f, "
        "jacket jackets Jacke Jacken f, picture pictures Bild Bilder n, key keys Schlüssel Schlüssel m, "
        "candle candles Kerze Kerzen f, box boxes Kiste Kisten f, screw screws Schraube Schrauben f, "
        "plate plates Teller Teller m, towel towels Handtuch Handtücher n, shirt shirts Hemd Hemden n, "
        "bicycle bicycles Fahrrad Fahrräder n, pencil pencils Bleistift Bleistifte m, coin coins Münze Münzen f, "
        "flower flowers Blume Blumen f, window windows Fenster Fenster n, tree trees Baum Bäume m, "
        "glass glasses Glas Gläser n, spoon spoons Löffel Löffel m, clock clocks Uhr Uhren f"
    ).split(", ")
)
SUBSTANCES = {
    "dry": (("flour", "Mehl"), ("sugar", "Zucker"), ("rice", "Reis"), ("salt", "Salz"), ("butter", "Butter"),
            ("cheese", "Käse"), ("potatoes", "Kartoffeln")),
    "liquid": (("milk", "Milch"), ("water", "Wasser"), ("oil", "Öl"), ("coffee", "Kaffee"), ("honey", "Honig"),
               ("vinegar", "Essig"), ("juice", "Saft")),
}  # fmt: skip

# Labelled numbers: one and several, English and German. The accusative of each equals its nominative.
LABELS = {
    "number": ("the number", "the numbers", "die Zahl", "die Zahlen"),
    "page": ("page", "pages", "Seite", "die Seiten"),
    "seat": ("seat", "seats", "Platz", "die Plätze"),
}
# Ranked things: the noun behind the ordinals in English, in German (accusative), and its gender.
RANKS = {
    "chapter": ("chapter", "Kapitel", "n"),
}
# What tells the items of a list apart: "ten euros on Monday", "am Montag zehn Euro".
_DAYS, _TAGE = (locale.days["format"]["wide"] for locale in (_EN, _DE))
_MONTHS, _MONATE = (locale.months["format"]["wide"] for locale in (_EN, _DE))
PLACES = {
    "day": tuple((f"on {_DAYS[i]}", f"am {_TAGE[i]}") for i in range(7)),
    "month": tuple((f"in {_MONTHS[i]}", f"im {_MONATE[i]}") for i in range(1, 13)),
    "city": tuple(
        (f"in {english}", f"in {german}")
        for english, german in (("Berlin", "Berlin"), ("Vienna", "Wien"), ("Munich", "München"), ("Cologne", "Köln"),
                                ("Zurich", "Zürich"), ("Geneva", "Genf"), ("Prague", "Prag"), ("Rome", "Rom"),
                                ("Hamburg", "Hamburg"), ("Paris", "Paris"))
    ),
}  # fmt: skip
