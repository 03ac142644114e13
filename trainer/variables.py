"""All the state of a model in training: each variable of model and optimizer, and what else is random.

`model.variables` has the state of dropout's seed generators, which `save_weights`, `.keras` files and
`tf.train.Checkpoint(model)` leave out (Keras 3.15), so that none of these resumes exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from trainer import checkpoint
from trainer.checkpoint import Array
from trainer.errors import Refused

TORCH_RNG = "rng/torch"
# Keras numbers its layers in the order in which a process makes them: dense, dense_1, ...
NUMBERED = re.compile(r"_\d+(?=/|$)")


class Variables:
    """The variables of a built model and its optimizer, in a fixed order under fixed names.

    `extra` gives variables (running metrics) that are saved and restored too, but are no part of the digest.
    """

    def __init__(self, model: Any, optimizer: Any, extra: Callable[[], Iterable[Any]] = tuple) -> None:
        if not model.built:
            raise Refused("the model has no variables yet", hint="give it an Input, or call model.build()")
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        self._model = model
        self._backend = _backend()
        self._state = list(_named([("model", model.variables), ("optimizer", optimizer.variables)]))
        self._extra = extra

    def tensors(self) -> list[tuple[str, Array]]:
        """Every variable as an array. The arrays may alias the variables: use them before the next step."""
        self._synchronise()
        metrics = _named([("metric", self._extra())])
        pairs = [(name, _array(variable)) for name, variable in [*self._state, *metrics]]
        return pairs + self.random_state()

    def digest(self) -> str:
        self._synchronise()
        return checkpoint.digest([(name, _array(variable)) for name, variable in self._state])

    def restore(self, tensors: Mapping[str, Array]) -> None:
        """Set every variable. Raises Refused, naming both shapes, where the model is another one."""
        arrays = [_checked(name, tensors, tuple(variable.shape)) for name, variable in self._state]
        for (_, variable), array in zip(self._state, arrays, strict=True):
            _assign(variable, array)
        self.restore_extra(tensors)
        self.restore_random_state(tensors)

    def restore_extra(self, tensors: Mapping[str, Array]) -> None:
        """Set the `extra` variables that there are by now."""
        for name, variable in _named([("metric", self._extra())]):
            array = tensors.get(name)
            if array is not None and array.shape == tuple(variable.shape):
                _assign(variable, array)

    def restore_random_state(self, tensors: Mapping[str, Array]) -> None:
        if TORCH_RNG in tensors and self._backend == "torch":
            import torch  # type: ignore[import-not-found,unused-ignore]

            torch.set_rng_state(torch.from_numpy(tensors[TORCH_RNG].copy()))

    def _synchronise(self) -> None:
        # Inside fit, JAX keeps the state out of the variables until somebody asks.
        if self._backend == "jax":
            self._model.jax_state_sync()

    def random_state(self) -> list[tuple[str, Array]]:
        """What is random beside the variables."""
        if self._backend != "torch":
            return []
        # Keras dropout draws from torch's own generator, not from its seed generator.
        import torch

        return [(TORCH_RNG, torch.get_rng_state().numpy())]


def _backend() -> str:
    import keras

    return str(keras.backend.backend())


def _named(groups: Iterable[tuple[str, Iterable[Any]]]) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for group, variables in groups:
        for index, variable in enumerate(variables):
            if id(variable) in seen:
                continue
            seen.add(id(variable))
            name = f"{group}/{index:04d}/{NUMBERED.sub('', getattr(variable, 'path', variable.name))}"
            for replica, part in enumerate(_replicas(variable)):
                yield (f"{name}@{replica}" if replica else name), part


def _replicas(variable: Any) -> list[Any]:
    """Each device's own copy under tf.distribute, where they may differ; else the variable itself."""
    inner = getattr(variable, "value", None)
    copies = getattr(inner, "values", None)
    if isinstance(copies, tuple):
        return list(copies)
    return [inner if hasattr(inner, "read_value") else variable]


def _array(variable: Any) -> Array:
    if hasattr(variable, "handle"):
        import tensorflow as tf

        # A third of what variable.numpy() costs: no identity op, and the buffer itself instead of a copy
        # of it (TensorFlow copies on write while somebody holds it).
        tensor = tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
        try:
            return np.asarray(memoryview(tensor))
        except (TypeError, ValueError, BufferError):
            return np.asarray(tensor.numpy())
    import keras

    return np.asarray(keras.ops.convert_to_numpy(variable))


def _assign(variable: Any, array: Array) -> None:
    if hasattr(variable, "handle"):
        import tensorflow as tf

        value = tf.constant(array, dtype=variable.dtype)
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
    else:
        variable.assign(array)


def _checked(name: str, tensors: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """The array for a variable; a device that has joined since gets what the first one had."""
    array = tensors.get(name, tensors.get(name.split("@")[0]))
    if array is None:
        raise Refused(f"the checkpoint is of another model: it lacks {name}")
    if array.shape != shape:
        raise Refused(f"the checkpoint is of another model: {name} has shape {array.shape}, not {shape}")
    return array
