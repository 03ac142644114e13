"""Azure's refusals by code, with the texts that Azure gives: what a fault can be told to answer.

`status` is that of the synchronous form; as the end of an operation the same code and text come with HTTP 200. Where
Azure's documentation names no status, or the text is only known from what users report, it is the most likely one."""

from collections.abc import Mapping
from dataclasses import dataclass

from cloudtrain.emulator.store import Json
from cloudtrain.emulator.wire import ArmError


@dataclass(frozen=True)
class Refusal:
    """message: with the fields of `Circumstances`. target: of the error. details: codes of the errors inside."""

    status: int
    message: str
    target: str | None = None
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Circumstances:
    """What a refusal is about; 'unknown' where the request does not say."""

    subscription: str
    group: str = "unknown"
    size: str = "unknown"
    location: str = "unknown"
    zone: str = "1"


_GUIDANCE = " Read more about improving likelihood of allocation success at http://aka.ms/allocation-guidance"
_CONSTRAINED = (
    "Allocation failed. VM(s) with the following constraints cannot be allocated, because the condition is too "
    "restrictive. Please remove some constraints and try again. Constraints applied are:\n{constraints}"
    "  - Low Priority VMs\n  - Networking Constraints (such as Accelerated Networking or IPv6)\n"
    "  - Preemptible VMs (VM might be preempted by another VM with a higher priority)\n  - VM Size\n"
)

