"""What the verbs say of a VM and of training: the same words in every result."""

from typing import Any

import msgspec

from cloudtrain.azure.group import LastProgress
from cloudtrain.azure.vm import Vm


class VmInfo(msgspec.Struct, frozen=True):
    """max_price: USD an hour, -1: up to the on-demand price. power_state: Azure's word, "unknown" without one."""

    name: str
    size: str
    location: str
    power_state: str
    provisioning_state: str
    priority: str
    eviction_policy: str
    max_price: float
    zone: str = ""
    public_ip: str | None = None


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """Where training stands. under_way: the trainer's container runs right now.

    as_of: ISO 8601; set where this is the last thing known, and not read from the guest now."""

    under_way: bool = False

    step: int | None = None
    total_steps: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    resumed_from_step: int | None = None
    resumes: int | None = None
    saved_step: int | None = None
    finished: bool = False
    failed: bool = False
    exit_code: int | None = None
    metrics: dict[str, float] = {}
    examples_per_second: float | None = None
    eta_seconds: float | None = None
    digest: str | None = None
    as_of: str | None = None


def vm_info(vm: Vm, public_ip: str | None = None) -> VmInfo:
    return VmInfo(
        name=vm.name,
        size=vm.size,
        location=vm.location,
        power_state=vm.power.value,
        provisioning_state=vm.provisioning,
        priority=vm.priority,
        eviction_policy=vm.eviction_policy,
        max_price=vm.max_price,
        zone=vm.zone,
        public_ip=public_ip,
    )


def last_known(progress: LastProgress) -> Training | None:
    """What the group's tag remembers; None where nothing was ever written."""
    if not progress.at:
        return None
    return Training(
        step=progress.step,
        total_steps=progress.total,
        epoch=progress.epoch,
        saved_step=progress.saved,
        finished=progress.finished,
        failed=progress.failed,
        exit_code=progress.exit_code,
        as_of=progress.at,
    )


def plain(result: Any) -> Any:
    """A result as JSON's types."""
    return msgspec.to_builtins(result)
