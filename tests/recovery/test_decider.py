"""What recovery decides, for any observation: properties of the pure deciders, and the stories they have to tell."""

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudtrain.errors import Blocks
from cloudtrain.recovery import (
    PAUSES,
    RESTARTING,
    Action,
    Do,
    Guest,
    Limits,
    Memory,
    Observation,
    Place,
    Power,
    Want,
    after_refusal,
    bits,
    decide,
    places,
    seen,
)

HERE = Place("Standard_NC4as_T4_v3", "eastus", "1")
BIGGER = Place("Standard_NC8as_T4_v3", "eastus", "1")
NEXT_DOOR = Place("Standard_NC4as_T4_v3", "eastus", "2")
ABROAD = Place("Standard_NC4as_T4_v3", "westus", "1")
ON_DEMAND = Place("Standard_NC4as_T4_v3", "eastus", "1", spot=False)
ALL = (HERE, BIGGER, NEXT_DOOR, ABROAD, ON_DEMAND)
OFF = Observation(now=1000.0, want=Want.RUNNING, power=Power.DEALLOCATED, place=HERE, places=ALL)

times = st.floats(min_value=1.0, max_value=1e9)
memories = st.builds(
    Memory,
    off_since=st.one_of(st.just(0.0), times),
    refused=st.integers(0, 50),
    rounds=st.integers(0, 50),
    closed=st.lists(st.integers(0, 5), max_size=6).map(bits),
    next_at=st.one_of(st.just(0.0), times),
    code=st.sampled_from(["", "AllocationFailed"]),
    step=st.integers(-1, 1000),
    fruitless=st.integers(0, 20),
)
observations = st.builds(
    Observation,
    now=times,
    want=st.sampled_from(Want),
    power=st.sampled_from(Power),
    place=st.sampled_from(ALL),
    watched=st.booleans(),
    places=st.lists(st.sampled_from(ALL), unique=True).map(tuple),
    on_demand_after=st.sampled_from([0.0, 3600.0]),
    trained=st.booleans(),
    durable=st.booleans(),
    begun=st.booleans(),
    saved_step=st.one_of(st.none(), st.integers(0, 1000)),
    user_stopped=st.sampled_from([None, True, False]),
    guest=st.one_of(st.none(), st.builds(Guest, st.booleans(), st.booleans(), st.sampled_from(["", "exit code 1"]))),
    limits=st.builds(Limits, st.one_of(st.none(), times), st.one_of(st.none(), st.floats(0, 100)), st.floats(0, 100)),
    memory=memories,
    jitter=st.floats(0, 1),
)


def decided(observation: Observation) -> Action:
    return decide(changed(observation, memory=seen(observation)))


def changed(observation: Observation, **fields: object) -> Observation:
    return msgspec.structs.replace(observation, **fields)


@given(observations)
def test_only_azures_word_that_the_vm_is_off_ever_brings_it_back(look: Observation) -> None:
    if decided(look).do in RESTARTING:
        assert look.power in (Power.DEALLOCATED, Power.FAILED, Power.GONE)
        assert look.watched and look.want is Want.RUNNING


@given(observations, st.one_of(st.none(), st.builds(Guest, st.booleans(), st.booleans(), st.sampled_from(["", "x"]))))
def test_a_healthy_run_is_never_restarted_whatever_the_guest_says_or_fails_to_say(
    look: Observation, guest: Guest | None
) -> None:
    for power in (Power.RUNNING, Power.MOVING):
        assert decided(changed(look, power=power, guest=guest)).do not in RESTARTING


@given(observations)
def test_a_stop_by_the_user_is_never_undone(look: Observation) -> None:
    assert decided(changed(look, want=Want.STOPPED)).do not in RESTARTING
    elsewhere = changed(look, power=Power.DEALLOCATED, user_stopped=True)
    assert decided(elsewhere).do not in RESTARTING
    assert decided(changed(look, watched=False)).do is Do.NOTHING


@given(observations)
def test_work_that_lies_on_the_disk_alone_is_never_thrown_away(look: Observation) -> None:
    look = changed(look, trained=True, durable=False)
    assert decided(look).do is not Do.RECREATE


