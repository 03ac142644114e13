"""A command line with a home of its own, and a check that nothing of it outlives the test."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]
# Of the runs that are evicted again and again: half with notice, half without. .ci/run asks for more.


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def envelope(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def data(self) -> dict[str, Any]:
        assert self.code == 0, f"exit {self.code}\n{self.out}\n{self.err}"
        return self.envelope["data"]


@dataclass(frozen=True)
class CommandLine:
    """`cloudtrain` as a user runs it: a process of its own, in a directory and with a home of its own."""

    home: Path
    directory: Path

    def environment(self) -> dict[str, str]:
        return os.environ | {"CLOUDTRAIN_HOME": str(self.home), "PYTHONPATH": str(REPOSITORY)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cloudtrain", *arguments],
            cwd=self.directory,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str, timeout: float = 300) -> Outcome:
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            # Out of time, or interrupted: it must not go on making things behind the test's back.
            process.kill()
        return Outcome(process.returncode, out, err)

    def processes(self) -> list[psutil.Process]:
        """Whatever still runs with this home in its environment or command line, the VMs' processes included."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def trainers(self) -> list[psutil.Process]:
        """The trainers in this home's VMs."""
        below: set[psutil.Process] = set()
        for process in self.processes():
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                below.update(process.children(recursive=True))
        found = []
        for process in below:
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[1:3] == ["-m", "trainer"]:
                    found.append(process)
        return found

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.pid == os.getpid():
                return False
            words = [*process.cmdline(), *process.environ().values(), process.cwd()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            return False
        return any(str(self.home) in word for word in words)


@pytest.fixture
def cloudtrain(tmp_path: Path) -> Iterator[CommandLine]:
    directory = tmp_path / "project"
    directory.mkdir()
    line = CommandLine(home=tmp_path / "home", directory=directory)
    yield line
    line("emulator", "reset", "--yes")
    deadline = time.monotonic() + 5
    while (left := line.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)  # what serves a VM's blobs dies with the VM's supervisor, a moment later
    told = []
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            told.append(process.cmdline())
            process.kill()
    assert not left, f"processes outlived the run: {told}"
