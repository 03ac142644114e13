"""What the uploader leaves in storage: checkpoints whole, the pointer last, nothing twice, and no storm."""

import json
import os
import time
from dataclasses import replace

import pytest
from azure.core.exceptions import AzureError

from cloudtrain.guest import parse_stored_observation, save_and_stop_script
from cloudtrain.guest.durable import GUEST
from cloudtrain.guest.outcome import parse_stop
from tests.living import contents

from .blob_store import BRISK, Store, protect
from .guest_vm import Vm, eventually, signal_all


def test_a_checkpoint_counts_once_all_of_it_is_there(vm: Vm, store: Store) -> None:
    tuning = {**BRISK, "single_put_bytes": 1000, "block_bytes": 700}
    wrong: list[str] = []

    def look(method: str, path: str) -> int:
        """Before every single change."""
        try:
            if method in ("PUT", "DELETE"):
                store.check()
        except (AssertionError, AzureError) as error:
            wrong.append(f"before {method} {path}: {error!r}")
        return 0

    store.server.before = look
    vm.install("--every", "10", "--folder", "--size", "5000", "--pace", "0.01", tuning=tuning)
    seen = eventually(lambda: (p := store.pointer()) and len(p.previous) == 1 and p, "two checkpoints", every=0.1)
    assert not wrong
    assert seen.newest and seen.newest.step > seen.previous[0].step and seen.generation == 1
    assert [file.path.rpartition("/")[2] for file in seen.newest.files] == ["a", "b"]
    eventually(
        lambda: (p := store.pointer()) and "log.txt" in [file.path for file in p.files],
        "the journal is named",
        every=0.1,
    )


def test_what_people_look_at_is_in_storage_too(vm: Vm, store: Store) -> None:
    # Before training, which is short: what comes after its end nobody sends.
    (vm.home / "models" / "checkpoints").mkdir(parents=True)
    (vm.home / "models" / "deep" / ".hidden").mkdir(parents=True)
    (vm.home / "models" / "deep" / "ex port+ü.bin").write_bytes(b"whole")
    (vm.home / "models" / "deep" / ".hidden" / "no").write_bytes(b"nobody's")
    (vm.home / "models" / "link").symlink_to("/etc/hostname")
    vm.install("--every", "10", "--print", "--steps", "60", "--pace", "0.01")
    eventually(lambda: vm.events("delivered"), "everything is in storage")
    eventually(lambda: not vm.processes("uploader.py"), "the uploader ends", every=0.2)
    assert store.read("models/deep/ex port+ü.bin") == b"whole"
    assert store.read("models/log.txt").decode() == vm.journal()
    assert json.loads(store.read("models/progress.json"))["step"] == 60
    assert not [name for name in store.blobs() if "hidden" in name or "link" in name]
    assert store.log("container") == (vm.home / "container.log").read_bytes()
    assert store.log("events") == (vm.home / "events.jsonl").read_bytes()
    seen = parse_stored_observation(store.read(GUEST))
    assert seen.finished and seen.stage == "finished" and seen.storage and seen.storage.newest == 60
    assert (seen.storage.kind, seen.storage.pending, seen.storage.refused) == ("signature", 0, "")
    assert seen.progress and seen.progress.step == 60 and seen.container and seen.container.exit_code == 0
    assert [each.event for each in seen.events][-1] == "delivered"
    told = vm.observe()
    assert told.storage and told.storage.newest == 60 and told.storage.name == "0000000060.ckpt"


def test_killed_uploaders_lose_nothing_and_send_and_leave_nothing_twice(vm: Vm, store: Store) -> None:
    vm.install("--every", "10", "--size", "200000", "--print", "--pace", "0.01")
    for step in (20, 60, 100, 140, 180):
        eventually(lambda step=step: store.step() >= step, f"step {step}", every=0.1)
        signal_all(vm.processes("uploader.py"))
        store.check()
    vm.bash(save_and_stop_script("n-5"))
    store.check()
    assert store.step() == vm.step()
    eventually(lambda: not vm.processes("uploader.py"), "the uploader ends", every=0.2)
    assert store.log("container") == (vm.home / "container.log").read_bytes()
    pointer = store.pointer()
    assert pointer and pointer.newest  # and what it does not name has left storage
    named = {file.blob for each in (pointer.newest, *pointer.previous) for file in each.files}
    assert set(store.blobs("models/checkpoints/")) == named and len(named) == 2
    store.server.requests.clear()
    saved = f"{store.step():010d}.ckpt"
    signal_all(vm.processes("eviction_watch"))
    reached = vm.step()
    vm.boot()
    eventually(lambda: vm.stage() == "running" and vm.step() > reached, "it trains again")
    vm.bash(save_and_stop_script("n-5"))
    sent = [each.path.rpartition("/")[2] for each in store.server.requests if each.method == "PUT"]
    assert f"{store.step():010d}.ckpt" in sent and saved not in sent


