"""`predict` as people run it: lines, tables, images, recordings and series of trained runs, and one sentence for every
mistake."""

import csv
import datetime
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.test_verbs import Ended, Verb, commands
from tests.test_verbs import _one_sentence as one_sentence
from transformer import load_run
from transformer.config import Config, override
from transformer.train import train

SMALL = {
    "steps": 2, "label_smoothing": 0.0, "model.num_layers": 1, "model.d_model": 12, "model.d_ff": 16,
    "model.num_heads": 3, "data.vocab_size": 300, "data.batch_tokens": 64, "data.buckets": [16], "data.max_len": 16,
    "mesh.data": 1, "optimizer.learning_rate": 0.1, "optimizer.warmup_steps": 1,
}  # fmt: skip


def run_of(folder: Path, task: str, **changes: Any) -> Path:
    workdir = folder / task
    data = {"task": task, "data.cache": str(folder / "cache")}
    train(override(Config(), SMALL | data | changes), workdir, quiet=True)
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predicted")


@pytest.fixture(scope="module")
def verb(folder: Path) -> Iterator[Verb]:
    with commands(folder) as run:
        yield run


TEXTS = [
    (f"{'good' if number % 3 else 'bad'} thing {number % 7}", "yes" if number % 3 else "no") for number in range(60)
]


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Path:
    path = folder / "labelled.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in TEXTS))
    return run_of(folder, "text_classification", **{
        "data.name": "table", "data.files": [str(path)], "data.split": "sizes:40/10/10", "data.target": "text",
        "model.family": "encoder_only"})  # fmt: skip


@pytest.fixture(scope="module")
def translator(folder: Path) -> Path:
    path = folder / "pairs.tsv"
    path.write_text("source\ttarget\n" + "".join(f"{text}\t{text[::-1]}\n" for text, _ in TEXTS))
    return run_of(folder, "translation", **{
        "data.name": "table", "data.files": [str(path)], "data.split": "sizes:40/10/10", "data.source": "source",
        "data.target": "target"})  # fmt: skip


@pytest.fixture(scope="module")
def digits(folder: Path) -> Path:
    return run_of(folder, "image_classification", **{
        "data.name": "digits", "model.family": "encoder_only", "model.inputs": "image", "model.num_classes": 10,
        "model.image_size": [8, 8], "model.patch_size": 4})  # fmt: skip


@pytest.fixture(scope="module")
def months(folder: Path) -> Path:
    rows = [f"{1990 + number // 12}-{number % 12 + 1:02},{100 + number % 12},{number}\n" for number in range(120)]
    (folder / "months.csv").write_text("month,rain,sun\n" + "".join(rows))
    return run_of(folder, "forecasting", **{
        "data.name": "series", "data.files": [str(folder / "months.csv")], "data.horizon": 3,
        "model.family": "forecaster", "model.inputs": "series", "model.patch_size": 4})  # fmt: skip


def objects(ended: Ended) -> list[dict[str, Any]]:
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in ended.lines]


def table(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def close(a: Any, b: Any) -> bool:
    return a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_labels_of_lines_and_of_tables(classifier: Path, verb: Verb, tmp_path: Path) -> None:
    lines = [text for text, _ in TEXTS[50:]]
    given = "".join(line + "\n" for line in [*lines, ""]).encode()
    found = objects(verb("predict", f"--workdir={classifier}", given=given))
    expected = load_run(classifier).predict(lines)
    assert [row["line"] for row in found] == list(range(1, 12))
    assert [row["label"] for row in found] == [*(row["label"] for row in expected), None]
    for row, one in zip(found, expected, strict=False):
        assert close(row["probabilities"], one["probabilities"])
        assert list(row["probabilities"]) == ["no", "yes"]
    (tmp_path / "lines.txt").write_bytes(given)
    assert objects(verb("predict", f"--workdir={classifier}", f"--input={tmp_path / 'lines.txt'}")) == found
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"said": line, "n": 1}) + "\n" for line in lines))
    (tmp_path / "rows.csv").write_text("n,text\n" + "".join(f"1,{line}\n" for line in lines))
    for name, flags in (("rows.jsonl", ["--column=said"]), ("rows.csv", [])):
        ended = verb("predict", f"--workdir={classifier}", f"--input={tmp_path / name}", *flags, "--batch_size=3")
        rows = objects(ended)
        assert [row.pop("row") for row in rows] == list(range(1, 11))
        assert rows == [{key: row[key] for key in row if key != "line"} for row in found[:10]]


