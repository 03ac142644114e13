"""A new VM goes on from storage; two VMs never train the same run; a finished one lets itself go."""

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cloudtrain.guest import install_script, renew_script, save_and_stop_script
from cloudtrain.guest.durable import FENCE, GUEST, LOGS, MODELS, POINTER, SETS
from cloudtrain.guest.scripts import vm_file
from tests.living import contents, paths

from .blob_store import BRISK, Store, erase_disk, protect
from .guest_vm import Vm, eventually, signal_all

VM_ID = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/run-g1"


def train_to(vm: Vm, store: Store, step: int, *arguments: str) -> None:
    vm.install("--every", "10", "--pace", "0.01", *arguments)
    eventually(lambda: store.step() >= step, f"step {step} in storage", every=0.1)


def test_a_new_vm_resumes_at_the_newest_step_in_storage(vm: Vm, store: Store) -> None:
    arguments = ("--folder", "--size", "5000")
    train_to(vm, store, 30, *arguments)
    erase_disk(vm)
    step = store.step()
    outcome = vm.install("--every", "10", "--pace", "0.01", *arguments)
    assert (outcome.seen, outcome.resumed_from_step) == ("progress", step)
    (event,) = vm.events("restored")
    assert event["step"] == step and event["name"] == f"{step:010d}.ckpt"
    assert f"({step:010d}.ckpt, step {step})" in vm.journal()
    eventually(lambda: store.step() > step, "and it sends on", every=0.1)
    pointer = store.pointer()
    assert pointer and pointer.generation == 2 and json.loads(store.read(FENCE)) == {"generation": 2}
    store.check()


def test_what_else_was_in_the_mount_comes_along(vm: Vm, store: Store) -> None:
    train_to(vm, store, 10)
    (vm.home / "models" / "tb").mkdir()
    (vm.home / "models" / "tb" / "events.out.tfevents.1").write_bytes(b"curve")
    with (vm.home / "models" / "log.txt").open("a") as file:
        file.write("a line of the first VM\n")
    eventually(lambda: (p := store.pointer()) and len(p.files) >= 4, "it is named", every=0.1)
    eventually(lambda: b"first VM" in store.read("models/log.txt"), "the journal is there", every=0.1)
    erase_disk(vm)
    vm.install("--every", "10", "--pace", "0.01")
    assert (vm.home / "models" / "tb" / "events.out.tfevents.1").read_bytes() == b"curve"
    assert "a line of the first VM\nTraining was restored from storage at: " in vm.journal()
    eventually(lambda: b"restored" in store.read("models/log.txt"), "the journal goes on in storage", every=0.1)
    assert store.read("models/log.txt").count(b"a line of the first VM") == 1
    first, second = (part for part in sorted(store.blobs(f"{LOGS}startup.")))
    assert (first[-6:], second[-6:]) == ("000000", "000001")


def test_a_damaged_newest_gives_way_to_the_one_before(vm: Vm, store: Store) -> None:
    train_to(vm, store, 30)
    eventually(lambda: (p := store.pointer()) and p.previous, "one before it", every=0.1)
    vm.cut_power()
    pointer = store.pointer()
    assert pointer and pointer.newest and pointer.previous
    store.container.get_blob_client(pointer.newest.files[0].blob).upload_blob(b"bit rot", overwrite=True)
    erase_disk(vm)
    outcome = vm.install("--every", "10", "--pace", "0.01")
    before = pointer.previous[0].step
    assert outcome.resumed_from_step == before and vm.events("damaged")[0]["step"] == pointer.newest.step
    eventually(lambda: store.step() > (pointer.newest.step or 0) and store.step(), "it goes on", every=0.1)
    store.check()


def test_a_disk_that_is_older_than_storage_is_brought_up_to_it(vm: Vm, store: Store) -> None:
    train_to(vm, store, 20)
    vm.bash(save_and_stop_script("n-5"))
    kept = vm.disk / "kept"
    shutil.copytree(vm.home / "models", kept)
    train_to(vm, store, store.step() + 30)
    vm.cut_power()
    newest = store.step()
    shutil.rmtree(vm.home / "models")
    kept.rename(vm.home / "models")
    outcome = vm.start_again()
    assert outcome.resumed_from_step == newest
    store.check()


