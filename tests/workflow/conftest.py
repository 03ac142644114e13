"""The command line in this process, on real emulated VMs, with a trainer that starts at once."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome, cloudtrain, quick

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