@given(observations)
def test_only_a_vm_that_runs_and_was_never_told_to_train_is_told_so(look: Observation) -> None:
    if decided(look).do is Do.BEGIN:
        assert look.power is Power.RUNNING and not look.begun
        assert look.watched and look.want is Want.RUNNING
    running = changed(look, power=Power.RUNNING, begun=True)
    assert decided(running).do not in (Do.BEGIN, *RESTARTING)


@given(observations, st.sampled_from([Power.DEALLOCATED, Power.GONE, Power.FAILED]), st.floats(0, 7200))
def test_a_vm_on_demand_is_never_made_before_its_time(look: Observation, power: Power, off_for: float) -> None:
    look = changed(
        look,
        power=power,
        place=HERE,
        places=(HERE, ABROAD, ON_DEMAND),
        on_demand_after=3600.0,
        memory=msgspec.structs.replace(look.memory, off_since=look.now - off_for),
    )
    action = decided(look)
    if action.do in RESTARTING and action.place is not None and not action.place.spot:
        assert look.now - look.memory.off_since >= 3600.0
        assert {0, 1} <= look.memory.tried  # Spot was in vain everywhere


@given(st.sampled_from([Power.DEALLOCATED, Power.GONE]), st.permutations(ALL), st.floats(0, 1))
def test_within_one_round_every_place_is_tried_once_and_no_other(
    power: Power, order: list[Place], jitter: float
) -> None:
    """Each place is refused by itself alone: nothing is learnt of the others."""
    look = changed(OFF, power=power, durable=True, places=tuple(order), jitter=jitter)
    look, asked = changed(look, memory=seen(look)), []
    while (action := decide(look)).do in RESTARTING:
        assert action.place is not None
        asked.append(action.place)
        look = changed(look, memory=after_refusal(look, action.place, "ZonalAllocationFailed", Blocks.ZONE))
    assert action.do is Do.WAIT and sorted(asked, key=repr) == sorted(order, key=repr)
    if power is Power.DEALLOCATED:
        assert asked[0] == HERE
    else:
        assert asked == order


@given(
    st.lists(st.sampled_from(["1", "2", "3"]), unique=True, max_size=3),
    st.lists(st.sampled_from(["S2", "S3", "S4"]), unique=True),
    st.lists(st.sampled_from(["westus", "westus2"]), unique=True),
    st.booleans(),
)
def test_places_are_the_same_size_first_then_other_sizes_then_other_locations_at_last_on_demand(
    zones: list[str], sizes: list[str], locations: list[str], on_demand: bool
) -> None:
    found = places("S1", "eastus", zones=zones, other_sizes=sizes, other_locations=locations, on_demand=on_demand)
    assert len(set(found)) == len(found) and found[0] == Place("S1", "eastus", zones[0] if zones else "")
    rank = [(not place.spot, place.location != "eastus", place.size != "S1") for place in found]
    assert [each[:2] for each in rank] == sorted(each[:2] for each in rank)
    at_home = [each for each in rank if each[:2] == (False, False)]
    assert at_home == sorted(at_home)
    assert any(not place.spot for place in found) == on_demand


@given(observations)
def test_a_run_that_is_over_is_never_started_again(look: Observation) -> None:
    assert decided(changed(look, want=Want.FINISHED)).do not in RESTARTING
    assert decided(changed(look, limits=Limits(until=look.now))).do not in RESTARTING
    assert decided(changed(look, limits=Limits(cost=1.0, spent=1.0))).do not in RESTARTING


@given(observations)
def test_a_wanted_vm_that_azure_deallocated_is_started_or_waited_for(look: Observation) -> None:
    look = changed(
        look, want=Want.RUNNING, power=Power.DEALLOCATED, watched=True, user_stopped=None, guest=None, limits=Limits()
    )
    action = decided(look)
    assert action.do in RESTARTING or action.do is Do.WAIT
    if action.do is Do.WAIT:
        assert action.until is not None and action.until > look.now