def test_a_restoring_that_is_cut_off_again_and_again_leaves_no_half_checkpoint(vm: Vm, store: Store) -> None:
    """The trainer reads every checkpoint at its start, and ends for good where one is torn."""
    train_to(vm, store, 20, "--folder", "--size", "300000")
    erase_disk(vm)
    step, reads = store.step(), [0]
    cut = threading.Event()

    def stop_midway(method: str, path: str) -> int:
        reads[0] += method == "GET" and "/models/" in path
        if reads[0] == 3 and not cut.is_set():
            cut.set()
            signal_all(vm.processes("run_trainer"))
        return 0

    store.server.before = stop_midway
    outcome = vm.install("--every", "10", "--pace", "0.01", "--folder", "--size", "300000")
    assert cut.is_set() and outcome.resumed_from_step == step
    assert not [path for path in paths(vm.home / "models") if path.name.startswith(".restoring")]
    assert not (vm.home / "restoring").exists()


def test_a_set_straight_in_the_mount_is_restored_whole(vm: Vm, store: Store) -> None:
    arguments = ("--straight", "1000000", "--size", "5000", "--pace", "0.01")
    vm.install(*arguments, writes_progress=None)
    (vm.home / "models" / "weights.bin").write_bytes(b"weights")
    (vm.home / "models" / "shape.json").write_text("0000000077")
    eventually(lambda: (s := store.newest()) and len(s.files) == 3, "the set", every=0.1)
    assert store.blobs(SETS) and (store.newest() or 0)
    erase_disk(vm)
    outcome = vm.install(*arguments)
    assert outcome.resumed_from_step == 77
    assert (vm.home / "models" / "weights.bin").read_bytes() == b"weights"


def test_an_empty_container_is_a_new_run(vm: Vm, store: Store) -> None:
    outcome = vm.install("--every", "10", "--pace", "0.01")
    assert outcome.resumed_from_step == 0 and not vm.events("restored") and len(vm.runs()) == 1


def test_a_new_vm_waits_for_storage_and_does_not_begin_anew(vm: Vm, store: Store) -> None:
    train_to(vm, store, 20)
    erase_disk(vm)
    step = store.step()
    store.server.stop()
    threading.Timer(1.0, store.server.start).start()
    assert vm.install("--every", "10").resumed_from_step == step
    erase_disk(vm)
    store.server.stop()
    vm.settings = replace(vm.settings, tuning={**BRISK, "restore_seconds": 0.4})
    outcome = vm.start_again()
    assert outcome.rc == 5 and "training does not begin anew" in " ".join(outcome.text) and not vm.trainers()


def test_with_a_checkpoint_on_the_disk_training_does_not_wait_long_for_storage(vm: Vm, store: Store) -> None:
    train_to(vm, store, 20)
    vm.bash(save_and_stop_script("n-5"))
    step = vm.step()
    store.server.stop()
    outcome = vm.start_again()
    assert outcome.resumed_from_step == step and vm.events("restore_skipped")
    store.server.start()
    eventually(lambda: store.step() > step, "it is sent later", every=0.1)


def test_storage_that_comes_while_training_runs_is_used(vm: Vm, store: Store) -> None:
    access = dict(vm.protected)
    protect(vm, None)
    vm.install("--every", "10", "--pace", "0.01")
    assert vm.bash(renew_script("n-6"), **access).returncode == 0
    eventually(lambda: store.step() >= 10, "a checkpoint in storage", every=0.1)
    assert len(vm.runs()) == 1


def test_a_vm_whose_run_has_moved_on_ends_itself_and_sends_nothing_more(vm: Vm, store: Store) -> None:
    train_to(vm, store, 20)
    store.container.get_blob_client(FENCE).upload_blob(b'{"generation": 2}', overwrite=True)
    eventually(lambda: vm.stage() == "fenced", "it gives way")
    eventually(lambda: not vm.processes("uploader") and not vm.processes("run_trainer"), "all has ended", every=0.2)
    assert not vm.trainers() and "a newer VM of this run has taken over" in vm.journal()
    assert vm.events("fenced")[0]["generation"] == 2 and vm.observe().fenced
    etags = {blob.name: blob.etag for blob in store.container.list_blobs()}
    store.server.requests.clear()
    vm.boot()
    eventually(lambda: len(vm.events("session")) == 2 and not vm.processes("run_trainer"), "another boot", every=0.2)
    assert len(vm.runs()) == 1 and not [each for each in store.server.requests if each.method != "GET"]
    assert {blob.name: blob.etag for blob in store.container.list_blobs()} == etags
    assert not store.read("models/log.txt").decode().count("taken over")


