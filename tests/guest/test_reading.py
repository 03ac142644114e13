"""The RunCommand scripts and the reading of what they print: within 4096 bytes, whole or not at all."""

import json
import os
import random
import subprocess
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudtrain.guest import (
    IncompleteOutput,
    exit_code,
    install_script,
    observe_script,
    parse_observation,
    parse_stop,
    save_and_stop_script,
)

from .guest_vm import Vm, eventually

SOURCES = {
    "training": "models/log.txt",
    "container": "container.log",
    "startup": "startup.log",
    "eviction": "eviction.log",
}


def make_home(vm: Vm) -> None:
    (vm.home / "models").mkdir(exist_ok=True)
    (vm.home / "settings.json").write_bytes(vm.settings.to_json())


def read_all(vm: Vm, source: str, identity: str = "", offset: int = 0) -> tuple[bytes, str, int]:
    """What `logs` does: pieces until there are no more."""
    collected = b""
    while True:
        chunk = vm.observe(log=source, offset=offset, identity=identity).log
        assert chunk is not None and chunk.source == source
        collected += chunk.data
        identity, offset = chunk.identity, chunk.next
        if not chunk.more:
            return collected, identity, offset


def test_a_vm_without_a_guest_can_be_read(vm: Vm) -> None:
    seen = vm.observe(log="container")
    assert not seen.installed and seen.progress is None and seen.container is None and seen.time > 1e9
    assert seen.log is not None and seen.log.data == b"" and not seen.log.more


def test_everything_incompressible_and_odd_still_fits(vm: Vm) -> None:
    make_home(vm)
    noise = random.Random(1)
    (vm.home / "container.log").write_bytes(noise.randbytes(60_000))
    (vm.home / "models" / "log.txt").write_bytes(noise.randbytes(60_000))
    odd = {f"m{n}": noise.random() for n in range(5000)}
    (vm.home / "models" / "progress.json").write_text(
        json.dumps({"step": "many", "epoch": 3, "metrics": odd, "eta_seconds": 1e400, "model": "x" * 99_999})
    )
    lines = [json.dumps({"time": n, "event": noise.randbytes(90).hex()}) for n in range(50)]
    (vm.home / "events.jsonl").write_text("\n".join(lines) + "\n")
    ran = vm.bash(observe_script("n-4", log="container", events_offset=0, journal_lines=50))
    assert len(ran.stdout.encode()) <= 4096
    seen = parse_observation(ran.stdout[-4096:], "n-4")
    assert seen.progress is not None and (seen.progress.step, seen.progress.epoch) == (None, 3)
    assert seen.progress.eta_seconds is None and seen.log is not None and len(seen.log.data) > 100


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_a_log_is_read_to_its_last_byte_in_pieces(vm: Vm, source: str) -> None:
    make_home(vm)
    content = random.Random(2).randbytes(9_000) + b"text \xff\x00\n" * 3_000
    (vm.home / SOURCES[source]).write_bytes(content)
    assert read_all(vm, source)[0] == content


def test_a_log_that_rotates_loses_and_repeats_nothing(vm: Vm) -> None:
    make_home(vm)
    log = vm.home / "container.log"
    log.write_bytes(b"one\n")
    first, identity, offset = read_all(vm, "container")
    with log.open("ab") as file:
        file.write(b"two\n")
    log.rename(vm.home / "container.log.1")
    log.write_bytes(b"three\n")
    rest, identity, offset = read_all(vm, "container", identity, offset)
    assert first + rest == b"one\ntwo\nthree\n"
    with log.open("ab") as file:
        file.write(b"four\n")
    assert read_all(vm, "container", identity, offset)[0] == b"four\n"


def test_a_position_that_is_gone_is_said_to_be_lost(vm: Vm) -> None:
    make_home(vm)
    (vm.home / "container.log").write_bytes(b"abc")
    for identity, offset in (("1", 0), ("", 50)):
        chunk = vm.observe(log="container", identity=identity, offset=offset).log
        assert chunk is not None and chunk.lost and chunk.data == b"abc"


def test_the_end_of_a_log_can_be_asked_for(vm: Vm) -> None:
    make_home(vm)
    (vm.home / "container.log").write_bytes(b"0123456789")
    chunk = vm.observe(log="container", offset=-4).log
    assert chunk is not None and (chunk.offset, chunk.data, chunk.next) == (6, b"6789", 10)


def test_events_are_told_once_each_over_several_looks(vm: Vm) -> None:
    make_home(vm)
    path = vm.home / "events.jsonl"
    path.write_text("".join(json.dumps({"time": n, "event": os.urandom(60).hex()}) + "\n" for n in range(60)))
    told, offset = [], 0
    while True:
        seen = vm.observe(events_offset=offset)
        told += [each.time for each in seen.events]
        if offset == seen.events_offset:
            break
        offset = seen.events_offset
    assert told == list(range(60))
    with path.open("a") as file:
        file.write('{"time": 60, "event": "whole"}\n{"time": 61, "event": "to')
    seen = vm.observe(events_offset=offset)
    assert [each.event for each in seen.events] == ["whole"]


@pytest.mark.parametrize("regrown", [1, 40])
def test_events_after_a_power_cut_are_told_though_the_position_is_of_what_it_took(vm: Vm, regrown: int) -> None:
    make_home(vm)
    path = vm.home / "events.jsonl"
    path.write_text("".join(json.dumps({"time": n, "event": "before"}) + "\n" for n in range(20)))
    kept = path.stat().st_size
    with path.open("a") as file:
        file.writelines(json.dumps({"time": n, "event": "lost"}) + "\n" for n in range(20, 30))
    position = vm.observe(events_offset=kept).events_offset
    assert position == path.stat().st_size
    os.truncate(path, kept - 5)  # in the middle of a line
    with path.open("a") as file:
        file.writelines(
            ["\n"] + [json.dumps({"time": n, "event": "after the cut"}) + "\n" for n in range(100, 100 + regrown)]
        )
    assert (path.stat().st_size > position) == (regrown == 40)
    told, looks = [], 0
    while (seen := vm.observe(events_offset=position)).events_offset != position and looks < 20:
        position, looks = seen.events_offset, looks + 1
        told += [each.time for each in seen.events if each.event == "after the cut"]
    assert told == list(range(100, 100 + regrown)) and position == path.stat().st_size


