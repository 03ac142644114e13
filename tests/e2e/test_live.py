"""The whole journey on real Azure, for money: only with CLOUDTRAIN_LIVE=1 and a subscription (README says how)."""

import json
import os
import secrets
import shlex
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import CommandLine, Outcome
from .journey import Journey, removed, whole_run

NEEDED = ("AZURE_SUBSCRIPTION_ID", "CLOUDTRAIN_LIVE_IMAGE")


@pytest.fixture
def ended_by_sigterm() -> Iterator[None]:
    """A test that is asked to end takes its VM along: SIGTERM alone would end Python without any clean-up."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(os.environ.get("CLOUDTRAIN_LIVE") != "1", reason="costs money: only with CLOUDTRAIN_LIVE=1")
@pytest.mark.usefixtures("ended_by_sigterm")
def test_the_whole_journey_on_azure(cloudtrain: CommandLine) -> None:
    missing = [name for name in NEEDED if not os.environ.get(name)]
    assert not missing, f"set {', '.join(missing)}"
    said = {name: os.environ.get(f"CLOUDTRAIN_LIVE_{name}") for name in ("LOCATION", "SIZE", "VM_IMAGE", "ARGUMENTS")}
    place = ("--cloud", "azure", "--subscription", os.environ["AZURE_SUBSCRIPTION_ID"])
    flags = [
        ("--location", said["LOCATION"]),
        ("--size", said["SIZE"]),
        ("--vm-image", said["VM_IMAGE"] or "ubuntu-hpc"),
    ]
    spec = [part for flag, value in flags if value for part in (flag, value)]
    journey = Journey(
        cloudtrain,
        run=f"live-{secrets.token_hex(4)}",
        place=place,
        minutes=float(os.environ.get("CLOUDTRAIN_LIVE_MINUTES", "60")),
    )
    with removed(journey):
        whole_run(
            journey,
            spec=("--image", os.environ["CLOUDTRAIN_LIVE_IMAGE"], *spec),
            trainer=tuple(shlex.split(said["ARGUMENTS"] or "")),
            max_price=float(os.environ.get("CLOUDTRAIN_LIVE_MAX_PRICE", "0.05")),
        )


class Played:
    """A command line that answers as told, to see what the journey does about it."""

    def __init__(self, **codes: list[int]) -> None:
        self.codes = codes
        self.verbs: list[str] = []

    def __call__(self, verb: str, *arguments: str, timeout: float) -> Outcome:
        self.verbs.append(verb)
        code = self.codes.get(verb, [0]).pop(0) if self.codes.get(verb) else 0
        data: dict[str, Any] = {"checks": [], "left": [], "runs": []}
        return Outcome(code, json.dumps({"data": data}), "")


def journey_of(played: Played, minutes: float = 1) -> Journey:
    return Journey(played, "live-x", ("--cloud", "azure"), minutes)


def test_whatever_fails_the_run_is_removed() -> None:
    for wrong in (Played(doctor=[4]), Played(doctor=[8])):
        with pytest.raises(AssertionError, match="doctor: exit"), removed(journey_of(wrong)) as journey:
            whole_run(journey, (), (), 0.05)
        assert wrong.verbs == ["doctor", "down", "list"]


def test_a_time_that_is_up_ends_the_journey_and_removes_the_run() -> None:
    played = Played()
    with pytest.raises(AssertionError, match="minutes are over"), removed(journey_of(played, minutes=0)) as journey:
        whole_run(journey, (), (), 0.05)
    assert played.verbs == ["down", "list"]


def test_down_is_tried_again_and_a_run_that_stays_is_told() -> None:
    patient = Played(down=[8, 8, 0])
    journey_of(patient).down()
    assert patient.verbs == ["down", "down", "down", "list"]
    with pytest.raises(AssertionError, match="az group delete -n cloudtrain-live-x"):
        journey_of(Played(down=[8, 8, 6])).down()
