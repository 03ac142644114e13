"""`logs`: a log of the guest, whole, and on as it grows. Neither loses nor repeats a byte, over restarts too."""

from collections.abc import Callable

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Intent
from cloudtrain.azure.run_command import GuestUnreachable
from cloudtrain.azure.vm import PowerState
from cloudtrain.errors import Refused
from cloudtrain.workflow import power, release, training
from cloudtrain.workflow.context import Context

SOURCES = ("training", "container", "startup", "eviction")


class LogsResult(msgspec.Struct, frozen=True):
    run: str
    source: str
    bytes: int


def logs(ctx: Context, run: str, *, source: str, follow: bool, emit: Callable[[str], None]) -> LogsResult:
    """emit is handed text as it is read. follow: until training has ended and all of its log was read, or the run is
    stopped. Raises NoSuchRun, Refused (the VM is not running)."""
    group = groups.get(ctx.session, run)
    power.require_running(group, vms.find(ctx.session, group), "Reading a log")
    reader = training.LogReader(source)
    while True:
        try:
            ended = reader.read(ctx, group, emit)
        except (GuestUnreachable, Refused):
            if not follow or not _comes_back(ctx, run):
                raise
            continue
        if ended and reader.seen is not None and follow:
            note = release.after_finish(ctx, group, vms.find(ctx.session, group), reader.seen)
            if note:
                ctx.progress.note(note)
        if ended or not follow:
            return LogsResult(run=run, source=source, bytes=reader.total)
        ctx.clock.sleep(max(1.0, ctx.session.capabilities.poll_seconds))


def _comes_back(ctx: Context, run: str) -> bool:
    """Wait, after the guest fell silent, until its VM runs again; False once nobody wants that any more."""
    noted = False
    while True:
        group = groups.find(ctx.session, run)
        if group is None or group.deleting or group.intent is not Intent.RUNNING:
            return False
        vm = vms.find(ctx.session, group)
        if vm is not None and vm.power is PowerState.RUNNING:
            return True
        if not noted:
            ctx.progress.note(
                f"The VM is {vm.power if vm else 'gone'}. Waiting for it: cloudtrain restart {run}  brings it back, "
                "Ctrl-C ends the waiting."
            )
            noted = True
        ctx.clock.sleep(ctx.session.capabilities.poll_seconds)
