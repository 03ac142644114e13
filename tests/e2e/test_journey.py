"""Whole journeys through the command line, on the embedded Azure, with the real trainer."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from .conftest import REPOSITORY, CommandLine
from .journey import Journey, removed, whole_run

pytest.importorskip("tensorflow", reason="the trainer is the extra 'trainer'")

# Small enough for a test, long enough for what is done to it.
SMALL_JOB = ("--image-size", "64", "--batch-size", "16", "--epochs", "9", "--seed", "7")
EVICTIONS = 6
EVICTED_JOB = (*SMALL_JOB, "--epochs", str(3 + EVICTIONS))


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest over all variables of the small job, run from start to end by itself."""
    directory = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(
        [sys.executable, "-m", "trainer", "--dataset", "silhouettes", *EVICTED_JOB],
        cwd=REPOSITORY,
        env=os.environ | {"CHECKPOINT_DIR": str(directory / "models"), "TFDS_DATA_DIR": str(directory / "data")},
        check=True,
        capture_output=True,
        timeout=300,
    )
    return progress(directory / "models")["digest"]


def progress(models: Path) -> dict:
    return json.loads((models / "progress.json").read_bytes())


def until_finished(cloudtrain: CommandLine, run: str, seconds: float = 240) -> dict:
    """The status once training has finished; fails when that takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        status = cloudtrain("status", run, "--json").data
        if status["state"] == "finished":
            return status
        assert status["state"] in ("running", "provisioning"), status
        assert time.monotonic() < deadline, status


def events(eviction: dict) -> list[str]:
    return [entry["event"] for entry in eviction["timeline"]]


@pytest.mark.long
def test_evictions_leave_the_same_weights_as_a_run_left_alone(cloudtrain: CommandLine, undisturbed: str) -> None:
    up = cloudtrain("up", "horses", "--json", "--", *EVICTED_JOB)
    assert up.data["created"] and up.data["state"] == "running"
    assert "rehearsal" in up.err and "--cloud azure" in up.err and "silhouettes" in up.err
    for _ in range(EVICTIONS // 2):
        warned = cloudtrain("simulate-eviction", "horses", "--notice", "20", "--json").data
        assert warned["steps_lost"] == 0, warned
        assert warned["saved_step"] == warned["resumed_step"], warned
        assert warned["notice_seconds"] > 0
        times = [entry["at_seconds"] for entry in warned["timeline"]]
        assert times == sorted(times)
    for _ in range(EVICTIONS // 2):
        cut = cloudtrain("simulate-eviction", "horses", "--notice", "0", "--json").data
        assert cut["notice_seconds"] == 0
        assert isinstance(cut["steps_lost"], int) and cut["steps_lost"] >= 0, cut
    status = until_finished(cloudtrain, "horses")
    assert status["training"]["resumes"] == EVICTIONS
    assert (status["recovery"]["evictions"], status["recovery"]["with_notice"]) == (EVICTIONS, EVICTIONS // 2)
    assert status["training"]["digest"] == undisturbed
    down = cloudtrain("down", "horses", "--json").data
    assert down["deleted"] and down["left"] == []
    assert any("NetworkWatcherRG" in resource for resource in down["kept"])
    assert cloudtrain("down", "horses", "--json").data["deleted"] == []
    gone = cloudtrain("status", "horses", "--json")
    assert gone.code == 3 and gone.envelope["ok"] is False


def test_up_killed_at_ten_moments_still_makes_one_vm_and_one_trainer(cloudtrain: CommandLine) -> None:
    chance = random.Random(3)
    for _ in range(10):
        process = cloudtrain.start("up", "stubborn", "--", *SMALL_JOB)
        try:
            process.wait(timeout=chance.uniform(0.5, 5.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    again = cloudtrain("up", "stubborn", "--json", "--", *SMALL_JOB).data
    assert again["state"] == "running" and again["vm"]["name"] == "stubborn-g1"
    assert len(cloudtrain.trainers()) == 1
    vms = cloudtrain("emulator", "status", "--json").data["vms"]
    assert [vm["name"] for vm in vms] == ["stubborn-g1"]
    assert cloudtrain("down", "stubborn", "--json").data["left"] == []
    assert cloudtrain.trainers() == []


def test_the_journey_that_can_be_made_on_azure_beside_a_run_that_it_does_not_touch(cloudtrain: CommandLine) -> None:
    # The other one has enough to do to be there at the end, and stands still meanwhile: it is its state that counts.
    cloudtrain("up", "two", "--json", "--", *SMALL_JOB, "--epochs", "90")
    trainers = cloudtrain.trainers()
    for trainer in trainers:
        trainer.suspend()
    with removed(Journey(cloudtrain, "one", ("--cloud", "embedded"), minutes=5)) as journey:
        whole_run(journey, spec=(), trainer=SMALL_JOB, max_price=0.05)
        states = {run["run"]: run["state"] for run in cloudtrain("list", "--json").data["runs"]}
        assert states == {"one": "running", "two": "running"}
    for trainer in trainers:
        trainer.resume()
    assert cloudtrain.trainers() == trainers
    assert cloudtrain("status", "two", "--json").data["state"] == "running"
    log = cloudtrain("logs", "two").out
    assert log.startswith("Training has begun at: ")
    assert "\x1b" not in log


def test_a_refused_vm_leaves_nothing_half_made(cloudtrain: CommandLine) -> None:
    refusals = {
        ("--size", "Standard_B1s"): "AzureSpotIsNotSupportedForThisVMSize",
        ("--size", "Standard_Nonsense9"): "SizeNotFound",
        ("--location", "atlantis"): "LocationNotFound",
        ("--max-price", "0.00001"): "SpotPriceGreaterThanProvidedMaxPrice",
        ("--vm-image", "nobody:nothing:none:latest"): "ImageNotFound",
    }
    for flags, code in refusals.items():
        refused = cloudtrain("up", "never", *flags, "--json")
        assert (refused.code, refused.envelope["errors"][0]["code"]) == (4, code), refused
        assert refused.envelope["errors"][0]["hint"]
        assert cloudtrain("list", "--json").data["runs"] == []
    assert not list(cloudtrain.home.glob("runs/*/*"))


def test_a_damaged_state_database_is_named_and_reset_mends_it(cloudtrain: CommandLine) -> None:
    assert cloudtrain("list", "--json").data["runs"] == []
    (database,) = cloudtrain.home.glob("emulator/*.db")
    database.write_bytes(b"this is no database" * 1000)
    damaged = cloudtrain("list", "--json")
    assert damaged.code == 1 and damaged.envelope["errors"][0]["code"] == "DamagedStore"
    assert "emulator reset" in damaged.envelope["errors"][0]["hint"]
    assert cloudtrain("emulator", "reset", "--yes").code == 0
    assert cloudtrain("list", "--json").data["runs"] == []


def test_a_host_that_went_down_is_an_eviction_from_which_up_goes_on(cloudtrain: CommandLine) -> None:
    cloudtrain("up", "host", "--json", "--", *SMALL_JOB)
    for process in cloudtrain.processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # a VM's supervisor takes the others along
            process.kill()
    assert cloudtrain("status", "host", "--json").data["state"] == "evicted"
    again = cloudtrain("up", "host", "--json").data
    assert again["state"] == "running" and not again["created"]
    assert again["training"]["resumed_from_step"] is not None


def test_a_trainer_that_fails_is_told_with_its_own_words(cloudtrain: CommandLine) -> None:
    failed = cloudtrain("up", "wrong", "--json", "--", "--model", "NoSuchModel")
    assert failed.code == 5
    (error,) = failed.envelope["errors"]
    assert error["code"] == "TrainingFailed" and "NoSuchModel" in error["message"]
    assert cloudtrain("status", "wrong", "--json").data["state"] == "failed"
    assert cloudtrain("down", "wrong", "--json").data["left"] == []
