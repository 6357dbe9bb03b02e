"""Time of series for DeepAR: frequencies, the inputs that follow from the calendar, and the lags worth looking back.

The lags are those that GluonTS (Alexandrov et al., 2020) derives from a frequency.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self, cast, final

import numpy as np

from ...contracts import Array
from ...errors import UserError

Unit = Literal["min", "H", "D", "W", "M"]
MAX_LAG = 1200
_MINUTES = {"min": 1, "H": 60, "D": 1440, "W": 10080}
_START = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d)?)?")


@final
@dataclass(frozen=True, slots=True)
class Frequency:
    """The distance between two values of a series: `multiple` units."""

    multiple: int
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the frequency that a user writes as "H" or "15min".

        Raises:
            UserError: it is none.
        """
        found = re.fullmatch(r"([1-9]\d{0,5})?(min|[HDWM])", text.strip())
        if found is None:
            raise UserError(f"time_freq={text:.40} is not allowed: it must be min, H, D, W or M, as in 15min or 2H")
        return cls(int(found[1] or 1), cast(Unit, found[2]))

    def times(self, start: np.datetime64, count: int) -> Array:
        """Return the times of `count` values from `start` on, (count,) datetime64 in minutes; months begin on the 1st."""
        steps = np.arange(count, dtype=np.int64) * self.multiple
        if self.unit == "M":
            months: Array = np.asarray(start.astype("datetime64[M]") + steps)
            return months.astype("datetime64[m]")
        found: Array = np.asarray(start.astype("datetime64[m]") + steps * _MINUTES[self.unit])
        return found

    def features(self, times: Array) -> Array:
        """Return the calendar's inputs for datetime64 times (T,), (T, F) float32, each from -0.5 to 0.5."""
        days, months = times.astype("datetime64[D]"), times.astype("datetime64[M]")
        years = times.astype("datetime64[Y]")
        minute = (times.astype("datetime64[m]") - days).astype(np.int64)
        year_day = (days - years).astype(np.int64)
        found = {
            "minute": (minute % 60) / 59,
            "hour": (minute // 60) / 23,
            "weekday": ((days.astype(np.int64) + 3) % 7) / 6,
            "month_day": (days - months).astype(np.int64) / 30,
            "year_day": year_day / 365,
            "year_week": (year_day // 7) / 52,
            "month": (months - years).astype(np.int64) / 11,
        }
        days_of = ("weekday", "month_day", "year_day")
        names = {
            "min": ("minute", "hour", *days_of),
            "H": ("hour", *days_of),
            "D": days_of,
            "W": ("month_day", "year_week"),
            "M": ("month",),
        }[self.unit]
        return (np.stack([found[name] for name in names], axis=1) - 0.5).astype(np.float32)

    def lags(self) -> list[int]:
        """Return how many steps back the network looks besides the seven last ones, these included; ascending."""
        wanted = set(range(1, 8))
        for distance, spread in self._seasons():
            middle = int(distance)
            wanted |= {lag for lag in range(middle - spread, middle + spread + 1) if 7 < lag <= MAX_LAG}
        return sorted(wanted)

    def _seasons(self) -> list[tuple[float, int]]:
        """Return distances in steps and how far around them to look."""
        if self.unit == "M":
            return [(12 * i / self.multiple, 1) for i in (1, 2, 3)]
        step = _MINUTES[self.unit] * self.multiple
        seasons: list[tuple[float, int]] = []
        if self.unit == "min":
            seasons += [(60 * i / step, 2) for i in (1, 2, 3)]
        if self.unit in ("min", "H"):
            seasons += [(1440 * i / step, 1) for i in range(1, 8)]
        if self.unit != "W":
            seasons += [(10080 * i / step, 1) for i in range(1, 5)] + [(43200 / step, 1)]
        return seasons + [(524160 * i / step, 1) for i in (1, 2, 3)] + [(10080 * i / step, 0) for i in (4, 8, 12)]


def start_of(value: object, where: str) -> np.datetime64:
    """Return the time that a record's `start` says, in seconds.

    Raises:
        UserError: it is no time, or one with a time zone; `where` names file and line.
    """
    if isinstance(value, str) and re.search(r"(Z|[+-]\d\d:?\d\d)$", value) and ":" in value:
        raise UserError(f"{where}: start '{value:.60}' has a time zone; write local time, as 2024-01-31 23:00:00")
    try:
        if isinstance(value, str) and _START.fullmatch(value):
            return np.datetime64(value.replace(" ", "T"), "s")
    except ValueError:
        pass
    raise UserError(f"{where}: start must be a time as 2024-01-31 23:00:00, not {value!r:.60}")
