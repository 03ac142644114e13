"""What a decider is shown, and what it answers. All times are epoch seconds."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import msgspec


class Want(StrEnum):
    """What the user wants of the run."""

    RUNNING = "running"
    STOPPED = "stopped"
    FINISHED = "finished"


class Power(StrEnum):
    """The VM as Azure reports it, as far as a decision depends on it.

    MOVING: an operation is under way, or no power state is reported. FAILED: Azure could not make it. GONE: there is
    no VM."""

    RUNNING = "running"
    MOVING = "moving"
    STOPPED = "stopped"
    DEALLOCATED = "deallocated"
    FAILED = "failed"
    GONE = "gone"


# `history` tells by it what a VM was billed as.
ON_DEMAND = ", on demand"


class Place(msgspec.Struct, frozen=True):
    """Where a VM may run, and as what."""

    size: str
    location: str
    zone: str = ""
    spot: bool = True

    @property
    def in_words(self) -> str:
        zone = f" zone {self.zone}" if self.zone else ""
        return f"{self.size} in {self.location}{zone}" + ("" if self.spot else ON_DEMAND)


class Guest(msgspec.Struct, frozen=True):
    """What the guest said when it was last asked: information, never a reason to restart."""

    under_way: bool = False
    finished: bool = False
    failed: str = ""  # why, "" while it has not


class Limits(msgspec.Struct, frozen=True):
    """Where the run is to stop, saved. None: nowhere. until: a time. cost: US dollars; spent: how many will
    be by the time it could be stopped after the next look."""

    until: float | None = None
    cost: float | None = None
    spent: float = 0.0


class Memory(msgspec.Struct, frozen=True, omit_defaults=True):
    """What recovery has to remember from one look to the next. It is kept with the run, in the cloud.

    off_since: when the VM was first seen off, 0 while it is not. refused: how often, since then. rounds: how often
    every place was tried in vain. closed: the places refused in this round, a bit for each position in the list of
    places, as hexadecimal digits: it has to fit a tag. next_at: not before. code: Azure's last refusal. step: the
    newest checkpoint at the last eviction, -1 before the first. fruitless: evictions in a row that found no newer
    checkpoint."""

    off_since: float = 0.0
    refused: int = 0
    rounds: int = 0
    closed: str = ""
    next_at: float = 0.0
    code: str = ""
    step: int = -1
    fruitless: int = 0

    @property
    def tried(self) -> frozenset[int]:
        bits = int(self.closed or "0", 16)
        return frozenset(n for n in range(bits.bit_length()) if bits >> n & 1)


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a run.

    places: where it may run, the best first; the place it has been given is `place`. on_demand_after: how long Spot
    has to have been in vain before a place that is not Spot is taken. trained: the VM's disk holds work. durable: that
    work lies outside the VM, too. begun: the VM that there is was told to train; one that a move has just made was not
    yet, if the mover was interrupted. kept: the VM is to run on once training has finished. saved_step: of the newest
    checkpoint known. user_stopped: Azure says that somebody deallocated the VM; None where it says nothing. jitter: 0
    to 1."""

    now: float
    want: Want
    power: Power
    place: Place
    watched: bool = True
    places: tuple[Place, ...] = ()
    on_demand_after: float = 0.0
    trained: bool = True
    durable: bool = False
    kept: bool = False
    begun: bool = True
    saved_step: int | None = None
    user_stopped: bool | None = None
    failure: str = ""
    guest: Guest | None = None
    limits: Limits = Limits()
    memory: Memory = Memory()
    jitter: float = 0.5


class Do(StrEnum):
    """BEGIN: tell a VM that was just made to train. START: the VM as it is. RESIZE: change the deallocated VM's size,
    then start it. RECREATE: make another VM, which goes on from storage, and remove what is left of this one.
    SAVE_AND_STOP: save, deallocate, and want it stopped. RELEASE: training is over, deallocate. HONOUR_STOP: somebody
    stopped the run elsewhere, so it is wanted stopped. REPORT: nothing that can be done from here helps; say why."""

    NOTHING = "nothing"
    WAIT = "wait"
    BEGIN = "begin"
    START = "start"
    RESIZE = "resize"
    RECREATE = "recreate"
    SAVE_AND_STOP = "save and stop"
    RELEASE = "release"
    HONOUR_STOP = "honour stop"
    REPORT = "report"


def bits(positions: Iterable[int]) -> str:
    """As `Memory.closed` holds them."""
    return f"{sum(1 << n for n in set(positions)):x}"


RESTARTING = frozenset({Do.START, Do.RESIZE, Do.RECREATE})


class Action(msgspec.Struct, frozen=True):
    """why: in words, for the line that is printed. until: when to look again at the latest. details: for programs."""

    do: Do
    why: str
    place: Place | None = None
    until: float | None = None
    details: dict[str, Any] = {}
