"""S3 that answers 500 and 503, is slow, or cuts the connection, at the n-th request of a save and of a restore."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import moto_s3
import pytest

from phalanx import storage
from phalanx.checkpoint.place import StoragePlace
from phalanx.checkpoint.policy import Retention
from phalanx.checkpoint.store import CheckpointStore
from phalanx.contracts import Collective
from phalanx.errors import PhalanxError, PlatformError
from phalanx.parallel.collective import Solo
from phalanx.parallel.threads import run_threads
from phalanx.testing.store_checks import Part, example_state, restored_step, save_steps

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
KINDS = ("500", "503", "cut", "half an answer")


class Trouble:
    """Stands before S3 and does something to its n-th request, and to all later ones if `lasting`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.let_go = threading.Event()  # those that hang
        self.set(0, "500")

    def set(self, at: int, kind: str, *, lasting: bool = False, after: bool = False) -> None:
        """Begin to count anew. `after`: the request is carried out, and only its answer is lost."""
        with self._lock:
            self.requests = 0
            self.fired = False
            self._at, self._kind, self._lasting, self._after = at, kind, lasting, after

    def __call__(self, app: moto_s3.App) -> moto_s3.App:
        def between(environ: dict[str, Any], start_response: Any) -> Any:
            with self._lock:
                self.requests += 1
                is_it = self._at > 0 and (self.requests == self._at or (self._lasting and self.requests > self._at))
                self.fired = self.fired or is_it
                kind, after = self._kind, self._after
            if not is_it:
                return app(environ, start_response)
            if after:
                list(app(environ, lambda *_: None))
            else:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return self._answer(kind, environ, start_response)

        return between

    def _answer(self, kind: str, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if kind == "cut":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("cut")
        if kind == "hang":
            self.let_go.wait()
            raise ConnectionError("given up")
        if kind == "half an answer":
            start_response("200 OK", [("Content-Length", "1000000")])
            return [b"<?xml"]
        code = {"500": "500 Internal Server Error", "503": "503 Service Unavailable"}[kind]
        start_response(code, [("Content-Type", "application/xml")])
        name = "InternalError" if kind == "500" else "SlowDown"
        return [f"<Error><Code>{name}</Code><Message>trouble</Message></Error>".encode()]


@pytest.fixture(scope="module")
def trouble() -> Trouble:
    return Trouble()


@pytest.fixture(scope="module")
def endpoint(trouble: Trouble) -> Iterator[str]:
    with moto_s3.serve(trouble) as endpoint:
        yield endpoint


@pytest.fixture
def url(endpoint: str, trouble: Trouble, monkeypatch: pytest.MonkeyPatch) -> str:
    import s3fs

    trouble.set(0, "500")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the clients' patience is not what is tested here
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    moto_s3.use(endpoint, "faults", monkeypatch)
    return f"s3://faults/{uuid.uuid4().hex}"


@pytest.mark.parametrize(
    ("kind", "lasting", "stride"),
    [
        ("503", False, 5),
        ("cut", True, 7),
        *(pytest.param(kind, lasting, 1, marks=pytest.mark.slow) for kind in KINDS for lasting in (False, True)),
    ],
)
def test_requests_of_a_save(
    url: str, trouble: Trouble, case: Callable[[], None], kind: str, lasting: bool, stride: int
) -> None:
    for at in itertools.count(1, stride):
        place = StoragePlace(f"{url}/{at}")
        trouble.set(0, kind)
        save_steps(place, Solo(), range(1, 3))
        trouble.set(at, kind, lasting=lasting)
        try:
            save_steps(place, Solo(), range(3, 4), keep=Retention(last=1))
            survived = True
        except PhalanxError:
            survived = False
        fired = trouble.fired
        trouble.set(0, kind)
        step = restored_step(place, Solo(), 1)
        assert step in (2, 3)
        assert step == 3 or not survived
        case()
        if not fired:
            break


@pytest.mark.parametrize(("kind", "stride"), [("cut", 4), pytest.param("500", 1, marks=pytest.mark.slow)])
def test_an_answer_that_is_lost(url: str, trouble: Trouble, case: Callable[[], None], kind: str, stride: int) -> None:
    """The request was carried out, but its sender is told that it was not: still a whole checkpoint, or none."""
    for at in itertools.count(1, stride):
        place = StoragePlace(f"{url}/{at}")
        save_steps(place, Solo(), range(1, 3))
        trouble.set(at, kind, after=True)
        with contextlib.suppress(PhalanxError):
            save_steps(place, Solo(), range(3, 4))
        fired = trouble.fired
        trouble.set(0, kind)
        assert restored_step(place, Solo(), 1) in (2, 3)
        case()
        if not fired:
            break


@pytest.mark.parametrize("kind", ["cut", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("500", "503"))])
def test_every_request_of_a_restore(url: str, trouble: Trouble, case: Callable[[], None], kind: str) -> None:
    place = StoragePlace(url)
    save_steps(place, Solo(), range(1, 3))
    for at in itertools.count(1):
        trouble.set(at, kind)
        try:
            assert restored_step(place, Solo(), 1) in (1, 2)
        except PhalanxError:
            assert trouble.fired
        case()
        fired = trouble.fired
        trouble.set(0, kind)
        if not fired:
            break
    for at in (1, 2):
        trouble.set(at, kind, lasting=True)
        with pytest.raises(PhalanxError):
            restored_step(place, Solo(), 1)
        trouble.set(0, kind)
        case()


@pytest.mark.parametrize("kind", ["503", "cut"])
def test_one_rank_of_two(url: str, trouble: Trouble, case: Callable[[], None], kind: str) -> None:
    place = StoragePlace(url)
    run_threads(2, lambda world: save_steps(place, world, range(1, 2)))
    for at in (1, 4, 7):
        trouble.set(at, kind)
        told: list[bool] = []

        def save(world: Collective, at: int = at, told: list[bool] = told) -> None:
            store = CheckpointStore("", world=world, job_id="job", place=place)
            store.save(1 + at, {"part": Part(example_state(1 + at, world.rank, world.size))})
            try:
                store.wait()
                told.append(False)
            except PhalanxError:
                told.append(True)

        run_threads(2, save)
        trouble.set(0, kind)
        assert told[0] == told[1], "both ranks are told of a failed save, or none"
        steps = set(run_threads(2, lambda world: restored_step(place, world, 2)))
        assert len(steps) == 1
        assert 1 + at in steps or told[0]
        case()


@pytest.mark.parametrize("call", ["newest", "channel"])
def test_a_listing_that_hangs_is_given_up(url: str, trouble: Trouble, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    save_steps(StoragePlace(url), Solo(), range(1, 2))
    monkeypatch.setattr(storage, "_LISTING_PATIENCE_S", 0.3)
    trouble.set(1 if call == "newest" else 2, "hang", lasting=True)  # a channel's URL is looked at first: is it a file?
    try:
        with pytest.raises(PlatformError, match="Timeout"):
            storage.sizes_below(url) if call == "newest" else storage.list_files(url)
        assert trouble.fired
    finally:
        trouble.let_go.set()
        trouble.set(0, "500")
    assert restored_step(StoragePlace(url), Solo(), 1) == 1
