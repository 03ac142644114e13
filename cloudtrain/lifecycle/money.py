"""What a run costs, estimated from list prices: its VMs by the price at each start, its disk and its public address for
as long as they are there, what lies in its storage now, as if it had lain there from the beginning, and what its VM
writes there to be seen."""

import msgspec

from cloudtrain.azure import blobs, prices, storage
from cloudtrain.azure.group import Group
from cloudtrain.azure.prices import Prices, Standing
from cloudtrain.azure.session import PUBLISH_SECONDS
from cloudtrain.azure.vm import Vm
from cloudtrain.errors import CloudtrainError
from cloudtrain.lifecycle.context import Context
from cloudtrain.recovery import Place
from cloudtrain.recovery.history import Sums

# A guest writes to storage where it stands, and what came to a log. A rehearsal's does so more often, and is counted as
# Azure's, so that it tells what the run would cost.
WRITES_AN_HOUR = 2 * 3600 / PUBLISH_SECONDS


class MoneyInfo(msgspec.Struct, frozen=True):
    """Estimates, US dollars. spent: for everything so far; by kind: spot, on_demand_vms, disk, address, storage (0 too
    where no price is known). hours: that a VM ran; unpriced_hours: of these, where no price was known. on_demand: what
    the useful hours would have cost on one VM on demand, with disk and address, None where unknown; savings: that, less
    what was spent. source: whose list; at: ISO 8601, when it was asked."""

    spent: float
    spot: float
    on_demand_vms: float
    disk: float
    address: float
    storage: float
    hours: float
    useful_hours: float
    unpriced_hours: float
    on_demand: float | None
    savings: float | None
    source: str
    at: str


def price_of(ctx: Context, vm: Vm | None) -> float | None:
    """USD an hour of the VM as it runs now; None where the list does not say. Nothing depends on it."""
    known = None if vm is None else _look_up(ctx, vm.place)
    if vm is None or known is None:
        return None
    return known.spot if vm.place.spot else known.on_demand


def standing(ctx: Context, group: Group) -> Standing:
    """Of what bills beside the VM, where the VM is."""
    try:
        return prices.look_up_standing(ctx.session, group.place.location, group.spec.disk_gb)
    except CloudtrainError:
        return Standing()


def of_vms_disk_and_address(total: Sums) -> float:
    return total.spent + total.disk + total.address


def account(ctx: Context, group: Group, total: Sums, vm: Vm | None) -> MoneyInfo:
    known, rates = _look_up(ctx, vm.place if vm else group.place), standing(ctx, group)
    now = ctx.clock.now()
    stored = storage_rates(ctx, group, rates).spent(group, total, now.timestamp())
    spent, useful = of_vms_disk_and_address(total) + stored, total.useful / 3600
    hourly = known.on_demand if known else None
    beside = (rates.disk or 0.0) + (rates.address or 0.0)
    instead = None if hourly is None else useful * (hourly + beside)
    return MoneyInfo(
        spent=round(spent, 4),
        spot=round(total.spent - total.on_demand, 4),
        on_demand_vms=round(total.on_demand, 4),
        disk=round(total.disk, 4),
        address=round(total.address, 4),
        storage=round(stored, 4),
        hours=round(total.billed / 3600, 4),
        useful_hours=round(useful, 4),
        unpriced_hours=round(total.unpriced / 3600, 4),
        on_demand=None if instead is None else round(instead, 4),
        savings=None if instead is None else round(instead - spent, 4),
        source=ctx.session.price_list,
        at=now.isoformat(timespec="seconds"),
    )


class StorageRates(msgspec.Struct, frozen=True):
    """US dollars an hour: of what lies in the run's storage, None where nobody here can see it, and of what a VM that
    runs writes there."""

    held: float | None = 0.0
    written: float = 0.0

    def spent(self, group: Group, total: Sums, now: float) -> float:
        return (self.held or 0.0) * max(0.0, now - group.begun) / 3600 + self.written * total.billed / 3600


def storage_rates(ctx: Context, group: Group, rates: Standing | None = None) -> StorageRates:
    """rates: where they are known already."""
    if not group.storage_account:
        return StorageRates()
    rates = rates or standing(ctx, group)
    gib = _gib(ctx, group)
    return StorageRates(
        held=None if gib is None else gib * (rates.gib or 0.0), written=WRITES_AN_HOUR * (rates.write or 0.0)
    )


def _gib(ctx: Context, group: Group) -> float | None:
    """None where nobody here can see it."""
    try:
        container = storage.opened(ctx.session, group) if group.storage_account else None
        return 0.0 if container is None else sum(blob.size for blob in blobs.list_blobs(container)) / 2**30
    except CloudtrainError:
        return None


def _look_up(ctx: Context, place: Place) -> Prices | None:
    try:
        return prices.look_up(ctx.session, place.location, place.size)
    except CloudtrainError:
        return None
