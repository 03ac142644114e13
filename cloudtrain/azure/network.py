"""The run's virtual network and its network security group, which has no inbound rule but the one for SSH."""

from typing import Any

from cloudtrain.azure import names
from cloudtrain.azure.errors import is_missing, translated
from cloudtrain.azure.group import Group
from cloudtrain.azure.session import Session
from cloudtrain.azure.words import word


def create_vnet(session: Session, group: Group) -> str:
    """Make the network with its one subnet; returns the subnet's id. Made already: nothing changes."""
    name = names.vnet(group.run, group.elsewhere)
    known = _made_before(session.network.virtual_networks, group, name)
    ours = [subnet.id for subnet in (known.subnets or [] if known else []) if subnet.name == names.SUBNET]
    if ours:
        return str(ours[0])
    body: dict[str, Any] = {
        "location": group.place.location,
        "properties": {
            "addressSpace": {"addressPrefixes": ["10.0.0.0/16"]},
            "subnets": [{"name": names.SUBNET, "properties": {"addressPrefix": "10.0.0.0/24"}}],
        },
    }
    with translated("creating the virtual network"):
        made = session.network.virtual_networks.begin_create_or_update(
            group.name, name, body, polling=session.polling()
        ).result()
    return str(made.subnets[0].id)


def create_nsg(session: Session, group: Group) -> str:
    """Make the security group, or give it the rules that the spec asks for; returns its id. Azure's own rules deny
    every other inbound connection from outside."""
    rules = [_ssh_rule(group.spec.ssh)] if group.spec.ssh else []
    name = names.nsg(group.run, group.elsewhere)
    known = _made_before(session.network.network_security_groups, group, name)
    if known is not None and _rules_of(known) == rules:
        return str(known.id)
    body = {"location": group.place.location, "properties": {"securityRules": rules}}
    with translated("creating the network security group"):
        made = session.network.network_security_groups.begin_create_or_update(
            group.name, name, body, polling=session.polling()
        ).result()
    return str(made.id)


def _made_before(operations: Any, group: Group, name: str) -> Any:
    """The network or security group, where it is there and whole: making it again would take Azure 10 s."""
    found = _found(operations, group, name, "looking for the network")
    return found if found is not None and word(found.provisioning_state) == "Succeeded" else None


def _found(operations: Any, group: Group, name: str, doing: str) -> Any:
    """None where there is none of that name."""
    from azure.core.exceptions import HttpResponseError

    with translated(doing):
        try:
            return operations.get(group.name, name)
        except HttpResponseError as error:
            if is_missing(error):
                return None
            raise


def _rules_of(nsg: Any) -> list[dict[str, Any]]:
    """As `create_nsg` writes them."""
    return [
        {
            "name": rule.name,
            "properties": {
                "protocol": word(rule.protocol),
                "sourcePortRange": rule.source_port_range,
                "sourceAddressPrefix": rule.source_address_prefix,
                "destinationAddressPrefix": rule.destination_address_prefix,
                "destinationPortRange": rule.destination_port_range,
                "access": word(rule.access),
                "priority": rule.priority,
                "direction": word(rule.direction),
            },
        }
        for rule in nsg.security_rules or []
    ]


SSH_RULE = "ssh"


def _ssh_rule(source: str) -> dict[str, Any]:
    return {
        "name": SSH_RULE,
        "properties": {
            "protocol": "Tcp",
            "sourcePortRange": "*",
            "sourceAddressPrefix": source,
            "destinationAddressPrefix": "*",
            "destinationPortRange": "22",
            "access": "Allow",
            "priority": 1000,
            "direction": "Inbound",
        },
    }


def ssh_source(session: Session, group: Group) -> str | None:
    """The network that the security group lets in for SSH; None where it lets in nobody."""
    name = names.nsg(group.run, group.elsewhere)
    found = _found(session.network.network_security_groups, group, name, "reading the network security group")
    if found is None:
        return None
    rules = [rule for rule in found.security_rules or [] if rule.name == SSH_RULE]
    return str(rules[0].source_address_prefix) if rules else None


def public_ip(session: Session, group: Group) -> str | None:
    """The VM's public address, None while it has none."""
    ours = names.public_ip(group.run, group.generation).lower()
    with translated("reading the public address"):
        for address in session.network.public_ip_addresses.list(group.name):
            if address.ip_address and str(address.name).lower().startswith(ours):
                return str(address.ip_address)
    return None


def foreign_vnets(session: Session, group_name: str) -> list[str]:
    """Ids of the subscription's virtual networks outside that group."""
    mark = f"/resourcegroups/{group_name}/".lower()
    with translated("listing virtual networks"):
        return [str(v.id) for v in session.network.virtual_networks.list_all() if mark not in v.id.lower()]
