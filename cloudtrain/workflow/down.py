"""`down`: delete everything of a run, then look again and prove it."""

from typing import Any

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import leftovers, names, network
from cloudtrain.azure.group import Group
from cloudtrain.errors import CloudtrainError, Refused
from cloudtrain.workflow import durable
from cloudtrain.workflow.context import Context


class DownResult(msgspec.Struct, frozen=True):
    """Resource ids. left: what should be gone and is not (also containers and volumes of a rehearsal). kept: what is
    left alone on purpose. kept_images: the run's trainer image where `up` pushed it; it stays in its registry, as its
    earlier versions do."""

    run: str
    cloud: str
    deleted: list[str]
    left: list[str]
    kept: list[str]
    kept_images: list[str]
    searched: list[str]


def down(ctx: Context, run: str, *, network_watcher: bool = False) -> DownResult:
    """Like `rm -f`: a run that is not there is no error. `left` is read from Azure after the deletion."""
    group = groups.find(ctx.session, run)
    if network_watcher:
        _refuse_shared_watcher(ctx, names.group(run))
    kept_images = _pushed(ctx, group) if group else []
    deleted = _delete_group(ctx, group) if group else []
    if network_watcher:
        deleted += _delete_watcher(ctx)
    with ctx.progress.step("looking for what is left"):
        left = [*leftovers.of_run(ctx.session, run), *ctx.session.sweep()]
        kept = leftovers.network_watchers(ctx.session) if group else []
    return DownResult(
        run=run,
        cloud=ctx.session.cloud,
        deleted=[resource for resource in deleted if resource not in left],
        left=left,
        kept=kept,
        kept_images=kept_images,
        searched=[ctx.session.cloud],
    )


def _delete_group(ctx: Context, group: Group) -> list[str]:
    with ctx.progress.step("listing what the run made"):
        made = [*leftovers.in_group(ctx.session, group.name), group.id]
    if not group.deleting:
        with ctx.progress.step("closing the run's storage", usually="a few seconds on Azure"):
            durable.close(ctx, group)
    with ctx.progress.step("deleting the resource group", usually="a few minutes on Azure"):
        groups.delete(ctx.session, group)
    return made


def _pushed(ctx: Context, group: Group) -> list[str]:
    # A rehearsal's registry goes with the rehearsal.
    return [group.spec.image] if group.spec.built_from and ctx.session.defaults.repository is None else []


def _refuse_shared_watcher(ctx: Context, group_name: str) -> None:
    others = network.foreign_vnets(ctx.session, group_name)
    if others:
        raise Refused(
            "NetworkWatcherNeeded",
            f"--network-watcher: {names.NETWORK_WATCHER_GROUP} serves other virtual networks of this subscription: "
            + ", ".join(others),
            "Run down without --network-watcher: the group is free of charge and is left alone.",
        )


def _delete_watcher(ctx: Context) -> list[str]:
    watchers = leftovers.network_watchers(ctx.session)
    if not watchers:
        return []
    with ctx.progress.step(f"deleting {names.NETWORK_WATCHER_GROUP}"):
        _wait(ctx, leftovers.begin_delete_watcher_group(ctx.session))
    return watchers


def _wait(ctx: Context, poller: Any) -> None:
    if poller is not None:
        from cloudtrain.azure.errors import translated

        with translated("deleting a resource group"):
            poller.result()


def left_behind(result: DownResult) -> CloudtrainError:
    """The error that says so, for a result whose `left` is not empty."""
    from cloudtrain.errors import Exit

    return CloudtrainError(
        "LeftBehind",
        f"{len(result.left)} resources of the run are still there and may cost money: " + ", ".join(result.left),
        f"cloudtrain down {result.run}  tries again.",
        Exit.LEFT_BEHIND,
    )
