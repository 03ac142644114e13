"""One training run: where it is, what it has measured, when it saves, and how it comes back.

The trainer's own loop, `model.fit` and custom loops all go through `Run`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer import checkpoint, metrics, policy, progress
from trainer.directory import Directory
from trainer.errors import Refused, TrainerError
from trainer.journal import Journal, now
from trainer.metrics import EventLog
from trainer.saver import Saved, Saver
from trainer.stop import StopRequest
from trainer.variables import Variables

SAVED_LINES_EVERY = 60.0
FINAL_ATTEMPTS = 3
FINAL_PAUSE = 2.0


@dataclass(frozen=True)
class Schedule:
    """How much there is to do. The last, smaller batch of an epoch is left out: a permutation a little
    different each epoch brings every example in, and each step has one shape."""

    examples: int
    batch_size: int
    epochs: int

    @property
    def steps_per_epoch(self) -> int:
        return self.examples // self.batch_size


@dataclass(frozen=True)
class Position:
    """`step` counts all steps so far, `epoch` begins at 0, `offset` is in examples of this epoch."""

    step: int = 0
    epoch: int = 0
    offset: int = 0

    def steps_left_in_epoch(self, schedule: Schedule) -> int:
        return (schedule.examples - self.offset) // schedule.batch_size

    def total_steps(self, schedule: Schedule) -> int:
        if self.epoch >= schedule.epochs:
            return self.step
        later = (schedule.epochs - self.epoch - 1) * schedule.steps_per_epoch
        return self.step + self.steps_left_in_epoch(schedule) + later


@dataclass(frozen=True)
class Restored:
    """The state that training goes on from: the newest whole checkpoint, or nothing yet."""

    checkpoint: checkpoint.Checkpoint | None
    damaged: tuple[str, ...]
    last_progress: Mapping[str, Any]

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.checkpoint.meta if self.checkpoint else {}

    @property
    def position(self) -> Position:
        return Position(*(self.meta.get(key, 0) for key in ("step", "epoch", "offset")))


def find_state(directory: Directory, job: Mapping[str, Any]) -> Restored:
    """Read the newest whole checkpoint. Raises Refused where the directory is of another job."""
    newest, damaged = checkpoint.newest(directory.checkpoints)
    if newest is not None:
        refuse_other_job(directory.root, newest.meta["job"], job)
    return Restored(newest, tuple(damaged), progress.read(directory.progress))


def refuse_other_job(root: Path, saved: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    other = sorted(key for key in saved.keys() | job.keys() if saved.get(key) != job.get(key))
    if other:
        theirs = ", ".join(f"{key} {saved.get(key)}" for key in other)
        ours = ", ".join(f"{key} {job.get(key)}" for key in other)
        raise Refused(
            f"{root} holds the training of another job: there {theirs}; here {ours}",
            hint="name another directory with --checkpoint-dir, or ask for the same job again",
        )


@dataclass
class Settings:
    """What a run needs to know beside its state. `job` names what may not change between two starts;
    `fingerprint` what must not change for exactness. With `epochs_are_whole` nothing is saved between the
    last step of an epoch and `epoch_done`, unless somebody asks to stop.
    """

    schedule: Schedule
    interval: policy.Interval = field(default_factory=policy.Interval)
    keep: int = 2
    job: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    running_metrics: Callable[[], Mapping[str, float]] = dict
    open_events: Callable[[int, bool], EventLog | None] = lambda step, epoch_is_over: None
    epochs_are_whole: bool = False


class Run:
    """A training run in progress. Restores the state on construction; see `epochs` and `step_done`."""

    def __init__(
        self,
        directory: Directory,
        restored: Restored,
        variables: Variables,
        settings: Settings,
        stop: StopRequest,
        display: progress.Display,
    ) -> None:
        self.directory = directory
        self.variables = variables
        self.settings = settings
        self.stop = stop
        self.display = display
        self.journal = Journal(directory.journal)
        self.progress = progress.Progress(directory.progress)
        self.saver = Saver(directory.checkpoints, keep=settings.keep, report=self._saved)
        self.speed = progress.Speed()
        self.position = restored.position
        self.history: list[dict[str, Any]] = list(restored.meta.get("history", []))
        self.best: dict[str, Any] = dict(restored.meta.get("best", {}))
        self.resumed_from = self.position.step if restored.checkpoint else None
        self.resumes = _resumes(restored)
        self.first_step_after: float | None = None
        self.saving_seconds = 0.0
        self.training_seconds = 0.0
        self._elapsed_before = float(restored.meta.get("elapsed_seconds", 0.0))
        self._mark = time.perf_counter()
        self._last_save = (self.position.step, self._mark)
        self._last_line = (float("-inf"), "")
        self._events: EventLog | None = None
        self._events_begun = False
        self._began_with_an_epoch = self.position.offset == 0
        self._kept: tuple[dict[str, Any], checkpoint.Tensors] | None = None
        self._digest: str | None = None
        if restored.checkpoint is not None:
            variables.restore(restored.checkpoint.tensors)
            self.saver.durable_step = self.position.step
        self._say_where_it_begins(restored)

    # --- the loop -------------------------------------------------------------------------------------

    def epochs(self) -> Iterator[int]:
        """The epochs still to do, beginning with the one that was interrupted."""
        self.tell()
        self._mark = time.perf_counter()
        self._last_save = (self.position.step, self._mark)
        while self.position.epoch < self.settings.schedule.epochs:
            epoch = self.position.epoch
            yield epoch
            if self.position.epoch == epoch:
                raise TrainerError(f"epoch {epoch + 1} was not ended: call epoch_done()")

    def step_done(self) -> None:
        """Call after each step: counts it, saves when it is time, and leaves when asked to."""
        batch = self.settings.schedule.batch_size
        self.position = replace(self.position, step=self.position.step + 1, offset=self.position.offset + batch)
        if self.first_step_after is None:
            self._first_step()
        self.check_stop()
        if not (self._at_end_of_epoch() and self.settings.epochs_are_whole):
            self._save_if_due()
        self.tell_if_due()

    def _at_end_of_epoch(self) -> bool:
        return self.position.steps_left_in_epoch(self.settings.schedule) == 0

    def keep_state(self) -> None:
        """Call before the last step of an epoch whose validation cannot be begun again on its own: asked to stop
        in there, this state is saved, and the step done once more."""
        self._kept = self._meta(), [(name, array.copy()) for name, array in self.variables.tensors()]

    def check_stop(self) -> None:
        """If somebody asked the trainer to stop: save and raise SystemExit(75)."""
        if self.stop.asked():
            self._leave()

    def epoch_done(self, values: Mapping[str, float]) -> None:
        """Call after each epoch and its validation, with its metrics."""
        position = self.position
        self.position = Position(position.step, position.epoch + 1, 0)
        self._kept = None
        row = {"epoch": position.epoch + 1, "step": position.step, **values}
        row["elapsed_seconds"] = round(self.elapsed(), 3)
        self.history.append(row)
        metrics.write_csv(self.directory.metrics, self.history)
        self._begin_events()
        if self._events is not None:
            metrics.tell_events(self._events, position.step, values, self.speed.examples_per_second())
        self.display.clear()
        print(_epoch_line(row, self.settings.schedule.epochs), flush=True)
        self._save_if_due()
        self.tell()

    # --- saving ---------------------------------------------------------------------------------------

    def save(self) -> None:
        self.saver.save(self._meta(), self.variables.tensors)
        self._last_save = (self.position.step, time.perf_counter())

    def save_now(self) -> bool:
        """Save in this thread. True when the present state is durable."""
        durable = self.saver.save_now(self._meta(), self.variables.tensors)
        self._last_save = (self.position.step, time.perf_counter())
        return durable

    def _save_if_due(self) -> None:
        step, moment = self._last_save
        steps, seconds = self.position.step - step, time.perf_counter() - moment
        if self.saver.is_due(self.settings.interval, steps=steps, seconds=seconds):
            self.save()
            self.check_stop()

    def _meta(self) -> dict[str, Any]:
        return {
            **asdict(self.position),
            "history": self.history,
            "best": self.best,
            "elapsed_seconds": self.elapsed(),
            "resumes": self.resumes,
            "job": dict(self.settings.job),
            "fingerprint": dict(self.settings.fingerprint),
        }

    def _saved(self, saved: Saved) -> None:
        self.saving_seconds += saved.cost.stall
        line = saved.error or f"Checkpoint saved at: {now()}, step {saved.step}"
        since, last_error = self._last_line
        if time.monotonic() - since < SAVED_LINES_EVERY and saved.error == last_error:
            return
        self._last_line = (time.monotonic(), saved.error)
        if saved.error:
            line = (
                f"Checkpoint NOT saved at: {now()}, step {saved.step}: {saved.error}. Training goes on; "
                f"{_last_good(self.saver.durable_step)}"
            )
        self.say(line, loud=bool(saved.error))
        if self._events is not None:
            self._events.text("checkpoints", saved.step, line)

    # --- leaving --------------------------------------------------------------------------------------

    def _leave(self) -> None:
        meta, tensors = self._kept if self._kept and self._at_end_of_epoch() else (self._meta(), None)
        durable = self.saver.save_now(meta, self.variables.tensors if tensors is None else lambda: tensors)
        self.say(
            f"Training was asked to stop at: {now()}, saved at step {meta['step']}"
            if durable
            else f"Training was asked to stop at: {now()}, step {meta['step']} could NOT be saved; "
            f"{_last_good(self.saver.durable_step)}",
            loud=not durable,
        )
        self.tell()
        self.close()
        raise SystemExit(self.stop.exit_code)

    def finish(self) -> None:
        """The last save, and the digest of the result. Raises TrainerError when that cannot be saved."""
        self._digest = self.variables.digest()
        for attempt in range(FINAL_ATTEMPTS):
            if self.save_now():
                return
            self.check_stop()
            time.sleep(FINAL_PAUSE * (attempt < FINAL_ATTEMPTS - 1))
        good = _last_good(self.saver.durable_step)
        self.say(f"Training is done at: {now()}, step {self.position.step}, NOT saved; {good}", loud=True)
        raise TrainerError(
            f"training is done, but its result could not be saved in {self.directory.root}",
            hint=f"make room there and start the same command again; {good}",
        )

    def finished(self) -> None:
        """Say that everything is done and durable."""
        self.say(f"Training has finished at: {now()}, step {self.position.step}, digest {self._digest}")
        self.tell(finished=True)
        self.close()

    def close(self) -> None:
        self.saver.wait()
        self.display.clear()
        if self._events is not None:
            self._events.flush()
            self._events = None

    # --- telling --------------------------------------------------------------------------------------

    def elapsed(self) -> float:
        """Seconds of training so far, over all starts, without what was lost."""
        return self._elapsed_before + time.perf_counter() - self._mark

    def say(self, line: str, *, loud: bool = False) -> None:
        self.display.clear()
        self.journal.write(line, loud=loud)

    def state(self, *, finished: bool = False) -> dict[str, Any]:
        """What progress.json says."""
        total = self.position.total_steps(self.settings.schedule)
        speed = self.speed.examples_per_second()
        to_go = (total - self.position.step) * self.settings.schedule.batch_size
        return {
            "step": self.position.step,
            "total_steps": total,
            "epoch": min(self.position.epoch + 1, self.settings.schedule.epochs),
            "epochs": self.settings.schedule.epochs,
            "resumed_from_step": self.resumed_from,
            "resumes": self.resumes,
            "finished": finished,
            "metrics": self._metrics(),
            "examples_per_second": speed and round(speed, 1),
            "eta_seconds": round(to_go / speed, 1) if speed else None,
            "elapsed_seconds": round(self.elapsed(), 1),
            "saved_step": self.saver.durable_step,
            "digest": self._digest,
            "seconds_to_first_step": self.first_step_after,
            "saving_seconds": round(self.saving_seconds, 4),
            "training_seconds": round(time.perf_counter() - self._mark, 4),
            **{key: self.settings.job.get(key) for key in ("dataset", "model")},
        }

    def tell_if_due(self) -> None:
        if self.progress.is_due():
            self.tell()

    def tell(self, *, finished: bool = False) -> None:
        self.speed.mark(time.monotonic(), self.position.step * self.settings.schedule.batch_size)
        state = self.state(finished=finished)
        self.progress.write(state)
        self.display.show(state)
        if self._events is not None and self.position.offset:
            metrics.tell_running(self._events, state)

    def _metrics(self) -> dict[str, float]:
        """Of the epoch under way and, until it has its own, the validation of the last one."""
        last = self.history[-1] if self.history else {}
        before = {k: v for k, v in last.items() if k not in ("epoch", "step", "elapsed_seconds")}
        return {**before, **self.settings.running_metrics()} if self.position.offset else before

    def _first_step(self) -> None:
        self.stop.training_has_begun()
        self.first_step_after = round(process_age(), 3)
        self._begin_events()
        self.tell()

    def _begin_events(self) -> None:
        """At the first step, or (resumed after the last step of an epoch) at the end of that epoch."""
        if self._events_begun:
            return
        self._events_begun = True
        self._events = self.settings.open_events(self.resumed_from or 0, self._began_with_an_epoch)
        if self.resumed_from is not None and self._events is not None:
            text = f"resumed at step {self.resumed_from}, {now()} (resume {self.resumes})"
            self._events.text("resumes", self.resumed_from, text)

    def _say_where_it_begins(self, restored: Restored) -> None:
        for line in restored.damaged:
            self.say(f"Damaged checkpoint: {line}", loud=True)
        if restored.checkpoint is None:
            self.say(f"Training has begun at: {now()}")
            return
        self.say(f"Training has resumed at: {now()}")
        lost = restored.last_progress.get("step")
        loss = "" if not isinstance(lost, int) else f", {max(0, lost - self.position.step)} steps lost"
        epoch = min(self.position.epoch + 1, self.settings.schedule.epochs)
        self.say(f"Resuming from Epoch Number: {epoch}, step {self.position.step}{loss}")
        changed = differences(restored.meta.get("fingerprint", {}), self.settings.fingerprint)
        if changed:
            self.say("Exactness is no longer promised, this is not what training began with: " + changed)


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """What changed, as "key was A, is B; ..."."""
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return "; ".join(f"{key} was {before.get(key, 'not known')}, is {after.get(key)}" for key in keys)


def process_age() -> float:
    """Seconds since this process was started, from the kernel's books (10 ms apart)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _resumes(restored: Restored) -> int:
    if restored.checkpoint is None:
        return 0
    seen = restored.last_progress.get("resumes")
    return max(int(restored.meta["resumes"]), seen if isinstance(seen, int) else 0) + 1


def _last_good(step: int | None) -> str:
    return "there is no checkpoint yet" if step is None else f"the last good checkpoint is at step {step}"


def _epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    values = " · ".join(
        f"{key} {value:.4f}" for key, value in row.items() if key not in ("epoch", "step", "elapsed_seconds")
    )
    return f"epoch {row['epoch']}/{epochs} · step {row['step']} · {values} · {row['elapsed_seconds']:.1f} s"
