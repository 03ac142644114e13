"""Send what the trainer leaves in models/ to the run's storage, in the background, in order, the newest first.

One at a time, by a lock; called again while one runs, it does nothing. It lives until training has ended and everything
is in storage. A checkpoint first, and the pointer that names it only when all of it is there; then the journal and the
progress, then the rest. Storage may be away or refuse: training knows nothing of it, and what was missed is sent later.
What storage itself lists is what counts as sent, so it does not matter who was killed when.
"""

import contextlib
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import guest  # type: ignore[import-not-found]
import publish  # type: ignore[import-not-found]
import release  # type: ignore[import-not-found]
import sending  # type: ignore[import-not-found]
import storage  # type: ignore[import-not-found]

LOCK = guest.ROOT / "upload.lock"
STATE = guest.ROOT / "upload.json"
TICK_SECONDS = 0.2


@dataclass
class Failing:
    """One thread's attempts that failed in a row. until: monotonic, of the pause before the next."""

    count: int
    until: float
    error: Any


@dataclass
class Gate:
    """Lets calls through while storage answers; after a failure, one attempt each time a pause is over.

    Shared by the two threads, so that a refusal is one event and no storm."""

    mutex: threading.RLock = field(default_factory=threading.RLock)
    failing: dict[str, Failing] = field(default_factory=dict)
    refused: str = ""
    away: bool = False
    at: float | None = None

    def opens(self, caller: str) -> bool:
        """A refusal concerns both threads; where storage is just busy, each tries for itself."""
        with self.mutex:
            concerned = [each for name, each in self.failing.items() if name == caller or each.error.refused]
            return all(time.monotonic() >= each.until for each in concerned)

    def passed(self, caller: str) -> None:
        with self.mutex:
            self.failing.pop(caller, None)
            self.at = time.time()
            if not self.failing and (self.refused or self.away):
                self.refused, self.away = "", False
                guest.event("upload_resumed")
                guest.say("storage takes things again")

    def failed(self, caller: str, error: storage.StorageError) -> None:
        with self.mutex:
            count = self.failing[caller].count if caller in self.failing else 0
            pauses = guest.tuning("refused_pauses" if error.refused else "upload_pauses")
            until = time.monotonic() + pauses[min(count, len(pauses) - 1)]
            self.failing[caller] = Failing(count + 1, until, error)
            if error.refused and error.code != self.refused:
                self.refused = error.code
                guest.event("upload_refused", code=error.code, status=error.status)
                guest.say(f"storage refuses: {error}")
            elif not error.refused and not self.away:
                self.away = True
                guest.event("storage_away", reason=str(error))
                guest.say(f"storage does not answer: {error}")

    def try_now(self) -> None:
        """Something changed: the next attempt need not wait."""
        with self.mutex:
            for each in self.failing.values():
                each.count, each.until = 0, 0.0


@dataclass
class Shared:
    """What both threads know. flush: the token that is asked for; saved, flushed, given_up: those answered.

    published: the last token up to which the other thread has told everything. pace: bytes per second, 0 for no
    limit."""

    gate: Gate = field(default_factory=Gate)
    access: Any = None
    flush: int = 0
    ended_start: int | None = None  # which start of a container had ended when the flush was asked for
    saved: int = 0
    flushed: int = 0
    given_up: int = 0
    published: int = 0
    newest: int | None = None
    name: str = ""
    pending: int = 0
    pending_bytes: int = 0
    flush_at: float = 0.0  # monotonic
    compared: int = 0
    clean: bool = False  # the last look found nothing that is due
    fenced: int = 0
    pace: float = 0.0
    delivered: Any = None
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def hurry(self) -> bool:
        return self.flush > max(self.flushed, self.given_up)

    def look_for_flush(self) -> None:
        asked = guest.read_json(guest.ROOT / "flush") or {}
        token = guest.whole(asked.get("token")) or 0
        if token > self.flush:
            self.flush, self.flush_at = token, time.monotonic()
            self.ended_start = guest.step_of(guest.read_json(guest.ROOT / "state.json"), "starts")
            self.ended_start = self.ended_start if asked.get("ended") is True else None
            self.gate.try_now()

    def nobody_writes(self) -> bool:
        """No container runs; whoever asked for a flush may know it before the startup script has seen it."""
        state = guest.read_json(guest.ROOT / "state.json") or {}
        asked = self.ended_start is not None and state.get("starts") == self.ended_start
        return asked or state.get("stage") in guest.ENDED

    def storage(self) -> dict[str, Any]:
        return {
            "newest": self.newest,
            "name": self.name,
            "pending": self.pending,
            "pending_bytes": self.pending_bytes,
            "refused": self.gate.refused,
            "at": self.gate.at,
        }

    def tell(self, **more: Any) -> None:
        """upload.json, where it changed."""
        answers = {"saved": self.saved, "flushed": self.flushed, "given_up": self.given_up}
        told = {**answers, "storage": self.storage(), "delivered": self.delivered, "place": self.access.place, **more}
        if told != self.told and guest.write_json(STATE, told):
            self.told = told


def stage() -> str:
    return str((guest.read_json(guest.ROOT / "state.json") or {}).get("stage"))


