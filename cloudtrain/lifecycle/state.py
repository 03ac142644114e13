"""What state a run is in: decided from the group's tags, the VM as Azure reports it, and the guest if it was read."""

from cloudtrain.azure.group import Group, Intent
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.lifecycle.results import Training

PROVISIONING = "provisioning"
RUNNING = "running"
EVICTED = "evicted"
STOPPED = "stopped"
FINISHED = "finished"
FAILED = "failed"


def state_of(group: Group, vm: Vm | None, training: Training | None) -> str:
    """training: as read from the guest now; None where it was not or could not be read."""
    if group.intent is Intent.FINISHED or (training and training.finished):
        return FINISHED
    if vm is None:
        if not group.may_hold_work and not group.storage_account:
            return PROVISIONING
        return STOPPED if group.intent is Intent.STOPPED else EVICTED
    if vm.gone_wrong and not group.may_hold_work:
        return FAILED
    if vm.power in (PowerState.DEALLOCATED, PowerState.DEALLOCATING):
        if group.intent is Intent.STOPPED and group.progress.failed:
            return FAILED
        # Azure shows an evicted VM exactly as one that somebody deallocated: what the user wanted tells them apart.
        return STOPPED if group.intent is Intent.STOPPED else EVICTED
    if vm.power in (PowerState.STOPPED, PowerState.STOPPING):
        return STOPPED
    if vm.power is not PowerState.RUNNING:
        return PROVISIONING
    return _running(group, training)


def _running(group: Group, training: Training | None) -> str:
    if training is None:
        return RUNNING if group.trained else PROVISIONING
    if training.failed:
        return FAILED
    return RUNNING if training.under_way else PROVISIONING
