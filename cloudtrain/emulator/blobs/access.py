"""Who may do what: by account key, by bearer token, by shared access signature, or not at all."""

from dataclasses import dataclass

from cloudtrain.emulator.blobs import sas, shared_key
from cloudtrain.emulator.blobs.account import Account
from cloudtrain.emulator.blobs.call import Call
from cloudtrain.emulator.blobs.errors import not_authentic, refused
from cloudtrain.emulator.blobs.index import Container
from cloudtrain.emulator.blobs.sas import Grant


@dataclass(frozen=True)
class Need:
    """What an operation takes.

    right: of a role ('' : a role is not enough). service_sas: any of these letters in a SAS of the service, '' if
    none gives it. account_sas: the same for a SAS of the account, whose types of resource must hold `level` ('s'
    service, 'c' container, 'o' object)."""

    right: str
    level: str
    service_sas: str = ""
    account_sas: str = ""


def authorize(call: Call, account: Account, need: Need, container: Container | None) -> Grant:
    """Raises BlobError."""
    if account.https_only and not call.secure:
        raise refused("AccountRequiresHttps")
    scheme = call.header("authorization").partition(" ")[0].lower()
    grant = _authenticated(call, account, need, container, scheme)
    if not account.open_network:
        raise refused("AuthorizationFailure")
    return grant


def _authenticated(call: Call, account: Account, need: Need, container: Container | None, scheme: str) -> Grant:
    if scheme == "sharedkey":
        if need.right == "delegate":
            raise not_authentic("Only authentication scheme Bearer is supported")
        shared_key.check(call, account)
        return Grant()
    if scheme == "bearer":
        _check_role(call, account, need)
        return Grant()
    if scheme:
        raise not_authentic(f"The scheme '{scheme}' is not known.")
    if "sig" in call.query:
        return _check_signature(call, account, need, container)
    if call.header("x-ms-version") and not account.public_access:
        raise refused("PublicAccessNotPermitted")
    raise refused("NoAuthenticationInformation", _challenge(account))


def _challenge(account: Account) -> dict[str, str]:
    uri = f"https://login.microsoftonline.com/{account.tenant}/oauth2/authorize"
    return {"WWW-Authenticate": f"Bearer authorization_uri={uri} resource_id=https://storage.azure.com"}


def _check_role(call: Call, account: Account, need: Need) -> None:
    principal = account.principal(call.header("authorization").partition(" ")[2].strip())
    if principal is None:
        raise refused("InvalidAuthenticationInfo", _challenge(account))
    if not call.header("x-ms-version"):
        raise not_authentic("A bearer token needs the header x-ms-version.")
    if not account.may(principal, call.container, need.right):
        raise refused("AuthorizationPermissionMismatch")


def _check_signature(call: Call, account: Account, need: Need, container: Container | None) -> Grant:
    grant = sas.check(call, account, container)
    allowed = need.account_sas if call.query.get("ss") else need.service_sas
    if not allowed:
        raise refused("AuthorizationFailure")
    if call.query.get("ss") and need.level not in call.query.get("srt", ""):
        raise refused("AuthorizationResourceTypeMismatch")
    if not set(allowed) & set(grant.permissions or ""):
        raise refused("AuthorizationPermissionMismatch")
    # What a user signed can do no more than the user may at this moment.
    if call.query.get("skoid") and not account.may(call.query["skoid"], call.container, need.right):
        raise refused("AuthorizationPermissionMismatch")
    return grant
