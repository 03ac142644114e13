"""The eviction watcher: the trainer saves before the VM goes, and nothing is told to Azure before."""

import json
import os
import resource
import signal
import threading
import time

import pytest

from cloudtrain.guest.scripts import vm_file

from .guest_vm import QUICK, Vm, begin_install, event, eventually, put_program, signal_all


def order(vm: Vm) -> list[str]:
    return [each["event"] for each in vm.events()]


def test_a_notice_lets_the_trainer_save_before_azure_is_told(vm: Vm) -> None:
    vm.install()
    trainers_at_acknowledgement: list[int] = []
    vm.imds.on_acknowledge = lambda _: trainers_at_acknowledgement.append(len(vm.trainers()))
    vm.imds.preempt(seconds=20)
    eventually(lambda: vm.imds.acknowledged and vm.events("acknowledged"), "the acknowledgement")
    assert vm.imds.acknowledged == ["E-1"] and trainers_at_acknowledgement == [0]
    happened = order(vm)
    assert [each for each in happened if each in ("notice", "term", "saved", "gone", "acknowledged")] == [
        "notice",
        "term",
        "saved",
        "gone",
        "acknowledged",
    ]
    (notice,), (saved,), (gone,) = vm.events("notice"), vm.events("saved"), vm.events("gone")
    assert 15 < notice["notice_seconds"] <= 20 and notice["event_id"] == "E-1"
    assert gone["exit_code"] == 75 and saved["step"] == gone["saved_step"] == vm.step()
    assert vm.journal().count("Training was evicted at: ") == 1
    seen = eventually(lambda: vm.stage() == "evicting" and vm.observe(), "the script waits")
    assert seen.evicting is not None and seen.evicting.event_id == "E-1"
    assert f"saved at step {saved['step']}" in vm.journal() and "Training was evicted at: " in vm.journal()
    assert len(vm.runs()) == 1


def test_the_save_that_is_told_is_the_last_one(vm: Vm) -> None:
    """One that was due anyway can come in between the notice and SIGTERM."""
    vm.install("--twice")
    vm.imds.preempt(seconds=20)
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    (before, last), (gone,) = vm.events("saved"), vm.events("gone")
    assert before["step"] + 1 == last["step"] == gone["saved_step"] == vm.step()


def test_after_the_eviction_training_resumes_where_it_saved(vm: Vm) -> None:
    vm.install()
    session = vm.observe().session
    vm.imds.preempt()
    eventually(lambda: vm.events("gone"), "the end of the container")
    vm.cut_power()
    vm.imds.events = []
    vm.boot()
    outcome = vm.wait_for_training(session)
    assert (outcome.rc, outcome.seen, outcome.steps_lost) == (0, "progress", 0)
    assert outcome.resumed_from_step == vm.events("gone")[0]["saved_step"]
    seen = vm.observe()
    assert seen.steps_lost == 0 and seen.evicting is None and seen.session == (session or 0) + 1


def test_an_eviction_that_nobody_but_the_watcher_saw_is_one_after_the_boot_too(vm: Vm) -> None:
    """The power can go between the acknowledgement and the moment when the startup script sees the end."""
    vm.install("--silent", writes_progress=False, container_seconds=0.1, tuning={**QUICK, "check_seconds": 600})
    signal_all(vm.processes("run_trainer"))
    vm.imds.preempt()
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    vm.cut_power()
    vm.imds.events = []
    vm.boot()
    eventually(lambda: vm.events("evicted"), "the end is judged")
    assert vm.journal().count("was evicted") == 1 and "cut off" not in vm.journal()
    eventually(lambda: len(vm.runs()) == 2, "it is started again")


def test_an_event_that_vanishes_lets_training_go_on(vm: Vm) -> None:
    vm.install()
    vm.imds.preempt()
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    vm.imds.events = []
    eventually(lambda: len(vm.events("first_step")) == 2, "training goes on")
    assert vm.events("vanished") and not (vm.home / "evicting").exists()
    assert vm.events("first_step")[-1]["steps_lost"] == 0 and len(vm.trainers()) == 1


def test_the_eviction_of_another_vm_is_none_of_ours(vm: Vm) -> None:
    vm.install()
    vm.imds.preempt(vm="run-g10")
    polls = vm.imds.polls
    eventually(lambda: vm.imds.polls > polls + 5, "some polls")
    assert not vm.events("notice") and not vm.imds.acknowledged and len(vm.trainers()) == 1


def test_a_restart_that_the_user_asked_for_is_acknowledged_at_once_and_once(vm: Vm) -> None:
    vm.install()
    vm.imds.events = [event("Reboot", "run-g1", "R-1", "", source="User")]
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    polls = vm.imds.polls
    eventually(lambda: vm.imds.polls > polls + 5, "some polls")
    assert vm.imds.acknowledged == ["R-1"] and len(vm.trainers()) == 1


def test_what_the_user_put_into_on_evict_runs_after_the_save_and_before_the_acknowledgement(vm: Vm) -> None:
    vm.install()
    told = vm.disk / "told"
    vm.imds.on_acknowledge = lambda _: told.open("a").write("acknowledged\n") and None
    folder = vm.home / "on-evict.d"
    put_program(folder / "20-late", f'#!/bin/sh\necho late >>"{told}"; sleep 600\n')
    put_program(folder / "10-first", f'#!/bin/sh\npgrep -f "{vm.disk}.*fake_trainer" || echo first >>"{told}"\n')
    put_program(folder / "30-never", f'#!/bin/sh\necho never >>"{told}"\n')
    (folder / "15-no-program").write_text("")
    vm.imds.preempt(seconds=8)
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    assert told.read_text().split() == ["first", "late", "acknowledged"]
    hooks = {each["name"]: each["exit_code"] for each in vm.events("hook")}
    assert hooks == {"10-first": 0, "20-late": None, "30-never": None}


