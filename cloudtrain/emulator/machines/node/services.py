"""What a node's process 1 starts at each boot, and the account that Azure's provisioning makes at the first one."""

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from cloudtrain.emulator.machines.accounts import add_account
from cloudtrain.emulator.machines.node import AZURE_INSIDE, AZURE_PORT, ENVIRONMENT, SSH_PORT

_LOGS = Path("/var/log")
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_SSH_CHAIN = "CLOUDTRAIN-SSH"


def commands(config: dict[str, Any], engine: int) -> dict[str, list[str]]:
    """Name -> command line of what keeps running. engine: the descriptor of `engine_socket`."""
    return {
        "dockerd": ["bash", "-c", _ACTIVATED, str(engine)],
        "cron": ["cron", "-f"],
        "sshd": ["/usr/sbin/sshd", "-D", "-e"],
        # The rehearsal's registry has the same name in the node as outside of it.
        "registry": _forwarder(config["registry_port"], f"TCP:{config['registry']}"),
        "azure": _forwarder(AZURE_PORT, f"UNIX-CONNECT:{AZURE_INSIDE / 'azure.sock'}"),
    }


def _forwarder(port: int, to: str) -> list[str]:
    return ["socat", f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork", to]


def set_environment() -> None:
    """Where cron's jobs and logins read it (pam_env)."""
    path = Path("/etc/environment")
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if line.partition("=")[0] not in ENVIRONMENT]
    path.write_text("".join(f"{line}\n" for line in [*kept, *(f"{key}={value}" for key, value in ENVIRONMENT.items())]))


# The protocol of systemd's activation: the socket is descriptor 3, and LISTEN_PID says whose it is.
_ACTIVATED = 'exec 3<&"$0"; export LISTEN_FDS=1 LISTEN_PID=$$; exec dockerd --host fd://'


def engine_socket() -> socket.socket:
    """Of one boot. It listens before the engine does, as systemd's docker.socket on Azure's images: whoever calls too
    early, from cron's @reboot lines perhaps, waits."""
    path = Path("/run/docker.sock")
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    path.chmod(0o660)
    listening.listen(64)
    return listening


def start(name: str, command: list[str], engine: int) -> "subprocess.Popen[bytes]":
    with (_LOGS / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
            pass_fds=(engine,) if name == "dockerd" else (),
        )


def run(*command: str) -> None:
    """Raises OSError with what the command said."""
    done = subprocess.run(command, capture_output=True, env=_ENVIRONMENT, cwd="/", stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-300:]
        raise OSError(f"{' '.join(command)}: {said or f'ended with {done.returncode}'}")


def provision(spec: dict[str, Any]) -> None:
    """At the first boot: the administrator, with the key that the VM's osProfile brought."""
    user = add_account(spec["admin_username"], Path("/etc"))
    keys = Path(user.home, ".ssh", "authorized_keys")
    keys.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys.write_text("".join(f"{key.strip()}\n" for key in spec["ssh_public_keys"]))
    keys.chmod(0o600)
    for path in (Path(user.home), keys.parent, keys):
        os.chown(path, user.uid, user.gid)
    # "*" in the password's place: no password, and not locked, which sshd would refuse
    shadow = Path("/etc/shadow")
    if not any(line.startswith(f"{user.name}:") for line in shadow.read_text().splitlines()):
        with shadow.open("a") as file:
            file.write(f"{user.name}:*:19000:0:99999:7:::\n")
    sudoers = Path("/etc/sudoers.d/90-cloud-init-users")
    sudoers.write_text(f"{user.name} ALL=(ALL) NOPASSWD:ALL\n")
    sudoers.chmod(0o440)
    if not Path("/etc/ssh/ssh_host_ed25519_key").exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/ssh_host_ed25519_key")


def set_up_network(*, ssh_open: bool) -> None:
    # Azure's metadata service answers at an address that never leaves the host.
    run("ip", "address", "replace", "169.254.169.254/32", "dev", "lo")
    for command in (["-N", _SSH_CHAIN], ["-D", "INPUT", *_TO_SSH], ["-I", "INPUT", *_TO_SSH]):
        subprocess.run(["iptables", "-w", *command], capture_output=True, env=_ENVIRONMENT)
    open_ssh(ssh_open)


_TO_SSH = ("!", "-i", "lo", "-p", "tcp", "--dport", str(SSH_PORT), "-j", _SSH_CHAIN)


def open_ssh(allowed: bool) -> None:
    """Do what the network security group says: what it does not let in is dropped without an answer, as on Azure."""
    run("iptables", "-w", "-F", _SSH_CHAIN)
    run("iptables", "-w", "-A", _SSH_CHAIN, "-j", "ACCEPT" if allowed else "DROP")
