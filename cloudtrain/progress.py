"""How a workflow tells what it is doing, without knowing who listens: `render.py` shows it, `-q` stays silent."""

from types import TracebackType
from typing import Protocol


class Step(Protocol):
    """One piece of work that shows itself while it runs, with its time. Steps may run side by side, in threads."""

    def update(self, text: str) -> None:
        """What is awaited right now; replaces the last update."""
        ...

    def amount(self, done: int, total: int) -> None:
        """How many bytes of how many are through."""
        ...

    def __enter__(self) -> "Step": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the step: done, or failed when an exception passes."""
        ...


class Progress(Protocol):
    def step(self, title: str, usually: str = "") -> Step:
        """title: "virtual network"; usually: how long it takes as a rule, "about 10 s", shown in long waits."""
        ...

    def note(self, text: str) -> None:
        """One line that stays: a fact, a warning."""
        ...
