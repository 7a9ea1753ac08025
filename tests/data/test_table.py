"""Own files of every form as one dataset: what is read, how it is split, which classes there are, and a sentence with
file and row for what people get wrong."""

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer.config import ColumnsConfig, DataConfig
from transformer.data.sources import load_source
from transformer.data.sources.source import Source
from transformer.data.sources.table import splits
from transformer.errors import UserError

SPLITS = ("train", "validation", "test")
ROWS = [(f"row {i} of {'cats' if i % 3 else 'dogs'}", "cat" if i % 3 else "dog") for i in range(120)]


def opened(folder: Path, *files: str, columns: dict[str, Any] | None = None, **changes: Any) -> Source:
    roles = ColumnsConfig(**columns or {})
    values = {"name": "table", "dir": str(folder), "cache": str(folder / ".cache"), "files": files, "columns": roles}
    return load_source(DataConfig(**values | changes))


def everything(source: Source) -> list[tuple[Any, ...]]:
    """All examples of all splits, without their order."""
    return sorted(tuple(example.values()) for split in source.splits for example in source.split(split))


def as_csv(rows: list[tuple[str, ...]], header: tuple[str, ...], separator: str = ",") -> str:
    made = io.StringIO()
    csv.writer(made, delimiter=separator, lineterminator="\n").writerows([header, *rows])
    return made.getvalue()


