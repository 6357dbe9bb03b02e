"""Conformance suite of `contracts.Algorithm`: inherit `AlgorithmChecks`, give data and hyperparameters, get all checks.

class TestMine(AlgorithmChecks):
    name = "mine"
    hyperparameters = {"epochs": 6, "mini_batch_size": 64}
    metrics = ("train:loss", "test:loss")
    exact_over_workers = True

    def channels(self):
        return {"train": Rows(x, y), "test": Rows(x_test, y_test)}

    def check_quality(self, metrics):
        assert metrics["test:loss"] < 0.3
"""

from __future__ import annotations

import dataclasses
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from .. import hyperparameters, registry
from ..contracts import Algorithm, Array, Csr, Features
from ..data.memory import take
from ..errors import Stopped, UserError
from .sessions import BrokenShard, Circumstances, Rows, Trained, attempt_in_threads, train_in_threads


class AlgorithmChecks:
    """Every check trains on rows in memory, on ranks that are threads.

    Training must take at least three steps, with at least two blocks of rows (`data.order.block_rows`) in a batch.
    """

    name: ClassVar[str]  # in the registry
    hyperparameters: ClassVar[Mapping[str, Any]]
    metrics: ClassVar[tuple[str, ...]]  # patterns of the metrics that are documented
    exact_over_workers: ClassVar[bool] = False  # the same model, bit for bit, for every number of workers and threads
    sparse: ClassVar[bool] = True  # takes `Csr`
    few_rows: ClassVar[int] = 40  # enough to train on, too few for every one of four ranks to get some

    def channels(self) -> dict[str, Rows]:
        """Return the channels by name, `train` among them."""
        raise NotImplementedError

    def check_quality(self, metrics: Mapping[str, float]) -> None:
        """Assert that the last values of the metrics are as good as they should be."""
        raise NotImplementedError

    # What the checks are made of.

    def make(self) -> Algorithm:
        """Return a new instance."""
        cls = registry.load(self.name)
        made: Algorithm = cls(hyperparameters.parse(cls.Hyperparameters, self.hyperparameters, owner=self.name))
        return made

    def train(self, folder: Path, how: Circumstances, channels: Mapping[str, Rows] | None = None) -> list[Trained]:
        """Train in the given circumstances; raise what the first failing rank raised."""
        return train_in_threads(self.make, channels or self.channels(), folder, how)

    def requests(self) -> Features:
        """Return some rows to ask a model about."""
        return take(self.channels()["train"].features, slice(0, 50))

    # Hyperparameters.

    def test_every_hyperparameter_is_explained_and_its_default_allowed(self) -> None:
        cls = registry.hyperparameters_of(self.name)
        described = hyperparameters.describe(cls)
        assert described
        for one in described:
            assert one.help.strip(), f"{one.name} has no help"
            assert one.type, one.name
        required = {one.name: self.hyperparameters[one.name] for one in described if one.required}
        parsed: Any = hyperparameters.parse(cls, required, owner=self.name)
        again: Any = hyperparameters.parse(cls, hyperparameters.to_json(parsed), owner=self.name)
        assert again == parsed, "defaults written out must mean the same"
        assert set(hyperparameters.json_schema(cls)["properties"]) == {one.name for one in described}

    def test_an_unknown_hyperparameter_suggests_the_nearest(self) -> None:
        cls = registry.hyperparameters_of(self.name)
        longest = max((one.name for one in hyperparameters.describe(cls)), key=len)
        with pytest.raises(UserError, match=rf"{self.name} has no hyperparameter '{longest}x'; did you mean '{longest}'\?"):
            hyperparameters.parse(cls, {**self.hyperparameters, f"{longest}x": 1}, owner=self.name)

    def test_a_required_hyperparameter_is_asked_for(self) -> None:
        cls = registry.hyperparameters_of(self.name)
        for one in hyperparameters.describe(cls):
            if one.required:
                given = {name: value for name, value in self.hyperparameters.items() if name != one.name}
                with pytest.raises(UserError, match=one.name):
                    hyperparameters.parse(cls, given, owner=self.name)

    def test_values_out_of_range_are_refused_with_the_range(self) -> None:
        cls = registry.hyperparameters_of(self.name)
        ranges = {one.name: one.range for one in hyperparameters.describe(cls)}
        for name, schema in hyperparameters.json_schema(cls)["properties"].items():
            for value in _out_of_range(schema):
                with pytest.raises(UserError) as caught:
                    hyperparameters.parse(cls, {**self.hyperparameters, name: value}, owner=self.name)
                assert f"{name}={value}" in str(caught.value)
                assert ranges[name] in str(caught.value)

    # Training.

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_it_learns_and_all_ranks_agree(self, tmp_path: Path, size: int) -> None:
        trained = self.train(tmp_path, Circumstances(size))
        self.check_quality(trained[0].session.metrics)
        models = [model_files(rank.algorithm, tmp_path / f"model-{number}") for number, rank in enumerate(trained)]
        assert all(model == models[0] for model in models), "all ranks hold the same model"
        for rank in trained:
            self.check_reports(rank)
            assert [r.step for r in rank.session.reports] == [r.step for r in trained[0].session.reports]

    def check_reports(self, trained: Trained) -> None:
        """Assert that steps were counted from 1, metrics are documented and numbers, and the last step is the last."""
        reports = trained.session.reports
        assert len(reports) >= 3, "the suite needs at least three steps"
        assert [report.step for report in reports] == list(range(1, len(reports) + 1))
        for report in reports:
            for name, value in report.metrics.items():
                assert any(re.fullmatch(pattern, name) for pattern in self.metrics), f"metric {name} is not documented"
                assert math.isfinite(value), f"{name} is {value} at step {report.step}"
        assert any(name.startswith("train:") for name in trained.session.metrics)
        assert reports[-1].of in (None, len(reports))

    def test_ranks_without_rows_take_part(self, tmp_path: Path) -> None:
        few = {name: _first(rows, self.few_rows) for name, rows in self.channels().items()}
        trained = self.train(tmp_path, Circumstances(4), few)
        models = [model_files(rank.algorithm, tmp_path / f"model-{number}") for number, rank in enumerate(trained)]
        assert all(model == models[0] for model in models)

    def test_the_same_seed_gives_the_same_bytes(self, tmp_path: Path) -> None:
        once, again = (
            model_files(self.train(tmp_path, Circumstances(2, seed=7))[0].algorithm, tmp_path / f"model-{number}")
            for number in range(2)
        )
        assert once == again

    def test_the_registry_says_whether_workers_change_the_model(self) -> None:
        assert registry.algorithms()[self.name].elastic == self.exact_over_workers

    @pytest.mark.parametrize("how", [Circumstances(2), Circumstances(3), Circumstances(4, threads=2), Circumstances(threads=2)])
    def test_workers_and_threads_do_not_change_the_model(self, tmp_path: Path, how: Circumstances) -> None:
        if not self.exact_over_workers:
            pytest.skip("this algorithm promises equal bytes for a fixed number of workers only")
        alone = self.train(tmp_path, Circumstances())[0]
        other = self.train(tmp_path, how)[0]
        assert model_files(other.algorithm, tmp_path / "other") == model_files(alone.algorithm, tmp_path / "alone")
        assert [r.metrics for r in other.session.reports] == [r.metrics for r in alone.session.reports]

    @pytest.mark.parametrize("size", [1, 2])
    def test_a_stop_ends_all_ranks_in_order(self, tmp_path: Path, size: int) -> None:
        ended = attempt_in_threads(self.make, self.channels(), tmp_path, Circumstances(size, stop_at=2))
        for rank in ended:
            assert isinstance(rank.error, Stopped)
            assert len(rank.session.reports) == 2

    @pytest.mark.parametrize("size", [1, 2])
    def test_going_on_from_a_state_ends_where_it_would_have(self, tmp_path: Path, size: int) -> None:
        whole = self.train(tmp_path, Circumstances(size))[0]
        last = len(whole.session.reports)
        for step in sorted({1, 2, last // 2, last - 1, last}):
            stopped = attempt_in_threads(
                self.make, self.channels(), tmp_path, Circumstances(size, stop_at=step, snapshot_at=step)
            )
            snapshots = tuple(rank.session.snapshot for rank in stopped if rank.session.snapshot is not None)
            assert len(snapshots) == size
            resumed = self.train(tmp_path, Circumstances(size, resumed=snapshots))[0]
            assert [r.metrics for r in resumed.session.reports] == [r.metrics for r in whole.session.reports[step:]]
            got = model_files(resumed.algorithm, tmp_path / f"resumed-{step}")
            assert got == model_files(whole.algorithm, tmp_path / f"whole-{step}"), f"after a stop at step {step} of {last}"

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_rows_that_one_rank_cannot_read_are_everybodys_error(self, tmp_path: Path, size: int) -> None:
        ended = attempt_in_threads(self.make, self.channels(), tmp_path, Circumstances(size, broken_rank=size - 1))
        for rank in ended:
            assert isinstance(rank.error, UserError), rank.error
            assert BrokenShard.MESSAGE in str(rank.error)

    # The model.

    def test_a_saved_model_answers_as_the_trained_one(self, tmp_path: Path) -> None:
        algorithm = self.train(tmp_path, Circumstances())[0].algorithm
        files = model_files(algorithm, tmp_path / "model")
        loaded: Algorithm = registry.load(self.name).load(tmp_path / "model")
        _same(loaded.predict(self.requests()), algorithm.predict(self.requests()))
        assert model_files(loaded, tmp_path / "again") == files, "saving what was loaded writes the same bytes"

    def test_a_saved_model_holds_no_pickle(self, tmp_path: Path) -> None:
        model_files(self.train(tmp_path, Circumstances())[0].algorithm, tmp_path / "model")
        for path in (tmp_path / "model").rglob("*"):
            if path.is_file():
                _assert_no_pickle(path)

    def test_predictions_do_not_depend_on_the_company(self, tmp_path: Path) -> None:
        algorithm = self.train(tmp_path, Circumstances())[0].algorithm
        requests = self.requests()
        together = algorithm.predict(requests)
        assert together
        assert {len(column) for column in together.values()} == {len(requests)}
        one_by_one = [algorithm.predict(take(requests, slice(i, i + 1))) for i in range(len(requests))]
        for name, column in together.items():
            np.testing.assert_allclose(np.concatenate([one[name] for one in one_by_one]), column, rtol=1e-5, err_msg=name)
        assert {len(column) for column in algorithm.predict(take(requests, slice(0, 0))).values()} == {0}

    def test_sparse_requests_are_answered_as_dense_ones(self, tmp_path: Path) -> None:
        requests = self.requests()
        if not self.sparse or not isinstance(requests, np.ndarray):
            pytest.skip("this algorithm takes no sparse rows")
        algorithm = self.train(tmp_path, Circumstances())[0].algorithm
        _same(algorithm.predict(to_csr(requests, keep_zeros=True)), algorithm.predict(requests))

    @pytest.mark.parametrize("change", [-1, 1])
    def test_requests_of_another_width_are_refused(self, tmp_path: Path, change: int) -> None:
        requests = self.requests()
        if not isinstance(requests, np.ndarray):
            pytest.skip("records have no width")
        algorithm = self.train(tmp_path, Circumstances())[0].algorithm
        expected, given = requests.shape[1], requests.shape[1] + change
        with pytest.raises(UserError, match=rf"\b{given}\b.*\b{expected}\b|\b{expected}\b.*\b{given}\b"):
            algorithm.predict(np.zeros((2, given), dtype=np.float32))


def model_files(algorithm: Algorithm, folder: Path) -> dict[str, bytes]:
    """Save the model into a new folder and return its files by name."""
    folder.mkdir(parents=True)
    algorithm.save(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def to_csr(rows: Array, *, keep_zeros: bool = False) -> Csr:
    """Return dense rows (N, D) as `Csr`; with `keep_zeros` every number is stored, so that zero is not taken for missing."""
    kept = np.ones(rows.shape, dtype=bool) if keep_zeros else rows != 0
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64)
    return Csr(indptr, np.nonzero(kept)[1].astype(np.int64), rows[kept].astype(np.float32), rows.shape[1])


def _first(rows: Rows, count: int) -> Rows:
    def of(column: Array | None) -> Array | None:
        return None if column is None else column[:count]

    return dataclasses.replace(
        rows, features=take(rows.features, slice(0, count)), label=of(rows.label), weight=of(rows.weight), group=of(rows.group)
    )


def _out_of_range(schema: Mapping[str, Any]) -> list[float]:
    """Return numbers just outside of what the JSON schema of a hyperparameter allows."""
    numeric = [option for option in schema.get("anyOf", [schema]) if option.get("type") in ("integer", "number")]
    values: list[float] = []
    for option in numeric:
        values += [option["minimum"] - 1] if "minimum" in option else []
        values += [option["exclusiveMinimum"]] if "exclusiveMinimum" in option else []
        values += [option["maximum"] + 1] if "maximum" in option else []
        values += [option["exclusiveMaximum"]] if "exclusiveMaximum" in option else []
    return values


def _same(given: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    assert list(given) == list(expected)
    for name, column in expected.items():
        np.testing.assert_array_equal(given[name], column, err_msg=name)


def _assert_no_pickle(path: Path) -> None:
    data = path.read_bytes()
    assert not (data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05"), f"{path.name} is a pickle"
    if path.suffix in (".npy", ".npz"):
        np.load(path, allow_pickle=False)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            assert not [name for name in archive.namelist() if name.endswith((".pkl", ".pickle"))], path.name
