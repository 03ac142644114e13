"""Where the time of a run went, told from its events."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtrain.recovery.history import Event, Record, added, fold, goodput, packed, sums, unpacked

from .conftest import Rehearsal


def story(*events: Event, **fields: object) -> Record:
    return added(Record(**fields), events)


def test_an_eviction_with_notice_costs_the_saving_the_waiting_and_the_restart() -> None:
    told = story(
        Event(60, "began"),
        Event(1060, "notice", notice=30),
        Event(1062, "saved", step=100),
        Event(1090, "evicted"),
        Event(1100, "refused", why="AllocationFailed"),
        Event(1130, "started"),
        Event(1140, "booted"),
        Event(1150, "resumed", step=100, lost=0, seen=1062),
        Event(2150, "finished", step=200),
    )
    total = sums(told, begun=0, now=9999)
    assert (total.starting, total.useful, total.saving, total.waiting, total.restarting) == (60, 2000, 2, 68, 20)
    assert (total.evictions, total.with_notice, total.refusals, total.resumes, total.steps_lost) == (1, 1, 1, 1, 0)
    assert goodput(total) == 2000 / 2150


def test_an_eviction_without_notice_ends_training_when_it_was_last_seen_and_what_is_done_again_does_not_count() -> None:
    told = story(
        Event(0, "began"),
        Event(1100, "evicted"),
        Event(1110, "started"),
        Event(1120, "resumed", step=90, lost=10, seen=1000),
        Event(2120, "finished", step=190),
    )
    total = sums(told, begun=0, now=2120)
    assert (total.useful, total.redone, total.waiting, total.restarting) == (1900, 100, 110, 10)
    assert (total.evictions, total.with_notice, total.steps_lost) == (1, 0, 10)


def test_a_stop_by_the_user_is_neither_an_eviction_nor_time_that_was_wanted() -> None:
    told = story(
        Event(0, "began"),
        Event(100, "stop asked"),
        Event(110, "stopped"),
        Event(9000, "booted"),
        Event(9010, "resumed", step=10, lost=0, seen=100),
    )
    total = sums(told, begun=0, now=9110)
    assert (total.evictions, total.useful, total.stopped, total.restarting) == (0, 200, 8900, 10)
    assert goodput(total) == 200 / 210


def test_evictions_that_only_the_guest_knows_of_count_too() -> None:
    told = story(
        Event(0, "began"),
        Event(100, "notice", notice=28),
        Event(101, "saved", step=5),
        Event(200, "booted"),
        Event(210, "resumed", step=5, lost=0, seen=101),
        Event(400, "booted"),
        Event(410, "resumed", step=15, lost=2, seen=300),
    )
    total = sums(told, begun=0, now=410)
    assert (total.evictions, total.with_notice, total.resumes) == (2, 1, 2)


def test_an_eviction_that_two_have_noted_counts_once() -> None:
    told = story(
        Event(0, "began"),
        Event(100, "evicted", why="simulated"),
        Event(101, "evicted"),
        Event(110, "started"),
        Event(120, "evicted"),
        Event(130, "started"),
        Event(140, "resumed", step=5, lost=0, seen=90),
    )
    assert sums(told, begun=0, now=200).evictions == 2


def test_money_is_counted_while_the_vm_runs_at_the_price_of_its_last_start() -> None:
    told = story(
        Event(0, "made", price=0.1),
        Event(60, "began"),
        Event(3600, "evicted"),
        Event(7200, "started", price=0.2),
        Event(7260, "resumed", step=5, lost=0, seen=3500),
        Event(10800, "stopped"),
        Event(20000, "started"),
    )
    total = sums(told, begun=0, now=23600)
    assert total.billed == 3 * 3600 and total.unpriced == 3600
    assert total.spent == pytest.approx(0.1 + 0.2)


def test_disk_and_address_bill_while_they_are_there_and_a_vm_on_demand_is_told_apart() -> None:
    told = story(
        Event(0, "made", place="S in eastus", price=0.1, disk=0.01, address=0.005),
        Event(60, "began"),
        Event(3600, "evicted", disk=0.0, address=0.0),
        Event(7200, "recreated", place="S in eastus, on demand", price=0.4, disk=0.02, address=0.005),
        Event(7260, "resumed", step=5, lost=0, seen=3500),
        Event(10800, "stopped"),
    )
    total = sums(told, begun=0, now=14400)
    assert total.spent == pytest.approx(0.5) and total.on_demand == pytest.approx(0.4)
    assert total.disk == pytest.approx(0.01 + 2 * 0.02) and total.address == pytest.approx(3 * 0.005)


kinds = st.sampled_from(
    ["made", "evicted", "refused", "started", "began", "notice", "saved", "booted", "resumed", "stop asked", "stopped"]
)
stories = st.lists(
    st.builds(
        Event,
        st.floats(1, 1e6).map(lambda at: round(at, 1)),
        kinds,
        step=st.one_of(st.none(), st.integers(0, 1000)),
        lost=st.one_of(st.none(), st.integers(0, 50)),
        seen=st.one_of(st.none(), st.floats(1, 1e6)),
    ),
    max_size=40,
)


@given(stories)
def test_every_second_is_spent_on_exactly_one_thing(events: list[Event]) -> None:
    total = sums(story(*events), begun=0.0, now=1e6)
    spent = [total.starting, total.useful, total.redone, total.saving, total.waiting, total.restarting, total.stopped]
    assert all(seconds >= -1e-6 for seconds in spent)
    assert abs(sum(spent) - 1e6) < 1e-3
    assert 0 <= (goodput(total) or 0) <= 1
    assert total.with_notice <= total.evictions


@given(stories)
def test_what_is_packed_comes_back_and_an_event_told_twice_counts_once(events: list[Event]) -> None:
    told = story(*events)
    assert unpacked(packed(told)) == told
    assert added(told, events) == told


def test_folding_keeps_the_sums_and_makes_room() -> None:
    events = [Event(0, "began")]
    for n in range(200):
        at = 1000.0 * (n + 1)
        events += [
            Event(at, "notice", notice=30) if n % 2 else Event(at + 1, "evicted"),
            Event(
                at + 40,
                "recreated" if n % 5 == 0 else "started",
                place="Standard_D2s_v3 in eastus" + (", on demand" if n % 3 == 0 else ""),
                price=0.1 + n % 7 / 100,
                disk=0.01 + n % 4 / 1000 if n % 5 == 0 else None,
                address=0.005 if n % 5 == 0 else None,
            ),
            Event(at + 60, "resumed", step=10 * n, lost=n % 3, seen=at),
        ]
    whole = story(*events)
    folded, now = whole, 1000.0 * 300
    while len(packed(folded)) > 1500:
        shorter = fold(folded, 0.0)
        assert shorter is not None
        folded = shorter
        before, after = sums(whole, 0.0, now), sums(folded, 0.0, now)
        for name in before.__struct_fields__:
            assert abs(getattr(before, name) - getattr(after, name)) < 1e-3, name
    assert len(folded.events) < len(whole.events) and folded.folded + len(folded.events) == len(whole.events)


def test_what_is_noted_while_the_guest_is_asked_stays(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloudtrain.azure import notes
    from cloudtrain.lifecycle import training

    ask, noted = training.observe, []

    def ask_while_somebody_notes(ctx: Any, group: Any, **options: Any) -> Any:
        seen = ask(ctx, group, **options)
        if not noted:
            noted.append(Event(ctx.clock.now().timestamp(), "started", price=0.02))
            notes.add(ctx.session, group, noted[0])
        return seen

    rehearsal.clock.sleep(600)
    with monkeypatch.context() as patched:
        patched.setattr(training, "observe", ask_while_somebody_notes)
        assert rehearsal.cli("history", "horses").code == 0
    told = [event["what"] for event in rehearsal.cli("history", "horses", "--json").envelope["data"]["events"]]
    assert "began" in told and "started" in told, told
