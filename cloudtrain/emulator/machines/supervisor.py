"""The supervisor of one VM: outside of it, one process per VM that is on.

It holds the VM's lock, answers on ctl.sock, serves IMDS, has blobs served, counts down evictions and cuts the power. It
is started detached, with a locked descriptor, by the command that boots the VM, and it outlives that command.
"""

import contextlib
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cloudtrain.emulator.machines import imds, isolation, namespaces
from cloudtrain.emulator.machines.agent import directory_of, safe_name
from cloudtrain.emulator.machines.channel import Channel, Message
from cloudtrain.emulator.machines.directory import (
    State,
    VmDirectory,
    read_json,
    read_state,
    update_state,
    write_json,
)
from cloudtrain.emulator.machines.isolation import RunningGuest

# An acknowledged eviction comes after this many seconds: the answer to the acknowledgement gets out first.
ACKNOWLEDGED_AFTER = 0.2


class VmOff(BaseException):
    """The power was cut and the state says so: the supervisor has nothing left to supervise."""


@dataclass
class Stop:
    """A shutdown under way: when it ends at the latest, and what comes then."""

    deadline: float  # monotonic
    then: str  # a cause of being off, or 'boot'
    waiting: list[Channel] = field(default_factory=list)


@dataclass
class Supervisor:
    vm: VmDirectory
    config: dict[str, Any]
    lock: int
    selector: selectors.BaseSelector
    guest: RunningGuest
    events: imds.ScheduledEvents
    imds_port: int
    blob_server: subprocess.Popen[bytes] | None = None
    warden: int | None = None  # the end of a pipe that closes when the warden dies
    evict_at: float | None = None  # monotonic
    eviction: str = ""  # its event's id
    stop: Stop | None = None
    waiting_for_script: dict[str, Channel] = field(default_factory=dict)


def main(arguments: list[str]) -> int:
    """Arguments: the VM's directory, the locked descriptor, the descriptor on which to say 'ok' or what went wrong."""
    vm, lock, ready = VmDirectory(Path(arguments[0])), int(arguments[1]), int(arguments[2])
    for descriptor in (lock, ready):
        os.set_inheritable(descriptor, False)
    if os.fork():
        os._exit(0)  # the starter waits for this process, and for nobody else
    try:
        supervisor = _power_on(vm, lock)
    except (OSError, isolation.CannotIsolate, EOFError) as error:
        update_state(vm, power="off", cause=_cause_before(vm), since=time.time())
        os.write(ready, f"{error}".encode())
        return 1
    os.write(ready, b"ok")
    os.close(ready)
    with contextlib.suppress(VmOff):
        while True:
            _turn(supervisor)
    return 0


def _cause_before(vm: VmDirectory) -> str:
    """Why the VM was off before this boot, which failed."""
    before = read_json(vm.config).get("off_before")
    return str(before or "never started")


def _power_on(vm: VmDirectory, lock: int) -> Supervisor:
    namespaces.set_process_name("cloudtrain-vm")
    config = read_json(vm.config)
    state = read_state(vm)
    warden = isolation.split_off_warden(lock) if config["kind"] == "subreapers" else None
    server = _listen_on_loopback(state.imds_port)
    port = server.getsockname()[1]
    blobs = _listen_on_loopback(0) if config["blob_server"] else None
    config["blob_port"] = blobs.getsockname()[1] if blobs else 0
    guest = isolation.boot(vm, config, lock, port)
    update_state(
        vm,
        power="on",
        cause=None,
        boot=state.boot + 1,
        supervisor=os.getpid(),
        imds_port=port,
        since=time.time(),
    )
    events = imds.ScheduledEvents(config["spec"]["name"], incarnation=state.document_incarnation + 1)
    supervisor = Supervisor(vm, config, lock, selectors.DefaultSelector(), guest, events, port, warden=warden)
    watch = supervisor.selector.register
    watch(server, selectors.EVENT_READ, partial(_accept_imds, supervisor, server))
    if blobs is not None:
        watch(blobs, selectors.EVENT_READ, partial(_serve_blobs, supervisor, blobs))
    control = _listen_on_socket(vm)
    watch(control, selectors.EVENT_READ, partial(_accept_command, supervisor, control))
    if warden is not None:
        watch(warden, selectors.EVENT_READ, partial(_off, supervisor, "supervisor died"))
    _watch_guest(supervisor)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return supervisor


