"""`doctor`: the checks of `up`, without an `up`."""

from collections.abc import Callable

import msgspec

from cloudtrain.azure import group as groups
from cloudtrain.azure import preflight
from cloudtrain.azure import vm as vms
from cloudtrain.checks import Check, errors_of, failed, passed
from cloudtrain.errors import CloudtrainError
from cloudtrain.lifecycle.context import Context
from cloudtrain.spec import RunSpec
from cloudtrain.workflow.plan import CheckInfo, check_infos
from cloudtrain.workflow.preflight import examine, mend


class DoctorResult(msgspec.Struct, frozen=True):
    """subscription, location, size: "" where nobody could log in."""

    run: str
    cloud: str
    subscription: str
    location: str
    size: str
    checks: list[CheckInfo]


def doctor(
    ctx: Context, run: str, spec_of: Callable[[RunSpec | None], RunSpec], *, register: bool, accept_terms: bool
) -> tuple[DoctorResult, CloudtrainError | None]:
    """spec_of: what `up` would make of what the run is already. register, accept_terms: what may be put right.

    The error sums up what failed."""
    existing, held_size, check = _run(ctx, run)
    spec = spec_of(existing)
    with ctx.progress.step(f"checks for {spec.size} in {spec.location}", usually="a few seconds on Azure"):
        found = examine(ctx, spec, held_size)
    if register or accept_terms:
        found = mend(ctx, spec, found, register=register, accept_terms=accept_terms)
    checks = [*found.checks, check]
    result = DoctorResult(
        run=run,
        cloud=ctx.session.cloud,
        subscription=ctx.session.subscription_id,
        location=spec.location,
        size=spec.size,
        checks=check_infos(checks),
    )
    return result, _summary(checks)


def _run(ctx: Context, run: str) -> tuple[RunSpec | None, str, Check]:
    """What the run is already, the size of its VM, and whether `up` could go on with it."""
    try:
        group = groups.find(ctx.session, run)
        vm = vms.find(ctx.session, group) if group and not group.deleting else None
    except CloudtrainError as error:
        return None, "", failed("run", error)
    if group is None or group.deleting:
        return None, "", passed("run", f"there is no run '{run}' yet")
    return group.spec, vm.size if vm else "", passed("run", f"'{run}' exists: up goes on with it")


def without_session(run: str, cloud: str, error: CloudtrainError) -> tuple[DoctorResult, CloudtrainError | None]:
    """What there is to say where the cloud could not even be opened. Raises an error that is about something else."""
    checks = preflight.without_session(error)
    return DoctorResult(run, cloud, "", "", "", check_infos(checks)), _summary(checks)


def _summary(checks: list[Check]) -> CloudtrainError | None:
    errors = errors_of(checks)
    if not errors:
        return None
    names = ", ".join(check.name for check in checks if check.error is not None)
    count = "One check" if len(errors) == 1 else f"{len(errors)} checks"
    return CloudtrainError(errors[0].code, f"{count} failed: {names}.", "", errors[0].exit_code)
