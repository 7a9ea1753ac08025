"""Dates as people write them: a column of texts to times, and times back to texts of the same form."""

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformer.errors import UserError

# How the day is written -> what reads it. A clock may follow, after T or a space, and then a zone. A quarter, a month
# or a year without a day is its first day.
_YEAR, _MONTH, _DAY = r"(?P<y>\d{4})", r"(?P<m>\d\d?)", r"(?P<d>\d\d?)"
FORMS = {
    "{y:04}-{m:02}-{d:02}": f"{_YEAR}-{_MONTH}-{_DAY}",
    "{y:04}/{m:02}/{d:02}": f"{_YEAR}/{_MONTH}/{_DAY}",
    "{d:02}.{m:02}.{y:04}": rf"{_DAY}\.{_MONTH}\.{_YEAR}",
    "{d:02}/{m:02}/{y:04}": f"{_DAY}/{_MONTH}/{_YEAR}",
    "{m:02}/{d:02}/{y:04}": f"{_MONTH}/{_DAY}/{_YEAR}",
    "{y:04}{m:02}{d:02}": r"(?P<y>\d{4})(?P<m>\d\d)(?P<d>\d\d)",
    "{y:04}-{m:02}": f"{_YEAR}-{_MONTH}",
    "{y:04}-Q{q}": f"{_YEAR}-Q(?P<q>[1-4])",
    "{y:04}Q{q}": f"{_YEAR}Q(?P<q>[1-4])",
    "{y:04}": _YEAR,
}
CLOCK = (
    r"(?:(?P<gap>T| +)(?P<hour>\d\d?)(?::(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<part>\d{1,9}))?)?)?"
    r" *(?P<zone>Z|UTC|[+-]\d\d(?::?\d\d)?)?)?"
)
PATTERNS = {form: re.compile(f" *{day}{CLOCK} *", re.ASCII) for form, day in FORMS.items()}
EXAMPLE = "2016-07-01 00:00:00"
AMBIGUOUS = ("{d:02}/{m:02}/{y:04}", "{m:02}/{d:02}/{y:04}")
SAMPLE = 1000  # texts that tell the form of all
MOST_APART = 60  # minutes between offsets of one zone: summer and winter


class Dates(NamedTuple):
    """Times of a column, and how they are written."""

    clock: np.ndarray  # datetime64[us] [T], as a clock on the wall shows them
    offsets: np.ndarray | None  # minutes ahead of UTC [T]; None = no zone is written
    form: str  # a row of FORMS
    last: str  # the last text

    @property
    def instants(self) -> np.ndarray:
        """The times in UTC, datetime64[us] [T]; the clock's where no zone is written."""
        return self.clock if self.offsets is None else self.clock - self.offsets.astype("m8[m]")

    def written(self, times: np.ndarray) -> list[str]:
        """Times of the clock, datetime64[us], written as the last text is, with its zone."""
        found = PATTERNS[self.form].fullmatch(self.last)
        assert found is not None, "the last text was read in this form"
        zone = self.last[found.start("zone") :].rstrip() if found["zone"] else ""
        shown = {"hour": "%H", "minute": ":%M", "second": ":%S"}
        clock = (found["gap"] or "") + "".join(shown[name] for name in shown if found[name] is not None)
        digits = len(found["part"] or "")
        texts = []
        for time in times.astype("M8[us]").tolist():
            day = self.form.format(y=time.year, m=time.month, d=time.day, q=(time.month + 2) // 3)
            part = f".{time.microsecond:06}".ljust(digits + 1, "0")[: digits + 1] if digits else ""
            texts.append(day + time.strftime(clock) + part + zone)
        return texts


def parsed(text: str, form: str) -> tuple[datetime, int | None] | None:
    """The time of a text in a form, and the minutes of its zone, if any; None where it is no such date."""
    found = PATTERNS[form].fullmatch(text)
    if found is None:
        return None
    part = found.groupdict()
    month = int(part.get("m") or 3 * int(part.get("q") or 1) - 2)
    hour, minute, second = (int(part[name] or 0) for name in ("hour", "minute", "second"))
    fraction = int((part["part"] or "0").ljust(6, "0")[:6])
    try:
        time = datetime(int(part["y"]), month, int(part.get("d") or 1), hour, minute, second, fraction)
    except ValueError:
        return None
    zone = part["zone"]
    if zone is None or zone in ("Z", "UTC"):
        return time, None if zone is None else 0
    minutes = 60 * int(zone[1:3]) + int(zone[3:].lstrip(":") or 0)
    return time, -minutes if zone[0] == "-" else minutes


def form_of(texts: Sequence[str]) -> str:
    """The form in which more than half of the texts are dates; "" where there is none. The day comes before the month
    where both fit: see `read_dates`."""
    counts = {form: sum(parsed(text, form) is not None for text in texts) for form in FORMS}
    best = max(counts, key=lambda form: counts[form])
    return best if 2 * counts[best] > len(texts) else ""


def read_dates(texts: Sequence[str], path: Path, at: Callable[[int], str]) -> Dates:
    """The times of a column of a file; `at(row)` says where a row stands: "line 7". UserErrors: a text that is no date
    in the form of most, days and months that cannot be told apart, zones that are mixed."""
    form = form_of(texts[:SAMPLE]) or next(iter(FORMS))
    if form in AMBIGUOUS:
        fits = [all(parsed(text, each) for text in texts) for each in AMBIGUOUS]
        if all(fits):
            raise UserError(
                f"{path} has {texts[0]!r} in {at(0)}, and no date says whether the day or the month comes first: write "
                "dates as 2016-07-31."
            )
        form = AMBIGUOUS[fits[1]]
    times, zones = list[datetime](), list[int | None]()
    for row, text in enumerate(texts):
        found = parsed(text, form)
        if found is None:
            others = "" if form == next(iter(FORMS)) else f", or all as {form.format(y=2016, m=7, d=31, q=3)}"
            raise UserError(
                f"{path} has {text!r} in {at(row)}, where a date belongs: write dates as {EXAMPLE}{others}."
            )
        time, minutes = found
        first = zones[0] if zones else minutes
        if (minutes is None) != (first is None):
            raise UserError(f"{path} has dates with and without a time zone, as of {at(row)}: write all in one form.")
        if minutes is not None and first is not None and abs(minutes - first) > MOST_APART:
            raise UserError(f"{path} has {text!r} in {at(row)} and {texts[0]!r} before: write all in one time zone.")
        times.append(time)
        zones.append(minutes)
    offsets = None if not zones or zones[0] is None else np.array(zones, np.int64)
    return Dates(np.array(times, "M8[us]"), offsets, form, texts[-1] if texts else "")


def readable(step: np.timedelta64) -> timedelta:
    """A step as sentences show it."""
    return timedelta(microseconds=int(step.astype("m8[us]").astype(np.int64)))
