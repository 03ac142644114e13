"""When to save and what to keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import policy

COSTS = st.floats(0.0001, 100)


@given(cost=COSTS)
def test_saving_costs_at_most_one_percent_unless_a_minute_would_pass(cost: float) -> None:
    apart = policy.seconds_apart(cost)
    assert cost / apart <= 0.01 or (apart == 60 and cost / apart < 0.03)


@given(cost=COSTS)
def test_no_more_than_a_minute_lies_between_saves_while_that_costs_under_three_percent(cost: float) -> None:
    if cost / 60 < 0.03:
        assert policy.seconds_apart(cost) <= 60


@given(stalls=st.lists(COSTS, min_size=50, max_size=50))
def test_in_the_long_run_the_share_holds_although_costs_vary(stalls: list[float]) -> None:
    stalls = [min(stall, 0.5) for stall in stalls]
    costs: list[policy.Cost] = []
    seconds = 0.0
    for stall in stalls:
        waited = 0.0
        while not policy.is_due(policy.Interval(), steps=1, seconds=waited, costs=costs[-5:]):
            waited += 0.5
        seconds += waited + stall
        costs.append(policy.Cost(stall, stall))
    later = sum(cost.stall for cost in costs[:-5])
    assert later / seconds <= 0.0125


def test_the_first_save_comes_early_whatever_it_may_cost() -> None:
    assert policy.is_due(policy.Interval(), steps=1, seconds=1.0, costs=[])


@pytest.mark.parametrize(("busy", "write", "background"), [(1.0, 0.04, False), (0.3, 0.04, True), (1.0, 4.0, True)])
def test_on_busy_cores_a_quick_save_is_made_in_the_training_thread(busy: float, write: float, background: bool) -> None:
    assert policy.in_background(busy=busy, costs=[policy.Cost(0.02, write)]) is background


@given(names=st.lists(st.text()), keep=st.integers(2, 9))
def test_the_newest_are_kept(names: list[str], keep: int) -> None:
    gone = policy.superfluous(names, keep)
    assert gone + names[len(gone) :] == names
    assert len(names) - len(gone) == min(keep, len(names))


@pytest.mark.parametrize("text", ["-5", "0", "0s", "-1s", "soon", "5 s", ""])
def test_an_interval_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        policy.parse_interval(text)
