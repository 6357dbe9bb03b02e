"""BlazingText and lines that are not as they should be, memory below the text's size, and stops in mid-epoch."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from phalanx import hyperparameters
from phalanx.algorithms.blazingtext.algorithm import BlazingText
from phalanx.contracts import Records, Session, State, Stateful
from phalanx.data.channel import Channel
from phalanx.data.memory import array_shard
from phalanx.data.shard import open_shard
from phalanx.errors import Stopped, UserError
from phalanx.parallel.collective import Solo
from phalanx.testing.sessions import MemorySession

GOOD = b"__label__a ship wave tide\n__label__b cow barn wheat\n" * 40
WORDS = ["ship", "wave", "tide", "cow", "barn", "wheat", "the"]


def made(mode: str, **given: object) -> BlazingText:
    settings = {"mode": mode, "vector_dim": 8, "epochs": 2, "min_count": 1, "buckets": 200, "sampling_threshold": 1e-3}
    return BlazingText(hyperparameters.parse(BlazingText.Hyperparameters, {**settings, **given}, owner="blazingtext"))


def learnt(folder: Path, data: bytes, mode: str = "supervised", name: str = "train.txt") -> BlazingText:
    """Train on a file."""
    (folder / name).write_bytes(data)
    world = Solo()
    shard = open_shard(
        "train",
        Channel(str(folder / name), content_type="text/plain"),
        rank=0,
        size=1,
        seed=0,
        gather=world.all_gather,
        scratch=folder / "scratch",
        columns=None,
        index_base=1,
        threads=1,
    )
    try:
        model = made(mode)
        model.fit(MemorySession({"train": shard}, folder))
        return model
    finally:
        shard.close()


def test_windows_line_ends_blank_lines_and_gzip_change_nothing(tmp_path: Path) -> None:
    plain = learnt(tmp_path, GOOD).classify(["ship wave", "barn"], k=2)
    for name, data in (
        ("crlf.txt", GOOD.replace(b"\n", b"\r\n")),
        ("blank.txt", GOOD.replace(b"\n", b"\n\n")),
        ("train.txt.gz", gzip.compress(GOOD)),
    ):
        again = learnt(tmp_path, data, name=name).classify(["ship wave", "barn"], k=2)
        assert again["label"].tolist() == plain["label"].tolist(), name
        np.testing.assert_array_equal(again["prob"], plain["prob"], err_msg=name)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "train"),
        (b"\n \n", "train"),
        (GOOD + b"__label__a \xff\xfe\n", "line 81 is no UTF-8 text"),
        (b"cow\n", "no labels"),
    ],
)
def test_lines_that_cannot_be_learnt_from_are_refused(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        learnt(tmp_path, data)


def test_binary_junk_is_refused(tmp_path: Path) -> None:
    junk = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    with pytest.raises(UserError, match="is no UTF-8 text"):
        learnt(tmp_path, junk, "batch_skipgram")


def test_lines_of_labels_alone_and_a_huge_line_do_no_harm(tmp_path: Path) -> None:
    model = learnt(tmp_path, GOOD + b"__label__a\n__label__c\n" + b"__label__a " + b"ship " * 50_000 + b"\n")
    assert model.classify(["ship wave", "cow barn"])["label"].tolist() == [["__label__a"], ["__label__b"]]
    assert np.isfinite(learnt(tmp_path, b"ship wave cow " * 50_000, "skipgram", "long.txt").vectors(["ship"])).all()


def test_unknown_words_no_words_and_more_labels_than_there_are(tmp_path: Path) -> None:
    answers = learnt(tmp_path, GOOD).classify(["ship", "", "nowhere"], k=9)
    assert answers["label"].shape == answers["prob"].shape == (3, 2)
    assert np.isfinite(answers["prob"][0]).all()
    vectors = learnt(tmp_path, GOOD, "cbow")
    assert not vectors.vectors(["nowhere", ""]).any()
    assert vectors.vectors([]).shape == (0, 8)


class Stopping:
    """A session that keeps the state of a step and stops there; or begins with a state."""

    def __init__(self, inner: MemorySession, algorithm: BlazingText, at: int = 0, state: State | None = None) -> None:
        self._algorithm, self._at, self._begin = algorithm, at, state
        self.kept: State = {}
        self.world, self.channels, self.seed, self.threads = inner.world, inner.channels, inner.seed, inner.threads
        self.device, self.output_data = inner.device, inner.output_data

    def restore(self, parts: dict[str, Stateful]) -> int:
        if self._begin is None:
            return 0
        self._algorithm.load_state_dict(self._begin)
        return int(self._begin["step"].value)

    def report(self, step: int, metrics: dict[str, float], *, rows: int = 0, of: int | None = None) -> None:
        if step == self._at:
            state = self._algorithm.state_dict()
            self.kept = {
                name: type(entry)(np.array(entry.value) if isinstance(entry.value, np.ndarray) else entry.value)
                for name, entry in state.items()
            }
            raise Stopped("asked to")


@pytest.mark.parametrize("mode", ["skipgram", "batch_skipgram", "cbow", "supervised"])
def test_a_stop_in_mid_epoch_changes_no_bit(tmp_path: Path, mode: str) -> None:
    generator = np.random.default_rng(0)
    text = [f"__label__{number % 2} " + " ".join(generator.choice(WORDS, 9)) for number in range(200)]

    def session(algorithm: BlazingText, at: int = 0, state: State | None = None) -> Stopping:
        return Stopping(MemorySession({"train": array_shard(Records(text))}, tmp_path, threads=1), algorithm, at, state)

    def fitted(algorithm: BlazingText, how: Stopping) -> BlazingText:
        wide: Session = how  # type: ignore[assignment]
        algorithm.fit(wide)
        return algorithm

    whole, first, second = (made(mode, lines_per_step=30) for _ in range(3))
    fitted(whole, session(whole))
    stopped = session(first, at=10)  # of 14; an epoch has 7
    with pytest.raises(Stopped):
        fitted(first, stopped)
    fitted(second, session(second, state=stopped.kept))
    for name in ("whole", "second"):
        (tmp_path / name).mkdir()
    whole.save(tmp_path / "whole")
    second.save(tmp_path / "second")
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name


_LIMITED = """
import resource, sys
from pathlib import Path
from phalanx import hyperparameters
from phalanx.algorithms.blazingtext.algorithm import BlazingText
from phalanx.algorithms.blazingtext import vectors as blazingtext_vectors
from phalanx.algorithms.blazingtext import labels as blazingtext_labels
from phalanx.data.channel import Channel
from phalanx.data.shard import open_shard
from phalanx.parallel.collective import Solo
from phalanx.testing.sessions import MemorySession

folder, more = Path(sys.argv[1]), int(sys.argv[2])
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + more, held + more))
shard = open_shard("train", Channel(str(folder / "train.txt"), content_type="text/plain"), rank=0, size=1, seed=0,
                   gather=Solo().all_gather, scratch=folder / "scratch", columns=None, index_base=1, threads=1)
wanted = {"mode": "batch_skipgram", "epochs": 1, "vector_dim": 16}
model = BlazingText(hyperparameters.parse(BlazingText.Hyperparameters, wanted, owner="blazingtext"))
model.fit(MemorySession({"train": shard}, folder))
shard.close()
print("learnt", len(model._model.vocabulary))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux'")
def test_a_text_larger_than_memory_is_streamed(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    block = b"".join(b" ".join(b"word%d" % w for w in row) + b"\n" for row in generator.integers(0, 5000, (20_000, 12)))
    with (tmp_path / "train.txt").open("wb") as file:
        for _ in range(190):
            file.write(block)
    limit = 300 << 20
    assert (tmp_path / "train.txt").stat().st_size > limit
    ended = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path), str(limit)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split() == ["learnt", "5000"]
