"""Watch Azure's scheduled events, and let the trainer save before the VM is taken away.

Polls IMDS every second from boot. On Preempt for this VM: writes `evicting`, sends SIGTERM to the
container, waits for it to end, has everything sent to storage, runs on-evict.d/*, and only then acknowledges,
because an acknowledgement brings the eviction forward. One at a time, by a lock; called again while one
runs, it does nothing. Times are monotonic: clocks jump. Protocol:
https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
"""

import calendar
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import parsedate
from pathlib import Path
from typing import Any

import guest  # type: ignore[import-not-found]

LINK_LOCAL = "http://169.254.169.254"
PATH = "/metadata/scheduledevents?api-version=2020-07-01"
GRACE_SECONDS = 60.0  # an eviction may come later than it said


@dataclass(frozen=True)
class Event:
    """A scheduled event that concerns this VM. not_before: epoch seconds, None once it has started."""

    id: str
    type: str
    source: str
    not_before: float | None


def url() -> str:
    return os.environ.get("CLOUDTRAIN_IMDS", LINK_LOCAL).rstrip("/") + PATH


def call(timeout: float, body: dict[str, Any] | None = None) -> bytes:
    """Raises OSError or HTTPException; never goes through a proxy, as IMDS demands."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url(), data=data, headers={"Metadata": "true"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout) as answer:
        read: bytes = answer.read(1024 * 1024)
        return read


def events_of(answer: bytes, vm_name: str) -> list[Event]:
    """The events that name this VM. Raises ValueError for an answer that is not one."""
    told = json.loads(answer)
    if not isinstance(told, dict) or not isinstance(told.get("Events"), list):
        raise ValueError("the answer has no list of Events")
    found = []
    for each in told["Events"]:
        if not isinstance(each, dict) or not isinstance(each.get("EventId"), str):
            continue
        resources = each.get("Resources")
        names = [str(name).lower() for name in resources] if isinstance(resources, list) else []
        if vm_name.lower() in names:
            kind, source = str(each.get("EventType", "")), str(each.get("EventSource", ""))
            found.append(Event(each["EventId"], kind, source, epoch(each.get("NotBefore"))))
    return found


def epoch(date: Any) -> float | None:
    """NotBefore, such as "Tue, 09 Aug 2022 17:07:32 GMT"; empty once the event has started."""
    parsed = parsedate(date) if isinstance(date, str) and date else None
    if parsed is None:
        return None
    try:
        return float(calendar.timegm(parsed))
    except (ValueError, OverflowError):
        return None


@dataclass
class Watch:
    """What the watcher remembers between two polls."""

    vm_name: str
    event: str = ""  # the Preempt that stands
    last_listed: float = 0.0  # monotonic
    acknowledged: set[str] = field(default_factory=set)
    noted: set[str] = field(default_factory=set)
    said: str = ""  # the last complaint about IMDS, so that it is not repeated every second


def acknowledge(event_id: str) -> bool:
    """Tell Azure that it need not wait longer."""
    for pause in (0.5, 1.0, None):
        try:
            call(guest.tuning("call_seconds"), {"StartRequests": [{"EventId": event_id}]})
            guest.event("acknowledged", event_id=event_id)
            guest.say(f"acknowledged {event_id}")
            return True
        except (OSError, http.client.HTTPException) as error:
            guest.say(f"acknowledgement failed: {error}")
            if pause:
                time.sleep(pause)
    guest.event("acknowledgement_failed", event_id=event_id)
    return False


def give_notice(event: Event) -> float:
    """Write down that the VM is about to be taken; the monotonic time at which that may happen."""
    wall, now = time.time(), time.monotonic()
    notice = 0.0 if event.not_before is None else min(3600.0, max(0.0, event.not_before - wall))
    content = {
        "writer": guest.identity(os.getpid()),
        "event_id": event.id,
        "not_before": event.not_before,
        "notice_seconds": notice,
        "time": wall,
    }
    if not guest.write_json(guest.ROOT / "evicting", content):
        with contextlib.suppress(OSError):  # a full disk: the file made in time still can be renamed
            spare().replace(guest.ROOT / "evicting")
    guest.event("notice", event_id=event.id, notice_seconds=round(notice, 3), not_before=event.not_before)
    guest.say(f"eviction: notice of {notice:.1f} s")
    return now + notice


def spare() -> Path:
    return Path(guest.ROOT / ".evicting.spare")


def save(deadline: float) -> bool:
    """Ask the trainer to save; whether it has ended (or there was none) by a while after the deadline.

    SIGTERM first, questions later: the notice may be a second, and each call of docker takes a part of it."""
    last = deadline + GRACE_SECONDS
    while time.monotonic() < last:
        before = guest.step_of(guest.progress(), "saved_step")
        told = guest.docker("kill", "--signal", "TERM", guest.CONTAINER, timeout=20)
        if told.returncode == 0:
            guest.event("term")
            wait_for_end(before, last)
            continue
        try:
            running = guest.container(timeout=10)
        except guest.EngineSilent as error:
            guest.say(f"the Docker engine does not answer: {error}")
        else:
            if running is None or not running.runs:
                return True
        time.sleep(0.2)
    return False


def wait_for_end(saved_before: int | None, last: float) -> None:
    """Until the container has ended, noting each time when it saved: the one because of the notice is the last."""
    client = subprocess.Popen(["docker", "wait", guest.CONTAINER], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    saved = saved_before
    while client.poll() is None and time.monotonic() < last:
        with contextlib.suppress(subprocess.TimeoutExpired):
            client.wait(timeout=0.1)
        saved = note_save(saved)
    if client.poll() is None:
        client.kill()
        client.wait()
    note_end(note_save(saved) != saved_before)


def note_save(before: int | None) -> int | None:
    """The event `saved`, if progress.json tells of a newer checkpoint than that one; the newest one's step."""
    now: int | None = guest.step_of(guest.progress(), "saved_step")
    if now is None or now == before:
        return before
    guest.event("saved", step=now)
    return now


