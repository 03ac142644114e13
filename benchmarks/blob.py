"""The embedded blob service beside Azurite (Microsoft's emulator, from npm): throughput, small blobs, memory, kill -9.

python benchmarks/blob.py [--megabytes 128] [--small 300] [--rounds 3] [--kills 5] [--json]

Both are servers on a loopback port, spoken to by the same client (azure-storage-blob, an account key, plain HTTP), in
turns, so that both meet the same machine; the figure is the median of the rounds' ratios, and above 1 the embedded one
is the faster. Ours flushes every blob to disk before it acknowledges it; Azurite does not. After kill -9 in the middle
of uploads each server is started again, and every blob that it had acknowledged is read back. Azurite has to be
installed: npm install --prefix .azurite azurite@3.37.0
"""

import argparse
import base64
import hashlib
import json
import os
import random
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
AZURITE = REPOSITORY / ".azurite" / "node_modules" / ".bin" / "azurite-blob"
ACCOUNT = "benchmark"
SMALL_BYTES = 4096
_READY_SECONDS = 30.0


@dataclass
class Server:
    """One blob service in a process of its own, with its data in a directory."""

    name: str
    command: list[str]
    port: int
    key: str
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, env=os.environ | self.environment, stdout=subprocess.DEVNULL, cwd=REPOSITORY
        )
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise SystemExit(f"{self.name} did not start within {_READY_SECONDS:.0f} s")

    def end(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait()

    def peak_mib(self) -> float:
        """The most memory that the process has held (VmHWM)."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    def client(self) -> Any:
        from azure.storage.blob import BlobServiceClient

        credential = {"account_name": ACCOUNT, "account_key": self.key}
        return BlobServiceClient(f"http://127.0.0.1:{self.port}/{ACCOUNT}", credential=credential, retry_total=0)


@dataclass
class Measured:
    """Rates of every round (MB/s and blobs/s), MiB at the peak, and what was lost of what was acknowledged."""

    put: list[float] = field(default_factory=list)
    get: list[float] = field(default_factory=list)
    small_put: list[float] = field(default_factory=list)
    small_get: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    acknowledged: int = 0
    lost: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=128, help="size of the large blob")
    parser.add_argument("--small", type=int, default=300, help="how many blobs of 4 KiB a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=2, metavar=("DIRECTORY", "PORT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))  # this checkout is measured, whatever is installed
    if arguments.serve:
        serve(Path(arguments.serve[0]), int(arguments.serve[1]))
        return
    if not AZURITE.exists():
        raise SystemExit("Azurite is not installed: npm install --prefix .azurite azurite@3.37.0")
    with tempfile.TemporaryDirectory() as directory:
        servers = [embedded(Path(directory) / "embedded"), azurite(Path(directory) / "azurite")]
        measured = measure(servers, arguments)
    print(json.dumps(figures(measured, arguments)) if arguments.json else table(measured))


# the two servers


def embedded(directory: Path) -> Server:
    """The account is made here, as on Azure; the server that is measured finds it in the store."""
    from cloudtrain.azure.session import open_session
    from cloudtrain.clock import SystemClock

    with open_session("embedded", home=directory, clock=SystemClock()) as session:
        session.resources.resource_groups.create_or_update("g", {"location": "eastus"})
        body = {"sku": {"name": "Standard_LRS"}, "kind": "StorageV2", "location": "eastus"}
        body["properties"] = {"supportsHttpsTrafficOnly": False}
        accounts = session.storage.storage_accounts
        accounts.begin_create("g", ACCOUNT, body).result()
        key = str(accounts.list_keys("g", ACCOUNT).keys_property[0].value)
    port = free_port()
    return Server("embedded", [sys.executable, __file__, "--serve", str(directory), str(port)], port, key)


def serve(directory: Path, port: int) -> None:
    from cloudtrain.azure.session import embedded_azure
    from cloudtrain.clock import SystemClock
    from cloudtrain.emulator.blobs.server import listening

    azure = embedded_azure(directory, SystemClock())
    with listening(azure.blobs, port):
        threading.Event().wait()


def azurite(directory: Path) -> Server:
    key, port = base64.b64encode(secrets.token_bytes(64)).decode(), free_port()
    command = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(directory)]
    command += ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    return Server("Azurite", command, port, key, {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# what is measured


def measure(servers: list[Server], arguments: argparse.Namespace) -> list[Measured]:
    measured = [Measured() for _ in servers]
    for server in servers:
        server.start()
        server.client().create_container("runs")
    data = random.Random(7).randbytes(arguments.megabytes * 1_000_000)
    for turn in range(arguments.rounds + 1):
        # Whoever comes second finds warm caches: they take turns. The first round warms both up and does not count.
        order = list(zip(servers, measured, strict=True))
        for server, result in order if turn % 2 else reversed(order):
            one_round(server, result if turn else Measured(), data, arguments.small)
    for server, result in zip(servers, measured, strict=True):
        result.peak_mib = server.peak_mib()
        for kill in range(arguments.kills):
            survive(server, result, kill)
        server.end()
    return measured


def one_round(server: Server, result: Measured, data: bytes, small: int) -> None:
    container = server.client().get_container_client("runs")
    large = container.get_blob_client("large")
    result.put.append(len(data) / 1e6 / seconds(lambda: large.upload_blob(data, overwrite=True)))
    found: list[bytes] = []
    result.get.append(len(data) / 1e6 / seconds(lambda: found.append(large.download_blob().readall())))
    if found[0] != data:
        raise SystemExit(f"{server.name} returned other bytes than were sent")
    blobs = [container.get_blob_client(f"small/{number}") for number in range(small)]
    body = data[:SMALL_BYTES]
    result.small_put.append(small / seconds(lambda: [blob.upload_blob(body, overwrite=True) for blob in blobs]))
    result.small_get.append(small / seconds(lambda: [blob.download_blob().readall() for blob in blobs]))


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def survive(server: Server, result: Measured, kill: int) -> None:
    """Kill the server while it is written to, start it again, and look for what it had acknowledged."""
    acknowledged: list[str] = []
    container = server.client().get_container_client("runs")
    thread = threading.Thread(target=upload_until_gone, args=(container, kill, acknowledged))
    thread.start()
    time.sleep(0.5 + random.Random(kill).random())
    server.end(signal.SIGKILL)
    thread.join()
    server.start()
    container = server.client().get_container_client("runs")
    result.acknowledged += len(acknowledged)
    result.lost += sum(not whole(container, name) for name in acknowledged)


def upload_until_gone(container: Any, kill: int, acknowledged: list[str]) -> None:
    from azure.core.exceptions import AzureError

    try:
        while True:
            name = f"kill-{kill}/{len(acknowledged)}"
            container.upload_blob(name, content(name))
            acknowledged.append(name)
    except AzureError:
        return  # the server is gone


def content(name: str) -> bytes:
    return hashlib.shake_128(name.encode()).digest(100_000)


def whole(container: Any, name: str) -> bool:
    from azure.core.exceptions import AzureError

    try:
        return bool(container.get_blob_client(name).download_blob().readall() == content(name))
    except AzureError:
        return False


# what is shown


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def figures(measured: list[Measured], arguments: argparse.Namespace) -> dict[str, float]:
    ours, theirs = measured
    return {
        "put_over_azurite": round(ratio(ours.put, theirs.put), 2),
        "get_over_azurite": round(ratio(ours.get, theirs.get), 2),
        "small_put_over_azurite": round(ratio(ours.small_put, theirs.small_put), 2),
        "small_get_over_azurite": round(ratio(ours.small_get, theirs.small_get), 2),
        "acknowledged_lost_after_kill": ours.lost,
        "acknowledged_before_kill": ours.acknowledged,
        "azurite_acknowledged_lost_after_kill": theirs.lost,
        "azurite_acknowledged_before_kill": theirs.acknowledged,
        "put_megabytes_per_second": round(statistics.median(ours.put), 1),
        "get_megabytes_per_second": round(statistics.median(ours.get), 1),
        "small_puts_per_second": round(statistics.median(ours.small_put), 1),
        "small_gets_per_second": round(statistics.median(ours.small_get), 1),
        "peak_mib": round(ours.peak_mib, 1),
        "azurite_peak_mib": round(theirs.peak_mib, 1),
        "megabytes": arguments.megabytes,
        "rounds": arguments.rounds,
        "kills": arguments.kills,
    }


def table(measured: list[Measured]) -> str:
    ours, theirs = measured
    lines = [f"{'':34}{'embedded':>12}{'Azurite':>12}{'ratio':>8}"]
    for name, unit in (("put", "MB/s"), ("get", "MB/s"), ("small_put", "1/s"), ("small_get", "1/s")):
        a, b = getattr(ours, name), getattr(theirs, name)
        label = f"{name.replace('small_', 'blobs of 4 KiB, ')} ({unit})"
        lines.append(f"{label:34}{statistics.median(a):12.1f}{statistics.median(b):12.1f}{ratio(a, b):8.2f}")
    lines.append(f"{'memory at its peak (MiB)':34}{ours.peak_mib:12.1f}{theirs.peak_mib:12.1f}")
    lost = [f"{result.lost} of {result.acknowledged}" for result in measured]
    lines.append(f"{'acknowledged, lost after kill -9':34}{lost[0]:>12}{lost[1]:>12}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
