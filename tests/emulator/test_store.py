"""The database: damage is named, kills lose nothing, and several processes are one cloud."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from cloudtrain.emulator import store
from cloudtrain.emulator.embedded import EmbeddedAzure
from cloudtrain.emulator.store import DamagedStore, UnusableStore

from .conftest import Cloud, VirtualClock, open_cloud
from .memory_machines import MemoryMachines

REPOSITORY = Path(__file__).parents[2]
VM = "/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm"


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    prelude = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
    return subprocess.Popen(
        [sys.executable, "-c", prelude + script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# damage


def damage(root: Path) -> Path:
    open_cloud(root).azure.close()
    for suffix in ("-wal", "-shm"):
        (root / f"azure.db{suffix}").unlink(missing_ok=True)
    return root / "azure.db"


def reopen(root: Path) -> EmbeddedAzure:
    clock = VirtualClock()
    return EmbeddedAzure(root, clock=clock, machines=MemoryMachines(root / "machines", clock))


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to be one" * 40])
def test_a_file_that_is_no_database_is_named_with_what_to_run(tmp_path: Path, content: bytes) -> None:
    path = damage(tmp_path)
    path.write_bytes(content)
    with pytest.raises(DamagedStore) as caught:
        reopen(tmp_path)
    assert str(path) in str(caught.value)
    assert "cloudtrain emulator reset" in str(caught.value)


def test_a_damaged_page_is_found_when_opening(tmp_path: Path) -> None:
    path = damage(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[4096:8192] = os.urandom(4096)
    path.write_bytes(whole)
    with pytest.raises(DamagedStore):
        reopen(tmp_path)


def test_a_database_of_something_else_or_of_another_version_is_not_touched(tmp_path: Path) -> None:
    import sqlite3

    path = damage(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(DamagedStore, match="version 99"):
        reopen(tmp_path)


def test_a_reset_after_damage_erases_the_machines_that_the_database_can_no_longer_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = open_cloud(tmp_path)
    cloud.vm()
    cloud.azure.close()
    everything = cloud.machines.strays()
    monkeypatch.setattr(MemoryMachines, "strays", lambda machines: [])
    (tmp_path / "azure.db").write_bytes(b"")
    store.remove(tmp_path)
    again = open_cloud(tmp_path)
    again.azure.reset()
    assert list(again.resources.resource_groups.list()) == []
    assert again.machines.log()[-1] == ["erase", *everything]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_directory_without_rights_is_named(tmp_path: Path) -> None:
    root = tmp_path / "locked"
    root.mkdir(mode=0o500)
    with pytest.raises(UnusableStore, match="locked"):
        reopen(root)


def test_a_full_disk_is_named_and_what_was_before_stays(cloud: Cloud) -> None:
    cloud.group()
    connection = cloud.azure._azure.store._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(UnusableStore, match="full"):
        for number in range(200):
            cloud.call("PUT", f"/resourcegroups/g{number}", {"location": "eastus", "tags": {"a": "x" * 200}})
    connection.execute("PRAGMA max_page_count=1000000")
    assert cloud.call("GET", "/resourcegroups/g").status == 200


# several processes


MAKE_GROUPS = """
from pathlib import Path
from tests.emulator.conftest import open_cloud
root, mark = Path(sys.argv[1]), sys.argv[2]
cloud = open_cloud(root)
for number in range(100000):
    reply = cloud.call("PUT", f"/resourcegroups/{mark}-{number}", {"location": "eastus"})
    assert reply.status == 201, reply
    print(number, flush=True)
"""


def test_what_a_killed_process_was_told_is_there_is_there(tmp_path: Path) -> None:
    """Four writers at once, from the making of the database on, all killed in the middle; two rounds."""
    told: dict[str, int] = {}
    for round_ in range(2):
        writers = {f"w{round_}{index}": start(MAKE_GROUPS, str(tmp_path), f"w{round_}{index}") for index in range(4)}
        for writer in writers.values():
            assert writer.stdout is not None
            for _ in range(10):
                line = writer.stdout.readline()
                assert line, writer.communicate()[1]
        for mark, writer in writers.items():
            writer.send_signal(signal.SIGKILL)
            assert writer.stdout is not None and writer.stderr is not None
            told[mark] = 10 + writer.stdout.read().count("\n")
            assert writer.stderr.read() == ""
            writer.wait()
    cloud = open_cloud(tmp_path)
    kept = Counter(group.name.partition("-")[0] for group in cloud.resources.resource_groups.list())
    assert set(kept) == set(told)
    for mark, count in told.items():
        assert count <= kept[mark] <= count + 1  # one may have been written and not told


PUT_VM = """
from pathlib import Path
from tests.emulator.conftest import open_cloud
cloud = open_cloud(Path(sys.argv[1]))
subnet = f"{cloud.subscription}/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/vnet/subnets/default"
reply = cloud.call("PUT", "/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm", cloud.vm_body(subnet))
if reply.status in (200, 201):
    reply = cloud.finish(reply)
    print(reply.body["status"])
else:
    print(reply.status)
