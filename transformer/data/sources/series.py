"""Time series: files of the user, the electricity transformer temperatures (ETTh1), and the weekly CO2 of Mauna Loa.

A split is one example: `values` float32 [T, C], z-scores by `mean` and `deviation` [C] of the training part (the
population deviation, as in the literature). The splits are consecutive, so that the steps before a split are the last
ones of the split before it. The facts are the names of the `columns`, and the `mean` and `deviation` used for scaling,
in float64; with dates also the name of their column, `time`, the `frequency` ("1 hour") and the steps of its `season`.
"""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data.builder import Dataset, array_feature, of_arrays
from transformer.data.sources.files import folder_of
from transformer.data.sources.frequency import Frequency
from transformer.data.sources.series_files import joined, read_series
from transformer.data.sources.source import SPLIT_ORDER
from transformer.data.sources.table.paths import File, expanded
from transformer.data.sources.table.splits import parse
from transformer.errors import UserError

logger = logging.getLogger(__name__)

ETT_FILE, ETT_TIME = "ETTh1.csv", "date"
ETT_ROWS = {"train": 8_640, "validation": 2_880, "test": 2_880}  # hours: 12, 4 and 4 months of 30 days (Zhou et al.)
CO2_SHARES = (0.7, 0.1)  # train and validation; the rest is test
SHARES = "sizes:70%/10%/20%"  # of own series: train, validation and test, in order


def ett(data: DataConfig) -> Dataset:
    """ETTh1 (Zhou et al., 2021) of `data.dir`: seven hourly columns, of which the first 14,400 rows are used."""
    path = folder_of(data, ETT_FILE) / ETT_FILE
    if not path.is_file():
        raise UserError(f"There is no file {path}: add it or change data.dir.")
    read = read_series(File(path, "csv"), ETT_TIME, most=sum(ETT_ROWS.values()))
    values, frequency = joined([read])
    return series_data("ett", read.columns, values, ETT_ROWS, dated(read.time, frequency))


def co2(data: DataConfig) -> Dataset:
    """Weekly CO2 of Mauna Loa in ppm (Keeling and Whorf, 2004), 1958 to 2001, with gaps interpolated linearly."""
    del data  # it is installed with statsmodels
    from statsmodels.datasets import co2 as dataset  # slow to import

    weekly = dataset.load_pandas().data["co2"].to_numpy(np.float64)
    known = np.flatnonzero(~np.isnan(weekly))
    values = np.interp(np.arange(len(weekly)), known, weekly[known])[:, None]
    train, validation = (int(len(values) * share) for share in CO2_SHARES)
    rows = {"train": train, "validation": validation, "test": len(values) - train - validation}
    return series_data("co2", ["co2"], values, rows, dated("date", Frequency("week", 1)))


def series(data: DataConfig) -> Dataset:
    """The series of `data.files`, of the columns `data.columns.time` and `data.columns.series`: see `read_series`.

    Several files follow each other in time: those of one pattern in the order of their names. `data.split` cuts them in
    order, by SHARES where it is "" and the files do not say it. UserErrors: no such file, files that do not follow each
    other, a split without rows; see `read_series` and `series_data`.
    """
    if not data.files:
        raise UserError(f"{data.name} needs data.files: name a CSV, TSV, JSON lines or Parquet file, as mine.csv.")
    files = expanded(data.files, data.dir, "data.files")
    rule = parse(data.split, all(file.split for file in files))
    if rule.kind == "hash":
        if data.split:
            raise UserError(f"data.split={data.split!r}: a series is cut in order, so write {SHARES}.")
        rule = parse(SHARES, False)
    if rule.kind == "files":
        files = sorted(files, key=lambda file: SPLIT_ORDER.index(file.split))
    parts = [read_series(file, data.columns.time, data.columns.series) for file in files]
    values, frequency = joined(parts)
    if rule.kind == "files":
        rows = dict.fromkeys(SPLIT_ORDER, 0)
        for part in parts:
            rows[part.file.split] += len(part.values)
    else:
        rows = dict(zip(rule.splits, rule.counts(len(values)), strict=True))
    name = str(files[0].path) if len(files) == 1 else ",".join(data.files)
    if empty := [split for split, count in rows.items() if not count]:
        raise UserError(f"{name} has {len(values)} rows, and none for {empty[0]!r}: change data.split or data.files.")
    steps = f"steps of {frequency}, by {parts[0].time!r}" if frequency else "a row is a step"
    cut = ", ".join(f"{split} {count}" for split, count in rows.items())
    logger.warning("%s: columns %s; %s; %s", name, ", ".join(parts[0].columns), steps, cut)
    return series_data(data.name, parts[0].columns, values, rows, dated(parts[0].time, frequency), name)


def dated(time: str, frequency: Frequency | None) -> dict[str, Any]:
    """The facts of the dates of a series; empty where there are none."""
    known = {} if frequency is None else {"frequency": str(frequency), "season": frequency.season}
    return ({"time": time} if time else {}) | known


def series_data(
    name: str,
    columns: list[str],
    values: np.ndarray,
    rows: dict[str, int],
    facts: dict[str, Any] | None = None,
    files: str = "",
) -> Dataset:
    """A dataset of `values` [T, C], float64, cut into consecutive splits of `rows` steps; `files` is what errors call
    it. UserErrors: too few rows, a column that is constant in the training part."""
    files = files or name
    if len(values) < sum(rows.values()):
        raise UserError(
            f"{files} has {len(values)} rows, fewer than the {sum(rows.values())} of its splits: give the whole file, "
            "or smaller splits."
        )
    if len(values) > sum(rows.values()):
        left = len(values) - sum(rows.values())
        logger.warning("%s: the %d rows after the first %d are not used", files, left, sum(rows.values()))
    mean, deviation = values[: rows["train"]].mean(axis=0), values[: rows["train"]].std(axis=0)
    if not deviation.all():
        constant = columns[int(np.argmin(deviation))]
        raise UserError(
            f"{files} has the column {constant!r}, which is constant in the training part: leave it out, by naming the "
            "others in data.columns.series."
        )
    scaled = ((values - mean) / deviation).astype(np.float32)
    scales = {"mean": mean.astype(np.float32), "deviation": deviation.astype(np.float32)}

    def examples(first: int, count: int) -> Iterator[dict[str, Any]]:
        yield {"values": scaled[first : first + count]} | scales

    splits, first = {}, 0
    for split, count in rows.items():
        splits[split] = lambda first=first, count=count: examples(first, count)
        first += count
    width = len(columns)
    features = {
        "values": array_feature((None, width), np.float32),
        "mean": array_feature((width,), np.float32),
        "deviation": array_feature((width,), np.float32),
    }
    known = {"columns": columns, "mean": mean.tolist(), "deviation": deviation.tolist()}
    return of_arrays(name, features, splits, facts=known | (facts or {}))