def test_a_csv_file_is_whole_and_is_not_written_over(classifier: Path, verb: Verb, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    command = ("predict", f"--workdir={classifier}", f"--output={output}")
    ended = verb(*command, given=b"good thing\nbad thing\n")
    assert (ended.code, ended.out) == (0, b""), ended.err
    header, *rows = table(output)
    assert header == ["line", "label", "probability", "no", "yes"]
    assert [row[0] for row in rows] == ["1", "2"]
    before = output.read_bytes()
    one_sentence(verb(*command, given=b"other\n"), "out.csv is there already: name another file, or add --overwrite")
    assert output.read_bytes() == before
    assert verb(*command, "--overwrite", "--top=1", given=b"other\n").code == 0
    assert table(output)[0] == ["line", "label", "probability"]
    ended = verb("predict", f"--workdir={classifier}", f"--output={tmp_path / 'half.jsonl'}", given=b"one\n\xfc\n")
    one_sentence(ended, "line 2 of the input is not UTF-8")
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_translations(translator: Path, verb: Verb) -> None:
    given = b"good thing 1\n\nbad thing 2\n"
    found = objects(verb("predict", f"--workdir={translator}", given=given))
    assert [row["text"] for row in found] == verb("generate", f"--workdir={translator}", given=given).lines
    assert [list(row) for row in found] == [["line", "text"]] * 3
    both = objects(verb("predict", f"--workdir={translator},{translator}", "--beam=2", given=given))
    alone = verb("generate", f"--workdir={translator}", "--beam=2", given=given)
    assert [row["text"] for row in both] == alone.lines


def test_images_of_a_folder_a_pattern_and_of_standard_input(digits: Path, verb: Verb, tmp_path: Path) -> None:
    random, paths = np.random.default_rng(0), []
    (tmp_path / "in" / "more").mkdir(parents=True)
    for name in ("a.png", "b.PNG", "more/c.bmp"):
        paths.append(tmp_path / "in" / name)
        PIL.Image.fromarray(random.integers(0, 255, (8, 8), np.uint8)).save(paths[-1])
    (tmp_path / "in" / "notes.txt").write_text("no image")
    of_folder = objects(verb("predict", f"--workdir={digits}", f"--input={tmp_path / 'in'}", "--top=2"))
    assert [row["path"] for row in of_folder] == list(map(str, paths))
    assert all(len(row["probabilities"]) == 2 for row in of_folder)
    assert [row["label"] for row in of_folder] == [row["label"] for row in load_run(digits).predict(paths)]
    named = verb(
        "predict", f"--workdir={digits}", f"--input={paths[2]}", f"--input={tmp_path / 'in' / '*.png'}", "--top=2"
    )
    assert objects(named) == [of_folder[2], of_folder[0]]
    given = "".join(f"{path}\n" for path in paths).encode()
    assert objects(verb("predict", f"--workdir={digits}", "--top=2", given=given)) == of_folder


def test_the_months_that_follow(months: Path, folder: Path, verb: Verb, tmp_path: Path) -> None:
    output = tmp_path / "next.csv"
    ended = verb("predict", f"--workdir={months}", f"--input={folder / 'months.csv'}", f"--output={output}")
    assert ended.code == 0, ended.err
    header, *rows = table(output)
    assert header == ["month", "rain", "sun"]
    assert [row[0] for row in rows] == ["2000-01", "2000-02", "2000-03"]
    (expected,) = load_run(months).predict([folder / "months.csv"])
    for place, column in ((1, "rain"), (2, "sun")):
        assert close([float(row[place]) for row in rows], expected[column])
    twice = objects(verb("predict", f"--workdir={months}", *[f"--input={folder / 'months.csv'}"] * 2))
    assert [list(row) for row in twice] == [["path", "month", "rain", "sun"]] * 6


def test_a_run_from_before_dates_were_noted(months: Path, folder: Path, tmp_path: Path) -> None:
    """Dates are found in the file, and the season is that of the data."""
    shutil.copytree(months, tmp_path / "old")
    noted = json.loads((tmp_path / "old" / "data.json").read_text())
    assert {noted["facts"].pop(key) for key in ("time", "frequency", "season")} == {"month", "1 month", 12}
    (tmp_path / "old" / "data.json").write_text(json.dumps(noted))
    old = load_run(tmp_path / "old")
    assert old.predict([folder / "months.csv"]) == load_run(months).predict([folder / "months.csv"])
    assert old.source.facts["season"] == 12


MISTAKES = """
CLASSIFIER --output=TMP/x.txt : x.txt is no .csv or .jsonl file
CLASSIFIER --output=TMP/none/x.csv : is in no folder that is there
CLASSIFIER --output=gs://bucket/x.csv : is a URL
CLASSIFIER --input=TMP/none.txt : none.txt cannot be read
CLASSIFIER --input=TMP/none.csv : none.csv cannot be read
CLASSIFIER --input=TMP/a.csv : a.csv has no column 'text': name one in --column, choose one of day, size
CLASSIFIER --input=TMP/a.csv --column=szie : did you mean 'size'
CLASSIFIER --input=TMP/b.jsonl --column=n : b.jsonl has a number in 'n' of line 1, where a text belongs
CLASSIFIER --input=TMP/a.txt --input=TMP/a.txt : is a second file of texts: name one at a time
CLASSIFIER --column=text : --column=text is for a table of texts
CLASSIFIER --beam=2 : writes no text: leave out what shapes written text
CLASSIFIER --top=-1 : top
CLASSIFIER --batch_size=0 : batch_size
CLASSIFIER,CLASSIFIER : an ensemble writes text
TRANSLATOR --top=2 : --top=2 is for classes, and task 'translation' has none
DIGITS --input=TMP/none/*.png : none/*.png names no file
DIGITS --input=TMP/empty : empty is a folder without a file of .png
DIGITS --input=TMP/a.txt : a.txt is an image that cannot be read
DIGITS --input=TMP/a.csv --column=size : --column=size is for a table of texts
MONTHS : --input is missing: name a file with the last steps of a series
MONTHS --input=TMP/empty : empty is a folder, and a series is a file: name files
MONTHS --input=TMP/a.csv : a.csv has no column 'month': choose one of day, size
MONTHS --input=TMP/a.txt : a.txt
TMP/none : holds no run
"""


@pytest.mark.parametrize("line", MISTAKES.strip().split("\n"), ids=lambda line: line.split(" : ")[0])
def test_a_mistake_is_one_sentence(
    line: str, classifier: Path, translator: Path, digits: Path, months: Path, verb: Verb, tmp_path: Path
) -> None:
    day = datetime.date(2024, 1, 1)
    (tmp_path / "a.csv").write_text("day,size\n" + "".join(f"{day + datetime.timedelta(n)},{n}\n" for n in range(9)))
    (tmp_path / "a.txt").write_text("good thing\n")
    (tmp_path / "b.jsonl").write_text('{"n": 3}\n')
    (tmp_path / "empty").mkdir()
    typed, said = line.split(" : ")
    places = {"CLASSIFIER": classifier, "TRANSLATOR": translator, "DIGITS": digits, "MONTHS": months, "TMP": tmp_path}
    for name, path in places.items():
        typed = typed.replace(name, str(path))
    workdir, *flags = typed.split(" ")
    before = sorted(tmp_path.rglob("*"))
    one_sentence(verb("predict", f"--workdir={workdir}", *flags, given=b"good thing\n"), said)
    assert sorted(tmp_path.rglob("*")) == before


def test_help_and_no_workdir(verb: Verb) -> None:
    one_sentence(verb("predict", given=b"one\n"), "--workdir is missing")
    ended = verb("predict", "--help")
    for flag in ("input", "output", "overwrite", "column", "top", "batch_size"):
        assert f"--{flag}" in ended.out.decode() + ended.err or f"--[no]{flag}" in ended.out.decode() + ended.err
