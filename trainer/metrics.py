"""Metrics for spreadsheets and TensorBoard. Both follow the checkpoint: what was lost is dropped."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer import files

RUNNING = ("loss", "accuracy")


class EventLog(Protocol):
    """What TensorBoard shows; see trainer.tensorboard."""

    def scalars(self, part: str, step: int, values: Mapping[str, float]) -> None: ...
    def text(self, tag: str, step: int, text: str) -> None: ...
    def flush(self) -> None: ...


def write_csv(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """One row an epoch. Made anew from the history each time, so it never has a row twice or torn."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    try:
        files.write_bytes(path, text.getvalue().encode(), durable=False)
    except OSError:
        pass  # the checkpoint has the history; a full disk is reported by whoever saves


def tell_events(events: EventLog, step: int, values: Mapping[str, float], examples_per_second: float | None) -> None:
    """The metrics of an epoch, under the names that Keras' own callback gives them."""
    train = {f"epoch_{name}": value for name, value in values.items() if not name.startswith("val_")}
    validation = {f"epoch_{name[4:]}": value for name, value in values.items() if name.startswith("val_")}
    if examples_per_second:
        train["examples_per_second"] = examples_per_second
    events.scalars("train", step, train)
    events.scalars("validation", step, validation)


def tell_running(events: EventLog, state: Mapping[str, Any]) -> None:
    values = {f"running_{name}": state["metrics"][name] for name in RUNNING if name in state["metrics"]}
    events.scalars("train", state["step"], values)
