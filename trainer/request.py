"""Which data to train on, as the user named it, and where data is kept. Needs nothing but Python."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

DATA_ENVIRONMENT = "TFDS_DATA_DIR"

Size = tuple[int, int]


@dataclass(frozen=True)
class Request:
    """What the user asked for. `size` is height, width; None means the data set's own."""

    name: str
    size: Size | None
    train_split: str | None
    validation_split: str | None
    directory: Path


def default_directory() -> Path:
    """$TFDS_DATA_DIR, else TFDS' own default, else (no home, or a read-only one) a temporary directory."""
    if os.environ.get(DATA_ENVIRONMENT):
        return Path(os.environ[DATA_ENVIRONMENT])
    try:
        own = Path("~/tensorflow_datasets").expanduser()
        own.mkdir(parents=True, exist_ok=True)
        if os.access(own, os.W_OK):
            return own
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.gettempdir()) / f"tensorflow_datasets-{os.getuid()}"
