"""What observe_script() told, or the guest left in storage, typed; odd values that some image wrote become None."""

import base64
import binascii
import json
import math
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec

from cloudtrain.guest.outcome import IncompleteOutput, split


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """progress.json of the trainer contract. time: epoch seconds."""

    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    resumed_from_step: int | None = None
    resumes: int | None = None
    saved_step: int | None = None
    finished: bool = False
    metrics: dict[str, float] = {}
    examples_per_second: float | None = None
    eta_seconds: float | None = None
    elapsed_seconds: float | None = None
    time: float | None = None
    dataset: str | None = None
    model: str | None = None
    digest: str | None = None


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """The trainer's container. status: Docker's word, or "unknown" when the engine did not answer.

    exit_code: None while it runs. started: Docker's RFC 3339 time."""

    status: str
    id: str = ""
    exit_code: int | None = None
    out_of_memory: bool = False
    started: str = ""
    spec: str = ""

    @property
    def running(self) -> bool:
        return self.status in ("running", "paused", "restarting")


class GuestEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A line of events.jsonl. time: epoch seconds of the guest. details: everything else the line says."""

    time: float
    event: str
    details: dict[str, Any] = {}


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """An eviction that stands. not_before, time: epoch seconds of the guest."""

    event_id: str = ""
    not_before: float | None = None
    notice_seconds: float | None = None
    time: float | None = None


class LogChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a log. Ask again with `identity` and offset=`next`: no byte is lost or told twice.

    size: of the file it came from. lost: the position asked for is gone (rotated twice, or emptied), this
    piece begins anew. more: there is more to be had at once."""

    source: str
    identity: str
    offset: int
    next: int
    size: int
    lost: bool
    more: bool
    data: bytes


class StorageState(msgspec.Struct, frozen=True, kw_only=True):
    """How the guest's sending stands. Times in epoch seconds.

    kind: identity or signature. newest: step of the newest checkpoint that storage has whole, None where there is none
    or its step is not known; name: of its entry in checkpoints/. pending, pending_bytes: what is finished on the disk
    and not in storage yet. refused: the code of the last refusal, '' once storage takes things again. at: of the last
    thing that storage took. expires: the signature's end, None where the VM's own identity opens it.
    """

    kind: str = ""
    newest: int | None = None
    name: str = ""
    pending: int = 0
    pending_bytes: int = 0
    refused: str = ""
    at: float | None = None
    expires: float | None = None


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one look at the guest tells. Times are the guest's, in epoch seconds.

    installed: the guest files are there. session, starts: how often the startup script and the container were
    started; each boot has a session of its own. boot: another word at each boot, where the VM has a process 1
    of its own. progress is of_this_start when the container started last wrote it; before: progress.json as it
    was before that start. former_settings: the container runs with others than are installed now.
    stage: starting, restore, engine, pull, start, running, ended, pause, evicting, stopped, fenced, finished or
    failed, with stage_since; supervised: the startup script runs. finished: the trainer ended with 0, for good.
    failed: why training failed, None while it has not. storage: None where the guest has no access to any. fenced: a
    newer generation of the run has taken over, and this one does nothing more.
    """

    installed: bool
    time: float
    uptime: float | None = None
    boot: str = ""
    generation: int | None = None
    progress: Progress | None = None
    before: Progress | None = None
    of_this_start: bool = False
    container: Container | None = None
    former_settings: bool = False
    stage: str = ""
    stage_detail: str = ""
    stage_since: float | None = None
    supervised: bool = False
    session: int | None = None
    starts: int | None = None
    failures: int = 0
    evicting: Notice | None = None
    stopping: bool = False
    finished: bool = False
    failed: str | None = None
    fenced: bool = False
    storage: StorageState | None = None
    journal: tuple[str, ...] = ()
    events: tuple[GuestEvent, ...] = ()
    events_offset: int = 0
    log: LogChunk | None = None

    @property
    def steps_lost(self) -> int | None:
        """Steps that the last start does again: the last one shown before it, less the one resumed from."""
        if not self.of_this_start or self.progress is None or self.before is None or self.before.step is None:
            return None
        return max(0, self.before.step - (self.progress.resumed_from_step or 0))


def parse_observation(stdout: str, nonce: str) -> Observation:
    """Raises IncompleteOutput when the marker is missing or another's, or the data is damaged."""
    lines, rc = split(stdout, nonce)
    if rc != 0:
        raise IncompleteOutput(f"reading the guest ended with {rc}: {' '.join(lines)[-300:]}")
    try:
        raw = zlib.decompress(base64.b64decode(lines[-1].strip(), validate=True))
        head, _, content = raw.partition(b"\n")
        told = json.loads(head)
    except (IndexError, ValueError, binascii.Error, zlib.error) as error:
        raise IncompleteOutput(f"what the guest told was damaged on the way: {error}") from error
    if not isinstance(told, dict) or _number(told.get("time")) is None:
        raise IncompleteOutput("what the guest told is not an observation")
    return _observation(told, content)


