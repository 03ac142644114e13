"""In real time, on VMs that are processes: a run whose VM is deleted over and over, under watchers that are killed."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import CommandLine, Outcome, cloudtrain  # noqa: F401  # fixture

EVICTIONS = 10
STEPS = 50 * EVICTIONS
SMALL = Path(__file__).parents[1] / "e2e" / "small_trainer.py"
# The command line with a trainer that starts at once, and leases that do not outlive a killed watcher for long.
DRIVER = f"""
from cloudtrain.azure import lease, session
session._trainer_command = lambda: ["/usr/bin/env", {sys.executable!r}, {str(SMALL)!r}]
lease.SECONDS, lease.RENEW_SECONDS = 6.0, 4.0
from cloudtrain.__main__ import main
main()
"""


def start(line: CommandLine, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        cwd=line.directory,
        env=line.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(line: CommandLine, *arguments: str) -> Outcome:
    process = start(line, *arguments)
    out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, out, err)


def told(line: CommandLine, *arguments: str) -> dict[str, Any]:
    outcome = run(line, *arguments)
    assert outcome.code == 0, f"{arguments}: {outcome.out}\n{outcome.err}"
    data: dict[str, Any] = json.loads(outcome.out)["data"]
    return data


def evicted(line: CommandLine, notice: str) -> bool:
    """Once it trains; False where it has finished by then."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        outcome = run(line, "simulate-eviction", "horses", "--notice", notice, "--no-restart", "--json")
        if outcome.code == 0:
            return True
        if "TrainingFinished" in outcome.out:
            return False
    raise AssertionError(f"it never trained again: {outcome.out}\n{outcome.err}")


def stored(line: CommandLine) -> dict[str, Any]:
    """The last checkpoint, as it lies in the run's storage."""
    from cloudtrain.azure import group as groups
    from cloudtrain.azure import storage
    from cloudtrain.azure.session import open_session
    from cloudtrain.clock import SystemClock

    with open_session("embedded", home=line.home, clock=SystemClock()) as session:
        found = storage.find(session, groups.get(session, "horses"))
        assert found is not None
        container = storage.open_container(session, found)
        blob: dict[str, Any] = json.loads(container.download_blob(f"models/checkpoints/{STEPS:08}").readall())
        return blob


@pytest.mark.long
def test_evicted_again_and_again_under_watchers_that_are_killed_a_run_ends_with_the_very_weights(
    cloudtrain: CommandLine,  # noqa: F811
) -> None:
    chance = random.Random(8)
    told(cloudtrain, "up", "horses", "--eviction-policy", "Delete", "--json", "--", "--steps", str(STEPS))
    watcher, count = start(cloudtrain, "watch", "horses"), 0
    try:
        for n in range(EVICTIONS):
            count += evicted(cloudtrain, "5" if n % 2 else "0")
            # Anywhere in its looking, making and beginning.
            time.sleep(chance.uniform(0.0, 5.0))
            watcher.send_signal(signal.SIGKILL)
            watcher.communicate()
            watcher = start(cloudtrain, "watch", "horses")
        out, err = watcher.communicate(timeout=240)
    finally:
        watcher.kill()
    # The VM ends itself, or the watcher ends it: whoever is first.
    assert watcher.returncode == 0 and "horses: finished" in out.splitlines()[-1], f"{out}\n{err}"
    status = told(cloudtrain, "status", "horses", "--json")
    weights = ""
    for step in range(1, STEPS + 1):
        weights = hashlib.sha256(f"{weights} {step}".encode()).hexdigest()
    # A generation whose VM went before anybody noted that it trained is made once more under its number.
    assert status["state"] == "finished" and status["generation"] > 1
    assert count >= EVICTIONS - 1
    assert stored(cloudtrain)["weights"] == weights
    vms = told(cloudtrain, "emulator", "status", "--json")["vms"]
    assert len(vms) <= 1, vms
    assert told(cloudtrain, "down", "horses", "--json")["left"] == []
