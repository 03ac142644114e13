"""`status`, `history` and `logs` from the run's storage: at once, whole, and from the VM where storage cannot tell."""

import json
import math
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from azure.storage.blob import ContainerClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudtrain.azure import group as groups
from cloudtrain.azure import vm as vms
from cloudtrain.clock import SystemClock
from cloudtrain.guest import durable
from cloudtrain.lifecycle.stored import StoredLog

from ..emulator.blob_services import Service
from .stored_run import StoredRun, cut_short, send_log, until


def power(run: StoredRun, change: Callable[..., Any]) -> None:
    change(run.session, groups.get(run.session, "horses"), SystemClock())


# status and history


def test_status_tells_what_the_guest_wrote_without_asking_the_vm(stored: StoredRun) -> None:
    stored.guest()
    now = time.time()
    stored.events(
        {"time": now - 50, "event": "first_step"},
        {"time": now - 40, "event": "notice", "notice_seconds": 30.0},
        {"time": now - 39, "event": "gone", "saved_step": 10},
        {"time": now - 20, "event": "session"},
        {"time": now - 19, "event": "first_step", "resumed_from_step": 10, "steps_lost": 2},
    )
    asked = stored.count_run_commands()
    status = stored.data("status", "horses")
    history = stored.data("history", "horses")
    assert asked() == 0
    assert (status["state"], status["source"], status["note"]) == ("running", "storage", "")
    assert (status["training"]["step"], status["training"]["under_way"]) == (12, True)
    assert abs(time.time() - _epoch(status["training"]["as_of"])) < 60
    assert (status["recovery"]["evictions"], status["recovery"]["steps_lost"]) == (1, 2)
    assert [entry["what"] for entry in history["events"]][:5] == ["began", "notice", "saved", "booted", "resumed"]
    assert (history["evictions"], history["with_notice"], history["note"]) == (1, 1, "")
    assert "(from storage)" in stored.cli("status", "horses").out


def test_a_watcher_reads_storage_keeps_what_is_new_and_does_not_ask_the_vm(stored: StoredRun) -> None:
    now = time.time()
    stored.guest()
    stored.events({"time": now - 50, "event": "first_step"}, {"time": now - 40, "event": "notice"})
    asked = stored.count_run_commands()
    assert "step 12 of 300" in stored.cli("watch", "horses", "--once").out
    stored.guest(progress={"step": 20, "total_steps": 300, "saved_step": 20})
    stored.events({"time": now - 5, "event": "first_step", "resumed_from_step": 10, "steps_lost": 2})
    assert "resumed from step 10, 2 steps lost" in stored.cli("watch", "horses", "--once").out
    assert asked() == 0
    # What the tags tell is no older than storage, so that whoever reads next need not ask the VM either.
    assert stored.data("status", "horses")["source"] == "storage" and asked() == 0
    kept = groups.get(stored.session, "horses").progress
    assert (kept.step, kept.saved) == (20, 20)
    stored.guest(old=70.0)
    assert stored.cli("watch", "horses", "--once").code == 0
    assert asked() == 1


