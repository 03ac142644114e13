"""Long-running operations, as Azure does them: recorded first, then performed, then settled.

Nobody runs in the background of the embedded Azure: the process that recorded an operation performs it in a
thread, and if that process is killed, the next request of any process takes the work over. A lock keeps two
from doing it at once. Settling (the last change of state, and the outcome) is a transaction that the first
request after `ready` makes.
"""

import base64
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from cloudtrain.clock import Clock
from cloudtrain.emulator import timing
from cloudtrain.emulator.locks import WorkLocks
from cloudtrain.emulator.machines import MachineError, Machines
from cloudtrain.emulator.store import Json, Operation, Records, Store
from cloudtrain.emulator.wire import Answer, ArmError, Request, guid, moment


@dataclass
class Azure:
    """What every handler works with."""

    store: Store
    clock: Clock
    machines: Machines
    locks: WorkLocks
    secrets: Path  # the key file of what must not be readable in the database
    ledger: Path  # the ids of machines, in case the database is lost
    blobs: Path  # a directory for each storage account's blobs
    kinds: Mapping[str, "Kind"]
    workers: dict[int, threading.Thread] = field(default_factory=dict)
    failures: list[BaseException] = field(default_factory=list)  # of workers, raised by the next request

    def now(self) -> float:
        return self.clock.now().timestamp()


_OF_THE_OPERATION_ITSELF = 1 << 40  # lock numbers above it are operations', below it resources'
_REMEMBERED_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Outcome:
    """How an operation ends. error None: it succeeded."""

    result: Json | None = None
    error: Json | None = None


class NotYet(Exception):
    """The work cannot be done at this moment (an agent is not ready, another holds the lock): a later request
    tries again."""


def _nothing(azure: Azure, operation: Operation) -> None:
    return None


def _success(azure: Azure, operation: Operation) -> Outcome | None:
    return Outcome(operation.result, operation.error)


