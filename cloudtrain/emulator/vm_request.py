"""What a VM PUT or PATCH asks for: checked as Azure checks it, and put into the form that Azure keeps."""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Any

from cloudtrain.emulator import catalog, market, marketplace
from cloudtrain.emulator.catalog import Image, Size
from cloudtrain.emulator.store import Json, Records, Resource
from cloudtrain.emulator.wire import ArmError, bad_type, entries, guid, same, section, text

# Kept and shown as they were sent: nothing here depends on them.
ECHOED = (
    "diagnosticsProfile",
    "scheduledEventsProfile",
    "scheduledEventsPolicy",
    "additionalCapabilities",
    "licenseType",
    "extensionsTimeBudget",
    "applicationProfile",
)
_UNDERSTOOD = frozenset(
    {
        *ECHOED,
        "hardwareProfile",
        "priority",
        "evictionPolicy",
        "billingProfile",
        "storageProfile",
        "osProfile",
        "networkProfile",
        "securityProfile",
        "resiliencyProfile",
        "userData",
        "provisioningState",
        "vmId",
        "instanceView",
        "timeCreated",
    }
)
_NOT_HERE = frozenset(
    {
        "availabilitySet",
        "virtualMachineScaleSet",
        "proximityPlacementGroup",
        "host",
        "hostGroup",
        "capacityReservation",
        "platformFaultDomain",
    }
)
_CUSTOM_DATA_LIMIT = 87380
_USER_DATA_LIMIT = 65536
_ADMIN_NAMES_REFUSED = frozenset(
    [
        "administrator",
        "admin",
        "user",
        "user1",
        "test",
        "user2",
        "test1",
        "user3",
        "admin1",
        "1",
        "123",
        "a",
        "actuser",
        "adm",
        "admin2",
        "aspnet",
        "backup",
        "console",
        "david",
        "guest",
        "john",
        "owner",
        "root",
        "server",
        "sql",
        "support",
        "support_388945a0",
        "sys",
        "test2",
        "test3",
        "user4",
        "user5",
    ]
)
_DISK_TYPES = (
    "Standard_LRS",
    "StandardSSD_LRS",
    "Premium_LRS",
    "StandardSSD_ZRS",
    "Premium_ZRS",
)


def _invalid(target: str, message: str) -> ArmError:
    return ArmError(400, "InvalidParameter", message, target=target)


def immutable(name: str) -> ArmError:
    return ArmError(409, "PropertyChangeNotAllowed", f"Changing property '{name}' is not allowed.", target=name)


def check_members(properties: Json) -> None:
    """Refuse what Azure does not know, and what this emulator does not have."""
    for key, value in properties.items():
        if key in _NOT_HERE and value is not None:
            if key == "availabilitySet" and str(properties.get("priority")).lower() in market.SPOT_PRIORITIES:
                raise ArmError(
                    400,
                    "AzureSpotVMNotSupportedInAvailabilitySet",
                    "Azure Spot Virtual Machine is not supported in Availability Set.",
                )
            raise ArmError(
                501,
                "OperationNotEmulated",
                f"The embedded Azure does not have 'properties.{key}' of VirtualMachines_CreateOrUpdate.",
            )
        if key not in _UNDERSTOOD and key not in _NOT_HERE:
            raise ArmError(
                400,
                "BadRequest",
                f"Could not find member '{key}' on object of type 'Properties'. Path 'properties.{key}', "
                "line 1, "
                "position 1.",
            )


def check_name(name: str) -> None:
    if len(name) > 64 or not re.fullmatch(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9_])?", name):
        raise _invalid(
            "vmName",
            "Linux host name cannot exceed 64 characters in length or contain the following characters: "
            "` ~ ! @ # $ % ^ & * ( ) = + _ [ ] { } \\ | ; : ' \" , < > / ?.",
        )


def size(properties: Json, region: str) -> Size:
    name = text(section(properties, "hardwareProfile"), "vmSize", "hardwareProfile")
    if not name:
        raise ArmError(
            400,
            "InvalidParameter",
            "Required parameter 'hardwareProfile.vmSize' is missing (null).",
            "vmSize",
        )
    found = catalog.size_in(region, name)
    if found is None:
        valid = ",".join(known.name for known in catalog.sizes_in(region))
        raise _invalid(
            "vmSize",
            f"The value {name} provided for the VM size is not valid. The valid sizes in the current region "
            "are: "
            f"{valid}. Find out more on the valid VM sizes in each region at https://aka.ms/azure-regions.",
        )
    return found


