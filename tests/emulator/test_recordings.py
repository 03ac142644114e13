"""Azure's own recorded exchanges, sent to the embedded Azure: the same answers, but for what is listed."""

from typing import Any

from cloudtrain.emulator.machines import OffCause

from .conftest import Cloud
from .replay import Replay, recorded

SIGNED = "operation URLs carry p, t, c, s, h since 2024; these were recorded before"
NAMES_OF_LIMITS = "rate limits were renamed in 2025 (SubscriptionMaximum and Resource); these were recorded before"
NOTIFICATION = "Azure-AsyncNotification came in 2022; this was recorded before"
OLD_URLS = {r"#\d+ query keys of .*": SIGNED}
OLD_LIMITS = {r"#\d+ rate limits .*": NAMES_OF_LIMITS}


def image(publisher: str, offer: str, sku: str, disk: dict[str, Any] | None = None) -> dict[str, Any]:
    reference = {"publisher": publisher, "offer": offer, "sku": sku, "version": "latest"}
    return {"imageReference": reference, "osDisk": {"createOption": "FromImage", **(disk or {})}}


def password(computer: str) -> dict[str, Any]:
    return {"computerName": computer, "adminUsername": "azureuser", "adminPassword": "Abcdefg1!"}


def network(cloud: Cloud, location: str = "eastus") -> None:
    """A group, vnet/subnet1, an NSG, and for each of three VMs an interface with an address."""
    cloud.group("rg", location)
    subnets = [{"name": "subnet1", "properties": {"addressPrefix": "10.0.0.0/24"}}]
    space = {"addressPrefixes": ["10.0.0.0/16"]}
    body: dict[str, Any] = {"location": location, "properties": {"addressSpace": space, "subnets": subnets}}
    vnet = cloud.network.virtual_networks.begin_create_or_update("rg", "vnet", body).result()
    nsg = cloud.network.network_security_groups.begin_create_or_update("rg", "nsg", {"location": location}).result()
    for name in ("one", "two", "three"):
        sku = {"name": "Standard", "tier": "Regional"}
        address = {
            "location": location,
            "tags": {},
            "sku": sku,
            "properties": {"publicIPAllocationMethod": "Static"},
        }
        ip = cloud.network.public_ip_addresses.begin_create_or_update("rg", f"ip-{name}", address).result()
        inner = {"subnet": {"id": vnet.subnets[0].id}, "publicIPAddress": {"id": ip.id}}
        properties = {
            "ipConfigurations": [{"name": "ipconfig", "properties": inner}],
            "networkSecurityGroup": {"id": nsg.id},
        }
        nic = {"location": location, "tags": {}, "properties": properties}
        cloud.network.network_interfaces.begin_create_or_update("rg", f"nic-{name}", nic).result()


def vm(cloud: Cloud, name: str, storage: dict[str, Any], location: str = "eastus", **properties: Any) -> Any:
    nic = {"id": f"{cloud.subscription}/resourceGroups/rg/providers/Microsoft.Network/networkInterfaces/nic-{name}"}
    body = cloud.vm_body(
        "",
        storageProfile=storage,
        osProfile=password(f"vm-{name}"),
        networkProfile={"networkInterfaces": [nic]},
        **properties,
    )
    body |= {"location": location, "tags": {}}
    return cloud.compute.virtual_machines.begin_create_or_update("rg", f"vm-{name}", body).result()


NAMES = {"rg": "rg", "vnet": "vnet", "subnet": "subnet1", "nsg": "nsg", "ipconfig": "ipconfig"}


def of(name: str) -> dict[str, str]:
    return {"vm": f"vm-{name}", "nic": f"nic-{name}", "ip": f"ip-{name}"}


def test_managed_run_commands(cloud: Cloud) -> None:
    network(cloud, "westus")
    made = vm(cloud, "one", image("OpenLogic", "CentOS", "7.5"), "westus")
    replay = Replay(cloud, NAMES | of("one"))
    for number, exchange in recorded("test_run_command_v2.yaml").items():
        replay.send(exchange)
        if number == 5:
            cloud.machines.finish(made.vm_id, "cmd/1", "Succeeded")
    replay.check(OLD_URLS | OLD_LIMITS)