# the daemon


def send_on(shared: Shared) -> None:
    """Until this VM is fenced, or training has ended and everything is in storage. Raises Fenced."""
    sender = sending.Sender(shared)
    teller = publish.Teller(shared)
    threading.Thread(target=teller.run, daemon=True).start()
    idle_since, checked = time.monotonic(), time.monotonic()
    while True:
        if shared.fenced:
            raise storage.Fenced(shared.fenced)
        shared.look_for_flush()
        look_for_access(shared)
        shared.pace = float(guest.tuning("upload_bytes_per_second") or 0)
        busy = attempt(sender, shared)
        if busy:
            idle_since = time.monotonic()
            continue
        if answer_flush(shared):
            idle_since = time.monotonic()  # what there was no time for is done now
        if (
            is_over(shared)
            and time.monotonic() - idle_since >= guest.tuning("idle_seconds")
            and deliver(shared, sender, teller)
        ):
            return
        if time.monotonic() - checked > guest.tuning("check_seconds"):
            checked = time.monotonic()
            guest.rotate(guest.ROOT / "upload.log")
        wait(shared)


def attempt(sender: Any, shared: Shared) -> bool:
    """Whether something was sent, so that there may be more."""
    if not shared.gate.opens("sender"):
        return False
    shared.clean = False
    try:
        busy = bool(sender.round())
        shared.clean = not busy
        if "sender" in shared.gate.failing:
            shared.gate.passed("sender")
        return busy
    except storage.StorageError as error:
        shared.gate.failed("sender", error)
        sender.remote = None if error.status == 404 else sender.remote
        if error.refused:
            shared.given_up = max(shared.given_up, shared.flush)
        shared.tell()
    except storage.Interrupted:
        return True
    except (storage.Damaged, OSError) as error:  # it changes, or vanished: the next look shows what is there
        guest.say(f"not sent: {error}")
    return False


def wait(shared: Shared) -> None:
    """For the next look, or a flush."""
    end = time.monotonic() + guest.tuning("scan_seconds")
    while time.monotonic() < end and not shared.hurry:
        time.sleep(min(TICK_SECONDS, max(0.0, end - time.monotonic())))
        shared.look_for_flush()
    if shared.hurry:
        time.sleep(0.05)


def look_for_access(shared: Shared) -> None:
    """A new storage.json is tried at once; so is what another program has just seen to open."""
    compared = guest.changed(guest.ROOT / "restored.json")
    if compared != shared.compared:
        shared.compared = compared
        shared.gate.try_now()
    if guest.changed(guest.ROOT / "storage.json") != shared.access.stamp:
        access = storage.read_access()
        if access is not None:
            shared.access = access
            shared.gate.try_now()


def answer_flush(shared: Shared) -> bool:
    """Nothing is due any more: whoever asked for it has it, once the other thread has told it, too. Whether it was
    answered now."""
    answers = shared.hurry and shared.clean and shared.published >= shared.flush
    if answers:
        shared.flushed = shared.flush
        shared.tell()
    return answers


def is_over(shared: Shared) -> bool:
    """Training has ended, and nobody is about to start it again."""
    return stage() in ("stopped", "finished", "failed") and shared.clean and not shared.hurry


def deliver(shared: Shared, sender: Any, teller: Any) -> bool:
    """Everything is in storage: say so once, and let the VM go where that is wanted. Whether that was all."""
    done = guest.read_json(guest.ROOT / "finished")
    if not teller.is_done():
        return False
    if done is not None and stage() == "finished" and shared.pending == 0:
        if shared.delivered != done.get("time"):
            shared.delivered = done.get("time")
            guest.event("delivered", step=shared.newest, missing=len(sender.hopeless))
            guest.say("everything is in storage")
            shared.tell()
            return False  # the event is to be told, too
        release.release(stored=not sender.hopeless)
    return True


def fence(generation: int) -> None:
    guest.write_json(guest.ROOT / "fenced", {"generation": generation, "time": time.time()}, sync=True)
    guest.event("fenced", generation=generation)
    guest.say(f"generation {generation} of this run has taken over")


def end_with_thread(failed: threading.ExceptHookArgs) -> None:
    """Half of this program is none: it is started again."""
    sys.__excepthook__(failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback)
    os._exit(1)


def main() -> int:
    lock = guest.hold_lock(LOCK)
    if lock is None or guest.fenced():
        return 0
    access = storage.read_access()
    if access is None:
        return 0
    if not guest.leave_parent():
        return 0
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    guest.redirect(guest.ROOT / "upload.log")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 10)  # the trainer goes first
    threading.excepthook = end_with_thread
    kept = guest.upload_state()
    shared = Shared(access=access, delivered=kept.get("delivered"))
    shared.saved, shared.flushed, shared.given_up = (
        guest.whole(kept.get(name)) or 0 for name in ("saved", "flushed", "given_up")
    )
    shared.flush = max(shared.flushed, shared.given_up)
    guest.say(f"sending to {access.place}")
    try:
        send_on(shared)
        shared.tell(rest=guest.rest())
    except storage.Fenced as fenced:
        fence(fenced.generation)
    return 0


if __name__ == "__main__":
    sys.exit(main())
