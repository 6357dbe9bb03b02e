"""Training and use of classifiers: mode=supervised."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from ...contracts import Array, Entry, Session, State
from ...errors import UserError
from ...parallel.collective import together
from ..kernels import labels as loops
from ..kernels.words import LINE_END as END
from ..kernels.words import bags
from .corpus import Spill, count_channel, encoded, lines_of_step, train_channel
from .hyperparameters import BlazingTextHyperparameters
from .label_exchange import LabelExchange, turns
from .model import Model, started, stride_of
from .vocabulary import LINE_END, merged

_PIECE = 64  # lines that a thread takes at once
_MOST_WEIGHED = 1000  # labels; more of them make a tree
_EVALUATED_LINES = 4096
_CHANCE = 0.9  # of the loss of a model that only knows how often labels occur


@dataclass(frozen=True, slots=True)
class Tree:
    """A binary tree of labels: label l turns by codes[starts[l]:starts[l + 1]] at those nodes. No nodes: no tree."""

    nodes: Array  # int32
    codes: Array  # int8
    starts: Array  # (L + 1,) int64

    def arrays(self) -> tuple[Array, Array, Array]:
        """Return what kernels take."""
        return self.nodes, self.codes, self.starts

    def rows_of(self, labels: Array) -> Array:
        """Return the nodes on the way to labels, (n,) int64, each once."""
        once = np.unique(labels)
        lengths = self.starts[once + 1] - self.starts[once]
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.starts[once] - ends + lengths, lengths)
        return np.unique(self.nodes[places]).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Bags:
    """Lines as bags of rows; see `kernels.words.bags`."""

    rows: Array
    counts: Array
    lines: Array  # (2 (N + 1),)
    labels: Array

    def __len__(self) -> int:
        return len(self.lines) // 2 - 1

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """Return all."""
        return self.rows, self.counts, self.lines, self.labels


def has_tree(wanted: BlazingTextHyperparameters, labels: int) -> bool:
    """Return whether the labels make a tree."""
    return wanted.loss == "hierarchical" or (wanted.loss == "auto" and labels > _MOST_WEIGHED)


def tree_of(wanted: BlazingTextHyperparameters, counts: Array) -> Tree:
    """Return the Huffman tree of labels that occurred `counts` times, falling, as fastText builds it; or none."""
    count = len(counts)
    if not has_tree(wanted, count):
        return Tree(np.empty(0, np.int32), np.empty(0, np.int8), np.zeros(count + 1, np.int64))
    # two queues: leaves from the rarest label up, and the nodes in the order they are made; a leaf wins only where it is rarer
    weights = [*np.asarray(counts).tolist(), *[10**15] * (count - 1)]
    parents, turns = [-1] * (2 * count - 1), [False] * (2 * count - 1)
    leaf, node = count - 1, count
    for made in range(count, 2 * count - 1):
        least = []
        for _ in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                least.append(leaf)
                leaf -= 1
            else:
                least.append(node)
                node += 1
        weights[made] = weights[least[0]] + weights[least[1]]
        parents[least[0]] = parents[least[1]] = made
        turns[least[1]] = True
    nodes: list[int] = []
    codes: list[bool] = []
    starts = [0]
    for label in range(count):
        at = label
        while parents[at] != -1:
            nodes.append(parents[at] - count)
            codes.append(turns[at])
            at = parents[at]
        starts.append(len(nodes))
    return Tree(np.array(nodes, np.int32), np.array(codes, np.int8), np.array(starts, np.int64))


@final
class Classifier:
    """A model, ready to weigh labels of lines."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._tree = tree_of(model.hyperparameters, model.vocabulary.label_counts)
        self._rows_of_buckets = model.rows_of_buckets()

    def probabilities(self, data: Array) -> Array:
        """Return the probability of every label for lines (bytes,), (N, L) float32; zero for a line without words."""
        return self.weigh(self.bags(data))

    def bags(self, data: Array) -> Bags:
        """Return lines as bags."""
        rows, entries, hashes = self.model.vocabulary.rows(data)
        return bagged(self.model, entries, rows, hashes, self._rows_of_buckets)

    def weigh(self, lines: Bags) -> Array:
        """Return the probability of every label for bags, (N, L) float32."""
        out = np.zeros((len(lines), len(self.model.vocabulary.labels)), np.float32)
        rows, counts, ends, _ = lines.arrays()
        loops.probabilities(rows, counts, ends, self.model.inputs, self.model.outputs, *self._tree.arrays(), out)
        return out


