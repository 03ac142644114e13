"""The sign-in side of a cloud, as the real `az` asks for it: cloud metadata, OpenID Connect, tokens, image aliases.

It stands before the embedded Azure for one client, a service principal with a random secret."""

import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from cloudtrain.emulator import catalog
from cloudtrain.emulator.app import base_of, path_of
from cloudtrain.emulator.embedded import EmbeddedAzure
from cloudtrain.emulator.serve import answered
from cloudtrain.emulator.wire import Answer, Json, guid

_TOKEN_SECONDS = 86399
_LARGEST_FORM = 64 * 1024
_ALGORITHM = "HS256"


class LoginSide:
    """WSGI. Answers what belongs to signing in; hands the rest to the embedded Azure, with its own bearer token where
    the client shows one of ours."""

    def __init__(self, azure: EmbeddedAzure) -> None:
        self.client_id, self.secret = guid(), secrets.token_urlsafe(32)
        self.tenant = azure.tenant_id
        self._azure = azure
        self._key = secrets.token_bytes(32)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, base = path_of(environ).lower().rstrip("/"), base_of(environ)
        if path == "/metadata/endpoints":
            return answered(Answer(200, _metadata(base)), start_response)
        if path == "/aliases.json":
            return answered(Answer(200, _aliases()), start_response)
        if path.endswith("/.well-known/openid-configuration"):
            return answered(Answer(200, self._openid(base)), start_response)
        if path.endswith("/oauth2/v2.0/token"):
            return answered(self._token(environ, base), start_response)
        if self._is_ours(str(environ.get("HTTP_AUTHORIZATION", ""))):
            environ = {**environ, "HTTP_AUTHORIZATION": f"Bearer {self._azure.token}"}
        return self._azure(environ, start_response)

    def _openid(self, base: str) -> Json:
        root = f"{base}/{self.tenant}"
        return {
            "issuer": f"{root}/v2.0",
            "token_endpoint": f"{root}/oauth2/v2.0/token",
            "authorization_endpoint": f"{root}/oauth2/v2.0/authorize",
            "jwks_uri": f"{root}/discovery/v2.0/keys",
        }

    def _token(self, environ: dict[str, Any], base: str) -> Answer:
        """OAuth 2.0 client credentials (RFC 6749, 4.4)."""
        import jwt

        length = min(int(environ.get("CONTENT_LENGTH") or 0), _LARGEST_FORM)
        form = parse_qs(environ["wsgi.input"].read(length).decode("utf-8", errors="replace"))
        given = [form.get(key, [""])[0].encode() for key in ("client_id", "client_secret")]
        wanted = [self.client_id.encode(), self.secret.encode()]
        if not all(hmac.compare_digest(one, other) for one, other in zip(given, wanted, strict=True)):
            said = "AADSTS7000215: Invalid client secret provided."
            return Answer(401, {"error": "invalid_client", "error_description": said, "error_codes": [7000215]})
        now = int(time.time())
        claims = {"aud": base, "tid": self.tenant, "oid": self.client_id, "appid": self.client_id}
        token = jwt.encode({**claims, "iat": now, "exp": now + _TOKEN_SECONDS}, self._key, _ALGORITHM)
        return Answer(200, {"token_type": "Bearer", "expires_in": _TOKEN_SECONDS, "access_token": token})

    def _is_ours(self, authorization: str) -> bool:
        import jwt

        try:
            jwt.decode(authorization.removeprefix("Bearer "), self._key, [_ALGORITHM], options={"verify_aud": False})
        except jwt.InvalidTokenError:
            return False
        return True


def _metadata(base: str) -> Json:
    """The cloud's endpoints; what it does not have leads nowhere on this machine."""
    suffixes = {"storage": "core", "acrLoginServer": "azurecr", "keyVaultDns": "vault", "sqlServerHostname": "database"}
    return {
        "name": "embedded",
        "portal": base,
        "authentication": {
            "loginEndpoint": f"{base}/",
            "audiences": [f"{base}/"],
            "tenant": "common",
            "identityProvider": "AAD",
        },
        "resourceManager": base,
        "vmImageAliasDoc": f"{base}/aliases.json",
        "graph": base,
        "graphAudience": base,
        "microsoftGraphResourceId": f"{base}/",
        "media": base,
        "batch": base,
        "galleryEndpoint": base,
        "sqlManagement": base,
        "activeDirectoryDataLake": base,
        "suffixes": {key: f"{name}.embedded.invalid" for key, name in suffixes.items()},
    }


_ALIASES = {
    "Ubuntu2204": ("Canonical", "0001-com-ubuntu-server-jammy", "22_04-lts-gen2"),
    "Ubuntu2404": ("Canonical", "ubuntu-24_04-lts", "server"),
}


def _aliases() -> Json:
    """Azure's short names (`az vm create --image Ubuntu2204`) of the images that are here."""
    linux = {
        alias: {"publisher": publisher, "offer": offer, "sku": sku, "version": "latest", "architecture": "x64"}
        for alias, (publisher, offer, sku) in _ALIASES.items()
        if catalog.images(publisher, offer, sku)
    }
    return {"outputs": {"aliases": {"type": "object", "value": {"Linux": linux}}}}
