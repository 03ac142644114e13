"""Send recorded requests again, and tell how the embedded Azure's answers differ from Azure's.

Compared: the status, which headers are there, the query keys of operation URLs, the key paths and JSON types of
the body, and the values that are states or codes. Not: times, ids, sizes, counters, the order of keys.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from .conftest import Cloud, Reply

RECORDINGS = Path(__file__).parent / "recordings" / "exchanges.jsonl"
HEADERS = (
    "azure-asyncoperation",
    "azure-asyncnotification",
    "location",
    "x-ms-failure-cause",
    "x-ms-ratelimit-remaining-resource",
    "etag",
)
STATES = frozenset(
    {
        "provisioningState",
        "status",
        "code",
        "displayStatus",
        "executionState",
        "message",
        "type",
        "priority",
        "evictionPolicy",
        "deleteOption",
        "level",
        "accepted",
    }
)
Exchange = dict[str, Any]


def recorded(source: str) -> dict[int, Exchange]:
    """The exchanges of one recording by their number."""
    rows = (json.loads(line) for line in RECORDINGS.read_text().splitlines())
    split = ((row["source"].rpartition("#"), row) for row in rows)
    return {int(number): row for (name, _, number), row in split if name == source}


@dataclass
class Replay:
    """One sitting: what braces stand for, and the URLs of the operation that was begun last."""

    cloud: Cloud
    names: dict[str, str]
    begun: Reply | None = None
    differences: list[str] = field(default_factory=list)

    def send(self, exchange: Exchange, **names: str) -> Reply:
        """Send one request as recorded; its differences are noted."""
        filled = self.names | names | {"sub": self.cloud.azure.subscription_id}
        if "{op}" in exchange["path"]:
            reply = self._poll(exchange)
        else:
            query = {key: _fill(value, filled) for key, value in exchange["query"].items()}
            url = f"{_fill(exchange['path'], filled)}?{urlencode(query)}"
            body = json.loads(_fill(json.dumps(exchange["request"]), filled))
            reply = self.cloud.call(exchange["method"], url, body, version="")
            if exchange["status"] in (201, 202) or "azure-asyncoperation" in exchange["headers"]:
                self.begun = reply
        label = exchange["source"].rpartition("#")[2]
        self.differences += [f"#{label} {difference}" for difference in compare(exchange, reply)]
        return reply

    def _poll(self, exchange: Exchange) -> Reply:
        assert self.begun is not None
        headers = self.begun.headers
        final = exchange["query"].get("monitor") or "operationresults" in exchange["path"].lower()
        url = headers["Location"] if final else headers["Azure-AsyncOperation"]
        ended = exchange["status"] != 202 and (exchange["response"] or {}).get("status") not in (
            "InProgress",
            "Running",
        )
        return (
            self.cloud.finish(Reply(0, {"Azure-AsyncOperation": url}, None)) if ended else self.cloud.call("GET", url)
        )

    def check(self, allowed: Mapping[str, str]) -> None:
        """allowed: a pattern of a difference -> the reason for it. Each must be met, and nothing else."""
        unexplained = [d for d in self.differences if not any(re.fullmatch(p, d, re.DOTALL) for p in allowed)]
        stale = [p for p in allowed if not any(re.fullmatch(p, d, re.DOTALL) for d in self.differences)]
        assert not unexplained, "\n".join(unexplained)
        assert not stale, stale


def _fill(text: str, names: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda m: names.get(m[1], names.get(m[1].lower(), m[0])), text)


# comparison


def compare(exchange: Exchange, reply: Reply) -> list[str]:
    return [*_statuses(exchange, reply), *_headers(exchange, reply), *_bodies(exchange["response"], reply.body)]


def _statuses(exchange: Exchange, reply: Reply) -> Iterator[str]:
    if exchange["status"] != reply.status:
        yield f"status {exchange['status']} is {reply.status}"


def _headers(exchange: Exchange, reply: Reply) -> Iterator[str]:
    ours = {name.lower(): value for name, value in reply.headers.items()}
    for name in HEADERS:
        theirs = exchange["headers"].get(name)
        if theirs is None and name in ours:
            yield f"header {name} added"
        if theirs is not None and name not in ours:
            yield f"header {name} missing"
        if theirs is not None and name in ours and theirs.startswith("https://"):
            yield from _urls(name, theirs, ours[name])
        if theirs is not None and name in ours and name.startswith("x-ms-ratelimit"):
            yield from _limits(theirs, ours[name])


def _urls(name: str, theirs: str, ours: str) -> Iterator[str]:
    wanted, given = ({key for key, _ in parse_qsl(urlsplit(url).query)} for url in (theirs, ours))
    if wanted != given:
        yield f"query keys of {name}: {sorted(wanted)} are {sorted(given)}"


def _limits(theirs: str, ours: str) -> Iterator[str]:
    wanted, given = ([part.partition(";")[0] for part in text.split(",")] for text in (theirs, ours))
    if wanted != given:
        yield f"rate limits {wanted} are {given}"


def _bodies(theirs: Any, ours: Any) -> Iterator[str]:
    wanted, given = dict(_paths(theirs)), dict(_paths(ours))
    for path in sorted(wanted.keys() - given.keys()):
        yield f"missing {path}"
    for path in sorted(given.keys() - wanted.keys()):
        yield f"added {path}"
    for path in sorted(wanted.keys() & given.keys()):
        if wanted[path][0] != given[path][0]:
            yield f"type of {path}: {wanted[path][0]} is {given[path][0]}"
        elif path.rpartition(".")[2] in STATES and wanted[path][1] != given[path][1]:
            yield f"value of {path}: {wanted[path][1]} is {given[path][1]}"


def _paths(body: Any, path: str = "$") -> Iterator[tuple[str, tuple[str, Any]]]:
    """Every key path with its JSON type and value; the entries of a list share one path, the last wins."""
    if isinstance(body, dict):
        yield path, ("object", None)
        for key, value in body.items():
            yield from _paths(value, f"{path}.{key}")
    elif isinstance(body, list):
        yield path, ("array", None)
        for entry in body:
            yield from _paths(entry, f"{path}[]")
    else:
        kind = {bool: "boolean", int: "number", float: "number", str: "string", type(None): "null"}[type(body)]
        yield path, (kind, body)
