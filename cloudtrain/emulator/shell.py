"""A shell in which the user's own `az` is signed in to the embedded Azure, and nothing of it afterwards.

`az` sends its token over TLS alone, so the app stands behind a certificate of this one shell's own authority."""

import fcntl
import ipaddress
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cloudtrain.emulator.embedded import EmbeddedAzure
from cloudtrain.emulator.login import LoginSide
from cloudtrain.emulator.serve import HOST, listening

_CLOUD = "embedded"
_VALID = timedelta(days=90)  # a shell left open so long has to be opened anew
_SIGN_IN_SECONDS = 120


class AzMissing(Exception):
    """There is no `az` on PATH."""


class SignInFailed(Exception):
    """`az` could not sign in; the message is what it said."""


@contextmanager
def signed_in(azure: EmbeddedAzure) -> Iterator[dict[str, str]]:
    """The environment of a shell, good until the block ends. Raises AzMissing and SignInFailed."""
    az = shutil.which("az")
    if az is None:
        raise AzMissing
    with _private_directory(azure.root / "shells") as directory:
        certificates = _certificates(directory)
        login = LoginSide(azure)
        with listening(login, certificate=certificates.server) as url:
            environment = _environment(os.environ, directory, certificates.trusted)
            _sign_in(az, url, login, directory, environment)
            yield environment


def _environment(given: Mapping[str, str], directory: Path, trusted: Path) -> dict[str, str]:
    """The user's, but for everything that would lead `az` to another cloud or another login."""
    kept = {name: value for name, value in given.items() if not name.startswith(("AZURE_", "ARM_"))}
    hosts = [host for host in (given.get("NO_PROXY") or given.get("no_proxy") or "").split(",") if host]
    no_proxy = ",".join(dict.fromkeys([*hosts, HOST, "localhost"]))
    return kept | {
        "AZURE_CONFIG_DIR": str(directory / "azure"),
        "AZURE_CORE_INSTANCE_DISCOVERY": "false",  # else it asks Microsoft whether the authority is a real one
        "AZURE_CORE_COLLECT_TELEMETRY": "false",
        "AZURE_CORE_SURVEY_MESSAGE": "false",
        "AZURE_CORE_LOGIN_EXPERIENCE_V2": "off",
        "AZURE_CORE_DISPLAY_REGION_IDENTIFIED": "false",  # advertises regions that are not here
        "REQUESTS_CA_BUNDLE": str(trusted),
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


def _sign_in(az: str, url: str, login: LoginSide, directory: Path, environment: Mapping[str, str]) -> None:
    secret = directory / "secret"  # not an argument: the list of processes shows those to everybody
    secret.touch(mode=0o600)
    secret.write_text(login.secret)
    commands: tuple[list[str], ...] = (
        ["cloud", "register", "--name", _CLOUD, "--endpoint-resource-manager", url],
        ["cloud", "set", "--name", _CLOUD],
        ["login", "--service-principal", "--tenant", login.tenant, "-u", login.client_id, "-p", f"@{secret}"],
    )
    for command in commands:
        shown = f"az {' '.join(command[:2])}"
        try:
            told = subprocess.run(
                [az, *command, "--only-show-errors", "--output", "none"],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SIGN_IN_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise SignInFailed(f"{shown} did not end within {_SIGN_IN_SECONDS} s") from None
        if told.returncode != 0:
            raise SignInFailed(f"{shown}: {told.stderr.strip() or told.stdout.strip()}")
    secret.unlink()


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command, or the user's shell, to its end; its exit code as a shell tells it.

    Ctrl-C is the command's own affair. What ends us (SIGTERM, SIGHUP) ends the command, and then we clean up."""
    words = list(command) or [os.environ.get("SHELL") or "/bin/sh"]
    child = subprocess.Popen(words, env=dict(environment))
    handlers = {
        signal.SIGINT: lambda *_: None,  # not SIG_IGN, which the command would inherit
        signal.SIGTERM: lambda *_: child.send_signal(signal.SIGHUP),  # an interactive shell ignores SIGTERM
        signal.SIGHUP: lambda *_: child.send_signal(signal.SIGHUP),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


# what lies on the disk while it is open


@contextmanager
def _private_directory(root: Path) -> Iterator[Path]:
    """A directory that goes with the block; those of shells that were killed go first."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (root / "lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        _clean(root)
        directory = Path(tempfile.mkdtemp(prefix="shell-", dir=root))
        held = (directory / "held").open("w")  # the lock of whoever uses it, which ends with its process
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        held.close()


def _clean(root: Path) -> None:
    for directory in root.glob("shell-*"):
        try:
            with (directory / "held").open("w") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        except (BlockingIOError, FileNotFoundError):
            pass  # in use, or gone just now


@dataclass(frozen=True)
class _Certificates:
    server: Path  # certificate and key, PEM
    trusted: Path  # what TLS clients of the shell trust: what they trusted before, and this shell's authority


def _certificates(directory: Path) -> _Certificates:
    """An authority for this machine's names alone, whose key is never written, and a server certificate of it."""
    import requests
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def begun(subject: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        begins = datetime.now(UTC) - timedelta(minutes=5)
        return (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named("cloudtrain emulator shell"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + _VALID)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )

    def usage(*, authority: bool) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=not authority,
            key_cert_sign=authority,
            crl_sign=authority,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )

    names = [x509.IPAddress(ipaddress.ip_network(f"{HOST}/32")), x509.DNSName("localhost")]
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = (
        begun("cloudtrain emulator shell", authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(authority=True), critical=True)
        .add_extension(x509.NameConstraints(names, None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        begun("localhost", key.public_key())
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files = _Certificates(directory / "server.pem", directory / "trusted.pem")
    files.server.touch(mode=0o600)
    files.server.write_bytes(certificate.public_bytes(pem) + private)
    known = Path(os.environ.get("REQUESTS_CA_BUNDLE") or requests.utils.DEFAULT_CA_BUNDLE_PATH)
    trusted = known.read_bytes() if known.is_file() else b""
    files.trusted.write_bytes(trusted + b"\n" + authority.public_bytes(pem))
    return files
