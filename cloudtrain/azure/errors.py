"""SDK error -> our named errors, in one place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cloudtrain.errors import CloudtrainError, Exit, Refused

NO_CAPACITY = "Azure has no capacity for it here now. Try again later, another --size or another --location."
# What to do about a refusal, by Azure's error code. The codes and texts: Azure's documentation of allocation,
# quota and Spot errors; several arrive as the result of an operation that was accepted (HTTP 200).
HINTS = {
    "SkuNotAvailable": "Try another --size or --location; this one has no capacity for you now.",
    "AllocationFailed": NO_CAPACITY,
    "ZonalAllocationFailed": NO_CAPACITY,
    "OverconstrainedAllocationRequest": NO_CAPACITY,
    "OverconstrainedZonalAllocationRequest": NO_CAPACITY,
    "SpotPriceGreaterThanProvidedMaxPrice": "Raise --max-price above the Spot price named above, "
    "or use -1 (never evicted for price).",
    "AzureSpotIsNotSupportedForThisVMSize": "Choose a size that can be Spot, such as Standard_D2s_v3.",
    "AzureSpotFeatureNotEnabledForSubscription": "Free-trial and student subscriptions have no Spot VMs; "
    "use pay-as-you-go.",
    "ResourcePurchaseValidationFailed": "Accept the image's terms once: az vm image terms accept --urn URN; "
    "or use --vm-image ubuntu-hpc, which has none.",
    "MarketplacePurchaseEligibilityFailed": "Use --vm-image ubuntu-hpc, which needs no purchase.",
    "AuthorizationFailed": "Ask for the Contributor role on the subscription, or log in as somebody who has it.",
    "ReadOnlyDisabledSubscription": "Re-enable the subscription in the Azure portal, or choose another.",
    "SubscriptionNotFound": "Check the id: az account list; then --subscription ID.",
    "InvalidSubscriptionId": "Check the id: az account list; then --subscription ID.",
    "MissingSubscriptionRegistration": "Register the provider: az provider register --namespace NAME.",
    "InvalidParameter": "Check --size and --location.",
    "LocationNotAvailableForResourceGroup": "Choose another --location: az account list-locations -o table.",
}
QUOTA_HINT = (
    "Ask for a higher quota at the address above, stop other Spot VMs (deallocated ones still count), "
    "or choose a smaller --size."
)


def code_of(error: Any) -> str:
    """Azure's error code, '' where the answer had none."""
    inner = getattr(error, "error", None)
    return getattr(inner, "code", None) or ""


def message_of(error: Any) -> str:
    inner = getattr(error, "error", None)
    return getattr(inner, "message", None) or getattr(error, "message", None) or str(error)


def is_missing(error: Any) -> bool:
    return getattr(error, "status_code", None) == 404


def in_conflict(error: Any) -> bool:
    """Another operation holds the resource: wait and try again."""
    if getattr(error, "status_code", None) != 409:
        return False
    text = message_of(error)
    return "another operation is in progress" in text or "concurrent request" in text


def is_not_running(error: Any) -> bool:
    """The VM is not running, so the guest cannot be reached."""
    text = message_of(error)
    return getattr(error, "status_code", None) == 409 and (
        "requires the VM to be running" in text or "VM is not running" in text
    )


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
    except ClientAuthenticationError as error:
        raise _not_logged_in(doing, error) from error
    except (ServiceRequestError, ServiceResponseError) as error:
        raise CloudtrainError(
            "CloudUnreachable",
            f"Azure could not be reached while {doing}: {message_of(error)}",
            "Check the network, then run the same command again.",
            Exit.UNREACHABLE,
        ) from error
    except HttpResponseError as error:
        raise _refused(doing, error) from error


def _not_logged_in(doing: str, error: Any) -> CloudtrainError:
    # DefaultAzureCredential's message lists every way it tried, over 20 lines: the first says enough.
    reason = message_of(error).strip().splitlines()[0]
    return CloudtrainError(
        "NotLoggedIn",
        f"No Azure login was found while {doing}: {reason}",
        "az login  logs in; or set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET. Without --cloud azure "
        "the run is a rehearsal, which needs no login.",
        Exit.UNREACHABLE,
    )


def _refused(doing: str, error: Any) -> CloudtrainError:
    code, message = code_of(error), message_of(error)
    # A template or policy wraps the true reason: the innermost detail says what is wrong.
    inner = getattr(error, "error", None)
    details = getattr(inner, "details", None)
    if code in ("InvalidTemplateDeployment", "DeploymentFailed") and details:
        code, message = details[0].code or code, details[0].message or message
    hint = QUOTA_HINT if "quota" in message.lower() else HINTS.get(code, "")
    status = getattr(error, "status_code", None)
    if status is not None and status >= 500:
        return CloudtrainError(
            code or "ServerError",
            f"Azure failed while {doing}: {message}",
            "Run the same command again.",
            Exit.UNREACHABLE,
        )
    return Refused(code or f"Http{status}", f"Azure refused while {doing}: {message}", hint)
