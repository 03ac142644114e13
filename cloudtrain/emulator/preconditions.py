"""What Resource Manager itself refuses, whatever the provider: places, groups, names, tags, registrations."""

import re
from typing import Any

from cloudtrain.emulator import catalog, ids
from cloudtrain.emulator.store import Json, Records, Resource
from cloudtrain.emulator.wire import ArmError, bad_type, same

_TAG_COUNT, _TAG_NAME, _TAG_VALUE = 50, 512, 256
_TAG_NAME_FORBIDS = re.compile(r"[<>%&\\?/\x00-\x1f]")


def group_not_found(name: str) -> ArmError:
    return ArmError(
        404,
        "ResourceGroupNotFound",
        f"Resource group '{name}' could not be found.",
        headers={"x-ms-failure-cause": "gateway"},
    )


def resource_not_found(type_: str, path: str, group: str) -> ArmError:
    """path: the names, 'vnet1' or 'vm1/runCommands/x'."""
    return ArmError(
        404,
        "ResourceNotFound",
        f"The Resource '{type_}/{path}' under resource group '{group}' was not found. "
        "For more details please go to https://aka.ms/ARMResourceNotFoundFix",
        headers={"x-ms-failure-cause": "gateway"},
    )


def parent_not_found(type_: str, name: str, child: str) -> ArmError:
    return ArmError(
        404,
        "ParentResourceNotFound",
        f"Failed to perform '{child}' on resource(s) of type '{type_}', because the parent resource "
        f"'{name}' could not be found.",
        headers={"x-ms-failure-cause": "gateway"},
    )


def readable_group(records: Records, subscription: str, name: str) -> Resource:
    group = records.resource(ids.group_id(subscription, name))
    if group is None:
        raise group_not_found(name)
    return group


def writable_group(records: Records, subscription: str, name: str) -> Resource:
    group = readable_group(records, subscription, name)
    if group.body["properties"]["provisioningState"] == "Deleting":
        raise ArmError(
            409,
            "ResourceGroupBeingDeleted",
            f"The resource group '{group.name}' is in deprovisioning state and cannot perform this operation.",
        )
    return group


def registered(records: Records, namespace: str, location: str = "") -> None:
    """Raises the refusal that makes azure-mgmt-core's clients register the provider and try again."""
    if records.setting(f"provider:{namespace.lower()}") != "Registered":
        message = (
            f"The subscription is not registered to use namespace '{namespace}'. "
            "See https://aka.ms/rps-not-found for how to register subscriptions."
        )
        detail = {"code": "MissingSubscriptionRegistration", "target": namespace, "message": message}
        raise ArmError(409, "MissingSubscriptionRegistration", message, details=[detail])


def location(body: Json, type_: str) -> str:
    """The region's name in Azure's own form ('East US' is 'eastus'). Raises ArmError."""
    given = body.get("location")
    if given is None or given == "":
        raise ArmError(400, "LocationRequired", "The location property is required for this definition.")
    if not isinstance(given, str):
        raise bad_type("location", given, "string")
    name = given.replace(" ", "").lower()
    if name not in catalog.REGIONS:
        regions = ",".join(catalog.REGIONS)
        if type_ == ids.GROUP:
            raise ArmError(
                400,
                "LocationNotAvailableForResourceGroup",
                f"The provided location '{given}' is not available for resource group. "
                f"List of available regions is '{regions}'.",
            )
        raise ArmError(
            400,
            "LocationNotAvailableForResourceType",
            f"The provided location '{given}' is not available for resource type '{type_}'. "
            f"List of available regions for the resource type is '{regions}'.",
        )
    return name


def same_location(existing: Resource | None, wanted: str, group: str) -> None:
    if existing is not None and not same(existing.location, wanted):
        raise ArmError(
            409,
            "InvalidResourceLocation",
            f"The resource '{existing.name}' already exists in location '{existing.location}' in resource "
            "group "
            f"'{group}'. A resource with the same name cannot be created in location '{wanted}'. "
            "Please select a new resource name.",
        )


def tags(given: Any) -> dict[str, str] | None:
    """The tags as they will be kept; None when none were sent. Raises ArmError."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise bad_type("tags", given, "Dictionary`2[System.String,System.String]")
    if len(given) > _TAG_COUNT:
        raise ArmError(
            400,
            "InvalidTagCount",
            f"The number of tags '{len(given)}' exceeds the maximum of '{_TAG_COUNT}' tags.",
        )
    kept: dict[str, str] = {}
    for name, value in given.items():
        _check_tag(name, value)
        if name.lower() in (other.lower() for other in kept):
            raise ArmError(400, "DuplicateTags", f"The tag name '{name}' is given more than once.")
        kept[name] = "" if value is None else value
    return kept


def _check_tag(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise bad_type(f"tags.{name}", value, "string")
    if not name or _TAG_NAME_FORBIDS.search(name):
        raise ArmError(
            400,
            "InvalidTagNameCharacters",
            f"The tag names '{name}' have reserved characters '<,>,%,&,\\,?,/' or control characters.",
        )
    if len(name) > _TAG_NAME:
        raise ArmError(400, "InvalidTagName", f"The tag name '{name[:60]}...' is longer than {_TAG_NAME} characters.")
    if value is not None and len(value) > _TAG_VALUE:
        raise ArmError(
            400,
            "TagValueTooLong",
            f"The tag value of '{name}' has {len(value)} characters; tag values cannot exceed {_TAG_VALUE} characters.",
        )


def resource_name(name: str, type_: str, pattern: str, longest: int) -> None:
    if len(name) > longest or not re.fullmatch(pattern, name):
        raise ArmError(
            400,
            "InvalidResourceName",
            f"Resource name {name} is invalid. The name can be up to {longest} characters long. It must "
            "begin with a "
            "word character, and it must end with a word character or with '_'. The name may contain word "
            "characters "
            "or '.', '-', '_'.",
            target=type_,
        )
