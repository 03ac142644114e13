"""`up --dry-run`, and what a real `up` shows before it asks: what would be made, and what that costs."""

from collections.abc import Sequence

import msgspec

from cloudtrain.azure import leftovers, names, preflight, shutdown
from cloudtrain.azure.group import Group
from cloudtrain.azure.prices import Prices
from cloudtrain.azure.vm import PowerState, Vm
from cloudtrain.checks import Check
from cloudtrain.errors import CloudtrainError
from cloudtrain.lifecycle import training
from cloudtrain.lifecycle.context import Context
from cloudtrain.spec import RunSpec
from cloudtrain.workflow.preflight import Findings

HOURS_A_DAY = 24


class CheckInfo(msgspec.Struct, frozen=True):
    """state: passed, failed or unknown. fix: what to run, "" where nothing is to be done."""

    name: str
    state: str
    detail: str
    fix: str


class PlannedResource(msgspec.Struct, frozen=True):
    """type: Azure's. exists: it is there already. by_azure: Azure makes it by itself."""

    type: str
    name: str
    exists: bool
    by_azure: bool = False


class PriceInfo(msgspec.Struct, frozen=True):
    """USD. spot, on_demand: an hour of the VM, None where unknown. most_an_hour, most_a_day: what the VM can cost at
    most, None where unknown. source: whose list; at: when it was asked; spot_since: since when its Spot price holds."""

    spot: float | None
    on_demand: float | None
    most_an_hour: float | None
    most_a_day: float | None
    source: str
    at: str
    spot_since: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """action: 'create' (a new VM), 'start' (the VM that is there) or 'none' (it runs). changes: settings of an existing
    run that would change. besides: what bills beside the VM. registers: providers that the subscription would be
    registered for. max_duration (seconds), max_cost (USD): 0 = no limit. terms: where those of the VM image are that
    still have to be accepted, "" for none."""

    run: str
    cloud: str
    subscription: str
    resource_group: str
    action: str
    location: str
    size: str
    hardware: str
    vm_image: str
    image: str
    arguments: list[str]
    disk_gb: int
    max_price: float
    max_duration: int
    max_cost: float
    eviction_policy: str
    zones: list[str]
    other_sizes: list[str]
    other_locations: list[str]
    fallback: str
    bills: bool
    price: PriceInfo
    besides: list[str]
    registers: list[str]
    terms: str
    resources: list[PlannedResource]
    changes: list[str]
    checks: list[CheckInfo]


def make(
    ctx: Context,
    spec: RunSpec,
    found: Findings,
    group: Group | None,
    vm: Vm | None = None,
    changes: list[str] | None = None,
) -> Plan:
    """group, vm: what there is of the run already."""
    size = found.seen.size_of(spec.size)
    return Plan(
        run=spec.run,
        cloud=ctx.session.cloud,
        subscription=ctx.session.subscription_id,
        resource_group=names.group(spec.run),
        action=_action(vm),
        location=spec.location,
        size=spec.size,
        hardware=preflight.hardware(size) if size else spec.size,
        vm_image=spec.vm_image,
        image=spec.image,
        arguments=list(spec.arguments),
        disk_gb=spec.disk_gb,
        max_price=spec.max_price,
        max_duration=spec.max_duration,
        max_cost=spec.max_cost,
        eviction_policy=spec.eviction_policy,
        zones=list(spec.zones),
        other_sizes=list(spec.other_sizes),
        other_locations=list(spec.other_locations),
        fallback=spec.fallback,
        bills=ctx.session.capabilities.bills,
        price=_price(ctx, spec, found),
        besides=_besides(spec, found) if ctx.session.capabilities.bills else [],
        terms=_terms_to_accept(found),
        registers=preflight.missing_registrations(found.seen, spec),
        resources=_resources(ctx, spec, group, vm),
        changes=changes or [],
        checks=check_infos(found.checks),
    )


def check_infos(checks: list[Check]) -> list[CheckInfo]:
    return [CheckInfo(check.name, check.state.value, check.detail, check.fix) for check in checks]


def _action(vm: Vm | None) -> str:
    if vm is None or vm.gone_wrong:
        return "create"
    return "none" if vm.power is PowerState.RUNNING else "start"


