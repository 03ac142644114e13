"""The VM's users: its own /etc/passwd and /etc/group, never the host's name services."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Account:
    name: str
    uid: int
    gid: int
    home: str
    shell: str


def accounts(passwd: Path) -> Iterator[Account]:
    if not passwd.exists():
        return
    for line in passwd.read_text(errors="replace").splitlines():
        parts = line.split(":")
        if len(parts) == 7 and parts[2].isdigit() and parts[3].isdigit():
            yield Account(parts[0], int(parts[2]), int(parts[3]), parts[5], parts[6])


def account(name: str, passwd: Path) -> Account | None:
    return next((found for found in accounts(passwd) if found.name == name), None)


def add_account(name: str, etc: Path) -> Account:
    """The account of that name, made if it is not there, as Azure makes the administrator's."""
    existing = account(name, etc / "passwd")
    if existing is not None:
        return existing
    taken = {found.uid for found in accounts(etc / "passwd")}
    number = next(uid for uid in range(1000, 60000) if uid not in taken)
    made = Account(name, number, number, f"/home/{name}", "/bin/bash")
    _append(etc / "passwd", f"{name}:x:{number}:{number}:{name}:{made.home}:{made.shell}\n")
    _append(etc / "group", f"{name}:x:{number}:\n")
    return made


def _append(path: Path, line: str) -> None:
    text = path.read_text(errors="replace") if path.exists() else ""
    if text and not text.endswith("\n"):
        text += "\n"
    path.write_text(text + line)
