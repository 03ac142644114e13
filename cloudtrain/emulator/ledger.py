"""The ids of all machines that were ever asked for, beside the database: what `reset` erases when that is damaged."""

import os
from pathlib import Path


def note(path: Path, vm_id: str) -> None:
    """Before the machine is made. One short append is whole or not there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{vm_id}\n".encode())
    finally:
        os.close(descriptor)


def noted(path: Path) -> set[str]:
    return set(path.read_text().split()) if path.exists() else set()


def clear(path: Path) -> None:
    path.unlink(missing_ok=True)
