"""What a run costs, estimated from list prices: the VM alone. Its disk and its address cost little beside it, and are
not counted."""

import msgspec

from cloudtrain.azure import prices
from cloudtrain.azure.prices import Prices
from cloudtrain.azure.vm import Vm
from cloudtrain.errors import CloudtrainError
from cloudtrain.recovery.history import Sums
from cloudtrain.workflow.context import Context


class MoneyInfo(msgspec.Struct, frozen=True):
    """Estimates, US dollars. spent: for the VM so far, by the list price at each start; hours: that it ran;
    unpriced_hours: of these, where no price was known. on_demand: what the same hours would have cost on demand now,
    None where unknown. source: whose list; at: ISO 8601, when the on-demand price was asked."""

    spent: float
    hours: float
    unpriced_hours: float
    on_demand: float | None
    source: str
    at: str


def price_of(ctx: Context, vm: Vm | None) -> float | None:
    """USD an hour of the VM as it runs now; None where the list does not say. Nothing depends on it."""
    known = None if vm is None else _look_up(ctx, vm)
    if vm is None or known is None:
        return None
    return known.on_demand if vm.priority == "Regular" else known.spot


def account(ctx: Context, total: Sums, vm: Vm | None) -> MoneyInfo:
    known = None if vm is None else _look_up(ctx, vm)
    hourly = known.on_demand if known else None
    return MoneyInfo(
        spent=round(total.spent, 4),
        hours=round(total.billed / 3600, 4),
        unpriced_hours=round(total.unpriced / 3600, 4),
        on_demand=None if hourly is None else round(total.billed / 3600 * hourly, 4),
        source=ctx.session.price_list,
        at=ctx.clock.now().isoformat(timespec="seconds"),
    )


def _look_up(ctx: Context, vm: Vm) -> Prices | None:
    try:
        return prices.look_up(ctx.session, vm.location, vm.size)
    except CloudtrainError:
        return None
