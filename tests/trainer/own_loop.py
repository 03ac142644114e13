"""A custom training loop with the trainer's guarantees: what a user would write."""

import keras
import numpy as np
import tensorflow as tf

import trainer

inputs = np.random.default_rng(0).normal(size=(512, 16)).astype("float32")
targets = (inputs[:, 0] > inputs[:, 1]).astype("int32")
keras.utils.set_random_seed(7)
model = keras.Sequential(
    [
        keras.Input((16,)),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(2, activation="softmax"),
    ]
)
optimizer = trainer.FusedAdam(0.001)


@tf.function(autograph=False)
def step(batch, labels):
    with tf.GradientTape() as tape:
        answers = model(batch, training=True)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, answers))
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    return loss


data = trainer.ResumableData(inputs, targets, batch_size=16, seed=7)
with trainer.resume(model, data, epochs=60, optimizer=optimizer, interval="50") as run:
    for _ in run.epochs():
        for batch, labels in run.batches():
            run.step_done(loss=step(batch, labels))
        run.epoch_done()
