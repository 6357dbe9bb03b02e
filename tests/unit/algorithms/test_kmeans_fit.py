"""K-means on data of every shape and size, and what it says when data cannot be clustered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from phalanx.algorithms.kernels import nearest
from phalanx.algorithms.kernels.nearest import Assigner, dense_rows, packed
from phalanx.algorithms.kmeans import batch as kmeans_batch
from phalanx.algorithms.kmeans.algorithm import KMeans, KMeansHyperparameters
from phalanx.algorithms.reading import NumericBatches
from phalanx.contracts import Array, Collective, Csr, Records
from phalanx.data.memory import array_shard
from phalanx.errors import AlgorithmError, UserError
from phalanx.hyperparameters import parse
from phalanx.parallel.collective import Solo
from phalanx.parallel.threads import run_threads
from phalanx.testing.algorithm_checks import model_files, to_csr
from phalanx.testing.sessions import Circumstances, MemorySession, Rows, Trained, attempt_in_threads, train_in_threads

GOLDEN = Path(__file__).parents[2] / "golden" / "kmeans-digits.json"


def make(**given: Any) -> KMeans:
    return KMeans(parse(KMeansHyperparameters, given, owner="kmeans"))


def train(folder: Path, rows: Rows | Array, how: Circumstances | None = None, **given: Any) -> list[Trained]:
    channels = {"train": rows if isinstance(rows, Rows) else Rows(rows)}
    return train_in_threads(lambda: make(**given), channels, folder, how or Circumstances())


def centers(trained: list[Trained]) -> Array:
    algorithm = trained[0].algorithm
    assert isinstance(algorithm, KMeans)
    assert algorithm.centers is not None
    return algorithm.centers


def make_model(values: Array) -> KMeans:
    model = make(k=len(values))
    model.centers = values
    return model


def blobs(rows: int, columns: int, count: int, *, spread: float = 0.1, seed: int = 0) -> tuple[Array, Array]:
    """Return rows around `count` corners, and the corners."""
    generator = np.random.default_rng(seed)
    corners = generator.normal(size=(count, columns)) * 10
    return corners[generator.integers(count, size=rows)] + generator.normal(size=(rows, columns)) * spread, corners


def msd(model: KMeans, rows: Array) -> float:
    return float((model.predict(rows.astype(np.float32))["distance_to_cluster"].astype(np.float64) ** 2).mean())


def spread_of(trained: list[Trained], rows: Array) -> float:
    """Return the mean squared distance of rows to the nearest centre, by a second road."""
    found = centers(trained).astype(np.float64)
    return float(((rows[:, None, :] - found[None]) ** 2).sum(axis=2).min(axis=1).mean())


@pytest.mark.parametrize("columns", [1, 2, 9, 300])
def test_clusters_are_found(tmp_path: Path, columns: int) -> None:
    rows, corners = blobs(3000, columns, 4)
    trained = train(tmp_path, rows, k=4, mini_batch_size=500)
    assert spread_of(trained, rows) < 0.0102 * columns
    assert spread_of(trained, corners) < 0.01 * columns


def test_rows_sorted_by_cluster_are_clustered(tmp_path: Path) -> None:
    rows, _ = blobs(20_000, 8, 5)
    rows = rows[np.argsort(rows[:, 0].round(0), kind="stable")]
    assert spread_of(train(tmp_path, rows, k=5, mini_batch_size=500), rows) < 0.085


def test_blobs_that_come_first_are_not_forgotten(tmp_path: Path) -> None:
    rows = np.repeat(np.array([[0.0, 0], [50, 0], [0, 50]]), 2000, axis=0) + np.random.default_rng(0).normal(size=(6000, 2))
    settings: list[dict[str, Any]] = [{}, {"extra_center_factor": 10}, {"extra_center_factor": 10, "polish_steps": 0}]
    for given in settings:
        assert spread_of(train(tmp_path, rows, k=3, mini_batch_size=200, **given), rows) < 2.2


def test_one_cluster_is_the_mean(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 5)) + 7
    trained = train(tmp_path, rows, k=1, mini_batch_size=1000)
    np.testing.assert_allclose(centers(trained)[0], rows.mean(axis=0), atol=1e-3)


def test_as_many_clusters_as_rows(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    trained = train(tmp_path, rows, Circumstances(2), k=60)
    assert spread_of(trained, rows) < 1e-12


def test_fewer_distinct_rows_than_clusters(tmp_path: Path) -> None:
    rows = np.repeat(np.array([[0.0, 1.0], [5.0, 5.0]], dtype=np.float32), 100, axis=0)
    trained = train(tmp_path, rows, Circumstances(2), k=5, mini_batch_size=50)
    assert centers(trained).shape == (5, 2)
    assert spread_of(trained, rows) == 0
    assert trained[0].session.metrics["train:msd"] == 0


def test_distinct_rows_that_come_late_get_the_idle_centres(tmp_path: Path) -> None:
    first, late = np.zeros((200, 2), np.float32), np.repeat(np.array([[9, 9], [-9, 9], [9, -9]], np.float32), 40, axis=0)
    trained = train(tmp_path, np.concatenate([first, late]), k=4, mini_batch_size=100, extra_center_factor=1)
    assert spread_of(trained, late) == 0


def test_constant_columns_change_nothing(tmp_path: Path) -> None:
    rows, _ = blobs(500, 3, 3)
    wider = np.concatenate([rows, np.full((500, 2), 4.0)], axis=1)
    found = centers(train(tmp_path, wider, k=3))
    assert (found[:, 3:] == 4).all()
    assert spread_of(train(tmp_path, rows, k=3), rows) == pytest.approx(spread_of(train(tmp_path, wider, k=3), wider), rel=0.2)


def test_ten_thousand_columns(tmp_path: Path) -> None:
    rows, _ = blobs(200, 10_000, 3)
    assert spread_of(train(tmp_path, rows, Circumstances(2), k=3, mini_batch_size=100), rows) < 110


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e18, 1e30, 1e37])
def test_any_scale_of_numbers(tmp_path: Path, scale: float) -> None:
    rows = (blobs(400, 4, 3)[0] * scale).astype(np.float32)
    trained = train(tmp_path, rows, Circumstances(2), k=3, mini_batch_size=200)
    assert spread_of(trained, rows.astype(np.float64)) < 0.05 * scale**2


def test_clusters_far_from_the_origin(tmp_path: Path) -> None:
    rows = (blobs(2000, 4, 3)[0] + 100_000).astype(np.float32)
    trained = train(tmp_path, rows, k=3, mini_batch_size=500)
    assert spread_of(trained, rows.astype(np.float64)) < 0.06


@pytest.mark.parametrize(
    "given",
    [
        {"mini_batch_size": 7},
        {"mini_batch_size": 100_000},
        {"mini_batch_size": 60, "extra_center_factor": 20},
        {"mini_batch_size": 100, "extra_center_factor": 1000},
        {"mini_batch_size": 100, "extra_center_factor": 1},
        {"mini_batch_size": 100, "init_method": "kmeans++", "extra_center_factor": 4},
        {"mini_batch_size": 60, "init_method": "kmeans++", "extra_center_factor": 20},
        {"mini_batch_size": 100, "local_lloyd_init_method": "random", "local_lloyd_num_trials": 3},
        {"mini_batch_size": 100, "half_life_time_size": 150, "epochs": 3},
        {"mini_batch_size": 100, "polish_steps": 0, "local_lloyd_max_iter": 1, "local_lloyd_tol": 0},
        {"mini_batch_size": 90, "polish_steps": 13},
    ],
    ids=str,
)
def test_settings_work_and_workers_do_not_matter(tmp_path: Path, given: Mapping[str, Any]) -> None:
    rows = load_digits().data[:500]
    alone = train(tmp_path, rows, k=8, **given)
    assert spread_of(alone, rows) < 900  # one cluster: 1,190
    files = model_files(alone[0].algorithm, tmp_path / "alone")
    for how in (Circumstances(2), Circumstances(4, threads=2)):
        other = train(tmp_path, rows, how, k=8, **given)
        assert [r.metrics for r in other[-1].session.reports] == [r.metrics for r in alone[0].session.reports]
        assert model_files(other[-1].algorithm, tmp_path / f"workers-{how.size}") == files


def test_sparse_rows_give_the_model_of_dense_ones(tmp_path: Path) -> None:
    rows = load_digits().data[:400].astype(np.float32)
    dense = train(tmp_path, rows, k=6, mini_batch_size=100)
    sparse = train(tmp_path, Rows(to_csr(rows)), Circumstances(3), k=6, mini_batch_size=100)
    np.testing.assert_array_equal(centers(sparse), centers(dense))


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    rows = load_digits().data[:400]
    assert (centers(train(tmp_path, rows, k=20)) != centers(train(tmp_path, rows, Circumstances(seed=1), k=20))).any()


def test_half_life_follows_rows_that_move(tmp_path: Path) -> None:
    rows = np.concatenate([np.zeros((2000, 1)), np.ones((2000, 1))]) + np.random.default_rng(0).normal(size=(4000, 1)) * 0.01
    settings: dict[str, Any] = {"k": 1, "mini_batch_size": 100, "extra_center_factor": 1, "polish_steps": 0}
    assert centers(train(tmp_path, rows, **settings)) == pytest.approx(0.5, abs=0.01)
    assert centers(train(tmp_path, rows, **settings, half_life_time_size=200)) == pytest.approx(1, abs=0.01)


def test_other_channels_are_measured_at_the_end(tmp_path: Path) -> None:
    rows, other = blobs(600, 3, 4)[0], blobs(300, 3, 4, seed=1)[0]
    channels = {"train": Rows(rows), "test": Rows(other), "validation": Rows(rows), "extra": Rows(other)}
    for size in (1, 3):
        session = train_in_threads(
            lambda: make(k=4, eval_metrics="msd,ssd", mini_batch_size=100), channels, tmp_path, Circumstances(size)
        )
        metrics = session[0].session.reports[-1].metrics
        assert set(metrics) == {"train:msd", "test:msd", "test:ssd", "validation:msd", "validation:ssd"}
        assert metrics["test:msd"] == pytest.approx(spread_of(session, other.astype(np.float32)), rel=1e-6)
        assert metrics["test:ssd"] == pytest.approx(300 * metrics["test:msd"])
        names = [name for report in session[0].session.reports[:-1] for name in report.metrics]
        first = names.index("train:msd")  # from then on of the k centres
        assert names == ["train:stream_msd"] * first + ["train:msd"] * (len(names) - first)
        assert len(names) > first > 0


def test_a_channel_that_is_spread_is_measured_once(tmp_path: Path) -> None:
    rows = blobs(500, 3, 4)[0].astype(np.float32)

    def measured(size: int) -> float:
        def fit(world: Collective) -> float:
            shard = Rows(rows).shard(rank=world.rank, size=size)
            session = MemorySession({"train": shard, "test": shard}, tmp_path, world=world)
            make(k=4, mini_batch_size=100).fit(session)
            return session.metrics["test:msd"]

        return run_threads(size, fit)[0]

    assert measured(1) == measured(2) == measured(3)


def test_steps_are_told_ahead(tmp_path: Path) -> None:
    rows = blobs(1000, 2, 3)[0]
    session = train(tmp_path, rows, k=3, mini_batch_size=300, epochs=2, polish_steps=5)[0].session
    assert [(r.step, r.rows, r.of) for r in session.reports] == [
        (step, 100 if step % 4 == 0 else 300, 13) for step in range(1, 14)
    ]


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        (np.zeros((200, 4)), {"k": 999}, "k=999 clusters need at least 999 rows; channel 'train' has 200"),
        (np.zeros((200, 4)), {"k": 3, "feature_dim": 5}, "feature_dim=5 but channel 'train' has 4 features"),
        (Records([{"a": 1}] * 9), {"k": 2}, "kmeans needs rows of numbers, channel 'train' holds text or JSON records"),
    ],
)
def test_data_that_do_not_fit_the_settings(tmp_path: Path, rows: Any, given: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, Rows(rows), Circumstances(2), **given)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sparse", [False, True])
def test_numbers_that_are_not_finite_are_named_on_every_rank(tmp_path: Path, value: float, sparse: bool) -> None:
    rows = np.ones((300, 4), dtype=np.float32)
    rows[250, 2] = value
    features = to_csr(rows) if sparse else rows
    ended = attempt_in_threads(lambda: make(k=2), {"train": Rows(features)}, tmp_path, Circumstances(3))
    for rank in ended:
        assert isinstance(rank.error, UserError)
        assert f"channel 'train', row 251: feature 3 is {value}; only finite numbers can be trained on" in str(rank.error)


def test_a_bad_number_met_in_a_shuffled_order_is_named_where_it_lies() -> None:
    rows = np.ones((300, 4), dtype=np.float32)
    rows[250, 2] = np.nan
    shard = Rows(rows).shard(seed=5)
    with Assigner(1) as assigner:
        batches = NumericBatches(Solo(), "train", shard, assigner.largest).epoch(100, 1, shuffle=True)
        with pytest.raises(UserError, match="row 251: feature 3 is nan"):
            list(batches)


def test_bad_rows_of_another_channel_are_named_on_every_rank(tmp_path: Path) -> None:
    bad = np.full((10, 4), np.nan)
    for test, message in (
        (Rows(bad), "channel 'test', row 1: feature 1 is nan"),
        (Rows(np.ones((9, 3))), "has 3 features where"),
    ):
        channels = {"train": Rows(np.eye(4)), "test": test}
        for rank in attempt_in_threads(lambda: make(k=2), channels, tmp_path, Circumstances(2)):
            assert isinstance(rank.error, UserError)
            assert message in str(rank.error)


SOLVERS = pytest.mark.parametrize("solver", ["stream", "lloyd"])


@SOLVERS
def test_negative_weights_are_refused(tmp_path: Path, solver: str) -> None:
    with pytest.raises(UserError, match="has row weights that are negative or not finite"):
        train(tmp_path, Rows(np.eye(4), weight=np.array([1, 1, 1, -1])), Circumstances(2), k=2, solver=solver)


@SOLVERS
def test_one_cluster_is_the_weighted_mean(tmp_path: Path, solver: str) -> None:
    rows, weight = blobs(3000, 5, 3)[0], np.random.default_rng(1).random(3000).astype(np.float32) * 9
    found = [train(tmp_path, Rows(rows, weight=weight), Circumstances(n), k=1, solver=solver, epochs=3) for n in (1, 3)]
    np.testing.assert_allclose(centers(found[0])[0], np.average(rows, axis=0, weights=weight), rtol=2e-3)
    np.testing.assert_array_equal(centers(found[0]), centers(found[1]))


@SOLVERS
def test_rows_without_weight_do_not_count(tmp_path: Path, solver: str) -> None:
    rows, _ = blobs(2000, 3, 4)
    far = np.concatenate([rows, rows[:500] + 1000])
    weight = np.concatenate([np.ones(2000), np.zeros(500)])
    channels = {"train": Rows(far, weight=weight), "test": Rows(far, weight=weight)}
    trained = train_in_threads(lambda: make(k=4, solver=solver), channels, tmp_path, Circumstances(2))
    assert spread_of(trained, rows) < 0.05
    assert trained[0].session.metrics["test:msd"] == pytest.approx(spread_of(trained, rows.astype(np.float32)), rel=1e-5)


@SOLVERS
def test_twice_the_weights_give_the_same_model(tmp_path: Path, solver: str) -> None:
    rows = load_digits().data[:600]
    once, twice = (
        centers(train(tmp_path, Rows(rows, weight=np.full(600, w)), k=8, solver=solver, mini_batch_size=600)) for w in (1, 2)
    )
    np.testing.assert_allclose(once, twice, atol=0.2)


@pytest.mark.parametrize("columns", [1, 9, 300])
def test_the_batch_solver_finds_clusters(tmp_path: Path, columns: int) -> None:
    rows, _ = blobs(30_000 if columns < 20 else 3000, columns, 6)
    trained = train(tmp_path, rows, k=6, solver="lloyd")
    assert spread_of(trained, rows) < 0.0102 * columns


def test_the_batch_solver_ends_where_nothing_improves(tmp_path: Path) -> None:
    rows = load_digits().data.astype(np.float32)
    trained = train(tmp_path, rows, Circumstances(threads=2), k=10, solver="lloyd", local_lloyd_tol=0)
    found = centers(trained)
    labels = make_model(found).predict(rows)["closest_cluster"].astype(int)
    means = np.stack([rows[labels == k].mean(axis=0, dtype=np.float64) for k in range(10)])
    np.testing.assert_allclose(found, means, atol=1e-5)
    errors = [report.metrics["train:msd"] for report in trained[0].session.reports]
    assert errors == sorted(errors, reverse=True)
    assert 640 < errors[-1] < 660  # scikit-learn over ten seeds: 648 to 655


def test_the_batch_solver_gives_one_model_for_dense_sparse_and_any_ranks(tmp_path: Path) -> None:
    rows = np.random.default_rng(5).normal(size=(12_000, 6)).astype(np.float32)
    rows[rows < 0] = 0
    settings: dict[str, Any] = {"k": 20, "solver": "lloyd", "local_lloyd_max_iter": 6}
    alone = centers(train(tmp_path, rows, **settings))
    for features, how in ((rows, Circumstances(3, threads=2)), (to_csr(rows), Circumstances(2))):
        np.testing.assert_array_equal(centers(train(tmp_path, Rows(features), how, **settings)), alone)


def test_many_clusters_are_not_fitted_to_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_SHARED_SUMS", 0)  # as where centres are many and wide
    monkeypatch.setattr(kmeans_batch, "_START_BYTES", 0)
    rows = np.random.default_rng(3).normal(size=(3000, 4)).astype(np.float32)
    given = {"k": 600, "solver": "lloyd", "local_lloyd_max_iter": 4}
    alone = train(tmp_path, rows, **given)
    assert [report.rows for report in alone[0].session.reports] == [3000] * 4  # the sample has three rows a centre
    for how in (Circumstances(3), Circumstances(2, threads=2)):
        np.testing.assert_array_equal(centers(train(tmp_path, rows, how, **given)), centers(alone))


def test_centres_without_rows_are_put_to_use(tmp_path: Path) -> None:
    corners = np.repeat(np.arange(40.0), 100)[:, None] * 50 * np.ones((1, 2))
    rows = corners + np.random.default_rng(0).normal(size=corners.shape)
    settings: dict[str, Any] = {"k": 40, "solver": "lloyd", "local_lloyd_init_method": "random"}
    trained = train(tmp_path, rows, Circumstances(2), **settings)
    labels = make_model(centers(trained)).predict(rows.astype(np.float32))["closest_cluster"]
    assert len(np.unique(labels)) == 40
    twos = np.repeat(np.array([[0.0, 1.0], [5.0, 5.0]], dtype=np.float32), 100, axis=0)
    few = train(tmp_path, twos, Circumstances(2), k=5, solver="lloyd")
    assert spread_of(few, twos) == 0


def test_the_batch_solver_reads_a_channel_that_is_replicated(tmp_path: Path) -> None:
    rows = blobs(500, 3, 4)[0].astype(np.float32)

    def fitted(size: int) -> Array:
        def fit(world: Collective) -> Array:
            model = make(k=4, solver="lloyd")
            model.fit(MemorySession({"train": Rows(rows).shard(replicate=True)}, tmp_path, world=world))
            assert model.centers is not None
            return model.centers

        return run_threads(size, fit)[-1]

    np.testing.assert_array_equal(fitted(1), fitted(2))


def test_a_job_without_training_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kmeans needs a channel 'train'"):
        make(k=2).fit(MemorySession({"test": Rows(np.eye(4)).shard()}, tmp_path))


def test_predictions(tmp_path: Path) -> None:
    model = make(k=2)
    model.centers = np.array([[0, 0], [3, 4]], dtype=np.float32)
    answer = model.predict(np.array([[3, 4], [0, 1], [1.5, 2]], dtype=np.float32))
    assert {name: (column.dtype.type, column.tolist()) for name, column in answer.items()} == {
        "closest_cluster": (np.float32, [1, 0, 0]),
        "distance_to_cluster": (np.float32, [0, 1, 2.5]),
    }
    assert model.columns == 2
    with pytest.raises(UserError, match="the requests have 3 features; this k-means model was trained on 2"):
        model.predict(np.zeros((1, 3), dtype=np.float32))
    with pytest.raises(UserError, match="the requests have 3 features"):
        model.predict(Csr(np.array([0, 0]), np.zeros(0, np.int64), np.zeros(0, np.float32), 3))
    with pytest.raises(UserError, match="request 2: feature 1 is nan"):
        model.predict(np.array([[0, 0], [np.nan, 0]], dtype=np.float32))
    with pytest.raises(UserError, match="the request holds text or JSON records"):
        model.predict(Records(["a"]))


def test_a_model_that_has_not_been_trained(tmp_path: Path) -> None:
    for ask in (lambda: make(k=2).predict(np.zeros((1, 2), np.float32)), lambda: make(k=2).save(tmp_path)):
        with pytest.raises(AlgorithmError, match="has not been trained yet"):
            ask()
    assert make(k=2).columns is None


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    model = make(k=2)
    model.centers = np.eye(2, dtype=np.float32)
    model_files(model, tmp_path / "model")
    for damaged in (np.zeros(4, np.float32), np.eye(2), np.full((2, 2), np.nan, np.float32), np.zeros((0, 2), np.float32)):
        np.save(tmp_path / "model" / "centers.npy", damaged)
        with pytest.raises(UserError, match="holds no centres"):
            KMeans.load(tmp_path / "model")


def test_the_model_of_a_known_job_has_not_changed(tmp_path: Path) -> None:
    trained = train(tmp_path, load_digits().data, k=10, mini_batch_size=500)
    found = {
        "train:msd": [next(iter(report.metrics.values())) for report in trained[0].session.reports],
        "norms": sorted(np.linalg.norm(centers(trained).astype(np.float64), axis=1).tolist()),
    }
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


def test_pictures_of_bytes_stay_bytes(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, size=(700, 12)).astype(np.uint8)
    shard = array_shard(pictures)
    model = make(k=9, solver="lloyd")
    model.fit(MemorySession({"train": shard}, tmp_path, threads=2))
    assert next(shard.batches(10)).features.dtype == np.float32  # type: ignore[union-attr]
    assert model.centers is not None
    np.testing.assert_array_equal(model.centers, centers(train(tmp_path, pictures.astype(np.float32), k=9, solver="lloyd")))


@pytest.mark.parametrize(("change", "kind"), [(0.0, np.uint8), (0.5, np.float32), (256.0, np.float32), (-300.0, np.float32)])
def test_rows_are_packed_where_nothing_is_lost(change: float, kind: type) -> None:
    rows = np.arange(256, dtype=np.float32).reshape(32, 8)
    rows[31, 7] += change
    held = packed(rows)
    assert isinstance(held, np.ndarray)
    assert held.dtype == kind
    np.testing.assert_array_equal(dense_rows(held, 3, 32), rows[3:])
