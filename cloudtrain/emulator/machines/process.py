"""Machines of kind `process`: every VM is a tree of processes on this host, in namespaces of its own.

A supervisor outside and a pid 1 inside, both outliving the command that started them. What is true about a VM lies in
its own directory, under a lock that is held as long as anything of the VM may run (see `directory`).
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloudtrain.clock import Clock
from cloudtrain.emulator.machines import (
    MachineError,
    MachineSpec,
    OffCause,
    Power,
    Script,
    ScriptResult,
    ScriptState,
)
from cloudtrain.emulator.machines.channel import Channel, Message
from cloudtrain.emulator.machines.directory import (
    State,
    VmDirectory,
    host_boot_id,
    read_json,
    read_state,
    try_lock,
    update_state,
    write_json,
)
from cloudtrain.emulator.machines.process_table import send_signal, with_environment
from cloudtrain.emulator.machines.rootfs import remove_tree
from cloudtrain.emulator.machines.supervisor import new_state, short_socket_path

_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
_START = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from cloudtrain.emulator.machines.supervisor import main; sys.exit(main(sys.argv[1:]))"
)
_TAIL = 4096  # bytes of each stream that Azure's agent reports
_POLL = 0.01  # seconds between looks at something that takes tens of milliseconds
_BOOT_SECONDS = 180.0
_ANSWERED_AFTER = 0.3


class ProcessMachines:
    """See `Machines`.

    root: one directory per VM lies below. images: what the VM's docker starts for an image, as an argv prefix.
    blob_server: the command that serves the blobs of the storage accounts and Resource Manager to a VM, on the
    listening socket that is its standard input; started when the VM first connects, with the VM's directory as its last
    argument. Empty: the VM reaches neither.
    readable: host directories that the VM sees, read-only, at the same paths; the Python that runs this and the
    package are seen anyway. without_namespaces: None lets the kernel decide; True forces the kind without them.
    without_namespaces_as_root: that kind isolates no files, so that root is refused it unless this says otherwise.
    """

    kind = "process"
    impatience = 15.0  # seconds after which a supervisor that holds the lock and does not answer is taken for hung

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock,
        images: Mapping[str, Sequence[str]],
        readable: Sequence[Path],
        blob_server: Sequence[str] = (),
        without_namespaces: bool | None = None,
        without_namespaces_as_root: bool = False,
    ) -> None:
        self._root = root.absolute()
        self._clock = clock
        self._images = {name: [str(word) for word in prefix] for name, prefix in images.items()}
        self._readable = [path.absolute() for path in readable]
        self._blob_server = list(blob_server)
        self._without_namespaces = without_namespaces
        self._without_namespaces_as_root = without_namespaces_as_root

    # --- power ----------------------------------------------------------------------------------------------

    def boot(self, spec: MachineSpec, *, same_host: bool = False) -> None:
        vm = self._vm(spec.vm_id)
        give_up = time.monotonic() + _BOOT_SECONDS
        while time.monotonic() < give_up:
            vm.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # erased by somebody else just now
                lock = try_lock(vm)
                if lock is not None:
                    self._power_on(vm, spec, lock, same_host)
                    return
            answer = self._ask(vm, {"op": "ping"})
            if answer is not None and answer.get("power") == "on" and answer.get("ready"):
                return
            self._clock.sleep(_POLL)
        raise MachineError(f"VM {spec.name} did not come up within {_BOOT_SECONDS:.0f} s: see {vm.log}")

    def _power_on(self, vm: VmDirectory, spec: MachineSpec, lock: int, same_host: bool) -> None:
        """Holding the lock. The kernel's refusal of namespaces is found out by trying."""
        try:
            before = self._reconciled(vm)
            kinds = ["subreapers"] if self._without_namespaces else ["namespaces"]
            if self._without_namespaces is None:
                kinds.append("subreapers")
            refusals: list[str] = []
            for kind in kinds:
                if kind == "subreapers" and os.getuid() == 0 and not self._without_namespaces_as_root:
                    raise MachineError(_REFUSED_TO_ROOT.format(why="; ".join(refusals) or "as asked for"))
                said = self._start_supervisor(vm, self._config(spec, before, kind, same_host), before, lock)
                if said == "ok":
                    return
                refusals.append(said)
            raise MachineError(f"VM {spec.name} did not boot: {'; '.join(refusals)}")
        finally:
            os.close(lock)

    def _start_supervisor(self, vm: VmDirectory, config: dict[str, Any], before: State, lock: int) -> str:
        """'ok', or what went wrong."""
        write_json(vm.config, config)
        (vm.path / "ctl.sock").unlink(missing_ok=True)
        update_state(vm, **new_state(before, host_boot_id(), config["kind"]))
        reader, writer = os.pipe()
        with vm.log.open("ab") as log:
            arguments = [str(_PACKAGE_ROOT), str(vm.path), str(lock), str(writer)]
            # what is started forks and ends at once, so that nobody here has to wait for the supervisor
            subprocess.run(
                [sys.executable, "-I", "-S", "-c", _START, *arguments],
                pass_fds=(lock, writer),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_supervisor_environment(vm),
                check=True,
            )
        os.close(writer)
        with os.fdopen(reader, "rb") as said:
            return said.read().decode(errors="replace") or f"its supervisor ended without a word: see {vm.log}"

    def _config(self, spec: MachineSpec, before: State, kind: str, same_host: bool) -> dict[str, Any]:
        return {
            "spec": {**asdict(spec), "ssh_public_keys": list(spec.ssh_public_keys), "tags": dict(spec.tags)},
            "kind": kind,
            "images": self._images,
            "blob_server": self._blob_server,
            "readable": [str(path) for path in [*_needed_by_python(), *self._readable]],
            "python": sys.executable,
            "package_root": str(_PACKAGE_ROOT),
            "library_path": os.environ.get("LD_LIBRARY_PATH", ""),
            "temporary_disk_is_new": not same_host,
            "off_before": before.cause,
        }

    def power(self, vm_id: str) -> Power:
        vm = self._vm(vm_id)
        if not vm.path.is_dir():
            return Power(False, OffCause.NEVER_STARTED)
        state = read_state(vm)
        if state.power != "off":
            state = self._look(vm)
        if state.power != "off":
            return Power(True, None, _when(state.since), state.boot)
        return Power(False, OffCause(state.cause), _when(state.since) if state.since else None, state.boot)

    def _look(self, vm: VmDirectory) -> State:
        """The state, corrected if nobody holds the lock although something should be on."""
        try:
            lock = try_lock(vm, shared=True)
        except FileNotFoundError:
            return State()
        if lock is None:
            return read_state(vm)
        try:
            return self._reconciled(vm)
        finally:
            os.close(lock)

    def _reconciled(self, vm: VmDirectory) -> State:
        """Holding the lock, if only shared: nothing of the VM runs, so whatever says otherwise is out of date."""
        with _one_writer(vm):
            state = read_state(vm)
            if state.power == "off":
                return state
            same_host_boot = state.host_boot == host_boot_id()
            if same_host_boot and state.kind == "subreapers":
                _kill_marked(vm)
            cause = OffCause.SUPERVISOR_DIED if same_host_boot else OffCause.HOST_REBOOTED
            return update_state(vm, power="off", cause=cause.value, since=time.time())

    def agent_ready(self, vm_id: str) -> bool:
        answer = self._ask(self._vm(vm_id), {"op": "ping"})
        return bool(answer and answer.get("ready"))

    def power_off(self, vm_id: str) -> None:
        self._end(self._vm(vm_id), {"op": "cut", "cause": OffCause.POWERED_OFF.value}, self.impatience)

    def shut_down(self, vm_id: str, grace_seconds: float = 10.0) -> None:
        order = {"op": "shut_down", "cause": OffCause.POWERED_OFF.value, "grace": grace_seconds}
        self._end(self._vm(vm_id), order, grace_seconds + self.impatience)

    def _end(self, vm: VmDirectory, order: Message, patience: float) -> None:
        """Give the order, and return when the lock says that nothing is left."""
        give_up = time.monotonic() + patience
        while True:
            try:
                lock = try_lock(vm)
            except FileNotFoundError:
                return
            if lock is not None:
                self._reconciled(vm)
                os.close(lock)
                return
            if time.monotonic() >= give_up:
                self._kill_hung_supervisor(vm)
            answer = self._ask(vm, order, patience)
            if answer is None or not answer.get("ok"):
                self._clock.sleep(_POLL)

    def _kill_hung_supervisor(self, vm: VmDirectory) -> None:
        """It holds the lock and does not answer. Its VM dies with it."""
        state = read_state(vm)
        try:
            supervisor = os.pidfd_open(state.supervisor)
        except (ProcessLookupError, OSError):
            return
        try:
            # the number may have been given to somebody else by now, unless it is the same supervisor still
            if state.supervisor and read_state(vm) == state and _is_supervisor_of(vm, state.supervisor):
                signal.pidfd_send_signal(supervisor, signal.SIGKILL)
        finally:
            os.close(supervisor)

    def reboot(self, vm_id: str) -> None:
        vm = self._vm(vm_id)
        answer = self._ask(vm, {"op": "reboot", "grace": 10.0}, 10.0 + _BOOT_SECONDS)
        if answer is None or answer.get("power") != "on":
            raise MachineError("The VM is off, so it cannot be rebooted: boot it.")

    def evict(self, vm_id: str, notice_seconds: float) -> None:
        vm = self._vm(vm_id)
        answer = self._ask(vm, {"op": "evict", "notice": notice_seconds})
        if answer is None:
            raise MachineError("The VM is off: there is nothing to evict.")
        if notice_seconds <= 0:
            self._await_lock(vm)

    def _await_lock(self, vm: VmDirectory) -> None:
        give_up = time.monotonic() + self.impatience
        while self.power(vm.path.name).on and time.monotonic() < give_up:
            self._clock.sleep(_POLL)

    def erase(self, vm_id: str) -> None:
        vm = self._vm(vm_id)
        while vm.path.exists():
            self.power_off(vm_id)
            with contextlib.suppress(FileNotFoundError):
                lock = try_lock(vm)
                if lock is None:
                    continue
                try:
                    _remove(vm)
                finally:
                    os.close(lock)

    # --- network --------------------------------------------------------------------------------------------

    def open_ssh(self, vm_id: str, allowed: bool) -> None:
        """These VMs have the host's network, and no SSH server."""

    def ssh_address(self, vm_id: str) -> tuple[str, int] | None:
        return None

    # --- scripts --------------------------------------------------------------------------------------------

    def start_script(self, vm_id: str, script: Script) -> str:
        vm = self._vm(vm_id)
        order = {
            "flavour": script.flavour,
            "name": script.name,
            "text": script.text,
            "arguments": list(script.arguments),
            "environment": dict(script.environment),
            "run_as": script.run_as,
            "timeout": script.timeout_seconds,
            "token": script.token,
        }
        answer = self._ask(vm, {"op": "start_script", "script": order}, 60.0)
        if answer is None:
            raise MachineError("The VM is off, or its agent does not answer.")
        if "key" not in answer:
            raise MachineError(f"The agent did not take the script: {answer.get('error', 'the VM went off')}.")
        return str(answer["key"])

    def script(self, vm_id: str, key: str) -> ScriptResult:
        vm = self._vm(vm_id)
        record = read_json(vm.script_record(key)) if "/" not in key else None
        if record is None:
            raise KeyError(key)
        state = ScriptState(record["state"])
        if state is ScriptState.RUNNING:
            power = self.power(vm_id)
            record = read_json(vm.script_record(key)) or record  # it may have ended while we looked
            state = ScriptState(record["state"])
            if state is ScriptState.RUNNING and (not power.on or power.boot != record["boot"]):
                state = ScriptState.INTERRUPTED
        files = vm.disk / record["files"]
        return ScriptResult(
            state,
            record["exit_code"],
            _tail(files / "stdout"),
            _tail(files / "stderr") + record["message"].encode(),
            _when(record["started"]),
            _when(record["ended"]) if record["ended"] else None,
        )

    def cancel_script(self, vm_id: str, key: str) -> None:
        vm = self._vm(vm_id)
        if self.script(vm_id, key).state is ScriptState.RUNNING:
            self._ask(vm, {"op": "cancel_script", "key": key}, 60.0)

    # --- disk and leftovers ---------------------------------------------------------------------------------

    def disk(self, vm_id: str) -> Path:
        return self._vm(vm_id).disk

    def strays(self) -> list[str]:
        if not self._root.is_dir():
            return []
        return sorted(path.name for path in self._root.iterdir() if path.is_dir() and self._is_stray(path))

    def _is_stray(self, path: Path) -> bool:
        vm = VmDirectory(path)
        if not self.power(path.name).on and read_state(vm).kind == "subreapers":
            return bool(with_environment(f"CLOUDTRAIN_ROOT={vm.disk}"))
        return not vm.config.exists() and _is_lock_free(vm)

    def sweep(self) -> list[str]:
        return []

    # --- talking to the supervisor --------------------------------------------------------------------------

    def _vm(self, vm_id: str) -> VmDirectory:
        if not vm_id or "/" in vm_id or vm_id.startswith("."):
            raise MachineError(f"'{vm_id}' is not the id of a VM.")
        return VmDirectory(self._root / vm_id)

    def _ask(self, vm: VmDirectory, order: Message, timeout: float | None = None) -> Message | None:
        """None when nobody is there or whoever is there ended before it answered."""
        connection = socket.socket(socket.AF_UNIX)
        channel = Channel(connection)
        try:
            with short_socket_path(vm) as path:
                connection.connect(path)
            channel.send(order)
            return channel.receive_one(self.impatience if timeout is None else timeout)
        except (FileNotFoundError, ConnectionError, EOFError, TimeoutError):
            return None
        finally:
            channel.close()


