"""Faults on request: rules that say which requests go wrong, and how.

Rules lie in the store, so that they hold for every process, and a rule that strikes once strikes once. They are asked
in the order in which they were added; the first one that strikes decides what happens to a request.

Requests for blobs are struck by rules that name them alone: by an operation (Blobs_PutBlob), or by a method and a
URL that begins with https:// (PUT https://*.blob.core.windows.net/run/models/*).
"""

import contextlib
import difflib
import errno
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NoReturn

import msgspec

from cloudtrain.clock import Clock
from cloudtrain.emulator import ids, operations, resources
from cloudtrain.emulator.blobs.errors import refused as blob_refused
from cloudtrain.emulator.machines import MachineError
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.refusals import REFUSALS, Circumstances, failure, refused
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.settings import NotUnderstood
from cloudtrain.emulator.store import Json, Records, Resource, Store
from cloudtrain.emulator.wire import ArmError, Request, section

_METHODS = ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE")
_PREFIX, _NUMBER = "fault:", "fault_number"
_BLOBS, _HTTPS = "Blobs_", "https://"
_FOR_BLOBS = ("500", "503", "drop-before", "drop-after", "hang")


class Rule(msgspec.Struct, kw_only=True):
    """kind: see KINDS. on: an operation, or a method and a path, with * and ?. count: how often it strikes, None for
    ever. after: matching requests that it lets pass first. probability: of striking, drawn from the seed and the number
    of the request, so that the same seed strikes the same requests. code, retry_after, seconds: as the kind wants.

    seen, struck: requests that matched, and that it struck."""

    id: int
    kind: str
    on: str
    count: int | None = 1
    after: int = 0
    probability: float = 1.0
    seed: int = 0
    code: str | None = None
    retry_after: int | None = None
    seconds: float | None = None
    seen: int = 0
    struck: int = 0


class Faults(msgspec.Struct, frozen=True):
    """What the `emulator fault` verbs answer: rules that were added, that there are, or that were removed."""

    faults: list[Rule]


@dataclass(frozen=True)
class Kind:
    """what: what it does, for a person. on: where it strikes unless told otherwise. takes: which of the rule's code,
    retry_after and seconds it wants, with what they are when not given."""

    what: str
    on: str = "*"
    takes: Mapping[str, str | int | float | None] = field(default_factory=dict)


KINDS: Mapping[str, Kind] = {
    "429": Kind("answers 429, too many requests", takes={"retry_after": None}),
    "500": Kind("answers 500", takes={"retry_after": None}),
    "503": Kind("answers 503", takes={"retry_after": None}),
    "drop-before": Kind("drops the connection, nothing done"),
    "drop-after": Kind("does the work, then drops the connection"),
    "hang": Kind("does not answer, and drops the connection after so many seconds", takes={"seconds": 3600.0}),
    "refuse": Kind(
        "refuses with a code of Azure's", "VirtualMachines_CreateOrUpdate", {"code": "SkuNotAvailable"}
    ),
    "fail-late": Kind(
        "accepts, and the operation ends as failed with a code of Azure's",
        "VirtualMachines_CreateOrUpdate",
        {"code": "AllocationFailed"},
    ),
    "busy": Kind("says that another RunCommand is running (409)", "POST */runCommand*|PUT */runCommands/*"),
    "lose-script": Kind(
        "cuts a script off half way and reports success", "POST */runCommand*|PUT */runCommands/*"
    ),
    "mute-script": Kind(
        "reports a script as running for ever, whatever becomes of it", "PUT */runCommands/*"
    ),
    "evict-creating": Kind("evicts the VM while it is made", "VirtualMachines_CreateOrUpdate"),
    "evict": Kind("evicts the VM that the request is about, without notice", "* */virtualMachines/*"),
    "delete-group": Kind("somebody deletes the resource group that the request is about", "* */resourceGroups/*"),
}  # fmt: skip


# rules


