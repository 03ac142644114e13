"""Keeps one container of fake_docker.py: runs it, and records its end. argv: FOLDER, then the command."""

import os
import subprocess
import sys
from pathlib import Path

folder = Path(sys.argv[1])


def record(name: str, number: int) -> None:
    """Whole or not at all, whenever the power is cut."""
    new = folder / f".{name}"
    new.write_text(str(number))
    new.rename(folder / name)


record("keeper", os.getpid())
with (folder / "log").open("ab") as log:
    child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
record("pid", child.pid)
code = child.wait()
record("exit", 128 - code if code < 0 else code)
