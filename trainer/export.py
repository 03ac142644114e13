"""Models for use elsewhere: the best and the last one as .keras files. Training never reads them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer import checkpoint, files
from trainer.directory import Directory

SHARE = 0.01


def export(model: Any, path: Path) -> None:
    """Write a model that `keras.saving.load_model` opens, whole or not at all. Raises OSError."""
    # Keras insists on the suffix; the leading dot keeps a half-written file from being read or copied.
    aside = path.with_name(f".{path.stem}{files.TEMPORARY}.keras")
    try:
        model.save(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        files.discard(aside)
        raise
    files.fsync_directory(path.parent)


class BestModel:
    """Keeps the variables of the best model so far in a small file, and makes `best.keras` from it: at the
    end, and before that as often as costs no more than 1 % of the time."""

    def __init__(self, directory: Directory, model: Any) -> None:
        self._directory = directory
        self._model = model
        self._cost = 0.0
        self._exported_at = time.monotonic()

    def keep(self, meta: Mapping[str, Any]) -> None:
        """The present model is the best so far. Raises OSError."""
        tensors = [(str(index), variable.numpy()) for index, variable in enumerate(self._model.variables)]
        checkpoint.write(self._directory.best, meta, tensors)
        if time.monotonic() - self._exported_at >= self._cost / SHARE:
            begun = time.monotonic()
            export(self._model, self._directory.best_model)
            self._exported_at = time.monotonic()
            self._cost = self._exported_at - begun

    def export(self) -> None:
        """Make `best.keras` from what was kept; the model's variables are those of the best one then.

        Raises OSError, and checkpoint.Damaged where what was kept is no longer whole.
        """
        best = checkpoint.read(self._directory.best)
        for index, variable in enumerate(self._model.variables):
            variable.assign(best.tensors[str(index)])
        export(self._model, self._directory.best_model)
