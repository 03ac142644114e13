"""`logs`: a log of the run, whole, and on as it grows. Neither loses nor repeats a byte, over restarts too.

It is read from the run's storage, which has it whole whether the VM is up or not. The VM is asked where the run has no
storage, where it cannot be read, and where nothing new comes to it.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group, Intent
from cloudtrain.azure.run_command import GuestUnreachable
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.errors import CloudtrainError, Refused
from cloudtrain.guest import Observation
from cloudtrain.lifecycle import power, release, stored, training
from cloudtrain.lifecycle.context import Context
from cloudtrain.lifecycle.stored import StoredLog

SOURCES = ("training", "container", "startup", "eviction")


class LogsResult(msgspec.Struct, frozen=True):
    run: str
    source: str
    bytes: int


def logs(ctx: Context, run: str, *, source: str, follow: bool, emit: Callable[[str], None]) -> LogsResult:
    """emit is handed text as it is read. follow: until training has ended and all of its log was read, or the run is
    stopped. Raises NoSuchRun, Refused (the VM is not running, and there is no storage)."""
    group = groups.get(ctx.session, run)
    vm, container = vms.find(ctx.session, group), stored.readable(ctx, group)
    if container is None:
        return _from_vm(ctx, group, vm, source, follow, emit)
    seen = stored.observation(container) if _runs(vm) else None
    log = StoredLog(container, source, emit)
    if follow:
        if _runs(vm) and not stored.is_recent(ctx, group, seen) and log.journal is None:
            return _from_vm(ctx, group, vm, source, follow, emit)
        _follow(ctx, run, container, log)
    elif not _runs(vm) or stored.is_fresh(ctx, group, seen):
        log.read()
    else:
        return _from_vm_or_storage(ctx, group, vm, log, source, emit)
    return _ended(group, log)


def _ended(group: Group, log: StoredLog) -> LogsResult:
    log.end()
    return LogsResult(run=group.run, source=log.source, bytes=log.total)


def _from_vm_or_storage(
    ctx: Context, group: Group, vm: Vm | None, log: StoredLog, source: str, emit: Callable[[str], None]
) -> LogsResult:
    """The log as the VM has it now; where it does not answer, as far as it came to storage."""
    pieces: list[str] = []
    try:
        result = _from_vm(ctx, group, vm, source, False, pieces.append)
    except (GuestUnreachable, Refused) as error:
        ctx.progress.note(f"The VM could not be asked; this is what came to the run's storage. {error.message}")
        log.read()
        return _ended(group, log)
    emit("".join(pieces))
    return result


def _runs(vm: Vm | None) -> bool:
    return vm is not None and vm.power is PowerState.RUNNING


# from storage


class _End:
    """Training has ended once two looks say so: what came between the first look and its log is read at the second."""

    def __init__(self) -> None:
        self.since: float | None = None

    def after(self, seen: Observation | None) -> bool:
        if seen is None or not (seen.finished or seen.failed is not None):
            self.since = None
            return False
        if self.since is None:
            self.since = seen.time
        return seen.time > self.since


def _follow(ctx: Context, run: str, container: Any, log: StoredLog) -> None:
    end, end_on_vm, notes = _End(), _End(), _Notes(ctx, run, log)
    while True:
        group = groups.find(ctx.session, run)
        if group is None or group.deleting:
            return
        vm = vms.find(ctx.session, group)
        seen = _look(ctx, run, container, log)
        ended = end.after(seen if stored.is_current(group, seen) else None)
        if ended and seen is not None:
            _release(ctx, group, vm, seen)
        if ended or (_is_off(vm) and (end.since is not None or group.intent is not Intent.RUNNING)):
            return
        if _is_off(vm):
            notes.once("off", _off(run, vm))
        elif _runs(vm) and not stored.is_recent(ctx, group, seen):
            if end.since is not None:
                return
            notes.silent(None if seen is None else stored.age(ctx, seen))
            if _ask_vm(ctx, group, vm, log, end_on_vm):
                return
        ctx.clock.sleep(ctx.session.capabilities.publish_seconds)


def _release(ctx: Context, group: Group, vm: Vm | None, seen: Observation) -> None:
    """A finished run's VM need not bill any longer."""
    note = release.after_finish(ctx, group, vm, seen)
    if note:
        ctx.progress.note(note)


