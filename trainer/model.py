"""The model by name: any of keras.applications, or a user's own function."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

import keras

from trainer import data
from trainer.errors import Refused

# MobileNetV3's own 0.999 makes its running statistics useless for a thousand steps and more: with 32 steps
# an epoch validation stays at chance (measured: 0.50 after 3 epochs, 0.98 after 2 with 0.9).
MOMENTUM = 0.9


def build(name: str, image_shape: tuple[int, int, int], classes: int) -> Any:
    """A model from images of 0 to 255 to probabilities; scaling is in the model, once.

    Raises Refused for an unknown name or an image size that the model refuses.
    """
    if ":" in name:
        return _own(name, image_shape, classes)
    base = _application(name, image_shape, classes)
    # Probabilities in half precision are too coarse for a loss (the advice of Keras' guide to mixed precision).
    base.layers[-1].dtype_policy = "float32"
    for layer in _flat(base):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = MOMENTUM
    if any(isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization) for layer in _flat(base)):
        return base
    images = keras.Input(image_shape)
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
    return keras.Model(images, base(scaled), name=base.name)


def _own(name: str, image_shape: tuple[int, int, int], classes: int) -> Any:
    model = data.own_function(name, "model")(image_shape, classes)
    if not isinstance(model, keras.Model) or not model.built:
        raise Refused(f"{name} should return a built keras.Model, it returned {type(model).__name__}")
    if model.output_shape != (None, classes):
        raise Refused(f"{name} should give {classes} probabilities an image, it gives {model.output_shape}")
    return model


def _application(name: str, image_shape: tuple[int, int, int], classes: int) -> Any:
    maker = dict(applications()).get(name)
    if maker is None:
        near = difflib.get_close_matches(name, [name for name, _ in applications()], 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "name one of keras.applications"
        raise Refused(f"keras.applications has no model {name!r}", hint=hint)
    try:
        return maker(input_shape=image_shape, weights=None, classes=classes)
    except (ValueError, ZeroDivisionError) as error:
        size = f"{image_shape[0]}x{image_shape[1]}"
        reason = str(error).strip().splitlines()[0]
        raise Refused(f"{name} refuses images of {size}: {reason}", hint="try another --image-size") from error


def applications() -> Iterator[tuple[str, Any]]:
    for name, maker in inspect.getmembers(keras.applications, inspect.isfunction):
        if "classes" in inspect.signature(maker).parameters:
            yield name, maker


def _flat(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _flat(layer)
        else:
            yield layer
