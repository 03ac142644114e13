"""The VM's own programs: docker, crontab, sudo and the ones that switch it off.

They are laid over the host's /usr, in every directory that a PATH may name, so that the host's docker and crontab
are never reached.
"""

import json
import os
import shlex
from pathlib import Path
from typing import Any

_POWER_OFF, _REBOOT = 38, 39  # SIGRTMIN+4 and +5, systemd's signals; sh's kill knows them by number only

_LAUNCHER = """#!/bin/sh
{library_path}exec {python} -I -S -c 'import sys; sys.path.append(sys.argv.pop(1))
from cloudtrain.emulator.machines.shims.{module} import main; sys.exit(main(sys.argv[1:]))' {package_root} "$@"
"""

_SUDO = """#!/bin/sh
# Whoever runs scripts in this VM is root already; this is sudo's command line without sudo's rules.
user=root
while [ $# -gt 0 ]; do
  case $1 in
    -u) user=$2; shift 2 ;;
    -n|-E|-H|-S|-b|-k|--preserve-env|--preserve-env=*|--non-interactive) shift ;;
    -i|-s) shift; [ $# -gt 0 ] || set -- /bin/sh ;;
    --) shift; break ;;
    -*) echo "sudo: this VM's sudo has no option '$1'" >&2; exit 1 ;;
    *=*) export "$1"; shift ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || { echo "usage: sudo [-u user] command" >&2; exit 1; }
PATH=${CLOUDTRAIN_ROOT:+$CLOUDTRAIN_ROOT/usr/bin:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
if [ -z "${CLOUDTRAIN_ROOT:-}" ] && [ "$(id -u)" != 0 ]; then
  echo "sudo: in this emulated VM only root's scripts can use sudo" >&2; exit 1
fi
if [ "$user" != root ]; then exec setpriv --reuid "$user" --regid "$user" --init-groups -- "$@"; fi
exec env HOME="${CLOUDTRAIN_ROOT:-}/root" USER=root LOGNAME=root SUDO_USER=root SUDO_UID=0 SUDO_GID=0 "$@"
"""

_SWITCH = """#!/bin/sh
# pid 1 of this VM understands systemd's signals
exec kill -{signal} "${{CLOUDTRAIN_INIT:-1}}"
"""

_SHUTDOWN = """#!/bin/sh
number={power_off}
for word in "$@"; do case $word in -r|--reboot) number={reboot} ;; -c) exit 0 ;; esac; done
exec kill -$number "${{CLOUDTRAIN_INIT:-1}}"
"""


def install(disk: Path, config: dict[str, Any]) -> None:
    library_path = config["library_path"]
    values = {
        "python": shlex.quote(config["python"]),
        "package_root": shlex.quote(config["package_root"]),
        "library_path": f"LD_LIBRARY_PATH={shlex.quote(library_path)} " if library_path else "",
    }
    programs = {
        "docker": _LAUNCHER.format(module="docker", **values),
        "crontab": _LAUNCHER.format(module="crontab", **values),
        "sudo": _SUDO,
        "reboot": _SWITCH.format(signal=_REBOOT),
        "poweroff": _SWITCH.format(signal=_POWER_OFF),
        "halt": _SWITCH.format(signal=_POWER_OFF),
        "shutdown": _SHUTDOWN.format(power_off=_POWER_OFF, reboot=_REBOOT),
    }
    for place in ("usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin"):
        # where the host's /usr/sbin is a link to bin, a directory of ours would hide it
        if not Path("/", place).is_symlink():
            for name, text in programs.items():
                _put(disk / place / name, text)


def describe_engine(prefix: Path, config: dict[str, Any], environment: dict[str, str]) -> None:
    """What the VM's docker needs to know, anew at each boot."""
    place = prefix / "run" / "docker"
    (place / "keepers").mkdir(parents=True, exist_ok=True)
    description = {
        "images": config["images"],
        "environment": environment,
        "library_path": config["library_path"],
        "readable": config["readable"],
        "isolated": prefix == Path("/"),
        "boot": os.urandom(8).hex(),
    }
    (place / "engine.json").write_text(json.dumps(description))


def _put(path: Path, text: str) -> None:
    if not path.is_symlink() and path.is_file() and path.read_text(errors="replace") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.write_text(text)
    temporary.chmod(0o755)
    temporary.replace(path)