def test_resource_groups(cloud: Cloud) -> None:
    cloud.group("rg", "westus")
    replay = Replay(cloud, NAMES)
    for exchange in recorded("test_resource_group.yaml").values():
        replay.send(exchange)
    replay.check({})


def test_the_run_command_action(cloud: Cloud) -> None:
    network(cloud, "westus")
    made = vm(cloud, "one", image("OpenLogic", "CentOS", "7.5"), "westus")
    replay = Replay(cloud, NAMES | of("one"))
    for number, exchange in recorded("test_vm_run_command_e2e.yaml").items():
        replay.send(exchange)
        if number == 4:
            key = next(iter(cloud.machines.scripts(made.vm_id)))
            cloud.machines.finish(made.vm_id, key, "Succeeded", "installed")
    replay.check(
        OLD_URLS
        | OLD_LIMITS
        | {
            r"#3 header azure-asyncnotification added": NOTIFICATION,
            r"#[56] value of .*message: .*": "the output of another script",
        }
    )


def test_evictions_of_regular_spot_and_delete_vms(cloud: Cloud) -> None:
    network(cloud)
    centos = image("OpenLogic", "CentOS", "7.5")
    size = {"vmSize": "Standard_DS1_v2"}
    vm(cloud, "one", centos, hardwareProfile=size, priority="Regular")
    exchanges = recorded("test_vm_simulate_eviction.yaml")
    replay = Replay(cloud, NAMES | of("one"))
    for number in (1, 2, 3, 4, 5, 6):
        replay.send(exchanges[number])
    two = vm(cloud, "two", centos, hardwareProfile=size)
    replay.names |= of("two")
    for number in (7, 8, 9):
        replay.send(exchanges[number])
    cloud.machines.cut(two.vm_id, OffCause.EVICTED)
    cloud.await_power("deallocated", "vm-two", "rg")
    replay.send(exchanges[10])
    replay.names |= of("three") | {"deployment": "vm_deploy", "password": "Abcdefg1!"}
    replay.names |= {"nic": "nic-3", "ip": "ip-3", "nsg": "nsg-3"}
    for number in (11, 12, 13, 14, 15, 16, 17):
        replay.send(exchanges[number])
    three = cloud.compute.virtual_machines.get("rg", "vm-three")
    cloud.machines.cut(three.vm_id, OffCause.EVICTED)
    for number in (18, 19):
        replay.send(exchanges[number])
    newer = "newer than the api-version of the recording, 2022-01-01"
    replay.check(
        {
            r"#(7|16) added .*\.(auxiliarySku|disableTcpStateTracking)": newer,
            r"#8 added .*\.ddosSettings.*": newer,
            r"#2 added .*\.sizeInGb": "some images of Azure have it, others not",
        }
    )


def test_a_low_priority_vm_becomes_spot_while_deallocated(cloud: Cloud) -> None:
    network(cloud, "westus")
    disk = {"name": "disk", "caching": "ReadWrite"}
    vm(
        cloud,
        "one",
        image("Canonical", "UbuntuServer", "16.04-LTS", disk),
        "westus",
        priority="Low",
        evictionPolicy="Deallocate",
        billingProfile={"maxPrice": 50},
        securityProfile={"securityType": "Standard"},
    )
    replay = Replay(cloud, NAMES | of("one") | {"disk": "disk"})
    for exchange in recorded("test_vm_priority_eviction_billing.yaml").values():
        replay.send(exchange)
    replay.check({})


