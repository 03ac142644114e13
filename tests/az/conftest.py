"""The real `az`, signed in by `cloudtrain emulator shell` as any user's would be."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


def az_directory() -> str | None:
    """Where `az` lies: CLOUDTRAIN_AZ names the program, else PATH has it."""
    found = os.environ.get("CLOUDTRAIN_AZ") or shutil.which("az")
    return str(Path(found).resolve().parent) if found else None


@dataclass(frozen=True)
class Told:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Az:
    """`az` in an open shell. Calling it runs one command line, as bash reads it."""

    home: Path
    environment: dict[str, str]

    def begin(self, line: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", "-c", line],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, line: str) -> Told:
        process = self.begin(line)
        out, err = process.communicate(timeout=300)
        return Told(process.returncode, out, err)

    def told(self, line: str) -> Any:
        """What a command that has to succeed says, as JSON; None for nothing."""
        done = self(line)
        assert done.code == 0, done.err
        return done.json if done.out.strip() else None


@pytest.fixture(scope="module")
def az(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Az]:
    """Afterwards: nothing is left of the shell, and every answer it was given is one that the SDK's models know."""
    directory = az_directory()
    if directory is None:
        pytest.skip("no az: name it in CLOUDTRAIN_AZ, or put it on PATH (pip install azure-cli)")
    place = tmp_path_factory.mktemp("az")
    home, user = place / "home", place / "user"
    user.mkdir()
    given = os.environ | {
        "CLOUDTRAIN_HOME": str(home),
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{directory}:{os.environ['PATH']}",
        "HOME": str(user),  # --generate-ssh-keys writes there
    }
    watched = [sys.executable, "-m", "tests.az.watched_cloudtrain", str(place / "broken")]
    # A shell that tells its environment and stays open; in it, `az` is used by the tests.
    shell = subprocess.Popen(
        [*watched, "emulator", "shell", "--", "sh", "-c", "env -0; echo; exec cat"],
        cwd=place,
        env=given,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert shell.stdin is not None and shell.stdout is not None
    entries = shell.stdout.readline().rstrip("\n").split("\0")
    environment = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    environment.pop("PYTHONPATH", None)
    yield Az(home, environment)
    shell.stdin.close()
    assert shell.wait(30) == 0
    assert not list((home / "emulator/shells").glob("shell-*"))
    broken = json.loads((place / "broken").read_text())
    assert not broken, "\n".join(broken)
    reset = [sys.executable, "-m", "cloudtrain", "emulator", "reset", "--yes", "--quiet"]
    subprocess.run(reset, cwd=place, env=given, check=True, stdout=subprocess.DEVNULL)
