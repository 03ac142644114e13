"""Starting and ending a VM: pid 1 in namespaces of its own, or, where the kernel refuses those, under subreapers.

With namespaces the power cut is one SIGKILL to pid 1: the kernel lets it become waitable only after everybody else
in its pid namespace is gone. Without, supervisor and warden adopt whatever loses its parent, and the cut kills
children until there are none.
"""

import contextlib
import errno
import itertools
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cloudtrain.emulator.machines import MANAGEMENT_PATH, guest_init, namespaces, rootfs, shims
from cloudtrain.emulator.machines.accounts import add_account
from cloudtrain.emulator.machines.agent import Surroundings
from cloudtrain.emulator.machines.channel import Channel
from cloudtrain.emulator.machines.directory import VmDirectory
from cloudtrain.emulator.machines.process_table import own_children, send_signal

_ALL_NAMESPACES = (
    namespaces.NEW_USER | namespaces.NEW_MOUNT | namespaces.NEW_PID | namespaces.NEW_UTS | namespaces.NEW_IPC
)
_EAGER_TURNS = 1000  # without a pause, against a process that forks as fast as it is killed
_BOOT_SECONDS = 120.0  # the first boot on a slow disk copies /etc
# exit codes of the process that waits for pid 1. reboot(2) in a pid namespace ends its pid 1 with SIGHUP (restart)
# or SIGINT (halt, power off).
_GUEST_REBOOTS, _GUEST_ENDED = 3, 4


class CannotIsolate(Exception):
    """The kernel does not let us have the namespaces; the message says what it refused."""


@dataclass
class RunningGuest:
    channel: Channel
    lifeline: int  # the only writing end; when it closes, pid 1 leaves
    keeper: int  # pid of our child: pid 1's parent, or pid 1 itself without namespaces
    end: int  # pidfd of the keeper
    init: int  # pidfd of pid 1
    isolated: bool
    exit_code: int | None = None


def boot(vm: VmDirectory, config: dict[str, Any], lock: int, imds_port: int) -> RunningGuest:
    """Start the VM on its disk; returns when pid 1 is about to run the @reboot lines.

    Raises CannotIsolate, or OSError for other reasons why it did not boot."""
    isolated = config["kind"] == "namespaces"
    ours, theirs = socket.socketpair()
    lifeline_out, lifeline_in = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        _become_guest(vm, config, lock, imds_port, theirs, lifeline_out)
    theirs.close()
    os.close(lifeline_out)
    end = os.pidfd_open(keeper)
    channel = Channel(ours)
    guest = RunningGuest(channel, lifeline_in, keeper, end, end, isolated)
    try:
        if isolated:
            guest.init = _help_isolate(ours, keeper)
        _await_booted(channel)
    except BaseException:
        cut(guest)
        raise
    return guest


def _help_isolate(ours: socket.socket, keeper: int) -> int:
    """The outside half: write the id maps if we are root; receive a descriptor of pid 1."""
    ours.settimeout(10)
    _expect(ours, b"unshared")
    if os.getuid() == 0:
        try:
            namespaces.write_identity_maps(keeper)
        except OSError as error:
            raise CannotIsolate(str(error)) from error
    ours.sendall(b"mapped")
    message, descriptors, _, _ = socket.recv_fds(ours, 4096, 1)
    if not descriptors:
        raise CannotIsolate(message.decode(errors="replace"))
    ours.sendall(b"go")
    return descriptors[0]


def _expect(ours: socket.socket, word: bytes) -> None:
    said = ours.recv(4096)
    if said != word:
        raise CannotIsolate(said.decode(errors="replace") or "the process in the new namespaces ended at once")


def _await_booted(channel: Channel) -> None:
    message = channel.receive_one(_BOOT_SECONDS)
    if message["event"] == "cannot-isolate":
        raise CannotIsolate(message["why"])
    if message["event"] != "booted":
        raise OSError(message["why"])
    channel.connection.settimeout(10)


