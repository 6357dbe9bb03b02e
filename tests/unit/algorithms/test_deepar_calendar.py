"""Frequencies, calendar inputs, lags and starts of series."""

from __future__ import annotations

import numpy as np
import pytest

from phalanx.algorithms.deepar.calendar import MAX_LAG, Frequency, start_of
from phalanx.errors import UserError


@pytest.mark.parametrize("text", ["min", "15min", "H", "2H", "D", "W", "M", "3M"])
def test_features_lie_within_half_and_lags_ascend(text: str) -> None:
    frequency = Frequency.parse(text)
    features = frequency.features(frequency.times(np.datetime64("2023-12-30T22:00:00"), 3000))
    assert features.dtype == np.float32
    assert np.abs(features).max() <= 0.5
    lags = frequency.lags()
    assert lags[:7] == [1, 2, 3, 4, 5, 6, 7]
    assert lags == sorted(set(lags))
    assert lags[-1] <= MAX_LAG


def test_lags_of_hours_and_months() -> None:
    assert {23, 24, 25, 168, 335, 336, 337, 719, 720, 721} <= set(Frequency.parse("H").lags())
    assert Frequency.parse("M").lags() == [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 23, 24, 25, 35, 36, 37]


def test_a_leap_day_is_a_day() -> None:
    times = Frequency.parse("D").times(np.datetime64("2024-02-28"), 3)
    assert [str(time)[:10] for time in times] == ["2024-02-28", "2024-02-29", "2024-03-01"]


def test_weekdays_begin_on_monday() -> None:
    features = Frequency.parse("D").features(np.array(["2024-01-01", "2024-01-07"], "datetime64[m]"))
    np.testing.assert_allclose(features[:, 0], [-0.5, 0.5])


@pytest.mark.parametrize("text", ["", "S", "0H", "1.5H", "hour", "-1D"])
def test_other_frequencies_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="15min"):
        Frequency.parse(text)


@pytest.mark.parametrize("value", ["2024-01-01 00:00:00Z", "2024-01-01 00:00:00+01:00", "2024-01-01T00:00:00-0500"])
def test_a_time_zone_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl line 3: .*time zone"):
        start_of(value, "train.jsonl line 3")


@pytest.mark.parametrize("value", [None, 5, "yesterday", "2023-02-29 00:00:00", "2024-13-01"])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"line 3: start must be a time"):
        start_of(value, "train.jsonl line 3")


def test_a_start_is_read() -> None:
    assert start_of("2024-02-29 23:00:00", "x") == np.datetime64("2024-02-29T23:00:00")