def check_availability(chosen: Size, region: str, zones: list[str]) -> None:
    known = catalog.REGIONS[region]
    for zone in zones:
        if zone not in known.zones:
            raise ArmError(
                400,
                "AvailabilityZoneNotSupported",
                f"The zone(s) '{zone}' for resource 'Microsoft.Compute/virtualMachines' is not supported. "
                "The "
                f"supported zones for location '{region}' are '{','.join(known.zones)}'",
            )
    if region in chosen.restricted_in or set(zones) & set(chosen.restricted_zones.get(region, ())):
        raise ArmError(
            409,
            "SkuNotAvailable",
            "The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: "
            f"{chosen.name}' is currently not available in location '{region}'. Please try another size or "
            "deploy to "
            "a different location or different zone. See https://aka.ms/azureskunotavailable for details.",
            target="sku.name",
        )


# Spot


def priority(properties: Json) -> str | None:
    """None when none was sent (a Regular VM that does not show it)."""
    given = text(properties, "priority")
    if given is None:
        return None
    for known in ("Regular", "Low", "Spot", "SpotPlus"):
        if same(given, known):
            return known
    raise _invalid("priority", f"The value '{given}' of parameter 'priority' is invalid.")


def max_price(properties: Json) -> float | None:
    """None when none was sent. Raises MaxPriceValueInvalid."""
    given = section(properties, "billingProfile").get("maxPrice")
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise bad_type("properties.billingProfile.maxPrice", given, "double")
    price = float(given)
    if price != market.NO_LIMIT and (price <= 0 or round(price, 5) != price):
        raise ArmError(
            400,
            "MaxPriceValueInvalid",
            "The max price value should be either '-1' (up to the on-demand price) or a value greater than 0 "
            "with at "
            f"most five decimals; '{given}' is neither.",
        )
    return price


def spot_terms(records: Records, properties: Json, chosen: Size, region: str) -> Json:
    """priority, evictionPolicy and billingProfile as Azure keeps them. Raises ArmError."""
    wanted, price = priority(properties), max_price(properties)
    policy = text(properties, "evictionPolicy")
    if str(wanted).lower() not in market.SPOT_PRIORITIES:
        if wanted == "SpotPlus":
            raise ArmError(501, "OperationNotEmulated", "The embedded Azure does not have VMs of priority 'SpotPlus'.")
        if policy is not None:
            raise ArmError(
                400,
                "EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines",
                "Eviction policy can be set only on Azure Spot Virtual Machines.",
            )
        if price is not None:
            raise ArmError(
                400,
                "MaxPriceCanBeSetOnlyOnAzureSpotVirtualMachines",
                "Max price can be set only on Azure Spot Virtual Machines.",
            )
        return {} if wanted is None else {"priority": wanted}
    if not chosen.spot:
        raise ArmError(
            400,
            "AzureSpotIsNotSupportedForThisVMSize",
            f"Azure Spot Virtual Machine is not supported for this VM size {chosen.name}.",
        )
    kept = next((known for known in ("Deallocate", "Delete") if same(known, policy or "Deallocate")), None)
    if kept is None:
        raise _invalid("evictionPolicy", f"The value '{policy}' of parameter 'evictionPolicy' is invalid.")
    highest = market.NO_LIMIT if price is None else price
    market.check_price(records, chosen, region, highest, "Create Virtual Machine")
    return {"priority": wanted, "evictionPolicy": kept, "billingProfile": {"maxPrice": highest}}


# storage


@dataclass(frozen=True)
class Storage:
    image: Image
    profile: Json  # as a GET shows it, apart from managedDisk.id


