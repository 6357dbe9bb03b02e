"""S3 as moto speaks it, served on loopback; something may stand between it and its clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

App = Callable[[dict[str, Any], Any], Any]  # WSGI


@contextmanager
def serve(between: Callable[[App], App] | None = None, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve an S3 of its own; yield its URL.

    Args:
        between: makes an application that stands before moto's.
        host: address to listen at.
    """
    pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.moto_server.werkzeug_app")
    serving = pytest.importorskip("werkzeug.serving")

    class Quiet(serving.WSGIRequestHandler):  # type: ignore[misc, name-defined]
        def log(self, *args: object) -> None:
            """Say nothing."""

    app: App = moto_server.DomainDispatcherApplication(moto_server.create_backend_app)
    server = serving.make_server(host, 0, between(app) if between else app, threaded=True, request_handler=Quiet)
    server.daemon_threads, server.block_on_close = True, False  # clients keep connections open: wait for none
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    _start_client_threads()
    yield f"http://{host}:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def use(endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point this process's S3 clients to `endpoint` and make the bucket.

    File systems are kept by fsspec, whatever the variables say by then: those of other endpoints are forgotten.
    """
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing-id",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    pytest.importorskip("boto3").client("s3").create_bucket(Bucket=bucket)


def _start_client_threads() -> None:
    """Start fsspec's own threads, which outlive tests, before a test can be blamed for them."""
    import fsspec.asyn

    async def resolve() -> None:
        await asyncio.get_running_loop().run_in_executor(None, len, "")

    asyncio.run_coroutine_threadsafe(resolve(), fsspec.asyn.get_loop()).result()
