"""A stop that comes while a container is being started: once it has said so, none runs."""

import contextlib
import subprocess
from dataclasses import replace

import pytest

from cloudtrain.guest import StopOutcome, parse_stop, save_and_stop_script

from .guest_vm import Vm, begin_install, eventually, signal_all


def begin_stop(vm: Vm) -> "subprocess.Popen[str]":
    """A stop that has begun: from here on nothing may be started."""
    script = vm.disk / "stop.sh"
    script.write_text(save_and_stop_script("n-5", wait_seconds=20))
    stop = subprocess.Popen(["/bin/bash", str(script)], env=vm.environment, stdout=subprocess.PIPE, text=True)
    eventually((vm.home / "stopping").exists, "the stop has begun")
    return stop


def end_of(stop: "subprocess.Popen[str]") -> StopOutcome:
    return parse_stop(stop.communicate(timeout=40)[0], "n-5")


def let_go(vm: Vm, stop: "subprocess.Popen[str]", where: str) -> None:
    """The start goes on: once the stop has had its say, or time for some looks."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        stop.wait(1.5)
    (vm.engine / where).unlink()


def held_at(vm: Vm, where: str) -> "subprocess.Popen[str]":
    (vm.engine / where).touch()
    up = begin_install(vm)
    eventually((vm.engine / "held").exists, "the start has come so far")
    return up


def nothing_runs(vm: Vm) -> None:
    """Not now, and nobody is there who would start it."""
    eventually(lambda: not vm.processes("fake_docker.py run") and not vm.processes("run_trainer"), "the start is over")
    assert not vm.trainers()


@pytest.mark.parametrize("where", ["hold-create", "hold-start"])
def test_a_stop_waits_for_a_container_that_is_just_being_started(vm: Vm, where: str) -> None:
    up = held_at(vm, where)
    stop = begin_stop(vm)
    let_go(vm, stop, where)
    assert end_of(stop).rc == 0 and not vm.trainers()
    nothing_runs(vm)
    assert vm.stage() == "stopped" and len(vm.runs()) == 1
    up.kill()
    vm.settings = replace(vm.settings, arguments=("--pace", "0.03"))
    assert vm.start_again().settings == "current" and vm.trainer_argv() == ["--pace", "0.03"]


def test_a_container_that_came_after_the_stop_had_given_up_is_told_to_save_and_end(vm: Vm) -> None:
    up = held_at(vm, "hold-create")
    told = parse_stop(vm.bash(save_and_stop_script("n-5", wait_seconds=0.3)).stdout, "n-5")
    assert (told.rc, told.was) == (1, "unknown") and "a container is still being started" in " ".join(told.text)
    (vm.engine / "hold-create").unlink()
    eventually(lambda: vm.stage() == "stopped", "the script has ended it")
    nothing_runs(vm)
    assert len(vm.runs()) == 1
    up.kill()


@pytest.mark.parametrize("where", ["hold-create", "hold-start"])
def test_a_start_whose_script_was_killed_is_waited_for_as_well(vm: Vm, where: str) -> None:
    up = held_at(vm, where)
    stop = begin_stop(vm)
    signal_all(vm.processes("run_trainer"))
    let_go(vm, stop, where)
    told = end_of(stop)
    assert (told.rc, told.was) == (0, "running")
    nothing_runs(vm)
    up.kill()


def test_a_container_that_nobody_is_left_to_start_is_removed(vm: Vm) -> None:
    up = held_at(vm, "hold-start")
    stop = begin_stop(vm)
    signal_all(vm.processes("run_trainer") + vm.processes("fake_docker.py run"))
    told = end_of(stop)
    assert (told.rc, told.was, told.exit_code) == (0, "stopped", None)
    assert not list((vm.engine / "names").iterdir())
    up.kill()


def test_a_docker_client_that_hangs_holds_up_no_stop(vm: Vm) -> None:
    vm.install()
    signal_all(vm.processes("eviction_watch") + vm.processes("run_trainer"))
    (trainer,) = vm.trainers()
    (vm.engine / "hang-run").touch()
    signal_all([trainer], 15)
    vm.boot()
    eventually((vm.engine / "hanging").exists, "the next start, whose client hangs")
    told = end_of(begin_stop(vm))
    assert (told.rc, told.was) == (0, "running") and not vm.trainers()


def test_a_notice_that_is_taken_back_starts_nothing_that_was_stopped(vm: Vm) -> None:
    vm.install()
    vm.imds.preempt()
    eventually(lambda: vm.imds.acknowledged and vm.stage() == "evicting", "the script waits")
    told = end_of(begin_stop(vm))
    assert (told.rc, told.was) == (0, "stopped")
    vm.imds.events = []
    eventually(lambda: vm.events("vanished") and not vm.processes("run_trainer"), "nothing is left to do")
    assert vm.stage() == "stopped" and len(vm.runs()) == 1 and vm.observe().stopping