def storage(properties: Json, chosen: Size, vm_name: str) -> Storage:
    profile = section(properties, "storageProfile")
    reference = section(profile, "imageReference")
    disk = _spelt(section(profile, "osDisk"), ("diskSizeGB",))  # az writes diskSizeGb
    _check_disks(profile, reference, disk)
    image = _image(reference)
    if image.generation not in chosen.generations.split(","):
        raise ArmError(
            400,
            "BadRequest",
            f"The selected VM size '{chosen.name}' cannot boot Hypervisor Generation "
            f"'{image.generation.removeprefix('V')}'. If this was a Create operation please check that the "
            "Hypervisor "
            "Generation of the Image matches the Hypervisor Generation of the selected VM Size.",
        )
    kind = _disk_type(disk, chosen)
    os_disk: Json = {
        "osType": "Linux",
        "name": text(disk, "name", "osDisk") or f"{vm_name}_OsDisk_1_{guid().replace('-', '')}",
        "createOption": "FromImage",
        "caching": text(disk, "caching", "osDisk") or "ReadWrite",
        "managedDisk": {"storageAccountType": kind},
        "deleteOption": _delete_option(disk),
        "diskSizeGB": _disk_size(disk, image),
    }
    shown = {key: reference[key] for key in ("publisher", "offer", "sku", "version") if reference.get(key)}
    shown["exactVersion"] = image.version
    return Storage(image, {"imageReference": shown, "osDisk": os_disk, "dataDisks": []})


def _spelt(given: Json, names: tuple[str, ...]) -> Json:
    """The object with Azure's own spelling of names, which Azure itself reads without case."""
    own = {name.lower(): name for name in names}
    return {own.get(key.lower(), key): value for key, value in given.items()}


def _check_disks(profile: Json, reference: Json, disk: Json) -> None:
    option = text(disk, "createOption", "osDisk") or "FromImage"
    if not same(option, "FromImage") or reference.get("id") or profile.get("dataDisks"):
        raise ArmError(
            501,
            "OperationNotEmulated",
            "The embedded Azure makes VMs from marketplace and platform images on one OS disk: it has no "
            "data disks, "
            "no custom images and no attaching of disks (VirtualMachines_CreateOrUpdate).",
        )
    if not reference:
        raise ArmError(
            400,
            "InvalidParameter",
            "Required parameter 'imageReference' is missing (null).",
            "imageReference",
        )


def _image(reference: Json) -> Image:
    names = [text(reference, key, "imageReference") or "" for key in ("publisher", "offer", "sku", "version")]
    found = catalog.find_image(*names)
    if found is None:
        raise ArmError(
            404,
            "PlatformImageNotFound",
            f"The platform image '{':'.join(names)}' is not available. Verify that all fields in the storage "
            "profile "
            "are correct. For more details about storage profile information, please refer to "
            "https://aka.ms/storageprofile",
            target="imageReference",
        )
    return found


def _disk_type(disk: Json, chosen: Size) -> str:
    given = text(section(disk, "managedDisk"), "storageAccountType", "osDisk.managedDisk")
    if given is None:
        return "Premium_LRS" if chosen.premium else "Standard_LRS"
    kind = next((known for known in _DISK_TYPES if same(known, given)), None)
    if kind is None:
        raise _invalid("managedDisk.storageAccountType", f"Storage account type '{given}' is not supported.")
    if kind.startswith("Premium") and not chosen.premium:
        raise _invalid(
            "osDisk.managedDisk.storageAccountType",
            f"Requested operation cannot be performed because the VM size {chosen.name} does not support the "
            "storage "
            f"account type {kind} of disk. Consider updating the VM to a size that supports Premium storage.",
        )
    return kind


def _delete_option(disk: Json) -> str:
    given = text(disk, "deleteOption", "osDisk") or "Detach"
    kind = next((known for known in ("Delete", "Detach") if same(known, given)), None)
    if kind is None:
        raise _invalid("osDisk.deleteOption", f"The value '{given}' of parameter 'osDisk.deleteOption' is invalid.")
    return kind


def _disk_size(disk: Json, image: Image) -> int:
    given = disk.get("diskSizeGB")
    if given is None:
        return image.disk_gb
    if isinstance(given, bool) or not isinstance(given, int):
        raise bad_type("properties.storageProfile.osDisk.diskSizeGB", given, "int32")
    if given < image.disk_gb:
        raise ArmError(
            409,
            "OperationNotAllowed",
            f"The specified disk size {given} GB is smaller than the size of the corresponding disk in the "
            "VM image: "
            f"{image.disk_gb} GB. This is not allowed. Please choose equal or greater size or do not specify "
            "an "
            "explicit size.",
            target="osDisk.diskSizeGB",
        )
    if given > 4095:
        raise _invalid("osDisk.diskSizeGB", f"The value {given} of parameter osDisk.diskSizeGB is out of range.")
    return given


# the operating system


