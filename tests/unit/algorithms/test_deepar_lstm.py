"""DeepAR's fused layers against torch's own; forecasts against the network run step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from phalanx.algorithms.deepar.calendar import Frequency
from phalanx.algorithms.deepar.forecast import Forecaster, summarised
from phalanx.algorithms.deepar.hyperparameters import DeepARHyperparameters
from phalanx.algorithms.deepar.lstm import Dropout, Runner
from phalanx.algorithms.deepar.network import STATIC, Network
from phalanx.algorithms.deepar.series import Series
from phalanx.algorithms.deepar.windows import Prepared
from phalanx.contracts import Array
from phalanx.hyperparameters import parse

STEPS, WINDOWS, INPUTS, CELLS = 9, 21, 5, 11
NO_DROPOUT = Dropout(0.0, np.zeros(WINDOWS, np.uint32))


def network(layers: int, inputs: int = INPUTS) -> Network:
    return Network(inputs, 2, [3], 4, layers, CELLS, "student-T", seed=1)


def windows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(STEPS, WINDOWS, INPUTS, generator=generator)
    return inputs, torch.randn(WINDOWS, STATIC, generator=generator), torch.arange(WINDOWS)[:, None] % 3


def gradients(found: torch.Tensor, of: Network) -> dict[str, Array]:
    of.zero_grad()
    weights = torch.cos(torch.arange(found.numel(), dtype=torch.float32)).reshape(found.shape)
    (found * weights).sum().backward()
    return {name: p.grad.numpy().copy() for name, p in of.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_and_their_gradients_are_those_of_torch(layers: int) -> None:
    net, (inputs, static, cat) = network(layers), windows()
    with Runner(2) as runner:
        found = net(inputs, static, cat, NO_DROPOUT, runner)
        slopes = gradients(found, net)
    expected = net.head(net._plain(inputs, net.embedded(static, cat), NO_DROPOUT)) + net.highway(inputs[..., :2])
    np.testing.assert_allclose(found.detach(), expected.detach(), atol=2e-6)
    for name, slope in gradients(expected, net).items():
        np.testing.assert_allclose(slopes[name], slope, atol=2e-5 * max(1, np.abs(slope).max()), err_msg=name)


def dropped(rate: float, threads: int) -> tuple[Array, dict[str, Array]]:
    net, (inputs, static, cat) = network(2), windows()
    keys = np.arange(WINDOWS, dtype=np.uint32) * np.uint32(0x01000193)
    with Runner(threads) as runner:
        found = net(inputs, static, cat, Dropout(rate, keys), runner)
        return found.detach().numpy(), gradients(found, net)


def test_threads_change_no_bit() -> None:
    one, three = dropped(0.3, 1), dropped(0.3, 3)
    np.testing.assert_array_equal(one[0], three[0])
    for name, slope in one[1].items():
        np.testing.assert_array_equal(slope, three[1][name])


def test_dropout_leaves_out_its_share_and_its_gradient_fits() -> None:
    net, (inputs, static, cat) = network(1), windows()
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.weight[0, 0] = 1  # the first parameter is the first cell's output
        net.head.bias.zero_()
    keys = np.arange(WINDOWS, dtype=np.uint32) * np.uint32(0x01000193)
    with Runner(1) as runner:
        whole = net(inputs, static, cat, NO_DROPOUT, runner).detach()[..., 0]
        part = net(inputs, static, cat, Dropout(0.25, keys), runner).detach()[..., 0]
    gone = (part == 0).double().mean()
    assert 0.17 < float(gone) < 0.33
    np.testing.assert_allclose(part[part != 0], (whole / 0.75)[part != 0], rtol=1e-5)


def test_slopes_with_dropout_are_those_of_differences() -> None:
    net, (inputs, static, cat) = network(2), windows()
    keys = np.arange(WINDOWS, dtype=np.uint32) * np.uint32(0x01000193)
    weight = net.lstms[0].weight_hh_l0
    with Runner(1) as runner:

        def loss() -> torch.Tensor:
            return net(inputs, static, cat, Dropout(0.3, keys), runner).sum() / 100

        net.zero_grad()
        loss().backward()
        assert weight.grad is not None
        for place in ((0, 0), (13, 4), (40, 9)):
            with torch.no_grad():
                weight[place] += 1e-2
                above = float(loss())
                weight[place] -= 2e-2
                below = float(loss())
                weight[place] += 1e-2
            assert float(weight.grad[place]) == pytest.approx((above - below) / 2e-2, rel=0.05, abs=2e-4)


def wanted(**given: Any) -> DeepARHyperparameters:
    needed = {"time_freq": "D", "prediction_length": 12, "context_length": 15, "epochs": 1, "likelihood": "deterministic-L1"}
    return parse(DeepARHyperparameters, {**needed, **given}, owner="deepar")


def test_forecasts_are_the_network_fed_with_its_own_answers() -> None:
    frequency, values = Frequency.parse("D"), np.abs(np.random.default_rng(0).normal(size=80)).astype(np.float32) + 1
    one = Series(np.datetime64("2024-01-05", "s"), values, np.array([2]), np.zeros((0, 80), np.float32))
    width = Prepared([one], frequency, 15, 12).width
    net = Network(width, len(frequency.lags()), [3], 4, 2, CELLS, "deterministic-L1", seed=1)
    with torch.no_grad():
        net.highway.weight.copy_(torch.linspace(-0.05, 0.05, net.lags)[None])
    begin = 60
    with Runner(2) as runner:
        found = Forecaster(net, wanted()).samples([one], [begin], 130, [5], runner)
    known = values.copy()
    for step in range(12):
        grown = Series(one.start, known, one.cat, one.dynamic_feat)
        window = Prepared([grown], frequency, 15, 12).windows(np.array([0]), np.array([begin]))
        with torch.no_grad(), Runner(1) as runner:
            answer = net(torch.from_numpy(window.inputs), *window.still(), Dropout(0.0, np.zeros(1, np.uint32)), runner)
        known[begin + step] = float(answer[15 + step, 0, 0]) * window.scale[0]
    np.testing.assert_allclose(found[0, 0], known[begin : begin + 12], rtol=1e-4)
    np.testing.assert_allclose(found[0], np.broadcast_to(found[0, 0], found[0].shape), rtol=1e-5)


def test_summaries_are_numpys() -> None:
    paths = np.random.default_rng(0).normal(size=(3, 17, 4)).astype(np.float32)
    with Runner(1) as runner:
        mean, of = summarised(paths, [0.1, 0.5, 0.93], runner)
    np.testing.assert_allclose(mean, paths.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(of, np.moveaxis(np.quantile(paths, [0.1, 0.5, 0.93], axis=1), 0, 1), atol=1e-6)