class _MachinesFromInside(ProcessMachines):
    """As the server of a VM's own requests has them: it dies with that VM, whose supervisor does without it what it was
    told. A VM that asks for its own end hears that it is accepted first, as on Azure, where the end takes seconds."""

    def _ask(self, vm: VmDirectory, order: Message, timeout: float | None = None) -> Message | None:
        if order["op"] in ("cut", "shut_down", "reboot"):
            self._clock.sleep(_ANSWERED_AFTER)
        return super()._ask(vm, order, timeout)


def machines_of(vm: Path, clock: Clock) -> ProcessMachines:
    """The machines of which the VM in this directory is one, made as for its last boot."""
    config = read_json(vm / "machine.json")
    return _MachinesFromInside(
        vm.parent,
        clock=clock,
        images=config["images"],
        readable=[Path(path) for path in config["readable"]],
        blob_server=config["blob_server"],
        without_namespaces=True if config["kind"] == "subreapers" else None,
        without_namespaces_as_root=config["kind"] == "subreapers",
    )


_REFUSED_TO_ROOT = (
    "This kernel does not let a VM have namespaces of its own ({why}). Without them its files are not kept apart from "
    "the host's, which is refused to root: run this as an ordinary user, or allow user namespaces (in Docker: "
    "--security-opt seccomp=unconfined)."
)


