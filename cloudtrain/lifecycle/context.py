"""What every verb is handed: a session on one cloud, the clock, and somebody who listens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cloudtrain.clock import Clock
from cloudtrain.progress import Progress

if TYPE_CHECKING:
    from cloudtrain.azure.session import Session


@dataclass(frozen=True)
class Context:
    session: "Session"
    clock: Clock
    progress: Progress
