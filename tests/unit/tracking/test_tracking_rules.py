"""Every rule fires on what it is for, and is silent on a run that goes well."""

from __future__ import annotations

import json
import math
import random
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from phalanx.contracts import Event
from phalanx.errors import UserError
from phalanx.tracking.rules import RULES, observations, rules_of, table
from phalanx.tracking.rules.seen import Labels, Seen, Step, Tensors, Tick, Trees, Window
from phalanx.tracking.watching import RuleWatch

Metrics = Mapping[str, float | None]
WEIGHT: dict[str, Any] = {"axes": 2, "zero": 0.0, "nan": 0, "inf": 0, "std": 0.05, "scale": 0.33}
WEIGHT |= {"alike": False, "norm": 2.0, "change": 0.004, "same": False}
GRADIENT = {"axes": 2, "mean_abs": 1e-3, "zero": 0.1, "spread": 0.01, "nan": 0, "inf": 0}
ACTIVATION = {"kind": "relu", "active": [i / 100 for i in range(101)], "units": 64, "zero": 0.5}
WINDOW = Window(
    0, 2, 0, 12, 10, compute=0.8, data=0.05, loading=0.05, communication=0.1, stall=0.0, cpu=100.0, gpu=90.0, gpu_memory=40.0
)


def _steps(run: Iterable[Metrics], seconds: float = 1.0, **goals: str) -> list[Seen]:
    return [Step(step, step * seconds, metrics, goals) for step, metrics in enumerate(run, 1)]


def _looks(
    number: int = 4, weight: Mapping[str, Any] | None = None, gradient: Mapping[str, Any] | None = None, active: Any = None
) -> list[Seen]:
    weights = {"layer.weight": {**WEIGHT, **(weight or {})}, "head.weight": WEIGHT}
    gradients = {"layer.weight": {**GRADIENT, **(gradient or {})}, "head.weight": GRADIENT}
    return [Tensors(10 * i + 1, 0, gradients, weights, {"layer.relu": {**ACTIVATION, **(active or {})}}) for i in range(number)]


def _pair(train: Iterable[float], validation: Iterable[float]) -> list[Seen]:
    return _steps([{"train:loss": t, "validation:loss": v} for t, v in zip(train, validation, strict=True)])


def _windows(number: int, *ranks: Window) -> list[Seen]:
    return [
        replace(window, slot=slot, rank=rank, size=len(ranks)) for slot in range(number) for rank, window in enumerate(ranks)
    ]


def _good() -> list[Seen]:
    """A noisy loss that comes down and then stands still, and all that goes with it when all is well."""
    draw = random.Random(1)
    losses = [0.2 + math.exp(-step / 30) + 0.05 * draw.gauss(0, 1) for step in range(400)]
    runs: list[Metrics] = [
        {
            "train:loss": v,
            "train:grad_norm": abs(v),
            "train:msd": v + 1,
            **({"validation:loss": v + 0.1} if i % 10 == 0 else {}),
        }
        for i, v in enumerate(losses)
    ]
    steps = [replace(s, time=s.time + (5 if s.step % 100 == 0 else 0)) for s in _steps(runs) if isinstance(s, Step)]
    confusion = [[80, 15, 5], [6, 90, 4], [0, 10, 90]]
    used = {f"f{i}": 20.0 + i for i in range(12)}
    found: list[Seen] = [*steps, *_looks(20)]
    found += [Labels(step, ["a", "b", "c"], confusion) for step in range(1, 30)]
    found += [Trees(step, used, 12, 6, 40.0, 1000) for step in range(1, 30)]
    found += _windows(2000, WINDOW, replace(WINDOW, compute=0.7, communication=0.2), WINDOW)
    found += [Tick(float(t), 0.0, float(t - 1) if t > 60 else None) for t in range(500)]
    return found


