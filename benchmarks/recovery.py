"""How fast an evicted run is back, and that it always comes back, on the embedded Azure.

python benchmarks/recovery.py [--trials 3] [--factor 0.2] [--runs 1] [--hours 168] [--seed 7] [--json]

Overhead: a run on a `process` machine, operations as long as recorded on Azure times the factor, a watcher that looks
as often as it does on Azure, whatever the factor. From the moment at which the VM is deallocated to the container's
start, less Azure's own start of the VM: what is left is ours (looking, deciding, noting, the guest's scripts). The
trainer's own start is not counted.

Weeks: for each of Azure's eviction bands, runs on `simulated` machines beside each other in one embedded Azure, under a
simulated clock. Evictions at random at the band's middle rate, seven in ten with notice, every second run with the
policy Delete; operations as long as recorded on Azure; capacity gone for hours now and then, in a zone, a region or
everywhere; an outage of Azure's API each day; and the watcher killed at a tenth of its looks, at one of its requests.
Each run has to end with the hash chain of a run that was left alone. The limit of goodput is M / (M + R): mean time
between evictions, and from an eviction to the first new step, as it was in the run, waiting for capacity included.
"""

import argparse
import functools
import hashlib
import heapq
import importlib
import itertools
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.up import TRAINER, Steps

# Per hour: the middle of each band that Azure publishes; of the last one, which has no end, 25 %.
BANDS = {"0-5": 0.025, "5-10": 0.075, "10-15": 0.125, "15-20": 0.175, "20+": 0.25}
KILLED_LOOKS = 0.1
NOTICED = 0.7
SHORTAGE_HOURS = 2.0
# Mean hours from one shortage of capacity to the next, by location and zone: a third of all evictions fall into one.
SHORTAGES = {("eastus", "1"): 12.0, ("eastus", None): 24.0, (None, None): 48.0}
BEGUN_EVERY_SECONDS = 10.0
# From an eviction to the look that sees it: Azure takes most of it to deallocate the VM.
EVICTED_SECONDS = 45.0
# Nobody sleeps less: each look at what is under way costs real time.
SHORTEST_SLEEP = 20.0
# Between two looks at a run that trains.
HEALTHY_HOURS = 12.0


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
    from cloudtrain.lifecycle.context import Context
    from cloudtrain.runs import key_pair
    from cloudtrain.spec import Settings, resolve
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
    from cloudtrain.lifecycle import training

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


