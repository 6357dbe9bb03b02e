"""DeepAR's parts: windows, likelihoods against scipy's, draws against their distributions, what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn.functional import softplus

from phalanx.algorithms.deepar.algorithm import DeepAR
from phalanx.algorithms.deepar.backtest import Errors, measures
from phalanx.algorithms.deepar.calendar import Frequency
from phalanx.algorithms.deepar.forecast import CODES, summarised
from phalanx.algorithms.deepar.hyperparameters import DeepARHyperparameters, Likelihood
from phalanx.algorithms.deepar.lstm import Runner
from phalanx.algorithms.deepar.network import PARAMETERS, negative_log_likelihood
from phalanx.algorithms.deepar.reading import Shape, check_values, parsed, shape_of
from phalanx.algorithms.deepar.series import Series
from phalanx.algorithms.deepar.training import Training, make_network
from phalanx.algorithms.deepar.windows import Prepared
from phalanx.algorithms.kernels import paths as path_loops
from phalanx.contracts import Array, Json, Records
from phalanx.errors import AlgorithmError, UserError
from phalanx.hyperparameters import parse
from phalanx.parallel.collective import Solo

DAY = Frequency.parse("D")
START = "2024-02-27 00:00:00"


def wanted(**given: Any) -> DeepARHyperparameters:
    needed = {"time_freq": "D", "prediction_length": 3, "context_length": 4, "epochs": 1}
    return parse(DeepARHyperparameters, {**needed, **given}, owner="deepar")


def series(values: Array, *, cat: int = 0, features: Array | None = None) -> Series:
    rows = np.zeros((0, len(values)), np.float32) if features is None else features
    return Series(np.datetime64(START.replace(" ", "T"), "s"), values.astype(np.float32), np.array([cat]), rows)


def test_a_window_holds_what_lies_where_it_says() -> None:
    values = np.arange(1, 41, dtype=np.float64)
    values[20] = np.nan
    prepared = Prepared([series(np.arange(5.0)), series(values, cat=1, features=None)], DAY, 4, 3)
    window = prepared.windows(np.array([1]), np.array([22]))
    lags = DAY.lags()
    known = np.nan_to_num(values)
    np.testing.assert_array_equal(window.target[:, 0], known[18:25].astype(np.float32))
    np.testing.assert_array_equal(window.observed[:, 0], [1, 1, 0, 1, 1, 1, 1])
    scale = np.mean([19, 20, 22])
    assert window.scale[0] == pytest.approx(scale)
    assert window.cat.tolist() == [[1]]
    for step in range(7):
        places = [18 + step - lag for lag in lags]
        expected = [
            known[place] / scale if place >= 0 and place != 20 else 1 for place in places
        ]  # missing: the context's mean
        np.testing.assert_allclose(window.inputs[step, 0, : len(lags)], expected, rtol=1e-6)
    calendar = DAY.features(DAY.times(np.datetime64("2024-02-27T00:00:00", "s"), 40))[18:25]
    np.testing.assert_array_equal(window.inputs[:, 0, len(lags) : len(lags) + calendar.shape[1]], calendar)


def test_a_window_may_begin_before_its_series() -> None:
    prepared = Prepared([series(np.arange(1.0, 7.0))], DAY, 4, 3)
    window = prepared.windows(np.array([0]), np.array([1]))
    np.testing.assert_array_equal(window.observed[:, 0], [0, 0, 0, 1, 1, 1, 1])
    assert window.scale[0] == 1.0
    np.testing.assert_array_equal(prepared.truth(np.array([0]), np.array([5]))[0], [6, np.nan, np.nan])
    assert prepared.known(np.array([0]), np.array([1])).tolist() == [4]


def test_a_series_of_zeros_has_a_scale() -> None:
    window = Prepared([series(np.zeros(20))], DAY, 4, 3).windows(np.array([0]), np.array([10]))
    assert window.scale[0] == 1.0
    assert np.isfinite(window.inputs).all()


def raw(likelihood: Likelihood, rows: int) -> torch.Tensor:
    return torch.randn(rows, PARAMETERS[likelihood], generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def distribution(likelihood: Likelihood, p: Array, scale: Array) -> Any:
    """Return scipy's distribution of raw parameters (N, P)."""
    positive = softplus(torch.from_numpy(p)).numpy()
    if likelihood == "gaussian":
        return scipy.stats.norm(p[:, 0] * scale, (positive[:, 1] + 1e-6) * scale)
    if likelihood == "student-T":
        return scipy.stats.t(2 + positive[:, 2], p[:, 0] * scale, (positive[:, 1] + 1e-6) * scale)
    if likelihood == "beta":
        return scipy.stats.beta(positive[:, 0] + 1e-2, positive[:, 1] + 1e-2)
    mean, shape = (positive[:, 0] + 1e-6) * scale, positive[:, 1] / np.sqrt(scale) + 1e-4
    return scipy.stats.nbinom(1 / shape, 1 / (1 + shape * mean))


