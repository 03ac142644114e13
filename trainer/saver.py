"""How checkpoints get to disk: in the training thread or beside it, never two at once."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import checkpoint, files, policy
from trainer.errors import reason

RECENT = 5

Snapshot = Callable[[], checkpoint.Tensors]


@dataclass(frozen=True)
class Saved:
    """What became of one save. `error` is empty when the checkpoint is durable."""

    step: int
    cost: policy.Cost
    background: bool
    error: str = ""


class Saver:
    """Writes checkpoints into `directory`, keeps the newest `keep`, and measures what that costs.

    `report` is called with the outcome of each save, always in the thread that trains.
    A save that fails (disk full, read-only, too little memory) changes nothing on disk and never raises.
    """

    def __init__(self, directory: Path, *, keep: int, report: Callable[[Saved], None]) -> None:
        self.directory = directory
        self.keep = keep
        self.report = report
        self.costs: deque[policy.Cost] = deque(maxlen=RECENT)
        self.durable_step: int | None = None
        self._writing: threading.Thread | None = None
        self._outcome: Saved | None = None
        self._meter = CoreMeter()

    def is_due(self, interval: policy.Interval, *, steps: int, seconds: float) -> bool:
        self.collect()
        if self._writing is not None:
            return False
        return policy.is_due(interval, steps=steps, seconds=seconds, costs=self.costs)

    def save(self, meta: Mapping[str, Any], tensors: Snapshot) -> None:
        """Write now, or begin to: arrays that alias live variables are copied before this returns."""
        begun = time.perf_counter()
        self.wait()
        if not policy.in_background(busy=self._meter.busy(), costs=self.costs):
            self._write_here(meta, tensors, begun)
            return
        error = _attempt(lambda: self._write_beside(meta, tensors, begun))
        if error:
            self._ended_here(meta, begun, error)

    def _write_beside(self, meta: Mapping[str, Any], tensors: Snapshot, begun: float) -> None:
        copies = [(name, array.copy()) for name, array in tensors()]
        stall = time.perf_counter() - begun

        def write() -> None:
            error = self._write(meta, lambda: copies)
            cost = policy.Cost(stall, time.perf_counter() - begun)
            self._outcome = Saved(meta["step"], cost, True, error)

        writer = threading.Thread(target=write, name="checkpoint writer")
        writer.start()
        self._writing = writer

    def save_now(self, meta: Mapping[str, Any], tensors: Snapshot) -> bool:
        """Write in this thread, after whatever is being written. True when it is durable."""
        begun = time.perf_counter()
        self.wait()
        self._write_here(meta, tensors, begun)
        return bool(self.durable_step == meta["step"])

    def wait(self) -> None:
        """Return when nothing is being written any more."""
        if self._writing is not None:
            self._writing.join()
        self.collect()

    def collect(self) -> None:
        """Report a save that has ended since the last call."""
        if self._outcome is None or (self._writing is not None and self._writing.is_alive()):
            return
        outcome, self._outcome, self._writing = self._outcome, None, None
        self.costs.append(outcome.cost)
        if not outcome.error:
            self.durable_step = outcome.step
        self.report(outcome)

    def _write_here(self, meta: Mapping[str, Any], tensors: Snapshot, begun: float) -> None:
        self._ended_here(meta, begun, self._write(meta, tensors))

    def _ended_here(self, meta: Mapping[str, Any], begun: float, error: str) -> None:
        took = time.perf_counter() - begun
        self._outcome = Saved(meta["step"], policy.Cost(took, took), False, error)
        self.collect()

    def _write(self, meta: Mapping[str, Any], tensors: Snapshot) -> str:
        """Returns what went wrong, or nothing."""

        def write() -> None:
            self.directory.mkdir(parents=True, exist_ok=True)
            checkpoint.write(self.directory / checkpoint.file_name(meta["step"]), meta, tensors())
            self._thin_out()

        return _attempt(write)

    def _thin_out(self) -> None:
        names = [path.name for path in checkpoint.complete(self.directory)]
        for name in policy.superfluous(names, self.keep):
            files.discard(self.directory / name)


def _attempt(work: Callable[[], None]) -> str:
    """Returns what went wrong, or nothing."""
    try:
        work()
    except Exception as failure:  # noqa: BLE001 - whatever a save fails for, the next one may do: training goes on
        return reason(failure)
    return ""


class CoreMeter:
    """How busy this process has kept the cores that it may use, since the last question: 0 to 1."""

    def __init__(self) -> None:
        self._cores = len(os.sched_getaffinity(0))
        self._mark = (time.perf_counter(), time.process_time())

    def busy(self) -> float:
        wall, used = time.perf_counter(), time.process_time()
        elapsed = max(wall - self._mark[0], 1e-3)
        share = (used - self._mark[1]) / (elapsed * self._cores)
        self._mark = (wall, used)
        return min(1.0, share)