def test_an_image_that_handles_no_signal_was_evicted_and_has_not_failed(vm: Vm) -> None:
    vm.install("--silent", writes_progress=False, container_seconds=0.1)
    vm.imds.preempt()
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    eventually(lambda: vm.events("evicted"), "the script has seen it")
    assert vm.events("evicted")[0]["exit_code"] == 143 and not vm.events("retry")


def test_a_notice_while_nothing_runs_is_acknowledged_too(vm: Vm) -> None:
    vm.install("--steps", "2")
    eventually(lambda: vm.stage() == "finished", "the end")
    vm.imds.preempt()
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    assert not vm.events("term")


def test_a_notice_before_the_first_container_keeps_it_from_starting(vm: Vm) -> None:
    vm.imds.preempt()
    (vm.engine / "down").touch()
    (vm.home / "models").mkdir()
    up = begin_install(vm)
    eventually(lambda: vm.events("notice"), "the notice")
    (vm.engine / "down").unlink()
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    eventually(lambda: vm.stage() == "evicting", "the script waits")
    assert not vm.runs()
    vm.imds.events = []
    assert "seen=progress" in up.communicate(timeout=30)[0]


def test_odd_answers_of_imds_do_not_stop_the_watcher(vm: Vm) -> None:
    (vm.home / "settings.json").write_bytes(vm.settings.to_json())
    (vm.home / "models").mkdir()
    for name in ("guest.py", "eviction_watch.py"):
        (vm.home / name).write_text(vm_file(name))
    vm.imds.answer = 429
    assert vm.bash(f'python3 -sSEB "{vm.home}/eviction_watch.py"').returncode == 0
    odd = [404, 410, 500, b"", b"<html>", b"[]", b'{"Events": 3}', b"\xff\xfe", b'{"Events":[7,{"EventId":1}]}']
    for answer in odd:
        vm.imds.answer = answer
        polls = vm.imds.polls
        eventually(lambda polls=polls: vm.imds.polls > polls + 1, f"polls after {answer!r}")
    vm.imds.answer = None
    vm.imds.preempt()
    eventually(lambda: vm.events("acknowledged"), "the notice is understood")
    assert len(vm.processes("eviction_watch")) == 1


def test_a_watcher_that_was_killed_comes_back(vm: Vm) -> None:
    vm.install()
    (watcher,) = vm.processes("eviction_watch")
    signal_all([watcher], signal.SIGKILL)
    eventually(lambda: vm.processes("eviction_watch"), "another watcher")
    vm.imds.preempt()
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")


def test_a_damaged_not_before_counts_as_no_notice(vm: Vm) -> None:
    vm.install()
    vm.imds.events = [event("Preempt", "RUN-g1", "E-9", "soon")]
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    assert vm.events("notice")[0]["notice_seconds"] == 0 and vm.events("gone")[0]["exit_code"] == 75


def test_a_first_call_of_imds_that_takes_long_keeps_nothing_from_starting(vm: Vm) -> None:
    vm.imds.first_call = threading.Event()
    assert vm.install().seen == "progress" and vm.imds.polls == 1
    vm.imds.preempt()
    vm.imds.first_call.set()
    eventually(lambda: vm.imds.acknowledged, "the notice is seen once it answers")
    assert vm.events("gone")[0]["exit_code"] == 75


def test_a_first_call_of_imds_that_hangs_is_given_up(vm: Vm) -> None:
    vm.imds.first_call = threading.Event()
    vm.install(tuning={**QUICK, "first_call_seconds": 0.3})
    vm.imds.preempt()
    eventually(lambda: vm.imds.acknowledged, "the next call")


@pytest.mark.parametrize("hours", [-48, 48])
def test_a_clock_that_jumped_takes_nothing_from_the_save(vm: Vm, hours: int) -> None:
    """NotBefore is Azure's time: seen from a wrong clock it is long past, or days away."""
    vm.install()
    vm.imds.preempt(seconds=hours * 3600)
    begun = time.monotonic()
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    assert time.monotonic() - begun < 10 and vm.events("gone")[0]["exit_code"] == 75
    assert vm.events("gone")[0]["saved_step"] == vm.step()


def test_the_eviction_log_rotates(vm: Vm) -> None:
    vm.install()
    log = vm.home / "eviction.log"
    with log.open("a") as file:
        file.write("x" * 1_100_000 + "\n")
    eventually(log.with_name("eviction.log.1").exists, "the rotation")
    vm.imds.preempt()
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    assert "eviction: notice" in log.read_text()


def test_a_full_disk_does_not_keep_the_trainer_from_being_told(vm: Vm) -> None:
    """The watcher's own files are full here: a limit on the size of files, as a full disk refuses them."""
    vm.install()
    (watcher,) = vm.processes("eviction_watch")
    resource.prlimit(watcher.pid, resource.RLIMIT_FSIZE, (0, 0))
    vm.imds.preempt()
    eventually(lambda: vm.imds.acknowledged, "the acknowledgement")
    eventually(lambda: not vm.trainers(), "the trainer has ended")
    written = json.loads((vm.home / "evicting").read_text())
    assert os.path.exists(f"/proc/{written['writer'].split(':')[0]}") and len(vm.runs()) == 1  # noqa: PTH110
