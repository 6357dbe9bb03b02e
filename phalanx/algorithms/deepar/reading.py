"""DeepAR's channels: every rank holds all series, read from its part of the records and gathered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...contracts import Array, Json, Records, Session
from ...errors import UserError
from ...parallel.collective import together
from .hyperparameters import DeepARHyperparameters, Likelihood
from .series import Series, series_of


@dataclass(frozen=True, slots=True)
class Shape:
    """What all series of a model share."""

    cardinality: list[int]
    features: int  # that change with time


def read_channel(session: Session, name: str, wanted: DeepARHyperparameters, shape: Shape | None) -> list[Series]:
    """Collective. Return all series of a channel, in the order of its records.

    Args:
        session: of the job.
        name: of the channel.
        wanted: hyperparameters.
        shape: of the model; None where the channel is to say it.

    Raises:
        UserError: on every rank, for records that are no series or do not fit; names file and line.
    """
    world, shard = session.world, session.channels[name]

    def read() -> list[Series]:
        found: list[Series] = []
        for batch in shard.batches(max(shard.rows, 1)):
            if not isinstance(batch.features, Records):
                kinds = "series: JSON Lines (content type application/jsonlines), or parquet with columns start and target"
                raise UserError(f"deepar needs {kinds}; channel '{name}' has rows of numbers")

            def where(row: int, first: int = batch.first_row) -> str:
                return f"{shard.where(first + row)} (series {first + row})"

            found += parsed(batch.features.items, where, wanted, shape)
        return found

    own = together(world, f"reading channel '{name}'", read)
    if world.size == 1 or shard.parts == 1:
        return own
    features = {len(one.dynamic_feat) for one in own}
    categories = {len(one.cat) for one in own}
    counts = world.all_gather([sorted(features), sorted(categories)])
    if len({count for part in counts for count in part[0]}) > 1 or len({count for part in counts for count in part[1]}) > 1:
        raise UserError(f"channel '{name}': all series must have the same number of categories and of dynamic features")
    return _gathered(world.all_gather, own)


def parsed(
    items: Sequence[Json], where: Callable[[int], str], wanted: DeepARHyperparameters, shape: Shape | None, *, ahead: int = 0
) -> list[Series]:
    """Return the series of some records.

    Args:
        items: the records.
        where: says how a person finds one.
        wanted: hyperparameters.
        shape: that they must have; None: any, the same for all.
        ahead: values of dynamic features beyond the target.

    Raises:
        UserError: a record is no series, or does not fit.
    """
    found: list[Series] = []
    for row, item in enumerate(items):
        place = where(row)
        record = dict(item) if isinstance(item, dict) else item
        if isinstance(record, dict):
            _leave_out(record, place, wanted)
        cardinality = wanted.cardinalities() if shape is None else shape.cardinality
        series = series_of(record, place, ahead=ahead, cardinality=cardinality)
        check_values(wanted.likelihood, series.target, place)
        features = len(series.dynamic_feat)
        needed = shape.features if shape is not None else wanted.num_dynamic_feat
        needed = len(found[0].dynamic_feat) if needed == "auto" and found else needed
        if isinstance(needed, int) and features != needed:
            raise UserError(f"{place}: dynamic_feat has {features} features where {needed} are needed")
        if found and len(series.cat) != len(found[0].cat):
            raise UserError(f"{place}: cat has {len(series.cat)} values where {len(found[0].cat)} are needed")
        found.append(series)
    return found


def shape_of(series: Sequence[Series], wanted: DeepARHyperparameters) -> Shape:
    """Return what the series of channel train have in common."""
    cat = np.stack([one.cat for one in series])
    return Shape(wanted.cardinalities() or [int(column.max()) + 1 for column in cat.T], len(series[0].dynamic_feat))


def check_values(likelihood: Likelihood, values: Array, where: str) -> None:
    """Check that values can come from a likelihood.

    Raises:
        UserError: they cannot; names `where`.
    """
    known = values[~np.isnan(values)]
    if likelihood == "beta" and ((known < 0) | (known > 1)).any():
        raise UserError(f"{where}: likelihood=beta is for values from 0 to 1; student-T takes any")
    if likelihood == "negative-binomial" and ((known < 0) | (known != np.round(known))).any():
        raise UserError(f"{where}: likelihood=negative-binomial is for counts 0, 1, 2 …; student-T takes any")


def _leave_out(record: dict[str, Json], place: str, wanted: DeepARHyperparameters) -> None:
    if wanted.cardinality.strip() == "ignore":
        record.pop("cat", None)
    if wanted.num_dynamic_feat == "ignore":
        record.pop("dynamic_feat", None)
    if wanted.num_dynamic_feat == "" and record.get("dynamic_feat"):
        raise UserError(f'{place}: there is dynamic_feat, which num_dynamic_feat="" forbids; ignore leaves it out')


def _gathered(gather: Callable[[Array], list[Array]], own: list[Series]) -> list[Series]:
    """Collective. Return the series of all ranks, in their order."""

    def all_of(parts: list[Array], kind: type) -> list[Array]:
        flat = np.concatenate([part.ravel() for part in parts]) if parts else np.zeros(0)
        return gather(flat.astype(kind))

    lengths = all_of([np.array([len(s.target), len(s.cat), len(s.dynamic_feat)]) for s in own], np.int64)
    starts = all_of([np.array([s.start.astype("datetime64[s]").astype(np.int64)]) for s in own], np.int64)
    targets = all_of([s.target for s in own], np.float32)
    cats = all_of([s.cat for s in own], np.int64)
    features = all_of([s.dynamic_feat for s in own], np.float32)
    found: list[Series] = []
    for rank, sizes in enumerate(lengths):
        target = category = feature = 0
        for number, (length, count, rows) in enumerate(sizes.reshape(-1, 3).tolist()):
            found.append(
                Series(
                    np.datetime64(int(starts[rank][number]), "s"),
                    targets[rank][target : target + length],
                    cats[rank][category : category + count],
                    features[rank][feature : feature + rows * length].reshape(rows, length),
                )
            )
            target, category, feature = target + length, category + count, feature + rows * length
    return found