def test_a_vm_that_starts_after_its_run_has_moved_on_never_trains(vm: Vm, store: Store) -> None:
    store.container.get_blob_client(FENCE).upload_blob(b'{"generation": 9}', overwrite=True)
    vm.settings = replace(vm.settings, arguments=("--every", "10"))
    vm.bash(install_script(vm.settings, "n-1", timeout=1.5), **vm.protected)
    eventually(lambda: vm.stage() == "fenced", "it gives way")
    assert not vm.runs() and set(store.blobs()) == {FENCE}


def test_a_pointer_of_a_newer_vm_is_never_overwritten(vm: Vm, store: Store) -> None:
    train_to(vm, store, 20)
    theirs = b'{"version": 1, "generation": 2, "time": 1, "newest": null, "previous": [], "files": []}'
    store.container.get_blob_client(POINTER).upload_blob(theirs, overwrite=True)
    eventually(lambda: vm.stage() == "fenced", "it gives way")
    assert store.read(POINTER) == theirs


def test_a_secret_is_in_the_containers_environment_and_nowhere_else(vm: Vm, store: Store) -> None:
    secret = "s3cr3t-Walue\nof two lines"
    protect(vm, store.access(), TOKEN=secret)
    seen: list[str] = []
    with watching_processes(vm, seen):
        assert vm.install("--every", "10", "--pace", "0.01", secrets=("TOKEN",)).rc == 0
        eventually(lambda: store.step() >= 10, "a checkpoint", every=0.1)
    environment = vm.home / "models" / "environment.json"  # what the container itself saw
    assert json.loads(environment.read_text())["env"]["TOKEN"] == secret
    holding = [path for path, held in contents(vm.home).items() if b"s3cr3t-Walue" in held]
    assert {path.name for path in holding} == {"secrets.json", "environment.json"}
    assert (vm.home / "secrets.json").stat().st_mode & 0o777 == 0o600
    seen += [" ".join(arguments) for arguments in vm.runs()]  # of the docker client, too short-lived to be seen
    assert any("--env TOKEN " in line for line in seen)
    assert not [line for line in seen if "s3cr3t-Walue" in line or "sig=" in line]
    assert b"s3cr3t-Walue" not in b"".join(store.read(name) for name in store.blobs("cloudtrain/"))
    assert "s3cr3t-Walue" not in repr(vm.observe())
    (container,) = {each["container"] for each in vm.events("started")}
    environment.unlink()
    protect(vm, store.access(), TOKEN="another")
    assert vm.start_again().settings == "former"
    vm.bash(save_and_stop_script("n-5"))
    assert vm.start_again().settings == "current"
    assert json.loads(environment.read_text())["env"]["TOKEN"] == "another"
    assert vm.events("started")[-1]["container"] != container


@contextlib.contextmanager
def watching_processes(vm: Vm, seen: list[str]) -> Iterator[None]:
    """Collects the command lines of the VM's processes."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for process in vm.processes():
                with contextlib.suppress(Exception):
                    seen.append(" ".join(process.cmdline()))

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    over.set()
    thread.join()


def test_a_secret_without_a_value_is_told(vm: Vm, store: Store) -> None:
    outcome = vm.install("--every", "10", secrets=("TOKEN",))
    assert outcome.rc == 5 and "the secret variable TOKEN has no value on this VM" in " ".join(outcome.text)
    assert not vm.runs()


@dataclass
class Arm:
    """Azure's management plane, as far as a VM may call it. answers: the statuses, the last one for good."""

    answers: list[int] = field(default_factory=lambda: [202])
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    in_storage: list[bytes] = field(default_factory=list)