def _no_change(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    return None


@dataclass(frozen=True)
class Kind:
    """What an operation does.

    perform: the work on machines, repeatable, outside any transaction; raises NotYet or MachineError.
    outcome: None while it goes on. settle: the last change of records, once, inside the transaction that ends
    it."""

    perform: Callable[[Azure, Operation], None] = _nothing
    outcome: Callable[[Azure, Operation], Outcome | None] = _success
    settle: Callable[[Azure, Records, Operation, Outcome], None] = _no_change


@dataclass
class Fate:
    """What a fault has in store for the operation that a request begins: arguments of it, taken by the first one."""

    arguments: Json
    taken: bool = False


_FATE: ContextVar[Fate | None] = ContextVar("_FATE", default=None)


@contextmanager
def fated(arguments: Json) -> Iterator[None]:
    """Inside, the first operation that is begun gets these arguments too."""
    token = _FATE.set(Fate(arguments))
    try:
        yield
    finally:
        _FATE.reset(token)


def _fate() -> Json:
    fate = _FATE.get()
    if fate is None or fate.taken:
        return {}
    fate.taken = True
    return fate.arguments


def latency(records: Records) -> timing.Latency:
    return timing.Latency(records.setting("latency") or "rehearsal", float(records.setting("latency_factor") or 1.0))


def take(azure: Azure, kind: str) -> None:
    """Wait for as long as Azure works on a request that it answers only when it is done. Outside any transaction."""
    with azure.store.read() as records:
        seconds = latency(records).seconds(kind)
    if seconds:
        azure.clock.sleep(seconds)


def begin(
    azure: Azure,
    records: Records,
    kind: str,
    target: str,
    arguments: Json | None = None,
    *,
    operation_id: str | None = None,
    secret: bytes | None = None,
    lock: int | None = None,
) -> Operation:
    """Record an operation inside the caller's transaction; `advance` does the rest.

    lock: the seq of the resource whose machine it works on; only one such operation at a time is
    performed. Arguments that mean something here: `failure` (code and message) makes it end so, with nothing done;
    `takes` is what it is timed as, where that is not its kind."""
    now, takes = azure.now(), latency(records)
    given = {**(arguments or {}), "lock": lock, "poll": takes.poll_milliseconds, **_fate()}
    ready = now + takes.seconds(given.get("takes") or kind)
    operation = Operation(operation_id or guid(), kind, target.lower(), now, ready, given, secret=secret)
    if azure.kinds[kind].perform is _nothing or "failure" in given:
        operation.performed = now
    records.forget_operations(now - _REMEMBERED_SECONDS)
    return records.add_operation(operation)


def cancel(records: Records, operation: Operation, now: float) -> None:
    """A later operation has taken precedence: whoever performs this one stops, whoever waits for it is
    told."""
    operation.status, operation.ended, operation.secret = "Failed", now, None
    operation.error = {
        "code": "OperationPreempted",
        "message": "Operation execution has been preempted by a more recent operation.",
    }
    records.save_operation(operation)


def advance(azure: Azure, seq: int, *, patience: float = 0.0) -> None:
    """Bring one operation as far as it goes now. patience: real seconds to wait for work on machines."""
    with azure.store.read() as records:
        operation = records.operation(seq)
    if operation is None or not operation.open:
        return
    if operation.performed is None:
        worker = _ensure_worker(azure, operation)
        worker.join(patience)
        _raise_failures(azure)
        with azure.store.read() as records:
            operation = records.operation(seq)
    if operation is not None and operation.open and operation.performed is not None:
        _settle(azure, operation)


def advance_all(azure: Azure) -> None:
    with azure.store.read() as records:
        pending = records.due_operations(azure.now())
    for seq in pending:
        # What is taken over from a process that was killed is often done but for its last word.
        advance(azure, seq, patience=0.0 if seq in azure.workers else timing.PATIENCE_SECONDS)


def _settle(azure: Azure, operation: Operation) -> None:
    if azure.now() < operation.ready:
        return
    kind, failure = azure.kinds[operation.kind], operation.arguments.get("failure")
    outcome = Outcome(error=failure) if failure else kind.outcome(azure, operation)
    if outcome is None:
        return
    with azure.store.write() as records:
        current = records.operation(operation.seq)
        if current is None or not current.open:
            return
        kind.settle(azure, records, current, outcome)
        current.status = "Succeeded" if outcome.error is None else "Failed"
        current.result, current.error = outcome.result, outcome.error
        current.ended, current.secret = azure.now(), None
        records.save_operation(current)


def _ensure_worker(azure: Azure, operation: Operation) -> threading.Thread:
    worker = azure.workers.get(operation.seq)
    if worker is None or not worker.is_alive():
        worker = threading.Thread(target=_work, args=(azure, operation), daemon=True)
        azure.workers[operation.seq] = worker
        worker.start()
    return worker


def _work(azure: Azure, operation: Operation) -> None:
    seq = operation.seq
    resource = operation.arguments["lock"]
    try:
        with azure.locks.attempt(_OF_THE_OPERATION_ITSELF + seq if resource is None else resource) as mine:
            if mine:
                _perform(azure, seq)
    except NotYet:
        pass  # a later request tries again
    except BaseException as error:  # noqa: BLE001 - a thread has nobody to raise to: the next request does
        azure.failures.append(error)
    finally:
        azure.workers.pop(seq, None)


def _perform(azure: Azure, seq: int) -> None:
    with azure.store.read() as records:
        operation = records.operation(seq)
    if operation is None or not operation.open or operation.performed is not None:
        return
    error: Json | None = None
    try:
        azure.kinds[operation.kind].perform(azure, operation)
    except MachineError as refusal:
        error = {
            "code": "InternalExecutionError",
            "message": f"An internal execution error occurred. {refusal}",
        }
    with azure.store.write() as records:
        current = records.operation(seq)
        if current is not None and current.open:
            current.performed = azure.now()
            current.error = error
            records.save_operation(current)


def _raise_failures(azure: Azure) -> None:
    if azure.failures:
        raise azure.failures.pop(0)


# What a client sees of it


def polling_headers(operation: Operation) -> dict[str, str]:
    return {"retry-after-ms": str(operation.arguments["poll"])}


def accepted(
    request: Request,
    operation: Operation,
    provider: str,
    location: str,
    *,
    status: int,
    body: Json | None = None,
    with_location: bool = False,
) -> Answer:
    """The first answer. Both URLs are opaque to clients; Network's final URL is another one than
    Compute's."""
    root = f"{request.base}/subscriptions/{request.subscription}/providers/{provider}/locations/{location}"
    signed = f"api-version={request.api_version}&t=0&c=embedded&s=embedded&h=embedded"
    page = f"p={guid()}&" if provider == "Microsoft.Compute" else ""
    headers = {
        "Azure-AsyncNotification": "Enabled",
        "Azure-AsyncOperation": f"{root}/operations/{operation.id}?{page}{signed}",
        **polling_headers(operation),
    }
    if with_location and provider == "Microsoft.Compute":
        headers["Location"] = f"{root}/operations/{operation.id}?{page}monitor=true&{signed}"
    elif with_location:
        headers["Location"] = f"{root}/operationResults/{operation.id}?{signed}"
    return Answer(status, body, headers)


def status_body(operation: Operation, *, brief: bool) -> Json:
    """brief: Network's form, which has nothing but the status."""
    body: Json = {} if brief else {"startTime": moment(operation.started)}
    if not brief and operation.ended is not None:
        body["endTime"] = moment(operation.ended)
    body["status"] = operation.status
    if operation.status == "Succeeded" and operation.result is not None:
        body["properties"] = {"output": operation.result}
    if operation.error is not None and not operation.open:
        body["error"] = operation.error
    if not brief:
        body["name"] = operation.id
    return body


def find(azure: Azure, operation_id: str) -> Operation:
    """The operation a client polls, advanced. Raises ArmError."""
    with azure.store.read() as records:
        known = records.operation_by_id(operation_id)
    if known is None:
        raise ArmError(404, "NotFound", "The entity was not found in this Azure location.")
    advance(azure, known.seq, patience=timing.PATIENCE_SECONDS)
    with azure.store.read() as records:
        return records.operation(known.seq) or known


def poll(operation: Operation, *, brief: bool) -> Answer:
    headers = polling_headers(operation) if operation.open else {}
    return Answer(200, status_body(operation, brief=brief), headers)


def monitor(request: Request, operation: Operation) -> Answer:
    """Compute's Location: 202 while it goes on, then what the action returns."""
    if operation.open:
        here = f"{request.base}{request.path}?" + "&".join(f"{k}={v}" for k, v in request.query.items())
        return Answer(202, None, {"Location": here, **polling_headers(operation)})
    if operation.error is not None:
        return Answer(409, {"error": operation.error})
    return Answer(200, operation.result)


def job_id(group: str, location: str) -> str:
    """ARM's name for the deletion of a resource group."""
    job = f"RESOURCEGROUPDELETIONJOB-{group.upper()}-{location.upper()}"
    text = json.dumps({"jobId": job, "jobLocation": location}, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()
