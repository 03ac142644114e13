"""A run's work outlives its VM: on real emulated VMs, with a trainer whose weights are a chain of hashes."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import CommandLine, Outcome
from tests.living import contents, paths

Rehearsal = Callable[..., Outcome]
SMALL_TRAINER = Path(__file__).parents[1] / "e2e" / "small_trainer.py"
STEPS = 45


def data(told: Outcome) -> dict[str, Any]:
    assert told.code == 0, f"{told.out}\n{told.err}"
    found: dict[str, Any] = told.envelope["data"]
    return found


@pytest.fixture
def small(quick: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rehearsal]:
    from cloudtrain.azure import session

    monkeypatch.setattr(session, "_trainer_command", lambda: [sys.executable, "-sSEB", str(SMALL_TRAINER)])
    monkeypatch.setattr(session, "trainer_missing", lambda: None)
    monkeypatch.setattr(session, "REHEARSAL_ARGUMENTS", ())
    yield quick
    quick("emulator", "reset", "--yes")


def undisturbed() -> str:
    weights = ""
    for step in range(1, STEPS + 1):
        weights = hashlib.sha256(f"{weights} {step}".encode()).hexdigest()
    return weights


def until_finished(small: Rehearsal) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while True:
        status = data(small("status", "horses", "--json"))
        if status["state"] == "finished" and (status["vm"] is None or status["vm"]["power_state"] == "deallocated"):
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.5)


def test_a_run_evicted_with_its_disk_goes_on_from_storage_exactly(
    small: Rehearsal, cloudtrain: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hunter2-and-more")
    options = ("--eviction-policy", "Delete", "--secret", "TOKEN", "--env", "COLOUR=blue")
    up = data(small("up", "horses", *options, "--json", "--", "--steps", str(STEPS), "--twice"))
    assert up["access"] == "identity" and up["vm"]["eviction_policy"] == "Delete"
    evicted = data(small("simulate-eviction", "horses", "--notice", "20", "--json"))
    assert evicted["steps_lost"] == 0 and evicted["resumed_step"] == evicted["saved_step"] > 0, evicted
    told = [entry["event"] for entry in evicted["timeline"]]
    # Which of the last two is noted first is a matter of a second.
    assert "deleted" in told and "notice" in told and "new VM trains" in told[-2:], told
    status = data(small("status", "horses", "--json"))
    assert (status["generation"], status["vm"]["name"]) == (2, "horses-g2")
    there = data(small("emulator", "status", "--json"))
    assert [vm["name"] for vm in there["vms"]] == ["horses-g2"] and there["strays"] == []
    cut = data(small("simulate-eviction", "horses", "--notice", "0", "--json"))
    # The trainer saves its first step of each start, and every tenth.
    assert cut["steps_lost"] is not None and cut["steps_lost"] <= 20, cut
    end = until_finished(small)
    # The VM, which may do so, or whoever looked first: it does not bill any more.
    assert end["training"]["digest"] == undisturbed() and end["generation"] == 3
    down = data(small("down", "horses", "--json"))
    assert down["left"] == []
    leaked = [path for path, held in contents(cloudtrain.home).items() if b"hunter2" in held]
    assert leaked == []


def test_a_finished_run_that_is_started_again_says_that_it_bills_for_nothing(
    small: Rehearsal, cloudtrain: CommandLine
) -> None:
    data(small("up", "horses", "--json", "--", "--steps", "3"))
    until_finished(small)
    again = small("restart", "horses", "--json")
    assert data(again)["state"] == "finished" and "nothing trains" in again.err
    (machine,) = cloudtrain.home.rglob("machine.json")
    if json.loads(machine.read_text())["kind"] == "namespaces":  # else one boot looks like the next
        time.sleep(6)  # longer than its guest takes to let a VM go
        assert [vm["power_state"] for vm in data(small("emulator", "status", "--json"))["vms"]] == ["running"]
    assert until_finished(small)["vm"]["power_state"] == "deallocated"
    up = data(small("up", "horses", "--json"))
    assert up["state"] == "finished" and "cloudtrain status horses  lets it go (deallocate)" in up["notes"][-1]
    assert until_finished(small)["vm"]["power_state"] == "deallocated"


def test_whoever_looks_while_a_finished_run_is_made_longer_does_not_let_its_vm_go(
    small: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloudtrain.lifecycle import training

    data(small("up", "horses", "--json", "--", "--steps", "3"))
    until_finished(small)
    begin, looks = training.begin, []

    def begin_later(*arguments: Any) -> Any:
        for _ in range(6):
            looks.append(data(small("status", "horses", "--json")))
            time.sleep(0.5)
        return begin(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(training, "begin", begin_later)
        assert small("up", "horses", "--", "--steps", str(STEPS)).code == 0
    assert {look["vm"]["power_state"] for look in looks} == {"running"}
    assert any("has the run in hand" in look["note"] for look in looks), looks[-1]
    assert until_finished(small)["training"]["digest"] == undisturbed()


def test_a_secret_reaches_the_trainer_and_is_shown_by_nothing(
    rehearsal: Rehearsal, cloudtrain: CommandLine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    value = "hunter2-and-more"
    (cloudtrain.directory / "wandb.key").write_text(f"{value}-of-a-file\n")
    monkeypatch.setenv("TOKEN", value)
    secrets = ("--secret", "TOKEN", "--secret", "WANDB=@wandb.key", "--env", "COLOUR=blue sky")
    told = [rehearsal("up", "horses", *secrets, "-vv", "--json")]
    assert data(told[0])["state"] == "running"
    (environment,) = (path for path in paths(cloudtrain.home) if path.name == "environment.json")
    seen = json.loads(environment.read_text())["env"]
    assert (seen["TOKEN"], seen["WANDB"], seen["COLOUR"]) == (value, f"{value}-of-a-file", "blue sky")
    for line in ("status horses", "logs horses", "logs horses --source startup", "list", "history horses"):
        told.append(rehearsal(*line.split(), "-vv"))
        told.append(rehearsal(*line.split(), "--json"))
    told.append(rehearsal("up", "horses", "--dry-run", "--json"))
    assert not any(value in each.out + each.err for each in told)
    assert value not in caplog.text
    # But for the VM's own disk, nothing on this machine holds it: not the store, not the index. Of the blobs the one
    # that the trainer itself wrote does.
    disks = cloudtrain.home / "emulator" / "vms"
    files = [held for path, held in contents(cloudtrain.home).items() if disks not in path.parents]
    holding = [held for held in files if value.encode() in held]
    assert [content for content in holding if b'"argv": ' not in content] == []
    data(rehearsal("down", "horses", "--discard", "--json"))


def test_what_the_vm_is_handed_for_storage_is_shown_by_nothing(rehearsal: Rehearsal, cloudtrain: CommandLine) -> None:
    fault = ("emulator", "fault", "add", "refuse", "--code", "AuthorizationFailed")
    assert rehearsal(*fault, "--on", "RoleAssignments_Create", "--count", "0").code == 0
    told = [rehearsal("up", "horses", "-vv", "--json")]
    assert data(told[0])["access"] == "stored access policy"
    (handed,) = (path for path in paths(cloudtrain.home) if path.name == "storage.json")
    assert handed.stat().st_mode & 0o077 == 0
    signature = json.loads(handed.read_text())["signature"].partition("sig=")[2]
    assert len(signature) > 40
    told += [rehearsal("status", "horses", "-vv"), rehearsal("logs", "horses", "--source", "startup", "-vv")]
    assert not any(signature in each.out + each.err for each in told)
    holding = [path for path, held in contents(cloudtrain.home).items() if signature.encode() in held]
    assert holding == [handed]
    data(rehearsal("down", "horses", "--discard", "--json"))
