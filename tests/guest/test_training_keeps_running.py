"""The startup script: one trainer, kept running, whatever is killed or asked for meanwhile."""

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from cloudtrain.guest import PULL_LOGIN
from tests.living import contents, paths

from .guest_vm import Vm, begin_install, eventually, signal_all


@pytest.fixture
def small_disk(vm: Vm) -> Iterator[None]:
    """A disk that can be full: the VM's /cloudtrain holds one MiB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", vm.home], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this user cannot mount: {mounted.stderr.strip()}")
    yield
    vm.cut_power()
    subprocess.run(["umount", vm.home], check=True)


def test_the_first_installation_ends_at_the_first_step(vm: Vm) -> None:
    began = time.time()
    outcome = vm.install()
    assert (outcome.rc, outcome.seen, outcome.resumed_from_step, outcome.start) == (0, "progress", 0, 1)
    assert began < outcome.time < time.time()
    assert outcome.step is not None and outcome.step >= 1
    assert f"step {outcome.step} of 1000000" in outcome.text
    assert len(vm.trainers()) == 1
    assert [each.name for each in (vm.home / "models").iterdir() if each.suffix == ".txt"] == ["log.txt"]


def test_an_image_that_writes_no_progress_counts_once_its_container_has_run(vm: Vm) -> None:
    outcome = vm.install("--silent", writes_progress=None, container_seconds=0.3)
    assert (outcome.rc, outcome.seen, outcome.step) == (0, "container", None)


def test_the_container_gets_its_mounts_and_its_environment(vm: Vm) -> None:
    vm.install(environment=(("SEED", "7"), ("CHECKPOINT_DIR", "/elsewhere")), gpus=True)
    run = " ".join(vm.runs()[0])
    assert f"--volume {vm.home}/models:/app/Saved_Model" in run and f"--volume {vm.home}/data:/data" in run
    assert "--gpus all" in run and "--init" in run and "--rm" not in run
    seen = json.loads((vm.home / "models" / "environment.json").read_text())["env"]
    assert seen["SEED"] == "7" and seen["TFDS_DATA_DIR"] == f"{vm.home}/data"
    assert seen["CHECKPOINT_DIR"] == f"{vm.home}/models"


def test_what_the_user_writes_reaches_the_trainer_and_no_shell(vm: Vm) -> None:
    hostile = [
        '"$(touch x)`touch y`',
        "'; touch z; '",
        "line\nEND_OF_FILE\ntouch w",
        "%d ${HOME} \\",
        "é☃",
        "",
    ]
    environment = (("HOSTILE", '"`touch v`$(touch u)\nEND_OF_FILE'),)
    assert vm.install("--echo", *hostile, environment=environment).rc == 0
    assert vm.trainer_argv() == ["--echo", *hostile]
    seen = json.loads((vm.home / "models" / "environment.json").read_text())["env"]
    assert seen["HOSTILE"] == environment[0][1]
    assert not [each for each in paths(vm.disk) if each.name in set("uvwxyz")]


def test_installing_again_leaves_the_trainer_alone(vm: Vm) -> None:
    first = vm.install()
    (trainer,) = vm.trainers()
    again = vm.start_again()
    assert again.rc == 0 and again.start == first.start == 1
    assert vm.trainers() == [trainer] and len(vm.runs()) == 1


def test_many_starts_at_once_make_one_container(vm: Vm) -> None:
    vm.install("--steps", "3")
    eventually(lambda: vm.stage() == "finished" and not vm.processes("run_trainer"), "the end of the first run")
    vm.settings = replace(vm.settings, arguments=("--pace", "0.03"))
    (vm.home / "settings.json").write_bytes(vm.settings.to_json())
    for _ in range(6):
        vm.boot()
    eventually(lambda: len(vm.runs()) == 2 and vm.trainers(), "the container")
    eventually(lambda: not vm.processes("/bin/bash"), "the others have given up")
    assert len(vm.processes("run_trainer")) == 1
    assert len(vm.trainers()) == 1 and len(vm.runs()) == 2 and len(vm.processes("eviction_watch")) == 1


def test_a_killed_startup_script_means_no_second_trainer(vm: Vm) -> None:
    vm.install("--print")
    (trainer,) = vm.trainers()
    signal_all(vm.processes("run_trainer") + vm.processes("docker") + vm.processes("startup-script"))
    eventually(lambda: vm.processes("run_trainer"), "the watcher starts the script again")
    eventually(lambda: vm.stage() == "running", "it found the container")
    assert vm.trainers() == [trainer] and len(vm.runs()) == 1
    reached = vm.step()
    vm.settings = replace(vm.settings, arguments=("--print", "--pace", "0.03"))
    again = vm.start_again()
    assert again.settings == "former" and vm.observe().former_settings
    signal_all([trainer], 15)
    eventually(lambda: len(vm.runs()) == 2, "the next start")
    log = (vm.home / "container.log").read_text().splitlines()
    steps = [int(line.split()[1]) for line in log if line.startswith("step ")]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= reached  # every line once


def test_killed_docker_clients_are_replaced(vm: Vm) -> None:
    vm.install("--print")
    for verb in ("wait", "logs", "wait"):
        (client,) = eventually(lambda verb=verb: vm.processes(f"fake_docker.py {verb}"), f"docker {verb}")
        signal_all([client])
        eventually(lambda verb=verb, old=client: set(vm.processes(f"fake_docker.py {verb}")) - {old}, "another")
    assert len(vm.trainers()) == 1 and len(vm.runs()) == 1


def test_a_docker_run_that_is_killed_after_the_start_means_no_second_trainer(vm: Vm) -> None:
    (vm.engine / "hang-run").touch()
    up = begin_install(vm)
    hanging = vm.engine / "hanging"
    client = eventually(lambda: hanging.exists() and hanging.read_text(), "the client hangs")
    psutil.Process(int(client)).kill()
    assert "seen=progress" in up.communicate(timeout=30)[0]
    assert len(vm.trainers()) == 1 and len(vm.runs()) == 1


def test_a_trainer_that_saved_is_started_again_and_resumes(vm: Vm) -> None:
    vm.install()
    signal_all(vm.trainers(), 15)
    again = eventually(lambda: vm.events("asked_again"), "exit code 75")[0]
    eventually(lambda: len(vm.events("first_step")) == 2, "the first step after it")
    resumed = vm.events("first_step")[-1]
    assert again["exit_code"] == 75 and resumed["resumed_from_step"] == again["saved_step"]
    assert resumed["steps_lost"] == 0


def test_a_trainer_that_finished_is_not_started_again(vm: Vm) -> None:
    vm.install("--steps", "3")
    eventually(lambda: not vm.processes("run_trainer"), "the script ends")
    outcome = vm.start_again()
    assert (outcome.rc, outcome.seen) == (0, "finished") and len(vm.runs()) == 1
    assert vm.observe().finished


def test_a_changed_argument_applies_at_the_next_start(vm: Vm) -> None:
    vm.install("--steps", "3")
    eventually(lambda: vm.stage() == "finished", "the end")
    outcome = vm.install("--steps", "1000000")
    assert (outcome.rc, outcome.seen) == (0, "progress") and not vm.observe().finished
    assert vm.trainer_argv() == ["--steps", "1000000"]


def test_a_trainer_that_crashes_is_tried_again_and_then_failed(vm: Vm) -> None:
    outcome = vm.install("--exit", "3")
    assert (outcome.rc, outcome.seen) == (5, "failed")
    assert any("the trainer gives up" in line for line in outcome.text)
    assert len(vm.runs()) == 3 and [each["attempt"] for each in vm.events("retry")] == [1, 2]
    seen = vm.observe()
    assert seen.failed is not None and "exit code 3" in seen.failed and not seen.finished
    assert "Training has failed at: " in vm.journal()
    assert vm.install("--pace", "0.01").rc == 0  # put right, it goes on
    assert vm.observe().failed is None


def test_crashes_with_progress_in_between_do_not_add_up(vm: Vm) -> None:
    """Three crashes, each beyond the last; two in a row without progress would be the end."""
    crash = "import os,sys;p=os.environ['CHECKPOINT_DIR'];" + (
        "q=p+'/n';n=int(open(q).read())+1 if os.path.exists(q) else 1;open(q,'w').write(str(n));"
        "open(p+'/progress.json','w').write('{\"step\":%d}'%n);sys.exit(0 if n==4 else 9)"
    )
    (vm.engine / "program.json").write_text(json.dumps(["python3", "-c", crash]))
    assert vm.install(tuning={**vm.settings.tuning, "retry_pauses": [0.05]}).seen in ("finished", "progress")
    eventually(lambda: vm.stage() == "finished", "the fourth attempt")
    assert len(vm.runs()) == 4


def test_a_pull_that_fails_falls_back_to_the_image_that_is_here(vm: Vm) -> None:
    (vm.engine / "no-pull").write_text("Error response from daemon: no such host")
    (vm.engine / "images" / "example%trainer:1").touch()
    assert vm.install().seen == "progress"
    assert vm.events("cached_image") and "no such host" in vm.events("pull_failed")[0]["reason"]


def test_a_pull_that_never_ends_falls_back_too(vm: Vm) -> None:
    (vm.engine / "hang-pull").touch()
    (vm.engine / "images" / "example%trainer:1").touch()
    assert vm.install(tuning={**vm.settings.tuning, "pull_seconds": 0.3}).seen == "progress"
    assert "stuck" in vm.events("pull_failed")[0]["reason"] and not vm.processes("fake_docker.py pull")


def test_a_pull_that_fails_without_an_image_is_a_clear_failure(vm: Vm) -> None:
    (vm.engine / "no-pull").write_text("denied: requested access to the resource is denied")
    outcome = vm.install()
    assert outcome.rc == 5
    assert any("example/trainer:1 cannot be pulled: denied" in line for line in outcome.text)


def test_the_right_to_pull_is_kept_for_root_alone_and_handed_to_nobody_but_the_pull(vm: Vm) -> None:
    config = json.dumps({"auths": {"registry.example.com": {"auth": "YWRhOnNlY3JldA=="}}})
    login = base64.b64encode(config.encode()).decode()
    vm.environment[PULL_LOGIN] = login  # as RunCommand hands over a protected parameter
    assert vm.install().seen == "progress"
    kept = vm.home / "docker" / "config.json"
    assert kept.read_text() == config
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    pulled = json.loads((vm.engine / "pulled-with").read_text())
    assert pulled["DOCKER_CONFIG"] == str(kept.parent) and PULL_LOGIN not in pulled
    secrets = (login, "YWRhOnNlY3JldA==")
    for process in vm.processes():
        assert PULL_LOGIN not in process.environ() and "DOCKER_CONFIG" not in process.environ()
        assert not [secret for secret in secrets if secret in " ".join(process.cmdline())]
    files = contents(vm.disk)
    holding = [path for path, held in files.items() if any(secret.encode() in held for secret in secrets)]
    assert holding == [kept]
    del vm.environment[PULL_LOGIN]
    assert vm.start_again().rc == 0 and kept.exists()  # another installation, from where nobody is logged in


def test_an_engine_that_is_late_is_waited_for(vm: Vm) -> None:
    (vm.engine / "down").touch()
    up = begin_install(vm)
    eventually(lambda: vm.stage() == "engine", "the script waits")
    (vm.engine / "down").unlink()
    told = up.communicate(timeout=30)[0]
    assert "waiting for the Docker engine: Cannot connect" in told and "seen=progress" in told


def test_a_power_cut_is_followed_by_one_trainer_that_goes_on(vm: Vm) -> None:
    vm.install()
    before = vm.observe().session
    vm.cut_power()
    (vm.home / "evicting").write_text('{"writer": "1:1"}')  # as if the cut had come after a notice
    vm.boot()
    vm.boot()
    outcome = vm.wait_for_training(before)
    assert (outcome.rc, outcome.seen) == (0, "progress")
    assert outcome.steps_lost is not None and outcome.steps_lost >= 1  # it had saved nothing
    assert "found cut off" in vm.journal()
    assert len(vm.trainers()) == 1 and not (vm.home / "evicting").exists()


def test_power_cuts_in_quick_succession_make_one_trainer(vm: Vm) -> None:
    """Boots within a minute, cut off wherever the start happens to be: while it pulls, starts, or just after."""
    vm.install()
    for seconds in (0.05, 0.15, 0.25, 0.4, 0.6):
        vm.cut_power()
        vm.boot()
        time.sleep(seconds)
    vm.boot()
    eventually(lambda: vm.stage() == "running" and vm.trainers(), "training goes on")
    reached = vm.step()
    eventually(lambda: vm.step() > reached, "steps")
    assert len(vm.trainers()) == 1 and not vm.events("failed")
    for script in ("run_trainer", "eviction_watch"):
        # Between fork and exec a child of it looks as it does.
        eventually(lambda script=script: len(vm.processes(script)) == 1, f"one {script}")


def test_a_full_disk_ends_in_a_failure_that_is_written_down_and_room_lets_it_go_on(vm: Vm, small_disk: None) -> None:
    vm.install()
    ballast = vm.home / "models" / "ballast"
    (trainer,) = vm.trainers()

    def ended() -> bool:
        """Fills the disk again until then: a file that the trainer was just replacing leaves it room to go on."""
        if not trainer.is_running():
            return True
        with ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        return False

    eventually(ended, "the trainer ends", every=0.05)
    eventually(lambda: (vm.home / "failed").exists() and not vm.processes("run_trainer"), "the attempts are over")
    seen = vm.observe()
    assert seen.failed is not None and "exit code 1" in seen.failed and len(vm.runs()) == 3
    assert "Training has failed at: " in vm.journal() and not vm.trainers()
    ballast.unlink()
    again = vm.start_again()
    assert (again.rc, again.seen) == (0, "progress") and vm.observe().failed is None
    assert (vm.home / ".reserve").stat().st_size == 65536  # for the next time


def test_the_startup_log_rotates(vm: Vm) -> None:
    vm.install("--steps", "3")
    eventually(lambda: not vm.processes("run_trainer"), "the end")
    log = vm.home / "startup.log"
    log.write_text("x" * 1_100_000)
    vm.start_again()
    assert log.stat().st_size < 10_000 and log.with_name("startup.log.1").stat().st_size == 1_100_000


def test_output_is_copied_to_its_last_line_after_a_power_cut(vm: Vm) -> None:
    vm.install("--print")
    signal_all(vm.processes("run_trainer") + vm.processes("docker") + vm.processes("eviction_watch"))
    reached = vm.step()
    eventually(lambda: vm.step() > reached + 5, "steps that nobody copies")
    vm.cut_power()
    last = (next((vm.engine / "containers").iterdir()) / "log").read_text()
    vm.boot()
    eventually(lambda: len(vm.runs()) == 2, "the next start")
    assert (vm.home / "container.log").read_text().startswith(last)


def test_output_is_copied_although_a_power_cut_took_the_log_to_before_where_the_container_began(vm: Vm) -> None:
    vm.install("--print")
    signal_all(vm.trainers(), 15)
    eventually(lambda: len(vm.events("first_step")) == 2, "a second container")
    log, second = vm.home / "container.log", json.loads((vm.home / "output.json").read_text())
    eventually(lambda: log.stat().st_size > second["start"], "its output is copied")
    vm.cut_power()
    os.truncate(log, second["start"] - 7)
    printed = (vm.engine / "containers" / second["container"] / "log").read_bytes()
    vm.boot()
    eventually(lambda: len(vm.runs()) == 3, "the next start")
    assert log.read_bytes()[second["start"] - 7 :].startswith(printed)


def test_a_shutdown_of_the_vm_is_not_a_reason_to_start_again(vm: Vm) -> None:
    vm.install()
    signal_all(vm.processes("run_trainer") + vm.processes("eviction_watch"), 15)
    signal_all(vm.trainers(), 15)
    eventually(lambda: not vm.processes("run_trainer"), "the script ends")
    assert vm.events("shut_down")[0]["exit_code"] == 75 and len(vm.runs()) == 1


def test_container_log_rotates_and_loses_nothing(vm: Vm) -> None:
    vm.install("--print", "--pace", "0.001", tuning={**vm.settings.tuning, "log_bytes": 3000})
    eventually(lambda: (vm.home / "container.log.1").exists(), "a rotation")
    assert (vm.home / "container.log.1").stat().st_size < 3000 + 65536


def test_an_endless_wish_to_be_started_again_comes_to_an_end(vm: Vm) -> None:
    outcome = vm.install("--exit", "75")
    assert outcome.rc == 5 and len(vm.runs()) == 3
