"""Machines of kind `container`: every VM is a node, a container with real cron, sshd and a Docker engine of its own.

The disk is a volume; the container lives from one start to the next. The engine's word is the truth about the power:
a node that runs is on. Why one is off stands in the last line that its process 1 wrote (see `node.init`).
"""

import base64
import contextlib
import fcntl
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

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
from cloudtrain.emulator.machines.channel import Message
from cloudtrain.emulator.machines.engine import VM_LABEL, Engine, errors
from cloudtrain.emulator.machines.node import AZURE, DISK, RECORDS, SOCKET, SSH_PORT, UPPER
from cloudtrain.emulator.machines.node_image import NodeImage
from cloudtrain.emulator.machines.node_server import NodeServer
from cloudtrain.emulator.machines.registry import Registry

_TAIL = 4096  # bytes of each stream that Azure's agent reports
_POLL = 0.03
_BOOT_SECONDS = 180.0
_ANSWERED_AFTER = 0.3
_CUT_SECONDS = 2.0  # for process 1 to end when told to; then it is killed
_CTL = ["socat", "-t", "86400", "-", f"UNIX-CONNECT:{SOCKET}"]
# All but one of the capabilities, where --privileged would give the host's devices too. Hosts that are sandboxes
# themselves lack CAP_SYS_RESOURCE, and an engine cannot give what it has not.
_HOST_CONFIG = {
    "CapAdd": ["ALL"],
    "CapDrop": ["SYS_RESOURCE"],
    "SecurityOpt": ["seccomp=unconfined", "apparmor=unconfined"],
    "MaskedPaths": [],
    "ReadonlyPaths": [],
    "NetworkMode": "bridge",  # the default one hands on the host's name servers, also to containers inside
    "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
}


def container_machines(root: Path, *, clock: Clock, node_base: str) -> "ContainerMachines":
    """root: the emulator's directory. node_base: see `NodeImage`."""
    engine = Engine(root)
    image = NodeImage(root, engine=engine, base=node_base, tell=lambda text: None)
    registry = Registry(root / "nodes", engine=engine, image=image)
    server = NodeServer(root, node_base=node_base)
    return ContainerMachines(root / "nodes", clock=clock, image=image, registry=registry, server=server, engine=engine)


def nodes_from_inside(root: Path, *, clock: Clock, node_base: str) -> "ContainerMachines":
    """The machines as the server of the nodes' own requests has them."""
    machines = container_machines(root, clock=clock, node_base=node_base)
    machines.answered_after = _ANSWERED_AFTER
    return machines


