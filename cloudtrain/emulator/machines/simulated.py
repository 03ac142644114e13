"""Machines without any process: a model of a training run under the injected clock, for weeks and thousands of VMs.

A disk holds what a real one would: the newest checkpoint, and what was last seen of training. Between two looks time
passes in the model, not in threads: `_Disk.advance` brings it to now. Everything lives in the memory of one process.

Where a job uploads, each resource group has a storage that outlives its VMs: a checkpoint is there some seconds after
it was saved, if the VM was on for so long, and a VM of a higher generation fences those before it.
"""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from cloudtrain.clock import Clock
from cloudtrain.emulator.machines import MachineError, MachineSpec, OffCause, Power, Script, ScriptResult, ScriptState


@dataclass(frozen=True)
class Job:
    """What every run trains. Seconds of the clock: of a step, between two checkpoints, of a save, from boot to the
    trainer's first step; from a save to its checkpoint in storage, None where there is no storage."""

    steps: int = 1000
    step_seconds: float = 60.0
    checkpoint_seconds: float = 600.0
    save_seconds: float = 1.0
    start_seconds: float = 30.0
    upload_seconds: float | None = None

    @property
    def steps_per_checkpoint(self) -> int:
        return max(1, int(self.checkpoint_seconds // self.step_seconds))


@dataclass
class Training:
    """What a guest could tell. digest: the hash chain over every step up to the newest checkpoint, as weights would be.
    events: as the real guest notes them. failure: why training failed for good, set from outside. before_step,
    before_time: what was last seen before this start. pending: checkpoints that are not in storage yet, None where
    there is no storage; sent: when it took the last one."""

    job: Job
    time: float = 0.0
    installed: bool = False
    on: bool = False
    under_way: bool = False
    finished: bool = False
    session: int = 0
    resumes: int = 0
    step: int = 0
    saved: int = 0
    resumed_from: int = 0
    before_step: int | None = None
    before_time: float | None = None
    digest: str = ""
    failure: str = ""
    pending: int | None = None
    sent: float | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.job.steps


@dataclass(frozen=True)
class Checkpoint:
    step: int = 0
    digest: str = ""
    at: float = 0.0


@dataclass(frozen=True)
class Loss:
    """Of one resume: the steps that had been done and are done again, and whether a notice had come."""

    steps: int
    noticed: bool


@dataclass
class Storage:
    """What outlives the VMs of one resource group, and what really happened to them. step: the last one that was done.
    doubles: how often a VM began to train while another of the group did. false_boots: of VMs that were training."""

    generation: int = 0
    newest: Checkpoint = Checkpoint()
    finished: bool = False
    step: int = 0
    noticed: bool = False
    seen: float | None = None
    resumes: int = 0
    losses: list[Loss] = field(default_factory=list)
    doubles: int = 0
    false_boots: int = 0


class Guest(Protocol):
    """The words of the guest's scripts and of a VM's tags, which the emulator does not know."""

    def generation(self, tags: Mapping[str, str]) -> int:
        """Which of a run's VMs it is, as they follow each other."""
        ...

    def wants(self, script: str) -> str:
        """'install', 'stop', or 'read'."""
        ...

    def prints(self, script: str, told: Training) -> str:
        """'' while the script goes on."""
        ...


@dataclass
class _Script:
    script: Script
    begun: float
    printed: str = ""
    ended: float | None = None
    state: ScriptState = ScriptState.RUNNING


@dataclass
class _Disk:
    """One VM: its disk, its power, its trainer. unsent: checkpoints that may not be in storage yet."""

    told: Training
    storage: Storage = field(default_factory=Storage)
    generation: int = 1
    spot: bool = True
    unsent: list[Checkpoint] = field(default_factory=list)
    boot: int = 0
    cause: OffCause = OffCause.NEVER_STARTED
    off_since: float | None = None
    trains_from: float | None = None  # when the first step of this start begins
    evicted_at: float | None = None
    scripts: dict[str, _Script] = field(default_factory=dict)

    def advance(self, now: float) -> None:
        if self.told.on:
            until = now if self.evicted_at is None else min(now, self.evicted_at)
            self._train(until)
            if self.evicted_at is not None and now >= self.evicted_at:
                self.cut(self.evicted_at, OffCause.EVICTED)
        self.told.time = now

    def _train(self, now: float) -> None:
        told, job = self.told, self.told.job
        self._send(now)
        if self.trains_from is None or told.finished:
            return
        step = min(job.steps, told.resumed_from + int((now - self.trains_from) // job.step_seconds))
        if step > told.resumed_from and not told.under_way:
            told.under_way = True
            first = self.trains_from + job.step_seconds
            lost = None if told.before_step is None else max(0, told.before_step - told.resumed_from)
            self._note(
                first,
                "first_step",
                step=told.resumed_from + 1,
                resumed_from_step=told.resumed_from or None,
                steps_lost=lost,
                last_seen=told.before_time,
            )
        told.step = max(told.step, step)
        self.storage.step = max(self.storage.step, step)
        self._save_on_the_way(step)
        self._send(now)
        if step == job.steps:
            told.finished, told.under_way = True, False
            self._note(self.trains_from + (job.steps - told.resumed_from) * job.step_seconds, "finished", step=step)

    def _save_on_the_way(self, step: int) -> None:
        """Every checkpoint up to that step, each at its time."""
        told, job = self.told, self.told.job
        begun = self.trains_from or 0.0
        last = step if step == job.steps else step - step % job.steps_per_checkpoint
        while told.saved < last:
            following = min(last, told.saved - told.saved % job.steps_per_checkpoint + job.steps_per_checkpoint)
            self._save(following, begun + (following - told.resumed_from) * job.step_seconds + job.save_seconds)

    def _save(self, step: int, at: float) -> None:
        """The chain goes on from the newest checkpoint: steps done again are hashed again."""
        told = self.told
        if step <= told.saved:
            return
        for number in range(told.saved + 1, step + 1):
            told.digest = hashlib.sha256(f"{told.digest}{number}".encode()).hexdigest()
        told.saved = step
        self.unsent.append(Checkpoint(step, told.digest, at))

    def _send(self, now: float) -> None:
        """Checkpoints that had the time to reach storage are there; a fenced VM sends nothing."""
        takes = self.told.job.upload_seconds
        if takes is None or self.fenced:
            return
        sent = [checkpoint for checkpoint in self.unsent if checkpoint.at + takes <= now]
        if sent and sent[-1].step > self.storage.newest.step:
            self.storage.newest = sent[-1]
            self.storage.finished = sent[-1].step == self.told.job.steps
        self.unsent = [checkpoint for checkpoint in self.unsent if checkpoint.at + takes > now]
        self.told.pending = len(self.unsent)
        self.told.sent = sent[-1].at + takes if sent else self.told.sent

    @property
    def fenced(self) -> bool:
        return self.told.job.upload_seconds is not None and self.generation < self.storage.generation

    def _note(self, at: float, event: str, **details: Any) -> None:
        self.told.events.append({"time": at, "event": event, **details})

    def start(self, now: float) -> None:
        """The trainer resumes from the newest checkpoint, that of the disk or that in storage."""
        told, storage = self.told, self.storage
        if told.job.upload_seconds is not None:
            storage.generation = max(storage.generation, self.generation)
            self._fetch()
        if told.finished or self.trains_from is not None or self.fenced:
            return
        if told.under_way or told.step:
            told.before_step, told.resumes = told.step, told.resumes + 1
        told.resumed_from = told.step = told.saved
        if storage.step:
            storage.losses.append(Loss(storage.step - told.resumed_from, storage.noticed))
        storage.step, storage.noticed = told.resumed_from, False
        self.trains_from = now + told.job.start_seconds

    def _fetch(self) -> None:
        """A disk that has no checkpoint or an older one gets the newest that is in storage."""
        told, newest = self.told, self.storage.newest
        if self.fenced or newest.step <= told.saved:
            return
        told.saved, told.digest = newest.step, newest.digest
        told.step, told.before_time = self.storage.step, self.storage.seen
        told.resumes, told.finished = self.storage.resumes, self.storage.finished

    def install(self, now: float) -> None:
        """What the first script of `up` does; training that runs is left alone."""
        if not self.told.installed:
            self.told.installed = True
            self.told.session += 1
            self._note(now, "session", session=self.told.session)
        self.start(now)

    def stop(self, now: float) -> None:
        """SIGTERM: save what was done, and end."""
        if self.told.under_way:
            self._save(self.told.step, now)
            # It waits for what is on its way, as the guest does.
            self._send(now + (self.told.job.upload_seconds or 0.0))
        self.end(now)

    def end(self, now: float) -> None:
        if self.told.under_way:
            self.told.before_time = self.storage.seen = now
            self.storage.resumes = self.told.resumes
        self.trains_from, self.told.under_way = None, False

    def power_on(self, now: float) -> None:
        self.told.on, self.evicted_at, self.boot = True, None, self.boot + 1
        if self.told.installed:
            self.told.session += 1
            self._note(now, "session", session=self.told.session)
            self.start(now)

    def cut(self, now: float, cause: OffCause) -> None:
        self.end(now)
        self.told.on, self.cause, self.off_since, self.evicted_at = False, cause, now, None

    def warn(self, now: float, notice: float) -> None:
        """Preempt: the guest saves and says that it is ready, so the cut comes as soon as it has saved."""
        job = self.told.job
        save = job.save_seconds + (job.upload_seconds or 0.0) if self.told.under_way else 0.0
        if notice >= save and notice > 0:
            self._note(now, "notice", notice_seconds=notice)
            if self.trains_from is not None:
                # Before that it is an earlier VM's work that may be missing, however that one went.
                self.storage.noticed = True
            saved = self.told.step if self.told.under_way else None
            self.stop(now)
            self._note(now + save, "gone", exit_code=75, saved_step=saved)
            self.evicted_at = now + save
        else:
            self.evicted_at = now + notice


class SimulatedMachines:
    """The machines' protocol, in memory."""

    kind = "simulated"

    def __init__(self, clock: Clock, guest: Guest, job: Job | None = None) -> None:
        self._clock, self._guest, self._job = clock, guest, job or Job()
        self._disks: dict[str, _Disk] = {}
        self.storages: dict[str, Storage] = {}
        """Of each resource group that had a VM."""
        self._mutex = threading.RLock()
        self.boots: list[tuple[float, str, bool]] = []
        """Every boot: when, of which VM, and whether it trained at that moment (which must never be)."""

    def training(self, vm_id: str) -> Training:
        """The disk's state, brought to now."""
        with self._mutex:
            return self._now(vm_id).told

    def on_in(self, resource_group: str) -> list[str]:
        """The VMs of a group that are on, the newest last."""
        storage = self.storages.get(resource_group)
        with self._mutex:
            mine = [vm_id for vm_id, disk in self._disks.items() if disk.storage is storage]
            return [vm_id for vm_id in mine if self._now(vm_id).told.on]

    def holds(self, resource_group: str, step: int | None) -> bool:
        """Whether its storage has a checkpoint no older than that step."""
        storage = self.storages.get(resource_group, Storage())
        with self._mutex:
            for vm_id in [vm_id for vm_id, disk in self._disks.items() if disk.storage is storage]:
                self._now(vm_id)
        return storage.newest.step >= max(1, step or 0)

    def may_be_evicted(self, vm_id: str) -> bool:
        """Azure evicts Spot VMs only."""
        return self._disks[vm_id].spot

    def _now(self, vm_id: str) -> _Disk:
        disk = self._disks.get(vm_id)
        if disk is None:
            raise MachineError(f"There is no VM {vm_id}.")
        disk.advance(self._clock.now().timestamp())
        return disk

    def _on(self, vm_id: str) -> _Disk:
        disk = self._now(vm_id)
        if not disk.told.on:
            raise MachineError("The VM is off.")
        return disk

    def _new_disk(self, spec: MachineSpec) -> _Disk:
        generation = self._guest.generation(spec.tags)
        storage = self.storages.get(spec.resource_group)
        if storage is None or generation == 1:
            # A first generation is a new run, whatever an earlier one of that name left.
            storage = self.storages[spec.resource_group] = Storage()
        return _Disk(Training(self._job), storage, generation, spec.priority != "Regular")

    def boot(self, spec: MachineSpec, *, same_host: bool = False) -> None:
        with self._mutex:
            if spec.vm_id not in self._disks:
                self._disks[spec.vm_id] = self._new_disk(spec)
            disk = self._disks[spec.vm_id]
            now = self._clock.now().timestamp()
            disk.advance(now)
            if not disk.told.on:
                self.boots.append((now, spec.vm_id, disk.told.under_way))
                disk.storage.false_boots += disk.told.under_way
                disk.power_on(now)

    def power(self, vm_id: str) -> Power:
        with self._mutex:
            if vm_id not in self._disks:
                return Power(False, OffCause.NEVER_STARTED)
            disk = self._now(vm_id)
            if disk.told.on:
                return Power(True, boot=disk.boot)
            since = None if disk.off_since is None else datetime.fromtimestamp(disk.off_since, UTC)
            return Power(False, disk.cause, since, disk.boot)

    def agent_ready(self, vm_id: str) -> bool:
        return self.power(vm_id).on

    def power_off(self, vm_id: str) -> None:
        self._cut(vm_id, OffCause.POWERED_OFF)

    def _cut(self, vm_id: str, cause: OffCause) -> None:
        with self._mutex:
            if vm_id in self._disks and self._now(vm_id).told.on:
                disk = self._disks[vm_id]
                disk.cut(self._clock.now().timestamp(), cause)

    def shut_down(self, vm_id: str, grace_seconds: float = 10.0) -> None:
        with self._mutex:
            if vm_id in self._disks and self._now(vm_id).told.on:
                self._disks[vm_id].stop(self._clock.now().timestamp())
        self.power_off(vm_id)

    def reboot(self, vm_id: str) -> None:
        with self._mutex:
            disk, now = self._on(vm_id), self._clock.now().timestamp()
            self.boots.append((now, vm_id, disk.told.under_way))
            disk.storage.false_boots += disk.told.under_way
            disk.stop(now)
            disk.power_on(now)

    def evict(self, vm_id: str, notice_seconds: float) -> None:
        with self._mutex:
            disk, now = self._on(vm_id), self._clock.now().timestamp()
            if disk.evicted_at is None:
                disk.warn(now, notice_seconds)
            disk.advance(now)

    def erase(self, vm_id: str) -> None:
        with self._mutex:
            self._disks.pop(vm_id, None)

    def start_script(self, vm_id: str, script: Script) -> str:
        with self._mutex:
            disk = self._on(vm_id)
            key = f"{script.name}/{len(disk.scripts) + 1}"
            now = self._clock.now().timestamp()
            disk.scripts[key] = _Script(script, now)
            wants = self._guest.wants(script.text)
            if wants == "install":
                self._fence(disk, now)
                disk.install(now)
            elif wants == "stop":
                disk.stop(now)
            return key

    def _fence(self, disk: _Disk, now: float) -> None:
        """A VM reads the fence all the time: those that a newer one has overtaken end their trainer."""
        for other in self._disks.values():
            if other.storage is not disk.storage or other is disk:
                continue
            other.advance(now)
            if other.generation < disk.generation and disk.told.job.upload_seconds is not None:
                disk.storage.generation = max(disk.storage.generation, disk.generation)
                other.end(now)
            disk.storage.doubles += other.told.on and other.trains_from is not None

    def script(self, vm_id: str, key: str) -> ScriptResult:
        with self._mutex:
            disk = self._now(vm_id)
            found = disk.scripts[key]
            if found.state is ScriptState.RUNNING:
                self._go_on(disk, found)
            return ScriptResult(
                found.state,
                0 if found.state is ScriptState.SUCCEEDED else None,
                found.printed.encode()[-4096:],
                b"",
                datetime.fromtimestamp(found.begun, UTC),
                None if found.ended is None else datetime.fromtimestamp(found.ended, UTC),
            )

    def _go_on(self, disk: _Disk, found: _Script) -> None:
        if not disk.told.on:
            found.state, found.ended = ScriptState.INTERRUPTED, disk.off_since
            return
        found.printed = self._guest.prints(found.script.text, disk.told)
        if found.printed:
            found.state, found.ended = ScriptState.SUCCEEDED, disk.told.time

    def cancel_script(self, vm_id: str, key: str) -> None:
        with self._mutex:
            found = self._disks[vm_id].scripts.get(key)
            if found is not None and found.state is ScriptState.RUNNING:
                found.state, found.ended = ScriptState.CANCELED, self._clock.now().timestamp()

    def open_ssh(self, vm_id: str, allowed: bool) -> None:
        """A simulated VM has no network."""

    def ssh_address(self, vm_id: str) -> tuple[str, int] | None:
        return None

    def sweep(self) -> list[str]:
        return []

    def disk(self, vm_id: str) -> Path:
        raise MachineError("A simulated VM has no files.")

    def strays(self) -> list[str]:
        with self._mutex:
            return list(self._disks)
