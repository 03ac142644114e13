"""SDK error -> our named errors, in one place: the table below."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cloudtrain.errors import Blocks, CloudtrainError, Exit, Refused


@dataclass(frozen=True)
class Known:
    """One thing that Azure says no to.

    code: Azure's. says: what the message holds (in small letters) where the code alone stands for several things, and
    name: what we call it then. status: the HTTP status, where it is that which tells."""

    code: str
    blocks: Blocks
    why: str
    hint: str
    says: str = ""
    name: str = ""
    status: int | None = None
    exit_code: Exit = Exit.REFUSED


AGAIN = "Run the same command again."
LATER = "Run the same command again in a minute."
ELSEWHERE = "cloudtrain up --size SIZE or --location REGION  asks for another; or try the same again later."
QUOTA = (
    "Ask for a higher quota (Azure portal: Quotas, or the address above), stop other Spot VMs (deallocated ones still "
    "count), or choose a smaller --size or another --location."
)
REPORT = "cloudtrain made a request that Azure does not take: please report it, with the message above."
SUBSCRIPTION = "az account list  shows your subscriptions; then --subscription ID."
LOGIN = "az login  logs in again; then run the same command again."
RIGHTS = "Ask for the Contributor role on the subscription, or log in as somebody who has it."
IMAGE = "Use --vm-image ubuntu-hpc, which has no plan and no terms."

# Azure's answers to what cloudtrain asks, synchronous (4xx) or as the end of an operation (HTTP 200). Codes and texts
# are Azure's documented ones; what each blocks is what Azure's own autoscaler takes it to mean (karpenter-provider-
# azure, commonerrorhandlers.go). The first row that fits counts.
KNOWN: tuple[Known, ...] = (
    # capacity
    Known("SkuNotAvailable", Blocks.SIZE, "this size is not available to you in this region now", ELSEWHERE),
    Known("AllocationFailed", Blocks.SIZE, "Azure has no capacity for this size in this region now", ELSEWHERE),
    Known("ZonalAllocationFailed", Blocks.ZONE, "Azure has no capacity for this size in this zone now", ELSEWHERE),
    Known(
        "OverconstrainedZonalAllocationRequest",
        Blocks.ZONE,
        "Azure has no Spot capacity for this size in this zone now",
        ELSEWHERE,
    ),
    Known(
        "OverconstrainedAllocationRequest",
        Blocks.SIZE,
        "Azure has no Spot capacity for this size in this region now",
        ELSEWHERE,
    ),
    # quota: one code for several limits, and for much else
    *(
        Known(code, blocks, why, QUOTA, says, name)
        for code in ("OperationNotAllowed", "QuotaExceeded")
        for blocks, why, says, name in (
            (
                Blocks.SPOT,
                "the region's quota of Spot cores is too small",
                "exceeding approved lowprioritycores quota",
                "SpotQuotaExceeded",
            ),
            (
                Blocks.REGION,
                "the region's quota of cores is too small",
                "exceeding approved total regional cores quota",
                "RegionalQuotaExceeded",
            ),
            (
                Blocks.SIZE,
                "the quota of this family of sizes is too small",
                "exceeding approved",
                "FamilyQuotaExceeded",
            ),
        )
    ),
    Known("QuotaExceeded", Blocks.SIZE, "a quota is too small", QUOTA),
    # price and Spot
    Known(
        "SpotPriceGreaterThanProvidedMaxPrice",
        Blocks.SIZE,
        "the Spot price is above your maximum",
        "cloudtrain up --max-price USD  raises it (-1: up to the on-demand price); another --size or --location may be "
        "cheaper.",
    ),
    Known(
        "MaxPriceValueInvalid",
        Blocks.EVERYTHING,
        "the maximum price is no price",
        "cloudtrain up --max-price USD  takes -1 or a price above 0 with at most 5 decimals.",
    ),
    Known(
        "MaxPriceChangeNotAllowedForAllocatedVMs",
        Blocks.EVERYTHING,
        "the maximum price changes only while the VM is deallocated",
        "cloudtrain stop  deallocates it; then run up again.",
    ),
    Known(
        "AzureSpotIsNotSupportedForThisVMSize",
        Blocks.SIZE,
        "this size cannot be Spot",
        "cloudtrain up --size Standard_D2s_v3  is one that can.",
    ),
    Known(
        "AzureSpotFeatureNotEnabledForSubscription",
        Blocks.SPOT,
        "this subscription has no Spot VMs",
        "Free-trial and student subscriptions have none: use a pay-as-you-go one (--subscription ID).",
    ),
    Known(
        "EvictionPolicyCanBeSetOnlyOnAzureSpotVirtualMachines",
        Blocks.EVERYTHING,
        "an eviction policy belongs to Spot VMs",
        REPORT,
    ),
    Known("VMPriorityCannotBeApplied", Blocks.EVERYTHING, "a VM's priority cannot change", REPORT),
    Known(
        "AzureSpotVMNotSupportedInAvailabilitySet",
        Blocks.EVERYTHING,
        "an availability set holds no Spot VMs",
        REPORT,
    ),
    # image
    Known(
        "ResourcePurchaseValidationFailed",
        Blocks.EVERYTHING,
        "the terms of the VM image are not accepted",
        "--accept-terms  (of up, and of doctor) accepts them; --vm-image ubuntu-hpc  has none.",
    ),
    Known(
        "MarketplacePurchaseEligibilityFailed",
        Blocks.EVERYTHING,
        "this subscription may not buy the VM image",
        IMAGE,
    ),
    Known("VMMarketplaceInvalidInput", Blocks.EVERYTHING, "the plan does not go with the VM image", IMAGE),
    # request
    Known(
        "InvalidParameter",
        Blocks.SIZE,
        "the region does not have this size",
        "az vm list-skus -l REGION --resource-type virtualMachines -o table  lists what it has; then --size SIZE.",
        says="valid sizes in the current region",
    ),
    Known("InvalidParameter", Blocks.EVERYTHING, "Azure does not take a value", "Check --size and --location."),
    Known(
        "LocationNotAvailableForResourceGroup",
        Blocks.REGION,
        "there is no such region for you",
        "az account list-locations -o table  lists them; then --location REGION.",
    ),
    Known(
        "LocationNotAvailableForResourceType",
        Blocks.REGION,
        "the region does not have this",
        "az account list-locations -o table  lists the others; then --location REGION.",
    ),
    # who asks
    Known("AuthorizationFailed", Blocks.EVERYTHING, "your login lacks the right", RIGHTS),
    Known("SubscriptionNotFound", Blocks.EVERYTHING, "your login sees no such subscription", SUBSCRIPTION),
    Known("InvalidSubscriptionId", Blocks.EVERYTHING, "this is no subscription id", SUBSCRIPTION),
    Known(
        "ReadOnlyDisabledSubscription",
        Blocks.EVERYTHING,
        "the subscription is disabled",
        "Enable it again in the Azure portal, or use another: --subscription ID.",
    ),
    Known(
        "MissingSubscriptionRegistration",
        Blocks.EVERYTHING,
        "the subscription is not registered for a provider",
        "up registers it by itself, and so does  doctor --register  (free; it takes a minute or so).",
    ),
    Known(
        "InvalidAuthenticationTokenTenant",
        Blocks.EVERYTHING,
        "your login belongs to another tenant than the subscription",
        "az login --tenant TENANT  logs in to the subscription's tenant.",
        exit_code=Exit.UNREACHABLE,
    ),
    Known(
        "ExpiredAuthenticationToken",
        Blocks.EVERYTHING,
        "your login has expired",
        LOGIN,
        exit_code=Exit.UNREACHABLE,
    ),
    Known(
        "InvalidAuthenticationToken",
        Blocks.EVERYTHING,
        "your login is not accepted",
        LOGIN,
        exit_code=Exit.UNREACHABLE,
    ),
    # what passes
    *(
        Known(code, Blocks.NOTHING, "there were too many requests", LATER, name="TooManyRequests", status=429)
        for code in ("OperationNotAllowed", "TooManyRequests", "SubscriptionRequestsThrottled")
    ),
    Known(
        "RetryableErrorDueToAnotherOperation",
        Blocks.NOTHING,
        "another operation on the network is in progress",
        LATER,
    ),
    Known(
        "ResourceGroupBeingDeleted",
        Blocks.NOTHING,
        "somebody is deleting the run's resource group",
        "cloudtrain down  waits for its end; cloudtrain up  then begins anew.",
    ),
    Known(
        "Conflict",
        Blocks.NOTHING,
        "another RunCommand is running on the VM",
        "Run the same command again once it has ended (Azure ends one after 90 minutes at the latest).",
        says="run command extension execution is in progress",
        name="RunCommandBusy",
    ),
    *(
        Known(code, Blocks.NOTHING, "another operation is in progress", LATER, says, "OperationInProgress")
        for code, says in (
            ("OperationNotAllowed", "another operation is in progress"),
            ("Conflict", "concurrent request"),
        )
    ),
    *(
        Known(
            "OperationNotAllowed",
            Blocks.NOTHING,
            "the VM does not run",
            "cloudtrain restart  starts it; cloudtrain status  shows the run.",
            says,
            "VmNotRunning",
        )
        for says in ("requires the vm to be running", "vm is not running")
    ),
    Known(
        "OperationPreempted",
        Blocks.NOTHING,
        "a later operation took its place",
        "cloudtrain status  shows the run; then run the same command again.",
    ),
    Known(
        "NotFound",
        Blocks.NOTHING,
        "the VM is gone: it was evicted before it was made",
        AGAIN,
        name="EvictedWhileMade",
        status=200,  # the end of an operation; a request for what is not there gets 404
    ),
    Known("OSProvisioningTimedOut", Blocks.NOTHING, "the VM was made, and did not boot in time", AGAIN),
    Known("OSProvisioningClientError", Blocks.NOTHING, "the VM was made, and could not be set up", AGAIN),
    Known("VMStartTimedOut", Blocks.NOTHING, "the VM did not start in time", AGAIN),
    Known("InternalExecutionError", Blocks.NOTHING, "Azure failed", AGAIN),
)
HINTS = {known.code: known.hint for known in reversed(KNOWN)}
"""What to run next, for checks that meet the same trouble beforehand."""
# They carry the true reason in their details.
WRAPPERS = ("InvalidTemplateDeployment", "DeploymentFailed", "MarketplacePurchaseEligibilityFailed")


def code_of(error: Any) -> str:
    """Azure's error code, '' where the answer had none."""
    return next((body.code for body in _bodies(error) if body.code), "")