@given(observations, st.sampled_from(Blocks))
def test_after_a_refusal_there_is_always_a_next_try_and_never_an_endless_round(
    look: Observation, blocks: Blocks
) -> None:
    """Azure refuses everything: between two pauses each place is tried at most once, and the search never ends."""
    look = changed(
        look,
        want=Want.RUNNING,
        power=Power.DEALLOCATED,
        watched=True,
        user_stopped=None,
        guest=None,
        limits=Limits(),
        memory=Memory(),
    )
    asked: list[Place] = []
    for _ in range(40):
        look = changed(look, memory=seen(look))
        action = decide(look)
        if action.do is Do.WAIT:
            assert action.until is not None and look.now < action.until <= look.now + 1.2 * PAUSES[-1] + 1e-6
            look, asked = changed(look, now=action.until), []
            continue
        assert action.do in RESTARTING and action.place is not None
        assert action.place not in asked
        asked.append(action.place)
        look = changed(look, memory=after_refusal(look, action.place, "AllocationFailed", blocks))


def test_the_pauses_grow_from_half_a_minute_to_ten_and_stay_there() -> None:
    look, pauses = changed(OFF, places=(HERE,)), []
    for _ in range(7):
        look = changed(look, memory=seen(look))
        assert decide(look).do is Do.START
        look = changed(look, memory=after_refusal(look, HERE, "AllocationFailed", Blocks.SIZE))
        waiting = decide(look)
        assert waiting.do is Do.WAIT and waiting.until is not None and "AllocationFailed" in waiting.why
        pauses.append(round(waiting.until - look.now))
        look = changed(look, now=waiting.until)
    assert pauses == [30, 60, 120, 300, 600, 600, 600]


@given(st.floats(0, 1))
def test_the_jitter_moves_a_pause_by_a_fifth_at_most(jitter: float) -> None:
    look = changed(OFF, places=(HERE,), jitter=jitter)
    look = changed(look, memory=seen(look))
    after = after_refusal(look, HERE, "AllocationFailed", Blocks.SIZE)
    assert 24 <= after.next_at - look.now <= 36


@pytest.mark.parametrize(
    ("blocks", "durable", "then"),
    [
        (Blocks.ZONE, True, BIGGER),
        (Blocks.SIZE, True, BIGGER),
        (Blocks.SPOT, True, ABROAD),
        (Blocks.REGION, True, ABROAD),
        (Blocks.SIZE, False, BIGGER),
    ],
)
def test_what_a_refusal_closes_decides_which_place_is_next(blocks: Blocks, durable: bool, then: Place) -> None:
    look = changed(OFF, durable=durable, on_demand_after=3600.0)
    look = changed(look, memory=seen(look))
    look = changed(look, memory=after_refusal(look, HERE, "AllocationFailed", blocks))
    action = decide(look)
    assert action.place == then
    assert action.do is (Do.RESIZE if then == BIGGER else Do.RECREATE)


def test_without_durable_checkpoints_a_run_stays_where_its_disk_is() -> None:
    look = changed(OFF, places=(HERE, NEXT_DOOR, ABROAD, ON_DEMAND))
    look = changed(look, memory=seen(look))
    for blocks in Blocks:
        after = changed(look, memory=after_refusal(look, HERE, "AllocationFailed", blocks))
        assert decide(after).do is Do.WAIT


def test_on_demand_comes_last_and_not_before_its_time() -> None:
    look = changed(OFF, durable=True, places=(HERE, ON_DEMAND), on_demand_after=3600.0)
    look = changed(look, memory=seen(look))
    tried = []
    while look.now < 1000.0 + 2 * 3600:
        action = decide(look)
        if action.do is Do.WAIT:
            assert action.until is not None
            look = changed(look, now=action.until)
            continue
        assert action.place is not None
        tried.append((look.now - 1000.0, action.place.spot))
        look = changed(look, memory=after_refusal(look, action.place, "AllocationFailed", Blocks.SIZE))
    assert all(spot or after >= 3600 for after, spot in tried)
    first = next(index for index, (_, spot) in enumerate(tried) if not spot)
    assert tried[first - 1][1] and tried[first - 1][0] == tried[first][0]