REFUSALS: Mapping[str, Refusal] = {
    "SkuNotAvailable": Refusal(
        409,
        "The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: {size}' is "
        "currently not available in location '{location}'. Please try another size or deploy to a different location "
        "or different zone. See https://aka.ms/azureskunotavailable for details.",
        target="sku.name",
    ),
    "AllocationFailed": Refusal(
        409,
        "Allocation failed. We do not have sufficient capacity for the requested VM size in this region." + _GUIDANCE,
    ),
    "ZonalAllocationFailed": Refusal(
        409,
        "Allocation failed. We do not have sufficient capacity for the requested VM size {size} in zone {zone}."
        + _GUIDANCE,
    ),
    "OverconstrainedAllocationRequest": Refusal(409, _CONSTRAINED.replace("{constraints}", "")),
    "OverconstrainedZonalAllocationRequest": Refusal(
        409, _CONSTRAINED.replace("{constraints}", "  - Availability Zone\n")
    ),
    "QuotaExceeded": Refusal(
        409,
        "Operation could not be completed as it results in exceeding approved LowPriorityCores quota. Additional "
        "details - Deployment Model: Resource Manager, Location: {location}, Current Limit: 0, Current Usage: 0, "
        "Additional Required: 2, (Minimum) New Limit Required: 2.",
    ),
    "SpotPriceGreaterThanProvidedMaxPrice": Refusal(
        409,
        "Unable to perform operation 'Create Virtual Machine' since the provided max price '0.00001 USD' is lower "
        "than the current spot price '1 USD' for Azure Spot Virtual Machine size '{size}'.",
    ),
    "MaxPriceValueInvalid": Refusal(400, "The max price value should be either '-1' or a value greater than 0."),
    "MaxPriceChangeNotAllowedForAllocatedVMs": Refusal(
        400,
        "Max price change is not allowed when the VM is currently allocated. Please deallocate and try again.",
    ),
    "AzureSpotIsNotSupportedForThisVMSize": Refusal(
        400, "Azure Spot Virtual Machine is not supported for this VM size {size}."
    ),
    "AzureSpotFeatureNotEnabledForSubscription": Refusal(
        400, "Azure Spot Virtual Machine is not supported for this subscription."
    ),
    "EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines": Refusal(
        400, "Eviction policy can be set only on Azure Spot Virtual Machines."
    ),
    "VMPriorityCannotBeApplied": Refusal(400, "The specified priority value cannot be applied to the virtual machine."),
    "AzureSpotVMNotSupportedInAvailabilitySet": Refusal(
        400, "Azure Spot Virtual Machine is not supported in Availability Set."
    ),
    "ResourcePurchaseValidationFailed": Refusal(
        400,
        "User failed validation to purchase resources. Error message: 'You have not accepted the legal terms on this "
        "subscription: '{subscription}' for this plan. Before the subscription can be used, you need to accept the "
        "legal terms of the image.'",
    ),
    "MarketplacePurchaseEligibilityFailed": Refusal(
        400,
        "Marketplace purchase eligibilty check returned errors. See inner errors for details.",
        details=("BadRequest",),
    ),
    "BadRequest": Refusal(400, "Offer with PublisherId: 'nvidia' cannot be purchased: not to be sold in market: 'CN'."),
    "VMMarketplaceInvalidInput": Refusal(
        400,
        "Creating a virtual machine from Marketplace image or a custom image sourced from a Marketplace image "
        "requires Plan information in the request.",
    ),
    "InvalidParameter": Refusal(
        400,
        "The value {size} provided for the VM size is not valid. The valid sizes in the current region are: "
        "Standard_D2s_v3.",
        target="vmSize",
    ),
    "AuthorizationFailed": Refusal(
        403,
        "The client 'somebody@example.com' with object id '00000000-0000-0000-0000-000000000000' does not have "
        "authorization to perform action 'Microsoft.Compute/virtualMachines/write' over scope "
        "'/subscriptions/{subscription}/resourceGroups/{group}' or the scope is invalid. If access was recently "
        "granted, please refresh your credentials.",
    ),
    "SubscriptionNotFound": Refusal(404, "The subscription '{subscription}' could not be found."),
    "ReadOnlyDisabledSubscription": Refusal(
        409,
        "The subscription '{subscription}' is disabled and therefore marked as read only. You cannot perform any write "
        "actions on this subscription until it is re-enabled.",
    ),
    "ResourceGroupBeingDeleted": Refusal(
        409, "The resource group '{group}' is in deprovisioning state and cannot perform this operation."
    ),
    "InvalidAuthenticationTokenTenant": Refusal(
        401,
        "The access token is from the wrong issuer. It must match the tenant associated with this subscription.",
    ),
    "ExpiredAuthenticationToken": Refusal(401, "The access token expiry UTC time is earlier than current UTC time."),
    "InvalidTemplateDeployment": Refusal(
        400,
        "The template deployment failed because of a problem. See inner errors for details.",
        details=("SkuNotAvailable",),
    ),
    "OSProvisioningTimedOut": Refusal(
        409,
        "OS Provisioning for VM did not finish in the allotted time. The VM may still finish provisioning "
        "successfully. Please check provisioning state later.",
    ),
    "OSProvisioningClientError": Refusal(409, "OS provisioning failed for the VM: an internal error occurred."),
    "VMStartTimedOut": Refusal(
        409, "VM did not start in the allotted time. The VM may still start successfully. Please check the power state "
        "later."
    ),
    "InternalExecutionError": Refusal(500, "An internal execution error occurred."),
    "Conflict": Refusal(
        409, "The request failed due to conflict with a concurrent request. To resolve it, please refer to "
        "https://aka.ms/activitylog to get more details on the conflicting requests."
    ),
}  # fmt: skip


def refused(code: str, about: Circumstances) -> ArmError:
    """The answer. code: one of REFUSALS."""
    known = REFUSALS[code]
    details = [refused(inner, about).error() for inner in known.details]
    return ArmError(known.status, code, _text(known, about), known.target, details)


def failure(code: str, about: Circumstances) -> Json:
    """The `error` of an operation that ended so."""
    return refused(code, about).error()


def _text(known: Refusal, about: Circumstances) -> str:
    fields = vars(about)
    text = known.message
    for name, value in fields.items():
        text = text.replace(f"{{{name}}}", value)
    return text
