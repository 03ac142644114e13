"""Machines of kind `process`, through their public face, with real processes."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

import cloudtrain
from cloudtrain.clock import SystemClock
from cloudtrain.emulator.machines import MachineError
from cloudtrain.emulator.machines.process import ProcessMachines

_FILE = Path(__file__).with_name("machine_scenarios.py")
_spec = importlib.util.spec_from_file_location("machine_scenarios", _FILE)
assert _spec is not None and _spec.loader is not None
scenarios = sys.modules["machine_scenarios"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(scenarios)

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


@cache
def why_no_namespaces() -> str:
    """Empty where this user may have namespaces."""
    with tempfile.TemporaryDirectory() as root:
        machines = _machines(Path(root), without_namespaces=False)
        try:
            machines.boot(scenarios.SPEC)
        except MachineError as error:
            return f"this kernel gives us no namespaces: {error}"
        finally:
            machines.erase(scenarios.VM)
    return ""


def _machines(root: Path, *, without_namespaces: bool) -> ProcessMachines:
    return ProcessMachines(root, clock=SystemClock(), images={}, readable=[], without_namespaces=without_namespaces)


@cache
def python_for_nobody() -> str:
    """A Python that an ordinary user can start; ours may lie in root's home."""
    minors = ("", ".13", ".12", ".11")
    names = [shutil.which(f"python3{minor}", path="/usr/bin:/usr/local/bin") for minor in minors]
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    for path in filter(None, [sys.executable, *names]):
        try:
            done = subprocess.run([path, "-I", "-c", check], user=NOBODY, group=NOBODY, env={}, capture_output=True)
        except OSError:
            continue
        if done.returncode == 0:
            return path
    return ""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that an ordinary user may own. pytest's own ones lie in a private one."""
    path = Path(tempfile.mkdtemp(prefix="vm-test-"))
    yield path
    shutil.rmtree(path)


def play_as_nobody(name: str, place: Path, how: str) -> None:
    python = python_for_nobody()
    if not python:
        pytest.skip("no Python from 3.11 on that an ordinary user can start")
    package, copy, world = Path(cloudtrain.__file__).parent, place / "copy", place / "world"
    (copy / "cloudtrain").mkdir(parents=True)
    for part in ("__init__.py", "clock.py"):
        shutil.copy(package / part, copy / "cloudtrain" / part)
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package / "emulator", copy / "cloudtrain" / "emulator", ignore=skipped)
    shutil.copy(_FILE, copy)
    world.mkdir()
    os.chown(world, NOBODY, NOBODY)
    place.chmod(0o755)
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(world), "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [python, copy / _FILE.name, name, world, how],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={**clean, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [*scenarios.CORE, *scenarios.MORE, *scenarios.WITH_NAMESPACES])
def test_in_namespaces(name: str, place: Path) -> None:
    if why_no_namespaces():
        pytest.skip(why_no_namespaces())
    scenarios.play(name, place, without_namespaces=False)


# What does not depend on who it is: root has tried it.
SAME_FOR_EVERYBODY = {
    "power_goes_on_and_off",
    "scripts_end_by_timeout_and_by_cancel",
    "an_acknowledgement_brings_the_eviction_forward",
    "the_guest_can_reboot_and_switch_itself_off",
    "only_a_container_with_an_init_dies_of_sigterm",
}


@as_root
@pytest.mark.parametrize("name", sorted({*scenarios.CORE, *scenarios.WITH_NAMESPACES} - SAME_FOR_EVERYBODY))
def test_in_namespaces_as_an_ordinary_user(name: str, place: Path) -> None:
    if why_no_namespaces():
        pytest.skip(why_no_namespaces())
    play_as_nobody(name, place, "in-namespaces")


@pytest.mark.parametrize("name", scenarios.CORE)
def test_without_namespaces(name: str, place: Path) -> None:
    if os.getuid() == 0:
        play_as_nobody(name, place, "without-namespaces")
    else:
        scenarios.play(name, place, without_namespaces=True)


@as_root
@pytest.mark.parametrize("name", ["docker_runs_the_trainer", "cron_runs_reboot_lines_at_each_boot"])
def test_on_a_file_system_that_takes_no_overlay(name: str, place: Path) -> None:
    if why_no_namespaces():
        pytest.skip(why_no_namespaces())
    done = subprocess.run(
        [sys.executable, _FILE, name, place, "on-an-overlay"],
        env={**os.environ, "PYTHONPATH": str(Path(cloudtrain.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@as_root
def test_root_is_refused_a_vm_without_namespaces_unless_it_insists(place: Path) -> None:
    machines = _machines(place, without_namespaces=True)
    with pytest.raises(MachineError, match="refused to root"):
        machines.boot(scenarios.SPEC)
    assert not machines.power(scenarios.VM).on
    machines.erase(scenarios.VM)


def test_an_id_that_is_a_path_is_refused(place: Path) -> None:
    for vm_id in ("", "../x", "a/b", ".", ".hidden"):
        with pytest.raises(MachineError):
            _machines(place, without_namespaces=False).power(vm_id)


def test_a_vm_that_is_erased_while_somebody_counts_strays_is_none(place: Path) -> None:
    machines = _machines(place, without_namespaces=False)

    def come_and_go() -> None:
        for number in range(300):
            (place / f"vm-{number}").mkdir()
            machines.erase(f"vm-{number}")

    with ThreadPoolExecutor() as pool:
        erasing = pool.submit(come_and_go)
        while not erasing.done():
            machines.strays()
    assert erasing.exception() is None and machines.strays() == []
