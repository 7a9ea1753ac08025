"""Sources of texts: what they hold, that nothing crosses from split to split, and a sentence for every bad file."""

import bz2
import collections
import gzip
import hashlib
import json
import lzma
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from transformer.config import Config, DataConfig, override
from transformer.data.batches.contiguous import ContiguousBatches
from transformer.data.batches.corpus import tokenize
from transformer.data.builder import share
from transformer.data.builtin import docstrings, languages, leads, prompts, summaries
from transformer.data.sources import load_source
from transformer.data.tokenizers.training import load_or_train
from transformer.errors import UserError
from transformer.tasks import LanguageModel

SPLITS = ("train", "validation", "test")


def config(folder: Path, name: str, **changes: str) -> DataConfig:
    return DataConfig(**{"name": name, "dir": str(folder), "cache": str(folder / "cache")} | changes)


def write(folder: Path, ending: str, train: str | bytes, other: str | bytes | None = None) -> None:
    for stem in ("train", "dev", "test"):
        content = train if stem == "train" or other is None else other
        (folder / f"{stem}{ending}").write_bytes(content.encode() if isinstance(content, str) else content)


# --- Labelled lines


def test_labelled_lines(tmp_path: Path) -> None:
    write(tmp_path, ".tsv", "good , a lot\t1\n\nbad\t of it \t0\n", "fine\t1\n")
    source = load_source(config(tmp_path, "sst2"))
    assert source.splits == SPLITS
    assert source.fields == ("text",)
    assert source.classes == ("negative", "positive")
    assert list(source.split("train")) == [{"text": "good , a lot", "label": 1}, {"text": "bad\t of it", "label": 0}]
    assert list(source.split("validation")) == [{"text": "fine", "label": 1}]
    assert load_source(config(tmp_path, "sst2")).fingerprint == source.fingerprint
    write(tmp_path, ".tsv", "a\ttwo\nb\tone\nc\ttwo\n", gzip.compress(b"d\tone\n"))
    other = load_source(config(tmp_path, "sst2"))
    assert other.classes == ("one", "two")
    assert [example["label"] for example in other.split("train")] == [1, 0, 1]
    assert other.fingerprint != source.fingerprint


@pytest.mark.parametrize(
    ("train", "other", "message"),
    [
        ("", "a\t1\n", r"train\.tsv is empty"),
        ("a\t1\nno label\n", "a\t1\n", r"train\.tsv has no text and label in line 2: write the text, a tab"),
        ("a\t1\n\t1\n", "a\t1\n", "no text and label in line 2"),
        ("a\t1\nb\t0\n", "a\t1\nb\t2\n", r"dev\.tsv has the class '2' in line 2, of which train has no"),
        (b"a\t1\n\xff\t1\n", "a\t1\n", r"train\.tsv is not valid UTF-8 in line 2"),
        (gzip.compress(b"a\t1\n" * 99, mtime=0)[:-9], "a\t1\n", r"train\.tsv is a damaged gzip file"),
        ("\n\n", "a\t1\n", r"train\.tsv has no text and label: write"),
        ("text\tlabel\n", "a\t1\n", r"train\.tsv has no text and label: write"),
        ("id\ttext\tlabel\n1\ta\t1\n", "a\t1\n", r"train\.tsv has the columns id, text, label: keep two of them"),
        ("1\ta\n0\tb\n1\tc\n", "1\ta\n", r"train\.tsv has more labels than texts: write the text first"),
        ("a\tPos\nb\tneg\nc\tpos\n", "a\tneg\n", r"train\.tsv has the classes 'Pos' and 'pos', which are alike"),
        ("a\t\u00e9\nb\te\u0301\n", "a\t\u00e9\n", "which are alike: write one of them"),
        ("a\t1\nb\t0\n".encode("utf-16"), "a\t1\n", r"train\.tsv is UTF-16, not UTF-8: convert it"),
    ],
)
def test_bad_labelled_lines(tmp_path: Path, train: str | bytes, other: str, message: str) -> None:
    write(tmp_path, ".tsv", train, other)
    with pytest.raises(UserError, match=message) as raised:
        load_source(config(tmp_path, "sst2"))
    assert "\n" not in str(raised.value)


