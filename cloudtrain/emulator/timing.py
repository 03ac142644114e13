"""How long the embedded Azure takes, in seconds of the injected clock. All of it in one place."""

from collections.abc import Mapping

REHEARSAL: Mapping[str, float] = {
    "group.delete": 0.20,
    "provider.register": 0.10,
    "network.put": 0.06,
    "network.rules": 0.06,
    "network.delete": 0.06,
    "vm.create": 0.25,
    "vm.update": 0.08,
    "vm.start": 0.15,
    "vm.start.warm": 0.15,
    "vm.restart": 0.15,
    "vm.redeploy": 0.20,
    "vm.reapply": 0.08,
    "vm.powerOff": 0.12,
    "vm.deallocate": 0.15,
    "vm.delete": 0.12,
    "vm.delete.deallocated": 0.12,
    "vm.evicted": 0.15,
    "disk.delete": 0.06,
    "storage.create": 0.15,
    "storage.delete": 0.0,
    "role.assign": 0.0,
    "role.spread": 0.2,
    "deployment.create": 0.0,  # as long as its resources take
    "runCommand.action": 0.05,
    "runCommand.put": 0.05,
    "runCommand.delete": 0.05,
}
"""Keeps the order of the states and not their length: long enough that a client meets each of them, short enough to
wait for."""

AZURE: Mapping[str, float] = {
    "group.delete": 60.0,
    "provider.register": 60.0,
    "network.put": 10.0,
    "network.rules": 10.0,
    "network.delete": 10.0,
    "vm.create": 76.0,
    "vm.update": 15.0,
    "vm.start": 76.0,
    "vm.start.warm": 8.0,
    "vm.restart": 90.0,
    "vm.redeploy": 120.0,
    "vm.reapply": 15.0,
    "vm.powerOff": 17.0,
    "vm.deallocate": 33.0,
    "vm.delete": 60.0,
    "vm.delete.deallocated": 0.4,
    "vm.evicted": 38.0,
    "disk.delete": 10.0,
    "storage.create": 20.0,
    "storage.delete": 7.0,
    "role.assign": 4.0,
    "role.spread": 60.0,
    "deployment.create": 0.0,
    "runCommand.action": 20.0,
    "runCommand.put": 15.0,
    "runCommand.delete": 15.0,
}
"""As recorded on Azure: an empty group 60 s, a network 10 s, a VM 76 s, the start of a stopped VM 8 s, a restart 31 to
90 s, a redeploy 109 to 123 s, a powerOff 9 to 17 s, a deallocation 8 to 33 s, the deletion of a deallocated VM 0.4 s, a
managed command's PUT, PATCH and DELETE 15 s each, a storage account 20 s and its deletion 7 s, the assignment of a
role 4 s (these two are answered when they are done), and 30 s to 10 minutes until the blob service knows it,
simulateEviction to deallocated 68 s with its
30 s of notice. Assumed, for want of a recording: the start of a deallocated VM as long as its creation, a registration
and the deletion of a running VM a minute, the rest as the most like it."""

PROFILES = {"rehearsal": REHEARSAL, "azure": AZURE}
LONGEST_FACTOR = 10.0

POLL_SECONDS: Mapping[str, float] = {"rehearsal": 0.03, "azure": 10.0}
"""When a client is to look again, in `retry-after-ms`. Never `Retry-After`: it wins over the milliseconds, and 0 means
azure-core's 30 s."""

PATIENCE_SECONDS = 0.1
"""Real time that a request waits for work that it has just begun, before it answers 'in progress'."""

CLOSING_SECONDS = 15.0
"""Real time that `close` waits for work of this process; what is left is taken over by the next request."""

GHOST_SECONDS = 120.0
"""How long ARM still routes to Compute for a VM that an eviction has deleted: another 404 than ARM's own."""

NIC_RESERVED_SECONDS = 180.0
"""How long the network interface of a VM that failed or was evicted is kept for that VM alone."""

DEFAULT_NOTICE_SECONDS = 30.0
"""Preempt is announced 'up to 30 seconds prior'."""


class Latency:
    """A profile of durations, and what all of them are multiplied by."""

    def __init__(self, profile: str = "rehearsal", factor: float = 1.0) -> None:
        self.profile, self.factor = profile, factor

    def seconds(self, kind: str) -> float:
        return PROFILES[self.profile][kind] * self.factor

    @property
    def poll_milliseconds(self) -> int:
        return max(1, round(POLL_SECONDS[self.profile] * self.factor * 1000))
