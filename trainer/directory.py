"""The directory that everything durable goes to, held by one trainer at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from trainer import files
from trainer.errors import TrainerError

ENVIRONMENT = "CHECKPOINT_DIR"
DEFAULT = "Saved_Model"


def default_root() -> Path:
    return Path(os.environ.get(ENVIRONMENT) or DEFAULT)


@dataclass(frozen=True)
class Directory:
    root: Path
    lock: int

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def journal(self) -> Path:
        return self.root / "log.txt"

    @property
    def progress(self) -> Path:
        return self.root / "progress.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def best(self) -> Path:
        """The variables of the best model so far; `best.keras` is made from it."""
        return self.root / "best.ckpt"

    @property
    def best_model(self) -> Path:
        return self.root / "best.keras"

    @property
    def final_model(self) -> Path:
        return self.root / "final.keras"

    def close(self) -> None:
        if self.lock >= 0:
            os.close(self.lock)


def open_directory(root: Path) -> Directory:
    """Make the directory if need be, make sure that nobody else trains in it, and tidy up after a kill.

    Raises TrainerError where it cannot be written to or is in use.
    """
    try:
        (root / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise _unusable(root, error.strerror or str(error)) from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise _unusable(root, "it cannot be written to")
    directory = Directory(root, _lock(root))
    files.remove_leftovers(directory.root)
    files.remove_leftovers(directory.checkpoints)
    return directory


def _unusable(root: Path, reason: str) -> TrainerError:
    hint = f"name another with --checkpoint-dir or ${ENVIRONMENT}"
    return TrainerError(f"nothing could be saved in {root}: {reason}", hint=hint)


def _lock(root: Path) -> int:
    """An flock on a hidden file; the kernel lets go of it however the holder dies."""
    try:
        descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return -1  # a full disk, or a file system without such files: train all the same
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise TrainerError(
            f"another trainer is at work in {root}",
            hint="wait for it to end, or name another directory with --checkpoint-dir",
        ) from None
    except OSError:
        pass  # some network file systems have no locks
    return descriptor