def message_of(error: Any) -> str:
    said = next((body.message for body in _bodies(error) if body.message), "")
    return said or getattr(error, "message", None) or str(error)


def _bodies(error: Any) -> list[Any]:
    """The SDK's views of the error body, the innermost detail of a wrapper first."""
    body = getattr(error, "error", None)
    found = [] if body is None else [body]
    while found and found[0].code in WRAPPERS and found[0].details:
        found.insert(0, found[0].details[0])
    return found


def is_missing(error: Any) -> bool:
    return getattr(error, "status_code", None) == 404


def in_conflict(error: Any) -> bool:
    """Something else holds the resource: wait and try again. Azure says so with 409, which is a ResourceExistsError of
    the SDK, whatever it is about."""
    known = recognised(error)
    return known is not None and known.name in ("OperationInProgress", "RunCommandBusy")


def recognised(error: Any) -> Known | None:
    """The row of the table for an error of the SDK's; None for one that is not in it."""
    status = getattr(error, "status_code", None)
    for body in _bodies(error):
        text = str(body.message or "").lower()
        for known in KNOWN:
            if known.code == body.code and known.says in text and known.status in (None, status):
                return known
    return None


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turns what the SDK raises into a CloudtrainError. doing: "creating the VM", for the message."""
    from azure.core.exceptions import (
        ClientAuthenticationError,
        HttpResponseError,
        ServiceRequestError,
        ServiceResponseError,
    )

    try:
        yield
    except (ServiceRequestError, ServiceResponseError) as error:
        raise _unreachable(doing, error) from error
    except HttpResponseError as error:
        known = recognised(error)
        if known is None and isinstance(error, ClientAuthenticationError):
            raise _not_logged_in(doing, error) from error
        raise _told(doing, error, known) from error


def _unreachable(doing: str, error: Any) -> CloudtrainError:
    return CloudtrainError(
        "CloudUnreachable",
        f"Azure could not be reached while {doing}: {message_of(error)}",
        "Check the network, then run the same command again: it goes on from what is there.",
        Exit.UNREACHABLE,
        Blocks.NOTHING,
    )


def _not_logged_in(doing: str, error: Any) -> CloudtrainError:
    # DefaultAzureCredential's message lists every way it tried, over 20 lines: the first says enough.
    reason = message_of(error).strip().splitlines()[0]
    return CloudtrainError(
        "NotLoggedIn",
        f"No Azure login was found while {doing}: {reason}",
        "az login  logs in; or set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET. Without --cloud azure "
        "the run is a rehearsal, which needs no login.",
        Exit.UNREACHABLE,
        Blocks.EVERYTHING,
    )


def _told(doing: str, error: Any, known: Known | None) -> CloudtrainError:
    said = message_of(error).strip()
    if known is None:
        return _unknown(doing, error, code_of(error), said)
    name, message = known.name or known.code, f"Azure refused while {doing}: {known.why}. Azure says: {said}"
    if known.exit_code is Exit.REFUSED:
        return Refused(name, message, known.hint, known.blocks)
    return CloudtrainError(name, message, known.hint, known.exit_code, known.blocks)


def _unknown(doing: str, error: Any, code: str, said: str) -> CloudtrainError:
    status = getattr(error, "status_code", None) or 0
    if not status and not code:
        # An answer that broke off half-way: azure-core raises it as an IncompleteReadError or a DecodeError, which are
        # HttpResponseErrors without a response, and azure-storage-blob, after three tries, as a bare HttpResponseError.
        return _unreachable(doing, error)
    if status == 429:
        return Refused("TooManyRequests", f"Azure refused while {doing}: {said}", LATER, Blocks.NOTHING)
    if status >= 500:
        return CloudtrainError(
            code or "ServerError",
            f"Azure failed while {doing} (HTTP {status}): {said}",
            AGAIN,
            Exit.UNREACHABLE,
            Blocks.NOTHING,
        )
    # Nothing is known of it but that it is no failure of the moment: SkyPilot's rule, too, is to go elsewhere.
    hint = "cloudtrain status  shows the run; -vv shows the requests."
    return Refused(code or f"Http{status}", f"Azure refused while {doing}: {said}", hint, Blocks.REGION)
