import csv
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest

from transformer.config import DataConfig
from transformer.data.batches.series import SeriesBatches
from transformer.data.builder import of_arrays, prepared
from transformer.data.sources import load_source, series, series_files
from transformer.data.sources.built import from_builder
from transformer.data.sources.source import Source
from transformer.data.sources.table.paths import File
from transformer.errors import UserError

OF_ETT = series.ETT_ROWS
ROWS = {"train": 61, "validation": 23, "test": 29}
COLUMNS = ["HUFL", "MUFL", "OT"]
HOUR = np.timedelta64(1, "h")
START = np.datetime64("2016-07-01T00")


def toy_values() -> np.ndarray:
    random = np.random.default_rng(0)
    return random.normal(size=(120, 3)) * [1, 20, 300] + [5, 0, -7000]


def write_ett(folder: Path, values: np.ndarray, **changes: str) -> None:
    """The file; `changes` are fields by "row,column", counted from 0 below the header."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["date", *COLUMNS])
    for number, row in enumerate(values):
        fields = [changes.get(f"r{number}c{column}", repr(float(value))) for column, value in enumerate(row)]
        writer.writerow([str(START + number * HOUR), *fields])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ETTh1.csv").write_text(text.getvalue())


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "ETT_ROWS", ROWS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def config(folder: Path | str, cache: Path, name: str = "ett", **changes: object) -> DataConfig:
    sizes = {"max_len": 7, "horizon": 5, "batch_tokens": 11, "row_multiple": 4}
    return DataConfig(name=name, dir=str(folder), cache=str(cache), **sizes | changes)


@pytest.fixture
def data(tmp_path: Path, cache: Path) -> DataConfig:
    write_ett(tmp_path, toy_values())
    return config(tmp_path, cache)


@pytest.fixture
def source(data: DataConfig) -> Source:
    return load_source(data)


def scaled(values: np.ndarray, count: int) -> np.ndarray:
    """Z-scores, a number at a time, in float64."""
    result = np.empty_like(values)
    for column in range(values.shape[1]):
        part = [float(v) for v in values[:count, column]]
        mean = sum(part) / count
        deviation = (sum((v - mean) ** 2 for v in part) / count) ** 0.5
        result[:, column] = [(float(v) - mean) / deviation for v in values[:, column]]
    return result


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])
        assert a[key].dtype == b[key].dtype == (np.int32 if key == "example_ids" else np.float32)


# --- Sources


def test_ett_is_scaled_by_its_training_part_and_cut_in_time(source: Source) -> None:
    expected, start = scaled(toy_values(), ROWS["train"]), 0
    assert source.splits == tuple(ROWS)
    assert source.fields == ()
    for split, count in ROWS.items():
        (example,) = source.split(split)
        np.testing.assert_allclose(example["values"], expected[start : start + count], rtol=1e-4, atol=1e-6)
        assert example["values"].dtype == np.float32
        back = example["values"] * example["deviation"] + example["mean"]
        np.testing.assert_allclose(back, toy_values()[start : start + count], rtol=1e-5, atol=1e-3)
        start += count


def test_the_borders_of_the_literature() -> None:
    """12, 4 and 4 months of 30 days: 2,785 windows of horizon 96 in validation and test."""
    assert OF_ETT == {"train": 8640, "validation": 2880, "test": 2880}
    assert OF_ETT["test"] - 96 + 1 == 2785


def test_co2_has_its_gaps_filled_by_straight_lines(cache: Path) -> None:
    from statsmodels.datasets import co2

    weekly = [float(v) for v in co2.load_pandas().data["co2"]]
    filled = list(weekly)
    for i, value in enumerate(weekly):
        if value != value:
            before = max(j for j in range(i) if weekly[j] == weekly[j])
            after = min(j for j in range(i, len(weekly)) if weekly[j] == weekly[j])
            filled[i] = weekly[before] + (weekly[after] - weekly[before]) * (i - before) / (after - before)
    source = load_source(config("", cache, "co2"))
    parts = [source.split(split)[0]["values"] for split in source.splits]
    assert [len(part) for part in parts] == [1598, 228, 458]  # of 2,284 weeks: 70, 10 and 20 percent
    np.testing.assert_allclose(np.concatenate(parts), scaled(np.array(filled)[:, None], 1598), atol=1e-4)
    assert load_source(config("", cache, "co2")).fingerprint == source.fingerprint


def test_the_fingerprint_is_of_the_values(tmp_path: Path, source: Source, cache: Path) -> None:
    values = toy_values()
    values[-1] += 1  # past the splits
    write_ett(tmp_path / "a", values)
    assert load_source(config(tmp_path / "a", cache)).fingerprint == source.fingerprint
    values[112, 2] += 1
    write_ett(tmp_path / "b", values)
    assert load_source(config(tmp_path / "b", cache)).fingerprint != source.fingerprint


@pytest.mark.parametrize(
    "field", ["nan", "", " ", "-inf", "1,5", "1,234.5", "1.234,5", "n/a", "20_000", "0x10", "1e999", "\u0661"]
)
def test_fields_that_are_no_numbers(field: str, tmp_path: Path, cache: Path) -> None:
    write_ett(tmp_path, toy_values(), r3c2=field)
    message = f"{field!r} in line 5, column 'OT', which is no finite number: correct it, or fill it in"
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_source(config(tmp_path, cache))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["+1.5e3", " 7 ", "-.5", "5.", "1E-2"])
def test_fields_that_are_numbers(field: str, tmp_path: Path, cache: Path) -> None:
    values = toy_values()
    values[3, 2] = float(field)
    write_ett(tmp_path, toy_values(), r3c2=field)
    read = series_files.read_series(File(tmp_path / "ETTh1.csv", "csv")).values
    np.testing.assert_array_equal(read, values)


Rows = list[tuple[str, int]]
DATED: Rows = [(str(START + i * HOUR).replace("T", " ") + ":00:00", i) for i in range(113)]


def series_file(folder: Path, rows: Rows, header: str = "date,a\n", end: str = "") -> Path:
    path = folder / "ETTh1.csv"
    path.write_text(header + "".join(f"{date},{value}\n" for date, value in rows) + end)
    return path


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (DATED[::-1], "goes back to 2016-07-05 15:00:00 in line 3: sort its rows, oldest first"),
        ([*DATED[:50], *DATED[49:]], "repeats 2016-07-03 01:00:00 in line 52: sort its rows, .* each date once"),
        (
            [*DATED[:50], *DATED[51:]],
            "goes on by 2:00:00 to 2016-07-03 03:00:00 in line 52, where 2016-07-03 02:00:00 is due, 1 hour after",
        ),
        (
            [DATED[0], *DATED[2:]],
            "goes on by 2:00:00 to 2016-07-01 02:00:00 in line 3, where 2016-07-01 01:00:00 is due",
        ),
        ([*DATED[:9], ("", 9), *DATED[10:]], "has '' in line 11, where a date belongs: write dates as 2016-07-01"),
        ([(str(value), value) for _, value in DATED], "has '0' in line 2, where a date belongs"),
        ([("01/07/2016 00:00", 0), *DATED[1:]], "has '01/07/2016 00:00' in line 2, where a date belongs"),
        (
            [*DATED[:9], (DATED[9][0] + "+02:00", 9), *DATED[10:]],
            "has dates with and without a time zone, as of line 11",
        ),
    ],
    ids=["newest first", "repeated", "skipped", "skipped at once", "missing", "numbers", "no ISO", "time zones"],
)
def test_dates_that_do_not_rise_evenly(rows: Rows, message: str, tmp_path: Path, cache: Path) -> None:
    path = series_file(tmp_path, rows)
    with pytest.raises(UserError, match=rf"ETTh1\.csv {message}") as caught:
        load_source(config(tmp_path, cache))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_dates_of_one_time_zone_and_of_a_change_of_the_clock(tmp_path: Path) -> None:
    def read() -> np.ndarray:
        return series_files.joined([series_files.read_series(File(path, "csv"))])[0]

    zones = [(date + ("+02:00" if place < 50 else "+01:00"), place) for place, (date, _) in enumerate(DATED)]
    path = series_file(tmp_path, zones)
    with pytest.raises(UserError, match=r"goes on by 2:00:00 to .* in line 52"):
        read()
    zones[50:] = [(DATED[place - 1][0] + "+01:00", place) for place in range(50, 113)]  # the clock is put back
    series_file(tmp_path, zones)
    assert len(read()) == 113


def test_rows_that_are_not_used_are_told(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    series_file(tmp_path, DATED)
    source = load_source(config(tmp_path, cache))
    assert not caplog.text
    series_file(tmp_path, [*DATED, ("later", 8), ("or never", 9)], end="\n \n,\n")  # blank lines are no rows
    assert load_source(config(tmp_path, cache)).fingerprint == source.fingerprint
    assert "ETTh1.csv: the 2 rows after the first 113 are not used" in caplog.text


def test_files_of_another_form(tmp_path: Path, cache: Path) -> None:
    def load(content: str | bytes | None) -> None:
        path = tmp_path / "ETTh1.csv"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        load_source(config(tmp_path, cache))

    whole = series_file(tmp_path, DATED).read_text()
    header, body = whole.split("\n", 1)
    with pytest.raises(UserError, match=r"no file .*ETTh1\.csv: add it"):
        load(None)
    for empty, said in (
        ("", "is empty"),
        ("date,a\n", "no row"),
        ("date\n2016\n", "no column of num"),
        ("\n\n", "no row"),
    ):
        with pytest.raises(UserError, match=said):
            load(empty)
    with pytest.raises(UserError, match="has 1 fields in line 114, and 2 in its first"):
        load(whole[: whole.rindex(",112")])
    with pytest.raises(UserError, match="has nothing in line 2: fill it in, or take it out"):
        load(f"{header}\n,\n{body}")
    with pytest.raises(UserError, match="has no column 'date': choose one of 1, 2"):
        load(body)
    with pytest.raises(UserError, match="is no CSV file in line 1"):
        load(whole.replace("\n", "\r"))
    for separator in ";\t":
        with pytest.raises(UserError, match=re.escape(f"has {separator!r} between fields in line 1: write commas")):
            load(whole.replace(",", separator))
    with pytest.raises(UserError, match="has the column 'a' twice"):
        load("date,a,a\n" + body.replace("\n", ",1\n"))
    with pytest.raises(UserError, match="not valid UTF-8 in line 2"):
        load(b"date,a\n\xff\n")
    with pytest.raises(UserError, match="is UTF-16, not UTF-8"):
        load(whole.encode("utf-16"))
    with pytest.raises(UserError, match="ett has 112 rows, fewer than the 113 of its splits"):
        load(whole[: whole.rindex("2016")])
    with pytest.raises(UserError, match="column 'a', which is constant in the training part"):
        load(
            header
            + "\n"
            + "".join(f"{date},{value > 60}\n" for date, value in DATED).replace("True", "2").replace("False", "1")
        )
    for same_text in (
        whole.replace("\n", "\r\n"),
        f"{header}\n\n{body}",
        "a,date\n" + "".join(f"{value},{date}\n" for date, value in DATED),
        "\ufeff" + whole,
        whole.replace("a\n", '"a\u2028b"\n'),
    ):
        load(same_text)
    with pytest.raises(UserError, match=r"ett needs data\.dir: name the folder that holds ETTh1\.csv"):
        load_source(config("", cache))


# --- Batches


@pytest.mark.parametrize(("max_len", "horizon"), [(7, 5), (2, 1), (53, 23), (61, 3)])
def test_every_window_exactly_once(max_len: int, horizon: int, source: Source, data: DataConfig) -> None:
    data = dataclasses.replace(data, max_len=max_len, horizon=horizon)
    expected, start = scaled(toy_values(), ROWS["train"]), 0
    for split, count in ROWS.items():
        if split == "train" and max_len + horizon > count:
            start += count
            continue
        batches = SeriesBatches(source, split, seed=0, data=data)
        windows = count - horizon + 1 - (max_len if split == "train" else 0)
        first = start + (max_len if split == "train" else 0)  # of what is to be forecast
        whole = joined(list(batches.evaluation()))
        ids = whole["example_ids"]
        assert ids[:windows].tolist() == list(range(windows))
        assert (ids[windows:] == -1).all()
        assert not whole["inputs"][windows:].any()
        assert len(ids) == -(-windows // 8) * 8
        assert whole["inputs"].shape[1:] == (max_len, 3)
        assert whole["targets"].shape[1:] == (horizon, 3)
        for window in range(windows):
            now = first + window
            np.testing.assert_allclose(whole["inputs"][window], expected[now - max_len : now], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(whole["targets"][window], expected[now : now + horizon], rtol=1e-4, atol=1e-5)
        start += count


def test_a_batch_depends_on_the_seed_and_the_step_only(source: Source, data: DataConfig) -> None:
    batches, again = (SeriesBatches(source, "train", seed=3, data=data) for _ in range(2))
    steps = batches.steps_per_epoch
    windows = 61 - 7 - 5 + 1
    assert steps == 7
    for step in (2 * steps + 1, 0, steps - 1, steps):  # in any order
        same(batches.batch(step), again.batch(step))
    for number in range(2):
        ids = joined([batches.batch(number * steps + step) for step in range(steps)])["example_ids"]
        assert sorted(ids[ids >= 0].tolist()) == list(range(windows))
    assert (batches.batch(0)["example_ids"] != batches.batch(steps)["example_ids"]).any()
    other = SeriesBatches(source, "train", seed=4, data=data)
    assert (batches.batch(0)["example_ids"] != other.batch(0)["example_ids"]).any()
    shape = {"shapes": [(8, 12)], "steps_per_epoch": 7}
    assert batches.report == {"kept": windows, "dropped": 0, "fill": windows / 56} | shape
    by_id = joined(list(batches.evaluation()))
    for key in ("inputs", "targets"):
        batch = batches.batch(1)
        np.testing.assert_array_equal(batch[key], by_id[key][batch["example_ids"]])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_rows_of_the_global_batch(source: Source, data: DataConfig, count: int) -> None:
    whole = SeriesBatches(source, "test", seed=3, data=data)
    parts = [whole.part([index], count) for index in range(count)]
    for step in range(5):
        same(whole.batch(step), joined([part.batch(step) for part in parts]))
    for together, *shares in zip(whole.evaluation(), *(part.evaluation() for part in parts), strict=True):
        same(together, joined(shares))


def test_too_few_rows_for_a_window(source: Source, data: DataConfig) -> None:
    data = dataclasses.replace(data, max_len=50, horizon=12)
    with pytest.raises(
        UserError, match=r"'train' of ett has 61 steps .* data\.max_len=50 and data\.horizon=12 together"
    ):
        SeriesBatches(source, "train", seed=0, data=data)
    with pytest.raises(UserError, match="'validation' of ett has 73 steps"):
        SeriesBatches(source, "validation", seed=0, data=dataclasses.replace(data, horizon=24))


def test_a_hole_in_a_prepared_series(tmp_path: Path) -> None:
    values = np.ones((40, 2), np.float32)
    values[3, 1] = np.nan
    form = series.series_data("x", ["a", "b"], np.random.default_rng(0).normal(size=(40, 2)), {"train": 40})
    made = of_arrays("holes", {"values": form.features["values"]}, {"train": lambda: iter([{"values": values}])})
    source = from_builder("holes", prepared(made, config("", tmp_path)), made.fingerprint)
    with pytest.raises(UserError, match="holes has nan in row 3 of column 1 of 'train'"):
        SeriesBatches(source, "train", seed=0, data=config("", tmp_path))
