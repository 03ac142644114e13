"""`down`: bring home what the run made, delete everything of it, then look again and prove it."""

from datetime import datetime
from typing import Any

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import leftovers, names, network
from cloudtrain.azure.group import Group
from cloudtrain.errors import CloudtrainError, Refused
from cloudtrain.lifecycle import durable, stored
from cloudtrain.lifecycle.context import Context
from cloudtrain.workflow import pull
from cloudtrain.workflow.pull import Destination, PullResult


class Pulled(msgspec.Struct, frozen=True):
    """What was brought home before. directory: absolute. files: how many lie there, bytes: of them."""

    directory: str
    files: int
    bytes: int


class DownResult(msgspec.Struct, frozen=True):
    """pulled: None where nothing was brought home. Resource ids. left: what should be gone and is not (also containers
    and volumes of a rehearsal). kept: what is left alone on purpose. kept_images: the run's trainer image where `up`
    pushed it; it stays in its registry, as its earlier versions do."""

    run: str
    cloud: str
    pulled: Pulled | None
    deleted: list[str]
    left: list[str]
    kept: list[str]
    kept_images: list[str]
    searched: list[str]


def down(
    ctx: Context,
    run: str,
    destination: Destination,
    *,
    discard: bool = False,
    network_watcher: bool = False,
) -> DownResult:
    """Like `rm -f`: a run that is not there is no error. Where what it made cannot be brought home, nothing is deleted;
    discard: it goes with the run. `left` is read from Azure after the deletion."""
    group = groups.find(ctx.session, run)
    if network_watcher:
        _refuse_shared_watcher(ctx, names.group(run))
    pulled = _bring_home(ctx, group, destination) if group and not discard and not group.deleting else None
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
        pulled=pulled,
        deleted=[resource for resource in deleted if resource not in left],
        left=left,
        kept=kept,
        kept_images=kept_images,
        searched=[ctx.session.cloud],
    )


def _bring_home(ctx: Context, group: Group, destination: Destination) -> Pulled | None:
    """As `pull`; of a run that has not finished the newest checkpoint too, which is all that it could go on from."""
    try:
        container = stored.opened(ctx, group)
        result = pull.bring_home(ctx, group, container, destination, None) if container is not None else None
    except CloudtrainError as error:
        now = groups.find(ctx.session, group.run)
        if now is None or now.deleting:
            return None  # somebody else was quicker
        raise _kept(group.run, error) from error
    if result is None or not result.files:
        if group.may_hold_work:
            ctx.progress.note("There was nothing to fetch: nothing of the run lies in storage.")
        return None
    if not result.complete:
        ctx.progress.note(_unfinished(ctx, result))
    return Pulled(result.directory, len(result.files), sum(file.bytes for file in result.files))


def _unfinished(ctx: Context, result: PullResult) -> str:
    text = "The run had not finished, or not all of it was in storage. What is brought home is what lay there"
    if result.as_of:
        seconds = ctx.clock.now().timestamp() - datetime.fromisoformat(result.as_of).timestamp()
        text += f"; the VM last wrote to it {max(0.0, seconds):.0f} s ago"
    if result.step is not None:
        text += f"; its newest checkpoint is at step {result.step}"
    return text + "."


def _kept(run: str, error: CloudtrainError) -> CloudtrainError:
    hint = error.hint.rstrip(".")
    return CloudtrainError(
        error.code,
        f"Nothing was deleted, for what run '{run}' made could not be brought home: {error.message}",
        (f"{hint}; or  " if hint else "") + f"cloudtrain down {run} --discard  deletes it with the run.",
        error.exit_code,
        error.blocks,
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
