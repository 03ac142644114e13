"""Everything that is looked at before a run is made, at once; and what `up` can put right by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from cloudtrain import image
from cloudtrain import spec as specs
from cloudtrain.azure import preflight, providers, terms
from cloudtrain.azure.preflight import PROVIDERS, TERMS, Readings
from cloudtrain.azure.session import check_image
from cloudtrain.checks import Check, State, failed, passed, refuse_failed, unknown
from cloudtrain.errors import CloudtrainError
from cloudtrain.lifecycle.context import Context
from cloudtrain.spec import RunSpec
from cloudtrain.together import together


@dataclass(frozen=True)
class Findings:
    """seen: what Azure said, for the plan."""

    checks: list[Check]
    seen: Readings


def examine(ctx: Context, spec: RunSpec, held_size: str = "") -> Findings:
    """Every check, side by side. held_size: the size of the VM that the run has already, if it has one.

    What is not Azure's to answer (the trainer image, its registry, the Docker engine) is one more job here."""
    seen, own = together(
        lambda: preflight.read(ctx.session, spec),
        lambda: [trainer_image(ctx, spec)],
    )
    return Findings([*preflight.checks(seen, spec, held_size), *own], seen)


def trainer_image(ctx: Context, spec: RunSpec) -> Check:
    name = "trainer_image"
    try:
        specs.check_image_named(spec)
        check_image(ctx.session, spec.image)
        repository = ctx.session.defaults.repository
        if repository and spec.image.startswith(f"{repository}:"):
            return passed(name, f"{spec.image}: built here, for the rehearsal's own registry")
        pulled = ctx.session.capabilities.published_images
        seen = image.look(spec.image, built=bool(spec.built_from)) if pulled else None
    except CloudtrainError as error:
        return failed(name, error)
    if pulled:
        return passed(name, seen) if seen else unknown(name, f"{spec.image}: nobody here can ask its registry.")
    return passed(name, f"{spec.image}: the trainer of this Python environment")


def in_the_way(checks: Sequence[Check], *, accept_terms: bool) -> list[Check]:
    """Those that `up` does not put right by itself."""
    mended = {PROVIDERS, TERMS} if accept_terms else {PROVIDERS}
    return [check for check in checks if check.name not in mended]


def allowed(ctx: Context, spec: RunSpec, *, accept_terms: bool) -> Findings:
    """Raises everything at once that stands in the way of a run. Changes nothing."""
    with ctx.progress.step(f"preflight checks for {spec.size} in {spec.location}", usually="a few seconds on Azure"):
        found = examine(ctx, spec)
        refuse_failed(in_the_way(found.checks, accept_terms=accept_terms))
    for check in found.checks:
        if check.state is State.UNKNOWN:
            ctx.progress.note(f"{check.name}: unknown. {check.detail}")
    return found


def put_right(ctx: Context, spec: RunSpec, found: Findings, *, accept_terms: bool) -> None:
    """Registers providers, and accepts the image's terms where the user said so. Raises what is wrong after that."""
    refuse_failed(mend(ctx, spec, found, register=True, accept_terms=accept_terms).checks)


def mend(ctx: Context, spec: RunSpec, found: Findings, *, register: bool, accept_terms: bool) -> Findings:
    """Register the providers that are missing, accept the terms that are not; then everything is looked at again."""
    missing = preflight.missing_registrations(found.seen, spec)
    if not register:
        # Without it nobody can accept terms.
        missing = [name for name in missing if accept_terms and name == providers.MARKETPLACE]
    if missing:
        with ctx.progress.step(f"registering {', '.join(missing)}", usually="1 to 3 minutes on Azure"):
            providers.register(ctx.session, ctx.clock, missing)
        found = examine(ctx, spec)
    if accept_terms and _accept(ctx, found.seen):
        found = examine(ctx, spec)
    return found


def _accept(ctx: Context, seen: Readings) -> bool:
    """Whether there was something to accept."""
    image, found = seen.image, seen.terms
    if isinstance(image, CloudtrainError) or isinstance(found, CloudtrainError) or image.plan is None:
        return False
    if found is None or found.accepted:
        return False
    ctx.progress.note(f"License of the VM image: {found.license}")
    ctx.progress.note(f"Its privacy policy: {found.privacy}")
    with ctx.progress.step("accepting these terms for the subscription"):
        terms.accept(ctx.session, image.plan)
    return True