class Timeline:
    """A clock for many actors, of whom one acts at a time while the others sleep. Whoever sleeps is woken late."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self._due: list[tuple[datetime, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._idle = threading.Semaphore(0)
        self._failure: BaseException | None = None

    def now(self) -> datetime:
        return self._now

    def sleep(self, seconds: float) -> None:
        woken = threading.Event()
        self._at(self._now + timedelta(seconds=max(SHORTEST_SLEEP, seconds)), woken.set)
        self._idle.release()
        woken.wait()

    def act(self, moment: float, work: Callable[[], None]) -> None:
        """Have somebody do that, at a moment in epoch seconds."""
        actor = threading.Thread(target=self._work, args=(work,), daemon=True)
        self._at(datetime.fromtimestamp(moment, UTC), actor.start)

    def play(self) -> None:
        """Until nobody has anything to do any more."""
        while self._due and self._failure is None:
            moment, _, go_on = heapq.heappop(self._due)
            self._now = max(self._now, moment)
            go_on()
            self._idle.acquire()
        if self._failure is not None:
            raise self._failure

    def _at(self, moment: datetime, go_on: Callable[[], None]) -> None:
        heapq.heappush(self._due, (moment, next(self._count), go_on))

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - an actor's thread has nobody to raise to: whoever plays does
            self._failure = error
        finally:
            self._idle.release()


class AtOnce:
    """A thread whose work is done when it is started: an actor is one thread, whatever works for it in others."""

    def __init__(self, target: Callable[..., Any], args: tuple[Any, ...] = (), **_: Any) -> None:
        self._work = functools.partial(target, *args)

    def start(self) -> None:
        self._work()

    def join(self, timeout: float | None = None) -> None:
        """It has ended."""

    def is_alive(self) -> bool:
        return False


class Killed(BaseException):
    """kill -9 of the watcher."""


class FragileCloud:
    """The embedded Azure, asked by watchers of whom some are killed at one of their requests: before it is sent, or
    before its answer is heard."""

    def __init__(self, azure: Any, chance: random.Random) -> None:
        self._azure, self._chance = azure, chance
        self._actor = threading.local()

    def doom(self, requests: int | None) -> None:
        """Whoever calls has so many requests left; None: any number."""
        self._actor.left = requests
        self._actor.heard = self._chance.random() < 0.5

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        left = getattr(self._actor, "left", None)
        if left is None:
            return self._azure(environ, start_response)
        if left <= 0:
            raise Killed
        self._actor.left = left - 1
        answer = self._azure(environ, start_response)
        if left == 1 and not self._actor.heard:
            raise Killed
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._azure, name)


def weeks(runs: int, hours: int, seed: int) -> dict[str, Any]:
    """runs: in each band."""
    rates = {f"{name}-{n}": (band, rate) for name, (band, rate) in _NAMES.items() for n in range(runs)}
    with tempfile.TemporaryDirectory() as home:
        every = World(Path(home), {run: rate for run, (_, rate) in rates.items()}, hours, str(seed)).told()
    return {
        "runs": len(every),
        "finished_with_the_undisturbed_digest": sum(run["exact"] for run in every.values()),
        "evictions": sum(run["evictions"] for run in every.values()),
        "moves": sum(run["moves"] for run in every.values()),
        "refused_starts": sum(run["refusals"] for run in every.values()),
        "watchers_killed": sum(run["killed"] for run in every.values()),
        "steps_lost_with_notice": sum(run["lost_with_notice"] for run in every.values()),
        "intervals_lost_without_notice_max": round(max(run["intervals_lost"] for run in every.values()), 3),
        "false_restarts": sum(run["false_restarts"] for run in every.values()),
        "two_at_once": sum(run["two_at_once"] for run in every.values()),
        "orphans": sum(run["orphans"] for run in every.values()),
        "goodput": {
            band: {
                key: round(statistics.mean(every[run][key] for run in every if rates[run][0] == band), 4)
                for key in ("goodput", "limit")
            }
            for band in BANDS
        },
    }


_NAMES = {f"band{n}": (band, rate) for n, (band, rate) in enumerate(BANDS.items())}


@dataclass
class Life:
    """One run of the world. plan: the number of its next look, by which an earlier one is known. unseen: whether it was
    evicted since the last look began. said: by the last look. killed: its watchers."""

    run: str
    rate: float
    delete: bool
    chance: random.Random
    plan: int = 0
    looking: bool = False
    unseen: bool = False
    said: str = ""
    killed: int = 0
    evicted: int = 0
    result: dict[str, Any] = field(default_factory=dict)


class World:
    """Runs beside each other in one embedded Azure, from `up` to `down`. rates: run -> evictions an hour.

    Every second run has the eviction policy Delete; all have checkpoints in storage, two zones, another size, another
    location, and on demand after an hour."""

    def __init__(
        self,
        home: Path,
        rates: dict[str, float],
        hours: float,
        seed: str,
        *,
        killed_looks: float = KILLED_LOOKS,
        shortage_hours: float = SHORTAGE_HOURS,
        shortages: dict[tuple[str | None, str | None], float] = SHORTAGES,
    ) -> None:
        from cloudtrain.azure import retries
        from cloudtrain.azure.session import AZURE_POLL_SECONDS, on_emulator
        from cloudtrain.emulator import settings
        from cloudtrain.emulator.embedded import EmbeddedAzure
        from cloudtrain.emulator.machines.simulated import Job, SimulatedMachines
        from cloudtrain.guest.simulated import SimulatedGuest
        from cloudtrain.lifecycle.context import Context

        self.home, self.chance = home, random.Random(seed)
        self.killed_looks, self.shortage_hours, self.shortages = killed_looks, shortage_hours, shortages
        self.clock = Timeline()
        self.job = Job(steps=int(hours * 60), step_seconds=60.0, checkpoint_seconds=600.0, upload_seconds=5.0)
        self.machines = SimulatedMachines(self.clock, SimulatedGuest(), self.job)
        self.azure = FragileCloud(
            EmbeddedAzure(home / "azure", clock=self.clock, machines=self.machines), random.Random(f"{seed} kills")
        )
        self.session = on_emulator(self.azure, self.clock, retries.AZURE, AZURE_POLL_SECONDS)
        self.azure.set(lambda records, _: settings.set_latency(records, "azure", 1.0))
        self.context = Context(self.session, self.clock, Steps())
        self.latest = self._now() + 20 * hours * 3600
        cores = 100 * len(rates)
        self.azure.set(lambda records, _: settings.set_quota(records, "spot_cores", cores, None))
        self.azure.set(lambda records, _: settings.set_quota(records, "cores", cores, None))
        self.lives = [
            Life(run, rate, bool(n % 2), random.Random(f"{seed} {run}")) for n, (run, rate) in enumerate(rates.items())
        ]

    def told(self) -> dict[str, dict[str, Any]]:
        with ExitStack() as changes:
            for module in ("azure.core.polling._poller", "cloudtrain.together", "cloudtrain.emulator.operations"):
                importlib.import_module(module)
                at_once = SimpleNamespace(Thread=AtOnce, Event=threading.Event)
                changes.enter_context(patch(f"{module}.threading", at_once))
            # A simulated guest writes no blobs.
            holds = lambda _, group, step: self.machines.holds(group.name, step)  # noqa: E731
            changes.enter_context(patch("cloudtrain.lifecycle.stored.holds", holds))
            return self._told()

    def _told(self) -> dict[str, dict[str, Any]]:
        for n, life in enumerate(self.lives):
            self.clock.act(self._now() + n * BEGUN_EVERY_SECONDS, functools.partial(self._begin, life))
        for place, every in self.shortages.items():
            self.clock.act(self._after(self.chance, every), functools.partial(self._shortage, place, every))
        self.clock.act(self._now() + 86400, self._tell)
        self.clock.play()
        left = len(self.azure.status()["resource_groups"]) - len(self._of_azure())
        orphans = left + len(self.machines.strays()) + len(self.azure.status()["storage_accounts"])
        self.lives[0].result["orphans"] += orphans
        self.session.__exit__(None, None, None)
        return {life.run: life.result for life in self.lives}

    @property
    def _over(self) -> bool:
        return all(life.result for life in self.lives)

    def _tell(self) -> None:
        """How far it is, each simulated day."""
        ended, evicted = sum(bool(life.result) for life in self.lives), sum(life.evicted for life in self.lives)
        print(f"{self.clock.now():%Y-%m-%d}: {ended} of {len(self.lives)} ended, {evicted} evictions", file=sys.stderr)
        if not self._over:
            self.clock.act(self._now() + 86400, self._tell)

    def _after(self, chance: random.Random, hours: float) -> float:
        """When the next of what comes every so many hours, in the mean."""
        return self._now() + chance.expovariate(1 / hours) * 3600

    def _shortage(self, place: tuple[str | None, str | None], every: float) -> None:
        from cloudtrain.emulator import settings

        (location, zone), until = place, self._after(self.chance, self.shortage_hours)
        self.azure.set(lambda records, _: settings.set_shortage(records, None, zone, location, until))
        if not self._over:
            self.clock.act(self._after(self.chance, every), functools.partial(self._shortage, place, every))

    def _of_azure(self) -> list[str]:
        return [name for name in self.azure.status()["resource_groups"] if name == "NetworkWatcherRG"]

    def _now(self) -> float:
        return self.clock.now().timestamp()

    def _begin(self, life: Life) -> None:
        from cloudtrain.runs import key_pair
        from cloudtrain.spec import Settings, resolve
        from cloudtrain.workflow.up import up

        wanted = Settings(
            run=life.run,
            zones=("1", "2"),
            other_sizes=("Standard_D2s_v5",),
            other_locations=("westus2",),
            fallback="on-demand:1h",
        )
        spec = resolve(wanted, self.session.defaults, key_pair(self.home, "embedded", "all")[1])
        spec = msgspec.structs.replace(spec, eviction_policy="Delete" if life.delete else "Deallocate")
        up(self.context, spec)
        self._plan(life, self._now() + 60)
        self.clock.act(self._after(life.chance, 1 / life.rate), functools.partial(self._evict, life))

    def _plan(self, life: Life, moment: float) -> None:
        """The next look; the one that was planned before is not made."""
        if self._now() > self.latest:
            raise RuntimeError(f"{life.run} does not end: {life.said}")
        life.plan += 1
        self.clock.act(moment, functools.partial(self._look, life, life.plan))

    def _vm(self, life: Life) -> str:
        """Of the VM that is on; "" where none is."""
        on = self.machines.on_in(f"cloudtrain-{life.run}")
        assert len(on) <= 2, on
        return on[-1] if on else ""

    def _evict(self, life: Life) -> None:
        if life.result:
            return
        self.clock.act(self._after(life.chance, 1 / life.rate), functools.partial(self._evict, life))
        vm = self._vm(life)
        if not vm or not self.machines.may_be_evicted(vm):
            return
        life.evicted, life.unseen = life.evicted + 1, True
        self.machines.evict(vm, 30.0 if life.chance.random() < NOTICED else 0.0)
        if not life.looking:
            self._plan(life, self._now() + EVICTED_SECONDS)

    def _look(self, life: Life, plan: int) -> None:
        if life.result or plan != life.plan:
            return
        life.looking, life.unseen = True, False
        following = self._looked(life)
        life.looking = False
        if not life.result:
            self._plan(life, min(following, self._now() + EVICTED_SECONDS) if life.unseen else following)

    def _looked(self, life: Life) -> float:
        """A watcher that looks once; another one each time, and some of them do not survive it. Returns when the next
        look is due."""
        from cloudtrain.errors import CloudtrainError
        from cloudtrain.workflow.watch import watch

        if self._now() % 86400 < 1200:
            return self._now() + 30  # Azure's API is out of reach for twenty minutes a day
        doomed = life.chance.random() < self.killed_looks
        self.azure.doom(life.chance.randrange(30) if doomed else None)
        try:
            found = watch(self.context, life.run, once=True, emit=print_not)
        except Killed:
            life.killed += 1
            return self._now() + 30
        except CloudtrainError as error:
            life.said = error.message
            return self._now() + 30
        finally:
            self.azure.doom(None)
        life.said = found.text
        if found.state == "finished" and not self._vm(life):
            self._end(life)
        if found.action == "nothing" and found.state == "running" and "another watcher" not in found.text:
            return min(self._now() + 3600 * HEALTHY_HOURS, self._ends(life))
        waits = datetime.fromisoformat(found.next_look).timestamp() + 1 if found.next_look else 0.0
        return max(self._now() + 30, waits)

    def _ends(self, life: Life) -> float:
        """When training will have finished, if nothing happens."""
        vm = self._vm(life)
        if not vm:
            return self._now() + EVICTED_SECONDS
        told = self.machines.training(vm)
        return self._now() + max(60.0, (told.total - told.step + 2) * self.job.step_seconds)

    def _end(self, life: Life) -> None:
        from cloudtrain.workflow.down import down
        from cloudtrain.workflow.history import history
        from cloudtrain.workflow.pull import Destination

        stored, data = self.machines.storages[f"cloudtrain-{life.run}"], history(self.context, life.run)
        per_interval = self.job.steps_per_checkpoint
        life.result = {
            "exact": stored.finished and stored.newest.digest == undisturbed(self.job.steps),
            "evictions": data.evictions,
            "moves": stored.generation - 1,
            "refusals": data.refusals,
            "killed": life.killed,
            "lost_with_notice": sum(loss.steps for loss in stored.losses if loss.noticed),
            "intervals_lost": max((loss.steps / per_interval for loss in stored.losses if not loss.noticed), default=0),
            "false_restarts": stored.false_boots,
            "two_at_once": stored.doubles,
            "goodput": data.goodput,
            "limit": limit(life.rate, data),
        }
        result = down(self.context, life.run, Destination(), discard=True)
        life.result["orphans"] = len(result.left)


@functools.cache
def undisturbed(steps: int) -> str:
    digest = ""
    for step in range(1, steps + 1):
        digest = hashlib.sha256(f"{digest}{step}".encode()).hexdigest()
    return digest


def limit(rate: float, data: Any) -> float:
    """M / (M + R)."""
    seconds = data.seconds
    mean = 3600 / rate
    restart = (seconds.waiting + seconds.restarting + seconds.saving) / max(1, data.evictions)
    return mean / (mean + restart)


def table(found: dict[str, Any]) -> str:
    lines = [f"{key:40}{value}" for key, value in found.items() if key != "goodput"]
    for band, figures in found.get("goodput", {}).items():
        lines.append(f"evicted {band:>5} % an hour: goodput {figures['goodput']:.4f}, limit {figures['limit']:.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