def test_a_header_is_no_example(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = "a fine film\t1\na dull film\t 0\n"
    write(tmp_path, ".tsv", f"sentence\tLabel\n{rows}", rows)
    source = load_source(config(tmp_path, "sst2"))
    assert source.classes == ("negative", "positive")
    assert list(source.split("train")) == list(source.split("test"))
    assert re.search(r"line 1 of .*train\.tsv is left out", caplog.text)
    assert "dev.tsv" not in caplog.text
    # The name of a class that has more examples is none of a column.
    write(tmp_path, ".tsv", "a\ttarget\nb\tother\nc\ttarget\n")
    assert load_source(config(tmp_path, "sst2")).classes == ("other", "target")


def test_columns_that_are_read_as_text_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, ".tsv", "1\ta\t1\n2\tb\t0\n", "a\t1\nb\t c\t0\n")
    assert load_source(config(tmp_path, "sst2")).split("train")[0]["text"] == "1\ta"
    assert re.search(r"train\.tsv has 3 columns, and all but the last are read as the text", caplog.text)
    assert "dev.tsv" not in caplog.text


@pytest.mark.parametrize(("name", "file"), [("sst2", r"train\.tsv"), ("scitldr", r"train\.jsonl")])
def test_missing_files(tmp_path: Path, name: str, file: str) -> None:
    with pytest.raises(UserError, match=f"no file .*{file}: add it or change data.dir"):
        load_source(config(tmp_path, name))
    with pytest.raises(UserError, match=f"^{name} needs data.dir: name the folder of {file}"):
        load_source(config(tmp_path, name, dir=""))


# --- Abstracts


def test_abstracts(tmp_path: Path) -> None:
    row = {"source": ["One  sentence.", "Another\nof them.\n"], "target": [" First. ", "The second\none."], "x": 1}
    write(tmp_path, ".jsonl", json.dumps(row) + "\n\n" + json.dumps(row | {"target": ["Only."]}) + "\n")
    source = load_source(config(tmp_path, "scitldr"))
    assert source.splits == SPLITS
    first, second = source.split("test")
    abstract = "One sentence. Another of them."
    assert first == {"abstract": abstract, "summary": "First.", "references": "First.\nThe second one."}
    assert second == {"abstract": abstract, "summary": "Only.", "references": "Only."}
    assert source.pair(config(tmp_path, "scitldr", source="abstract", target="summary")) == ("abstract", "summary")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"train\.jsonl is no JSON in line 2 \(.*\): fetch it again"),
        ("{}", "has no field 'source' in line 2: add it, a list of strings"),
        ('{"source": ["a"]}', "has no field 'target' in line 2"),
        ("[1]", "has a list in line 2, where an object belongs"),
        ('"a"', "has a string in line 2, where an object belongs"),
        ("null", "has null in line 2, where an object belongs"),
        ('{"source": ["a"], "target": [3]}', "has a number in 'target' of line 2, where a list of strings belongs"),
        ('{"source": "spaced", "target": ["a"]}', "has a string in 'source' of line 2, where a list of strings"),
        ('{"source": ["a"], "target": "a"}', "has a string in 'target' of line 2, where a list of strings"),
        ('{"source": null, "target": ["a"]}', "has null in 'source' of line 2, where a list of strings"),
        ('{"source": [null], "target": ["a"]}', "has null in 'source' of line 2"),
        ('{"source": {"a": 1}, "target": ["a"]}', "has an object in 'source' of line 2"),
        ('{"source": [["a"]], "target": ["a"]}', "has a list in 'source' of line 2"),
        ('{"source": [true], "target": ["a"]}', "has true or false in 'source' of line 2"),
        (r'{"source": ["a\ud800"], "target": ["a"]}', "has a NUL or half a character in 'source' of line 2"),
        (r'{"source": ["a"], "target": ["a\u0000"]}', "has a NUL or half a character in 'target' of line 2"),
        ("[" * 100_000, "is no JSON in line 2"),
        ('{"source": ["a"], "target": []}', "an empty summary in line 2"),
        ('{"source": [" "], "target": ["a"]}', "no abstract or an empty summary in line 2"),
    ],
)
def test_bad_abstracts(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path, ".jsonl", f'{{"source": ["a"], "target": ["b"]}}\n{line}\n')
    with pytest.raises(UserError, match=message):
        load_source(config(tmp_path, "scitldr"))


# --- One text


def test_one_text(tmp_path: Path) -> None:
    text = "".join(f"Zeile {i} ü\u2028\x85\x0b\n" for i in range(97))
    (tmp_path / "input.txt").write_bytes(text.encode())
    parts = (text[: int(len(text) * 0.9)], text[int(len(text) * 0.9) :])
    for changes in ({}, {"dir": "", "target": str(tmp_path / "input.txt")}):
        data = config(tmp_path, "text", **changes)
        source = load_source(data)
        assert [list(source.split(split)) for split in SPLITS] == [[{"text": p}] for p in (*parts, parts[1])]
        assert source.contiguous
        assert source.field(data.target) == "text"


