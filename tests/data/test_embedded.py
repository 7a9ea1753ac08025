"""The embedded corpora: German as it is written, splits that do not leak, and nothing new in `longer` but length."""

import collections
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from transformer.config import DataConfig
from transformer.data.builtin import docstrings, quantities
from transformer.data.builtin import quantity_words as words
from transformer.data.builtin.quantity_frames import FRAMES, Frame
from transformer.data.builtin.quantity_words import parts_of
from transformer.data.sources import load_source

SMALL = {"train": 1500, "validation": 20, "test": 20, "longer": 20}
HELD_OUT = ("validation", "test", "longer")


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[dict]]:
    return quantities.corpus()


# --- German numbers, spelled and read here without num2words

ONES = (
    "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
    "achtzehn neunzehn"
).split()
TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
IRREGULAR = {"ein": "erste", "drei": "dritte", "sieben": "siebte", "acht": "achte"}


def below_100(n: int) -> str:
    if n < 20:
        return ONES[n]
    return (ONES[n % 10] + "und" if n % 10 else "") + TENS[n // 10 - 2]


def below_1000(n: int) -> str:
    return (ONES[n // 100] + "hundert" if n >= 100 else "") + (below_100(n % 100) if n % 100 else "")


def spelled(n: int) -> str:
    text = (below_1000(n // 1000) + "tausend" if n >= 1000 else "") + below_1000(n % 1000)
    return text + "s" if n % 100 == 1 else text


def _readings() -> dict[str, int]:
    """Words of the numbers below 100, cardinal and ordinal, and their values."""
    found = {"eins": 1}
    for n in range(1, 100):
        word = below_100(n)
        ordinal = IRREGULAR.get(word, word + ("te" if n < 20 else "ste"))
        found |= {word: n, ordinal: n, ordinal + "n": n}
    return found


READINGS = _readings()


def value(word: str) -> int | None:
    """The number that a German word says, as a cardinal, an ordinal or a year; None if it says none."""
    word = word.lower()
    for scale in ("tausend", "hundert"):
        word = word.replace(f"{scale}sten", scale).replace(f"{scale}ste", scale)
    total = 0
    for scale, factor in (("tausend", 1000), ("hundert", 100)):
        before, found, word = word.rpartition(scale)
        if found:
            times = value(before) if before else 1
            if times is None:
                return None
            total += factor * times
    if word and word not in READINGS:
        return None
    return total + READINGS.get(word, 0) or None


def numbers_in(example: dict) -> set[int]:
    return {n for n in map(value, quantities.tokens(example["de"])) if n is not None}


@pytest.mark.parametrize("n", [2, 7, 16, 21, 100, 101, 1000, 1001, 17_017, 21_000, 101_001, 201_000, 999_999])
def test_the_reader_reads(n: int) -> None:
    assert value(spelled(n)) == value(words.ordinal(n)[1]) == value(words.ordinal(n)[1] + "n") == n


def test_every_kind_of_number_is_spelled_as_german_spells_it() -> None:
    for n in [*range(1, 2100), *range(2100, 1_000_000, 5003), *range(1001, 1_000_000, 50_050)]:
        assert words.cardinal(n)[1] == spelled(n)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("vierundzwanzig", "vier und zwanzig"),
        ("vierundzwanzigsten", "vier und zwanzig sten"),
        ("einhundertsiebzehn", "ein hundert sieb zehn"),
        ("achttausendachthundertachte", "acht tausend acht hundert achte"),
        ("siebenhunderterste", "sieben hundert erste"),
        ("dreihundertdritten", "drei hundert dritten"),
        ("sechsundsechzigtausend", "sechs und sechzig tausend"),
        ("neunzehnhundertzwölf", "neun zehn hundert zwölf"),
        ("Seemeile", "Seemeile"),
        ("achten", "achten"),
    ],
)
def test_parts_of_a_number_word(word: str, parts: str) -> None:
    assert parts_of(word) == tuple(parts.split())


def test_parts_are_few() -> None:
    ordinals = [words.ordinal(n)[1] for n in range(1, 3000)]
    forms = [words.cardinal(n)[1] for n in range(1, 3000)] + ordinals + [word + "n" for word in ordinals]
    assert all("".join(parts_of(word)) == word for word in forms)
    assert len({part for word in forms for part in parts_of(word)}) < 40


# --- Hand-written German


def unit(english: str) -> words.Noun:
    return next(n for nouns in (*words.UNITS.values(), words.GOODS) for n in nouns if n.en_one == english)


@pytest.mark.parametrize(
    ("n", "english", "expected_english", "german"),
    [
        (1, "kilogram", "one kilogram", "ein Kilogramm"),
        (1, "mile", "one mile", "eine Meile"),
        (1, "meter", "one meter", "einen Meter"),
        (24, "kilometer", "twenty-four kilometers", "vierundzwanzig Kilometer"),
        (22, "euro", "twenty-two euros", "zweiundzwanzig Euro"),
        (1, "euro", "one euro", "einen Euro"),
        (1, "Japanese yen", "one Japanese yen", "einen japanischen Yen"),
        (1, "British pound", "one British pound", "ein britisches Pfund"),
        (3, "Swedish krona", "three Swedish kronor", "drei schwedische Kronen"),
        (1, "Swiss franc", "one Swiss franc", "einen Schweizer Franken"),
        (17, "hour", "seventeen hours", "siebzehn Stunden"),
        (1, "egg", "one egg", "ein Ei"),
        (46, "tree", "forty-six trees", "sechsundvierzig Bäume"),
    ],
)  # fmt: skip
def test_counted(n: int, english: str, expected_english: str, german: str) -> None:
    assert unit(english).counted(n) == (expected_english, german)


@pytest.mark.parametrize(
    ("date", "english", "german"),
    [
        ((24, 3, 1987), "March twenty-fourth, nineteen eighty-seven",
         "vierundzwanzigsten März neunzehnhundertsiebenundachtzig"),
        ((1, 5, None), "May first", "ersten Mai"),
        ((3, 10, 2005), "October third, two thousand and five", "dritten Oktober zweitausendfünf"),
        ((7, 12, 1100), "December seventh, eleven hundred", "siebten Dezember elfhundert"),
        ((16, 2, 1905), "February sixteenth, nineteen oh-five", "sechzehnten Februar neunzehnhundertfünf"),
    ],
)  # fmt: skip
def test_dates(date: tuple[int, int, int | None], english: str, german: str) -> None:
    assert words.date(*date) == (english, german)


def frame(beginning: str) -> Frame:
    return next(frame for frame in FRAMES if frame.text.startswith(beginning))


def test_word_order() -> None:
    bought, slots = frame("she bought"), ["einen Apfel und zwei Eier"]
    assert bought.main(slots) == "sie hat einen Apfel und zwei Eier gekauft"
    assert "zum Glück " + bought.inverted(slots) == "zum Glück hat sie einen Apfel und zwei Eier gekauft"
    assert "dass " + bought.subordinate(slots) == "dass sie einen Apfel und zwei Eier gekauft hat"
    pack = frame("he still has to pack").subordinate(["eine Lampe"])
    assert pack == "er noch eine Lampe einpacken muss"


def test_lists_are_punctuated_as_each_language_does() -> None:
    assert words.joined(["a", "b", "c"], ["d", "e", "f"]) == ("a, b, and c", "d, e und f")
    assert words.joined(["a", "b"], ["d", "e"]) == ("a and b", "d und e")


def test_every_frame_reads_in_both_languages() -> None:
    assert len({frame.text for frame in FRAMES}) == len(FRAMES) >= 20
    for frame in FRAMES:
        slots = [f"<{i}>" for i in range(len(frame.slots))]
        for text in (frame.english(slots), frame.main(slots), frame.inverted(slots), frame.subordinate(slots)):
            assert all(text.count(slot) == 1 for slot in slots)
            assert not any(wrong in text for wrong in ("  ", "{", "}"))


# --- The splits of the quantities


def test_sizes(corpus: dict[str, list[dict]]) -> None:
    assert {split: len(examples) for split, examples in corpus.items()} == quantities.SIZES
    for split, (low, high) in quantities.QUANTITIES.items():
        assert {example["quantities"] for example in corpus[split]} == set(range(low, high + 1))


def test_no_number_above_100_of_a_held_out_split_occurs_in_train(corpus: dict[str, list[dict]]) -> None:
    numbers = {split: set().union(*map(numbers_in, examples)) for split, examples in corpus.items()}
    large = {split: {n for n in found if n > 100} for split, found in numbers.items()}
    assert all(len(found) > 60 for found in large.values())
    assert all(large["train"].isdisjoint(large[split]) for split in HELD_OUT)
    assert large["validation"].isdisjoint(large["test"] | large["longer"])
    assert max(large["train"]) > 990
    for split in HELD_OUT:
        assert all(max(numbers_in(example)) > 100 for example in corpus[split])


def test_no_sentence_occurs_twice(corpus: dict[str, list[dict]]) -> None:
    for language in ("en", "de"):
        sentences = [example[language] for examples in corpus.values() for example in examples]
        assert len(set(sentences)) == len(sentences)


def test_length_is_all_that_is_new(corpus: dict[str, list[dict]]) -> None:
    material = {
        split: set().union(*(quantities.vocabulary(example["en"], example["de"]) for example in examples))
        for split, examples in corpus.items()
    }
    for split in HELD_OUT:
        assert material[split] <= material["train"]
    assert {"de:ein", "de:einen", "de:und", "de:tausend", "de:sten", "de:Mittwoch", "en:fortieth"} <= material["train"]


def test_longer_is_longer_in_even_steps(corpus: dict[str, list[dict]]) -> None:
    lengths = {split: [quantities.measure(e["en"], e["de"]) for e in examples] for split, examples in corpus.items()}
    for split in ("train", "validation", "test"):
        assert max(map(max, lengths[split])) == quantities.MAX_PARTS
    assert min(map(min, lengths["longer"])) > quantities.MAX_PARTS
    twice = [pair for pair in lengths["longer"] if min(pair) > 2 * quantities.MAX_PARTS]
    assert len(twice) == len(lengths["longer"]) / (len(quantities.LONGER_BANDS) - 1)
    for language in ("en", "de"):
        longest = {s: max(len(e[language]) for e in corpus[s]) for s in ("train", "longer")}
        assert longest["longer"] > 1.9 * longest["train"]
    longest_words = {s: max(len(e["en"].split()) for e in corpus[s]) for s in ("train", "longer")}
    assert longest_words["longer"] >= 2 * longest_words["train"]


def test_the_corpus_is_varied(corpus: dict[str, list[dict]]) -> None:
    beginnings = collections.Counter(" ".join(example["en"].split()[:3]) for example in corpus["train"])
    assert len(beginnings) > 100
    assert beginnings.most_common(1)[0][1] < 0.08 * len(corpus["train"])


def test_the_same_corpus_in_another_process() -> None:
    code = (
        f"import json; from transformer.data.builtin import quantities\nprint(json.dumps(quantities.generate({SMALL})))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(printed.stdout) == quantities.generate(SMALL)


def test_quantities_are_prepared_without_tensorflow(corpus: dict[str, list[dict]], tmp_path: Path) -> None:
    source = load_source(DataConfig(name="quantities", cache=str(tmp_path)))
    assert source.fingerprint == hashlib.sha256(json.dumps(corpus, sort_keys=True).encode()).hexdigest()
    (folder,) = (tmp_path / "prepared" / "quantities").glob("*/quantities/1.0.0")
    assert json.loads((folder / "metadata.json").read_text())["versions"]["babel"] == importlib.metadata.version(
        "babel"
    )
    assert {split: len(source.split(split)) for split in source.splits} == quantities.SIZES
    read = [(e["en"], e["de"], e["quantities"]) for e in source.split("longer")]
    expected = [(e["en"], e["de"], e["quantities"]) for e in corpus["longer"]]
    assert sorted(read) == sorted(expected)
    assert read != expected  # TFDS stores them in another order, which stored runs are trained in
    assert "tensorflow" not in sys.modules


# --- Docstrings

LONG = "A line that two packages share because one was copied."
FILES = {
    "alpha/__init__.py": f'"""The first package, which is the one to train on.\n\n    {LONG}\n"""\n',
    "alpha/deep/maths.py": (
        "class Ring:\n"
        '    """A ring of integers; its docstring is long enough to stay."""\n'
        '    def short(self):\n        """Too short."""\n'
        '    async def wait(self):\n        """Waits for the ring to close, and then returns nothing at all."""\n'
    ),
    "alpha/tests/checks.py": '"""A docstring of a test folder, which must not be read at all."""\n',
    "alpha/test_maths.py": '"""A docstring of a test file, which must not be read at all."""\n',
    "alpha/broken.py": '"""A docstring in a file that is not Python at all."""\nthis is not python at all\n',
    "alpha/surrogate.py": '"""A lone surrogate \\ud800 has no UTF-8 form, so it is left out."""\n',
    "alpha/escape.py": '"""An invalid escape \\* is nothing to warn the reader of here."""\n',
    "beta/__init__.py": f'"""The second package.\n\n{LONG.replace(" ", "  ")}\n"""\n',
    "beta/own.py": '"""What only the second package says, in a line of its own."""\n',
    "gamma/__init__.py": (
        '"""What only the second package says, in a line of its own.\n\nAnd yet more of it, in a third package."""\n'
    ),
    "gamma/own.py": '"""What only the third package says, in a line of its own."""\n',
    "gamma/same.py": '"""A ring of integers; its docstring is long enough to stay."""\n',
}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, dict[str, Path]]:
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return {
        "train": {"alpha": tmp_path / "alpha"},
        "validation": {"beta": tmp_path / "beta"},
        "test": {"gamma": tmp_path / "gamma"},
    }


@pytest.mark.filterwarnings("error")
def test_docstrings_are_collected_and_kept_apart(folders: dict[str, dict[str, Path]]) -> None:
    made = docstrings.collect(folders)
    texts = {split: [row.text for row in rows] for split, rows in made.splits.items()}
    assert texts["train"] == [
        f"The first package, which is the one to train on.\n\n{LONG}",
        "A ring of integers; its docstring is long enough to stay.",
        "Waits for the ring to close, and then returns nothing at all.",
        "An invalid escape \\* is nothing to warn the reader of here.",
    ]
    assert texts["validation"] == ["What only the second package says, in a line of its own."]
    assert texts["test"] == ["What only the third package says, in a line of its own."]
    assert made.dropped == {"train": 0, "validation": 1, "test": 1}
    assert made.splits["test"][0].package == "gamma"


def test_a_changed_docstring_changes_the_fingerprint(folders: dict[str, dict[str, Path]]) -> None:
    first = docstrings.collect(folders)
    assert docstrings.collect(folders).fingerprint == first.fingerprint
    file = folders["test"]["gamma"] / "own.py"
    file.write_text(file.read_text().replace("third", "3rd"))
    assert docstrings.collect(folders).fingerprint != first.fingerprint


@pytest.fixture(scope="module")
def installed() -> docstrings.Corpus:
    """The installed packages with a smaller training split, so that the test is short."""
    return docstrings.collect(
        {split: {p: docstrings.root(p) for p in packages if p not in ("scipy", "jax", docstrings.PYTHON)}
         for split, packages in docstrings.SPLITS.items()}
    )  # fmt: skip


def _assert_no_long_line_is_shared(made: docstrings.Corpus) -> None:
    lines = {s: set().union(*(docstrings.long_lines(r.text) for r in rows)) for s, rows in made.splits.items()}
    assert len(lines["train"]) > 10_000
    assert lines["train"].isdisjoint(lines["validation"] | lines["test"])
    assert lines["validation"].isdisjoint(lines["test"])


def test_no_long_line_of_a_held_out_package_occurs_in_train(installed: docstrings.Corpus) -> None:
    _assert_no_long_line_is_shared(installed)
    for split in ("validation", "test"):
        assert 300_000 < sum(len(row.text) for row in installed.splits[split]) < 700_000


def test_docstrings_are_prepared_without_tensorflow(
    installed: docstrings.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docstrings, "corpus", lambda: installed)
    source = load_source(DataConfig(name="docstrings", cache=str(tmp_path)))
    rows = {split: [(row.package, row.text) for row in rows] for split, rows in installed.splits.items()}
    assert source.fingerprint == hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    (folder,) = (tmp_path / "prepared" / "docstrings").glob("*/docstrings/1.0.0")
    versions = json.loads((folder / "metadata.json").read_text())["versions"]
    assert versions["flax"] == importlib.metadata.version("flax")
    read = [(example["package"], example["text"]) for example in source.split("test")]
    assert sorted(read) == sorted(rows["test"])
    assert "tensorflow" not in sys.modules


@pytest.mark.slow
def test_all_installed_docstrings() -> None:
    made = docstrings.corpus()
    _assert_no_long_line_is_shared(made)
    assert 9e6 < sum(len(row.text) for row in made.splits["train"]) < 13e6
    assert {row.package for row in made.splits["train"]} == set(docstrings.SPLITS["train"])
    texts = [row.text for rows in made.splits.values() for row in rows]
    assert len(set(texts)) == len(texts)
