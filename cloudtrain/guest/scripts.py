"""The bash scripts that RunCommand carries to the VM.

Each ends, on every path, with the marker `cloudtrain-done NONCE rc=N` as its last line of stdout: Azure
reports exit code 0 for a command that never ran. What the user chose travels as base64 and never meets a
shell.
"""

import base64
import gzip
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from importlib import resources

from cloudtrain.guest.settings import GuestSettings

MARKER = "cloudtrain-done"
LOGS = ("training", "container", "startup", "eviction")
INSTALLED = (
    "guest.py",
    "trainer_output.py",
    "storage.py",
    "mount.py",
    "observe.py",
    "publish.py",
    "pointers.py",
    "release.py",
    "sending.py",
    "uploader.py",
    "restore.py",
    "run_trainer.py",
    "eviction_watch.py",
    "startup-script.sh",
)
# The environment variable, a protected parameter, that brings a docker config.json in base64.
PULL_LOGIN = "CLOUDTRAIN_PULL_LOGIN"
# Likewise, JSON in base64: how the VM reaches the blobs (see `durable`), and the values of secret variables by name.
STORAGE = "CLOUDTRAIN_STORAGE"
SECRETS = "CLOUDTRAIN_SECRETS"
CRON_LINE = "@reboot /cloudtrain/startup-script.sh"


def vm_file(name: str) -> str:
    """The text of a file of `vm/`."""
    return (resources.files("cloudtrain.guest") / "vm" / name).read_text("utf-8")


def install_script(
    settings: GuestSettings, nonce: str, *, timeout: float = 5400.0, container_seconds: float = 30.0
) -> str:
    """Installs the guest, starts training and ends once it is under way: the one script of `up`.

    It can be sent again at any time: files and settings are replaced, a running trainer is left alone. Its
    stdout is read by `parse_start`. timeout: seconds until it gives up waiting, rc 124. container_seconds:
    how long a container that writes no progress.json must run to count as under way.
    """
    files = "\n".join(_install_file(name, vm_file(name).encode()) for name in INSTALLED)
    return "\n".join(
        [
            _head(nonce),
            vm_file("install.sh"),
            files,
            _install_file("settings.json", settings.to_json(), mode="0600"),
            "put_crontab_line",
            "start_training",
            _program("await_training.py", _wanted(None, timeout, container_seconds)),
            "",
        ]
    )


def await_script(
    nonce: str, *, after: int | None = None, timeout: float = 1800.0, container_seconds: float = 30.0
) -> str:
    """Waits until training is under way again, for instance after a boot; changes nothing.

    after: the `session` of an observation made before: what an earlier session did does not count.
    Its stdout is read by `parse_start`.
    """
    wanted = _wanted(after, timeout, container_seconds)
    return "\n".join([_head(nonce), _program("await_training.py", wanted), ""])


def renew_script(nonce: str) -> str:
    """Takes up the protected parameters STORAGE and SECRETS, and changes nothing else."""
    return "\n".join([_head(nonce), vm_file("install.sh"), ""])


def observe_script(
    nonce: str,
    *,
    log: str | None = None,
    offset: int = 0,
    identity: str = "",
    events_offset: int = -2048,
    journal_lines: int = 5,
) -> str:
    """Reads everything that is to be known of the guest, and a piece of one of its logs; changes nothing.

    log: training, container, startup or eviction. offset, identity: the position from
    `Observation.log.next`, or a negative offset for that many bytes from the end. events_offset: likewise,
    from `Observation.events_offset`.
    """
    if log is not None and log not in LOGS:
        raise ValueError(f"Received log {log!r}. Expected one of {', '.join(LOGS)}.")
    wanted = {
        "log": log,
        "identity": identity,
        "offset": offset,
        "events": events_offset,
        "journal": journal_lines,
    }
    return "\n".join([_head(nonce), _program("observe.py", wanted), ""])


def save_and_stop_script(nonce: str, *, wait_seconds: float = 60.0) -> str:
    """Asks the trainer to save and end, waits for it, and keeps it from being started before the next boot
    or `up`.

    rc 0: no container runs; 1: one still does or is being started, or Docker does not answer. stdout is read by
    `parse_stop`.
    """
    return "\n".join([_head(nonce), _program("stop_training.py", {"wait_seconds": wait_seconds}), ""])


def _wanted(after: int | None, timeout: float, container_seconds: float) -> dict[str, object]:
    return {
        "after": after,
        "timeout": timeout,
        "container_seconds": container_seconds,
        "liveness_seconds": 15.0,
    }


def _head(nonce: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", nonce):
        raise ValueError(f"Received nonce {nonce!r}. Expected letters, digits and hyphens.")
    return f"""#!/bin/bash
set -u
trap 'rc=$?; trap - EXIT; printf "{MARKER} {nonce} rc=%s\\n" "$rc"; exit "$rc"' EXIT
PATH="${{PATH:-/usr/bin:/bin}}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
export PATH
"""


def _install_file(name: str, content: bytes, mode: str = "0755") -> str:
    digest = hashlib.sha256(content).hexdigest()
    # Compressed: Azure runs the script as one word of bash, which Linux limits to 128 KiB.
    encoded = base64.encodebytes(gzip.compress(content, mtime=0)).decode()
    return f"put_file {name} {mode} {digest} <<'END_OF_FILE'\n{encoded}END_OF_FILE\n"


def _program(name: str, wanted: Mapping[str, object]) -> str:
    """Runs a program of `vm/` without installing it, so that reading works on a full disk and on an older
    guest."""
    argument = base64.b64encode(json.dumps(wanted).encode()).decode()
    loader = "\n".join(
        [
            "import sys, types",
            "module = types.ModuleType('guest')",
            "sys.modules['guest'] = module",
            f"exec(compile({vm_file('guest.py')!r}, 'guest.py', 'exec'), module.__dict__)",
            f"exec(compile({vm_file(name)!r}, {name!r}, 'exec'))",
        ]
    )
    return f"python3 -sSEB -c {shlex.quote(loader)} {argument}"
