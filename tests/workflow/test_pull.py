"""`pull` and `down`: what a run made comes home from its storage, whole, whether its VM is up or not."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudtrain.azure import vm as vms
from cloudtrain.azure.session import open_session
from cloudtrain.clock import SystemClock
from cloudtrain.guest import durable
from tests.cli.conftest import CommandLine

from .stored_run import StoredRun, cut_short, md5, stored_file

MADE = {
    "model.keras": b"the model" * 999,
    "log.txt": b"Training has begun\nfinished\n",
    "metrics.csv": b"step,loss\n1,2\n",
    "progress.json": b'{"step": 300}',
    "tensorboard/train/events.out": b"\x00\x01" * 500,
}


def finished_run(run: StoredRun) -> None:
    for path, data in MADE.items():
        run.file(path, data)
    run.point(run.checkpoint(300), run.checkpoint(200))
    run.file("checkpoints/00000100/weights", b"no pointer names it")
    run.finished()


def only_wanted(run: StoredRun) -> dict[str, bytes]:
    return {path: data for path, data in run.sent.items() if not path.startswith("checkpoints/")}


def noise(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(f"{size} {seed}".encode()).digest(size)


def test_what_a_run_made_comes_home_and_a_second_pull_fetches_what_changed(stored: StoredRun) -> None:
    finished_run(stored)
    pulled = stored.data("pull", "horses")
    assert stored.home() == MADE
    assert pulled["directory"] == str(stored.directory / "horses")
    assert pulled["files"] == [{"path": path, "bytes": len(data)} for path, data in sorted(MADE.items())]
    assert (pulled["fetched"], pulled["unchanged"], pulled["bytes"]) == (5, 0, sum(map(len, MADE.values())))
    assert (pulled["step"], pulled["complete"], pulled["refused"]) == (300, True, [])
    stored.file("log.txt", MADE["log.txt"] + b"more\n")
    (stored.directory / "horses" / "mine.txt").write_text("a person's own file")
    again = stored.data("pull", "horses")
    assert (again["fetched"], again["unchanged"]) == (1, 4)
    assert stored.home() == MADE | {"log.txt": stored.sent["log.txt"], "mine.txt": b"a person's own file"}


def test_checkpoints_come_by_the_pointer(stored: StoredRun) -> None:
    finished_run(stored)
    stored.data("pull", "horses", "--checkpoints", "--to", "elsewhere")
    assert stored.home("elsewhere") == {
        path: data for path, data in stored.sent.items() if path != "checkpoints/00000100/weights"
    }


def test_of_an_image_that_writes_straight_into_the_mount_the_newest_set_comes_home(stored: StoredRun) -> None:
    stored.file("log.txt", b"begun\n")
    weights = b"one consistent set"
    for path, data in (("weights.h5", weights), ("sub/optimizer", weights)):
        stored.blob(f"{durable.SETS}{md5(data).hex()}/{path}", data)
    names = [("weights.h5", weights), ("sub/optimizer", weights)]
    files = [stored_file(path, f"{durable.SETS}{md5(data).hex()}/{path}", data) for path, data in names]
    stored.point({"name": "", "step": None, "files": files})
    stored.guest(progress=None)
    pulled = stored.data("pull", "horses")
    assert stored.home() == {"log.txt": b"begun\n", "weights.h5": weights, "sub/optimizer": weights}
    assert (pulled["step"], pulled["complete"]) == (None, False)


@pytest.mark.parametrize("gone", [False, True])
def test_a_vm_that_is_off_or_gone_is_not_needed(stored: StoredRun, cloudtrain: CommandLine, gone: bool) -> None:
    from cloudtrain.azure import group as groups

    finished_run(stored)
    with open_session("embedded", home=cloudtrain.home, clock=SystemClock()) as session:
        group = groups.get(session, "horses")
        (vms.delete if gone else vms.deallocate)(session, group, SystemClock())
    assert stored.data("pull", "horses")["complete"]
    assert stored.home() == MADE


def test_a_run_that_trains_is_told_apart_from_one_that_is_complete(stored: StoredRun) -> None:
    stored.file("log.txt", b"begun\n")
    stored.point(stored.checkpoint(10))
    stored.guest()
    told = stored.cli("pull", "horses")
    assert "has not finished" in told.out and "step 10" in told.out and str(stored.directory / "horses") in told.out
    stored.finished()
    stored.guest(finished={"time": 1.0}, pending=2)
    assert not stored.data("pull", "horses")["complete"]


def test_empty_storage_makes_no_directory(stored: StoredRun) -> None:
    pulled = stored.data("pull", "horses")
    assert (pulled["files"], pulled["directory"], pulled["complete"]) == ([], "", False)
    assert not (stored.directory / "horses").exists()
    assert "nothing lies in storage yet" in stored.cli("pull", "horses").out


def test_nothing_that_somebody_else_wrote_is_replaced(stored: StoredRun) -> None:
    finished_run(stored)
    place = stored.directory / "horses"
    place.mkdir()
    (place / "model.keras").write_bytes(b"of another run")
    refused = stored.cli("pull", "horses", "--to", "horses", "--json")
    assert (refused.code, refused.error["code"]) == (1, "WouldOverwrite")
    assert "model.keras" in refused.error["message"] and "--to" in refused.error["hint"]
    assert stored.home() == {"model.keras": b"of another run"}
    # Without --to the next free name is taken, and taken again.
    for _ in range(2):
        assert stored.data("pull", "horses")["directory"] == str(stored.directory / "horses-2")
    (stored.directory / "horses-2" / "log.txt").write_bytes(b"a person changed it")
    refused = stored.cli("pull", "horses", "--to", "horses-2", "--json")
    assert "log.txt" in refused.error["message"] and "model.keras" not in refused.error["message"]
    assert (stored.directory / "horses-2" / "log.txt").read_bytes() == b"a person changed it"


def test_another_run_of_the_same_name_does_not_touch_what_the_first_left(stored: StoredRun) -> None:
    finished_run(stored)
    stored.data("pull", "horses")
    note = stored.directory / "horses" / ".cloudtrain-pull.json"
    note.write_bytes(note.read_bytes().replace(b'"created": "20', b'"created": "19'))
    assert stored.data("pull", "horses")["directory"] == str(stored.directory / "horses-2")
    told = stored.cli("pull", "horses", "--to", "horses", "--json")
    assert told.error["code"] == "OfAnotherRun"


def test_names_that_lead_elsewhere_are_refused_and_told(stored: StoredRun) -> None:
    finished_run(stored)
    for name in ("models/.hidden", "models/sub/.x/y", "models//double", "models/log.txt/below", "models/" + "n" * 250):
        stored.blob(name, b"x")
    pulled = stored.data("pull", "horses")
    assert len(pulled["refused"]) == 5 and not pulled["complete"]
    assert stored.home() == MADE
    assert "no name of a file here: models/.hidden" in stored.cli("pull", "horses").out


def test_a_pointer_cannot_write_outside_the_directory(stored: StoredRun) -> None:
    data = b"evil"
    stored.blob("models/checkpoints/1/x", data)
    stored.point({"name": "1", "step": 1, "files": [stored_file("../outside", "models/checkpoints/1/x", data)]})
    assert stored.data("pull", "horses", "--checkpoints")["refused"] == ["../outside"]
    assert not (stored.directory / "outside").exists()


def test_a_damaged_blob_is_a_clear_error_and_nothing_takes_its_name(stored: StoredRun) -> None:
    finished_run(stored)
    stored.damaged("torn.keras")
    told = stored.cli("pull", "horses", "--json")
    assert (told.code, told.error["code"]) == (1, "DamagedBlob")
    assert "models/torn.keras" in told.error["message"]
    assert not (stored.directory / "horses" / "torn.keras").exists()


def test_a_checkpoint_that_is_not_as_the_pointer_says_is_damage(stored: StoredRun) -> None:
    checkpoint = stored.checkpoint(10)
    stored.point(checkpoint)
    stored.file("log.txt", b"begun\n")
    stored.file("checkpoints/00000010/weights", b"something else")
    told = stored.cli("pull", "horses", "--checkpoints", "--json")
    assert (told.code, told.error["code"]) == (1, "DamagedBlob")
    assert "checkpoints/00000010/weights" in told.error["message"]
    assert stored.data("pull", "horses")["fetched"] == 1


def test_what_is_replaced_while_it_is_fetched_is_fetched_as_it_is_then(
    stored: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloudtrain.azure import blobs

    finished_run(stored)
    plain, replacements = blobs.fetch, [b"second", b"third"]

    def fetch(container: Any, blob: blobs.BlobInfo, *rest: Any) -> None:
        if blob.name == "models/metrics.csv" and replacements:
            stored.file("metrics.csv", replacements.pop(0))
        plain(container, blob, *rest)

    monkeypatch.setattr(blobs, "fetch", fetch)
    pulled = stored.data("pull", "horses")
    assert stored.home() == only_wanted(stored) and stored.sent["metrics.csv"] == b"third"
    assert (pulled["fetched"], pulled["complete"]) == (5, True)


def test_a_pull_that_is_killed_again_and_again_ends_whole_and_keeps_what_it_had(
    stored: StoredRun, cloudtrain: CommandLine
) -> None:
    for number in range(3):
        stored.file(f"part-{number}.keras", noise(30_000_000, number))
    stored.finished()
    place, chance, had = cloudtrain.directory / "horses", random.Random(7), 0
    command = [sys.executable, "-m", "cloudtrain", "pull", "horses", "--json"]
    for kills in range(4):
        process = subprocess.Popen(
            command,
            cwd=cloudtrain.directory,
            env=cloudtrain.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        goal = had + chance.randrange(1, 20_000_000)
        while process.poll() is None and stored_bytes(place) < goal:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in place.glob("*.keras"):
            assert path.read_bytes() == stored.sent[path.name]  # a name stands for the whole file, always
        assert stored_bytes(place) >= had, kills
        had = stored_bytes(place)
    stored.file("part-0.keras", noise(1_000, 9))  # what a killed pull wrote may be replaced, too
    done = stored.data("pull", "horses")
    assert stored.home() == stored.sent
    assert done["fetched"] + done["unchanged"] == 3
    assert [path.name for path in place.iterdir() if path.name.endswith(".part")] == []


def stored_bytes(place: Path) -> int:
    """Of whole files and of parts."""
    total = 0
    for path in place.glob("*part*") if place.exists() else ():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            total += 0  # just renamed
    return total


def test_ctrl_c_keeps_what_has_arrived_and_the_next_pull_asks_for_the_rest_alone(
    stored: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloudtrain import display

    stored.file("model.keras", noise(20_000_000))
    stored.finished()
    with monkeypatch.context() as interrupting:

        def amount(self: Any, done: int, total: int) -> None:
            raise KeyboardInterrupt

        interrupting.setattr(display.Timed, "amount", amount)
        told = stored.cli("pull", "horses")
    assert told.code == 130 and "what has arrived stays" in told.err and "cloudtrain pull horses" in told.err
    (part,) = (stored.directory / "horses").glob(".*.part")
    kept = part.stat().st_size
    assert kept == 8 * 1024 * 1024
    asked = ranges_asked(monkeypatch)
    stored.data("pull", "horses")
    assert stored.home() == stored.sent
    model = [first for name, first in asked if name.endswith("/models/model.keras")]
    assert min(model) == kept and sorted(set(model)) == sorted(model)
    asked.clear()
    stored.data("pull", "horses")
    assert not [name for name, _ in asked if "/models/" in name]  # what is here, whole, is not asked for again


@pytest.mark.parametrize("reset", [False, True])
def test_a_file_that_breaks_off_again_and_again_is_the_networks_fault(
    stored: StoredRun, monkeypatch: pytest.MonkeyPatch, reset: bool
) -> None:
    finished_run(stored)
    with cut_short(monkeypatch, "/models/model.keras", reset=reset):
        told = stored.cli("pull", "horses", "--json")
    assert (told.code, told.error["code"]) == (8, "CloudUnreachable")
    assert "could not be reached while fetching the blob 'models/model.keras'" in told.error["message"]
    assert "Check the network" in told.error["hint"]
    stored.data("pull", "horses")
    assert stored.home() == MADE


def ranges_asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Path, and first byte, of whatever is read of blobs from now on."""
    from cloudtrain.emulator.embedded import EmbeddedAzure

    asked: list[tuple[str, int]] = []
    plain = EmbeddedAzure.__call__

    def call(self: Any, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        if environ["REQUEST_METHOD"] == "GET" and (wanted := environ.get("HTTP_X_MS_RANGE")):
            asked.append((environ["PATH_INFO"], int(wanted.removeprefix("bytes=").partition("-")[0])))
        return plain(self, environ, start)

    monkeypatch.setattr(EmbeddedAzure, "__call__", call)
    return asked


def test_two_pulls_into_one_directory_wait_for_each_other(stored: StoredRun, cloudtrain: CommandLine) -> None:
    import fcntl

    finished_run(stored)
    place = stored.directory / "horses"
    place.mkdir()
    lock = os.open(place, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    process = subprocess.Popen(
        [sys.executable, "-m", "cloudtrain", "pull", "horses", "-v"],
        cwd=cloudtrain.directory,
        env=cloudtrain.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = next((line for line in process.stderr if "waiting for another pull" in line), "")
    os.close(lock)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert said and "all verified" in out
    assert stored.home() == MADE


# refusals


def test_who_may_assign_roles_needs_none_beforehand(stored: StoredRun) -> None:
    finished_run(stored)
    stored.take_the_role()
    assert stored.data("pull", "horses")["complete"]


def test_without_any_right_on_the_blobs_the_error_names_the_role_and_down_keeps_the_run(stored: StoredRun) -> None:
    finished_run(stored)
    stored.take_the_role()
    for operation in ("RoleAssignments_Create", "StorageAccounts_Update|StorageAccounts_ListKeys"):
        stored.data(
            "emulator", "fault", "add", "refuse", "--code", "AuthorizationFailed", "--on", operation, "--count", "0"
        )
    for verb in ("pull", "down"):
        told = stored.cli(verb, "horses", "--json")
        assert (told.code, told.error["code"]) == (4, "NoDataRole"), told
        assert "Storage Blob Data Reader" in told.error["hint"]
    assert "Nothing was deleted" in told.error["message"] and "--discard" in told.error["hint"]
    assert stored.data("status", "horses")["state"] == "running"


def test_a_run_whose_storage_is_gone_says_what_to_do_and_can_be_deleted(stored: StoredRun) -> None:
    stored.session.storage.storage_accounts.delete("cloudtrain-horses", stored.account.account)
    told = stored.cli("pull", "horses", "--json")
    assert (told.code, told.error["code"]) == (1, "NoStorage")
    assert "cloudtrain up horses" in told.error["hint"]
    gone = stored.data("down", "horses")
    assert gone["pulled"] is None and gone["deleted"] and gone["left"] == []


def test_a_place_that_cannot_be_written_is_named(stored: StoredRun) -> None:
    finished_run(stored)
    (stored.directory / "file").write_text("")
    told = stored.cli("pull", "horses", "--to", "file/below", "--json")
    assert (told.code, told.error["code"]) == (1, "CannotWrite")
    assert "file/below" in told.error["message"] and "--to" in told.error["hint"]
    assert stored.cli("pull", "nobody", "--json").code == 3


# down


def test_down_brings_the_model_home_and_then_deletes_everything(stored: StoredRun) -> None:
    finished_run(stored)
    down = stored.cli("down", "horses")
    assert down.code == 0, down
    assert "brought home 5 files" in down.out and str(stored.directory / "horses") in down.out
    assert "Nothing of the run is left" in down.out
    assert stored.home() == MADE
    again = stored.data("down", "horses")
    assert (again["pulled"], again["deleted"]) == (None, [])


def test_down_of_an_unfinished_run_brings_the_newest_checkpoint_too_and_says_how_old_it_is(stored: StoredRun) -> None:
    stored.file("log.txt", b"begun\n")
    stored.point(stored.checkpoint(20), stored.checkpoint(10))
    stored.guest(old=7.0)
    stored.data("pull", "horses", "--to", "elsewhere")
    down = stored.cli("down", "horses", "--json")
    assert down.code == 0
    assert set(stored.home("elsewhere")) == {"log.txt", "checkpoints/00000020/weights"}
    size = sum(map(len, stored.home("elsewhere").values()))
    assert down.envelope["data"]["pulled"] == {
        "directory": str(stored.directory / "elsewhere"),
        "files": 2,
        "bytes": size,
    }
    assert "newest checkpoint is at step 20" in down.err and " s ago" in down.err


def test_down_discard_fetches_nothing(stored: StoredRun) -> None:
    finished_run(stored)
    assert stored.data("down", "horses", "--discard")["pulled"] is None
    assert not (stored.directory / "horses").exists()
    assert stored.data("list")["runs"] == []


def test_down_of_a_run_with_empty_storage_says_that_there_was_nothing(stored: StoredRun) -> None:
    down = stored.cli("down", "horses", "--json")
    assert down.envelope["data"]["pulled"] is None and down.envelope["data"]["left"] == []
    assert "nothing to fetch" in down.err


@pytest.mark.parametrize("trouble", ["damage", "directory"])
def test_where_it_cannot_be_brought_home_down_keeps_the_run(stored: StoredRun, trouble: str) -> None:
    finished_run(stored)
    if trouble == "damage":
        stored.damaged("torn.keras")
    else:
        for name in ("horses", *(f"horses-{n}" for n in range(2, 100))):
            (stored.directory / name).write_text("a file is in the way")
    told = stored.cli("down", "horses", "--json")
    assert told.code == 1 and told.error["message"].startswith("Nothing was deleted")
    assert "cloudtrain down horses --discard" in told.error["hint"]
    assert [run["run"] for run in stored.data("list")["runs"]] == ["horses"]
    assert stored.data("down", "horses", "--discard")["left"] == []


def test_down_of_a_group_that_is_being_deleted_ends_well(stored: StoredRun) -> None:
    finished_run(stored)
    stored.session.resources.resource_groups.begin_delete("cloudtrain-horses", polling=False)
    assert stored.data("down", "horses")["left"] == []