def add(
    records: Records,
    operations: Sequence[str],
    kind: str,
    *,
    on: str | None = None,
    count: int | None = 1,
    after: int = 0,
    probability: float = 1.0,
    seed: int = 0,
    **given: str | int | float | None,
) -> Rule:
    """operations: the names of all there are. Raises NotUnderstood."""
    known = KINDS.get(kind)
    if known is None:
        there = "; ".join(f"{name} ({one.what})" for name, one in KINDS.items())
        raise NotUnderstood(f'"{kind}" is no kind of fault. There are: {there}.')
    _check_numbers(count, after, probability)
    for name, value in given.items():
        if value is not None and name not in known.takes:
            raise NotUnderstood(f"--{name.replace('_', '-')} says nothing to a fault of kind {kind}.")
    values = {name: default if given.get(name) is None else given[name] for name, default in known.takes.items()}
    _check_values(values)
    number = int(records.setting(_NUMBER) or 0) + 1
    records.set_setting(_NUMBER, str(number))
    pattern = known.on if on is None else _checked_pattern(operations, on)
    if kind not in _FOR_BLOBS and any(_names_blobs(part.lower()) for part in pattern.split("|")):
        raise NotUnderstood(f"Requests for blobs are struck by {', '.join(_FOR_BLOBS)}; {kind} is for other requests.")
    rule = msgspec.convert(
        {
            "id": number,
            "kind": kind,
            "on": pattern,
            "count": count,
            "after": after,
            "probability": probability,
            "seed": seed,
            **values,
        },
        Rule,
    )
    _keep(records, rule)
    return rule


def rules(records: Records) -> list[Rule]:
    """In the order in which they are asked."""
    kept = [msgspec.json.decode(text, type=Rule) for text in records.settings(_PREFIX).values()]
    return sorted(kept, key=lambda rule: rule.id)


def clear(records: Records, numbers: Sequence[int]) -> list[Rule]:
    """Remove these rules, or all of them; returns what was removed. Raises NotUnderstood."""
    there = {rule.id: rule for rule in rules(records)}
    for number in numbers:
        if number not in there:
            raise NotUnderstood(f"There is no fault {number}; cloudtrain emulator fault list  shows them.")
    gone = [there[number] for number in (numbers or sorted(there))]
    for rule in gone:
        records.drop_setting(f"{_PREFIX}{rule.id}")
    return gone


def _keep(records: Records, rule: Rule) -> None:
    records.set_setting(f"{_PREFIX}{rule.id}", msgspec.json.encode(rule).decode())


def _check_numbers(count: int | None, after: int, probability: float) -> None:
    if count is not None and count < 1:
        raise NotUnderstood(f"--count is {count}; expected 1 or more.")
    if after < 0:
        raise NotUnderstood(f"--after is {after}; expected 0 or more.")
    if not 0 < probability <= 1:
        raise NotUnderstood(f"--probability is {probability:g}; expected more than 0, at most 1.")


def _check_values(values: Mapping[str, object]) -> None:
    code, pause, seconds = values.get("code"), values.get("retry_after"), values.get("seconds")
    if code is not None and code not in REFUSALS:
        near = difflib.get_close_matches(str(code), REFUSALS, n=3)
        raise NotUnderstood(
            f'"{code}" is no code that the embedded Azure knows; expected one of {", ".join(near or REFUSALS)}.'
        )
    if isinstance(pause, int) and not 0 < pause <= 600:
        raise NotUnderstood(f"--retry-after is {pause}; expected whole seconds from 1 to 600.")
    if isinstance(seconds, int | float) and not 0 < seconds <= 3600:
        raise NotUnderstood(f"--seconds is {seconds:g}; expected more than 0, at most 3600.")


