"""The VM's agent: runs scripts as Azure's two run-command handlers do.

action: Azure/run-command-extension-linux 1.0.12, main/cmds.go and exec.go. managed: Azure/run-command-handler-linux
1.3.28. Both write the script (mode 0500, without carriage returns) into a directory of its sequence number and let a
shell run that path, so a `#!` line decides who reads it.
"""

import os
import re
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudtrain.emulator.machines.accounts import Account, account
from cloudtrain.emulator.machines.process_table import kill_session

ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DOWNLOADS = {
    "action": "var/lib/waagent/run-command/download",
    "managed": "var/lib/waagent/run-command-handler/download",
}


class CannotRun(Exception):
    """The script was never started; the message is what Azure's handler would have had to say."""


@dataclass(frozen=True)
class Surroundings:
    """Where a VM's processes live. prefix: `/`, or the disk's directory where namespaces are missing.

    programs: put before every PATH; empty where the VM has a /usr of its own. environment: for every process.
    can_switch_user: false where the user namespace has one id only.
    """

    prefix: Path
    programs: str
    environment: dict[str, str]
    can_switch_user: bool

    def path(self, search: str) -> str:
        return f"{self.programs}:{search}" if self.programs else search

    def account(self, name: str) -> Account:
        """Raises CannotRun for a user whom the VM does not have or cannot become."""
        if name in ("", "root"):
            return Account("root", 0, 0, str(self.prefix / "root"), "/bin/bash")
        found = account(name, self.prefix / "etc/passwd")
        if found is None:
            raise CannotRun(f"failed to look up user {name}: unknown user {name}")
        if not self.can_switch_user:
            raise CannotRun(
                f"cannot run as {name}: this emulated VM was started by an ordinary user, so it has no user but root"
            )
        return found


@dataclass
class RunningScript:
    key: str
    process: subprocess.Popen[bytes]
    deadline: float  # monotonic
    verdict: str = ""  # set when it was killed: TimedOut or Canceled

    def stop(self, verdict: str) -> None:
        self.verdict = verdict
        kill_session(self.process.pid)

    def outcome(self, status: int) -> dict[str, Any]:
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        state = self.verdict or ("Succeeded" if code == 0 else "Failed")
        return {
            "event": "script-ended",
            "key": self.key,
            "state": state,
            "exit_code": None if self.verdict else code,
        }


def safe_name(name: str) -> str:
    """A managed command's name as a directory."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "_"


def directory_of(flavour: str, name: str, sequence: int) -> str:
    """Where a script's files lie, relative to the VM's `/`."""
    parts = [_DOWNLOADS[flavour], *([safe_name(name)] if flavour == "managed" else []), str(sequence)]
    return "/".join(parts)


def start(order: dict[str, Any], around: Surroundings) -> RunningScript:
    """Raises CannotRun, or OSError when the disk would not take the script."""
    directory = around.prefix / directory_of(order["flavour"], order["name"], order["sequence"])
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / "stdout").touch(mode=0o600)
    (directory / "stderr").touch(mode=0o600)
    user = around.account(order["run_as"])
    script = _write(order, directory, user)
    shell = "/bin/bash" if order["flavour"] == "managed" and Path("/bin/bash").exists() else "/bin/sh"
    command = " ".join(shlex.quote(word) for word in (str(script), *order["arguments"]))
    process = spawn(
        [shell, "-c", command],
        user,
        around,
        environment={**order["environment"]} | {"PATH": around.path(order["environment"].get("PATH", ROOT_PATH))},
        directory=script.parent,
        output=(directory / "stdout", directory / "stderr"),
    )
    return RunningScript(order["key"], process, time.monotonic() + order["timeout"])


def _write(order: dict[str, Any], directory: Path, user: Account) -> Path:
    """The script's file, where the user who runs it can reach it."""
    if user.uid:
        directory = Path(user.home, "waagent", "run-command-handler-runas", *directory.parts[-2:])
        directory.mkdir(parents=True, exist_ok=True)
        for made in (directory, directory.parent, directory.parent.parent, directory.parent.parent.parent):
            os.chown(made, user.uid, user.gid)
    script = directory / "script.sh"
    script.unlink(missing_ok=True)
    text = order["text"].replace("\r\n", "\n").removeprefix("\ufeff")
    script.write_bytes(text.encode("utf-8", "surrogatepass"))
    script.chmod(0o500)
    if user.uid:
        shutil.chown(script, user.uid, user.gid)
    return script


def spawn(
    command: list[str],
    user: Account,
    around: Surroundings,
    *,
    environment: dict[str, str],
    directory: Path,
    output: tuple[Path, Path],
    standard_input: int = subprocess.DEVNULL,
) -> "subprocess.Popen[bytes]":
    """A process in a session of its own, writing to real files, so that what it leaves behind holds up nobody.

    Raises OSError."""
    known = {"HOME": user.home, "LOGNAME": user.name, "USER": user.name, "SHELL": user.shell}
    switch: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []} if user.uid else {}
    with output[0].open("ab") as out, output[1].open("ab") as err:
        return subprocess.Popen(
            command,
            stdin=standard_input,
            stdout=out,
            stderr=err,
            cwd=directory if directory.is_dir() else around.prefix,
            env={**known, **around.environment, **environment},
            start_new_session=True,
            **switch,
        )