def note_end(saved: bool) -> None:
    with contextlib.suppress(guest.EngineSilent):
        ended = guest.container(timeout=10)
        if ended is None or ended.runs:
            return
        seen = guest.progress()
        step = guest.step_of(seen, "saved_step")
        if ended.exit_code == 75 and not saved:
            guest.event("saved", step=guest.step_of(seen) if step is None else step)
        guest.event("gone", exit_code=ended.exit_code, step=guest.step_of(seen), saved_step=step)
        guest.say(f"the trainer ended with exit code {ended.exit_code}, saved step {step}")
        if ended.exit_code == 75 or ended.exit_code in (137, 143):
            # remembered, because the power may be gone before the startup script sees the end
            guest.write_json(guest.ROOT / "evicted.json", {"container": ended.id, "time": time.time()})
            known = ended.exit_code == 75 and step is not None
            guest.journal("was evicted", f"saved at step {step}" if known else "")


def hooks() -> Iterator[Path]:
    folder = guest.ROOT / "on-evict.d"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.name.startswith(".") and path.is_file() and os.access(path, os.X_OK):
            yield path


def run_hooks(deadline: float) -> None:
    """Each program of on-evict.d in turn, until there is no time left."""
    for path in hooks():
        left = deadline - time.monotonic()
        if left <= 0:
            guest.say(f"no time left for {path.name}")
            guest.event("hook", name=path.name, exit_code=None)
            continue
        guest.event("hook", name=path.name, exit_code=run_hook(path, left))