def test_stopping_saves_and_keeps_the_trainer_from_starting_again(vm: Vm) -> None:
    vm.install()
    told = parse_stop(vm.bash(save_and_stop_script("n-5", wait_seconds=20)).stdout, "n-5")
    assert (told.rc, told.was, told.exit_code) == (0, "running", 75)
    assert told.saved_step == told.step == vm.step()
    eventually(lambda: vm.stage() == "stopped", "the script has seen it")
    assert len(vm.runs()) == 1 and vm.observe().stopping
    again = parse_stop(vm.bash(save_and_stop_script("n-6")).stdout, "n-6")
    assert (again.rc, again.was) == (0, "stopped")
    assert vm.start_again().resumed_from_step == told.saved_step  # `up` starts it again
    assert not vm.observe().stopping


def test_a_trainer_that_does_not_listen_is_reported(vm: Vm) -> None:
    deaf = "import signal,time;signal.signal(15,signal.SIG_IGN);print('deaf',flush=True);time.sleep(600)"
    (vm.engine / "program.json").write_text(json.dumps(["python3", "-c", deaf]))
    vm.install(writes_progress=False, container_seconds=0.1)
    eventually(lambda: "deaf" in (vm.home / "container.log").read_text(), "it ignores the signal")
    told = parse_stop(vm.bash(save_and_stop_script("n-5", wait_seconds=0.3)).stdout, "n-5")
    assert (told.rc, told.was) == (1, "running")


def test_other_lines_of_the_crontab_stay_as_they_are(vm: Vm) -> None:
    table = Path(vm.environment["CRONTAB_FILE"])
    before = "# mine\nMAILTO=me\n\n5 4 * * *  echo '100\\%'  \n@reboot /opt/other.sh\n"
    table.write_text(before)
    vm.install()
    vm.start_again()
    after = table.read_text()
    assert after.startswith(before)
    assert len(after.removeprefix(before).splitlines()) == 1 and after.count("startup-script.sh") == 1


def test_on_azure_the_crontab_line_is_the_one_of_the_design() -> None:
    """Without CLOUDTRAIN_ROOT; the functions alone, so that nothing of this machine is touched."""
    text = (resources.files("cloudtrain.guest") / "vm" / "install.sh").read_text()
    functions = text[: text.index("for tool in")]
    script = f"""set -u; unset CLOUDTRAIN_ROOT
    crontab() {{ if [ "$1" = -l ]; then echo "no crontab for root" >&2; return 1; else cat; fi; }}
    {functions}
    put_crontab_line"""
    ran = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "@reboot /cloudtrain/startup-script.sh\n"


def test_a_crontab_that_cannot_be_read_is_not_replaced(vm: Vm) -> None:
    table = Path(vm.environment["CRONTAB_FILE"])
    table.mkdir()
    ran = vm.bash(install_script(vm.settings, "n-7"))
    assert exit_code(ran.stdout, "n-7") == 1 and "cannot read the crontab" in ran.stdout
    assert not vm.runs()


def test_the_marker_is_there_when_nothing_can_be_installed(vm: Vm) -> None:
    (vm.disk / "bin" / "crontab").unlink()
    vm.environment["PATH"] = str(vm.disk / "bin")
    ran = vm.bash(install_script(vm.settings, "n-7"))
    assert ran.stdout.splitlines()[-1] == "cloudtrain-done n-7 rc=1" and ran.returncode == 1
    assert "has no crontab" in ran.stdout


def test_scripts_also_run_as_one_word_of_bash(vm: Vm) -> None:
    for script in (install_script(vm.settings, "n-8"), observe_script("n-8")):
        assert len(script) < 128 * 1024  # the longest single argument that Linux takes
    ran = subprocess.run(
        ["/bin/bash", "-c", observe_script("n-8")],
        env=vm.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not parse_observation(ran.stdout, "n-8").installed


@pytest.mark.parametrize("nonce", ["", "a b", "x;y", "$(x)", "n\n"])
def test_a_nonce_that_a_shell_could_take_for_more_is_refused(nonce: str) -> None:
    with pytest.raises(ValueError, match="nonce"):
        observe_script(nonce)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> str:
    home = tmp_path_factory.mktemp("disk") / "cloudtrain" / "models"
    home.mkdir(parents=True)
    (home / "progress.json").write_text('{"step": 5}')
    script = observe_script("n-9", log="training")
    environment = {**os.environ, "CLOUDTRAIN_ROOT": str(home.parents[1])}
    return subprocess.run(
        ["/bin/bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_output_of_another_script_is_refused(told: str) -> None:
    assert parse_observation(told, "n-9").progress is not None
    for broken in ("", "\n", told.replace("n-9", "n-99"), told + "more\n", told.splitlines()[0]):
        with pytest.raises(IncompleteOutput):
            parse_observation(broken, "n-9")


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_output_is_refused_or_was_not_damaged(told: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(told) - 1))
    with_other = told[:at] + data.draw(st.text(max_size=3)) + told[at + data.draw(st.integers(0, 40)) :]
    try:
        seen = parse_observation(with_other, "n-9")
    except IncompleteOutput:
        return
    assert seen == parse_observation(told, "n-9")