def bagged(model: Model, entries: Array, rows: Array, hashes: Array, rows_of_buckets: Array) -> Bags:
    """Return lines of tokens as bags."""
    wanted, words = model.hyperparameters, model.vocabulary.words
    end_row = words.index(LINE_END) if LINE_END in words else -1
    count = int(np.count_nonzero(entries == END))
    out = np.empty((len(entries) + 1) * wanted.word_ngrams, np.int32)
    counts, ends, labels = np.empty(len(out), np.int32), np.empty(2 * count + 2, np.int64), np.empty(len(entries), np.int32)
    bags(
        entries,
        rows,
        hashes,
        len(words),
        wanted.word_ngrams,
        wanted.buckets,
        end_row,
        rows_of_buckets,
        out,
        counts,
        ends,
        labels,
    )
    used, named = int(ends[-2]), int(ends[-1])
    return Bags(out[:used].copy(), counts[:used].copy(), ends, labels[:named].copy())


@final
class LabelTraining:
    """Collective. Reads the channel, counts words, and is ready to learn step by step.

    Args:
        session: what fit was given.
        wanted: the hyperparameters.

    Attributes:
        model: that learns.
        steps: of the whole job, unless it stops early.
        done: whether it has stopped early.
    """

    def __init__(self, session: Session, wanted: BlazingTextHyperparameters) -> None:
        self._session, self._wanted = session, wanted
        train = train_channel(session)
        if wanted.early_stopping and "validation" not in session.channels:
            raise UserError("early_stopping=true needs a channel 'validation' to see whether the accuracy still rises")
        self._lines, self._rows = lines_of_step(train, wanted.lines_per_step), train.rows
        self._per_epoch = -(-train.rows // self._lines)
        self.steps = self._per_epoch * wanted.epochs
        self.done = False
        self._best, self._best_epoch = -1.0, -1
        self._best_model: tuple[Array, Array] | None = None
        table, spill = count_channel(session, "train", train, self._lines, shuffle=True)
        try:
            vocabulary, numbers = merged(session.world, table, wanted.min_count, classifies=True, lines=train.rows)
            hashes = np.append(table.hashes, np.uint32(0))
            self.model = Model(wanted, vocabulary, np.empty(0, np.int32), np.empty(0), np.empty(0))
            self._spill = self._bagged(spill, numbers, hashes)
        finally:
            spill.close()
        self._tree = tree_of(wanted, vocabulary.label_counts)
        lines = np.array([length // 2 - 1 for length in self._spill.lengths(2)], np.float64)
        self._work = session.world.all_reduce(lines) / session.world.size  # lines of every step, the mean over ranks
        self._exchange: LabelExchange | None = None  # made when learning begins, from what a checkpoint may have put back
        self._validation: list[Bags] | None = None
        self._losses = np.zeros(2)  # of this epoch's lines, and their number

    def learn(self, step: int) -> tuple[dict[str, float], int]:
        """Collective. Do step `step`, counted from 0; return its metrics and lines."""
        epoch, at = divmod(step, self._per_epoch)
        world = self._session.world
        order = np.random.Generator(np.random.Philox(key=[self._session.seed & (2**64 - 1), epoch]))
        number = int(order.permutation(self._per_epoch)[at])
        lines = Bags(*self._spill[number])
        mine = np.random.Generator(np.random.Philox(key=[self._session.seed & (2**64 - 1), step * world.size + world.rank]))
        permuted = mine.permutation(len(lines))
        found = np.zeros(3)
        if world.size == 1:
            found += self._learn_lines(lines, permuted, self._rate(step), self._rate(step + 1))
        else:
            found += self._learn_with_others(step, float(self._work[number]), lines, permuted)
        metrics = {"train:loss": float(found[0] / found[1])} if found[1] else {}
        self._losses = found[:2] if at == 0 else self._losses + found[:2]
        if at == self._per_epoch - 1:
            metrics |= self._end_epoch(epoch)
        return metrics, min(self._lines, self._rows - number * self._lines)

    def exchange(self) -> LabelExchange | None:
        """Collective. Return what brings ranks together, where there are several."""
        world, model = self._session.world, self.model
        if world.size > 1 and self._exchange is None:
            dimension = self._wanted.vector_dim
            self._exchange = LabelExchange(world, model.inputs, model.outputs, self._frequencies(), dimension)
        return self._exchange

    def _rate(self, step: float) -> float:
        """Return the learning rate after `step` steps."""
        return self._wanted.learning_rate * (1 - step / self.steps)

    def _learn_with_others(self, step: int, work: float, lines: Bags, order: Array) -> Array:
        """Collective. Learn from the lines of a step, and exchange what moved; return what kernels return, of all ranks."""
        exchange = self.exchange()
        assert exchange is not None
        found, seen = np.zeros(3), np.zeros(len(self.model.inputs), bool)
        ends = turns(step * float(self._work.mean()), work)
        begins = np.append(0.0, ends[:-1])
        exchange.begin_step()
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            part = order[round(begin * len(order)) : round(end * len(order))]
            rate = self._rate(step + begin)
            found += self._learn_lines(lines, part, rate, self._rate(step + end))
            rows = loops.rows_of(lines.rows, lines.lines, part, seen)
            exchange.turn(rows, self._outputs_of(lines, part), (end - begin) * work, rate)
        found = self._session.world.all_reduce(found)
        if found[1]:
            exchange.end_step(float(found[0] / found[1]), float(found[2] / found[1]))
        return found

    def _outputs_of(self, lines: Bags, order: Array) -> Array:
        """Return the rows of outputs that lines named move, (n,) int64."""
        if not len(self._tree.nodes):
            return np.arange(len(self.model.outputs))
        ends = lines.lines[1::2]
        return self._tree.rows_of(np.concatenate([lines.labels[ends[at] : ends[at + 1]] for at in order] or [lines.labels[:0]]))

    def _learn_lines(self, lines: Bags, order: Array, first: float, last: float) -> Array:
        """Learn from the lines named, the threads from some each; return what kernels return."""
        model, tree = self.model, self._tree.arrays()
        parts = [order[start : start + _PIECE] for start in range(0, len(order), _PIECE)]
        done = np.minimum(np.arange(len(parts) + 1) * _PIECE / max(len(order), 1), 1)
        rates = first + (last - first) * done

        def learn(part: Array, begin: float, end: float) -> Array:
            found: Array = loops.classify(*lines.arrays(), part, model.inputs, model.outputs, begin, end, *tree)
            return found

        if self._session.threads == 1 or len(parts) == 1:
            found = list(map(learn, parts, rates[:-1], rates[1:]))
        else:
            with ThreadPoolExecutor(self._session.threads) as threads:
                found = list(threads.map(learn, parts, rates[:-1], rates[1:]))
        total: Array = np.sum(found or [np.zeros(3)], axis=0)
        return total

    def _frequencies(self) -> Array:
        """Collective. Return the share of every row of inputs in a line, the mean over all lines."""
        shares = np.zeros(len(self.model.inputs))
        for step in range(len(self._spill)):
            rows, counts, lines, _ = self._spill[step]
            ends = lines[::2]
            sums = np.append(0, np.cumsum(counts))[ends]
            parts = counts / np.repeat(np.maximum(np.diff(sums), 1), np.diff(ends))
            known = rows >= 0
            shares += np.bincount(rows[known], parts[known], len(shares))
        found: Array = self._session.world.all_reduce(shares) / self._rows
        return found

    def state_dict(self) -> State:
        """Return what early stopping has seen."""
        best = self._best_model or (np.empty((0, 0), np.float32),) * 2
        return {
            "done": Entry(self.done),
            "best": Entry(self._best),
            "best_epoch": Entry(self._best_epoch),
            "best_inputs": Entry(best[0]),
            "best_outputs": Entry(best[1]),
        }

    def load_state_dict(self, state: State) -> None:
        """Put it back."""
        self.done, self._best = bool(state["done"].value), float(state["best"].value)
        self._best_epoch = int(state["best_epoch"].value)
        best = [np.array(state[name].value, np.float32) for name in ("best_inputs", "best_outputs")]
        self._best_model = (best[0], best[1]) if len(best[0]) else None

    def finished(self) -> Model:
        """Return the model; the best epoch's where training may stop early. Say so where little was learnt."""
        shares = self.model.vocabulary.label_counts / self.model.vocabulary.label_counts.sum()
        chance = -float((shares * np.log(np.maximum(shares, 1e-12))).sum())
        loss = float(self._losses[0] / max(self._losses[1], 1))
        if loss > _CHANCE * chance > 0 and self._session.world.rank == 0:
            print(
                f"note: this classifier has hardly learnt: its loss in the last epoch is {loss:.3f}, and {chance:.3f} that of "
                "knowing no more than how often labels occur. Try more epochs, or a learning_rate above "
                f"{self._wanted.learning_rate:g}",
                flush=True,
            )
        if self._best_model is None:
            return self.model
        return replace(self.model, inputs=self._best_model[0], outputs=self._best_model[1])

    def close(self) -> None:
        """Give the files back."""
        self._spill.close()

    def _bagged(self, entries: Spill, numbers: Array, hashes: Array) -> Spill:
        """Collective. Find the n-grams that occur, begin the model, and keep every step's bags."""
        wanted, model, world = self._wanted, self.model, self._session.world
        words = len(model.vocabulary)
        if wanted.word_ngrams > 1:
            marks = np.full(wanted.buckets, -1, np.int32)
            for step in range(len(entries)):
                tokens = entries[step][0]
                ends, nothing = np.empty(2 * int((tokens == END).sum()) + 2, np.int64), np.empty(0, np.int32)
                bags(
                    tokens, numbers[tokens], hashes[tokens], words, wanted.word_ngrams, wanted.buckets, -1, marks, nothing,
                    nothing, ends, nothing,
                )  # fmt: skip
            own = np.flatnonzero(marks >= 0).astype(np.int32)
            model.buckets = own if world.size == 1 else np.unique(np.concatenate(world.all_gather(own)))
        model.inputs = started(words + len(model.buckets), wanted.vector_dim, self._session.seed)
        outputs = len(model.vocabulary.labels)
        model.outputs = np.zeros((outputs, stride_of(wanted.vector_dim)), np.float32)
        rows_of_buckets, kept = model.rows_of_buckets(), Spill()
        for step in range(len(entries)):
            tokens = entries[step][0]
            kept.append(bagged(model, tokens, numbers[tokens], hashes[tokens], rows_of_buckets).arrays())
        return kept

    def _end_epoch(self, epoch: int) -> Mapping[str, float]:
        """Collective. Measure accuracy, and see whether to stop."""
        if "validation" not in self._session.channels:
            return {}
        accuracy = self._accuracy()
        wanted = self._wanted
        if wanted.early_stopping:
            if accuracy > self._best:
                self._best, self._best_epoch = accuracy, epoch
                self._best_model = (self.model.inputs.copy(), self.model.outputs.copy())
            self.done = epoch + 1 >= wanted.min_epochs and epoch - self._best_epoch >= wanted.patience
        return {"validation:accuracy": accuracy}

    def _accuracy(self) -> float:
        """Collective. Return the share of lines whose likeliest label is one of theirs."""
        classifier = Classifier(self.model)
        world, shard = self._session.world, self._session.channels["validation"]

        def measure() -> Array:
            if self._validation is None:
                self._validation = [classifier.bags(data) for data in encoded("validation", shard, _EVALUATED_LINES)]
            found = np.zeros(2)
            for lines in self._validation:
                best = classifier.weigh(lines).argmax(axis=1)
                starts, ends = lines.lines[1:-2:2], lines.lines[3::2]
                for line in np.flatnonzero(ends > starts):
                    found += (best[line] in lines.labels[starts[line] : ends[line]], 1)
            return found

        found = together(world, "reading channel 'validation'", measure)
        if shard.parts > 1:
            found = world.all_reduce(found)
        if not found[1]:
            raise UserError("channel 'validation' has no line with a label that channel 'train' has")
        return float(found[0] / found[1])


def likeliest(probabilities: Array, k: int) -> tuple[Array, Array]:
    """Return the numbers of the k likeliest labels of every line, likeliest first, and their probabilities; (N, k) each."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(probabilities, order, axis=1)