@dataclass(frozen=True)
class Guest:
    profile: Json  # as a GET shows it
    computer_name: str
    admin: str
    keys: tuple[str, ...]
    custom_data_digest: str


def guest(properties: Json, vm_name: str) -> Guest:
    profile = section(properties, "osProfile")
    if not profile:
        raise _invalid("osProfile", "Required parameter 'osProfile' is missing (null).")
    computer = text(profile, "computerName", "osProfile") or vm_name
    if len(computer) > 64 or not re.fullmatch(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", computer):
        raise _invalid("computerName", f"The computer name '{computer}' is not a valid Linux host name.")
    admin = _admin(profile)
    if section(profile, "windowsConfiguration"):
        raise ArmError(501, "OperationNotEmulated", "The embedded Azure has Linux VMs only (windowsConfiguration).")
    linux = section(profile, "linuxConfiguration")
    keys = _ssh_keys(linux, admin)
    _check_password(profile, linux, keys)
    shown: Json = {
        "computerName": computer,
        "adminUsername": admin,
        "linuxConfiguration": _linux(linux, keys, admin),
        "secrets": [],
        "allowExtensionOperations": profile.get("allowExtensionOperations", True) is not False,
        "requireGuestProvisionSignal": True,
    }
    return Guest(shown, computer, admin, tuple(keys), custom_data_digest(profile))


def custom_data_digest(profile: Json) -> str:
    data = text(profile, "customData", "osProfile")
    if data is None:
        return ""
    if not is_base64(data, _CUSTOM_DATA_LIMIT):
        raise _invalid(
            "customData",
            "Custom data in OSProfile must be in Base64 encoding and with a maximum length of 87380 characters.",
        )
    return hashlib.sha256(data.encode()).hexdigest()


def user_data(properties: Json) -> str | None:
    data = text(properties, "userData")
    if data and not is_base64(data, _USER_DATA_LIMIT * 4 // 3 + 4):
        raise _invalid("userData", "User data must be in Base64 encoding, and at most 64 KB before encoding.")
    return data


def is_base64(data: str, longest: int) -> bool:
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(data) <= longest


def _admin(profile: Json) -> str:
    name = text(profile, "adminUsername", "osProfile")
    if not name:
        raise _invalid("adminUsername", "Required parameter 'adminUsername' is missing (null).")
    if name.lower() in _ADMIN_NAMES_REFUSED:
        raise _invalid(
            "adminUsername",
            "The Admin Username specified is not allowed. For more information about disallowed usernames, "
            "see "
            "https://aka.ms/vmosprofile",
        )
    if len(name) > 64 or not re.fullmatch(r"[A-Za-z_][\w.-]*", name):
        raise _invalid("adminUsername", f"The Admin Username '{name}' has characters that are not allowed.")
    return name


def _ssh_keys(linux: Json, admin: str) -> list[str]:
    keys = []
    for entry in entries(section(linux, "ssh"), "publicKeys", "linuxConfiguration.ssh"):
        home = f"/home/{admin}/.ssh/authorized_keys"
        if entry.get("path") not in (None, home):
            raise _invalid(
                "linuxConfiguration.ssh.publicKeys.path",
                f"Destination path for SSH public keys is currently limited to its default value {home} due "
                "to a "
                "known issue in Linux provisioning agent.",
            )
        data = text(entry, "keyData", "publicKeys") or ""
        if not _is_ssh_key(data):
            raise _invalid(
                "linuxConfiguration.ssh.publicKeys.keyData",
                "The value of parameter linuxConfiguration.ssh.publicKeys.keyData is invalid.",
            )
        keys.append(data)
    return keys


def _is_ssh_key(data: str) -> bool:
    parts = data.split()
    if len(parts) < 2 or parts[0] not in ("ssh-rsa", "ssh-ed25519"):
        return False
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except (binascii.Error, ValueError):
        return False
    return blob[4 : 4 + len(parts[0])] == parts[0].encode()


def _check_password(profile: Json, linux: Json, keys: list[str]) -> None:
    if linux.get("disablePasswordAuthentication"):
        if not keys:
            raise _invalid(
                "linuxConfiguration.ssh.publicKeys",
                "Required parameter 'linuxConfiguration.ssh.publicKeys' is missing (null): password "
                "authentication "
                "is disabled.",
            )
        return
    password = text(profile, "adminPassword", "osProfile")
    if password is None and not keys:
        raise _invalid("adminPassword", "Required parameter 'adminPassword' is missing (null).")
    kinds = sum(bool(re.search(pattern, password or "")) for pattern in ("[a-z]", "[A-Z]", "[0-9]", r"[\W_]"))
    if password is not None and not (6 <= len(password) <= 72 and kinds >= 3):
        raise _invalid(
            "adminPassword",
            "The supplied password must be between 6-72 characters long and must satisfy at least 3 of "
            "password "
            "complexity requirements from the following:\r\n1) Contains an uppercase character\r\n2) "
            "Contains a "
            "lowercase character\r\n3) Contains a numeric digit\r\n4) Contains a special character\r\n5) "
            "Control "
            "characters are not allowed",
        )


def _linux(linux: Json, keys: list[str], admin: str) -> Json:
    shown: Json = {"disablePasswordAuthentication": bool(linux.get("disablePasswordAuthentication"))}
    if keys:
        path = f"/home/{admin}/.ssh/authorized_keys"
        shown["ssh"] = {"publicKeys": [{"path": path, "keyData": key} for key in keys]}
    shown["provisionVMAgent"] = linux.get("provisionVMAgent", True) is not False
    patches = section(linux, "patchSettings")
    shown["patchSettings"] = {
        "patchMode": patches.get("patchMode") or "ImageDefault",
        "assessmentMode": patches.get("assessmentMode") or "ImageDefault",
    }
    return shown


# the whole


def zones(body: Json) -> list[str]:
    given: Any = body.get("zones") or []
    if not isinstance(given, list) or not all(isinstance(zone, str) for zone in given):
        raise bad_type("zones", given, "array of strings")
    if len(given) > 1:
        raise _invalid("zones", "A virtual machine can be in one zone only.")
    return given


def identity(body: Json, tenant: str) -> Json | None:
    given = section(body, "identity")
    kind = text(given, "type", "identity")
    if not kind or same(kind, "None"):
        return None
    if not same(kind, "SystemAssigned"):
        raise ArmError(501, "OperationNotEmulated", f"The embedded Azure does not have identities of type '{kind}'.")
    return {"type": "SystemAssigned", "principalId": guid(), "tenantId": tenant}


def plan(body: Json) -> Json:
    return {key: value for key, value in section(body, "plan").items() if value is not None}


def check_plan(records: Records, image: Image, body: Json, subscription: str) -> None:
    marketplace.check_plan(records, image, plan(body), subscription)


def check_unchanged(known: Resource, body: Json, properties: Json) -> None:
    """Refuse to change what cannot be changed on an existing VM; what is not sent stays."""
    held = known.body["properties"]
    reference, kept = (
        section(properties, "storageProfile", "imageReference"),
        held["storageProfile"]["imageReference"],
    )
    for key in ("publisher", "offer", "sku", "version"):
        if reference.get(key) is not None and not same(str(reference[key]), str(kept.get(key, ""))):
            raise immutable("imageReference")
    disk = section(properties, "storageProfile", "osDisk")
    if disk.get("name") is not None and not same(str(disk["name"]), held["storageProfile"]["osDisk"]["name"]):
        raise immutable("osDisk.name")
    if disk.get("diskSizeGB") is not None and disk["diskSizeGB"] != held["storageProfile"]["osDisk"]["diskSizeGB"]:
        raise immutable("osDisk.diskSizeGB")
    if body.get("zones") is not None and zones(body) != known.body.get("zones", []):
        raise immutable("zones")
    if plan(body) and plan(body) != known.body.get("plan", {}):
        raise immutable("plan")
    _check_guest_unchanged(known, section(properties, "osProfile"))


def _check_guest_unchanged(known: Resource, profile: Json) -> None:
    held = known.body["properties"]["osProfile"]
    for key in ("computerName", "adminUsername"):
        if profile.get(key) is not None and profile[key] != held[key]:
            raise immutable(f"osProfile.{key}")
    if profile.get("customData") is not None and custom_data_digest(profile) != known.private["custom_data_digest"]:
        raise immutable("osProfile.customData")
    sent = entries(section(profile, "linuxConfiguration", "ssh"), "publicKeys", "ssh")
    if sent and [key.get("keyData") for key in sent] != known.private["ssh_keys"]:
        raise immutable("linuxConfiguration.ssh.publicKeys")
