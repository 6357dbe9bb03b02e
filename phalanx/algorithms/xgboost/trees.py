"""What rules look at in a booster: how often each feature splits, how deep and how finely cut the newest trees are."""

from __future__ import annotations

from typing import Any

import xgboost as xgb


def tell_of(booster: xgb.Booster, rounds: int, *, columns: int, rows: int) -> dict[str, Any]:
    """Return a look at a booster of trees, as `phalanx.tracking.rules.seen.Trees` has it.

    Args:
        booster: that has done `rounds` rounds.
        rounds: at least 1.
        columns: features of the data.
        rows: that a tree is grown on.
    """
    depths, leaves = [], []
    for text in booster[rounds - 1 : rounds].get_dump():
        lines = text.splitlines()
        depths.append(max(len(line) - len(line.lstrip("\t")) for line in lines))
        leaves.append(sum("leaf=" in line for line in lines))
    scores = booster.get_score(importance_type="weight")
    return {
        "step": rounds,
        "importance": {name: float(value) for name, value in scores.items() if not isinstance(value, list)},
        "columns": columns,
        "depth": max(depths),
        "leaves": sum(leaves) / len(leaves),
        "rows": rows,
    }
