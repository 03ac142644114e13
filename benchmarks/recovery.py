"""How fast an evicted run is back, and that it always comes back, on the embedded Azure.

python benchmarks/recovery.py [--trials 3] [--factor 0.2] [--runs 1] [--hours 168] [--seed 7] [--json]

Overhead: a run on a `process` machine, operations as long as recorded on Azure times the factor, a watcher that looks
as often as it does on Azure, whatever the factor. From the moment at which the VM is deallocated to the container's
start, less Azure's own start of the VM: what is left is ours (looking, deciding, noting, the guest's scripts). The
trainer's own start is not counted.

Weeks: for each of Azure's eviction bands, runs on `simulated` machines under a simulated clock. Evictions at random at
the band's middle rate, seven in ten with notice; capacity gone for hours after some of them; an outage of Azure's API
each day; and the watcher killed at every tenth look, in the middle of a step where there is one. Each run has to end
with the hash chain of a run that was left alone. The limit of goodput is M / (M + R): mean time between evictions, and
from an eviction to the first new step, as it was in the run, waiting for capacity included.
"""

import argparse
import hashlib
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.up import TRAINER, Steps

# Per hour: the middle of each band that Azure publishes; of the last one, which has no end, 25 %.
BANDS = {"0-5": 0.025, "5-10": 0.075, "10-15": 0.125, "15-20": 0.175, "20+": 0.25}
KILLED_LOOKS = 0.1
NOTICED = 0.7
WITHOUT_CAPACITY = 0.3
SHORTAGE_HOURS = 2.0
HOURLY_LOOKS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3, help="evictions timed  [3]")
    parser.add_argument("--factor", type=float, default=0.2, help="what Azure's durations are multiplied by  [0.2]")
    parser.add_argument("--runs", type=int, default=1, help="runs beside each other in each band  [1]")
    parser.add_argument("--hours", type=int, default=168, help="training that each run needs  [168]")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    if arguments.trials:
        with tempfile.TemporaryDirectory() as home:
            found |= overhead(Path(home), arguments.trials, arguments.factor)
    if arguments.runs:
        found |= weeks(arguments.runs, arguments.hours, arguments.seed)
    print(json.dumps(found) if arguments.json else table(found))


# overhead


def overhead(home: Path, trials: int, factor: float) -> dict[str, Any]:
    from cloudtrain.azure.session import embedded_azure
    from cloudtrain.clock import SystemClock
    from cloudtrain.emulator import settings

    clock = SystemClock()
    emulator = embedded_azure(home, clock, trainer=[sys.executable, "-sSEB", "-c", TRAINER])
    emulator.set(lambda records, _: settings.set_latency(records, "azure", factor))
    try:
        seconds = recoveries(emulator, home, clock, trials)
    finally:
        # The session has closed it.
        embedded_azure(home, clock).reset()
    return {
        "own_overhead_seconds": round(max(seconds), 2),
        "own_overhead_seconds_median": round(statistics.median(seconds), 2),
        "trials": trials,
    }


def recoveries(emulator: Any, home: Path, clock: Any, trials: int) -> list[float]:
    """Seconds of each recovery that are ours, under one watcher."""
    from cloudtrain.azure import retries, session
    from cloudtrain.runs import key_pair
    from cloudtrain.spec import Settings, resolve
    from cloudtrain.workflow.context import Context
    from cloudtrain.workflow.stop import stop
    from cloudtrain.workflow.up import up
    from cloudtrain.workflow.watch import watch

    with session.on_emulator(emulator, clock, retries.AZURE, session.AZURE_POLL_SECONDS) as opened:
        context = Context(opened, clock, Steps())
        spec = resolve(Settings(run="bench"), opened.defaults, key_pair(home, "embedded", "bench")[1])
        up(context, spec)
        watcher = threading.Thread(target=watch, args=(context, "bench"), kwargs={"once": False, "emit": print_not})
        watcher.start()
        try:
            return [timed(emulator, context) for _ in range(trials)]
        finally:
            # A run that is not wanted any more ends its watcher.
            stop(context, "bench")
            watcher.join()