def _epoch(iso: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(iso).timestamp()


STALE: dict[str, dict[str, Any]] = {
    "written too long ago": {"old": 70.0},
    "of another generation": {"generation": 7},
    "older than what the tags tell": {"old": 30.0},
}


@pytest.mark.parametrize("why", STALE)
def test_status_asks_the_vm_where_what_lies_in_storage_is_old(stored: StoredRun, why: str) -> None:
    stored.guest(**STALE[why])
    asked = stored.count_run_commands()
    status = stored.data("status", "horses")
    assert asked() == 1  # and this VM does not answer
    assert "could not be asked" in status["note"]
    assert (status["state"], status["source"]) == ("running", "tags")


def test_what_was_written_right_before_training_was_seen_to_be_under_way_is_old(
    stored: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_past = math.floor(time.time()) + 0.5
    monkeypatch.setattr("tests.cli.untrained.time", SimpleNamespace(time=lambda: half_past))
    stored.data("up", "horses")
    stored.guest(at=half_past - 0.3, container=None)
    asked = stored.count_run_commands()
    assert stored.data("status", "horses")["state"] == "running" and asked() == 1
    stored.guest(at=half_past)
    status = stored.data("status", "horses")
    assert (status["state"], status["source"]) == ("running", "storage") and asked() == 1


def test_a_disk_is_not_given_up_while_storage_lacks_the_save_of_its_eviction(
    stored: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["cloudtrain.recovery.decide"], "PAUSES", (0.0,))
    stored.data("up", "horses", "--other-location", "westus2")
    stored.point(stored.checkpoint(10))
    group = groups.get(stored.session, "horses")
    stored.session.set_notice(f"{group.id}/providers/Microsoft.Compute/virtualMachines/horses-g1", 0)
    vms.simulate_eviction(stored.session, group)
    until(lambda: bool(stored.data("status", "horses")["vm"]["power_state"] == "deallocated"))
    stored.data("emulator", "set", "--no-capacity", "--location", "eastus")
    evicting: dict[str, Any] = {"event_id": "E"}
    notice, gone = ({"time": time.time(), "event": event, "saved_step": 12} for event in ("notice", "gone"))
    stored.guest(evicting=evicting, events=[notice])
    doubt = "the VM's disk has work that storage has not"
    until(lambda: doubt in stored.cli("watch", "horses", "--once").out)
    for _ in range(2):
        assert doubt in stored.cli("watch", "horses", "--once").out
    saved = {"step": 12, "total_steps": 300, "saved_step": 12}
    stored.guest(evicting=evicting, events=[notice, gone], progress=saved)
    assert doubt in stored.cli("watch", "horses", "--once").out
    stored.point(stored.checkpoint(12))
    until(lambda: "made anew: Standard_D2s_v3 in westus2" in stored.cli("watch", "horses", "--once").out)
    assert stored.data("status", "horses")["vm"]["location"] == "westus2"


def test_without_the_role_status_notes_it_once_and_asks_the_vm(stored: StoredRun) -> None:
    stored.guest()
    stored.take_the_role()
    asked = stored.count_run_commands()
    told = stored.cli("status", "horses", "--json")
    assert (told.code, asked()) == (0, 1)
    assert told.err.count("storage cannot be read") == 1 and "no role on the blobs" in told.err
    again = stored.cli("logs", "horses", "--json")
    assert again.error["code"] == "GuestUnreachable" and again.err.count("storage cannot be read") == 1


def test_blobs_that_do_not_answer_are_not_waited_for_where_the_vm_can_be_asked(stored: StoredRun) -> None:
    stored.guest()
    stored.data("emulator", "fault", "add", "drop-before", "--on", "Blobs_*", "--count", "1000")
    told = stored.cli("status", "horses", "--json")
    assert told.code == 0 and "storage cannot be read" in told.err
    # Once more, and not the six times of what has to be had.
    assert stored.data("emulator", "fault", "list")["faults"][0]["struck"] == 2
    # Nor does a watcher stand still, where the VM does not put itself off: the tag says whose turn it is.
    groups.set_tags(stored.session, groups.get(stored.session, "horses"), {groups.TAG_ENDS: "false"})
    power(stored, vms.deallocate)
    assert "somebody stopped the VM" in stored.cli("watch", "horses", "--once").out
    assert groups.get(stored.session, "horses").intent is groups.Intent.STOPPED


def put_off_after_its_end(stored: StoredRun) -> None:
    """The run has finished, its VM put itself off, and nobody has seen it yet."""
    stored.finished()
    at = datetime.now(UTC) - timedelta(seconds=60)
    seen = groups.progress_tags(groups.LastProgress(at=at.isoformat(timespec="seconds"), step=290, total=300))
    groups.set_tags(stored.session, groups.get(stored.session, "horses"), {groups.TAG_ENDS: "true", **seen})
    power(stored, vms.deallocate)


def test_a_vm_that_may_have_put_itself_off_is_not_judged_while_storage_does_not_answer(stored: StoredRun) -> None:
    put_off_after_its_end(stored)
    stored.data("emulator", "fault", "add", "drop-before", "--on", "Blobs_*", "--count", "1000")
    told = stored.cli("watch", "horses", "--once", "--json")
    assert told.code == 8 and groups.get(stored.session, "horses").intent is groups.Intent.RUNNING
    stored.data("emulator", "fault", "clear")
    assert "finished" in stored.cli("watch", "horses", "--once").out
    assert groups.get(stored.session, "horses").intent is groups.Intent.FINISHED


def test_nor_is_it_judged_while_what_storage_answers_breaks_off(
    stored: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_off_after_its_end(stored)
    with cut_short(monkeypatch, durable.GUEST, reset=False):
        told = stored.cli("watch", "horses", "--once", "--json")
    assert (told.code, told.error["code"]) == (8, "CloudUnreachable")
    assert groups.get(stored.session, "horses").intent is groups.Intent.RUNNING
    assert "finished" in stored.cli("watch", "horses", "--once").out
    assert groups.get(stored.session, "horses").intent is groups.Intent.FINISHED


def test_an_answer_of_resource_manager_that_breaks_off_is_no_refusal(
    stored: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cut_short(monkeypatch, "/virtualMachines/", reset=False):
        told = stored.cli("status", "horses", "--json")
    assert (told.code, told.error["code"]) == (8, "CloudUnreachable")


def test_only_azure_says_whether_a_vm_runs(stored: StoredRun) -> None:
    stored.guest()
    power(stored, vms.deallocate)
    status = stored.data("status", "horses")
    assert (status["state"], status["source"]) == ("evicted", "storage")
    assert (status["training"]["step"], status["training"]["under_way"]) == (12, False)


def test_a_guest_that_finished_and_put_its_vm_off_is_finished_from_then_on(stored: StoredRun) -> None:
    stored.finished()
    power(stored, vms.deallocate)
    assert stored.data("status", "horses")["state"] == "finished"
    assert stored.data("list")["runs"][0]["state"] == "finished"
    refused = stored.cli("simulate-eviction", "horses", "--json")
    assert refused.error["code"] == "TrainingFinished" and "up horses -- ARGUMENTS" in refused.error["hint"]


def test_a_finish_from_before_the_last_start_does_not_count(stored: StoredRun) -> None:
    stored.finished(time=1.0)
    content = json.loads(stored.container.download_blob(durable.GUEST).readall())
    stored.blob(durable.GUEST, json.dumps(content | {"time": time.time() - 3600}).encode())
    power(stored, vms.deallocate)
    assert stored.data("status", "horses")["state"] == "evicted"


def test_what_storage_refuses_is_said_and_what_it_holds_is_never_trusted_blindly(stored: StoredRun) -> None:
    stored.guest()
    content = json.loads(stored.container.download_blob(durable.GUEST).readall())
    content["storage"]["refused"] = "AuthenticationFailed"
    stored.blob(durable.GUEST, json.dumps(content).encode())
    assert "AuthenticationFailed" in stored.data("status", "horses")["note"]
    stored.blob(durable.GUEST, b'{"time": "no time", "facts": [')
    assert stored.data("status", "horses")["source"] == "tags"


# logs


def test_a_log_comes_whole_over_all_its_blobs_and_from_a_vm_that_is_off(stored: StoredRun) -> None:
    pieces = [f"{number}: ".encode() + b"x" * 9000 + b"\n" for number in range(1, 4)]
    for number, piece in enumerate(pieces, start=1):
        stored.log("container", number, piece[:100])
        stored.log("container", number, piece[100:])
    stored.log("container-of-another", 1, b"not this one")
    stored.file("log.txt", b"Training has begun\nfinished\n")
    stored.guest()
    asked = stored.count_run_commands()
    for change in (None, vms.deallocate):
        if change is not None:
            power(stored, change)
        told = stored.data("logs", "horses", "--source", "container")
        assert told["text"].encode() == b"".join(pieces)
        assert told["bytes"] == sum(map(len, pieces))
        assert stored.cli("logs", "horses").out == "Training has begun\nfinished\n"
        assert stored.data("logs", "horses", "--source", "eviction")["text"] == ""
    assert asked() == 0


def test_what_the_vm_cannot_tell_any_more_storage_tells_and_says_so(stored: StoredRun) -> None:
    stored.file("log.txt", b"begun\n")
    stored.guest(old=3600.0)
    told = stored.cli("logs", "horses")
    assert (told.code, told.out) == (0, "begun\n")
    assert "could not be asked" in told.err


Step = Callable[[], object]


@contextmanager
def while_somebody_waits(monkeypatch: pytest.MonkeyPatch, steps: list[Step]) -> Any:
    """One step at each pause of `logs -f`. What is left of them at the end was never waited for."""
    from cloudtrain.azure import session as sessions
    from cloudtrain.lifecycle import stored as reading

    pause = 0.015625

    class Clock(SystemClock):
        def sleep(self, seconds: float) -> None:
            if seconds == pause:
                assert steps, "logs -f goes on after the end"
                steps.pop(0)()
            else:
                super().sleep(seconds)

    with monkeypatch.context() as patched:
        patched.setattr(sessions, "REHEARSAL_PUBLISH_SECONDS", pause)
        patched.setattr(reading, "MISSED_UNTIL_STALE", 60 / pause)
        patched.setattr("cloudtrain.clock.SystemClock", Clock)
        yield
    assert steps == []


class Log:
    """A log as its writer sends it; `written` is all of it."""

    def __init__(self, container: ContainerClient) -> None:
        self.container, self.number, self.written = container, 1, b""

    def append(self, data: bytes) -> None:
        send_log(self.container, "container", self.number, data)
        self.written += data

    def step(self, what: str, data: bytes) -> None:
        if what == "last words, then the next blob":
            self.append(b"the last of its blob")
        if what != "more":
            self.number += 1
        if what != "an empty blob":
            self.append(data)


STEPS = ("more", "the next blob", "last words, then the next blob", "an empty blob")
stories = st.lists(st.tuples(st.sampled_from(STEPS), st.binary(max_size=300), st.booleans()), max_size=10)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stories)
def test_reading_on_over_blobs_loses_and_repeats_no_byte(
    embedded_service: Service, story: list[tuple[str, bytes, bool]]
) -> None:
    container = embedded_service.keyed().create_container(f"c-{uuid.uuid4().hex}")
    log, told = Log(container), list[str]()
    reader = StoredLog(container, "container", told.append)
    for what, data, looked_at in story:
        log.step(what, data)
        if looked_at:
            reader.read()
            assert reader.total == len(log.written)
    reader.read()
    reader.end()
    assert "".join(told) == log.written.decode("utf-8", "replace")


def test_following_a_log_ends_after_its_last_blob_and_cuts_no_character_in_two(
    stored: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(stored.container)
    log.append("begun ü".encode()[:-1])
    stored.guest()
    steps = [
        lambda: log.append("ü\n".encode()[1:]),
        lambda: log.step("last words, then the next blob", b"two\n"),
        lambda: None,
        stored.finished,
        lambda: (log.append(b"three\n"), stored.finished()),
    ]
    with while_somebody_waits(monkeypatch, steps):
        told = stored.cli("logs", "horses", "--source", "container", "-f", "--json")
    *lines, end = [json.loads(line) for line in told.out.splitlines()]
    assert end["data"] == {"run": "horses", "source": "container", "bytes": len(log.written)}
    assert [line["line"] for line in lines] == ["begun ü", "the last of its blobtwo", "three"]


def test_following_the_journal_over_an_eviction_and_a_disk_that_was_restored(
    stored: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = b"Training has begun\n" + b"a line of the first VM\n" * 30
    cut = b"a line that the new VM's copy lacks\n" * 20
    resumed = b"Training has resumed\n" + b"a line of the second VM\n" * 30

    def restart() -> None:
        power(stored, vms.start)

    steps = [
        lambda: stored.file("log.txt", begun + cut),
        lambda: power(stored, vms.deallocate),
        lambda: None,  # off, and wanted: waited for
        restart,
        lambda: stored.file("log.txt", begun),
        lambda: stored.file("log.txt", begun + resumed[:40]),
        lambda: stored.file("log.txt", begun + resumed),
        stored.finished,
        stored.finished,
    ]
    stored.file("log.txt", begun)
    stored.guest()
    with while_somebody_waits(monkeypatch, steps):
        told = stored.cli("logs", "horses", "-f")
    assert told.code == 0
    assert told.out.encode() == begun + cut + resumed
    assert told.err.count("Waiting for it") == 1


def test_following_ends_when_the_run_is_stopped_and_reads_what_came_last(
    stored: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        stored.file("log.txt", b"begun\nsaved\n")
        group = groups.get(stored.session, "horses")
        groups.set_intent(stored.session, group, groups.Intent.STOPPED, SystemClock().now())
        power(stored, vms.deallocate)

    stored.file("log.txt", b"begun\n")
    stored.guest()
    with while_somebody_waits(monkeypatch, [stop]):
        assert stored.cli("logs", "horses", "-f").out == "begun\nsaved\n"


def test_up_follow_sees_the_end_in_storage(stored: StoredRun, monkeypatch: pytest.MonkeyPatch) -> None:
    stored.file("log.txt", b"begun\n")
    failed = {"failed": {"reason": "exit code 3"}, "container": {"status": "exited", "exit_code": 3}}
    stored.guest()
    steps = [stored.guest, lambda: stored.guest(**failed), lambda: stored.guest(**failed)]
    with while_somebody_waits(monkeypatch, steps):
        told = stored.cli("up", "horses", "--follow", "--json")
    assert told.code == 5, told
    end = json.loads(told.out.splitlines()[-1])
    assert end["data"]["state"] == "failed" and end["errors"][0]["code"] == "TrainingFailed"
