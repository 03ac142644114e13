"""The WSGI app: authentication, api-versions, routing without case, the error envelope, rate-limit
headers."""

import hmac
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from http import HTTPStatus
from typing import Any

from cloudtrain.emulator import (
    activity,
    authorization,
    compute,
    deployments,
    disks,
    faults,
    firewall,
    images,
    interfaces,
    marketplace,
    network,
    operations,
    power,
    prices,
    principals,
    providers,
    resource_graph,
    resources,
    roles,
    run_command,
    schedules,
    skus,
    storage,
)
from cloudtrain.emulator.operations import Azure, Kind
from cloudtrain.emulator.routes import Route
from cloudtrain.emulator.store import Records
from cloudtrain.emulator.wire import PATIENCE, Answer, ArmError, Request, guid, parse_body, parse_query, same

_MODULES = (
    providers,
    resource_graph,
    resources,
    network,
    interfaces,
    compute,
    run_command,
    disks,
    skus,
    images,
    marketplace,
    activity,
    storage,
    authorization,
    deployments,
    schedules,
)
ROUTES: tuple[Route, ...] = tuple(route for module in _MODULES for route in module.ROUTES)
KINDS: Mapping[str, Kind] = {
    **providers.KINDS,
    **resources.KINDS,
    **network.KINDS,
    **firewall.KINDS,
    **disks.KINDS,
    **power.KINDS,
    **run_command.KINDS,
    **storage.KINDS,
    **deployments.KINDS,
}

StartResponse = Callable[..., Any]

_API_VERSION = re.compile(r"^(\d{4})-(\d{2})-(\d{2})(-preview|-alpha|-beta|-privatepreview)?$", re.IGNORECASE)
_OLDEST, _NEWEST = 2014, 2030
_LARGEST_BODY = 4 * 1024 * 1024
# Requests that show the state of all VMs of the subscription; the others say which group or VM they are
# about.
_SHOW_EVERYTHING = frozenset(
    {
        "VirtualMachines_ListAll",
        "VirtualMachines_ListByLocation",
        "Resources_List",
        "Usage_List",
        "Disks_List",
        "NetworkInterfaces_ListAll",
        "PublicIPAddresses_ListAll",
    }
)
_WINDOW_SECONDS = 180.0
# x-ms-ratelimit-remaining-resource, as recorded in 2025 and 2026: name, allowed in a window
_LIMITS: Mapping[str, tuple[tuple[str, int], ...]] = {
    "PutVM": (("PutVMSubscriptionMaximum", 1500), ("PutVMResource", 12)),
    "UpdateVM": (("UpdateVMSubscriptionMaximum", 1500), ("UpdateVMResource", 12)),
    "DeleteVM": (("DeleteVMSubscriptionMaximum", 1500), ("DeleteVMResource", 12)),
    "LowCostGet": (("LowCostGetSubscriptionMaximum", 24000), ("LowCostGetResource", 36)),
    "HighCostGet": (("HighCostGetSubscriptionMaximum", 900),),
    "GetOperation": (("GetOperationResource", 45), ("GetOperationSubscriptionMaximum", 15000)),
    "GetSubscriptionInfo": (("GetSubscriptionInfo3Min", 360),),
    "GetVMImageFromLocation": (("GetVMImageFromLocation3Min", 13000), ("GetVMImageFromLocation30Min", 74000)),
    "ListVMImagesVersionsFromLocation": (
        ("ListVMImagesVersionsFromLocation3Min", 16000),
        ("ListVMImagesVersionsFromLocation30Min", 44000),
    ),
}
_GLOBAL = {
    "reads": (("subscription-reads", 250), ("subscription-global-reads", 3750)),
    "writes": (("subscription-writes", 200), ("subscription-global-writes", 3000)),
    "deletes": (("subscription-deletes", 200), ("subscription-global-deletes", 3000)),
}


@dataclass
class Counters:
    """How much of each rate limit this process has used in the window. Shown, never enforced."""

    begun: float = 0.0
    used: dict[str, int] = field(default_factory=dict)
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def remaining(self, now: float, key: str, allowed: int) -> int:
        with self.mutex:
            if now - self.begun >= _WINDOW_SECONDS:
                self.begun, self.used = now, {}
            self.used[key] = self.used.get(key, 0) + 1
            return max(0, allowed - self.used[key])


# routing


