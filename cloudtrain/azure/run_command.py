"""Managed RunCommand: a script on the VM, its output while it runs, and whether it really ran to its end.

Azure reports exit code 0 and provisioning state Succeeded for a command that never ran, so a script counts as finished
only when its execution state says so and its own last line carries the marker that we gave it.
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from cloudtrain.azure import names
from cloudtrain.azure import vm as vms
from cloudtrain.azure.errors import in_conflict, is_missing, translated
from cloudtrain.azure.group import Group
from cloudtrain.azure.session import Session
from cloudtrain.azure.vm import PowerState
from cloudtrain.azure.words import word
from cloudtrain.clock import Clock, pause
from cloudtrain.errors import CloudtrainError

ENDED = ("Succeeded", "Failed", "TimedOut", "Canceled")
# Any client of ours that lost its way leaves at most a script that sleeps: Azure's own limit then ends it.
OBSERVE_SECONDS = 120
# So long after its time limit Azure is waited for to say that a script has ended.
LATE_SECONDS = 120.0
# How often, in pauses between two looks, it is looked whether the VM still runs.
PAUSES_PER_POWER_LOOK = 4


class GuestUnreachable(CloudtrainError):
    """A script did not run to its end on the VM; nothing is known about the guest."""

    def __init__(self, message: str) -> None:
        super().__init__(
            "GuestUnreachable",
            message,
            "cloudtrain status  shows whether the VM runs; the same command again tries again.",
        )


def new_nonce() -> str:
    return secrets.token_hex(8)


def run(
    session: Session,
    group: Group,
    clock: Clock,
    *,
    name: str,
    script: str,
    timeout_seconds: int = OBSERVE_SECONDS,
    on_output: Callable[[str], None] | None = None,
    keep: bool = False,
    protected: Mapping[str, str] | None = None,
) -> str:
    """Run a script on the VM as root and return the last 4096 bytes of its output, once it has ended.

    name: the command's name; a second run under the same name kills the first. on_output is handed what is new in the
    output whenever Azure refreshes it. protected: environment variables of the script that Azure keeps encrypted and
    never shows again. keep: leave the command on the VM, so that its result can be looked up later.
    Raises GuestUnreachable, Refused.
    """
    vm_name = names.vm(group.run, group.generation)
    _begin(session, group, clock, name, script, timeout_seconds, protected or {})
    shown, waited, looked_at = "", 0.0, 0.0
    while True:
        view = _view(session, group, vm_name, name)
        output = str(view.output or "")
        if on_output and (fresh := unseen(shown, output)):
            on_output(fresh)
        shown = output or shown
        if _ended(view):
            break
        if waited > timeout_seconds + LATE_SECONDS:
            raise GuestUnreachable(f"Azure does not say what became of a command on the VM, after {waited:.0f} s.")
        if waited - looked_at > PAUSES_PER_POWER_LOOK * session.capabilities.poll_seconds:
            _require_running(session, group)
            looked_at = waited
        clock.sleep(pause(waited, session.capabilities.poll_seconds))
        waited += pause(waited, session.capabilities.poll_seconds)
    if not keep:
        _remove(session, group, vm_name, name)
    return _checked(view, output)


def unseen(before: str, now: str) -> str:
    """What the tail of a growing output holds that the tail read before did not.

    Each is the last 4 KiB: the longest end of `before` that `now` begins with is where the two meet."""
    if now.startswith(before):
        return now[len(before) :]
    for start in range(1, len(before)):
        if now.startswith(before[start:]):
            return now[len(before) - start :]
    return now


def _begin(
    session: Session,
    group: Group,
    clock: Clock,
    name: str,
    script: str,
    timeout_seconds: int,
    protected: Mapping[str, str],
) -> None:
    from azure.core.exceptions import HttpResponseError

    body = {
        "location": group.place.location,
        "properties": {
            "source": {"script": script},
            "protectedParameters": [{"name": key, "value": value} for key, value in protected.items()],
            "asyncExecution": True,
            "timeoutInSeconds": timeout_seconds,
        },
    }
    with translated("running a command on the VM"):
        for attempt in range(10):
            try:
                session.compute.virtual_machine_run_commands.begin_create_or_update(
                    group.name, names.vm(group.run, group.generation), name, body, polling=session.polling()
                ).result()
                return
            except HttpResponseError as error:
                if not in_conflict(error) or attempt == 9:
                    raise
            clock.sleep(session.capabilities.poll_seconds)


def _require_running(session: Session, group: Group) -> None:
    """An assumption: of a command whose VM went away Azure may say "Running" for as long as the VM is off, because
    nobody is left who would report its end."""
    vm = vms.find(session, group)
    if vm is None or vm.power in (PowerState.DEALLOCATED, PowerState.DEALLOCATING, PowerState.STOPPED):
        raise GuestUnreachable(
            f"A command on the VM did not run to its end: the VM is {vm.power.value if vm else 'gone'}."
        )


def _view(session: Session, group: Group, vm_name: str, name: str) -> Any:
    from azure.core.exceptions import HttpResponseError

    with translated("reading a command's output"):
        try:
            found = session.compute.virtual_machine_run_commands.get_by_virtual_machine(
                group.name, vm_name, name, expand="instanceView"
            )
        except HttpResponseError as error:
            if is_missing(error):
                raise GuestUnreachable(f"The command '{name}' is gone from the VM '{vm_name}'.") from error
            raise
    if found.instance_view is None:
        raise GuestUnreachable(f"Azure knows no state of the command '{name}' on the VM '{vm_name}'.")
    return found.instance_view


def _ended(view: Any) -> bool:
    state = word(view.execution_state)
    # A command that never ran stays "Running" for ever, with an end time or a message that says it failed.
    return state in ENDED or view.end_time is not None or _says_failed(view)


def _says_failed(view: Any) -> bool:
    return str(view.execution_message or "").startswith("Execution failed: failed to get configuration")


def _checked(view: Any, output: str) -> str:
    state = word(view.execution_state)
    if state in ("Succeeded", "Failed") and not _says_failed(view):
        return output
    last = (str(view.error or "").strip().splitlines() or [""])[-1]
    raise GuestUnreachable(
        f"A command on the VM did not run to its end ({state}): {view.execution_message or last or 'no reason given'}"
    )


def _remove(session: Session, group: Group, vm_name: str, name: str) -> None:
    from azure.core.exceptions import HttpResponseError

    try:
        # Not waited for: it takes Azure 15 seconds, and nothing depends on it.
        session.compute.virtual_machine_run_commands.begin_delete(group.name, vm_name, name, polling=False)
    except HttpResponseError:
        # It is removed with the VM at the latest.
        return
