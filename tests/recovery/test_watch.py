"""`watch`, `up --watch` and `history` on simulated machines: evictions, refusals, outages, and several watchers."""

import hashlib
import itertools
import json
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError

from cloudtrain.errors import CloudtrainError, Exit

from .conftest import JOB, Rehearsal


def told(out: str) -> list[dict[str, Any]]:
    """What `watch --json` said: its lines, then the envelope's data."""
    lines = [json.loads(line) for line in out.splitlines()]
    return [line for line in lines if line.get("event") == "watch"]


def undisturbed() -> str:
    """The hash chain of a run that was left alone."""
    digest = ""
    for step in range(1, JOB.steps + 1):
        digest = hashlib.sha256(f"{digest}{step}".encode()).hexdigest()
    return digest


def history(rehearsal: Rehearsal) -> dict[str, Any]:
    outcome = rehearsal.cli("history", "horses", "--json")
    assert outcome.code == 0, outcome.out
    data: dict[str, Any] = outcome.envelope["data"]
    return data


def kinds(data: dict[str, Any]) -> list[str]:
    return [entry["what"] for entry in data["events"]]


def test_a_run_evicted_with_and_without_notice_finishes_as_if_it_had_been_left_alone(rehearsal: Rehearsal) -> None:
    for at, notice in ((1000, 30), (2000, 0), (3000, 30), (3100, 0), (4000, 0)):
        rehearsal.clock.at(at, lambda notice=notice: rehearsal.evict(notice))
    outcome = rehearsal.cli("watch", "horses", "--json")
    assert outcome.code == 0, outcome.out
    assert rehearsal.training.digest == undisturbed()
    assert outcome.out.count("\n") > 5 and json.loads(outcome.out.splitlines()[-1])["data"]["state"] == "finished"
    data = history(rehearsal)
    assert (data["evictions"], data["with_notice"], data["without_notice"]) == (5, 2, 3)
    assert 0 < data["steps_lost"] <= 3 * JOB.steps_per_checkpoint
    assert data["seconds"]["redone"] > 0 and 0.8 < data["goodput"] < 1
    assert abs(data["seconds"]["useful"] - JOB.steps * JOB.step_seconds) < 0.02 * JOB.steps * JOB.step_seconds
    places = {entry["place"] for entry in data["events"] if entry["what"] == "started"}
    assert places == {"Standard_D2s_v3 in eastus"}
    assert rehearsal.power() == "deallocated"


def test_a_healthy_run_is_left_alone_when_its_guest_says_nothing(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object, **__: object) -> None:
        from cloudtrain.azure.run_command import GuestUnreachable

        raise GuestUnreachable("nothing came back")

    monkeypatch.setattr("cloudtrain.lifecycle.training.observe", silent)
    boots = len(rehearsal.machines.boots)
    for _ in range(5):
        outcome = rehearsal.cli("watch", "horses", "--once", "--json")
        assert outcome.code == 0 and outcome.out.count("\n") == 2, outcome.out
        assert told(outcome.out)[0]["action"] == "nothing"
        rehearsal.clock.sleep(3600)
    assert len(rehearsal.machines.boots) == boots


def test_once_brings_an_evicted_run_back_and_prints_one_line(rehearsal: Rehearsal) -> None:
    rehearsal.clock.sleep(1000)
    rehearsal.evict()
    rehearsal.clock.sleep(60)
    outcome = rehearsal.cli("watch", "horses", "--once")
    assert outcome.code == 0 and outcome.out.count("\n") == 1
    assert "horses: running; the VM was evicted; started Standard_D2s_v3 in eastus" in outcome.out
    assert rehearsal.power() == "running"


def test_a_stop_by_the_user_here_or_in_the_portal_is_never_undone(rehearsal: Rehearsal) -> None:
    rehearsal.clock.sleep(600)
    assert rehearsal.cli("stop", "horses").code == 0
    assert "stopped by the user" in rehearsal.cli("watch", "horses", "--once").out
    assert rehearsal.power() == "deallocated"
    assert rehearsal.cli("restart", "horses").code == 0
    rehearsal.clock.sleep(600)
    rehearsal.stop_in_the_portal()
    rehearsal.clock.sleep(60)
    assert "somebody stopped the VM" in rehearsal.cli("watch", "horses", "--once").out
    rehearsal.clock.sleep(3600)
    outcome = rehearsal.cli("watch", "horses")
    assert outcome.code == 0 and "horses: stopped" in outcome.out
    assert rehearsal.power() == "deallocated"
    data = history(rehearsal)
    assert data["evictions"] == 0 and kinds(data).count("stopped") == 2


def test_a_restart_after_a_stop_makes_the_run_wanted_again_and_an_eviction_then_counts(rehearsal: Rehearsal) -> None:
    rehearsal.clock.sleep(600)
    rehearsal.stop_in_the_portal()
    rehearsal.cli("watch", "horses", "--once")
    assert rehearsal.cli("restart", "horses").code == 0
    rehearsal.clock.sleep(600)
    rehearsal.evict()
    rehearsal.clock.sleep(60)
    rehearsal.cli("watch", "horses", "--once")
    assert rehearsal.power() == "running"