def cut(guest: RunningGuest) -> None:
    """Cut the power: returns when not one process of the VM is left."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(guest.init, signal.SIGKILL)
    if guest.isolated:
        _wait_for_end(guest.init)
    if guest.exit_code is None:
        with contextlib.suppress(ProcessLookupError):
            if guest.init == guest.end and guest.isolated:  # it never came to having a pid 1
                os.kill(guest.keeper, signal.SIGKILL)
        guest.exit_code = os.waitstatus_to_exitcode(os.waitpid(guest.keeper, 0)[1])
    if not guest.isolated:
        kill_children()
    for descriptor in {guest.end, guest.init, guest.lifeline}:
        os.close(descriptor)
    guest.channel.close()


def _wait_for_end(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()


def asked_for_reboot(guest: RunningGuest) -> bool:
    """Of a guest that ended by itself: whether it called reboot(2) to restart."""
    if guest.exit_code is None:
        guest.exit_code = os.waitstatus_to_exitcode(os.waitpid(guest.keeper, 0)[1])
    return guest.exit_code == _GUEST_REBOOTS


def kill_children() -> None:
    """SIGKILL to our children, and to whom we inherit from them, until nobody is left."""
    for turn in itertools.count():
        for pid in own_children():
            send_signal(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        if turn > _EAGER_TURNS:
            time.sleep(0.001)


def split_off_warden(lock: int) -> int:
    """Without namespaces: the caller's parent-to-be watches over it, and it over its parent.

    Returns, in the supervisor, a descriptor that reaches end of file when the warden dies. The warden keeps the lock
    until everything is dead."""
    watch, warden_lives = os.pipe()
    namespaces.adopt_orphans()
    supervisor = os.fork()
    if supervisor == 0:
        os.close(warden_lives)
        namespaces.adopt_orphans()
        return watch
    _close_all_but(lock, warden_lives)
    namespaces.set_process_name("cloudtrain-vm-w")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.waitpid(-1, 0)[0] != supervisor:
        pass
    kill_children()
    os._exit(0)


def _close_all_but(*kept: int) -> None:
    before = 3
    for descriptor in sorted(kept):
        os.closerange(before, descriptor)
        before = descriptor + 1
    os.closerange(before, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 1 << 20 else 1 << 20)


# --- in the child -------------------------------------------------------------------------------------------


def _become_guest(
    vm: VmDirectory, config: dict[str, Any], lock: int, port: int, theirs: socket.socket, lifeline: int
) -> NoReturn:
    """Never returns. Its open files are stdio, the channel, the lifeline and, until pid 1 is forked, the lock."""
    try:
        _close_all_but(theirs.fileno(), lifeline, lock)
        channel = Channel(theirs)
        if config["kind"] == "namespaces":
            _isolate(theirs, lifeline)
            os.close(lock)
            prefix = _enter_disk(vm, config, channel)
        else:
            namespaces.adopt_orphans()  # the lock stays: it is free only when this process is gone too
            prefix = _use_disk(vm, config)
        namespaces.set_process_name("init")
        guest_init.serve(guest_init.Guest(channel, lifeline, _surroundings(prefix, config, port)))
    except BaseException as error:  # noqa: BLE001 - a child must never unwind into its parent's code
        print(f"pid 1: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            Channel(theirs).send({"event": "boot-failed", "why": f"the VM did not boot: {error}"})
    os._exit(1)


def _isolate(theirs: socket.socket, lifeline: int) -> None:
    """Returns in pid 1 of the new namespaces; the process that made them waits for it and tells how it ended."""
    uid, gid = os.getuid(), os.getgid()
    try:
        namespaces.unshare(_ALL_NAMESPACES)
        if uid != 0:
            namespaces.write_own_map(uid, gid)
    except OSError as error:
        limit = " (the limit user.max_user_namespaces)" if error.errno == errno.ENOSPC else ""
        theirs.sendall(f"{error}{limit}".encode())
        os._exit(1)
    theirs.sendall(b"unshared")
    if theirs.recv(4096) != b"mapped":
        os._exit(1)
    go, went = os.pipe()
    init = os.fork()
    if init == 0:
        namespaces.die_with_parent(signal.SIGKILL)
        os.close(went)
        os.read(go, 1)
        os.close(go)
        if theirs.recv(2) != b"go":
            os._exit(1)
        return
    socket.send_fds(theirs, [b"pid 1"], [os.pidfd_open(init)])
    theirs.close()
    os.close(lifeline)
    os.close(went)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    status = os.waitpid(init, 0)[1]
    rebooted = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGHUP
    os._exit(_GUEST_REBOOTS if rebooted else _GUEST_ENDED)


def _enter_disk(vm: VmDirectory, config: dict[str, Any], channel: Channel) -> Path:
    names = {name: _read("/etc", name) for name in ("resolv.conf", "hosts")}
    _prepare(vm, config)
    try:
        rootfs.enter(vm, [Path(path) for path in config["readable"]])
    except OSError as error:
        channel.send({"event": "cannot-isolate", "why": str(error)})
        os._exit(1)
    computer = config["spec"]["computer_name"]
    namespaces.set_hostname(computer)
    for name, text in names.items():
        _replace(Path("/etc", name), text + (f"\n127.0.1.1 {computer}\n" if name == "hosts" else ""))
    _replace(Path("/etc/hostname"), f"{computer}\n")
    _add_administrator(config["spec"])
    return Path("/")


def _use_disk(vm: VmDirectory, config: dict[str, Any]) -> Path:
    _prepare(vm, config)
    run = vm.disk / "run"
    if run.exists():
        rootfs.remove_tree(run)
    run.mkdir()
    return vm.disk


def _prepare(vm: VmDirectory, config: dict[str, Any]) -> None:
    """What every boot does to the disk before anything of the VM runs."""
    rootfs.make_disk(vm.disk)
    vm.root.mkdir(exist_ok=True)
    # Ubuntu empties /tmp at each boot (tmpfiles.d: D /tmp); Azure's temporary disk does not outlive a deallocation
    for name in ("tmp", *(["mnt"] if config["temporary_disk_is_new"] else [])):
        if not (vm.disk / name).is_symlink():
            rootfs.empty(vm.disk / name)
    shims.install(vm.disk, config)


def _read(*parts: str) -> str:
    path = Path(*parts)
    return path.read_text(errors="replace") if path.is_file() else ""


def _replace(path: Path, text: str) -> None:
    """A new file, not a new content: it may be a link into the host's /run."""
    path.unlink(missing_ok=True)
    path.write_text(text)


