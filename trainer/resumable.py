"""The same guarantees in a script of your own: for `model.fit` and for custom loops, on any Keras backend."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import keras
import numpy as np

from trainer import decoded, fingerprint, policy, progress
from trainer.data import Batches
from trainer.directory import default_root, open_directory
from trainer.errors import Refused, TrainerError
from trainer.journal import Journal, before_first_step
from trainer.metrics import EventLog
from trainer.run import Restored, Run, Schedule, Settings, find_state
from trainer.stop import StopRequest
from trainer.variables import Variables


class ResumableData(keras.utils.PyDataset):  # type: ignore[misc]
    """Arrays in batches, each epoch in an order of its own that depends on `seed` and the epoch alone.

    inputs, targets: arrays with one row an example; memory-mapped ones are fine. The last, smaller batch of
    an epoch is left out. Raises Refused when a batch is larger than the data.

    Its length is what is left of the epoch under way, so `model.fit` goes on in the middle of one.
    """

    def __init__(self, inputs: Any, targets: Any, *, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        if not 1 <= batch_size <= len(targets):
            raise Refused(f"batch_size should be 1 to {len(targets)}, the number of examples; it is {batch_size}")
        if len(inputs) != len(targets):
            raise Refused(f"there are {len(inputs)} inputs and {len(targets)} targets")
        self.batches = Batches(np.asanyarray(inputs), np.asanyarray(targets), batch_size=batch_size, seed=seed)
        self.place(0, 0)

    def place(self, epoch: int, offset: int) -> None:
        """Go to an epoch, `offset` examples in."""
        self._order = self.batches.order(epoch)[offset:]
        self._next: int | None = None
        self.epoch, self.offset = epoch, offset

    def __len__(self) -> int:
        return len(self._order) // self.batches.batch_size

    def __getitem__(self, index: int) -> Any:
        # Within an epoch the batches come one after the other, whatever index is asked for: unless told not
        # to, fit shuffles the indices with Python's own generator, which no checkpoint has.
        if self._next is not None:
            index, self._next = self._next % len(self), self._next + 1
        return self.batches.batch(self._order, index * self.batches.batch_size)

    def on_epoch_begin(self) -> None:
        self._next = 0

    def on_epoch_end(self) -> None:
        self._next = None

    def identity(self) -> str:
        images, labels = self.batches.images, self.batches.labels
        # A mapped array may be larger than memory: its labels stand for it.
        arrays = [labels] if isinstance(images, np.memmap) else [images, labels]
        content = " ".join(f"{decoded.checksum(array):08x}" for array in arrays)
        return f"{images.shape} {images.dtype} content {content}"


def resume(
    model: Any,
    data: ResumableData,
    *,
    epochs: int,
    directory: str | Path | None = None,
    optimizer: Any = None,
    interval: str = "auto",
    keep: int = 2,
    job: str = "",
) -> ResumableRun:
    """Train `model` so that any interruption costs nothing but time. Use as a context manager::

        with trainer.resume(model, data, epochs=20, directory="Saved_Model") as run:
            for epoch in run.epochs():
                model.fit(data, initial_epoch=epoch, epochs=epoch + 1, callbacks=[run.callback])

    or, in a loop of your own::

        with trainer.resume(model, data, epochs=20, optimizer=optimizer) as run:
            for epoch in run.epochs():
                for inputs, targets in run.batches():
                    loss = step(inputs, targets)
                    run.step_done(loss=loss)
                run.epoch_done()

    On entering, the newest whole checkpoint in `directory` (default: $CHECKPOINT_DIR, else ./Saved_Model) is
    put into model, optimizer and random generators. While it runs, checkpoints are saved; on SIGTERM the step
    under way is finished, the state saved, and SystemExit(75) raised. Call `keras.utils.set_random_seed`
    before the model is built, so that a run that begins anew after a kill is the same run.

    epochs: in all. interval: `auto` (as often as costs at most 1 % of the time), steps as "50", seconds as
    "30s". keep: checkpoints kept, at least 2. job: a name for what this trains; another name, or a model of
    other shapes, is refused. Only arrays and variables are restored: what a callback keeps in Python
    attributes (ReduceLROnPlateau, EarlyStopping) begins anew.

    Raises TrainerError or Refused (both in trainer.errors) where the directory or the request is unusable.
    """
    return ResumableRun(model, data, epochs, directory, optimizer, interval, keep, job)


class ResumableRun:
    """What `resume` gives: see there."""

    def __init__(
        self,
        model: Any,
        data: ResumableData,
        epochs: int,
        directory: str | Path | None,
        optimizer: Any,
        interval: str,
        keep: int,
        job: str,
    ) -> None:
        self._model = model
        self._data = data
        self._root = default_root() if directory is None else Path(directory)
        self._optimizer = getattr(model, "optimizer", None) if optimizer is None else optimizer
        self._metrics: dict[str, Any] = {}
        self._random: dict[str, Any] = {}
        self._first_of_fit = False
        self._placed: int | None = None
        self._stop = StopRequest(leave=sys.exit)
        self._settings = Settings(
            schedule=Schedule(len(data.batches.labels), data.batches.batch_size, epochs),
            interval=_interval(interval),
            keep=max(2, keep),
            job={"job": job} if job else {},
            fingerprint=_fingerprint(data),
            running_metrics=self._running,
            open_events=self._open_events,
            epochs_are_whole=True,
        )
        if self._optimizer is None:
            raise Refused("there is no optimizer: compile the model, or name it with optimizer=")
        if (getattr(model, "steps_per_execution", None) or 1) != 1:
            raise Refused(f"each step has to be seen: steps_per_execution is {model.steps_per_execution}, not 1")
        self.callback = _Callback(self)

    def __enter__(self) -> ResumableRun:
        if threading.current_thread() is not threading.main_thread():
            raise Refused("signals reach the main thread alone: train there")
        self._directory = open_directory(self._root)
        journal = Journal(self._directory.journal)
        self._stop.before_leaving = lambda: journal.write_from_handler(before_first_step())
        try:
            self._restored = find_state(self._directory, self._settings.job)
            variables = Variables(self._model, self._optimizer, extra=self._metric_variables)
            self._stop.install()
            display = progress.Display()
            self._run = Run(self._directory, self._restored, variables, self._settings, self._stop, display)
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._run.finish()
                self._run.finished()
            self._run.close()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._stop.uninstall()
        self._directory.close()

    # --- for every loop -------------------------------------------------------------------------------

    def epochs(self) -> Iterator[int]:
        """The epochs still to do, counting from 0, beginning with the one that was interrupted."""
        for epoch in self._run.epochs():
            self._data.place(epoch, self._run.position.offset)
            self._placed = epoch
            # With PyTorch each call of `fit` draws random numbers before its first step, the first call in a
            # process more than the others: every epoch goes on from where the last one ended.
            self._random, self._first_of_fit = dict(self._run.variables.random_state()), True
            yield epoch

    @property
    def step(self) -> int:
        """Steps done so far, over all starts."""
        return self._run.position.step

    @property
    def digest(self) -> str:
        """SHA-256 over all variables of model and optimizer."""
        return self._run.variables.digest()

    # --- for custom loops -----------------------------------------------------------------------------

    def batches(self) -> Iterator[Any]:
        """The batches left in this epoch, each (inputs, targets)."""
        return self._data.batches.of_epoch(self._data.epoch, self._data.offset)

    def step_done(self, **metrics: Any) -> None:
        """Call after each step. May save; raises SystemExit(75) after SIGTERM. `metrics` are for show."""
        self._metrics = metrics
        self._run.step_done()

    def epoch_done(self, **metrics: Any) -> None:
        """Call after each epoch. `metrics` go into metrics.csv and TensorBoard."""
        self._run.epoch_done({name: float(value) for name, value in (metrics or self._metrics).items()})
        self._metrics = {}

    def check_stop(self) -> None:
        """Call now and then in whatever takes long between two steps, such as validation."""
        self._run.check_stop()

    # --- the rest -------------------------------------------------------------------------------------

    def _running(self) -> Mapping[str, float]:
        return {name: float(value) for name, value in self._metrics.items()}

    def _metric_variables(self) -> list[Any]:
        return list(self._model.metrics_variables)

    def before_fit_step(self) -> None:
        """Undo what `fit` has changed before its first step; and keep what is needed since it cannot come back
        to the middle of a validation."""
        if self._placed != self._run.position.epoch:
            raise TrainerError("call fit once for each epoch that run.epochs() gives, with epochs=epoch + 1")
        if self._first_of_fit:
            self._first_of_fit = False
            if self._restored.checkpoint is not None and self._data.offset:
                self._restore_metrics(self._restored.checkpoint.tensors)
            self._restored = Restored(None, (), {})
            self._run.variables.restore_random_state(self._random)
        if self._run.position.steps_left_in_epoch(self._settings.schedule) == 1:
            self._run.keep_state()

    def _restore_metrics(self, tensors: Mapping[str, Any]) -> None:
        """Keras makes its metrics in the first step of `fit`, and sets them to zero before each epoch."""
        inputs, targets = self._data.batches.batch(self._data.batches.order(0), 0)
        self._model.compute_metrics(inputs, targets, self._model(inputs, training=False))
        self._model.reset_metrics()
        self._run.variables.restore_extra(tensors)

    def _open_events(self, step: int, epoch_is_over: bool) -> EventLog | None:
        if keras.backend.backend() != "tensorflow":
            return None
        from trainer import tensorboard

        return tensorboard.Events(self._directory.tensorboard, step, epoch_is_over)


class _Callback(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells the run about the steps of `fit`."""

    def __init__(self, run: ResumableRun) -> None:
        super().__init__()
        self._resumable = run

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._resumable.before_fit_step()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._resumable.step_done(**(logs or {}))

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._resumable.check_stop()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._resumable.epoch_done(**(logs or {}))


def _interval(text: str) -> policy.Interval:
    try:
        return policy.parse_interval(text)
    except ValueError as error:
        raise Refused(f"interval is {text!r}: {error}") from error


def _fingerprint(data: ResumableData) -> dict[str, str]:
    return {
        **fingerprint.of_machine(),
        "backend": keras.backend.backend(),
        "data": data.identity(),
        "batch_size": str(data.batches.batch_size),
        "seed": str(data.batches.seed),
    }