@pytest.fixture
def arm(vm: Vm, store: Store) -> Iterator[Arm]:
    made = Arm()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            made.calls.append((self.command, self.path, self.headers.get("Authorization", "")))
            with contextlib.suppress(Exception):
                made.in_storage.append(store.read(GUEST))
            status = made.answers.pop(0) if len(made.answers) > 1 else made.answers[0]
            body = b'{"error": {"code": "AuthorizationFailed"}}' if status == 403 else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    vm.environment["CLOUDTRAIN_ARM"] = f"http://127.0.0.1:{server.server_address[1]}"
    vm.imds.tokens["https://management.azure.com"] = "arm-token"
    yield made
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("when_done", "method", "path"), [("deallocate", "POST", "/deallocate"), ("delete", "DELETE", "")]
)
def test_a_finished_run_lets_its_vm_go_once_everything_is_in_storage(
    vm: Vm, store: Store, arm: Arm, when_done: str, method: str, path: str
) -> None:
    arm.answers = [403, 403, 202]
    vm.install("--every", "10", "--steps", "30", "--pace", "0.01", when_done=when_done, vm_id=VM_ID)
    eventually(lambda: vm.events("released"), "it is let go")
    assert arm.calls == [(method, f"{VM_ID}{path}?api-version=2026-04-01", "Bearer arm-token")] * 3
    assert store.step() == 30 and store.read(f"{MODELS}log.txt").decode() == vm.journal()
    assert b'"delivered"' in arm.in_storage[0] and json.loads(arm.in_storage[0])["facts"]["finished"]
    order = [
        each["event"] for each in vm.events() if each["event"] in ("finished", "delivered", "releasing", "released")
    ]
    assert order == ["finished", "delivered", "releasing", "released"]
    eventually(lambda: not vm.processes("uploader"), "the uploader ends", every=0.2)
    vm.boot()  # whoever starts it again to look around is left alone
    eventually(lambda: len(vm.events("session")) == 2 and not vm.processes("run_trainer"), "another boot", every=0.2)
    eventually(lambda: not vm.processes("uploader"), "the uploader ends", every=0.2)
    assert len(arm.calls) == 3


def test_a_finished_run_without_storage_is_never_deleted(vm: Vm, store: Store, arm: Arm) -> None:
    protect(vm, None)
    vm.install("--steps", "5", when_done="delete", vm_id=VM_ID)
    eventually(lambda: vm.events("not_released"), "it says so")
    assert not arm.calls
    shutil.rmtree(vm.home / "models")
    vm.install("--steps", "6", when_done="deallocate", vm_id=VM_ID)
    eventually(lambda: vm.events("released"), "but it may be stopped")


def test_a_vm_stays_until_storage_has_everything_and_where_somebody_stopped_it(vm: Vm, store: Store, arm: Arm) -> None:
    train_to(vm, store, 10, "--steps", "1000000")
    vm.bash(save_and_stop_script("n-5"))
    eventually(lambda: not vm.processes("uploader"), "the uploader ends", every=0.2)
    store.server.before = lambda method, path: 503 if method == "PUT" and "/models/" in path else 0
    steps = str(vm.step() + 15)
    vm.install("--every", "10", "--steps", steps, "--pace", "0.01", when_done="deallocate", vm_id=VM_ID)
    eventually(lambda: vm.stage() == "finished" and vm.events("storage_away"), "the end")
    assert not arm.calls and not vm.events("delivered")
    store.server.before = lambda method, path: 0
    eventually(lambda: vm.events("released"), "it is let go then")
    assert len(arm.calls) == 1


def test_the_names_in_storage_are_those_that_this_side_reads() -> None:
    text = vm_file("storage.py")
    for name, value in {"MODELS": MODELS, "SETS": SETS, "POINTER": POINTER, "FENCE": FENCE, "GUEST": GUEST}.items():
        assert f'\n{name} = "{value}"\n' in text
    assert f'\nLOGS = "{LOGS}"\n' in text


def test_the_installation_fits_into_one_word_of_bash_and_into_run_command(vm: Vm) -> None:
    largest = replace(vm.settings, arguments=tuple("x" * 100 for _ in range(40)))
    size = len(install_script(largest, "n-1"))
    assert size < 128 * 1024 < 256 * 1024, f"{size} bytes (pages of {os.sysconf('SC_PAGE_SIZE')})"
