"""Own series: which columns and dates are found in which files, their splits, and one sentence for what is wrong."""

import datetime
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from transformer.config import ColumnsConfig, DataConfig
from transformer.data.batches.series import SeriesBatches
from transformer.data.sources import load_source
from transformer.data.sources.series_files import read_series
from transformer.data.sources.source import Source
from transformer.data.sources.table.paths import File, form_of
from transformer.errors import UserError

DAY = datetime.date(2024, 1, 30)
ROWS = [
    (DAY + datetime.timedelta(days=number), f"town {number % 2}", number, -0.25 * number**2) for number in range(40)
]
HEADER = "day,place,count,level\n"


def text_of(rows: list[tuple], header: str = HEADER) -> str:
    return header + "".join(",".join(map(str, row)) + "\n" for row in rows)


def load(
    folder: Path,
    files: tuple[str, ...] = ("a.csv",),
    *,
    time: str = "",
    series: tuple[str, ...] = (),
    **changes: Any,
) -> Source:
    columns = ColumnsConfig(time=time, series=series)
    options: dict[str, Any] = {"max_len": 3, "horizon": 2, "cache": str(folder / "cache"), "dir": str(folder)}
    return load_source(DataConfig(name="series", files=files, columns=columns, **options | changes))


def refused(folder: Path, content: str, said: str, **changes: Any) -> None:
    (folder / "a.csv").write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        load(folder, **changes)
    assert "\n" not in str(caught.value)
    assert "a.csv" in str(caught.value)


def unscaled(source: Source) -> np.ndarray:
    parts = [source.split(split)[0]["values"] for split in source.splits]
    facts = source.facts
    return np.concatenate(parts) * np.array(facts["deviation"]) + np.array(facts["mean"])


EXPECTED = np.array([row[2:] for row in ROWS], float)


# --- What is found


def test_columns_dates_and_splits_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text(text_of(ROWS))
    source = load(tmp_path)
    assert [len(source.split(split)[0]["values"]) for split in source.splits] == [28, 4, 8]
    np.testing.assert_allclose(unscaled(source), EXPECTED, atol=1e-4)
    assert source.facts["columns"] == ["count", "level"]
    assert (source.facts["time"], source.facts["frequency"], source.facts["season"]) == ("day", "1 day", 7)
    np.testing.assert_allclose(source.facts["mean"], EXPECTED[:28].mean(axis=0))
    np.testing.assert_allclose(source.facts["deviation"], EXPECTED[:28].std(axis=0))
    assert "a.csv: columns without numbers are left out: 'place'" in caplog.text
    assert "columns count, level; steps of 1 day, by 'day'; train 28, validation 4, test 8" in caplog.text


@pytest.mark.parametrize("form", ["a.tsv", "a.csv.gz", "a.jsonl", "a.parquet", "dates.parquet"])
def test_every_form_of_file_gives_the_same_series(form: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text_of(ROWS))
    path = tmp_path / form
    if form == "a.tsv":
        path.write_text(text_of(ROWS).replace(",", "\t"))
    elif form == "a.csv.gz":
        path.write_bytes(gzip.compress(text_of(ROWS).encode()))
    elif form == "a.jsonl":
        rows = [dict(zip(HEADER.strip().split(","), (str(row[0]), *row[1:]), strict=True)) for row in ROWS]
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        days = [str(row[0]) if form == "a.parquet" else row[0] for row in ROWS]
        columns = [days, *([row[place] for row in ROWS] for place in (1, 2, 3))]
        pyarrow.parquet.write_table(pa.table(dict(zip(HEADER.strip().split(","), columns, strict=True))), path)
    expected, found = load(tmp_path), load(tmp_path, (form,))
    assert found.fingerprint == expected.fingerprint
    assert found.facts == expected.facts


def test_columns_are_chosen_in_the_order_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text_of(ROWS))
    source = load(tmp_path, series=("level", "count"))
    assert source.facts["columns"] == ["level", "count"]
    np.testing.assert_allclose(unscaled(source), EXPECTED[:, ::-1], atol=1e-4)


def test_rows_are_steps_without_dates(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text_of([row[2:] for row in ROWS], "count,level\n"))
    source = load(tmp_path)
    assert source.facts.keys() == {"columns", "mean", "deviation"}
    np.testing.assert_allclose(unscaled(source), EXPECTED, atol=1e-4)


