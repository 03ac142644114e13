"""pid 1 of an emulated VM: boots it, reaps, runs cron's lines and the agent's scripts, and shuts it down.

It is forked from the supervisor, so nothing is read from the package after the VM has its own root. It ends with its
lifeline: end of file there means that the supervisor is gone, and with pid 1 the kernel takes everybody else.
"""

import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cloudtrain.emulator.machines import agent, cron
from cloudtrain.emulator.machines.agent import CannotRun, RunningScript, Surroundings
from cloudtrain.emulator.machines.channel import Channel, Message
from cloudtrain.emulator.machines.process_table import descendants, send_signal

# systemd's signals to pid 1: SIGRTMIN+4 powers off, SIGRTMIN+5 and ctrl-alt-del reboot
POWER_OFF, REBOOT = signal.SIGRTMIN + 4, signal.SIGRTMIN + 5
_REQUESTS: dict[int, str] = {POWER_OFF: "power-off", REBOOT: "reboot", signal.SIGINT: "reboot"}


@dataclass
class Guest:
    channel: Channel
    lifeline: int
    around: Surroundings
    scripts: dict[int, RunningScript] = field(default_factory=dict)  # by pid
    others: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    stopping: bool = False
    next_minute: float = 0.0  # epoch


def serve(guest: Guest) -> None:
    """Never returns but when the VM is to end."""
    wakeup = _watch_signals()
    os.umask(0o022)
    guest.channel.send({"event": "booted"})
    _run_reboot_lines(guest)
    guest.next_minute = _minute_after(time.time())
    while True:
        ready, _, _ = select.select([wakeup, guest.channel.fileno(), guest.lifeline], [], [], _patience(guest))
        if guest.lifeline in ready:
            return
        if wakeup in ready:
            _obey_signals(guest, os.read(wakeup, 4096))
        if guest.channel.fileno() in ready and not _obey_messages(guest):
            return
        _reap(guest)
        _stop_late_scripts(guest)
        _run_due_lines(guest)


def _watch_signals() -> int:
    """Handlers, not SIG_IGN: what is ignored stays ignored in every process that is started from here."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, *_REQUESTS):
        signal.signal(number, lambda *_: None)
    return reader


def _patience(guest: Guest) -> float:
    deadlines = [script.deadline for script in guest.scripts.values() if not script.verdict]
    soonest = min(deadlines, default=time.monotonic() + 60) - time.monotonic()
    return max(0.0, min(soonest, guest.next_minute - time.time(), 60.0))


def _obey_signals(guest: Guest, numbers: bytes) -> None:
    for number in numbers:
        if number in _REQUESTS and not guest.stopping:
            guest.channel.send({"event": _REQUESTS[number]})


def _obey_messages(guest: Guest) -> bool:
    try:
        messages = guest.channel.receive()
    except EOFError:
        return False
    for message in messages:
        _OBEY[message["op"]](guest, message)
    return True


def _start_script(guest: Guest, order: Message) -> None:
    try:
        script = agent.start(order, guest.around)
    except (CannotRun, OSError) as error:
        guest.channel.send({"event": "script-refused", "key": order["key"], "why": str(error)})
        return
    guest.scripts[script.process.pid] = script
    guest.channel.send({"event": "script-started", "key": order["key"]})


def _cancel_script(guest: Guest, order: Message) -> None:
    for script in guest.scripts.values():
        if script.key == order["key"]:
            script.stop("Canceled")


def _shut_down(guest: Guest, order: Message) -> None:
    """SIGTERM to all but the containers' own processes: the engine stops those, each with its own timeout."""
    guest.stopping = True
    keepers = guest.around.prefix / "run/docker/keepers"
    engines = {int(path.name) for path in keepers.iterdir()} if keepers.is_dir() else set()
    for pid in descendants(os.getpid(), without_those_of=engines):
        send_signal(pid, signal.SIGTERM)


_OBEY = {"start_script": _start_script, "cancel_script": _cancel_script, "shut_down": _shut_down}


def _reap(guest: Guest) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            if guest.stopping:
                guest.channel.send({"event": "stopped"})
                guest.stopping = False
            return
        if not pid:
            return
        script = guest.scripts.pop(pid, None)
        process = script.process if script else guest.others.pop(pid, None)
        if process is not None:
            process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen never waits for a reused pid
        if script is not None and not guest.stopping:
            guest.channel.send(script.outcome(status) | {"ended": time.time()})


def _stop_late_scripts(guest: Guest) -> None:
    for script in guest.scripts.values():
        if not script.verdict and time.monotonic() >= script.deadline:
            script.stop("TimedOut")


def _run_reboot_lines(guest: Guest) -> None:
    for user, path in cron.crontabs(guest.around.prefix / cron.SPOOL):
        for line in cron.readable_lines(path):
            if line.times is None:
                _run_line(guest, user, line)


def _run_due_lines(guest: Guest) -> None:
    if time.time() < guest.next_minute or guest.stopping:
        return
    now = datetime.fromtimestamp(guest.next_minute)
    guest.next_minute = _minute_after(time.time())
    for user, path in cron.crontabs(guest.around.prefix / cron.SPOOL):
        for line in cron.readable_lines(path):
            if line.is_due(now):
                _run_line(guest, user, line)


def _minute_after(moment: float) -> float:
    return (moment // 60 + 1) * 60


def _run_line(guest: Guest, user: str, line: cron.Line) -> None:
    """As cron does. There is no mail in the VM: what a line prints goes to /var/log/cron.log."""
    log = guest.around.prefix / "var/log/cron.log"
    try:
        account = guest.around.account(user)
        variables = {"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "HOME": account.home, **line.environment}
        variables["PATH"] = guest.around.path(variables["PATH"])
        command, text = line.shell_and_input()
        reader = _pipe_with(text) if text else subprocess.DEVNULL
        process = agent.spawn(
            [variables["SHELL"], "-c", command],
            account,
            guest.around,
            environment=variables,
            directory=Path(variables["HOME"]),
            output=(log, log),
            standard_input=reader,
        )
        if text:
            os.close(reader)
    except (CannotRun, OSError) as error:
        print(f"cron: ({user}) {error}", file=sys.stderr, flush=True)
        return
    guest.others[process.pid] = process


def _pipe_with(text: str) -> int:
    """The reading end of a pipe that holds `text` (at most what a pipe takes at once: 64 KiB)."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, text.encode())
    os.close(writer)
    return reader
