"""How long the embedded Azure takes, in seconds of the injected clock. All of it in one place.

Azure itself takes minutes (a VM 76 s, a restart 31-90 s, a deallocation 8-33 s, an empty group 60 s). A
rehearsal keeps the order of the states and not their length: long enough that a client meets each of them,
short enough to wait for.
"""

from collections.abc import Mapping

SECONDS: Mapping[str, float] = {
    "group.delete": 0.20,
    "provider.register": 0.10,
    "network.put": 0.06,
    "network.delete": 0.06,
    "vm.create": 0.25,
    "vm.update": 0.08,
    "vm.start": 0.15,
    "vm.restart": 0.15,
    "vm.redeploy": 0.20,
    "vm.reapply": 0.08,
    "vm.powerOff": 0.12,
    "vm.deallocate": 0.15,
    "vm.delete": 0.12,
    "vm.evicted": 0.15,
    "disk.delete": 0.06,
    "storage.create": 0.15,
    "deployment.create": 0.0,  # as long as its resources take
    "runCommand.action": 0.05,
    "runCommand.put": 0.05,
    "runCommand.delete": 0.05,
}

POLL_MILLISECONDS = 30
"""`retry-after-ms` of a poll. Never `Retry-After`: it wins over the milliseconds, and 0 means azure-core's 30
s."""

ROLE_SECONDS = 0.2
"""How long a role assignment takes until the blob service knows it (on Azure 30 s to 10 minutes)."""

PATIENCE_SECONDS = 0.1
"""Real time that a request waits for work that it has just begun, before it answers 'in progress'."""

CLOSING_SECONDS = 15.0
"""Real time that `close` waits for work of this process; what is left is taken over by the next request."""

GHOST_SECONDS = 120.0
"""How long ARM still routes to Compute for a VM that an eviction has deleted: another 404 than ARM's own."""

DEFAULT_NOTICE_SECONDS = 30.0
"""Preempt is announced 'up to 30 seconds prior'."""
