"""Process 1 of a node: boots it, runs the agent's scripts, answers as Azure's metadata service, ends it.

The command line reaches it by lines of JSON on a socket and by signals, and reads its last line of standard output:
what is true of the power. Nothing outside the node has to live for an eviction to come: process 1 counts down and
ends, and the kernel ends everybody else in the same moment.
"""

import base64
import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from cloudtrain.emulator.machines import agent, imds
from cloudtrain.emulator.machines.agent import CannotRun, RunningScript, Surroundings
from cloudtrain.emulator.machines.channel import Channel, Message
from cloudtrain.emulator.machines.directory import read_json, write_json
from cloudtrain.emulator.machines.node import ENVIRONMENT, RECORDS, RECORDS_INSIDE, SOCKET, root, services
from cloudtrain.emulator.machines.process_table import Row, rows, send_signal

_ACKNOWLEDGED_AFTER = 0.2  # the answer to the acknowledgement gets out before the cut
_RESPAWN_SECONDS = 2.0  # systemd's RestartSec of docker.service
_TAIL = 4096  # bytes of each stream that Azure's agent reports
# The engine stops its containers itself, each with its own patience; who keeps them must not go before it.
_KEEPERS = ("containerd", "containerd-shim")
# From the host. SIGTERM is what an engine sends that is stopped itself: the host goes down.
CUT, EVICT = signal.SIGUSR1, signal.SIGUSR2
# From inside, systemd's: SIGRTMIN+4 powers off, SIGRTMIN+5 and ctrl-alt-del reboot.
_POWER_OFF, _REBOOT = signal.SIGRTMIN + 4, signal.SIGRTMIN + 5
_TERM_GRACE = 8.0  # an engine that is stopped waits 10 seconds for us
_GUEST_GRACE = 10.0


