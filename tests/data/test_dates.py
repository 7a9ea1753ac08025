"""Forms of dates and frequencies, held to calendars of Python's library and written out by hand."""

import calendar
import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from transformer.data.sources.dates import FORMS, read_dates
from transformer.data.sources.frequency import Frequency, find_frequency
from transformer.errors import UserError


def read(texts: list[str]) -> list[datetime.datetime]:
    return read_dates(texts, Path("x.csv"), lambda row: f"line {row + 2}").clock.tolist()


def times(*texts: str) -> np.ndarray:
    return np.array(texts, "M8[us]")


# --- Forms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-02-29", (2024, 2, 29)),
        ("2024-2-9", (2024, 2, 9)),
        (" 2024-02-29 ", (2024, 2, 29)),
        ("2024-02-29 07", (2024, 2, 29, 7)),
        ("2024-02-29T07:08", (2024, 2, 29, 7, 8)),
        ("2024-02-29 07:08:09", (2024, 2, 29, 7, 8, 9)),
        ("2024-02-29T07:08:09.5Z", (2024, 2, 29, 7, 8, 9, 500_000)),
        ("2024-02-29T07:08:09,123456789", (2024, 2, 29, 7, 8, 9, 123_456)),
        ("2024/02/29 7:08", (2024, 2, 29, 7, 8)),
        ("29.02.2024 07:08", (2024, 2, 29, 7, 8)),
        ("29/02/2024", (2024, 2, 29)),
        ("02/29/2024", (2024, 2, 29)),
        ("20240229", (2024, 2, 29)),
        ("2024-11", (2024, 11, 1)),
        ("2024-Q3", (2024, 7, 1)),
        ("2024Q4", (2024, 10, 1)),
        ("2024", (2024, 1, 1)),
    ],
)
def test_a_date_of_every_form(text: str, expected: tuple[int, ...]) -> None:
    (found,) = read([text])
    parts = (*found.timetuple()[:6], found.microsecond)
    assert parts == (*expected, 0, 0, 0, 0)[:7]


def test_every_form_writes_what_it_reads() -> None:
    whole = datetime.datetime(2024, 10, 31, 17, 5, 9, 250_000)
    for form in FORMS:
        day = form.format(y=whole.year, m=whole.month, d=whole.day, q=4)
        for clock in ("", " 17", "T17:05", " 17:05:09", "T17:05:09.25", " 17:05:09+02:00", " 17:05:09.250Z"):
            dates = read_dates([day + clock], Path("x.csv"), str)
            assert dates.written(dates.clock) == [day + clock]
    assert read_dates(["2024-01-31 00:00"], Path("x.csv"), str).written(times("2024-02-29T12")) == ["2024-02-29 12:00"]