def as_arrow(folder: Path, table: pyarrow.Table, parts: int = 2) -> None:
    """A folder as `datasets.Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{parts:05d}.arrow" for number in range(parts)]
    size = -(-table.num_rows // parts)
    for number, name in enumerate(names):
        with pyarrow.OSFile(str(folder / name), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(number * size, size))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def with_classes(table: pyarrow.Table, names: list[str]) -> pyarrow.Table:
    """With what `datasets` writes into a schema for a ClassLabel."""
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def lines(folder: Path) -> tuple[str, dict[str, str]]:
    (folder / "a.txt").write_text("".join(f"{text}\n" for text, _ in ROWS))
    return "a.txt", {}


def json_lines(folder: Path) -> tuple[str, dict[str, str]]:
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"id": 1, "body": text, "k": kind}) + "\n" for text, kind in ROWS)
    )
    return "a.jsonl", {"text": "body", "label": "k"}


def nested(folder: Path) -> tuple[str, dict[str, str]]:
    rows = [{"row": {"body": text, "k": {"x": kind}}} for text, kind in ROWS]
    (folder / "a.ndjson").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    return "a.ndjson", {"text": "row.body", "label": "row.k.x"}


def comma_separated(folder: Path) -> tuple[str, dict[str, str]]:
    (folder / "a.csv").write_text(as_csv(ROWS, ("text", "label")))
    return "a.csv", {}


def tab_separated(folder: Path) -> tuple[str, dict[str, str]]:
    (folder / "a.tsv").write_text("".join(f"7\t{text}\t{kind}\n" for text, kind in ROWS))
    return "a.tsv", {"text": "2", "label": "3"}


def of_parquet(folder: Path) -> tuple[str, dict[str, str]]:
    table = pyarrow.table({"n": list(range(len(ROWS))), "text": [r[0] for r in ROWS], "label": [r[1] for r in ROWS]})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=50)
    return "a.parquet", {}


def saved_to_disk(folder: Path) -> tuple[str, dict[str, str]]:
    table = pyarrow.table({"t": [r[0] for r in ROWS], "label": [("cat", "dog").index(r[1]) for r in ROWS]})
    as_arrow(folder / "saved", with_classes(table, ["cat", "dog"]), 3)
    return "saved", {"text": "t"}


FORMS: list[Callable[[Path], tuple[str, dict[str, str]]]] = [
    lines, json_lines, nested, comma_separated, tab_separated, of_parquet, saved_to_disk
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_same_rows_in_every_form(tmp_path: Path, form: Any) -> None:
    name, columns = form(tmp_path)
    source = opened(tmp_path, name, columns=columns)
    assert source.fields == ("text",)
    assert source.splits == SPLITS
    if form is lines:
        assert everything(source) == sorted((text,) for text, _ in ROWS)
        assert source.facts == {}
        return
    assert source.classes == ("cat", "dog")
    assert everything(source) == sorted((text, ("cat", "dog").index(kind)) for text, kind in ROWS)
    # Every form has the rows in the same splits, in the order of the file.
    (tmp_path / "plain").mkdir()
    plain = opened(tmp_path / "plain", comma_separated(tmp_path / "plain")[0])
    for split in SPLITS:
        assert list(source.split(split)) == list(plain.split(split))
        order = [int(example["text"].split()[1]) for example in source.split(split)]
        assert order == sorted(order)
    if form is not saved_to_disk:  # whose labels are numbers in the file
        assert source.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("ending", "compressed"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda content: pyarrow.compress(content, "zstd", asbytes=True)),
    ],
)
def test_compressed_files(tmp_path: Path, ending: str, compressed: Callable[[bytes], bytes]) -> None:
    content = as_csv(ROWS, ("text", "label")).encode()
    (tmp_path / "a.csv").write_bytes(content)
    (tmp_path / f"b.csv{ending}").write_bytes(compressed(content))
    assert opened(tmp_path, f"b.csv{ending}").fingerprint == opened(tmp_path, "a.csv").fingerprint


def test_quoted_fields_and_empty_lines(tmp_path: Path) -> None:
    rows = [(f'a "quote", {i}\nand a line', str(i % 2)) for i in range(60)]
    (tmp_path / "a.csv").write_text(as_csv(rows, ("text", "label")).replace("\n0,", "\n\n0,"))
    source = opened(tmp_path, "a.csv", split="sizes:50%/50%")
    assert [example["text"] for split in source.splits for example in source.split(split)] == [text for text, _ in rows]
    # In TSV a quote is a letter as any other.
    (tmp_path / "b.tsv").write_text("".join(f'"open {i}\tx{i % 2}\n' for i in range(60)))
    source = opened(tmp_path, "b.tsv", columns={"text": "1", "label": "2"})
    assert source.split("train")[0]["text"] == '"open 0'


def test_pairs_and_references(tmp_path: Path) -> None:
    rows = [{"article": f"a {i}", "title": f"t {i}", "others": [f"o {i}", f"p\n{i}"]} for i in range(90)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    roles = {"source": "article", "target": "title", "reference": "others"}
    data = DataConfig(name="table", source="article", target="title")
    source = opened(tmp_path, "a.jsonl", columns=roles, source="article", target="title")
    assert source.pair(data) == ("source", "target")
    found = {example["source"]: example for split in SPLITS for example in source.split(split)}
    assert found["a 7"] == {"source": "a 7", "target": "t 7", "references": "o 7\np 7"}
    with_none = [row | {"others": []} for row in rows]  # a row without further references is one still
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in with_none))
    assert len(everything(opened(tmp_path, "b.jsonl", columns=roles))) == 90


def test_a_translation_of_datasets(tmp_path: Path) -> None:
    pairs = pyarrow.array([{"en": f"one {i}", "de": f"eins {i}"} for i in range(60)])
    for split in ("train", "test"):
        as_arrow(tmp_path / "saved" / split, pyarrow.table({"translation": pairs, "id": list(range(60))}))
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    source = opened(tmp_path, "saved", columns={"source": "translation.en", "target": "translation.de"})
    assert [len(source.split(split)) for split in SPLITS] == [56, 4, 60]  # some of train are kept for validation
    assert source.split("test")[2] == {"source": "one 2", "target": "eins 2"}


# --- Which files


def test_splits_by_the_names_of_files(tmp_path: Path) -> None:
    for name, first in (("train-00000-of-00002", 0), ("train-00001-of-00002", 10), ("dev", 20), ("x.test", 30)):
        (tmp_path / f"{name}.txt").write_text("".join(f"line {first + i}\n" for i in range(10)))
    source = opened(tmp_path, "*.txt")
    assert [len(source.split(split)) for split in SPLITS] == [20, 10, 10]
    assert [example["text"] for example in source.split("test")][:2] == ["line 30", "line 31"]
    said = opened(tmp_path, "train=*.txt", "test=dev.txt", split="files")
    assert len(said.split("train")) + len(said.split("validation")) == 40
    assert len(said.split("test")) == 10
    (tmp_path / "deep" / "train").mkdir(parents=True)
    (tmp_path / "deep" / "test").mkdir()
    for split in ("train", "test"):
        (tmp_path / "deep" / split / "b.csv").write_text(as_csv(ROWS, ("text", "label")))
        (tmp_path / "deep" / split / "_hidden.csv").write_text("?")
    assert len(opened(tmp_path, "deep").split("test")) == len(ROWS)


def test_a_split_by_hash_stays_whatever_else_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(as_csv([*ROWS, *ROWS[:40]], ("text", "label")))
    parts = {split: {e["text"] for e in opened(tmp_path, "a.csv").split(split)} for split in SPLITS}
    assert not parts["train"] & parts["validation"]
    assert not parts["train"] & parts["test"]
    (tmp_path / "b.csv").write_text(as_csv(ROWS[::-1], ("text", "label")))
    again = {split: {e["text"] for e in opened(tmp_path, "b.csv").split(split)} for split in SPLITS}
    assert again == parts


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [
        ("sizes:80%/10%/10%", [96, 12, 12]),
        ("sizes:100/7/13", [100, 7, 13]),
        ("sizes:50%/50%", [60, 60]),
        ("sizes:90/5/5", [90, 5, 5]),
        ("sizes:60/20", [60, 20]),
    ],
)
def test_splits_by_sizes_in_order(
    tmp_path: Path, rule: str, sizes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.csv").write_text(as_csv(ROWS[:50], ("text", "label")))
    (tmp_path / "b.csv").write_text(as_csv(ROWS[50:], ("text", "label")))
    source = opened(tmp_path, "a.csv", "b.csv", split=rule)
    assert [len(source.split(split)) for split in source.splits] == sizes
    found = [example["text"] for split in source.splits for example in source.split(split)]
    assert found == [text for text, _ in ROWS][: sum(sizes)]
    told = f"table: the last {len(ROWS) - sum(sizes)} of {len(ROWS)} rows are not used" in caplog.text
    assert told == (sum(sizes) < len(ROWS))


@pytest.mark.parametrize("count", [6, 13, 30])
def test_a_few_texts_are_in_every_split(tmp_path: Path, count: int, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(count):
        (tmp_path / f"{i:02d}.txt").write_text(f"text {i}\n")
    source = opened(tmp_path, "*.txt", documents="file")
    assert [len(source.split(split)) for split in SPLITS] == [
        count - 2 * max(1, round(count / 20)),
        *[max(1, round(count / 20))] * 2,
    ]
    assert "those with the lowest hashes are held out" in caplog.text
    assert len(everything(source)) == count
    for split in SPLITS:
        texts = source.split(split).texts("text")
        assert texts is not None
        assert len(texts) == len(source.split(split))
        assert len(texts.values) == int(texts.ends[-1])
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    for split in ("train", "test"):
        (tmp_path / split / "a.txt").write_text("".join(f"line {i} of {split}\n" for i in range(count)))
    said = opened(tmp_path, "train", "test")
    assert len(said.split("validation")) >= 1
    assert len(said.split("test")) == count


@given(st.integers(1, 98), st.integers(0, 40))
def test_shares_of_a_hash(train: int, validation: int) -> None:
    validation = min(validation, 100 - train)
    rule = splits.parse(f"hash:{train}/{validation}/{100 - train - validation}", False)
    found = [rule.hashed(f"text {i}") for i in range(2000)]
    assert abs(found.count("train") / 2000 - train / 100) < 0.05
    assert abs(found.count("validation") / 2000 - validation / 100) < 0.05


def test_a_document_is_a_line_or_a_file(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i:02d}.txt").write_text(f"first {i}\n\nsecond {i}\n")
    assert len(everything(opened(tmp_path, "*.txt"))) == 80
    assert everything(opened(tmp_path, "*.txt", documents="file"))[0] == ("first 0\n\nsecond 0",)
    whole = opened(tmp_path, "*.txt", name="text", split="sizes:50%/50%")
    text = "".join(f"first {i}\n\nsecond {i}\n" for i in range(40))
    assert "".join(whole.split(split)[0]["text"] for split in ("train", "validation")) == text
    assert whole.contiguous


def test_a_mixture_has_its_members_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(as_csv(ROWS[:30], ("text", "label")))
    (tmp_path / "b=c.jsonl").write_text("".join(json.dumps({"text": t, "label": k}) + "\n" for t, k in ROWS[30:]))
    source = opened(tmp_path, mix=("a.csv=0.25", "b=c.jsonl=3"), split="hash:80/20")
    assert source.mix == {"a.csv": 0.25, "b=c.jsonl": 3.0}
    order = [int(example["text"].split()[1]) for example in source.split("train")]
    first = sum(number < 30 for number in order)
    assert all(number < 30 for number in order[:first])


def test_files_that_did_not_change_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, columns = json_lines(tmp_path)
    first = opened(tmp_path, name, columns=columns)
    with monkeypatch.context() as patch:
        patch.setattr("transformer.data.sources.table.prepared.Preparation.run", lambda self: pytest.fail("read again"))
        assert opened(tmp_path, name, columns=columns).fingerprint == first.fingerprint
    changed = (tmp_path / name).read_text().replace('"cat"', '"cow"', 1)
    (tmp_path / name).write_text(changed)
    assert opened(tmp_path, name, columns=columns).classes == ("cat", "cow", "dog")


def test_numbers_as_classes(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": (10, 9, -1)[i % 3]} for i in range(90)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = opened(tmp_path, "a.jsonl")
    assert source.classes == ("-1", "9", "10")
    assert source.facts["labels"] == {"-1": 0, "9": 1, "10": 2}
    assert {e["text"]: e["label"] for s in SPLITS for e in source.split(s)}["t 3"] == 2


def test_rows_without_a_text_are_told_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*ROWS[:40], ("", "cat"), *ROWS[40:], ("  ", "dog")]
    (tmp_path / "a.csv").write_text(as_csv(rows, ("text", "label")))
    with caplog.at_level(logging.WARNING):
        source = opened(tmp_path, "a.csv")
    assert len(everything(source)) == len(ROWS)
    assert "2 examples of" in caplog.text
    assert "a.csv are left out: a text is empty, first in line 42" in caplog.text


# --- Mistakes: each sentence names the file, and the row where there is one


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def objects(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


GOOD = objects(*({"text": text, "label": kind} for text, kind in ROWS))
TABLE = as_csv(ROWS, ("text", "label"))
PAIRS = "".join(f"{text}\t{text.upper()}\n" for text, _ in ROWS)


def parquet(**columns: Any) -> bytes:
    made = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), made)
    return made.getvalue()


MISTAKES: dict[str, tuple[dict[str, str | bytes], dict[str, Any], str]] = {
    # 1. one text
    "no such file": ({}, {"files": ("b.txt",), "name": "text"}, r"data.files has 'b\.txt', and there is no such file"),
    "too short": ({"a.txt": "one\n"}, {"files": ("a.txt",), "name": "text"}, r"a\.txt has only 4 characters"),
    "latin": ({"a.txt": b"ab\n" * 30 + b"\xfc\n"}, {"files": ("a.txt",), "name": "text"}, r"a\.txt .*UTF-8 in line 31"),
    # 2. a folder of texts
    "an empty folder": ({"f/a.docx": "x"}, {"files": ("f",)}, r"folder .*f holds no file of \.txt"),
    "one is empty": ({"f/a.txt": "one\n" * 9, "f/b.txt": ""}, {"files": ("f",)}, r"b\.txt is empty"),
    "one is binary": ({"f/a.txt": "one\n" * 9, "f/b.txt": b"a\n\0b"}, {"files": ("f",)}, r"b\.txt .*NUL.* in line 2"),
    # 3. a corpus in many files
    "cut off": (
        {"c/1.txt.gz": gzip.compress(b"one\n" * 99, mtime=0)[:-9]}, {"files": ("c/*.gz",)}, r"1\.txt\.gz is a damaged"
    ),
    "weights": ({"a.txt": "one\n"}, {"mix": ("a.txt",)}, r"data.mix has 'a\.txt': write a file or a glob"),
    "rows for sizes": ({"a.txt": "one\ntwo\n"}, {"files": ("a.txt",), "split": "sizes:9/5"}, r"a\.txt"),
    # 4. JSON lines
    "a field": ({"a.jsonl": objects({"body": "x", "n": 1})}, {"files": ("a.jsonl",)}, r"l has the columns body, n"),
    "a number": ({"a.jsonl": GOOD + objects({"text": 3, "label": "cat"})}, {"files": ("a.jsonl",)},
                 r"a\.jsonl has a number in 'text' of line 121, where a text belongs"),
    "broken": ({"a.jsonl": GOOD + '{"text": "x"\n'}, {"files": ("a.jsonl",)}, r"a\.jsonl is no JSON in line 121"),
    "a row without": ({"a.jsonl": GOOD + objects({"text": "x"})}, {"files": ("a.jsonl",)},
                      r"a\.jsonl has no field 'label' in line 121 \(its fields are text\)"),
    # 5. Parquet
    "a column": ({"a.parquet": parquet(text=["a"], label=[1])}, {"files": ("a.parquet",), "columns": {"text": "txt"}},
                 r"a\.parquet has no column 'txt', which data\.columns\.text names: did you mean 'text'"),
    "numbers": ({"a.parquet": parquet(text=[1, 2])}, {"files": ("a.parquet",)},
                r"a\.parquet has a number in 'text' of row 1, where a text belongs"),
    "no Parquet": ({"a.parquet": parquet(text=["a"])[:-20]}, {"files": ("a.parquet",)}, r"a\.parquet is no Parquet"),
    # 6. TSV with classes
    "no header": ({"a.tsv": "good\t1\nbad\t0\n"}, {"files": ("a.tsv",)}, r"a\.tsv has the columns good, 1, .* from 1"),
    "only in test": ({"train.tsv": "text\tlabel\na\t1\nb\t0\n" * 1, "test.tsv": "text\tlabel\nc\t1\nd\t2\n"},
                     {"files": ("train=train.tsv", "validation=train.tsv", "test=test.tsv")},
                     r"test\.tsv has the class '2' in line 3, of which train has no example"),
    "a short row": ({"a.tsv": "text\tlabel\na\t1\nb\n"}, {"files": ("a.tsv",)}, r"a\.tsv has 1 fields in line 3"),
    # 7. CSV with classes
    "semicolons": ({"a.csv": "text;label\na;1\n"}, {"files": ("a.csv",)}, r"a\.csv has ';' between fields in line 1"),
    "a quote": ({"a.csv": 'text,label\na,1\n"b,0\n'}, {"files": ("a.csv",)}, r"a\.csv is no CSV file in line 3"),
    "no class": ({"a.csv": as_csv([(t, t) for t, _ in ROWS], ("text", "label"))}, {"files": ("a.csv",)},
                 r"a\.csv has \d+ classes in \d+ rows of train: name the column of the class in data\.columns\.label"),
    "no label": ({"a.csv": TABLE + "x,\n"}, {"files": ("a.csv",)}, r"a\.csv has no label in 'label' of line 122"),
    "two spellings": ({"a.csv": TABLE + "x,Cat\n" * 30}, {"files": ("a.csv",)}, r"the classes 'Cat' and 'cat'"),
    # 8. TSV pairs
    "one side": ({"a.tsv": "en\tde\n" + PAIRS}, {"files": ("a.tsv",), "columns": {"source": "en"}},
                 r"a\.tsv has a source and no target \(its columns are en, de\): name it in data\.columns\.target"),
    "both one": ({"a.tsv": "en\tde\n" + PAIRS}, {"files": ("a.tsv",), "columns": {"source": "en", "target": "en"}},
                 r"data\.columns\.source and data\.columns\.target name one column of .*a\.tsv, 'en'"),
    "three": ({"a.tsv": PAIRS + "a\tb\tc\n"}, {"files": ("a.tsv",), "columns": {"source": "1", "target": "2"}},
              r"a\.tsv has 3 fields in line 121, and 2 in its first"),
    "all empty": ({"a.tsv": "one\t\n" * 30}, {"files": ("a.tsv",), "columns": {"source": "1", "target": "2"}},
                  r"a\.tsv has 30 rows, and none with a text"),
    # What all have in common
    "a rule": ({"a.csv": TABLE}, {"files": ("a.csv",), "split": "hash:90/5"}, r"data\.split='hash:90/5' is no rule"),
    "no ending": ({"a": "x"}, {"files": ("a",)}, r"a has no ending that says its form: rename it to one of \.txt"),
    "some say": ({"a.csv": TABLE, "b.csv": TABLE}, {"files": ("train=a.csv", "b.csv")}, r"has 'b\.csv' without"),
    "no train": ({"a.csv": TABLE}, {"files": ("test=a.csv",)}, r"data\.files names no files of the split train"),
    "nothing": ({}, {"files": ()}, r"table reads data\.files or data\.mix, and neither is set"),
    "one class": ({"a.csv": as_csv([(t, "x") for t, _ in ROWS], ("text", "label"))}, {"files": ("a.csv",)},
                  r"a\.csv has one class only, 'x'"),
    "mixed classes": ({"a.jsonl": GOOD + objects(*[{"text": f"x{i}", "label": 3} for i in range(9)])},
                      {"files": ("a.jsonl",)},
                      r"a\.jsonl has the class '(cat|dog)' in line \d, and numbers elsewhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(tmp_path: Path, name: str) -> None:
    files, changes, said = MISTAKES[name]
    write(tmp_path, files)
    columns = changes.pop("columns", {}) if "columns" in (changes := dict(changes)) else {}
    with pytest.raises(UserError, match=said) as raised:
        opened(tmp_path, *changes.pop("files", ()), columns=columns, **changes)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / ".cache").rglob("*.part"))


def test_what_is_held_out_by_its_name_is_never_pooled(tmp_path: Path) -> None:
    for name in ("train", "validation", "test", "notes"):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {i}\n" for i in range(60)))
    with pytest.raises(UserError, match=r"test\.txt says by its name that it is held out, and .*notes\.txt says no"):
        opened(tmp_path, "*.txt")
    with pytest.raises(UserError, match=r"test\.txt is of the split test, and data\.name=text joins its files"):
        opened(tmp_path, "t*.txt", name="text")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "other.txt").write_text("one\n" * 60)
    with pytest.raises(UserError, match=r"test\.txt of the split test, and .*other\.txt, which says no"):
        opened(tmp_path, mix=("t*.txt=1", "sub/other.txt=1"))


def test_files_for_a_source_that_reads_none(tmp_path: Path) -> None:
    """Or else a config's own data would be trained on in silence."""
    (tmp_path / "a.txt").write_text("one\n" * 60)
    for name in ("docstrings", "sst2", "no_such_dataset"):
        with pytest.raises(UserError, match=rf"data\.files names 'a\.txt', and data\.name='{name}' reads no files"):
            opened(tmp_path, "a.txt", name=name)
    with pytest.raises(UserError, match=r"data\.mix names 'a\.txt=1', and data\.name='quantities' reads no files"):
        opened(tmp_path, mix=("a.txt=1",), name="quantities")


