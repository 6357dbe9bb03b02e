"""Linear models for classes and numbers: all candidates learn in one pass over the data, validation chooses.

Smooth losses are minimised by L-BFGS on full passes (`linear_learner_solver`), others, or where an optimizer is named, by
mini-batches (`linear_learner_descent`). The model is the same for every number of workers and threads: see
`linear_learner_objective`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self, final

import numpy as np

from ...contracts import Array, Csr, Entry, Features, Session, State
from ...errors import AlgorithmError, UserError
from ...hyperparameters import parse, to_json
from ..reading import requested_rows
from .hyperparameters import LinearLearnerHyperparameters

if TYPE_CHECKING:
    from .fit import Training

_WEIGHTS = "weights.npy"
_SETTINGS = "linear-learner.json"


@final
class LinearLearner:
    """The algorithm and its model.

    Args:
        hyperparameters: how to learn.

    Attributes:
        weights: (D + 1, K) float64 for raw features once trained, the last row is the bias; K is 1 unless multiclass.
        threshold: a binary_classifier answers 1 where the score is at least this.
        chosen: the best candidate's hyperparameters.
    """

    Hyperparameters: ClassVar[type] = LinearLearnerHyperparameters

    def __init__(self, hyperparameters: LinearLearnerHyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self.weights: Array | None = None
        self.threshold = default_threshold(hyperparameters)
        self.chosen: dict[str, float] = {}
        self._training: Training | None = None
        self._restored: State | None = None

    @property
    def columns(self) -> int | None:
        """Features that a request must have; None before training."""
        return None if self.weights is None else len(self.weights) - 1

    def fit(self, session: Session) -> None:
        """Collective. Learn from channel `train`, choose by `validation`, evaluate on `validation` and `test` at the end.

        Raises:
            UserError: on every rank, for data that cannot be learnt from.
            Stopped: the job was asked to stop.
        """
        from ..kernels.blas import single_threaded_blas
        from .fit import Training  # numba takes a second to load
        from .objective import Crew

        session.restore({"algorithm": self})
        # the limit once for all of it: setting it at every product takes time, too
        with single_threaded_blas(), Crew(session.threads) as crew:
            self._training = Training(session, self.hyperparameters, self._restored, crew)
            self._training.run(self)

    def predict(self, requests: Features) -> dict[str, Array]:
        """Return `score`, and `predicted_label` of classifiers.

        `score` is a probability for logistic and softmax_loss, (N, K) for a multiclass_classifier, otherwise (N,).

        Raises:
            UserError: requests of another width than the model's, or with numbers that are not finite.
        """
        from ..kernels import linear as loops

        weights = self._trained()
        rows = requested_rows(requests, len(weights) - 1, "this linear model")
        out = np.zeros((len(rows), weights.shape[1]))
        inner = np.ascontiguousarray(weights[:-1])
        if isinstance(rows, Csr):
            indptr, indices = rows.indptr.astype(np.int64), rows.indices.astype(np.int64)
            loops.sparse_scores(indptr, indices, rows.values.astype(np.float32), inner, out)
        else:
            loops.dense_scores(rows, inner, out)
        return self.answer(out + weights[-1])

    def answer(self, z: Array) -> dict[str, Array]:
        """Return the response for raw scores (N, K)."""
        wanted = self.hyperparameters
        score = probabilities(z, wanted)
        if wanted.predictor_type == "regressor":
            most = np.finfo(np.float32).max
            return {"score": np.clip(score[:, 0], -most, most).astype(np.float32)}
        if wanted.predictor_type == "binary_classifier":
            return {
                "score": score[:, 0].astype(np.float32),
                "predicted_label": (score[:, 0] >= self.threshold).astype(np.int64),
            }
        return {"score": score.astype(np.float32), "predicted_label": z.argmax(axis=1).astype(np.int64)}

    def save(self, folder: Path) -> None:
        """Write the weights as one array; hyperparameters, threshold and the chosen candidate as JSON."""
        np.save(folder / _WEIGHTS, self._trained(), allow_pickle=False)
        card = {
            "hyperparameters": to_json(self.hyperparameters),
            "threshold": self.threshold,
            "chosen": self.chosen,
        }
        (folder / _SETTINGS).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the model that `save` wrote.

        Raises:
            UserError: the files do not hold a linear model.
        """
        card = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        model = cls(parse(LinearLearnerHyperparameters, card["hyperparameters"], owner="linear_learner"))
        weights = np.load(folder / _WEIGHTS, allow_pickle=False)
        outputs = model.hyperparameters.outputs
        if weights.ndim != 2 or weights.dtype != np.float64 or weights.shape[1] != outputs or len(weights) < 2:
            raise UserError(f"{_WEIGHTS} holds no weights: a float64 array (features + 1, {outputs}) is expected")
        if not np.isfinite(weights).all():
            raise UserError(f"{_WEIGHTS} holds weights that are not finite")
        model.weights, model.threshold = weights, float(card["threshold"])
        model.chosen = {str(name): float(value) for name, value in card["chosen"].items()}
        return model

    def state_dict(self) -> State:
        """Return the step and everything the next one depends on."""
        return {"step": Entry(0)} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Go back to a state; `fit` goes on from there."""
        self.weights = None
        self._training = None
        self._restored = state if int(state["step"].value) else None

    def _trained(self) -> Array:
        if self.weights is None:
            raise AlgorithmError("this linear model has not been trained yet: call fit or load first")
        return self.weights


def default_threshold(wanted: LinearLearnerHyperparameters) -> float:
    """Return the threshold where none was calibrated."""
    return 0.0 if wanted.loss_name == "hinge_loss" else 0.5


def probabilities(z: Array, wanted: LinearLearnerHyperparameters) -> Array:
    """Return the answers' scores for raw ones (N, K)."""
    if wanted.loss_name == "logistic":
        small = np.exp(-np.abs(z))
        return np.asarray(np.where(z >= 0, 1.0, small) / (1 + small))
    if wanted.loss_name == "softmax_loss":
        powers = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return z
