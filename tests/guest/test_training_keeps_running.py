"""The startup script: one trainer, kept running, whatever is killed or asked for meanwhile."""

from guest_vm import Vm


def test_the_first_installation_ends_at_the_first_step(vm: Vm) -> None:
    outcome = vm.install("--print")
    print(outcome, (vm.home / "startup.log").read_text() if (vm.home / "startup.log").exists() else "")
    assert (outcome.rc, outcome.seen) == (0, "progress")
