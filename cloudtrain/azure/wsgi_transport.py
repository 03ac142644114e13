"""A `requests` adapter that calls a WSGI application instead of opening a socket.

The Azure SDK cannot tell the difference: it sends HTTP requests to https://management.azure.com and reads HTTP answers.
"""

import io
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from azure.core.pipeline.transport import RequestsTransport
from requests.adapters import BaseAdapter
from requests.utils import super_len
from urllib3.exceptions import ProtocolError
from urllib3.response import HTTPResponse

from cloudtrain.clock import Clock

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class WsgiAdapter(BaseAdapter):
    def __init__(self, app: WsgiApp) -> None:
        super().__init__()
        self._app = app

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        started: dict[str, Any] = {}

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            started["status"], started["headers"] = status, headers

        environ = _environ(request)
        environ["cloudtrain.patience"] = timeout[1] if isinstance(timeout, tuple) else timeout
        try:
            body = self._app(environ, start_response)
        except socket.gaierror as error:  # a host that there is not
            raise requests.ConnectionError(error, request=request) from error
        except ConnectionResetError as error:
            # What urllib3 and requests make of a connection that the other side closed before it answered.
            raise requests.ConnectionError(ProtocolError("Connection aborted.", error), request=request) from error
        except TimeoutError as error:
            raise requests.ReadTimeout(f"Read timed out. (read timeout={timeout})", request=request) from error
        code, _, reason = started["status"].partition(" ")
        raw = HTTPResponse(
            body=_Body(body),
            headers=started["headers"],
            status=int(code),
            reason=reason,
            preload_content=False,
            decode_content=False,
            request_method=request.method,
        )
        response = requests.Response()
        response.status_code = int(code)
        response.reason = reason
        response.headers = requests.structures.CaseInsensitiveDict(started["headers"])
        response.url = request.url or ""
        response.request = request
        response.raw = raw
        return response

    def close(self) -> None:
        """Nothing is open."""


def _environ(request: requests.PreparedRequest) -> dict[str, Any]:
    """The request as PEP 3333 says it."""
    parts = urlsplit(request.url or "")
    stream, length = _sent(request)
    headers = [(name, _text(value)) for name, value in request.headers.items() if name.lower() != "content-length"]
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(parts.path).encode().decode("latin-1"),
        "QUERY_STRING": parts.query,
        "SERVER_NAME": parts.hostname,
        "SERVER_PORT": str(parts.port or 443),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": length,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": parts.scheme,
        "wsgi.input": stream,
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "HTTP_HOST": parts.netloc,
        # Signatures cover the path as sent, and names of metadata have a case: neither survives in WSGI's own keys.
        "REQUEST_URI": parts.path + (f"?{parts.query}" if parts.query else ""),
        "cloudtrain.headers": [*headers, ("Content-Length", length)],
    }
    for name, text in headers:
        if name.lower() == "content-type":
            environ["CONTENT_TYPE"] = text
        else:
            environ["HTTP_" + name.upper().replace("-", "_")] = text
    return environ


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _sent(request: requests.PreparedRequest) -> tuple[Any, str]:
    """The body as a stream, and its length. A file is read by the app as it goes."""
    body = request.body or b""
    if hasattr(body, "read"):
        return body, str(request.headers.get("Content-Length") or super_len(body))  # type: ignore[no-untyped-call]
    data = body.encode() if isinstance(body, str) else bytes(body)
    return io.BytesIO(data), str(len(data))


class _Body(io.RawIOBase):
    """What a WSGI app answers, as a file that is read as it goes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._iterator = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._iterator, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        if not self.closed and hasattr(self._chunks, "close"):
            self._chunks.close()
        super().close()


class ClockedTransport(RequestsTransport):  # type: ignore[misc]  # azure.core is not typed for subclassing
    """Waits between polls and retries by the injected clock."""

    def __init__(self, clock: Clock, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._clock = clock

    def sleep(self, duration: float) -> None:
        self._clock.sleep(duration)