def test_a_language_model_reads_one_text_as_it_stands(tmp_path: Path) -> None:
    text = "".join(f"Line {i}\n" for i in range(300))
    (tmp_path / "input.txt").write_text(text)
    changes = {"name": "text", "dir": str(tmp_path), "cache": str(tmp_path / "cache"), "tokenizer": "characters"}
    changes |= {"max_len": 16, "batch_tokens": 64, "buckets": [16]}
    config = override(Config(), {f"data.{key}": value for key, value in changes.items()})
    config = override(config, {"task": "language_model", "model.family": "decoder_only", "model.d_model": 16})
    source = load_source(config.data)
    tokenizer = load_or_train(source, config.data, LanguageModel.fields(config, source))
    batches = LanguageModel(config, tokenizer).batches(source, "validation")
    assert isinstance(batches, ContiguousBatches)
    read = [
        row[:length]
        for b in batches.evaluation()
        for row, length in zip(b["targets"], b["target_lengths"], strict=True)
    ]
    assert tokenizer.decode(np.concatenate(read)) == text[int(len(text) * 0.9) + 1 :]
    tokens = tokenize(source, "train", ("text",), tokenizer, config.data)["text"]
    assert len(tokens.flat) == int(len(text) * 0.9)


LINES = "".join(f"Zeile {i} ü\n" for i in range(9))


@pytest.mark.parametrize(
    "content",
    [
        LINES.replace("\n", "\r\n").encode(),
        LINES.replace("\n", "\r").encode(),
        LINES.encode("utf-8-sig"),
        gzip.compress(LINES.encode(), mtime=0),
        bz2.compress(LINES.encode()),
        lzma.compress(LINES.encode()),
    ],
    ids=["CRLF", "CR", "BOM", "gzip", "bzip2", "xz"],
)
def test_the_same_text_in_another_form(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "input.txt").write_bytes(content)
    source = load_source(config(tmp_path, "text"))
    assert "".join(source.split(split)[0]["text"] for split in ("train", "validation")) == LINES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has only 0 characters"),
        (b"short", "has only 5 characters"),
        (b"a\n" * 30 + b"\xff", "is not valid UTF-8 in line 31: convert it"),
        (LINES.encode("utf-16"), "is UTF-16, not UTF-8: convert it, for example with iconv -f UTF-16 -t UTF-8"),
        (LINES.encode("utf-32"), "is UTF-32, not UTF-8"),
        (LINES.encode("utf-16-le"), r"has a NUL character in line 1, which is in no text: .*UTF-16LE"),
        (b"a\n" * 30 + b"b\0\n", "has a NUL character in line 31"),
        (b"PK\x03\x04" + bytes(99), "is a zip archive: unpack it, or compress it by gzip, bzip2, xz or zstd"),
        (b"(\xb5/\xfd" + bytes(99), "is a damaged zstd file"),
        (bz2.compress(LINES.encode())[:-9], "is a damaged bzip2 file"),
        (lzma.compress(LINES.encode())[:-9], "is a damaged xz file"),
        (gzip.compress(LINES.encode(), mtime=0) + b"junk", "is a damaged gzip file"),
    ],
)
def test_bad_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "input.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"input\.txt {message}") as raised:
        load_source(config(tmp_path, "text"))
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"no text file .*none: name one in data\.target"):
        load_source(config(tmp_path, "text", dir="", target=str(tmp_path / "none")))


def test_json_is_not_read_as_it_stands_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = "".join(f'{{"text": "line {i}"}}\n' for i in range(9))
    for name in ("a.jsonl", "a.json", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
        with pytest.raises(
            UserError, match=f"{name} is JSON, which would be read as it stands: read it with data.name=table"
        ):
            load_source(config(tmp_path, "text", dir="", target=str(tmp_path / name)))
    (tmp_path / "input.txt").write_text(content)
    load_source(config(tmp_path, "text"))
    assert "input.txt begins with a JSON object, and is read as it stands" in caplog.text


# --- Summaries

BODY = "The lengths of the sides may be given in any unit, but all of them must be in the same one; see the notes."


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        (f"Area of a\npolygon.\n\n{BODY}\n\n    >>> area(2)\n", (f"{BODY} >>> area(2)", "Area of a polygon.")),
        (f"Area of a polygon.\n{BODY}", None),  # no paragraphs
        ("Area of a polygon.\n\nThe body is too short to be worth a summary.", None),
        (f"area(sides, unit)\n\n{BODY}", None),
        (f"Polygons\n\n{BODY}", None),  # a heading
        (f"Area of a polygon.\n\n.. math:: {BODY}\n>>> {BODY}\n-------", None),  # markup and code alone
    ],
)
def test_pair_of_a_docstring(docstring: str, expected: tuple[str, str] | None) -> None:
    assert summaries.pair_of(docstring) == expected


