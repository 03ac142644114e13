import keras
import numpy as np

import trainer

# Your data: arrays with one row an example.
inputs = np.random.default_rng(0).normal(size=(512, 16)).astype("float32")
targets = (inputs[:, 0] > inputs[:, 1]).astype("int32")

# Your model. The seed makes a run that begins anew after a kill the same run.
keras.utils.set_random_seed(7)
model = keras.Sequential(
    [
        keras.Input((16,)),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(2, activation="softmax"),
    ]
)
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])

data = trainer.ResumableData(inputs, targets, batch_size=16, seed=7)
with trainer.resume(model, data, epochs=30) as run:
    for epoch in run.epochs():
        model.fit(
            data,
            initial_epoch=epoch,
            epochs=epoch + 1,
            validation_data=(inputs[:64], targets[:64]),
            callbacks=[run.callback],
            verbose=0,
        )
    print(f"step {run.step}, digest {run.digest}")
