"""How a run gets going again without a person: pure deciders, observation in, action out.

Nothing here does I/O, reads a clock or draws a random number: the time and the jitter are part of what was observed.
"""

from cloudtrain.recovery.decide import PAUSES, after_refusal, after_start, decide, pause_after, seen
from cloudtrain.recovery.observed import (
    RESTARTING,
    Action,
    Do,
    Guest,
    Limits,
    Memory,
    Observation,
    Place,
    Power,
    Want,
    bits,
)
from cloudtrain.recovery.places import places

__all__ = [
    "PAUSES",
    "RESTARTING",
    "Action",
    "Do",
    "Guest",
    "Limits",
    "Memory",
    "Observation",
    "Place",
    "Power",
    "Want",
    "after_refusal",
    "after_start",
    "bits",
    "decide",
    "pause_after",
    "places",
    "seen",
]
