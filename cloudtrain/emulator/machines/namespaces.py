"""Linux namespaces and mounts through ctypes: what unshare(1) and mount(8) do, where neither is needed.

Every call raises OSError with the call and its arguments in the message.
"""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

NEW_USER, NEW_MOUNT, NEW_PID, NEW_UTS, NEW_IPC = 0x10000000, 0x20000, 0x20000000, 0x4000000, 0x8000000

READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC = 1, 2, 4, 8
_REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 32, 4096, 16384, 1 << 18
_DETACH = 2
# A user namespace may not drop these from a mount it inherited: a remount has to repeat them.
_LOCKED_FLAGS = NO_SUID | NO_DEVICES | NO_EXEC | 1024 | 2048

_SET_PARENT_DEATH_SIGNAL, _SET_NAME, _SET_CHILD_SUBREAPER = 1, 15, 36

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        shown = ", ".join(a.decode(errors="replace") if isinstance(a, bytes) else str(a) for a in arguments)
        raise OSError(number, f"{name}({shown}): {os.strerror(number)}")


def _bytes(path: str | Path | None) -> bytes | None:
    return None if path is None else os.fsencode(path)


def unshare(flags: int) -> None:
    _call("unshare", flags)


def mount(
    source: str | Path | None,
    target: str | Path,
    filesystem: str | None = None,
    flags: int = 0,
    options: str | None = None,
) -> None:
    _call(
        "mount",
        _bytes(source),
        _bytes(target),
        _bytes(filesystem),
        ctypes.c_ulong(flags),
        None if options is None else os.fsencode(options),
    )


def detach(target: str | Path) -> None:
    _call("umount2", _bytes(target), _DETACH)


def make_private(target: str | Path = "/") -> None:
    """What is mounted from here on stays in this namespace."""
    mount(None, target, None, _RECURSIVE | _PRIVATE)


def bind(source: str | Path, target: str | Path, *, read_only: bool = False) -> None:
    """Show `source` (a file or a directory with what is mounted below it) at `target`, which is made if missing."""
    source, target = Path(source), Path(target)
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(source, target, None, _BIND | _RECURSIVE)
    if read_only:
        make_read_only(target)


def make_read_only(target: Path) -> None:
    """`target` and every mount below it: a remount alone leaves the submounts writable."""
    for point in [*mounts_below(target), target]:
        kept = os.statvfs(point).f_flag & _LOCKED_FLAGS
        mount(None, point, None, _BIND | _REMOUNT | READ_ONLY | kept)


def remount_writable(point: Path) -> None:
    """One mount, without those below it."""
    mount(None, point, None, _BIND | _REMOUNT | (os.statvfs(point).f_flag & _LOCKED_FLAGS))


def mounts_below(target: Path) -> Iterator[Path]:
    prefix = f"{target}/"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point.startswith(prefix) and Path(point).exists():
            yield Path(point)


def overlay(lower: Path, upper: Path, work: Path, target: Path) -> None:
    """`lower` with what is written kept in `upper`. `upper` and `work` must lie in one mount."""
    for directory in (upper, work, target):
        directory.mkdir(parents=True, exist_ok=True)
    options = ",".join(
        f"{key}={_escaped(path)}" for key, path in (("lowerdir", lower), ("upperdir", upper), ("workdir", work))
    )
    # userxattr: inside a user namespace overlayfs may not write the trusted.* attributes it uses otherwise.
    mount("overlay", target, "overlay", 0, options + ",userxattr")


def _escaped(path: Path) -> str:
    """overlayfs separates its options with commas and its lower layers with colons."""
    return str(path).replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


def change_root(new_root: Path) -> None:
    """Make `new_root`, which must be a mount, the root directory, and let the old one go."""
    os.chdir(new_root)
    _call("pivot_root", b".", b".")
    detach(".")
    os.chdir("/")


def set_hostname(name: str) -> None:
    encoded = name.encode()[:64]
    _call("sethostname", encoded, len(encoded))


def set_process_name(name: str) -> None:
    _call("prctl", _SET_NAME, name.encode()[:15], 0, 0, 0)


def die_with_parent(signal_number: int) -> None:
    """The kernel sends the signal when the *thread* that started this process ends."""
    _call("prctl", _SET_PARENT_DEATH_SIGNAL, signal_number, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies (PR_SET_CHILD_SUBREAPER)."""
    _call("prctl", _SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def identity_maps() -> tuple[str, str]:
    """(uid_map, gid_map) that give a new user namespace every id this one has, each as itself."""
    return _identity("/proc/self/uid_map"), _identity("/proc/self/gid_map")


def _identity(path: str) -> str:
    ranges = (line.split() for line in Path(path).read_text().splitlines())
    return "\n".join(f"{inside} {inside} {count}" for inside, _, count in ranges)


def write_identity_maps(pid: int | str) -> None:
    """Only a process that stayed outside, with CAP_SETUID there, may do this."""
    uids, gids = identity_maps()
    _write_map(f"/proc/{pid}/uid_map", uids)
    _write_map(f"/proc/{pid}/gid_map", gids)


def write_own_map(uid: int, gid: int) -> None:
    """The caller becomes root of the user namespace it just made; no other id exists in it."""
    _write_map("/proc/self/setgroups", "deny")
    _write_map("/proc/self/uid_map", f"0 {uid} 1")
    _write_map("/proc/self/gid_map", f"0 {gid} 1")


def _write_map(path: str, text: str) -> None:
    # one write(2), unbuffered: a buffered file object may swallow the error when it is closed
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"write to {path}: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(descriptor)