def timed(emulator: Any, context: Any) -> float:
    from cloudtrain.azure import group as groups
    from cloudtrain.workflow import training

    opened = context.session
    opened.set_notice(_vm_id(emulator), 0.0)
    opened.compute.virtual_machines.simulate_eviction("cloudtrain-bench", "bench-g1")
    deallocated = _when(emulator, "deallocated")
    start = _operation(emulator, "vm.start", deallocated)
    # The guest's boot takes a second or two.
    time.sleep(5)
    seen = training.observe(context, groups.get(opened, "bench"), events=-4096)
    container = max(event.time for event in seen.events if event.event == "started")
    return float(start.started - deallocated + max(0.0, container - start.due))


def print_not(_: Any) -> None:
    """What the watcher says does not matter here."""


def _vm_id(emulator: Any) -> str:
    return str(emulator.status()["vms"][0]["id"])


def _when(emulator: Any, power: str) -> float:
    """The time at which Azure first reports that power state."""
    while emulator.status()["vms"][0]["power_state"] != power:
        time.sleep(0.02)
    return time.time()


def _operation(emulator: Any, kind: str, after: float) -> Any:
    """The operation of that kind which was asked for after that time, once it has ended."""
    while True:
        for each in emulator.done():
            if each.kind == kind and each.started > after and time.time() > each.due:
                return each
        time.sleep(0.1)


# weeks


class SimulatedClock:
    """Time passes only where somebody waits for it, or is told to."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += timedelta(seconds=max(0.0, seconds))


class Killed(BaseException):
    """kill -9 of the watcher."""


class Fragile(Steps):
    """A watcher's progress, at whose steps it is killed: before the work, or right after it."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance, self.doomed = chance, False

    @contextmanager
    def step(self, title: str, usually: str = "") -> Iterator[Any]:
        if self.doomed and self.chance.random() < 0.5:
            raise Killed
        yield self
        if self.doomed:
            raise Killed


def weeks(runs: int, hours: int, seed: int) -> dict[str, Any]:
    bands = {band: [simulate(rate, hours, f"{seed} {band} {n}") for n in range(runs)] for band, rate in BANDS.items()}
    every = [run for found in bands.values() for run in found]
    return {
        "runs": len(every),
        "finished_with_the_undisturbed_digest": sum(run["exact"] for run in every),
        "evictions": sum(run["evictions"] for run in every),
        "refused_starts": sum(run["refusals"] for run in every),
        "watchers_killed": sum(run["killed"] for run in every),
        "steps_lost_with_notice": sum(run["lost_with_notice"] for run in every),
        "intervals_lost_without_notice_max": max(run["intervals_lost"] for run in every),
        "false_restarts": sum(run["false_restarts"] for run in every),
        "orphans": sum(run["orphans"] for run in every),
        "goodput": {
            band: {
                "goodput": round(statistics.mean(run["goodput"] for run in found), 4),
                "limit": round(statistics.mean(run["limit"] for run in found), 4),
            }
            for band, found in bands.items()
        },
    }


def simulate(rate: float, hours: int, seed: str) -> dict[str, Any]:
    """One run from `up` to `down`. rate: evictions an hour."""
    with tempfile.TemporaryDirectory() as home:
        return Story(Path(home), rate, hours, seed).told()