@pytest.mark.parametrize(("name", "dated"), [("year", True), ("size", False)])
def test_numbers_are_dates_under_the_name_of_dates_only(name: str, dated: bool, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        text_of([(1950 + number, row[2]) for number, row in enumerate(ROWS)], f"{name},x\n")
    )
    source = load(tmp_path)
    assert source.facts["columns"] == (["x"] if dated else ["size", "x"])
    assert source.facts.get("frequency") == ("1 year" if dated else None)
    assert load(tmp_path, time=name).facts["frequency"] == "1 year"


def test_a_file_without_names_has_numbered_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text(text_of([(row[0], *row[2:]) for row in ROWS], ""))
    source = load(tmp_path)
    assert (source.facts["columns"], source.facts["time"]) == (["2", "3"], "1")
    np.testing.assert_allclose(unscaled(source), EXPECTED, atol=1e-4)
    assert "its columns are numbered from 1" in caplog.text
    assert load(tmp_path, series=("3",)).facts["columns"] == ["3"]


def test_empty_rows_at_the_end_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text_of(ROWS))
    expected = load(tmp_path).fingerprint
    (tmp_path / "a.csv").write_text(text_of(ROWS) + ",,,\n\n,,,\n")
    assert load(tmp_path).fingerprint == expected


def test_months_of_a_zone_that_changes_its_offset(tmp_path: Path) -> None:
    """Even on the clock on the wall, and not in UTC."""
    rows = [
        (f"2024-{month:02}-01T00:00{'+02:00' if 4 <= month <= 10 else '+01:00'}", month**2) for month in range(1, 13)
    ]
    (tmp_path / "a.csv").write_text(text_of(rows, "date,x\n"))
    assert load(tmp_path, split="sizes:8/2/2").facts["frequency"] == "1 month"


# --- Splits


@pytest.mark.parametrize(
    ("split", "expected"),
    [("sizes:50%/25%/25%", [20, 10, 10]), ("sizes:30/6/3", [30, 6, 3]), ("sizes:34/6", [34, 6])],
)
def test_sizes(split: str, expected: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text(text_of(ROWS))
    source = load(tmp_path, split=split)
    assert [len(source.split(split)[0]["values"]) for split in source.splits] == expected
    assert ("the 1 rows after the first 39 are not used" in caplog.text) == (sum(expected) == 39)


def test_files_are_splits_and_look_back_on_each_other(tmp_path: Path) -> None:
    parts = {"train": ROWS[:25], "validation": ROWS[25:33], "test": ROWS[33:]}
    for split, rows in parts.items():
        (tmp_path / f"{split}.csv").write_text(text_of(rows))
    entries = tuple(f"{split}={split}.csv" for split in ("test", "train", "validation"))
    source = load(tmp_path, entries)
    assert [len(source.split(split)[0]["values"]) for split in source.splits] == [25, 8, 7]
    (tmp_path / "a.csv").write_text(text_of(ROWS))
    assert load(tmp_path, split="sizes:25/8/7").fingerprint == source.fingerprint
    data = DataConfig(max_len=3, horizon=2)
    first = next(iter(SeriesBatches(source, "test", seed=0, data=data).evaluation()))["inputs"][0]
    back = first * np.array(source.facts["deviation"]) + np.array(source.facts["mean"])
    np.testing.assert_allclose(back, EXPECTED[30:33], atol=1e-4)


def test_files_of_a_pattern_follow_each_other(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"part{number}.csv").write_text(text_of(ROWS[number * 10 : number * 10 + 10]))
    np.testing.assert_allclose(unscaled(load(tmp_path, ("part*.csv",))), EXPECTED, atol=1e-4)
    (tmp_path / "part2.csv").write_text(text_of(ROWS[21:30]))
    with pytest.raises(
        UserError, match=r"part2.csv goes on by 2 days.* to 2024-02-20 00:00:00 in line 2, where 2024-02-19"
    ):
        load(tmp_path, ("part*.csv",))
    (tmp_path / "part2.csv").write_text(text_of([(row[0], row[2]) for row in ROWS[20:30]], "day,count\n"))
    with pytest.raises(UserError, match=r"part2.csv has the columns day, count and .*part0.csv day, count, level"):
        load(tmp_path, ("part*.csv",))


# --- What is wrong


def changed(row: int, place: int, value: object) -> str:
    rows = [list(each) for each in ROWS]
    rows[row][place] = value
    return text_of([tuple(each) for each in rows])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (text_of(ROWS[::-1]), "goes back to 2024-03-08 00:00:00 in line 3: sort its rows"),
        (text_of([*ROWS[:9], *ROWS[8:]]), "repeats 2024-02-07 00:00:00 in line 11: sort its rows"),
        (
            text_of([*ROWS[:9], *ROWS[10:]]),
            "goes on by 2 days, 0:00:00 to 2024-02-09 00:00:00 in line 11, where 2024-02-08 00:00:00 is due, 1 day af",
        ),
        (changed(5, 0, "soon"), "has 'soon' in line 7, where a date belongs"),
        (changed(5, 0, "2024-02-04T00:00Z"), "has dates with and without a time zone, as of line 7"),
        (changed(5, 2, "n/a"), "has 'n/a' in line 7, column 'count', which is no finite number"),
        (changed(5, 3, ""), "has '' in line 7, column 'level', which is no finite number"),
        (changed(5, 3, "inf"), "has 'inf' in line 7, column 'level', which is no finite number"),
        (text_of(ROWS).replace("level", "count"), "has the column 'count' twice"),
        (text_of([(*row[:3], 7) for row in ROWS]), "has the column 'level', which is constant in the training part"),
        (
            text_of([row[:2] for row in ROWS], "day,place\n"),
            "no column of numbers besides its dates: it has day, place",
        ),
        (text_of(ROWS[:2]), "has 2 rows, and none for 'validation': change data.split"),
        (text_of([*ROWS[:5], ("",) * 4, *ROWS[5:]]), "has nothing in line 7: fill it in"),
        (text_of(ROWS).replace(",", ";"), "has ';' between fields in line 1"),
    ],
)
def test_a_mistake_is_told_with_its_line(content: str, said: str, tmp_path: Path) -> None:
    refused(tmp_path, content, said)