FLAT = _steps([{"train:loss": 0.7}] * 60)
BAD: dict[str, list[Seen]] = {
    "all_zero": _looks(3, gradient={"zero": 1.0}),
    "class_imbalance": [Labels(1, ["no", "yes"], [[900, 5], [10, 20]])],
    "confusion": [Labels(1, ["cat", "dog"], [[20, 180], [10, 290]], final=True)],
    "cpu_bottleneck": _windows(100, replace(WINDOW, compute=0.05, loading=0.95, data=0.0, communication=0.0, gpu=None)),
    "dead_relu": _looks(1, active={"active": [0.0] * 80 + [0.4] * 21}),
    "exploding_tensor": _steps([{"train:loss": 1.0}, {"train:loss": None}]),
    "feature_importance_overweight": [Trees(9, {"a": 90.0, "b": 60.0, "c": 60.0, "d": 20.0}, 20, 6, 40.0, 1000)],
    "gpu_memory_increase": [replace(WINDOW, slot=i, gpu_memory=20 + i / 60) for i in range(2000)],
    "io_bottleneck": _windows(100, replace(WINDOW, compute=0.2, data=0.8, loading=0.0, communication=0.0, gpu=None)),
    "load_balancing": _windows(
        20, replace(WINDOW, compute=0.3, communication=0.6), replace(WINDOW, compute=0.9, communication=0.0)
    ),
    "loss_not_decreasing": _steps([{"train:loss": 1.0 + step / 10} for step in range(30)]),
    "low_gpu_utilization": [replace(WINDOW, slot=i, gpu=30.0) for i in range(1100)],
    "max_initialization_time": [Tick(0.0, 0.0, None), Tick(1201.0, 0.0, None)],
    "overfit": _pair([1 / step for step in range(1, 20)], [abs(step - 5) / 5 + 1.5 for step in range(1, 20)]),
    "overtraining": _pair([1.0] * 20, [1.0, *[1.2] * 19]),
    "poor_weight_initialization": [*_looks(1, weight={"alike": True}), *FLAT],
    "saturated_activation": _looks(1, active={"kind": "tanh", "active": [0.0] * 101}),
    "stalled_training": [Tick(100.0, 0.0, 90.0), Tick(1891.0, 0.0, 90.0)],
    "step_outlier": [Step(i, i * 0.1 + (i // 20) * 2.0, {}) for i in range(1, 400)],
    "tensor_variance": _looks(1, weight={"std": 3.0}),
    "tree_depth": [Trees(9, {}, 20, 15, 700.0, 1000)],
    "unchanged_tensor": _looks(3, weight={"same": True}),
    "vanishing_gradient": _looks(3, gradient={"mean_abs": 1e-9}),
    "weight_update_ratio": _looks(1, weight={"change": 50.0}),
}
GIVEN = {"tensor_variance": "tensor_variance:max_threshold=4"}


def _fires(text: str, run: Sequence[Seen]) -> tuple[int, str] | None:
    """Return at which thing seen, counted from 1, and what it says."""
    rule = rules_of([text])[0].rule
    for number, seen in enumerate(run, 1):
        said = rule.see(seen) if type(seen) in rule.sees else None
        if said is not None:
            return number, said
    return None


@pytest.mark.parametrize("name", RULES)
def test_fires(name: str) -> None:
    assert _fires(GIVEN.get(name, name), BAD[name]) is not None


@pytest.mark.parametrize("name", RULES)
def test_is_silent(name: str) -> None:
    assert _fires(GIVEN.get(name, name), _good()) is None


def test_a_loss_that_stands_still_from_the_start() -> None:
    assert (_fires("loss_not_decreasing", FLAT) or (0,))[0] == 50
    assert (_fires("loss_not_decreasing:num_steps=2", FLAT) or (0,))[0] == 10


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_hide_that_a_loss_stands(seed: int) -> None:
    draw = random.Random(seed)
    stands = [{"train:loss": 2.3 + 0.02 * draw.gauss(0, 1)} for _ in range(800)]
    found = _fires("loss_not_decreasing", _steps(stands))
    assert found is not None
    assert found[0] <= 400
    drifts = [{"train:loss": 2.3 + step / 4000 + 0.05 * draw.gauss(0, 1)} for step in range(800)]
    assert _fires("loss_not_decreasing", _steps(drifts)) is not None
    slow = [{"train:loss": 2.3 - step / 4000 + 0.05 * draw.gauss(0, 1)} for step in range(800)]
    assert _fires("loss_not_decreasing", _steps(slow)) is None
    quick = [{"train:loss": 2.3 * 0.2**step + 0.1 + 0.01 * draw.gauss(0, 1)} for step in range(800)]
    assert _fires("loss_not_decreasing", _steps(quick)) is None


def test_a_job_that_goes_on_need_not_come_down_again() -> None:
    went_on = [Step(step, float(step), {"train:loss": 0.1}) for step in range(501, 900)]
    assert _fires("loss_not_decreasing", went_on) is None
    rises = [Step(step, float(step), {"train:loss": 0.1 + step / 1000}) for step in range(501, 900)]
    assert _fires("loss_not_decreasing", rises) is not None


def test_noise_is_no_rise() -> None:
    draw = random.Random(3)
    noisy = _steps([{"train:loss": 1 - step / 4000 + 0.3 * draw.gauss(0, 1)} for step in range(2000)])
    assert _fires("loss_not_decreasing", noisy) is None
    rising = _steps([{"train:loss": 1 + step / 200 + 0.3 * draw.gauss(0, 1)} for step in range(2000)])
    assert _fires("loss_not_decreasing", rising) is not None


@pytest.mark.parametrize("name", ["msd", "rmse", "logloss", "objective_loss", "cross_entropy", "nll", "mae"])
def test_a_loss_is_known_by_its_name(name: str) -> None:
    assert _fires("loss_not_decreasing", _steps([{f"train:{name}": 0.7}] * 60)) is not None
    assert _fires("exploding_tensor", _steps([{f"train:{name}": None}])) is not None


@pytest.mark.parametrize("name", ["accuracy", "sampled_rows", "learning_rate", "seconds", "error"])
def test_other_metrics_are_no_losses(name: str) -> None:
    assert _fires("loss_not_decreasing", _steps([{f"train:{name}": 0.7}] * 60)) is None


def test_a_metric_that_should_rise_is_watched_as_it_is_declared() -> None:
    run = [{"train:auc": 0.5 + i / 50, "validation:auc": 0.9 - i / 40} for i in range(20)]
    assert _fires("overfit", _steps(run)) is None
    found = _fires("overfit", _steps(run, auc="maximize"))
    assert found is not None
    assert "validation:auc went from 0.9 to 0." in found[1]


def test_where_validation_reports_a_loss_shares_of_rows_are_not_judged() -> None:
    jumps = [
        {"train:loss": 0.5, "validation:loss": 1 / i, "validation:accuracy": 0.8 if i == 3 else 0.76} for i in range(1, 40)
    ]
    assert _fires("overtraining", _steps(jumps, accuracy="maximize")) is None
    alone = [{"train:loss": 0.5, "validation:accuracy": 0.8 if i == 3 else 0.76} for i in range(1, 40)]
    assert _fires("overtraining", _steps(alone, accuracy="maximize")) is not None


def test_metrics_are_known_however_they_are_written() -> None:
    run = [{"train_loss": 1 / i} if odd else {"val_loss": abs(i - 5) + 1.5} for i in range(1, 20) for odd in (True, False)]
    assert _fires("overfit", _steps(run)) is not None
    assert _fires("exploding_tensor", _steps([{"loss": None}])) is not None
    assert _fires("loss_not_decreasing", _steps([{"test:loss": 1.0}] * 60)) is None


def test_a_printed_metric_is_watched_too(tmp_path: Path) -> None:
    told: list[str] = []
    watch = RuleWatch(["loss_not_decreasing"], tmp_path, told.append, told.append)
    for step in range(1, 60):
        watch.printed("train:nll", step, float(step), 2.0)
    assert len(told) == 1


def test_a_loss_that_grows_beyond_measure_explodes_before_it_is_infinite() -> None:
    assert _fires("exploding_tensor", _steps([{"train:loss": 3.0**i} for i in range(30)])) is not None
    assert _fires("exploding_tensor:only_nan=true", _steps([{"train:loss": 3.0**i} for i in range(30)])) is None
    assert _fires("exploding_tensor", _looks(1, gradient={"inf": 3})) is not None
    assert _fires("exploding_tensor:only_nan=true", _looks(1, gradient={"inf": 3})) is None


def test_what_is_no_number_is_neither_0_nor_small() -> None:
    weight = {"nan": 9, "change": -1e300, "norm": 0.0, "std": 0.0}
    exploded = _looks(9, weight=weight, gradient={"nan": 9, "mean_abs": 0.0, "zero": 0.0})
    assert _fires("exploding_tensor", exploded) is not None
    assert _fires("vanishing_gradient", exploded) is None
    assert _fires("weight_update_ratio", exploded) is None


def test_half_a_layer_may_be_idle_at_the_start() -> None:
    some = {"active": [0.0] * 62 + [0.5] * 39}
    assert _fires("dead_relu", _looks(9, active=some)) is None
    found = _fires("dead_relu", _looks(20, active=some))
    assert found is not None
    assert found[0] == 11
    assert _fires("dead_relu", [*_looks(9, active=some), *(replace(look, step=95) for look in _looks(1)),
                                *(replace(look, step=look.step + 100) for look in _looks(9, active=some))]) is None  # fmt: skip
    assert _fires("dead_relu", _looks(1, active={"active": [0.0] * 80 + [0.5] * 21})) is not None
    assert _fires("dead_relu", _looks(1, active={"active": [0.0] * 80 + [0.5] * 21, "units": 8})) is None


def test_gradients_may_vanish_where_the_loss_has() -> None:
    run = [*_steps([{"train:loss": 1.0}, {"train:loss": 1e-6}]), *_looks(5, gradient={"mean_abs": 1e-9})]
    assert _fires("vanishing_gradient", run) is None
    assert _fires("vanishing_gradient", _steps([{"train:grad_norm": 1e-9}] * 10)) is not None


def test_poor_weights_are_no_matter_where_the_loss_comes_down() -> None:
    poor = _looks(1, weight={"scale": 1e-6})
    assert _fires("poor_weight_initialization", [*poor, *_steps([{"train:loss": 1 / i} for i in range(1, 90)])]) is None
    found = _fires("poor_weight_initialization", [*poor, *FLAT])
    assert found is not None
    assert "times as spread" in found[1]


def test_a_validation_loss_that_rises_on_its_way_down_is_no_overfitting() -> None:
    train = [4652, 3167, 3261, 3187, 2994, 2780, 2788, 2771, 2735, 2699]
    held_out = [3503.8, 4196.2, 4600.6, 3997.8, 3496.5, 3281.9, 3230.1, 3218.2, 3221.9, 3218.2]
    assert _fires("overfit", _pair(train, held_out)) is None
    found = _fires("overfit", _pair([4652, 3167, 3261, 2987, 2500], [3503.8, 4196.2, 4600.6, 4700, 4800]))
    assert found is not None
    assert found[0] == 4


def test_trees_that_do_better_on_other_rows_are_not_too_deep() -> None:
    def run(held_out: Sequence[float]) -> list[Seen]:
        return [
            seen
            for step, value in enumerate(held_out, 1)
            for seen in (Step(step, step, {"validation:rmse": value}), Trees(step, {}, 20, 15, 700.0, 1000))
        ]

    assert _fires("tree_depth", run([1 / step for step in range(1, 40)])) is None
    assert _fires("tree_depth", run([abs(step - 4) + 1.0 for step in range(40)])) is not None


def test_the_slow_rank_is_named_also_among_three() -> None:
    fast, slow = replace(WINDOW, compute=0.2, communication=0.7), replace(WINDOW, compute=0.9, communication=0.0)
    found = _fires("load_balancing", _windows(24, fast, fast, slow))
    assert found is not None
    assert found[1].startswith("rank 2 is slow")
    assert _fires("load_balancing:patience=40", _windows(12, fast, fast, slow)) is None
    assert _fires("load_balancing", _windows(24, fast, replace(slow, stall=0.3))) is None
    assert (
        _fires("load_balancing", _windows(24, replace(fast, step=4), replace(slow, step=4))) is None
    )  # it may load or compile


def test_a_rare_class_that_is_hardly_recognised() -> None:
    def fires(rule: str, missed: int) -> bool:
        return _fires(rule, [Labels(1, ["a", "b"], [[400, 0], [missed, 100 - missed]], final=True)]) is not None

    assert fires("class_imbalance", 90)
    assert not fires("class_imbalance", 10)
    assert fires("confusion:dominance=0", 30)
    assert not fires("confusion", 30)


def test_classes_are_judged_when_learning_has_come_to_an_end() -> None:
    def run(right: Iterable[int]) -> list[Seen]:
        return [Labels(step, ["a", "b"], [[300, 0], [200 - n, n]]) for step, n in enumerate(right)]

    assert _fires("confusion", run([4 * n for n in range(40)])) is None  # learns to the end
    found = _fires("confusion", run([min(60, 10 * n) for n in range(40)]))  # learns no longer
    assert found is not None
    assert 10 <= found[0] <= 20


def test_counts_come_together_over_looks() -> None:
    looks: list[Seen] = [
        Labels(i, ["no", "yes"] if i % 2 else ["no"], [[90, 1], [1, 1]] if i % 2 else [[90]]) for i in range(1, 8)
    ]
    assert _fires("class_imbalance", looks) is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("overfitt", "overfit"),
        ("overfit:ratio=1", "ratio_threshold"),
        ("overfit:patience=x", "number"),
        ("overfit:action=mail", "warn or stop"),
        ("loss_not_decreasing:num_steps=0", "too small"),
        ("overfit:every=3", "statistics"),
        ("dead_relu:every=0", "too small"),
        ("overfit:webhook=example.org", "http"),
        ("overfit:command=", "empty"),
        ("overfit:command='a", "cannot be read"),
        ("all:patience=3", "patience"),
        ("exploding_tensor:only_nan=2", "true or false"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        rules_of([text])


def test_all_stands_for_every_rule_that_was_not_given() -> None:
    given = rules_of(["overfit:patience=7", "all:action=stop"])
    assert sorted(each.name for each in given) == sorted(RULES)
    assert [each.actions.stop for each in given] == [each.name != "overfit" for each in given]
    assert observations(given)["kinds"] == ["labels", "tensors", "trees", "windows"]
    assert observations(rules_of(["overfit"])) == {}
    wanted = observations(rules_of(["saturated_activation:threshold_tanh_min=-3,every=20", "unchanged_tensor:every=5"]))
    assert wanted == {
        "kinds": ["tensors"],
        "every": 5,
        "measure": {"tanh": [-3.0, 9.4999], "sigmoid": [-23.0, 16.99999], "unchanged": [1e-5, 1e-8]},
    }


def test_the_document_has_every_rule_as_it_is() -> None:
    document = (Path(__file__).parents[3] / "docs" / "tracking.md").read_text(encoding="utf-8")
    for name, watches, parameters in table():
        shown = f"| `{name}` | {watches} | {', '.join(f'`{p}`' for p in parameters.split(', ') if p)} |"
        assert shown in document, shown


def test_a_finding_is_written_once_told_and_stops(tmp_path: Path) -> None:
    told: list[str] = []
    stopped: list[str] = []
    watch = RuleWatch(["exploding_tensor:action=stop", "overfit"], tmp_path, told.append, stopped.append)
    watch.step(1, {"train:loss": 1.0})
    watch.failed(1, "worker 0: the loss is nan: look at the learning rate")
    watch.step(3, {"train:loss": None})
    lines = [json.loads(line) for line in (tmp_path / "findings.jsonl").read_text().splitlines()]
    assert [(line["rule"], line["step"], line["action"]) for line in lines] == [("exploding_tensor", 2, "stop")]
    assert len(told) == 1
    assert len(stopped) == 1


def test_what_workers_observe_reaches_the_rules(tmp_path: Path) -> None:
    told: list[str] = []
    watch = RuleWatch(["tree_depth:rows_per_leaf=0", "dead_relu"], tmp_path, told.append, told.append)
    seen = {"step": 3, "importance": {}, "columns": 4, "depth": 9, "leaves": 8.0, "rows": 100}
    watch.event(Event(0, 1.0, {"kind": "observed", "what": "trees", "seen": seen}))
    seen = {
        "step": 5,
        "rank": 1,
        "gradients": {},
        "weights": {},
        "activations": {"r": {"kind": "relu", "active": [0.0], "units": 64, "zero": 1.0}},
    }
    watch.event(Event(1, 1.0, {"kind": "observed", "what": "tensors", "seen": seen}))
    assert [text.partition(":")[0] for text in told] == ["rule tree_depth, step 3", "rule dead_relu, step 5"]


def test_steps_that_are_done_again_and_evaluations_are_no_outliers(tmp_path: Path) -> None:
    told: list[str] = []
    watch = RuleWatch(["step_outlier"], tmp_path, told.append, told.append)
    when = 0.0
    for step in range(1, 400):
        long = step % 20 == 0
        when += 3.0 if long else 0.1
        if step % 40 == 0:
            watch.event(Event(0, when, {"kind": "saved", "step": step}))
        metrics = {"validation:loss": 1.0} if long and step % 40 else {}
        watch.event(Event(0, when, {"kind": "step", "step": step, "time": when, "metrics": metrics}))
        watch.event(Event(0, when, {"kind": "step", "step": step, "time": when, "metrics": metrics}))
    assert told == []


def test_a_job_that_stands_still_is_noticed_by_the_clock(tmp_path: Path) -> None:
    now, told = [0.0], threading.Event()
    texts: list[str] = []

    def warn(text: str) -> None:
        texts.append(text)
        told.set()

    watch = RuleWatch(["stalled_training:threshold=10"], tmp_path, warn, warn, clock=lambda: now[0])
    with watch:
        watch.step(1, {})
        now[0] = 30.0
        assert told.wait(30)
    assert texts == ["rule stalled_training, step 1: there has been no step for 30 seconds"]


def test_a_webhook_and_a_command_get_the_finding(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    copy = f"import sys; open({str(tmp_path / 'copy')!r}, 'w').write(sys.stdin.read())"
    told: list[str] = []
    try:
        given = f'exploding_tensor:webhook=http://127.0.0.1:{server.server_port}/x,command={sys.executable} -c "{copy}"'
        watch = RuleWatch([given], tmp_path, told.append, told.append)
        watch.step(4, {"train:loss": None})
        watch.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert json.loads(bodies[0])["rule"] == "exploding_tensor"
    assert json.loads((tmp_path / "copy").read_text()) == json.loads(bodies[0])
    assert json.loads(bodies[0])["action"] == "webhook,command"
    assert told == ["rule exploding_tensor, step 4: train:loss is no finite number"]


def test_an_action_that_fails_is_told_and_no_more(tmp_path: Path) -> None:
    told: list[str] = []
    given = ["exploding_tensor:webhook=http://127.0.0.1:9/x", f"overfit:command={sys.executable} -c 'raise SystemExit(3)'"]
    watch = RuleWatch(given, tmp_path, told.append, told.append)
    watch.step(4, {"train:loss": None})
    for i, seen in enumerate(BAD["overfit"], 5):
        assert isinstance(seen, Step)
        watch.step(i, seen.metrics)
    watch.close()
    assert any("was not reached" in text for text in told)
    assert any("ended with 3" in text for text in told)
