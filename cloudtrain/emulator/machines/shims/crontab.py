"""The VM's `crontab`, with the answers of Debian's and Ubuntu's."""

import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cloudtrain.emulator.machines.cron import SPOOL, BadCrontab, parse

_USAGE = """crontab: usage error: {why}
usage:\tcrontab [-u user] file
\tcrontab [ -u user ] [ -i ] {{ -e | -l | -r }}
\t\t(default operation is replace, per 1003.2)
\t-e\t(edit user's crontab)
\t-l\t(list user's crontab)
\t-r\t(delete user's crontab)
\t-i\t(prompt before deleting user's crontab)"""


class Refused(Exception):
    """What crontab says before it ends with 1."""


def main(words: Sequence[str]) -> int:
    try:
        _obey(list(words))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


def _obey(words: list[str]) -> None:
    user, action, file = _who(), "", ""
    while words:
        word = words.pop(0)
        match word:
            case "-u" if words:
                user = _allowed(words.pop(0))
            case "-l" | "-r":
                action = word
            case "-i":
                pass
            case "-e":
                raise Refused("crontab: there is no editor in this VM: use crontab FILE")
            case _ if word.startswith("-") and word != "-":
                raise Refused(_USAGE.format(why="unrecognized option"))
            case _:
                file = word
    tab = _spool() / user
    match action:
        case "-l":
            print(_existing(tab, user).read_text(), end="")
        case "-r":
            _existing(tab, user).unlink()
        case _ if not file and sys.stdin.isatty():
            raise Refused(_USAGE.format(why="file name must be specified for replace"))
        case _:
            _install(file or "-", tab)


def _who() -> str:
    """Without namespaces the VM's root is an ordinary user of the host."""
    if os.environ.get("CLOUDTRAIN_ROOT") or os.getuid() == 0:
        return "root"
    return getpass.getuser()


def _allowed(user: str) -> str:
    if user != _who() and _who() != "root":
        raise Refused("must be privileged to use -u")
    if "/" in user or user.startswith("."):
        raise Refused(f"crontab:  user `{user}' unknown")
    return user


def _spool() -> Path:
    return Path(os.environ.get("CLOUDTRAIN_ROOT") or "/") / SPOOL


def _existing(tab: Path, user: str) -> Path:
    if not tab.is_file():
        raise Refused(f"no crontab for {user}")
    return tab


def _install(file: str, tab: Path) -> None:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except OSError as error:
        raise Refused(f"{file}: {error.strerror}") from error
    if text and not text.endswith("\n"):
        raise Refused("new crontab file is missing newline before EOF, can't install.")
    try:
        parse(text)
    except BadCrontab as bad:
        raise Refused(f'"{file}":{bad.line}: {bad.what}\nerrors in crontab file, can\'t install.') from bad
    tab.parent.mkdir(parents=True, exist_ok=True)
    temporary = tab.with_name(f".{tab.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.chmod(0o600)
    temporary.replace(tab)