def test_storage_away_holds_up_nothing_and_the_newest_goes_first(vm: Vm, store: Store) -> None:
    vm.install("--every", "10", "--pace", "0.01")
    eventually(lambda: store.step() >= 10, "a checkpoint in storage", every=0.1)
    store.server.stop()
    before = vm.step()
    eventually(lambda: vm.step() > before + 60 and vm.events("storage_away"), "training goes on")
    store.server.requests.clear()
    store.server.start()
    eventually(lambda: vm.events("upload_resumed") and store.step() > before + 30, "it is sent", every=0.1)
    checkpoints = [each.path for each in store.server.requests if each.method == "PUT" and "/checkpoints/" in each.path]
    assert checkpoints[0].rpartition("/")[2] >= f"{before + 50:010d}"
    assert len(vm.events("storage_away")) == 1 and len(vm.runs()) == 1
    store.check()


def test_a_revoked_signature_is_one_event_and_few_requests_and_a_new_one_heals(vm: Vm, store: Store) -> None:
    vm.install("--every", "10", "--pace", "0.01")
    eventually(lambda: store.step() >= 10, "a checkpoint in storage", every=0.1)
    store.server.requests.clear()
    bad = store.access(signature=store.signature(hours=-1))
    (vm.home / "storage.json").write_text(json.dumps(bad))
    eventually(lambda: vm.events("upload_refused"), "it is told")
    reached = vm.step()
    eventually(lambda: vm.step() > reached + 100, "training goes on")
    refused = [each for each in store.server.requests if each.status == 403]
    assert 1 <= len(refused) <= 8, refused
    (event,) = vm.events("upload_refused")
    assert event["code"] == "AuthenticationFailed" and event["status"] == 403
    told = vm.observe().storage
    assert told and told.refused == "AuthenticationFailed"
    (vm.home / "storage.json").write_text(json.dumps(store.access()))
    eventually(lambda: store.step() > reached, "it heals at once", every=0.1)
    eventually(lambda: (s := vm.observe().storage) and not s.refused, "and says so")
    holding = {path.name for path, held in contents(vm.home).items() if b"sig=" in held}
    assert holding == {"storage.json"}


def test_another_runs_signature_opens_nothing(vm: Vm, store: Store) -> None:
    store.container.get_blob_client("cloudtrain/newest.json").upload_blob(b"secret", overwrite=True)
    foreign = store.signature(name="other")
    protect(vm, store.access(signature=foreign))
    vm.settings = replace(vm.settings, tuning={**BRISK, "restore_seconds": 0.5})
    outcome = vm.install("--every", "10")
    assert outcome.rc == 5 and "AuthenticationFailed" in " ".join(outcome.text) and not vm.runs()
    assert store.blobs() == {"cloudtrain/newest.json": 6}
    assert {each.status for each in store.server.requests} == {403}


def test_the_first_vm_of_a_run_trains_while_its_role_spreads_and_a_later_one_waits_for_storage(
    vm: Vm, store: Store
) -> None:
    # Refused as a role is that has not spread.
    protect(vm, store.access(signature=store.signature(rights="l")))
    settings = replace(vm.settings, tuning={**BRISK, "restore_seconds": 0.5})
    vm.settings = replace(settings, generation=2)
    outcome = vm.install("--every", "10")
    assert outcome.rc == 5 and "AuthorizationPermissionMismatch" in " ".join(outcome.text) and not vm.runs()
    vm.settings = settings
    assert vm.install("--every", "10", "--pace", "0.01").rc == 0
    assert vm.events("restore_skipped") and not store.blobs()
    (vm.home / "storage.json").write_text(json.dumps(store.access()))
    reached = vm.step()
    eventually(lambda: store.step() > reached, "what is saved is sent once the role is there", every=0.1)


