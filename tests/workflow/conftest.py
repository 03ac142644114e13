"""The command line in this process, on real emulated VMs, with a trainer that starts at once."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import CommandLine, Outcome, cloudtrain, quick
from tests.cli.untrained import patches

from .stored_run import StoredRun, with_storage

__all__ = ["cloudtrain", "quick"]
TRAINER = Path(__file__).parents[1] / "guest" / "fake_trainer.py"


@pytest.fixture
def rehearsal(quick: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Outcome]]:
    """`cloudtrain ...`, whose rehearsals train with the tests' own trainer."""
    from cloudtrain.azure import session

    monkeypatch.setattr(session, "_trainer_command", lambda: [sys.executable, "-sSEB", str(TRAINER)])
    monkeypatch.setattr(session, "trainer_missing", lambda: None)
    monkeypatch.setattr(session, "REHEARSAL_ARGUMENTS", ())
    yield quick
    quick("emulator", "reset", "--yes")


@pytest.fixture
def stored(
    quick: Callable[..., Outcome], cloudtrain: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StoredRun]:
    """A run with storage that is empty, on a VM that runs, and whose guest does not answer."""
    from cloudtrain.azure import session as sessions
    from cloudtrain.clock import SystemClock

    for target, value in patches().items():
        monkeypatch.setattr(target, value)
    # What the guest wrote is young for long enough, on a busy machine too.
    monkeypatch.setattr(sessions, "REHEARSAL_PUBLISH_SECONDS", 20.0)
    assert quick("up", "horses", "--json").code == 0
    with sessions.open_session("embedded", home=cloudtrain.home, clock=SystemClock()) as session:
        yield with_storage(quick, session, cloudtrain.directory)