class Story:
    def __init__(
        self,
        home: Path,
        rate: float,
        hours: int,
        seed: str,
        *,
        killed_looks: float = KILLED_LOOKS,
        shortage_hours: float = SHORTAGE_HOURS,
    ) -> None:
        from cloudtrain.azure.session import on_emulator
        from cloudtrain.emulator.embedded import EmbeddedAzure
        from cloudtrain.emulator.machines.simulated import Job, SimulatedMachines
        from cloudtrain.guest.simulated import SimulatedGuest
        from cloudtrain.workflow.context import Context

        self.home, self.rate, self.chance = home, rate, random.Random(seed)
        self.killed_looks, self.shortage_hours = killed_looks, shortage_hours
        self.clock = SimulatedClock()
        self.job = Job(steps=hours * 60, step_seconds=60.0, checkpoint_seconds=600.0)
        self.machines = SimulatedMachines(self.clock, SimulatedGuest(), self.job)
        self.azure = EmbeddedAzure(home / "azure", clock=self.clock, machines=self.machines)
        self.session = on_emulator(self.azure, self.clock)
        self.context = Context(self.session, self.clock, Steps())
        self.killed = 0
        self.evicted_at = 0.0

    def told(self) -> dict[str, Any]:
        from cloudtrain.runs import key_pair
        from cloudtrain.spec import Settings, resolve
        from cloudtrain.workflow.down import down
        from cloudtrain.workflow.history import history
        from cloudtrain.workflow.up import up

        spec = resolve(Settings(run="story"), self.session.defaults, key_pair(self.home, "embedded", "story")[1])
        up(self.context, spec)
        self._live()
        training = self.machines.training(self._vm())
        data = history(self.context, "story")
        lost, per_interval = losses(training.events), self.job.steps_per_checkpoint
        result = {
            "exact": training.digest == undisturbed(self.job.steps),
            "evictions": data.evictions,
            "refusals": data.refusals,
            "killed": self.killed,
            "lost_with_notice": sum(steps for steps, noticed in lost if noticed),
            "intervals_lost": max((steps / per_interval for steps, noticed in lost if not noticed), default=0.0),
            "false_restarts": sum(trained for _, _, trained in self.machines.boots),
            "goodput": data.goodput,
            "limit": limit(self.rate, data),
        }
        down(self.context, "story")
        result["orphans"] = len(self.azure.status()["resource_groups"]) - 1 + len(self.machines.strays())
        self.session.__exit__(None, None, None)
        return result

    def _vm(self) -> str:
        (found,) = self.machines.strays()
        return found

    def _now(self) -> float:
        return self.clock.now().timestamp()

    def _live(self) -> None:
        """Until the run has finished and its VM is off."""
        due = self._next_eviction()
        while True:
            on = self.machines.power(self._vm()).on
            if not on and self.machines.training(self._vm()).finished:
                return
            look = self._now() + (3600 / HOURLY_LOOKS if on else 30.0)
            # A clock counts microseconds: less than one would leave it standing, for ever.
            self.clock.sleep(max(0.001, min(look, due if on else look) - self._now()))
            if on and self._now() >= due:
                self._evict()
                due = self._next_eviction()
            self._look()

    def _next_eviction(self) -> float:
        return self._now() + self.chance.expovariate(self.rate) * 3600

    def _evict(self) -> None:
        from cloudtrain.emulator import settings

        if not self.machines.power(self._vm()).on:
            return
        self.machines.evict(self._vm(), 30.0 if self.chance.random() < NOTICED else 0.0)
        if self.chance.random() < WITHOUT_CAPACITY:
            until = self._now() + self.chance.expovariate(1 / self.shortage_hours) * 3600
            self.azure.set(lambda records, _: settings.set_shortage(records, None, None, None, until))

    def _look(self) -> None:
        """A watcher that looks once; another one each time, and a tenth of them do not survive it."""
        from cloudtrain.azure import lease
        from cloudtrain.errors import CloudtrainError
        from cloudtrain.workflow.context import Context
        from cloudtrain.workflow.watch import watch

        progress = Fragile(self.chance)
        progress.doomed = self.chance.random() < self.killed_looks
        if self._now() % 86400 < 1200:
            return  # Azure's API is out of reach for twenty minutes a day
        release = lease.release
        if progress.doomed:
            lease.release = lambda *_: None
        try:
            watch(Context(self.session, self.clock, progress), "story", once=True, emit=print_not)
        except Killed:
            self.killed += 1
        except CloudtrainError:
            return
        finally:
            lease.release = release


def losses(events: list[dict[str, Any]]) -> list[tuple[int, bool]]:
    """Of each resume: the steps done again, and whether a notice came before it."""
    found, noticed = [], False
    for event in events:
        if event["event"] == "notice":
            noticed = True
        elif event["event"] == "first_step":
            if event["resumed_from_step"] is not None:
                found.append((event["steps_lost"] or 0, noticed))
            noticed = False
    return found


def limit(rate: float, data: Any) -> float:
    """M / (M + R)."""
    seconds = data.seconds
    mean = 3600 / rate
    restart = (seconds.waiting + seconds.restarting + seconds.saving) / max(1, data.evictions)
    return mean / (mean + restart)


def undisturbed(steps: int) -> str:
    digest = ""
    for step in range(1, steps + 1):
        digest = hashlib.sha256(f"{digest}{step}".encode()).hexdigest()
    return digest


def table(found: dict[str, Any]) -> str:
    lines = [f"{key:40}{value}" for key, value in found.items() if key != "goodput"]
    for band, figures in found.get("goodput", {}).items():
        lines.append(f"evicted {band:>5} % an hour: goodput {figures['goodput']:.4f}, limit {figures['limit']:.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