def test_the_zone_is_kept_and_counted() -> None:
    dates = read_dates(["2024-01-01T05:00+05:30", "2024-01-01T06:00+05:30"], Path("x.csv"), str)
    assert dates.instants.tolist() == [datetime.datetime(2023, 12, 31, 23, 30), datetime.datetime(2024, 1, 1, 0, 30)]
    back = read_dates(["2024-01-01T05:00-0330"], Path("x.csv"), str)
    assert back.instants.tolist() == [datetime.datetime(2024, 1, 1, 8, 30)]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["2024-02-28", "2024-02-30"], "x.csv has '2024-02-30' in line 3, where a date belongs"),
        (["2024-02-28", "soon"], "x.csv has 'soon' in line 3, where a date belongs: write dates as 2016-07-01"),
        (["31.12.2023", "2024-01-01", "02.01.2024"], "x.csv has '2024-01-01' in line 3, .*, or all as 31.07.2016"),
        (["01/02/2024", "01/03/2024"], "x.csv has '01/02/2024' in line 2, and no date says whether the day or the mon"),
        (["2024-01-01", "2024-01-02Z"], "x.csv has '2024-01-02Z' in line 3, where a date belongs"),
        (["2024-01-01 00:00", "2024-01-01 01:00Z"], "x.csv has dates with and without a time zone, as of line 3"),
        (
            ["2024-01-01T00:00+01:00", "2024-01-01T01:00-05:00"],
            r"x.csv has '2024-01-01T01:00-05:00' in line 3 and '2024-01-01T00:00\+01:00' before: write all in one time",
        ),
    ],
)
def test_dates_that_cannot_be_read(texts: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(texts)
    assert "\n" not in str(caught.value)


def test_one_date_tells_the_order_of_day_and_month() -> None:
    assert read(["01/02/2024", "13/02/2024"])[0] == datetime.datetime(2024, 2, 1)
    assert read(["01/02/2024", "02/13/2024"])[0] == datetime.datetime(2024, 1, 2)


# --- Frequencies


def months_by_hand(first: datetime.date, count: int, step: int, day: int) -> np.ndarray:
    found = []
    for number in range(count):
        year, month = divmod(first.year * 12 + first.month - 1 + number * step, 12)
        last = calendar.monthrange(year, month + 1)[1]
        found.append(datetime.datetime(year, month + 1, min(day, last), 6))
    return np.array(found, "M8[us]")


@pytest.mark.parametrize("step", [1, 3, 4, 12])
@pytest.mark.parametrize("day", [1, 15, 28, 30, 31])
@pytest.mark.parametrize("first", [datetime.date(2023, 1, 1), datetime.date(2023, 6, 1)])
def test_months_go_on_by_the_calendar(step: int, day: int, first: datetime.date) -> None:
    whole = months_by_hand(first, 40, step, day)
    frequency = find_frequency(whole[:27])
    assert frequency == {1: Frequency("month", 1), 3: Frequency("quarter", 1), 4: Frequency("month", 4)}.get(
        step, Frequency("year", 1)
    )
    assert frequency.misfit(whole) is None
    np.testing.assert_array_equal(frequency.following(whole[:27], 13), whole[27:])


@pytest.mark.parametrize(
    ("unit", "count", "step"),
    [
        ("microsecond", 250, "250us"),
        ("second", 1, "1s"),
        ("second", 10, "10s"),
        ("minute", 15, "15m"),
        ("hour", 1, "1h"),
        ("day", 1, "1D"),
        ("day", 10, "10D"),
        ("week", 1, "1W"),
        ("week", 2, "2W"),
    ],
)
def test_fixed_steps(unit: str, count: int, step: str) -> None:
    size, letters = int(step.rstrip("usmhDW")), cast(Any, step.lstrip("0123456789"))
    whole = (np.datetime64("2024-01-27T05") + np.arange(60) * np.timedelta64(size, letters)).astype("M8[us]")
    frequency = find_frequency(whole[:50])
    assert frequency == Frequency(unit, count)
    np.testing.assert_array_equal(frequency.following(whole[:50], 10), whole[50:])
    assert frequency.misfit(np.delete(whole, 33)) == 33
    assert find_frequency(np.delete(whole, 33)) == frequency
    assert Frequency.named(str(frequency)) == frequency


def test_business_days_skip_weekends() -> None:
    start, days = datetime.datetime(2024, 2, 28, 17), []
    for number in range(40):
        day = start + datetime.timedelta(days=number)
        if day.weekday() < 5:
            days.append(day)
    whole = np.array(days, "M8[us]")
    frequency = find_frequency(whole[:20])
    assert frequency == Frequency("business day", 1)
    np.testing.assert_array_equal(frequency.following(whole[:20], len(whole) - 20), whole[20:])
    assert frequency.misfit(np.delete(whole, 7)) == 7
    assert Frequency.named(str(frequency)) == frequency


def test_one_wrong_date_does_not_change_the_frequency() -> None:
    monthly = months_by_hand(datetime.date(2020, 1, 1), 30, 1, 31)
    wrong = monthly.copy()
    wrong[11] -= np.timedelta64(1, "D")
    assert find_frequency(wrong) == Frequency("month", 1)
    assert Frequency("month", 1).misfit(wrong) == 11
    assert find_frequency(np.delete(monthly, 1)) == Frequency("month", 1)


@pytest.mark.parametrize(
    ("frequency", "season"),
    [
        (("second", 1), 3600), (("second", 10), 360), (("minute", 1), 1440), (("minute", 15), 96),
        (("minute", 30), 48), (("hour", 1), 24), (("hour", 6), 4), (("hour", 7), 1), (("day", 1), 7),
        (("day", 2), 1), (("week", 1), 52), (("week", 4), 13), (("month", 1), 12), (("month", 2), 6),
        (("month", 5), 1), (("quarter", 1), 4), (("year", 1), 1), (("business day", 1), 5),
    ],
)  # fmt: skip
def test_seasons_as_forecasters_take_them(frequency: tuple[str, int], season: int) -> None:
    assert Frequency(*frequency).season == season


def test_a_frequency_that_is_none() -> None:
    for text in ("", "0 hours", "fortnight", "2 fortnights"):
        with pytest.raises(UserError, match="is no frequency"):
            Frequency.named(text)
