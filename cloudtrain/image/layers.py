"""How far a pull or a push is, over all of its layers."""

from collections.abc import Mapping
from typing import Any

DONE = ("Pushed", "Layer already exists", "Mounted from", "Pull complete", "Already exists")


class Layers:
    """Adds up Docker's events, one of which is about one layer."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self._bytes: dict[str, tuple[int, int]] = {}
        self._done: dict[str, bool] = {}

    def told(self, event: Mapping[str, Any]) -> str:
        """What to show after this event; nothing where no layer is under way."""
        layer, status = event.get("id"), str(event.get("status", ""))
        if layer and not status.startswith("Pulling from"):
            self._done[layer] = self._done.get(layer, False) or status.startswith(DONE)
            if status in ("Pushing", "Downloading"):
                self._count(layer, event.get("progressDetail") or {})
        if not layer:
            return ""
        done = f"{sum(self._done.values())} of {len(self._done)} layers"
        current, total = (sum(column) for column in zip(*self._bytes.values(), strict=True)) if self._bytes else (0, 0)
        return f"{self.verb} {done}" + (f", {_megabytes(current)} of {_megabytes(total)} MB" if total else "")

    def _count(self, layer: str, detail: Mapping[str, Any]) -> None:
        """Docker counts what it sends, its total is what the layer takes up: the one can exceed the other."""
        current, total = _whole(detail.get("current")), _whole(detail.get("total"))
        total = max(total, self._bytes.get(layer, (0, 0))[1])
        self._bytes[layer] = (min(current, total) if total else 0, total)


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f}"
