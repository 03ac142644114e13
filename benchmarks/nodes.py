"""How fast a node (a VM of kind `container`) boots, and how fast its power is cut. Needs a Docker engine and root.

    python benchmarks/nodes.py --base IMAGE [--rounds 10] [--json]

IMAGE: any Debian or Ubuntu image; without it one is made with debootstrap. Everything it makes is removed again.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cloudtrain.clock import SystemClock
from cloudtrain.emulator.machines import MachineSpec, Script, ScriptState
from cloudtrain.emulator.machines.container import ContainerMachines, container_machines

VM = "0b5c1a4e-0000-4000-8000-00000000be7c"
SPEC = MachineSpec(
    vm_id=VM,
    name="bench-g1",
    computer_name="bench-g1",
    subscription_id="0",
    resource_group="bench",
    location="eastus",
    size="Standard_D2s_v3",
    priority="Spot",
    eviction_policy="Deallocate",
)
# As many processes as a VM in use has, and half of them deaf.
CROWD = "for n in $(seq 30); do nohup sh -c \"trap '' TERM; while :; do sleep 1; done\" >/dev/null 2>&1 & done"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="", help="image to build the node image on")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        machines = container_machines(Path(directory), clock=SystemClock(), node_base=arguments.base)
        try:
            figures = measure(machines, arguments.rounds)
        finally:
            machines.erase(VM)
            machines.sweep()
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, seconds in figures.items():
        median, longest = statistics.median(seconds), max(seconds)
        print(f"{name:32} median {median:6.2f} s   longest {longest:6.2f} s   n={len(seconds)}")


def measure(machines: ContainerMachines, rounds: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {"node image and registry": [timed(lambda: machines.prepare(lambda text: None))]}
    for _ in range(rounds):
        add(figures, "boot", timed(lambda: machines.boot(SPEC)))
        add(figures, "boot to inner engine", figures["boot"][-1] + timed(lambda: script(machines, _ENGINE)))
        script(machines, CROWD)
        add(figures, "power cut, 30 processes", timed(lambda: machines.power_off(VM)))
        machines.boot(SPEC)
        script(machines, _ENGINE)
        add(figures, "reboot", timed(lambda: machines.reboot(VM)))
        add(figures, "script that does nothing", timed(lambda: script(machines, "true")))
        add(figures, "eviction without notice", timed(lambda: machines.evict(VM, 0)))
    add(figures, "erase", timed(lambda: machines.erase(VM)))
    return figures


_ENGINE = "until docker info >/dev/null 2>&1; do sleep 0.05; done"


def script(machines: ContainerMachines, text: str) -> None:
    key = machines.start_script(VM, Script("managed", "bench", text))
    while machines.script(VM, key).state is ScriptState.RUNNING:
        time.sleep(0.02)


def timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def add(figures: dict[str, list[float]], name: str, seconds: float) -> None:
    figures.setdefault(name, []).append(seconds)


if __name__ == "__main__":
    main()
