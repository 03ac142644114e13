"""The journey under each fault: nothing is made twice, nothing is left, the message is clear, and the same command
again goes on."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.conftest import CommandLine, Outcome

Rehearsal = Callable[..., Outcome]
PUT_VM = "VirtualMachines_CreateOrUpdate"


def fault(rehearsal: Rehearsal, *terms: str) -> None:
    told = rehearsal("emulator", "fault", "add", *terms, "--json")
    assert told.code == 0, told


def struck(rehearsal: Rehearsal) -> int:
    """How often the faults struck; they are removed."""
    removed = rehearsal("emulator", "fault", "clear", "--json").envelope["data"]["faults"]
    return sum(rule["struck"] for rule in removed)


def holds(rehearsal: Rehearsal) -> dict[str, Any]:
    return rehearsal("emulator", "status", "--json").envelope["data"]


def gone_without_a_trace(rehearsal: Rehearsal) -> None:
    """After `down`, and after a run that was refused."""
    there = holds(rehearsal)
    assert there["vms"] == [] and there["strays"] == []
    assert set(there["resource_groups"]) <= {"NetworkWatcherRG"}
    assert rehearsal("list", "--json").envelope["data"]["runs"] == []


def one_vm_trains(rehearsal: Rehearsal) -> None:
    there = holds(rehearsal)
    assert [vm["name"] for vm in there["vms"]] == ["horses-g1"]
    assert there["vms"][0]["power_state"] == "running"
    # A machine that no VM stands for would be one that was made twice.
    assert there["strays"] == []
    status = rehearsal("status", "horses", "--json").envelope["data"]
    assert status["state"] == "running" and status["training"]["under_way"], status


def down(rehearsal: Rehearsal) -> None:
    told = rehearsal("down", "horses", "--json")
    assert told.code == 0 and told.envelope["data"]["left"] == [], told
    gone_without_a_trace(rehearsal)


# What a retry of the request sees to, or `up` itself: the user notices nothing. The faults of one `up` stand together.
PASSING = {
    "throttled and failing": [
        ("429", "--count", "3"),
        ("429", "--on", "VirtualMachines_CreateOrUpdate", "--retry-after", "1"),
        ("500", "--on", "* */virtualMachines/*", "--count", "3"),
        ("503", "--count", "4", "--after", "12"),
    ],
    "dropped before the work": [
        ("drop-before", "--on", "PUT *", "--count", "4"),
        ("hang", "--on", "NetworkSecurityGroups_CreateOrUpdate", "--seconds", "0.3"),
    ],
    "dropped after the work": [
        ("drop-after", "--on", "ResourceGroups_CreateOrUpdate"),
        ("drop-after", "--on", "VirtualNetworks_CreateOrUpdate"),
        ("drop-after", "--on", "VirtualMachines_CreateOrUpdate"),
        ("drop-after", "--on", "VirtualMachineRunCommands_CreateOrUpdate"),
    ],
    "evicted while made, and then busy": [("evict-creating",), ("busy", "--count", "3")],
    "one request in five": [("503", "--count", "0", "--probability", "0.2", "--seed", "1")],
}


@pytest.mark.parametrize("what", PASSING)
def test_up_gets_through_what_passes(rehearsal: Rehearsal, what: str) -> None:
    for terms in PASSING[what]:
        fault(rehearsal, *terms)
    told = rehearsal("up", "horses", "--json")
    assert told.code == 0, told
    removed = rehearsal("emulator", "fault", "clear", "--json").envelope["data"]["faults"]
    assert all(rule["struck"] for rule in removed), removed
    one_vm_trains(rehearsal)
    down(rehearsal)


# What ends the command: its exit code, the error's name, and a word that its message must hold. Each comes later in
# `up` than the one before it, so that an `up` can only meet it by going on from what the last one left.
ENDING = [
    (("drop-after", "--on", "VirtualNetworks_CreateOrUpdate", "--count", "0"), 8, "CloudUnreachable", "creating"),
    (("drop-before", "--on", "VirtualMachines_Get", "--count", "0"), 8, "CloudUnreachable", "reading the VM"),
    (("503", "--on", "VirtualMachines_CreateOrUpdate", "--count", "0"), 8, "ServiceUnavailable", "creating"),
    (("429", "--on", "VirtualMachineRunCommands_*", "--count", "0"), 4, "TooManyRequests", "too many requests"),
    (("lose-script",), 1, "GuestUnreachable", "did not run to its end"),
    (("evict", "--on", "VirtualMachineRunCommands_GetByVirtualMachine"), 4, "VmNotRunning", "Azure evicted it"),
    (("delete-group", "--on", "VirtualMachineRunCommands_*"), 4, "ResourceGroupBeingDeleted", "deleting"),
]


def test_up_says_what_ended_it_and_goes_on_when_it_is_run_again(rehearsal: Rehearsal) -> None:
    for terms, code, name, says in ENDING:
        fault(rehearsal, *terms)
        told = rehearsal("up", "horses", "--json")
        assert (told.code, told.error["code"]) == (code, name), told
        assert says in told.error["message"] and told.error["hint"], told.error
        assert struck(rehearsal) > 0
    again = rehearsal("up", "horses", "--json")
    assert again.code == 0, again
    one_vm_trains(rehearsal)
    down(rehearsal)


REFUSED = [
    (("refuse", "--code", "SkuNotAvailable"), "SkuNotAvailable", "size"),
    (("fail-late", "--code", "ZonalAllocationFailed"), "ZonalAllocationFailed", "zone"),
    (("fail-late", "--code", "OSProvisioningTimedOut"), "OSProvisioningTimedOut", "nothing"),
    (
        ("fail-late", "--code", "InternalExecutionError", "--on", "VirtualNetworks_CreateOrUpdate"),
        "InternalExecutionError",
        "nothing",
    ),
    (
        ("refuse", "--code", "AuthorizationFailed", "--on", "ResourceGroups_CreateOrUpdate"),
        "AuthorizationFailed",
        "everything",
    ),
]


@pytest.mark.parametrize(
    ("terms", "name", "blocks"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_a_run_that_azure_refuses_leaves_nothing_and_says_what_is_closed(
    rehearsal: Rehearsal, terms: tuple[str, ...], name: str, blocks: str
) -> None:
    fault(rehearsal, *terms)
    told = rehearsal("up", "horses", "--json")
    assert (told.code, told.error["code"], told.error["blocks"]) == (4, name, blocks), told
    assert told.error["hint"]
    gone_without_a_trace(rehearsal)


def test_a_vm_that_was_left_failed_is_replaced_by_the_next_up(rehearsal: Rehearsal) -> None:
    fault(rehearsal, "fail-late")
    fault(rehearsal, "503", "--on", "ResourceGroups_Delete", "--count", "0")
    refused = rehearsal("up", "horses", "--json")
    assert refused.error["code"] == "AllocationFailed"
    assert "cloudtrain down horses  removes what was made" in refused.error["hint"]
    failed = rehearsal("status", "horses", "--json").envelope["data"]
    assert failed["state"] == "failed" and "AllocationFailed" in failed["note"], failed
    rehearsal("emulator", "fault", "clear")
    assert rehearsal("up", "horses", "--json").code == 0
    one_vm_trains(rehearsal)
    down(rehearsal)


def test_quota_price_and_capacity_that_were_set_are_met(rehearsal: Rehearsal) -> None:
    for setting, name, blocks in (
        (("--spot-cores", "1"), "SpotQuotaExceeded", "spot"),
        (("--no-capacity", "--location", "eastus"), "AllocationFailed", "size"),
    ):
        assert rehearsal("emulator", "set", *setting).code == 0
        told = rehearsal("up", "horses", "--json")
        assert told.code == 4, told
        assert (told.error["code"], told.error.get("blocks", blocks)) == (name, blocks), told
        gone_without_a_trace(rehearsal)
        assert rehearsal("emulator", "set", "--defaults").code == 0


def test_up_asks_for_one_vm_and_sends_one_run_command(
    rehearsal: Rehearsal,
) -> None:
    """A fault that never strikes counts requests."""
    for operation in ("VirtualMachineRunCommands_CreateOrUpdate", "VirtualMachines_RunCommand", PUT_VM):
        fault(rehearsal, "503", "--on", operation, "--after", "1000")
    assert rehearsal("up", "horses", "--json").code == 0
    counted = rehearsal("emulator", "fault", "list", "--json").envelope["data"]["faults"]
    assert [rule["seen"] for rule in counted] == [1, 0, 1]
    down(rehearsal)


# a run under way


@pytest.fixture
def run(rehearsal: Rehearsal) -> Rehearsal:
    assert rehearsal("up", "horses", "--json").code == 0
    return rehearsal


def test_the_other_verbs_under_faults(run: Rehearsal) -> None:
    """One run, one fault after the other: each verb ends, and the next one finds a run it can go on with."""
    fault(run, "503", "--on", "* */virtualMachines/*", "--count", "3")
    assert run("status", "horses", "--json").envelope["data"]["training"]["under_way"]
    fault(run, "drop-after", "--on", "VirtualMachines_SimulateEviction")
    lost = run("simulate-eviction", "horses", "--notice", "0", "--json")
    assert (lost.code, lost.error["code"]) == (8, "CloudUnreachable")
    fault(run, "fail-late", "--on", "VirtualMachines_Start")
    refused = run("restart", "horses", "--json")
    assert (refused.code, refused.error["code"], refused.error["blocks"]) == (4, "AllocationFailed", "size")
    evicted = run("status", "horses", "--json").envelope["data"]
    assert evicted["state"] == "evicted" and evicted["vm"]["power_state"] == "deallocated"
    fault(run, "drop-after", "--on", "VirtualMachines_Start")
    fault(run, "drop-after", "--on", "Tags_UpdateAtScope")
    again = run("restart", "horses", "--json")
    assert again.code == 0, again
    assert struck(run) == 7
    one_vm_trains(run)
    fault(run, "busy", "--count", "2")
    fault(run, "429", "--on", "VirtualMachines_Deallocate", "--count", "2")
    stopped = run("stop", "horses", "--json")
    assert stopped.code == 0 and stopped.envelope["data"]["state"] == "stopped", stopped
    fault(run, "drop-after", "--on", "ResourceGroups_Delete")
    down(run)


def test_down_of_a_group_that_cannot_be_deleted_now_says_so_and_then_deletes_it(run: Rehearsal) -> None:
    fault(run, "fail-late", "--on", "ResourceGroups_Delete", "--code", "InternalExecutionError")
    told = run("down", "horses", "--json")
    assert told.code == 4 and "Azure failed" in told.error["message"], told
    one_vm_trains(run)
    fault(run, "delete-group", "--on", "ResourceGroups_Get")  # somebody else is quicker
    down(run)


def test_an_eviction_in_the_middle_of_everything_loses_nothing_but_steps(run: Rehearsal) -> None:
    fault(run, "evict", "--on", "VirtualMachines_InstanceView|VirtualMachines_Get", "--after", "1")
    told = run("restart", "horses", "--json")
    assert told.code in (0, 1, 4), told
    status = run("status", "horses", "--json").envelope["data"]
    assert status["state"] in ("evicted", "running"), status
    assert run("restart", "horses", "--json").code == 0
    one_vm_trains(run)


def test_a_fault_is_refused_and_listed_in_words(rehearsal: Rehearsal, cloudtrain: CommandLine) -> None:
    told = rehearsal("emulator", "fault", "add", "503", "--on", "VirtualMachine_Start", "--json")
    assert (told.code, told.error["code"]) == (2, "Usage")
    assert "VirtualMachines_Start" in told.error["message"]
    assert rehearsal("emulator", "fault", "list").out == "No faults.\n"
    fault(rehearsal, "hang", "--seconds", "5", "--after", "2", "--probability", "0.5", "--seed", "3")
    assert "once, after 2, with probability 0.5 (seed 3), seconds 5" in rehearsal("emulator", "fault", "list").out
    assert rehearsal("emulator", "fault", "clear", "7", "--json").code == 2
    assert json.loads(rehearsal("emulator", "set", "--json").out)["data"]["spot_cores"] == 16
    for wrong in (("--size", "Standard_D2s_v3"), ("--latency", "slow"), ("--factor", "0"), ("--spot-price", "1")):
        assert rehearsal("emulator", "set", *wrong, "--json").code == 2
    assert cloudtrain.home.exists()


def test_a_vm_that_goes_while_its_guest_is_asked_does_not_run(rehearsal: Rehearsal) -> None:
    assert rehearsal("up", "horses").code == 0
    fault(rehearsal, "drop-before", "--on", "Blobs_*", "--count", "0")
    fault(rehearsal, "evict", "--on", "VirtualMachineRunCommands_CreateOrUpdate")
    status = rehearsal("status", "horses", "--json").envelope["data"]
    assert status["state"] == "evicted" and status["vm"]["power_state"] != "running", status
    assert struck(rehearsal) > 0
    down(rehearsal)


def test_a_script_of_which_nothing_is_heard_any_more_is_not_waited_for_once_its_vm_is_gone(
    rehearsal: Rehearsal,
) -> None:
    fault(rehearsal, "mute-script", "--count", "0")
    fault(rehearsal, "evict", "--on", "VirtualMachineRunCommands_GetByVirtualMachine", "--after", "3")
    told = rehearsal("up", "horses", "--json")
    assert (told.code, told.error["code"]) == (4, "VmNotRunning"), told
    assert struck(rehearsal) > 0
    assert rehearsal("up", "horses").code == 0
    one_vm_trains(rehearsal)
    down(rehearsal)
