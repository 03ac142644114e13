"""Public IP addresses and network interfaces, on their own or made for a VM by its PUT."""

import hashlib
import ipaddress
import secrets
from dataclasses import dataclass

from cloudtrain.emulator import ids, network, operations, preconditions
from cloudtrain.emulator.network import NAMESPACE
from cloudtrain.emulator.operations import Azure
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Json, Records, Resource
from cloudtrain.emulator.wire import Answer, ArmError, Request, entries, guid, same, section, text

# The network of the benchmarking range (RFC 2544): never routed, so an emulated address is nobody's machine.
_ADDRESSES = ipaddress.ip_network("198.18.0.0/15")
_SUFFIX = "bx.internal.cloudapp.net"


# public IP addresses


def _free_address(records: Records) -> str:
    """Anyone of the range, as Azure draws from its own, but for its last host, this machine (`firewall.CALLER`)."""
    while True:
        address = str(_ADDRESSES[secrets.randbelow(_ADDRESSES.num_addresses - 3) + 1])
        if not records.resources(ids.PUBLIC_IP, mentions=address):
            return address


def _check_sku(given: Json, properties: Json) -> Json:
    name = text(section(given, "sku"), "name", "sku") or "Standard"
    if same(name, "Basic"):
        raise ArmError(
            400,
            "IPv4BasicSkuPublicIpCountLimitReached",
            "Cannot create more than 0 IPv4 Basic SKU public IP addresses for this subscription in this region.",
        )
    if properties.get("publicIPAllocationMethod", "Static") != "Static":
        raise ArmError(
            400,
            "PublicIPAllocationMethodNotSupported",
            "Standard sku publicIp must have AllocationMethod set to Static.",
        )
    return {"name": name, "tier": text(section(given, "sku"), "tier", "sku") or "Regional"}


def _ip_properties(given: Json, location: str) -> Json:
    properties: Json = {
        "publicIPAddressVersion": given.get("publicIPAddressVersion") or "IPv4",
        "publicIPAllocationMethod": "Static",
        "idleTimeoutInMinutes": given.get("idleTimeoutInMinutes") or 4,
    }
    label = text(section(given, "dnsSettings"), "domainNameLabel", "dnsSettings")
    if label:
        fqdn = f"{label}.{location}.cloudapp.azure.com"
        properties["dnsSettings"] = {"domainNameLabel": label, "fqdn": fqdn}
    properties["ipTags"] = given.get("ipTags") or []
    properties["ddosSettings"] = given.get("ddosSettings") or {"protectionMode": "VirtualNetworkInherited"}
    return properties


def new_public_ip(
    azure: Azure, records: Records, request: Request, home: Resource, name: str, location: str, given: Json
) -> Resource:
    properties = section(given, "properties")
    sku = _check_sku(given, properties)
    ip = network.new(azure, request, ids.PUBLIC_IP, home, name, location, _ip_properties(properties, location))
    ip.body["sku"] = sku
    if given.get("zones"):
        ip.body["zones"] = given["zones"]
    ip.body["properties"]["ipAddress"] = _free_address(records)
    return ip


