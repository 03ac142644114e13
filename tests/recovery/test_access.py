"""A VM's access to storage lasts as long as its run, and a run outlives its VM: on simulated machines, over days."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from cloudtrain.azure import group as groups
from cloudtrain.azure import storage
from cloudtrain.azure.session import Session, open_session
from cloudtrain.emulator.machines.simulated import Job
from tests.cli.conftest import Outcome

from .conftest import Rehearsal

NO_ROLES = ("refuse", "--code", "AuthorizationFailed", "--on", "RoleAssignments_Create", "--count", "0")


def data(told: Outcome) -> dict[str, Any]:
    assert told.code == 0, told
    found: dict[str, Any] = told.envelope["data"]
    return found


def session(rehearsal: Rehearsal) -> Session:
    return open_session("embedded", home=rehearsal.root, clock=rehearsal.clock)


def fault(rehearsal: Rehearsal, *terms: str) -> None:
    assert rehearsal.cli("emulator", "fault", "add", *terms).code == 0


def expiry_of_the_policy(rehearsal: Rehearsal) -> datetime:
    with session(rehearsal) as opened:
        found = storage.find(opened, groups.get(opened, "horses"))
        assert found is not None
        policies = storage.open_container(opened, found).get_container_access_policy()["signed_identifiers"]
    (policy,) = policies
    return datetime.fromisoformat(str(policy.access_policy.expiry).replace("Z", "+00:00")[:19] + "+00:00")


def left(rehearsal: Rehearsal, until: str | None) -> timedelta:
    assert until is not None
    return datetime.fromisoformat(until) - rehearsal.clock.now()


def tags(rehearsal: Rehearsal) -> dict[str, str]:
    with session(rehearsal) as opened:
        return dict(groups.get(opened, "horses").tags)


@pytest.fixture
def endless(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    """No run, and those to come train for months."""
    assert rehearsal.cli("down", "horses", "--json").code == 0
    monkeypatch.setattr(
        rehearsal.machines, "_job", Job(steps=10_000_000, checkpoint_seconds=86400.0, step_seconds=20.0)
    )
    return rehearsal


def test_a_plain_contributors_vm_is_let_in_behind_a_policy_that_any_verb_makes_last_longer(endless: Rehearsal) -> None:
    fault(endless, *NO_ROLES)
    up = data(endless.cli("up", "horses", "--json"))
    assert up["access"] == "stored access policy" and up["storage_account"].startswith("cthorses")
    assert timedelta(days=6, hours=23) < left(endless, up["access_until"]) <= timedelta(days=7)
    commands = len(endless.machines._disks[endless.vm_id].scripts)
    endless.clock.sleep(3 * 86400)
    data(endless.cli("status", "horses", "--json"))
    assert tags(endless)["cloudtrain-access-until"] == up["access_until"]  # more than half is left
    endless.clock.sleep(86400)
    assert data(endless.cli("status", "horses", "--json"))["note"] == ""
    until = tags(endless)["cloudtrain-access-until"]
    assert left(endless, until) > timedelta(days=6, hours=23)
    assert expiry_of_the_policy(endless) == datetime.fromisoformat(until)
    # The signature on the VM stays the same: nothing but the two looks went there.
    assert len(endless.machines._disks[endless.vm_id].scripts) == commands + 2


def test_access_lasts_as_long_as_the_run_may_and_a_day(endless: Rehearsal) -> None:
    fault(endless, *NO_ROLES)
    up = data(endless.cli("up", "horses", "--max-duration", "20d", "--json"))
    assert timedelta(days=20, hours=23) < left(endless, up["access_until"]) <= timedelta(days=21)
    endless.clock.sleep(18 * 86400)
    assert data(endless.cli("status", "horses", "--json"))["note"] == ""
    assert tags(endless)["cloudtrain-access-until"] == up["access_until"]


def test_a_login_with_a_role_renews_what_it_signed_by_a_new_signature_on_the_vm(endless: Rehearsal) -> None:
    assert data(endless.cli("up", "horses", "--json"))["access"] == "identity"
    fault(endless, *NO_ROLES)  # it has lost that right, and kept its role on the blobs
    up = data(endless.cli("up", "horses", "--json"))
    assert up["access"] == "user delegation"
    assert timedelta(days=6, hours=23) < left(endless, up["access_until"]) < timedelta(days=7)
    endless.clock.sleep(4 * 86400)
    names = {key.partition("/")[0] for key in endless.machines._disks[endless.vm_id].scripts}
    assert "cloudtrain-renew" not in names
    assert endless.cli("watch", "horses", "--once", "--json").code == 0
    assert left(endless, tags(endless)["cloudtrain-access-until"]) > timedelta(days=6, hours=23)
    names = {key.partition("/")[0] for key in endless.machines._disks[endless.vm_id].scripts}
    assert "cloudtrain-renew" in names


def test_access_that_cannot_be_renewed_is_warned_of_from_a_day_before_its_end(endless: Rehearsal) -> None:
    fault(endless, *NO_ROLES)
    data(endless.cli("up", "horses", "--json"))
    fault(endless, "refuse", "--code", "AuthorizationFailed", "--on", "StorageAccounts_ListKeys", "--count", "0")
    endless.clock.sleep(5 * 86400)
    assert data(endless.cli("status", "horses", "--json"))["note"] == ""
    endless.clock.sleep(1.5 * 86400)
    note = data(endless.cli("status", "horses", "--json"))["note"]
    assert "The VM's access to storage ends at 2026-12-01T" in note and "cloudtrain up horses" in note
    assert "access to storage ends at" in endless.cli("watch", "horses", "--once").out
    endless.clock.sleep(86400)
    note = data(endless.cli("status", "horses", "--json"))["note"]
    assert "ended at" in note and "stays on its disk" in note
    assert endless.cli("emulator", "fault", "clear").code == 0
    assert data(endless.cli("up", "horses", "--json"))["access"] == "identity"
    assert data(endless.cli("status", "horses", "--json"))["note"] == ""


def test_a_run_whose_vm_was_deleted_is_evicted_and_restart_makes_the_next_generation(endless: Rehearsal) -> None:
    data(endless.cli("up", "horses", "--eviction-policy", "Delete", "--json"))
    endless.clock.sleep(86400)
    endless.evict()
    endless.clock.sleep(120)
    status = data(endless.cli("status", "horses", "--json"))
    assert (status["state"], status["vm"], status["generation"]) == ("evicted", None, 1)
    assert [run["state"] for run in data(endless.cli("list", "--json"))["runs"]] == ["evicted"]
    plan = data(endless.cli("up", "horses", "--dry-run", "--json"))
    assert plan["action"] == "create" and "horses-g2" in {one["name"] for one in plan["resources"]}
    back = data(endless.cli("restart", "horses", "--json"))
    assert (back["action"], back["state"]) == ("recreated", "running")
    after = data(endless.cli("status", "horses", "--json"))
    assert (after["vm"]["name"], after["generation"]) == ("horses-g2", 2)
    there = data(endless.cli("emulator", "status", "--json"))
    assert [vm["name"] for vm in there["vms"]] == ["horses-g2"] and len(there["storage_accounts"]) == 1
    with session(endless) as opened:
        group = groups.get(opened, "horses")
        found = storage.find(opened, group)
        assert found is not None
        fence = storage.open_container(opened, found).download_blob("cloudtrain/generation.json").readall()
    assert fence == b'{"generation":2}'
    assert data(endless.cli("down", "horses", "--json"))["left"] == []


def test_a_new_vm_needs_the_secrets_again_and_nothing_is_touched_without_them(
    endless: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    data(endless.cli("up", "horses", "--eviction-policy", "Delete", "--secret", "TOKEN", "--json"))
    monkeypatch.delenv("TOKEN")
    kept = endless.cli("restart", "horses")
    assert kept.code == 0, kept  # what lies on the VM stays
    refused = endless.cli("simulate-eviction", "horses", "--json")
    assert (refused.code, refused.error["code"]) == (2, "SecretMissing")
    assert endless.power() == "running"
    endless.evict()
    endless.clock.sleep(120)
    for verb in ("restart", "up"):
        refused = endless.cli(verb, "horses", "--json")
        assert (refused.code, refused.error["code"]) == (2, "SecretMissing"), refused
        assert data(endless.cli("status", "horses", "--json"))["generation"] == 1
    monkeypatch.setenv("TOKEN", "hunter2")
    assert data(endless.cli("restart", "horses", "--json"))["action"] == "recreated"


def finished(rehearsal: Rehearsal, when_done: str) -> None:
    data(rehearsal.cli("up", "horses", "--when-done", when_done, "--json"))
    rehearsal.clock.sleep(7000)


def test_whoever_sees_that_training_has_finished_stops_the_vm_from_billing(rehearsal: Rehearsal) -> None:
    finished(rehearsal, "deallocate")
    status = data(rehearsal.cli("status", "horses", "--json"))
    assert status["state"] == "finished" and "deallocated" in status["note"]
    assert status["vm"]["power_state"] == "deallocated"
    assert "released" in [each["what"] for each in data(rehearsal.cli("history", "horses", "--json"))["events"]]


def test_a_vm_that_is_to_be_kept_runs_on_whoever_looks(rehearsal: Rehearsal) -> None:
    finished(rehearsal, "keep")
    assert data(rehearsal.cli("status", "horses", "--json"))["state"] == "finished"
    watched = rehearsal.cli("watch", "horses")
    assert watched.code == 0 and "finished" in watched.out
    assert rehearsal.power() == "running"


def test_a_vm_is_not_deleted_while_storage_may_lack_something_of_it(rehearsal: Rehearsal) -> None:
    finished(rehearsal, "delete")
    status = data(rehearsal.cli("status", "horses", "--json"))
    # A simulated guest tells nothing of storage.
    assert status["vm"]["power_state"] == "deallocated" and "not deleted" in status["note"]


def test_down_closes_storage_and_leaves_no_role_assigned(rehearsal: Rehearsal) -> None:
    def assigned() -> list[str]:
        with session(rehearsal) as opened:
            scope = f"/subscriptions/{opened.subscription_id}"
            return [str(each.scope) for each in opened.authorization.role_assignments.list_for_scope(scope)]

    assert any("storageAccounts" in scope for scope in assigned())
    assert data(rehearsal.cli("down", "horses", "--json"))["left"] == []
    assert assigned() == []


@pytest.mark.parametrize("operation", ["StorageAccounts_Create", "BlobContainers_Create"])
def test_a_run_that_gets_no_storage_leaves_nothing(endless: Rehearsal, operation: str) -> None:
    fault(endless, "refuse", "--code", "AuthorizationFailed", "--on", operation, "--count", "0")
    refused = endless.cli("up", "horses", "--json")
    assert (refused.code, refused.error["code"]) == (4, "AuthorizationFailed"), refused
    there = data(endless.cli("emulator", "status", "--json"))
    assert there["vms"] == [] and there["storage_accounts"] == []
    assert data(endless.cli("list", "--json"))["runs"] == []


def test_without_the_right_to_it_a_run_is_removed_all_the_same(rehearsal: Rehearsal) -> None:
    for operation in ("StorageAccounts_RevokeUserDelegationKeys", "RoleAssignments_ListForScope"):
        fault(rehearsal, "refuse", "--code", "AuthorizationFailed", "--on", operation, "--count", "0")
    assert data(rehearsal.cli("down", "horses", "--json"))["left"] == []


def test_an_up_that_comes_after_the_account_was_deleted_makes_another(rehearsal: Rehearsal) -> None:
    with session(rehearsal) as opened:
        group = groups.get(opened, "horses")
        opened.storage.storage_accounts.delete(group.name, group.storage_account)
    up = data(rehearsal.cli("up", "horses", "--json"))
    assert (up["state"], up["access"]) == ("running", "identity")
    there = data(rehearsal.cli("emulator", "status", "--json"))
    assert there["storage_accounts"] == [up["storage_account"]]
