"""Uses of `trainer.resume` that cannot work. Prints what is said of each."""

import keras
import numpy as np

import trainer
from trainer.errors import TrainerError

inputs, targets = np.zeros((8, 2), "float32"), np.zeros(8, "int32")


def compiled(width=3, **options):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(width), keras.layers.Dense(2)])
    model.compile(optimizer="sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options)
    return model


def data():
    return trainer.ResumableData(inputs, targets, batch_size=4)


def train(model, fit_once=False, **options):
    with trainer.resume(model, data(), epochs=2, **options) as run:
        if fit_once:
            model.fit(data(), epochs=2, callbacks=[run.callback], verbose=0)
        for epoch in run.epochs():
            for _ in run.batches():
                run.step_done()
            if epoch == 0:
                run.epoch_done()


def said(name, use):
    try:
        use()
        print(f"{name}: nothing")
    except TrainerError as error:
        print(f"{name}: {error.message}")


said("batch", lambda: trainer.ResumableData(inputs, targets, batch_size=9))
said("lengths", lambda: trainer.ResumableData(inputs[:5], targets, batch_size=4))
said("optimizer", lambda: train(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])))
said("execution", lambda: train(compiled(steps_per_execution=2)))
said("interval", lambda: train(compiled(), interval="-5"))
said("fit", lambda: train(compiled(), fit_once=True, directory="fit"))
said("epoch", lambda: train(compiled(), interval="1", job="a"))
said("job", lambda: train(compiled(), job="b"))
said("shapes", lambda: train(compiled(width=4), job="a"))
