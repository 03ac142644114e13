"""One action for one observation of a run. Only the power state that Azure reports ever starts a VM."""

from collections.abc import Set

import msgspec

from cloudtrain.errors import Blocks
from cloudtrain.recovery.observed import Action, Do, Memory, Observation, Place, Power, Want, bits

# Between two rounds over all places; the last one repeats.
PAUSES = (30.0, 60.0, 120.0, 300.0, 600.0)
JITTER = 0.2  # of a pause, to either side: runs evicted together do not ask again together
# From this many evictions in a row without a newer checkpoint on, starts are spaced out and it is said aloud.
FRUITLESS = 3


def seen(observation: Observation) -> Memory:
    """The memory, brought up to date with what is seen now: the first look at an eviction counts it, the first look
    at a running VM ends the search for a place."""
    memory = observation.memory
    if observation.power is Power.RUNNING:
        return after_start(memory) if memory.off_since else memory
    off = observation.power in (Power.DEALLOCATED, Power.FAILED, Power.GONE)
    if memory.off_since or not off or observation.user_stopped or observation.want is not Want.RUNNING:
        return memory
    step = -1 if observation.saved_step is None else observation.saved_step
    # Of an image that writes no progress nothing is known, and nothing is held against it.
    fruitless = 0 if step > memory.step else memory.fruitless + (observation.saved_step is not None)
    pause = pause_after(fruitless - FRUITLESS + 1, observation.jitter) if fruitless >= FRUITLESS else 0.0
    return Memory(
        off_since=observation.now,
        next_at=observation.now + pause,
        step=max(step, memory.step),
        fruitless=fruitless,
    )


def after_start(memory: Memory) -> Memory:
    """The memory once a start has succeeded: if the VM is off at the next look, that is another eviction."""
    return Memory(step=memory.step, fruitless=memory.fruitless)


def decide(observation: Observation) -> Action:
    """observation.memory: as `seen` returned it."""
    if not observation.watched:
        return Action(Do.NOTHING, "the tag cloudtrain-watch=off holds the watcher back")
    if observation.power is Power.MOVING:
        return Action(Do.WAIT, "an operation is under way on the VM")
    over = _over(observation)
    if over is not None:
        return over
    if observation.power is Power.RUNNING:
        if not observation.begun:
            return Action(Do.BEGIN, "the VM of an interrupted move does not train yet")
        return Action(Do.NOTHING, "nothing to do")
    if observation.user_stopped and observation.power in (Power.DEALLOCATED, Power.STOPPED):
        return Action(Do.HONOUR_STOP, "somebody stopped the VM: it stays stopped")
    if observation.power is Power.STOPPED:
        # Azure evicts by deallocation or deletion; a stopped VM was stopped from within or by somebody, and bills.
        return Action(Do.REPORT, "the VM is stopped, not deallocated: somebody shut it down, and it still bills")
    return _bring_back(observation)


def _over(observation: Observation) -> Action | None:
    """What ends a run: it is not wanted any more, has finished, failed, or met a limit."""
    off = observation.power in (Power.DEALLOCATED, Power.GONE)
    guest = observation.guest
    if guest and guest.failed and (not off or observation.want is Want.STOPPED):
        return Action(Do.REPORT if off else Do.SAVE_AND_STOP, f"training failed: {guest.failed}")
    if observation.want is Want.STOPPED:
        return Action(Do.NOTHING, "stopped by the user")
    if observation.want is Want.FINISHED or (guest and guest.finished):
        return (
            Action(Do.NOTHING, "finished") if off or observation.kept else Action(Do.RELEASE, "training has finished")
        )
    limit = _limit_met(observation)
    return Action(Do.SAVE_AND_STOP, limit) if limit else None


def _limit_met(observation: Observation) -> str:
    limits = observation.limits
    if limits.until is not None and observation.now >= limits.until:
        return "the maximum duration is over"
    if limits.cost is not None and limits.spent >= limits.cost:
        return f"{limits.cost:.2f} USD would be spent before the next look"
    return ""


def _bring_back(observation: Observation) -> Action:
    """The VM is off, and wanted: where and when to try next."""
    memory = observation.memory
    if observation.power is not Power.DEALLOCATED and not _movable(observation):
        return Action(Do.REPORT, _lost_disk(observation))
    if observation.now < memory.next_at:
        return Action(Do.WAIT, _why_waiting(memory), until=memory.next_at)
    place = _next_place(observation, memory.tried) or _next_place(observation, frozenset()) or observation.place
    return Action(_how(observation, place), _why(observation), place)