def _listen_on_loopback(wanted: int) -> socket.socket:
    """On the port it had at the last boot, if that is still free."""
    for port in (wanted, 0):
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            server.close()
            continue
        server.listen(64)
        return server
    raise OSError("no port of 127.0.0.1 is free for the VM's metadata service")


def _listen_on_socket(vm: VmDirectory) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    (vm.path / "ctl.sock").unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        with short_socket_path(vm) as path:
            server.bind(path)
    finally:
        os.umask(before)
    server.listen(64)
    return server


@contextlib.contextmanager
def short_socket_path(vm: VmDirectory) -> Any:
    """A name for ctl.sock under the 108 bytes that a socket address may have, however deep the directory lies."""
    descriptor = os.open(vm.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/ctl.sock"
    finally:
        os.close(descriptor)


def _turn(supervisor: Supervisor) -> None:
    """One turn of the loop: whatever is due, then whatever is ready."""
    now = time.monotonic()
    if supervisor.evict_at is not None and now >= supervisor.evict_at:
        supervisor.events.begin(supervisor.eviction)
        _off(supervisor, "evicted")
    if supervisor.stop is not None and now >= supervisor.stop.deadline:
        _stopped(supervisor)
    for key, _ in supervisor.selector.select(_patience(supervisor)):
        if supervisor.selector.get_map().get(key.fd) is key:  # an earlier one of this turn may have closed it
            key.data()


def _patience(supervisor: Supervisor) -> float | None:
    deadlines = [] if supervisor.evict_at is None else [supervisor.evict_at]
    if supervisor.stop is not None:
        deadlines.append(supervisor.stop.deadline)
    return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None


# --- power --------------------------------------------------------------------------------------------------


def _off(supervisor: Supervisor, cause: str) -> None:
    isolation.cut(supervisor.guest)
    update_state(
        supervisor.vm,
        power="off",
        cause=cause,
        since=time.time(),
        document_incarnation=supervisor.events.incarnation,
    )
    (supervisor.vm.path / "ctl.sock").unlink(missing_ok=True)
    for channel in (
        *(supervisor.stop.waiting if supervisor.stop else ()),
        *supervisor.waiting_for_script.values(),
    ):
        _reply(channel, {"ok": True, "power": "off"})
    raise VmOff


def _begin_stop(supervisor: Supervisor, then: str, grace: float, waiting: Channel | None) -> None:
    if supervisor.stop is None:
        supervisor.stop = Stop(time.monotonic() + grace, then)
        try:
            supervisor.guest.channel.send({"op": "shut_down"})
        except OSError:
            supervisor.stop.deadline = time.monotonic()
    elif then != "boot":
        supervisor.stop.then = then
    if waiting is not None:
        supervisor.stop.waiting.append(waiting)


def _stopped(supervisor: Supervisor) -> None:
    stop = supervisor.stop
    if stop is None:
        return
    if stop.then != "boot":
        _off(supervisor, stop.then)
    supervisor.selector.unregister(supervisor.guest.channel)
    supervisor.selector.unregister(supervisor.guest.end)
    isolation.cut(supervisor.guest)
    supervisor.stop = None
    for channel in supervisor.waiting_for_script.values():
        _reply(channel, {"ok": False, "error": "the VM rebooted"})
    supervisor.waiting_for_script.clear()
    config = supervisor.config | {"temporary_disk_is_new": False}
    try:
        supervisor.guest = isolation.boot(supervisor.vm, config, supervisor.lock, supervisor.imds_port)
    except (OSError, isolation.CannotIsolate, EOFError) as error:
        print(f"the VM did not boot again: {error}", file=sys.stderr, flush=True)
        supervisor.stop = stop
        _off(supervisor, "guest shut itself down")
    update_state(supervisor.vm, boot=read_state(supervisor.vm).boot + 1)
    _watch_guest(supervisor)
    for channel in stop.waiting:
        _reply(channel, {"ok": True, "power": "on"})


# --- the guest ----------------------------------------------------------------------------------------------


def _watch_guest(supervisor: Supervisor) -> None:
    guest = supervisor.guest
    supervisor.selector.register(guest.channel, selectors.EVENT_READ, partial(_hear_guest, supervisor))
    supervisor.selector.register(guest.end, selectors.EVENT_READ, partial(_guest_ended, supervisor))


def _guest_ended(supervisor: Supervisor) -> None:
    """pid 1 is gone without our cut: the guest called reboot(2), or killed or crashed it."""
    if isolation.asked_for_reboot(supervisor.guest):
        _begin_stop(supervisor, "boot", 0.0, None)
        _stopped(supervisor)
    else:
        _off(supervisor, "guest shut itself down")


def _hear_guest(supervisor: Supervisor) -> None:
    try:
        messages = supervisor.guest.channel.receive()
    except EOFError:
        supervisor.selector.unregister(supervisor.guest.channel)  # _guest_ended sees why
        return
    for message in messages:
        match message["event"]:
            case "stopped":
                _stopped(supervisor)
                return
            case "power-off":
                _begin_stop(supervisor, "guest shut itself down", 10.0, None)
            case "reboot":
                _begin_stop(supervisor, "boot", 10.0, None)
            case "script-started" | "script-refused" | "script-ended":
                _record_script(supervisor, message)


def _record_script(supervisor: Supervisor, message: Message) -> None:
    path = supervisor.vm.script_record(message["key"])
    record = read_json(path)
    if record is None:
        return
    if message["event"] == "script-refused":
        record |= {"state": "Failed", "message": message["why"], "ended": time.time()}
    elif message["event"] == "script-ended":
        record |= {name: message[name] for name in ("state", "exit_code", "ended")}
    write_json(path, record)
    waiting = supervisor.waiting_for_script
    for name in [name for name in (message["key"], f"cancel {message['key']}") if name in waiting]:
        if name == message["key"] or message["event"] == "script-ended":
            _reply(waiting.pop(name), {"ok": True, "key": message["key"]})


# --- commands -----------------------------------------------------------------------------------------------


def _accept_command(supervisor: Supervisor, server: socket.socket) -> None:
    channel = Channel(server.accept()[0])
    credentials = channel.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid = struct.unpack("3i", credentials)[1]
    try:
        if uid in (0, os.getuid()):
            _obey(supervisor, channel, channel.receive_one(5))
    except (EOFError, TimeoutError, KeyError):
        channel.close()


def _obey(supervisor: Supervisor, channel: Channel, order: Message) -> None:
    """The answer comes when the order is carried out: at once, but for shutdowns and scripts."""
    match order["op"]:
        case "ping":
            _reply(channel, {"ok": True, "power": "on", "ready": supervisor.stop is None})
        case "evict":
            _evict(supervisor, channel, float(order["notice"]))
        case "cut":
            _begin_stop_waiting(supervisor, channel)
            _off(supervisor, order["cause"])
        case "shut_down":
            _begin_stop(supervisor, order["cause"], float(order["grace"]), channel)
        case "reboot":
            _begin_stop(supervisor, "boot", float(order["grace"]), channel)
        case "start_script":
            _start_script(supervisor, channel, order["script"])
        case "cancel_script":
            _cancel_script(supervisor, channel, order["key"])
        case unknown:
            _reply(channel, {"ok": False, "error": f"the supervisor does not know the order '{unknown}'"})


def _begin_stop_waiting(supervisor: Supervisor, channel: Channel) -> None:
    if supervisor.stop is None:
        supervisor.stop = Stop(time.monotonic(), "powered off")
    supervisor.stop.waiting.append(channel)


def _reply(channel: Channel, message: Message) -> None:
    """Whoever asked may be gone by now; that changes nothing here."""
    with contextlib.suppress(OSError):
        channel.send(message)
    channel.close()


def _evict(supervisor: Supervisor, channel: Channel, notice: float) -> None:
    if supervisor.evict_at is None:
        supervisor.eviction = supervisor.events.preempt(time.time() + notice)
        supervisor.evict_at = time.monotonic() + notice
    if notice > 0:
        _reply(channel, {"ok": True})
        return
    _begin_stop_waiting(supervisor, channel)
    supervisor.events.begin(supervisor.eviction)
    _off(supervisor, "evicted")


def _start_script(supervisor: Supervisor, channel: Channel, script: dict[str, Any]) -> None:
    if supervisor.stop is not None:
        _reply(channel, {"ok": False, "error": "the VM is shutting down"})
        return
    known = read_json(_token_record(supervisor.vm, script)) if script["token"] else None
    if known is not None:
        _reply(channel, {"ok": True, "key": known["key"]})
        return
    sequence = _next_sequence(supervisor.vm, script["flavour"], script["name"])
    key = f"{script['flavour']}.{safe_name(script['name'])}.{sequence}"
    record = {
        "state": "Running",
        "exit_code": None,
        "started": time.time(),
        "ended": None,
        "message": "",
        "files": directory_of(script["flavour"], script["name"], sequence),
        "boot": read_state(supervisor.vm).boot,
    }
    path = supervisor.vm.script_record(key)
    path.parent.mkdir(exist_ok=True)
    write_json(path, record)
    if script["token"]:
        write_json(_token_record(supervisor.vm, script), {"key": key})
    supervisor.waiting_for_script[key] = channel
    supervisor.guest.channel.send({"op": "start_script", "key": key, "sequence": sequence, **script})


def _token_record(vm: VmDirectory, script: dict[str, Any]) -> Path:
    return vm.script_record(f"token.{safe_name(script['token'])}")


def _next_sequence(vm: VmDirectory, flavour: str, name: str) -> int:
    """On the disk before the script starts, so that a script whose VM died is never taken for a new one."""
    counters = read_json(vm.sequence) or {}
    counter = flavour if flavour == "action" else f"{flavour}.{safe_name(name)}"
    counters[counter] = counters.get(counter, -1) + 1
    write_json(vm.sequence, counters)
    return int(counters[counter])


def _cancel_script(supervisor: Supervisor, channel: Channel, key: str) -> None:
    record = read_json(supervisor.vm.script_record(key))
    if record is None or record["state"] != "Running":
        _reply(channel, {"ok": True})
        return
    earlier = supervisor.waiting_for_script.pop(f"cancel {key}", None)
    if earlier is not None:
        _reply(earlier, {"ok": True})
    supervisor.waiting_for_script[f"cancel {key}"] = channel
    supervisor.guest.channel.send({"op": "cancel_script", "key": key})


# --- metadata service ---------------------------------------------------------------------------------------


def _accept_imds(supervisor: Supervisor, server: socket.socket) -> None:
    connection = server.accept()[0]
    connection.settimeout(5)
    received = bytearray()
    supervisor.selector.register(
        connection, selectors.EVENT_READ, partial(_hear_imds, supervisor, connection, received)
    )


def _hear_imds(supervisor: Supervisor, connection: socket.socket, received: bytearray) -> None:
    try:
        data = connection.recv(1 << 16)
        received += data
        request = imds.parse_request(bytes(received))
        if request is not None:
            connection.sendall(imds.answer(request, supervisor.events, supervisor.config["spec"]).encode())
        elif data:
            return
    except (OSError, ValueError):
        request = None
    supervisor.selector.unregister(connection)
    connection.close()
    if supervisor.eviction in supervisor.events.acknowledged and supervisor.evict_at is not None:
        supervisor.evict_at = min(supervisor.evict_at, time.monotonic() + ACKNOWLEDGED_AFTER)


# --- blobs --------------------------------------------------------------------------------------------------


def _serve_blobs(supervisor: Supervisor, listening: socket.socket) -> None:
    """The VM's first connection: whoever serves it is started, and ends with this process at the latest."""
    supervisor.selector.unregister(listening)
    server = supervisor.blob_server = subprocess.Popen(
        [*supervisor.config["blob_server"], str(supervisor.vm.path)],
        stdin=listening.fileno(),
        stdout=subprocess.DEVNULL,
        preexec_fn=partial(namespaces.die_with_parent, signal.SIGKILL),
    )
    ended = os.pidfd_open(server.pid)
    watch = supervisor.selector.register
    watch(ended, selectors.EVENT_READ, partial(_blob_server_ended, supervisor, listening, ended))


def _blob_server_ended(supervisor: Supervisor, listening: socket.socket, ended: int) -> None:
    """The next connection starts another."""
    supervisor.selector.unregister(ended)
    os.close(ended)
    if supervisor.blob_server is not None:
        supervisor.blob_server.wait()
    supervisor.selector.register(listening, selectors.EVENT_READ, partial(_serve_blobs, supervisor, listening))


def new_state(before: State, host_boot: str, kind: str) -> dict[str, Any]:
    """What the starter writes while it holds the lock, before there is a supervisor."""
    return {
        "power": "starting",
        "cause": None,
        "since": time.time(),
        "boot": before.boot,
        "incarnation": os.urandom(8).hex(),
        "host_boot": host_boot,
        "kind": kind,
        "supervisor": 0,
    }