def _price(ctx: Context, spec: RunSpec, found: Findings) -> PriceInfo:
    asked = found.seen.prices
    prices = Prices(None, None) if isinstance(asked, CloudtrainError) else asked
    most = _most_an_hour(spec, [asked, *found.seen.other_prices])
    return PriceInfo(
        spot=prices.spot,
        on_demand=prices.on_demand,
        most_an_hour=most,
        most_a_day=None if most is None else round(most * HOURS_A_DAY, 2),
        source=ctx.session.price_list,
        at="" if isinstance(asked, CloudtrainError) else ctx.clock.now().isoformat(timespec="seconds"),
        spot_since=prices.spot_since,
    )


def _most_an_hour(spec: RunSpec, asked: Sequence[Prices | CloudtrainError]) -> float | None:
    """At the dearest place where recovery may make the VM; None where one of them is unknown."""
    most = [_most_of(spec, Prices(None, None) if isinstance(each, CloudtrainError) else each) for each in asked]
    known = [each for each in most if each is not None]
    return max(known) if len(known) == len(most) else None


def _most_of(spec: RunSpec, prices: Prices) -> float | None:
    """Spot never costs more than on demand, whatever the limit; a VM on demand knows no limit."""
    if spec.max_price == -1 or spec.on_demand_after is not None:
        return prices.on_demand
    return spec.max_price if prices.on_demand is None else min(prices.on_demand, spec.max_price)


def _besides(spec: RunSpec, found: Findings) -> list[str]:
    image = found.seen.image
    plan = None if isinstance(image, CloudtrainError) else image.plan
    software = [f"the VM image's plan '{plan['name']}', if it has a price"] if plan else []
    return [
        f"{spec.disk_gb} GiB of Standard SSD and a public address, until down",
        "checkpoints in a storage account (Standard LRS), until down",
        "traffic out of Azure",
        *software,
    ]


def _terms_to_accept(found: Findings) -> str:
    terms = found.seen.terms
    return "" if terms is None or isinstance(terms, CloudtrainError) or terms.accepted else terms.license


def _resources(ctx: Context, spec: RunSpec, group: Group | None, found: Vm | None) -> list[PlannedResource]:
    """Everything that `up` makes, in its order. The generation of the VM is the group's, and the next one's where it
    goes on from storage."""
    run, generation = spec.run, group.generation if group else 1
    if group and found is None and group.may_hold_work and group.storage_account:
        generation += 1
    there = {resource.lower() for resource in leftovers.of_run(ctx.session, run)} if group else set()
    vm = names.vm(run, generation)
    made = [
        ("Microsoft.Resources/resourceGroups", names.group(run)),
        ("Microsoft.Network/networkSecurityGroups", names.nsg(run)),
        ("Microsoft.Network/virtualNetworks", names.vnet(run)),
        ("Microsoft.Storage/storageAccounts", _account(ctx, run, group)),
        ("Microsoft.Compute/virtualMachines", vm),
        ("Microsoft.Network/networkInterfaces", names.nic(run, generation)),
        ("Microsoft.Network/publicIPAddresses", names.public_ip(run, generation)),
        ("Microsoft.Compute/disks", names.disk(run, generation)),
    ]
    now = ctx.clock.now()
    if shutdown.due(group.begun if group else now.timestamp(), spec.max_duration, now):
        made.append(("Microsoft.DevTestLab/schedules", shutdown.name(run, generation)))
    planned = [PlannedResource(kind, name, _is_there(kind, name, there)) for kind, name in made]
    command = PlannedResource("Microsoft.Compute/virtualMachines/runCommands", f"{vm}/{training.START_COMMAND}", False)
    watcher = f"NetworkWatcher_{spec.location}"
    watchers = {one.rsplit("/", 1)[-1].lower() for one in leftovers.network_watchers(ctx.session)}
    kind = "Microsoft.Network/networkWatchers"
    return [*planned, command, PlannedResource(kind, watcher, watcher.lower() in watchers, by_azure=True)]


def _account(ctx: Context, run: str, group: Group | None) -> str:
    """The name that comes first: another, should all of Azure have one of that name already."""
    if group is not None and group.storage_account:
        return group.storage_account
    return names.storage_account(
        run, f"/subscriptions/{ctx.session.subscription_id}/resourceGroups/{names.group(run)}", 0
    )


def _is_there(kind: str, name: str, ids: set[str]) -> bool:
    ending = f"/{kind}/{name}".lower().replace("/microsoft.resources/", "/")
    # Azure may add a suffix to the name of a NIC that was made with its VM.
    return any(ending in one and "/" not in one.split(ending, 1)[1] for one in ids)