def parse_stored_observation(content: bytes) -> Observation:
    """The blob `durable.GUEST`: the same facts, without a piece of a log; `time` says how old they are. Raises
    IncompleteOutput."""
    try:
        told = json.loads(content)
        facts = {**told["facts"], "time": told["time"], "storage": told.get("storage")}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise IncompleteOutput(f"what the guest left in storage is damaged: {error}") from error
    if _number(facts["time"]) is None:
        raise IncompleteOutput("what the guest left in storage is not an observation")
    return _observation(facts, b"")


def _observation(told: dict[str, Any], content: bytes) -> Observation:
    state = _mapping(told.get("state")) or {}
    failed = _mapping(told.get("failed"))
    return Observation(
        installed=told.get("installed") is True,
        time=_number(told.get("time")) or 0.0,
        uptime=_number(told.get("uptime")),
        boot=_text(told.get("boot")),
        generation=_whole(told.get("generation")),
        progress=_progress(_mapping(told.get("progress"))),
        before=_progress(_mapping(told.get("before"))),
        of_this_start=told.get("of_this_start") is True,
        container=_container(_mapping(told.get("container"))),
        former_settings=told.get("former_settings") is True,
        stage=_text(state.get("stage")),
        stage_detail=_text(state.get("detail")),
        stage_since=_number(state.get("since")),
        supervised=told.get("supervised") is True,
        session=_whole(state.get("session")),
        starts=_whole(state.get("starts")),
        failures=_whole(state.get("failures")) or 0,
        evicting=_notice(_mapping(told.get("evicting"))),
        stopping=told.get("stopping") is True,
        finished=_mapping(told.get("finished")) is not None,
        failed=None if failed is None else _text(failed.get("reason")) or "unknown reason",
        fenced=told.get("fenced") is True,
        storage=_storage(_mapping(told.get("storage"))),
        journal=tuple(line for line in _list(told.get("journal")) if isinstance(line, str)),
        events=tuple(_events(_list(told.get("events")))),
        events_offset=_whole(told.get("events_offset")) or 0,
        log=_log(_mapping(told.get("log")), content),
    )


def _progress(told: dict[str, Any] | None) -> Progress | None:
    if told is None:
        return None
    metrics = _mapping(told.get("metrics")) or {}
    numbers = {name: _number(value) for name, value in metrics.items()}
    return Progress(
        step=_whole(told.get("step")),
        total_steps=_whole(told.get("total_steps")),
        epoch=_whole(told.get("epoch")),
        epochs=_whole(told.get("epochs")),
        resumed_from_step=_whole(told.get("resumed_from_step")),
        resumes=_whole(told.get("resumes")),
        saved_step=_whole(told.get("saved_step")),
        finished=told.get("finished") is True,
        metrics={name: value for name, value in numbers.items() if value is not None},
        examples_per_second=_number(told.get("examples_per_second")),
        eta_seconds=_number(told.get("eta_seconds")),
        elapsed_seconds=_number(told.get("elapsed_seconds")),
        time=_number(told.get("time")),
        dataset=_text(told.get("dataset")) or None,
        model=_text(told.get("model")) or None,
        digest=_text(told.get("digest")) or None,
    )


def _container(told: dict[str, Any] | None) -> Container | None:
    if told is None:
        return None
    return Container(
        status=_text(told.get("status")),
        id=_text(told.get("id")),
        exit_code=_whole(told.get("exit_code")),
        out_of_memory=told.get("out_of_memory") is True,
        started=_text(told.get("started")),
        spec=_text(told.get("spec")),
    )


def _storage(told: dict[str, Any] | None) -> StorageState | None:
    if told is None:
        return None
    return StorageState(
        kind=_text(told.get("kind")),
        newest=_whole(told.get("newest")),
        name=_text(told.get("name")),
        pending=_whole(told.get("pending")) or 0,
        pending_bytes=_whole(told.get("pending_bytes")) or 0,
        refused=_text(told.get("refused")),
        at=_number(told.get("at")),
        expires=_number(told.get("expires")),
    )


def _notice(told: dict[str, Any] | None) -> Notice | None:
    if told is None:
        return None
    return Notice(
        event_id=_text(told.get("event_id")),
        not_before=_number(told.get("not_before")),
        notice_seconds=_number(told.get("notice_seconds")),
        time=_number(told.get("time")),
    )


def _events(told: Iterable[Any]) -> Iterable[GuestEvent]:
    for each in told:
        time = _number(each.get("time")) if isinstance(each, dict) else None
        if time is not None:
            details = {key: value for key, value in each.items() if key not in ("time", "event")}
            yield GuestEvent(time=time, event=_text(each.get("event")), details=details)


def _log(told: dict[str, Any] | None, content: bytes) -> LogChunk | None:
    if told is None:
        return None
    offset = _whole(told.get("offset")) or 0
    size = _whole(told.get("size")) or 0
    return LogChunk(
        source=_text(told.get("source")),
        identity=_text(told.get("identity")),
        offset=offset,
        next=offset + len(content),
        size=size,
        lost=told.get("lost") is True,
        more=told.get("more") is True or offset + len(content) < size,
        data=content,
    )


def _mapping(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    """NaN and infinities are no numbers: JSON has none, and nobody can show them."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