def test_the_tag_holds_the_watcher_back(rehearsal: Rehearsal) -> None:
    tags = "/providers/Microsoft.Resources/tags/default"
    off = {"operation": "Merge", "properties": {"tags": {"cloudtrain-watch": "off"}}}
    rehearsal.azure("PATCH", tags, off, "2021-04-01")
    rehearsal.evict()
    rehearsal.clock.sleep(60)
    assert "cloudtrain-watch=off" in rehearsal.cli("watch", "horses", "--once").out
    assert rehearsal.power() == "deallocated"


def test_a_second_watcher_keeps_off_and_takes_over_when_the_first_was_killed(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudtrain.azure.lease.release", lambda *_: None)  # kill -9: nothing is given back
    rehearsal.cli("watch", "horses", "--once")
    rehearsal.evict()
    rehearsal.clock.sleep(60)
    second = rehearsal.cli("watch", "horses", "--once")
    assert second.code == 0 and "another watcher" in second.out
    assert rehearsal.power() == "deallocated"
    rehearsal.clock.sleep(200)
    assert "started" in rehearsal.cli("watch", "horses", "--once").out
    assert rehearsal.power() == "running"


def no_capacity(rehearsal: Rehearsal, *terms: str) -> None:
    assert rehearsal.cli("emulator", "set", "--no-capacity", *terms).code == 0


def test_refusals_are_counted_over_watchers_and_spaced_out(rehearsal: Rehearsal) -> None:
    rehearsal.clock.sleep(600)
    rehearsal.evict()
    rehearsal.clock.sleep(60)
    no_capacity(rehearsal, "--for", "600")
    said, refused_at = [], []
    while rehearsal.machines.power(rehearsal.vm_id).on is False:
        said.append(rehearsal.cli("watch", "horses", "--once").out)
        if "was refused" in said[-1]:
            refused_at.append(rehearsal.clock.now().timestamp())
        rehearsal.clock.sleep(25)
    pauses = [later - earlier for earlier, later in itertools.pairwise(refused_at)]
    assert len(pauses) >= 3
    assert all(0.8 * due <= pause <= 1.2 * due + 27 for due, pause in zip((30, 60, 120, 300), pauses, strict=False))
    assert "was refused (AllocationFailed); next attempt at" in said[0]
    assert "Azure refused once, the last time with AllocationFailed" in said[1]
    data = history(rehearsal)
    assert data["refusals"] == len(refused_at) and data["evictions"] == 1
    refused = [entry for entry in data["events"] if entry["what"] == "refused"]
    assert {entry["why"] for entry in refused} == {"AllocationFailed"}


def test_where_its_size_is_not_to_be_had_another_of_the_list_is_taken(rehearsal: Rehearsal) -> None:
    assert rehearsal.cli("up", "horses", "--other-size", "Standard_D4s_v3", "--json").code == 0
    rehearsal.clock.sleep(600)
    rehearsal.evict()
    rehearsal.clock.sleep(60)
    no_capacity(rehearsal, "--size", "Standard_D2s_v3")
    assert "the next place at once" in rehearsal.cli("watch", "horses", "--once").out
    assert "changed to and started Standard_D4s_v3" in rehearsal.cli("watch", "horses", "--once").out
    status = rehearsal.cli("status", "horses", "--json").envelope["data"]
    assert status["vm"]["size"] == "Standard_D4s_v3" and status["vm"]["power_state"] == "running"
    assert rehearsal.cli("watch", "horses").code == 0
    assert rehearsal.training.digest == undisturbed()


def test_an_outage_of_azure_ends_no_watch_and_restarts_nothing(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloudtrain.azure import vm as vms

    find, asked = vms.find, [0]

    def unreachable(*arguments: Any) -> Any:
        asked[0] += 1
        if 10 < asked[0] < 15:
            raise CloudtrainError("CloudUnreachable", "no route", "", Exit.UNREACHABLE)
        return find(*arguments)

    monkeypatch.setattr(vms, "find", unreachable)
    boots = len(rehearsal.machines.boots)
    outcome = rehearsal.cli("watch", "horses")
    assert outcome.code == 0 and "this look failed: no route" in outcome.out
    assert outcome.out.rstrip().endswith("training has finished") and len(rehearsal.machines.boots) == boots


def test_up_watch_stays_until_the_run_has_finished(rehearsal: Rehearsal) -> None:
    rehearsal.clock.at(1000, rehearsal.evict)
    outcome = rehearsal.cli("up", "horses", "--watch")
    assert outcome.code == 0 and "the VM was evicted; started" in outcome.out
    assert rehearsal.training.digest == undisturbed()


def test_a_lost_disk_of_a_run_without_storage_is_said_and_not_looped_over(rehearsal: Rehearsal) -> None:
    none = {"operation": "Merge", "properties": {"tags": {"cloudtrain-storage": ""}}}  # an older cloudtrain made it
    rehearsal.azure("PATCH", "/providers/Microsoft.Resources/tags/default", none, "2021-04-01")
    rehearsal.clock.sleep(2000)
    rehearsal.azure("DELETE", "/providers/Microsoft.Compute/virtualMachines/horses-g1")
    rehearsal.clock.sleep(60)
    outcome = rehearsal.cli("watch", "horses", "--json")
    error = json.loads(outcome.out.splitlines()[-1])["errors"][0]
    assert (outcome.code, error["code"]) == (4, "NothingToGoOnFrom") and "disk" in error["message"]


def test_a_training_that_failed_is_stopped_and_its_reason_said(rehearsal: Rehearsal) -> None:
    def fail() -> None:
        rehearsal.training.failure = "exit code 3 (the trainer ended five times)"

    rehearsal.clock.at(1000, fail)
    outcome = rehearsal.cli("watch", "horses", "--json")
    error = json.loads(outcome.out.splitlines()[-1])["errors"][0]
    assert (outcome.code, error["code"]) == (5, "TrainingFailed") and "exit code 3" in error["message"]
    assert rehearsal.power() == "deallocated"
    assert rehearsal.cli("status", "horses", "--json").envelope["data"]["state"] == "failed"
    again = rehearsal.cli("watch", "horses", "--once", "--json")
    assert again.code == 5 and rehearsal.power() == "deallocated"


def test_status_tells_what_happened(rehearsal: Rehearsal) -> None:
    rehearsal.clock.sleep(1000)
    rehearsal.evict(0)
    rehearsal.clock.sleep(60)
    for _ in range(2):
        rehearsal.cli("watch", "horses", "--once")
        rehearsal.clock.sleep(300)
    seen = rehearsal.cli("status", "horses", "--json").envelope["data"]["recovery"]
    assert (seen["evictions"], seen["with_notice"], seen["resumes"], seen["watcher"]) == (1, 0, 1, False)
    assert 0 < seen["steps_lost"] <= JOB.steps_per_checkpoint and 0 < seen["goodput"] < 1
    assert "1 eviction, 0 with notice" in rehearsal.cli("status", "horses").out


def test_a_run_is_saved_and_stopped_at_its_maximum_duration(rehearsal: Rehearsal) -> None:
    assert rehearsal.cli("up", "horses", "--max-duration", "1h", "--json").code == 0
    outcome = rehearsal.cli("watch", "horses")
    assert outcome.code == 0 and "the maximum duration is over" in outcome.out
    assert rehearsal.power() == "deallocated"
    assert rehearsal.training.step == rehearsal.training.saved > 100


def test_a_run_is_saved_and_stopped_before_its_maximum_cost_is_passed(rehearsal: Rehearsal) -> None:
    hourly = next(entry["price"] for entry in history(rehearsal)["events"] if entry["what"] == "made")
    assert rehearsal.cli("up", "horses", "--max-cost", str(hourly * 0.75), "--json").code == 0
    outcome = rehearsal.cli("watch", "horses")
    assert outcome.code == 0 and "USD would be spent" in outcome.out
    money = history(rehearsal)["money"]
    assert 0.6 * hourly < money["spent"] <= hourly * 0.75
    assert money["unpriced_hours"] == 0 and money["on_demand"] > money["spent"]
    assert rehearsal.training.step == rehearsal.training.saved


def test_without_any_watcher_azures_auto_shutdown_ends_a_run_at_its_maximum_duration(rehearsal: Rehearsal) -> None:
    schedule = "/providers/Microsoft.DevTestLab/schedules/shutdown-computevm-horses-g1"
    assert rehearsal.cli("up", "horses", "--max-duration", "1h", "--json").code == 0
    properties = rehearsal.azure("GET", schedule, version="2018-09-15")["properties"]
    assert (properties["dailyRecurrence"], properties["status"]) == ({"time": "1305"}, "Enabled")
    rehearsal.clock.sleep(3800)
    assert rehearsal.power() == "running"
    rehearsal.clock.sleep(220)
    assert rehearsal.power() in ("deallocating", "deallocated")


def test_a_longer_duration_takes_azures_auto_shutdown_away_until_its_last_day(rehearsal: Rehearsal) -> None:
    schedule = "/providers/Microsoft.DevTestLab/schedules/shutdown-computevm-horses-g1"
    assert rehearsal.cli("up", "horses", "--max-duration", "1h", "--json").code == 0
    assert rehearsal.cli("up", "horses", "--max-duration", "2d", "--json").code == 0
    with pytest.raises(HttpResponseError):
        rehearsal.azure("GET", schedule, version="2018-09-15")
    rehearsal.clock.sleep(90000)
    rehearsal.cli("up", "horses", "--json")
    assert rehearsal.azure("GET", schedule, version="2018-09-15")["properties"]["dailyRecurrence"] == {"time": "1205"}


def test_watching_no_run_says_so(rehearsal: Rehearsal) -> None:
    assert rehearsal.cli("watch", "ponies").code == 3
    assert rehearsal.cli("history", "ponies").code == 3