def _add_administrator(spec: dict[str, Any]) -> None:
    user = add_account(spec["admin_username"], Path("/etc"))
    keys = Path(user.home, ".ssh", "authorized_keys")
    if user.uid == 0 or keys.exists():
        return
    keys.parent.mkdir(parents=True, exist_ok=True)
    keys.write_text("".join(f"{key.strip()}\n" for key in spec["ssh_public_keys"]))
    keys.chmod(0o600)
    if rootfs.maps_many_ids():
        for path in (keys, keys.parent, Path(user.home)):
            os.chown(path, user.uid, user.gid)


def _surroundings(prefix: Path, config: dict[str, Any], port: int) -> Surroundings:
    isolated = prefix == Path("/")
    service = f"http://127.0.0.1:{port}"
    environment = {"CLOUDTRAIN_IMDS": service, "AZURE_POD_IDENTITY_AUTHORITY_HOST": service}
    if config["blob_port"]:
        server = f"http://127.0.0.1:{config['blob_port']}"
        environment |= {"CLOUDTRAIN_BLOBS": server, "CLOUDTRAIN_ARM": f"{server}{MANAGEMENT_PATH}"}
    if not isolated:
        environment |= {"CLOUDTRAIN_ROOT": str(prefix), "CLOUDTRAIN_INIT": str(os.getpid())}
    shims.describe_engine(prefix, config, environment)
    many = rootfs.maps_many_ids() if isolated else os.getuid() == 0
    return Surroundings(prefix, "" if isolated else str(prefix / "usr/bin"), environment, many)
