"""A `requests` adapter that calls a WSGI application instead of opening a socket.

The Azure SDK cannot tell the difference: it sends HTTP requests to https://management.azure.com and reads HTTP answers.
"""

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from azure.core.pipeline.transport import RequestsTransport
from requests.adapters import BaseAdapter
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

        body = b"".join(self._app(_environ(request), start_response))
        code, _, reason = started["status"].partition(" ")
        raw = HTTPResponse(
            body=io.BytesIO(body),
            headers=started["headers"],
            status=int(code),
            reason=reason,
            preload_content=False,
            decode_content=False,
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
    body = request.body or b""
    data = body.encode() if isinstance(body, str) else bytes(body)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(parts.path).encode().decode("latin-1"),
        "QUERY_STRING": parts.query,
        "SERVER_NAME": parts.hostname,
        "SERVER_PORT": str(parts.port or 443),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(data)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": parts.scheme,
        "wsgi.input": io.BytesIO(data),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "HTTP_HOST": parts.netloc,
    }
    for name, value in request.headers.items():
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if name.lower() == "content-type":
            environ["CONTENT_TYPE"] = text
        elif name.lower() != "content-length":
            environ["HTTP_" + name.upper().replace("-", "_")] = text
    return environ


class ClockedTransport(RequestsTransport):  # type: ignore[misc]  # azure.core is not typed for subclassing
    """Waits between polls and retries by the injected clock."""

    def __init__(self, clock: Clock, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._clock = clock

    def sleep(self, duration: float) -> None:
        self._clock.sleep(duration)
