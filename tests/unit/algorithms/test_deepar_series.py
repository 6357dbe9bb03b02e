"""Records of series: what is read, what is refused, and where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from phalanx.algorithms.deepar.series import series_of
from phalanx.errors import UserError

START = "2024-01-01 00:00:00"


def test_a_series_with_everything_is_read() -> None:
    record = {"start": START, "target": [1, None, "NaN", 2.5], "cat": [0, 3], "dynamic_feat": [[1, 2, 3, 4, 5, 6]]}
    series = series_of(record, "x", ahead=2, cardinality=[1, 4])
    np.testing.assert_array_equal(series.target, np.array([1, np.nan, np.nan, 2.5], np.float32))
    assert series.cat.tolist() == [0, 3]
    assert series.dynamic_feat.shape == (1, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 3}, "target must be a list"),
        ({"target": [1, "two"]}, "value 2 is 'two'"),
        ({"target": [1, float("inf")]}, "value 2 is inf"),
        ({"target": [1, 1e300]}, "value 2 is 1e"),
        ({"target": [10**400]}, "too large"),
        ({"cat": [2]}, "cat 1 is 2; its cardinality of 2 allows 0 to 1"),
        ({"cat": [0, 0]}, "cat has 2 values where 1 are needed"),
        ({"cat": [-1]}, "whole numbers"),
        ({"cat": "a"}, "whole numbers"),
        ({"dynamic_feat": [[1]]}, "dynamic_feat 1 has 1 values where 2 are needed"),
        ({"dynamic_feat": [[1, None]]}, "dynamic_feat 1: value 2"),
        ({"dynamic_feat": 4}, "list of lists"),
        ({"start": "2024-01-01 00:00:00Z"}, "time zone"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(change: dict[str, Any], message: str) -> None:
    record = {"start": START, "target": [1, 2], "cat": [0], **change}
    with pytest.raises(UserError, match=message) as caught:
        series_of(record, "train.jsonl line 7", cardinality=[2])
    assert str(caught.value).startswith("train.jsonl line 7: ")


@pytest.mark.parametrize("record", [[], {"target": [1]}, {"start": START}])
def test_a_record_without_start_or_target_is_refused(record: Any) -> None:
    with pytest.raises(UserError, match="start and target"):
        series_of(record, "line 1")