def test_a_vm_that_azure_could_not_make_is_made_anew_and_a_lost_disk_is_said() -> None:
    failed = changed(OFF, power=Power.FAILED, trained=False, failure="AllocationFailed")
    assert decided(failed).do is Do.RECREATE
    assert decided(changed(OFF, power=Power.GONE, durable=True)).do is Do.RECREATE
    lost = decided(changed(OFF, power=Power.GONE))
    assert lost.do is Do.REPORT and "disk" in lost.why


def test_a_failed_training_is_stopped_with_its_reason_and_a_finished_one_released() -> None:
    running = changed(OFF, power=Power.RUNNING)
    failed = decided(changed(running, guest=Guest(failed="exit code 1, three times")))
    assert failed.do is Do.SAVE_AND_STOP and "exit code 1" in failed.why
    assert decided(changed(running, guest=Guest(finished=True))).do is Do.RELEASE
    assert decided(changed(OFF, want=Want.FINISHED)).do is Do.NOTHING


def test_evictions_in_a_row_without_progress_are_spaced_out_and_said_aloud() -> None:
    look, waited = changed(OFF, saved_step=10), []
    for _ in range(8):
        look = changed(look, power=Power.DEALLOCATED)
        look = changed(look, memory=seen(look))
        action = decide(look)
        if action.do is Do.WAIT:
            assert action.until is not None
            assert "without a new checkpoint" in action.why
            waited.append(round(action.until - look.now))
            look = changed(look, now=action.until)
            action = decide(look)
        assert action.do is Do.START
        look = changed(look, power=Power.RUNNING, now=look.now + 60)
        look = changed(look, memory=seen(look))
    assert waited == [30, 60, 120, 300, 600]
    further = changed(look, power=Power.DEALLOCATED, saved_step=11)
    assert decided(further).do is Do.START
    assert seen(further).fruitless == 0


@dataclass
class Cloud:
    """A VM as Azure moves it, and a user: what the watcher may not get wrong, over any sequence of events."""

    power: Power = Power.RUNNING
    want: Want = Want.RUNNING
    step: int = 0
    refusing: bool = False


events = st.lists(
    st.sampled_from(["train", "train", "evict", "refuse", "relent", "look", "look", "look", "stop", "restart"]),
    max_size=80,
)


@settings(max_examples=100)
@given(events, st.floats(0, 1))
def test_over_any_story_a_wanted_run_comes_back_and_an_unwanted_one_does_not(story: list[str], jitter: float) -> None:
    cloud, memory, now = Cloud(), Memory(), 0.0

    def look(now: float, memory: Memory) -> Memory:
        seen_now = Observation(
            now=now,
            want=cloud.want,
            power=cloud.power,
            place=HERE,
            saved_step=cloud.step,
            memory=memory,
            jitter=jitter,
        )
        seen_now = changed(seen_now, memory=seen(seen_now))
        action = decide(seen_now)
        if action.do in RESTARTING:
            assert cloud.power is Power.DEALLOCATED and cloud.want is Want.RUNNING
            if cloud.refusing:
                return after_refusal(seen_now, HERE, "AllocationFailed", Blocks.SIZE)
            cloud.power = Power.RUNNING
        return seen_now.memory

    for event in story:
        now += 60
        if event == "train" and cloud.power is Power.RUNNING:
            cloud.step += 1
        elif event == "evict" and cloud.power is Power.RUNNING:
            cloud.power = Power.DEALLOCATED
        elif event in ("refuse", "relent"):
            cloud.refusing = event == "refuse"
        elif event == "stop":
            cloud.want, cloud.power = Want.STOPPED, Power.DEALLOCATED
        elif event == "restart":
            cloud.want = Want.RUNNING
        elif event == "look":
            memory = look(now, memory)
    cloud.refusing = False
    for _ in range(30):
        now += 60
        memory = look(now, memory)
    assert cloud.power is (Power.RUNNING if cloud.want is Want.RUNNING else Power.DEALLOCATED)


def test_the_memory_fits_one_tag_of_azure() -> None:
    worst = Memory(1e9 + 0.5, 99999, 9999, "f" * 24, 1e9 + 0.5, "O" * 50, 10**9, 999)
    assert len(msgspec.json.encode(worst)) <= 256
