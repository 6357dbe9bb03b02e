"""Strategies by name, with options behind it."""

import pytest

from phalanx.errors import UserError
from phalanx.parallel.ddp import DDP
from phalanx.parallel.exact import Exact
from phalanx.parallel.strategies import parsed, strategy_of


def test_options_behind_the_name() -> None:
    assert strategy_of("ddp:bucket_mb=5,find_unused_parameters=true") == DDP(bucket_mb=5, find_unused_parameters=True)
    assert strategy_of("exact:micro_batches=6", {"threads": 2}) == Exact(6, 2)
    assert parsed("pipeline:stages=4,zero=1") == ("pipeline", {"stages": 4, "zero": 1})
    made = DDP(bucket_mb=3)
    assert strategy_of(made) is made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dpp", "no strategy 'dpp'; did you mean 'ddp'"),
        ("ddp:5", "behind the name stand options as ddp:option=value"),
        ("ddp:bucket=5", "strategy 'ddp' has no option 'bucket'; did you mean 'bucket_mb'"),
        (DDP, "strategy must be a name or an object"),
    ],
)
def test_mistakes(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        strategy_of(given)
