"""Virtual networks, subnets, network security groups and the network watchers that Azure makes by itself."""

import ipaddress
from typing import Any

from cloudtrain.emulator import ids, operations, preconditions, resources
from cloudtrain.emulator.operations import Azure, Kind, Outcome
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Operation, Records, Resource
from cloudtrain.emulator.wire import Answer, ArmError, Request, entries, guid, same, section, text

NAMESPACE = "Microsoft.Network"
NAME_PATTERN = r"\w[\w.-]*\w|\w|\w[\w.-]*_"
WATCHER_GROUP = "NetworkWatcherRG"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


# what all network resources share


def etag() -> str:
    return f'W/"{guid()}"'


def existing(records: Records, request: Request, type_: str, group: str, name: str) -> Resource | None:
    return records.resource(ids.resource_id(request.subscription, group, type_, name))


def found(records: Records, request: Request, type_: str, group: str, name: str) -> Resource:
    """Raises the 404 of ARM: of the group, or of the resource."""
    preconditions.readable_group(records, request.subscription, group)
    resource = existing(records, request, type_, group, name)
    if resource is None:
        raise preconditions.resource_not_found(type_, name, group)
    return resource


def referred(records: Records, reference: str, by: str) -> Resource:
    """The resource that another one names. Raises InvalidResourceReference."""
    resource = records.resource(reference)
    if resource is None:
        raise missing_reference(reference, by)
    return resource


def missing_reference(reference: str, by: str) -> ArmError:
    return ArmError(
        400,
        "InvalidResourceReference",
        f"Resource {reference} referenced by resource {by} was not found. Please make sure that the "
        "referenced "
        "resource exists, and that both resources are in the same region.",
    )


def new(
    azure: Azure, request: Request, type_: str, group: Resource, name: str, location: str, properties: Json
) -> Resource:
    resource_id = ids.resource_id(request.subscription, group.name, type_, name)
    body: Json = {
        "name": name,
        "id": resource_id,
        "etag": etag(),
        "type": type_,
        "location": location,
        "properties": {"provisioningState": "Updating", "resourceGuid": guid(), **properties},
    }
    return Resource(resource_id, type_, name, location, body, created=azure.now(), changed=azure.now())


def prepared(
    azure: Azure, records: Records, request: Request, type_: str, group: str, name: str
) -> tuple[Resource, Resource | None, str]:
    """The group, what exists of that name, and the region: everything ARM checks before a PUT reaches
    Network."""
    home = preconditions.writable_group(records, request.subscription, group)
    preconditions.registered(records, NAMESPACE)
    preconditions.resource_name(name, type_, NAME_PATTERN, 80)
    body = request.object()
    location = preconditions.location(body, type_)
    known = existing(records, request, type_, group, name)
    preconditions.same_location(known, location, home.name)
    if known is not None and records.open_operations(target=known.key):
        raise in_flight(known)
    return home, known, location


def in_flight(resource: Resource) -> ArmError:
    return ArmError(
        429,
        "RetryableErrorDueToAnotherOperation",
        f"Operation PutOperation (x) on resource {resource.id} is in progress. Please retry once it has finished.",
        headers={"Retry-After": "1"},
    )


def stored(azure: Azure, records: Records, request: Request, resource: Resource, known: Resource | None) -> Answer:
    """Keep a resource that was PUT, and answer as Network does: 201 new, 200 changed,
    Azure-AsyncOperation."""
    tags = preconditions.tags(request.object().get("tags"))
    if tags is not None:
        resource.body["tags"] = tags
    resource.changed = azure.now()
    resource.private["provisioning"] = "Updating"
    records.put(resource)
    kind = "network.rules" if resource.type == ids.NSG else "network.put"
    operation = operations.begin(azure, records, kind, resource.key)
    shown = {**resource.body, "properties": {**resource.body["properties"], "provisioningState": "Updating"}}
    return operations.accepted(
        request, operation, NAMESPACE, resource.location, status=200 if known else 201, body=shown
    )