def test_sizes_that_would_part_the_members_of_a_mixture(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n" * 60)
    (tmp_path / "b.txt").write_text("two\n" * 60)
    with pytest.raises(UserError, match=r"data\.split='sizes:50%/50%' cuts all rows in their order"):
        opened(tmp_path, mix=("a.txt=1", "b.txt=1"), split="sizes:50%/50%")


def test_names_of_classes_in_another_order(tmp_path: Path) -> None:
    for split, names in (("train", ["no", "yes"]), ("test", ["yes", "no"])):
        table = pyarrow.table({"text": [f"{split} {i}" for i in range(60)], "label": [i % 2 for i in range(60)]})
        pyarrow.parquet.write_table(with_classes(table, names), tmp_path / f"{split}.parquet")
    with pytest.raises(UserError, match=r"names the classes (no, yes|yes, no) and .* in that order: write them in one"):
        opened(tmp_path, "*.parquet")


def test_a_split_without_labels_beside_those_that_have_them(tmp_path: Path) -> None:
    for split in ("train", "test", "unsupervised"):
        labels = [-1 if split == "unsupervised" else i % 2 for i in range(60)]
        table = pyarrow.table({"text": [f"{split} {i}" for i in range(60)], "label": labels})
        as_arrow(tmp_path / "saved" / split, with_classes(table, ["no", "yes"]), 1)
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test", "unsupervised"]}))
    source = opened(tmp_path, "saved")
    assert {example["label"] for example in source.split("unsupervised")} == {-1}
    assert {example["label"] for example in source.split("test")} == {0, 1}


def test_labels_that_are_equal_as_numbers_have_one_order(tmp_path: Path) -> None:
    rows = [(f"t {i}", ("1", "01", "2")[i % 3]) for i in range(90)]
    (tmp_path / "a.csv").write_text(as_csv(rows, ("text", "label")))
    assert opened(tmp_path, "a.csv").classes == ("01", "1", "2")


# 9. A dataset of `datasets`
def test_a_dataset_that_was_not_copied_whole(tmp_path: Path) -> None:
    saved_to_disk(tmp_path)
    (tmp_path / "saved" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(UserError, match=r"state\.json names data-00001-of-00003\.arrow, which is not there: copy"):
        opened(tmp_path, "saved", columns={"text": "t"})
    (tmp_path / "saved" / "data-00001-of-00003.arrow").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"data-00001-of-00003\.arrow is no Arrow file that can be read"):
        opened(tmp_path, "saved", columns={"text": "t"})
    (tmp_path / "dict" / "test").mkdir(parents=True)
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["test"]}))
    with pytest.raises(UserError, match=r"test holds no dataset of save_to_disk"):
        opened(tmp_path, "dict")


def test_rows_of_datasets_without_a_label(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [f"t {i}" for i in range(60)], "label": [i % 2 for i in range(59)] + [-1]})
    as_arrow(tmp_path / "saved", with_classes(table, ["no", "yes"]), 1)
    with pytest.raises(UserError, match=r"arrow has the class '-1' in row 60, which is none of its 2 classes: correct"):
        opened(tmp_path, "saved")
