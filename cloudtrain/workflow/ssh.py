"""`ssh`: log in to the run's VM with the run's key, through the system's own ssh."""

import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import network
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group
from cloudtrain.azure.vm import ADMIN, PowerState, Vm
from cloudtrain.errors import CloudtrainError, Exit, InvalidSpec, Refused
from cloudtrain.lifecycle.context import Context

_SSH_FAILED = 255  # ssh's own exit code; every other one is the remote command's


class Login(msgspec.Struct, frozen=True):
    """identity: the private key's file, empty where the key is the user's own. source: the network that the security
    group lets in. argv: the whole command."""

    run: str
    cloud: str
    host: str
    port: int
    user: str
    identity: str
    known_hosts: str
    source: str
    argv: list[str]


def login(ctx: Context, run: str, directory: Path, words: Sequence[str] | None) -> Login:
    """directory: where this machine keeps what is the run's. words: the remote command; none: a shell.

    Raises NoSuchRun, Refused, InvalidSpec, CloudtrainError."""
    group = groups.get(ctx.session, run)
    if not ctx.session.capabilities.ssh:
        raise InvalidSpec(
            "The VMs of this rehearsal are processes of this machine, and have no SSH server.",
            f"cloudtrain down {run}, then cloudtrain up {run} --machine container --ssh  rehearses on one that has "
            "(it needs a Docker engine).",
            code="NoSsh",
        )
    vm = _running(run, vms.find(ctx.session, group))
    source = network.ssh_source(ctx.session, group)
    if source is None:
        raise Refused(
            "NoSshRule",
            f"The network security group of run '{run}' lets nobody in at port 22.",
            f"cloudtrain up {run} --ssh  lets this machine's address in, and nobody else.",
        )
    address = ctx.session.ssh_address(vm.id, network.public_ip(ctx.session, group))
    if address is None:
        raise Refused("NoAddress", f"The VM of run '{run}' has no address.", f"cloudtrain status {run}")
    if shutil.which("ssh") is None:
        raise CloudtrainError("NoSshProgram", "This machine has no ssh.", "Install it (Debian: openssh-client).")
    return _login(ctx, group, vm, address, directory, source, words)


def _running(run: str, vm: Vm | None) -> Vm:
    if vm is None or vm.power is not PowerState.RUNNING:
        state = "not there" if vm is None else vm.power.value
        hint = f"cloudtrain up {run}" if vm is None else f"cloudtrain restart {run}  starts it."
        raise Refused("VmNotRunning", f"The VM of run '{run}' is {state}.", hint)
    return vm


def _login(
    ctx: Context,
    group: Group,
    vm: Vm,
    address: tuple[str, int],
    directory: Path,
    source: str,
    words: Sequence[str] | None,
) -> Login:
    host, port = address
    identity = str(directory / "id_rsa") if _is_own_key(directory, group.spec.ssh_public_key) else ""
    known_hosts = str(directory / "known_hosts")
    options = {
        # The host key is pinned at first contact, under the VM's name: its address may change, its key must not.
        "UserKnownHostsFile": _quoted(known_hosts),
        "GlobalKnownHostsFile": "none",
        "HostKeyAlias": vm.name,
        "StrictHostKeyChecking": "accept-new",
        "CheckHostIP": "no",
        "PreferredAuthentications": "publickey",
        "ConnectTimeout": "20",
        # A VM that is evicted says no goodbye.
        "ServerAliveInterval": "10",
        "ServerAliveCountMax": "3",
    }
    if identity:
        options |= {"IdentityFile": _quoted(identity), "IdentitiesOnly": "yes"}
    # The user's own configuration is left out: an agent that is forwarded to every host is none of the VM's business.
    argv = ["ssh", "-F", "none", "-p", str(port)]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    argv += ["--", f"{ADMIN}@{host}", *_remote_command(words)]
    return Login(group.run, ctx.session.cloud, host, port, ADMIN, identity, known_hosts, source, argv)


def _remote_command(words: Sequence[str] | None) -> list[str]:
    """ssh joins words with blanks and a shell takes them apart again: quoted, they arrive as they are."""
    if not words:
        return []
    return [words[0] if len(words) == 1 else shlex.join(words)]


def _is_own_key(directory: Path, public_key: str) -> bool:
    try:
        own = (directory / "id_rsa.pub").read_text()
    except OSError:
        return False
    return own.split()[:2] == public_key.split()[:2]


def _quoted(path: str) -> str:
    """A file name as ssh's options take it."""
    return '"' + path.replace("%", "%%").replace('"', '\\"') + '"'


def connect(login: Login) -> int:
    """Returns the remote command's exit code. Raises CloudtrainError where ssh itself failed."""
    # Ctrl-C is for the remote side: ssh gets it too, as it is in our process group.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = subprocess.run(login.argv, preexec_fn=_hear_interrupts).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    if code == _SSH_FAILED:
        raise CloudtrainError(
            "SshFailed",
            f"ssh could not log in to {login.user}@{login.host} port {login.port}, or the connection broke. "
            f"The security group lets in {login.source}.",
            f"cloudtrain up {login.run} --ssh  lets in the address that you come from now.",
            Exit.UNREACHABLE,
        )
    return code if code >= 0 else 128 - code


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
