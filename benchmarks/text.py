"""BlazingText side by side with fastText and gensim: words a second, quality, memory; and classification.

    python benchmarks/text.py --data DIR --part batch_skipgram

`DIR` holds `wiki/wiki17m.txt.xz` (one paragraph a line, lower-case words; extracted Wikipedia text of the repository
jason-feng/wikiVisual), `wordsim/wordsim353.tsv` and `wordsim/questions-words.txt` (among gensim's test data), and
`20news/train.txt.xz`, `20news/test.txt.xz` (20 newsgroups by date, a line a document: `__label__X words`). Every side
learns in a process of its own with the same settings (dimension 100, window 5, 5 negatives, 1e-4, rate 0.05, words that
occur 5 times); seconds are those from the open file to the vectors, reading and vocabulary included, libraries loaded
and kernels compiled before. The fastest of the rounds counts, quality is their mean. fastText (`pip install fasttext-
wheel`) and gensim run where they are installed. `--workers 2` runs Phalanx on one worker with all threads as well as on two
processes that share them, and prints how much of the one's speed the others have.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common import machine, table, versions
from phalanx.contracts import Array

SIDES = {
    "batch_skipgram": ("phalanx", "fasttext", "gensim"),
    "skipgram": ("phalanx", "fasttext", "gensim"),
    "cbow": ("phalanx", "fasttext", "gensim"),
    "supervised": ("phalanx", "fasttext"),
}
HEADERS = ["part", "epochs", "side", "s", "1000 words/s", "WS-353", "sd", "analogies", "peak MiB"]
LABEL_HEADERS = ["part", "epochs", "side", "s", "examples/s", "P@1", "sd", "peak MiB"]
DIMENSION, WINDOW, NEGATIVES, THRESHOLD, MIN_COUNT, RATE = 100, 5, 5, 1e-4, 5, 0.05


def ours(folder: Path, mode: str, options: argparse.Namespace) -> tuple[float, Any]:
    """Train Phalanx; return seconds and the model."""
    from phalanx import hyperparameters
    from phalanx.algorithms.blazingtext.algorithm import BlazingText
    from phalanx.algorithms.kernels import blazingtext, labels
    from phalanx.data.channel import Channel
    from phalanx.data.shard import open_shard
    from phalanx.parallel.collective import Solo
    from phalanx.testing.sessions import MemorySession

    _ = blazingtext, labels  # compiled when they are loaded
    given: dict[str, Any] = {"mode": mode, "epochs": options.epochs, **settings(mode)}
    given |= dict(pair.split("=", 1) for pair in options.set)
    wanted = hyperparameters.parse(BlazingText.Hyperparameters, given, owner="blazingtext")
    world: Any = Solo()
    if "RANK" in os.environ:  # torch is not loaded for one worker: its memory is none of the algorithm's
        from phalanx.parallel.process_group import world_of_environment

        world = world_of_environment()
    world.barrier(timeout_s=600)
    begun = time.perf_counter()
    shard = open_shard(
        "train",
        Channel(str(folder / "train.txt"), content_type="text/plain"),
        rank=world.rank,
        size=world.size,
        seed=options.seed,
        gather=world.all_gather,
        scratch=folder / "scratch",
        columns=None,
        index_base=1,
        threads=1,
    )
    model = BlazingText(wanted)
    threads = max(options.threads // world.size, 1)
    model.fit(MemorySession({"train": shard}, folder, world=world, seed=options.seed, threads=threads))
    shard.close()
    seconds = time.perf_counter() - begun
    world.close()
    return seconds, model


def settings(mode: str) -> dict[str, Any]:
    """Return what both kinds of mode are given."""
    if mode == "supervised":
        return {"learning_rate": 1.0, "word_ngrams": 1, "min_count": 1, "vector_dim": DIMENSION}
    return {"learning_rate": RATE, "min_count": MIN_COUNT, "vector_dim": DIMENSION, "sampling_threshold": THRESHOLD}


def one_side(options: argparse.Namespace) -> dict[str, float]:
    """Run one side in this process."""
    folder, mode, side = Path(options.folder), options.part, options.side
    text = str(folder / "train.txt")
    by_class = mode == "supervised"
    found = classified(folder, side, text, options) if by_class else vectors(folder, side, text, mode, options)
    return found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def vectors(folder: Path, side: str, text: str, mode: str, options: argparse.Namespace) -> dict[str, float]:
    """Learn word vectors; return seconds, words and quality."""
    sg = "cbow" if mode == "cbow" else "skipgram"
    if side == "phalanx":
        seconds, model = ours(folder, mode, options)
        inner = model._model
        names = [word.decode() for word in inner.vocabulary.words]
        rows, words = inner.vectors(), int(inner.vocabulary.counts.sum())
    elif side == "fasttext":
        import fasttext

        begun = time.perf_counter()
        trained = fasttext.train_unsupervised(
            text,
            model=sg,
            dim=DIMENSION,
            ws=WINDOW,
            neg=NEGATIVES,
            t=THRESHOLD,
            minCount=MIN_COUNT,
            lr=RATE,
            epoch=options.epochs,
            maxn=0,
            thread=options.threads,
            verbose=0,
        )
        seconds = time.perf_counter() - begun
        names, counts = trained.get_words(include_freq=True)
        rows = np.array(trained.get_input_matrix())[: len(names)]
        words = int(sum(counts))
    else:
        from gensim.models import Word2Vec

        begun = time.perf_counter()
        model = Word2Vec(
            corpus_file=text,
            vector_size=DIMENSION,
            window=WINDOW,
            negative=NEGATIVES,
            sample=THRESHOLD,
            min_count=MIN_COUNT,
            alpha=RATE,
            sg=int(sg == "skipgram"),
            epochs=options.epochs,
            workers=options.threads,
            seed=options.seed + 1,
        )
        seconds = time.perf_counter() - begun
        names, rows = model.wv.index_to_key, model.wv.vectors
        words = int(sum(model.wv.get_vecattr(name, "count") for name in names))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    quality = {"rho": similarity(names, rows, Path(options.data)), "analogies": analogies(names, rows, Path(options.data))}
    return {"s": seconds, "words": words * options.epochs, "peak_learning": peak, **quality}


def classified(folder: Path, side: str, text: str, options: argparse.Namespace) -> dict[str, float]:
    """Learn to classify; return seconds, examples and the share of right answers."""
    with (folder / "train.txt").open(encoding="utf-8") as file:
        count = sum(1 for _ in file)
    with (folder / "test.txt").open(encoding="utf-8") as file:
        test = [line.strip().partition(" ") for line in file]
    truth, texts = [line[0] for line in test], [line[2] for line in test]
    if side == "phalanx":
        seconds, model = ours(folder, "supervised", options)
        answers = model.classify(texts)["label"][:, 0].tolist()
    else:
        import fasttext

        begun = time.perf_counter()
        trained = fasttext.train_supervised(
            text, lr=1.0, epoch=options.epochs, wordNgrams=1, dim=DIMENSION, minCount=1, thread=options.threads, verbose=0
        )
        seconds = time.perf_counter() - begun
        answers = [labels[0] for labels in trained.predict(texts)[0]]
    right = sum(a == b for a, b in zip(answers, truth, strict=True)) / len(truth)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"s": seconds, "examples": count * options.epochs, "right": right, "peak_learning": peak}


def similarity(names: Sequence[str], rows: Array, data: Path) -> float:
    """Return the rank correlation with WS-353."""
    from scipy.stats import spearmanr

    at = {name: number for number, name in enumerate(names)}
    directions = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    with (data / "wordsim" / "wordsim353.tsv").open(encoding="utf-8") as file:
        pairs = [line.lower().split("\t") for line in file if not line.startswith("#")]
    known = [(at[a], at[b], float(c)) for a, b, c in pairs if a in at and b in at]
    return float(spearmanr([float(directions[a] @ directions[b]) for a, b, _ in known], [c for *_, c in known])[0])


def analogies(names: Sequence[str], rows: Array, data: Path, most: int = 30000) -> float:
    """Return the share of the analogies among the `most` commonest words that come out right."""
    at = {name: number for number, name in enumerate(names[:most])}
    directions = rows[:most] / np.maximum(np.linalg.norm(rows[:most], axis=1, keepdims=True), 1e-12)
    with (data / "wordsim" / "questions-words.txt").open(encoding="utf-8") as file:
        asked = [line.lower().split() for line in file if not line.startswith(":")]
    asked = [words for words in asked if len(words) == 4 and all(word in at for word in words)]
    if not asked:
        return float("nan")
    numbers = np.array([[at[word] for word in words] for words in asked])
    right = 0
    for start in range(0, len(numbers), 500):
        a, b, c, d = numbers[start : start + 500].T
        cosines = (directions[b] - directions[a] + directions[c]) @ directions.T
        for column in (a, b, c):
            cosines[np.arange(len(a)), column] = -9
        right += int((cosines.argmax(axis=1) == d).sum())
    return right / len(numbers)


def prepared(data: Path, part: str, folder: Path, share: float, other: str) -> None:
    """Unpack what a part needs into `folder`; word vectors of the text `other`, if it is named."""
    sources = {"train": data / "wiki/wiki17m.txt.xz"}
    if part == "supervised":
        sources = {"train": data / "20news/train.txt.xz", "test": data / "20news/test.txt.xz"}
    elif other:
        sources = {"train": Path(other)}
    for name, source in sources.items():
        with lzma.open(source, "rb") if source.suffix == ".xz" else source.open("rb") as file:
            text = file.read()
        if share < 1:
            text = text[: text.rindex(b"\n", 0, int(len(text) * share)) + 1]
        (folder / f"{name}.txt").write_bytes(text)
    (folder / "scratch").mkdir()


def installed(side: str) -> bool:
    """Return whether a side can run."""
    return subprocess.run([sys.executable, "-c", f"import {side}"], capture_output=True, check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--part", choices=list(SIDES), default="batch_skipgram")
    parser.add_argument("--epochs", type=int, default=0, help="1 for vectors and 5 for supervised unless given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="of Phalanx; they share the threads")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0, help="of the text")
    parser.add_argument("--text", default="", help="a file of other text for word vectors, .xz or plain")
    parser.add_argument("--sides", nargs="*", default=None)
    parser.add_argument("--set", nargs="*", default=[], help="hyperparameters of Phalanx, as name=value")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.epochs = options.epochs or (5 if options.part == "supervised" else 1)
    if options.side:
        print(json.dumps(one_side(options)))
        return
    print(f"{machine()}; {versions('phalanx-train', 'numpy', 'numba')}; {options.threads} threads", flush=True)
    with tempfile.TemporaryDirectory() as name:
        prepared(Path(options.data), options.part, Path(name), options.share, options.text)
        rows: list[list[object]] = []
        for side in options.sides or SIDES[options.part]:
            if not installed(side):
                continue
            row, alone = measured(side, name, options, 1)
            rows.append(row)
            if side == "phalanx" and options.workers > 1:
                row, together = measured(side, name, options, options.workers)
                rows.append(row)
                print(f"{options.workers} workers have {alone / together:.2f} of one worker's speed, with the same threads")
    print(table(LABEL_HEADERS if options.part == "supervised" else HEADERS, rows))


def ended(command: list[str], workers: int) -> str:
    """Run a command as so many workers of one group; return what the first printed."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    group = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if workers > 1 else {})},
        )
        for rank in range(workers)
    ]
    printed = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        sys.exit(f"{' '.join(command)} failed")
    return printed[0]


