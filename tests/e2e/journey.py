"""One run from the first look to the last trace, through the command line: on the embedded Azure and on Azure alike."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

# Deleting a group takes Azure minutes; a VM that is being made has to be waited for.
DOWN_SECONDS = 1800


@dataclass
class Journey:
    """A run somewhere. place: the flags of every verb that say where; minutes: what all verbs but `down` may take."""

    cloudtrain: Callable[..., Any]
    run: str
    place: tuple[str, ...]
    minutes: float
    began: float = field(default_factory=time.monotonic)

    def __call__(self, verb: str, *arguments: str) -> dict[str, Any]:
        """The verb's result; fails when the verb does, or when the time is up."""
        told = self.told(verb, *arguments)
        assert told.code == 0, f"{verb}: exit {told.code}\n{told.out}\n{told.err}"
        return dict(json.loads(told.out)["data"])

    def told(self, verb: str, *arguments: str) -> Any:
        left = self.minutes * 60 - (time.monotonic() - self.began)
        assert left > 0, f"{self.run}: the {self.minutes} minutes are over before '{verb}'"
        at = arguments.index("--") if "--" in arguments else len(arguments)
        line = (verb, self.run, *self.place, *arguments[:at], "--json", *arguments[at:])
        return self.cloudtrain(*line, timeout=left)

    def down(self) -> None:
        """Removes the run, whatever state it is in. Fails, loudly, where something stays."""
        for _ in range(3):
            told = self.cloudtrain("down", self.run, *self.place, "--json", timeout=DOWN_SECONDS)
            if told.code == 0:
                break
        assert told.code == 0, f"PERHAPS STILL THERE: az group delete -n cloudtrain-{self.run}\n{told.out}\n{told.err}"
        assert json.loads(told.out)["data"]["left"] == []
        left = self.cloudtrain("list", *self.place, "--json", timeout=DOWN_SECONDS)
        assert self.run not in {run["run"] for run in json.loads(left.out)["data"]["runs"]}


@contextmanager
def removed(journey: Journey) -> Iterator[Journey]:
    """Inside, the run may be made; afterwards nothing of it is left, whatever happened inside."""
    try:
        yield journey
    finally:
        journey.down()


def whole_run(journey: Journey, spec: tuple[str, ...], trainer: tuple[str, ...], max_price: float) -> None:
    """Look, plan, make, evict, stop, restart, read. spec: flags of `up`; max_price: USD an hour."""
    limited = (*spec, "--max-price", f"{max_price:g}")
    checks = {check["name"]: check for check in journey("doctor", *limited)["checks"]}
    assert not [check for check in checks.values() if check["state"] == "failed"]
    plan = journey("up", *limited, "--dry-run")
    assert plan["action"] == "create" and plan["price"]["most_an_hour"] <= max_price
    up = journey("up", *limited, "--yes", "--", *trainer)
    assert (up["state"], up["created"], up["vm"]["priority"]) == ("running", True, "Spot")
    assert up["vm"]["max_price"] == max_price
    evicted = journey("simulate-eviction")
    assert evicted["state"] == "running" and evicted["resumed_step"] == evicted["saved_step"]
    # An image that writes no progress tells no steps.
    assert evicted["steps_lost"] in (0, None)
    stopped = journey("stop")
    assert (stopped["state"], stopped["was"]) == ("stopped", "running")
    # Storage has it, though the VM is off.
    assert journey("logs")["text"]
    back = journey("restart")
    assert back["action"] == "started"
    assert back["training"]["resumed_from_step"] in (stopped["saved_step"], None)
    assert journey("status")["vm"]["power_state"] == "running"
    assert journey("logs")["bytes"] > 0
