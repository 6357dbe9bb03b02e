"""A random cut forest beyond the conformance suite: windows, streams, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401 - loads what sets variables before the test begins

from phalanx.algorithms.random_cut_forest.algorithm import RandomCutForest, RandomCutForestHyperparameters
from phalanx.algorithms.random_cut_forest.sample import Sample, Shingles, windows_of
from phalanx.contracts import Array, Collective
from phalanx.errors import UserError
from phalanx.model import Model, predict_file
from phalanx.parallel.threads import run_threads
from phalanx.testing.algorithm_checks import model_files
from phalanx.testing.sessions import MemorySession, Rows

WANTED = RandomCutForestHyperparameters(num_trees=50, num_samples_per_tree=32, shingle_size=4)


def wave(rows: int, seed: int = 0) -> Array:
    noise = np.random.default_rng(seed).normal(scale=0.1, size=(rows, 1))
    return (np.sin(np.arange(rows) / 5)[:, None] + noise).astype(np.float32)


def trained(wanted: RandomCutForestHyperparameters, rows: Array, folder: Path) -> RandomCutForest:
    model = RandomCutForest(wanted)
    model.fit(MemorySession({"train": Rows(rows).shard()}, folder, seed=3))
    return model


def test_windows_hold_the_rows_before_wherever_ranks_begin() -> None:
    rows = np.arange(60, dtype=np.float32).reshape(30, 2)
    cuts = [[0, 7, 7, 8, 12], [12, 12, 13, 29, 30]]  # two batches of four ranks; some have none, some fewer than a window

    def main(world: Collective) -> list[tuple[int, Array]]:
        shingles = Shingles(5, 2, parted=True)
        ends = [(batch[world.rank], batch[world.rank + 1]) for batch in cuts]
        return [shingles.of(world, first, rows[first:last]) for first, last in ends]

    found: dict[int, Array] = {}
    for parts in run_threads(4, main):
        for first, windows in parts:
            found |= {first + i: window for i, window in enumerate(windows)}
    assert sorted(found) == list(range(4, 30))
    for row, window in found.items():
        np.testing.assert_array_equal(window, rows[row - 4 : row + 1].ravel())


def test_the_sample_is_even() -> None:
    def main(world: Collective) -> Array:
        sample = Sample(500, 1, seed=2)
        for start in range(0, 20000, 1000):
            sample.offer(world, start, np.arange(start, start + 1000, dtype=np.float32)[:, None])
        return sample.rows[:, 0]

    (rows,) = run_threads(1, main)
    assert len(set(rows.tolist())) == 500
    counts = np.histogram(rows, bins=10, range=(0, 20000))[0]
    assert ((counts - 50) ** 2 / 50).sum() < 30  # chi squared, 9 degrees of freedom


def test_requests_may_be_rows_or_windows(tmp_path: Path) -> None:
    model, rows = trained(WANTED, wave(500), tmp_path), wave(40, seed=1)
    by_windows = model.predict(windows_of(rows, 4))["score"]
    by_rows = model.predict(rows)["score"]
    np.testing.assert_array_equal(by_rows[3:], by_windows)
    assert (by_rows[:3] == by_windows[0]).all()
    assert len(model.predict(rows[:2])["score"]) == 2
    assert len(model.predict(rows[:0])["score"]) == 0
    with pytest.raises(UserError, match=r"3 features.*rows of 1 or windows of 4"):
        model.predict(np.zeros((5, 3), np.float32))


def test_a_stream_finds_what_is_new_and_gets_used_to_it(tmp_path: Path) -> None:
    model = trained(WANTED, wave(2000), tmp_path)
    rows = wave(3000, seed=1)
    rows[1000:] += 3
    scores = model.update_and_score(rows)["score"]
    assert scores[:3].tolist() == [0, 0, 0]
    assert scores[1000:1010].min() > model.score_threshold
    assert (scores[100:1000] > model.score_threshold).mean() < 0.05
    assert scores[2500:].mean() < 0.6 * scores[1000:1010].mean()


def test_a_stream_goes_on_from_what_was_saved(tmp_path: Path) -> None:
    rows = wave(400)
    model = RandomCutForest.begin(WANTED, 1, seed=5)
    whole = model.update_and_score(rows)["score"]
    assert (whole[:11] == 0).all()  # 3 before the first window, 8 while the trees hold too little
    assert (whole[11:] > 0).all()
    parts = RandomCutForest.begin(WANTED, 1, seed=5)
    parts.threads = 2
    first = parts.update_and_score(rows[:123])["score"]
    model_files(parts, tmp_path / "model")
    again = RandomCutForest.load(tmp_path / "model")
    np.testing.assert_array_equal(np.concatenate([first, again.update_and_score(rows[123:])["score"]]), whole)
    assert model_files(again, tmp_path / "again") == model_files(model, tmp_path / "whole")


def test_attribution_of_a_stream_adds_up_and_names_the_row() -> None:
    wanted = RandomCutForestHyperparameters(num_trees=50, num_samples_per_tree=64, shingle_size=4, attribution=True)
    rows = wave(600)
    rows[500] = 6
    answers = RandomCutForest.begin(wanted, 1).update_and_score(rows)
    assert answers["attribution"].shape == (600, 4)
    np.testing.assert_allclose(answers["attribution"].sum(axis=1), answers["score"], rtol=1e-5)
    assert answers["attribution"][500].argmax() == 3
    assert answers["attribution"][502].argmax() == 1


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_fewer_rows_than_a_window_are_one_window(tmp_path: Path, columns: int) -> None:
    wanted = RandomCutForestHyperparameters(num_trees=50, num_samples_per_tree=32, shingle_size=4)
    rows = np.repeat(wave(200), columns, axis=1)
    model = RandomCutForest(wanted)
    model.fit(MemorySession({"train": Rows(rows).shard()}, tmp_path))
    for count in (1, 2, 4):  # a window of four equal parts; three rows before the second repeat the first
        scores = model.predict(rows[:count])["score"]
        first = model.predict(np.tile(rows[0], 4)[None])["score"]
        assert len(scores) == count
        assert count == 4 or scores[0] == first


def test_what_cannot_be_sampled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shingle_size=4 needs as many rows; channel 'train' has 3"):
        trained(WANTED, wave(3), tmp_path)
    with pytest.raises(UserError, match="magnitude 1e\\+31"):
        trained(WANTED, np.full((50, 1), 1e31, np.float32), tmp_path)
    model = trained(WANTED, wave(100), tmp_path)
    with pytest.raises(UserError, match="magnitude"):
        model.predict(np.full((5, 1), 2e30, np.float32))
    with pytest.raises(UserError, match="request 2: feature 1 is nan"):
        model.update_and_score(np.array([[0], [np.nan]], np.float32))


def test_labels_that_are_none_are_refused_by_every_rank(tmp_path: Path) -> None:
    label = np.zeros(100, np.float32)
    label[70] = 2

    def main(world: Collective) -> str:
        channels = {name: Rows(wave(100), label).shard(rank=world.rank, size=world.size) for name in ("train", "test")}
        with pytest.raises(UserError) as caught:
            RandomCutForest(WANTED).fit(MemorySession(channels, tmp_path, world=world))
        return str(caught.value)

    for message in run_threads(2, main):
        assert "channel 'test', row 71: the label is 2; 1 (an anomaly) or 0 is needed (or 1 or -1)" in message


def test_answers_are_called_scores(tmp_path: Path) -> None:
    learned = trained(WANTED, wave(100), tmp_path)
    (tmp_path / "rows.csv").write_text("0.1\n0.2\n9\n")
    model = Model("random_cut_forest", {}, learned)
    predict_file(model, str(tmp_path / "rows.csv"), str(tmp_path / "out"), content_type="text/csv", accept="application/json")
    answers = json.loads((tmp_path / "out").read_text())
    assert list(answers) == ["scores"]
    assert [list(answer) for answer in answers["scores"]] == [["score"]] * 3