def test_the_vms_identity_is_tried_first_and_a_signature_bridges_the_time_until_its_role_has_spread(
    vm: Vm, store: Store
) -> None:
    vm.imds.tokens["https://storage.azure.com"] = "not.known.yet"
    protect(vm, store.access(kind="identity"))
    vm.install("--every", "10", "--pace", "0.01")
    eventually(lambda: store.step() >= 10, "the signature opens it", every=0.1)
    vm.imds.tokens["https://storage.azure.com"] = store.server.cloud.azure.storage_token
    (vm.home / "storage.json").write_text(json.dumps(store.access(kind="identity", signature="")))
    reached = vm.step()
    eventually(lambda: store.step() > reached, "the identity opens it", every=0.1)
    asked = vm.imds.tokens_asked
    eventually(lambda: store.step() > reached + 50, "and goes on", every=0.1)
    assert vm.imds.tokens_asked - asked <= 2  # kept until shortly before its end


def test_a_set_of_files_straight_in_the_mount_is_sent_whole_or_not_at_all(vm: Vm, store: Store) -> None:
    tuning = {**BRISK, "single_put_bytes": 1000, "block_bytes": 700}
    vm.install("--straight", "100", "--size", "5000", "--pace", "0.01", tuning=tuning, writes_progress=None)
    for _ in range(2):
        newest = eventually(lambda: (s := store.newest()) and len(s.files) > 1 and s, "a set", every=0.1)
        content = {file.path: store.read(file.blob) for file in newest.files}
        step = int(content["shape.json"])
        assert content["weights.bin"] == (f"{step:010d} ".encode() * 500)[:5000] and newest.name == ""
        eventually(lambda step=step: int(store.read(set_file(store, "shape.json"))) > step, "the next set", every=0.1)
    vm.bash(save_and_stop_script("n-5"))
    eventually(lambda: not vm.processes("uploader.py"), "the uploader ends", every=0.2)
    assert store.read("models/weights.bin") == (vm.home / "models" / "weights.bin").read_bytes()
    store.check()


def set_file(store: Store, path: str) -> str:
    newest = store.newest()
    assert newest
    return next(file.blob for file in newest.files if file.path == path)


@pytest.mark.parametrize("seconds", [2, 8])
def test_what_was_saved_at_the_notice_is_in_storage_before_azure_is_told_or_that_is_said(
    vm: Vm, store: Store, seconds: int
) -> None:
    vm.install("--every", "1000000", "--pace", "0.01")
    in_storage: list[int] = []
    vm.imds.on_acknowledge = lambda _: in_storage.append(store.step())
    vm.imds.preempt(seconds=seconds)
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    saved = vm.events("gone")[0]["saved_step"]
    assert saved > 0 and len(vm.events("flushed")) + len(vm.events("not_flushed")) == 1
    if seconds > 2 or vm.events("flushed"):  # two seconds are enough on a machine that has nothing else to do
        assert in_storage == [saved] and vm.events("flushed")[0]["step"] == saved


def test_what_did_not_make_it_within_the_notice_is_told(vm: Vm, store: Store) -> None:
    vm.install("--every", "1000000", "--pace", "0.01")
    store.server.stop()
    vm.imds.preempt(seconds=2)
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    store.server.start()
    (event,) = vm.events("not_flushed")
    assert event["step"] == vm.events("gone")[0]["saved_step"] and event["stored"] is None
    assert "was not sent to storage in time" in vm.journal()


def test_a_stop_waits_until_everything_is_in_storage(vm: Vm, store: Store) -> None:
    vm.install("--every", "1000000", "--pace", "0.01")
    outcome = parse_stop(vm.bash(save_and_stop_script("n-5")).stdout, "n-5")
    assert (outcome.rc, outcome.delivered, outcome.exit_code) == (0, "yes", 75)
    assert store.step() == outcome.saved_step and store.read("models/log.txt").decode() == vm.journal()
    protect(vm, None)


