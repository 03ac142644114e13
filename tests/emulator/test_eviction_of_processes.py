"""An eviction whose policy is Delete, of a VM that runs: nothing of it is left on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .test_resource_manager_from_a_vm import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "emulator", evictionPolicy="Delete")
    yield made
    made.cloud.azure.close()


def test_a_vm_with_policy_delete_is_gone_after_its_eviction(world: World) -> None:
    world.machines.evict(world.vm.vm_id, 0)
    gone = world.cloud.call("GET", world.vm.id)
    assert (gone.status, gone.body["error"]["code"]) == (404, "NotFound")
    while world.cloud.azure.status()["open_operations"]:
        pass  # its disk takes a moment
    assert not list((world.cloud.azure.root / "vms").glob("*"))
    assert list(world.cloud.compute.disks.list()) == []