class Node:
    def __init__(self) -> None:
        self.config: dict[str, Any] = read_json(RECORDS_INSIDE / "config.json")
        self.state: dict[str, Any] = read_json(RECORDS_INSIDE / "state.json") or {"boot": 0, "incarnation": 0}
        self.events = imds.ScheduledEvents(self.config["spec"]["name"], incarnation=self.state["incarnation"] + 1)
        self.since = time.time()
        self.selector = selectors.DefaultSelector()
        self.scripts: dict[int, RunningScript] = {}  # by pid
        self.cancelling: dict[str, list[Channel]] = {}  # who waits for the end of a script, by its key
        self.services: dict[int, str] = {}  # name by pid
        self.engine: socket.socket  # of this boot
        self.respawn: dict[str, float] = {}  # monotonic, by name
        self.eviction = ""  # its event's id
        self.evict_at: float | None = None  # monotonic
        self.stop_by: float | None = None  # monotonic; a shutdown is under way
        self.then = ""  # what comes after it: 'boot' or a cause of being off
        self.waiting: list[Channel] = []  # for the end of a reboot

    # --- boot and end ---------------------------------------------------------------------------------------

    def boot(self) -> None:
        root.clear_for_boot()
        if not (RECORDS_INSIDE / "provisioned").exists():
            services.provision(self.config["spec"])
            (RECORDS_INSIDE / "provisioned").touch()
        services.set_environment()
        services.set_up_network(ssh_open=self.config["ssh_open"])
        self.state |= {"boot": self.state["boot"] + 1, "incarnation": self.events.incarnation}
        write_json(RECORDS_INSIDE / "state.json", self.state)
        self._listen(_on_socket(), self._hear_orders)
        self.engine = services.engine_socket()
        for name in services.commands(self.config, self.engine.fileno()):
            self._start_service(name)
        self.tell(power="on", ready=True)

    def tell(self, **what: Any) -> None:
        print(json.dumps({"boot": self.state["boot"], "since": self.since, **what}), flush=True)

    def end(self, cause: str) -> NoReturn:
        """Cut the power."""
        if cause == "evicted":
            self.events.begin(self.eviction)
        self.state["incarnation"] = self.events.incarnation
        write_json(RECORDS_INSIDE / "state.json", self.state)
        self.tell(power="off", cause=cause)
        os._exit(0)

    def begin_stop(self, then: str, grace: float) -> None:
        """SIGTERM to every process but those that the engine stops by itself."""
        if self.stop_by is not None:
            self.then = then if then != "boot" else self.then
            return
        self.stop_by, self.then = time.monotonic() + grace, then
        self.respawn.clear()
        for row in _own_processes(without_containers=True):
            send_signal(row.pid, signal.SIGTERM)

    def stopped(self) -> None:
        if self.then != "boot":
            self.end(self.then)
        _kill_everybody()
        self._forget_everybody()
        self.boot()
        for channel in self.waiting:
            _reply(channel, {"ok": True})
        self.waiting.clear()

    def _forget_everybody(self) -> None:
        self.stop_by = None
        self.scripts.clear()
        self.services.clear()
        for key, channels in self.cancelling.items():
            for channel in channels:
                _reply(channel, {"ok": False, "error": f"the VM rebooted while {key} was being ended"})
        self.cancelling.clear()
        # the socket lay in /run, which is made anew
        for registered in list(self.selector.get_map().values()):
            listening = registered.fileobj
            if isinstance(listening, socket.socket) and listening.family == socket.AF_UNIX:
                self.selector.unregister(listening)
                listening.close()

    def _start_service(self, name: str) -> None:
        engine = self.engine.fileno()
        process = services.start(name, services.commands(self.config, engine)[name], engine)
        self.services[process.pid] = name
        process.returncode = 0  # reaped below, by pid

    # --- the loop -------------------------------------------------------------------------------------------

    def serve(self) -> NoReturn:
        wakeup = _watch_signals()
        self.selector.register(wakeup, selectors.EVENT_READ, lambda: self._obey_signals(os.read(wakeup, 4096)))
        self.boot()
        self._listen(_on_link_local(), self._hear_imds)
        while True:
            for key, _ in self.selector.select(self._patience()):
                if self.selector.get_map().get(key.fd) is key:  # an earlier one of this turn may have closed it
                    key.data()
            self._reap()
            self._do_what_is_due(time.monotonic())

    def _patience(self) -> float:
        deadlines = [script.deadline for script in self.scripts.values() if not script.verdict]
        deadlines += [moment for moment in (self.evict_at, self.stop_by) if moment is not None]
        deadlines += self.respawn.values()
        return max(0.0, min(deadlines, default=time.monotonic() + 60) - time.monotonic())

    def _do_what_is_due(self, now: float) -> None:
        if self.evict_at is not None and now >= self.evict_at:
            self.end("evicted")
        if self.stop_by is not None and now >= self.stop_by:
            self.stopped()
        for name in [name for name, moment in self.respawn.items() if now >= moment]:
            del self.respawn[name]
            self._start_service(name)
        for script in self.scripts.values():
            if not script.verdict and now >= script.deadline:
                script.stop("TimedOut")

    def _obey_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGTERM:
                self.begin_stop("host rebooted", _TERM_GRACE)
            elif number == _POWER_OFF:
                self.begin_stop("guest shut itself down", _GUEST_GRACE)
            elif number in (_REBOOT, signal.SIGINT):
                self.begin_stop("boot", _GUEST_GRACE)
            elif number == CUT:
                self.end("powered off")
            elif number == EVICT:
                self.end("evicted")

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if self.stop_by is not None and not _own_processes():
                    self.stopped()
                return
            if not pid:
                return
            script = self.scripts.pop(pid, None)
            name = self.services.pop(pid, None)
            if script is not None:
                script.process.returncode = os.waitstatus_to_exitcode(status)
                if self.stop_by is None:
                    self._script_ended(script, status)
            elif name is not None and self.stop_by is None:
                self.respawn[name] = time.monotonic() + _RESPAWN_SECONDS

    def _listen(self, server: socket.socket, hear: Callable[[socket.socket], None]) -> None:
        def accept() -> None:
            connection = server.accept()[0]
            connection.settimeout(5)
            hear(connection)

        self.selector.register(server, selectors.EVENT_READ, accept)

    # --- orders ---------------------------------------------------------------------------------------------

    def _hear_orders(self, connection: socket.socket) -> None:
        channel = Channel(connection)

        def hear() -> None:
            try:
                messages = channel.receive()
            except (EOFError, OSError):
                self.selector.unregister(connection)
                channel.close()
                return
            for message in messages:
                self.selector.unregister(connection)
                self._obey(channel, message)
                return

        self.selector.register(connection, selectors.EVENT_READ, hear)

    def _obey(self, channel: Channel, order: Message) -> None:
        """One order a connection. The answer comes when it is carried out."""
        match order["op"]:
            case "evict":
                self._evict(float(order["notice"]))
                _reply(channel, {"ok": True})
            case "shut_down":
                self.waiting.append(channel)  # its end is the answer
                self.begin_stop(order["cause"], float(order["grace"]))
            case "reboot":
                self.waiting.append(channel)
                self.begin_stop("boot", float(order["grace"]))
            case "start_script":
                _reply(channel, self._start_script(order["script"]))
            case "script":
                _reply(channel, self._script(order["key"]))
            case "cancel_script":
                self._cancel_script(channel, order["key"])
            case "open_ssh":
                self.config["ssh_open"] = order["allowed"]
                services.open_ssh(order["allowed"])
                _reply(channel, {"ok": True})
            case unknown:
                _reply(channel, {"ok": False, "error": f"the node does not know the order '{unknown}'"})

    def _evict(self, notice: float) -> None:
        if self.evict_at is None:
            self.eviction = self.events.preempt(time.time() + notice)
            self.evict_at = time.monotonic() + notice

    # --- scripts --------------------------------------------------------------------------------------------

    def _start_script(self, script: dict[str, Any]) -> Message:
        if self.stop_by is not None:
            return {"ok": False, "error": "the VM is shutting down"}
        known = read_json(_token_record(script)) if script["token"] else None
        if known is not None:
            return {"ok": True, "key": known["key"]}
        sequence = _next_sequence(script["flavour"], script["name"])
        key = f"{script['flavour']}.{agent.safe_name(script['name'])}.{sequence}"
        record = {
            "state": "Running",
            "exit_code": None,
            "started": time.time(),
            "ended": None,
            "message": "",
            "files": agent.directory_of(script["flavour"], script["name"], sequence),
            "boot": self.state["boot"],
        }
        _record_of(key).parent.mkdir(exist_ok=True)
        write_json(_record_of(key), record)
        if script["token"]:
            write_json(_token_record(script), {"key": key})
        try:
            running = agent.start({**script, "key": key, "sequence": sequence}, _SURROUNDINGS)
        except (CannotRun, OSError) as error:
            write_json(_record_of(key), record | {"state": "Failed", "message": str(error), "ended": time.time()})
        else:
            self.scripts[running.process.pid] = running
        return {"ok": True, "key": key}

    def _script(self, key: str) -> Message:
        record = read_json(_record_of(key))
        if record is None:
            return {"ok": False}
        files = Path("/", record["files"])
        tails = {name: base64.b64encode(_tail(files / name)).decode() for name in ("stdout", "stderr")}
        return {"ok": True, "record": record, **tails}

    def _script_ended(self, script: RunningScript, status: int) -> None:
        outcome = script.outcome(status)
        record = read_json(_record_of(script.key))
        record |= {"state": outcome["state"], "exit_code": outcome["exit_code"], "ended": time.time()}
        write_json(_record_of(script.key), record)
        for channel in self.cancelling.pop(script.key, []):
            _reply(channel, {"ok": True})

    def _cancel_script(self, channel: Channel, key: str) -> None:
        running = next((script for script in self.scripts.values() if script.key == key), None)
        if running is None:
            _reply(channel, {"ok": True})
            return
        self.cancelling.setdefault(key, []).append(channel)
        running.stop("Canceled")

    # --- metadata service -----------------------------------------------------------------------------------

    def _hear_imds(self, connection: socket.socket) -> None:
        received = bytearray()

        def hear() -> None:
            try:
                data = connection.recv(1 << 16)
                received.extend(data)
                request = imds.parse_request(bytes(received))
                if request is None and data:
                    return
                if request is not None:
                    connection.sendall(imds.answer(request, self.events, self.config["spec"]).encode())
            except (OSError, ValueError) as error:
                print(f"metadata service: {error!r}", file=sys.stderr, flush=True)
            self.selector.unregister(connection)
            connection.close()
            if self.eviction in self.events.acknowledged and self.evict_at is not None:
                self.evict_at = min(self.evict_at, time.monotonic() + _ACKNOWLEDGED_AFTER)

        self.selector.register(connection, selectors.EVENT_READ, hear)