def test_a_log_whose_end_a_power_cut_took_goes_on_in_storage_and_lets_the_uploader_end(vm: Vm, store: Store) -> None:
    vm.install("--every", "10", "--pace", "0.01")
    log = vm.home / "events.jsonl"
    kept = log.stat().st_size
    with log.open("a") as file:  # more than a boot writes, so that the position stays beyond the end
        file.writelines(json.dumps({"time": n, "event": "filler"}) + "\n" for n in range(500))
    eventually(lambda: b'"time": 499, ' in store.log("events"), "the events are in storage", every=0.1)
    vm.cut_power()
    os.truncate(log, kept + 100)  # in the middle of a line
    vm.settings = replace(vm.settings, arguments=("--every", "10", "--pace", "0.01", "--steps", "5"))
    (vm.home / "settings.json").write_bytes(vm.settings.to_json())
    vm.boot()
    eventually(lambda: b'"delivered"' in log.read_bytes(), "everything is in storage", every=0.1)
    eventually(lambda: not vm.processes("uploader.py"), "the uploader ends", every=0.2)
    lines = store.log("events").splitlines()
    assert sum(b'"filler"' in line for line in lines) == 500  # what the disk lost, and nothing twice
    booted = log.read_bytes()[kept + 100 :].splitlines()[1:]
    assert b"watching" in booted[0] and lines[-len(booted) :] == booted


NOTING = """
import os, sys
sys.path.insert(0, sys.argv[1])
import publish, storage, uploader
synced, appended = [], []
sync, append = os.fdatasync, storage.Client.append
def note_sync(handle):
    sync(handle)
    synced.append((os.path.basename(os.readlink(f"/proc/self/fd/{handle}")), os.fstat(handle).st_size))
def note_append(client, blob, content, position):
    name = {"container": "container.log", "events": "events.jsonl"}.get(blob.split("/")[-1].split(".")[0])
    if name:
        assert (name, os.stat(os.path.join(sys.argv[1], name)).st_size) in synced, (name, synced)
        appended.append(name)
    return append(client, blob, content, position)
os.fdatasync, storage.Client.append = note_sync, note_append
publish.Teller(uploader.Shared(access=storage.read_access())).attempt()
print("appended", *sorted(appended))
"""


def test_the_journal_is_sent_between_checkpoints_that_come_faster_than_they_are_sent(vm: Vm, store: Store) -> None:
    def slowly(method: str, path: str) -> int:
        if method == "PUT" and "/checkpoints/" in path:
            time.sleep(0.3)
        return 0

    store.server.before = slowly
    vm.install("--every", "5", "--pace", "0.01")
    eventually(lambda: (p := store.pointer()) and p.previous, "two checkpoints", every=0.1)
    with (vm.home / "models" / "log.txt").open("a") as journal:
        journal.write("a new line\n")
    sent = vm.home / "upload.json"
    eventually(lambda: "a new line" in store.read("models/log.txt").decode(), "the journal is sent", every=0.1)
    assert json.loads(sent.read_text())["storage"]["pending"]


def test_a_log_is_on_the_disk_before_it_is_told_to_storage(vm: Vm, store: Store) -> None:
    vm.install("--every", "10", "--print", "--steps", "20")
    eventually(lambda: vm.events("delivered") and not vm.processes("uploader.py"), "the uploader ends", every=0.2)
    vm.cut_power()
    for name, line in (("events.jsonl", '{"time": 1, "event": "new"}\n'), ("container.log", "a last word\n")):
        with (vm.home / name).open("a") as file:
            file.write(line)
    program = vm.disk / "noting.py"
    program.write_text(NOTING)
    ran = vm.bash(f'python3 -sSEB "{program}" "{vm.home}"')
    assert ran.stdout.splitlines()[-1:] == ["appended container.log events.jsonl"], ran.stderr
    assert store.log("container").endswith(b"a last word\n")


def test_without_storage_nothing_is_sent_and_nothing_waits(vm: Vm, store: Store) -> None:
    protect(vm, None)
    vm.install("--every", "10")
    outcome = parse_stop(vm.bash(save_and_stop_script("n-5")).stdout, "n-5")
    assert outcome.delivered == "" and vm.observe().storage is None
    assert not vm.processes("uploader.py") and not store.server.requests
