"""A data set and models so small that a whole training takes a second, for `--dataset tiny:data`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np


def data(size: tuple[int, int] | None) -> Any:
    """Left or right half bright. TINY_VALIDATION: how many examples to validate on."""
    height, width = size or (12, 12)
    return _part(0, 96, height, width), _part(1, int(os.environ.get("TINY_VALIDATION", "32")), height, width)


def _part(seed: int, count: int, height: int, width: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (count, height, width, 3), dtype=np.uint8)
    labels = np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        half = slice(0, width // 2) if label else slice(width // 2, width)
        image[:, half] += 100
    return images, labels


def model(image_shape: tuple[int, int, int], classes: int) -> Any:
    """Has all that makes resuming hard: dropout, running statistics, an optimizer with slots."""
    import keras

    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )


def flat(image_shape: tuple[int, int, int], classes: int) -> Any:
    import keras

    return keras.Sequential(
        [keras.Input(image_shape), keras.layers.Flatten(), keras.layers.Dense(classes, activation="softmax")]
    )


def large(image_shape: tuple[int, int, int], classes: int) -> Any:
    """The state is 12 MB."""
    import keras

    return keras.Sequential(
        [
            keras.Input(image_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(2400, activation="relu"),
            keras.layers.Dense(classes, activation="softmax"),
        ]
    )
