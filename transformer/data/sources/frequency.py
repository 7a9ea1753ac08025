"""The frequency of a series: the step from each date to the next, found from them, and the season that goes with it."""

import dataclasses
import re

import numpy as np

from transformer.errors import UserError

# Fixed units in microseconds, and calendar units in months, longest first.
FIXED = {
    "week": 604_800_000_000,
    "day": 86_400_000_000,
    "hour": 3_600_000_000,
    "minute": 60_000_000,
    "second": 1_000_000,
    "microsecond": 1,
}
CALENDAR = {"year": 12, "quarter": 3, "month": 1}
BUSINESS = "business day"
WEEKS_OF_A_YEAR, BUSINESS_DAYS = 52, 5


@dataclasses.dataclass(frozen=True)
class Frequency:
    """`count` units from date to date. Calendar units keep the day of the month, or its end; business days are those
    from Monday to Friday."""

    unit: str  # of FIXED or CALENDAR, or BUSINESS
    count: int

    def __str__(self) -> str:
        return f"{self.count} {self.unit}{'s' * (self.count > 1)}"

    @classmethod
    def named(cls, text: str) -> "Frequency":
        """The frequency that `str` writes. UserError: it is none."""
        found = re.fullmatch(r"([1-9]\d*) (.+?)s?", text)
        if not found or found[2] not in (*FIXED, *CALENDAR, BUSINESS):
            raise UserError(f"{text!r} is no frequency: write one such as '15 minutes', '1 month' or '1 business day'")
        return cls(found[2], int(found[1]))

    @property
    def of_days(self) -> bool:
        """Whether it counts days, or what is longer."""
        return self.unit not in FIXED or FIXED[self.unit] >= FIXED["day"]

    @property
    def season(self) -> int:
        """The steps of a season, as forecasters take it: an hour of what is faster than minutes, a day of what is
        faster than days, a week of days, a year of weeks, months and quarters. 1 = there is none."""
        if self.unit in CALENDAR:
            return _times(12, CALENDAR[self.unit] * self.count)
        if self.unit == BUSINESS:
            return _times(BUSINESS_DAYS, self.count)
        step, week = FIXED[self.unit] * self.count, FIXED["week"]
        for longest, season in (("minute", "hour"), ("day", "day"), ("week", "week")):
            if step < FIXED[longest]:
                return _times(FIXED[season], step)
        return _times(WEEKS_OF_A_YEAR * week, step)

    def misfit(self, times: np.ndarray) -> int | None:
        """The row of the first time that is not one step after the one before; None where all are. `times`:
        datetime64[us] [T]."""
        if len(times) < 2:
            return None
        wrong = times[1:] != self._next(times)
        return int(wrong.argmax()) + 1 if wrong.any() else None

    def misfits(self, times: np.ndarray) -> int:
        """How many times are not one step after the one before."""
        return int((times[1:] != self._next(times)).sum())

    def following(self, times: np.ndarray, steps: int) -> np.ndarray:
        """The `steps` times after the last of `times`, datetime64[us] [steps]; the end of months is kept where all of
        them are ends of months."""
        numbers = np.arange(1, steps + 1) * self.count
        day = times[-1].astype("M8[D]")
        clock = times[-1] - day
        if self.unit in FIXED:
            return times[-1] + numbers * np.timedelta64(FIXED[self.unit], "us")
        if self.unit == BUSINESS:
            return np.busday_offset(day, numbers, roll="forward").astype("M8[us]") + clock
        months = times[-1].astype("M8[M]") + numbers * CALENDAR[self.unit]
        return _on_day(months, _day_of_months(times)) + clock

    def _next(self, times: np.ndarray) -> np.ndarray:
        """The time that should follow each but the last."""
        before = times[:-1]
        if self.unit in FIXED:
            return before + np.timedelta64(FIXED[self.unit] * self.count, "us")
        days = before.astype("M8[D]")
        clock = before - days
        if self.unit == BUSINESS:
            return np.busday_offset(days, self.count, roll="forward").astype("M8[us]") + clock
        months = before.astype("M8[M]") + self.count * CALENDAR[self.unit]
        return _on_day(months, _day_of_months(times)) + clock


def find_frequency(times: np.ndarray) -> Frequency:
    """The frequency that most steps of `times` have, datetime64[us] [T], which rise; calendar months before a fixed
    number of days where both fit. T is at least 2."""
    steps, counts = np.unique(np.diff(times).astype(np.int64), return_counts=True)
    found = [_largest(FIXED, int(steps[counts.argmax()]))]
    months, counts = np.unique(np.diff(times.astype("M8[M]")).astype(np.int64), return_counts=True)
    if months[counts.argmax()]:
        found.insert(0, _largest(CALENDAR, int(months[counts.argmax()])))
    if found[-1] == Frequency("day", 1) and np.is_busday(times.astype("M8[D]")).all():
        found.append(Frequency(BUSINESS, 1))
    return min(found, key=lambda each: each.misfits(times))


def _largest(units: dict[str, int], size: int) -> Frequency:
    unit = next(name for name in units if size % units[name] == 0)
    return Frequency(unit, size // units[unit])


def _times(whole: int, part: int) -> int:
    return whole // part if whole % part == 0 else 1


def _last_days(months: np.ndarray) -> np.ndarray:
    """The number of days of months, datetime64[M]."""
    return ((months + 1).astype("M8[D]") - months.astype("M8[D]")).astype(np.int64)


def _day_of_months(times: np.ndarray) -> int:
    """The day of the month that times have; 31 is the end of each month. It is the one that fits most of them, and an
    end where both fit alike."""
    months = times.astype("M8[M]")
    days = (times.astype("M8[D]") - months.astype("M8[D]")).astype(np.int64) + 1
    found, counts = np.unique(days, return_counts=True)
    fitting = {day: (days == np.minimum(day, _last_days(months))).sum() for day in (31, int(found[counts.argmax()]))}
    return max(fitting, key=lambda day: fitting[day])


def _on_day(months: np.ndarray, day: int) -> np.ndarray:
    """That day of months, or their last, datetime64[us]."""
    return (months.astype("M8[D]") + (np.minimum(day, _last_days(months)) - 1)).astype("M8[us]")
