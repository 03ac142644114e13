"""Every exchange with an embedded Azure of this process, looked at on its way."""

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cloudtrain.emulator.app import path_of
from cloudtrain.emulator.embedded import EmbeddedAzure
from cloudtrain.emulator.wire import parse_query

from .contract import Exchange

_MANAGERS = ("management.azure.com", "127.0.0.1")  # the price list and the blob services have hosts of their own


@dataclass
class Watched:
    exchanges: list[Exchange] = field(default_factory=list)

    def operations(self) -> set[str]:
        return {exchange.operation for exchange in self.exchanges}


def _parsed(body: bytes) -> Any:
    """None for an empty body, and for one that is no JSON: a test sends such a thing on purpose."""
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None


def watch(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """From now on, whatever any EmbeddedAzure is asked and answers as Resource Manager is kept."""
    watched, plain = Watched(), EmbeddedAzure.__call__

    def call(self: EmbeddedAzure, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        sent = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        started: dict[str, Any] = {}

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            started.update(status=int(status[:3]), headers={name.lower(): value for name, value in headers})
            return start_response(status, headers, *rest)

        content = b"".join(plain(self, {**environ, "wsgi.input": io.BytesIO(sent)}, start))
        if environ.get("HTTP_HOST", "").partition(":")[0] in _MANAGERS:
            watched.exchanges.append(
                Exchange(
                    environ["REQUEST_METHOD"],
                    path_of(environ),
                    parse_query(environ.get("QUERY_STRING", "")),
                    _parsed(sent),
                    started["status"],
                    started["headers"],
                    json.loads(content) if content else None,
                )
            )
        return [content]

    monkeypatch.setattr(EmbeddedAzure, "__call__", call)
    return watched
