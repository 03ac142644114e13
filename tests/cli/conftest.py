"""The command line in a directory and with a home of its own: as a process, or for long lists in this one."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def envelope(self) -> dict[str, Any]:
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str]:
        """The one error of a failed command's envelope."""
        envelope = self.envelope
        assert envelope["ok"] is False and len(envelope["errors"]) == 1, envelope
        return envelope["errors"][0]


@dataclass(frozen=True)
class CommandLine:
    home: Path
    directory: Path

    def write(self, text: str | bytes) -> None:
        """cloudtrain.toml."""
        content = text.encode() if isinstance(text, str) else text
        (self.directory / "cloudtrain.toml").write_bytes(content)

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AZURE_", "COV_"))}
        return kept | {"CLOUDTRAIN_HOME": str(self.home), "PYTHONPATH": str(REPOSITORY), **more}

    def __call__(self, *arguments: str, python: tuple[str, ...] = (), **environment: str) -> Outcome:
        """A process of its own, without a terminal."""
        done = subprocess.run(
            [sys.executable, *python, "-m", "cloudtrain", *arguments],
            cwd=self.directory,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def made(self) -> list[str]:
        """What lies in the home."""
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file())


@pytest.fixture
def cloudtrain(tmp_path: Path) -> CommandLine:
    directory = tmp_path / "project"
    directory.mkdir()
    return CommandLine(tmp_path / "home", directory)


@pytest.fixture
def quick(cloudtrain: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The same command line in this process: a process each would cost a minute over all the cases."""
    from cloudtrain.call import run
    from cloudtrain.cli import app

    monkeypatch.chdir(cloudtrain.directory)
    monkeypatch.setenv("CLOUDTRAIN_HOME", str(cloudtrain.home))
    for name in ("AZURE_SUBSCRIPTION_ID", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = run(app, arguments)
        told = capsys.readouterr()
        return Outcome(code, told.out, told.err)

    return call
