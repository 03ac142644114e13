"""What network security groups let in, as Azure decides it: by priority, at the network interface and at its subnet.

Of an emulated internet only one address matters: the one from which this machine's requests come.
"""

import ipaddress
from typing import Any

from cloudtrain.emulator import ids, network
from cloudtrain.emulator.operations import Azure, Kind
from cloudtrain.emulator.store import Json, Operation, Records, Resource
from cloudtrain.emulator.wire import same

CALLER = "198.19.255.254"
SSH_PORT = 22
_EVERYBODY = ("*", "internet", "any", "0.0.0.0/0")


def lets_in(records: Records, vm: Resource, source: str = CALLER, port: int = SSH_PORT) -> bool:
    """Whether TCP from `source` reaches that port of the VM. A Standard address without any group lets nobody in."""
    groups = [nsg for nic in _nics(records, vm) for nsg in _groups_of(records, nic)]
    return bool(groups) and all(_allows(nsg, source, port) for nsg in groups)


def _enforce(azure: Azure, operation: Operation) -> None:
    """A group's rules hold at once, also for VMs that run."""
    with azure.store.read() as records:
        behind = {
            vm.private["vm_id"]: lets_in(records, vm)
            for nic in _nics_behind(records, operation.target)
            for vm in records.resources(ids.VM, mentions=nic.id)
        }
    for vm_id, allowed in behind.items():
        azure.machines.open_ssh(vm_id, allowed)


KINDS = {"network.rules": Kind(_enforce, settle=network.settle_put)}


def _nics(records: Records, vm: Resource) -> list[Resource]:
    found = [records.resource(one["id"]) for one in vm.body["properties"]["networkProfile"]["networkInterfaces"]]
    return [nic for nic in found if nic is not None]


def _nics_behind(records: Records, nsg_id: str) -> list[Resource]:
    """Those that the group holds for, itself or at their subnet."""
    subnets = [
        subnet["id"]
        for vnet in records.resources(ids.VNET, mentions=nsg_id)
        for subnet in vnet.body["properties"]["subnets"]
    ]
    users = [nic for user in (nsg_id, *subnets) for nic in records.resources(ids.NIC, mentions=user)]
    return [nic for nic in users if any(same(nsg.id, nsg_id) for nsg in _groups_of(records, nic))]


def _groups_of(records: Records, nic: Resource) -> list[Resource]:
    references = [nic.body["properties"].get("networkSecurityGroup")]
    for configuration in nic.body["properties"]["ipConfigurations"]:
        vnet_id, _, name = str(configuration["properties"]["subnet"]["id"]).rpartition("/subnets/")
        vnet = records.resource(vnet_id)
        subnet = network.subnet_of(vnet, name) if vnet else None
        references.append((subnet or {}).get("properties", {}).get("networkSecurityGroup"))
    found = [records.resource(reference["id"]) for reference in references if reference]
    return [nsg for nsg in found if nsg is not None]


def _allows(nsg: Resource, source: str, port: int) -> bool:
    rules = [rule["properties"] for rule in nsg.body["properties"]["securityRules"]]
    for rule in sorted(rules, key=lambda rule: int(rule["priority"])):
        if same(rule["direction"], "Inbound") and _matches(rule, source, port):
            return same(rule["access"], "Allow")
    return False  # DenyAllInBound


def _matches(rule: Json, source: str, port: int) -> bool:
    ports = _several(rule, "destinationPortRange", "destinationPortRanges")
    sources = _several(rule, "sourceAddressPrefix", "sourceAddressPrefixes")
    return (
        rule["protocol"].lower() in ("tcp", "*")
        and any(_holds(one, port) for one in ports)
        and any(_covers(one, source) for one in sources)
    )


def _several(rule: Json, one: str, many: str) -> list[str]:
    return [str(value) for value in [rule.get(one), *(rule.get(many) or [])] if value]


def _holds(ports: str, port: int) -> bool:
    first, _, last = ports.partition("-")
    return ports == "*" or int(first) <= port <= int(last or first)


def _covers(prefix: str, source: Any) -> bool:
    if prefix.lower() in _EVERYBODY:
        return True
    try:
        return ipaddress.ip_address(source) in ipaddress.ip_network(prefix, strict=False)
    except ValueError:  # a service tag: none of them holds the caller
        return False
