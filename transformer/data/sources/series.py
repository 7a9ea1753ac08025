"""Time series: the electricity transformer temperatures (ETTh1), and the weekly CO2 of Mauna Loa.

A split is one example: `values` float32 [T, C], z-scores by `mean` and `deviation` [C] of the training part (the
population deviation, as in the literature). The splits are consecutive, so that the steps before a split are the last
ones of the split before it. The facts are the names of the `columns`, and the `mean` and `deviation` used for scaling,
in float64.
"""

import csv
import io
import itertools
import logging
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data.builder import Dataset, array_feature, of_arrays
from transformer.data.sources.files import folder_of, read_text
from transformer.errors import UserError

logger = logging.getLogger(__name__)

ETT_FILE = "ETTh1.csv"
ETT_ROWS = {"train": 8_640, "validation": 2_880, "test": 2_880}  # hours: 12, 4 and 4 months of 30 days (Zhou et al.)
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)  # float() reads 20_000 too
CO2_SHARES = (0.7, 0.1)  # train and validation; the rest is test


def ett(data: DataConfig) -> Dataset:
    """ETTh1 (Zhou et al., 2021) of `data.dir`: seven hourly columns, of which the first 14,400 rows are used."""
    columns, values = read_csv(folder_of(data, ETT_FILE) / ETT_FILE, sum(ETT_ROWS.values()))
    return series_data("ett", columns, values, ETT_ROWS)


def co2(data: DataConfig) -> Dataset:
    """Weekly CO2 of Mauna Loa in ppm (Keeling and Whorf, 2004), 1958 to 2001, with gaps interpolated linearly."""
    del data  # it is installed with statsmodels
    from statsmodels.datasets import co2 as dataset  # slow to import

    weekly = dataset.load_pandas().data["co2"].to_numpy(np.float64)
    known = np.flatnonzero(~np.isnan(weekly))
    values = np.interp(np.arange(len(weekly)), known, weekly[known])[:, None]
    train, validation = (int(len(values) * share) for share in CO2_SHARES)
    rows = {"train": train, "validation": validation, "test": len(values) - train - validation}
    return series_data("co2", ["co2"], values, rows)


def series_data(name: str, columns: list[str], values: np.ndarray, rows: dict[str, int]) -> Dataset:
    """A dataset of `values` [T, C], float64, cut into consecutive splits of `rows` steps. UserErrors: too few rows,
    a column that is constant in the training part."""
    if len(values) < sum(rows.values()):
        raise UserError(
            f"{name} has {len(values)} rows, fewer than the {sum(rows.values())} of its splits: fetch the whole file."
        )
    mean, deviation = values[: rows["train"]].mean(axis=0), values[: rows["train"]].std(axis=0)
    if not deviation.all():
        constant = columns[int(np.argmin(deviation))]
        raise UserError(f"{name} has the column {constant!r}, which is constant in the training part: leave it out.")
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
    facts = {"columns": columns, "mean": mean.tolist(), "deviation": deviation.tolist()}
    return of_arrays(name, features, splits, facts=facts)


def read_csv(path: Path, most: int) -> tuple[list[str], np.ndarray]:
    """Column names and values [T, C], float64, of the first `most` rows of a CSV file with a header, and ISO 8601 dates
    in the first column. UserErrors, with the line: no such file, no header, another separator, a row of another length,
    a field that is no finite number, dates that do not rise evenly."""
    if not path.is_file():
        raise UserError(f"There is no file {path}: add it or change data.dir.")
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV file in line {reader.line_num} ({error}): correct it.") from error
    while lines and not any(map(str.strip, lines[-1][1])):
        lines.pop()  # blank lines at the end
    (_, header), *rows = lines or [(1, [])]
    _check_header(path, header, bool(rows))
    if len(rows) > most:
        logger.warning("%s: the %d rows after the first %d are not used", path, len(rows) - most, most)
    dates = []
    values = np.empty((min(len(rows), most), len(header) - 1))
    for place, (line, row) in enumerate(rows[:most]):
        if len(row) != len(header):
            raise UserError(f"{path} has {len(row)} fields in line {line}, not {len(header)}: fetch it again.")
        dates.append((line, _date(path, line, row[0])))
        for column, field in enumerate(row[1:]):
            values[place, column] = number = float(field) if NUMBER.fullmatch(field) else np.nan
            if not np.isfinite(number):
                raise UserError(
                    f"{path} has {field!r} in line {line}, column {header[column + 1]!r}, which is no finite number: "
                    "correct it, or fill it in, for example by interpolation."
                )
    _check_dates(path, dates)
    return header[1:], values


def _check_header(path: Path, header: list[str], rows: bool) -> None:
    separator = re.search(r"[;\t|]", header[0]) if len(header) == 1 else None
    if separator:
        raise UserError(f"{path} has {separator[0]!r} between fields in line 1: write commas, and points in numbers.")
    if len(header) > 1 and all(map(NUMBER.fullmatch, header[1:])):
        raise UserError(f"{path} has numbers in line 1, where the names of the columns belong: add that line.")
    if len(header) < 2 or not rows:
        raise UserError(f"{path} has no column of numbers under a header: give a CSV file with a date column first.")
    twice = [name for place, name in enumerate(header) if name in header[:place]]
    if twice:
        raise UserError(f"{path} has the column {twice[0]!r} twice: rename one of them.")


def _date(path: Path, line: int, field: str) -> datetime:
    try:
        return datetime.fromisoformat(field.strip())
    except ValueError as error:
        raise UserError(
            f"{path} has {field!r} in line {line}, where a date belongs: write dates as 2016-07-01 00:00:00, in the "
            "first column."
        ) from error


def _check_dates(path: Path, dates: list[tuple[int, datetime]]) -> None:
    """UserError: the dates, each with its line, do not rise evenly."""
    step: timedelta | None = None
    for (_, before), (line, date) in itertools.pairwise(dates):
        if (date.tzinfo is None) != (before.tzinfo is None):
            raise UserError(f"{path} has dates with and without a time zone, as of line {line}: write all in one form.")
        found = date - before
        if found <= timedelta(0):
            what = "goes back to" if found else "repeats"
            raise UserError(f"{path} {what} {date} in line {line}: sort its rows, oldest first, each date once.")
        if step is not None and found != step:
            raise UserError(
                f"{path} goes on by {found} to {date} in line {line}, and by {step} before: fill in what is missing, "
                "or take out what is between."
            )
        step = found
