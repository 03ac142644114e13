"""`list`: every run of the subscription, found by its tag."""

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import vm as vms
from cloudtrain.azure.group import Group
from cloudtrain.lifecycle.context import Context
from cloudtrain.lifecycle.state import state_of
from cloudtrain.together import together


class RunEntry(msgspec.Struct, frozen=True):
    run: str
    cloud: str
    resource_group: str
    location: str
    state: str
    size: str
    created: str


class ListResult(msgspec.Struct, frozen=True):
    runs: list[RunEntry]
    searched: list[str]


def list_runs(ctx: Context) -> ListResult:
    """The guests are not asked: what a run is doing is told by its tags and its VM's power state."""
    found = groups.find_all(ctx.session)
    entries = together(*(lambda group=group: _entry(ctx, group) for group in found))
    return ListResult(runs=entries, searched=[ctx.session.cloud])


def _entry(ctx: Context, group: Group) -> RunEntry:
    vm = None if group.deleting else vms.find(ctx.session, group)
    return RunEntry(
        run=group.run,
        cloud=ctx.session.cloud,
        resource_group=group.name,
        location=vm.location if vm else group.place.location,
        state="deleting" if group.deleting else state_of(group, vm, None),
        size=vm.size if vm else group.place.size,
        created=group.created,
    )
