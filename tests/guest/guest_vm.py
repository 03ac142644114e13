"""A VM made of a directory: real bash and Python, a fake docker and crontab, scheduled events over HTTP."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from cloudtrain.guest import (
    GuestSettings,
    Observation,
    StartOutcome,
    await_script,
    install_script,
    observe_script,
    parse_observation,
    parse_start,
)

HERE = Path(__file__).parent
QUICK: dict[str, object] = {
    "pull_pauses": [0.05],
    "retry_pauses": [0.05, 0.05],
    "settle_seconds": 0.05,
    "poll_seconds": 0.05,
    "vanish_seconds": 0.5,
    "check_seconds": 0.3,
    "hook_margin_seconds": 0.5,
}
CRONTAB = """#!/bin/bash
set -u
table="$CRONTAB_FILE"
case "${1:-}" in
  -l) if [ -e "$table" ]; then cat "$table"; else echo "no crontab for root" >&2; exit 1; fi ;;
  -) cat >"$table.new" && mv "$table.new" "$table" ;;
  *) exit 1 ;;
esac
"""


def eventually(condition: Callable[[], Any], what: str, seconds: float = 15.0, every: float = 0.02) -> Any:
    """The condition's value once it is true; fails after a time that only a broken guest needs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(every)
    raise AssertionError(f"never happened: {what}")


@dataclass
class Imds:
    """Scheduled events as Azure serves them. answer: what to say instead, a status or raw bytes. first_call: what the
    answer to the first one waits for."""

    events: list[dict[str, Any]] = field(default_factory=list)
    answer: int | bytes | None = None
    first_call: threading.Event | None = None
    polls: int = 0
    acknowledged: list[str] = field(default_factory=list)
    on_acknowledge: Callable[[str], None] = lambda _: None
    port: int = 0
    tokens: dict[str, str] = field(default_factory=dict)  # of the VM's identity, by resource
    tokens_asked: int = 0

    def token(self, path: str, metadata: str | None) -> tuple[int, bytes]:
        self.tokens_asked += 1
        resource = parse_qs(urlsplit(path).query).get("resource", [""])[0]
        if metadata != "true" or resource not in self.tokens:
            return 400, b'{"error": "invalid_request", "error_description": "Identity not found"}'
        times = {"expires_in": "86399", "expires_on": str(int(time.time()) + 86399)}
        return 200, json.dumps({"access_token": self.tokens[resource], "resource": resource, **times}).encode()

    def preempt(self, vm: str = "run-g1", seconds: float = 30.0, event_id: str = "E-1") -> None:
        date = formatdate(time.time() + seconds, usegmt=True)
        self.events = [event("Preempt", vm, event_id, date)]


def event(kind: str, vm: str, event_id: str, date: str, source: str = "Platform") -> dict[str, Any]:
    return {
        "EventId": event_id,
        "EventStatus": "Scheduled",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": [vm],
        "NotBefore": date,
        "Description": "",
        "EventSource": source,
        "DurationInSeconds": -1,
    }