@pytest.mark.parametrize("likelihood", ["gaussian", "student-T", "beta", "negative-binomial"])
def test_losses_are_those_of_the_distributions(likelihood: Likelihood) -> None:
    p, scale = raw(likelihood, 6), torch.tensor([1.0, 2, 5, 0.5, 1, 3], dtype=torch.float64)
    y = torch.tensor([0.0, 3, 7, 1, 2, 12] if likelihood != "beta" else [0.1, 0.5, 0.9, 0.3, 0.7, 0.2], dtype=torch.float64)
    made = distribution(likelihood, p.numpy(), scale.numpy())
    expected = -(made.logpmf(y.numpy()) if likelihood == "negative-binomial" else made.logpdf(y.numpy()))
    np.testing.assert_allclose(negative_log_likelihood(likelihood, p, y, scale).numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("likelihood", ["gaussian", "student-T", "beta", "negative-binomial"])
def test_draws_have_the_quantiles_of_the_distributions(likelihood: Likelihood) -> None:
    p, scale = raw(likelihood, 3).float(), torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    path_loops.seed(np.uint32(7))
    found = np.array(
        [
            [path_loops.draw(CODES[likelihood], row, of) for _ in range(40_000)]
            for row, of in zip(p.numpy(), scale.tolist(), strict=True)
        ]
    )
    for row in range(3):
        made = distribution(likelihood, p[row : row + 1].double().numpy(), scale[row : row + 1].numpy())
        for q in (0.1, 0.5, 0.9):
            value = np.quantile(found[row], q)
            below, least = (
                float(made.cdf(value)[0]),
                float(made.cdf(value - (1 if likelihood == "negative-binomial" else 0))[0]),
            )
            assert least - 0.015 <= q <= below + 0.015, (likelihood, row, q)


def test_the_measures_are_those_of_the_spec() -> None:
    truth = np.array([[1.0, 2.0, np.nan]])
    samples = np.array([[[0.0, 2, 9], [2, 2, 9], [4, 5, 9]]])
    errors = Errors()
    with Runner(1) as runner:
        mean, of = summarised(samples.astype(np.float32), [0.5], runner)
    errors.add(truth, mean, of, np.array([0.5]))
    found = measures(errors.sums(1), [0.5])
    assert found["test:RMSE"] == pytest.approx(np.sqrt(((1 - 2) ** 2 + (2 - 3) ** 2) / 2))
    assert found["test:mean_wQuantileLoss"] == pytest.approx(2 * (0.5 * 1 + 0) / 3)
    assert found["test:coverage[0.5]"] == 1.0


@pytest.mark.parametrize(
    ("given", "records", "says"),
    [
        ({"likelihood": "beta"}, [{"start": START, "target": [0.5, 1.5]}], "line 1: likelihood=beta is for values from 0 to 1"),
        ({"likelihood": "negative-binomial"}, [{"start": START, "target": [1, 0.5]}], "line 1: likelihood=negative-binomial"),
        ({"num_dynamic_feat": 1}, [{"start": START, "target": [1]}], "line 1: dynamic_feat has 0 features where 1 are needed"),
        ({"num_dynamic_feat": ""}, [{"start": START, "target": [1], "dynamic_feat": [[1]]}], "line 1: there is dynamic_feat"),
        (
            {},
            [{"start": START, "target": [1], "cat": [0]}, {"start": START, "target": [1]}],
            "line 2: cat has 0 values where 1",
        ),
        ({"cardinality": "[2]"}, [{"start": START, "target": [1]}], "line 1: cat has 0 values where 1 are needed"),
        (
            {},
            [{"start": START, "target": [1], "dynamic_feat": [[1]]}, {"start": START, "target": [1]}],
            "line 2: dynamic_feat has 0 features where 1 are needed",
        ),
    ],
)
def test_records_that_do_not_fit_are_named(given: dict[str, Any], records: list[Json], says: str) -> None:
    with pytest.raises(UserError) as caught:
        parsed(records, lambda row: f"line {row + 1}", wanted(**given), None)
    assert says in str(caught.value)


def test_fields_may_be_ignored() -> None:
    record = {"start": START, "target": [1], "cat": [7], "dynamic_feat": [[1]]}
    (found,) = parsed([record], str, wanted(cardinality="ignore", num_dynamic_feat="ignore"), None)
    assert not len(found.cat)
    assert not len(found.dynamic_feat)
    assert "cat" in record


def test_a_declared_cardinality_is_held() -> None:
    record = {"start": START, "target": [1], "cat": [3]}
    with pytest.raises(UserError, match="line 1: cat 1 is 3; its cardinality of 3 allows 0 to 2"):
        parsed([record], lambda row: f"line {row + 1}", wanted(cardinality="[3]"), None)
    found = parsed([record], str, wanted(), None)
    assert shape_of(found, wanted()) == Shape([4], 0)
    assert shape_of(found, wanted(cardinality="[5]")) == Shape([5], 0)


@pytest.mark.parametrize("text", ["3,", "[1,2]", "auto", "ignore", ""])
def test_cardinalities(text: str) -> None:
    expected = {"3,": [3], "[1,2]": [1, 2], "": []}.get(text)
    assert wanted(cardinality=text).cardinalities() == expected


@pytest.mark.parametrize(("name", "value"), [("cardinality", "[0]"), ("cardinality", "many"), ("time_freq", "hourly")])
def test_values_that_are_not_allowed(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{name}="):
        wanted(**{name: value})


def test_values_of_a_likelihood_may_be_missing() -> None:
    check_values("beta", np.array([0.5, np.nan]), "line 1")


def test_a_missing_lag_is_the_mean_of_the_context_with_its_sign() -> None:
    window = Prepared([series(np.array([-2.0, -2, -4, -4]))], DAY, 4, 3).windows(np.array([0]), np.array([4]))
    assert window.scale[0] == 3.0
    np.testing.assert_allclose(window.inputs[0, 0, : len(DAY.lags())], -1.0)


def test_a_category_that_never_occurs_is_the_mean_of_those_that_do() -> None:
    session: Any = SimpleNamespace(world=Solo(), seed=0, device="cpu")
    given = wanted(cardinality="[4]", batches_per_epoch=2, mini_batch_size=8)
    rows = [series(np.arange(1.0, 41), cat=number % 3) for number in range(6)]
    with Runner(1) as runner:
        training = Training(session, given, rows, shape_of(rows, given), runner)
        while not training.done:
            training.learn()
        before = training._average["embeddings.0.weight"].clone()
        training.finish()
    table = training.network.embeddings[0].weight
    torch.testing.assert_close(table[:3], before[:3])
    torch.testing.assert_close(table[3], before[:3].mean(dim=0))


def untrained(**given: Any) -> DeepAR:
    """Return a model with the weights that training begins with."""
    model = DeepAR(wanted(**given))
    model._shape = Shape([2], 0)
    width = Prepared([series(np.zeros(9))], DAY, 4, 3).width
    model._network = make_network(model.hyperparameters, model._shape, width, 1)
    return model


def asked(cat: int = 0, **configuration: Json) -> Json:
    return {"start": START, "target": [1.0, 4, 2, 8, 5], "cat": [cat], "configuration": configuration}


def test_an_answer_does_not_depend_on_what_others_ask_for() -> None:
    model = untrained()
    alone = model.predict(Records([asked(num_samples=20)]))
    among = model.predict(Records([asked(num_samples=20), asked(1, num_samples=300, quantiles=["0.25"])]))
    np.testing.assert_array_equal(among["mean"][0], alone["mean"][0])
    for name in alone["quantiles"].dtype.names or ():
        np.testing.assert_array_equal(among["quantiles"][name][0], alone["quantiles"][name][0])


def test_samples_are_those_that_were_asked_for() -> None:
    found = untrained().predict(Records([asked(num_samples=2, output_types=["samples"]), asked(num_samples=3)]))
    assert found["samples"].shape == (2, 3, 3)
    np.testing.assert_array_equal(np.isnan(found["samples"]).any(axis=2), [[False, False, True], [False] * 3])


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (asked(quantiles=0.5), "request 1: quantiles must be a list, not 0.5"),
        (asked(quantiles=[1]), "request 1: the quantile 1 is not allowed"),
        (asked(output_types="mean"), "request 1: output_types must be a list, not 'mean'"),
        (asked(output_types=["median"]), "request 1: output_types knows no 'median'; did you mean 'mean'?"),
        (asked(num_samples=0), "request 1: num_samples=0 is not allowed: it must be a whole number from 1 to 100000"),
        (asked(num_samples=10**9), "request 1: num_samples=1000000000 is not allowed"),
        (asked(2), "request 1: cat 1 is 2; its cardinality of 2 allows 0 to 1"),
        ({"start": START, "target": [None, "NaN"], "cat": [0]}, "request 1: target holds no values"),
        ({"start": START, "target": [], "cat": [0]}, "request 1: target holds no values"),
        ({"start": START, "target": [1], "cat": [0], "configuration": 3}, "request 1: configuration must be an object"),
    ],
)
def test_requests_that_cannot_be_answered(record: Json, says: str) -> None:
    with pytest.raises(UserError) as caught:
        untrained().predict(Records([record]))
    assert says in str(caught.value)


def test_a_model_that_was_not_trained_says_so() -> None:
    with pytest.raises(AlgorithmError, match="has not been trained yet"):
        DeepAR(wanted()).predict(Records([]))
