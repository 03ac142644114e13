"""Requests and answers as Azure Resource Manager speaks them, and its error envelope."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

Json = dict[str, Any]

PATIENCE = "cloudtrain.patience"
"""environ's key for how many seconds an in-process client waits for an answer."""


class ArmError(Exception):
    """An answer that is a refusal: `{"error": {"code", "message", "target"?, "details"?}}`."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        target: str | None = None,
        details: Sequence[Json] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.target = target
        self.details = list(details)
        self.headers = dict(headers or {})

    def error(self) -> Json:
        error: Json = {"code": self.code, "message": self.message}
        if self.target is not None:
            error["target"] = self.target
        if self.details:
            error["details"] = self.details
        return error

    def answer(self) -> "Answer":
        return Answer(self.status, {"error": self.error()}, self.headers)


@dataclass
class Answer:
    """body None: an empty answer."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def payload(self) -> bytes:
        return b"" if self.body is None else json.dumps(self.body, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Request:
    """What a handler may know of a request. path keeps its casing; query keys are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    base: str  # scheme and host, as the client spoke them
    api_version: str
    subscription: str
    client_request_id: str = ""

    def object(self) -> Json:
        """The body, which must be a JSON object. Raises ArmError."""
        if isinstance(self.body, dict):
            return self.body
        raise ArmError(
            400,
            "InvalidRequestContent",
            "The request content was invalid and could not be deserialized: 'a JSON object was expected'.",
        )


def parse_query(text: str) -> dict[str, str]:
    return {key.lower(): value for key, value in parse_qsl(text, keep_blank_values=True)}


def parse_body(raw: bytes) -> Any:
    """None when there is none. Raises ArmError."""
    if not raw:
        return None
    try:
        return json.loads(raw)
    except (ValueError, UnicodeDecodeError) as error:
        raise ArmError(
            400,
            "InvalidRequestContent",
            f"The request content was invalid and could not be deserialized: '{error}'.",
        ) from None


def moment(epoch: float) -> str:
    """Compute's form of a time: seven decimals and an offset."""
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%dT%H:%M:%S.%f}0+00:00"


def second(epoch: float) -> str:
    """The agent's form of a time: whole seconds."""
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%dT%H:%M:%S}+00:00"


def zulu(epoch: float) -> str:
    """ARM's form of a time."""
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%dT%H:%M:%S.%f}0Z"


def guid() -> str:
    return str(uuid.uuid4())


def same(one: str, other: str) -> bool:
    """Azure compares names and ids without case."""
    return one.lower() == other.lower()


def section(body: Any, *path: str) -> Json:
    """The object at a path of keys; {} where there is none. Raises ArmError when something else stands
    there."""
    current = body
    for depth, key in enumerate(path, 1):
        current = current.get(key)
        if current is None:
            return {}
        if not isinstance(current, dict):
            raise bad_type(".".join(path[:depth]), current, "object")
    return current if isinstance(current, dict) else {}


def entries(body: Json, key: str, where: str = "") -> list[Json]:
    """The list of objects under a key; [] where there is none. Raises ArmError."""
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise bad_type(f"{where}.{key}".lstrip("."), value, "array of objects")
    return value


def text(body: Json, key: str, where: str = "") -> str | None:
    """The string under a key; None where there is none. Raises ArmError."""
    value = body.get(key)
    if value is None or isinstance(value, str):
        return value
    raise bad_type(f"{where}.{key}".lstrip("."), value, "string")


def bad_type(path: str, value: Any, expected: str) -> ArmError:
    shown = json.dumps(value)[:80]
    return ArmError(
        400,
        "InvalidRequestFormat",
        f"Cannot parse the request. Error converting value {shown} to type '{expected}'. Path '{path}'.",
    )
