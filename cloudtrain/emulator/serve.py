"""The embedded Azure on a loopback port, for clients other than cloudtrain.

Whoever can open a socket on this machine can reach the port, a page in a browser too: every request needs the
bearer token, and names this machine as its host (a name that a stranger's DNS points here is refused)."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from cloudtrain.emulator.store import StoreError
from cloudtrain.emulator.wire import Answer, ArmError

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

HOST = "127.0.0.1"
_LARGEST_HEADER = 64 * 1024  # the URL of an operation is kilobytes long
_LARGEST_BODY = 8 * 1024 * 1024  # the app answers 413 before; this bounds what is read
_THREADS = 16
_CLOSING_SECONDS = 5


class PortUnavailable(Exception):
    """The port cannot be had; the message is the system's reason."""


@contextmanager
def listening(app: WsgiApp, port: int = 0, certificate: Path | None = None) -> Iterator[str]:
    """Serve until the block ends; yields the URL. port 0: a free one. certificate: a PEM with its key, for TLS."""
    # 0.25 s of import, and only here.
    from cheroot.ssl.builtin import BuiltinSSLAdapter
    from cheroot.wsgi import Server

    server = Server(
        (HOST, port),
        app,
        numthreads=_THREADS,
        server_name=HOST,
        request_queue_size=64,
        shutdown_timeout=_CLOSING_SECONDS,
    )
    server.max_request_header_size, server.max_request_body_size = _LARGEST_HEADER, _LARGEST_BODY
    if certificate is not None:
        server.ssl_adapter = BuiltinSSLAdapter(str(certificate), str(certificate))
    try:
        server.prepare()
    except OSError as error:
        raise PortUnavailable(_reason(error)) from None
    bound = server.bind_addr[1]
    server.wsgi_app = _guarded(app, bound)
    thread = threading.Thread(target=server.serve, name="serve", daemon=True)
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://{HOST}:{bound}"
    finally:
        server.stop()
        thread.join(_CLOSING_SECONDS)


def telling(app: WsgiApp, tell: Callable[[str], None]) -> WsgiApp:
    """The app, each request told in one line: the answer's status, what was asked for, and by which az command."""

    def told(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, *rest: Any) -> Any:
            query = environ.get("QUERY_STRING")
            command = environ.get("HTTP_COMMANDNAME")
            what = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}" + (f"?{query}" if query else "")
            tell(f"{status[:3]} {what}" + (f"  (az {command})" if command else ""))
            return start_response(status, *rest)

        return app(environ, start)

    return told


@contextmanager
def until_interrupted() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set."""
    interrupted = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: interrupted.set()) for number in numbers]
    try:
        yield interrupted
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _reason(error: OSError) -> str:
    # cheroot makes one error of those of all addresses it tried, and keeps their text alone.
    number = re.search(r"\[Errno (\d+)\]", str(error))
    return os.strerror(int(number[1])) if number else str(error)


def _guarded(app: WsgiApp, port: int) -> WsgiApp:
    """The app for requests to this machine's own names; what goes wrong with the store is an answer here."""
    names = {f"{HOST}:{port}", f"localhost:{port}"}

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = str(environ.get("HTTP_HOST", ""))
        if host.lower() not in names:
            refusal = ArmError(
                400, "InvalidHostHeader", f"The request was sent to '{host}'; this service is {HOST}:{port} alone."
            )
            return answered(refusal.answer(), start_response)
        try:
            return app(environ, start_response)
        except StoreError as error:
            print(f"cloudtrain: {error}", file=sys.stderr)
            return answered(ArmError(500, "InternalServerError", str(error)).answer(), start_response)

    return guarded


def answered(answer: Answer, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """An answer without any of ARM's headers."""
    payload = answer.payload()
    headers = [("Content-Type", "application/json; charset=utf-8"), ("Content-Length", str(len(payload)))]
    start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", [*headers, *answer.headers.items()])
    return [payload]