def _checked_pattern(operations: Sequence[str], on: str) -> str:
    """A pattern that can match something; one without a method is an operation's name."""
    for part in on.split("|"):
        method, _, path = part.partition(" ")
        if path and method.upper() not in (*_METHODS, "*"):
            raise NotUnderstood(f'"{method}" is no method; expected one of {", ".join(_METHODS)}, or *.')
        if not path and not any(fnmatchcase(operation.lower(), part.lower()) for operation in operations):
            near = difflib.get_close_matches(part, operations, n=3, cutoff=0.4)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise NotUnderstood(
                f'"{part}" is no operation of the embedded Azure (such as VirtualMachines_CreateOrUpdate or '
                f'VirtualMachines_*, Blobs_*), nor a method and a path (such as "PUT */virtualMachines/*").{hint}'
            )
    return on


# requests


@dataclass(frozen=True)
class Strike:
    """A rule that strikes this request; without one, nothing happens to it. patience: how long the client waits for an
    answer, None where nobody knows."""

    rule: Rule | None
    azure: Azure
    route: Route
    request: Request
    names: Mapping[str, str]
    patience: float | None

    def before(self) -> None:
        """What happens before the request is worked on. Raises ArmError, ConnectionResetError (the connection is
        dropped) or TimeoutError (the client has given up)."""
        if self.rule is None:
            return
        match self.rule.kind:
            case "429" | "500" | "503":
                raise _status(self.rule, self.route)
            case "drop-before":
                raise _dropped("nothing done")
            case "hang":
                _hang(self.azure.clock, float(self.rule.seconds or 0), self.patience)
            case "refuse":
                raise refused(str(self.rule.code), self._about())
            case "busy":
                raise ArmError(
                    409,
                    "Conflict",
                    "Run command extension execution is in progress. Please wait for completion before invoking a "
                    "run command.",
                )
            case "evict":
                self._evict()
            case "delete-group":
                with contextlib.suppress(ArmError):  # it is gone, or going
                    resources.delete_group(self.azure, self.request, self.names["group"])

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Around the work on the request: what becomes of an operation that it begins; then the dropped connection."""
        with operations.fated(self._fate()):
            yield
        if self.rule is not None and self.rule.kind == "drop-after":
            raise _dropped("after the work was done")

    def _fate(self) -> Json:
        match self.rule.kind if self.rule else "":
            case "fail-late":
                assert self.rule is not None and self.rule.code is not None
                return {"failure": failure(self.rule.code, self._about())}
            case "lose-script":
                return {"lost": True}
            case "mute-script":
                return {"mute": True}
            case "evict-creating":
                return {"evicted": True}
        return {}

    def _evict(self) -> None:
        vm = self._vm()
        if vm is not None:
            with contextlib.suppress(MachineError):  # it is off already
                self.azure.machines.evict(vm.private["vm_id"], 0)

    def _vm(self) -> Resource | None:
        """The VM that the request is about."""
        if "/virtualmachines/<name>" not in self.route.path:
            return None
        with self.azure.store.read() as records:
            return records.resource(
                ids.resource_id(self.request.subscription, self.names["group"], ids.VM, self.names["name"])
            )

    def _about(self) -> Circumstances:
        body, vm = self.request.body, self._vm()
        given = body if isinstance(body, dict) else {}
        properties = section(given, "properties")
        if vm is not None:
            properties = vm.body["properties"] | properties
        zones = given.get("zones") or (vm.body.get("zones") if vm else None) or ["1"]
        return Circumstances(
            self.request.subscription,
            self.names.get("group", "unknown"),
            str(section(properties, "hardwareProfile").get("vmSize") or "unknown"),
            str(given.get("location") or (vm.location if vm else "unknown")),
            str(zones[0]),
        )


def _hang(clock: Clock, seconds: float, patience: float | None) -> NoReturn:
    clock.sleep(seconds if patience is None else min(seconds, patience))
    if patience is not None and patience <= seconds:
        raise TimeoutError("kept waiting by a fault")
    raise _dropped("after a long wait")


def _dropped(when: str) -> ConnectionResetError:
    # With its number: a server takes it for its client's, and closes the connection without an answer.
    return ConnectionResetError(errno.ECONNRESET, f"dropped by a fault, {when}")


def strike(azure: Azure, route: Route, request: Request, names: Mapping[str, str], patience: float | None) -> Strike:
    """What a rule has in store for a request; counts it."""
    rule = _striking(azure.store, route.operation, request.method, request.path)
    return Strike(rule, azure, route, request, names, patience)


@dataclass(frozen=True)
class BlobFaults:
    """What rules have in store for requests for blobs."""

    store: Store
    clock: Clock

    @contextlib.contextmanager
    def around(self, operation: str, method: str, url: str, patience: float | None) -> Iterator[None]:
        """Around the work on the request. Raises BlobError, ConnectionResetError or TimeoutError."""
        rule = _striking(self.store, _BLOBS + operation, method, url)
        match rule.kind if rule else "":
            case "500" | "503" as status:
                pause = rule.retry_after if rule else None
                headers = {} if pause is None else {"Retry-After": str(pause)}
                raise blob_refused("InternalError" if status == "500" else "ServerBusy", headers)
            case "drop-before":
                raise _dropped("nothing done")
            case "hang":
                _hang(self.clock, float((rule.seconds if rule else None) or 0), patience)
        yield
        if rule is not None and rule.kind == "drop-after":
            raise _dropped("after the work was done")


def _striking(store: Store, operation: str, method: str, target: str) -> Rule | None:
    with store.read() as records:
        asked = bool(records.settings(_PREFIX))
    if not asked:
        return None
    with store.write() as records:
        return next((rule for rule in rules(records) if _strikes(records, rule, operation, method, target)), None)


def _strikes(records: Records, rule: Rule, operation: str, method: str, target: str) -> bool:
    if not _matches(rule.on, operation, method, target) or (rule.count is not None and rule.struck >= rule.count):
        return False
    rule.seen += 1
    drawn = rule.probability >= 1 or random.Random(f"{rule.seed}:{rule.seen}").random() < rule.probability
    hit = rule.seen > rule.after and drawn
    rule.struck += hit
    _keep(records, rule)
    return hit


def _matches(on: str, operation: str, method: str, target: str) -> bool:
    return any(_part_matches(part, operation.lower(), method, target) for part in on.lower().split("|"))


def _part_matches(part: str, operation: str, method: str, target: str) -> bool:
    if _names_blobs(part) != operation.startswith(_BLOBS.lower()):
        return False
    wanted, _, path = part.partition(" ")
    if not path:
        return fnmatchcase(operation, part)
    return fnmatchcase(method.lower(), wanted) and fnmatchcase(target.lower(), path)


def _names_blobs(part: str) -> bool:
    """part: in lower case."""
    wanted, _, path = part.partition(" ")
    return path.startswith(_HTTPS) if path else wanted.startswith(_BLOBS.lower())


def _status(rule: Rule, route: Route) -> ArmError:
    headers = {} if rule.retry_after is None else {"Retry-After": str(rule.retry_after)}
    if rule.kind == "500":
        return ArmError(500, "InternalServerError", "Encountered internal server error.", headers=headers)
    if rule.kind == "503":
        return ArmError(503, "ServiceUnavailable", "The service is unavailable. Please try again.", headers=headers)
    if "/providers/microsoft.compute/" not in route.path:
        message = "Number of requests for this subscription and operation exceeded the limit. Please try again later."
        return ArmError(429, "SubscriptionRequestsThrottled", message, headers=headers)
    measured = {"operationGroup": "HighCostGetVMScaleSet3Min", "allowedRequestCount": 162, "measuredRequestCount": 191}
    detail = {
        "code": "TooManyRequests",
        "target": "HighCostGetVMScaleSet3Min",
        "message": msgspec.json.encode(measured).decode(),
    }
    return ArmError(
        429,
        "OperationNotAllowed",
        "The server rejected the request because too many requests have been received for this subscription.",
        details=[detail],
        headers=headers,
    )