@contextlib.contextmanager
def _one_writer(vm: VmDirectory) -> Iterator[None]:
    """Several who look may find out the same at the same time."""
    descriptor = os.open(vm.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _supervisor_environment(vm: VmDirectory) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TZ") if name in os.environ}
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "CLOUDTRAIN_VM": vm.path.name, **kept}


def _needed_by_python() -> list[Path]:
    """Where this Python and this package lie. A virtual environment's python is a chain of links to the real one."""
    return [Path(sys.base_prefix), Path(sys.prefix), Path(sys.executable), _PACKAGE_ROOT / "cloudtrain"]


def _is_supervisor_of(vm: VmDirectory, pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(vm.path) in words


def _kill_marked(vm: VmDirectory) -> None:
    """Without namespaces, supervisor and warden may both have been killed at the same moment."""
    for _ in range(1000):
        left = with_environment(f"CLOUDTRAIN_ROOT={vm.disk}")
        if not left:
            return
        for pid in left:
            send_signal(pid, signal.SIGKILL)


def _remove(vm: VmDirectory) -> None:
    """Holding the lock. The lock goes last, so that an erase that was killed can be done again."""
    for entry in vm.path.iterdir():
        if entry == vm.lock:
            continue
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            entry.unlink()
    vm.lock.unlink()
    with contextlib.suppress(OSError):  # somebody boots it again, or looks: the caller tries again
        vm.path.rmdir()


def _is_lock_free(vm: VmDirectory) -> bool:
    try:
        lock = try_lock(vm, shared=True)
    except FileNotFoundError:  # whoever held it has erased it meanwhile
        return False
    if lock is None:
        return False
    os.close(lock)
    return True


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            return file.read(_TAIL)
    except (FileNotFoundError, NotADirectoryError):
        return b""


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
