"""The node's file system, put together before anything else: the VM's disk laid over the image, and made `/`."""

import shutil
from pathlib import Path

from cloudtrain.emulator.machines import namespaces
from cloudtrain.emulator.machines.node import DISK, ENGINE_DISK, RECORDS, RECORDS_INSIDE, UPPER

_NEW_ROOT = Path("/sysroot")
_GIVEN_BY_THE_ENGINE = ("etc/resolv.conf", "etc/hosts", "etc/hostname")
_CGROUPS = Path("/sys/fs/cgroup")


def enter() -> None:
    """Make the disk the root directory. Raises OSError."""
    for directory in (UPPER, ENGINE_DISK / "docker", ENGINE_DISK / "containerd", RECORDS):
        directory.mkdir(parents=True, exist_ok=True)
    RECORDS.chmod(0o700)
    try:
        namespaces.overlay(Path("/"), UPPER, DISK / "work", _NEW_ROOT)
    except OSError as error:
        raise OSError(f"the Docker engine keeps its volumes on a file system that takes no overlay: {error}") from error
    for name in ("proc", "sys", "dev", *_GIVEN_BY_THE_ENGINE):
        namespaces.bind(Path("/", name), _NEW_ROOT / name)
    # Azure's temporary disk is lost with the host: it lies in the container, which lives from start to deallocation
    namespaces.bind(Path("/mnt"), _NEW_ROOT / "mnt")
    namespaces.bind(RECORDS, _NEW_ROOT / RECORDS_INSIDE.relative_to("/"))
    for name in ("docker", "containerd"):
        namespaces.bind(ENGINE_DISK / name, _NEW_ROOT / "var/lib" / name)
    namespaces.mount("tmpfs", _NEW_ROOT / "run", "tmpfs", 0, "mode=755")
    namespaces.change_root(_NEW_ROOT)
    _let_the_engine_make_cgroups()


def _let_the_engine_make_cgroups() -> None:
    """An engine mounts them read-only into a container that is not privileged."""
    points = [*namespaces.mounts_below(_CGROUPS), _CGROUPS]
    for point in points:
        namespaces.remount_writable(point)
    if (_CGROUPS / "cgroup.controllers").exists():
        _leave_the_top_cgroup()


def _leave_the_top_cgroup() -> None:
    """Version 2 lets a cgroup with processes have no children with controllers."""
    own = _CGROUPS / "init"
    own.mkdir(exist_ok=True)
    for pid in (_CGROUPS / "cgroup.procs").read_text().split():
        (own / "cgroup.procs").write_text(pid)
    controllers = (_CGROUPS / "cgroup.controllers").read_text().split()
    (_CGROUPS / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


def clear_for_boot() -> None:
    """What does not survive a reboot. cron looks in /run whether it has run the @reboot lines of this boot."""
    for place in ("/var/lib/docker", "/var/lib/containerd", "/run"):
        for point in sorted(namespaces.mounts_below(Path(place)), reverse=True):
            namespaces.detach(point)
    namespaces.detach("/run")
    namespaces.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    for name in ("lock", "sshd"):
        Path("/run", name).mkdir()
    for entry in Path("/tmp").iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()