def begin_delete(azure: Azure, records: Records, request: Request, resource: Resource) -> Answer:
    resource.private["provisioning"] = resource.body["properties"]["provisioningState"] = "Deleting"
    records.put(resource)
    for other in records.open_operations(target=resource.key):
        operations.cancel(records, other, azure.now())
    operation = operations.begin(azure, records, "network.delete", resource.key)
    return operations.accepted(request, operation, NAMESPACE, resource.location, status=202, with_location=True)


def settle_put(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    resource = records.resource(operation.target)
    if resource is None:
        return
    state = "Succeeded" if outcome.error is None else "Failed"
    resource.private["provisioning"] = resource.body["properties"]["provisioningState"] = state
    resource.body["etag"] = etag()
    for part in ("subnets", "securityRules", "ipConfigurations"):
        for child in resource.body["properties"].get(part, []):
            child["properties"]["provisioningState"] = state
            child["etag"] = resource.body["etag"]
    records.put(resource)


def _settle_delete(azure: Azure, records: Records, operation: Operation, outcome: Outcome) -> None:
    resource = records.resource(operation.target)
    if outcome.error is None:
        records.delete(operation.target)
    elif resource is not None:
        resource.private["provisioning"] = resource.body["properties"]["provisioningState"] = "Failed"
        records.put(resource)


KINDS = {"network.put": Kind(settle=settle_put), "network.delete": Kind(settle=_settle_delete)}


def get_operation(azure: Azure, request: Request, location: str, operation: str) -> Answer:
    return operations.poll(operations.find(azure, operation), brief=True)


def get_operation_result(azure: Azure, request: Request, location: str, operation: str) -> Answer:
    current = operations.find(azure, operation)
    root = f"{request.base}/subscriptions/{request.subscription}/providers/{NAMESPACE}/locations/{location}"
    query = "&".join(f"{key}={value}" for key, value in request.query.items())
    headers = {
        "Azure-AsyncNotification": "Enabled",
        "Azure-AsyncOperation": f"{root}/operations/{operation}?{query}",
        "Location": f"{root}/operationResults/{operation}?{query}",
    }
    if current.open:
        return Answer(202, None, {**headers, **operations.polling_headers(current)})
    return Answer(204, None, headers)


def patch_tags(azure: Azure, request: Request, type_: str, group: str, name: str) -> Answer:
    """UpdateTags: synchronous, and nothing but tags."""
    tags = preconditions.tags(request.object().get("tags"))
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        resource = found(records, request, type_, group, name)
        if tags is not None:
            resource.body["tags"] = tags
        resource.changed = azure.now()
        records.put(resource)
    return Answer(200, resource.body)


def _list(records: Records, request: Request, type_: str, group: str | None) -> list[Resource]:
    if group is not None:
        preconditions.readable_group(records, request.subscription, group)
    return records.resources(type_, group)


# virtual networks


def _networks(prefixes: Any, where: str) -> list[Network]:
    try:
        if not isinstance(prefixes, list) or not prefixes:
            raise ValueError
        return [ipaddress.ip_network(prefix, strict=True) for prefix in prefixes]
    except ValueError:
        raise ArmError(
            400,
            "InvalidAddressPrefixFormat",
            f"Address prefix {prefixes} for resource {where} is not formatted correctly. It should follow "
            "CIDR "
            "notation, for example 10.0.0.0/24.",
        ) from None


def _subnet(vnet_id: str, given: Json, space: list[Network], before: Json | None) -> Json:
    name = text(given, "name", "subnets") or ""
    preconditions.resource_name(name, f"{ids.VNET}/subnets", NAME_PATTERN, 80)
    properties = section(given, "properties")
    prefixes = properties.get("addressPrefixes") or [properties.get("addressPrefix")]
    subnet_id = f"{vnet_id}/subnets/{name}"
    for network in _networks(prefixes, subnet_id):
        if not any(network.version == s.version and network.subnet_of(s) for s in space):  # type: ignore[arg-type]
            raise ArmError(
                400,
                "NetcfgInvalidSubnet",
                f"Subnet '{name}' is not valid in virtual network '{vnet_id.rsplit('/', 1)[-1]}'.",
            )
    kept: Json = {"provisioningState": "Updating", "addressPrefix": prefixes[0]}
    for key in ("networkSecurityGroup", "defaultOutboundAccess", "serviceEndpoints"):
        if properties.get(key) is not None:
            kept[key] = properties[key]
    kept["delegations"] = properties.get("delegations") or []
    kept["privateEndpointNetworkPolicies"] = properties.get("privateEndpointNetworkPolicies") or "Disabled"
    kept["privateLinkServiceNetworkPolicies"] = properties.get("privateLinkServiceNetworkPolicies") or "Enabled"
    return {
        "name": name,
        "id": before["id"] if before else subnet_id,
        "etag": etag(),
        "properties": kept,
        "type": f"{ids.VNET}/subnets",
    }


def _check_overlap(subnets: list[Json]) -> None:
    taken: list[tuple[str, Network]] = []
    for subnet in subnets:
        network = ipaddress.ip_network(subnet["properties"]["addressPrefix"])
        for name, other in taken:
            if network.version == other.version and network.overlaps(other):
                raise ArmError(
                    400,
                    "NetcfgSubnetRangesOverlap",
                    f"Subnet '{subnet['name']}' is not valid because its IP address range overlaps with that "
                    "of an "
                    f"existing subnet in virtual network: '{name}'.",
                )
        taken.append((subnet["name"], network))


def subnet_of(vnet: Resource, name: str) -> Json | None:
    return next((s for s in vnet.body["properties"]["subnets"] if same(s["name"], name)), None)


def configurations_in(records: Records, subnet_id: str) -> list[str]:
    """The ids of the ipConfigurations whose network interfaces use the subnet."""
    return [
        configuration["id"]
        for nic in records.resources(ids.NIC, mentions=subnet_id)
        for configuration in nic.body["properties"]["ipConfigurations"]
        if same(configuration["properties"].get("subnet", {}).get("id", ""), subnet_id)
    ]


def _show_vnet(records: Records, vnet: Resource) -> Json:
    shown = {**vnet.body, "properties": dict(vnet.body["properties"])}
    shown["properties"]["subnets"] = [_show_subnet(records, subnet) for subnet in vnet.body["properties"]["subnets"]]
    return shown


def _show_subnet(records: Records, subnet: Json) -> Json:
    users = configurations_in(records, subnet["id"])
    if not users:
        return subnet
    return {
        **subnet,
        "properties": {**subnet["properties"], "ipConfigurations": [{"id": user} for user in users]},
    }


def put_vnet(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        home, known, location = prepared(azure, records, request, ids.VNET, group, name)
        given = section(request.object(), "properties")
        vnet_id = known.id if known else ids.resource_id(request.subscription, home.name, ids.VNET, name)
        prefixes = section(given, "addressSpace").get("addressPrefixes")
        space = _networks(prefixes, vnet_id)
        old = {s["name"].lower(): s for s in known.body["properties"]["subnets"]} if known else {}
        wanted = entries(given, "subnets", "properties")
        subnets = [_subnet(vnet_id, s, space, old.get(str(s.get("name")).lower())) for s in wanted]
        _check_overlap(subnets)
        for gone in [s for key, s in old.items() if key not in {n["name"].lower() for n in subnets}]:
            _refuse_used_subnet(records, gone)
        for subnet in subnets:
            _check_nsg(records, subnet)
        properties: Json = {"addressSpace": {"addressPrefixes": prefixes}, "subnets": subnets}
        if section(given, "dhcpOptions"):
            properties["dhcpOptions"] = given["dhcpOptions"]
        properties |= {"virtualNetworkPeerings": [], "enableDdosProtection": False}
        vnet = known or new(azure, request, ids.VNET, home, name, location, {})
        vnet.body["properties"].update(properties)
        _ensure_watcher(azure, records, request, location)
        return stored(azure, records, request, vnet, known)


def _check_nsg(records: Records, subnet: Json) -> None:
    reference = subnet["properties"].get("networkSecurityGroup")
    if reference is not None:
        referred(records, reference.get("id", ""), subnet["id"])


def _refuse_used_subnet(records: Records, subnet: Json) -> None:
    users = configurations_in(records, subnet["id"])
    if users:
        raise ArmError(
            400,
            "InUseSubnetCannotBeDeleted",
            f"Subnet {subnet['name']} is in use by {users[0]} and cannot be deleted. In order to delete the "
            "subnet, "
            "delete all the resources within the subnet. See aka.ms/deletesubnet.",
        )


def _ensure_watcher(azure: Azure, records: Records, request: Request, location: str) -> None:
    """Azure enables Network Watcher for a region with its first virtual network, in a group of its own."""
    group = records.resource(ids.group_id(request.subscription, WATCHER_GROUP))
    if group is None:
        group = resources.new_group(records, azure, request.subscription, WATCHER_GROUP, location)
    if group.body["properties"]["provisioningState"] == "Deleting":
        return
    name = f"NetworkWatcher_{location}"
    if existing(records, request, ids.WATCHER, group.name, name) is None:
        watcher = new(azure, request, ids.WATCHER, group, name, location, {})
        watcher.body["properties"]["provisioningState"] = "Succeeded"
        watcher.body["properties"].pop("resourceGuid")
        records.put(watcher)


def get_vnet(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        vnet = found(records, request, ids.VNET, group, name)
        return Answer(200, _show_vnet(records, vnet), {"ETag": vnet.body["etag"]})


def list_vnets(azure: Azure, request: Request, group: str | None = None) -> Answer:
    with azure.store.read() as records:
        vnets = _list(records, request, ids.VNET, group)
        return Answer(200, {"value": [_show_vnet(records, vnet) for vnet in vnets]})


def delete_vnet(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        vnet = existing(records, request, ids.VNET, group, name)
        if vnet is None:
            return Answer(204)
        for subnet in vnet.body["properties"]["subnets"]:
            _refuse_used_subnet(records, subnet)
        return begin_delete(azure, records, request, vnet)


def patch_vnet(azure: Azure, request: Request, group: str, name: str) -> Answer:
    return patch_tags(azure, request, ids.VNET, group, name)


# subnets


def _found_subnet(records: Records, request: Request, group: str, name: str, subnet: str) -> tuple[Resource, Json]:
    vnet = found(records, request, ids.VNET, group, name)
    inside = subnet_of(vnet, subnet)
    if inside is None:
        raise ArmError(404, "NotFound", f"Resource {vnet.id}/subnets/{subnet} not found.")
    return vnet, inside


def get_subnet(azure: Azure, request: Request, group: str, name: str, subnet: str) -> Answer:
    with azure.store.read() as records:
        _, inside = _found_subnet(records, request, group, name, subnet)
        return Answer(200, _show_subnet(records, inside), {"ETag": inside["etag"]})


def list_subnets(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        vnet = found(records, request, ids.VNET, group, name)
        return Answer(200, {"value": [_show_subnet(records, s) for s in vnet.body["properties"]["subnets"]]})


def put_subnet(azure: Azure, request: Request, group: str, name: str, subnet: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        preconditions.registered(records, NAMESPACE)
        vnet = found(records, request, ids.VNET, group, name)
        space = _networks(vnet.body["properties"]["addressSpace"]["addressPrefixes"], vnet.id)
        old = subnet_of(vnet, subnet)
        made = _subnet(vnet.id, {**request.object(), "name": subnet}, space, old)
        _check_nsg(records, made)
        others = [s for s in vnet.body["properties"]["subnets"] if not same(s["name"], subnet)]
        _check_overlap([*others, made])
        position = vnet.body["properties"]["subnets"].index(old) if old else len(others)
        vnet.body["properties"]["subnets"] = [*others[:position], made, *others[position:]]
        records.put(vnet)
        operation = operations.begin(azure, records, "network.put", vnet.key)
        return operations.accepted(
            request,
            operation,
            NAMESPACE,
            vnet.location,
            status=200 if old else 201,
            body=_show_subnet(records, made),
        )


def delete_subnet(azure: Azure, request: Request, group: str, name: str, subnet: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        vnet = found(records, request, ids.VNET, group, name)
        inside = subnet_of(vnet, subnet)
        if inside is None:
            return Answer(204)
        _refuse_used_subnet(records, inside)
        vnet.body["properties"]["subnets"].remove(inside)
        records.put(vnet)
        operation = operations.begin(azure, records, "network.put", vnet.key)
        return operations.accepted(request, operation, NAMESPACE, vnet.location, status=202, with_location=True)


# network security groups


def _rule(nsg_id: str, given: Json, kind: str = "securityRules") -> Json:
    properties = {key: value for key, value in section(given, "properties").items() if value is not None}
    name = text(given, "name", kind) or ""
    for key in ("access", "direction", "priority", "protocol"):
        if key not in properties:
            raise ArmError(
                400,
                "SecurityRuleParameterNotSpecified",
                f"Required parameter {key} is not specified for security rule {name}.",
            )
    if not 100 <= int(properties["priority"]) <= 4096:
        raise ArmError(
            400,
            "SecurityRuleInvalidPriority",
            f"Security rule has invalid Priority. Value provided: {properties['priority']} Allowed range 100-4096.",
        )
    for plural in ("Ranges", "Prefixes"):
        for side in ("source", "destination"):
            key = f"{side}{'Port' if plural == 'Ranges' else 'Address'}{plural}"
            properties.setdefault(key, [])
    return _rule_body(nsg_id, name, kind, properties)


def _rule_body(nsg_id: str, name: str, kind: str, properties: Json) -> Json:
    singular = "securityRules" if kind == "securityRules" else "defaultSecurityRules"
    return {
        "name": name,
        "id": f"{nsg_id}/{singular}/{name}",
        "etag": etag(),
        "type": f"{ids.NSG}/{singular}",
        "properties": {"provisioningState": "Updating", **properties},
    }


_VNET, _ANY = "VirtualNetwork", "*"
_DEFAULT_RULES = (
    ("AllowVnetInBound", "inbound traffic from all VMs in VNET", _VNET, _VNET, "Allow", 65000),
    (
        "AllowAzureLoadBalancerInBound",
        "inbound traffic from azure load balancer",
        "AzureLoadBalancer",
        _ANY,
        "Allow",
        65001,
    ),
    ("DenyAllInBound", "all inbound traffic", _ANY, _ANY, "Deny", 65500),
    ("AllowVnetOutBound", "outbound traffic from all VMs to all VMs in VNET", _VNET, _VNET, "Allow", 65000),
    ("AllowInternetOutBound", "outbound traffic from all VMs to Internet", _ANY, "Internet", "Allow", 65001),
    ("DenyAllOutBound", "all outbound traffic", _ANY, _ANY, "Deny", 65500),
)


def _default_rules(nsg_id: str) -> list[Json]:
    rules = []
    for name, what, source, destination, access, priority in _DEFAULT_RULES:
        properties: Json = {
            "description": f"{access} {what}",
            "protocol": "*",
            "sourcePortRange": "*",
            "destinationPortRange": "*",
            "sourceAddressPrefix": source,
            "destinationAddressPrefix": destination,
            "access": access,
            "priority": priority,
            "direction": "Inbound" if name.endswith("InBound") else "Outbound",
            "sourcePortRanges": [],
            "destinationPortRanges": [],
            "sourceAddressPrefixes": [],
            "destinationAddressPrefixes": [],
        }
        rule = _rule_body(nsg_id, name, "defaultSecurityRules", properties)
        rule["properties"]["provisioningState"] = "Succeeded"
        rules.append(rule)
    return rules


def _users_of_nsg(records: Records, nsg: Resource) -> tuple[list[str], list[str]]:
    """The ids of the network interfaces and of the subnets that refer to it."""
    nics = [
        nic.id
        for nic in records.resources(ids.NIC, mentions=nsg.id)
        if same((nic.body["properties"].get("networkSecurityGroup") or {}).get("id", ""), nsg.id)
    ]
    subnets = [
        subnet["id"]
        for vnet in records.resources(ids.VNET, mentions=nsg.id)
        for subnet in vnet.body["properties"]["subnets"]
        if same((subnet["properties"].get("networkSecurityGroup") or {}).get("id", ""), nsg.id)
    ]
    return nics, subnets


def _show_nsg(records: Records, nsg: Resource) -> Json:
    nics, subnets = _users_of_nsg(records, nsg)
    shown = {**nsg.body, "properties": dict(nsg.body["properties"])}
    if nics:
        shown["properties"]["networkInterfaces"] = [{"id": nic} for nic in nics]
    if subnets:
        shown["properties"]["subnets"] = [{"id": subnet} for subnet in subnets]
    return shown


def put_nsg(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        home, known, location = prepared(azure, records, request, ids.NSG, group, name)
        nsg = known or new(azure, request, ids.NSG, home, name, location, {})
        rules = entries(section(request.object(), "properties"), "securityRules", "properties")
        nsg.body["properties"]["securityRules"] = [_rule(nsg.id, rule) for rule in rules]
        _check_priorities(nsg)
        nsg.body["properties"]["defaultSecurityRules"] = _default_rules(nsg.id)
        return stored(azure, records, request, nsg, known)


def _check_priorities(nsg: Resource) -> None:
    taken: dict[tuple[str, int], str] = {}
    for rule in nsg.body["properties"]["securityRules"]:
        place = (rule["properties"]["direction"], rule["properties"]["priority"])
        if place in taken:
            raise ArmError(
                400,
                "SecurityRuleConflict",
                f"Security rule {rule['name']} conflicts with rule {taken[place]}. Rules cannot have the "
                "same "
                "Priority and Direction.",
            )
        taken[place] = rule["name"]


def get_nsg(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        nsg = found(records, request, ids.NSG, group, name)
        return Answer(200, _show_nsg(records, nsg), {"ETag": nsg.body["etag"]})


def list_nsgs(azure: Azure, request: Request, group: str | None = None) -> Answer:
    with azure.store.read() as records:
        nsgs = _list(records, request, ids.NSG, group)
        return Answer(200, {"value": [_show_nsg(records, nsg) for nsg in nsgs]})


def delete_nsg(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        nsg = existing(records, request, ids.NSG, group, name)
        if nsg is None:
            return Answer(204)
        nics, subnets = _users_of_nsg(records, nsg)
        if nics or subnets:
            raise ArmError(
                400,
                "InUseNetworkSecurityGroupCannotBeDeleted",
                f"Network security group {nsg.id} cannot be deleted because it is in use by the following "
                "resources: "
                f"{', '.join([*nics, *subnets])}. In order to delete the Network security group, remove the "
                "association with the resource(s). To learn how to do this, see aka.ms/deletensg.",
            )
        return begin_delete(azure, records, request, nsg)


def patch_nsg(azure: Azure, request: Request, group: str, name: str) -> Answer:
    return patch_tags(azure, request, ids.NSG, group, name)


def _found_rule(nsg: Resource, rule: str) -> Json:
    for candidate in nsg.body["properties"]["securityRules"]:
        if same(candidate["name"], rule):
            return dict(candidate)
    raise ArmError(404, "NotFound", f"Resource {nsg.id}/securityRules/{rule} not found.")


def get_rule(azure: Azure, request: Request, group: str, name: str, rule: str) -> Answer:
    with azure.store.read() as records:
        return Answer(200, _found_rule(found(records, request, ids.NSG, group, name), rule))


def list_rules(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        nsg = found(records, request, ids.NSG, group, name)
        return Answer(200, {"value": nsg.body["properties"]["securityRules"]})


def put_rule(azure: Azure, request: Request, group: str, name: str, rule: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        preconditions.registered(records, NAMESPACE)
        nsg = found(records, request, ids.NSG, group, name)
        made = _rule(nsg.id, {**request.object(), "name": rule})
        others = [r for r in nsg.body["properties"]["securityRules"] if not same(r["name"], rule)]
        status = 201 if len(others) == len(nsg.body["properties"]["securityRules"]) else 200
        nsg.body["properties"]["securityRules"] = [*others, made]
        _check_priorities(nsg)
        records.put(nsg)
        operation = operations.begin(azure, records, "network.rules", nsg.key)
        return operations.accepted(request, operation, NAMESPACE, nsg.location, status=status, body=made)


def delete_rule(azure: Azure, request: Request, group: str, name: str, rule: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        nsg = found(records, request, ids.NSG, group, name)
        rules = nsg.body["properties"]["securityRules"]
        kept = [r for r in rules if not same(r["name"], rule)]
        if len(kept) == len(rules):
            return Answer(204)
        nsg.body["properties"]["securityRules"] = kept
        records.put(nsg)
        operation = operations.begin(azure, records, "network.rules", nsg.key)
        return operations.accepted(request, operation, NAMESPACE, nsg.location, status=202, with_location=True)


# network watchers


def get_watcher(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        return Answer(200, found(records, request, ids.WATCHER, group, name).body)


def list_watchers(azure: Azure, request: Request, group: str | None = None) -> Answer:
    with azure.store.read() as records:
        return Answer(200, {"value": [w.body for w in _list(records, request, ids.WATCHER, group)]})


def delete_watcher(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        watcher = existing(records, request, ids.WATCHER, group, name)
        return Answer(204) if watcher is None else begin_delete(azure, records, request, watcher)


_S = "/subscriptions/<subscription>"
_P = f"{_S}/resourcegroups/<group>/providers/microsoft.network"
_V = f"{_P}/virtualnetworks/<name>"
_N = f"{_P}/networksecuritygroups/<name>"
_L = f"{_S}/providers/microsoft.network"
ROUTES = [
    Route("PUT", _V, "VirtualNetworks_CreateOrUpdate", put_vnet),
    Route("GET", _V, "VirtualNetworks_Get", get_vnet),
    Route("PATCH", _V, "VirtualNetworks_UpdateTags", patch_vnet),
    Route("DELETE", _V, "VirtualNetworks_Delete", delete_vnet),
    Route("GET", f"{_P}/virtualnetworks", "VirtualNetworks_List", list_vnets),
    Route("GET", f"{_L}/virtualnetworks", "VirtualNetworks_ListAll", list_vnets),
    Route("PUT", f"{_V}/subnets/<subnet>", "Subnets_CreateOrUpdate", put_subnet),
    Route("GET", f"{_V}/subnets/<subnet>", "Subnets_Get", get_subnet),
    Route("DELETE", f"{_V}/subnets/<subnet>", "Subnets_Delete", delete_subnet),
    Route("GET", f"{_V}/subnets", "Subnets_List", list_subnets),
    Route("PUT", _N, "NetworkSecurityGroups_CreateOrUpdate", put_nsg),
    Route("GET", _N, "NetworkSecurityGroups_Get", get_nsg),
    Route("PATCH", _N, "NetworkSecurityGroups_UpdateTags", patch_nsg),
    Route("DELETE", _N, "NetworkSecurityGroups_Delete", delete_nsg),
    Route("GET", f"{_P}/networksecuritygroups", "NetworkSecurityGroups_List", list_nsgs),
    Route("GET", f"{_L}/networksecuritygroups", "NetworkSecurityGroups_ListAll", list_nsgs),
    Route("PUT", f"{_N}/securityrules/<rule>", "SecurityRules_CreateOrUpdate", put_rule),
    Route("GET", f"{_N}/securityrules/<rule>", "SecurityRules_Get", get_rule),
    Route("DELETE", f"{_N}/securityrules/<rule>", "SecurityRules_Delete", delete_rule),
    Route("GET", f"{_N}/securityrules", "SecurityRules_List", list_rules),
    Route("GET", f"{_P}/networkwatchers/<name>", "NetworkWatchers_Get", get_watcher),
    Route("DELETE", f"{_P}/networkwatchers/<name>", "NetworkWatchers_Delete", delete_watcher),
    Route("GET", f"{_P}/networkwatchers", "NetworkWatchers_List", list_watchers),
    Route("GET", f"{_L}/networkwatchers", "NetworkWatchers_ListAll", list_watchers),
    Route("GET", f"{_L}/locations/<location>/operations/<operation>", "NetworkOperations_Get", get_operation),
    Route(
        "GET",
        f"{_L}/locations/<location>/operationresults/<operation>",
        "NetworkOperationResults_Get",
        get_operation_result,
    ),
]