def test_public_addresses(cloud: Cloud) -> None:
    cloud.group("rg", "westus")
    exchanges = recorded("test_network_public_ip.yaml")
    replay = Replay(cloud, NAMES | {"ip": "one", "label": "label"})
    for number in (1, 2, 3):
        replay.send(exchanges[number])
    tagged = {"location": "westus", "tags": {"foo": "doo"}, "properties": exchanges[1]["request"]["properties"]}
    path = "/resourceGroups/rg/providers/Microsoft.Network/publicIPAddresses/two"
    cloud.finish(cloud.call("PUT", path, tagged))
    for number in range(7, 13):
        replay.send(exchanges[number])
    replay.check(OLD_URLS)


def test_terms_of_a_marketplace_image(cloud: Cloud) -> None:
    replay = Replay(cloud, NAMES)
    signatures = []
    for exchange in recorded("test_vm_image_terms.yaml").values():
        reply = replay.send(exchange)
        signatures.append(reply.body["properties"].get("signature"))
    accepted, canceled = signatures[3], signatures[6]
    assert accepted == canceled == "{sig2}"
    assert len(set(signatures[1:3] + signatures[4:6])) == 4
    replay.check({})


def test_power_states_of_a_regular_vm(cloud: Cloud) -> None:
    network(cloud)
    vm(cloud, "one", image("OpenLogic", "CentOS", "7.5"), hardwareProfile={"vmSize": "Standard_B2s"}, priority=None)
    replay = Replay(cloud, NAMES | of("one"))
    for exchange in recorded("test_vm_create_state_modifications.yaml").values():
        replay.send(exchange)
    unmanaged = "the recorded VM has an unmanaged disk, which Azure retired in 2026"
    extension = "the recorded VM has the extension VMAccessForLinux"
    replay.check(
        {
            r"#\d+ missing .*\.osDisk\.(vhd|vhd\.uri|diskSizeGB)": unmanaged,
            r"#\d+ added .*\.osDisk\.managedDisk.*": unmanaged,
            r"#\d+ missing .*(extension|resources).*": extension,
            r"#\d+ missing .*\.tags\..*": "the recorded VM has tags",
            r"#30 header x-ms-ratelimit-remaining-resource added": "Azure leaves it out of an empty list",
        }
    )


def test_redeploying_and_powering_off(cloud: Cloud) -> None:
    network(cloud, "westus")
    vm(cloud, "one", image("OpenLogic", "CentOS", "7.5"), "westus")
    replay = Replay(cloud, NAMES | of("one"))
    path = "/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/vm-one/redeploy"
    replay.begun = cloud.call("POST", path, version="2022-11-01")  # not recorded: what it polled is
    for source in ("test_vm_redeploy.yaml", "test_vm_generalize.yaml"):
        for exchange in recorded(source).values():
            replay.send(exchange)
    replay.check(OLD_URLS | OLD_LIMITS)


def test_interfaces(cloud: Cloud) -> None:
    network(cloud, "eastus2")
    replay = Replay(cloud, NAMES | of("one"))
    for name in ("two", "three"):
        cloud.network.network_interfaces.begin_delete("rg", f"nic-{name}").result()
    for exchange in recorded("test_network_nic.yaml").values():
        replay.send(exchange)
    replay.check(
        {
            r"#1 missing .*\.(internalDnsNameLabel|internalFqdn)": "sent with the recorded interface",
            r"#1 added \$\.tags": "sent with ours",
        }
    )


def test_the_life_of_a_vm_in_the_python_sdks_recording(cloud: Cloud) -> None:
    network(cloud)
    exchanges = recorded("azure-sdk-for-python:test_compute_vm.json")
    replay = Replay(cloud, NAMES | of("one") | {"nic": "new"})
    for number in (1, 2, 3):
        replay.send(exchanges[number])
    vm(cloud, "one", image("OpenLogic", "CentOS", "7.5"))
    for number in range(7, 18):
        replay.send(exchanges[number])
    replay.check(OLD_URLS | OLD_LIMITS | {r"#[13] added .*\.auxiliary(Mode|Sku)": "newer than api-version 2022-05-01"})


def test_usages(cloud: Cloud) -> None:
    replay = Replay(cloud, NAMES)
    replay.send(next(iter(recorded("test_vm_usage.yaml").values())))
    replay.check({})
