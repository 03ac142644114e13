"""The training step and the evaluation step: traced once, metrics added up on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.decoded import Array, Split


class Totals:
    """Sums of loss, right answers and examples. A variable, so that a checkpoint can have the sums of half
    an epoch; float64, so that no example is lost among a billion."""

    def __init__(self, name: str) -> None:
        self.variable = tf.Variable([0.0, 0.0, 0.0], dtype=tf.float64, trainable=False, name=name)

    def reset(self) -> None:
        self.variable.assign([0.0, 0.0, 0.0])

    def means(self) -> dict[str, float]:
        """Mean loss and accuracy; nothing where nothing was added up."""
        loss, right, count = self.variable.numpy().tolist()
        return {"loss": loss / count, "accuracy": right / count} if count else {}


Step = Callable[[Array, Array, Array], None]


def make_training_step(
    model: Any,
    optimizer: Any,
    totals: Totals,
    image: tuple[int, ...],
    batch_size: int,
    strategy: Any,
    xla: bool,
) -> Step:
    """A step on `batch_size` images shared out over the devices of `strategy`.

    The gradient is of the mean loss over the whole batch, however many devices there are.
    """
    devices = strategy.num_replicas_in_sync

    def train(images: Any, labels: Any, weights: Any) -> Any:
        with tf.GradientTape() as tape:
            answers = tf.cast(model(tf.cast(images, tf.float32), training=True), tf.float32)
            losses = keras.losses.sparse_categorical_crossentropy(labels, answers)
            loss = tf.reduce_sum(losses) / batch_size
            if model.losses:
                loss += tf.add_n(model.losses) / devices
            scaled = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(scaled, model.trainable_variables), model.trainable_variables)
        return _sums(losses, answers, labels, weights)

    return _compiled(train, totals, (batch_size // devices, *image), strategy, xla)


def make_evaluation_step(
    model: Any, totals: Totals, image: tuple[int, ...], batch_size: int, strategy: Any, xla: bool
) -> Step:
    def evaluate(images: Any, labels: Any, weights: Any) -> Any:
        answers = tf.cast(model(tf.cast(images, tf.float32), training=False), tf.float32)
        losses = keras.losses.sparse_categorical_crossentropy(labels, answers)
        return _sums(losses, answers, labels, weights)

    return _compiled(evaluate, totals, (batch_size // strategy.num_replicas_in_sync, *image), strategy, xla)


def _sums(losses: Any, answers: Any, labels: Any, weights: Any) -> Any:
    right = tf.cast(tf.equal(tf.argmax(answers, -1, tf.int32), labels), tf.float32)
    parts = [tf.reduce_sum(losses * weights), tf.reduce_sum(right * weights), tf.reduce_sum(weights)]
    return tf.cast(tf.stack(parts), tf.float64)


def _compiled(one: Any, totals: Totals, images: tuple[int, ...], strategy: Any, xla: bool) -> Step:
    """`one` as a graph on each device; its sums go into `totals`."""
    specs = [
        tf.TensorSpec(images, tf.uint8),
        tf.TensorSpec(images[:1], tf.int32),
        tf.TensorSpec(images[:1], tf.float32),
    ]
    if strategy.num_replicas_in_sync == 1:

        @tf.function(autograph=False, jit_compile=xla or None, input_signature=specs)  # type: ignore[untyped-decorator]
        def alone(images: Any, labels: Any, weights: Any) -> None:
            totals.variable.assign_add(one(images, labels, weights))

        return alone  # type: ignore[no-any-return]

    @tf.function(autograph=False, jit_compile=xla or None)  # type: ignore[untyped-decorator]
    def together(images: Any, labels: Any, weights: Any) -> None:
        sums = strategy.run(one, args=(images, labels, weights))
        totals.variable.assign_add(strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None))

    share = images[0]

    def shared_out(*batch: Array) -> None:
        together(*(_share(strategy, array, share) for array in batch))

    return shared_out


def _share(strategy: Any, array: Array, share: int) -> Any:
    def of(context: Any) -> Any:
        begin = context.replica_id_in_sync_group * share
        return tf.constant(array[begin : begin + share])

    return strategy.experimental_distribute_values_from_function(of)


def padded(split: Split, batch_size: int) -> Iterator[tuple[Array, Array, Array]]:
    """All of a split in full batches: the last one is filled up with examples that weigh nothing."""
    for begin in range(0, len(split.labels), batch_size):
        chosen = np.arange(begin, begin + batch_size)
        weights = (chosen < len(split.labels)).astype(np.float32)
        chosen %= len(split.labels)
        yield split.images[chosen], split.labels[chosen], weights
