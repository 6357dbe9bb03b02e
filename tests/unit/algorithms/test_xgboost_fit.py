"""XGBoost's training: on one to three ranks, streamed, interrupted, with every objective, and with mistakes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import xgboost as xgb
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.metrics import roc_auc_score

from phalanx.algorithms.xgboost.algorithm import XGBoost
from phalanx.contracts import Array, Batch, Collective, Csr, Entry, Records, Shard, State
from phalanx.errors import AlgorithmError, Stopped, UserError
from phalanx.hyperparameters import parse
from phalanx.parallel.threads import run_threads
from phalanx.testing.sessions import MemorySession, Reported, Rows, Snapshot

OBJECTIVES = [
    "reg:squarederror",
    "reg:linear",
    "reg:logistic",
    "reg:gamma",
    "reg:tweedie",
    "reg:pseudohubererror",
    "reg:squaredlogerror",
    "reg:absoluteerror",
    "binary:logistic",
    "binary:logitraw",
    "binary:hinge",
    "count:poisson",
    "multi:softmax",
    "multi:softprob",
    "rank:pairwise",
    "rank:ndcg",
    "rank:map",
    "survival:aft",
]
BINARY = {"objective": "binary:logistic", "num_round": 8, "max_depth": 3}


class Streamed:
    """A channel in memory that says it must not be held there."""

    streaming = True

    def __init__(self, inner: Shard, *, bad_row: int | None = None) -> None:
        self.rows = inner.rows
        self.columns = inner.columns
        self._inner = inner
        self._bad_row = bad_row

    def where(self, position: int, *, epoch: int = 0, shuffle: bool = False) -> str:
        return f"data.csv line {position + 1}"

    def batches(self, rows: int, *, epoch: int = 0, shuffle: bool = False) -> Iterator[Batch]:
        for batch in self._inner.batches(min(rows, 100)):
            if self._bad_row is not None and batch.first_row <= self._bad_row < batch.first_row + len(batch):
                raise UserError(f"data.csv line {self._bad_row + 1}: 'x' is no number")
            yield batch

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None: ...


@dataclass
class Fitted:
    """What a rank has after `fit`."""

    model: XGBoost
    reports: list[Reported]
    raw: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.raw = bytes(self.model.booster.save_raw(raw_format="ubj"))

    @property
    def metrics(self) -> dict[str, float]:
        return self.reports[-1].metrics


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., list[Fitted]]:
    """Return a function that trains on `size` ranks and checks that all of them learnt the same."""

    def fit(
        given: Mapping[str, Any],
        channels: Mapping[str, Rows],
        *,
        size: int = 1,
        threads: int = 1,
        wrap: Callable[[Shard], Shard] = lambda shard: shard,
        state: State | None = None,
        stop_at: int | None = None,
        on_report: Callable[[XGBoost, int], None] | None = None,
    ) -> list[Fitted]:
        settings = parse(XGBoost.Hyperparameters, given, owner="xgboost")

        def rank_main(world: Collective) -> Fitted:
            output = tmp_path / f"rank-{world.rank}" / "output"
            output.mkdir(parents=True, exist_ok=True)
            shards = {
                name: wrap(rows.shard(rank=world.rank, size=world.size, seed=0, replicate=name != "train"))
                for name, rows in channels.items()
            }
            model = XGBoost(settings)
            session = MemorySession(
                shards,
                output,
                world=world,
                threads=threads,
                stop_at=stop_at,
                resumed=None if state is None else Snapshot(int(state["step"].value), {"algorithm": state}),
                on_report=None if on_report is None else lambda step: on_report(model, step),
            )
            model.fit(session)
            assert not any(output.parent.glob("xgboost-*")), "cache files left behind"
            return Fitted(model, session.reports)

        results = run_threads(size, rank_main)
        assert all(result.raw == results[0].raw for result in results)
        assert all(result.reports == results[0].reports for result in results)
        return results

    return fit


Train = Callable[..., list[Fitted]]


def cancer(rows: slice = slice(None)) -> Rows:
    features, label = load_breast_cancer(return_X_y=True)
    return Rows(features[rows].astype(np.float32), label[rows].astype(np.float32))


def halves() -> dict[str, Rows]:
    return {"train": cancer(slice(0, None, 2)), "validation": cancer(slice(1, None, 2))}


def labels_for(objective: str) -> tuple[Rows, dict[str, Any]]:
    """Return rows that an objective can learn, and the hyperparameters it needs."""
    features, target = load_diabetes(return_X_y=True)
    features, target = features.astype(np.float32), (target / 100).astype(np.float32)
    if objective.startswith("multi:"):
        features, target = load_iris(return_X_y=True)
        return Rows(features.astype(np.float32), target.astype(np.float32)), {"num_class": 3}
    if objective.startswith(("binary:", "rank:map")) or objective == "reg:logistic":
        target = (target > 1.4).astype(np.float32)
    if objective in ("count:poisson", "rank:ndcg", "rank:pairwise"):
        target = np.floor(target)
    if objective == "survival:aft":
        target = np.where(np.arange(len(target)) % 3 == 0, -target, target)  # censored
    group = np.repeat(np.arange(45)[::-1], 10)[: len(target)] if objective.startswith("rank:") else None
    return Rows(features, target, group=group), {}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_the_same_on_any_number_of_ranks_and_streamed(objective: str, train: Train) -> None:
    rows, more = labels_for(objective)
    given = {"objective": objective, "num_round": 6, "max_depth": 3, **more}
    if objective == "binary:logitraw":
        given["eval_metric"] = "auc"  # the library's own default, logloss, takes margins for probabilities
    runs = [train(given, {"train": rows}, size=size) for size in (1, 2, 3)]
    runs.append(train(given, {"train": rows}, size=2, wrap=Streamed))
    for run in runs:
        (metric,) = run[0].metrics
        values = [report.metrics[metric] for report in run[0].reports]
        gains = (
            values[-1] > values[0] if metric.startswith(("train:ndcg", "train:map", "train:auc")) else values[-1] < values[0]
        )
        assert gains, (metric, values)
        score = run[0].model.predict(rows.features)["score"]
        assert score.shape == ((len(rows.features), 3) if objective == "multi:softprob" else (len(rows.features),))
        assert np.isfinite(score).all()
    if objective == "multi:softprob":
        np.testing.assert_allclose(runs[0][0].model.predict(rows.features)["score"].sum(axis=1), 1, rtol=1e-5)


def test_one_worker_learns_what_plain_xgboost_learns(train: Train) -> None:
    rows = cancer()
    (ours,) = train({**BINARY, "num_round": 20}, {"train": rows})
    matrix = xgb.QuantileDMatrix(rows.features, rows.label)
    theirs = xgb.train({"objective": "binary:logistic", "max_depth": 3}, matrix, 20, verbose_eval=False)
    assert ours.raw == bytes(theirs.save_raw(raw_format="ubj"))


@pytest.mark.parametrize("size", [2, 3])
def test_more_workers_are_as_good_as_one(size: int, train: Train) -> None:
    channels = halves()
    given = {**BINARY, "num_round": 30, "eval_metric": "auc"}
    one, many = train(given, channels), train(given, channels, size=size)
    assert many[0].metrics["validation:auc"] == pytest.approx(one[0].metrics["validation:auc"], abs=0.002)


def test_threads_leave_no_trace_in_the_model(train: Train) -> None:
    given = {**BINARY, "subsample": 0.7, "colsample_bytree": 0.5}
    assert len({train(given, halves(), threads=threads)[0].raw for threads in (1, 2, 4)}) == 1
    assert train({**given, "nthread": 2, "verbosity": 0}, halves())[0].raw == train(given, halves())[0].raw
    assert train({**given, "seed": 1}, halves())[0].raw != train(given, halves())[0].raw


def test_the_seed_is_used_only_where_something_is_drawn(train: Train) -> None:
    assert train({**BINARY, "seed": 1}, halves())[0].raw == train({**BINARY, "seed": 2}, halves())[0].raw


def test_a_rank_without_rows_takes_part(train: Train) -> None:
    rows = cancer(slice(0, 60))  # two blocks for three ranks
    for wrap in (lambda shard: shard, Streamed):
        run = train({**BINARY, "eval_metric": "auc,logloss,f1"}, {"train": rows}, size=3, wrap=wrap)
        assert run[0].metrics["train:logloss"] < 0.4


def test_metrics_of_all_channels_come_in_the_users_order(train: Train) -> None:
    channels = {**halves(), "test": cancer(slice(2, None, 3))}
    run = train({**BINARY, "eval_metric": "accuracy,logloss,r2,error@0.3"}, channels, size=2)
    first, last = run[0].reports[0], run[0].reports[-1]
    names = ["accuracy", "logloss", "r2", "error@0.3"]
    assert list(first.metrics) == [f"{channel}:{name}" for channel in ("train", "validation") for name in names]
    assert list(last.metrics) == [f"{channel}:{name}" for channel in ("train", "validation", "test") for name in names]
    assert [report.step for report in run[0].reports] == list(range(1, 9))
    assert {report.rows for report in run[0].reports} == {285}
    predicted = run[0].model.predict(channels["test"].features)["score"] > 0.5
    assert last.metrics["test:accuracy"] == pytest.approx(np.mean(predicted == channels["test"].label))


@pytest.mark.parametrize("booster", ["gbtree", "dart", "gblinear"])
def test_early_stopping_keeps_the_best_model(booster: str, train: Train) -> None:
    given = {
        "objective": "binary:logistic",
        "booster": booster,
        "num_round": 200,
        "eta": 1,
        "early_stopping_rounds": 4,
        "eval_metric": "error,logloss",
    }
    channels = {**halves(), "test": halves()["validation"]}
    (run,) = train(given, channels)
    losses = [report.metrics["validation:logloss"] for report in run.reports]
    best = int(np.argmin(losses))
    assert len(losses) == best + 5 < 200
    assert run.model.best_round == best + 1
    assert run.metrics["test:logloss"] == pytest.approx(losses[best], abs=1e-6)
    probability = run.model.predict(channels["test"].features)["score"].astype(np.float64)
    label = channels["test"].label
    assert label is not None
    loss = -np.mean(np.log(np.where(label == 1, probability, 1 - probability)))
    assert loss == pytest.approx(losses[best], abs=1e-5)


def test_early_stopping_knows_which_way_is_better(train: Train) -> None:
    given = {**BINARY, "num_round": 100, "early_stopping_rounds": 3, "eval_metric": "logloss,auc"}
    (run,) = train(given, halves())
    areas = [report.metrics["validation:auc"] for report in run.reports]
    assert run.model.best_round == int(np.argmax(areas)) + 1
    assert len(areas) == run.model.best_round + 3


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"subsample": 0.6},
        {"colsample_bytree": 0.5, "colsample_bylevel": 0.7, "colsample_bynode": 0.7},
        {"tree_method": "approx", "subsample": 0.6, "colsample_bytree": 0.5},
        {"booster": "dart", "rate_drop": 0.3, "subsample": 0.7},
        {"num_parallel_tree": 2, "subsample": 0.5, "colsample_bynode": 0.5},
        {"early_stopping_rounds": 3, "subsample": 0.5, "num_round": 60, "eta": 1},
        {"updater": "grow_quantile_histmaker", "subsample": 0.5, "colsample_bytree": 0.5},
    ],
    ids=lambda more: ",".join(more) or "plain",
)
@pytest.mark.parametrize("size", [1, 2])
def test_an_interrupted_job_ends_with_the_same_bytes(more: dict[str, Any], size: int, train: Train) -> None:
    given = {**BINARY, "num_round": 18, **more}
    states: dict[int, State] = {}

    def keep(model: XGBoost, step: int) -> None:
        if step in (1, 8, 13):
            states[step] = dict(model.state_dict())

    whole = train(given, halves(), size=size, on_report=keep)
    for step, state in states.items():
        rest = train(given, halves(), size=size, state=state)
        assert rest[0].raw == whole[0].raw
        assert rest[0].reports == whole[0].reports[step:]


def test_a_job_restored_after_its_last_round_has_its_model(train: Train) -> None:
    given = {**BINARY, "num_round": 60, "eta": 1, "early_stopping_rounds": 3}
    states: list[State] = []
    (whole,) = train(given, halves(), on_report=lambda model, step: states.append(dict(model.state_dict())))
    settings = parse(XGBoost.Hyperparameters, given, owner="xgboost")
    last = XGBoost(settings)
    last.load_state_dict({**states[-2], "step": Entry(len(states) - 1)})
    (again,) = train(given, halves(), state=states[-2])
    assert again.raw == whole.raw
    assert again.model.best_round == whole.model.best_round


def test_a_stopped_job_has_the_rounds_so_far(train: Train) -> None:
    models: list[XGBoost] = []
    with pytest.raises(Stopped, match="after step 3"):
        train(BINARY, halves(), size=2, stop_at=3, on_report=lambda model, step: models.append(model))
    assert models[0].booster.num_boosted_rounds() == 3


def test_the_artifact_opens_in_plain_xgboost(train: Train, tmp_path: Path) -> None:
    (run,) = train({**BINARY, "early_stopping_rounds": 2}, halves())
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        run.model.save(folder)
    contents = [{f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()} for folder in folders]
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"xgboost-model", "xgboost.json"}

    features = halves()["validation"].features
    booster = xgb.Booster()
    booster.load_model(bytearray((tmp_path / "a" / "xgboost-model").read_bytes()))
    loaded = XGBoost.load(tmp_path / "a")
    expected = run.model.predict(features)["score"]
    np.testing.assert_array_equal(booster.predict(xgb.DMatrix(features)), expected)
    np.testing.assert_array_equal(loaded.predict(features)["score"], expected)
    assert loaded.columns == 30
    assert loaded.best_round == run.model.best_round
    loaded.save(tmp_path / "b")
    assert (tmp_path / "b" / "xgboost.json").read_bytes() == (tmp_path / "a" / "xgboost.json").read_bytes()


def test_sparse_and_dense_requests_get_the_same_answer(train: Train) -> None:
    generator = np.random.default_rng(0)
    dense = (generator.random((300, 12)) * (generator.random((300, 12)) < 0.3)).astype(np.float32)
    label = (dense[:, 0] + dense[:, 1] > 0.3).astype(np.float32)
    matrix = scipy.sparse.csr_matrix(dense)
    sparse = Csr(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data, 12)
    (run,) = train(BINARY, {"train": Rows(sparse, label)}, size=1)
    missing = np.where(dense == 0, np.nan, dense)  # what a sparse row leaves out is missing
    np.testing.assert_array_equal(run.model.predict(sparse)["score"], run.model.predict(missing)["score"])
    narrow = Csr(np.array([0, 1]), np.array([0]), np.array([0.9], dtype=np.float32), 1)
    wide = Csr(narrow.indptr, narrow.indices, narrow.values, 12)
    np.testing.assert_array_equal(run.model.predict(narrow)["score"], run.model.predict(wide)["score"])
    assert roc_auc_score(label, run.model.predict(sparse)["score"]) > 0.95


def test_requests_that_do_not_fit_are_refused(train: Train) -> None:
    (run,) = train(BINARY, halves())
    with pytest.raises(UserError, match="requests have 3 features, but the model was trained on 30"):
        run.model.predict(np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(UserError, match="rows of numbers"):
        run.model.predict(Records(["text"]))
    with pytest.raises(UserError, match="learnt nothing yet"):
        XGBoost(run.model.hyperparameters).predict(np.zeros((2, 3), dtype=np.float32))
    assert run.model.predict(np.zeros((0, 30), dtype=np.float32))["score"].shape == (0,)


@pytest.mark.parametrize("size", [1, 2])
def test_labels_minus_one_are_class_zero_and_told(size: int, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    rows = cancer()
    assert rows.label is not None
    plain = train(BINARY, {"train": rows}, size=size)
    assert "labels" not in capsys.readouterr().out
    signed = train(BINARY, {"train": Rows(rows.features, rows.label * 2 - 1)}, size=size)
    assert signed[0].raw == plain[0].raw
    assert capsys.readouterr().out.count("channel 'train': labels -1 and 1 are read as 0 and 1") == 1


def test_weights_count_as_repeated_rows(train: Train) -> None:
    rows = cancer(slice(0, 200))
    assert isinstance(rows.features, np.ndarray)
    assert rows.label is not None
    weight = np.where(np.arange(200) % 4 == 0, 2, 1).astype(np.float32)
    times = weight.astype(int)
    (weighted,) = train(BINARY, {"train": Rows(rows.features, rows.label, weight)})
    (repeated,) = train(BINARY, {"train": Rows(np.repeat(rows.features, times, axis=0), np.repeat(rows.label, times))})
    assert weighted.metrics["train:logloss"] == pytest.approx(repeated.metrics["train:logloss"], rel=0.02)
    (plain,) = train(BINARY, {"train": rows})
    assert weighted.raw != plain.raw


def test_weights_in_the_second_column_of_csv_files(train: Train) -> None:
    rows = cancer(slice(0, 200))
    assert isinstance(rows.features, np.ndarray)
    weight = np.where(np.arange(200) % 4 == 0, 2, 1).astype(np.float32)
    (known,) = train({**BINARY, "csv_weights": 1}, {"train": Rows(rows.features, rows.label, weight)})
    unread = Rows(np.concatenate([weight[:, None], rows.features], axis=1), rows.label)
    for wrap in (lambda shard: shard, Streamed):
        (found,) = train({**BINARY, "csv_weights": 1}, {"train": unread, "validation": unread}, wrap=wrap)
        assert found.raw == known.raw
        assert found.model.columns == 30


def test_missing_values_are_allowed(train: Train) -> None:
    rows = cancer()
    assert isinstance(rows.features, np.ndarray)
    holes = np.where(np.random.default_rng(0).random(rows.features.shape) < 0.2, np.nan, rows.features)
    run = train(BINARY, {"train": Rows(holes, rows.label)}, size=2)
    assert run[0].metrics["train:logloss"] < 0.3


def test_constraints_reach_the_library(train: Train) -> None:
    generator = np.random.default_rng(1)
    features = generator.random((400, 2)).astype(np.float32)
    rows = Rows(features, (features[:, 0] + 0.3 * generator.normal(size=400)).astype(np.float32))
    (run,) = train({"num_round": 20, "monotone_constraints": "(1,0)"}, {"train": rows})
    grid = np.stack([np.linspace(0, 1, 100), np.full(100, 0.5)], axis=1).astype(np.float32)
    assert (np.diff(run.model.predict(grid)["score"]) >= 0).all()
    (run,) = train({"num_round": 20, "interaction_constraints": "[[0],[1]]"}, {"train": rows})
    trees = run.model.booster.get_dump()
    assert not any("f0" in tree and "f1" in tree for tree in trees)


def bad(values: dict[int, float], **more: Any) -> Rows:
    rows = cancer(slice(0, 300))
    assert rows.label is not None
    label = rows.label.copy()
    for row, value in values.items():
        label[row] = value
    return Rows(rows.features, label, **more)


MISTAKES: list[tuple[dict[str, Any], dict[str, Rows], str]] = [
    ({}, {"validation": cancer()}, "needs a channel 'train'"),
    ({}, {"train": cancer(slice(0, 0))}, "channel 'train' has no rows"),
    ({}, {"train": cancer(), "validation": cancer(slice(0, 0))}, "channel 'validation' has no rows"),
    ({}, {"train": Rows(cancer().features)}, "channel 'train' has no labels"),
    ({}, {"train": Rows(Records(["a", "b"]))}, "rows of numbers"),
    ({}, {"train": bad({270: np.nan})}, "channel 'train', row 271: nan is not allowed: a label must be a finite number"),
    (
        {},
        {"train": bad({270: 2})},
        "channel 'train', row 271: 2 is not allowed: objective=binary:logistic needs labels 0 and 1",
    ),
    ({}, {"train": bad({270: -1})}, "labels -1 and others than -1 and 1"),
    ({}, {"train": bad({}, weight=-np.ones(300, np.float32))}, r"row \d+: -1 is not allowed: a weight must be a number >= 0"),
    (
        {"objective": "multi:softmax", "num_class": 2},
        {"train": bad({3: 2})},
        "row 4: 2 is not allowed: .* num_class=2 needs whole labels from 0 to 1",
    ),
    ({"objective": "multi:softprob", "num_class": 3}, {"train": bad({3: 0.5})}, "row 4: 0.5 is not allowed"),
    ({"objective": "count:poisson"}, {"train": bad({3: -2})}, "needs labels >= 0"),
    ({"objective": "reg:gamma"}, {"train": bad({3: 0})}, "needs labels > 0"),
    ({"objective": "rank:pairwise"}, {"train": bad({})}, "needs query groups, and channel 'train' has none"),
    (
        {"objective": "rank:pairwise"},
        {"train": bad({}, group=np.arange(300) // 10, weight=np.arange(300, dtype=np.float32))},
        "all rows of a group must have the same weight",
    ),
    ({"early_stopping_rounds": 3}, {"train": cancer()}, "early_stopping_rounds needs a channel 'validation'"),
    ({"monotone_constraints": "(1,0)"}, {"train": cancer()}, "has 2 entries, but channel 'train' has 30 features"),
    ({"interaction_constraints": "[[0,30]]"}, {"train": cancer()}, "names column 30, but channel 'train' has columns 0 to 29"),
    (
        {},
        {"train": cancer(), "validation": Rows(np.zeros((5, 31), np.float32), np.zeros(5))},
        "channel 'validation' has 31 features, but channel 'train' has 30",
    ),
    (
        {},
        {"train": cancer(), "validation": Rows(np.zeros((5, 29), np.float32), np.zeros(5))},
        "channel 'validation' has 29 features, but channel 'train' has 30",
    ),
    ({"tree_method": "gpu_hist"}, {"train": cancer()}, "needs a GPU"),
    ({}, {"train": Rows(np.full((20, 2), np.inf, np.float32), np.zeros(20))}, "Input data contains `inf`"),
]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(("given", "channels", "says"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_told_on_every_rank(
    given: dict[str, Any], channels: dict[str, Rows], says: str, size: int, tmp_path: Path
) -> None:
    if given.get("objective", "").startswith(("multi:", "count:", "reg:", "rank:")):
        given = {"num_round": 2, **given}
    else:
        given = {**BINARY, **given}
    settings = parse(XGBoost.Hyperparameters, given, owner="xgboost")

    def rank_main(world: Collective) -> str:
        shards = {
            name: rows.shard(rank=world.rank, size=world.size, seed=0, replicate=name != "train")
            for name, rows in channels.items()
        }
        with pytest.raises(UserError, match=says) as caught:
            XGBoost(settings).fit(MemorySession(shards, tmp_path, world=world))
        return caught.value.message

    assert len(run_threads(size, rank_main)) == size


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tree_method": "exact"}, "tree_method=exact works on one worker only, this job has 2; use tree_method=hist"),
        ({"booster": "gblinear"}, "booster=gblinear works on one worker only"),
        ({"objective": "survival:cox"}, "use objective=survival:aft"),
    ],
)
def test_what_works_on_one_worker_only(given: dict[str, Any], says: str, train: Train) -> None:
    rows = Rows(cancer().features, np.arange(1, 570, dtype=np.float32) / 600)
    given = {"num_round": 2, **given}
    train(given, {"train": rows})
    with pytest.raises(UserError, match=says):
        train(given, {"train": rows}, size=2)


@pytest.mark.parametrize("given", [{"tree_method": "exact"}, {"booster": "gblinear"}])
def test_what_cannot_stream(given: dict[str, Any], train: Train) -> None:
    with pytest.raises(UserError, match="use mode=file"):
        train({**BINARY, **given}, halves(), wrap=Streamed)


def test_streamed_channels_give_the_same_model(train: Train) -> None:
    assert train(BINARY, halves(), wrap=Streamed)[0].reports == train(BINARY, halves())[0].reports
    approx = {**BINARY, "tree_method": "approx"}  # cuts are proposed page by page: near, not equal
    streamed, whole = train(approx, halves(), wrap=Streamed)[0].metrics, train(approx, halves())[0].metrics
    assert streamed["validation:logloss"] == pytest.approx(whole["validation:logloss"], abs=0.01)
    assert train(BINARY, halves(), wrap=Streamed)[0].raw == train(BINARY, halves())[0].raw


@pytest.mark.parametrize("size", [1, 2])
def test_a_bad_row_of_a_stream_is_the_users_error_everywhere(size: int, tmp_path: Path) -> None:
    settings = parse(XGBoost.Hyperparameters, BINARY, owner="xgboost")

    def rank_main(world: Collective) -> str:
        shard = Streamed(cancer().shard(rank=world.rank, size=world.size, seed=0, replicate=False), bad_row=99)
        with pytest.raises(UserError, match=r"data.csv line 100: 'x' is no number") as caught:
            XGBoost(settings).fit(MemorySession({"train": shard}, tmp_path, world=world))
        return caught.value.message

    messages = run_threads(size, rank_main)
    assert "data.csv line 100: 'x' is no number" in messages


@pytest.mark.parametrize("size", [2, 3])
def test_a_failure_of_one_rank_in_the_middle_reaches_all(size: int, tmp_path: Path) -> None:
    settings = parse(XGBoost.Hyperparameters, {**BINARY, "num_round": 100}, owner="xgboost")

    def rank_main(world: Collective) -> Exception:
        def fail(step: int) -> None:
            if step == 3 and world.rank == size - 1:
                raise RuntimeError("no more")

        shard = cancer().shard(rank=world.rank, size=world.size, seed=0, replicate=False)
        with pytest.raises((AlgorithmError, RuntimeError)) as caught:
            XGBoost(settings).fit(MemorySession({"train": shard}, tmp_path, world=world, on_report=fail))
        return caught.value

    *others, failed = run_threads(size, rank_main)
    assert isinstance(failed, RuntimeError)
    for error in others:
        assert isinstance(error, AlgorithmError)
        assert error.message == f"rank {size - 1}, training: RuntimeError: no more"


@pytest.mark.parametrize("size", [1, 2])
def test_who_joined_is_not_told_and_warnings_are(size: int, train: Train, capfd: pytest.CaptureFixture[str]) -> None:
    train({**BINARY, "num_round": 1, "verbosity": 2}, halves(), size=size)
    out, err = capfd.readouterr()
    assert "got rank" not in out + err
    assert "IterativeDMatrix" in out + err  # what the library says otherwise still comes


def test_groups_may_come_in_any_order_of_their_numbers(train: Train) -> None:
    rows, _ = labels_for("rank:ndcg")
    assert rows.group is not None
    renamed: Array = (rows.group * 7919) % 1009
    given = {"objective": "rank:ndcg", "num_round": 5}
    plain = train(given, {"train": rows})
    assert train(given, {"train": Rows(rows.features, rows.label, group=renamed)})[0].raw == plain[0].raw
