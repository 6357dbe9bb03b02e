"""Draw the pictures of the algorithms' pages, from data sets that scikit-learn brings along.

    python benchmarks/pictures.py [--folder docs/algorithms]

kmeans.svg: the ten centres of the digits. linear-learner.svg: scores of tumours by class, and the threshold that validation
chose. factorization-machines.svg: what pairs of pixels add where the question is whether a digit is even. The forest's
picture is drawn by `forest.py --picture`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

import phalanx.algorithms.factorization_machines.algorithm as machines
import phalanx.algorithms.kmeans.algorithm as clusters
import phalanx.algorithms.linear_learner.algorithm as lines
from phalanx import hyperparameters
from phalanx.contracts import Array, Session
from phalanx.data.memory import array_shard
from phalanx.testing.sessions import MemorySession

BLUE, RED, GREY = "#44607c", "#b03020", "#8a8f98"
COLOURS = [GREY, "#d09a3a", "#5b8f5b", BLUE]


def trained(kind: Any, parts: dict[str, tuple[Array, Array | None]], **settings: object) -> Any:
    """Return a model of class `kind` that learnt from channels of (features, labels)."""
    model = kind(hyperparameters.parse(kind.Hyperparameters, settings, owner=kind.__name__))
    with tempfile.TemporaryDirectory() as folder:
        shards = {name: array_shard(features.astype(np.float32), label) for name, (features, label) in parts.items()}
        session: Session = MemorySession(shards, Path(folder))
        model.fit(session)
    return model


def drawing(width: int, height: int, parts: list[str]) -> str:
    """Return an SVG on white."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def words(x: float, y: float, text: str, anchor: str = "start", colour: str = "#222") -> str:
    """Return a line of text."""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'


def centres() -> str:
    """Draw the centres of ten clusters of digits as pictures, with the digit that most of their rows are."""
    digits = load_digits()
    model = trained(clusters.KMeans, {"train": (digits.data, None)}, k=10, solver="lloyd")
    found = model.predict(digits.data)["closest_cluster"].astype(int)
    counts = np.array([np.bincount(digits.target[found == number], minlength=10) for number in range(10)])
    parts = [
        words(10, 18, "1,797 digits of 8 x 8 pixels: the centres of ten clusters, their rows, and the digit most of them are")
    ]
    for place, number in enumerate(np.argsort(counts.argmax(axis=1), kind="stable")):
        left, top = 10 + 88 * place, 32
        for shade in range(0, 255, 17):  # a path for all pixels of one grey
            pixels = np.flatnonzero(np.rint(15 - model.centers[number] * 15 / 16) * 17 == shade)
            path = "".join(f"M{left + i % 8 * 10} {top + i // 8 * 10}h10v10h-10z" for i in pixels)
            parts += [f'<path d="{path}" fill="rgb({shade},{shade},{shade})"/>'] * bool(path)
        parts.append(f'<rect x="{left}" y="{top}" width="80" height="80" fill="none" stroke="{GREY}"/>')
        share = counts[number].max() / counts[number].sum()
        parts.append(words(left + 40, 130, f"{counts[number].sum()} rows", "middle"))
        parts.append(words(left + 40, 147, f"{share:.0%} are {counts[number].argmax()}", "middle"))
    return drawing(890, 158, parts)


def threshold() -> str:
    """Draw scores of tumours held out by their class, and the threshold of the model."""
    data = load_breast_cancer()
    malignant = (data.target == 0).astype(np.float32)
    fold = np.random.default_rng(0).permutation(len(malignant)) % 5
    parts = {"train": fold < 3, "validation": fold == 3, "test": fold == 4}
    channels = {name: (data.data[where], malignant[where]) for name, where in parts.items()}
    model = trained(lines.LinearLearner, channels, predictor_type="binary_classifier")
    rows, label = channels["test"]
    score = model.predict(rows.astype(np.float32))["score"].astype(np.float64)
    left, right, width = 110, 870, 38
    found = [words(10, 18, f"{len(label)} tumours held out: the score of each, and the threshold that validation chose")]
    generator = np.random.default_rng(1)
    for name, value, colour, middle in (("malignant", 1, RED, 65), ("benign", 0, BLUE, 135)):
        found.append(words(left - 14, middle + 4, name, "end", colour))
        for x in score[label == value]:
            y = middle + generator.uniform(-width / 2, width / 2)
            found.append(
                f'<circle cx="{left + (right - left) * x:.0f}" cy="{y:.0f}" r="3" fill="{colour}" fill-opacity="0.5"/>'
            )
    at = left + (right - left) * model.threshold
    right_ones = int(((score >= model.threshold) == (label > 0)).sum())
    found.append(f'<line x1="{at:.0f}" y1="34" x2="{at:.0f}" y2="166" stroke="#222" stroke-dasharray="4 3"/>')
    found.append(words(at + 6, 104, f"threshold {model.threshold:.2f}: {right_ones} of {len(label)} are right"))
    found += [f'<line x1="{left}" y1="166" x2="{right}" y2="166" stroke="{GREY}"/>']
    found += [words(left + (right - left) * x, 182, f"{x:g}", "middle") for x in (0, 0.25, 0.5, 0.75, 1)]
    return drawing(890, 190, found)


def pairs() -> str:
    """Draw how often models of pixels know whether a digit is even, by the length of the factors."""
    digits = load_digits()
    even = (digits.target % 2 == 0).astype(np.float32)
    test = np.random.default_rng(0).permutation(len(even)) % 4 == 0
    rows = digits.data / 16
    line = trained(lines.LinearLearner, {"train": (rows[~test], even[~test])}, predictor_type="binary_classifier")
    right = [("linear_learner", _right(line, rows[test], even[test]))]
    for factors in (2, 8, 32):
        model = trained(
            machines.FactorizationMachines, {"train": (rows[~test], even[~test])},
            predictor_type="binary_classifier", num_factors=factors, factors_wd=0.001,
        )  # fmt: skip
        right.append((f"num_factors={factors}", _right(model, rows[test], even[test])))
    found = [words(10, 18, f"Is a digit even? {test.sum()} digits held out: share of right answers, from 64 pixels")]
    for place, (name, share) in enumerate(right):
        top, length = 32 + 30 * place, 640 * (share - 0.5) / 0.5
        found.append(words(130, top + 15, name, "end"))
        found.append(f'<rect x="140" y="{top}" width="{length:.0f}" height="20" fill="{COLOURS[place]}"/>')
        found.append(words(146 + length, top + 15, f"{share:.1%}"))
    found += [words(140 + 640 * (x - 0.5) / 0.5, 168, f"{x:.0%}", "middle", GREY) for x in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    return drawing(890, 178, found)


def _right(model: Any, rows: Array, label: Array) -> float:
    return float((model.predict(rows.astype(np.float32))["predicted_label"] == label).mean())


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("docs/algorithms"))
    folder = parser.parse_args().folder
    for name, draw in (("kmeans", centres), ("linear-learner", threshold), ("factorization-machines", pairs)):
        (folder / f"{name}.svg").write_text(draw(), encoding="utf-8")
        print(folder / f"{name}.svg")


if __name__ == "__main__":
    main()