def put_public_ip(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        home, known, location = network.prepared(azure, records, request, ids.PUBLIC_IP, group, name)
        given = request.object()
        if known is None:
            ip = new_public_ip(azure, records, request, home, name, location, given)
        else:
            ip = known
            _check_sku(given, section(given, "properties"))
            ip.body["properties"].update(_ip_properties(section(given, "properties"), location))
        answer = network.stored(azure, records, request, ip, known)
        if known is None:  # the first answer has no address yet
            answer.body["properties"].pop("ipAddress")
        return answer


def get_public_ip(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        ip = network.found(records, request, ids.PUBLIC_IP, group, name)
        return Answer(200, ip.body, {"ETag": ip.body["etag"]})


def list_public_ips(azure: Azure, request: Request, group: str | None = None) -> Answer:
    return _listed(azure, request, ids.PUBLIC_IP, group)


def delete_public_ip(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        ip = network.existing(records, request, ids.PUBLIC_IP, group, name)
        if ip is None:
            return Answer(204)
        user = (ip.body["properties"].get("ipConfiguration") or {}).get("id")
        if user:
            raise ArmError(
                400,
                "PublicIPAddressCannotBeDeleted",
                f"Public IP address {ip.id} can not be deleted since it is still allocated to resource "
                f"{user}. In "
                "order to delete the public IP, disassociate/detach the Public IP address from the resource. "
                " To "
                "learn how to do this, see aka.ms/deletepublicip.",
            )
        return network.begin_delete(azure, records, request, ip)


def patch_public_ip(azure: Azure, request: Request, group: str, name: str) -> Answer:
    return network.patch_tags(azure, request, ids.PUBLIC_IP, group, name)


def _listed(azure: Azure, request: Request, type_: str, group: str | None) -> Answer:
    with azure.store.read() as records:
        if group is not None:
            preconditions.readable_group(records, request.subscription, group)
        return Answer(200, {"value": [resource.body for resource in records.resources(type_, group)]})


# network interfaces


def _subnet(records: Records, reference: str, by: str) -> Json:
    parsed = ids.parse(reference)
    if parsed is None or len(parsed.names) != 2:
        raise network.missing_reference(reference, by)
    vnet = records.resource(ids.resource_id(parsed.subscription, parsed.group, ids.VNET, parsed.names[0]))
    inside = network.subnet_of(vnet, parsed.names[1]) if vnet else None
    if inside is None:
        raise network.missing_reference(reference, by)
    return inside


def _private_address(records: Records, subnet: Json, wanted: str | None) -> str:
    """The first free one: Azure keeps .0 to .3 and the last for itself."""
    block = ipaddress.ip_network(subnet["properties"]["addressPrefix"])
    taken = {
        configuration["properties"].get("privateIPAddress")
        for nic in records.resources(ids.NIC, mentions=subnet["id"])
        for configuration in nic.body["properties"]["ipConfigurations"]
        if same(configuration["properties"]["subnet"]["id"], subnet["id"])
    }
    if wanted and wanted in taken:
        raise ArmError(
            400,
            "PrivateIPAddressInUse",
            f"IP configuration's private IP address {wanted} is already allocated in subnet {subnet['id']}.",
        )
    if wanted:
        return wanted
    for offset in range(4, block.num_addresses - 1):
        if str(block[offset]) not in taken:
            return str(block[offset])
    raise ArmError(
        400,
        "SubnetIsFull",
        f"Subnet {subnet['name']} with address prefix {block} does not have enough capacity.",
    )


def _configuration(records: Records, nic_id: str, given: Json, first: bool) -> Json:
    name = text(given, "name", "ipConfigurations") or "ipconfig"
    properties = section(given, "properties")
    configuration_id = f"{nic_id}/ipConfigurations/{name}"
    reference = text(section(properties, "subnet"), "id", "subnet") or ""
    subnet = _subnet(records, reference, configuration_id)
    kept: Json = {
        "provisioningState": "Succeeded",
        "privateIPAddress": _private_address(records, subnet, properties.get("privateIPAddress")),
        "privateIPAllocationMethod": properties.get("privateIPAllocationMethod") or "Dynamic",
    }
    public = text(section(properties, "publicIPAddress"), "id", "publicIPAddress")
    if public:
        kept["publicIPAddress"] = {"id": _claimed(records, public, configuration_id)}
    kept["subnet"] = {"id": subnet["id"]}
    kept["primary"] = bool(properties.get("primary", first))
    kept["privateIPAddressVersion"] = properties.get("privateIPAddressVersion") or "IPv4"
    return {
        "name": name,
        "id": configuration_id,
        "etag": network.etag(),
        "type": f"{ids.NIC}/ipConfigurations",
        "properties": kept,
    }


def _claimed(records: Records, public: str, configuration_id: str) -> str:
    ip = network.referred(records, public, configuration_id)
    user = (ip.body["properties"].get("ipConfiguration") or {}).get("id")
    if user and not same(user, configuration_id):
        raise ArmError(
            400,
            "PublicIPAddressInUse",
            f"Resource {configuration_id} is referencing public IP address {ip.id} that is already allocated "
            "to "
            f"resource {user}.",
        )
    ip.body["properties"]["ipConfiguration"] = {"id": configuration_id}
    records.put(ip)
    return ip.id


def _release(records: Records, nic: Resource) -> None:
    for configuration in nic.body["properties"]["ipConfigurations"]:
        public = records.resource((configuration["properties"].get("publicIPAddress") or {}).get("id", ""))
        if public is not None:
            public.body["properties"].pop("ipConfiguration", None)
            records.put(public)


def _nic_properties(records: Records, nic_id: str, given: Json) -> Json:
    configurations = entries(given, "ipConfigurations", "properties")
    if not configurations:
        raise ArmError(
            400,
            "NetworkInterfaceMustHaveAtLeastOneIpConfiguration",
            f"Network interface {nic_id} must have at least one ip configuration.",
        )
    properties: Json = {
        "ipConfigurations": [_configuration(records, nic_id, c, index == 0) for index, c in enumerate(configurations)],
        "dnsSettings": {
            "dnsServers": section(given, "dnsSettings").get("dnsServers") or [],
            "appliedDnsServers": [],
            "internalDomainNameSuffix": f"{guid()}.{_SUFFIX}",
        },
        "enableAcceleratedNetworking": bool(given.get("enableAcceleratedNetworking")),
        "vnetEncryptionSupported": False,
        "enableIPForwarding": bool(given.get("enableIPForwarding")),
        "disableTcpStateTracking": bool(given.get("disableTcpStateTracking")),
    }
    nsg = text(section(given, "networkSecurityGroup"), "id", "networkSecurityGroup")
    if nsg:
        properties["networkSecurityGroup"] = {"id": network.referred(records, nsg, nic_id).id}
    return {
        **properties,
        "hostedWorkloads": [],
        "tapConfigurations": [],
        "nicType": "Standard",
        "allowPort25Out": True,
        "auxiliaryMode": "None",
        "auxiliarySku": "None",
    }


def new_nic(
    azure: Azure, records: Records, request: Request, home: Resource, name: str, location: str, given: Json
) -> Resource:
    nic_id = ids.resource_id(request.subscription, home.name, ids.NIC, name)
    nic = network.new(azure, request, ids.NIC, home, name, location, _nic_properties(records, nic_id, given))
    nic.body["properties"]["provisioningState"] = "Succeeded"
    nic.body["kind"] = "Regular"
    return nic


def put_nic(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        home, known, location = network.prepared(azure, records, request, ids.NIC, group, name)
        given = section(request.object(), "properties")
        if known is None:
            nic = new_nic(azure, records, request, home, name, location, given)
        else:
            nic = known
            _change(records, nic, given)
        tags = preconditions.tags(request.object().get("tags"))
        if tags is not None:
            nic.body["tags"] = tags
        records.put(nic)
        operation = operations.begin(azure, records, "network.put", nic.key)
        status = 200 if known else 201
        return operations.accepted(request, operation, NAMESPACE, location, status=status, body=nic.body)


def _change(records: Records, nic: Resource, given: Json) -> None:
    _release(records, nic)
    old = nic.body["properties"]
    addresses = {c["name"].lower(): c["properties"]["privateIPAddress"] for c in old["ipConfigurations"]}
    old["ipConfigurations"] = []
    records.put(nic)
    changed = _nic_properties(records, nic.id, given)
    for configuration in changed["ipConfigurations"]:
        kept = addresses.get(configuration["name"].lower())
        if kept is not None and configuration["properties"]["privateIPAllocationMethod"] == "Dynamic":
            configuration["properties"]["privateIPAddress"] = kept
    if "networkSecurityGroup" not in changed:
        old.pop("networkSecurityGroup", None)
    old.update(changed)


def get_nic(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.read() as records:
        nic = network.found(records, request, ids.NIC, group, name)
        return Answer(200, nic.body, {"ETag": nic.body["etag"]})


def list_nics(azure: Azure, request: Request, group: str | None = None) -> Answer:
    return _listed(azure, request, ids.NIC, group)


def delete_nic(azure: Azure, request: Request, group: str, name: str) -> Answer:
    with azure.store.write() as records:
        preconditions.writable_group(records, request.subscription, group)
        nic = network.existing(records, request, ids.NIC, group, name)
        if nic is None:
            return Answer(204)
        user = (nic.body["properties"].get("virtualMachine") or {}).get("id")
        if user:
            raise nic_in_use(nic, user)
        check_not_reserved(azure, nic)
        _release(records, nic)
        return network.begin_delete(azure, records, request, nic)


def nic_in_use(nic: Resource, user: str) -> ArmError:
    return ArmError(
        400,
        "NicInUse",
        f"Network Interface {nic.id} is used by existing resource {user}. In order to delete the network "
        "interface, "
        "it must be dissociated from the resource. To learn more, see aka.ms/deletenic.",
    )


def check_not_reserved(azure: Azure, nic: Resource, vm_id: str = "") -> None:
    """vm_id: the VM that is to have it. Raises ArmError.

    Reported for interfaces that are deleted soon after their VM (microsoft/AzureTRE issue 4474, gardenlinux issue
    4133)."""
    reserved = nic.private.get("reserved")
    if reserved is None or azure.now() >= reserved["until"] or same(reserved["vm"], vm_id):
        return
    raise ArmError(
        400,
        "NicReservedForAnotherVm",
        "Nic(s) in request is reserved for another Virtual Machine for 180 seconds. Please provide another nic(s) or "
        f"retry after 180 seconds. Reserved VM: {reserved['vm']}",
    )


def patch_nic(azure: Azure, request: Request, group: str, name: str) -> Answer:
    return network.patch_tags(azure, request, ids.NIC, group, name)


# for VMs


def attach(records: Records, nic: Resource, vm_id: str, primary: bool) -> None:
    octets = hashlib.sha256(nic.id.lower().encode()).digest()[:3]
    nic.body["properties"]["macAddress"] = "00-0D-3A-" + "-".join(f"{octet:02X}" for octet in octets)
    nic.body["properties"]["primary"] = primary
    nic.body["properties"]["virtualMachine"] = {"id": vm_id}
    records.put(nic)


def detach(records: Records, nic: Resource) -> None:
    for key in ("virtualMachine", "macAddress", "primary"):
        nic.body["properties"].pop(key, None)
    records.put(nic)


@dataclass(frozen=True)
class MadeInterface:
    """What a VM's networkInterfaceConfiguration became."""

    nic: Resource
    delete_with_vm: bool
    primary: bool


def from_configuration(
    azure: Azure, records: Records, request: Request, home: Resource, location: str, given: Json, first: bool
) -> MadeInterface:
    """Make the network interface, and the public IP address in it, that a VM PUT describes.

    Azure gives both names a random suffix."""
    properties = section(given, "properties")
    suffix = guid()[:8]
    name = f"{text(given, 'name', 'networkInterfaceConfigurations') or 'nic'}-{suffix}"
    configurations = []
    for configuration in entries(properties, "ipConfigurations", "networkInterfaceConfigurations.properties"):
        inner = dict(section(configuration, "properties"))
        public = section(inner, "publicIPAddressConfiguration")
        inner.pop("publicIPAddressConfiguration", None)
        if public:
            inner["publicIPAddress"] = {"id": _public_for_vm(azure, records, request, home, location, public, suffix)}
        configurations.append({"name": configuration.get("name"), "properties": inner})
    nic = new_nic(azure, records, request, home, name, location, {**properties, "ipConfigurations": configurations})
    records.put(nic)
    delete = str(properties.get("deleteOption") or "Detach").lower() == "delete"
    return MadeInterface(nic, delete, bool(properties.get("primary", first)))


def _public_for_vm(
    azure: Azure, records: Records, request: Request, home: Resource, location: str, given: Json, suffix: str
) -> str:
    name = f"{text(given, 'name', 'publicIPAddressConfiguration') or 'pip'}-{suffix}"
    ip = new_public_ip(azure, records, request, home, name, location, given)
    option = section(given, "properties").get("deleteOption") or "Detach"
    ip.body["properties"]["deleteOption"] = option
    ip.body["properties"]["provisioningState"] = "Succeeded"
    records.put(ip)
    return ip.id


def forget_with_vm(records: Records, nic: Resource, *, delete: bool, reserved: Json | None) -> None:
    """What becomes of a VM's interface, and of its public IP address, when the VM goes.

    reserved: for whom, and until when; None where it is free at once."""
    if not delete:
        nic.private["reserved"] = reserved
        detach(records, nic)
        return
    _release(records, nic)
    for configuration in nic.body["properties"]["ipConfigurations"]:
        public = records.resource((configuration["properties"].get("publicIPAddress") or {}).get("id", ""))
        if public is not None and public.body["properties"].get("deleteOption") == "Delete":
            records.delete(public.id)
    records.delete(nic.id)


_S = "/subscriptions/<subscription>"
_P = f"{_S}/resourcegroups/<group>/providers/microsoft.network"
_L = f"{_S}/providers/microsoft.network"
_I = f"{_P}/publicipaddresses/<name>"
_N = f"{_P}/networkinterfaces/<name>"
ROUTES = [
    Route("PUT", _I, "PublicIPAddresses_CreateOrUpdate", put_public_ip),
    Route("GET", _I, "PublicIPAddresses_Get", get_public_ip),
    Route("PATCH", _I, "PublicIPAddresses_UpdateTags", patch_public_ip),
    Route("DELETE", _I, "PublicIPAddresses_Delete", delete_public_ip),
    Route("GET", f"{_P}/publicipaddresses", "PublicIPAddresses_List", list_public_ips),
    Route("GET", f"{_L}/publicipaddresses", "PublicIPAddresses_ListAll", list_public_ips),
    Route("PUT", _N, "NetworkInterfaces_CreateOrUpdate", put_nic),
    Route("GET", _N, "NetworkInterfaces_Get", get_nic),
    Route("PATCH", _N, "NetworkInterfaces_UpdateTags", patch_nic),
    Route("DELETE", _N, "NetworkInterfaces_Delete", delete_nic),
    Route("GET", f"{_P}/networkinterfaces", "NetworkInterfaces_List", list_nics),
    Route("GET", f"{_L}/networkinterfaces", "NetworkInterfaces_ListAll", list_nics),
]
