"""BlazingText: word vectors (Mikolov et al., 2013; Bojanowski et al., 2017) and text classification (Joulin et al., 2017).

Lines are read once, words counted over all ranks; then every step learns from the next lines, threads without locks, and ranks
bring their matrices together after each. With one thread a rank each, the model is a function of data, seed and ranks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np

from ...contracts import Array, Entry, Features, Json, Records, Session, State
from ...errors import AlgorithmError, UserError
from ...hyperparameters import parse, to_json
from .hyperparameters import BlazingTextHyperparameters

if TYPE_CHECKING:  # numba takes a second to load: who only reads hyperparameters is spared
    from .labels import Classifier, LabelTraining
    from .model import Model
    from .neighbours import Neighbours
    from .vectors import VectorTraining

_SETTINGS = "blazingtext.json"
_OWN = "model.safetensors"
_EVALUATION = "eval.json"


@final
class BlazingText:
    """The algorithm and its model.

    Args:
        hyperparameters: how to learn.

    Attributes:
        evaluation: agreement with people's judgements, where it was measured: mean_rho, and pairs left out.
    """

    Hyperparameters: ClassVar[type] = BlazingTextHyperparameters
    columns: ClassVar[int | None] = None  # requests are text

    def __init__(self, hyperparameters: BlazingTextHyperparameters) -> None:
        self.hyperparameters = hyperparameters
        self.evaluation: dict[str, float] = {}
        self._model: Model | None = None  # once trained
        self._training: VectorTraining | LabelTraining | None = None
        self._step = 0
        self._restored: State | None = None
        self._classifier: Classifier | None = None
        self._neighbours: Neighbours | None = None

    def fit(self, session: Session) -> None:
        """Collective. Learn from the lines of channel `train`.

        Word vectors are compared with the pairs of channel `evaluation` at the end, a classifier is measured on `validation`
        after every epoch.

        Raises:
            UserError: on every rank, for lines that cannot be learnt from.
            Stopped: the job was asked to stop.
        """
        from .labels import LabelTraining
        from .vectors import VectorTraining

        wanted = self.hyperparameters
        session.restore({"algorithm": self})
        training = LabelTraining(session, wanted) if wanted.classifies else VectorTraining(session, wanted)
        self._training = training
        try:
            if self._restored is not None:
                self._go_on(training, self._restored)
            stopped = isinstance(training, LabelTraining) and training.done
            while self._step < training.steps and not stopped:
                metrics, rows = training.learn(self._step)
                self._step += 1
                stopped = isinstance(training, LabelTraining) and training.done
                if stopped or self._step == training.steps:
                    metrics |= self._finish(session, training)
                known = not wanted.early_stopping or not wanted.classifies or stopped
                session.report(self._step, metrics, rows=rows, of=self._of(training, stopped) if known else None)
            if self._model is None:
                self._finish(session, training)
        finally:
            training.close()

    def predict(self, requests: Features) -> dict[str, Array]:
        """Answer words or sentences; a request is a text, or an object with `source` and, for a classifier, `k`.

        Returns:
            Of word vectors: `word` (N,) and `vector` (N, D) float32; a word that is not known has a vector of its n-grams, or
            zeros without subwords. Of a classifier: `label` and `prob`, (N, K), likeliest first, K the largest `k` asked for (1
            unless said); a line that asked for fewer, or holds no words, has "" and NaN in their place.

        Raises:
            UserError: requests that are no text.
        """
        texts, ks = _requests(requests)
        if self.hyperparameters.classifies:
            return self._classified(texts, ks)
        words = [text.strip() for text in texts]
        vectors = self.vectors(words)
        return {"word": np.array(words, dtype=np.str_).reshape(len(words)), "vector": vectors}

    def classify(self, sentences: Sequence[str], k: int = 1) -> dict[str, Array]:
        """Return `label` and `prob` of the k likeliest labels of sentences, (N, k) each.

        Raises:
            UserError: the model has word vectors, or `k` is below 1.
        """
        if not self.hyperparameters.classifies:
            raise UserError("this model has word vectors; labels come from one trained with mode=supervised")
        return self._classified(list(sentences), [_checked_k(k)] * len(sentences))

    def vectors(self, words: Sequence[str]) -> Array:
        """Return the vectors of words, (N, D) float32; zero for an unknown one without subwords.

        Raises:
            UserError: the model is a classifier.
        """
        model = self._word_model()
        if not words:
            return np.zeros((0, model.dimension), np.float32)
        return np.stack([model.vector(word) for word in words])

    def nearest(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """Return the k words nearest to one, with the cosines of their vectors.

        Raises:
            UserError: the word has no vector; the model is a classifier.
        """
        return self._cosines().nearest(self._known(word), _checked_k(k), without=[word])

    def analogy(self, a: str, b: str, c: str, k: int = 10) -> list[tuple[str, float]]:
        """Return what is to `c` as `b` is to `a` ("man", "king", "woman"): k words with their cosines to b - a + c.

        Raises:
            UserError: as `nearest`.
        """
        one, two, three = (vector / np.linalg.norm(vector) for vector in map(self._known, (a, b, c)))
        return self._cosines().nearest(two - one + three, _checked_k(k), without=[a, b, c])

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, the hyperparameters, and for others `vectors.txt` and `vectors.bin`, or `model.bin`."""
        from . import files

        model = self._trained()
        files.write_own(folder / _OWN, model)
        settings = json.dumps(to_json(self.hyperparameters), indent=2, sort_keys=True)
        (folder / _SETTINGS).write_text(settings + "\n", encoding="utf-8")
        if self.evaluation:
            text = json.dumps(self.evaluation, indent=2, sort_keys=True)
            (folder / _EVALUATION).write_text(text + "\n", encoding="utf-8")
        if self.hyperparameters.classifies:
            files.write_fasttext(folder / "model.bin", model)
        else:
            files.write_text(folder / "vectors.txt", model.vocabulary.words, model.vectors())
            files.write_fasttext(folder / "vectors.bin", model)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the model that `save` wrote.

        Raises:
            UserError: the files do not hold one.
        """
        from .files import read_own

        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        model = cls(parse(BlazingTextHyperparameters, settings, owner="blazingtext"))
        model._model = read_own(folder / _OWN, model.hyperparameters)
        if (folder / _EVALUATION).is_file():
            model.evaluation = json.loads((folder / _EVALUATION).read_text(encoding="utf-8"))
        return model

    @classmethod
    def from_fasttext(cls, path: Path) -> Self:
        """Return the model of a `.bin` file of fastText.

        Raises:
            UserError: it is none, or of a kind that has no counterpart here.
        """
        from .files import read_fasttext

        found = read_fasttext(Path(path))
        model = cls(found.hyperparameters)
        model._model = found
        return model

    @classmethod
    def from_word2vec(cls, path: Path) -> Self:
        """Return the word vectors of a file in word2vec's format, text or binary, as gensim writes them.

        Raises:
            UserError: it is none.
        """
        from .files import read_word2vec

        found = read_word2vec(Path(path))
        model = cls(found.hyperparameters)
        model._model = found
        return model

    def state_dict(self) -> State:
        """Return the step, the matrices after it, and what early stopping has seen; the next lines follow from the step."""
        from .labels import LabelTraining

        if self._training is None or not self._step:
            return {"step": Entry(0)}
        state = {"step": Entry(self._step), **self._matrices(self._training)}
        return state | (dict(self._training.state_dict()) if isinstance(self._training, LabelTraining) else {})

    def load_state_dict(self, state: State) -> None:
        """Go back to a state; `fit` goes on from there."""
        self._model = self._classifier = self._neighbours = None
        self._step = int(state["step"].value)
        self._restored = state if self._step else None

    def _go_on(self, training: VectorTraining | LabelTraining, state: State) -> None:
        from .labels import LabelTraining

        model = training.model
        inputs, outputs = (np.array(state[name].value, np.float32) for name in ("inputs", "outputs"))
        if inputs.shape != model.inputs.shape or outputs.shape != model.outputs.shape:
            raise UserError(
                "the checkpoint is of other lines than those of channel 'train': its words or labels are not the same"
            )
        model.inputs[:], model.outputs[:] = inputs, outputs
        exchange = training.exchange()
        if exchange is not None:
            exchange.load_state_dict(state)
        if isinstance(training, LabelTraining):
            training.load_state_dict(state)
        self._restored = None

    @staticmethod
    def _matrices(training: VectorTraining | LabelTraining) -> State:
        """Return what all ranks have in common, and what a rank has learnt since."""
        exchange = training.exchange()
        if exchange is None:
            return {"inputs": Entry(training.model.inputs), "outputs": Entry(training.model.outputs)}
        state = dict(exchange.state_dict())
        return {"inputs": state.pop("common_0"), "outputs": state.pop("common_1"), **state}

    def _of(self, training: VectorTraining | LabelTraining, stopped: bool) -> int:
        return self._step if stopped else training.steps

    def _finish(self, session: Session, training: VectorTraining | LabelTraining) -> dict[str, float]:
        """Collective. Take the model, and return its agreement with people's judgements where there are some."""
        from .labels import LabelTraining
        from .neighbours import mean_rho

        wanted = self.hyperparameters
        if isinstance(training, LabelTraining):
            self._model = training.finished()
            return {}
        self._model = training.model
        if not wanted.evaluation or "evaluation" not in session.channels:
            return {}
        rho, missing = mean_rho(session.world, self._model, session.channels["evaluation"])
        self.evaluation = {"mean_rho": rho, "pairs_left_out": missing}
        return {"train:mean_rho": rho}

    def _trained(self) -> Model:
        if self._model is None:
            raise AlgorithmError("this blazingtext model has not been trained yet: call fit or load first")
        return self._model

    def _word_model(self) -> Model:
        model = self._trained()
        if self.hyperparameters.classifies:
            raise UserError("this model classifies text; word vectors come from mode=skipgram, cbow or batch_skipgram")
        return model

    def _known(self, word: str) -> Array:
        vector = self._word_model().vector(word)
        if not vector.any():
            raise UserError(f"'{word}' is not among the model's words")
        return vector

    def _cosines(self) -> Neighbours:
        from .neighbours import Neighbours

        if self._neighbours is None:
            model = self._word_model()
            words = [word.decode(errors="replace") for word in model.vocabulary.words]
            self._neighbours = Neighbours(words, model.vectors())
        return self._neighbours

    def _classified(self, texts: Sequence[str], ks: Sequence[int]) -> dict[str, Array]:
        from .corpus import as_bytes
        from .labels import Classifier, likeliest

        if self._classifier is None:
            self._classifier = Classifier(self._trained())
        names = np.array([label.decode(errors="replace") for label in self._trained().vocabulary.labels], dtype=np.str_)
        most = min(max(ks, default=1), len(names))
        data = as_bytes(Records([_one_line(text) for text in texts]), lambda row: f"request {row + 1}")
        order, values = likeliest(self._classifier.probabilities(data), most)
        hidden = (np.arange(most) >= np.array(ks, dtype=np.int64)[:, None]) | (values == 0)
        return {
            "label": np.where(hidden, "", names[order]),
            "prob": np.where(hidden, np.float32(np.nan), values).astype(np.float32),
        }


def _requests(requests: Features) -> tuple[list[str], list[int]]:
    """Return the text of every request, and how many labels it wants."""
    if not isinstance(requests, Records):
        raise UserError("blazingtext answers text: words or sentences, not rows of numbers")
    texts, ks = [], []
    for number, item in enumerate(requests.items):
        text, k = (item.get("source", item.get("word")), item.get("k", _asked(item))) if isinstance(item, dict) else (item, 1)
        if not isinstance(text, str):
            raise UserError(f'request {number + 1}: a text, or {{"source": "text"}}, is expected')
        texts.append(text)
        ks.append(_checked_k(k))
    return texts, ks


def _asked(item: dict[str, Json]) -> Json:
    configuration: Any = item.get("configuration")
    return configuration.get("k", 1) if isinstance(configuration, dict) else 1


def _checked_k(k: Json) -> int:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise UserError(f"k={k}: how many answers are wanted must be a whole number from 1")
    return k


def _one_line(text: str) -> str:
    return text.replace("\n", " ")
