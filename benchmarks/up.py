"""How long `up` takes on the embedded Azure at Azure's recorded durations, beside what has to follow each other.

python benchmarks/up.py [--factor 1.0] [--json]

The run is a rehearsal whose operations take as long as they were recorded to take on Azure (times the factor), that
asks for their progress as rarely as it does on Azure, and whose trainer does its first step at once. The critical path
is the longest chain of operations that need each other, each by its own duration, then the trainer's start:

    virtual network, network security group  ->  VM  ->  RunCommand  ->  trainer

Whatever `up` takes longer is ours: looking whether an operation has ended, starting Python, the guest's scripts. At
factor 1 a run takes under two minutes; smaller factors leave our own share as it is, so that it weighs more.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

TRAINER = """
import json, os, time
place = os.environ["CHECKPOINT_DIR"] + "/progress.json"
for step in range(10**9):
    told = {"step": step, "total_steps": 10**9, "epoch": 1, "resumed_from_step": 0, "time": time.time()}
    with open(place + ".new", "w") as file:
        json.dump(told, file)
    os.rename(place + ".new", place)
    time.sleep(0.05)
"""
NEEDS = {
    "virtual network": [],
    "network security group": [],
    "VM": ["virtual network", "network security group"],
    "RunCommand": ["VM"],
    "trainer": ["RunCommand"],
}


@dataclass
class Span:
    """Seconds since `up` began."""

    name: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Steps:
    """A `Progress` that remembers when each step began and ended."""

    def __init__(self) -> None:
        self.began = time.time()
        self.spans: list[Span] = []
        self._lock = threading.Lock()

    @contextmanager
    def step(self, title: str, usually: str = "") -> Iterator[Any]:
        start = time.time()
        yield self
        with self._lock:
            self.spans.append(Span(title, start - self.began, time.time() - self.began))

    def update(self, text: str) -> None:
        """What is awaited does not matter here."""

    def note(self, text: str) -> None:
        """Nor what a person is told."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factor", type=float, default=1.0, help="what Azure's durations are multiplied by  [1.0]")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        found = measure(Path(home), arguments.factor)
    print(json.dumps(found) if arguments.json else table(found))


def measure(home: Path, factor: float) -> dict[str, Any]:
    from cloudtrain.azure.session import embedded_azure
    from cloudtrain.clock import SystemClock
    from cloudtrain.emulator import settings

    clock = SystemClock()
    emulator = embedded_azure(home, clock, trainer=[sys.executable, "-sSEB", "-c", TRAINER])
    emulator.set(lambda records, _: settings.set_latency(records, "azure", factor))
    try:
        return figures(emulator, home, clock, factor)
    finally:
        # The session has closed it.
        embedded_azure(home, clock).reset()


def figures(emulator: Any, home: Path, clock: Any, factor: float) -> dict[str, Any]:
    steps = Steps()
    from cloudtrain.azure import group, retries, session
    from cloudtrain.lifecycle import training
    from cloudtrain.lifecycle.context import Context
    from cloudtrain.runs import key_pair
    from cloudtrain.spec import Settings, resolve
    from cloudtrain.workflow.up import up

    pace = retries.Pace(retries.AZURE.backoff, retries.AZURE.read_timeout, retries.AZURE.look * factor)
    with session.on_emulator(emulator, clock, pace, session.AZURE_POLL_SECONDS * factor) as opened:
        context = Context(opened, clock, steps)
        spec = resolve(Settings(run="bench"), opened.defaults, key_pair(home, "embedded", "bench")[1])
        result = up(context, spec)
        makespan = time.time() - steps.began
        assert result.state == "running", result
        done = emulator.done()
        seen = training.observe(context, group.get(opened, "bench"), events=-4096)
    chain = operations(done, steps.began)
    chain.append(trainer_start(seen.events, steps.began))
    path = critical_path({span.name: span.seconds for span in chain})
    seconds = sum(span.seconds for span in chain if span.name in path)
    return {
        "makespan_over_critical_path": round(makespan / seconds, 3),
        "run_commands": sum(each.kind in ("runCommand.put", "runCommand.action") for each in done),
        "makespan_seconds": round(makespan, 2),
        "critical_path_seconds": round(seconds, 2),
        "critical_path": path,
        "factor": factor,
        "steps": [rounded(span) for span in sorted(steps.spans, key=lambda span: span.start)],
        "operations": [rounded(span) | {"needs": NEEDS[span.name]} for span in chain],
    }


def operations(done: list[Any], began: float) -> list[Span]:
    """What Azure did, each from its request to when it was due: not to when anybody looked."""
    names = {"vnet": "virtual network", "nsg": "network security group"}
    spans = []
    for each in done:
        last = each.target.rsplit("/", 1)[-1].rsplit("-", 1)[-1]
        name = {"vm.create": "VM", "runCommand.put": "RunCommand"}.get(each.kind) or names.get(last)
        if name is not None:
            spans.append(Span(name, each.started - began, each.due - began))
    return spans


def trainer_start(events: Any, began: float) -> Span:
    """From the container's start to its first step, as the guest tells."""
    times = {event.event: event.time for event in reversed(events)}
    return Span("trainer", times["started"] - began, max(times["started"], times.get("first_step", 0)) - began)


def critical_path(seconds: dict[str, float]) -> list[str]:
    """The longest chain through NEEDS."""

    def longest(name: str) -> tuple[float, list[str]]:
        before = max((longest(other) for other in NEEDS[name]), default=(0.0, []))
        return before[0] + seconds[name], [*before[1], name]

    return max(longest(name) for name in seconds)[1]


def rounded(span: Span) -> dict[str, Any]:
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(span).items()}


def table(found: dict[str, Any]) -> str:
    width = max(len(span["name"]) for span in (*found["steps"], *found["operations"]))
    lines = [f"{'steps of up':{width}}{'start':>9}{'end':>9}{'seconds':>9}"]
    lines += [row(span, width) for span in found["steps"]]
    lines += ["", f"{'Azure, and the trainer':{width}}{'start':>9}{'end':>9}{'seconds':>9}"]
    lines += [
        row(span, width) + ("  *" if span["name"] in found["critical_path"] else "") for span in found["operations"]
    ]
    lines += [
        "",
        f"makespan        {found['makespan_seconds']:8.2f} s",
        f"critical path * {found['critical_path_seconds']:8.2f} s",
        f"ratio           {found['makespan_over_critical_path']:8.3f}",
        f"RunCommands     {found['run_commands']:8d}",
    ]
    return "\n".join(lines)


def row(span: dict[str, Any], width: int) -> str:
    return f"{span['name']:{width}}{span['start']:9.2f}{span['end']:9.2f}{span['end'] - span['start']:9.2f}"


if __name__ == "__main__":
    main()