def match(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The operation, and the names of the path in the client's casing. Raises ArmError."""
    segments = path.strip("/").split("/")
    fitting = [
        (route, names)
        for route, rule in _BY_LENGTH.get((method, len(segments)), ()) + _AT_ANY_SCOPE.get(method, ())
        if (names := _names(rule, segments)) is not None
    ]
    if not fitting:
        raise _not_emulated(method, path)
    route, names = min(fitting, key=lambda fit: len(fit[1]))  # words before names
    names.pop("subscription", None)
    return route, names


def _by(key: Callable[[Route, list[str]], Any]) -> dict[Any, tuple[tuple[Route, list[str]], ...]]:
    """The routes with the parts of their paths, by a key; without those whose key is None."""
    found: dict[Any, tuple[tuple[Route, list[str]], ...]] = {}
    for route in ROUTES:
        rule = route.path.strip("/").split("/")
        if key(route, rule) is not None:
            found[key(route, rule)] = (*found.get(key(route, rule), ()), (route, rule))
    return found


def _has_scope(rule: list[str]) -> bool:
    return rule[0].startswith("<path:")


_BY_LENGTH = _by(lambda route, rule: None if _has_scope(rule) else (route.method, len(rule)))
_AT_ANY_SCOPE = _by(lambda route, rule: route.method if _has_scope(rule) else None)


def _names(rule: list[str], segments: list[str]) -> dict[str, str] | None:
    """What a rule's `<names>` stand for; None when the path is another one. `<path:scope>` takes any number."""
    names: dict[str, str] = {}
    if _has_scope(rule):
        scope = len(segments) - len(rule) + 1
        if scope < 1:
            return None
        names[rule[0][len("<path:") : -1]] = "/".join(segments[:scope])
        rule, segments = rule[1:], segments[scope:]
    if len(rule) != len(segments):
        return None
    for word, segment in zip(rule, segments, strict=True):
        if word.startswith("<"):
            names[word[1:-1]] = segment
        elif word != segment.lower():
            return None
    return names


def _not_emulated(method: str, path: str) -> ArmError:
    what = re.sub(r"(?i)^/subscriptions/[^/]+", "", path)
    parts = what.split("/providers/")[-1].strip("/").split("/")
    if "/providers/" in what and len(parts) > 1:
        kinds = "/".join([parts[0], *parts[1::2]])
        shown = kinds + ("" if len(parts) % 2 else " (list or action)")
    else:
        shown = what or "/"
    return ArmError(
        501,
        "OperationNotEmulated",
        f"The embedded Azure does not have the operation '{method} {shown}' (requested: {path}).",
    )


# what comes before every operation


def _principal(records: Records, environ: Mapping[str, Any]) -> str | None:
    """Whose token the request carries; None for the caller, who may do everything. Raises ArmError."""
    sent = str(environ.get("HTTP_AUTHORIZATION", ""))
    scheme, _, given = sent.partition(" ")
    if not sent:
        raise _unauthorized("Authentication failed. The 'Authorization' header is missing.")
    if same(scheme, "bearer"):
        given = given.strip()
        if hmac.compare_digest(given.encode(), (records.setting("token") or "").encode()):
            return None
        principal = principals.holder(records, principals.MANAGEMENT, given)
        if principal is not None:
            return principal
    raise _unauthorized("The access token is invalid.")


def _unauthorized(message: str) -> ArmError:
    challenge = (
        'Bearer authorization_uri="https://login.windows.net/", error="invalid_token", '
        'error_description="The access token is not that of this embedded Azure."'
    )
    return ArmError(401, "InvalidAuthenticationToken", message, headers={"WWW-Authenticate": challenge})


def _check_api_version(query: Mapping[str, str]) -> str:
    given = query.get("api-version")
    if given is None or given == "":
        raise ArmError(
            400,
            "MissingApiVersionParameter",
            "The api-version query parameter (?api-version=) is required for all requests.",
        )
    found = _API_VERSION.match(given)
    try:
        plausible = found is not None and _OLDEST <= date(*(int(part) for part in found.groups()[:3])).year <= _NEWEST
    except ValueError:
        plausible = False
    if not plausible:
        raise ArmError(
            400,
            "InvalidApiVersionParameter",
            f"The api-version '{given}' is invalid. The supported versions are dates such as "
            "'2026-04-01,2025-04-01,2024-11-01,2021-07-01'.",
        )
    return given


def _check_subscription(records: Records, path: str) -> str:
    ours = records.setting("subscription_id") or ""
    parts = path.strip("/").split("/")
    if len(parts) > 1 and same(parts[0], "subscriptions") and not same(parts[1], ours):
        raise ArmError(
            404,
            "SubscriptionNotFound",
            f"The subscription '{parts[1]}' could not be found.",
            headers={"x-ms-failure-cause": "gateway"},
        )
    return ours


def _read_body(environ: Mapping[str, Any]) -> Any:
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > _LARGEST_BODY:
        raise ArmError(413, "RequestEntityTooLarge", f"The request's content is larger than {_LARGEST_BODY} bytes.")
    return parse_body(environ["wsgi.input"].read(length) if length else b"")


def path_of(environ: Mapping[str, Any]) -> str:
    """The path as text; WSGI hands it over as latin-1."""
    return str(environ.get("PATH_INFO") or "/").encode("latin-1").decode("utf-8", errors="replace")


def host_of(environ: Mapping[str, Any]) -> str:
    """The host that the client spoke to, without a port."""
    return str(environ.get("HTTP_HOST") or environ.get("SERVER_NAME", "")).partition(":")[0].lower()


def base_of(environ: Mapping[str, Any]) -> str:
    """Scheme, host, and the path below which Resource Manager is served ("" as a rule): as the client spoke them."""
    host = environ.get("HTTP_HOST") or f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
    return f"{environ.get('wsgi.url_scheme', 'https')}://{host}{environ.get('SCRIPT_NAME', '')}"


@dataclass
class App:
    """PEP 3333, and raises where a server cannot answer: StoreError where the database cannot be used;
    ConnectionResetError and TimeoutError where a fault says so, which a server takes for a connection that is gone.
    In-process callers get them as they are, and may say in `environ[PATIENCE]` how many seconds they wait for an
    answer."""

    azure: Azure
    counters: Counters = field(default_factory=Counters)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        route: Route | None = None
        method = str(environ["REQUEST_METHOD"]).upper()
        if host_of(environ) == prices.HOST:
            return self._tell_prices(environ, start_response)
        try:
            with self.azure.store.read() as records:
                principal = _principal(records, environ)
                subscription = _check_subscription(records, path_of(environ))
            route, names, request = self._prepare(environ, method, subscription)
            if principal is not None:
                with self.azure.store.read() as records:
                    roles.check(records, self.azure.now(), principal, method, request.path)
            strike = faults.strike(self.azure, route, request, names, environ.get(PATIENCE))
            strike.before()
            self._reconcile(route, names)
            with strike.around():
                answer = route.handler(self.azure, request, **names)
        except ArmError as refusal:
            answer = refusal.answer()
        if method == "HEAD":
            answer.body = None
        payload = answer.payload()
        headers = self._headers(method, route, path_of(environ), answer, environ)
        if payload:
            headers["Content-Type"] = "application/json; charset=utf-8"
        headers["Content-Length"] = str(len(payload))
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", list(headers.items()))
        return [payload]

    def _tell_prices(self, environ: Mapping[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """The price list is another service: no token, no api-version, none of Resource Manager's headers."""
        query = parse_query(str(environ.get("QUERY_STRING", "")))
        answer = prices.answer(self.azure.store, path_of(environ), query)
        payload = answer.payload()
        headers = {"Content-Type": "application/json; charset=utf-8", "Content-Length": str(len(payload))}
        start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", list(headers.items()))
        return [payload]

    def _prepare(
        self, environ: dict[str, Any], method: str, subscription: str
    ) -> tuple[Route, dict[str, str], Request]:
        path = path_of(environ)
        query = parse_query(str(environ.get("QUERY_STRING", "")))
        api_version = _check_api_version(query)
        route, names = match(method, path)
        request = Request(method, path, query, _read_body(environ), base_of(environ), api_version, subscription)
        return route, names, request

    def _reconcile(self, route: Route, names: Mapping[str, str]) -> None:
        """Whatever was left undone goes on, and what the machines did by themselves becomes known."""
        operations.advance_all(self.azure)
        schedules.shut_down_what_is_due(self.azure)
        if "group" in names:
            about_vm = "/virtualmachines/<name>" in route.path
            power.observe(self.azure, names["group"], names["name"] if about_vm else None)
        elif route.operation in _SHOW_EVERYTHING:
            power.observe(self.azure, None, None)

    def _headers(
        self, method: str, route: Route | None, path: str, answer: Answer, environ: Mapping[str, Any]
    ) -> dict[str, str]:
        now, request_id = self.azure.now(), guid()
        headers = {
            "Cache-Control": "no-cache",
            "Pragma": "no-cache",
            "Expires": "-1",
            "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
            "X-Content-Type-Options": "nosniff",
            "x-ms-request-id": request_id,
            "x-ms-correlation-request-id": request_id,
        }
        if environ.get("HTTP_X_MS_CLIENT_REQUEST_ID"):
            headers["x-ms-client-request-id"] = str(environ["HTTP_X_MS_CLIENT_REQUEST_ID"])
        kind = {"GET": "reads", "HEAD": "reads", "DELETE": "deletes"}.get(method, "writes")
        for name, allowed in _GLOBAL[kind]:
            headers[f"x-ms-ratelimit-remaining-{name}"] = str(self.counters.remaining(now, name, allowed))
        if route is not None and route.limits:
            headers["x-ms-ratelimit-remaining-resource"] = ",".join(
                f"Microsoft.Compute/{name};{self._left(now, name, allowed, path)}"
                for name, allowed in _LIMITS[route.limits]
            )
        return headers | answer.headers

    def _left(self, now: float, name: str, allowed: int, path: str) -> int:
        key = f"{name}:{path.lower()}" if name.endswith("Resource") else name
        return self.counters.remaining(now, key, allowed)
