"""Resource providers: a subscription has to be registered for each before it can make anything of it. Free."""

from collections.abc import Iterable

from cloudtrain.azure.errors import translated
from cloudtrain.azure.session import Session
from cloudtrain.clock import Clock
from cloudtrain.errors import CloudtrainError, Exit
from cloudtrain.together import together

NEEDED = ("Microsoft.Compute", "Microsoft.Network", "Microsoft.Storage")
# Only for images that are sold under a plan.
MARKETPLACE = "Microsoft.MarketplaceOrdering"
# Only for Azure's auto-shutdown, which a maximum duration uses.
SCHEDULES = "Microsoft.DevTestLab"
REGISTERED = "Registered"
# Azure takes one to a few minutes.
REGISTRATION_SECONDS = 900.0


def states(session: Session, namespaces: Iterable[str]) -> dict[str, str]:
    """Namespace -> Azure's word: NotRegistered, Registering, Registered, Unregistering, Unregistered."""

    def state(namespace: str) -> str:
        with translated(f"reading whether {namespace} is registered"):
            return str(session.resources.providers.get(namespace).registration_state)

    names = list(namespaces)
    return dict(zip(names, together(*(lambda name=name: state(name) for name in names)), strict=True))


def register(session: Session, clock: Clock, namespaces: Iterable[str]) -> None:
    """Register them, and wait until they are. Raises Refused without the right to, CloudtrainError when it lasts."""
    waiting = set(namespaces)
    for namespace in sorted(waiting):
        with translated(f"registering {namespace}"):
            session.resources.providers.register(namespace)
    deadline = clock.now().timestamp() + REGISTRATION_SECONDS
    while waiting := {name for name, state in states(session, waiting).items() if state != REGISTERED}:
        if clock.now().timestamp() > deadline:
            raise CloudtrainError(
                "StillRegistering",
                f"Azure has been registering {', '.join(sorted(waiting))} for {REGISTRATION_SECONDS / 60:.0f} minutes.",
                "It goes on by itself: run the same command again later.",
                Exit.REFUSED,
            )
        clock.sleep(session.capabilities.poll_seconds)
