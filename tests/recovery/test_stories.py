"""The whole lives of a few runs at random: evictions with both policies, no capacity, outages, and watchers killed at
any of their requests. `benchmarks/recovery.py` tells longer ones, of a thousand runs."""

from pathlib import Path

from benchmarks.recovery import World


def test_whatever_happens_every_run_finishes_as_if_it_had_been_left_alone(tmp_path: Path) -> None:
    rates = {"deallocated": 2.0, "deleted": 2.0, "calm": 0.3}
    shortages = {("eastus", "1"): 0.5, ("eastus", None): 1.0, (None, None): 2.0}
    lives = World(
        tmp_path, rates, hours=3, seed="two", killed_looks=0.3, shortage_hours=0.3, shortages=shortages
    ).told()
    for run, told in lives.items():
        assert told["exact"], (run, told)
        assert told["lost_with_notice"] == 0 and told["intervals_lost"] <= 1.01, (run, told)
        assert told["false_restarts"] == 0 and told["two_at_once"] == 0 and told["orphans"] == 0, (run, told)
        assert 0 < told["goodput"] <= 1, (run, told)
    assert sum(told["evictions"] for told in lives.values()) > 3, lives
    assert sum(told["killed"] for told in lives.values()) > 0, lives
    assert sum(told["moves"] for told in lives.values()) > 1, lives
