"""/proc as a table."""

import os
import signal
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    pid: int
    parent: int
    session: int
    is_zombie: bool


def rows() -> Iterator[Row]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                text = (path / "stat").read_text(errors="replace")
            except OSError:  # it ended while we looked
                continue
            state, parent, _, session, *_ = text.rpartition(")")[2].split()
            yield Row(int(path.name), int(parent), int(session), state in "ZX")


def descendants(ancestor: int, without_those_of: Container[int] = ()) -> list[int]:
    """Living processes below `ancestor`; of the processes named, they themselves but nothing below them."""
    children: dict[int, list[Row]] = {}
    for row in rows():
        children.setdefault(row.parent, []).append(row)
    found: list[int] = []
    pending = [ancestor]
    while pending:
        for row in children.get(pending.pop(), ()):
            if not row.is_zombie:
                found.append(row.pid)
            if row.pid not in without_those_of:
                pending.append(row.pid)
    return found


def own_children() -> list[int]:
    """The caller's children, the ones it adopted too. One read, where the kernel offers it (CONFIG_PROC_CHILDREN):
    whoever forks every millisecond is gone again before a walk through /proc ends."""
    me = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{me}/children").read_text().split()]
    except OSError:
        return [row.pid for row in rows() if row.parent == me]


def kill_session(session: int) -> None:
    """SIGKILL to every process of a session, until there is none left that could start another."""
    for _ in range(1000):
        members = [row.pid for row in rows() if row.session == session and not row.is_zombie]
        if not members:
            return
        for pid in members:
            send_signal(pid, signal.SIGKILL)


def send_signal(pid: int, number: int) -> None:
    """No matter whether the process is still there."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def with_environment(marker: str) -> list[int]:
    """Processes whose environment holds `marker` (NAME=value), as far as we may read it."""
    wanted = marker.encode()
    found = []
    for row in rows():
        try:
            environment = Path("/proc", str(row.pid), "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0") and row.pid != os.getpid():
            found.append(row.pid)
    return found
