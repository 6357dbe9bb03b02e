"""BlazingText beyond the conformance suite: files of others, requests, early stopping, records, errors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phalanx import hyperparameters
from phalanx.algorithms.blazingtext.algorithm import BlazingText
from phalanx.contracts import Records
from phalanx.data.memory import array_shard
from phalanx.errors import UserError
from phalanx.testing.sessions import MemorySession

TOPICS = {"sea": ["ship", "wave", "hafen", "küste", "tide"], "farm": ["cow", "barn", "field", "plough", "wheat"]}


def lines(count: int, *, labelled: bool = False) -> list[str]:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(count):
        topic = str(generator.choice(list(TOPICS)))
        words = generator.choice([*TOPICS[topic], "the"], 12).tolist()
        found.append(" ".join([f"__label__{topic}", *words] if labelled else words))
    return found


def trained(folder: Path, text: list[Any], mode: str, validation: list[Any] | None = None, **given: Any) -> BlazingText:
    settings = {"vector_dim": 10, "epochs": 3, "min_count": 1, "buckets": 300, "learning_rate": 0.2, "sampling_threshold": 1e-3}
    model = BlazingText(
        hyperparameters.parse(BlazingText.Hyperparameters, {"mode": mode, **settings, **given}, owner="blazingtext")
    )
    channels = {"train": array_shard(Records(text))}
    if validation is not None:
        channels["validation"] = array_shard(Records(validation))
    session = MemorySession(channels, folder)
    model.fit(session)
    model.reports = session.reports  # type: ignore[attr-defined]
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what C++ prints elsewhere."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def assert_same_labels(ours: BlazingText, theirs: Any, asked: list[str], k: int) -> None:
    """Compare with what fastText's own library says; its Python around it does not go with numpy 2."""
    answers = ours.classify(asked, k=k)
    for text, labels, probabilities in zip(asked, answers["label"].tolist(), answers["prob"], strict=True):
        found = theirs.f.predict(f"{text}\n", k, 0.0, "strict")
        assert [label for _, label in found] == labels[: len(found)]
        np.testing.assert_allclose([p for p, _ in found], probabilities[: len(found)], atol=2e-3)  # theirs come from tables
        assert probabilities[len(found) :].sum() < 0.01


@pytest.mark.parametrize(
    ("mode", "subwords"), [("skipgram", True), ("cbow", True), ("batch_skipgram", False), ("skipgram", False)]
)
def test_fasttext_opens_our_vectors(tmp_path: Path, mode: str, subwords: bool) -> None:
    fasttext = pytest.importorskip("fasttext")
    model = trained(tmp_path, lines(200), mode, subwords=subwords)
    model.save(tmp_path)
    with quiet():
        theirs = fasttext.load_model(str(tmp_path / "vectors.bin"))
    assert sorted(theirs.get_words()) == sorted({word for words in TOPICS.values() for word in words} | {"the"})
    for word in ("ship", "küste", "the", "shipwave"):
        np.testing.assert_allclose(theirs.get_word_vector(word), model.vectors([word])[0], atol=1e-6, err_msg=word)
    assert bool(model.vectors(["shipwave"]).any()) == subwords


@pytest.mark.parametrize(("loss", "grams"), [("softmax", 1), ("hierarchical", 2)])
def test_fasttext_opens_our_classifiers(tmp_path: Path, loss: str, grams: int) -> None:
    fasttext = pytest.importorskip("fasttext")
    text = [*lines(300, labelled=True), "__label__rare cow ship", "__label__rarer the the"]
    model = trained(tmp_path, text, "supervised", loss=loss, word_ngrams=grams)
    model.save(tmp_path)
    with quiet():
        theirs = fasttext.load_model(str(tmp_path / "model.bin"))
    asked = ["ship wave unknown the", "barn cow cow", "wheat"]
    assert_same_labels(model, theirs, asked, 4)


@pytest.mark.parametrize(("model", "maxn"), [("skipgram", 0), ("skipgram", 4), ("cbow", 4)])
def test_we_open_fasttexts_vectors(tmp_path: Path, model: str, maxn: int) -> None:
    fasttext = pytest.importorskip("fasttext")
    (tmp_path / "text").write_text("\n".join(lines(200)))
    with quiet():
        theirs = fasttext.train_unsupervised(
            str(tmp_path / "text"), model=model, dim=7, minn=2, maxn=maxn, bucket=100, minCount=1, thread=1, verbose=0
        )
        theirs.save_model(str(tmp_path / "theirs.bin"))
    ours = BlazingText.from_fasttext(tmp_path / "theirs.bin")
    for word in ("ship", "küste", "shipküste"):
        np.testing.assert_allclose(theirs.get_word_vector(word), ours.vectors([word])[0], atol=1e-6, err_msg=word)
    ours.save(tmp_path)
    with quiet():
        again = fasttext.load_model(str(tmp_path / "vectors.bin"))
    np.testing.assert_allclose(again.get_word_vector("küste"), theirs.get_word_vector("küste"), atol=1e-6)
    cosines = [cosine for cosine, _ in again.get_nearest_neighbors("ship", 3)]
    assert [cosine for _, cosine in ours.nearest("ship", 3)] == pytest.approx(cosines, abs=1e-5)