def _is_off(vm: Vm | None) -> bool:
    """For good, until somebody starts it: nothing more comes from it to storage."""
    return vm is None or vm.power in (PowerState.DEALLOCATED, PowerState.STOPPED)


def _look(ctx: Context, run: str, container: Any, log: StoredLog) -> Observation | None:
    """The state first, then the log: what was written until then is read."""
    try:
        seen = stored.observation(container)
        log.read()
        return seen
    except CloudtrainError:
        # `down` takes the storage along.
        group = groups.find(ctx.session, run)
        if group is not None and not group.deleting:
            raise
        return None


def _ask_vm(ctx: Context, group: Group, vm: Vm | None, log: StoredLog, end: _End) -> bool:
    """Of a guest whose words do not come to storage: whether training has ended, and the journal, which is the same
    file there. What it writes to other logs has other positions in storage, and comes from there alone."""
    journal = log.journal
    begin = len(journal.read) if journal else 0
    try:
        while True:
            seen = training.observe(ctx, group, log="training" if journal else None, offset=begin)
            if journal is None or seen.log is None:
                break
            log.hand_over(journal.take(seen.log.offset, seen.log.data))
            begin = seen.log.next
            if not seen.log.more:
                break
    except (GuestUnreachable, Refused):
        # It boots, or it is busy: asked again.
        return False
    ended = end.after(seen)
    if ended:
        _release(ctx, group, vm, seen)
    return ended


class _Notes:
    """What a reader should know who sees nothing new: each once."""

    def __init__(self, ctx: Context, run: str, log: StoredLog) -> None:
        self._ctx, self._run, self._log = ctx, run, log
        self._told: set[str] = set()

    def silent(self, age: float | None) -> None:
        if age is None:
            return
        words = f"The VM runs, and nothing has come from it to storage for {age:.0f} s"
        if self._log.journal is not None:
            self.once("silent", f"{words}: it is asked itself.")
        else:
            self.once("silent", f"{words}. cloudtrain logs {self._run} --source {self._log.source}  asks it itself.")

    def once(self, key: str, text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._ctx.progress.note(text)


def _off(run: str, vm: Vm | None) -> str:
    return (
        f"The VM is {vm.power if vm else 'gone'}. Waiting for it: cloudtrain restart {run}  brings it back, "
        "Ctrl-C ends the waiting."
    )


# from the VM


def _from_vm(
    ctx: Context, group: Group, vm: Vm | None, source: str, follow: bool, emit: Callable[[str], None]
) -> LogsResult:
    power.require_running(group, vm, "Reading a log")
    reader = training.LogReader(source)
    while True:
        try:
            ended = reader.read(ctx, group, emit)
        except (GuestUnreachable, Refused):
            if not follow or not _comes_back(ctx, group.run):
                raise
            continue
        if ended and reader.seen is not None and follow:
            _release(ctx, group, vms.find(ctx.session, group), reader.seen)
        if ended or not follow:
            reader.end(emit)
            return LogsResult(run=group.run, source=source, bytes=reader.total)
        ctx.clock.sleep(max(1.0, ctx.session.capabilities.poll_seconds))


def _comes_back(ctx: Context, run: str) -> bool:
    """Wait, after the guest fell silent, until its VM runs again; False once nobody wants that any more."""
    noted = False
    while True:
        group = groups.find(ctx.session, run)
        if group is None or group.deleting or group.intent is not Intent.RUNNING:
            return False
        vm = vms.find(ctx.session, group)
        if _runs(vm):
            return True
        if not noted:
            ctx.progress.note(_off(run, vm))
            noted = True
        ctx.clock.sleep(ctx.session.capabilities.poll_seconds)
