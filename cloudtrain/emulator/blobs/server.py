"""The blob service on a loopback port, for clients that speak HTTP: the account is the first segment of the path.

Plain HTTP, for what runs on this machine. What the service asks for is checked as everywhere: no request is answered
without a signature, a key or a token.

An emulated VM reaches its blobs so, at `$CLOUDTRAIN_BLOBS/<account>/<container>/<blob>` for what is
https://<account>.blob.core.windows.net/<container>/<blob> on Azure, and Resource Manager at `$CLOUDTRAIN_ARM/...` for
https://management.azure.com/... As a program (its arguments: the embedded Azure's directory, the VM's), it serves both
on the listening socket that is its standard input; there HTTP stands for HTTPS. With `--nodes` and the descriptor of a
lock in place of a VM's directory, it serves all nodes, as long as one of them runs.
"""

import contextlib
import io
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cloudtrain.emulator.blobs.call import RAW_HEADERS
from cloudtrain.emulator.machines import MANAGEMENT_PATH, MachineError
from cloudtrain.emulator.store import StoreError

if TYPE_CHECKING:
    from cloudtrain.emulator.machines.container import ContainerMachines

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

HOST = "127.0.0.1"
_LARGEST_UNREAD = 1 << 20
_LOOK_SECONDS = 60.0


@contextlib.contextmanager
def listening(app: WsgiApp, port: int = 0) -> Iterator[int]:
    """Serve until the block ends; yields the port (0: a free one). Raises OSError where the port cannot be had."""
    server = _Server(socket.create_server((HOST, port), backlog=64), _handler(app, "http"))
    thread = threading.Thread(target=server.serve_forever, name="blobs", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__((HOST, 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_address = listener.getsockname()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if connection.family == socket.AF_UNIX:
            return connection, (HOST, 0)  # its client has no address
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        return connection, address


class _Body(io.RawIOBase):
    """No more of a connection than the request's own bytes."""

    def __init__(self, stream: io.BufferedIOBase, length: int) -> None:
        self._stream, self.left = stream, length

    def read(self, size: int | None = -1) -> bytes:
        wanted = self.left if size is None or size < 0 else min(size, self.left)
        data = self._stream.read(wanted) if wanted else b""
        self.left -= len(data)
        return data


def _handler(app: WsgiApp, scheme: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60
        # Headers and the beginning of a body go out together: two small packets would wait for each other.
        wbufsize = 64 * 1024

        def answer(self) -> None:
            length = self.headers.get("Content-Length", "0")
            body = _Body(self.rfile, int(length) if length.isdigit() else 0)
            try:
                chunks = app(_environ(self, body, scheme), self._start)
            except (StoreError, socket.gaierror) as error:
                self.send_error(500, "Internal Server Error", str(error))  # and closes the connection
                return
            except (ConnectionResetError, TimeoutError):  # by a fault
                self.close_connection = True
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

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = answer

        def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            code, _, reason = status.partition(" ")
            self.send_response_only(int(code), reason)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Requests carry signatures: they are not logged."""

    return Handler


def _environ(handler: BaseHTTPRequestHandler, body: _Body, scheme: str) -> dict[str, Any]:
    path, _, query = handler.path.partition("?")
    return {
        "REQUEST_METHOD": handler.command,
        "REQUEST_URI": handler.path,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "HTTP_HOST": handler.headers.get("Host", ""),
        "REMOTE_ADDR": handler.client_address[0],
        "wsgi.url_scheme": scheme,
        "wsgi.input": body,
        RAW_HEADERS: list(handler.headers.items()),
    }


def for_a_vm(blobs: WsgiApp, management: WsgiApp) -> WsgiApp:
    """What a VM reaches of the embedded Azure, at one port."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if not path.startswith(f"{MANAGEMENT_PATH}/"):
            return blobs({**environ, "wsgi.url_scheme": "https"}, start_response)
        headers = {name.lower(): value for name, value in environ[RAW_HEADERS]}
        return management(
            {
                **environ,
                "SCRIPT_NAME": MANAGEMENT_PATH,
                "PATH_INFO": unquote(path.removeprefix(MANAGEMENT_PATH), "latin-1"),
                "CONTENT_LENGTH": str(environ["wsgi.input"].left),
                "HTTP_AUTHORIZATION": headers.get("authorization", ""),
                "HTTP_X_MS_CLIENT_REQUEST_ID": headers.get("x-ms-client-request-id", ""),
            },
            start_response,
        )

    return app


def main(arguments: list[str]) -> None:
    from cloudtrain.clock import SystemClock
    from cloudtrain.emulator.embedded import EmbeddedAzure

    root, clock = Path(arguments[0]), SystemClock()
    if arguments[1] == "--nodes":
        from cloudtrain.emulator.machines import container, node_server

        node_server.detach(int(arguments[2]))
        nodes = container.nodes_from_inside(root, clock=clock, node_base=os.environ.get("CLOUDTRAIN_NODE_BASE", ""))
        azure = EmbeddedAzure(root, clock=clock, machines=nodes)
        server = _Server(socket.socket(fileno=0), _handler(for_a_vm(azure.blobs, azure), "http"))
        threading.Thread(target=_end_with_the_last_node, args=(nodes, server), daemon=True).start()
    else:
        from cloudtrain.emulator.machines.process import machines_of

        azure = EmbeddedAzure(root, clock=clock, machines=machines_of(Path(arguments[1]), clock))
        server = _Server(socket.socket(fileno=0), _handler(for_a_vm(azure.blobs, azure), "http"))
    server.serve_forever()
    azure.close()


def _end_with_the_last_node(nodes: "ContainerMachines", server: _Server) -> None:
    """A boot has its server before its node: looked at twice. An engine that is gone has no nodes."""
    idle = 0
    while idle < 2:
        time.sleep(_LOOK_SECONDS)
        try:
            idle = 0 if nodes.any_on() else idle + 1
        except MachineError:
            idle += 1
    server.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