def test_a_mistake_in_a_parquet_file_is_told_with_its_row(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"x": [1.0, 2.0, None, 4.0], "y": [1, 2, 3, 5]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet has '' in row 3, column 'x', which is no finite number"):
        load(tmp_path, ("a.parquet",))


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    whole = text_of(ROWS)
    refused(tmp_path, whole, "has no column 'dya': did you mean 'day' .of day, place, count, level", time="dya")
    refused(tmp_path, whole, "has no column 'levle': did you mean 'level'", series=("levle",))
    refused(tmp_path, whole, "has 'town 0' in line 2, column 'place', which is no finite number", series=("place",))
    refused(tmp_path, whole, "has 'town 0' in line 2, where a date belongs", time="place")
    refused(tmp_path, whole, "has 40 rows, fewer than the 45 of its splits", split="sizes:35/5/5")
    with pytest.raises(UserError, match="a series is cut in order, so write sizes:70%/10%/20%"):
        load(tmp_path, split="hash:90/5/5")
    with pytest.raises(UserError, match=r"series needs data\.files"):
        load(tmp_path, ())
    with pytest.raises(UserError, match=r"'b\.csv', and there is no such file"):
        load(tmp_path, ("b.csv",))


def test_a_mixture_of_zones_is_refused(tmp_path: Path) -> None:
    rows = [(f"2024-01-01T{hour:02}:00{'+01:00' if hour < 6 else '-05:00'}", hour) for hour in range(12)]
    refused(
        tmp_path, text_of(rows, "date,x\n"), r"has '2024-01-01T06:00-05:00' in line 8 .* write all in one time zone"
    )


def test_files_with_and_without_a_zone_are_refused(tmp_path: Path) -> None:
    for number, zone in enumerate(("Z", "")):
        rows = [(f"2024-01-01T{hour + 6 * number:02}:00{zone}", hour**2) for hour in range(6)]
        (tmp_path / f"part{number}.csv").write_text(text_of(rows, "date,x\n"))
    with pytest.raises(
        UserError, match=r"part0.csv and the files after it have dates with and without a time zone: wr"
    ):
        load(tmp_path, ("part*.csv",))


def test_reading_stops_at_the_rows_that_are_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text(text_of([*ROWS, ("later", "", "x", "y")]))
    caplog.set_level(logging.WARNING)
    read = read_series(File(tmp_path / "a.csv", form_of(tmp_path / "a.csv")), most=40)
    np.testing.assert_array_equal(read.values, EXPECTED)
    assert "the 1 rows after the first 40 are not used" in caplog.text
