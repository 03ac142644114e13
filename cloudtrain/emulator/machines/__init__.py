"""What an emulated VM runs on, behind one protocol.

A machine knows nothing of HTTP, resource groups or operations: it boots a disk, runs scripts as Azure's agent does,
raises scheduled events and cuts the power. The truth about a VM's power is the machine's, never the store's: a
supervisor can die and a host can reboot without telling anyone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Literal, Protocol

MANAGEMENT_PATH = "/management.azure.com"
"""Below it a VM finds Resource Manager, at the port that serves it the blobs: an account's name has no dots."""


class MachineError(Exception):
    """The machine cannot do it; the message says why, in words for the person at the keyboard."""


@dataclass(frozen=True)
class MachineSpec:
    """What a VM is, as far as its machine and its instance metadata need to know."""

    vm_id: str  # Azure's vmId: a GUID, the machine's key
    name: str  # the resource's name, the one scheduled events speak of
    computer_name: str
    subscription_id: str
    resource_group: str
    location: str
    size: str
    priority: str
    eviction_policy: str
    identity_tokens: Mapping[str, str] = field(default_factory=dict)  # of its managed identity, by audience
    admin_username: str = "azureuser"
    ssh_public_keys: Sequence[str] = ()
    user_data: str = ""  # base64, as sent
    tags: Mapping[str, str] = field(default_factory=dict)
    ssh_open: bool = False  # whether the network security group lets the caller in at port 22


class OffCause(Enum):
    """Why a machine is off."""

    NEVER_STARTED = "never started"
    POWERED_OFF = "powered off"  # asked for by power_off()
    EVICTED = "evicted"
    GUEST_SHUTDOWN = "guest shut itself down"
    HOST_REBOOTED = "host rebooted"
    SUPERVISOR_DIED = "supervisor died"


@dataclass(frozen=True)
class Power:
    """on: every process of the VM may run. Off: not one of them is left."""

    on: bool
    cause: OffCause | None = None  # why it is off; None while on
    since: datetime | None = None
    boot: int = 0  # how many times the disk was booted


@dataclass(frozen=True)
class Script:
    """A script for the guest agent.

    flavour: 'action' is the RunCommand action (run-command-extension-linux: /bin/sh -c PATH, cwd and files under
    /var/lib/waagent/run-command/download/SEQ/); 'managed' is virtualMachines/runCommands (run-command-handler-linux:
    /bin/bash -c, /var/lib/waagent/run-command-handler/download/NAME/SEQ/). token: whose it is; see `start_script`.
    """

    flavour: Literal["action", "managed"]
    name: str  # managed: the resource's name; action: any label
    text: str
    arguments: Sequence[str] = ()  # unnamed parameters
    environment: Mapping[str, str] = field(default_factory=dict)  # named parameters, protected ones included
    run_as: str = ""
    timeout_seconds: float = 5400.0
    token: str = ""


class ScriptState(Enum):
    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"  # ended with exit code 0
    FAILED = "Failed"  # ended with another exit code
    TIMED_OUT = "TimedOut"
    CANCELED = "Canceled"
    INTERRUPTED = "Interrupted"  # the VM went off or rebooted while it ran; it is never run again


@dataclass(frozen=True)
class ScriptResult:
    """exit_code is None until the script ended by itself. stdout, stderr: the last 4096 bytes of each."""

    state: ScriptState
    exit_code: int | None
    stdout: bytes
    stderr: bytes
    started: datetime | None
    ended: datetime | None


class Machines(Protocol):
    """All VMs of one kind under one directory. Safe to use from several processes at once, and from a process
    that is killed in the middle of any call: the same call again converges."""

    kind: str

    def boot(self, spec: MachineSpec, *, same_host: bool = False) -> None:
        """Make the disk if it is not there, and start the VM on it: `@reboot` lines run. On already: no-op.

        same_host: the VM stayed allocated since it was last on, so its temporary disk (/mnt) is what it was; else that
        is empty.

        Raises MachineError."""
        ...

    def power(self, vm_id: str) -> Power: ...

    def agent_ready(self, vm_id: str) -> bool:
        """Whether the agent would take a script now."""
        ...

    def power_off(self, vm_id: str) -> None:
        """Cut the power; returns when not one process of the VM is left. Off already: no-op."""
        ...

    def shut_down(self, vm_id: str, grace_seconds: float = 10.0) -> None:
        """What powerOff and deallocate do on Azure: SIGTERM to every process as an operating system does, then cut."""
        ...

    def reboot(self, vm_id: str) -> None:
        """shut_down, then boot on the same disk; scripts that were running become INTERRUPTED."""
        ...

    def evict(self, vm_id: str, notice_seconds: float) -> None:
        """Raise Preempt with NotBefore = now + notice, return at once. When the notice ends or the event is
        acknowledged, the power is cut without mercy and `power()` says EVICTED. A notice of 0 cuts at once."""
        ...

    def erase(self, vm_id: str) -> None:
        """Cut the power and remove the disk and everything else of the VM from this machine."""
        ...

    def open_ssh(self, vm_id: str, allowed: bool) -> None:
        """The network security group has changed. Off, or without a network of its own: no-op."""
        ...

    def ssh_address(self, vm_id: str) -> tuple[str, int] | None:
        """Host and port where this machine reaches the VM's SSH server; None where the VM has none."""
        ...

    def start_script(self, vm_id: str, script: Script) -> str:
        """Hand a script to the agent; returns its key. The sequence number is on the disk before the script starts.
        The same token again hands over nothing, and returns the key that the first one got: whoever was killed before
        the key was noted asks once more.

        Raises MachineError when the VM is off or its agent is silent."""
        ...

    def script(self, vm_id: str, key: str) -> ScriptResult:
        """Readable from the disk while the VM is off, too. Raises KeyError for a key it never gave."""
        ...

    def cancel_script(self, vm_id: str, key: str) -> None:
        """Kill the script and what it left in its session; its state becomes CANCELED. Ended already: no-op."""
        ...

    def disk(self, vm_id: str) -> Path:
        """The directory that survives deallocation."""
        ...

    def strays(self) -> list[str]:
        """vm_ids of which something is here that nobody should need any more, if no VM is known by that id."""
        ...

    def sweep(self) -> list[str]:
        """There is no VM any more: remove what served all of them. Returns the names of what is left."""
        ...
