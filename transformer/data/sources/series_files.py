"""Series in files of the user, with or without a column of dates: CSV, TSV, JSON lines, Parquet, Arrow."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer.data.sources.dates import Dates, form_of, read_dates, readable
from transformer.data.sources.frequency import Frequency, find_frequency
from transformer.data.sources.source import choose
from transformer.data.sources.table.formats import columns_of, read, unit_of
from transformer.data.sources.table.paths import File
from transformer.errors import UserError

logger = logging.getLogger(__name__)

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)  # float() reads 20_000 too
LOOKED_AT = 100  # rows that tell which columns hold dates and which numbers
# Names under which a column of numbers, such as years, holds dates.
OF_DATES = {"date", "dates", "datetime", "time", "timestamp", "year", "month", "quarter", "week", "day", "ds", "period"}


class Series(NamedTuple):
    """Columns of numbers of one file, row by row."""

    file: File
    columns: list[str]
    values: np.ndarray  # [T, C], float64
    time: str  # the name of the column of dates; "" = there is none
    dates: Dates | None
    numbers: Sequence[int]  # the line of each row in the file, or its number in a Parquet or Arrow file

    def at(self, row: int) -> str:
        """Where a row stands: "line 7", "row 6"."""
        return f"{unit_of(self.file)} {self.numbers[row]}"


def read_series(file: File, time: str = "", columns: Sequence[str] = (), most: int | None = None) -> Series:
    """The series of a file, of its first `most` rows.

    `time` names the column of dates; "" is the first column that holds dates, where there is one. `columns` names the
    variables; without them they are all columns of numbers, and what is left out is told. Empty rows at the end are
    none. UserErrors, with the row: no such column, a field that is no finite number, dates that cannot be read; and
    those of `table.formats`.
    """
    path, (names, head) = file.path, _head(file)
    for name in (time, *columns):
        if name and name not in names:
            raise UserError(f"{path} has no column {name!r}: {choose(name, names)}.")
    time = time or _of_dates(head)
    chosen = list(columns) or _of_numbers(path, head, time)
    if not chosen:
        raise UserError(f"{path} has no column of numbers besides its dates: it has {', '.join(names)}.")
    values, texts, numbers = list[float](), list[str](), list[int]()
    used, beyond, empty = list(dict.fromkeys([*chosen, *([time] if time else [])])), 0, 0
    for block in read(file, used, "line"):
        for number, *row in zip(block.numbers, *(block.values[name] for name in used), strict=True):
            if not any(map(_text, row)):
                empty = empty or number
            elif most is not None and len(numbers) == most:
                beyond += 1
            else:
                if empty:
                    raise UserError(f"{path} has nothing in {unit_of(file)} {empty}: fill it in, or take it out.")
                numbers.append(number)
                values += [_number(file, number, *pair) for pair in zip(chosen, row, strict=False)]
                if time:
                    texts.append(_text(row[used.index(time)]))
    if not numbers:
        raise UserError(f"{path} has no row of numbers: add rows.")
    if beyond:
        logger.warning("%s: the %d rows after the first %d are not used", path, beyond, most)
    found = np.array(values).reshape(len(numbers), len(chosen))
    dates = read_dates(texts, path, lambda row: f"{unit_of(file)} {numbers[row]}") if time else None
    return Series(file, chosen, found, time, dates, numbers)


def _text(value: Any) -> str:
    """A value as text; "" where there is none."""
    return "" if value is None else str(value).strip()


def _number(file: File, number: int, column: str, value: Any) -> float:
    """A value of a row as a number. UserError: it is no finite one."""
    text = _text(value)
    found = float(text) if NUMBER.fullmatch(text) else np.nan
    if not np.isfinite(found):
        shown = value if isinstance(value, str) else text
        raise UserError(
            f"{file.path} has {shown!r} in {unit_of(file)} {number}, column {column!r}, which is no finite number: "
            "correct it, or fill it in, for example by interpolation."
        )
    return found


def joined(parts: Sequence[Series]) -> tuple[np.ndarray, Frequency | None]:
    """The values [T, C] of files that follow each other, and their frequency; None without dates, or with a single one.
    UserErrors, with the file and the line: other columns, dates that fall, repeat, or leave something out."""
    first = parts[0]
    for part in parts[1:]:
        if part.columns != first.columns or (part.dates is None) != (first.dates is None):
            raise UserError(
                f"{part.file.path} has the columns {', '.join([part.time, *part.columns])} and {first.file.path} "
                f"{', '.join([first.time, *first.columns])}: give files of the same."
            )
    values = np.concatenate([part.values for part in parts])
    frequency = None
    if first.dates is not None and len(values) > 1:
        frequency = check_dates(parts)
    return values, frequency


def check_dates(parts: Sequence[Series], frequency: Frequency | None = None) -> Frequency:
    """The frequency of files that follow each other; `frequency` is that which they should have. UserErrors as of
    `joined`."""
    dates = [part.dates for part in parts if part.dates is not None]
    instants = np.concatenate([each.instants for each in dates])
    falls = np.flatnonzero(np.diff(instants) <= np.timedelta64(0))
    clocks = np.concatenate([each.clock for each in dates])
    if len(falls):
        row = int(falls[0]) + 1
        what = "goes back to" if instants[row] < instants[row - 1] else "repeats"
        path, place = _placed(parts, row)
        raise UserError(f"{path} {what} {clocks[row].item()} in {place}: sort its rows, oldest first, each date once.")
    zoned = [each.offsets for each in dates if each.offsets is not None]
    if zoned and len(zoned) < len(dates):
        raise UserError(
            f"{parts[0].file.path} and the files after it have dates with and without a time zone: write all in one "
            "form."
        )
    best, times = frequency or find_frequency(instants), instants
    if not zoned or len(np.unique(np.concatenate(zoned))) == 1:
        best, times = frequency or find_frequency(clocks), clocks
    elif best.misfits(instants):  # days of a zone that changes its offset: even on the clock, and not in UTC
        found = frequency or find_frequency(clocks)
        if found.of_days and found.misfits(clocks) < best.misfits(instants):
            best, times = found, clocks
    wrong = best.misfit(times)
    if wrong is not None:
        due = best.following(times[:wrong], 1)[0].item()
        path, place = _placed(parts, wrong)
        zone = " UTC" if zoned and times is instants else ""
        gone = f"{readable(times[wrong] - times[wrong - 1])} to {times[wrong].item()}{zone}"
        raise UserError(
            f"{path} goes on by {gone} in {place}, where {due}{zone} is due, {best} after the date before: fill in "
            "what is missing, take out what is between, or leave out the dates to count rows."
        )
    return best


def _placed(parts: Sequence[Series], row: int) -> tuple[Path, str]:
    """The file of a row of all files, and its place there."""
    for part in parts:
        if row < len(part.numbers):
            return part.file.path, part.at(row)
        row -= len(part.numbers)
    raise IndexError(row)


# --- Columns


def _head(file: File) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """The names of the columns, and their texts in the first LOOKED_AT rows. A first line of numbers and dates is a
    row, and the columns are then numbered from 1. UserErrors: two columns of one name; those of `columns_of`."""
    names = columns_of(file)
    numbers = [bool(NUMBER.fullmatch(name)) for name in names]
    if any(numbers) and all(found or form_of([name]) for found, name in zip(numbers, names, strict=True)):
        logger.warning("%s has no names in line 1: its columns are numbered from 1", file.path)
        names = columns_of(file, numbered=True)
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise UserError(f"{file.path} has the column {twice[0]!r} twice: rename one of them.")
    block = next(read(file, names, "line"), None)
    if block is None:
        raise UserError(f"{file.path} has no row under the names of its columns: add rows.")
    texts = {name: [_text(value) for value in block.values[name][:LOOKED_AT]] for name in names}
    return names, {name: [text for text in texts[name] if text] for name in names}


def _of_dates(head: Mapping[str, list[str]]) -> str:
    """The first column that holds dates, or "". Numbers, such as 2016 or 20160701, are dates under a name of OF_DATES
    only."""
    for name, texts in head.items():
        numbers = all(map(NUMBER.fullmatch, texts))
        if texts and (not numbers or name.strip().lower() in OF_DATES) and form_of(texts):
            return name
    return ""


def _of_numbers(path: Path, head: Mapping[str, list[str]], time: str) -> list[str]:
    """The columns that hold any number, besides that of the dates; the others are told."""
    found = [name for name, texts in head.items() if name != time and any(map(NUMBER.fullmatch, texts))]
    others = [repr(name) for name in head if name != time and name not in found]
    if others:
        logger.warning("%s: columns without numbers are left out: %s", path, ", ".join(others))
    return found
