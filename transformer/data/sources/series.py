"""Time series: the electricity transformer temperatures (ETTh1), and the weekly CO2 of Mauna Loa.

A split is one example: `values` float32 [T, C], z-scores by `mean` and `deviation` [C] of the training part (the
population deviation, as in the literature). The splits are consecutive, so that the steps before a split are the last
ones of the split before it. The facts are the names of the `columns`, and the `mean` and `deviation` used for scaling,
in float64.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transformer.config import DataConfig
from transformer.data.builder import Dataset, array_feature, of_arrays
from transformer.data.sources.files import folder_of, read_bytes
from transformer.errors import UserError

ETT_FILE = "ETTh1.csv"
ETT_ROWS = {"train": 8_640, "validation": 2_880, "test": 2_880}  # hours: 12, 4 and 4 months of 30 days (Zhou et al.)
CO2_SHARES = (0.7, 0.1)  # train and validation; the rest is test


def ett(data: DataConfig) -> Dataset:
    """ETTh1 (Zhou et al., 2021) of `data.dir`: seven hourly columns, of which the first 14,400 rows are used."""
    columns, values = read_csv(folder_of(data, ETT_FILE) / ETT_FILE)
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
    """A dataset of `values` [T, C], float64, cut into consecutive splits of `rows` steps. UserErrors: too few rows, a
    value that is not finite, a column that is constant in the training part."""
    if len(values) < sum(rows.values()):
        raise UserError(
            f"{name} has {len(values)} rows, fewer than the {sum(rows.values())} of its splits: fetch the whole file."
        )
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        raise UserError(
            f"{name} has {values[row, column]} in row {row + 1} of column {columns[column]!r}: fill it in, for example "
            "by interpolation."
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


def read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    """Column names and values [T, C], float64, of a CSV file with a header and the date in the first column; an empty
    field is NaN. UserError: no such file, a row of another length, a field that is no number."""
    if not path.is_file():
        raise UserError(f"There is no file {path}: add it or change data.dir.")
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid UTF-8: fetch it again.") from error
    header, *rows = [*csv.reader(lines)] or [[]]
    values = np.empty((len(rows), max(len(header) - 1, 0)))
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise UserError(f"{path} has {len(row)} fields in line {number + 2}, not {len(header)}: fetch it again.")
        for column, field in enumerate(row[1:]):
            try:
                values[number, column] = float(field) if field.strip() else np.nan
            except ValueError as error:
                where = f"line {number + 2}, column {header[column + 1]!r}"
                raise UserError(f"{path} has {field!r} in {where}, which is no number: correct it.") from error
    if not values.size:
        raise UserError(f"{path} has no column of numbers under a header: give a CSV file with a date column first.")
    return header[1:], values
