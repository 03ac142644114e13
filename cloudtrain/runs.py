"""The index of runs that this machine knows: where each one lives, the SSH key pair made for it, and where its files
came home to.

A hint, never the truth: what a run is stands in Azure's tags. A lost entry costs a `--cloud` flag, no run.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cloudtrain.errors import CloudtrainError
from cloudtrain.files import write_whole
from cloudtrain.spec import CLOUDS, Unfit, public_key_line

_PULLED = "pulled.json"


@dataclass(frozen=True)
class Hint:
    """Where a run was made. created: ISO 8601, UTC."""

    cloud: str
    subscription: str | None
    location: str
    resource_group: str
    created: str


def directory(home: Path, cloud: str, run: str) -> Path:
    """Where the entry of a run lies."""
    return home / "runs" / cloud / run


def remember(home: Path, run: str, hint: Hint) -> None:
    """Keeps where a run lives. An entry that is there already keeps its date."""
    known = recall(home, hint.cloud, run)
    content = asdict(hint) | ({"created": known.created} if known else {})
    place = _private_directory(directory(home, hint.cloud, run), home)
    write_whole(place / "run.json", json.dumps(content, indent=1).encode() + b"\n", 0o600)


def recall(home: Path, cloud: str, run: str) -> Hint | None:
    """What is known of a run on a cloud; None when nothing is, or the entry is damaged."""
    try:
        content = json.loads((directory(home, cloud, run) / "run.json").read_bytes())
        hint = Hint(**content)
    except (OSError, ValueError, TypeError):
        return None
    texts = (hint.cloud, hint.location, hint.resource_group, hint.created)
    return hint if all(isinstance(text, str) for text in texts) and hint.cloud == cloud else None


def clouds_of(home: Path, run: str) -> list[str]:
    """The clouds where this machine knows a run of that name. A damaged entry still tells its cloud."""
    return [cloud for cloud in CLOUDS if (directory(home, cloud, run) / "run.json").exists()]


def known_runs(home: Path, cloud: str) -> list[str]:
    """The names of the runs known on a cloud."""
    return sorted(path.parent.name for path in (home / "runs" / cloud).glob("*/run.json"))


def remember_pull(home: Path, cloud: str, run: str, where: Path) -> None:
    """Keeps where the run's files come home to."""
    place = _private_directory(directory(home, cloud, run), home)
    write_whole(place / _PULLED, json.dumps({"directory": str(where)}).encode() + b"\n", 0o600)


def last_pull(home: Path, cloud: str, run: str) -> Path | None:
    """Where the last pull of the run went; None where none is known."""
    try:
        where = json.loads((directory(home, cloud, run) / _PULLED).read_bytes())["directory"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Path(where) if isinstance(where, str) else None


def forget(home: Path, cloud: str, run: str) -> None:
    """Removes all that this machine keeps of a run: hint and key pair. No harm where there is nothing."""
    place = directory(home, cloud, run)
    # The hint goes last: a removal cut short is still known, and done again.
    for name in ("id_rsa", "id_rsa.pub", _PULLED, "run.json"):
        (place / name).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def key_pair(home: Path, cloud: str, run: str) -> tuple[Path, str]:
    """The run's own SSH key pair, RSA 3072, made on first use: (path of the private half, public line).

    RSA because Azure takes it everywhere. A damaged half is made anew from the other where that can be.
    """
    place = _private_directory(directory(home, cloud, run), home)
    with _locked(place):
        line = _read_public(place / "id_rsa.pub")
        if line is None or not (place / "id_rsa").exists():
            line = _restore_public(place) or _make_pair(place, f"cloudtrain-{run}")
    return place / "id_rsa", line


def _read_public(path: Path) -> str | None:
    try:
        return public_key_line(path.read_text())
    except (OSError, ValueError, Unfit):
        return None


def _restore_public(place: Path) -> str | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

    try:
        key = load_ssh_private_key((place / "id_rsa").read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    write_whole(place / "id_rsa.pub", line.encode() + b"\n", 0o600)
    return line


def _make_pair(place: Path, comment: str) -> str:
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = generate_private_key(public_exponent=65537, key_size=3072)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + f" {comment}"
    write_whole(place / "id_rsa", private, 0o600)
    write_whole(place / "id_rsa.pub", line.encode() + b"\n", 0o600)
    return line


def _private_directory(path: Path, home: Path) -> Path:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    missing = [path, *(parent for parent in path.parents if home in parent.parents)]
    for level in reversed(missing):
        try:
            level.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError as error:
            raise CloudtrainError(
                "DamagedIndex",
                f"{level} is a file, where cloudtrain keeps a directory.",
                "Move it out of the way, then run the same command again.",
            ) from error
    return path


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
