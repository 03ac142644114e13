"""The blob service on a loopback port, for clients that speak HTTP: the account is the first segment of the path.

Plain HTTP, for what runs on this machine. What the service asks for is checked as everywhere: no request is answered
without a signature, a key or a token.
"""

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cloudtrain.emulator.blobs.call import RAW_HEADERS
from cloudtrain.emulator.store import StoreError

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

HOST = "127.0.0.1"
_LARGEST_UNREAD = 1 << 20


@contextlib.contextmanager
def listening(app: WsgiApp, port: int = 0) -> Iterator[int]:
    """Serve until the block ends; yields the port (0: a free one). Raises OSError where the port cannot be had."""
    server = _Server((HOST, port), _handler(app))
    thread = threading.Thread(target=server.serve_forever, name="blobs", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class _Body(io.RawIOBase):
    """No more of a connection than the request's own bytes."""

    def __init__(self, stream: io.BufferedIOBase, length: int) -> None:
        self._stream, self.left = stream, length

    def read(self, size: int | None = -1) -> bytes:
        wanted = self.left if size is None or size < 0 else min(size, self.left)
        data = self._stream.read(wanted) if wanted else b""
        self.left -= len(data)
        return data


def _handler(app: WsgiApp) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60
        # Headers and the beginning of a body go out together: two small packets would wait for each other.
        wbufsize = 64 * 1024
        disable_nagle_algorithm = True

        def answer(self) -> None:
            length = self.headers.get("Content-Length", "0")
            body = _Body(self.rfile, int(length) if length.isdigit() else 0)
            try:
                chunks = app(_environ(self, body), self._start)
            except (StoreError, socket.gaierror) as error:
                self.send_error(500, "Internal Server Error", str(error))  # and closes the connection
                return
            try:
                for chunk in chunks:
                    self.wfile.write(chunk)
                self.wfile.flush()
            finally:
                if hasattr(chunks, "close"):
                    chunks.close()
            if body.left > _LARGEST_UNREAD:
                self.close_connection = True
            else:
                body.read()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            code, _, reason = status.partition(" ")
            self.send_response_only(int(code), reason)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Requests carry signatures: they are not logged."""

    return Handler


def _environ(handler: BaseHTTPRequestHandler, body: _Body) -> dict[str, Any]:
    path, _, query = handler.path.partition("?")
    return {
        "REQUEST_METHOD": handler.command,
        "REQUEST_URI": handler.path,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "HTTP_HOST": handler.headers.get("Host", ""),
        "REMOTE_ADDR": handler.client_address[0],
        "wsgi.url_scheme": "http",
        "wsgi.input": body,
        RAW_HEADERS: list(handler.headers.items()),
    }