def test_long_bodies_end_with_a_whole_word() -> None:
    most = summaries.MAX_CHARACTERS
    assert summaries.shortened("a" * most) == "a" * most
    assert summaries.shortened("a" * most + " b") == "a" * most
    assert summaries.shortened("ab " * most) == ("ab " * most)[:most].rsplit(" ", 1)[0]
    assert summaries.shortened("a" * (most + 1)) == "a" * most


def test_a_pair_belongs_to_one_split() -> None:
    def row(text: str) -> docstrings.Docstring:
        return docstrings.Docstring(text, "package")

    one, other = (f"{start} of a polygon.\n\n{BODY}" for start in ("Area", "Length"))
    corpus = docstrings.Corpus({"train": (row(one), row(one + "\n")), "test": (row(one), row(other))}, {})
    made = summaries.splits(corpus)
    assert made["train"] == [{"body": BODY, "summary": "Area of a polygon."}]
    assert made["test"] == [{"body": BODY, "summary": "Length of a polygon."}]


def test_accents_make_no_second_text_however_they_are_written(tmp_path: Path) -> None:
    composed = "Area of a café's garden. Its sides may cross. End of it, and of all that is to be said."
    texts = [f"{composed}\n\n{BODY}", unicodedata.normalize("NFD", f"{composed}\n\n{BODY}")]
    for split, text in zip(("train", "test"), texts, strict=True):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.py").write_text(f'"""{text}"""\n', encoding="utf-8")
        (tmp_path / split / "b.py").write_text(f'"""Other text of {split}.\n\n{text}"""\n', encoding="utf-8")
    made = docstrings.collect({split: {"package": tmp_path / split} for split in ("train", "test")})
    assert made.splits["train"][0].text == texts[0]
    assert not made.splits["test"]
    rows = [docstrings.Docstring(text, "package") for text in texts]
    both = docstrings.Corpus({"train": (rows[0],), "test": (rows[1],)}, {})
    for splits in (summaries.splits(both), leads.splits(both)):
        assert splits["train"]
        assert not splits["test"]


def test_every_sentence_leads_what_follows_it() -> None:
    docstring = "Area of a polygon. Its\n  sides may cross! Yes. What happens to a side of no length? Nothing at all"
    rest = " ".join(docstring.split())
    assert list(leads.pairs_of(docstring)) == [
        (rest, "Area of a polygon."),
        (rest[19:], "Its sides may cross!"),
        (rest[45:], "What happens to a side of no length?"),  # "Yes." is too short, and after the last comes nothing
    ]
    assert next(leads.pairs_of("one two three. " + "word " * 200))[0] == "one two three." + " word" * 77
    assert leads.first_sentence(" Is it? Yes.") == "Is it?"


def test_leads_of_one_split_are_in_no_other() -> None:
    texts = ["Area of a polygon. Its sides may cross. End.", "Length of a polygon. Its sides may cross. End."]
    rows = [docstrings.Docstring(text, "package") for text in texts]
    made = leads.splits(docstrings.Corpus({"train": (rows[0],), "test": (rows[1],)}, {}))
    assert [pair["summary"] for pair in made["train"]] == ["Area of a polygon.", "Its sides may cross."]
    assert [pair["summary"] for pair in made["test"]] == ["Length of a polygon."]


def test_summaries_of_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = {"train": "optax", "validation": "flax", "test": "absl"}
    folders = {split: {package: docstrings.root(package)} for split, package in packages.items()}
    made = docstrings.collect(folders)
    monkeypatch.setattr(docstrings, "corpus", lambda: made)
    source = load_source(config(tmp_path, "summaries", dir=""))
    assert source.fields == ("body", "summary")
    pairs = {split: [(e["body"], e["summary"]) for e in source.split(split)] for split in SPLITS}
    assert len(pairs["train"]) > 150
    assert not set(pairs["train"]) & set(pairs["test"])
    for body, summary in pairs["train"]:
        assert len(body) <= summaries.MAX_CHARACTERS
        assert len(re.findall("[a-zA-Z]{2,}", body)) >= summaries.MIN_WORDS
        assert len(summary.split()) <= 80
        assert "\n" not in body + summary


# --- Languages


def test_languages_are_told_apart_on_names_that_training_has_not_seen() -> None:
    made = languages.splits()
    assert list(languages.LANGUAGES) == sorted(set(languages.LANGUAGES))
    assert 20 <= len(languages.LANGUAGES) <= 40
    texts = [unicodedata.normalize("NFC", row["text"]).casefold() for rows in made.values() for row in rows]
    assert len(texts) == len(set(texts)) > 30_000
    for split, least in {"train": 500, "validation": 50, "test": 50}.items():
        counts = collections.Counter(row["label"] for row in made[split])
        assert set(counts) == set(range(len(languages.LANGUAGES)))
        assert min(counts.values()) > least


def test_a_concept_has_all_its_names_in_one_split() -> None:
    made = languages.splits()
    where = {(row["label"], row["text"]): split for split, rows in made.items() for row in rows}
    keys: dict[tuple[int, str], set[str]] = collections.defaultdict(set)
    for label, language in enumerate(languages.LANGUAGES):
        for key, name in languages.names(language):
            keys[label, name].add(key)
    of_key: dict[str, set[str]] = collections.defaultdict(set)
    for name, split in where.items():
        if len(keys[name]) == 1:  # others count for the first of their keys
            of_key[next(iter(keys[name]))].add(split)
    assert len(of_key) > 1000
    assert all(len(splits) == 1 for splits in of_key.values())
    assert collections.Counter(map(languages.split_of, of_key))["train"] / len(of_key) == pytest.approx(0.8, abs=0.04)
    assert languages.split_of("territories CH") == next(iter(of_key["territories CH"]))


def test_a_name_of_two_languages_is_left_out() -> None:
    de, en = languages.LANGUAGES.index("de"), languages.LANGUAGES.index("en")
    texts = {
        label: {r["text"] for rows in languages.splits().values() for r in rows if r["label"] == label}
        for label in (de, en)
    }
    assert "September" not in texts[de] | texts[en]
    assert "Mittwoch" in texts[de]
    assert "Wednesday" in texts[en]
    assert "Switzerland" in texts[en]


# --- Prompts


def test_prompts_are_right_and_unseen() -> None:
    made = prompts.splits()
    operands: dict[str, set[frozenset[int]]] = {}
    numbers: dict[str, dict[str, str]] = {}
    for split, rows in made.items():
        operands[split], numbers[split] = set(), {}
        for row in rows:
            assert row["text"] == row["prompt"] + row["answer"]
            if match := re.fullmatch(r"(\d+)\+(\d+)=(\d+)", row["text"]):
                a, b, total = map(int, match.groups())
                assert a + b == total <= 999
                assert row["prompt"] == f"{a}+{b}="
                operands[split].add(frozenset((a, b)))
            else:
                english, german = row["text"].split(" -> ")
                numbers[split][english] = german
    for parts in (operands, {split: set(found) for split, found in numbers.items()}):
        assert not set(parts["train"]) & (set(parts["test"]) | set(parts["validation"]))
        assert not set(parts["test"]) & set(parts["validation"])
        sizes = {split: len(found) for split, found in parts.items()}
        assert sizes["test"] / sum(sizes.values()) == pytest.approx(0.1, abs=0.015)
    assert sum(map(len, numbers.values())) == 1000
    everything = numbers["train"] | numbers["validation"] | numbers["test"]
    assert everything["twenty-four"] == "vierundzwanzig"
    assert everything["nine hundred and ninety-nine"] == "neunhundertneunundneunzig"
    small = {frozenset((a, b)) for a in range(100) for b in range(100)}
    assert small <= set().union(*operands.values())
    # Every English word and every letter of a held-out number has been seen.
    known = {word for english in numbers["train"] for word in re.findall(r"\w+", english)}
    assert all(set(re.findall(r"\w+", english)) <= known for english in numbers["test"])


def test_prompts_are_prepared_as_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {split: rows[:20] for split, rows in prompts.splits().items()}
    monkeypatch.setattr(prompts, "splits", lambda: few)
    source = load_source(config(tmp_path, "prompts"))
    assert {split: list(source.split(split)) for split in SPLITS} == few
    assert source.fingerprint == hashlib.sha256(json.dumps(few, sort_keys=True).encode()).hexdigest()
    assert source.classes == ()
    assert not source.contiguous


# --- Shares


def test_shares_are_even_and_do_not_drift() -> None:
    values = np.array([share("key", i) for i in range(4000)])
    counts = np.histogram(values, bins=10, range=(0, 1))[0]
    assert (abs(counts - 400) < 4 * 19).all()
    assert share("a", 1) == pytest.approx(0.14976907794029357)
    assert share("a", 1) != share("a1")
