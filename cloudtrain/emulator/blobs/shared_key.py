"""`Authorization: SharedKey`: learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key"""

import hmac

from cloudtrain.emulator.blobs.account import Account
from cloudtrain.emulator.blobs.call import Call
from cloudtrain.emulator.blobs.errors import BlobError, not_authentic, refused
from cloudtrain.emulator.blobs.sas import sign

_SIGNED = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)


def string_to_sign(call: Call) -> str:
    values = ["" if name == "content-length" and value == "0" else value for name, value in _signed(call)]
    ours = sorted((name for name in call.headers if name.startswith("x-ms-")), key=_order)
    headers = "".join(f"{name}:{call.headers[name]}\n" for name in ours)
    query = "".join(f"\n{name}:{value}" for name, value in sorted(call.query.items()))
    return "\n".join([call.method, *values]) + f"\n{headers}/{call.account}{call.host_path}{query}"


def _signed(call: Call) -> list[tuple[str, str]]:
    # x-ms-date stands for Date where both are there.
    return [(name, "" if name == "date" and "x-ms-date" in call.headers else call.header(name)) for name in _SIGNED]


def _order(name: str) -> tuple[str, str]:
    # The service sorts as Windows does: hyphens count only between names that are otherwise the same, and '_' stands
    # before digits.
    return name.replace("-", "").replace("_", "!"), name


def check(call: Call, account: Account) -> None:
    """Raises BlobError."""
    if not account.shared_key:
        raise refused("KeyBasedAuthenticationNotPermitted")
    name, colon, given = call.header("authorization").partition(" ")[2].strip().partition(":")
    if not colon:
        message = "Authentication information is not given in the correct format. Check the value of Authorization "
        raise BlobError(400, "InvalidAuthenticationInfo", message + "header.")
    text = string_to_sign(call)
    matching = any(hmac.compare_digest(sign(key, text).encode(), given.encode()) for key in account.keys)
    if name != account.name or not matching:
        raise not_authentic(
            f"The MAC signature found in the HTTP request '{given}' is not the same as any computed signature. "
            f"Server used following string to sign: '{text}'."
        )
