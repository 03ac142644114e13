"""The blob services that tests/emulator/test_blobs.py runs against: the embedded one, and Azurite, which is Microsoft's
own code for the same protocol."""

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from .conftest import Cloud

AZURITE = Path(__file__).parents[2] / ".azurite" / "node_modules" / ".bin" / "azurite-blob"
CONTRIBUTOR = "ba92f5b4-2d11-453d-a403-e96b0029c9fe"
_READY_SECONDS = 30.0


@dataclass
class Service:
    """An account of one blob service. options: of every client, also those that have no account key."""

    url: str
    account: str
    key: str
    options: dict[str, Any]
    token: Any  # a credential for bearer tokens
    now: Any  # the service's clock
    # What it calls a signature that is not right, and an account key.
    not_authentic: tuple[int, str] = (403, "AuthenticationFailed")
    wrong_key: tuple[int, str] = (403, "AuthenticationFailed")

    def client(self, credential: Any = None, query: str = "", **options: Any) -> Any:
        from azure.storage.blob import BlobServiceClient

        url = self.url + (f"?{query}" if query else "")
        return BlobServiceClient(url, credential=credential, retry_total=0, **self.options, **options)

    def keyed(self, key: str = "", **options: Any) -> Any:
        credential = {"account_name": self.account, "account_key": key or self.key}
        return self.client(credential, **options)


class Token:
    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *scopes: str, **kwargs: Any) -> Any:
        from azure.core.credentials import AccessToken

        assert scopes == ("https://storage.azure.com/.default",)
        return AccessToken(self._token, int(time.time()) + 3600)


def embedded(cloud: Cloud) -> Service:
    """An account, and the caller in the role of a data contributor."""
    account = cloud.account()
    role = f"{cloud.subscription}/providers/Microsoft.Authorization/roleDefinitions/{CONTRIBUTOR}"
    properties = {"principalId": cloud.azure.caller_id, "principalType": "User", "roleDefinitionId": role}
    assignment = f"{account.id}/providers/Microsoft.Authorization/roleAssignments/8a3e9c7e-6b06-4d0a-9a55-000000000001"
    assert cloud.call("PUT", assignment, {"properties": properties}).status == 201
    cloud.clock.sleep(1)
    return Service(
        url="https://acct.blob.core.windows.net/",
        account="acct",
        key=cloud.key(),
        options={"transport": cloud.transport()},
        token=Token(cloud.azure.storage_token),
        now=cloud.clock.now,
    )


def azurite_missing() -> str:
    """Why Azurite cannot run here; '' when it can."""
    if shutil.which("node") is None:
        return "node is not installed"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < 20:
        return f"node {version.strip()} is older than 20"
    return "" if AZURITE.exists() else "Azurite is not installed: npm install --prefix .azurite azurite@3.37.0"


@contextmanager
def azurite(directory: Path) -> Iterator[Service]:
    """A server over TLS (bearer tokens need it), with an account of its own."""
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    port = _free_port()
    certificate, private_key = _certificate(directory)
    command = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(directory / "data")]
    # azure-storage-blob sends a newer version of the protocol than this Azurite names.
    command += ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--oauth", "basic"]
    command += ["--cert", str(certificate), "--key", str(private_key)]
    server = subprocess.Popen(command, env=os.environ | {"AZURITE_ACCOUNTS": f"acct:{key}"}, stdout=subprocess.DEVNULL)
    try:
        _await_port(port, server)
        yield Service(
            url=f"https://127.0.0.1:{port}/acct",
            account="acct",
            key=key,
            options={"connection_verify": str(certificate)},
            token=Token(_unsigned_token()),
            now=lambda: datetime.now(UTC),
            not_authentic=(403, "AuthorizationFailure"),
            wrong_key=(400, "InvalidAuthenticationInfo"),
        )
    finally:
        server.terminate()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, f"Azurite ended with {server.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"Azurite did not listen within {_READY_SECONDS} s")


def _certificate(directory: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "azurite")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
    certificate = builder.add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    files = directory / "server.crt", directory / "server.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def _unsigned_token() -> str:
    """Azurite reads the claims and does not check the signature."""
    tenant, now = "00000000-0000-0000-0000-0000000000aa", int(time.time())
    claims = {
        "aud": "https://storage.azure.com",
        "iss": f"https://sts.windows.net/{tenant}/",
        "oid": "00000000-0000-0000-0000-0000000000bb",
        "tid": tenant,
        "iat": now - 60,
        "nbf": now - 60,
        "exp": now + 3600,
    }
    parts = ({"alg": "none", "typ": "JWT"}, claims)
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
    return ".".join(encoded) + ".x"
