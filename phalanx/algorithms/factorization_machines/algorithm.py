"""Factorization machines: y = w0 + Σ w_i x_i + Σ_{i<j} ⟨v_i, v_j⟩ x_i x_j, for two classes and for numbers.

After Rendle, "Factorization machines" (2010). Rows are sparse; memory is proportional to the columns that occur, not to the
width. The model is the same for every number of workers: see `factorization_machines_tables`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self, final

import numpy as np

from ...contracts import Array, Entry, Features, Session, State
from ...errors import AlgorithmError, UserError
from ...hyperparameters import parse, to_json
from ..reading import requested_rows
from .hyperparameters import FactorizationMachinesHyperparameters

if TYPE_CHECKING:
    from .data import Survey
    from .fit import Training

_TABLE = "factors.npy"
_COLUMNS = "columns.npy"
_SETTINGS = "factorization-machines.json"
_ROWS = 8192  # that are scored at once


@final
class FactorizationMachines:
    """The algorithm and its model.

    Args:
        hyperparameters: how to learn.

    Attributes:
        table: (T + 1, 1 + num_factors) float32 for raw features once trained: a row is the linear weight and the factors of a
            column that occurred in training; the last row holds the bias.
        occurring: (T,) int64, those columns, ascending. Others add nothing to a score.
    """

    Hyperparameters: ClassVar[type] = FactorizationMachinesHyperparameters

    def __init__(self, hyperparameters: FactorizationMachinesHyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self.table: Array | None = None
        self.occurring: Array = np.zeros(0, dtype=np.int64)
        self._width = 0
        self._training: Training | None = None
        self._restored: State | None = None

    @property
    def columns(self) -> int | None:
        """Features that a request must have; None before training."""
        return None if self.table is None else self._width

    def fit(self, session: Session) -> None:
        """Collective. Learn from channel `train`, keep the epoch that is best on `validation`, evaluate on `test` at the end.

        Raises:
            UserError: on every rank, for data that cannot be learnt from.
            Stopped: the job was asked to stop.
        """
        from .fit import Training  # numba takes a second to load

        session.restore({"algorithm": self})
        self._training = Training(session, self.hyperparameters, self._restored)
        self._training.run(self)

    def take(self, table: Array, survey: Survey, unit: tuple[float, float], width: int) -> None:
        """Become the model of a trained table.

        Args:
            table: (T + 1, 1 + k) for values less the survey's middles, divided by its scales, and labels in `unit`.
            survey: of the rows learnt from.
            unit: mean and deviation of the labels.
            width: features of a row.
        """
        mean, deviation = unit
        raw = table.astype(np.float64)
        raw[:-1] /= survey.scale[:, None]
        raw[:, 0] *= deviation
        raw[:, 1:] *= deviation**0.5
        raw[-1, 0] += mean
        at = survey.filled
        if len(at):  # ⟨v_i, v_j⟩(x_i - m_i)(x_j - m_j) is a weight of pairs, linear weights and a constant
            factors, middle = raw[:-1, 1:].astype(np.float32).astype(np.float64), survey.middle[at].astype(np.float64)
            moved = middle[:, None] * factors[at]
            total = moved.sum(axis=0)
            raw[-1, 0] += 0.5 * float(total @ total - (moved**2).sum()) - float(raw[at, 0] @ middle)
            raw[:-1, 0] -= factors @ total
            raw[at, 0] += (moved * factors[at]).sum(axis=1)
        self.table, self.occurring, self._width = raw.astype(np.float32), survey.columns, width

    def predict(self, requests: Features) -> dict[str, Array]:
        """Return `score` (N,), a probability for a binary_classifier, which has `predicted_label` (N,) beside it.

        Raises:
            UserError: requests of another width than the model's, or with numbers that are not finite.
        """
        from ..kernels import factorization as loops
        from .data import sparse

        table = self._trained()
        rows = requested_rows(requests, self._width, "this factorization machine")
        whole = sparse(rows)
        places = np.empty(len(whole.indices), dtype=np.int64)
        loops.find_columns(self.occurring, whole.indices, places)
        z, sums = np.empty(len(whole)), np.empty((min(len(whole), _ROWS), table.shape[1] - 1))
        for start in range(0, len(whole), _ROWS):
            out = z[start : start + _ROWS]
            loops.scores(whole.indptr[start : start + len(out) + 1], places, whole.values, table, out, sums[: len(out)])
        if not self.hyperparameters.classifies:
            most = np.finfo(np.float32).max
            return {"score": np.clip(z, -most, most).astype(np.float32)}
        small = np.exp(-np.abs(z))
        score = np.where(z >= 0, 1.0, small) / (1 + small)
        return {"score": score.astype(np.float32), "predicted_label": (score >= 0.5).astype(np.int64)}

    def save(self, folder: Path) -> None:
        """Write two arrays, what occurred and the table; the hyperparameters as JSON."""
        np.save(folder / _TABLE, self._trained(), allow_pickle=False)
        np.save(folder / _COLUMNS, self.occurring, allow_pickle=False)
        card = {"hyperparameters": to_json(self.hyperparameters), "feature_dim": self._width}
        (folder / _SETTINGS).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the model that `save` wrote.

        Raises:
            UserError: the files do not hold a factorization machine.
        """
        card = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        model = cls(parse(FactorizationMachinesHyperparameters, card["hyperparameters"], owner="factorization_machines"))
        table = np.load(folder / _TABLE, allow_pickle=False)
        columns = np.load(folder / _COLUMNS, allow_pickle=False)
        factors = model.hyperparameters.num_factors
        width = int(card["feature_dim"])
        if table.dtype != np.float32 or columns.dtype != np.int64 or table.shape != (len(columns) + 1, factors + 1):
            raise UserError(
                f"{_TABLE} holds no model: a float32 array ({len(columns)} columns + 1, {factors} factors + 1) is expected"
            )
        if not np.isfinite(table).all():
            raise UserError(f"{_TABLE} holds weights that are not finite")
        if len(columns) and (columns[0] < 0 or columns[-1] >= width or (np.diff(columns) <= 0).any()):
            raise UserError(f"{_COLUMNS} holds no columns of rows with {width} features in ascending order")
        model.table, model.occurring, model._width = np.ascontiguousarray(table), columns, width
        return model

    def state_dict(self) -> State:
        """Return the step and everything the next one depends on."""
        return {"step": Entry(0)} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Go back to a state; `fit` goes on from there."""
        self.table = None
        self._training = None
        self._restored = state if int(state["step"].value) else None

    def _trained(self) -> Array:
        if self.table is None:
            raise AlgorithmError("this factorization machine has not been trained yet: call fit or load first")
        return self.table