def measured(side: str, folder: str, options: argparse.Namespace, workers: int) -> tuple[list[object], float]:
    """Run a side as often as asked, each time in processes of its own; return its row of the table, and the best seconds."""
    found: list[dict[str, float]] = []
    for number in range(options.rounds):
        command = [sys.executable, __file__, "--side", side, "--folder", folder, "--data", options.data, "--part", options.part]
        for name in ("epochs", "threads"):
            command += [f"--{name}", str(getattr(options, name))]
        command += ["--seed", str(options.seed + number), "--set", *options.set]
        found.append(json.loads(ended(command, workers).splitlines()[-1]))
    best = min(found, key=lambda one: one["s"])
    peak = int(max(one["peak_learning"] for one in found))
    named = [options.part, options.epochs, f"{side}, {workers} workers" if workers > 1 else side, best["s"]]
    quality = [one["right"] if options.part == "supervised" else one["rho"] for one in found]
    spread = [float(np.mean(quality)), float(np.std(quality))]
    if options.part == "supervised":
        return [*named, int(best["examples"] / best["s"]), *spread, peak], best["s"]
    analogy = float(np.mean([one["analogies"] for one in found]))
    return [*named, int(best["words"] / best["s"] / 1000), *spread, analogy, peak], best["s"]


if __name__ == "__main__":
    main()
