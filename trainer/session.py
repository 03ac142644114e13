"""The trainer's own training on TensorFlow: build, restore, train, export."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from trainer import checkpoint, devices, export, fingerprint, model, progress, step, tensorboard
from trainer.adam import FusedAdam
from trainer.data import Batches
from trainer.decoded import Dataset, Split
from trainer.directory import Directory
from trainer.errors import TrainerError, reason
from trainer.options import Options
from trainer.run import Restored, Run, Schedule, Settings
from trainer.stop import StopRequest
from trainer.variables import Variables


@dataclass(frozen=True)
class Network:
    """A model with its optimizer and its two steps, on the devices that were chosen."""

    place: devices.Devices
    model: Any
    optimizer: Any
    training: step.Totals
    validation: step.Totals
    train: step.Step
    evaluate: step.Step


def build(options: Options, image: tuple[int, int, int], classes: int) -> Network:
    """Everything that needs no data and no checkpoint. Raises Refused for what cannot be built."""
    place = devices.set_up(options)
    keras.utils.set_random_seed(options.seed)
    with place.strategy.scope():
        network = model.build(options.model, image, classes)
        optimizer = _optimizer(options, place.precision)
        optimizer.build(network.trainable_variables)
        training, validation = step.Totals("training"), step.Totals("validation")
    feed = (image, options.batch_size, place.strategy, options.xla)
    return Network(
        place,
        network,
        optimizer,
        training,
        validation,
        step.make_training_step(network, optimizer, training, *feed),
        step.make_evaluation_step(network, validation, *feed),
    )


def _optimizer(options: Options, precision: str) -> Any:
    optimizer = FusedAdam(options.learning_rate)
    # float16 has so small a range that gradients vanish unless the loss is scaled up.
    return keras.optimizers.LossScaleOptimizer(optimizer) if precision == "mixed_float16" else optimizer


def begin(
    options: Options,
    directory: Directory,
    restored: Restored,
    dataset: Dataset,
    network: Network,
    job: Mapping[str, Any],
    stop: StopRequest,
) -> Run:
    """Put the network into the state of the checkpoint, or leave it as it is where there is none."""
    settings = Settings(
        schedule=Schedule(len(dataset.train.labels), options.batch_size, options.epochs),
        interval=options.checkpoint_interval,
        keep=options.keep,
        job=job,
        fingerprint=_fingerprint(options, dataset, network.place),
        running_metrics=network.training.means,
        open_events=lambda step, epoch_is_over: tensorboard.Events(directory.tensorboard, step, epoch_is_over),
    )
    variables = Variables(network.model, network.optimizer, extra=lambda: [network.training.variable])
    run = Run(directory, restored, variables, settings, stop, progress.Display())
    network.optimizer.learning_rate = options.learning_rate
    return run


def _fingerprint(options: Options, dataset: Dataset, place: devices.Devices) -> dict[str, str]:
    return {
        **fingerprint.of_machine(),
        "dataset": dataset.identity,
        "batch_size": str(options.batch_size),
        "learning_rate": str(options.learning_rate),
        "seed": str(options.seed),
        "devices": f"{place.count} {place.name}",
        "precision": place.precision,
        "deterministic": str(options.deterministic),
        "grappler": str(place.kind == "GPU"),
        "xla": str(options.xla),
    }


def train(run: Run, network: Network, options: Options, dataset: Dataset) -> None:
    """Train from where the run is to the end. Raises SystemExit(75) when asked to stop."""
    images, labels = dataset.train.images, dataset.train.labels
    batches = Batches(images, labels, batch_size=options.batch_size, seed=options.seed)
    best = export.BestModel(run.directory, network.model)
    weights = np.ones(options.batch_size, np.float32)
    for epoch in run.epochs():
        if run.position.offset == 0:
            network.training.reset()
        for images, labels in batches.of_epoch(epoch, run.position.offset):
            network.train(images, labels, weights)
            run.step_done()
            gc.enable()
        judged = _validate(run, network, dataset.validation, options.batch_size)
        values = {**network.training.means(), **judged}
        _keep_if_best(run, best, values)
        run.epoch_done(values)
    _finish(run, network, best)


def _validate(run: Run, network: Network, held_out: Split, batch_size: int) -> dict[str, float]:
    """Interrupted here, the run comes back to the end of the epoch and validates again."""
    network.validation.reset()
    for images, labels, weights in step.padded(held_out, batch_size):
        run.check_stop()
        network.evaluate(images, labels, weights)
        run.tell_if_due()
    return {f"val_{name}": value for name, value in network.validation.means().items()}


def _keep_if_best(run: Run, best: export.BestModel, values: Mapping[str, float]) -> None:
    """The best has the highest validation accuracy, and of those the lowest loss."""
    before = run.best.get("val_accuracy", -1.0), -run.best.get("val_loss", 0.0)
    if (values["val_accuracy"], -values["val_loss"]) <= before:
        return
    now_best = {"epoch": run.position.epoch + 1, "step": run.position.step, **values}
    try:
        best.keep(now_best)
        run.best = now_best
    except Exception as error:  # noqa: BLE001 - HDF5 and too little memory raise what they like: training goes on
        run.say(f"The best model so far could NOT be kept: {reason(error)}", loud=True)


def _finish(run: Run, network: Network, best: export.BestModel) -> None:
    run.finish()
    try:
        export.export(network.model, run.directory.final_model)
        _export_best(run, network, best)
    except OSError as error:
        raise TrainerError(
            f"training is done and saved, but the models could not be exported: {reason(error)}",
            hint="make room there and start the same command again",
        ) from error
    run.finished()


def _export_best(run: Run, network: Network, best: export.BestModel) -> None:
    """A best model that could not be kept (disk full), or was damaged since, must not keep a run from its end."""
    try:
        best.export()
    except (FileNotFoundError, checkpoint.Damaged) as error:
        reason = "it is not there" if isinstance(error, FileNotFoundError) else str(error)
        run.say(f"The best model cannot be read ({reason}): best.keras is the final one", loud=True)
        export.export(network.model, run.directory.best_model)
