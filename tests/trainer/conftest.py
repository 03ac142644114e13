"""The trainer as its users meet it: a process, a directory, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
TIMEOUT = 240.0


@dataclass
class Trainer:
    """Starts `python -m trainer` (or a script) in `root` and watches what appears there."""

    root: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return self.root / "models"

    def environment(self, **more: str) -> dict[str, str]:
        """As bare as a container's: no home, and nothing of the caller's own settings."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{REPOSITORY}:{HERE}",
            "CHECKPOINT_DIR": str(self.directory),
            "TFDS_DATA_DIR": str(self.root / "data"),
            "HOME": "/nonexistent",
            **more,
        }

    def start(self, *arguments: str, program: tuple[str, ...] = ("-m", "trainer"), **options: Any) -> Any:
        environment = self.environment(**options.pop("env", {}))
        process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **options: Any) -> tuple[int, str]:
        """Exit code, and stdout and stderr together."""
        process = self.start(*arguments, **options)
        output, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, output

    def stop(self, process: Any, number: int = signal.SIGTERM) -> tuple[int, str]:
        process.send_signal(number)
        output, _ = process.communicate(timeout=TIMEOUT)
        return process.returncode, output

    def await_step(self, process: Any, step: int) -> int:
        """Return when there is a checkpoint of `step` or a later one."""

        def reached() -> int | None:
            return max((each for each in self.steps() if each >= step), default=None)

        return int(self.await_(process, reached))

    def await_(self, process: Any, condition: Callable[[], Any]) -> Any:
        """Return what `condition` says once it is true; fail if the trainer ends or time runs out."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            if answer := condition():
                return answer
            if process.poll() is not None and not (answer := condition()):
                pytest.fail(f"the trainer ended with {process.returncode}:\n{process.stdout.read()}")
            time.sleep(0.002)
        pytest.fail("waited too long")

    def steps(self) -> list[int]:
        return sorted(int(path.stem) for path in (self.directory / "checkpoints").glob("[0-9]*.ckpt"))

    def progress(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads((self.directory / "progress.json").read_text())
        return answer

    def journal(self) -> str:
        return (self.directory / "log.txt").read_text()


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    answer = Trainer(tmp_path)
    yield answer
    for process in answer.started:
        if process.poll() is None:
            process.kill()
            process.communicate()
