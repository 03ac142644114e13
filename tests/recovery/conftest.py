"""The command line on simulated machines under a clock that passes only where somebody waits: days in seconds."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cloudtrain.azure.session import on_emulator
from cloudtrain.emulator.embedded import EmbeddedAzure
from cloudtrain.emulator.machines.simulated import Job, SimulatedMachines, Training
from cloudtrain.guest.simulated import SimulatedGuest
from tests.cli.conftest import Outcome, cloudtrain, quick  # noqa: F401  # fixtures


class StoryClock:
    """`at` tells what happens when, while somebody waits."""

    def __init__(self) -> None:
        self._now = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
        self._story: list[tuple[datetime, Callable[[], None]]] = []
        self._mutex = threading.RLock()

    def now(self) -> datetime:
        with self._mutex:
            return self._now

    def at(self, seconds_from_now: float, event: Callable[[], None]) -> None:
        self._story.append((self.now() + timedelta(seconds=seconds_from_now), event))
        self._story.sort(key=lambda each: each[0])

    def sleep(self, seconds: float) -> None:
        with self._mutex:
            until = self._now + timedelta(seconds=max(0.0, seconds))
            while self._story and self._story[0][0] <= until:
                moment, event = self._story.pop(0)
                self._now = max(self._now, moment)
                event()
            self._now = max(self._now, until)


@dataclass
class Rehearsal:
    """The embedded Azure on simulated machines, and the command line that works on it."""

    cli: Callable[..., Outcome]
    root: Path
    clock: StoryClock
    machines: SimulatedMachines
    clouds: list[EmbeddedAzure] = field(default_factory=list)

    def open(self, *_: Any, **__: Any) -> EmbeddedAzure:
        self.clouds.append(EmbeddedAzure(self.root, clock=self.clock, machines=self.machines))
        return self.clouds[-1]

    @property
    def vm_id(self) -> str:
        """Of the one VM there is."""
        (found,) = self.machines.strays()
        return found

    @property
    def training(self) -> Training:
        return self.machines.training(self.vm_id)

    def evict(self, notice: float = 30.0) -> None:
        self.machines.evict(self.vm_id, notice)

    def azure(self, method: str, path: str, body: Any = None, version: str = "2026-04-01") -> Any:
        """What somebody else asks of Azure: a raw request below the run's group."""
        from cloudtrain.azure.session import open_session

        with open_session("embedded", home=self.root, clock=self.clock) as session:
            from azure.core.rest import HttpRequest

            url = f"/subscriptions/{session.subscription_id}/resourceGroups/cloudtrain-horses{path}"
            request = HttpRequest(method, url, params={"api-version": version}, json=body)
            answer = session.resources.send_request(request)
            answer.raise_for_status()
            return answer.json() if answer.content else None

    def stop_in_the_portal(self) -> None:
        self.azure("POST", "/providers/Microsoft.Compute/virtualMachines/horses-g1/deallocate")

    def power(self) -> str:
        status = self.cli("status", "horses", "--json").envelope["data"]
        return str(status["vm"]["power_state"])


JOB = Job(steps=300, step_seconds=20.0, checkpoint_seconds=200.0)


@pytest.fixture
def rehearsal(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    """A run `horses` that trains: 300 steps of 20 s, a checkpoint each 200 s."""
    clock, cli = StoryClock(), request.getfixturevalue("quick")
    made = Rehearsal(cli, tmp_path / "azure", clock, SimulatedMachines(clock, SimulatedGuest(), JOB))
    monkeypatch.setattr("cloudtrain.azure.session.embedded_azure", made.open)
    # As seldom as on Azure: asking five times a second for minutes takes thousands of requests.
    monkeypatch.setattr("cloudtrain.azure.session._embedded", lambda *_: on_emulator(made.open(), clock, None, 10.0))
    monkeypatch.setattr("cloudtrain.clock.SystemClock", lambda: clock)
    # One look a second, as in a rehearsal, would make thousands of requests.
    monkeypatch.setattr("cloudtrain.workflow.watch.interval", lambda ctx: 60.0)
    up = cli("up", "horses", "--json")
    assert up.code == 0, up.out
    return made
