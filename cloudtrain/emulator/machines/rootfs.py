"""The VM's file system: the host's programs, its own everything else.

`/` is the VM's disk. /usr, /etc and two directories of dpkg's are the host's with the VM's changes laid over them;
/proc, /sys, /dev and /run are made anew; nothing else of the host is seen but the directories named as readable.
This keeps accidents in. It is not a wall against somebody who wants out.
"""

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from cloudtrain.emulator.machines import namespaces
from cloudtrain.emulator.machines.directory import VmDirectory

_HOST = ".host"  # where the host's own /usr is, if the VM's cannot be laid over it
_SYSTEM = (_HOST, "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu")
_OVERLAID = ("usr", "etc")
# apt and dpkg find what is installed, and what they change stays here; the rest of /var is the VM's alone:
# the host's may hold another engine's containers, another agent's scripts, and crontabs.
_OVERLAID_WITH_ROOT = ("var/lib/dpkg", "var/lib/apt")
_SKELETON = (
    ("root", 0o700),
    ("home", 0o755),
    ("tmp", 0o1777),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("srv", 0o755),
    ("var/cache", 0o755),
    ("var/lib/waagent", 0o700),
    ("var/lib/docker", 0o710),
    ("var/log/azure", 0o755),
    ("var/spool/cron/crontabs", 0o700),
    ("var/tmp", 0o1777),
)
_PLACES_OF_PROGRAMS = ("bin", "sbin", "local/bin", "local/sbin")
_MADE_ANEW = ("proc", "sys", "dev", "run")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "kfd", "dri")
_UNTOUCHABLE_IN_PROC = ("sys", "sysrq-trigger", "irq", "bus", "acpi", "scsi")


def make_disk(disk: Path) -> None:
    """The directories that every disk has. Modes are set when a directory is made, not again."""
    disk.mkdir(mode=0o755, exist_ok=True)
    for name, mode in _SKELETON:
        path = disk / name
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(mode)
    run = disk / "var" / "run"
    if not run.is_symlink():
        run.symlink_to("/run")


def empty(directory: Path) -> None:
    """Remove what lies in a directory, whatever modes it has."""
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            entry.unlink()


def remove_tree(path: Path) -> None:
    """rm -rf that also enters the directories nobody may enter, such as overlayfs's work directories."""
    for parent, directories, _ in os.walk(path):
        for name in directories:
            inner = Path(parent, name)
            if not inner.is_symlink() and stat.S_IMODE(inner.stat().st_mode) & 0o700 != 0o700:
                inner.chmod(0o700)
    shutil.rmtree(path)


def enter(vm: VmDirectory, readable: Sequence[Path]) -> None:
    """Put the VM's `/` together and make it this process's root. Only in a mount namespace of one's own."""
    namespaces.make_private()
    root = vm.root
    namespaces.bind(vm.disk, root)
    for entry in sorted(Path("/").iterdir()):
        show_system_entry(entry, root / entry.name)
    for name in _OVERLAID:
        _lay_over(vm, Path(name))
    if maps_many_ids():
        for name in _OVERLAID_WITH_ROOT:
            if Path("/", name).is_dir():
                _lay_over(vm, Path(name))
    _mount_kernel_file_systems(root)
    show(readable, root)
    namespaces.change_root(root)


def show_system_entry(entry: Path, target: Path) -> None:
    if entry.name not in _SYSTEM:
        return
    if entry.is_symlink():
        if not target.is_symlink():
            target.symlink_to(entry.readlink())
    elif entry.is_dir():
        namespaces.bind(entry, target, read_only=True)


def maps_many_ids() -> bool:
    """An ordinary user's namespace has one id: whoever owns the host's /etc is nobody there, even to its root."""
    return sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines()) > 1


def _lay_over(vm: VmDirectory, name: Path) -> None:
    source, upper = Path("/", name), vm.disk / name
    if name == Path("etc") and not maps_many_ids():
        _copy_readable(source, upper)
        return
    try:
        namespaces.overlay(source, upper, vm.work / name, vm.root / name)
    except OSError:
        # the data directory lies on a file system that overlayfs cannot write to: another overlay, NFS, ...
        # Then there is no apt either: dpkg's database alone has ten thousand files.
        if name == Path("usr"):
            _link_to(source, vm)
        elif name == Path("etc"):
            _copy_readable(source, upper)


def _copy_readable(source: Path, target: Path) -> None:
    """Once per disk; the mark says that the copy was finished."""
    mark = target / ".copied-from-host"
    if mark.exists():
        return
    if target.exists():
        remove_tree(target)
    shutil.copytree(source, target, symlinks=True, ignore=_uncopyable)
    mark.touch()


def _uncopyable(directory: str, names: list[str]) -> list[str]:
    paths = [Path(directory, name) for name in names]
    return [path.name for path in paths if not (path.is_symlink() or _is_readable(path))]