"""


def test_a_vm_put_by_four_processes_at_once_is_one_vm_on_one_machine(tmp_path: Path) -> None:
    cloud = open_cloud(tmp_path)
    cloud.group()
    cloud.net()
    results = [p.communicate() for p in [start(PUT_VM, str(tmp_path)) for _ in range(4)]]
    assert all(error == "" for _, error in results), results
    assert {out.strip() for out, _ in results} <= {"Succeeded", "409"}
    assert len(list(cloud.compute.virtual_machines.list("g"))) == 1
    assert len(list(cloud.network.network_interfaces.list("g"))) == 1
    assert [what for what, _ in cloud.machines.log()] == ["boot"]


SLOW_BOOT = """
import time
from pathlib import Path
from tests.emulator.conftest import open_cloud
cloud = open_cloud(Path(sys.argv[1]))
real = cloud.machines.boot
def boot(spec, **where):
    print("booting", flush=True)
    time.sleep(60)
    real(spec, **where)
cloud.machines.boot = boot
subnet = f"{cloud.subscription}/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/vnet/subnets/default"
reply = cloud.call("PUT", "/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm", cloud.vm_body(subnet))
print(reply.headers["Azure-AsyncOperation"], flush=True)
time.sleep(60)
"""


def test_work_of_a_killed_process_is_taken_over_by_the_next_request_and_not_before(tmp_path: Path) -> None:
    cloud = open_cloud(tmp_path)
    cloud.group()
    cloud.net()
    slow = start(SLOW_BOOT, str(tmp_path))
    assert slow.stdout is not None
    assert slow.stdout.readline() == "booting\n"
    operation = slow.stdout.readline().strip()
    assert operation, slow.communicate()
    cloud.clock.sleep(5)
    assert cloud.call("GET", operation).body["status"] == "InProgress"
    assert cloud.machines.log() == []  # its process still has the work in hand
    slow.send_signal(signal.SIGKILL)
    slow.wait()
    deadline = time.monotonic() + 10
    while cloud.call("GET", operation).body["status"] == "InProgress" and time.monotonic() < deadline:
        cloud.clock.sleep(0.05)
    assert cloud.call("GET", operation).body["status"] == "Succeeded"
    assert [what for what, _ in cloud.machines.log()] == ["boot"]
    assert cloud.power() == "running"


LOSE_SCRIPT = """
import os
from pathlib import Path
from tests.emulator.conftest import open_cloud
cloud = open_cloud(Path(sys.argv[1]))
real = cloud.machines.start_script
def start_script(vm_id, script):
    real(vm_id, script)
    os.kill(os.getpid(), 9)
cloud.machines.start_script = start_script
cloud.call("PUT", "/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm/runCommands/go",
           {"location": "eastus", "properties": {"source": {"script": "sleep"}, "asyncExecution": True}})
"""


def test_a_script_whose_key_was_lost_is_found_again_and_never_handed_over_twice(tmp_path: Path) -> None:
    cloud = open_cloud(tmp_path)
    vm = cloud.vm()
    assert start(LOSE_SCRIPT, str(tmp_path)).wait() == -signal.SIGKILL
    for _ in range(50):
        cloud.clock.sleep(0.1)
        shown = cloud.call("GET", f"{VM}/runCommands/go?$expand=instanceView").body["properties"]
        if shown["provisioningState"] != "Creating":
            break
    assert shown["provisioningState"] == "Succeeded"
    assert shown["instanceView"]["executionState"] == "Running"
    assert len(cloud.machines.scripts(vm.vm_id)) == 1


def test_two_views_of_one_directory_see_the_same_cloud(tmp_path: Path) -> None:
    one, two = open_cloud(tmp_path), open_cloud(tmp_path)
    assert (one.azure.token, one.azure.subscription_id) == (two.azure.token, two.azure.subscription_id)
    one.vm()
    assert two.power() == "running"
    two.resources.resource_groups.begin_delete("g").result()
    assert one.call("GET", VM).status == 404


# reset and status


def test_reset_removes_every_vm_and_begins_another_subscription(cloud: Cloud) -> None:
    cloud.vm()
    before = (cloud.azure.subscription_id, cloud.azure.token)
    cloud.azure.reset(fresh=True)
    assert cloud.machines.strays() == []
    assert not set(before) & {cloud.azure.subscription_id, cloud.azure.token}
    status = cloud.azure.status()
    assert (status["vms"], status["resource_groups"], status["spot_cores"]) == ([], [], 3)
    json.dumps(status)


def test_status_tells_vms_what_goes_on_and_strays(cloud: Cloud) -> None:
    vm = cloud.vm()
    status = cloud.azure.status()
    assert [(v["name"], v["power_state"], v["resource_group"]) for v in status["vms"]] == [("vm", "running", "g")]
    assert status["strays"] == []
    cloud.call("POST", f"{VM}/restart")
    assert cloud.azure.status()["open_operations"] == ["vm.restart vm"]
    with cloud.azure._azure.store.write() as records:
        records.delete(vm.id)
    assert cloud.azure.status()["strays"] == [vm.vm_id]


def test_the_files_of_the_cloud_are_private(cloud: Cloud) -> None:
    for path in cloud.azure.root.glob("azure.db*"):
        assert path.stat().st_mode & 0o077 == 0, path