class ContainerMachines:
    """See `Machines`. root: where its locks lie."""

    kind = "container"
    impatience = 15.0  # seconds after which a node that does not answer is taken for hung
    answered_after = 0.0
    """Seconds for which the end of a node waits: one that asks for its own hears first that this is accepted, as on
    Azure, where the end takes seconds."""

    def __init__(
        self, root: Path, *, clock: Clock, image: NodeImage, registry: Registry, server: NodeServer, engine: Engine
    ) -> None:
        self._root = root.absolute()
        self._clock = clock
        self._image = image
        self._registry = registry
        self._server = server
        self._engine = engine
        self._in_use: int | None = None
        self._mark = self._root / "made"  # there, as long as something in the engine may be ours

    # --- power ----------------------------------------------------------------------------------------------

    def boot(self, spec: MachineSpec, *, same_host: bool = False) -> None:
        with self._locked(spec.vm_id):
            name = _name(spec.vm_id)
            found = self._engine.container(name)
            before = 0
            if found is None or not found["State"]["Running"]:
                self._mark.touch()
                config = json.dumps(self._config(spec)).encode()
                if found is None or not same_host:  # the temporary disk lies in the container
                    self._engine.remove_container(name)
                    self._make(name, spec)
                else:
                    before = self.power(spec.vm_id).boot
                with errors():
                    self._engine.api.put_archive(name, str(DISK), _archive(f"{RECORDS.name}/config.json", config))
                    self._server.start()  # making the node image took longer than a server waits for nodes
                    self._engine.api.start(name)
            self._await_ready(spec, before)

    def _config(self, spec: MachineSpec) -> Message:
        """What process 1 of the node has to know."""
        registry = self._registry.start()
        self._server.start()
        return {
            "spec": {**asdict(spec), "ssh_public_keys": list(spec.ssh_public_keys), "tags": dict(spec.tags)},
            "ssh_open": spec.ssh_open,
            "registry": registry.inside,
            "registry_port": registry.port,
        }

    def _make(self, name: str, spec: MachineSpec) -> None:
        """The disk, if it is not there, and a node on it that does not run yet."""
        labels = self._engine.labels(**{VM_LABEL: spec.vm_id})
        image = self._image.ensure()
        with errors():
            self._engine.api.create_volume(name, labels=labels)
            self._engine.api.create_container(
                image,
                name=name,
                hostname=spec.computer_name,
                labels=labels,
                ports=[SSH_PORT],
                host_config={
                    **_HOST_CONFIG,
                    "Binds": [f"{name}:{DISK}", f"{self._server.directory}:{AZURE}:ro"],
                    "PortBindings": {f"{SSH_PORT}/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
                },
            )

    def _await_ready(self, spec: MachineSpec, before: int) -> None:
        """before: the number of the last boot in the same container."""
        name = _name(spec.vm_id)
        give_up = time.monotonic() + _BOOT_SECONDS
        while time.monotonic() < give_up:
            found = self._engine.container(name)
            said = self._engine.last_line(name) or {}
            if found is None or not found["State"]["Running"]:
                why = said.get("error") or (found or {}).get("State", {}).get("Error") or "its process 1 ended"
                raise MachineError(f"VM {spec.name} did not boot: {why}")
            if said.get("ready") and said["boot"] > before:
                return
            self._clock.sleep(_POLL)
        raise MachineError(f"VM {spec.name} did not come up within {_BOOT_SECONDS:.0f} s: see docker logs {name}")

    def power(self, vm_id: str) -> Power:
        name = _name(vm_id)
        found = self._engine.container(name)
        if found is None:
            lost = self._engine.volume(name) is not None
            return Power(False, OffCause.SUPERVISOR_DIED if lost else OffCause.NEVER_STARTED)
        said = self._engine.last_line(name) or {}
        boot = int(said.get("boot", 0))
        state = found["State"]
        if state["Running"]:
            self._server.start()  # somebody may have killed it
            return Power(True, None, _when(said["since"]) if said else _engines_time(state["StartedAt"]), boot)
        if state["Status"] == "created":  # whoever was booting it was killed, or is about to start it
            return Power(False, OffCause.NEVER_STARTED, None, boot)
        cause = OffCause(said["cause"]) if said.get("power") == "off" else OffCause.SUPERVISOR_DIED
        return Power(False, cause, _engines_time(state["FinishedAt"]), boot)

    def agent_ready(self, vm_id: str) -> bool:
        found = self._engine.container(_name(vm_id))
        if found is None or not found["State"]["Running"]:
            return False
        return bool((self._engine.last_line(_name(vm_id)) or {}).get("ready"))

    def power_off(self, vm_id: str) -> None:
        self._cut(vm_id, "SIGUSR1")

    def any_on(self) -> bool:
        return any(
            (found["Labels"] or {}).get(VM_LABEL) and found["State"] == "running" for found in self._engine.containers()
        )

    def _cut(self, vm_id: str, signal_name: str) -> None:
        """Let process 1 end, which says why first; a hung one is killed. Returns when nothing runs any more."""
        self._clock.sleep(self.answered_after)
        self._engine.kill(_name(vm_id), signal_name)
        if not self._await_off(vm_id, _CUT_SECONDS):
            self._engine.kill(_name(vm_id), "SIGKILL")
            if not self._await_off(vm_id, 30.0):
                raise MachineError(f"The Docker engine does not end the container {_name(vm_id)}.")

    def _await_off(self, vm_id: str, seconds: float) -> bool:
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            found = self._engine.container(_name(vm_id))
            if found is None or not found["State"]["Running"]:
                return True
            self._clock.sleep(_POLL)
        return False

    def shut_down(self, vm_id: str, grace_seconds: float = 10.0) -> None:
        order = {"op": "shut_down", "cause": OffCause.POWERED_OFF.value, "grace": grace_seconds}
        self._clock.sleep(self.answered_after)
        self._ask(vm_id, order, grace_seconds + self.impatience)
        if not self._await_off(vm_id, 1.0):
            self.power_off(vm_id)

    def reboot(self, vm_id: str) -> None:
        self._clock.sleep(self.answered_after)
        answer = self._ask(vm_id, {"op": "reboot", "grace": 10.0}, 10.0 + _BOOT_SECONDS)
        if answer is None:
            raise MachineError("The VM is off, or it went off while it was rebooted: boot it.")

    def evict(self, vm_id: str, notice_seconds: float) -> None:
        if not self.power(vm_id).on:
            raise MachineError("The VM is off: there is nothing to evict.")
        if notice_seconds <= 0:
            self._cut(vm_id, "SIGUSR2")
        elif self._ask(vm_id, {"op": "evict", "notice": notice_seconds}) is None:
            raise MachineError("The VM went off, or its process 1 does not answer.")

    def erase(self, vm_id: str) -> None:
        self._clock.sleep(self.answered_after)
        with self._locked(vm_id) as lock:
            self._engine.remove_container(_name(vm_id))
            self._engine.remove_volume(_name(vm_id))
            lock.unlink(missing_ok=True)

    # --- network --------------------------------------------------------------------------------------------

    def open_ssh(self, vm_id: str, allowed: bool) -> None:
        self._ask(vm_id, {"op": "open_ssh", "allowed": allowed})

    def ssh_address(self, vm_id: str) -> tuple[str, int] | None:
        found = self._engine.container(_name(vm_id))
        ports = (found or {}).get("NetworkSettings", {}).get("Ports") or {}
        published = ports.get(f"{SSH_PORT}/tcp") or []
        return (published[0]["HostIp"], int(published[0]["HostPort"])) if published else None

    # --- scripts --------------------------------------------------------------------------------------------

    def start_script(self, vm_id: str, script: Script) -> str:
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
        answer = self._ask(vm_id, {"op": "start_script", "script": order}, 60.0)
        if answer is None:
            raise MachineError("The VM is off, or its agent does not answer.")
        if "key" not in answer:
            raise MachineError(f"The agent did not take the script: {answer.get('error', 'the VM went off')}.")
        return str(answer["key"])

    def script(self, vm_id: str, key: str) -> ScriptResult:
        """From the node while it runs, and from its disk while it does not."""
        if "/" in key:
            raise KeyError(key)
        power = self.power(vm_id)
        answer = self._ask(vm_id, {"op": "script", "key": key}) if power.on else None
        if answer is None:
            answer = self._script_on_disk(vm_id, key)
            power = self.power(vm_id)
        if not answer.get("ok"):
            raise KeyError(key)
        record = answer["record"]
        state = ScriptState(record["state"])
        if state is ScriptState.RUNNING and (not power.on or power.boot > record["boot"]):
            state = ScriptState.INTERRUPTED
        return ScriptResult(
            state,
            record["exit_code"],
            base64.b64decode(answer["stdout"]),
            base64.b64decode(answer["stderr"]) + record["message"].encode(),
            _when(record["started"]),
            _when(record["ended"]) if record["ended"] else None,
        )

    def _script_on_disk(self, vm_id: str, key: str) -> Message:
        """What the node would say."""
        written = self._read(vm_id, RECORDS / "scripts" / f"{key}.json")
        if not written:
            return {"ok": False}
        record = json.loads(written)
        tails = {
            name: base64.b64encode(self._read(vm_id, UPPER / record["files"] / name, _TAIL)).decode()
            for name in ("stdout", "stderr")
        }
        return {"ok": True, "record": record, **tails}

    def _read(self, vm_id: str, path: Path, last: int = 1 << 20) -> bytes:
        """The end of a file on the disk; nothing where it is not."""
        from docker.errors import NotFound

        with errors():
            try:
                chunks, _ = self._engine.api.get_archive(_name(vm_id), str(path))
            except NotFound:
                return b""
            archive = io.BytesIO(b"".join(chunks))
        with tarfile.open(fileobj=archive) as tar:
            file = tar.extractfile(tar.getmembers()[0])
            return file.read()[-last:] if file else b""

    def cancel_script(self, vm_id: str, key: str) -> None:
        if self.script(vm_id, key).state is ScriptState.RUNNING:
            self._ask(vm_id, {"op": "cancel_script", "key": key}, 60.0)

    # --- disk and leftovers ---------------------------------------------------------------------------------

    def disk(self, vm_id: str) -> Path:
        found = self._engine.volume(_name(vm_id))
        if found is None:
            raise MachineError("The VM has no disk.")
        return Path(found["Mountpoint"]) / UPPER.relative_to(DISK)

    def strays(self) -> list[str]:
        if not self._mark.exists():
            return []
        found = [*self._engine.containers(), *self._engine.volumes()]
        return sorted({(one["Labels"] or {}).get(VM_LABEL, "") for one in found} - {""})

    # --- what all nodes share -------------------------------------------------------------------------------

    def repository(self, name: str) -> str:
        """Where trainer images go, so that the nodes can pull them."""
        return self._registry.repository(name)

    def build(self, tell: Callable[[str], None]) -> str:
        """The node image; returns its name. Raises MachineError."""
        self._image.tell = tell
        return self._image.ensure()

    def prepare(self, tell: Callable[[str], None]) -> None:
        """Make the node image and start the registry; until `release` nobody sweeps them away. Raises MachineError.

        tell: told what takes time."""
        if self._in_use is None:
            self._in_use = self._open_lock("in-use.lock")
            fcntl.flock(self._in_use, fcntl.LOCK_SH)
        self._engine.containers()  # without an engine nothing is made
        self._mark.touch()
        self.build(tell)
        self._registry.start()

    def release(self) -> None:
        if self._in_use is not None:
            os.close(self._in_use)
            self._in_use = None

    def sweep(self) -> list[str]:
        """Containers, volumes and images. What another command is about to use stays; its own end sweeps again."""
        self.release()
        if not self._mark.exists():
            return []
        lock = self._open_lock("in-use.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []
        else:
            if not self.strays():
                self._server.end()
                self._registry.remove()
                self._image.remove()
                self._mark.unlink(missing_ok=True)
        finally:
            os.close(lock)
        containers = [f"container {found['Names'][0].lstrip('/')}" for found in self._engine.containers()]
        return containers + [f"volume {found['Name']}" for found in self._engine.volumes()]

    def _open_lock(self, name: str) -> int:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(self._root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    # --- talking to the node --------------------------------------------------------------------------------

    def _ask(self, vm_id: str, order: Message, timeout: float | None = None) -> Message | None:
        """None when the VM is off, or went off before it answered."""
        return self._engine.ask(_name(vm_id), _CTL, order, self.impatience if timeout is None else timeout)

    @contextlib.contextmanager
    def _locked(self, vm_id: str) -> Iterator[Path]:
        """One process at a time makes or erases a node. The lock goes with its holder."""
        path = self._root / f"{_checked(vm_id)}.lock"
        while True:
            descriptor = self._open_lock(path.name)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                break
            os.close(descriptor)  # an erase removed it while we waited
        try:
            yield path
        finally:
            os.close(descriptor)


def _checked(vm_id: str) -> str:
    if not vm_id or "/" in vm_id or vm_id.startswith("."):
        raise MachineError(f"'{vm_id}' is not the id of a VM.")
    return vm_id


def _name(vm_id: str) -> str:
    """Of a VM's container and of its volume."""
    return f"cloudtrain-{_checked(vm_id)}"


def _archive(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        directory = tarfile.TarInfo(str(Path(name).parent))
        directory.type, directory.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(directory)
        file = tarfile.TarInfo(name)
        file.size, file.mode = len(content), 0o600
        tar.addfile(file, io.BytesIO(content))
    return buffer.getvalue()


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _engines_time(text: str) -> datetime:
    """Docker's times have nine digits behind the point; Python takes six."""
    return datetime.fromisoformat(text[:19]).replace(tzinfo=UTC)