def _is_readable(path: Path) -> bool:
    wanted = os.R_OK | (os.X_OK if path.is_dir() else 0)
    return (path.is_file() or path.is_dir()) and os.access(path, wanted)


def _link_to(source: Path, vm: VmDirectory) -> None:
    """A /usr of symbolic links into the host's, with the VM's own programs in front."""
    shown = Path("/", _HOST, source.name)
    namespaces.bind(source, vm.root / shown.relative_to("/"), read_only=True)
    programs = {name: _contents(vm.disk / "usr" / name) for name in _PLACES_OF_PROGRAMS}
    target = vm.root / "usr"
    namespaces.mount("tmpfs", target, "tmpfs", 0, "mode=755")
    _link_entries(source, shown, target, apart={"bin", "sbin", "local"})
    _link_entries(source / "local", shown / "local", target / "local", apart={"bin", "sbin"})
    for name, files in programs.items():
        _link_entries(source / name, shown / name, target / name, apart=set(files))
        for file, content in files.items():
            (target / name / file).write_bytes(content)
            (target / name / file).chmod(0o755)


def _contents(directory: Path) -> dict[str, bytes]:
    files = directory.iterdir() if directory.is_dir() else ()
    return {path.name: path.read_bytes() for path in files if path.is_file()}


def _link_entries(source: Path, shown: Path, target: Path, apart: set[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir() if source.is_dir() else ():
        if entry.name not in apart:
            (target / entry.name).symlink_to(shown / entry.name)


def _mount_kernel_file_systems(root: Path) -> None:
    for name in _MADE_ANEW:
        (root / name).mkdir(exist_ok=True)
    quiet = namespaces.NO_SUID | namespaces.NO_DEVICES | namespaces.NO_EXEC
    namespaces.mount("proc", root / "proc", "proc", quiet)
    # even a mapped root may write to the host's settings (vm.swappiness and the like) through these
    for name in _UNTOUCHABLE_IN_PROC:
        if (root / "proc" / name).exists():
            namespaces.bind(root / "proc" / name, root / "proc" / name, read_only=True)
    namespaces.bind("/sys", root / "sys", read_only=True)
    namespaces.mount("tmpfs", root / "run", "tmpfs", 0, "mode=755")
    (root / "run" / "lock").mkdir(mode=0o1777)
    _make_devices(root / "dev")


def _make_devices(dev: Path) -> None:
    """A /dev without disks: a mapped root may open those."""
    namespaces.mount("tmpfs", dev, "tmpfs", 0, "mode=755")
    names = [*_DEVICES, *(path.name for path in Path("/dev").iterdir() if path.name.startswith("nvidia"))]
    for name in names:
        if Path("/dev", name).exists():
            namespaces.bind(Path("/dev", name), dev / name)
    for name, kind, options in (
        ("shm", "tmpfs", "mode=1777"),
        ("pts", "devpts", "newinstance,ptmxmode=0666,mode=620"),
    ):
        (dev / name).mkdir()
        namespaces.mount(kind, dev / name, kind, 0, options)
    for name, aim in (("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0")):
        (dev / name).symlink_to(aim)
    for name, number in (("stdout", 1), ("stderr", 2)):
        (dev / name).symlink_to(f"/proc/self/fd/{number}")


def show(paths: Sequence[Path], root: Path) -> None:
    """Show host paths read-only at the same places, with the symbolic links that lead to them."""
    for path in paths:
        _show_links(path, root)
    for real in _outermost([path.resolve() for path in paths]):
        if real.exists() and not is_shown_anyway(real):
            namespaces.bind(real, _inside(root, real), read_only=True)


def _show_links(path: Path, root: Path) -> None:
    for link, aim in links_on_the_way(path):
        inside = _inside(root, link)
        if not is_shown_anyway(link) and not os.path.lexists(inside):
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.symlink_to(aim)


def _outermost(paths: Sequence[Path]) -> list[Path]:
    """The paths that do not lie in another of them: a mount below a mount that hides it cannot be made read-only."""
    return sorted({path for path in paths if not any(other in path.parents for other in paths)})


def _inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def is_shown_anyway(path: Path) -> bool:
    return path.parts[1] in (*_SYSTEM, *_OVERLAID) if len(path.parts) > 1 else True


def links_on_the_way(path: Path) -> Iterator[tuple[Path, Path]]:
    """Every symbolic link met on the way to `path`, with what it says.

    A virtual environment's python is a chain of them, which may pass through directories that the VM lacks.
    """
    pending = list(path.absolute().parts[1:])
    reached = Path("/")
    for _ in range(200):
        if not pending:
            return
        part = pending.pop(0)
        reached = reached.parent if part == ".." else reached / part
        if reached.is_symlink():
            aim = reached.readlink()
            yield reached, aim
            pending = [*(p for p in aim.parts if p != "/"), *pending]
            reached = Path("/") if aim.is_absolute() else reached.parent