_SURROUNDINGS = Surroundings(prefix=Path("/"), programs="", environment=ENVIRONMENT, can_switch_user=True)


def _record_of(key: str) -> Path:
    return RECORDS_INSIDE / "scripts" / f"{key}.json"


def _token_record(script: dict[str, Any]) -> Path:
    return _record_of(f"token.{agent.safe_name(script['token'])}")


def _next_sequence(flavour: str, name: str) -> int:
    """On the disk before the script starts, so that a script whose VM died is never taken for a new one."""
    path = RECORDS_INSIDE / "sequence.json"
    counters = read_json(path) or {}
    counter = flavour if flavour == "action" else f"{flavour}.{agent.safe_name(name)}"
    counters[counter] = counters.get(counter, -1) + 1
    write_json(path, counters)
    return int(counters[counter])


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            return file.read(_TAIL)
    except OSError:
        return b""


def _own_processes(*, without_containers: bool = False) -> list[Row]:
    """Living processes of the VM: not us, and not what the host's engine started in here beside us (its parent is
    outside, which reads as 0)."""
    found = [row for row in rows() if not row.is_zombie and row.pid != 1]
    parents = {row.pid: row.parent for row in found}
    keepers = {row.pid for row in found if _name(row.pid).startswith(_KEEPERS)} if without_containers else set()

    def is_left_alone(pid: int) -> bool:
        """It or one of those above it."""
        while pid in parents:
            if pid in keepers or parents[pid] == 0:
                return True
            pid = parents[pid]
        return False

    return [row for row in found if not is_left_alone(row.pid)]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _kill_everybody() -> None:
    while processes := _own_processes():
        for row in processes:
            send_signal(row.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _reply(channel: Channel, message: Message) -> None:
    """Whoever asked may be gone by now; that changes nothing here."""
    with contextlib.suppress(OSError):
        channel.send(message)
    channel.close()


def _watch_signals() -> int:
    """Handlers, not SIG_IGN: what is ignored stays ignored in every process that is started from here."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, _POWER_OFF, _REBOOT, CUT, EVICT):
        signal.signal(number, lambda *_: None)
    return reader


def _on_socket() -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(SOCKET)
    Path(SOCKET).chmod(0o600)
    server.listen(64)
    return server


def _on_link_local() -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("169.254.169.254", 80))
    server.listen(64)
    return server


def main() -> NoReturn:
    os.umask(0o022)
    RECORDS.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.dup2(os.open(RECORDS / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    try:
        root.enter()
        Node().serve()
    except BaseException as error:  # noqa: BLE001 - without process 1 there is no VM: say why it ends
        traceback.print_exc()
        print(json.dumps({"power": "off", "cause": "supervisor died", "boot": 0, "error": str(error)}), flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()