def run_hook(path: Path, seconds: float) -> int | None:
    """Its exit code; None when it was not to be started, or killed because time was up."""
    environment = {**os.environ, "CLOUDTRAIN_SECONDS": f"{seconds:.1f}"}
    try:
        program = subprocess.Popen([str(path)], stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
    except OSError as error:
        guest.say(f"{path.name}: {error}")
        return None
    try:
        return program.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        guest.say(f"{path.name}: killed, time is up")
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        return None


def evict(event: Event, watch: Watch) -> None:
    begun = time.monotonic()
    deadline = give_notice(event)
    ended = save(deadline)
    margin = guest.tuning("hook_margin_seconds")
    last = deadline - margin
    token = guest.ask_flush(ended=ended and not guest.starts_container())
    run_hooks(last)
    if token:
        # Of a notice shorter than the margin, most goes to the sending.
        notice = deadline - begun
        guest.tell_flush(token, guest.await_flush(token, deadline - min(margin, notice / 4)))
    if ended:
        acknowledge(event.id)
    else:
        guest.say("the trainer has not ended: not acknowledged")
    watch.event, watch.last_listed = event.id, time.monotonic()


def react(events: list[Event], watch: Watch) -> None:
    for event in events:
        if event.type == "Preempt":
            if event.id == watch.event:
                watch.last_listed = time.monotonic()
            else:
                evict(event, watch)
        elif event.type in ("Reboot", "Redeploy") and event.source == "User":
            # unacknowledged, a restart that the user asked for waits up to 15 minutes
            if event.id not in watch.acknowledged and acknowledge(event.id):
                watch.acknowledged.add(event.id)
        elif event.id not in watch.noted:
            watch.noted.add(event.id)
            guest.event("scheduled", event_id=event.id, type=event.type, source=event.source)
            guest.say(f"Azure announces {event.type} ({event.source})")


def take_back(watch: Watch) -> None:
    """The event is gone and the VM still here: go on training."""
    guest.say("the eviction was taken back")
    guest.event("vanished", event_id=watch.event)
    watch.event = ""
    (guest.ROOT / "evicting").unlink(missing_ok=True)
    make_spare()
    guest.detach([str(guest.ROOT / "startup-script.sh"), "again"])


def poll(watch: Watch, timeout: float) -> None:
    try:
        events = events_of(call(timeout), watch.vm_name)
    except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
        if str(error) != watch.said:
            watch.said = str(error)
            guest.say(f"IMDS: {error}")
        # its silence takes nothing back, except when the VM is still here long after it should be gone
        limit = guest.tuning("vanish_seconds") * 5
    else:
        if watch.said:
            guest.say("IMDS answers again")
        watch.said = ""
        react(events, watch)
        limit = guest.tuning("vanish_seconds")
    if watch.event and time.monotonic() - watch.last_listed >= limit:
        take_back(watch)


def keep_script_running() -> None:
    """The other way round, the startup script looks after this watcher."""
    over = any((guest.ROOT / name).exists() for name in ("stopping", "finished", "failed"))
    over = over or (guest.fenced() and (guest.read_json(guest.ROOT / "state.json") or {}).get("stage") == "fenced")
    if over or guest.held(guest.ROOT / "startup.lock") or guest.going_down():
        return
    guest.say("the startup script was gone")
    guest.detach([str(guest.ROOT / "startup-script.sh"), "again"])


def watch_on() -> None:
    watch = Watch(str(guest.settings()["vm_name"]))
    timeout = guest.tuning("first_call_seconds")
    checked = time.monotonic()
    while True:
        begun = time.monotonic()
        poll(watch, timeout)
        timeout = guest.tuning("call_seconds")
        if begun - checked > guest.tuning("check_seconds"):
            checked = begun
            keep_script_running()
            guest.keep_uploader()
            guest.rotate(guest.ROOT / "eviction.log")
        time.sleep(max(0.05, begun + guest.tuning("poll_seconds") - time.monotonic()))


def make_spare() -> None:
    """A file ready to become `evicting` even when the disk is full then."""
    guest.write_json(spare(), {"writer": guest.identity(os.getpid())})


def main() -> int:
    lock = guest.hold_lock(guest.ROOT / "watch.lock")
    if lock is None:
        return 0
    (guest.ROOT / "evicting").unlink(missing_ok=True)  # of an earlier boot
    if not guest.leave_parent():
        return 0
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    guest.redirect(guest.ROOT / "eviction.log")
    make_spare()
    guest.event("watching")
    guest.say(f"watching {url()}")
    watch_on()
    return 0


if __name__ == "__main__":
    sys.exit(main())