def serve(imds: Imds) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def reply(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            imds.polls += "/scheduledevents" in self.path
            if "/identity/" in self.path:
                self.reply(*imds.token(self.path, self.headers.get("Metadata")))
                return
            if imds.polls == 1 and imds.first_call:  # it switches the service on: up to two minutes on Azure
                imds.first_call.wait()
            if self.headers.get("Metadata") != "true":
                self.reply(400)
            elif isinstance(imds.answer, int):
                self.reply(imds.answer, b"{}")
            elif isinstance(imds.answer, bytes):
                self.reply(200, imds.answer)
            else:
                self.reply(200, json.dumps({"DocumentIncarnation": 1, "Events": imds.events}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for each in body["StartRequests"]:
                imds.on_acknowledge(each["EventId"])
                imds.acknowledged.append(each["EventId"])
            self.reply(200)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    imds.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


@dataclass
class Vm:
    """disk: what stands for the VM's root directory."""

    disk: Path
    imds: Imds
    environment: dict[str, str]
    settings: GuestSettings
    protected: dict[str, str] = field(default_factory=dict)  # parameters that only the installation gets

    @property
    def home(self) -> Path:
        return self.disk / "cloudtrain"

    @property
    def engine(self) -> Path:
        return self.disk / "engine"

    def bash(self, script: str, **parameters: str) -> subprocess.CompletedProcess[str]:
        path = self.disk / "script.sh"
        path.write_text(script)
        ran = subprocess.run(
            ["/bin/bash", str(path)],
            env=self.environment | parameters,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        print(ran.stdout, ran.stderr)  # shown when a test fails
        return ran

    def install(self, *arguments: str, container_seconds: float = 30.0, **changes: Any) -> StartOutcome:
        """What `up` does; the arguments go to the trainer."""
        self.settings = replace(self.settings, arguments=arguments, **changes)
        return self.start_again(container_seconds)

    def start_again(self, container_seconds: float = 30.0) -> StartOutcome:
        script = install_script(self.settings, "n-1", timeout=30, container_seconds=container_seconds)
        return parse_start(self.bash(script, **self.protected).stdout, "n-1")

    def wait_for_training(self, after: int | None) -> StartOutcome:
        return parse_start(self.bash(await_script("n-2", after=after, timeout=30)).stdout, "n-2")

    def observe(self, **options: Any) -> Observation:
        return parse_observation(self.bash(observe_script("n-3", **options)).stdout, "n-3")

    def boot(self) -> None:
        """What cron does: the @reboot lines of the crontab."""
        for line in Path(self.environment["CRONTAB_FILE"]).read_text().splitlines():
            if line.startswith("@reboot ") and "startup-script" in line:
                subprocess.Popen(
                    ["/bin/sh", "-c", line.removeprefix("@reboot ")],
                    env=self.environment,
                    start_new_session=True,
                )

    def processes(self, word: str = "") -> list[psutil.Process]:
        """Of this VM, containers too; those whose command line holds the word."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("VM_DISK") == str(self.disk) and word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def cut_power(self) -> None:
        empty = 0
        while empty < 2:  # one look can miss a process that is just being forked
            left = self.processes()
            empty = 0 if left else empty + 1
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass

    def trainers(self) -> list[psutil.Process]:
        return [each for each in self.processes("fake_trainer.py") if "fake_engine" not in " ".join(each.cmdline())]

    def events(self, name: str = "") -> list[dict[str, Any]]:
        path = self.home / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        said = [json.loads(line) for line in lines]
        return [each for each in said if name in ("", each["event"])]

    def stage(self) -> str:
        """The same as an observation's, read at once."""
        with contextlib.suppress(OSError):
            return str(json.loads((self.home / "state.json").read_text())["stage"])
        return ""

    def journal(self) -> str:
        return (self.home / "models" / "log.txt").read_text()

    def step(self) -> int:
        seen: int = json.loads((self.home / "models" / "progress.json").read_text())["step"]
        return seen

    def runs(self) -> list[list[str]]:
        """The arguments of every docker run."""
        path = self.engine / "runs.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def trainer_argv(self) -> list[str]:
        argv: list[str] = json.loads((self.home / "models" / "environment.json").read_text())["argv"]
        return argv


def put_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    disk = tmp_path / "disk of a vm"  # a blank, because nobody promised that there is none
    tools = disk / "bin"
    tools.mkdir(parents=True)
    (disk / "cloudtrain").mkdir()
    for name in ("images", "containers", "names"):
        (disk / "engine" / name).mkdir(parents=True)
    (disk / "engine" / "program.json").write_text(json.dumps([sys.executable, "-sSEB", str(HERE / "fake_trainer.py")]))
    put_program(tools / "docker", f'#!/bin/sh\nexec "{sys.executable}" -sSEB "{HERE / "fake_docker.py"}" "$@"\n')
    put_program(tools / "crontab", CRONTAB)
    (tools / "python3").symlink_to(os.environ.get("GUEST_PYTHON", sys.executable))  # Ubuntu 22.04 has 3.10
    imds = Imds()
    server = serve(imds)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "CLOUDTRAIN_ROOT": str(disk),
        "CLOUDTRAIN_IMDS": f"http://127.0.0.1:{imds.port}",
        "FAKE_DOCKER": str(disk / "engine"),
        "CRONTAB_FILE": str(disk / "crontab"),
        "VM_DISK": str(disk),
        "http_proxy": "http://127.0.0.1:9",  # IMDS must never be asked through a proxy
    }
    settings = GuestSettings(
        run="run",
        generation=1,
        vm_name="run-g1",
        image="example/trainer:1",
        mount="/app/Saved_Model",
        arguments=(),
        environment=(),
        gpus=False,
        writes_progress=True,
        tuning=QUICK,
    )
    made = Vm(disk, imds, environment, settings)
    yield made
    if imds.first_call:
        imds.first_call.set()
    made.cut_power()
    for name in ("startup.log", "eviction.log", "upload.log", "upload.json", "events.jsonl", "state.json"):
        with contextlib.suppress(OSError):
            print(f"--- {name}\n" + (made.home / name).read_text(errors="replace")[-3000:])
    server.shutdown()
    server.server_close()
    shutil.rmtree(disk, ignore_errors=True)


def signal_all(processes: list[psutil.Process], number: int = signal.SIGKILL) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def begin_install(vm: Vm) -> "subprocess.Popen[str]":
    """install() that does not wait; its stdout ends with the marker of n-9."""
    script = vm.disk / "install.sh"
    script.write_text(install_script(vm.settings, "n-9", timeout=30))
    return subprocess.Popen(["/bin/bash", str(script)], env=vm.environment, stdout=subprocess.PIPE, text=True)