def _movable(observation: Observation) -> bool:
    """Whether a new VM loses nothing."""
    return observation.durable or not observation.trained


def _lost_disk(observation: Observation) -> str:
    what = f"Azure could not make the VM ({observation.failure})" if observation.failure else "the VM is gone"
    return f"{what}, and the checkpoints of this run lie on its disk alone: there is nothing to go on from elsewhere"


def _how(observation: Observation, place: Place) -> Do:
    if observation.power is not Power.DEALLOCATED or not _same_but_size(place, observation.place):
        return Do.RECREATE
    return Do.START if place == observation.place else Do.RESIZE


def _same_but_size(one: Place, other: Place) -> bool:
    """A deallocated VM is pinned to its region and zone, and its priority cannot change; its size can."""
    return (one.location, one.zone, one.spot) == (other.location, other.zone, other.spot)


def places_of(observation: Observation) -> tuple[Place, ...]:
    """Every place, each at a position that stays its own while the VM changes from one to the other."""
    places = observation.places
    return places if observation.place in places else (*places, observation.place)


def _next_place(observation: Observation, tried: Set[int]) -> Place | None:
    """The first open place that was not tried; where a deallocated VM is comes first, for its disk is there."""
    untried = [place for index, place in enumerate(places_of(observation)) if index not in tried]
    if observation.power is Power.DEALLOCATED:
        untried.sort(key=lambda place: place != observation.place)
    return next((place for place in untried if _open(observation, place)), None)


def _open(observation: Observation, place: Place) -> bool:
    off_for = observation.now - observation.memory.off_since
    if not place.spot and observation.place.spot and off_for < observation.on_demand_after:
        return False
    stays = observation.power is Power.DEALLOCATED and _same_but_size(place, observation.place)
    return stays or _movable(observation)


def _why(observation: Observation) -> str:
    cause = {
        Power.DEALLOCATED: "the VM was deallocated",
        Power.FAILED: f"Azure could not make the VM: {observation.failure}".rstrip(": "),
    }.get(observation.power, "the VM is gone")
    if observation.user_stopped is False:
        cause = "the VM was evicted"
    fruitless = observation.memory.fruitless
    if fruitless >= FRUITLESS:
        cause += f"; {fruitless} evictions in a row without a new checkpoint"
    return cause


def _why_waiting(memory: Memory) -> str:
    if memory.code:
        times = "once" if memory.refused == 1 else f"{memory.refused} times"
        return f"Azure refused {times}, the last time with {memory.code}"
    if memory.fruitless >= FRUITLESS:
        return f"{memory.fruitless} evictions in a row without a new checkpoint"
    return "the next look"


def after_refusal(observation: Observation, place: Place, code: str, blocks: Blocks) -> Memory:
    """The memory once Azure refused `place`: the next place is tried at once; when none is left the round is over, and
    the next one begins after a pause."""
    memory = observation.memory
    tried = memory.tried
    closed = frozenset(
        index for index, other in enumerate(places_of(observation)) if index in tried or _closes(blocks, place, other)
    )
    after = msgspec.structs.replace(memory, closed=bits(closed), refused=memory.refused + 1, code=code)
    if blocks is not Blocks.NOTHING and _next_place(observation, closed) is not None:
        return after
    rounds = len(PAUSES) if blocks is Blocks.EVERYTHING else memory.rounds + 1
    pause = pause_after(rounds, observation.jitter)
    return msgspec.structs.replace(after, closed="", rounds=rounds, next_at=observation.now + pause)


def _closes(blocks: Blocks, refused: Place, other: Place) -> bool:
    if blocks in (Blocks.NOTHING, Blocks.EVERYTHING) or other.location != refused.location:
        return blocks is Blocks.EVERYTHING
    return {
        Blocks.ZONE: other == refused,
        Blocks.SIZE: other.size == refused.size and other.spot == refused.spot,
        Blocks.SPOT: other.spot == refused.spot,
        Blocks.REGION: True,
    }[blocks]


def pause_after(rounds: int, jitter: float) -> float:
    """Seconds before round number `rounds` + 1. jitter: 0 to 1."""
    return PAUSES[min(rounds, len(PAUSES)) - 1] * (1 - JITTER + 2 * JITTER * jitter)
