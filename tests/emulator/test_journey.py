"""The life of a run, as the Azure SDK sees it."""

import pytest
from azure.core.exceptions import ResourceNotFoundError

from .conftest import Cloud


def test_a_spot_vm_is_made_evicted_started_and_deleted_with_its_group(cloud: Cloud) -> None:
    cloud.azure.set_notice(f"{cloud.subscription}/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm", 0)
    cloud.group("g", run="one")
    nsg = cloud.network.network_security_groups.begin_create_or_update("g", "nsg", {"location": "eastus"}).result()
    assert len(nsg.default_security_rules) == 6

    vm = cloud.vm()
    assert (vm.provisioning_state, vm.priority, vm.eviction_policy) == ("Succeeded", "Spot", "Deallocate")
    assert vm.billing_profile.max_price == -1.0
    assert cloud.power() == "running"

    command = {"location": "eastus", "source": {"script": "#test: Succeeded hello"}, "async_execution": True}
    cloud.compute.virtual_machine_run_commands.begin_create_or_update(
        "g", "vm", "go", {"location": "eastus", "properties": {"source": {"script": "#test: Succeeded hello"}}}
    ).result()
    assert command
    view = cloud.compute.virtual_machine_run_commands.get_by_virtual_machine(
        "g", "vm", "go", expand="instanceView"
    ).instance_view
    assert (view.execution_state, view.exit_code, view.output) == ("Succeeded", 0, "hello")

    cloud.compute.virtual_machines.simulate_eviction("g", "vm")
    cloud.await_power("deallocated")
    cloud.compute.virtual_machines.begin_start("g", "vm").result()
    assert cloud.power() == "running"
    cloud.compute.virtual_machines.begin_deallocate("g", "vm").result()
    assert cloud.power() == "deallocated"

    tagged = cloud.resources.resource_groups.list(filter="tagName eq 'run' and tagValue eq 'one'")
    assert [group.name for group in tagged] == ["g"]
    cloud.resources.resource_groups.begin_delete("g").result()
    with pytest.raises(ResourceNotFoundError):
        cloud.resources.resource_groups.get("g")
    assert cloud.machines.strays() == []
    assert {group.name for group in cloud.resources.resource_groups.list()} == {"NetworkWatcherRG"}
