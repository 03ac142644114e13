"""Whole journeys through the command line, on the embedded Azure, with the real trainer."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from .conftest import REPOSITORY, CommandLine

pytest.importorskip("tensorflow", reason="the trainer is the extra 'trainer'")

# Small enough for a test, long enough to be evicted six times.
SMALL_JOB = ("--image-size", "32", "--batch-size", "8", "--train-split", "train[:20%]", "--epochs", "28", "--seed", "7")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest over all variables of the small job, run from start to end by itself."""
    directory = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(
        [sys.executable, "-m", "trainer", "--dataset", "silhouettes", *SMALL_JOB],
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


def test_six_evictions_leave_the_same_weights_as_a_run_left_alone(cloudtrain: CommandLine, undisturbed: str) -> None:
    up = cloudtrain("up", "horses", "--json", "--", *SMALL_JOB)
    assert up.data["created"] and up.data["state"] == "running"
    assert "rehearsal" in up.err and "--cloud azure" in up.err and "silhouettes" in up.err
    for _ in range(3):
        warned = cloudtrain("simulate-eviction", "horses", "--notice", "20", "--json").data
        assert warned["steps_lost"] == 0, warned
        assert warned["saved_step"] == warned["resumed_step"], warned
        assert warned["notice_seconds"] > 0
        times = [entry["at_seconds"] for entry in warned["timeline"]]
        assert times == sorted(times)
    for _ in range(3):
        cut = cloudtrain("simulate-eviction", "horses", "--notice", "0", "--json").data
        assert cut["notice_seconds"] == 0
        assert isinstance(cut["steps_lost"], int) and cut["steps_lost"] >= 0, cut
    status = until_finished(cloudtrain, "horses")
    assert status["training"]["resumes"] == 6
    assert status["training"]["digest"] == undisturbed
    down = cloudtrain("down", "horses", "--json").data
    assert down["deleted"] and down["left"] == []
    assert any("NetworkWatcherRG" in resource for resource in down["kept"])
    assert cloudtrain("down", "horses", "--json").data["deleted"] == []
    gone = cloudtrain("status", "horses", "--json")
    assert gone.code == 3 and gone.envelope["ok"] is False


def test_up_killed_again_and_again_still_makes_one_vm_and_one_trainer(cloudtrain: CommandLine) -> None:
    chance = random.Random(3)
    for _ in range(10):
        process = cloudtrain.start("up", "stubborn", "--", *SMALL_JOB)
        try:
            process.wait(timeout=chance.uniform(0.3, 4.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
    assert cloudtrain("up", "stubborn", "--json", "--", *SMALL_JOB).data["state"] == "running"
    trainers = [p for p in cloudtrain.processes() if "trainer" in p.cmdline()]
    assert len({p.pid for p in trainers}) >= 1
    assert cloudtrain("list", "--json").data["runs"][0]["run"] == "stubborn"
    assert cloudtrain("down", "stubborn", "--json").data["left"] == []