@pytest.mark.parametrize(("loss", "grams"), [("softmax", 3), ("hs", 1)])
def test_we_open_fasttexts_classifiers(tmp_path: Path, loss: str, grams: int) -> None:
    fasttext = pytest.importorskip("fasttext")
    (tmp_path / "text").write_text("\n".join([*lines(300, labelled=True), "__label__rare cow ship"]))
    with quiet():
        theirs = fasttext.train_supervised(
            str(tmp_path / "text"), dim=7, bucket=100, loss=loss, wordNgrams=grams, lr=0.5, thread=1, verbose=0
        )
        theirs.save_model(str(tmp_path / "theirs.bin"))
        ours = BlazingText.from_fasttext(tmp_path / "theirs.bin")
    asked = ["ship wave unknown the", "barn cow cow", "wheat"]
    assert_same_labels(ours, theirs, asked, 3)


@pytest.mark.filterwarnings("ignore")
def test_gensim_opens_our_text(tmp_path: Path) -> None:
    pytest.importorskip("gensim")
    from gensim.models import KeyedVectors

    model = trained(tmp_path, lines(200), "batch_skipgram")
    model.save(tmp_path)
    theirs = KeyedVectors.load_word2vec_format(str(tmp_path / "vectors.txt"))
    words = list(theirs.index_to_key)
    np.testing.assert_allclose(theirs.vectors, model.vectors(words), rtol=1e-6)
    assert words[0] == "the", "by falling counts"
    assert [word for word, _ in model.nearest("ship", 3)] == [word for word, _ in theirs.most_similar("ship", topn=3)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("binary", [True, False])
def test_we_open_gensims_vectors(tmp_path: Path, binary: bool) -> None:
    pytest.importorskip("gensim")
    from gensim.models import Word2Vec

    theirs = Word2Vec([line.split() for line in lines(200)], vector_size=9, min_count=1, workers=1, seed=1).wv
    theirs.save_word2vec_format(str(tmp_path / "theirs"), binary=binary)
    ours = BlazingText.from_word2vec(tmp_path / "theirs")
    words = list(theirs.index_to_key)
    np.testing.assert_allclose(ours.vectors([*words, "unknown"])[:-1], theirs.vectors, rtol=1e-6)
    assert [word for word, _ in ours.nearest("ship", 3)] == [word for word, _ in theirs.most_similar("ship", topn=3)]
    ours.save(tmp_path)
    np.testing.assert_array_equal(BlazingText.load(tmp_path).vectors(words), ours.vectors(words))


def test_vectors_in_word2vecs_format_are_read(tmp_path: Path) -> None:
    file, rows = tmp_path / "file", np.array([[1, -2.5, 3e-9], [0.25, 5, 6]], np.float32)
    both = list(zip(("küste", "b"), rows, strict=True))
    text = "".join(f"{word} {' '.join(map(repr, row.tolist()))}\n" for word, row in both)
    binary = [f"{word} ".encode() + row.tobytes() for word, row in both]
    for data in (f"2 3\n{text}".encode(), b"2 3\n" + b"".join(binary), b"2 3\n" + b"".join(one + b"\n" for one in binary)):
        file.write_bytes(data)
        np.testing.assert_array_equal(BlazingText.from_word2vec(file).vectors(["küste", "b"]), rows)
        file.write_bytes(data[:-5])
        with pytest.raises(UserError, match=r"file holds no whole vector 2 of 2"):
            BlazingText.from_word2vec(file)
    file.write_text(f"3 3\n{text}{text}")  # again: left out
    assert len(BlazingText.from_word2vec(file).nearest("b", 5)) == 1
    for data in (b"", b"nothing\n", b"2 0\n", b"2 3 4\n"):
        file.write_bytes(data)
        with pytest.raises(UserError, match="file is no file of word2vec"):
            BlazingText.from_word2vec(file)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        BlazingText.from_word2vec(tmp_path / "missing")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"quantized": True}, "is compressed"),
        ({"loss": "ova"}, "no counterpart"),
        ({"loss": "ns"}, "no counterpart"),
        ({"minn": 2, "maxn": 3}, "no counterpart"),
        ({"unsupervised": True, "loss": "hs"}, "no counterpart"),
        ({"unsupervised": True, "loss": "softmax"}, "no counterpart"),
    ],
)
def test_models_of_fasttext_without_counterpart_are_refused(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    fasttext = pytest.importorskip("fasttext")
    (tmp_path / "text").write_text("\n".join(lines(300, labelled=True)))
    settings = {"dim": 8, "bucket": 400, "wordNgrams": 2, "minCount": 1, "thread": 1, "verbose": 0, **given}
    quantized, vectors = settings.pop("quantized", False), settings.pop("unsupervised", False)
    with quiet():
        learn = fasttext.train_unsupervised if vectors else fasttext.train_supervised
        theirs = learn(str(tmp_path / "text"), **settings)
        if quantized:
            theirs.quantize()
        theirs.save_model(str(tmp_path / "theirs.bin"))
    with pytest.raises(UserError, match=said):
        BlazingText.from_fasttext(tmp_path / "theirs.bin")


def test_a_classifier_that_has_hardly_learnt_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = lines(300, labelled=True)
    trained(tmp_path, text, "supervised", learning_rate=0.001)
    assert "has hardly learnt" in capsys.readouterr().out
    trained(tmp_path, text, "supervised", learning_rate=0.5)
    trained(tmp_path, [line.replace("__label__sea", "__label__farm") for line in text], "supervised")  # one label: no chance
    assert "note" not in capsys.readouterr().out


def test_words_of_a_topic_are_near_each_other(tmp_path: Path) -> None:
    model = trained(tmp_path, lines(400), "skipgram", epochs=10)
    assert {word for word, _ in model.nearest("ship", 4)} == {"wave", "hafen", "küste", "tide"}
    assert len(model.analogy("ship", "wave", "cow", 3)) == 3
    with pytest.raises(UserError, match="'nowhere' is not among the model's words"):
        model.nearest("nowhere")


def test_requests_say_how_many_labels_they_want(tmp_path: Path) -> None:
    model = trained(tmp_path, lines(300, labelled=True), "supervised")
    answers = model.predict(Records([{"source": "ship", "k": 2}, {"source": "cow"}, "barn"]))
    assert answers["label"].tolist() == [["__label__sea", "__label__farm"], ["__label__farm", ""], ["__label__farm", ""]]
    assert np.isnan(answers["prob"][1:, 1]).all()
    assert answers["prob"][0].sum() == pytest.approx(1)
    with pytest.raises(UserError, match="k=0"):
        model.predict(Records([{"source": "ship", "k": 0}]))
    with pytest.raises(UserError, match=r"request 2: a text, or \{\"source\": \"text\"\}"):
        model.predict(Records(["ship", 3]))
    with pytest.raises(UserError, match="this model classifies text"):
        model.nearest("ship")


def test_records_may_have_several_labels(tmp_path: Path) -> None:
    text = [{"source": line.partition(" ")[2], "label": [1, 3] if "sea" in line else 2} for line in lines(300, labelled=True)]
    model = trained(tmp_path, text, "supervised", epochs=5)
    answers = model.classify(["ship wave", "cow"], k=3)
    assert set(answers["label"][0][:2].tolist()) == {"__label__1", "__label__3"}
    assert answers["prob"][0][:2] == pytest.approx([0.5, 0.5], abs=0.1)
    assert answers["label"][1][0] == "__label__2"
    with pytest.raises(UserError, match="row 1: a line of text"):
        trained(tmp_path, [{"text": "ship"}], "supervised")


def test_training_stops_early_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    text = lines(200, labelled=True)
    model = trained(
        tmp_path, text, "supervised", text[:20], epochs=50, early_stopping=True, patience=2, min_epochs=3, lines_per_step=100
    )
    reports = model.reports  # type: ignore[attr-defined]
    accuracies = [report.metrics["validation:accuracy"] for report in reports if "validation:accuracy" in report.metrics]
    assert len(accuracies) == max(3, accuracies.index(max(accuracies)) + 3)
    assert reports[-1].of == len(reports)
    with pytest.raises(UserError, match="early_stopping=true needs a channel 'validation'"):
        trained(tmp_path, text, "supervised", early_stopping=True)


def test_what_cannot_be_learnt_from_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"min_count=100000 leaves 0 words: of 11 the commonest occurs \d+ times; lower min_count"
    ):
        trained(tmp_path, lines(100), "cbow", min_count=100000)
    with pytest.raises(UserError, match="has no labels"):
        trained(tmp_path, lines(100), "supervised")
    with pytest.raises(UserError, match="subwords=true is for mode=skipgram and mode=cbow"):
        trained(tmp_path, lines(100), "batch_skipgram", subwords=True)
    model = BlazingText(hyperparameters.parse(BlazingText.Hyperparameters, {"mode": "cbow"}, owner="blazingtext"))
    with pytest.raises(UserError, match="needs lines of text"):
        model.fit(MemorySession({"train": array_shard(np.zeros((3, 2), np.float32))}, tmp_path))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    model = trained(tmp_path, lines(100), "skipgram")
    model.save(tmp_path)
    whole = (tmp_path / "vectors.bin").read_bytes()
    for data, said in (
        (whole[:50], "no whole fastText model"),
        (whole[:-9], "no whole fastText model"),
        (b"x" * 90, "version 12"),
    ):
        (tmp_path / "broken.bin").write_bytes(data)
        with pytest.raises(UserError, match=said):
            BlazingText.from_fasttext(tmp_path / "broken.bin")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        BlazingText.from_fasttext(tmp_path / "missing.bin")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"model\.safetensors holds no blazingtext model"):
        BlazingText.load(tmp_path)
