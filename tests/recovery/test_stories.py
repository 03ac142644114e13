"""A run's whole life at random: evictions, no capacity, outages, and watchers killed in the middle of a step.

`benchmarks/recovery.py` tells longer ones."""

from pathlib import Path

from benchmarks.recovery import Story


def test_whatever_happens_a_run_finishes_as_if_it_had_been_left_alone(tmp_path: Path) -> None:
    story = Story(tmp_path, rate=2.0, hours=2, seed="one", killed_looks=0.5, shortage_hours=0.05).told()
    assert story["exact"], story
    assert story["evictions"] > 1 and story["killed"] > 0, story
    assert story["lost_with_notice"] == 0 and story["intervals_lost"] <= 1, story
    assert story["false_restarts"] == 0 and story["orphans"] == 0, story
    assert 0 < story["goodput"] <= 1
