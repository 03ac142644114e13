"""A run that goes on elsewhere: where Azure has no room, where its VM is gone, and whoever is killed in between."""

import json
from typing import Any

import pytest

from cloudtrain.emulator.machines.simulated import Job, SimulatedMachines
from cloudtrain.guest.simulated import SimulatedGuest

from .conftest import JOB, Rehearsal
from .test_watch import history, kinds, no_capacity, undisturbed

VMS = "/providers/Microsoft.Compute/virtualMachines"


@pytest.fixture
def durable(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> Rehearsal:
    """The run with checkpoints that reach storage 5 s after they are saved."""
    job = Job(JOB.steps, JOB.step_seconds, JOB.checkpoint_seconds, upload_seconds=5.0)
    assert rehearsal.cli("down", "horses").code == 0
    machines = rehearsal.machines = SimulatedMachines(rehearsal.clock, SimulatedGuest(), job)
    # A simulated guest writes no blobs.
    monkeypatch.setattr("cloudtrain.lifecycle.stored.holds", lambda _, group, step: machines.holds(group.name, step))
    assert rehearsal.cli("up", "horses", "--json").code == 0
    rehearsal.clock.sleep(1000)
    return rehearsal


def up(rehearsal: Rehearsal, *flags: str) -> None:
    outcome = rehearsal.cli("up", "horses", *flags, "--json")
    assert outcome.code == 0, outcome.out


def vm(rehearsal: Rehearsal) -> dict[str, Any]:
    found: dict[str, Any] = rehearsal.cli("status", "horses", "--json").envelope["data"]["vm"]
    return found


def resources(rehearsal: Rehearsal) -> list[str]:
    found = rehearsal.azure("GET", "/resources", version="2021-04-01")["value"]
    return sorted(resource["name"] for resource in found)


def lose_the_vm(rehearsal: Rehearsal) -> None:
    """Somebody deletes it."""
    rehearsal.azure("DELETE", f"{VMS}/horses-g1")
    rehearsal.clock.sleep(60)


def evict_without_room_at_home(rehearsal: Rehearsal) -> None:
    """It may go on in westus2."""
    up(rehearsal, "--other-location", "westus2")
    rehearsal.evict()
    rehearsal.clock.sleep(60)
    no_capacity(rehearsal, "--location", "eastus")


def of_generation(rehearsal: Rehearsal, generation: int) -> list[str]:
    return [name for name in resources(rehearsal) if f"horses-g{generation}" in name]


def look(rehearsal: Rehearsal, times: int = 1, seconds: float = 30.0) -> str:
    """What so many looks say."""
    said = ""
    for _ in range(times):
        outcome = rehearsal.cli("watch", "horses", "--once")
        assert outcome.code == 0, outcome.out
        said += outcome.out
        rehearsal.clock.sleep(seconds)
    return said


def finished_exactly(rehearsal: Rehearsal, generation: int) -> None:
    outcome = rehearsal.cli("watch", "horses")
    assert outcome.code == 0, outcome.out
    stored = rehearsal.machines.storages["cloudtrain-horses"]
    assert (stored.newest.digest, stored.generation) == (undisturbed(), generation)
    assert stored.doubles == 0 and stored.false_boots == 0
    for earlier in range(1, generation):
        assert of_generation(rehearsal, earlier) == []
    down = rehearsal.cli("down", "horses", "--json").envelope["data"]
    assert down["left"] == [] and rehearsal.machines.strays() == []


def test_a_vm_that_somebody_deleted_is_made_anew_and_goes_on_from_storage(durable: Rehearsal) -> None:
    lose_the_vm(durable)
    assert "the VM is gone; made anew: Standard_D2s_v3 in eastus" in look(durable)
    assert (vm(durable)["name"], vm(durable)["power_state"]) == ("horses-g2", "running")
    losses = durable.machines.storages["cloudtrain-horses"].losses
    assert [loss.steps <= JOB.steps_per_checkpoint for loss in losses] == [True]
    assert kinds(history(durable)).count("recreated") == 1
    finished_exactly(durable, 2)


def test_without_room_in_its_zone_a_run_moves_to_another_and_leaves_nothing(durable: Rehearsal) -> None:
    assert durable.cli("down", "horses").code == 0
    up(durable, "--zone", "1", "--zone", "2")
    assert vm(durable)["zone"] == "1"
    durable.clock.sleep(1000)
    durable.evict()
    durable.clock.sleep(60)
    no_capacity(durable, "--location", "eastus", "--zone", "1")
    said = look(durable, 2)
    assert "zone 1 was refused (ZonalAllocationFailed); the next place at once" in said
    assert "made anew: Standard_D2s_v3 in eastus zone 2" in said
    assert vm(durable)["zone"] == "2" and of_generation(durable, 1) == []
    finished_exactly(durable, 2)


def test_a_disk_is_not_given_up_for_a_storage_that_lacks_its_work(
    durable: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    evict_without_room_at_home(durable)
    with monkeypatch.context() as lacking:
        lacking.setattr("cloudtrain.lifecycle.stored.holds", lambda *_: False)
        said = look(durable, 2)
    assert "the VM's disk has work that storage has not" in said and of_generation(durable, 2) == []
    durable.clock.sleep(600)
    look(durable, 2)
    assert vm(durable)["location"] == "westus2"
    finished_exactly(durable, 2)


def test_without_room_in_its_region_a_run_moves_to_another_with_a_network_of_its_own(durable: Rehearsal) -> None:
    evict_without_room_at_home(durable)
    said = look(durable, 2)
    assert "the next place at once" in said and "made anew: Standard_D2s_v3 in westus2" in said
    assert vm(durable)["location"] == "westus2" and of_generation(durable, 1) == []
    assert {"horses-westus2-vnet", "horses-westus2-nsg"} <= set(resources(durable))
    listed = durable.cli("list", "--json").envelope["data"]["runs"][0]
    assert (listed["location"], listed["state"]) == ("westus2", "running")
    durable.clock.sleep(300)
    assert durable.cli("stop", "horses").code == 0
    assert durable.cli("restart", "horses").code == 0
    assert durable.cli("simulate-eviction", "horses").code == 0
    assert vm(durable)["location"] == "westus2"
    # Back home, for want of room abroad: the network there goes, too.
    durable.cli("emulator", "set", "--defaults")
    no_capacity(durable, "--location", "westus2")
    durable.evict()
    durable.clock.sleep(60)
    look(durable, 3)
    assert vm(durable)["location"] == "eastus" and "horses-westus2-vnet" not in resources(durable)
    finished_exactly(durable, 3)


def test_on_demand_comes_last_and_is_told_and_billed_as_such(durable: Rehearsal) -> None:
    assert durable.cli("stop", "horses").code == 0
    up(durable, "--max-price", "0.02", "--fallback", "on-demand:1h")
    durable.clock.sleep(600)
    # Spot becomes dearer than the run will pay: it is evicted, and refused until it may pay for more than Spot.
    dearer = ("--spot-price", "0.05", "--size", "Standard_D2s_v3")
    assert durable.cli("emulator", "set", *dearer).code == 0
    evicted = durable.clock.now().timestamp()
    durable.clock.sleep(60)
    said = ""
    while "made anew" not in said:
        said = look(durable, seconds=120)
        assert durable.clock.now().timestamp() < evicted + 2 * 3600, said
    assert durable.clock.now().timestamp() >= evicted + 3600
    assert "Standard_D2s_v3 in eastus, on demand" in said
    assert (vm(durable)["priority"], vm(durable)["eviction_policy"], vm(durable)["max_price"]) == ("Regular", "", -1.0)
    assert "on demand" in durable.cli("status", "horses").out
    durable.clock.sleep(1800)
    money = history(durable)["money"]
    assert money["on_demand_vms"] > 0.03 and money["disk"] > 0 and money["address"] > 0
    # Nothing lies there, but its VM writes there: 480 times an hour at 0.06 USD for 10,000.
    assert money["storage"] == pytest.approx(0.00288 * money["hours"], abs=1e-4)
    kinds_of_it = ("spot", "on_demand_vms", "disk", "address", "storage")
    assert abs(money["spent"] - sum(money[kind] for kind in kinds_of_it)) < 1e-3
    finished_exactly(durable, 2)


# A watcher that is killed takes the SDK's own threads with it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("requests", (10, 25, 40, 60))
def test_whoever_is_killed_while_it_moves_the_next_one_finishes_the_move(
    durable: Rehearsal, monkeypatch: pytest.MonkeyPatch, requests: int
) -> None:
    from cloudtrain.emulator.embedded import EmbeddedAzure

    class Killed(BaseException):
        pass

    left = [requests]
    ask = EmbeddedAzure.__call__

    def dying(self: Any, environ: Any, start_response: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return ask(self, environ, start_response)

    lose_the_vm(durable)
    with monkeypatch.context() as patched, pytest.raises(BaseException):  # noqa: B017  # as the kill is met
        patched.setattr(EmbeddedAzure, "__call__", dying)
        durable.cli("watch", "horses", "--once")
        raise Killed
    durable.clock.sleep(300)
    said = look(durable, 3)
    assert vm(durable)["power_state"] == "running", said
    assert "made anew" in said or "does not train yet" in said or "resumed" in said
    finished_exactly(durable, durable.machines.storages["cloudtrain-horses"].generation)


def test_a_fence_that_cannot_be_raised_takes_the_old_vm_away_first(
    durable: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloudtrain.errors import Refused
    from cloudtrain.lifecycle import durable as workflow

    def closed(*_: Any) -> None:
        raise Refused("NoDataRole", "This login has no role on the blobs.")

    monkeypatch.setattr(workflow, "raise_fence", closed)
    evict_without_room_at_home(durable)
    look(durable, 2)
    assert vm(durable)["location"] == "westus2"
    finished_exactly(durable, 2)


def test_up_goes_on_from_storage_where_the_vm_is_gone(durable: Rehearsal) -> None:
    lose_the_vm(durable)
    up(durable)
    assert vm(durable)["name"] == "horses-g2"
    finished_exactly(durable, 2)


def test_places_that_cannot_be_are_refused_before_anything_is_made(rehearsal: Rehearsal) -> None:
    for flags, told in (
        (("--other-location", "mars"), "there is no region 'mars'"),
        (("--other-size", "Standard_B1s"), "cannot be a Spot VM"),
        (("--other-location", "westus", "--size", "Standard_D2as_v6"), "is not sold in 'westus'"),
        (("--size", "Standard_NC4as_T4_v3", "--zone", "3"), "not to be had in zone 3"),
    ):
        outcome = rehearsal.cli("up", "ponies", *flags, "--json")
        assert outcome.code == 4 and told in outcome.out, outcome.out
    names = [group["run"] for group in rehearsal.cli("list", "--json").envelope["data"]["runs"]]
    assert names == ["horses"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--zone", "4"), ("--other-location", "East US"), ("--fallback", "spot"), ("--fallback", "on-demand:soon")],
)
def test_a_place_that_is_none_is_a_slip(rehearsal: Rehearsal, flag: str, value: str) -> None:
    outcome = rehearsal.cli("up", "ponies", flag, value, "--json")
    assert outcome.code == 2 and json.loads(outcome.out)["errors"][0]["message"].startswith(flag)


def test_the_plan_tells_the_most_that_the_dearest_place_can_cost(rehearsal: Rehearsal) -> None:
    def most(*flags: str) -> float:
        return float(
            rehearsal.cli("up", "ponies", "--dry-run", *flags, "--json").envelope["data"]["price"]["most_an_hour"]
        )

    cheap = most("--max-price", "0.05")
    assert cheap == 0.05 and most("--max-price", "0.05", "--fallback", "on-demand") > cheap
    assert most("--other-size", "Standard_D4s_v3") > most()
    text = rehearsal.cli("up", "ponies", "--dry-run", "--fallback", "on-demand:2h", "--zone", "2").out
    assert "or else" in text and "on demand, once Spot has been in vain for 2h" in text


def test_up_watch_without_room_at_the_first_place_goes_on_to_the_others(rehearsal: Rehearsal) -> None:
    no_capacity(rehearsal, "--location", "eastus")
    assert rehearsal.cli("up", "ponies", "--json").code == 4
    assert [run["run"] for run in rehearsal.cli("list", "--json").envelope["data"]["runs"]] == ["horses"]
    outcome = rehearsal.cli("up", "ponies", "--other-location", "westus2", "--watch")
    assert outcome.code == 0 and "made anew: Standard_D2s_v3 in westus2" in outcome.out, outcome.out
    assert outcome.out.rstrip().endswith("training has finished")
    entries = rehearsal.cli("history", "ponies", "--json").envelope["data"]["events"]
    made = [entry for entry in entries if entry["what"] in ("refused", "recreated")]
    assert [(entry["what"], entry["place"]) for entry in made] == [
        ("refused", "Standard_D2s_v3 in eastus"),
        ("recreated", "Standard_D2s_v3 in westus2"),
    ]
    assert rehearsal.cli("down", "ponies", "--json").envelope["data"]["left"] == []


def test_a_stop_that_only_the_activity_log_tells_is_not_undone_and_an_eviction_still_is(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloudtrain.azure import health

    monkeypatch.setattr(health, "stopped_by_somebody", lambda *_: None)
    rehearsal.clock.sleep(600)
    rehearsal.evict()
    rehearsal.clock.sleep(60)
    assert "the VM was deallocated; started" in look(rehearsal)
    rehearsal.clock.sleep(600)
    rehearsal.stop_in_the_portal()
    rehearsal.clock.sleep(60)
    assert "somebody stopped the VM" in look(rehearsal)
    assert vm(rehearsal)["power_state"] == "deallocated"


def test_of_two_watchers_that_begin_in_the_same_instant_one_has_the_run(rehearsal: Rehearsal) -> None:
    from cloudtrain.azure import group as groups
    from cloudtrain.azure import lease
    from cloudtrain.azure.session import open_session

    with open_session("embedded", home=rehearsal.root, clock=rehearsal.clock) as session:
        # Both have read that nobody watches.
        group, now = groups.get(session, "horses"), rehearsal.clock.now().timestamp()
        assert [lease.take(session, group, holder, now) for holder in ("one", "other")] == [True, False]
        lease.release(session, group, "one")
        assert lease.take(session, groups.get(session, "horses"), "other", now)


def test_a_watcher_that_is_busy_for_long_keeps_its_run(durable: Rehearsal) -> None:
    assert durable.cli("down", "horses").code == 0
    slow = Job(JOB.steps, JOB.step_seconds, JOB.checkpoint_seconds, start_seconds=900.0, upload_seconds=5.0)
    durable.machines = SimulatedMachines(durable.clock, SimulatedGuest(), slow)
    up(durable)
    durable.clock.sleep(600)
    lose_the_vm(durable)
    left: list[float] = []

    def read() -> None:
        held = json.loads(durable.azure("GET", "", version="2021-04-01")["tags"]["cloudtrain-watcher"])
        left.append(held["until"] - durable.clock.now().timestamp())

    for seconds in (300, 500, 700):
        durable.clock.at(seconds, read)
    look(durable)
    assert len(left) == 3 and min(left) > 60, left


def interrupted_up(rehearsal: Rehearsal) -> None:
    """It is cut off while it waits for the first step, which nobody sees."""
    assert rehearsal.cli("down", "horses").code == 0
    lost = ("drop-before", "--on", "VirtualMachineRunCommands_GetByVirtualMachine", "--count", "0")
    assert rehearsal.cli("emulator", "fault", "add", *lost).code == 0
    assert rehearsal.cli("up", "horses").code == 8
    assert rehearsal.cli("emulator", "fault", "clear").code == 0
    rehearsal.clock.sleep(1000)
    assert rehearsal.training.saved > 0


def test_work_that_nobody_has_seen_is_kept_where_the_next_up_gets_no_room(durable: Rehearsal) -> None:
    interrupted_up(durable)
    durable.evict()
    durable.clock.sleep(60)
    assert durable.cli("status", "horses", "--json").envelope["data"]["state"] == "evicted"
    no_capacity(durable)
    for _ in range(2):
        assert durable.cli("up", "horses").code == 4
    assert vm(durable)["name"] == "horses-g1"
    durable.cli("emulator", "set", "--defaults")
    up(durable)
    assert [loss.steps for loss in durable.machines.storages["cloudtrain-horses"].losses] == [0]
    finished_exactly(durable, 1)


def test_work_that_nobody_has_seen_is_kept_where_the_next_up_gets_no_storage(durable: Rehearsal) -> None:
    interrupted_up(durable)
    refused = ("refuse", "--code", "AuthorizationFailed", "--on", "* */storageAccounts*", "--count", "0")
    assert durable.cli("emulator", "fault", "add", *refused).code == 0
    assert durable.cli("up", "horses").code == 4
    assert vm(durable)["power_state"] == "running" and durable.training.under_way
    assert durable.cli("emulator", "fault", "clear").code == 0
    finished_exactly(durable, 1)


def test_a_vm_that_is_given_up_is_not_started_again_by_whoever_comes_next(
    durable: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloudtrain.lifecycle import durable as lifecycle

    evict_without_room_at_home(durable)
    raise_fence = lifecycle.raise_fence

    def raise_fence_and_die(*arguments: Any) -> None:
        raise_fence(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(lifecycle, "raise_fence", raise_fence_and_die)
        assert [durable.cli("watch", "horses", "--once").code for _ in range(2)] == [0, 130]
    durable.cli("emulator", "set", "--defaults")
    durable.clock.sleep(200)
    told = durable.cli("restart", "horses", "--json").envelope["data"]
    assert told["action"] == "recreated" and vm(durable)["name"] == "horses-g2"
    finished_exactly(durable, 2)
